//! `vmctl wait`.

use std::time::{Duration, Instant};

use super::progress::watch_signals;
use super::selection::CommandContext;
use super::start::{Milestone, ask_ready, booting, is_ready, wait_ready};
use super::stop::is_running;
use super::{App, ExitStatus, Failure, Guests, Outcome};
use crate::guest::control::Request;
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
/// Waits until each is ready, as its `[ready]` defines; until it has stopped; until its sshd greets; until its
/// console has asked for a login in this boot; or until its agent has answered. If a guest is not running or stops meanwhile, or if the time is over,
/// the exit status is 1.
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
    /// Its agent has answered
    Agent,
}

impl Args {
    pub fn run(self, app: &App) -> Outcome {
        watch_signals();
        let context = app.context_to_look()?;
        app.each_guest(self.guests.choose(&context)?, |guest, _| {
            let (name, began) = (guest.name(), Instant::now());
            let shown = |what: &str| app.ui.wait(booting(guest, what.to_owned(), self.timeout));
            let done = match self.event {
                AwaitedEvent::Ready => {
                    let config = wait_ready(app, &context, guest, self.timeout)?;
                    is_ready(guest, config.as_ref(), "is ready", began)
                }
                AwaitedEvent::Login => {
                    let _shown = shown("waiting for its login prompt");
                    ask_ready(guest, self.timeout, Milestone::Login)?;
                    format!("{name} asks for a login: vmctl console {name}")
                }
                AwaitedEvent::Agent => {
                    let _shown = shown("waiting for its agent");
                    ask_ready(guest, self.timeout, Milestone::Agent)?;
                    format!("{name} has an agent: vmctl exec {name} COMMAND")
                }
                AwaitedEvent::Ssh => {
                    let _shown = shown("waiting for ssh");
                    wait_ssh(guest, &context, self.timeout)?;
                    format!("{name} answers ssh: vmctl ssh {name}")
                }
                AwaitedEvent::Stopped => {
                    let _shown = shown("waiting until it has stopped");
                    wait_stopped(guest, self.timeout)?;
                    format!("{name} has stopped")
                }
            };
            app.ui.done(done);
            Ok(ExitStatus::Done)
        })
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
