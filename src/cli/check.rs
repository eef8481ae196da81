//! `vmctl check`: checks guest files and starts nothing.

use serde::Serialize;

use super::selection::{CommandContext, map_in_order};
use super::source::GuestSource;
use super::{App, ExitStatus, Outcome};
use crate::config::fleet::is_fleet;
use crate::config::{Diagnostic, Diagnostics, EngineKind, FleetRequest, LoadedGuest, load_fleet};
use crate::guest::engine::bhyve::needs;
use crate::guest::error::GuestError;
use crate::guest::images::KnownImages;
use crate::guest::preflight::{Moment, Preflight};
use crate::guest::store::GuestDir;
use crate::host::program::is_freebsd;
use crate::inputs;

/// Maximum number of bytes that are read to distinguish a fleet file from a guest file. Larger files are refused later.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Check guest files and fleet files without starting anything
///
/// Also checks them against this host: the files that they name, images, ports in use, memory, free space for disks.
/// With `--offline`, checks the guest files alone.
///
/// A fleet file is called `fleet.toml`, or has `[[guests]]`: all its guests are checked. Without an argument, checks
/// the host file and every guest of the datastore. Exits with 1 when something is wrong.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Guests, guest files or fleet files (with a slash, or `.toml` at the end)
    #[arg(value_name = "GUEST|FILE")]
    guests: Vec<String>,
    /// Check the files alone, and not what this host has: other files, images, ports, memory, free space
    #[arg(long)]
    offline: bool,
    /// Override a key, like `memory=2G` or `disks.root.size=20G`
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
}

/// Result for one guest file, in the JSON formats.
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
        let context = app.context_to_look()?;
        let images = KnownImages::new(&context.host);
        let looking = Looking { context: &context, images: &images, sets: &self.sets, offline: self.offline };
        let store = context.datastore();
        let mut status = ExitStatus::Done;
        let mut sources = GuestSource::all(store);
        if !self.guests.is_empty() {
            sources.clear();
            // A name that does not exist is reported with the problems of the others.
            status = app.ui.each(&self.guests, String::clone, |argument| {
                sources.push(GuestSource::find(argument, store)?);
                Ok(ExitStatus::Done)
            })?;
        }
        let looked = map_in_order(sources.iter().collect(), || (), |(), source| looking.check(source));
        if app.ui.is_json() {
            let checked: Vec<Checked> =
                sources.iter().zip(looked).map(|(source, looked)| checked(source, looked.err())).collect();
            if !checked.iter().all(|item| item.ok) {
                status = status.max(ExitStatus::User);
            }
            app.ui.list("check", 1, &checked, &[], |item| item.name.clone())?;
            return Ok(status);
        }
        for (source, looked) in sources.iter().zip(looked) {
            let name = source.display_name();
            match looked {
                Ok(()) => app.ui.done(format!("{name}: ok")),
                Err(problems) => status = status.max(app.ui.failure_about(true, &name, &problems.into())),
            }
        }
        Ok(status)
    }
}

/// How guest files are checked.
struct Looking<'a> {
    context: &'a CommandContext,
    images: &'a KnownImages<'a>,
    sets: &'a [String],
    offline: bool,
}

impl Looking<'_> {
    /// Checks a guest file, or all the guests of a fleet file.
    fn check(&self, source: &GuestSource) -> Result<(), Diagnostics> {
        // A file that cannot be read is reported by the next step.
        let text = match source.name {
            None => inputs::read_text(&source.file, MAX_FILE_BYTES).ok(),
            Some(_) => None,
        };
        if is_fleet(&source.file, text.as_deref().unwrap_or_default()) {
            return self.check_fleet(source);
        }
        let guest = source.name.as_ref().and_then(|name| self.context.store.guest(name).ok());
        let surroundings = self.context.surroundings();
        let loaded = source.load_text(text.as_deref(), surroundings.host, self.context.datastore(), self.sets)?;
        if self.offline {
            return Ok(());
        }
        let looked = self.preflight(guest.as_ref()).check(&loaded, Moment::Asking);
        let mut problems = looked.err().unwrap_or_default().0;
        // Reports what this host cannot do for the guest at present. On another host the file may be right
        // nevertheless.
        if loaded.config.engine == EngineKind::Bhyve && is_freebsd() {
            problems.extend(needs::network(&loaded.config).err().map(|error| refused(&error)));
        }
        none_or(problems)
    }

    fn preflight<'b>(&'b self, guest: Option<&'b GuestDir>) -> Preflight<'b> {
        Preflight { store: &self.context.store, surroundings: self.context.surroundings(), images: self.images, guest }
    }

    fn check_fleet(&self, source: &GuestSource) -> Result<(), Diagnostics> {
        if let Some(set) = self.sets.first() {
            let message = format!("`--set {set}` goes with guest files, and `{}` is a fleet file", source.file.display());
            return Err(Diagnostic::plain(message).into());
        }
        let surroundings = self.context.surroundings();
        let engines = self.context.store.settled_engines();
        let request = FleetRequest {
            file: &source.file,
            text: None,
            host: surroundings.host,
            datastore: surroundings.datastore,
            engines: &engines,
        };
        let fleet = load_fleet(&request)?;
        let mut problems: Vec<Diagnostic> = Vec::new();
        for guest in fleet.here().filter(|_| !self.offline) {
            let name = &guest.config.name;
            let there = self.context.store.guest(name).ok();
            let loaded = LoadedGuest { config: guest.config.clone(), resolved: guest.resolved.clone() };
            let looked = self.preflight(there.as_ref()).check(&loaded, Moment::Asking);
            for problem in looked.err().unwrap_or_default().0 {
                // The guests of an entry have most of it in common.
                if !problems.iter().any(|other| other.message == problem.message && other.location == problem.location) {
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
        name: source.display_name(),
        file: source.file.display().to_string(),
        ok: problems.is_empty(),
        problems: problems
            .into_iter()
            .map(|problem| {
                let position = problem.location.as_ref().map(|at| at.line_column());
                Problem {
                    message: problem.message,
                    source: problem.location.map(|at| at.source.label.clone()),
                    line: position.map(|(line, _)| line),
                    column: position.map(|(_, column)| column),
                    notes: problem.notes,
                    hint: problem.hint,
                }
            })
            .collect(),
    }
}
