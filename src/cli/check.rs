//! `vmctl check`: says what is wrong with guest files, starting nothing.

use serde::Serialize;

use super::selection::Place;
use super::source::GuestSource;
use super::{App, ExitStatus, Outcome};
use crate::config::fleet::is_fleet;
use crate::config::{Diagnostic, Diagnostics, EngineKind, FleetRequest, LoadedGuest, load_fleet};
use crate::guest::bhyve::needs;
use crate::guest::error::GuestError;
use crate::guest::preflight::{Moment, Preflight};
use crate::host::program::is_freebsd;
use crate::inputs;

/// What tells a fleet file from a guest file; longer ones are refused by whoever reads them.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Check guest files and fleet files without starting anything
///
/// Also looks at what this host has: the files that are named, images, ports that are in use, memory, room for disks; with
/// `--offline`, at the guest files alone.
///
/// A fleet file is called `fleet.toml`, or has `[[guests]]`: all the guests that it means are checked. Without an argument, checks the host file and every guest of the datastore. Exits with 1 when something is wrong.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Guests, guest files or fleet files (with a slash, or `.toml` at the end)
    #[arg(value_name = "GUEST|FILE")]
    guests: Vec<String>,
    /// Look at the files alone, and leave out what this host has: other files, images, ports, memory, room
    #[arg(long)]
    offline: bool,
    /// Override a key, like `memory=2G` or `disks.root.size=20G`
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
}

/// One guest file, in the JSON formats.
#[derive(Serialize)]
struct Checked {
    name: String,
    file: String,
    ok: bool,
    problems: Vec<Problem>,
}

#[derive(Serialize)]
struct Problem {
    message: String,
    source: Option<String>,
    line: Option<usize>,
    column: Option<usize>,
    notes: Vec<String>,
    hint: Option<String>,
}

impl Args {
    pub fn run(self, app: &App) -> Outcome {
        let place = app.place_to_look()?;
        let looking = Looking { place: &place, sets: &self.sets, offline: self.offline };
        let store = place.datastore();
        let mut status = ExitStatus::Done;
        let mut sources = GuestSource::all(store);
        if !self.guests.is_empty() {
            sources.clear();
            // A name that does not exist is reported with the others' problems.
            status = app.ui.each(&self.guests, String::clone, |argument| {
                sources.push(GuestSource::find(argument, store)?);
                Ok(ExitStatus::Done)
            })?;
        }
        if app.ui.is_json() {
            let checked: Vec<Checked> = sources.iter().map(|source| checked(source, looking.check(source).err())).collect();
            if !checked.iter().all(|item| item.ok) {
                status = status.max(ExitStatus::User);
            }
            app.ui.list("check", 1, &checked, &[], |item| item.name.clone())?;
            return Ok(status);
        }
        let checked = app.ui.each(&sources, GuestSource::shown, |source| {
            looking.check(source)?;
            app.ui.done(format!("{}: ok", source.shown()));
            Ok(ExitStatus::Done)
        })?;
        Ok(status.max(checked))
    }
}

/// How guest files are looked at.
struct Looking<'a> {
    place: &'a Place,
    sets: &'a [String],
    offline: bool,
}

impl Looking<'_> {
    /// Checks a guest file, or all the guests of a fleet file.
    fn check(&self, source: &GuestSource) -> Result<(), Diagnostics> {
        // What cannot be read is reported by whoever reads it next.
        let text = match source.name {
            None => inputs::read_text(&source.file, MAX_FILE_BYTES).unwrap_or_default(),
            Some(_) => String::new(),
        };
        if is_fleet(&source.file, &text) {
            return self.check_fleet(source);
        }
        let guest = source.name.as_ref().and_then(|name| self.place.store.guest(name).ok());
        let around = self.place.around();
        let loaded = source.load(around.host, self.place.datastore(), self.sets)?;
        if self.offline {
            return Ok(());
        }
        let looked = Preflight { store: &self.place.store, around, guest: guest.as_ref() }.check(&loaded, Moment::Asking);
        let mut problems = looked.err().unwrap_or_default().0;
        // What this host cannot do for the guest as it is set up now; elsewhere the file may be right all the same.
        if loaded.config.engine == EngineKind::Bhyve && is_freebsd() {
            problems.extend(needs::network(&loaded.config).err().map(|error| refused(&error)));
        }
        none_or(problems)
    }

    fn check_fleet(&self, source: &GuestSource) -> Result<(), Diagnostics> {
        if let Some(set) = self.sets.first() {
            let message = format!("`--set {set}` goes with guest files, and `{}` is a fleet file", source.file.display());
            return Err(Diagnostic::plain(message).into());
        }
        let around = self.place.around();
        let engines = self.place.store.settled_engines();
        let request =
            FleetRequest { file: &source.file, text: None, host: around.host, datastore: around.datastore, engines: &engines };
        let fleet = load_fleet(&request)?;
        let mut problems: Vec<Diagnostic> = Vec::new();
        for guest in fleet.here().filter(|_| !self.offline) {
            let name = &guest.config.name;
            let there = self.place.store.guest(name).ok();
            let loaded = LoadedGuest { config: guest.config.clone(), resolved: guest.resolved.clone() };
            let looked = Preflight { store: &self.place.store, around, guest: there.as_ref() }.check(&loaded, Moment::Asking);
            for problem in looked.err().unwrap_or_default().0 {
                // The guests of an entry have most of it in common.
                if !problems.iter().any(|other| other.message == problem.message && other.place == problem.place) {
                    problems.push(problem.note(format!("of guest `{name}`")));
                }
            }
        }
        none_or(problems)
    }
}

fn refused(error: &GuestError) -> Diagnostic {
    Diagnostic::plain(error.to_string()).maybe_hint(error.next_step().map(str::to_owned))
}

fn none_or(problems: Vec<Diagnostic>) -> Result<(), Diagnostics> {
    if problems.is_empty() { Ok(()) } else { Err(Diagnostics(problems)) }
}

fn checked(source: &GuestSource, problems: Option<Diagnostics>) -> Checked {
    let problems = problems.unwrap_or_default().0;
    Checked {
        name: source.shown(),
        file: source.file.display().to_string(),
        ok: problems.is_empty(),
        problems: problems
            .into_iter()
            .map(|problem| {
                let position = problem.place.as_ref().map(|place| place.line_column());
                Problem {
                    message: problem.message,
                    source: problem.place.map(|place| place.source.label.clone()),
                    line: position.map(|(line, _)| line),
                    column: position.map(|(_, column)| column),
                    notes: problem.notes,
                    hint: problem.hint,
                }
            })
            .collect(),
    }
}
