//! `vmctl list`: lists guests.

use clap::builder::PossibleValuesParser;

use super::selection::{Chosen, map_in_order};
use super::{AnyGuests, App, Column, ExitStatus, Guests, Outcome};
use crate::guest::overview::{Observer, Overview};
use crate::units::{ByteSize, format_duration};

/// List guests
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    guests: AnyGuests,
    /// Only guests in this state
    #[arg(long, value_name = "STATE", value_parser = PossibleValuesParser::new(STATES))]
    state: Option<String>,
}

/// The words for states.
const STATES: [&str; 7] = ["stopped", "failed", "starting", "running", "stopping", "waiting", "busy"];

/// Columns that a narrow terminal has no room for, those first that are left out first.
const WHERE_THERE_IS_ROOM: [&str; 4] = ["ADDRESS", "DESCRIPTION", "READY", "SSH"];

const COLUMNS: [Column<Overview>; 16] = [
    Column { title: "NAME", wide: false, text: |guest| guest.name.clone() },
    Column { title: "STATE", wide: false, text: state },
    Column { title: "READY", wide: false, text: ready },
    Column { title: "CPUS", wide: false, text: cpus },
    Column { title: "MEMORY", wide: false, text: memory },
    Column { title: "UPTIME", wide: false, text: uptime },
    Column { title: "SSH", wide: false, text: |guest| guest.ssh.clone().unwrap_or_default() },
    Column { title: "ADDRESS", wide: false, text: |guest| guest.addresses.join(",") },
    Column { title: "ENGINE", wide: true, text: engine },
    Column { title: "BACKEND", wide: true, text: |guest| guest.backend.clone().unwrap_or_default() },
    Column { title: "SCREEN", wide: true, text: |guest| guest.screen.clone().unwrap_or_default() },
    Column { title: "PID", wide: true, text: |guest| guest.pid.map(|pid| pid.to_string()).unwrap_or_default() },
    Column { title: "LAST EXIT", wide: true, text: |guest| guest.last_exit.as_ref().map(|e| e.kind.clone()).unwrap_or_default() },
    Column { title: "TAGS", wide: true, text: |guest| guest.tags.join(",") },
    Column { title: "UUID", wide: true, text: uuid },
    Column { title: "DESCRIPTION", wide: false, text: |guest| guest.description.clone().unwrap_or_default() },
];

fn state(guest: &Overview) -> String {
    let notes = [(guest.problem.is_some(), "file is wrong"), (guest.restart_pending, "restart pending")];
    let notes: Vec<_> = notes.iter().filter(|(applies, _)| *applies).map(|(_, note)| *note).collect();
    match notes.is_empty() {
        true => guest.state.to_owned(),
        false => format!("{} ({})", guest.state, notes.join(", ")),
    }
}

/// Returns whether a guest that runs is ready.
fn ready(guest: &Overview) -> String {
    let word = if guest.ready { "yes" } else { "no" };
    if guest.state == "running" { word.to_owned() } else { String::new() }
}

/// Returns what runs, and what comes with the next boot where that is another one.
fn with_next(now: Option<String>, next: Option<String>) -> String {
    match (now, next) {
        (Some(now), Some(next)) => format!("{now} (next {next})"),
        (now, _) => now.unwrap_or_default(),
    }
}

/// Processors.
pub fn cpus(guest: &Overview) -> String {
    let next = guest.next_boot.as_ref().and_then(|next| next.cpus);
    with_next(guest.cpus.map(|cpus| cpus.to_string()), next.map(|cpus| cpus.to_string()))
}

/// Returns RAM.
pub fn memory(guest: &Overview) -> String {
    let words = |bytes: u64| ByteSize::from_bytes(bytes).to_string();
    with_next(guest.memory_bytes.map(words), guest.next_boot.as_ref().and_then(|next| next.memory_bytes).map(words))
}

/// Engine.
pub fn engine(guest: &Overview) -> String {
    with_next(guest.engine.clone(), guest.next_boot.as_ref().and_then(|next| next.engine.clone()))
}

/// UUID that the guest sees.
pub fn uuid(guest: &Overview) -> String {
    with_next(Some(guest.uuid.clone()), guest.next_boot.as_ref().and_then(|next| next.uuid.clone()))
}

/// Returns the time in units down to minutes, since a table of guests needs no seconds.
pub fn uptime(guest: &Overview) -> String {
    let Some(seconds) = guest.uptime_seconds else { return String::new() };
    let rounded = if seconds >= 3600 { seconds - seconds % 60 } else { seconds };
    format_duration(std::time::Duration::from_secs(rounded))
}

impl Args {
    pub fn run(self, app: &App) -> Outcome {
        let context = app.context_to_look()?;
        let guests = Guests { names: self.guests.names, ..Guests::default() };
        let chosen = guests.choose(&context)?;
        let many = chosen.len() > 1;
        let look = |observer: &mut Observer<'_>, chosen: Chosen| {
            (chosen.label, chosen.guest.and_then(|guest| Ok(observer.look(&guest)?.0)))
        };
        let wanted = |guest: &Overview| {
            self.state.as_ref().is_none_or(|state| *state == guest.state)
                && self.guests.tags.iter().all(|tag| guest.tags.contains(tag))
        };
        let (mut rows, mut status) = (Vec::new(), ExitStatus::Done);
        for (label, looked) in map_in_order(chosen, || Observer::new(context.surroundings()), look) {
            match looked {
                Ok(overview) => rows.extend(Some(overview).filter(wanted)),
                Err(error) => status = status.max(app.ui.failure_about(many, &label, &error.into())),
            }
        }
        app.ui.list_within("guests", 1, &rows, &COLUMNS, &WHERE_THERE_IS_ROOM, |guest| guest.name.clone())?;
        Ok(status)
    }
}
