//! The building blocks of integer handlers: operand widths, registers, addresses, the fast and the slow path.
#![allow(unsafe_code)]

use crate::hypervisor::soft::cpu::{Cpu, Fault, REGS};
use crate::hypervisor::soft::flags::{FlagKind, LazyFlags};
use crate::hypervisor::soft::mem::{Operand, SlowOperand};
use crate::hypervisor::soft::mmu;
use crate::hypervisor::soft::op::Op;

/// An operand width.
pub trait Int: Operand + SlowOperand + Copy + Eq + Ord + 'static {
    /// Bits of the operand.
    const BITS: u32;
    /// log2 of its bytes.
    const LOG2: u32;
    /// Returns the low bits of `v`.
    fn cut(v: u64) -> Self;
    /// Returns the value, zero-extended.
    fn wide(self) -> u64;
    /// Returns the value, sign-extended.
    fn signed(self) -> i64;
}

macro_rules! int {
    ($($t:ty, $s:ty, $log2:expr);*) => {$(
        impl Int for $t {
            const BITS: u32 = <$t>::BITS;
            const LOG2: u32 = $log2;
            #[inline(always)]
            fn cut(v: u64) -> $t { v as $t }
            #[inline(always)]
            fn wide(self) -> u64 { self as u64 }
            #[inline(always)]
            fn signed(self) -> i64 { self as $s as i64 }
        }
    )*};
}
int!(u8, i8, 0; u16, i16, 1; u32, i32, 2; u64, i64, 3);

// Handlers address registers from the start of `Cpu`, and 8-bit ones by their byte in it.
const _: () = assert!(std::mem::offset_of!(Cpu, regs) == 0 && REGS == 256);
#[cfg(target_endian = "big")]
compile_error!("8-bit registers are taken to be at the low end of their 64-bit ones");

#[repr(C, packed)]
struct Unaligned<T>(T);

/// Reads through a pointer of any alignment. `read_unaligned` would do the same, but in builds with debug assertions it
/// checks its arguments in a way that takes a local's address, and that costs the handler its tail call.
///
/// # Safety
/// `p` is valid for reading.
#[inline(always)]
pub unsafe fn peek<T: Copy>(p: *const T) -> T {
    // SAFETY: the caller's promise; the packed type has no alignment.
    unsafe { (*p.cast::<Unaligned<T>>()).0 }
}

/// Writes through a pointer of any alignment.
///
/// # Safety
/// `p` is valid for writing.
#[inline(always)]
pub unsafe fn poke<T: Copy>(p: *mut T, v: T) {
    // SAFETY: as above.
    unsafe { (*p.cast::<Unaligned<T>>()).0 = v }
}

/// Reads register `i`, which is an index in `regs` or, for 8-bit operands, a byte offset.
///
/// # Safety
/// `cpu` is live.
#[inline(always)]
pub unsafe fn get<T: Int>(cpu: *const Cpu, i: u8) -> T {
    // SAFETY: every value of `i` is inside `regs`, which comes first in `Cpu`, as an index and as a byte offset.
    unsafe {
        let regs = cpu.cast::<u8>();
        let at = if T::BITS == 8 { regs.add(i as usize) } else { regs.add(i as usize * 8) };
        peek(at.cast::<T>())
    }
}

/// Writes register `i`, numbered as in `get`. 32-bit writes clear the upper half.
///
/// # Safety
/// As for [`get`].
#[inline(always)]
pub unsafe fn set<T: Int>(cpu: *mut Cpu, i: u8, v: T) {
    // SAFETY: as in `get`.
    unsafe {
        let regs = cpu.cast::<u8>();
        match T::BITS {
            8 => regs.add(i as usize).write(v.wide() as u8),
            16 => regs.add(i as usize * 8).cast::<u16>().write(v.wide() as u16),
            _ => regs.add(i as usize * 8).cast::<u64>().write(v.wide()),
        }
    }
}

/// The shape of a memory operand: how its address is computed from the op.
pub trait Addr: 'static {
    /// Returns the linear address.
    ///
    /// # Safety
    /// `op` is live and was made by the lowering.
    unsafe fn addr(cpu: *const Cpu, op: *const Op) -> u64;
}

/// Address of base and displacement.
pub struct Bd;
/// Address of base, index and displacement.
pub struct Full;

impl Addr for Bd {
    #[inline(always)]
    unsafe fn addr(cpu: *const Cpu, op: *const Op) -> u64 {
        // SAFETY: the caller's promise.
        unsafe { get::<u64>(cpu, (*op).base).wrapping_add((*op).disp as i64 as u64) }
    }
}
impl Addr for Full {
    #[inline(always)]
    unsafe fn addr(cpu: *const Cpu, op: *const Op) -> u64 {
        // SAFETY: the caller's promise.
        unsafe { (*op).addr(&*cpu) }
    }
}

/// One of the two instantiations of a handler.
pub trait Path: 'static {
    /// Whether accesses go through `mmu`.
    const SLOW: bool;
}
/// The fast path: a TLB miss tail-calls the slow one.
pub struct Fast;
/// The slow path: it does the access in any case.
pub struct Slow;
impl Path for Fast {
    const SLOW: bool = false;
}
impl Path for Slow {
    const SLOW: bool = true;
}

/// Loads on the slow path.
#[cold]
#[inline(never)]
pub fn slow_load<T: Int>(cpu: &mut Cpu, addr: u64) -> Result<T, Fault> {
    cpu.load::<T>(addr)
}
/// Stores on the slow path.
#[cold]
#[inline(never)]
pub fn slow_store<T: Int>(cpu: &mut Cpu, addr: u64, v: T) -> Result<(), Fault> {
    cpu.store::<T>(addr, v)
}
/// Loads an operand that is then stored to, on the slow path. Faults as a write.
#[cold]
#[inline(never)]
pub fn slow_update<T: Int>(cpu: &mut Cpu, addr: u64) -> Result<T, Fault> {
    mmu::probe_update(cpu, addr, size_of::<T>() as u64)?;
    cpu.load::<T>(addr)
}

/// Loads a `$T` in a handler, or leaves the handler.
macro_rules! soft_read {
    ($T:ty, $P:ty, $cpu:expr, $op:expr, $addr:expr, $slow:expr) => {
        if <$P>::SLOW {
            match $crate::hypervisor::soft::int::word::slow_load::<$T>(&mut *$cpu, $addr) {
                Ok(v) => v,
                Err(_) => return $crate::hypervisor::soft::op::leave_with_exception($cpu, $op),
            }
        } else {
            match (*$cpu).fast_read_ptr::<$T>($addr) {
                Some(p) => $crate::hypervisor::soft::int::word::peek(p),
                None => return $slow($cpu, $op),
            }
        }
    };
}
pub(crate) use soft_read;

/// Stores a `$T` in a handler, or leaves the handler.
macro_rules! soft_write {
    ($T:ty, $P:ty, $cpu:expr, $op:expr, $addr:expr, $v:expr, $slow:expr) => {
        if <$P>::SLOW {
            if $crate::hypervisor::soft::int::word::slow_store::<$T>(&mut *$cpu, $addr, $v).is_err() {
                return $crate::hypervisor::soft::op::leave_with_exception($cpu, $op);
            }
        } else {
            match (*$cpu).fast_write_ptr::<$T>($addr) {
                Some(p) => $crate::hypervisor::soft::int::word::poke(p, $v),
                None => return $slow($cpu, $op),
            }
        }
    };
}
pub(crate) use soft_write;

/// Reads, changes and writes a `$T` in a handler, or leaves the handler.
macro_rules! soft_update {
    ($T:ty, $P:ty, $cpu:expr, $op:expr, $addr:expr, $slow:expr, |$a:ident| $change:expr) => {
        if <$P>::SLOW {
            let $a = match $crate::hypervisor::soft::int::word::slow_update::<$T>(&mut *$cpu, $addr) {
                Ok(v) => v,
                Err(_) => return $crate::hypervisor::soft::op::leave_with_exception($cpu, $op),
            };
            let changed: $T = $change;
            if $crate::hypervisor::soft::int::word::slow_store::<$T>(&mut *$cpu, $addr, changed).is_err() {
                return $crate::hypervisor::soft::op::leave_with_exception($cpu, $op);
            }
        } else {
            match (*$cpu).fast_write_ptr::<$T>($addr) {
                Some(p) => {
                    let $a = $crate::hypervisor::soft::int::word::peek(p);
                    let changed: $T = $change;
                    $crate::hypervisor::soft::int::word::poke(p, changed);
                }
                None => return $slow($cpu, $op),
            }
        }
    };
}
pub(crate) use soft_update;

/// Continues after an access.
macro_rules! soft_next {
    ($P:ty, $cpu:expr, $op:expr) => {
        if <$P>::SLOW && (*$cpu).leave_after_op {
            $crate::hypervisor::soft::op::leave_behind($cpu, $op)
        } else {
            $crate::hypervisor::soft::op::next($cpu, $op)
        }
    };
}
pub(crate) use soft_next;

/// Sets the lazy flags.
///
/// # Safety
/// `cpu` is live.
#[inline(always)]
pub unsafe fn set_flags<T: Int>(cpu: *mut Cpu, kind: FlagKind, b: u64, result: u64) {
    // SAFETY: the caller's promise.
    unsafe { (*cpu).flags = LazyFlags { kind: kind as u32 | T::LOG2, b, result } };
}

/// Chooses a handler by the operand's bytes: `by_width!(size, T => handler::<T>)`.
macro_rules! by_width {
    ($size:expr, $t:ident => $e:expr) => {
        match $size {
            1 => {
                type $t = u8;
                let handler: $crate::hypervisor::soft::op::Handler = $e;
                handler
            }
            2 => {
                type $t = u16;
                let handler: $crate::hypervisor::soft::op::Handler = $e;
                handler
            }
            4 => {
                type $t = u32;
                let handler: $crate::hypervisor::soft::op::Handler = $e;
                handler
            }
            _ => {
                type $t = u64;
                let handler: $crate::hypervisor::soft::op::Handler = $e;
                handler
            }
        }
    };
}
pub(crate) use by_width;

/// Chooses in the same way for 4 and 8 bytes.
macro_rules! by_wide {
    ($size:expr, $t:ident => $e:expr) => {
        match $size {
            4 => {
                type $t = u32;
                let handler: $crate::hypervisor::soft::op::Handler = $e;
                handler
            }
            _ => {
                type $t = u64;
                let handler: $crate::hypervisor::soft::op::Handler = $e;
                handler
            }
        }
    };
}
pub(crate) use by_wide;

/// Chooses a handler by whether the address has an index.
macro_rules! by_addr {
    ($m:expr, $a:ident => $e:expr) => {
        if $m.index == $crate::hypervisor::soft::cpu::ZERO as u8 {
            type $a = $crate::hypervisor::soft::int::word::Bd;
            let handler: $crate::hypervisor::soft::op::Handler = $e;
            handler
        } else {
            type $a = $crate::hypervisor::soft::int::word::Full;
            let handler: $crate::hypervisor::soft::op::Handler = $e;
            handler
        }
    };
}
pub(crate) use by_addr;

/// Chooses a handler by the condition code.
macro_rules! by_cc {
    ($cc:expr, $c:ident => $e:expr) => {
        by_cc!(@ $cc, $c => $e; 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14)
    };
    (@ $cc:expr, $c:ident => $e:expr; $($n:literal)*) => {
        match $cc {
            $($n => {
                const $c: u8 = $n;
                let handler: $crate::hypervisor::soft::op::Handler = $e;
                handler
            })*
            _ => {
                const $c: u8 = 15;
                let handler: $crate::hypervisor::soft::op::Handler = $e;
                handler
            }
        }
    };
}
pub(crate) use by_cc;

/// Returns the mask of an operand of `bytes` bytes.
#[inline]
pub fn mask_of(bytes: u32) -> u64 {
    u64::MAX >> (64 - 8 * bytes)
}

/// Returns a register's value, zero-extended, for called ops.
#[inline]
pub fn reg(cpu: &Cpu, i: u8, bytes: u32) -> u64 {
    // SAFETY: called ops hand on indices that the lowering wrote.
    unsafe {
        match bytes {
            1 => get::<u8>(cpu, i).wide(),
            2 => get::<u16>(cpu, i).wide(),
            4 => get::<u32>(cpu, i).wide(),
            _ => get::<u64>(cpu, i),
        }
    }
}

/// Sets a register, for called ops.
#[inline]
pub fn set_reg(cpu: &mut Cpu, i: u8, bytes: u32, v: u64) {
    // SAFETY: as in `reg`.
    unsafe {
        match bytes {
            1 => set::<u8>(cpu, i, v as u8),
            2 => set::<u16>(cpu, i, v as u16),
            4 => set::<u32>(cpu, i, v as u32),
            _ => set::<u64>(cpu, i, v),
        }
    }
}

/// Loads `bytes` (1, 2, 4 or 8), zero-extended, for called ops.
#[inline]
pub fn load_bytes(cpu: &mut Cpu, addr: u64, bytes: u32) -> Result<u64, Fault> {
    Ok(match bytes {
        1 => cpu.load::<u8>(addr)?.wide(),
        2 => cpu.load::<u16>(addr)?.wide(),
        4 => cpu.load::<u32>(addr)?.wide(),
        _ => cpu.load::<u64>(addr)?,
    })
}

/// Stores the low `bytes` of `v`, for called ops.
#[inline]
pub fn store_bytes(cpu: &mut Cpu, addr: u64, bytes: u32, v: u64) -> Result<(), Fault> {
    match bytes {
        1 => cpu.store::<u8>(addr, v as u8),
        2 => cpu.store::<u16>(addr, v as u16),
        4 => cpu.store::<u32>(addr, v as u32),
        _ => cpu.store::<u64>(addr, v),
    }
}

/// In [`Op::aux`] of called ops: the operand `dst` is in memory. The bits below are the operand's bytes.
pub const IN_MEMORY: u32 = 1 << 8;

/// Returns the size of a called op's operand in bytes.
#[inline]
pub fn bytes_of(op: &Op) -> u32 {
    op.aux & 0xff
}

/// Reads the register-or-memory operand of a called op.
#[inline]
pub fn read_rm(cpu: &mut Cpu, op: &Op) -> Result<u64, Fault> {
    if op.aux & IN_MEMORY != 0 {
        let addr = op.addr(cpu);
        load_bytes(cpu, addr, bytes_of(op))
    } else {
        Ok(reg(cpu, op.dst, bytes_of(op)))
    }
}

/// Reads the register-or-memory operand of a called op that then writes it. Faults as a write.
#[inline]
pub fn read_rm_for_write(cpu: &mut Cpu, op: &Op) -> Result<u64, Fault> {
    if op.aux & IN_MEMORY != 0 {
        let addr = op.addr(cpu);
        if cpu.fast_write_ptr::<u64>(addr).is_none() {
            mmu::probe_update(cpu, addr, u64::from(bytes_of(op)))?;
        }
        load_bytes(cpu, addr, bytes_of(op))
    } else {
        Ok(reg(cpu, op.dst, bytes_of(op)))
    }
}

/// Writes the register-or-memory operand of a called op.
#[inline]
pub fn write_rm(cpu: &mut Cpu, op: &Op, v: u64) -> Result<(), Fault> {
    if op.aux & IN_MEMORY != 0 {
        let addr = op.addr(cpu);
        store_bytes(cpu, addr, bytes_of(op), v)
    } else {
        set_reg(cpu, op.dst, bytes_of(op), v);
        Ok(())
    }
}
