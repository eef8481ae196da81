//! RDMSR and WRMSR: the model-specific registers.
//!
//! SDM vol. 4; APM vol. 2 appendix A; Linux `virt/kvm/x86/msr.rst` for KVM's. The local APIC's are the platform's.
//!
//! MTRRs and PAT are storage: memory has no types here. There are no machine-check banks and no performance
//! counters. A register that does not exist raises #GP, as it does on the processor.

use super::super::cpu::{Cpu, FS, Fault, GS};
use super::super::mmu::{self, is_canonical};
use super::super::op::Op;
use super::control::{check_privileged, tsc, write_efer};
use super::kvmclock;
use super::regs::msr::*;

/// The register does not exist, or does not take the value.
struct Refused;

/// RDMSR.
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

/// WRMSR.
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

/// Index in `mtrr_fixed`.
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
                deadline => deadline.wrapping_add(offset),
            }
        }
        APIC_BASE | X2APIC_FIRST..=X2APIC_LAST => apic_read(cpu, number)?,
        // Platform, power-on configuration, machine check, last-branch control: nothing there.
        PLATFORM_ID | EBL_CR_POWERON | MCG_CAP | MCG_STATUS | DEBUG_CTL => 0,
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
        TOP_MEM | TOP_MEM2 | NB_CFG | INT_PENDING | MMIO_CONF_BASE | PSTATE_CURRENT_LIMIT => 0,
        OSVW_ID_LENGTH | OSVW_STATUS | IC_CFG | DC_CFG | BU_CFG | BU_CFG2 => 0,
        // Bit 1: LFENCE serialises.
        DE_CFG => 2,
        _ => return Err(Refused),
    })
}

fn apic_read(cpu: &Cpu, number: u32) -> Result<u64, Refused> {
    cpu.platform.apic_msr_read(cpu.index, number).map_err(|_| Refused)
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
            // The platform counts nanoseconds; zero disarms, so a deadline in the past is 1.
            let deadline = if value == 0 { 0 } else { (value.wrapping_sub(cpu.sys.tsc_offset) as i64).max(1) as u64 };
            return apic_write(cpu, number, deadline);
        }
        APIC_BASE | X2APIC_FIRST..=X2APIC_LAST => return apic_write(cpu, number, value),
        BIOS_UPDT_TRIG | PLATFORM_ID | EBL_CR_POWERON | MMIO_CONF_BASE | PATCH_LOADER | BIOS_SIGN_ID | INT_PENDING => {}
        NB_CFG | IC_CFG | DC_CFG | BU_CFG | BU_CFG2 | DE_CFG => {}
        MCG_STATUS | DEBUG_CTL => ensure(value == 0)?,
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
        _ => return Err(Refused),
    }
    Ok(())
}

fn apic_write(cpu: &Cpu, number: u32, value: u64) -> Result<(), Refused> {
    cpu.platform.apic_msr_write(cpu.index, number, value).map_err(|_| Refused)
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
