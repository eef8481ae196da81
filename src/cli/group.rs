//! The guests that `up`, `down` and `destroy` mean: those that are named, those of a fleet, or all.

use std::path::{Path, PathBuf};

use super::ask::{Consent, count, listed};
use super::render::FleetFile;
use super::selection::CommandContext;
use super::{App, Failure, Guests};
use crate::config::fleet::is_fleet;
use crate::guest::fleet::membership::Membership;
use crate::inputs;

/// The fleet file that a folder has.
pub const FLEET_FILE: &str = "fleet.toml";
/// Maximum size of a file that is examined as a fleet file. The readers refuse longer ones.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// The guests of a verb on many.
#[derive(Debug, Clone, clap::Args)]
pub struct Group {
    /// Names or globs, like `web1` or `web*`, or one fleet file (with a slash, or `.toml` at its end); the fleet of `fleet.toml` in this folder if left out
    #[arg(value_name = "GUEST|FLEET")]
    names: Vec<String>,
    /// Every guest of the datastore
    #[arg(long, conflicts_with = "names")]
    all: bool,
}

/// The guests that a command acts on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Targets {
    /// Names and globs from the command line.
    Named(Vec<String>),
    /// The existing guests of a fleet.
    Fleet(Fleet),
    /// All guests of the datastore.
    All,
    /// Neither was given: all guests, once the user has agreed.
    Unspecified,
}

/// The guests of a fleet on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fleet {
    /// Its name.
    pub name: String,
    /// Existing guests, including those that its file no longer names.
    pub members: Vec<String>,
    /// Guests of its file that do not exist yet.
    pub missing: Vec<String>,
}

impl Group {
    /// Returns the guests that the command line or the fleet file of the folder names.
    pub fn targets(&self, app: &App, context: &CommandContext) -> Result<Targets, Failure> {
        if self.all {
            return Ok(Targets::All);
        }
        let files: Vec<&String> = self.names.iter().filter(|name| is_file(name, context)).collect();
        match (&files[..], self.names.len()) {
            ([], 0) if Path::new(FLEET_FILE).is_file() => Ok(Targets::Fleet(Fleet::look(app, context, FLEET_FILE.into())?)),
            ([], 0) => Ok(Targets::Unspecified),
            ([], _) => Ok(Targets::Named(self.names.clone())),
            ([file], 1) => Ok(Targets::Fleet(Fleet::look(app, context, file.into())?)),
            ([file, ..], _) => Err(Failure::user(format!("the fleet file `{file}` stands alone, and more was named"))
                .hint("name guests, or one fleet file")),
        }
    }
}

/// Returns whether an argument with a slash, or with `.toml` at its end, is a file; a guest may have such a name where
/// no file has it.
fn is_file(argument: &str, context: &CommandContext) -> bool {
    let ends = argument.ends_with(".toml");
    argument.contains('/') || (ends && (Path::new(argument).exists() || context.store.guest(argument).is_err()))
}

impl Fleet {
    /// Reads a fleet file and looks for its guests.
    fn look(app: &App, context: &CommandContext, file: PathBuf) -> Result<Fleet, Failure> {
        let text = inputs::read_text(&file, MAX_FILE_BYTES).unwrap_or_default();
        if file.is_file() && !is_fleet(&file, &text) {
            return Err(Failure::user(format!("`{}` is a guest file and no fleet file", file.display()))
                .hint(format!("`vmctl create --file {}` makes its guest", file.display())));
        }
        let fleet = FleetFile::of(file).load(app)?;
        let members = members(context, &fleet.name)?;
        let wanted = fleet.here().map(|guest| guest.config.name.clone());
        let missing = wanted.filter(|name| !members.contains(name)).collect();
        Ok(Fleet { name: fleet.name, members, missing })
    }

    /// Returns that guests of it are not there.
    pub fn not_made(&self) -> Option<Failure> {
        let are = if self.missing.len() == 1 { "is" } else { "are" };
        let message = || {
            let number = count(self.missing.len(), "guest");
            format!("{number} of the fleet `{}` {are} not made yet: {}", self.name, listed(&self.missing))
        };
        (!self.missing.is_empty()).then(|| Failure::user(message()).hint("`vmctl apply` makes them"))
    }
}

/// Returns the guests that an apply made for the fleet of this name. One whose record cannot be read belongs to none.
fn members(context: &CommandContext, fleet: &str) -> Result<Vec<String>, Failure> {
    let names = context.store.names()?.into_iter();
    let belongs = |name: &String| {
        Membership::load(&context.store.directory_of(name)).is_ok_and(|record| record.is_some_and(|record| record.fleet == fleet))
    };
    Ok(names.filter(belongs).collect())
}

/// Asks before a verb is carried out on all guests because none was named. `names` are those that it would change.
pub fn agree_on_all(verb: &str, names: &[String], hint: &str) -> Result<(), Failure> {
    let unasked = || {
        let message = format!("nothing says which guests are meant, and this folder has no `{FLEET_FILE}`");
        Failure::user(message).hint(format!("name guests or a fleet file, or add `--all`{hint}"))
    };
    let question = format!("{verb} {} of this datastore ({})?", count(names.len(), "guest"), listed(names));
    match Consent::new(false, false).ask(&question, unasked)? {
        true => Ok(()),
        false => Err(Failure::user("nothing was done")),
    }
}

/// Returns the guests of these names and globs.
pub fn of_names(names: &[String]) -> Guests {
    Guests { names: names.to_vec(), ..Guests::default() }
}
