//! `vmctl reset`: resets guests.

use super::{App, ExitStatus, Failure, Guests, Outcome};
use crate::guest::control::{Reply, Request};
use crate::guest::launcher;

/// Reset guests at once, like the reset button
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    guests: Guests,
}

impl Args {
    pub fn run(self, app: &App) -> Outcome {
        let context = app.context()?;
        app.each_guest(self.guests.choose(&context)?, |guest, named| {
            if !named && !super::stop::is_running(guest) {
                return Ok(ExitStatus::Done);
            }
            match launcher::ask_once(guest, Request::Reset)? {
                Reply::Running => app.ui.done(format!("{} is running again", guest.name())),
                other => return Err(Failure::machine(anyhow::anyhow!("the supervisor answered {other:?}"))),
            }
            Ok(ExitStatus::Done)
        })
    }
}
