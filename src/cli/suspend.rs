//! `vmctl suspend`: saves guests.

use super::progress::watch_signals;
use super::stop::end_each;
use super::{App, Guests, Outcome};
use crate::guest::control::Request;

/// Save guests and stop them
///
/// The next `start` resumes the guest. Needs engine `bhyve`, with a bhyve(8) that was built with snapshots. The guest
/// continues if it cannot be saved. The saved state is valid for one `start`, of a guest with the same devices.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    guests: Guests,
}

impl Args {
    pub fn run(self, app: &App) -> Outcome {
        watch_signals();
        let context = app.context()?;
        end_each(app, self.guests.choose(&context)?, false, Request::Suspend)
    }
}
