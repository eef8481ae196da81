//! Loaders: they put a kernel into memory and set the state of the first instruction.
//!
//! `kernel`: Linux's bzImage (unpacked on the host), ELF through PVH, Multiboot 1 and 2. `grub`: the same kernels from
//! the guest's own disks, by the boot configuration on them.
pub mod elf;
pub mod grub; // the guest's own boot menu, read from its disks
pub mod host_file; // a kernel or an initrd, opened before the process is confined
pub mod initrd; // bytes, or a file of the host, into guest memory
pub mod kernel;
pub mod multiboot;
pub mod multiboot2;
pub mod pvh;
pub mod unpack;
pub mod volume; // disks, partitions and file systems of the guest, read from the host's side
pub mod zero_page;

use std::path::PathBuf;

use super::layout;
use crate::hypervisor::memory::{GuestAddr, GuestMemory, OutOfRange, Region};
pub use host_file::HostFile;

/// The error for a guest that cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A file cannot be read.
    #[error("cannot read {object} `{}`", path.display())]
    Read {
        /// `kernel image`, `initrd` or `module`.
        object: &'static str,
        /// The file.
        path: PathBuf,
        /// The error of the host.
        source: std::io::Error,
    },
    /// A file ends too early.
    #[error("{object} is truncated: {detail}")]
    Truncated {
        /// The part that was being read.
        object: &'static str,
        /// The expected contents.
        detail: String,
    },
    /// A file is empty, as a full disk leaves it.
    #[error("the {object} `{}` is empty", path.display())]
    Empty {
        /// `kernel image`, `initrd` or `module`.
        object: &'static str,
        /// The file.
        path: PathBuf,
    },
    /// A file has an unknown format.
    #[error("kernel image is neither a bzImage, nor an ELF file, nor a Multiboot kernel (it begins with {0:02x?})")]
    UnknownFormat(Vec<u8>),
    /// A file has a known format that is not a kernel's.
    #[error("kernel image is {0}; it is neither a bzImage, nor an ELF file, nor a Multiboot kernel")]
    NoKernel(&'static str),
    /// A kernel is linked for the loader's own area.
    #[error("the {object} is linked for {at}, below 1 MiB, where the firmware's and the loader's tables are")]
    TooLow {
        /// Kernel, initrd or module.
        object: &'static str,
        /// Address.
        at: GuestAddr,
    },
    /// The file needs a feature that this loader does not have.
    #[error("{0}")]
    Unsupported(String),
    /// A compressed kernel cannot be unpacked.
    #[error("cannot unpack the {kind} stream of the kernel image: {detail}")]
    Unpack {
        /// gzip, bzip2, xz, zstd, lz4.
        kind: &'static str,
        /// Message of the unpacker.
        detail: String,
    },
    /// The host has no thread to give.
    #[error("cannot start a thread to load the guest with")]
    Thread(#[source] std::io::Error),
    /// The guest has too little memory.
    #[error("{object} needs {needs} bytes at {at}, beyond the guest's memory; give the guest more `memory`")]
    NoRoom {
        /// Kernel, initrd or module.
        object: &'static str,
        /// Number of bytes needed.
        needs: u64,
        /// Address.
        at: GuestAddr,
    },
    /// The command line is too long for the kernel.
    #[error("the kernel command line has {len} bytes, this kernel takes {max}")]
    CommandLine {
        /// Its length.
        len: usize,
        /// Maximum length.
        max: usize,
    },
}

impl From<OutOfRange> for LoadError {
    fn from(e: OutOfRange) -> LoadError {
        LoadError::NoRoom { object: "a boot structure", needs: e.len as u64, at: e.addr }
    }
}

/// Kinds of ranges in the memory map, as E820 and PVH number them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RangeKind {
    /// Usable.
    Ram = 1,
    /// Not to be used.
    Reserved = 2,
}

/// Returns the memory map for the guest: `(base, bytes, kind)`, in order.
pub fn memory_map(mem: &GuestMemory) -> Vec<(u64, u64, RangeKind)> {
    let mut map = vec![
        (0, layout::CONVENTIONAL_END, RangeKind::Ram),
        (layout::CONVENTIONAL_END, layout::VGA_HOLE.0 - layout::CONVENTIONAL_END, RangeKind::Reserved),
        (layout::ACPI_BASE, layout::SMBIOS_END - layout::ACPI_BASE, RangeKind::Reserved),
    ];
    for region in mem.map().regions() {
        let (base, end) = (region.base().0, region.end());
        let start = base.max(layout::KERNEL_FLOOR);
        if end > start {
            map.push((start, end - start, RangeKind::Ram));
        }
        if base < layout::PCI_ECAM.0 && end > layout::KERNEL_FLOOR {
            map.push((layout::PCI_ECAM.0, layout::PCI_ECAM.1, RangeKind::Reserved));
        }
    }
    map
}

/// Returns the end of the RAM below the PCI hole.
pub fn low_ram_end(mem: &GuestMemory) -> u64 {
    mem.map().regions().iter().map(Region::end).filter(|&end| end <= layout::LOW_RAM_END).max().unwrap_or(0)
}

/// Copies `bytes` to `at`, above the firmware area.
fn copy_in(mem: &GuestMemory, object: &'static str, at: u64, bytes: &[u8], zeros: u64) -> Result<(), LoadError> {
    let needs = bytes.len() as u64 + zeros;
    if at < layout::KERNEL_FLOOR {
        return Err(LoadError::TooLow { object, at: GuestAddr(at) });
    }
    if !mem.contains(GuestAddr(at), needs) {
        return Err(LoadError::NoRoom { object, needs, at: GuestAddr(at) });
    }
    Ok(mem.write(GuestAddr(at), bytes)?)
}

/// Writes the descriptor table that every entry state uses: code at 0x10, data at 0x18.
fn write_gdt(mem: &GuestMemory, long_mode: bool) -> Result<u16, LoadError> {
    let code: u64 = if long_mode { 0x00af_9b00_0000_ffff } else { 0x00cf_9b00_0000_ffff };
    let table = [0, 0, code, 0x00cf_9300_0000_ffff];
    for (i, entry) in table.iter().enumerate() {
        mem.write_le(GuestAddr(layout::boot::GDT + i as u64 * 8), *entry)?;
    }
    Ok(table.len() as u16 * 8 - 1)
}

/// Identity-maps the first 4 GiB with 2 MiB pages. Returns CR3.
fn write_page_tables(mem: &GuestMemory) -> Result<u64, LoadError> {
    const PRESENT_WRITABLE: u64 = 3;
    const LARGE: u64 = 1 << 7;
    let pml4 = layout::boot::PAGE_TABLES;
    let pdpt = pml4 + 0x1000;
    mem.fill(GuestAddr(pml4), 0, 0x6000)?;
    mem.write_le(GuestAddr(pml4), pdpt | PRESENT_WRITABLE)?;
    for gib in 0..4u64 {
        let pd = pdpt + 0x1000 + gib * 0x1000;
        mem.write_le(GuestAddr(pdpt + gib * 8), pd | PRESENT_WRITABLE)?;
        for i in 0..512u64 {
            let page = (gib << 30) + (i << 21);
            mem.write_le(GuestAddr(pd + i * 8), page | PRESENT_WRITABLE | LARGE)?;
        }
    }
    Ok(pml4)
}

/// Writes the command line, NUL-terminated. `max` is the kernel's limit without the NUL.
fn write_cmdline(mem: &GuestMemory, cmdline: &str, max: usize) -> Result<(), LoadError> {
    let max = max.min(layout::boot::CMDLINE_BYTES as usize - 1);
    if cmdline.len() > max {
        return Err(LoadError::CommandLine { len: cmdline.len(), max });
    }
    mem.write(GuestAddr(layout::boot::CMDLINE), cmdline.as_bytes())?;
    Ok(mem.write_le(GuestAddr(layout::boot::CMDLINE + cmdline.len() as u64), 0u8)?)
}

#[cfg(test)]
pub(crate) fn test_memory(mib: u64) -> GuestMemory {
    super::memory::build(mib << 20).unwrap()
}
