//! The queues of a device and the interrupts of their completions, as any thread may use them.
//!
//! The transport and its device take chains under the board's lock. A request ends on the thread that did its I/O: that
//! completes the chain here and sends the queue's MSI-X message, so that no completion waits for the board's lock or for the
//! board's thread. INTx has a register of its causes, which belongs to the transport; there the board is woken and does it.
//!
//! Locks, each held for one step: the MSI-X table, then a queue. Both are taken after the board's lock (or without it); that of
//! the interrupt controllers comes after the table's.
//!
//! **Hostile guest**: a queue that the driver resets is dead from that moment on, and what ends later does not touch its
//! rings. The driver sees the reset as done once nothing of it is in flight.

use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Mutex, MutexGuard};

use super::queue::Queue;
use super::transport::NO_VECTOR;
use crate::devices::pci::Messages;
use crate::hypervisor::memory::GuestMemory;
use crate::hypervisor::waking::Waker;

/// The queues of one device.
pub struct Rings {
    mem: GuestMemory,
    queues: Vec<Mutex<Queue>>,
    /// The MSI-X vector of each queue, as the transport's registers have it.
    vectors: Vec<AtomicU16>,
    messages: Messages,
    waker: Waker,
    /// Whether the driver is ready, and guest memory may be touched.
    open: AtomicBool,
}

impl Rings {
    /// Creates disabled queues of at most these sizes. `waker` wakes the device that they belong to.
    pub fn new(sizes: &[u16], mem: GuestMemory, messages: Messages, waker: Waker) -> Rings {
        Rings {
            mem,
            queues: sizes.iter().map(|&size| Mutex::new(Queue::new(size))).collect(),
            vectors: sizes.iter().map(|_| AtomicU16::new(NO_VECTOR)).collect(),
            messages,
            waker,
            open: AtomicBool::new(false),
        }
    }

    /// Returns the number of queues.
    pub fn len(&self) -> usize {
        self.queues.len()
    }

    /// Returns guest memory.
    pub fn memory(&self) -> &GuestMemory {
        &self.mem
    }

    /// Returns a queue, which is locked meanwhile.
    pub fn queue(&self, queue: usize) -> MutexGuard<'_, Queue> {
        self.queues[queue].lock().expect("no panic happens under this lock")
    }

    /// Sets whether requests may be completed, and the vector of each queue.
    pub fn set(&self, open: bool, vectors: &[u16]) {
        for (own, &vector) in self.vectors.iter().zip(vectors) {
            own.store(vector, Ordering::Relaxed);
        }
        self.open.store(open, Ordering::Release);
    }

    /// Returns whether requests may be completed. If not, the transport asks its device later.
    pub fn is_open(&self) -> bool {
        self.open.load(Ordering::Acquire)
    }

    /// Completes a chain, with the number of bytes written to its buffers. `answer` writes the last of them. Does nothing on
    /// a queue that is not live any more.
    pub fn complete(&self, queue: usize, head: u16, written: u32, answer: impl FnOnce(&GuestMemory)) {
        let mut ring = self.queue(queue);
        if ring.is_live() {
            answer(&self.mem);
            ring.push_used(&self.mem, head, written);
        }
    }

    /// Interrupts the driver for what was completed on `queue`, if it wants that.
    pub fn interrupt(&self, queue: usize) {
        let sent = self.messages.send(|| {
            let wanted = self.queue(queue).take_interrupt(&self.mem);
            wanted.then(|| self.vectors[queue].load(Ordering::Relaxed))
        });
        // The board also finishes a reset that waited for the last request, and tells the driver of a broken queue.
        if !sent || !self.queue(queue).is_live() {
            self.waker.wake();
        }
    }
}
