//! `vmctl poweroff`: powers guests off.

use super::progress::watch_signals;
use super::stop::end_each;
use super::{App, Guests, Outcome};
use crate::guest::control::Request;

/// Power guests off at once, like pulling the plug
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    guests: Guests,
}

impl Args {
    pub fn run(self, app: &App) -> Outcome {
        watch_signals();
        let context = app.context()?;
        end_each(app, self.guests.choose(&context)?, false, Request::Poweroff)
    }
}
