//! ELF executables: program headers and notes, 32- and 64-bit, little-endian x86.
//!
//! Source: System V ABI, "Object Files" (gABI 4.1), and its AMD64 supplement.
//!
//! **Hostile file**: every offset is checked, sizes cannot overflow, at most 65,535 headers are read once.

use super::LoadError;
use crate::hypervisor::memory::{GuestAddr, GuestMemory};
use crate::machine::layout;

/// A loadable segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Offset in the file.
    pub offset: u64,
    /// Bytes in the file.
    pub file_size: u64,
    /// Physical address.
    pub paddr: u64,
    /// Virtual address.
    pub vaddr: u64,
    /// Bytes in memory.
    pub mem_size: u64,
}

/// Contents of the headers of an ELF file.
#[derive(Debug)]
pub struct Headers {
    /// Entry point.
    pub entry: u64,
    /// Whether it is ELFCLASS64.
    pub is_64: bool,
    /// PT_LOAD segments.
    pub segments: Vec<Segment>,
    /// PT_NOTE segments.
    notes: Vec<Segment>,
}

/// An ELF file in memory.
#[derive(Debug)]
pub struct Elf<'a> {
    bytes: &'a [u8],
    /// Its headers.
    pub headers: Headers,
    /// Entry point of XEN_ELFNOTE_PHYS32_ENTRY, if there is that note.
    pub pvh_entry: Option<u32>,
}

/// An ELF file that arrives in pieces. Its segments go to guest memory as they arrive.
pub struct Arrival<'m> {
    mem: &'m GuestMemory,
    headers: Headers,
    /// Bytes that have arrived.
    seen: u64,
}

const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
const EM_386: u16 = 3;
const EM_X86_64: u16 = 62;
/// Xen's public/elfnote.h.
const XEN_ELFNOTE_PHYS32_ENTRY: u32 = 18;

fn truncated(detail: &str) -> LoadError {
    LoadError::Truncated { object: "the ELF file", detail: detail.to_string() }
}

fn le(bytes: &[u8], offset: u64, width: usize) -> Result<u64, LoadError> {
    let start = usize::try_from(offset).map_err(|_| truncated("an offset is beyond it"))?;
    let field = start.checked_add(width).and_then(|end| bytes.get(start..end));
    let field = field.ok_or_else(|| truncated(&format!("offset {offset:#x} is beyond its {} bytes", bytes.len())))?;
    Ok(field.iter().rev().fold(0, |value, &b| value << 8 | u64::from(b)))
}

impl Headers {
    /// Reads the headers, which must be within `bytes`, the file's first ones.
    pub fn parse(bytes: &[u8]) -> Result<Headers, LoadError> {
        let class = le(bytes, 4, 1)?;
        let machine = le(bytes, 18, 2)? as u16;
        if !matches!(class, 1 | 2) || le(bytes, 5, 1)? != 1 || !matches!(machine, EM_386 | EM_X86_64) {
            return Err(LoadError::Unsupported(format!("the ELF file is not for x86 (machine {machine})")));
        }
        let is_64 = class == 2;
        let (entry, phoff) = if is_64 { (le(bytes, 24, 8)?, le(bytes, 32, 8)?) } else { (le(bytes, 24, 4)?, le(bytes, 28, 4)?) };
        let (phentsize, phnum) =
            if is_64 { (le(bytes, 54, 2)?, le(bytes, 56, 2)?) } else { (le(bytes, 42, 2)?, le(bytes, 44, 2)?) };
        let mut headers = Headers { entry, is_64, segments: Vec::new(), notes: Vec::new() };
        for i in 0..phnum {
            let at = phoff.checked_add(i * phentsize).ok_or_else(|| truncated("its program headers overflow"))?;
            headers.program_header(bytes, at)?;
        }
        if headers.segments.is_empty() {
            return Err(LoadError::Unsupported("the ELF file has nothing to load".to_string()));
        }
        Ok(headers)
    }

    fn program_header(&mut self, b: &[u8], at: u64) -> Result<(), LoadError> {
        let kind = le(b, at, 4)? as u32;
        let segment = if self.is_64 {
            Segment {
                offset: le(b, at + 8, 8)?,
                vaddr: le(b, at + 16, 8)?,
                paddr: le(b, at + 24, 8)?,
                file_size: le(b, at + 32, 8)?,
                mem_size: le(b, at + 40, 8)?,
            }
        } else {
            Segment {
                offset: le(b, at + 4, 4)?,
                vaddr: le(b, at + 8, 4)?,
                paddr: le(b, at + 12, 4)?,
                file_size: le(b, at + 16, 4)?,
                mem_size: le(b, at + 20, 4)?,
            }
        };
        match kind {
            // Empty segments occur, with addresses that mean nothing.
            PT_LOAD if segment.mem_size > 0 => {
                segment.end()?;
                // Only `mem_size` is checked against guest memory later.
                if segment.file_size > segment.mem_size {
                    return Err(LoadError::Unsupported("the ELF file has a segment larger in the file than in memory".into()));
                }
                self.segments.push(segment);
            }
            PT_NOTE => self.notes.push(segment),
            _ => {}
        }
        Ok(())
    }

    /// Returns the first and last-plus-one physical address.
    pub fn span(&self) -> (u64, u64) {
        let start = self.segments.iter().map(|s| s.paddr).min().unwrap_or(0);
        let end = self.segments.iter().map(|s| s.paddr.saturating_add(s.mem_size)).max().unwrap_or(0);
        (start, end)
    }

    /// Returns the physical address of the entry point. Entry points are virtual where a kernel is linked high.
    pub fn physical_entry(&self) -> u64 {
        let holder = self.segments.iter().find(|s| self.entry >= s.vaddr && self.entry - s.vaddr < s.mem_size);
        match holder {
            Some(s) => self.entry - s.vaddr + s.paddr,
            None => self.entry,
        }
    }

    /// Checks that every segment fits in guest memory, above the firmware area.
    fn check_room(&self, mem: &GuestMemory) -> Result<(), LoadError> {
        for segment in &self.segments {
            let at = GuestAddr(segment.paddr);
            // The tables that the guest needs are below, and a kernel there would overwrite them.
            if segment.paddr < layout::KERNEL_FLOOR {
                return Err(LoadError::TooLow { object: "kernel", at });
            }
            if !mem.contains(at, segment.mem_size) {
                return Err(LoadError::NoRoom { object: "kernel", needs: segment.mem_size, at });
            }
        }
        Ok(())
    }
}

impl Segment {
    /// Returns the offset of the end in the file.
    fn end(&self) -> Result<u64, LoadError> {
        self.offset.checked_add(self.file_size).ok_or_else(|| truncated("a segment is beyond its end"))
    }
}

impl<'a> Elf<'a> {
    /// Returns whether these bytes begin like an ELF file.
    pub fn is_elf(bytes: &[u8]) -> bool {
        bytes.starts_with(b"\x7fELF")
    }

    /// Reads the headers and notes, and checks that the file has all that they promise.
    pub fn parse(bytes: &'a [u8]) -> Result<Elf<'a>, LoadError> {
        let mut elf = Elf { bytes, headers: Headers::parse(bytes)?, pvh_entry: None };
        for segment in &elf.headers.segments {
            elf.data(segment)?;
        }
        for note in &elf.headers.notes {
            if let Some(entry) = find_pvh_note(elf.data(note)?)? {
                elf.pvh_entry = Some(entry);
                break;
            }
        }
        Ok(elf)
    }

    /// Returns the bytes of a segment in the file.
    fn data(&self, segment: &Segment) -> Result<&'a [u8], LoadError> {
        let (start, end) = (usize::try_from(segment.offset).ok(), usize::try_from(segment.end()?).ok());
        start.zip(end).and_then(|(start, end)| self.bytes.get(start..end)).ok_or_else(|| truncated("a segment is beyond its end"))
    }

    /// Copies the segments to their physical addresses. Guest memory is zero, so the rest of each already is.
    pub fn load(self, mem: &GuestMemory) -> Result<Headers, LoadError> {
        let mut arrival = Arrival::of(mem, self.headers)?;
        arrival.take(self.bytes)?;
        arrival.finish()
    }
}

fn find_pvh_note(notes: &[u8]) -> Result<Option<u32>, LoadError> {
    let mut at = 0u64;
    while at + 12 <= notes.len() as u64 {
        let (name_size, desc_size, kind) = (le(notes, at, 4)?, le(notes, at + 4, 4)?, le(notes, at + 8, 4)? as u32);
        let name_at = at + 12;
        // The sizes are 32 bits, so these sums cannot overflow 64.
        let desc_at = name_at + name_size.next_multiple_of(4);
        let name = notes.get(name_at as usize..(name_at + name_size).min(notes.len() as u64) as usize);
        if kind == XEN_ELFNOTE_PHYS32_ENTRY && name == Some(b"Xen\0".as_slice()) && desc_size >= 4 {
            return Ok(Some(le(notes, desc_at, 4)? as u32));
        }
        at = desc_at + desc_size.next_multiple_of(4);
    }
    Ok(None)
}

impl<'m> Arrival<'m> {
    /// Begins with the headers, and checks that guest memory has room for every segment.
    pub fn of(mem: &'m GuestMemory, headers: Headers) -> Result<Arrival<'m>, LoadError> {
        headers.check_room(mem)?;
        Ok(Arrival { mem, headers, seen: 0 })
    }

    /// Takes the next bytes of the file.
    pub fn take(&mut self, piece: &[u8]) -> Result<(), LoadError> {
        let (from, to) = (self.seen, self.seen + piece.len() as u64);
        for segment in &self.headers.segments {
            // A segment may begin or end within any piece: a packed kernel arrives as it is unpacked.
            let (start, end) = (segment.offset.max(from), segment.end()?.min(to));
            if start < end {
                let bytes = &piece[(start - from) as usize..(end - from) as usize];
                self.mem.write(GuestAddr(segment.paddr + (start - segment.offset)), bytes)?;
            }
        }
        self.seen = to;
        Ok(())
    }

    /// Checks that the whole file has arrived.
    pub fn finish(self) -> Result<Headers, LoadError> {
        for segment in &self.headers.segments {
            if segment.end()? > self.seen {
                return Err(truncated("a segment is beyond its end"));
            }
        }
        Ok(self.headers)
    }
}
