//! #SS or #GP for an access to an address that is not canonical.
//!
//! SDM vol. 1 section 3.3.7.1: in 64-bit mode such an access raises #SS(0) where it goes through the stack segment: by
//! PUSH, CALL and their like, or with RSP or RBP as base; otherwise #GP(0). Prefixes of ES, CS, SS and DS have no
//! effect there (APM vol. 1 section 2.5.3), those of FS and GS do. Ops do not hold all this, and the case is rare. So
//! the instruction is decoded again.

use iced_x86::{Decoder, DecoderOptions, Instruction, InstructionInfoFactory, Register, UsedMemory};

use crate::hypervisor::memory::GuestAddr;
use crate::hypervisor::soft::cpu::Cpu;
use crate::hypervisor::soft::lower::segment_index;
use crate::hypervisor::soft::mmu::{self, Intent};
use crate::hypervisor::soft::op::Op;

/// Maximum size in bytes of a memory operand whose size the decoder does not know: an XSAVE area.
const LARGEST: u64 = 1024;
const PAGE: u64 = 4096;

/// Changes the #GP that the instruction of `op` raised for the address in `cr2` to #SS where the rules ask for it.
#[cold]
pub fn settle(cpu: &mut Cpu, op: &Op) {
    let mut raised = cpu.exception;
    if decode(cpu, op).is_some_and(|insn| goes_through_stack_segment(cpu, &insn, raised.cr2)) {
        raised.vector = 12;
    }
    raised.cr2 = 0;
    cpu.exception = raised;
}

/// Fetches and decodes the instruction of `op` again.
fn decode(cpu: &mut Cpu, op: &Op) -> Option<Instruction> {
    let rip = op.rip(cpu);
    let mut bytes = [0; 15];
    let bytes = &mut bytes[..usize::from(op.len)];
    let here = bytes.len().min((PAGE - rip % PAGE) as usize);
    let (first, second) = bytes.split_at_mut(here);
    for (addr, part) in [(rip, first), (rip.wrapping_add(here as u64), second)] {
        if !part.is_empty() {
            let gpa = mmu::translate(cpu, addr, Intent::Execute).ok()?;
            cpu.memory.read(GuestAddr(gpa), part).ok()?;
        }
    }
    let insn = Decoder::with_ip(64, bytes, rip, DecoderOptions::NONE).decode();
    (!insn.is_invalid()).then_some(insn)
}

/// Returns whether the access to `addr` goes through SS. Of several memory operands, the one that contains the address
/// counts.
fn goes_through_stack_segment(cpu: &Cpu, insn: &Instruction, addr: u64) -> bool {
    let mut factory = InstructionInfoFactory::new();
    let operands = factory.info(insn).used_memory();
    let holds = |m: &&UsedMemory| {
        let bytes = match m.memory_size().size() as u64 {
            0 => LARGEST,
            bytes => bytes,
        };
        m.virtual_address(0, |register, _, _| Some(value(cpu, register))).is_some_and(|first| addr.wrapping_sub(first) < bytes)
    };
    // A bit test may reach far beyond its operand; it has no other.
    operands.iter().find(holds).or(operands.first()).is_some_and(|m| {
        matches!(m.base().full_register(), Register::RSP | Register::RBP) && !matches!(m.segment(), Register::FS | Register::GS)
    })
}

/// Returns a register's value as addresses in 64-bit mode use it.
fn value(cpu: &Cpu, register: Register) -> u64 {
    match register {
        Register::FS | Register::GS => cpu.segs[segment_index(register)].base,
        r if r.is_gpr64() => cpu.regs[r.number()],
        r if r.is_gpr32() => cpu.regs[r.number()] & 0xffff_ffff,
        _ => 0,
    }
}
