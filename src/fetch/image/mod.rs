//! Disk images of other programs, read without their tools and written as sparse raw files.
//!
//! A format gives an [`Image`]: the size of the virtual disk, the unit in which it stores it, where the next unit that
//! may hold data is, and readers that fetch one unit each. [`convert`] runs one reader a thread; each writes where its
//! units belong, and leaves out blocks of zeros, so that the raw file has holes there.
//!
//! **Hostile file**: tables must lie inside the file, and no second-level table may be used twice, so that the work is
//! bounded by the file's length; a unit is at most [`MAX_UNIT`] and a disk at most [`MAX_DISK`]; what is written is
//! held against the free space before each write.

mod qcow2;
mod vhd;
mod vmdk;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::error::{FetchError, Result};
use super::progress::Job;
use super::space::Room;

/// The most that one unit may be: 32 MiB.
pub const MAX_UNIT: u64 = 32 << 20;
/// The largest virtual disk: 64 TiB.
pub const MAX_DISK: u64 = 64 << 40;
/// What a thread reads before it writes: at least one unit.
const STRETCH: u64 = 1 << 20;
/// Zeros are left out in blocks of this size.
pub const HOLE: usize = 4096;

/// How a disk is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// The disk's bytes as they are.
    Raw,
    /// QEMU's, version 2 or 3.
    Qcow2,
    /// VMware's.
    Vmdk,
    /// Virtual PC's.
    Vhd,
}

impl Format {
    /// As the catalogue writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
            Self::Vmdk => "vmdk",
            Self::Vhd => "vhd",
        }
    }
}

/// Bytes that can be read at any place; a read past the end is short.
pub trait Storage: Sync {
    /// How many there are.
    fn len(&self) -> u64;
    /// Reads into `buffer` from `offset`; returns how many bytes there were.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A file and its length.
#[derive(Debug)]
pub struct FileStorage {
    file: File,
    len: u64,
}

impl FileStorage {
    /// Opens a file for reading.
    pub fn open(path: &Path) -> Result<Self> {
        let opened = File::open(path).and_then(|file| Ok((file.metadata()?, file)));
        let (metadata, file) = opened.map_err(|error| FetchError::io("open", path, error))?;
        if !metadata.is_file() {
            return Err(FetchError::user(format!("`{}` is no file", path.display())));
        }
        Ok(Self { file, len: metadata.len() })
    }
}

impl Storage for FileStorage {
    fn len(&self) -> u64 {
        self.len
    }
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut done = 0;
        while done < buffer.len() {
            match self.file.read_at(&mut buffer[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }
}

impl Storage for &[u8] {
    fn len(&self) -> u64 {
        <[u8]>::len(self) as u64
    }
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(<[u8]>::len(self));
        let n = buffer.len().min(<[u8]>::len(self) - start);
        buffer[..n].copy_from_slice(&self[start..start + n]);
        Ok(n)
    }
}

/// A virtual disk.
pub trait Image: Sync {
    /// Its size in bytes.
    fn size(&self) -> u64;
    /// Bytes in a unit; a power of two of at most [`MAX_UNIT`].
    fn unit(&self) -> u64;
    /// The first unit from `unit` on that may hold data; `None` when there is none before the end.
    fn next_data(&self, unit: u64) -> Option<u64>;
    /// A reader for one thread.
    fn reader(&self) -> Box<dyn Reader + '_>;
}

/// Reads units of an [`Image`].
pub trait Reader {
    /// Fills `out`, which is one unit long, with a unit's bytes; says false, and leaves `out` as it is, when they are
    /// all zero.
    fn read(&mut self, unit: u64, out: &mut [u8]) -> Result<bool>;
}

/// Where [`convert`] writes.
pub trait Sink: Sync {
    /// Writes all of `bytes` at `offset`.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
}

impl Sink for File {
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.write_all_at(bytes, offset)
    }
}

/// What a file is, by its contents. `None` for raw, of which nothing can be told.
///
/// VHDX, QED, VDI, and qcow version 1 are refused by name.
pub fn probe(storage: &dyn Storage) -> Result<Format> {
    let mut head = [0; 512];
    let n = storage.read_at(&mut head, 0).map_err(unreadable)?;
    let refuse =
        |what: &str| Err(FetchError::user(format!("{what} images are not read")).hint("convert it to qcow2 or raw first"));
    match &head[..n] {
        [b'Q', b'F', b'I', 0xfb, 0, 0, 0, 2 | 3, ..] => return Ok(Format::Qcow2),
        [b'Q', b'F', b'I', 0xfb, ..] => return refuse("qcow version 1"),
        [b'K', b'D', b'M', b'V', ..] => return Ok(Format::Vmdk),
        [b'C', b'O', b'W', b'D', ..] => return refuse("VMDK version 3 (COWD)"),
        [b'Q', b'E', b'D', 0, ..] => return refuse("QED"),
        head if head.starts_with(b"vhdxfile") => return refuse("VHDX"),
        head if head.len() > 68 && head[64..68] == [0x7f, 0x10, 0xda, 0xbe] => return refuse("VDI"),
        head if head.starts_with(b"conectix") => return Ok(Format::Vhd),
        head if vmdk::is_descriptor(head) => return Ok(Format::Vmdk),
        _ => {}
    }
    if vhd::has_footer(storage)? { Ok(Format::Vhd) } else { Ok(Format::Raw) }
}

/// Opens an image of `format`, which is not raw. `beside` is the directory in which the extents of a VMDK lie.
pub fn open<'a>(format: Format, storage: Box<dyn Storage + 'a>, beside: Option<&Path>) -> Result<Box<dyn Image + 'a>> {
    let image: Box<dyn Image + 'a> = match format {
        Format::Qcow2 => Box::new(qcow2::Qcow2::open(storage)?),
        Format::Vmdk => vmdk::open(storage, beside)?,
        Format::Vhd => Box::new(vhd::Vhd::open(storage)?),
        Format::Raw => return Err(FetchError::user("a raw image needs no reading")),
    };
    if image.size() > MAX_DISK {
        return Err(FetchError::user(format!("the image is of {} bytes, more than 64 TiB", image.size())));
    }
    Ok(image)
}

/// Writes the disk into `sink`, which reads as zeros so far. Returns the bytes that were written.
pub fn convert(image: &dyn Image, sink: &dyn Sink, threads: usize, room: &Room, job: &Job<'_>) -> Result<u64> {
    let unit = image.unit();
    let per_stretch = (STRETCH / unit).max(1);
    let units = image.size().div_ceil(unit);
    let cursor = Mutex::new(0u64);
    let (written, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let take = || {
        let mut cursor = cursor.lock().expect("no thread panics while it holds the cursor");
        let start = image.next_data(*cursor).filter(|start| *start < units)?;
        *cursor = start + per_stretch;
        Some(start)
    };
    let work = || -> Result<()> {
        let mut reader = image.reader();
        let mut buffer = vec![0u8; usize::try_from(unit * per_stretch).expect("a stretch fits in memory")];
        while !stop.load(Ordering::Relaxed) {
            let Some(start) = take() else { break };
            job.check()?;
            let count = per_stretch.min(units - start);
            let mut any = false;
            for (at, out) in buffer.chunks_exact_mut(unit as usize).take(count as usize).enumerate() {
                if reader.read(start + at as u64, out)? { any = true } else { out.fill(0) }
            }
            if any {
                let offset = start * unit;
                let len = (count * unit).min(image.size() - offset) as usize;
                let n = write_data(sink, &buffer[..len], offset, room)?;
                written.fetch_add(n, Ordering::Relaxed);
            }
            job.at(start * unit);
        }
        Ok(())
    };
    let run = || {
        let done = work();
        if done.is_err() {
            stop.store(true, Ordering::Relaxed);
        }
        done
    };
    if threads <= 1 {
        run()?;
    } else {
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..threads).map(|_| scope.spawn(run)).collect();
            let outcomes: Vec<_> = workers.into_iter().map(|worker| worker.join().expect("a reader does not panic")).collect();
            outcomes.into_iter().collect::<Result<()>>()
        })?;
    }
    Ok(written.into_inner())
}

/// Writes the runs of `bytes` that are not zero. Returns how many bytes they were.
fn write_data(sink: &dyn Sink, bytes: &[u8], offset: u64, room: &Room) -> Result<u64> {
    let mut written = 0;
    for (start, end) in runs(bytes) {
        room.take((end - start) as u64)?;
        sink.write_at(&bytes[start..end], offset + start as u64).map_err(|error| room.failed(error))?;
        written += (end - start) as u64;
    }
    Ok(written)
}

/// The runs of blocks that hold something, as (start, end).
pub fn runs(bytes: &[u8]) -> impl Iterator<Item = (usize, usize)> + '_ {
    let mut at = 0;
    std::iter::from_fn(move || {
        let block_end = |at: usize| (at + HOLE).min(bytes.len());
        while at < bytes.len() && is_zero(&bytes[at..block_end(at)]) {
            at = block_end(at);
        }
        let start = at;
        while at < bytes.len() && !is_zero(&bytes[at..block_end(at)]) {
            at = block_end(at);
        }
        (start < at).then_some((start, at))
    })
}

/// Whether a block of at most [`HOLE`] bytes is all zero.
fn is_zero(block: &[u8]) -> bool {
    static ZEROS: [u8; HOLE] = [0; HOLE];
    block == &ZEROS[..block.len()]
}

/// How many threads a conversion gets.
pub fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, |count| count.get().min(8))
}

fn unreadable(error: io::Error) -> FetchError {
    FetchError::host("cannot read the image").because(error)
}

/// The file is not what its header promises.
fn damaged(what: impl Into<String>) -> FetchError {
    FetchError::user(format!("the image is damaged: {}", what.into()))
}

/// Reads all of `buffer`, which must lie inside the file.
fn read_exact(storage: &dyn Storage, buffer: &mut [u8], offset: u64, what: &str) -> Result<()> {
    let n = storage.read_at(buffer, offset).map_err(unreadable)?;
    if n < buffer.len() { Err(damaged(format!("{what} reaches past the end of the file"))) } else { Ok(()) }
}

/// Reads a table of `count` entries of `width` bytes that must lie inside the file.
fn read_table(storage: &dyn Storage, offset: u64, count: u64, width: u64, what: &str) -> Result<Vec<u8>> {
    let bytes = count.checked_mul(width).filter(|bytes| offset.checked_add(*bytes).is_some_and(|end| end <= storage.len()));
    let bytes = bytes.ok_or_else(|| damaged(format!("{what} reaches past the end of the file")))?;
    let mut table = vec![0; usize::try_from(bytes).map_err(|_| damaged(format!("{what} is too large")))?];
    read_exact(storage, &mut table, offset, what)?;
    Ok(table)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_leave_out_whole_blocks_of_zeros_only() {
        let mut bytes = vec![0; 5 * HOLE + 100];
        bytes[HOLE] = 1;
        bytes[3 * HOLE - 1] = 1;
        bytes[5 * HOLE + 99] = 1;
        assert_eq!(runs(&bytes).collect::<Vec<_>>(), [(HOLE, 3 * HOLE), (5 * HOLE, 5 * HOLE + 100)]);
        assert_eq!(runs(&[]).count(), 0);
    }

    #[test]
    fn formats_that_are_not_read_are_refused_by_name() {
        for (head, expected) in [
            (&b"vhdxfile........"[..], "VHDX images are not read"),
            (b"QFI\xfb\0\0\0\x01", "qcow version 1 images are not read"),
            (b"QED\0", "QED images are not read"),
            (b"COWD", "VMDK version 3 (COWD) images are not read"),
        ] {
            assert_eq!(probe(&head).unwrap_err().to_string(), expected);
        }
        assert_eq!(probe(&&b"\xebanything"[..]).unwrap(), Format::Raw);
    }
}
