//! RDMSR and WRMSR: the model-specific registers.
//!
//! SDM vol. 4; APM vol. 2 appendix A; Linux `virt/kvm/x86/msr.rst` for KVM's. Those of the local APIC belong to the
//! platform.
//!
//! MTRRs and PAT are storage only, since memory has no types here. `start` puts there what firmware would have. There
//! are no machine-check banks. A register that does not exist raises #GP, as it does on the processor.
//!
//! The model is an AMD processor, and its registers are those that such a processor always has, whatever CPUID lists
//! (APM vol. 2 appendix A; PPR for family 19h model 11h, 55901, section 2.1.14). Those that only tune caches, redirect
//! machine checks or belong to firmware read as after reset and keep nothing ([`is_inert`]).
//!
//! **Not modelled**: performance counting. The four counters and their controls exist, read as zero and keep nothing,
//! as under KVM without a PMU: Linux writes one, reads it back, and then counts with its software clock.

use super::super::cpu::{Cpu, FS, Fault, GS};
use super::super::mmu::{self, is_canonical};
use super::super::op::Op;
use super::control::{check_privileged, tsc, write_efer};
use super::cpuid::TSC_FREQUENCY;
use super::regs::debug_ctl;
use super::regs::msr::*;
use super::{cpuid, kvmclock};
use crate::hypervisor::memory::{Mode, Region};

/// The error for a register that does not exist, or does not take the value.
struct Refused;

/// Executes RDMSR.
pub fn rdmsr(cpu: &mut Cpu, _: &Op) -> Result<(), Fault> {
    check_privileged(cpu)?;
    let number = cpu.regs[1] as u32;
    match read(cpu, number) {
        Ok(value) => {
            cpu.regs[0] = value & 0xffff_ffff;
            cpu.regs[2] = value >> 32;
            Ok(())
        }
        Err(Refused) => Err(cpu.general_protection(0)),
    }
}

/// Executes WRMSR.
pub fn wrmsr(cpu: &mut Cpu, _: &Op) -> Result<(), Fault> {
    check_privileged(cpu)?;
    cpu.sync_clock();
    let number = cpu.regs[1] as u32;
    let value = cpu.regs[2] << 32 | cpu.regs[0] & 0xffff_ffff;
    if write(cpu, number, value).is_err() {
        return Err(cpu.general_protection(0));
    }
    mmu::after_device_access(cpu);
    Ok(())
}

/// Returns the index in `mtrr_fixed`.
fn fixed_index(number: u32) -> usize {
    match number {
        MTRR_FIX64K => 0,
        MTRR_FIX16K_0 => 1,
        MTRR_FIX16K_1 => 2,
        _ => 3 + (number - MTRR_FIX4K_FIRST) as usize,
    }
}

fn read(cpu: &mut Cpu, number: u32) -> Result<u64, Refused> {
    let s = &cpu.sys;
    Ok(match number {
        TSC => tsc(cpu),
        TSC_ADJUST => s.tsc_adjust,
        TSC_DEADLINE => {
            let offset = s.tsc_offset;
            match apic_read(cpu, number)? {
                0 => 0,
                deadline => TSC_FREQUENCY.ticks(deadline).wrapping_add(offset),
            }
        }
        APIC_BASE | X2APIC_FIRST..=X2APIC_LAST => apic_read(cpu, number)?,
        // Platform, power-on configuration, machine check: none.
        PLATFORM_ID | EBL_CR_POWERON | MCG_CAP | MCG_STATUS => 0,
        DEBUG_CTL => s.debug_ctl,
        LAST_BRANCH_FIRST..=LAST_BRANCH_LAST => s.last_branch[(number - LAST_BRANCH_FIRST) as usize],
        // The patch level of the microcode.
        BIOS_SIGN_ID => 0x0a10_1148,
        // Eight variable ranges, fixed ranges, write combining.
        MTRR_CAP => 0x508,
        SYSENTER_CS => s.sysenter_cs,
        SYSENTER_ESP => s.sysenter_esp,
        SYSENTER_EIP => s.sysenter_eip,
        MISC_ENABLE => s.misc_enable,
        MTRR_PHYS_FIRST..=MTRR_PHYS_LAST => s.mtrr_variable[(number - MTRR_PHYS_FIRST) as usize],
        MTRR_FIX64K | MTRR_FIX16K_0 | MTRR_FIX16K_1 | MTRR_FIX4K_FIRST..=MTRR_FIX4K_LAST => s.mtrr_fixed[fixed_index(number)],
        MTRR_DEF_TYPE => s.mtrr_def_type,
        PAT => s.pat,
        KVM_WALL_CLOCK | KVM_WALL_CLOCK_OLD => s.kvm_wall_clock,
        KVM_SYSTEM_TIME | KVM_SYSTEM_TIME_OLD => s.kvm_system_time,
        EFER => s.efer,
        STAR => s.star,
        LSTAR => s.lstar,
        CSTAR => s.cstar,
        SFMASK => s.sfmask,
        FS_BASE => cpu.segs[FS].base,
        GS_BASE => cpu.segs[GS].base,
        KERNEL_GS_BASE => s.kernel_gs_base,
        TSC_AUX => s.tsc_aux,
        SYSCFG => s.syscfg,
        // Bit 24: the TSC counts at the P0 frequency.
        HWCR => s.hwcr | 1 << 24,
        TOP_MEM => end_of_memory(cpu, 0, FOUR_GIB),
        TOP_MEM2 => end_of_memory(cpu, FOUR_GIB, u64::MAX),
        INT_PENDING | MMIO_CONF_BASE | PSTATE_CURRENT_LIMIT | OSVW_ID_LENGTH | OSVW_STATUS => 0,
        PROCESSOR_NAME_FIRST..=PROCESSOR_NAME_LAST => cpuid::brand_part((number - PROCESSOR_NAME_FIRST) as usize),
        SMM_BASE => SMM_BASE_RESET,
        // SVM is off (SVMDIS), and it stays off (LOCK).
        VM_CR => 1 << 4 | 1 << 3,
        // Bit 1: LFENCE serialises.
        DE_CFG => 2,
        _ if is_inert(number) => 0,
        _ => return Err(Refused),
    })
}

/// Returns whether the register is one that every AMD processor has and that nothing here depends on: it reads as zero
/// and keeps nothing.
fn is_inert(number: u32) -> bool {
    matches!(
        number,
        PERF_FIRST..=PERF_LAST
            | IORR_FIRST..=IORR_LAST
            | NB_CFG
            | MC_EXCEPTION_REDIRECT
            | IO_TRAP_FIRST..=IO_TRAP_LAST
            | SMI_TRIGGER
            | CPU_WATCHDOG
            | SMM_ADDR
            | SMM_MASK
            | IGNNE
            | LS_CFG
            | IC_CFG
            | DC_CFG
            | BU_CFG
            | FP_CFG
            | BU_CFG2
            | L2_PREFETCH_CFG
            | EX_CFG
    )
}

const FOUR_GIB: u64 = 1 << 32;
/// SMM_BASE after reset (APM vol. 2 section 10.2.2).
const SMM_BASE_RESET: u64 = 0x3_0000;

/// Returns where the memory between `from` and `to` ends, in the units of 8 MiB of TOP_MEM and TOP_MEM2. Returns `from`
/// if there is none.
fn end_of_memory(cpu: &Cpu, from: u64, to: u64) -> u64 {
    let starts = from..to;
    let is_ram = |region: &&Region| region.mode() == Mode::Ram && starts.contains(&region.base().0);
    let ends = cpu.map.regions().iter().filter(is_ram).map(Region::end);
    ends.max().unwrap_or(from).next_multiple_of(8 << 20)
}

fn apic_read(cpu: &Cpu, number: u32) -> Result<u64, Refused> {
    cpu.apics.msr_read(cpu.index, number).map_err(|_| Refused)
}

fn is_memory_type(value: u64) -> bool {
    matches!(value, 0 | 1 | 4 | 5 | 6)
}

fn ensure(good: bool) -> Result<(), Refused> {
    if good { Ok(()) } else { Err(Refused) }
}

fn write(cpu: &mut Cpu, number: u32, value: u64) -> Result<(), Refused> {
    match number {
        TSC => {
            let delta = value.wrapping_sub(tsc(cpu));
            set_tsc_offset(cpu, delta);
        }
        TSC_ADJUST => set_tsc_offset(cpu, value.wrapping_sub(cpu.sys.tsc_adjust)),
        TSC_DEADLINE => {
            // The platform counts nanoseconds. Zero disarms the timer, so a deadline in the past is 1.
            let ticks = (value.wrapping_sub(cpu.sys.tsc_offset) as i64).max(0) as u64;
            let deadline = if value == 0 { 0 } else { TSC_FREQUENCY.ns(ticks).max(1) };
            return apic_write(cpu, number, deadline);
        }
        APIC_BASE | X2APIC_FIRST..=X2APIC_LAST => return apic_write(cpu, number, value),
        BIOS_UPDT_TRIG | PLATFORM_ID | EBL_CR_POWERON | MMIO_CONF_BASE | PATCH_LOADER | BIOS_SIGN_ID | INT_PENDING => {}
        DE_CFG | TOP_MEM | TOP_MEM2 | SMM_BASE | VM_CR | PROCESSOR_NAME_FIRST..=PROCESSOR_NAME_LAST => {}
        MCG_STATUS => ensure(value == 0)?,
        DEBUG_CTL => {
            ensure(value & !debug_ctl::ALL == 0)?;
            cpu.sys.debug_ctl = value;
            // Branches are recorded by stepping, so blocks must be decoded again.
            cpu.leave_after_op = true;
        }
        SYSENTER_CS => cpu.sys.sysenter_cs = value & 0xffff_ffff,
        SYSENTER_ESP => {
            ensure(is_canonical(value))?;
            cpu.sys.sysenter_esp = value;
        }
        SYSENTER_EIP => {
            ensure(is_canonical(value))?;
            cpu.sys.sysenter_eip = value;
        }
        MISC_ENABLE => cpu.sys.misc_enable = value,
        MTRR_PHYS_FIRST..=MTRR_PHYS_LAST => write_variable_mtrr(cpu, number, value)?,
        MTRR_FIX64K | MTRR_FIX16K_0 | MTRR_FIX16K_1 | MTRR_FIX4K_FIRST..=MTRR_FIX4K_LAST => {
            // On AMD's processors bits 4:3 of each byte direct the access to memory or I/O (SYSCFG.MtrrFixDramEn).
            ensure(value.to_le_bytes().iter().all(|&b| is_memory_type(u64::from(b & !0x18))))?;
            cpu.sys.mtrr_fixed[fixed_index(number)] = value;
        }
        MTRR_DEF_TYPE => {
            ensure(value & !0xcff == 0 && is_memory_type(value & 0xff))?;
            cpu.sys.mtrr_def_type = value;
        }
        PAT => {
            ensure(value.to_le_bytes().iter().all(|&b| b == 7 || is_memory_type(u64::from(b))))?;
            cpu.sys.pat = value;
        }
        KVM_WALL_CLOCK | KVM_WALL_CLOCK_OLD => kvmclock::write_wall_clock(cpu, value),
        KVM_SYSTEM_TIME | KVM_SYSTEM_TIME_OLD => kvmclock::set_system_time(cpu, value),
        EFER => {
            write_efer(cpu, value).map_err(|()| Refused)?;
            cpu.leave_after_op = true;
        }
        STAR => cpu.sys.star = value,
        LSTAR | CSTAR => {
            ensure(is_canonical(value))?;
            if number == LSTAR { cpu.sys.lstar = value } else { cpu.sys.cstar = value }
        }
        SFMASK => cpu.sys.sfmask = value & 0xffff_ffff,
        FS_BASE | GS_BASE | KERNEL_GS_BASE => {
            ensure(is_canonical(value))?;
            match number {
                FS_BASE => cpu.segs[FS].base = value,
                GS_BASE => cpu.segs[GS].base = value,
                _ => cpu.sys.kernel_gs_base = value,
            }
        }
        TSC_AUX => {
            ensure(value >> 32 == 0)?;
            cpu.sys.tsc_aux = value;
        }
        SYSCFG => cpu.sys.syscfg = value,
        HWCR => cpu.sys.hwcr = value,
        _ if is_inert(number) => {}
        _ => return Err(Refused),
    }
    Ok(())
}

fn apic_write(cpu: &Cpu, number: u32, value: u64) -> Result<(), Refused> {
    cpu.apics.msr_write(cpu.index, number, value).map_err(|_| Refused)
}

/// Moves the TSC by `delta`: offset and TSC_ADJUST move together (SDM vol. 3 section 18.17.3).
fn set_tsc_offset(cpu: &mut Cpu, delta: u64) {
    cpu.sys.tsc_offset = cpu.sys.tsc_offset.wrapping_add(delta);
    cpu.sys.tsc_adjust = cpu.sys.tsc_adjust.wrapping_add(delta);
    kvmclock::update(cpu);
}

fn write_variable_mtrr(cpu: &mut Cpu, number: u32, value: u64) -> Result<(), Refused> {
    let high = !((1u64 << mmu::PHYS_BITS) - 1);
    if number & 1 == 0 {
        ensure(value & (high | 0xf00) == 0 && is_memory_type(value & 0xff))?;
    } else {
        ensure(value & (high | 0x7ff) == 0)?;
    }
    cpu.sys.mtrr_variable[(number - MTRR_PHYS_FIRST) as usize] = value;
    Ok(())
}
