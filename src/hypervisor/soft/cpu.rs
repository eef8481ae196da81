//! The architectural state of one vCPU, and what its handlers reach through it.

use std::sync::Arc;

use super::block::{BlockCache, JumpCache};
use super::flags::LazyFlags;
use super::lower::Mode;
use super::mem::Tlb;
use super::op::Op;
use super::system::debug::Branch;
use crate::hypervisor::backend::{Attention, Platform, VcpuSetup};
use crate::hypervisor::clock::ManualClock;
use crate::hypervisor::memory::GuestMemory;

/// Index in [`Cpu::regs`] of the instruction pointer of the running block's first instruction (an offset in CS).
pub const RIP: usize = 16;
/// Index in [`Cpu::regs`] of a register that is always zero: "no base", "no index".
pub const ZERO: usize = 17;
/// Index in [`Cpu::regs`] of the address that an address micro-op computed for the op behind it.
pub const TMP: usize = 18;

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

/// An exception that an instruction raised; the instruction has changed nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exception {
    /// Vector, 0 to 31.
    pub vector: u8,
    /// Error code, where the vector has one.
    pub error: Option<u32>,
    /// For #PF: the address that goes to CR2. While an instruction is being left: the address that was not canonical.
    pub cr2: u64,
}

/// The mark that an instruction failed; what happened stands in [`Cpu::exception`]. Zero-sized, so that a handler's
/// `Result<(), Fault>` is one bit in a register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault;

/// Why a chain of blocks returned to the dispatcher.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Leave {
    /// A block ended, RIP is the next instruction: look it up and go on. The mode may have changed.
    Lookup,
    /// The same, and the mode is what it was.
    Jump,
    /// The same as `Jump`, and the op at [`Cpu::link_from`] wants its `imm` to point to the block at RIP.
    Link,
    /// `exception` is to be delivered; RIP is the instruction that raised it (already set by the wrapper).
    Exception,
    /// HLT: wait for an event.
    Halt,
    /// PAUSE or MWAIT: let another vCPU run.
    Yield,
    /// Shut down after a triple fault.
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
    #[serde(default)]
    pub debug_ctl: u64,
    /// LastBranchFromIP, LastBranchToIP, LastIntFromIP, LastIntToIP.
    #[serde(default)]
    pub last_branch: [u64; 4],
}

/// One vCPU.
///
/// Handlers get `*mut Cpu`. Field order matters only for speed: what every handler touches comes first.
#[repr(C, align(64))]
pub struct Cpu {
    /// General registers 0 to 15 in encoding order, then [`RIP`], [`ZERO`], [`TMP`], and scratch.
    pub regs: [u64; 24],
    /// Instructions that may still run before the dispatcher must look at events; counted down at block ends.
    pub budget: i64,
    /// The arithmetic flags.
    pub flags: LazyFlags,
    /// Jump-cache entries of this vCPU's present mode and epoch have it, by half of the linear addresses: see `block`.
    pub jump_tags: [u64; 2],
    /// From linear addresses to blocks.
    pub jumps: Box<JumpCache>,
    /// RFLAGS without the arithmetic flags; bit 1 is set.
    pub rflags: u64,
    /// Where the next instruction stands, while a block-ending system op runs: see `op::leaving_op!`.
    pub next_rip: u64,
    /// What an op that returned `Fault` raised.
    pub exception: Exception,
    /// Why the chain was left.
    pub leave: Leave,
    /// Set by a slow path (a store to a page with code, an interrupt that became pending): leave after this op.
    pub leave_after_op: bool,
    /// Instructions from RIP on during which external interrupts stay off (STI, MOV SS): 1 or 0.
    pub interrupt_shadow: bool,
    /// MOV SS or POP SS has just run: what stands in `debug_pending` waits behind the next instruction, and no
    /// instruction breakpoint is met on it. Set only where that instruction runs alone: see `system::debug::hold_off`.
    pub debug_shadow: bool,
    /// Bits of DR6 that the last instruction earned (watchpoints, single step): #DB is due before the next
    /// instruction, see `system::take_debug_trap`.
    pub debug_pending: u64,
    /// RFLAGS.TF as it was before the instruction says nothing about a single-step trap behind it: it entered a handler
    /// (INT n) or another task, or it says itself what follows (SYSCALL, SYSRET, SYSENTER).
    pub no_step_trap: bool,
    /// The instruction that is stepped is a branch; looked for only where DebugCtl asks for branches.
    pub stepped_branch: Option<Branch>,
    /// In an NMI handler, until IRET.
    pub nmi_blocked: bool,
    /// Halted, or waiting for a start-up message.
    pub halted: bool,
    /// Waits for a start-up message (after INIT, and for all vCPUs but the first).
    pub wait_for_sipi: bool,
    /// Current privilege level.
    pub cpl: u8,
    /// Which of the TLB's banks is in use: 0 user, 1 supervisor with AC = 0, 2 supervisor with AC = 1.
    pub bank: u8,
    /// The generation of the block cache that `jumps` was filled under.
    pub jump_generation: u64,
    /// The op that asked for a link.
    pub link_from: *mut Op,
    /// The number of the guest-physical page that it stands in.
    pub link_page: u32,
    /// The mode that blocks are decoded in.
    pub mode: Mode,
    /// What `budget` was when it was handed out.
    pub granted: i64,
    /// Instructions retired before the present slice's budget was handed out.
    pub retired: u64,
    /// `retired_now` when the clock was last moved on, in deterministic mode.
    pub clock_synced: u64,
    /// The clock that retired instructions drive, in deterministic mode.
    pub manual_clock: Option<Arc<ManualClock>>,
    /// An event may be pending that could not be taken when it was last looked for.
    pub event_pending: bool,
    /// NMIs were blocked when events were last looked for.
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
    /// Sockets, cores a socket, threads a core.
    pub topology: (u32, u32, u32),
    /// The guest's memory.
    pub memory: GuestMemory,
    /// The machine around.
    pub platform: Arc<dyn Platform>,
    /// How others reach this vCPU.
    pub attention: Arc<Attention>,
    /// The software TLB, three banks.
    pub tlb: Box<Tlb>,
    /// The block cache, shared by the vCPUs of one thread; set by the dispatcher before each slice.
    pub blocks: *mut BlockCache,
}

impl Cpu {
    /// A vCPU with everything zero and its TLB empty; `system::reset` gives it its state.
    pub fn new(setup: &VcpuSetup, index: usize) -> Box<Cpu> {
        Box::new(Cpu {
            regs: [0; 24],
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
            bank: 1,
            jump_generation: 0,
            link_from: std::ptr::null_mut(),
            link_page: 0,
            mode: Mode(0),
            granted: 0,
            retired: 0,
            clock_synced: 0,
            manual_clock: None,
            event_pending: true,
            nmi_was_blocked: false,
            segs: [Segment::default(); 8],
            xmm: [[0; 2]; 16],
            mxcsr: 0x1f80,
            fpu: Fpu { mantissa: [0; 8], sign_exp: [0; 8], fcw: 0x37f, fsw: 0, ftw: 0, fop: 0, fip: 0, fdp: 0 },
            sys: SystemState::default(),
            index,
            topology: setup.topology,
            memory: setup.memory.clone(),
            platform: setup.platform.clone(),
            attention: setup.attention.clone(),
            tlb: Tlb::new(),
            blocks: std::ptr::null_mut(),
        })
    }

    /// Instructions retired so far, up to the last block end.
    pub fn retired_now(&self) -> u64 {
        self.retired.wrapping_add(self.granted.wrapping_sub(self.budget) as u64)
    }

    /// In deterministic mode, brings the machine's clock up to the instructions retired. To be called before
    /// anything that lets the guest or the board see the time.
    pub fn sync_clock(&mut self) {
        if let Some(clock) = &self.manual_clock {
            let now = self.retired_now();
            clock.advance_ns(now.wrapping_sub(self.clock_synced));
            self.clock_synced = now;
        }
    }

    /// Lets the dispatcher run at the next block end.
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
    /// #UD.
    #[cold]
    pub fn undefined(&mut self) -> Fault {
        self.raise(6, None)
    }
    /// #GP(error).
    #[cold]
    pub fn general_protection(&mut self, error: u32) -> Fault {
        self.raise(13, Some(error))
    }
    /// All of RFLAGS, the lazy ones computed.
    pub fn rflags_value(&self) -> u64 {
        self.rflags | self.flags.value()
    }
    /// Whether CS is a 64-bit code segment in long mode.
    pub fn is_64bit(&self) -> bool {
        self.sys.efer & (1 << 10) != 0 && self.segs[CS].attr & (1 << 13) != 0
    }
}
