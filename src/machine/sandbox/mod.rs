//! What the processes of a guest give up before the first guest instruction runs.
//!
//! | | Linux | FreeBSD |
//! |---|---|---|
//! | engine | user, capabilities, namespaces; Landlock: no file, port or signal; seccomp: named calls with named arguments | user; capability mode, and each descriptor limited to what it is used for (capsicum(4)) |
//! | connector | the same, but it makes and connects sockets of IPv4 and IPv6 | user: capability mode knows no connect(2) |
//! | host services | the same, but they read files and, where there is no other way to ping, make raw ICMP sockets | nothing: raw sockets are root's |
//!
//! All files and ports of the engine are open by then ([`opened`](super::opened)); further sockets of the user-mode network
//! come from the [connector](crate::devices::net::user::connector), a process of its own. What a kernel lacks of this is
//! reported, and the guest runs without it.

#[cfg(target_os = "freebsd")]
mod freebsd;
#[cfg(target_os = "linux")]
mod linux;

#[cfg(target_os = "freebsd")]
pub use freebsd::{enter, enter_connector, enter_host_services, seal};
#[cfg(target_os = "linux")]
pub use linux::{enter, enter_connector, enter_host_services, seal};

/// A kernel that has the feature and refuses its use.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// User, capabilities, limits.
    #[error("the process cannot {0}")]
    Privileges(&'static str, #[source] std::io::Error),
    /// Landlock.
    #[cfg(target_os = "linux")]
    #[error("landlock: {0}")]
    Landlock(String),
    /// Seccomp.
    #[cfg(target_os = "linux")]
    #[error("seccomp: {0}")]
    Seccomp(String),
    /// Capsicum.
    #[cfg(target_os = "freebsd")]
    #[error("capsicum: cannot {0}")]
    Capsicum(&'static str, #[source] std::io::Error),
}

/// What confines a process, in words for the user.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Confinement {
    /// What holds.
    pub held: Vec<String>,
    /// What this host lacks or refuses, and why.
    pub missing: Vec<String>,
}

#[cfg(not(any(target_os = "linux", target_os = "freebsd")))]
mod none {
    use super::{Confinement, SandboxError};

    /// Confines the engine child.
    pub fn enter(_run_as: Option<u32>, _memory_bytes: u64) -> Result<Confinement, SandboxError> {
        Ok(Confinement { held: Vec::new(), missing: vec!["this system has no confinement that vmctl knows".into()] })
    }
    /// Takes the right to start threads.
    pub fn seal() -> Result<(), SandboxError> {
        Ok(())
    }
    /// Confines a connector.
    pub fn enter_connector(run_as: Option<u32>) -> Result<Confinement, SandboxError> {
        enter(run_as, 0)
    }
    /// Confines the host services.
    pub fn enter_host_services(run_as: Option<u32>, _needs_raw: impl FnOnce() -> bool) -> Result<Confinement, SandboxError> {
        enter(run_as, 0)
    }
}
#[cfg(not(any(target_os = "linux", target_os = "freebsd")))]
pub use none::{enter, enter_connector, enter_host_services, seal};
