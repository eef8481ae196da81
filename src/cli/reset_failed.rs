//! `vmctl reset-failed`.

use super::{App, ExitStatus, Guests, Outcome};
use crate::guest::events::{self, EventKind};
use crate::guest::lock::Role;

/// Forget that guests have failed
///
/// A guest that reached the limit of its restarts, or could not boot again, is `failed` until this, or until it is
/// started by hand; only then does autostart take it again.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    guests: Guests,
}

impl Args {
    pub fn run(self, app: &App) -> Outcome {
        let place = app.place()?;
        app.each_guest(self.guests.choose(&place)?, |guest, named| {
            if super::stop::is_running(guest) || guest.state()?.failed.is_none() {
                if named {
                    app.ui.done(format!("{} has not failed", guest.name()));
                }
                return Ok(ExitStatus::Done);
            }
            let _lock = guest.lock(Role::Command)?;
            let mut state = guest.state()?;
            state.failed = None;
            state.save(&guest.state_file())?;
            events::record(&guest.events_log(), guest.name(), EventKind::FailureCleared);
            app.ui.done(format!("{}: failure cleared", guest.name()));
            Ok(ExitStatus::Done)
        })
    }
}
