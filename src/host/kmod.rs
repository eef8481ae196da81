//! Kernel modules, through kldstat(8) and kldload(8).

use super::program::{Cause, ProgramError, run};

/// Makes sure that a module is loaded, or built into the kernel.
pub fn ensure(module: &str) -> Result<(), ProgramError> {
    if is_there(module) {
        return Ok(());
    }
    match run("kldload", &["-n", module]) {
        // Another process was faster, or a kernel has it built in under another name: `sbin/kldload/kldload.c` prints
        // this for EEXIST.
        Err(ProgramError { cause: Cause::Failed { words, .. }, .. }) if words.contains("already loaded or in kernel") => Ok(()),
        outcome => outcome.map(drop),
    }
}

/// Returns whether a module is loaded or built in.
pub fn is_there(module: &str) -> bool {
    run("kldstat", &["-q", "-m", module]).is_ok()
}
