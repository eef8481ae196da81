//! Bit tests and scans, POPCNT, CRC32, BSWAP, MOVBE, XCHG, XADD, CMPXCHG and its wide forms.
//!
//! SDM vol. 2. LOCK needs nothing here: vCPUs take turns on one thread. For those that do not see `locked`. BSF and BSR of zero leave the destination unchanged,
//! as on all processors.

use iced_x86::{Instruction, Mnemonic as M, OpKind};

use super::operand;
use super::word::{IN_MEMORY, bytes_of, load_bytes, mask_of, read_rm, read_rm_for_write, reg, set_reg, store_bytes, write_rm};
use crate::hypervisor::soft::cpu::{Cpu, FS, Fault, GS, rflags};
use crate::hypervisor::soft::flags::{FlagKind, LazyFlags};
use crate::hypervisor::soft::lower::{Builder, Flow, address_bits, segment_index};
use crate::hypervisor::soft::mmu;
use crate::hypervisor::soft::op::Op;
use crate::hypervisor::soft::op::called_op;

/// Sets one of the raw flags and leaves the others unchanged.
pub fn change_flag(cpu: &mut Cpu, bit: u64, on: bool) {
    let f = cpu.flags.value() & !bit;
    cpu.flags = LazyFlags::raw(if on { f | bit } else { f });
}

pub fn set_sub_flags(cpu: &mut Cpu, bytes: u32, a: u64, b: u64) {
    cpu.flags = LazyFlags { kind: FlagKind::Sub as u32 | bytes.trailing_zeros(), b, result: a.wrapping_sub(b) & mask_of(bytes) };
}

const TEST: u8 = 0;
/// BTS.
pub const SET: u8 = 1;
/// BTR.
pub const RESET: u8 = 2;
/// BTC.
pub const COMPLEMENT: u8 = 3;

/// Returns `a` with the bit changed as the instruction of `kind` does.
pub fn changed(kind: u8, a: u64, bit: u64) -> u64 {
    match kind {
        SET => a | bit,
        RESET => a & !bit,
        COMPLEMENT => a ^ bit,
        _ => a,
    }
}

/// Executes BT and its variants on a register, or on memory with the bit's number in an immediate. `pc`'s fields are as
/// in `called_rm`; the number is in `src` when `I` is false.
fn bit_of_operand<const KIND: u8, const I: bool>(cpu: &mut Cpu, op: &Op) -> Result<(), Fault> {
    let bytes = bytes_of(op);
    let number = if I { op.imm } else { reg(cpu, op.src, bytes) } & u64::from(bytes * 8 - 1);
    let a = if KIND == TEST { read_rm(cpu, op)? } else { read_rm_for_write(cpu, op)? };
    if KIND != TEST {
        write_rm(cpu, op, changed(KIND, a, 1 << number))?;
    }
    change_flag(cpu, rflags::CF, a >> number & 1 != 0);
    Ok(())
}

/// Executes the same on memory with the bit's number in a register. The bit may lie far from the operand. With an
/// address op, the segment's limit was checked for the operand itself only. `imm` is the segment's index, and from bit
/// 8 on the bits of the effective address.
fn bit_in_memory<const KIND: u8>(cpu: &mut Cpu, op: &Op) -> Result<(), Fault> {
    let bytes = bytes_of(op);
    let (addr, number) = far_bit(cpu, op);
    if KIND != TEST {
        mmu::probe_update(cpu, addr, u64::from(bytes))?;
    }
    let a = load_bytes(cpu, addr, bytes)?;
    if KIND != TEST {
        store_bytes(cpu, addr, bytes, changed(KIND, a, 1 << number))?;
    }
    change_flag(cpu, rflags::CF, a >> number & 1 != 0);
    Ok(())
}

/// Returns where the bit of a bit instruction with its number in a register is: the linear address of the operand that
/// holds it, and its number there.
pub fn far_bit(cpu: &Cpu, op: &Op) -> (u64, u32) {
    let bytes = bytes_of(op);
    let shift = 64 - 8 * bytes;
    let number = (reg(cpu, op.src, bytes) << shift) as i64 >> shift;
    let bits = i64::from(bytes) * 8;
    let segment = op.imm as usize & 7;
    let base = if cpu.mode.is_64bit() && !matches!(segment, FS | GS) { 0 } else { cpu.segs[segment].base };
    let offset = op.addr(cpu).wrapping_sub(base).wrapping_add((number.div_euclid(bits) * i64::from(bytes)) as u64);
    let addr = base.wrapping_add(offset & u64::MAX >> (64 - (op.imm >> 8)));
    let addr = if cpu.mode.is_64bit() { addr } else { addr & 0xffff_ffff };
    (addr, number.rem_euclid(bits) as u32)
}

// Source in `dst` (or memory), destination register in `src`: the operands of `called_rm` swapped.
fn scan<const UP: bool>(cpu: &mut Cpu, op: &Op) -> Result<(), Fault> {
    let bytes = bytes_of(op);
    let a = read_rm(cpu, op)?;
    if a != 0 {
        let r = if UP { a.trailing_zeros() } else { 63 - a.leading_zeros() };
        set_reg(cpu, op.src, bytes, u64::from(r));
    }
    change_flag(cpu, rflags::ZF, a == 0);
    Ok(())
}
fn popcnt(cpu: &mut Cpu, op: &Op) -> Result<(), Fault> {
    let a = read_rm(cpu, op)?;
    set_reg(cpu, op.src, bytes_of(op), u64::from(a.count_ones()));
    cpu.flags = LazyFlags::raw(if a == 0 { rflags::ZF } else { 0 });
    Ok(())
}
/// Computes CRC-32C (polynomial 0x11EDC6F41, bits reflected), without the inversions.
fn crc32(cpu: &mut Cpu, op: &Op) -> Result<(), Fault> {
    let data = read_rm(cpu, op)?;
    let mut crc = reg(cpu, op.src, 4) as u32;
    for i in 0..bytes_of(op) {
        crc ^= u32::from((data >> (8 * i)) as u8);
        for _ in 0..8 {
            crc = crc >> 1 ^ if crc & 1 != 0 { 0x82f6_3b78 } else { 0 };
        }
    }
    set_reg(cpu, op.src, 8, u64::from(crc));
    Ok(())
}
fn bswap(cpu: &mut Cpu, op: &Op) -> Result<(), Fault> {
    let bytes = bytes_of(op);
    let a = reg(cpu, op.dst, bytes);
    // Undefined for 16 bits; processors give zero.
    let r = match bytes {
        2 => 0,
        4 => u64::from((a as u32).swap_bytes()),
        _ => a.swap_bytes(),
    };
    set_reg(cpu, op.dst, bytes, r);
    Ok(())
}
fn xchg(cpu: &mut Cpu, op: &Op) -> Result<(), Fault> {
    let bytes = bytes_of(op);
    let a = read_rm_for_write(cpu, op)?;
    let b = reg(cpu, op.src, bytes);
    write_rm(cpu, op, b)?;
    set_reg(cpu, op.src, bytes, a);
    Ok(())
}
fn xadd(cpu: &mut Cpu, op: &Op) -> Result<(), Fault> {
    let bytes = bytes_of(op);
    let a = read_rm_for_write(cpu, op)?;
    let b = reg(cpu, op.src, bytes);
    let r = a.wrapping_add(b) & mask_of(bytes);
    // With the same register as both operands, the sum is what remains.
    if op.aux & IN_MEMORY == 0 {
        set_reg(cpu, op.src, bytes, a);
        write_rm(cpu, op, r)?;
    } else {
        write_rm(cpu, op, r)?;
        set_reg(cpu, op.src, bytes, a);
    }
    cpu.flags = LazyFlags { kind: FlagKind::Add as u32 | bytes.trailing_zeros(), b, result: r };
    Ok(())
}
fn cmpxchg(cpu: &mut Cpu, op: &Op) -> Result<(), Fault> {
    let bytes = bytes_of(op);
    // This is a write in either case: if the comparison fails, the old value is written back.
    let a = read_rm_for_write(cpu, op)?;
    let expected = reg(cpu, 0, bytes);
    if a == expected {
        let b = reg(cpu, op.src, bytes);
        write_rm(cpu, op, b)?;
    } else {
        if op.aux & IN_MEMORY == 0 && bytes == 4 {
            // The register stays as it is: only a write would clear its upper half.
        } else {
            write_rm(cpu, op, a)?;
        }
        set_reg(cpu, 0, bytes, a);
    }
    set_sub_flags(cpu, bytes, expected, a);
    Ok(())
}
fn cmpxchg8b(cpu: &mut Cpu, op: &Op) -> Result<(), Fault> {
    let addr = op.addr(cpu);
    mmu::probe_update(cpu, addr, 8)?;
    let a = cpu.load::<u64>(addr)?;
    let pair = |cpu: &Cpu, high: u8, low: u8| reg(cpu, high, 4) << 32 | reg(cpu, low, 4);
    let equal = a == pair(cpu, 2, 0);
    if equal {
        let b = pair(cpu, 1, 3);
        cpu.store::<u64>(addr, b)?;
    } else {
        cpu.store::<u64>(addr, a)?;
        set_reg(cpu, 0, 4, a & 0xffff_ffff);
        set_reg(cpu, 2, 4, a >> 32);
    }
    change_flag(cpu, rflags::ZF, equal);
    Ok(())
}
fn cmpxchg16b(cpu: &mut Cpu, op: &Op) -> Result<(), Fault> {
    let addr = op.addr(cpu);
    if addr & 15 != 0 {
        return Err(cpu.general_protection(0));
    }
    if cpu.fast_write_ptr::<u128>(addr).is_none() {
        mmu::probe_update(cpu, addr, 16)?;
    }
    let a = cpu.load::<u128>(addr)?;
    let pair = |cpu: &Cpu, high: usize, low: usize| u128::from(cpu.regs[high]) << 64 | u128::from(cpu.regs[low]);
    let equal = a == pair(cpu, 2, 0);
    if equal {
        let b = pair(cpu, 1, 3);
        cpu.store::<u128>(addr, b)?;
    } else {
        cpu.store::<u128>(addr, a)?;
        (cpu.regs[0], cpu.regs[2]) = (a as u64, (a >> 64) as u64);
    }
    change_flag(cpu, rflags::ZF, equal);
    Ok(())
}

/// Lowers this file's instructions.
pub fn lower(insn: &Instruction, b: &mut Builder) -> Option<Flow> {
    macro_rules! bit_test {
        ($kind:ident) => {{
            let write = $kind != TEST;
            if operand::is_immediate(insn, 1) {
                b.called_rm(insn, called_op!(bit_of_operand::<$kind, true>), write)
            } else if operand::in_memory(insn, 0) {
                let mut op = b.called_rm(insn, called_op!(bit_in_memory::<$kind>), write);
                op.imm = segment_index(insn.memory_segment()) as u64 | u64::from(address_bits(insn, b.mode)) << 8;
                op
            } else {
                b.called_rm(insn, called_op!(bit_of_operand::<$kind, false>), write)
            }
        }};
    }
    let op = match insn.mnemonic() {
        M::Bt => bit_test!(TEST),
        M::Bts => bit_test!(SET),
        M::Btr => bit_test!(RESET),
        M::Btc => bit_test!(COMPLEMENT),
        // Without BMI1 and LZCNT the F3 prefix is ignored.
        M::Bsf | M::Tzcnt => reversed(insn, b, called_op!(scan::<true>)),
        M::Bsr | M::Lzcnt => reversed(insn, b, called_op!(scan::<false>)),
        M::Popcnt => reversed(insn, b, called_op!(popcnt)),
        M::Crc32 => reversed(insn, b, called_op!(crc32)),
        M::Bswap => b.called_rm(insn, called_op!(bswap), false),
        M::Xchg if insn.op1_kind() == OpKind::Memory => {
            let mut op = reversed(insn, b, called_op!(xchg));
            op.aux |= IN_MEMORY;
            op
        }
        M::Xchg => b.called_rm(insn, called_op!(xchg), true),
        M::Xadd => b.called_rm(insn, called_op!(xadd), true),
        M::Cmpxchg => b.called_rm(insn, called_op!(cmpxchg), true),
        M::Cmpxchg8b => b.mem_op(insn, called_op!(cmpxchg8b), 8, true),
        M::Cmpxchg16b => b.mem_op(insn, called_op!(cmpxchg16b), 16, true),
        _ => return None,
    };
    b.push(op);
    Some(Flow::Next)
}

/// Returns an op whose register-or-memory operand is the instruction's second one, and whose `src` is the first.
fn reversed(insn: &Instruction, b: &mut Builder, handler: crate::hypervisor::soft::op::Handler) -> Op {
    let bytes = operand::size(insn, 1);
    let mut op;
    if operand::in_memory(insn, 1) {
        op = b.mem_op(insn, handler, bytes, insn.mnemonic() == M::Xchg);
        op.aux = bytes | IN_MEMORY;
    } else {
        op = b.op(handler);
        op.aux = bytes;
        op.dst = operand::register(insn.op1_register());
    }
    op.src = operand::register(insn.op0_register());
    op
}
