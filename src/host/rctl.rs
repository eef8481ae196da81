//! Resource limits of a process, through rctl(8). The kernel drops the rules of a process when it ends.

use super::program::{ProgramError, run};

/// Limits a process. A rule is the part after the process, like `pcpu:deny=150`.
pub fn limit(pid: u32, rules: &[String]) -> Result<(), ProgramError> {
    rules.iter().try_for_each(|rule| run("rctl", &["-a", &format!("process:{pid}:{rule}")]).map(drop))
}

/// Returns the hint for a limit that cannot be set: the message of rctl(8) about a kernel that does not count
/// (`usr.bin/rctl/rctl.c`).
pub fn hint(error: &ProgramError) -> Option<&'static str> {
    let words = error.to_string();
    match words.contains("kern.racct.enable") || words.contains("RACCT/RCTL") {
        true => Some("put `kern.racct.enable=1` into /boot/loader.conf and boot the host again, or leave the limits out"),
        false => None,
    }
}
