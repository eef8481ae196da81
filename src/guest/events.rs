//! The event log of a guest: `events.jsonl`, one JSON document per line, bounded.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::logs::RotatingLog;
use super::timestamp::Timestamp;

/// The version of the lines.
pub const EVENT_VERSION: u32 = 1;
/// Size at which the log is rotated. One older file is kept.
pub const LOG_LIMIT: u64 = 1 << 20;

/// One event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Always [`EVENT_VERSION`].
    pub version: u32,
    /// Time of the event.
    pub time: Timestamp,
    /// Name of the guest.
    pub guest: String,
    /// Kind of the event.
    #[serde(flatten)]
    pub kind: EventKind,
}

/// Kind of an event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum EventKind {
    /// The guest was made.
    Created,
    /// The guest was made as a copy.
    Cloned {
        /// Name of the original.
        from: String,
    },
    /// The guest was renamed.
    Renamed {
        /// The old name.
        from: String,
    },
    /// A supervisor took the guest.
    SupervisorStarted {
        /// Its process.
        pid: u32,
    },
    /// The supervisor before this one was killed, or the host lost its power.
    SupervisorLost {
        /// Its process.
        pid: u32,
    },
    /// A boot begins.
    Starting {
        /// Number of the boot, over the guest's life.
        boot: u64,
    },
    /// The boot is an installer's, from this medium.
    Installing {
        /// The medium.
        medium: std::path::PathBuf,
    },
    /// The guest runs.
    Running {
        /// Number of the boot, over the guest's life.
        boot: u64,
        /// Its vCPU back end.
        backend: String,
        /// The engine's process.
        pid: u32,
    },
    /// All probes have passed.
    Ready {
        /// Time since the guest runs.
        after_ms: u64,
    },
    /// The probes have not passed in time.
    NotReady {
        /// The probe that did not pass.
        probe: String,
    },
    /// A request came.
    Requested {
        /// `stop`, `restart`, `reset`, `poweroff`, `kill`, `nmi`.
        action: String,
    },
    /// The guest did not stop in time and was powered off.
    StopTimedOut {
        /// Time-out in seconds.
        after_seconds: u64,
    },
    /// A boot ended.
    Exited {
        /// The exit in words.
        reason: String,
        /// One word for programs: `power-off`, `no-acpi`...
        #[serde(default)]
        kind: String,
        /// Exit code of the process.
        code: Option<i32>,
        /// Signal that ended the process.
        signal: Option<i32>,
    },
    /// The engine reported an error.
    EngineError {
        /// Its message.
        message: String,
    },
    /// The next boot follows.
    Restarting {
        /// Wait before it.
        delay_ms: u64,
    },
    /// The next boot cannot begin yet, since a file system is full.
    BootDelayed {
        /// The reason in words.
        reason: String,
        /// Wait before the next try.
        delay_ms: u64,
    },
    /// The guest is not started again.
    Failed {
        /// The reason in words.
        reason: String,
    },
    /// `reset-failed`.
    FailureCleared,
    /// The supervisor let the guest go.
    Stopped,
    /// A hook ended.
    Hook {
        /// Its id.
        hook: String,
        /// `ok` or the error.
        outcome: String,
    },
    /// A log cannot be written. The guest continues.
    LogLost {
        /// Name of the log, and the reason.
        message: String,
    },
    /// A client opened the console.
    ConsoleAttached {
        /// Whether it may type.
        writer: bool,
    },
    /// The client closed the console.
    ConsoleDetached {
        /// The reason.
        reason: String,
    },
}

impl Event {
    /// Creates an event of this moment.
    pub fn now(guest: &str, kind: EventKind) -> Event {
        Event { version: EVENT_VERSION, time: Timestamp::now(), guest: guest.to_owned(), kind }
    }

    /// Returns the event as one line.
    pub fn line(&self) -> String {
        serde_json::to_string(self).expect("plain fields") + "\n"
    }

    /// Returns the words for users, without the time and the guest.
    pub fn words(&self) -> String {
        use EventKind::*;
        match &self.kind {
            Created => "created".into(),
            Cloned { from } => format!("cloned from {from}"),
            Renamed { from } => format!("renamed from {from}"),
            SupervisorStarted { pid } => format!("supervisor {pid} started"),
            SupervisorLost { pid } => format!("supervisor {pid} was killed, or the host went down"),
            Starting { boot } => format!("boot {boot} begins"),
            Installing { medium } => format!("it is an installer's, from `{}`", medium.display()),
            Running { boot, backend, pid } => format!("boot {boot} runs (back end {backend}, pid {pid})"),
            Ready { after_ms } => format!("ready after {after_ms} ms"),
            NotReady { probe } => format!("not ready in time: {probe}"),
            Requested { action } => format!("{action} requested"),
            StopTimedOut { after_seconds } => format!("did not stop within {after_seconds} s, powered off"),
            Exited { reason, .. } => format!("exited: {reason}"),
            EngineError { message } => format!("engine: {message}"),
            Restarting { delay_ms: 0 } => "boots again".into(),
            Restarting { delay_ms } => format!("boots again in {delay_ms} ms"),
            BootDelayed { reason, delay_ms } => format!("cannot boot yet, tried again in {delay_ms} ms: {reason}"),
            Failed { reason } => format!("failed: {reason}"),
            FailureCleared => "failure cleared".into(),
            Stopped => "stopped".into(),
            Hook { hook, outcome } => format!("hook {hook}: {outcome}"),
            LogLost { message } => format!("log lost: {message}"),
            ConsoleAttached { writer: true } => "console attached".into(),
            ConsoleAttached { writer: false } => "console attached, read-only".into(),
            ConsoleDetached { reason } => format!("console detached: {reason}"),
        }
    }
}

/// Opens the event log at `path` for appending.
pub fn open_log(path: &Path) -> RotatingLog {
    RotatingLog::open(path, LOG_LIMIT, 1, 0o644)
}

/// Appends one event of a command that is not a supervisor. An error is ignored, since a log must not prevent a
/// command's work.
pub fn record(path: &Path, guest: &str, kind: EventKind) {
    let _ = open_log(path).append(Event::now(guest, kind).line().as_bytes());
}

/// Returns the events of a log, the oldest first. Incomplete lines and those of a newer version are left out.
pub fn read(path: &Path) -> Vec<Event> {
    let mut events = Vec::new();
    for file in [super::logs::numbered(path, 1), path.to_owned()] {
        let text = std::fs::read_to_string(file).unwrap_or_default();
        events.extend(text.lines().filter_map(|line| serde_json::from_str::<Event>(line).ok()));
    }
    events
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_read_back_and_damaged_lines_are_left_out() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("events.jsonl");
        record(&path, "g", EventKind::Created);
        let mut log = open_log(&path);
        log.append(b"{\"version\":1,\"ti\n{\"version\":9}\n").expect("appends");
        record(&path, "g", EventKind::Running { boot: 1, backend: "soft".into(), pid: 7 });
        let kinds: Vec<_> = read(&path).into_iter().map(|event| event.kind).collect();
        assert_eq!(kinds, [EventKind::Created, EventKind::Running { boot: 1, backend: "soft".into(), pid: 7 }]);
    }

    #[test]
    fn a_line_has_its_fields_on_one_level() {
        let event = Event { version: 1, time: Timestamp(0), guest: "g".into(), kind: EventKind::Starting { boot: 2 } };
        let line = r#"{"version":1,"time":"1970-01-01T00:00:00.000Z","guest":"g","event":"starting","boot":2}"#;
        assert_eq!(event.line().trim_end(), line);
    }
}
