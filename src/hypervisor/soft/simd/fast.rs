//! Fast paths of hot instructions: the host's own vector instructions, and handlers that do their work in place.
//!
//! On an x86-64 host a lane operation of the baseline (SSE2) is one instruction; a newer one is chosen when the
//! instruction is lowered, if the host has it. Elsewhere the portable definitions in `lanes` and `crypto` do the work.
//!
//! A fast handler's memory operand goes through the TLB's fast path only; on a miss, and on a misaligned address, it
//! tail-calls the called op of the same instruction, which does everything again from the start. Its body must be free
//! of locals whose address is taken, or the tail call would become a call. A test checks this for every handler.
#![allow(unsafe_code)]

use crate::hypervisor::soft::cpu::Cpu;
use crate::hypervisor::soft::mem::Operand;
use crate::hypervisor::soft::op::Op;

use super::form::{Source, Unaligned};

/// A source operand as it is in memory.
pub trait FastSource: Source {
    /// The integer that is loaded.
    type Raw: Operand;
    /// Alignment that its address must have.
    const ALIGN: u64;
    /// Converts the loaded integer to the operand.
    fn from_raw(raw: Self::Raw) -> Self;
}

macro_rules! fast_source {
    ($($t:ty, $raw:ty, $align:literal, $make:expr;)*) => {$(
        impl FastSource for $t {
            type Raw = $raw;
            const ALIGN: u64 = $align;
            #[inline(always)]
            fn from_raw(raw: $raw) -> $t {
                $make(raw)
            }
        }
    )*};
}
fast_source! {
    u128, u128, 16, u128::from;
    Unaligned, u128, 1, Unaligned;
    u64, u64, 1, u64::from;
    u32, u32, 1, u32::from;
}

/// Returns the address at which the operand can be read, if the TLB has it and it is aligned as required.
#[inline(always)]
pub fn peek<S: FastSource>(cpu: &Cpu, op: &Op) -> Option<*const S::Raw> {
    let addr = op.addr(cpu);
    if addr & (S::ALIGN - 1) != 0 { None } else { cpu.fast_read_ptr::<S::Raw>(addr) }
}

/// A number at any address, for reads and writes in fast handlers. (`read_unaligned` goes through a local whose address
/// is taken in builds with debug assertions.)
#[repr(C, packed)]
pub struct Packed<T: Copy>(pub T);

/// Wraps the given handler as `slow`, which is never inlined, so that the fast path needs no stack.
macro_rules! out_of_line {
    ($slow:expr) => {
        #[cold]
        #[inline(never)]
        #[allow(unsafe_code)]
        unsafe extern "C" fn slow(
            cpu: *mut $crate::hypervisor::soft::cpu::Cpu,
            op: *const $crate::hypervisor::soft::op::Op,
        ) -> *const $crate::hypervisor::soft::op::Op {
            // SAFETY: a handler hands its own pointers on.
            unsafe { ($slow)(cpu, op) }
        }
    };
}
pub(super) use out_of_line;

/// Makes a handler with its body in place. The body gives `()`, cannot fail and touches no memory.
macro_rules! in_place {
    (|$cpu:ident, $op:ident| $body:expr) => {{
        #[allow(unsafe_code)]
        unsafe extern "C" fn handler(
            cpu: *mut $crate::hypervisor::soft::cpu::Cpu,
            op: *const $crate::hypervisor::soft::op::Op,
        ) -> *const $crate::hypervisor::soft::op::Op {
            // SAFETY: handlers get live, unaliased pointers; an op that is not the last of its block has a next one.
            unsafe {
                {
                    let ($cpu, $op) = (&mut *cpu, &*op);
                    $body;
                }
                $crate::hypervisor::soft::op::next(cpu, op)
            }
        }
        handler as $crate::hypervisor::soft::op::Handler
    }};
}
pub(super) use in_place;

/// Makes handlers as `xmm_op` does, with the work of both in place.
macro_rules! fast_op {
    ($src:ty, $f:expr) => {
        [
            in_place!(|cpu, op| {
                let b = <$src as Source>::register(cpu, op.src);
                let r = with2(xmm(cpu, op.dst), b, $f);
                set_xmm(cpu, op.dst, r)
            }),
            {
                out_of_line!(xmm_op!($src, $f)[1]);
                #[allow(unsafe_code)]
                unsafe extern "C" fn handler(
                    cpu: *mut $crate::hypervisor::soft::cpu::Cpu,
                    op: *const $crate::hypervisor::soft::op::Op,
                ) -> *const $crate::hypervisor::soft::op::Op {
                    // SAFETY: as in `in_place!`; a TLB hit means that all bytes lie in one mapped page of guest memory.
                    unsafe {
                        let Some(ptr) = peek::<$src>(&*cpu, &*op) else {
                            return slow(cpu, op);
                        };
                        let b = <$src as FastSource>::from_raw((*ptr.cast::<Packed<_>>()).0);
                        let r = with2(xmm(&*cpu, (*op).dst), b, $f);
                        set_xmm(&mut *cpu, (*op).dst, r);
                        $crate::hypervisor::soft::op::next(cpu, op)
                    }
                }
                handler as $crate::hypervisor::soft::op::Handler
            },
        ]
    };
}
pub(super) use fast_op;

/// Makes a store of `$part` of the source register through the TLB's fast path, aligned to `$align` bytes. Otherwise it
/// calls `$slow`.
macro_rules! fast_store {
    ($t:ty, $align:literal, $part:expr, $slow:expr) => {{
        out_of_line!($slow);
        #[allow(unsafe_code)]
        unsafe extern "C" fn handler(
            cpu: *mut $crate::hypervisor::soft::cpu::Cpu,
            op: *const $crate::hypervisor::soft::op::Op,
        ) -> *const $crate::hypervisor::soft::op::Op {
            // SAFETY: as in `in_place!`; a TLB hit means that all bytes may be written and hold no decoded code.
            unsafe {
                let addr = (*op).addr(&*cpu);
                let ptr = if addr & ($align - 1) == 0 { (*cpu).fast_write_ptr::<$t>(addr) } else { None };
                let Some(ptr) = ptr else { return slow(cpu, op) };
                (*ptr.cast::<Packed<$t>>()).0 = with1(xmm(&*cpu, (*op).src), $part);
                $crate::hypervisor::soft::op::next(cpu, op)
            }
        }
        handler as $crate::hypervisor::soft::op::Handler
    }};
}
pub(super) use fast_store;

/// The host's instructions on XMM values.
#[cfg(target_arch = "x86_64")]
pub mod host {
    use std::arch::x86_64::*;

    #[inline(always)]
    pub(super) fn to_host(v: u128) -> __m128i {
        // SAFETY: SSE2 is part of every x86-64 processor.
        unsafe { _mm_set_epi64x((v >> 64) as i64, v as i64) }
    }

    #[inline(always)]
    pub(super) fn from_host(v: __m128i) -> u128 {
        // SAFETY: as above.
        unsafe {
            let high = _mm_cvtsi128_si64(_mm_unpackhi_epi64(v, v)) as u64;
            u128::from(_mm_cvtsi128_si64(v) as u64) | u128::from(high) << 64
        }
    }

    macro_rules! functions {
        ($($name:ident $intrinsic:ident $portable:expr;)*) => {$(
            #[inline(always)]
            pub fn $name(a: u128, b: u128) -> u128 {
                // SAFETY: as above.
                from_host(unsafe { $intrinsic(to_host(a), to_host(b)) })
            }
        )*};
    }
    super::super::lanes::host_operations!(functions);

    /// Executes `PMOVMSKB`.
    #[inline(always)]
    pub fn byte_signs(v: u128) -> u64 {
        // SAFETY: as above.
        u64::from(unsafe { _mm_movemask_epi8(to_host(v)) } as u32)
    }

    macro_rules! newer {
        ($($name:ident $feature:literal |$a:ident, $b:ident| $e:expr;)*) => {$(
            /// Must be called only on a host with the feature.
            #[target_feature(enable = $feature)]
            pub fn $name($a: u128, $b: u128) -> u128 {
                let ($a, $b) = (to_host($a), to_host($b));
                from_host($e)
            }
        )*};
    }
    newer! {
        shuffle_bytes "ssse3" |a, b| _mm_shuffle_epi8(a, b);
        aesenc "aes" |a, b| _mm_aesenc_si128(a, b);
        aesenclast "aes" |a, b| _mm_aesenclast_si128(a, b);
        aesdec "aes" |a, b| _mm_aesdec_si128(a, b);
        aesdeclast "aes" |a, b| _mm_aesdeclast_si128(a, b);
        carryless "pclmulqdq" |a, b| _mm_clmulepi64_si128::<0>(a, b);
    }
}

/// Chooses handlers that use an instruction beyond the baseline if the host has it, otherwise the portable ones.
macro_rules! host_or {
    ($feature:tt, $host:ident, |$a:ident, $b:ident $(, $imm:ident)?| ($ha:expr, $hb:expr), $portable:expr) => {{
        #[cfg(target_arch = "x86_64")]
        let pair = if std::arch::is_x86_feature_detected!($feature) {
            #[allow(unsafe_code)]
            fn on_host($a: u128, $b: u128, _imm: u8) -> u128 {
                $(let $imm = _imm;)?
                // SAFETY: only reached when the feature was found.
                unsafe { super::fast::host::$host($ha, $hb) }
            }
            xmm_op!(u128, imm, on_host)
        } else {
            $portable
        };
        #[cfg(not(target_arch = "x86_64"))]
        let pair = $portable;
        pair
    }};
}
pub(super) use host_or;
