//! The loop of the thread that polls everything while the loader or bhyve runs: the console in both directions, the
//! supervisor's commands, the program's standard error, its end.
//!
//! bhyve takes SIGTERM for the power button (bhyve(8), SIGNAL HANDLING); the other commands are calls of bhyvectl.
//! These run on threads of their own, since saving a guest takes as long as its memory is large.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::Pid;

use crate::host::ifconfig;
use crate::host::nmdm::Line;
use crate::host::process::spawn_tied;
use crate::host::program::find;
use crate::host::rctl;
use crate::machine::spec::{EngineCommand, EngineEvent, ForwardSpec, LEASE_FD, MAX_CONTROL_LINE};
use crate::poll::Poll;

use super::Streams;
use super::boot_plan::BhyvePlan;
use super::outcome::{ControlRequest, End, Ended, Trouble};

/// Time for which the thread sleeps when nothing is due.
const IDLE: Duration = Duration::from_secs(60);
/// Maximum number of bytes that wait in each direction of the console.
const CONSOLE_LIMIT: usize = 64 * 1024;
/// Maximum number of bytes of a program's standard error that are kept for messages.
const LAST_WORDS: usize = 2000;
/// Running time after which a program certainly runs a guest.
const SURELY_RUNNING: Duration = Duration::from_secs(2);
/// A loader that takes this long waits at its prompt for a user: to all others the guest runs.
const LOADER_WAITS: Duration = Duration::from_secs(30);
/// Time until the power button is pressed again, for guests that missed it while they booted, and the maximum number of
/// presses.
const BUTTON_AGAIN: Duration = Duration::from_secs(15);
const BUTTON_PRESSES: u32 = 4;
/// Time until bhyve is killed after a forced power-off or reset.
const FORCED_PATIENCE: Duration = Duration::from_secs(5);
/// Time that a guest has when this process gets SIGTERM.
const SHUTDOWN_PATIENCE: Duration = Duration::from_secs(15);
/// Time-out for a guest's last output to reach the console's reader.
const CONSOLE_PATIENCE: Duration = Duration::from_secs(2);

/// The program that runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// bhyveload or grub-bhyve.
    Loader,
    /// bhyve.
    Bhyve,
}

/// A message of a helper thread.
enum Message {
    /// This process got a signal to end.
    Signal(Signal),
    /// The running program has ended.
    Ended,
    /// A call of bhyvectl has ended.
    Called(&'static str, Result<(), String>),
    /// The answer to a question of the supervisor.
    Answer(EngineEvent),
}

/// State of the loop.
pub struct Watch<'a> {
    plan: &'a BhyvePlan,
    console: UnixStream,
    control: UnixStream,
    lease: OwnedFd,
    lines: Vec<Line>,
    /// Each interface of the guest, its end on the host, and its jail.
    taps: Vec<(String, String, Option<String>)>,
    to_guest: VecDeque<u8>,
    to_console: VecDeque<u8>,
    console_open: bool,
    commands: Vec<u8>,
    messages: mpsc::Receiver<Message>,
    sender: mpsc::Sender<Message>,
    wake: UnixStream,
    waker: UnixStream,
    /// The request that came while no program ran.
    requested: ControlRequest,
    said_running: bool,
}

/// The running program.
struct Running {
    part: Part,
    child: Child,
    stderr: io::PipeReader,
    stderr_open: bool,
    started: Instant,
    words: VecDeque<u8>,
    requested: ControlRequest,
    presses: u32,
    press_at: Option<Instant>,
    kill_at: Option<Instant>,
    ended: bool,
}

impl<'a> Watch<'a> {
    /// Creates the loop with the supervisor's streams, and starts the thread that takes signals.
    pub fn new(plan: &'a BhyvePlan, streams: Streams) -> io::Result<Watch<'a>> {
        let signals = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP]);
        signals.thread_block()?;
        streams.console.set_nonblocking(true)?;
        streams.control.set_nonblocking(true)?;
        let (wake, waker) = UnixStream::pair()?;
        wake.set_nonblocking(true)?;
        waker.set_nonblocking(true)?;
        let (sender, messages) = mpsc::channel();
        let watch = Watch {
            plan,
            console: streams.console,
            control: streams.control,
            lease: streams.lease,
            lines: Vec::new(),
            taps: Vec::new(),
            to_guest: VecDeque::new(),
            to_console: VecDeque::new(),
            console_open: true,
            commands: Vec::new(),
            messages,
            sender,
            wake,
            waker,
            requested: ControlRequest::Nothing,
            said_running: false,
        };
        watch.helper(move |post| {
            while let Ok(signal) = signals.wait() {
                post(Message::Signal(signal));
            }
        })?;
        Ok(watch)
    }

    /// Runs `work` on a thread of its own. Its messages wake the poll.
    fn helper(&self, work: impl FnOnce(&dyn Fn(Message)) + Send + 'static) -> io::Result<()> {
        let (sender, waker) = (self.sender.clone(), self.waker.try_clone()?);
        std::thread::Builder::new().spawn(move || {
            work(&|message| {
                if sender.send(message).is_ok() {
                    // A full wake stream has already woken it.
                    let _ = (&waker).write(&[0]);
                }
            });
        })?;
        Ok(())
    }

    /// Sends an event to the supervisor. If the supervisor is gone, the end of its commands shows it.
    pub fn tell(&self, event: &EngineEvent) {
        let mut line = serde_json::to_vec(event).expect("plain fields");
        line.push(b'\n');
        let mut rest = &line[..];
        let until = Instant::now() + CONSOLE_PATIENCE;
        while !rest.is_empty() && Instant::now() < until {
            match (&self.control).write(rest) {
                Ok(count) => rest = &rest[count..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => std::thread::sleep(Duration::from_millis(2)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    }

    /// Adds a console line. The output of all lines is joined, and input goes to the first.
    pub fn open_line(&mut self, line: Line) {
        self.lines.push(line);
    }

    /// Notes that the guest's interface `nic` is connected to `interface` of the host or of a jail, whose counters are
    /// its own.
    pub fn plugged(&mut self, nic: &str, interface: &str, jail: Option<&str>) {
        self.taps.push((nic.to_owned(), interface.to_owned(), jail.map(str::to_owned)));
    }

    /// Reads the rest of the lines, and closes them.
    pub fn close_lines(&mut self) {
        self.drain_lines(Duration::from_millis(100));
        self.lines.clear();
    }

    /// Passes the last output to the console's reader.
    pub fn finish(&mut self) {
        let until = Instant::now() + CONSOLE_PATIENCE;
        while !self.to_console.is_empty() && self.console_open && Instant::now() < until {
            self.write_console();
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Checks for a request to end, between two steps while no program runs.
    pub fn orders(&mut self) -> Result<(), Trouble> {
        while let Ok(message) = self.messages.try_recv() {
            if matches!(message, Message::Signal(_)) {
                self.requested = ControlRequest::End;
            }
        }
        for command in self.read_commands() {
            self.requested = match (command, self.requested) {
                (_, ControlRequest::End) | (None, _) => ControlRequest::End,
                (Some(EngineCommand::PowerButton | EngineCommand::Poweroff), _) => ControlRequest::PowerOff { forced: false },
                (Some(EngineCommand::Reset), ControlRequest::Nothing) => ControlRequest::Reset { forced: false },
                (Some(_), requested) => requested,
            };
        }
        match self.requested {
            ControlRequest::Nothing => Ok(()),
            ControlRequest::PowerOff { .. } => Err(Trouble::Requested(End::POWER_OFF)),
            ControlRequest::Reset { .. } => Err(Trouble::Requested(End::REBOOT)),
            ControlRequest::End => Err(Trouble::Requested(End::Signal(Signal::SIGKILL as i32))),
        }
    }

    /// Runs a program to its end. Must be called from the main thread, since the program is killed when that thread
    /// ends.
    pub fn run(&mut self, part: Part, words: &[String]) -> Result<Ended, Trouble> {
        self.orders()?;
        let failed = |error: io::Error| Trouble::Failed(format!("cannot start `{}`: {error}", words[0]));
        let (stderr, theirs) = io::pipe().map_err(failed)?;
        make_nonblocking(&stderr).map_err(failed)?;
        let mut command = Command::new(find(&words[0]).unwrap_or_else(|| words[0].clone().into()));
        command.args(&words[1..]).current_dir("/").stdin(Stdio::null());
        command.stdout(theirs.try_clone().map_err(failed)?).stderr(theirs);
        let lease = self.lease.try_clone().map_err(failed)?;
        let child = spawn_tied(&mut command, &[(LEASE_FD, lease)]).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => Trouble::Failed(format!("there is no program `{}`", words[0])),
            _ => failed(error),
        })?;
        drop(command);
        let mut running = Running::new(part, child, stderr);
        let watched = self.watch_end(&running).and_then(|()| self.limit(&running));
        if let Err(message) = watched {
            let _ = running.child.kill();
            let _ = running.child.wait();
            return Err(Trouble::Failed(message));
        }
        while !running.ended {
            self.step(&mut running);
        }
        let heard = self.drain_lines(Duration::from_millis(100));
        self.maybe_running(&running, heard);
        self.end_of(running)
    }

    fn watch_end(&self, running: &Running) -> Result<(), String> {
        use nix::sys::wait::{Id, WaitPidFlag, waitid};
        let pid = Pid::from_raw(running.child.id() as i32);
        let watched = self.helper(move |post| {
            // WNOWAIT: the id is not reused before the main thread has taken the status.
            while waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT) == Err(nix::errno::Errno::EINTR) {}
            post(Message::Ended);
        });
        watched.map_err(|error| format!("cannot start a thread: {error}"))
    }

    fn limit(&self, running: &Running) -> Result<(), String> {
        if running.part == Part::Loader || self.plan.limits.is_empty() {
            return Ok(());
        }
        rctl::limit(running.child.id(), &self.plan.limits).map_err(|error| match rctl::hint(&error) {
            Some(hint) => format!("{error}; {hint}"),
            None => error.to_string(),
        })
    }

    /// Returns the status of a program that has ended, with the rest of its output.
    fn end_of(&mut self, mut running: Running) -> Result<Ended, Trouble> {
        use std::os::unix::process::ExitStatusExt;
        let ran = running.started.elapsed();
        let status = running.child.wait().map_err(|error| Trouble::Failed(format!("cannot wait for a program: {error}")))?;
        running.hear();
        Ok(Ended { code: status.code(), signal: status.signal(), ran, words: running.one_line(), requested: running.requested })
    }

    /// Sleeps until there is work, and does it.
    fn step(&mut self, running: &mut Running) {
        self.poll(running);
        while let Ok(message) = self.messages.try_recv() {
            self.take(message, running);
        }
        while matches!((&self.wake).read(&mut [0u8; 64]), Ok(count) if count > 0) {}
        running.hear();
        for command in self.read_commands() {
            match command {
                Some(command) => self.obey(&command, running),
                // Nothing could control this guest any more.
                None => running.end_now(),
            }
        }
        let heard = self.move_console();
        self.maybe_running(running, heard);
        running.press_on(Instant::now());
    }

    fn poll(&self, running: &Running) {
        let mut poll = Poll::new();
        poll.add_reader((), self.wake.as_fd());
        poll.add_reader((), self.control.as_fd());
        let mut add = |fd, reads: bool, writes: bool| {
            if reads || writes {
                poll.add_both((), fd, reads, writes);
            }
        };
        if running.stderr_open {
            add(running.stderr.as_fd(), true, false);
        }
        if self.console_open {
            add(self.console.as_fd(), self.to_guest.len() < CONSOLE_LIMIT, !self.to_console.is_empty());
        }
        for (at, line) in self.lines.iter().enumerate() {
            add(line.file().as_fd(), self.to_console.len() < CONSOLE_LIMIT, at == 0 && !self.to_guest.is_empty());
        }
        let deadline = [running.press_at, running.kill_at, (!self.said_running).then(|| running.surely_running())];
        // Later than now, since something due may wait for something else, and must not make this spin.
        let (now, least) = (Instant::now(), Duration::from_millis(1));
        let until = deadline.into_iter().flatten().min().unwrap_or(now + IDLE).max(now + least);
        // The caller looks at everything afterwards, whatever is ready. This cannot fail with descriptors that we hold.
        let _ = poll.wait(Some(until));
    }

    fn take(&mut self, message: Message, running: &mut Running) {
        match message {
            Message::Signal(Signal::SIGINT) => running.end_now(),
            // bhyve itself handles it the same way: the host's shutdown sends it to every process.
            Message::Signal(_) => running.shut_down(),
            Message::Ended => running.ended = true,
            Message::Called(_, Ok(())) => {}
            Message::Called(what, Err(words)) => {
                eprintln!("vmctl bhyve: {words}");
                match what {
                    // If the request fails, the program is killed.
                    "poweroff" | "reset" => running.kill_at = Some(Instant::now()),
                    "suspend" => {
                        self.plan.saved.forget();
                        self.not_suspended(format!("the guest could not be saved: {words}"));
                    }
                    _ => {}
                }
            }
            Message::Answer(event) => self.tell(&event),
        }
    }

    /// Returns the commands that have arrived. `None` means the end of the stream.
    fn read_commands(&mut self) -> Vec<Option<EngineCommand>> {
        let mut buffer = [0u8; 4096];
        let mut open = true;
        loop {
            match (&self.control).read(&mut buffer) {
                Ok(0) => open = false,
                Ok(count) if self.commands.len() <= MAX_CONTROL_LINE => {
                    self.commands.extend_from_slice(&buffer[..count]);
                    continue;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // More than a line may hold, or a broken stream.
                _ => open = false,
            }
            break;
        }
        let mut commands = Vec::new();
        while let Some(end) = self.commands.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.commands.drain(..=end).collect();
            match serde_json::from_slice(&line) {
                Ok(command) => commands.push(Some(command)),
                Err(error) => eprintln!("vmctl bhyve: a command was not understood: {error}"),
            }
        }
        if !open {
            commands.push(None);
        }
        commands
    }

    fn obey(&mut self, command: &EngineCommand, running: &mut Running) {
        match command {
            EngineCommand::PowerButton if running.part == Part::Loader => {
                running.kill_for(ControlRequest::PowerOff { forced: true })
            }
            EngineCommand::Poweroff if running.part == Part::Loader => {
                running.kill_for(ControlRequest::PowerOff { forced: true })
            }
            EngineCommand::Reset if running.part == Part::Loader => running.kill_for(ControlRequest::Reset { forced: true }),
            EngineCommand::PowerButton => {
                running.requested = ControlRequest::PowerOff { forced: false };
                // It was already pressed. It is pressed again when it is due.
                running.press_at.get_or_insert(Instant::now());
            }
            EngineCommand::Poweroff => {
                running.force(ControlRequest::PowerOff { forced: false });
                self.call("poweroff", |vm| vm.force_poweroff());
            }
            EngineCommand::Reset => {
                running.force(ControlRequest::Reset { forced: false });
                self.call("reset", |vm| vm.force_reset());
            }
            EngineCommand::Suspend if running.part == Part::Loader => {
                self.not_suspended("the guest is still in its loader".into());
            }
            EngineCommand::Suspend if !self.plan.suspends => {
                self.not_suspended(
                    "the bhyve(8) of this host cannot save guests: it takes a world and a kernel built with BHYVE_SNAPSHOT, \
                     which no release has"
                        .into(),
                );
            }
            EngineCommand::Suspend => {
                self.plan.saved.forget();
                let file = self.plan.saved.inside.clone();
                self.call("suspend", move |vm| vm.suspend(&file));
            }
            EngineCommand::Nmi if running.part == Part::Bhyve => {
                let cpus = self.plan.cpus as usize;
                self.call("nmi", move |vm| (0..cpus).try_for_each(|cpu| vm.inject_nmi(cpu)));
            }
            EngineCommand::Nmi => eprintln!("vmctl bhyve: no NMI for a loader"),
            EngineCommand::Stats => self.stats(running),
            EngineCommand::AddForward { nic, forward } => self.keeps_forwards(true, nic, forward),
            EngineCommand::RemoveForward { nic, forward } => self.keeps_forwards(false, nic, forward),
        }
    }

    /// bhyve(8) has its forwards in its arguments.
    fn keeps_forwards(&self, added: bool, nic: &str, forward: &ForwardSpec) {
        let error = Some("bhyve(8) cannot change the forwards of a running guest".to_owned());
        self.tell(&EngineEvent::ForwardChanged { added, nic: nic.to_owned(), forward: forward.clone(), error });
    }

    fn not_suspended(&self, message: String) {
        self.tell(&EngineEvent::NotSuspended { message });
    }

    /// Calls bhyvectl from a thread.
    fn call(
        &self,
        what: &'static str,
        work: impl FnOnce(&crate::host::bhyvectl::Vm) -> Result<(), crate::host::program::ProgramError> + Send + 'static,
    ) {
        let vm = self.plan.machine();
        let started = self.helper(move |post| post(Message::Called(what, work(&vm).map_err(|error| error.to_string()))));
        if let Err(error) = started {
            let _ = self.sender.send(Message::Called(what, Err(format!("cannot start a thread: {error}"))));
        }
    }

    /// Answers with the process of bhyve or its loader and, while there is a guest, with the counters of every virtual
    /// CPU and of its interfaces' ends on the host. bhyve has no counters of disks.
    fn stats(&self, running: &Running) {
        let mut counters = BTreeMap::from([("process-id".to_owned(), u64::from(running.child.id()))]);
        let (vm, cpus, taps) = match running.part {
            Part::Bhyve => (self.plan.machine(), self.plan.cpus as usize, self.taps.clone()),
            Part::Loader => (self.plan.machine(), 0, Vec::new()),
        };
        let started = self.helper(move |post| {
            counters.extend((0..cpus).filter_map(|cpu| vm.stats(cpu).ok()).flatten());
            for (nic, interface, jail) in &taps {
                counters.extend(
                    ifconfig::traffic(interface, jail.as_deref()).into_iter().flat_map(|traffic| traffic.of_a_guest(nic)),
                );
            }
            post(Message::Answer(EngineEvent::Stats { counters }));
        });
        if let Err(error) = started {
            eprintln!("vmctl bhyve: cannot start a thread: {error}");
        }
    }

    /// Moves console bytes in both directions. Returns whether the guest sent any.
    fn move_console(&mut self) -> bool {
        let heard = self.read_lines();
        self.write_console();
        if self.console_open && self.to_guest.len() < CONSOLE_LIMIT {
            let mut buffer = [0u8; 4096];
            match (&self.console).read(&mut buffer) {
                Ok(0) => self.console_open = false,
                Ok(count) => self.to_guest.extend(&buffer[..count]),
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                Err(_) => self.console_open = false,
            }
        }
        let Some(line) = self.lines.first() else {
            // Without a line there is no destination for input.
            self.to_guest.clear();
            return heard;
        };
        while !self.to_guest.is_empty() {
            match line.file().write(self.to_guest.make_contiguous()) {
                Ok(count) if count > 0 => drop(self.to_guest.drain(..count)),
                _ => break,
            }
        }
        heard
    }

    /// Reads the lines, as far as there is room. Returns whether there was anything.
    fn read_lines(&mut self) -> bool {
        let mut heard = false;
        let mut buffer = [0u8; 4096];
        for line in &self.lines {
            while self.to_console.len() < CONSOLE_LIMIT {
                match line.file().read(&mut buffer) {
                    Ok(count) if count > 0 => self.to_console.extend(&buffer[..count]),
                    _ => break,
                }
                heard = true;
            }
        }
        heard
    }

    fn write_console(&mut self) {
        while self.console_open && !self.to_console.is_empty() {
            match (&self.console).write(self.to_console.make_contiguous()) {
                Ok(count) if count > 0 => drop(self.to_console.drain(..count)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                _ => self.console_open = false,
            }
        }
    }

    /// Reads the rest of an ended program's lines, until nothing has come for a moment. Returns whether there was
    /// anything.
    fn drain_lines(&mut self, most: Duration) -> bool {
        let until = Instant::now() + most;
        let (mut quiet, mut heard) = (0, false);
        while !self.lines.is_empty() && quiet < 3 && Instant::now() < until {
            let more = self.read_lines();
            heard |= more;
            quiet = if more { 0 } else { quiet + 1 };
            self.write_console();
            std::thread::sleep(Duration::from_millis(3));
        }
        heard
    }

    fn maybe_running(&mut self, running: &Running, heard: bool) {
        // The loader's output was read before bhyve was started.
        let spoke = heard && running.part == Part::Bhyve;
        if !self.said_running && (spoke || (!running.ended && Instant::now() >= running.surely_running())) {
            self.said_running = true;
            if self.plan.resumes {
                // The guest continues, and its disks change.
                self.plan.saved.forget();
            }
            self.tell(&EngineEvent::Running { backend: "vmm".into() });
        }
    }
}

impl Running {
    fn new(part: Part, child: Child, stderr: io::PipeReader) -> Running {
        Running {
            part,
            child,
            stderr,
            stderr_open: true,
            started: Instant::now(),
            words: VecDeque::new(),
            requested: ControlRequest::Nothing,
            presses: 0,
            press_at: None,
            kill_at: None,
            ended: false,
        }
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id() as i32)
    }

    /// Returns the time after which the program counts as running even without output.
    fn surely_running(&self) -> Instant {
        self.started
            + match self.part {
                Part::Loader => LOADER_WAITS,
                Part::Bhyve => SURELY_RUNNING,
            }
    }

    /// Passes its standard error on, and keeps the end of it.
    fn hear(&mut self) {
        let mut buffer = [0u8; 4096];
        // Bounded, so that a program which writes without end leaves room for everything else.
        for _ in 0..16 {
            match self.stderr.read(&mut buffer) {
                Ok(0) => return self.stderr_open = false,
                Ok(count) => {
                    let _ = io::stderr().write_all(&buffer[..count]);
                    self.words.extend(&buffer[..count]);
                    let surplus = self.words.len().saturating_sub(LAST_WORDS);
                    self.words.drain(..surplus);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => return self.stderr_open = false,
            }
        }
    }

    fn one_line(&self) -> String {
        let bytes: Vec<u8> = self.words.iter().copied().collect();
        let text = String::from_utf8_lossy(&bytes);
        text.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join("; ")
    }

    fn end_now(&mut self) {
        self.requested = ControlRequest::End;
        self.kill_at = Some(Instant::now());
    }

    /// Presses the power button, and ends the program if that does not help soon; at once if the button was pressed
    /// before.
    fn shut_down(&mut self) {
        if self.part == Part::Loader || self.kill_at.is_some() {
            return self.end_now();
        }
        self.requested = ControlRequest::PowerOff { forced: false };
        self.press_at = Some(Instant::now());
        self.kill_at = Some(Instant::now() + SHUTDOWN_PATIENCE);
    }

    /// Kills a loader, which has no power button and no guest memory of its own.
    fn kill_for(&mut self, requested: ControlRequest) {
        if self.requested != ControlRequest::End {
            self.requested = requested;
            self.kill_at = Some(Instant::now());
        }
    }

    /// Tells bhyve to end, and kills it if it does not.
    fn force(&mut self, requested: ControlRequest) {
        if self.requested != ControlRequest::End {
            self.requested = requested;
            self.press_at = None;
            self.kill_at = Some(Instant::now() + FORCED_PATIENCE);
        }
    }

    /// Presses the button again and kills when that is due.
    fn press_on(&mut self, now: Instant) {
        if self.ended {
            return;
        }
        if self.press_at.is_some_and(|at| now >= at) {
            let _ = kill(self.pid(), Signal::SIGTERM);
            self.presses += 1;
            self.press_at = (self.presses < BUTTON_PRESSES).then(|| now + BUTTON_AGAIN);
        }
        if self.kill_at.is_some_and(|at| now >= at) {
            self.kill_at = None;
            self.requested = match self.requested {
                ControlRequest::PowerOff { .. } => ControlRequest::PowerOff { forced: true },
                ControlRequest::Reset { .. } => ControlRequest::Reset { forced: true },
                requested => requested,
            };
            let _ = self.child.kill();
        }
    }
}

fn make_nonblocking(pipe: &io::PipeReader) -> io::Result<()> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    let flags = OFlag::from_bits_truncate(fcntl(pipe, FcntlArg::F_GETFL)?);
    fcntl(pipe, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn running() -> Running {
        let (stderr, theirs) = io::pipe().expect("a pipe");
        let child = Command::new("sh").args(["-c", "trap '' TERM; kill -STOP $$"]).stderr(theirs).spawn();
        Running::new(Part::Bhyve, child.expect("starts"), stderr)
    }

    #[test]
    fn the_power_button_is_pressed_again_after_a_while_and_not_for_ever() {
        let mut running = running();
        let start = Instant::now();
        running.press_at = Some(start);
        let mut pressed = Vec::new();
        for second in 0..120 {
            let before = running.presses;
            running.press_on(start + Duration::from_secs(second));
            if running.presses > before {
                pressed.push(second);
            }
        }
        assert_eq!(pressed, [0, 15, 30, 45]);
        running.kill_for(ControlRequest::PowerOff { forced: true });
        running.press_on(Instant::now());
        assert!(running.child.wait().is_ok());
    }

    #[test]
    fn a_guest_that_is_forced_is_killed_when_its_time_is_over_and_that_is_remembered() {
        let mut running = running();
        running.force(ControlRequest::Reset { forced: false });
        running.press_on(Instant::now());
        assert_eq!(running.requested, ControlRequest::Reset { forced: false });
        running.press_on(Instant::now() + FORCED_PATIENCE);
        assert_eq!(running.requested, ControlRequest::Reset { forced: true });
        use std::os::unix::process::ExitStatusExt;
        assert_eq!(running.child.wait().expect("ended").signal(), Some(9));
    }

    #[test]
    fn the_end_of_everything_is_not_taken_back_by_a_later_order() {
        let mut running = running();
        running.end_now();
        running.force(ControlRequest::PowerOff { forced: false });
        assert_eq!(running.requested, ControlRequest::End);
        running.press_on(Instant::now());
        assert!(running.child.wait().is_ok());
    }
}
