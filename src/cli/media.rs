//! `vmctl media`.

use std::path::PathBuf;

use super::{App, ExitStatus, Failure, Outcome};
use crate::guest::change::{self, Class, When};

/// Insert and eject media
///
/// Changes the guest file as `edit` does. No engine changes a medium under a running guest: it takes effect at the next
/// boot, and the command says so.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Put a medium into a drive, which is made if there is none of that name
    Insert {
        /// The guest
        #[arg(value_name = "GUEST")]
        guest: String,
        /// An ISO, or another image
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// Name of the drive
        #[arg(long, value_name = "DISK", default_value = "cd0")]
        drive: String,
    },
    /// Take a medium out, with its drive
    Eject {
        /// The guest
        #[arg(value_name = "GUEST")]
        guest: String,
        /// Name of the drive
        #[arg(long, value_name = "DISK", default_value = "cd0")]
        drive: String,
    },
}

impl Args {
    pub fn run(self, app: &App) -> Outcome {
        let place = app.place()?;
        let around = place.around();
        let (words, when): (String, When) = match self.action {
            Action::Insert { guest, file, drive } => {
                let guest = place.store.guest(&guest)?;
                if !file.is_file() {
                    return Err(Failure::user(format!("`{}` is not a file", file.display())));
                }
                // Every engine has this drive.
                let keys = [("path", change::path(&file)?), ("device", change::text("ahci-cd")), ("ro", "true".to_owned())];
                (
                    format!("{}: {drive} holds {}", guest.name(), file.display()),
                    change::replace(&guest, Class::Disk, &drive, &keys, around)?,
                )
            }
            Action::Eject { guest, drive } => {
                let guest = place.store.guest(&guest)?;
                (format!("{}: {drive} is gone", guest.name()), change::remove(&guest, Class::Disk, &drive, false, around)?)
            }
        };
        app.ui.done(format!("{words}{}", when.words()));
        Ok(ExitStatus::Done)
    }
}
