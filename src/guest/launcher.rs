//! How a command starts a supervisor and hears what became of it, and how it asks one that runs.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::host::process::{look_at, open_log, spawn_detached};

use super::control::{ControlClient, Frame, Hello, PROTOCOL_VERSION, Reply, Request, connect};
use super::error::{Fault, GuestError, Result};
use super::lock::{GuestLock, Holder, Role};
use super::store::GuestDir;

/// How long a supervisor that has its lock may take until it answers, or is gone.
const ANSWER_PATIENCE: Duration = Duration::from_secs(5);

/// Between two looks whether a supervisor that owes an answer answers others.
const LOOK: Duration = Duration::from_secs(2);
/// How long a supervisor whose process was stopped may go on so.
const STOPPED_PATIENCE: Duration = Duration::from_secs(2);
/// How long one that runs may answer nobody: it makes disks, waits for an engine that cleans up, writes to a slow disk.
const STUCK_PATIENCE: Duration = Duration::from_secs(45);

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
    /// Of a start that did not come as far as the guest.
    pub fn failed(message: &str, hint: Option<&str>, user: bool) -> Report {
        Report { running: false, message: message.to_owned(), hint: hint.map(str::to_owned), user }
    }

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
            let said = said_since(&log, before);
            Err(GuestError::host(format!("the supervisor of `{}` ended before the guest ran ({ended}){said}", guest.name()))
                .hint(format!("`{}` may say more", log.display())))
        }
    }
}

/// What was written to a log past its first `before` bytes, as the end of a message.
fn said_since(log: &Path, before: u64) -> String {
    use std::io::{Read, Seek, SeekFrom};
    let mut text = String::new();
    let read = std::fs::File::open(log).and_then(|mut file| {
        file.seek(SeekFrom::Start(before))?;
        file.take(4096).read_to_string(&mut text)
    });
    match text.trim() {
        said if read.is_ok() && !said.is_empty() => format!("; it said:\n{said}"),
        _ => String::new(),
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

/// Whether a supervisor answers within a second.
pub(super) fn answers(guest: &GuestDir) -> bool {
    let limit = Duration::from_secs(1);
    let stream = match connect(&guest.socket(), limit) {
        Ok(stream) => stream,
        // Somebody else's supervisor cannot be asked; its lock must do.
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
        // A supervisor has its lock a moment before its socket, and its socket's end a moment before its lock's.
        match GuestLock::holder(&guest.lock_file()) {
            Some(holder) if holder.role == Role::Supervisor && started.elapsed() < ANSWER_PATIENCE => {
                std::thread::sleep(Duration::from_millis(10));
            }
            Some(holder) if holder.role == Role::Supervisor => return Err(silent(guest, &holder)),
            _ => return Err(not_running(guest)),
        }
    }
}

/// There is nobody to ask.
pub fn not_running(guest: &GuestDir) -> GuestError {
    GuestError::user(format!("`{}` is not running", guest.name())).hint(format!("start it: `vmctl start {}`", guest.name()))
}

/// What a supervisor did not do.
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

/// What came of waiting for an answer.
pub(super) enum Heard {
    /// The answer.
    Reply(Reply),
    /// The connection ended without one.
    Lost,
    /// The supervisor does not answer anybody.
    Silent,
    /// There was none in time.
    Late,
}

/// Waits for an answer, at most until `until`, and looks every now and then whether the supervisor answers at all: how
/// long a guest may take is its own matter, and a supervisor that hangs must not hold anybody up.
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

/// Whether the supervisor that has the guest answers nobody: at once if its process was stopped, and if not, for longer
/// than anything that it does takes.
pub(super) fn is_stuck(guest: &GuestDir, until: Option<Instant>) -> bool {
    let started = Instant::now();
    loop {
        if answers(guest) {
            return false;
        }
        let holder = GuestLock::holder(&guest.lock_file()).filter(|holder| holder.role == Role::Supervisor);
        // Gone is not stuck.
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

/// Asks and waits for the answer. What ends a guest is [`super::stopping`]'s.
pub fn ask_once(guest: &GuestDir, request: Request) -> Result<Reply> {
    let mut client = ask(guest, request)?;
    match hear(guest, &mut client, None)? {
        Heard::Reply(Reply::Error { message, hint }) => Err(refused(message, hint)),
        Heard::Reply(reply) => Ok(reply),
        Heard::Silent => match GuestLock::holder(&guest.lock_file()) {
            Some(holder) => Err(silent(guest, &holder)),
            None => Err(not_running(guest)),
        },
        Heard::Lost | Heard::Late => Err(GuestError::user(format!("`{}` has stopped meanwhile", guest.name()))
            .hint(format!("`vmctl events {}` says why", guest.name()))),
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
