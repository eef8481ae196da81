//! Multiboot 1, the protocol of hobby and research kernels, and of Xen.
//!
//! Source: Multiboot Specification 0.6.96, sections 3.1 (header), 3.2 (machine state), 3.3 (information). Not modelled:
//! the video mode request (bit 2 of the flags) is answered with no video information, as the specification allows;
//! section headers of an ELF kernel are not passed on.

use super::elf::Elf;
use super::kernel::PlacedModule;
use super::{LoadError, RangeKind};
use crate::hypervisor::memory::{GuestAddr, GuestMemory};
use crate::machine::layout;

const HEADER_MAGIC: u32 = 0x1bad_b002;
/// Value of EAX at the entry.
pub const BOOTLOADER_MAGIC: u32 = 0x2bad_b002;
/// The name of this loader, which kernels can read.
pub const LOADER_NAME: &[u8] = b"vmctl\0";
const FLAG_ADDRESSES: u32 = 1 << 16;
/// Flags 2 to 15 are requirements. This loader meets page alignment (0) and memory information (1), and answers video
/// (2).
const KNOWN_REQUIREMENTS: u32 = 0b111;

/// A Multiboot header.
#[derive(Debug, Clone, Copy)]
pub struct Header {
    offset: usize,
    flags: u32,
}

/// Addresses of a kernel without ELF headers, by the fields that both versions of Multiboot have.
#[derive(Debug, Clone, Copy)]
pub struct Addresses {
    /// Offset of the header in the file.
    pub offset: usize,
    /// Address of the header in memory.
    pub header: u32,
    /// Address of the image's start; `u32::MAX` if the image begins with the file.
    pub load: u32,
    /// Address of the end of the file's part; 0 if it is the whole file.
    pub load_end: u32,
    /// Address of the end of the zeros; 0 without any.
    pub bss_end: u32,
}

fn word(file: &[u8], offset: usize) -> Option<u32> {
    file.get(offset..offset + 4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
}

/// Returns the header, if the first 8192 bytes of the file hold one.
pub fn find(file: &[u8]) -> Option<Header> {
    (0..file.len().min(8192)).step_by(4).find_map(|offset| {
        let (magic, flags, checksum) = (word(file, offset)?, word(file, offset + 4)?, word(file, offset + 8)?);
        let valid = magic == HEADER_MAGIC && magic.wrapping_add(flags).wrapping_add(checksum) == 0;
        valid.then_some(Header { offset, flags })
    })
}

impl Addresses {
    /// Loads the image. Returns its first address and its end.
    pub fn load(self, mem: &GuestMemory, file: &[u8]) -> Result<(u64, u64), LoadError> {
        let bad = || LoadError::Unsupported("the Multiboot header's addresses contradict each other".into());
        let load = match self.load {
            u32::MAX => u64::from(self.header).checked_sub(self.offset as u64).ok_or_else(bad)?,
            load => load.into(),
        };
        let before = u64::from(self.header).checked_sub(load).ok_or_else(bad)?;
        let skip = self.offset.checked_sub(before as usize).ok_or_else(bad)?;
        let image = &file[skip..];
        let len = match self.load_end {
            0 => image.len(),
            end => u64::from(end).checked_sub(load).ok_or_else(bad)? as usize,
        };
        let image = image.get(..len).ok_or_else(|| LoadError::Truncated {
            object: "the Multiboot kernel",
            detail: format!("its header promises {len} bytes"),
        })?;
        let end = load + len as u64;
        let zeros = u64::from(self.bss_end).saturating_sub(end);
        super::copy_in(mem, "kernel", load, image, zeros)?;
        Ok((load, end + zeros))
    }
}

/// Creates the error for a kernel with a Multiboot header without addresses, and without ELF headers.
pub fn no_way(file: &[u8]) -> LoadError {
    let what = super::kernel::name_of(file).unwrap_or("not an ELF file");
    LoadError::Unsupported(format!("the Multiboot kernel is {what}, and its header has no addresses to load it by"))
}

/// Loads the kernel by its header's addresses or as ELF. Returns the entry point and the end of the image.
pub fn load(mem: &GuestMemory, file: &[u8], header: Header) -> Result<(u32, u64), LoadError> {
    let unmet = header.flags & 0xffff & !KNOWN_REQUIREMENTS;
    if unmet != 0 {
        return Err(LoadError::Unsupported(format!("the Multiboot kernel requires unknown features (flags {unmet:#x})")));
    }
    if header.flags & FLAG_ADDRESSES == 0 {
        if !Elf::is_elf(file) {
            return Err(no_way(file));
        }
        let elf = Elf::parse(file)?.load(mem)?;
        return Ok((elf.physical_entry() as u32, elf.span().1));
    }
    let get = |index: usize| {
        let value = word(file, header.offset + 12 + index * 4);
        value.ok_or_else(|| LoadError::Truncated {
            object: "the Multiboot header",
            detail: "its address fields are missing".into(),
        })
    };
    let addresses = Addresses { offset: header.offset, header: get(0)?, load: get(1)?, load_end: get(2)?, bss_end: get(3)? };
    Ok((get(4)?, addresses.load(mem, file)?.1))
}

/// Writes the information structure: memory sizes, command line, modules with their strings, the memory map.
pub fn write_info(mem: &GuestMemory, modules: &[PlacedModule]) -> Result<(), LoadError> {
    let info = layout::boot::START_INFO;
    let (list, map_at, name) = (layout::boot::LISTS, layout::boot::LISTS + 0x1000, layout::boot::LISTS + 0x1800);
    let put = |offset: u64, value: u32| mem.write_le(GuestAddr(info + offset), value);
    const MEMORY: u32 = 1 << 0;
    const CMDLINE: u32 = 1 << 2;
    const MODULES: u32 = 1 << 3;
    const MEMORY_MAP: u32 = 1 << 6;
    const LOADER_NAME_THERE: u32 = 1 << 9;
    let with_modules = if modules.is_empty() { 0 } else { MODULES };
    put(0, MEMORY | CMDLINE | MEMORY_MAP | LOADER_NAME_THERE | with_modules)?;
    put(4, (layout::CONVENTIONAL_END >> 10) as u32)?;
    put(8, (super::low_ram_end(mem).saturating_sub(layout::KERNEL_FLOOR) >> 10) as u32)?;
    put(16, layout::boot::CMDLINE as u32)?;
    put(20, modules.len() as u32)?;
    put(24, list as u32)?;
    for (number, module) in modules.iter().enumerate() {
        let words = [module.at as u32, (module.at + module.size) as u32, module.words_at as u32, 0];
        for (i, value) in words.into_iter().enumerate() {
            mem.write_le(GuestAddr(list + number as u64 * 16 + i as u64 * 4), value)?;
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
    Ok(mem.write(GuestAddr(name), LOADER_NAME)?)
}
