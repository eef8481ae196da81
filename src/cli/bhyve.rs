//! `vmctl bhyve`: the engine child of engine `bhyve`. The supervisor starts it, never a user.

use std::path::PathBuf;
use std::process::ExitCode;

use crate::guest::engine::bhyve::run::boot_plan::BhyvePlan;
use crate::guest::engine::bhyve::run::outcome::End;
use crate::guest::engine::bhyve::run::{Streams, run};
use crate::host::{inherited, process};
use crate::machine::spec::{CONSOLE_FD, CONTROL_FD, LEASE_FD};

/// Run one boot of a guest under bhyve(8) (started by the supervisor)
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The plan, as JSON
    #[arg(long, value_name = "FILE")]
    spec: PathBuf,
}

impl Args {
    /// Runs the guest. The exit code is that of bhyve, not of a command.
    pub fn run(&self) -> ExitCode {
        let end = self.boot().unwrap_or_else(|message| {
            eprintln!("vmctl bhyve: {message}");
            End::ERROR
        });
        ExitCode::from(end.code())
    }

    fn boot(&self) -> Result<End, String> {
        let path = self.spec.display();
        let text = std::fs::read(&self.spec).map_err(|e| format!("cannot read `{path}`: {e}"))?;
        let plan = BhyvePlan::read(&text).map_err(|e| format!("`{path}` is not a plan of a boot: {e}"))?;
        let missing = |what: &str, fd: i32, e: std::io::Error| {
            format!("no {what} at descriptor {fd} ({e}): only the supervisor starts this command")
        };
        let console = inherited::stream(CONSOLE_FD).map_err(|e| missing("console stream", CONSOLE_FD, e))?;
        let control = inherited::stream(CONTROL_FD).map_err(|e| missing("control stream", CONTROL_FD, e))?;
        let lease = inherited::descriptor(LEASE_FD).map_err(|e| missing("lease", LEASE_FD, e))?;
        process::keep_from_children(&[CONSOLE_FD, CONTROL_FD, LEASE_FD]).map_err(|e| e.to_string())?;
        Ok(run(&plan, Streams { console, control, lease }))
    }
}
