//! Segments, exceptions and interrupts, mode changes, system calls, CPUID, MSRs, control registers, port I/O.

pub mod regs;

use iced_x86::Instruction;

use super::cpu::{Cpu, Fault};
use super::lower::{Builder, Flow, Mode};
use crate::hypervisor::backend::BootState;

/// Lowers an instruction of this family; `None` when it is not one.
pub fn lower(insn: &Instruction, b: &mut Builder) -> Option<Flow> {
    let _ = (insn, b);
    None
}

/// The triple fault: an exception while delivering a double fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TripleFault;

/// Delivers `cpu.exception` through the IDT (with #DF and triple fault). `regs[RIP]` is the faulting instruction.
pub fn deliver_exception(cpu: &mut Cpu) -> Result<(), TripleFault> {
    let _ = cpu;
    Err(TripleFault)
}

/// Delivers an external interrupt that has been acknowledged; `regs[RIP]` is the instruction to return to.
pub fn deliver_interrupt(cpu: &mut Cpu, vector: u8) -> Result<(), TripleFault> {
    let _ = (cpu, vector);
    Err(TripleFault)
}

/// Delivers an NMI.
pub fn deliver_nmi(cpu: &mut Cpu) -> Result<(), TripleFault> {
    deliver_interrupt(cpu, 2)
}

/// The state after INIT (SDM vol. 3 table 10-1); `power_on` also resets what INIT keeps.
pub fn reset(cpu: &mut Cpu, power_on: bool) {
    let _ = (cpu, power_on);
}

/// Starts an application processor at `vector << 12`.
pub fn start_up(cpu: &mut Cpu, vector: u8) {
    let _ = (cpu, vector);
}

/// Sets the state in which a loader enters the guest.
pub fn enter(cpu: &mut Cpu, boot: &BootState) {
    let _ = (cpu, boot);
}

/// The mode that blocks are now decoded in, and `cpu.bank` brought up to date; called by the dispatcher after each
/// leaving op.
pub fn refresh_mode(cpu: &mut Cpu) -> Mode {
    let _ = cpu;
    Mode(0)
}

/// Whether a trap is due before the next instruction (`cpu.debug_pending`); then it is in `cpu.exception` and the
/// dispatcher delivers it, before any interrupt.
pub fn take_debug_trap(cpu: &mut Cpu) -> bool {
    let _ = cpu;
    false
}

/// In [`Mode::STEP`], before the block's one instruction runs: instruction breakpoints. On `Err` the dispatcher
/// delivers `cpu.exception` instead of running it.
pub fn before_step(cpu: &mut Cpu) -> Result<(), Fault> {
    let _ = cpu;
    Ok(())
}

/// In [`Mode::STEP`], after the instruction ran without an exception; `tf_before` is RFLAGS.TF as it was before.
pub fn after_step(cpu: &mut Cpu, tf_before: bool) {
    let _ = (cpu, tf_before);
}
