use super::*;
use crate::devices::conformance;
use crate::devices::disk::DiskOp;
use crate::devices::disk::memory::{MemoryDisk, MemoryDiskHandle};
use crate::hypervisor::bus::{Access, Device};
use crate::hypervisor::irq::IrqProbe;
use crate::hypervisor::memory::{GuestAddr, Mode};
use crate::hypervisor::waking::Attention;
use std::sync::Arc;

const LIST: u64 = 0x1000;
const FRAMES: u64 = 0x2000;
const TABLES: u64 = 0x4000;
const DATA: u64 = 0x2_0000;
const GSI: u32 = 19;
const DISK_BYTES: u64 = 64 * 1024;

const IS: u64 = 0x110;
const IE: u64 = 0x114;
const CMD: u64 = 0x118;
const TFD: u64 = 0x120;
const SIG: u64 = 0x124;
const SSTS: u64 = 0x128;
const SCTL: u64 = 0x12c;
const SERR: u64 = 0x130;
const SACT: u64 = 0x134;
const CI: u64 = 0x138;

/// The adapter as a driver sees it.
struct Driver {
    ahci: Ahci,
    mem: GuestMemory,
    probe: Arc<IrqProbe>,
    disk: MemoryDiskHandle,
}

fn memory() -> GuestMemory {
    GuestMemory::anonymous(&[(GuestAddr(0), 1 << 20, Mode::Ram)]).unwrap()
}

fn adapter(kind: DriveKind, mem: &GuestMemory, probe: &Arc<IrqProbe>) -> (Ahci, MemoryDiskHandle) {
    let (disk, handle) = MemoryDisk::new(mem, DISK_BYTES, kind == DriveKind::Cd);
    let waker = Waker::new(Attention::new(1));
    (Ahci::new(kind, Box::new(disk), "serial", mem.clone(), waker, IrqLine::new(probe.clone(), GSI)), handle)
}

impl Driver {
    fn new(kind: DriveKind) -> Driver {
        let (mem, probe) = (memory(), IrqProbe::new());
        let (ahci, disk) = adapter(kind, &mem, &probe);
        let mut driver = Driver { ahci, mem, probe, disk };
        driver.start();
        driver
    }

    fn start(&mut self) {
        self.ahci.config_write(4, 2, 6);
        self.set(0x100, LIST as u32);
        self.set(0x108, FRAMES as u32);
        self.set(IE, u32::MAX);
        self.set(0x04, 2);
        self.set(CMD, 0x11);
    }

    fn set(&mut self, register: u64, value: u32) {
        self.ahci.bar_write(ABAR, register, 4, u64::from(value));
    }
    fn get(&mut self, register: u64) -> u32 {
        self.ahci.bar_read(ABAR, register, 4) as u32
    }

    /// Writes a command to a slot, with its data at `DATA` in two regions.
    fn prepare(&mut self, slot: u64, fis: &[u8], packet: &[u8], bytes: u32) {
        let table = TABLES + slot * 0x400;
        let header = [5u32 | 2 << 16, 0, table as u32, 0];
        for (i, word) in header.iter().enumerate() {
            self.mem.write_le(GuestAddr(LIST + 32 * slot + 4 * i as u64), *word).unwrap();
        }
        self.mem.fill(GuestAddr(table), 0, 0x100).unwrap();
        self.mem.write(GuestAddr(table), fis).unwrap();
        self.mem.write(GuestAddr(table + 0x40), packet).unwrap();
        let first = (bytes / 2).next_multiple_of(2).max(2);
        for (i, (at, len)) in [(DATA, first), (DATA + u64::from(first), bytes.saturating_sub(first).max(2))].iter().enumerate() {
            let region = table + 0x80 + 16 * i as u64;
            self.mem.write_le(GuestAddr(region), *at).unwrap();
            self.mem.write_le(GuestAddr(region + 12), *len - 1).unwrap();
        }
    }

    fn ata(&mut self, slot: u64, code: u8, lba: u64, count: u16, bytes: u32) {
        let [a, b, c, d, e, f, ..] = lba.to_le_bytes();
        let [low, high] = count.to_le_bytes();
        let fis = [0x27, 0x80, code, 0, a, b, c, 0x40, d, e, f, 0, low, high];
        self.prepare(slot, &fis, &[], bytes);
    }

    fn queued(&mut self, slot: u64, code: u8, lba: u64, sectors: u8) {
        let [a, b, c, ..] = lba.to_le_bytes();
        self.prepare(
            slot,
            &[0x27, 0x80, code, sectors, a, b, c, 0x40, 0, 0, 0, 0, (slot as u8) << 3],
            &[],
            512 * u32::from(sectors),
        );
        self.set(SACT, 1 << slot);
        self.set(CI, 1 << slot);
    }

    /// Runs an ATA command to its end.
    fn run(&mut self, code: u8, lba: u64, count: u16, bytes: u32) -> u8 {
        self.ata(0, code, lba, count, bytes);
        self.set(CI, 1);
        self.get(TFD) as u8
    }

    /// Runs a packet command and returns the error register.
    fn packet(&mut self, packet: &[u8], bytes: u32) -> u8 {
        self.prepare(0, &[0x27, 0x80, 0xa0, 1], packet, bytes);
        self.set(CI, 1);
        let error = (self.get(TFD) >> 8) as u8;
        if self.get(TFD) & 1 != 0 {
            self.recover();
        }
        error
    }

    /// Clears and sets ST, as drivers do after an error.
    fn recover(&mut self) {
        self.set(CMD, 0x10);
        self.set(IS, u32::MAX);
        self.set(CMD, 0x11);
    }

    fn data(&self, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        self.mem.read(GuestAddr(DATA), &mut data).unwrap();
        data
    }

    fn poll(&mut self) {
        self.ahci.waker.wake();
        self.ahci.poll(0);
    }
}

#[test]
fn identify_tells_the_disk_and_raises_the_line_until_it_is_acknowledged() {
    let mut driver = Driver::new(DriveKind::Disk);
    assert_eq!((driver.get(SIG), driver.get(SSTS) & 0xf), (0x101, 3));
    assert_eq!(driver.run(0xec, 0, 0, 512), 0x50);
    let data = driver.data(512);
    assert_eq!(&data[54..74], b"mvtc lidks          ");
    assert_eq!(&data[20..26], b"esirla");
    assert_eq!(u64::from_le_bytes(data[200..208].try_into().unwrap()), DISK_BYTES / 512);
    assert_eq!(data.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)), 0);
    assert_eq!(driver.mem.read_le::<u32>(GuestAddr(LIST + 4)).unwrap(), 512);
    assert_eq!(driver.mem.read_le::<u8>(GuestAddr(FRAMES + 0x40)).unwrap(), 0x34);
    assert_eq!((driver.get(CI), driver.get(0x08)), (0, 1));
    assert!(driver.probe.level(GSI));
    let status = driver.get(IS);
    driver.set(IS, status);
    assert!(driver.probe.level(GSI), "the adapter's own bit is still set");
    driver.set(0x08, 1);
    assert!(!driver.probe.level(GSI));
}

#[test]
fn sectors_move_between_memory_and_disk() {
    let mut driver = Driver::new(DriveKind::Disk);
    let data: Vec<u8> = (0..1024).map(|i| (i * 7) as u8).collect();
    driver.mem.write(GuestAddr(DATA), &data).unwrap();
    for (write, read) in [(0x35, 0x25), (0xca, 0xc8), (0x30, 0x20), (0x3d, 0x24)] {
        assert_eq!(driver.run(write, 5, 2, 1024), 0x50);
        assert_eq!(&driver.disk.bytes()[5 * 512..7 * 512], &data[..]);
        driver.mem.fill(GuestAddr(DATA), 0, 1024).unwrap();
        assert_eq!(driver.run(read, 5, 2, 1024), 0x50);
        assert_eq!(driver.data(1024), data);
        driver.disk.put(5 * 512, &[0; 1024]);
    }
}

#[test]
fn flushes_trims_and_a_write_cache_that_is_off_reach_the_disk() {
    let mut driver = Driver::new(DriveKind::Disk);
    driver.run(0xea, 0, 0, 0);
    assert_eq!(driver.disk.take_seen(), [DiskOp::Flush]);
    driver.run(0x35, 0, 1, 512);
    assert_eq!(driver.disk.take_seen(), [DiskOp::Write]);
    driver.prepare(0, &[0x27, 0x80, 0xef, 0x82], &[], 0);
    driver.set(CI, 1);
    driver.run(0x35, 0, 1, 512);
    assert_eq!(driver.disk.take_seen(), [DiskOp::Write, DiskOp::Flush]);
    driver.mem.fill(GuestAddr(DATA), 0, 512).unwrap();
    driver.mem.write_le(GuestAddr(DATA), 3u64 | 2 << 48).unwrap();
    driver.prepare(0, &[0x27, 0x80, 0x06, 1, 0, 0, 0, 0x40, 0, 0, 0, 0, 1], &[], 512);
    driver.set(CI, 1);
    assert_eq!(driver.disk.take_seen(), [DiskOp::Discard { bytes: 1024 }]);
    assert_eq!(driver.get(TFD) as u8, 0x50);
}

#[test]
fn queued_commands_end_in_any_order() {
    let mut driver = Driver::new(DriveKind::Disk);
    driver.disk.hold(true);
    driver.queued(3, 0x60, 1, 1);
    driver.queued(7, 0x60, 2, 1);
    assert_eq!((driver.get(CI), driver.get(SACT)), (0, 1 << 3 | 1 << 7));
    driver.disk.release(1);
    driver.poll();
    assert_eq!(driver.get(SACT), 1 << 3);
    assert_eq!(driver.mem.read_le::<u32>(GuestAddr(FRAMES + 0x5c)).unwrap(), 1 << 7);
    driver.disk.release(0);
    driver.poll();
    assert_eq!(driver.get(SACT), 0);
}

#[test]
fn a_command_that_ends_while_the_last_one_is_acknowledged_keeps_or_raises_the_line() {
    let mut driver = Driver::new(DriveKind::Disk);
    driver.disk.hold(true);
    (0..3).for_each(|slot| driver.queued(slot, 0x60, slot, 1));
    driver.disk.release(0);
    driver.poll();
    assert!(driver.probe.level(GSI));
    // The second ends after the port's status was cleared and before the adapter's is: that write finds it.
    let status = driver.get(IS);
    driver.set(IS, status);
    driver.disk.release(0);
    driver.set(0x08, 1);
    assert_eq!((driver.get(0x08), driver.get(SACT)), (1, 1 << 2));
    assert_ne!(driver.get(IS), 0, "or nothing would tell what it is");
    assert!(driver.probe.level(GSI));
    // The third ends after both.
    let status = driver.get(IS);
    driver.set(IS, status);
    driver.set(0x08, 1);
    assert!(!driver.probe.level(GSI));
    let edges = driver.probe.edges(GSI);
    driver.disk.release(0);
    driver.poll();
    assert_eq!((driver.get(SACT), driver.probe.level(GSI), driver.probe.edges(GSI)), (0, true, edges + 1));
}

#[test]
fn an_error_stops_the_port_until_st_is_cleared() {
    let mut driver = Driver::new(DriveKind::Disk);
    assert_eq!(driver.run(0x25, DISK_BYTES / 512, 1, 512), 0x51);
    assert_ne!(driver.get(IS) & 1 << 30, 0);
    assert_eq!(driver.get(CI), 1, "the command that failed can be told");
    driver.ata(1, 0xec, 0, 0, 512);
    driver.set(CI, 2);
    assert_eq!(driver.get(CI), 3, "nothing runs");
    driver.recover();
    assert_eq!((driver.get(CI), driver.run(0xec, 0, 0, 512)), (0, 0x50));
    // A queued one is found in the log.
    driver.queued(5, 0x60, DISK_BYTES / 512, 1);
    assert_eq!(driver.get(SACT), 1 << 5);
    driver.recover();
    assert_eq!(driver.run(0x2f, 0x10, 1, 512), 0x50);
    assert_eq!(driver.data(4)[..], [5, 0, 0x51, 0x10]);
    driver.disk.fail(true);
    assert_eq!(driver.run(0x25, 0, 1, 512), 0x51);
}

#[test]
fn the_cd_tells_of_its_reset_once_and_is_read() {
    let mut driver = Driver::new(DriveKind::Cd);
    assert_eq!(driver.get(SIG), 0xeb14_0101);
    assert_eq!(driver.run(0xec, 0, 0, 512), 0x51, "it is no disk");
    driver.recover();
    assert_eq!(driver.run(0xa1, 0, 0, 512), 0x50);
    assert_eq!(driver.data(2), [0xc0, 0x85]);
    assert_eq!(driver.packet(&[0; 12], 0) >> 4, 6, "unit attention");
    assert_eq!(driver.packet(&[3, 0, 0, 0, 18, 0], 18), 0);
    assert_eq!((driver.data(13)[2], driver.data(13)[12]), (6, 0x29));
    assert_eq!(driver.packet(&[0; 12], 0), 0);
    driver.packet(&[0x25, 0, 0, 0, 0, 0], 8);
    assert_eq!(driver.data(8), [0, 0, 0, (DISK_BYTES / 2048 - 1) as u8, 0, 0, 8, 0]);
    driver.disk.put(3 * 2048, &[0xab; 4096]);
    assert_eq!(driver.packet(&[0x28, 0, 0, 0, 0, 3, 0, 0, 2, 0], 4096), 0);
    assert_eq!(driver.data(4096), [0xab; 4096]);
    assert_eq!(driver.packet(&[0xa8, 0, 0, 0, 0, 4, 0, 0, 0, 1], 2048), 0);
    assert_eq!(driver.packet(&[0x28, 0, 0, 0, 0, 31, 0, 0, 2, 0], 4096) >> 4, 5, "beyond the end");
    driver.packet(&[0x43, 0, 0, 0, 0, 0, 0, 0, 20, 0], 20);
    assert_eq!(driver.data(20)[..4], [0, 18, 1, 1]);
    driver.packet(&[0x4a, 1, 0, 0, 0x10, 0, 0, 0, 8], 8);
    assert_eq!(driver.data(6), [0, 6, 4, 0x10, 0, 2]);
    assert_eq!(driver.packet(&[0x1b, 0, 0, 0, 2], 0) >> 4, 5, "the disc stays in");
    driver.disk.fail(true);
    assert_eq!(driver.packet(&[0x28, 0, 0, 0, 0, 3, 0, 0, 1, 0], 2048) >> 4, 3, "a medium error");
}

#[test]
fn a_soft_reset_and_a_reset_of_the_link_bring_the_signature_back() {
    let mut driver = Driver::new(DriveKind::Cd);
    for control in [4, 0] {
        let mut fis = [0u8; 20];
        (fis[0], fis[15]) = (0x27, control);
        driver.prepare(0, &fis, &[], 0);
        driver.set(CI, 1);
        assert_eq!(driver.get(CI), 0);
    }
    let mut frame = [0; 7];
    driver.mem.read(GuestAddr(FRAMES + 0x40), &mut frame).unwrap();
    assert_eq!(frame, [0x34, 0, 0x50, 1, 1, 0x14, 0xeb]);
    driver.set(SCTL, 0x301);
    assert_eq!((driver.get(SSTS), driver.get(TFD)), (1, 0x7f));
    driver.set(SCTL, 0x300);
    assert_eq!((driver.get(SSTS), driver.get(TFD)), (0x123, 0x150));
    assert_ne!(driver.get(SERR) & 1 << 26, 0);
    driver.set(SERR, u32::MAX);
    assert_eq!(driver.get(IS) & 1 << 6, 0);
}

#[test]
fn the_list_runs_on_until_what_is_in_flight_has_ended() {
    let mut driver = Driver::new(DriveKind::Disk);
    driver.disk.hold(true);
    driver.ata(0, 0x25, 0, 1, 512);
    driver.set(CI, 1);
    driver.set(CMD, 0x10);
    assert_ne!(driver.get(CMD) & 1 << 15, 0, "CR");
    driver.disk.release(0);
    driver.poll();
    assert_eq!((driver.get(CMD) & 1 << 15, driver.get(CI)), (0, 0));
    driver.disk.hold(false);
    driver.recover();
    assert_eq!(driver.run(0xec, 0, 0, 512), 0x50);
}

#[test]
fn a_reset_of_the_adapter_is_done_when_the_disk_is() {
    let mut driver = Driver::new(DriveKind::Disk);
    driver.disk.hold(true);
    driver.queued(3, 0x60, 1, 1);
    driver.set(0x04, 1);
    assert_eq!((driver.get(0x04) & 1, driver.disk.waiting()), (1, 1), "HR stays, since the disk may still write");
    driver.set(IE, u32::MAX);
    driver.queued(4, 0x60, 1, 1);
    assert_eq!(driver.disk.waiting(), 1, "what comes before it is done is dropped");
    let state = driver.ahci.save();
    let (mut twin, disk) = adapter(DriveKind::Disk, &driver.mem, &driver.probe);
    twin.load(&state).unwrap();
    twin.poll(0);
    assert_eq!((twin.bar_read(ABAR, 0x04, 4), twin.bar_read(ABAR, SACT, 4)), (1 << 31, 0));
    assert!(disk.take_seen().is_empty());
    driver.disk.release(0);
    driver.poll();
    assert_eq!((driver.get(0x04), driver.get(SACT), driver.get(IS), driver.get(IE)), (1 << 31, 0, 0, 0));
    assert!(!driver.probe.level(GSI));
}

#[test]
fn an_adapter_that_must_be_quiet_begins_nothing_and_ends_what_it_has() {
    let mut driver = Driver::new(DriveKind::Disk);
    driver.disk.hold(true);
    driver.queued(3, 0x60, 1, 1);
    assert!(!driver.ahci.quiesce());
    driver.queued(4, 0x60, 2, 1);
    assert_eq!(driver.disk.waiting(), 1);
    driver.disk.release(0);
    assert!(driver.ahci.quiesce());
    assert_eq!(driver.get(SACT), 1 << 4);
    driver.ahci.resume();
    driver.ahci.poll(0);
    driver.disk.release(0);
    driver.poll();
    assert_eq!(driver.get(SACT), 0);
}

#[test]
fn structures_outside_of_memory_stop_the_port_with_a_bus_error() {
    let mut driver = Driver::new(DriveKind::Disk);
    driver.ata(0, 0x25, 0, 1, 512);
    driver.mem.write_le(GuestAddr(TABLES + 0x80), 0xffff_ffff_ffff_f000u64).unwrap();
    driver.set(CI, 1);
    assert_ne!(driver.get(IS) & 1 << 29, 0);
    driver.recover();
    driver.set(0x100, 0xffff_fc00);
    driver.set(CI, 1);
    assert_ne!(driver.get(IS) & 1 << 29, 0);
    driver.recover();
    driver.set(0x100, LIST as u32);
    driver.ata(0, 0x25, 0, 4, 512);
    driver.set(CI, 1);
    assert_eq!(driver.get(TFD) as u8, 0x51, "fewer regions than sectors");
    // Without bus mastering nothing runs; once it is enabled, the waiting commands do.
    driver.recover();
    driver.ahci.config_write(4, 2, 2);
    driver.ata(0, 0xec, 0, 0, 512);
    driver.set(CI, 1);
    assert_eq!(driver.get(CI), 1);
    driver.ahci.config_write(4, 2, 6);
    assert_eq!(driver.get(CI), 0);
}

#[test]
fn commands_in_flight_are_done_again_by_the_adapter_that_takes_over() {
    let mut driver = Driver::new(DriveKind::Disk);
    driver.disk.hold(true);
    driver.queued(2, 0x60, 1, 1);
    driver.ata(4, 0x25, 2, 1, 512);
    driver.set(CI, 1 << 4);
    let state = driver.ahci.save();
    let (mut twin, disk) = adapter(DriveKind::Disk, &driver.mem, &driver.probe);
    disk.put(512, &[1; 1024]);
    twin.load(&state).unwrap();
    assert_eq!(twin.save(), state);
    assert_eq!(twin.deadline_ns(), Some(0));
    twin.poll(0);
    assert_eq!(disk.take_seen(), [DiskOp::Read, DiskOp::Read]);
    assert_eq!((twin.bar_read(ABAR, SACT, 4), twin.bar_read(ABAR, CI, 4)), (0, 0));
    // The bases of the command list and of received FISs; the end of the drive's state and the commands that run.
    let bases = |list: u64| (list, FRAMES);
    let running = |slots: u32| (None::<(u8, u8, u8)>, false, slots);
    let wrong = [
        conformance::replaced(&state, &bases(LIST), &bases(LIST + 1)),
        conformance::replaced(&state, &running(20), &running(21)),
    ];
    for wrong in wrong {
        assert!(twin.load(&wrong).is_err(), "{wrong:?}");
    }
}

/// A function without a root.
struct Bare(Ahci);

impl Device for Bare {
    fn name(&self) -> &'static str {
        self.0.name()
    }
    fn read(&mut self, access: Access) -> u64 {
        match access.region {
            0 => self.0.bar_read(ABAR, access.offset, access.width),
            1 => self.0.config_read(access.offset as u16, access.width.min(4)).into(),
            _ => 0,
        }
    }
    fn write(&mut self, access: Access, value: u64) {
        match access.region {
            0 => self.0.bar_write(ABAR, access.offset, access.width, value),
            1 => self.0.config_write(access.offset as u16, access.width.min(4), value as u32),
            _ => {}
        }
    }
    fn reset(&mut self) {
        self.0.reset();
    }
    fn save(&self) -> Section {
        self.0.save()
    }
    fn load(&mut self, section: &Section) -> Result<(), StateError> {
        self.0.load(section)
    }
    fn deadline_ns(&self) -> Option<u64> {
        self.0.deadline_ns()
    }
    fn poll(&mut self, now_ns: u64) {
        self.0.poll(now_ns);
    }
}

#[test]
fn both_drives_keep_the_contract_of_devices() {
    for kind in [DriveKind::Disk, DriveKind::Cd] {
        let (mem, probe) = (memory(), IrqProbe::new());
        conformance::check(|| Bare(adapter(kind, &mem, &probe).0), &[(1, 256), (0, ABAR_BYTES)]);
    }
}
