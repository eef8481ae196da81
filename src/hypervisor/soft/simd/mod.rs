//! MMX, SSE to SSE4.2, AES, PCLMULQDQ.

use iced_x86::Instruction;

use super::lower::{Builder, Flow};

/// Lowers an instruction of this family; `None` when it is not one.
pub fn lower(insn: &Instruction, b: &mut Builder) -> Option<Flow> {
    let _ = (insn, b);
    None
}
