//! Errors of fetching, with what to do about them.

use std::error::Error;
use std::fmt;
use std::io;
use std::path::Path;

/// Cause of an error: it decides who can fix it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The user: a wrong name, a wrong checksum, a file of a kind that cannot be read.
    User,
    /// The host, the network or a server.
    Host,
    /// The user interrupted it.
    Interrupted,
}

/// An error of fetching. Lower-case, no final stop, the offending value in backticks.
#[derive(Debug)]
pub struct FetchError {
    message: String,
    hint: Option<String>,
    fault: Fault,
    source: Option<Box<dyn Error + Send + Sync>>,
}

/// The result of the functions of this module.
pub type Result<T> = std::result::Result<T, FetchError>;

impl FetchError {
    /// Creates an error that the user can fix.
    pub fn user(message: impl Into<String>) -> Self {
        Self { message: message.into(), hint: None, fault: Fault::User, source: None }
    }
    /// Creates an error of the host, the network or a server.
    pub fn host(message: impl Into<String>) -> Self {
        Self { message: message.into(), hint: None, fault: Fault::Host, source: None }
    }
    /// Creates an error for an interruption by the user.
    pub fn interrupted() -> Self {
        Self {
            message: "interrupted".into(),
            hint: Some("the same command resumes where it was interrupted".into()),
            fault: Fault::Interrupted,
            source: None,
        }
    }
    /// Creates an error of a system call: `cannot ACTION `PATH``.
    pub fn io(action: &str, path: &Path, error: io::Error) -> Self {
        let full = error.kind() == io::ErrorKind::StorageFull;
        let failed = Self::host(format!("cannot {action} `{}`", path.display())).because(error);
        if full { failed.hint("make room on the file system, or name another `cache_dir` in the host file") } else { failed }
    }
    /// Creates an error for a file of the user that cannot be read: it is missing, or is not a file.
    pub fn input(action: &str, path: &Path, error: io::Error) -> Self {
        let user = matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::FileTooLarge | io::ErrorKind::InvalidData);
        let fault = if user { Fault::User } else { Fault::Host };
        Self { fault, ..Self::io(action, path, error) }
    }
    /// Adds what to do about it.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
    /// Adds its cause.
    pub fn because(mut self, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }
    /// Wraps it in the message of the action that failed.
    pub fn within(self, message: impl Into<String>) -> Self {
        let (hint, fault) = (self.hint.clone(), self.fault);
        Self { message: message.into(), hint, fault, source: Some(Box::new(Self { hint: None, ..self })) }
    }
    /// Returns the cause of the error.
    pub fn fault(&self) -> Fault {
        self.fault
    }
    /// Returns the next step for the user.
    pub fn next_step(&self) -> Option<&str> {
        self.hint.as_deref()
    }
}

impl fmt::Display for FetchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Error for FetchError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_ref().map(|source| &**source as &(dyn Error + 'static))
    }
}
