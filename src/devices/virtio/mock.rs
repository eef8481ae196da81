//! A driver's side of a virtqueue, for tests and fuzzing: it builds chains, also invalid ones, and reads the
//! completions.

use super::queue::{DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE, Queue};
use super::transport::{
    ACKNOWLEDGE, CAP_COMMON, CAP_DEVICE, CAP_ID_VENDOR, CAP_ISR, CAP_NOTIFY, CAP_PCI, DRIVER, DRIVER_OK, FEATURES_OK, VirtioPci,
};
use crate::devices::pci::PciDevice;
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
    /// Index of the chain's next descriptor.
    pub next: u16,
}

impl Desc {
    /// Creates a buffer that the device reads.
    pub fn readable(addr: u64, len: u32) -> Desc {
        Desc { addr, len, flags: 0, next: 0 }
    }
    /// Creates a buffer that the device writes.
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
    /// Creates a ring of `size` entries at `base`, which must be 16-byte aligned and have [`MockDriver::bytes`] of
    /// memory.
    pub fn new(mem: &GuestMemory, base: u64, size: u16) -> MockDriver {
        mem.fill(GuestAddr(base), 0, Self::bytes(size) as usize).expect("the ring is guest memory");
        MockDriver { mem: mem.clone(), size, base, next_desc: 0, avail: 0, used: 0 }
    }

    /// Returns the bytes that a ring of `size` entries takes.
    pub fn bytes(size: u16) -> u64 {
        16 * u64::from(size) + 16 + 2 * u64::from(size) + 16 + 8 * u64::from(size) + 16
    }
    /// Returns the number of entries.
    pub fn size(&self) -> u16 {
        self.size
    }
    /// Returns the address of the descriptor table.
    pub fn desc_addr(&self) -> u64 {
        self.base
    }
    /// Returns the address of the driver ring.
    pub fn driver_addr(&self) -> u64 {
        self.base + 16 * u64::from(self.size)
    }
    /// Returns the address of the device ring.
    pub fn device_addr(&self) -> u64 {
        (self.driver_addr() + 6 + 2 * u64::from(self.size) + 15) & !15
    }

    /// Returns the device's queue on this ring, enabled.
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

    /// Writes descriptor `index` without any check.
    pub fn set_desc(&self, index: u16, desc: Desc) {
        self.put(self.desc_addr() + 16 * u64::from(index), &desc.bytes());
    }
    /// Writes an indirect table at `addr` without any check.
    pub fn set_table(&self, addr: u64, table: &[Desc]) {
        for (i, desc) in table.iter().enumerate() {
            self.put(addr + 16 * i as u64, &desc.bytes());
        }
    }

    fn put(&self, addr: u64, bytes: &[u8]) {
        self.mem.write(GuestAddr(addr), bytes).expect("the ring is guest memory");
    }

    /// Publishes `head`, whether or not it is valid.
    pub fn publish(&mut self, head: u16) {
        self.put(self.driver_addr() + 4 + 2 * u64::from(self.avail % self.size), &head.to_le_bytes());
        self.avail = self.avail.wrapping_add(1);
        self.set_avail_idx(self.avail);
    }
    /// Writes avail.idx without any check.
    pub fn set_avail_idx(&self, idx: u16) {
        self.mem.store_release_u16(GuestAddr(self.driver_addr() + 2), idx).expect("the ring is guest memory");
    }
    /// Writes avail.flags.
    pub fn set_avail_flags(&self, flags: u16) {
        self.put(self.driver_addr(), &flags.to_le_bytes());
    }
    /// Requests an interrupt when the device's index passes `idx` (EVENT_IDX).
    pub fn set_used_event(&self, idx: u16) {
        self.put(self.driver_addr() + 4 + 2 * u64::from(self.size), &idx.to_le_bytes());
    }
    /// Returns the index after which the device wants a notification (EVENT_IDX).
    pub fn avail_event(&self) -> u16 {
        self.mem.read_le(GuestAddr(self.device_addr() + 4 + 8 * u64::from(self.size))).expect("the ring is guest memory")
    }
    /// Returns the number of chains that were published.
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

    /// Adds a chain through an indirect table at `table`.
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

    /// Takes the next `(head, bytes written)` that the device completed.
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

/// Location of a structure of the device: BAR, offset, bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Structure {
    /// Number of the BAR.
    pub bar: u8,
    /// Offset in it.
    pub offset: u64,
    /// Length in bytes.
    pub len: u32,
}

/// A driver of a virtio PCI function: it finds the capabilities, negotiates and sets up rings.
pub struct PciDriver {
    /// The function.
    pub function: VirtioPci,
    /// Guest memory.
    pub mem: GuestMemory,
    /// Common configuration.
    pub common: Structure,
    /// Notifications.
    pub notify: Structure,
    /// ISR status.
    pub isr: Structure,
    /// Device-specific configuration. It is empty if the device has none.
    pub device: Structure,
    /// Offset of the window capability in configuration space.
    pub window_cap: u16,
    notify_multiplier: u64,
    next_ring: u64,
}

/// Address of the messages that [`PciDriver::enable_msix`] programs; vector `i` sends `MSIX_DATA + i`.
pub const MSIX_ADDRESS: u64 = 0xfee0_0000;
/// Data of the message of vector 0.
pub const MSIX_DATA: u32 = 0x40;

impl PciDriver {
    /// Enables the function and reads its capabilities. Rings will be put from `rings` on.
    pub fn probe(mut function: VirtioPci, mem: &GuestMemory, rings: u64) -> PciDriver {
        function.config_mut().place_bar(0, 0xc000_0000);
        function.config_mut().place_bar(1, 0xc001_0000);
        function.config_write(4, 2, 0x6);
        let mut driver = PciDriver {
            function,
            mem: mem.clone(),
            common: Structure::default(),
            notify: Structure::default(),
            isr: Structure::default(),
            device: Structure::default(),
            window_cap: 0,
            notify_multiplier: 0,
            next_ring: rings,
        };
        let mut at = driver.function.config_read(0x34, 1) as u16;
        while at != 0 {
            driver.read_capability(at);
            at = driver.function.config_read(at + 1, 1) as u16;
        }
        driver
    }

    fn read_capability(&mut self, at: u16) {
        if self.function.config_read(at, 1) as u8 != CAP_ID_VENDOR {
            return;
        }
        let found = Structure {
            bar: self.function.config_read(at + 4, 1) as u8,
            offset: u64::from(self.function.config_read(at + 8, 4)),
            len: self.function.config_read(at + 12, 4),
        };
        match self.function.config_read(at + 3, 1) as u8 {
            CAP_COMMON => self.common = found,
            CAP_NOTIFY => {
                self.notify = found;
                self.notify_multiplier = u64::from(self.function.config_read(at + 16, 4));
            }
            CAP_ISR => self.isr = found,
            CAP_DEVICE => self.device = found,
            CAP_PCI => self.window_cap = at,
            _ => {}
        }
    }

    /// Puts the rings of the next [`PciDriver::setup_queue`] calls from `rings` on.
    pub fn restart_rings(&mut self, rings: u64) {
        self.next_ring = rings;
    }

    /// Reads a BAR as the root does.
    pub fn bar_read(&mut self, bar: u8, offset: u64, width: u8) -> u64 {
        match self.function.config().msix_read(bar, offset, width) {
            Some(value) => value,
            None => self.function.bar_read(bar, offset, width),
        }
    }
    /// Writes a BAR as the root does.
    pub fn bar_write(&mut self, bar: u8, offset: u64, width: u8, value: u64) {
        if !self.function.config_mut().msix_write(bar, offset, width, value) {
            self.function.bar_write(bar, offset, width, value);
        }
    }
    /// Reads a common register.
    pub fn common_read(&mut self, offset: u64, width: u8) -> u64 {
        self.bar_read(self.common.bar, self.common.offset + offset, width)
    }
    /// Writes a common register.
    pub fn common_write(&mut self, offset: u64, width: u8, value: u64) {
        self.bar_write(self.common.bar, self.common.offset + offset, width, value);
    }
    /// Reads the device-specific configuration.
    pub fn device_read(&mut self, offset: u64, width: u8) -> u64 {
        self.bar_read(self.device.bar, self.device.offset + offset, width)
    }
    /// Writes the device-specific configuration.
    pub fn device_write(&mut self, offset: u64, width: u8, value: u64) {
        self.bar_write(self.device.bar, self.device.offset + offset, width, value);
    }
    /// Returns the device status.
    pub fn status(&mut self) -> u8 {
        self.common_read(0x14, 1) as u8
    }
    /// Writes the device status.
    pub fn set_status(&mut self, status: u8) {
        self.common_write(0x14, 1, u64::from(status));
    }
    /// Reads and thereby clears the ISR.
    pub fn take_isr(&mut self) -> u8 {
        self.bar_read(self.isr.bar, self.isr.offset, 1) as u8
    }

    /// Resets the device and negotiates `wanted` of the offered features. Returns the agreed ones.
    pub fn negotiate(&mut self, wanted: u64) -> u64 {
        self.set_status(0);
        self.set_status(ACKNOWLEDGE);
        self.set_status(ACKNOWLEDGE | DRIVER);
        let mut offered = 0;
        for half in 0..2 {
            self.common_write(0x00, 4, half);
            offered |= self.common_read(0x04, 4) << (32 * half);
        }
        let features = offered & wanted;
        for half in 0..2 {
            self.common_write(0x08, 4, half);
            self.common_write(0x0c, 4, features >> (32 * half) & 0xffff_ffff);
        }
        self.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK);
        features
    }

    /// Enables queue `index` with `size` entries (0: the size that the device offers) and an MSI-X vector.
    pub fn setup_queue(&mut self, index: u16, size: u16, vector: u16) -> MockDriver {
        self.common_write(0x16, 2, u64::from(index));
        if size != 0 {
            self.common_write(0x18, 2, u64::from(size));
        }
        let size = self.common_read(0x18, 2) as u16;
        let ring = MockDriver::new(&self.mem, self.next_ring, size);
        self.next_ring += (MockDriver::bytes(size) + 15) & !15;
        self.common_write(0x1a, 2, u64::from(vector));
        self.common_write(0x20, 8, ring.desc_addr());
        self.common_write(0x28, 8, ring.driver_addr());
        self.common_write(0x30, 4, ring.device_addr() & 0xffff_ffff);
        self.common_write(0x34, 4, ring.device_addr() >> 32);
        self.common_write(0x1c, 2, 1);
        ring
    }

    /// Sets DRIVER_OK, and makes the poll that the device requests.
    pub fn driver_ok(&mut self) {
        self.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
        self.function.poll(0);
    }

    /// Notifies queue `index` and makes the polls that the device requests at once.
    pub fn kick(&mut self, index: u16) {
        self.common_write(0x16, 2, u64::from(index));
        let at = self.common_read(0x1e, 2) * self.notify_multiplier;
        self.bar_write(self.notify.bar, self.notify.offset + at, 2, u64::from(index));
        for _ in 0..4 {
            if self.function.deadline_ns() == Some(0) {
                self.function.poll(0);
            }
        }
    }

    /// Enables MSI-X with all vectors unmasked.
    pub fn enable_msix(&mut self) {
        for vector in 0..u64::from(self.function.config().msix_vectors()) {
            self.bar_write(1, 16 * vector, 8, MSIX_ADDRESS);
            self.bar_write(1, 16 * vector + 8, 4, u64::from(MSIX_DATA) + vector);
            self.bar_write(1, 16 * vector + 12, 4, 0);
        }
        let mut at = self.function.config_read(0x34, 1) as u16;
        while self.function.config_read(at, 1) != 0x11 {
            at = self.function.config_read(at + 1, 1) as u16;
        }
        self.function.config_write(at + 2, 2, 0x8000);
    }
}
