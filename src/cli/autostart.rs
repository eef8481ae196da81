//! `vmctl autostart`.

use super::start::{How, start};
use super::{App, ExitStatus, Failure, Guests, Outcome};
use crate::config::AutostartWait;
use crate::guest::autostart::{self, Candidate};
use crate::guest::definition::Definition;

/// Start the guests that start with the host
///
/// For the host's boot: those with `autostart`, by their order and after those that they name. A guest that runs is
/// left alone, and so is one that has failed.
#[derive(Debug, clap::Args)]
pub struct Args {}

impl Args {
    pub fn run(self, app: &App) -> Outcome {
        let place = app.place()?;
        let mut worst = ExitStatus::Done;
        let mut candidates = Vec::new();
        let all = Guests { all: true, ..Guests::default() };
        let looked = app.each_in_turn(all.choose(&place)?, |guest| {
            let config = Definition::load(guest, place.around())?.config.autostart;
            if config.enabled && guest.state()?.failed.is_none() && !super::stop::is_running(guest) {
                candidates.push(Candidate { name: guest.name().to_owned(), config });
            }
            Ok(ExitStatus::Done)
        })?;
        worst = worst.max(looked);
        let (waves, circle) = autostart::waves(candidates);
        for candidate in circle {
            let failure = Failure::user("it and others wait for each other in a circle").hint("correct `autostart.after`");
            worst = worst.max(app.ui.failure_about(true, &candidate.name, &failure));
        }
        let at_once = place.host.autostart_parallel.max(1) as usize;
        for part in waves.iter().flat_map(|wave| wave.chunks(at_once)) {
            let names: Vec<String> = part.iter().map(|candidate| candidate.name.clone()).collect();
            let chosen = Guests { names, ..Guests::default() }.choose(&place)?;
            let started = app.each_guest(chosen, |guest, _| {
                let config = &part.iter().find(|candidate| candidate.name == guest.name()).expect("chosen from it").config;
                std::thread::sleep(config.delay);
                let wait = config.wait == AutostartWait::Ready;
                start(app, &place, guest, &How::within(wait, config.timeout))
            })?;
            worst = worst.max(started);
        }
        Ok(worst)
    }
}
