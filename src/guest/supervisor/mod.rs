//! The supervisor: one process per guest. It holds the guest's lock, runs its hooks, starts one engine per boot,
//! applies the restart policy, serves the console and the control socket, and writes the event log.
//!
//! One thread polls everything. Helpers (signals, the engine's end, hooks, probes) send it [`Message`]s and a byte on
//! the wake stream. [`Stage`] says what the supervisor waits for, and owns the state of one boot.
//!
//! **Hostile guest**: see [`console`] and [`clients`]; the engine's messages are bounded lines.

mod agent;
mod boot;
pub mod clients;
pub mod console;
mod ending;
mod forwards;
pub mod hooks;
mod post;
pub mod ready;
mod requests;
pub mod restart;
mod saving;
mod serve;
mod socket;
mod stage;

use std::fs::File;
use std::io::Write;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal};

use crate::config::{GuestConfig, HookEvent, ReadyProbe, SwitchConfig};

use super::agent::service::News;
use super::control::{Reply, StopWay};
use super::definition::Definition;
use super::engine::take_lease;
use super::engine_user;
use super::error::{GuestError, Result};
use super::events::{self, Event, EventKind};
use super::install::Install;
use super::lock::{GuestLock, Role};
use super::logs::RotatingLog;
use super::state::{GuestState, LastExit, RunState};
use super::store::GuestDir;
use super::timestamp::Timestamp;
use crate::config::LOGIN_PROMPT;
use clients::{Client, Purpose};
use console::Console;
use hooks::{HOOK_VERSION, HookDocument, HookJob, HookOutcome};
use post::Mailbox;
use restart::{CrashHistory, ExitReason};
use socket::{give_to_owner, listen};
use stage::{Asked, Stage};

/// Time-out from an engine's start to the first guest instruction.
const BOOT_PATIENCE: Duration = Duration::from_secs(120);
/// Maximum size of the engine's log.
const VMM_LOG_LIMIT: u64 = 1 << 20;

/// A callback for the result of the start: the guest runs, or the reason why not.
pub type Started = Box<dyn FnOnce(std::result::Result<(), &GuestError>)>;

/// Options of a supervisor.
pub struct Options {
    /// Reads and checks the guest file. Called before every boot.
    pub load: Box<dyn FnMut() -> Result<Definition>>,
    /// Called once with the result of the start.
    pub started: Started,
    /// Whether a signal of the terminal stops the guest.
    pub foreground: bool,
    /// A console session of this process, from the first byte on. It is the writer.
    pub console: Option<UnixStream>,
    /// Path of the host file, for the summary that `list` reads.
    pub host_file: PathBuf,
    /// An installer's run for the first boot.
    pub install: Option<Install>,
}

/// The way in which a supervisor ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// The guest has stopped as it should. This was its last exit.
    Stopped(Option<ExitReason>),
    /// It was given up, for this reason.
    Failed(String),
}

/// A message of a helper.
enum Message {
    Signal(Signal),
    EngineEnded(u64),
    Stderr(Vec<u8>),
    Hooks(HookEvent, Vec<HookOutcome>),
    Probed(u64, usize),
    Agent(u64, News),
}

/// Blocks the signals that a supervisor takes, in this thread and those that it starts from now on.
pub fn block_signals() -> Result<SigSet> {
    let signals = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT]);
    signals.thread_block().map_err(|error| GuestError::host(format!("cannot block signals: {error}")))?;
    Ok(signals)
}

/// Takes the guest and runs it until it has stopped. Must be called from the main thread. Other threads need
/// [`block_signals`] before them.
pub fn supervise(guest: GuestDir, mut options: Options) -> Result<Ending> {
    let started = std::mem::replace(&mut options.started, Box::new(|_| ()));
    match Supervisor::new(guest, options) {
        Ok(mut supervisor) => {
            supervisor.started = Some(started);
            supervisor.run()
        }
        Err(error) => {
            started(Err(&error));
            Err(error)
        }
    }
}

struct Supervisor {
    guest: GuestDir,
    options: Options,
    started: Option<Started>,
    lock: Option<GuestLock>,
    lease: File,
    state: GuestState,
    config: GuestConfig,
    switches: Vec<SwitchConfig>,
    events: RotatingLog,
    events_failing: bool,
    vmm_log: RotatingLog,
    console: Console,
    listener: Option<UnixListener>,
    clients: Vec<Client>,
    /// When connections are accepted again, after the host had no descriptor for one.
    accept_again_at: Option<Instant>,
    /// When writing the state is tried again.
    save_at: Option<Instant>,
    mailbox: Mailbox,
    hook_thread: mpsc::Sender<HookJob>,
    hooks_pending: usize,
    /// Number of commands that were begun in the guest by its agent.
    commands_begun: u64,
    /// Event that the supervisor waits for, with the state of the current boot.
    stage: Stage,
    /// How the guest was ended for good.
    stop_way: Option<StopWay>,
    crashes: CrashHistory,
    last_exit: Option<ExitReason>,
    failure: Option<String>,
    start_failure: Option<GuestError>,
}

impl Supervisor {
    fn new(guest: GuestDir, mut options: Options) -> Result<Supervisor> {
        let lock = guest.lock(Role::Supervisor)?;
        // Before there is any helper thread, so that only the signal thread takes them.
        let signals = block_signals()?;
        let lease = take_lease(&guest.lease_file())?;
        let mut state = guest.state()?;
        let lost = state.run.take();
        let definition = (options.load)()?;
        state.summary = Some(definition.summary(&options.host_file));
        let listener = listen(&guest)?;
        let mailbox = Mailbox::new()?;
        let post = mailbox.poster();
        let hook_post = post.clone();
        let hook_thread = hooks::start_thread(move |event, outcomes| hook_post.send(Message::Hooks(event, outcomes)));
        std::thread::spawn(move || {
            while let Ok(signal) = signals.wait() {
                post.send(Message::Signal(signal));
            }
        });
        state.engine.get_or_insert(definition.default_engine);
        engine_user::settle(&mut state, &guest, definition.engine_uids);
        let (config, switches) = (definition.config, definition.switches);
        give_to_owner(&guest, &config)?;
        let log = RotatingLog::open(&guest.console_log(), config.console.log_size.bytes(), config.console.log_files, 0o600);
        let mut supervisor = Supervisor {
            events: events::open_log(&guest.events_log()),
            vmm_log: RotatingLog::open(&guest.vmm_log(), VMM_LOG_LIMIT, 1, 0o600),
            console: Console::new(log, config.console.scrollback.bytes() as usize),
            guest,
            options,
            started: None,
            lock: Some(lock),
            lease,
            state,
            config,
            switches,
            events_failing: false,
            listener: Some(listener),
            clients: Vec::new(),
            accept_again_at: None,
            save_at: None,
            mailbox,
            hook_thread,
            hooks_pending: 0,
            commands_begun: 0,
            stage: Stage::Waiting { until: Instant::now() },
            stop_way: None,
            crashes: CrashHistory::default(),
            last_exit: None,
            failure: None,
            start_failure: None,
        };
        if let Some(stream) = supervisor.options.console.take() {
            let client = Client::new(stream);
            let mut client = client.map_err(|error| GuestError::host(format!("cannot open the console: {error}")))?;
            client.purpose = Purpose::Console { writer: true };
            supervisor.clients.push(client);
        }
        supervisor.announce(lost, definition.hash);
        Ok(supervisor)
    }

    /// Notes in the state and in the event log that this process runs the guest, and the loss of one that ran it before.
    fn announce(&mut self, lost: Option<RunState>, config_hash: String) {
        if let Some(run) = lost {
            self.emit(EventKind::SupervisorLost { pid: run.pid });
            self.state.last_exit = Some(LastExit::of_lost(&run));
        }
        (self.state.failed, self.state.restarts) = (None, 0);
        self.state.run = Some(RunState::begin(config_hash));
        self.emit(EventKind::SupervisorStarted { pid: std::process::id() });
    }

    fn run(&mut self) -> Result<Ending> {
        self.begin_boot(true);
        while !matches!(self.stage, Stage::Done) {
            self.wait_and_serve();
            while let Some(message) = self.mailbox.next() {
                self.take(message);
            }
            self.tick(Instant::now());
        }
        self.finish()
    }

    /// Passes the hooks of an event to their thread. Returns `false` if there are none.
    fn submit_hooks(&mut self, event: HookEvent, reason: &str) -> bool {
        if !self.config.hooks.iter().any(|hook| hook.event == event) {
            return false;
        }
        let document = HookDocument {
            version: HOOK_VERSION,
            event: event.as_str(),
            guest: self.guest.name().to_owned(),
            uuid: self.state.uuid_for(&self.config).to_owned(),
            directory: self.guest.path().to_owned(),
            boot: self.state.boots,
            reason: reason.to_owned(),
        };
        let sent = self.hook_thread.send(HookJob { event, hooks: self.config.hooks.clone(), document }).is_ok();
        self.hooks_pending += usize::from(sent);
        sent
    }

    fn hooks_done(&mut self, event: HookEvent, outcomes: Vec<HookOutcome>) {
        self.hooks_pending = self.hooks_pending.saturating_sub(1);
        let mut fatal = None;
        for outcome in outcomes {
            if outcome.fatal {
                fatal = Some(format!("hook `{}` failed: {}", outcome.hook, outcome.error.as_deref().unwrap_or_default()));
            }
            self.emit(EventKind::Hook { hook: outcome.hook, outcome: outcome.error.unwrap_or_else(|| "ok".into()) });
        }
        match (event, &self.stage, fatal) {
            (HookEvent::PreStart, Stage::PreStart(_), Some(words)) => self.give_up(GuestError::user(words)),
            (HookEvent::PreStart, Stage::PreStart(_), None) => {
                if let Some(preparation) = self.stage.take_preparation() {
                    self.spawn_engine(preparation);
                }
            }
            (HookEvent::Crash, Stage::CrashHooks { reason, ran, asked }, _) => match (*reason, *ran, *asked) {
                (_, _, Some(Asked { again: true, .. })) => self.begin_boot(false),
                (_, _, Some(_)) => self.end(),
                (reason, ran, None) => self.apply_policy(reason, ran),
            },
            (HookEvent::PreStop, _, fatal) => self.pre_stop_done(fatal),
            (_, Stage::Ending, _) if self.hooks_pending == 0 => self.stage = Stage::Done,
            _ => {}
        }
    }

    /// Does what is due.
    fn tick(&mut self, now: Instant) {
        let ended = self.stage.boot_mut().filter(|boot| boot.engine_ended);
        if let Some(status) = ended.and_then(|boot| boot.engine.exited()) {
            self.engine_exited(status);
        }
        match &mut self.stage {
            Stage::Waiting { until } if now >= *until => self.begin_boot(false),
            Stage::Booting { boot, until } if now >= *until && boot.engine_error.is_none() => {
                boot.engine_error = Some(format!("the guest did not run within {} s", BOOT_PATIENCE.as_secs()));
                boot.engine.kill();
            }
            _ => {}
        }
        self.press_on(now);
        if let Some(boot) = self.stage.boot_mut() {
            boot.engine.press_on(now);
            if boot.readiness.is_late(now) {
                let probe = self.missing_probe();
                self.emit(EventKind::NotReady { probe });
            }
        }
        self.press_on_clients(now);
        if self.save_at.is_some_and(|at| now >= at) {
            self.save_or_later();
        }
        let message = self.missing_probe();
        let late = start_error_reply(format!("not ready in time: {message}"));
        self.answer_all(|purpose| matches!(purpose, Purpose::Ready(until) if now >= until), &late);
        let late = start_error_reply(format!("not in time: the console has not shown `{LOGIN_PROMPT}`"));
        self.answer_all(|purpose| matches!(purpose, Purpose::Login(until) if now >= until), &late);
        let late = start_error_reply(format!("not in time: {}", ready::words(&ReadyProbe::Agent)));
        self.answer_all(|purpose| matches!(purpose, Purpose::Agent(until) if now >= until), &late);
    }

    /// Returns the time until which the loop may sleep.
    fn deadline(&self) -> Option<Instant> {
        let stage = match self.stage {
            Stage::Waiting { until } | Stage::Booting { until, .. } => Some(until),
            _ => None,
        };
        let asked = self.stage.asked().map(|asked| [asked.press_at, asked.power_off_at, asked.kill_at]).unwrap_or_default();
        let clients = self.clients.iter().filter_map(|client| match client.purpose {
            Purpose::Ready(until) | Purpose::Login(until) | Purpose::Agent(until) => Some(until),
            _ => client.deadline(),
        });
        let boot = self.stage.boot().map(|boot| [boot.readiness.late_at(), boot.engine.deadline()]).unwrap_or_default();
        [stage, self.accept_again_at, self.save_at].into_iter().chain(boot).chain(asked).flatten().chain(clients).min()
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Signal(Signal::SIGHUP) if !self.options.foreground => {}
            Message::Signal(_) => self.signalled(),
            Message::Stderr(bytes) => self.engine_said(&bytes),
            Message::Hooks(event, outcomes) => self.hooks_done(event, outcomes),
            Message::EngineEnded(number) => {
                if let Some(boot) = self.stage.boot_mut().filter(|boot| boot.number == number) {
                    boot.engine_ended = true;
                }
            }
            Message::Agent(number, news) => {
                if self.stage.boot().is_some_and(|boot| boot.number == number) {
                    self.agent_told(news);
                }
            }
            Message::Probed(number, count) => {
                if let Some(boot) = self.stage.boot_mut().filter(|boot| boot.number == number) {
                    boot.readiness.probes_passed = count;
                    self.check_ready();
                }
            }
        }
    }

    fn engine_said(&mut self, bytes: &[u8]) {
        let _ = self.vmm_log.append(bytes);
        if let Some(boot) = self.stage.boot_mut() {
            boot.last_words.add(bytes);
        }
    }

    fn emit(&mut self, kind: EventKind) {
        let event = Event::now(self.guest.name(), kind);
        if let Err(error) = self.events.append(event.line().as_bytes()) {
            if !self.events_failing {
                note(&format!("cannot write the event log: {error}"));
            }
            self.events_failing = true;
        } else {
            self.events_failing = false;
        }
        let reply = Reply::Event(event);
        for client in self.clients.iter_mut().filter(|client| client.purpose == Purpose::Events) {
            client.reply(&reply);
        }
    }
}

/// Writes to the supervisor's own log. An error is ignored, since it is no reason to stop.
fn note(words: &str) {
    let _ = std::io::stderr().write_all(format!("{} {words}\n", Timestamp::now()).as_bytes());
}

fn start_failed(words: &str) -> Reply {
    start_error_reply(format!("the guest did not start again: {words}"))
}

fn start_error_reply(message: String) -> Reply {
    Reply::Error { message, hint: None }
}
