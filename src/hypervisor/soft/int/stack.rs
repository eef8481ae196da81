//! PUSH, POP, PUSHA, POPA, ENTER, LEAVE, and the stack operations that other families use.
//!
//! SDM vol. 1 chapter 6, vol. 2. The stack pointer is RSP in 64-bit mode, otherwise ESP or SP, depending on SS.B.
#![allow(unsafe_code)]

use iced_x86::{Instruction, Mnemonic as M, OpKind};

use super::address::segment_address;
use super::half::{Pop, Push, single};
use super::operand;
use super::word::{Addr, Fast, Full, Path, Slow, bytes_of, get, load_bytes, mask_of, read_rm, reg, set, set_reg, store_bytes};
use crate::hypervisor::soft::cpu::{Cpu, Fault, SS};
use crate::hypervisor::soft::int::word::{by_addr, soft_next, soft_read, soft_write};
use crate::hypervisor::soft::lower::{Builder, Flow, Mode};
use crate::hypervisor::soft::mmu;
use crate::hypervisor::soft::op::called_op;
use crate::hypervisor::soft::op::{Handler, Op};

const RSP: usize = 4;
const RBP: usize = 5;

/// Returns the size of the stack pointer in bytes.
fn pointer_bytes(cpu: &Cpu) -> u32 {
    if cpu.mode.is_64bit() {
        8
    } else if cpu.mode.has(Mode::STACK32) {
        4
    } else {
        2
    }
}

/// Returns the linear address of `bytes` at `offset` of the stack segment.
fn stack_address(cpu: &mut Cpu, offset: u64, bytes: u32, write: bool) -> Result<u64, Fault> {
    if cpu.mode.is_64bit() {
        return Ok(offset);
    }
    segment_address(cpu, SS, offset, u64::from(bytes), write)
}

/// Returns the offset that lies `distance` from the stack's top.
fn from_top(cpu: &Cpu, distance: u64) -> u64 {
    cpu.regs[RSP].wrapping_add(distance) & mask_of(pointer_bytes(cpu))
}

/// Moves the stack pointer up.
pub fn release(cpu: &mut Cpu, bytes: u64) {
    let width = pointer_bytes(cpu);
    let sp = cpu.regs[RSP].wrapping_add(bytes);
    set_reg(cpu, RSP as u8, width, sp);
}

/// Pushes the low `bytes` of `value`, in the present mode.
pub fn push_value(cpu: &mut Cpu, bytes: u32, value: u64) -> Result<(), Fault> {
    let offset = from_top(cpu, 0u64.wrapping_sub(u64::from(bytes)));
    let addr = stack_address(cpu, offset, bytes, true)?;
    store_bytes(cpu, addr, bytes, value)?;
    let width = pointer_bytes(cpu);
    set_reg(cpu, RSP as u8, width, offset);
    Ok(())
}

/// Reads `bytes` that lie `distance` above the stack's top.
pub fn peek(cpu: &mut Cpu, bytes: u32, distance: u64) -> Result<u64, Fault> {
    let offset = from_top(cpu, distance);
    let addr = stack_address(cpu, offset, bytes, false)?;
    load_bytes(cpu, addr, bytes)
}

macro_rules! handlers {
    ($($(#[$doc:meta])* fn $name:ident [$($g:tt)*] ($cpu:ident, $op:ident) $body:block)*) => {$(
        $(#[$doc])*
        pub unsafe extern "C" fn $name<$($g)*>($cpu: *mut Cpu, $op: *const Op) -> *const Op {
            // SAFETY: handlers get live, unaliased pointers and an op that their lowering made; none of the ops here
            // is the last of its block.
            unsafe { $body }
        }
    )*};
}

handlers! {
    /// Executes PUSH r64 in 64-bit mode: the slow path of [`Push`].
    fn push_r [] (cpu, op) {
        let v = get::<u64>(cpu, (*op).src);
        let sp = (*cpu).regs[RSP].wrapping_sub(8);
        soft_write!(u64, Slow, cpu, op, sp, v, push_r);
        (*cpu).regs[RSP] = sp;
        soft_next!(Slow, cpu, op)
    }
    /// Executes PUSH imm in 64-bit mode.
    fn push_i [P: Path] (cpu, op) {
        let sp = (*cpu).regs[RSP].wrapping_sub(8);
        soft_write!(u64, P, cpu, op, sp, (*op).imm, push_i::<Slow>);
        (*cpu).regs[RSP] = sp;
        soft_next!(P, cpu, op)
    }
    /// Executes PUSH m64 in 64-bit mode.
    fn push_m [A: Addr, P: Path] (cpu, op) {
        let addr = A::addr(cpu, op);
        let v = soft_read!(u64, P, cpu, op, addr, push_m::<Full, Slow>);
        let sp = (*cpu).regs[RSP].wrapping_sub(8);
        soft_write!(u64, P, cpu, op, sp, v, push_m::<Full, Slow>);
        (*cpu).regs[RSP] = sp;
        soft_next!(P, cpu, op)
    }
    /// Executes POP r64 in 64-bit mode: the slow path of [`Pop`].
    fn pop_r [] (cpu, op) {
        let sp = (*cpu).regs[RSP];
        let v = soft_read!(u64, Slow, cpu, op, sp, pop_r);
        (*cpu).regs[RSP] = sp.wrapping_add(8);
        set::<u64>(cpu, (*op).dst, v);
        soft_next!(Slow, cpu, op)
    }
    /// Executes LEAVE in 64-bit mode.
    fn leave [P: Path] (cpu, op) {
        let sp = (*cpu).regs[RBP];
        let v = soft_read!(u64, P, cpu, op, sp, leave::<Slow>);
        (*cpu).regs[RSP] = sp.wrapping_add(8);
        (*cpu).regs[RBP] = v;
        soft_next!(P, cpu, op)
    }
}

fn push_any(cpu: &mut Cpu, op: &Op) -> Result<(), Fault> {
    let value = read_rm(cpu, op)?;
    push_value(cpu, bytes_of(op), value)
}
fn push_immediate(cpu: &mut Cpu, op: &Op) -> Result<(), Fault> {
    push_value(cpu, bytes_of(op), op.imm)
}
fn pop_register(cpu: &mut Cpu, op: &Op) -> Result<(), Fault> {
    let bytes = bytes_of(op);
    let value = peek(cpu, bytes, 0)?;
    release(cpu, u64::from(bytes));
    set_reg(cpu, op.dst, bytes, value);
    Ok(())
}
/// Executes POP to memory. An address with RSP as its base is computed after the stack pointer moved (SDM vol. 2, POP).
/// `imm` is that distance. The address op cannot know it, so the lowering adds it to the displacement.
fn pop_memory(cpu: &mut Cpu, op: &Op) -> Result<(), Fault> {
    let bytes = bytes_of(op);
    let value = peek(cpu, bytes, 0)?;
    let addr = op.addr(cpu);
    store_bytes(cpu, addr, bytes, value)?;
    release(cpu, u64::from(bytes));
    Ok(())
}

/// Executes PUSHA and PUSHAD. It pushes one register after the other, so that those before one that faults are on the
/// stack.
fn push_all(cpu: &mut Cpu, op: &Op) -> Result<(), Fault> {
    let bytes = bytes_of(op);
    let size = u64::from(bytes);
    let lowest = from_top(cpu, 0u64.wrapping_sub(8 * size));
    for i in 0..8u8 {
        let offset = from_top(cpu, 0u64.wrapping_sub(u64::from(i + 1) * size));
        let addr = stack_address(cpu, offset, bytes, true)?;
        let value = reg(cpu, i, bytes);
        store_bytes(cpu, addr, bytes, value)?;
    }
    let width = pointer_bytes(cpu);
    set_reg(cpu, RSP as u8, width, lowest);
    Ok(())
}

/// Executes POPA and POPAD. It pops one register after the other, so that those before one that faults are loaded. The
/// stack pointer moves last.
fn pop_all(cpu: &mut Cpu, op: &Op) -> Result<(), Fault> {
    let bytes = bytes_of(op);
    for i in 0..8u8 {
        let value = peek(cpu, bytes, u64::from(i) * u64::from(bytes))?;
        let number = 7 - i;
        if usize::from(number) != RSP {
            set_reg(cpu, number, bytes, value);
        }
    }
    release(cpu, 8 * u64::from(bytes));
    Ok(())
}

/// Executes LEAVE outside 64-bit mode, and LEAVE of 16 bits.
fn leave_any(cpu: &mut Cpu, op: &Op) -> Result<(), Fault> {
    let bytes = bytes_of(op);
    let width = pointer_bytes(cpu);
    let frame = reg(cpu, RBP as u8, width);
    let addr = stack_address(cpu, frame, bytes, false)?;
    let value = load_bytes(cpu, addr, bytes)?;
    set_reg(cpu, RSP as u8, width, frame.wrapping_add(u64::from(bytes)));
    set_reg(cpu, RBP as u8, bytes, value);
    Ok(())
}

/// Executes ENTER: `imm` is the frame's bytes, `src` the nesting level.
fn enter_frame(cpu: &mut Cpu, op: &Op) -> Result<(), Fault> {
    let bytes = bytes_of(op);
    let size = u64::from(bytes);
    let level = u64::from(op.src & 31);
    let width = pointer_bytes(cpu);
    let sp_before = cpu.regs[RSP];
    let result = (|| {
        let frame_pointer = reg(cpu, RBP as u8, bytes);
        push_value(cpu, bytes, frame_pointer)?;
        let frame = cpu.regs[RSP];
        for i in 1..level {
            let offset = cpu.regs[RBP].wrapping_sub(i * size) & mask_of(width);
            let addr = stack_address(cpu, offset, bytes, false)?;
            let value = load_bytes(cpu, addr, bytes)?;
            push_value(cpu, bytes, value)?;
        }
        if level > 0 {
            push_value(cpu, bytes, frame)?;
        }
        // The frame's last byte must be writable.
        let top = from_top(cpu, 0u64.wrapping_sub(op.imm));
        let addr = stack_address(cpu, top, bytes, true)?;
        mmu::probe_write(cpu, addr, size)?;
        Ok((frame, top))
    })();
    match result {
        Ok((frame, top)) => {
            set_reg(cpu, RBP as u8, bytes, frame);
            set_reg(cpu, RSP as u8, width, top);
            Ok(())
        }
        Err(fault) => {
            cpu.regs[RSP] = sp_before;
            Err(fault)
        }
    }
}

/// Lowers this file's instructions.
pub fn lower(insn: &Instruction, b: &mut Builder) -> Option<Flow> {
    let long = b.mode.is_64bit();
    if insn.op_count() > 0 && insn.op0_kind() == OpKind::Register && insn.op0_register().is_segment_register() {
        // Segment registers belong to `system`.
        return None;
    }
    match insn.mnemonic() {
        M::Push => {
            let bytes = insn.stack_pointer_increment().unsigned_abs();
            if insn.op0_kind() == OpKind::Register {
                let mut op = b.op(if long && bytes == 8 { single::<Push> } else { called_op!(push_any) });
                let r = operand::register(insn.op0_register());
                (op.src, op.dst, op.aux) = (r, r, bytes);
                b.push(op);
            } else if insn.op0_kind() == OpKind::Memory {
                let m = b.mem(insn, bytes, false);
                let handler = if long && bytes == 8 { by_addr!(m, A => push_m::<A, Fast>) } else { called_op!(push_any) };
                let mut op = b.op(handler).with_mem(m);
                op.aux = bytes | super::word::IN_MEMORY;
                b.push(op);
            } else {
                let mut op = b.op(if long && bytes == 8 { push_i::<Fast> } else { called_op!(push_immediate) });
                (op.imm, op.aux) = (operand::immediate(insn, 0), bytes);
                b.push(op);
            }
        }
        M::Pop => {
            let bytes = insn.stack_pointer_increment().unsigned_abs();
            if insn.op0_kind() == OpKind::Register {
                let mut op = b.op(if long && bytes == 8 { single::<Pop> } else { called_op!(pop_register) });
                (op.dst, op.aux) = (operand::register(insn.op0_register()), bytes);
                b.push(op);
            } else {
                let mut moved = *insn;
                if insn.memory_base().full_register().number() == RSP && insn.memory_base() != iced_x86::Register::None {
                    let to = insn.memory_displacement64().wrapping_add(u64::from(bytes));
                    moved.set_memory_displacement64(to);
                }
                let mut op = b.mem_op(&moved, called_op!(pop_memory), bytes, true);
                op.aux = bytes;
                b.push(op);
            }
        }
        M::Pusha | M::Pushad => {
            let mut op = b.op(called_op!(push_all));
            op.aux = if insn.mnemonic() == M::Pusha { 2 } else { 4 };
            b.push(op);
        }
        M::Popa | M::Popad => {
            let mut op = b.op(called_op!(pop_all));
            op.aux = if insn.mnemonic() == M::Popa { 2 } else { 4 };
            b.push(op);
        }
        M::Leave => {
            let bytes = match insn.code() {
                iced_x86::Code::Leavew => 2,
                iced_x86::Code::Leaved => 4,
                _ => 8,
            };
            let handler = if long && bytes == 8 { leave::<Fast> as Handler } else { called_op!(leave_any) };
            let mut op = b.op(handler);
            op.aux = bytes;
            b.push(op);
        }
        M::Enter => {
            let mut op = b.op(called_op!(enter_frame));
            op.aux = match insn.code() {
                iced_x86::Code::Enterw_imm16_imm8 => 2,
                iced_x86::Code::Enterd_imm16_imm8 => 4,
                _ => 8,
            };
            (op.imm, op.src) = (u64::from(insn.immediate16()), insn.immediate8_2nd());
            b.push(op);
        }
        _ => return None,
    }
    Some(Flow::Next)
}
