//! The way of `ssh` and `cp` to a guest: one that boots is waited for, one that does not run is told.

use std::time::{Duration, Instant};

use super::selection::CommandContext;
use super::stop::is_running;
use super::{App, Failure};
use crate::guest::definition::Definition;
use crate::guest::reach::{Reach, greets};
use crate::guest::store::{GuestDir, Status};

/// Time that a guest has to greet before it counts as one that boots.
const AT_ONCE: Duration = Duration::from_millis(1500);
/// Time-out of one connection.
const ATTEMPT: Duration = Duration::from_secs(5);
/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(250);
/// Time that a guest is waited for that was ready before, or has been up for long.
const LEAST: Duration = Duration::from_secs(10);

/// Returns the way to a guest's sshd(8) once it greets. `user` has priority over that of the guest.
pub fn reach(app: &App, context: &CommandContext, guest: &GuestDir, user: Option<String>) -> Result<Reach, Failure> {
    let (name, state) = (guest.name(), guest.state()?);
    let config = Definition::load(guest, context.surroundings())?.config;
    let reach = Reach::of(guest, &config, &state, user)?;
    if !is_running(guest) {
        let is = match (guest.status(&state), &state.failed) {
            (Status::Failed, Some(failed)) => format!("has failed: {}", failed.reason),
            _ => "is stopped".to_owned(),
        };
        return Err(Failure::user(format!("`{name}` {is}")).hint(format!("start it: `vmctl start {name}`")));
    }
    if greets(reach.address, AT_ONCE) {
        return Ok(reach);
    }
    let run = guest.state()?.run;
    let is_ready = run.as_ref().is_some_and(|run| run.ready);
    let patience = match run.filter(|run| !run.ready) {
        Some(run) => config.ready.timeout.saturating_sub(run.lasting()).max(LEAST),
        None => LEAST,
    };
    let is = if is_ready { "does not answer" } else { "is booting" };
    app.ui.progress(&format!("{name} {is}: waiting for its sshd at {}", reach.address));
    let started = Instant::now();
    while !greets(reach.address, ATTEMPT) {
        if !is_running(guest) {
            return Err(Failure::user(format!("`{name}` has stopped meanwhile")).hint(format!("`vmctl events {name}` says why")));
        }
        if started.elapsed() >= patience {
            return Err(Failure::user(format!("`{name}` does not answer ssh at {}", reach.address))
                .hint(format!("`vmctl logs {name}` shows its console, and `vmctl console {name}` opens it")));
        }
        std::thread::sleep(PAUSE);
    }
    Ok(reach)
}
