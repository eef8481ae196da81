//! A medium: a window of a disk, such as a partition. Small reads come from a bounded cache that all windows of a disk
//! share.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use crate::devices::disk::DiskReader;

/// Size of a cached piece in bytes.
const PIECE: u64 = 16 * 1024;
/// Maximum number of cached pieces: 8 MiB.
const PIECES: usize = 512;
/// Maximum number of reads of one operation, besides those for the bytes that it returns.
const READS: u64 = 400_000;

#[derive(Default)]
struct Cache {
    pieces: HashMap<u64, Arc<[u8]>>,
    order: VecDeque<u64>,
}

struct Shared {
    disk: Arc<dyn DiskReader>,
    cache: Mutex<Cache>,
    left: AtomicU64,
}

/// A window of a disk.
#[derive(Clone)]
pub struct Medium {
    shared: Arc<Shared>,
    start: u64,
    len: u64,
}

/// A file of the host.
struct HostFile(std::fs::File);

impl DiskReader for HostFile {
    fn size_bytes(&self) -> u64 {
        self.0.metadata().map_or(0, |metadata| metadata.len())
    }
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        std::os::unix::fs::FileExt::read_exact_at(&self.0, buffer, offset)
    }
}

impl Medium {
    /// Creates the medium in a file of the host.
    pub fn of_file(file: std::fs::File) -> Medium {
        Medium::new(Arc::new(HostFile(file)))
    }

    /// Creates the medium of a whole disk.
    pub fn new(disk: Arc<dyn DiskReader>) -> Medium {
        let len = disk.size_bytes();
        let shared = Shared { disk, cache: Mutex::default(), left: AtomicU64::new(READS) };
        Medium { shared: Arc::new(shared), start: 0, len }
    }

    /// Returns the window of `len` bytes from `start` of this one, cut at its end.
    pub fn window(&self, start: u64, len: u64) -> Medium {
        let start_here = start.min(self.len);
        Medium { shared: Arc::clone(&self.shared), start: self.start + start_here, len: len.min(self.len - start_here) }
    }

    /// Returns the same window of another disk, with an empty cache.
    pub(super) fn on(&self, disk: Arc<dyn DiskReader>) -> Medium {
        Medium::new(disk).window(self.start, self.len)
    }

    /// Returns the disk.
    pub(super) fn disk(&self) -> &Arc<dyn DiskReader> {
        &self.shared.disk
    }

    /// Returns the range on the disk.
    pub(super) fn range(&self) -> std::ops::Range<u64> {
        self.start..self.start + self.len
    }

    /// Drops `len` bytes at `start` of the disk from the cache, so that they are read again.
    pub(super) fn forget(&self, start: u64, len: u64) {
        let mut cache = self.shared.cache.lock().expect("no panic happens under this lock");
        let gone = start / PIECE..=start.saturating_add(len) / PIECE;
        cache.pieces.retain(|number, _| !gone.contains(number));
        cache.order.retain(|number| !gone.contains(number));
    }

    /// Returns its size in bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Returns whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Begins an operation that will return at most `bytes` bytes: the count of reads starts again.
    pub fn allow(&self, bytes: u64) {
        self.shared.left.store(READS.saturating_add(bytes.min(1 << 34) / 512), Ordering::Relaxed);
    }

    /// Fills `buffer` from `offset`.
    pub fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let end = offset.checked_add(buffer.len() as u64);
        if end.is_none_or(|end| end > self.len) {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "beyond its end"));
        }
        // A file system whose structures form a circle would be read forever.
        let spend = |left: u64| left.checked_sub(1);
        if self.shared.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, spend).is_err() {
            return Err(io::Error::other("gave up after very many reads; is it damaged?"));
        }
        let at = self.start + offset;
        // Large reads are of a file's contents, which are read once: they would only displace the file system's
        // tables.
        if buffer.len() as u64 > PIECE {
            return self.shared.disk.read_at(at, buffer);
        }
        let mut done = 0;
        while done < buffer.len() {
            let here = at + done as u64;
            let piece = self.shared.piece(here / PIECE)?;
            let skip = (here % PIECE) as usize;
            let part = (buffer.len() - done).min(piece.len().saturating_sub(skip));
            if part == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            buffer[done..done + part].copy_from_slice(&piece[skip..skip + part]);
            done += part;
        }
        Ok(())
    }

    /// Reads `len` bytes from `offset`. The caller has bounded `len`.
    pub fn bytes(&self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        if len as u64 > self.len {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "beyond its end"));
        }
        let mut bytes = vec![0; len];
        self.read(offset, &mut bytes)?;
        Ok(bytes)
    }
}

impl Shared {
    fn piece(&self, number: u64) -> io::Result<Arc<[u8]>> {
        let mut cache = self.cache.lock().expect("no panic happens under this lock");
        if let Some(piece) = cache.pieces.get(&number) {
            return Ok(Arc::clone(piece));
        }
        let start = number * PIECE;
        let mut bytes = vec![0; PIECE.min(self.disk.size_bytes().saturating_sub(start)) as usize];
        self.disk.read_at(start, &mut bytes)?;
        let piece: Arc<[u8]> = bytes.into();
        if cache.order.len() >= PIECES
            && let Some(oldest) = cache.order.pop_front()
        {
            cache.pieces.remove(&oldest);
        }
        cache.order.push_back(number);
        cache.pieces.insert(number, Arc::clone(&piece));
        Ok(piece)
    }
}
