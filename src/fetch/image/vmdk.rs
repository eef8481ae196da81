//! VMware's VMDK (VMware, "Virtual Disk Format 5.0"): monolithicSparse, streamOptimized, and descriptor files with
//! flat, sparse and zero extents.
//!
//! A sparse extent begins with a header (`KDMV`, little-endian, in sectors of 512 bytes). A grain directory points at
//! grain tables, which point at grains. In a streamOptimized extent each grain is a marker (its sector on the disk, its
//! length) and zlib data (RFC 1950), and there is a second header in the file's last but one kilobyte, because the
//! directory's offset is not known when the first is written.
//!
//! **Not modelled**: a delta disk (one with a parent) is refused, and so are other kinds of extents, by name.
//!
//! **Hostile file**: an extent's file must be beside the descriptor; tables lie inside the file and none is used twice;
//! a grain is at most 32 MiB and unpacks into at most one grain.

use std::path::Path;

use super::{FileStorage, Image, MAX_TABLE, MAX_UNIT, Reader, Storage, damaged, read_exact, read_table, unreadable};
use crate::fetch::error::{FetchError, Result};

const SECTOR: u64 = 512;
const HEADER_BYTES: usize = 512;
/// Header flag: a grain table entry of 1 means a grain of zeros.
const FLAG_ZERO_GRAIN: u32 = 1 << 2;
const FLAG_COMPRESSED: u32 = 1 << 16;
/// The directory's offset is in the footer.
const AT_END: u64 = u64::MAX;
const MAX_DESCRIPTOR: u64 = 64 << 10;
const MAX_EXTENTS: usize = 1024;
/// Unit in which flat extents are read. If there are extents of several kinds, each must be a whole number of units
/// long.
const FLAT_UNIT: u64 = 64 << 10;

/// Returns whether a file begins as a descriptor does.
pub fn is_descriptor(head: &[u8]) -> bool {
    let text = String::from_utf8_lossy(head);
    text.lines().take(4).any(|line| line.trim().eq_ignore_ascii_case("# Disk DescriptorFile"))
}

/// Opens a sparse extent with its descriptor inside, or a descriptor file.
pub fn open<'a>(storage: Box<dyn Storage + 'a>, beside: Option<&Path>) -> Result<Box<dyn Image + 'a>> {
    let mut magic = [0; 4];
    let n = storage.read_at(&mut magic, 0).map_err(unreadable)?;
    if &magic[..n] == b"KDMV" {
        return Ok(Box::new(Sparse::open(storage)?));
    }
    let text = read_text(storage.as_ref(), 0, storage.len())?;
    let descriptor = Descriptor::read(&text)?;
    let beside = beside.ok_or_else(|| {
        FetchError::user("the VMDK is a descriptor of other files, which are missing")
            .hint("import it from the directory that holds all its files")
    })?;
    Extents::open(&descriptor, beside).map(|image| Box::new(image) as Box<dyn Image>)
}

fn read_text(storage: &dyn Storage, offset: u64, len: u64) -> Result<String> {
    if len > MAX_DESCRIPTOR {
        return Err(damaged(format!("a descriptor of {len} bytes")));
    }
    let mut bytes = vec![0; len as usize];
    read_exact(storage, &mut bytes, offset, "the descriptor")?;
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    Ok(String::from_utf8_lossy(&bytes[..end]).into_owned())
}

/// One line of a descriptor: `RW 4192256 FLAT "disk-f001.vmdk" 0`.
struct ExtentLine {
    sectors: u64,
    kind: String,
    file: String,
    first_sector: u64,
}

struct Descriptor {
    extents: Vec<ExtentLine>,
}

impl Descriptor {
    fn read(text: &str) -> Result<Self> {
        let mut extents = Vec::new();
        for line in text.lines().map(str::trim) {
            if let Some((key, value)) = line.split_once('=') {
                Self::setting(key.trim(), value.trim().trim_matches('"'))?;
            } else if ["RW ", "RDONLY ", "NOACCESS "].iter().any(|access| line.starts_with(access)) {
                extents.push(Self::extent(line)?);
            }
        }
        if extents.len() > MAX_EXTENTS {
            return Err(damaged(format!("{} extents", extents.len())));
        }
        Ok(Self { extents })
    }

    fn setting(key: &str, value: &str) -> Result<()> {
        let delta = (key.eq_ignore_ascii_case("parentCID") && !value.eq_ignore_ascii_case("ffffffff"))
            || key.eq_ignore_ascii_case("parentFileNameHint");
        if delta {
            return Err(FetchError::user("the VMDK holds only what differs from its parent")
                .hint("make it whole first, with `vmware-vdiskmanager` or `qemu-img convert`"));
        }
        Ok(())
    }

    fn extent(line: &str) -> Result<ExtentLine> {
        let bad = || damaged(format!("the extent `{line}` cannot be read"));
        let (before, rest) = line.split_once('"').unwrap_or((line, ""));
        let (file, after) = rest.split_once('"').unwrap_or(("", ""));
        let mut words = before.split_whitespace().skip(1);
        let sectors = words.next().and_then(|word| word.parse().ok()).ok_or_else(bad)?;
        let kind = words.next().ok_or_else(bad)?.to_owned();
        let first = after.split_whitespace().next().map_or(Ok(0), str::parse).map_err(|_| bad())?;
        Ok(ExtentLine { sectors, kind, file: file.to_owned(), first_sector: first })
    }
}

/// A sparse extent.
pub struct Sparse<'a> {
    storage: Box<dyn Storage + 'a>,
    size: u64,
    unit: u64,
    tables: Vec<u32>,
    table_entries: u64,
    zero_grain: bool,
    compressed: bool,
}

struct Header {
    flags: u32,
    capacity: u64,
    grain: u64,
    descriptor: u64,
    descriptor_len: u64,
    table_entries: u64,
    directory: u64,
    compression: u16,
}

impl Header {
    fn read(storage: &dyn Storage, offset: u64) -> Result<Self> {
        let mut bytes = [0u8; HEADER_BYTES];
        read_exact(storage, &mut bytes, offset, "the VMDK header")?;
        let long = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        let quad = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
        if &bytes[..4] != b"KDMV" {
            return Err(damaged("the VMDK header is not where it should be"));
        }
        if !(1..=3).contains(&long(4)) {
            return Err(FetchError::user(format!("VMDK version {} is not known", long(4))));
        }
        Ok(Self {
            flags: long(8),
            capacity: quad(12),
            grain: quad(20),
            descriptor: quad(28),
            descriptor_len: quad(36),
            table_entries: u64::from(long(44)),
            directory: quad(56),
            compression: u16::from_le_bytes([bytes[77], bytes[78]]),
        })
    }
}

impl<'a> Sparse<'a> {
    /// Reads the header, the descriptor inside, and the grain directory.
    pub fn open(storage: Box<dyn Storage + 'a>) -> Result<Self> {
        let mut header = Header::read(storage.as_ref(), 0)?;
        if header.descriptor != 0 && header.descriptor_len != 0 {
            let (at, len) = (header.descriptor.checked_mul(SECTOR), header.descriptor_len.checked_mul(SECTOR));
            let (at, len) = at.zip(len).ok_or_else(|| damaged("the descriptor is misplaced"))?;
            Descriptor::read(&read_text(storage.as_ref(), at, len)?)?;
        }
        if header.directory == AT_END {
            // Marker, footer, end-of-stream marker: the last three sectors.
            header = Header::read(storage.as_ref(), storage.len().saturating_sub(2 * SECTOR))?;
        }
        let unit = header.grain.checked_mul(SECTOR).filter(|unit| unit.is_power_of_two() && *unit <= MAX_UNIT);
        let unit = unit.ok_or_else(|| damaged(format!("grains of {} sectors", header.grain)))?;
        let size = header.capacity.checked_mul(SECTOR).ok_or_else(|| damaged("its size does not fit 64 bits"))?;
        if !(1..=4096).contains(&header.table_entries) {
            return Err(damaged(format!("grain tables of {} entries", header.table_entries)));
        }
        let compressed = header.flags & FLAG_COMPRESSED != 0;
        if compressed && header.compression != 1 {
            return Err(FetchError::user(format!("the VMDK is compressed in an unknown way ({})", header.compression)));
        }
        let count = size.div_ceil(unit).div_ceil(header.table_entries);
        let at = header.directory.checked_mul(SECTOR).ok_or_else(|| damaged("the grain directory is misplaced"))?;
        let bytes = read_table(storage.as_ref(), at, count, 4, "the grain directory")?;
        let tables: Vec<u32> =
            bytes.chunks_exact(4).map(|entry| u32::from_le_bytes(entry.try_into().expect("four bytes"))).collect();
        let mut used: Vec<u32> = tables.iter().copied().filter(|sector| *sector != 0).collect();
        used.sort_unstable();
        if used.windows(2).any(|pair| pair[0] == pair[1]) {
            return Err(damaged("a grain table is used twice"));
        }
        let zero_grain = header.flags & FLAG_ZERO_GRAIN != 0;
        Ok(Self { storage, size, unit, tables, table_entries: header.table_entries, zero_grain, compressed })
    }
}

impl Image for Sparse<'_> {
    fn size(&self) -> u64 {
        self.size
    }
    fn unit(&self) -> u64 {
        self.unit
    }
    fn next_data(&self, unit: u64) -> Option<u64> {
        let first = usize::try_from(unit / self.table_entries).ok()?;
        let found = self.tables.get(first..)?.iter().position(|sector| *sector != 0)?;
        Some(if found == 0 { unit } else { (first + found) as u64 * self.table_entries })
    }
    fn reader(&self) -> Box<dyn Reader + '_> {
        Box::new(GrainReader {
            image: self,
            table: vec![0; self.table_entries as usize * 4],
            table_index: None,
            packed: Vec::new(),
            inflate: flate2::Decompress::new(true),
        })
    }
}

struct GrainReader<'a> {
    image: &'a Sparse<'a>,
    table: Vec<u8>,
    table_index: Option<usize>,
    packed: Vec<u8>,
    inflate: flate2::Decompress,
}

impl Reader for GrainReader<'_> {
    fn read(&mut self, unit: u64, out: &mut [u8]) -> Result<bool> {
        let image = self.image;
        let index = usize::try_from(unit / image.table_entries).map_err(|_| damaged("a grain past the end"))?;
        let sector = image.tables.get(index).copied().unwrap_or(0);
        if sector == 0 {
            return Ok(false);
        }
        if self.table_index != Some(index) {
            self.table_index = None;
            read_exact(image.storage.as_ref(), &mut self.table, u64::from(sector) * SECTOR, "a grain table")?;
            self.table_index = Some(index);
        }
        let at = (unit % image.table_entries) as usize * 4;
        let grain = u32::from_le_bytes(self.table[at..at + 4].try_into().expect("four bytes"));
        if grain == 0 || (grain == 1 && image.zero_grain) {
            return Ok(false);
        }
        let offset = u64::from(grain) * SECTOR;
        if image.compressed {
            return self.unpack(offset, out).map(|()| true);
        }
        let n = image.storage.read_at(out, offset).map_err(unreadable)?;
        if n == 0 {
            return Err(damaged("a grain lies past the end of the file"));
        }
        // The last grain may be incomplete where the disk ends.
        out[n..].fill(0);
        Ok(true)
    }
}

impl GrainReader<'_> {
    /// Unpacks a grain. It begins with a marker: the sector on the disk (eight bytes), the length of the data (four).
    fn unpack(&mut self, offset: u64, out: &mut [u8]) -> Result<()> {
        let mut marker = [0; 12];
        read_exact(self.image.storage.as_ref(), &mut marker, offset, "a grain")?;
        let len = u32::from_le_bytes(marker[8..].try_into().expect("four bytes")) as usize;
        // zlib's own bound for incompressible data, and more.
        if len > out.len() + out.len() / 8 + 1024 {
            return Err(damaged(format!("a grain of {len} compressed bytes")));
        }
        self.packed.resize(len, 0);
        read_exact(self.image.storage.as_ref(), &mut self.packed, offset + 12, "a grain")?;
        self.inflate.reset(true);
        let end = self.inflate.decompress(&self.packed, out, flate2::FlushDecompress::Finish);
        let n = usize::try_from(self.inflate.total_out()).unwrap_or(out.len());
        if end.is_err() || n == 0 {
            return Err(damaged(format!("a compressed grain at {offset} does not unpack")));
        }
        out[n..].fill(0);
        Ok(())
    }
}

/// One extent of a descriptor file.
enum Extent {
    Flat { storage: FileStorage, offset: u64 },
    Sparse(Sparse<'static>),
    Zero,
}

/// The extents of a descriptor file, one after the other.
struct Extents {
    /// Each with the byte at which it begins on the disk.
    extents: Vec<(u64, Extent)>,
    size: u64,
    unit: u64,
}

impl Extents {
    fn open(descriptor: &Descriptor, beside: &Path) -> Result<Self> {
        let (mut extents, mut size, mut unit) = (Vec::new(), 0u64, FLAT_UNIT);
        let mut table_bytes = 0;
        for line in &descriptor.extents {
            let part = Self::extent(line, beside)?;
            if let Extent::Sparse(sparse) = &part {
                unit = unit.min(sparse.unit);
                // Many extents may name the same file.
                table_bytes += sparse.tables.len() as u64 * 4;
            }
            if table_bytes > MAX_TABLE {
                return Err(damaged("its grain directories are of more than 64 MiB together"));
            }
            extents.push((size, part));
            let bytes = line.sectors.checked_mul(SECTOR).and_then(|bytes| size.checked_add(bytes));
            size = bytes.ok_or_else(|| damaged("its size does not fit 64 bits"))?;
        }
        if extents.is_empty() {
            return Err(damaged("the descriptor names no extent"));
        }
        let whole = |start: &u64| *start % unit == 0;
        let one_unit = extents.iter().all(|(_, part)| !matches!(part, Extent::Sparse(sparse) if sparse.unit != unit));
        if !extents.iter().all(|(start, _)| whole(start)) || !one_unit {
            return Err(FetchError::user("the VMDK's extents do not fit together").hint("convert it to one file first"));
        }
        Ok(Self { extents, size, unit })
    }

    fn extent(line: &ExtentLine, beside: &Path) -> Result<Extent> {
        let path = || {
            let plain = !line.file.is_empty() && !line.file.contains('/') && line.file != ".." && line.file != ".";
            let refused = || FetchError::user(format!("the VMDK's extent `{}` is not beside it", line.file));
            plain.then(|| beside.join(&line.file)).ok_or_else(refused)
        };
        match line.kind.as_str() {
            "ZERO" => Ok(Extent::Zero),
            "FLAT" | "VMFS" => {
                let storage = FileStorage::open(&path()?)?;
                let offset = line.first_sector.checked_mul(SECTOR).ok_or_else(|| damaged("an extent is misplaced"))?;
                let end = line.sectors.checked_mul(SECTOR).and_then(|len| len.checked_add(offset));
                if end.is_none_or(|end| end > storage.len()) {
                    return Err(damaged(format!("its extent `{}` is too short", line.file)));
                }
                Ok(Extent::Flat { storage, offset })
            }
            "SPARSE" => {
                let sparse = Sparse::open(Box::new(FileStorage::open(&path()?)?))?;
                if sparse.size != line.sectors.saturating_mul(SECTOR) {
                    return Err(damaged(format!("its extent `{}` is not as long as the descriptor says", line.file)));
                }
                Ok(Extent::Sparse(sparse))
            }
            kind => Err(FetchError::user(format!("VMDK extents of the kind `{kind}` are not read"))
                .hint("convert it to qcow2 or raw first")),
        }
    }

    /// Returns the extent that holds a byte, and where it begins and ends.
    fn at(&self, byte: u64) -> (usize, u64, u64) {
        let index = self.extents.partition_point(|(start, _)| *start <= byte).saturating_sub(1);
        let end = self.extents.get(index + 1).map_or(self.size, |(start, _)| *start);
        (index, self.extents[index].0, end)
    }
}

impl Image for Extents {
    fn size(&self) -> u64 {
        self.size
    }
    fn unit(&self) -> u64 {
        self.unit
    }
    fn next_data(&self, unit: u64) -> Option<u64> {
        let mut byte = unit * self.unit;
        while byte < self.size {
            let (index, start, end) = self.at(byte);
            let found = match &self.extents[index].1 {
                Extent::Flat { .. } => Some(byte / self.unit),
                Extent::Sparse(sparse) => sparse
                    .next_data((byte - start) / self.unit)
                    .map(|unit| unit + start / self.unit)
                    .filter(|unit| unit * self.unit < end),
                Extent::Zero => None,
            };
            match found {
                Some(unit) => return Some(unit),
                None => byte = end.max(byte + 1),
            }
        }
        None
    }
    fn reader(&self) -> Box<dyn Reader + '_> {
        let readers =
            self.extents.iter().map(|(_, part)| if let Extent::Sparse(sparse) = part { Some(sparse.reader()) } else { None });
        Box::new(ExtentReader { image: self, readers: readers.collect() })
    }
}

struct ExtentReader<'a> {
    image: &'a Extents,
    readers: Vec<Option<Box<dyn Reader + 'a>>>,
}

impl Reader for ExtentReader<'_> {
    fn read(&mut self, unit: u64, out: &mut [u8]) -> Result<bool> {
        let byte = unit * self.image.unit;
        let (index, start, end) = self.image.at(byte);
        if let Some(reader) = &mut self.readers[index] {
            return reader.read((byte - start) / self.image.unit, out);
        }
        let Extent::Flat { storage, offset } = &self.image.extents[index].1 else { return Ok(false) };
        let wanted = out.len().min((end - byte) as usize);
        read_exact(storage, &mut out[..wanted], offset + (byte - start), "an extent")?;
        out[wanted..].fill(0);
        Ok(true)
    }
}
