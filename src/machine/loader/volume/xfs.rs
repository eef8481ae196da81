//! XFS, versions 4 and 5 ("XFS Algorithms & Data Structures", 3rd edition; Linux `fs/xfs/libxfs/xfs_format.h`,
//! `xfs_da_format.h`).
//!
//! **Not modelled**: the log. A file system that was not unmounted is read as it is on the disk, as GRUB does;
//! checksums are not verified; real-time files are refused.
//!
//! **Hostile guest**: the extents of one file, the blocks of one tree and the entries of a directory are counted.

use super::number::{array, be16, be32, be64};
use super::{MAX_ENTRIES, Medium, NodeKind, Result, Tree, VolumeError, room};

const KIND: &str = "xfs";
const MAX_EXTENTS: usize = 1 << 18;
const MAX_TREE_BLOCKS: usize = 1 << 14;
/// Directory data lies below this offset, its index above (`XFS_DIR2_LEAF_OFFSET`).
const DIRECTORY_DATA_END: u64 = 1 << 35;
const MAX_LINK_BYTES: u64 = 1024;

/// Incompatible features that do not prevent reading: file types, sparse inodes, metadata UUID, big timestamps,
/// needs-repair, large extent counters, exchange-range, parent pointers.
const KNOWN_INCOMPAT: u32 = 0xff;
const INCOMPAT_FTYPE: u32 = 1;
const INCOMPAT_NEEDS_REPAIR: u32 = 1 << 4;
/// Read-only compatible features that change nothing about a file's blocks (`XFS_SB_FEAT_RO_COMPAT_*`): trees of free
/// inodes and of owners, shared blocks (which a file's own flag marks), counts of inode trees.
const RO_COMPAT_WRITABLE: u32 = 0xf;
const FEATURES2_FTYPE: u32 = 0x200;
const FLAG_REALTIME: u16 = 1;
const FLAG2_REFLINK: u64 = 1 << 1;
const FLAG2_LARGE_COUNTERS: u64 = 1 << 4;

/// An XFS file system.
pub struct Xfs {
    medium: Medium,
    block_bytes: u64,
    directory_block_bytes: u64,
    inode_bytes: usize,
    inodes_per_block_log: u32,
    group_blocks: u64,
    group_log: u32,
    groups: u64,
    root: u64,
    version_5: bool,
    has_types: bool,
    pinned: Option<&'static str>,
    label: String,
    uuid: String,
}

/// A file, directory or link: its inode as it is on the disk.
#[derive(Clone)]
pub struct XfsFile {
    kind: NodeKind,
    inode: u64,
}

/// A part of a file: its first block in the file, the first on the disk, the number of blocks. Unwritten ones read as
/// zeros.
struct Extent {
    offset: u64,
    start: u64,
    blocks: u64,
    unwritten: bool,
}

struct Inode {
    bytes: Vec<u8>,
    fork: std::ops::Range<usize>,
    size: u64,
    format: u8,
    extents: u64,
}

fn damaged(why: &str) -> VolumeError {
    VolumeError::Damaged { kind: KIND, why: why.to_string() }
}

impl Xfs {
    /// Returns whether the superblock's magic number is present.
    pub fn is_here(medium: &Medium) -> bool {
        medium.bytes(0, 4).is_ok_and(|magic| magic == *b"XFSB")
    }

    /// Opens the file system.
    pub fn open(medium: &Medium) -> Result<Xfs> {
        let superblock = medium.bytes(0, 512)?;
        let version = be16(&superblock, 100);
        let version_5 = match version & 0xf {
            4 => false,
            5 => true,
            other => return Err(VolumeError::Unsupported { kind: KIND, feature: format!("version {other}") }),
        };
        let incompat = if version_5 { be32(&superblock, 216) } else { 0 };
        if incompat & !KNOWN_INCOMPAT != 0 {
            let feature = format!("incompatible features {:#x}", incompat & !KNOWN_INCOMPAT);
            return Err(VolumeError::Unsupported { kind: KIND, feature });
        }
        let block_bytes = u64::from(be32(&superblock, 4));
        let inode_bytes = usize::from(be16(&superblock, 104));
        let (block_log, inode_log) = (superblock[120], superblock[122]);
        let (per_block_log, group_log, directory_log) = (superblock[123], superblock[124], superblock[192]);
        let sane = (512..=65_536).contains(&block_bytes)
            && (256..=2048).contains(&inode_bytes)
            && 1u64.checked_shl(block_log.into()) == Some(block_bytes)
            && 1usize.checked_shl(inode_log.into()) == Some(inode_bytes)
            && per_block_log.checked_add(inode_log) == Some(block_log)
            && group_log < 32
            && directory_log < 8
            && block_bytes << directory_log <= 65_536;
        if !sane {
            return Err(damaged("the sizes in its superblock contradict each other"));
        }
        let name = &superblock[108..120];
        let label = String::from_utf8_lossy(name).trim_end_matches('\0').to_string();
        let has_types = if version_5 { incompat & INCOMPAT_FTYPE != 0 } else { be32(&superblock, 200) & FEATURES2_FTYPE != 0 };
        let ro_compat = if version_5 { be32(&superblock, 212) } else { 0 };
        let pinned = (incompat & INCOMPAT_NEEDS_REPAIR != 0 || ro_compat & !RO_COMPAT_WRITABLE != 0)
            .then_some("its file system is damaged or has features with which this loader only reads it");
        Ok(Xfs {
            medium: medium.clone(),
            block_bytes,
            directory_block_bytes: block_bytes << directory_log,
            inode_bytes,
            inodes_per_block_log: per_block_log.into(),
            group_blocks: be32(&superblock, 84).into(),
            group_log: group_log.into(),
            groups: be32(&superblock, 88).into(),
            root: be64(&superblock, 56),
            version_5,
            has_types,
            pinned,
            label,
            uuid: super::number::uuid(array(&superblock, 32)),
        })
    }

    /// Returns the byte at which a block of the file system begins. The upper bits of its number are the group, the
    /// lower ones the block in it.
    fn block_at(&self, block: u64) -> Result<u64> {
        let (group, inside) = (block >> self.group_log, block & ((1 << self.group_log) - 1));
        if group >= self.groups || inside >= self.group_blocks {
            return Err(damaged("a block is beyond its group"));
        }
        let number = group.checked_mul(self.group_blocks).and_then(|first| first.checked_add(inside));
        number.and_then(|number| number.checked_mul(self.block_bytes)).ok_or_else(|| damaged("a block is beyond the end"))
    }

    fn inode(&self, number: u64) -> Result<Inode> {
        let block = number >> self.inodes_per_block_log;
        let inside = (number & ((1 << self.inodes_per_block_log) - 1)) * self.inode_bytes as u64;
        let bytes = self.medium.bytes(self.block_at(block)? + inside, self.inode_bytes)?;
        if bytes[..2] != *b"IN" {
            return Err(damaged("an inode has no magic number"));
        }
        let core = if bytes[4] >= 3 { 176 } else { 100 };
        let end = match usize::from(bytes[82]) * 8 {
            0 => self.inode_bytes,
            attributes => core + attributes,
        };
        if end > self.inode_bytes || end < core {
            return Err(damaged("an inode's attributes begin beyond it"));
        }
        let large = bytes[4] >= 3 && be64(&bytes, 120) & FLAG2_LARGE_COUNTERS != 0;
        let extents = if large { be64(&bytes, 24) } else { be32(&bytes, 76).into() };
        if be16(&bytes, 90) & FLAG_REALTIME != 0 && bytes[2] & 0xf0 == 0x80 {
            return Err(VolumeError::Unsupported { kind: KIND, feature: "a real-time file".into() });
        }
        Ok(Inode { size: be64(&bytes, 56), format: bytes[5], extents, fork: core..end, bytes })
    }

    fn extents(&self, inode: &Inode) -> Result<Vec<Extent>> {
        let fork = &inode.bytes[inode.fork.clone()];
        match inode.format {
            2 => {
                let count = usize::try_from(inode.extents).unwrap_or(usize::MAX);
                let bytes = count.checked_mul(16).and_then(|bytes| fork.get(..bytes));
                let records = bytes.ok_or_else(|| damaged("an inode has more extents than room"))?;
                Ok(records.chunks_exact(16).map(extent).collect())
            }
            3 => self.extent_tree(fork),
            _ => Err(damaged("an inode's format is not valid")),
        }
    }

    /// Collects all extents of a tree: down its left edge, then along the leaves.
    fn extent_tree(&self, root: &[u8]) -> Result<Vec<Extent>> {
        let mut level = be16(root, 0);
        let most = root.len().saturating_sub(4) / 16;
        let mut block = be64(root, 4 + 8 * most);
        let header = if self.version_5 { 72 } else { 24 };
        let magic: &[u8] = if self.version_5 { b"BMA3" } else { b"BMAP" };
        let mut extents = Vec::new();
        for _ in 0..MAX_TREE_BLOCKS {
            let node = self.medium.bytes(self.block_at(block)?, self.block_bytes as usize)?;
            if node[..4] != *magic || be16(&node, 4) >= level.max(1) {
                return Err(damaged("a block of an extent tree is not valid"));
            }
            level = be16(&node, 4);
            let count = usize::from(be16(&node, 6));
            if level > 0 {
                let most = (node.len() - header) / 16;
                block = be64(&node, header + 8 * most);
                continue;
            }
            let records = node.get(header..header + 16 * count).ok_or_else(|| damaged("an extent tree's leaf overflows"))?;
            extents.extend(records.chunks_exact(16).map(extent));
            block = be64(&node, 16);
            if block == u64::MAX {
                return Ok(extents);
            }
            if extents.len() > MAX_EXTENTS {
                break;
            }
            level = 1;
        }
        Err(damaged("a file has too many extents"))
    }

    /// Reads `bytes` of a file from the start, by its extents.
    fn contents(&self, inode: &Inode, bytes: u64) -> Result<Vec<u8>> {
        if inode.format == 1 {
            let fork = &inode.bytes[inode.fork.clone()];
            return fork.get(..bytes as usize).map(<[u8]>::to_vec).ok_or_else(|| damaged("an inline file is too long"));
        }
        let mut content = room(&self.medium, bytes)?;
        for extent in self.extents(inode)?.iter().filter(|extent| !extent.unwritten) {
            let Some(from) = extent.offset.checked_mul(self.block_bytes).filter(|&from| from < bytes) else { continue };
            let len = (extent.blocks * self.block_bytes).min(bytes - from);
            let part = &mut content[from as usize..(from + len) as usize];
            self.medium.read(self.block_at(extent.start)?, part)?;
        }
        Ok(content)
    }

    fn short_directory(&self, fork: &[u8], each: &mut dyn FnMut(&str, u64, u8) -> bool) {
        let wide = fork.get(1).is_some_and(|&count| count > 0);
        let number_bytes = if wide { 8 } else { 4 };
        let mut at = 2 + number_bytes;
        for _ in 0..usize::from(fork.first().copied().unwrap_or(0)) {
            let Some(&len) = fork.get(at) else { return };
            let name_at = at + 3;
            let type_at = name_at + usize::from(len);
            let number_at = type_at + usize::from(self.has_types);
            let (Some(name), Some(_)) = (fork.get(name_at..type_at), fork.get(number_at..number_at + number_bytes)) else {
                return;
            };
            let number = if wide { be64(fork, number_at) } else { be32(fork, number_at).into() };
            let file_type = if self.has_types { fork[type_at] } else { 0 };
            if !each(&String::from_utf8_lossy(name), number, file_type) {
                return;
            }
            at = number_at + number_bytes;
        }
    }

    /// Visits the entries of one directory block. Returns `false` when the caller wants no more.
    fn directory_block(&self, block: &[u8], each: &mut dyn FnMut(&str, u64, u8) -> bool) -> Result<bool> {
        let whole = match &block[..4] {
            b"XD2B" | b"XDB3" => true,
            b"XD2D" | b"XDD3" => false,
            _ => return Err(damaged("a directory block has no magic number")),
        };
        let mut end = block.len();
        if whole {
            // The index and its count are at the end of the block.
            let index = 8 * be32(block, end - 8) as usize;
            end = (end - 8).checked_sub(index).ok_or_else(|| damaged("a directory's index overflows"))?;
        }
        let mut at = if self.version_5 { 64 } else { 16 };
        while at + 16 <= end {
            if be16(block, at) == 0xffff {
                let len = usize::from(be16(block, at + 2));
                if len < 8 {
                    return Err(damaged("a directory's free space has no length"));
                }
                at += len;
                continue;
            }
            let len = usize::from(block[at + 8]);
            let type_at = at + 9 + len;
            if type_at + 1 > end || len == 0 {
                return Err(damaged("a directory's entry overflows"));
            }
            let file_type = if self.has_types { block[type_at] } else { 0 };
            let name = String::from_utf8_lossy(&block[at + 9..type_at]);
            if !each(&name, be64(block, at), file_type) {
                return Ok(false);
            }
            at += (9 + len + usize::from(self.has_types) + 2).next_multiple_of(8);
        }
        Ok(true)
    }

    fn node(&self, number: u64, file_type: u8) -> Result<XfsFile> {
        // The types of directory entries, `XFS_DIR3_FT_*`.
        let kind = match file_type {
            1 => NodeKind::File,
            2 => NodeKind::Directory,
            7 => NodeKind::Link,
            0 => match be16(&self.inode(number)?.bytes, 2) & 0o170_000 {
                0o100_000 => NodeKind::File,
                0o040_000 => NodeKind::Directory,
                0o120_000 => NodeKind::Link,
                _ => NodeKind::Other,
            },
            _ => NodeKind::Other,
        };
        Ok(XfsFile { kind, inode: number })
    }
}

/// Parses one extent record: 128 bits.
fn extent(record: &[u8]) -> Extent {
    let (high, low) = (be64(record, 0), be64(record, 8));
    Extent {
        unwritten: high >> 63 != 0,
        offset: high >> 9 & ((1 << 54) - 1),
        start: (high & 0x1ff) << 43 | low >> 21,
        blocks: low & 0x1f_ffff,
    }
}

impl Tree for Xfs {
    type File = XfsFile;

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
    fn root(&self) -> Result<XfsFile> {
        Ok(XfsFile { kind: NodeKind::Directory, inode: self.root })
    }
    fn node_kind(&self, node: &XfsFile) -> NodeKind {
        node.kind
    }

    fn visit(&self, directory: &XfsFile, each: &mut dyn FnMut(&str, XfsFile) -> bool) -> Result<()> {
        let inode = self.inode(directory.inode)?;
        let mut entries = 0;
        let mut failure = None;
        let mut entry = |name: &str, number: u64, file_type: u8| {
            entries += 1;
            if matches!(name, "." | "..") {
                return true;
            }
            match self.node(number, file_type) {
                Ok(node) => each(name, node) && entries < MAX_ENTRIES,
                Err(error) => {
                    failure = Some(error);
                    false
                }
            }
        };
        if inode.format == 1 {
            self.short_directory(&inode.bytes[inode.fork.clone()], &mut entry);
            return failure.map_or(Ok(()), Err);
        }
        let per_block = self.directory_block_bytes / self.block_bytes;
        for extent in self.extents(&inode)? {
            let ends = extent.offset.checked_mul(self.block_bytes).is_none_or(|from| from >= DIRECTORY_DATA_END);
            if ends || extent.unwritten {
                continue;
            }
            // mkfs and the kernel keep the blocks of one directory block together.
            for first in (0..extent.blocks).step_by(per_block as usize) {
                let at = self.block_at(extent.start + first)?;
                let block = self.medium.bytes(at, self.directory_block_bytes as usize)?;
                if !self.directory_block(&block, &mut entry)? {
                    return failure.map_or(Ok(()), Err);
                }
            }
        }
        Ok(())
    }

    /// Returns the reason against a change in place. A log that was not replayed is no reason: it holds no file's
    /// bytes, and a block that by the log belongs to another file by now has bytes of this one only until that file is
    /// written.
    fn pinned(&self, node: &XfsFile) -> Result<Option<&'static str>> {
        let bytes = self.inode(node.inode)?.bytes;
        let shared = bytes[4] >= 3 && be64(&bytes, 120) & FLAG2_REFLINK != 0;
        Ok(self.pinned.or(shared.then_some("its blocks are shared with a copy of it")))
    }

    fn content(&self, node: &XfsFile, limit: u64) -> Result<Vec<u8>> {
        let inode = self.inode(node.inode)?;
        if inode.size > limit {
            return Err(VolumeError::TooLarge { size: inode.size, limit });
        }
        self.contents(&inode, inode.size)
    }

    fn link(&self, node: &XfsFile) -> Result<String> {
        let inode = self.inode(node.inode)?;
        if inode.size > MAX_LINK_BYTES {
            return Err(damaged("a link is too long"));
        }
        let size = inode.size as usize;
        let mut text = self.contents(&inode, if inode.format == 1 { inode.size } else { self.block_bytes })?;
        // Version 5 puts a header before the text of a remote link, except for mkfs.xfs with a protofile. A link fits
        // into one block.
        if inode.format != 1 && text.starts_with(b"XSLM") {
            text.drain(..56);
        }
        text.truncate(size);
        String::from_utf8(text).map_err(|_| damaged("a link is not text"))
    }
}
