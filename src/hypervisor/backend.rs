//! The contract between a vCPU back end, which runs guest instructions, and the machine around it.
//!
//! A back end runs the vCPUs. It is given the guest's memory, a [`Platform`] that answers port and memory accesses and
//! holds the interrupt controllers, and an [`Attention`] through which other threads reach the vCPUs.
//!
//! The locking rule, for back ends that run one thread a vCPU and for those that do not: every method of `Platform` may
//! be called from any vCPU thread at any time and takes the locks that it needs; no lock is held while guest
//! instructions run.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use super::clock::Clock;
use super::memory::GuestMemory;

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

/// The machine around the vCPUs: its board and its interrupt controllers.
pub trait Platform: Send + Sync {
    /// Executes `in`; `width` is 1, 2 or 4 bytes.
    fn port_read(&self, vcpu: usize, port: u16, width: u8) -> u32;
    /// Executes `out`.
    fn port_write(&self, vcpu: usize, port: u16, width: u8, value: u32);
    /// Loads 1, 2, 4 or 8 bytes from an address that is not memory.
    fn mmio_read(&self, vcpu: usize, addr: u64, width: u8) -> u64;
    /// Stores to an address that is not writable memory.
    fn mmio_write(&self, vcpu: usize, addr: u64, width: u8, value: u64);
    /// Executes `rdmsr` of the local APIC: IA32_APIC_BASE (0x1b), IA32_TSC_DEADLINE (0x6e0), x2APIC (0x800..=0x8ff).
    fn apic_msr_read(&self, vcpu: usize, msr: u32) -> Result<u64, NoSuchMsr>;
    /// Executes `wrmsr` of the same registers.
    fn apic_msr_write(&self, vcpu: usize, msr: u32, value: u64) -> Result<(), NoSuchMsr>;
    /// Returns CR8: bits 7:4 of the task priority.
    fn cr8(&self, vcpu: usize) -> u8;
    /// Sets CR8.
    fn set_cr8(&self, vcpu: usize, value: u8);
    /// Takes the next event for the vCPU. Returns an external interrupt only if `interrupts` (IF set, no shadow) and an
    /// NMI only if `nmi` (none in service). Returns INIT and start-up always.
    fn take_event(&self, vcpu: usize, interrupts: bool, nmi: bool) -> Option<VcpuEvent>;
    /// Runs what is due on the board at `now_ns` (timers, back ends that woke it) and returns when it must run again.
    /// Takes the board's flag of [`Attention`]. [`Attention::serve_board`] calls it and keeps the answer.
    fn advance(&self, now_ns: u64) -> Option<u64>;
    /// Reports that a vCPU ran into a triple fault, got an INIT that only firmware could follow, or gave up. The
    /// machine stops or resets.
    fn vcpu_failed(&self, vcpu: usize, exit: MachineExit);
    /// Returns the clock of the machine.
    fn clock(&self) -> &dyn Clock;
}

/// The flags by which other threads reach the vCPUs: one per vCPU, one for the board, one to stop, and a place to
/// sleep.
pub struct Attention {
    vcpus: Box<[AtomicBool]>,
    board: AtomicBool,
    stop: AtomicU32,
    /// When the board's next timer is due; `u64::MAX` for never. [`Attention::due_by`] sets an earlier one.
    deadline_ns: AtomicU64,
    sleeping: Mutex<()>,
    woken: Condvar,
}

const NOT_STOPPED: u32 = u32::MAX;

impl Attention {
    /// Creates the flags for `vcpus` virtual CPUs, with nothing pending.
    pub fn new(vcpus: usize) -> Arc<Attention> {
        Arc::new(Attention {
            vcpus: (0..vcpus).map(|_| AtomicBool::new(false)).collect(),
            board: AtomicBool::new(false),
            stop: AtomicU32::new(NOT_STOPPED),
            deadline_ns: AtomicU64::new(0),
            sleeping: Mutex::new(()),
            woken: Condvar::new(),
        })
    }

    fn notify(&self) {
        // The sleeper looks at the flags under this lock. So the flag is set before its last look, and no wake-up is
        // lost.
        drop(self.sleeping.lock().expect("no panic happens under this lock"));
        self.woken.notify_all();
    }

    /// Marks that something may be pending for `vcpu`. The vCPU looks at its next block end, or wakes from HLT.
    pub fn raise(&self, vcpu: usize) {
        if !self.vcpus[vcpu].swap(true, Ordering::AcqRel) {
            self.notify();
        }
    }
    /// Returns whether something may be pending for `vcpu`.
    #[inline]
    pub fn is_raised(&self, vcpu: usize) -> bool {
        self.vcpus[vcpu].load(Ordering::Acquire)
    }
    /// Clears and returns the flag of `vcpu`. A vCPU calls it before it takes its events.
    pub fn take(&self, vcpu: usize) -> bool {
        self.vcpus[vcpu].swap(false, Ordering::AcqRel)
    }
    /// Marks that a back end has something for the board: [`Platform::advance`] must run soon.
    pub fn wake_board(&self) {
        if !self.board.swap(true, Ordering::AcqRel) {
            self.notify();
        }
    }
    /// Clears and returns the board's flag.
    pub fn take_board(&self) -> bool {
        self.board.swap(false, Ordering::AcqRel)
    }
    /// Returns whether the board has work at time `now_ns`.
    #[inline]
    pub fn board_due(&self, now_ns: u64) -> bool {
        self.board.load(Ordering::Acquire) || now_ns >= self.deadline_ns.load(Ordering::Relaxed)
    }
    /// Runs what is due on the board, and returns whether anything was.
    ///
    /// It forgets the old deadline before it asks the board for the next one, and the answer can only lower the
    /// deadline. So a timer that another thread sets meanwhile is not lost: either it was set under the board's lock
    /// before the answer, which then includes it, or its [`Attention::due_by`] comes after the old deadline was
    /// forgotten.
    pub fn serve_board(&self, platform: &dyn Platform) -> bool {
        let now_ns = platform.clock().now_ns();
        let due = self.board_due(now_ns);
        if due {
            self.deadline_ns.store(u64::MAX, Ordering::Relaxed);
            if let Some(next_ns) = platform.advance(now_ns) {
                self.due_by(next_ns);
            }
        }
        due
    }
    /// Notes a timer that may be due earlier than what `advance` last returned.
    pub fn due_by(&self, deadline_ns: u64) {
        self.deadline_ns.fetch_min(deadline_ns, Ordering::Relaxed);
    }
    /// Returns when the board is due next.
    pub fn deadline_ns(&self) -> u64 {
        self.deadline_ns.load(Ordering::Relaxed)
    }

    /// Stops the machine; the first reason wins.
    pub fn stop(&self, exit: MachineExit) {
        let word = match exit {
            MachineExit::Debug(value) => 0x100 | u32::from(value),
            other => u32::from(other.code()),
        };
        let _ = self.stop.compare_exchange(NOT_STOPPED, word, Ordering::AcqRel, Ordering::Acquire);
        self.notify();
    }
    /// Returns the reason why the machine must stop, if it must.
    #[inline]
    pub fn stopped(&self) -> Option<MachineExit> {
        match self.stop.load(Ordering::Acquire) {
            NOT_STOPPED => None,
            0 => Some(MachineExit::Reboot),
            1 => Some(MachineExit::PowerOff),
            2 => Some(MachineExit::Halt),
            3 => Some(MachineExit::TripleFault),
            5 => Some(MachineExit::Suspended),
            word if word & 0x100 != 0 => Some(MachineExit::Debug(word as u8)),
            _ => Some(MachineExit::Error),
        }
    }

    /// Sleeps until a flag is set, the machine stops, or `timeout` passes (`None`: no limit).
    pub fn sleep(&self, timeout: Option<Duration>) {
        let guard = self.sleeping.lock().expect("no panic happens under this lock");
        let idle = |_: &mut ()| {
            !self.board.load(Ordering::Acquire)
                && self.stopped().is_none()
                && self.vcpus.iter().all(|v| !v.load(Ordering::Acquire))
        };
        match timeout {
            Some(timeout) => drop(self.woken.wait_timeout_while(guard, timeout, idle)),
            None => drop(self.woken.wait_while(guard, idle)),
        }
    }
}

/// A handle that a device's back-end threads use to wake the board, which then polls that device.
#[derive(Clone)]
pub struct Waker {
    attention: Arc<Attention>,
    woken: Arc<AtomicBool>,
}

impl Waker {
    /// Creates a waker for one device of the machine that `attention` belongs to.
    pub fn new(attention: Arc<Attention>) -> Waker {
        Waker { attention, woken: Arc::new(AtomicBool::new(false)) }
    }
    /// Asks for a poll of the device. Cheap, callable from any thread, never lost.
    pub fn wake(&self) {
        self.woken.store(true, Ordering::Release);
        self.attention.wake_board();
    }
    /// Clears and returns whether the device was woken.
    pub fn take(&self) -> bool {
        self.woken.swap(false, Ordering::AcqRel)
    }
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
    /// Sockets, cores per socket, threads per core; their product is `vcpus`.
    pub topology: (u32, u32, u32),
    /// The guest's memory.
    pub memory: GuestMemory,
    /// The machine around the vCPUs.
    pub platform: Arc<dyn Platform>,
    /// The flags by which other threads reach the vCPUs.
    pub attention: Arc<Attention>,
    /// The state in which vCPU 0 starts.
    pub boot: BootState,
    /// Windows of devices that firmware makes uncacheable, as base and bytes. Each is a power of two and aligned to
    /// itself; those below 1 MiB are whole 16 KiB. Used where a loader enters the guest without firmware.
    pub device_windows: Vec<(u64, u64)>,
}

/// An engine that runs the vCPUs of one machine.
pub trait Backend: Send {
    /// Returns `soft`, `kvm` or `vmm`.
    fn name(&self) -> &'static str;
    /// Runs until the machine stops, and returns the reason.
    fn run(&mut self) -> MachineExit;
    /// Returns the state of the vCPUs, one section each. Must be called only between runs.
    #[allow(dead_code, reason = "saved state is a part of every device and vCPU; the tests hold it until a snapshot uses it")]
    fn save(&self) -> Vec<super::state::Section>;
    /// Restores saved state. Must be called only before the first run.
    #[cfg_attr(
        not(test),
        expect(dead_code, reason = "saved state is a part of every device and vCPU; the tests hold it until a snapshot uses it")
    )]
    fn load(&mut self, sections: &[super::state::Section]) -> Result<(), super::state::StateError>;
}

#[cfg(test)]
mod tests {
    use super::super::clock::ManualClock;
    use super::*;

    /// A board on which another vCPU sets a timer at `raced_ns`, after the board computed the next deadline and before
    /// it returns it.
    struct Raced {
        attention: Arc<Attention>,
        clock: Arc<ManualClock>,
        raced_ns: u64,
        next_ns: Option<u64>,
    }

    impl Platform for Raced {
        fn advance(&self, _: u64) -> Option<u64> {
            let next_ns = self.next_ns;
            self.attention.due_by(self.raced_ns);
            next_ns
        }
        fn clock(&self) -> &dyn Clock {
            &*self.clock
        }
        fn port_read(&self, _: usize, _: u16, _: u8) -> u32 {
            0
        }
        fn port_write(&self, _: usize, _: u16, _: u8, _: u32) {}
        fn mmio_read(&self, _: usize, _: u64, _: u8) -> u64 {
            0
        }
        fn mmio_write(&self, _: usize, _: u64, _: u8, _: u64) {}
        fn apic_msr_read(&self, _: usize, _: u32) -> Result<u64, NoSuchMsr> {
            Err(NoSuchMsr)
        }
        fn apic_msr_write(&self, _: usize, _: u32, _: u64) -> Result<(), NoSuchMsr> {
            Err(NoSuchMsr)
        }
        fn cr8(&self, _: usize) -> u8 {
            0
        }
        fn set_cr8(&self, _: usize, _: u8) {}
        fn take_event(&self, _: usize, _: bool, _: bool) -> Option<VcpuEvent> {
            None
        }
        fn vcpu_failed(&self, _: usize, _: MachineExit) {}
    }

    #[test]
    fn a_timer_that_is_set_while_the_board_looks_for_its_next_one_is_not_lost() {
        for (raced_ns, next_ns, due) in [(500, Some(900), 500), (500, None, 500), (900, Some(500), 500)] {
            let attention = Attention::new(1);
            let clock = ManualClock::new(0);
            clock.set_ns(100);
            let board = Raced { attention: attention.clone(), clock, raced_ns, next_ns };
            attention.serve_board(&board);
            assert_eq!(attention.deadline_ns(), due);
            attention.serve_board(&board);
            assert_eq!(attention.deadline_ns(), due, "nothing is due yet");
        }
    }
}
