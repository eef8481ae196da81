//! Instructions that compilers do not emit: decimal adjustment, BOUND, XLAT, LAHF, SAHF, the carry and direction flags,
//! sign extension of the accumulator.
//!
//! SDM vol. 2.

use iced_x86::{Instruction, Mnemonic as M};

use super::string::linear;
use super::word::{load_bytes, mask_of, reg, set_reg};
use crate::hypervisor::soft::cpu::{Cpu, Fault, rflags};
use crate::hypervisor::soft::flags::LazyFlags;
use crate::hypervisor::soft::lower::{Builder, Flow, segment_index};
use crate::hypervisor::soft::op::Op;
use crate::hypervisor::soft::op::called_op;

const AL: u8 = 0;
const AH: u8 = 1;

/// Sets the flags as after a logical result in AL, with the given CF and AF and OF clear.
fn set_al_flags(cpu: &mut Cpu, cf: bool, af: bool) {
    let al = cpu.regs[0] as u8;
    let mut f = 0;
    for (on, bit) in [
        (al == 0, rflags::ZF),
        (al & 0x80 != 0, rflags::SF),
        (al.count_ones() & 1 == 0, rflags::PF),
        (cf, rflags::CF),
        (af, rflags::AF),
    ] {
        if on {
            f |= bit;
        }
    }
    cpu.flags = LazyFlags::raw(f);
}

fn decimal_adjust<const SUB: bool>(cpu: &mut Cpu, _: &Op) -> Result<(), Fault> {
    let (old, old_cf) = (cpu.regs[0] as u8, cpu.flags.cf());
    let mut al = old;
    let af = old & 0xf > 9 || cpu.flags.af();
    let mut cf = false;
    if af {
        cf = old_cf || if SUB { old < 6 } else { old > 0xf9 };
        al = if SUB { al.wrapping_sub(6) } else { al.wrapping_add(6) };
    }
    if old > 0x99 || old_cf {
        al = if SUB { al.wrapping_sub(0x60) } else { al.wrapping_add(0x60) };
        cf = true;
    }
    set_reg(cpu, AL, 1, u64::from(al));
    set_al_flags(cpu, cf, af);
    Ok(())
}
fn ascii_adjust<const SUB: bool>(cpu: &mut Cpu, _: &Op) -> Result<(), Fault> {
    let adjust = cpu.regs[0] & 0xf > 9 || cpu.flags.af();
    if adjust {
        let ax = reg(cpu, 0, 2);
        set_reg(cpu, 0, 2, if SUB { ax.wrapping_sub(0x106) } else { ax.wrapping_add(0x106) });
    }
    let al = cpu.regs[0] & 0xf;
    set_reg(cpu, AL, 1, al);
    set_al_flags(cpu, adjust, adjust);
    Ok(())
}
fn aam(cpu: &mut Cpu, op: &Op) -> Result<(), Fault> {
    let base = op.imm as u8;
    if base == 0 {
        return Err(cpu.raise(0, None));
    }
    let al = cpu.regs[0] as u8;
    set_reg(cpu, AH, 1, u64::from(al / base));
    set_reg(cpu, AL, 1, u64::from(al % base));
    set_al_flags(cpu, false, false);
    Ok(())
}
fn aad(cpu: &mut Cpu, op: &Op) -> Result<(), Fault> {
    let (al, ah) = (reg(cpu, AL, 1), reg(cpu, AH, 1));
    set_reg(cpu, 0, 2, al.wrapping_add(ah.wrapping_mul(op.imm)) & 0xff);
    set_al_flags(cpu, false, false);
    Ok(())
}
fn bound(cpu: &mut Cpu, op: &Op) -> Result<(), Fault> {
    let bytes = op.aux;
    let addr = op.addr(cpu);
    let signed = |v: u64| (v << (64 - 8 * bytes)) as i64;
    let lower = signed(load_bytes(cpu, addr, bytes)?);
    let upper = signed(load_bytes(cpu, addr.wrapping_add(u64::from(bytes)) & 0xffff_ffff, bytes)?);
    let index = signed(reg(cpu, op.dst, bytes));
    if index < lower || index > upper { Err(cpu.raise(5, None)) } else { Ok(()) }
}
/// Executes XLAT: loads AL from the table at BX, EBX or RBX. `scale` is the address's bytes, `src` the segment.
fn xlat(cpu: &mut Cpu, op: &Op) -> Result<(), Fault> {
    let offset = cpu.regs[3].wrapping_add(cpu.regs[0] & 0xff) & mask_of(u32::from(op.scale));
    let addr = linear(cpu, op.src as usize & 7, offset, 1, false)?;
    let v = cpu.load::<u8>(addr)?;
    set_reg(cpu, AL, 1, u64::from(v));
    Ok(())
}
fn lahf(cpu: &mut Cpu, _: &Op) -> Result<(), Fault> {
    let f = cpu.flags.value() & 0xff | rflags::FIXED;
    set_reg(cpu, AH, 1, f);
    Ok(())
}
fn sahf(cpu: &mut Cpu, _: &Op) -> Result<(), Fault> {
    let f = reg(cpu, AH, 1) & 0xd5 | cpu.flags.value() & rflags::OF;
    cpu.flags = LazyFlags::raw(f);
    Ok(())
}
/// Executes CLC, STC and CMC: `imm` 0, 1, 2.
fn carry(cpu: &mut Cpu, op: &Op) -> Result<(), Fault> {
    let f = cpu.flags.value();
    cpu.flags = LazyFlags::raw(match op.imm {
        0 => f & !rflags::CF,
        1 => f | rflags::CF,
        _ => f ^ rflags::CF,
    });
    Ok(())
}
fn cld(cpu: &mut Cpu, _: &Op) -> Result<(), Fault> {
    cpu.rflags &= !rflags::DF;
    Ok(())
}
fn std(cpu: &mut Cpu, _: &Op) -> Result<(), Fault> {
    cpu.rflags |= rflags::DF;
    Ok(())
}
/// Executes SALC: sets AL from the carry.
fn salc(cpu: &mut Cpu, _: &Op) -> Result<(), Fault> {
    let v = if cpu.flags.cf() { 0xff } else { 0 };
    set_reg(cpu, AL, 1, v);
    Ok(())
}

/// Lowers this file's instructions.
pub fn lower(insn: &Instruction, b: &mut Builder) -> Option<Flow> {
    let mut op = match insn.mnemonic() {
        M::Daa => b.op(called_op!(decimal_adjust::<false>)),
        M::Das => b.op(called_op!(decimal_adjust::<true>)),
        M::Aaa => b.op(called_op!(ascii_adjust::<false>)),
        M::Aas => b.op(called_op!(ascii_adjust::<true>)),
        M::Aam => b.op(called_op!(aam)),
        M::Aad => b.op(called_op!(aad)),
        M::Salc => b.op(called_op!(salc)),
        M::Lahf => b.op(called_op!(lahf)),
        M::Sahf => b.op(called_op!(sahf)),
        M::Clc | M::Stc | M::Cmc => b.op(called_op!(carry)),
        M::Cld => b.op(called_op!(cld)),
        M::Std => b.op(called_op!(std)),
        M::Bound => {
            let bytes = insn.op0_register().size() as u32;
            let mut op = b.mem_op(insn, called_op!(bound), 2 * bytes, false);
            op.dst = super::operand::register(insn.op0_register());
            op.aux = bytes;
            op
        }
        M::Xlatb => {
            let mut op = b.op(called_op!(xlat));
            op.src = segment_index(insn.memory_segment()) as u8;
            op.scale = insn.memory_base().size() as u8;
            op
        }
        _ => return None,
    };
    match insn.mnemonic() {
        M::Aam | M::Aad => op.imm = u64::from(insn.immediate8()),
        M::Stc => op.imm = 1,
        M::Cmc => op.imm = 2,
        _ => {}
    }
    b.push(op);
    Some(Flow::Next)
}
