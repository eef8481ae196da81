//! The register stack, its tags, and the recording of exceptions. SDM vol. 1, chapter 8.

use super::float::{self, SF};
use crate::hypervisor::soft::cpu::{CS, Cpu, Fault, Fpu};
use crate::hypervisor::soft::op::Op;
use crate::hypervisor::soft::softfloat::{Class, Env, F80, Float, flag};

/// Condition code 0.
pub const C0: u16 = 1 << 8;
/// Condition code 1, see [`super::float::C1`].
pub const C1: u16 = float::C1 as u16;
/// Condition code 2.
pub const C2: u16 = 1 << 10;
/// Condition code 3.
pub const C3: u16 = 1 << 14;
/// Exception summary.
pub const ES: u16 = 1 << 7;
/// Busy: a copy of ES.
pub const BUSY: u16 = 1 << 15;
/// The six exception flags, and so the six masks.
pub const EXCEPTIONS: u16 = 0x3f;

impl Default for Fpu {
    /// Returns the state after power-on (SDM vol. 3, table 10-1).
    fn default() -> Fpu {
        Fpu { mantissa: [0; 8], sign_exp: [0; 8], fcw: 0x40, fsw: 0, ftw: 0xff, fop: 0, fip: 0, fdp: 0 }
    }
}

impl Fpu {
    /// Resets the state as FNINIT does. The registers' contents stay.
    pub fn init(&mut self) {
        (self.fcw, self.fsw, self.ftw, self.fop, self.fip, self.fdp) = (0x37f, 0, 0, 0, 0, 0);
    }
    /// Returns the number of the physical register on top of the stack.
    pub fn top(&self) -> usize {
        usize::from(self.fsw >> 11 & 7)
    }
    /// Moves the top of the stack.
    pub fn set_top(&mut self, top: usize) {
        self.fsw = self.fsw & !(7 << 11) | ((top & 7) as u16) << 11;
    }
    /// Returns the number of the physical register that is ST(i).
    pub fn physical(&self, i: usize) -> usize {
        (self.top() + i) & 7
    }
    /// Returns whether ST(i) is empty. 7 is the register that a push would take.
    pub fn is_empty(&self, i: usize) -> bool {
        self.ftw >> self.physical(i) & 1 == 0
    }
    /// Returns ST(i).
    pub fn st(&self, i: usize) -> F80 {
        let r = self.physical(i);
        F80 { mantissa: self.mantissa[r], sign_exp: self.sign_exp[r] }
    }
    /// Sets ST(i) and marks it in use.
    pub fn set_st(&mut self, i: usize, value: F80) {
        let r = self.physical(i);
        (self.mantissa[r], self.sign_exp[r]) = (value.mantissa, value.sign_exp);
        self.ftw |= 1 << r;
    }
    /// Marks ST(i) empty.
    pub fn free(&mut self, i: usize) {
        self.ftw &= !(1 << self.physical(i));
    }
    /// Marks ST(0) empty and moves the top up.
    pub fn pop(&mut self) {
        self.free(0);
        self.set_top(self.top() + 1);
    }
    /// Moves the top down and sets ST(0), whatever it held.
    pub fn push(&mut self, value: F80) {
        self.set_top(self.top() + 7);
        self.set_st(0, value);
    }
    /// Sets the control word. Its reserved bits are fixed.
    pub fn set_control(&mut self, fcw: u16) {
        // Bit 6 reads as one, and bit 12 (infinity control) is kept without effect, as since the 80387.
        self.fcw = fcw & 0x1f3f | 0x40;
        self.summarise();
    }
    /// Computes ES and B from the flags and the masks.
    pub fn summarise(&mut self) {
        if self.fsw & !self.fcw & EXCEPTIONS != 0 {
            self.fsw |= ES | BUSY;
        } else {
            self.fsw &= !(ES | BUSY);
        }
    }
    /// Returns the 16-bit tag word of FSTENV: 0 valid, 1 zero, 2 special, 3 empty.
    pub fn full_tags(&self) -> u16 {
        (0..8).fold(0, |tags, r| {
            let tag = if self.ftw >> r & 1 == 0 {
                3
            } else {
                let p = (F80 { mantissa: self.mantissa[r], sign_exp: self.sign_exp[r] }).unpack();
                match p.class {
                    Class::Finite if !p.denormal => 0,
                    Class::Zero => 1,
                    _ => 2,
                }
            };
            tags | tag << (2 * r)
        })
    }
    /// Sets the tags from a 16-bit tag word.
    pub fn set_full_tags(&mut self, tags: u16) {
        self.ftw = (0..8).fold(0, |ftw, r| ftw | u8::from(tags >> (2 * r) & 3 != 3) << r);
    }
    /// Returns the environment of an operation.
    pub fn env(&self) -> Env {
        Env::from_control_word(self.fcw)
    }
}

/// Notes that ST(i) was empty where a value was needed.
pub fn stack_underflow(env: &mut Env) {
    env.flags = flag::INVALID | SF;
}

/// Notes that a push found no empty register.
pub fn stack_overflow(env: &mut Env) {
    env.flags = flag::INVALID | SF | float::C1;
}

/// Returns whether an unmasked exception forbids the operation to change anything but the flags. Then it clears the
/// flags of the result, since the result is not written.
pub fn stopped(env: &mut Env) -> bool {
    let stopped = env.unmasked() & flag::BEFORE != 0;
    if stopped {
        env.flags &= flag::BEFORE | SF | if env.flags & SF != 0 { float::C1 } else { 0 };
    }
    stopped
}

/// Raises #MF if an unmasked exception is pending. Every waiting x87 instruction and every MMX instruction calls it
/// first.
///
/// With CR0.NE clear a PC would raise IRQ 13 instead. That is not modelled: #MF is raised in any case.
pub fn check_pending(cpu: &mut Cpu) -> Result<(), Fault> {
    if cpu.fpu.fsw & ES != 0 { Err(cpu.raise(16, None)) } else { Ok(()) }
}

/// Records the address of a non-control instruction.
pub fn note_instruction(cpu: &mut Cpu, op: &Op, memory: bool) {
    cpu.fpu.fip = op.rip(cpu);
    if memory {
        cpu.fpu.fdp = op.addr(cpu);
    }
}

/// Ends an operation: C1 and the exceptions of `env` go to the status word.
pub fn commit(cpu: &mut Cpu, op: &Op, memory: bool, env: &Env) {
    note_instruction(cpu, op, memory);
    cpu.fpu.fsw = cpu.fpu.fsw & !C1 | env.flags as u16;
    // #MF itself is raised by the next waiting instruction.
    if env.unmasked() != 0 {
        cpu.fpu.fsw |= ES | BUSY;
        cpu.fpu.fop = opcode(cpu, op).unwrap_or(cpu.fpu.fop);
    }
}

/// Returns the 11 opcode bits of the instruction of `op`, fetched again, since only an unmasked exception needs them.
fn opcode(cpu: &mut Cpu, op: &Op) -> Option<u16> {
    let long = cpu.is_64bit();
    let base = if long { 0 } else { cpu.segs[CS].base };
    let start = base.wrapping_add(op.rip(cpu));
    // Fetching these bytes must not add a fault: the instruction has already run.
    let saved = cpu.exception;
    let mut escape = None;
    for at in 0..u64::from(op.len) {
        let addr = start.wrapping_add(at);
        let addr = if long { addr } else { addr & 0xffff_ffff };
        let Ok(byte) = cpu.load::<u8>(addr) else {
            cpu.exception = saved;
            return None;
        };
        match escape {
            Some(high) => return Some(high | u16::from(byte)),
            None if byte & 0xf8 == 0xd8 => escape = Some(u16::from(byte & 7) << 8),
            None => {}
        }
    }
    None
}
