//! Moves, shuffles of whole lanes, inserts and extracts, masks, MXCSR, and other instructions that move bits unchanged.

use iced_x86::{Code, Instruction, Mnemonic, OpKind, Register};

use crate::hypervisor::soft::cpu::{Cpu, Fault};
use crate::hypervisor::soft::lower::{Builder, Flow, Mode};
use crate::hypervisor::soft::mmu::{probe_write, require_canonical};
use crate::hypervisor::soft::op::Op;

use super::fast::*;
use super::form::*;
use super::lanes::*;

/// MXCSR's writable bits; there is no misaligned mode (bit 17).
pub const MXCSR_MASK: u32 = 0xffff;

/// Keeps the upper part of `a` and takes the lower `bits` from `b`.
#[inline(always)]
fn merge(a: u128, b: impl Into<u128>, bits: u32) -> u128 {
    a >> bits << bits | b.into()
}

/// The two forms of a 16-byte store: to a register and to memory, aligned or not.
macro_rules! store {
    (aligned) => {
        [
            in_place!(|cpu, op| cpu.xmm[usize::from(op.dst & 15)] = cpu.xmm[usize::from(op.src & 15)]),
            fast_store!(
                u128,
                16,
                |b| b,
                called!(|cpu, op| {
                    let addr = aligned(cpu, op)?;
                    cpu.store::<u128>(addr, xmm(cpu, op.src))?
                })
            ),
        ]
    };
    (unaligned) => {
        [
            in_place!(|cpu, op| cpu.xmm[usize::from(op.dst & 15)] = cpu.xmm[usize::from(op.src & 15)]),
            fast_store!(u128, 1, |b| b, called!(|cpu, op| cpu.store::<u128>(op.addr(cpu), xmm(cpu, op.src))?)),
        ]
    };
    // A part of a register: how the register form changes the destination, and what is stored.
    ($t:ty, $merge:expr, $part:expr) => {
        [
            in_place!(|cpu, op| {
                let r = with2(xmm(cpu, op.dst), xmm(cpu, op.src), $merge);
                set_xmm(cpu, op.dst, r)
            }),
            fast_store!(
                $t,
                1,
                $part,
                called!(|cpu, op| {
                    let value: $t = with1(xmm(cpu, op.src), $part);
                    cpu.store::<$t>(op.addr(cpu), value)?
                })
            ),
        ]
    };
}

/// Returns the handlers of a move or similar.
pub fn lower(insn: &Instruction) -> Option<Pair> {
    whole(insn.code()).or_else(|| parts(insn.code())).or_else(|| general(insn.code())).or_else(|| lanes(insn.mnemonic()))
}

fn whole(code: Code) -> Option<Pair> {
    use Code::*;
    Some(match code {
        Movaps_xmm_xmmm128 | Movapd_xmm_xmmm128 | Movdqa_xmm_xmmm128 | Movntdqa_xmm_m128 => fast_op!(u128, |_a, b| b),
        Movups_xmm_xmmm128 | Movupd_xmm_xmmm128 | Movdqu_xmm_xmmm128 | Lddqu_xmm_m128 => fast_op!(Unaligned, |_a, b| b.0),
        Movaps_xmmm128_xmm | Movapd_xmmm128_xmm | Movdqa_xmmm128_xmm | Movntps_m128_xmm | Movntpd_m128_xmm | Movntdq_m128_xmm => {
            store!(aligned)
        }
        Movups_xmmm128_xmm | Movupd_xmmm128_xmm | Movdqu_xmmm128_xmm => store!(unaligned),
        _ => return None,
    })
}

fn parts(code: Code) -> Option<Pair> {
    use Code::*;
    Some(match code {
        Movss_xmm_xmmm32 => [fast_op!(u32, |a, b| merge(a, b, 32))[0], fast_op!(u32, |_a, b| u128::from(b))[1]],
        Movsd_xmm_xmmm64 => [fast_op!(u64, |a, b| merge(a, b, 64))[0], fast_op!(u64, |_a, b| u128::from(b))[1]],
        Movss_xmmm32_xmm => store!(u32, |a, b| merge(a, b as u32, 32), |b| b as u32),
        Movsd_xmmm64_xmm => store!(u64, |a, b| merge(a, b as u64, 64), |b| b as u64),
        Movq_xmm_xmmm64 => fast_op!(u64, |_a, b| u128::from(b)),
        Movq_xmmm64_xmm => store!(u64, |_a, b| u128::from(b as u64), |b| b as u64),
        Movlps_xmm_m64 | Movlpd_xmm_m64 => fast_op!(u64, |a, b| merge(a, b, 64)),
        Movhps_xmm_m64 | Movhpd_xmm_m64 | Movlhps_xmm_xmm => fast_op!(u64, |a, b| from_qwords([a as u64, b])),
        Movhlps_xmm_xmm => fast_op!(u128, |a, b| merge(a, (b >> 64) as u64, 64)),
        Movlps_m64_xmm | Movlpd_m64_xmm => store!(u64, |a, _b| a, |b| b as u64),
        Movhps_m64_xmm | Movhpd_m64_xmm => store!(u64, |a, _b| a, |b| (b >> 64) as u64),
        Movddup_xmm_xmmm64 => fast_op!(u64, |_a, b| from_qwords([b, b])),
        Movsldup_xmm_xmmm128 => fast_op!(u128, |_a, b| with1(dwords(b), |d| from_dwords([d[0], d[0], d[2], d[2]]))),
        Movshdup_xmm_xmmm128 => fast_op!(u128, |_a, b| with1(dwords(b), |d| from_dwords([d[1], d[1], d[3], d[3]]))),
        _ => return None,
    })
}

/// Makes an MMX op that is not `mm = f(mm, mm/m)`: the check, the body, and TOP and tags.
macro_rules! mmx {
    (|$cpu:ident, $op:ident| $body:expr) => {
        called!(|$cpu, $op| {
            check_x87($cpu)?;
            $body;
            enter_mmx($cpu)
        })
    };
}

/// Returns the handlers of moves to and from general registers and MMX registers.
fn general(code: Code) -> Option<Pair> {
    use Code::*;
    Some(match code {
        Movd_xmm_rm32 => [
            in_place!(|cpu, op| set_xmm(cpu, op.dst, u128::from(gpr(cpu, op.src) as u32))),
            fast_op!(u32, |_a, b| u128::from(b))[1],
        ],
        Movq_xmm_rm64 => {
            [in_place!(|cpu, op| set_xmm(cpu, op.dst, u128::from(gpr(cpu, op.src)))), fast_op!(u64, |_a, b| u128::from(b))[1]]
        }
        Movd_rm32_xmm => [
            in_place!(|cpu, op| set_gpr(cpu, op.dst, u64::from(cpu.xmm[usize::from(op.src & 15)][0] as u32))),
            store!(u32, |a, _b| a, |b| b as u32)[1],
        ],
        Movq_rm64_xmm => [
            in_place!(|cpu, op| set_gpr(cpu, op.dst, cpu.xmm[usize::from(op.src & 15)][0])),
            store!(u64, |a, _b| a, |b| b as u64)[1],
        ],
        Movd_mm_rm32 => [mmx!(|cpu, op| set_mm(cpu, op.dst, u64::from(gpr(cpu, op.src) as u32))), mm_op!(u32, |_a, b| b)[1]],
        Movq_mm_rm64 => [mmx!(|cpu, op| set_mm(cpu, op.dst, gpr(cpu, op.src))), mm_op!(u64, |_a, b| b)[1]],
        Movq_mm_mmm64 => mm_op!(u64, |_a, b| b),
        Movd_rm32_mm => [
            mmx!(|cpu, op| set_gpr(cpu, op.dst, u64::from(mm(cpu, op.src) as u32))),
            mmx!(|cpu, op| cpu.store::<u32>(op.addr(cpu), mm(cpu, op.src) as u32)?),
        ],
        Movq_rm64_mm | Movq_mmm64_mm | Movntq_m64_mm => [
            if code == Movq_rm64_mm { mmx!(|cpu, op| set_gpr(cpu, op.dst, mm(cpu, op.src))) } else { mm_op!(u64, |_a, b| b)[0] },
            mmx!(|cpu, op| cpu.store::<u64>(op.addr(cpu), mm(cpu, op.src))?),
        ],
        Movq2dq_xmm_mm => [mmx!(|cpu, op| set_xmm(cpu, op.dst, u128::from(mm(cpu, op.src)))); 2],
        Movdq2q_mm_xmm => [mmx!(|cpu, op| set_mm(cpu, op.dst, xmm(cpu, op.src) as u64)); 2],
        Pmovmskb_r32_mm | Pmovmskb_r64_mm => [mmx!(|cpu, op| set_gpr(cpu, op.dst, byte_signs(u128::from(mm(cpu, op.src))))); 2],
        Pmovmskb_r32_xmm | Pmovmskb_r64_xmm => [in_place!(|cpu, op| set_gpr(cpu, op.dst, byte_signs(xmm(cpu, op.src)))); 2],
        Movmskps_r32_xmm | Movmskps_r64_xmm => {
            to_gpr!(u128, |b| dwords(b).iter().enumerate().fold(0, |m, (i, d)| m | u64::from(d >> 31) << i))
        }
        Movmskpd_r32_xmm | Movmskpd_r64_xmm => to_gpr!(u128, |b| (b >> 63 & 1 | b >> 126 & 2) as u64),
        Movnti_m32_r32 => [called!(|cpu, op| cpu.store::<u32>(op.addr(cpu), gpr(cpu, op.src) as u32)?); 2],
        Movnti_m64_r64 => [called!(|cpu, op| cpu.store::<u64>(op.addr(cpu), gpr(cpu, op.src))?); 2],
        Pinsrw_mm_r32m16_imm8 | Pinsrw_mm_r64m16_imm8 => [
            mmx!(|cpu, op| insert_mm_word(cpu, op, gpr(cpu, op.src) as u16)),
            mmx!(|cpu, op| {
                let word = cpu.load::<u16>(op.addr(cpu))?;
                insert_mm_word(cpu, op, word)
            }),
        ],
        Pextrw_r32_mm_imm8 | Pextrw_r64_mm_imm8 => {
            [mmx!(|cpu, op| set_gpr(cpu, op.dst, mm(cpu, op.src) >> (16 * (op.imm & 3)) & 0xffff)); 2]
        }
        _ => return inserts(code).or_else(|| extracts(code)).or_else(|| byte_swapping(code)).or_else(|| control(code)),
    })
}

fn insert_mm_word(cpu: &mut Cpu, op: &Op, word: u16) {
    let shift = 16 * (op.imm & 3);
    let rest = mm(cpu, op.dst) & !(0xffff << shift);
    set_mm(cpu, op.dst, rest | u64::from(word) << shift);
}

/// `PINSRx` from a general register or memory.
macro_rules! insert {
    ($t:ty, $lanes:literal) => {
        [
            called!(|cpu, op| insert_lane(cpu, op, u128::from(gpr(cpu, op.src) as $t), <$t>::BITS, $lanes)),
            called!(|cpu, op| {
                let value = cpu.load::<$t>(op.addr(cpu))?;
                insert_lane(cpu, op, u128::from(value), <$t>::BITS, $lanes)
            }),
        ]
    };
}

fn insert_lane(cpu: &mut Cpu, op: &Op, value: u128, bits: u32, lanes: u64) {
    let shift = bits * (op.imm & (lanes - 1)) as u32;
    let mask = (u128::MAX >> (128 - bits)) << shift;
    let rest = xmm(cpu, op.dst) & !mask;
    set_xmm(cpu, op.dst, rest | value << shift);
}

fn inserts(code: Code) -> Option<Pair> {
    use Code::*;
    Some(match code {
        Pinsrw_xmm_r32m16_imm8 | Pinsrw_xmm_r64m16_imm8 => insert!(u16, 8),
        Pinsrb_xmm_r32m8_imm8 | Pinsrb_xmm_r64m8_imm8 => insert!(u8, 16),
        Pinsrd_xmm_rm32_imm8 => insert!(u32, 4),
        Pinsrq_xmm_rm64_imm8 => insert!(u64, 2),
        // The memory form has no choice of source lane.
        Insertps_xmm_xmmm32_imm8 => [
            xmm_op!(u128, imm, |a, b, imm| insertps(a, dwords(b)[usize::from(imm >> 6)], imm))[0],
            xmm_op!(u32, imm, insertps)[1],
        ],
        _ => return None,
    })
}

fn insertps(a: u128, value: u32, imm: u8) -> u128 {
    let mut d = dwords(a);
    d[usize::from(imm >> 4 & 3)] = value;
    from_dwords(std::array::from_fn(|i| if imm >> i & 1 != 0 { 0 } else { d[i] }))
}

/// `PEXTRx` to a general register, zero-extended, or to memory.
macro_rules! extract {
    ($t:ty, $lanes:literal) => {
        [
            called!(|cpu, op| set_gpr(
                cpu,
                op.dst,
                (xmm(cpu, op.src) >> (<$t>::BITS * (op.imm & ($lanes - 1)) as u32)) as $t as u64
            )),
            called!(|cpu, op| {
                let value = (xmm(cpu, op.src) >> (<$t>::BITS * (op.imm & ($lanes - 1)) as u32)) as $t;
                cpu.store::<$t>(op.addr(cpu), value)?
            }),
        ]
    };
}

fn extracts(code: Code) -> Option<Pair> {
    use Code::*;
    Some(match code {
        Pextrw_r32_xmm_imm8 | Pextrw_r64_xmm_imm8 | Pextrw_r32m16_xmm_imm8 | Pextrw_r64m16_xmm_imm8 => extract!(u16, 8),
        Pextrb_r32m8_xmm_imm8 | Pextrb_r64m8_xmm_imm8 => extract!(u8, 16),
        Pextrd_rm32_xmm_imm8 | Extractps_rm32_xmm_imm8 | Extractps_r64m32_xmm_imm8 => extract!(u32, 4),
        Pextrq_rm64_xmm_imm8 => extract!(u64, 2),
        _ => return None,
    })
}

fn byte_swapping(code: Code) -> Option<Pair> {
    use Code::*;
    macro_rules! from_memory {
        ($t:ty, |$old:ident, $value:ident| $merge:expr) => {
            [called!(|cpu, op| {
                let $value = u64::from(cpu.load::<$t>(op.addr(cpu))?.swap_bytes());
                let $old = gpr(cpu, op.dst);
                set_gpr(cpu, op.dst, $merge)
            }); 2]
        };
    }
    macro_rules! to_memory {
        ($t:ty) => {
            [called!(|cpu, op| cpu.store::<$t>(op.addr(cpu), (gpr(cpu, op.src) as $t).swap_bytes())?); 2]
        };
    }
    Some(match code {
        Movbe_r16_m16 => from_memory!(u16, |old, value| old & !0xffff | value),
        Movbe_r32_m32 => from_memory!(u32, |_old, value| value),
        Movbe_r64_m64 => from_memory!(u64, |_old, value| value),
        Movbe_m16_r16 => to_memory!(u16),
        Movbe_m32_r32 => to_memory!(u32),
        Movbe_m64_r64 => to_memory!(u64),
        _ => return None,
    })
}

fn control(code: Code) -> Option<Pair> {
    Some(match code {
        Code::Ldmxcsr_m32 => {
            [called!(|cpu, op| {
                let value = cpu.load::<u32>(op.addr(cpu))?;
                if value & !MXCSR_MASK != 0 {
                    return Err(cpu.general_protection(0));
                }
                cpu.mxcsr = value
            }); 2]
        }
        Code::Stmxcsr_m32 => [called!(|cpu, op| cpu.store::<u32>(op.addr(cpu), cpu.mxcsr)?); 2],
        Code::Emms => {
            [called!(|cpu, _op| {
                check_x87(cpu)?;
                cpu.fpu.ftw = 0;
                cpu.fpu.fsw &= !0x3800
            }); 2]
        }
        _ => return None,
    })
}

/// `xmm = f(xmm, source, XMM0)`.
macro_rules! by_xmm0 {
    ($f:expr) => {
        [
            called!(|cpu, op| {
                let r = with3(xmm(cpu, op.dst), xmm(cpu, op.src), xmm(cpu, 0), $f);
                set_xmm(cpu, op.dst, r)
            }),
            called!(|cpu, op| {
                let b = <u128 as Source>::memory(cpu, op)?;
                let r = with3(xmm(cpu, op.dst), b, xmm(cpu, 0), $f);
                set_xmm(cpu, op.dst, r)
            }),
        ]
    };
}
/// Returns the handlers of shuffles, blends, bitwise operations on floating-point registers, and PTEST.
fn lanes(mnemonic: Mnemonic) -> Option<Pair> {
    Some(match mnemonic {
        Mnemonic::Andps | Mnemonic::Andpd => fast_op!(u128, |a, b| a & b),
        Mnemonic::Andnps | Mnemonic::Andnpd => fast_op!(u128, |a, b| !a & b),
        Mnemonic::Orps | Mnemonic::Orpd => fast_op!(u128, |a, b| a | b),
        Mnemonic::Xorps | Mnemonic::Xorpd => fast_op!(u128, |a, b| a ^ b),
        Mnemonic::Unpcklps => fast_op!(u128, |a, b| a.low32(b)),
        Mnemonic::Unpckhps => fast_op!(u128, |a, b| a.high32(b)),
        Mnemonic::Unpcklpd => fast_op!(u128, |a, b| from_qwords([a as u64, b as u64])),
        Mnemonic::Unpckhpd => fast_op!(u128, |a, b| from_qwords([(a >> 64) as u64, (b >> 64) as u64])),
        Mnemonic::Shufps => xmm_op!(u128, imm, |a, b, imm| {
            let (x, y) = (dwords(a), dwords(b));
            let pick = |i: u8| usize::from(imm >> i & 3);
            from_dwords([x[pick(0)], x[pick(2)], y[pick(4)], y[pick(6)]])
        }),
        Mnemonic::Shufpd => xmm_op!(u128, imm, |a, b, imm| {
            from_qwords([qwords(a)[usize::from(imm & 1)], qwords(b)[usize::from(imm >> 1 & 1)]])
        }),
        Mnemonic::Blendps => xmm_op!(u128, imm, |a, b, imm| {
            let (x, y) = (dwords(a), dwords(b));
            from_dwords(std::array::from_fn(|i| if imm >> i & 1 != 0 { y[i] } else { x[i] }))
        }),
        Mnemonic::Blendpd => xmm_op!(u128, imm, |a, b, imm| {
            let (x, y) = (qwords(a), qwords(b));
            from_qwords(std::array::from_fn(|i| if imm >> i & 1 != 0 { y[i] } else { x[i] }))
        }),
        Mnemonic::Pblendvb => by_xmm0!(|a, b, mask| pick(a, b, mask.each8(|m| if m & 0x80 != 0 { !0 } else { 0 }))),
        Mnemonic::Blendvps => by_xmm0!(|a, b, mask| pick(a, b, mask.each32(|m| (m as i32 >> 31) as u32))),
        Mnemonic::Blendvpd => by_xmm0!(|a, b, mask| pick(a, b, mask.each64(|m| (m as i64 >> 63) as u64))),
        Mnemonic::Ptest => [
            called!(|cpu, op| set_ptest_flags(cpu, xmm(cpu, op.dst), xmm(cpu, op.src))),
            called!(|cpu, op| {
                let b = <u128 as Source>::memory(cpu, op)?;
                set_ptest_flags(cpu, xmm(cpu, op.dst), b)
            }),
        ],
        _ => return None,
    })
}

#[inline(always)]
fn pick(a: u128, b: u128, mask: u128) -> u128 {
    a & !mask | b & mask
}

fn set_ptest_flags(cpu: &mut Cpu, a: u128, b: u128) {
    use crate::hypervisor::soft::cpu::rflags::{CF, ZF};
    let zf = if a & b == 0 { ZF } else { 0 };
    let cf = if !a & b == 0 { CF } else { 0 };
    cpu.flags = crate::hypervisor::soft::flags::LazyFlags::raw(zf | cf);
}

/// Lowers MASKMOVQ and MASKMOVDQU: the bytes of the first operand whose mask byte's top bit is set go to DS:rDI.
pub fn masked_store(insn: &Instruction, b: &mut Builder) -> Flow {
    // Lowered as an ordinary memory operand based on rDI, so that segment and address size are handled as everywhere.
    let base = match insn.op0_kind() {
        OpKind::MemorySegRDI => Register::RDI,
        OpKind::MemorySegEDI => Register::EDI,
        _ => Register::DI,
    };
    let mut plain = *insn;
    plain.set_op0_kind(OpKind::Memory);
    plain.set_memory_base(base);
    plain.set_memory_index(Register::None);
    plain.set_memory_displacement64(0);
    let mmx = insn.op1_register().is_mm();
    if mmx && !b.mode.is_64bit() {
        // This comes first also when the segment's check fails.
        let first = b.op(called!(|cpu, _op| {
            check_x87(cpu)?;
            enter_mmx(cpu)
        }));
        b.push(first);
    }
    // The second half of a flat segment's operand is checked with its bytes.
    let mem = b.mem(&plain, if mmx || b.mode.has(Mode::FLAT) { 8 } else { 16 }, true);
    let mut op = b.op(if mmx {
        mmx!(|cpu, op| {
            // The MMX state is entered even when the store faults.
            enter_mmx(cpu);
            store_masked(cpu, op, u128::from(mm(cpu, op.dst)), u128::from(mm(cpu, op.src)))?
        })
    } else {
        called!(|cpu, op| store_masked(cpu, op, xmm(cpu, op.dst), xmm(cpu, op.src))?)
    });
    (op.base, op.index, op.scale, op.disp) = (mem.base, mem.index, mem.scale, mem.disp);
    op.dst = insn.op1_register().number() as u8;
    op.src = insn.op2_register().number() as u8;
    b.push(op);
    Flow::Next
}

/// Stores the bytes that the mask selects. The first eight must be canonical whether they are selected or not.
fn store_masked(cpu: &mut Cpu, op: &Op, value: u128, mask: u128) -> Result<(), Fault> {
    let addr = op.addr(cpu);
    require_canonical(cpu, addr, 8)?;
    let chosen = |i: &u32| mask >> (8 * i + 7) & 1 != 0;
    // The bytes lie in at most two pages. If the first and the last can be written, all can.
    let (first, last) = ((0..16).find(chosen), (0..16).rev().find(chosen));
    for i in [first, last].into_iter().flatten() {
        let at = addr.wrapping_add(u64::from(i));
        if at >> 32 != 0 && !cpu.is_64bit() {
            return Err(cpu.general_protection(0));
        }
        probe_write(cpu, at, 1)?;
    }
    for i in (0..16).filter(chosen) {
        cpu.store::<u8>(addr.wrapping_add(u64::from(i)), (value >> (8 * i)) as u8)?;
    }
    Ok(())
}
