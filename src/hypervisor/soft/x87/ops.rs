//! Loads, stores, arithmetic, comparisons and the one-operand instructions.
//!
//! The fields of an op: `dst` the i of ST(i), `src` the operand's format (below), `aux` the operation.

use super::float::{self, INDEFINITE, ONE, SF};
use super::transcend;
use super::unit::{C0, C1, C2, C3, check_pending, commit, stack_overflow, stack_underflow, stopped};
use crate::hypervisor::soft::cpu::rflags::{CF, PF, ZF};
use crate::hypervisor::soft::cpu::{Cpu, Fault};
use crate::hypervisor::soft::flags::LazyFlags;
use crate::hypervisor::soft::mmu;
use crate::hypervisor::soft::op::Op;
use crate::hypervisor::soft::softfloat::{self, Class, Env, F32, F64, F80, Float, Relation, flag};

/// Operand formats, in [`Op::src`].
pub mod format {
    #![allow(missing_docs)]
    pub const REGISTER: u8 = 0;
    pub const F32: u8 = 1;
    pub const F64: u8 = 2;
    pub const I16: u8 = 3;
    pub const I32: u8 = 4;
    pub const I64: u8 = 5;
    pub const F80: u8 = 6;
    pub const BCD: u8 = 7;
    /// A constant, numbered by `dst`.
    pub const CONSTANT: u8 = 8;
}

/// Operations, in [`Op::aux`].
pub mod operation {
    #![allow(missing_docs)]
    pub const ADD: u32 = 0;
    pub const MUL: u32 = 1;
    pub const SUB: u32 = 2;
    pub const SUBR: u32 = 3;
    pub const DIV: u32 = 4;
    pub const DIVR: u32 = 5;
    pub const OPERATION: u32 = 0xff;
    /// The destination is ST(i), not ST(0).
    pub const TO_STI: u32 = 0x100;
    pub const POP: u32 = 0x200;
    pub const POP_TWICE: u32 = 0x400;
    /// FUCOM: quiet NaNs raise nothing.
    pub const QUIET: u32 = 0x800;
    /// FCOMI: the result goes to RFLAGS.
    pub const TO_RFLAGS: u32 = 0x1000;
    /// FSTPNCE: an empty ST(0) is popped without an exception, and nothing is stored.
    pub const UNCHECKED: u32 = 0x4000;
    /// FISTTP.
    pub const TRUNCATE: u32 = 0x2000;

    pub const CHS: u32 = 0;
    pub const ABS: u32 = 1;
    pub const TST: u32 = 2;
    pub const XAM: u32 = 3;
    pub const SQRT: u32 = 4;
    pub const RNDINT: u32 = 5;
    pub const F2XM1: u32 = 6;
    pub const SIN: u32 = 7;
    pub const COS: u32 = 8;
    pub const SCALE: u32 = 9;
    pub const PREM: u32 = 10;
    pub const PREM1: u32 = 11;
    pub const YL2X: u32 = 12;
    pub const YL2XP1: u32 = 13;
    pub const PATAN: u32 = 14;
    pub const XTRACT: u32 = 15;
    pub const PTAN: u32 = 16;
    pub const SINCOS: u32 = 17;
}

/// A raw operand from memory.
#[derive(Clone, Copy)]
enum Raw {
    Bits(u64),
    Tbyte(u64, u16),
}

/// Returns the address `offset` bytes after the start of the memory operand.
pub fn address(cpu: &Cpu, op: &Op, offset: u64) -> u64 {
    let addr = op.addr(cpu).wrapping_add(offset);
    if cpu.is_64bit() { addr } else { addr & 0xffff_ffff }
}

fn fetch(cpu: &mut Cpu, op: &Op) -> Result<Raw, Fault> {
    let addr = op.addr(cpu);
    Ok(match op.src {
        format::I16 => Raw::Bits(u64::from(cpu.load::<u16>(addr)?)),
        format::F32 | format::I32 => Raw::Bits(u64::from(cpu.load::<u32>(addr)?)),
        format::F64 | format::I64 => Raw::Bits(cpu.load::<u64>(addr)?),
        _ => {
            let sig = cpu.load::<u64>(addr)?;
            Raw::Tbyte(sig, cpu.load::<u16>(address(cpu, op, 8))?)
        }
    })
}

/// Converts a loaded operand, with the exceptions of a load.
fn convert(env: &mut Env, form: u8, raw: Raw) -> F80 {
    match (raw, form) {
        (Raw::Bits(bits), format::F32) => float::load(env, F32(bits as u32)),
        (Raw::Bits(bits), format::F64) => float::load(env, F64(bits)),
        _ => exact_value(form, raw),
    }
}

/// Converts an operand unchanged: a signalling NaN stays signalling.
fn exact_value(form: u8, raw: Raw) -> F80 {
    match (raw, form) {
        (Raw::Tbyte(sig, se), format::F80) => F80 { mantissa: sig, sign_exp: se },
        (Raw::Tbyte(sig, se), _) => {
            let mut bytes = [0; 10];
            bytes[..8].copy_from_slice(&sig.to_le_bytes());
            bytes[8..].copy_from_slice(&se.to_le_bytes());
            float::from_bcd(bytes)
        }
        (Raw::Bits(bits), format::I16) => float::from_integer(i64::from(bits as i16)),
        (Raw::Bits(bits), format::I32) => float::from_integer(i64::from(bits as i32)),
        (Raw::Bits(bits), format::I64) => float::from_integer(bits as i64),
        (Raw::Bits(bits), format::F32) => softfloat::widen(F32(bits as u32)),
        (Raw::Bits(bits), _) => softfloat::widen(F64(bits)),
    }
}

/// Notes that the operand in memory was denormal, unless an exception of higher priority or a NaN decides the result.
fn note_memory_denormal(env: &mut Env, form: u8, raw: Option<Raw>, own: F80) {
    let denormal = match (raw, form) {
        (Some(Raw::Bits(bits)), format::F32) => F32(bits as u32).unpack().denormal,
        (Some(Raw::Bits(bits)), format::F64) => F64(bits).unpack().denormal,
        _ => false,
    };
    if denormal && env.flags & (flag::INVALID | flag::DIVIDE) == 0 && !own.unpack().is_nan() {
        env.flags |= flag::DENORMAL;
    }
}

/// Executes FADD, FMUL, FSUB, FSUBR, FDIV, FDIVR, their pop and integer forms.
pub fn arithmetic(cpu: &mut Cpu, op: &Op) -> Result<(), Fault> {
    check_pending(cpu)?;
    let memory = op.src != format::REGISTER;
    let raw = if memory { Some(fetch(cpu, op)?) } else { None };
    let i = usize::from(op.dst);
    let mut env = cpu.fpu.env();
    let to = if op.aux & operation::TO_STI != 0 { i } else { 0 };
    let result = if cpu.fpu.is_empty(0) || (!memory && cpu.fpu.is_empty(i)) {
        stack_underflow(&mut env);
        INDEFINITE
    } else {
        let other = match raw {
            Some(raw) => exact_value(op.src, raw),
            None => cpu.fpu.st(i - to),
        };
        let own = if memory || to == 0 { cpu.fpu.st(0) } else { cpu.fpu.st(i) };
        let result = match op.aux & operation::OPERATION {
            operation::ADD => softfloat::add(&mut env, own, other),
            operation::MUL => softfloat::mul(&mut env, own, other),
            operation::SUB => softfloat::sub(&mut env, own, other),
            operation::SUBR => softfloat::sub(&mut env, other, own),
            operation::DIV => softfloat::div(&mut env, own, other),
            _ => softfloat::div(&mut env, other, own),
        };
        note_memory_denormal(&mut env, op.src, raw, own);
        result
    };
    if !stopped(&mut env) {
        cpu.fpu.set_st(to, result);
        if op.aux & operation::POP != 0 {
            cpu.fpu.pop();
        }
    }
    commit(cpu, op, memory, &env);
    Ok(())
}

/// Executes FCOM, FUCOM, FICOM, FCOMI, FUCOMI and their pop forms.
pub fn compare(cpu: &mut Cpu, op: &Op) -> Result<(), Fault> {
    check_pending(cpu)?;
    let memory = op.src != format::REGISTER;
    let raw = if memory { Some(fetch(cpu, op)?) } else { None };
    let i = usize::from(op.dst);
    let mut env = cpu.fpu.env();
    let order = if cpu.fpu.is_empty(0) || (!memory && cpu.fpu.is_empty(i)) {
        stack_underflow(&mut env);
        Relation::Unordered
    } else {
        let (own, other) = (cpu.fpu.st(0), raw.map_or_else(|| cpu.fpu.st(i), |raw| exact_value(op.src, raw)));
        let order = float::compare(&mut env, own, other, op.aux & operation::QUIET != 0);
        note_memory_denormal(&mut env, op.src, raw, own);
        order
    };
    // AMD's processors return the result even where an unmasked exception stops the pop.
    if op.aux & operation::TO_RFLAGS != 0 {
        cpu.flags = LazyFlags::raw(match order {
            Relation::Greater => 0,
            Relation::Less => CF,
            Relation::Equal => ZF,
            Relation::Unordered => ZF | PF | CF,
        });
    } else {
        set_order(cpu, order);
    }
    if !stopped(&mut env) {
        for bit in [operation::POP, operation::POP_TWICE] {
            if op.aux & bit != 0 {
                cpu.fpu.pop();
            }
        }
    }
    if op.aux & operation::TO_RFLAGS != 0 && env.flags & SF == 0 {
        // C1 stays, except where it reports an empty register.
        env.flags |= u32::from(cpu.fpu.fsw & C1);
    }
    commit(cpu, op, memory, &env);
    Ok(())
}

fn set_conditions(cpu: &mut Cpu, bits: u16) {
    cpu.fpu.fsw = cpu.fpu.fsw & !(C0 | C1 | C2 | C3) | bits;
}

fn set_order(cpu: &mut Cpu, order: Relation) {
    set_conditions(
        cpu,
        match order {
            Relation::Greater => 0,
            Relation::Less => C0,
            Relation::Equal => C3,
            Relation::Unordered => C0 | C2 | C3,
        },
    );
}

/// The constants of FLD1 to FLDZ, in the order of their opcodes: the number rounded down to 64 bits, and whether
/// rounding to nearest or up would give the next one.
const CONSTANTS: [(u64, u16, bool); 7] = [
    (1 << 63, 0x3fff, false),
    (0xd49a_784b_cd1b_8afe, 0x4000, false),
    (0xb8aa_3b29_5c17_f0bb, 0x3fff, true),
    (0xc90f_daa2_2168_c234, 0x4000, true),
    (0x9a20_9a84_fbcf_f798, 0x3ffd, true),
    (0xb172_17f7_d1cf_79ab, 0x3ffe, true),
    (0, 0, false),
];

fn load_constant(fcw: u16, number: usize) -> F80 {
    let (sig, se, nearest_is_up) = CONSTANTS[number % 7];
    let exact = number == 0 || number == 6;
    let up = match fcw >> 10 & 3 {
        0 => nearest_is_up,
        2 => !exact,
        _ => false,
    };
    F80 { mantissa: sig + u64::from(up), sign_exp: se }
}

/// Executes FLD, FILD, FBLD and the constants.
pub fn load(cpu: &mut Cpu, op: &Op) -> Result<(), Fault> {
    check_pending(cpu)?;
    let memory = !matches!(op.src, format::REGISTER | format::CONSTANT);
    let raw = if memory { Some(fetch(cpu, op)?) } else { None };
    let mut env = cpu.fpu.env();
    let source_is_empty = op.src == format::REGISTER && cpu.fpu.is_empty(usize::from(op.dst));
    let value = if source_is_empty {
        stack_underflow(&mut env);
        INDEFINITE
    } else if !cpu.fpu.is_empty(7) {
        stack_overflow(&mut env);
        INDEFINITE
    } else if let Some(raw) = raw {
        convert(&mut env, op.src, raw)
    } else if op.src == format::CONSTANT {
        load_constant(cpu.fpu.fcw, usize::from(op.dst))
    } else {
        cpu.fpu.st(usize::from(op.dst))
    };
    // An unmasked denormal exception is reported, but the number is loaded.
    if env.unmasked() & flag::INVALID != 0 {
        stopped(&mut env);
    } else {
        cpu.fpu.push(value);
    }
    commit(cpu, op, memory, &env);
    Ok(())
}

/// Returns what a store writes: up to ten bytes.
fn store_image(env: &mut Env, form: u8, truncate: bool, value: F80) -> (u64, u16) {
    match form {
        format::F32 => (u64::from(float::to_f32(env, value)), 0),
        format::F64 => (float::to_f64(env, value), 0),
        format::I16 => (float::to_integer(env, value, 16, truncate), 0),
        format::I32 => (float::to_integer(env, value, 32, truncate), 0),
        format::I64 => (float::to_integer(env, value, 64, truncate), 0),
        format::F80 => (value.mantissa, value.sign_exp),
        _ => {
            let bytes = float::to_bcd(env, value);
            let low: [u8; 8] = bytes[..8].try_into().expect("eight bytes");
            (u64::from_le_bytes(low), u16::from_le_bytes([bytes[8], bytes[9]]))
        }
    }
}

/// Executes FST, FSTP, FIST, FISTP, FISTTP, FBSTP to memory.
pub fn store(cpu: &mut Cpu, op: &Op) -> Result<(), Fault> {
    check_pending(cpu)?;
    let mut env = cpu.fpu.env();
    let empty = cpu.fpu.is_empty(0);
    let value = if empty { INDEFINITE } else { cpu.fpu.st(0) };
    let image = store_image(&mut env, op.src, op.aux & operation::TRUNCATE != 0, value);
    if empty {
        stack_underflow(&mut env);
    }
    let too_large_or_small = env.unmasked() & (flag::OVERFLOW | flag::UNDERFLOW) != 0;
    let refused = stopped(&mut env) || too_large_or_small;
    if too_large_or_small {
        // Nothing is stored, so nothing was rounded.
        env.flags &= !(flag::INEXACT | float::C1);
    }
    let addr = op.addr(cpu);
    if refused {
        // The check that the memory can be written comes first in any case.
        let bytes = match op.src {
            format::I16 => 2,
            format::F32 | format::I32 => 4,
            format::F64 | format::I64 => 8,
            _ => 10,
        };
        mmu::probe_write(cpu, addr, bytes)?;
    } else {
        match op.src {
            format::I16 => cpu.store(addr, image.0 as u16)?,
            format::F32 | format::I32 => cpu.store(addr, image.0 as u32)?,
            format::F64 | format::I64 => cpu.store(addr, image.0)?,
            _ => {
                mmu::probe_write(cpu, addr, 10)?;
                cpu.store(addr, image.0)?;
                let high = address(cpu, op, 8);
                cpu.store(high, image.1)?;
            }
        }
        if op.aux & operation::POP != 0 {
            cpu.fpu.pop();
        }
    }
    commit(cpu, op, true, &env);
    Ok(())
}

/// Executes FST and FSTP to a register.
pub fn store_register(cpu: &mut Cpu, op: &Op) -> Result<(), Fault> {
    check_pending(cpu)?;
    let mut env = cpu.fpu.env();
    let mut value = cpu.fpu.st(0);
    if cpu.fpu.is_empty(0) && op.aux & operation::UNCHECKED != 0 {
        cpu.fpu.pop();
        commit(cpu, op, false, &env);
        return Ok(());
    }
    if cpu.fpu.is_empty(0) {
        stack_underflow(&mut env);
        value = INDEFINITE;
    }
    if !stopped(&mut env) {
        cpu.fpu.set_st(usize::from(op.dst), value);
        if op.aux & operation::POP != 0 {
            cpu.fpu.pop();
        }
    }
    commit(cpu, op, false, &env);
    Ok(())
}

/// Executes FXCH.
pub fn exchange(cpu: &mut Cpu, op: &Op) -> Result<(), Fault> {
    check_pending(cpu)?;
    let i = usize::from(op.dst);
    let mut env = cpu.fpu.env();
    let [a, b] = [0, i].map(|r| if cpu.fpu.is_empty(r) { None } else { Some(cpu.fpu.st(r)) });
    if a.is_none() || b.is_none() {
        stack_underflow(&mut env);
    }
    if !stopped(&mut env) {
        cpu.fpu.set_st(i, a.unwrap_or(INDEFINITE));
        cpu.fpu.set_st(0, b.unwrap_or(INDEFINITE));
    }
    commit(cpu, op, false, &env);
    Ok(())
}

/// Executes FCMOVcc: `aux` is the condition 0 to 7 in the order B, E, BE, U, NB, NE, NBE, NU.
pub fn conditional_move(cpu: &mut Cpu, op: &Op) -> Result<(), Fault> {
    check_pending(cpu)?;
    let i = usize::from(op.dst);
    let mut env = cpu.fpu.env();
    if cpu.fpu.is_empty(0) || cpu.fpu.is_empty(i) {
        stack_underflow(&mut env);
        if !stopped(&mut env) {
            cpu.fpu.set_st(0, INDEFINITE);
        }
    } else {
        let holds = match op.aux & 3 {
            0 => cpu.flags.cf(),
            1 => cpu.flags.zf(),
            2 => cpu.flags.cf() || cpu.flags.zf(),
            _ => cpu.flags.pf(),
        };
        if holds != (op.aux & 4 != 0) {
            let value = cpu.fpu.st(i);
            cpu.fpu.set_st(0, value);
        }
        // C1 stays.
        env.flags |= u32::from(cpu.fpu.fsw & C1);
    }
    commit(cpu, op, false, &env);
    Ok(())
}

/// Executes FXAM.
fn examine(cpu: &mut Cpu, op: &Op) {
    let value = cpu.fpu.st(0);
    let class = if cpu.fpu.is_empty(0) {
        C3 | C0
    } else {
        match value.unpack() {
            p if p.denormal => C3 | C2,
            p => match p.class {
                Class::Unsupported => 0,
                Class::Quiet | Class::Signalling => C0,
                Class::Finite => C2,
                Class::Infinite => C2 | C0,
                Class::Zero => C3,
            },
        }
    };
    let env = cpu.fpu.env();
    commit(cpu, op, false, &env);
    set_conditions(cpu, class | if value.unpack().sign { C1 } else { 0 });
}

/// Executes instructions of ST(0) alone. The result replaces it.
pub fn unary(cpu: &mut Cpu, op: &Op) -> Result<(), Fault> {
    check_pending(cpu)?;
    if op.aux == operation::XAM {
        examine(cpu, op);
        return Ok(());
    }
    let mut env = cpu.fpu.env();
    let value = cpu.fpu.st(0);
    let trigonometric = matches!(op.aux, operation::SIN | operation::COS);
    if cpu.fpu.is_empty(0) {
        stack_underflow(&mut env);
        if op.aux == operation::TST {
            set_order(cpu, Relation::Unordered);
        }
        if !stopped(&mut env) && op.aux != operation::TST {
            cpu.fpu.set_st(0, INDEFINITE);
        }
        if trigonometric {
            cpu.fpu.fsw &= !C2;
        }
        commit(cpu, op, false, &env);
        return Ok(());
    }
    if op.aux == operation::TST {
        let order = float::compare(&mut env, value, F80::zero(false), false);
        set_order(cpu, order);
        stopped(&mut env);
        commit(cpu, op, false, &env);
        return Ok(());
    }
    if trigonometric {
        cpu.fpu.fsw &= !C2;
        if out_of_range(cpu, op, value) {
            return Ok(());
        }
    }
    let result = match op.aux {
        operation::CHS => float::negated(value),
        operation::ABS => F80 { sign_exp: value.sign_exp & 0x7fff, ..value },
        operation::SQRT => softfloat::sqrt(&mut env, value),
        operation::RNDINT => float::round_to_integer(&mut env, value),
        operation::F2XM1 => transcend::f2xm1(&mut env, value),
        operation::SIN => transcend::fsin(&mut env, value),
        _ => transcend::fcos(&mut env, value),
    };
    if !stopped(&mut env) {
        cpu.fpu.set_st(0, result);
    }
    commit(cpu, op, false, &env);
    Ok(())
}

/// Returns whether a trigonometric operand is too large. Then it sets C2, and nothing else happens.
fn out_of_range(cpu: &mut Cpu, op: &Op, value: F80) -> bool {
    let out = transcend::out_of_range(value);
    if out {
        let env = cpu.fpu.env();
        commit(cpu, op, false, &env);
        cpu.fpu.fsw |= C2;
    }
    out
}

/// Executes instructions of ST(0) and ST(1).
pub fn binary(cpu: &mut Cpu, op: &Op) -> Result<(), Fault> {
    check_pending(cpu)?;
    let mut env = cpu.fpu.env();
    let (to, pops) = match op.aux {
        operation::YL2X | operation::YL2XP1 | operation::PATAN => (1, true),
        _ => (0, false),
    };
    let (x, y) = (cpu.fpu.st(0), cpu.fpu.st(1));
    let mut conditions = None;
    let result = if cpu.fpu.is_empty(0) || cpu.fpu.is_empty(1) {
        stack_underflow(&mut env);
        INDEFINITE
    } else {
        match op.aux {
            operation::SCALE => float::scale(&mut env, x, y),
            operation::YL2X => transcend::fyl2x(&mut env, x, y),
            operation::YL2XP1 => transcend::fyl2xp1(&mut env, x, y),
            operation::PATAN => transcend::fpatan(&mut env, x, y),
            _ => {
                let (rest, quotient, complete) = float::remainder(&mut env, x, y, op.aux == operation::PREM1);
                let bit = |n: u8, flag: u16| if complete && quotient >> n & 1 != 0 { flag } else { 0 };
                let refused = env.unmasked() & flag::BEFORE != 0;
                if !rest.unpack().is_nan() && !refused {
                    conditions = Some(bit(0, C1) | bit(1, C3) | bit(2, C0) | if complete { 0 } else { C2 });
                }
                rest
            }
        }
    };
    let refused = stopped(&mut env);
    commit(cpu, op, false, &env);
    if let Some(bits) = conditions {
        set_conditions(cpu, bits);
    } else if matches!(op.aux, operation::PREM | operation::PREM1) {
        cpu.fpu.fsw &= !C2;
    }
    if !refused {
        cpu.fpu.set_st(to, result);
        if pops {
            cpu.fpu.pop();
        }
    }
    Ok(())
}

/// Executes instructions of ST(0) that push a second result: FXTRACT, FPTAN, FSINCOS.
pub fn pushing(cpu: &mut Cpu, op: &Op) -> Result<(), Fault> {
    check_pending(cpu)?;
    let mut env = cpu.fpu.env();
    let value = cpu.fpu.st(0);
    let trigonometric = op.aux != operation::XTRACT;
    if trigonometric {
        cpu.fpu.fsw &= !C2;
    }
    let (first, second) = if cpu.fpu.is_empty(0) {
        stack_underflow(&mut env);
        (INDEFINITE, INDEFINITE)
    } else if !cpu.fpu.is_empty(7) {
        stack_overflow(&mut env);
        (INDEFINITE, INDEFINITE)
    } else if trigonometric && out_of_range(cpu, op, value) {
        return Ok(());
    } else {
        match op.aux {
            operation::XTRACT => float::extract(&mut env, value),
            operation::PTAN => {
                let tangent = transcend::fptan(&mut env, value);
                (tangent, if tangent.unpack().is_nan() { tangent } else { ONE })
            }
            _ => transcend::fsincos(&mut env, value),
        }
    };
    if !stopped(&mut env) {
        cpu.fpu.set_st(0, first);
        cpu.fpu.push(second);
    }
    commit(cpu, op, false, &env);
    Ok(())
}
