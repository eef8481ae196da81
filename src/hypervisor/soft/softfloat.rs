//! IEEE 754 arithmetic in integers: binary32, binary64 and the x87 80-bit format, in every rounding mode, with the
//! exception flags and NaN rules of the x86 (SDM vol. 1 chapters 4.8, 8.5, 11.5, table 4-7).
//!
//! Usage: make an [`Env`] (`Env::from_mxcsr`, `Env::from_control_word`), call operations, read `env.flags`.
//!
//! | function | what |
//! |---|---|
//! | `add sub mul div sqrt (env, a, b)` | rounded to the format; for [`F80`] to `env.precision` bits (24, 53, 64) |
//! | `round_to_int(env, a, round, inexact)` | to an integral value; `inexact`: whether INEXACT may be set; never DENORMAL |
//! | `convert(env, a)` | between formats, always to the full width of the target |
//! | `to_int(env, a, bits, round)` | to a signed integer of 16, 32 or 64 bits, the "integer indefinite" with INVALID when it does not fit; never DENORMAL |
//! | `from_int(env, i64)` | from an integer, to the full width of the target |
//! | `compare(env, a, b, signalling)` | `signalling`: quiet NaNs raise INVALID too (COMISS, FCOM) |
//! | `unpack`, [`Unpacked`], `round_pack` | the building blocks, for what is not here |
//!
//! Flags have the bit positions of MXCSR and the x87 status word; [`flag::ROUNDED_UP`] has C1's (FSW bit 9) and says
//! that the last rounding went away from zero. Tininess is detected after rounding. With underflow or overflow unmasked
//! the result has its exponent wrapped (F80: by 24576), as the x87 leaves it in a register. NaNs: `F32` and `F64`
//! follow the SSE rule (first operand), `F80` the x87 rule (larger significand); for an x87 operand in memory use
//! [`widen`], which keeps a signalling NaN signalling.

/// Exception flags: the bits of MXCSR 5:0 and of the x87 status word.
pub mod flag {
    /// IE.
    pub const INVALID: u32 = 1;
    /// DE.
    pub const DENORMAL: u32 = 2;
    /// ZE.
    pub const DIVIDE: u32 = 4;
    /// OE.
    pub const OVERFLOW: u32 = 8;
    /// UE.
    pub const UNDERFLOW: u32 = 16;
    /// PE.
    pub const INEXACT: u32 = 32;
    /// All six.
    pub const ALL: u32 = 63;
    /// Exceptions that are found before the operation is carried out. If one of them is unmasked, the others are not
    /// looked for.
    pub const BEFORE: u32 = INVALID | DENORMAL | DIVIDE;
    /// C1 of the x87: the result was rounded away from zero.
    pub const ROUNDED_UP: u32 = 1 << 9;
}

/// Rounding modes in the encoding of MXCSR.RC, FCW.RC and ROUNDSS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Round {
    /// To nearest, ties to even.
    Nearest = 0,
    /// Towards minus infinity.
    Down = 1,
    /// Towards plus infinity.
    Up = 2,
    /// Towards zero.
    Zero = 3,
}

impl Round {
    /// Returns the mode for the two-bit field.
    #[inline]
    pub fn from_bits(bits: u32) -> Round {
        match bits & 3 {
            0 => Round::Nearest,
            1 => Round::Down,
            2 => Round::Up,
            _ => Round::Zero,
        }
    }
}

/// Environment of a computation: the modes, and the flags that it raised.
#[derive(Debug, Clone, Copy)]
pub struct Env {
    /// Rounding mode.
    pub round: Round,
    /// Exceptions raised so far, as `flag` bits.
    pub flags: u32,
    /// Masked exceptions, as `flag` bits.
    pub masks: u32,
    /// Bits of significand that F80 arithmetic rounds to: 24, 53 or 64.
    pub precision: u32,
    /// MXCSR.FZ: tiny results become zero while underflow is masked.
    pub flush: bool,
    /// MXCSR.DAZ: denormal operands count as zero.
    pub daz: bool,
}

impl Env {
    /// Returns the environment that MXCSR asks for, with no flags.
    #[inline]
    pub fn from_mxcsr(mxcsr: u32) -> Env {
        Env {
            round: Round::from_bits(mxcsr >> 13),
            flags: 0,
            masks: mxcsr >> 7 & flag::ALL,
            precision: 64,
            flush: mxcsr >> 15 & 1 != 0,
            daz: mxcsr >> 6 & 1 != 0,
        }
    }

    /// Returns the environment that the x87 control word asks for, with no flags.
    #[inline]
    pub fn from_control_word(fcw: u16) -> Env {
        Env {
            round: Round::from_bits(u32::from(fcw) >> 10),
            flags: 0,
            masks: u32::from(fcw) & flag::ALL,
            precision: match fcw >> 8 & 3 {
                0 => 24,
                2 => 53,
                _ => 64,
            },
            flush: false,
            daz: false,
        }
    }

    /// Returns the flags that are set and not masked.
    #[inline]
    pub fn unmasked(&self) -> u32 {
        self.flags & !self.masks & flag::ALL
    }

    fn invalid<F: Float>(&mut self) -> F {
        self.flags |= flag::INVALID;
        F::nan(true, 3 << 62)
    }

    fn note_denormals(&mut self, a: &Unpacked, b: &Unpacked) {
        if a.denormal || b.denormal {
            self.flags |= flag::DENORMAL;
        }
    }
}

/// Class of a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// A zero.
    Zero,
    /// Neither zero nor infinite.
    Finite,
    /// An infinity.
    Infinite,
    /// A quiet NaN.
    Quiet,
    /// A signalling NaN.
    Signalling,
    /// An 80-bit encoding that is no number: unnormal, pseudo-infinity, pseudo-NaN.
    Unsupported,
}

/// A number split into its fields. A finite one has the value `sig * 2^(exp - 63)`, with bit 63 of `sig` set. For a NaN
/// `sig` is the significand, left-aligned, with bit 63 set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unpacked {
    /// Class of the number.
    pub class: Class,
    /// The sign bit.
    pub sign: bool,
    /// Whether it was encoded as a denormal.
    pub denormal: bool,
    /// Unbiased exponent.
    pub exp: i32,
    /// Significand.
    pub sig: u64,
}

impl Unpacked {
    /// Returns whether it is a NaN of either kind, or an unsupported encoding.
    #[inline]
    pub fn is_nan(&self) -> bool {
        matches!(self.class, Class::Quiet | Class::Signalling | Class::Unsupported)
    }
    #[inline]
    fn signals(&self) -> bool {
        matches!(self.class, Class::Signalling | Class::Unsupported)
    }
}

/// binary32, as its bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct F32(pub u32);

/// binary64, as its bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct F64(pub u64);

/// The x87's double extended format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct F80 {
    /// Significand with its explicit integer bit.
    pub mantissa: u64,
    /// Sign in bit 15, exponent below.
    pub sign_exp: u16,
}

/// A floating-point format.
pub trait Float: Copy + PartialEq {
    /// Bits of significand, the integer bit included.
    const DIGITS: u32;
    /// Exponent of the smallest normal number.
    const EMIN: i32;
    /// Exponent of the largest number.
    const EMAX: i32;
    /// Amount by which unmasked overflow and underflow move the exponent.
    const WRAP: i32;
    /// Splits the encoding into its fields; no flags, no DAZ.
    fn unpack(self) -> Unpacked;
    /// Builds a number from sign, biased exponent and left-aligned significand with integer bit (clear for denormals
    /// and zero, whose exponent is 0).
    fn pack(sign: bool, biased: u32, sig: u64) -> Self;
    /// Returns the result for two operands of which one is a NaN or unsupported; no flags.
    fn nan_of(a: Self, b: Self) -> Self;

    /// Returns a quiet NaN with the given left-aligned significand.
    #[inline]
    fn nan(sign: bool, sig: u64) -> Self {
        Self::pack(sign, (2 * Self::EMAX + 1) as u32, sig | 3 << 62)
    }
    /// Returns a zero.
    #[inline]
    fn zero(sign: bool) -> Self {
        Self::pack(sign, 0, 0)
    }
    /// Returns an infinity.
    #[inline]
    fn infinity(sign: bool) -> Self {
        Self::pack(sign, (2 * Self::EMAX + 1) as u32, 1 << 63)
    }
    /// Returns the NaN made quiet.
    #[inline]
    fn quieted(self) -> Self {
        let p = self.unpack();
        if p.class == Class::Unsupported { Self::nan(true, 3 << 62) } else { Self::nan(p.sign, p.sig) }
    }
}

/// Unpacks a binary interchange format with `frac_bits` of fraction below an exponent of `exp_bits`.
#[inline(always)]
fn unpack_ieee(bits: u64, frac_bits: u32, exp_bits: u32) -> Unpacked {
    let bias = (1i32 << (exp_bits - 1)) - 1;
    let sign = bits >> (frac_bits + exp_bits) & 1 != 0;
    let biased = (bits >> frac_bits) as i32 & ((1 << exp_bits) - 1);
    let frac = bits << (64 - frac_bits);
    let sig = frac >> 1 | 1 << 63;
    if biased == (1 << exp_bits) - 1 {
        let class = match (frac == 0, frac >> 63) {
            (true, _) => Class::Infinite,
            (_, 1) => Class::Quiet,
            _ => Class::Signalling,
        };
        Unpacked { class, sign, denormal: false, exp: bias + 1, sig }
    } else if biased == 0 {
        let shift = frac.leading_zeros() as i32;
        let class = if frac == 0 { Class::Zero } else { Class::Finite };
        let sig = if frac == 0 { 0 } else { frac << shift };
        Unpacked { class, sign, denormal: frac != 0, exp: -bias - shift, sig }
    } else {
        Unpacked { class: Class::Finite, sign, denormal: false, exp: biased - bias, sig }
    }
}

macro_rules! ieee_format {
    ($name:ident, $bits:ty, $frac_bits:literal, $exp_bits:literal, $wrap:literal) => {
        impl Float for $name {
            const DIGITS: u32 = $frac_bits + 1;
            const EMIN: i32 = 2 - (1 << ($exp_bits - 1));
            const EMAX: i32 = (1 << ($exp_bits - 1)) - 1;
            const WRAP: i32 = $wrap;
            #[inline]
            fn unpack(self) -> Unpacked {
                unpack_ieee(u64::from(self.0), $frac_bits, $exp_bits)
            }
            #[inline]
            fn pack(sign: bool, biased: u32, sig: u64) -> $name {
                let frac = (sig << 1 >> (64 - $frac_bits)) as $bits;
                $name((sign as $bits) << ($frac_bits + $exp_bits) | (biased as $bits) << $frac_bits | frac)
            }
            #[inline]
            fn nan_of(a: $name, b: $name) -> $name {
                if a.unpack().is_nan() { a.quieted() } else { b.quieted() }
            }
        }
    };
}
ieee_format!(F32, u32, 23, 8, 192);
ieee_format!(F64, u64, 52, 11, 1536);

impl Float for F80 {
    const DIGITS: u32 = 64;
    const EMIN: i32 = -16382;
    const EMAX: i32 = 16383;
    const WRAP: i32 = 24576;

    fn unpack(self) -> Unpacked {
        let sign = self.sign_exp >> 15 != 0;
        let biased = i32::from(self.sign_exp & 0x7fff);
        let integer = self.mantissa >> 63 != 0;
        let parts = |class, denormal, exp, sig| Unpacked { class, sign, denormal, exp, sig };
        if biased == 0 {
            if self.mantissa == 0 {
                return parts(Class::Zero, false, 0, 0);
            }
            let shift = self.mantissa.leading_zeros();
            return parts(Class::Finite, true, F80::EMIN - shift as i32, self.mantissa << shift);
        }
        let class = match (integer, biased == 0x7fff, self.mantissa << 1) {
            (false, ..) => Class::Unsupported,
            (_, false, _) => Class::Finite,
            (_, _, 0) => Class::Infinite,
            (_, _, frac) if frac >> 63 != 0 => Class::Quiet,
            _ => Class::Signalling,
        };
        parts(class, false, biased - 16383, self.mantissa)
    }

    fn pack(sign: bool, biased: u32, sig: u64) -> F80 {
        F80 { mantissa: sig, sign_exp: (sign as u16) << 15 | biased as u16 }
    }

    fn nan_of(a: F80, b: F80) -> F80 {
        use Class::{Quiet, Signalling, Unsupported};
        let (pa, pb) = (a.unpack(), b.unpack());
        match (pa.class, pb.class) {
            (Unsupported, _) | (_, Unsupported) => F80::nan(true, 3 << 62),
            (Signalling, Quiet) => b,
            (Quiet, Signalling) => a,
            (Signalling, Signalling) | (Quiet, Quiet) => {
                let first = match a.mantissa.cmp(&b.mantissa) {
                    std::cmp::Ordering::Less => false,
                    std::cmp::Ordering::Greater => true,
                    std::cmp::Ordering::Equal => a.sign_exp < b.sign_exp,
                };
                if first { a.quieted() } else { b.quieted() }
            }
            (Signalling | Quiet, _) => a.quieted(),
            _ => b.quieted(),
        }
    }
}

/// Splits an operand into its fields, with DAZ applied.
#[inline]
pub fn operand<F: Float>(env: &Env, a: F) -> Unpacked {
    let p = a.unpack();
    if p.denormal && env.daz { Unpacked { class: Class::Zero, denormal: false, exp: 0, sig: 0, ..p } } else { p }
}

/// Shifts right. Bits that fall off are kept as "not zero" in bit 0.
#[inline]
pub fn shift_right_jam(value: u128, count: u32) -> u128 {
    match count {
        0 => value,
        1..=127 => value >> count | u128::from(value << (128 - count) != 0),
        _ => u128::from(value != 0),
    }
}

/// Returns whether a value whose last kept bit is `odd` and whose dropped bits are `low` of `1 << width` is rounded
/// away from zero.
#[inline]
fn rounds_up(round: Round, sign: bool, odd: bool, low: u128, half: u128) -> bool {
    match round {
        Round::Nearest => low > half || low == half && odd,
        Round::Down => sign && low != 0,
        Round::Up => !sign && low != 0,
        Round::Zero => false,
    }
}

struct Rounded {
    sig: u64,
    carry: bool,
    inexact: bool,
    up: bool,
}

/// Rounds to the `digits` upper bits of `sig`. On a carry out of the top, `sig` is the power of two above.
fn round_significand(round: Round, sign: bool, sig: u128, digits: u32) -> Rounded {
    let drop = 128 - digits;
    let low = sig & ((1 << drop) - 1);
    let kept = sig >> drop;
    let up = rounds_up(round, sign, kept & 1 != 0, low, 1 << (drop - 1));
    let kept = kept + u128::from(up);
    let carry = kept >> digits != 0;
    let sig = if carry { 1 << 63 } else { (kept as u64) << (64 - digits) };
    Rounded { sig, carry, inexact: low != 0, up }
}

/// Rounds the value `sig * 2^(exp - 127)` (bit 127 of `sig` set; bit 0 may be sticky) to `digits` bits in format `F`.
/// Notes overflow, underflow, inexactness and the direction.
pub fn round_pack<F: Float>(env: &mut Env, sign: bool, mut exp: i32, sig: u128, digits: u32) -> F {
    let mut rounded = round_significand(env.round, sign, sig, digits);
    env.flags &= !flag::ROUNDED_UP;
    let tiny = exp < F::EMIN && !(exp == F::EMIN - 1 && rounded.carry);
    if tiny && env.masks & flag::UNDERFLOW == 0 {
        env.flags |= flag::UNDERFLOW;
        exp += F::WRAP;
    } else if tiny && env.flush {
        env.flags |= flag::UNDERFLOW | flag::INEXACT;
        return F::zero(sign);
    } else if tiny {
        rounded = round_significand(env.round, sign, shift_right_jam(sig, (F::EMIN - exp) as u32), digits);
        note_inexact(env, &rounded);
        if rounded.inexact {
            env.flags |= flag::UNDERFLOW;
        }
        return F::pack(sign, (rounded.sig >> 63) as u32, rounded.sig);
    }
    exp += i32::from(rounded.carry);
    if exp > F::EMAX {
        env.flags |= flag::OVERFLOW;
        if env.masks & flag::OVERFLOW != 0 {
            env.flags |= flag::INEXACT;
            if rounds_up(env.round, sign, true, 3, 2) {
                env.flags |= flag::ROUNDED_UP;
                return F::infinity(sign);
            }
            return F::pack(sign, (2 * F::EMAX) as u32, !0 << (64 - digits));
        }
        exp -= F::WRAP;
    }
    note_inexact(env, &rounded);
    F::pack(sign, (exp + F::EMAX) as u32, rounded.sig)
}

fn note_inexact(env: &mut Env, rounded: &Rounded) {
    if rounded.inexact {
        env.flags |= flag::INEXACT;
    }
    if rounded.up {
        env.flags |= flag::ROUNDED_UP;
    }
}

/// Returns the number of bits that arithmetic in `F` rounds to.
#[inline]
fn digits<F: Float>(env: &Env) -> u32 {
    if F::DIGITS == 64 { env.precision } else { F::DIGITS }
}

/// Returns the result for operands of which one is a NaN.
fn nan_result<F: Float>(env: &mut Env, a: F, b: F, pa: &Unpacked, pb: &Unpacked) -> Option<F> {
    if !pa.is_nan() && !pb.is_nan() {
        return None;
    }
    if pa.signals() || pb.signals() {
        env.flags |= flag::INVALID;
    }
    Some(F::nan_of(a, b))
}

/// Returns `a + b`.
pub fn add<F: Float>(env: &mut Env, a: F, b: F) -> F {
    add_signed(env, a, b, false)
}

/// Returns `a - b`.
pub fn sub<F: Float>(env: &mut Env, a: F, b: F) -> F {
    add_signed(env, a, b, true)
}

fn add_signed<F: Float>(env: &mut Env, a: F, b: F, negate: bool) -> F {
    let (pa, mut pb) = (operand(env, a), operand(env, b));
    if let Some(nan) = nan_result(env, a, b, &pa, &pb) {
        return nan;
    }
    pb.sign ^= negate;
    env.flags &= !flag::ROUNDED_UP;
    match (pa.class, pb.class) {
        (Class::Infinite, Class::Infinite) if pa.sign != pb.sign => return env.invalid(),
        (Class::Infinite, _) | (_, Class::Infinite) => {
            env.note_denormals(&pa, &pb);
            return F::infinity(if pa.class == Class::Infinite { pa.sign } else { pb.sign });
        }
        (Class::Zero, Class::Zero) => return F::zero(if pa.sign == pb.sign { pa.sign } else { env.round == Round::Down }),
        _ => {}
    }
    env.note_denormals(&pa, &pb);
    let first = pb.class == Class::Zero || pa.class != Class::Zero && (pa.exp, pa.sig) >= (pb.exp, pb.sig);
    let (large, small) = if first { (pa, pb) } else { (pb, pa) };
    let upper = u128::from(large.sig) << 63;
    let lower =
        if small.class == Class::Zero { 0 } else { shift_right_jam(u128::from(small.sig) << 63, (large.exp - small.exp) as u32) };
    let sum = if pa.sign == pb.sign { upper + lower } else { upper - lower };
    if sum == 0 {
        return F::zero(env.round == Round::Down);
    }
    let shift = sum.leading_zeros();
    let digits = digits::<F>(env);
    round_pack(env, large.sign, large.exp + 1 - shift as i32, sum << shift, digits)
}

/// Returns `a * b`.
pub fn mul<F: Float>(env: &mut Env, a: F, b: F) -> F {
    let (pa, pb) = (operand(env, a), operand(env, b));
    if let Some(nan) = nan_result(env, a, b, &pa, &pb) {
        return nan;
    }
    let sign = pa.sign != pb.sign;
    env.flags &= !flag::ROUNDED_UP;
    match (pa.class, pb.class) {
        (Class::Infinite, Class::Zero) | (Class::Zero, Class::Infinite) => return env.invalid(),
        (Class::Finite, Class::Finite) => {}
        (x, y) => {
            env.note_denormals(&pa, &pb);
            let infinite = x == Class::Infinite || y == Class::Infinite;
            return if infinite { F::infinity(sign) } else { F::zero(sign) };
        }
    }
    env.note_denormals(&pa, &pb);
    let product = u128::from(pa.sig) * u128::from(pb.sig);
    let shift = product.leading_zeros();
    let digits = digits::<F>(env);
    round_pack(env, sign, pa.exp + pb.exp + 1 - shift as i32, product << shift, digits)
}

/// Returns `a / b`.
pub fn div<F: Float>(env: &mut Env, a: F, b: F) -> F {
    let (pa, pb) = (operand(env, a), operand(env, b));
    if let Some(nan) = nan_result(env, a, b, &pa, &pb) {
        return nan;
    }
    let sign = pa.sign != pb.sign;
    env.flags &= !flag::ROUNDED_UP;
    match (pa.class, pb.class) {
        (Class::Infinite, Class::Infinite) | (Class::Zero, Class::Zero) => return env.invalid(),
        (Class::Finite, Class::Zero) => {
            env.flags |= flag::DIVIDE;
            return F::infinity(sign);
        }
        (Class::Finite, Class::Finite) => {}
        (x, _) => {
            env.note_denormals(&pa, &pb);
            return if x == Class::Infinite { F::infinity(sign) } else { F::zero(sign) };
        }
    }
    env.note_denormals(&pa, &pb);
    // The quotient's top 64 bits, then the 64 below: scaled so that bit 127 is set.
    let below = pa.sig < pb.sig;
    let divisor = u128::from(pb.sig);
    let dividend = u128::from(pa.sig) << if below { 64 } else { 63 };
    let (high, rest) = (dividend / divisor, dividend % divisor);
    let (low, rest) = ((rest << 64) / divisor, (rest << 64) % divisor);
    let quotient = high << 64 | low | u128::from(rest != 0);
    let digits = digits::<F>(env);
    round_pack(env, sign, pa.exp - pb.exp - i32::from(below), quotient, digits)
}

/// Returns the square root.
pub fn sqrt<F: Float>(env: &mut Env, a: F) -> F {
    let p = operand(env, a);
    if let Some(nan) = nan_result(env, a, a, &p, &p) {
        return nan;
    }
    env.flags &= !flag::ROUNDED_UP;
    match p.class {
        Class::Zero => return F::zero(p.sign),
        _ if p.sign => return env.invalid(),
        Class::Infinite => return a,
        _ => env.note_denormals(&p, &p),
    }
    // The radicand in [1, 4) with 126 fraction bits; 64 bits of the root, then four more and a sticky bit.
    let odd = p.exp & 1;
    let radicand = u128::from(p.sig) << (63 + odd);
    let mut root = radicand.isqrt();
    let mut rest = radicand - root * root;
    for _ in 0..4 {
        rest <<= 2;
        let trial = root << 2 | 1;
        root <<= 1;
        if rest >= trial {
            rest -= trial;
            root |= 1;
        }
    }
    let digits = digits::<F>(env);
    round_pack(env, false, (p.exp - odd) / 2, root << 60 | u128::from(rest != 0), digits)
}

/// Rounds the magnitude of a finite number to an integer: value below 2^65, whether inexact, whether rounded up.
/// Returns `None` from 2^64 on.
fn integer_magnitude(p: &Unpacked, round: Round) -> Option<(u128, bool, bool)> {
    let fixed = match p.exp {
        64.. => return None,
        -1..=63 => u128::from(p.sig) << (p.exp + 1),
        _ => shift_right_jam(u128::from(p.sig), (-1 - p.exp) as u32),
    };
    let (whole, low) = (fixed >> 64, fixed & u128::from(u64::MAX));
    let up = rounds_up(round, p.sign, whole & 1 != 0, low, 1 << 63);
    Some((whole + u128::from(up), low != 0, up))
}

/// Rounds to an integral value. Sets INEXACT only if `inexact`.
pub fn round_to_int<F: Float>(env: &mut Env, a: F, round: Round, inexact: bool) -> F {
    let p = operand(env, a);
    if let Some(nan) = nan_result(env, a, a, &p, &p) {
        return nan;
    }
    env.flags &= !flag::ROUNDED_UP;
    match p.class {
        Class::Zero => return F::zero(p.sign),
        Class::Infinite => return a,
        _ => {}
    }
    let Some((whole, lossy, up)) = integer_magnitude(&p, round) else { return a };
    if lossy && inexact {
        env.flags |= flag::INEXACT;
    }
    if up {
        env.flags |= flag::ROUNDED_UP;
    }
    if whole == 0 {
        return F::zero(p.sign);
    }
    let shift = whole.leading_zeros();
    F::pack(p.sign, (127 - shift as i32 + F::EMAX) as u32, (whole << shift >> 64) as u64)
}

/// Converts from one format to another.
pub fn convert<A: Float, B: Float>(env: &mut Env, a: A) -> B {
    let p = operand(env, a);
    env.flags &= !flag::ROUNDED_UP;
    match p.class {
        Class::Unsupported => env.invalid(),
        Class::Quiet | Class::Signalling => {
            if p.signals() {
                env.flags |= flag::INVALID;
            }
            B::nan(p.sign, p.sig)
        }
        Class::Infinite => B::infinity(p.sign),
        Class::Zero => B::zero(p.sign),
        Class::Finite => {
            env.note_denormals(&p, &p);
            round_pack(env, p.sign, p.exp, u128::from(p.sig) << 64, B::DIGITS)
        }
    }
}

/// Converts a 32- or 64-bit number to an 80-bit one, exactly: no flags, and a signalling NaN stays one.
pub fn widen<A: Float>(a: A) -> F80 {
    let p = a.unpack();
    match p.class {
        Class::Zero => F80::zero(p.sign),
        Class::Finite => F80::pack(p.sign, (p.exp + F80::EMAX) as u32, p.sig),
        _ => F80::pack(p.sign, 0x7fff, p.sig),
    }
}

/// Converts from a signed integer.
pub fn from_int<F: Float>(env: &mut Env, value: i64) -> F {
    env.flags &= !flag::ROUNDED_UP;
    if value == 0 {
        return F::zero(false);
    }
    let magnitude = value.unsigned_abs();
    let shift = magnitude.leading_zeros();
    round_pack(env, value < 0, 63 - shift as i32, u128::from(magnitude << shift) << 64, F::DIGITS)
}

/// Converts to a signed integer of `bits` bits, sign-extended. Where it does not fit, the result is the smallest one,
/// with INVALID.
pub fn to_int<F: Float>(env: &mut Env, a: F, bits: u32, round: Round) -> i64 {
    let p = operand(env, a);
    env.flags &= !flag::ROUNDED_UP;
    let limit = 1u128 << (bits - 1);
    let rounded = match p.class {
        Class::Zero => return 0,
        Class::Finite => integer_magnitude(&p, round),
        _ => None,
    };
    match rounded {
        Some((whole, inexact, up)) if whole < limit || p.sign && whole == limit => {
            if inexact {
                env.flags |= flag::INEXACT;
            }
            if up {
                env.flags |= flag::ROUNDED_UP;
            }
            if p.sign { (whole as i64).wrapping_neg() } else { whole as i64 }
        }
        _ => {
            env.flags |= flag::INVALID;
            i64::MIN >> (64 - bits)
        }
    }
}

/// Relation of two numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Relation {
    /// `a < b`.
    Less,
    /// `a == b`.
    Equal,
    /// `a > b`.
    Greater,
    /// At least one is a NaN.
    Unordered,
}

/// Compares two numbers. With `signalling` a quiet NaN raises INVALID, as a signalling one always does.
pub fn compare<F: Float>(env: &mut Env, a: F, b: F, signalling: bool) -> Relation {
    let (pa, pb) = (operand(env, a), operand(env, b));
    if pa.is_nan() || pb.is_nan() {
        if signalling || pa.signals() || pb.signals() {
            env.flags |= flag::INVALID;
        }
        return Relation::Unordered;
    }
    env.note_denormals(&pa, &pb);
    let key = |p: &Unpacked| {
        let magnitude = match p.class {
            Class::Zero => 0,
            Class::Infinite => i128::MAX,
            _ => i128::from(p.exp + 20000) << 64 | i128::from(p.sig),
        };
        if p.sign { -magnitude } else { magnitude }
    };
    match key(&pa).cmp(&key(&pb)) {
        std::cmp::Ordering::Less => Relation::Less,
        std::cmp::Ordering::Equal => Relation::Equal,
        std::cmp::Ordering::Greater => Relation::Greater,
    }
}

#[cfg(all(test, target_arch = "x86_64"))]
#[allow(unsafe_code)]
mod tests {
    use super::*;
    use std::arch::asm;

    struct Random(u64);

    impl Random {
        fn next(&mut self) -> u64 {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
        }
        /// Returns a significand with long runs of equal bits, so that roundings tie and carry.
        fn sig(&mut self) -> u64 {
            match self.next() & 7 {
                0 => 0,
                1 => !0,
                2 => 1 << (self.next() & 63),
                3 => !0 << (self.next() & 63),
                4 => !0 >> (self.next() & 63),
                5 => self.next() & 7,
                _ => self.next(),
            }
        }
        fn f80(&mut self) -> F80 {
            let exp = match self.next() % 12 {
                0 => 0,
                1 => 0x7fff,
                2 => 1 + self.next() % 70,
                3 => 0x7ffe - self.next() % 70,
                4 => 0x2000 + self.next() % 70,
                5 => 0x5fff - self.next() % 70,
                _ => 0x3fff + self.next() % 140 - 70,
            } as u16;
            let integer = if exp == 0 { 0 } else { 1 << 63 };
            let odd = if self.next() % 40 == 0 { 1 << 63 } else { 0 };
            F80 { mantissa: (self.sig() & !(1 << 63) | integer) ^ odd, sign_exp: exp | (self.next() as u16 & 0x8000) }
        }
        fn f64(&mut self) -> u64 {
            let exp = match self.next() % 10 {
                0 => 0,
                1 => 0x7ff,
                2 => self.next() & 0x7ff,
                3 => 0x7fe - self.next() % 60,
                4 => 1 + self.next() % 60,
                _ => 0x3ff + self.next() % 120 - 60,
            };
            self.sig() >> 12 | exp << 52 | self.next() & 1 << 63
        }
    }

    #[repr(C, packed)]
    #[derive(Clone, Copy)]
    struct Mem80(u64, u16);

    macro_rules! x87 {
        ($name:ident, $($line:literal),*) => {
            fn $name(cw: u16, a: F80, b: F80) -> (F80, u32) {
                let (a, b) = (Mem80(a.mantissa, a.sign_exp), Mem80(b.mantissa, b.sign_exp));
                let mut out = Mem80(0, 0);
                let mut sw: u32 = 0;
                // SAFETY: the block leaves the x87 as FNINIT does and touches only the named memory.
                unsafe {
                    asm!("fninit", "fldcw [{cw}]", "fld tbyte ptr [{b}]", "fld tbyte ptr [{a}]", $($line,)*
                         "fnstsw ax", "fstp tbyte ptr [{out}]", "mov [{sw}], ax", "fninit",
                         cw = in(reg) &cw, a = in(reg) &a, b = in(reg) &b, out = in(reg) &mut out, sw = in(reg) &mut sw,
                         out("ax") _, out("st(0)") _, out("st(1)") _, out("st(2)") _, out("st(3)") _,
                         out("st(4)") _, out("st(5)") _, out("st(6)") _, out("st(7)") _);
                }
                (F80 { mantissa: out.0, sign_exp: out.1 }, sw & (flag::ALL | flag::ROUNDED_UP))
            }
        };
    }
    x87!(host_add, "fadd st, st(1)");
    x87!(host_sub, "fsub st, st(1)");
    x87!(host_mul, "fmul st, st(1)");
    x87!(host_div, "fdiv st, st(1)");
    x87!(host_sqrt, "fsqrt");
    x87!(host_rndint, "frndint");

    fn check80(name: &str, host: fn(u16, F80, F80) -> (F80, u32), soft: fn(&mut Env, F80, F80) -> F80, ignore: u32) {
        let mut random = Random(0x1234_5678_9abc_def1);
        for i in 0..60_000u32 {
            let (a, b) = (random.f80(), random.f80());
            let precision = [0u16, 2, 3][(i % 3) as usize];
            let cw = 0x7f | precision << 8 | ((random.next() & 3) as u16) << 10;
            let want = host(cw, a, b);
            let mut env = Env::from_control_word(cw);
            let got = soft(&mut env, a, b);
            // C1 after an invalid operation is not specified.
            let skip = ignore | if want.1 & flag::INVALID != 0 { flag::ROUNDED_UP } else { 0 };
            assert_eq!(
                (got, env.flags & !skip),
                (want.0, want.1 & !skip),
                "{name} {a:x?} {b:x?} cw {cw:x} host {want:x?} soft {got:x?} {:x}",
                env.flags
            );
        }
    }

    #[test]
    fn f80_arithmetic_is_the_host_x87_s() {
        check80("add", host_add, add, 0);
        check80("sub", host_sub, sub, 0);
        check80("mul", host_mul, mul, 0);
        check80("div", host_div, div, 0);
        check80("sqrt", host_sqrt, |e, a, _| sqrt(e, a), 0);
        check80(
            "frndint",
            host_rndint,
            |e, a, _| {
                let r = e.round;
                round_to_int(e, a, r, true)
            },
            flag::DENORMAL,
        );
    }

    macro_rules! sse {
        ($name:ident, $op:literal) => {
            fn $name(mxcsr: u32, a: u64, b: u64) -> (u64, u32) {
                let mut out = a;
                let mut after = 0u32;
                let plain = 0x1f80u32;
                // SAFETY: MXCSR is set back; only the named memory is touched.
                unsafe {
                    asm!("ldmxcsr [{m}]", "movq xmm0, [{o}]", "movq xmm1, [{b}]", $op, "movq [{o}], xmm0",
                         "stmxcsr [{after}]", "ldmxcsr [{plain}]",
                         m = in(reg) &mxcsr, o = in(reg) &mut out, b = in(reg) &b, after = in(reg) &mut after,
                         plain = in(reg) &plain, out("xmm0") _, out("xmm1") _);
                }
                (out, after & flag::ALL)
            }
        };
    }
    sse!(host_addsd, "addsd xmm0, xmm1");
    sse!(host_subsd, "subsd xmm0, xmm1");
    sse!(host_mulsd, "mulsd xmm0, xmm1");
    sse!(host_divsd, "divsd xmm0, xmm1");
    sse!(host_sqrtsd, "sqrtsd xmm0, xmm1");
    sse!(host_cvtsd2ss, "cvtsd2ss xmm0, xmm1");

    fn check64(name: &str, host: fn(u32, u64, u64) -> (u64, u32), soft: fn(&mut Env, u64, u64) -> u64) {
        let mut random = Random(0x1234_5678_9abc_def1);
        for _ in 0..100_000u32 {
            let (a, b) = (random.f64(), random.f64());
            let mxcsr = 0x1f80 | (random.next() as u32 & 0xe040);
            let want = host(mxcsr, a, b);
            let mut env = Env::from_mxcsr(mxcsr);
            let got = soft(&mut env, a, b);
            assert_eq!((got, env.flags & flag::ALL), want, "{name} {a:x} {b:x} mxcsr {mxcsr:x}");
        }
    }

    #[test]
    fn f64_arithmetic_is_the_host_s() {
        check64("addsd", host_addsd, |e, a, b| add(e, F64(a), F64(b)).0);
        check64("subsd", host_subsd, |e, a, b| sub(e, F64(a), F64(b)).0);
        check64("mulsd", host_mulsd, |e, a, b| mul(e, F64(a), F64(b)).0);
        check64("divsd", host_divsd, |e, a, b| div(e, F64(a), F64(b)).0);
        check64("sqrtsd", host_sqrtsd, |e, _, b| sqrt(e, F64(b)).0);
        check64("cvtsd2ss", host_cvtsd2ss, |e, a, b| a >> 32 << 32 | u64::from(convert::<F64, F32>(e, F64(b)).0));
    }

    #[test]
    fn integers_that_do_not_fit_become_the_indefinite_one() {
        let mut env = Env::from_mxcsr(0x1f80);
        assert_eq!(to_int(&mut env, F64(f64::to_bits(2147483647.5)), 32, Round::Nearest), i64::from(i32::MIN));
        assert_eq!(env.flags, flag::INVALID);
        env.flags = 0;
        assert_eq!(to_int(&mut env, F64(f64::to_bits(-2147483648.5)), 32, Round::Nearest), i64::from(i32::MIN));
        assert_eq!(env.flags, flag::INEXACT);
        assert_eq!(from_int::<F64>(&mut env, i64::MIN).0, f64::to_bits(i64::MIN as f64));
    }
}
