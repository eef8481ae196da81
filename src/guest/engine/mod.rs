//! Engines, which run guests: an engine is one child process per boot, which follows the contract of
//! [`crate::machine::spec`].

pub mod bhyve; // FreeBSD's bhyve(8)
pub mod leftovers; // removal of the remains of killed boots

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::Ipv4Addr;
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::choices::{EmbeddedClock, EmbeddedGrubSystem, EmbeddedLoaderKind, EmbeddedNicBackend, EngineKind};
use crate::config::{AGENT_PORT, ComPort, DeviceKey, Forward, GuestConfig, HostPorts, SwitchConfig};
use crate::host::bhyvectl::Vm;
use crate::host::environment;
use crate::host::files::{open_lock, open_plain, replace};
use crate::host::process::{self, ChildProcess, spawn_tied_apart, spawn_untied};
use crate::host::vmm;
use crate::machine::forwards::ForwardSockets;
use crate::machine::spec::{
    self, ABORTED, AGENT_FD, CONSOLE_FD, CONTROL_FD, DiskSpec, EngineCommand, EngineEvent, FORWARDS_FD, ForwardSpec, GrubSpec,
    LEASE_FD, LoaderSpec, MAX_CONTROL_LINE, ModuleSpec, NicSpec, PortsSpec, SPEC_VERSION, TAPS_FD, UserNetSpec, VmmSpec,
};

use crate::guest::error::{GuestError, Result};
use crate::guest::install::{self, Install};
use crate::guest::provision::disk_path;
use crate::guest::state::GuestState;
use crate::guest::store::GuestDir;
use crate::guest::switch::taps;
use bhyve::BhyveEngine;
use bhyve::run::outcome;

/// Parameters of a boot.
#[derive(Clone, Copy)]
pub struct BootSetup<'a> {
    /// Directory of the guest.
    pub guest: &'a GuestDir,
    /// Configuration of the guest.
    pub config: &'a GuestConfig,
    /// State of the guest, with assigned addresses and slots.
    pub state: &'a GuestState,
    /// The host's switches.
    pub switches: &'a [SwitchConfig],
    /// An installer's run, whose medium is in `config`.
    pub install: Option<&'a Install>,
}

/// An engine.
pub trait Engine: Send {
    /// Checks whether this host can run the guest, before anything is made or changed for it.
    fn check(&self, setup: BootSetup<'_>) -> Result<()>;
    /// Writes the specification of the next boot. Refuses what this engine cannot do.
    fn build(&self, setup: BootSetup<'_>) -> Result<()>;
    /// Starts the child of a boot that was built. `lease` is locked and passed to it. Must be called from the main thread.
    fn spawn(&self, setup: BootSetup<'_>, lease: &File) -> Result<RunningEngine>;
    /// Returns whether a killed boot of this guest may have left remains on the host.
    fn has_left(&self, _guest: &GuestDir) -> bool {
        false
    }
    /// Removes the remains of killed boots of this guest on the host. The caller knows that no boot is under way.
    fn sweep(&self, _guest: &GuestDir) -> Result<()> {
        Ok(())
    }
}

/// Returns the default engine of this host, for a guest file that names none: bhyve if vmm(4) can be used.
pub fn of_this_host() -> EngineKind {
    match vmm::can_be_had() {
        Ok(()) => EngineKind::Bhyve,
        Err(_) => EngineKind::Embedded,
    }
}

/// Returns the engine of this kind.
pub fn of(kind: EngineKind) -> Result<Box<dyn Engine>> {
    Ok(match kind {
        EngineKind::Embedded => Box::new(EmbeddedEngine::new()?),
        EngineKind::Bhyve => Box::new(BhyveEngine::new()?),
    })
}

/// Returns the engines that may have run a guest: its file may have named another one before.
fn all() -> Result<[Box<dyn Engine>; 2]> {
    Ok([of(EngineKind::Embedded)?, of(EngineKind::Bhyve)?])
}

/// Removes the remains of killed boots of a guest on the host, of every engine. The caller knows that no boot is under
/// way.
pub fn sweep(guest: &GuestDir) -> Result<()> {
    all()?.iter().try_for_each(|engine| engine.sweep(guest))
}

/// Returns the path of this program, for an engine's child.
pub(super) fn own_program() -> Result<PathBuf> {
    process::own_program().map_err(|error| GuestError::host(format!("cannot find this program's own file: {error}")))
}

/// Writes the file that the engine's child reads.
pub(super) fn write_spec(guest: &GuestDir, spec: &impl serde::Serialize) -> Result<()> {
    let text = serde_json::to_vec_pretty(spec).expect("plain fields");
    let file = guest.spec_file();
    // A guest that reboots without a change must not need room on a full file system.
    if std::fs::read(&file).is_ok_and(|old| old == text) {
        return Ok(());
    }
    let written = replace(&file, &text, 0o600).or_else(|_| {
        // The old file is not needed any more. Its removal makes room.
        let _ = std::fs::remove_file(&file);
        replace(&file, &text, 0o600)
    });
    written.map_err(|error| GuestError::io("write", &file, error))
}

/// Returns the machine of vmm(4) that a boot of this guest on the embedded engine has or had, by its last specification.
fn kernel_machine(guest: &GuestDir) -> Option<Vm> {
    // Every command may ask this of every guest.
    if !environment::path("/dev/vmm").is_dir() {
        return None;
    }
    let spec: VmmSpec = serde_json::from_slice(&std::fs::read(guest.spec_file()).ok()?).ok()?;
    let machine = Vm { name: spec.kernel_name(), jail: None };
    machine.exists().then_some(machine)
}

/// The hypervisor in this program: `vmctl vmm --spec FILE`.
pub struct EmbeddedEngine {
    program: PathBuf,
    arguments: Vec<OsString>,
    /// A test's own program, which is told things by variables.
    stands_in: bool,
}

impl EmbeddedEngine {
    /// Creates the engine: this program, or its replacement in tests.
    pub fn new() -> Result<EmbeddedEngine> {
        match EmbeddedEngine::of_the_tests() {
            Some(engine) => Ok(engine),
            None => {
                let arguments = vec!["vmm".into(), "--spec".into()];
                Ok(EmbeddedEngine { program: own_program()?, arguments, stands_in: false })
            }
        }
    }

    /// Returns the replacement in a debug build: `VMCTL_ENGINE_COMMAND` (words between spaces).
    fn of_the_tests() -> Option<EmbeddedEngine> {
        if !cfg!(debug_assertions) {
            return None;
        }
        let text = std::env::var("VMCTL_ENGINE_COMMAND").ok()?;
        let mut words = text.split_whitespace();
        let (program, arguments) = (words.next()?.into(), words.map(OsString::from).collect());
        Some(EmbeddedEngine { program, arguments, stands_in: true })
    }
}

impl Engine for EmbeddedEngine {
    /// Accepts every host, and every guest whose switches are up.
    fn check(&self, setup: BootSetup<'_>) -> Result<()> {
        taps::check(&taps::plan(setup.config, setup.switches)?)
    }

    fn build(&self, setup: BootSetup<'_>) -> Result<()> {
        let mut spec = resolve(setup.guest, setup.config, setup.state)?;
        if let Some(install) = setup.install {
            tell(&mut spec, install);
        }
        write_spec(setup.guest, &spec)
    }

    fn spawn(&self, setup: BootSetup<'_>, lease: &File) -> Result<RunningEngine> {
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).arg(setup.guest.spec_file());
        if !self.stands_in {
            // The child reads its specification and nothing of whoever started the guest.
            command.env_clear();
        }
        let failed = |error| GuestError::io("start the engine", &self.program, error);
        let (ours, theirs) = match setup.config.agent {
            true => UnixStream::pair().map(|(ours, theirs)| (Some(ours), Some(theirs))).map_err(failed)?,
            false => (None, None),
        };
        // With the rights of this process: the child has none to a network.
        let taps = taps::open(&taps::plan(setup.config, setup.switches)?)?;
        let agent = theirs.map(|stream| (AGENT_FD, stream.into()));
        let more = agent.into_iter().chain((TAPS_FD..).zip(taps)).collect();
        let mut engine = RunningEngine::start(command, lease, End::Killed, more)?;
        engine.agent = ours.map(AgentEnd::Stream);
        Ok(engine)
    }

    fn has_left(&self, guest: &GuestDir) -> bool {
        kernel_machine(guest).is_some()
    }

    /// Destroys the machine of vmm(4), for which an engine that has given up root has no right.
    fn sweep(&self, guest: &GuestDir) -> Result<()> {
        let Some(machine) = kernel_machine(guest) else { return Ok(()) };
        let failed = |error| GuestError::host(format!("the machine `{}` of vmm(4) stays: {error}", machine.name));
        machine.destroy().map_err(failed)
    }
}

/// Returns the specification of a guest's next boot.
pub fn resolve(guest: &GuestDir, config: &GuestConfig, state: &GuestState) -> Result<VmmSpec> {
    let loader = loader(config)?;
    // The board's clock shows UTC.
    let EmbeddedClock::Utc = had(config.clock.on_embedded(), "clock", config.clock.as_str())?;
    let slot = |key: DeviceKey| match state.addresses.get(&key) {
        Some(address) => Ok(address.slot),
        None => Err(GuestError::host(format!("no PCI slot for {key}"))),
    };
    let mut disks = Vec::new();
    for disk in &config.disks {
        disks.push(DiskSpec {
            id: disk.id.clone(),
            path: disk_path(guest, disk)?,
            device: had(disk.device.on_embedded(), "disks.device", disk.device.as_str())?,
            slot: slot(DeviceKey::Disk(disk.id.clone()))?,
            read_only: disk.ro,
            cache: had(disk.cache.on_embedded(), "disks.cache", disk.cache.as_str())?,
            serial: disk.serial.clone().unwrap_or_else(|| disk.id.chars().take(20).collect()),
            discard: disk.discard,
        });
    }
    let mut nics = Vec::new();
    for nic in &config.nics {
        let mac = state.mac(&nic.id).ok_or_else(|| GuestError::host(format!("no address for nic `{}`", nic.id)))?;
        nics.push(NicSpec {
            id: nic.id.clone(),
            mac: mac.0,
            device: had(nic.device.on_embedded(), "nics.device", nic.device.as_str())?,
            slot: slot(DeviceKey::Nic(nic.id.clone()))?,
            mtu: nic.mtu,
            backend: match had(nic.backend.on_embedded(), "nics.backend", nic.backend.as_str())? {
                EmbeddedNicBackend::None => spec::NicBackend::None,
                EmbeddedNicBackend::Tap => spec::NicBackend::Tap,
                EmbeddedNicBackend::User => spec::NicBackend::User(user_network(nic)),
            },
        });
    }
    Ok(VmmSpec {
        version: SPEC_VERSION,
        name: config.name.clone(),
        uuid: state.uuid_for(config).to_owned(),
        backend: config.backend,
        cpus: config.cpus,
        memory_bytes: config.memory.bytes(),
        loader,
        disks,
        nics,
        rng: config.rng,
        com: std::array::from_fn(|at| config.console.com[at] == ComPort::Console),
        virtio_console: config.console.virtio,
        agent_port: config.agent.then(|| AGENT_PORT.to_owned()),
        debug_exit_port: config.debug.exit_port.then_some(0xf4),
        deterministic: config.debug.deterministic,
        run_as: state.engine_uid,
    })
}

/// Time that the menu of a medium waits when the installer has its answers.
const UNATTENDED_MENU_MS: u64 = 2000;

/// Adds the answers and words for an installer to a specification.
fn tell(spec: &mut VmmSpec, install: &Install) {
    let networks = spec.nics.iter_mut().filter_map(|nic| match &mut nic.backend {
        spec::NicBackend::User(network) => Some(network),
        _ => None,
    });
    let mut serves = None;
    for network in networks {
        network.answers = install.answers();
        serves.get_or_insert(network.answers_address);
    }
    if let LoaderSpec::Grub(menu) = &mut spec.loader {
        menu.disk = Some(install::DRIVE.to_owned());
        // Without a network there are no files, and no word with their address.
        menu.append = install.words(serves.unwrap_or(Ipv4Addr::UNSPECIFIED));
        if !install.answers().is_empty() {
            // There is no user to choose. The configuration's own time is for users.
            menu.timeout_ms.get_or_insert(UNATTENDED_MENU_MS);
        }
    }
}

/// Returns what the embedded engine has of a choice. A guest file that is checked has nothing else; one that was
/// checked for the other engine may.
fn had<T>(found: Option<T>, key: &str, word: &str) -> Result<T> {
    found.ok_or_else(|| GuestError::host(format!("the embedded engine has no `{key} = \"{word}\"`")))
}

/// Returns how the embedded engine loads the guest.
fn loader(config: &GuestConfig) -> Result<LoaderSpec> {
    let missing = || GuestError::host("the guest is not one of the embedded engine, or its loader has no table");
    match had(config.loader.on_embedded(), "loader", config.loader.as_str())? {
        EmbeddedLoaderKind::Grub => {
            let grub = config.grub.as_ref().ok_or_else(missing)?;
            // The boot menu reads configurations of Linux, and asks for no kernel of another system.
            let EmbeddedGrubSystem::Linux = had(grub.system.on_embedded(), "grub.system", grub.system.as_str())?;
            Ok(LoaderSpec::Grub(GrubSpec {
                entry: grub.entry.clone(),
                commands: grub.commands.clone(),
                directory: grub.directory.clone(),
                file: grub.file.clone(),
                partition: grub.partition.clone(),
                timeout_ms: grub.menu_timeout.map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX)),
                add_console: grub.console,
                disk: None,
                append: Vec::new(),
            }))
        }
        EmbeddedLoaderKind::Kernel => {
            let kernel = config.kernel.as_ref().ok_or_else(missing)?;
            let (image, initrd, cmdline) = (kernel.image.clone(), kernel.initrd.clone(), kernel.cmdline.clone());
            let module =
                |module: &crate::config::KernelModule| ModuleSpec { path: module.path.clone(), args: module.args.clone() };
            Ok(LoaderSpec::Kernel { image, initrd, modules: kernel.modules.iter().map(module).collect(), cmdline })
        }
    }
}

fn user_network(nic: &crate::config::NicConfig) -> UserNetSpec {
    let user = &nic.user;
    let ports = |ports: &HostPorts| PortsSpec { protocol: ports.proto, first: ports.first, last: ports.last };
    UserNetSpec {
        network: user.network,
        prefix: user.prefix,
        gateway: user.gateway,
        dns: user.dns,
        guest: user.guest,
        answers_address: user.answers,
        dns_servers: user.dns_servers.clone(),
        isolated: user.isolated,
        host_access: user.host_access,
        host_ports: user.host_ports.iter().map(ports).collect(),
        link_local: user.link_local,
        forwards: nic.forwards.iter().map(forward_spec).collect(),
        answers: Vec::new(),
    }
}

/// Returns a forward for the engine.
pub fn forward_spec(forward: &Forward) -> ForwardSpec {
    ForwardSpec {
        protocol: forward.proto,
        host_address: forward.host_addr,
        host_port: forward.host_port,
        guest_port: forward.guest_port,
    }
}

/// The way in which an engine's child is ended, also when its supervisor ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// It is killed, and nothing is left of it.
    Killed,
    /// It gets SIGINT, or its streams end, because it has to clean up. It is killed if that takes too long.
    Asked,
}

/// Time-out for a child to clean up.
const CLEANUP_PATIENCE: Duration = Duration::from_secs(20);

/// The host's end of the port that a guest's agent has.
#[derive(Debug)]
pub enum AgentEnd {
    /// A stream to the engine's child.
    Stream(UnixStream),
    /// A socket that the engine listens at. It takes one client at a time.
    Socket(PathBuf),
}

/// An engine's child and the streams to it. No method blocks.
pub struct RunningEngine {
    child: ChildProcess,
    end: End,
    kill_at: Option<Instant>,
    console: UnixStream,
    control: UnixStream,
    /// The host's end of the agent's port, until it is taken.
    agent: Option<AgentEnd>,
    /// The stream to a connector, for forwards that are added.
    forwards: Option<ForwardSockets>,
    stderr: File,
    lines: Vec<u8>,
    outgoing: Vec<u8>,
}

impl RunningEngine {
    /// Starts a child with the streams of the contract, and `more` descriptors. Must be called from the main thread.
    pub(super) fn start(mut command: Command, lease: &File, end: End, more: Vec<(RawFd, OwnedFd)>) -> Result<RunningEngine> {
        let program = PathBuf::from(command.get_program());
        let failed = |error: io::Error| GuestError::io("start the engine", &program, error);
        let (console, console_child) = UnixStream::pair().map_err(failed)?;
        let (control, control_child) = UnixStream::pair().map_err(failed)?;
        let (stderr, stderr_child) = io::pipe().map_err(failed)?;
        let lease: OwnedFd = lease.try_clone().map_err(failed)?.into();
        command.current_dir("/").stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr_child);
        let mut inherited = vec![(CONSOLE_FD, console_child.into()), (CONTROL_FD, control_child.into()), (LEASE_FD, lease)];
        inherited.extend(more);
        let mut forwards = None;
        if end == End::Killed {
            let (ours, theirs) = ForwardSockets::pair().map_err(failed)?;
            inherited.push((FORWARDS_FD, theirs.into()));
            forwards = Some(ours);
        }
        let child = match end {
            End::Killed => spawn_tied_apart(&mut command, &inherited),
            End::Asked => spawn_untied(&mut command, &inherited).map(ChildProcess::from),
        };
        let child = child.map_err(failed)?;
        console.set_nonblocking(true).map_err(failed)?;
        control.set_nonblocking(true).map_err(failed)?;
        let stderr = File::from(OwnedFd::from(stderr));
        let (lines, outgoing) = (Vec::new(), Vec::new());
        Ok(RunningEngine { child, end, kill_at: None, console, control, agent: None, forwards, stderr, lines, outgoing })
    }

    /// Returns the child's process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
    /// Returns the stream of COM1's bytes, which does not block.
    pub fn console(&self) -> &UnixStream {
        &self.console
    }
    /// Returns the control stream, which does not block.
    pub fn control(&self) -> &UnixStream {
        &self.control
    }
    /// Returns what passes it the sockets of forwards, if it takes any while it runs.
    pub fn forwards(&self) -> Option<&ForwardSockets> {
        self.forwards.as_ref()
    }
    /// Takes the host's end of the agent's port. There is none without one.
    pub fn take_agent(&mut self) -> Option<AgentEnd> {
        self.agent.take()
    }
    /// Returns its standard error, which blocks.
    pub fn stderr(&self) -> &File {
        &self.stderr
    }

    /// Queues a command and sends as much as the stream takes.
    pub fn command(&mut self, command: &EngineCommand) {
        // An engine that does not read its commands is killed after a while. Until then the queue must not grow.
        if self.outgoing.len() < MAX_CONTROL_LINE {
            self.outgoing.extend(serde_json::to_vec(command).expect("plain fields"));
            self.outgoing.push(b'\n');
        }
        self.flush_commands();
    }

    /// Returns whether commands wait for room in the stream.
    pub fn has_commands(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// Sends as much of the queued commands as the stream takes.
    pub fn flush_commands(&mut self) {
        while !self.outgoing.is_empty() {
            match (&self.control).write(&self.outgoing) {
                Ok(count) if count > 0 => drop(self.outgoing.drain(..count)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // The engine is ending, and its exit counts.
                _ => return self.outgoing.clear(),
            }
        }
    }

    /// Returns the events that have arrived. Lines that are not events are returned as text. `false` means that the
    /// stream has ended.
    pub fn events(&mut self) -> (Vec<std::result::Result<EngineEvent, String>>, bool) {
        let mut buffer = [0u8; 4096];
        let mut open = true;
        loop {
            match (&self.control).read(&mut buffer) {
                Ok(0) => open = false,
                Ok(count) => {
                    self.lines.extend_from_slice(&buffer[..count]);
                    if self.lines.len() <= MAX_CONTROL_LINE {
                        continue;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => open = false,
            }
            break;
        }
        let mut events = Vec::new();
        while let Some(end) = self.lines.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.lines.drain(..=end).collect();
            events.push(serde_json::from_slice(&line).map_err(|_| String::from_utf8_lossy(&line).trim_end().to_owned()));
        }
        if self.lines.len() > MAX_CONTROL_LINE {
            self.lines.clear();
        }
        (events, open)
    }

    /// Ends the child at once, or as soon as it has cleaned up.
    pub fn kill(&mut self) {
        match (self.end, self.kill_at) {
            (End::Killed, _) => drop(self.child.kill()),
            (End::Asked, Some(_)) => {}
            (End::Asked, None) => {
                self.kill_at = Some(Instant::now() + CLEANUP_PATIENCE);
                let pid = nix::unistd::Pid::from_raw(self.child.id() as i32);
                let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT);
            }
        }
    }

    /// Returns when a child that was told to end will be killed.
    pub fn deadline(&self) -> Option<Instant> {
        self.kill_at
    }

    /// Kills a child that has cleaned up for too long.
    pub fn press_on(&mut self, now: Instant) {
        if self.kill_at.is_some_and(|at| now >= at) {
            self.kill_at = Some(now + CLEANUP_PATIENCE);
            let _ = self.child.kill();
        }
    }

    /// Returns the exit status, if it has ended. An exit code that stands for a signal counts as the signal: a program's that
    /// the child runs, or its own.
    pub fn exited(&mut self) -> Option<std::process::ExitStatus> {
        use std::os::unix::process::ExitStatusExt;
        let status = self.child.try_wait().ok().flatten()?;
        let signal = status.code().and_then(|code| match self.end {
            End::Asked => outcome::End::signal_of(code),
            End::Killed => (code == i32::from(ABORTED)).then_some(nix::sys::signal::Signal::SIGABRT as i32),
        });
        Some(signal.map_or(status, ExitStatusExt::from_raw))
    }
}

impl Drop for RunningEngine {
    fn drop(&mut self) {
        if self.exited().is_some() {
            return;
        }
        self.kill();
        while self.end == End::Asked && self.exited().is_none() && self.kill_at.is_some_and(|at| Instant::now() < at) {
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits until an earlier engine is gone, and locks its lease.
pub fn take_lease(path: &Path) -> Result<File> {
    let file = open_lock(path).map_err(|error| GuestError::io("open the lock", path, error))?;
    lock_lease(&file, path, Duration::from_secs(10))?;
    Ok(file)
}

/// Waits until an engine is gone.
pub fn wait_for_lease(path: &Path, patience: Duration) -> Result<()> {
    match open_plain(path) {
        Ok(file) => lock_lease(&file, path, patience),
        Err(_) => Ok(()),
    }
}

fn lock_lease(file: &File, path: &Path, patience: Duration) -> Result<()> {
    let started = Instant::now();
    while let Err(error) = file.try_lock() {
        if let std::fs::TryLockError::Error(error) = error {
            return Err(GuestError::io("lock", path, error));
        }
        if started.elapsed() > patience {
            return Err(GuestError::user("an engine of an earlier start is still there")
                .hint(format!("find it with `fuser {}` and end it", path.display())));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}
