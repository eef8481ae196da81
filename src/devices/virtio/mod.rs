//! virtio 1.2: transport, queues, devices.
//!
//! A device knows its requests; the transport knows how the driver reaches it. Rings are read in one place, `queue`.
pub mod blk; // block device
pub mod console; // console, and ports with names
pub mod mock; // a driver's side of a ring, for tests and fuzzing
pub mod net; // network device
pub mod queue; // the split virtqueue
pub mod rings; // a device's queues and their interrupts, as any thread may use them
pub mod rng; // entropy device
#[cfg(test)]
mod tests;
pub mod transport; // virtio over PCI

use crate::hypervisor::guest_errors::GuestErrors;
use crate::hypervisor::memory::GuestMemory;
use crate::hypervisor::state::{Section, StateError};
use std::sync::Arc;

use queue::{Broken, Chain};
use rings::Rings;

/// Number of chains that a device takes in one entry before other devices get their turn.
pub const CHAINS_PER_ENTRY: u32 = 512;

/// Feature of all devices: the driver supports this version of the specification (6.1).
pub const VIRTIO_F_VERSION_1: u64 = 1 << 32;
/// Feature of all devices: indirect descriptors.
pub const VIRTIO_F_INDIRECT_DESC: u64 = 1 << 28;
/// Feature of all devices: used_event and avail_event.
pub const VIRTIO_F_EVENT_IDX: u64 = 1 << 29;
/// Feature of all devices: a queue can be reset alone.
pub const VIRTIO_F_RING_RESET: u64 = 1 << 40;

/// Kind of a device: virtio 1.2 section 5, and the PCI class code under which the driver's bus lists it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kind {
    /// Device type of section 5.
    pub device_type: u16,
    /// PCI base class, sub-class, programming interface.
    pub class: (u8, u8, u8),
}

/// A virtio device without its transport.
///
/// Its methods run under the board's lock and never block. A reset that the driver asks for waits until the device is idle,
/// outside of the lock; the queues are dead meanwhile.
pub trait VirtioDevice: Send {
    /// Returns the name, such as `virtio-blk`, which is also the kind of its state.
    fn name(&self) -> &'static str;
    /// Returns the kind of the device.
    fn kind(&self) -> Kind;
    /// Returns the largest size of each queue.
    fn queue_sizes(&self) -> &[u16];
    /// Returns the features of this kind (bits 0 to 23 and 50 up). The transport adds its own.
    fn features(&self) -> u64;
    /// Returns the device-specific configuration as the driver would read it now.
    fn config(&self) -> Vec<u8>;
    /// Writes `data` at `offset` of the configuration for the driver. A write out of range or to a read-only field is
    /// dropped.
    fn write_config(&mut self, offset: usize, data: &[u8]);
    /// Notes that the driver is ready (DRIVER_OK) and has accepted `features`. Also called after `load`. It only stores
    /// them.
    fn activate(&mut self, features: u64);
    /// Serves `queue`, since the driver says that it has chains.
    fn notify(&mut self, queue: usize, queues: &mut Queues);
    /// Serves all queues, since a back end woke the device, the deadline has passed, or an entry was cut short.
    fn poll(&mut self, now_ns: u64, queues: &mut Queues);
    /// Returns when `poll` must be called even if nothing wakes the device.
    fn deadline_ns(&self) -> Option<u64> {
        None
    }
    /// Takes the rings, on which threads of the back end may complete requests by themselves. Is called once.
    fn attach(&mut self, rings: &Arc<Rings>) {
        let _ = rings;
    }
    /// Returns whether nothing of the guest's is with the host any more: no thread of the back end touches guest memory or
    /// the rings.
    fn is_idle(&self) -> bool {
        true
    }
    /// Returns whether no request of one queue is in flight.
    fn is_queue_idle(&self, queue: usize) -> bool {
        let _ = queue;
        true
    }
    /// Resets the idle device to the state after power-on.
    fn reset(&mut self);
    /// Resets one idle queue in the same way.
    fn reset_queue(&mut self, queue: usize);
    /// Returns the state, without queues and negotiation, which the transport saves.
    fn save(&self) -> Section;
    /// Restores a saved state. On an error the device is unchanged.
    fn load(&mut self, section: &Section) -> Result<(), StateError>;
}

/// The queues of a device, as it sees them in one entry.
pub struct Queues<'a> {
    /// The guest's memory.
    pub mem: &'a GuestMemory,
    rings: &'a Rings,
    errors: &'a GuestErrors,
    budget: u32,
    cut_short: bool,
    config_changed: bool,
}

impl<'a> Queues<'a> {
    /// Creates the queues for one entry into a device.
    pub fn new(rings: &'a Rings, errors: &'a GuestErrors) -> Queues<'a> {
        Queues { mem: rings.memory(), rings, errors, budget: CHAINS_PER_ENTRY, cut_short: false, config_changed: false }
    }

    /// Takes the next chain of `queue`. Returns `None` also when this entry has taken enough; then a poll follows soon.
    pub fn pop(&mut self, queue: usize) -> Option<Chain> {
        if self.budget == 0 {
            self.cut_short = true;
            return None;
        }
        let chain = self.rings.queue(queue).pop(self.mem)?;
        self.budget -= 1;
        Some(chain)
    }
    /// Completes the chain at `head`, with the number of bytes written to its buffers from the first on.
    pub fn complete(&mut self, queue: usize, head: u16, written: u32) {
        self.complete_with(queue, head, written, |_| ());
    }
    /// The same, where `answer` writes the last of the bytes. On a queue that is not live any more nothing is written.
    pub fn complete_with(&mut self, queue: usize, head: u16, written: u32, answer: impl FnOnce(&GuestMemory)) {
        self.rings.complete(queue, head, written, answer);
    }
    /// Undoes the last `count` calls of `pop`.
    pub fn rewind(&mut self, queue: usize, count: u16) {
        self.rings.queue(queue).rewind(count);
    }
    /// Returns a chain that was in flight when state was saved.
    pub fn chain_at(&mut self, queue: usize, head: u16) -> Option<Chain> {
        self.rings.queue(queue).chain_at(self.mem, head)
    }
    /// Returns whether the driver has given all the buffers that it can give.
    pub fn is_full(&self, queue: usize) -> bool {
        self.rings.queue(queue).is_full(self.mem)
    }
    /// Returns whether this entry has taken all the chains that it may.
    pub fn is_spent(&self) -> bool {
        self.budget == 0
    }
    /// Returns whether the queue is enabled and not broken.
    pub fn is_live(&self, queue: usize) -> bool {
        self.rings.queue(queue).is_live()
    }
    /// Breaks the queue: the driver must reset the device.
    pub fn fail(&mut self, queue: usize, why: Broken) {
        self.rings.queue(queue).fail(why);
    }
    /// Reports that the driver broke a rule of the device.
    pub fn report(&self, what: &dyn std::fmt::Display) {
        self.errors.report(what);
    }
    /// Requests a poll soon, since there is more work than one entry may do.
    pub fn come_again(&mut self) {
        self.cut_short = true;
    }
    /// Notes that the device's configuration changed.
    pub fn config_changed(&mut self) {
        self.config_changed = true;
    }
    /// Returns whether a `pop` was refused because of the limit, and whether the configuration changed.
    pub fn outcome(&self) -> (bool, bool) {
        (self.cut_short, self.config_changed)
    }
}
