//! KVM's paravirtual clock: the structures that it keeps in guest memory.
//!
//! Linux `virt/kvm/x86/msr.rst`: MSR_KVM_SYSTEM_TIME_NEW (0x4b564d01), MSR_KVM_WALL_CLOCK_NEW (0x4b564d00), and their
//! old numbers.
//!
//! The TSC is stable. So the structure is written only when the register is, and when the guest
//! moves its TSC.
//!
//! **Hostile guest**: addresses outside of memory are ignored.

use super::super::cpu::Cpu;
use super::control::tsc;
use super::cpuid::TSC_FREQUENCY;
use crate::hypervisor::memory::GuestAddr;

/// `PVCLOCK_TSC_STABLE_BIT`.
const TSC_STABLE: u8 = 1;
/// `PVCLOCK_GUEST_STOPPED`: the guest was not run for a while, and need not look for the cause. It clears the flag
/// itself (Linux `virt/kvm/x86/msr.rst`, flags, bit 1).
const GUEST_STOPPED: u8 = 2;
/// Offset of the flags in `struct pvclock_vcpu_time_info`.
const FLAGS: u64 = 29;
const NS_PER_SEC: u64 = 1_000_000_000;

/// Writes `struct pvclock_wall_clock`: the time of day when the system time was zero.
pub fn write_wall_clock(cpu: &mut Cpu, addr: u64) {
    cpu.sys.kvm_wall_clock = addr;
    let clock = cpu.platform.clock();
    let start_ns = clock.unix_ns().saturating_sub(clock.now_ns());
    let addr = GuestAddr(addr & !3);
    let mut bytes = [0u8; 12];
    // The version is even and changes: two per write.
    let version = cpu.memory.read_le::<u32>(addr).unwrap_or(0);
    bytes[..4].copy_from_slice(&(version.wrapping_add(2) & !1).to_le_bytes());
    bytes[4..8].copy_from_slice(&((start_ns / NS_PER_SEC) as u32).to_le_bytes());
    bytes[8..].copy_from_slice(&((start_ns % NS_PER_SEC) as u32).to_le_bytes());
    // A guest that gives an address outside of memory gets no clock.
    let _ = cpu.memory.write(addr, &bytes);
}

/// Sets the address of this vCPU's `struct pvclock_vcpu_time_info`. Bit 0 enables it.
pub fn set_system_time(cpu: &mut Cpu, value: u64) {
    cpu.sys.kvm_system_time = value;
    update(cpu);
}

/// Tells the guest that this vCPU did not run for a while. Otherwise its watchdogs would take the jump for a hang of
/// its own.
pub fn guest_was_stopped(cpu: &mut Cpu) {
    let value = cpu.sys.kvm_system_time;
    let addr = GuestAddr((value & !1).wrapping_add(FLAGS));
    if value & 1 != 0
        && let Ok(flags) = cpu.memory.read_le::<u8>(addr)
    {
        // An address outside of memory is the guest's mistake, as above.
        let _ = cpu.memory.write(addr, &[flags | GUEST_STOPPED]);
    }
}

/// Writes the structure again, if there is one.
pub fn update(cpu: &mut Cpu) {
    let value = cpu.sys.kvm_system_time;
    if value & 1 == 0 {
        return;
    }
    let addr = GuestAddr(value & !1);
    let now = tsc(cpu);
    let system_time = TSC_FREQUENCY.ns(now.wrapping_sub(cpu.sys.tsc_offset));
    let version = cpu.memory.read_le::<u32>(addr).unwrap_or(0);
    let mut bytes = [0u8; 32];
    bytes[..4].copy_from_slice(&(version.wrapping_add(2) & !1).to_le_bytes());
    bytes[8..16].copy_from_slice(&now.to_le_bytes());
    bytes[16..24].copy_from_slice(&system_time.to_le_bytes());
    let (multiplier, shift) = TSC_FREQUENCY.kvmclock_scale();
    bytes[24..28].copy_from_slice(&multiplier.to_le_bytes());
    bytes[28] = shift as u8;
    bytes[29] = TSC_STABLE;
    // An address outside of memory is the guest's mistake, as above.
    let _ = cpu.memory.write(addr, &bytes);
}
