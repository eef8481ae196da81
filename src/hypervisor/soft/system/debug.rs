//! Single step and breakpoints.
//!
//! SDM vol. 3 chapter 17. Watchpoints on data are found in `mmu`.
//!
//! Branch records and single step on branches (DebugCtl; APM vol. 2 section 13.1.1.5 and 13.1.1.6) are implemented by
//! stepping, so that they cost nothing unless a guest asks for them.

use iced_x86::{Decoder, DecoderOptions, FlowControl};

use super::super::cpu::{CS, Cpu, Fault, RIP, rflags};
use super::super::lower::Mode;
use super::super::mmu::{self, Intent};
use super::regs::{cr4, debug_ctl, dr};
use crate::hypervisor::memory::{GuestAddr, PAGE_SIZE};

/// Returns whether a debug register breaks on execution.
pub fn breaks_on_execution(cpu: &Cpu) -> bool {
    let dr7 = cpu.sys.dr[7];
    dr7 & 0xff != 0 && (0..4).any(|n| dr7 >> (2 * n) & 3 != 0 && dr7 >> (16 + 4 * n) & 3 == 0)
}

/// Notes the breakpoints that an access of `bytes` at `port` triggers: with CR4.DE, those whose R/W is 2. Like data
/// breakpoints they trap after the instruction.
pub fn note_port(cpu: &mut Cpu, port: u16, bytes: u8) {
    let dr7 = cpu.sys.dr[7];
    if dr7 & 0xff == 0 || cpu.sys.cr4 & cr4::DE == 0 {
        return;
    }
    for n in 0..4 {
        let (first, len) = mmu::watched_bytes(cpu, n);
        let enabled = dr7 >> (2 * n) & 3 != 0 && dr7 >> (16 + 4 * n) & 3 == 2;
        if enabled && u64::from(port) < first.wrapping_add(len) && first < u64::from(port) + u64::from(bytes) {
            cpu.debug_pending |= 1 << n;
            cpu.leave_after_op = true;
        }
    }
}

/// A branch that is being stepped.
#[derive(Debug, Clone, Copy)]
pub struct Branch {
    /// Its linear address.
    from: u64,
    /// The address after it as an offset in CS, at which it may continue if it is conditional.
    behind: Option<u64>,
}

/// Returns the branch at RIP, if there is one.
fn branch_at_rip(cpu: &mut Cpu) -> Option<Branch> {
    let rip = cpu.regs[RIP];
    let from = linear_ip(cpu, rip);
    let mut bytes = [0; 15];
    let mut known = 0;
    while known < bytes.len() {
        // The instruction may end before a page that is not mapped, so a fault here ends only the look ahead.
        let Ok(gpa) = mmu::translate(cpu, from.wrapping_add(known as u64), Intent::Execute) else { break };
        let here = (PAGE_SIZE - gpa % PAGE_SIZE).min((bytes.len() - known) as u64) as usize;
        cpu.memory.read(GuestAddr(gpa), &mut bytes[known..known + here]).ok()?;
        known += here;
    }
    let insn = Decoder::with_ip(cpu.mode.bitness(), &bytes[..known], rip, DecoderOptions::NONE).decode();
    match insn.flow_control() {
        FlowControl::ConditionalBranch => Some(Branch { from, behind: Some(insn.next_ip()) }),
        FlowControl::UnconditionalBranch
        | FlowControl::IndirectBranch
        | FlowControl::Return
        | FlowControl::Call
        | FlowControl::IndirectCall => Some(Branch { from, behind: None }),
        _ => None,
    }
}

/// Returns the linear address of `ip` in CS.
pub fn linear_ip(cpu: &Cpu, ip: u64) -> u64 {
    if cpu.is_64bit() { ip } else { cpu.segs[CS].base.wrapping_add(ip) & 0xffff_ffff }
}

/// Records an exception or interrupt that was delivered at the linear address `from`.
pub fn record_interrupt(cpu: &mut Cpu, from: u64) {
    if cpu.sys.debug_ctl & debug_ctl::LBR != 0 {
        let to = linear_ip(cpu, cpu.regs[RIP]);
        (cpu.sys.last_branch[2], cpu.sys.last_branch[3]) = (from, to);
    }
}

/// Returns whether branches are recorded: then every instruction is stepped.
pub fn records_branches(cpu: &Cpu) -> bool {
    cpu.sys.debug_ctl & debug_ctl::LBR != 0
}

/// Adds the conditions `met` to DR6, with those that wait. B0 to B3 describe this exception; the other bits stay set
/// until software clears them (APM vol. 2 section 13.1.1.3; SDM vol. 3 section 17.2.3).
pub fn report(cpu: &mut Cpu, met: u64) {
    let met = met | std::mem::take(&mut cpu.debug_pending);
    cpu.sys.dr[6] = cpu.sys.dr[6] & !dr::BREAKPOINTS | met;
}

/// Reports the conditions that MOV SS held off. INT1 has no condition of its own but reports these.
pub fn report_held(cpu: &mut Cpu) {
    if cpu.debug_pending != 0 {
        report(cpu, 0);
    }
}

/// Holds off interrupts and debug exceptions until the next instruction has run, after MOV SS and POP SS, so that the
/// stack pointer can follow (SDM vol. 3 section 6.8.3). A single-step trap of their own does not come at all.
///
/// Where nothing can be held off, nothing is noted: then the chain continues, and a mark would be stale when it is
/// left.
pub fn hold_off(cpu: &mut Cpu) {
    cpu.interrupt_shadow = true;
    cpu.debug_shadow = cpu.debug_pending != 0 || cpu.mode.has(Mode::STEP);
}

/// Checks for instruction breakpoints in [`Mode::STEP`], before the block's one instruction runs, unless they are
/// `held` off. On `Err` the dispatcher delivers `cpu.exception` instead of running the instruction.
pub fn before_step(cpu: &mut Cpu, held: bool) -> Result<(), Fault> {
    cpu.no_step_trap = false;
    let asked = cpu.sys.debug_ctl & (debug_ctl::LBR | debug_ctl::BTF) != 0;
    cpu.stepped_branch = if asked { branch_at_rip(cpu) } else { None };
    // RF holds off one breakpoint: without it, returning from the handler would hit the same one again.
    let resume = cpu.rflags & rflags::RF != 0;
    cpu.rflags &= !rflags::RF;
    if resume || held || !breaks_on_execution(cpu) {
        return Ok(());
    }
    let addr = linear_ip(cpu, cpu.regs[RIP]);
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
    report(cpu, met);
    Err(cpu.raise(1, None))
}

/// Notes the single-step trap in `Mode::STEP`, after the instruction ran without an exception. `tf_before` is the value
/// of RFLAGS.TF before it.
pub fn after_step(cpu: &mut Cpu, tf_before: bool) {
    let taken = cpu.stepped_branch.take().filter(|b| b.behind != Some(cpu.regs[RIP]));
    if let Some(branch) = taken
        && cpu.sys.debug_ctl & debug_ctl::LBR != 0
    {
        let to = linear_ip(cpu, cpu.regs[RIP]);
        (cpu.sys.last_branch[0], cpu.sys.last_branch[1]) = (branch.from, to);
    }
    // With BTF only branches that are taken trap.
    let due = cpu.sys.debug_ctl & debug_ctl::BTF == 0 || taken.is_some();
    if tf_before && due && !cpu.no_step_trap && !cpu.debug_shadow {
        cpu.debug_pending |= dr::BS;
    }
}

/// Lets the TF that SYSCALL, SYSRET and SYSENTER leave decide whether a single-step trap follows, not the TF that they
/// found. So a system call whose mask clears TF is not traced, and a return that sets it is trapped at once, before the
/// first instruction in user mode.
pub fn step_by_result(cpu: &mut Cpu) {
    cpu.no_step_trap = true;
    if cpu.rflags & rflags::TF != 0 {
        cpu.debug_pending |= dr::BS;
    }
}

/// Returns whether a trap is due before the next instruction (`cpu.debug_pending`). Then it is in `cpu.exception`, and
/// the dispatcher delivers it before any interrupt. It ends HLT, as interrupts do (SDM vol. 2, HLT).
pub fn take_debug_trap(cpu: &mut Cpu) -> bool {
    if cpu.debug_pending == 0 {
        return false;
    }
    report(cpu, 0);
    cpu.halted = false;
    cpu.raise(1, None);
    true
}
