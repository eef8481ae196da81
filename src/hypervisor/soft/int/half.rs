//! The work of the most frequent instructions, without the jump to the next one. [`single`] and [`pair`](super::pair)
//! are built from it.
//!
//! SDM vol. 2. A half is generic over operand width and over the address's shape; `F` says whether it sets the flags. A
//! half that reads or writes memory does so through the TLB or not at all.
#![allow(unsafe_code)]

use std::marker::PhantomData;

use super::alu::{self, Alu};
use super::word::{Addr, Int, get, peek, poke, set, set_flags};
use super::{shift, stack};
use crate::hypervisor::soft::cpu::Cpu;
use crate::hypervisor::soft::flags::FlagKind;
use crate::hypervisor::soft::op::{Handler, Op, next};

const RSP: usize = 4;

/// The work of an op, without the jump to the next one.
pub trait Half: 'static {
    /// Does the work. Where an access misses the TLB it does nothing and returns the handler that does the work.
    ///
    /// # Safety
    /// As for a handler.
    unsafe fn run(cpu: *mut Cpu, op: *const Op) -> Result<(), Handler>;
}

macro_rules! halves {
    ($($(#[$doc:meta])* $name:ident [$($g:ident: $bound:ident),*] [$($c:ident: $t:ty),*] ($cpu:ident, $op:ident) $body:block)*) => {$(
        $(#[$doc])*
        pub struct $name<$($g,)* $(const $c: $t),*>(PhantomData<($($g,)*)>);
        impl<$($g: $bound,)* $(const $c: $t),*> Half for $name<$($g,)* $($c),*> {
            #[inline(always)]
            unsafe fn run($cpu: *mut Cpu, $op: *const Op) -> Result<(), Handler> {
                // SAFETY: the caller's promise.
                unsafe { $body }
                Ok(())
            }
        }
    )*};
}

halves! {
    /// `dst = src`.
    Move[T: Int][](cpu, op) { set::<T>(cpu, (*op).dst, get::<T>(cpu, (*op).src)) }
    /// `dst = imm`.
    MoveImm[T: Int][](cpu, op) { set::<T>(cpu, (*op).dst, T::cut((*op).imm)) }
    /// `dst = 0`: `xor r, r` and `sub r, r`, whatever the old value was.
    Zero[T: Int][F: bool](cpu, op) {
        set::<T>(cpu, (*op).dst, T::cut(0));
        if F {
            set_flags::<T>(cpu, FlagKind::Logic, 0, 0);
        }
    }
    /// `dst = zero-extended src`.
    Extend[S: Int, D: Int][](cpu, op) { set::<D>(cpu, (*op).dst, D::cut(get::<S>(cpu, (*op).src).wide())) }
    /// `dst = sign-extended src`.
    ExtendSign[S: Int, D: Int][](cpu, op) { set::<D>(cpu, (*op).dst, D::cut(get::<S>(cpu, (*op).src).signed() as u64)) }
    /// `dst = address`.
    Lea[T: Int, A: Addr][](cpu, op) { set::<T>(cpu, (*op).dst, T::cut(A::addr(cpu, op))) }
    /// `dst = dst o src`.
    AluReg[O: Alu, T: Int][F: bool](cpu, op) {
        let r = O::compute::<T, F>(cpu, get::<T>(cpu, (*op).dst), get::<T>(cpu, (*op).src));
        set::<T>(cpu, (*op).dst, r);
    }
    /// `dst = dst o imm`.
    AluImm[O: Alu, T: Int][F: bool](cpu, op) {
        let r = O::compute::<T, F>(cpu, get::<T>(cpu, (*op).dst), T::cut((*op).imm));
        set::<T>(cpu, (*op).dst, r);
    }
    /// CMP or TEST of registers.
    Compare[O: Alu, T: Int][](cpu, op) {
        O::compute::<T, true>(cpu, get::<T>(cpu, (*op).dst), get::<T>(cpu, (*op).src));
    }
    /// CMP or TEST of a register and `imm`.
    CompareImm[O: Alu, T: Int][](cpu, op) { O::compute::<T, true>(cpu, get::<T>(cpu, (*op).dst), T::cut((*op).imm)); }
    /// IMUL of registers.
    Multiply[T: Int][F: bool](cpu, op) {
        let r = alu::imul::<T, F>(cpu, get::<T>(cpu, (*op).dst).signed(), get::<T>(cpu, (*op).src).signed());
        set::<T>(cpu, (*op).dst, r);
    }
    /// A shift or rotation by `imm`, which was cut to the operand's width, without flags.
    Shift[T: Int][S: u8](cpu, op) {
        set::<T>(cpu, (*op).dst, shift::quietly::<T, S>(get::<T>(cpu, (*op).dst), (*op).imm as u32));
    }
    /// `dst = [mem]`.
    Load[T: Int, A: Addr][](cpu, op) {
        match (*cpu).fast_read_ptr::<T>(A::addr(cpu, op)) {
            Some(p) => set::<T>(cpu, (*op).dst, peek(p)),
            None => return Err(alu::mov_rm::<T>),
        }
    }
    /// `dst = zero-extended [mem]`.
    LoadExtend[S: Int, D: Int, A: Addr][](cpu, op) {
        match (*cpu).fast_read_ptr::<S>(A::addr(cpu, op)) {
            Some(p) => set::<D>(cpu, (*op).dst, D::cut(peek(p).wide())),
            None => return Err(alu::movzx_rm::<S, D>),
        }
    }
    /// `[mem] = src`.
    Store[T: Int, A: Addr][](cpu, op) {
        match (*cpu).fast_write_ptr::<T>(A::addr(cpu, op)) {
            Some(p) => poke(p, get::<T>(cpu, (*op).src)),
            None => return Err(alu::mov_mr::<T>),
        }
    }
    /// PUSH r64 in 64-bit mode.
    Push[][](cpu, op) {
        let v = get::<u64>(cpu, (*op).src);
        let sp = (*cpu).regs[RSP].wrapping_sub(8);
        match (*cpu).fast_write_ptr::<u64>(sp) {
            Some(p) => poke(p, v),
            None => return Err(stack::push_r),
        }
        (*cpu).regs[RSP] = sp;
    }
    /// POP r64 in 64-bit mode; `pop rsp` leaves the value popped.
    Pop[][](cpu, op) {
        let sp = (*cpu).regs[RSP];
        let v = match (*cpu).fast_read_ptr::<u64>(sp) {
            Some(p) => peek(p),
            None => return Err(stack::pop_r),
        };
        (*cpu).regs[RSP] = sp.wrapping_add(8);
        set::<u64>(cpu, (*op).dst, v);
    }
}

/// Runs an op that is one half, and not the last of its block.
pub unsafe extern "C" fn single<H: Half>(cpu: *mut Cpu, op: *const Op) -> *const Op {
    // SAFETY: handlers get live, unaliased pointers and an op that their lowering made.
    unsafe {
        match H::run(cpu, op) {
            Ok(()) => next(cpu, op),
            Err(slow) => slow(cpu, op),
        }
    }
}
