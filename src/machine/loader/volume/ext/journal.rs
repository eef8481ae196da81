//! The journal of an ext file system that was not unmounted: the blocks of which it has a newer state (Linux
//! `Documentation/filesystems/ext4/journal.rst`; `fs/jbd2/recovery.c`, do_one_pass).
//!
//! Transactions are read from the oldest on, up to the first that is not complete. Nothing is written.
//!
//! **Hostile guest**: the log is read once, and the number of its blocks is bounded.

use std::collections::HashMap;

use super::super::number::{be16, be32, be64};
use super::checksum::crc32c;
use super::{Ext, Inode, Result, damaged};

/// Magic number of the log's own blocks. A logged block that begins with it has zeros there and a mark in its tag.
pub(super) const MAGIC: [u8; 4] = 0xc03b_3998u32.to_be_bytes();

const DESCRIPTOR: u32 = 1;
const COMMIT: u32 = 2;
const SUPERBLOCKS: std::ops::RangeInclusive<u32> = 3..=4;
const REVOKE: u32 = 5;

const INCOMPAT_64BIT: u32 = 0x2;
const INCOMPAT_CSUM_V2: u32 = 0x8;
const INCOMPAT_CSUM_V3: u32 = 0x10;
const INCOMPAT_FAST_COMMIT: u32 = 0x20;
/// The features above, records of blocks that were freed (1), and commits that do not wait (4).
const KNOWN_INCOMPAT: u32 = 0x3f;

const TAG_ESCAPED: u16 = 1;
const TAG_SAME_UUID: u16 = 2;
const TAG_LAST: u16 = 8;

/// Maximum number of blocks of a log, and of blocks of the file system in it.
const MAX_BLOCKS: usize = 1 << 20;

/// Location of the newer state of a block.
#[derive(Clone, Copy)]
pub(super) struct Logged {
    /// The block of the log, as a block of the disk.
    pub block: u64,
    /// Whether it begins with the magic number, which the log replaces with zeros.
    pub escaped: bool,
}

struct Log<'a> {
    fs: &'a Ext,
    /// The disk's block for each block of the log.
    blocks: Vec<u64>,
    /// The ring of blocks.
    ring: std::ops::Range<usize>,
    features: u32,
    seed: u32,
    next: usize,
}

/// Returns the blocks of which the journal in inode `number` has a newer state.
pub(super) fn load(fs: &Ext, number: u32) -> Result<HashMap<u64, Logged>> {
    let inode = fs.inode(number)?;
    let blocks = blocks(fs, &inode)?;
    let superblock = fs.block(*blocks.first().ok_or_else(|| damaged("its journal is empty"))?)?;
    if superblock[..4] != MAGIC || !SUPERBLOCKS.contains(&be32(&superblock, 4)) {
        return Err(damaged("its journal has no superblock"));
    }
    let version_2 = be32(&superblock, 4) == *SUPERBLOCKS.end();
    let features = if version_2 { be32(&superblock, 0x28) } else { 0 };
    let start = be32(&superblock, 0x1c) as usize;
    if start == 0 || features & !KNOWN_INCOMPAT != 0 {
        return Ok(HashMap::new());
    }
    let fast_blocks = match be32(&superblock, 0x54) as usize {
        _ if features & INCOMPAT_FAST_COMMIT == 0 => 0,
        0 => 256,
        blocks => blocks,
    };
    let end = (be32(&superblock, 0x10) as usize).checked_sub(fast_blocks);
    let ring = be32(&superblock, 0x14) as usize..end.unwrap_or(0);
    let sane = u64::from(be32(&superblock, 0xc)) == fs.block_bytes && ring.end <= blocks.len() && ring.contains(&start);
    if !sane || ring.start == 0 {
        return Err(damaged("the sizes of its journal make no sense"));
    }
    let seed = crc32c(!0, &superblock[0x30..0x40]);
    Log { fs, blocks, ring, features, seed, next: start }.replay(be32(&superblock, 0x18))
}

/// Returns the disk's block for each block of the journal, which has no holes.
fn blocks(fs: &Ext, inode: &Inode) -> Result<Vec<u64>> {
    let wanted = inode.size / fs.block_bytes;
    if wanted > MAX_BLOCKS as u64 {
        return Err(damaged("its journal is very long"));
    }
    let mut blocks = Vec::new();
    for run in fs.runs(inode, wanted)? {
        if run.logical != blocks.len() as u64 {
            break;
        }
        blocks.extend(run.physical..run.physical + run.blocks);
    }
    Ok(blocks)
}

impl Log<'_> {
    fn replay(mut self, mut sequence: u32) -> Result<HashMap<u64, Logged>> {
        let mut known = HashMap::new();
        let (mut told, mut freed) = (Vec::new(), Vec::new());
        let mut left = self.ring.len();
        while let Some(rest) = left.checked_sub(1) {
            left = rest;
            let (_, block) = self.take()?;
            if block[..4] != MAGIC || be32(&block, 8) != sequence {
                break;
            }
            let whole = match be32(&block, 4) {
                DESCRIPTOR => {
                    let before = told.len();
                    let holds = self.descriptor(&block, sequence, &mut told)?;
                    left = left.saturating_sub(told.len() - before);
                    holds
                }
                REVOKE => self.revoked(&block, &mut freed),
                COMMIT if self.sum_holds(&block, 0x10) => {
                    // A block that was freed in a transaction is not restored by this transaction or by earlier ones.
                    known.extend(told.drain(..));
                    for block in freed.drain(..) {
                        known.remove(&block);
                    }
                    sequence = sequence.wrapping_add(1);
                    true
                }
                _ => false,
            };
            if !whole {
                break;
            }
            if known.len() + told.len() + freed.len() > MAX_BLOCKS {
                return Err(damaged("its journal has too many blocks"));
            }
        }
        Ok(known)
    }

    /// Takes the next block of the ring: its position on the disk, and its bytes.
    fn take(&mut self) -> Result<(u64, Vec<u8>)> {
        let block = self.blocks[self.next];
        self.next = if self.next + 1 == self.ring.end { self.ring.start } else { self.next + 1 };
        Ok((block, self.fs.block(block)?))
    }

    fn has_checksums(&self) -> bool {
        self.features & (INCOMPAT_CSUM_V2 | INCOMPAT_CSUM_V3) != 0
    }

    /// Returns whether a block's own checksum, which is at `at`, holds.
    fn sum_holds(&self, block: &[u8], at: usize) -> bool {
        let (before, behind) = (&block[..at], &block[at + 4..]);
        let sum = || crc32c(crc32c(crc32c(self.seed, before), &[0; 4]), behind);
        !self.has_checksums() || sum() == be32(block, at)
    }

    /// Reads the tags of a descriptor block, and the blocks after it. Returns `false` if one of them is not complete.
    fn descriptor(&mut self, block: &[u8], sequence: u32, told: &mut Vec<(u64, Logged)>) -> Result<bool> {
        let end = block.len() - if self.has_checksums() { 4 } else { 0 };
        if self.has_checksums() && !self.sum_holds(block, end) {
            return Ok(false);
        }
        let wide = self.features & INCOMPAT_64BIT != 0;
        let version_3 = self.features & INCOMPAT_CSUM_V3 != 0;
        let tag_bytes = match () {
            () if version_3 => 16,
            () => 8 + if wide { 4 } else { 0 } + if self.features & INCOMPAT_CSUM_V2 != 0 { 2 } else { 0 },
        };
        let mut at = 12;
        while at + tag_bytes <= end {
            let tag = &block[at..at + tag_bytes];
            // The flags of version 3 have 32 bits, these are the lower ones.
            let flags = be16(tag, 6);
            let high = if wide { be32(tag, 8) } else { 0 };
            let (from, data) = self.take()?;
            if self.has_checksums() {
                let sum = crc32c(crc32c(self.seed, &sequence.to_be_bytes()), &data);
                let holds = if version_3 { sum == be32(tag, 12) } else { sum as u16 == be16(tag, 4) };
                if !holds {
                    return Ok(false);
                }
            }
            let logged = Logged { block: from, escaped: flags & TAG_ESCAPED != 0 };
            told.push((u64::from(high) << 32 | u64::from(be32(tag, 0)), logged));
            at += tag_bytes + if flags & TAG_SAME_UUID == 0 { 16 } else { 0 };
            if flags & TAG_LAST != 0 {
                break;
            }
        }
        Ok(true)
    }

    /// Reads the numbers of a revoke block. Returns `false` if it is not complete.
    fn revoked(&self, block: &[u8], freed: &mut Vec<u64>) -> bool {
        let end = block.len() - if self.has_checksums() { 4 } else { 0 };
        let used = be32(block, 12) as usize;
        if used > end || self.has_checksums() && !self.sum_holds(block, end) {
            return false;
        }
        let numbers = block.get(16..used).unwrap_or_default();
        match self.features & INCOMPAT_64BIT {
            0 => freed.extend(numbers.chunks_exact(4).map(|number| u64::from(be32(number, 0)))),
            _ => freed.extend(numbers.chunks_exact(8).map(|number| be64(number, 0))),
        }
        true
    }
}
