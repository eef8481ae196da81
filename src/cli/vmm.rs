//! `vmctl vmm`: the engine child. Started by the supervisor, never by hand.

use std::path::PathBuf;
use std::process::ExitCode;

use crate::host::inherited;
use crate::hypervisor::backend::MachineExit;
use crate::machine::spec::{CONSOLE_FD, CONTROL_FD, VmmSpec};
use crate::machine::vmm;

/// Run one machine of the embedded engine (started by the supervisor)
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The machine, as JSON
    #[arg(long, value_name = "FILE")]
    spec: PathBuf,
}

impl Args {
    /// Runs the machine; the exit code is the engine's, not a command's.
    pub fn run(&self) -> ExitCode {
        match self.machine() {
            Ok(code) => ExitCode::from(code),
            Err(message) => {
                eprintln!("vmctl vmm: {message}");
                ExitCode::from(MachineExit::Error.code())
            }
        }
    }

    fn machine(&self) -> Result<u8, String> {
        let path = self.spec.display();
        let text = std::fs::read(&self.spec).map_err(|e| format!("cannot read `{path}`: {e}"))?;
        let spec: VmmSpec = serde_json::from_slice(&text).map_err(|e| format!("`{path}` is not a machine specification: {e}"))?;
        let stream = |what: &str, fd| {
            inherited::stream(fd)
                .map_err(|e| format!("no {what} stream at descriptor {fd} ({e}): this command is the supervisor's to start"))
        };
        Ok(vmm::run(&spec, stream("console", CONSOLE_FD)?, stream("control", CONTROL_FD)?))
    }
}
