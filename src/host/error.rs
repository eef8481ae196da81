//! Errors of the host, with messages for the user.

use super::program::{ProgramError, StepError};
pub use crate::error::Error as HostError;

/// Creates the error of a system call on a path. `action` completes "cannot ...".
pub fn io(action: &str, path: &std::path::Path, error: &std::io::Error) -> HostError {
    HostError::user(format!("cannot {action} `{}`: {error}", path.display()))
}

fn with_hint(error: HostError, hint: Option<&'static str>) -> HostError {
    match hint {
        Some(hint) => error.hint(hint),
        None => error,
    }
}

impl From<ProgramError> for HostError {
    fn from(error: ProgramError) -> HostError {
        with_hint(HostError::user(error.to_string()), error.hint())
    }
}

impl From<StepError> for HostError {
    fn from(error: StepError) -> HostError {
        let message = HostError::user(error.to_string());
        match error.error.next_step() {
            Some(hint) => message.hint(hint.to_owned()),
            None => message,
        }
    }
}
