//! `vmctl down`: stops guests in order.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::group::{Group, Targets, agree_on_all, of_names};
use super::progress::watch_signals;
use super::project;
use super::stop::{ending, is_running};
use super::{App, ExitStatus, Failure, Guests, Outcome};
use crate::config::{AutostartConfig, AutostartWait};
use crate::guest::autostart::{Candidate, Direction, Schedule, share};
use crate::guest::control::Request;
use crate::guest::definition::Definition;
use crate::guest::stopping::end_guest;

/// Stop guests in order
///
/// With names, those that run. With a fleet file or a guest file, or without an argument in a folder that has one
/// (`fleet.toml`, `vm.toml` or `vmctl.toml`), the guests of that file. With `--all`, every guest of the datastore;
/// without an argument and without such a file, asks whether that is meant. Each one stops after those that start after
/// it, however it was started. Each has its `stop_timeout`, or its part of `--timeout` where that is less, and is
/// powered off after it. If it still runs then, its engine is killed, so that the others have their time.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    group: Group,
    /// Time for all guests together; the default is within the time of a host's shutdown
    #[arg(long, value_name = "TIME", default_value = "80s", value_parser = crate::units::parse_duration)]
    timeout: Duration,
}

/// Maximum number of guests that are stopped at the same time.
const AT_ONCE: usize = 64;
/// Time-out for a guest to end once it is powered off. Then its engine is killed.
const GOING: Duration = Duration::from_secs(2);

impl Args {
    pub fn run(self, app: &App) -> Outcome {
        let end = Instant::now() + self.timeout;
        watch_signals();
        let context = app.context()?;
        let targets = self.group.targets(app, &context)?;
        let those = match &targets {
            Targets::Named(names) => of_names(names),
            Targets::OfFile(file) => match project::guest_of(file, &context)? {
                (name, Some(_)) => of_names(&[name]),
                (name, None) => {
                    app.ui.done(format!("{name} is not made"));
                    return Ok(ExitStatus::Done);
                }
            },
            _ => Guests { all: true, ..Guests::default() },
        };
        let mut patience: HashMap<String, Duration> = HashMap::new();
        let mut candidates = Vec::new();
        let is_target = |name: &str| match &targets {
            Targets::Fleet(fleet) => fleet.members.iter().any(|member| member == name),
            _ => true,
        };
        let worst = app.each_in_turn(those.choose(&context)?, |guest| {
            if is_target(guest.name()) && is_running(guest) {
                // A guest whose file is broken by now is stopped nevertheless.
                let config = Definition::load(guest, context.surroundings()).ok().map(|definition| definition.config);
                let timeout = config.as_ref().map_or(Duration::from_secs(60), |config| config.stop_timeout);
                patience.insert(guest.name().to_owned(), timeout);
                let config = config.map_or_else(unknown, |config| config.autostart);
                candidates.push(Candidate { name: guest.name().to_owned(), config });
            }
            Ok(ExitStatus::Done)
        })?;
        if targets == Targets::Unspecified && !candidates.is_empty() && !is_stopped_service() {
            let names: Vec<String> = candidates.iter().map(|candidate| candidate.name.clone()).collect();
            agree_on_all("Stop", &names, "")?;
        }
        let (schedule, circles) = Schedule::new(candidates.clone());
        // Guests in a circle have no order. They are stopped first, together.
        let loose = candidates.into_iter().filter(|candidate| circles.iter().any(|circle| circle.contains(&candidate.name)));
        let loose = loose.map(|candidate| Candidate { config: unknown(), ..candidate }).collect();
        let worst = Mutex::new(worst);
        for schedule in [Schedule::new(loose).0, schedule] {
            let tails = schedule.tails(|candidate| patience[&candidate.name]);
            schedule.run(Direction::Backwards, AT_ONCE, |candidate| {
                let timeout = share(patience[&candidate.name], tails[&candidate.name], end);
                let status = stop(app, &context, &candidate.name, timeout, end)
                    .unwrap_or_else(|failure| app.ui.failure_about(true, &candidate.name, &failure));
                let mut worst = worst.lock().expect("no panic happens under this lock");
                *worst = (*worst).max(status);
            });
        }
        Ok(worst.into_inner().expect("no panic happened under this lock"))
    }
}

/// Returns whether this is the `ExecStop=` of a systemd unit: those that earlier versions wrote have `down` without
/// `--all`, and there is nobody to ask while the host goes down. systemd sets the variable for these processes alone
/// (systemd.exec(5), "$SERVICE_RESULT").
fn is_stopped_service() -> bool {
    std::env::var_os("SERVICE_RESULT").is_some()
}

fn stop(app: &App, context: &super::selection::CommandContext, name: &str, timeout: Duration, end: Instant) -> Outcome {
    let guest = context.store.guest(name)?;
    // The guests after it have their time, however long this one takes.
    let until = Instant::now() + timeout.min(end.saturating_duration_since(Instant::now())) + GOING;
    let request = Request::Stop { timeout_ms: Some(timeout.as_millis() as u64) };
    let _shown = app.ui.wait(ending(&guest, &request));
    match end_guest(&guest, &request, Some(until)) {
        Ok(ended) => app.ui.done(format!("{name} has stopped: {}", ended.words())),
        // It ended by itself meanwhile.
        Err(_) if !is_running(&guest) => app.ui.done(format!("{name} has stopped")),
        Err(error) => return Err(error.into()),
    }
    Ok(ExitStatus::Done)
}

/// Returns the position in the order of a guest without a readable file: the defaults.
fn unknown() -> AutostartConfig {
    AutostartConfig {
        enabled: false,
        order: 100,
        delay: Duration::ZERO,
        after: Vec::new(),
        wait: AutostartWait::Running,
        timeout: Duration::ZERO,
    }
}

/// Returns the options of this command that a unit passes on: the host file and the datastore.
pub fn options(app: &App) -> Result<Vec<String>, Failure> {
    let mut options = Vec::new();
    if let Some(config) = &app.config {
        let config = std::path::absolute(config)?;
        options.extend(["--config".to_owned(), config.to_string_lossy().into_owned()]);
    }
    if let Some(datastore) = &app.datastore {
        let datastore = match datastore.contains('/') {
            true => std::path::absolute(datastore)?.to_string_lossy().into_owned(),
            false => datastore.clone(),
        };
        options.extend(["--datastore".to_owned(), datastore]);
    }
    Ok(options)
}
