//! QEMU's qcow2, versions 2 and 3 (QEMU's docs/interop/qcow2.rst).
//!
//! A first-level table (L1) points at second-level tables (L2), one cluster each, which say for every cluster of the
//! disk where it is, that it is zero, or where its compressed bytes are (raw deflate, or zstd by the header's
//! compression type). Extended L2 entries (32 subclusters with bits "allocated" and "zero") are read.
//!
//! **Not modelled**: a backing file, encryption and an external data file are refused with the reason, and so is an
//! unknown incompatible feature. Snapshots inside the file are skipped. Refcounts are not read, so a file whose dirty
//! bit is set is read like any other.
//!
//! **Hostile file**: L1 is at most 32 MiB (QEMU's own limit) and lies inside the file, as does every L2 table; no L2
//! table is used twice; a compressed cluster unpacks into one cluster and no further.

use std::io::Read;

use ruzstd::decoding::{FrameDecoder, StreamingDecoder};

use super::{Image, Reader, Storage, damaged, read_exact, read_table, unreadable};
use crate::fetch::error::{FetchError, Result};

const MAX_L1_BYTES: u64 = 32 << 20;
/// Bits 9 to 55 of an L1 or L2 entry.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
const COMPRESSED: u64 = 1 << 62;
const ZERO: u64 = 1;

const DIRTY: u64 = 1 << 0;
const CORRUPT: u64 = 1 << 1;
const EXTERNAL_DATA: u64 = 1 << 2;
const COMPRESSION: u64 = 1 << 3;
const EXTENDED_L2: u64 = 1 << 4;

/// A qcow2 file.
pub struct Qcow2<'a> {
    storage: Box<dyn Storage + 'a>,
    size: u64,
    cluster_bits: u32,
    extended: bool,
    zstd: bool,
    /// Offsets of the L2 tables; 0 for none.
    l1: Vec<u64>,
}

impl<'a> Qcow2<'a> {
    /// Reads the header and L1.
    pub fn open(storage: Box<dyn Storage + 'a>) -> Result<Self> {
        let mut header = [0u8; 112];
        let n = storage.read_at(&mut header, 0).map_err(unreadable)?;
        if n < 72 {
            return Err(damaged("its header is cut short"));
        }
        let long = |at: usize| u32::from_be_bytes(header[at..at + 4].try_into().expect("four bytes"));
        let quad = |at: usize| u64::from_be_bytes(header[at..at + 8].try_into().expect("eight bytes"));
        let (version, cluster_bits, size) = (long(4), long(20), quad(24));
        refuse_what_needs_more(storage.as_ref(), quad(8), long(16), long(32))?;
        let (features, compression) = match version {
            2 => (0, 0),
            _ if n < 104 => return Err(damaged("its header is cut short")),
            _ => (quad(72), if long(100) > 104 && n > 104 { header[104] } else { 0 }),
        };
        let unknown = features & !(DIRTY | CORRUPT | COMPRESSION | EXTENDED_L2);
        if unknown & EXTERNAL_DATA != 0 {
            return Err(FetchError::user("the qcow2 image keeps its data in another file")
                .hint("put both together first: `qemu-img convert -O qcow2 IMAGE WHOLE`"));
        }
        if unknown != 0 {
            return Err(FetchError::user(format!("the qcow2 image needs features that are not known (bits {unknown:#x})")));
        }
        if features & CORRUPT != 0 {
            return Err(damaged("it is marked corrupt").hint("`qemu-img check -r all` may repair it"));
        }
        let zstd = match (features & COMPRESSION != 0, compression) {
            (false, _) | (true, 0) => false,
            (true, 1) => true,
            (true, kind) => return Err(FetchError::user(format!("the qcow2 image is compressed in an unknown way ({kind})"))),
        };
        let extended = features & EXTENDED_L2 != 0;
        if !(9..=21).contains(&cluster_bits) || (extended && cluster_bits < 14) {
            return Err(damaged(format!("clusters of 2^{cluster_bits} bytes")));
        }
        let l1 = read_l1(storage.as_ref(), quad(40), u64::from(long(36)), size, cluster_bits, extended)?;
        Ok(Self { storage, size, cluster_bits, extended, zstd, l1 })
    }

    fn entry_bytes(&self) -> u64 {
        if self.extended { 16 } else { 8 }
    }
    /// Returns the number of entries in one L2 table.
    fn l2_entries(&self) -> u64 {
        (1 << self.cluster_bits) / self.entry_bytes()
    }
}

/// Refuses an image that cannot be read from this file alone.
fn refuse_what_needs_more(storage: &dyn Storage, backing: u64, backing_len: u32, crypt: u32) -> Result<()> {
    if backing != 0 {
        let mut name = vec![0; backing_len.min(1023) as usize];
        let n = storage.read_at(&mut name, backing).map_err(unreadable)?;
        let name: String = String::from_utf8_lossy(&name[..n]).chars().filter(|c| !c.is_control()).collect();
        return Err(FetchError::user(format!("the qcow2 image holds only what differs from its backing file `{name}`"))
            .hint("make it whole where the backing file is: `qemu-img convert -O qcow2 IMAGE WHOLE`"));
    }
    let kind = match crypt {
        0 => return Ok(()),
        1 => "AES",
        2 => "LUKS",
        _ => "an unknown method",
    };
    Err(FetchError::user(format!("the qcow2 image is encrypted ({kind})"))
        .hint("decrypt it first with `qemu-img convert` and its secret"))
}

fn read_l1(storage: &dyn Storage, offset: u64, count: u64, size: u64, cluster_bits: u32, extended: bool) -> Result<Vec<u64>> {
    let cluster = 1u64 << cluster_bits;
    let covered = (cluster / if extended { 16 } else { 8 }) << cluster_bits;
    let needed = size.div_ceil(covered);
    if count < needed || needed * 8 > MAX_L1_BYTES {
        return Err(damaged(format!("an L1 table of {count} entries for a disk of {size} bytes")));
    }
    let table = read_table(storage, offset, needed, 8, "the L1 table")?;
    let l1: Vec<u64> =
        table.chunks_exact(8).map(|entry| u64::from_be_bytes(entry.try_into().expect("eight bytes")) & OFFSET).collect();
    let mut used: Vec<u64> = l1.iter().copied().filter(|entry| *entry != 0).collect();
    used.sort_unstable();
    // A table that occurs twice would let a small file stand for a huge disk.
    if used.windows(2).any(|pair| pair[0] == pair[1]) {
        return Err(damaged("an L2 table is used twice"));
    }
    if used.iter().any(|offset| offset % cluster != 0 || offset.checked_add(cluster).is_none_or(|end| end > storage.len())) {
        return Err(damaged("an L2 table is misplaced"));
    }
    Ok(l1)
}

impl Image for Qcow2<'_> {
    fn size(&self) -> u64 {
        self.size
    }
    fn unit(&self) -> u64 {
        1 << self.cluster_bits
    }
    fn next_data(&self, unit: u64) -> Option<u64> {
        let entries = self.l2_entries();
        let first = usize::try_from(unit / entries).ok()?;
        let found = self.l1.get(first..)?.iter().position(|offset| *offset != 0)?;
        Some(if found == 0 { unit } else { (first + found) as u64 * entries })
    }
    fn reader(&self) -> Box<dyn Reader + '_> {
        Box::new(ClusterReader {
            image: self,
            l2: Vec::new(),
            l2_index: None,
            packed: Vec::new(),
            inflate: flate2::Decompress::new(false),
            zstd: self.zstd.then(zstd_decoder),
        })
    }
}

struct ClusterReader<'a> {
    image: &'a Qcow2<'a>,
    l2: Vec<u8>,
    l2_index: Option<u64>,
    packed: Vec<u8>,
    inflate: flate2::Decompress,
    zstd: Option<FrameDecoder>,
}

impl Reader for ClusterReader<'_> {
    fn read(&mut self, unit: u64, out: &mut [u8]) -> Result<bool> {
        let entries = self.image.l2_entries();
        let (index, at) = (unit / entries, (unit % entries * self.image.entry_bytes()) as usize);
        let offset = usize::try_from(index).ok().and_then(|index| self.image.l1.get(index)).copied().unwrap_or(0);
        if offset == 0 {
            return Ok(false);
        }
        // Units come in order, so one table in memory is enough.
        if self.l2_index != Some(index) {
            // Until the read has succeeded, the buffer holds no table.
            self.l2_index = None;
            self.l2.resize(self.image.unit() as usize, 0);
            read_exact(self.image.storage.as_ref(), &mut self.l2, offset, "an L2 table")?;
            self.l2_index = Some(index);
        }
        let quad = |at: usize| u64::from_be_bytes(self.l2[at..at + 8].try_into().expect("eight bytes"));
        let entry = quad(at);
        if entry & COMPRESSED != 0 {
            return self.unpack(entry, out).map(|()| true);
        }
        if self.image.extended {
            return self.subclusters(entry & OFFSET, quad(at + 8), out);
        }
        if entry & ZERO != 0 || entry & OFFSET == 0 {
            return Ok(false);
        }
        self.plain(entry & OFFSET, out).map(|()| true)
    }
}

impl ClusterReader<'_> {
    /// Reads a plain cluster. The last cluster of a file may be incomplete: zeros follow.
    fn plain(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        if offset >= self.image.storage.len() {
            return Err(damaged("a cluster lies past the end of the file"));
        }
        let n = self.image.storage.read_at(out, offset).map_err(unreadable)?;
        out[n..].fill(0);
        Ok(())
    }

    /// Reads a cluster with "Extended L2 Entries": bit x of the low half says that subcluster x is allocated, of the
    /// high half that it is zero.
    fn subclusters(&self, offset: u64, bits: u64, out: &mut [u8]) -> Result<bool> {
        let (allocated, zero) = (bits as u32, (bits >> 32) as u32);
        if allocated & zero != 0 || (allocated != 0 && offset == 0) {
            return Err(damaged("an extended L2 entry contradicts itself"));
        }
        if allocated == 0 {
            return Ok(false);
        }
        self.plain(offset, out)?;
        let len = out.len() / 32;
        for (_, part) in out.chunks_exact_mut(len).enumerate().filter(|(at, _)| allocated & 1 << at == 0) {
            part.fill(0);
        }
        Ok(true)
    }

    /// Unpacks a cluster. "Compressed Clusters Descriptor": x = 62 - (cluster_bits - 8); bits 0 to x - 1 are the
    /// offset, bits x to 61 the number of further 512-byte sectors.
    fn unpack(&mut self, entry: u64, out: &mut [u8]) -> Result<()> {
        let x = 62 - (self.image.cluster_bits - 8);
        let offset = entry & ((1 << x) - 1);
        let sectors = (entry & (COMPRESSED - 1)) >> x;
        let len = (sectors + 1) * 512 - (offset & 511);
        self.packed.resize(len as usize, 0);
        let n = self.image.storage.read_at(&mut self.packed, offset).map_err(unreadable)?;
        let packed = &self.packed[..n];
        let whole = match &mut self.zstd {
            Some(decoder) => unpack_zstd(decoder, packed, out),
            None => {
                self.inflate.reset(false);
                let end = self.inflate.decompress(packed, out, flate2::FlushDecompress::Finish);
                // Bytes after the stream in its last sector belong to another cluster.
                end.is_ok() && self.inflate.total_out() == out.len() as u64
            }
        };
        if whole { Ok(()) } else { Err(damaged(format!("a compressed cluster at {offset} does not unpack"))) }
    }
}

/// Unpacks a zstd frame. Bytes after the frame in its last sector belong to another cluster, and are not read.
fn unpack_zstd(decoder: &mut FrameDecoder, packed: &[u8], out: &mut [u8]) -> bool {
    StreamingDecoder::new_with_decoder(packed, decoder).is_ok_and(|mut stream| stream.read_exact(out).is_ok())
}

/// Returns a decoder that refuses to take more memory than clusters need.
fn zstd_decoder() -> FrameDecoder {
    let mut decoder = FrameDecoder::new();
    decoder.set_max_window_size(8 << 20);
    decoder
}
