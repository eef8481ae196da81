//! The journal of an apply: the steps that have begun, and how to undo them. It exists while an apply runs, and stays
//! when one is killed. The next apply reads it first.
//!
//! Each line is a JSON document that is synced before the announced step is done. So an incomplete last line announced
//! nothing.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use serde::{Deserialize, Serialize};

use crate::guest::error::{GuestError, Result};
use crate::guest::timestamp::Timestamp;
use crate::host::files::{open_no_foreign_link, sync_directory};

/// Name of the journal in the fleet's directory.
pub const FILE: &str = "journal.jsonl";
/// Version of its lines.
const VERSION: u32 = 1;
/// For tests: an apply ends right after this many lines, as with `kill -9`.
const KILL_AFTER: &str = "VMCTL_TEST_APPLY_KILL_AFTER";

/// One line of the journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "kebab-case")]
pub enum Line {
    /// The first line.
    Begin {
        /// Always [`VERSION`].
        version: u32,
        /// The process.
        pid: u32,
        /// Time of the line.
        at: Timestamp,
    },
    /// A guest is about to be made.
    Create {
        /// Name of the guest.
        guest: String,
    },
    /// A guest is about to be changed.
    Change {
        /// Name of the guest.
        guest: String,
        /// Its file before; `None` if there was none.
        before: Option<String>,
        /// Its disks that are about to be recreated.
        recreate: Vec<String>,
    },
    /// A guest is about to be removed.
    Destroy {
        /// Name of the guest.
        guest: String,
    },
    /// A guest is about to be restarted.
    Restart {
        /// Name of the guest.
        guest: String,
    },
    /// All announced steps of a guest are done.
    Done {
        /// Name of the guest.
        guest: String,
    },
    /// A step failed and was undone.
    Undone {
        /// Name of the guest.
        guest: String,
    },
}

/// The journal of a running apply.
pub struct Journal {
    path: PathBuf,
    file: Mutex<(File, usize)>,
    kill_after: Option<usize>,
}

impl Journal {
    /// Begins a journal in a fleet's directory, and replaces an old one.
    pub fn begin(directory: &Path) -> Result<Journal> {
        let path = directory.join(FILE);
        // It contains guest files, which may be private to their user.
        let mut options = OpenOptions::new();
        options.create(true).write(true).truncate(true).mode(0o600);
        let file = open_no_foreign_link(&options, &path).map_err(|error| GuestError::io("write", &path, error))?;
        let _ = sync_directory(directory);
        let kill_after = std::env::var(KILL_AFTER).ok().and_then(|text| text.parse().ok());
        let journal = Journal { path, file: Mutex::new((file, 0)), kill_after };
        journal.write(&Line::Begin { version: VERSION, pid: std::process::id(), at: Timestamp::now() })?;
        Ok(journal)
    }

    /// Adds a line. The announced step may be done when this returns.
    pub fn write(&self, line: &Line) -> Result<()> {
        let text = serde_json::to_string(line).expect("plain fields") + "\n";
        let mut guard = self.file.lock().expect("no panic happens under this lock");
        let (file, lines) = &mut *guard;
        let written = file.write_all(text.as_bytes()).and_then(|()| file.sync_data());
        written.map_err(|error| GuestError::io("write", &self.path, error))?;
        *lines += 1;
        if self.kill_after == Some(*lines) {
            let _ = nix::sys::signal::raise(nix::sys::signal::Signal::SIGKILL);
        }
        Ok(())
    }

    /// Ends the journal, since all is done or undone.
    pub fn end(self) -> Result<()> {
        fs::remove_file(&self.path).map_err(|error| GuestError::io("remove", &self.path, error))?;
        let _ = sync_directory(self.path.parent().unwrap_or(Path::new("/")));
        Ok(())
    }

    /// Returns the steps that a killed apply had begun and not ended.
    pub fn unfinished(directory: &Path) -> Result<Vec<Line>> {
        let path = directory.join(FILE);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(GuestError::io("read", &path, error)),
        };
        let mut open: Vec<Line> = Vec::new();
        for line in text.lines().filter_map(|line| serde_json::from_str::<Line>(line).ok()) {
            match line {
                Line::Begin { version, .. } if version != VERSION => {
                    return Err(GuestError::user(format!("`{}` is of version {version}", path.display()))
                        .hint("a newer vmctl wrote it: finish with that one"));
                }
                Line::Begin { .. } => {}
                Line::Done { guest } | Line::Undone { guest } => open.retain(|line| line.guest() != Some(guest.as_str())),
                other => open.push(other),
            }
        }
        Ok(open)
    }
}

impl Line {
    /// Returns the guest of the line.
    pub fn guest(&self) -> Option<&str> {
        match self {
            Line::Begin { .. } => None,
            Line::Create { guest }
            | Line::Change { guest, .. }
            | Line::Destroy { guest }
            | Line::Restart { guest }
            | Line::Done { guest }
            | Line::Undone { guest } => Some(guest),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_begun_and_not_ended_is_found_and_a_cut_line_is_no_line() {
        let dir = tempfile::tempdir().expect("a directory");
        assert!(Journal::unfinished(dir.path()).expect("reads").is_empty());
        let journal = Journal::begin(dir.path()).expect("begins");
        let change = Line::Change { guest: "b".into(), before: Some("x".into()), recreate: vec!["root".into()] };
        journal.write(&Line::Create { guest: "a".into() }).expect("writes");
        journal.write(&change).expect("writes");
        journal.write(&Line::Done { guest: "a".into() }).expect("writes");
        let mut text = fs::read_to_string(dir.path().join(FILE)).expect("reads");
        text.push_str("{\"step\":\"destroy\",\"gu");
        fs::write(dir.path().join(FILE), text).expect("writes");
        assert_eq!(Journal::unfinished(dir.path()).expect("reads"), [change]);
        journal.end().expect("ends");
        assert!(Journal::unfinished(dir.path()).expect("reads").is_empty());
    }

    #[test]
    fn a_journal_of_a_newer_version_is_not_guessed_at() {
        let dir = tempfile::tempdir().expect("a directory");
        fs::write(dir.path().join(FILE), "{\"step\":\"begin\",\"version\":2,\"pid\":1,\"at\":\"1970-01-01T00:00:00.000Z\"}\n")
            .expect("writes");
        assert!(Journal::unfinished(dir.path()).expect_err("refused").to_string().contains("version 2"));
    }
}
