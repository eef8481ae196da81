//! The kernel's variables, through sysctl(8).

use super::program::{ProgramError, run};

/// Returns the value of a variable, without the newline.
pub fn get(name: &str) -> Result<String, ProgramError> {
    run("sysctl", &["-n", name]).map(|text| text.trim_end().to_owned())
}

/// Sets a variable, unless it has the value already.
pub fn ensure(name: &str, value: &str) -> Result<(), ProgramError> {
    if get(name)? == value {
        return Ok(());
    }
    run("sysctl", &[&format!("{name}={value}")]).map(drop)
}
