//! Packed integer instructions, MMX and XMM: a table, one line each (SDM vol. 2; MMX and SSE to SSE4.2).

use iced_x86::{Instruction, Mnemonic};

use super::fast::*;
use super::form::*;
use super::lanes::*;

/// One line per mnemonic. `both`: MMX and XMM forms of one function generic over the vector; `xmm`: XMM only.
macro_rules! table {
    ($insn:ident; both { $($both:ident $f:expr;)* } both_imm { $($both_imm:ident $fi:expr;)* }
     xmm { $($xmm:ident $g:expr;)* } xmm_imm { $($xmm_imm:ident $gi:expr;)* } extend { $($extend:ident $src:ty, $h:expr;)* }) => {
        match ($insn.mnemonic(), $insn.op0_register().is_mm()) {
            $((Mnemonic::$both, true) => mm_op!(u64, $f), (Mnemonic::$both, false) => xmm_op!(u128, $f),)*
            $((Mnemonic::$both_imm, true) => mm_op!(u64, imm, $fi), (Mnemonic::$both_imm, false) => xmm_op!(u128, imm, $fi),)*
            $((Mnemonic::$xmm, _) => xmm_op!(u128, $g),)*
            $((Mnemonic::$xmm_imm, _) => xmm_op!(u128, imm, $gi),)*
            $((Mnemonic::$extend, _) => xmm_op!($src, $h),)*
            _ => return None,
        }
    };
}

/// Returns the handlers of a packed integer instruction.
pub fn lower(insn: &Instruction) -> Option<Pair> {
    simple(insn).or_else(|| lanewise(insn)).or_else(|| rearranging(insn)).or_else(|| shifts(insn))
}

/// Returns the handlers of an instruction that is done in place. The MMX forms of the lower unpacks read only four
/// bytes of memory.
fn simple(insn: &Instruction) -> Option<Pair> {
    macro_rules! table {
        (both { $($both:ident $f:expr;)* } xmm { $($xmm:ident $g:expr;)* }) => {
            match (insn.mnemonic(), insn.op0_register().is_mm()) {
                $((Mnemonic::$both, true) => mm_op!(u64, $f), (Mnemonic::$both, false) => fast_op!(u128, $f),)*
                (Mnemonic::Punpcklbw, true) => mm_op!(u32, |a, b| a.low8(b)),
                (Mnemonic::Punpcklwd, true) => mm_op!(u32, |a, b| a.low16(b)),
                (Mnemonic::Punpckldq, true) => mm_op!(u32, |a, b| a.low32(b)),
                $((Mnemonic::$xmm, _) => fast_op!(u128, $g),)*
                _ => return None,
            }
        };
    }
    Some(table! {
        both {
            Pand |a, b| a & b;
            Pandn |a, b| !a & b;
            Por |a, b| a | b;
            Pxor |a, b| a ^ b;
            Paddb |a, b| a.add8(b);
            Paddw |a, b| a.add16(b);
            Paddd |a, b| a.add32(b);
            Paddq |a, b| a.add64(b);
            Psubb |a, b| a.sub8(b);
            Psubw |a, b| a.sub16(b);
            Psubd |a, b| a.sub32(b);
            Psubq |a, b| a.sub64(b);
            Paddsb |a, b| a.add8s(b);
            Paddsw |a, b| a.add16s(b);
            Paddusb |a, b| a.add8us(b);
            Paddusw |a, b| a.add16us(b);
            Psubsb |a, b| a.sub8s(b);
            Psubsw |a, b| a.sub16s(b);
            Psubusb |a, b| a.sub8us(b);
            Psubusw |a, b| a.sub16us(b);
            Pcmpeqb |a, b| a.eq8(b);
            Pcmpeqw |a, b| a.eq16(b);
            Pcmpeqd |a, b| a.eq32(b);
            Pcmpgtb |a, b| a.gt8(b);
            Pcmpgtw |a, b| a.gt16(b);
            Pcmpgtd |a, b| a.gt32(b);
            Pminub |a, b| a.min8u(b);
            Pmaxub |a, b| a.max8u(b);
            Pminsw |a, b| a.min16s(b);
            Pmaxsw |a, b| a.max16s(b);
            Pavgb |a, b| a.avg8(b);
            Pavgw |a, b| a.avg16(b);
            Pmullw |a, b| a.mul16(b);
            Pmulhw |a, b| a.mul16_high(b);
            Pmulhuw |a, b| a.mul16u_high(b);
            Pmuludq |a, b| a.mul32_even(b);
            Pmaddwd |a, b| a.mul16_add(b);
            Psadbw |a, b| a.differences(b);
            Packsswb |a, b| a.pack16s(b);
            Packuswb |a, b| a.pack16us(b);
            Packssdw |a, b| a.pack32s(b);
            Punpckhbw |a, b| a.high8(b);
            Punpckhwd |a, b| a.high16(b);
            Punpckhdq |a, b| a.high32(b);
        }
        xmm {
            Punpcklbw |a, b| a.low8(b);
            Punpcklwd |a, b| a.low16(b);
            Punpckldq |a, b| a.low32(b);
            Punpcklqdq |a, b| from_qwords([a as u64, b as u64]);
            Punpckhqdq |a, b| from_qwords([(a >> 64) as u64, (b >> 64) as u64]);
        }
    })
}

fn lanewise(insn: &Instruction) -> Option<Pair> {
    Some(table! { insn;
        both {
            Pmulhrsw |a, b| a.map16s(b, |x, y| ((((i32::from(x) * i32::from(y)) >> 14) + 1) >> 1) as i16);
            Pmaddubsw |a, b| a.map16(b, |x, y| {
                let low = i16::from(x as u8) * i16::from(y as i8);
                let high = i16::from((x >> 8) as u8) * i16::from((y >> 8) as i8);
                low.saturating_add(high) as u16
            });
            Psignb |a, b| a.map8s(b, |x, y| x.wrapping_mul(y.signum()));
            Psignw |a, b| a.map16s(b, |x, y| x.wrapping_mul(y.signum()));
            Psignd |a, b| a.map32s(b, |x, y| x.wrapping_mul(y.signum()));
            Pabsb |_a, b| b.each8(|x| (x as i8).unsigned_abs());
            Pabsw |_a, b| b.each16(|x| (x as i16).unsigned_abs());
            Pabsd |_a, b| b.each32(|x| (x as i32).unsigned_abs());
            Phaddw |a, b| a.halve(b, |v| pairs16(v, i16::wrapping_add));
            Phaddsw |a, b| a.halve(b, |v| pairs16(v, i16::saturating_add));
            Phaddd |a, b| a.halve(b, |v| pairs32(v, u32::wrapping_add));
            Phsubw |a, b| a.halve(b, |v| pairs16(v, i16::wrapping_sub));
            Phsubsw |a, b| a.halve(b, |v| pairs16(v, i16::saturating_sub));
            Phsubd |a, b| a.halve(b, |v| pairs32(v, u32::wrapping_sub));
        }
        both_imm {}
        xmm {
            Pcmpeqq |a, b| a.map64(b, |x, y| if x == y { !0 } else { 0 });
            Pcmpgtq |a, b| a.map64s(b, |x, y| if x > y { !0 } else { 0 });
            Pminsb |a, b| a.map8s(b, |x, y| x.min(y));
            Pmaxsb |a, b| a.map8s(b, |x, y| x.max(y));
            Pminuw |a, b| a.map16(b, |x, y| x.min(y));
            Pmaxuw |a, b| a.map16(b, |x, y| x.max(y));
            Pminsd |a, b| a.map32s(b, |x, y| x.min(y));
            Pmaxsd |a, b| a.map32s(b, |x, y| x.max(y));
            Pminud |a, b| a.map32(b, |x, y| x.min(y));
            Pmaxud |a, b| a.map32(b, |x, y| x.max(y));
            Pmulld |a, b| a.map32(b, u32::wrapping_mul);
            Pmuldq |a, b| a.map64(b, |x, y| i64::from(x as i32).wrapping_mul(i64::from(y as i32)) as u64);
            Phminposuw |_a, b| least_word(b);
        }
        xmm_imm {
            Mpsadbw |a, b, imm| sums_of_differences(a, b, imm);
        }
        extend {
            Pmovsxbw u64, |_a, b| from_words(b.to_le_bytes().map(|x| i16::from(x as i8) as u16));
            Pmovsxbd u32, |_a, b| from_dwords(b.to_le_bytes().map(|x| i32::from(x as i8) as u32));
            Pmovsxbq u16, |_a, b| from_qwords(b.to_le_bytes().map(|x| i64::from(x as i8) as u64));
            Pmovsxwd u64, |_a, b| from_dwords(std::array::from_fn(|i| i32::from((b >> (16 * i)) as i16) as u32));
            Pmovsxwq u32, |_a, b| from_qwords([i64::from(b as i16) as u64, i64::from((b >> 16) as i16) as u64]);
            Pmovsxdq u64, |_a, b| from_qwords([i64::from(b as i32) as u64, i64::from((b >> 32) as i32) as u64]);
            Pmovzxbw u64, |_a, b| from_words(b.to_le_bytes().map(u16::from));
            Pmovzxbd u32, |_a, b| from_dwords(b.to_le_bytes().map(u32::from));
            Pmovzxbq u16, |_a, b| from_qwords(b.to_le_bytes().map(u64::from));
            Pmovzxwd u64, |_a, b| from_dwords(std::array::from_fn(|i| u32::from((b >> (16 * i)) as u16)));
            Pmovzxwq u32, |_a, b| from_qwords([u64::from(b as u16), u64::from(b >> 16)]);
            Pmovzxdq u64, |_a, b| from_qwords([b & 0xffff_ffff, b >> 32]);
        }
    })
}

fn rearranging(insn: &Instruction) -> Option<Pair> {
    if insn.mnemonic() == Mnemonic::Pshufb && insn.op0_register().is_xmm() {
        return Some(host_or!("ssse3", shuffle_bytes, |a, b| (a, b), xmm_op!(u128, |a, b| a.shuffle_bytes(b))));
    }
    Some(table! { insn;
        both {
            Pshufb |a, b| a.shuffle_bytes(b);
        }
        both_imm {
            Palignr |a, b, imm| a.align_right(b, imm);
        }
        xmm {
            Packusdw |a, b| a.halve(b, |v| narrow32(v, |x| x.clamp(0, 65535) as u16));
        }
        xmm_imm {
            Pshufd |_a, b, imm| {
                let d = dwords(b);
                from_dwords(std::array::from_fn(|i| d[usize::from(imm >> (2 * i) & 3)]))
            };
            Pshuflw |_a, b, imm| b >> 64 << 64 | u128::from(shuffle_words(b as u64, imm));
            Pshufhw |_a, b, imm| b & u128::from(u64::MAX) | u128::from(shuffle_words((b >> 64) as u64, imm)) << 64;
            Pblendw |a, b, imm| {
                let (x, y) = (words(a), words(b));
                from_words(std::array::from_fn(|i| if imm >> i & 1 != 0 { y[i] } else { x[i] }))
            };
        }
        extend {}
    })
}

/// Returns the handlers of shifts. The count is the lower 64 bits of the source, or the immediate.
fn shifts(insn: &Instruction) -> Option<Pair> {
    macro_rules! shift {
        ($($name:ident $f:expr;)*) => {
            match (insn.mnemonic(), insn.op0_register().is_mm(), insn.op_count() == 2 && insn.op1_kind() == iced_x86::OpKind::Immediate8) {
                $((Mnemonic::$name, true, true) => mm_op!(u64, imm, |a, _b, imm| with2(a, u64::from(imm), $f)),
                  (Mnemonic::$name, true, false) => mm_op!(u64, $f),
                  (Mnemonic::$name, false, true) => xmm_op!(u128, imm, |a, _b, imm| with2(a, u128::from(imm), $f)),
                  (Mnemonic::$name, false, false) => xmm_op!(u128, $f),)*
                (Mnemonic::Pslldq, ..) => xmm_op!(u128, imm, |a, _b, imm| if imm < 16 { a << (8 * imm) } else { 0 }),
                (Mnemonic::Psrldq, ..) => xmm_op!(u128, imm, |a, _b, imm| if imm < 16 { a >> (8 * imm) } else { 0 }),
                (Mnemonic::Pshufw, ..) => mm_op!(u64, imm, |_a, b, imm| shuffle_words(b, imm)),
                _ => return None,
            }
        };
    }
    Some(shift! {
        Psllw |a, n| a.left16(n);
        Pslld |a, n| a.left32(n);
        Psllq |a, n| a.left64(n);
        Psrlw |a, n| a.right16(n);
        Psrld |a, n| a.right32(n);
        Psrlq |a, n| a.right64(n);
        Psraw |a, n| a.arith16(n);
        Psrad |a, n| a.arith32(n);
    })
}

/// Selects four words by the two-bit fields of `imm`.
#[inline(always)]
fn shuffle_words(v: u64, imm: u8) -> u64 {
    (0..4).rev().fold(0, |out, i| out << 16 | v >> (16 * (imm >> (2 * i) & 3)) & 0xffff)
}

/// Executes `PHMINPOSUW`: the smallest word, and its position.
fn least_word(v: u128) -> u128 {
    let mut least = (u16::MAX, 0);
    for (i, w) in words(v).into_iter().enumerate().rev() {
        if w <= least.0 {
            least = (w, i);
        }
    }
    u128::from(least.0) | (least.1 as u128) << 16
}

/// Executes `MPSADBW`: eight sums of four absolute differences.
fn sums_of_differences(a: u128, b: u128, imm: u8) -> u128 {
    let (a, b) = (a.to_le_bytes(), b.to_le_bytes());
    let (a0, b0) = (usize::from(imm >> 2 & 1) * 4, usize::from(imm & 3) * 4);
    from_words(std::array::from_fn(|i| (0..4).map(|k| u16::from(a[a0 + i + k].abs_diff(b[b0 + k]))).sum()))
}
