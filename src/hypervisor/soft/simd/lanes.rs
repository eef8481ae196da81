//! Vectors as plain integers, and operations on their lanes. A `u64` is an MMX register, a `u128` an XMM register.
//!
//! The code is portable Rust. On an x86-64 host, operations on XMM values for which the baseline has an instruction go
//! to `fast::host`.

use super::form::with2;

macro_rules! lane_methods {
    ($($map:ident $each:ident $lane:ty, $signed_map:ident $signed:ty, $bytes:literal;)*) => {$(
        /// Combines the lanes of two vectors, lane by lane.
        fn $map(self, other: Self, f: impl Fn($lane, $lane) -> $lane) -> Self;
        /// Combines signed lanes in the same way.
        #[inline(always)]
        fn $signed_map(self, other: Self, f: impl Fn($signed, $signed) -> $signed) -> Self {
            self.$map(other, |a, b| f(a as $signed, b as $signed) as $lane)
        }
        /// Changes each lane.
        #[inline(always)]
        fn $each(self, f: impl Fn($lane) -> $lane) -> Self {
            self.$map(self, |a, _| f(a))
        }
    )*};
}

/// Two-operand operations for which x86-64's baseline has an instruction: name, its intrinsic, portable definition.
macro_rules! host_operations {
    ($then:ident) => {
        $then! {
            add8 _mm_add_epi8 |a, b| a.map8(b, u8::wrapping_add);
            add16 _mm_add_epi16 |a, b| a.map16(b, u16::wrapping_add);
            add32 _mm_add_epi32 |a, b| a.map32(b, u32::wrapping_add);
            add64 _mm_add_epi64 |a, b| a.map64(b, u64::wrapping_add);
            sub8 _mm_sub_epi8 |a, b| a.map8(b, u8::wrapping_sub);
            sub16 _mm_sub_epi16 |a, b| a.map16(b, u16::wrapping_sub);
            sub32 _mm_sub_epi32 |a, b| a.map32(b, u32::wrapping_sub);
            sub64 _mm_sub_epi64 |a, b| a.map64(b, u64::wrapping_sub);
            add8s _mm_adds_epi8 |a, b| a.map8s(b, i8::saturating_add);
            add16s _mm_adds_epi16 |a, b| a.map16s(b, i16::saturating_add);
            add8us _mm_adds_epu8 |a, b| a.map8(b, u8::saturating_add);
            add16us _mm_adds_epu16 |a, b| a.map16(b, u16::saturating_add);
            sub8s _mm_subs_epi8 |a, b| a.map8s(b, i8::saturating_sub);
            sub16s _mm_subs_epi16 |a, b| a.map16s(b, i16::saturating_sub);
            sub8us _mm_subs_epu8 |a, b| a.map8(b, u8::saturating_sub);
            sub16us _mm_subs_epu16 |a, b| a.map16(b, u16::saturating_sub);
            eq8 _mm_cmpeq_epi8 |a, b| a.map8(b, |x, y| if x == y { !0 } else { 0 });
            eq16 _mm_cmpeq_epi16 |a, b| a.map16(b, |x, y| if x == y { !0 } else { 0 });
            eq32 _mm_cmpeq_epi32 |a, b| a.map32(b, |x, y| if x == y { !0 } else { 0 });
            gt8 _mm_cmpgt_epi8 |a, b| a.map8s(b, |x, y| if x > y { !0 } else { 0 });
            gt16 _mm_cmpgt_epi16 |a, b| a.map16s(b, |x, y| if x > y { !0 } else { 0 });
            gt32 _mm_cmpgt_epi32 |a, b| a.map32s(b, |x, y| if x > y { !0 } else { 0 });
            min8u _mm_min_epu8 |a, b| a.map8(b, |x, y| x.min(y));
            max8u _mm_max_epu8 |a, b| a.map8(b, |x, y| x.max(y));
            min16s _mm_min_epi16 |a, b| a.map16s(b, |x, y| x.min(y));
            max16s _mm_max_epi16 |a, b| a.map16s(b, |x, y| x.max(y));
            avg8 _mm_avg_epu8 |a, b| a.map8(b, |x, y| ((u16::from(x) + u16::from(y) + 1) >> 1) as u8);
            avg16 _mm_avg_epu16 |a, b| a.map16(b, |x, y| ((u32::from(x) + u32::from(y) + 1) >> 1) as u16);
            mul16 _mm_mullo_epi16 |a, b| a.map16(b, u16::wrapping_mul);
            mul16_high _mm_mulhi_epi16 |a, b| a.map16s(b, |x, y| ((i32::from(x) * i32::from(y)) >> 16) as i16);
            mul16u_high _mm_mulhi_epu16 |a, b| a.map16(b, |x, y| ((u32::from(x) * u32::from(y)) >> 16) as u16);
            mul32_even _mm_mul_epu32 |a, b| a.map64(b, |x, y| (x & 0xffff_ffff) * (y & 0xffff_ffff));
            mul16_add _mm_madd_epi16 |a, b| a.map32(b, |x, y| {
                let low = i32::from(x as i16) * i32::from(y as i16);
                let high = i32::from((x >> 16) as i16) * i32::from((y >> 16) as i16);
                low.wrapping_add(high) as u32
            });
            differences _mm_sad_epu8 |a, b| a.map64(b, |x, y| {
                x.to_le_bytes().iter().zip(y.to_le_bytes()).map(|(x, y)| u64::from(x.abs_diff(y))).sum()
            });
            pack16s _mm_packs_epi16 |a, b| a.halve(b, |v| narrow16(v, |x| x.clamp(-128, 127) as u8));
            pack16us _mm_packus_epi16 |a, b| a.halve(b, |v| narrow16(v, |x| x.clamp(0, 255) as u8));
            pack32s _mm_packs_epi32 |a, b| a.halve(b, |v| narrow32(v, |x| x.clamp(-32768, 32767) as u16));
            low8 _mm_unpacklo_epi8 |a, b| a.unpack_low(b, interleave8);
            low16 _mm_unpacklo_epi16 |a, b| a.unpack_low(b, interleave16);
            low32 _mm_unpacklo_epi32 |a, b| a.unpack_low(b, interleave32);
            high8 _mm_unpackhi_epi8 |a, b| a.unpack_high(b, interleave8);
            high16 _mm_unpackhi_epi16 |a, b| a.unpack_high(b, interleave16);
            high32 _mm_unpackhi_epi32 |a, b| a.unpack_high(b, interleave32);
            left16 _mm_sll_epi16 |a, b| with2(a, b.low(), |a, n| if n < 16 { a.each16(|x| x << n) } else { Self::ZERO });
            left32 _mm_sll_epi32 |a, b| with2(a, b.low(), |a, n| if n < 32 { a.each32(|x| x << n) } else { Self::ZERO });
            left64 _mm_sll_epi64 |a, b| with2(a, b.low(), |a, n| if n < 64 { a.each64(|x| x << n) } else { Self::ZERO });
            right16 _mm_srl_epi16 |a, b| with2(a, b.low(), |a, n| if n < 16 { a.each16(|x| x >> n) } else { Self::ZERO });
            right32 _mm_srl_epi32 |a, b| with2(a, b.low(), |a, n| if n < 32 { a.each32(|x| x >> n) } else { Self::ZERO });
            right64 _mm_srl_epi64 |a, b| with2(a, b.low(), |a, n| if n < 64 { a.each64(|x| x >> n) } else { Self::ZERO });
            arith16 _mm_sra_epi16 |a, b| with2(a, b.low().min(15), |a, n| a.each16(|x| (x as i16 >> n) as u16));
            arith32 _mm_sra_epi32 |a, b| with2(a, b.low().min(31), |a, n| a.each32(|x| (x as i32 >> n) as u32));
        }
    };
}
pub(super) use host_operations;

macro_rules! portable_methods {
    ($($name:ident $intrinsic:ident |$a:ident, $b:ident| $e:expr;)*) => {$(
        #[inline(always)]
        fn $name(self, other: Self) -> Self {
            let ($a, $b) = (self, other);
            $e
        }
    )*};
}

#[cfg(target_arch = "x86_64")]
macro_rules! host_methods {
    ($($name:ident $intrinsic:ident $portable:expr;)*) => {$(
        #[inline(always)]
        fn $name(self, other: Self) -> Self {
            super::fast::host::$name(self, other)
        }
    )*};
}

/// The value of an MMX or XMM register.
pub trait Vector: Copy {
    /// No bit set.
    const ZERO: Self;
    /// Returns the lower 64 bits.
    fn low(self) -> u64;
    host_operations!(portable_methods);
    lane_methods! {
        map8 each8 u8, map8s i8, 1;
        map16 each16 u16, map16s i16, 2;
        map32 each32 u32, map32s i32, 4;
        map64 each64 u64, map64s i64, 8;
    }
    /// Shortens both vectors to half their width with `f` and puts the second's half after the first's.
    fn halve(self, other: Self, f: impl Fn(u128) -> u64) -> Self;
    /// Combines the lower halves of both with `f`, which gives the double-width result.
    fn unpack_low(self, other: Self, f: impl Fn(u64, u64) -> u128) -> Self;
    /// Combines the upper halves of both in the same way.
    fn unpack_high(self, other: Self, f: impl Fn(u64, u64) -> u128) -> Self;
    /// Executes `PSHUFB`.
    fn shuffle_bytes(self, control: Self) -> Self;
    /// Returns the bytes of `self` above those of `low`, moved right by `count` bytes: `PALIGNR`.
    fn align_right(self, low: Self, count: u8) -> Self;
}

macro_rules! map_by_bytes {
    ($word:ty; $($map:ident $lane:ty, $bytes:literal;)*) => {$(
        #[inline(always)]
        fn $map(self, other: $word, f: impl Fn($lane, $lane) -> $lane) -> $word {
            let (a, b) = (self.to_le_bytes(), other.to_le_bytes());
            let mut out = [0u8; size_of::<$word>()];
            for ((out, a), b) in out.chunks_exact_mut($bytes).zip(a.chunks_exact($bytes)).zip(b.chunks_exact($bytes)) {
                let lane = |bytes: &[u8]| {
                    let mut lane = [0u8; $bytes];
                    lane.copy_from_slice(bytes);
                    <$lane>::from_le_bytes(lane)
                };
                out.copy_from_slice(&f(lane(a), lane(b)).to_le_bytes());
            }
            <$word>::from_le_bytes(out)
        }
    )*};
}

impl Vector for u64 {
    const ZERO: u64 = 0;
    #[inline(always)]
    fn low(self) -> u64 {
        self
    }
    map_by_bytes! { u64; map8 u8, 1; map16 u16, 2; map32 u32, 4; map64 u64, 8; }

    #[inline(always)]
    fn halve(self, other: u64, f: impl Fn(u128) -> u64) -> u64 {
        f(u128::from(self) | u128::from(other) << 64)
    }
    #[inline(always)]
    fn unpack_low(self, other: u64, f: impl Fn(u64, u64) -> u128) -> u64 {
        f(self, other) as u64
    }
    #[inline(always)]
    fn unpack_high(self, other: u64, f: impl Fn(u64, u64) -> u128) -> u64 {
        (f(self, other) >> 64) as u64
    }
    #[inline(always)]
    fn shuffle_bytes(self, control: u64) -> u64 {
        let table = self.to_le_bytes();
        u64::from_le_bytes(control.to_le_bytes().map(|c| if c & 0x80 != 0 { 0 } else { table[(c & 7) as usize] }))
    }
    #[inline(always)]
    fn align_right(self, low: u64, count: u8) -> u64 {
        let both = u128::from(self) << 64 | u128::from(low);
        if count < 16 { (both >> (8 * count)) as u64 } else { 0 }
    }
}

impl Vector for u128 {
    const ZERO: u128 = 0;
    #[inline(always)]
    fn low(self) -> u64 {
        self as u64
    }
    #[cfg(target_arch = "x86_64")]
    host_operations!(host_methods);
    map_by_bytes! { u128; map8 u8, 1; map16 u16, 2; map32 u32, 4; map64 u64, 8; }

    #[inline(always)]
    fn halve(self, other: u128, f: impl Fn(u128) -> u64) -> u128 {
        u128::from(f(self)) | u128::from(f(other)) << 64
    }
    #[inline(always)]
    fn unpack_low(self, other: u128, f: impl Fn(u64, u64) -> u128) -> u128 {
        f(self as u64, other as u64)
    }
    #[inline(always)]
    fn unpack_high(self, other: u128, f: impl Fn(u64, u64) -> u128) -> u128 {
        f((self >> 64) as u64, (other >> 64) as u64)
    }
    #[inline(always)]
    fn shuffle_bytes(self, control: u128) -> u128 {
        let table = self.to_le_bytes();
        u128::from_le_bytes(control.to_le_bytes().map(|c| if c & 0x80 != 0 { 0 } else { table[(c & 15) as usize] }))
    }
    #[inline(always)]
    fn align_right(self, low: u128, count: u8) -> u128 {
        match count {
            0 => low,
            1..=15 => low >> (8 * count) | self << (128 - 8 * count),
            16..=31 => self >> (8 * (count - 16)),
            _ => 0,
        }
    }
}

/// Returns the lanes of a vector, lowest first.
#[inline(always)]
pub fn words(v: u128) -> [u16; 8] {
    let b = v.to_le_bytes();
    std::array::from_fn(|i| u16::from_le_bytes([b[2 * i], b[2 * i + 1]]))
}

/// As [`words`].
#[inline(always)]
pub fn dwords(v: u128) -> [u32; 4] {
    std::array::from_fn(|i| (v >> (32 * i)) as u32)
}

/// As [`words`].
#[inline(always)]
pub fn qwords(v: u128) -> [u64; 2] {
    [v as u64, (v >> 64) as u64]
}

/// Returns the inverse of [`words`].
#[inline(always)]
pub fn from_words(w: [u16; 8]) -> u128 {
    let mut out = [0u8; 16];
    for (bytes, word) in out.chunks_exact_mut(2).zip(w) {
        bytes.copy_from_slice(&word.to_le_bytes());
    }
    u128::from_le_bytes(out)
}

/// Returns the inverse of [`dwords`].
#[inline(always)]
pub fn from_dwords(d: [u32; 4]) -> u128 {
    u128::from(d[0]) | u128::from(d[1]) << 32 | u128::from(d[2]) << 64 | u128::from(d[3]) << 96
}

/// Returns the inverse of [`qwords`].
#[inline(always)]
pub fn from_qwords(q: [u64; 2]) -> u128 {
    u128::from(q[0]) | u128::from(q[1]) << 64
}

/// Interleaves bytes: `PUNPCKLBW`.
#[inline(always)]
pub fn interleave8(a: u64, b: u64) -> u128 {
    let (a, b) = (a.to_le_bytes(), b.to_le_bytes());
    u128::from_le_bytes(std::array::from_fn(|i| if i & 1 == 0 { a[i / 2] } else { b[i / 2] }))
}

/// Interleaves words.
#[inline(always)]
pub fn interleave16(a: u64, b: u64) -> u128 {
    let (a, b) = (a.to_le_bytes(), b.to_le_bytes());
    u128::from_le_bytes(std::array::from_fn(|i| if i & 2 == 0 { a[i / 4 * 2 + i % 2] } else { b[i / 4 * 2 + i % 2] }))
}

/// Interleaves doublewords.
#[inline(always)]
pub fn interleave32(a: u64, b: u64) -> u128 {
    let (al, ah, bl, bh) = (a as u32, (a >> 32) as u32, b as u32, (b >> 32) as u32);
    from_dwords([al, bl, ah, bh])
}

/// Converts words to bytes with `f`.
#[inline(always)]
pub fn narrow16(v: u128, f: impl Fn(i16) -> u8) -> u64 {
    u64::from_le_bytes(words(v).map(|w| f(w as i16)))
}

/// Converts doublewords to words with `f`.
#[inline(always)]
pub fn narrow32(v: u128, f: impl Fn(i32) -> u16) -> u64 {
    dwords(v).iter().rev().fold(0, |out, &d| out << 16 | u64::from(f(d as i32)))
}

/// Combines neighbouring words: `PHADDW` and similar.
#[inline(always)]
pub fn pairs16(v: u128, f: impl Fn(i16, i16) -> i16) -> u64 {
    let w = words(v);
    (0..4).rev().fold(0, |out, i| out << 16 | u64::from(f(w[2 * i] as i16, w[2 * i + 1] as i16) as u16))
}

/// Combines neighbouring doublewords.
#[inline(always)]
pub fn pairs32(v: u128, f: impl Fn(u32, u32) -> u32) -> u64 {
    let d = dwords(v);
    u64::from(f(d[0], d[1])) | u64::from(f(d[2], d[3])) << 32
}

/// Returns the top bit of each byte: `PMOVMSKB`.
#[inline(always)]
pub fn byte_signs(v: u128) -> u64 {
    #[cfg(target_arch = "x86_64")]
    return super::fast::host::byte_signs(v);
    #[cfg(not(target_arch = "x86_64"))]
    v.to_le_bytes().iter().enumerate().fold(0, |mask, (i, b)| mask | u64::from(b >> 7) << i)
}
