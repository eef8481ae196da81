//! Confinement of the processes of a guest: the rights that they give up before the first guest instruction runs.
//!
//! | | Linux | FreeBSD |
//! |---|---|---|
//! | engine | user, capabilities, namespaces; Landlock: no file, port or signal; seccomp: listed calls with listed arguments | user; capability mode, and each descriptor limited to its use (capsicum(4)) |
//! | connector | the same, but it may make and connect sockets of IPv4 and IPv6 | user only, since capability mode has no connect(2) |
//! | host services | the same, but they may read files and, if there is no other way to ping, make raw ICMP sockets | nothing, since only root may make raw sockets |
//!
//! All files and ports of the engine are open by then ([`opened`](super::opened)). Further sockets of the user-mode network
//! come from the [connector](crate::devices::net::user::connector), which is a separate process. If the kernel lacks one of
//! these features, that is reported, and the guest runs without it.

#[cfg(target_os = "freebsd")]
mod freebsd;
#[cfg(target_os = "linux")]
mod linux;

#[cfg(target_os = "freebsd")]
pub use freebsd::{enter, enter_connector, enter_host_services, seal};
#[cfg(target_os = "linux")]
pub use linux::{enter, enter_connector, enter_host_services, seal};

/// An error of the confinement: the kernel has a feature and refuses its use.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// The user, the capabilities or the limits cannot be changed.
    #[error("the process cannot {0}")]
    Privileges(&'static str, #[source] std::io::Error),
    /// Landlock failed.
    #[cfg(target_os = "linux")]
    #[error("landlock: {0}")]
    Landlock(String),
    /// Seccomp failed.
    #[cfg(target_os = "linux")]
    #[error("seccomp: {0}")]
    Seccomp(String),
    /// Capsicum failed.
    #[cfg(target_os = "freebsd")]
    #[error("capsicum: cannot {0}")]
    Capsicum(&'static str, #[source] std::io::Error),
}

/// The confinement of a process, in words for the user.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Confinement {
    /// Features in force.
    pub held: Vec<String>,
    /// Features that this host lacks or refuses, with the reason.
    pub missing: Vec<String>,
}

#[cfg(not(any(target_os = "linux", target_os = "freebsd")))]
mod none {
    use super::{Confinement, SandboxError};
    use crate::hypervisor::backend::Rights;

    /// Confines the engine child.
    pub fn enter(_run_as: Option<u32>, _memory_bytes: u64, _rights: &Rights) -> Result<Confinement, SandboxError> {
        Ok(Confinement { held: Vec::new(), missing: vec!["this system has no confinement that vmctl knows".into()] })
    }
    /// Gives up the right to start threads.
    pub fn seal(_rights: &Rights) -> Result<(), SandboxError> {
        Ok(())
    }
    /// Confines a connector.
    pub fn enter_connector(run_as: Option<u32>) -> Result<Confinement, SandboxError> {
        enter(run_as, 0, &Rights::default())
    }
    /// Confines the host services.
    pub fn enter_host_services(run_as: Option<u32>, _needs_raw: impl FnOnce() -> bool) -> Result<Confinement, SandboxError> {
        enter(run_as, 0, &Rights::default())
    }
}
#[cfg(not(any(target_os = "linux", target_os = "freebsd")))]
pub use none::{enter, enter_connector, enter_host_services, seal};
