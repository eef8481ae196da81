//! SYSCALL, SYSENTER and their returns, SWAPGS, the FS and GS base instructions, hypercalls.
//!
//! SDM vol. 2 (each instruction), vol. 3 section 5.8.7 and 5.8.8; APM vol. 3 (SYSCALL in legacy mode).
//!
//! As on Intel's processors SYSENTER works in long mode and SYSRET loads a flat SS; as on AMD's, SYSCALL works in
//! compatibility and legacy mode and SYSRET does not check RCX: the fetch at a non-canonical RIP raises #GP in user
//! mode.

use super::super::cpu::{Cpu, FS, Fault, GS, SS, Segment, rflags};
use super::super::mmu::is_canonical;
use super::super::op::Op;
use super::debug::step_by_result;
use super::far::set_flags;
use super::regs::{cr4, efer};
use super::segment::*;

const CODE64: u16 = 0xa09b;
const CODE32: u16 = 0xc09b;
const DATA: u16 = 0xc093;
const DPL3: u16 = 3 << 5;

fn enter(cpu: &mut Cpu, selector: u16, code: u16) {
    set_cs(cpu, Segment::flat(selector & 0xfffc, code), 0);
    cpu.segs[SS] = Segment::flat((selector & 0xfffc).wrapping_add(8), DATA);
    step_by_result(cpu);
}

/// Executes SYSCALL.
pub fn syscall(cpu: &mut Cpu, _: &Op) -> Result<(), Fault> {
    if cpu.sys.efer & efer::SCE == 0 || is_real(cpu) {
        return Err(cpu.undefined());
    }
    let selector = (cpu.sys.star >> 32) as u16;
    let rip = cpu.next_rip;
    if is_long_mode(cpu) {
        let target = if cpu.is_64bit() { cpu.sys.lstar } else { cpu.sys.cstar };
        let flags = cpu.rflags_value() & !rflags::RF;
        cpu.regs[1] = rip;
        cpu.regs[11] = flags;
        // The flags are saved before the mask applies, so that SYSRET restores the user's.
        let mask = cpu.sys.sfmask & 0xffff_ffff | rflags::RF | rflags::VM;
        set_flags(cpu, 0, mask & !rflags::FIXED);
        enter(cpu, selector, CODE64);
        cpu.next_rip = target;
    } else {
        cpu.regs[1] = rip & 0xffff_ffff;
        set_flags(cpu, 0, rflags::IF | rflags::VM | rflags::RF);
        enter(cpu, selector, CODE32);
        cpu.next_rip = cpu.sys.star & 0xffff_ffff;
    }
    Ok(())
}

/// Executes SYSRET: `src` is 8 with REX.W, else 4.
pub fn sysret(cpu: &mut Cpu, op: &Op) -> Result<(), Fault> {
    if cpu.sys.efer & efer::SCE == 0 || is_real(cpu) {
        return Err(cpu.undefined());
    }
    if cpu.cpl != 0 {
        return Err(cpu.general_protection(0));
    }
    let base = (cpu.sys.star >> 48) as u16;
    let (selector, code, rip) =
        if op.src == 8 { (base.wrapping_add(16), CODE64, cpu.regs[1]) } else { (base, CODE32, cpu.regs[1] & 0xffff_ffff) };
    if is_long_mode(cpu) {
        let flags = cpu.regs[11];
        set_flags(cpu, flags, super::flagops::SETTABLE | rflags::RF);
    } else {
        set_flags(cpu, rflags::IF, rflags::IF);
    }
    // No descriptor is read: STAR gives selectors, and the segments are always flat.
    cpu.segs[SS] = Segment::flat(base.wrapping_add(8) | 3, DATA | DPL3);
    set_cs(cpu, Segment::flat(selector | 3, code | DPL3), 3);
    step_by_result(cpu);
    cpu.next_rip = rip;
    Ok(())
}

/// Executes SYSENTER, which does not clear TF.
pub fn sysenter(cpu: &mut Cpu, _: &Op) -> Result<(), Fault> {
    let selector = cpu.sys.sysenter_cs as u16;
    if is_real(cpu) || is_null(selector) {
        return Err(cpu.general_protection(0));
    }
    set_flags(cpu, 0, rflags::VM | rflags::IF | rflags::RF);
    let long = is_long_mode(cpu);
    enter(cpu, selector, if long { CODE64 } else { CODE32 });
    let mask = if long { u64::MAX } else { 0xffff_ffff };
    cpu.regs[4] = cpu.sys.sysenter_esp & mask;
    cpu.next_rip = cpu.sys.sysenter_eip & mask;
    Ok(())
}

/// Executes SYSEXIT: `src` is 8 with REX.W, else 4.
pub fn sysexit(cpu: &mut Cpu, op: &Op) -> Result<(), Fault> {
    let base = cpu.sys.sysenter_cs as u16 & 0xfffc;
    if is_real(cpu) || base == 0 || cpu.cpl != 0 {
        return Err(cpu.general_protection(0));
    }
    let wide = op.src == 8;
    let (rip, rsp) = (cpu.regs[2], cpu.regs[1]);
    if wide && !(is_canonical(rip) && is_canonical(rsp)) {
        return Err(cpu.general_protection(0));
    }
    let mask = if wide { u64::MAX } else { 0xffff_ffff };
    let code = base.wrapping_add(if wide { 32 } else { 16 });
    cpu.segs[SS] = Segment::flat(code.wrapping_add(8) | 3, DATA | DPL3);
    set_cs(cpu, Segment::flat(code | 3, if wide { CODE64 } else { CODE32 } | DPL3), 3);
    cpu.regs[4] = rsp & mask;
    cpu.next_rip = rip & mask;
    Ok(())
}

/// Executes SWAPGS.
pub fn swapgs(cpu: &mut Cpu, _: &Op) -> Result<(), Fault> {
    if cpu.cpl != 0 {
        return Err(cpu.general_protection(0));
    }
    std::mem::swap(&mut cpu.segs[GS].base, &mut cpu.sys.kernel_gs_base);
    Ok(())
}

/// Executes RDFSBASE and RDGSBASE: `dst` the register, `src` its bytes, `imm` the segment.
pub fn read_base(cpu: &mut Cpu, op: &Op) -> Result<(), Fault> {
    check_fsgsbase(cpu)?;
    let base = cpu.segs[if op.imm == 0 { FS } else { GS }].base;
    super::write_gpr(cpu, op.dst, op.src, base);
    Ok(())
}

/// Executes WRFSBASE and WRGSBASE, with fields as in [`read_base`].
pub fn write_base(cpu: &mut Cpu, op: &Op) -> Result<(), Fault> {
    check_fsgsbase(cpu)?;
    let value = super::read_gpr(cpu, op.dst, op.src);
    if !is_canonical(value) {
        return Err(cpu.general_protection(0));
    }
    cpu.segs[if op.imm == 0 { FS } else { GS }].base = value;
    Ok(())
}

fn check_fsgsbase(cpu: &mut Cpu) -> Result<(), Fault> {
    if cpu.sys.cr4 & cr4::FSGSBASE == 0 || !cpu.is_64bit() {
        return Err(cpu.undefined());
    }
    Ok(())
}

/// Executes VMCALL and VMMCALL: KVM's hypercalls, none of which is advertised. Returns -KVM_ENOSYS, or -KVM_EPERM from
/// user mode.
pub fn hypercall(cpu: &mut Cpu, _: &Op) -> Result<(), Fault> {
    // KVM's numbers, since guests look for KVM's CPUID leaves and know these.
    let answer: i64 = if cpu.cpl == 0 { -1000 } else { -1 };
    cpu.regs[0] = if cpu.is_64bit() { answer as u64 } else { answer as u32 as u64 };
    Ok(())
}
