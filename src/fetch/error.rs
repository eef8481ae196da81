//! Errors of fetching, with what to do about them.

use std::path::Path;

use crate::error::is_no_input;
pub use crate::error::{Error as FetchError, Fault};

/// The result of the functions of this module.
pub type Result<T> = std::result::Result<T, FetchError>;

/// Creates an error for an interruption by the user during this step.
pub fn interrupted(step: &str) -> FetchError {
    FetchError::new(Fault::Interrupted, "interrupted").hint(match step {
        "downloading" | "" => "the same command resumes where it was interrupted".to_owned(),
        "building" => "nothing of the build is left; the same command builds from the start".to_owned(),
        step => format!("the same command repeats this step ({step}); what was downloaded before is kept"),
    })
}

/// Creates the error of a system call on a path. `action` completes "cannot ...". The files are those of the cache, so the
/// fault is the host's.
pub fn io(action: &str, path: &Path, error: std::io::Error) -> FetchError {
    let full = error.kind() == std::io::ErrorKind::StorageFull;
    let failed = FetchError::host(format!("cannot {action} `{}`", path.display())).because(error);
    if full { failed.hint("make room on the file system, or name another `cache_dir` in the host file") } else { failed }
}

/// Creates an error for a file of the user that cannot be read: it is missing, or is not a file.
pub fn input(action: &str, path: &Path, error: std::io::Error) -> FetchError {
    let fault = if is_no_input(&error) { Fault::User } else { Fault::Host };
    io(action, path, error).blame(fault)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hint_of_an_interruption_is_true_for_its_step() {
        let hint = |step: &str| interrupted(step).next_step().map(str::to_owned).expect("a hint");
        assert!(hint("downloading").contains("resumes"));
        for step in ["building", "converting", "unpacking"] {
            assert!(!hint(step).contains("resumes"), "{step}");
        }
        assert!(hint("building").contains("from the start") && hint("converting").contains("(converting)"));
    }
}
