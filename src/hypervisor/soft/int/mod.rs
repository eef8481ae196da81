//! Integer, bit, string and branch instructions.
//!
//! | file | what |
//! |---|---|
//! | `word` | operand widths, registers, the fast and the slow path |
//! | `operand` | from the decoder's operands to fields of ops |
//! | `address` | address micro-ops |
//! | `half` | moves and arithmetic: the work of the commonest instructions |
//! | `alu` | the other hot handlers of moves and arithmetic |
//! | `shift` | shifts and rotations |
//! | `multiply` | MUL, DIV |
//! | `locked` | locked instructions of vCPUs that run at the same time |
//! | `bits` | bit tests and scans, exchanges |
//! | `pair` | two simple instructions in one step |
//! | `stack` | PUSH, POP, frames |
//! | `branch` | jumps, calls, returns, links |
//! | `string` | string instructions |
//! | `legacy` | decimal arithmetic and other rarities |

pub mod address;
pub mod alu;
pub mod bits;
pub mod branch;
pub mod half;
pub mod legacy;
pub mod locked;
pub mod multiply;
pub mod operand;
pub mod pair;
pub mod shift;
pub mod stack;
pub mod string;
#[cfg(test)]
mod tests;
pub mod word;

use iced_x86::{Code, Instruction, Mnemonic as M};

use self::alu::{ANY, Adc, Add, And, Dec, Inc, Neg, Not, Or, Sbb, Sub, Xor};
use self::half::single;
use self::operand::{immediate, in_memory, is_immediate, register, size};
use self::word::{Fast, bytes_of, load_bytes, reg, set_reg};
use super::cpu::{Cpu, Fault, Leave};
use super::flags::FlagKind;
use super::lower::{Builder, Compare, Flow, Step};
use super::op::{Handler, Op};
use crate::hypervisor::soft::int::word::{by_addr, by_cc, by_wide, by_width};
use crate::hypervisor::soft::op::{called_op, leaving_op};

/// Lowers an instruction of this family. Returns `None` when it is not one.
pub fn lower(insn: &Instruction, b: &mut Builder) -> Option<Flow> {
    if b.parallel && locked::is_locked(insn) {
        return locked::lower(insn, b);
    }
    match insn.mnemonic() {
        M::Mov if !operand::is_general(insn) => None,
        M::Mov => mov(insn, b),
        M::Movzx | M::Movsx | M::Movsxd => extend(insn, b),
        M::Lea => lea(insn, b),
        M::Add | M::Or | M::Adc | M::Sbb | M::And | M::Sub | M::Xor => arithmetic(insn, b),
        M::Cmp | M::Test => compare(insn, b),
        M::Inc | M::Dec | M::Neg | M::Not => unary(insn, b),
        M::Imul if insn.op_count() > 1 => imul(insn, b),
        M::Xchg if !in_memory(insn, 0) && !in_memory(insn, 1) => {
            let mut op = b.op(by_width!(size(insn, 0), T => alu::xchg_rr::<T>));
            (op.dst, op.src) = (register(insn.op0_register()), register(insn.op1_register()));
            Some(push(b, op))
        }
        M::Cbw | M::Cwde | M::Cdqe | M::Cwd | M::Cdq | M::Cqo => Some(sign_extend(insn, b)),
        M::Pause => Some(b.end_with(leaving_op!(pause))),
        M::Nop
        | M::Reservednop
        | M::Endbr64
        | M::Endbr32
        | M::Prefetch
        | M::Prefetchnta
        | M::Prefetcht0
        | M::Prefetcht1
        | M::Prefetcht2
        | M::Prefetchw
        | M::Prefetchwt1
        | M::Cldemote
        | M::Rdsspd
        | M::Rdsspq => {
            let op = b.op(alu::nop);
            Some(push(b, op))
        }
        _ if insn.is_jcc_short_or_near() => branch::lower(insn, b),
        m if is_cmov(m) => cmov(insn, b),
        m if is_setcc(m) => setcc(insn, b),
        _ => stack::lower(insn, b)
            .or_else(|| shift::lower(insn, b))
            .or_else(|| branch::lower(insn, b))
            .or_else(|| bits::lower(insn, b))
            .or_else(|| multiply::lower(insn, b))
            .or_else(|| string::lower(insn, b))
            .or_else(|| legacy::lower(insn, b)),
    }
}

/// Returns whether the instruction raises no exception, whatever its operands are, and lets no event in after it: the
/// simple ones between registers.
pub fn never_leaves(insn: &Instruction) -> bool {
    if insn.mnemonic() != M::Lea && (0..insn.op_count()).any(|i| in_memory(insn, i)) {
        return false;
    }
    match insn.mnemonic() {
        M::Mov => operand::is_general(insn),
        M::Lea | M::Movzx | M::Movsx | M::Movsxd | M::Xchg | M::Bswap => true,
        M::Add | M::Or | M::Adc | M::Sbb | M::And | M::Sub | M::Xor | M::Cmp | M::Test => true,
        M::Inc | M::Dec | M::Neg | M::Not | M::Imul | M::Mul => true,
        M::Shl | M::Sal | M::Shr | M::Sar | M::Rol | M::Ror | M::Rcl | M::Rcr | M::Shld | M::Shrd => true,
        M::Bt | M::Bts | M::Btr | M::Btc | M::Bsf | M::Bsr | M::Popcnt => true,
        M::Cbw | M::Cwde | M::Cdqe | M::Cwd | M::Cdq | M::Cqo | M::Lahf | M::Sahf | M::Clc | M::Stc | M::Cmc => true,
        M::Nop | M::Endbr64 | M::Endbr32 => true,
        m => is_cmov(m) || is_setcc(m),
    }
}

fn push(b: &mut Builder, op: Op) -> Flow {
    b.push(op);
    Flow::Next
}

fn pause(cpu: &mut Cpu, _: &Op) -> Result<(), Fault> {
    cpu.leave = Leave::Yield;
    Ok(())
}

fn mov(insn: &Instruction, b: &mut Builder) -> Option<Flow> {
    let bytes = size(insn, 0);
    let op = if in_memory(insn, 0) {
        let m = b.mem(insn, bytes, true);
        if is_immediate(insn, 1) {
            let mut op = b.op(by_width!(bytes, T => by_addr!(m, A => alu::mov_mi::<T, A, Fast>))).with_mem(m);
            op.imm = immediate(insn, 1);
            op
        } else {
            let mut op = b.op(by_width!(bytes, T => by_addr!(m, A => single::<half::Store<T, A>>))).with_mem(m);
            op.src = register(insn.op1_register());
            op
        }
    } else if in_memory(insn, 1) {
        let m = b.mem(insn, bytes, false);
        let mut op = b.op(by_width!(bytes, T => by_addr!(m, A => single::<half::Load<T, A>>))).with_mem(m);
        op.dst = register(insn.op0_register());
        op
    } else if is_immediate(insn, 1) {
        let mut op = b.op(by_width!(bytes, T => single::<half::MoveImm<T>>));
        (op.dst, op.imm) = (register(insn.op0_register()), immediate(insn, 1));
        op
    } else {
        let mut op = b.op(by_width!(bytes, T => single::<half::Move<T>>));
        (op.dst, op.src) = (register(insn.op0_register()), register(insn.op1_register()));
        op
    };
    Some(push(b, op))
}

/// Lowers MOVZX, MOVSX, MOVSXD.
fn extend(insn: &Instruction, b: &mut Builder) -> Option<Flow> {
    let (to, from) = (size(insn, 0), size(insn, 1));
    let zero = insn.mnemonic() == M::Movzx;
    // A 32-bit write already does the zero extension to 64 bits.
    macro_rules! by_source {
        ($s:ident, $d:ident => $e:expr) => {
            match from {
                1 => {
                    type $s = u8;
                    by_width!(to, $d => $e)
                }
                2 => {
                    type $s = u16;
                    by_width!(to, $d => $e)
                }
                _ => {
                    type $s = u32;
                    by_width!(to, $d => $e)
                }
            }
        };
    }
    let mut op = if in_memory(insn, 1) {
        let m = b.mem(insn, from, false);
        let handler = if zero {
            by_source!(S, D => by_addr!(m, A => single::<half::LoadExtend<S, D, A>>))
        } else {
            by_source!(S, D => by_addr!(m, A => alu::movsx_rm::<S, D, A, Fast>))
        };
        b.op(handler).with_mem(m)
    } else {
        let handler = if zero {
            by_source!(S, D => single::<half::Extend<S, D>>)
        } else {
            by_source!(S, D => single::<half::ExtendSign<S, D>>)
        };
        let mut op = b.op(handler);
        op.src = register(insn.op1_register());
        op
    };
    op.dst = register(insn.op0_register());
    Some(push(b, op))
}

fn lea_any(cpu: &mut Cpu, op: &Op) -> Result<(), Fault> {
    let addr = op.addr(cpu).wrapping_add(op.imm) & word::mask_of(op.aux >> 8);
    set_reg(cpu, op.dst, bytes_of(op), addr);
    Ok(())
}

fn lea(insn: &Instruction, b: &mut Builder) -> Option<Flow> {
    let bytes = insn.op0_register().size() as u32;
    let (m, rest, address_bytes) = b.effective_address(insn);
    let mut op = if rest == 0 && bytes <= address_bytes {
        b.op(by_width!(bytes, T => by_addr!(m, A => single::<half::Lea<T, A>>)))
    } else {
        let mut op = b.op(called_op!(lea_any));
        (op.imm, op.aux) = (rest, bytes | address_bytes << 8);
        op
    };
    op = op.with_mem(m);
    op.dst = register(insn.op0_register());
    Some(push(b, op))
}

/// Chooses a handler by the mnemonic of the ADD group.
macro_rules! by_alu {
    ($insn:expr, $o:ident => $e:expr) => {
        match $insn.mnemonic() {
            M::Add => {
                type $o = Add;
                $e
            }
            M::Or => {
                type $o = Or;
                $e
            }
            M::Adc => {
                type $o = Adc;
                $e
            }
            M::Sbb => {
                type $o = Sbb;
                $e
            }
            M::And => {
                type $o = And;
                $e
            }
            M::Sub => {
                type $o = Sub;
                $e
            }
            _ => {
                type $o = Xor;
                $e
            }
        }
    };
}

fn arithmetic(insn: &Instruction, b: &mut Builder) -> Option<Flow> {
    let bytes = size(insn, 0);
    let kind = match insn.mnemonic() {
        M::Add => FlagKind::Add,
        M::Sub => FlagKind::Sub,
        M::Adc | M::Sbb => FlagKind::Raw,
        _ => FlagKind::Logic,
    };
    b.new_flags_kind = Some(if kind == FlagKind::Raw { 0 } else { kind as u32 | bytes.trailing_zeros() });
    if in_memory(insn, 0) {
        let m = b.mem(insn, bytes, true);
        let mut op;
        if is_immediate(insn, 1) {
            op = b.op(by_alu!(insn, O => by_width!(bytes, T => by_addr!(m, A => alu::alu_mi::<O, T, A, Fast>)))).with_mem(m);
            op.imm = immediate(insn, 1);
        } else {
            op = b.op(by_alu!(insn, O => by_width!(bytes, T => by_addr!(m, A => alu::alu_mr::<O, T, A, Fast>)))).with_mem(m);
            op.src = register(insn.op1_register());
        }
        return Some(push(b, op));
    }
    let dst = register(insn.op0_register());
    let (mut op, quiet);
    if in_memory(insn, 1) {
        let m = b.mem(insn, bytes, false);
        op = b.op(by_alu!(insn, O => by_width!(bytes, T => by_addr!(m, A => alu::alu_rm::<O, T, A, Fast, true>)))).with_mem(m);
        quiet = by_alu!(insn, O => by_width!(bytes, T => by_addr!(m, A => alu::alu_rm::<O, T, A, Fast, false>)));
    } else if is_immediate(insn, 1) {
        op = b.op(by_alu!(insn, O => by_width!(bytes, T => single::<half::AluImm<O, T, true>>)));
        quiet = by_alu!(insn, O => by_width!(bytes, T => single::<half::AluImm<O, T, false>>));
        op.imm = immediate(insn, 1);
        if matches!(kind, FlagKind::Add | FlagKind::Sub) && bytes >= 4 {
            b.step = Some(Step { insn: b.insns, sub: kind == FlagKind::Sub, size: bytes });
        }
    } else if insn.op0_register() == insn.op1_register() && matches!(insn.mnemonic(), M::Xor | M::Sub) {
        op = b.op(by_width!(bytes, T => single::<half::Zero<T, true>>));
        quiet = by_width!(bytes, T => single::<half::Zero<T, false>>);
        b.new_flags_kind = Some(FlagKind::Logic as u32 | bytes.trailing_zeros());
    } else {
        op = b.op(by_alu!(insn, O => by_width!(bytes, T => single::<half::AluReg<O, T, true>>)));
        quiet = by_alu!(insn, O => by_width!(bytes, T => single::<half::AluReg<O, T, false>>));
        op.src = register(insn.op1_register());
    }
    op.dst = dst;
    b.push_flagged(op, quiet);
    Some(Flow::Next)
}

/// Lowers CMP and TEST.
fn compare(insn: &Instruction, b: &mut Builder) -> Option<Flow> {
    let bytes = size(insn, 0);
    let test = insn.mnemonic() == M::Test;
    let kind = if test { FlagKind::Logic } else { FlagKind::Sub };
    b.new_flags_kind = Some(kind as u32 | bytes.trailing_zeros());
    macro_rules! either {
        ($o:ident => $e:expr) => {
            if test {
                type $o = And;
                $e
            } else {
                type $o = Sub;
                $e
            }
        };
    }
    let op = if in_memory(insn, 0) {
        let m = b.mem(insn, bytes, false);
        if is_immediate(insn, 1) {
            let mut op = b.op(either!(O => by_width!(bytes, T => by_addr!(m, A => alu::cmp_mi::<O, T, A, Fast>)))).with_mem(m);
            op.imm = immediate(insn, 1);
            op
        } else {
            let mut op = b.op(either!(O => by_width!(bytes, T => by_addr!(m, A => alu::cmp_mr::<O, T, A, Fast>)))).with_mem(m);
            op.src = register(insn.op1_register());
            op
        }
    } else if in_memory(insn, 1) {
        let m = b.mem(insn, bytes, false);
        let mut op = b.op(either!(O => by_width!(bytes, T => by_addr!(m, A => alu::cmp_rm::<O, T, A, Fast>)))).with_mem(m);
        op.dst = register(insn.op0_register());
        op
    } else {
        let immediate_form = is_immediate(insn, 1);
        let mut op = b.op(if immediate_form {
            either!(O => by_width!(bytes, T => single::<half::CompareImm<O, T>>))
        } else {
            either!(O => by_width!(bytes, T => single::<half::Compare<O, T>>))
        });
        op.dst = register(insn.op0_register());
        if immediate_form {
            op.imm = immediate(insn, 1);
        } else {
            op.src = register(insn.op1_register());
        }
        b.compare = Some(Compare { insn: b.insns, test, size: bytes, immediate: immediate_form });
        op
    };
    Some(push(b, op))
}

/// Lowers INC, DEC, NEG, NOT.
fn unary(insn: &Instruction, b: &mut Builder) -> Option<Flow> {
    let bytes = size(insn, 0);
    macro_rules! by_unary {
        ($u:ident => $e:expr) => {
            match insn.mnemonic() {
                M::Inc => {
                    type $u = Inc;
                    $e
                }
                M::Dec => {
                    type $u = Dec;
                    $e
                }
                M::Neg => {
                    type $u = Neg;
                    $e
                }
                _ => {
                    type $u = Not;
                    $e
                }
            }
        };
    }
    let kind = match insn.mnemonic() {
        M::Inc => FlagKind::Inc,
        M::Dec => FlagKind::Dec,
        _ => FlagKind::Sub,
    };
    b.new_flags_kind = Some(kind as u32 | bytes.trailing_zeros());
    if in_memory(insn, 0) {
        let m = b.mem(insn, bytes, true);
        let op = b.op(by_unary!(U => by_width!(bytes, T => by_addr!(m, A => alu::step_m::<U, T, A, Fast>)))).with_mem(m);
        return Some(push(b, op));
    }
    let mut op = b.op(by_unary!(U => by_width!(bytes, T => alu::step_r::<U, T, true>)));
    let quiet = by_unary!(U => by_width!(bytes, T => alu::step_r::<U, T, false>));
    op.dst = register(insn.op0_register());
    b.push_flagged(op, quiet);
    Some(Flow::Next)
}

/// Lowers IMUL with two and three operands.
fn imul(insn: &Instruction, b: &mut Builder) -> Option<Flow> {
    let bytes = size(insn, 0);
    let with_immediate = insn.op_count() == 3;
    b.new_flags_kind = Some(FlagKind::Raw as u32);
    let mut op;
    if in_memory(insn, 1) {
        let m = b.mem(insn, bytes, false);
        op = b
            .op(if with_immediate {
                by_width!(bytes, T => alu::imul_rm::<T, true, Fast>)
            } else {
                by_width!(bytes, T => alu::imul_rm::<T, false, Fast>)
            })
            .with_mem(m);
    } else {
        op = b.op(if with_immediate {
            by_width!(bytes, T => alu::imul_ri::<T, true>)
        } else {
            by_width!(bytes, T => single::<half::Multiply<T, true>>)
        });
        op.src = register(insn.op1_register());
    }
    op.dst = register(insn.op0_register());
    if with_immediate {
        op.imm = immediate(insn, 2);
    }
    if in_memory(insn, 1) {
        return Some(push(b, op));
    }
    let quiet = if with_immediate {
        by_width!(bytes, T => alu::imul_ri::<T, false>)
    } else {
        by_width!(bytes, T => single::<half::Multiply<T, false>>)
    };
    b.push_flagged(op, quiet);
    Some(Flow::Next)
}

fn sign_extend(insn: &Instruction, b: &mut Builder) -> Flow {
    let handler: Handler = match insn.mnemonic() {
        M::Cbw => single::<half::ExtendSign<u8, u16>>,
        M::Cwde => single::<half::ExtendSign<u16, u32>>,
        M::Cdqe => single::<half::ExtendSign<u32, u64>>,
        M::Cwd => alu::sign_to_d::<u16>,
        M::Cdq => alu::sign_to_d::<u32>,
        _ => alu::sign_to_d::<u64>,
    };
    // Source and destination are register 0, whose byte 0 is AL.
    let op = b.op(handler);
    push(b, op)
}

/// Chooses a conditional handler for the kind of flags before it, which is known after CMP, SUB, TEST and logic.
macro_rules! by_known_flags {
    ($b:expr, $cc:expr, $c:ident, $k:ident => $e:expr; $($n:literal)*) => {
        match $b.flags_kind {
            $(Some($n) => by_cc!($cc, $c => {
                const $k: u32 = $n;
                let handler: Handler = $e;
                handler
            }),)*
            _ => by_cc!($cc, $c => {
                const $k: u32 = ANY;
                let handler: Handler = $e;
                handler
            }),
        }
    };
}

fn is_cmov(m: M) -> bool {
    matches!(
        m,
        M::Cmovo
            | M::Cmovno
            | M::Cmovb
            | M::Cmovae
            | M::Cmove
            | M::Cmovne
            | M::Cmovbe
            | M::Cmova
            | M::Cmovs
            | M::Cmovns
            | M::Cmovp
            | M::Cmovnp
            | M::Cmovl
            | M::Cmovge
            | M::Cmovle
            | M::Cmovg
    )
}

fn is_setcc(m: M) -> bool {
    matches!(
        m,
        M::Seto
            | M::Setno
            | M::Setb
            | M::Setae
            | M::Sete
            | M::Setne
            | M::Setbe
            | M::Seta
            | M::Sets
            | M::Setns
            | M::Setp
            | M::Setnp
            | M::Setl
            | M::Setge
            | M::Setle
            | M::Setg
    )
}

/// Executes CMOVcc of 16 bits. `src` is the register, without `scale`; `imm` the condition; `aux` is 256 if memory is
/// the source, in `dst`'s place.
fn cmov16(cpu: &mut Cpu, op: &Op) -> Result<(), Fault> {
    let v = if op.aux & word::IN_MEMORY != 0 {
        let addr = op.addr(cpu);
        load_bytes(cpu, addr, 2)?
    } else {
        reg(cpu, op.src, 2)
    };
    if cpu.flags.condition(op.imm as u8) {
        set_reg(cpu, op.dst, 2, v);
    }
    Ok(())
}

fn cmov(insn: &Instruction, b: &mut Builder) -> Option<Flow> {
    let cc = branch::condition_number(insn);
    let bytes = size(insn, 0);
    let memory = in_memory(insn, 1);
    let mut op;
    if memory {
        let m = b.mem(insn, bytes, false);
        let handler =
            if bytes == 2 { called_op!(cmov16) } else { by_wide!(bytes, T => by_cc!(cc, C => alu::cmov_rm::<T, C, Fast>)) };
        op = b.op(handler).with_mem(m);
        op.aux = word::IN_MEMORY;
    } else {
        let handler = match bytes {
            2 => called_op!(cmov16),
            4 => by_known_flags!(b, cc, C, K => alu::cmov_rr::<u32, C, K>; 8 10 11 12 14 15),
            _ => by_known_flags!(b, cc, C, K => alu::cmov_rr::<u64, C, K>; 8 10 11 12 14 15),
        };
        op = b.op(handler);
        op.src = register(insn.op1_register());
    }
    op.dst = register(insn.op0_register());
    op.imm = u64::from(cc);
    Some(push(b, op))
}

fn setcc(insn: &Instruction, b: &mut Builder) -> Option<Flow> {
    let cc = branch::condition_number(insn);
    let op = if in_memory(insn, 0) {
        b.mem_op(insn, by_cc!(cc, C => alu::setcc_m::<C, Fast>), 1, true)
    } else {
        let mut op = b.op(by_known_flags!(b, cc, C, K => alu::setcc_r::<C, K>; 8 10 11 12 14 15));
        op.dst = register(insn.op0_register());
        op
    };
    Some(push(b, op))
}

/// Returns the bytes of LOOP's count register.
pub fn loop_count_bytes(insn: &Instruction) -> u8 {
    use Code as C;
    match insn.code() {
        C::Loop_rel8_16_CX
        | C::Loop_rel8_32_CX
        | C::Loope_rel8_16_CX
        | C::Loope_rel8_32_CX
        | C::Loopne_rel8_16_CX
        | C::Loopne_rel8_32_CX => 2,
        C::Loop_rel8_16_RCX
        | C::Loop_rel8_64_RCX
        | C::Loope_rel8_16_RCX
        | C::Loope_rel8_64_RCX
        | C::Loopne_rel8_16_RCX
        | C::Loopne_rel8_64_RCX => 8,
        _ => 4,
    }
}
