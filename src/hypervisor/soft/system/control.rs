//! Control and debug registers, descriptor-table registers, moves to and from segment registers, LAR and similar, HLT,
//! INVLPG, the time-stamp counter, random numbers, XCR0.
//!
//! SDM vol. 2 (each instruction), vol. 3 sections 2.5 (control registers), 9.9 (mode switching), 17.2 (debug
//! registers), 18.17 (time-stamp counter).
//!
//! **Not modelled**: caches (WBINVD and INVD do nothing), UMIP.

use super::super::cpu::{CS, Cpu, Fault, LDTR, Leave, SS, Segment, TR, rflags};
use super::super::mmu::{self, is_canonical};
use super::super::op::Op;
use super::super::tlb;
use super::cpuid::TSC_FREQUENCY;
use super::far::{load_far_pointer, set_flags};
use super::regs::{attr, cr0, cr4, dr, efer};
use super::segment::*;
use super::{MEM, debug, mode_of, read_gpr, write_gpr};

/// Raises #GP(0) above privilege 0.
pub fn check_privileged(cpu: &mut Cpu) -> Result<(), Fault> {
    if cpu.cpl != 0 { Err(cpu.general_protection(0)) } else { Ok(()) }
}

/// Executes HLT.
pub fn hlt(cpu: &mut Cpu, _: &Op) -> Result<(), Fault> {
    check_privileged(cpu)?;
    cpu.leave = Leave::Halt;
    Ok(())
}

/// Executes WBINVD and INVD. There is no cache.
pub fn privileged_nop(cpu: &mut Cpu, _: &Op) -> Result<(), Fault> {
    check_privileged(cpu)
}

/// Executes CLFLUSH. There is no cache, but the line must be readable.
pub fn flush_line(cpu: &mut Cpu, op: &Op) -> Result<(), Fault> {
    cpu.load::<u8>(op.addr(cpu)).map(drop)
}

/// Executes the fences, which do nothing since the vCPUs run in turn.
pub fn nop(_: &mut Cpu, _: &Op) -> Result<(), Fault> {
    Ok(())
}

/// Executes INVLPG.
pub fn invlpg(cpu: &mut Cpu, op: &Op) -> Result<(), Fault> {
    check_privileged(cpu)?;
    let addr = op.addr(cpu);
    tlb::flush_page(cpu, addr);
    Ok(())
}

/// Executes CLTS.
pub fn clts(cpu: &mut Cpu, _: &Op) -> Result<(), Fault> {
    check_privileged(cpu)?;
    cpu.sys.cr0 &= !cr0::TS;
    Ok(())
}

/// Executes MOV from a control register: `src` its number, `dst` the register.
pub fn read_control(cpu: &mut Cpu, op: &Op) -> Result<(), Fault> {
    check_privileged(cpu)?;
    let value = match op.src {
        0 => cpu.sys.cr0,
        2 => cpu.sys.cr2,
        3 => cpu.sys.cr3,
        4 => cpu.sys.cr4,
        8 => u64::from(cpu.apics.cr8(cpu.index)),
        _ => return Err(cpu.undefined()),
    };
    write_gpr(cpu, op.dst, if cpu.is_64bit() { 8 } else { 4 }, value);
    Ok(())
}

/// Executes MOV to a control register: `dst` its number, `src` the register.
pub fn write_control(cpu: &mut Cpu, op: &Op) -> Result<(), Fault> {
    check_privileged(cpu)?;
    let value = read_gpr(cpu, op.src, if cpu.is_64bit() { 8 } else { 4 });
    match op.dst {
        0 => write_cr0(cpu, value),
        2 => {
            cpu.sys.cr2 = value;
            Ok(())
        }
        3 => {
            if is_long_mode(cpu) && value >> mmu::PHYS_BITS != 0 {
                return Err(cpu.general_protection(0));
            }
            cpu.sys.cr3 = value;
            tlb::flush(cpu, true);
            Ok(())
        }
        4 => write_cr4(cpu, value),
        8 => {
            if value > 15 {
                return Err(cpu.general_protection(0));
            }
            cpu.apics.set_cr8(cpu.index, value as u8);
            Ok(())
        }
        _ => Err(cpu.undefined()),
    }
}

fn write_cr0(cpu: &mut Cpu, value: u64) -> Result<(), Fault> {
    let nonsense = value >> 32 != 0 || value & (cr0::PG | cr0::PE) == cr0::PG || value & (cr0::NW | cr0::CD) == cr0::NW;
    if nonsense {
        return Err(cpu.general_protection(0));
    }
    let old = cpu.sys.cr0;
    let new = value & cr0::ALL | cr0::ET;
    let mut efer_bits = cpu.sys.efer;
    if new & !old & cr0::PG != 0 && efer_bits & efer::LME != 0 {
        if cpu.sys.cr4 & cr4::PAE == 0 || cpu.segs[CS].attr & attr::L != 0 {
            return Err(cpu.general_protection(0));
        }
        efer_bits |= efer::LMA;
    }
    if old & !new & cr0::PG != 0 && efer_bits & efer::LMA != 0 {
        if cpu.is_64bit() {
            return Err(cpu.general_protection(0));
        }
        efer_bits &= !efer::LMA;
    }
    cpu.sys.efer = efer_bits;
    cpu.sys.cr0 = new;
    if old & !new & cr0::PE != 0 {
        cpu.cpl = 0;
    }
    if (old ^ new) & (cr0::PG | cr0::WP | cr0::PE) != 0 {
        tlb::flush(cpu, false);
    }
    mmu::select_bank(cpu);
    Ok(())
}

fn write_cr4(cpu: &mut Cpu, value: u64) -> Result<(), Fault> {
    let no_pae = is_long_mode(cpu) && value & cr4::PAE == 0;
    if value & !cr4::ALL != 0 || no_pae {
        return Err(cpu.general_protection(0));
    }
    let changed = cpu.sys.cr4 ^ value;
    cpu.sys.cr4 = value;
    if changed & cr4::PAGING != 0 {
        tlb::flush(cpu, false);
    }
    mmu::select_bank(cpu);
    Ok(())
}

/// Sets a new value for EFER. Returns `Err` if it is refused.
#[allow(clippy::result_unit_err)] // the caller knows which exception a refusal raises
pub fn write_efer(cpu: &mut Cpu, value: u64) -> Result<(), ()> {
    let old = cpu.sys.efer;
    if value & !(efer::ALL | efer::LMA) != 0 || ((old ^ value) & efer::LME != 0 && cpu.sys.cr0 & cr0::PG != 0) {
        return Err(());
    }
    cpu.sys.efer = value & efer::ALL | old & efer::LMA;
    if (old ^ value) & efer::NXE != 0 {
        tlb::flush(cpu, false);
    }
    Ok(())
}

/// Executes LMSW: `src` is the register, or memory with [`MEM`]. It can set PE but not clear it.
pub fn lmsw(cpu: &mut Cpu, op: &Op) -> Result<(), Fault> {
    check_privileged(cpu)?;
    let word = read_rm16(cpu, op)?;
    let keep = !(cr0::MP | cr0::EM | cr0::TS);
    write_cr0(cpu, cpu.sys.cr0 & keep | u64::from(word) & 0xf)
}

/// Reads the 16-bit operand of an op: register `src`, or memory with [`MEM`].
fn read_rm16(cpu: &mut Cpu, op: &Op) -> Result<u16, Fault> {
    if op.imm & MEM != 0 {
        let addr = op.addr(cpu);
        cpu.load::<u16>(addr)
    } else {
        Ok(cpu.regs[op.src as usize] as u16)
    }
}

/// Writes to register `dst` of `src` bytes, or 16 bits to memory with [`MEM`].
fn write_rm(cpu: &mut Cpu, op: &Op, value: u64) -> Result<(), Fault> {
    if op.imm & MEM != 0 {
        let addr = op.addr(cpu);
        cpu.store::<u16>(addr, value as u16)
    } else {
        write_gpr(cpu, op.dst, op.src, value);
        Ok(())
    }
}

/// Executes the stores of SMSW, SLDT, STR and MOV from a segment register; `imm`'s low byte selects one.
pub fn store_word(cpu: &mut Cpu, op: &Op) -> Result<(), Fault> {
    let which = op.imm as u8;
    let value = match which {
        SMSW => cpu.sys.cr0,
        n => {
            let system = n as usize == LDTR || n as usize == TR;
            if system && (is_real(cpu) || is_vm86(cpu)) {
                return Err(cpu.undefined());
            }
            u64::from(cpu.segs[n as usize].selector)
        }
    };
    write_rm(cpu, op, value)
}

/// The machine status word, for [`store_word`].
pub const SMSW: u8 = 0xff;

/// Runs `load`. Makes the blocks that follow be decoded again if the load of a segment changed the mode that they were
/// decoded for.
fn reload<R>(cpu: &mut Cpu, load: impl FnOnce(&mut Cpu) -> Result<R, Fault>) -> Result<R, Fault> {
    if cpu.is_64bit() {
        return load(cpu);
    }
    let before = mode_of(cpu);
    let result = load(cpu)?;
    if mode_of(cpu) != before {
        cpu.leave_after_op = true;
    }
    Ok(result)
}

/// Executes MOV to a segment register: `dst` the segment.
pub fn move_to_segment(cpu: &mut Cpu, op: &Op) -> Result<(), Fault> {
    let selector = read_rm16(cpu, op)?;
    let which = op.dst as usize;
    reload(cpu, |cpu| load_segment(cpu, which, selector))?;
    if which == SS {
        debug::hold_off(cpu);
    }
    Ok(())
}

/// Executes PUSH of a segment register: `dst` the segment, `src` the operand's bytes.
pub fn push_segment(cpu: &mut Cpu, op: &Op) -> Result<(), Fault> {
    let value = u64::from(cpu.segs[op.dst as usize].selector);
    let mut stack = Stack::current(cpu);
    stack.push(cpu, u64::from(op.src), value)?;
    stack.commit(cpu);
    Ok(())
}

/// Executes POP of a segment register, with fields as in [`push_segment`].
pub fn pop_segment(cpu: &mut Cpu, op: &Op) -> Result<(), Fault> {
    let which = op.dst as usize;
    let mut stack = Stack::current(cpu);
    let selector = stack.pop(cpu, u64::from(op.src))? as u16;
    reload(cpu, |cpu| load_segment(cpu, which, selector))?;
    stack.commit(cpu);
    if which == SS {
        debug::hold_off(cpu);
    }
    Ok(())
}

/// Executes LDS, LES, LFS, LGS, LSS: `dst` the register, `src` its bytes, `imm` the segment.
pub fn load_far(cpu: &mut Cpu, op: &Op) -> Result<(), Fault> {
    let addr = op.addr(cpu);
    let (offset, selector) = load_far_pointer(cpu, addr, u64::from(op.src))?;
    let which = op.imm as usize;
    reload(cpu, |cpu| load_segment(cpu, which, selector))?;
    write_gpr(cpu, op.dst, op.src, offset);
    Ok(())
}

/// Executes LGDT (`imm` 0) and LIDT (`imm` 1). `src` is the number of bytes of the base: 3, 4 or 8.
pub fn load_table(cpu: &mut Cpu, op: &Op) -> Result<(), Fault> {
    check_privileged(cpu)?;
    let addr = op.addr(cpu);
    let limit = cpu.load::<u16>(addr)?;
    let behind = addr.wrapping_add(2);
    let behind = if cpu.is_64bit() { behind } else { behind & 0xffff_ffff };
    let base = match op.src {
        8 => cpu.load::<u64>(behind)?,
        3 => u64::from(cpu.load::<u32>(behind)? & 0xff_ffff),
        _ => u64::from(cpu.load::<u32>(behind)?),
    };
    if !is_canonical(base) {
        return Err(cpu.general_protection(0));
    }
    if op.imm == 0 {
        (cpu.sys.gdt_base, cpu.sys.gdt_limit) = (base, limit);
    } else {
        (cpu.sys.idt_base, cpu.sys.idt_limit) = (base, limit);
    }
    Ok(())
}

/// Executes SGDT and SIDT, with fields as in [`load_table`]. All 32 bits of the base are stored whatever the operand
/// size is.
pub fn store_table(cpu: &mut Cpu, op: &Op) -> Result<(), Fault> {
    let addr = op.addr(cpu);
    let (base, limit) = if op.imm == 0 { (cpu.sys.gdt_base, cpu.sys.gdt_limit) } else { (cpu.sys.idt_base, cpu.sys.idt_limit) };
    let wide = op.src == 8;
    mmu::probe_write(cpu, addr, if wide { 10 } else { 6 })?;
    let behind = addr.wrapping_add(2);
    cpu.store::<u16>(addr, limit)?;
    if wide { cpu.store::<u64>(behind, base) } else { cpu.store::<u32>(behind & 0xffff_ffff, base as u32) }
}

/// Executes LLDT.
pub fn lldt(cpu: &mut Cpu, op: &Op) -> Result<(), Fault> {
    if is_real(cpu) || is_vm86(cpu) {
        return Err(cpu.undefined());
    }
    check_privileged(cpu)?;
    let selector = read_rm16(cpu, op)?;
    if is_null(selector) {
        cpu.segs[LDTR] = Segment { selector, ..Segment::default() };
        return Ok(());
    }
    let mut d = system_descriptor(cpu, selector)?;
    if d.segment.is_code_or_data() || d.segment.system_type() != 2 {
        return Err(selector_fault(cpu, 13, selector, 0));
    }
    if !d.segment.present() {
        return Err(selector_fault(cpu, 11, selector, 0));
    }
    widen(cpu, &mut d)?;
    cpu.segs[LDTR] = d.segment;
    Ok(())
}

/// Executes LTR.
pub fn ltr(cpu: &mut Cpu, op: &Op) -> Result<(), Fault> {
    if is_real(cpu) || is_vm86(cpu) {
        return Err(cpu.undefined());
    }
    check_privileged(cpu)?;
    let selector = read_rm16(cpu, op)?;
    if is_null(selector) {
        return Err(cpu.general_protection(0));
    }
    let mut d = system_descriptor(cpu, selector)?;
    let kind = d.segment.system_type();
    // An available TSS: type 9, or outside long mode also the 16-bit type 1.
    let available = kind == 9 || (kind == 1 && !is_long_mode(cpu));
    if d.segment.is_code_or_data() || !available {
        return Err(selector_fault(cpu, 13, selector, 0));
    }
    if !d.segment.present() {
        return Err(selector_fault(cpu, 11, selector, 0));
    }
    widen(cpu, &mut d)?;
    mmu::store_system::<u8>(cpu, d.addr.wrapping_add(5), (d.raw >> 40) as u8 | 2)?;
    d.segment.attr |= 2;
    cpu.segs[TR] = d.segment;
    Ok(())
}

/// Reads a descriptor that must be in the GDT.
fn system_descriptor(cpu: &mut Cpu, selector: u16) -> Result<Descriptor, Fault> {
    if selector & 4 != 0 {
        return Err(selector_fault(cpu, 13, selector, 0));
    }
    read_descriptor(cpu, selector, 13, 0)
}

fn set_zf(cpu: &mut Cpu, on: bool) {
    set_flags(cpu, if on { rflags::ZF } else { 0 }, rflags::ZF);
}

/// Returns the descriptor that LAR, LSL, VERR and VERW look at, if the selector reaches one.
fn inspect(cpu: &mut Cpu, op: &Op) -> Result<Option<Descriptor>, Fault> {
    if is_real(cpu) || is_vm86(cpu) {
        return Err(cpu.undefined());
    }
    let selector = read_rm16(cpu, op)?;
    if is_null(selector) {
        return Ok(None);
    }
    match read_descriptor(cpu, selector, 13, 0) {
        Ok(d) => {
            let level = cpu.cpl.max((selector & 3) as u8);
            let visible = d.segment.is_conforming() || d.segment.dpl() >= level;
            Ok(visible.then_some(d))
        }
        // A selector outside of its table is not an error here. A page fault is one.
        Err(Fault) if cpu.exception.vector == 13 => Ok(None),
        Err(fault) => Err(fault),
    }
}

/// Executes LAR (bit 0 of `imm` clear) and LSL (set): `dst` is the register, bits 15:8 of `imm` its bytes.
pub fn load_rights(cpu: &mut Cpu, op: &Op) -> Result<(), Fault> {
    let found = inspect(cpu, op)?;
    let limit = op.imm & 1 != 0;
    let long = is_long_mode(cpu);
    let known = |s: &Segment| {
        s.is_code_or_data()
            || match s.system_type() {
                2 | 9 | 0xb => true,
                1 | 3 => !long,
                0xc => !limit,
                4 | 5 => !limit && !long,
                _ => false,
            }
    };
    match found.filter(|d| known(&d.segment)) {
        Some(d) => {
            let value = if limit { u64::from(d.segment.limit) } else { d.raw >> 32 & 0x00f0_ff00 };
            write_gpr(cpu, op.dst, (op.imm >> 8) as u8, value);
            set_zf(cpu, true);
        }
        None => set_zf(cpu, false),
    }
    Ok(())
}

/// Executes VERR (bit 0 of `imm` clear) and VERW (set).
pub fn verify(cpu: &mut Cpu, op: &Op) -> Result<(), Fault> {
    let found = inspect(cpu, op)?;
    let write = op.imm & 1 != 0;
    let good = found.is_some_and(|d| if write { d.segment.is_writable() } else { d.segment.is_readable() });
    set_zf(cpu, good);
    Ok(())
}

/// Executes ARPL: `src` is the source register. The destination is register `dst`, or memory with [`MEM`] in segment
/// `aux`, which must be writable only if something is written.
pub fn arpl(cpu: &mut Cpu, op: &Op) -> Result<(), Fault> {
    if is_real(cpu) || is_vm86(cpu) {
        return Err(cpu.undefined());
    }
    let source = cpu.regs[op.src as usize] as u16;
    let memory = op.imm & MEM != 0;
    let addr = op.addr(cpu);
    let old = if memory { cpu.load::<u16>(addr)? } else { cpu.regs[op.dst as usize] as u16 };
    let raised = old & 3 < source & 3;
    if raised {
        let new = old & !3 | source & 3;
        if memory {
            let kind = cpu.segs[op.aux as usize & 7].attr & 0xa;
            if kind != 2 {
                return Err(cpu.general_protection(0));
            }
            cpu.store::<u16>(addr, new)?;
        } else {
            write_gpr(cpu, op.dst, 2, u64::from(new));
        }
    }
    set_zf(cpu, raised);
    Ok(())
}

/// Executes MOV from a debug register: `src` its number.
pub fn read_debug(cpu: &mut Cpu, op: &Op) -> Result<(), Fault> {
    let n = debug_number(cpu, op.src)?;
    let value = cpu.sys.dr[n];
    write_gpr(cpu, op.dst, if cpu.is_64bit() { 8 } else { 4 }, value);
    Ok(())
}

/// Executes MOV to a debug register: `dst` its number.
pub fn write_debug(cpu: &mut Cpu, op: &Op) -> Result<(), Fault> {
    let n = debug_number(cpu, op.dst)?;
    let value = read_gpr(cpu, op.src, if cpu.is_64bit() { 8 } else { 4 });
    if n >= 6 && value >> 32 != 0 {
        return Err(cpu.general_protection(0));
    }
    cpu.sys.dr[n] = match n {
        6 => value & dr::DR6_MASK | dr::DR6_FIXED,
        7 => value & dr::DR7_MASK | dr::DR7_FIXED,
        _ => value,
    };
    if n != 6 {
        mmu::watchpoints_changed(cpu);
        cpu.rflags &= !rflags::RF;
    }
    Ok(())
}

fn debug_number(cpu: &mut Cpu, n: u8) -> Result<usize, Fault> {
    check_privileged(cpu)?;
    let n = match n {
        4 | 5 if cpu.sys.cr4 & cr4::DE != 0 => return Err(cpu.undefined()),
        4 | 5 => n + 2,
        0..=7 => n,
        _ => return Err(cpu.undefined()),
    };
    if cpu.sys.dr[7] & dr::DR7_GD != 0 {
        debug::report(cpu, dr::BD);
        return Err(cpu.raise(1, None));
    }
    Ok(n as usize)
}

/// Returns the time-stamp counter.
pub fn tsc(cpu: &mut Cpu) -> u64 {
    cpu.sync_clock();
    TSC_FREQUENCY.ticks(cpu.platform.clock().now_ns()).wrapping_add(cpu.sys.tsc_offset)
}

/// Executes RDTSC (`imm` 0) and RDTSCP (`imm` 1).
pub fn rdtsc(cpu: &mut Cpu, op: &Op) -> Result<(), Fault> {
    if cpu.sys.cr4 & cr4::TSD != 0 && cpu.cpl != 0 {
        return Err(cpu.general_protection(0));
    }
    let now = tsc(cpu);
    cpu.regs[0] = now & 0xffff_ffff;
    cpu.regs[2] = now >> 32;
    if op.imm != 0 {
        cpu.regs[1] = cpu.sys.tsc_aux & 0xffff_ffff;
    }
    Ok(())
}

/// Executes RDPMC for the four counters that every AMD processor has (APM vol. 3, RDPMC). They do not count: see `msr`.
pub fn rdpmc(cpu: &mut Cpu, _: &Op) -> Result<(), Fault> {
    if (cpu.cpl != 0 && cpu.sys.cr4 & cr4::PCE == 0) || cpu.regs[1] as u32 > 3 {
        return Err(cpu.general_protection(0));
    }
    (cpu.regs[0], cpu.regs[2]) = (0, 0);
    Ok(())
}

/// Executes RDRAND and RDSEED: `dst` is the register, `src` its bytes. CF says whether there was a number; it is clear
/// only if the host has none.
pub fn random(cpu: &mut Cpu, op: &Op) -> Result<(), Fault> {
    let value = match cpu.manual_clock {
        Some(_) => Some(same_random(cpu)),
        None => {
            let mut bytes = [0u8; 8];
            getrandom::fill(&mut bytes).is_ok().then(|| u64::from_le_bytes(bytes))
        }
    };
    write_gpr(cpu, op.dst, op.src, value.unwrap_or(0));
    set_flags(cpu, if value.is_some() { rflags::CF } else { 0 }, rflags::ARITH);
    Ok(())
}

/// Returns the next number of a sequence that is the same in every run: in deterministic mode nothing comes from the host. The
/// numbers only have to differ, since kernels refuse an RDRAND that repeats itself; they are no secret.
fn same_random(cpu: &mut Cpu) -> u64 {
    cpu.randoms = cpu.randoms.wrapping_add(1);
    let mut value = cpu.randoms;
    for _ in 0..3 {
        // An odd factor and a shifted exclusive or are both reversible, so that no two numbers are the same.
        value = value.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        value ^= value >> 29;
    }
    value
}

/// Executes XGETBV.
pub fn xgetbv(cpu: &mut Cpu, _: &Op) -> Result<(), Fault> {
    if cpu.sys.cr4 & cr4::OSXSAVE == 0 {
        return Err(cpu.undefined());
    }
    if cpu.regs[1] as u32 != 0 {
        return Err(cpu.general_protection(0));
    }
    cpu.regs[0] = cpu.sys.xcr0 & 0xffff_ffff;
    cpu.regs[2] = cpu.sys.xcr0 >> 32;
    Ok(())
}

/// Executes XSETBV. x87 must stay on, SSE may be on, and nothing else is allowed.
pub fn xsetbv(cpu: &mut Cpu, _: &Op) -> Result<(), Fault> {
    if cpu.sys.cr4 & cr4::OSXSAVE == 0 {
        return Err(cpu.undefined());
    }
    check_privileged(cpu)?;
    let value = cpu.regs[2] << 32 | cpu.regs[0] & 0xffff_ffff;
    if cpu.regs[1] as u32 != 0 || value & 1 == 0 || value & !3 != 0 {
        return Err(cpu.general_protection(0));
    }
    cpu.sys.xcr0 = value;
    Ok(())
}
