//! `vmctl check`: says what is wrong with guest files, starting nothing.

use std::path::Path;

use serde::Serialize;

use super::source::GuestSource;
use super::{App, ExitStatus, Outcome};
use crate::config::fleet::is_fleet;
use crate::config::{DatastoreConfig, Diagnostic, Diagnostics, EngineKind, FleetRequest, GuestConfig, HostConfig, load_fleet};
use crate::guest::bhyve::needs;
use crate::guest::error::GuestError;
use crate::guest::named_files;
use crate::guest::store::Store;
use crate::host::program::is_freebsd;
use crate::inputs;

/// What tells a fleet file from a guest file; longer ones are refused by whoever reads them.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Check guest files and fleet files without starting anything
///
/// A fleet file is called `fleet.toml`, or has `[[guests]]`: all the guests that it means are checked. Without an argument, checks the host file and every guest of the datastore. Exits with 1 when something is wrong.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Guests, guest files or fleet files (with a slash, or `.toml` at the end)
    #[arg(value_name = "GUEST|FILE")]
    guests: Vec<String>,
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
        let (host, store) = app.host_and_datastore()?;
        let mut status = ExitStatus::Done;
        let mut sources = GuestSource::all(&store);
        if !self.guests.is_empty() {
            sources.clear();
            // A name that does not exist is reported with the others' problems.
            status = app.ui.each(&self.guests, String::clone, |argument| {
                sources.push(GuestSource::find(argument, &store)?);
                Ok(ExitStatus::Done)
            })?;
        }
        if app.ui.is_json() {
            let checked: Vec<Checked> =
                sources.iter().map(|source| checked(source, check(source, &host, &store, &self.sets).err())).collect();
            if !checked.iter().all(|item| item.ok) {
                status = status.max(ExitStatus::User);
            }
            app.ui.list("check", 1, &checked, &[], |item| item.name.clone())?;
            return Ok(status);
        }
        let checked = app.ui.each(&sources, GuestSource::shown, |source| {
            check(source, &host, &store, &self.sets)?;
            app.ui.done(format!("{}: ok", source.shown()));
            Ok(ExitStatus::Done)
        })?;
        Ok(status.max(checked))
    }
}

/// Checks a guest file, or all the guests of a fleet file.
fn check(source: &GuestSource, host: &HostConfig, store: &DatastoreConfig, sets: &[String]) -> Result<(), Diagnostics> {
    // What cannot be read is reported by whoever reads it next.
    let text = match source.name {
        None => inputs::read_text(&source.file, MAX_FILE_BYTES).unwrap_or_default(),
        Some(_) => String::new(),
    };
    if is_fleet(&source.file, &text) {
        if let Some(set) = sets.first() {
            let message = format!("`--set {set}` goes with guest files, and `{}` is a fleet file", source.file.display());
            return Err(Diagnostic::plain(message).into());
        }
        let datastore = std::path::absolute(&store.path).unwrap_or_else(|_| store.path.clone());
        let config = DatastoreConfig { path: datastore.clone(), ..store.clone() };
        let engines = Store::new(&config, Path::new("")).settled_engines();
        let fleet = load_fleet(&FleetRequest { file: &source.file, text: None, host, datastore: &datastore, engines: &engines })?;
        let of_guest = |config: &GuestConfig| {
            let name = config.name.clone();
            named_files::problems(config).into_iter().map(move |(key, error)| {
                Diagnostic::plain(error.chain())
                    .note(format!("it is `{key}` of guest `{name}`"))
                    .maybe_hint(error.next_step().map(str::to_owned))
            })
        };
        return none_or(fleet.guests.iter().flat_map(|guest| of_guest(&guest.config)).collect());
    }
    let loaded = source.load(host, store, sets)?;
    let mut problems: Vec<Diagnostic> = named_files::problems(&loaded.config)
        .into_iter()
        .map(|(key, error)| {
            Diagnostic::at(&loaded.place_of(&key), error.chain()).maybe_hint(error.next_step().map(str::to_owned))
        })
        .collect();
    // What this host cannot do for the guest as it is set up now; elsewhere the file may be right all the same.
    if loaded.config.engine == EngineKind::Bhyve && is_freebsd() {
        problems.extend(needs::network(&loaded.config).err().map(|error| refused(&error)));
    }
    none_or(problems)
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
