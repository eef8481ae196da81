//! `vmctl rollback`: rolls disks back.

use super::progress::{Awaited, watch_signals};
use super::{App, ExitStatus, Outcome};
use crate::guest::snapshot;

/// Roll a guest's disks back to a snapshot
///
/// Later data is lost. A running guest is refused: a rollback under it damages its file systems and may crash it, and a
/// second rollback may be needed once it is stopped.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The guest
    #[arg(value_name = "GUEST")]
    guest: String,
    /// Name of the snapshot
    #[arg(value_name = "NAME")]
    name: String,
    /// Also destroy the snapshots that were taken after it
    #[arg(long)]
    destroy_newer: bool,
    /// Roll back even while the guest runs
    #[arg(short, long)]
    force: bool,
}

impl Args {
    pub fn run(self, app: &App) -> Outcome {
        watch_signals();
        let context = app.context()?;
        let guest = context.store.guest(&self.guest)?;
        let newer = if self.destroy_newer { " --destroy-newer" } else { "" };
        let force = if self.force { " --force" } else { "" };
        let rest = format!(
            "some disks of {0} may be as at {1} already: `vmctl rollback {0} {1}{newer}{force}` rolls back the others",
            self.guest, self.name
        );
        let shown = app.ui.wait(Awaited::work(&self.guest, format!("rolling its disks back to {}", self.name), rest));
        snapshot::rollback(&guest, &self.name, self.destroy_newer, self.force, context.surroundings())?;
        drop(shown);
        app.ui.done(format!("{} is as it was at {}", self.guest, self.name));
        Ok(ExitStatus::Done)
    }
}
