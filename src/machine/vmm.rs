//! The engine child: one machine, from its specification to its exit code.
//!
//! The order is part of the contract: every file, port and socket is opened first, then the process gives up what it does
//! not need any more (see [`sandbox`]), then the machine is put together and a kernel of the host is loaded, then the
//! process gives up starting threads, then `running` is reported, and only then the first guest instruction runs. A guest
//! that boots by its own menu is `running` once a configuration was found on its disks, before the menu is shown.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::assembly::{self, Machine, Streams};
use super::loader::grub::{GrubError, Halt};
use super::opened::{self, Opened};
use super::sandbox;
use super::spec::{EngineCommand, EngineEvent, MAX_CONTROL_LINE, SPEC_VERSION, VmmSpec};
use crate::choices::BackendKind;
use crate::devices::net::user::Outside;
use crate::devices::net::user::sockets::Sockets;
use crate::hypervisor::backend::{MachineExit, Needs, OpenBackend, Reason, Rights};
use crate::hypervisor::backends;
use crate::hypervisor::waking::{Attention, EndsMachine};

/// Maximum time for the last output of a guest to reach the console's reader.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Reason why a machine cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The specification has another version.
    #[error(
        "the machine specification has version {found}, this program uses version {SPEC_VERSION}; was it replaced while the guest ran?"
    )]
    Version {
        /// The version that was found.
        found: u32,
    },
    /// No back end can run the guest.
    #[error(transparent)]
    Backend(#[from] backends::OpenError),
    /// The vCPUs cannot be built.
    #[error("cannot build the vCPUs")]
    Vcpus(#[source] Reason),
    /// The machine cannot be assembled.
    #[error(transparent)]
    Assembly(#[from] assembly::AssemblyError),
    /// The guest's own disks have nothing to boot.
    #[error(transparent)]
    Menu(#[from] GrubError),
    /// The process cannot be confined.
    #[error("cannot confine the engine")]
    Sandbox(#[source] sandbox::SandboxError),
    /// The host has no thread or socket to give.
    #[error("cannot {action}")]
    Host {
        /// The action that failed.
        action: &'static str,
        /// The error of the host.
        source: std::io::Error,
    },
}

/// The sending half of the control stream, shared by all reporters.
#[derive(Clone)]
struct Reporter(Arc<Mutex<UnixStream>>);

impl Reporter {
    /// Sends one event. An error is ignored: if the supervisor is gone, the reading half ends the process.
    fn send(&self, event: &EngineEvent) {
        let mut line = serde_json::to_vec(event).expect("events are plain data");
        line.push(b'\n');
        let _ = self.0.lock().expect("no panic happens under this lock").write_all(&line);
    }
}

/// Runs the machine of `spec` to its end and returns the process's exit code.
///
/// `control` carries the events and commands of [`super::spec`]; `outside` makes the sockets of a
/// user-mode network, which this process must not make any more once the guest runs.
pub fn run(spec: &VmmSpec, streams: Streams, control: UnixStream, outside: &Arc<dyn Sockets>) -> u8 {
    let reader = control.try_clone();
    let reporter = Reporter(Arc::new(Mutex::new(control)));
    let outcome = reader
        .map_err(|source| StartError::Host { action: "share the control stream", source })
        .and_then(|reader| boot(spec, streams, reader, &reporter, outside));
    let exit = outcome.unwrap_or_else(|error| {
        let message = error_chain(&error);
        eprintln!("vmctl vmm: {message}");
        reporter.send(&EngineEvent::Error { message });
        MachineExit::Error
    });
    if let MachineExit::Debug(value) = exit {
        reporter.send(&EngineEvent::DebugExit { value });
    }
    exit.code()
}

fn error_chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

fn boot(
    spec: &VmmSpec,
    streams: Streams,
    control: UnixStream,
    reporter: &Reporter,
    outside: &Arc<dyn Sockets>,
) -> Result<MachineExit, StartError> {
    if spec.version != SPEC_VERSION {
        return Err(StartError::Version { found: spec.version });
    }
    let opened = reporter.clone();
    let on_open = Arc::new(move |address| opened.send(&EngineEvent::ForwardOpen { address }));
    // Standard error is the supervisor's log of this engine.
    let on_note = Arc::new(|text: &str| eprintln!("vmctl vmm: {text}"));
    let mut backend = open_backend(spec, &*on_note)?;
    let opened = Opened::open(spec, &**outside)?;
    let rights = backend.rights();
    let confinement = sandbox::enter(spec.run_as, spec.memory_bytes, &rights).map_err(StartError::Sandbox)?;
    for missing in &confinement.missing {
        eprintln!("vmctl vmm: the engine is confined without: {missing}");
    }
    reporter.send(&EngineEvent::Confined { by: confinement.held, without: confinement.missing });
    let outside = Outside { sockets: Arc::clone(outside), on_open, on_note };
    let mut machine = assembly::assemble(spec, opened, streams, &outside, &mut *backend)?;
    listen(control, &machine, reporter)?;
    // The guest's own file systems are read inside the sandbox. Without a boot configuration the start fails.
    let menu = machine.boot_menu()?;
    if let Some(menu) = menu {
        // A user may have to choose. So the guest counts as running from here on, and its console can be reached.
        reporter.send(&EngineEvent::Running { backend: backend.name().into() });
        match machine.run_boot_menu(&menu) {
            Ok(()) => {}
            Err(Halt::Stopped(exit)) => {
                machine.finish(LAST_WORDS);
                return Ok(exit);
            }
            Err(Halt::GaveUp(text)) => {
                machine.say(&format!("\r\nvmctl: {text}\r\n"));
                machine.finish(LAST_WORDS);
                return Err(StartError::Menu(GrubError(text)));
            }
        }
        return run_vcpus(&machine, backend, &rights, None);
    }
    run_vcpus(&machine, backend, &rights, Some(reporter))
}

/// Opens the back end that the guest file asks for.
fn open_backend(spec: &VmmSpec, note: &dyn Fn(&str)) -> Result<Box<dyn OpenBackend>, StartError> {
    let name = (spec.backend != BackendKind::Auto).then(|| spec.backend.as_str());
    let machine = spec.kernel_name();
    let needs = Needs { machine: &machine, topology: spec.cpus, deterministic: spec.deterministic };
    Ok(backends::open(name, &needs, note)?)
}

/// Runs the vCPUs to the machine's end. Before they start, `reporter` sends that they are about to.
fn run_vcpus(
    machine: &Machine,
    backend: Box<dyn OpenBackend>,
    rights: &Rights,
    reporter: Option<&Reporter>,
) -> Result<MachineExit, StartError> {
    let mut backend = backend.build(machine.vcpu_setup()).map_err(StartError::Vcpus)?;
    if machine.manual_clock.is_none() {
        serve_board(machine)?;
    }
    // All threads are there.
    sandbox::seal(rights).map_err(StartError::Sandbox)?;
    if let Some(reporter) = reporter {
        reporter.send(&EngineEvent::Running { backend: backend.name().to_string() });
    }
    let exit = backend.run();
    machine.finish(LAST_WORDS);
    Ok(exit)
}

/// Starts the board's thread: it polls the devices that were woken and runs their timers. In deterministic mode the back
/// end does that between instructions.
fn serve_board(machine: &Machine) -> Result<(), StartError> {
    let (board, attention) = (Arc::clone(&machine.board), Arc::clone(&machine.attention));
    let serve = move || {
        let _ends = EndsMachine(&attention);
        attention.serve(&*board);
    };
    let spawned = std::thread::Builder::new().name("board".into()).spawn(serve);
    spawned.map(drop).map_err(|source| StartError::Host { action: "start the board's thread", source })
}

/// Starts the thread that receives the supervisor's commands.
fn listen(control: UnixStream, machine: &Machine, reporter: &Reporter) -> Result<(), StartError> {
    let attention = Arc::clone(&machine.attention);
    let handles = machine.handles();
    let reporter = reporter.clone();
    let hear = move || {
        let mut lines = BufReader::new(control);
        let mut line = Vec::new();
        loop {
            line.clear();
            let got = (&mut lines).take(MAX_CONTROL_LINE as u64).read_until(b'\n', &mut line);
            if !matches!(got, Ok(n) if n > 0) {
                // The supervisor is gone: nothing could control this guest any more.
                attention.stop(MachineExit::Error);
                return;
            }
            match serde_json::from_slice(&line) {
                Ok(command) => obey(&command, &attention, &handles, &reporter),
                Err(error) => eprintln!("vmctl vmm: a command was not understood: {error}"),
            }
        }
    };
    let spawned = std::thread::Builder::new().name("control".into()).spawn(hear);
    spawned.map(drop).map_err(|source| StartError::Host { action: "start the control thread", source })
}

fn obey(command: &EngineCommand, attention: &Attention, handles: &assembly::Handles, reporter: &Reporter) {
    match command {
        EngineCommand::PowerButton => {
            if handles.is_in_loader() {
                reporter.send(&EngineEvent::NoAcpi);
            }
            handles.press_power_button();
        }
        EngineCommand::Reset => attention.stop(MachineExit::Reboot),
        EngineCommand::Poweroff => {
            if handles.power_button.is_unheard() {
                reporter.send(&EngineEvent::NoAcpi);
            }
            attention.stop(MachineExit::PowerOff);
        }
        EngineCommand::Suspend => reporter
            .send(&EngineEvent::NotSuspended { message: "the embedded engine of this version cannot save a guest".into() }),
        EngineCommand::Nmi => handles.interrupts.nmi(),
        EngineCommand::Stats => reporter.send(&EngineEvent::Stats { counters: handles.counters() }),
        EngineCommand::AddForward { nic, forward } => {
            let error = handles.add_forward(nic, opened::forward(forward)).err();
            reporter.send(&EngineEvent::ForwardChanged { added: true, nic: nic.clone(), forward: forward.clone(), error });
        }
        EngineCommand::RemoveForward { nic, forward } => {
            let error = handles.remove_forward(nic, opened::forward(forward)).err();
            reporter.send(&EngineEvent::ForwardChanged { added: false, nic: nic.clone(), forward: forward.clone(), error });
        }
    }
}
