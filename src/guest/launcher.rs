//! How a command starts a supervisor and hears what became of it, and how it asks one that runs.

use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::host::process::{open_log, spawn_detached};

use super::control::{ControlClient, Frame, Hello, PROTOCOL_VERSION, Reply, Request};
use super::error::{Fault, GuestError, Result};
use super::lock::{GuestLock, Holder, Role};
use super::store::GuestDir;

/// How long a supervisor that has its lock may take until it answers, or is gone.
const ANSWER_PATIENCE: Duration = Duration::from_secs(5);

/// The supervisor's own log is started anew when it has grown past this.
const LOG_LIMIT: u64 = 256 * 1024;

/// What a detached supervisor reports on its standard output, once, as a line of JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Whether the guest runs.
    pub running: bool,
    /// Why not.
    pub message: String,
    /// The next step.
    pub hint: Option<String>,
    /// Whether the user can put it right.
    pub user: bool,
}

impl Report {
    /// Of the outcome of a start.
    pub fn of(outcome: std::result::Result<(), &GuestError>) -> Report {
        match outcome {
            Ok(()) => Report { running: true, message: String::new(), hint: None, user: false },
            Err(error) => Report {
                running: false,
                message: error.chain(),
                hint: error.next_step().map(str::to_owned),
                user: error.fault() == Fault::User,
            },
        }
    }
}

/// Starts `command`, a supervisor of `guest`, detached, and returns when the guest runs, or with why it does not.
pub fn start(guest: &GuestDir, mut command: Command) -> Result<()> {
    let log = guest.supervisor_log();
    let stderr = open_log(&log, LOG_LIMIT).map_err(|error| GuestError::io("write", &log, error))?;
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(stderr).current_dir("/");
    let mut child =
        spawn_detached(&mut command).map_err(|error| GuestError::host(format!("cannot start the supervisor: {error}")))?;
    let stdout = child.stdout.take().expect("piped above");
    let mut line = String::new();
    let read = BufReader::new(stdout).read_line(&mut line);
    match read.ok().and_then(|_| serde_json::from_str::<Report>(&line).ok()) {
        Some(report) if report.running => Ok(()),
        Some(report) => {
            // It has let the guest go when it is gone.
            let _ = child.wait();
            let error = if report.user { GuestError::user(report.message) } else { GuestError::host(report.message) };
            Err(match report.hint {
                Some(hint) => error.hint(hint),
                None => error,
            })
        }
        None => {
            let ended = child.wait().map(|status| status.to_string()).unwrap_or_default();
            Err(GuestError::host(format!("the supervisor of `{}` ended before the guest ran ({ended})", guest.name()))
                .hint(format!("`{}` may say why", log.display())))
        }
    }
}

/// Who runs `guest`. A supervisor that was killed has its lock for a moment longer, so that one is believed only when it
/// answers; one that does neither answer nor go is named all the same.
pub fn supervisor_of(guest: &GuestDir) -> Option<Holder> {
    let started = Instant::now();
    loop {
        let holder = GuestLock::holder(&guest.lock_file()).filter(|holder| holder.role == Role::Supervisor)?;
        if answers(guest) || started.elapsed() > ANSWER_PATIENCE {
            return Some(holder);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn answers(guest: &GuestDir) -> bool {
    let stream = match UnixStream::connect(guest.socket()) {
        Ok(stream) => stream,
        // Somebody else's supervisor cannot be asked; its lock must do.
        Err(error) => return error.kind() == std::io::ErrorKind::PermissionDenied,
    };
    let limited = stream.set_read_timeout(Some(Duration::from_secs(1))).is_ok();
    let mut client = ControlClient::over(stream);
    limited
        && client.send(&Frame::json(&Hello { version: PROTOCOL_VERSION, request: Request::Status })).is_ok()
        && matches!(client.reply(), Ok(Some(_)))
}

/// Connects to the supervisor of a running guest.
pub fn ask(guest: &GuestDir, request: Request) -> Result<ControlClient> {
    let started = Instant::now();
    loop {
        if let Some(client) = ControlClient::ask(&guest.socket(), request.clone())? {
            return Ok(client);
        }
        // A supervisor has its lock a moment before its socket, and its socket's end a moment before its lock's.
        match GuestLock::holder(&guest.lock_file()) {
            Some(holder) if holder.role == Role::Supervisor && started.elapsed() < ANSWER_PATIENCE => {
                std::thread::sleep(Duration::from_millis(10));
            }
            Some(holder) if holder.role == Role::Supervisor => {
                let message = format!("the supervisor of `{}` (process {}) does not answer", guest.name(), holder.pid);
                return Err(GuestError::host(message).hint(format!("`kill -9 {}` ends it and the guest", holder.pid)));
            }
            _ => {
                return Err(GuestError::user(format!("`{}` is not running", guest.name()))
                    .hint(format!("start it: `vmctl start {}`", guest.name())));
            }
        }
    }
}

/// Asks and waits for the answer.
pub fn ask_once(guest: &GuestDir, request: Request) -> Result<Reply> {
    match ask(guest, request)?.reply()? {
        Some(Reply::Error { message, hint }) => Err(match hint {
            Some(hint) => GuestError::user(message).hint(hint),
            None => GuestError::user(message),
        }),
        Some(reply) => Ok(reply),
        None => Err(GuestError::host("the supervisor ended without an answer")
            .hint(format!("`vmctl events {}` may say why", guest.name()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::DatastoreConfig;
    use crate::guest::state::GuestState;
    use crate::guest::store::Store;

    #[test]
    fn a_supervisor_that_is_going_is_waited_for_and_runs_the_guest_no_more() {
        let dir = tempfile::tempdir().expect("a directory");
        let config = DatastoreConfig { id: "default".into(), path: dir.path().join("ds") };
        let store = Store::new(&config, &dir.path().join("run"));
        let new = store.begin("g").expect("begins");
        GuestState::new("g").save(&new.guest().state_file()).expect("saves");
        let guest = new.commit().expect("commits").0;
        assert_eq!(supervisor_of(&guest), None);
        // As the kernel leaves it between a SIGKILL and the last thread's end: locked, and nobody answers.
        let lock = guest.lock(Role::Supervisor).expect("locks");
        let going = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(400));
            drop(lock);
        });
        assert_eq!(supervisor_of(&guest), None);
        going.join().expect("no panic");
    }
}
