//! `vmctl create`: makes guests.

use std::path::{Path, PathBuf};

use super::progress::{Awaited, ProgressDisplay, watch_signals};
use super::selection::CommandContext;
use super::{App, ExitStatus, Failure, Outcome};
use crate::guest::create::{self, Origin};
use crate::guest::store::GuestDir;

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
    /// Names of the new guests; with `--file`, the file's own name or `name` key if left out
    #[arg(value_name = "NAME", required_unless_present = "file")]
    pub names: Vec<String>,
    /// Guest file, which stays where it is and is read again before every boot
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Copy the guest file into the datastore
    #[arg(long, requires = "file")]
    copy: bool,
    /// Template to use instead of a guest file
    #[arg(short, long, value_name = "NAME", conflicts_with = "file")]
    template: Option<String>,
    /// Set a key in the new guest's file, like `memory=2G` or `disks.root.size=20G`
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub sets: Vec<String>,
    /// The guests are started at once: those that cannot run here are not made.
    #[arg(skip)]
    pub to_start: bool,
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
    /// Returns the same for guests that are started at once: those that cannot run here are not made.
    pub fn to_start(self) -> NewGuestArgs {
        NewGuestArgs { to_start: true, ..self }
    }

    /// Returns whether the first name is that of an image, for `launch`.
    pub fn is_by_image(&self) -> bool {
        self.file.is_none() && self.template.is_none()
    }

    /// Returns the same for guests of a template.
    pub fn of_template(&self, template: &str, names: &[String]) -> NewGuestArgs {
        NewGuestArgs { names: names.to_vec(), template: Some(template.to_owned()), ..self.clone() }
    }

    /// Makes each guest, and then calls a function with it.
    pub fn each(&self, app: &App, context: &CommandContext, mut then: impl FnMut(&GuestDir) -> Outcome) -> Outcome {
        let origin = match (&self.file, &self.template) {
            (Some(path), _) => Origin::File { path: path.clone(), copy: self.copy },
            (None, Some(template)) => Origin::Template(template.clone()),
            (None, None) => return Err(Failure::user("neither `--file` nor `--template` is given")),
        };
        let names = match (&self.names[..], &self.file) {
            ([], Some(file)) => vec![self.name_in(file, context)?],
            (names, _) => names.to_vec(),
        };
        let progress = ProgressDisplay::new(&app.ui);
        app.ui.each(&names, String::clone, |name| {
            if self.to_start {
                create::check_engine(name, &origin, &self.sets, context.surroundings())?;
            }
            let shown = app.ui.wait(Awaited::making(name));
            let guest = create::create(&context.store, name, &origin, &self.sets, context.surroundings(), &progress)?;
            drop(shown);
            then(&guest)
        })
    }

    /// Returns the name that a guest file gives.
    fn name_in(&self, file: &Path, context: &CommandContext) -> Result<String, Failure> {
        let surroundings = context.surroundings();
        let request = crate::config::GuestRequest {
            file,
            text: None,
            name: None,
            sets: &self.sets,
            host: surroundings.host,
            datastore: surroundings.datastore,
        };
        Ok(crate::config::load_guest(&request)?.config.name)
    }
}
