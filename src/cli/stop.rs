//! `vmctl stop`: stops guests.

use std::time::Duration;

use super::progress::{Awaited, watch_signals};
use super::selection::Chosen;
use super::{App, ExitStatus, Guests, Outcome};
use crate::guest::control::Request;
use crate::guest::engine::leftovers;
use crate::guest::launcher::not_running;
use crate::guest::lock::{GuestLock, Role};
use crate::guest::logs::LastLine;
use crate::guest::stopping::end_guest;
use crate::guest::store::GuestDir;

/// Stop guests
///
/// Presses the ACPI power button every few seconds, and powers the guest off when the guest file's `stop_timeout` is
/// over. Reports which of the two ended it. A guest without ACPI, or one that has only begun to boot, ignores the
/// button. Several guests are stopped at the same time. A guest that is not running is left alone. If a guest was
/// killed together with its supervisor, what they left on this host is removed.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    guests: Guests,
    #[command(flatten)]
    shutdown: Shutdown,
    /// Print nothing for a guest that is not running
    #[arg(long)]
    if_running: bool,
}

/// Options for how a running guest shuts down.
#[derive(Debug, clap::Args)]
pub struct Shutdown {
    /// Power off at once, without the power button and the hooks before it
    #[arg(short, long)]
    force: bool,
    /// Time that the guest has, instead of the guest file's `stop_timeout`
    #[arg(long, value_name = "TIME", conflicts_with = "force", value_parser = crate::units::parse_duration)]
    timeout: Option<Duration>,
}

impl Shutdown {
    /// Returns the time that the guest has, as the supervisor is asked for it: zero powers it off at once.
    pub fn timeout_ms(&self) -> Option<u64> {
        if self.force { Some(0) } else { self.timeout.map(|timeout| timeout.as_millis() as u64) }
    }
}

impl Args {
    pub fn run(self, app: &App) -> Outcome {
        watch_signals();
        let context = app.context()?;
        let timeout_ms = self.shutdown.timeout_ms();
        end_each(app, self.guests.choose(&context)?, self.if_running, Request::Stop { timeout_ms })
    }
}

/// Asks each supervisor to end its guest, and reports how each ended.
pub fn end_each(app: &App, chosen: Vec<Chosen>, if_running: bool, request: Request) -> Outcome {
    app.each_guest(chosen, |guest, named| {
        if !is_running(guest) {
            if leftovers::sweep(guest)? {
                app.ui.done(format!("{} was not running any more: its leftovers on this host are removed", guest.name()));
                return Ok(ExitStatus::Done);
            }
            // What is asked for holds already.
            if named && request == Request::Suspend {
                return Err(not_running(guest).into());
            }
            if named && !if_running {
                app.ui.done(format!("{} is stopped already", guest.name()));
            }
            return Ok(ExitStatus::Done);
        }
        let _shown = app.ui.wait(ending(guest, &request));
        let ended = match end_guest(guest, &request, None) {
            // It ended by itself just now.
            Err(_) if !is_running(guest) => return Ok(ExitStatus::Done),
            ended => ended?,
        };
        app.ui.done(format!("{} has stopped: {}", guest.name(), ended.words()));
        Ok(ExitStatus::Done)
    })
}

/// Returns what is shown while a guest ends.
pub fn ending(guest: &GuestDir, request: &Request) -> Awaited {
    let name = guest.name();
    let (what, limit, goes_on) = match request {
        Request::Stop { timeout_ms: Some(0) } | Request::Poweroff => ("powering off", None, "is powered off"),
        Request::Suspend => ("saving", None, "goes on being saved, and then stops"),
        Request::Kill => ("killing its engine", None, "is killed"),
        Request::Stop { timeout_ms } => (
            "shutting down",
            timeout_ms.map(Duration::from_millis),
            "goes on shutting down, and is powered off when its time is over",
        ),
        _ => ("stopping", None, "goes on stopping"),
    };
    Awaited {
        name: name.to_owned(),
        what: what.to_owned(),
        limit,
        log: Some(LastLine::from_now(guest.console_log())),
        goes_on: format!("{name} {goes_on}: `vmctl wait {name} --for stopped`; `vmctl stop --force {name}` does not wait"),
    }
}

/// Returns whether a supervisor has the guest.
pub fn is_running(guest: &GuestDir) -> bool {
    GuestLock::holder(&guest.lock_file()).is_some_and(|holder| holder.role == Role::Supervisor)
}
