//! `vmctl suspend`.

use super::stop::end_each;
use super::{App, Guests, Outcome};
use crate::guest::control::Request;

/// Save guests and stop them
///
/// The next `start` goes on where the guest was. Only engine `bhyve`, with a bhyve(8) that was built with snapshots; the
/// guest goes on when it cannot be saved. What was saved is good for one `start`, of a guest with the same devices.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    guests: Guests,
}

impl Args {
    pub fn run(self, app: &App) -> Outcome {
        let place = app.place()?;
        end_each(app, self.guests.choose(&place)?, false, Request::Suspend)
    }
}
