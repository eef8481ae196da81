//! The 80-bit floating-point unit, FXSAVE and XSAVE. SDM vol. 1, chapters 8, 10.5 and 13.
//!
//! | file | what |
//! |---|---|
//! | `float` | numbers: rounding, arithmetic, conversions |
//! | `transcend` | the transcendental functions, and their accuracy |
//! | `unit` | the register stack, exceptions, #MF |
//! | `ops` | the bodies of the instructions |
//! | `control` | control instructions and saved forms |
//!
//! **Not modelled**: CR0.NE = 0 with IRQ 13 (#MF is raised instead); FCS and FDS (read as 0); FOP is kept for
//! instructions that raise an unmasked exception, as processors do outside of "fopcode compatibility mode".
//!
//! **Hostile guest**: every instruction does bounded work and accepts all 80-bit encodings.
//!
//! **Saved state**: [`Fpu`](super::cpu::Fpu), with the vCPU.

mod control;
pub mod float;
mod ops;
#[cfg(test)]
mod tests;
mod transcend;
mod unit;

use iced_x86::{Code, Instruction, Register};

use super::lower::{Builder, Flow, Mode};
use super::op::Handler;
use crate::hypervisor::soft::op::called_op;
use ops::{format, operation};

/// An instruction's handler and the fields of its op.
struct Plan {
    handler: Handler,
    aux: u32,
    src: u8,
    dst: Option<u8>,
    /// Bytes of the memory operand, 0 for none.
    size: u32,
    write: bool,
}

fn plan(handler: Handler, aux: u32) -> Plan {
    Plan { handler, aux, src: format::REGISTER, dst: None, size: 0, write: false }
}

fn with_format(handler: Handler, aux: u32, src: u8, write: bool) -> Plan {
    let size = match src {
        format::I16 => 2,
        format::F32 | format::I32 => 4,
        format::F64 | format::I64 => 8,
        format::F80 | format::BCD => 10,
        _ => 0,
    };
    Plan { handler, aux, src, dst: None, size, write }
}

fn memory(handler: Handler, aux: u32, size: u32, write: bool) -> Plan {
    Plan { handler, aux, src: format::REGISTER, dst: None, size, write }
}

/// Lowers an instruction of this family. Returns `None` when it is not one.
pub fn lower(insn: &Instruction, b: &mut Builder) -> Option<Flow> {
    let code = insn.code();
    let mut plan = plan_arithmetic(code)
        .or_else(|| plan_moves(code))
        .or_else(|| plan_functions(code))
        .or_else(|| plan_control(code, b.mode))?;
    let checks_itself = matches!(
        code,
        Code::Wait
            | Code::Xsave_mem
            | Code::Xsave64_mem
            | Code::Xsaveopt_mem
            | Code::Xsaveopt64_mem
            | Code::Xrstor_mem
            | Code::Xrstor64_mem
    );
    if b.mode.has(Mode::FPU_OFF) && !checks_itself {
        let op = b.op(called_op!(control::no_device));
        b.push(op);
        return Some(Flow::Next);
    }
    if plan.dst.is_none() {
        plan.dst = (0..insn.op_count())
            .map(|i| insn.op_register(i))
            .filter(|r| r.is_st())
            .map(|r| (r as u32 - Register::ST0 as u32) as u8)
            .max();
    }
    let mut op = b.op(plan.handler);
    if plan.size != 0 && !b.mode.is_64bit() && !does_not_wait(code) {
        // A pending exception comes before that of the segment.
        let check = b.op(called_op!(control::pending));
        b.push(check);
    }
    if plan.size != 0 {
        let m = b.mem(insn, plan.size, plan.write);
        (op.base, op.index, op.scale, op.disp) = (m.base, m.index, m.scale, m.disp);
    }
    (op.aux, op.src, op.dst) = (plan.aux, plan.src, plan.dst.unwrap_or(0));
    b.push(op);
    Some(Flow::Next)
}

/// Returns whether this is an instruction with a memory operand that does not check for pending exceptions.
fn does_not_wait(code: Code) -> bool {
    use Code::*;
    matches!(
        code,
        Fnstcw_m2byte
            | Fnstsw_m2byte
            | Fnstenv_m14byte
            | Fnstenv_m28byte
            | Fnsave_m94byte
            | Fnsave_m108byte
            | Fxsave_m512byte
            | Fxrstor_m512byte
            | Xsave_mem
            | Xsaveopt_mem
            | Xrstor_mem
    )
}

fn plan_arithmetic(code: Code) -> Option<Plan> {
    use Code::*;
    use operation::*;
    let arithmetic = called_op!(ops::arithmetic);
    let compare = called_op!(ops::compare);
    let (operation, form) = match code {
        Fadd_m32fp => (ADD, format::F32),
        Fmul_m32fp => (MUL, format::F32),
        Fsub_m32fp => (SUB, format::F32),
        Fsubr_m32fp => (SUBR, format::F32),
        Fdiv_m32fp => (DIV, format::F32),
        Fdivr_m32fp => (DIVR, format::F32),
        Fadd_m64fp => (ADD, format::F64),
        Fmul_m64fp => (MUL, format::F64),
        Fsub_m64fp => (SUB, format::F64),
        Fsubr_m64fp => (SUBR, format::F64),
        Fdiv_m64fp => (DIV, format::F64),
        Fdivr_m64fp => (DIVR, format::F64),
        Fiadd_m16int => (ADD, format::I16),
        Fimul_m16int => (MUL, format::I16),
        Fisub_m16int => (SUB, format::I16),
        Fisubr_m16int => (SUBR, format::I16),
        Fidiv_m16int => (DIV, format::I16),
        Fidivr_m16int => (DIVR, format::I16),
        Fiadd_m32int => (ADD, format::I32),
        Fimul_m32int => (MUL, format::I32),
        Fisub_m32int => (SUB, format::I32),
        Fisubr_m32int => (SUBR, format::I32),
        Fidiv_m32int => (DIV, format::I32),
        Fidivr_m32int => (DIVR, format::I32),
        Fadd_st0_sti => (ADD, format::REGISTER),
        Fmul_st0_sti => (MUL, format::REGISTER),
        Fsub_st0_sti => (SUB, format::REGISTER),
        Fsubr_st0_sti => (SUBR, format::REGISTER),
        Fdiv_st0_sti => (DIV, format::REGISTER),
        Fdivr_st0_sti => (DIVR, format::REGISTER),
        Fadd_sti_st0 => (ADD | TO_STI, format::REGISTER),
        Fmul_sti_st0 => (MUL | TO_STI, format::REGISTER),
        Fsub_sti_st0 => (SUB | TO_STI, format::REGISTER),
        Fsubr_sti_st0 => (SUBR | TO_STI, format::REGISTER),
        Fdiv_sti_st0 => (DIV | TO_STI, format::REGISTER),
        Fdivr_sti_st0 => (DIVR | TO_STI, format::REGISTER),
        Faddp_sti_st0 => (ADD | TO_STI | POP, format::REGISTER),
        Fmulp_sti_st0 => (MUL | TO_STI | POP, format::REGISTER),
        Fsubp_sti_st0 => (SUB | TO_STI | POP, format::REGISTER),
        Fsubrp_sti_st0 => (SUBR | TO_STI | POP, format::REGISTER),
        Fdivp_sti_st0 => (DIV | TO_STI | POP, format::REGISTER),
        Fdivrp_sti_st0 => (DIVR | TO_STI | POP, format::REGISTER),
        _ => {
            let (flags, form) = match code {
                Fcom_m32fp => (0, format::F32),
                Fcomp_m32fp => (POP, format::F32),
                Fcom_m64fp => (0, format::F64),
                Fcomp_m64fp => (POP, format::F64),
                Ficom_m16int => (0, format::I16),
                Ficomp_m16int => (POP, format::I16),
                Ficom_m32int => (0, format::I32),
                Ficomp_m32int => (POP, format::I32),
                Fcom_st0_sti | Fcom_st0_sti_DCD0 => (0, format::REGISTER),
                Fcomp_st0_sti | Fcomp_st0_sti_DCD8 | Fcomp_st0_sti_DED0 => (POP, format::REGISTER),
                Fucom_st0_sti => (QUIET, format::REGISTER),
                Fucomp_st0_sti => (QUIET | POP, format::REGISTER),
                Fcomi_st0_sti => (TO_RFLAGS, format::REGISTER),
                Fcomip_st0_sti => (TO_RFLAGS | POP, format::REGISTER),
                Fucomi_st0_sti => (TO_RFLAGS | QUIET, format::REGISTER),
                Fucomip_st0_sti => (TO_RFLAGS | QUIET | POP, format::REGISTER),
                Fcompp => return Some(Plan { dst: Some(1), ..plan(compare, POP | POP_TWICE) }),
                Fucompp => return Some(Plan { dst: Some(1), ..plan(compare, QUIET | POP | POP_TWICE) }),
                _ => return None,
            };
            return Some(with_format(compare, flags, form, false));
        }
    };
    Some(with_format(arithmetic, operation, form, false))
}

fn plan_moves(code: Code) -> Option<Plan> {
    use Code::*;
    use operation::*;
    let load = called_op!(ops::load);
    let store = called_op!(ops::store);
    let constant = |number: u8| Plan { dst: Some(number), src: format::CONSTANT, ..plan(load, 0) };
    let conditional = |condition: u32| plan(called_op!(ops::conditional_move), condition);
    Some(match code {
        Fld_m32fp => with_format(load, 0, format::F32, false),
        Fld_m64fp => with_format(load, 0, format::F64, false),
        Fld_m80fp => with_format(load, 0, format::F80, false),
        Fild_m16int => with_format(load, 0, format::I16, false),
        Fild_m32int => with_format(load, 0, format::I32, false),
        Fild_m64int => with_format(load, 0, format::I64, false),
        Fbld_m80bcd => with_format(load, 0, format::BCD, false),
        Fld_sti => plan(load, 0),
        Fld1 => constant(0),
        Fldl2t => constant(1),
        Fldl2e => constant(2),
        Fldpi => constant(3),
        Fldlg2 => constant(4),
        Fldln2 => constant(5),
        Fldz => constant(6),
        Fst_m32fp => with_format(store, 0, format::F32, true),
        Fstp_m32fp => with_format(store, POP, format::F32, true),
        Fst_m64fp => with_format(store, 0, format::F64, true),
        Fstp_m64fp => with_format(store, POP, format::F64, true),
        Fstp_m80fp => with_format(store, POP, format::F80, true),
        Fist_m16int => with_format(store, 0, format::I16, true),
        Fistp_m16int => with_format(store, POP, format::I16, true),
        Fist_m32int => with_format(store, 0, format::I32, true),
        Fistp_m32int => with_format(store, POP, format::I32, true),
        Fistp_m64int => with_format(store, POP, format::I64, true),
        Fisttp_m16int => with_format(store, POP | TRUNCATE, format::I16, true),
        Fisttp_m32int => with_format(store, POP | TRUNCATE, format::I32, true),
        Fisttp_m64int => with_format(store, POP | TRUNCATE, format::I64, true),
        Fbstp_m80bcd => with_format(store, POP, format::BCD, true),
        Fst_sti => plan(called_op!(ops::store_register), 0),
        Fstpnce_sti => plan(called_op!(ops::store_register), POP | UNCHECKED),
        Fstp_sti | Fstp_sti_DFD0 | Fstp_sti_DFD8 => plan(called_op!(ops::store_register), POP),
        Fxch_st0_sti | Fxch_st0_sti_DDC8 | Fxch_st0_sti_DFC8 => plan(called_op!(ops::exchange), 0),
        Fcmovb_st0_sti => conditional(0),
        Fcmove_st0_sti => conditional(1),
        Fcmovbe_st0_sti => conditional(2),
        Fcmovu_st0_sti => conditional(3),
        Fcmovnb_st0_sti => conditional(4),
        Fcmovne_st0_sti => conditional(5),
        Fcmovnbe_st0_sti => conditional(6),
        Fcmovnu_st0_sti => conditional(7),
        _ => return None,
    })
}

fn plan_functions(code: Code) -> Option<Plan> {
    use Code::*;
    let unary = |function: u32| plan(called_op!(ops::unary), function);
    let binary = |function: u32| plan(called_op!(ops::binary), function);
    let pushing = |function: u32| plan(called_op!(ops::pushing), function);
    Some(match code {
        Fchs => unary(operation::CHS),
        Fabs => unary(operation::ABS),
        Ftst => unary(operation::TST),
        Fxam => unary(operation::XAM),
        Fsqrt => unary(operation::SQRT),
        Frndint => unary(operation::RNDINT),
        F2xm1 => unary(operation::F2XM1),
        Fsin => unary(operation::SIN),
        Fcos => unary(operation::COS),
        Fscale => binary(operation::SCALE),
        Fprem => binary(operation::PREM),
        Fprem1 => binary(operation::PREM1),
        Fyl2x => binary(operation::YL2X),
        Fyl2xp1 => binary(operation::YL2XP1),
        Fpatan => binary(operation::PATAN),
        Fxtract => pushing(operation::XTRACT),
        Fptan => pushing(operation::PTAN),
        Fsincos => pushing(operation::SINCOS),
        _ => return None,
    })
}

fn plan_control(code: Code, mode: Mode) -> Option<Plan> {
    use Code::*;
    use control::{REAL, SMALL, WAITING, WIDE};
    let real = if mode.has(Mode::REAL) { REAL } else { 0 };
    let environment = |handler: Handler, aux: u32, size: u32, write: bool| memory(handler, aux | real, size, write);
    let store_environment = called_op!(control::store_environment);
    let load_environment = called_op!(control::load_environment);
    let save = called_op!(control::save);
    let restore = called_op!(control::restore);
    let xsave = called_op!(control::xsave);
    let status_to_ax = called_op!(control::status_to_ax);
    Some(match code {
        Wait => plan(called_op!(control::wait), 0),
        Fnop => plan(called_op!(control::nop), 0),
        Fneni | Fndisi | Fnsetpm | Frstpm => plan(called_op!(control::obsolete), 0),
        Fninit => plan(called_op!(control::init), 0),
        Finit => plan(called_op!(control::init), WAITING),
        Fnclex => plan(called_op!(control::clear_exceptions), 0),
        Fclex => plan(called_op!(control::clear_exceptions), WAITING),
        Fincstp => plan(called_op!(control::turn), 1),
        Fdecstp => plan(called_op!(control::turn), 7),
        Ffree_sti => plan(called_op!(control::free), 0),
        Ffreep_sti => plan(called_op!(control::free), 1),
        Fldcw_m2byte => memory(called_op!(control::load_control), 0, 2, false),
        Fnstcw_m2byte => memory(called_op!(control::store_control), 0, 2, true),
        Fstcw_m2byte => memory(called_op!(control::store_control), WAITING, 2, true),
        Fnstsw_m2byte => memory(called_op!(control::store_status), 0, 2, true),
        Fstsw_m2byte => memory(called_op!(control::store_status), WAITING, 2, true),
        Fnstsw_AX => plan(status_to_ax, 0),
        Fstsw_AX => plan(status_to_ax, WAITING),
        Fnstenv_m14byte => environment(store_environment, SMALL, 14, true),
        Fnstenv_m28byte => environment(store_environment, 0, 28, true),
        Fstenv_m14byte => environment(store_environment, SMALL | WAITING, 14, true),
        Fstenv_m28byte => environment(store_environment, WAITING, 28, true),
        Fldenv_m14byte => environment(load_environment, SMALL, 14, false),
        Fldenv_m28byte => environment(load_environment, 0, 28, false),
        Fnsave_m94byte => environment(save, SMALL, 94, true),
        Fnsave_m108byte => environment(save, 0, 108, true),
        Fsave_m94byte => environment(save, SMALL | WAITING, 94, true),
        Fsave_m108byte => environment(save, WAITING, 108, true),
        Frstor_m94byte => environment(restore, SMALL, 94, false),
        Frstor_m108byte => environment(restore, 0, 108, false),
        Fxsave_m512byte => memory(called_op!(control::fxsave), 0, 512, true),
        Fxsave64_m512byte => memory(called_op!(control::fxsave), WIDE, 512, true),
        Fxrstor_m512byte => memory(called_op!(control::fxrstor), 0, 512, false),
        Fxrstor64_m512byte => memory(called_op!(control::fxrstor), WIDE, 512, false),
        Xsave_mem | Xsaveopt_mem => memory(xsave, 0, 576, true),
        Xsave64_mem | Xsaveopt64_mem => memory(xsave, WIDE, 576, true),
        Xrstor_mem => memory(called_op!(control::xrstor), 0, 576, false),
        Xrstor64_mem => memory(called_op!(control::xrstor), WIDE, 576, false),
        _ => return None,
    })
}
