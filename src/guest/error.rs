//! Errors of guests, with messages for the user.

use std::fmt;
use std::io;
use std::path::Path;

use crate::config::Diagnostics;

/// Cause of an error: it decides who can fix it and becomes the exit status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The user: a name, a file, an order of things.
    User,
    /// The machine, or this program.
    Host,
}

/// An error with its message, a possible next step, and its cause.
#[derive(Debug)]
pub struct GuestError {
    message: String,
    hint: Option<String>,
    fault: Fault,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
    diagnostics: Option<Box<Diagnostics>>,
}

impl From<Diagnostics> for GuestError {
    /// Wraps the problems of a guest file: the text with its positions, and for a terminal the positions themselves.
    fn from(diagnostics: Diagnostics) -> GuestError {
        let text = diagnostics.to_string();
        GuestError { diagnostics: Some(Box::new(diagnostics)), ..GuestError::user(text.trim_end()) }
    }
}

impl From<crate::host::error::HostError> for GuestError {
    /// Wraps an error of the host's tools.
    fn from(error: crate::host::error::HostError) -> GuestError {
        GuestError { hint: error.next_step().map(str::to_owned), ..GuestError::user(error.to_string()) }
    }
}

/// The result of the functions of this folder.
pub type Result<T> = std::result::Result<T, GuestError>;

impl GuestError {
    /// Creates an error that the user can fix: lower-case, no final stop.
    pub fn user(message: impl Into<String>) -> GuestError {
        GuestError { message: message.into(), hint: None, fault: Fault::User, source: None, diagnostics: None }
    }
    /// Creates an error of the machine or this program.
    pub fn host(message: impl Into<String>) -> GuestError {
        GuestError { message: message.into(), hint: None, fault: Fault::Host, source: None, diagnostics: None }
    }
    /// Creates the error of a system call on a path. `action` completes "cannot ...".
    pub fn io(action: &str, path: &Path, error: io::Error) -> GuestError {
        let user = matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied | io::ErrorKind::StorageFull);
        GuestError {
            message: format!("cannot {action} `{}`", path.display()),
            hint: match error.kind() {
                io::ErrorKind::StorageFull => Some("free some space on that file system and try again".into()),
                _ => None,
            },
            fault: if user { Fault::User } else { Fault::Host },
            source: Some(Box::new(error)),
            diagnostics: None,
        }
    }
    /// Adds the name of its subject: `what: message`.
    pub fn about(mut self, what: &str) -> GuestError {
        self.message = format!("{what}: {}", self.message);
        self
    }
    /// Adds what could not be undone after it.
    pub fn with_left(mut self, left: &[String]) -> GuestError {
        if !left.is_empty() {
            let cause = self.source.take().map_or_else(String::new, |source| format!(": {source}"));
            self.message = format!("{}{cause} (and not undone: {})", self.message, left.join("; "));
        }
        self
    }
    /// Returns the same error, told of `to` where it names `from`: a directory that has another name while it is
    /// filled.
    pub fn told_of(mut self, from: &Path, to: &Path) -> GuestError {
        let (from, to) = (from.to_string_lossy(), to.to_string_lossy());
        self.message = self.message.replace(&*from, &to);
        self.hint = self.hint.map(|hint| hint.replace(&*from, &to));
        for diagnostic in self.diagnostics.iter_mut().flat_map(|diagnostics| &mut diagnostics.0) {
            diagnostic.told_of(&from, &to);
        }
        self
    }
    /// Creates the error for a file of the user that cannot be read. The user can fix it.
    pub fn input(action: &str, path: &Path, error: io::Error) -> GuestError {
        let user = matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData | io::ErrorKind::FileTooLarge);
        let failed = GuestError::io(action, path, error);
        GuestError { fault: if user { Fault::User } else { failed.fault }, ..failed }
    }
    /// Adds the next step.
    pub fn hint(mut self, hint: impl Into<String>) -> GuestError {
        self.hint = Some(hint.into());
        self
    }
    /// Returns the next step, if there is one.
    pub fn next_step(&self) -> Option<&str> {
        self.hint.as_deref()
    }
    /// Returns the cause.
    pub fn fault(&self) -> Fault {
        self.fault
    }
    /// Returns whether it is caused by a lack of room: a full file system, or a limit on files, which may end.
    pub fn is_full(&self) -> bool {
        let source = self.source.as_ref().and_then(|source| source.downcast_ref::<io::Error>());
        source.is_some_and(|error| {
            use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
            matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge)
        })
    }
    /// Returns the problems of the guest file, if those are the error.
    pub fn diagnostics(&self) -> Option<&Diagnostics> {
        self.diagnostics.as_deref()
    }
    /// Returns the message and its causes in one line.
    pub fn chain(&self) -> String {
        match &self.source {
            Some(source) => format!("{}: {source}", self.message),
            None => self.message.clone(),
        }
    }
}

impl fmt::Display for GuestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for GuestError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|source| &**source as &(dyn std::error::Error + 'static))
    }
}
