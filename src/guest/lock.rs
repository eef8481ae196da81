//! The lock of a guest: flock(2) on a file in its directory.
//!
//! The kernel's lock alone decides; it goes with its holder, so a power cut, a killed supervisor or a changed host
//! name never leaves a guest unstartable. What is written in the file (who, since which boot) is for messages only.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::error::{GuestError, Result};

/// What the holder of a lock does with the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Runs it.
    Supervisor,
    /// A short-lived command changes its directory.
    Command,
}

/// Who holds a lock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// Its process.
    pub pid: u32,
    /// The boot of the host that the process belongs to.
    pub boot_id: String,
    /// What it does.
    pub role: Role,
}

/// The right to run or change one guest, until dropped.
#[derive(Debug)]
pub struct GuestLock {
    file: File,
    path: PathBuf,
}

/// Readers hold the lock shared for an instant while they look; a writer tries again for this long.
const PATIENCE: Duration = Duration::from_millis(500);

impl GuestLock {
    /// Takes the lock, or says who has it.
    pub fn acquire(path: &Path, role: Role) -> Result<std::result::Result<GuestLock, Option<Holder>>> {
        let started = Instant::now();
        loop {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o644)
                .open(path)
                .map_err(|error| GuestError::io("open the lock", path, error))?;
            match file.try_lock() {
                Ok(()) if is_still_there(&file, path) => {
                    let mut lock = GuestLock { file, path: path.to_owned() };
                    lock.write_holder(role);
                    return Ok(Ok(lock));
                }
                // The guest was destroyed or renamed between the open and the lock: look at the path again.
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    let holder = read_holder(&file);
                    let lasting = holder.as_ref().is_some_and(|holder| holder.role == Role::Supervisor);
                    if started.elapsed() > PATIENCE || (lasting && started.elapsed() > PATIENCE / 4) {
                        return Ok(Err(holder));
                    }
                }
                Err(TryLockError::Error(error)) => return Err(GuestError::io("lock", path, error)),
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Who holds the lock at `path`; `None` when nobody does.
    pub fn holder(path: &Path) -> Option<Holder> {
        let file = File::open(path).ok()?;
        match file.try_lock_shared() {
            Err(TryLockError::WouldBlock) => {
                // The holder writes its name right after it has the lock; an unreadable file is that moment.
                Some(read_holder(&file).unwrap_or(Holder { pid: 0, boot_id: String::new(), role: Role::Command }))
            }
            _ => None,
        }
    }

    fn write_holder(&mut self, role: Role) {
        let holder = Holder { pid: std::process::id(), boot_id: crate::host::process::boot_id(), role };
        let text = serde_json::to_string(&holder).expect("plain fields") + "\n";
        // Only messages read it: a full disk must not keep a guest from stopping or starting.
        let _ = self.file.set_len(0).and_then(|()| self.file.rewind()).and_then(|()| self.file.write_all(text.as_bytes()));
    }

    /// Where the lock is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for GuestLock {
    fn drop(&mut self) {
        let _ = self.file.set_len(0);
    }
}

fn is_still_there(file: &File, path: &Path) -> bool {
    match (file.metadata(), std::fs::metadata(path)) {
        (Ok(ours), Ok(theirs)) => (ours.dev(), ours.ino()) == (theirs.dev(), theirs.ino()),
        _ => false,
    }
}

fn read_holder(mut file: &File) -> Option<Holder> {
    let mut text = String::new();
    file.rewind().ok()?;
    file.take(4096).read_to_string(&mut text).ok()?;
    serde_json::from_str(&text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_taker_learns_who_has_it_and_gets_it_after_the_first() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("lock");
        assert_eq!(GuestLock::holder(&path), None);
        let first = GuestLock::acquire(&path, Role::Supervisor).expect("no error").expect("free");
        let holder = GuestLock::acquire(&path, Role::Command).expect("no error").expect_err("taken").expect("named");
        assert_eq!((holder.pid, holder.role), (std::process::id(), Role::Supervisor));
        assert_eq!(GuestLock::holder(&path), Some(holder));
        drop(first);
        assert_eq!(GuestLock::holder(&path), None);
        GuestLock::acquire(&path, Role::Command).expect("no error").expect("free again");
    }

    #[test]
    fn what_an_earlier_boot_or_a_killed_holder_wrote_keeps_nobody_out() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("lock");
        for text in [r#"{"pid":1,"boot_id":"another","role":"supervisor"}"#, "garbage", ""] {
            std::fs::write(&path, text).expect("writes");
            assert_eq!(GuestLock::holder(&path), None);
            GuestLock::acquire(&path, Role::Supervisor).expect("no error").expect("free");
        }
    }

    #[test]
    fn a_reader_that_looks_does_not_make_a_start_fail() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("lock");
        std::fs::write(&path, "").expect("writes");
        let reader = File::open(&path).expect("opens");
        reader.lock_shared().expect("locks");
        let thread = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(60));
            drop(reader);
        });
        GuestLock::acquire(&path, Role::Supervisor).expect("no error").expect("free after the reader");
        thread.join().expect("no panic");
    }
}
