//! `vmctl poweroff`.

use super::stop::end_each;
use super::{App, Guests, Outcome};
use crate::guest::control::Request;

/// Power guests off at once, as pulling the plug does
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    guests: Guests,
}

impl Args {
    pub fn run(self, app: &App) -> Outcome {
        let place = app.place()?;
        end_each(app, self.guests.choose(&place)?, false, Request::Poweroff)
    }
}
