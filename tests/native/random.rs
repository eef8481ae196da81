//! Random numbers, biased to those that make arithmetic interesting.

/// xorshift64*, seeded through splitmix64 so that neighbouring seeds differ.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64, stream: u64) -> Random {
        let mut z = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(stream.wrapping_mul(0xd1b5_4a32_d192_ed03));
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        Random((z ^ z >> 31) | 1)
    }
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
    /// Below `n`.
    pub fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 32) % n
    }
    /// True once in `n`.
    pub fn once_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }

    /// An integer.
    pub fn integer(&mut self) -> u64 {
        match self.below(8) {
            0 => self.pick(&[0, 1, 2, 0x7f, 0x80, 0xff, 0x7fff, 0x8000, 0xffff, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff]),
            1 => self.pick(&[u64::MAX, u64::MAX - 1, 1 << 63, (1 << 63) - 1, 0xffff_ffff_0000_0000, 0xffff_ffff_8000_0000]),
            2 => 1 << self.below(64),
            3 => (1u64 << self.below(64)).wrapping_sub(1),
            4 => self.below(256),
            5 => (self.below(256) as i8) as i64 as u64,
            6 => self.next() >> self.below(64),
            _ => self.next(),
        }
    }

    pub fn f32_bits(&mut self) -> u32 {
        let r = self.next() as u32;
        match self.below(12) {
            0 => self.pick(&[
                0,
                1 << 31,
                0x7f80_0000,
                0xff80_0000,
                0x3f80_0000,
                0xbf80_0000,
                0x7f7f_ffff,
                0x0080_0000,
                0x007f_ffff,
                1,
            ]),
            1 => self.pick(&[0x7fc0_0000, 0xffc0_0000, 0x7f80_0001, 0xffbf_ffff, 0x7fff_ffff, 0x7fa0_0000]) ^ (r & 0x8000_0000),
            2 => r & 0x807f_ffff,
            3 => ((self.below(70_000) as i64 - 35_000) as f32).to_bits(),
            4 => (r & 0x807f_ffff) | self.pick(&[0x4e80_0000, 0x4f00_0000, 0x4e00_0000, 0x5e80_0000, 0x5f00_0000]),
            5 => (r & 0x8000_0000) | self.pick(&[0x3f00_0000, 0x3fc0_0000, 0x4020_0000, 0x4060_0000, 0x3eff_ffff, 0x4b00_0001]),
            6 => r,
            7 => (r & 0x8000_7fff) | 0x3f80_0000,
            _ => (r & 0x807f_ffff) | (0x3f80_0000u32.wrapping_add(((self.below(64) as i32 - 32) << 23) as u32)),
        }
    }

    pub fn f64_bits(&mut self) -> u64 {
        let r = self.next();
        let sign = r & 1 << 63;
        let fraction = r & ((1 << 52) - 1);
        match self.below(12) {
            0 => sign | self.pick(&[0, 0x7ff << 52, 0x3ff << 52, 0x7fef_ffff_ffff_ffff, 1 << 52, (1 << 52) - 1, 1]),
            1 => {
                sign | self.pick(&[
                    0x7ff8_0000_0000_0000,
                    0x7ff0_0000_0000_0001,
                    0x7ff7_ffff_ffff_ffff,
                    0x7fff_ffff_ffff_ffff,
                    0x7ff4_0000_0000_0000,
                ])
            }
            2 => sign | fraction,
            3 => ((self.below(70_000) as i64 - 35_000) as f64).to_bits(),
            4 => sign | fraction | self.pick(&[0x41d, 0x41e, 0x41f, 0x43c, 0x43d, 0x43e]) << 52,
            5 => {
                sign | self.pick(&[
                    0x3fe0_0000_0000_0000,
                    0x3ff8_0000_0000_0000,
                    0x4004_0000_0000_0000,
                    0x400c_0000_0000_0000,
                    0x4330_0000_0000_0001,
                ])
            }
            6 => r,
            7 => sign | (r & 0x3fff_ffff) << 22 | 0x3ff << 52,
            8 => sign | fraction | (0x3ff - 149 + self.below(300)) << 52,
            _ => sign | fraction | (0x3ff - 60 + self.below(120)) << 52,
        }
    }

    /// Significand, sign and exponent of an 80-bit number.
    pub fn f80_bits(&mut self) -> (u64, u16) {
        let r = self.next();
        let sign = (r as u16) & 0x8000;
        let sig = match self.below(6) {
            0 => 1 << 63,
            1 => u64::MAX << self.below(64) | 1 << 63,
            2 => self.next() & !((1u64 << self.below(63)) - 1) | 1 << 63,
            _ => self.next() | 1 << 63,
        };
        match self.below(20) {
            0 => (0, sign),
            1 => (1 << 63, sign | 0x7fff),
            2 => (sig | 1 << 62, sign | 0x7fff),
            3 => (sig & !(1 << 62) | 1, sign | 0x7fff),
            4 => (self.next() >> 1 >> self.below(63), sign),
            5 => (sig, sign),
            6 => (sig & !(1 << 63), sign | (self.next() as u16 & 0x7fff)),
            7 => (sig, sign | self.below(0x7fff) as u16),
            8 => (sig, sign | self.pick(&[1, 2, 0x7ffe, 0x7ffd, 66, 0x3fff - 1022, 0x3fff - 126, 0x3fff + 1023, 0x3fff + 127])),
            9 => ((self.below(20) + 1) << 59 | 1 << 63, sign | (0x3fff + self.below(6) as u16)),
            10 | 11 => {
                let v = self.integer().max(1);
                let shift = v.leading_zeros();
                (v << shift, sign | (0x3fff + 63 - shift as u16))
            }
            12 => (sig, sign | (0x3fff + 60 + self.below(8) as u16)),
            _ => (sig, sign | (0x3fff - 40 + self.below(80) as u16)),
        }
    }

    /// Fills memory or a vector register with integers or floating-point numbers.
    pub fn fill(&mut self, bytes: &mut [u8]) {
        let mut at = 0;
        while at < bytes.len() {
            let kind = self.below(4);
            let run = 8 * (1 + self.below(6)) as usize;
            let end = (at + run).min(bytes.len());
            while at < end {
                let word = match kind {
                    0 | 1 => self.integer(),
                    2 => self.f64_bits(),
                    _ => u64::from(self.f32_bits()) | u64::from(self.f32_bits()) << 32,
                };
                let n = 8.min(bytes.len() - at);
                bytes[at..at + n].copy_from_slice(&word.to_le_bytes()[..n]);
                at += n;
            }
        }
    }
}
