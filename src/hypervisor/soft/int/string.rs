//! MOVS, STOS, LODS, SCAS, CMPS with their repeat prefixes.
//!
//! SDM vol. 2 (REP). A repeated instruction runs in pieces: each piece ends at a page's end or after [`PIECE`] bytes,
//! with the registers as if an interrupt had come between two iterations. If the budget is then used up, the chain is
//! left at the instruction itself. Forward MOVS and STOS copy and fill a piece at once where both pages are plain
//! memory.
//!
//! **Hostile guest**: a piece is bounded, and its bytes are charged to the budget: 32 count as one instruction.
#![allow(unsafe_code)]

use iced_x86::{Instruction, Mnemonic as M, OpKind, Register};

use super::address::segment_address;
use super::word::{load_bytes, mask_of, reg, set_reg, store_bytes};
use crate::hypervisor::soft::cpu::{Cpu, ES, FS, Fault, Leave, RIP, rflags};
use crate::hypervisor::soft::flags::{FlagKind, LazyFlags};
use crate::hypervisor::soft::lower::{Builder, Flow, Mode, segment_index};
use crate::hypervisor::soft::mmu;
use crate::hypervisor::soft::op::{Handler, Op, called_op, leave_behind, leave_with_exception, next};

const RCX: u8 = 1;
const RSI: u8 = 6;
const RDI: u8 = 7;
/// Maximum number of bytes of one piece.
const PIECE: u64 = 4096;
/// Maximum number of iterations of a piece that runs element by element.
const STEPS: u64 = 256;
const PAGE: u64 = 4096;

const MOVS: u8 = 0;
const STOS: u8 = 1;
const LODS: u8 = 2;
const SCAS: u8 = 3;
const CMPS: u8 = 4;

const NO_REP: u8 = 0;
const REP: u8 = 1;
const REPNE: u8 = 2;

/// The form of a string op, from the op's fields.
struct Form {
    /// Bytes of an element.
    bytes: u32,
    /// Bytes of the index and count registers.
    width: u32,
    /// Segment of the source.
    segment: usize,
    /// Runs one iteration only, for a single step.
    single: bool,
}

fn form(op: &Op) -> Form {
    Form { bytes: u32::from(op.dst), width: u32::from(op.scale), segment: op.src as usize & 7, single: op.imm != 0 }
}

/// Progress of a repeated instruction.
#[derive(PartialEq, Eq)]
enum Progress {
    Done,
    More,
}

/// Returns the linear address of `bytes` at `offset` of a segment, in any mode.
pub fn linear(cpu: &mut Cpu, segment: usize, offset: u64, bytes: u64, write: bool) -> Result<u64, Fault> {
    if cpu.mode.is_64bit() {
        return Ok(if segment >= FS { cpu.segs[segment].base.wrapping_add(offset) } else { offset });
    }
    segment_address(cpu, segment, offset, bytes, write)
}

fn step(cpu: &mut Cpu, register: u8, width: u32, by: u64) {
    let v = reg(cpu, register, width).wrapping_add(by);
    set_reg(cpu, register, width, v);
}

/// Runs one iteration. If both operands would fault, CMPS reports the one at ES:rDI, as AMD's processors do; the
/// manuals do not define it.
fn iterate(cpu: &mut Cpu, f: &Form, kind: u8) -> Result<(), Fault> {
    let size = u64::from(f.bytes);
    let by = if cpu.rflags & rflags::DF != 0 { 0u64.wrapping_sub(size) } else { size };
    let uses_source = matches!(kind, MOVS | LODS | CMPS);
    let uses_target = kind != LODS;
    let mut target = 0;
    if kind >= SCAS {
        let offset = reg(cpu, RDI, f.width);
        let addr = linear(cpu, ES, offset, size, false)?;
        target = load_bytes(cpu, addr, f.bytes)?;
    }
    let mut source = 0;
    if uses_source {
        let offset = reg(cpu, RSI, f.width);
        let addr = linear(cpu, f.segment, offset, size, false)?;
        source = load_bytes(cpu, addr, f.bytes)?;
    }
    match kind {
        MOVS | STOS => {
            let offset = reg(cpu, RDI, f.width);
            let addr = linear(cpu, ES, offset, size, true)?;
            let value = if kind == MOVS { source } else { reg(cpu, 0, f.bytes) };
            store_bytes(cpu, addr, f.bytes, value)?;
        }
        LODS => set_reg(cpu, 0, f.bytes, source),
        _ => {
            let a = if kind == SCAS { reg(cpu, 0, f.bytes) } else { source };
            let result = a.wrapping_sub(target) & mask_of(f.bytes);
            cpu.flags = LazyFlags { kind: FlagKind::Sub as u32 | f.bytes.trailing_zeros(), b: target, result };
        }
    }
    if uses_source {
        step(cpu, RSI, f.width, by);
    }
    if uses_target {
        step(cpu, RDI, f.width, by);
    }
    Ok(())
}

/// Runs one iteration, without a prefix.
fn once<const KIND: u8>(cpu: &mut Cpu, op: &Op) -> Result<(), Fault> {
    iterate(cpu, &form(op), KIND)
}

/// Returns how many elements may be done at once from `offset`: up to the end of the page and of the address space.
fn room(offset: u64, linear: u64, f: &Form) -> u64 {
    let page = PAGE - linear % PAGE;
    let wrap = mask_of(f.width).wrapping_sub(offset).saturating_add(1);
    page.min(wrap).min(PIECE) / u64::from(f.bytes)
}

/// Runs several elements of a forward MOVS or STOS. Returns how many it did, and 0 where they must be done one by one.
fn in_bulk(cpu: &mut Cpu, f: &Form, kind: u8, count: u64) -> Result<u64, Fault> {
    let size = u64::from(f.bytes);
    if cpu.rflags & rflags::DF != 0 || count < 2 || f.single {
        return Ok(0);
    }
    // What a segment refuses is left to the single iteration, which checks the source first.
    let to = reg(cpu, RDI, f.width);
    let Ok(to_linear) = linear(cpu, ES, to, size, true) else { return Ok(0) };
    let mut n = count.min(room(to, to_linear, f));
    let from = reg(cpu, RSI, f.width);
    let mut from_linear = 0;
    if kind == MOVS {
        let Ok(addr) = linear(cpu, f.segment, from, size, false) else { return Ok(0) };
        from_linear = addr;
        n = n.min(room(from, from_linear, f));
    }
    if n < 2 {
        return Ok(0);
    }
    let bytes = n * size;
    // The whole piece must be inside the limits; otherwise the iteration that is not raises the fault.
    if linear(cpu, ES, to, bytes, true).is_err() || (kind == MOVS && linear(cpu, f.segment, from, bytes, false).is_err()) {
        return Ok(0);
    }
    if kind == MOVS {
        let Some(source) = mmu::host_for_read(cpu, from_linear)? else { return Ok(0) };
        let Some(target) = mmu::host_for_write(cpu, to_linear)? else { return Ok(0) };
        // Filling the second page's entry may have evicted the first one's, but its memory stays. SAFETY: both pointers
        // are valid to the ends of their pages, and `room` ends the piece there.
        unsafe { copy_forward(source, target, bytes as usize, f.bytes as usize) };
        step(cpu, RSI, f.width, bytes);
    } else {
        let Some(target) = mmu::host_for_write(cpu, to_linear)? else { return Ok(0) };
        let value = reg(cpu, 0, f.bytes);
        // SAFETY: as above.
        unsafe { fill(target, value, n as usize, f.bytes) };
    }
    step(cpu, RDI, f.width, bytes);
    Ok(n)
}

/// Copies as if one element came after the other: where the target overlaps the source from above, the bytes repeat.
unsafe fn copy_forward(source: *const u8, target: *mut u8, bytes: usize, element: usize) {
    let distance = (target as usize).wrapping_sub(source as usize);
    // SAFETY: the caller's promise for both ranges.
    unsafe {
        if distance >= bytes {
            std::ptr::copy(source, target, bytes);
        } else if distance >= 8 && distance.is_multiple_of(8) && element <= 8 {
            let mut at = 0;
            while at + 8 <= bytes {
                target.add(at).cast::<u64>().write_unaligned(source.add(at).cast::<u64>().read_unaligned());
                at += 8;
            }
            while at < bytes {
                target.add(at).write(source.add(at).read());
                at += 1;
            }
        } else {
            let mut at = 0;
            while at < bytes {
                let mut buffer = [0u8; 8];
                std::ptr::copy_nonoverlapping(source.add(at), buffer.as_mut_ptr(), element);
                std::ptr::copy_nonoverlapping(buffer.as_ptr(), target.add(at), element);
                at += element;
            }
        }
    }
}

unsafe fn fill(target: *mut u8, value: u64, n: usize, bytes: u32) {
    // SAFETY: the caller's promise of `n * bytes` writable bytes.
    unsafe {
        if bytes == 1 || (value as u8 as u64).wrapping_mul(0x0101_0101_0101_0101) & mask_of(bytes) == value {
            std::ptr::write_bytes(target, value as u8, n * bytes as usize);
            return;
        }
        for i in 0..n {
            match bytes {
                2 => target.add(2 * i).cast::<u16>().write_unaligned(value as u16),
                4 => target.add(4 * i).cast::<u32>().write_unaligned(value as u32),
                _ => target.add(8 * i).cast::<u64>().write_unaligned(value),
            }
        }
    }
}

/// Runs a piece of a repeated instruction.
fn repeat(cpu: &mut Cpu, op: &Op, kind: u8, prefix: u8) -> Result<Progress, Fault> {
    let f = form(op);
    let count = reg(cpu, RCX, f.width);
    if count == 0 {
        return Ok(Progress::Done);
    }
    if kind <= STOS {
        let done = in_bulk(cpu, &f, kind, count)?;
        if done > 0 {
            set_reg(cpu, RCX, f.width, count - done);
            cpu.budget -= (done * u64::from(f.bytes) / 32) as i64;
            return Ok(if done == count { Progress::Done } else { Progress::More });
        }
    }
    let most = if f.single { 1 } else { STEPS };
    for _ in 0..most {
        iterate(cpu, &f, kind)?;
        let left = reg(cpu, RCX, f.width).wrapping_sub(1) & mask_of(f.width);
        set_reg(cpu, RCX, f.width, left);
        cpu.budget -= 1;
        let stop = kind >= SCAS && cpu.flags.zf() != (prefix == REP);
        if left == 0 || stop {
            return Ok(Progress::Done);
        }
        // The slow path wants attention, or forward MOVS and STOS may now continue in bulk.
        if cpu.leave_after_op || (kind <= STOS && cpu.rflags & rflags::DF == 0) {
            break;
        }
    }
    Ok(Progress::More)
}

/// Runs pieces until the instruction is done, faults, or must be interrupted.
unsafe extern "C" fn repeated<const KIND: u8, const PREFIX: u8>(cpu: *mut Cpu, op: *const Op) -> *const Op {
    // SAFETY: handlers get live, unaliased pointers; the op is not the last of its block.
    unsafe {
        loop {
            match repeat(&mut *cpu, &*op, KIND, PREFIX) {
                Err(Fault) => return leave_with_exception(cpu, op),
                Ok(Progress::Done) if (*cpu).leave_after_op => return leave_behind(cpu, op),
                Ok(Progress::Done) => return next(cpu, op),
                Ok(Progress::More) => {
                    if (*cpu).budget <= 0 || (*cpu).leave_after_op || (*op).imm != 0 {
                        return leave_at(cpu, op);
                    }
                }
            }
        }
    }
}

/// Leaves the chain before the instruction of `op`, to continue with it later.
#[cold]
unsafe extern "C" fn leave_at(cpu: *mut Cpu, op: *const Op) -> *const Op {
    // SAFETY: called by a handler with its pointers.
    unsafe {
        (*cpu).regs[RIP] = (*op).rip(&*cpu);
        (*cpu).leave = Leave::Jump;
    }
    std::ptr::null()
}

/// Lowers this file's instructions.
pub fn lower(insn: &Instruction, b: &mut Builder) -> Option<Flow> {
    let (kind, bytes) = match insn.mnemonic() {
        M::Movsb => (MOVS, 1),
        M::Movsw => (MOVS, 2),
        M::Movsd if is_string(insn) => (MOVS, 4),
        M::Movsq => (MOVS, 8),
        M::Stosb => (STOS, 1),
        M::Stosw => (STOS, 2),
        M::Stosd => (STOS, 4),
        M::Stosq => (STOS, 8),
        M::Lodsb => (LODS, 1),
        M::Lodsw => (LODS, 2),
        M::Lodsd => (LODS, 4),
        M::Lodsq => (LODS, 8),
        M::Scasb => (SCAS, 1),
        M::Scasw => (SCAS, 2),
        M::Scasd => (SCAS, 4),
        M::Scasq => (SCAS, 8),
        M::Cmpsb => (CMPS, 1),
        M::Cmpsw => (CMPS, 2),
        M::Cmpsd if is_string(insn) => (CMPS, 4),
        M::Cmpsq => (CMPS, 8),
        _ => return None,
    };
    let prefix = if insn.has_repne_prefix() {
        // Without a comparison both prefixes mean the same.
        if kind >= SCAS { REPNE } else { REP }
    } else if insn.has_rep_prefix() {
        REP
    } else {
        NO_REP
    };
    let mut op = b.op(handler(kind, prefix));
    op.dst = bytes;
    op.scale = index_bytes(insn);
    op.src = segment_index(insn.memory_segment()) as u8;
    op.imm = u64::from(b.mode.has(Mode::STEP));
    b.push(op);
    Some(Flow::Next)
}

/// Returns whether this is a string instruction. SSE2 has a MOVSD and a CMPSD too.
fn is_string(insn: &Instruction) -> bool {
    (0..insn.op_count())
        .all(|i| insn.op_kind(i) != OpKind::Register || insn.op_register(i) != Register::XMM0 && insn.op_register(i).is_gpr())
        && insn.is_string_instruction()
}

/// Returns the size of the index registers in bytes, which is the address size.
fn index_bytes(insn: &Instruction) -> u8 {
    for i in 0..insn.op_count() {
        match insn.op_kind(i) {
            OpKind::MemorySegSI | OpKind::MemoryESDI | OpKind::MemorySegDI => return 2,
            OpKind::MemorySegESI | OpKind::MemoryESEDI | OpKind::MemorySegEDI => return 4,
            _ => {}
        }
    }
    8
}

fn handler(kind: u8, prefix: u8) -> Handler {
    match (kind, prefix) {
        (MOVS, NO_REP) => called_op!(once::<MOVS>),
        (STOS, NO_REP) => called_op!(once::<STOS>),
        (LODS, NO_REP) => called_op!(once::<LODS>),
        (SCAS, NO_REP) => called_op!(once::<SCAS>),
        (_, NO_REP) => called_op!(once::<CMPS>),
        (MOVS, _) => repeated::<MOVS, REP>,
        (STOS, _) => repeated::<STOS, REP>,
        (LODS, _) => repeated::<LODS, REP>,
        (SCAS, REPNE) => repeated::<SCAS, REPNE>,
        (SCAS, _) => repeated::<SCAS, REP>,
        (_, REPNE) => repeated::<CMPS, REPNE>,
        _ => repeated::<CMPS, REP>,
    }
}
