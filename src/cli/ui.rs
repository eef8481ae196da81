//! The one renderer: data on standard output, messages on standard error, and the exit status.

use std::error::Error;
use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;
use std::sync::Arc;

use serde::Serialize;
use tabled::builder::Builder;
use tabled::settings::{Padding, Style};

use super::progress::{Awaited, Display, Wait};
use super::visible::{visible, visible_but_colours};
use crate::config::Diagnostics;
use crate::error::Fault;
use crate::host::terminal::own_window_size;
use crate::units::UnitError;

/// Result of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ExitStatus {
    /// 0: done.
    Done,
    /// 1: the user can fix it.
    User,
    /// 2: an error of vmctl or of the machine.
    Machine,
    /// 2, of `plan`: there are changes. There, an error of the machine is 1 too.
    Changes,
    /// Exit code of the engine, which `vmm` and `run` pass on, or of a command in the guest, which `exec` does.
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

/// The next step for the user, without the word `hint:` and without a final stop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hint(pub String);

/// Reason why a command failed. Any error becomes one with `?`: an error of a guest has its own cause, any other counts
/// as the user's, with the hint that [`hint_of`] finds in it.
#[derive(Debug)]
pub struct Failure {
    /// Exit status of the process.
    pub status: ExitStatus,
    /// The error, with its causes.
    pub error: anyhow::Error,
    /// Hint for the user.
    pub hint: Option<Hint>,
}

/// The result of a verb.
pub type Outcome = Result<ExitStatus, Failure>;

impl Failure {
    /// Creates a failure that the user can fix: lower-case, no final stop, the offending value in backticks.
    pub fn user(message: impl fmt::Display) -> Self {
        Self { status: ExitStatus::User, error: anyhow::anyhow!("{message}"), hint: None }
    }
    /// Creates a failure of vmctl or of the machine.
    pub fn machine(error: impl Into<anyhow::Error>) -> Self {
        let error = error.into();
        let hint = hint_of(&error);
        Self { status: ExitStatus::Machine, error, hint }
    }
    /// Returns the whole chain of causes in one line.
    pub fn text(&self) -> String {
        self.error.chain().map(ToString::to_string).collect::<Vec<_>>().join(": ")
    }
    /// Returns whether the user can fix it.
    pub fn is_users(&self) -> bool {
        self.status == ExitStatus::User
    }
    /// Adds what to do about it.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(Hint(hint.into()));
        self
    }
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        let error: anyhow::Error = error.into();
        let ours = error.downcast_ref::<crate::error::Error>();
        let status = match ours.map(crate::error::Error::fault) {
            Some(Fault::Host) => ExitStatus::Machine,
            Some(Fault::User | Fault::Interrupted) | None => ExitStatus::User,
        };
        let hint = hint_of(&error);
        // Problems of a file are shown with their positions.
        match ours.and_then(|error| error.attached::<Diagnostics>()) {
            Some(diagnostics) => Self { status, error: diagnostics.clone().into(), hint },
            None => Self { status, error, hint },
        }
    }
}

/// Returns the hint in one of our errors. Every error type with hints has a line here.
fn hint_of(error: &anyhow::Error) -> Option<Hint> {
    let carried = |cause: &(dyn Error + 'static)| -> Option<String> {
        let unit = cause.downcast_ref::<UnitError>().and_then(|error| error.hint.clone());
        unit.or_else(|| cause.downcast_ref::<crate::error::Error>()?.next_step().map(str::to_owned))
    };
    error.chain().find_map(carried).map(Hint)
}

/// Output format of a reading command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum OutputFormat {
    /// For people
    Table,
    /// For people with wide terminals
    Wide,
    /// One versioned document
    Json,
    /// One object per line
    Jsonl,
    /// Names only, one per line
    Name,
}

/// One column of a table.
pub struct Column<T> {
    /// Heading, in capitals.
    pub title: &'static str,
    /// Whether it is shown only with `-o wide`.
    pub wide: bool,
    /// Its text. An empty one is printed as `-`.
    pub text: fn(&T) -> String,
}

/// A JSON document: its kind, the version of its format, and the items.
#[derive(Serialize)]
struct Document<'a, T> {
    kind: &'a str,
    version: u32,
    items: &'a [T],
}

/// The renderer.
#[derive(Debug, Clone)]
pub struct Ui {
    format: OutputFormat,
    quiet: bool,
    colour: bool,
    colour_data: bool,
    /// Whether standard error, and standard output, are terminals.
    terminals: (bool, bool),
    display: Arc<Display>,
}

impl Ui {
    /// Creates the renderer for the user's `format` and `quiet`. Terminals get colour unless `NO_COLOR` is set.
    pub fn new(format: OutputFormat, quiet: bool) -> Self {
        let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let terminals = (io::stderr().is_terminal(), io::stdout().is_terminal());
        let silent = quiet || matches!(format, OutputFormat::Json | OutputFormat::Jsonl);
        let display = Display::new(silent, terminals.0);
        Self { format, quiet, colour: !refused && terminals.0, colour_data: !refused && terminals.1, terminals, display }
    }

    /// Returns the requested format.
    pub fn format(&self) -> OutputFormat {
        self.format
    }

    /// Returns whether the output is for a program.
    pub fn is_json(&self) -> bool {
        matches!(self.format, OutputFormat::Json | OutputFormat::Jsonl)
    }

    /// Prints data. A closed output ends the command without a message.
    pub fn data(&self, text: &str) -> Result<(), Failure> {
        match self.terminals.1 {
            // It may contain text from a guest or a file.
            true => self.write(&visible_but_colours(text.as_bytes())),
            false => self.write(text.as_bytes()),
        }
    }

    /// Prints data that need not be text, like the output of a guest. For a terminal, control characters are printed as
    /// visible text.
    pub fn bytes(&self, bytes: &[u8]) -> Result<(), Failure> {
        match self.terminals.1 {
            true => self.write(&visible(bytes)),
            false => self.write(bytes),
        }
    }

    /// Prints what a command in a guest has written to its standard output and to its standard error, each to ours.
    pub fn of_command(&self, out: &[u8], err: &[u8]) -> Result<(), Failure> {
        self.bytes(out)?;
        let written = self.display.aside(|| match self.terminals.0 {
            true => io::stderr().write_all(&visible(err)),
            false => io::stderr().write_all(err),
        });
        written.map_err(|error| Failure::machine(anyhow::Error::new(error).context("cannot write to standard error")))
    }

    fn write(&self, bytes: &[u8]) -> Result<(), Failure> {
        let write = || {
            let mut stdout = io::stdout().lock();
            stdout.write_all(bytes).and_then(|()| stdout.flush())
        };
        match self.display.aside(write) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
            Err(error) => Err(Failure::machine(anyhow::Error::new(error).context("cannot write to standard output"))),
        }
    }

    /// Prints a list of things, in the requested format. `kind` and `version` name the JSON document. A field may be
    /// added to an item without a new version, but none may be renamed or removed.
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

    /// Prints a list as [`Ui::list`] does, but on a terminal without the first of `optional` columns that it has no room
    /// for.
    pub fn list_within<T: Serialize>(
        &self,
        kind: &str,
        version: u32,
        items: &[T],
        columns: &[Column<T>],
        optional: &[&str],
        name: fn(&T) -> String,
    ) -> Result<(), Failure> {
        let room = self.columns().filter(|_| self.format == OutputFormat::Table);
        let Some(room) = room else { return self.list(kind, version, items, columns, name) };
        let fitting = (0..=optional.len()).map(|left_out| self.table_without(items, columns, &optional[..left_out]));
        let mut fitting = fitting.peekable();
        while let Some(table) = fitting.next() {
            let width = table.lines().map(|line| line.chars().count()).max().unwrap_or(0);
            if width <= room || fitting.peek().is_none() {
                return self.data(&table);
            }
        }
        Ok(())
    }

    /// Prints one thing, in the requested format. `text` is the form for users.
    pub fn record<T: Serialize>(&self, kind: &str, version: u32, item: &T, name: &str, text: &str) -> Result<(), Failure> {
        match self.format {
            OutputFormat::Json => self.data(&json(&Document { kind, version, items: std::slice::from_ref(item) }, true)),
            OutputFormat::Jsonl => self.data(&json(item, false)),
            OutputFormat::Name => self.data(&format!("{name}\n")),
            OutputFormat::Table | OutputFormat::Wide => self.data(text),
        }
    }

    /// Prints a list of things for users.
    pub fn table<T>(&self, items: &[T], columns: &[Column<T>]) -> String {
        self.table_without(items, columns, &[])
    }

    fn table_without<T>(&self, items: &[T], columns: &[Column<T>], left_out: &[&str]) -> String {
        let asked = |column: &&Column<T>| !column.wide || self.format == OutputFormat::Wide;
        let shown: Vec<_> = columns.iter().filter(asked).filter(|column| !left_out.contains(&column.title)).collect();
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

    /// Reports what was done, to users. `-q` and the JSON formats suppress it.
    pub fn done(&self, message: impl fmt::Display) {
        if !self.quiet && !self.is_json() {
            self.words(&format!("{message}\n"));
        }
    }

    /// Prints the subject of a question on standard error, also with `-q`.
    pub fn words_for_a_question(&self, text: &str) {
        self.words(text);
    }

    /// Returns what shows the progress of long work.
    pub fn display(&self) -> &Arc<Display> {
        &self.display
    }

    /// Shows that the command waits for something, until the result is dropped.
    pub fn wait(&self, awaited: Awaited) -> Wait {
        self.display.wait(awaited)
    }

    /// Prints the progress of long work as a plain line. `-q` suppresses it.
    pub fn progress(&self, message: &str) {
        if !self.quiet {
            self.words(&format!("{message}\n"));
        }
    }

    /// Prints a warning: something that the user should know and that did not stop the command.
    pub fn warn(&self, message: impl fmt::Display) {
        self.words(&format!("{} {message}\n", self.paint("warning:", "1;33")));
    }

    /// Prints why a command failed: the chain of causes, then the hint.
    pub fn failure(&self, failure: &Failure) {
        self.failure_of(None, failure);
    }

    fn failure_of(&self, subject: Option<&str>, failure: &Failure) {
        let mut text = String::new();
        if let Some(diagnostics) = failure.error.downcast_ref::<Diagnostics>() {
            text.push_str(&self.painted(&diagnostics.to_string()));
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
        // On a terminal, Ctrl-C also ends the program that the command was waiting for, which is then the failure.
        if let Some(words) = self.display.broken_off() {
            text.push_str(&format!("interrupted: {words}\n"));
        }
        self.words(&text);
    }

    /// Runs an action on each item. Continues after a failure, reports each failure with its name, and returns the
    /// worst status.
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

    /// Reports the failure of one of several guests, with its name if there are `many`. Returns the status.
    pub fn failure_about(&self, many: bool, name: &str, failure: &Failure) -> ExitStatus {
        self.failure_of(many.then_some(name), failure);
        failure.status
    }

    /// Returns whether data is shown with colours.
    pub fn colours_data(&self) -> bool {
        self.colour_data
    }

    /// Returns the text of diagnostics with the same colours as that of other failures.
    fn painted(&self, diagnostics: &str) -> String {
        let is_caret = |line: &str| line.contains('^') && line.trim_matches([' ', '\t', '^']).is_empty();
        let paint = |line: &str| match line.split_once(':').map(|(word, rest)| (word.trim_start(), rest)) {
            Some(("error", rest)) => format!("{}{rest}", self.paint("error:", "1;31")),
            Some(("hint", rest)) => line.replacen(&format!("hint:{rest}"), &format!("{}{rest}", self.paint("hint:", "1;36")), 1),
            _ if is_caret(line) => self.paint(line, "1;31"),
            _ => line.to_owned(),
        };
        diagnostics.lines().map(|line| paint(line) + "\n").collect()
    }

    /// Returns the number of columns of the terminal that data goes to.
    pub fn columns(&self) -> Option<usize> {
        let size = own_window_size().filter(|_| self.terminals.1);
        size.map(|(_, columns)| usize::from(columns))
    }

    fn paint(&self, text: &str, code: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    /// Prints to standard error. If that is closed, there is no reader.
    fn words(&self, text: &str) {
        let shown = if self.terminals.0 { visible_but_colours(text.as_bytes()) } else { text.as_bytes().into() };
        self.display.aside(|| {
            let _ = io::stderr().lock().write_all(&shown);
        });
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
        let table = Ui::new(OutputFormat::Table, false);
        assert_eq!(table.table(&rows, &COLUMNS), "NAME\na\n-\n");
        let wide = Ui { format: OutputFormat::Wide, ..table };
        assert_eq!(wide.table(&rows, &COLUMNS), "NAME  SIZE\na     1\n-     22\n");
    }

    #[test]
    fn each_goes_on_after_a_failure_and_keeps_the_worst_status() {
        let ui = Ui::new(OutputFormat::Json, true);
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
    fn diagnostics_have_the_colours_of_other_failures_and_no_other_bytes() {
        let text =
            "a.toml:2:1: unknown key `memry`\n    memry = \"1G\"\n    ^^^^^\n    hint: did you mean `memory`?\nerror: x: y\n";
        let ui = |colour| Ui { colour, ..Ui::new(OutputFormat::Table, true) };
        assert_eq!(ui(false).painted(text), text);
        let painted = ui(true).painted(text);
        let (red, cyan, end) = ("\x1b[1;31m", "\x1b[1;36m", "\x1b[0m");
        assert!(
            painted.contains(&format!(
                "\n{red}    ^^^^^{end}\n    {cyan}hint:{end} did you mean `memory`?\n{red}error:{end} x: y\n"
            ))
        );
        assert_eq!([red, cyan, end].iter().fold(painted.clone(), |text, code| text.replace(code, "")), text);
    }

    #[test]
    fn a_hint_in_an_error_of_ours_reaches_the_user() {
        let error = "512".parse::<crate::units::ByteSize>().unwrap_err();
        let failure = Failure::from(anyhow::Error::new(error).context("cannot grow the disk"));
        assert!(failure.hint.unwrap().0.contains("512M"));
    }
}
