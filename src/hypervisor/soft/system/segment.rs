//! Segment registers and descriptors, linear addresses, and the stack operations of far transfers and interrupts.
//!
//! SDM vol. 3 chapters 3 and 5, vol. 1 section 6.2 (stacks).

use iced_x86::Register;

use super::super::cpu::{CS, Cpu, DS, ES, FS, Fault, GS, LDTR, SS, Segment, TR, rflags};
use super::super::mem::Bank;
use super::super::mmu::{self, is_canonical};
use super::regs::{attr, cr0, efer};

/// Attributes of a segment in virtual-8086 mode: present, DPL 3, writable data.
pub const VM86_ATTR: u16 = 0xf3;
const RSP: usize = 4;

/// Returns whether CR0.PE is clear.
pub fn is_real(cpu: &Cpu) -> bool {
    cpu.sys.cr0 & cr0::PE == 0
}

/// Returns whether EFLAGS.VM is set.
pub fn is_vm86(cpu: &Cpu) -> bool {
    cpu.rflags & rflags::VM != 0
}

/// Returns EFER.LMA: whether the vCPU is in long mode, 64-bit or compatibility.
pub fn is_long_mode(cpu: &Cpu) -> bool {
    cpu.sys.efer & efer::LMA != 0
}

impl Segment {
    /// Returns whether the segment is present.
    pub fn present(&self) -> bool {
        self.attr & attr::P != 0
    }
    /// Returns the descriptor privilege level.
    pub fn dpl(&self) -> u8 {
        (self.attr >> 5 & 3) as u8
    }
    /// Returns whether it is code or data, not a system descriptor.
    pub fn is_code_or_data(&self) -> bool {
        self.attr & attr::S != 0
    }
    /// Returns whether it is a code segment.
    pub fn is_code(&self) -> bool {
        self.attr & (attr::S | attr::CODE) == attr::S | attr::CODE
    }
    /// Returns whether it is a conforming code segment.
    pub fn is_conforming(&self) -> bool {
        self.is_code() && self.attr & attr::DC != 0
    }
    /// Returns whether it is data or readable code.
    pub fn is_readable(&self) -> bool {
        self.is_code_or_data() && (self.attr & attr::CODE == 0 || self.attr & attr::RW != 0)
    }
    /// Returns whether it is writable data.
    pub fn is_writable(&self) -> bool {
        self.attr & (attr::S | attr::CODE | attr::RW) == attr::S | attr::RW
    }
    /// Returns the type of a system descriptor, 4 bits.
    pub fn system_type(&self) -> u16 {
        self.attr & 0xf
    }
    /// Returns whether `size` bytes at `offset` are inside the limit. Handles expand-down data too.
    pub fn covers(&self, offset: u64, size: u64) -> bool {
        let last = offset.wrapping_add(size - 1);
        if last < offset {
            return false;
        }
        if self.attr & (attr::S | attr::CODE | attr::DC) == attr::S | attr::DC {
            let top = if self.attr & attr::DB != 0 { 0xffff_ffff } else { 0xffff };
            offset > u64::from(self.limit) && last <= top
        } else {
            last <= u64::from(self.limit)
        }
    }
    /// Returns the segment that SYSCALL, SYSENTER and their returns load: flat, with the given attributes.
    pub fn flat(selector: u16, attr: u16) -> Segment {
        Segment { selector, attr, limit: 0xffff_ffff, base: 0 }
    }
}

/// A descriptor as read from a table.
#[derive(Debug, Clone, Copy)]
pub struct Descriptor {
    /// The segment as it would be loaded.
    pub segment: Segment,
    /// Its eight bytes.
    pub raw: u64,
    /// Address of the descriptor.
    pub addr: u64,
}

/// Raises a fault with a selector as its error code.
#[cold]
pub fn selector_fault(cpu: &mut Cpu, vector: u8, selector: u16, ext: u32) -> Fault {
    cpu.raise(vector, Some(u32::from(selector & 0xfffc) | ext))
}

/// Returns whether the selector is null.
pub fn is_null(selector: u16) -> bool {
    selector & 0xfffc == 0
}

/// Converts the descriptor's eight bytes to a segment with `selector`.
pub fn parse(raw: u64, selector: u16) -> Segment {
    let limit = (raw & 0xffff | raw >> 32 & 0xf_0000) as u32;
    let attr_bits = (raw >> 40) as u16 & 0xf0ff;
    Segment {
        selector,
        attr: attr_bits,
        limit: if attr_bits & attr::G != 0 { limit << 12 | 0xfff } else { limit },
        base: raw >> 16 & 0xff_ffff | raw >> 32 & 0xff00_0000,
    }
}

/// Reads the descriptor of `selector`. Raises `vector` with the selector if it is outside of its table.
pub fn read_descriptor(cpu: &mut Cpu, selector: u16, vector: u8, ext: u32) -> Result<Descriptor, Fault> {
    let (base, limit) = if selector & 4 != 0 {
        let ldt = cpu.segs[LDTR];
        if !ldt.present() {
            return Err(selector_fault(cpu, vector, selector, ext));
        }
        (ldt.base, ldt.limit)
    } else {
        (cpu.sys.gdt_base, u32::from(cpu.sys.gdt_limit))
    };
    if u32::from(selector | 7) > limit {
        return Err(selector_fault(cpu, vector, selector, ext));
    }
    let addr = base.wrapping_add(u64::from(selector & !7));
    let raw = mmu::load_system::<u64>(cpu, addr)?;
    Ok(Descriptor { segment: parse(raw, selector), raw, addr })
}

/// Reads the upper half of a system descriptor's base, in long mode.
pub fn widen(cpu: &mut Cpu, descriptor: &mut Descriptor) -> Result<(), Fault> {
    if is_long_mode(cpu) {
        let high = mmu::load_system::<u64>(cpu, descriptor.addr.wrapping_add(8))?;
        let selector = descriptor.segment.selector;
        // The type field of the second half must be zero (SDM vol. 3 figure 8-4).
        if high >> 40 & 0x1f != 0 {
            return Err(selector_fault(cpu, 13, selector, 0));
        }
        descriptor.segment.base |= high << 32;
        if !is_canonical(descriptor.segment.base) {
            return Err(selector_fault(cpu, 13, selector, 0));
        }
    }
    Ok(())
}

/// Sets the accessed bit of a code or data descriptor that is being loaded.
pub fn mark_accessed(cpu: &mut Cpu, descriptor: &mut Descriptor) -> Result<(), Fault> {
    if descriptor.raw & 1 << 40 == 0 {
        let byte = (descriptor.raw >> 40) as u8 | 1;
        mmu::store_system::<u8>(cpu, descriptor.addr.wrapping_add(5), byte)?;
        descriptor.segment.attr |= attr::ACCESSED;
    }
    Ok(())
}

/// Executes a MOV, POP or LxS to a data segment register or SS.
pub fn load_segment(cpu: &mut Cpu, which: usize, selector: u16) -> Result<(), Fault> {
    if is_real(cpu) {
        // Limit and attributes stay: that is what makes "unreal mode" work.
        cpu.segs[which].selector = selector;
        cpu.segs[which].base = u64::from(selector) << 4;
        return Ok(());
    }
    if is_vm86(cpu) {
        cpu.segs[which] = vm86_segment(selector);
        return Ok(());
    }
    let segment = if which == SS { check_stack_segment(cpu, selector)? } else { check_data_segment(cpu, selector)? };
    cpu.segs[which] = segment;
    Ok(())
}

/// Returns a segment as in virtual-8086 mode.
pub fn vm86_segment(selector: u16) -> Segment {
    Segment { selector, attr: VM86_ATTR, limit: 0xffff, base: u64::from(selector) << 4 }
}

fn check_data_segment(cpu: &mut Cpu, selector: u16) -> Result<Segment, Fault> {
    if is_null(selector) {
        return Ok(Segment { selector, ..Segment::default() });
    }
    let mut d = read_descriptor(cpu, selector, 13, 0)?;
    let level = cpu.cpl.max((selector & 3) as u8);
    if !d.segment.is_readable() || (!d.segment.is_conforming() && d.segment.dpl() < level) {
        return Err(selector_fault(cpu, 13, selector, 0));
    }
    if !d.segment.present() {
        return Err(selector_fault(cpu, 11, selector, 0));
    }
    mark_accessed(cpu, &mut d)?;
    Ok(d.segment)
}

fn check_stack_segment(cpu: &mut Cpu, selector: u16) -> Result<Segment, Fault> {
    let rpl = (selector & 3) as u8;
    if is_null(selector) {
        if cpu.is_64bit() && cpu.cpl != 3 && rpl == cpu.cpl {
            return Ok(null_stack(rpl));
        }
        return Err(cpu.general_protection(0));
    }
    let mut d = read_descriptor(cpu, selector, 13, 0)?;
    if rpl != cpu.cpl || !d.segment.is_writable() || d.segment.dpl() != cpu.cpl {
        return Err(selector_fault(cpu, 13, selector, 0));
    }
    if !d.segment.present() {
        return Err(selector_fault(cpu, 12, selector, 0));
    }
    mark_accessed(cpu, &mut d)?;
    Ok(d.segment)
}

/// Returns SS with a null selector, as 64-bit mode leaves it after a change of privilege.
pub fn null_stack(level: u8) -> Segment {
    Segment { selector: u16::from(level), attr: u16::from(level) << 5, limit: 0, base: 0 }
}

/// Sets the data segments to null that privilege `cpu.cpl` may no longer use, after a return to an outer level. Only
/// the selector becomes null and the segment unusable (SDM vol. 2, IRET and RET). The bases of FS and GS, which 64-bit
/// mode uses whatever the selector is, stay: a kernel that keeps its per-CPU data there with a selector of its own
/// relies on that.
pub fn drop_inner_segments(cpu: &mut Cpu) {
    for which in [ES, DS, FS, GS] {
        let s = cpu.segs[which];
        if s.present() && !s.is_conforming() && s.dpl() < cpu.cpl {
            cpu.segs[which] = Segment { base: s.base, ..Segment::default() };
        }
    }
}

/// Checks `size` bytes at `offset` in a segment and returns their linear address.
pub fn linear(cpu: &mut Cpu, which: usize, offset: u64, size: u64, write: bool) -> Result<u64, Fault> {
    let s = cpu.segs[which];
    if cpu.is_64bit() {
        let base = if which == FS || which == GS { s.base } else { 0 };
        return Ok(base.wrapping_add(offset));
    }
    let usable = is_real(cpu) || is_vm86(cpu) || (s.present() && if write { s.is_writable() } else { s.is_readable() });
    if !usable || !s.covers(offset, size) {
        return Err(cpu.raise(if which == SS { 12 } else { 13 }, Some(0)));
    }
    Ok(s.base.wrapping_add(offset) & 0xffff_ffff)
}

/// Returns the index in [`Cpu::segs`] of a decoded segment register.
pub fn index_of(register: Register) -> Option<usize> {
    Some(match register {
        Register::ES => ES,
        Register::CS => CS,
        Register::SS => SS,
        Register::DS => DS,
        Register::FS => FS,
        Register::GS => GS,
        _ => return None,
    })
}

/// A stack that pushes and pops without touching RSP until [`Stack::commit`].
#[derive(Debug, Clone, Copy)]
pub struct Stack {
    /// The stack segment.
    pub segment: Segment,
    /// The stack pointer.
    pub sp: u64,
    /// Mask of the stack pointer's bits that count: 16, 32 or 64.
    mask: u64,
    /// The bank of the privilege with which accesses are made.
    bank: Bank,
    /// Error code of #SS.
    error: u32,
}

/// Returns the bank of privilege `level`, without EFLAGS.AC.
fn bank_of(level: u8) -> Bank {
    if level == 3 { Bank::User } else { Bank::Supervisor }
}

impl Stack {
    /// Returns the present stack, with the present privilege.
    pub fn current(cpu: &Cpu) -> Stack {
        let segment = cpu.segs[SS];
        let mask = if cpu.is_64bit() {
            u64::MAX
        } else if segment.attr & attr::DB != 0 {
            0xffff_ffff
        } else {
            0xffff
        };
        Stack { segment, sp: cpu.regs[RSP] & mask, mask, bank: cpu.bank, error: 0 }
    }

    /// Returns the stack of privilege `level` at `sp` in a legacy segment. `error` is the error code of #SS.
    pub fn legacy(segment: Segment, sp: u64, level: u8, error: u32) -> Stack {
        let mask = if segment.attr & attr::DB != 0 { 0xffff_ffff } else { 0xffff };
        Stack { segment, sp: sp & mask, mask, bank: bank_of(level), error }
    }

    /// Returns the 64-bit stack of privilege `level`.
    pub fn long(segment: Segment, sp: u64, level: u8, error: u32) -> Stack {
        Stack { segment, sp, mask: u64::MAX, bank: bank_of(level), error }
    }

    fn address(&self, cpu: &mut Cpu, sp: u64, size: u64) -> Result<u64, Fault> {
        if self.mask == u64::MAX {
            if !is_canonical(sp) || !is_canonical(sp.wrapping_add(size - 1)) {
                return Err(cpu.raise(12, Some(self.error)));
            }
            return Ok(sp);
        }
        if !self.segment.covers(sp, size) {
            return Err(cpu.raise(12, Some(self.error)));
        }
        Ok(self.segment.base.wrapping_add(sp) & 0xffff_ffff)
    }

    fn with_bank<R>(&self, cpu: &mut Cpu, access: impl FnOnce(&mut Cpu) -> R) -> R {
        let bank = std::mem::replace(&mut cpu.bank, self.bank);
        let result = access(cpu);
        cpu.bank = bank;
        result
    }

    /// Pushes the low `size` bytes (2, 4 or 8) of `value`.
    pub fn push(&mut self, cpu: &mut Cpu, size: u64, value: u64) -> Result<(), Fault> {
        let sp = self.sp.wrapping_sub(size) & self.mask;
        let addr = self.address(cpu, sp, size)?;
        self.with_bank(cpu, |cpu| match size {
            2 => cpu.store::<u16>(addr, value as u16),
            4 => cpu.store::<u32>(addr, value as u32),
            _ => cpu.store::<u64>(addr, value),
        })?;
        self.sp = sp;
        Ok(())
    }

    /// Pops `size` bytes, zero-extended.
    pub fn pop(&mut self, cpu: &mut Cpu, size: u64) -> Result<u64, Fault> {
        let addr = self.address(cpu, self.sp, size)?;
        let value = self.with_bank(cpu, |cpu| match size {
            2 => cpu.load::<u16>(addr).map(u64::from),
            4 => cpu.load::<u32>(addr).map(u64::from),
            _ => cpu.load::<u64>(addr),
        })?;
        self.sp = self.sp.wrapping_add(size) & self.mask;
        Ok(value)
    }

    /// Moves the pointer up, as RET with an immediate does.
    pub fn release(&mut self, bytes: u64) {
        self.sp = self.sp.wrapping_add(bytes) & self.mask;
    }

    /// Stores the pointer of this stack in the stack pointer.
    pub fn commit(&self, cpu: &mut Cpu) {
        cpu.regs[RSP] = if self.mask == 0xffff { cpu.regs[RSP] & !0xffff | self.sp } else { self.sp };
    }
}

/// Returns the legacy stack of privilege `level` from the task state, with its checked segment.
pub fn inner_stack(cpu: &mut Cpu, level: u8, ext: u32) -> Result<Stack, Fault> {
    let tr = cpu.segs[TR];
    // Type 9/B is a 32-bit TSS, 1/3 a 16-bit one.
    let wide = tr.system_type() & 8 != 0;
    let offset = if wide { 4 + 8 * u64::from(level) } else { 2 + 4 * u64::from(level) };
    let bytes = if wide { 6 } else { 4 };
    if !tr.present() || offset + bytes - 1 > u64::from(tr.limit) {
        return Err(selector_fault(cpu, 10, tr.selector, ext));
    }
    let addr = tr.base.wrapping_add(offset) & 0xffff_ffff;
    let (sp, selector) = if wide {
        (u64::from(mmu::load_system::<u32>(cpu, addr)?), mmu::load_system::<u16>(cpu, addr + 4)?)
    } else {
        (u64::from(mmu::load_system::<u16>(cpu, addr)?), mmu::load_system::<u16>(cpu, addr + 2)?)
    };
    if is_null(selector) {
        return Err(cpu.raise(10, Some(ext)));
    }
    let mut d = read_descriptor(cpu, selector, 10, ext)?;
    if (selector & 3) as u8 != level || d.segment.dpl() != level || !d.segment.is_writable() {
        return Err(selector_fault(cpu, 10, selector, ext));
    }
    if !d.segment.present() {
        return Err(selector_fault(cpu, 12, selector, ext));
    }
    mark_accessed(cpu, &mut d)?;
    Ok(Stack::legacy(d.segment, sp, level, u32::from(selector & 0xfffc) | ext))
}

/// Returns the stack pointer at `offset` of a 64-bit task state: RSP0 to RSP2 or IST1 to IST7.
pub fn long_stack_pointer(cpu: &mut Cpu, offset: u64, ext: u32) -> Result<u64, Fault> {
    let tr = cpu.segs[TR];
    if !tr.present() || offset + 7 > u64::from(tr.limit) {
        return Err(selector_fault(cpu, 10, tr.selector, ext));
    }
    let sp = mmu::load_system::<u64>(cpu, tr.base.wrapping_add(offset))?;
    if !is_canonical(sp) {
        return Err(cpu.raise(12, Some(ext)));
    }
    Ok(sp)
}

/// Makes `segment` CS at privilege `level`.
pub fn set_cs(cpu: &mut Cpu, mut segment: Segment, level: u8) {
    segment.selector = segment.selector & !3 | u16::from(level);
    cpu.segs[CS] = segment;
    cpu.cpl = level;
    mmu::select_bank(cpu);
}

/// Checks that `rip` can be run in `segment`: inside its limit, or canonical.
pub fn check_target(cpu: &mut Cpu, segment: &Segment, rip: u64, ext: u32) -> Result<(), Fault> {
    let good = if is_long_mode(cpu) && segment.attr & attr::L != 0 { is_canonical(rip) } else { rip <= u64::from(segment.limit) };
    if good { Ok(()) } else { Err(cpu.general_protection(ext)) }
}
