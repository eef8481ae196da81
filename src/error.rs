//! The error that a user reads: what failed, the next step, and who can fix it.
//!
//! A module whose callers must tell one failure from another has a typed error of its own.

use std::any::Any;
use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;

/// Cause of an error: it decides who can fix it and becomes the exit status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The user: a name, a file, an order of things.
    User,
    /// The machine, the network, a server, or this program.
    Host,
    /// The user interrupted it.
    Interrupted,
}

/// An error with its message, a possible next step, and its cause.
#[derive(Debug, Clone)]
pub struct Error {
    message: String,
    hint: Option<String>,
    fault: Fault,
    source: Option<Arc<dyn StdError + Send + Sync>>,
    attached: Option<Arc<dyn Any + Send + Sync>>,
}

impl Error {
    /// Creates an error. The message is lower-case, has no final stop, and has the offending value in backticks.
    pub fn new(fault: Fault, message: impl Into<String>) -> Error {
        Error { message: message.into(), hint: None, fault, source: None, attached: None }
    }

    /// Creates an error that the user can fix.
    pub fn user(message: impl Into<String>) -> Error {
        Error::new(Fault::User, message)
    }

    /// Creates an error of the machine, the network, a server or this program.
    pub fn host(message: impl Into<String>) -> Error {
        Error::new(Fault::Host, message)
    }

    /// Creates the error of a system call on a path. `action` completes "cannot ...".
    pub fn io(action: &str, path: &Path, error: io::Error) -> Error {
        use io::ErrorKind::{NotFound, PermissionDenied, StorageFull};
        let fault = match error.kind() {
            NotFound | PermissionDenied | StorageFull => Fault::User,
            _ => Fault::Host,
        };
        let full = error.kind() == StorageFull;
        let failed = Error::new(fault, format!("cannot {action} `{}`", path.display())).because(error);
        if full { failed.hint("free some space on that file system and try again") } else { failed }
    }

    /// Creates the error for a file of the user that cannot be read. The user can fix it.
    pub fn input(action: &str, path: &Path, error: io::Error) -> Error {
        let user = is_no_input(&error);
        let failed = Error::io(action, path, error);
        if user { failed.blame(Fault::User) } else { failed }
    }

    /// Adds the next step.
    pub fn hint(mut self, hint: impl Into<String>) -> Error {
        self.hint = Some(hint.into());
        self
    }

    /// Adds its cause.
    pub fn because(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Error {
        self.source = Some(Arc::from(source.into()));
        self
    }

    /// Returns the same error with another fault.
    pub fn blame(mut self, fault: Fault) -> Error {
        self.fault = fault;
        self
    }

    /// Returns the same error as one of the machine.
    pub fn as_host(self) -> Error {
        self.blame(Fault::Host)
    }

    /// Attaches data for a caller, such as the positions of the problems in a file.
    pub fn attach(mut self, thing: impl Any + Send + Sync) -> Error {
        self.attached = Some(Arc::new(thing));
        self
    }

    /// Returns the attached data, if it has this type.
    pub fn attached<T: Any>(&self) -> Option<&T> {
        self.attached.as_ref()?.downcast_ref()
    }

    /// Adds the name of its subject: `what: message`.
    pub fn about(mut self, what: &str) -> Error {
        self.message = format!("{what}: {}", self.message);
        self
    }

    /// Wraps it in the message of the action that failed.
    pub fn within(mut self, message: impl Into<String>) -> Error {
        let hint = self.hint.take();
        Error { hint, ..Error::new(self.fault, message).because(self) }
    }

    /// Adds what could not be undone after it.
    pub fn with_left(mut self, left: &[String]) -> Error {
        if !left.is_empty() {
            let cause = self.source.take().map_or_else(String::new, |source| format!(": {source}"));
            self.message = format!("{}{cause} (and not undone: {})", self.message, left.join("; "));
        }
        self
    }

    /// Returns the same error with `change` applied to message and hint.
    pub fn map_text(self, change: impl Fn(&str) -> String) -> Error {
        Error { message: change(&self.message), hint: self.hint.as_deref().map(change), ..self }
    }

    /// Joins the message and its causes into one message without a cause.
    pub fn in_one(self) -> Error {
        Error { message: self.chain(), source: None, ..self }
    }

    /// Returns the next step, if there is one.
    pub fn next_step(&self) -> Option<&str> {
        self.hint.as_deref()
    }

    /// Returns who can fix it.
    pub fn fault(&self) -> Fault {
        self.fault
    }

    /// Returns whether it is caused by a lack of room: a full file system, or a limit on files, which may end.
    pub fn is_full(&self) -> bool {
        use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
        let source = self.source.as_ref().and_then(|source| source.downcast_ref::<io::Error>());
        source.is_some_and(|error| matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge))
    }

    /// Returns the message and its causes in one line.
    pub fn chain(&self) -> String {
        let mut words = self.message.clone();
        let mut cause = self.source();
        while let Some(source) = cause {
            words = format!("{words}: {source}");
            cause = source.source();
        }
        words
    }
}

impl From<String> for Error {
    fn from(message: String) -> Error {
        Error::user(message)
    }
}

impl From<&str> for Error {
    fn from(message: &str) -> Error {
        Error::user(message)
    }
}

/// Returns whether the error means that a file is not a file, or not of the expected kind.
pub fn is_no_input(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData | io::ErrorKind::FileTooLarge)
}

impl Eq for Error {}

impl PartialEq for Error {
    /// Compares what a user reads.
    fn eq(&self, other: &Error) -> bool {
        (self.chain(), &self.hint, self.fault) == (other.chain(), &other.hint, other.fault)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_ref().map(|source| &**source as &(dyn StdError + 'static))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_names_every_cause_once_and_keeps_the_innermost_hint_and_fault() {
        let full = Error::io("write", Path::new("/x"), io::ErrorKind::StorageFull.into());
        assert!(full.is_full());
        let error = full.within("disk `a` cannot be made").about("g");
        assert_eq!(error.to_string(), "g: disk `a` cannot be made");
        assert_eq!(error.chain(), "g: disk `a` cannot be made: cannot write `/x`: no storage space");
        assert_eq!((error.fault(), error.next_step()), (Fault::User, Some("free some space on that file system and try again")));
        let one = error.in_one();
        assert_eq!(one.to_string(), one.chain());
        assert!(one.source().is_none());
    }

    #[test]
    fn what_is_attached_is_found_by_its_type() {
        let error = Error::user("wrong").attach(7_u32);
        assert_eq!(error.attached::<u32>(), Some(&7));
        assert_eq!(error.attached::<String>(), None);
    }
}
