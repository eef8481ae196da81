//! Conversions between integers and floating-point numbers, and between their formats.

use iced_x86::{Code, Instruction, Mnemonic};

use crate::hypervisor::soft::softfloat::{self, Env, F32, F64, Float, Round};

use super::form::*;
use super::lanes::*;

/// Converts to a 32-bit integer, returned as its bits.
fn int32<F: Float>(env: &mut Env, a: F, round: Round) -> u32 {
    softfloat::to_int(env, a, 32, round) as u32
}

/// Converts from a 32-bit integer's bits.
fn from32<F: Float>(env: &mut Env, a: u32) -> F {
    softfloat::from_int(env, i64::from(a as i32))
}

/// Returns the handlers of a conversion.
pub fn lower(insn: &Instruction) -> Option<Pair> {
    packed(insn.mnemonic()).or_else(|| scalar(insn.code())).or_else(|| to_mmx(insn.mnemonic()))
}

fn packed(mnemonic: Mnemonic) -> Option<Pair> {
    fn dq_of_ps(env: &mut Env, b: u128, round: Round) -> u128 {
        from_dwords(dwords(b).map(|x| int32(env, F32(x), round)))
    }
    Some(match mnemonic {
        Mnemonic::Cvtps2pd => float_op!(u64, |env, _a, b| {
            from_qwords([b as u32, (b >> 32) as u32].map(|x| softfloat::convert::<F32, F64>(env, F32(x)).0))
        }),
        Mnemonic::Cvtpd2ps => float_op!(u128, |env, _a, b| {
            let [low, high] = qwords(b).map(|x| softfloat::convert::<F64, F32>(env, F64(x)).0);
            from_dwords([low, high, 0, 0])
        }),
        Mnemonic::Cvtdq2ps => float_op!(u128, |env, _a, b| from_dwords(dwords(b).map(|x| from32::<F32>(env, x).0))),
        Mnemonic::Cvtdq2pd => {
            xmm_op!(u64, |_a, b| from_qwords([b as i32, (b >> 32) as i32].map(|x| f64::from(x).to_bits())))
        }
        Mnemonic::Cvtps2dq => float_op!(u128, |env, _a, b| with3(env, b, (), |env, b, ()| {
            let round = env.round;
            dq_of_ps(env, b, round)
        })),
        Mnemonic::Cvttps2dq => float_op!(u128, |env, _a, b| dq_of_ps(env, b, Round::Zero)),
        Mnemonic::Cvtpd2dq => float_op!(u128, |env, _a, b| u128::from(ints_of_pd(env, b, env.round))),
        Mnemonic::Cvttpd2dq => float_op!(u128, |env, _a, b| u128::from(ints_of_pd(env, b, Round::Zero))),
        _ => return None,
    })
}

fn ints_of_pd(env: &mut Env, b: u128, round: Round) -> u64 {
    let [low, high] = qwords(b).map(|x| int32(env, F64(x), round));
    u64::from(low) | u64::from(high) << 32
}

fn ints_of_ps(env: &mut Env, b: u64, round: Round) -> u64 {
    let [low, high] = [b as u32, (b >> 32) as u32].map(|x| int32(env, F32(x), round));
    u64::from(low) | u64::from(high) << 32
}

/// `general register = integer`: `$bits` wide, rounded by `$round` of the environment.
macro_rules! to_integer {
    ($src:ty, $format:ident, $native:ty, $int:ty, $uint:ty, $round:expr) => {
        [
            called!(|cpu, op| {
                let b = <$src as Source>::register(cpu, op.src);
                let r = with_mxcsr(cpu, |env| integer!(env, b, $format, $native, $int, $round))?;
                set_gpr(cpu, op.dst, u64::from(r as $uint))
            }),
            called!(|cpu, op| {
                let b = <$src as Source>::memory(cpu, op)?;
                let r = with_mxcsr(cpu, |env| integer!(env, b, $format, $native, $int, $round))?;
                set_gpr(cpu, op.dst, u64::from(r as $uint))
            }),
        ]
    };
}

/// Integral values convert without a flag in any mode, so they need no soft float. The extremes, where the host's
/// conversion saturates, do.
macro_rules! integer {
    ($env:ident, $b:ident, $format:ident, $native:ty, $int:ty, $round:expr) => {{
        let x = <$native>::from_bits($b);
        let i = x as $int;
        if i as $native == x && i != <$int>::MAX && i != <$int>::MIN {
            i
        } else {
            let round = with1(&*$env, $round);
            softfloat::to_int($env, $format($b), <$int>::BITS, round) as $int
        }
    }};
}

/// `xmm lane = integer`, from a general register or memory.
macro_rules! from_integer {
    ($uint:ty, $int:ty, $format:ident, $bits:literal) => {
        [
            called!(|cpu, op| {
                let value = i64::from(gpr(cpu, op.src) as $int);
                let r = with_mxcsr(cpu, |env| softfloat::from_int::<$format>(env, value))?;
                let upper = xmm(cpu, op.dst) >> $bits << $bits;
                set_xmm(cpu, op.dst, upper | u128::from(r.0))
            }),
            called!(|cpu, op| {
                let value = i64::from(cpu.load::<$uint>(op.addr(cpu))? as $int);
                let r = with_mxcsr(cpu, |env| softfloat::from_int::<$format>(env, value))?;
                let upper = xmm(cpu, op.dst) >> $bits << $bits;
                set_xmm(cpu, op.dst, upper | u128::from(r.0))
            }),
        ]
    };
}

fn scalar(code: Code) -> Option<Pair> {
    use Code::*;
    Some(match code {
        Cvtss2sd_xmm_xmmm32 => {
            float_op!(u32, |env, a, b| { a >> 64 << 64 | u128::from(softfloat::convert::<F32, F64>(env, F32(b)).0) })
        }
        Cvtsd2ss_xmm_xmmm64 => {
            float_op!(u64, |env, a, b| { a >> 32 << 32 | u128::from(softfloat::convert::<F64, F32>(env, F64(b)).0) })
        }
        Cvtsi2ss_xmm_rm32 => from_integer!(u32, i32, F32, 32),
        Cvtsi2ss_xmm_rm64 => from_integer!(u64, i64, F32, 32),
        Cvtsi2sd_xmm_rm32 => from_integer!(u32, i32, F64, 64),
        Cvtsi2sd_xmm_rm64 => from_integer!(u64, i64, F64, 64),
        Cvtss2si_r32_xmmm32 => to_integer!(u32, F32, f32, i32, u32, |env: &Env| env.round),
        Cvtss2si_r64_xmmm32 => to_integer!(u32, F32, f32, i64, u64, |env: &Env| env.round),
        Cvtsd2si_r32_xmmm64 => to_integer!(u64, F64, f64, i32, u32, |env: &Env| env.round),
        Cvtsd2si_r64_xmmm64 => to_integer!(u64, F64, f64, i64, u64, |env: &Env| env.round),
        Cvttss2si_r32_xmmm32 => to_integer!(u32, F32, f32, i32, u32, |_env: &Env| Round::Zero),
        Cvttss2si_r64_xmmm32 => to_integer!(u32, F32, f32, i64, u64, |_env: &Env| Round::Zero),
        Cvttsd2si_r32_xmmm64 => to_integer!(u64, F64, f64, i32, u32, |_env: &Env| Round::Zero),
        Cvttsd2si_r64_xmmm64 => to_integer!(u64, F64, f64, i64, u64, |_env: &Env| Round::Zero),
        _ => return None,
    })
}

/// `mm = f(xmm or memory)`.
macro_rules! mm_of {
    ($src:ty, $f:expr) => {
        [
            called!(|cpu, op| {
                check_x87(cpu)?;
                let b = <$src as Source>::register(cpu, op.src);
                // The MMX state is entered even when the conversion ends in #XM.
                enter_mmx(cpu);
                let r = with_mxcsr(cpu, |env| with2(env, b, $f))?;
                set_mm(cpu, op.dst, r)
            }),
            called!(|cpu, op| {
                check_x87(cpu)?;
                let b = <$src as Source>::memory(cpu, op)?;
                enter_mmx(cpu);
                let r = with_mxcsr(cpu, |env| with2(env, b, $f))?;
                set_mm(cpu, op.dst, r)
            }),
        ]
    };
}

fn to_mmx(mnemonic: Mnemonic) -> Option<Pair> {
    Some(match mnemonic {
        Mnemonic::Cvtps2pi => mm_of!(u64, |env, b| ints_of_ps(env, b, env.round)),
        Mnemonic::Cvttps2pi => mm_of!(u64, |env, b| ints_of_ps(env, b, Round::Zero)),
        Mnemonic::Cvtpd2pi => mm_of!(u128, |env, b| ints_of_pd(env, b, env.round)),
        Mnemonic::Cvttpd2pi => mm_of!(u128, |env, b| ints_of_pd(env, b, Round::Zero)),
        // With a memory operand these two do not touch the x87 state.
        Mnemonic::Cvtpi2ps => [
            called!(|cpu, op| {
                check_x87(cpu)?;
                let (a, b) = (xmm(cpu, op.dst), mm(cpu, op.src));
                enter_mmx(cpu);
                let r = with_mxcsr(cpu, |env| ps_of_ints(env, a, b))?;
                set_xmm(cpu, op.dst, r)
            }),
            // From memory it is not an MMX instruction: a pending x87 exception waits.
            called!(|cpu, op| {
                let b = cpu.load::<u64>(op.addr(cpu))?;
                let a = xmm(cpu, op.dst);
                let r = with_mxcsr(cpu, |env| ps_of_ints(env, a, b))?;
                set_xmm(cpu, op.dst, r)
            }),
        ],
        Mnemonic::Cvtpi2pd => [
            called!(|cpu, op| {
                check_x87(cpu)?;
                enter_mmx(cpu);
                let r = pd_of_ints(mm(cpu, op.src));
                set_xmm(cpu, op.dst, r)
            }),
            called!(|cpu, op| {
                let r = pd_of_ints(cpu.load::<u64>(op.addr(cpu))?);
                set_xmm(cpu, op.dst, r)
            }),
        ],
        _ => return None,
    })
}

fn ps_of_ints(env: &mut Env, a: u128, b: u64) -> u128 {
    let [low, high] = [b as u32, (b >> 32) as u32].map(|x| u128::from(from32::<F32>(env, x).0));
    a >> 64 << 64 | high << 32 | low
}

fn pd_of_ints(b: u64) -> u128 {
    from_qwords([b as i32, (b >> 32) as i32].map(|x| f64::from(x).to_bits()))
}
