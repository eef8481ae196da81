//! Linux's boot parameters ("zero page") and the x86 boot protocol.
//!
//! Source: Linux Documentation/arch/x86/boot.rst (protocol 2.15) and zero-page.rst; struct boot_params in
//! arch/x86/include/uapi/asm/bootparam.h.

use super::{LoadError, RangeKind};
use crate::hypervisor::memory::{GuestAddr, GuestMemory};
use crate::machine::layout;

/// Offset of the setup header in the file and in the zero page.
pub const SETUP_HEADER: usize = 0x1f1;
const BOOT_FLAG: usize = 0x1fe;
const HEADER_MAGIC: usize = 0x202;
const VERSION: usize = 0x206;
const KERNEL_VERSION: usize = 0x20e;
const TYPE_OF_LOADER: usize = 0x210;
const LOADFLAGS: usize = 0x211;
const RAMDISK_IMAGE: usize = 0x218;
const RAMDISK_SIZE: usize = 0x21c;
const HEAP_END_PTR: usize = 0x224;
const CMD_LINE_PTR: usize = 0x228;
const INITRD_ADDR_MAX: usize = 0x22c;
const XLOADFLAGS: usize = 0x236;
const CMDLINE_SIZE: usize = 0x238;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;
const PREF_ADDRESS: usize = 0x258;
const INIT_SIZE: usize = 0x260;
/// `acpi_rsdp_addr` of struct boot_params.
const ACPI_RSDP_ADDR: u64 = 0x070;
/// `alt_mem_k`: KiB above the first MiB.
const ALT_MEM_K: u64 = 0x1e0;
const E820_ENTRIES: u64 = 0x1e8;
const E820_TABLE: u64 = 0x2d0;
const E820_MAX: usize = 128;

const LOADED_HIGH: u8 = 1 << 0;
const CAN_USE_HEAP: u8 = 1 << 7;
const XLF_KERNEL_64: u16 = 1 << 0;

/// Contents of the setup header of a bzImage.
#[derive(Debug)]
pub struct SetupHeader<'a> {
    file: &'a [u8],
    /// Boot protocol, 0x020f for 2.15.
    pub version: u16,
}

fn field(file: &[u8], offset: usize, width: usize) -> u64 {
    file[offset..offset + width].iter().rev().fold(0, |value, &b| value << 8 | u64::from(b))
}

impl<'a> SetupHeader<'a> {
    /// Returns the header of a bzImage, or `None` if the file is not one.
    pub fn find(file: &'a [u8]) -> Option<Result<SetupHeader<'a>, LoadError>> {
        if file.len() < HEADER_MAGIC + 4
            || &file[HEADER_MAGIC..HEADER_MAGIC + 4] != b"HdrS"
            || field(file, BOOT_FLAG, 2) != 0xaa55
        {
            return None;
        }
        if file.len() < INIT_SIZE + 4 {
            return Some(Err(LoadError::Truncated { object: "the bzImage", detail: "its setup header is cut short".into() }));
        }
        let header = SetupHeader { file, version: field(file, VERSION, 2) as u16 };
        Some(header.check().map(|()| header))
    }

    /// Checks that the kernel can be entered without a BIOS.
    ///
    /// Kernels of protocol 2.02 to 2.07 expect an entry in real mode, from which they call the BIOS. Linux also has an
    /// entry in protected mode, with all answers in the zero page (kexec uses it). iPXE's lkrn and memdisk have the
    /// same header but need the BIOS. Linux's version begins with a digit, theirs with their name.
    fn check(&self) -> Result<(), LoadError> {
        let version = self.version;
        let protocol = format!("boot protocol {}.{:02}", version >> 8, version & 0xff);
        if version < 0x0202 {
            return Err(LoadError::Unsupported(format!("the kernel uses {protocol}, but at least 2.02 is needed")));
        }
        if self.file[LOADFLAGS] & LOADED_HIGH == 0 {
            let text = "the kernel is a zImage, which is unpacked below 1 MiB by a BIOS; a bzImage is needed";
            return Err(LoadError::Unsupported(text.into()));
        }
        if let Some(name) =
            self.version_string().filter(|name| version < 0x0208 && !name.starts_with(|c: char| c.is_ascii_digit()))
        {
            return Err(LoadError::Unsupported(format!(
                "`{name}` is not a Linux kernel, though it uses Linux's {protocol}: it is entered in real mode and calls the \
                 BIOS, and this engine has none; boot what it would load instead, or its build for UEFI with the engine bhyve"
            )));
        }
        Ok(())
    }

    /// Returns the version string of the kernel, if it has one.
    fn version_string(&self) -> Option<String> {
        let at = field(self.file, KERNEL_VERSION, 2) as usize;
        let bytes = self.file.get(0x200 + at..).filter(|_| at != 0)?;
        let text: String = bytes.iter().take(60).take_while(|&&b| b != 0).map(|&b| char::from(b)).collect();
        let text: String = text.chars().filter(|c| c.is_ascii_graphic() || *c == ' ').collect();
        (!text.is_empty()).then_some(text)
    }

    fn protected_mode_offset(&self) -> usize {
        let sectors = match self.file[SETUP_HEADER] {
            0 => 4,
            n => usize::from(n),
        };
        (sectors + 1) * 512
    }

    /// Returns the part that runs in protected mode: the self-extractor.
    pub fn protected_mode_code(&self) -> Result<&'a [u8], LoadError> {
        let start = self.protected_mode_offset();
        let rest = self.file.get(start..).filter(|code| !code.is_empty());
        rest.ok_or_else(|| LoadError::Truncated {
            object: "the bzImage",
            detail: format!("nothing follows its {start} bytes of set-up code"),
        })
    }

    /// Returns the compressed kernel. It is empty if the header does not say where it is.
    pub fn payload(&self) -> Result<&'a [u8], LoadError> {
        let code = self.protected_mode_code()?;
        if self.version < 0x0208 {
            return Ok(&[]);
        }
        let (start, len) = (field(self.file, PAYLOAD_OFFSET, 4) as usize, field(self.file, PAYLOAD_LENGTH, 4) as usize);
        code.get(start..).and_then(|rest| rest.get(..len)).ok_or_else(|| LoadError::Truncated {
            object: "the bzImage",
            detail: format!("its header promises a payload of {len} bytes, the file ends before"),
        })
    }

    /// Returns the highest address that the initrd's last byte may have, plus one.
    pub fn initrd_limit(&self) -> u64 {
        if self.version >= 0x0203 { field(self.file, INITRD_ADDR_MAX, 4) + 1 } else { 0x3800_0000 }
    }
    /// Returns the maximum number of bytes of the command line, without the NUL.
    pub fn cmdline_max(&self) -> usize {
        if self.version >= 0x0206 { field(self.file, CMDLINE_SIZE, 4) as usize } else { 255 }
    }
    /// Returns the preferred address of the kernel.
    pub fn pref_address(&self) -> u64 {
        if self.version >= 0x020a { field(self.file, PREF_ADDRESS, 8) } else { layout::KERNEL_FLOOR }
    }
    /// Returns the number of bytes that the kernel needs from its address on before it knows the memory map.
    pub fn init_size(&self) -> u64 {
        if self.version >= 0x020a { field(self.file, INIT_SIZE, 4) } else { 0 }
    }
    /// Returns whether there is a 64-bit entry point 0x200 bytes into the protected-mode code.
    pub fn has_64bit_entry(&self) -> bool {
        self.version >= 0x020c && field(self.file, XLOADFLAGS, 2) as u16 & XLF_KERNEL_64 != 0
    }

    fn bytes(&self) -> &'a [u8] {
        // The header ends 0x202 + the byte at 0x201, the jump over it (boot.rst, "The header's end").
        let end = (HEADER_MAGIC + usize::from(self.file[0x201])).clamp(INITRD_ADDR_MAX + 4, 0x290);
        &self.file[SETUP_HEADER..end.min(self.file.len())]
    }
}

/// Writes the zero page: the setup header with the loader's fields, the memory map, the ACPI root pointer.
pub fn write(mem: &GuestMemory, header: &SetupHeader, initrd: Option<(u64, u64)>, rsdp: u64) -> Result<(), LoadError> {
    let base = layout::boot::ZERO_PAGE;
    let at = |offset: usize| GuestAddr(base + offset as u64);
    mem.fill(GuestAddr(base), 0, 4096)?;
    mem.write(at(SETUP_HEADER), header.bytes())?;
    // 0xff: a loader without a number of its own (boot.rst, "type_of_loader").
    mem.write_le(at(TYPE_OF_LOADER), 0xffu8)?;
    let flags: u8 = mem.read_le(at(LOADFLAGS))?;
    mem.write_le(at(LOADFLAGS), flags | LOADED_HIGH | CAN_USE_HEAP)?;
    mem.write_le(at(HEAP_END_PTR), 0xfe00u16)?;
    mem.write_le(at(CMD_LINE_PTR), layout::boot::CMDLINE as u32)?;
    let (initrd_at, initrd_len) = initrd.unwrap_or((0, 0));
    mem.write_le(at(RAMDISK_IMAGE), initrd_at as u32)?;
    mem.write_le(at(RAMDISK_SIZE), initrd_len as u32)?;
    mem.write_le(GuestAddr(base + ACPI_RSDP_ADDR), rsdp)?;
    // Kernels that do not use the memory map read these fields.
    let above = super::low_ram_end(mem).saturating_sub(layout::KERNEL_FLOOR) >> 10;
    mem.write_le(GuestAddr(base + ALT_MEM_K), above as u32)?;
    write_e820(mem, base, &super::memory_map(mem))
}

fn write_e820(mem: &GuestMemory, base: u64, map: &[(u64, u64, RangeKind)]) -> Result<(), LoadError> {
    let count = map.len().min(E820_MAX);
    mem.write_le(GuestAddr(base + E820_ENTRIES), count as u8)?;
    for (i, &(start, len, kind)) in map.iter().take(count).enumerate() {
        let entry = base + E820_TABLE + i as u64 * 20;
        mem.write_le(GuestAddr(entry), start)?;
        mem.write_le(GuestAddr(entry + 8), len)?;
        mem.write_le(GuestAddr(entry + 16), kind as u32)?;
    }
    Ok(())
}
