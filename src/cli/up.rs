//! `vmctl up`: starts guests in their order.

use std::collections::BTreeSet;
use std::sync::Mutex;

use super::selection::Place;
use super::start::{How, start};
use super::stop::is_running;
use super::{App, ExitStatus, Failure, Guests, Outcome};
use crate::config::{AutostartWait, GuestConfig};
use crate::guest::autostart::{Candidate, Direction, Schedule};
use crate::guest::definition::Definition;
use crate::guest::state::GuestState;

/// Start guests in their order
///
/// Without a name, the guests with `autostart` (on FreeBSD, also those of vmctl_list in rc.conf); with names, those and the guests that they start after. A guest waits
/// for those before it as their `autostart.wait` and `timeout` say; one that does not start holds up nobody for longer
/// than that. A guest that runs is left alone, and so is one that has failed unless it was named.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Names or globs, like `web1` or `web*`
    #[arg(value_name = "GUEST")]
    names: Vec<String>,
    /// How many are started at once, instead of the host file's `autostart_parallel`
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    parallel: Option<u32>,
}

impl Args {
    pub fn run(self, app: &App) -> Outcome {
        let place = app.place()?;
        start_all(app, &place, &self.names, self.parallel)
    }
}

/// Starts the guests with `autostart`, or those that are named with those before them.
pub fn start_all(app: &App, place: &Place, names: &[String], parallel: Option<u32>) -> Outcome {
    let (named, mut worst) = named(app, place, names)?;
    let listed = super::autostart_rc::listed();
    let (candidates, looked) = candidates(app, place, |config, state| match &named {
        None => (config.autostart.enabled || listed.contains(&state.name)) && state.failed.is_none(),
        Some(_) => true,
    })?;
    worst = worst.max(looked);
    let candidates = match &named {
        Some(named) => with_those_before(candidates, named),
        None => candidates,
    };
    let (schedule, circles) = Schedule::new(candidates);
    let worst = Mutex::new(worst.max(refuse_circles(app, &circles)));
    let many = schedule.candidates().len() > 1;
    schedule.run(Direction::Forwards, parallel.unwrap_or(place.host.autostart_parallel) as usize, |candidate| {
        let status =
            start_one(app, place, candidate).unwrap_or_else(|failure| app.ui.failure_about(many, &candidate.name, &failure));
        let mut worst = worst.lock().expect("no panic happens under this lock");
        *worst = (*worst).max(status);
    });
    Ok(worst.into_inner().expect("no panic happened under this lock"))
}

fn start_one(app: &App, place: &Place, candidate: &Candidate) -> Outcome {
    let guest = place.store.guest(&candidate.name)?;
    let config = &candidate.config;
    if is_running(&guest) {
        // Whoever started it: the guests after it wait for it all the same.
        if config.wait == AutostartWait::Ready {
            super::start::wait_ready(&guest, Some(config.timeout))?;
        }
        return Ok(ExitStatus::Done);
    }
    std::thread::sleep(config.delay);
    start(app, place, &guest, &How::within(config.wait == AutostartWait::Ready, config.timeout))
}

/// The guests that names and globs mean; `None` when none was given.
fn named(app: &App, place: &Place, names: &[String]) -> Result<(Option<BTreeSet<String>>, ExitStatus), Failure> {
    if names.is_empty() {
        return Ok((None, ExitStatus::Done));
    }
    let mut found = BTreeSet::new();
    let chosen = Guests { names: names.to_vec(), ..Guests::default() }.choose(place)?;
    let status = app.each_in_turn(chosen, |guest| {
        found.insert(guest.name().to_owned());
        Ok(ExitStatus::Done)
    })?;
    Ok((Some(found), status))
}

/// The guests that `keep` keeps, with their place in the order. What is wrong with the file of one is reported, and the
/// others go on.
pub fn candidates(
    app: &App,
    place: &Place,
    keep: impl Fn(&GuestConfig, &GuestState) -> bool,
) -> Result<(Vec<Candidate>, ExitStatus), Failure> {
    let all = Guests { all: true, ..Guests::default() };
    let mut candidates = Vec::new();
    let worst = app.each_in_turn(all.choose(place)?, |guest| {
        let config = Definition::load(guest, place.around())?.config;
        if keep(&config, &guest.state()?) {
            candidates.push(Candidate { name: guest.name().to_owned(), config: config.autostart });
        }
        Ok(ExitStatus::Done)
    })?;
    Ok((candidates, worst))
}

/// Those that are named and those that they come after, over any number of steps.
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

/// Says which guests wait for each other.
pub fn refuse_circles(app: &App, circles: &[Vec<String>]) -> ExitStatus {
    let mut status = ExitStatus::Done;
    for circle in circles {
        let message = format!("guests wait for each other in a circle: {}", circle.join(" -> "));
        let failure = Failure::user(message).hint("correct their `autostart.after`");
        status = status.max(app.ui.failure_about(false, "", &failure));
    }
    status
}
