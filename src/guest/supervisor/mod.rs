//! The supervisor: one process per guest. It holds the guest's lock, runs its hooks, starts one engine per boot,
//! applies the restart policy, serves the console and the control socket, and writes the event log.
//!
//! One thread polls everything. Helpers (signals, the engine's end, hooks, probes) send it [`Message`]s and a byte on
//! the wake stream. [`Stage`] says what each phase waits for, and [`Asked`] what was requested meanwhile.
//!
//! **Hostile guest**: see [`console`] and [`clients`]; the engine's messages are bounded lines.

pub mod clients;
pub mod console;
mod ending;
pub mod hooks;
mod post;
pub mod ready;
mod requests;
pub mod restart;
mod saving;
mod serve;
mod socket;

use std::collections::VecDeque;
use std::fs::File;
use std::io::Write;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal};

use crate::config::{GuestConfig, HookEvent, SwitchConfig};
use crate::machine::spec::EngineEvent;

use super::control::{Reply, StopWay};
use super::definition::Definition;
use super::engine::{self, Engine, RunningEngine, take_lease};
use super::engine_user;
use super::error::{GuestError, Result};
use super::events::{self, Event, EventKind};
use super::install::Install;
use super::lock::{GuestLock, Role};
use super::logs::RotatingLog;
use super::provision::ensure_disks;
use super::seed;
use super::state::{Confined, GuestState, LastExit, Machine, Phase, RunState};
use super::store::GuestDir;
use super::timestamp::Timestamp;
use crate::config::LOGIN_PROMPT;
use clients::{Client, Purpose};
use console::Console;
use hooks::{HOOK_VERSION, HookDocument, HookJob, HookOutcome};
use post::{Poster, watch_engine};
use restart::{CrashHistory, ExitReason};
use socket::{give_to_owner, listen};

/// Time-out from an engine's start to the first guest instruction.
const BOOT_PATIENCE: Duration = Duration::from_secs(120);
/// Time between two presses of the power button, until the guest ends or its time is over.
const PRESS_AGAIN: Duration = Duration::from_secs(4);
/// Time-out for an engine to end after it was told to.
const END_PATIENCE: Duration = Duration::from_secs(10);
/// Maximum size of the engine's log, and the number of bytes of it that are shown when a start fails.
const VMM_LOG_LIMIT: u64 = 1 << 20;
const LAST_WORDS: usize = 4096;
/// Maximum number of waiting messages of the helpers. A helper with more to send waits.
const MOST_MESSAGES: usize = 64;

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
}

/// Event that the supervisor waits for.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Stage {
    /// The end of the hooks before a boot.
    PreStart,
    /// The engine's report that the guest runs.
    Booting { until: Instant },
    /// The guest's end.
    Running,
    /// The end of the hooks after a crash.
    CrashHooks(ExitReason),
    /// The next boot.
    Waiting { until: Instant },
    /// The end of the hooks after the guest's end.
    Ending,
    /// Nothing.
    Done,
}

/// A request, which overrides the policy at the next exit.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Asked {
    /// The way in which the guest is ended.
    way: StopWay,
    /// Whether to boot again afterwards.
    again: bool,
    /// Time that the guest has after the power button.
    timeout: Duration,
    /// Whether the hooks before the power button still run. It is pressed after them.
    hooks_first: bool,
    /// When the power button is pressed again, since a guest that is still booting does not notice it.
    press_at: Option<Instant>,
    /// When the guest is powered off.
    power_off_at: Option<Instant>,
    /// When the engine is killed.
    kill_at: Option<Instant>,
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
    last_words: VecDeque<u8>,
    console: Console,
    listener: Option<UnixListener>,
    clients: Vec<Client>,
    /// When connections are accepted again, after the host had no descriptor for one.
    accept_again_at: Option<Instant>,
    /// When writing the state is tried again.
    save_at: Option<Instant>,
    messages: mpsc::Receiver<Message>,
    sender: mpsc::SyncSender<Message>,
    wake: UnixStream,
    waker: Arc<UnixStream>,
    hook_thread: mpsc::Sender<HookJob>,
    hooks_pending: usize,
    maker: Option<Box<dyn Engine>>,
    engine: Option<RunningEngine>,
    engine_ended: bool,
    engine_error: Option<String>,
    debug_exit: Option<u8>,
    /// Whether the engine reported that the guest could not notice the power button.
    no_acpi: bool,
    boot: u64,
    running_since: Option<Instant>,
    /// How long the guest ran in its last boot.
    ran: Duration,
    probing: Option<ready::Probing>,
    forwards_open: ready::ForwardsOpen,
    probes_passed: usize,
    not_ready_at: Option<Instant>,
    ready: bool,
    stage: Stage,
    asked: Option<Asked>,
    stop_way: Option<StopWay>,
    console_open: bool,
    control_open: bool,
    postponed: Vec<Message>,
    crashes: CrashHistory,
    last_exit: Option<ExitReason>,
    /// The installer's run of this boot.
    install: Option<Install>,
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
        let (wake, waker) =
            UnixStream::pair().map_err(|error| GuestError::host(format!("cannot make a socket pair: {error}")))?;
        let nonblocking = wake.set_nonblocking(true).and_then(|()| waker.set_nonblocking(true));
        nonblocking.map_err(|error| GuestError::host(format!("cannot set up a socket pair: {error}")))?;
        let (sender, messages) = mpsc::sync_channel(MOST_MESSAGES);
        let waker = Arc::new(waker);
        let post = Poster { sender: sender.clone(), waker: Arc::clone(&waker) };
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
            last_words: VecDeque::new(),
            listener: Some(listener),
            clients: Vec::new(),
            accept_again_at: None,
            save_at: None,
            messages,
            sender,
            wake,
            waker,
            hook_thread,
            hooks_pending: 0,
            maker: None,
            engine: None,
            engine_ended: false,
            engine_error: None,
            debug_exit: None,
            no_acpi: false,
            boot: 0,
            running_since: None,
            ran: Duration::ZERO,
            probing: None,
            forwards_open: ready::ForwardsOpen::default(),
            probes_passed: 0,
            not_ready_at: None,
            ready: false,
            stage: Stage::PreStart,
            asked: None,
            stop_way: None,
            console_open: false,
            control_open: false,
            postponed: Vec::new(),
            crashes: CrashHistory::default(),
            last_exit: None,
            install: None,
            failure: None,
            start_failure: None,
        };
        if let Some(stream) = supervisor.options.console.take() {
            let client = Client::new(stream);
            let mut client = client.map_err(|error| GuestError::host(format!("cannot open the console: {error}")))?;
            client.purpose = Purpose::Console { writer: true };
            supervisor.clients.push(client);
        }
        if let Some(run) = lost {
            supervisor.emit(EventKind::SupervisorLost { pid: run.pid });
            supervisor.state.last_exit = Some(LastExit::of_lost(&run));
        }
        (supervisor.state.failed, supervisor.state.restarts) = (None, 0);
        supervisor.state.run = Some(RunState::begin(definition.hash));
        supervisor.emit(EventKind::SupervisorStarted { pid: std::process::id() });
        Ok(supervisor)
    }

    fn run(&mut self) -> Result<Ending> {
        self.begin_boot(true);
        while self.stage != Stage::Done {
            self.wait_and_serve();
            for message in std::mem::take(&mut self.postponed) {
                self.take(message);
            }
            while let Ok(message) = self.messages.try_recv() {
                self.take(message);
            }
            self.tick(Instant::now());
        }
        self.finish()
    }

    fn post(&self) -> Poster {
        Poster { sender: self.sender.clone(), waker: Arc::clone(&self.waker) }
    }

    /// Reads the guest file again and runs the hooks before a boot.
    fn begin_boot(&mut self, first: bool) {
        self.asked = None;
        self.set_phase(Phase::Starting);
        if !first {
            match (self.options.load)() {
                Ok(definition) => {
                    self.state.summary = Some(definition.summary(&self.options.host_file));
                    (self.config, self.switches) = (definition.config, definition.switches);
                    if let Some(run) = &mut self.state.run {
                        run.config_hash = definition.hash;
                        run.restarts += 1;
                        self.state.restarts = run.restarts;
                    }
                    let console = &self.config.console;
                    self.console.set_bounds(console.log_size.bytes(), console.log_files, console.scrollback.bytes() as usize);
                }
                Err(error) => return self.give_up(error),
            }
        }
        // Taken, so that only this boot has it, however it ends.
        self.install = self.options.install.take();
        self.state.name = self.guest.name().to_owned();
        self.state.boots += 1;
        self.boot = self.state.boots;
        let forwards = self.config.nics.iter().flat_map(|nic| &nic.forwards);
        let forwards =
            forwards.map(|f| format!("{} {} -> {}", format!("{:?}", f.proto).to_lowercase(), f.host(), f.guest_port)).collect();
        if let Some(run) = &mut self.state.run {
            run.forwards = forwards;
            run.screen = None;
            run.medium = self.install.as_ref().map(|install| install.medium().to_owned());
        }
        let assigned = self.state.assign(&self.config).and_then(|()| match &self.install {
            // The medium gets its slot last, so that it moves no device of the guest.
            Some(install) => install.check(&self.config).and_then(|()| {
                install.attach(&mut self.config);
                self.state.assign(&self.config)
            }),
            None => Ok(()),
        });
        let machine = Machine::of(&self.guest, &self.config, &self.state);
        if let Some(run) = &mut self.state.run {
            run.machine = Some(machine);
        }
        // A running guest continues with the configuration in memory. At a new start the error is reported.
        let saved = assigned.and_then(|()| {
            if first {
                return self.save();
            }
            self.save_or_later();
            Ok(())
        });
        if let Err(error) = saved {
            return self.give_up(error);
        }
        match engine::of(self.config.engine).and_then(|maker| {
            maker.check(self.next_boot())?;
            Ok(maker)
        }) {
            Ok(maker) => self.maker = Some(maker),
            Err(error) => return self.give_up(error),
        }
        self.emit(EventKind::Starting { boot: self.boot });
        if let Some(install) = &self.install {
            let medium = install.medium().to_owned();
            self.emit(EventKind::Installing { medium });
        }
        self.stage = Stage::PreStart;
        if !self.submit_hooks(HookEvent::PreStart, "") {
            self.spawn_engine();
        }
    }

    /// Returns the parameters of the next boot.
    fn next_boot(&self) -> engine::Boot<'_> {
        engine::Boot {
            guest: &self.guest,
            config: &self.config,
            state: &self.state,
            switches: &self.switches,
            install: self.install.as_ref(),
        }
    }

    fn spawn_engine(&mut self) {
        if self.asked.is_some_and(|asked| !asked.again) {
            return self.end();
        }
        let texts: Vec<String> = self
            .config
            .ready_probes()
            .into_iter()
            .filter_map(|probe| match probe {
                crate::config::ReadyProbe::Console(text) => Some(text),
                _ => None,
            })
            .collect();
        self.console.new_boot(texts.into_iter());
        self.last_words.clear();
        (self.engine_error, self.debug_exit, self.engine_ended, self.no_acpi) = (None, None, false, false);
        (self.running_since, self.ready, self.probes_passed, self.not_ready_at) = (None, false, 0, None);
        self.forwards_open = ready::ForwardsOpen::of(&self.config);
        let maker = self.maker.as_ref().expect("chosen when the boot began");
        let spawned = seed::ensure(&self.guest, &self.config, &self.state)
            .and_then(|()| ensure_disks(&self.guest, &self.config))
            .and_then(|_| maker.build(self.next_boot()))
            .and_then(|()| maker.spawn(&self.guest, &self.lease));
        let engine = match spawned {
            Ok(engine) => engine,
            Err(error) => return self.give_up(error),
        };
        if let Err(error) = watch_engine(&engine, self.boot, &self.post()) {
            return self.give_up(error);
        }
        if let Some(run) = &mut self.state.run {
            run.engine_pid = Some(engine.pid());
        }
        self.save_run();
        self.engine = Some(engine);
        (self.console_open, self.control_open) = (true, true);
        self.stage = Stage::Booting { until: Instant::now() + BOOT_PATIENCE };
    }

    fn engine_event(&mut self, event: EngineEvent) {
        match event {
            EngineEvent::Running { backend } if matches!(self.stage, Stage::Booting { .. }) => self.now_running(backend),
            EngineEvent::Running { .. } => {}
            EngineEvent::Error { message } => {
                self.emit(EventKind::EngineError { message: message.clone() });
                self.engine_error = Some(message);
            }
            EngineEvent::Confined { by, without } => {
                // Written with the next phase.
                self.state.run.as_mut().expect("set while the supervisor runs").confined = Some(Confined { by, without });
            }
            EngineEvent::DebugExit { value } => self.debug_exit = Some(value),
            EngineEvent::NoAcpi => self.no_acpi = true,
            EngineEvent::NotSuspended { message } => self.not_suspended(message),
            EngineEvent::Screen { address } => {
                if let Some(run) = &mut self.state.run {
                    run.screen = Some(address);
                }
                self.save_run();
            }
            EngineEvent::ForwardOpen { address } => self.forwards_open.add(address.port()),
            EngineEvent::Stats { counters } => {
                self.answer_all(|purpose| purpose == Purpose::Stats, &Reply::Stats { counters });
            }
        }
    }

    fn now_running(&mut self, backend: String) {
        self.stage = Stage::Running;
        self.running_since = Some(Instant::now());
        let pid = self.engine.as_ref().map_or(0, RunningEngine::pid);
        if let Some(run) = &mut self.state.run {
            run.backend = Some(backend.clone());
        }
        let phase = if self.asked.is_some() { Phase::Stopping } else { Phase::Running };
        self.set_phase(phase);
        self.emit(EventKind::Running { boot: self.boot, backend, pid });
        if let Some(started) = self.started.take() {
            started(Ok(()));
        }
        self.answer_all(|purpose| purpose == Purpose::Running, &Reply::Running);
        self.submit_hooks(HookEvent::PostStart, "");
        // The probes are for the installed system.
        if self.install.is_some() {
            return;
        }
        self.not_ready_at = Some(Instant::now() + self.config.ready.timeout);
        let (post, boot) = (self.post(), self.boot);
        let passed = move |count| post.send(Message::Probed(boot, count));
        self.probing = ready::start(self.guest.name(), &self.config.ready_probes(), &self.forwards_open, passed);
        self.check_ready();
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
            boot: self.boot,
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
        match (event, self.stage, fatal) {
            (HookEvent::PreStart, Stage::PreStart, Some(words)) => self.give_up(GuestError::user(words)),
            (HookEvent::PreStart, Stage::PreStart, None) => self.spawn_engine(),
            (HookEvent::Crash, Stage::CrashHooks(reason), _) => match self.asked.take() {
                Some(Asked { again: true, .. }) => self.begin_boot(false),
                Some(_) => self.end(),
                None => self.apply_policy(reason),
            },
            (HookEvent::PreStop, _, fatal) => self.pre_stop_done(fatal),
            (_, Stage::Ending, _) if self.hooks_pending == 0 => self.stage = Stage::Done,
            _ => {}
        }
    }

    /// Does what is due.
    fn tick(&mut self, now: Instant) {
        if let Some(status) = self.engine.as_mut().filter(|_| self.engine_ended).and_then(RunningEngine::exited) {
            self.engine_exited(status);
        }
        match self.stage {
            Stage::Waiting { until } if now >= until => self.begin_boot(false),
            Stage::Booting { until } if now >= until && self.engine_error.is_none() => {
                self.engine_error = Some(format!("the guest did not run within {} s", BOOT_PATIENCE.as_secs()));
                if let Some(engine) = &mut self.engine {
                    engine.kill();
                }
            }
            _ => {}
        }
        self.press_on(now);
        if let Some(engine) = &mut self.engine {
            engine.press_on(now);
        }
        if self.not_ready_at.is_some_and(|at| now >= at) {
            self.not_ready_at = None;
            let probe = self.missing_probe();
            self.emit(EventKind::NotReady { probe });
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
    }

    /// Returns the time until which the loop may sleep.
    fn deadline(&self) -> Option<Instant> {
        let stage = match self.stage {
            Stage::Waiting { until } | Stage::Booting { until } => Some(until),
            _ => None,
        };
        let asked = self.asked.map(|asked| [asked.press_at, asked.power_off_at, asked.kill_at]).unwrap_or_default();
        let clients = self.clients.iter().filter_map(|client| match client.purpose {
            Purpose::Ready(until) | Purpose::Login(until) => Some(until),
            _ => client.deadline(),
        });
        let engine = self.engine.as_ref().and_then(RunningEngine::deadline);
        [stage, self.not_ready_at, engine, self.accept_again_at, self.save_at]
            .into_iter()
            .chain(asked)
            .flatten()
            .chain(clients)
            .min()
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Signal(Signal::SIGHUP) if !self.options.foreground => {}
            Message::Signal(_) => self.signalled(),
            Message::EngineEnded(boot) if boot == self.boot => self.engine_ended = true,
            Message::Stderr(bytes) => self.engine_said(&bytes),
            Message::Hooks(event, outcomes) => self.hooks_done(event, outcomes),
            Message::Probed(boot, count) if boot == self.boot => {
                self.probes_passed = count;
                self.check_ready();
            }
            Message::EngineEnded(_) | Message::Probed(..) => {}
        }
    }

    fn engine_said(&mut self, bytes: &[u8]) {
        let _ = self.vmm_log.append(bytes);
        self.last_words.extend(&bytes[bytes.len().saturating_sub(LAST_WORDS)..]);
        let surplus = self.last_words.len().saturating_sub(LAST_WORDS);
        self.last_words.drain(..surplus);
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
