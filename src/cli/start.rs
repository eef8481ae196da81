//! `vmctl start`: starts guests.

use std::ffi::OsString;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant, UNIX_EPOCH};

use super::attach::{self, Session};
use super::progress::{Awaited, ProgressDisplay, seconds, watch_signals};
use super::project::{self, is_file};
use super::selection::CommandContext;
use super::{App, ExitStatus, Failure, Guests, Outcome};
use crate::config::{GuestConfig, LOGIN_PROMPT, ReadyProbe};
use crate::guest::control::{Reply, Request};
use crate::guest::definition::Definition;
use crate::guest::engine::leftovers;
use crate::guest::images::{Images, KnownImages};
use crate::guest::launcher;
use crate::guest::logs::LastLine;
use crate::guest::pending;
use crate::guest::preflight::{Moment, Preflight, memory_warning};
use crate::guest::reach::Reach;
use crate::guest::state::RunState;
use crate::guest::store::GuestDir;
use crate::host::process::own_program;

/// Start guests
///
/// Returns when the guest runs. Otherwise shows the engine's message and exits with 1 or 2. A running guest is an error
/// if it was named, and left alone if a pattern or a tag selected it. A failed guest is started, and its failure is
/// cleared. A guest file (with a slash, or `.toml` at its end) stands for its guest, which is made first if it does not
/// exist.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    guests: Guests,
    #[command(flatten)]
    how: How,
    /// Leave a running guest alone; with `--wait`, wait for it nevertheless
    #[arg(long)]
    if_stopped: bool,
}

/// Options of a start, and for a running guest.
#[derive(Debug, Clone, clap::Args)]
pub struct How {
    /// Wait until the guest is ready, as its `[ready]` defines; without one, until sshd greets or the console asks for
    /// a login
    #[arg(long)]
    wait: bool,
    /// Time to wait, instead of the guest file's `ready.timeout`
    #[arg(long, value_name = "TIME", requires = "wait", value_parser = crate::units::parse_duration)]
    timeout: Option<Duration>,
    /// Show the console once the guest runs (one guest only)
    #[arg(long)]
    console: bool,
}

impl Args {
    pub fn run(self, app: &App) -> Outcome {
        watch_signals();
        let context = app.context()?;
        let mut guests = self.guests;
        for name in guests.names.iter_mut().filter(|name| is_file(name, &context)) {
            *name = project::make(app, &context, Path::new(name))?;
        }
        let chosen = guests.choose(&context)?;
        if self.how.console && chosen.len() > 1 {
            return Err(Failure::user("`--console` shows one guest, and several were named"));
        }
        app.each_guest(chosen, |guest, named| match launcher::supervisor_of(guest) {
            Some(_) if !named || self.if_stopped => {
                if self.how.wait {
                    wait_ready(app, &context, guest, self.how.timeout)?;
                }
                Ok(ExitStatus::Done)
            }
            Some(holder) => Err(Failure::user(format!("`{}` is running already (supervisor {})", guest.name(), holder.pid))
                .hint("`--if-stopped` makes this not an error")),
            None => start(app, &context, guest, &self.how),
        })
    }
}

/// Starts a stopped guest and follows `how`.
pub fn start(app: &App, context: &CommandContext, guest: &GuestDir, how: &How) -> Outcome {
    // Checked here too: a mistake in the file is shown with its position, and no supervisor is started for it. Disks
    // that are left are not used by this boot.
    let began = Instant::now();
    let _ = pending::settle_if_free(guest, context.surroundings());
    boot(app, context, guest, &[])?;
    then(app, context, guest, how, began)
}

/// Starts a guest that is stopped; `words` are those of `run` for an installer's run.
pub fn boot(app: &App, context: &CommandContext, guest: &GuestDir, words: &[OsString]) -> Result<(), Failure> {
    let definition = Definition::load(guest, context.surroundings())?;
    sweep(app, context, guest);
    preflight(app, context, guest, &definition)?;
    make_from_images(app, context, guest, &definition)?;
    let mut command = supervisor_command(app, context, guest)?;
    command.args(words);
    let name = guest.name();
    let _shown = app.ui.wait(Awaited {
        name: name.to_owned(),
        what: "starting".into(),
        limit: None,
        log: Some(LastLine::from_now(guest.console_log())),
        goes_on: format!("{name} goes on starting: `vmctl wait {name}`; `vmctl kill {name}` ends it"),
    });
    Ok(launcher::start(guest, command)?)
}

/// Refuses what this host knows against a start, with its place in the guest file, and tells what is no reason against it.
pub fn preflight(app: &App, context: &CommandContext, guest: &GuestDir, definition: &Definition) -> Result<(), Failure> {
    let images = KnownImages::new(&context.host);
    let surroundings = context.surroundings();
    Preflight { store: &context.store, surroundings, images: &images, guest: Some(guest) }.check_guest(Moment::Booting)?;
    if let Some(words) = memory_warning(&definition.config) {
        app.ui.warn(words);
    }
    Ok(())
}

/// Starts it in the same way, with an installer's medium for the first boot. `words` are those of `run` for it.
pub fn start_installer(app: &App, context: &CommandContext, guest: &GuestDir, how: &How, words: &[OsString]) -> Outcome {
    let began = Instant::now();
    let _ = pending::settle_if_free(guest, context.surroundings());
    boot(app, context, guest, words)?;
    then(app, context, guest, how, began)
}

/// Removes the remains of other guests on this host that were killed with all their processes, since their memory is
/// needed. Those that stay are reported, but do not prevent this start.
fn sweep(app: &App, context: &CommandContext, guest: &GuestDir) {
    for (name, swept) in leftovers::sweep_all(&context.store, Some(guest.name())) {
        match swept {
            Ok(()) => app.ui.warn(format!("{name} was killed: its leftovers on this host are removed")),
            Err(error) => app.ui.warn(error.chain()),
        }
    }
}

/// Follows the options for a running guest, whose start began at `began`.
pub fn then(app: &App, context: &CommandContext, guest: &GuestDir, how: &How, began: Instant) -> Outcome {
    if how.console {
        return attach::attach(app, guest, &Session::default());
    }
    if how.wait {
        let config = wait_ready(app, context, guest, how.timeout)?;
        app.ui.done(is_ready(guest, config.as_ref(), "is ready", began));
    } else {
        let name = guest.name();
        app.ui.done(format!("{name} is running: vmctl console {name}"));
    }
    Ok(ExitStatus::Done)
}

/// Returns words for a guest that `is ready`, or is so again, with how long it took and the next command.
pub fn is_ready(guest: &GuestDir, config: Option<&GuestConfig>, is_ready: &str, began: Instant) -> String {
    let name = guest.name();
    let reach = config.zip(guest.state().ok()).map(|(config, state)| Reach::of(guest, config, &state, None));
    let verb = if matches!(reach, Some(Ok(_))) { "ssh" } else { "console" };
    format!("{name} {is_ready} after {}: vmctl {verb} {name}", seconds(began.elapsed()))
}

/// Makes the disks that a later edit of the guest file added, from images.
fn make_from_images(app: &App, context: &CommandContext, guest: &GuestDir, definition: &Definition) -> Result<(), Failure> {
    if definition.config.disks.iter().any(|disk| disk.source.is_some()) {
        let _lock = guest.lock_stopped("make disks of")?;
        let progress = ProgressDisplay::new(&app.ui);
        Images { host: &context.host, progress: &progress }.make_disks(guest, &definition.config)?;
    }
    Ok(())
}

/// Waits until a running guest is ready. Returns its configuration, unless its file is wrong by now.
pub fn wait_ready(
    app: &App,
    context: &CommandContext,
    guest: &GuestDir,
    timeout: Option<Duration>,
) -> Result<Option<GuestConfig>, Failure> {
    let config = Definition::load(guest, context.surroundings()).ok().map(|definition| definition.config);
    let what = config.as_ref().map_or_else(|| "waiting until it is ready".into(), awaited);
    let limit = timeout.or(config.as_ref().map(|config| config.ready.timeout));
    let _shown = app.ui.wait(booting(guest, what, limit));
    ask_ready(guest, timeout, Milestone::Ready)?;
    Ok(config)
}

/// A point of a boot that a supervisor tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Milestone {
    /// The guest is ready.
    Ready,
    /// Its console has asked for a login.
    Login,
    /// Its agent has answered.
    Agent,
}

/// Asks the supervisor for the answer that its guest has got this far.
pub fn ask_ready(guest: &GuestDir, timeout: Option<Duration>, milestone: Milestone) -> Result<(), Failure> {
    let timeout_ms = timeout.map(|timeout| timeout.as_millis() as u64);
    let (login, agent) = (milestone == Milestone::Login, milestone == Milestone::Agent);
    match launcher::ask_once(guest, Request::WaitReady { timeout_ms, login, agent })? {
        Reply::Ready => Ok(()),
        other => Err(Failure::machine(anyhow::anyhow!("the supervisor answered {other:?}"))),
    }
}

/// Returns what is shown while a guest boots.
pub fn booting(guest: &GuestDir, what: String, limit: Option<Duration>) -> Awaited {
    let name = guest.name();
    Awaited {
        name: name.to_owned(),
        what,
        limit,
        log: Some(match RunState::load(&guest.state_file()) {
            Some(run) => LastLine::since(guest.console_log(), UNIX_EPOCH + Duration::from_millis(run.started.0)),
            None => LastLine::from_now(guest.console_log()),
        }),
        goes_on: format!("{name} keeps running: `vmctl wait {name}` waits again, `vmctl stop {name}` stops it"),
    }
}

/// Returns what a guest's readiness waits for.
fn awaited(config: &GuestConfig) -> String {
    let probes = config.ready_probes();
    let more = match probes.len() {
        0 | 1 => String::new(),
        many => format!(" and {} more", many - 1),
    };
    let first = match probes.first() {
        None => "until it runs".to_owned(),
        Some(ReadyProbe::Ssh(address)) => format!("for ssh at {address}"),
        Some(ReadyProbe::Tcp(address)) => format!("for a TCP connection to {address}"),
        Some(ReadyProbe::Console(text)) if text == LOGIN_PROMPT => "for its login prompt".to_owned(),
        Some(ReadyProbe::Console(text)) => format!("for `{}` on its console", text.escape_debug()),
        Some(ReadyProbe::Exec(command)) => format!("for `{}` to succeed", command.join(" ")),
        Some(ReadyProbe::Agent) => "for its agent".to_owned(),
    };
    format!("waiting {first}{more}")
}

/// Returns `vmctl run GUEST --supervise` with the options of this command.
fn supervisor_command(app: &App, context: &CommandContext, guest: &GuestDir) -> Result<Command, Failure> {
    let mut command = Command::new(own_program()?);
    if let Some(config) = &app.config {
        command.arg("--config").arg(std::path::absolute(config)?);
    }
    command.arg("--datastore").arg(context.store.root()).args(["run", "--supervise", guest.name()]);
    Ok(command)
}

impl How {
    /// Creates the options without the console, with or without waiting.
    pub fn plain(wait: bool) -> How {
        How { wait, timeout: None, console: false }
    }
    /// Creates the options to wait until the guest is ready, or not, for at most this time.
    pub fn within(wait: bool, timeout: Duration) -> How {
        How { timeout: Some(timeout), ..How::plain(wait) }
    }
    /// Creates the options with the console.
    pub fn with_console() -> How {
        How { console: true, ..How::plain(false) }
    }
}
