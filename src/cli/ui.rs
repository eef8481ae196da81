//! The one renderer: data on standard output, words for people on standard error, and the exit status.

use std::error::Error;
use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use serde::Serialize;
use tabled::builder::Builder;
use tabled::settings::{Padding, Style};

use super::visible::{visible, visible_but_colours};
use crate::config::Diagnostics;
use crate::fetch::{Fault as FetchFault, FetchError};
use crate::guest::error::{Fault, GuestError};
use crate::host::error::HostError;
use crate::units::UnitError;

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ExitStatus {
    /// 0: done.
    Done,
    /// 1: the user can fix it.
    User,
    /// 2: ours, or the machine's.
    Machine,
    /// 2, of `plan`: there are changes. What is the machine's fault is 1 there, too.
    Changes,
    /// What the engine exited with, handed through by `vmm` and `run`.
    Engine(u8),
}

impl From<ExitStatus> for ExitCode {
    fn from(status: ExitStatus) -> Self {
        match status {
            ExitStatus::Done => 0.into(),
            ExitStatus::User => 1.into(),
            ExitStatus::Machine | ExitStatus::Changes => 2.into(),
            ExitStatus::Engine(code) => code.into(),
        }
    }
}

/// The next step, for the user; without the word `hint:` and without a final stop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hint(pub String);

/// Why a command did not do what it was asked. Any error becomes one with `?`: a guest's says itself
/// whose fault it is, any other is the user's, with the hint that [`hint_of`] finds in it.
#[derive(Debug)]
pub struct Failure {
    /// What the process exits with.
    pub status: ExitStatus,
    /// What went wrong, outermost first.
    pub error: anyhow::Error,
    /// What to do about it.
    pub hint: Option<Hint>,
}

/// What a verb returns.
pub type Outcome = Result<ExitStatus, Failure>;

impl Failure {
    /// The user's: lower-case, no final stop, the offending value in backticks.
    pub fn user(message: impl fmt::Display) -> Self {
        Self { status: ExitStatus::User, error: anyhow::anyhow!("{message}"), hint: None }
    }
    /// Ours, or the machine's.
    pub fn machine(error: impl Into<anyhow::Error>) -> Self {
        let error = error.into();
        let hint = hint_of(&error);
        Self { status: ExitStatus::Machine, error, hint }
    }
    /// The whole chain in one line.
    pub fn text(&self) -> String {
        self.error.chain().map(ToString::to_string).collect::<Vec<_>>().join(": ")
    }
    /// Whether the user can put it right.
    pub fn is_users(&self) -> bool {
        self.status == ExitStatus::User
    }
    /// With what to do about it.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(Hint(hint.into()));
        self
    }
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        let error: anyhow::Error = error.into();
        let error = match error.downcast::<GuestError>() {
            Ok(guest) => return Self::of_guest(guest),
            Err(error) => error,
        };
        let status = match error.downcast_ref::<FetchError>().map(FetchError::fault) {
            Some(FetchFault::Host) => ExitStatus::Machine,
            _ => ExitStatus::User,
        };
        let hint = hint_of(&error);
        Self { status, error, hint }
    }
}

impl Failure {
    /// An error of a guest says itself who can put it right; what is wrong with a file is shown with its places.
    fn of_guest(error: GuestError) -> Self {
        let status = match error.fault() {
            Fault::User => ExitStatus::User,
            Fault::Host => ExitStatus::Machine,
        };
        let hint = error.next_step().map(|hint| Hint(hint.to_owned()));
        match error.diagnostics() {
            Some(diagnostics) => Self { status, error: diagnostics.clone().into(), hint },
            None => Self { status, error: error.into(), hint },
        }
    }
}

/// The hint that an error of ours carries. An error type with hints has a line here.
fn hint_of(error: &anyhow::Error) -> Option<Hint> {
    let carried = |cause: &(dyn Error + 'static)| -> Option<String> {
        let unit = cause.downcast_ref::<UnitError>().and_then(|error| error.hint.clone());
        let guest = || cause.downcast_ref::<GuestError>()?.next_step().map(str::to_owned);
        let host = || cause.downcast_ref::<HostError>()?.next_step().map(str::to_owned);
        unit.or_else(guest).or_else(host).or_else(|| cause.downcast_ref::<FetchError>()?.next_step().map(str::to_owned))
    };
    error.chain().find_map(carried).map(Hint)
}

/// How a reading command prints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum OutputFormat {
    /// For people
    Table,
    /// For people with wide terminals
    Wide,
    /// One versioned document
    Json,
    /// One object a line
    Jsonl,
    /// Names only, one a line
    Name,
}

/// One column of a table.
pub struct Column<T> {
    /// Its head, in capitals.
    pub title: &'static str,
    /// Shown only with `-o wide`.
    pub wide: bool,
    /// Its text; an empty one prints as `-`.
    pub text: fn(&T) -> String,
}

/// A JSON document: what it is, the version of its shape, and the items.
#[derive(Serialize)]
struct Document<'a, T> {
    kind: &'a str,
    version: u32,
    items: &'a [T],
}

/// What prints.
#[derive(Debug, Clone)]
pub struct Ui {
    format: OutputFormat,
    quiet: bool,
    colour: bool,
    colour_data: bool,
    /// Standard error, and standard output, are a terminal's.
    terminals: (bool, bool),
}

impl Ui {
    /// `format` and `quiet` as the user asked. Colour goes to terminals unless `NO_COLOR` is set.
    pub fn new(format: OutputFormat, quiet: bool) -> Self {
        let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let terminals = (io::stderr().is_terminal(), io::stdout().is_terminal());
        Self { format, quiet, colour: !refused && terminals.0, colour_data: !refused && terminals.1, terminals }
    }

    /// The format that was asked for.
    pub fn format(&self) -> OutputFormat {
        self.format
    }

    /// Whether a program reads us.
    pub fn is_json(&self) -> bool {
        matches!(self.format, OutputFormat::Json | OutputFormat::Jsonl)
    }

    /// Data. A reader that has gone away ends the command quietly.
    pub fn data(&self, text: &str) -> Result<(), Failure> {
        match self.terminals.1 {
            // What a guest or a file chose is among it.
            true => self.write(&visible_but_colours(text.as_bytes())),
            false => self.write(text.as_bytes()),
        }
    }

    /// Data that need not be text, like what a guest has said: for a terminal, with all that it would obey as visible text.
    pub fn bytes(&self, bytes: &[u8]) -> Result<(), Failure> {
        match self.terminals.1 {
            true => self.write(&visible(bytes)),
            false => self.write(bytes),
        }
    }

    fn write(&self, bytes: &[u8]) -> Result<(), Failure> {
        let mut stdout = io::stdout().lock();
        match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
            Err(error) => Err(Failure::machine(anyhow::Error::new(error).context("cannot write to standard output"))),
        }
    }

    /// A list of things, in the format that was asked for. `kind` and `version` name the JSON document; a field may
    /// be added to an item without a new version, but none renamed or removed.
    pub fn list<T: Serialize>(
        &self,
        kind: &str,
        version: u32,
        items: &[T],
        columns: &[Column<T>],
        name: fn(&T) -> String,
    ) -> Result<(), Failure> {
        let text = match self.format {
            OutputFormat::Json => json(&Document { kind, version, items }, true),
            OutputFormat::Jsonl => items.iter().map(|item| json(item, false)).collect(),
            OutputFormat::Name => items.iter().map(|item| name(item) + "\n").collect(),
            OutputFormat::Table | OutputFormat::Wide => self.table(items, columns),
        };
        self.data(&text)
    }

    /// One thing, in the format that was asked for: `text` is what people read.
    pub fn record<T: Serialize>(&self, kind: &str, version: u32, item: &T, name: &str, text: &str) -> Result<(), Failure> {
        match self.format {
            OutputFormat::Json => self.data(&json(&Document { kind, version, items: std::slice::from_ref(item) }, true)),
            OutputFormat::Jsonl => self.data(&json(item, false)),
            OutputFormat::Name => self.data(&format!("{name}\n")),
            OutputFormat::Table | OutputFormat::Wide => self.data(text),
        }
    }

    /// A list of things, for people.
    pub fn table<T>(&self, items: &[T], columns: &[Column<T>]) -> String {
        let shown: Vec<_> = columns.iter().filter(|c| !c.wide || self.format == OutputFormat::Wide).collect();
        let mut builder = Builder::default();
        builder.push_record(shown.iter().map(|column| column.title.to_owned()));
        for item in items {
            builder.push_record(shown.iter().map(|column| {
                let text = (column.text)(item);
                let text = if text.is_empty() { "-".into() } else { text };
                // `top` draws it itself.
                match self.terminals.1 {
                    true => String::from_utf8_lossy(&visible(text.as_bytes())).into_owned(),
                    false => text,
                }
            }));
        }
        let mut table = builder.build();
        table.with(Style::empty()).with(Padding::new(0, 2, 0, 0));
        table.to_string().lines().map(|line| format!("{}\n", line.trim_end())).collect()
    }

    /// What was done, for people; `-q` and the JSON formats leave it out.
    pub fn done(&self, message: impl fmt::Display) {
        if !self.quiet && !self.is_json() {
            self.words(&format!("{message}\n"));
        }
    }

    /// What a question is about, on standard error; `-q` asks all the same.
    pub fn words_for_a_question(&self, text: &str) {
        self.words(text);
    }

    /// Whether somebody watches standard error and wants to: then bars can move there.
    pub fn is_watched(&self) -> bool {
        !self.quiet && !self.is_json() && io::stderr().is_terminal()
    }

    /// How far long work is, as a plain line; `-q` leaves it out.
    pub fn progress(&self, message: &str) {
        if !self.quiet {
            self.words(&format!("{message}\n"));
        }
    }

    /// Something that the user should know and that did not stop the command.
    pub fn warn(&self, message: impl fmt::Display) {
        self.words(&format!("{} {message}\n", self.paint("warning:", "1;33")));
    }

    /// Why a command failed: the chain, then the hint.
    pub fn failure(&self, failure: &Failure) {
        self.failure_of(None, failure);
    }

    fn failure_of(&self, subject: Option<&str>, failure: &Failure) {
        let mut text = String::new();
        if let Some(diagnostics) = failure.error.downcast_ref::<Diagnostics>() {
            text.push_str(&diagnostics.to_string());
        } else {
            let mut chain = failure.error.chain();
            let first = chain.next().map(ToString::to_string).unwrap_or_default();
            let named = subject.filter(|name| !first.contains(&format!("`{name}`")));
            let subject = named.map(|name| format!("{name}: ")).unwrap_or_default();
            text.push_str(&format!("{} {subject}{first}\n", self.paint("error:", "1;31")));
            for cause in chain {
                text.push_str(&format!("  because: {cause}\n"));
            }
        }
        if let Some(Hint(hint)) = &failure.hint {
            text.push_str(&format!("{} {hint}\n", self.paint("hint:", "1;36")));
        }
        self.words(&text);
    }

    /// Does the same to each, goes on after one fails, reports each failure with its name, and returns the worst
    /// status.
    pub fn each<T>(&self, items: &[T], name: impl Fn(&T) -> String, mut action: impl FnMut(&T) -> Outcome) -> Outcome {
        let mut worst = ExitStatus::Done;
        for item in items {
            let status = action(item).unwrap_or_else(|failure| {
                self.failure_of(Some(&name(item)), &failure);
                failure.status
            });
            worst = worst.max(status);
        }
        Ok(worst)
    }

    /// Reports the failure of one of several guests, with its name if there are `many`; returns the status.
    pub fn failure_about(&self, many: bool, name: &str, failure: &Failure) -> ExitStatus {
        self.failure_of(many.then_some(name), failure);
        failure.status
    }

    /// Whether data is read by somebody who sees colours.
    pub fn colours_data(&self) -> bool {
        self.colour_data
    }

    fn paint(&self, text: &str, code: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    /// Standard error may be gone; then there is nobody to tell.
    fn words(&self, text: &str) {
        let shown = if self.terminals.0 { visible_but_colours(text.as_bytes()) } else { text.as_bytes().into() };
        let _ = io::stderr().lock().write_all(&shown);
    }
}

fn json<T: Serialize + ?Sized>(value: &T, pretty: bool) -> String {
    let text = if pretty { serde_json::to_string_pretty(value) } else { serde_json::to_string(value) };
    text.expect("our own types have string keys and finite numbers") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Serialize)]
    struct Row {
        name: &'static str,
        size: u32,
    }

    const COLUMNS: [Column<Row>; 2] = [
        Column { title: "NAME", wide: false, text: |row| row.name.into() },
        Column { title: "SIZE", wide: true, text: |row| row.size.to_string() },
    ];

    #[test]
    fn a_wide_column_shows_only_in_the_wide_table() {
        let rows = [Row { name: "a", size: 1 }, Row { name: "", size: 22 }];
        let table =
            Ui { format: OutputFormat::Table, quiet: false, colour: false, colour_data: false, terminals: (false, false) };
        assert_eq!(table.table(&rows, &COLUMNS), "NAME\na\n-\n");
        let wide = Ui { format: OutputFormat::Wide, ..table };
        assert_eq!(wide.table(&rows, &COLUMNS), "NAME  SIZE\na     1\n-     22\n");
    }

    #[test]
    fn each_goes_on_after_a_failure_and_keeps_the_worst_status() {
        let ui = Ui { format: OutputFormat::Json, quiet: true, colour: false, colour_data: false, terminals: (false, false) };
        let mut seen = 0;
        let outcome = ui.each(
            &[1, 2, 3],
            |n| n.to_string(),
            |n| {
                seen += 1;
                if *n == 2 { Err(Failure::user("no")) } else { Ok(ExitStatus::Done) }
            },
        );
        assert_eq!((seen, outcome.unwrap()), (3, ExitStatus::User));
    }

    #[test]
    fn a_hint_in_an_error_of_ours_reaches_the_user() {
        let error = "512".parse::<crate::units::ByteSize>().unwrap_err();
        let failure = Failure::from(anyhow::Error::new(error).context("cannot grow the disk"));
        assert!(failure.hint.unwrap().0.contains("512M"));
    }
}
