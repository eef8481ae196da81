//! The journal of an ext file system that was not unmounted: which blocks it has a newer state of (Linux
//! `Documentation/filesystems/ext4/journal.rst`; `fs/jbd2/recovery.c`, do_one_pass).
//!
//! Transactions are gone through from the oldest on, up to the first that is not whole. Nothing is written.
//!
//! **Hostile guest**: the log is gone through once; the blocks that it may tell of are counted.

use std::collections::HashMap;

use super::super::number::{be16, be32, be64};
use super::checksum::crc32c;
use super::{Ext, Inode, Result, damaged};

/// What blocks of the log begin with. A logged block that begins so has zeros there and a mark in its tag.
pub(super) const MAGIC: [u8; 4] = 0xc03b_3998u32.to_be_bytes();

const DESCRIPTOR: u32 = 1;
const COMMIT: u32 = 2;
const SUPERBLOCKS: std::ops::RangeInclusive<u32> = 3..=4;
const REVOKE: u32 = 5;

const INCOMPAT_64BIT: u32 = 0x2;
const INCOMPAT_CSUM_V2: u32 = 0x8;
const INCOMPAT_CSUM_V3: u32 = 0x10;
const INCOMPAT_FAST_COMMIT: u32 = 0x20;
/// Those, records of blocks that were freed (1), and commits that do not wait (4).
const KNOWN_INCOMPAT: u32 = 0x3f;

const TAG_ESCAPED: u16 = 1;
const TAG_SAME_UUID: u16 = 2;
const TAG_LAST: u16 = 8;

/// Blocks of a log, and of the file system that it may tell of.
const MAX_BLOCKS: usize = 1 << 20;

/// Where the newer state of a block is.
#[derive(Clone, Copy)]
pub(super) struct Logged {
    /// The block of the log, as a block of the disk.
    pub block: u64,
    /// Whether it begins with the magic number, which is not there.
    pub escaped: bool,
}

struct Log<'a> {
    fs: &'a Ext,
    /// The disk's block for each of the log.
    blocks: Vec<u64>,
    /// The first block of the ring, and one past its last.
    ring: std::ops::Range<usize>,
    features: u32,
    seed: u32,
    next: usize,
}

/// The blocks that the journal in inode `number` has a newer state of.
pub(super) fn load(fs: &Ext, number: u32) -> Result<HashMap<u64, Logged>> {
    let inode = fs.inode(number)?;
    let blocks = blocks(fs, &inode)?;
    let superblock = fs.block(*blocks.first().ok_or_else(|| damaged("its journal is empty"))?)?;
    if superblock[..4] != MAGIC || !SUPERBLOCKS.contains(&be32(&superblock, 4)) {
        return Err(damaged("its journal is none"));
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

/// The disk's block for each block of the journal, which has no holes.
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
                    // A block that was freed in a transaction is not brought back by it or by those before.
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
                return Err(damaged("its journal tells of too many blocks"));
            }
        }
        Ok(known)
    }

    /// The next block of the ring: where it is on the disk, and its bytes.
    fn take(&mut self) -> Result<(u64, Vec<u8>)> {
        let block = self.blocks[self.next];
        self.next = if self.next + 1 == self.ring.end { self.ring.start } else { self.next + 1 };
        Ok((block, self.fs.block(block)?))
    }

    fn has_checksums(&self) -> bool {
        self.features & (INCOMPAT_CSUM_V2 | INCOMPAT_CSUM_V3) != 0
    }

    /// Whether a block's own checksum, which is at `at`, holds.
    fn sum_holds(&self, block: &[u8], at: usize) -> bool {
        let (before, behind) = (&block[..at], &block[at + 4..]);
        let sum = || crc32c(crc32c(crc32c(self.seed, before), &[0; 4]), behind);
        !self.has_checksums() || sum() == be32(block, at)
    }

    /// The tags of a descriptor block, and the blocks behind it; `false` if it or one of them is not whole.
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

    /// The numbers of a revoke block; `false` if it is not whole.
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
