//! Why something could not be fetched, and what to do about it.

use std::error::Error;
use std::fmt;
use std::io;
use std::path::Path;

/// Who can put it right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The user: a wrong name, a wrong checksum, a file of a kind that cannot be read.
    User,
    /// The host, the network or a server.
    Host,
    /// Nobody has to: the user broke it off.
    Interrupted,
}

/// An error of this part. Lower-case, no final stop, the offending value in backticks.
#[derive(Debug)]
pub struct FetchError {
    message: String,
    hint: Option<String>,
    fault: Fault,
    source: Option<Box<dyn Error + Send + Sync>>,
}

/// What the functions of this part return.
pub type Result<T> = std::result::Result<T, FetchError>;

impl FetchError {
    /// The user can put it right.
    pub fn user(message: impl Into<String>) -> Self {
        Self { message: message.into(), hint: None, fault: Fault::User, source: None }
    }
    /// The host, the network or a server is at fault.
    pub fn host(message: impl Into<String>) -> Self {
        Self { message: message.into(), hint: None, fault: Fault::Host, source: None }
    }
    /// The user broke it off.
    pub fn interrupted() -> Self {
        Self {
            message: "interrupted".into(),
            hint: Some("the same command goes on where it was broken off".into()),
            fault: Fault::Interrupted,
            source: None,
        }
    }
    /// A system call failed: `cannot ACTION `PATH``.
    pub fn io(action: &str, path: &Path, error: io::Error) -> Self {
        let full = error.kind() == io::ErrorKind::StorageFull;
        let failed = Self::host(format!("cannot {action} `{}`", path.display())).because(error);
        if full { failed.hint("make room on the file system, or name another `cache_dir` in the host file") } else { failed }
    }
    /// A file that the user named cannot be read: missing, or no file.
    pub fn input(action: &str, path: &Path, error: io::Error) -> Self {
        let user = matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::FileTooLarge | io::ErrorKind::InvalidData);
        let fault = if user { Fault::User } else { Fault::Host };
        Self { fault, ..Self::io(action, path, error) }
    }
    /// With what to do about it.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
    /// With its cause.
    pub fn because(mut self, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }
    /// With what was being done around it.
    pub fn within(self, message: impl Into<String>) -> Self {
        let (hint, fault) = (self.hint.clone(), self.fault);
        Self { message: message.into(), hint, fault, source: Some(Box::new(Self { hint: None, ..self })) }
    }
    /// Who can put it right.
    pub fn fault(&self) -> Fault {
        self.fault
    }
    /// The next step.
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
