//! `vmctl wait`.

use std::time::{Duration, Instant};

use super::selection::CommandContext;
use super::start::wait_ready;
use super::stop::is_running;
use super::{App, ExitStatus, Failure, Guests, Outcome};
use crate::guest::control::{Reply, Request};
use crate::guest::definition::Definition;
use crate::guest::launcher;
use crate::guest::reach::{Reach, greets};
use crate::guest::store::GuestDir;
use crate::units::format_duration;

/// Between two looks at a guest.
const PAUSE: Duration = Duration::from_millis(100);
/// Time-out of one connection.
const ATTEMPT: Duration = Duration::from_secs(5);

/// Wait for guests
///
/// Until each is ready, as its `[ready]` says; until it has stopped; until its sshd greets; or until its console has asked
/// for a login in this boot. A guest that does not run, or stops meanwhile, is waited for no more, and the exit status is 1,
/// as it is when the time is over.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    guests: Guests,
    /// Event to wait for
    #[arg(long = "for", value_enum, default_value = "ready", value_name = "WHAT")]
    event: AwaitedEvent,
    /// Maximum wait; the guest file's `ready.timeout` if left out, and no limit for `stopped`
    #[arg(long, value_name = "TIME", value_parser = crate::units::parse_duration)]
    timeout: Option<Duration>,
}

/// Event to wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum AwaitedEvent {
    /// The guest is ready
    Ready,
    /// It has stopped
    Stopped,
    /// Its sshd greets
    Ssh,
    /// Its console has asked for a login
    Login,
}

impl Args {
    pub fn run(self, app: &App) -> Outcome {
        let context = app.context_to_look()?;
        app.each_guest(self.guests.choose(&context)?, |guest, _| {
            let name = guest.name();
            match self.event {
                AwaitedEvent::Ready => wait_ready(guest, self.timeout)?,
                AwaitedEvent::Login => wait_login(guest, self.timeout)?,
                AwaitedEvent::Ssh => wait_ssh(guest, &context, self.timeout)?,
                AwaitedEvent::Stopped => wait_stopped(guest, self.timeout)?,
            }
            app.ui.done(match self.event {
                AwaitedEvent::Ready => format!("{name} is ready"),
                AwaitedEvent::Stopped => format!("{name} has stopped"),
                AwaitedEvent::Ssh => format!("{name} answers ssh"),
                AwaitedEvent::Login => format!("{name} asks for a login"),
            });
            Ok(ExitStatus::Done)
        })
    }
}

fn wait_login(guest: &GuestDir, timeout: Option<Duration>) -> Result<(), Failure> {
    let timeout_ms = timeout.map(|timeout| timeout.as_millis() as u64);
    match launcher::ask_once(guest, Request::WaitReady { timeout_ms, login: true })? {
        Reply::Ready => Ok(()),
        other => Err(Failure::machine(anyhow::anyhow!("the supervisor answered {other:?}"))),
    }
}

fn wait_ssh(guest: &GuestDir, context: &CommandContext, timeout: Option<Duration>) -> Result<(), Failure> {
    let config = Definition::load(guest, context.surroundings())?.config;
    let address = Reach::of(guest, &config, &guest.state()?, None)?.address;
    let timeout = timeout.unwrap_or(config.ready.timeout);
    let started = Instant::now();
    // One that does not run is told in the words of every other command.
    launcher::ask_once(guest, Request::Status)?;
    loop {
        let left = timeout.saturating_sub(started.elapsed());
        if greets(address, ATTEMPT.min(left.max(PAUSE))) {
            return Ok(());
        }
        if !is_running(guest) {
            return Err(Failure::user(format!("`{}` has stopped meanwhile", guest.name()))
                .hint(format!("`vmctl events {}` says why", guest.name())));
        }
        if left.is_zero() {
            return Err(late(guest, timeout, &format!("no ssh greeting at {address}")));
        }
        std::thread::sleep(PAUSE);
    }
}

fn wait_stopped(guest: &GuestDir, timeout: Option<Duration>) -> Result<(), Failure> {
    let started = Instant::now();
    while is_running(guest) {
        if let Some(timeout) = timeout.filter(|timeout| started.elapsed() >= *timeout) {
            return Err(late(guest, timeout, "it still runs"));
        }
        std::thread::sleep(PAUSE);
    }
    Ok(())
}

fn late(guest: &GuestDir, timeout: Duration, what: &str) -> Failure {
    Failure::user(format!("`{}`: not within {}: {what}", guest.name(), format_duration(timeout)))
}
