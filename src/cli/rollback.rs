//! `vmctl rollback`: rolls disks back.

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
        let context = app.context()?;
        let guest = context.store.guest(&self.guest)?;
        snapshot::rollback(&guest, &self.name, self.destroy_newer, self.force, context.surroundings())?;
        app.ui.done(format!("{} is as it was at {}", self.guest, self.name));
        Ok(ExitStatus::Done)
    }
}
