//! Moving the backup of a GUID partition table to the end of a disk that has grown: UEFI Specification 2.10, section
//! 5.3.
//!
//! A disk that was made from a smaller image has its backup table in the middle, and its primary table says that the
//! disk ends there. Guests complain, and none uses the new space. No partition is changed: the guest grows one, with
//! its file system (cloud-init's growpart).
//!
//! **Hostile image**: both tables are read with bounds, and nothing is written unless their checksums are right.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Size of a sector in bytes. Image files have these, whatever their disk had.
const SECTOR: u64 = 512;
/// Minimum size of a header, and of an entry (section 5.3.2, table 5.5).
const HEADER: usize = 92;
const ENTRY: u32 = 128;
/// Maximum number of entries that are read: 64 times the usual number.
const MOST_ENTRIES: u32 = 8192;

/// Result of [`move_end`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TableEnd {
    /// There is no valid table.
    NoTable,
    /// It already is at the end.
    Already,
    /// It was moved.
    Moved,
}

/// One header, with its position.
struct Header {
    bytes: [u8; HEADER],
}

impl Header {
    fn u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.bytes[at..at + 4].try_into().expect("four bytes"))
    }
    fn u64(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.bytes[at..at + 8].try_into().expect("eight bytes"))
    }
    fn set(&mut self, at: usize, value: u64) {
        self.bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
    }
    fn alternate_lba(&self) -> u64 {
        self.u64(32)
    }
    fn entries_lba(&self) -> u64 {
        self.u64(72)
    }
    /// Returns the size of the entries in bytes.
    fn entries_bytes(&self) -> u64 {
        u64::from(self.u32(80)) * u64::from(self.u32(84))
    }
    /// Computes its checksum, with zero in the checksum's field.
    fn checksum(&self) -> u32 {
        let mut bytes = self.bytes;
        bytes[16..20].fill(0);
        crc32fast::hash(&bytes)
    }
    fn seal(&mut self) {
        let sum = self.checksum();
        self.bytes[16..20].copy_from_slice(&sum.to_le_bytes());
    }

    /// Reads the header at `lba`. Returns `None` if there is none, or its size is not known here.
    fn read(disk: &File, lba: u64) -> io::Result<Option<Header>> {
        let mut bytes = [0; HEADER];
        match disk.read_exact_at(&mut bytes, lba * SECTOR) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            other => other?,
        }
        let header = Header { bytes };
        let sound = &bytes[..8] == b"EFI PART"
            && header.u32(12) == HEADER as u32
            && header.u32(16) == header.checksum()
            && header.u64(24) == lba
            && (1..=MOST_ENTRIES).contains(&header.u32(80))
            && header.u32(84) >= ENTRY
            && header.u32(84) <= 4096;
        Ok(sound.then_some(header))
    }
}

/// Moves the backup table of `disk`, whose size is `size` bytes, to its end, and updates the primary one.
pub fn move_end(disk: &File, size: u64) -> io::Result<TableEnd> {
    let Some(mut primary) = Header::read(disk, 1)? else { return Ok(TableEnd::NoTable) };
    let last = size / SECTOR - 1;
    let sectors = primary.entries_bytes().div_ceil(SECTOR);
    if primary.alternate_lba() == last {
        return Ok(TableEnd::Already);
    }
    // A table whose entries are not after the header, or do not fit, was not made by a valid program.
    if primary.alternate_lba() > last || primary.entries_lba() < 2 || last < primary.u64(48) + sectors + 1 {
        return Ok(TableEnd::NoTable);
    }
    let mut entries = vec![0; primary.entries_bytes() as usize];
    match disk.read_exact_at(&mut entries, primary.entries_lba() * SECTOR) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(TableEnd::NoTable),
        other => other?,
    }
    if crc32fast::hash(&entries) != primary.u32(88) {
        return Ok(TableEnd::NoTable);
    }
    let old = primary.alternate_lba();
    primary.set(32, last);
    primary.set(48, last - sectors - 1);
    primary.seal();
    let mut backup = Header { bytes: primary.bytes };
    backup.set(24, last);
    backup.set(32, 1);
    backup.set(72, last - sectors);
    backup.seal();
    // The new backup goes first: an interruption between the steps leaves the old table complete.
    disk.write_all_at(&entries, (last - sectors) * SECTOR)?;
    disk.write_all_at(&backup.bytes, last * SECTOR)?;
    disk.sync_data()?;
    disk.write_all_at(&primary.bytes, SECTOR)?;
    protective_mbr(disk, last)?;
    if old != last && Header::read(disk, old)?.is_some() {
        disk.write_all_at(&[0; HEADER], old * SECTOR)?;
    }
    disk.sync_data()?;
    Ok(TableEnd::Moved)
}

/// Extends the protective MBR's only partition to the end, as far as 32 bits allow (section 5.2.3).
fn protective_mbr(disk: &File, last: u64) -> io::Result<()> {
    let mut mbr = [0; SECTOR as usize];
    disk.read_exact_at(&mut mbr, 0)?;
    if mbr[450] == 0xee && mbr[510..] == [0x55, 0xaa] {
        disk.write_all_at(&u32::try_from(last).unwrap_or(u32::MAX).to_le_bytes(), 458)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns a disk of 4096 sectors with one partition, as the specification lays it out.
    fn disk() -> File {
        let disk = tempfile::tempfile().expect("a file");
        disk.set_len(4096 * SECTOR).expect("sized");
        let mut mbr = [0u8; 512];
        mbr[450] = 0xee;
        mbr[454..458].copy_from_slice(&1u32.to_le_bytes());
        mbr[458..462].copy_from_slice(&4095u32.to_le_bytes());
        mbr[510..].copy_from_slice(&[0x55, 0xaa]);
        disk.write_all_at(&mbr, 0).expect("written");
        let mut entries = vec![0u8; 128 * 128];
        entries[..16].fill(0x11);
        entries[32..40].copy_from_slice(&34u64.to_le_bytes());
        entries[40..48].copy_from_slice(&4000u64.to_le_bytes());
        let mut header = Header { bytes: [0; HEADER] };
        header.bytes[..8].copy_from_slice(b"EFI PART");
        header.bytes[8..16].copy_from_slice(&[0, 0, 1, 0, HEADER as u8, 0, 0, 0]);
        for (at, value) in [(24, 1), (32, 4095), (40, 34), (48, 4062), (72, 2)] {
            header.set(at, value);
        }
        header.bytes[80..84].copy_from_slice(&128u32.to_le_bytes());
        header.bytes[84..88].copy_from_slice(&128u32.to_le_bytes());
        header.bytes[88..92].copy_from_slice(&crc32fast::hash(&entries).to_le_bytes());
        header.seal();
        disk.write_all_at(&header.bytes, SECTOR).expect("written");
        disk.write_all_at(&entries, 2 * SECTOR).expect("written");
        let mut backup = Header { bytes: header.bytes };
        for (at, value) in [(24, 4095), (32, 1), (72, 4063)] {
            backup.set(at, value);
        }
        backup.seal();
        disk.write_all_at(&entries, 4063 * SECTOR).expect("written");
        disk.write_all_at(&backup.bytes, 4095 * SECTOR).expect("written");
        disk
    }

    #[test]
    fn a_grown_disk_has_its_backup_at_its_end_and_both_tables_agree() {
        let disk = disk();
        assert_eq!(move_end(&disk, 4096 * SECTOR).expect("reads"), TableEnd::Already);
        disk.set_len(8192 * SECTOR).expect("grown");
        assert_eq!(move_end(&disk, 8192 * SECTOR).expect("moves"), TableEnd::Moved);
        let primary = Header::read(&disk, 1).expect("reads").expect("sound");
        let backup = Header::read(&disk, 8191).expect("reads").expect("sound");
        assert_eq!((primary.alternate_lba(), backup.alternate_lba()), (8191, 1));
        assert_eq!((primary.u64(48), backup.u64(48)), (8191 - 33, 8191 - 33));
        assert_eq!(backup.entries_lba(), 8191 - 32);
        let mut entries = [vec![0; 128 * 128], vec![0; 128 * 128]];
        disk.read_exact_at(&mut entries[0], 2 * SECTOR).expect("reads");
        disk.read_exact_at(&mut entries[1], backup.entries_lba() * SECTOR).expect("reads");
        assert_eq!(entries[0], entries[1]);
        assert!(Header::read(&disk, 4095).expect("reads").is_none(), "the old backup is gone");
        assert_eq!(move_end(&disk, 8192 * SECTOR).expect("reads"), TableEnd::Already);
    }

    #[test]
    fn a_table_that_cannot_be_believed_is_left_alone() {
        for (at, value) in [(SECTOR, 0u8), (SECTOR + 16, 1), (SECTOR + 80, 0xff), (2 * SECTOR, 0x22)] {
            let disk = disk();
            disk.set_len(8192 * SECTOR).expect("grown");
            disk.write_all_at(&[value], at).expect("damaged");
            let mut before = vec![0; 8192 * 512];
            disk.read_exact_at(&mut before, 0).expect("reads");
            assert_eq!(move_end(&disk, 8192 * SECTOR).expect("reads"), TableEnd::NoTable, "{at}");
            let mut after = vec![0; 8192 * 512];
            disk.read_exact_at(&mut after, 0).expect("reads");
            assert!(before == after, "{at}");
        }
        let empty = tempfile::tempfile().expect("a file");
        empty.set_len(600).expect("sized");
        assert_eq!(move_end(&empty, 600).expect("reads"), TableEnd::NoTable);
    }
}
