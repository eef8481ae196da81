//! Search for the root file system of an OpenBSD or NetBSD guest on its disk, for `kopenbsd` and `knetbsd`.
//!
//! A disk is in one of two forms. With an MBR (four entries of 16 bytes at 446, `55 aa` at 510) the system has one
//! partition, of type a6 or a9, and in its second sector a BSD disk label (magic 82564557; the number of partitions at
//! 138, partitions of 16 bytes from 148: size, offset, fragment size, type); GRUB calls the label's first partition
//! `openbsd1` or `netbsd1` (`grub-core/partmap/bsdlabel.c`). With a GPT (UEFI 2.10, section 5.3: header in sector 1)
//! each partition has a type; GRUB calls the first entry `gpt1`.
//!
//! **Hostile guest.** The guest controls the disk. A bounded number of sectors is read, every number is checked, and a
//! disk that makes no sense counts as one without such a partition.

use std::io::{self, Read, Seek, SeekFrom};

use crate::config::GrubSystem;

const SECTOR: usize = 512;
const LABEL_MAGIC: u32 = 0x8256_4557;
/// FS_BSDFFS of sys/disklabel.h.
const TYPE_FFS: u8 = 7;
/// Maximum number of entries of a GPT that are read.
const MOST_ENTRIES: u32 = 256;

/// A root file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RootPartition {
    /// Name in GRUB, without the disk: `openbsd1`, `gpt3`.
    pub grub: String,
    /// Name in the guest's kernel.
    pub kernel: KernelName,
}

/// The guest kernel's name for a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KernelName {
    /// By its letter in the disk label.
    Letter(char),
    /// By its number among the wedges, from 0: `dk0` of NetBSD.
    Wedge(u32),
}

/// Searches for the root file system of an installed system. Returns `None` if it is not installed yet.
pub fn find(disk: &mut (impl Read + Seek), system: GrubSystem) -> io::Result<Option<RootPartition>> {
    let (kind, name) = match system {
        GrubSystem::Linux => return Ok(None),
        GrubSystem::Openbsd => (0xa6, "openbsd"),
        GrubSystem::Netbsd => (0xa9, "netbsd"),
    };
    let Some(mbr) = sector(disk, 0)? else { return Ok(None) };
    if mbr[510..] != [0x55, 0xaa] {
        return Ok(None);
    }
    let entries = mbr[446..510].chunks_exact(16);
    if entries.clone().any(|entry| entry[4] == 0xee) {
        return gpt(disk, system);
    }
    for entry in entries.filter(|entry| entry[4] == kind) {
        let start = u64::from(long(entry, 8));
        if let Some(label) = sector(disk, start + 1)?
            && let Some(at) = ffs_in(&label)
        {
            let letter = char::from(b'a' + at);
            return Ok(Some(RootPartition { grub: format!("{name}{}", at + 1), kernel: KernelName::Letter(letter) }));
        }
    }
    Ok(None)
}

/// Returns the first FFS partition of a disk label. The third one, `c`, is the whole disk and has no type.
fn ffs_in(label: &[u8; SECTOR]) -> Option<u8> {
    if long(label, 0) != LABEL_MAGIC {
        return None;
    }
    let count = u16::from_le_bytes([label[138], label[139]]).min(16);
    let partitions = label[148..].chunks_exact(16).take(usize::from(count));
    let found = partitions.enumerate().find(|(_, entry)| entry[12] == TYPE_FFS && long(entry, 0) > 0);
    found.map(|(at, _)| u8::try_from(at).expect("at most 16"))
}

/// The GUIDs as they are on the disk: the first three fields are little-endian.
const OPENBSD_DATA: [u8; 16] = [0xa0, 0xc7, 0x4c, 0x82, 0xa8, 0x36, 0xe3, 0x11, 0x89, 0x0a, 0x95, 0x25, 0x19, 0xad, 0x3f, 0x61];
const NETBSD_FFS: [u8; 16] = [0x5a, 0x8d, 0xf4, 0x49, 0x0e, 0xb1, 0xdc, 0x11, 0xb9, 0x9b, 0x00, 0x19, 0xd1, 0x87, 0x96, 0x48];

fn gpt(disk: &mut (impl Read + Seek), system: GrubSystem) -> io::Result<Option<RootPartition>> {
    let Some(header) = sector(disk, 1)? else { return Ok(None) };
    if &header[..8] != b"EFI PART" {
        return Ok(None);
    }
    let first = u64::from_le_bytes(header[72..80].try_into().expect("8 bytes"));
    let (count, size) = (long(&header, 80).min(MOST_ENTRIES), u64::from(long(&header, 84)));
    if !(128..=512).contains(&size) || !size.is_power_of_two() {
        return Ok(None);
    }
    let wanted = if system == GrubSystem::Openbsd { OPENBSD_DATA } else { NETBSD_FFS };
    let mut wedges = 0;
    for number in 0..count {
        let byte = u64::from(number) * size;
        let Some(block) = first.checked_add(byte / SECTOR as u64) else { return Ok(None) };
        let Some(sector) = sector(disk, block)? else { return Ok(None) };
        let at = usize::try_from(byte % SECTOR as u64).expect("below a sector");
        let kind = &sector[at..at + 16];
        if kind == wanted {
            let kernel = match system {
                // The label that OpenBSD makes up by itself begins with this partition.
                GrubSystem::Openbsd => KernelName::Letter('a'),
                _ => KernelName::Wedge(wedges),
            };
            return Ok(Some(RootPartition { grub: format!("gpt{}", number + 1), kernel }));
        }
        wedges += u32::from(kind != [0; 16]);
    }
    Ok(None)
}

fn long(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"))
}

/// Reads one sector. Returns `None` past the disk's end.
fn sector(disk: &mut (impl Read + Seek), number: u64) -> io::Result<Option<[u8; SECTOR]>> {
    let Some(at) = number.checked_mul(SECTOR as u64) else { return Ok(None) };
    let mut bytes = [0; SECTOR];
    disk.seek(SeekFrom::Start(at))?;
    match disk.read_exact(&mut bytes) {
        Ok(()) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Cursor;

    fn mbr(kind: u8, start: u32) -> Vec<u8> {
        let mut disk = vec![0; 64 * SECTOR];
        disk[510..512].copy_from_slice(&[0x55, 0xaa]);
        // The fourth entry, as OpenBSD's fdisk fills it in.
        disk[446 + 48 + 4] = kind;
        disk[446 + 48 + 8..446 + 48 + 12].copy_from_slice(&start.to_le_bytes());
        disk
    }

    fn label(disk: &mut [u8], sector: usize, types: &[u8]) {
        let label = &mut disk[sector * SECTOR..(sector + 1) * SECTOR];
        label[..4].copy_from_slice(&LABEL_MAGIC.to_le_bytes());
        label[138..140].copy_from_slice(&u16::try_from(types.len()).unwrap().to_le_bytes());
        for (at, kind) in types.iter().enumerate() {
            label[148 + at * 16] = 1;
            label[148 + at * 16 + 12] = *kind;
        }
    }

    fn look(disk: Vec<u8>, system: GrubSystem) -> Option<RootPartition> {
        find(&mut Cursor::new(disk), system).expect("memory can be read")
    }

    #[test]
    fn openbsd_is_found_by_its_disk_label() {
        let mut disk = mbr(0xa6, 16);
        label(&mut disk, 17, &[TYPE_FFS, 1, 0]);
        let found = RootPartition { grub: "openbsd1".into(), kernel: KernelName::Letter('a') };
        assert_eq!(look(disk.clone(), GrubSystem::Openbsd), Some(found));
        assert_eq!(look(disk, GrubSystem::Netbsd), None);
    }

    #[test]
    fn the_root_of_netbsd_need_not_be_the_first_partition() {
        let mut disk = mbr(0xa9, 32);
        label(&mut disk, 33, &[1, 0, 0, 0, TYPE_FFS]);
        let found = RootPartition { grub: "netbsd5".into(), kernel: KernelName::Letter('e') };
        assert_eq!(look(disk, GrubSystem::Netbsd), Some(found));
    }

    fn gpt_disk(types: &[[u8; 16]]) -> Vec<u8> {
        let mut disk = mbr(0xee, 1);
        disk[SECTOR..SECTOR + 8].copy_from_slice(b"EFI PART");
        disk[SECTOR + 72] = 2;
        disk[SECTOR + 80] = 128;
        disk[SECTOR + 84] = 128;
        for (at, kind) in types.iter().enumerate() {
            disk[2 * SECTOR + at * 128..][..16].copy_from_slice(kind);
        }
        disk
    }

    #[test]
    fn a_gpt_is_searched_by_type() {
        let other = [1; 16];
        let openbsd = look(gpt_disk(&[other, [0; 16], other, OPENBSD_DATA]), GrubSystem::Openbsd);
        assert_eq!(openbsd, Some(RootPartition { grub: "gpt4".into(), kernel: KernelName::Letter('a') }));
        // An unused entry is not a wedge.
        let netbsd = look(gpt_disk(&[other, [0; 16], NETBSD_FFS]), GrubSystem::Netbsd);
        assert_eq!(netbsd, Some(RootPartition { grub: "gpt3".into(), kernel: KernelName::Wedge(1) }));
    }

    #[test]
    fn an_empty_disk_and_one_that_lies_have_no_such_partition() {
        for disk in [Vec::new(), vec![0; 4 * SECTOR], mbr(0xa6, u32::MAX), mbr(0xa6, 16), mbr(0xee, 1)] {
            assert_eq!(look(disk, GrubSystem::Openbsd), None);
        }
        let mut far = gpt_disk(&[]);
        far[SECTOR + 72..SECTOR + 80].copy_from_slice(&u64::MAX.to_le_bytes());
        assert_eq!(look(far, GrubSystem::Netbsd), None);
        let mut wide = gpt_disk(&[NETBSD_FFS]);
        wide[SECTOR + 84..SECTOR + 88].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(look(wide, GrubSystem::Netbsd), None);
    }
}
