//! What the engine child gives up before the first guest instruction runs, and what its connector gives up.
//!
//! | | Linux | FreeBSD |
//! |---|---|---|
//! | engine | Landlock: no file system; seccomp: no socket but those that it has, nothing else opened | capability mode, and each descriptor limited to what it is used for (capsicum(4)) |
//! | connector | Landlock: the file system is for reading; seccomp: sockets, reading, ending | its parent's privileges: capability mode knows no connect(2) |
//!
//! All files and ports are open by then; further sockets of the user-mode network come from the
//! [connector](crate::devices::net::user::connector), a process of its own. A kernel without these features runs the
//! engine unconfined, and its log says so.

#[cfg(target_os = "freebsd")]
mod freebsd;
#[cfg(target_os = "linux")]
mod linux;

#[cfg(target_os = "freebsd")]
pub use freebsd::{enter, enter_connector};
#[cfg(target_os = "linux")]
pub use linux::{enter, enter_connector};

/// A kernel that has the feature and refuses its use.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// Landlock.
    #[error("landlock: {0}")]
    Landlock(String),
    /// Seccomp.
    #[error("seccomp: {0}")]
    Seccomp(String),
    /// Capsicum.
    #[error("capsicum: cannot {0}")]
    Capsicum(&'static str, #[source] std::io::Error),
}

/// Whether a process is confined now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Confinement {
    /// It is.
    Full,
    /// The kernel lacks the feature: in words.
    Missing(&'static str),
}

/// Confines the process, all its threads.
#[cfg(not(any(target_os = "linux", target_os = "freebsd")))]
pub fn enter() -> Result<Confinement, SandboxError> {
    Ok(Confinement::Missing("this system has no confinement that vmctl knows"))
}

/// Confines a connector.
#[cfg(not(any(target_os = "linux", target_os = "freebsd")))]
pub fn enter_connector() -> Result<Confinement, SandboxError> {
    enter()
}
