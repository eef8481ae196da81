//! `vmctl reset-failed`: clears the failure of guests.

use super::{App, ExitStatus, Guests, Outcome};
use crate::guest::events::{self, EventKind};
use crate::guest::lock::Role;

/// Clear the failure of guests
///
/// A guest that reached the limit of its restarts, or could not boot again, stays `failed` until this command, or until
/// a user starts it. Only then does autostart start it again.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    guests: Guests,
}

impl Args {
    pub fn run(self, app: &App) -> Outcome {
        let context = app.context()?;
        app.each_guest(self.guests.choose(&context)?, |guest, named| {
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
