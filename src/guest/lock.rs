//! Locks: flock(2) on files that only their owner can open, since a lock needs no more than an open file.
//!
//! Only the kernel's lock decides. It ends with its holder, so a power cut, a killed supervisor or a changed host name
//! never leaves a guest that cannot be started. The text in the file (holder and boot) is for messages only.
//!
//! A [`GuestLock`] is held for as long as a process runs or changes a guest; a second process gets an error. A [`Turn`]
//! is held for one change of something that several commands change; a second process waits.

use std::fs::{File, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::host::files::{close_to_others, is_still_there, open_lock, open_plain};
use crate::host::process::{boot_id, is_there};

use super::error::{GuestError, Result};
use super::state::RunState;

/// Role of a lock's holder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// It runs the guest.
    Supervisor,
    /// It is a short-lived command that changes the guest's directory.
    Command,
}

/// The holder of a lock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// Its process id.
    pub pid: u32,
    /// The boot of the host that the process belongs to.
    pub boot_id: String,
    /// Its role.
    pub role: Role,
}

/// The right to run or change one guest, until dropped.
#[derive(Debug)]
pub struct GuestLock {
    file: File,
    path: PathBuf,
}

/// Time for which a writer tries again, since readers hold the lock shared for a moment while they look.
const PATIENCE: Duration = Duration::from_millis(500);

impl GuestLock {
    /// Takes the lock, or reports its holder.
    pub fn acquire(path: &Path, role: Role) -> Result<std::result::Result<GuestLock, Option<Holder>>> {
        let started = Instant::now();
        loop {
            let file = open_lock(path).map_err(|error| GuestError::io("open the lock", path, error))?;
            match file.try_lock() {
                Ok(()) if is_still_there(&file, path) => {
                    write_holder(&file, role);
                    return Ok(Ok(GuestLock { file, path: path.to_owned() }));
                }
                // The guest may have been destroyed or renamed between the open and the lock: check the path again.
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

    /// Returns the holder of the lock at `path`, or `None`.
    pub fn holder(path: &Path) -> Option<Holder> {
        // Not through a link: its mode is changed below, and the link could lead to any file of this user.
        let file = match open_plain(path) {
            Ok(file) => file,
            // It is another user's guest. Its supervisor's state, which everybody can read, must be enough.
            Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => return Holder::by_account(path),
            Err(_) => return None,
        };
        close_to_others(&file);
        match file.try_lock_shared() {
            Err(TryLockError::WouldBlock) => {
                // The holder writes its name right after it has the lock. An unreadable file means that it has not yet.
                Some(read_holder(&file).unwrap_or(Holder { pid: 0, boot_id: String::new(), role: Role::Command }))
            }
            _ => None,
        }
    }

    /// Returns the path of the lock.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for GuestLock {
    fn drop(&mut self) {
        let _ = self.file.set_len(0);
    }
}

impl Holder {
    /// Returns the supervisor in the state beside the lock, if there is such a process.
    fn by_account(lock: &Path) -> Option<Holder> {
        let run = RunState::load(lock)?;
        let runs = run.boot_id == boot_id() && is_there(run.pid);
        runs.then_some(Holder { pid: run.pid, boot_id: run.boot_id, role: Role::Supervisor })
    }
}

fn write_holder(mut file: &File, role: Role) {
    let holder = Holder { pid: std::process::id(), boot_id: boot_id(), role };
    let text = serde_json::to_string(&holder).expect("plain fields") + "\n";
    // Only messages use the text: a full disk must not prevent a guest from stopping or starting.
    let _ = file.set_len(0).and_then(|()| file.rewind()).and_then(|()| file.write_all(text.as_bytes()));
}

/// The receiver of messages about waiting.
#[derive(Clone, Default)]
pub struct Waiting(Option<Arc<Tell>>);

/// A function that takes the message.
type Tell = dyn Fn(&str) + Send + Sync;

impl Waiting {
    /// Creates one that calls `tell`.
    pub fn notify_with(tell: impl Fn(&str) + Send + Sync + 'static) -> Waiting {
        Waiting(Some(Arc::new(tell)))
    }
}

impl std::fmt::Debug for Waiting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Waiting")
    }
}

/// The right to make one change of something that several commands change, until dropped.
#[derive(Debug)]
pub struct Turn {
    file: File,
    path: PathBuf,
    /// Whether the file belongs to this turn alone and is removed with it.
    goes: bool,
}

/// Time after which the user is told that the turn has not come.
const TOLD_AFTER: Duration = Duration::from_secs(1);
/// Time after which the wait is given up.
const GIVEN_UP_AFTER: Duration = Duration::from_secs(30);

impl Turn {
    /// Waits for the turn at `path`. `doing` completes "process N ..." for the message when it takes long.
    pub fn wait(path: &Path, doing: &str, waiting: &Waiting) -> Result<Turn> {
        Turn::wait_for(path, doing, waiting, (TOLD_AFTER, GIVEN_UP_AFTER))
    }

    fn wait_for(path: &Path, doing: &str, waiting: &Waiting, (told_after, given_up_after): (Duration, Duration)) -> Result<Turn> {
        let started = Instant::now();
        let mut tell = waiting.0.as_deref();
        loop {
            let holder = match Turn::attempt(path)? {
                Ok(turn) => return Ok(turn),
                Err(holder) => holder,
            };
            let words = match holder {
                Some(holder) => format!("process {} {doing}", holder.pid),
                None => format!("another process {doing}"),
            };
            if started.elapsed() > given_up_after {
                return Err(GuestError::user(format!("{words}, and has not ended for {} s", given_up_after.as_secs()))
                    .hint(format!("try again when it has; `fuser {}` finds it", path.display())));
            }
            if started.elapsed() > told_after
                && let Some(tell) = tell.take()
            {
                tell(&format!("waiting: {words}"));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Takes the turn at `path` if it is free.
    pub fn try_take(path: &Path) -> Result<Option<Turn>> {
        Ok(Turn::attempt(path)?.ok())
    }

    fn attempt(path: &Path) -> Result<std::result::Result<Turn, Option<Holder>>> {
        loop {
            let file = open_lock(path).map_err(|error| GuestError::io("open the lock", path, error))?;
            match file.try_lock() {
                Ok(()) if is_still_there(&file, path) => {
                    write_holder(&file, Role::Command);
                    return Ok(Ok(Turn { file, path: path.to_owned(), goes: false }));
                }
                // The previous holder removed it: check the path again.
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Ok(Err(read_holder(&file))),
                Err(TryLockError::Error(error)) => return Err(GuestError::io("lock", path, error)),
            }
        }
    }

    /// Makes the file be removed with the turn.
    pub fn of_its_own(self) -> Turn {
        let mut turn = self;
        turn.goes = true;
        turn
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let _ = self.file.set_len(0);
        if self.goes {
            let _ = std::fs::remove_file(&self.path);
        }
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

    #[test]
    fn a_turn_is_waited_for_and_told_of_and_given_up_with_the_one_who_has_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("turn");
        let told = Arc::new(std::sync::Mutex::new(Vec::new()));
        let waiting = Waiting::notify_with({
            let told = Arc::clone(&told);
            move |words| told.lock().expect("no panic").push(words.to_owned())
        });
        let first = Turn::wait(&path, "makes a guest", &waiting).expect("free").of_its_own();
        let patience = (Duration::from_millis(20), Duration::from_millis(100));
        let error = Turn::wait_for(&path, "makes a guest", &waiting, patience).expect_err("given up");
        let words = format!("process {} makes a guest", std::process::id());
        assert!(error.to_string().starts_with(&words), "{error}");
        assert_eq!(*told.lock().expect("no panic"), [format!("waiting: {words}")]);
        let ending = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(60));
            drop(first);
        });
        let second = Turn::wait(&path, "makes a guest", &Waiting::default()).expect("in its turn").of_its_own();
        ending.join().expect("no panic");
        drop(second);
        assert!(!path.exists());
    }

    #[test]
    fn what_nobody_else_may_lock_is_judged_by_the_supervisors_own_account() {
        let dir = tempfile::tempdir().expect("a directory");
        let lock = dir.path().join("lock");
        assert_eq!(Holder::by_account(&lock), None);
        let run = |pid: u32, boot: &str| {
            let text = format!(
                r#"{{"pid":{pid},"boot_id":"{boot}","phase":"running","since":"1970-01-01T00:00:00.000Z","started":"1970-01-01T00:00:00.000Z","engine_pid":null,"backend":null,"ready":false,"config_hash":"","restarts":0}}"#
            );
            std::fs::write(dir.path().join("run.json"), text).expect("writes");
            Holder::by_account(&lock).map(|holder| (holder.pid, holder.role))
        };
        let own = std::process::id();
        assert_eq!(run(own, &boot_id()), Some((own, Role::Supervisor)));
        assert_eq!(run(own, "another boot"), None);
        assert_eq!(run(4_194_305, &boot_id()), None);
    }
}
