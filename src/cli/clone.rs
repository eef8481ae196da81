//! `vmctl clone`: copies a stopped guest.

use super::progress::{Awaited, watch_signals};
use super::{App, ExitStatus, Outcome};
use crate::guest::clone::clone;
use crate::guest::provision::Copying;

/// Copy a stopped guest
///
/// The copies get copies of the guest's file and of its disks (holes stay holes), and UUIDs, MAC addresses, seeds of
/// cloud-init (instance id, host name) and ports of the host of their own.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The guest
    #[arg(value_name = "GUEST")]
    guest: String,
    /// Names of the copies
    #[arg(value_name = "NAME", required = true)]
    names: Vec<String>,
    /// Let ZFS volumes share their bytes with the guest's own until they differ; the guest cannot be destroyed before
    /// its copies
    #[arg(long)]
    linked: bool,
}

impl Args {
    pub fn run(self, app: &App) -> Outcome {
        watch_signals();
        let context = app.context()?;
        let guest = context.store.guest(&self.guest)?;
        let how = if self.linked { Copying::Linked } else { Copying::Whole };
        app.ui.each(&self.names, String::clone, |name| {
            let undone = format!("{name} is not made; the next command removes what was copied");
            let shown = app.ui.wait(Awaited::work(name, format!("copying the disks of {}", self.guest), undone));
            let notes = clone(&context.store, &guest, name, how, context.surroundings())?;
            drop(shown);
            app.ui.done(format!("{name} is a copy of {}", self.guest));
            notes.iter().for_each(|note| app.ui.done(format!("{name}: {note}")));
            Ok(ExitStatus::Done)
        })
    }
}
