//! Errors of the host, with messages for the user.

use std::fmt;

use super::program::{ProgramError, StepError};

/// An error message and, if there is one, the next step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostError {
    message: String,
    hint: Option<String>,
}

impl HostError {
    /// Creates an error. The message is lower-case, has no final stop, and has the offending value in backticks.
    pub fn new(message: impl Into<String>) -> HostError {
        HostError { message: message.into(), hint: None }
    }
    /// Creates the error of a system call on a path. `action` completes "cannot ...".
    pub fn io(action: &str, path: &std::path::Path, error: &std::io::Error) -> HostError {
        HostError::new(format!("cannot {action} `{}`: {error}", path.display()))
    }
    /// Adds the next step.
    pub fn hint(mut self, hint: impl Into<String>) -> HostError {
        self.hint = Some(hint.into());
        self
    }
    /// Returns the next step, if there is one.
    pub fn next_step(&self) -> Option<&str> {
        self.hint.as_deref()
    }
}

impl fmt::Display for HostError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for HostError {}

impl From<ProgramError> for HostError {
    fn from(error: ProgramError) -> HostError {
        HostError { message: error.to_string(), hint: error.hint().map(str::to_owned) }
    }
}

impl From<StepError> for HostError {
    fn from(error: StepError) -> HostError {
        HostError { message: error.to_string(), hint: error.hint.map(str::to_owned) }
    }
}
