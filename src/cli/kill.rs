//! `vmctl kill`: kills the engines of guests.

use super::progress::watch_signals;
use super::stop::end_each;
use super::{App, Guests, Outcome};
use crate::guest::control::Request;

/// Kill the engine of guests (SIGKILL)
///
/// For an engine that hangs. The restart policy is not applied. A supervisor that does not answer is killed too, and
/// the guest with it; `stop`, `poweroff` and `destroy --force` also do that.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    guests: Guests,
}

impl Args {
    pub fn run(self, app: &App) -> Outcome {
        watch_signals();
        let context = app.context()?;
        end_each(app, self.guests.choose(&context)?, false, Request::Kill)
    }
}
