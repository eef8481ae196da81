//! A disk on the host: a file (sparse or not), a block device or a zvol.
//!
//! One thread per disk carries out the requests with io_uring where the host has it ([`uring`](super::uring)), and else two
//! do, straight between the file and guest memory. Cache modes:
//!
//! | mode | data | flush |
//! |---|---|---|
//! | `writeback` | page cache | durable |
//! | `none` | O_DIRECT, or the disk is refused; what is misaligned goes through a buffer | durable |
//! | `writethrough` | page cache, durable after each write | durable |
//! | `unsafe` | page cache | nothing: a power cut of the host may ruin the guest's file system |
//!
//! [`medium`] knows how to make writes durable and how to give space back. FreeBSD's devices have no page cache. They
//! accept whole sectors only, and other requests go through a buffer as with direct I/O.
//!
//! **Hostile guest**: requests outside of the disk end in an I/O error; the device bounds how many are in flight. A
//! failure of the host that the guest causes is reported once, and again only after a success in between.
//!
//! **Saved state**: none; the device saves what is in flight.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, RwLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::counters::DiskCounters;
use super::medium::{self, is_unsupported};
use super::uring::{Ring, WakeRing};
use super::{CompletionSink, Disk, DiskOp, DiskReader, DiskRequest, DiskStatus};
use crate::hypervisor::memory::{GuestAddr, GuestMemory};
use crate::hypervisor::waking::Waker;

const WORKERS: usize = 2;
const SECTOR: u64 = 512;
/// Bytes that go through a buffer in one step.
const BOUNCE_BYTES: usize = 256 * 1024;
const BUFFER_ALIGN: usize = 4096;
/// Time that a lock may take to become free, and between two tries.
const LOCK_PATIENCE: Duration = Duration::from_secs(1);
const LOCK_INTERVAL: Duration = Duration::from_millis(5);

/// Use of the host's cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CacheMode {
    /// The page cache. The guest's flushes reach the medium.
    #[default]
    Writeback,
    /// Past the page cache.
    None,
    /// The page cache. Each write reaches the medium before it ends.
    Writethrough,
    /// The page cache. Flushes are ignored.
    Unsafe,
}

/// Options for opening a disk.
#[derive(Debug, Clone)]
pub struct DiskOptions {
    /// Refuse writes, and share the file with other readers.
    pub read_only: bool,
    /// Use of the host's cache.
    pub cache: CacheMode,
    /// Whether discarded space is given back to the host.
    pub discard: bool,
}

impl Default for DiskOptions {
    fn default() -> DiskOptions {
        DiskOptions { read_only: false, cache: CacheMode::Writeback, discard: true }
    }
}

/// An event of a running disk that the user should know.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DiskNote {
    /// The host's file system is full. The guest sees I/O errors.
    #[error("disk full: no space left on the host for `{path}`; the guest's writes fail until there is")]
    Full {
        /// The disk.
        path: PathBuf,
    },
    /// The host failed to read or write.
    #[error("cannot {action} disk `{path}`: {error}")]
    Failed {
        /// The disk.
        path: PathBuf,
        /// `read`, `write`, `flush`, `discard`.
        action: &'static str,
        /// The host's error message.
        error: String,
    },
    /// Another program made the file shorter.
    #[error("disk `{path}` has become shorter than the {size} bytes that the guest was given")]
    Truncated {
        /// The disk.
        path: PathBuf,
        /// Its size at start.
        size: u64,
    },
}

/// A callback for notes. The disk's threads call it.
pub type DiskNotes = Arc<dyn Fn(DiskNote) + Send + Sync>;

/// The parts of the machine that a disk needs.
#[derive(Clone)]
pub struct DiskHost {
    /// The guest's memory.
    pub memory: GuestMemory,
    /// Wakes the device.
    pub waker: Waker,
    /// Receives the notes for the user.
    pub notes: DiskNotes,
}

/// The error for a disk that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// A system call failed.
    #[error("cannot {action} disk `{path}`")]
    Host {
        /// The action that failed.
        action: &'static str,
        /// The disk.
        path: PathBuf,
        /// The error of the host.
        source: io::Error,
    },
    /// Another process holds the lock.
    #[error("disk `{path}` is in use by another guest or program")]
    InUse {
        /// The disk.
        path: PathBuf,
    },
    /// It is a directory, a pipe or a terminal.
    #[error("disk `{path}` is neither a file nor a block device")]
    NotADisk {
        /// The path.
        path: PathBuf,
    },
    /// Cache mode `none` is not possible here.
    #[error("disk `{path}` cannot have cache `none`: its file system has no direct I/O (O_DIRECT); `writeback` needs none")]
    NoDirectIo {
        /// The disk.
        path: PathBuf,
    },
    /// It has no bytes.
    #[error("disk `{path}` is empty")]
    Empty {
        /// The disk.
        path: PathBuf,
    },
    /// Its size is not a whole number of sectors.
    #[error("disk `{path}` has `{size}` bytes, which is not a multiple of 512: it is incomplete, or not a raw image")]
    OddSize {
        /// The disk.
        path: PathBuf,
        /// Its size.
        size: u64,
    },
}

/// A disk's file or device, open and locked.
pub struct OpenDisk {
    file: File,
    /// A file rather than a device.
    regular: bool,
    /// Alignment of direct I/O and of a device's sectors; 1 for none.
    align: u64,
    /// Bytes of a device's logical blocks.
    block_bytes: u32,
    /// The ring for its requests, where the host has one: a confined process can make none.
    ring: Option<Ring>,
}

impl std::fmt::Debug for OpenDisk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OpenDisk").field("file", &self.file).finish_non_exhaustive()
    }
}

/// Opens and locks a disk: for its user alone, or with `read_only` for readers only. The lock lives as long as the
/// descriptor and all its copies, also in other processes.
pub fn open_file(path: &Path, options: &DiskOptions) -> Result<OpenDisk, DiskError> {
    let host = |action, source| DiskError::Host { action, path: path.to_owned(), source };
    let mut how = OpenOptions::new();
    how.read(true).write(!options.read_only);
    let direct = if options.cache == CacheMode::None { libc::O_DIRECT } else { 0 };
    // Without O_NONBLOCK, opening a pipe by mistake would wait for its other end.
    let file = how.custom_flags(libc::O_NONBLOCK | direct).open(path).map_err(|error| match error.raw_os_error() {
        Some(libc::EINVAL | libc::EOPNOTSUPP) if direct != 0 => DiskError::NoDirectIo { path: path.to_owned() },
        _ => host("open", error),
    })?;
    let regular = check_type(&file, path)?;
    lock(&file, options.read_only, path)?;
    set_flags(&file, direct).map_err(|e| host("set flags of", e))?;
    let block_bytes = medium::block_bytes(&file, regular).map_err(|e| host("examine", e))?;
    let mut align = medium::sector_bytes(&file, regular).map_err(|e| host("examine", e))?;
    if direct != 0 {
        align = align.max(direct_alignment(&file).ok_or_else(|| DiskError::NoDirectIo { path: path.to_owned() })?);
    }
    let ring = Ring::open(&file);
    Ok(OpenDisk { file, regular, align, block_bytes, ring })
}

/// Locks a disk. The kernel closes the ring of a process a moment after the process has ended, and what was in flight there
/// goes on until then; so the lock, which the ring keeps as long, may be free only a moment after a boot of the guest.
fn lock(file: &File, read_only: bool, path: &Path) -> Result<(), DiskError> {
    let start = Instant::now();
    loop {
        match if read_only { file.try_lock_shared() } else { file.try_lock() } {
            Ok(()) => return Ok(()),
            Err(TryLockError::WouldBlock) if start.elapsed() < LOCK_PATIENCE => std::thread::sleep(LOCK_INTERVAL),
            Err(TryLockError::WouldBlock) => return Err(DiskError::InUse { path: path.to_owned() }),
            Err(TryLockError::Error(source)) => {
                return Err(DiskError::Host { action: "lock", path: path.to_owned(), source });
            }
        }
    }
}

/// Checks the type, and returns whether it is a file rather than a device.
fn check_type(file: &File, path: &Path) -> Result<bool, DiskError> {
    let source = |source| DiskError::Host { action: "examine", path: path.to_owned(), source };
    let kind = file.metadata().map_err(source)?.file_type();
    // FreeBSD's disks are character devices.
    let device = kind.is_block_device() || cfg!(target_os = "freebsd") && kind.is_char_device();
    match kind.is_file() || device {
        true => Ok(kind.is_file()),
        false => Err(DiskError::NotADisk { path: path.to_owned() }),
    }
}

/// Opens, locks and starts a disk.
#[cfg(test)]
pub fn open(path: &Path, options: &DiskOptions, host: &DiskHost) -> Result<FileDisk, DiskError> {
    FileDisk::from_file(open_file(path, options)?, path, options, host)
}

/// Memory that O_DIRECT accepts.
struct AlignedBuffer {
    bytes: Vec<u8>,
    start: usize,
}

impl AlignedBuffer {
    fn new(len: usize) -> AlignedBuffer {
        let bytes = vec![0u8; len + BUFFER_ALIGN];
        let start = bytes.as_ptr().align_offset(BUFFER_ALIGN).min(BUFFER_ALIGN);
        AlignedBuffer { bytes, start }
    }
    fn get(&mut self, len: usize) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + len]
    }
}

/// State that the threads share.
pub(super) struct Engine {
    file: File,
    path: PathBuf,
    size: u64,
    cache: CacheMode,
    read_only: bool,
    regular: bool,
    /// Alignment of direct I/O and of a device's sectors; 1 for none.
    align: u64,
    host: DiskHost,
    counters: Arc<DiskCounters>,
    jobs: Mutex<Jobs>,
    work: Condvar,
    /// Wakes the thread of the ring, in place of `work`.
    ring: Option<WakeRing>,
    sink: OnceLock<Arc<dyn CompletionSink>>,
    /// Taken for writing by a misaligned direct write, which reads and writes whole blocks: no other write may happen
    /// meanwhile.
    blocks: RwLock<()>,
    noted_full: AtomicBool,
    noted_failure: AtomicBool,
    noted_truncation: AtomicBool,
}

#[derive(Default)]
struct Jobs {
    waiting: VecDeque<DiskRequest>,
    running: usize,
    done: VecDeque<(u64, DiskStatus)>,
    stop: bool,
    /// The thread of the ring must be woken for the next request.
    ring_sleeps: bool,
}

/// A disk on a file or device of the host.
pub struct FileDisk {
    engine: Arc<Engine>,
    workers: Vec<JoinHandle<()>>,
    can_discard: bool,
    block_bytes: u32,
}

impl FileDisk {
    /// A disk that somebody opened with [`open_file`] and the same options. `path` is for messages: a confined process
    /// can look nothing up any more.
    #[cfg_attr(not(target_os = "linux"), allow(unreachable_patterns, reason = "only Linux has rings"))]
    pub fn from_file(disk: OpenDisk, path: &Path, options: &DiskOptions, host: &DiskHost) -> Result<FileDisk, DiskError> {
        let failed = |action, source| DiskError::Host { action, path: path.to_owned(), source };
        let OpenDisk { file, regular, align, block_bytes, ring } = disk;
        let size = io::Seek::seek(&mut &file, io::SeekFrom::End(0)).map_err(|e| failed("measure", e))?;
        if size == 0 {
            return Err(DiskError::Empty { path: path.to_owned() });
        }
        if size % SECTOR != 0 {
            return Err(DiskError::OddSize { path: path.to_owned(), size });
        }
        let can_discard = options.discard && !options.read_only && medium::can_discard(&file, regular, size);
        let mut engine = Engine::new(file, path, size, options, regular, align, host.clone());
        let (runner, wake) = ring.map(Ring::start).unzip();
        engine.ring = wake;
        let engine = Arc::new(engine);
        // A disk that ends in the middle of a block has no blocks of that size.
        let block_bytes = if size % u64::from(block_bytes) == 0 { block_bytes } else { SECTOR as u32 };
        let mut disk = FileDisk { engine, workers: Vec::new(), can_discard, block_bytes };
        let mut start = |index: usize, work: Box<dyn FnOnce(&Engine) + Send>| -> Result<(), DiskError> {
            let engine = disk.engine.clone();
            let thread = std::thread::Builder::new().name(format!("disk-{index}")).spawn(move || work(&engine));
            disk.workers.push(thread.map_err(|e| failed("start a thread for", e))?);
            Ok(())
        };
        match runner {
            Some(runner) => start(0, Box::new(move |engine: &Engine| runner.run(engine)))?,
            None => (0..WORKERS).try_for_each(|index| start(index, Box::new(Engine::work)))?,
        }
        Ok(disk)
    }

    /// Returns the counters of the guest's requests.
    pub fn counters(&self) -> Arc<DiskCounters> {
        Arc::clone(&self.engine.counters)
    }
}

impl Disk for FileDisk {
    fn size_bytes(&self) -> u64 {
        self.engine.size
    }
    fn block_bytes(&self) -> u32 {
        self.block_bytes
    }
    fn read_only(&self) -> bool {
        self.engine.read_only
    }
    fn can_discard(&self) -> bool {
        self.can_discard
    }
    fn submit(&mut self, request: DiskRequest) {
        self.engine.submit(request);
    }
    fn completed(&mut self) -> Option<(u64, DiskStatus)> {
        self.engine.jobs().done.pop_front()
    }
    fn complete_to(&mut self, sink: Arc<dyn CompletionSink>) {
        assert!(self.engine.sink.set(sink).is_ok(), "a disk has one device");
    }
    fn is_idle(&self) -> bool {
        let jobs = self.engine.jobs();
        jobs.running == 0 && jobs.waiting.is_empty()
    }
    fn reader(&self) -> Arc<dyn DiskReader> {
        Arc::clone(&self.engine) as _
    }
}

impl DiskReader for Engine {
    fn size_bytes(&self) -> u64 {
        self.size
    }
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let bytes = buffer.len() as u64;
        if offset.checked_add(bytes).is_none_or(|end| end > self.size) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if self.align == 1 {
            return self.file.read_exact_at(buffer, offset);
        }
        // Direct I/O moves whole blocks into memory that it accepts.
        let mut bounce = AlignedBuffer::new(BOUNCE_BYTES);
        let mut done = 0;
        while done < buffer.len() {
            let at = offset + done as u64;
            let skip = (at % self.align) as usize;
            let part = (buffer.len() - done).min(BOUNCE_BYTES - skip);
            let whole = (skip + part).next_multiple_of(self.align as usize);
            self.file.read_exact_at(bounce.get(whole), at - skip as u64)?;
            buffer[done..done + part].copy_from_slice(&bounce.get(whole)[skip..skip + part]);
            done += part;
        }
        Ok(())
    }
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        if self.read_only {
            return Err(io::ErrorKind::ReadOnlyFilesystem.into());
        }
        let end = offset.checked_add(bytes.len() as u64).filter(|end| *end <= self.size);
        let end = end.ok_or(io::ErrorKind::UnexpectedEof)?;
        self.write_blocks(offset, end, |block, at| {
            let from = (at - offset) as usize;
            block.copy_from_slice(&bytes[from..from + block.len()]);
        })?;
        self.flush()
    }
}

impl Drop for FileDisk {
    fn drop(&mut self) {
        self.engine.jobs().stop = true;
        self.engine.work.notify_all();
        self.engine.ring.iter().for_each(WakeRing::wake);
        for worker in self.workers.drain(..) {
            let _ = worker.join();
        }
    }
}

/// Sets the flags of an open file to `flags` alone.
fn set_flags(file: &File, flags: libc::c_int) -> io::Result<()> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    fcntl(file, FcntlArg::F_SETFL(OFlag::from_bits_retain(flags)))?;
    Ok(())
}

/// Returns the alignment that direct I/O on `file` needs, if it works at all. It tries to find out.
///
/// A file that ends in the middle of a block can be read to its end and not be written there, so it must have whole blocks.
fn direct_alignment(file: &File) -> Option<u64> {
    let size = io::Seek::seek(&mut &*file, io::SeekFrom::End(0)).ok()?;
    let mut buffer = AlignedBuffer::new(BUFFER_ALIGN);
    let works = |align: &u64| size % align == 0 && file.read_at(buffer.get(*align as usize), 0).is_ok();
    [SECTOR, BUFFER_ALIGN as u64].into_iter().find(works)
}

/// Drops `bytes` from the front.
pub(super) fn advance(segments: &mut VecDeque<(GuestAddr, u32)>, mut bytes: u64) {
    while bytes > 0 {
        let Some((addr, len)) = segments.front_mut() else { return };
        let step = bytes.min(u64::from(*len));
        *addr = GuestAddr(addr.0 + step);
        *len -= step as u32;
        bytes -= step;
        if *len == 0 {
            segments.pop_front();
        }
    }
}

impl Engine {
    fn new(file: File, path: &Path, size: u64, options: &DiskOptions, regular: bool, align: u64, host: DiskHost) -> Engine {
        Engine {
            file,
            path: path.to_owned(),
            size,
            cache: options.cache,
            read_only: options.read_only,
            regular,
            align,
            host,
            counters: Arc::default(),
            jobs: Mutex::default(),
            work: Condvar::new(),
            ring: None,
            sink: OnceLock::new(),
            blocks: RwLock::new(()),
            noted_full: AtomicBool::new(false),
            noted_failure: AtomicBool::new(false),
            noted_truncation: AtomicBool::new(false),
        }
    }

    fn jobs(&self) -> MutexGuard<'_, Jobs> {
        self.jobs.lock().expect("no panic happens under this lock")
    }

    #[cfg_attr(not(target_os = "linux"), allow(unreachable_patterns, reason = "only Linux has rings"))]
    fn submit(&self, request: DiskRequest) {
        let writes = !matches!(request.op, DiskOp::Read | DiskOp::Flush);
        if writes && self.read_only {
            self.counters.count(&request, DiskStatus::IoError);
            return self.deliver(&[(request.tag, DiskStatus::IoError)]);
        }
        let mut jobs = self.jobs();
        jobs.waiting.push_back(request);
        let ring_sleeps = std::mem::take(&mut jobs.ring_sleeps);
        drop(jobs);
        match &self.ring {
            Some(ring) if ring_sleeps => ring.wake(),
            Some(_) => {}
            None => self.work.notify_one(),
        }
    }

    /// Gives results to the device. A request is in flight until that is done and what follows it was submitted.
    pub(super) fn deliver(&self, results: &[(u64, DiskStatus)]) {
        match self.sink.get().and_then(|sink| sink.ended(results)) {
            Some(next) => next.into_iter().for_each(|request| self.submit(request)),
            None => {
                self.jobs().done.extend(results);
                self.host.waker.wake();
            }
        }
    }

    /// Runs a worker. It finishes the waiting requests before it ends.
    fn work(&self) {
        let mut jobs = self.jobs();
        loop {
            let Some(request) = jobs.waiting.pop_front() else {
                if jobs.stop {
                    return;
                }
                jobs = self.work.wait(jobs).expect("no panic happens under this lock");
                continue;
            };
            jobs.running += 1;
            drop(jobs);
            let status = self.carry_out(&request);
            self.counters.count(&request, status);
            self.deliver(&[(request.tag, status)]);
            jobs = self.jobs();
            jobs.running -= 1;
        }
    }

    /// Returns whether a request is on the disk.
    pub(super) fn is_inside(&self, request: &DiskRequest) -> bool {
        request.offset.checked_add(request.bytes()).is_some_and(|end| end <= self.size)
    }

    /// Does a request on this thread.
    pub(super) fn carry_out(&self, request: &DiskRequest) -> DiskStatus {
        if !self.is_inside(request) {
            return DiskStatus::IoError;
        }
        let result = match request.op {
            DiskOp::Read => self.transfer(request, false),
            DiskOp::Write => self.transfer(request, true).and_then(|()| self.after_write()),
            DiskOp::Flush => self.flush(),
            DiskOp::Discard { bytes } => match medium::discard(&self.file, self.regular, request.offset, bytes) {
                Err(e) if is_unsupported(&e) => return DiskStatus::Unsupported,
                other => other,
            },
            DiskOp::WriteZeroes { bytes, may_unmap } => {
                self.write_zeroes(request.offset, bytes, may_unmap).and_then(|()| self.after_write())
            }
        };
        self.conclude(request, result)
    }

    /// Notes a failure, and returns the status for the guest.
    pub(super) fn conclude(&self, request: &DiskRequest, result: io::Result<()>) -> DiskStatus {
        let action = match request.op {
            DiskOp::Read => "read",
            DiskOp::Write => "write",
            DiskOp::Flush => "flush",
            DiskOp::Discard { .. } => "discard on",
            DiskOp::WriteZeroes { .. } => "write zeros to",
        };
        match result {
            Ok(()) => {
                self.noted_failure.store(false, Ordering::Relaxed);
                if !matches!(request.op, DiskOp::Read | DiskOp::Flush) {
                    self.noted_full.store(false, Ordering::Relaxed);
                }
                DiskStatus::Ok
            }
            Err(error) => {
                self.note(action, &error);
                DiskStatus::IoError
            }
        }
    }

    fn note(&self, action: &'static str, error: &io::Error) {
        let path = self.path.clone();
        let full = matches!(error.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT));
        let (noted, note) = if full {
            (&self.noted_full, DiskNote::Full { path })
        } else if error.kind() == io::ErrorKind::UnexpectedEof {
            (&self.noted_truncation, DiskNote::Truncated { path, size: self.size })
        } else {
            (&self.noted_failure, DiskNote::Failed { path, action, error: error.to_string() })
        };
        if !noted.swap(true, Ordering::Relaxed) {
            (self.host.notes)(note);
        }
    }

    /// Returns whether a flush does nothing.
    pub(super) fn ignores_flushes(&self) -> bool {
        self.cache == CacheMode::Unsafe
    }

    fn flush(&self) -> io::Result<()> {
        match self.ignores_flushes() {
            true => Ok(()),
            false => medium::sync_data(&self.file, self.regular),
        }
    }

    fn after_write(&self) -> io::Result<()> {
        match self.cache {
            CacheMode::Writethrough => medium::sync_data(&self.file, self.regular),
            _ => Ok(()),
        }
    }

    pub(super) fn is_aligned(&self, request: &DiskRequest) -> bool {
        let odd = |value: u64| value % self.align != 0;
        !odd(request.offset) && !request.segments.iter().any(|&(addr, len)| odd(addr.0) || odd(u64::from(len)))
    }

    fn transfer(&self, request: &DiskRequest, write: bool) -> io::Result<()> {
        if !self.is_aligned(request) {
            return self.transfer_bounced(request, write);
        }
        let _shared = self.blocks.read().expect("no panic happens under this lock");
        let memory = &self.host.memory;
        let mut offset = request.offset;
        let mut left: VecDeque<(GuestAddr, u32)> = request.segments.iter().copied().filter(|&(_, len)| len > 0).collect();
        while !left.is_empty() {
            let segments = left.make_contiguous();
            let moved = match (write, &*segments) {
                (false, &[(addr, len)]) => memory.read_from_file(&self.file, offset, addr, len as usize),
                (true, &[(addr, len)]) => memory.write_to_file(&self.file, offset, addr, len as usize),
                (false, many) => memory.read_vectored_from_file(&self.file, offset, many),
                (true, many) => memory.write_vectored_to_file(&self.file, offset, many),
            };
            match moved {
                Ok(0) if write => return Err(io::ErrorKind::WriteZero.into()),
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(bytes) => {
                    offset += bytes as u64;
                    advance(&mut left, bytes as u64);
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Executes a request that is not aligned for direct I/O: whole blocks through a buffer.
    fn transfer_bounced(&self, request: &DiskRequest, write: bool) -> io::Result<()> {
        let _alone = self.blocks.write().expect("no panic happens under this lock");
        let mut buffer = AlignedBuffer::new(BOUNCE_BYTES);
        let mut left: VecDeque<(GuestAddr, u32)> = request.segments.iter().copied().filter(|&(_, len)| len > 0).collect();
        let end = request.offset + request.bytes();
        let mut at = request.offset;
        while at < end {
            let first = at - at % self.align;
            // The disk's size is a multiple of the alignment, so the last block is whole.
            let last = end.next_multiple_of(self.align).min(first + BOUNCE_BYTES as u64);
            let blocks = buffer.get((last - first) as usize);
            let (skip, stop) = ((at - first) as usize, (end.min(last) - first) as usize);
            let partial = skip != 0 || stop != blocks.len();
            if !write || partial {
                self.file.read_exact_at(blocks, first)?;
            }
            self.copy(&mut left, &mut blocks[skip..stop], !write)?;
            if write {
                self.file.write_all_at(blocks, first)?;
            }
            at = first + stop as u64;
        }
        Ok(())
    }

    fn copy(&self, left: &mut VecDeque<(GuestAddr, u32)>, mut bytes: &mut [u8], to_guest: bool) -> io::Result<()> {
        while let (Some(&(addr, len)), false) = (left.front(), bytes.is_empty()) {
            let (part, rest) = bytes.split_at_mut(bytes.len().min(len as usize));
            let copied = if to_guest { self.host.memory.write(addr, part) } else { self.host.memory.read(addr, part) };
            copied.map_err(io::Error::other)?;
            advance(left, part.len() as u64);
            bytes = rest;
        }
        Ok(())
    }

    fn write_zeroes(&self, offset: u64, bytes: u64, may_unmap: bool) -> io::Result<()> {
        let quick = match may_unmap && (self.regular || cfg!(target_os = "linux")) {
            true => medium::discard(&self.file, self.regular, offset, bytes),
            false => medium::zero_range(&self.file, offset, bytes),
        };
        match quick {
            Err(e) if is_unsupported(&e) => {}
            other => return other,
        }
        self.write_zero_blocks(offset, bytes)
    }

    fn write_zero_blocks(&self, offset: u64, bytes: u64) -> io::Result<()> {
        self.write_blocks(offset, offset + bytes, |block, _| block.fill(0))
    }

    /// Writes `offset..end` from a buffer, in whole blocks. `fill` gives the bytes for a position of the disk.
    fn write_blocks(&self, offset: u64, end: u64, fill: impl Fn(&mut [u8], u64)) -> io::Result<()> {
        let _alone = self.blocks.write().expect("no panic happens under this lock");
        let mut buffer = AlignedBuffer::new(BOUNCE_BYTES);
        let mut at = offset;
        while at < end {
            let first = at - at % self.align;
            let last = end.next_multiple_of(self.align).min(first + BOUNCE_BYTES as u64);
            let blocks = buffer.get((last - first) as usize);
            let (skip, stop) = ((at - first) as usize, (end.min(last) - first) as usize);
            // A block of which only a part is written keeps the rest.
            if skip != 0 || stop != blocks.len() {
                self.file.read_exact_at(blocks, first)?;
            }
            fill(&mut blocks[skip..stop], at);
            self.file.write_all_at(blocks, first)?;
            at = first + stop as u64;
        }
        Ok(())
    }
}

/// What the thread of a ring needs.
#[cfg(target_os = "linux")]
impl Engine {
    /// Takes at most `room` requests for the ring, which must be woken for later ones. `None` means that its thread ends:
    /// nothing is in flight there, and nothing will come.
    pub(super) fn take_for_ring(&self, room: usize, idle: bool) -> Option<Vec<DiskRequest>> {
        let mut jobs = self.jobs();
        let count = room.min(jobs.waiting.len());
        let taken: Vec<DiskRequest> = jobs.waiting.drain(..count).collect();
        if taken.is_empty() && idle && jobs.stop {
            return None;
        }
        jobs.running += count;
        // Where requests are left, an answer makes room for them and brings the thread back.
        jobs.ring_sleeps = jobs.waiting.is_empty();
        Some(taken)
    }

    /// Notes that requests that were taken for the ring have ended and were delivered.
    pub(super) fn ended_in_ring(&self, count: usize) {
        self.jobs().running -= count;
    }

    pub(super) fn memory(&self) -> &GuestMemory {
        &self.host.memory
    }
    pub(super) fn cache(&self) -> CacheMode {
        self.cache
    }
    pub(super) fn count(&self, request: &DiskRequest, status: DiskStatus) {
        self.counters.count(request, status);
    }
    /// Returns whether a request may have to read whole blocks and write them again, with no other write meanwhile.
    pub(super) fn writes_whole_blocks(&self, request: &DiskRequest) -> bool {
        self.align > 1 && matches!(request.op, DiskOp::Write | DiskOp::WriteZeroes { .. })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hypervisor::memory::Mode;
    use crate::hypervisor::waking::Attention;
    use std::io::Write;

    struct Rig {
        dir: tempfile::TempDir,
        memory: GuestMemory,
        host: DiskHost,
        notes: Arc<Mutex<Vec<DiskNote>>>,
    }

    fn rig() -> Rig {
        let memory = GuestMemory::anonymous(&[(GuestAddr(0), 4 << 20, Mode::Ram)]).unwrap();
        let notes: Arc<Mutex<Vec<DiskNote>>> = Arc::default();
        let heard = notes.clone();
        let host = DiskHost {
            memory: memory.clone(),
            waker: Waker::new(Attention::new(1)),
            notes: Arc::new(move |note| heard.lock().unwrap().push(note)),
        };
        Rig { dir: tempfile::tempdir().unwrap(), memory, host, notes }
    }

    impl Rig {
        fn image(&self, bytes: u64) -> PathBuf {
            let path = self.dir.path().join("disk.img");
            File::create(&path).unwrap().set_len(bytes).unwrap();
            path
        }
        fn notes(&self) -> Vec<DiskNote> {
            self.notes.lock().unwrap().clone()
        }
    }

    /// Opens a disk with a ring, if the host has one, or with a pool of threads.
    fn open_with(ring: bool, path: &Path, options: &DiskOptions, host: &DiskHost) -> FileDisk {
        let mut disk = open_file(path, options).unwrap();
        if !ring {
            disk.ring = None;
        }
        FileDisk::from_file(disk, path, options, host).unwrap()
    }

    fn options(cache: CacheMode) -> DiskOptions {
        DiskOptions { cache, ..DiskOptions::default() }
    }

    /// Waits for all requests in flight.
    fn drain(disk: &dyn Disk) {
        let start = std::time::Instant::now();
        while !disk.is_idle() {
            assert!(start.elapsed().as_secs() < 60, "the disk finishes its requests");
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    }

    fn run(disk: &mut dyn Disk, op: DiskOp, offset: u64, segments: &[(u64, u32)]) -> DiskStatus {
        let segments = segments.iter().map(|&(addr, len)| (GuestAddr(addr), len)).collect();
        disk.submit(DiskRequest { tag: 7, op, offset, segments });
        drain(disk);
        let (tag, status) = disk.completed().unwrap();
        assert_eq!((tag, disk.completed()), (7, None));
        status
    }

    #[test]
    fn a_loader_writes_in_any_alignment_what_the_guest_may_write() {
        let rig = rig();
        let path = rig.image(1 << 20);
        for mode in MODES {
            let disk = open(&path, &options(mode), &rig.host).unwrap();
            let reader = disk.reader();
            reader.write_at(4000, &[0x5a; 1024]).unwrap();
            let mut bytes = [0; 1026];
            reader.read_at(3999, &mut bytes).unwrap();
            assert_eq!((bytes[0], bytes[1025]), (0, 0), "{mode:?}");
            assert!(bytes[1..1025].iter().all(|byte| *byte == 0x5a), "{mode:?}");
            assert!(reader.write_at((1 << 20) - 1023, &[0; 1024]).is_err() && reader.write_at(u64::MAX, &[0]).is_err());
            reader.write_at(4000, &[0; 1024]).unwrap();
        }
        let disk = open(&path, &DiskOptions { read_only: true, ..options(CacheMode::Writeback) }, &rig.host).unwrap();
        assert_eq!(disk.reader().write_at(0, &[1]).unwrap_err().kind(), io::ErrorKind::ReadOnlyFilesystem);
        // FreeBSD's devices accept whole sectors only, and so does direct I/O.
        let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        let engine = Engine::new(file, &path, 1 << 20, &DiskOptions::default(), true, 4096, rig.host.clone());
        engine.write_at(4000, &[7; 200]).unwrap();
        let mut bytes = [0; 202];
        engine.read_at(3999, &mut bytes).unwrap();
        assert!(bytes[0] == 0 && bytes[201] == 0 && bytes[1..201] == [7; 200]);
    }

    const MODES: [CacheMode; 4] = [CacheMode::Writeback, CacheMode::None, CacheMode::Writethrough, CacheMode::Unsafe];

    #[test]
    fn what_is_written_is_read_back_in_every_cache_mode() {
        for (mode, ring) in MODES.into_iter().flat_map(|mode| [(mode, true), (mode, false)]) {
            let rig = rig();
            let path = rig.image(1 << 20);
            let mut disk = open_with(ring, &path, &options(mode), &rig.host);
            let data: Vec<u8> = (0..8192u32).map(|i| (i * 7 >> 3) as u8).collect();
            rig.memory.write(GuestAddr(0x1000), &data).unwrap();
            assert_eq!(run(&mut disk, DiskOp::Write, 4096, &[(0x1000, 4096), (0x2000, 4096)]), DiskStatus::Ok);
            assert_eq!(run(&mut disk, DiskOp::Flush, 0, &[]), DiskStatus::Ok);
            assert_eq!(run(&mut disk, DiskOp::Read, 4096, &[(0x8000, 512), (0x9000, 7680)]), DiskStatus::Ok);
            let mut back = vec![0u8; 8192];
            rig.memory.read(GuestAddr(0x8000), &mut back[..512]).unwrap();
            rig.memory.read(GuestAddr(0x9000), &mut back[512..]).unwrap();
            assert!(back == data, "{mode:?}");
            drop(disk);
            assert!(std::fs::read(&path).unwrap()[4096..12288] == data[..], "{mode:?}");
        }
    }

    #[test]
    fn what_a_disk_does_is_counted_when_it_is_done_and_failures_apart() {
        [true, false].into_iter().for_each(counts_what_is_done);
    }

    fn counts_what_is_done(ring: bool) {
        let rig = rig();
        let mut disk = open_with(ring, &rig.image(1 << 20), &DiskOptions::default(), &rig.host);
        let counters = disk.counters();
        run(&mut disk, DiskOp::Write, 0, &[(0, 4096), (8192, 512)]);
        run(&mut disk, DiskOp::WriteZeroes { bytes: 512, may_unmap: false }, 0, &[]);
        run(&mut disk, DiskOp::Read, 512, &[(0, 1024)]);
        run(&mut disk, DiskOp::Flush, 0, &[]);
        run(&mut disk, DiskOp::Read, 1 << 20, &[(0, 512)]);
        let expected = [
            ("read-bytes", 1024),
            ("read-ops", 1),
            ("written-bytes", 4096 + 512 + 512),
            ("write-ops", 2),
            ("flush-ops", 1),
            ("discard-ops", 0),
            ("failed-ops", 1),
        ];
        assert_eq!(counters.read(), expected);
    }

    #[test]
    fn misaligned_buffers_and_sectors_work_with_direct_io() {
        [true, false].into_iter().for_each(moves_what_is_misaligned);
    }

    fn moves_what_is_misaligned(ring: bool) {
        let rig = rig();
        let path = rig.image(1 << 20);
        std::fs::write(&path, vec![0xee; 1 << 20]).unwrap();
        let mut disk = open_with(ring, &path, &options(CacheMode::None), &rig.host);
        let data: Vec<u8> = (0..600_000u32).map(|i| (i % 251) as u8).collect();
        rig.memory.write(GuestAddr(0x1001), &data).unwrap();
        assert_eq!(run(&mut disk, DiskOp::Write, 512, &[(0x1001, 3), (0x1004, 599_552 - 3)]), DiskStatus::Ok);
        assert_eq!(run(&mut disk, DiskOp::Read, 512, &[(0x20_0003, 599_552)]), DiskStatus::Ok);
        let mut back = vec![0u8; 599_552];
        rig.memory.read(GuestAddr(0x20_0003), &mut back).unwrap();
        assert!(back == data[..599_552]);
        drop(disk);
        let file = std::fs::read(&path).unwrap();
        assert!(file[..512].iter().all(|&b| b == 0xee) && file[512 + 599_552..].iter().all(|&b| b == 0xee));
        assert_eq!(file.len(), 1 << 20);
    }

    #[test]
    fn zeros_and_data_that_are_no_whole_sector_leave_the_rest_of_it_alone() {
        let rig = rig();
        let path = rig.image(1 << 20);
        std::fs::write(&path, vec![0xee; 1 << 20]).unwrap();
        let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        // Driven like a device with sectors of 4096 bytes.
        let engine = Engine::new(file, &path, 1 << 20, &DiskOptions::default(), false, 4096, rig.host.clone());
        engine.write_zero_blocks(512, 300_032).unwrap();
        let write = DiskRequest { tag: 1, op: DiskOp::Write, offset: 700_416, segments: vec![(GuestAddr(0), 512)] };
        assert_eq!(engine.carry_out(&write), DiskStatus::Ok);
        let bytes = std::fs::read(&path).unwrap();
        let zeroed = |from: usize, to: usize| bytes[from..to].iter().all(|&byte| byte == 0);
        let kept = |from: usize, to: usize| bytes[from..to].iter().all(|&byte| byte == 0xee);
        assert!(kept(0, 512) && zeroed(512, 300_544) && kept(300_544, 700_416));
        assert!(zeroed(700_416, 700_928) && kept(700_928, 1 << 20));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn direct_io_is_refused_where_the_file_system_has_none() {
        // The files of proc(5) are regular ones, and have no direct I/O.
        let path = Path::new("/proc/version");
        let error = open_file(path, &DiskOptions { read_only: true, ..options(CacheMode::None) }).unwrap_err();
        assert!(matches!(error, DiskError::NoDirectIo { .. }), "{error}");
        assert!(error.to_string().starts_with("disk `/proc/version` cannot have cache `none`: "), "{error}");
    }

    #[test]
    fn an_open_disk_has_direct_io_for_cache_none_alone_and_waits_for_its_medium() {
        use nix::fcntl::{FcntlArg, OFlag, fcntl};
        let rig = rig();
        let path = rig.image(1 << 20);
        for mode in MODES {
            let disk = open_file(&path, &options(mode)).unwrap();
            let flags = OFlag::from_bits_retain(fcntl(&disk.file, FcntlArg::F_GETFL).unwrap());
            assert_eq!(flags.contains(OFlag::O_DIRECT), mode == CacheMode::None, "{mode:?}");
            assert!(!flags.contains(OFlag::O_NONBLOCK), "{mode:?}");
            assert_eq!((disk.align >= SECTOR, disk.block_bytes), (mode == CacheMode::None, 512), "{mode:?}");
        }
    }

    #[test]
    fn a_disk_in_use_is_refused_by_name_and_readers_share() {
        let rig = rig();
        let path = rig.image(4096);
        let first = open(&path, &options(CacheMode::Writeback), &rig.host).unwrap();
        let error = open_file(&path, &options(CacheMode::Writeback)).unwrap_err();
        assert_eq!(error.to_string(), format!("disk `{}` is in use by another guest or program", path.display()));
        let reader = DiskOptions { read_only: true, ..DiskOptions::default() };
        assert!(matches!(open_file(&path, &reader), Err(DiskError::InUse { .. })));
        drop(first);
        let one = open_file(&path, &reader).unwrap();
        let _two = open_file(&path, &reader).unwrap();
        assert!(matches!(open_file(&path, &options(CacheMode::Writeback)), Err(DiskError::InUse { .. })));
        drop(one);
    }

    #[test]
    fn what_is_no_disk_is_refused() {
        let rig = rig();
        let default = DiskOptions::default();
        let missing = open(&rig.dir.path().join("none"), &default, &rig.host).err().unwrap();
        assert!(missing.to_string().starts_with("cannot open disk `"), "{missing}");
        let reader = DiskOptions { read_only: true, ..DiskOptions::default() };
        assert!(matches!(open(rig.dir.path(), &reader, &rig.host), Err(DiskError::NotADisk { .. })));
        assert!(matches!(open(Path::new("/dev/null"), &reader, &rig.host), Err(DiskError::NotADisk { .. })));
        assert!(matches!(open(&rig.image(0), &default, &rig.host), Err(DiskError::Empty { .. })));
        assert!(matches!(open(&rig.image(513), &default, &rig.host), Err(DiskError::OddSize { size: 513, .. })));
    }

    #[test]
    fn requests_outside_of_the_disk_and_writes_to_a_read_only_one_fail() {
        let rig = rig();
        let path = rig.image(4096);
        let reader = DiskOptions { read_only: true, ..DiskOptions::default() };
        let mut disk = open(&path, &reader, &rig.host).unwrap();
        assert!(disk.read_only() && !disk.can_discard());
        assert_eq!(run(&mut disk, DiskOp::Write, 0, &[(0, 512)]), DiskStatus::IoError);
        assert_eq!(run(&mut disk, DiskOp::Read, 3584, &[(0, 1024)]), DiskStatus::IoError);
        assert_eq!(run(&mut disk, DiskOp::Read, u64::MAX, &[(0, 1024)]), DiskStatus::IoError);
        assert_eq!(run(&mut disk, DiskOp::Read, 3584, &[(0, 512)]), DiskStatus::Ok);
        assert_eq!(run(&mut disk, DiskOp::Read, 0, &[(1 << 40, 512)]), DiskStatus::IoError);
    }

    #[test]
    fn a_discard_gives_space_back_and_zeros_read_as_zeros() {
        use std::os::unix::fs::MetadataExt;
        let rig = rig();
        let path = rig.image(1 << 20);
        std::fs::write(&path, vec![1u8; 1 << 20]).unwrap();
        let mut disk = open(&path, &options(CacheMode::Writeback), &rig.host).unwrap();
        let before = std::fs::metadata(&path).unwrap().blocks();
        if disk.can_discard() {
            assert_eq!(run(&mut disk, DiskOp::Discard { bytes: 1 << 19 }, 0, &[]), DiskStatus::Ok);
            assert!(std::fs::metadata(&path).unwrap().blocks() < before);
        }
        for may_unmap in [false, true] {
            let offset = (1 << 19) + if may_unmap { 8192 } else { 512 };
            assert_eq!(run(&mut disk, DiskOp::WriteZeroes { bytes: 2048, may_unmap }, offset, &[]), DiskStatus::Ok);
            let file = std::fs::read(&path).unwrap();
            assert!(file[offset as usize..offset as usize + 2048].iter().all(|&b| b == 0));
            assert_eq!((file[offset as usize - 1], file[offset as usize + 2048], file.len()), (1, 1, 1 << 20));
        }
    }

    #[test]
    fn a_file_cut_short_under_the_guest_is_noted_once() {
        [true, false].into_iter().for_each(notes_a_short_file_once);
    }

    fn notes_a_short_file_once(ring: bool) {
        let rig = rig();
        let path = rig.image(8192);
        let mut disk = open_with(ring, &path, &options(CacheMode::Writeback), &rig.host);
        OpenOptions::new().write(true).open(&path).unwrap().set_len(512).unwrap();
        for _ in 0..3 {
            assert_eq!(run(&mut disk, DiskOp::Read, 0, &[(0, 4096)]), DiskStatus::IoError);
        }
        assert_eq!(rig.notes(), vec![DiskNote::Truncated { path: path.clone(), size: 8192 }]);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_full_host_is_noted_once_until_a_write_succeeds_again() {
        // /dev/full answers each write with ENOSPC.
        let rig = rig();
        let path = Path::new("/dev/full");
        let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
        let engine = Engine::new(file, path, 1 << 20, &DiskOptions::default(), true, 1, rig.host.clone());
        let write = DiskRequest { tag: 1, op: DiskOp::Write, offset: 0, segments: vec![(GuestAddr(0), 512)] };
        assert_eq!(engine.carry_out(&write), DiskStatus::IoError);
        assert_eq!(engine.carry_out(&write), DiskStatus::IoError);
        assert_eq!(rig.notes(), vec![DiskNote::Full { path: path.to_owned() }]);
        assert!(rig.notes()[0].to_string().starts_with("disk full: "));
        let read = DiskRequest { op: DiskOp::Read, ..write.clone() };
        assert_eq!(engine.carry_out(&read), DiskStatus::Ok);
        assert_eq!(engine.carry_out(&write), DiskStatus::IoError);
        assert_eq!(rig.notes().len(), 1);
    }

    #[test]
    fn many_requests_at_once_all_end_and_wake_the_device() {
        [true, false].into_iter().for_each(ends_all_of_many_requests);
    }

    fn ends_all_of_many_requests(ring: bool) {
        let rig = rig();
        let path = rig.image(1 << 20);
        let mut disk = open_with(ring, &path, &options(CacheMode::Writeback), &rig.host);
        for tag in 0..256 {
            let op = if tag % 3 == 0 { DiskOp::Read } else { DiskOp::Write };
            disk.submit(DiskRequest { tag, op, offset: tag * 4096, segments: vec![(GuestAddr(tag * 4096), 4096)] });
        }
        drain(&disk);
        let mut tags: Vec<u64> = std::iter::from_fn(|| disk.completed())
            .map(|(tag, status)| {
                assert_eq!(status, DiskStatus::Ok);
                tag
            })
            .collect();
        tags.sort_unstable();
        assert_eq!(tags, (0..256).collect::<Vec<_>>());
        assert!(rig.host.waker.take());
    }

    #[test]
    fn a_request_of_more_buffers_than_one_system_call_takes_is_done_whole() {
        [true, false].into_iter().for_each(moves_many_buffers);
    }

    /// A device that flushes after its first request, and counts what ends.
    #[derive(Default)]
    struct Sink {
        ended: Mutex<Vec<(u64, DiskStatus)>>,
        refuses: AtomicBool,
    }

    impl CompletionSink for Sink {
        fn ended(&self, results: &[(u64, DiskStatus)]) -> Option<Vec<DiskRequest>> {
            if self.refuses.load(Ordering::Relaxed) {
                return None;
            }
            let mut ended = self.ended.lock().unwrap();
            let first = ended.is_empty();
            ended.extend(results);
            let flush = DiskRequest { tag: 99, op: DiskOp::Flush, offset: 0, segments: Vec::new() };
            Some(if first { vec![flush] } else { Vec::new() })
        }
    }

    #[test]
    fn results_go_to_the_device_and_a_disk_is_idle_only_after_what_follows_them() {
        for ring in [true, false] {
            let rig = rig();
            let path = rig.image(1 << 20);
            let mut disk = open_with(ring, &path, &options(CacheMode::Writeback), &rig.host);
            let sink = Arc::new(Sink::default());
            disk.complete_to(sink.clone());
            let read = |tag| DiskRequest { tag, op: DiskOp::Read, offset: 0, segments: vec![(GuestAddr(0), 512)] };
            disk.submit(read(1));
            drain(&disk);
            assert_eq!(*sink.ended.lock().unwrap(), [(1, DiskStatus::Ok), (99, DiskStatus::Ok)]);
            assert_eq!((disk.completed(), rig.host.waker.take()), (None, false));
            sink.refuses.store(true, Ordering::Relaxed);
            disk.submit(read(2));
            drain(&disk);
            assert_eq!((disk.completed(), rig.host.waker.take()), (Some((2, DiskStatus::Ok)), true));
        }
    }

    fn moves_many_buffers(ring: bool) {
        let rig = rig();
        let path = rig.image(1 << 20);
        let mut content = File::create(&path).unwrap();
        content.write_all(&(0..1 << 20).map(|i: u32| (i >> 9) as u8).collect::<Vec<_>>()).unwrap();
        let mut disk = open_with(ring, &path, &options(CacheMode::Writeback), &rig.host);
        let segments: Vec<(u64, u32)> = (0..1500).map(|i| (i * 1024, 512)).collect();
        assert_eq!(run(&mut disk, DiskOp::Read, 0, &segments), DiskStatus::Ok);
        for (index, &(addr, _)) in segments.iter().enumerate() {
            assert_eq!(rig.memory.read_le::<u8>(GuestAddr(addr + 511)).unwrap(), index as u8);
        }
    }
}
