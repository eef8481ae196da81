//! `vmctl restart`: restarts guests.

use std::time::Instant;

use super::progress::{Awaited, watch_signals};
use super::start::{self, How, is_ready, wait_ready};
use super::stop::{Shutdown, is_running};
use super::{App, ExitStatus, Failure, Guests, Outcome};
use crate::guest::control::{Reply, Request};
use crate::guest::launcher;
use crate::guest::logs::LastLine;

/// Stop guests as `stop` does and boot them again
///
/// The guest file is read again. A guest that is not running is started if it was named, and left alone if a pattern or
/// a tag selected it.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    guests: Guests,
    #[command(flatten)]
    shutdown: Shutdown,
    /// Wait until the guest is ready by its `[ready]`
    #[arg(long)]
    wait: bool,
}

impl Args {
    pub fn run(self, app: &App) -> Outcome {
        watch_signals();
        let context = app.context()?;
        let timeout_ms = self.shutdown.timeout_ms();
        app.each_guest(self.guests.choose(&context)?, |guest, named| {
            if !is_running(guest) {
                let how = How::plain(self.wait);
                return if named { start::start(app, &context, guest, &how) } else { Ok(ExitStatus::Done) };
            }
            let name = guest.name();
            let began = Instant::now();
            let shown = app.ui.wait(Awaited {
                name: name.to_owned(),
                what: "waiting until it has shut down and runs again".into(),
                limit: None,
                log: Some(LastLine::from_now(guest.console_log())),
                goes_on: format!("{name} goes on shutting down, and then boots again: `vmctl wait {name}`"),
            });
            match launcher::ask_once(guest, Request::Restart { timeout_ms })? {
                Reply::Running => drop(shown),
                other => return Err(Failure::machine(anyhow::anyhow!("the supervisor answered {other:?}"))),
            }
            match self.wait {
                true => {
                    let config = wait_ready(app, &context, guest, None)?;
                    app.ui.done(is_ready(guest, config.as_ref(), "is ready again", began));
                }
                false => app.ui.done(format!("{name} is running again: vmctl console {name}")),
            }
            Ok(ExitStatus::Done)
        })
    }
}
