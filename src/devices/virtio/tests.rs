//! A guest driver's view of the devices, through the PCI function from probing to interrupts.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use super::blk::*;
use super::console::*;
use super::mock::{Desc, MSIX_ADDRESS, MSIX_DATA, MockDriver, PciDriver};
use super::net::*;
use super::queue::{DESC_F_NEXT, DESC_F_WRITE};
use super::rng::Rng;
use super::transport::*;
use super::*;
use crate::devices::conformance;
use crate::devices::disk::memory::{MemoryDisk, MemoryDiskHandle};
use crate::devices::disk::{Disk, DiskOp};
use crate::devices::net::{HEADER_BYTES, Nic, Offloads};
use crate::devices::pci::PciDevice;
use crate::devices::serial::CharBackend;
use crate::hypervisor::bus::{Access, Device};
use crate::hypervisor::guest_errors::GuestErrors;
use crate::hypervisor::irq::{IrqLine, IrqProbe};
use crate::hypervisor::memory::{GuestAddr, GuestMemory, Mode};
use crate::hypervisor::waking::{Attention, Waker};

const RINGS: u64 = 0x1_0000;
const DATA: u64 = 0x8_0000;
const GSI: u32 = 17;
const ALL: u64 = u64::MAX;
const DISK_BYTES: u64 = 64 * 1024;

struct Bench {
    mem: GuestMemory,
    probe: Arc<IrqProbe>,
    waker: Waker,
    errors: Arc<GuestErrors>,
}

fn bench() -> Bench {
    let mem = GuestMemory::anonymous(&[(GuestAddr(0), 1 << 20, Mode::Ram)]).unwrap();
    Bench { mem, probe: IrqProbe::new(), waker: Waker::new(Attention::new(1)), errors: GuestErrors::silent() }
}

impl Bench {
    fn function(&self, device: Box<dyn VirtioDevice>) -> VirtioPci {
        let line = IrqLine::new(self.probe.clone(), GSI);
        VirtioPci::new(device, self.mem.clone(), self.waker.clone(), self.probe.clone(), line).report_to(self.errors.clone())
    }
    fn driver(&self, device: Box<dyn VirtioDevice>) -> PciDriver {
        PciDriver::probe(self.function(device), &self.mem, RINGS)
    }
    fn byte(&self, addr: u64) -> u8 {
        self.mem.read_le(GuestAddr(addr)).unwrap()
    }
    fn put(&self, addr: u64, bytes: &[u8]) {
        self.mem.write(GuestAddr(addr), bytes).unwrap();
    }
    fn get(&self, addr: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.mem.read(GuestAddr(addr), &mut bytes).unwrap();
        bytes
    }
}

fn memory_disk(bench: &Bench, read_only: bool) -> (Box<Blk>, MemoryDiskHandle) {
    let (disk, handle) = MemoryDisk::new(&bench.mem, DISK_BYTES, read_only);
    let options = BlkOptions { serial: "a-serial-of-more-than-20-bytes".into(), physical_block_bytes: 4096, queues: 1 };
    (Box::new(Blk::new(Box::new(disk), &options)), handle)
}

struct BlkGuest {
    bench: Bench,
    driver: PciDriver,
    ring: MockDriver,
    disk: MemoryDiskHandle,
}

fn blk_guest_with(features: u64, read_only: bool) -> BlkGuest {
    let bench = bench();
    let (blk, disk) = memory_disk(&bench, read_only);
    let mut driver = bench.driver(blk);
    driver.negotiate(features);
    let ring = driver.setup_queue(0, 0, NO_VECTOR);
    driver.driver_ok();
    BlkGuest { bench, driver, ring, disk }
}

fn blk_guest() -> BlkGuest {
    blk_guest_with(ALL & !VIRTIO_F_EVENT_IDX, false)
}

const STATUS: u64 = DATA + 0x100;
const BUFFER: u64 = DATA + 0x1000;

impl BlkGuest {
    fn header(&self, at: u64, kind: u32, sector: u64) -> Desc {
        self.bench.put(at, &kind.to_le_bytes());
        self.bench.put(at + 8, &sector.to_le_bytes());
        self.bench.put(STATUS, &[0xff]);
        Desc::readable(at, 16)
    }
    fn request(&mut self, kind: u32, sector: u64, data: &[Desc]) -> u8 {
        let mut chain = vec![self.header(DATA, kind, sector)];
        chain.extend_from_slice(data);
        chain.push(Desc::writable(STATUS, 1));
        let head = self.ring.add(&chain);
        self.driver.kick(0);
        assert_eq!(self.ring.take_used().map(|(h, _)| h), Some(head));
        self.bench.byte(STATUS)
    }
}

#[test]
fn the_function_looks_as_the_specification_says() {
    let bench = bench();
    for (device, id, class) in [
        (memory_disk(&bench, false).0 as Box<dyn VirtioDevice>, 0x1042, 0x01_00_00),
        (Box::new(Rng::new()), 0x1044, 0xff_00_00),
        (Box::new(Console::new(Box::new(Loopback::default()))), 0x1043, 0x07_80_00),
        (Box::new(Net::new(Box::new(Wire::default()), [2, 0, 0, 0, 0, 1], 1500)), 0x1041, 0x02_00_00),
    ] {
        let mut driver = bench.driver(device);
        assert_eq!(driver.function.config_read(0, 4), id << 16 | 0x1af4);
        assert_eq!(driver.function.config_read(8, 4), class << 8 | 1);
        assert!(driver.function.config_read(0x2e, 2) >= 0x40);
        assert_eq!(driver.function.config_read(0x3d, 1), 1);
        assert_eq!(driver.common.len, 60);
        assert!(driver.notify.len >= 4 && driver.isr.len == 1 && driver.window_cap != 0);
        assert_eq!(driver.common_read(0x10, 2), u64::from(NO_VECTOR));
        assert_eq!(driver.status(), 0);
    }
}

#[test]
fn features_are_refused_without_version_1_or_beyond_the_offer() {
    let bench = bench();
    let mut driver = bench.driver(memory_disk(&bench, false).0);
    let agreed = driver.negotiate(ALL);
    assert_ne!(agreed & VIRTIO_F_VERSION_1, 0);
    assert_eq!(driver.status(), ACKNOWLEDGE | DRIVER | FEATURES_OK);
    // Too late to change.
    driver.common_write(0x08, 4, 0);
    driver.common_write(0x0c, 4, 0);
    assert_eq!(driver.common_read(0x0c, 4), agreed & 0xffff_ffff);
    driver.negotiate(ALL & !VIRTIO_F_VERSION_1);
    assert_eq!(driver.status(), ACKNOWLEDGE | DRIVER);
    driver.set_status(0);
    driver.common_write(0x08, 4, 0);
    driver.common_write(0x0c, 4, 0xffff_ffff);
    driver.common_write(0x08, 4, 1);
    driver.common_write(0x0c, 4, 1);
    driver.set_status(FEATURES_OK);
    assert_eq!(driver.status(), 0);
    driver.set_status(DRIVER_OK);
    assert_eq!(driver.status(), 0);
}

#[test]
fn a_sector_is_written_and_read_back_with_intx() {
    let mut g = blk_guest();
    g.bench.put(BUFFER, &[0x5a; 1024]);
    assert_eq!(g.request(VIRTIO_BLK_T_OUT, 3, &[Desc::readable(BUFFER, 1024)]), VIRTIO_BLK_S_OK);
    assert!(g.bench.probe.level(GSI));
    assert_eq!(g.driver.take_isr(), ISR_QUEUE);
    assert!(!g.bench.probe.level(GSI));
    assert_eq!(g.driver.take_isr(), 0);
    assert!(g.disk.bytes()[1536..2560].iter().all(|&b| b == 0x5a));
    let data = [Desc::writable(BUFFER + 0x800, 100), Desc::writable(BUFFER + 0xc00, 412)];
    assert_eq!(g.request(VIRTIO_BLK_T_IN, 4, &data), VIRTIO_BLK_S_OK);
    assert_eq!(g.bench.get(BUFFER + 0xc00, 412), vec![0x5a; 412]);
}

#[test]
fn any_framing_of_a_request_is_understood() {
    let mut g = blk_guest();
    g.disk.put(512, &[7; 512]);
    g.header(DATA, VIRTIO_BLK_T_IN, 1);
    // The header in two parts, data and status in one buffer.
    g.ring.add(&[Desc::readable(DATA, 5), Desc::readable(DATA + 5, 11), Desc::writable(BUFFER, 513)]);
    g.driver.kick(0);
    assert_eq!(g.ring.take_used().unwrap().1, 513);
    assert_eq!(g.bench.get(BUFFER, 513), [vec![7; 512], vec![0]].concat());
    // Header and data of a write in one buffer, through an indirect table.
    g.header(DATA + 0x2000, VIRTIO_BLK_T_OUT, 0);
    g.ring.add_indirect(DATA + 0x4000, &[Desc::readable(DATA + 0x2000, 16 + 512), Desc::writable(STATUS, 1)]);
    g.driver.kick(0);
    assert_eq!(g.ring.take_used().unwrap().1, 1);
    assert_eq!(g.bench.byte(STATUS), VIRTIO_BLK_S_OK);
}

#[test]
fn msix_vectors_are_sent_per_queue_and_intx_stays_quiet() {
    let bench = bench();
    let (blk, _disk) = memory_disk(&bench, false);
    let mut driver = bench.driver(blk);
    driver.enable_msix();
    driver.negotiate(ALL);
    driver.common_write(0x10, 2, 0);
    assert_eq!(driver.common_read(0x10, 2), 0);
    driver.common_write(0x10, 2, 2);
    assert_eq!(driver.common_read(0x10, 2), u64::from(NO_VECTOR), "a vector that does not exist");
    driver.common_write(0x10, 2, 0);
    let mut ring = driver.setup_queue(0, 16, 1);
    driver.driver_ok();
    bench.put(DATA, &[0; 16]);
    ring.add(&[Desc::readable(DATA, 16), Desc::writable(BUFFER, 513)]);
    driver.kick(0);
    assert!(ring.take_used().is_some());
    assert_eq!(bench.probe.take_messages(), vec![(MSIX_ADDRESS, MSIX_DATA + 1)]);
    ring.publish(99);
    driver.kick(0);
    assert_eq!(bench.probe.take_messages(), vec![(MSIX_ADDRESS, MSIX_DATA)], "a broken queue is a configuration change");
    assert_ne!(driver.status() & NEEDS_RESET, 0);
    assert_eq!(bench.probe.edges(GSI), 0);
}

#[test]
fn requests_end_out_of_order_as_the_disk_ends_them() {
    let mut g = blk_guest();
    g.disk.hold(true);
    let heads: Vec<u16> = (0..3)
        .map(|i| {
            let header = g.header(DATA + 32 * i, VIRTIO_BLK_T_IN, i);
            g.ring.add(&[header, Desc::writable(BUFFER + 1024 * i, 512), Desc::writable(STATUS + i, 1)])
        })
        .collect();
    g.driver.kick(0);
    assert_eq!((g.disk.waiting(), g.ring.take_used()), (3, None));
    for (waiting, head) in [(1, heads[1]), (1, heads[2]), (0, heads[0])] {
        g.disk.release(waiting);
        g.bench.waker.wake();
        g.driver.function.poll(1);
        assert_eq!(g.ring.take_used(), Some((head, 513)));
    }
}

#[test]
fn a_read_of_the_isr_drops_the_line_and_a_completion_after_it_raises_it_again() {
    let mut g = blk_guest();
    g.disk.hold(true);
    for i in 0..4 {
        let header = g.header(DATA + 32 * i, VIRTIO_BLK_T_IN, i);
        g.ring.add(&[header, Desc::writable(BUFFER + 1024 * i, 512), Desc::writable(STATUS + i, 1)]);
    }
    g.driver.kick(0);
    let mut expected = g.bench.probe.edges(GSI);
    let end_one = |g: &BlkGuest| {
        g.disk.release(0);
        g.bench.waker.wake();
    };
    // One ends, and the next while the driver handles it: the board comes by after the driver has read the cause.
    end_one(&g);
    for turn in 0..2 {
        g.driver.function.poll(1);
        expected += 1;
        assert_eq!((g.bench.probe.level(GSI), g.bench.probe.edges(GSI)), (true, expected));
        assert!(g.ring.take_used().is_some());
        if turn == 0 {
            end_one(&g);
        }
        assert_eq!(g.driver.take_isr(), ISR_QUEUE);
        assert!(!g.bench.probe.level(GSI), "the read empties and does not fill");
        assert_eq!(g.ring.take_used(), None);
    }
    // Two end under one cause, and one read is enough for both.
    end_one(&g);
    end_one(&g);
    g.driver.function.poll(1);
    assert_eq!((g.bench.probe.level(GSI), g.bench.probe.edges(GSI)), (true, expected + 1));
    assert_eq!(g.driver.take_isr(), ISR_QUEUE);
    assert!(g.ring.take_used().is_some() && g.ring.take_used().is_some());
    assert_eq!((g.disk.waiting(), g.bench.probe.level(GSI), g.driver.take_isr()), (0, false, 0));
}

#[test]
fn a_write_through_cache_flushes_before_a_write_ends() {
    let mut g = blk_guest_with(VIRTIO_F_VERSION_1, false);
    g.request(VIRTIO_BLK_T_OUT, 0, &[Desc::readable(BUFFER, 512)]);
    assert_eq!(g.disk.take_seen(), vec![DiskOp::Write, DiskOp::Flush]);

    let mut g = blk_guest();
    g.request(VIRTIO_BLK_T_OUT, 0, &[Desc::readable(BUFFER, 512)]);
    assert_eq!(g.disk.take_seen(), vec![DiskOp::Write]);
    assert_eq!(g.driver.device_read(32, 1), 1);
    g.driver.device_write(32, 1, 0);
    g.request(VIRTIO_BLK_T_OUT, 0, &[Desc::readable(BUFFER, 512)]);
    assert_eq!(g.disk.take_seen(), vec![DiskOp::Write, DiskOp::Flush]);
    assert_eq!(g.request(VIRTIO_BLK_T_FLUSH, 0, &[]), VIRTIO_BLK_S_OK);
    assert_eq!(g.disk.take_seen(), vec![DiskOp::Flush]);
}

#[test]
fn discard_and_write_zeroes_take_several_ranges() {
    let mut g = blk_guest();
    g.disk.put(0, &[1; 4096]);
    let range = |sector: u64, sectors: u32, flags: u32| {
        [&sector.to_le_bytes()[..], &sectors.to_le_bytes(), &flags.to_le_bytes()].concat()
    };
    g.bench.put(BUFFER, &[range(0, 1, 0), range(2, 1, 1)].concat());
    assert_eq!(g.request(VIRTIO_BLK_T_WRITE_ZEROES, 0, &[Desc::readable(BUFFER, 32)]), VIRTIO_BLK_S_OK);
    let disk = g.disk.bytes();
    assert_eq!([disk[0], disk[512], disk[1024], disk[1536]], [0, 1, 0, 1]);
    assert_eq!(g.disk.take_seen().len(), 2);
    // A discard must not have the unmap flag; a range must be on the disk; the list must be whole.
    assert_eq!(g.request(VIRTIO_BLK_T_DISCARD, 0, &[Desc::readable(BUFFER, 32)]), VIRTIO_BLK_S_UNSUPP);
    assert_eq!(g.request(VIRTIO_BLK_T_DISCARD, 0, &[Desc::readable(BUFFER, 16)]), VIRTIO_BLK_S_OK);
    assert_eq!(g.request(VIRTIO_BLK_T_DISCARD, 0, &[Desc::readable(BUFFER, 17)]), VIRTIO_BLK_S_IOERR);
    assert_eq!(g.request(VIRTIO_BLK_T_DISCARD, 0, &[]), VIRTIO_BLK_S_IOERR);
    g.bench.put(BUFFER, &range(DISK_BYTES / 512, 1, 0));
    assert_eq!(g.request(VIRTIO_BLK_T_DISCARD, 0, &[Desc::readable(BUFFER, 16)]), VIRTIO_BLK_S_IOERR);
    g.bench.put(BUFFER, &range(0, u32::MAX, 0));
    assert_eq!(g.request(VIRTIO_BLK_T_WRITE_ZEROES, 0, &[Desc::readable(BUFFER, 16)]), VIRTIO_BLK_S_IOERR);
}

#[test]
fn the_serial_is_twenty_bytes() {
    let mut g = blk_guest();
    assert_eq!(g.request(VIRTIO_BLK_T_GET_ID, 0, &[Desc::writable(BUFFER, 20)]), VIRTIO_BLK_S_OK);
    assert_eq!(g.bench.get(BUFFER, 20), b"a-serial-of-more-tha");
    assert_eq!(g.request(VIRTIO_BLK_T_GET_ID, 0, &[Desc::writable(BUFFER, 19)]), VIRTIO_BLK_S_IOERR);
}

#[test]
fn requests_that_are_wrong_end_in_an_error_and_the_queue_lives() {
    let mut g = blk_guest();
    let last = DISK_BYTES / 512;
    for (kind, sector, data, status) in [
        (VIRTIO_BLK_T_IN, last, Desc::writable(BUFFER, 512), VIRTIO_BLK_S_IOERR),
        (VIRTIO_BLK_T_IN, last - 1, Desc::writable(BUFFER, 1024), VIRTIO_BLK_S_IOERR),
        (VIRTIO_BLK_T_IN, u64::MAX, Desc::writable(BUFFER, 512), VIRTIO_BLK_S_IOERR),
        (VIRTIO_BLK_T_IN, u64::MAX / 512, Desc::writable(BUFFER, 512), VIRTIO_BLK_S_IOERR),
        (VIRTIO_BLK_T_IN, 0, Desc::writable(BUFFER, 511), VIRTIO_BLK_S_IOERR),
        (VIRTIO_BLK_T_OUT, 0, Desc::readable(BUFFER, 1), VIRTIO_BLK_S_IOERR),
        (VIRTIO_BLK_T_IN, 0, Desc::writable(BUFFER, 0), VIRTIO_BLK_S_OK),
        (2, 0, Desc::writable(BUFFER, 512), VIRTIO_BLK_S_UNSUPP),
        (u32::MAX, 0, Desc::readable(BUFFER, 512), VIRTIO_BLK_S_UNSUPP),
        (VIRTIO_BLK_T_IN, 1, Desc::writable(BUFFER, 512), VIRTIO_BLK_S_OK),
    ] {
        assert_eq!(g.request(kind, sector, &[data]), status, "{kind} {sector} {data:?}");
    }
    // No room for a status; a header that is too short; no buffers at all.
    for chain in [
        vec![Desc::readable(DATA, 16)],
        vec![Desc::readable(DATA, 15), Desc::writable(STATUS, 1)],
        vec![Desc::readable(DATA, 0)],
        vec![Desc::writable(STATUS, 1)],
    ] {
        let head = g.ring.add(&chain);
        g.driver.kick(0);
        assert_eq!(g.ring.take_used().map(|(h, _)| h), Some(head));
    }
    g.disk.fail(true);
    assert_eq!(g.request(VIRTIO_BLK_T_IN, 0, &[Desc::writable(BUFFER, 512)]), VIRTIO_BLK_S_IOERR);
    assert_eq!(g.driver.status() & NEEDS_RESET, 0);
}

#[test]
fn a_read_only_disk_says_so_and_takes_no_write() {
    let mut g = blk_guest_with(ALL, true);
    g.driver.common_write(0, 4, 0);
    let offered = g.driver.common_read(4, 4);
    assert_ne!(offered & VIRTIO_BLK_F_RO, 0);
    assert_eq!(offered & (VIRTIO_BLK_F_DISCARD | VIRTIO_BLK_F_WRITE_ZEROES), 0);
    g.bench.put(BUFFER, &[9; 512]);
    assert_eq!(g.request(VIRTIO_BLK_T_OUT, 0, &[Desc::readable(BUFFER, 512)]), VIRTIO_BLK_S_IOERR);
    assert_eq!(g.request(VIRTIO_BLK_T_WRITE_ZEROES, 0, &[Desc::readable(BUFFER, 16)]), VIRTIO_BLK_S_IOERR);
    assert!(g.disk.bytes().iter().all(|&b| b == 0));
}

/// A guest whose disk has `queues` queues, with a ring and a vector of its own for each, and MSI-X.
fn queues_guest(queues: u16) -> (Bench, PciDriver, Vec<MockDriver>, MemoryDiskHandle) {
    let bench = bench();
    let (disk, handle) = MemoryDisk::new(&bench.mem, DISK_BYTES, false);
    let options = BlkOptions { queues, ..BlkOptions::default() };
    let mut driver = bench.driver(Box::new(Blk::new(Box::new(disk), &options)));
    driver.enable_msix();
    assert_eq!(driver.negotiate(ALL & !VIRTIO_F_EVENT_IDX) & VIRTIO_BLK_F_MQ != 0, queues > 1);
    let count = driver.common_read(0x12, 2) as u16;
    let rings = (0..count).map(|queue| driver.setup_queue(queue, 8, queue + 1)).collect();
    driver.driver_ok();
    (bench, driver, rings, handle)
}

/// Puts a read of sector `index` into a ring, with header, data and status of its own.
fn add_read(bench: &Bench, ring: &mut MockDriver, index: u64) -> u16 {
    let at = DATA + 0x1000 * index;
    bench.put(at, &[&VIRTIO_BLK_T_IN.to_le_bytes()[..], &[0; 4], &index.to_le_bytes()].concat());
    bench.put(at + 0x100, &[0xff]);
    ring.add(&[Desc::readable(at, 16), Desc::writable(at + 0x200, 512), Desc::writable(at + 0x100, 1)])
}

#[test]
fn each_queue_of_a_disk_is_served_and_interrupts_by_its_own_vector() {
    let (bench, mut driver, mut rings, disk) = queues_guest(3);
    assert_eq!((rings.len(), driver.device_read(34, 2)), (3, 3));
    disk.hold(true);
    let heads: Vec<u16> = (0..3).map(|queue| add_read(&bench, &mut rings[queue], queue as u64)).collect();
    (0..3).for_each(|queue| driver.kick(queue));
    assert_eq!(disk.waiting(), 3);
    for queue in [2, 0, 1] {
        disk.put(512 * queue, &[queue as u8 + 1; 512]);
        disk.release(if queue == 2 { 2 } else { 0 });
        bench.waker.wake();
        driver.function.poll(1);
        assert_eq!(rings[queue].take_used(), Some((heads[queue], 513)));
        assert_eq!(bench.get(DATA + 0x1000 * queue as u64 + 0x200, 512), vec![queue as u8 + 1; 512]);
        assert_eq!(bench.probe.take_messages(), [(MSIX_ADDRESS, MSIX_DATA + 1 + queue as u32)]);
    }
    let (_, mut alone, rings, _) = queues_guest(1);
    assert_eq!((rings.len(), alone.device_read(34, 2)), (1, 1));
    assert_eq!(queues_guest(u16::MAX).2.len(), usize::from(QUEUES_MAX), "whatever it is asked for");
}

#[test]
fn a_reset_of_one_queue_leaves_the_requests_of_the_others_alone() {
    let (bench, mut driver, mut rings, disk) = queues_guest(2);
    disk.hold(true);
    let head = add_read(&bench, &mut rings[0], 0);
    add_read(&bench, &mut rings[1], 1);
    (0..2).for_each(|queue| driver.kick(queue));
    driver.common_write(0x16, 2, 1);
    driver.common_write(0x3a, 2, 1);
    assert_eq!((driver.common_read(0x3a, 2), driver.common_read(0x1c, 2)), (1, 0), "it goes on as long as the request");
    driver.common_write(0x1c, 2, 1);
    assert_eq!((driver.common_read(0x1c, 2), bench.errors.count()), (0, 1));
    while disk.waiting() > 0 {
        disk.release(0);
    }
    bench.waker.wake();
    driver.function.poll(1);
    driver.common_write(0x16, 2, 1);
    assert_eq!((driver.common_read(0x3a, 2), driver.common_read(0x1c, 2)), (0, 0));
    assert_eq!((rings[0].take_used(), rings[1].take_used()), (Some((head, 513)), None));
    assert_eq!((bench.byte(DATA + 0x100), bench.byte(DATA + 0x1100)), (VIRTIO_BLK_S_OK, 0xff));
}

#[test]
fn requests_in_flight_on_several_queues_survive_a_saved_state() {
    let (bench, mut driver, mut rings, disk) = queues_guest(2);
    disk.hold(true);
    let heads: Vec<u16> = (0..2).map(|queue| add_read(&bench, &mut rings[queue], queue as u64)).collect();
    (0..2).for_each(|queue| driver.kick(queue));
    let state = driver.function.save();
    let twin_of = |queues| {
        let options = BlkOptions { queues, ..BlkOptions::default() };
        bench.function(Box::new(Blk::new(Box::new(MemoryDisk::new(&bench.mem, DISK_BYTES, false).0), &options)))
    };
    let mut twin = twin_of(2);
    twin.load(&state).unwrap();
    assert_eq!(twin.save(), state);
    twin.poll(0);
    assert_eq!([rings[0].take_used(), rings[1].take_used()], [Some((heads[0], 513)), Some((heads[1], 513))]);
    assert!(twin_of(1).load(&state).is_err() && twin_of(3).load(&state).is_err(), "a disk with other queues");
}

#[test]
fn hostile_rings_ask_for_a_reset_and_work_again_after_it() {
    type Attack = fn(&mut MockDriver);
    let attacks: [Attack; 12] = [
        // An indirect table out of memory, one that ends out of it, one that holds another, one of no whole descriptors.
        |r| _ = r.add(&[Desc { addr: 1 << 40, len: 32, flags: 4, next: 0 }]),
        |r| _ = r.add(&[Desc { addr: (1 << 20) - 16, len: 32, flags: 4, next: 0 }]),
        |r| _ = r.add_indirect(DATA, &[Desc { addr: DATA + 0x100, len: 16, flags: 4, next: 0 }]),
        |r| _ = r.add(&[Desc { addr: DATA, len: 24, flags: 4, next: 0 }]),
        // A chain whose indirect table points to itself as data, and in a circle.
        |r| {
            r.set_table(
                DATA,
                &[
                    Desc { addr: DATA, len: 16, flags: DESC_F_NEXT, next: 1 },
                    Desc { addr: DATA, len: 16, flags: DESC_F_NEXT, next: 0 },
                ],
            );
            r.add(&[Desc { addr: DATA, len: 32, flags: 4, next: 0 }]);
        },
        |r| {
            r.set_desc(0, Desc { flags: DESC_F_NEXT, next: 0, ..Desc::readable(DATA, 16) });
            r.publish(0);
        },
        |r| r.publish(0x8000),
        |r| r.set_avail_idx(0x7fff),
        |r| _ = r.add(&[Desc::readable(1 << 40, 16), Desc::writable(STATUS, 1)]),
        |r| _ = r.add(&[Desc::readable(DATA, u32::MAX), Desc::writable(STATUS, 1)]),
        |r| _ = r.add(&[Desc::writable(STATUS, 1), Desc::readable(DATA, 16)]),
        |r| _ = r.add(&[Desc { addr: DATA, len: 16, flags: 4 | DESC_F_WRITE | DESC_F_NEXT, next: 1 }]),
    ];
    for attack in attacks {
        let mut g = blk_guest();
        attack(&mut g.ring);
        g.driver.kick(0);
        assert_ne!(g.driver.status() & NEEDS_RESET, 0);
        assert_eq!(g.bench.errors.count(), 1, "counted once for each reset");
        assert_eq!(g.driver.take_isr() & ISR_CONFIG, ISR_CONFIG);
        g.driver.kick(0);
        assert_eq!(g.ring.take_used(), None);
        g.driver.negotiate(ALL & !VIRTIO_F_EVENT_IDX);
        g.ring = g.driver.setup_queue(0, 0, NO_VECTOR);
        g.driver.driver_ok();
        assert_eq!(g.driver.status() & NEEDS_RESET, 0);
        assert_eq!(g.request(VIRTIO_BLK_T_IN, 0, &[Desc::writable(BUFFER, 512)]), VIRTIO_BLK_S_OK);
    }
}

#[test]
fn a_reset_is_done_when_the_disk_is_and_forgets_what_was_in_flight() {
    let mut g = blk_guest();
    let running = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK;
    g.disk.hold(true);
    let header = g.header(DATA, VIRTIO_BLK_T_IN, 0);
    g.ring.add(&[header, Desc::writable(BUFFER, 512), Desc::writable(STATUS, 1)]);
    g.driver.kick(0);
    assert_eq!(g.disk.waiting(), 1);
    g.driver.set_status(0);
    assert_eq!((g.driver.status(), g.disk.waiting()), (running, 1), "the disk may still write to the driver's buffer");
    // A driver that does not wait gets nowhere, and asking again is no mistake.
    g.driver.set_status(0);
    assert_eq!(g.bench.errors.count(), 0);
    g.driver.set_status(ACKNOWLEDGE);
    g.driver.kick(0);
    assert_eq!((g.driver.status(), g.disk.waiting()), (running, 1));
    assert!(g.bench.errors.count() > 0);
    // Saved now, it is a device that was reset.
    let state = g.driver.function.save();
    let (blk, twin_disk) = memory_disk(&g.bench, false);
    let mut twin = g.bench.function(blk);
    twin.load(&state).unwrap();
    assert_eq!((twin.save(), twin.deadline_ns(), twin_disk.take_seen()), (state, None, vec![]));
    g.disk.release(0);
    g.bench.waker.wake();
    g.driver.function.poll(4);
    assert_eq!(g.driver.status(), 0);
    g.driver.common_write(0x16, 2, 0);
    assert_eq!(g.driver.common_read(0x1c, 2), 0);
    assert_eq!(g.driver.common_read(0x20, 8), 0);
    g.bench.waker.wake();
    g.driver.function.poll(5);
    assert_eq!((g.ring.take_used(), g.bench.byte(STATUS)), (None, 0xff));
}

#[test]
fn one_queue_can_be_reset_and_enabled_again() {
    let mut g = blk_guest();
    g.request(VIRTIO_BLK_T_IN, 0, &[Desc::writable(BUFFER, 512)]);
    g.driver.common_write(0x16, 2, 0);
    g.driver.common_write(0x3a, 2, 1);
    assert_eq!((g.driver.common_read(0x3a, 2), g.driver.common_read(0x1c, 2)), (0, 0));
    g.ring = g.driver.setup_queue(0, 8, NO_VECTOR);
    assert_eq!(g.request(VIRTIO_BLK_T_IN, 0, &[Desc::writable(BUFFER, 512)]), VIRTIO_BLK_S_OK);
}

#[test]
fn queue_registers_of_a_queue_that_is_not_there_read_as_zeros() {
    let mut g = blk_guest();
    g.driver.common_write(0x16, 2, 1);
    for offset in (0x18..0x3c).step_by(2) {
        g.driver.common_write(offset, 2, 1);
        assert_eq!(g.driver.common_read(offset, 2), 0);
    }
}

#[test]
fn guest_memory_is_left_alone_while_bus_mastering_is_off() {
    let mut g = blk_guest();
    g.driver.function.config_write(4, 2, 0x2);
    let header = g.header(DATA, VIRTIO_BLK_T_IN, 0);
    g.ring.add(&[header, Desc::writable(BUFFER, 512), Desc::writable(STATUS, 1)]);
    g.driver.kick(0);
    assert_eq!(g.ring.take_used(), None);
    g.driver.function.config_write(4, 2, 0x6);
    g.driver.function.poll(1);
    assert!(g.ring.take_used().is_some());
}

#[test]
fn the_window_in_configuration_space_reaches_the_registers() {
    let mut g = blk_guest();
    let cap = g.driver.window_cap;
    g.driver.function.config_write(cap + 4, 1, 0);
    g.driver.function.config_write(cap + 8, 4, 0x14);
    g.driver.function.config_write(cap + 12, 4, 1);
    assert_eq!(g.driver.function.config_read(cap + 16, 1) as u8, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    g.driver.function.config_write(cap + 16, 1, 0);
    assert_eq!(g.driver.status(), 0);
    for (bar, offset, len) in [(2, 0, 4), (0, 1, 4), (0, 0x4000, 4), (0, 0, 8), (0, 0, 3), (255, 0xffff_fffc, 4)] {
        g.driver.function.config_write(cap + 4, 1, bar);
        g.driver.function.config_write(cap + 8, 4, offset);
        g.driver.function.config_write(cap + 12, 4, len);
        assert_eq!(g.driver.function.config_read(cap + 16, 4), 0);
        g.driver.function.config_write(cap + 16, 4, 0xffff_ffff);
    }
}

#[test]
fn requests_in_flight_survive_a_saved_state() {
    let mut g = blk_guest();
    g.disk.hold(true);
    g.bench.put(BUFFER, &[3; 512]);
    let header = g.header(DATA, VIRTIO_BLK_T_OUT, 2);
    let head = g.ring.add(&[header, Desc::readable(BUFFER, 512), Desc::writable(STATUS, 1)]);
    g.driver.kick(0);
    let state = g.driver.function.save();
    let (blk, disk) = memory_disk(&g.bench, false);
    let mut twin = g.bench.function(blk);
    twin.load(&state).unwrap();
    assert_eq!(twin.save(), state);
    assert_eq!(twin.deadline_ns(), Some(0));
    twin.poll(0);
    assert_eq!(g.ring.take_used(), Some((head, 1)));
    assert_eq!(disk.bytes()[1024], 3);
    assert!(g.bench.probe.level(GSI));
}

#[test]
fn a_device_that_must_be_quiet_begins_nothing_and_ends_what_it_has() {
    let mut g = blk_guest();
    assert!(g.driver.function.quiesce());
    g.driver.function.resume();
    g.disk.hold(true);
    let add = |g: &mut BlkGuest, sector| {
        let header = g.header(DATA + 32 * sector, VIRTIO_BLK_T_IN, sector);
        let head = g.ring.add(&[header, Desc::writable(BUFFER, 512), Desc::writable(STATUS, 1)]);
        g.driver.kick(0);
        head
    };
    let first = add(&mut g, 0);
    assert!(!g.driver.function.quiesce(), "a request is with the host");
    let second = add(&mut g, 1);
    assert_eq!(g.disk.waiting(), 1, "the second one waits");
    g.disk.release(0);
    assert!(g.driver.function.quiesce());
    assert_eq!(g.driver.function.deadline_ns(), None);
    g.driver.function.resume();
    assert_eq!(g.driver.function.deadline_ns(), Some(0));
    g.disk.hold(false);
    g.driver.function.poll(0);
    assert_eq!([g.ring.take_used(), g.ring.take_used()], [Some((first, 513)), Some((second, 513))]);
}

/// A link whose other end the test holds.
#[derive(Clone, Default)]
struct Wire {
    sent: Arc<Mutex<Vec<Vec<u8>>>>,
    arriving: Arc<Mutex<VecDeque<Vec<u8>>>>,
}

impl Nic for Wire {
    fn transmit(&mut self, frame: &[u8]) {
        self.sent.lock().unwrap().push(frame.to_vec());
    }
    fn receive(&mut self) -> Option<Vec<u8>> {
        self.arriving.lock().unwrap().pop_front()
    }
}

struct NetGuest {
    bench: Bench,
    driver: PciDriver,
    rx: MockDriver,
    tx: MockDriver,
    wire: Wire,
}

/// A link that takes and gives a header before each frame.
#[derive(Clone, Default)]
struct OffloadingWire {
    wire: Wire,
    accepted: Arc<Mutex<Offloads>>,
}

impl Nic for OffloadingWire {
    fn transmit(&mut self, packet: &[u8]) {
        self.wire.transmit(packet);
    }
    fn receive(&mut self) -> Option<Vec<u8>> {
        self.wire.receive()
    }
    fn has_headers(&self) -> bool {
        true
    }
    fn accept(&mut self, offloads: Offloads) {
        *self.accepted.lock().unwrap() = offloads;
    }
}

fn net_guest(features: u64, rx_size: u16) -> NetGuest {
    let wire = Wire::default();
    net_guest_on(Box::new(wire.clone()), wire, features, rx_size)
}

fn net_guest_on(nic: Box<dyn Nic>, wire: Wire, features: u64, rx_size: u16) -> NetGuest {
    let bench = bench();
    let mut driver = bench.driver(Box::new(Net::new(nic, [0x52, 0x54, 0, 1, 2, 3], 1500)));
    driver.negotiate(features);
    let rx = driver.setup_queue(0, rx_size, NO_VECTOR);
    let tx = driver.setup_queue(1, 0, NO_VECTOR);
    driver.driver_ok();
    NetGuest { bench, driver, rx, tx, wire }
}

impl NetGuest {
    fn arrive(&mut self, frame: Vec<u8>) {
        self.wire.arriving.lock().unwrap().push_back(frame);
        self.bench.waker.wake();
        self.driver.function.poll(1);
    }
}

#[test]
fn frames_are_sent_without_their_header_and_wrong_ones_dropped() {
    let mut g = net_guest(ALL, 0);
    assert_eq!(g.driver.device_read(0, 4), 0x0100_5452);
    assert_eq!(g.driver.device_read(6, 2), 1);
    g.bench.put(BUFFER, &(0..100).collect::<Vec<u8>>());
    g.tx.add(&[Desc::readable(BUFFER, 10), Desc::readable(BUFFER + 10, 90)]);
    g.tx.add(&[Desc::readable(BUFFER, 12)]);
    g.tx.add(&[Desc::readable(BUFFER, 3)]);
    g.tx.add(&[Desc::readable(0, 70_000)]);
    g.tx.add(&[Desc::writable(BUFFER, 100)]);
    g.driver.kick(1);
    assert_eq!(*g.wire.sent.lock().unwrap(), vec![(12..100).collect::<Vec<u8>>()]);
    assert_eq!(std::iter::from_fn(|| g.tx.take_used()).count(), 5);
    assert_eq!(g.bench.errors.count(), 4);
    assert_eq!(g.driver.status() & NEEDS_RESET, 0);
}

#[test]
fn offloads_are_offered_where_the_back_end_has_headers_and_it_hears_what_the_driver_takes() {
    let offered = |nic: Box<dyn Nic>| Net::new(nic, [0; 6], 1500).features();
    assert_eq!(offered(Box::<Wire>::default()) & 0x3f83, 0);
    assert_eq!(offered(Box::<OffloadingWire>::default()) & 0x3f83, 0x3b83);
    let nic = OffloadingWire::default();
    let some = VIRTIO_F_VERSION_1 | VIRTIO_NET_F_GUEST_CSUM | VIRTIO_NET_F_GUEST_TSO6;
    let mut g = net_guest_on(Box::new(nic.clone()), nic.wire.clone(), some, 0);
    let accepted = || *nic.accepted.lock().unwrap();
    assert_eq!(accepted(), Offloads { checksum: true, tso6: true, ..Offloads::default() });
    g.driver.set_status(0);
    assert_eq!(accepted(), Offloads::default());
}

#[test]
fn a_header_passes_as_far_as_it_was_negotiated() {
    let sent = |features: u64, flags: u8, gso: u8| {
        let nic = OffloadingWire::default();
        let mut g = net_guest_on(Box::new(nic.clone()), nic.wire.clone(), features | VIRTIO_F_VERSION_1, 0);
        g.bench.put(BUFFER, &[flags, gso, 2, 0, 3, 0, 4, 0, 5, 0, 6, 7, 0xaa, 0xbb]);
        g.tx.add(&[Desc::readable(BUFFER, 14)]);
        g.driver.kick(1);
        assert_eq!(std::iter::from_fn(|| g.tx.take_used()).count(), 1);
        let sent = nic.wire.sent.lock().unwrap().pop();
        assert_eq!(g.bench.errors.count(), u64::from(sent.is_none()));
        sent
    };
    // Flags that are the device's alone, and `num_buffers`, are cleared.
    let packet = |flags: u8, gso: u8| Some(vec![flags, gso, 2, 0, 3, 0, 4, 0, 5, 0, 0, 0, 0xaa, 0xbb]);
    assert_eq!(sent(0, 0xff, 0), packet(0, 0));
    assert_eq!(sent(VIRTIO_NET_F_CSUM, 0xff, 0), packet(VIRTIO_NET_HDR_F_NEEDS_CSUM, 0));
    let (tcp4, tcp6, ecn) = (VIRTIO_NET_HDR_GSO_TCPV4, VIRTIO_NET_HDR_GSO_TCPV6, VIRTIO_NET_HDR_GSO_ECN);
    let all = VIRTIO_NET_F_CSUM | VIRTIO_NET_F_HOST_TSO4 | VIRTIO_NET_F_HOST_TSO6;
    assert_eq!(sent(all, 1, tcp4), packet(1, tcp4));
    assert_eq!(sent(all, 1, tcp6), packet(1, tcp6));
    assert_eq!(sent(all | VIRTIO_NET_F_HOST_ECN, 1, tcp4 | ecn), packet(1, tcp4 | ecn));
    for (features, gso) in [(0, tcp4), (all & !VIRTIO_NET_F_HOST_TSO6, tcp6), (all, tcp4 | ecn), (all, ecn), (ALL, 3), (ALL, 5)] {
        assert_eq!(sent(features, 1, gso), None, "{features:#x} {gso:#x}");
    }
}

#[test]
fn a_packet_with_a_header_is_received_with_its_number_of_buffers() {
    let nic = OffloadingWire::default();
    let all = ALL & !(1 << 28);
    let mut g = net_guest_on(Box::new(nic.clone()), nic.wire.clone(), all, 0);
    for at in 0..2 {
        g.rx.add(&[Desc::writable(BUFFER + 0x100 * at, 40)]);
    }
    g.arrive([&[1, 1, 2, 0, 3, 0, 4, 0, 5, 0, 9, 9][..], &[0xaa; 50]].concat());
    assert_eq!((g.rx.take_used().unwrap().1, g.rx.take_used().unwrap().1), (40, 22));
    assert_eq!(g.bench.get(BUFFER, 14), [1, 1, 2, 0, 3, 0, 4, 0, 5, 0, 2, 0, 0xaa, 0xaa]);
    // One that is only a header, and one that needs what this driver does not take.
    let mut plain = net_guest_on(Box::new(nic.clone()), nic.wire.clone(), VIRTIO_F_VERSION_1, 0);
    plain.rx.add(&[Desc::writable(BUFFER, 400)]);
    plain.arrive(vec![0; HEADER_BYTES]);
    plain.arrive([&[1; 1][..], &[0; 60]].concat());
    assert_eq!(plain.rx.take_used(), None);
    plain.arrive(vec![0; 60]);
    assert_eq!(plain.rx.take_used().unwrap().1, 60);
}

#[test]
fn a_frame_waits_for_buffers_and_may_take_several() {
    let mut g = net_guest(ALL, 0);
    g.arrive((0..200).collect());
    g.arrive(vec![9; 60]);
    assert_eq!(g.rx.take_used(), None);
    assert_eq!(g.wire.arriving.lock().unwrap().len(), 1, "the back end is left alone while a frame waits");
    g.rx.add(&[Desc::writable(BUFFER, 100)]);
    g.driver.kick(0);
    assert_eq!(g.rx.take_used(), None);
    g.rx.add(&[Desc::writable(BUFFER + 0x100, 50)]);
    g.rx.add(&[Desc::writable(BUFFER + 0x200, 100)]);
    g.rx.add(&[Desc::writable(BUFFER + 0x300, 100)]);
    g.driver.kick(0);
    let lengths: Vec<u32> = std::iter::from_fn(|| g.rx.take_used()).map(|(_, len)| len).collect();
    assert_eq!(lengths, vec![100, 50, 62, 72]);
    assert_eq!(g.bench.get(BUFFER, 12), [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3, 0]);
    let mut frame = g.bench.get(BUFFER + 12, 88);
    frame.extend(g.bench.get(BUFFER + 0x100, 50));
    frame.extend(g.bench.get(BUFFER + 0x200, 62));
    assert_eq!(frame, (0..200).collect::<Vec<u8>>());
    assert_eq!(g.bench.get(BUFFER + 0x300 + 10, 3), [1, 0, 9]);
}

#[test]
fn without_mergeable_buffers_a_frame_that_does_not_fit_is_dropped() {
    let mut g = net_guest(ALL & !VIRTIO_NET_F_MRG_RXBUF, 0);
    g.rx.add(&[Desc::writable(BUFFER, 100)]);
    g.arrive(vec![1; 89]);
    g.arrive(vec![2; 88]);
    assert_eq!(g.rx.take_used().map(|(_, len)| len), Some(100));
    assert_eq!(g.bench.get(BUFFER + 10, 3), [1, 0, 2]);
    assert_eq!(g.bench.errors.count(), 1);
}

#[test]
fn a_frame_that_the_whole_ring_cannot_hold_is_dropped() {
    let mut g = net_guest(ALL, 2);
    g.rx.add(&[Desc::writable(BUFFER, 20)]);
    g.rx.add(&[Desc::writable(BUFFER + 0x100, 20)]);
    g.driver.kick(0);
    g.arrive(vec![1; 29]);
    assert_eq!(g.rx.take_used(), None);
    assert_eq!(g.bench.errors.count(), 1);
    g.arrive(vec![2; 28]);
    assert_eq!(std::iter::from_fn(|| g.rx.take_used()).count(), 2);
    g.arrive(Vec::new());
    g.arrive(vec![0; FRAME_MAX + 1]);
    assert_eq!(g.driver.status() & NEEDS_RESET, 0);
}

#[test]
fn random_bytes_fill_a_chain_up_to_a_bound() {
    let bench = bench();
    let mut driver = bench.driver(Box::new(Rng::new()));
    assert_eq!(driver.device.len, 0);
    driver.negotiate(ALL);
    let mut ring = driver.setup_queue(0, 0, NO_VECTOR);
    driver.driver_ok();
    ring.add(&[Desc::writable(BUFFER, 64), Desc::writable(BUFFER + 0x100, 64)]);
    ring.add(&[Desc::writable(BUFFER + 0x1000, 0x10000)]);
    ring.add(&[Desc::readable(BUFFER, 64)]);
    driver.kick(0);
    let lengths: Vec<u32> = std::iter::from_fn(|| ring.take_used()).map(|(_, len)| len).collect();
    assert_eq!(lengths, vec![128, 4096, 0]);
    assert_ne!(bench.get(BUFFER, 64), bench.get(BUFFER + 0x100, 64));
}

#[derive(Clone, Default)]
struct Loopback {
    out: Arc<Mutex<Vec<u8>>>,
    input: Arc<Mutex<VecDeque<u8>>>,
    room: Arc<Mutex<Option<usize>>>,
}

impl CharBackend for Loopback {
    fn write(&mut self, bytes: &[u8]) -> usize {
        let mut room = self.room.lock().unwrap();
        let taken = bytes.len().min(room.unwrap_or(usize::MAX));
        if let Some(room) = room.as_mut() {
            *room -= taken;
        }
        self.out.lock().unwrap().extend_from_slice(&bytes[..taken]);
        taken
    }
    fn read(&mut self, buf: &mut [u8]) -> usize {
        let mut input = self.input.lock().unwrap();
        let taken = buf.len().min(input.len());
        for (byte, value) in buf.iter_mut().zip(input.drain(..taken)) {
            *byte = value;
        }
        taken
    }
}

fn console_guest() -> (Bench, PciDriver, MockDriver, MockDriver, Loopback) {
    let bench = bench();
    let line = Loopback::default();
    let mut driver = bench.driver(Box::new(Console::new(Box::new(line.clone()))));
    assert_ne!(driver.negotiate(ALL) & VIRTIO_CONSOLE_F_EMERG_WRITE, 0);
    let rx = driver.setup_queue(0, 0, NO_VECTOR);
    let tx = driver.setup_queue(1, 0, NO_VECTOR);
    driver.driver_ok();
    (bench, driver, rx, tx, line)
}

#[test]
fn console_bytes_go_both_ways() {
    let (bench, mut driver, mut rx, mut tx, line) = console_guest();
    bench.put(BUFFER, b"hello, world");
    tx.add(&[Desc::readable(BUFFER, 7), Desc::readable(BUFFER + 7, 5)]);
    driver.kick(1);
    assert_eq!(*line.out.lock().unwrap(), b"hello, world");
    assert!(tx.take_used().is_some());
    rx.add(&[Desc::writable(BUFFER, 4)]);
    rx.add(&[Desc::writable(BUFFER + 0x100, 4)]);
    driver.kick(0);
    assert_eq!(rx.take_used(), None);
    line.input.lock().unwrap().extend(b"abcdef");
    bench.waker.wake();
    driver.function.poll(1);
    assert_eq!((rx.take_used().unwrap().1, rx.take_used().unwrap().1), (4, 2));
    assert_eq!(bench.get(BUFFER + 0x100, 2), b"ef");
    driver.device_write(8, 4, u64::from(b'!'));
    assert_eq!(line.out.lock().unwrap().last(), Some(&b'!'));
}

#[test]
fn output_that_the_console_does_not_take_is_tried_again() {
    let (bench, mut driver, _rx, mut tx, line) = console_guest();
    *line.room.lock().unwrap() = Some(3);
    bench.put(BUFFER, b"0123456789");
    let head = tx.add(&[Desc::readable(BUFFER, 10)]);
    driver.kick(1);
    driver.function.poll(1_000_000_000);
    assert_eq!(tx.take_used(), None);
    let state = driver.function.save();
    let twin_line = Loopback::default();
    let mut twin = bench.function(Box::new(Console::new(Box::new(twin_line.clone()))));
    twin.load(&state).unwrap();
    assert_eq!(twin.save(), state);
    twin.poll(0);
    assert_eq!(*twin_line.out.lock().unwrap(), b"3456789");
    assert_eq!(tx.take_used().map(|(h, _)| h), Some(head));
    let due = driver.function.deadline_ns().unwrap();
    assert!(due > 1_000_000_000 && due < 1_100_000_000);
}

#[test]
fn a_long_output_yields_the_board_in_between() {
    let (_bench, mut driver, _rx, mut tx, line) = console_guest();
    tx.add(&[Desc::readable(0, 600 * 1024)]);
    driver.kick(1);
    let mut polls = 0;
    while tx.take_used().is_none() {
        assert_eq!(driver.function.deadline_ns(), Some(0));
        driver.function.poll(polls);
        polls += 1;
        assert!(polls < 10);
    }
    assert_eq!(line.out.lock().unwrap().len(), 600 * 1024);
}

const AGENT: &str = "org.qemu.guest_agent.0";

fn agent_console(agent: &Loopback, console: Option<&Loopback>) -> Console {
    let console = console.map(|line| Box::new(line.clone()) as Box<dyn CharBackend>);
    Console::with_ports(console, vec![(AGENT.to_owned(), Box::new(agent.clone()))])
}

/// A driver of a console with one named port, and the rings of its six queues.
struct PortGuest {
    bench: Bench,
    driver: PciDriver,
    rings: Vec<MockDriver>,
    agent: Loopback,
}

const CONTROL_RX: u16 = 2;
const CONTROL_TX: u16 = 3;
const AGENT_RX: u16 = 4;
const AGENT_TX: u16 = 5;

impl PortGuest {
    fn new(features: u64, console: Option<&Loopback>) -> PortGuest {
        let (bench, agent) = (bench(), Loopback::default());
        let mut driver = bench.driver(Box::new(agent_console(&agent, console)));
        driver.negotiate(features);
        let rings = (0..6).map(|queue| driver.setup_queue(queue, 8, NO_VECTOR)).collect();
        driver.driver_ok();
        PortGuest { bench, driver, rings, agent }
    }
    fn send(&mut self, id: u32, event: u16, value: u16) {
        self.bench.put(DATA, &control_message(id, event, value));
        self.rings[usize::from(CONTROL_TX)].add(&[Desc::readable(DATA, CONTROL_BYTES as u32)]);
        self.driver.kick(CONTROL_TX);
        assert!(self.rings[usize::from(CONTROL_TX)].take_used().is_some());
    }
    /// Gives one buffer for a control message, and returns the message if there is one.
    fn take(&mut self) -> Option<Vec<u8>> {
        self.rings[usize::from(CONTROL_RX)].add(&[Desc::writable(BUFFER, 64)]);
        self.driver.kick(CONTROL_RX);
        let (_, bytes) = self.rings[usize::from(CONTROL_RX)].take_used()?;
        Some(self.bench.get(BUFFER, bytes as usize))
    }
    fn hears(&mut self, id: u32, event: u16) {
        assert_eq!(self.take(), Some(control_message(id, event, 1).to_vec()));
    }
    /// Makes the ports as a driver does.
    fn make_port(&mut self) {
        self.send(u32::MAX, VIRTIO_CONSOLE_DEVICE_READY, 1);
        self.hears(1, VIRTIO_CONSOLE_PORT_ADD);
        self.send(1, VIRTIO_CONSOLE_PORT_READY, 1);
        let name = [&control_message(1, VIRTIO_CONSOLE_PORT_NAME, 1)[..], AGENT.as_bytes()].concat();
        assert_eq!(self.take(), Some(name));
        self.hears(1, VIRTIO_CONSOLE_PORT_OPEN);
    }
    fn types(&mut self, bytes: &[u8]) {
        self.agent.input.lock().unwrap().extend(bytes);
        self.bench.waker.wake();
        self.driver.function.poll(1);
    }
}

#[test]
fn a_named_port_is_announced_and_carries_bytes_while_the_guest_has_it_open() {
    let mut g = PortGuest::new(ALL, None);
    assert_eq!(g.driver.device_read(4, 4), 2, "max_nr_ports");
    g.make_port();
    g.rings[usize::from(AGENT_RX)].add(&[Desc::writable(BUFFER, 64)]);
    g.driver.kick(AGENT_RX);
    g.types(b"for nobody");
    assert_eq!(g.rings[usize::from(AGENT_RX)].take_used(), None, "no program of the guest has the port open");
    assert!(g.agent.input.lock().unwrap().is_empty(), "so it is not kept for the next one");
    g.send(1, VIRTIO_CONSOLE_PORT_OPEN, 1);
    g.types(b"ping");
    assert_eq!(g.rings[usize::from(AGENT_RX)].take_used().map(|(_, bytes)| bytes), Some(4));
    assert_eq!(g.bench.get(BUFFER, 4), b"ping");
    g.bench.put(BUFFER, b"pong");
    g.rings[usize::from(AGENT_TX)].add(&[Desc::readable(BUFFER, 4)]);
    g.driver.kick(AGENT_TX);
    assert_eq!(*g.agent.out.lock().unwrap(), b"pong");
    g.send(1, VIRTIO_CONSOLE_PORT_OPEN, 0);
    g.types(b"late");
    assert!(g.agent.input.lock().unwrap().is_empty());
}

#[test]
fn a_console_beside_a_named_port_is_nominated_and_port_0_without_one_is_not_there() {
    let console = Loopback::default();
    let mut g = PortGuest::new(ALL, Some(&console));
    g.send(0, VIRTIO_CONSOLE_DEVICE_READY, 1);
    g.hears(0, VIRTIO_CONSOLE_PORT_ADD);
    g.hears(1, VIRTIO_CONSOLE_PORT_ADD);
    g.send(0, VIRTIO_CONSOLE_PORT_READY, 1);
    g.hears(0, VIRTIO_CONSOLE_CONSOLE_PORT);
    g.hears(0, VIRTIO_CONSOLE_PORT_OPEN);
    assert_eq!(g.take(), None);
    g.bench.put(DATA, b"hi");
    g.rings[1].add(&[Desc::readable(DATA, 2)]);
    g.driver.kick(1);
    assert_eq!(*console.out.lock().unwrap(), b"hi");
    // Output to the port that is not there goes nowhere, and a driver without several ports sees none.
    let mut alone = PortGuest::new(ALL & !VIRTIO_CONSOLE_F_MULTIPORT, None);
    alone.rings[1].add(&[Desc::readable(DATA, 2)]);
    alone.driver.kick(1);
    assert!(alone.rings[1].take_used().is_some());
    alone.rings[usize::from(AGENT_TX)].add(&[Desc::readable(DATA, 2)]);
    alone.driver.kick(AGENT_TX);
    assert!(alone.agent.out.lock().unwrap().is_empty());
    assert_eq!(alone.take(), None);
}

#[test]
fn control_messages_of_a_hostile_driver_are_bounded_and_saved() {
    let mut g = PortGuest::new(ALL, None);
    for id in [0, 1, 2, 7, u32::MAX] {
        for event in 0..20 {
            for value in [0, 1, 2, u16::MAX] {
                g.send(id, event, value);
            }
        }
    }
    let state = g.driver.function.save();
    let mut twin = g.bench.function(Box::new(agent_console(&g.agent, None)));
    twin.load(&state).unwrap();
    assert_eq!(twin.save(), state);
    g.driver.function = twin;
    // However often it asked, each message comes once.
    let messages: Vec<Vec<u8>> = std::iter::from_fn(|| g.take()).collect();
    let events: Vec<u8> = messages.iter().map(|message| message[4]).collect();
    assert_eq!(events, [VIRTIO_CONSOLE_PORT_ADD, VIRTIO_CONSOLE_PORT_NAME, VIRTIO_CONSOLE_PORT_OPEN].map(|event| event as u8));
    // A message that is too short says nothing, and a buffer that is too short gets what it holds.
    g.rings[usize::from(CONTROL_TX)].add(&[Desc::readable(DATA, 7)]);
    g.driver.kick(CONTROL_TX);
    assert!(g.rings[usize::from(CONTROL_TX)].take_used().is_some());
    let mut device = agent_console(&g.agent, None);
    let good = device.save();
    // Held, open, pending: of each port.
    let ports = |pending: u8| [(None::<(u16, u64)>, false, 0), (None, false, pending)];
    let wrong = conformance::replaced(&good, &ports(0), &ports(16));
    assert!(device.load(&wrong).is_err(), "a message that there is not");
    assert_eq!(device.save(), good);
    let mut other = g.bench.function(Box::new(Console::new(Box::new(Loopback::default()))));
    assert!(other.load(&state).is_err(), "a device with other ports");
}

/// The function with BARs 0 and 1 as regions 0 and 1, and configuration space as region 2.
struct Bare(VirtioPci);

impl Device for Bare {
    fn name(&self) -> &'static str {
        PciDevice::name(&self.0)
    }
    fn read(&mut self, access: Access) -> u64 {
        let Access { region, offset, width } = access;
        match region {
            2 => u64::from(self.0.config_read(offset as u16, width.min(4))),
            bar => match self.0.config().msix_read(bar as u8, offset, width) {
                Some(value) => value,
                None => self.0.bar_read(bar as u8, offset, width),
            },
        }
    }
    fn write(&mut self, access: Access, value: u64) {
        let Access { region, offset, width } = access;
        match region {
            2 => self.0.config_write(offset as u16, width.min(4), value as u32),
            bar => {
                if !self.0.config_mut().msix_write(bar as u8, offset, width, value) {
                    self.0.bar_write(bar as u8, offset, width, value);
                }
            }
        }
    }
    fn reset(&mut self) {
        PciDevice::reset(&mut self.0);
    }
    fn save(&self) -> Section {
        PciDevice::save(&self.0)
    }
    fn load(&mut self, section: &Section) -> Result<(), StateError> {
        PciDevice::load(&mut self.0, section)
    }
    fn deadline_ns(&self) -> Option<u64> {
        PciDevice::deadline_ns(&self.0)
    }
    fn poll(&mut self, now_ns: u64) {
        PciDevice::poll(&mut self.0, now_ns);
    }
}

#[test]
fn every_device_keeps_the_contract_of_devices() {
    let bench = bench();
    let regions = [(2, 256), (0, 0x4000), (1, 0x1000)];
    conformance::check(|| Bare(bench.function(memory_disk(&bench, false).0)), &regions);
    conformance::check(|| Bare(bench.function(Box::new(Rng::new()))), &regions);
    conformance::check(|| Bare(bench.function(Box::new(Console::new(Box::new(Loopback::default()))))), &regions);
    conformance::check(|| Bare(bench.function(Box::new(agent_console(&Loopback::default(), None)))), &regions);
    conformance::check(|| Bare(bench.function(Box::new(Net::new(Box::new(Wire::default()), [2; 6], 1500)))), &regions);
}

#[test]
fn impossible_states_are_refused() {
    let mut g = blk_guest();
    g.disk.hold(true);
    let header = g.header(DATA, VIRTIO_BLK_T_IN, 0);
    g.ring.add(&[header, Desc::writable(BUFFER, 512), Desc::writable(STATUS, 1)]);
    g.driver.kick(0);
    let state = g.driver.function.save();
    // Maximum size, size, enabled.
    let sizes = |max: u16, size: u16| conformance::replaced(&state, &(256u16, 256u16, true), &(max, size, true));
    // Vector of the configuration, those of the queues.
    let vectors = |queues: Vec<u16>| conformance::replaced(&state, &(NO_VECTOR, vec![NO_VECTOR]), &(NO_VECTOR, queues));
    // Next entries, in flight, features, not broken.
    let queue = |in_flight: u16| (1u16, 0u16, 0u16, in_flight, false, true, None::<u8>);
    let in_flight = conformance::replaced(&state, &queue(1), &queue(9999));
    // The device's own section: kind, version, bytes; in these whether it writes back, and queue and head of its request.
    let request = |queue: u16| ("virtio-blk", 2u32, 4u8, true, 1u8, queue, 0u16);
    let request = conformance::replaced(&state, &request(0), &request(1));
    for wrong in [sizes(256, 3), sizes(512, 256), in_flight, vectors(vec![7]), vectors(Vec::new()), request] {
        let mut twin = g.bench.function(memory_disk(&g.bench, false).0);
        let before = twin.save();
        assert!(twin.load(&wrong).is_err(), "{wrong:?}");
        assert_eq!(twin.save(), before);
    }
    // A read-only disk does not offer the negotiated features.
    let mut twin = g.bench.function(memory_disk(&g.bench, true).0);
    assert!(twin.load(&state).is_err());
}

/// A driver of a disk on a file of the host, with one queue, and what the disk's threads wake.
fn host_disk(bench: &Bench, path: &std::path::Path, msix: bool) -> (PciDriver, MockDriver, Arc<Attention>) {
    use crate::devices::disk::file::{DiskHost, DiskOptions, open};
    let attention = Attention::new(1);
    let waker = Waker::new(attention.clone());
    let host = DiskHost { memory: bench.mem.clone(), waker: waker.clone(), notes: Arc::new(|note| panic!("{note}")) };
    let disk = open(path, &DiskOptions::default(), &host).unwrap();
    assert_eq!(disk.size_bytes(), 1 << 20);
    let blk = Blk::new(Box::new(disk), &BlkOptions::default());
    let line = IrqLine::new(bench.probe.clone(), GSI);
    let function = VirtioPci::new(Box::new(blk), bench.mem.clone(), waker, bench.probe.clone(), line);
    let mut driver = PciDriver::probe(function, &bench.mem, RINGS);
    if msix {
        driver.enable_msix();
    }
    driver.negotiate(ALL & !VIRTIO_F_EVENT_IDX);
    let ring = driver.setup_queue(0, 0, if msix { 1 } else { NO_VECTOR });
    driver.driver_ok();
    attention.serve_here();
    (driver, ring, attention)
}

/// Waits for something that threads do.
fn wait_for<T>(mut look: impl FnMut() -> Option<T>) -> T {
    let start = std::time::Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(start.elapsed() < std::time::Duration::from_secs(60), "it never comes");
        std::thread::sleep(std::time::Duration::from_micros(50));
    }
}

#[test]
fn a_disk_of_the_host_serves_a_guest_through_its_threads() {
    for msix in [false, true] {
        let bench = bench();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.img");
        std::fs::write(&path, vec![0u8; 1 << 20]).unwrap();
        let (mut driver, mut ring, attention) = host_disk(&bench, &path, msix);
        attention.take_board();
        for round in 0..50u64 {
            let sector = round * 8;
            bench.put(BUFFER, &[round as u8 + 1; 4096]);
            bench.put(DATA, &[&VIRTIO_BLK_T_OUT.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat());
            ring.add(&[Desc::readable(DATA, 16), Desc::readable(BUFFER, 4096), Desc::writable(STATUS, 1)]);
            driver.kick(0);
            // The thread that did the I/O completes the request; nobody polls the function for it.
            wait_for(|| ring.take_used());
            assert_eq!(bench.byte(STATUS), VIRTIO_BLK_S_OK);
            match msix {
                true => wait_for(|| bench.probe.take_messages().pop().map(|message| assert_eq!(message.1, MSIX_DATA + 1))),
                // Only INTx needs the board, for its cause register.
                false => {
                    wait_for(|| attention.take_board().then_some(()));
                    driver.function.poll(0);
                    assert_eq!(driver.take_isr(), ISR_QUEUE);
                }
            }
        }
        assert!(!attention.take_board() || !msix, "the board was not asked");
        drop(driver);
        let written = std::fs::read(&path).unwrap();
        assert!((0..50).all(|round| written[round * 4096..][..4096].iter().all(|&b| b == round as u8 + 1)));
    }
}

#[test]
fn what_ends_while_guest_memory_is_out_of_reach_is_completed_later() {
    let bench = bench();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.img");
    std::fs::write(&path, vec![7u8; 1 << 20]).unwrap();
    let (mut driver, mut ring, attention) = host_disk(&bench, &path, true);
    // The request ends before or after the driver takes bus mastering away.
    bench.put(DATA, &[&VIRTIO_BLK_T_IN.to_le_bytes()[..], &[0; 12]].concat());
    for _ in 0..20 {
        ring.add(&[Desc::readable(DATA, 16), Desc::writable(BUFFER, 4096), Desc::writable(STATUS, 1)]);
        driver.kick(0);
        driver.function.config_write(4, 2, 0x2);
        wait_for(|| driver.function.quiesce().then_some(()));
        driver.function.resume();
        let early = ring.take_used().is_some();
        driver.function.config_write(4, 2, 0x6);
        driver.function.poll(0);
        assert_eq!(ring.take_used().is_some(), !early, "once, before or after");
    }
    drop(attention);
}
