//! Split virtqueue: virtio 1.2 section 2.7, with indirect descriptors (2.7.5.3) and EVENT_IDX (2.7.7, 2.7.10).
//!
//! The three parts, little-endian: the descriptor table (16 bytes per entry: address, length, flags, next), the driver
//! ring (flags, idx, ring of 2 bytes per entry, used_event), the device ring (flags, idx, ring of 8 bytes per entry,
//! avail_event).
//!
//! **Not modelled**: packed rings, in-order use, notification data. None is offered.
//!
//! **Hostile guest**: everything read from a ring is checked here, once, so that a device only sees buffers that are
//! guest memory. A ring that breaks a rule breaks the queue (`Queue::broken`), and the transport asks for a reset.
//!
//! | action of the guest | bound |
//! |---|---|
//! | ring outside of memory, misaligned, or of an odd size | refused when the queue is enabled |
//! | avail.idx ahead by more than the ring holds | `IndexJump` |
//! | avail.idx that another CPU moves while we serve | a budget for each entry into the device, then a new poll |
//! | the same head again and again without waiting for completion | in flight is at most the ring's size: `TooManyInFlight` |
//! | head, next, or indirect next out of the table | `HeadOutside`, `NextOutside` |
//! | a loop of descriptors | at most as many steps as the table has entries: `Loop` |
//! | indirect in indirect, indirect with next, odd or huge table | `IndirectMisused` |
//! | a buffer outside of memory, or to be written in read-only memory | `BufferOutside` |
//! | device-readable after device-writable | `ReadableAfterWritable` |
//! | more than 4 GiB in one chain | `ChainTooLong` |
//! | zero-length buffers | dropped from the chain |
//! | rings or tables that overlap, or that change while we read | each field is read once; nothing is read again |
//!
//! **Saved state**: size, addresses, indices; chains in flight are saved by the device as their heads.

use std::sync::atomic::{Ordering, fence};

use crate::hypervisor::memory::{GuestAddr, GuestMemory};

/// Length of the longest indirect table that is accepted.
pub const MAX_INDIRECT: u32 = 1024;
/// Size of the largest ring that the split layout allows.
pub const MAX_SIZE: u16 = 32768;

/// Descriptor flag: the chain continues at `next`.
pub const DESC_F_NEXT: u16 = 1;
/// Descriptor flag: the device writes to the buffer.
pub const DESC_F_WRITE: u16 = 2;
/// Descriptor flag: the buffer is a table of descriptors.
pub const DESC_F_INDIRECT: u16 = 4;
/// Driver ring flag: the driver wants no interrupt.
pub const AVAIL_F_NO_INTERRUPT: u16 = 1;

/// Reason why a queue can no longer be served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error, serde::Serialize, serde::Deserialize)]
pub enum Broken {
    /// A part of the ring is not (writable) guest memory, or is misaligned.
    #[error("a ring is misaligned or outside guest memory")]
    RingOutside,
    /// The driver's index is further ahead than the ring holds.
    #[error("avail.idx is further ahead than the ring holds")]
    IndexJump,
    /// More chains in flight than the ring holds.
    #[error("more chains in flight than the ring holds")]
    TooManyInFlight,
    /// The head is no index of the descriptor table.
    #[error("a head is outside of the descriptor table")]
    HeadOutside,
    /// A next is no index of its table.
    #[error("a descriptor's next is outside of its table")]
    NextOutside,
    /// The chain has more steps than its table has entries.
    #[error("a descriptor chain loops")]
    Loop,
    /// An indirect descriptor where none may be, or of an impossible length.
    #[error("an indirect descriptor is misused")]
    IndirectMisused,
    /// A buffer is not guest memory.
    #[error("a buffer is outside guest memory")]
    BufferOutside,
    /// A device-readable buffer follows a device-writable one.
    #[error("a device-readable buffer follows a device-writable one")]
    ReadableAfterWritable,
    /// The chain's buffers are 4 GiB or more.
    #[error("a chain is longer than 4 GiB")]
    ChainTooLong,
    /// The chain does not have the form of the device's requests.
    #[error("a request has no room for its answer")]
    BadRequest,
}

/// A buffer of the guest. It has been checked to be guest memory and is never empty.
pub type Segment = (GuestAddr, u32);

/// One request of the driver: the buffers to read, then those to write.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Chain {
    /// Index of the first descriptor, which names the chain on completion.
    pub head: u16,
    /// Buffers that the device reads.
    pub readable: Vec<Segment>,
    /// Buffers that the device writes.
    pub writable: Vec<Segment>,
}

/// Returns the bytes in `segments`. It is below 4 GiB for those of a chain.
pub fn total_bytes(segments: &[Segment]) -> u64 {
    segments.iter().map(|&(_, len)| u64::from(len)).sum()
}

/// Returns the part of `segments` from `skip` bytes on, at most `len` bytes.
pub fn slice(segments: &[Segment], mut skip: u64, mut len: u64) -> Vec<Segment> {
    let mut part = Vec::new();
    for &(addr, bytes) in segments {
        let bytes = u64::from(bytes);
        if skip >= bytes {
            skip -= bytes;
            continue;
        }
        let take = (bytes - skip).min(len);
        if take == 0 {
            break;
        }
        part.push((GuestAddr(addr.0 + skip), take as u32));
        len -= take;
        skip = 0;
    }
    part
}

/// Copies as much as fits from `segments`, from `skip` bytes on. Returns the number of bytes copied.
pub fn copy_from(mem: &GuestMemory, segments: &[Segment], skip: u64, buf: &mut [u8]) -> usize {
    let mut done = 0;
    for (addr, bytes) in slice(segments, skip, buf.len() as u64) {
        let end = done + bytes as usize;
        if mem.read(addr, &mut buf[done..end]).is_err() {
            break;
        }
        done = end;
    }
    done
}

/// Copies as much of `data` as fits into `segments`, from `skip` bytes on. Returns the number of bytes copied.
pub fn copy_to(mem: &GuestMemory, segments: &[Segment], skip: u64, data: &[u8]) -> usize {
    let mut done = 0;
    for (addr, bytes) in slice(segments, skip, data.len() as u64) {
        let end = done + bytes as usize;
        if mem.write(addr, &data[done..end]).is_err() {
            break;
        }
        done = end;
    }
    done
}

/// The device's side of a virtqueue.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Queue {
    max_size: u16,
    size: u16,
    enabled: bool,
    /// Guest addresses of descriptor table, driver ring and device ring.
    desc: u64,
    driver: u64,
    device: u64,
    next_avail: u16,
    next_used: u16,
    /// Value of `next_used` at the last decision about an interrupt.
    signalled: u16,
    in_flight: u16,
    event_idx: bool,
    indirect: bool,
    broken: Option<Broken>,
}

/// One of the three parts whose addresses a driver sets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Descriptor table.
    Desc,
    /// Driver ring ("available").
    Driver,
    /// Device ring ("used").
    Device,
}

impl Queue {
    /// Creates a disabled queue of at most `max_size` entries, a power of two.
    pub fn new(max_size: u16) -> Queue {
        assert!(max_size.is_power_of_two() && max_size <= MAX_SIZE, "the device's queue sizes are ours");
        Queue {
            max_size,
            size: max_size,
            enabled: false,
            desc: 0,
            driver: 0,
            device: 0,
            next_avail: 0,
            next_used: 0,
            signalled: 0,
            in_flight: 0,
            event_idx: false,
            indirect: false,
            broken: None,
        }
    }

    /// Resets the queue: disabled, nothing in flight.
    pub fn reset(&mut self) {
        *self = Queue::new(self.max_size);
    }

    /// Returns the present size.
    pub fn size(&self) -> u16 {
        self.size
    }
    /// Sets the size that the driver chose. A size that is invalid, or comes too late, is dropped.
    pub fn set_size(&mut self, size: u16) {
        if !self.enabled && size.is_power_of_two() && size <= self.max_size {
            self.size = size;
        }
    }
    /// Returns the address of a part.
    pub fn part(&self, part: Part) -> u64 {
        match part {
            Part::Desc => self.desc,
            Part::Driver => self.driver,
            Part::Device => self.device,
        }
    }
    /// Sets the address of a part. It has no effect once the queue is enabled.
    pub fn set_part(&mut self, part: Part, addr: u64) {
        if self.enabled {
            return;
        }
        match part {
            Part::Desc => self.desc = addr,
            Part::Driver => self.driver = addr,
            Part::Device => self.device = addr,
        }
    }
    /// Sets which ring features were negotiated.
    pub fn negotiate(&mut self, event_idx: bool, indirect: bool) {
        self.event_idx = event_idx;
        self.indirect = indirect;
    }
    /// Returns whether the driver enabled the queue.
    pub fn enabled(&self) -> bool {
        self.enabled
    }
    /// Returns whether the queue is enabled and not broken.
    pub fn is_live(&self) -> bool {
        self.enabled && self.broken.is_none()
    }
    /// Returns why the queue is broken, if it is.
    pub fn broken(&self) -> Option<Broken> {
        self.broken
    }
    /// Returns the number of chains taken and not yet completed.
    pub fn in_flight(&self) -> u16 {
        self.in_flight
    }
    /// Breaks the queue: it is not served until it is reset.
    pub fn fail(&mut self, why: Broken) {
        self.broken.get_or_insert(why);
    }

    /// Enables the queue. Rings that cannot be used break it at once.
    pub fn enable(&mut self, mem: &GuestMemory) {
        if self.enabled {
            return;
        }
        self.enabled = true;
        if !self.rings_fit(mem) {
            self.fail(Broken::RingOutside);
        }
    }

    fn rings_fit(&self, mem: &GuestMemory) -> bool {
        let size = u64::from(self.size);
        let inside = |base: u64, len: u64, align: u64| base % align == 0 && mem.contains(GuestAddr(base), len);
        // Only the driver writes the driver ring, but it may not share a page with read-only memory either.
        inside(self.desc, 16 * size, 16)
            && inside(self.driver, 6 + 2 * size, 2)
            && inside(self.device, 6 + 8 * size, 4)
            && mem.is_writable(GuestAddr(self.device), 6 + 8 * size)
    }

    /// Returns whether a saved queue is one that this device could have. The caller then replaces its own with it.
    pub fn accepts(&self, saved: &Queue) -> bool {
        saved.max_size == self.max_size
            && saved.size.is_power_of_two()
            && saved.size <= saved.max_size
            && saved.in_flight <= saved.size
    }

    /// Takes the next chain, or `None` if there is none or the queue is broken.
    ///
    /// Before it returns `None`, it asks the driver for a notification of the next one.
    pub fn pop(&mut self, mem: &GuestMemory) -> Option<Chain> {
        if !self.is_live() {
            return None;
        }
        match self.try_pop(mem) {
            Ok(chain) => chain,
            Err(why) => {
                self.fail(why);
                None
            }
        }
    }

    fn try_pop(&mut self, mem: &GuestMemory) -> Result<Option<Chain>, Broken> {
        if self.waiting(mem)? == 0 {
            if self.event_idx {
                let avail_event = self.device + 4 + 8 * u64::from(self.size);
                mem.store_release_u16(GuestAddr(avail_event), self.next_avail).map_err(|_| Broken::RingOutside)?;
                // The driver publishes a chain and then looks at avail_event. So we publish avail_event and then look
                // again: one of the two sees the other's write.
                fence(Ordering::SeqCst);
            }
            if self.waiting(mem)? == 0 {
                return Ok(None);
            }
        }
        if self.in_flight >= self.size {
            return Err(Broken::TooManyInFlight);
        }
        let slot = self.driver + 4 + 2 * u64::from(self.next_avail % self.size);
        let head: u16 = mem.read_le(GuestAddr(slot)).map_err(|_| Broken::RingOutside)?;
        let chain = self.follow(mem, head)?;
        self.next_avail = self.next_avail.wrapping_add(1);
        self.in_flight += 1;
        Ok(Some(chain))
    }

    /// Returns the number of chains that the driver has published and we have not taken.
    fn waiting(&self, mem: &GuestMemory) -> Result<u16, Broken> {
        let idx = mem.load_acquire_u16(GuestAddr(self.driver + 2)).map_err(|_| Broken::RingOutside)?;
        let waiting = idx.wrapping_sub(self.next_avail);
        if waiting > self.size { Err(Broken::IndexJump) } else { Ok(waiting) }
    }

    /// Returns whether as many chains as the ring holds are waiting: no more can come before some are completed.
    pub fn is_full(&self, mem: &GuestMemory) -> bool {
        self.is_live() && self.waiting(mem).is_ok_and(|n| n == self.size)
    }

    /// Returns the chain at `head` again, if it was in flight when state was saved.
    pub fn chain_at(&mut self, mem: &GuestMemory, head: u16) -> Option<Chain> {
        if !self.is_live() {
            return None;
        }
        self.follow(mem, head).map_err(|why| self.fail(why)).ok()
    }

    fn follow(&self, mem: &GuestMemory, head: u16) -> Result<Chain, Broken> {
        let mut chain = Chain { head, ..Chain::default() };
        let mut table = self.desc;
        let mut entries = u32::from(self.size);
        let mut index = u32::from(head);
        let mut in_indirect = false;
        let mut bytes = 0u64;
        if index >= entries {
            return Err(Broken::HeadOutside);
        }
        let mut steps_left = entries;
        loop {
            steps_left = steps_left.checked_sub(1).ok_or(Broken::Loop)?;
            let desc = Descriptor::read(mem, table + 16 * u64::from(index)).ok_or(Broken::BufferOutside)?;
            if desc.flags & DESC_F_INDIRECT != 0 {
                let usable = self.indirect && !in_indirect && desc.flags & DESC_F_NEXT == 0;
                if !usable || desc.len == 0 || desc.len % 16 != 0 || desc.len / 16 > MAX_INDIRECT {
                    return Err(Broken::IndirectMisused);
                }
                if !mem.contains(GuestAddr(desc.addr), u64::from(desc.len)) {
                    return Err(Broken::BufferOutside);
                }
                (table, entries, index, in_indirect) = (desc.addr, desc.len / 16, 0, true);
                steps_left = entries;
                continue;
            }
            bytes += u64::from(desc.len);
            if bytes > u64::from(u32::MAX) {
                return Err(Broken::ChainTooLong);
            }
            chain.push(mem, &desc)?;
            if desc.flags & DESC_F_NEXT == 0 {
                return Ok(chain);
            }
            index = u32::from(desc.next);
            if index >= entries {
                return Err(Broken::NextOutside);
            }
        }
    }

    /// Returns the `count` chains taken last to the queue, as if they had never been taken.
    pub fn rewind(&mut self, count: u16) {
        self.next_avail = self.next_avail.wrapping_sub(count);
        self.in_flight = self.in_flight.saturating_sub(count);
    }

    /// Completes a chain, with the number of bytes that were written to its buffers.
    pub fn push_used(&mut self, mem: &GuestMemory, head: u16, written: u32) {
        if !self.is_live() {
            return;
        }
        self.in_flight = self.in_flight.saturating_sub(1);
        let slot = self.device + 4 + 8 * u64::from(self.next_used % self.size);
        let element = u64::from(head) | u64::from(written) << 32;
        let next = self.next_used.wrapping_add(1);
        let stored =
            mem.write_le(GuestAddr(slot), element).and_then(|()| mem.store_release_u16(GuestAddr(self.device + 2), next));
        match stored {
            Ok(()) => self.next_used = next,
            Err(_) => self.fail(Broken::RingOutside),
        }
    }

    /// Returns whether the driver wants an interrupt for the completions since the last call.
    pub fn take_interrupt(&mut self, mem: &GuestMemory) -> bool {
        let new = self.next_used;
        let old = std::mem::replace(&mut self.signalled, new);
        if new == old || !self.enabled {
            return false;
        }
        // The driver must be able to see our index before we check whether it still sleeps.
        fence(Ordering::SeqCst);
        if self.event_idx {
            let used_event = self.driver + 4 + 2 * u64::from(self.size);
            let Ok(event) = mem.load_acquire_u16(GuestAddr(used_event)) else { return true };
            new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            mem.load_acquire_u16(GuestAddr(self.driver)).map_or(true, |flags| flags & AVAIL_F_NO_INTERRUPT == 0)
        }
    }
}

struct Descriptor {
    addr: u64,
    len: u32,
    flags: u16,
    next: u16,
}

impl Descriptor {
    fn read(mem: &GuestMemory, at: u64) -> Option<Descriptor> {
        let mut raw = [0u8; 16];
        mem.read(GuestAddr(at), &mut raw).ok()?;
        let word = u64::from_le_bytes(raw[8..].try_into().expect("eight bytes"));
        let addr = u64::from_le_bytes(raw[..8].try_into().expect("eight bytes"));
        Some(Descriptor { addr, len: word as u32, flags: (word >> 32) as u16, next: (word >> 48) as u16 })
    }
}

impl Chain {
    fn push(&mut self, mem: &GuestMemory, desc: &Descriptor) -> Result<(), Broken> {
        let writable = desc.flags & DESC_F_WRITE != 0;
        if !writable && !self.writable.is_empty() {
            return Err(Broken::ReadableAfterWritable);
        }
        if desc.len == 0 {
            return Ok(());
        }
        let addr = GuestAddr(desc.addr);
        let allowed = if writable { mem.is_writable(addr, u64::from(desc.len)) } else { mem.contains(addr, u64::from(desc.len)) };
        if !allowed {
            return Err(Broken::BufferOutside);
        }
        let list = if writable { &mut self.writable } else { &mut self.readable };
        list.push((addr, desc.len));
        Ok(())
    }

    /// Returns the number of bytes that the device may read.
    pub fn readable_bytes(&self) -> u64 {
        total_bytes(&self.readable)
    }
    /// Returns the number of bytes that the device may write.
    pub fn writable_bytes(&self) -> u64 {
        total_bytes(&self.writable)
    }
}

#[cfg(test)]
mod tests {
    use super::super::mock::{Desc, MockDriver};
    use super::*;
    use crate::hypervisor::memory::Mode;

    const RING: u64 = 0x1000;
    const DATA: u64 = 0x8000;
    const ROM: u64 = 0x10_0000;

    fn memory() -> GuestMemory {
        GuestMemory::anonymous(&[(GuestAddr(0), 0x2_0000, Mode::Ram), (GuestAddr(ROM), 0x1000, Mode::Rom)]).unwrap()
    }

    fn ring(event_idx: bool) -> (GuestMemory, MockDriver, Queue) {
        let mem = memory();
        let driver = MockDriver::new(&mem, RING, 8);
        let queue = driver.queue(event_idx, true);
        assert!(queue.is_live());
        (mem, driver, queue)
    }

    fn breaks_with(build: impl FnOnce(&mut MockDriver)) -> Option<Broken> {
        let (mem, mut driver, mut queue) = ring(false);
        build(&mut driver);
        while queue.pop(&mem).is_some() {}
        assert!(queue.pop(&mem).is_none());
        queue.broken()
    }

    #[test]
    fn a_chain_is_taken_with_its_buffers_and_given_back() {
        let (mem, mut driver, mut queue) = ring(false);
        let head = driver.add(&[Desc::readable(DATA, 16), Desc::readable(DATA + 64, 0), Desc::writable(DATA + 32, 8)]);
        let chain = queue.pop(&mem).unwrap();
        assert_eq!(chain.readable, vec![(GuestAddr(DATA), 16)]);
        assert_eq!(chain.writable, vec![(GuestAddr(DATA + 32), 8)]);
        assert!(queue.pop(&mem).is_none());
        queue.push_used(&mem, chain.head, 8);
        assert_eq!(driver.take_used(), Some((head, 8)));
        assert!(queue.take_interrupt(&mem));
        assert!(!queue.take_interrupt(&mem));
    }

    #[test]
    fn indices_wrap_around_many_times() {
        let (mem, mut driver, mut queue) = ring(true);
        for round in 0..70_000u32 {
            driver.set_used_event(round as u16);
            let head = driver.add(&[Desc::writable(DATA, 4)]);
            let chain = queue.pop(&mem).unwrap();
            queue.push_used(&mem, chain.head, round);
            assert_eq!(driver.take_used(), Some((head, round)));
            assert!(queue.take_interrupt(&mem));
        }
        assert_eq!(queue.broken(), None);
    }

    #[test]
    fn an_indirect_table_is_followed_also_after_direct_descriptors() {
        let (mem, mut driver, mut queue) = ring(false);
        driver.add_indirect(DATA, &[Desc::readable(DATA + 0x100, 1), Desc::writable(DATA + 0x200, 2)]);
        let chain = queue.pop(&mem).unwrap();
        assert_eq!((chain.readable_bytes(), chain.writable_bytes()), (1, 2));
        driver.set_desc(3, Desc { flags: DESC_F_NEXT, next: 4, ..Desc::readable(DATA + 0x300, 5) });
        driver.set_desc(4, Desc { addr: DATA, len: 32, flags: DESC_F_INDIRECT, next: 0 });
        driver.publish(3);
        let chain = queue.pop(&mem).unwrap();
        assert_eq!((chain.readable_bytes(), chain.writable_bytes()), (6, 2));
    }

    #[test]
    fn interrupts_are_held_back_as_the_driver_asks() {
        let (mem, mut driver, mut queue) = ring(false);
        driver.set_avail_flags(AVAIL_F_NO_INTERRUPT);
        driver.add(&[Desc::writable(DATA, 4)]);
        let chain = queue.pop(&mem).unwrap();
        queue.push_used(&mem, chain.head, 0);
        assert!(!queue.take_interrupt(&mem));

        let (mem, mut driver, mut queue) = ring(true);
        driver.set_used_event(1);
        for wanted in [false, true, false] {
            driver.add(&[Desc::writable(DATA, 4)]);
            let chain = queue.pop(&mem).unwrap();
            queue.push_used(&mem, chain.head, 0);
            assert_eq!(queue.take_interrupt(&mem), wanted);
        }
    }

    #[test]
    fn an_empty_queue_asks_to_be_told_of_the_next_chain() {
        let (mem, mut driver, mut queue) = ring(true);
        for _ in 0..3 {
            driver.add(&[Desc::writable(DATA, 4)]);
        }
        assert!(queue.pop(&mem).is_some());
        assert_eq!(driver.avail_event(), 0);
        while queue.pop(&mem).is_some() {}
        assert_eq!(driver.avail_event(), 3);
    }

    #[test]
    fn rewound_chains_come_again() {
        let (mem, mut driver, mut queue) = ring(false);
        driver.add(&[Desc::writable(DATA, 4)]);
        driver.add(&[Desc::writable(DATA, 5)]);
        let first = queue.pop(&mem).unwrap();
        queue.pop(&mem).unwrap();
        queue.rewind(2);
        assert_eq!(queue.in_flight(), 0);
        assert_eq!(queue.pop(&mem), Some(first));
    }

    #[test]
    fn loops_end_at_the_size_of_the_table() {
        let looping = |d: &mut MockDriver| {
            d.set_desc(0, Desc { flags: DESC_F_NEXT, next: 1, ..Desc::readable(DATA, 1) });
            d.set_desc(1, Desc { flags: DESC_F_NEXT, next: 0, ..Desc::readable(DATA, 1) });
            d.publish(0);
        };
        assert_eq!(breaks_with(looping), Some(Broken::Loop));
        let indirect = |d: &mut MockDriver| {
            d.set_table(DATA, &[Desc { flags: DESC_F_NEXT, next: 0, ..Desc::readable(DATA, 1) }]);
            d.add(&[Desc { addr: DATA, len: 16, flags: DESC_F_INDIRECT, next: 0 }]);
        };
        assert_eq!(breaks_with(indirect), Some(Broken::Loop));
    }

    #[test]
    fn indices_outside_of_their_tables_break_the_queue() {
        assert_eq!(breaks_with(|d| d.publish(8)), Some(Broken::HeadOutside));
        assert_eq!(breaks_with(|d| d.publish(0xffff)), Some(Broken::HeadOutside));
        let next = |d: &mut MockDriver| {
            d.set_desc(0, Desc { flags: DESC_F_NEXT, next: 8, ..Desc::readable(DATA, 1) });
            d.publish(0);
        };
        assert_eq!(breaks_with(next), Some(Broken::NextOutside));
        assert_eq!(breaks_with(|d| d.set_avail_idx(9)), Some(Broken::IndexJump));
        assert_eq!(breaks_with(|d| d.set_avail_idx(0xffff)), Some(Broken::IndexJump));
    }

    #[test]
    fn buffers_outside_of_memory_break_the_queue() {
        for (addr, len) in [(0x2_0000 - 4, 5), (0x4_0000, 1), (u64::MAX, 1), (u64::MAX - 3, u32::MAX), (DATA, u32::MAX)] {
            assert_eq!(breaks_with(|d| _ = d.add(&[Desc::readable(addr, len)])), Some(Broken::BufferOutside));
        }
        assert_eq!(breaks_with(|d| _ = d.add(&[Desc::writable(ROM, 4)])), Some(Broken::BufferOutside));
        assert_eq!(breaks_with(|d| _ = d.add(&[Desc::readable(ROM, 4)])), None);
    }

    #[test]
    fn a_chain_of_more_than_four_gib_breaks_the_queue() {
        // Guest memory is allocated lazily, so 2 GiB cost nothing.
        let mem = GuestMemory::anonymous(&[(GuestAddr(0), 2 << 30, Mode::Ram)]).unwrap();
        let mut driver = MockDriver::new(&mem, RING, 8);
        let mut queue = driver.queue(false, true);
        driver.add(&[Desc::writable(0, 0x7fff_ffff), Desc::writable(0, 0x7fff_ffff), Desc::writable(0, 2)]);
        assert!(queue.pop(&mem).is_none());
        assert_eq!(queue.broken(), Some(Broken::ChainTooLong));
    }

    #[test]
    fn misused_indirect_descriptors_break_the_queue() {
        let indirect = |len: u32, flags: u16| {
            move |d: &mut MockDriver| {
                d.set_table(DATA, &[Desc { addr: DATA, len: 16, flags: DESC_F_INDIRECT, next: 0 }]);
                d.set_desc(0, Desc { addr: DATA, len, flags: DESC_F_INDIRECT | flags, next: 1 });
                d.publish(0);
            }
        };
        assert_eq!(breaks_with(indirect(16, 0)), Some(Broken::IndirectMisused));
        for len in [0, 8, 17, 16 * (MAX_INDIRECT + 1), u32::MAX] {
            assert_eq!(breaks_with(indirect(len, 0)), Some(Broken::IndirectMisused));
        }
        assert_eq!(breaks_with(indirect(16, DESC_F_NEXT)), Some(Broken::IndirectMisused));
        let (mem, mut driver, _) = ring(false);
        let mut plain = driver.queue(false, false);
        driver.add_indirect(DATA, &[Desc::readable(DATA, 1)]);
        assert!(plain.pop(&mem).is_none());
        assert_eq!(plain.broken(), Some(Broken::IndirectMisused));
    }

    #[test]
    fn a_readable_buffer_after_a_writable_one_breaks_the_queue() {
        let wrong = |d: &mut MockDriver| _ = d.add(&[Desc::writable(DATA, 1), Desc::readable(DATA, 1)]);
        assert_eq!(breaks_with(wrong), Some(Broken::ReadableAfterWritable));
    }

    #[test]
    fn one_head_published_for_ever_is_stopped_at_the_size_of_the_ring() {
        let (mem, mut driver, mut queue) = ring(false);
        driver.set_desc(0, Desc::writable(DATA, 4));
        let mut taken = 0;
        for _ in 0..100 {
            driver.publish(0);
            taken += usize::from(queue.pop(&mem).is_some());
        }
        assert_eq!(taken, 8);
        assert_eq!(queue.broken(), Some(Broken::TooManyInFlight));
    }

    #[test]
    fn rings_that_cannot_be_used_break_the_queue_when_enabled() {
        let mem = memory();
        for (desc, driver, device) in [
            (RING + 8, 0x2000, 0x3000),
            (RING, 0x2001, 0x3000),
            (RING, 0x2000, 0x3002),
            (0x2_0000 - 16, 0x2000, 0x3000),
            (RING, u64::MAX - 1, 0x3000),
            (RING, 0x2000, ROM),
        ] {
            let mut queue = Queue::new(8);
            queue.set_part(Part::Desc, desc);
            queue.set_part(Part::Driver, driver);
            queue.set_part(Part::Device, device);
            queue.enable(&mem);
            assert_eq!(queue.broken(), Some(Broken::RingOutside), "{desc:#x} {driver:#x} {device:#x}");
            assert!(queue.pop(&mem).is_none());
        }
    }

    #[test]
    fn impossible_sizes_are_dropped() {
        let mut queue = Queue::new(8);
        for size in [0, 3, 16, 0xffff] {
            queue.set_size(size);
            assert_eq!(queue.size(), 8);
        }
        queue.set_size(4);
        assert_eq!(queue.size(), 4);
    }

    #[test]
    fn slices_cut_across_segments() {
        let segments = [(GuestAddr(0x100), 4), (GuestAddr(0x200), 4), (GuestAddr(0x300), 4)];
        assert_eq!(slice(&segments, 2, 5), vec![(GuestAddr(0x102), 2), (GuestAddr(0x200), 3)]);
        assert_eq!(slice(&segments, 12, 5), vec![]);
        assert_eq!(slice(&segments, 4, 0), vec![]);
        assert_eq!(slice(&segments, 0, u64::MAX), segments.to_vec());
    }
}
