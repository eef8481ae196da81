//! Multiboot 1: what hobby and research kernels are built for.
//!
//! Source: Multiboot Specification 0.6.96, sections 3.1 (header), 3.2 (machine state), 3.3 (information).
//! Not modelled: the video mode request (bit 2 of the flags) is answered with no video information, as the
//! specification allows.

use super::elf::Elf;
use super::{LoadError, RangeKind};
use crate::hypervisor::memory::{GuestAddr, GuestMemory};
use crate::machine::layout;

const HEADER_MAGIC: u32 = 0x1bad_b002;
/// What EAX holds at the entry.
pub const BOOTLOADER_MAGIC: u32 = 0x2bad_b002;
const FLAG_ADDRESSES: u32 = 1 << 16;
/// Flags 2 to 15 are requirements; we meet page alignment (0), memory information (1) and answer video (2).
const KNOWN_REQUIREMENTS: u32 = 0b111;

/// A Multiboot header.
#[derive(Debug, Clone, Copy)]
pub struct Header {
    offset: usize,
    flags: u32,
}

fn word(file: &[u8], offset: usize) -> Option<u32> {
    file.get(offset..offset + 4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
}

/// The header, if the first 8192 bytes of the file hold one.
pub fn find(file: &[u8]) -> Option<Header> {
    (0..file.len().min(8192)).step_by(4).find_map(|offset| {
        let (magic, flags, checksum) = (word(file, offset)?, word(file, offset + 4)?, word(file, offset + 8)?);
        let valid = magic == HEADER_MAGIC && magic.wrapping_add(flags).wrapping_add(checksum) == 0;
        valid.then_some(Header { offset, flags })
    })
}

/// Loads the kernel by its header's addresses or as ELF; returns the entry point and the end of the image.
pub fn load(mem: &GuestMemory, file: &[u8], header: Header) -> Result<(u32, u64), LoadError> {
    let unmet = header.flags & 0xffff & !KNOWN_REQUIREMENTS;
    if unmet != 0 {
        return Err(LoadError::Unsupported(format!("the Multiboot kernel requires unknown features (flags {unmet:#x})")));
    }
    if header.flags & FLAG_ADDRESSES == 0 {
        let elf = Elf::parse(file)?.load(mem)?;
        return Ok((elf.physical_entry() as u32, elf.span().1));
    }
    let get = |index: usize| {
        let value = word(file, header.offset + 12 + index * 4);
        value
            .ok_or_else(|| LoadError::Truncated { what: "the Multiboot header", detail: "its address fields are missing".into() })
    };
    let (header_addr, load_addr, load_end, bss_end, entry) = (get(0)?, get(1)?, get(2)?, get(3)?, get(4)?);
    let bad = || LoadError::Unsupported("the Multiboot header's addresses contradict each other".into());
    let skip = header.offset.checked_sub(header_addr.checked_sub(load_addr).ok_or_else(bad)? as usize).ok_or_else(bad)?;
    let image = &file[skip..];
    let len = match load_end {
        0 => image.len(),
        end => end.checked_sub(load_addr).ok_or_else(bad)? as usize,
    };
    let image = image.get(..len).ok_or_else(|| LoadError::Truncated {
        what: "the Multiboot kernel",
        detail: format!("its header promises {len} bytes"),
    })?;
    let end = u64::from(load_addr) + len as u64;
    let zeros = u64::from(bss_end).saturating_sub(end);
    super::place(mem, "kernel", u64::from(load_addr), image, zeros)?;
    Ok((entry, end + zeros))
}

/// Writes the information structure: memory sizes, command line, the initrd as the only module, the memory map.
pub fn write_info(mem: &GuestMemory, initrd: Option<(u64, u64)>) -> Result<(), LoadError> {
    let info = layout::boot::START_INFO;
    let (modules, name, map_at) = (layout::boot::LISTS, layout::boot::LISTS + 0x40, layout::boot::LISTS + 0x100);
    let put = |offset: u64, value: u32| mem.write_le(GuestAddr(info + offset), value);
    const MEMORY: u32 = 1 << 0;
    const CMDLINE: u32 = 1 << 2;
    const MODULES: u32 = 1 << 3;
    const MEMORY_MAP: u32 = 1 << 6;
    const LOADER_NAME: u32 = 1 << 9;
    let with_modules = if initrd.is_some() { MODULES } else { 0 };
    put(0, MEMORY | CMDLINE | MEMORY_MAP | LOADER_NAME | with_modules)?;
    put(4, (layout::CONVENTIONAL_END >> 10) as u32)?;
    put(8, (super::low_ram_end(mem).saturating_sub(layout::KERNEL_FLOOR) >> 10) as u32)?;
    put(16, layout::boot::CMDLINE as u32)?;
    put(20, u32::from(initrd.is_some()))?;
    put(24, modules as u32)?;
    if let Some((at, len)) = initrd {
        for (i, value) in [at as u32, (at + len) as u32, layout::boot::CMDLINE as u32, 0].into_iter().enumerate() {
            mem.write_le(GuestAddr(modules + i as u64 * 4), value)?;
        }
    }
    let map: Vec<(u64, u64, RangeKind)> = super::memory_map(mem);
    put(44, map.len() as u32 * 24)?;
    put(48, map_at as u32)?;
    for (i, &(start, len, kind)) in map.iter().enumerate() {
        let entry = map_at + i as u64 * 24;
        mem.write_le(GuestAddr(entry), 20u32)?;
        mem.write_le(GuestAddr(entry + 4), start)?;
        mem.write_le(GuestAddr(entry + 12), len)?;
        mem.write_le(GuestAddr(entry + 20), kind as u32)?;
    }
    put(64, name as u32)?;
    Ok(mem.write(GuestAddr(name), b"vmctl\0")?)
}
