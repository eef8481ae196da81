//! Locked instructions of vCPUs that run at the same time: those with LOCK, and XCHG with memory.
//!
//! SDM vol. 3 section 8.1.2. The operand is read, the result computed, and stored if the operand is still what was read; else
//! all of it is done again. That is atomic for operands of any alignment inside one page of memory. Operands on two
//! pages, in ROM or in a device exclude each other only ([`crate::hypervisor::soft::crew::Crew::split`]).
#![allow(unsafe_code)]

use iced_x86::{Instruction, Mnemonic as M};

use super::alu::{Adc, Add, Alu, And, Dec, Inc, Neg, Not, Or, Sbb, Sub, Unary, Xor};
use super::bits::{COMPLEMENT, RESET, SET, change_flag, changed, far_bit, set_sub_flags};
use super::operand::{immediate, in_memory, is_immediate, register, size};
use super::word::{IN_MEMORY, Int, bytes_of, mask_of, peek, reg, set_reg};
use crate::hypervisor::soft::cpu::{Cpu, Fault, rflags};
use crate::hypervisor::soft::flags::{FlagKind, LazyFlags};
use crate::hypervisor::soft::lower::{Builder, Flow, address_bits, segment_index};
use crate::hypervisor::soft::mem::{Operand, SlowOperand};
use crate::hypervisor::soft::mmu;
use crate::hypervisor::soft::op::{Op, called_op};

/// Returns whether this host can do locked instructions atomically, and keeps the order of loads and stores that a guest
/// relies on.
pub fn is_atomic_here() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("cmpxchg16b");
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// An operand that can be compared and exchanged in memory.
trait Exchange: Operand + SlowOperand + Eq {
    /// Stores `new` at `p` if `old` is there, atomically. Returns whether it was.
    ///
    /// # Safety
    /// `p` is valid for reading and writing; for 16 bytes it is aligned to them, and the host has CMPXCHG16B.
    unsafe fn compare_exchange(p: *mut Self, old: Self, new: Self) -> bool;
}

#[cfg(target_arch = "x86_64")]
macro_rules! exchange {
    ($($t:ty, $class:ident, $form:literal, $a:tt;)*) => {$(
        impl Exchange for $t {
            #[inline]
            unsafe fn compare_exchange(p: *mut $t, old: $t, new: $t) -> bool {
                let found: $t;
                // SAFETY: the caller's promise. std's atomics would want the operand aligned.
                unsafe {
                    std::arch::asm!(
                        concat!("lock cmpxchg [{p}], {new", $form, "}"),
                        p = in(reg) p,
                        new = in($class) new,
                        inout($a) old => found,
                        options(nostack),
                    );
                }
                found == old
            }
        }
    )*};
}
#[cfg(target_arch = "x86_64")]
exchange! {
    u8, reg_byte, "", "al";
    u16, reg, ":x", "ax";
    u32, reg, ":e", "eax";
    u64, reg, ":r", "rax";
}
#[cfg(target_arch = "x86_64")]
impl Exchange for u128 {
    #[inline]
    unsafe fn compare_exchange(p: *mut u128, old: u128, new: u128) -> bool {
        let (mut low, mut high) = (old as u64, (old >> 64) as u64);
        // SAFETY: the caller's promise. RBX, which the compiler keeps for itself, is put back. (The function in core::arch
        // cannot be linked in a build without optimisation.)
        unsafe {
            std::arch::asm!(
                "xchg rbx, {b}",
                "lock cmpxchg16b [{p}]",
                "mov rbx, {b}",
                p = in(reg) p,
                b = inout(reg) new as u64 => _,
                in("rcx") (new >> 64) as u64,
                inout("rax") low,
                inout("rdx") high,
                options(nostack),
            );
        }
        u128::from(high) << 64 | u128::from(low) == old
    }
}

#[cfg(not(target_arch = "x86_64"))]
impl<T: Operand + SlowOperand + Eq> Exchange for T {
    unsafe fn compare_exchange(_: *mut T, _: T, _: T) -> bool {
        unreachable!("vCPUs take turns on this host")
    }
}

/// Replaces the operand at linear `addr` by what `change` makes of it, atomically. Returns what it was. `change` may set
/// flags and nothing else, and may be called again.
fn update<T: Exchange>(cpu: &mut Cpu, addr: u64, change: impl Fn(&mut Cpu, T) -> T) -> Result<T, Fault> {
    let bytes = size_of::<T>() as u64;
    let (host, written) = match cpu.fast_write_ptr::<T>(addr) {
        Some(host) => (host, None),
        None => match mmu::host_for_update(cpu, addr, bytes)? {
            Some((host, gpa)) => (host.cast(), Some(gpa)),
            None => return update_in_parts(cpu, addr, change),
        },
    };
    let flags = cpu.flags;
    loop {
        // SAFETY: the address is that of an operand inside a page of the guest's memory, which the map keeps.
        let old = unsafe { peek(host) };
        cpu.flags = flags;
        let new = change(cpu, old);
        // SAFETY: as above. An operand of 16 bytes is aligned (see `cmpxchg16b`), and `is_atomic_here` was asked.
        if unsafe { T::compare_exchange(host, old, new) } {
            if let Some(gpa) = written {
                mmu::updated(cpu, addr, gpa, bytes);
            }
            return Ok(old);
        }
    }
}

#[cold]
fn update_in_parts<T: Exchange>(cpu: &mut Cpu, addr: u64, change: impl Fn(&mut Cpu, T) -> T) -> Result<T, Fault> {
    mmu::probe_update(cpu, addr, size_of::<T>() as u64)?;
    let crew = cpu.crew.clone();
    let _alone = crew.as_ref().map(|crew| crew.split());
    let old = cpu.load::<T>(addr)?;
    let new = change(cpu, old);
    cpu.store::<T>(addr, new)?;
    Ok(old)
}

/// Does the same with an operand of `bytes`.
fn update_bytes(cpu: &mut Cpu, addr: u64, bytes: u32, change: impl Fn(&mut Cpu, u64) -> u64) -> Result<u64, Fault> {
    Ok(match bytes {
        1 => update::<u8>(cpu, addr, |cpu, a| change(cpu, a.into()) as u8)?.into(),
        2 => update::<u16>(cpu, addr, |cpu, a| change(cpu, a.into()) as u16)?.into(),
        4 => update::<u32>(cpu, addr, |cpu, a| change(cpu, a.into()) as u32)?.into(),
        _ => update::<u64>(cpu, addr, change)?,
    })
}

fn arithmetic<O: Alu, const I: bool>(cpu: &mut Cpu, op: &Op) -> Result<(), Fault> {
    fn typed<O: Alu, T: Int + Exchange>(cpu: &mut Cpu, addr: u64, b: u64) -> Result<(), Fault> {
        // SAFETY: a reference is a live vCPU.
        update::<T>(cpu, addr, |cpu, a| unsafe { O::compute::<T, true>(cpu, a, T::cut(b)) }).map(drop)
    }
    let b = if I { op.imm } else { reg(cpu, op.src, bytes_of(op)) };
    let addr = op.addr(cpu);
    match bytes_of(op) {
        1 => typed::<O, u8>(cpu, addr, b),
        2 => typed::<O, u16>(cpu, addr, b),
        4 => typed::<O, u32>(cpu, addr, b),
        _ => typed::<O, u64>(cpu, addr, b),
    }
}

fn unary<U: Unary>(cpu: &mut Cpu, op: &Op) -> Result<(), Fault> {
    fn typed<U: Unary, T: Int + Exchange>(cpu: &mut Cpu, addr: u64) -> Result<(), Fault> {
        // SAFETY: a reference is a live vCPU.
        update::<T>(cpu, addr, |cpu, a| unsafe { U::compute::<T, true>(cpu, a) }).map(drop)
    }
    let addr = op.addr(cpu);
    match bytes_of(op) {
        1 => typed::<U, u8>(cpu, addr),
        2 => typed::<U, u16>(cpu, addr),
        4 => typed::<U, u32>(cpu, addr),
        _ => typed::<U, u64>(cpu, addr),
    }
}

/// Executes BTS, BTR and BTC with the bit's number in an immediate, if `I`, or else in a register.
fn bit<const KIND: u8, const I: bool>(cpu: &mut Cpu, op: &Op) -> Result<(), Fault> {
    let bytes = bytes_of(op);
    let (addr, number) = if I { (op.addr(cpu), op.imm as u32 & (bytes * 8 - 1)) } else { far_bit(cpu, op) };
    let a = update_bytes(cpu, addr, bytes, |_, a| changed(KIND, a, 1 << number))?;
    change_flag(cpu, rflags::CF, a >> number & 1 != 0);
    Ok(())
}

fn xchg(cpu: &mut Cpu, op: &Op) -> Result<(), Fault> {
    let (bytes, addr) = (bytes_of(op), op.addr(cpu));
    let b = reg(cpu, op.src, bytes);
    let a = update_bytes(cpu, addr, bytes, |_, _| b)?;
    set_reg(cpu, op.src, bytes, a);
    Ok(())
}

fn xadd(cpu: &mut Cpu, op: &Op) -> Result<(), Fault> {
    let (bytes, addr) = (bytes_of(op), op.addr(cpu));
    let b = reg(cpu, op.src, bytes);
    let a = update_bytes(cpu, addr, bytes, |_, a| a.wrapping_add(b))?;
    set_reg(cpu, op.src, bytes, a);
    cpu.flags = LazyFlags { kind: FlagKind::Add as u32 | bytes.trailing_zeros(), b, result: a.wrapping_add(b) & mask_of(bytes) };
    Ok(())
}

fn cmpxchg(cpu: &mut Cpu, op: &Op) -> Result<(), Fault> {
    let (bytes, addr) = (bytes_of(op), op.addr(cpu));
    let (expected, b) = (reg(cpu, 0, bytes), reg(cpu, op.src, bytes));
    // This is a write in either case: if the comparison fails, the old value is written back.
    let a = update_bytes(cpu, addr, bytes, |_, a| if a == expected { b } else { a })?;
    if a != expected {
        set_reg(cpu, 0, bytes, a);
    }
    set_sub_flags(cpu, bytes, expected, a);
    Ok(())
}

fn cmpxchg8b(cpu: &mut Cpu, op: &Op) -> Result<(), Fault> {
    let addr = op.addr(cpu);
    let pair = |high: u8, low: u8| reg(cpu, high, 4) << 32 | reg(cpu, low, 4);
    let (expected, b) = (pair(2, 0), pair(1, 3));
    let a = update::<u64>(cpu, addr, |_, a| if a == expected { b } else { a })?;
    if a != expected {
        set_reg(cpu, 0, 4, a & 0xffff_ffff);
        set_reg(cpu, 2, 4, a >> 32);
    }
    change_flag(cpu, rflags::ZF, a == expected);
    Ok(())
}

fn cmpxchg16b(cpu: &mut Cpu, op: &Op) -> Result<(), Fault> {
    let addr = op.addr(cpu);
    if addr & 15 != 0 {
        return Err(cpu.general_protection(0));
    }
    let pair = |high: usize, low: usize| u128::from(cpu.regs[high]) << 64 | u128::from(cpu.regs[low]);
    let (expected, b) = (pair(2, 0), pair(1, 3));
    let a = update::<u128>(cpu, addr, |_, a| if a == expected { b } else { a })?;
    if a != expected {
        (cpu.regs[0], cpu.regs[2]) = (a as u64, (a >> 64) as u64);
    }
    change_flag(cpu, rflags::ZF, a == expected);
    Ok(())
}

/// Returns whether the instruction is locked.
pub fn is_locked(insn: &Instruction) -> bool {
    insn.has_lock_prefix() || insn.mnemonic() == M::Xchg && (in_memory(insn, 0) || in_memory(insn, 1))
}

/// Lowers an instruction that [`is_locked`].
pub fn lower(insn: &Instruction, b: &mut Builder) -> Option<Flow> {
    let by_number = is_immediate(insn, 1);
    macro_rules! either {
        ($f:ident, $x:tt) => {
            if by_number { called_op!($f::<$x, true>) } else { called_op!($f::<$x, false>) }
        };
    }
    let handler = match insn.mnemonic() {
        M::Add => either!(arithmetic, Add),
        M::Or => either!(arithmetic, Or),
        M::Adc => either!(arithmetic, Adc),
        M::Sbb => either!(arithmetic, Sbb),
        M::And => either!(arithmetic, And),
        M::Sub => either!(arithmetic, Sub),
        M::Xor => either!(arithmetic, Xor),
        M::Inc => called_op!(unary::<Inc>),
        M::Dec => called_op!(unary::<Dec>),
        M::Neg => called_op!(unary::<Neg>),
        M::Not => called_op!(unary::<Not>),
        M::Bts => either!(bit, SET),
        M::Btr => either!(bit, RESET),
        M::Btc => either!(bit, COMPLEMENT),
        M::Xchg => called_op!(xchg),
        M::Xadd => called_op!(xadd),
        M::Cmpxchg => called_op!(cmpxchg),
        M::Cmpxchg8b => called_op!(cmpxchg8b),
        M::Cmpxchg16b => called_op!(cmpxchg16b),
        _ => return None,
    };
    let wide = matches!(insn.mnemonic(), M::Cmpxchg8b | M::Cmpxchg16b);
    // XCHG has its operands in either order.
    let (memory, other) = if in_memory(insn, 0) { (0, 1) } else { (1, 0) };
    let bytes = if wide { if insn.mnemonic() == M::Cmpxchg8b { 8 } else { 16 } } else { size(insn, memory) };
    let mut op = b.mem_op(insn, handler, bytes, true);
    op.aux = bytes | IN_MEMORY;
    if by_number {
        op.imm = immediate(insn, 1);
    } else if !wide && insn.op_count() > 1 {
        op.src = register(insn.op_register(other));
        if matches!(insn.mnemonic(), M::Bts | M::Btr | M::Btc) {
            op.imm = segment_index(insn.memory_segment()) as u64 | u64::from(address_bits(insn, b.mode)) << 8;
        }
    }
    b.push(op);
    Some(Flow::Next)
}
