//! virtio 1.2: transport, queues, devices.
//!
//! A device knows its requests; the transport knows how the driver reaches it. Rings are read in one place, `queue`.
pub mod blk; // block device
pub mod console; // console with one port
pub mod mock; // a driver's side of a ring, for tests and fuzzing
pub mod net; // network device
pub mod queue; // the split virtqueue
pub mod rng; // entropy device
#[cfg(test)]
mod tests;
pub mod transport; // virtio over PCI

use crate::hypervisor::memory::GuestMemory;
use crate::hypervisor::state::{Section, StateError};
use queue::{Broken, Chain, Queue};

/// Chains that a device takes in one entry before it lets others have the board.
pub const CHAINS_PER_ENTRY: u32 = 512;

/// Any device: the driver understands this version of the specification (6.1).
pub const VIRTIO_F_VERSION_1: u64 = 1 << 32;
/// Any device: indirect descriptors.
pub const VIRTIO_F_INDIRECT_DESC: u64 = 1 << 28;
/// Any device: used_event and avail_event.
pub const VIRTIO_F_EVENT_IDX: u64 = 1 << 29;
/// Any device: a queue can be reset alone.
pub const VIRTIO_F_RING_RESET: u64 = 1 << 40;

/// What kind of device: virtio 1.2 section 5, and the PCI class code a driver's bus lists it under.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kind {
    /// Device type of section 5.
    pub device_type: u16,
    /// PCI base class, sub-class, programming interface.
    pub class: (u8, u8, u8),
}

/// A virtio device without its transport.
///
/// Called under the board's lock; never blocks, except that `reset` and `reset_queue` wait for host I/O in flight.
pub trait VirtioDevice: Send {
    /// `virtio-blk` and so on, the kind of its state.
    fn name(&self) -> &'static str;
    /// What kind of device.
    fn kind(&self) -> Kind;
    /// The largest size of each queue.
    fn queue_sizes(&self) -> &[u16];
    /// Features of this kind (bits 0 to 23 and 50 up); the transport adds its own.
    fn features(&self) -> u64;
    /// The device-specific configuration as the driver reads it now.
    fn config(&self) -> Vec<u8>;
    /// The driver writes `data` at `offset` of it; out of range or read-only is dropped.
    fn write_config(&mut self, offset: usize, data: &[u8]);
    /// The driver is ready (DRIVER_OK) and has accepted `features`; also after `load`. Only remembers them.
    fn activate(&mut self, features: u64);
    /// The driver says that `queue` has something.
    fn notify(&mut self, queue: usize, queues: &mut Queues);
    /// A back end woke the device, time has come, or an entry was cut short: serve all queues.
    fn poll(&mut self, now_ns: u64, queues: &mut Queues);
    /// When `poll` must be called without anybody waking the device.
    fn deadline_ns(&self) -> Option<u64> {
        None
    }
    /// Back to the state after power-on; nothing of the old driver's is touched any more when it returns.
    fn reset(&mut self);
    /// The same for one queue.
    fn reset_queue(&mut self, queue: usize);
    /// The state, without queues and negotiation, which the transport saves.
    fn save(&self) -> Section;
    /// Takes over a saved state, or refuses it and is unchanged.
    fn load(&mut self, section: &Section) -> Result<(), StateError>;
}

/// The queues of a device, as it sees them for one entry.
pub struct Queues<'a> {
    /// The guest's memory.
    pub mem: &'a GuestMemory,
    queues: &'a mut [Queue],
    budget: u32,
    cut_short: bool,
    config_changed: bool,
}

impl<'a> Queues<'a> {
    /// For one entry into a device.
    pub fn new(mem: &'a GuestMemory, queues: &'a mut [Queue]) -> Queues<'a> {
        Queues { mem, queues, budget: CHAINS_PER_ENTRY, cut_short: false, config_changed: false }
    }

    /// The next chain of `queue`. `None` also when this entry has taken enough; then a poll follows soon.
    pub fn pop(&mut self, queue: usize) -> Option<Chain> {
        if self.budget == 0 {
            self.cut_short = true;
            return None;
        }
        let chain = self.queues[queue].pop(self.mem)?;
        self.budget -= 1;
        Some(chain)
    }
    /// Gives the chain at `head` back, with the bytes written to its buffers from the first on.
    pub fn complete(&mut self, queue: usize, head: u16, written: u32) {
        self.queues[queue].push_used(self.mem, head, written);
    }
    /// Undoes the last `count` `pop`s.
    pub fn rewind(&mut self, queue: usize, count: u16) {
        self.queues[queue].rewind(count);
    }
    /// A chain that was in flight when state was saved.
    pub fn chain_at(&mut self, queue: usize, head: u16) -> Option<Chain> {
        self.queues[queue].chain_at(self.mem, head)
    }
    /// Whether the driver has given all buffers that it can give.
    pub fn is_full(&self, queue: usize) -> bool {
        self.queues[queue].is_full(self.mem)
    }
    /// Whether this entry has taken all that it may.
    pub fn is_spent(&self) -> bool {
        self.budget == 0
    }
    /// Whether the queue is enabled and not broken.
    pub fn is_live(&self, queue: usize) -> bool {
        self.queues[queue].is_live()
    }
    /// Breaks the queue: the driver is asked to reset the device.
    pub fn fail(&mut self, queue: usize, why: Broken) {
        self.queues[queue].fail(why);
    }
    /// There is more to do than one entry may: a poll follows soon.
    pub fn come_again(&mut self) {
        self.cut_short = true;
    }
    /// The device's configuration is not what it was.
    pub fn config_changed(&mut self) {
        self.config_changed = true;
    }
    /// Whether a `pop` was refused for taking too many; whether the configuration changed.
    pub fn outcome(&self) -> (bool, bool) {
        (self.cut_short, self.config_changed)
    }
}
