//! `vmctl edit`: edits the files of guests.

use std::io::{BufRead, IsTerminal, Write};
use std::path::Path;
use std::process::Command;

use super::{App, ExitStatus, Failure, Guests, Outcome};
use crate::guest::edit::Edit;
use crate::guest::store::GuestDir;

/// Edit the files of guests
///
/// Uses `$VISUAL`, `$EDITOR` or vi. Problems are shown before anything is saved, and the editor is offered again. A
/// running guest gets the changes at its next boot; `info` shows that they are pending. While the editor is open, other
/// commands that change the file wait for it. If you give up, your text is kept in the guest's directory.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    guests: Guests,
}

impl Args {
    pub fn run(self, app: &App) -> Outcome {
        let context = app.context()?;
        app.each_in_turn(self.guests.choose(&context)?, |guest| {
            let mut edit = Edit::begin(guest, context.surroundings())?;
            if guest.kept_edit().exists() {
                app.ui.warn(format!("the text of an abandoned edit is kept in `{}`", guest.kept_edit().display()));
            }
            let copy = edit.copy()?;
            loop {
                open_editor(&copy)?;
                let failure = match edit.read_copy().and_then(|()| edit.save(context.surroundings())) {
                    Ok(true) => break app.ui.done(saved(guest)),
                    Ok(false) => break app.ui.done(format!("{}: nothing changed", guest.name())),
                    Err(error) => Failure::from(error),
                };
                app.ui.failure(&failure);
                if !again()? {
                    let kept = edit.keep();
                    return Err(Failure::user(format!("`{}` was not changed", guest.name()))
                        .hint(format!("your text is kept in `{}`", kept.display())));
                }
            }
            Ok(ExitStatus::Done)
        })
    }
}

fn saved(guest: &GuestDir) -> String {
    match super::stop::is_running(guest) {
        true => format!("{}: saved; it takes effect at the next boot (`vmctl restart {}`)", guest.name(), guest.name()),
        false => format!("{}: saved", guest.name()),
    }
}

fn open_editor(file: &Path) -> Result<(), Failure> {
    let set = |name: &str| std::env::var(name).ok().filter(|value| !value.trim().is_empty());
    let editor = set("VISUAL").or_else(|| set("EDITOR")).unwrap_or_else(|| "vi".into());
    // The variable may contain arguments and, by custom, is parsed by a shell.
    let status = Command::new("/bin/sh")
        .args(["-c", &format!("{editor} \"$1\""), "vmctl-edit"])
        .arg(file)
        .status()
        .map_err(|error| Failure::user(format!("cannot run `{editor}`: {error}")))?;
    match status.success() {
        true => Ok(()),
        false => Err(Failure::user(format!("the editor `{editor}` ended with {status}")).hint("set VISUAL or EDITOR to another")),
    }
}

fn again() -> Result<bool, Failure> {
    if !std::io::stdin().is_terminal() {
        return Ok(false);
    }
    let _ = write!(std::io::stderr(), "Edit again? [Y/n] ");
    let mut answer = String::new();
    let count = std::io::stdin().lock().read_line(&mut answer)?;
    Ok(count > 0 && !matches!(answer.trim(), "n" | "N" | "no"))
}
