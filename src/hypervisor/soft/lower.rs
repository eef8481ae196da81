//! Lowering from decoded instructions to ops: the interface of an instruction family.
//!
//! A family is a function `lower(insn: &Instruction, b: &mut Builder) -> Option<Flow>`. It returns `None` when the
//! instruction is not its own. The families are asked in turn: `int`, `system`, `simd`, `x87`. An instruction that none
//! takes becomes #UD.

use iced_x86::{Decoder, DecoderError, DecoderOptions, Instruction, Mnemonic, OpKind, Register, RflagsBits};

use super::cpu::{Cpu, DS, ES, FS, Fault, GS, RIP, SS, TMP, ZERO};
use super::int::address::{address_checked, address_flat32, address_in_long_mode, address_of_fs, address_of_gs};
use super::int::pair::{self, Kind};
use super::op::{Handler, Op};
use crate::hypervisor::soft::op::{called_op, leaving_op};

/// Processor mode of a block: everything that may change how bytes decode or what they mean, apart from the state that
/// handlers read while they run. Part of a block's key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Mode(pub u32);

#[allow(missing_docs)]
impl Mode {
    /// CS is 64-bit code. Otherwise `CODE32` selects 32- or 16-bit code.
    pub const LONG: u32 = 1 << 0;
    pub const CODE32: u32 = 1 << 1;
    /// SS.B, or 64-bit mode: the stack pointer is ESP or RSP, not SP.
    pub const STACK32: u32 = 1 << 2;
    pub const CPL3: u32 = 1 << 3;
    /// CR0.PE is clear or EFLAGS.VM is set: segments are loaded as in real mode.
    pub const REAL: u32 = 1 << 4;
    /// Outside 64-bit mode: ES, SS, DS have base 0 and limit 4 GiB and are readable and writable, so no address micro-op is needed for them.
    pub const FLAT: u32 = 1 << 5;
    /// CR0.EM or CR0.TS set: x87 and MMX raise #NM (or for MMX with EM #UD).
    pub const FPU_OFF: u32 = 1 << 6;
    /// CR0.EM set or CR4.OSFXSR clear: SSE raises #UD.
    pub const SSE_UD: u32 = 1 << 7;
    /// CR0.TS set: SSE raises #NM.
    pub const SSE_NM: u32 = 1 << 8;
    /// RFLAGS.TF set or an instruction breakpoint enabled: blocks of one instruction.
    pub const STEP: u32 = 1 << 9;

    pub fn has(self, bit: u32) -> bool {
        self.0 & bit != 0
    }
    pub fn is_64bit(self) -> bool {
        self.has(Mode::LONG)
    }
    /// Returns the bitness for the decoder: 16, 32 or 64.
    pub fn bitness(self) -> u32 {
        if self.has(Mode::LONG) {
            64
        } else if self.has(Mode::CODE32) {
            32
        } else {
            16
        }
    }
}

/// What follows an instruction in its block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    /// The next instruction.
    Next,
    /// Nothing: the op pushed last ends the block (its `aux` becomes the block's instruction count).
    End,
}

/// Addressing of a memory operand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemOperand {
    /// As [`Op::base`].
    pub base: u8,
    /// As [`Op::index`].
    pub index: u8,
    /// As [`Op::scale`].
    pub scale: u8,
    /// As [`Op::disp`].
    pub disp: i32,
}

/// A pointer between two ops of one block. It is put in `imm` once the ops have their final place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fixup {
    /// Index of the op whose `imm` becomes the pointer.
    pub op: usize,
    /// Index of the op it points to.
    pub target: usize,
}

/// Facts about an instruction for the passes after the lowering: its effect on the arithmetic flags, in [`RflagsBits`]'
/// positions, and the half of a pair that it could be.
#[derive(Debug, Clone, Copy)]
struct Lowered {
    read: u32,
    /// Flags that may be written.
    modified: u32,
    /// Flags that are written whatever the operands are.
    written: u32,
    /// The chain may be left at this instruction or right after it, and then other code reads the flags.
    leaves: bool,
    /// The op that could do without computing flags, and the handler that does.
    quiet: Option<(usize, Handler)>,
    /// The instruction's one op, and its kind of half.
    half: Option<(usize, Kind)>,
    /// Its kind of half once it computes no flags.
    quiet_half: Option<(usize, Kind)>,
}

const ARITH_BITS: u32 = RflagsBits::OF | RflagsBits::SF | RflagsBits::ZF | RflagsBits::AF | RflagsBits::CF | RflagsBits::PF;

/// A compare that a conditional jump right after it may merge with.
#[derive(Debug, Clone, Copy)]
pub struct Compare {
    /// Number of the instruction in its block, counted from 1.
    pub insn: u32,
    /// TEST instead of CMP.
    pub test: bool,
    /// Bytes of the operands.
    pub size: u32,
    /// Whether the second operand is the immediate.
    pub immediate: bool,
}

/// An addition of an immediate to a register, or a subtraction, that a conditional jump right after it may merge with.
#[derive(Debug, Clone, Copy)]
pub struct Step {
    /// Number of the instruction in its block, counted from 1.
    pub insn: u32,
    /// SUB instead of ADD.
    pub sub: bool,
    /// Bytes of the operands: 4 or 8.
    pub size: u32,
}

/// Collects the ops of one block.
pub struct Builder {
    /// The ops so far.
    pub ops: Vec<Op>,
    /// The block's mode.
    pub mode: Mode,
    /// Offset of the present instruction from the block's start.
    pub pc: u16,
    /// Its length in bytes.
    pub len: u8,
    /// The block's first instruction pointer, as given to the decoder; only differences to it may be baked in.
    pub start_rip: u64,
    /// Guest-physical address of the block's first byte.
    pub gpa: u64,
    /// Instructions so far, the present one included.
    pub insns: u32,
    /// Bytes of the instructions so far, the present one included.
    pub bytes: u32,
    /// Pointers to be set when the ops are in place.
    pub fixups: Vec<Fixup>,
    /// [`super::flags::LazyFlags::kind`] before the present instruction, if it is known.
    pub flags_kind: Option<u32>,
    /// The same behind it; what the lowering of an instruction that writes flags may set.
    pub new_flags_kind: Option<u32>,
    /// The compare, if the instruction before was one.
    pub compare: Option<Compare>,
    /// The last addition of or subtraction with an immediate.
    pub step: Option<Step>,
    quiet: Option<(usize, Handler)>,
    lowered: Vec<Lowered>,
    /// The instruction's bytes come from two pages, so no link may lead to or from this block.
    pub crosses: bool,
    /// Other vCPUs run at the same time.
    pub parallel: bool,
}

/// Maximum number of instructions of one block.
pub const MAX_INSNS: u32 = 64;

/// The error for bytes that end inside the first instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NeedMoreBytes;

/// Decodes and lowers the block at the start of `bytes`: the rest of its page or, if `crosses`, the first instruction's
/// bytes of two pages. `gpa` is the guest-physical address of the first byte. With `parallel`, locked instructions are
/// atomic on the host.
///
/// The block ends after a branch, at [`MAX_INSNS`], at the end of the page or, in [`Mode::STEP`], after one
/// instruction; ops that continue after it are added. Bytes that are no instruction become #UD.
pub fn decode_block(
    bytes: &[u8],
    start_rip: u64,
    mode: Mode,
    gpa: u64,
    crosses: bool,
    parallel: bool,
) -> Result<Builder, NeedMoreBytes> {
    let mut b = Builder {
        ops: Vec::with_capacity(24),
        mode,
        pc: 0,
        len: 0,
        start_rip,
        gpa,
        insns: 0,
        bytes: 0,
        fixups: Vec::new(),
        flags_kind: None,
        new_flags_kind: None,
        compare: None,
        step: None,
        quiet: None,
        lowered: Vec::with_capacity(16),
        crosses,
        parallel,
    };
    // Hint encodings (ENDBR64, PREFETCH, CLDEMOTE, what MPX and CET use) are NOPs on a processor without the extension.
    let mut decoder = Decoder::with_ip(mode.bitness(), bytes, start_rip, DecoderOptions::FORCE_RESERVED_NOP);
    let mut insn = Instruction::default();
    loop {
        let at = decoder.position();
        decoder.decode_out(&mut insn);
        let room = bytes.len() - at;
        if decoder.last_error() == DecoderError::NoMoreBytes && room < 15 {
            if at == 0 {
                return Err(NeedMoreBytes);
            }
            // This instruction lies on two pages: it gets a block of its own.
            b.go_on();
            break;
        }
        b.pc = at as u16;
        b.len = insn.len().min(15) as u8;
        b.insns += 1;
        b.bytes = at as u32 + u32::from(b.len);
        let flow = match decoder.last_error() {
            DecoderError::None => b.lower(&insn),
            DecoderError::NoMoreBytes => b.end_with(leaving_op!(too_long)),
            _ => b.end_with(leaving_op!(undefined)),
        };
        if flow == Flow::End {
            break;
        }
        if decoder.position() >= bytes.len() || b.insns == MAX_INSNS || mode.has(Mode::STEP) || crosses {
            b.go_on();
            break;
        }
    }
    b.drop_dead_flags();
    b.pair();
    Ok(b)
}

fn undefined(cpu: &mut Cpu, _: &Op) -> Result<(), Fault> {
    Err(cpu.undefined())
}
fn too_long(cpu: &mut Cpu, _: &Op) -> Result<(), Fault> {
    Err(cpu.general_protection(0))
}

impl Builder {
    /// Returns an op of the present instruction without operands.
    pub fn op(&self, handler: Handler) -> Op {
        Op {
            handler,
            imm: 0,
            disp: 0,
            aux: 0,
            pc: self.pc,
            len: self.len,
            dst: 0,
            src: 0,
            base: ZERO as u8,
            index: ZERO as u8,
            scale: 0,
        }
    }

    /// Appends an op.
    pub fn push(&mut self, op: Op) {
        self.ops.push(op);
    }

    /// Appends an op that sets the arithmetic flags. `quiet` may replace its handler where the flags are not read.
    pub fn push_flagged(&mut self, op: Op, quiet: Handler) {
        self.quiet = Some((self.ops.len(), quiet));
        self.ops.push(op);
    }

    /// Creates an op of the present instruction whose memory operand is that of `insn`, of `size` bytes.
    pub fn mem_op(&mut self, insn: &Instruction, handler: Handler, size: u32, write: bool) -> Op {
        let m = self.mem(insn, size, write);
        let mut op = self.op(handler);
        (op.base, op.index, op.scale, op.disp) = (m.base, m.index, m.scale, m.disp);
        op
    }

    /// Ends the block with one op of the present instruction.
    pub fn end_with(&mut self, handler: Handler) -> Flow {
        let mut op = self.op(handler);
        op.aux = self.insns;
        self.ops.push(op);
        Flow::End
    }

    /// Asks the families in turn to lower `insn`.
    fn lower(&mut self, insn: &Instruction) -> Flow {
        self.quiet = None;
        self.new_flags_kind = None;
        self.compare = self.compare.filter(|c| c.insn + 1 == self.insns);
        self.lower_by_family(insn)
    }

    fn lower_by_family(&mut self, insn: &Instruction) -> Flow {
        let first = self.ops.len();
        let flow = super::int::lower(insn, self)
            .or_else(|| super::system::lower(insn, self))
            .or_else(|| super::simd::lower(insn, self))
            .or_else(|| super::x87::lower(insn, self));
        let Some(flow) = flow else { return self.end_with(leaving_op!(undefined)) };
        if flow == Flow::End
            && let Some(last) = self.ops.last_mut()
        {
            last.aux = self.insns;
        }
        if insn.rflags_modified() & ARITH_BITS != 0 {
            self.flags_kind = self.new_flags_kind;
        }
        let lowered = self.look_back(insn, first);
        self.lowered.push(lowered);
        flow
    }

    /// Collects the facts about `insn`, whose ops start at number `first`.
    fn look_back(&self, insn: &Instruction, first: usize) -> Lowered {
        let mut read = insn.rflags_read() & ARITH_BITS;
        let mut written = (insn.rflags_written() | insn.rflags_cleared() | insn.rflags_set()) & ARITH_BITS;
        use Mnemonic as M;
        let by_count =
            matches!(insn.mnemonic(), M::Shl | M::Sal | M::Shr | M::Sar | M::Rol | M::Ror | M::Rcl | M::Rcr | M::Shld | M::Shrd);
        let repeated = insn.has_rep_prefix() || insn.has_repne_prefix();
        if (by_count && insn.op_kind(insn.op_count() - 1) == OpKind::Register) || (repeated && insn.is_string_instruction()) {
            // A count of zero leaves the flags as they were.
            written = 0;
        }
        if insn.mnemonic() == M::Bsf || insn.mnemonic() == M::Bsr || insn.mnemonic() == M::Tzcnt || insn.mnemonic() == M::Lzcnt {
            (read, written) = (read | ARITH_BITS & !RflagsBits::ZF, RflagsBits::ZF);
        }
        let modified = insn.rflags_modified() & ARITH_BITS;
        let half = |quiet: bool| match &self.ops[first.min(self.ops.len())..] {
            [op] if self.mode.is_64bit() => pair::kind_of(insn, op, quiet).map(|kind| (first, kind)),
            _ => None,
        };
        Lowered {
            read,
            modified,
            written,
            leaves: !super::int::never_leaves(insn),
            quiet: self.quiet,
            half: half(false),
            quiet_half: if self.quiet.is_some() { half(true) } else { None },
        }
    }

    /// Notes that the last instruction became part of a branch.
    pub fn merged(&mut self) {
        if let Some(last) = self.lowered.last_mut() {
            (last.quiet, last.half, last.quiet_half) = (None, None, None);
        }
    }

    /// Walks backwards and removes the computation of flags that are not read. All flags are read after the block; and
    /// where an instruction may fault, the fault's handler reads them. (A quiet op that may itself leave the chain sets
    /// its flags on its slow path.)
    fn drop_dead_flags(&mut self) {
        let mut live = ARITH_BITS;
        for insn in self.lowered.iter_mut().rev() {
            if let Some((at, handler)) = insn.quiet
                && live & insn.modified == 0
            {
                self.ops[at].handler = handler;
                insn.half = insn.quiet_half;
            }
            live = if insn.leaves { ARITH_BITS } else { (live & !insn.written) | insn.read };
        }
    }

    /// Combines neighbours that are both simple, so that they run in one step.
    fn pair(&mut self) {
        let mut before: Option<(usize, Kind)> = None;
        for insn in &self.lowered {
            before = match (before, insn.half) {
                (Some((first, a)), Some((second, b))) if second == first + 1 => {
                    self.ops[first].handler = pair::handler(a, b);
                    None
                }
                (_, half) => half,
            };
        }
    }

    /// Returns the memory operand of `insn` for an access of `size` bytes, `write` if it is (also) written.
    ///
    /// Pushes an address micro-op where the plain `base + index << scale + disp` is not enough.
    pub fn mem(&mut self, insn: &Instruction, size: u32, write: bool) -> MemOperand {
        let address_bits = address_bits(insn, self.mode);
        let segment = segment_index(insn.memory_segment());
        let plain = self.plain_mem(insn);
        let needs_base = if self.mode.is_64bit() { segment == FS || segment == GS } else { true };
        if let Some(plain) = plain
            && !needs_base
            && address_bits == 64
        {
            return plain;
        }
        let (operand, offset) = self.address_parts(insn, plain);
        let handler = if self.mode.is_64bit() {
            match (segment, address_bits) {
                (FS, 64) => address_of_fs as Handler,
                (GS, 64) => address_of_gs as Handler,
                _ => address_in_long_mode as Handler,
            }
        } else if self.mode.has(Mode::FLAT) && matches!(segment, ES | SS | DS) && address_bits == 32 {
            address_flat32 as Handler
        } else {
            called_op!(address_checked)
        };
        let mut op = self.op(handler);
        (op.base, op.index, op.scale, op.disp) = (operand.base, operand.index, operand.scale, operand.disp);
        op.imm = offset;
        op.dst = address_bits as u8;
        op.src = segment as u8;
        op.aux = size | u32::from(write) << 16;
        self.push(op);
        MemOperand { base: TMP as u8, index: ZERO as u8, scale: 0, disp: 0 }
    }

    /// Returns the effective address of `insn` without its segment: the part that fits an op's fields, the rest of the
    /// displacement, and the address size in bytes to which the sum is truncated.
    pub fn effective_address(&self, insn: &Instruction) -> (MemOperand, u64, u32) {
        let (m, rest) = self.address_parts(insn, self.plain_mem(insn));
        (m, rest, address_bits(insn, self.mode) / 8)
    }

    /// Splits the effective address for an address op. What `plain` does not hold goes to `imm`.
    fn address_parts(&self, insn: &Instruction, plain: Option<MemOperand>) -> (MemOperand, u64) {
        if let Some(plain) = plain {
            return (plain, 0);
        }
        let rest = if insn.is_ip_rel_memory_operand() {
            insn.memory_displacement64().wrapping_sub(self.start_rip)
        } else {
            insn.memory_displacement64()
        };
        let base = if insn.is_ip_rel_memory_operand() { RIP as u8 } else { register_or_zero(insn.memory_base()) };
        let index = register_or_zero(insn.memory_index());
        (MemOperand { base, index, scale: insn.memory_index_scale().trailing_zeros() as u8, disp: 0 }, rest)
    }

    /// Returns the operand if base, index, scale and a 32-bit displacement describe it fully.
    fn plain_mem(&self, insn: &Instruction) -> Option<MemOperand> {
        let (base, disp) = if insn.is_ip_rel_memory_operand() {
            // Relative to the block's start, since the block may run at any address.
            (RIP as u8, insn.memory_displacement64().wrapping_sub(self.start_rip))
        } else {
            (register_or_zero(insn.memory_base()), insn.memory_displacement64())
        };
        Some(MemOperand {
            base,
            index: register_or_zero(insn.memory_index()),
            scale: insn.memory_index_scale().trailing_zeros() as u8,
            disp: i32::try_from(disp as i64).ok()?,
        })
    }
}

fn register_or_zero(r: Register) -> u8 {
    if r == Register::None { ZERO as u8 } else { r.number() as u8 }
}

/// Returns the index in [`Cpu::segs`] of a segment register; DS where there is none.
pub fn segment_index(r: Register) -> usize {
    match r {
        Register::ES => ES,
        Register::CS => super::cpu::CS,
        Register::SS => SS,
        Register::FS => FS,
        Register::GS => GS,
        _ => DS,
    }
}

/// Returns the address size of the memory operand in bits.
pub fn address_bits(insn: &Instruction, mode: Mode) -> u32 {
    let register = if insn.memory_base() == Register::None { insn.memory_index() } else { insn.memory_base() };
    let size = match register {
        Register::None => insn.memory_displ_size() as usize,
        Register::EIP => 4,
        Register::RIP => 8,
        r => r.size(),
    };
    match size {
        2 => 16,
        4 => 32,
        8 => 64,
        // No register and a short displacement: the address size is the mode's own.
        _ => mode.bitness(),
    }
}
