//! Starting a supervisor from a command and getting its result, and sending requests to a running one.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use crate::host::process::{look_at, open_log, spawn_detached};

use super::agent::commands::Executed;
use super::control::{ControlClient, Frame, Hello, PROTOCOL_VERSION, Reply, Request, connect};
use super::error::{Fault, GuestError, Result};
use super::lock::{GuestLock, Holder, Role};
use super::store::GuestDir;

/// Time-out for a supervisor with a lock to answer or end.
const ANSWER_PATIENCE: Duration = Duration::from_secs(5);

/// Interval at which a supervisor that owes an answer is checked whether it answers others.
const LOOK: Duration = Duration::from_secs(2);
/// Time that a stopped supervisor process may stay stopped.
const STOPPED_PATIENCE: Duration = Duration::from_secs(2);
/// Time that a running supervisor may not answer: it makes disks, waits for an engine that cleans up, writes to a slow
/// disk.
const STUCK_PATIENCE: Duration = Duration::from_secs(45);

/// The supervisor's own log starts again when it has grown past this.
const LOG_LIMIT: u64 = 256 * 1024;

/// Report of a detached supervisor on its standard output, once, as a line of JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Whether the guest runs.
    pub running: bool,
    /// Reason why not.
    pub message: String,
    /// The next step.
    pub hint: Option<String>,
    /// Whether the user can fix it.
    pub user: bool,
}

impl Report {
    /// Creates the report of a start that did not get as far as the guest.
    pub fn failed(message: &str, hint: Option<&str>, user: bool) -> Report {
        Report { running: false, message: message.to_owned(), hint: hint.map(str::to_owned), user }
    }

    /// Creates the report of a start's result.
    pub fn of(outcome: std::result::Result<(), &GuestError>) -> Report {
        match outcome {
            Ok(()) => Report { running: true, message: String::new(), hint: None, user: false },
            Err(error) => Report {
                running: false,
                message: error.chain(),
                hint: error.next_step().map(str::to_owned),
                user: error.fault() != Fault::Host,
            },
        }
    }
}

/// Starts `command`, a supervisor of `guest`, detached. Returns when the guest runs, or the reason why it does not.
pub fn start(guest: &GuestDir, mut command: Command) -> Result<()> {
    let log = guest.supervisor_log();
    let stderr = open_log(&log, LOG_LIMIT).map_err(|error| GuestError::io("write", &log, error))?;
    let before = stderr.metadata().map_or(0, |metadata| metadata.len());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(stderr).current_dir("/");
    let mut child =
        spawn_detached(&mut command).map_err(|error| GuestError::host(format!("cannot start the supervisor: {error}")))?;
    let stdout = child.stdout.take().expect("piped above");
    let mut line = String::new();
    let read = BufReader::new(stdout).read_line(&mut line);
    match read.ok().and_then(|_| serde_json::from_str::<Report>(&line).ok()) {
        Some(report) if report.running => Ok(()),
        Some(report) => {
            // The supervisor has released the guest once it is gone.
            let _ = child.wait();
            let error = if report.user { GuestError::user(report.message) } else { GuestError::host(report.message) };
            Err(match report.hint {
                Some(hint) => error.hint(hint),
                None => error,
            })
        }
        None => {
            let ended = child.wait().map(|status| status.to_string()).unwrap_or_default();
            let said = said_since(&log, before);
            Err(GuestError::host(format!("the supervisor of `{}` ended before the guest ran ({ended}){said}", guest.name()))
                .hint(format!("`{}` may say more", log.display())))
        }
    }
}

/// Returns the text of a log after its first `before` bytes, as the end of a message.
fn said_since(log: &Path, before: u64) -> String {
    use std::io::{Read, Seek, SeekFrom};
    let mut text = String::new();
    let read = std::fs::File::open(log).and_then(|mut file| {
        file.seek(SeekFrom::Start(before))?;
        file.take(4096).read_to_string(&mut text)
    });
    match text.trim() {
        said if read.is_ok() && !said.is_empty() => format!("; its output:\n{said}"),
        _ => String::new(),
    }
}

/// Returns the supervisor of `guest`. A supervisor that was killed has its lock for a moment longer, so one counts only
/// if it answers. One that neither answers nor ends is returned nevertheless.
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

/// Returns whether a supervisor answers within a second.
pub(super) fn answers(guest: &GuestDir) -> bool {
    let limit = Duration::from_secs(1);
    let stream = match connect(&guest.socket(), limit) {
        Ok(stream) => stream,
        // Another user's supervisor cannot be asked. Its lock must be enough.
        Err(error) => return error.kind() == std::io::ErrorKind::PermissionDenied,
    };
    let mut client = ControlClient::over(stream);
    client.send(&Frame::json(&Hello { version: PROTOCOL_VERSION, request: Request::Status })).is_ok()
        && matches!(client.reply_within(limit), Ok(Some(Some(_))))
}

/// Connects to the supervisor of a running guest.
pub fn ask(guest: &GuestDir, request: Request) -> Result<ControlClient> {
    let started = Instant::now();
    loop {
        if let Some(client) = ControlClient::ask(&guest.socket(), request.clone())? {
            return Ok(client);
        }
        // A supervisor has its lock a moment before its socket, and its socket ends a moment before its lock.
        match GuestLock::holder(&guest.lock_file()) {
            Some(holder) if holder.role == Role::Supervisor && started.elapsed() < ANSWER_PATIENCE => {
                std::thread::sleep(Duration::from_millis(10));
            }
            Some(holder) if holder.role == Role::Supervisor => return Err(silent(guest, &holder)),
            _ => return Err(not_running(guest)),
        }
    }
}

/// Creates the error that the guest does not run.
pub fn not_running(guest: &GuestDir) -> GuestError {
    GuestError::user(format!("`{}` is not running", guest.name())).hint(format!("start it: `vmctl start {}`", guest.name()))
}

/// Creates the error of a refused request.
pub(super) fn refused(message: String, hint: Option<String>) -> GuestError {
    let error = GuestError::user(message);
    match hint {
        Some(hint) => error.hint(hint),
        None => error,
    }
}

fn silent(guest: &GuestDir, holder: &Holder) -> GuestError {
    GuestError::host(format!("the supervisor of `{}` (process {}) does not answer", guest.name(), holder.pid))
        .hint(format!("`vmctl kill {}` ends it and the guest", guest.name()))
}

/// Result of waiting for an answer.
pub(super) enum Heard {
    /// The answer.
    Reply(Reply),
    /// The connection ended without an answer.
    Lost,
    /// The supervisor answers no client.
    Silent,
    /// There was no answer in time.
    Late,
}

/// Waits for an answer, at most until `until`, and checks at intervals whether the supervisor answers at all: a guest
/// may take its time, but a supervisor that hangs must not block a command.
pub(super) fn hear(guest: &GuestDir, client: &mut ControlClient, until: Option<Instant>) -> Result<Heard> {
    loop {
        let left = until.map_or(LOOK, |until| until.saturating_duration_since(Instant::now()).min(LOOK));
        match client.reply_within(left)? {
            Some(Some(reply)) => return Ok(Heard::Reply(reply)),
            Some(None) => return Ok(Heard::Lost),
            None if until.is_some_and(|until| Instant::now() >= until) => return Ok(Heard::Late),
            None if is_stuck(guest, until) => return Ok(Heard::Silent),
            None => {}
        }
    }
}

/// Returns whether the supervisor of the guest answers no client: at once if its process was stopped, otherwise for
/// longer than anything that it does takes.
pub(super) fn is_stuck(guest: &GuestDir, until: Option<Instant>) -> bool {
    let started = Instant::now();
    loop {
        if answers(guest) {
            return false;
        }
        let holder = GuestLock::holder(&guest.lock_file()).filter(|holder| holder.role == Role::Supervisor);
        // A process that is gone is not stuck.
        let Some(holder) = holder else { return false };
        let patience = match look_at(holder.pid) {
            Some(process) if process.stopped => STOPPED_PATIENCE,
            _ => STUCK_PATIENCE,
        };
        if started.elapsed() > patience {
            return true;
        }
        if until.is_some_and(|until| Instant::now() >= until) {
            return false;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Sends a request and waits for the answer. Requests that end a guest are in [`super::stopping`].
pub fn ask_once(guest: &GuestDir, request: Request) -> Result<Reply> {
    let mut client = ask(guest, request)?;
    match hear(guest, &mut client, None)? {
        Heard::Reply(Reply::Error { message, hint }) => Err(refused(message, hint)),
        Heard::Reply(reply) => Ok(reply),
        Heard::Silent => Err(unanswered(guest)),
        Heard::Lost | Heard::Late => Err(stopped_meanwhile(guest)),
    }
}

/// Creates the error of a request that a supervisor does not answer, if there still is one.
fn unanswered(guest: &GuestDir) -> GuestError {
    match GuestLock::holder(&guest.lock_file()) {
        Some(holder) => silent(guest, &holder),
        None => not_running(guest),
    }
}

fn stopped_meanwhile(guest: &GuestDir) -> GuestError {
    GuestError::user(format!("`{}` has stopped meanwhile", guest.name()))
        .hint(format!("`vmctl events {}` says why", guest.name()))
}

/// Runs a command in a guest by its agent. Returns `None` if it has not ended at `until`; then it goes on.
pub fn execute(
    guest: &GuestDir,
    command: Vec<String>,
    input: Option<Vec<u8>>,
    until: Option<Instant>,
) -> Result<Option<Executed>> {
    let input = input.map(|bytes| STANDARD.encode(bytes));
    let mut client = ask(guest, Request::Execute { command, input })?;
    let mut end = Executed::default();
    loop {
        match hear(guest, &mut client, until)? {
            Heard::Reply(Reply::Output { error, base64 }) => {
                let bytes = STANDARD.decode(base64);
                let bytes = bytes.map_err(|_| GuestError::host("the supervisor's answer is malformed: it is not base64"))?;
                if error { &mut end.err } else { &mut end.out }.extend(bytes);
            }
            Heard::Reply(Reply::Executed { code, signal, truncated }) => {
                return Ok(Some(Executed { code, signal, truncated, ..end }));
            }
            Heard::Reply(Reply::Error { message, hint }) => return Err(refused(message, hint)),
            Heard::Reply(other) => return Err(GuestError::host(format!("the supervisor answered {other:?}"))),
            Heard::Late => return Ok(None),
            Heard::Silent => return Err(unanswered(guest)),
            Heard::Lost => return Err(stopped_meanwhile(guest)),
        }
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
        // The state between a SIGKILL and the end of the last thread: locked, and nothing answers.
        let lock = guest.lock(Role::Supervisor).expect("locks");
        let going = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(400));
            drop(lock);
        });
        assert_eq!(supervisor_of(&guest), None);
        going.join().expect("no panic");
    }
}
