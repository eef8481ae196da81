//! Address micro-ops: they compute an address for which base, index and displacement alone are not enough.
#![allow(unsafe_code)]

use crate::hypervisor::soft::cpu::{Cpu, FS, Fault, GS, SS, TMP};
use crate::hypervisor::soft::lower::Mode;
use crate::hypervisor::soft::op::{Op, leave_with_exception, next};

/// Returns the effective address of an address op, before truncation.
#[inline(always)]
fn effective(cpu: &Cpu, op: &Op) -> u64 {
    op.addr(cpu).wrapping_add(op.imm)
}

/// Adds the FS base to the effective address.
pub unsafe extern "C" fn address_of_fs(cpu: *mut Cpu, op: *const Op) -> *const Op {
    // SAFETY: handlers get live pointers; an address op is never the last of its block.
    unsafe {
        (*cpu).regs[TMP] = effective(&*cpu, &*op).wrapping_add((*cpu).segs[FS].base);
        next(cpu, op)
    }
}
/// Adds the GS base to the effective address.
pub unsafe extern "C" fn address_of_gs(cpu: *mut Cpu, op: *const Op) -> *const Op {
    // SAFETY: as above.
    unsafe {
        (*cpu).regs[TMP] = effective(&*cpu, &*op).wrapping_add((*cpu).segs[GS].base);
        next(cpu, op)
    }
}
/// Computes an address in 64-bit mode: with a truncated effective address, with or without a segment base.
pub unsafe extern "C" fn address_in_long_mode(cpu: *mut Cpu, op: *const Op) -> *const Op {
    // SAFETY: as above.
    unsafe {
        let mut addr = effective(&*cpu, &*op);
        if (*op).dst == 32 {
            addr &= 0xffff_ffff;
        }
        if (*op).src as usize >= FS {
            addr = addr.wrapping_add((*cpu).segs[(*op).src as usize & 7].base);
        }
        (*cpu).regs[TMP] = addr;
        next(cpu, op)
    }
}
/// Computes a 32-bit address in a flat segment. (An operand that extends beyond 4 GiB is beyond the limit. Whether that
/// faults is the processor's choice, SDM vol. 3 section 5.3; it does here and on AMD's processors.)
pub unsafe extern "C" fn address_flat32(cpu: *mut Cpu, op: *const Op) -> *const Op {
    // SAFETY: as above.
    unsafe {
        let addr = effective(&*cpu, &*op) & 0xffff_ffff;
        if addr + u64::from((*op).aux & 0xffff) > 1 << 32 {
            return address_behind_limit(cpu, op);
        }
        (*cpu).regs[TMP] = addr;
        next(cpu, op)
    }
}
#[cold]
#[inline(never)]
unsafe extern "C" fn address_behind_limit(cpu: *mut Cpu, op: *const Op) -> *const Op {
    // SAFETY: as above; the check fails.
    unsafe {
        if address_checked(&mut *cpu, &*op).is_err() {
            return leave_with_exception(cpu, op);
        }
        next(cpu, op)
    }
}
/// Computes an address outside 64-bit mode, with any segment: the body of a called op.
pub fn address_checked(cpu: &mut Cpu, op: &Op) -> Result<(), Fault> {
    let mask = if op.dst == 16 { 0xffff } else { 0xffff_ffff };
    let offset = effective(cpu, op) & mask;
    let size = u64::from(op.aux & 0xffff);
    cpu.regs[TMP] = segment_address(cpu, op.src as usize & 7, offset, size, op.aux >> 16 != 0)?;
    Ok(())
}

/// Returns the linear address of `bytes` at `offset` in a segment, outside 64-bit mode, after the checks of type and
/// limit (SDM vol. 3 sections 5.3 and 5.5): #SS(0) for the stack segment, otherwise #GP(0).
pub fn segment_address(cpu: &mut Cpu, segment: usize, offset: u64, bytes: u64, write: bool) -> Result<u64, Fault> {
    let s = &cpu.segs[segment];
    let kind = s.attr & 0xf;
    let code = kind & 8 != 0;
    // In real mode a segment has no type: code may store through CS. (In virtual-8086 mode all segments are data.)
    let allowed =
        s.attr & 0x80 != 0 && if write { !code && kind & 2 != 0 } else { !code || kind & 2 != 0 } || cpu.mode.has(Mode::REAL);
    let last = offset + bytes.max(1) - 1;
    let inside = if !code && kind & 4 != 0 {
        // In an expand-down segment the valid offsets lie above the limit.
        let top = if s.attr & (1 << 14) != 0 { 0xffff_ffff } else { 0xffff };
        offset > u64::from(s.limit) && last <= top
    } else {
        last <= u64::from(s.limit)
    };
    if allowed && inside {
        return Ok(s.base.wrapping_add(offset) & 0xffff_ffff);
    }
    Err(cpu.raise(if segment == SS { 12 } else { 13 }, Some(0)))
}
