//! MMX, SSE to SSE4.2, AES, PCLMULQDQ, SHA, MOVBE.
//!
//! | file | what |
//! |---|---|
//! | `lanes` | vectors as integers, and operations on their lanes |
//! | `form` | the shapes of instructions: macros that make handlers of functions on values |
//! | `fast` | fast paths of hot instructions: handlers in place, the host's vector instructions |
//! | `packed` | packed integers, MMX and XMM |
//! | `moves` | moves, shuffles, inserts, extracts, blends, masks, MXCSR |
//! | `float` | arithmetic, comparison, rounding |
//! | `convert` | conversions |
//! | `strings` | PCMPxSTRx |
//! | `crypto` | AES, PCLMULQDQ, SHA |
//!
//! Sources: SDM vol. 1 chapters 9 to 12, vol. 2; vol. 3 chapter 13 for what CR0.EM, CR0.TS and CR4.OSFXSR forbid.
//!
//! **Not modelled**: MXCSR.MM (misaligned mode of some processors: reserved here), the prefetch and caching hints of
//! non-temporal moves (they are plain loads and stores).
//!
//! **Hostile guest**: every body is bounded straight-line work; register indices are masked.

mod convert;
mod crypto;
mod fast;
mod float;
mod form;
mod lanes;
mod moves;
mod packed;
mod strings;
#[cfg(all(test, target_arch = "x86_64"))]
mod tests;

use iced_x86::{Code, Instruction, Mnemonic, Register};

use super::cpu::{Cpu, Fault};
use super::lower::{Builder, Flow, Mode};
use super::op::Op;

/// Lowers an instruction of this family. Returns `None` when it is not one.
pub fn lower(insn: &Instruction, b: &mut Builder) -> Option<Flow> {
    if matches!(insn.mnemonic(), Mnemonic::Maskmovq | Mnemonic::Maskmovdqu) {
        return Some(match forbidden(insn, b.mode) {
            Some(body) => body(b),
            None => moves::masked_store(insn, b),
        });
    }
    let pair = moves::lower(insn)
        .or_else(|| packed::lower(insn))
        .or_else(|| float::lower(insn))
        .or_else(|| convert::lower(insn))
        .or_else(|| strings::lower(insn))
        .or_else(|| crypto::lower(insn))?;
    Some(match forbidden(insn, b.mode) {
        Some(body) => body(b),
        None => form::emit(b, insn, pair),
    })
}

/// Returns the handler that replaces an instruction that the control registers forbid.
fn forbidden(insn: &Instruction, mode: Mode) -> Option<fn(&mut Builder) -> Flow> {
    let mut xmm = matches!(insn.code(), Code::Ldmxcsr_m32 | Code::Stmxcsr_m32);
    let mut mm = insn.code() == Code::Emms;
    for i in 0..insn.op_count() {
        let register: Register = insn.op_register(i);
        xmm |= register.is_xmm();
        mm |= register.is_mm();
    }
    if xmm && mode.has(Mode::SSE_UD) {
        return Some(|b| refuse(b, called_op!(undefined)));
    }
    if xmm && mode.has(Mode::SSE_NM) {
        return Some(|b| refuse(b, called_op!(not_available)));
    }
    if mm && mode.has(Mode::FPU_OFF) {
        return Some(|b| refuse(b, called_op!(mmx_off)));
    }
    None
}

fn refuse(b: &mut Builder, handler: super::op::Handler) -> Flow {
    let op = b.op(handler);
    b.push(op);
    Flow::Next
}

use crate::hypervisor::soft::op::called_op;

#[inline(never)]
fn undefined(cpu: &mut Cpu, _op: &Op) -> Result<(), Fault> {
    Err(cpu.undefined())
}

#[inline(never)]
fn not_available(cpu: &mut Cpu, _op: &Op) -> Result<(), Fault> {
    Err(cpu.raise(7, None))
}

/// Raises #UD with CR0.EM, and #NM with CR0.TS alone.
#[inline(never)]
fn mmx_off(cpu: &mut Cpu, _op: &Op) -> Result<(), Fault> {
    const EM: u64 = 1 << 2;
    if cpu.sys.cr0 & EM != 0 { Err(cpu.undefined()) } else { Err(cpu.raise(7, None)) }
}
