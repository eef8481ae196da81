//! Block device: virtio 1.2 section 5.2.
//!
//! One or more queues (5.2.2), which are alike: the driver may put a request on any. A request is a header (type,
//! reserved, sector; 16 bytes), data, and one status byte that the device writes, in any buffers that the driver chooses.
//! Requests run in parallel and end in any order, also those of one queue, on the threads of the disk: these complete them
//! and interrupt the driver ([`Rings`]), or leave them to the board where the driver is not ready for them. A write ends only after a flush while the cache
//! is "writethrough": the driver did not accept VIRTIO_BLK_F_FLUSH, or set `writeback` to 0.
//!
//! **Not modelled**: secure erase, lifetime and zoned features, SCSI commands. None is offered; such a request ends as
//! unsupported.
//!
//! **Hostile guest**: the rings bound the requests in flight, and `PARTS_MAX` the operations of one request on the
//! host; every sector range is checked against the disk; lengths that are no multiple of 512 end in an I/O error; a
//! request without room for its status is returned without an answer. Header and segments are read once.
//!
//! **Saved state**: `writeback`, and queue and head of the requests in flight: the new device executes them again. That is
//! harmless, since their completion was not reported to the driver.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

use serde::{Deserialize, Serialize};

use super::queue::{self, Chain, Segment};
use super::rings::Rings;
use super::{Kind, Queues, VirtioDevice};
use crate::devices::disk::in_flight::{Ended, InFlight, Part};
use crate::devices::disk::{CompletionSink, Disk, DiskOp, DiskRequest, DiskStatus};
use crate::hypervisor::memory::{GuestAddr, GuestMemory};
use crate::hypervisor::state::{Section, StateError};

const NAME: &str = "virtio-blk";
const VERSION: u32 = 2;
const QUEUE_SIZE: u16 = 256;
/// Maximum number of queues.
pub const QUEUES_MAX: u16 = 16;
const SECTOR: u64 = 512;

/// Feature bits, 5.2.3.
pub const VIRTIO_BLK_F_SEG_MAX: u64 = 1 << 2;
/// The disk is read-only.
pub const VIRTIO_BLK_F_RO: u64 = 1 << 5;
/// `blk_size` is valid.
pub const VIRTIO_BLK_F_BLK_SIZE: u64 = 1 << 6;
/// The device supports flush.
pub const VIRTIO_BLK_F_FLUSH: u64 = 1 << 9;
/// `topology` is valid.
pub const VIRTIO_BLK_F_TOPOLOGY: u64 = 1 << 10;
/// The driver may choose between writeback and writethrough.
pub const VIRTIO_BLK_F_CONFIG_WCE: u64 = 1 << 11;
/// `num_queues` is valid.
pub const VIRTIO_BLK_F_MQ: u64 = 1 << 12;
/// The device supports discard.
pub const VIRTIO_BLK_F_DISCARD: u64 = 1 << 13;
/// The device supports write zeroes.
pub const VIRTIO_BLK_F_WRITE_ZEROES: u64 = 1 << 14;

/// Request types, 5.2.6.
pub const VIRTIO_BLK_T_IN: u32 = 0;
/// Write.
pub const VIRTIO_BLK_T_OUT: u32 = 1;
/// Flush.
pub const VIRTIO_BLK_T_FLUSH: u32 = 4;
/// Device ID string.
pub const VIRTIO_BLK_T_GET_ID: u32 = 8;
/// Discard.
pub const VIRTIO_BLK_T_DISCARD: u32 = 11;
/// Write zeroes.
pub const VIRTIO_BLK_T_WRITE_ZEROES: u32 = 13;

/// Status byte: success.
pub const VIRTIO_BLK_S_OK: u8 = 0;
/// Status byte: failed.
pub const VIRTIO_BLK_S_IOERR: u8 = 1;
/// Status byte: not supported.
pub const VIRTIO_BLK_S_UNSUPP: u8 = 2;

const ID_BYTES: usize = 20;
const CONFIG_BYTES: usize = 60;
/// Offset of `writeback` in the configuration.
const WRITEBACK: usize = 32;
/// Maximum number of ranges in one discard or write-zeroes request.
const PARTS_MAX: u32 = 16;
const DISCARD_SECTORS_MAX: u32 = 1 << 22;
const ZERO_SECTORS_MAX: u32 = 1 << 17;
const RANGE_BYTES: usize = 16;
const RANGE_F_UNMAP: u32 = 1;

/// Properties of the disk that the device reports.
#[derive(Debug, Clone, Default)]
pub struct BlkOptions {
    /// Serial number. A guest sees the first 20 bytes.
    pub serial: String,
    /// Bytes of a physical block of the host, a power of two of at least 512; 0 for 4096.
    pub physical_block_bytes: u32,
    /// Number of queues, at most [`QUEUES_MAX`]; 0 for one.
    pub queues: u16,
}

/// Where a request in flight is answered.
struct Pending {
    queue: usize,
    head: u16,
    status_at: GuestAddr,
    /// Number of bytes written that is reported to the driver, including the status.
    written: u32,
}

impl Pending {
    fn write_status(&self, mem: &GuestMemory, status: u8) {
        // The address was checked when the chain was taken.
        let _ = mem.write(self.status_at, &[status]);
    }
}

/// What the device shares with the threads of its disk.
struct Shared {
    pending: Mutex<InFlight<Pending>>,
    rings: OnceLock<Arc<Rings>>,
}

impl Shared {
    /// Its lock is held for one step. Only a queue's is taken meanwhile.
    fn pending(&self) -> MutexGuard<'_, InFlight<Pending>> {
        self.pending.lock().expect("no panic happens under this lock")
    }
}

impl CompletionSink for Shared {
    fn ended(&self, results: &[(u64, DiskStatus)]) -> Option<Vec<DiskRequest>> {
        let rings = self.rings.get().filter(|rings| rings.is_open())?;
        let (mut next, mut interrupts) = (Vec::new(), 0u32);
        // A request is in flight until its chain is completed: a reset of its queue must not be done before.
        let mut in_flight = self.pending();
        for &(tag, status) in results {
            match in_flight.end(tag, status) {
                Ended::Nothing => {}
                Ended::Next(request) => next.push(request),
                Ended::Done(pending, status) => {
                    let answer = |mem: &GuestMemory| pending.write_status(mem, status_byte(status));
                    rings.complete(pending.queue, pending.head, pending.written, answer);
                    interrupts |= 1 << pending.queue;
                }
            }
        }
        drop(in_flight);
        (0..rings.len()).filter(|queue| interrupts & 1 << queue != 0).for_each(|queue| rings.interrupt(queue));
        Some(next)
    }
}

fn status_byte(status: DiskStatus) -> u8 {
    match status {
        DiskStatus::Ok => VIRTIO_BLK_S_OK,
        DiskStatus::IoError => VIRTIO_BLK_S_IOERR,
        DiskStatus::Unsupported => VIRTIO_BLK_S_UNSUPP,
    }
}

/// The block device.
pub struct Blk {
    disk: Box<dyn Disk>,
    serial: [u8; ID_BYTES],
    queue_sizes: Vec<u16>,
    physical_block_bytes: u32,
    writeback: bool,
    features: u64,
    shared: Arc<Shared>,
    /// Queues and heads that were in flight when the loaded state was saved.
    again: Vec<(u16, u16)>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    writeback: bool,
    /// Queue and head of each.
    in_flight: Vec<(u16, u16)>,
}

struct Header {
    kind: u32,
    sector: u64,
}

/// A request split into its fields.
struct Request {
    queue: usize,
    head: u16,
    header: Header,
    readable: Vec<Segment>,
    writable: Vec<Segment>,
    status_at: GuestAddr,
}

enum Answer {
    Now(u8),
    Later,
}

impl Blk {
    /// Creates a device on `disk`.
    pub fn new(disk: Box<dyn Disk>, options: &BlkOptions) -> Blk {
        let mut serial = [0u8; ID_BYTES];
        let bytes = options.serial.as_bytes();
        let len = bytes.len().min(ID_BYTES);
        serial[..len].copy_from_slice(&bytes[..len]);
        let physical = if options.physical_block_bytes == 0 { 4096 } else { options.physical_block_bytes };
        Blk {
            physical_block_bytes: physical.max(disk.block_bytes()),
            disk,
            serial,
            queue_sizes: vec![QUEUE_SIZE; usize::from(options.queues.clamp(1, QUEUES_MAX))],
            writeback: true,
            features: 0,
            shared: Arc::new(Shared { pending: Mutex::new(InFlight::new()), rings: OnceLock::new() }),
            again: Vec::new(),
        }
    }

    fn writethrough(&self) -> bool {
        let chosen = self.features & VIRTIO_BLK_F_CONFIG_WCE != 0 && !self.writeback;
        chosen || self.features & (VIRTIO_BLK_F_FLUSH | VIRTIO_BLK_F_CONFIG_WCE) == 0
    }

    fn in_range(&self, sector: u64, bytes: u64) -> bool {
        let start = sector.checked_mul(SECTOR);
        let end = start.and_then(|start| start.checked_add(bytes));
        end.is_some_and(|end| end <= self.disk.size_bytes())
    }

    /// Splits a request into its fields. Returns `None` if there is no room for a status byte.
    fn take_apart(mem: &GuestMemory, queue: usize, chain: Chain) -> Option<Result<Request, GuestAddr>> {
        let mut writable = chain.writable;
        let (addr, len) = writable.pop()?;
        let status_at = GuestAddr(addr.0 + u64::from(len) - 1);
        // The status byte is the last writable byte, however the driver cuts its buffers (2.7.4).
        if len > 1 {
            writable.push((addr, len - 1));
        }
        let mut raw = [0u8; 16];
        if queue::copy_from(mem, &chain.readable, 0, &mut raw) < raw.len() {
            return Some(Err(status_at));
        }
        let kind = u32::from_le_bytes(raw[..4].try_into().expect("four bytes"));
        let sector = u64::from_le_bytes(raw[8..].try_into().expect("eight bytes"));
        let readable = queue::slice(&chain.readable, 16, u64::MAX);
        Some(Ok(Request { queue, head: chain.head, header: Header { kind, sector }, readable, writable, status_at }))
    }

    fn serve(&mut self, queue: usize, chain: Chain, queues: &mut Queues) {
        let head = chain.head;
        let request = match Self::take_apart(queues.mem, queue, chain) {
            None => return queues.complete(queue, head, 0),
            Some(Err(status_at)) => {
                let request = Pending { queue, head, status_at, written: 1 };
                return Self::answer(queues, &request, VIRTIO_BLK_S_IOERR);
            }
            Some(Ok(request)) => request,
        };
        // This fits into 32 bits: the queue refuses chains of more than 4 GiB, and the status byte is part of one.
        let written = queue::total_bytes(&request.writable) as u32 + 1;
        let status_at = request.status_at;
        let answer = match request.header.kind {
            VIRTIO_BLK_T_IN => self.transfer(DiskOp::Read, request, written),
            VIRTIO_BLK_T_OUT if self.disk.read_only() => Answer::Now(VIRTIO_BLK_S_IOERR),
            VIRTIO_BLK_T_OUT => self.transfer(DiskOp::Write, request, written),
            VIRTIO_BLK_T_FLUSH => {
                self.submit(&request, written, false, vec![(DiskOp::Flush, 0, Vec::new())]);
                Answer::Later
            }
            VIRTIO_BLK_T_GET_ID => {
                let fits = queue::copy_to(queues.mem, &request.writable, 0, &self.serial) == ID_BYTES;
                Answer::Now(if fits { VIRTIO_BLK_S_OK } else { VIRTIO_BLK_S_IOERR })
            }
            VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES => self.ranges(queues, request, written),
            _ => Answer::Now(VIRTIO_BLK_S_UNSUPP),
        };
        if let Answer::Now(status) = answer {
            Self::answer(queues, &Pending { queue, head, status_at, written }, status);
        }
    }

    fn answer(queues: &mut Queues, request: &Pending, status: u8) {
        let answer = |mem: &GuestMemory| request.write_status(mem, status);
        queues.complete_with(request.queue, request.head, request.written, answer);
    }

    fn transfer(&mut self, op: DiskOp, mut request: Request, written: u32) -> Answer {
        let segments = std::mem::take(if op == DiskOp::Read { &mut request.writable } else { &mut request.readable });
        let bytes = queue::total_bytes(&segments);
        if bytes % SECTOR != 0 || !self.in_range(request.header.sector, bytes) {
            return Answer::Now(VIRTIO_BLK_S_IOERR);
        }
        if bytes == 0 {
            return Answer::Now(VIRTIO_BLK_S_OK);
        }
        // Without a flush the driver may take the completion for durable, and lose data at a power cut.
        let flush_after = op == DiskOp::Write && self.writethrough();
        let part = (op, request.header.sector * SECTOR, segments);
        self.submit(&request, written, flush_after, vec![part]);
        Answer::Later
    }

    fn ranges(&mut self, queues: &mut Queues, request: Request, written: u32) -> Answer {
        let discard = request.header.kind == VIRTIO_BLK_T_DISCARD;
        let bytes = queue::total_bytes(&request.readable);
        if discard && !self.disk.can_discard() {
            return Answer::Now(VIRTIO_BLK_S_UNSUPP);
        }
        let usable = bytes % RANGE_BYTES as u64 == 0 && (1..=u64::from(PARTS_MAX)).contains(&(bytes / RANGE_BYTES as u64));
        if !usable || self.disk.read_only() {
            return Answer::Now(VIRTIO_BLK_S_IOERR);
        }
        let mut parts = Vec::new();
        for skip in (0..bytes).step_by(RANGE_BYTES) {
            let mut raw = [0u8; RANGE_BYTES];
            queue::copy_from(queues.mem, &request.readable, skip, &mut raw);
            let sector = u64::from_le_bytes(raw[..8].try_into().expect("eight bytes"));
            let sectors = u32::from_le_bytes(raw[8..12].try_into().expect("four bytes"));
            let flags = u32::from_le_bytes(raw[12..].try_into().expect("four bytes"));
            let (most, known) = if discard { (DISCARD_SECTORS_MAX, 0) } else { (ZERO_SECTORS_MAX, RANGE_F_UNMAP) };
            let bytes = u64::from(sectors) * SECTOR;
            if flags & !known != 0 {
                return Answer::Now(VIRTIO_BLK_S_UNSUPP);
            }
            if sectors > most || !self.in_range(sector, bytes) {
                return Answer::Now(VIRTIO_BLK_S_IOERR);
            }
            let may_unmap = flags & RANGE_F_UNMAP != 0;
            let op = if discard { DiskOp::Discard { bytes } } else { DiskOp::WriteZeroes { bytes, may_unmap } };
            if sectors > 0 {
                parts.push((op, sector * SECTOR, Vec::new()));
            }
        }
        if parts.is_empty() {
            return Answer::Now(VIRTIO_BLK_S_OK);
        }
        // Discarded data may come back after a power cut; zeros must not be lost.
        let flush_after = !discard && self.writethrough();
        self.submit(&request, written, flush_after, parts);
        Answer::Later
    }

    fn submit(&mut self, request: &Request, written: u32, flush_after: bool, parts: Vec<Part>) {
        let pending = Pending { queue: request.queue, head: request.head, status_at: request.status_at, written };
        // The lock is free before the disk has the first request, since that may end at once.
        let requests = self.shared.pending().begin(pending, parts, flush_after);
        requests.for_each(|request| self.disk.submit(request));
    }

    fn collect(&mut self, queues: &mut Queues) {
        while let Some((tag, status)) = self.disk.completed() {
            let ended = self.shared.pending().end(tag, status);
            match ended {
                Ended::Nothing => {}
                Ended::Next(request) => self.disk.submit(request),
                Ended::Done(pending, status) => Self::answer(queues, &pending, status_byte(status)),
            }
        }
    }

    /// Forgets all requests, once nothing of them is with the host.
    fn forget(&mut self) {
        self.shared.pending().clear(&mut *self.disk);
        self.again.clear();
    }

    /// Returns whether the driver still waits for what is in flight on a queue: it has not reset it.
    fn is_awaited(&self, queue: usize) -> bool {
        self.shared.rings.get().is_none_or(|rings| rings.queue(queue).is_live())
    }

    fn serve_again(&mut self, queues: &mut Queues) {
        for (queue, head) in std::mem::take(&mut self.again) {
            let queue = usize::from(queue);
            if let Some(chain) = queues.chain_at(queue, head) {
                self.serve(queue, chain, queues);
            }
        }
    }

    fn serve_queue(&mut self, queue: usize, queues: &mut Queues) {
        while let Some(chain) = queues.pop(queue) {
            self.serve(queue, chain, queues);
        }
    }
}

impl VirtioDevice for Blk {
    fn name(&self) -> &'static str {
        NAME
    }
    fn kind(&self) -> Kind {
        Kind { device_type: 2, class: (0x01, 0x00, 0x00) }
    }
    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn features(&self) -> u64 {
        let mut features = VIRTIO_BLK_F_SEG_MAX | VIRTIO_BLK_F_BLK_SIZE | VIRTIO_BLK_F_TOPOLOGY | VIRTIO_BLK_F_FLUSH;
        if self.queue_sizes.len() > 1 {
            features |= VIRTIO_BLK_F_MQ;
        }
        if self.disk.read_only() {
            return features | VIRTIO_BLK_F_RO;
        }
        features |= VIRTIO_BLK_F_CONFIG_WCE | VIRTIO_BLK_F_WRITE_ZEROES;
        if self.disk.can_discard() {
            features |= VIRTIO_BLK_F_DISCARD;
        }
        features
    }

    fn config(&self) -> Vec<u8> {
        let mut config = vec![0u8; CONFIG_BYTES];
        let mut put = |at: usize, value: &[u8]| config[at..at + value.len()].copy_from_slice(value);
        put(0, &(self.disk.size_bytes() / SECTOR).to_le_bytes());
        put(12, &u32::from(QUEUE_SIZE - 2).to_le_bytes());
        let block = self.disk.block_bytes();
        let blocks = self.physical_block_bytes / block;
        put(20, &block.to_le_bytes());
        // Logical blocks of a physical one as a power of two, and the smallest and aligned transfer in logical blocks.
        put(24, &[blocks.ilog2() as u8, 0]);
        put(26, &(blocks as u16).to_le_bytes());
        put(WRITEBACK, &[u8::from(self.writeback)]);
        put(34, &(self.queue_sizes.len() as u16).to_le_bytes());
        put(36, &DISCARD_SECTORS_MAX.to_le_bytes());
        put(40, &PARTS_MAX.to_le_bytes());
        put(44, &(self.physical_block_bytes / SECTOR as u32).to_le_bytes());
        put(48, &ZERO_SECTORS_MAX.to_le_bytes());
        put(52, &PARTS_MAX.to_le_bytes());
        put(56, &[u8::from(self.disk.can_discard())]);
        config
    }

    fn write_config(&mut self, offset: usize, data: &[u8]) {
        if let (WRITEBACK, &[value]) = (offset, data)
            && self.features & VIRTIO_BLK_F_CONFIG_WCE != 0
        {
            self.writeback = value != 0;
        }
    }

    fn activate(&mut self, features: u64) {
        self.features = features;
    }

    fn notify(&mut self, queue: usize, queues: &mut Queues) {
        self.serve_again(queues);
        self.serve_queue(queue, queues);
        self.collect(queues);
    }

    fn poll(&mut self, _: u64, queues: &mut Queues) {
        self.serve_again(queues);
        (0..self.queue_sizes.len()).for_each(|queue| self.serve_queue(queue, queues));
        self.collect(queues);
    }

    fn reset(&mut self) {
        self.forget();
        self.writeback = true;
        self.features = 0;
    }

    fn attach(&mut self, rings: &Arc<Rings>) {
        assert!(self.shared.rings.set(Arc::clone(rings)).is_ok(), "a device has one transport");
        self.disk.complete_to(Arc::clone(&self.shared) as _);
    }

    fn is_idle(&self) -> bool {
        self.disk.is_idle()
    }

    fn is_queue_idle(&self, queue: usize) -> bool {
        !self.shared.pending().iter().any(|pending| pending.queue == queue)
    }

    fn reset_queue(&mut self, queue: usize) {
        self.again.retain(|&(other, _)| usize::from(other) != queue);
    }

    fn save(&self) -> Section {
        let begun: Vec<_> = self.shared.pending().iter().map(|pending| (pending.queue as u16, pending.head)).collect();
        let mut in_flight: Vec<(u16, u16)> = begun.into_iter().chain(self.again.iter().copied()).collect();
        in_flight.retain(|&(queue, _)| self.is_awaited(usize::from(queue)));
        in_flight.sort_unstable();
        Section::encode(NAME, VERSION, &State { writeback: self.writeback, in_flight })
    }

    fn load(&mut self, section: &Section) -> Result<(), StateError> {
        let state: State = section.decode(NAME, VERSION)?;
        let damaged = |why: &str| Err(StateError::Damaged { kind: NAME, why: why.into() });
        if state.in_flight.len() > usize::from(QUEUE_SIZE) * self.queue_sizes.len() {
            return damaged("more requests in flight than the queues hold");
        }
        if state.in_flight.iter().any(|&(queue, _)| usize::from(queue) >= self.queue_sizes.len()) {
            return damaged("a request is in flight on a queue that does not exist");
        }
        self.forget();
        self.writeback = state.writeback;
        self.again = state.in_flight;
        Ok(())
    }
}
