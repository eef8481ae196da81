//! `vmctl exec`: runs a command in a guest by its agent.

use std::io::Read;
use std::time::{Duration, Instant};

use super::progress::watch_signals;
use super::start::{Milestone, ask_ready, booting};
use super::stop::is_running;
use super::{App, ExitStatus, Failure, Outcome};
use crate::guest::agent::commands::Executed;
use crate::guest::definition::Definition;
use crate::guest::launcher;
use crate::guest::store::GuestDir;
use crate::units::format_duration;

/// Maximum size of a command's standard input, which is one request to the supervisor.
const MOST_INPUT: u64 = 128 * 1024;

/// Run a command in a guest by its agent
///
/// The guest file has `agent = true`, and the guest runs qemu-guest-agent, which runs the command as root. Its output is
/// printed when it has ended, at most 16 MiB; its exit status is that of this command, or 128 and the number of the
/// signal that ended it. No shell is involved: `-- sh -c '...'` is one. Nothing needs a network or a key. `vmctl ssh`
/// also has a terminal.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The guest
    #[arg(value_name = "GUEST")]
    guest: String,
    /// Pass standard input to it, at most 128 KiB, instead of nothing
    #[arg(short = 'i', long)]
    stdin: bool,
    /// Maximum wait for its end; no limit if left out
    #[arg(long, value_name = "TIME", value_parser = crate::units::parse_duration)]
    timeout: Option<Duration>,
    /// Program and arguments
    #[arg(value_name = "COMMAND", required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

impl Args {
    pub fn run(self, app: &App) -> Outcome {
        watch_signals();
        let context = app.context_to_look()?;
        let guest = context.store.guest(&self.guest)?;
        if !is_running(&guest) {
            return Err(launcher::not_running(&guest).into());
        }
        let input = if self.stdin { Some(standard_input()?) } else { None };
        let config = Definition::load(&guest, context.surroundings()).ok().map(|definition| definition.config);
        let limit = config.map(|config| config.ready.timeout);
        {
            let _shown = app.ui.wait(booting(&guest, "waiting for its agent".into(), limit));
            ask_ready(&guest, None, Milestone::Agent).map_err(|failure| without_agent(failure, &guest))?;
        }
        let until = self.timeout.map(|timeout| Instant::now() + timeout);
        let end = launcher::execute(&guest, self.command, input, until)?;
        let Some(end) = end else {
            let timeout = format_duration(self.timeout.unwrap_or_default());
            return Err(Failure::user(format!("the command did not end within {timeout}"))
                .hint(format!("it goes on in the guest: `vmctl exec {} ps` shows it", guest.name())));
        };
        app.ui.of_command(&end.out, &end.err)?;
        if end.truncated {
            app.ui.warn("the command wrote more than the agent keeps, and the rest is missing");
        }
        Ok(status(&end))
    }
}

/// Adds what else there is to the error of a guest whose agent does not answer.
fn without_agent(failure: Failure, guest: &GuestDir) -> Failure {
    match failure.hint {
        Some(_) => failure,
        None => failure
            .hint(format!("the guest needs the package `qemu-guest-agent`; `vmctl ssh {} COMMAND` needs none", guest.name())),
    }
}

fn status(end: &Executed) -> ExitStatus {
    let code = end.signal.map_or(end.code.unwrap_or_default(), |signal| signal.saturating_add(128));
    match u8::try_from(code & 0xff) {
        Ok(0) if code == 0 => ExitStatus::Done,
        // A code that a byte cannot hold, and that would look like success.
        Ok(0) | Err(_) => ExitStatus::Engine(255),
        Ok(code) => ExitStatus::Engine(code),
    }
}

fn standard_input() -> Result<Vec<u8>, Failure> {
    let mut input = Vec::new();
    std::io::stdin().take(MOST_INPUT + 1).read_to_end(&mut input)?;
    if input.len() as u64 > MOST_INPUT {
        return Err(Failure::user(format!("standard input has more than {} KiB", MOST_INPUT / 1024))
            .hint("copy it into the guest first: `vmctl cp FILE GUEST:PATH`"));
    }
    Ok(input)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exit_status_is_that_of_the_command_and_never_one_of_success_without_it() {
        let end = |code, signal| status(&Executed { code, signal, ..Executed::default() });
        assert_eq!(end(Some(0), None), ExitStatus::Done);
        assert_eq!(end(Some(3), None), ExitStatus::Engine(3));
        assert_eq!(end(None, Some(9)), ExitStatus::Engine(137));
        assert_eq!(end(Some(256), None), ExitStatus::Engine(255));
        assert_eq!(end(Some(-1), None), ExitStatus::Engine(255));
        assert_eq!(end(Some(0), Some(i64::MAX)), ExitStatus::Engine(255));
    }
}
