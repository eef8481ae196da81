//! `vmctl logs`: shows the logs of guests.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;

use super::selection::Chosen;
use super::{App, ExitStatus, Failure, Guests, Outcome, OutputFormat};
use crate::guest::logs::tail;
use crate::guest::store::GuestDir;

/// Show the logs of guests
///
/// Shows the log of the console, unless another is selected. On a terminal, control characters of the guest are shown
/// as text. In the JSON formats, each line is an object.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    guests: Guests,
    /// Continue as the log grows
    #[arg(short, long)]
    follow: bool,
    /// Number of last lines
    #[arg(short = 'n', long, value_name = "COUNT", default_value_t = 100)]
    lines: usize,
    #[command(flatten)]
    which: Which,
}

#[derive(Debug, Clone, clap::Args)]
#[group(multiple = false)]
struct Which {
    /// Output of the serial console (the default)
    #[arg(long)]
    console: bool,
    /// Output of the engine
    #[arg(long)]
    vmm: bool,
    /// Events, as lines of JSON
    #[arg(long)]
    events: bool,
    /// Output of the supervisor
    #[arg(long)]
    supervisor: bool,
}

impl Which {
    fn of(&self, guest: &GuestDir) -> PathBuf {
        match self {
            Which { vmm: true, .. } => guest.vmm_log(),
            Which { events: true, .. } => guest.events_log(),
            Which { supervisor: true, .. } => guest.supervisor_log(),
            _ => guest.console_log(),
        }
    }
    fn word(&self) -> &'static str {
        match self {
            Which { vmm: true, .. } => "vmm",
            Which { events: true, .. } => "events",
            Which { supervisor: true, .. } => "supervisor",
            _ => "console",
        }
    }
}

impl Args {
    pub fn run(self, app: &App) -> Outcome {
        let context = app.context_to_look()?;
        let chosen = self.guests.choose(&context)?;
        if app.ui.is_json() {
            return self.json(app, chosen);
        }
        let many = chosen.len() > 1;
        let mut followed = Vec::new();
        let status = app.each_in_turn(chosen, |guest| {
            let path = self.which.of(guest);
            if many {
                app.ui.data(&format!("==> {} <==\n", guest.name()))?;
            }
            match tail(&path, self.lines) {
                Ok(bytes) => app.ui.bytes(&bytes)?,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(Failure::user(format!("cannot read `{}`: {error}", path.display()))),
            }
            followed.push((guest.name().to_owned(), Follower::at_end(&path)));
            Ok(ExitStatus::Done)
        })?;
        let mut last = followed.last().map(|(name, _)| name.clone()).unwrap_or_default();
        while self.follow && !followed.is_empty() {
            std::thread::sleep(Duration::from_millis(200));
            for (name, follower) in &mut followed {
                let bytes = follower.more();
                if bytes.is_empty() {
                    continue;
                }
                if many && *name != last {
                    app.ui.data(&format!("\n==> {name} <==\n"))?;
                    last.clone_from(name);
                }
                app.ui.bytes(&bytes)?;
            }
        }
        Ok(status)
    }
}

impl Args {
    fn json(&self, app: &App, chosen: Vec<Chosen>) -> Outcome {
        if self.follow && app.ui.format() == OutputFormat::Json {
            return Err(Failure::user("a document of JSON ends, and a log that is followed does not")
                .hint("`-o jsonl` prints an object a line"));
        }
        let (mut lines, mut followed) = (Vec::new(), Vec::new());
        let status = app.each_in_turn(chosen, |guest| {
            let path = self.which.of(guest);
            match tail(&path, self.lines) {
                Ok(bytes) => lines.extend(bytes.split_inclusive(|byte| *byte == b'\n').map(|line| self.line(guest.name(), line))),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(Failure::user(format!("cannot read `{}`: {error}", path.display()))),
            }
            followed.push((guest.name().to_owned(), Follower::at_end(&path), Vec::new()));
            Ok(ExitStatus::Done)
        })?;
        let print = |lines: &[LogLine]| app.ui.list("log", 1, lines, &[], |line: &LogLine| line.guest.clone());
        print(&lines)?;
        while self.follow && !followed.is_empty() {
            std::thread::sleep(Duration::from_millis(200));
            for (name, follower, partial) in &mut followed {
                partial.extend(follower.more());
                while let Some(end) = partial.iter().position(|byte| *byte == b'\n') {
                    let line: Vec<u8> = partial.drain(..=end).collect();
                    print(&[self.line(name, &line)])?;
                }
            }
        }
        Ok(status)
    }

    fn line(&self, guest: &str, bytes: &[u8]) -> LogLine {
        let text = String::from_utf8_lossy(bytes).trim_end_matches(['\n', '\r']).to_owned();
        let event = self.which.events.then(|| serde_json::from_str(&text).ok()).flatten();
        LogLine { guest: guest.to_owned(), log: self.which.word(), text, event }
    }
}

/// One line of a log.
#[derive(Serialize)]
struct LogLine {
    guest: String,
    log: &'static str,
    text: String,
    /// The same, where it is an event.
    #[serde(skip_serializing_if = "Option::is_none")]
    event: Option<serde_json::Value>,
}

/// A reader of a log that grows, also past its rotation.
pub struct Follower {
    path: PathBuf,
    file: Option<File>,
    position: u64,
}

impl Follower {
    /// Starts at the present end of the log.
    pub fn at_end(path: &Path) -> Follower {
        let file = File::open(path).ok();
        let position = file.as_ref().and_then(|file| file.metadata().ok()).map_or(0, |metadata| metadata.len());
        Follower { path: path.to_owned(), file, position }
    }

    /// Returns the added bytes, at most 1 MiB at a time.
    pub fn more(&mut self) -> Vec<u8> {
        let mut bytes = self.read();
        let inode = |metadata: std::fs::Metadata| (metadata.dev(), metadata.ino());
        let ours = self.file.as_ref().and_then(|file| file.metadata().ok()).map(inode);
        let now = std::fs::metadata(&self.path).ok().map(inode);
        if now.is_some() && now != ours {
            // It was rotated. The bytes written to the old file meanwhile have been read above.
            self.file = File::open(&self.path).ok();
            self.position = 0;
            bytes.extend(self.read());
        }
        bytes
    }

    fn read(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let Some(file) = &mut self.file else { return bytes };
        if file.metadata().is_ok_and(|metadata| metadata.len() < self.position) {
            self.position = 0;
        }
        let read = file.seek(SeekFrom::Start(self.position)).and_then(|_| file.take(1 << 20).read_to_end(&mut bytes));
        self.position += read.unwrap_or(0) as u64;
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_followed_past_its_rotation() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("log");
        std::fs::write(&path, "old\n").expect("writes");
        let mut follower = Follower::at_end(&path);
        assert!(follower.more().is_empty());
        std::fs::write(&path, "old\none\n").expect("writes");
        assert_eq!(follower.more(), b"one\n");
        std::fs::rename(&path, dir.path().join("log.1")).expect("renames");
        std::fs::write(&path, "two\n").expect("writes");
        assert_eq!(follower.more(), b"two\n");
        assert!(follower.more().is_empty());
    }
}
