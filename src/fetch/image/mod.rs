//! Disk images of other programs: reading them without their tools, and writing them as sparse raw files.
//!
//! A format gives an [`Image`]: the size of the virtual disk, the unit in which it stores it, where the next unit that
//! may hold data is, and readers that fetch one unit each. [`convert`] runs one reader per thread. Each writes its
//! units at their offsets and skips blocks of zeros, so that the raw file has holes there.
//!
//! **Hostile file**: tables must lie inside the file and be at most [`MAX_TABLE`] long, and no second-level table may
//! be used twice, so that the work is bounded by the file's length; a unit is at most [`MAX_UNIT`] and a disk at most
//! [`MAX_DISK`]; the free space is checked before each write.

mod qcow2;
pub(super) mod vhd;
pub(super) mod vmdk;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::contents::Contents;
use super::error::{self, FetchError, Result};
use super::progress::Job;
use super::space::Room;
use crate::inputs;

/// Maximum size of one unit: 32 MiB.
pub const MAX_UNIT: u64 = 32 << 20;
/// The largest virtual disk: 64 TiB.
pub const MAX_DISK: u64 = 64 << 40;
/// Maximum size of a table for which a header can make a reader use memory: 64 MiB. A disk of [`MAX_DISK`] in the usual
/// units needs less.
pub const MAX_TABLE: u64 = 64 << 20;
/// Number of bytes that a thread reads before it writes: at least one unit.
const STRETCH: u64 = 1 << 20;
/// Size of the blocks in which zeros are left out.
pub const HOLE: usize = 4096;

/// Format of a disk image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// The disk's bytes as they are.
    Raw,
    /// QEMU's format, version 2 or 3.
    Qcow2,
    /// VMware's format.
    Vmdk,
    /// Virtual PC's format.
    Vhd,
}

impl Format {
    /// Returns the name as in the catalogue.
    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
            Self::Vmdk => "vmdk",
            Self::Vhd => "vhd",
        }
    }
    /// Returns the usual spelling.
    pub fn title(self) -> &'static str {
        match self {
            Self::Vmdk => "VMDK",
            Self::Vhd => "VHD",
            other => other.name(),
        }
    }
}

/// Bytes that can be read at any offset. A read past the end is short.
pub trait Storage: Sync {
    /// Returns the number of bytes.
    fn len(&self) -> u64;
    /// Reads into `buffer` from `offset`. Returns the number of bytes read.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Returns whether there are no bytes.
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
        let opened = inputs::open(path).and_then(|file| Ok((file.metadata()?.len(), file)));
        let (len, file) = opened.map_err(|error| error::input("open", path, error))?;
        Ok(Self { file, len })
    }
    /// Opens a file or a disk of the host for reading.
    pub fn open_disk(path: &Path) -> Result<Self> {
        use std::io::{Seek, SeekFrom};
        let opened = inputs::open_disk(path).and_then(|mut file| Ok((file.seek(SeekFrom::End(0))?, file)));
        let (len, file) = opened.map_err(|error| error::input("open", path, error))?;
        Ok(Self { file, len })
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
    /// Returns its size in bytes.
    fn size(&self) -> u64;
    /// Returns the number of bytes in a unit: a power of two of at most [`MAX_UNIT`].
    fn unit(&self) -> u64;
    /// Returns the first unit from `unit` on that may hold data. Returns `None` if there is none before the end.
    fn next_data(&self, unit: u64) -> Option<u64>;
    /// Returns a reader for one thread.
    fn reader(&self) -> Box<dyn Reader + '_>;
}

/// A reader of the units of an [`Image`].
pub trait Reader {
    /// Fills `out`, which is one unit long, with a unit's bytes. Returns false, and leaves `out` unchanged, if they are
    /// all zero.
    fn read(&mut self, unit: u64, out: &mut [u8]) -> Result<bool>;
}

/// The destination of [`convert`].
pub trait Sink: Sync {
    /// Writes all of `bytes` at `offset`.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
}

impl Sink for File {
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.write_all_at(bytes, offset)
    }
}

/// Returns the format of a disk by the file's contents. If it is no disk, the error says what the file is.
pub fn probe(storage: &dyn Storage) -> Result<Format> {
    Contents::of(storage)?.disk()
}

/// Opens an image of `format`, which is not raw. `beside` is the directory of the extents of a VMDK.
pub fn open<'a>(format: Format, storage: Box<dyn Storage + 'a>, beside: Option<&Path>) -> Result<Box<dyn Image + 'a>> {
    let image: Box<dyn Image + 'a> = match format {
        Format::Qcow2 => Box::new(qcow2::Qcow2::open(storage)?),
        Format::Vmdk => vmdk::open(storage, beside)?,
        Format::Vhd => Box::new(vhd::Vhd::open(storage)?),
        Format::Raw => return Err(FetchError::user("a raw image needs no reading")),
    };
    if image.size() > MAX_DISK {
        return Err(FetchError::user(format!("the image has {} bytes, more than 64 TiB", image.size())));
    }
    Ok(image)
}

/// Writes the disk into `sink`, which reads as zeros so far. Returns the number of bytes written.
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

/// Writes the runs of `bytes` that are not zero. Returns their number of bytes.
fn write_data(sink: &dyn Sink, bytes: &[u8], offset: u64, room: &Room) -> Result<u64> {
    let mut written = 0;
    for (start, end) in runs(bytes) {
        room.take((end - start) as u64)?;
        sink.write_at(&bytes[start..end], offset + start as u64).map_err(|error| room.failed(error))?;
        written += (end - start) as u64;
    }
    Ok(written)
}

/// Returns the runs of blocks that are not zero, as (start, end).
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

/// Returns whether a block of at most [`HOLE`] bytes is all zero.
fn is_zero(block: &[u8]) -> bool {
    static ZEROS: [u8; HOLE] = [0; HOLE];
    block == &ZEROS[..block.len()]
}

/// Returns the number of threads for a conversion.
pub fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, |count| count.get().min(8))
}

pub(super) fn unreadable(error: io::Error) -> FetchError {
    FetchError::host("cannot read the image").because(error)
}

/// Creates the error for a file that is not what its header promises.
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
    // The file's length is no bound: a sparse file, or one from an archive, can be as long as its maker likes.
    if bytes > MAX_TABLE {
        return Err(damaged(format!("{what} is of {bytes} bytes, more than 64 MiB")));
    }
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

    /// A file of 2^60 bytes: its beginning and its end, and zeros between them.
    struct Endless {
        head: Vec<u8>,
        tail: Vec<u8>,
    }

    impl Storage for Endless {
        fn len(&self) -> u64 {
            1 << 60
        }
        fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
            let tail_at = self.len() - self.tail.len() as u64;
            for (at, byte) in buffer.iter_mut().enumerate() {
                let at = offset + at as u64;
                let of_tail = at.checked_sub(tail_at).and_then(|at| self.tail.get(at as usize));
                *byte = of_tail.or_else(|| self.head.get(usize::try_from(at).ok()?)).copied().unwrap_or(0);
            }
            Ok(buffer.len())
        }
    }

    fn put(file: &mut [u8], at: usize, bytes: &[u8]) {
        file[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// Writes the ones' complement of the sum of all bytes, which the header of a VHD has at `at`.
    fn seal(header: &mut [u8], at: usize) {
        put(header, at, &[0; 4]);
        let sum = header.iter().fold(0u32, |sum, byte| sum.wrapping_add(u32::from(*byte)));
        put(header, at, &(!sum).to_be_bytes());
    }

    #[test]
    fn a_header_makes_no_reader_hold_more_than_a_bound() {
        let mut qcow2 = vec![0; 512];
        put(&mut qcow2, 0, b"QFI\xfb\0\0\0\x02");
        put(&mut qcow2, 20, &9u32.to_be_bytes());
        put(&mut qcow2, 24, &(1u64 << 45).to_be_bytes());
        put(&mut qcow2, 36, &u32::MAX.to_be_bytes());
        put(&mut qcow2, 40, &512u64.to_be_bytes());
        let mut vmdk = vec![0; 512];
        put(&mut vmdk, 0, b"KDMV\x01\0\0\0");
        put(&mut vmdk, 12, &(1u64 << 37).to_le_bytes());
        put(&mut vmdk, 20, &1u64.to_le_bytes());
        put(&mut vmdk, 44, &1u32.to_le_bytes());
        put(&mut vmdk, 56, &1u64.to_le_bytes());
        let mut footer = vec![0; 512];
        put(&mut footer, 0, b"conectix");
        put(&mut footer, 16, &512u64.to_be_bytes());
        put(&mut footer, 48, &(1u64 << 40).to_be_bytes());
        put(&mut footer, 60, &3u32.to_be_bytes());
        seal(&mut footer, 64);
        let mut header = vec![0; 1024];
        put(&mut header, 0, b"cxsparse");
        put(&mut header, 16, &4096u64.to_be_bytes());
        put(&mut header, 28, &u32::MAX.to_be_bytes());
        put(&mut header, 32, &512u32.to_be_bytes());
        seal(&mut header, 36);
        let vhd = [footer.clone(), header].concat();
        for (format, head, tail, words) in [
            (Format::Qcow2, qcow2, Vec::new(), "an L1 table of 4294967295 entries"),
            (Format::Vmdk, vmdk, Vec::new(), "the grain directory is of 549755813888 bytes, more than 64 MiB"),
            (Format::Vhd, vhd, footer, "the block allocation table is of 8589934592 bytes, more than 64 MiB"),
        ] {
            let error = open(format, Box::new(Endless { head, tail }), None).err().expect("is refused");
            assert!(error.to_string().contains(words), "{format:?}: {error}");
        }
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
