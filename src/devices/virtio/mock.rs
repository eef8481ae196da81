//! A driver's side of a virtqueue, for tests and fuzzing: builds chains, also wrong ones, and reads what comes back.

use super::queue::{DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE, Queue};
use crate::hypervisor::memory::{GuestAddr, GuestMemory};

/// A descriptor as the driver writes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Desc {
    /// Guest address of the buffer.
    pub addr: u64,
    /// Its bytes.
    pub len: u32,
    /// `DESC_F_*`.
    pub flags: u16,
    /// Next of the chain.
    pub next: u16,
}

impl Desc {
    /// A buffer that the device reads.
    pub fn readable(addr: u64, len: u32) -> Desc {
        Desc { addr, len, flags: 0, next: 0 }
    }
    /// A buffer that the device writes.
    pub fn writable(addr: u64, len: u32) -> Desc {
        Desc { addr, len, flags: DESC_F_WRITE, next: 0 }
    }
    fn bytes(self) -> [u8; 16] {
        let mut raw = [0u8; 16];
        raw[..8].copy_from_slice(&self.addr.to_le_bytes());
        raw[8..12].copy_from_slice(&self.len.to_le_bytes());
        raw[12..14].copy_from_slice(&self.flags.to_le_bytes());
        raw[14..].copy_from_slice(&self.next.to_le_bytes());
        raw
    }
}

/// The driver of one ring. Descriptors are handed out in order and wrap around: keep fewer in flight than the ring has.
pub struct MockDriver {
    mem: GuestMemory,
    size: u16,
    base: u64,
    next_desc: u16,
    avail: u16,
    used: u16,
}

impl MockDriver {
    /// A ring of `size` entries at `base`, which must be 16-byte aligned and have [`MockDriver::bytes`] of memory.
    pub fn new(mem: &GuestMemory, base: u64, size: u16) -> MockDriver {
        mem.fill(GuestAddr(base), 0, Self::bytes(size) as usize).expect("the ring is guest memory");
        MockDriver { mem: mem.clone(), size, base, next_desc: 0, avail: 0, used: 0 }
    }

    /// Bytes that a ring of `size` entries takes.
    pub fn bytes(size: u16) -> u64 {
        16 * u64::from(size) + 16 + 2 * u64::from(size) + 16 + 8 * u64::from(size) + 16
    }
    /// Entries.
    pub fn size(&self) -> u16 {
        self.size
    }
    /// Address of the descriptor table.
    pub fn desc_addr(&self) -> u64 {
        self.base
    }
    /// Address of the driver ring.
    pub fn driver_addr(&self) -> u64 {
        self.base + 16 * u64::from(self.size)
    }
    /// Address of the device ring.
    pub fn device_addr(&self) -> u64 {
        (self.driver_addr() + 6 + 2 * u64::from(self.size) + 15) & !15
    }

    /// A device-side queue on this ring, enabled.
    pub fn queue(&self, event_idx: bool, indirect: bool) -> Queue {
        use super::queue::Part;
        let mut queue = Queue::new(self.size);
        queue.set_part(Part::Desc, self.desc_addr());
        queue.set_part(Part::Driver, self.driver_addr());
        queue.set_part(Part::Device, self.device_addr());
        queue.negotiate(event_idx, indirect);
        queue.enable(&self.mem);
        queue
    }

    /// Writes descriptor `index` as it is.
    pub fn set_desc(&self, index: u16, desc: Desc) {
        self.put(self.desc_addr() + 16 * u64::from(index), &desc.bytes());
    }
    /// Writes an indirect table at `addr` as it is.
    pub fn set_table(&self, addr: u64, table: &[Desc]) {
        for (i, desc) in table.iter().enumerate() {
            self.put(addr + 16 * i as u64, &desc.bytes());
        }
    }

    fn put(&self, addr: u64, bytes: &[u8]) {
        self.mem.write(GuestAddr(addr), bytes).expect("the ring is guest memory");
    }

    /// Publishes `head`, whatever it is.
    pub fn publish(&mut self, head: u16) {
        self.put(self.driver_addr() + 4 + 2 * u64::from(self.avail % self.size), &head.to_le_bytes());
        self.avail = self.avail.wrapping_add(1);
        self.set_avail_idx(self.avail);
    }
    /// Writes avail.idx as it is.
    pub fn set_avail_idx(&self, idx: u16) {
        self.mem.store_release_u16(GuestAddr(self.driver_addr() + 2), idx).expect("the ring is guest memory");
    }
    /// Writes avail.flags.
    pub fn set_avail_flags(&self, flags: u16) {
        self.put(self.driver_addr(), &flags.to_le_bytes());
    }
    /// Asks for an interrupt when the device's index passes `idx` (EVENT_IDX).
    pub fn set_used_event(&self, idx: u16) {
        self.put(self.driver_addr() + 4 + 2 * u64::from(self.size), &idx.to_le_bytes());
    }
    /// The index after which the device wants a notification (EVENT_IDX).
    pub fn avail_event(&self) -> u16 {
        self.mem.read_le(GuestAddr(self.device_addr() + 4 + 8 * u64::from(self.size))).expect("the ring is guest memory")
    }
    /// How many chains were published.
    pub fn avail_idx(&self) -> u16 {
        self.avail
    }

    /// Links `buffers` into a chain, publishes it and returns its head.
    pub fn add(&mut self, buffers: &[Desc]) -> u16 {
        let head = self.next_desc;
        for (i, &desc) in buffers.iter().enumerate() {
            let index = self.next_desc;
            self.next_desc = (index + 1) % self.size;
            let last = i + 1 == buffers.len();
            let flags = if last { desc.flags } else { desc.flags | DESC_F_NEXT };
            self.set_desc(index, Desc { flags, next: if last { 0 } else { self.next_desc }, ..desc });
        }
        self.publish(head);
        head
    }

    /// The same through an indirect table at `table`.
    pub fn add_indirect(&mut self, table: u64, buffers: &[Desc]) -> u16 {
        let linked: Vec<Desc> = buffers
            .iter()
            .enumerate()
            .map(|(i, &desc)| match i + 1 == buffers.len() {
                true => desc,
                false => Desc { flags: desc.flags | DESC_F_NEXT, next: i as u16 + 1, ..desc },
            })
            .collect();
        self.set_table(table, &linked);
        self.add(&[Desc { addr: table, len: 16 * buffers.len() as u32, flags: DESC_F_INDIRECT, next: 0 }])
    }

    /// The next `(head, bytes written)` that the device gave back.
    pub fn take_used(&mut self) -> Option<(u16, u32)> {
        let idx = self.mem.load_acquire_u16(GuestAddr(self.device_addr() + 2)).expect("the ring is guest memory");
        if idx == self.used {
            return None;
        }
        let slot = self.device_addr() + 4 + 8 * u64::from(self.used % self.size);
        self.used = self.used.wrapping_add(1);
        let element: u64 = self.mem.read_le(GuestAddr(slot)).expect("the ring is guest memory");
        Some((element as u16, (element >> 32) as u32))
    }
}
