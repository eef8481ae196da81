//! The contract between a vCPU back end, which runs guest instructions, and the machine around it.
//!
//! A back end runs the vCPUs. It is given the guest's memory, a [`Platform`] that answers port and memory accesses and
//! holds the interrupt controllers, and an [`Attention`] through which other threads reach the vCPUs.
//!
//! Its life has three steps, since its process gives up rights in between: [`backends`](super::backends) opens it; then it
//! is built on the assembled machine, with all its threads; then it runs.
//!
//! The locking rule, for back ends that run one thread a vCPU and for those that do not: every method of `Platform` may
//! be called from any vCPU thread at any time and takes the locks that it needs; no lock is held while guest
//! instructions run.

use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;

use super::clock::{Clock, ManualClock};
use super::irq::Irqchip;
use super::memory::{GuestAddr, GuestMemory, HostMemory};
use super::waking::Attention;
use crate::units::Topology;

/// Reason why a machine stopped. The numbers are bhyve(8)'s exit codes, which both engines use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MachineExit {
    /// The guest asked for a reset.
    Reboot,
    /// The guest powered the machine off, or a power-off was requested.
    PowerOff,
    /// Every vCPU halted for good, with interrupts disabled.
    Halt,
    /// A triple fault.
    TripleFault,
    /// The engine failed.
    Error,
    /// Suspended to a file.
    Suspended,
    /// The guest wrote to the debug-exit port. The process exit code is `(value << 1) | 1`, as with QEMU.
    Debug(u8),
}

impl MachineExit {
    /// Returns the exit code of the engine's process.
    pub fn code(self) -> u8 {
        match self {
            MachineExit::Reboot => 0,
            MachineExit::PowerOff => 1,
            MachineExit::Halt => 2,
            MachineExit::TripleFault => 3,
            MachineExit::Error => 4,
            MachineExit::Suspended => 5,
            MachineExit::Debug(value) => (value << 1) | 1,
        }
    }
}

/// An event that reaches a vCPU from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VcpuEvent {
    /// An external interrupt with its vector. The controller has acknowledged it.
    Interrupt(u8),
    /// A non-maskable interrupt.
    Nmi,
    /// INIT: the vCPU is reset. The first vCPU runs firmware from the reset vector; the others wait for a start-up
    /// message.
    Init,
    /// Start-up: runs from `vector << 12` in real mode.
    Sipi(u8),
}

/// The error for a model-specific register that the platform does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoSuchMsr;

/// The machine around the vCPUs: its board.
pub trait Platform: Send + Sync {
    /// Executes `in`; `width` is 1, 2 or 4 bytes.
    fn port_read(&self, vcpu: usize, port: u16, width: u8) -> u32;
    /// Executes `out`.
    fn port_write(&self, vcpu: usize, port: u16, width: u8, value: u32);
    /// Loads 1, 2, 4 or 8 bytes from an address that is neither memory nor a local APIC's.
    fn mmio_read(&self, vcpu: usize, addr: u64, width: u8) -> u64;
    /// Stores to an address that is neither writable memory nor a local APIC's.
    fn mmio_write(&self, vcpu: usize, addr: u64, width: u8, value: u64);
    /// Runs what is due on the board at `now_ns` (timers, back ends that woke it) and returns when it must run again.
    /// Takes the board's flag of [`Attention`]. [`Attention::serve_board`] calls it and keeps the answer.
    fn advance(&self, now_ns: u64) -> Option<u64>;
    /// Reports that a vCPU ran into a triple fault, got an INIT that only firmware could follow, or gave up. The
    /// machine stops or resets.
    fn vcpu_failed(&self, vcpu: usize, exit: MachineExit);
    /// Returns the clock of the machine.
    fn clock(&self) -> &dyn Clock;
}

/// The CPU's side of interrupt controllers in this process: local APICs, CR8, and the events for a vCPU. A back end whose
/// kernel half has the controllers does not use it.
pub trait LocalApics: Send + Sync {
    /// Loads 1, 2, 4 or 8 bytes from the vCPU's register page. `None` outside of it.
    fn read(&self, vcpu: usize, addr: u64, width: u8) -> Option<u64>;
    /// Stores to the vCPU's register page. Returns false outside of it.
    fn write(&self, vcpu: usize, addr: u64, width: u8, value: u64) -> bool;
    /// Executes `rdmsr` of the local APIC: IA32_APIC_BASE (0x1b), IA32_TSC_DEADLINE (0x6e0), x2APIC (0x800..=0x8ff).
    fn msr_read(&self, vcpu: usize, msr: u32) -> Result<u64, NoSuchMsr>;
    /// Executes `wrmsr` of the same registers.
    fn msr_write(&self, vcpu: usize, msr: u32, value: u64) -> Result<(), NoSuchMsr>;
    /// Returns CR8: bits 7:4 of the task priority.
    fn cr8(&self, vcpu: usize) -> u8;
    /// Sets CR8.
    fn set_cr8(&self, vcpu: usize, value: u8);
    /// Takes the next event for the vCPU. Returns an external interrupt only if `interrupts` (IF set, no shadow) and an
    /// NMI only if `nmi` (none in service). Returns INIT and start-up always.
    fn take_event(&self, vcpu: usize, interrupts: bool, nmi: bool) -> Option<VcpuEvent>;
}

/// State in which the first vCPU starts. The others wait for INIT and start-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BootState {
    /// After power-on: real mode at the reset vector.
    Reset,
    /// 32-bit protected mode, paging off, flat segments (base 0, limit 4 GiB).
    Protected {
        /// Entry point.
        eip: u32,
        /// Initial EAX: the magic number of Multiboot.
        eax: u32,
        /// Initial EBX: the information structure of PVH and Multiboot.
        ebx: u32,
        /// Initial ESI: the zero page of Linux.
        esi: u32,
        /// Guest address of a GDT of `gdt_limit + 1` bytes with code at 0x10 and data at 0x18.
        gdt_base: u64,
        /// Limit of the GDT.
        gdt_limit: u16,
    },
    /// 64-bit mode with the page tables at `cr3`, flat segments.
    Long {
        /// Entry point.
        rip: u64,
        /// Initial RSI: the zero page of Linux.
        rsi: u64,
        /// Page tables.
        cr3: u64,
        /// As in `Protected`.
        gdt_base: u64,
        /// As in `Protected`.
        gdt_limit: u16,
    },
}

/// The parameters of a new back end.
pub struct VcpuSetup {
    /// Number of vCPUs; APIC ids are 0, 1, 2 ...
    pub vcpus: usize,
    /// How the vCPUs are grouped, `vcpus` in all.
    pub topology: Topology,
    /// The guest's memory.
    pub memory: GuestMemory,
    /// The machine around the vCPUs.
    pub platform: Arc<dyn Platform>,
    /// The local APICs of the board. `None` where the back end has interrupt controllers of its own.
    pub apics: Option<Arc<dyn LocalApics>>,
    /// The flags by which other threads reach the vCPUs.
    pub attention: Arc<Attention>,
    /// The state in which vCPU 0 starts.
    pub boot: BootState,
    /// Windows of devices that firmware makes uncacheable, as base and bytes. Each is a power of two and aligned to
    /// itself; those below 1 MiB are whole 16 KiB. Used where a loader enters the guest without firmware.
    pub device_windows: Vec<(u64, u64)>,
    /// In deterministic mode, the clock of the platform, which the back end drives.
    pub manual_clock: Option<Arc<ManualClock>>,
}

/// The wishes about the machine that decide whether a back end can be opened.
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "only KVM and vmm(4) need it"))]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Needs<'a> {
    /// The name of the machine in a kernel that has names for them. It is the guest's own, also in its next boot. Empty for a
    /// machine that is only tried.
    #[cfg_attr(not(any(target_os = "freebsd", test)), allow(dead_code, reason = "only vmm(4) has names"))]
    pub machine: &'a str,
    /// How the vCPUs are grouped.
    pub topology: Topology,
    /// Whether runs are to be repeatable.
    pub deterministic: bool,
}

/// Rights that a back end needs beyond those of every engine.
#[cfg_attr(not(all(target_os = "linux", target_arch = "x86_64")), allow(dead_code, reason = "KVM needs all of them"))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Rights {
    /// Requests of ioctl(2) while the machine is put together.
    pub assembly: &'static [u32],
    /// Requests of ioctl(2) while the guest runs.
    pub running: &'static [u32],
    /// The signal by which its threads are brought back from the kernel.
    pub kick: Option<i32>,
    /// Whether the guest's memory is to be backed with large pages by madvise(2).
    pub large_pages: bool,
    /// The descriptor that the requests are sent to, and from which memory is mapped, where the system limits each
    /// descriptor by itself.
    #[cfg_attr(not(any(target_os = "freebsd", test)), allow(dead_code, reason = "only Capsicum limits descriptors"))]
    pub device: Option<RawFd>,
}

/// A piece of the guest's RAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RamPiece {
    /// Guest address of the first byte.
    pub base: GuestAddr,
    /// Bytes.
    pub len: u64,
    /// Where the piece starts in the RAM as a whole.
    pub offset: u64,
}

/// Reason why a back end cannot be opened or built, as a message for the user.
pub type Reason = Box<dyn std::error::Error + Send + Sync>;

/// A back end that works on this host and has its files open.
pub trait OpenBackend: Send {
    /// Returns `soft`, `kvm` or `vmm`.
    fn name(&self) -> &'static str;
    /// Returns what the process must still be allowed to do.
    fn rights(&self) -> Rights;
    /// Returns the interrupt controllers of the back end, if it has any: the 8259A pair, the I/O APIC and the local APICs,
    /// and the 8254 with port 61h. The board has none of these then.
    fn irqchip(&mut self, attention: &Arc<Attention>) -> Option<Arc<dyn Irqchip>>;
    /// Returns the host memory of each of `pieces`, which lie in RAM of `bytes` bytes, where a kernel's hypervisor owns the
    /// guest's RAM. `None` where it takes any memory of this process.
    fn ram(&mut self, bytes: u64, pieces: &[RamPiece]) -> io::Result<Option<Vec<Arc<HostMemory>>>> {
        let _ = (bytes, pieces);
        Ok(None)
    }
    /// Builds the vCPUs and starts their threads. Must be called after [`OpenBackend::irqchip`].
    fn build(self: Box<Self>, setup: VcpuSetup) -> Result<Box<dyn Backend>, Reason>;
}

/// An engine that runs the vCPUs of one machine.
pub trait Backend: Send {
    /// Returns `soft`, `kvm` or `vmm`.
    fn name(&self) -> &'static str;
    /// Runs until the machine stops, and returns the reason.
    fn run(&mut self) -> MachineExit;
    /// Returns the state of the vCPUs, one section each, if it can be had. Must be called only between runs.
    fn save(&self) -> Result<Vec<super::state::Section>, super::state::StateError>;
    /// Restores saved state. Must be called only before the first run.
    fn load(&mut self, sections: &[super::state::Section]) -> Result<(), super::state::StateError>;
}
