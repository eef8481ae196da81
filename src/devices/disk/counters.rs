//! Counters of a disk since the machine was built. The disk's threads count, and other threads read.

use std::sync::atomic::{AtomicU64, Ordering};

use super::{DiskOp, DiskRequest, DiskStatus};

/// Counts of requests that have ended, and of the bytes that they moved.
#[derive(Debug, Default)]
pub struct DiskCounters {
    read_bytes: AtomicU64,
    read_ops: AtomicU64,
    written_bytes: AtomicU64,
    write_ops: AtomicU64,
    flush_ops: AtomicU64,
    discard_ops: AtomicU64,
    failed_ops: AtomicU64,
}

impl DiskCounters {
    /// Counts a request that has ended. A failed one moved no bytes that the guest may rely on.
    pub fn count(&self, request: &DiskRequest, status: DiskStatus) {
        let add = |counter: &AtomicU64, by: u64| {
            counter.fetch_add(by, Ordering::Relaxed);
        };
        if status != DiskStatus::Ok {
            return add(&self.failed_ops, 1);
        }
        match request.op {
            DiskOp::Read => {
                add(&self.read_bytes, request.bytes());
                add(&self.read_ops, 1);
            }
            DiskOp::Write | DiskOp::WriteZeroes { .. } => {
                add(&self.written_bytes, request.bytes());
                add(&self.write_ops, 1);
            }
            DiskOp::Flush => add(&self.flush_ops, 1),
            DiskOp::Discard { .. } => add(&self.discard_ops, 1),
        }
    }

    /// Returns each count with its name. Zeros that are written count as writes.
    pub fn read(&self) -> [(&'static str, u64); 7] {
        let value = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        [
            ("read-bytes", value(&self.read_bytes)),
            ("read-ops", value(&self.read_ops)),
            ("written-bytes", value(&self.written_bytes)),
            ("write-ops", value(&self.write_ops)),
            ("flush-ops", value(&self.flush_ops)),
            ("discard-ops", value(&self.discard_ops)),
            ("failed-ops", value(&self.failed_ops)),
        ]
    }
}
