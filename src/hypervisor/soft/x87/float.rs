//! Operations of the x87 on numbers that `softfloat` does not have: remainders, scaling, packed decimal, and
//! conversions to memory formats that do not report denormals. SDM vol. 1, chapters 4.8 and 8.5; vol. 2, the
//! instructions' pages.

use crate::hypervisor::soft::softfloat::{self, Class, Env, F32, F64, F80, Float, Relation, Round, Unpacked, flag, round_pack};

/// Stack fault.
pub const SF: u32 = 1 << 6;
/// Condition code C1: rounded up or, with a stack fault, the stack was full.
pub const C1: u32 = flag::ROUNDED_UP;

/// The default NaN, "real indefinite".
pub const INDEFINITE: F80 = F80 { mantissa: 3 << 62, sign_exp: 0xffff };
/// 1.0.
pub const ONE: F80 = F80 { mantissa: 1 << 63, sign_exp: 0x3fff };

/// Returns the number with its sign flipped.
pub fn negated(a: F80) -> F80 {
    F80 { sign_exp: a.sign_exp ^ 0x8000, ..a }
}

/// Returns the masked result of an invalid operation.
pub fn invalid(env: &mut Env) -> F80 {
    env.flags |= flag::INVALID;
    INDEFINITE
}

/// Handles NaNs and unsupported operands. Returns `None` if there are none.
pub fn propagate(env: &mut Env, a: F80, b: F80) -> Option<F80> {
    let (pa, pb) = (a.unpack(), b.unpack());
    if !pa.is_nan() && !pb.is_nan() {
        return None;
    }
    if [pa, pb].iter().any(|p| matches!(p.class, Class::Signalling | Class::Unsupported)) {
        env.flags |= flag::INVALID;
    }
    Some(F80::nan_of(a, b))
}

/// Raises DE if one of the operands is denormal.
pub fn note_denormals(env: &mut Env, operands: &[&Unpacked]) {
    if operands.iter().any(|p| p.denormal) {
        env.flags |= flag::DENORMAL;
    }
}

/// Returns `sig * 2^unit`, exact except for underflow.
fn exact(env: &mut Env, negative: bool, unit: i32, sig: u128) -> F80 {
    if sig == 0 {
        return F80::zero(negative);
    }
    let shift = sig.leading_zeros();
    round_pack(env, negative, unit + 127 - shift as i32, sig << shift, 64)
}

/// Executes FRNDINT.
pub fn round_to_integer(env: &mut Env, a: F80) -> F80 {
    note_denormals(env, &[&a.unpack()]);
    let round = env.round;
    softfloat::round_to_int(env, a, round, true)
}

/// Converts a 32- or 64-bit number from memory. Loads make signalling NaNs quiet and note denormals.
pub fn load<A: Float>(env: &mut Env, a: A) -> F80 {
    let p = a.unpack();
    if p.class == Class::Signalling {
        env.flags |= flag::INVALID;
        return softfloat::widen(a).quieted();
    }
    note_denormals(env, &[&p]);
    softfloat::widen(a)
}

fn narrow<B: Float>(env: &mut Env, a: F80) -> B {
    let before = env.flags & flag::DENORMAL;
    let result = softfloat::convert::<F80, B>(env, a);
    env.flags = env.flags & !flag::DENORMAL | before;
    result
}

/// Converts to the bits of an `f32`. The caller stores nothing if overflow or underflow is unmasked.
pub fn to_f32(env: &mut Env, a: F80) -> u32 {
    narrow::<F32>(env, a).0
}

/// Converts to the bits of an `f64`.
pub fn to_f64(env: &mut Env, a: F80) -> u64 {
    narrow::<F64>(env, a).0
}

/// Converts to a signed integer of `bits`.
pub fn to_integer(env: &mut Env, a: F80, bits: u32, truncate: bool) -> u64 {
    let round = if truncate { Round::Zero } else { env.round };
    softfloat::to_int(env, a, bits, round) as u64
}

/// Converts a signed integer to an 80-bit number.
pub fn from_integer(value: i64) -> F80 {
    let magnitude = value.unsigned_abs();
    if magnitude == 0 {
        return F80::zero(false);
    }
    let shift = magnitude.leading_zeros();
    F80::pack(value < 0, 16383 + 63 - shift, magnitude << shift)
}

/// Converts from packed decimal: 18 digits and a sign. The manual leaves digits above 9 undefined; here they count with
/// their value.
pub fn from_bcd(bytes: [u8; 10]) -> F80 {
    let magnitude = bytes[..9].iter().rev().fold(0i64, |value, byte| {
        value.wrapping_mul(100).wrapping_add(i64::from(byte >> 4) * 10).wrapping_add(i64::from(byte & 15))
    });
    let value = from_integer(magnitude);
    F80 { sign_exp: value.sign_exp | u16::from(bytes[9] & 0x80) << 8, ..value }
}

/// Converts to packed decimal. A number that does not fit gives the decimal indefinite with IE.
pub fn to_bcd(env: &mut Env, a: F80) -> [u8; 10] {
    let mut trial = *env;
    let value = to_integer(&mut trial, a, 64, false) as i64;
    let mut rest = value.unsigned_abs();
    if trial.flags & flag::INVALID != 0 || rest >= 1_000_000_000_000_000_000 {
        env.flags |= flag::INVALID;
        return [0, 0, 0, 0, 0, 0, 0, 0xc0, 0xff, 0xff];
    }
    *env = trial;
    let mut bytes = [0; 10];
    for byte in &mut bytes[..9] {
        *byte = (rest % 10 | (rest / 10 % 10) << 4) as u8;
        rest /= 100;
    }
    bytes[9] = (a.sign_exp >> 8) as u8 & 0x80;
    bytes
}

/// Compares two numbers. With `quiet` (FUCOM), quiet NaNs raise no IE.
pub fn compare(env: &mut Env, a: F80, b: F80, quiet: bool) -> Relation {
    softfloat::compare(env, a, b, !quiet)
}

/// Executes FPREM and FPREM1 (`nearest`). Returns the remainder, the low three bits of the quotient, and whether the
/// reduction is complete. An incomplete one takes 32 to 63 bits off the difference of the exponents.
pub fn remainder(env: &mut Env, a: F80, b: F80, nearest: bool) -> (F80, u8, bool) {
    if let Some(nan) = propagate(env, a, b) {
        return (nan, 0, true);
    }
    let (pa, pb) = (a.unpack(), b.unpack());
    if pa.class == Class::Infinite || pb.class == Class::Zero {
        return (invalid(env), 0, true);
    }
    note_denormals(env, &[&pa, &pb]);
    if pa.class == Class::Zero {
        return (a, 0, true);
    }
    let difference = if pb.class == Class::Infinite { -2 } else { pa.exp - pb.exp };
    if difference < -1 {
        return (exact(env, pa.sign, pa.exp - 63, u128::from(pa.sig)), 0, true);
    }
    if difference >= 64 {
        let step = (difference & 31) | 32;
        let rest = (u128::from(pa.sig) << step) % u128::from(pb.sig);
        return (exact(env, pa.sign, pa.exp - step - 63, rest), 0, false);
    }
    // Both operands in units of the last bit of the smaller exponent.
    let unit = pa.exp.min(pb.exp);
    let (x, y) = (u128::from(pa.sig) << (pa.exp - unit), u128::from(pb.sig) << (pb.exp - unit));
    let (mut quotient, mut rest) = (x / y, x % y);
    let mut negative = pa.sign;
    if nearest && (rest << 1 > y || (rest << 1 == y && quotient & 1 != 0)) {
        quotient += 1;
        rest = y - rest;
        negative = !negative;
    }
    if rest == 0 {
        negative = pa.sign;
    }
    (exact(env, negative, unit - 63, rest), quotient as u8 & 7, true)
}

/// Executes FSCALE: `a * 2^trunc(b)`.
pub fn scale(env: &mut Env, a: F80, b: F80) -> F80 {
    if let Some(nan) = propagate(env, a, b) {
        return nan;
    }
    let (pa, pb) = (a.unpack(), b.unpack());
    if pb.class == Class::Infinite {
        if (pa.class == Class::Infinite && pb.sign) || (pa.class == Class::Zero && !pb.sign) {
            return invalid(env);
        }
        note_denormals(env, &[&pa]);
        return if pb.sign { F80::zero(pa.sign) } else { F80::infinity(pa.sign) };
    }
    note_denormals(env, &[&pa, &pb]);
    if matches!(pa.class, Class::Infinite | Class::Zero) {
        return a;
    }
    // 2^17 exceeds every exponent.
    let magnitude = match pb {
        Unpacked { class: Class::Zero, .. } => 0,
        p if p.exp < 0 => 0,
        p if p.exp > 16 => 1 << 17,
        p => (p.sig >> (63 - p.exp)) as i32,
    };
    let exp = pa.exp + if pb.sign { -magnitude } else { magnitude };
    // So far out of range that even the scaled result of an unmasked exception does not fit (SDM vol. 1, 8.5.4 and
    // 8.5.5).
    if env.masks & flag::OVERFLOW == 0 && exp > F80::EMAX + F80::WRAP {
        env.flags |= flag::OVERFLOW | flag::INEXACT | C1;
        return F80::infinity(pa.sign);
    }
    if env.masks & flag::UNDERFLOW == 0 && exp < F80::EMIN - F80::WRAP {
        env.flags |= flag::UNDERFLOW | flag::INEXACT;
        return F80::zero(pa.sign);
    }
    round_pack(env, pa.sign, exp, u128::from(pa.sig) << 64, 64)
}

/// Executes FXTRACT: exponent and significand.
pub fn extract(env: &mut Env, a: F80) -> (F80, F80) {
    if let Some(nan) = propagate(env, a, a) {
        return (nan, nan);
    }
    let p = a.unpack();
    match p.class {
        Class::Zero => {
            env.flags |= flag::DIVIDE;
            (F80::infinity(true), a)
        }
        Class::Infinite => (F80::infinity(false), a),
        _ => {
            note_denormals(env, &[&p]);
            (from_integer(i64::from(p.exp)), F80::pack(p.sign, 16383, p.sig))
        }
    }
}

/// Rounds a 128-bit significand at `exp` to an 80-bit number. `inexact` says that the true value has more bits.
pub fn round_wide(env: &mut Env, negative: bool, exp: i32, sig: u128, inexact: bool) -> F80 {
    if sig == 0 {
        return F80::zero(negative);
    }
    round_pack(env, negative, exp, sig | u128::from(inexact), 64)
}
