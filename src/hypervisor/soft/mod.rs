//! An x86-64 processor in software: a pre-decoded block interpreter.
//!
//! | file | what |
//! |---|---|
//! | `cpu` | the architectural state of one vCPU |
//! | `op` | the pre-decoded operation, its handler's calling convention, the macros that make handlers |
//! | `lower` | from decoded instructions to ops: the block builder and the families' entry points |
//! | `block` | the block cache, links, the jump cache, self-modifying code |
//! | `run` | the dispatcher: blocks, budget, events, HLT, vCPUs in turn |
//! | `crew` | vCPUs that run at the same time |
//! | `one` | one instruction on the registers of a vCPU that another back end runs |
//! | `saved` | a vCPU's saved state |
//! | `rig` | one vCPU without a machine, for tests and benchmarks |
//! | `flags` | lazy arithmetic flags |
//! | `mem` | the software TLB's fast path |
//! | `tlb` | what is beside its entries, and how they come and go |
//! | `mmu` | its slow path: page walk, permissions, MMIO, accesses across pages, debug watchpoints |
//! | `int/` | integer, bit, string and branch instructions |
//! | `system/` | segments, exceptions and interrupts, mode changes, system calls, CPUID, MSRs, control registers, port I/O |
//! | `simd/` | MMX, SSE to SSE4.2, AES, PCLMULQDQ |
//! | `softfloat` | IEEE arithmetic in integers, for `simd/` and `x87/` |
//! | `x87/` | the 80-bit floating-point unit, FXSAVE, XSAVE |
//!
//! Sources: Intel 64 and IA-32 Architectures Software Developer's Manual (SDM), AMD64 Architecture Programmer's
//! Manual (APM).
// Handlers are called only through the pointers of ops, by `run` and by each other, under the contract in `op`. To mark
// all thousand of them `unsafe` would say nothing more. A `Box<Cpu>` keeps its address, so pointers to it stay valid. A
// mask is zero where a macro is given an operand that needs no alignment.
#![allow(clippy::not_unsafe_ptr_arg_deref, clippy::macro_metavars_in_unsafe, clippy::vec_box, clippy::bad_bit_mask)]

pub mod block;
pub mod cpu;
pub mod crew;
pub mod flags;
pub mod int;
pub mod lower;
pub mod mem;
pub mod mmu;
#[cfg(any(all(target_os = "freebsd", target_arch = "x86_64"), test))]
pub mod one;
pub mod op;
pub mod rig;
pub mod run;
pub mod saved;
pub mod simd;
pub mod softfloat;
pub mod system;
pub mod tlb;
pub mod x87;
