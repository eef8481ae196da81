//! The thread of a boot that talks to the guest's agent: it waits for the first answer, asks for the guest's addresses at
//! intervals, and runs commands.
//!
//! **Hostile guest**: an agent that does not answer costs this thread its time limits and nothing else. The number of jobs
//! that wait and of commands that run is bounded.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use super::client::{AgentClient, AgentError, Result};
use super::commands::{self, AgentInterface, Executed, GuestCommand};
use crate::guest::control::connect;
use crate::guest::engine::AgentEnd;

/// Time-out of one attempt to get a first answer.
const ATTEMPT: Duration = Duration::from_secs(1);
/// Bounds of the time between two attempts, which grows with the time since the boot.
const LEAST_PAUSE: Duration = Duration::from_millis(200);
const MOST_PAUSE: Duration = Duration::from_secs(5);
/// Bounds of the time between two questions for addresses: a guest gets its first one soon after its agent starts.
const FIRST_REFRESH: Duration = Duration::from_secs(1);
const LAST_REFRESH: Duration = Duration::from_secs(60);
/// Bounds of the time between two questions whether a command has ended.
const FIRST_LOOK: Duration = Duration::from_millis(20);
const LAST_LOOK: Duration = Duration::from_secs(1);
/// Maximum number of commands that run at a time, and of jobs that wait.
const MOST_COMMANDS: usize = 16;

/// What the thread reports.
#[derive(Debug, PartialEq, Eq)]
pub enum News {
    /// The agent has answered for the first time in this boot.
    Answered,
    /// The guest's addresses are other ones than before.
    Addresses(Vec<AgentInterface>),
    /// The command of this number has ended, or cannot be waited for.
    Executed(u64, std::result::Result<Executed, String>),
}

enum Job {
    Execute(u64, GuestCommand),
    ShutDown,
}

/// The agent of a guest that runs. Its thread ends when this is dropped.
pub struct Agent {
    jobs: SyncSender<Job>,
}

impl Agent {
    /// Starts the thread on the host's end of the port. It calls `tell` with its news.
    pub fn start(end: AgentEnd, tell: impl Fn(News) + Send + 'static) -> Agent {
        let (jobs, waiting) = sync_channel(MOST_COMMANDS);
        let line = match end {
            AgentEnd::Stream(stream) => Line::Stream(Some(stream)),
            AgentEnd::Socket(path) => Line::Socket(path),
        };
        let now = Instant::now();
        let service = Service {
            line,
            client: None,
            began: now,
            answered: false,
            due: now,
            refresh: FIRST_REFRESH,
            addresses: Vec::new(),
            commands: Vec::new(),
            tell,
        };
        std::thread::spawn(move || service.run(&waiting));
        Agent { jobs }
    }

    /// Runs a command in the guest. Its end is reported under this number.
    pub fn execute(&self, number: u64, command: GuestCommand) -> std::result::Result<(), String> {
        let sent = self.jobs.try_send(Job::Execute(number, command));
        sent.map_err(|_| "the guest's agent has too much to do".to_owned())
    }

    /// Asks the guest to shut down. If that does not succeed, the power button has been pressed all the same.
    pub fn shut_down(&self) {
        let _ = self.jobs.try_send(Job::ShutDown);
    }
}

/// The way to the port.
enum Line {
    /// A stream, which is used once.
    Stream(Option<UnixStream>),
    /// A socket, which is connected to again after an error.
    Socket(PathBuf),
}

impl Line {
    fn open(&mut self) -> io::Result<UnixStream> {
        match self {
            Line::Stream(stream) => stream.take().ok_or_else(|| io::ErrorKind::NotConnected.into()),
            Line::Socket(path) => connect(path, ATTEMPT),
        }
    }
}

/// A command that runs in the guest.
struct Command {
    number: u64,
    pid: i64,
    look_at: Instant,
    pause: Duration,
}

struct Service<T> {
    line: Line,
    client: Option<AgentClient>,
    began: Instant,
    answered: bool,
    /// When the agent is asked for its first answer, or for addresses, the next time.
    due: Instant,
    refresh: Duration,
    addresses: Vec<AgentInterface>,
    commands: Vec<Command>,
    tell: T,
}

impl<T: Fn(News)> Service<T> {
    fn run(mut self, jobs: &Receiver<Job>) {
        loop {
            let due = self.commands.iter().map(|command| command.look_at).chain([self.due]).min().unwrap_or(self.due);
            match jobs.recv_timeout(due.saturating_duration_since(Instant::now())) {
                Ok(Job::Execute(number, command)) => self.execute(number, &command),
                Ok(Job::ShutDown) => drop(self.with(|client| commands::shut_down(client))),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            if Instant::now() >= self.due {
                match self.answered {
                    true => self.ask_addresses(),
                    false => self.ask_first(),
                }
            }
            self.look_at_commands();
        }
    }

    /// Calls the agent, over a new connection if the last one is lost.
    fn with<R>(&mut self, call: impl FnOnce(&mut AgentClient) -> Result<R>) -> Result<R> {
        let mut client = match self.client.take() {
            Some(client) => client,
            None => self.line.open().and_then(AgentClient::over).map_err(AgentError::Lost)?,
        };
        let result = call(&mut client);
        if !matches!(result, Err(AgentError::Lost(_))) {
            self.client = Some(client);
        }
        result
    }

    fn ask_first(&mut self) {
        let now = Instant::now();
        match self.with(|client| client.sync(ATTEMPT)) {
            Ok(()) => {
                (self.answered, self.due) = (true, now);
                (self.tell)(News::Answered);
            }
            Err(_) => self.due = now + (self.began.elapsed() / 20).clamp(LEAST_PAUSE, MOST_PAUSE),
        }
    }

    fn ask_addresses(&mut self) {
        if let Ok(addresses) = self.with(commands::interfaces)
            && addresses != self.addresses
        {
            self.addresses.clone_from(&addresses);
            (self.tell)(News::Addresses(addresses));
        }
        self.due = Instant::now() + self.refresh;
        self.refresh = (self.refresh * 2).min(LAST_REFRESH);
    }

    fn execute(&mut self, number: u64, command: &GuestCommand) {
        let started = match self.commands.len() < MOST_COMMANDS {
            true => self.with(|client| commands::execute(client, command)).map_err(|error| error.to_string()),
            false => Err(format!("{MOST_COMMANDS} commands run in the guest already")),
        };
        match started {
            Ok(pid) => self.commands.push(Command { number, pid, look_at: Instant::now(), pause: FIRST_LOOK }),
            Err(words) => (self.tell)(News::Executed(number, Err(words))),
        }
    }

    fn look_at_commands(&mut self) {
        let now = Instant::now();
        for mut command in std::mem::take(&mut self.commands) {
            if command.look_at > now {
                self.commands.push(command);
                continue;
            }
            match self.with(|client| commands::executed(client, command.pid)) {
                Ok(Some(end)) => (self.tell)(News::Executed(command.number, Ok(end))),
                Ok(None) => {
                    command.look_at = Instant::now() + command.pause;
                    command.pause = (command.pause * 2).min(LAST_LOOK);
                    self.commands.push(command);
                }
                Err(error) => (self.tell)(News::Executed(command.number, Err(no_end(&error)))),
            }
        }
    }
}

/// Returns words for a command whose end is not known.
fn no_end(error: &AgentError) -> String {
    match error {
        AgentError::TooLong(_) => format!("the command wrote more than {} MiB", commands::MOST_OUTPUT >> 20),
        error => format!("{error}; the command may still run"),
    }
}
