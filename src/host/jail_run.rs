//! Programs in a jail, through jexec(8), and what jls(8) says of it.

use std::path::PathBuf;

use super::program::{Cause, ProgramError, run};

/// Whether a jail may use vmm(4).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// It may.
    Allowed,
    /// It is there and may not.
    NotAllowed,
    /// There is no such jail.
    Missing,
    /// jls(8) could not tell.
    Unknown(ProgramError),
}

/// Looks at the jail `name`. jls(8) prints `true` or `false` for a parameter that is asked for by name, and does not
/// know `allow.vmm` before vmm(4) is loaded.
pub fn standing(name: &str) -> Standing {
    match run("jls", &["-j", name, "allow.vmm"]) {
        Ok(text) if matches!(text.trim(), "true" | "1") => Standing::Allowed,
        Ok(_) => Standing::NotAllowed,
        Err(ProgramError { cause: Cause::Failed { words, .. }, .. }) if words.contains("not found") => Standing::Missing,
        Err(error) => Standing::Unknown(error),
    }
}

/// The root directory of a jail.
pub fn root(name: &str) -> Result<PathBuf, ProgramError> {
    run("jls", &["-j", name, "path"]).map(|text| PathBuf::from(text.trim_end_matches('\n')))
}

/// What is said when there is no jail of this name.
pub fn missing(name: &str) -> String {
    format!("there is no jail `{name}`; `vmctl jail prepare {name}` says what it takes, `service jail start {name}` starts it")
}

/// Why jls(8) says nothing of a jail, in words.
pub fn words_of(name: &str, error: &ProgramError) -> String {
    match &error.cause {
        Cause::Failed { words, .. } if words.contains("not found") => missing(name),
        _ => error.to_string(),
    }
}

/// A command line that does in the jail what `words` does outside; jexec(8) becomes the program, so that the process
/// id is the program's.
pub fn inside(jail: Option<&str>, words: Vec<String>) -> Vec<String> {
    match jail {
        Some(jail) => ["jexec".to_owned(), jail.to_owned()].into_iter().chain(words).collect(),
        None => words,
    }
}
