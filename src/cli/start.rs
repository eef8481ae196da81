//! `vmctl start`.

use std::ffi::OsString;
use std::process::Command;
use std::time::Duration;

use super::attach::{self, Session};
use super::progress::Shown;
use super::selection::Place;
use super::{App, ExitStatus, Failure, Guests, Outcome};
use crate::guest::bhyve::leftovers;
use crate::guest::control::{Reply, Request};
use crate::guest::definition::Definition;
use crate::guest::images::Images;
use crate::guest::launcher;
use crate::guest::pending;
use crate::guest::preflight::{Moment, Preflight, memory_warning};
use crate::guest::store::GuestDir;

/// Start guests
///
/// Returns when the guest runs; otherwise says what the engine said and exits with 1 or 2. A guest that runs already is
/// an error if it was named, and left alone if a pattern or a tag chose it. A guest that has failed is started, and its
/// failure forgotten.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    guests: Guests,
    #[command(flatten)]
    how: How,
    /// Leave a guest alone that runs already; with `--wait`, wait for it all the same
    #[arg(long)]
    if_stopped: bool,
}

/// How to start, and what to do once a guest runs.
#[derive(Debug, Clone, clap::Args)]
pub struct How {
    /// Wait until the guest is ready, as its `[ready]` says: without one, until sshd greets or the console asks for a login
    #[arg(long)]
    wait: bool,
    /// How long to wait, instead of the guest file's `ready.timeout`
    #[arg(long, value_name = "TIME", requires = "wait", value_parser = crate::units::parse_duration)]
    timeout: Option<Duration>,
    /// Show the console once the guest runs (one guest only)
    #[arg(long)]
    console: bool,
}

impl Args {
    pub fn run(self, app: &App) -> Outcome {
        let place = app.place()?;
        let chosen = self.guests.choose(&place)?;
        if self.how.console && chosen.len() > 1 {
            return Err(Failure::user("`--console` shows one guest, and several were named"));
        }
        app.each_guest(chosen, |guest, named| match launcher::supervisor_of(guest) {
            Some(_) if !named || self.if_stopped => {
                if self.how.wait {
                    wait_ready(guest, self.how.timeout)?;
                }
                Ok(ExitStatus::Done)
            }
            Some(holder) => Err(Failure::user(format!("`{}` is running already (supervisor {})", guest.name(), holder.pid))
                .hint("`--if-stopped` makes this no error")),
            None => start(app, &place, guest, &self.how),
        })
    }
}

/// Starts a guest that is stopped and does what `how` says.
pub fn start(app: &App, place: &Place, guest: &GuestDir, how: &How) -> Outcome {
    // Checked here, too: a mistake in the file is shown with its place, and no supervisor is started for it.
    // What stays is no disk of this boot.
    let _ = pending::settle_if_free(guest, place.around());
    boot(app, place, guest, &[])?;
    then(app, guest, how)
}

/// Starts a guest that is stopped; `words` are those of `run` for an installer's run.
pub fn boot(app: &App, place: &Place, guest: &GuestDir, words: &[OsString]) -> Result<(), Failure> {
    let definition = Definition::load(guest, place.around())?;
    sweep(app, place, guest);
    preflight(app, place, guest, &definition)?;
    make_from_images(app, place, guest, &definition)?;
    let mut command = supervisor_command(app, place, guest)?;
    command.args(words);
    Ok(launcher::start(guest, command)?)
}

/// Refuses what this host knows against a start, with its place in the guest file, and tells what is no reason against it.
pub fn preflight(app: &App, place: &Place, guest: &GuestDir, definition: &Definition) -> Result<(), Failure> {
    Preflight { store: &place.store, around: place.around(), guest: Some(guest) }.check_guest(Moment::Booting)?;
    if let Some(words) = memory_warning(&definition.config) {
        app.ui.warn(words);
    }
    Ok(())
}

/// The same with an installer's medium for the first boot; `words` are those of `run` for it.
pub fn start_installer(app: &App, place: &Place, guest: &GuestDir, how: &How, words: &[OsString]) -> Outcome {
    let _ = pending::settle_if_free(guest, place.around());
    boot(app, place, guest, words)?;
    then(app, guest, how)
}

/// Removes what other guests left on this host that were killed with all that ran them: their memory is needed. What stays
/// is told, and no reason not to start this one.
fn sweep(app: &App, place: &Place, guest: &GuestDir) {
    for (name, swept) in leftovers::sweep_all(&place.store, Some(guest.name())) {
        match swept {
            Ok(()) => app.ui.warn(format!("{name} was killed: what it had left on this host is removed")),
            Err(error) => app.ui.warn(error.chain()),
        }
    }
}

/// What is done once a guest runs.
pub fn then(app: &App, guest: &GuestDir, how: &How) -> Outcome {
    if how.console {
        return attach::attach(app, guest, &Session::default());
    }
    if how.wait {
        wait_ready(guest, how.timeout)?;
        app.ui.done(format!("{} is ready", guest.name()));
    } else {
        app.ui.done(format!("{} is running", guest.name()));
    }
    Ok(ExitStatus::Done)
}

/// Makes the disks that a later edit of the guest file wants made from images.
fn make_from_images(app: &App, place: &Place, guest: &GuestDir, definition: &Definition) -> Result<(), Failure> {
    if definition.config.disks.iter().any(|disk| disk.source.is_some()) {
        let _lock = guest.lock_stopped("make disks of")?;
        let progress = Shown::new(&app.ui);
        Images { host: &place.host, progress: &progress }.make_disks(guest, &definition.config)?;
    }
    Ok(())
}

/// Waits until a running guest is ready.
pub fn wait_ready(guest: &GuestDir, timeout: Option<Duration>) -> Result<(), Failure> {
    let timeout_ms = timeout.map(|timeout| timeout.as_millis() as u64);
    match launcher::ask_once(guest, Request::WaitReady { timeout_ms, login: false })? {
        Reply::Ready => Ok(()),
        other => Err(Failure::machine(anyhow::anyhow!("the supervisor answered {other:?}"))),
    }
}

/// `vmctl run GUEST --supervise` with what this command was told.
fn supervisor_command(app: &App, place: &Place, guest: &GuestDir) -> Result<Command, Failure> {
    let program = match cfg!(target_os = "linux") {
        true => "/proc/self/exe".into(),
        false => std::env::current_exe()?,
    };
    let mut command = Command::new(program);
    if let Some(config) = &app.config {
        command.arg("--config").arg(std::path::absolute(config)?);
    }
    command.arg("--datastore").arg(place.store.root()).args(["run", "--supervise", guest.name()]);
    Ok(command)
}

impl How {
    /// Without the console; waiting or not.
    pub fn plain(wait: bool) -> How {
        How { wait, timeout: None, console: false }
    }
    /// Waiting until the guest is ready, or not, for at most so long.
    pub fn within(wait: bool, timeout: Duration) -> How {
        How { timeout: Some(timeout), ..How::plain(wait) }
    }
    /// With the console.
    pub fn with_console() -> How {
        How { console: true, ..How::plain(false) }
    }
}
