//! The architectural state of one vCPU, and the caches and links that its handlers use.

use std::sync::Arc;

use super::block::{JumpCache, SharedCache};
use super::crew::Crew;
use super::flags::LazyFlags;
use super::lower::Mode;
use super::mem::{Bank, Tlb};
use super::op::Op;
use super::system::debug::Branch;
use crate::hypervisor::backend::{LocalApics, Platform, VcpuSetup};
use crate::hypervisor::clock::ManualClock;
use crate::hypervisor::memory::{GuestMemory, MemoryMap};
use crate::hypervisor::waking::Attention;
use crate::units::Topology;

/// Index in [`Cpu::regs`] of the instruction pointer of the running block's first instruction (an offset in CS).
pub const RIP: usize = 16;
/// Index in [`Cpu::regs`] of a register that is always zero: "no base", "no index".
pub const ZERO: usize = 17;
/// Index in [`Cpu::regs`] of the address that an address micro-op computed for the op after it.
pub const TMP: usize = 18;

/// Number of [`Cpu::regs`]: as many as an index of 8 bits can name.
pub const REGS: usize = 1 << u8::BITS;

/// Indices of [`Cpu::segs`], in the encoding's order; then the system segments.
pub const ES: usize = 0;
/// Code segment.
pub const CS: usize = 1;
/// Stack segment.
pub const SS: usize = 2;
/// Data segment.
pub const DS: usize = 3;
/// Extra segment with a 64-bit base.
pub const FS: usize = 4;
/// Extra segment with a 64-bit base.
pub const GS: usize = 5;
/// Local descriptor table.
pub const LDTR: usize = 6;
/// Task register.
pub const TR: usize = 7;

/// A segment register with its hidden part.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Segment {
    /// Visible selector.
    pub selector: u16,
    /// Attributes as in bits 55:40 of a descriptor, limit's nibble cleared: type 3:0, S 4, DPL 6:5, P 7, AVL 12, L 13, DB 14, G 15.
    pub attr: u16,
    /// Limit in bytes, already scaled by G.
    pub limit: u32,
    /// Base address.
    pub base: u64,
}

/// An exception that an instruction raised. The instruction has changed nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exception {
    /// Vector, 0 to 31.
    pub vector: u8,
    /// Error code, where the vector has one.
    pub error: Option<u32>,
    /// For #PF, the address that goes to CR2. While an instruction is being left, the address that was not canonical.
    pub cr2: u64,
}

/// The mark that an instruction failed. [`Cpu::exception`] says why. The type is zero-sized, so that a handler's
/// `Result<(), Fault>` is one bit in a register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault;

/// Reason why a chain of blocks returned to the dispatcher.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Leave {
    /// A block ended and RIP is the next instruction: look the block up and continue. The mode may have changed.
    Lookup,
    /// The same, but the mode has not changed.
    Jump,
    /// As `Jump`, and the op at [`Cpu::link_from`] wants its `imm` to point to the block at RIP.
    Link,
    /// `exception` must be delivered. RIP is the instruction that raised it (the wrapper has set it).
    Exception,
    /// HLT: the vCPU waits for an event.
    Halt,
    /// PAUSE or MWAIT: another vCPU may run.
    Yield,
    /// The vCPU shut down after a triple fault.
    Shutdown,
}

/// Bits of RFLAGS.
pub mod rflags {
    #![allow(missing_docs)]
    pub const CF: u64 = 1 << 0;
    pub const FIXED: u64 = 1 << 1;
    pub const PF: u64 = 1 << 2;
    pub const AF: u64 = 1 << 4;
    pub const ZF: u64 = 1 << 6;
    pub const SF: u64 = 1 << 7;
    pub const TF: u64 = 1 << 8;
    pub const IF: u64 = 1 << 9;
    pub const DF: u64 = 1 << 10;
    pub const OF: u64 = 1 << 11;
    pub const IOPL: u64 = 3 << 12;
    pub const NT: u64 = 1 << 14;
    pub const RF: u64 = 1 << 16;
    pub const VM: u64 = 1 << 17;
    pub const AC: u64 = 1 << 18;
    pub const VIF: u64 = 1 << 19;
    pub const VIP: u64 = 1 << 20;
    pub const ID: u64 = 1 << 21;
    /// The six arithmetic flags, kept lazily in [`super::LazyFlags`].
    pub const ARITH: u64 = CF | PF | AF | ZF | SF | OF;
}

/// The x87 unit's state. `st` holds the physical registers R0 to R7, not the stack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fpu {
    /// Physical registers: 64-bit significand (the MMX register) ...
    pub mantissa: [u64; 8],
    /// ... and sign with 15-bit exponent.
    pub sign_exp: [u16; 8],
    /// Control word.
    pub fcw: u16,
    /// Status word with TOP in bits 13:11.
    pub fsw: u16,
    /// Abridged tag word as FXSAVE stores it: bit i set when physical register i is in use.
    pub ftw: u8,
    /// Last opcode, instruction and data pointers.
    pub fop: u16,
    /// Last instruction pointer.
    pub fip: u64,
    /// Last data pointer.
    pub fdp: u64,
}

/// Model-specific and control state; named as in the SDM.
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize, serde::Deserialize)]
#[allow(missing_docs)]
pub struct SystemState {
    pub cr0: u64,
    pub cr2: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub xcr0: u64,
    pub efer: u64,
    pub dr: [u64; 8],
    pub gdt_base: u64,
    pub gdt_limit: u16,
    pub idt_base: u64,
    pub idt_limit: u16,
    pub star: u64,
    pub lstar: u64,
    pub cstar: u64,
    pub sfmask: u64,
    pub kernel_gs_base: u64,
    pub sysenter_cs: u64,
    pub sysenter_esp: u64,
    pub sysenter_eip: u64,
    pub pat: u64,
    pub tsc_adjust: u64,
    pub tsc_offset: u64,
    pub tsc_aux: u64,
    pub misc_enable: u64,
    pub mtrr_def_type: u64,
    pub mtrr_fixed: [u64; 11],
    pub mtrr_variable: [u64; 16],
    pub kvm_system_time: u64,
    pub kvm_wall_clock: u64,
    pub syscfg: u64,
    pub hwcr: u64,
    pub debug_ctl: u64,
    /// LastBranchFromIP, LastBranchToIP, LastIntFromIP, LastIntToIP.
    pub last_branch: [u64; 4],
}

/// One vCPU.
///
/// Handlers get `*mut Cpu`. Field order matters only for speed: what every handler touches comes first.
#[repr(C, align(64))]
pub struct Cpu {
    /// General registers 0 to 15 in encoding order, then [`RIP`], [`ZERO`], [`TMP`], and registers that nothing uses: any
    /// index that fits an op is one of a register.
    pub regs: [u64; REGS],
    /// Number of instructions that may still run before the dispatcher must look at events. Counted down at block ends.
    pub budget: i64,
    /// The arithmetic flags.
    pub flags: LazyFlags,
    /// Tags of the present mode and epoch, by half of the linear addresses. Entries of the jump cache match only under
    /// them: see `block`.
    pub jump_tags: [u64; 2],
    /// The map from linear addresses to blocks.
    pub jumps: Box<JumpCache>,
    /// RFLAGS without the arithmetic flags; bit 1 is set.
    pub rflags: u64,
    /// Address of the next instruction, while a block-ending system op runs: see `op::leaving_op!`.
    pub next_rip: u64,
    /// The exception that an op raised which returned `Fault`.
    pub exception: Exception,
    /// Reason why the chain was left.
    pub leave: Leave,
    /// Makes the chain leave after this op. A slow path sets it (a store to a page with code, an interrupt that became
    /// pending).
    pub leave_after_op: bool,
    /// Number of instructions from RIP on during which external interrupts stay off (STI, MOV SS): 1 or 0.
    pub interrupt_shadow: bool,
    /// MOV SS or POP SS has just run: the conditions in `debug_pending` wait until after the next instruction, and an
    /// instruction breakpoint on it does not trigger. Set only where that instruction runs alone: see
    /// `system::debug::hold_off`.
    pub debug_shadow: bool,
    /// Bits of DR6 that the last instruction caused (watchpoints, single step): #DB is due before the next instruction,
    /// see `system::take_debug_trap`.
    pub debug_pending: u64,
    /// RFLAGS.TF as it was before the instruction does not decide about a single-step trap after it: the instruction
    /// entered a handler (INT n) or another task, or decides itself (SYSCALL, SYSRET, SYSENTER).
    pub no_step_trap: bool,
    /// The branch, if the instruction that is stepped is one. Looked for only where DebugCtl asks for branches.
    pub stepped_branch: Option<Branch>,
    /// The vCPU is in an NMI handler, until IRET.
    pub nmi_blocked: bool,
    /// The vCPU is halted, or waits for a start-up message.
    pub halted: bool,
    /// The vCPU waits for a start-up message (after INIT, and from power-on all but the first).
    pub wait_for_sipi: bool,
    /// Current privilege level.
    pub cpl: u8,
    /// The TLB bank in use.
    pub bank: Bank,
    /// The generation of the block cache in which `jumps` was filled.
    pub jump_generation: u64,
    /// The op that asked for a link.
    pub link_from: *mut Op,
    /// The number of the guest-physical page that this op is in.
    pub link_page: u32,
    /// The mode that blocks are decoded in.
    pub mode: Mode,
    /// The value of `budget` when it was handed out.
    pub granted: i64,
    /// Instructions retired before the present slice's budget was handed out.
    pub retired: u64,
    /// The value of `retired_now` when the clock was last advanced, in deterministic mode.
    pub clock_synced: u64,
    /// The clock that retired instructions drive, in deterministic mode.
    pub manual_clock: Option<Arc<ManualClock>>,
    /// How many random numbers the vCPU was given, in deterministic mode.
    pub randoms: u64,
    /// An event may be pending that could not be taken at the last check.
    pub event_pending: bool,
    /// How long the host had slept when the guest was told last.
    pub slept_ns: u64,
    /// NMIs were blocked at the last check for events.
    pub nmi_was_blocked: bool,
    /// ES CS SS DS FS GS LDTR TR.
    pub segs: [Segment; 8],
    /// XMM registers as two 64-bit halves, low first.
    pub xmm: [[u64; 2]; 16],
    /// SSE control and status.
    pub mxcsr: u32,
    /// x87.
    pub fpu: Fpu,
    /// Control registers and MSRs.
    pub sys: SystemState,
    /// This vCPU's index and APIC id.
    pub index: usize,
    /// How the vCPUs are grouped.
    pub topology: Topology,
    /// The guest's memory.
    pub memory: GuestMemory,
    /// The map of it that the TLB was filled by; it keeps what the TLB points to. [`super::tlb::follow_map`] replaces it.
    pub map: Arc<MemoryMap>,
    /// The machine around the vCPU.
    pub platform: Arc<dyn Platform>,
    /// The vCPUs that run at the same time, this one among them.
    pub crew: Option<Arc<Crew>>,
    /// The local APICs.
    pub apics: Arc<dyn LocalApics>,
    /// The flags by which other threads reach this vCPU.
    pub attention: Arc<Attention>,
    /// The software TLB, three banks.
    pub tlb: Box<Tlb>,
    /// The block cache of the vCPU's thread. It is not borrowed while a chain runs or the vCPU's memory is accessed.
    pub blocks: SharedCache,
}

impl Cpu {
    /// Creates a vCPU with everything zero and its TLB empty, whose code is kept in `blocks`. `system::reset` gives it its
    /// state.
    pub fn new(setup: &VcpuSetup, index: usize, blocks: SharedCache) -> Box<Cpu> {
        Box::new(Cpu {
            regs: [0; REGS],
            budget: 0,
            flags: LazyFlags::raw(0),
            jump_tags: [0; 2],
            jumps: JumpCache::new(),
            rflags: rflags::FIXED,
            next_rip: 0,
            exception: Exception { vector: 0, error: None, cr2: 0 },
            leave: Leave::Lookup,
            leave_after_op: false,
            interrupt_shadow: false,
            debug_shadow: false,
            debug_pending: 0,
            no_step_trap: false,
            stepped_branch: None,
            nmi_blocked: false,
            halted: false,
            wait_for_sipi: false,
            cpl: 0,
            bank: Bank::Supervisor,
            jump_generation: 0,
            link_from: std::ptr::null_mut(),
            link_page: 0,
            mode: Mode(0),
            granted: 0,
            retired: 0,
            clock_synced: 0,
            manual_clock: None,
            randoms: 0,
            event_pending: true,
            slept_ns: 0,
            nmi_was_blocked: false,
            segs: [Segment::default(); 8],
            xmm: [[0; 2]; 16],
            mxcsr: 0x1f80,
            fpu: Fpu { mantissa: [0; 8], sign_exp: [0; 8], fcw: 0x37f, fsw: 0, ftw: 0, fop: 0, fip: 0, fdp: 0 },
            sys: SystemState::default(),
            index,
            topology: setup.topology,
            memory: setup.memory.clone(),
            map: setup.memory.map(),
            platform: setup.platform.clone(),
            crew: None,
            apics: setup.apics.clone().expect("the board has local APICs for a back end that has none"),
            attention: setup.attention.clone(),
            tlb: Tlb::new(),
            blocks,
        })
    }

    /// Returns the number of instructions retired so far, up to the last block end.
    pub fn retired_now(&self) -> u64 {
        self.retired.wrapping_add(self.granted.wrapping_sub(self.budget) as u64)
    }

    /// Advances the machine's clock to the instructions retired, in deterministic mode. Must be called before anything
    /// that lets the guest or the board see the time.
    pub fn sync_clock(&mut self) {
        if let Some(clock) = &self.manual_clock {
            let now = self.retired_now();
            clock.advance_ns(now.wrapping_sub(self.clock_synced));
            self.clock_synced = now;
        }
    }

    /// Makes the dispatcher run at the next block end.
    pub fn end_slice(&mut self) {
        if self.budget > 0 {
            self.granted -= self.budget;
            self.budget = 0;
        }
    }

    /// Notes an exception and returns the mark that the instruction failed.
    #[cold]
    pub fn raise(&mut self, vector: u8, error: Option<u32>) -> Fault {
        self.exception = Exception { vector, error, cr2: 0 };
        Fault
    }
    /// Raises #UD.
    #[cold]
    pub fn undefined(&mut self) -> Fault {
        self.raise(6, None)
    }
    /// Raises #GP(error).
    #[cold]
    pub fn general_protection(&mut self, error: u32) -> Fault {
        self.raise(13, Some(error))
    }
    /// Returns all of RFLAGS, with the lazy flags computed.
    pub fn rflags_value(&self) -> u64 {
        self.rflags | self.flags.value()
    }
    /// Returns whether CS is a 64-bit code segment in long mode.
    pub fn is_64bit(&self) -> bool {
        self.sys.efer & (1 << 10) != 0 && self.segs[CS].attr & (1 << 13) != 0
    }
}
