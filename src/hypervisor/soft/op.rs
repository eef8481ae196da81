//! The pre-decoded operation and its handlers' calling convention.
//!
//! A handler is an `unsafe extern "C" fn(*mut Cpu, *const Op) -> *const Op`. It does its work and tail-calls the next op's
//! handler ([`next`]). LLVM makes that a jump as long as the handler has no local whose address escapes and no drop
//! after the call. So handlers come from the macros below. There are two kinds:
//!
//! * *Fast handlers* (`int/`): generic over [`Path`](super::int::word::Path). On the `Fast` path a TLB miss tail-calls the same handler's
//!   `Slow` instantiation, which does the access through `mmu`; the op has changed nothing before its last access.
//! * *Called ops* ([`called_op!`], [`leaving_op!`]): a plain function `fn(&mut Cpu, &Op) -> Result<(), Fault>`, wrapped
//!   in a handler that calls it and continues. For everything that is not hot.
//!
//! A chain of handlers ends by returning null. Then [`Cpu::leave`] says why, and `regs[RIP]` is where to continue.
#![allow(unsafe_code)]

use super::cpu::{Cpu, Leave, RIP};

/// A function that runs an op. The module's head has the contract.
///
/// # Safety
/// Both pointers must be live and used by nobody else meanwhile: the vCPU, and an op of a live block, with the ops behind
/// it, as the handler's own lowering made it.
pub type Handler = unsafe extern "C" fn(*mut Cpu, *const Op) -> *const Op;

/// One pre-decoded operation: 32 bytes. An instruction is one op, sometimes with address micro-ops before it.
#[derive(Clone, Copy)]
#[repr(C, align(32))]
pub struct Op {
    /// Runs the op.
    pub handler: Handler,
    /// Immediate, branch target, or any value that the handler's lowering put here.
    pub imm: u64,
    /// Displacement of the memory operand.
    pub disp: i32,
    /// Free for the handler's lowering; for block-ending ops the number of instructions in the block.
    pub aux: u32,
    /// Offset of this instruction's first byte from the block's first byte.
    pub pc: u16,
    /// Bytes of the instruction (also in its micro-ops).
    pub len: u8,
    /// Destination: register index; for 8-bit operands the byte offset in `regs`.
    pub dst: u8,
    /// Source: as `dst`.
    pub src: u8,
    /// Base register of the memory operand: index in `regs` (every value is one), `ZERO` for none, `RIP` for RIP-relative, `TMP` behind a micro-op.
    pub base: u8,
    /// Index register, `ZERO` for none.
    pub index: u8,
    /// Shift of the index: 0 to 3.
    pub scale: u8,
}

const _: () = assert!(size_of::<Op>() == 32);

impl Op {
    /// Returns the linear address of the memory operand. An address micro-op has dealt with segment bases, 16- and
    /// 32-bit wrap-around and limits; its result is then the base.
    #[inline(always)]
    pub fn addr(&self, cpu: &Cpu) -> u64 {
        let base = cpu.regs[usize::from(self.base)];
        let index = cpu.regs[usize::from(self.index)];
        base.wrapping_add(index.wrapping_shl(self.scale.into())).wrapping_add(self.disp as i64 as u64)
    }

    /// Returns the instruction pointer of this op's instruction, as an offset in CS.
    #[inline(always)]
    pub fn rip(&self, cpu: &Cpu) -> u64 {
        cpu.regs[RIP].wrapping_add(u64::from(self.pc))
    }

    /// Returns the instruction pointer after this op's instruction.
    #[inline(always)]
    pub fn next_rip(&self, cpu: &Cpu) -> u64 {
        cpu.regs[RIP].wrapping_add(u64::from(self.pc)).wrapping_add(u64::from(self.len))
    }
}

/// Continues with the op after `op`.
///
/// # Safety
/// `op` must not be the last op of its block.
#[inline(always)]
pub unsafe fn next(cpu: *mut Cpu, op: *const Op) -> *const Op {
    // SAFETY: the caller promises a following op in the same block.
    unsafe { enter(cpu, op.add(1)) }
}

/// Runs `op`: by a tail call where the optimiser makes tail calls, otherwise through the dispatcher's loop.
///
/// # Safety
/// `op` must point into a live block.
#[inline(always)]
pub unsafe fn enter(cpu: *mut Cpu, op: *const Op) -> *const Op {
    if cfg!(tail_calls) {
        // SAFETY: the caller promises a live op.
        unsafe { ((*op).handler)(cpu, op) }
    } else {
        op
    }
}

/// Leaves the chain with the exception in [`Cpu::exception`], at the instruction of `op`.
///
/// # Safety
/// Both pointers must be live.
#[cold]
#[inline(never)]
pub unsafe extern "C" fn leave_with_exception(cpu: *mut Cpu, op: *const Op) -> *const Op {
    // SAFETY: the caller promises live pointers, and no reference to the Cpu is held across handlers.
    let (cpu, op) = unsafe { (&mut *cpu, &*op) };
    if cpu.exception.vector == 13 && cpu.exception.cr2 != 0 {
        super::system::stackfault::settle(cpu, op);
    }
    cpu.regs[RIP] = op.rip(cpu);
    cpu.leave = Leave::Exception;
    std::ptr::null()
}

/// Leaves the chain after the instruction of `op`.
///
/// # Safety
/// Both pointers must be live.
#[cold]
#[inline(never)]
pub unsafe extern "C" fn leave_behind(cpu: *mut Cpu, op: *const Op) -> *const Op {
    // SAFETY: as above.
    let (cpu, op) = unsafe { (&mut *cpu, &*op) };
    cpu.regs[RIP] = op.next_rip(cpu);
    cpu.leave_after_op = false;
    cpu.leave = Leave::Lookup;
    std::ptr::null()
}

/// Leaves the chain between two blocks. `regs[RIP]` is already where to continue, and the mode has not changed.
#[cold]
#[inline(never)]
pub unsafe extern "C" fn leave_between_blocks(cpu: *mut Cpu, _: *const Op) -> *const Op {
    // SAFETY: handlers get live pointers.
    unsafe { (*cpu).leave = Leave::Jump };
    std::ptr::null()
}

/// Makes a handler of a plain function `fn(&mut Cpu, &Op) -> Result<(), Fault>`: `called_op!(function)` is a
/// [`Handler`] that runs it and continues with the next op.
///
/// The function may change state only once it can no longer fail. It must not touch `regs[RIP]`.
macro_rules! called_op {
    ($body:expr) => {{
        // Not inlined, since a local of the body whose address escapes would cost the handler its tail call.
        #[inline(never)]
        fn called_body(
            cpu: &mut $crate::hypervisor::soft::cpu::Cpu,
            op: &$crate::hypervisor::soft::op::Op,
        ) -> Result<(), $crate::hypervisor::soft::cpu::Fault> {
            $body(cpu, op)
        }
        #[allow(unsafe_code)]
        unsafe extern "C" fn handler(
            cpu: *mut $crate::hypervisor::soft::cpu::Cpu,
            op: *const $crate::hypervisor::soft::op::Op,
        ) -> *const $crate::hypervisor::soft::op::Op {
            // SAFETY: handlers get live, unaliased pointers; the body's borrow ends before the next handler runs.
            unsafe {
                if called_body(&mut *cpu, &*op).is_err() {
                    return $crate::hypervisor::soft::op::leave_with_exception(cpu, op);
                }
                if (*cpu).leave_after_op {
                    return $crate::hypervisor::soft::op::leave_behind(cpu, op);
                }
                $crate::hypervisor::soft::op::next(cpu, op)
            }
        }
        handler as $crate::hypervisor::soft::op::Handler
    }};
}
pub(crate) use called_op;

/// Makes a block-ending handler of a plain function `fn(&mut Cpu, &Op) -> Result<(), Fault>`.
///
/// Before the call `cpu.next_rip` is the address after the instruction and `cpu.leave` is `Lookup`; the function may
/// change either (far branches, IRET, HLT). After it, `regs[RIP]` becomes `cpu.next_rip`, the block's instructions
/// (`op.aux`) are counted against the budget, and the dispatcher runs.
macro_rules! leaving_op {
    ($body:expr) => {{
        #[allow(unsafe_code)]
        unsafe extern "C" fn handler(
            cpu: *mut $crate::hypervisor::soft::cpu::Cpu,
            op: *const $crate::hypervisor::soft::op::Op,
        ) -> *const $crate::hypervisor::soft::op::Op {
            // SAFETY: as in `called_op!`.
            unsafe {
                (*cpu).next_rip = (*op).next_rip(&*cpu);
                (*cpu).leave = $crate::hypervisor::soft::cpu::Leave::Lookup;
                if $body(&mut *cpu, &*op).is_err() {
                    return $crate::hypervisor::soft::op::leave_with_exception(cpu, op);
                }
                (*cpu).regs[$crate::hypervisor::soft::cpu::RIP] = (*cpu).next_rip;
                (*cpu).budget -= i64::from((*op).aux);
                std::ptr::null()
            }
        }
        handler as $crate::hypervisor::soft::op::Handler
    }};
}
pub(crate) use leaving_op;
