//! The guests that `up`, `down` and `destroy` mean: those that are named, that of a guest file, those of a fleet, or all.

use std::path::{Path, PathBuf};

use super::ask::{Consent, count, listed};
use super::project::{self, FileKind, is_file, kind_of};
use super::render::FleetFile;
use super::selection::CommandContext;
use super::{App, Failure, Guests};
use crate::guest::fleet::membership::Membership;

/// The fleet file that a folder has.
pub const FLEET_FILE: &str = project::FILES[0];

/// The guests of a verb on many.
#[derive(Debug, Clone, clap::Args)]
pub struct Group {
    /// Names or globs, like `web1` or `web*`, or one fleet file or guest file (with a slash, or `.toml` at its end); that of this folder if left out: `fleet.toml`, `vm.toml` or `vmctl.toml`
    #[arg(value_name = "GUEST|FILE")]
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
    /// The guests of a fleet.
    Fleet(Fleet),
    /// The guest of a guest file.
    OfFile(PathBuf),
    /// All guests of the datastore.
    All,
    /// Nothing was named, and the folder has no file of ours: all guests, once the user has agreed.
    Unspecified,
}

/// The guests of a fleet on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fleet {
    /// Its name.
    pub name: String,
    /// Its file.
    pub file: PathBuf,
    /// Those that are there, also those that its file does not name any more.
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
            ([], 0) => project::of_this_folder().map_or(Ok(Targets::Unspecified), |file| Targets::of_file(app, context, &file)),
            ([], _) => Ok(Targets::Named(self.names.clone())),
            ([file], 1) => Targets::of_file(app, context, Path::new(file)),
            ([file, ..], _) => Err(Failure::user(format!("the file `{file}` cannot be combined with other names"))
                .hint("name guests, or one fleet file or guest file")),
        }
    }
}

impl Targets {
    fn of_file(app: &App, context: &CommandContext, file: &Path) -> Result<Targets, Failure> {
        match kind_of(file) {
            FileKind::Fleet => Ok(Targets::Fleet(Fleet::look(app, context, file)?)),
            FileKind::Guest => Ok(Targets::OfFile(file.to_owned())),
            FileKind::Host => Err(Failure::user(format!("`{}` is a host file: it has no guests", file.display()))
                .hint("name guests, a fleet file or a guest file")),
        }
    }
}

impl Fleet {
    /// Reads a fleet file and looks for its guests.
    fn look(app: &App, context: &CommandContext, file: &Path) -> Result<Fleet, Failure> {
        let fleet = FleetFile::of(file.to_owned()).load(app)?;
        let members = members(context, &fleet.name)?;
        let wanted = fleet.here().map(|guest| guest.config.name.clone());
        let missing = wanted.filter(|name| !members.contains(name)).collect();
        Ok(Fleet { name: fleet.name, file: file.to_owned(), members, missing })
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
        let message = format!("nothing says which guests are meant, and this folder has no `{}`", project::FILES.join("`, `"));
        Failure::user(message).hint(format!("name guests or a file, or add `--all`{hint}"))
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
