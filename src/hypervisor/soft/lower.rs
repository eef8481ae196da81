//! From decoded instructions to ops: what a family's lowering is given and gives back.
//!
//! A family is a function `lower(insn: &Instruction, b: &mut Builder) -> Option<Flow>`: `None` when the
//! instruction is not its own. Families are asked in turn: `int`, `system`, `simd`, `x87`; what none takes
//! becomes #UD.

use iced_x86::{Instruction, OpKind, Register};

use super::cpu::{RIP, TMP, ZERO};
use super::op::{Handler, Op};

/// What may change how bytes decode or what they mean, apart from the state that handlers look at while running.
/// Part of a block's key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Mode(pub u32);

#[allow(missing_docs)]
impl Mode {
    /// CS is 64-bit code; otherwise `CODE32` tells 32- from 16-bit code.
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
    /// 16, 32 or 64: the decoder's bitness.
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

/// How an op addresses its memory operand.
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
}

impl Builder {
    /// An op of the present instruction with no operands.
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

    /// The memory operand of `insn` for an access of `size` bytes, `write` if it is (also) written.
    ///
    /// Pushes an address micro-op where the plain `base + index << scale + disp` will not do.
    pub fn mem(&mut self, insn: &Instruction, size: u32, write: bool) -> MemOperand {
        let _ = (size, write, TMP, RIP);
        self.plain_mem(insn).expect("micro-op lowering replaces this")
    }

    fn plain_mem(&self, insn: &Instruction) -> Option<MemOperand> {
        let reg = |r: Register| if r == Register::None { ZERO as u8 } else { r.number() as u8 };
        (insn.memory_segment() != Register::FS && insn.op0_kind() != OpKind::NearBranch64).then(|| MemOperand {
            base: reg(insn.memory_base()),
            index: reg(insn.memory_index()),
            scale: insn.memory_index_scale().trailing_zeros() as u8,
            disp: insn.memory_displacement64() as i32,
        })
    }
}
