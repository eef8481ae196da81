//! A guest file of the command line or of a folder, and the guest that is made of it: one guest per project.

use std::path::{Path, PathBuf};

use super::create::name_in;
use super::progress::{Awaited, ProgressDisplay};
use super::selection::CommandContext;
use super::{App, Failure};
use crate::config::fleet::is_fleet;
use crate::config::host::is_host_file;
use crate::guest::create::{self, Origin};
use crate::guest::definition::Definition;
use crate::guest::store::GuestDir;
use crate::inputs;

/// The files that a folder may have for `up` and `down`, in the order in which they are looked for.
pub const FILES: [&str; 3] = ["fleet.toml", "vm.toml", "vmctl.toml"];
/// Maximum size of a file that is examined. The readers refuse longer ones.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Kind of a TOML file of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKind {
    /// It describes one guest.
    Guest,
    /// It describes many.
    Fleet,
    /// It describes the host.
    Host,
}

/// Returns the kind of a file by its name and its keys. One that cannot be read counts as a guest file, whose reader
/// tells why.
pub fn kind_of(path: &Path) -> FileKind {
    let text = inputs::read_text(path, MAX_FILE_BYTES).unwrap_or_default();
    match () {
        () if path.is_file() && is_fleet(path, &text) => FileKind::Fleet,
        () if is_host_file(&text) => FileKind::Host,
        () => FileKind::Guest,
    }
}

/// Returns the file of the current folder that says which guests are meant.
pub fn of_this_folder() -> Option<PathBuf> {
    let there = FILES.map(PathBuf::from).into_iter().filter(|path| path.is_file());
    there.into_iter().find(|path| kind_of(path) != FileKind::Host)
}

/// Returns whether an argument with a slash, or with `.toml` at its end, is a file; a guest may have such a name where
/// no file has it.
pub fn is_file(argument: &str, context: &CommandContext) -> bool {
    let ends = argument.ends_with(".toml");
    argument.contains('/') || (ends && (Path::new(argument).exists() || context.store.guest(argument).is_err()))
}

/// Returns the name of the guest of a file, and the guest if it is made.
pub fn guest_of(file: &Path, context: &CommandContext) -> Result<(String, Option<GuestDir>), Failure> {
    let shown = file.display();
    let real = std::fs::canonicalize(file).map_err(|error| Failure::user(format!("cannot read `{shown}`: {error}")))?;
    let is_it = |path: &Path| std::fs::canonicalize(path).is_ok_and(|path| path == real);
    let mut linked = Vec::new();
    for name in context.store.names()? {
        let guest = context.store.directory_of(&name);
        if is_it(&guest.config_file()) {
            linked.push(guest);
        }
    }
    match linked.pop() {
        Some(guest) if linked.is_empty() => return Ok((guest.name().to_owned(), Some(guest))),
        Some(guest) => {
            return Err(
                Failure::user(format!("`{shown}` is the file of several guests, like `{}`", guest.name())).hint("name the guest")
            );
        }
        None => {}
    }
    let name = name_in(file, &[], context)?;
    let Ok(guest) = context.store.guest(&name) else { return Ok((name, None)) };
    // With `--set`, the guest has a file of its own that includes this one.
    let sources = Definition::load(&guest, context.surroundings()).map(|definition| definition.sources).unwrap_or_default();
    match sources.iter().any(|source| is_it(source)) {
        true => Ok((name, Some(guest))),
        false => Err(Failure::user(format!("there is another guest `{name}`, which is not made of `{shown}`"))
            .hint(format!("its file is `{}`; give one of the two another `name`", guest.config_file().display()))),
    }
}

/// Makes the guest of a file unless it is there. Returns its name.
pub fn make(app: &App, context: &CommandContext, file: &Path) -> Result<String, Failure> {
    match kind_of(file) {
        FileKind::Guest => {}
        FileKind::Fleet => {
            return Err(Failure::user(format!("`{}` is a fleet file and no guest file", file.display()))
                .hint(format!("`vmctl up {}` makes and starts its guests", file.display())));
        }
        FileKind::Host => return Err(Failure::user(format!("`{}` is a host file and no guest file", file.display()))),
    }
    let (name, guest) = guest_of(file, context)?;
    if guest.is_none() {
        let origin = Origin::File { path: file.to_owned(), copy: false };
        create::check_engine(&name, &origin, &[], context.surroundings())?;
        let shown = app.ui.wait(Awaited::making(&name));
        create::create(&context.store, &name, &origin, &[], context.surroundings(), &ProgressDisplay::new(&app.ui))?;
        drop(shown);
        app.ui.done(format!("{name} is made"));
    }
    Ok(name)
}
