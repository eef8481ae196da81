//! `vmctl console`: opens the serial console of a guest.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::attach::{self, Session};
use super::{App, Failure, Outcome};
use crate::units::ByteSize;

/// Open the serial console of a running guest
///
/// Shows the latest output, then new output, and sends what you type to the guest, control characters included. `~.` at
/// the beginning of a line leaves; the guest keeps running. `~s` asks it to stop. The session ends when standard input
/// ends, unless it only watches. One session can type; any number can watch. A serial line has no window size: `~w` or
/// `--resize` types a `stty` command at the guest's shell.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The guest
    #[arg(value_name = "GUEST")]
    guest: String,
    /// Watch only
    #[arg(short, long, conflicts_with_all = ["take", "resize"])]
    read_only: bool,
    /// Take the keyboard from the session that has it
    #[arg(short, long)]
    take: bool,
    /// Append the output to a file
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
    /// Amount of earlier output to show first
    #[arg(long, value_name = "SIZE")]
    replay: Option<ByteSize>,
    /// Type a `stty` command with the size of this window at the beginning
    #[arg(long)]
    resize: bool,
    /// No escapes: every character goes to the guest (end this command from another terminal to leave)
    #[arg(long)]
    no_escapes: bool,
}

impl Args {
    pub fn run(self, app: &App) -> Outcome {
        let guest = app.context_to_look()?.store.guest(&self.guest)?;
        let session = Session {
            read_only: self.read_only,
            take: self.take,
            log: self.log.as_deref().map(open).transpose()?,
            replay: self.replay.map(ByteSize::bytes),
            resize: self.resize,
            no_escapes: self.no_escapes,
        };
        attach::attach(app, &guest, &session)
    }
}

fn open(path: &Path) -> Result<File, Failure> {
    let file = OpenOptions::new().create(true).append(true).mode(0o600).open(path);
    file.map_err(|error| Failure::user(format!("cannot write `{}`: {error}", path.display())))
}
