//! Detection of a file's format by its bytes. All formats are known here and nowhere else.
//!
//! Everything that accepts a file as a disk asks here. A raw disk has no mark of its own, so a file counts as one only
//! if it has no mark of another format: if an image were used as a raw disk, the guest's first write would destroy it.
//!
//! The marks are those of file(1) 5.44's database, of QEMU's block drivers (block/*.c), and of the formats' own
//! specifications where [`super::image`] and [`super::unpack`] name them; `VMA` is Proxmox's vma_spec.txt. File
//! systems, LUKS and similar are contents of a disk and not containers, so they are not in the table.

use super::error::{FetchError, Result};
use super::image::{Format, Storage, unreadable, vhd, vmdk};

/// Number of bytes from the start of a file that are enough for most formats. The bytes at its end ([`Contents::of`])
/// identify a few more.
pub const HEAD: usize = 512;
/// Text files up to this size are treated as text and not as disks: 64 KiB.
const MAX_TEXT: u64 = 64 << 10;

/// Packing of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packing {
    /// RFC 1952.
    Gzip,
    /// The .xz file format.
    Xz,
    /// The older .lzma file format.
    Lzma,
    /// RFC 8878.
    Zstd,
    /// bzip2(1).
    Bzip2,
    /// POSIX pax, ustar, GNU tar and its predecessors.
    Tar,
}

/// Contents of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Contents {
    /// No known format: the bytes of a disk, as far as can be told.
    Raw,
    /// A disk image of a supported format.
    Image(Format),
    /// A packed file.
    Packed(Packing),
    /// A disk image of a format that is not supported, by its name.
    OtherImage(&'static str),
    /// Neither a disk nor an image, by its name with its article.
    Other(&'static str),
}

/// A mark at an offset.
struct Mark {
    at: usize,
    bytes: &'static [u8],
    is: Contents,
}

const fn image(at: usize, bytes: &'static [u8], name: &'static str) -> Mark {
    Mark { at, bytes, is: Contents::OtherImage(name) }
}
const fn other(bytes: &'static [u8], name: &'static str) -> Mark {
    Mark { at: 0, bytes, is: Contents::Other(name) }
}
const fn packed(bytes: &'static [u8], packing: Packing) -> Mark {
    Mark { at: 0, bytes, is: Contents::Packed(packing) }
}

/// The table of marks, searched from the top.
const MARKS: &[Mark] = &[
    Mark { at: 0, bytes: b"QFI\xfb\0\0\0\x02", is: Contents::Image(Format::Qcow2) },
    Mark { at: 0, bytes: b"QFI\xfb\0\0\0\x03", is: Contents::Image(Format::Qcow2) },
    image(0, b"QFI\xfb\0\0\0\x01", "qcow version 1"),
    image(0, b"QFI\xfb", "qcow of an unknown version"),
    Mark { at: 0, bytes: b"KDMV", is: Contents::Image(Format::Vmdk) },
    image(0, b"COWD", "VMDK version 3 (COWD)"),
    Mark { at: 0, bytes: b"conectix", is: Contents::Image(Format::Vhd) },
    image(0, b"vhdxfile", "VHDX"),
    image(64, b"\x7f\x10\xda\xbe", "VDI"),
    image(0, b"QED\0", "QED"),
    image(0, b"WithoutFreeSpace", "Parallels"),
    image(0, b"WithouFreSpacExt", "Parallels"),
    image(0, b"Bochs Virtual HD Image", "Bochs"),
    image(0, b"#!/bin/sh\n#V2.0 Format\nmodprobe cloop", "cloop"),
    image(0, b"VMA\0", "Proxmox VMA"),
    image(0, b"EVF\x09\x0d\x0a\xff\0", "EnCase"),
    image(0, b"MSWIM\0\0\0", "WIM"),
    image(0, b"\x3a\xff\x26\xed", "Android sparse"),
    image(0, b"partclone-image", "Partclone"),
    packed(b"\x1f\x8b", Packing::Gzip),
    packed(b"\xfd7zXZ\0", Packing::Xz),
    packed(b"\x28\xb5\x2f\xfd", Packing::Zstd),
    other(b"PK\x03\x04", "a zip archive"),
    other(b"PK\x05\x06", "a zip archive"),
    other(b"PK\x07\x08", "a zip archive"),
    other(b"7z\xbc\xaf\x27\x1c", "a 7-zip archive"),
    other(b"Rar!\x1a\x07", "a RAR archive"),
    other(b"\x04\x22\x4d\x18", "an LZ4 file"),
    other(b"\x02\x21\x4c\x18", "an LZ4 file"),
    other(b"LZIP\x01", "an lzip file"),
    other(b"\x89LZO\0\r\n\x1a\n", "an lzop file"),
    other(b"LRZI", "an lrzip file"),
    other(b"zPQ", "a ZPAQ file"),
    other(b"\x1f\x1e", "a file of pack(1)"),
    other(b"\x1f\xa0", "a file of SCO compress"),
    other(b"\xff\x06\0\0sNaPpY", "a Snappy file"),
    other(b"xar!", "a xar archive"),
    other(b"MSCF\0\0\0\0", "a cabinet archive"),
    other(b"070701", "a cpio archive"),
    other(b"070702", "a cpio archive"),
    other(b"070707", "a cpio archive"),
    other(b"\xc7\x71", "a cpio archive"),
    other(b"\x71\xc7", "a cpio archive"),
    other(b"!<arch>\n", "an ar archive"),
    other(b"\xed\xab\xee\xdb", "an RPM package"),
    other(b"\0\x05\x16\x07", "an AppleDouble file: the attributes of another file"),
    other(b"\0\x05\x16\0", "an AppleSingle file"),
    other(b"btrfs-stream\0", "a stream of btrfs send"),
    other(b"\x7fELF", "an ELF program"),
    other(b"%PDF-", "a PDF document"),
    other(b"#!", "a script"),
];
/// A stream of zfs send: DMU_BACKUP_MAGIC at byte 8, in either byte order (OpenZFS, include/sys/zfs_ioctl.h).
const ZFS_SEND: [&[u8]; 2] = [b"\xac\xcb\xba\xf5\x02\0\0\0", b"\0\0\0\x02\xf5\xba\xcb\xac"];
/// Beginnings of a text of the World Wide Web, in lower case.
const WEB: [(&[u8], &str); 4] = [
    (b"<!doctype html", "an HTML page"),
    (b"<html", "an HTML page"),
    (b"<?xml", "an XML document"),
    (b"<envelope", "an XML document"),
];

impl Contents {
    /// Returns the contents of a file by its first bytes (at best [`HEAD`]). [`Contents::of`] knows more formats.
    pub fn of_head(head: &[u8]) -> Self {
        let has = |mark: &&Mark| head.get(mark.at..).is_some_and(|rest| rest.starts_with(mark.bytes));
        if let Some(mark) = MARKS.iter().find(has) {
            return mark.is;
        }
        match head {
            head if vmdk::is_descriptor(head) => Self::Image(Format::Vmdk),
            [b'B', b'Z', b'h', b'1'..=b'9', ..] => Self::Packed(Packing::Bzip2),
            // Skippable frames (RFC 8878, 3.1.2) may come first.
            [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Packed(Packing::Zstd),
            // compress(1): 9 to 16 bits, two bits that are 0.
            [0x1f, 0x9d, bits, ..] if bits & 0x60 == 0 && (9..=16).contains(&(bits & 0x1f)) => {
                Self::Other("a file of compress(1)")
            }
            head if is_tar(head) => Self::Packed(Packing::Tar),
            head if is_lzma(head) => Self::Packed(Packing::Lzma),
            head if head.get(8..16).is_some_and(|mark| ZFS_SEND.contains(&mark)) => Self::Other("a stream of zfs send"),
            head => web(head).map_or(Self::Raw, Self::Other),
        }
    }

    /// Returns the contents of a file.
    pub fn of(storage: &dyn Storage) -> Result<Self> {
        let mut head = [0; HEAD];
        let n = storage.read_at(&mut head, 0).map_err(unreadable)?;
        let found = match Self::of_head(&head[..n]) {
            // Only its footer distinguishes a fixed VHD from a raw disk.
            Self::Raw if vhd::has_footer(storage)? => Self::Image(Format::Vhd),
            Self::Raw if has_koly(storage)? => Self::OtherImage("Apple DMG"),
            Self::Raw if storage.len() <= MAX_TEXT && is_text(&head[..n]) => Self::Other("a text file"),
            found => found,
        };
        Ok(found)
    }

    /// Returns a description with its article, which follows `it is`.
    pub fn words(self) -> String {
        match self {
            Self::Raw => "a raw disk".into(),
            Self::Image(format) => format!("a {} image", format.title()),
            Self::OtherImage(name) if name.starts_with(['A', 'E']) => format!("an {name} image"),
            Self::OtherImage(name) => format!("a {name} image"),
            Self::Packed(packing) => packing.words().into(),
            Self::Other(words) => words.into(),
        }
    }

    /// Returns the format of a disk, or an error if it is not one. A packed file is not a disk before it is unpacked.
    pub fn disk(self) -> Result<Format> {
        match self {
            Self::Raw => Ok(Format::Raw),
            Self::Image(format) => Ok(format),
            Self::OtherImage(name) => {
                Err(FetchError::user(format!("{name} images are not read")).hint("convert it to qcow2 or raw first"))
            }
            Self::Packed(packing) => Err(FetchError::user(format!("it is {}, not a disk image", packing.words()))),
            Self::Other(words) => Err(FetchError::user(format!("it is {words}, not a disk image"))
                .hint("inspect it with file(1); `--format raw` uses its bytes as a disk nevertheless")),
        }
    }
}

impl Packing {
    /// Returns a description with its article.
    pub fn words(self) -> &'static str {
        match self {
            Self::Gzip => "a gzip file",
            Self::Xz => "an xz file",
            Self::Lzma => "an lzma file",
            Self::Zstd => "a zstd file",
            Self::Bzip2 => "a bzip2 file",
            Self::Tar => "a tar archive",
        }
    }
}

/// Returns whether this is the header of a tar archive: by its magic (POSIX pax, 4.20 "ustar Interchange Format"), or
/// by the checksum that headers before ustar have too: the sum of the header's bytes, with its own eight counted as
/// blanks, in octal digits.
fn is_tar(head: &[u8]) -> bool {
    let Some(header) = head.get(..512) else { return false };
    if &header[257..262] == b"ustar" {
        return true;
    }
    let field = header[148..156].iter().copied().skip_while(|byte| *byte == b' ').take_while(u8::is_ascii_digit);
    let digits: String = field.map(char::from).collect();
    let (before, after) = (&header[..148], &header[156..]);
    let sum: u32 = before.iter().chain(after).map(|byte| u32::from(*byte)).sum::<u32>() + 8 * u32::from(b' ');
    header[0] != 0 && digits.len() >= 4 && u32::from_str_radix(&digits, 8).is_ok_and(|stated| stated == sum)
}

/// Returns whether this is the header of an .lzma file (XZ Utils, doc/lzma-file-format.txt): properties of at most 224,
/// a dictionary of 2^n or 2^n + 2^(n-1) bytes, the size (or none), and the first byte of the range coder, which is 0.
fn is_lzma(head: &[u8]) -> bool {
    let Some(header) = head.get(..14) else { return false };
    let dictionary = u32::from_le_bytes(header[1..5].try_into().expect("four bytes"));
    let size = u64::from_le_bytes(header[5..13].try_into().expect("eight bytes"));
    let round =
        dictionary >= 4096 && (dictionary.is_power_of_two() || (dictionary % 3 == 0 && (dictionary / 3).is_power_of_two()));
    header[0] < 225 && round && (size == u64::MAX || (1..1 << 38).contains(&size)) && header[13] == 0
}

/// Returns whether this is a disk image of macOS, which ends in 512 bytes that begin with `koly`, its version 4 and its
/// size 512 (QEMU, block/dmg.c).
fn has_koly(storage: &dyn Storage) -> Result<bool> {
    let mut mark = [0; 12];
    let Some(at) = storage.len().checked_sub(512) else { return Ok(false) };
    let n = storage.read_at(&mut mark, at).map_err(unreadable)?;
    Ok(n == 12 && &mark == b"koly\0\0\0\x04\0\0\x02\0")
}

fn web(head: &[u8]) -> Option<&'static str> {
    let text = head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(head).trim_ascii_start();
    let begins = |mark: &[u8]| text.get(..mark.len()).is_some_and(|start| start.eq_ignore_ascii_case(mark));
    WEB.iter().find(|(mark, _)| begins(mark)).map(|(_, name)| *name)
}

/// Returns whether these first bytes of a file belong to a text with words in it.
pub fn is_text(head: &[u8]) -> bool {
    // A character may be cut where the head ends.
    let whole = match std::str::from_utf8(head) {
        Ok(text) => text,
        Err(error) if error.error_len().is_none() => std::str::from_utf8(&head[..error.valid_up_to()]).unwrap_or(""),
        Err(_) => return false,
    };
    let words = whole.contains(char::is_alphabetic) && whole.contains([' ', '\n']);
    words && !whole.contains(|c: char| c.is_control() && !matches!(c, '\n' | '\r' | '\t' | '\x0c'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(at: usize, bytes: &[u8], len: usize) -> Vec<u8> {
        let mut file = vec![0; len];
        file[at..at + bytes.len()].copy_from_slice(bytes);
        file
    }

    fn of(file: &[u8]) -> Contents {
        Contents::of(&file).expect("reads")
    }

    #[test]
    fn every_mark_is_told_in_a_file_of_whole_sectors() {
        for mark in MARKS {
            assert_eq!(of(&with(mark.at, mark.bytes, 4096)), mark.is, "{:?}", mark.is);
        }
        for (mark, name) in WEB {
            for text in [mark.to_ascii_uppercase(), [b"\xef\xbb\xbf \r\n", mark].concat()] {
                assert_eq!(of(&with(0, &text, 4096)), Contents::Other(name));
            }
        }
        assert_eq!(of(&with(3584, b"koly\0\0\0\x04\0\0\x02\0", 4096)), Contents::OtherImage("Apple DMG"));
        assert_eq!(of(&with(8, ZFS_SEND[0], 4096)), Contents::Other("a stream of zfs send"));
        assert_eq!(of(&with(0, b"\x1f\x9d\x90", 4096)), Contents::Other("a file of compress(1)"));
    }

    #[test]
    fn what_a_disk_begins_with_is_taken_for_nothing_else() {
        for (name, file) in [
            ("nothing", vec![0; 4096]),
            ("a boot sector", with(0, b"\xeb\x3c\x90MSDOS5.0", 4096)),
            ("GRUB's boot sector", with(0, b"\xeb\x63\x90", 4096)),
            ("FreeBSD's boot sector", with(0, b"\xfc\x31\xc9\x8e\xc1", 4096)),
            ("an XFS volume", with(0, b"XFSB\0\0\x10\0", 4096)),
            ("a LUKS volume", with(0, b"LUKS\xba\xbe\0\x02", 4096)),
            ("an LVM volume", with(512, b"LABELONE", 4096)),
            ("a squashfs volume", with(0, b"hsqs", 4096)),
            ("swap", with(4086, b"SWAPSPACE2", 4096)),
            ("an ISO 9660 volume", with(32769, b"CD001\x01", 40960)),
            ("ones", vec![0xff; 4096]),
            ("one byte everywhere", vec![0x5d; 4096]),
            ("one letter everywhere", vec![b'Z'; 4096]),
        ] {
            assert_eq!(of(&file), Contents::Raw, "{name}");
        }
    }

    #[test]
    fn a_small_text_is_no_disk_and_a_large_one_may_be() {
        let text = b"{ \"error\": \"not found\" }\n".repeat(100);
        assert_eq!(of(&text), Contents::Other("a text file"));
        let large = text.repeat(100);
        assert_eq!(of(&large), Contents::Raw);
    }

    #[test]
    fn an_archive_older_than_ustar_is_told_by_its_checksum() {
        let mut header = tar::Header::new_old();
        header.set_path("disk.raw").expect("fits");
        header.set_size(512);
        header.set_cksum();
        let mut file = header.as_bytes().to_vec();
        assert_eq!(of(&file), Contents::Packed(Packing::Tar));
        file[3] ^= 1;
        assert_ne!(of(&file), Contents::Packed(Packing::Tar));
    }
}
