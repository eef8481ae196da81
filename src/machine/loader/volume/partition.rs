//! Partition tables: MBR with extended partitions, and GPT (UEFI 2.10 section 5).
//!
//! Numbers are GRUB's: MBR primaries are 1 to 4 and logical partitions continue from 5; GPT counts from 1.
//!
//! [`read`] describes which of the two counts.
//!
//! **Hostile guest**: at most [`MAX_PARTITIONS`] are read; a chain of extended partitions that goes backwards ends
//! there; a GPT header is used if its checksum and that of its table are right, else the backup at the end is tried.

use std::io;

use super::Medium;
use super::number::{array, le32, le64};

/// Maximum number of partitions of one disk that are read.
pub const MAX_PARTITIONS: usize = 256;
const SECTOR: u64 = 512;

/// Kind of a partition table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// Master boot record.
    Msdos,
    /// GUID partition table.
    Gpt,
}

/// One partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partition {
    /// GRUB's number.
    pub number: u32,
    /// Kind of its table.
    pub scheme: Scheme,
    /// First byte.
    pub start: u64,
    /// Number of bytes.
    pub len: u64,
    /// The partition's own UUID (`PARTUUID`), for `probe --part-uuid`.
    pub uuid: String,
}

/// The type of the entry that protects a GPT (UEFI 2.10 section 5.2.3).
const GPT_PROTECTIVE: u8 = 0xee;

/// Returns the partitions of a disk, in the order of their numbers. There are none if there is no table.
///
/// A GPT counts only with a boot record that says so, as with Linux (`block/partitions/efi.c`, is_pmbr_valid) and GRUB.
/// Otherwise it is a remain from before the disk was partitioned or formatted again. On a disk without any boot record
/// the first header counts, but not the one at the end, since making a file system on the disk does not overwrite that
/// one.
pub fn read(disk: &Medium) -> io::Result<Vec<Partition>> {
    if disk.len() < 2 * SECTOR {
        return Ok(Vec::new());
    }
    let first = disk.bytes(0, SECTOR as usize)?;
    let is_signed = first[510..] == [0x55, 0xaa];
    let is_protective = is_signed && (0..4).any(|i| first[446 + 16 * i + 4] == GPT_PROTECTIVE);
    if is_signed && !is_protective {
        return mbr(disk);
    }
    for sector_bytes in [SECTOR, 4096] {
        let last = (disk.len() / sector_bytes).saturating_sub(1);
        let headers: &[u64] = if is_protective { &[1, last] } else { &[1] };
        for &lba in headers {
            if let Some(found) = gpt(disk, sector_bytes, lba)? {
                return Ok(found);
            }
        }
    }
    mbr(disk)
}

fn gpt(disk: &Medium, sector_bytes: u64, lba: u64) -> io::Result<Option<Vec<Partition>>> {
    let at = lba * sector_bytes;
    if at + 512 > disk.len() {
        return Ok(None);
    }
    let header = disk.bytes(at, 512)?;
    let header_bytes = le32(&header, 12) as usize;
    if &header[..8] != b"EFI PART" || !(92..=512).contains(&header_bytes) || le64(&header, 24) != lba {
        return Ok(None);
    }
    let mut summed = header[..header_bytes].to_vec();
    summed[16..20].fill(0);
    if crc32fast::hash(&summed) != le32(&header, 16) {
        return Ok(None);
    }
    let (table_lba, count, entry_bytes) = (le64(&header, 72), le32(&header, 80), le32(&header, 84));
    if !(128..=4096).contains(&entry_bytes) || count > 4096 {
        return Ok(None);
    }
    let bytes = count as usize * entry_bytes as usize;
    let table_at = table_lba.checked_mul(sector_bytes).filter(|at| at.checked_add(bytes as u64).is_some_and(|e| e <= disk.len()));
    let Some(table_at) = table_at else { return Ok(None) };
    let table = disk.bytes(table_at, bytes)?;
    if crc32fast::hash(&table) != le32(&header, 88) {
        return Ok(None);
    }
    let mut found = Vec::new();
    for (index, entry) in table.chunks_exact(entry_bytes as usize).enumerate() {
        if entry[..16] == [0; 16] || found.len() == MAX_PARTITIONS {
            continue;
        }
        let (first, last) = (le64(entry, 32), le64(entry, 40));
        let start = first.checked_mul(sector_bytes);
        let len = last.checked_sub(first).and_then(|n| n.checked_add(1)).and_then(|n| n.checked_mul(sector_bytes));
        if let (Some(start), Some(len)) = (start, len)
            && start < disk.len()
        {
            let uuid = guid(array(entry, 16));
            found.push(Partition { number: index as u32 + 1, scheme: Scheme::Gpt, start, len, uuid });
        }
    }
    Ok(Some(found))
}

/// Returns a GUID's text. Its first three fields are little-endian.
fn guid(mut bytes: [u8; 16]) -> String {
    bytes[..4].reverse();
    bytes[4..6].reverse();
    bytes[6..8].reverse();
    super::number::uuid(bytes)
}

struct Entry {
    kind: u8,
    first: u64,
    sectors: u64,
}

impl Entry {
    fn is_extended(&self) -> bool {
        matches!(self.kind, 0x05 | 0x0f | 0x85)
    }
}

/// Returns the four entries of a boot record, or nothing if it is not one.
fn boot_record(disk: &Medium, sector: u64) -> io::Result<Option<(u32, [Entry; 4])>> {
    let Some(at) = sector.checked_mul(SECTOR).filter(|at| at.checked_add(SECTOR).is_some_and(|end| end <= disk.len())) else {
        return Ok(None);
    };
    let record = disk.bytes(at, SECTOR as usize)?;
    let entry = |i: usize| {
        let at = 446 + 16 * i;
        Entry { kind: record[at + 4], first: le32(&record, at + 8).into(), sectors: le32(&record, at + 12).into() }
    };
    let entries = [0, 1, 2, 3].map(entry);
    // A boot sector of a file system has the same signature; a table's status bytes are 0 or 80h.
    let is_table = record[510..] == [0x55, 0xaa] && (0..4).all(|i| matches!(record[446 + 16 * i], 0 | 0x80));
    Ok(is_table.then_some((le32(&record, 440), entries)))
}

fn mbr(disk: &Medium) -> io::Result<Vec<Partition>> {
    let Some((signature, entries)) = boot_record(disk, 0)? else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    let mut add = |number: u32, first: u64, sectors: u64| {
        let start = first * SECTOR;
        if sectors > 0 && start < disk.len() && found.len() < MAX_PARTITIONS {
            let uuid = if signature == 0 { String::new() } else { format!("{signature:08x}-{number:02x}") };
            found.push(Partition { number, scheme: Scheme::Msdos, start, len: sectors * SECTOR, uuid });
        }
    };
    let mut logical = 5;
    for (number, entry) in (1..).zip(&entries) {
        if matches!(entry.kind, 0 | GPT_PROTECTIVE) {
            continue;
        }
        if !entry.is_extended() {
            add(number, entry.first, entry.sectors);
            continue;
        }
        let mut at = entry.first;
        for _ in 0..MAX_PARTITIONS {
            let Some((_, inner)) = boot_record(disk, at)? else { break };
            if inner[0].kind != 0 && !inner[0].is_extended() {
                add(logical, at + inner[0].first, inner[0].sectors);
                logical += 1;
            }
            let next = entry.first + inner[1].first;
            // The tables of a valid chain come one after the other.
            if !inner[1].is_extended() || next <= at {
                break;
            }
            at = next;
        }
    }
    found.sort_by_key(|partition| partition.number);
    Ok(found)
}
