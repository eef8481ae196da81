//! Exceptions and interrupts: delivery through the IDT or the real-mode vector table.
//!
//! SDM vol. 3 chapter 6, section 20.1.4 (real mode), 20.3 (virtual-8086 mode); table 6-5 (double fault).
//!
//! **Not modelled**: the interrupt redirection map of CR4.VME (not advertised), interrupt-stack tables of shadow
//! stacks.
//!
//! **Hostile guest**: an exception while delivering one leads to #DF and then to a triple fault: at most three
//! deliveries for contributory exceptions and page faults, a few more for serial ones.

use super::super::cpu::{CS, Cpu, DS, ES, Exception, FS, Fault, GS, RIP, SS, Segment, rflags};
use super::super::mmu;
use super::regs::{attr, debug_ctl, dr};
use super::segment::*;
use super::task::{self, Arrival, Leaving};
use super::{TripleFault, debug};

/// Source of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// A processor exception, INT1, or an external interrupt: no check of the gate's DPL, EXT is set.
    Hardware,
    /// INT n, INT3, INTO.
    Software,
}

/// One event to deliver.
#[derive(Debug, Clone, Copy)]
pub struct Event {
    /// Vector.
    pub vector: u8,
    /// Error code to push.
    pub error: Option<u32>,
    /// Source of the event.
    pub source: Source,
    /// The instruction pointer to push.
    pub rip: u64,
    /// RFLAGS.RF in the pushed image: set for faults.
    pub resume: bool,
}

struct Gate {
    selector: u16,
    offset: u64,
    /// Size of the gate in bytes: of 16, 32 or 64 bits.
    size: u64,
    interrupt: bool,
    ist: u64,
    /// Whether it is a task gate. Then only `selector` counts of the rest.
    task: bool,
}

/// Tries to deliver an event. On `Err` only memory below the stack has changed, and `cpu.exception` says what happened.
pub fn deliver(cpu: &mut Cpu, event: Event) -> Result<Arrival, Fault> {
    let from = debug::linear_ip(cpu, event.rip);
    let arrival = deliver_by_mode(cpu, event)?;
    debug::record_interrupt(cpu, from);
    Ok(arrival)
}

fn deliver_by_mode(cpu: &mut Cpu, event: Event) -> Result<Arrival, Fault> {
    if is_real(cpu) {
        return deliver_real(cpu, event).map(|()| Arrival::Whole);
    }
    let ext = u32::from(event.source == Source::Hardware);
    let gate = read_gate(cpu, event, ext)?;
    if gate.task {
        let leaving = Leaving { eip: event.rip, eflags: image(cpu, event) };
        let arrival = task::enter(cpu, gate.selector, leaving, event.error, ext)?;
        go(cpu, cpu.next_rip);
        return Ok(arrival);
    }
    deliver_through(cpu, event, &gate, ext).map(|()| Arrival::Whole)
}

/// Delivers through an interrupt or trap gate.
fn deliver_through(cpu: &mut Cpu, event: Event, gate: &Gate, ext: u32) -> Result<(), Fault> {
    if is_null(gate.selector) {
        return Err(cpu.general_protection(ext));
    }
    let mut code = read_descriptor(cpu, gate.selector, 13, ext)?;
    let long = is_long_mode(cpu);
    let mode = code.segment.attr & (attr::L | attr::DB);
    if !code.segment.is_code() || code.segment.dpl() > cpu.cpl || (long && mode != attr::L) {
        return Err(selector_fault(cpu, 13, gate.selector, ext));
    }
    if !code.segment.present() {
        return Err(selector_fault(cpu, 11, gate.selector, ext));
    }
    let level = if code.segment.is_conforming() { cpu.cpl } else { code.segment.dpl() };
    if is_vm86(cpu) && level != 0 {
        return Err(selector_fault(cpu, 13, gate.selector, ext));
    }
    check_target(cpu, &code.segment, gate.offset, ext)?;
    let stack = if long { push_long(cpu, event, gate, level, ext)? } else { push_legacy(cpu, event, gate, level, ext)? };
    // This is the last step that can fault. The frame above is below the old stack pointer, or on another stack.
    mark_accessed(cpu, &mut code)?;
    if is_vm86(cpu) {
        for which in [ES, DS, FS, GS] {
            cpu.segs[which] = Segment::default();
        }
    }
    cpu.rflags &= !(rflags::TF | rflags::VM | rflags::RF | rflags::NT);
    if gate.interrupt {
        cpu.rflags &= !rflags::IF;
    }
    if level != cpu.cpl {
        cpu.segs[SS] = stack.segment;
    }
    set_cs(cpu, code.segment, level);
    stack.commit(cpu);
    go(cpu, gate.offset);
    Ok(())
}

/// Sets the instruction pointer, for the dispatcher and for an op that is running.
fn go(cpu: &mut Cpu, rip: u64) {
    cpu.regs[RIP] = rip;
    cpu.next_rip = rip;
    cpu.interrupt_shadow = false;
    cpu.no_step_trap = true;
}

fn deliver_real(cpu: &mut Cpu, event: Event) -> Result<(), Fault> {
    let entry = u64::from(event.vector) * 4;
    if entry + 3 > u64::from(cpu.sys.idt_limit) {
        return Err(cpu.general_protection(0));
    }
    let vector = mmu::load_system::<u32>(cpu, cpu.sys.idt_base.wrapping_add(entry) & 0xffff_ffff)?;
    let mut stack = Stack::current(cpu);
    let flags = cpu.rflags_value();
    stack.push(cpu, 2, flags)?;
    stack.push(cpu, 2, u64::from(cpu.segs[CS].selector))?;
    stack.push(cpu, 2, event.rip)?;
    stack.commit(cpu);
    cpu.rflags &= !(rflags::IF | rflags::TF | rflags::AC | rflags::RF);
    mmu::select_bank(cpu);
    let selector = (vector >> 16) as u16;
    cpu.segs[CS].selector = selector;
    cpu.segs[CS].base = u64::from(selector) << 4;
    go(cpu, u64::from(vector & 0xffff));
    Ok(())
}

fn read_gate(cpu: &mut Cpu, event: Event, ext: u32) -> Result<Gate, Fault> {
    let long = is_long_mode(cpu);
    let entry_bytes = if long { 16 } else { 8 };
    let offset = u64::from(event.vector) * entry_bytes;
    // The error code: the entry's index, IDT, EXT.
    let error = u32::from(event.vector) * 8 | 2 | ext;
    if offset + entry_bytes - 1 > u64::from(cpu.sys.idt_limit) {
        return Err(cpu.general_protection(error));
    }
    let addr = cpu.sys.idt_base.wrapping_add(offset);
    let raw = mmu::load_system::<u64>(cpu, addr)?;
    let high = if long { mmu::load_system::<u64>(cpu, addr.wrapping_add(8))? & 0xffff_ffff } else { 0 };
    let size = match raw >> 40 & 0x1f {
        0xe | 0xf if long => 8,
        0xe | 0xf => 4,
        6 | 7 if !long => 2,
        5 if !long => 0,
        _ => return Err(cpu.general_protection(error)),
    };
    if event.source == Source::Software && ((raw >> 45 & 3) as u8) < cpu.cpl {
        return Err(cpu.general_protection(error));
    }
    if raw >> 47 & 1 == 0 {
        return Err(cpu.raise(11, Some(error)));
    }
    let low = if size == 2 { raw & 0xffff } else { raw & 0xffff | raw >> 32 & 0xffff_0000 };
    Ok(Gate {
        selector: (raw >> 16) as u16,
        offset: low | high << 32,
        size,
        interrupt: raw >> 40 & 1 == 0,
        ist: if long { raw >> 32 & 7 } else { 0 },
        task: size == 0,
    })
}

fn image(cpu: &Cpu, event: Event) -> u64 {
    let flags = cpu.rflags_value() & !rflags::RF;
    if event.resume { flags | rflags::RF } else { flags }
}

fn push_long(cpu: &mut Cpu, event: Event, gate: &Gate, level: u8, ext: u32) -> Result<Stack, Fault> {
    let sp = if gate.ist != 0 {
        long_stack_pointer(cpu, 0x1c + 8 * gate.ist, ext)?
    } else if level != cpu.cpl {
        long_stack_pointer(cpu, 4 + 8 * u64::from(level), ext)?
    } else {
        // In compatibility mode the stack segment's size truncates the stack pointer.
        Stack::current(cpu).sp
    };
    let mut stack = Stack::long(null_stack(level), sp & !0xf, level, ext);
    let mut words = [0u64; 6];
    words[0] = u64::from(cpu.segs[SS].selector);
    words[1] = cpu.regs[4];
    words[2] = image(cpu, event);
    words[3] = u64::from(cpu.segs[CS].selector);
    words[4] = event.rip;
    let mut count = 5;
    if let Some(error) = event.error {
        words[5] = u64::from(error);
        count = 6;
    }
    for word in &words[..count] {
        stack.push(cpu, 8, *word)?;
    }
    Ok(stack)
}

fn push_legacy(cpu: &mut Cpu, event: Event, gate: &Gate, level: u8, ext: u32) -> Result<Stack, Fault> {
    let mut stack = if level != cpu.cpl {
        let mut inner = inner_stack(cpu, level, ext)?;
        if is_vm86(cpu) {
            for which in [GS, FS, DS, ES] {
                inner.push(cpu, gate.size, u64::from(cpu.segs[which].selector))?;
            }
        }
        inner.push(cpu, gate.size, u64::from(cpu.segs[SS].selector))?;
        inner.push(cpu, gate.size, cpu.regs[4])?;
        inner
    } else {
        Stack::current(cpu)
    };
    stack.push(cpu, gate.size, image(cpu, event))?;
    stack.push(cpu, gate.size, u64::from(cpu.segs[CS].selector))?;
    stack.push(cpu, gate.size, event.rip)?;
    if let Some(error) = event.error {
        stack.push(cpu, gate.size, u64::from(error))?;
    }
    Ok(stack)
}

#[derive(PartialEq, Eq)]
enum Class {
    Benign,
    Contributory,
    PageFault,
}

fn class(vector: u8) -> Class {
    match vector {
        0 | 10..=13 => Class::Contributory,
        14 => Class::PageFault,
        _ => Class::Benign,
    }
}

/// Combines a second exception with the delivery of a first one (SDM vol. 3 table 6-5).
fn combine(first: u8, second: Exception) -> Result<Exception, TripleFault> {
    let (a, b) = (class(first), class(second.vector));
    if first == 8 && b != Class::Benign {
        return Err(TripleFault);
    }
    let double = match a {
        Class::Benign => false,
        Class::Contributory => b == Class::Contributory,
        Class::PageFault => b != Class::Benign,
    };
    Ok(if double { Exception { vector: 8, error: Some(0), cr2: 0 } } else { second })
}

/// Delivers the exception in `cpu.exception`, and all that its delivery raises.
fn deliver_chain(cpu: &mut Cpu) -> Result<(), TripleFault> {
    let mut exception = cpu.exception;
    // Serial deliveries end: each makes the stack or the tables fault at another place, or becomes #DF.
    for _ in 0..8 {
        let vector = exception.vector;
        match vector {
            14 => cpu.sys.cr2 = exception.cr2,
            1 => {
                // Report what MOV SS held off, if the instruction after it raised #DB itself.
                debug::report_held(cpu);
                cpu.sys.dr[7] &= !dr::DR7_GD;
                cpu.sys.debug_ctl &= !debug_ctl::UNTIL_DEBUG;
            }
            _ => {}
        }
        // #DB as a trap, #BP and #OF do not resume; nor do the aborts.
        let resume = !matches!(vector, 1 | 3 | 4 | 8 | 18);
        let error = if is_real(cpu) { None } else { exception.error };
        let event = Event { vector, error, source: Source::Hardware, rip: cpu.regs[RIP], resume };
        if deliver(cpu, event) == Ok(Arrival::Whole) {
            return Ok(());
        }
        // It was not delivered, or it was delivered in the task that was switched to. Then RIP is the new task's.
        let second = cpu.exception;
        if second.vector == 14 {
            cpu.sys.cr2 = second.cr2;
        }
        exception = combine(vector, second)?;
    }
    Err(TripleFault)
}

/// Delivers `cpu.exception` through the IDT (with #DF and triple fault). `regs[RIP]` is the faulting instruction.
pub fn deliver_exception(cpu: &mut Cpu) -> Result<(), TripleFault> {
    deliver_chain(cpu)
}

fn deliver_external(cpu: &mut Cpu, vector: u8) -> Result<(), TripleFault> {
    let event = Event { vector, error: None, source: Source::Hardware, rip: cpu.regs[RIP], resume: false };
    match deliver(cpu, event) {
        Ok(Arrival::Whole) => Ok(()),
        // An interrupt is benign: an exception that its delivery raises is delivered instead, or in the task that it
        // went to.
        Ok(Arrival::Faulted) | Err(Fault) => deliver_chain(cpu),
    }
}

/// Delivers an external interrupt that has been acknowledged. `regs[RIP]` is the instruction to return to.
pub fn deliver_interrupt(cpu: &mut Cpu, vector: u8) -> Result<(), TripleFault> {
    deliver_external(cpu, vector)
}

/// Delivers an NMI. Others are held off until IRET.
pub fn deliver_nmi(cpu: &mut Cpu) -> Result<(), TripleFault> {
    cpu.nmi_blocked = true;
    deliver_external(cpu, 2)
}
