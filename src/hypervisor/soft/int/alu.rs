//! Arithmetic and moves: the hot handlers of MOV, MOVZX, MOVSX, the ADD group, TEST, INC, DEC, NEG, NOT, CMOVcc and
//! SETcc, except for those that are one [`Half`](super::half).
//!
//! SDM vol. 2. Each handler is generic over operand width, over the address's shape and over [`Path`]; `F` says whether
//! it sets the flags.
#![allow(unsafe_code)]

use super::word::{Addr, Full, Int, Path, Slow, get, set, set_flags};
use crate::hypervisor::soft::cpu::{Cpu, rflags};
use crate::hypervisor::soft::flags::{FlagKind, LazyFlags};
use crate::hypervisor::soft::int::word::{soft_next, soft_read, soft_update, soft_write};
use crate::hypervisor::soft::op::{Op, next};

/// An operation with two operands.
pub trait Alu: 'static {
    /// Kind of the flags that it leaves.
    const KIND: FlagKind;
    /// Returns the result. Sets the flags if `F`.
    ///
    /// # Safety
    /// `cpu` is live.
    unsafe fn compute<T: Int, const F: bool>(cpu: *mut Cpu, a: T, b: T) -> T;
}

macro_rules! plain_alu {
    ($($name:ident $kind:ident |$a:ident, $b:ident| $e:expr;)*) => {$(
        #[doc = stringify!($name)]
        pub struct $name;
        impl Alu for $name {
            const KIND: FlagKind = FlagKind::$kind;
            #[inline(always)]
            unsafe fn compute<T: Int, const F: bool>(cpu: *mut Cpu, a: T, b: T) -> T {
                let ($a, $b) = (a.wide(), b.wide());
                let r = T::cut($e);
                if F {
                    // SAFETY: the caller's promise.
                    unsafe { set_flags::<T>(cpu, FlagKind::$kind, b.wide(), r.wide()) };
                }
                r
            }
        }
    )*};
}
plain_alu! {
    Add Add |a, b| a.wrapping_add(b);
    Sub Sub |a, b| a.wrapping_sub(b);
    And Logic |a, b| a & b;
    Or Logic |a, b| a | b;
    Xor Logic |a, b| a ^ b;
}

/// Returns ZF, SF and PF of a result.
#[inline(always)]
pub fn result_flags<T: Int>(r: u64) -> u64 {
    let mut f = 0;
    if T::cut(r).wide() == 0 {
        f |= rflags::ZF;
    }
    if r >> (T::BITS - 1) & 1 != 0 {
        f |= rflags::SF;
    }
    if (r as u8).count_ones() & 1 == 0 {
        f |= rflags::PF;
    }
    f
}

/// The operation ADC.
pub struct Adc;
impl Alu for Adc {
    const KIND: FlagKind = FlagKind::Raw;
    #[inline(always)]
    unsafe fn compute<T: Int, const F: bool>(cpu: *mut Cpu, a: T, b: T) -> T {
        // SAFETY: the caller's promise.
        unsafe {
            let carry = (*cpu).flags.cf() as u64;
            let (a, b) = (a.wide(), b.wide());
            let r = T::cut(a.wrapping_add(b).wrapping_add(carry)).wide();
            if F {
                let out = (a & b) | ((a | b) & !r);
                (*cpu).flags = LazyFlags { kind: 0, b: 0, result: carry_flags::<T>(a, b, r, out, (a ^ r) & (b ^ r)) };
            }
            T::cut(r)
        }
    }
}

/// The operation SBB.
pub struct Sbb;
impl Alu for Sbb {
    const KIND: FlagKind = FlagKind::Raw;
    #[inline(always)]
    unsafe fn compute<T: Int, const F: bool>(cpu: *mut Cpu, a: T, b: T) -> T {
        // SAFETY: the caller's promise.
        unsafe {
            let carry = (*cpu).flags.cf() as u64;
            let (a, b) = (a.wide(), b.wide());
            let r = T::cut(a.wrapping_sub(b).wrapping_sub(carry)).wide();
            if F {
                let out = (!a & b) | ((!a | b) & r);
                (*cpu).flags = LazyFlags { kind: 0, b: 0, result: carry_flags::<T>(a, b, r, out, (a ^ b) & (a ^ r)) };
            }
            T::cut(r)
        }
    }
}

/// Returns all flags of an addition or subtraction whose carries out of each bit are `out`.
#[inline(always)]
fn carry_flags<T: Int>(a: u64, b: u64, r: u64, out: u64, overflow: u64) -> u64 {
    let top = T::BITS - 1;
    let mut f = result_flags::<T>(r) | (out >> top & 1);
    if (a ^ b ^ r) & 0x10 != 0 {
        f |= rflags::AF;
    }
    if overflow >> top & 1 != 0 {
        f |= rflags::OF;
    }
    f
}

macro_rules! handlers {
    ($($(#[$doc:meta])* fn $name:ident [$($g:tt)*] ($cpu:ident, $op:ident) $body:block)*) => {$(
        $(#[$doc])*
        pub unsafe extern "C" fn $name<$($g)*>($cpu: *mut Cpu, $op: *const Op) -> *const Op {
            // SAFETY: handlers get live, unaliased pointers and an op that their lowering made; none of the ops here
            // is the last of its block.
            unsafe { $body }
        }
    )*};
}

handlers! {
    /// Does nothing.
    fn nop [] (cpu, op) { next(cpu, op) }

    /// Executes `dst = [mem]`: the slow path of [`Load`](super::half::Load).
    fn mov_rm [T: Int] (cpu, op) {
        let v = soft_read!(T, Slow, cpu, op, Full::addr(cpu, op), mov_rm::<T>);
        set::<T>(cpu, (*op).dst, v);
        soft_next!(Slow, cpu, op)
    }
    /// Executes `[mem] = src`: the slow path of [`Store`](super::half::Store).
    fn mov_mr [T: Int] (cpu, op) {
        let v = get::<T>(cpu, (*op).src);
        soft_write!(T, Slow, cpu, op, Full::addr(cpu, op), v, mov_mr::<T>);
        soft_next!(Slow, cpu, op)
    }
    /// Executes `[mem] = imm`.
    fn mov_mi [T: Int, A: Addr, P: Path] (cpu, op) {
        let addr = A::addr(cpu, op);
        soft_write!(T, P, cpu, op, addr, T::cut((*op).imm), mov_mi::<T, Full, Slow>);
        soft_next!(P, cpu, op)
    }
    /// Executes `dst = zero-extended [mem]`: the slow path of [`LoadExtend`](super::half::LoadExtend).
    fn movzx_rm [S: Int, D: Int] (cpu, op) {
        let v = soft_read!(S, Slow, cpu, op, Full::addr(cpu, op), movzx_rm::<S, D>);
        set::<D>(cpu, (*op).dst, D::cut(v.wide()));
        soft_next!(Slow, cpu, op)
    }
    /// Executes `dst = sign-extended [mem]`.
    fn movsx_rm [S: Int, D: Int, A: Addr, P: Path] (cpu, op) {
        let addr = A::addr(cpu, op);
        let v = soft_read!(S, P, cpu, op, addr, movsx_rm::<S, D, Full, Slow>);
        set::<D>(cpu, (*op).dst, D::cut(v.signed() as u64));
        soft_next!(P, cpu, op)
    }
    /// Executes `dst = dst o [mem]`. The slow path may end in an interrupt after the op, whose handler sees the flags.
    /// So the slow path always sets them.
    fn alu_rm [O: Alu, T: Int, A: Addr, P: Path, const F: bool] (cpu, op) {
        let addr = A::addr(cpu, op);
        let b = soft_read!(T, P, cpu, op, addr, alu_rm::<O, T, Full, Slow, true>);
        let r = O::compute::<T, F>(cpu, get::<T>(cpu, (*op).dst), b);
        set::<T>(cpu, (*op).dst, r);
        soft_next!(P, cpu, op)
    }
    /// Executes `[mem] = [mem] o src`.
    fn alu_mr [O: Alu, T: Int, A: Addr, P: Path] (cpu, op) {
        let addr = A::addr(cpu, op);
        soft_update!(T, P, cpu, op, addr, alu_mr::<O, T, Full, Slow>,
            |a| O::compute::<T, true>(cpu, a, get::<T>(cpu, (*op).src)));
        soft_next!(P, cpu, op)
    }
    /// Executes `[mem] = [mem] o imm`.
    fn alu_mi [O: Alu, T: Int, A: Addr, P: Path] (cpu, op) {
        let addr = A::addr(cpu, op);
        soft_update!(T, P, cpu, op, addr, alu_mi::<O, T, Full, Slow>,
            |a| O::compute::<T, true>(cpu, a, T::cut((*op).imm)));
        soft_next!(P, cpu, op)
    }

    /// Executes CMP of `dst` and memory.
    fn cmp_rm [O: Alu, T: Int, A: Addr, P: Path] (cpu, op) {
        let addr = A::addr(cpu, op);
        let b = soft_read!(T, P, cpu, op, addr, cmp_rm::<O, T, Full, Slow>);
        O::compute::<T, true>(cpu, get::<T>(cpu, (*op).dst), b);
        soft_next!(P, cpu, op)
    }
    /// Executes CMP or TEST of memory and `src`.
    fn cmp_mr [O: Alu, T: Int, A: Addr, P: Path] (cpu, op) {
        let addr = A::addr(cpu, op);
        let a = soft_read!(T, P, cpu, op, addr, cmp_mr::<O, T, Full, Slow>);
        O::compute::<T, true>(cpu, a, get::<T>(cpu, (*op).src));
        soft_next!(P, cpu, op)
    }
    /// Executes CMP or TEST of memory and `imm`.
    fn cmp_mi [O: Alu, T: Int, A: Addr, P: Path] (cpu, op) {
        let addr = A::addr(cpu, op);
        let a = soft_read!(T, P, cpu, op, addr, cmp_mi::<O, T, Full, Slow>);
        O::compute::<T, true>(cpu, a, T::cut((*op).imm));
        soft_next!(P, cpu, op)
    }
    /// Executes INC and DEC of a register.
    fn step_r [U: Unary, T: Int, const F: bool] (cpu, op) {
        let r = U::compute::<T, F>(cpu, get::<T>(cpu, (*op).dst));
        set::<T>(cpu, (*op).dst, r);
        next(cpu, op)
    }
    /// Executes INC, DEC, NEG and NOT of memory.
    fn step_m [U: Unary, T: Int, A: Addr, P: Path] (cpu, op) {
        let addr = A::addr(cpu, op);
        soft_update!(T, P, cpu, op, addr, step_m::<U, T, Full, Slow>, |a| U::compute::<T, true>(cpu, a));
        soft_next!(P, cpu, op)
    }

    /// Executes CMOVcc between registers. A 32-bit one clears the upper half in any case.
    fn cmov_rr [T: Int, const C: u8, const K: u32] (cpu, op) {
        let i = if holds::<C, K>(cpu) { (*op).src } else { (*op).dst };
        set::<T>(cpu, (*op).dst, get::<T>(cpu, i));
        next(cpu, op)
    }
    /// Executes CMOVcc from memory, which is read in any case.
    fn cmov_rm [T: Int, const C: u8, P: Path] (cpu, op) {
        let addr = Full::addr(cpu, op);
        let v = soft_read!(T, P, cpu, op, addr, cmov_rm::<T, C, Slow>);
        let v = if (*cpu).flags.condition(C) { v } else { get::<T>(cpu, (*op).dst) };
        set::<T>(cpu, (*op).dst, v);
        soft_next!(P, cpu, op)
    }
    /// Executes SETcc of a register.
    fn setcc_r [const C: u8, const K: u32] (cpu, op) {
        set::<u8>(cpu, (*op).dst, holds::<C, K>(cpu) as u8);
        next(cpu, op)
    }
    /// Executes SETcc of memory.
    fn setcc_m [const C: u8, P: Path] (cpu, op) {
        let addr = Full::addr(cpu, op);
        let v = (*cpu).flags.condition(C) as u8;
        soft_write!(u8, P, cpu, op, addr, v, setcc_m::<C, Slow>);
        soft_next!(P, cpu, op)
    }
    /// Executes IMUL of a register and the immediate: `dst = src * imm`.
    fn imul_ri [T: Int, const F: bool] (cpu, op) {
        let r = imul::<T, F>(cpu, get::<T>(cpu, (*op).src).signed(), T::cut((*op).imm).signed());
        set::<T>(cpu, (*op).dst, r);
        next(cpu, op)
    }
    /// Executes IMUL of a register and memory or, if `I`, of memory and the immediate.
    fn imul_rm [T: Int, const I: bool, P: Path] (cpu, op) {
        let addr = Full::addr(cpu, op);
        let a = soft_read!(T, P, cpu, op, addr, imul_rm::<T, I, Slow>).signed();
        let b = if I { T::cut((*op).imm).signed() } else { get::<T>(cpu, (*op).dst).signed() };
        let r = imul::<T, true>(cpu, a, b);
        set::<T>(cpu, (*op).dst, r);
        soft_next!(P, cpu, op)
    }
    /// Executes XCHG of registers.
    fn xchg_rr [T: Int] (cpu, op) {
        let (a, b) = (get::<T>(cpu, (*op).dst), get::<T>(cpu, (*op).src));
        set::<T>(cpu, (*op).dst, b);
        set::<T>(cpu, (*op).src, a);
        next(cpu, op)
    }
    /// Executes CDQ, CQO and CWD: copies the sign of A to all bits of D.
    fn sign_to_d [T: Int] (cpu, op) {
        set::<T>(cpu, 2, T::cut((get::<T>(cpu, 0).signed() >> 63) as u64));
        next(cpu, op)
    }
}

/// Returns the low half of a product. Sets CF and OF if the high half holds significant bits. The other flags are
/// undefined and stay as they are.
///
/// # Safety
/// `cpu` is live.
#[inline(always)]
pub unsafe fn imul<T: Int, const F: bool>(cpu: *mut Cpu, a: i64, b: i64) -> T {
    let r = T::cut(a.wrapping_mul(b) as u64);
    if F {
        let over = if T::BITS == 64 { a.checked_mul(b).is_none() } else { r.signed() != a.wrapping_mul(b) };
        let f = result_flags::<T>(r.wide()) | if over { rflags::CF | rflags::OF } else { 0 };
        // SAFETY: the caller's promise.
        unsafe { (*cpu).flags = LazyFlags { kind: 0, b: 0, result: f } };
    }
    r
}

/// The value for "not known" where a flag kind is expected.
pub const ANY: u32 = u32::MAX;

/// Returns whether condition `C` holds, when the flags are of kind `K`.
///
/// # Safety
/// `cpu` is live, and `K` is `ANY` or what `cpu.flags.kind` is.
#[inline(always)]
pub unsafe fn holds<const C: u8, const K: u32>(cpu: *const Cpu) -> bool {
    // SAFETY: the caller's promise.
    unsafe {
        let f = &(*cpu).flags;
        let kind = if K == ANY { f.kind } else { K };
        LazyFlags { kind, b: f.b, result: f.result }.condition(C)
    }
}

/// An operation with one operand.
pub trait Unary: 'static {
    /// Returns the result. Sets the flags if `F`.
    ///
    /// # Safety
    /// `cpu` is live.
    unsafe fn compute<T: Int, const F: bool>(cpu: *mut Cpu, a: T) -> T;
}

macro_rules! unary {
    ($($name:ident, |$cpu:ident, $a:ident, $r:ident| $result:expr, $flags:expr;)*) => {$(
        #[doc = stringify!($name)]
        pub struct $name;
        impl Unary for $name {
            #[inline(always)]
            unsafe fn compute<T: Int, const F: bool>($cpu: *mut Cpu, a: T) -> T {
                let $a = a.wide();
                let r = T::cut($result);
                let $r = r.wide();
                if F {
                    $flags;
                }
                r
            }
        }
    )*};
}
unary! {
    Inc, |cpu, a, r| a.wrapping_add(1), keep_carry::<T>(cpu, FlagKind::Inc, r);
    Dec, |cpu, a, r| a.wrapping_sub(1), keep_carry::<T>(cpu, FlagKind::Dec, r);
    Neg, |cpu, a, r| 0u64.wrapping_sub(a), negated::<T>(cpu, a, r);
    Not, |cpu, a, r| !a, { let _ = (cpu, r); };
}

/// Sets the flags of INC and DEC.
#[inline(always)]
fn keep_carry<T: Int>(cpu: *mut Cpu, kind: FlagKind, r: u64) {
    // SAFETY: called by `Unary::compute` only, with a live vCPU.
    unsafe { set_flags::<T>(cpu, kind, (*cpu).flags.cf() as u64, r) };
}

/// Sets the flags of NEG: those of `0 - a`.
#[inline(always)]
fn negated<T: Int>(cpu: *mut Cpu, a: u64, r: u64) {
    // SAFETY: as above.
    unsafe { set_flags::<T>(cpu, FlagKind::Sub, a, r) };
}
