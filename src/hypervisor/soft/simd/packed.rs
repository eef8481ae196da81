//! Packed integer instructions, MMX and XMM: a table, one line each (SDM vol. 2; MMX and SSE to SSE4.2).

use iced_x86::{Instruction, Mnemonic};

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

/// The handlers of a packed integer instruction.
pub fn lower(insn: &Instruction) -> Option<Pair> {
    simple(insn).or_else(|| lanewise(insn)).or_else(|| rearranging(insn)).or_else(|| shifts(insn))
}

fn simple(insn: &Instruction) -> Option<Pair> {
    Some(table! { insn;
        both {
            Pand |a, b| a & b;
            Pandn |a, b| !a & b;
            Por |a, b| a | b;
            Pxor |a, b| a ^ b;
            Paddb |a, b| a.map8(b, u8::wrapping_add);
            Paddw |a, b| a.map16(b, u16::wrapping_add);
            Paddd |a, b| a.map32(b, u32::wrapping_add);
            Paddq |a, b| a.map64(b, u64::wrapping_add);
            Psubb |a, b| a.map8(b, u8::wrapping_sub);
            Psubw |a, b| a.map16(b, u16::wrapping_sub);
            Psubd |a, b| a.map32(b, u32::wrapping_sub);
            Psubq |a, b| a.map64(b, u64::wrapping_sub);
            Paddsb |a, b| a.map8s(b, i8::saturating_add);
            Paddsw |a, b| a.map16s(b, i16::saturating_add);
            Paddusb |a, b| a.map8(b, u8::saturating_add);
            Paddusw |a, b| a.map16(b, u16::saturating_add);
            Psubsb |a, b| a.map8s(b, i8::saturating_sub);
            Psubsw |a, b| a.map16s(b, i16::saturating_sub);
            Psubusb |a, b| a.map8(b, u8::saturating_sub);
            Psubusw |a, b| a.map16(b, u16::saturating_sub);
            Pcmpeqb |a, b| a.map8(b, |x, y| if x == y { !0 } else { 0 });
            Pcmpeqw |a, b| a.map16(b, |x, y| if x == y { !0 } else { 0 });
            Pcmpeqd |a, b| a.map32(b, |x, y| if x == y { !0 } else { 0 });
            Pcmpgtb |a, b| a.map8s(b, |x, y| if x > y { !0 } else { 0 });
            Pcmpgtw |a, b| a.map16s(b, |x, y| if x > y { !0 } else { 0 });
            Pcmpgtd |a, b| a.map32s(b, |x, y| if x > y { !0 } else { 0 });
            Pminub |a, b| a.map8(b, |x, y| x.min(y));
            Pmaxub |a, b| a.map8(b, |x, y| x.max(y));
            Pminsw |a, b| a.map16s(b, |x, y| x.min(y));
            Pmaxsw |a, b| a.map16s(b, |x, y| x.max(y));
            Pavgb |a, b| a.map8(b, |x, y| ((u16::from(x) + u16::from(y) + 1) >> 1) as u8);
            Pavgw |a, b| a.map16(b, |x, y| ((u32::from(x) + u32::from(y) + 1) >> 1) as u16);
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
        }
        xmm_imm {}
        extend {}
    })
}

fn lanewise(insn: &Instruction) -> Option<Pair> {
    Some(table! { insn;
        both {
            Pmullw |a, b| a.map16(b, u16::wrapping_mul);
            Pmulhw |a, b| a.map16s(b, |x, y| ((i32::from(x) * i32::from(y)) >> 16) as i16);
            Pmulhuw |a, b| a.map16(b, |x, y| ((u32::from(x) * u32::from(y)) >> 16) as u16);
            Pmulhrsw |a, b| a.map16s(b, |x, y| ((((i32::from(x) * i32::from(y)) >> 14) + 1) >> 1) as i16);
            Pmuludq |a, b| a.map64(b, |x, y| (x & 0xffff_ffff) * (y & 0xffff_ffff));
            Pmaddwd |a, b| a.map32(b, |x, y| {
                let low = i32::from(x as i16) * i32::from(y as i16);
                let high = i32::from((x >> 16) as i16) * i32::from((y >> 16) as i16);
                low.wrapping_add(high) as u32
            });
            Pmaddubsw |a, b| a.map16(b, |x, y| {
                let low = i16::from(x as u8) * i16::from(y as i8);
                let high = i16::from((x >> 8) as u8) * i16::from((y >> 8) as i8);
                low.saturating_add(high) as u16
            });
            Psadbw |a, b| a.map64(b, |x, y| {
                x.to_le_bytes().iter().zip(y.to_le_bytes()).map(|(x, y)| u64::from(x.abs_diff(y))).sum()
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
    // The MMX forms of these read only four bytes of memory.
    match (insn.mnemonic(), insn.op0_register().is_mm()) {
        (Mnemonic::Punpcklbw, true) => return Some(mm_op!(u32, |a, b| a.unpack_low(b, interleave8))),
        (Mnemonic::Punpcklwd, true) => return Some(mm_op!(u32, |a, b| a.unpack_low(b, interleave16))),
        (Mnemonic::Punpckldq, true) => return Some(mm_op!(u32, |a, b| a.unpack_low(b, interleave32))),
        _ => {}
    }
    Some(table! { insn;
        both {
            Packsswb |a, b| a.halve(b, |v| narrow16(v, |x| x.clamp(-128, 127) as u8));
            Packuswb |a, b| a.halve(b, |v| narrow16(v, |x| x.clamp(0, 255) as u8));
            Packssdw |a, b| a.halve(b, |v| narrow32(v, |x| x.clamp(-32768, 32767) as u16));
            Punpckhbw |a, b| a.unpack_high(b, interleave8);
            Punpckhwd |a, b| a.unpack_high(b, interleave16);
            Punpckhdq |a, b| a.unpack_high(b, interleave32);
            Pshufb |a, b| a.shuffle_bytes(b);
        }
        both_imm {
            Palignr |a, b, imm| a.align_right(b, imm);
        }
        xmm {
            Packusdw |a, b| a.halve(b, |v| narrow32(v, |x| x.clamp(0, 65535) as u16));
            Punpcklbw |a, b| a.unpack_low(b, interleave8);
            Punpcklwd |a, b| a.unpack_low(b, interleave16);
            Punpckldq |a, b| a.unpack_low(b, interleave32);
            Punpcklqdq |a, b| from_qwords([a as u64, b as u64]);
            Punpckhqdq |a, b| from_qwords([(a >> 64) as u64, (b >> 64) as u64]);
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

/// Shift counts are the lower 64 bits of the source, or the immediate.
fn shifts(insn: &Instruction) -> Option<Pair> {
    macro_rules! shift {
        ($($name:ident $f:expr;)*) => {
            match (insn.mnemonic(), insn.op0_register().is_mm(), insn.op_count() == 2 && insn.op1_kind() == iced_x86::OpKind::Immediate8) {
                $((Mnemonic::$name, true, true) => mm_op!(u64, imm, |a, _b, imm| with2(a, u64::from(imm), $f)),
                  (Mnemonic::$name, true, false) => mm_op!(u64, $f),
                  (Mnemonic::$name, false, true) => xmm_op!(u128, imm, |a, _b, imm| with2(a, u64::from(imm), $f)),
                  (Mnemonic::$name, false, false) => xmm_op!(u128, |a, b| with2(a, b as u64, $f)),)*
                (Mnemonic::Pslldq, ..) => xmm_op!(u128, imm, |a, _b, imm| if imm < 16 { a << (8 * imm) } else { 0 }),
                (Mnemonic::Psrldq, ..) => xmm_op!(u128, imm, |a, _b, imm| if imm < 16 { a >> (8 * imm) } else { 0 }),
                (Mnemonic::Pshufw, ..) => mm_op!(u64, imm, |_a, b, imm| shuffle_words(b, imm)),
                _ => return None,
            }
        };
    }
    Some(shift! {
        Psllw |a, n| if n < 16 { a.each16(|x| x << n) } else { 0 };
        Pslld |a, n| if n < 32 { a.each32(|x| x << n) } else { 0 };
        Psllq |a, n| if n < 64 { a.each64(|x| x << n) } else { 0 };
        Psrlw |a, n| if n < 16 { a.each16(|x| x >> n) } else { 0 };
        Psrld |a, n| if n < 32 { a.each32(|x| x >> n) } else { 0 };
        Psrlq |a, n| if n < 64 { a.each64(|x| x >> n) } else { 0 };
        Psraw |a, n| a.each16(|x| (x as i16 >> n.min(15)) as u16);
        Psrad |a, n| a.each32(|x| (x as i32 >> n.min(31)) as u32);
    })
}

/// Four words picked by the two-bit fields of `imm`.
#[inline(always)]
fn shuffle_words(v: u64, imm: u8) -> u64 {
    (0..4).rev().fold(0, |out, i| out << 16 | v >> (16 * (imm >> (2 * i) & 3)) & 0xffff)
}

/// `PHMINPOSUW`: the least word, and where it stands.
fn least_word(v: u128) -> u128 {
    let mut least = (u16::MAX, 0);
    for (i, w) in words(v).into_iter().enumerate().rev() {
        if w <= least.0 {
            least = (w, i);
        }
    }
    u128::from(least.0) | (least.1 as u128) << 16
}

/// `MPSADBW`: eight sums of four absolute differences.
fn sums_of_differences(a: u128, b: u128, imm: u8) -> u128 {
    let (a, b) = (a.to_le_bytes(), b.to_le_bytes());
    let (a0, b0) = (usize::from(imm >> 2 & 1) * 4, usize::from(imm & 3) * 4);
    from_words(std::array::from_fn(|i| (0..4).map(|k| u16::from(a[a0 + i + k].abs_diff(b[b0 + k]))).sum()))
}
