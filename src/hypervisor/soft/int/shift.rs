//! SHL, SHR, SAR, ROL, ROR, RCL, RCR, SHLD, SHRD.
//!
//! SDM vol. 2. OF is computed as the manual defines it for a count of one, for every count; AF is undefined; shifts
//! clear it here.
#![allow(unsafe_code)]

use iced_x86::{Instruction, Mnemonic as M};

use super::alu::result_flags;
use super::half::{Shift, single};
use super::operand;
use super::word::{Int, bytes_of, get, mask_of, read_rm_for_write, reg, set, write_rm};
use crate::hypervisor::soft::cpu::{Cpu, Fault, rflags};
use crate::hypervisor::soft::flags::{FlagKind, LazyFlags};
use crate::hypervisor::soft::int::word::{by_wide, by_width};
use crate::hypervisor::soft::lower::{Builder, Flow};
use crate::hypervisor::soft::op::called_op;
use crate::hypervisor::soft::op::{Handler, Op, next};

/// Kinds of shifts, as constants for handlers.
pub const ROL: u8 = 0;
#[allow(missing_docs)]
pub const ROR: u8 = 1;
#[allow(missing_docs)]
pub const RCL: u8 = 2;
#[allow(missing_docs)]
pub const RCR: u8 = 3;
#[allow(missing_docs)]
pub const SHL: u8 = 4;
#[allow(missing_docs)]
pub const SHR: u8 = 5;
#[allow(missing_docs)]
pub const SAR: u8 = 7;

/// Returns the result and the carry of SHL, SHR, SAR for a count of 1 to 63.
#[inline(always)]
fn shifted<T: Int>(kind: u8, a: T, count: u32) -> (u64, bool, bool) {
    let bits = T::BITS;
    let top = |v: u64| v >> (bits - 1) & 1 != 0;
    match kind {
        SHL => {
            // 8- and 16-bit operands may be shifted by more than they are wide.
            let wide = (a.wide() as u128) << count;
            let r = T::cut(wide as u64).wide();
            let cf = wide >> bits & 1 != 0;
            (r, cf, top(r) != cf)
        }
        SHR => {
            let r = a.wide() >> count;
            (r, a.wide() >> (count - 1) & 1 != 0, top(a.wide()))
        }
        _ => {
            let r = T::cut((a.signed() >> count) as u64).wide();
            (r, a.signed() >> (count - 1) & 1 != 0, false)
        }
    }
}

/// Returns the result of a shift of any width, or of a rotation of 32 or 64 bits, without flags. The count was cut to
/// the operand's width.
#[inline(always)]
pub fn quietly<T: Int, const S: u8>(a: T, count: u32) -> T {
    T::cut(match S {
        ROL | ROR => {
            let left = if S == ROL { count } else { T::BITS - count };
            if T::BITS == 32 { u64::from((a.wide() as u32).rotate_left(left)) } else { a.wide().rotate_left(left) }
        }
        SHL => a.wide() << (count & 63),
        SHR => a.wide() >> (count & 63),
        _ => (a.signed() >> (count & 63)) as u64,
    })
}

/// Shifts `dst` by `imm`, which is not zero.
unsafe extern "C" fn shift_ri<T: Int, const S: u8>(cpu: *mut Cpu, op: *const Op) -> *const Op {
    // SAFETY: handlers get live, unaliased pointers and an op that their lowering made, not the last of its block.
    unsafe {
        let count = (*op).imm as u32 & if T::BITS == 64 { 63 } else { 31 };
        let (r, cf, of) = shifted::<T>(S, get::<T>(cpu, (*op).dst), count);
        shift_flags::<T>(cpu, r, cf, of);
        set::<T>(cpu, (*op).dst, T::cut(r));
        next(cpu, op)
    }
}

/// Shifts `dst` by CL.
unsafe extern "C" fn shift_rc<T: Int, const S: u8, const F: bool>(cpu: *mut Cpu, op: *const Op) -> *const Op {
    // SAFETY: as above.
    unsafe {
        let a = get::<T>(cpu, (*op).dst);
        let count = get::<u8>(cpu, 8) as u32 & if T::BITS == 64 { 63 } else { 31 };
        let mut r = a.wide();
        if count != 0 {
            let (shifted, cf, of) = shifted::<T>(S, a, count);
            if F {
                shift_flags::<T>(cpu, shifted, cf, of);
            }
            r = shifted;
        }
        set::<T>(cpu, (*op).dst, T::cut(r));
        next(cpu, op)
    }
}

/// Executes ROL and ROR of `dst` by `imm`, which is not zero.
unsafe extern "C" fn rotate_ri<T: Int, const S: u8>(cpu: *mut Cpu, op: *const Op) -> *const Op {
    // SAFETY: as above.
    unsafe {
        let r = quietly::<T, S>(get::<T>(cpu, (*op).dst), (*op).imm as u32);
        rotate_flags(&mut *cpu, S, r.wide(), T::BITS);
        set::<T>(cpu, (*op).dst, r);
        next(cpu, op)
    }
}

#[inline(always)]
unsafe fn shift_flags<T: Int>(cpu: *mut Cpu, r: u64, cf: bool, of: bool) {
    let f = result_flags::<T>(r) | if cf { rflags::CF } else { 0 } | if of { rflags::OF } else { 0 };
    // SAFETY: the caller is a handler.
    unsafe { (*cpu).flags = LazyFlags { kind: FlagKind::Raw as u32, b: 0, result: f } };
}

/// Sets CF and OF of a rotation. The other flags stay.
fn rotate_flags(cpu: &mut Cpu, kind: u8, r: u64, bits: u32) {
    let top = r >> (bits - 1) & 1;
    let (cf, of) = if kind == ROL { (r & 1, (r & 1) ^ top) } else { (top, top ^ (r >> (bits - 2) & 1)) };
    set_cf_of(cpu, cf != 0, of != 0);
}

fn set_cf_of(cpu: &mut Cpu, cf: bool, of: bool) {
    let mut f = cpu.flags.value() & !(rflags::CF | rflags::OF);
    if cf {
        f |= rflags::CF;
    }
    if of {
        f |= rflags::OF;
    }
    cpu.flags = LazyFlags::raw(f);
}

/// Executes any of the eight, in any form. Ops without `scale` have the kind in `src`, and the count in `imm`, or -1
/// there for CL.
fn shift_any(cpu: &mut Cpu, op: &Op) -> Result<(), Fault> {
    let bytes = bytes_of(op);
    let bits = bytes * 8;
    let count = if op.imm == u64::MAX { cpu.regs[1] & 0xff } else { op.imm };
    let count = count as u32 & if bytes == 8 { 63 } else { 31 };
    let a = read_rm_for_write(cpu, op)?;
    if count == 0 {
        // This is still a write for memory, and for a 32-bit register.
        return write_rm(cpu, op, a);
    }
    match op.src {
        ROL | ROR => {
            let left = if op.src == ROL { count % bits } else { (bits - count % bits) % bits };
            let r = if left == 0 { a } else { (a << left | a >> (bits - left)) & mask_of(bytes) };
            write_rm(cpu, op, r)?;
            rotate_flags(cpu, op.src, r, bits);
        }
        RCL | RCR => {
            // A rotation of bits + 1 places, the carry on top.
            let places = bits + 1;
            let count = count % places;
            let whole = u128::from(a) | u128::from(cpu.flags.cf()) << bits;
            let left = if op.src == RCL { count } else { places - count };
            let mask = (1u128 << places) - 1;
            let turned = if count == 0 { whole } else { (whole << left | whole >> (places - left)) & mask };
            let r = turned as u64 & mask_of(bytes);
            let cf = turned >> bits & 1 != 0;
            let top = r >> (bits - 1) & 1 != 0;
            let of = if op.src == RCL { top != cf } else { top != (r >> (bits - 2) & 1 != 0) };
            write_rm(cpu, op, r)?;
            set_cf_of(cpu, cf, of);
        }
        kind => {
            let (r, cf, of) = match bytes {
                1 => shifted::<u8>(kind, a as u8, count),
                2 => shifted::<u16>(kind, a as u16, count),
                4 => shifted::<u32>(kind, a as u32, count),
                _ => shifted::<u64>(kind, a, count),
            };
            write_rm(cpu, op, r)?;
            set_shift_flags(cpu, bytes, r, cf, of);
        }
    }
    Ok(())
}

fn set_shift_flags(cpu: &mut Cpu, bytes: u32, r: u64, cf: bool, of: bool) {
    // SAFETY: `cpu` is a live reference.
    unsafe {
        match bytes {
            1 => shift_flags::<u8>(cpu, r, cf, of),
            2 => shift_flags::<u16>(cpu, r, cf, of),
            4 => shift_flags::<u32>(cpu, r, cf, of),
            _ => shift_flags::<u64>(cpu, r, cf, of),
        }
    }
}

/// Executes SHLD (`LEFT`) and SHRD. The count is as in `shift_any`.
fn double_shift<const LEFT: bool>(cpu: &mut Cpu, op: &Op) -> Result<(), Fault> {
    let bytes = bytes_of(op);
    let bits = bytes * 8;
    let count = if op.imm == u64::MAX { cpu.regs[1] & 0xff } else { op.imm };
    let count = count as u32 & if bytes == 8 { 63 } else { 31 };
    let a = read_rm_for_write(cpu, op)?;
    if count == 0 {
        return write_rm(cpu, op, a);
    }
    let b = reg(cpu, op.src, bytes);
    // For 16 bits a count above 16 is undefined; processors then continue with the first operand's bits again.
    let (whole, r, cf);
    if LEFT {
        whole = (u128::from(a) << bits | u128::from(b)) << if bytes == 2 { 16 } else { 0 }
            | if bytes == 2 { u128::from(a) } else { 0 };
        let width = if bytes == 2 { 48 } else { 2 * bits };
        r = (whole >> (width - bits - count.min(width - bits))) as u64 & mask_of(bytes);
        cf = whole >> (width - count) & 1 != 0;
    } else {
        whole = u128::from(a) | u128::from(b) << bits | if bytes == 2 { u128::from(a) << 32 } else { 0 };
        r = (whole >> count) as u64 & mask_of(bytes);
        cf = whole >> (count - 1) & 1 != 0;
    }
    let of = (a ^ r) >> (bits - 1) & 1 != 0;
    write_rm(cpu, op, r)?;
    set_shift_flags(cpu, bytes, r, cf, of);
    Ok(())
}

/// Lowers this file's instructions.
pub fn lower(insn: &Instruction, b: &mut Builder) -> Option<Flow> {
    let kind = match insn.mnemonic() {
        M::Rol => ROL,
        M::Ror => ROR,
        M::Rcl => RCL,
        M::Rcr => RCR,
        M::Shl | M::Sal => SHL,
        M::Shr => SHR,
        M::Sar => SAR,
        M::Shld | M::Shrd => {
            let handler =
                if insn.mnemonic() == M::Shld { called_op!(double_shift::<true>) } else { called_op!(double_shift::<false>) };
            let mut op = b.called_rm(insn, handler, true);
            if !operand::is_immediate(insn, 2) {
                op.imm = u64::MAX;
            }
            b.push(op);
            return Some(Flow::Next);
        }
        _ => return None,
    };
    let by_imm = operand::is_immediate(insn, 1);
    let bytes = operand::size(insn, 0);
    let count = if by_imm { operand::immediate(insn, 1) & if bytes == 8 { 63 } else { 31 } } else { 0 };
    let in_register = !operand::in_memory(insn, 0);
    if in_register
        && by_imm
        && count != 0
        && let Some((full, quiet)) = immediate_handlers(kind, bytes, count)
    {
        let mut op = b.op(full);
        (op.dst, op.imm) = (operand::register(insn.op0_register()), count);
        b.push_flagged(op, quiet);
        b.new_flags_kind = Some(FlagKind::Raw as u32);
        return Some(Flow::Next);
    }
    if in_register
        && !by_imm
        && let Some((full, quiet)) = cl_handlers(kind, bytes)
    {
        let mut op = b.op(full);
        op.dst = operand::register(insn.op0_register());
        b.push_flagged(op, quiet);
        return Some(Flow::Next);
    }
    let mut op = b.called_rm(insn, called_op!(shift_any), true);
    // This also holds where the decoder knows that the flags stay as they are (RCL and RCR by a full turn): they change
    // their kind.
    b.flags_kind = None;
    op.src = kind;
    op.imm = if by_imm { count } else { u64::MAX };
    b.push(op);
    Some(Flow::Next)
}

/// Returns two handlers: one that sets the flags and one that does not.
fn immediate_handlers(kind: u8, bytes: u32, count: u64) -> Option<(Handler, Handler)> {
    macro_rules! both {
        ($by:ident, $handler:ident, $s:ident) => {
            Some(($by!(bytes, T => $handler::<T, $s>), $by!(bytes, T => single::<Shift<T, $s>>)))
        };
    }
    match kind {
        SHL => both!(by_width, shift_ri, SHL),
        SHR => both!(by_width, shift_ri, SHR),
        SAR => both!(by_width, shift_ri, SAR),
        ROL if bytes >= 4 && count != 0 => both!(by_wide, rotate_ri, ROL),
        ROR if bytes >= 4 && count != 0 => both!(by_wide, rotate_ri, ROR),
        _ => None,
    }
}

fn cl_handlers(kind: u8, bytes: u32) -> Option<(Handler, Handler)> {
    if bytes < 4 {
        return None;
    }
    match kind {
        SHL => Some((by_wide!(bytes, T => shift_rc::<T, SHL, true>), by_wide!(bytes, T => shift_rc::<T, SHL, false>))),
        SHR => Some((by_wide!(bytes, T => shift_rc::<T, SHR, true>), by_wide!(bytes, T => shift_rc::<T, SHR, false>))),
        SAR => Some((by_wide!(bytes, T => shift_rc::<T, SAR, true>), by_wide!(bytes, T => shift_rc::<T, SAR, false>))),
        _ => None,
    }
}
