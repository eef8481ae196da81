//! Detection of the contents of a disk or partition: a file system that can be read, or the name of another format.

use super::ext::Ext;
use super::fat::Fat;
use super::iso9660::Iso;
use super::number::{be32, le16, le32, le64};
use super::xfs::Xfs;
use super::{FileSystem, Medium, Result, VolumeError};

/// Contents of a medium.
pub enum Found {
    /// A file system.
    Volume(Box<dyn FileSystem>),
    /// A known format that this loader does not read.
    Named(String),
    /// A file system that it reads, but damaged or with unknown features.
    Broken(VolumeError),
    /// An unknown format.
    Unknown,
}

/// Detects the contents of a medium.
pub fn probe(medium: &Medium) -> Found {
    medium.allow(0);
    // A medium that cannot be read must not count as empty.
    if let Err(error) = medium.bytes(0, medium.len().min(512) as usize) {
        return Found::Broken(error.into());
    }
    let boxed = |opened: Result<Box<dyn FileSystem>>| opened.map_or_else(Found::Broken, Found::Volume);
    // A container that encrypts or joins partitions is at their start, and may leave the old file system's mark in
    // place.
    if let Some(name) = container(medium) {
        return Found::Named(name);
    }
    if Xfs::is_here(medium) {
        return boxed(Xfs::open(medium).map(|fs| Box::new(fs) as _));
    }
    if Ext::is_here(medium) {
        return boxed(Ext::open(medium).map(|fs| Box::new(fs) as _));
    }
    if Iso::is_here(medium) {
        return boxed(Iso::open(medium).map(|fs| Box::new(fs) as _));
    }
    if let Some(name) = other(medium) {
        return Found::Named(name.to_string());
    }
    match Fat::open(medium) {
        Ok(Some(fat)) => Found::Volume(Box::new(fat)),
        Ok(None) => Found::Unknown,
        Err(error) => Found::Broken(error),
    }
}

fn at<const N: usize>(medium: &Medium, offset: u64) -> [u8; N] {
    let mut bytes = [0; N];
    // Beyond the end there are no bytes, for which zeros are here.
    let _ = medium.read(offset, &mut bytes);
    bytes
}

fn container(medium: &Medium) -> Option<String> {
    let start: [u8; 16] = at(medium, 0);
    if start[..6] == *b"LUKS\xba\xbe" {
        return Some(format!("LUKS{} encryption", u16::from_be_bytes([start[6], start[7]])));
    }
    if start[3..11] == *b"-FVE-FS-" {
        return Some("BitLocker encryption".into());
    }
    if (0..4).any(|sector| at::<8>(medium, sector * 512) == *b"LABELONE") {
        return Some("an LVM physical volume".into());
    }
    if [0, 4096].iter().any(|&offset| le32(&at::<4>(medium, offset), 0) == 0xa92b_4efc) {
        return Some("a Linux RAID member".into());
    }
    None
}

fn other(medium: &Medium) -> Option<&'static str> {
    let start: [u8; 16] = at(medium, 0);
    if at::<8>(medium, 0x1_0040) == *b"_BHRfS_M" {
        return Some("a btrfs file system");
    }
    let ufs = |offset: u64| le32(&at::<4>(medium, offset + 1372), 0);
    if ufs(65_536) == 0x1954_0119 || ufs(8192) == 0x0001_1954 {
        return Some("a UFS file system");
    }
    // The first uberblocks of the first label.
    if (0..8).any(|i| le64(&at::<8>(medium, 0x2_0000 + i * 1024), 0) == 0x00ba_b10c) {
        return Some("a ZFS pool");
    }
    if [4086, 65_526].iter().any(|&offset| at::<10>(medium, offset) == *b"SWAPSPACE2") {
        return Some("swap space");
    }
    // The recognition sequence of ECMA-167 part 2. A disk that has ISO 9660 as well is read as that.
    let sequence = |sector: u64| at::<8>(medium, 0x8000 + sector * 2048);
    if (0..16).any(|sector| matches!(&sequence(sector)[1..6], b"NSR02" | b"NSR03")) {
        return Some("a UDF file system");
    }
    match () {
        () if start[3..11] == *b"NTFS    " => Some("an NTFS file system"),
        () if start[3..11] == *b"EXFAT   " => Some("an exFAT file system"),
        () if start[..4] == *b"hsqs" => Some("a squashfs file system"),
        () if le32(&at::<4>(medium, 1024), 0) == 0xf2f5_2010 => Some("an F2FS file system"),
        () if le32(&at::<4>(medium, 1024), 0) == 0xe0f5_e1e2 => Some("an EROFS file system"),
        () if at::<16>(medium, 4096 + 24)[..4] == [0xc6, 0x85, 0x73, 0xf6] => Some("a bcachefs file system"),
        () if at::<6>(medium, 0x1_0034) == *b"ReIsEr" => Some("a ReiserFS file system"),
        () if at::<4>(medium, 0x8000) == *b"JFS1" => Some("a JFS file system"),
        () if le16(&at::<2>(medium, 1024 + 6), 0) == 0x3434 => Some("a NILFS2 file system"),
        () if at::<4>(medium, 32) == *b"NXSB" => Some("an APFS container"),
        () if le16(&at::<2>(medium, 1024), 0) == 0x4244 || be32(&at::<4>(medium, 1024), 0) >> 16 == 0x482b => {
            Some("an HFS file system")
        }
        () => None,
    }
}
