//! Vectors as plain integers: a `u64` is an MMX register, a `u128` an XMM register; and what works lane by lane.
//!
//! Portable Rust on arrays, written so that LLVM turns it into the host's vector instructions.

macro_rules! lane_methods {
    ($($map:ident $each:ident $lane:ty, $signed_map:ident $signed:ty, $bytes:literal;)*) => {$(
        /// Combines the lanes of two vectors, lane by lane.
        fn $map(self, other: Self, f: impl Fn($lane, $lane) -> $lane) -> Self;
        /// The same on signed lanes.
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

/// An MMX or an XMM register's value.
pub trait Vector: Copy {
    lane_methods! {
        map8 each8 u8, map8s i8, 1;
        map16 each16 u16, map16s i16, 2;
        map32 each32 u32, map32s i32, 4;
        map64 each64 u64, map64s i64, 8;
    }
    /// Shortens both vectors to half their width with `f` and puts the second's half behind the first's.
    fn halve(self, other: Self, f: impl Fn(u128) -> u64) -> Self;
    /// The lower halves of both, with `f` giving the double-width result.
    fn unpack_low(self, other: Self, f: impl Fn(u64, u64) -> u128) -> Self;
    /// The upper halves of both, likewise.
    fn unpack_high(self, other: Self, f: impl Fn(u64, u64) -> u128) -> Self;
    /// `PSHUFB`.
    fn shuffle_bytes(self, control: Self) -> Self;
    /// The bytes of `self` above those of `low`, moved right by `count` bytes: `PALIGNR`.
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

/// The lanes of a vector, lowest first.
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

/// The inverse of [`words`].
#[inline(always)]
pub fn from_words(w: [u16; 8]) -> u128 {
    let mut out = [0u8; 16];
    for (bytes, word) in out.chunks_exact_mut(2).zip(w) {
        bytes.copy_from_slice(&word.to_le_bytes());
    }
    u128::from_le_bytes(out)
}

/// The inverse of [`dwords`].
#[inline(always)]
pub fn from_dwords(d: [u32; 4]) -> u128 {
    u128::from(d[0]) | u128::from(d[1]) << 32 | u128::from(d[2]) << 64 | u128::from(d[3]) << 96
}

/// The inverse of [`qwords`].
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

/// Words to bytes with `f`.
#[inline(always)]
pub fn narrow16(v: u128, f: impl Fn(i16) -> u8) -> u64 {
    u64::from_le_bytes(words(v).map(|w| f(w as i16)))
}

/// Doublewords to words with `f`.
#[inline(always)]
pub fn narrow32(v: u128, f: impl Fn(i32) -> u16) -> u64 {
    dwords(v).iter().rev().fold(0, |out, &d| out << 16 | u64::from(f(d as i32)))
}

/// Combines neighbouring words: `PHADDW` and its like.
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

/// One bit for the top bit of each of the lowest `N` bytes: `PMOVMSKB`.
#[inline(always)]
pub fn byte_signs<const N: usize>(v: u128) -> u64 {
    v.to_le_bytes()[..N].iter().enumerate().fold(0, |mask, (i, b)| mask | u64::from(b >> 7) << i)
}
