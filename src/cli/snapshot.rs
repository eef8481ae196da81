//! `vmctl snapshot`: takes snapshots.

use super::progress::{Awaited, watch_signals};
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
        watch_signals();
        let context = app.context()?;
        let guest = context.store.guest(&self.guest)?;
        if let (true, Some(name)) = (self.remove, &self.name) {
            let rest = format!(
                "{name} may be gone from some disks of {0} already: `vmctl snapshot {0} {name} --remove` removes the rest",
                self.guest
            );
            let _shown = app.ui.wait(Awaited::work(&self.guest, format!("removing snapshot {name}"), rest));
            snapshot::remove(&guest, name, context.surroundings())?;
            app.ui.done(format!("{}: snapshot {name} is gone", self.guest));
            return Ok(ExitStatus::Done);
        }
        let taken = format!("the snapshot may have been taken: `vmctl snapshots {}` shows it", self.guest);
        let shown = app.ui.wait(Awaited::work(&self.guest, "taking a snapshot of its disks", taken));
        let name = snapshot::take(&guest, self.name.as_deref(), context.surroundings()).map_err(Failure::from)?;
        drop(shown);
        app.ui.done(format!("{}: snapshot {name}", self.guest));
        if super::stop::is_running(&guest) {
            app.ui.warn(format!("{} runs: its disks are as after a power cut", self.guest));
        }
        Ok(ExitStatus::Done)
    }
}
