//! `vmctl autostart`: the guests that start with the host, and the service that starts them.

use std::path::Path;
use std::time::Duration;

use serde::Serialize;

use super::selection::CommandContext;
use super::{App, Column, ExitStatus, Failure, Outcome, autostart_rc, down, up};
use crate::config::AutostartWait;
use crate::guest::autostart::Schedule;
use crate::host::environment;
use crate::host::error::HostError;
use crate::host::process::own_file;
use crate::host::program::is_freebsd;
use crate::host::systemd::{self, Manager, Unit};
use crate::units::format_duration;

/// The file that sysrc(8) reads and writes. Two commands must not do so at the same time.
const RC_CONF: &str = "/etc/rc.conf";

/// Start guests with the host
///
/// `enable` makes the host start the guests with `autostart` when it boots, and stop all guests in order when it shuts
/// down: through a systemd unit on Linux (the system's for root, otherwise the user's own), through rc.conf(5) on
/// FreeBSD. Without a command it does the same as `start`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Option<AutostartCommand>,
}

#[derive(Debug, Clone, clap::Subcommand)]
enum AutostartCommand {
    /// Make the host start guests when it boots, and stop them when it shuts down
    Enable {
        /// On FreeBSD, guests to add to vmctl_list of rc.conf; elsewhere a guest's file decides
        #[arg(value_name = "GUEST")]
        names: Vec<String>,
        /// Also start them now
        #[arg(long)]
        now: bool,
        /// Time for all guests together to stop: 3m by default, or less if a user's service manager has less
        #[arg(long, value_name = "TIME", value_parser = crate::units::parse_duration)]
        stop_timeout: Option<Duration>,
    },
    /// Stop starting guests with the host
    Disable {
        /// On FreeBSD, guests to remove from vmctl_list of rc.conf
        #[arg(value_name = "GUEST")]
        names: Vec<String>,
    },
    /// Show the guests that start with the host, in order
    List,
    /// Show the guests that each guest waits for
    Graph,
    /// Start them, as the host does when it boots; a running or failed guest is left alone
    Start,
}

/// A guest that starts with the host.
#[derive(Debug, Serialize)]
struct Listed {
    name: String,
    step: usize,
    order: i64,
    after: Vec<String>,
    wait: &'static str,
    delay_seconds: f64,
    timeout_seconds: f64,
    state: &'static str,
}

const COLUMNS: [Column<Listed>; 8] = [
    Column { title: "STEP", wide: false, text: |guest| guest.step.to_string() },
    Column { title: "NAME", wide: false, text: |guest| guest.name.clone() },
    Column { title: "ORDER", wide: false, text: |guest| guest.order.to_string() },
    Column { title: "AFTER", wide: false, text: |guest| guest.after.join(" ") },
    Column { title: "WAIT", wide: false, text: |guest| guest.wait.to_owned() },
    Column { title: "DELAY", wide: true, text: |guest| format_duration(Duration::from_secs_f64(guest.delay_seconds)) },
    Column { title: "TIMEOUT", wide: true, text: |guest| format_duration(Duration::from_secs_f64(guest.timeout_seconds)) },
    Column { title: "STATE", wide: false, text: |guest| guest.state.to_owned() },
];

impl Args {
    pub fn run(self, app: &App) -> Outcome {
        let context = app.context()?;
        match self.command {
            Some(AutostartCommand::Enable { names, now, .. }) if is_freebsd() => {
                let turn = context.store.file_turn(Path::new(RC_CONF))?;
                let enabled = autostart_rc::enable(app, &context, &names)?;
                drop(turn);
                if now { Ok(enabled.max(up::start_all(app, &context, &names, None)?)) } else { Ok(enabled) }
            }
            Some(AutostartCommand::Disable { names }) if is_freebsd() => {
                let _turn = context.store.file_turn(Path::new(RC_CONF))?;
                autostart_rc::disable(app, &context, &names)
            }
            Some(AutostartCommand::Enable { names, .. } | AutostartCommand::Disable { names }) if !names.is_empty() => {
                Err(Failure::user("on this host a guest starts with it when its file says `autostart = true`")
                    .hint(format!("`vmctl edit {}`", names[0])))
            }
            Some(AutostartCommand::Enable { now, stop_timeout, .. }) => enable(app, now, stop_timeout),
            Some(AutostartCommand::Disable { .. }) => disable(app),
            Some(AutostartCommand::List) => list(app, &context),
            Some(AutostartCommand::Graph) => graph(app, &context),
            Some(AutostartCommand::Start) | None => up::start_all(app, &context, &[], None),
        }
    }
}

/// Returns the guests with `autostart`, in order.
fn schedule(app: &App, context: &CommandContext) -> Result<(Schedule, ExitStatus), Failure> {
    let listed = autostart_rc::listed();
    let (candidates, worst) =
        up::candidates(app, context, |config, state| config.autostart.enabled || listed.contains(&state.name))?;
    let (schedule, circles) = Schedule::new(candidates);
    Ok((schedule, worst.max(up::refuse_circles(app, &circles))))
}

fn list(app: &App, context: &CommandContext) -> Outcome {
    let (schedule, worst) = schedule(app, context)?;
    let mut listed = Vec::new();
    for (candidate, level) in schedule.candidates().iter().zip(schedule.levels()) {
        let guest = context.store.guest(&candidate.name)?;
        let config = &candidate.config;
        listed.push(Listed {
            name: candidate.name.clone(),
            step: level + 1,
            order: config.order,
            after: config.after.clone(),
            wait: if config.wait == AutostartWait::Ready { "ready" } else { "running" },
            delay_seconds: config.delay.as_secs_f64(),
            timeout_seconds: config.timeout.as_secs_f64(),
            state: guest.status(&guest.state()?).word(),
        });
    }
    listed.sort_by(|a, b| (a.step, &a.name).cmp(&(b.step, &b.name)));
    app.ui.list("autostart", 1, &listed, &COLUMNS, |guest| guest.name.clone())?;
    Ok(worst)
}

fn graph(app: &App, context: &CommandContext) -> Outcome {
    let (schedule, worst) = schedule(app, context)?;
    let levels = schedule.levels();
    let mut text = String::new();
    for step in 0..levels.iter().max().map_or(0, |most| most + 1) {
        text += &format!("{}.\n", step + 1);
        for (candidate, _) in schedule.candidates().iter().zip(&levels).filter(|(_, level)| **level == step) {
            let after = candidate.config.after.join(", ");
            let after = if after.is_empty() { after } else { format!(" <- {after}") };
            let wait = if candidate.config.wait == AutostartWait::Ready { " (until ready)" } else { "" };
            text += &format!("   {}{wait}{after}\n", candidate.name);
        }
    }
    app.ui.data(&text)?;
    Ok(worst)
}

fn manager() -> Manager {
    if environment::is_root() { Manager::System } else { Manager::User }
}

fn unit_path(manager: Manager) -> Result<std::path::PathBuf, Failure> {
    Unit::path(manager).ok_or_else(|| Failure::user("neither `HOME` nor `XDG_CONFIG_HOME` is set to an absolute path"))
}

/// Default time for all guests to stop.
const STOP_TIMEOUT: Duration = Duration::from_secs(180);
/// Time that a user's service manager needs in addition to the unit.
const FOR_THE_MANAGER: Duration = Duration::from_secs(5);

/// Returns the time that guests have to stop, which is at most the time of the manager itself.
fn stop_timeout(app: &App, manager: Manager, asked: Option<Duration>) -> Duration {
    let limit = if manager == Manager::User { systemd::time_of_user_manager() } else { None };
    let Some(most) = limit.map(|limit| limit.saturating_sub(systemd::AFTER_DOWN + FOR_THE_MANAGER)) else {
        return asked.unwrap_or(STOP_TIMEOUT);
    };
    if let Some(asked) = asked.filter(|asked| *asked > most) {
        app.ui.warn(format!(
            "guests have only {} to stop instead of `{}`: systemd kills a user's service manager after the `TimeoutStopSec=` of `user@.service`",
            format_duration(most),
            format_duration(asked)
        ));
    }
    asked.unwrap_or(STOP_TIMEOUT).min(most)
}

fn enable(app: &App, now: bool, asked: Option<Duration>) -> Outcome {
    let manager = manager();
    let path = unit_path(manager)?;
    let running = systemd::is_running();
    let stop_timeout = stop_timeout(app, manager, asked);
    let unit = Unit { program: own_file()?, options: down::options(app)?, stop_timeout, manager };
    unit.write(&path).map_err(|error| Failure::user(format!("cannot write `{}`: {error}", path.display())))?;
    let user = if manager == Manager::User { " --user" } else { "" };
    let tell = |error: HostError| {
        let unit = path.display();
        Failure::from(error).hint(format!("the unit is `{unit}`; `systemctl{user} enable {}` may say more", systemd::UNIT))
    };
    // Lingering comes first: it starts the manager of a user who is not logged in.
    if manager == Manager::User
        && let Err(error) = systemd::enable_linger()
    {
        app.ui.warn(format!("guests start when you log in, and stop when you log out: {error}"));
    }
    if running {
        systemd::systemctl(manager, &["daemon-reload"]).map_err(tell)?;
    }
    // Without a running systemd, as in an image that is being built, it makes the links nevertheless.
    systemd::systemctl(manager, &["enable", systemd::UNIT]).map_err(tell)?;
    match (now, running) {
        (true, true) => systemd::systemctl(manager, &["start", systemd::UNIT]).map_err(tell)?,
        (true, false) => return Err(Failure::user("`--now` needs a running systemd, and this host has none")),
        (false, true) => {
            app.ui.done(format!(
                "guests start with the next boot of the host; `systemctl{user} start {}` starts them now, and has this boot's end stop them in order",
                systemd::UNIT
            ));
        }
        (false, false) => {}
    }
    app.ui.done(format!("`{}` is enabled", path.display()));
    Ok(ExitStatus::Done)
}

fn disable(app: &App) -> Outcome {
    let manager = manager();
    let path = unit_path(manager)?;
    if !path.exists() {
        app.ui.done("guests do not start with the host");
        return Ok(ExitStatus::Done);
    }
    systemd::systemctl(manager, &["disable", systemd::UNIT])?;
    std::fs::remove_file(&path).map_err(|error| Failure::user(format!("cannot remove `{}`: {error}", path.display())))?;
    if systemd::is_running() {
        systemd::systemctl(manager, &["daemon-reload"])?;
    }
    app.ui.done("guests do not start with the host any more; running guests continue");
    Ok(ExitStatus::Done)
}
