//! `vmctl snapshot`: takes snapshots.

use super::{App, ExitStatus, Failure, Outcome};
use crate::guest::snapshot;

/// Take a ZFS snapshot of a guest's disks
///
/// Covers the volumes of its disks, and its directory if that is a dataset of its own, all at the same moment. The disk
/// of a running guest is then as after a power cut.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The guest
    #[arg(value_name = "GUEST")]
    guest: String,
    /// Name of the snapshot; the time by default
    #[arg(value_name = "NAME")]
    name: Option<String>,
    /// Remove the snapshot of this name instead
    #[arg(long, requires = "name")]
    remove: bool,
}

impl Args {
    pub fn run(self, app: &App) -> Outcome {
        let context = app.context()?;
        let guest = context.store.guest(&self.guest)?;
        if let (true, Some(name)) = (self.remove, &self.name) {
            snapshot::remove(&guest, name, context.surroundings())?;
            app.ui.done(format!("{}: snapshot {name} is gone", self.guest));
            return Ok(ExitStatus::Done);
        }
        let name = snapshot::take(&guest, self.name.as_deref(), context.surroundings()).map_err(Failure::from)?;
        app.ui.done(format!("{}: snapshot {name}", self.guest));
        if super::stop::is_running(&guest) {
            app.ui.warn(format!("{} runs: its disks are as after a power cut", self.guest));
        }
        Ok(ExitStatus::Done)
    }
}
