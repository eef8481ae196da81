//! The fuzz targets: each takes bytes as a guest's doings and holds the device to its promises.
//!
//! The same functions run in `tests/fuzz_bounded.rs` (for a bounded time, with every build) and under libFuzzer
//! (`fuzz/`). A target panics where a promise is broken; it prints nothing.

#[path = "chips.rs"]
mod chips;
#[path = "connector.rs"]
mod connector;
#[path = "exits.rs"]
mod exits;
#[path = "files.rs"]
mod files;
#[path = "host.rs"]
mod host;
#[path = "images.rs"]
mod images;
#[path = "loader.rs"]
mod loader;
#[path = "memory.rs"]
mod memory;
#[path = "state.rs"]
mod state;
#[path = "storage.rs"]
mod storage;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use vmctl::testing::devices::disk::memory::{MemoryDisk, MemoryDiskHandle};
use vmctl::testing::devices::net::Nic;
use vmctl::testing::devices::pci::{PciDevice, PciRoot, Window, Windows};
use vmctl::testing::devices::serial::CharBackend;
use vmctl::testing::devices::virtio::blk::{Blk, BlkOptions};
use vmctl::testing::devices::virtio::console::{Console, control_message};
use vmctl::testing::devices::virtio::mock::{Desc, MockDriver, PciDriver};
use vmctl::testing::devices::virtio::net::Net;
use vmctl::testing::devices::virtio::queue::{Chain, MAX_INDIRECT, Queue};
use vmctl::testing::devices::virtio::rng::Rng;
use vmctl::testing::devices::virtio::transport::{NEEDS_RESET, NO_VECTOR, VirtioPci};
use vmctl::testing::devices::virtio::{CHAINS_PER_ENTRY, VirtioDevice};
use vmctl::testing::hypervisor::bus::{Access, Device};
use vmctl::testing::hypervisor::irq::{IrqLine, IrqProbe};
use vmctl::testing::hypervisor::memory::{GuestAddr, GuestMemory, Mode};
use vmctl::testing::hypervisor::waking::{Attention, Waker};

/// A target's name and body.
pub type Target = (&'static str, fn(&[u8]));

/// All targets.
pub const TARGETS: &[Target] = &[
    ("queue", queue),
    ("virtio_blk", virtio_blk),
    ("virtio_net", virtio_net),
    ("connector", connector::connector),
    ("answers", connector::answers),
    ("frames", connector::frames),
    ("virtio_rng", virtio_rng),
    ("virtio_console", virtio_console),
    ("pci", pci),
    ("serial", chips::serial),
    ("pit", chips::pit),
    ("rtc", chips::rtc),
    ("ps2", chips::ps2),
    ("pm", chips::pm),
    ("pic", chips::pic),
    ("ioapic", chips::ioapic),
    ("lapic", chips::lapic),
    ("interrupts", chips::interrupts),
    ("memory_map", memory::memory_map),
    ("saved_state", state::saved_state),
    ("kvm_exits", exits::kvm_exits),
    ("vm_bhyve", host::vm_bhyve),
    ("listings", host::listings),
    ("scrape", host::scrape),
    ("fleet", files::fleet),
    ("volume", loader::volume),
    ("boot_config", loader::boot_config),
    ("kernel", loader::kernel),
    ("ahci", storage::ahci),
    ("qcow2", images::qcow2),
    ("vmdk", images::vmdk),
    ("vhd", images::vhd),
    ("archive", images::archive),
    ("checksums", images::checksums),
    ("partitions", host::partitions),
    ("bhyve_probe", host::bhyve_probe),
    ("boot_documents", host::boot_documents),
];

/// Runs the target of that name on `data`.
pub fn run(name: &str, data: &[u8]) {
    let &(_, body) = TARGETS.iter().find(|(n, _)| *n == name).expect("the target is in the list");
    body(data);
}

/// The fuzzer's bytes, taken in order; zeros after their end.
pub struct Bytes<'a> {
    left: &'a [u8],
}

impl<'a> Bytes<'a> {
    /// From the first byte on.
    pub fn new(data: &'a [u8]) -> Bytes<'a> {
        Bytes { left: data }
    }
    /// Whether none are left.
    pub fn is_empty(&self) -> bool {
        self.left.is_empty()
    }
    /// The next `N` bytes.
    pub fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut out = [0; N];
        let take = N.min(self.left.len());
        out[..take].copy_from_slice(&self.left[..take]);
        self.left = &self.left[take..];
        out
    }
    /// One byte.
    pub fn byte(&mut self) -> u8 {
        self.array::<1>()[0]
    }
    /// Two bytes.
    pub fn word(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }
    /// Four bytes.
    pub fn long(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }
    /// Eight bytes.
    pub fn quad(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }
    /// A width of an access.
    pub fn width(&mut self) -> u8 {
        1 << (self.byte() & 3)
    }
}

const RAM: u64 = 256 * 1024;
const ROM: u64 = 1 << 20;
const ROM_BYTES: u64 = 4096;
const RINGS: u64 = 0x1000;
const DATA: u64 = 0x1_0000;
const DISK_BYTES: u64 = 32 * 1024;

fn guest_memory() -> GuestMemory {
    GuestMemory::anonymous(&[(GuestAddr(0), RAM, Mode::Ram), (GuestAddr(ROM), ROM_BYTES, Mode::Rom)])
        .expect("the host has memory")
}

/// An address: mostly of memory, sometimes at its edge, sometimes anything.
fn address(bytes: &mut Bytes) -> u64 {
    match bytes.byte() {
        0..=199 => DATA + u64::from(bytes.word()),
        200..=215 => RINGS + u64::from(bytes.word() & 0x1fff),
        216..=229 => RAM - u64::from(bytes.byte()),
        230..=239 => ROM + u64::from(bytes.word()),
        _ => bytes.quad(),
    }
}

fn length(bytes: &mut Bytes) -> u32 {
    match bytes.byte() {
        0..=99 => u32::from(bytes.byte()),
        100..=219 => 512 * u32::from(bytes.byte() & 15),
        220..=245 => u32::from(bytes.word()),
        _ => bytes.long(),
    }
}

fn descriptor(bytes: &mut Bytes) -> Desc {
    let shape = bytes.byte();
    let (addr, len) = (address(bytes), length(bytes));
    match shape {
        0..=99 => Desc::readable(addr, len),
        100..=219 => Desc::writable(addr, len),
        _ => Desc { addr, len, flags: bytes.word(), next: bytes.word() },
    }
}

fn chain(bytes: &mut Bytes) -> Vec<Desc> {
    let count = usize::from(bytes.byte() % 6) + 1;
    let mut list: Vec<Desc> = (0..count).map(|_| descriptor(bytes)).collect();
    // Half of the chains have the order that the specification asks for, or none would get far.
    if bytes.byte() & 1 == 0 {
        list.sort_by_key(|desc| desc.flags & 2);
    }
    list
}

fn check_chain(mem: &GuestMemory, queue: &Queue, chain: &Chain) {
    assert!(chain.head < queue.size());
    let segments = chain.readable.len() + chain.writable.len();
    assert!(segments <= usize::from(queue.size()) + MAX_INDIRECT as usize);
    for &(addr, len) in chain.readable.iter().chain(&chain.writable) {
        assert!(len > 0 && mem.contains(addr, u64::from(len)), "a buffer outside of memory got through");
    }
    for &(addr, len) in &chain.writable {
        assert!(mem.is_writable(addr, u64::from(len)), "a read-only buffer to be written got through");
    }
    assert!(chain.readable_bytes() + chain.writable_bytes() <= u64::from(u32::MAX));
}

/// The split ring alone.
pub fn queue(data: &[u8]) {
    let mut bytes = Bytes::new(data);
    let mem = guest_memory();
    let size = 1 << (bytes.byte() % 6);
    let mut driver = MockDriver::new(&mem, RINGS, size);
    let mut queue = driver.queue(bytes.byte() & 1 != 0, bytes.byte() & 3 != 0);
    let mut taken = VecDeque::new();
    while !bytes.is_empty() {
        match bytes.byte() % 10 {
            0 | 1 => _ = driver.add(&chain(&mut bytes)),
            2 => _ = driver.add_indirect(DATA + u64::from(bytes.word() & 0xfff0), &chain(&mut bytes)),
            3 => driver.publish(bytes.word()),
            4 => driver.set_avail_idx(bytes.word()),
            5 => driver.set_desc(bytes.word() % size, descriptor(&mut bytes)),
            6 => {
                let at = RINGS + u64::from(bytes.word()) % MockDriver::bytes(size);
                let _ = mem.write(GuestAddr(at), &bytes.array::<8>());
            }
            7 => {
                if let Some(chain) = taken.pop_front() {
                    let chain: Chain = chain;
                    queue.push_used(&mem, chain.head, bytes.long());
                    queue.take_interrupt(&mem);
                }
            }
            8 => queue.reset(),
            _ => {
                while let Some(chain) = queue.pop(&mem) {
                    check_chain(&mem, &queue, &chain);
                    taken.push_back(chain);
                }
                assert!(taken.len() <= usize::from(size) || queue.in_flight() == 0 || queue.in_flight() <= size);
            }
        }
        if !queue.enabled() {
            taken.clear();
            queue = driver.queue(bytes.byte() & 1 != 0, bytes.byte() & 1 != 0);
        }
        assert!(queue.in_flight() <= queue.size());
    }
}

#[derive(Clone, Default)]
struct Wire {
    arriving: Arc<Mutex<VecDeque<Vec<u8>>>>,
    headers: bool,
}

impl Nic for Wire {
    fn transmit(&mut self, frame: &[u8]) {
        assert!(frame.len() > if self.headers { 12 } else { 0 } && frame.len() < 1 << 17);
    }
    fn has_headers(&self) -> bool {
        self.headers
    }
    fn receive(&mut self) -> Option<Vec<u8>> {
        self.arriving.lock().expect("not poisoned").pop_front()
    }
}

#[derive(Clone, Default)]
struct Line {
    room: Arc<Mutex<usize>>,
    input: Arc<Mutex<usize>>,
}

impl CharBackend for Line {
    fn write(&mut self, bytes: &[u8]) -> usize {
        let mut room = self.room.lock().expect("not poisoned");
        let taken = bytes.len().min(*room);
        *room -= taken;
        taken
    }
    fn read(&mut self, buf: &mut [u8]) -> usize {
        let mut input = self.input.lock().expect("not poisoned");
        let given = buf.len().min(*input);
        *input -= given;
        buf[..given].fill(b'x');
        given
    }
}

/// What the fuzzer does at the device's other end.
trait FarEnd {
    fn device(&self, mem: &GuestMemory) -> Box<dyn VirtioDevice>;
    fn happen(&mut self, bytes: &mut Bytes);
    /// Lets everything through that was held back.
    fn release(&mut self) {}
    /// Writes what a request of this device starts with, to `DATA`.
    fn request(&self, _mem: &GuestMemory, _bytes: &mut Bytes) -> Vec<Desc> {
        Vec::new()
    }
}

struct DiskEnd {
    handle: Mutex<Option<MemoryDiskHandle>>,
    read_only: bool,
}

impl FarEnd for DiskEnd {
    fn device(&self, mem: &GuestMemory) -> Box<dyn VirtioDevice> {
        let (disk, handle) = MemoryDisk::new(mem, DISK_BYTES, self.read_only);
        *self.handle.lock().expect("not poisoned") = Some(handle);
        Box::new(Blk::new(Box::new(disk), &BlkOptions { serial: "fuzz".into(), physical_block_bytes: 4096, queues: 3 }))
    }
    fn happen(&mut self, bytes: &mut Bytes) {
        let handle = self.handle.lock().expect("not poisoned");
        let disk = handle.as_ref().expect("the device was made before");
        match bytes.byte() % 6 {
            0 => disk.hold(true),
            1 => disk.hold(false),
            2 => disk.fail(bytes.byte() & 1 != 0),
            _ => disk.release(usize::from(bytes.byte() % 4)),
        }
    }
    fn release(&mut self) {
        let handle = self.handle.lock().expect("not poisoned");
        let disk = handle.as_ref().expect("the device was made before");
        disk.hold(false);
        disk.fail(false);
        while disk.waiting() > 0 {
            disk.release(0);
        }
    }
    fn request(&self, mem: &GuestMemory, bytes: &mut Bytes) -> Vec<Desc> {
        let kind = match bytes.byte() {
            kind @ 0..=15 => u32::from(kind),
            16..=120 => 0,
            121..=200 => 1,
            201..=220 => 11,
            221..=240 => 13,
            _ => bytes.long(),
        };
        let sector = if bytes.byte() < 240 { u64::from(bytes.byte()) } else { bytes.quad() };
        let header = [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat();
        mem.write(GuestAddr(DATA), &header).expect("it is memory");
        let range =
            [&u64::from(bytes.byte()).to_le_bytes()[..], &u32::from(bytes.byte()).to_le_bytes(), &[bytes.byte() & 1, 0, 0, 0]];
        mem.write(GuestAddr(DATA + 0x100), &range.concat()).expect("it is memory");
        let data = match kind {
            0 | 8 => Desc::writable(DATA + 0x1000, length(bytes) & 0x3fff),
            11 | 13 => Desc::readable(DATA + 0x100, u32::from(bytes.byte() & 31)),
            _ => Desc::readable(DATA + 0x1000, length(bytes) & 0x3fff),
        };
        vec![Desc::readable(DATA, 16), data, Desc::writable(DATA + 0x800, 1)]
    }
}

struct NetEnd(Wire);

impl FarEnd for NetEnd {
    fn device(&self, _: &GuestMemory) -> Box<dyn VirtioDevice> {
        Box::new(Net::new(Box::new(self.0.clone()), [2, 0, 0, 0, 0, 1], 1500))
    }
    fn happen(&mut self, bytes: &mut Bytes) {
        let len = match bytes.byte() {
            0 => 0,
            1 => 66_000,
            _ => usize::from(bytes.word()) % 3000,
        };
        let mut arriving = self.0.arriving.lock().expect("not poisoned");
        if arriving.len() < 16 {
            arriving.push_back(vec![0xaa; len]);
        }
    }
}

/// A console, with a named port behind it or not.
struct LineEnd {
    line: Line,
    named: bool,
}

impl FarEnd for LineEnd {
    fn device(&self, _: &GuestMemory) -> Box<dyn VirtioDevice> {
        let line = || Box::new(self.line.clone()) as Box<dyn CharBackend>;
        let named = if self.named { vec![("org.qemu.guest_agent.0".to_owned(), line())] } else { Vec::new() };
        Box::new(Console::with_ports(Some(line()), named))
    }
    fn happen(&mut self, bytes: &mut Bytes) {
        *self.line.room.lock().expect("not poisoned") = usize::from(bytes.word());
        *self.line.input.lock().expect("not poisoned") = usize::from(bytes.word());
    }
    fn release(&mut self) {
        *self.line.room.lock().expect("not poisoned") = usize::MAX;
    }
    fn request(&self, mem: &GuestMemory, bytes: &mut Bytes) -> Vec<Desc> {
        let message = control_message(u32::from(bytes.byte() % 4), u16::from(bytes.byte() % 9), u16::from(bytes.byte() % 3));
        mem.write(GuestAddr(DATA), &message).expect("it is memory");
        match bytes.byte() % 2 {
            0 => vec![Desc::readable(DATA, u32::from(bytes.byte() % 10))],
            _ => vec![Desc::writable(DATA + 0x1000, u32::from(bytes.byte()))],
        }
    }
}

struct NoEnd;

impl FarEnd for NoEnd {
    fn device(&self, _: &GuestMemory) -> Box<dyn VirtioDevice> {
        Box::new(Rng::new())
    }
    fn happen(&mut self, _: &mut Bytes) {}
}

fn function(end: &dyn FarEnd, mem: &GuestMemory, probe: &Arc<IrqProbe>) -> VirtioPci {
    let waker = Waker::new(Attention::new(1));
    waker.wake();
    VirtioPci::new(end.device(mem), mem.clone(), waker, probe.clone(), IrqLine::new(probe.clone(), 16))
}

/// Sets the device up as a well-behaved driver does.
fn set_up(driver: &mut PciDriver, features: u64, size: u16) -> Vec<MockDriver> {
    driver.function.config_write(4, 2, 0x6);
    driver.restart_rings(RINGS);
    driver.negotiate(features | 1 << 32);
    let queues = driver.common_read(0x12, 2) as u16;
    let rings = (0..queues).map(|index| driver.setup_queue(index, size, NO_VECTOR)).collect();
    driver.driver_ok();
    rings
}

fn features(bytes: &mut Bytes) -> u64 {
    !(u64::from(bytes.byte()) << 24 | u64::from(bytes.word()))
}

fn drive(end: &mut dyn FarEnd, data: &[u8]) {
    let mut bytes = Bytes::new(data);
    let (mem, probe) = (guest_memory(), IrqProbe::new());
    let mut driver = PciDriver::probe(function(end, &mem, &probe), &mem, RINGS);
    let wanted = features(&mut bytes);
    let mut rings = set_up(&mut driver, wanted, 1 << (bytes.byte() % 5 + 1));
    let mut now_ns = 0;
    while !bytes.is_empty() {
        let index = usize::from(bytes.byte()) % rings.len();
        match bytes.byte() % 16 {
            0 | 1 => _ = rings[index].add(&chain(&mut bytes)),
            2 | 3 => {
                let request = end.request(&mem, &mut bytes);
                if !request.is_empty() {
                    rings[index].add(&request);
                    driver.kick(index as u16);
                }
            }
            4 => _ = rings[index].add_indirect(DATA + u64::from(bytes.word() & 0xfff0), &chain(&mut bytes)),
            5 => rings[index].publish(bytes.word()),
            6 => rings[index].set_avail_idx(rings[index].avail_idx().wrapping_add(bytes.word() % 64)),
            7 => {
                let _ = mem.write(GuestAddr(address(&mut bytes)), &bytes.array::<16>());
            }
            8 => {
                let (bar, width) = (bytes.byte() % 3, bytes.width());
                let value = bytes.quad() & (u64::MAX >> (64 - 8 * u32::from(width)));
                let offset = u64::from(bytes.word() & 0x7fff);
                driver.bar_read(bar, offset, width);
                driver.bar_write(bar, offset, width, value);
            }
            9 => {
                let (offset, width, value) = (u16::from(bytes.byte()), bytes.width().min(4), bytes.long());
                driver.function.config_read(offset, width);
                driver.function.config_write(offset, width, value);
            }
            10 => driver.common_write(u64::from(bytes.byte() % 64), bytes.width(), bytes.quad()),
            11 => end.happen(&mut bytes),
            12 => {
                let state = driver.function.save();
                let mut twin = function(end, &mem, &probe);
                twin.load(&state).expect("a device takes the state of its twin");
                assert_eq!(twin.save(), state, "save, load, save is the identity");
                driver.function = twin;
            }
            13 => {
                // A driver waits for the end of a reset, which what is in flight holds up.
                driver.set_status(0);
                if driver.status() != 0 {
                    end.release();
                }
                assert_eq!(driver.status(), 0, "a reset is done when the host is done");
                let wanted = features(&mut bytes);
                rings = set_up(&mut driver, wanted, 1 << (bytes.byte() % 5 + 1));
            }
            14 if bytes.byte() % 8 == 0 => {
                if !driver.function.quiesce() {
                    end.release();
                }
                assert!(driver.function.quiesce(), "nothing is with the host");
                driver.function.resume();
            }
            14 => driver.kick(index as u16),
            _ => {
                now_ns += u64::from(bytes.long());
                driver.function.poll(now_ns);
            }
        }
        probe.take_messages();
    }
    recovers(end, &mut driver, &mem);
}

/// Whatever happened, a reset makes the device as good as new: a chain on every queue comes back, or waits quietly.
fn recovers(end: &mut dyn FarEnd, driver: &mut PciDriver, mem: &GuestMemory) {
    end.release();
    let mut rings = set_up(driver, !(1 << 29), 4);
    assert_eq!(driver.status() & NEEDS_RESET, 0, "a reset clears DEVICE_NEEDS_RESET");
    mem.fill(GuestAddr(DATA), 0, 64).expect("it is memory");
    let last = rings.len() - 1;
    let head = rings[last].add(&[Desc::readable(DATA, 64), Desc::writable(DATA + 0x1000, 513)]);
    driver.kick(last as u16);
    for _ in 0..CHAINS_PER_ENTRY {
        driver.function.poll(u64::MAX / 2);
    }
    assert_eq!(rings[last].take_used().map(|(h, _)| h), Some(head), "the device answers after a reset");
    assert_eq!(driver.status() & NEEDS_RESET, 0);
}

/// The block device through its transport.
pub fn virtio_blk(data: &[u8]) {
    let read_only = data.first().is_some_and(|b| b % 8 == 0);
    drive(&mut DiskEnd { handle: Mutex::default(), read_only }, data);
}

/// The network device through its transport.
pub fn virtio_net(data: &[u8]) {
    // With and without offloads.
    let headers = data.first().is_some_and(|byte| byte & 1 != 0);
    drive(&mut NetEnd(Wire { headers, ..Wire::default() }), data);
}

/// The entropy device through its transport.
pub fn virtio_rng(data: &[u8]) {
    drive(&mut NoEnd, data);
}

/// The console through its transport.
pub fn virtio_console(data: &[u8]) {
    let named = data.first().is_some_and(|b| b % 2 == 0);
    drive(&mut LineEnd { line: Line::default(), named }, data);
}

/// The PCI root with all virtio functions behind it: configuration ports, ECAM, and the windows of the BARs.
pub fn pci(data: &[u8]) {
    let windows = Windows {
        memory32: Window { base: 0xc000_0000, len: 0x100_0000 },
        memory64: Window { base: 0x80_0000_0000, len: 0x100_0000 },
        io: Window { base: 0x6000, len: 0x1000 },
    };
    let (mem, probe) = (guest_memory(), IrqProbe::new());
    let ends: [&dyn FarEnd; 4] = [
        &DiskEnd { handle: Mutex::default(), read_only: false },
        &NetEnd(Wire::default()),
        &LineEnd { line: Line::default(), named: true },
        &NoEnd,
    ];
    let build = || {
        let mut root = PciRoot::new(windows, Attention::new(1));
        for (slot, end) in ends.iter().enumerate() {
            root.add(slot as u8 + 1, 0, Box::new(function(*end, &mem, &probe))).expect("the slot is free");
        }
        root.assign_bars().expect("the windows have room");
        root
    };
    let mut root = build();
    let fresh = root.save();
    let mut bytes = Bytes::new(data);
    let mut now_ns = 0;
    while !bytes.is_empty() {
        let region = u16::from(bytes.byte() % 6);
        let offset = match region {
            PciRoot::PORTS => u64::from(bytes.byte() % 10),
            PciRoot::ECAM => u64::from(bytes.byte() % 6) << 15 | u64::from(bytes.byte()),
            PciRoot::MEMORY32 => u64::from(bytes.long() & 0x1_ffff),
            _ => u64::from(bytes.long()),
        };
        let access = Access { region, offset, width: bytes.width() };
        match bytes.byte() % 16 {
            0..=6 => _ = root.read(access),
            7..=13 => root.write(access, bytes.quad() & (u64::MAX >> (64 - 8 * u32::from(access.width)))),
            14 => {
                now_ns += u64::from(bytes.long());
                root.poll(now_ns);
            }
            _ => {
                let state = root.save();
                let mut twin = build();
                twin.load(&state).expect("a device takes the state of its twin");
                assert_eq!(twin.save(), state, "save, load, save is the identity");
                root = twin;
            }
        }
        let _ = root.deadline_ns();
        probe.take_messages();
    }
    root.reset();
    assert_eq!(root.save(), fresh, "reset equals new");
}
