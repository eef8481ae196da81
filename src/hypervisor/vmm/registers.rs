//! The registers of a vCPU: after power-on, where a loader enters the guest, at a start-up message, for one instruction, and
//! the dump for the log.
//!
//! Sources: SDM vol. 3 table 9-1 (state after power-on and INIT) and section 8.4.4 (start-up); APM vol. 2 section 14.1.3.

use std::io;

use super::abi::{Reg, SegDesc};
use super::vm::Vm;
use crate::hypervisor::entry::{EntryState, SegmentState};
use crate::hypervisor::soft::one::Registers;

/// The general registers in the encoding's order.
const GENERAL: [Reg; 16] = [
    Reg::Rax,
    Reg::Rcx,
    Reg::Rdx,
    Reg::Rbx,
    Reg::Rsp,
    Reg::Rbp,
    Reg::Rsi,
    Reg::Rdi,
    Reg::R8,
    Reg::R9,
    Reg::R10,
    Reg::R11,
    Reg::R12,
    Reg::R13,
    Reg::R14,
    Reg::R15,
];
/// What stands beside them in [`Registers`].
const OTHERS: [Reg; 7] = [Reg::Rip, Reg::Rflags, Reg::Cr0, Reg::Cr2, Reg::Cr3, Reg::Cr4, Reg::Efer];
const SEGMENTS: [Reg; 6] = [Reg::Es, Reg::Cs, Reg::Ss, Reg::Ds, Reg::Fs, Reg::Gs];
const DATA_SEGMENTS: [Reg; 5] = [Reg::Es, Reg::Ss, Reg::Ds, Reg::Fs, Reg::Gs];

/// Marks a segment that is not usable, in [`SegDesc::access`].
const UNUSABLE: u32 = 1 << 16;
/// IA32_EFER.LMA and the L bit of CS: 64-bit mode.
const LMA: u64 = 1 << 10;
const LONG: u16 = 1 << 13;

fn descriptor(state: &SegmentState) -> SegDesc {
    SegDesc { base: state.base, limit: state.limit, access: state.attributes.into() }
}

fn segment(selector: u64, descriptor: SegDesc) -> SegmentState {
    let attributes = if descriptor.access & UNUSABLE != 0 { 0 } else { descriptor.access as u16 };
    SegmentState { selector: selector as u16, attributes, limit: descriptor.limit, base: descriptor.base }
}

fn set_all(vm: &dyn Vm, vcpu: usize, values: &[(Reg, u64)]) -> io::Result<()> {
    values.iter().try_for_each(|&(number, value)| vm.set_register(vcpu, number, value))
}

fn set_segment(vm: &dyn Vm, vcpu: usize, number: Reg, state: &SegmentState) -> io::Result<()> {
    vm.set_descriptor(vcpu, number, descriptor(state))?;
    vm.set_register(vcpu, number, state.selector.into())
}

/// Resets a vCPU as after power-on.
pub fn reset(vm: &dyn Vm, vcpu: usize) -> io::Result<()> {
    let real = |selector: u16, base: u64| SegmentState { selector, attributes: 0x93, limit: 0xffff, base };
    let system = |attributes: u16| SegmentState { attributes, ..real(0, 0) };
    // NW and CD are left out of CR0: nothing here depends on them, and a guest without firmware would keep caches off.
    set_all(vm, vcpu, &[(Reg::Rflags, 2), (Reg::Cr0, 0x10), (Reg::Cr2, 0), (Reg::Cr3, 0), (Reg::Cr4, 0), (Reg::Efer, 0)])?;
    set_segment(vm, vcpu, Reg::Cs, &real(0xf000, 0xffff_0000))?;
    DATA_SEGMENTS.into_iter().try_for_each(|number| set_segment(vm, vcpu, number, &real(0, 0)))?;
    for number in GENERAL {
        vm.set_register(vcpu, number, if number == Reg::Rdx { 0xf00 } else { 0 })?;
    }
    for number in [Reg::Gdtr, Reg::Idtr] {
        vm.set_descriptor(vcpu, number, SegDesc { base: 0, limit: 0xffff, access: 0 })?;
    }
    set_segment(vm, vcpu, Reg::Tr, &system(0x8b))?;
    set_segment(vm, vcpu, Reg::Ldtr, &system(0x82))?;
    set_all(vm, vcpu, &[(Reg::Dr6, 0xffff_0ff0), (Reg::Dr7, 0x400), (Reg::IntrShadow, 0), (Reg::Rip, 0xfff0)])
}

/// Sets the registers with which a loader enters the guest, of a vCPU after a reset.
pub fn enter(vm: &dyn Vm, vcpu: usize, state: &EntryState) -> io::Result<()> {
    // The order of the control registers is that of libvmmapi: EFER's LMA follows CR0's PG.
    set_all(vm, vcpu, &[(Reg::Cr0, state.cr0), (Reg::Cr4, state.cr4), (Reg::Efer, state.efer), (Reg::Cr3, state.cr3)])?;
    set_segment(vm, vcpu, Reg::Cs, &state.code)?;
    DATA_SEGMENTS.into_iter().try_for_each(|number| set_segment(vm, vcpu, number, &state.data))?;
    set_segment(vm, vcpu, Reg::Tr, &state.task)?;
    vm.set_descriptor(vcpu, Reg::Ldtr, SegDesc { base: 0, limit: 0, access: UNUSABLE })?;
    vm.set_descriptor(vcpu, Reg::Gdtr, SegDesc { base: state.gdt_base, limit: state.gdt_limit.into(), access: 0 })?;
    let general = [(Reg::Rax, state.rax), (Reg::Rbx, state.rbx), (Reg::Rsi, state.rsi), (Reg::Rdx, 0), (Reg::Rip, state.rip)];
    set_all(vm, vcpu, &general)
}

/// Resets a vCPU and lets it start at `vector << 12` in real mode.
pub fn start_up(vm: &dyn Vm, vcpu: usize, vector: u8) -> io::Result<()> {
    reset(vm, vcpu)?;
    let page = u16::from(vector) << 8;
    let code = SegmentState { selector: page, attributes: 0x93, limit: 0xffff, base: u64::from(page) << 4 };
    set_segment(vm, vcpu, Reg::Cs, &code)?;
    vm.set_register(vcpu, Reg::Rip, 0)
}

/// Reads what one instruction at privilege `cpl` may use. In 64-bit mode DS and ES are not read, since nothing of them
/// matters.
pub fn read(vm: &dyn Vm, vcpu: usize, cpl: u8) -> io::Result<Registers> {
    let numbers = [&GENERAL[..], &OTHERS[..], &SEGMENTS[..]].concat();
    let mut values = vec![0; numbers.len()];
    vm.registers(vcpu, &numbers, &mut values)?;
    let (general, rest) = values.split_at(GENERAL.len());
    let (others, selectors) = rest.split_at(OTHERS.len());
    let (efer, code) = (others[6], vm.descriptor(vcpu, Reg::Cs)?);
    let is_64bit = efer & LMA != 0 && code.access as u16 & LONG != 0;
    let mut segments = [SegmentState { selector: 0, attributes: 0xc093, limit: u32::MAX, base: 0 }; 6];
    for ((number, state), &selector) in SEGMENTS.into_iter().zip(&mut segments).zip(selectors) {
        *state = match number {
            Reg::Cs => segment(selector, code),
            Reg::Es | Reg::Ds if is_64bit => SegmentState { selector: selector as u16, ..*state },
            _ => segment(selector, vm.descriptor(vcpu, number)?),
        };
    }
    Ok(Registers {
        general: general.try_into().expect("sixteen were asked for"),
        rip: others[0],
        rflags: others[1],
        cr0: others[2],
        cr2: others[3],
        cr3: others[4],
        cr4: others[5],
        efer,
        segments,
        cpl,
    })
}

/// Sets what an instruction changed, and where the vCPU goes on.
pub fn write_changes(vm: &dyn Vm, vcpu: usize, before: &Registers, after: &Registers) -> io::Result<()> {
    let changes = GENERAL.into_iter().zip(before.general.iter().zip(after.general)).filter(|(_, (old, new))| *old != new);
    changes.into_iter().try_for_each(|(number, (_, new))| vm.set_register(vcpu, number, new))?;
    if before.rflags != after.rflags {
        vm.set_register(vcpu, Reg::Rflags, after.rflags)?;
    }
    // Always: the kernel may have moved on already, by what it decoded of the instruction.
    vm.set_register(vcpu, Reg::Rip, after.rip)
}

/// Returns the registers of a vCPU as lines for the log.
pub fn dump(vm: &dyn Vm, vcpu: usize) -> String {
    let Ok(r) = read(vm, vcpu, 0) else { return "its registers cannot be read".into() };
    let names = ["rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"];
    let words = |list: &[(&str, u64)]| list.iter().map(|(name, value)| format!("{name}={value:x}")).collect::<Vec<_>>().join(" ");
    let general: Vec<(&str, u64)> = names.into_iter().zip(r.general).collect();
    let control = [("cr0", r.cr0), ("cr2", r.cr2), ("cr3", r.cr3), ("cr4", r.cr4), ("efer", r.efer)];
    let segments = ["es", "cs", "ss", "ds", "fs", "gs"].into_iter().zip(r.segments).map(|(name, s)| {
        format!("{name}={:04x} base={:x} limit={:x} attributes={:x}", s.selector, s.base, s.limit, s.attributes)
    });
    let lines = [words(&[("rip", r.rip), ("rflags", r.rflags)]), words(&general[..8]), words(&general[8..]), words(&control)];
    lines.into_iter().chain(segments).collect::<Vec<_>>().join("\n  ")
}
