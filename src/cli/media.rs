//! `vmctl media`: changes the media in drives.

use std::path::PathBuf;

use super::{App, ExitStatus, Failure, Outcome};
use crate::guest::change::{self, Class, When};

/// Insert and eject media
///
/// Changes the guest file as `edit` does. No engine changes a medium of a running guest: the change takes effect at the
/// next boot, and the command says so.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    action: MediaCommand,
}

#[derive(Debug, clap::Subcommand)]
enum MediaCommand {
    /// Put a medium into a drive, which is made if it does not exist
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
    /// Remove a medium with its drive
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
        let context = app.context()?;
        let surroundings = context.surroundings();
        let (words, when): (String, When) = match self.action {
            MediaCommand::Insert { guest, file, drive } => {
                let guest = context.store.guest(&guest)?;
                if !file.is_file() {
                    return Err(Failure::user(format!("`{}` is not a file", file.display())));
                }
                // Every engine has this drive.
                let keys = [("path", change::path(&file)?), ("device", change::text("ahci-cd")), ("ro", "true".to_owned())];
                (
                    format!("{}: {drive} holds {}", guest.name(), file.display()),
                    change::replace(&guest, Class::Disk, &drive, &keys, surroundings)?,
                )
            }
            MediaCommand::Eject { guest, drive } => {
                let guest = context.store.guest(&guest)?;
                (format!("{}: {drive} is gone", guest.name()), change::remove(&guest, Class::Disk, &drive, false, surroundings)?)
            }
        };
        app.ui.done(format!("{words}{}", when.words()));
        Ok(ExitStatus::Done)
    }
}
