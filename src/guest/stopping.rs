//! Ending a guest from a command, whatever happens to its supervisor meanwhile.
//!
//! A supervisor that ends while it answers, because of another request or because the guest ended by itself, has done
//! what was requested. One whose process was stopped is continued. One that still does not answer is killed, and the
//! guest with it, but only if the process is certainly that supervisor.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::unistd::Pid;

use crate::host::process::{look_at, peer_of};

use super::control::{Reply, Request, StopWay, connect};
use super::engine::{self, wait_for_lease};
use super::error::{GuestError, Result};
use super::events::{self, EventKind};
use super::launcher::{Heard, ask, hear, is_stuck, not_running, refused};
use super::lock::{GuestLock, Holder, Role};
use super::state::LastExit;
use super::store::GuestDir;

/// Time-out for a supervisor to release its lock after its last answer, or after it was killed.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);
/// Time-out for an engine to clean up and end after its supervisor was killed.
const ENGINE_PATIENCE: Duration = Duration::from_secs(25);
/// Time-out for a guest to end after its engine was killed.
const KILL_PATIENCE: Duration = Duration::from_secs(2);
/// Number of requests to a supervisor that hangs up without an answer.
const ATTEMPTS: usize = 3;

/// The way in which a guest ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    how: StopWay,
    reason: Option<String>,
}

impl Ended {
    /// Returns words that complete "NAME has stopped: ".
    pub fn words(&self) -> &str {
        Reply::stopped_words(self.how, self.reason.as_deref())
    }
}

/// Sends `request` for the guest's end to the supervisor, and waits for it. If the guest has not ended at `until`, the
/// engine is killed.
pub fn end_guest(guest: &GuestDir, request: &Request, until: Option<Instant>) -> Result<Ended> {
    let before = supervisor(guest).ok_or_else(|| not_running(guest))?;
    let mut woken = false;
    for _ in 0..ATTEMPTS {
        let heard = match ask(guest, request.clone()) {
            Ok(mut client) => hear(guest, &mut client, until)?,
            Err(_) if supervisor(guest).as_ref() != Some(&before) => Heard::Lost,
            Err(_) if is_stuck(guest, until) => Heard::Silent,
            Err(error) => return Err(error),
        };
        match heard {
            Heard::Reply(Reply::Stopped { how, reason }) => return Ok(Ended { how, reason }),
            Heard::Reply(Reply::Error { message, hint }) => return Err(refused(message, hint)),
            Heard::Reply(other) => return Err(GuestError::host(format!("the supervisor answered {other:?}"))),
            Heard::Lost if has_gone(guest, &before) => return Ok(looked_up(guest)),
            Heard::Lost => {}
            Heard::Late if *request == Request::Kill => return kill_supervisor(guest, &before),
            Heard::Late => return end_guest(guest, &Request::Kill, Some(Instant::now() + KILL_PATIENCE)),
            Heard::Silent if !woken && wake(guest, &before) => woken = true,
            Heard::Silent => return kill_supervisor(guest, &before),
        }
    }
    Err(GuestError::host(format!("the supervisor of `{}` (process {}) hangs up without an answer", guest.name(), before.pid))
        .hint(format!("`vmctl events {}` may say why", guest.name())))
}

fn supervisor(guest: &GuestDir) -> Option<Holder> {
    GuestLock::holder(&guest.lock_file()).filter(|holder| holder.role == Role::Supervisor)
}

/// Returns whether the supervisor releases the guest within a moment.
fn has_gone(guest: &GuestDir, before: &Holder) -> bool {
    let started = Instant::now();
    while supervisor(guest).as_ref() == Some(before) {
        if started.elapsed() > LOCK_PATIENCE {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    true
}

/// Returns how a guest ended whose supervisor is gone, from its state.
fn looked_up(guest: &GuestDir) -> Ended {
    let state = guest.state().ok();
    let lost = state.as_ref().is_some_and(|state| state.run.is_some() && supervisor(guest).is_none());
    let reason = match state.and_then(|state| state.last_exit) {
        _ if lost => "its supervisor was killed".to_owned(),
        Some(exit) => exit.reason,
        None => "it is gone".to_owned(),
    };
    Ended { how: StopWay::Otherwise, reason: Some(reason) }
}

/// Continues a supervisor whose process was stopped. Returns whether it was.
fn wake(guest: &GuestDir, holder: &Holder) -> bool {
    let stopped = look_at(holder.pid).is_some_and(|process| process.stopped);
    stopped && is_surely(guest, holder) && nix::sys::signal::kill(pid(holder), Signal::SIGCONT).is_ok()
}

fn pid(holder: &Holder) -> Pid {
    Pid::from_raw(holder.pid as i32)
}

/// Returns whether the process in the lock file is the guest's supervisor. The file may contain anything, and may be
/// from the last boot of the host.
fn is_surely(guest: &GuestDir, holder: &Holder) -> bool {
    let Some(process) = look_at(holder.pid) else { return false };
    let named = process.words.iter().any(|word| word == "run") && process.words.iter().any(|word| word == guest.name());
    // The process that listens at the socket, from the kernel if it reports it.
    let peer = connect(&guest.socket(), Duration::ZERO).ok().and_then(|stream| peer_of(&stream));
    let listens = peer.is_none_or(|peer| peer.uid == process.uid && peer.pid.is_none_or(|pid| pid == holder.pid));
    holder.boot_id == crate::host::process::boot_id() && holder.pid > 1 && named && listens
}

/// Kills a supervisor that does not answer, waits for its engine to end, and does the supervisor's last work.
fn kill_supervisor(guest: &GuestDir, holder: &Holder) -> Result<Ended> {
    let (name, number) = (guest.name(), holder.pid);
    if supervisor(guest).as_ref() != Some(holder) {
        return Ok(looked_up(guest));
    }
    if !is_surely(guest, holder) {
        let message = format!("the supervisor of `{name}` does not answer, and process {number} does not look like it");
        return Err(GuestError::host(message).hint(format!("find out what has `{}` open", guest.lock_file().display())));
    }
    // A detached supervisor leads a group of its own. One in the foreground is in its shell's group, which is left
    // alone.
    let leads = nix::unistd::getpgid(Some(pid(holder))) == Ok(pid(holder));
    let killed = match leads {
        true => nix::sys::signal::killpg(pid(holder), Signal::SIGKILL),
        false => nix::sys::signal::kill(pid(holder), Signal::SIGKILL),
    };
    match killed {
        Ok(()) | Err(nix::errno::Errno::ESRCH) => {}
        Err(errno) => {
            let message = format!("the supervisor of `{name}` (process {number}) does not answer and cannot be killed: {errno}");
            return Err(GuestError::user(message).hint("root, and the user who started the guest, can kill it"));
        }
    }
    if !has_gone(guest, holder) {
        return Err(GuestError::host(format!("process {number}, the supervisor of `{name}`, was killed and does not end"))
            .hint("it may wait for a disk that does not answer"));
    }
    // The engine ends with it: the kernel kills it, or it ends as soon as it has cleaned up.
    wait_for_lease(&guest.lease_file(), ENGINE_PATIENCE)?;
    let reason = format!("its supervisor (process {number}) did not answer and was killed, and the guest with it");
    if let Ok(_lock) = guest.lock(Role::Command) {
        let mut state = guest.state()?;
        state.run = None;
        state.last_exit = Some(LastExit::new(reason.clone(), "killed", (None, None)));
        state.save(&guest.state_file())?;
        state.save_run(&guest.state_file())?;
        events::record(&guest.events_log(), name, EventKind::SupervisorLost { pid: number });
        engine::sweep(guest)?;
    }
    Ok(Ended { how: StopWay::Killed, reason: Some(reason) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::DatastoreConfig;
    use crate::guest::state::GuestState;
    use crate::guest::store::Store;

    fn guest(dir: &std::path::Path) -> GuestDir {
        let config = DatastoreConfig { id: "default".into(), path: dir.join("ds") };
        let store = Store::new(&config, &dir.join("run"));
        let new = store.begin("g").expect("begins");
        GuestState::new("g").save(&new.guest().state_file()).expect("saves");
        new.commit().expect("commits").0
    }

    #[test]
    fn a_supervisor_that_goes_without_an_answer_has_done_what_was_asked() {
        let dir = tempfile::tempdir().expect("a directory");
        let guest = guest(dir.path());
        let lock = guest.lock(Role::Supervisor).expect("locks");
        let listener = std::os::unix::net::UnixListener::bind(guest.socket()).expect("listens");
        let mut state = guest.state().expect("loads");
        state.last_exit = Some(LastExit::new("the guest powered off".into(), "power-off", (Some(1), None)));
        state.save(&guest.state_file()).expect("saves");
        let going = std::thread::spawn(move || {
            drop(listener.accept().expect("accepts"));
            drop(listener);
            std::thread::sleep(Duration::from_millis(100));
            drop(lock);
        });
        let ended = end_guest(&guest, &Request::Poweroff, None).expect("it has ended");
        assert_eq!(ended.words(), "the guest powered off");
        going.join().expect("no panic");
        let error = end_guest(&guest, &Request::Poweroff, None).expect_err("nobody runs it");
        assert!(error.to_string().contains("is not running"), "{error}");
    }

    #[test]
    fn a_supervisor_that_answers_nobody_is_killed_and_its_end_is_told() {
        use std::os::unix::process::CommandExt;
        let dir = tempfile::tempdir().expect("a directory");
        let guest = guest(dir.path());
        // A process that has the lock, like a locked file that is passed on, and looks like the supervisor.
        let lock = std::fs::File::options().read(true).write(true).open(guest.lock_file()).expect("opens");
        lock.lock().expect("free");
        let mut command = std::process::Command::new("sh");
        command.args(["-c", "sleep 600", "run", "g"]).process_group(0).stdin(lock.try_clone().expect("cloned"));
        let mut child = command.spawn().expect("starts");
        drop(command);
        let holder = Holder { pid: child.id(), boot_id: crate::host::process::boot_id(), role: Role::Supervisor };
        std::fs::write(guest.lock_file(), serde_json::to_string(&holder).expect("plain fields")).expect("writes");
        drop(lock);
        let ended = kill_supervisor(&guest, &holder).expect("killed");
        assert!(ended.words().contains("did not answer and was killed"), "{ended:?}");
        use std::os::unix::process::ExitStatusExt;
        assert_eq!(child.wait().expect("ended").signal(), Some(9));
        let state = guest.state().expect("loads");
        assert_eq!(state.last_exit.map(|exit| exit.kind).as_deref(), Some("killed"));
        assert_eq!(supervisor(&guest), None);
    }

    #[test]
    fn a_process_that_only_a_file_names_is_not_killed() {
        let dir = tempfile::tempdir().expect("a directory");
        let guest = guest(dir.path());
        let mut child = std::process::Command::new("sleep").arg("60").spawn().expect("starts");
        let boot_id = crate::host::process::boot_id();
        let holder = Holder { pid: child.id(), boot_id, role: Role::Supervisor };
        assert!(!is_surely(&guest, &holder));
        assert!(!is_surely(&guest, &Holder { pid: 1, ..holder.clone() }));
        child.kill().expect("killed");
        child.wait().expect("ended");
    }
}
