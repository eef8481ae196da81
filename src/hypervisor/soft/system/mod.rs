//! Segments, exceptions and interrupts, mode changes, system calls, CPUID, MSRs, control registers, port I/O.
//!
//! | file | what |
//! |---|---|
//! | `regs` | bits of control registers, numbers of MSRs |
//! | `segment` | descriptors, segment registers, the stack of far transfers |
//! | `deliver` | exceptions and interrupts through the IDT |
//! | `far` | far branches, gates, INT, IRET |
//! | `task` | task switches |
//! | `syscall` | SYSCALL, SYSENTER, SWAPGS, FS and GS bases, hypercalls |
//! | `flagops` | CLI, STI, PUSHF, POPF, CLAC, STAC |
//! | `control` | control, debug and table registers, HLT, INVLPG, TSC |
//! | `port` | IN, OUT, INS, OUTS |
//! | `cpuid`, `msr`, `kvmclock` | the processor's identity and registers |
//! | `debug` | single step, breakpoints |
//! | `stackfault` | the segment through which an address that is not canonical came |
//! | `start` | reset, INIT, start-up, loaders' entry |
//!
//! Nothing here is hot: every instruction is a called or a leaving op. Each body says where in an op its operands are.

pub mod control;
pub mod cpuid;
pub mod debug;
pub mod deliver;
pub mod far;
pub mod flagops;
pub mod kvmclock;
pub mod msr;
pub mod port;
pub mod regs;
pub mod segment;
pub mod stackfault;
pub mod start;
pub mod syscall;
pub mod task;
#[cfg(test)]
mod tests;

use iced_x86::{Code, Instruction, Mnemonic, OpKind, Register};

use super::cpu::{Cpu, LDTR, TR};
use super::lower::{Builder, Flow};
use super::op::{Handler, Op};
use crate::hypervisor::soft::op::{called_op, leaving_op};

pub use debug::{after_step, before_step, take_debug_trap};
pub use deliver::{deliver_exception, deliver_interrupt, deliver_nmi};
pub use start::{enter, mode_of, refresh_mode, reset, set_memory_types, start_up};

/// A triple fault: an exception while delivering a double fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TripleFault;

/// The operand is in memory, as a bit of [`Op::imm`].
const MEM: u64 = 1 << 63;

/// Reads the low `size` bytes of general register `reg`.
fn read_gpr(cpu: &Cpu, reg: u8, size: u8) -> u64 {
    let value = cpu.regs[reg as usize];
    if size >= 8 { value } else { value & (u64::MAX >> (64 - 8 * u32::from(size))) }
}

/// Writes `size` bytes (2, 4 or 8) of general register `reg`. 4 bytes clear the upper half, 2 keep the rest.
fn write_gpr(cpu: &mut Cpu, reg: u8, size: u8, value: u64) {
    let r = &mut cpu.regs[reg as usize];
    *r = match size {
        2 => *r & !0xffff | value & 0xffff,
        4 => value & 0xffff_ffff,
        _ => value,
    };
}

/// Pushes an op that continues with the next instruction.
fn called(b: &mut Builder, handler: Handler, edit: impl FnOnce(&mut Op)) -> Option<Flow> {
    let mut op = b.op(handler);
    edit(&mut op);
    b.push(op);
    Some(Flow::Next)
}

/// Pushes an op that ends its block.
fn leaving(b: &mut Builder, handler: Handler, edit: impl FnOnce(&mut Op)) -> Option<Flow> {
    called(b, handler, edit).map(|_| Flow::End)
}

/// Creates an op with the memory operand of `insn`, and pushes the ops that it needs before it.
fn with_memory(b: &mut Builder, insn: &Instruction, handler: Handler, size: u32, write: bool) -> Op {
    let m = b.mem(insn, size, write);
    let mut op = b.op(handler);
    (op.base, op.index, op.scale, op.disp) = (m.base, m.index, m.scale, m.disp);
    op
}

/// Creates an op whose 16-bit source operand `n` is a register (to `src`) or memory ([`MEM`] in `imm`).
fn source16(b: &mut Builder, insn: &Instruction, n: u32, handler: Handler) -> Op {
    if insn.op_kind(n) == OpKind::Memory {
        let mut op = with_memory(b, insn, handler, 2, false);
        op.imm = MEM;
        op
    } else {
        let mut op = b.op(handler);
        op.src = number(insn.op_register(n));
        op
    }
}

/// Creates an op that writes a word to its first operand: register `dst` of `src` bytes, or memory ([`MEM`] in `imm`).
fn word_destination(b: &mut Builder, insn: &Instruction, which: u8) -> Option<Flow> {
    let handler = called_op!(control::store_word);
    let mut op = if insn.op0_kind() == OpKind::Memory {
        let mut op = with_memory(b, insn, handler, 2, true);
        op.imm = MEM;
        op
    } else {
        let mut op = b.op(handler);
        (op.dst, op.src) = (number(insn.op0_register()), insn.op0_register().size() as u8);
        op
    };
    op.imm |= u64::from(which);
    b.push(op);
    Some(Flow::Next)
}

fn number(r: Register) -> u8 {
    r.number() as u8
}

/// Pushes `op` and continues with the next instruction.
fn plain(b: &mut Builder, op: Op) -> Option<Flow> {
    b.push(op);
    Some(Flow::Next)
}

/// Lowers an instruction of this family. Returns `None` when it is not one.
pub fn lower(insn: &Instruction, b: &mut Builder) -> Option<Flow> {
    lower_far(insn, b)
        .or_else(|| lower_segment(insn, b))
        .or_else(|| lower_control(insn, b))
        .or_else(|| lower_port(insn, b))
        .or_else(|| lower_rest(insn, b))
}

/// Returns the size of the operand of a far branch or of IRET in bytes, by its code.
fn far_size(code: Code) -> u8 {
    use Code::*;
    match code {
        Jmp_ptr1616 | Call_ptr1616 | Jmp_m1616 | Call_m1616 | Retfw | Retfw_imm16 | Iretw => 2,
        Jmp_m1664 | Call_m1664 | Retfq | Retfq_imm16 | Iretq => 8,
        _ => 4,
    }
}

fn lower_far(insn: &Instruction, b: &mut Builder) -> Option<Flow> {
    use Code::*;
    let code = insn.code();
    let size = far_size(code);
    match code {
        Jmp_ptr1616 | Jmp_ptr1632 | Call_ptr1616 | Call_ptr1632 => {
            let offset = if size == 2 { u64::from(insn.far_branch16()) } else { u64::from(insn.far_branch32()) };
            let call = matches!(code, Call_ptr1616 | Call_ptr1632);
            leaving(b, leaving_op!(far::far_direct), |op| {
                op.imm = u64::from(insn.far_branch_selector()) << 32 | offset;
                (op.src, op.dst) = (size, u8::from(call));
            })
        }
        Jmp_m1616 | Jmp_m1632 | Jmp_m1664 | Call_m1616 | Call_m1632 | Call_m1664 => {
            let mut op = with_memory(b, insn, leaving_op!(far::far_indirect), u32::from(size) + 2, false);
            let call = matches!(code, Call_m1616 | Call_m1632 | Call_m1664);
            (op.src, op.dst) = (size, u8::from(call));
            b.push(op);
            Some(Flow::End)
        }
        Retfw | Retfd | Retfq => leaving(b, leaving_op!(far::far_return), |op| op.src = size),
        Retfw_imm16 | Retfd_imm16 | Retfq_imm16 => leaving(b, leaving_op!(far::far_return), |op| {
            op.src = size;
            op.imm = u64::from(insn.immediate16());
        }),
        Iretw | Iretd | Iretq => leaving(b, leaving_op!(far::interrupt_return), |op| op.src = size),
        Int_imm8 => leaving(b, leaving_op!(far::interrupt), |op| {
            op.imm = u64::from(insn.immediate8());
            op.src = 1;
        }),
        Int3 => leaving(b, leaving_op!(far::interrupt), |op| op.imm = 3),
        Int1 => leaving(b, leaving_op!(far::interrupt), |op| {
            op.imm = 1;
            op.dst = 1;
        }),
        Into => leaving(b, leaving_op!(far::interrupt_on_overflow), |op| op.imm = 4),
        Syscall => leaving(b, leaving_op!(syscall::syscall), |_| ()),
        Sysretd => leaving(b, leaving_op!(syscall::sysret), |op| op.src = 4),
        Sysretq => leaving(b, leaving_op!(syscall::sysret), |op| op.src = 8),
        Sysenter => leaving(b, leaving_op!(syscall::sysenter), |_| ()),
        Sysexitd => leaving(b, leaving_op!(syscall::sysexit), |op| op.src = 4),
        Sysexitq => leaving(b, leaving_op!(syscall::sysexit), |op| op.src = 8),
        _ => None,
    }
}

fn lower_segment(insn: &Instruction, b: &mut Builder) -> Option<Flow> {
    use Code::*;
    let code = insn.code();
    match code {
        Mov_Sreg_rm16 | Mov_Sreg_r32m16 | Mov_Sreg_r64m16 => {
            let which = segment::index_of(insn.op0_register())?;
            if which == super::cpu::CS {
                return None;
            }
            let mut op = source16(b, insn, 1, called_op!(control::move_to_segment));
            op.dst = which as u8;
            plain(b, op)
        }
        Mov_rm16_Sreg | Mov_r32m16_Sreg | Mov_r64m16_Sreg => {
            word_destination(b, insn, segment::index_of(insn.op1_register())? as u8)
        }
        Les_r16_m1616 | Les_r32_m1632 | Lds_r16_m1616 | Lds_r32_m1632 | Lss_r16_m1616 | Lss_r32_m1632 | Lss_r64_m1664
        | Lfs_r16_m1616 | Lfs_r32_m1632 | Lfs_r64_m1664 | Lgs_r16_m1616 | Lgs_r32_m1632 | Lgs_r64_m1664 => {
            let which = match insn.mnemonic() {
                Mnemonic::Les => super::cpu::ES,
                Mnemonic::Lds => super::cpu::DS,
                Mnemonic::Lss => super::cpu::SS,
                Mnemonic::Lfs => super::cpu::FS,
                _ => super::cpu::GS,
            };
            let size = insn.op0_register().size() as u8;
            let mut op = with_memory(b, insn, called_op!(control::load_far), u32::from(size) + 2, false);
            (op.dst, op.src, op.imm) = (number(insn.op0_register()), size, which as u64);
            plain(b, op)
        }
        Lar_r16_rm16 | Lar_r32_r32m16 | Lar_r64_r64m16 | Lsl_r16_rm16 | Lsl_r32_r32m16 | Lsl_r64_r64m16 => {
            let mut op = source16(b, insn, 1, called_op!(control::load_rights));
            op.dst = number(insn.op0_register());
            op.imm |= (insn.op0_register().size() as u64) << 8 | u64::from(insn.mnemonic() == Mnemonic::Lsl);
            plain(b, op)
        }
        Verr_rm16 | Verr_r32m16 | Verr_r64m16 | Verw_rm16 | Verw_r32m16 | Verw_r64m16 => {
            let mut op = source16(b, insn, 0, called_op!(control::verify));
            op.imm |= u64::from(insn.mnemonic() == Mnemonic::Verw);
            plain(b, op)
        }
        Arpl_rm16_r16 | Arpl_r32m16_r32 => {
            let handler = called_op!(control::arpl);
            let mut op = if insn.op0_kind() == OpKind::Memory {
                let mut op = with_memory(b, insn, handler, 2, false);
                op.imm = MEM;
                op.aux = super::lower::segment_index(insn.memory_segment()) as u32;
                op
            } else {
                let mut op = b.op(handler);
                op.dst = number(insn.op0_register());
                op
            };
            op.src = number(insn.op1_register());
            plain(b, op)
        }
        _ => lower_segment_stack(insn, b),
    }
}

/// Lowers PUSH and POP of a segment register.
fn lower_segment_stack(insn: &Instruction, b: &mut Builder) -> Option<Flow> {
    use Code::*;
    let (push, size) = match insn.code() {
        Pushw_ES | Pushw_CS | Pushw_SS | Pushw_DS | Pushw_FS | Pushw_GS => (true, 2),
        Pushd_ES | Pushd_CS | Pushd_SS | Pushd_DS | Pushd_FS | Pushd_GS => (true, 4),
        Pushq_FS | Pushq_GS => (true, 8),
        Popw_ES | Popw_SS | Popw_DS | Popw_FS | Popw_GS => (false, 2),
        Popd_ES | Popd_SS | Popd_DS | Popd_FS | Popd_GS => (false, 4),
        Popq_FS | Popq_GS => (false, 8),
        _ => return None,
    };
    let which = segment::index_of(insn.op0_register())? as u8;
    let handler = if push { called_op!(control::push_segment) } else { called_op!(control::pop_segment) };
    called(b, handler, |op| (op.dst, op.src) = (which, size))
}

/// Lowers LGDT, LIDT, SGDT, SIDT.
fn lower_table(insn: &Instruction, b: &mut Builder) -> Option<Flow> {
    use Code::*;
    let code = insn.code();
    let size = match code {
        Lgdt_m1632_16 | Lidt_m1632_16 => 3,
        Lgdt_m1664 | Lidt_m1664 | Sgdt_m1664 | Sidt_m1664 => 8,
        _ => 4,
    };
    let store = matches!(insn.mnemonic(), Mnemonic::Sgdt | Mnemonic::Sidt);
    let handler = if store { called_op!(control::store_table) } else { called_op!(control::load_table) };
    let mut op = with_memory(b, insn, handler, if size == 8 { 10 } else { 6 }, store);
    op.src = size;
    op.imm = u64::from(matches!(insn.mnemonic(), Mnemonic::Lidt | Mnemonic::Sidt));
    plain(b, op)
}

fn lower_control(insn: &Instruction, b: &mut Builder) -> Option<Flow> {
    use Code::*;
    match insn.code() {
        Mov_r32_cr | Mov_r64_cr => called(b, called_op!(control::read_control), |op| {
            (op.dst, op.src) = (number(insn.op0_register()), number(insn.op1_register()));
        }),
        Mov_cr_r32 | Mov_cr_r64 => leaving(b, leaving_op!(control::write_control), |op| {
            (op.dst, op.src) = (number(insn.op0_register()), number(insn.op1_register()));
        }),
        Mov_r32_dr | Mov_r64_dr => called(b, called_op!(control::read_debug), |op| {
            (op.dst, op.src) = (number(insn.op0_register()), number(insn.op1_register()));
        }),
        Mov_dr_r32 | Mov_dr_r64 => leaving(b, leaving_op!(control::write_debug), |op| {
            (op.dst, op.src) = (number(insn.op0_register()), number(insn.op1_register()));
        }),
        Clts => leaving(b, leaving_op!(control::clts), |_| ()),
        Hlt => leaving(b, leaving_op!(control::hlt), |_| ()),
        Lmsw_rm16 | Lmsw_r32m16 | Lmsw_r64m16 => {
            let op = source16(b, insn, 0, leaving_op!(control::lmsw));
            b.push(op);
            Some(Flow::End)
        }
        Smsw_rm16 | Smsw_r32m16 | Smsw_r64m16 => word_destination(b, insn, control::SMSW),
        Sldt_rm16 | Sldt_r32m16 | Sldt_r64m16 => word_destination(b, insn, LDTR as u8),
        Str_rm16 | Str_r32m16 | Str_r64m16 => word_destination(b, insn, TR as u8),
        Lldt_rm16 | Lldt_r32m16 | Lldt_r64m16 => {
            let op = source16(b, insn, 0, called_op!(control::lldt));
            plain(b, op)
        }
        Ltr_rm16 | Ltr_r32m16 | Ltr_r64m16 => {
            let op = source16(b, insn, 0, called_op!(control::ltr));
            plain(b, op)
        }
        Invlpg_m => {
            let op = with_memory(b, insn, called_op!(control::invlpg), 1, false);
            plain(b, op)
        }
        _ if matches!(insn.mnemonic(), Mnemonic::Lgdt | Mnemonic::Lidt | Mnemonic::Sgdt | Mnemonic::Sidt) => lower_table(insn, b),
        _ => None,
    }
}

fn lower_port(insn: &Instruction, b: &mut Builder) -> Option<Flow> {
    use Code::*;
    let (size, input, dx) = match insn.code() {
        In_AL_imm8 => (1, true, false),
        In_AX_imm8 => (2, true, false),
        In_EAX_imm8 => (4, true, false),
        In_AL_DX => (1, true, true),
        In_AX_DX => (2, true, true),
        In_EAX_DX => (4, true, true),
        Out_imm8_AL => (1, false, false),
        Out_imm8_AX => (2, false, false),
        Out_imm8_EAX => (4, false, false),
        Out_DX_AL => (1, false, true),
        Out_DX_AX => (2, false, true),
        Out_DX_EAX => (4, false, true),
        Insb_m8_DX | Insw_m16_DX | Insd_m32_DX | Outsb_DX_m8 | Outsw_DX_m16 | Outsd_DX_m32 => {
            return lower_port_string(insn, b);
        }
        _ => return None,
    };
    let handler = if input { called_op!(port::input) } else { called_op!(port::output) };
    called(b, handler, |op| {
        (op.src, op.dst) = (size, u8::from(dx));
        if !dx {
            op.imm = u64::from(insn.immediate8());
        }
    })
}

fn lower_port_string(insn: &Instruction, b: &mut Builder) -> Option<Flow> {
    use Code::*;
    let (size, out) = match insn.code() {
        Insb_m8_DX => (1, false),
        Insw_m16_DX => (2, false),
        Insd_m32_DX => (4, false),
        Outsb_DX_m8 => (1, true),
        Outsw_DX_m16 => (2, true),
        _ => (4, true),
    };
    let kind = insn.op_kind(if out { 1 } else { 0 });
    let address_bytes: u64 = match kind {
        OpKind::MemorySegSI | OpKind::MemoryESDI => 2,
        OpKind::MemorySegESI | OpKind::MemoryESEDI => 4,
        _ => 8,
    };
    let which = if out { segment::index_of(insn.memory_segment())? } else { super::cpu::ES };
    let rep = insn.has_rep_prefix() || insn.has_repne_prefix();
    leaving(b, leaving_op!(port::string), |op| {
        op.src = size;
        op.imm = (which as u64) << 16 | address_bytes << 8;
        if rep {
            op.imm |= port::REP;
        }
        if out {
            op.imm |= port::OUTS;
        }
    })
}

fn lower_rest(insn: &Instruction, b: &mut Builder) -> Option<Flow> {
    use Code::*;
    match insn.code() {
        Cli => called(b, called_op!(flagops::cli), |_| ()),
        Sti => called(b, called_op!(flagops::sti), |_| ()),
        Pushfw => called(b, called_op!(flagops::pushf), |op| op.src = 2),
        Pushfd => called(b, called_op!(flagops::pushf), |op| op.src = 4),
        Pushfq => called(b, called_op!(flagops::pushf), |op| op.src = 8),
        Popfw => called(b, called_op!(flagops::popf), |op| op.src = 2),
        Popfd => called(b, called_op!(flagops::popf), |op| op.src = 4),
        Popfq => called(b, called_op!(flagops::popf), |op| op.src = 8),
        Clac => called(b, called_op!(flagops::set_access_check), |_| ()),
        Stac => called(b, called_op!(flagops::set_access_check), |op| op.imm = 1),
        Cpuid => called(b, called_op!(cpuid::cpuid), |_| ()),
        Rdtsc => called(b, called_op!(control::rdtsc), |_| ()),
        Rdtscp => called(b, called_op!(control::rdtsc), |op| op.imm = 1),
        Rdpmc => called(b, called_op!(control::rdpmc), |_| ()),
        Rdmsr => called(b, called_op!(msr::rdmsr), |_| ()),
        Wrmsr => called(b, called_op!(msr::wrmsr), |_| ()),
        Rdrand_r16 | Rdrand_r32 | Rdrand_r64 | Rdseed_r16 | Rdseed_r32 | Rdseed_r64 => {
            let r = insn.op0_register();
            called(b, called_op!(control::random), |op| (op.dst, op.src) = (number(r), r.size() as u8))
        }
        Swapgs => called(b, called_op!(syscall::swapgs), |_| ()),
        Rdfsbase_r32 | Rdfsbase_r64 | Rdgsbase_r32 | Rdgsbase_r64 => lower_base(insn, b, called_op!(syscall::read_base)),
        Wrfsbase_r32 | Wrfsbase_r64 | Wrgsbase_r32 | Wrgsbase_r64 => lower_base(insn, b, called_op!(syscall::write_base)),
        Vmcall | Vmmcall => called(b, called_op!(syscall::hypercall), |_| ()),
        Xgetbv => called(b, called_op!(control::xgetbv), |_| ()),
        Xsetbv => called(b, called_op!(control::xsetbv), |_| ()),
        Wbinvd | Wbnoinvd | Invd => called(b, called_op!(control::privileged_nop), |_| ()),
        Clflush_m8 | Clflushopt_m8 => {
            let op = with_memory(b, insn, called_op!(control::flush_line), 1, false);
            plain(b, op)
        }
        _ if matches!(insn.mnemonic(), Mnemonic::Mfence | Mnemonic::Lfence | Mnemonic::Sfence) => {
            called(b, called_op!(control::nop), |_| ())
        }
        _ => None,
    }
}

/// Lowers RDFSBASE and similar: the register, its bytes, and whether FS or GS.
fn lower_base(insn: &Instruction, b: &mut Builder, handler: Handler) -> Option<Flow> {
    let r = insn.op0_register();
    let gs = matches!(insn.mnemonic(), Mnemonic::Rdgsbase | Mnemonic::Wrgsbase);
    called(b, handler, |op| (op.dst, op.src, op.imm) = (number(r), r.size() as u8, u64::from(gs)))
}
