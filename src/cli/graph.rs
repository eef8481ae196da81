//! `vmctl graph`: draws a picture of the guests.

use std::path::PathBuf;

use super::{App, ExitStatus, Failure, Outcome, up};
use crate::config::{FleetRequest, GuestConfig, NicBackend, load_fleet};
use crate::guest::autostart::{Candidate, Schedule};
use crate::guest::definition::Definition;
use crate::guest::graph::{GraphGuest, svg};
use crate::host::files::write_atomically;

/// Draw guests, switches and start order
///
/// Prints an SVG picture of the guests of the datastore, or of those in a fleet file for this host.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Fleet file; by default the existing guests are drawn
    #[arg(value_name = "FLEET")]
    fleet: Option<PathBuf>,
    /// File to write it to
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

impl Args {
    pub fn run(self, app: &App) -> Outcome {
        let context = app.context_to_look()?;
        let mut guests: Vec<(GuestConfig, String)> = Vec::new();
        let mut worst = ExitStatus::Done;
        let title = match &self.fleet {
            Some(file) => {
                let surroundings = context.surroundings();
                let engines = context.store.settled_engines();
                let (host, datastore) = (surroundings.host, surroundings.datastore);
                let fleet = load_fleet(&FleetRequest { file, text: None, host, datastore, engines: &engines })?;
                for guest in fleet.here() {
                    let there = context.store.guest(&guest.config.name).ok();
                    let state = there.and_then(|guest| Some(guest.status(&guest.state().ok()?).word()));
                    guests.push((guest.config.clone(), state.unwrap_or("not made").to_owned()));
                }
                fleet.name
            }
            None => {
                let all = super::Guests { all: true, ..super::Guests::default() };
                worst = app.each_in_turn(all.choose(&context)?, |guest| {
                    let config = Definition::load(guest, context.surroundings())?.config;
                    guests.push((config, guest.status(&guest.state()?).word().to_owned()));
                    Ok(ExitStatus::Done)
                })?;
                format!("guests in {}", context.store.root().display())
            }
        };
        let enabled = guests.iter().filter(|(config, _)| config.autostart.enabled);
        let candidates = enabled.map(|(config, _)| Candidate { name: config.name.clone(), config: config.autostart.clone() });
        let (schedule, circles) = Schedule::new(candidates.collect());
        worst = worst.max(up::refuse_circles(app, &circles));
        let levels = schedule.levels();
        let step = |name: &str| schedule.candidates().iter().position(|candidate| candidate.name == name).map(|at| levels[at]);
        let nodes = guests.iter().map(|(config, state)| node(config, state, step(&config.name))).collect();
        let picture = svg(&title, nodes);
        match &self.out {
            Some(path) => write_atomically(&std::path::absolute(path)?, picture.as_bytes(), 0o644)
                .map_err(|error| Failure::user(format!("cannot write `{}`: {error}", path.display())))?,
            None => app.ui.data(&picture)?,
        }
        Ok(worst)
    }
}

fn node(config: &GuestConfig, state: &str, step: Option<usize>) -> GraphGuest {
    let mut switches: Vec<String> = Vec::new();
    for nic in &config.nics {
        match (nic.backend, &nic.switch) {
            (NicBackend::None, _) => {}
            (_, Some(switch)) => switches.push(switch.clone()),
            (_, None) => switches.push("user-mode network".into()),
        }
    }
    switches.sort();
    switches.dedup();
    let cpus = config.cpus.count();
    GraphGuest {
        name: config.name.clone(),
        state: state.to_owned(),
        detail: format!("{cpus} CPU{}, {}", if cpus == 1 { "" } else { "s" }, config.memory),
        step,
        after: config.autostart.after.clone(),
        switches,
    }
}
