//! Mapping of a file's blocks to blocks of the disk: by a tree of extents, or by direct and indirect block numbers
//! (Linux `Documentation/filesystems/ext4/ifork.rst`).

use super::super::number::{le16, le32};
use super::checksum::crc32c;
use super::{Ext, FLAG_EXTENTS, Inode, Result, VolumeError, damaged};

const EXTENT_MAGIC: u16 = 0xf30a;
/// Maximum depth of a tree of extents.
const MAX_DEPTH: u16 = 5;
/// Maximum number of runs of one file.
const MAX_RUNS: usize = 1 << 18;
/// Maximum number of blocks of one file's tree.
const MAX_TREE_BLOCKS: usize = 1 << 14;
/// Lengths above this mark an extent that was reserved and not written yet.
const UNWRITTEN: u64 = 1 << 15;

/// Blocks that are consecutive in the file and on the disk.
pub(super) struct Run {
    /// The first block in the file.
    pub logical: u64,
    /// The first block on the disk.
    pub physical: u64,
    /// Number of blocks.
    pub blocks: u64,
}

/// The runs of a file while they are collected.
struct Gathering {
    /// Number of wanted blocks of the file.
    wanted: u64,
    runs: Vec<Run>,
    tree_blocks: usize,
}

fn too_many() -> VolumeError {
    damaged("a file has too many extents")
}

impl Gathering {
    fn add(&mut self, fs: &Ext, logical: u64, physical: u64, blocks: u64) -> Result<()> {
        let blocks = blocks.min(self.wanted.saturating_sub(logical));
        if blocks == 0 {
            return Ok(());
        }
        if physical == 0 || physical.checked_add(blocks).is_none_or(|end| end > fs.blocks) {
            return Err(damaged("a file has blocks beyond the end"));
        }
        let is_full = self.runs.len() == MAX_RUNS;
        match self.runs.last_mut() {
            Some(last) if last.logical + last.blocks == logical && last.physical + last.blocks == physical => {
                last.blocks += blocks;
            }
            Some(last) if last.logical + last.blocks > logical => return Err(damaged("a file's extents overlap")),
            _ if is_full => return Err(too_many()),
            _ => self.runs.push(Run { logical, physical, blocks }),
        }
        Ok(())
    }

    fn next_tree_block(&mut self) -> Result<()> {
        self.tree_blocks += 1;
        if self.tree_blocks > MAX_TREE_BLOCKS { Err(too_many()) } else { Ok(()) }
    }
}

impl Ext {
    /// Returns the runs of the first `wanted` blocks of a file, in the file's order. Blocks between them read as zeros.
    pub(super) fn runs(&self, inode: &Inode, wanted: u64) -> Result<Vec<Run>> {
        let mut gathering = Gathering { wanted, runs: Vec::new(), tree_blocks: 0 };
        let root = &inode.bytes[0x28..0x28 + 60];
        if inode.flags & FLAG_EXTENTS != 0 {
            self.extents(inode, root, None, &mut gathering)?;
            return Ok(gathering.runs);
        }
        let mut logical = 0;
        for direct in 0..12 {
            self.numbered(le32(root, 4 * direct), 0, &mut logical, &mut gathering)?;
        }
        for level in 1..=3u32 {
            self.numbered(le32(root, 44 + 4 * level as usize), level, &mut logical, &mut gathering)?;
        }
        Ok(gathering.runs)
    }

    /// Collects a node of a tree of extents. `depth` comes from the node above.
    fn extents(&self, inode: &Inode, node: &[u8], depth: Option<u16>, gathering: &mut Gathering) -> Result<()> {
        let (count, own_depth) = (usize::from(le16(node, 2)), le16(node, 6));
        let sane = le16(node, 0) == EXTENT_MAGIC
            && depth.is_none_or(|depth| depth == own_depth)
            && own_depth <= MAX_DEPTH
            && 12 + 12 * count <= node.len();
        if !sane {
            return Err(damaged("a node of a tree of extents is not valid"));
        }
        for entry in node[12..].chunks_exact(12).take(count) {
            let logical = u64::from(le32(entry, 0));
            if logical >= gathering.wanted {
                break;
            }
            if own_depth == 0 {
                let (blocks, high) = (u64::from(le16(entry, 4)), u64::from(le16(entry, 6)));
                if blocks <= UNWRITTEN {
                    gathering.add(self, logical, high << 32 | u64::from(le32(entry, 8)), blocks)?;
                }
                continue;
            }
            gathering.next_tree_block()?;
            let child = self.block(u64::from(le16(entry, 8)) << 32 | u64::from(le32(entry, 4)))?;
            let tail = 12 + 12 * usize::from(le16(&child, 4));
            if let Some(seed) = inode.seed
                && (tail + 4 > child.len() || crc32c(seed, &child[..tail]) != le32(&child, tail))
            {
                return Err(damaged("the checksum of a file's extents is wrong"));
            }
            self.extents(inode, &child, Some(own_depth - 1), gathering)?;
        }
        Ok(())
    }

    /// Collects a block number, or `level` levels of blocks of block numbers.
    fn numbered(&self, number: u32, level: u32, logical: &mut u64, gathering: &mut Gathering) -> Result<()> {
        let per_block = self.block_bytes / 4;
        if *logical >= gathering.wanted {
            return Ok(());
        }
        if number == 0 || level == 0 {
            if number != 0 {
                gathering.add(self, *logical, number.into(), 1)?;
            }
            *logical += per_block.pow(level);
            return Ok(());
        }
        gathering.next_tree_block()?;
        let block = self.block(number.into())?;
        for entry in block.chunks_exact(4) {
            self.numbered(le32(entry, 0), level - 1, logical, gathering)?;
        }
        Ok(())
    }
}
