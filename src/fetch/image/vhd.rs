//! Virtual PC's VHD (Microsoft, "Virtual Hard Disk Image Format Specification", 1.0, October 2006): fixed and dynamic.
//!
//! The last 512 bytes are the footer (a dynamic disk has a copy at its start); numbers are big-endian. A dynamic disk
//! has a block allocation table of sector numbers; each block begins with a bitmap of its sectors, the highest bit
//! first, and a sector whose bit is clear was never written.
//!
//! The size of the disk is the footer's current size. Virtual PC itself (creator `vpc `), and QEMU in its compatible
//! mode (`qemu`), show a guest the size of the geometry instead (QEMU's block/vpc.c, vpc_open). So does this reader.
//!
//! **Not modelled**: a differencing disk is refused.
//!
//! **Hostile file**: the table lies inside the file; a block is at most 32 MiB; checksums must be right.

use super::{Image, MAX_UNIT, Reader, Storage, damaged, read_exact, read_table, unreadable};
use crate::fetch::error::{FetchError, Result};

const SECTOR: u64 = 512;
const UNUSED: u32 = 0xffff_ffff;
/// Unit in which a fixed disk is read.
const FIXED_UNIT: u64 = 1 << 20;
/// Size of the largest geometry. Beyond it, the current size counts.
const MAX_GEOMETRY: u64 = 65_535 * 16 * 255;

/// A VHD file.
pub struct Vhd<'a> {
    storage: Box<dyn Storage + 'a>,
    size: u64,
    unit: u64,
    /// Sector numbers of the blocks; `None` for a fixed disk.
    table: Option<Vec<u32>>,
}

/// Returns whether the file ends in a footer. Only the footer distinguishes a fixed disk from a raw one.
pub fn has_footer(storage: &dyn Storage) -> Result<bool> {
    let mut cookie = [0; 8];
    let at = storage.len().saturating_sub(SECTOR);
    let n = storage.read_at(&mut cookie, at).map_err(unreadable)?;
    Ok(storage.len() >= SECTOR && n == 8 && &cookie == b"conectix" && checked(storage, at, SECTOR as usize, 64)?.is_some())
}

/// Reads a header and checks its checksum (ones' complement of the sum of its bytes, itself left out).
fn checked(storage: &dyn Storage, offset: u64, len: usize, checksum_at: usize) -> Result<Option<Vec<u8>>> {
    let mut bytes = vec![0; len];
    if storage.read_at(&mut bytes, offset).map_err(unreadable)? < len {
        return Ok(None);
    }
    let sum: u32 = bytes
        .iter()
        .enumerate()
        .filter(|(at, _)| !(checksum_at..checksum_at + 4).contains(at))
        .fold(0, |sum, (_, byte)| sum.wrapping_add(u32::from(*byte)));
    Ok((long(&bytes, checksum_at) == !sum).then_some(bytes))
}

fn long(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn quad(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

impl<'a> Vhd<'a> {
    /// Reads the footer, and the table of a dynamic disk.
    pub fn open(storage: Box<dyn Storage + 'a>) -> Result<Self> {
        let end = storage.len().saturating_sub(SECTOR);
        let mut footer = None;
        for at in [end, 0] {
            footer =
                footer.or(checked(storage.as_ref(), at, SECTOR as usize, 64)?.filter(|footer| footer.starts_with(b"conectix")));
        }
        let footer = footer.ok_or_else(|| damaged("it has no VHD footer whose checksum is right"))?;
        let size = size_of(&footer);
        match long(&footer, 60) {
            2 if size > end => Err(damaged(format!("a fixed disk of {size} bytes in a file of {}", storage.len()))),
            2 => Ok(Self { storage, size, unit: FIXED_UNIT, table: None }),
            3 => Self::dynamic(storage, quad(&footer, 16), size),
            4 => Err(FetchError::user("the VHD holds only what differs from its parent").hint("merge it with its parent first")),
            kind => Err(damaged(format!("a VHD of the unknown type {kind}"))),
        }
    }

    fn dynamic(storage: Box<dyn Storage + 'a>, header_at: u64, size: u64) -> Result<Self> {
        let header = checked(storage.as_ref(), header_at, 1024, 36)?.filter(|header| header.starts_with(b"cxsparse"));
        let header = header.ok_or_else(|| damaged("it has no VHD header whose checksum is right"))?;
        let (table_at, entries, unit) = (quad(&header, 16), u64::from(long(&header, 28)), u64::from(long(&header, 32)));
        if !unit.is_power_of_two() || !(SECTOR..=MAX_UNIT).contains(&unit) {
            return Err(damaged(format!("blocks of {unit} bytes")));
        }
        let needed = size.div_ceil(unit);
        if entries < needed {
            return Err(damaged(format!("a table of {entries} blocks for a disk of {size} bytes")));
        }
        let bytes = read_table(storage.as_ref(), table_at, needed, 4, "the block allocation table")?;
        let table: Vec<u32> = bytes.chunks_exact(4).map(|entry| long(entry, 0)).collect();
        let mut used: Vec<u32> = table.iter().copied().filter(|sector| *sector != UNUSED).collect();
        used.sort_unstable();
        if used.windows(2).any(|pair| pair[0] == pair[1]) {
            return Err(damaged("a block is used twice"));
        }
        Ok(Self { storage, size, unit, table: Some(table) })
    }

    /// Returns the size of the bitmap before a block in bytes.
    fn bitmap_bytes(&self) -> u64 {
        (self.unit / SECTOR).div_ceil(8).next_multiple_of(SECTOR)
    }
}

fn size_of(footer: &[u8]) -> u64 {
    let geometry = u64::from(u16::from_be_bytes([footer[56], footer[57]])) * u64::from(footer[58]) * u64::from(footer[59]);
    let by_geometry = matches!(&footer[28..32], b"vpc " | b"qemu");
    if by_geometry && geometry != MAX_GEOMETRY && geometry != 0 { geometry * SECTOR } else { quad(footer, 48) }
}

impl Image for Vhd<'_> {
    fn size(&self) -> u64 {
        self.size
    }
    fn unit(&self) -> u64 {
        self.unit
    }
    fn next_data(&self, unit: u64) -> Option<u64> {
        let Some(table) = &self.table else { return Some(unit) };
        let first = usize::try_from(unit).ok()?;
        let found = table.get(first..)?.iter().position(|sector| *sector != UNUSED)?;
        Some((first + found) as u64)
    }
    fn reader(&self) -> Box<dyn Reader + '_> {
        Box::new(BlockReader { image: self, bitmap: vec![0; self.bitmap_bytes() as usize] })
    }
}

struct BlockReader<'a> {
    image: &'a Vhd<'a>,
    bitmap: Vec<u8>,
}

impl Reader for BlockReader<'_> {
    fn read(&mut self, unit: u64, out: &mut [u8]) -> Result<bool> {
        let storage = self.image.storage.as_ref();
        let Some(table) = &self.image.table else {
            let n = storage.read_at(out, unit * FIXED_UNIT).map_err(unreadable)?;
            out[n..].fill(0);
            return Ok(true);
        };
        let sector = usize::try_from(unit).ok().and_then(|unit| table.get(unit)).copied().unwrap_or(UNUSED);
        if sector == UNUSED {
            return Ok(false);
        }
        let offset = u64::from(sector) * SECTOR;
        read_exact(storage, &mut self.bitmap, offset, "a block")?;
        let n = storage.read_at(out, offset + self.bitmap.len() as u64).map_err(unreadable)?;
        // A disk that is not a multiple of its blocks may end within the last one.
        let wanted = (self.image.size - unit * self.image.unit).min(self.image.unit) as usize;
        if n < wanted {
            return Err(damaged("a block reaches past the end of the file"));
        }
        out[n..].fill(0);
        let whole = self.bitmap[..out.len() / SECTOR as usize / 8].iter().all(|bits| *bits == 0xff);
        if !whole || out.len() < 8 * SECTOR as usize {
            for (at, part) in out.chunks_exact_mut(SECTOR as usize).enumerate() {
                if self.bitmap[at / 8] & 0x80 >> (at % 8) == 0 {
                    part.fill(0);
                }
            }
        }
        Ok(true)
    }
}
