//! Two simple instructions in one step.
//!
//! The jump to the next instruction is most of what an interpreter pays for an instruction. Where two instructions that
//! follow each other are both [`Half`]s, the first one's op gets a handler that does both and continues after them. The
//! second op stays as it is. So if the access of the first half misses the TLB, its own slow handler does it and
//! continues with the second op; and if the second half misses, its own handler does it.
//!
//! Neither an interrupt nor an exception can see the difference: chains are left between blocks, and where an access
//! faults, the op that it belongs to says where the instruction is.
#![allow(unsafe_code)]

use iced_x86::{Instruction, Mnemonic as M};

use super::alu::{Add, Alu, And, Or, Sub, Xor};
use super::branch::taken;
use super::half::{
    AluImm, AluReg, Compare, Extend, ExtendSign, Half, Lea, Load, LoadExtend, Move, Multiply, Pop, Push, Shift, Store, Zero,
};
use super::operand::{in_memory, is_general, is_immediate, size};
use super::shift::{self, SHL, SHR};
use super::word::{Bd, Full, Int, get, set};
use crate::hypervisor::soft::cpu::{Cpu, ZERO};
use crate::hypervisor::soft::flags::LazyFlags;
use crate::hypervisor::soft::int::word::by_cc;
use crate::hypervisor::soft::op::{Handler, Op, enter, next};

/// Runs the op at `op` and the one after it, which is not the last of the block.
unsafe extern "C" fn pair<A: Half, B: Half>(cpu: *mut Cpu, op: *const Op) -> *const Op {
    // SAFETY: handlers get live, unaliased pointers; the builder gives this handler only to the first of two ops that
    // both continue.
    unsafe {
        if let Err(slow) = A::run(cpu, op) {
            return slow(cpu, op);
        }
        let second = op.add(1);
        if let Err(slow) = B::run(cpu, second) {
            return slow(cpu, second);
        }
        next(cpu, second)
    }
}

/// Declares [`Kind`] and the table of pairs.
macro_rules! kinds {
    ($($name:ident $half:ty;)*) => {
        /// The kinds of halves: they cover most of the instructions of compiled code.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[allow(missing_docs)]
        pub enum Kind { $($name,)* }

        fn before<A: Half>(second: Kind) -> Handler {
            match second { $(Kind::$name => pair::<A, $half>,)* }
        }
        /// Returns the handler that does both.
        pub fn handler(first: Kind, second: Kind) -> Handler {
            match first { $(Kind::$name => before::<$half>(second),)* }
        }
        #[cfg(test)]
        const KINDS: &[Kind] = &[$(Kind::$name,)*];
    };
}
kinds! {
    Mov64 Move<u64>;
    Mov32 Move<u32>;
    Zero32 Zero<u32, false>;
    Movzx32From8 Extend<u8, u32>;
    Movsxd ExtendSign<u32, u64>;
    LeaBase Lea<u64, Bd>;
    LeaIndex Lea<u64, Full>;
    Add64 AluReg<Add, u64, false>;
    Sub64 AluReg<Sub, u64, false>;
    Add64WithFlags AluReg<Add, u64, true>;
    Sub64WithFlags AluReg<Sub, u64, true>;
    Add32 AluReg<Add, u32, false>;
    And32 AluReg<And, u32, false>;
    Or32 AluReg<Or, u32, false>;
    Xor32 AluReg<Xor, u32, false>;
    Add64Imm AluImm<Add, u64, false>;
    Add32Imm AluImm<Add, u32, false>;
    Cmp64 Compare<Sub, u64>;
    Imul64 Multiply<u64, false>;
    Shl64 Shift<u64, SHL>;
    Shr64 Shift<u64, SHR>;
    Shr32 Shift<u32, SHR>;
    Rol32 Shift<u32, { shift::ROL }>;
    Ror32 Shift<u32, { shift::ROR }>;
    Load64Base Load<u64, Bd>;
    Load64Index Load<u64, Full>;
    Load32Base Load<u32, Bd>;
    Load8Base LoadExtend<u8, u32, Bd>;
    Store64Base Store<u64, Bd>;
    Store64Index Store<u64, Full>;
    Store32Base Store<u32, Bd>;
    PushReg Push;
    PopReg Pop;
}

/// Returns the kind of half that the instruction is, which was lowered in 64-bit mode to `op` alone. With `quiet` the
/// half must leave the flags unchanged.
pub fn kind_of(insn: &Instruction, op: &Op, quiet: bool) -> Option<Kind> {
    if !is_general(insn) || insn.op_count() == 0 {
        return None;
    }
    let bytes = size(insn, 0);
    let base_only = op.index == ZERO as u8;
    let by_shape = |base, index| Some(if base_only { base } else { index });
    let registers = insn.op_count() == 2 && !in_memory(insn, 0) && !in_memory(insn, 1) && !is_immediate(insn, 1);
    let from_memory = insn.op_count() == 2 && in_memory(insn, 1);
    let to_memory = insn.op_count() == 2 && in_memory(insn, 0) && !is_immediate(insn, 1);
    let by_immediate = insn.op_count() == 2 && !in_memory(insn, 0) && is_immediate(insn, 1);
    let same = registers && insn.op0_register() == insn.op1_register();
    match (insn.mnemonic(), bytes) {
        (M::Mov, 8) if registers => Some(Kind::Mov64),
        (M::Mov, 4) if registers => Some(Kind::Mov32),
        (M::Mov, 8) if from_memory => by_shape(Kind::Load64Base, Kind::Load64Index),
        (M::Mov, 4) if from_memory && base_only => Some(Kind::Load32Base),
        (M::Mov, 8) if to_memory => by_shape(Kind::Store64Base, Kind::Store64Index),
        (M::Mov, 4) if to_memory && base_only => Some(Kind::Store32Base),
        (M::Movzx, 4) if registers && size(insn, 1) == 1 => Some(Kind::Movzx32From8),
        (M::Movzx, 4) if from_memory && base_only && size(insn, 1) == 1 => Some(Kind::Load8Base),
        (M::Movsxd, 8) if registers => Some(Kind::Movsxd),
        // An address that needs more than the op's own fields, or is truncated, belongs to a called op.
        (M::Lea, 8) if op.imm == 0 && op.aux == 0 => by_shape(Kind::LeaBase, Kind::LeaIndex),
        (M::Xor | M::Sub, 4) if same && quiet => Some(Kind::Zero32),
        (M::Xor | M::Sub, _) if same => None,
        (M::Add, 8) if registers => Some(if quiet { Kind::Add64 } else { Kind::Add64WithFlags }),
        (M::Sub, 8) if registers => Some(if quiet { Kind::Sub64 } else { Kind::Sub64WithFlags }),
        (M::Add, 8) if by_immediate && quiet => Some(Kind::Add64Imm),
        (M::Add, 4) if by_immediate && quiet => Some(Kind::Add32Imm),
        (M::Add, 4) if registers && quiet => Some(Kind::Add32),
        (M::And, 4) if registers && quiet => Some(Kind::And32),
        (M::Or, 4) if registers && quiet => Some(Kind::Or32),
        (M::Xor, 4) if registers && quiet => Some(Kind::Xor32),
        (M::Cmp, 8) if registers => Some(Kind::Cmp64),
        (M::Imul, 8) if registers && quiet => Some(Kind::Imul64),
        (M::Shl | M::Sal, 8) if by_immediate && quiet => Some(Kind::Shl64),
        (M::Shr, 8) if by_immediate && quiet => Some(Kind::Shr64),
        (M::Shr, 4) if by_immediate && quiet => Some(Kind::Shr32),
        (M::Rol, 4) if by_immediate && quiet => Some(Kind::Rol32),
        (M::Ror, 4) if by_immediate && quiet => Some(Kind::Ror32),
        (M::Push, 8) if insn.op_count() == 1 && !in_memory(insn, 0) && !is_immediate(insn, 0) => Some(Kind::PushReg),
        (M::Pop, 8) if insn.op_count() == 1 && !in_memory(insn, 0) => Some(Kind::PopReg),
        _ => None,
    }
}

/// Executes an addition or subtraction of an immediate, and the Jcc after it: the end of a counted loop.
unsafe extern "C" fn step_jcc<O: Alu, T: Int, const C: u8>(cpu: *mut Cpu, op: *const Op) -> *const Op {
    // SAFETY: handlers get live, unaliased pointers; the lowering puts this handler only before a Jcc.
    unsafe {
        let b = T::cut((*op).imm);
        let r = O::compute::<T, true>(cpu, get::<T>(cpu, (*op).dst), b);
        set::<T>(cpu, (*op).dst, r);
        let branch = op.add(1);
        let flags = LazyFlags { kind: O::KIND as u32 | T::LOG2, b: b.wide(), result: r.wide() };
        if flags.condition(C) { taken(cpu, branch) } else { enter(cpu, branch.add(1)) }
    }
}

/// Returns the handler of ADD or SUB (`sub`) of a register of `bytes` and an immediate that also does the Jcc after it.
pub fn step_handler(sub: bool, bytes: u32, cc: u8) -> Handler {
    match (sub, bytes) {
        (false, 4) => by_cc!(cc, C => step_jcc::<Add, u32, C>),
        (false, _) => by_cc!(cc, C => step_jcc::<Add, u64, C>),
        (true, 4) => by_cc!(cc, C => step_jcc::<Sub, u32, C>),
        (true, _) => by_cc!(cc, C => step_jcc::<Sub, u64, C>),
    }
}

#[cfg(test)]
mod tests {
    use iced_x86::{Decoder, DecoderOptions};

    use super::*;
    use crate::hypervisor::soft::cpu::{RIP, rflags};
    use crate::hypervisor::soft::rig::{CODE, DATA, MEMORY, Rig, STACK, Stop};

    /// An instruction of each kind. RSI is the base of all memory operands, RDI an index.
    const EXAMPLES: &[(&[u8], Kind)] = &[
        (&[0x48, 0x89, 0xc8], Kind::Mov64),                    // mov rax, rcx
        (&[0x89, 0xd1], Kind::Mov32),                          // mov ecx, edx
        (&[0x31, 0xdb], Kind::Zero32),                         // xor ebx, ebx
        (&[0x0f, 0xb6, 0xc6], Kind::Movzx32From8),             // movzx eax, dh
        (&[0x48, 0x63, 0xc8], Kind::Movsxd),                   // movsxd rcx, eax
        (&[0x48, 0x8d, 0x43, 0x10], Kind::LeaBase),            // lea rax, [rbx+0x10]
        (&[0x48, 0x8d, 0x44, 0x8a, 0xf0], Kind::LeaIndex),     // lea rax, [rdx+rcx*4-0x10]
        (&[0x48, 0x01, 0xc1], Kind::Add64),                    // add rcx, rax
        (&[0x48, 0x29, 0xca], Kind::Sub64),                    // sub rdx, rcx
        (&[0x01, 0xd8], Kind::Add32),                          // add eax, ebx
        (&[0x21, 0xc1], Kind::And32),                          // and ecx, eax
        (&[0x09, 0xda], Kind::Or32),                           // or edx, ebx
        (&[0x31, 0xc3], Kind::Xor32),                          // xor ebx, eax
        (&[0x48, 0x83, 0xc0, 0x85], Kind::Add64Imm),           // add rax, -123
        (&[0x83, 0xc1, 0x7f], Kind::Add32Imm),                 // add ecx, 127
        (&[0x48, 0x39, 0xd0], Kind::Cmp64),                    // cmp rax, rdx
        (&[0x48, 0x0f, 0xaf, 0xd1], Kind::Imul64),             // imul rdx, rcx
        (&[0x48, 0xc1, 0xe1, 0x07], Kind::Shl64),              // shl rcx, 7
        (&[0x48, 0xc1, 0xe8, 0x21], Kind::Shr64),              // shr rax, 33
        (&[0xc1, 0xea, 0x03], Kind::Shr32),                    // shr edx, 3
        (&[0xc1, 0xc0, 0x0d], Kind::Rol32),                    // rol eax, 13
        (&[0xc1, 0xc9, 0x06], Kind::Ror32),                    // ror ecx, 6
        (&[0x48, 0x8b, 0x46, 0x18], Kind::Load64Base),         // mov rax, [rsi+0x18]
        (&[0x48, 0x8b, 0x0c, 0xfe], Kind::Load64Index),        // mov rcx, [rsi+rdi*8]
        (&[0x8b, 0x56, 0x04], Kind::Load32Base),               // mov edx, [rsi+4]
        (&[0x0f, 0xb6, 0x8e, 0, 0x10, 0, 0], Kind::Load8Base), // movzx ecx, byte [rsi+0x1000]
        (&[0x48, 0x89, 0x46, 0x20], Kind::Store64Base),        // mov [rsi+0x20], rax
        (&[0x48, 0x89, 0x0c, 0xfe], Kind::Store64Index),       // mov [rsi+rdi*8], rcx
        (&[0x89, 0x9e, 0xfe, 0x0f, 0, 0], Kind::Store32Base),  // mov [rsi+0xffe], ebx: across two pages
        (&[0x53], Kind::PushReg),                              // push rbx
        (&[0x5a], Kind::PopReg),                               // pop rdx
    ];
    /// `test r15, r15`: after it, the flags of the code before it are no longer read.
    const NEW_FLAGS: &[u8] = &[0x4d, 0x85, 0xff];

    fn kind(code: &[u8], quiet: bool) -> Option<Kind> {
        let insn = Decoder::with_ip(64, code, 0, DecoderOptions::NONE).decode();
        let mut b =
            crate::hypervisor::soft::lower::decode_block(code, 0, crate::hypervisor::soft::lower::Mode(1), 0, false, false)
                .expect("a whole instruction");
        kind_of(&insn, &b.ops.swap_remove(0), quiet)
    }

    fn rig() -> Rig {
        let mut rig = Rig::user();
        rig.write(DATA, &(0..0x2000u32).map(|i| (i * 37 >> 3) as u8).collect::<Vec<_>>());
        rig.write(STACK, &[0x81; 16]);
        rig.cpu.regs[..4].copy_from_slice(&[0x8123_4567_89ab_cdef, 0xfedc_ba98_7654_3210, 0x7fff_ffff_8000_0001, 0x11]);
        (rig.cpu.regs[6], rig.cpu.regs[7]) = (DATA, 5);
        rig
    }

    fn state(rig: &Rig) -> (Vec<u64>, u64, Vec<u8>, Vec<u8>) {
        (rig.cpu.regs[..16].to_vec(), rig.cpu.rflags_value(), rig.read(DATA, 0x2000), rig.read(STACK - 16, 32))
    }

    #[test]
    fn there_is_an_example_of_every_kind() {
        for &(code, expected) in EXAMPLES {
            assert_eq!(kind(code, true), Some(expected), "{code:02x?}");
        }
        let loud = [kind(&[0x48, 0x01, 0xc1], false), kind(&[0x48, 0x29, 0xca], false)];
        assert_eq!(loud, [Some(Kind::Add64WithFlags), Some(Kind::Sub64WithFlags)]);
        let shown = |kind: &Kind| EXAMPLES.iter().any(|(_, k)| k == kind) || loud.contains(&Some(*kind));
        assert!(KINDS.iter().all(shown));
    }

    #[test]
    fn a_pair_does_what_its_halves_do_one_after_the_other() {
        for behind in [&[][..], NEW_FLAGS] {
            for (first, a) in EXAMPLES {
                for (second, b) in EXAMPLES {
                    let (mut together, mut apart) = (rig(), rig());
                    // The first time every access misses the TLB, the second time none does.
                    for time in 1..=2 {
                        assert_eq!(together.run_code(&[first, second, behind].concat()), Stop::End);
                        for code in [first, second, behind] {
                            assert_eq!(apart.run_code(code), Stop::End);
                        }
                        assert_eq!(state(&together), state(&apart), "{a:?} and {b:?}, time {time}");
                    }
                }
            }
        }
    }

    #[test]
    fn an_access_that_faults_leaves_the_other_half_done_or_not_begun() {
        let outside = MEMORY + 0x5000;
        let accesses = EXAMPLES.iter().filter(|(_, kind)| {
            let name = format!("{kind:?}");
            name.starts_with("Load") || name.starts_with("Store")
        });
        let add: &[u8] = &[0x48, 0x01, 0xd3]; // add rbx, rdx
        for (access, kind) in accesses {
            for add_first in [true, false] {
                let mut rig = rig();
                rig.cpu.regs[6] = outside;
                let code = if add_first { [add, access].concat() } else { [access, add].concat() };
                let before = rig.cpu.regs[3];
                let Stop::Exception(e) = rig.run_code(&code) else { panic!("{kind:?} goes through") };
                assert_eq!(e.vector, 14, "{kind:?}");
                assert_eq!(rig.cpu.regs[RIP], CODE + if add_first { add.len() as u64 } else { 0 }, "{kind:?}");
                let after = if add_first { before.wrapping_add(rig.cpu.regs[2]) } else { before };
                assert_eq!(rig.cpu.regs[3], after, "{kind:?}");
            }
        }
    }

    #[test]
    fn a_store_to_the_code_that_follows_it_is_seen_there() {
        // mov rax, rcx; mov [rsi+0x20], rax; what the store changes: mov edx, 1 becomes mov edx, 2.
        let mut rig = rig();
        let code = [0x48, 0x89, 0xc8, 0x48, 0x89, 0x46, 0x20, 0x90, 0xba, 1, 0, 0, 0, 0x90, 0x90, 0x90];
        rig.cpu.regs[1] = 0x9090_9000_0000_02ba;
        rig.cpu.regs[6] = CODE + 8 - 0x20;
        assert_eq!(rig.run_code(&code), Stop::End);
        assert_eq!(rig.cpu.regs[2], 2);
    }

    #[test]
    fn a_step_and_its_jump_do_what_they_do_apart() {
        let values = [0u64, 1, 2, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff, i64::MAX as u64, i64::MIN as u64, u64::MAX];
        let steps: [&[u8]; 4] = [&[0x83, 0xc0, 1], &[0x83, 0xe8, 1], &[0x48, 0x83, 0xc0, 0xff], &[0x48, 0x83, 0xe8, 0xff]];
        for cc in 0..16u8 {
            // jcc over mov cl, 1
            let jump = [0x70 | cc, 2, 0xb1, 1];
            for step in steps {
                for value in values {
                    let (mut together, mut apart) = (rig(), rig());
                    (together.cpu.regs[0], apart.cpu.regs[0]) = (value, value);
                    assert_eq!(together.run_code(&[step, &jump].concat()), Stop::End);
                    assert_eq!((apart.run_code(step), apart.run_code(&jump)), (Stop::End, Stop::End));
                    assert_eq!(state(&together), state(&apart), "{step:02x?}, condition {cc}, {value:#x}");
                    assert_eq!(together.cpu.rflags_value() & rflags::ARITH, apart.cpu.rflags_value() & rflags::ARITH);
                }
            }
        }
    }
}
