//! The SSE4.2 string comparisons PCMPESTRI, PCMPESTRM, PCMPISTRI, PCMPISTRM (SDM vol. 2 section 4.1).

use iced_x86::{Code, Instruction};

use crate::hypervisor::soft::cpu::Cpu;
use crate::hypervisor::soft::cpu::rflags::{CF, OF, SF, ZF};
use crate::hypervisor::soft::flags::LazyFlags;

use super::form::*;
use super::lanes::words;

/// Returns the handlers of a string comparison.
pub fn lower(insn: &Instruction) -> Option<Pair> {
    use Code::*;
    macro_rules! compare {
        ($lengths:expr, $finish:expr) => {
            [
                called!(|cpu, op| {
                    let b = xmm(cpu, op.src);
                    string_op(cpu, xmm(cpu, op.dst), b, op.imm as u8, $lengths, $finish)
                }),
                called!(|cpu, op| {
                    let b = cpu.load::<u128>(op.addr(cpu))?;
                    string_op(cpu, xmm(cpu, op.dst), b, op.imm as u8, $lengths, $finish)
                }),
            ]
        };
    }
    Some(match insn.code() {
        Pcmpestri_xmm_xmmm128_imm8 => compare!(explicit32, set_index),
        Pcmpestri64_xmm_xmmm128_imm8 => compare!(explicit64, set_index),
        Pcmpestrm_xmm_xmmm128_imm8 => compare!(explicit32, set_mask),
        Pcmpestrm64_xmm_xmmm128_imm8 => compare!(explicit64, set_mask),
        Pcmpistri_xmm_xmmm128_imm8 => compare!(implicit, set_index),
        Pcmpistrm_xmm_xmmm128_imm8 => compare!(implicit, set_mask),
        _ => return None,
    })
}

/// A string: its elements, sign- or zero-extended, and the number of valid ones.
struct Text {
    elements: [i32; 16],
    len: usize,
}

fn elements(v: u128, imm: u8) -> [i32; 16] {
    let w = words(v);
    let bytes = v.to_le_bytes();
    std::array::from_fn(|i| match imm & 3 {
        0 => i32::from(bytes[i]),
        2 => i32::from(bytes[i] as i8),
        1 => w.get(i).map_or(0, |&x| i32::from(x)),
        _ => w.get(i).map_or(0, |&x| i32::from(x as i16)),
    })
}

/// Returns the length up to the first zero element.
fn implicit(_cpu: &Cpu, elements: &[i32; 16], count: usize, _first: bool) -> usize {
    elements[..count].iter().position(|&e| e == 0).unwrap_or(count)
}

/// Returns the magnitude of EAX (first operand) or EDX (second).
fn explicit32(cpu: &Cpu, _elements: &[i32; 16], count: usize, first: bool) -> usize {
    let len = (cpu.regs[if first { 0 } else { 2 }] as i32).unsigned_abs();
    (len as usize).min(count)
}

/// Returns the magnitude of RAX or RDX.
fn explicit64(cpu: &Cpu, _elements: &[i32; 16], count: usize, first: bool) -> usize {
    let len = (cpu.regs[if first { 0 } else { 2 }] as i64).unsigned_abs();
    len.min(count as u64) as usize
}

type Lengths = fn(&Cpu, &[i32; 16], usize, bool) -> usize;

fn string_op(cpu: &mut Cpu, a: u128, b: u128, imm: u8, lengths: Lengths, finish: fn(&mut Cpu, u32, usize, u8)) {
    let count = if imm & 1 != 0 { 8 } else { 16 };
    let (a, b) = (elements(a, imm), elements(b, imm));
    let a = Text { len: lengths(cpu, &a, count, true), elements: a };
    let b = Text { len: lengths(cpu, &b, count, false), elements: b };
    let result = polarity(aggregate(&a, &b, count, imm), &b, count, imm);
    let mut flags = 0;
    for (on, bit) in [(result != 0, CF), (b.len < count, ZF), (a.len < count, SF), (result & 1 != 0, OF)] {
        if on {
            flags |= bit;
        }
    }
    finish(cpu, result, count, imm);
    cpu.flags = LazyFlags::raw(flags);
}

/// Computes IntRes1: one bit for each element of `b`.
fn aggregate(a: &Text, b: &Text, count: usize, imm: u8) -> u32 {
    let (set, text) = (&a.elements[..a.len], &b.elements[..b.len]);
    let mut result = 0;
    for i in 0..count {
        let element = text.get(i);
        let holds = match imm >> 2 & 3 {
            0 => element.is_some_and(|e| set.contains(e)),
            1 => element.is_some_and(|e| set.chunks_exact(2).any(|range| range[0] <= *e && *e <= range[1])),
            2 => set.get(i) == element,
            // Bits beyond the register's end count as equal, those beyond the string's end do not.
            _ => set[..set.len().min(count - i)].iter().enumerate().all(|(k, s)| text.get(i + k) == Some(s)),
        };
        result |= u32::from(holds) << i;
    }
    result
}

/// Computes IntRes2.
fn polarity(result: u32, b: &Text, count: usize, imm: u8) -> u32 {
    match imm >> 4 & 3 {
        1 => !result & ((1 << count) - 1),
        3 => result ^ ((1 << b.len) - 1),
        _ => result,
    }
}

/// Sets ECX to the lowest or (imm bit 6) highest set bit, or to the number of elements if there is none.
fn set_index(cpu: &mut Cpu, result: u32, count: usize, imm: u8) {
    cpu.regs[1] = match result {
        0 => count as u64,
        _ if imm & 0x40 != 0 => u64::from(31 - result.leading_zeros()),
        _ => u64::from(result.trailing_zeros()),
    };
}

/// Sets XMM0 to the bits, or (imm bit 6) to a mask of elements.
fn set_mask(cpu: &mut Cpu, result: u32, count: usize, imm: u8) {
    let mask = if imm & 0x40 == 0 {
        u128::from(result)
    } else {
        let bits = 128 / count;
        let element = u128::MAX >> (128 - bits);
        (0..count).filter(|i| result >> i & 1 != 0).fold(0, |mask, i| mask | element << (i * bits))
    };
    set_xmm(cpu, 0, mask);
}
