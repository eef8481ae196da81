//! `vmctl check`: says what is wrong with guest files, starting nothing.

use std::path::Path;

use serde::Serialize;

use super::source::GuestSource;
use super::{App, ExitStatus, Outcome};
use crate::config::fleet::is_fleet;
use crate::config::{DatastoreConfig, Diagnostic, Diagnostics, EngineKind, FleetRequest, HostConfig, load_fleet};
use crate::guest::bhyve::needs;
use crate::guest::error::GuestError;
use crate::guest::store::Store;
use crate::host::program::is_freebsd;

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
    let text = if source.name.is_none() { std::fs::read_to_string(&source.file).unwrap_or_default() } else { String::new() };
    if is_fleet(&source.file, &text) {
        if let Some(set) = sets.first() {
            let message = format!("`--set {set}` goes with guest files, and `{}` is a fleet file", source.file.display());
            return Err(Diagnostic::plain(message).into());
        }
        let datastore = std::path::absolute(&store.path).unwrap_or_else(|_| store.path.clone());
        let config = DatastoreConfig { path: datastore.clone(), ..store.clone() };
        let engines = Store::new(&config, Path::new("")).settled_engines();
        return load_fleet(&FleetRequest { file: &source.file, text: None, host, datastore: &datastore, engines: &engines })
            .map(drop);
    }
    let config = source.load(host, store, sets)?.config;
    // What this host cannot do for the guest as it is set up now; elsewhere the file may be right all the same.
    match config.engine == EngineKind::Bhyve && is_freebsd() {
        true => needs::network(&config).map_err(|error| refused(&error).into()),
        false => Ok(()),
    }
}

fn refused(error: &GuestError) -> Diagnostic {
    let problem = Diagnostic::plain(error.to_string());
    match error.next_step() {
        Some(hint) => problem.hint(hint),
        None => problem,
    }
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
