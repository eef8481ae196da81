//! `vmctl destroy`.

use std::io::{BufRead, IsTerminal, Write};

use super::stop::is_running;
use super::{App, ExitStatus, Failure, Guests, Outcome};
use crate::guest::control::Request;
use crate::guest::create;
use crate::guest::stopping::end_guest;
use crate::guest::store::GuestDir;

/// Remove guests and their disks
///
/// Asks first. Files and devices that a guest file names by a path stay, and so does a guest file outside the
/// datastore. A guest with `protected = true` is refused, and so is one that runs.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    guests: Guests,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
    /// Power off a guest that runs first
    #[arg(short, long)]
    force: bool,
}

impl Args {
    pub fn run(self, app: &App) -> Outcome {
        let place = app.place()?;
        app.each_in_turn(self.guests.choose(&place)?, |guest| {
            if is_running(guest) && !self.force {
                return Err(Failure::user(format!("`{}` is running", guest.name()))
                    .hint(format!("stop it first with `vmctl stop {}`, or add `--force`", guest.name())));
            }
            if !self.yes && !confirmed(guest)? {
                return Err(Failure::user(format!("`{}` was not removed", guest.name())));
            }
            if is_running(guest) {
                // The protection is looked at first: a guest that cannot be removed is not powered off either.
                if crate::guest::definition::Definition::load(guest, place.around()).is_ok_and(|d| d.config.protected) {
                    return Err(Failure::user(format!("`{}` is protected", guest.name()))
                        .hint(format!("set `protected = false` first: `vmctl edit {}`", guest.name())));
                }
                // One that goes by itself meanwhile is no error here.
                if let Err(error) = end_guest(guest, &Request::Poweroff, None)
                    && is_running(guest)
                {
                    return Err(error.into());
                }
            }
            create::destroy(&place.store, guest, place.around())?;
            app.ui.done(format!("{} is gone", guest.name()));
            Ok(ExitStatus::Done)
        })
    }
}

fn confirmed(guest: &GuestDir) -> Result<bool, Failure> {
    if !std::io::stdin().is_terminal() {
        return Err(Failure::user(format!("`{}` is not removed without being asked about", guest.name())).hint("add `--yes`"));
    }
    let _ = write!(std::io::stderr(), "Remove {} and its disks? [y/N] ", guest.name());
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
