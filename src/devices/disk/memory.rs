//! A disk in memory, for tests: it completes requests at once, or when and in the order that the test says.
//!
//! **Hostile guest**: requests outside of the disk end in an I/O error.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};

use super::{Disk, DiskOp, DiskReader, DiskRequest, DiskStatus};
use crate::hypervisor::memory::GuestMemory;

#[derive(Default)]
struct Inner {
    bytes: Vec<u8>,
    held: bool,
    fail: bool,
    waiting: VecDeque<DiskRequest>,
    done: VecDeque<(u64, DiskStatus)>,
    seen: Vec<DiskOp>,
}

/// An array of bytes as a disk.
pub struct MemoryDisk {
    memory: GuestMemory,
    inner: Arc<Mutex<Inner>>,
    size_bytes: u64,
    read_only: bool,
}

/// The test's handle of a [`MemoryDisk`].
#[derive(Clone)]
pub struct MemoryDiskHandle {
    memory: GuestMemory,
    inner: Arc<Mutex<Inner>>,
}

fn locked(inner: &Mutex<Inner>) -> MutexGuard<'_, Inner> {
    inner.lock().expect("no panic happens under this lock")
}

impl MemoryDisk {
    /// Creates a disk of `size_bytes` zeros, and the handle to it.
    pub fn new(memory: &GuestMemory, size_bytes: u64, read_only: bool) -> (MemoryDisk, MemoryDiskHandle) {
        let inner = Arc::new(Mutex::new(Inner { bytes: vec![0; size_bytes as usize], ..Inner::default() }));
        let handle = MemoryDiskHandle { memory: memory.clone(), inner: inner.clone() };
        (MemoryDisk { memory: memory.clone(), inner, size_bytes, read_only }, handle)
    }
}

impl MemoryDiskHandle {
    /// Sets whether requests wait until they are released.
    pub fn hold(&self, held: bool) {
        locked(&self.inner).held = held;
    }
    /// Sets whether requests end in an I/O error.
    pub fn fail(&self, fail: bool) {
        locked(&self.inner).fail = fail;
    }
    /// Returns the number of requests that wait.
    pub fn waiting(&self) -> usize {
        locked(&self.inner).waiting.len()
    }
    /// Carries out the waiting request at `index`.
    pub fn release(&self, index: usize) {
        let mut inner = locked(&self.inner);
        if let Some(request) = inner.waiting.remove(index) {
            inner.carry_out(&self.memory, &request);
        }
    }
    /// Takes the operations that were requested so far.
    pub fn take_seen(&self) -> Vec<DiskOp> {
        std::mem::take(&mut locked(&self.inner).seen)
    }
    /// Returns a copy of the disk.
    pub fn bytes(&self) -> Vec<u8> {
        locked(&self.inner).bytes.clone()
    }
    /// Changes the disk's contents.
    pub fn put(&self, offset: usize, bytes: &[u8]) {
        locked(&self.inner).bytes[offset..offset + bytes.len()].copy_from_slice(bytes);
    }
}

impl Inner {
    fn carry_out(&mut self, memory: &GuestMemory, request: &DiskRequest) {
        let status = if self.fail { DiskStatus::IoError } else { self.transfer(memory, request).unwrap_or(DiskStatus::IoError) };
        self.done.push_back((request.tag, status));
    }

    fn transfer(&mut self, memory: &GuestMemory, request: &DiskRequest) -> Option<DiskStatus> {
        let start = usize::try_from(request.offset).ok()?;
        let end = start.checked_add(usize::try_from(request.bytes()).ok()?)?;
        let range = self.bytes.get_mut(start..end)?;
        match request.op {
            DiskOp::Flush => {}
            DiskOp::Discard { .. } => range.fill(0xdd),
            DiskOp::WriteZeroes { .. } => range.fill(0),
            DiskOp::Read | DiskOp::Write => {
                let mut at = 0;
                for &(addr, len) in &request.segments {
                    let part = &mut range[at..at + len as usize];
                    match request.op {
                        DiskOp::Read => memory.write(addr, part).ok()?,
                        _ => memory.read(addr, part).ok()?,
                    }
                    at += len as usize;
                }
            }
        }
        Some(DiskStatus::Ok)
    }
}

impl Disk for MemoryDisk {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }
    fn read_only(&self) -> bool {
        self.read_only
    }
    fn can_discard(&self) -> bool {
        true
    }
    fn submit(&mut self, request: DiskRequest) {
        let mut inner = locked(&self.inner);
        inner.seen.push(request.op);
        match inner.held {
            true => inner.waiting.push_back(request),
            false => inner.carry_out(&self.memory, &request),
        }
    }
    fn completed(&mut self) -> Option<(u64, DiskStatus)> {
        locked(&self.inner).done.pop_front()
    }
    fn is_idle(&self) -> bool {
        locked(&self.inner).waiting.is_empty()
    }
    fn reader(&self) -> Arc<dyn DiskReader> {
        Arc::new(locked(&self.inner).bytes.clone())
    }
}
