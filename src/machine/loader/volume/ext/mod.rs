//! ext2, ext3 and ext4 (Linux `Documentation/filesystems/ext4/`, files `super.rst`, `group_descr.rst`,
//! `blockgroup.rst`, `inodes.rst`, `ifork.rst`, `directory.rst`, `inlinedata.rst`, `checksums.rst`). A journal that was
//! not replayed is read ([`journal`]), so that an unclean file system reads as it would after recovery.
//!
//! Block groups' descriptors may be together or spread (`meta_bg`). Inodes have 128 bytes or more. Directories are read
//! from their start to their end, with a hash tree (`large_dir`) or without. Small files may be in their inode. The
//! checksums of superblock, inodes, extents and directories are verified if the file system has them.
//!
//! **Not modelled**: encrypted files, compression, an external journal and fast commits (such a file system is read as
//! GRUB does: as it is on the disk), names that differ only in case.
//!
//! **Hostile guest**: no memory is reserved by a count in the file system: descriptors and inodes are read one at a
//! time, the runs of one file and the blocks of its tree are counted, and a directory has a maximum size.

mod checksum; // CRC-32C
mod journal; // blocks of a journal that are newer than the disk
mod mapping; // blocks of a file

use std::collections::HashMap;

use super::number::{array, le16, le32};
use super::{Medium, NodeKind, Result, Tree, VolumeError, room};
use checksum::crc32c;
use journal::Logged;

const KIND: &str = "ext2";
const SUPERBLOCK: u64 = 1024;
const MAX_DIRECTORY_BYTES: u64 = 32 << 20;
const MAX_LINK_BYTES: u64 = 4096;
const ROOT_INODE: u32 = 2;

const COMPAT_HAS_JOURNAL: u32 = 0x4;
const COMPAT_SPARSE_SUPER2: u32 = 0x200;
const INCOMPAT_FILETYPE: u32 = 0x2;
const INCOMPAT_RECOVER: u32 = 0x4;
const INCOMPAT_META_BG: u32 = 0x10;
const INCOMPAT_64BIT: u32 = 0x80;
const INCOMPAT_MMP: u32 = 0x100;
const INCOMPAT_CSUM_SEED: u32 = 0x2000;
const INCOMPAT_LARGEDIR: u32 = 0x4000;
/// Incompatible features that do not prevent reading: those with a name here, extents, flexible groups, attributes in
/// inodes, data in inodes, encryption (which single files have) and case folding.
const KNOWN_INCOMPAT: u32 = INCOMPAT_FILETYPE
    | INCOMPAT_RECOVER
    | INCOMPAT_META_BG
    | 0x40
    | INCOMPAT_64BIT
    | INCOMPAT_MMP
    | 0x200
    | 0x400
    | INCOMPAT_CSUM_SEED
    | INCOMPAT_LARGEDIR
    | 0x8000
    | 0x1_0000
    | 0x2_0000;
const RO_COMPAT_SPARSE_SUPER: u32 = 0x1;
const RO_COMPAT_METADATA_CSUM: u32 = 0x400;
/// Read-only compatible features under which a file's blocks are its own and may change: those of Linux's ext4
/// (`fs/ext4/ext4.h`) without snapshots, `readonly`, shared blocks, and files with a hash tree.
const RO_COMPAT_WRITABLE: u32 = 0x1_277f;

const FLAG_ENCRYPTED: u32 = 0x800;
const FLAG_EXTENTS: u32 = 0x8_0000;
const FLAG_VERITY: u32 = 0x10_0000;
const FLAG_INLINE_DATA: u32 = 0x1000_0000;

/// A file system of the ext family.
pub struct Ext {
    medium: Medium,
    block_bytes: u64,
    blocks: u64,
    first_block: u64,
    group_blocks: u64,
    inodes: u32,
    inodes_per_group: u32,
    inode_bytes: usize,
    descriptor_bytes: u64,
    /// With `meta_bg`, the first descriptor block that is in its own group.
    spread_from: Option<u64>,
    copies: Copies,
    has_types: bool,
    large_directories: bool,
    /// Initial value of checksums, if there are some.
    seed: Option<u32>,
    /// Blocks of which the journal has a newer state.
    logged: HashMap<u64, Logged>,
    pinned: Option<&'static str>,
    label: String,
    uuid: String,
}

/// Groups that have a copy of the superblock before their descriptors.
enum Copies {
    All,
    /// 0, 1 and the powers of 3, 5 and 7.
    Sparse,
    /// 0 and these two.
    Two([u64; 2]),
}

/// A file or directory.
#[derive(Clone)]
pub struct ExtFile {
    number: u32,
    kind: NodeKind,
}

struct Inode {
    bytes: Vec<u8>,
    size: u64,
    flags: u32,
    /// Initial value of the checksums of its blocks.
    seed: Option<u32>,
}

fn damaged(why: impl Into<String>) -> VolumeError {
    VolumeError::Damaged { kind: KIND, why: why.into() }
}

fn unsupported(feature: impl Into<String>) -> VolumeError {
    VolumeError::Unsupported { kind: KIND, feature: feature.into() }
}

/// Returns the names of incompatible features that are refused.
fn feature_names(features: u32) -> String {
    let known = [(0x1, "compression"), (0x8, "a journal device"), (0x1000, "data in directory entries")];
    let mut names: Vec<String> =
        known.iter().filter(|(bit, _)| features & bit != 0).map(|(_, name)| (*name).to_string()).collect();
    let rest = known.iter().fold(features, |rest, (bit, _)| rest & !bit);
    if rest != 0 {
        names.push(format!("incompatible features {rest:#x}"));
    }
    names.join(", ")
}

impl Ext {
    /// Returns whether the superblock's magic number is present.
    pub fn is_here(medium: &Medium) -> bool {
        medium.bytes(SUPERBLOCK + 56, 2).is_ok_and(|magic| magic == [0x53, 0xef])
    }

    /// Opens the file system. Reads its superblock and, if it was not unmounted, its journal.
    pub fn open(medium: &Medium) -> Result<Ext> {
        let superblock = medium.bytes(SUPERBLOCK, 1024)?;
        let revision = le32(&superblock, 76);
        let feature = |at: usize| if revision == 0 { 0 } else { le32(&superblock, at) };
        let (compat, incompat, ro_compat) = (feature(92), feature(96), feature(100));
        if incompat & !KNOWN_INCOMPAT != 0 {
            return Err(unsupported(feature_names(incompat & !KNOWN_INCOMPAT)));
        }
        let has_checksums = ro_compat & RO_COMPAT_METADATA_CSUM != 0;
        if has_checksums && crc32c(!0, &superblock[..0x3fc]) != le32(&superblock, 0x3fc) {
            return Err(damaged("the checksum of its superblock is wrong"));
        }
        let uuid: [u8; 16] = array(&superblock, 104);
        let seed = if incompat & INCOMPAT_CSUM_SEED != 0 { le32(&superblock, 0x270) } else { crc32c(!0, &uuid) };
        let mut fs = Ext::of_superblock(medium, &superblock, revision, incompat)?;
        fs.seed = has_checksums.then_some(seed);
        fs.copies = match () {
            () if compat & COMPAT_SPARSE_SUPER2 != 0 => {
                Copies::Two([le32(&superblock, 0x24c).into(), le32(&superblock, 0x250).into()])
            }
            () if ro_compat & RO_COMPAT_SPARSE_SUPER != 0 => Copies::Sparse,
            () => Copies::All,
        };
        fs.pinned = match () {
            // The block may also be in the journal, which is not written here; a replay would then overwrite the new
            // bytes.
            () if incompat & INCOMPAT_RECOVER != 0 => Some("its file system was not unmounted"),
            () if incompat & INCOMPAT_MMP != 0 => Some("another machine may have its file system mounted"),
            () if ro_compat & !RO_COMPAT_WRITABLE != 0 => {
                Some("its file system has features with which this loader only reads it")
            }
            () => None,
        };
        let name = &superblock[120..136];
        let end = name.iter().position(|&byte| byte == 0).unwrap_or(name.len());
        fs.label = String::from_utf8_lossy(&name[..end]).into_owned();
        fs.uuid = super::number::uuid(uuid);
        // An external journal has a UUID here and no inode.
        let journal = le32(&superblock, 0xe0);
        if compat & COMPAT_HAS_JOURNAL != 0 && incompat & INCOMPAT_RECOVER != 0 && journal != 0 {
            fs.logged = journal::load(&fs, journal)?;
        }
        Ok(fs)
    }

    /// Reads the sizes in the superblock, and checks them against each other and the medium.
    fn of_superblock(medium: &Medium, superblock: &[u8], revision: u32, incompat: u32) -> Result<Ext> {
        let block_bytes = 1024u64.checked_shl(le32(superblock, 24)).filter(|bytes| (1024..=65_536).contains(bytes));
        let block_bytes = block_bytes.ok_or_else(|| damaged("its block size is not valid"))?;
        // Linux reads the upper half with and without the feature `64bit` (`fs/ext4/ext4.h`, ext4_blocks_count).
        let blocks = u64::from(le32(superblock, 336)) << 32 | u64::from(le32(superblock, 4));
        if blocks.checked_mul(block_bytes).is_none_or(|bytes| bytes > medium.len()) {
            return Err(damaged(format!("its {blocks} blocks go beyond the end of the partition")));
        }
        let inode_bytes = if revision == 0 { 128 } else { le16(superblock, 88) };
        let descriptor_bytes = if incompat & INCOMPAT_64BIT != 0 { le16(superblock, 0xfe) } else { 32 };
        let fs = Ext {
            medium: medium.clone(),
            block_bytes,
            blocks,
            first_block: le32(superblock, 20).into(),
            group_blocks: le32(superblock, 32).into(),
            inodes: le32(superblock, 0),
            inodes_per_group: le32(superblock, 40),
            inode_bytes: inode_bytes.into(),
            descriptor_bytes: descriptor_bytes.into(),
            spread_from: (incompat & INCOMPAT_META_BG != 0).then(|| le32(superblock, 0x104).into()),
            copies: Copies::All,
            has_types: incompat & INCOMPAT_FILETYPE != 0,
            large_directories: incompat & INCOMPAT_LARGEDIR != 0,
            seed: None,
            logged: HashMap::new(),
            pinned: None,
            label: String::new(),
            uuid: String::new(),
        };
        let sane = (128..=block_bytes).contains(&u64::from(inode_bytes))
            && inode_bytes.is_power_of_two()
            && (32..=block_bytes).contains(&fs.descriptor_bytes)
            && (incompat & INCOMPAT_64BIT == 0 || fs.descriptor_bytes >= 64)
            && descriptor_bytes.is_power_of_two()
            && fs.group_blocks > 0
            && fs.inodes_per_group > 0
            && fs.first_block < blocks;
        if sane { Ok(fs) } else { Err(damaged("its group or inode sizes make no sense")) }
    }

    /// Fills `buffer` from `offset` of a block, in its newest state.
    fn read_block(&self, number: u64, offset: u64, buffer: &mut [u8]) -> Result<()> {
        // Block 0 holds the boot sector, perhaps with the superblock. No file has it.
        if number == 0 || number >= self.blocks || offset + buffer.len() as u64 > self.block_bytes {
            return Err(damaged(format!("there is no block {number}")));
        }
        let Some(logged) = self.logged.get(&number) else {
            return Ok(self.medium.read(number * self.block_bytes + offset, buffer)?);
        };
        self.medium.read(logged.block * self.block_bytes + offset, buffer)?;
        if logged.escaped {
            for (byte, place) in buffer.iter_mut().zip(offset as usize..journal::MAGIC.len()) {
                *byte = journal::MAGIC[place];
            }
        }
        Ok(())
    }

    /// Returns a whole block.
    fn block(&self, number: u64) -> Result<Vec<u8>> {
        let mut bytes = vec![0; self.block_bytes as usize];
        self.read_block(number, 0, &mut bytes)?;
        Ok(bytes)
    }

    fn has_copy(&self, group: u64) -> bool {
        let is_power_of = |base: u64| {
            let mut power = base;
            while power < group {
                power *= base;
            }
            power == group
        };
        match self.copies {
            _ if group == 0 => true,
            Copies::All => true,
            Copies::Sparse => group == 1 || [3, 5, 7].into_iter().any(is_power_of),
            Copies::Two(groups) => groups.contains(&group),
        }
    }

    /// Returns the block that holds the descriptors of number `index` (Linux `fs/ext4/super.c`, descriptor_loc).
    fn descriptor_block(&self, index: u64) -> u64 {
        match self.spread_from {
            Some(first) if index >= first => {
                let group = index * (self.block_bytes / self.descriptor_bytes);
                let small = self.block_bytes == 1024 && index == 0 && self.first_block == 0;
                group * self.group_blocks + self.first_block + u64::from(self.has_copy(group)) + u64::from(small)
            }
            _ => SUPERBLOCK / self.block_bytes + 1 + index,
        }
    }

    /// Returns the first block of a group's inodes.
    fn inode_table(&self, group: u64) -> Result<u64> {
        let per_block = self.block_bytes / self.descriptor_bytes;
        let mut descriptor = vec![0; self.descriptor_bytes as usize];
        let offset = group % per_block * self.descriptor_bytes;
        self.read_block(self.descriptor_block(group / per_block), offset, &mut descriptor)?;
        let high = if self.descriptor_bytes >= 64 { le32(&descriptor, 0x28) } else { 0 };
        Ok(u64::from(high) << 32 | u64::from(le32(&descriptor, 8)))
    }

    fn inode(&self, number: u32) -> Result<Inode> {
        if number == 0 || number > self.inodes {
            return Err(damaged(format!("there is no inode {number}")));
        }
        let (group, index) = ((number - 1) / self.inodes_per_group, (number - 1) % self.inodes_per_group);
        let at = u64::from(index) * self.inode_bytes as u64;
        let block = self.inode_table(group.into())?.checked_add(at / self.block_bytes);
        let mut bytes = vec![0; self.inode_bytes];
        let block = block.ok_or_else(|| damaged("a group's inodes are beyond the end"))?;
        self.read_block(block, at % self.block_bytes, &mut bytes)?;
        let seed = self.seed.map(|seed| crc32c(crc32c(seed, &number.to_le_bytes()), &bytes[0x64..0x68]));
        if seed.is_some_and(|seed| !inode_checksum_holds(seed, &bytes)) {
            return Err(damaged(format!("the checksum of inode {number} is wrong")));
        }
        // The upper half of a directory's size had another meaning once.
        let has_high = mode_kind(&bytes) == NodeKind::File || self.large_directories;
        let high = if has_high { le32(&bytes, 0x6c) } else { 0 };
        let size = u64::from(high) << 32 | u64::from(le32(&bytes, 4));
        Ok(Inode { size, flags: le32(&bytes, 0x20), seed, bytes })
    }

    /// Visits the entries of a piece of a directory. Returns `false` when the caller wants no more.
    fn entries(&self, bytes: &[u8], each: &mut dyn FnMut(&str, ExtFile) -> bool) -> Result<bool> {
        let mut at = 0;
        while at + 8 <= bytes.len() {
            let (number, len) = (le32(bytes, at), usize::from(le16(bytes, at + 4)));
            // The lowest two bits are the highest bits of a length above 16 bits.
            let len = if matches!(len, 0 | 0xffff) { bytes.len() - at } else { len & 0xfffc | (len & 3) << 16 };
            let name_len = if self.has_types { bytes[at + 6].into() } else { usize::from(le16(bytes, at + 6)) };
            if len < 8 || at + len > bytes.len() || 8 + name_len > len {
                return Err(damaged("a directory's entry overflows"));
            }
            let name = &bytes[at + 8..at + 8 + name_len];
            let file_type = if self.has_types { bytes[at + 7] } else { 0 };
            at += len;
            // Names that are not text are no boot files.
            if let (true, Ok(name)) = (number != 0 && name_len > 0, std::str::from_utf8(name))
                && !matches!(name, "." | "..")
            {
                let kind = match file_type {
                    1 => NodeKind::File,
                    2 => NodeKind::Directory,
                    7 => NodeKind::Link,
                    0 => mode_kind(&self.inode(number)?.bytes),
                    _ => NodeKind::Other,
                };
                if !each(name, ExtFile { number, kind }) {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// Returns the data of a file in its inode: in place of the block numbers, and in the attribute `system.data`.
    fn inline(&self, inode: &Inode) -> [Vec<u8>; 2] {
        let first = inode.bytes[0x28..0x28 + 60].to_vec();
        [first, in_attribute(&inode.bytes).unwrap_or_default().to_vec()]
    }

    /// Reads `bytes` of a file from its start.
    fn contents(&self, inode: &Inode, bytes: u64) -> Result<Vec<u8>> {
        if inode.flags & FLAG_INLINE_DATA != 0 {
            let mut content = self.inline(inode).concat();
            if (content.len() as u64) < bytes {
                return Err(damaged("an inode has less data than its size"));
            }
            content.truncate(bytes as usize);
            return Ok(content);
        }
        let mut content = room(&self.medium, bytes)?;
        for run in self.runs(inode, bytes.div_ceil(self.block_bytes))? {
            let from = run.logical * self.block_bytes;
            let end = (from + run.blocks * self.block_bytes).min(bytes);
            let Some(part) = content.get_mut(from as usize..end as usize) else { continue };
            if self.logged.is_empty() {
                self.medium.read(run.physical * self.block_bytes, part)?;
                continue;
            }
            for (block, part) in (run.physical..).zip(part.chunks_mut(self.block_bytes as usize)) {
                self.read_block(block, 0, part)?;
            }
        }
        Ok(content)
    }

    fn is_plain(inode: &Inode) -> Result<()> {
        if inode.flags & FLAG_ENCRYPTED != 0 { Err(unsupported("encryption")) } else { Ok(()) }
    }
}

fn mode_kind(inode: &[u8]) -> NodeKind {
    match le16(inode, 0) & 0o170_000 {
        0o100_000 => NodeKind::File,
        0o040_000 => NodeKind::Directory,
        0o120_000 => NodeKind::Link,
        _ => NodeKind::Other,
    }
}

/// Checks an inode's checksum, as Linux `fs/ext4/inode.c`, ext4_inode_csum: over the inode with zeros for the checksum,
/// whose upper half only larger inodes have.
fn inode_checksum_holds(seed: u32, bytes: &[u8]) -> bool {
    const LOW: usize = 0x7c;
    const HIGH: usize = 0x82;
    let mut sum = crc32c(crc32c(crc32c(seed, &bytes[..LOW]), &[0; 2]), &bytes[LOW + 2..128]);
    let has_high = bytes.len() > 128 && le16(bytes, 0x80) >= 4;
    if has_high {
        sum = crc32c(crc32c(crc32c(sum, &bytes[128..HIGH]), &[0; 2]), &bytes[HIGH + 2..]);
        return sum == u32::from(le16(bytes, HIGH)) << 16 | u32::from(le16(bytes, LOW));
    }
    crc32c(sum, &bytes[128..]) as u16 == le16(bytes, LOW)
}

/// Returns the value of the attribute `system.data` in the inode.
fn in_attribute(inode: &[u8]) -> Option<&[u8]> {
    const MAGIC: u32 = 0xea02_0000;
    const SYSTEM: u8 = 7;
    let start = 128 + usize::from(le16(inode, 0x80));
    let area = inode.get(start..).filter(|area| inode.len() > 128 && le32(area, 0) == MAGIC)?.get(4..)?;
    let mut at = 0;
    while let Some(entry) = area.get(at..).filter(|entry| entry.len() >= 16 && le32(entry, 0) != 0) {
        let name_len = usize::from(entry[0]);
        if entry[1] == SYSTEM && entry.get(16..16 + name_len)? == b"data" {
            let (offset, size) = (usize::from(le16(entry, 2)), le32(entry, 8) as usize);
            return area.get(offset..)?.get(..size);
        }
        at += (16 + name_len).next_multiple_of(4);
    }
    None
}

/// Returns whether a directory block's checksum, if it has one, holds.
fn directory_checksum_holds(seed: u32, block: &[u8]) -> bool {
    let Some((body, tail)) = block.split_last_chunk::<12>() else { return false };
    // The checksum looks like an unused entry. Blocks of the hash tree have none.
    let has_tail = tail[..8] == [0, 0, 0, 0, 12, 0, 0, 0xde];
    !has_tail || crc32c(seed, body) == le32(tail, 8)
}

impl Tree for Ext {
    type File = ExtFile;

    fn kind(&self) -> &'static str {
        KIND
    }
    fn label(&self) -> String {
        self.label.clone()
    }
    fn uuid(&self) -> String {
        self.uuid.clone()
    }
    fn medium(&self) -> &Medium {
        &self.medium
    }
    fn root(&self) -> Result<ExtFile> {
        Ok(ExtFile { number: ROOT_INODE, kind: NodeKind::Directory })
    }
    fn node_kind(&self, node: &ExtFile) -> NodeKind {
        node.kind
    }

    fn visit(&self, directory: &ExtFile, each: &mut dyn FnMut(&str, ExtFile) -> bool) -> Result<()> {
        let inode = self.inode(directory.number)?;
        if mode_kind(&inode.bytes) != NodeKind::Directory {
            return Err(damaged("an inode in place of a directory is not one"));
        }
        Ext::is_plain(&inode)?;
        if inode.flags & FLAG_INLINE_DATA != 0 {
            // The parent directory, then entries, then more of them.
            let [first, more] = self.inline(&inode);
            if self.entries(&first[4..], each)? {
                self.entries(&more, each)?;
            }
            return Ok(());
        }
        if inode.size > MAX_DIRECTORY_BYTES {
            return Err(damaged("a directory is very long"));
        }
        for run in self.runs(&inode, inode.size.div_ceil(self.block_bytes))? {
            for number in run.physical..run.physical + run.blocks {
                let block = self.block(number)?;
                if inode.seed.is_some_and(|seed| !directory_checksum_holds(seed, &block)) {
                    return Err(damaged("the checksum of a directory is wrong"));
                }
                if !self.entries(&block, each)? {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    fn pinned(&self, node: &ExtFile) -> Result<Option<&'static str>> {
        let sealed = self.inode(node.number)?.flags & FLAG_VERITY != 0;
        Ok(self.pinned.or(sealed.then_some("it is sealed with checksums of its own")))
    }

    fn content(&self, node: &ExtFile, limit: u64) -> Result<Vec<u8>> {
        let inode = self.inode(node.number)?;
        Ext::is_plain(&inode)?;
        if inode.size > limit {
            return Err(VolumeError::TooLarge { size: inode.size, limit });
        }
        self.contents(&inode, inode.size)
    }

    fn link(&self, node: &ExtFile) -> Result<String> {
        let inode = self.inode(node.number)?;
        Ext::is_plain(&inode)?;
        if inode.size > MAX_LINK_BYTES {
            return Err(damaged("a link is too long"));
        }
        let text = match inode.size as usize {
            size @ 0..60 if inode.flags & (FLAG_EXTENTS | FLAG_INLINE_DATA) == 0 => inode.bytes[0x28..0x28 + size].to_vec(),
            _ => self.contents(&inode, inode.size)?,
        };
        String::from_utf8(text).map_err(|_| damaged("a link is not text"))
    }
}
