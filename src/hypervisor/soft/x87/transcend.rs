//! The transcendental instructions: F2XM1, FYL2X, FYL2XP1, FPTAN, FPATAN, FSIN, FCOS, FSINCOS.
//!
//! **Accuracy**: every function is computed with 128-bit significands from a series whose truncation error is below
//! 2^-120 of the result, then rounded once to 64 bits as rounding control says: rounded to nearest, the result is
//! within 0.501 ulp of the true value, and in the other modes within 1.001 ulp; the SDM promises 1 ulp (vol. 1,
//! 8.3.10). The trigonometric functions reduce their operand by a π of 66 bits, as processors do (8.3.8), so near
//! multiples of π they give what processors give, not the true sine. Precision control has no effect on them.
//!
//! **Hostile guest**: the series have a fixed number of terms at most; the reduction is one division of two 128-bit
//! integers in at most two steps.

use super::float::{C1, ONE as ONE_80, invalid, negated, note_denormals, propagate, round_wide};
use crate::hypervisor::soft::softfloat::{Class, Env, F80, Float, Unpacked, flag, shift_right_jam};

/// A number `±sig / 2^127 * 2^exp`, with bit 127 of `sig` set. Zero is `sig = 0`.
#[derive(Debug, Clone, Copy)]
struct Wide {
    neg: bool,
    exp: i32,
    sig: u128,
}

const fn constant(exp: i32, sig: u128) -> Wide {
    Wide { neg: false, exp, sig }
}

const ZERO: Wide = constant(0, 0);
const ONE: Wide = constant(0, 1 << 127);
const TWO: Wide = constant(1, 1 << 127);
const LN_2: Wide = constant(-1, 0xb17217f7d1cf79abc9e3b39803f2f6af);
const TWO_LOG2_E: Wide = constant(1, 0xb8aa3b295c17f0bbbe87fed0691d3e89);
const PI: Wide = constant(1, 0xc90fdaa22168c234c4c6628b80dc1cd1);
/// arctan(k / 8) for k = 1 to 8.
const ARCTAN: [Wide; 8] = [
    constant(-4, 0xfeadd4d5617b6e32c897989f3e888ef8),
    constant(-3, 0xfadbafc96406eb156dc79ef5f7a217e6),
    constant(-2, 0xb7b0ca0f26f784738aa32122dcfe4483),
    constant(-2, 0xed63382b0dda7b456fe445ecbc3a8d03),
    constant(-1, 0x8f005d5ef7f59f9b5c835e1665c43748),
    constant(-1, 0xa4bc7d1934f7092419a87f2a457dac9f),
    constant(-1, 0xb8053e2bc2319e73cb2da55210a4443d),
    constant(-1, 0xc90fdaa22168c234c4c6628b80dc1cd1),
];
/// π of 66 bits as in processors: in units of 2^-66, so that π/2 is the same number in units of 2^-67.
const PI_66: u128 = 0x3_243f_6a88_85a3_08d3 << 2;

/// Returns the high half of a 256-bit product.
fn multiply_high(a: u128, b: u128) -> u128 {
    let (a1, a0) = (a >> 64, a & u128::from(u64::MAX));
    let (b1, b0) = (b >> 64, b & u128::from(u64::MAX));
    let middle = (a0 * b0 >> 64) + (a1 * b0 & u128::from(u64::MAX)) + (a0 * b1 & u128::from(u64::MAX));
    a1 * b1 + (a1 * b0 >> 64) + (a0 * b1 >> 64) + (middle >> 64)
}

impl Wide {
    fn from_parts(x: &Unpacked) -> Wide {
        Wide { neg: x.sign, exp: x.exp, sig: u128::from(x.sig) << 64 }
    }

    fn from_small(value: i32) -> Wide {
        if value == 0 {
            return ZERO;
        }
        let magnitude = u128::from(value.unsigned_abs());
        let shift = magnitude.leading_zeros();
        Wide { neg: value < 0, exp: 127 - shift as i32, sig: magnitude << shift }
    }

    fn normal(neg: bool, exp: i32, sig: u128) -> Wide {
        if sig == 0 {
            return ZERO;
        }
        let shift = sig.leading_zeros();
        Wide { neg, exp: exp - shift as i32, sig: sig << shift }
    }

    fn negated(self) -> Wide {
        Wide { neg: !self.neg, ..self }
    }

    fn times(self, b: Wide) -> Wide {
        if self.sig == 0 || b.sig == 0 {
            return ZERO;
        }
        Wide::normal(self.neg != b.neg, self.exp + b.exp + 1, multiply_high(self.sig, b.sig))
    }

    fn plus(self, b: Wide) -> Wide {
        if self.sig == 0 {
            return b;
        }
        if b.sig == 0 {
            return self;
        }
        let (big, small) = if (self.exp, self.sig) >= (b.exp, b.sig) { (self, b) } else { (b, self) };
        let low = shift_right_jam(small.sig, (big.exp - small.exp) as u32);
        if big.neg != small.neg {
            return Wide::normal(big.neg, big.exp, big.sig - low);
        }
        let (sum, carry) = big.sig.overflowing_add(low);
        if carry {
            return Wide { neg: big.neg, exp: big.exp + 1, sig: shift_right_jam(sum, 1) | 1 << 127 };
        }
        Wide { sig: sum, ..big }
    }

    /// Divides by a small integer.
    fn over(self, divisor: u32) -> Wide {
        // Keeps 128 bits: divide the high and the low part in turn.
        let d = u128::from(divisor);
        let (q, r) = (self.sig / d, self.sig % d);
        let shift = q.leading_zeros();
        if q == 0 {
            return ZERO;
        }
        Wide { neg: self.neg, exp: self.exp - shift as i32, sig: q << shift | (r << shift) / d }
    }

    /// Divides, by Newton's reciprocal: two steps from a 64-bit estimate.
    fn divided_by(self, b: Wide) -> Wide {
        if self.sig == 0 {
            return ZERO;
        }
        let top = (b.sig >> 64) as u64;
        // 2^127 / top has 64 or 65 bits.
        let estimate = (1u128 << 127) / u128::from(top);
        let mut inverse = Wide::normal(b.neg, -b.exp + 63, estimate);
        for _ in 0..2 {
            let error = TWO.plus(inverse.times(b).negated());
            inverse = inverse.times(error);
        }
        self.times(inverse)
    }

    /// Rounds the value to an 80-bit number. `inexact`: the true value is not representable, so PE is due whatever the
    /// bits are.
    fn round(self, env: &mut Env, inexact: bool) -> F80 {
        round_wide(env, self.neg, self.exp, self.sig, inexact)
    }
}

/// Sums `x * (1 + c1 x² + ...)`: `first` and then terms made by `next(term, n)` until they no longer count.
fn series(first: Wide, mut next: impl FnMut(Wide, u32) -> (Wide, Wide)) -> Wide {
    let (mut sum, mut term) = (first, first);
    for n in 1..80 {
        let (power, addend) = next(term, n);
        term = power;
        if addend.sig == 0 || addend.exp < sum.exp - 126 {
            // Keep a trace of the term, so that rounding sees on which side the value lies.
            if addend.sig != 0 {
                sum = sum.plus(Wide { exp: sum.exp - 126, ..addend });
            }
            break;
        }
        sum = sum.plus(addend);
    }
    sum
}

/// Computes 2^x - 1 for |x| <= 1.
fn exp2_minus_1(x: Wide) -> Wide {
    let y = x.times(LN_2);
    series(y, |term, n| {
        let t = term.times(y).over(n + 1);
        (t, t)
    })
}

/// Computes arctanh(s) or arctan(s) for small s.
fn arc_series(s: Wide, alternating: bool) -> Wide {
    let mut square = s.times(s);
    square.neg = alternating;
    series(s, |power, n| {
        let p = power.times(square);
        (p, p.over(2 * n + 1))
    })
}

/// Computes log2 of a positive number.
fn log2(x: Wide) -> Wide {
    // Significand in [sqrt(1/2), sqrt(2)).
    let high = x.sig >> 96 >= 0xb504_f333;
    let (k, m) = if high { (x.exp + 1, Wide { exp: -1, ..x }) } else { (x.exp, Wide { exp: 0, ..x }) };
    let s = m.plus(ONE.negated()).divided_by(m.plus(ONE));
    Wide::from_small(k).plus(arc_series(s, false).times(TWO_LOG2_E))
}

/// Computes log2(1 + x) for x > -1.
fn log2_1p(x: Wide) -> Wide {
    if x.exp < -2 {
        let s = x.divided_by(TWO.plus(x));
        return arc_series(s, false).times(TWO_LOG2_E);
    }
    log2(ONE.plus(x))
}

/// Computes arctan of `y / x`, both positive, in (0, π/2).
fn arctan(y: Wide, x: Wide) -> Wide {
    let swap = (y.exp, y.sig) > (x.exp, x.sig);
    let z = if swap { x.divided_by(y) } else { y.divided_by(x) };
    // Nearest eighth.
    let eighths = if z.exp < -5 { 0 } else { ((z.sig >> (122 - z.exp)) as u32 + 2) >> 2 };
    let angle = match eighths {
        0 => arc_series(z, true),
        k => {
            let c = Wide::from_small(k.min(8) as i32).times(Wide { exp: -3, ..ONE });
            let reduced = z.plus(c.negated()).divided_by(ONE.plus(z.times(c)));
            ARCTAN[k.min(8) as usize - 1].plus(arc_series(reduced, true))
        }
    };
    if swap { Wide { exp: 0, ..PI }.plus(angle.negated()) } else { angle }
}

fn sine(r: Wide) -> Wide {
    let mut square = r.times(r);
    square.neg = true;
    series(r, |term, n| {
        let t = term.times(square).over(2 * n * (2 * n + 1));
        (t, t)
    })
}

fn cosine(r: Wide) -> Wide {
    let mut square = r.times(r);
    square.neg = true;
    series(ONE, |term, n| {
        let t = term.times(square).over((2 * n - 1) * 2 * n);
        (t, t)
    })
}

/// Reduces a number below 2^63 in magnitude to its quadrant (0 to 3) and the rest in [-π/4, π/4].
fn reduce(x: &Unpacked) -> (u32, Wide) {
    if x.exp < -1 {
        return (0, Wide::from_parts(x));
    }
    // In units of 2^-67: the number is sig * 2^(exp - 63 + 67), and π/2 is PI_66.
    let shift = (x.exp + 4) as u32;
    let first = shift.min(60);
    let value = u128::from(x.sig) << first;
    let (mut quotient, mut rest) = (value / PI_66, value % PI_66);
    let mut left = shift - first;
    while left > 0 {
        let step = left.min(56);
        let value = rest << step;
        quotient = (quotient << step).wrapping_add(value / PI_66);
        rest = value % PI_66;
        left -= step;
    }
    let mut quadrant = (quotient & 3) as u32;
    let mut neg = false;
    if rest > PI_66 / 2 {
        rest = PI_66 - rest;
        neg = true;
        quadrant = (quadrant + 1) & 3;
    }
    if x.sign {
        neg = !neg;
        quadrant = (4 - quadrant) & 3;
    }
    (quadrant, Wide::normal(neg, 127 - 67, rest))
}

/// Returns whether a trigonometric instruction refuses the operand: 2^63 or more in magnitude.
pub fn out_of_range(x: F80) -> bool {
    let p = x.unpack();
    p.class == Class::Finite && p.exp >= 63
}

/// Returns the sine and the cosine of the reduced operand, swapped and signed for the quadrant.
fn sine_cosine(x: &Unpacked) -> (Wide, Wide) {
    let (quadrant, r) = reduce(x);
    let (s, c) = (sine(r), cosine(r));
    match quadrant {
        0 => (s, c),
        1 => (c, s.negated()),
        2 => (s.negated(), c.negated()),
        _ => (c.negated(), s),
    }
}

/// Handles the special cases of FSIN, FCOS, FSINCOS and FPTAN: NaNs, infinities and zeros. Returns `None` for other
/// numbers.
fn trig_special(env: &mut Env, x: F80, at_zero: F80) -> Option<F80> {
    if let Some(nan) = propagate(env, x, x) {
        return Some(nan);
    }
    let p = x.unpack();
    note_denormals(env, &[&p]);
    match p.class {
        Class::Infinite => Some(invalid(env)),
        Class::Zero => Some(at_zero),
        _ => None,
    }
}

/// Executes FSIN, for an operand in range.
pub fn fsin(env: &mut Env, x: F80) -> F80 {
    trig_special(env, x, x).unwrap_or_else(|| sine_cosine(&x.unpack()).0.round(env, true))
}

/// Executes FCOS.
pub fn fcos(env: &mut Env, x: F80) -> F80 {
    trig_special(env, x, ONE_80).unwrap_or_else(|| sine_cosine(&x.unpack()).1.round(env, true))
}

/// Executes FSINCOS. Returns sine and cosine.
pub fn fsincos(env: &mut Env, x: F80) -> (F80, F80) {
    match trig_special(env, x, x) {
        Some(s) if s.unpack().class == Class::Zero => (s, ONE_80),
        Some(nan) => (nan, nan),
        None => {
            let (s, c) = sine_cosine(&x.unpack());
            let cosine = c.round(env, true);
            env.flags &= !C1;
            (s.round(env, true), cosine)
        }
    }
}

/// Executes FPTAN. Returns the tangent; the caller pushes 1.0, or the NaN again.
pub fn fptan(env: &mut Env, x: F80) -> F80 {
    trig_special(env, x, x).unwrap_or_else(|| {
        let (s, c) = sine_cosine(&x.unpack());
        s.divided_by(c).round(env, true)
    })
}

/// Executes F2XM1. Outside of [-1, 1] the result is undefined; here it is the operand.
pub fn f2xm1(env: &mut Env, x: F80) -> F80 {
    if let Some(nan) = propagate(env, x, x) {
        return nan;
    }
    let p = x.unpack();
    note_denormals(env, &[&p]);
    match p.class {
        Class::Infinite if p.sign => negated(ONE_80),
        Class::Finite if p.exp < 0 => exp2_minus_1(Wide::from_parts(&p)).round(env, true),
        Class::Finite if x == negated(ONE_80) => F80 { sign_exp: 0xbffe, ..x },
        _ => x,
    }
}

/// Executes FYL2X: `y * log2(x)`.
pub fn fyl2x(env: &mut Env, x: F80, y: F80) -> F80 {
    if let Some(nan) = propagate(env, x, y) {
        return nan;
    }
    let (px, py) = (x.unpack(), y.unpack());
    let below_one = px.class == Class::Zero || px.exp < 0;
    match (px.class, py.class) {
        (Class::Finite | Class::Infinite, _) if px.sign => return invalid(env),
        (Class::Zero | Class::Infinite, Class::Zero) => return invalid(env),
        (_, Class::Infinite) if x == ONE_80 => return invalid(env),
        (Class::Zero, Class::Finite) => {
            env.flags |= flag::DIVIDE;
            return F80::infinity(!py.sign);
        }
        _ => {}
    }
    note_denormals(env, &[&px, &py]);
    if px.class == Class::Infinite || py.class == Class::Infinite {
        return F80::infinity(py.sign != (px.class != Class::Infinite && below_one));
    }
    if py.class == Class::Zero || x == ONE_80 {
        return F80::zero(py.sign != below_one);
    }
    let exact = px.sig == 1 << 63;
    Wide::from_parts(&py).times(log2(Wide::from_parts(&px))).round(env, !exact)
}

/// Executes FYL2XP1: `y * log2(1 + x)`. The result is undefined for `|x| > 1 - sqrt(1/2)`; here it is right down to -1.
pub fn fyl2xp1(env: &mut Env, x: F80, y: F80) -> F80 {
    if let Some(nan) = propagate(env, x, y) {
        return nan;
    }
    let (px, py) = (x.unpack(), y.unpack());
    match (px.class, py.class) {
        (Class::Infinite, _) if px.sign => return invalid(env),
        (Class::Finite, _) if px.sign && px.exp >= 0 => return invalid(env),
        (Class::Infinite, Class::Zero) | (Class::Zero, Class::Infinite) => return invalid(env),
        _ => {}
    }
    note_denormals(env, &[&px, &py]);
    let negative = px.sign != py.sign;
    if px.class == Class::Infinite || py.class == Class::Infinite {
        return F80::infinity(negative);
    }
    if px.class == Class::Zero || py.class == Class::Zero {
        return F80::zero(negative);
    }
    Wide::from_parts(&py).times(log2_1p(Wide::from_parts(&px))).round(env, true)
}

/// Executes FPATAN: the angle of the point (`x`, `y`).
pub fn fpatan(env: &mut Env, x: F80, y: F80) -> F80 {
    if let Some(nan) = propagate(env, x, y) {
        return nan;
    }
    let (px, py) = (x.unpack(), y.unpack());
    note_denormals(env, &[&px, &py]);
    let fraction_of_pi = |env: &mut Env, numerator: i32, log2_denominator: i32| {
        let angle = Wide::from_small(numerator).times(PI);
        Wide { neg: py.sign, exp: angle.exp - log2_denominator, sig: angle.sig }.round(env, true)
    };
    let diagonal = |env: &mut Env| if px.sign { fraction_of_pi(env, 3, 2) } else { fraction_of_pi(env, 1, 2) };
    if py.class == Class::Infinite {
        return if px.class == Class::Infinite { diagonal(env) } else { fraction_of_pi(env, 1, 1) };
    }
    if px.class == Class::Infinite || py.class == Class::Zero {
        return if px.sign { fraction_of_pi(env, 1, 0) } else { F80::zero(py.sign) };
    }
    if px.class == Class::Zero {
        return fraction_of_pi(env, 1, 1);
    }
    if px.exp == py.exp && px.sig == py.sig {
        return diagonal(env);
    }
    let (mut wx, mut wy) = (Wide::from_parts(&px), Wide::from_parts(&py));
    (wx.neg, wy.neg) = (false, false);
    let angle = arctan(wy, wx);
    let angle = if px.sign { PI.plus(angle.negated()) } else { angle };
    Wide { neg: py.sign, ..angle }.round(env, true)
}
