//! What goes wrong with a guest, in the words a user reads.

use std::fmt;
use std::io;
use std::path::Path;

use crate::config::Diagnostics;

/// Who can do something about it; it becomes the exit status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The user: a name, a file, an order of things.
    User,
    /// The machine, or this program.
    Host,
}

/// A message, a possible next step, and who can do something about it.
#[derive(Debug)]
pub struct GuestError {
    message: String,
    hint: Option<String>,
    fault: Fault,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
    diagnostics: Option<Box<Diagnostics>>,
}

impl From<Diagnostics> for GuestError {
    /// A guest file that is not right: the text with its places, and for a terminal the places themselves.
    fn from(diagnostics: Diagnostics) -> GuestError {
        let text = diagnostics.to_string();
        GuestError { diagnostics: Some(Box::new(diagnostics)), ..GuestError::user(text.trim_end()) }
    }
}

impl From<crate::host::error::HostError> for GuestError {
    /// What the host's tools would not do.
    fn from(error: crate::host::error::HostError) -> GuestError {
        GuestError { hint: error.next_step().map(str::to_owned), ..GuestError::user(error.to_string()) }
    }
}

/// What the functions of this folder return.
pub type Result<T> = std::result::Result<T, GuestError>;

impl GuestError {
    /// Something that the user can put right: lower-case, no final stop.
    pub fn user(message: impl Into<String>) -> GuestError {
        GuestError { message: message.into(), hint: None, fault: Fault::User, source: None, diagnostics: None }
    }
    /// Something that failed under the user.
    pub fn host(message: impl Into<String>) -> GuestError {
        GuestError { message: message.into(), hint: None, fault: Fault::Host, source: None, diagnostics: None }
    }
    /// A system call on a path: `action` completes "cannot ...".
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
    /// The same error, of a thing: `what: message`.
    pub fn about(mut self, what: &str) -> GuestError {
        self.message = format!("{what}: {}", self.message);
        self
    }
    /// With what could not be undone after it.
    pub fn with_left(mut self, left: &[String]) -> GuestError {
        if !left.is_empty() {
            let cause = self.source.take().map_or_else(String::new, |source| format!(": {source}"));
            self.message = format!("{}{cause} (and not undone: {})", self.message, left.join("; "));
        }
        self
    }
    /// The same error, told of `to` where it names `from`: a directory that has another name while it is filled.
    pub fn told_of(mut self, from: &Path, to: &Path) -> GuestError {
        let (from, to) = (from.to_string_lossy(), to.to_string_lossy());
        self.message = self.message.replace(&*from, &to);
        self.hint = self.hint.map(|hint| hint.replace(&*from, &to));
        for diagnostic in self.diagnostics.iter_mut().flat_map(|diagnostics| &mut diagnostics.0) {
            diagnostic.told_of(&from, &to);
        }
        self
    }
    /// A file that the user named cannot be read: what it is, is the user's to put right.
    pub fn input(action: &str, path: &Path, error: io::Error) -> GuestError {
        let user = matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData | io::ErrorKind::FileTooLarge);
        let failed = GuestError::io(action, path, error);
        GuestError { fault: if user { Fault::User } else { failed.fault }, ..failed }
    }
    /// What to do next.
    pub fn hint(mut self, hint: impl Into<String>) -> GuestError {
        self.hint = Some(hint.into());
        self
    }
    /// The next step, if there is one.
    pub fn next_step(&self) -> Option<&str> {
        self.hint.as_deref()
    }
    /// Who can do something about it.
    pub fn fault(&self) -> Fault {
        self.fault
    }
    /// Whether it is for want of room: a full file system, or a limit on files, which may pass.
    pub fn is_full(&self) -> bool {
        let source = self.source.as_ref().and_then(|source| source.downcast_ref::<io::Error>());
        source.is_some_and(|error| {
            use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
            matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge)
        })
    }
    /// What is wrong with a guest file, if that is it.
    pub fn diagnostics(&self) -> Option<&Diagnostics> {
        self.diagnostics.as_deref()
    }
    /// The message and its causes in one line.
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
