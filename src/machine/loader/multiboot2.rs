//! Multiboot 2, whose kernels have a list of tags in their header.
//!
//! Source: Multiboot2 Specification 2.0, sections 3.1 (header), 3.3 (i386 machine state), 3.6 (boot information). Not
//! modelled: everything about EFI, graphics and text consoles (tags 4, 5 and 7 to 9 of the header change nothing, as on
//! a PC without them), relocation (a kernel is loaded where it is linked), section headers of an ELF kernel.
//!
//! **Hostile file**: tags are read inside of the header's own length, each after the one before.

use super::elf::Elf;
use super::kernel::PlacedModule;
use super::multiboot::{Addresses, LOADER_NAME, no_way};
use super::{LoadError, RangeKind};
use crate::hypervisor::memory::{GuestAddr, GuestMemory};
use crate::machine::layout;

const HEADER_MAGIC: u32 = 0xe852_50d6;
/// Value of EAX at the entry.
pub const BOOTLOADER_MAGIC: u32 = 0x36d7_6289;
/// Architecture 0: 32-bit protected mode of i386.
const ARCHITECTURE_I386: u32 = 0;
/// The header lies within this many bytes.
const SEARCHED: usize = 32_768;
/// Flag of a tag that a loader may ignore.
const OPTIONAL: u16 = 1;
/// The highest number of a tag of the boot information in the specification.
const LAST_INFORMATION: u32 = 21;

/// A Multiboot 2 header.
#[derive(Debug, Clone, Copy)]
pub struct Header<'a> {
    offset: usize,
    /// The bytes after its four words.
    tags: &'a [u8],
}

fn word(bytes: &[u8], offset: usize) -> Option<u32> {
    bytes.get(offset..offset + 4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
}

/// Returns the header, if the first 32,768 bytes of the file hold one for this processor.
pub fn find(file: &[u8]) -> Option<Header<'_>> {
    (0..file.len().min(SEARCHED)).step_by(8).find_map(|offset| {
        let words = [0, 4, 8, 12].map(|at| word(file, offset + at));
        let [Some(HEADER_MAGIC), Some(architecture), Some(len), Some(checksum)] = words else { return None };
        let sum = HEADER_MAGIC.wrapping_add(architecture).wrapping_add(len).wrapping_add(checksum);
        let tags = file.get(offset + 16..offset.checked_add(len as usize)?)?;
        (sum == 0 && architecture == ARCHITECTURE_I386).then_some(Header { offset, tags })
    })
}

/// Requests of a header's tags.
#[derive(Default)]
struct Wishes {
    addresses: Option<Addresses>,
    entry: Option<u32>,
}

impl Header<'_> {
    fn wishes(&self) -> Result<Wishes, LoadError> {
        let cut = || LoadError::Truncated { object: "the Multiboot 2 header", detail: "a tag is cut short".into() };
        let mut wishes = Wishes::default();
        let mut rest = self.tags;
        while let Some(first) = word(rest, 0) {
            let (kind, flags, size) = (first as u16, (first >> 16) as u16, word(rest, 4).ok_or_else(cut)? as usize);
            let tag = rest.get(8..size).ok_or_else(cut)?;
            let get = |at: usize| word(tag, at).ok_or_else(cut);
            match kind {
                0 => break,
                1 => {
                    let asked = tag.chunks_exact(4).filter_map(|number| word(number, 0));
                    if let Some(unknown) = asked.into_iter().find(|&number| number > LAST_INFORMATION)
                        && flags & OPTIONAL == 0
                    {
                        return Err(LoadError::Unsupported(format!("the Multiboot 2 kernel requires information {unknown}")));
                    }
                }
                2 => {
                    let (header, load, load_end, bss_end) = (get(0)?, get(4)?, get(8)?, get(12)?);
                    wishes.addresses = Some(Addresses { offset: self.offset, header, load, load_end, bss_end });
                }
                3 => wishes.entry = Some(get(0)?),
                4..=10 => {}
                _ if flags & OPTIONAL != 0 => {}
                other => {
                    return Err(LoadError::Unsupported(format!(
                        "the Multiboot 2 kernel requires unknown features (tag {other})"
                    )));
                }
            }
            rest = rest.get(size.next_multiple_of(8)..).unwrap_or_default();
        }
        Ok(wishes)
    }
}

/// Loads the kernel by its header's addresses or as ELF. Returns the entry point, the first address and the end.
pub fn load(mem: &GuestMemory, file: &[u8], header: Header<'_>) -> Result<(u32, u64, u64), LoadError> {
    let wishes = header.wishes()?;
    let Some(addresses) = wishes.addresses else {
        if !Elf::is_elf(file) {
            return Err(no_way(file));
        }
        let elf = Elf::parse(file)?.load(mem)?;
        let (start, end) = elf.span();
        return Ok((wishes.entry.unwrap_or(elf.physical_entry() as u32), start, end));
    };
    let no_entry = || LoadError::Unsupported("the Multiboot 2 header has addresses and no entry point".into());
    let entry = wishes.entry.ok_or_else(no_entry)?;
    let (start, end) = addresses.load(mem, file)?;
    Ok((entry, start, end))
}

/// Writes the boot information. Returns its address.
pub fn write_info(
    mem: &GuestMemory,
    cmdline: &str,
    modules: &[PlacedModule],
    load_base: u64,
    rsdp: u64,
) -> Result<u64, LoadError> {
    let mut info = vec![0; 8];
    let text = |text: &str| [text.as_bytes(), b"\0"].concat();
    add(&mut info, 1, &text(cmdline));
    add(&mut info, 2, LOADER_NAME);
    for module in modules {
        let place = [module.at as u32, (module.at + module.size) as u32].map(u32::to_le_bytes).concat();
        add(&mut info, 3, &[place, text(&module.words)].concat());
    }
    let upper = super::low_ram_end(mem).saturating_sub(layout::KERNEL_FLOOR) >> 10;
    add(&mut info, 4, &[(layout::CONVENTIONAL_END >> 10) as u32, upper as u32].map(u32::to_le_bytes).concat());
    let mut map = [24u32, 0].map(u32::to_le_bytes).concat();
    for (start, len, kind) in super::memory_map(mem) {
        let kind: RangeKind = kind;
        map.extend(start.to_le_bytes());
        map.extend(len.to_le_bytes());
        map.extend([kind as u32, 0].map(u32::to_le_bytes).concat());
    }
    add(&mut info, 6, &map);
    // Copies of the ACPI root pointer: the part of version 1, and all of it.
    for (kind, bytes) in [(14, 20), (15, 36)] {
        let mut copy = vec![0; bytes];
        mem.read(GuestAddr(rsdp), &mut copy)?;
        add(&mut info, kind, &copy);
    }
    add(&mut info, LAST_INFORMATION, &(load_base as u32).to_le_bytes());
    add(&mut info, 0, &[]);
    let size = info.len() as u32;
    info[..4].copy_from_slice(&size.to_le_bytes());
    let (at, most) = (layout::boot::LISTS, layout::CONVENTIONAL_END - layout::boot::LISTS);
    if u64::from(size) > most {
        return Err(LoadError::CommandLine { len: info.len(), max: most as usize });
    }
    mem.write(GuestAddr(at), &info)?;
    Ok(at)
}

/// Appends a tag: its number, its size, its contents. The next one begins at a multiple of eight.
fn add(info: &mut Vec<u8>, kind: u32, content: &[u8]) {
    info.extend(kind.to_le_bytes());
    info.extend((content.len() as u32 + 8).to_le_bytes());
    info.extend(content);
    info.resize(info.len().next_multiple_of(8), 0);
}
