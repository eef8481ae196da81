//! What stands behind a disk device: requests in, completions out, the waiting on a thread of its own.
pub mod counters; // what a disk has done
pub mod file; // a file, block device or zvol of the host
pub mod medium; // what the host's file or device can do beyond reading and writing
pub mod memory; // an array of bytes, for tests

use std::io;
use std::sync::Arc;

use crate::hypervisor::memory::GuestAddr;

/// What a request asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskOp {
    /// From the disk into guest memory.
    Read,
    /// From guest memory to the disk.
    Write,
    /// Everything written so far must survive a power cut.
    Flush,
    /// `bytes` from `offset` are not needed any more; they may read as anything afterwards.
    Discard {
        /// Length.
        bytes: u64,
    },
    /// `bytes` from `offset` must read as zeros afterwards.
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
    /// The device's name for it, given back on completion.
    pub tag: u64,
    /// What to do.
    pub op: DiskOp,
    /// First byte on the disk.
    pub offset: u64,
    /// The guest's buffers, in order; checked to be guest memory.
    pub segments: Vec<(GuestAddr, u32)>,
}

impl DiskRequest {
    /// Bytes of the disk that it touches.
    pub fn bytes(&self) -> u64 {
        match self.op {
            DiskOp::Read | DiskOp::Write => self.segments.iter().map(|&(_, len)| u64::from(len)).sum(),
            DiskOp::Flush => 0,
            DiskOp::Discard { bytes } | DiskOp::WriteZeroes { bytes, .. } => bytes,
        }
    }
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskStatus {
    /// Done.
    Ok,
    /// The medium failed or the host's disk is full; the guest sees an I/O error.
    IoError,
    /// This disk cannot do that.
    Unsupported,
}

/// A disk. `submit` and `completed` never block; completions wake the device through the waker that the disk was
/// built with.
pub trait Disk: Send {
    /// Size in bytes, a multiple of 512.
    fn size_bytes(&self) -> u64;
    /// Whether writes are refused.
    fn read_only(&self) -> bool;
    /// Whether `Discard` is understood.
    fn can_discard(&self) -> bool;
    /// Takes a request.
    fn submit(&mut self, request: DiskRequest);
    /// The next completion, if there is one.
    fn completed(&mut self) -> Option<(u64, DiskStatus)>;
    /// Waits for all requests in flight; used before a reset and before state is saved. Bounded by the host's I/O.
    fn drain(&mut self);
    /// The same bytes for a loader, which reads before the guest runs.
    fn reader(&self) -> Arc<dyn DiskReader>;
}

/// Reads a disk from the host's side, past the guest's requests, and writes what a boot loader may; blocks.
pub trait DiskReader: Send + Sync {
    /// Size in bytes.
    fn size_bytes(&self) -> u64;
    /// Fills `buffer` from `offset`; beyond the end is an error.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;
    /// Writes `bytes` at `offset` and makes them durable; where the guest may not write, nobody may.
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
