//! Single step and breakpoints.
//!
//! SDM vol. 3 chapter 17. Watchpoints on data are found in `mmu`.
//!
//! **Not modelled**: I/O breakpoints (CR4.DE with R/W = 2), single step on branches, last-branch records.

use super::super::cpu::{CS, Cpu, Fault, RIP, rflags};
use super::regs::dr;

/// Whether a debug register breaks on execution.
pub fn breaks_on_execution(cpu: &Cpu) -> bool {
    let dr7 = cpu.sys.dr[7];
    dr7 & 0xff != 0 && (0..4).any(|n| dr7 >> (2 * n) & 3 != 0 && dr7 >> (16 + 4 * n) & 3 == 0)
}

/// In [`Mode::STEP`](super::super::lower::Mode::STEP), before the block's one instruction runs: instruction
/// breakpoints. On `Err` the dispatcher delivers `cpu.exception` instead of running it.
pub fn before_step(cpu: &mut Cpu) -> Result<(), Fault> {
    cpu.no_step_trap = false;
    let resume = cpu.rflags & rflags::RF != 0;
    cpu.rflags &= !rflags::RF;
    if resume || !breaks_on_execution(cpu) {
        return Ok(());
    }
    let rip = cpu.regs[RIP];
    let addr = if cpu.is_64bit() { rip } else { cpu.segs[CS].base.wrapping_add(rip) & 0xffff_ffff };
    let dr7 = cpu.sys.dr[7];
    let mut met = 0;
    for n in 0..4 {
        if dr7 >> (2 * n) & 3 != 0 && dr7 >> (16 + 4 * n) & 3 == 0 && cpu.sys.dr[n] == addr {
            met |= 1 << n;
        }
    }
    if met == 0 {
        return Ok(());
    }
    cpu.sys.dr[6] |= met;
    Err(cpu.raise(1, None))
}

/// In `Mode::STEP`, after the instruction ran without an exception; `tf_before` is RFLAGS.TF as it was before.
pub fn after_step(cpu: &mut Cpu, tf_before: bool) {
    // INT n and SYSCALL have cleared TF and are not trapped themselves.
    if tf_before && !cpu.no_step_trap {
        cpu.debug_pending |= dr::BS;
    }
}

/// Whether a trap is due before the next instruction (`cpu.debug_pending`); then it is in `cpu.exception` and the
/// dispatcher delivers it, before any interrupt.
pub fn take_debug_trap(cpu: &mut Cpu) -> bool {
    if cpu.debug_pending == 0 {
        return false;
    }
    cpu.sys.dr[6] |= std::mem::take(&mut cpu.debug_pending);
    cpu.raise(1, None);
    true
}
