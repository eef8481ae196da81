//! Shapes of instructions, as macros that make their handlers.
//!
//! A shape's macro takes a function on values and gives a [`Pair`]: the handler for a register operand and the one for
//! a memory operand. The work is a function of its own, never inlined into the handler, so that the handler has no
//! locals and its tail call stays a jump.
//!
//! Memory is read before anything changes; MMX state is entered last but before the result is written.

use iced_x86::{Code, Instruction, OpKind};

use crate::hypervisor::soft::cpu::{Cpu, Fault};
use crate::hypervisor::soft::lower::{Builder, Flow};
use crate::hypervisor::soft::op::{Handler, Op};
use crate::hypervisor::soft::softfloat::{Env, flag};

use super::lanes::{from_qwords, qwords};
use crate::hypervisor::soft::op::called_op;

/// The handlers of one instruction: without and with a memory operand.
pub type Pair = [Handler; 2];

/// Pushes the op of `insn`: registers to `dst` and `src`, the memory operand, and the last immediate to `imm`.
pub fn emit(b: &mut Builder, insn: &Instruction, pair: Pair) -> Flow {
    let mut mem = None;
    check_x87_first(b, insn);
    let (mut regs, mut imm) = ([0u8; 2], 0);
    for i in 0..insn.op_count() {
        match insn.op_kind(i) {
            OpKind::Register if i < 2 => regs[i as usize] = insn.op_register(i).number() as u8,
            OpKind::Memory => {
                // An operand is written if it is the first one, except for the one instruction whose only operand is a
                // source.
                let write = i == 0 && insn.code() != Code::Ldmxcsr_m32;
                mem = Some(b.mem(insn, insn.memory_size().size() as u32, write));
            }
            OpKind::Immediate8 => imm = u64::from(insn.immediate8()),
            _ => {}
        }
    }
    let mut op = b.op(pair[usize::from(mem.is_some())]);
    [op.dst, op.src] = regs;
    op.imm = imm;
    if let Some(m) = mem {
        op.base = m.base;
        op.index = m.index;
        op.scale = m.scale;
        op.disp = m.disp;
    }
    b.push(op);
    Flow::Next
}

/// Outside 64-bit mode the memory operand's segment is checked by an op of its own. Pushes a check before it, since an
/// MMX instruction must raise a pending x87 exception first.
pub fn check_x87_first(b: &mut Builder, insn: &Instruction) {
    if !b.mode.is_64bit() && (0..insn.op_count()).any(|i| insn.op_register(i).is_mm()) {
        let check = b.op(called_op!(|cpu: &mut Cpu, _: &Op| check_x87(cpu)));
        b.push(check);
    }
}

/// Returns XMM register `index`.
#[inline(always)]
pub fn xmm(cpu: &Cpu, index: u8) -> u128 {
    from_qwords(cpu.xmm[usize::from(index & 15)])
}

/// Sets XMM register `index`.
#[inline(always)]
pub fn set_xmm(cpu: &mut Cpu, index: u8, value: u128) {
    cpu.xmm[usize::from(index & 15)] = qwords(value);
}

/// Returns MMX register `index`.
#[inline(always)]
pub fn mm(cpu: &Cpu, index: u8) -> u64 {
    cpu.fpu.mantissa[usize::from(index & 7)]
}

/// Sets MMX register `index`.
#[inline(always)]
pub fn set_mm(cpu: &mut Cpu, index: u8, value: u64) {
    cpu.fpu.mantissa[usize::from(index & 7)] = value;
    cpu.fpu.sign_exp[usize::from(index & 7)] = 0xffff;
}

/// Changes the x87 state as every MMX instruction does: TOP = 0, all registers valid (SDM vol. 1 section 9.6.2).
#[inline(always)]
pub fn enter_mmx(cpu: &mut Cpu) {
    cpu.fpu.fsw &= !0x3800;
    cpu.fpu.ftw = 0xff;
}

/// Raises #MF if an x87 exception is pending (FSW.ES).
#[inline(always)]
pub fn check_x87(cpu: &mut Cpu) -> Result<(), Fault> {
    if cpu.fpu.fsw & 0x80 != 0 { Err(cpu.raise(16, None)) } else { Ok(()) }
}

/// Returns general register `index`.
#[inline(always)]
pub fn gpr(cpu: &Cpu, index: u8) -> u64 {
    cpu.regs[usize::from(index & 15)]
}

/// Sets general register `index`, all 64 bits.
#[inline(always)]
pub fn set_gpr(cpu: &mut Cpu, index: u8, value: u64) {
    cpu.regs[usize::from(index & 15)] = value;
}

/// Returns the address of a 16-byte operand that must be aligned. Raises #GP(0) if it is not.
#[inline(always)]
pub fn aligned(cpu: &mut Cpu, op: &Op) -> Result<u64, Fault> {
    let addr = op.addr(cpu);
    if addr & 15 != 0 { Err(cpu.general_protection(0)) } else { Ok(addr) }
}

/// A source operand: the lower part of an XMM register, or memory of that size. `u128` in memory must be aligned.
pub trait Source: Copy {
    /// Reads the operand from a register.
    fn register(cpu: &Cpu, index: u8) -> Self;
    /// Loads the operand from memory.
    fn memory(cpu: &mut Cpu, op: &Op) -> Result<Self, Fault>;
}

/// A 16-byte source that need not be aligned.
#[derive(Clone, Copy)]
pub struct Unaligned(pub u128);

impl Source for u128 {
    #[inline(always)]
    fn register(cpu: &Cpu, index: u8) -> u128 {
        xmm(cpu, index)
    }
    #[inline(always)]
    fn memory(cpu: &mut Cpu, op: &Op) -> Result<u128, Fault> {
        let addr = aligned(cpu, op)?;
        cpu.load::<u128>(addr)
    }
}

impl Source for Unaligned {
    #[inline(always)]
    fn register(cpu: &Cpu, index: u8) -> Unaligned {
        Unaligned(xmm(cpu, index))
    }
    #[inline(always)]
    fn memory(cpu: &mut Cpu, op: &Op) -> Result<Unaligned, Fault> {
        cpu.load::<u128>(op.addr(cpu)).map(Unaligned)
    }
}

macro_rules! narrow_source {
    ($($t:ty)*) => {$(
        impl Source for $t {
            #[inline(always)]
            fn register(cpu: &Cpu, index: u8) -> $t {
                cpu.xmm[usize::from(index & 15)][0] as $t
            }
            #[inline(always)]
            fn memory(cpu: &mut Cpu, op: &Op) -> Result<$t, Fault> {
                cpu.load::<$t>(op.addr(cpu))
            }
        }
    )*};
}
narrow_source!(u64 u32 u16);

/// Calls `f`. This is a function so that a closure's parameter types are known from the other arguments.
#[inline(always)]
pub fn with1<A, R>(a: A, f: impl FnOnce(A) -> R) -> R {
    f(a)
}
/// As [`with1`].
#[inline(always)]
pub fn with2<A, B, R>(a: A, b: B, f: impl FnOnce(A, B) -> R) -> R {
    f(a, b)
}
/// As [`with1`].
#[inline(always)]
pub fn with3<A, B, C, R>(a: A, b: B, c: C, f: impl FnOnce(A, B, C) -> R) -> R {
    f(a, b, c)
}

/// Computes `f` in the environment of MXCSR and accumulates its flags there. An unmasked flag raises #XM, or #UD with
/// CR4.OSXMMEXCPT clear (SDM vol. 1 section 11.5).
#[inline(always)]
pub fn with_mxcsr<R>(cpu: &mut Cpu, f: impl FnOnce(&mut Env) -> R) -> Result<R, Fault> {
    let mut env = Env::from_mxcsr(cpu.mxcsr);
    // A flag that is set already need not be found again. So the arithmetic can take its fast path.
    env.flags = cpu.mxcsr & cpu.mxcsr >> 7 & flag::INEXACT;
    let result = f(&mut env);
    let flags = env.flags & flag::ALL;
    if flags & !cpu.mxcsr != 0 || env.unmasked() != 0 {
        accumulate(cpu, &env)?;
    }
    Ok(result)
}

#[cold]
#[inline(never)]
fn accumulate(cpu: &mut Cpu, env: &Env) -> Result<(), Fault> {
    const OSXMMEXCPT: u64 = 1 << 10;
    let unmasked = env.unmasked();
    let seen = if unmasked & flag::BEFORE != 0 { flag::BEFORE } else { flag::ALL };
    cpu.mxcsr |= env.flags & seen;
    match unmasked {
        0 => Ok(()),
        _ if cpu.sys.cr4 & OSXMMEXCPT == 0 => Err(cpu.undefined()),
        _ => Err(cpu.raise(19, None)),
    }
}

/// Makes a called op with the given body, which may use `?` and gives `()`.
macro_rules! called {
    (|$cpu:ident, $op:ident| $body:expr) => {{
        #[inline(never)]
        fn body(
            $cpu: &mut $crate::hypervisor::soft::cpu::Cpu,
            $op: &$crate::hypervisor::soft::op::Op,
        ) -> Result<(), $crate::hypervisor::soft::cpu::Fault> {
            $body;
            Ok(())
        }
        $crate::hypervisor::soft::op::called_op!(body)
    }};
}
pub(super) use called;

/// `xmm = f(xmm, source)`, or with `imm` `f(xmm, source, imm8)`; `$src` is the source's type.
macro_rules! xmm_op {
    ($src:ty, $f:expr) => {
        xmm_op!(@ $src, |a, b, _imm| $crate::hypervisor::soft::simd::form::with2(a, b, $f))
    };
    ($src:ty, imm, $f:expr) => {
        xmm_op!(@ $src, $f)
    };
    (@ $src:ty, $f:expr) => {[
        called!(|cpu, op| {
            let b = <$src as Source>::register(cpu, op.src);
            let r = with3(xmm(cpu, op.dst), b, op.imm as u8, $f);
            set_xmm(cpu, op.dst, r)
        }),
        called!(|cpu, op| {
            let b = <$src as Source>::memory(cpu, op)?;
            let r = with3(xmm(cpu, op.dst), b, op.imm as u8, $f);
            set_xmm(cpu, op.dst, r)
        }),
    ]};
}
pub(super) use xmm_op;

/// `mm = f(mm, mm or memory)`, or with `imm` `f(mm, source, imm8)`; `$mem` is the type in memory.
macro_rules! mm_op {
    ($mem:ty, $f:expr) => {
        mm_op!(@ $mem, |a, b, _imm| $crate::hypervisor::soft::simd::form::with2(a, b, $f))
    };
    ($mem:ty, imm, $f:expr) => {
        mm_op!(@ $mem, $f)
    };
    (@ $mem:ty, $f:expr) => {[
        called!(|cpu, op| {
            check_x87(cpu)?;
            enter_mmx(cpu);
            let r = with3(mm(cpu, op.dst), mm(cpu, op.src), op.imm as u8, $f);
            set_mm(cpu, op.dst, r)
        }),
        called!(|cpu, op| {
            check_x87(cpu)?;
            let b = u64::from(cpu.load::<$mem>(op.addr(cpu))?);
            enter_mmx(cpu);
            let r = with3(mm(cpu, op.dst), b, op.imm as u8, $f);
            set_mm(cpu, op.dst, r)
        }),
    ]};
}
pub(super) use mm_op;

/// As `xmm_op`, with floating-point exceptions: `f(env, xmm, source)`, or with `imm` `f(env, xmm, source, imm8)`.
macro_rules! float_op {
    ($src:ty, $f:expr) => {
        float_op!(@ $src, |env, (a, b, _imm)| $crate::hypervisor::soft::simd::form::with3(env, a, b, $f))
    };
    ($src:ty, imm, $f:expr) => {
        float_op!(@ $src, |env, (a, b, imm)| $crate::hypervisor::soft::simd::form::with4(env, a, b, imm, $f))
    };
    (@ $src:ty, |$env:ident, $args:pat_param| $f:expr) => {[
        called!(|cpu, op| {
            let $args = (xmm(cpu, op.dst), <$src as Source>::register(cpu, op.src), op.imm as u8);
            let r = with_mxcsr(cpu, |$env| $f)?;
            set_xmm(cpu, op.dst, r)
        }),
        called!(|cpu, op| {
            let b = <$src as Source>::memory(cpu, op)?;
            let $args = (xmm(cpu, op.dst), b, op.imm as u8);
            let r = with_mxcsr(cpu, |$env| $f)?;
            set_xmm(cpu, op.dst, r)
        }),
    ]};
}
pub(super) use float_op;

/// As [`with1`].
#[inline(always)]
pub fn with4<A, B, C, D, R>(a: A, b: B, c: C, d: D, f: impl FnOnce(A, B, C, D) -> R) -> R {
    f(a, b, c, d)
}

/// `general register = f(source)`; the value is written to all 64 bits.
macro_rules! to_gpr {
    ($src:ty, $f:expr) => {
        [
            called!(|cpu, op| {
                let r = with1(<$src as Source>::register(cpu, op.src), $f);
                set_gpr(cpu, op.dst, r)
            }),
            called!(|cpu, op| {
                let b = <$src as Source>::memory(cpu, op)?;
                let r = with1(b, $f);
                set_gpr(cpu, op.dst, r)
            }),
        ]
    };
}
pub(super) use to_gpr;
