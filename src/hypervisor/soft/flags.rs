//! Lazy arithmetic flags: the operation that would set them is kept, and the flags are computed only when they are
//! read.
//!
//! An ALU op stores its kind, one operand and the result. The other operand follows from them.

use super::cpu::rflags::{AF, CF, OF, PF, SF, ZF};

/// The operation that last set the flags. The low two bits of the stored word are log2 of the operand's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum FlagKind {
    /// `result` holds the flags themselves, in RFLAGS positions.
    Raw = 0,
    /// `a + b = result`.
    Add = 4,
    /// `a - b = result`; also CMP.
    Sub = 8,
    /// AND, OR, XOR, TEST: CF = OF = AF = 0.
    Logic = 12,
    /// `result = a + 1`; `b` is the old CF (0 or 1).
    Inc = 16,
    /// `result = a - 1`; `b` is the old CF (0 or 1).
    Dec = 20,
}

/// Arithmetic flags that are not computed yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct LazyFlags {
    /// [`FlagKind`] plus log2 of the operand's bytes.
    pub kind: u32,
    /// The second operand, zero-extended (or the old CF, for Inc and Dec).
    pub b: u64,
    /// The result, zero-extended (or the flags, for Raw).
    pub result: u64,
}

impl LazyFlags {
    /// Returns flags with known values: the arithmetic bits of `rflags`.
    pub const fn raw(rflags: u64) -> LazyFlags {
        LazyFlags { kind: FlagKind::Raw as u32, b: 0, result: rflags & (CF | PF | AF | ZF | SF | OF) }
    }

    /// Returns the width of the operand in bits: 8, 16, 32 or 64.
    #[inline(always)]
    pub fn bits(&self) -> u32 {
        8 << (self.kind & 3)
    }

    /// Returns the six arithmetic flags in RFLAGS positions.
    pub fn value(&self) -> u64 {
        if self.kind == FlagKind::Raw as u32 {
            return self.result;
        }
        let mut out = 0;
        for (on, bit) in [(self.cf(), CF), (self.pf(), PF), (self.af(), AF), (self.zf(), ZF), (self.sf(), SF), (self.of(), OF)] {
            if on {
                out |= bit;
            }
        }
        out
    }

    #[inline(always)]
    fn is(&self, kind: FlagKind) -> bool {
        self.kind & !3 == kind as u32
    }
    #[inline(always)]
    fn mask(&self) -> u64 {
        u64::MAX >> (64 - self.bits())
    }
    /// Computes the first operand from the result and the second operand.
    #[inline(always)]
    fn a(&self) -> u64 {
        let r = self.result;
        let a = match self.kind & !3 {
            4 => r.wrapping_sub(self.b),
            8 => r.wrapping_add(self.b),
            16 => r.wrapping_sub(1),
            _ => r.wrapping_add(1),
        };
        a & self.mask()
    }

    /// Returns whether the condition `cc` of Jcc, SETcc or CMOVcc holds. The conditions are in the encoding's order: O
    /// NO B NB Z NZ BE NBE S NS P NP L NL LE NLE.
    #[inline(always)]
    pub fn condition(&self, cc: u8) -> bool {
        let bits = self.bits();
        // These are direct compares of two numbers, since the optimiser makes the best code of them when `kind` is
        // known.
        let signed = |v: u64| (v << (64 - bits)) as i64;
        let holds = match (cc >> 1, self.kind & !3) {
            (0, _) => self.of(),
            (1, 8) => self.a() < self.b,
            (1, _) => self.cf(),
            (2, _) => self.zf(),
            (3, 8) => self.a() <= self.b,
            (3, _) => self.cf() || self.zf(),
            (4, _) => self.sf(),
            (5, _) => self.pf(),
            (6, 8) => signed(self.a()) < signed(self.b),
            (6, 12) => self.sf(),
            (6, _) => self.sf() != self.of(),
            (_, 8) => signed(self.a()) <= signed(self.b),
            (_, 12) => self.sf() || self.zf(),
            _ => self.zf() || self.sf() != self.of(),
        };
        holds != (cc & 1 != 0)
    }

    /// Returns the zero flag.
    #[inline(always)]
    pub fn zf(&self) -> bool {
        if self.kind == 0 { self.result & ZF != 0 } else { self.result == 0 }
    }
    /// Returns the sign flag.
    #[inline(always)]
    pub fn sf(&self) -> bool {
        if self.kind == 0 { self.result & SF != 0 } else { self.result >> (self.bits() - 1) & 1 != 0 }
    }
    /// Returns the carry flag.
    #[inline(always)]
    pub fn cf(&self) -> bool {
        match self.kind & !3 {
            0 => self.result & CF != 0,
            4 => self.result < self.b,
            8 => self.a() < self.b,
            12 => false,
            _ => self.b != 0,
        }
    }
    /// Returns the parity flag: an even number of ones in the low byte.
    #[inline(always)]
    pub fn pf(&self) -> bool {
        if self.kind == 0 { self.result & PF != 0 } else { (self.result as u8).count_ones() & 1 == 0 }
    }
    /// Returns the auxiliary carry flag.
    #[inline(always)]
    pub fn af(&self) -> bool {
        match self.kind & !3 {
            0 => self.result & AF != 0,
            12 => false,
            4 | 8 => (self.a() ^ self.b ^ self.result) & 0x10 != 0,
            16 => self.result & 0xf == 0,
            _ => self.result & 0xf == 0xf,
        }
    }
    /// Returns the overflow flag.
    #[inline(always)]
    pub fn of(&self) -> bool {
        let sign = 1u64 << (self.bits() - 1);
        if self.is(FlagKind::Raw) {
            return self.result & OF != 0;
        }
        match self.kind & !3 {
            12 => false,
            4 => (self.a() ^ self.result) & (self.b ^ self.result) & sign != 0,
            8 => (self.a() ^ self.b) & (self.a() ^ self.result) & sign != 0,
            16 => self.result == sign,
            _ => self.result == sign - 1,
        }
    }
}
