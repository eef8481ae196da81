//! Far jumps, calls and returns, call gates, software interrupts, IRET.
//!
//! SDM vol. 2 (CALL, JMP, RET, IRET, INT n), vol. 3 sections 5.8 (gates), 5.14 (gates in IA-32e mode).
//!
//! Task switches are in `task`.

use super::super::cpu::{CS, Cpu, DS, ES, FS, Fault, GS, Leave, SS, rflags};
use super::super::mmu;
use super::super::op::Op;
use super::debug;
use super::deliver::{Event, Source, deliver};
use super::regs::attr;
use super::segment::*;
use super::task::{self, Arrival, Way};

/// Kind of a far branch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Jump,
    /// Pushes operands of this many bytes.
    Call(u64),
}

fn truncate(value: u64, size: u64) -> u64 {
    if size >= 8 { value } else { value & (u64::MAX >> (64 - 8 * size)) }
}

/// Executes a far JMP or CALL with the pointer in the instruction: `imm` is `selector << 32 | offset`, `src` the
/// offset's bytes, `dst` 1 for a call.
pub fn far_direct(cpu: &mut Cpu, op: &Op) -> Result<(), Fault> {
    let kind = if op.dst == 1 { Kind::Call(u64::from(op.src)) } else { Kind::Jump };
    transfer(cpu, kind, (op.imm >> 32) as u16, op.imm & 0xffff_ffff)
}

/// Executes a far JMP or CALL through memory: `src` is the offset's bytes, `dst` 1 for a call.
pub fn far_indirect(cpu: &mut Cpu, op: &Op) -> Result<(), Fault> {
    let size = u64::from(op.src);
    let addr = op.addr(cpu);
    let (offset, selector) = load_far_pointer(cpu, addr, size)?;
    let kind = if op.dst == 1 { Kind::Call(size) } else { Kind::Jump };
    transfer(cpu, kind, selector, offset)
}

/// Loads a far pointer from memory: an offset of `size` bytes, then the selector.
pub fn load_far_pointer(cpu: &mut Cpu, addr: u64, size: u64) -> Result<(u64, u16), Fault> {
    let offset = match size {
        2 => u64::from(cpu.load::<u16>(addr)?),
        4 => u64::from(cpu.load::<u32>(addr)?),
        _ => cpu.load::<u64>(addr)?,
    };
    let behind = addr.wrapping_add(size);
    let behind = if cpu.is_64bit() { behind } else { behind & 0xffff_ffff };
    Ok((offset, cpu.load::<u16>(behind)?))
}

fn transfer(cpu: &mut Cpu, kind: Kind, selector: u16, offset: u64) -> Result<(), Fault> {
    if is_real(cpu) || is_vm86(cpu) {
        return transfer_real(cpu, kind, selector, offset);
    }
    if is_null(selector) {
        return Err(cpu.general_protection(0));
    }
    let mut d = read_descriptor(cpu, selector, 13, 0)?;
    if !d.segment.is_code_or_data() {
        let wide = matches!(d.segment.system_type(), 0xc);
        let narrow = matches!(d.segment.system_type(), 0x4) && !is_long_mode(cpu);
        if wide || narrow {
            return through_gate(cpu, kind, d);
        }
        if !is_long_mode(cpu) && task::names_task(&d) {
            let way = if kind == Kind::Jump { Way::Jump } else { Way::Nest };
            let arrival = task::transfer(cpu, way, d, cpu.next_rip)?;
            return arrived(cpu, arrival);
        }
        return Err(selector_fault(cpu, 13, selector, 0));
    }
    check_same_level(cpu, &d, selector)?;
    // Every check comes before the first change: a fault leaves the CPU as it was, so that the instruction can be
    // repeated.
    check_target(cpu, &d.segment, offset, 0)?;
    mark_accessed(cpu, &mut d)?;
    if let Kind::Call(size) = kind {
        let mut stack = Stack::current(cpu);
        stack.push(cpu, size, u64::from(cpu.segs[CS].selector))?;
        stack.push(cpu, size, cpu.next_rip)?;
        stack.commit(cpu);
    }
    let level = cpu.cpl;
    set_cs(cpu, d.segment, level);
    cpu.next_rip = offset;
    Ok(())
}

/// Delivers what was raised in the new task, after a task switch.
fn arrived(cpu: &mut Cpu, arrival: Arrival) -> Result<(), Fault> {
    if arrival == Arrival::Faulted {
        cpu.leave = Leave::Exception;
    }
    Ok(())
}

fn transfer_real(cpu: &mut Cpu, kind: Kind, selector: u16, offset: u64) -> Result<(), Fault> {
    if offset > u64::from(cpu.segs[CS].limit) {
        return Err(cpu.general_protection(0));
    }
    if let Kind::Call(size) = kind {
        let mut stack = Stack::current(cpu);
        stack.push(cpu, size, u64::from(cpu.segs[CS].selector))?;
        stack.push(cpu, size, cpu.next_rip)?;
        stack.commit(cpu);
    }
    cpu.segs[CS].selector = selector;
    cpu.segs[CS].base = u64::from(selector) << 4;
    cpu.next_rip = offset;
    Ok(())
}

/// Checks a code segment that is reached without a gate.
fn check_same_level(cpu: &mut Cpu, d: &Descriptor, selector: u16) -> Result<(), Fault> {
    let s = &d.segment;
    let level_ok = if s.is_conforming() { s.dpl() <= cpu.cpl } else { s.dpl() == cpu.cpl && (selector & 3) as u8 <= cpu.cpl };
    let both = attr::L | attr::DB;
    if !s.is_code() || !level_ok || (is_long_mode(cpu) && s.attr & both == both) {
        return Err(selector_fault(cpu, 13, selector, 0));
    }
    if !s.present() {
        return Err(selector_fault(cpu, 11, selector, 0));
    }
    Ok(())
}

fn through_gate(cpu: &mut Cpu, kind: Kind, gate: Descriptor) -> Result<(), Fault> {
    let gate_selector = gate.segment.selector;
    let long = is_long_mode(cpu);
    if gate.segment.dpl() < cpu.cpl.max((gate_selector & 3) as u8) {
        return Err(selector_fault(cpu, 13, gate_selector, 0));
    }
    if !gate.segment.present() {
        return Err(selector_fault(cpu, 11, gate_selector, 0));
    }
    let size: u64 = if long {
        8
    } else if gate.segment.system_type() == 0xc {
        4
    } else {
        2
    };
    let mut offset = gate.raw & 0xffff;
    if size > 2 {
        offset |= gate.raw >> 32 & 0xffff_0000;
    }
    if long {
        let high = mmu::load_system::<u64>(cpu, gate.addr.wrapping_add(8))?;
        // The type field of the upper half must be zero, so that its eight bytes are not taken for another gate.
        if high >> 40 & 0x1f != 0 {
            return Err(selector_fault(cpu, 13, gate_selector, 0));
        }
        offset |= high << 32;
    }
    let selector = (gate.raw >> 16) as u16;
    if is_null(selector) {
        return Err(cpu.general_protection(0));
    }
    let mut code = read_descriptor(cpu, selector, 13, 0)?;
    let s = code.segment;
    let mode_ok = !long || s.attr & (attr::L | attr::DB) == attr::L;
    let level_ok = match kind {
        Kind::Jump if !s.is_conforming() => s.dpl() == cpu.cpl,
        _ => s.dpl() <= cpu.cpl,
    };
    if !s.is_code() || !mode_ok || !level_ok {
        return Err(selector_fault(cpu, 13, selector, 0));
    }
    if !s.present() {
        return Err(selector_fault(cpu, 11, selector, 0));
    }
    check_target(cpu, &s, offset, 0)?;
    let level = if s.is_conforming() { cpu.cpl } else { s.dpl() };
    if let Kind::Call(_) = kind {
        let params = if long { 0 } else { gate.raw >> 32 & 0x1f };
        let stack = push_call_frame(cpu, size, level, params)?;
        mark_accessed(cpu, &mut code)?;
        if level != cpu.cpl {
            cpu.segs[SS] = stack.segment;
        }
        set_cs(cpu, code.segment, level);
        stack.commit(cpu);
    } else {
        mark_accessed(cpu, &mut code)?;
        set_cs(cpu, code.segment, level);
    }
    cpu.next_rip = offset;
    Ok(())
}

fn push_call_frame(cpu: &mut Cpu, size: u64, level: u8, params: u64) -> Result<Stack, Fault> {
    let mut old = Stack::current(cpu);
    let mut stack = old;
    if level != cpu.cpl {
        stack = if is_long_mode(cpu) {
            let sp = long_stack_pointer(cpu, 4 + 8 * u64::from(level), 0)?;
            Stack::long(null_stack(level), sp, level, 0)
        } else {
            inner_stack(cpu, level, 0)?
        };
        stack.push(cpu, size, u64::from(cpu.segs[SS].selector))?;
        stack.push(cpu, size, cpu.regs[4])?;
        // The field in the gate has five bits.
        let mut words = [0u64; 31];
        for word in words.iter_mut().take(params as usize) {
            *word = old.pop(cpu, size)?;
        }
        for word in words[..params as usize].iter().rev() {
            stack.push(cpu, size, *word)?;
        }
    }
    stack.push(cpu, size, u64::from(cpu.segs[CS].selector))?;
    stack.push(cpu, size, cpu.next_rip)?;
    Ok(stack)
}

/// Reads and checks the code segment that a far return or IRET goes to.
fn return_segment(cpu: &mut Cpu, selector: u16) -> Result<Descriptor, Fault> {
    if is_null(selector) {
        return Err(cpu.general_protection(0));
    }
    let level = (selector & 3) as u8;
    let d = read_descriptor(cpu, selector, 13, 0)?;
    let s = d.segment;
    let level_ok = if s.is_conforming() { s.dpl() <= level } else { s.dpl() == level };
    let both = attr::L | attr::DB;
    if level < cpu.cpl || !s.is_code() || !level_ok || (is_long_mode(cpu) && s.attr & both == both) {
        return Err(selector_fault(cpu, 13, selector, 0));
    }
    if !s.present() {
        return Err(selector_fault(cpu, 11, selector, 0));
    }
    Ok(d)
}

/// Reads and checks the stack segment that a return to `level` goes to. `to_64bit` describes the code segment returned
/// to.
fn return_stack_segment(cpu: &mut Cpu, selector: u16, level: u8, to_64bit: bool) -> Result<super::super::cpu::Segment, Fault> {
    if is_null(selector) {
        // A 64-bit kernel runs with a null SS after an interrupt from an outer ring.
        if to_64bit && level != 3 && (selector & 3) as u8 == level {
            return Ok(null_stack(level));
        }
        return Err(cpu.general_protection(0));
    }
    let mut d = read_descriptor(cpu, selector, 13, 0)?;
    if (selector & 3) as u8 != level || d.segment.dpl() != level || !d.segment.is_writable() {
        return Err(selector_fault(cpu, 13, selector, 0));
    }
    if !d.segment.present() {
        return Err(selector_fault(cpu, 12, selector, 0));
    }
    mark_accessed(cpu, &mut d)?;
    Ok(d.segment)
}

/// Sets RSP after a return, by the size of the new stack.
fn set_returned_sp(cpu: &mut Cpu, sp: u64) {
    let wide = cpu.segs[SS].attr & attr::DB != 0;
    cpu.regs[4] = if cpu.is_64bit() {
        sp
    } else if wide {
        sp & 0xffff_ffff
    } else {
        cpu.regs[4] & !0xffff | sp & 0xffff
    };
}

/// Executes far RET: `src` is the operand's bytes, `imm` the bytes to release.
pub fn far_return(cpu: &mut Cpu, op: &Op) -> Result<(), Fault> {
    let size = u64::from(op.src);
    let mut stack = Stack::current(cpu);
    let rip = stack.pop(cpu, size)?;
    let selector = stack.pop(cpu, size)? as u16;
    if is_real(cpu) || is_vm86(cpu) {
        if rip > u64::from(cpu.segs[CS].limit) {
            return Err(cpu.general_protection(0));
        }
        stack.release(op.imm);
        stack.commit(cpu);
        cpu.segs[CS].selector = selector;
        cpu.segs[CS].base = u64::from(selector) << 4;
        cpu.next_rip = rip;
        return Ok(());
    }
    let mut code = return_segment(cpu, selector)?;
    check_target(cpu, &code.segment, rip, 0)?;
    stack.release(op.imm);
    let level = (selector & 3) as u8;
    if level == cpu.cpl {
        mark_accessed(cpu, &mut code)?;
        stack.commit(cpu);
        set_cs(cpu, code.segment, level);
    } else {
        let sp = stack.pop(cpu, size)?;
        let ss_selector = stack.pop(cpu, size)? as u16;
        let to_64bit = is_long_mode(cpu) && code.segment.attr & attr::L != 0;
        let ss = return_stack_segment(cpu, ss_selector, level, to_64bit)?;
        mark_accessed(cpu, &mut code)?;
        cpu.segs[SS] = ss;
        set_cs(cpu, code.segment, level);
        set_returned_sp(cpu, sp.wrapping_add(op.imm));
        drop_inner_segments(cpu);
    }
    cpu.next_rip = rip;
    Ok(())
}

/// Executes INT n, INT3 and INT1: `imm` is the vector, `dst` is 1 for INT1, which checks no DPL.
pub fn interrupt(cpu: &mut Cpu, op: &Op) -> Result<(), Fault> {
    let software = op.dst != 1;
    // INT n in virtual-8086 mode without CR4.VME. INT3 and INTO are not sensitive to IOPL.
    if software && op.src == 1 && is_vm86(cpu) && cpu.rflags & rflags::IOPL != rflags::IOPL {
        return Err(cpu.general_protection(0));
    }
    let source = if software { Source::Software } else { Source::Hardware };
    if !software {
        debug::report_held(cpu);
    }
    let rip = cpu.next_rip;
    let arrival = deliver(cpu, Event { vector: op.imm as u8, error: None, source, rip, resume: false })?;
    arrived(cpu, arrival)
}

/// Executes INTO.
pub fn interrupt_on_overflow(cpu: &mut Cpu, op: &Op) -> Result<(), Fault> {
    if cpu.flags.of() {
        interrupt(cpu, op)?;
    }
    Ok(())
}

/// Executes IRET: `src` is the operand's bytes.
pub fn interrupt_return(cpu: &mut Cpu, op: &Op) -> Result<(), Fault> {
    let size = u64::from(op.src);
    if is_vm86(cpu) && cpu.rflags & rflags::IOPL != rflags::IOPL {
        return Err(cpu.general_protection(0));
    }
    if !is_real(cpu) && !is_vm86(cpu) && cpu.rflags & rflags::NT != 0 {
        // Long mode has no task switch.
        if is_long_mode(cpu) {
            return Err(cpu.general_protection(0));
        }
        let arrival = task::return_to_link(cpu, cpu.next_rip)?;
        cpu.nmi_blocked = false;
        return arrived(cpu, arrival);
    }
    let mut stack = Stack::current(cpu);
    let rip = stack.pop(cpu, size)?;
    let selector = stack.pop(cpu, size)? as u16;
    let flags = stack.pop(cpu, size)?;
    if is_real(cpu) || is_vm86(cpu) {
        if rip > u64::from(cpu.segs[CS].limit) {
            return Err(cpu.general_protection(0));
        }
        stack.commit(cpu);
        cpu.segs[CS].selector = selector;
        cpu.segs[CS].base = u64::from(selector) << 4;
        let keep = if is_vm86(cpu) { rflags::IOPL } else { 0 };
        set_returned_flags(cpu, flags, size, keep);
        finish_return(cpu, rip);
        return Ok(());
    }
    if !is_long_mode(cpu) && size == 4 && flags & rflags::VM != 0 && cpu.cpl == 0 {
        return return_to_vm86(cpu, stack, rip, selector, flags);
    }
    return_protected(cpu, stack, size, (rip, selector, flags))
}

fn return_protected(cpu: &mut Cpu, mut stack: Stack, size: u64, frame: (u64, u16, u64)) -> Result<(), Fault> {
    let (rip, selector, flags) = frame;
    let from_64bit = cpu.is_64bit();
    let old_level = cpu.cpl;
    let level = (selector & 3) as u8;
    let mut code = return_segment(cpu, selector)?;
    check_target(cpu, &code.segment, rip, 0)?;
    // 64-bit code always pops SS and RSP, also when the ring stays the same.
    let outer = if from_64bit || level != old_level {
        let sp = stack.pop(cpu, size)?;
        let ss_selector = stack.pop(cpu, size)? as u16;
        let to_64bit = is_long_mode(cpu) && code.segment.attr & attr::L != 0;
        Some((sp, return_stack_segment(cpu, ss_selector, level, to_64bit)?))
    } else {
        None
    };
    mark_accessed(cpu, &mut code)?;
    let iopl = (cpu.rflags >> 12 & 3) as u8;
    let mut keep = 0;
    if old_level > 0 {
        keep |= rflags::IOPL;
    }
    // Otherwise an application could turn interrupts off by IRET.
    if old_level > iopl {
        keep |= rflags::IF;
    }
    set_returned_flags(cpu, flags, size, keep);
    match outer {
        Some((sp, ss)) => {
            cpu.segs[SS] = ss;
            set_cs(cpu, code.segment, level);
            set_returned_sp(cpu, sp);
            if level != old_level {
                drop_inner_segments(cpu);
            }
        }
        None => {
            stack.commit(cpu);
            set_cs(cpu, code.segment, level);
        }
    }
    finish_return(cpu, rip);
    Ok(())
}

fn return_to_vm86(cpu: &mut Cpu, mut stack: Stack, rip: u64, selector: u16, flags: u64) -> Result<(), Fault> {
    let sp = stack.pop(cpu, 4)?;
    let mut selectors = [0u16; 5];
    for s in &mut selectors {
        *s = stack.pop(cpu, 4)? as u16;
    }
    for (which, s) in [SS, ES, DS, FS, GS].into_iter().zip(selectors) {
        cpu.segs[which] = vm86_segment(s);
    }
    cpu.segs[CS] = vm86_segment(selector);
    cpu.cpl = 3;
    set_returned_flags(cpu, flags, 4, 0);
    cpu.rflags |= rflags::VM;
    cpu.regs[4] = sp;
    finish_return(cpu, rip & 0xffff);
    Ok(())
}

fn set_returned_flags(cpu: &mut Cpu, flags: u64, size: u64, keep: u64) {
    set_flags(cpu, flags, truncate(super::flagops::SETTABLE | rflags::RF, size) & !keep);
}

/// Sets the bits of RFLAGS that are in `mask`.
pub fn set_flags(cpu: &mut Cpu, flags: u64, mask: u64) {
    use super::super::flags::LazyFlags;
    let all = (cpu.rflags_value() & !mask) | (flags & mask) | rflags::FIXED;
    cpu.flags = LazyFlags::raw(all);
    cpu.rflags = all & !rflags::ARITH;
}

fn finish_return(cpu: &mut Cpu, rip: u64) {
    cpu.nmi_blocked = false;
    cpu.next_rip = rip;
    mmu::select_bank(cpu);
}
