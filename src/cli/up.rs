//! `vmctl up`: starts guests in their order, and makes those of a file that are not there.

use std::collections::BTreeSet;
use std::sync::Mutex;

use super::apply::{carry_out, half_applied};
use super::group::{Fleet as GroupFleet, Group, Targets, agree_on_all, of_names};
use super::plan::refusals;
use super::progress::watch_signals;
use super::project;
use super::render::FleetFile;
use super::selection::CommandContext;
use super::start::{How, start};
use super::stop::is_running;
use super::{App, ExitStatus, Failure, Guests, Outcome};
use crate::config::{AutostartWait, GuestConfig};
use crate::guest::autostart::{Candidate, Direction, Schedule};
use crate::guest::definition::Definition;
use crate::guest::fleet::apply::FleetLock;
use crate::guest::fleet::plan::{self as fleet_plan, Scope};
use crate::guest::state::GuestState;

/// Make and start guests in their order
///
/// With names, those and the guests that they start after. With a fleet file or a guest file, or without an argument in
/// a folder that has one (`fleet.toml`, `vm.toml` or `vmctl.toml`), the guests of that file: those that are not there
/// yet are made first. With `--all`, every guest of the datastore; without an argument and without such a file, asks
/// whether that is meant. `vmctl autostart start` starts those with `autostart`. A guest waits for those before it as
/// their `autostart.wait` and `timeout` say; one that does not start delays the others no longer than that. A guest
/// that runs is left alone, and so is one that has failed unless it was named.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    group: Group,
    /// Maximum number of guests that are started at the same time, instead of the host file's `autostart_parallel`
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    parallel: Option<u32>,
}

impl Args {
    pub fn run(self, app: &App) -> Outcome {
        watch_signals();
        let context = app.context()?;
        let targets = self.group.targets(app, &context)?;
        match &targets {
            Targets::Named(names) => start_all(app, &context, names, self.parallel),
            Targets::OfFile(file) => {
                let name = project::make(app, &context, file)?;
                start_all(app, &context, &[name], self.parallel)
            }
            Targets::Fleet(fleet) if fleet.missing.is_empty() => {
                start_those(app, &context, &Those::Members(&fleet.members), self.parallel)
            }
            Targets::Fleet(fleet) => {
                let made = make_missing(app, fleet)?;
                // The fleet has brought its switches.
                let context = app.context()?;
                match self.group.targets(app, &context)? {
                    Targets::Fleet(fleet) => {
                        Ok(made.max(start_those(app, &context, &Those::Members(&fleet.members), self.parallel)?))
                    }
                    _ => Err(Failure::user(format!("the file of the fleet `{}` is gone", fleet.name))),
                }
            }
            Targets::All | Targets::Unspecified => {
                let stopped: Vec<String> =
                    context.store.names()?.into_iter().filter(|name| !is_running(&context.store.directory_of(name))).collect();
                if targets == Targets::Unspecified && !stopped.is_empty() {
                    agree_on_all("Start", &stopped, "; `vmctl autostart start` starts those with `autostart`")?;
                }
                start_those(app, &context, &Those::All, self.parallel)
            }
        }
    }
}

/// Makes those guests of a fleet that are not there yet, and what they need. The others stay as they are.
fn make_missing(app: &App, fleet: &GroupFleet) -> Outcome {
    let (declared, context) = FleetFile::of(fleet.file.clone()).load_with_context(app)?;
    let waiting = |pid: u32| app.ui.done(format!("waiting for an apply (process {pid})"));
    let lock = FleetLock::take(&declared.name, context.surroundings().datastore, true, waiting)?;
    lock.recover(&context.store)?;
    let scope = Scope { targets: fleet.missing.clone(), prune: false, reboot: false };
    let plan = fleet_plan::plan(&declared, &context.store, context.surroundings(), &scope)?;
    let refused = refusals(app, &plan);
    Ok(refused.max(carry_out(app, &lock, &declared, &plan, &context, (4, false, false), &half_applied(&declared))?))
}

/// The guests that are started.
enum Those<'a> {
    /// The ones with `autostart`, or of vmctl_list in rc.conf on FreeBSD.
    Autostart,
    /// These, failed or not, and those before them.
    Named(BTreeSet<String>),
    /// These.
    Members(&'a [String]),
    /// Every guest.
    All,
}

/// Starts the guests with `autostart`, or the named ones with those before them.
pub fn start_all(app: &App, context: &CommandContext, names: &[String], parallel: Option<u32>) -> Outcome {
    if names.is_empty() {
        return start_those(app, context, &Those::Autostart, parallel);
    }
    let (named, worst) = named(app, context, names)?;
    Ok(worst.max(start_those(app, context, &Those::Named(named), parallel)?))
}

fn start_those(app: &App, context: &CommandContext, those: &Those<'_>, parallel: Option<u32>) -> Outcome {
    let listed = super::autostart_rc::listed();
    let (candidates, worst) = candidates(app, context, |config, state| match those {
        Those::Autostart => (config.autostart.enabled || listed.contains(&state.name)) && state.failed.is_none(),
        Those::Members(members) => members.contains(&state.name) && state.failed.is_none(),
        Those::All => state.failed.is_none(),
        Those::Named(_) => true,
    })?;
    let candidates = match those {
        Those::Named(named) => with_those_before(candidates, named),
        _ => candidates,
    };
    let (schedule, circles) = Schedule::new(candidates);
    let worst = Mutex::new(worst.max(refuse_circles(app, &circles)));
    let many = schedule.candidates().len() > 1;
    schedule.run(Direction::Forwards, parallel.unwrap_or(context.host.autostart_parallel) as usize, |candidate| {
        let status =
            start_one(app, context, candidate).unwrap_or_else(|failure| app.ui.failure_about(many, &candidate.name, &failure));
        let mut worst = worst.lock().expect("no panic happens under this lock");
        *worst = (*worst).max(status);
    });
    Ok(worst.into_inner().expect("no panic happened under this lock"))
}

fn start_one(app: &App, context: &CommandContext, candidate: &Candidate) -> Outcome {
    let guest = context.store.guest(&candidate.name)?;
    let config = &candidate.config;
    if is_running(&guest) {
        // It may have been started by another command. The guests after it wait for it nevertheless.
        if config.wait == AutostartWait::Ready {
            super::start::wait_ready(app, context, &guest, Some(config.timeout))?;
        }
        return Ok(ExitStatus::Done);
    }
    std::thread::sleep(config.delay);
    start(app, context, &guest, &How::within(config.wait == AutostartWait::Ready, config.timeout))
}

/// Returns the guests that names and globs mean.
fn named(app: &App, context: &CommandContext, names: &[String]) -> Result<(BTreeSet<String>, ExitStatus), Failure> {
    let mut found = BTreeSet::new();
    let chosen = of_names(names).choose(context)?;
    let status = app.each_in_turn(chosen, |guest| {
        found.insert(guest.name().to_owned());
        Ok(ExitStatus::Done)
    })?;
    Ok((found, status))
}

/// Returns the guests that `keep` selects, with their position in the order. Problems of a guest's file are reported,
/// and the others continue.
pub fn candidates(
    app: &App,
    context: &CommandContext,
    keep: impl Fn(&GuestConfig, &GuestState) -> bool,
) -> Result<(Vec<Candidate>, ExitStatus), Failure> {
    let all = Guests { all: true, ..Guests::default() };
    let mut candidates = Vec::new();
    let worst = app.each_in_turn(all.choose(context)?, |guest| {
        let config = Definition::load(guest, context.surroundings())?.config;
        if keep(&config, &guest.state()?) {
            candidates.push(Candidate { name: guest.name().to_owned(), config: config.autostart });
        }
        Ok(ExitStatus::Done)
    })?;
    Ok((candidates, worst))
}

/// Returns the named guests and those before them, over any number of steps.
fn with_those_before(candidates: Vec<Candidate>, named: &BTreeSet<String>) -> Vec<Candidate> {
    let mut wanted = named.clone();
    let mut queue: Vec<String> = named.iter().cloned().collect();
    while let Some(name) = queue.pop() {
        for after in candidates.iter().filter(|candidate| candidate.name == name).flat_map(|candidate| &candidate.config.after) {
            if wanted.insert(after.clone()) {
                queue.push(after.clone());
            }
        }
    }
    candidates.into_iter().filter(|candidate| wanted.contains(&candidate.name)).collect()
}

/// Reports guests that wait for each other.
pub fn refuse_circles(app: &App, circles: &[Vec<String>]) -> ExitStatus {
    let mut status = ExitStatus::Done;
    for circle in circles {
        let message = format!("guests wait for each other in a circle: {}", circle.join(" -> "));
        let failure = Failure::user(message).hint("correct their `autostart.after`");
        status = status.max(app.ui.failure_about(false, "", &failure));
    }
    status
}
