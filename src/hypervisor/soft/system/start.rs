//! Reset, INIT, start-up, and the states in which loaders enter the guest.
//!
//! SDM vol. 3 table 10-1 (state after power-up, reset, INIT), section 9.4 (start-up).

use super::super::cpu::{CS, Cpu, Fpu, LDTR, REGS, RIP, SS, Segment, SystemState, TR, rflags};
use super::super::flags::LazyFlags;
use super::super::lower::Mode;
use super::super::{mmu, tlb};
use super::cpuid::SIGNATURE;
use super::debug;
use super::regs::{attr, cr0, cr4, dr};
use super::segment::{is_real, is_vm86};
use crate::hypervisor::backend::BootState;
use crate::hypervisor::entry::{EntryState, MemoryTypes, SegmentState};

/// The page-attribute table after reset.
const PAT_RESET: u64 = 0x0007_0406_0007_0406;

/// Sets the state after INIT (SDM vol. 3 table 10-1). With `power_on` also resets what INIT keeps.
pub fn reset(cpu: &mut Cpu, power_on: bool) {
    cpu.regs = [0; REGS];
    cpu.regs[2] = u64::from(SIGNATURE);
    cpu.regs[RIP] = 0xfff0;
    cpu.next_rip = 0xfff0;
    cpu.rflags = rflags::FIXED;
    cpu.flags = LazyFlags::raw(0);
    let data = Segment { selector: 0, attr: 0x93, limit: 0xffff, base: 0 };
    cpu.segs = [data; 8];
    cpu.segs[CS] = Segment { selector: 0xf000, attr: 0x9b, limit: 0xffff, base: 0xffff_0000 };
    cpu.segs[LDTR] = Segment { selector: 0, attr: 0x82, limit: 0xffff, base: 0 };
    cpu.segs[TR] = Segment { selector: 0, attr: 0x8b, limit: 0xffff, base: 0 };
    cpu.cpl = 0;
    cpu.interrupt_shadow = false;
    cpu.nmi_blocked = false;
    cpu.debug_shadow = false;
    cpu.debug_pending = 0;
    cpu.no_step_trap = false;
    cpu.leave_after_op = false;
    cpu.halted = false;
    cpu.wait_for_sipi = cpu.index != 0;
    if power_on {
        cpu.sys = SystemState { cr0: cr0::CD | cr0::NW, pat: PAT_RESET, xcr0: 1, misc_enable: 1, ..SystemState::default() };
        cpu.xmm = [[0; 2]; 16];
        cpu.mxcsr = 0x1f80;
        cpu.fpu = Fpu {
            mantissa: [0; 8],
            sign_exp: [0; 8],
            fcw: 0x40,
            fsw: 0,
            // Tag word 0x5555: all registers hold zero, none is empty.
            ftw: 0xff,
            fop: 0,
            fip: 0,
            fdp: 0,
        };
    }
    let caches = cpu.sys.cr0 & (cr0::CD | cr0::NW);
    cpu.sys.cr0 = caches | cr0::ET;
    (cpu.sys.cr2, cpu.sys.cr3, cpu.sys.cr4, cpu.sys.efer) = (0, 0, 0, 0);
    cpu.sys.dr = [0, 0, 0, 0, 0, 0, dr::DR6_FIXED, dr::DR7_FIXED];
    cpu.sys.debug_ctl = 0;
    (cpu.sys.gdt_base, cpu.sys.gdt_limit) = (0, 0xffff);
    (cpu.sys.idt_base, cpu.sys.idt_limit) = (0, 0xffff);
    mmu::watchpoints_changed(cpu);
    tlb::flush(cpu, false);
    mmu::select_bank(cpu);
}

/// Starts an application processor at `vector << 12`.
pub fn start_up(cpu: &mut Cpu, vector: u8) {
    cpu.segs[CS].selector = u16::from(vector) << 8;
    cpu.segs[CS].base = u64::from(vector) << 12;
    cpu.regs[RIP] = 0;
    cpu.next_rip = 0;
    cpu.wait_for_sipi = false;
    cpu.halted = false;
}

/// Sets the state in which a loader enters the guest. The vCPU has been reset.
pub fn enter(cpu: &mut Cpu, boot: &BootState) {
    let Some(state) = EntryState::of(boot) else { return };
    let segment = |s: SegmentState| Segment { selector: s.selector, attr: s.attributes, limit: s.limit, base: s.base };
    (cpu.regs[0], cpu.regs[2], cpu.regs[3]) = (state.rax, 0, state.rbx);
    (cpu.regs[6], cpu.regs[RIP], cpu.next_rip) = (state.rsi, state.rip, state.rip);
    (cpu.sys.cr0, cpu.sys.cr3, cpu.sys.cr4, cpu.sys.efer) = (state.cr0, state.cr3, state.cr4, state.efer);
    cpu.segs[..6].fill(segment(state.data));
    cpu.segs[CS] = segment(state.code);
    cpu.segs[TR] = segment(state.task);
    (cpu.sys.gdt_base, cpu.sys.gdt_limit) = (state.gdt_base, state.gdt_limit);
    tlb::flush(cpu, false);
    mmu::select_bank(cpu);
}

/// Sets the memory types as firmware leaves them.
pub fn set_memory_types(cpu: &mut Cpu, windows: &[(u64, u64)]) {
    let types = MemoryTypes::around(windows, mmu::PHYS_BITS);
    (cpu.sys.mtrr_fixed, cpu.sys.mtrr_variable, cpu.sys.mtrr_def_type) = (types.fixed, types.variable, types.default);
}

/// Returns the mode that blocks are now decoded in.
pub fn mode_of(cpu: &Cpu) -> Mode {
    let mut mode = 0;
    if cpu.is_64bit() {
        mode |= Mode::LONG | Mode::STACK32;
    } else {
        if cpu.segs[CS].attr & attr::DB != 0 {
            mode |= Mode::CODE32;
        }
        if cpu.segs[SS].attr & attr::DB != 0 {
            mode |= Mode::STACK32;
        }
        // ES, SS, DS: 0, 2 and 3.
        let flat = [0, SS, 3].iter().all(|&n| {
            let s = &cpu.segs[n];
            s.base == 0 && s.limit == 0xffff_ffff && s.present() && s.is_writable() && s.attr & attr::DC == 0
        });
        if flat {
            mode |= Mode::FLAT;
        }
        if is_real(cpu) || is_vm86(cpu) {
            mode |= Mode::REAL;
        }
    }
    if cpu.cpl == 3 {
        mode |= Mode::CPL3;
    }
    let em = cpu.sys.cr0 & cr0::EM != 0;
    let ts = cpu.sys.cr0 & cr0::TS != 0;
    if em || ts {
        mode |= Mode::FPU_OFF;
    }
    if em || cpu.sys.cr4 & cr4::OSFXSR == 0 {
        mode |= Mode::SSE_UD;
    }
    if ts {
        mode |= Mode::SSE_NM;
    }
    if cpu.rflags & rflags::TF != 0 || debug::breaks_on_execution(cpu) || debug::records_branches(cpu) {
        mode |= Mode::STEP;
    }
    Mode(mode)
}

/// Returns the mode that blocks are now decoded in, and updates `cpu.bank`. The dispatcher calls it after each leaving
/// op.
pub fn refresh_mode(cpu: &mut Cpu) -> Mode {
    mmu::select_bank(cpu);
    mode_of(cpu)
}
