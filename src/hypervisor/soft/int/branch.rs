//! Jumps, calls and returns, the links between blocks, and the jump cache's use.
//!
//! SDM vol. 2 (Jcc, JMP, CALL, RET, LOOPcc, JCXZ). The hot handlers are for 64-bit mode; outside of it a jump must
//! check a limit and truncate its offset, and goes through the jump cache.
//!
//! The fields of a branch op: `disp` what is added to RIP (relative to the block's start) when the branch is taken,
//! `imm` the op to continue with, `index` the block's instructions, `aux` the immediate of a merged compare.
#![allow(unsafe_code)]

use iced_x86::{Instruction, Mnemonic as M, OpKind};

use super::alu::{ANY, Alu, And, Sub, holds};
use super::word::{Addr, Full, Int, Path, Slow, get, load_bytes, reg, set_reg};
use super::{operand, pair, stack};
use crate::hypervisor::soft::cpu::{CS, Cpu, Fault, Leave, RIP};
use crate::hypervisor::soft::int::word::{by_addr, by_cc, by_width, soft_read, soft_write};
use crate::hypervisor::soft::lower::{Builder, Fixup, Flow, Mode};
use crate::hypervisor::soft::op::{Handler, Op, enter, leave_between_blocks, next};
use crate::hypervisor::soft::{flags::FlagKind, mmu};

/// Marks in `scale` of a jump that links itself, until it is linked.
const SELF_LINK: u8 = 1;

/// Links the branch at `from` to `entry`.
///
/// # Safety
/// Both are ops of live blocks of one page, `from` is what [`Cpu::link_from`] was set to, and no chain runs.
pub unsafe fn set_link(from: *mut Op, entry: *const Op) {
    // SAFETY: the caller's promise.
    unsafe {
        (*from).imm = entry as u64;
        if (*from).scale == SELF_LINK {
            (*from).handler = jump;
        }
    }
}

/// Continues at RIP, through the jump cache.
///
/// # Safety
/// `cpu` is live, in 64-bit mode, and everything of the block has been done.
#[inline(always)]
unsafe fn look_up(cpu: *mut Cpu, op: *const Op) -> *const Op {
    // SAFETY: what the jump cache holds are live blocks: it is dropped whenever blocks are.
    unsafe {
        let rip = (*cpu).regs[RIP];
        match (*cpu).jumps.find(rip, (*cpu).jump_tag(rip)) {
            Some(entry) => enter(cpu, entry),
            None => leave_between_blocks(cpu, op),
        }
    }
}

/// Takes the branch `op`.
///
/// # Safety
/// `cpu` and `op` are those of a handler.
#[inline(always)]
pub unsafe fn taken(cpu: *mut Cpu, op: *const Op) -> *const Op {
    // SAFETY: `imm` of a branch is a live op of this page (a link or the branch's own stub).
    unsafe {
        (*cpu).regs[RIP] = (*cpu).regs[RIP].wrapping_add((*op).disp as i64 as u64);
        (*cpu).budget -= i64::from((*op).index);
        if (*cpu).budget <= 0 {
            return leave_between_blocks(cpu, op);
        }
        enter(cpu, (*op).imm as *const Op)
    }
}

macro_rules! handlers {
    ($($(#[$doc:meta])* fn $name:ident [$($g:tt)*] ($cpu:ident, $op:ident) $body:block)*) => {$(
        $(#[$doc])*
        pub unsafe extern "C" fn $name<$($g)*>($cpu: *mut Cpu, $op: *const Op) -> *const Op {
            // SAFETY: handlers get live, unaliased pointers and an op that their lowering made; a conditional branch
            // is never the last op of its block.
            unsafe { $body }
        }
    )*};
}

handlers! {
    /// Executes a linked jump.
    fn jump [] (cpu, op) { taken(cpu, op) }

    /// Executes a jump inside the page that is not linked yet.
    fn jump_unlinked [] (cpu, op) {
        (*cpu).regs[RIP] = (*cpu).regs[RIP].wrapping_add((*op).disp as i64 as u64);
        (*cpu).budget -= i64::from((*op).index);
        (*cpu).link_from = op.cast_mut();
        (*cpu).link_page = (*op).imm as u32;
        (*cpu).leave = Leave::Link;
        std::ptr::null()
    }
    /// Executes a jump to another page.
    fn jump_across [] (cpu, op) {
        (*cpu).regs[RIP] = (*cpu).regs[RIP].wrapping_add((*op).disp as i64 as u64);
        (*cpu).budget -= i64::from((*op).index);
        if (*cpu).budget <= 0 {
            return leave_between_blocks(cpu, op);
        }
        look_up(cpu, op)
    }
    /// Leaves an unlinked branch and asks for the link.
    fn link_stub [] (cpu, op) {
        (*cpu).link_from = (*op).imm as *mut Op;
        (*cpu).link_page = (*op).disp as u32;
        (*cpu).leave = Leave::Link;
        std::ptr::null()
    }
    /// Leaves a branch to another page.
    fn look_up_stub [] (cpu, op) { look_up(cpu, op) }

    /// Executes Jcc with flags of kind `K`.
    fn jcc [const C: u8, const K: u32] (cpu, op) {
        if holds::<C, K>(cpu) { taken(cpu, op) } else { next(cpu, op) }
    }
    /// Executes a compare of two registers and Jcc.
    fn compare_rr_jcc [O: Alu, T: Int, const C: u8] (cpu, op) {
        let (a, b) = (get::<T>(cpu, (*op).dst), get::<T>(cpu, (*op).src));
        O::compute::<T, true>(cpu, a, b);
        if decide::<O, T, C>(cpu, a, b) { taken(cpu, op) } else { next(cpu, op) }
    }
    /// Executes a compare of a register and an immediate, and Jcc.
    fn compare_ri_jcc [O: Alu, T: Int, const C: u8] (cpu, op) {
        let (a, b) = (get::<T>(cpu, (*op).dst), T::cut((*op).aux as i32 as i64 as u64));
        O::compute::<T, true>(cpu, a, b);
        if decide::<O, T, C>(cpu, a, b) { taken(cpu, op) } else { next(cpu, op) }
    }

    /// Executes CALL rel32 in 64-bit mode.
    fn call [P: Path] (cpu, op) {
        let sp = (*cpu).regs[4].wrapping_sub(8);
        let back = (*op).next_rip(&*cpu);
        soft_write!(u64, P, cpu, op, sp, back, call::<Slow>);
        (*cpu).regs[4] = sp;
        if P::SLOW && (*cpu).leave_after_op {
            (*cpu).regs[RIP] = (*cpu).regs[RIP].wrapping_add((*op).disp as i64 as u64);
            (*cpu).budget -= i64::from((*op).index);
            return leave_between_blocks(cpu, op);
        }
        taken(cpu, op)
    }
    /// Executes RET in 64-bit mode. `imm` is the number of bytes to release in addition.
    fn ret [P: Path] (cpu, op) {
        let sp = (*cpu).regs[4];
        let target = soft_read!(u64, P, cpu, op, sp, ret::<Slow>);
        if !mmu::is_canonical(target) {
            return not_canonical(cpu, op);
        }
        (*cpu).regs[4] = sp.wrapping_add(8).wrapping_add((*op).imm);
        arrive::<P>(cpu, op, target)
    }
    /// Executes JMP r64.
    fn jump_r [] (cpu, op) {
        let target = get::<u64>(cpu, (*op).dst);
        if !mmu::is_canonical(target) {
            return not_canonical(cpu, op);
        }
        arrive::<super::word::Fast>(cpu, op, target)
    }
    /// Executes JMP m64. The block's number of instructions is in `aux`, since `index` belongs to the address.
    fn jump_m [A: Addr, P: Path] (cpu, op) {
        let addr = A::addr(cpu, op);
        let target = soft_read!(u64, P, cpu, op, addr, jump_m::<Full, Slow>);
        if !mmu::is_canonical(target) {
            return not_canonical(cpu, op);
        }
        arrive::<P>(cpu, op, target)
    }
    /// Executes CALL r64.
    fn call_r [P: Path] (cpu, op) {
        let target = get::<u64>(cpu, (*op).dst);
        if !mmu::is_canonical(target) {
            return not_canonical(cpu, op);
        }
        let sp = (*cpu).regs[4].wrapping_sub(8);
        let back = (*op).next_rip(&*cpu);
        soft_write!(u64, P, cpu, op, sp, back, call_r::<Slow>);
        (*cpu).regs[4] = sp;
        arrive::<P>(cpu, op, target)
    }
}

/// Evaluates the condition from the operands of a compare.
#[inline(always)]
unsafe fn decide<O: Alu, T: Int, const C: u8>(cpu: *const Cpu, a: T, b: T) -> bool {
    if matches!(O::KIND, FlagKind::Sub) {
        let holds = match C >> 1 {
            1 => a < b,
            2 => a == b,
            3 => a <= b,
            6 => a.signed() < b.signed(),
            7 => a.signed() <= b.signed(),
            4 => T::cut(a.wide().wrapping_sub(b.wide())).signed() < 0,
            // SAFETY: the caller's promise of a live vCPU.
            _ => unsafe { (*cpu).flags.condition(C & !1) },
        };
        return holds != (C & 1 != 0);
    }
    let r = T::cut(a.wide() & b.wide());
    let holds = match C >> 1 {
        0 | 1 => false,
        2 | 3 => r.wide() == 0,
        4 | 6 => r.signed() < 0,
        5 => (r.wide() as u8).count_ones() & 1 == 0,
        _ => r.signed() <= 0,
    };
    holds != (C & 1 != 0)
}

/// Ends the block of an indirect branch, whose number of instructions is in `aux`.
#[inline(always)]
unsafe fn arrive<P: Path>(cpu: *mut Cpu, op: *const Op, target: u64) -> *const Op {
    // SAFETY: the caller is a handler.
    unsafe {
        (*cpu).regs[RIP] = target;
        (*cpu).budget -= i64::from((*op).aux);
        if (*cpu).budget <= 0 || (P::SLOW && (*cpu).leave_after_op) {
            return leave_between_blocks(cpu, op);
        }
        look_up(cpu, op)
    }
}

#[cold]
#[inline(never)]
unsafe extern "C" fn not_canonical(cpu: *mut Cpu, op: *const Op) -> *const Op {
    // SAFETY: called by handlers with their pointers.
    unsafe {
        (*cpu).general_protection(0);
        crate::hypervisor::soft::op::leave_with_exception(cpu, op)
    }
}

/// Makes a block-ending handler of a function that may set [`Cpu::next_rip`] to where the jump goes, and changes no
/// mode. It continues through the jump cache.
macro_rules! jumping_op {
    ($body:expr) => {{
        #[inline(never)]
        fn jumping_body(cpu: &mut Cpu, op: &Op) -> Result<(), Fault> {
            $body(cpu, op)
        }
        unsafe extern "C" fn handler(cpu: *mut Cpu, op: *const Op) -> *const Op {
            // SAFETY: handlers get live, unaliased pointers; the body's borrow ends before the next handler runs.
            unsafe {
                (*cpu).next_rip = (*op).next_rip(&*cpu);
                if jumping_body(&mut *cpu, &*op).is_err() {
                    return $crate::hypervisor::soft::op::leave_with_exception(cpu, op);
                }
                arrive_anywhere(cpu, op)
            }
        }
        handler as Handler
    }};
}

#[inline(never)]
unsafe extern "C" fn arrive_anywhere(cpu: *mut Cpu, op: *const Op) -> *const Op {
    // SAFETY: called by handlers with their pointers; jump-cache entries are live.
    unsafe {
        let rip = (*cpu).next_rip;
        (*cpu).regs[RIP] = rip;
        (*cpu).budget -= i64::from((*op).aux);
        if (*cpu).budget <= 0 || (*cpu).leave_after_op {
            return leave_between_blocks(cpu, op);
        }
        let long = (*cpu).mode.is_64bit();
        let linear = if long { rip } else { (*cpu).segs[CS].base.wrapping_add(rip) & 0xffff_ffff };
        match (*cpu).jumps.find(linear, (*cpu).jump_tag(linear)) {
            Some(entry) => enter(cpu, entry),
            None => leave_between_blocks(cpu, op),
        }
    }
}

/// Checks a near branch's target for operand size `bytes` and truncates it. Raises #GP(0) if it is not valid.
fn checked_target(cpu: &mut Cpu, target: u64, bytes: u32) -> Result<u64, Fault> {
    if cpu.mode.is_64bit() {
        let target = if bytes == 2 { target & 0xffff } else { target };
        return if mmu::is_canonical(target) { Ok(target) } else { Err(cpu.general_protection(0)) };
    }
    let target = target & if bytes == 2 { 0xffff } else { 0xffff_ffff };
    if target > u64::from(cpu.segs[CS].limit) {
        return Err(cpu.general_protection(0));
    }
    Ok(target)
}

fn go(cpu: &mut Cpu, target: u64, op: &Op) -> Result<(), Fault> {
    cpu.next_rip = checked_target(cpu, target, u32::from(op.scale))?;
    Ok(())
}
fn relative(cpu: &Cpu, op: &Op) -> u64 {
    cpu.regs[RIP].wrapping_add(op.imm)
}

// The called branches: `imm` is the distance from the block's start, `scale` the operand's bytes, `dst` the condition
// or the register.
fn slow_jmp(cpu: &mut Cpu, op: &Op) -> Result<(), Fault> {
    go(cpu, relative(cpu, op), op)
}
fn slow_jcc(cpu: &mut Cpu, op: &Op) -> Result<(), Fault> {
    if cpu.flags.condition(op.dst) { go(cpu, relative(cpu, op), op) } else { Ok(()) }
}
fn slow_call(cpu: &mut Cpu, op: &Op) -> Result<(), Fault> {
    let target = checked_target(cpu, relative(cpu, op), u32::from(op.scale))?;
    call_to(cpu, op, target)
}
fn call_to(cpu: &mut Cpu, op: &Op, target: u64) -> Result<(), Fault> {
    let back = cpu.next_rip;
    stack::push_value(cpu, u32::from(op.scale), back)?;
    cpu.next_rip = target;
    Ok(())
}
fn slow_jump_r(cpu: &mut Cpu, op: &Op) -> Result<(), Fault> {
    let target = reg(cpu, op.dst, u32::from(op.scale));
    go(cpu, target, op)
}
fn slow_call_r(cpu: &mut Cpu, op: &Op) -> Result<(), Fault> {
    let target = reg(cpu, op.dst, u32::from(op.scale));
    let target = checked_target(cpu, target, u32::from(op.scale))?;
    call_to(cpu, op, target)
}
// With a memory operand `scale` is the address's, so the operand's bytes are in `dst`.
fn slow_jump_m(cpu: &mut Cpu, op: &Op) -> Result<(), Fault> {
    let addr = op.addr(cpu);
    let target = load_bytes(cpu, addr, u32::from(op.dst))?;
    cpu.next_rip = checked_target(cpu, target, u32::from(op.dst))?;
    Ok(())
}
fn slow_call_m(cpu: &mut Cpu, op: &Op) -> Result<(), Fault> {
    let addr = op.addr(cpu);
    let bytes = u32::from(op.dst);
    let target = load_bytes(cpu, addr, bytes)?;
    let target = checked_target(cpu, target, bytes)?;
    let back = cpu.next_rip;
    stack::push_value(cpu, bytes, back)?;
    cpu.next_rip = target;
    Ok(())
}
fn slow_ret(cpu: &mut Cpu, op: &Op) -> Result<(), Fault> {
    let target = stack::peek(cpu, u32::from(op.scale), 0)?;
    go(cpu, target, op)?;
    stack::release(cpu, u64::from(op.scale) + op.imm);
    Ok(())
}
/// Executes LOOP, LOOPE, LOOPNE (`dst` 0, 1, 2) and JCXZ (3); `src` is the count's bytes.
fn counted(cpu: &mut Cpu, op: &Op) -> Result<(), Fault> {
    let bytes = u32::from(op.src);
    let mut count = reg(cpu, 1, bytes);
    let jumps = if op.dst == 3 {
        count == 0
    } else {
        count = count.wrapping_sub(1) & super::word::mask_of(bytes);
        count != 0 && (op.dst == 0 || cpu.flags.zf() == (op.dst == 1))
    };
    if jumps {
        go(cpu, relative(cpu, op), op)?;
    }
    if op.dst != 3 {
        set_reg(cpu, 1, bytes, count);
    }
    Ok(())
}

/// Returns the handler of a Jcc for flags of kind `kind`.
fn jcc_handler(cc: u8, kind: Option<u32>) -> Handler {
    macro_rules! by_kind {
        ($($k:literal)*) => {
            match kind {
                $(Some($k) => by_cc!(cc, C => jcc::<C, $k>),)*
                _ => by_cc!(cc, C => jcc::<C, ANY>),
            }
        };
    }
    // Raw; Add 32, 64; Sub; Logic; Inc and Dec 32, 64: see `FlagKind`.
    by_kind!(0 6 7 8 9 10 11 12 13 14 15 18 19 22 23)
}

/// Returns the number of a condition in the encoding's order.
pub fn condition_number(insn: &Instruction) -> u8 {
    use iced_x86::ConditionCode as C;
    match insn.condition_code() {
        C::o => 0,
        C::no => 1,
        C::b => 2,
        C::ae => 3,
        C::e => 4,
        C::ne => 5,
        C::be => 6,
        C::a => 7,
        C::s => 8,
        C::ns => 9,
        C::p => 10,
        C::np => 11,
        C::l => 12,
        C::ge => 13,
        C::le => 14,
        _ => 15,
    }
}

impl Builder {
    /// Continues at the next instruction, in a block of its own.
    pub fn go_on(&mut self) {
        (self.pc, self.len) = (self.bytes as u16, 0);
        let distance = i64::from(self.bytes);
        if self.mode.is_64bit() {
            self.jump_op(distance);
        } else {
            let mut op = self.op(jumping_op!(|_: &mut Cpu, _: &Op| Ok::<(), Fault>(())));
            op.aux = self.insns;
            self.push(op);
        }
    }

    fn links_to(&self, distance: i64) -> bool {
        let here = (self.gpa & 0xfff) as i64 + distance;
        (0..4096).contains(&here) && !self.crosses && !self.mode.has(Mode::STEP)
    }

    /// Appends a jump in 64-bit mode.
    fn jump_op(&mut self, distance: i64) {
        let links = self.links_to(distance);
        let mut op = self.op(if links { jump_unlinked } else { jump_across });
        op.disp = distance as i32;
        op.index = self.insns as u8;
        op.imm = self.gpa >> 12;
        op.scale = SELF_LINK;
        self.push(op);
    }

    /// Appends the op at which the branch at `branch` continues, and points the branch to it.
    fn stub(&mut self, branch: usize, distance: i64) {
        let links = self.links_to(distance);
        let mut op = self.op(if links { link_stub } else { look_up_stub });
        // The page number has at most 28 bits.
        op.disp = (self.gpa >> 12) as i32;
        let at = self.ops.len();
        self.push(op);
        self.fixups.push(Fixup { op: branch, target: at });
        if links {
            self.fixups.push(Fixup { op: at, target: branch });
        }
    }

    /// Creates a branch through a called op.
    fn slow_branch(&mut self, handler: Handler, bytes: u32, distance: i64, dst: u8, src: u8) -> Option<Flow> {
        let mut op = self.op(handler);
        (op.imm, op.scale, op.dst, op.src) = (distance as u64, bytes as u8, dst, src);
        op.aux = self.insns;
        self.push(op);
        Some(Flow::End)
    }
}

/// Returns the bytes of a near branch's operand: the size to which RIP is truncated and that is pushed.
fn branch_bytes(insn: &Instruction) -> u32 {
    match insn.op0_kind() {
        OpKind::NearBranch16 => 2,
        OpKind::NearBranch32 => 4,
        _ => 8,
    }
}

/// Lowers near branches.
pub fn lower(insn: &Instruction, b: &mut Builder) -> Option<Flow> {
    let near = matches!(insn.op0_kind(), OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64);
    if near && insn.op_count() > 0 {
        return relative_branch(insn, b);
    }
    match insn.mnemonic() {
        M::Jmp | M::Call => indirect(insn, b),
        M::Ret => {
            use iced_x86::Code as C;
            let bytes = match insn.code() {
                C::Retnw | C::Retnw_imm16 => 2,
                C::Retnd | C::Retnd_imm16 => 4,
                _ => 8,
            };
            let extra = if insn.op_count() == 1 { u64::from(insn.immediate16()) } else { 0 };
            let fast = b.mode.is_64bit() && bytes == 8;
            let mut op = b.op(if fast { ret::<super::word::Fast> } else { jumping_op!(slow_ret) });
            (op.imm, op.scale, op.aux) = (extra, bytes as u8, b.insns);
            b.push(op);
            Some(Flow::End)
        }
        _ => None,
    }
}

fn relative_branch(insn: &Instruction, b: &mut Builder) -> Option<Flow> {
    let bytes = branch_bytes(insn);
    let distance = insn.near_branch_target().wrapping_sub(b.start_rip) as i64;
    let fast = b.mode.is_64bit() && bytes == 8 && i32::try_from(distance).is_ok();
    let count_bytes = |insn: &Instruction| match insn.mnemonic() {
        M::Jcxz => 2,
        M::Jecxz => 4,
        M::Jrcxz => 8,
        // For LOOP the address size counts, which iced encodes in the code's name.
        _ => super::loop_count_bytes(insn),
    };
    match insn.mnemonic() {
        M::Jmp if fast => {
            b.jump_op(distance);
            Some(Flow::End)
        }
        M::Jmp => b.slow_branch(jumping_op!(slow_jmp), bytes, distance, 0, 0),
        M::Call if fast => {
            let at = b.ops.len();
            let mut op = b.op(call::<super::word::Fast>);
            (op.disp, op.index) = (distance as i32, b.insns as u8);
            b.push(op);
            b.stub(at, distance);
            Some(Flow::End)
        }
        M::Call => b.slow_branch(jumping_op!(slow_call), bytes, distance, 0, 0),
        M::Loop => b.slow_branch(jumping_op!(counted), bytes, distance, 0, count_bytes(insn)),
        M::Loope => b.slow_branch(jumping_op!(counted), bytes, distance, 1, count_bytes(insn)),
        M::Loopne => b.slow_branch(jumping_op!(counted), bytes, distance, 2, count_bytes(insn)),
        M::Jcxz | M::Jecxz | M::Jrcxz => b.slow_branch(jumping_op!(counted), bytes, distance, 3, count_bytes(insn)),
        _ if insn.is_jcc_short_or_near() => {
            let cc = condition_number(insn);
            if fast {
                conditional(b, cc, distance);
                Some(Flow::End)
            } else {
                b.slow_branch(jumping_op!(slow_jcc), bytes, distance, cc, 0)
            }
        }
        _ => None,
    }
}

/// Lowers Jcc in 64-bit mode, merged with the compare before it.
fn conditional(b: &mut Builder, cc: u8, distance: i64) {
    let next_distance = i64::from(b.bytes);
    let mut op = match (b.compare, b.ops.last().copied()) {
        (Some(compare), Some(last)) => {
            b.ops.pop();
            b.merged();
            let mut op = last;
            op.handler = merged_handler(compare.test, compare.immediate, compare.size, cc);
            op.aux = last.imm as u32;
            op
        }
        _ => b.op(jcc_handler(cc, b.flags_kind)),
    };
    if let Some(step) = b.step.filter(|step| step.insn + 1 == b.insns)
        && let Some(last) = b.ops.last_mut()
    {
        last.handler = pair::step_handler(step.sub, step.size, cc);
        b.merged();
    }
    (op.disp, op.index) = (distance as i32, b.insns as u8);
    let at = b.ops.len();
    b.push(op);
    b.jump_op(next_distance);
    b.stub(at, distance);
}

fn merged_handler(test: bool, immediate: bool, size: u32, cc: u8) -> Handler {
    match (test, immediate) {
        (false, false) => by_width!(size, T => by_cc!(cc, C => compare_rr_jcc::<Sub, T, C>)),
        (false, true) => by_width!(size, T => by_cc!(cc, C => compare_ri_jcc::<Sub, T, C>)),
        (true, false) => by_width!(size, T => by_cc!(cc, C => compare_rr_jcc::<And, T, C>)),
        (true, true) => by_width!(size, T => by_cc!(cc, C => compare_ri_jcc::<And, T, C>)),
    }
}

/// Lowers JMP and CALL through a register or memory. Far ones belong to the system family.
fn indirect(insn: &Instruction, b: &mut Builder) -> Option<Flow> {
    if insn.is_jmp_far_indirect() || insn.is_call_far_indirect() || insn.is_jmp_far() || insn.is_call_far() {
        return None;
    }
    let jmp = insn.mnemonic() == M::Jmp;
    if insn.op0_kind() == OpKind::Register {
        let bytes = insn.op0_register().size() as u32;
        let handler = match (b.mode.is_64bit() && bytes == 8, jmp) {
            (true, true) => jump_r as Handler,
            (true, false) => call_r::<super::word::Fast>,
            (false, true) => jumping_op!(slow_jump_r),
            (false, false) => jumping_op!(slow_call_r),
        };
        return b.slow_branch(handler, bytes, 0, operand::register(insn.op0_register()), 0);
    }
    let bytes = insn.memory_size().size() as u32;
    let m = b.mem(insn, bytes, false);
    let handler = match (b.mode.is_64bit() && bytes == 8, jmp) {
        (true, true) => by_addr!(m, A => jump_m::<A, super::word::Fast>),
        (_, true) => jumping_op!(slow_jump_m),
        (_, false) => jumping_op!(slow_call_m),
    };
    let mut op = b.op(handler);
    (op.base, op.index, op.scale, op.disp) = (m.base, m.index, m.scale, m.disp);
    (op.dst, op.aux) = (bytes as u8, b.insns);
    b.push(op);
    Some(Flow::End)
}
