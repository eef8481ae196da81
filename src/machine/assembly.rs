//! Building a machine: the one wiring table, from a specification to a board, memory and an entry state.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::board::{Board, Wire};
use super::interrupts::{InterruptRegisters, Interrupts};
use super::layout;
use super::loader::{self, LoadError, grub};
use super::opened::Opened;
use super::spec::{DiskSpec, GrubSpec, LoaderSpec, NicBackend, NicSpec, VmmSpec};
use super::tables::{acpi, bda, smbios};
use crate::choices::{EmbeddedDiskDevice, EmbeddedNicDevice};
use crate::devices::ahci::{Ahci, DriveKind};
use crate::devices::debug_exit::DebugExit;
use crate::devices::disk::counters::DiskCounters;
use crate::devices::disk::file::{self, DiskHost, DiskNote, DiskOptions, FileDisk, OpenDisk};
use crate::devices::disk::{Disk, DiskReader};
use crate::devices::net::counted::{Counted, NicCounters};
use crate::devices::net::{Nic, NoWire, user};
use crate::devices::pci::{PciError, PciRoot, Window, Windows};
use crate::devices::pic::Pic;
use crate::devices::pit::Pit;
use crate::devices::pm::{Pm, PowerButton};
use crate::devices::ps2::Ps2;
use crate::devices::rtc::Rtc;
use crate::devices::serial::{CharBackend, Serial};
use crate::devices::stream::StreamConsole;
use crate::devices::virtio::VirtioDevice;
use crate::devices::virtio::{blk, console, net, rng, transport::VirtioPci};
use crate::hypervisor::backend::{BootState, LocalApics, MachineExit, OpenBackend, VcpuSetup};
use crate::hypervisor::bus::{Device, Overlap};
use crate::hypervisor::clock::{Clock, HostClock, ManualClock};
use crate::hypervisor::guest_errors::GuestErrors;
use crate::hypervisor::irq::{IrqLine, IrqSink, Irqchip};
use crate::hypervisor::memory::GuestMemory;
use crate::hypervisor::waking::{Attention, Waker};
use crate::units::Topology;

/// PCI slots of the board's own devices. The supervisor assigns the others.
const RNG_SLOT: u8 = 1;
const CONSOLE_SLOT: u8 = 2;
/// Highest device number with an interrupt route.
const LAST_SLOT: u8 = 30;

/// The error for a machine that cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum AssemblyError {
    /// Guest memory cannot be allocated.
    #[error("cannot reserve {bytes} bytes of guest memory")]
    Memory {
        /// Number of bytes requested.
        bytes: u64,
        /// The error of the host.
        source: std::io::Error,
    },
    /// The console stream cannot be used.
    #[error("cannot set up the console")]
    Console(#[source] std::io::Error),
    /// A disk cannot be opened.
    #[error("disk `{id}`")]
    Disk {
        /// Its id.
        id: String,
        /// The cause.
        source: file::DiskError,
    },
    /// A network interface cannot be opened.
    #[error("network interface `{id}`")]
    Nic {
        /// Its id.
        id: String,
        /// The cause.
        source: user::UserNetError,
    },
    /// A network interface with a tap.
    #[error("cannot use the tap of network interface `{id}`")]
    Tap {
        /// Its id.
        id: String,
        /// The error of the host.
        source: std::io::Error,
    },
    /// A file for the guest cannot be read.
    #[error("cannot read `{}`", path.display())]
    Answer {
        /// Path of the file.
        path: std::path::PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// Two devices have the same address or line.
    #[error(transparent)]
    Pci(#[from] PciError),
    /// The wiring table contradicts itself.
    #[error(transparent)]
    Wiring(#[from] Overlap),
    /// The guest cannot be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The UUID is invalid.
    #[error("`{0}` is not a UUID")]
    Uuid(String),
}

/// The parts of a machine that other threads use.
#[derive(Clone)]
pub struct Handles {
    /// The ACPI power button.
    pub power_button: PowerButton,
    /// The interrupt controllers.
    pub interrupts: Arc<dyn Irqchip>,
    clock: Arc<dyn Clock>,
    vcpus: usize,
    attention: Arc<Attention>,
    counted: Arc<Devices>,
    /// Whether the loader runs, so that no guest notices the power button yet.
    in_loader: Arc<AtomicBool>,
}

/// Results of wiring the PCI bus that other code needs.
#[derive(Default)]
struct Devices {
    boot_disks: Vec<grub::BootDisk>,
    disks: Vec<(String, Arc<DiskCounters>)>,
    nics: Vec<(String, Arc<NicCounters>)>,
    /// By the name that their counter begins with.
    guest_errors: Vec<(String, Arc<GuestErrors>)>,
    /// Of user-mode networks.
    forwards: Vec<(String, user::ForwardControl)>,
}

impl Handles {
    /// Presses the power button. The guest gets an interrupt; a boot menu ends with a power-off.
    pub fn press_power_button(&self) {
        match self.is_in_loader() {
            true => self.attention.stop(MachineExit::PowerOff),
            false => self.power_button.press(),
        }
    }

    /// Returns whether the loader runs, so that no guest can notice the power button.
    pub fn is_in_loader(&self) -> bool {
        self.in_loader.load(Ordering::Acquire)
    }

    /// Takes a forward of an interface into use, whose socket the supervisor has bound.
    pub fn add_forward(&self, nic: &str, forward: user::Forward) -> Result<(), String> {
        let failed = |error| format!("the network of `{nic}` cannot take the forward: {error}");
        self.forward_control(nic)?.add(forward).map_err(failed)
    }

    /// Closes a forward of an interface.
    pub fn remove_forward(&self, nic: &str, forward: user::Forward) -> Result<(), String> {
        self.forward_control(nic).map(|control| control.remove(forward))
    }

    fn forward_control(&self, nic: &str) -> Result<&user::ForwardControl, String> {
        let found = self.counted.forwards.iter().find(|(id, _)| id == nic);
        found.map(|(_, control)| control).ok_or_else(|| format!("the running guest has no user-mode network `{nic}`"))
    }

    /// Returns the counters by name: those of the machine, `disk.ID.NAME`, `nic.ID.NAME`, and `guest-errors` of every
    /// device that reports them.
    pub fn counters(&self) -> BTreeMap<String, u64> {
        let mut all = BTreeMap::from([("uptime-ns".to_string(), self.clock.now_ns()), ("vcpus".to_string(), self.vcpus as u64)]);
        for (id, disk) in &self.counted.disks {
            all.extend(disk.read().map(|(name, value)| (format!("disk.{id}.{name}"), value)));
        }
        for (id, nic) in &self.counted.nics {
            all.extend(nic.read().map(|(name, value)| (format!("nic.{id}.{name}"), value)));
        }
        for (name, errors) in &self.counted.guest_errors {
            all.insert(format!("{name}.guest-errors"), errors.count());
        }
        all
    }
}

/// Origin of the first instruction.
enum Boot {
    /// The kernel is in memory.
    Ready(BootState),
    /// The loader must still run, on these disks, with the address of the ACPI root pointer.
    Menu(grub::Options, Vec<grub::BootDisk>, u64),
}

/// A machine, ready to run.
pub struct Machine {
    /// The guest's memory.
    pub memory: GuestMemory,
    /// The board.
    pub board: Arc<Board>,
    apics: Option<Arc<dyn LocalApics>>,
    /// The means by which other threads reach the vCPUs.
    pub attention: Arc<Attention>,
    /// In deterministic mode, the clock that the vCPUs drive.
    pub manual_clock: Option<Arc<ManualClock>>,
    handles: Handles,
    boot: Boot,
    topology: Topology,
    console: StreamConsole,
}

impl Machine {
    /// Returns the loader that must still run, if there is one. It searches for the guest's boot configuration.
    pub fn boot_menu(&mut self) -> Result<Option<grub::Loader>, grub::GrubError> {
        match &mut self.boot {
            Boot::Ready(_) => Ok(None),
            Boot::Menu(options, disks, _) => grub::Loader::new(std::mem::take(disks), options.clone()).map(Some),
        }
    }

    /// Shows the guest's boot menu on its console and loads the chosen kernel into memory. The power button and every
    /// stop end it.
    pub fn run_boot_menu(&mut self, loader: &grub::Loader) -> Result<(), grub::Halt> {
        let Boot::Menu(_, _, rsdp) = self.boot else { return Ok(()) };
        self.handles.in_loader.store(true, Ordering::Release);
        let port = grub::ConsolePort::new(self.console.clone(), Arc::clone(&self.attention));
        let loaded = loader.run(Box::new(port), grub::Limits::default());
        self.handles.in_loader.store(false, Ordering::Release);
        let loaded = loaded?;
        // A press at the last moment must not be lost on a guest that has not enabled the event yet.
        if let Some(exit) = self.attention.stopped() {
            return Err(grub::Halt::Stopped(exit));
        }
        let placed = loaded.load_into(&self.memory, rsdp);
        self.boot = Boot::Ready(placed.map_err(|error| grub::Halt::GaveUp(format!("`{}`: {error}", loaded.name)))?);
        Ok(())
    }

    /// Prints a message on the console, where the user of a boot menu sees it.
    pub fn say(&self, text: &str) {
        let mut console = self.console.clone();
        CharBackend::write(&mut console, text.as_bytes());
    }

    /// Returns the parameters of a back end, once the guest is loaded.
    pub fn vcpu_setup(&self) -> VcpuSetup {
        let Boot::Ready(boot) = self.boot else { unreachable!("the boot menu has run before the back end is built") };
        VcpuSetup {
            vcpus: self.handles.vcpus,
            topology: self.topology,
            memory: self.memory.clone(),
            platform: Arc::clone(&self.board) as _,
            apics: self.apics.clone(),
            attention: Arc::clone(&self.attention),
            boot,
            device_windows: layout::DEVICE_WINDOWS.to_vec(),
            manual_clock: self.manual_clock.clone(),
        }
    }

    /// Returns the parts that other threads use.
    pub fn handles(&self) -> Handles {
        self.handles.clone()
    }

    /// Waits, at most `limit`, until the console's output has been written.
    pub fn finish(&self, limit: Duration) {
        self.console.flush(limit);
    }
}

/// Resources that the devices of one machine share.
struct Resources {
    memory: GuestMemory,
    attention: Arc<Attention>,
    clock: Arc<dyn Clock>,
    sink: Arc<dyn IrqSink>,
    note: user::Noted,
    vcpus: usize,
    guest_errors: RefCell<Vec<(String, Arc<GuestErrors>)>>,
}

impl Resources {
    fn line(&self, gsi: u32) -> IrqLine {
        IrqLine::new(Arc::clone(&self.sink), gsi)
    }
    fn waker(&self) -> Waker {
        Waker::new(Arc::clone(&self.attention))
    }
    /// Returns the number of queues for a device that can have several: one for each vCPU, which then needs no lock and gets
    /// the interrupts of its own requests.
    fn queues(&self) -> u16 {
        u16::try_from(self.vcpus).unwrap_or(blk::QUEUES_MAX).min(blk::QUEUES_MAX)
    }
    /// Returns the sink for what the guest does wrong to a device, whose counter begins with `counter`.
    fn errors(&self, counter: String, device: String) -> Arc<GuestErrors> {
        let errors = GuestErrors::new(device, Arc::clone(&self.note));
        self.guest_errors.borrow_mut().push((counter, Arc::clone(&errors)));
        errors
    }
    /// Puts a virtio device into a PCI slot. `waker` is the one that its back end uses.
    fn virtio(
        &self,
        root: &mut PciRoot,
        slot: u8,
        device: Box<dyn VirtioDevice>,
        waker: Waker,
        errors: Arc<GuestErrors>,
    ) -> Result<(), PciError> {
        let line = self.line(layout::pci_gsi(slot));
        let function = VirtioPci::new(device, self.memory.clone(), waker, Arc::clone(&self.sink), line);
        root.add(slot, 0, Box::new(function.report_to(errors)))
    }
}

/// The streams of one machine.
pub struct Streams {
    /// Carries COM1.
    pub console: UnixStream,
    /// Carries the agent's port, in a machine with one.
    pub agent: Option<UnixStream>,
    /// The taps of the interfaces that have one, in their order. They do not block.
    pub taps: Vec<OwnedFd>,
}

/// Builds the machine of `spec` from what is open: wires the board, starts its threads, loads the guest. `outside` makes
/// the sockets of user-mode networks. `backend` will run the vCPUs.
pub fn assemble(
    spec: &VmmSpec,
    opened: Opened,
    streams: Streams,
    outside: &user::Outside,
    backend: &mut dyn OpenBackend,
) -> Result<Machine, AssemblyError> {
    let topology = spec.cpus;
    let vcpus = topology.count() as usize;
    let reserve = |source| AssemblyError::Memory { bytes: spec.memory_bytes, source };
    let memory = super::memory::build_for(spec.memory_bytes, backend).map_err(reserve)?;
    let attention = Attention::new(vcpus);
    let manual_clock = spec.deterministic.then(|| ManualClock::new(0));
    let clock: Arc<dyn Clock> = match &manual_clock {
        Some(manual) => Arc::clone(manual) as _,
        None => HostClock::new(),
    };
    let (interrupts, own) = controllers(backend, vcpus, &attention, &clock);
    let resources = Resources {
        memory: memory.clone(),
        attention: Arc::clone(&attention),
        clock: Arc::clone(&clock),
        sink: Arc::clone(&interrupts) as _,
        note: Arc::clone(&outside.on_note),
        vcpus,
        guest_errors: RefCell::default(),
    };
    let board = Arc::new(Board::new(Arc::clone(&interrupts), Arc::clone(&attention), Arc::clone(&clock)));

    let console = wire_serial(&board, &resources, spec, streams.console)?;
    let power_button = wire_chips(&board, &resources, own.as_ref(), spec)?;
    let Opened { kernel, disks, nics } = opened;
    let nics = open_nics(spec, nics, streams.taps);
    let mut devices = wire_pci(&board, &resources, spec, (disks, nics), (&console, streams.agent), outside)?;
    devices.guest_errors = resources.guest_errors.take();

    let shape = acpi::Shape { vcpus, serial: spec.com, pci_devices: LAST_SLOT };
    let rsdp = acpi::write(&memory, &shape).map_err(LoadError::from)?;
    let identity = smbios::Identity { uuid: parse_uuid(&spec.uuid)?, memory_bytes: spec.memory_bytes, topology };
    smbios::write(&memory, &identity).map_err(LoadError::from)?;
    bda::write(&memory, spec.com).map_err(LoadError::from)?;
    let boot = match &spec.loader {
        LoaderSpec::Kernel { .. } => {
            let files = kernel.expect("a kernel to load is opened");
            Boot::Ready(loader::kernel::load(&memory, &files, rsdp)?)
        }
        LoaderSpec::Grub(menu) => {
            Boot::Menu(menu_options(menu, spec.memory_bytes), std::mem::take(&mut devices.boot_disks), rsdp)
        }
    };

    let (counted, in_loader) = (Arc::new(devices), Arc::default());
    let apics = own.map(|own| own as _);
    let handles = Handles { power_button, interrupts, clock, vcpus, attention: Arc::clone(&attention), counted, in_loader };
    Ok(Machine { memory, board, apics, attention, manual_clock, handles, boot, topology, console })
}

/// Returns the interrupt controllers: those of the back end, or else the board's own, which are also returned by themselves.
fn controllers(
    backend: &mut dyn OpenBackend,
    vcpus: usize,
    attention: &Arc<Attention>,
    clock: &Arc<dyn Clock>,
) -> (Arc<dyn Irqchip>, Option<Arc<Interrupts>>) {
    match backend.irqchip(attention) {
        Some(irqchip) => (irqchip, None),
        None => {
            let own = Interrupts::new(vcpus, Arc::clone(attention), Arc::clone(clock));
            (Arc::clone(&own) as _, Some(own))
        }
    }
}

fn menu_options(spec: &GrubSpec, memory_bytes: u64) -> grub::Options {
    grub::Options {
        entry: spec.entry.clone(),
        commands: spec.commands.clone(),
        directory: spec.directory.clone(),
        file: spec.file.clone(),
        partition: spec.partition.clone(),
        timeout: spec.timeout_ms.map(Duration::from_millis),
        add_console: spec.add_console,
        disk: spec.disk.clone(),
        append: spec.append.clone(),
        memory_bytes,
    }
}

fn parse_uuid(text: &str) -> Result<[u8; 16], AssemblyError> {
    let digits: String = text.chars().filter(|c| *c != '-').collect();
    let bad = || AssemblyError::Uuid(text.to_string());
    if digits.len() != 32 || !digits.is_ascii() {
        return Err(bad());
    }
    let mut uuid = [0; 16];
    for (i, byte) in uuid.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&digits[2 * i..2 * i + 2], 16).map_err(|_| bad())?;
    }
    Ok(uuid)
}

/// Adds COM1 to COM4: all write to the console stream, and COM1 reads from it.
fn wire_serial(board: &Board, resources: &Resources, spec: &VmmSpec, stream: UnixStream) -> Result<StreamConsole, AssemblyError> {
    let wakers: Vec<Waker> = layout::SERIAL.iter().map(|_| resources.waker()).collect();
    let console = StreamConsole::new("console", stream, wakers[0].clone(), wakers.clone()).map_err(AssemblyError::Console)?;
    for (i, &(port, irq)) in layout::SERIAL.iter().enumerate().filter(|&(i, _)| spec.com[i]) {
        let backend = if i == 0 { console.clone() } else { console.write_only() };
        let errors = resources.errors(format!("com{}", i + 1), format!("COM{}", i + 1));
        let uart = Serial::new(resources.line(irq), Box::new(backend)).report_to(errors);
        board.add(Box::new(uart), &[Wire::ports(port, 8, 0)])?;
    }
    Ok(console)
}

/// Adds the chips that a back end with interrupt controllers of its own replaces ([`OpenBackend::irqchip`]).
fn wire_replaceable_chips(board: &Board, resources: &Resources, interrupts: &Arc<Interrupts>) -> Result<(), AssemblyError> {
    let [first, second, elcr] = layout::PIC_PORTS;
    let controllers = [
        Wire::ports(first, 2, Pic::MASTER),
        Wire::ports(second, 2, Pic::SLAVE),
        Wire::ports(elcr, 2, Pic::ELCR),
        Wire::memory(layout::IOAPIC_BASE, layout::APIC_WINDOW, InterruptRegisters::IOAPIC),
    ];
    board.add(Box::new(InterruptRegisters::new(Arc::clone(interrupts))), &controllers)?;
    let pit = Pit::new(Arc::clone(&resources.clock), resources.line(layout::PIT_IRQ));
    board.add(Box::new(pit), &[Wire::ports(layout::PIT_PORT, 4, 0), Wire::ports(layout::PIT_GATE_PORT, 1, 1)])?;
    Ok(())
}

/// Adds the chips that every PC has. `interrupts` are the board's own controllers, if it has any.
fn wire_chips(
    board: &Board,
    resources: &Resources,
    interrupts: Option<&Arc<Interrupts>>,
    spec: &VmmSpec,
) -> Result<PowerButton, AssemblyError> {
    if let Some(interrupts) = interrupts {
        wire_replaceable_chips(board, resources, interrupts)?;
    }
    let clock = || Arc::clone(&resources.clock);
    let rtc = Rtc::new(clock(), resources.line(layout::RTC_IRQ));
    board.add(Box::new(rtc), &[Wire::ports(layout::RTC_PORT, 2, 0)])?;
    let keyboard = Ps2::new(resources.line(layout::PS2_IRQ), Arc::clone(&resources.attention));
    let [data, command] = layout::PS2_PORTS;
    let ports = [
        Wire::ports(data, 1, Ps2::DATA),
        Wire::ports(command, 1, Ps2::COMMAND),
        Wire::ports(layout::SYSTEM_CONTROL_PORT, 1, Ps2::PORT_92),
    ];
    board.add(Box::new(keyboard), &ports)?;
    let pm = Pm::new(clock(), resources.line(layout::SCI_IRQ), Arc::clone(&resources.attention), resources.waker());
    let button = pm.button();
    let wires = [
        Wire::ports(layout::PM1A_EVT.into(), 4, Pm::EVENT),
        Wire::ports(layout::PM1A_CNT.into(), 2, Pm::CONTROL),
        Wire::ports(layout::PM_TMR.into(), 4, Pm::TIMER),
    ];
    board.add(Box::new(pm), &wires)?;
    if let Some(port) = spec.debug_exit_port {
        let device = Box::new(DebugExit::new(Arc::clone(&resources.attention)));
        board.add(device, &[Wire::ports(port.into(), 4, 0)])?;
    }
    Ok(button)
}

type OpenDisks = Vec<(DiskOptions, OpenDisk)>;
type OpenNics = Vec<OpenNic>;

/// Adds the PCI functions.
fn wire_pci(
    board: &Board,
    resources: &Resources,
    spec: &VmmSpec,
    (open_disks, open_nics): (OpenDisks, OpenNics),
    (console, agent): (&StreamConsole, Option<UnixStream>),
    outside: &user::Outside,
) -> Result<Devices, AssemblyError> {
    let window = |(base, len): (u64, u64)| Window { base, len };
    let windows = Windows { memory32: window(layout::PCI_MEMORY), memory64: Window::default(), io: window(layout::PCI_IO) };
    let mut root = PciRoot::new(windows, Arc::clone(&resources.attention));
    if spec.rng && !spec.deterministic {
        let errors = resources.errors("rng".into(), "the entropy device".into());
        resources.virtio(&mut root, RNG_SLOT, Box::new(rng::Rng::new()), resources.waker(), errors)?;
    }
    wire_console(&mut root, resources, spec, console, agent)?;
    let mut devices = Devices::default();
    for (disk, opened) in spec.disks.iter().zip(open_disks) {
        let (reader, counters) = wire_disk(&mut root, resources, disk, opened)?;
        devices.boot_disks.push(grub::BootDisk { id: disk.id.clone(), is_cd: disk.device == EmbeddedDiskDevice::AhciCd, reader });
        devices.disks.push((disk.id.clone(), counters));
    }
    for (nic, opened) in spec.nics.iter().zip(open_nics) {
        let (counters, control) = wire_nic(&mut root, resources, (nic, opened), outside)?;
        devices.nics.push((nic.id.clone(), counters));
        devices.forwards.extend(control.map(|control| (nic.id.clone(), control)));
    }
    root.assign_bars()?;
    let wires = [
        Wire::ports(layout::PCI_CONFIG_PORT.0, layout::PCI_CONFIG_PORT.1, PciRoot::PORTS),
        Wire::memory(layout::PCI_ECAM.0, layout::PCI_ECAM.1, PciRoot::ECAM),
        Wire::memory(layout::PCI_MEMORY.0, layout::PCI_MEMORY.1, PciRoot::MEMORY32),
        Wire::ports(layout::PCI_IO.0, layout::PCI_IO.1, PciRoot::IO),
    ];
    board.add(Box::new(root) as Box<dyn Device>, &wires)?;
    Ok(devices)
}

/// Adds the virtio console: one that prints on the console stream, the agent's port, or both.
fn wire_console(
    root: &mut PciRoot,
    resources: &Resources,
    spec: &VmmSpec,
    console: &StreamConsole,
    agent: Option<UnixStream>,
) -> Result<(), AssemblyError> {
    let waker = resources.waker();
    let mut ports: Vec<(String, Box<dyn CharBackend>)> = Vec::new();
    if let Some(name) = &spec.agent_port {
        let no_stream = || std::io::Error::other("no stream for the agent's port");
        let stream = agent.ok_or_else(no_stream).map_err(AssemblyError::Console)?;
        let port = StreamConsole::new("agent", stream, waker.clone(), vec![waker.clone()]).map_err(AssemblyError::Console)?;
        ports.push((name.clone(), Box::new(port)));
    }
    if !spec.virtio_console && ports.is_empty() {
        return Ok(());
    }
    let printed = spec.virtio_console.then(|| Box::new(console.write_only()) as Box<dyn CharBackend>);
    let device = console::Console::with_ports(printed, ports);
    let errors = resources.errors("console".into(), "the virtio console".into());
    Ok(resources.virtio(root, CONSOLE_SLOT, Box::new(device), waker, errors)?)
}

/// Starts a disk and puts the device in front of it into its slot.
fn wire_disk(
    root: &mut PciRoot,
    resources: &Resources,
    spec: &DiskSpec,
    opened: (DiskOptions, OpenDisk),
) -> Result<(Arc<dyn DiskReader>, Arc<DiskCounters>), AssemblyError> {
    let waker = resources.waker();
    let disk = Box::new(start_disk(spec, opened, resources, waker.clone())?);
    let found = (disk.reader(), disk.counters());
    let errors = resources.errors(format!("disk.{}", spec.id), format!("disk `{}`", spec.id));
    match spec.device {
        EmbeddedDiskDevice::VirtioBlk => {
            let options = blk::BlkOptions { serial: spec.serial.clone(), queues: resources.queues(), ..Default::default() };
            resources.virtio(root, spec.slot, Box::new(blk::Blk::new(disk, &options)), waker, errors)?;
        }
        EmbeddedDiskDevice::AhciHd => wire_ahci(root, resources, spec, (DriveKind::Disk, disk), (waker, errors))?,
        EmbeddedDiskDevice::AhciCd => wire_ahci(root, resources, spec, (DriveKind::Cd, disk), (waker, errors))?,
    }
    Ok(found)
}

/// Puts an AHCI controller with one drive into a slot.
fn wire_ahci(
    root: &mut PciRoot,
    resources: &Resources,
    spec: &DiskSpec,
    (kind, disk): (DriveKind, Box<dyn Disk>),
    (waker, errors): (Waker, Arc<GuestErrors>),
) -> Result<(), PciError> {
    let line = resources.line(layout::pci_gsi(spec.slot));
    let adapter = Ahci::new(kind, disk, &spec.serial, resources.memory.clone(), waker, line);
    root.add(spec.slot, 0, Box::new(adapter.report_to(errors)))
}

fn start_disk(
    spec: &DiskSpec,
    opened: (DiskOptions, OpenDisk),
    resources: &Resources,
    waker: Waker,
) -> Result<FileDisk, AssemblyError> {
    let (options, disk) = opened;
    let note = Arc::clone(&resources.note);
    let notes = Arc::new(move |text: DiskNote| note(&text.to_string()));
    let host = DiskHost { memory: resources.memory.clone(), waker, notes };
    let failed = |source| AssemblyError::Disk { id: spec.id.clone(), source };
    FileDisk::from_file(disk, &spec.path, &options, &host).map_err(failed)
}

/// The other end of an interface's wire, before it is started.
enum OpenNic {
    /// No wire.
    Unplugged,
    /// A user-mode network.
    User(Box<(user::UserNetConfig, user::Listeners)>),
    /// A tap.
    Tap(OwnedFd),
}

/// Gives each interface its end. One whose tap is missing has none.
fn open_nics(spec: &VmmSpec, networks: Vec<Option<(user::UserNetConfig, user::Listeners)>>, taps: Vec<OwnedFd>) -> OpenNics {
    let mut taps = taps.into_iter();
    let open = |(nic, network): (&NicSpec, Option<(user::UserNetConfig, user::Listeners)>)| match (&nic.backend, network) {
        (NicBackend::Tap, _) => taps.next().map_or(OpenNic::Unplugged, OpenNic::Tap),
        (_, Some(network)) => OpenNic::User(Box::new(network)),
        (_, None) => OpenNic::Unplugged,
    };
    spec.nics.iter().zip(networks).map(open).collect()
}

/// Starts the other end of an interface's wire and puts the device in front of it into its slot.
fn wire_nic(
    root: &mut PciRoot,
    resources: &Resources,
    (spec, opened): (&NicSpec, OpenNic),
    outside: &user::Outside,
) -> Result<(Arc<NicCounters>, Option<user::ForwardControl>), AssemblyError> {
    let waker = resources.waker();
    let (wire, control) = start_wire(spec, opened, waker.clone(), outside)?;
    let wire = Counted::new(wire);
    let counters = wire.counters();
    match spec.device {
        EmbeddedNicDevice::VirtioNet => {
            let device = net::Net::new(Box::new(wire), spec.mac, spec.mtu);
            let errors = resources.errors(format!("nic.{}", spec.id), format!("network interface `{}`", spec.id));
            resources.virtio(root, spec.slot, Box::new(device), waker, errors)?;
        }
    }
    Ok((counters, control))
}

/// The other end of an interface's wire, and the means to change its forwards.
type OpenWire = (Box<dyn Nic>, Option<user::ForwardControl>);

fn start_wire(spec: &NicSpec, opened: OpenNic, waker: Waker, outside: &user::Outside) -> Result<OpenWire, AssemblyError> {
    match opened {
        OpenNic::User(network) => {
            let (config, listeners) = *network;
            let failed = |source| AssemblyError::Nic { id: spec.id.clone(), source };
            let network = user::UserNet::on(listeners, &config, waker, outside.clone()).map_err(failed)?;
            let control = network.forward_control();
            Ok((Box::new(network), Some(control)))
        }
        OpenNic::Tap(device) => {
            let failed = |source| AssemblyError::Tap { id: spec.id.clone(), source };
            Ok((start_tap(device, waker).map_err(failed)?, None))
        }
        OpenNic::Unplugged => Ok((Box::new(NoWire), None)),
    }
}

#[cfg(target_os = "linux")]
fn start_tap(device: OwnedFd, waker: Waker) -> std::io::Result<Box<dyn Nic>> {
    Ok(Box::new(crate::devices::net::tap::Tap::new(device, waker)?))
}

#[cfg(not(target_os = "linux"))]
fn start_tap(_: OwnedFd, _: Waker) -> std::io::Result<Box<dyn Nic>> {
    Err(std::io::Error::from(std::io::ErrorKind::Unsupported))
}

#[cfg(test)]
mod tests {
    use super::super::memory;
    use super::super::spec::SPEC_VERSION;
    use super::*;
    use crate::choices::BackendKind;
    use crate::hypervisor::backend::Platform;
    use crate::hypervisor::state;

    fn bare() -> VmmSpec {
        VmmSpec {
            version: SPEC_VERSION,
            name: "bare".into(),
            uuid: "00000000-0000-4000-8000-000000000000".into(),
            backend: BackendKind::Auto,
            cpus: Topology::ONE,
            memory_bytes: 16 << 20,
            loader: LoaderSpec::Kernel { image: "/none".into(), initrd: None, modules: Vec::new(), cmdline: String::new() },
            disks: vec![],
            nics: vec![],
            rng: false,
            com: [false; 4],
            virtio_console: false,
            agent_port: None,
            debug_exit_port: None,
            deterministic: false,
            run_as: None,
        }
    }

    /// Creates a board with the chips that every PC has, and the object through which they stop the machine.
    fn chips() -> (Board, Arc<Attention>) {
        let (attention, clock) = (Attention::new(1), ManualClock::new(0));
        let interrupts = Interrupts::new(1, attention.clone(), clock.clone());
        let resources = Resources {
            memory: memory::build(16 << 20).unwrap(),
            attention: attention.clone(),
            clock: clock.clone(),
            sink: interrupts.clone(),
            note: Arc::new(|_: &str| ()),
            vcpus: 1,
            guest_errors: RefCell::default(),
        };
        let board = Board::new(interrupts.clone(), attention.clone(), clock);
        wire_chips(&board, &resources, Some(&interrupts), &bare()).unwrap();
        (board, attention)
    }

    #[test]
    fn port_92_keeps_the_a20_bit_and_its_fast_reset_ends_the_boot() {
        let (board, attention) = chips();
        assert_eq!(board.port_read(0, 0x92, 1), 0x02, "A20 is open");
        board.port_write(0, 0x92, 1, 0);
        assert_eq!(board.port_read(0, 0x92, 1), 0);
        board.port_write(0, 0x64, 1, 0xd0);
        assert_eq!(board.port_read(0, 0x60, 1) & 2, 0, "it is the keyboard controller's bit");
        assert_eq!(attention.stopped(), None);
        board.port_write(0, 0x92, 1, 3);
        assert_eq!(attention.stopped(), Some(MachineExit::Reboot));
    }

    #[test]
    fn a_board_is_reset_to_what_it_was_new_and_takes_over_the_state_of_its_like() {
        let (board, _) = chips();
        let new = board.save().unwrap();
        board.port_write(0, (layout::PIC_PORTS[0] + 1) as u16, 1, 0x5a);
        board.port_write(0, layout::RTC_PORT as u16, 1, 0x0a);
        let changed = board.save().unwrap();
        assert_ne!(changed, new);
        let (twin, _) = chips();
        let sealed = state::seal(&changed).unwrap();
        assert!(sealed.len() < 1 << 10, "{} bytes", sealed.len());
        twin.load(&state::open(&mut &sealed[..]).unwrap()).unwrap();
        assert_eq!(twin.save().unwrap(), changed);
        assert!(twin.load(&changed[1..]).is_err(), "a device fewer");
        board.reset();
        assert_eq!(board.save().unwrap(), new);
    }

    #[test]
    fn every_chip_of_the_layout_answers_at_its_ports() {
        let (board, _) = chips();
        let ports = [
            (layout::PIC_PORTS[0] + 1, "first 8259A"),
            (layout::PIC_PORTS[1] + 1, "second 8259A"),
            (layout::PIC_PORTS[2], "ELCR"),
            (layout::PIT_PORT, "8254"),
            (layout::PIT_GATE_PORT, "port 61h"),
            (layout::RTC_PORT + 1, "clock"),
            (layout::PS2_PORTS[0], "8042 data"),
            (layout::PS2_PORTS[1], "8042 status"),
            (layout::SYSTEM_CONTROL_PORT, "port 92h"),
            (layout::PM1A_EVT.into(), "PM1a events"),
            (layout::PM1A_CNT.into(), "PM1a control"),
        ];
        for (port, name) in ports {
            assert_ne!(board.port_read(0, port as u16, 1), 0xff, "{name}");
        }
    }
}
