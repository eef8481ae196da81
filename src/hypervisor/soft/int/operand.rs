//! Conversion of the decoder's operands to fields of ops.

use iced_x86::{Instruction, OpKind, Register};

use super::word::IN_MEMORY;
use crate::hypervisor::soft::lower::{Builder, MemOperand};
use crate::hypervisor::soft::op::{Handler, Op};

/// Returns the field of an op for a general register: its number, or for 8-bit registers their byte in `regs`.
pub fn register(r: Register) -> u8 {
    let number = r.full_register().number() as u8;
    match r {
        Register::AH | Register::CH | Register::DH | Register::BH => number * 8 + 1,
        _ if r.size() == 1 => number * 8,
        _ => number,
    }
}

/// Returns whether all register operands are general registers.
pub fn is_general(insn: &Instruction) -> bool {
    (0..insn.op_count()).all(|i| insn.op_kind(i) != OpKind::Register || insn.op_register(i).is_gpr())
}

/// Returns whether operand `i` is in memory.
pub fn in_memory(insn: &Instruction, i: u32) -> bool {
    i < insn.op_count() && insn.op_kind(i) == OpKind::Memory
}

/// Returns the size of operand `i` in bytes.
pub fn size(insn: &Instruction, i: u32) -> u32 {
    match insn.op_kind(i) {
        OpKind::Register => insn.op_register(i).size() as u32,
        _ => insn.memory_size().size() as u32,
    }
}

/// Returns the immediate operand `i`, sign-extended as the instruction wants it.
pub fn immediate(insn: &Instruction, i: u32) -> u64 {
    insn.immediate(i)
}

/// Returns whether operand `i` is an immediate.
pub fn is_immediate(insn: &Instruction, i: u32) -> bool {
    i < insn.op_count()
        && matches!(
            insn.op_kind(i),
            OpKind::Immediate8
                | OpKind::Immediate8_2nd
                | OpKind::Immediate16
                | OpKind::Immediate32
                | OpKind::Immediate64
                | OpKind::Immediate8to16
                | OpKind::Immediate8to32
                | OpKind::Immediate8to64
                | OpKind::Immediate32to64
        )
}

impl Op {
    /// Sets the fields of the memory operand.
    pub fn with_mem(mut self, m: MemOperand) -> Op {
        (self.base, self.index, self.scale, self.disp) = (m.base, m.index, m.scale, m.disp);
        self
    }
}

impl Builder {
    /// Creates the op of a called function that works on operand 0 (register or memory, in `dst`). The second operand
    /// is in `src` or `imm`, the third (if it is an immediate) in `imm`.
    pub fn called_rm(&mut self, insn: &Instruction, handler: Handler, write: bool) -> Op {
        let bytes = size(insn, 0);
        let mut op;
        if in_memory(insn, 0) {
            op = self.mem_op(insn, handler, bytes, write);
            op.aux = bytes | IN_MEMORY;
        } else {
            op = self.op(handler);
            op.aux = bytes;
            op.dst = register(insn.op0_register());
        }
        for i in 1..insn.op_count() {
            if is_immediate(insn, i) {
                op.imm = immediate(insn, i);
            } else if insn.op_kind(i) == OpKind::Register && i == 1 {
                op.src = register(insn.op_register(i));
            }
        }
        op
    }
}
