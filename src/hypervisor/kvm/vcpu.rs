//! The registers of a vCPU: where a loader enters the guest, what firmware would have set, and the dump for the log.
//!
//! Sources: Linux `Documentation/virt/kvm/api.rst`, sections 4.11 to 4.14 (registers), 4.19 (KVM_SET_MSRS), 4.57
//! (KVM_GET_LAPIC), 4.97 (KVM_X86_SET_MSR_FILTER); SDM vol. 3 chapter 11 (local APIC, memory types).

use std::io;

use kvm_bindings::{Msrs, kvm_lapic_state, kvm_msr_entry, kvm_segment};
use kvm_ioctls::{MsrFilterDefaultAction, MsrFilterRange, MsrFilterRangeFlags, VcpuFd, VmFd};

use crate::hypervisor::entry::{EntryState, MemoryTypes, SegmentState};

/// Offsets of LVT LINT0 and LINT1 in the local APIC's page (SDM vol. 3 table 11-1).
const LINT0: usize = 0x350;
const LINT1: usize = 0x360;
/// Delivery modes and the mask of an LVT entry (SDM vol. 3 section 11.5.1).
const MODE: u32 = 7 << 8;
const MODE_NMI: u32 = 4 << 8;
const MODE_EXTINT: u32 = 7 << 8;
const MASKED: u32 = 1 << 16;

/// MSRs of memory types (SDM vol. 3 section 12.11).
const MTRR_VARIABLE: u32 = 0x200;
const MTRR_FIXED: [u32; 11] = [0x250, 0x258, 0x259, 0x268, 0x269, 0x26a, 0x26b, 0x26c, 0x26d, 0x26e, 0x26f];
const MTRR_DEFAULT: u32 = 0x2ff;

fn segment(state: SegmentState) -> kvm_segment {
    let bit = |n: u16| (state.attributes >> n & 1) as u8;
    kvm_segment {
        base: state.base,
        limit: state.limit,
        selector: state.selector,
        type_: (state.attributes & 0xf) as u8,
        s: bit(4),
        dpl: (state.attributes >> 5 & 3) as u8,
        present: bit(7),
        avl: bit(12),
        l: bit(13),
        db: bit(14),
        g: bit(15),
        unusable: 0,
        padding: 0,
    }
}

/// Sets the registers with which a loader enters the guest.
pub fn enter(vcpu: &VcpuFd, state: &EntryState) -> io::Result<()> {
    let mut sregs = vcpu.get_sregs()?;
    let data = segment(state.data);
    (sregs.cs, sregs.tr) = (segment(state.code), segment(state.task));
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    (sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer) = (state.cr0, state.cr3, state.cr4, state.efer);
    (sregs.gdt.base, sregs.gdt.limit) = (state.gdt_base, state.gdt_limit);
    vcpu.set_sregs(&sregs)?;
    // Of RFLAGS only the bit that is always set.
    let regs = kvm_bindings::kvm_regs {
        rip: state.rip,
        rax: state.rax,
        rbx: state.rbx,
        rsi: state.rsi,
        rflags: 2,
        ..Default::default()
    };
    Ok(vcpu.set_regs(&regs)?)
}

/// Sets the memory types as firmware does.
pub fn set_memory_types(vcpu: &VcpuFd, types: &MemoryTypes) -> io::Result<()> {
    let fixed = MTRR_FIXED.into_iter().zip(types.fixed);
    let variable = (MTRR_VARIABLE..).zip(types.variable).filter(|&(_, value)| value != 0);
    let all = fixed.chain(variable).chain([(MTRR_DEFAULT, types.default)]);
    let entries: Vec<_> = all.map(|(index, data)| kvm_msr_entry { index, data, ..Default::default() }).collect();
    let set = vcpu.set_msrs(&Msrs::from_entries(&entries).expect("fewer than the kernel's limit"))?;
    match entries.get(set) {
        None => Ok(()),
        Some(refused) => Err(io::Error::other(format!("KVM refuses the register {:#x}", refused.index))),
    }
}

fn lvt(lapic: &kvm_lapic_state, at: usize) -> u32 {
    u32::from_le_bytes(std::array::from_fn(|i| lapic.regs[at + i] as u8))
}

/// Sets the local APIC's pins as firmware does: the 8259A pair at LINT0, NMI at LINT1 (MultiProcessor Specification 1.4
/// section 3.6.2.2, virtual wire mode).
pub fn wire_local_apic(vcpu: &VcpuFd) -> io::Result<()> {
    let mut lapic = vcpu.get_lapic()?;
    for (at, mode) in [(LINT0, MODE_EXTINT), (LINT1, MODE_NMI)] {
        let entry = lvt(&lapic, at) & !(MODE | MASKED) | mode;
        for (register, byte) in lapic.regs[at..].iter_mut().zip(entry.to_le_bytes()) {
            *register = byte as _;
        }
    }
    Ok(vcpu.set_lapic(&lapic)?)
}

/// Delivers a pulse of LINT1, if the guest takes it as an NMI.
pub fn pulse_lint1(vcpu: &VcpuFd) -> io::Result<()> {
    if vcpu.get_lapic().is_ok_and(|lapic| lvt(&lapic, LINT1) & (MODE | MASKED) == MODE_NMI) {
        vcpu.nmi()?;
    }
    Ok(())
}

/// Ranges of MSRs that no guest of this machine has business with, since CPUID offers nothing of them: VMX's capabilities,
/// SVM's control, the hypercalls and synthetic devices of Hyper-V. An access is a general-protection fault.
const WITHHELD_MSRS: [(u32, u32); 3] = [(0x480, 0x14), (0xc001_0114, 4), (0x4000_0000, 0x200)];

/// Withholds MSRs from the guest, where the kernel can: before Linux 5.10 it has no filter, and KVM itself refuses most of
/// them.
pub fn withhold_msrs(vm: &VmFd) -> io::Result<()> {
    let none_allowed = [0; 0x200 / 8];
    let flags = MsrFilterRangeFlags::READ | MsrFilterRangeFlags::WRITE;
    let ranges = WITHHELD_MSRS.map(|(base, msr_count)| MsrFilterRange {
        flags,
        base,
        msr_count,
        bitmap: &none_allowed[..msr_count.div_ceil(8) as usize],
    });
    Ok(vm.set_msr_filter(MsrFilterDefaultAction::ALLOW, &ranges)?)
}

/// Returns whether a vCPU is at its first instruction after INIT: 16 bytes below 4 GiB (SDM vol. 3 table 10-1).
pub fn is_at_reset_vector(vcpu: &VcpuFd) -> bool {
    let (Ok(regs), Ok(sregs)) = (vcpu.get_regs(), vcpu.get_sregs()) else { return false };
    (sregs.cs.base, regs.rip) == (0xffff_0000, 0xfff0)
}

/// Returns the registers of a vCPU as lines for the log.
pub fn dump(vcpu: &VcpuFd) -> String {
    let (Ok(r), Ok(s)) = (vcpu.get_regs(), vcpu.get_sregs()) else { return "its registers cannot be read".into() };
    let segment = |name: &str, s: &kvm_segment| {
        format!(
            "{name}={:04x} base={:x} limit={:x} type={:x} s={} dpl={} l={} db={}",
            s.selector, s.base, s.limit, s.type_, s.s, s.dpl, s.l, s.db
        )
    };
    let general = [
        ("rax", r.rax),
        ("rbx", r.rbx),
        ("rcx", r.rcx),
        ("rdx", r.rdx),
        ("rsi", r.rsi),
        ("rdi", r.rdi),
        ("rbp", r.rbp),
        ("rsp", r.rsp),
        ("r8", r.r8),
        ("r9", r.r9),
        ("r10", r.r10),
        ("r11", r.r11),
        ("r12", r.r12),
        ("r13", r.r13),
        ("r14", r.r14),
        ("r15", r.r15),
    ];
    let words = |list: &[(&str, u64)]| list.iter().map(|(name, value)| format!("{name}={value:x}")).collect::<Vec<_>>().join(" ");
    let control = [("cr0", s.cr0), ("cr2", s.cr2), ("cr3", s.cr3), ("cr4", s.cr4), ("efer", s.efer)];
    let tables = [("gdt", s.gdt.base), ("idt", s.idt.base)];
    [
        words(&[("rip", r.rip), ("rflags", r.rflags)]),
        words(&general[..8]),
        words(&general[8..]),
        words(&control),
        words(&tables),
        segment("cs", &s.cs),
        segment("ss", &s.ss),
        segment("ds", &s.ds),
        segment("tr", &s.tr),
    ]
    .join("\n  ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hypervisor::backend::BootState;

    #[test]
    fn a_segment_has_the_bits_of_its_descriptor() {
        let boot = BootState::Long { rip: 0, rsi: 0, cr3: 0, gdt_base: 0, gdt_limit: 0 };
        let state = EntryState::of(&boot).unwrap();
        let code = segment(state.code);
        assert_eq!((code.type_, code.s, code.dpl, code.present, code.l, code.db, code.g), (11, 1, 0, 1, 1, 0, 1));
        let task = segment(state.task);
        assert_eq!((task.type_, task.s, task.present, task.g, task.limit), (11, 0, 1, 0, 0x67));
    }
}
