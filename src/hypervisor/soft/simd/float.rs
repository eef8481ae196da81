//! Floating-point arithmetic and comparison on XMM registers (SDM vol. 1 chapters 10 to 12).
//!
//! The soft float computes the results, with one shortcut: where rounding is to nearest, the inexact flag is already
//! set in MXCSR (masked), and operands and result are ordinary numbers, no flag can be new and the host's own
//! arithmetic gives the same bits.
//!
//! RCPPS, RSQRTPS and their scalar forms give the correctly rounded value, which is within the 1.5 * 2^-12 that the
//! architecture allows; processors differ there.

use iced_x86::{Instruction, Mnemonic};

use crate::hypervisor::soft::cpu::rflags::{CF, PF, ZF};
use crate::hypervisor::soft::cpu::{Cpu, Fault};
use crate::hypervisor::soft::flags::LazyFlags;
use crate::hypervisor::soft::softfloat::{self, Class, Env, F32, F64, Float, Relation, Round, flag};

use super::form::*;
use super::lanes::*;

/// Returns whether the host's arithmetic may be tried: see the module's head.
#[inline(always)]
pub fn quick(env: &Env) -> bool {
    env.flags & flag::INEXACT != 0 && env.round == Round::Nearest
}

macro_rules! arithmetic {
    ($bits:ty, $native:ty, $format:ident, $frac:literal, $exps:literal; $($name:ident $op:tt $soft:ident, $zero:expr;)*) => {$(
        #[inline(always)]
        fn $name(env: &mut Env, a: $bits, b: $bits) -> $bits {
            let exponent = |x: $bits| x >> $frac & $exps;
            // Normal numbers and zeros. The smallest normal results are left out, since they may come from a tiny
            // value.
            let ordinary = |x: $bits| exponent(x).wrapping_sub(1) < $exps - 1 || x << 1 == 0;
            if quick(env) && ordinary(a) && ordinary(b) {
                let r = (<$native>::from_bits(a) $op <$native>::from_bits(b)).to_bits();
                if exponent(r).wrapping_sub(2) < $exps - 2 || r << 1 == 0 && with2(a << 1, b << 1, $zero) {
                    return r;
                }
            }
            softfloat::$soft(env, $format(a), $format(b)).0
        }
    )*};
}
arithmetic! { u32, f32, F32, 23, 0xff;
    add32 + add, |_a, _b| true;
    sub32 - sub, |_a, _b| true;
    mul32 * mul, |a, b| a == 0 || b == 0;
    div32 / div, |a, b| a == 0 && b != 0;
}
arithmetic! { u64, f64, F64, 52, 0x7ff;
    add64 + add, |_a, _b| true;
    sub64 - sub, |_a, _b| true;
    mul64 * mul, |a, b| a == 0 || b == 0;
    div64 / div, |a, b| a == 0 && b != 0;
}

macro_rules! one_operand {
    ($bits:ty, $native:ty, $format:ident, $frac:literal, $exps:literal, $sqrt:ident, $min:ident, $max:ident, $cmp:ident) => {
        #[inline(always)]
        fn $sqrt(env: &mut Env, a: $bits) -> $bits {
            if quick(env) && (a >> $frac).wrapping_sub(1) < $exps - 1 {
                return <$native>::from_bits(a).sqrt().to_bits();
            }
            softfloat::sqrt(env, $format(a)).0
        }
        #[inline(always)]
        fn $min(env: &mut Env, a: $bits, b: $bits) -> $bits {
            extreme(env, $format(a), $format(b), Relation::Less).0
        }
        #[inline(always)]
        fn $max(env: &mut Env, a: $bits, b: $bits) -> $bits {
            extreme(env, $format(a), $format(b), Relation::Greater).0
        }
        /// Returns all ones where predicate `imm` of CMPPS holds.
        #[inline(always)]
        fn $cmp(env: &mut Env, a: $bits, b: $bits, imm: u8) -> $bits {
            if predicate(env, $format(a), $format(b), imm) { !0 } else { 0 }
        }
    };
}
one_operand!(u32, f32, F32, 23, 0xff, sqrt32, min32, max32, cmp32);
one_operand!(u64, f64, F64, 52, 0x7ff, sqrt64, min64, max64, cmp64);

/// Executes MINPS and MAXPS: returns the first operand if it is in `wanted` relation to the second, otherwise the
/// second.
fn extreme<F: Float>(env: &mut Env, a: F, b: F, wanted: Relation) -> F {
    let chosen = if softfloat::compare(env, a, b, true) == wanted { a } else { b };
    let parts = softfloat::operand(env, chosen);
    if parts.class == Class::Zero { F::zero(parts.sign) } else { chosen }
}

fn predicate<F: Float>(env: &mut Env, a: F, b: F, imm: u8) -> bool {
    let relation = softfloat::compare(env, a, b, matches!(imm & 3, 1 | 2));
    let holds = match imm & 3 {
        0 => relation == Relation::Equal,
        1 => relation == Relation::Less,
        2 => matches!(relation, Relation::Less | Relation::Equal),
        _ => relation == Relation::Unordered,
    };
    holds ^ (imm & 4 != 0)
}

/// Applies `f` to four lanes.
#[inline(always)]
pub fn ps(env: &mut Env, a: u128, b: u128, f: impl Fn(&mut Env, u32, u32) -> u32) -> u128 {
    let (a, b) = (dwords(a), dwords(b));
    from_dwords(std::array::from_fn(|i| f(env, a[i], b[i])))
}

/// Applies `f` to two lanes.
#[inline(always)]
pub fn pd(env: &mut Env, a: u128, b: u128, f: impl Fn(&mut Env, u64, u64) -> u64) -> u128 {
    let (a, b) = (qwords(a), qwords(b));
    from_qwords(std::array::from_fn(|i| f(env, a[i], b[i])))
}

/// Applies `f` to the lowest of four lanes.
#[inline(always)]
pub fn ss(env: &mut Env, a: u128, b: u32, f: impl Fn(&mut Env, u32, u32) -> u32) -> u128 {
    a >> 32 << 32 | u128::from(f(env, a as u32, b))
}

/// Applies `f` to the lower of two lanes.
#[inline(always)]
pub fn sd(env: &mut Env, a: u128, b: u64, f: impl Fn(&mut Env, u64, u64) -> u64) -> u128 {
    a >> 64 << 64 | u128::from(f(env, a as u64, b))
}

/// A table with one line per operation: the four mnemonics, and the function on one lane of either width.
macro_rules! table {
    ($insn:ident; binary { $($ps:ident $pd:ident $ss:ident $sd:ident $f32:expr, $f64:expr;)* }
     imm { $($ips:ident $ipd:ident $iss:ident $isd:ident $i32:expr, $i64:expr;)* }) => {
        match $insn.mnemonic() {
            $(Mnemonic::$ps => float_op!(u128, |env, a, b| ps(env, a, b, $f32)),
              Mnemonic::$pd => float_op!(u128, |env, a, b| pd(env, a, b, $f64)),
              Mnemonic::$ss => float_op!(u32, |env, a, b| ss(env, a, b, $f32)),
              Mnemonic::$sd => float_op!(u64, |env, a, b| sd(env, a, b, $f64)),)*
            $(Mnemonic::$ips => float_op!(u128, imm, |env, a, b, imm| ps(env, a, b, |env, a, b| $i32(env, a, b, imm))),
              Mnemonic::$ipd => float_op!(u128, imm, |env, a, b, imm| pd(env, a, b, |env, a, b| $i64(env, a, b, imm))),
              Mnemonic::$iss => float_op!(u32, imm, |env, a, b, imm| ss(env, a, b, |env, a, b| $i32(env, a, b, imm))),
              Mnemonic::$isd => float_op!(u64, imm, |env, a, b, imm| sd(env, a, b, |env, a, b| $i64(env, a, b, imm))),)*
            _ => return other($insn),
        }
    };
}

/// Returns the handlers of a floating-point instruction.
pub fn lower(insn: &Instruction) -> Option<Pair> {
    Some(table! { insn;
        binary {
            Addps Addpd Addss Addsd add32, add64;
            Subps Subpd Subss Subsd sub32, sub64;
            Mulps Mulpd Mulss Mulsd mul32, mul64;
            Divps Divpd Divss Divsd div32, div64;
            Minps Minpd Minss Minsd min32, min64;
            Maxps Maxpd Maxss Maxsd max32, max64;
            Sqrtps Sqrtpd Sqrtss Sqrtsd |env, _a, b| sqrt32(env, b), |env, _a, b| sqrt64(env, b);
        }
        imm {
            Cmpps Cmppd Cmpss Cmpsd cmp32, cmp64;
            Roundps Roundpd Roundss Roundsd round32, round64;
        }
    })
}

fn round32(env: &mut Env, _a: u32, b: u32, imm: u8) -> u32 {
    round_by(env, F32(b), imm).0
}

fn round64(env: &mut Env, _a: u64, b: u64, imm: u8) -> u64 {
    round_by(env, F64(b), imm).0
}

/// Executes ROUNDPS: bit 2 of the immediate takes the mode from MXCSR, bit 3 suppresses the precision exception.
fn round_by<F: Float>(env: &mut Env, value: F, imm: u8) -> F {
    let round = if imm & 4 != 0 { env.round } else { Round::from_bits(u32::from(imm)) };
    softfloat::round_to_int(env, value, round, imm & 8 == 0)
}

/// Executes COMISS and similar: ZF, PF, CF from the relation; the other three are cleared.
macro_rules! compare {
    ($bits:ty, $format:ident, $signalling:literal) => {
        [
            called!(|cpu, op| {
                let (a, b) = ($format(xmm(cpu, op.dst) as $bits), $format(xmm(cpu, op.src) as $bits));
                cpu.flags = with_mxcsr(cpu, |env| relation_flags(softfloat::compare(env, a, b, $signalling)))?
            }),
            called!(|cpu, op| {
                let b = $format(cpu.load::<$bits>(op.addr(cpu))?);
                let a = $format(xmm(cpu, op.dst) as $bits);
                cpu.flags = with_mxcsr(cpu, |env| relation_flags(softfloat::compare(env, a, b, $signalling)))?
            }),
        ]
    };
}

/// Executes DPPS and DPPD.
macro_rules! dot {
    ($f:ident) => {
        [
            called!(|cpu, op| {
                let r = $f(cpu, xmm(cpu, op.dst), xmm(cpu, op.src), op.imm as u8)?;
                set_xmm(cpu, op.dst, r)
            }),
            called!(|cpu, op| {
                let b = <u128 as Source>::memory(cpu, op)?;
                let r = $f(cpu, xmm(cpu, op.dst), b, op.imm as u8)?;
                set_xmm(cpu, op.dst, r)
            }),
        ]
    };
}

fn other(insn: &Instruction) -> Option<Pair> {
    Some(match insn.mnemonic() {
        Mnemonic::Haddps => float_op!(u128, |env, a, b| pairwise32(env, a, b, add32)),
        Mnemonic::Hsubps => float_op!(u128, |env, a, b| pairwise32(env, a, b, sub32)),
        Mnemonic::Haddpd => float_op!(u128, |env, a, b| pairwise64(env, a, b, add64)),
        Mnemonic::Hsubpd => float_op!(u128, |env, a, b| pairwise64(env, a, b, sub64)),
        Mnemonic::Addsubps => float_op!(u128, |env, a, b| {
            let (a, b) = (dwords(a), dwords(b));
            from_dwords(std::array::from_fn(|i| if i & 1 == 0 { sub32(env, a[i], b[i]) } else { add32(env, a[i], b[i]) }))
        }),
        Mnemonic::Addsubpd => float_op!(u128, |env, a, b| {
            let (a, b) = (qwords(a), qwords(b));
            from_qwords([sub64(env, a[0], b[0]), add64(env, a[1], b[1])])
        }),
        Mnemonic::Dpps => dot!(dot32),
        Mnemonic::Dppd => dot!(dot64),
        Mnemonic::Rcpps => xmm_op!(u128, |_a, b| from_dwords(dwords(b).map(reciprocal))),
        Mnemonic::Rcpss => xmm_op!(u32, |a, b| a >> 32 << 32 | u128::from(reciprocal(b))),
        Mnemonic::Rsqrtps => xmm_op!(u128, |_a, b| from_dwords(dwords(b).map(reciprocal_root))),
        Mnemonic::Rsqrtss => xmm_op!(u32, |a, b| a >> 32 << 32 | u128::from(reciprocal_root(b))),
        Mnemonic::Comiss => compare!(u32, F32, true),
        Mnemonic::Comisd => compare!(u64, F64, true),
        Mnemonic::Ucomiss => compare!(u32, F32, false),
        Mnemonic::Ucomisd => compare!(u64, F64, false),
        _ => return None,
    })
}

fn relation_flags(relation: Relation) -> LazyFlags {
    LazyFlags::raw(match relation {
        Relation::Less => CF,
        Relation::Equal => ZF,
        Relation::Greater => 0,
        Relation::Unordered => ZF | PF | CF,
    })
}

#[inline(always)]
fn pairwise32(env: &mut Env, a: u128, b: u128, f: impl Fn(&mut Env, u32, u32) -> u32) -> u128 {
    let (a, b) = (dwords(a), dwords(b));
    from_dwords([f(env, a[0], a[1]), f(env, a[2], a[3]), f(env, b[0], b[1]), f(env, b[2], b[3])])
}

#[inline(always)]
fn pairwise64(env: &mut Env, a: u128, b: u128, f: impl Fn(&mut Env, u64, u64) -> u64) -> u128 {
    let (a, b) = (qwords(a), qwords(b));
    from_qwords([f(env, a[0], a[1]), f(env, b[0], b[1])])
}

/// Executes DPPS: products of the lanes that imm 7:4 choose, summed in pairs, to the lanes that imm 3:0 choose. An
/// unmasked exception stops it between these steps.
fn dot32(cpu: &mut Cpu, a: u128, b: u128, imm: u8) -> Result<u128, Fault> {
    let (a, b) = (dwords(a), dwords(b));
    let p: [u32; 4] =
        with_mxcsr(cpu, |env| std::array::from_fn(|i| if imm >> (4 + i) & 1 != 0 { mul32(env, a[i], b[i]) } else { 0 }))?;
    let (low, high) = with_mxcsr(cpu, |env| (add32(env, p[0], p[1]), add32(env, p[2], p[3])))?;
    let sum = with_mxcsr(cpu, |env| add32(env, low, high))?;
    Ok(from_dwords(std::array::from_fn(|i| if imm >> i & 1 != 0 { sum } else { 0 })))
}

/// Executes DPPD in the same way.
fn dot64(cpu: &mut Cpu, a: u128, b: u128, imm: u8) -> Result<u128, Fault> {
    let (a, b) = (qwords(a), qwords(b));
    let p: [u64; 2] =
        with_mxcsr(cpu, |env| std::array::from_fn(|i| if imm >> (4 + i) & 1 != 0 { mul64(env, a[i], b[i]) } else { 0 }))?;
    let sum = with_mxcsr(cpu, |env| add64(env, p[0], p[1]))?;
    Ok(from_qwords(std::array::from_fn(|i| if imm >> i & 1 != 0 { sum } else { 0 })))
}

/// Computes an approximation. Denormal operands count as zero and tiny results become zero, whatever MXCSR says; no
/// flags.
fn approximate(x: u32, f: impl Fn(f32) -> f32) -> u32 {
    const SIGN: u32 = 1 << 31;
    let x = if x << 1 >> 24 == 0 { x & SIGN } else { x };
    if x << 1 > 0xff << 24 {
        return x | 1 << 22;
    }
    let r = f(f32::from_bits(x)).to_bits();
    match r << 1 {
        m if m > 0xff << 24 => 0xffc0_0000,
        m if m >> 24 == 0 => r & SIGN,
        _ => r,
    }
}

fn reciprocal(x: u32) -> u32 {
    approximate(x, |x| 1.0 / x)
}

fn reciprocal_root(x: u32) -> u32 {
    approximate(x, |x| (1.0 / f64::from(x).sqrt()) as f32)
}
