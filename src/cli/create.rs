//! `vmctl create`: makes guests.

use std::path::{Path, PathBuf};

use super::progress::{Awaited, ProgressDisplay, watch_signals};
use super::project;
use super::selection::CommandContext;
use super::{App, ExitStatus, Failure, Outcome};
use crate::config::layer::MAX_FILE_BYTES;
use crate::config::validate::is_guest_name;
use crate::config::{GuestRequest, load_guest};
use crate::guest::create::{self, Origin};
use crate::guest::store::{GuestDir, Store};
use crate::inputs::read_text;

/// Make guests from a guest file or a template
///
/// Makes the disks. If a step fails, nothing is left behind. Does not start the guest.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    guests: NewGuestArgs,
}

/// The guests to make, and their source.
#[derive(Debug, Clone, clap::Args)]
pub struct NewGuestArgs {
    /// Names of the new guests; the file's own name or `name` key if left out, or a name after the template's
    #[arg(value_name = "NAME", required_unless_present_any = ["file", "template"])]
    pub names: Vec<String>,
    #[command(flatten)]
    pub source: SourceArgs,
    /// The guests are started at once: those that cannot run here are not made.
    #[arg(skip)]
    pub to_start: bool,
}

/// The source of new guests, and changes of it.
#[derive(Debug, Clone, clap::Args)]
pub struct SourceArgs {
    /// Guest file, which stays where it is and is read again before every boot
    #[arg(short, long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// Copy the guest file into the datastore
    #[arg(long, requires = "file")]
    pub copy: bool,
    /// Template to use instead of a guest file
    #[arg(short, long, value_name = "TEMPLATE", conflicts_with = "file")]
    pub template: Option<String>,
    /// Set a key in the new guest's file, like `memory=2G` or `disks.root.size=20G`
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub sets: Vec<String>,
}

impl Args {
    pub fn run(self, app: &App) -> Outcome {
        watch_signals();
        let context = app.context()?;
        self.guests.each(app, &context, |guest| {
            app.ui.done(format!("{} is made", guest.name()));
            Ok(ExitStatus::Done)
        })
    }
}

impl NewGuestArgs {
    /// Creates those for guests that are started at once: the ones that cannot run here are not made.
    pub fn to_start(names: Vec<String>, source: SourceArgs) -> NewGuestArgs {
        NewGuestArgs { names, source, to_start: true }
    }

    /// Makes each guest, and then calls a function with it.
    pub fn each(&self, app: &App, context: &CommandContext, mut then: impl FnMut(&GuestDir) -> Outcome) -> Outcome {
        let SourceArgs { file, copy, template, sets } = &self.source;
        let origin = match (file, template) {
            (Some(path), _) => Origin::File { path: path.clone(), copy: *copy },
            (None, Some(template)) => Origin::Template(template.clone()),
            (None, None) => return Err(Failure::user("neither `--file` nor `--template` is given")),
        };
        let names = match (&self.names[..], file, template) {
            ([], Some(file), _) => vec![name_in(file, sets, context)?],
            ([], None, Some(template)) => vec![free_name(template, &context.store)?],
            (names, ..) => names.to_vec(),
        };
        let progress = ProgressDisplay::new(&app.ui);
        app.ui.each(&names, String::clone, |name| {
            if self.to_start {
                create::check_engine(name, &origin, sets, context.surroundings())?;
            }
            let shown = app.ui.wait(Awaited::making(name));
            let guest = create::create(&context.store, name, &origin, sets, context.surroundings(), &progress)?;
            drop(shown);
            then(&guest)
        })
    }
}

/// Returns the name that a guest file gives: that of its folder, where it is called as the files of projects are and has
/// no `name`.
pub fn name_in(file: &Path, sets: &[String], context: &CommandContext) -> Result<String, Failure> {
    let is_of_project = file.file_name().is_some_and(|name| project::FILES.iter().any(|other| name == *other));
    let has_name = |text: &str| text.parse::<toml::Table>().is_ok_and(|table| table.contains_key("name"));
    if is_of_project
        && !sets.iter().any(|set| set.starts_with("name="))
        && read_text(file, MAX_FILE_BYTES as u64).is_ok_and(|text| !has_name(&text))
        && let Some(folder) = std::path::absolute(file)?.parent().and_then(Path::file_name)
    {
        return Ok(as_name(&folder.to_string_lossy()));
    }
    let surroundings = context.surroundings();
    let (host, datastore) = (surroundings.host, surroundings.datastore);
    let request = GuestRequest { file, text: None, name: None, sets, host, datastore };
    Ok(load_guest(&request)?.config.name)
}

/// Returns a word as a name of guests.
fn as_name(word: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c.to_ascii_lowercase() } else { '-' };
    let base: String = word.chars().map(plain).take(48).collect();
    let base = base.trim_matches(|c: char| !c.is_ascii_alphanumeric());
    if is_guest_name(base) { base } else { "guest" }.to_owned()
}

/// Returns a name that no guest has yet: that of the word, or else with a number after it.
pub fn free_name(word: &str, store: &Store) -> Result<String, Failure> {
    let base = as_name(word);
    let taken = store.names()?;
    let numbered = (2u32..).map(|number| format!("{base}-{number}"));
    let mut names = std::iter::once(base.clone()).chain(numbered);
    Ok(names.find(|name| !taken.contains(name)).expect("there are more numbers than guests"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_word_becomes_a_name_of_guests() {
        for (word, name) in [
            ("debian", "debian"),
            ("FreeBSD-15.1-RELEASE", "freebsd-15.1-release"),
            ("My Web Site!", "my-web-site"),
            ("...", "guest"),
            ("a.toml", "guest"),
        ] {
            assert_eq!(as_name(word), name);
        }
        assert!(is_guest_name(&as_name(&"x".repeat(500))));
    }
}
