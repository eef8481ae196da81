//! Back ends of disk devices: requests in, completions out. Waiting happens on a thread of its own.
pub mod counters; // counters of a disk
pub mod file; // a file, block device or zvol of the host
pub mod in_flight; // a device's commands that its disk has not finished
pub mod medium; // operations of the host's file or device beyond reading and writing
pub mod memory; // an array of bytes, for tests
#[cfg(target_os = "linux")]
mod uring; // a disk's requests through io_uring
#[cfg(not(target_os = "linux"))]
mod uring {
    //! There is no io_uring on this system.
    use super::file::Engine;

    /// No ring.
    pub enum Ring {}
    /// No thread of one.
    pub enum Runner {}
    /// Nothing to wake.
    pub enum WakeRing {}

    impl Ring {
        /// Returns none.
        pub fn open(_: &std::fs::File) -> Option<Ring> {
            None
        }
        /// Cannot be called.
        pub fn start(self) -> (Runner, WakeRing) {
            match self {}
        }
    }
    impl Runner {
        /// Cannot be called.
        pub fn run(self, _: &Engine) {
            match self {}
        }
    }
    impl WakeRing {
        /// Cannot be called.
        pub fn wake(&self) {
            match *self {}
        }
    }
}

use std::io;
use std::sync::Arc;

use crate::hypervisor::memory::GuestAddr;

/// Operation of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskOp {
    /// Moves bytes from the disk into guest memory.
    Read,
    /// Moves bytes from guest memory to the disk.
    Write,
    /// Makes all earlier writes survive a power cut.
    Flush,
    /// Marks `bytes` from `offset` as not needed any more. They may read as anything afterwards.
    Discard {
        /// Length.
        bytes: u64,
    },
    /// Makes `bytes` from `offset` read as zeros afterwards.
    WriteZeroes {
        /// Length.
        bytes: u64,
        /// Whether the space may be given back to the host.
        may_unmap: bool,
    },
}

/// One request.
#[derive(Debug, Clone)]
pub struct DiskRequest {
    /// The device's number for it, returned on completion.
    pub tag: u64,
    /// The operation.
    pub op: DiskOp,
    /// First byte on the disk.
    pub offset: u64,
    /// The guest's buffers, in order. They have been checked to be guest memory.
    pub segments: Vec<(GuestAddr, u32)>,
}

impl DiskRequest {
    /// Returns the number of bytes of the disk that it touches.
    pub fn bytes(&self) -> u64 {
        match self.op {
            DiskOp::Read | DiskOp::Write => self.segments.iter().map(|&(_, len)| u64::from(len)).sum(),
            DiskOp::Flush => 0,
            DiskOp::Discard { bytes } | DiskOp::WriteZeroes { bytes, .. } => bytes,
        }
    }
}

/// Result of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskStatus {
    /// Success.
    Ok,
    /// The medium failed or the host's disk is full. The guest sees an I/O error.
    IoError,
    /// This disk does not support the operation.
    Unsupported,
}

/// A taker of results, on the thread on which a request ends.
pub trait CompletionSink: Send + Sync {
    /// Takes the results of requests that have ended: tag and status. Returns the requests that must follow them. `None`
    /// means that it cannot take them now; then the device asks for them by [`Disk::completed`].
    fn ended(&self, results: &[(u64, DiskStatus)]) -> Option<Vec<DiskRequest>>;
}

/// A disk. `submit` and `completed` never block. Completions go to the sink, if there is one and it takes them, or wake the
/// device through the waker that the disk was built with.
pub trait Disk: Send {
    /// Returns the size in bytes, a multiple of 512.
    fn size_bytes(&self) -> u64;
    /// Returns the size of the blocks that a guest should take for the unit of the disk: a power of two, at least 512.
    fn block_bytes(&self) -> u32 {
        512
    }
    /// Returns whether writes are refused.
    fn read_only(&self) -> bool;
    /// Returns whether the disk supports `Discard`.
    fn can_discard(&self) -> bool;
    /// Takes a request.
    fn submit(&mut self, request: DiskRequest);
    /// Returns the next completion, if there is one.
    fn completed(&mut self) -> Option<(u64, DiskStatus)>;
    /// Gives results to `sink` from now on. A disk without threads of its own keeps them for `completed`.
    fn complete_to(&mut self, _sink: Arc<dyn CompletionSink>) {}
    /// Returns whether no request is in flight: all were given to the sink, or are there for `completed`.
    fn is_idle(&self) -> bool;
    /// Returns a reader of the same bytes for a loader, which reads before the guest runs.
    fn reader(&self) -> Arc<dyn DiskReader>;
}

/// Access to a disk from the host's side, past the guest's requests: reads, and the writes that a boot loader may make.
/// It blocks.
pub trait DiskReader: Send + Sync {
    /// Returns the size in bytes.
    fn size_bytes(&self) -> u64;
    /// Fills `buffer` from `offset`. It is an error beyond the end.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;
    /// Writes `bytes` at `offset` and makes them durable. Fails where the guest may not write either.
    fn write_at(&self, _offset: u64, _bytes: &[u8]) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }
}

impl DiskReader for Vec<u8> {
    fn size_bytes(&self) -> u64 {
        self.len() as u64
    }
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let start = usize::try_from(offset).map_err(|_| io::ErrorKind::UnexpectedEof)?;
        let end = start.checked_add(buffer.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        buffer.copy_from_slice(self.get(start..end).ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}
