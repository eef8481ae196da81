//! The PVH entry: an ELF kernel started in 32-bit protected mode with a start information block.
//!
//! Source: Xen docs/misc/pvh.pandoc and public/arch-x86/hvm/start_info.h (struct hvm_start_info, version 1).

use super::LoadError;
use super::kernel::PlacedModule;
use crate::hypervisor::memory::{GuestAddr, GuestMemory};
use crate::machine::layout;

const XEN_HVM_START_MAGIC_VALUE: u32 = 0x336e_c578;

/// Writes `hvm_start_info`, its module list (the initrd first) and its memory map.
pub fn write_start_info(mem: &GuestMemory, modules: &[PlacedModule], rsdp: u64) -> Result<(), LoadError> {
    let info = layout::boot::START_INFO;
    let (list, map_at) = (layout::boot::LISTS, layout::boot::LISTS + 0x1000);
    let map = super::memory_map(mem);
    let put32 = |offset: u64, value: u32| mem.write_le(GuestAddr(info + offset), value);
    let put64 = |offset: u64, value: u64| mem.write_le(GuestAddr(info + offset), value);
    put32(0, XEN_HVM_START_MAGIC_VALUE)?;
    put32(4, 1)?; // version
    put32(8, 0)?; // flags
    put32(12, modules.len() as u32)?;
    put64(16, if modules.is_empty() { 0 } else { list })?;
    put64(24, layout::boot::CMDLINE)?;
    put64(32, rsdp)?;
    put64(40, map_at)?;
    put32(48, map.len() as u32)?;
    put32(52, 0)?;
    for (number, module) in modules.iter().enumerate() {
        for (i, word) in [module.at, module.size, module.words_at, 0].into_iter().enumerate() {
            mem.write_le(GuestAddr(list + number as u64 * 32 + i as u64 * 8), word)?;
        }
    }
    for (i, &(start, len, kind)) in map.iter().enumerate() {
        let entry = map_at + i as u64 * 24;
        mem.write_le(GuestAddr(entry), start)?;
        mem.write_le(GuestAddr(entry + 8), len)?;
        mem.write_le(GuestAddr(entry + 16), kind as u64)?;
    }
    Ok(())
}
