//! CLI, STI, PUSHF, POPF, CLAC, STAC.
//!
//! SDM vol. 2 (each instruction), vol. 3 section 6.8.1 (masking interrupts).
//!
//! **Not modelled**: CR4.VME and CR4.PVI (not advertised): VIF and VIP stay clear.

use super::super::cpu::{Cpu, Fault, rflags};
use super::super::mmu;
use super::super::op::Op;
use super::far::set_flags;
use super::segment::{Stack, is_vm86};

/// Flags that software of privilege 0 can set with POPF.
pub const SETTABLE: u64 =
    rflags::ARITH | rflags::TF | rflags::IF | rflags::DF | rflags::IOPL | rflags::NT | rflags::AC | rflags::ID;

fn iopl(cpu: &Cpu) -> u8 {
    (cpu.rflags >> 12 & 3) as u8
}

/// Makes the dispatcher look for interrupts, since they were enabled: one that waits is taken after this instruction.
fn look_for_interrupts(cpu: &mut Cpu) {
    if cpu.event_pending || cpu.attention.is_raised(cpu.index) {
        cpu.leave_after_op = true;
    }
}

/// Executes CLI.
pub fn cli(cpu: &mut Cpu, _: &Op) -> Result<(), Fault> {
    if cpu.cpl > iopl(cpu) {
        return Err(cpu.general_protection(0));
    }
    cpu.rflags &= !rflags::IF;
    Ok(())
}

/// Executes STI. Interrupts are enabled after the next instruction.
pub fn sti(cpu: &mut Cpu, _: &Op) -> Result<(), Fault> {
    if cpu.cpl > iopl(cpu) {
        return Err(cpu.general_protection(0));
    }
    if cpu.rflags & rflags::IF == 0 {
        cpu.rflags |= rflags::IF;
        cpu.interrupt_shadow = true;
        look_for_interrupts(cpu);
    }
    Ok(())
}

/// Executes PUSHF: `src` is the operand's bytes.
pub fn pushf(cpu: &mut Cpu, op: &Op) -> Result<(), Fault> {
    if is_vm86(cpu) && iopl(cpu) < 3 {
        return Err(cpu.general_protection(0));
    }
    let value = cpu.rflags_value() & !(rflags::VM | rflags::RF);
    let mut stack = Stack::current(cpu);
    stack.push(cpu, u64::from(op.src), value)?;
    stack.commit(cpu);
    Ok(())
}

/// Executes POPF: `src` is the operand's bytes.
pub fn popf(cpu: &mut Cpu, op: &Op) -> Result<(), Fault> {
    if is_vm86(cpu) && iopl(cpu) < 3 {
        return Err(cpu.general_protection(0));
    }
    let mut stack = Stack::current(cpu);
    let value = stack.pop(cpu, u64::from(op.src))?;
    stack.commit(cpu);
    let mut mask = SETTABLE;
    if op.src == 2 {
        mask &= 0xffff;
    }
    if cpu.cpl > iopl(cpu) {
        mask &= !rflags::IF;
    }
    if cpu.cpl > 0 {
        mask &= !rflags::IOPL;
    }
    let before = cpu.rflags;
    set_flags(cpu, value, mask);
    let changed = before ^ cpu.rflags;
    if changed & rflags::AC != 0 {
        mmu::select_bank(cpu);
    }
    if changed & rflags::TF != 0 {
        cpu.leave_after_op = true;
    }
    if changed & cpu.rflags & rflags::IF != 0 {
        look_for_interrupts(cpu);
    }
    Ok(())
}

/// Executes CLAC (`imm` 0) and STAC (`imm` 1).
pub fn set_access_check(cpu: &mut Cpu, op: &Op) -> Result<(), Fault> {
    if cpu.cpl != 0 {
        return Err(cpu.undefined());
    }
    if op.imm != 0 {
        cpu.rflags |= rflags::AC;
    } else {
        cpu.rflags &= !rflags::AC;
    }
    mmu::select_bank(cpu);
    Ok(())
}
