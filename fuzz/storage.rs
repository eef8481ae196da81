//! The target of the AHCI adapter: a driver that writes registers and command structures as the input has them.

use vmctl::testing::devices::ahci::{Ahci, DriveKind};
use vmctl::testing::devices::disk::memory::MemoryDisk;
use vmctl::testing::devices::pci::PciDevice;
use vmctl::testing::hypervisor::irq::{IrqLine, IrqProbe};
use vmctl::testing::hypervisor::memory::GuestAddr;
use vmctl::testing::hypervisor::waking::{Attention, Waker};

use super::{Bytes, address, guest_memory};

const LIST: u64 = 0x1_0000;
const TABLE: u64 = 0x1_1000;
const ABAR: u8 = 5;
const DISK_BYTES: u64 = 32 * 1024;
/// Commands that do something; others are aborted.
const COMMANDS: &[u8] = &[0x25, 0x35, 0x60, 0x61, 0xc8, 0xca, 0xec, 0xa0, 0xa1, 0xea, 0x06, 0xef, 0x2f, 0x42, 0xe5, 0x3d];
const PACKETS: &[u8] = &[0x00, 0x03, 0x12, 0x25, 0x28, 0xa8, 0x43, 0x46, 0x4a, 0x51, 0x5a, 0x1b, 0xbd];

/// One adapter under a driver that does anything.
pub fn ahci(data: &[u8]) {
    let mut input = Bytes::new(data);
    let mem = guest_memory();
    let kind = if input.byte() & 1 == 0 { DriveKind::Disk } else { DriveKind::Cd };
    let new = || {
        let (disk, handle) = MemoryDisk::new(&mem, DISK_BYTES, kind == DriveKind::Cd);
        let line = IrqLine::new(IrqProbe::new(), 5);
        (Ahci::new(kind, Box::new(disk), "fuzz", mem.clone(), Waker::new(Attention::new(1)), line), handle)
    };
    let (mut ahci, disk) = new();
    ahci.config_write(4, 2, 6);
    for (register, value) in [(0x100u64, LIST), (0x108, 0x1_8000), (0x114, u64::from(u32::MAX)), (0x04, 2), (0x118, 0x11)] {
        ahci.bar_write(ABAR, register, 4, value);
    }
    while !input.is_empty() {
        match input.byte() {
            0..=99 => command(&mem, &mut ahci, &mut input),
            100..=149 => {
                let register = 0x100 + u64::from(input.byte() & 0x3f) * 4;
                ahci.bar_write(ABAR, register, 4, u64::from(input.long()));
            }
            150..=169 => drop(ahci.bar_read(ABAR, u64::from(input.word()), input.width())),
            170..=189 => ahci.bar_write(ABAR, u64::from(input.word() & 0x1ff), input.width(), input.quad()),
            190..=199 => ahci.config_write(input.word() & 0xff, input.width().min(4), input.long()),
            200..=214 => disk.hold(input.byte() & 1 != 0),
            215..=224 => disk.fail(input.byte() & 1 != 0),
            225..=234 if disk.waiting() > 0 => disk.release(usize::from(input.byte()) % disk.waiting()),
            235..=240 => {
                let state = ahci.save();
                let (mut twin, _) = new();
                twin.load(&state).expect("an adapter takes the state of its twin");
                assert_eq!(twin.save(), state);
            }
            241 => {
                while disk.waiting() > 0 {
                    disk.release(0);
                }
                assert!(ahci.quiesce() || disk.waiting() > 0, "nothing is with the host");
                ahci.resume();
                ahci.reset();
            }
            // As drivers recover: ST off, status cleared, ST on.
            242..=250 => {
                for (register, value) in [(0x118u64, 0x10u64), (0x110, u64::from(u32::MAX)), (0x118, 0x11)] {
                    ahci.bar_write(ABAR, register, 4, value);
                }
            }
            _ => ahci.poll(0),
        }
        assert!(disk.waiting() <= 32 * 512, "what is in flight is bounded");
    }
}

fn command(mem: &vmctl::testing::hypervisor::memory::GuestMemory, ahci: &mut Ahci, input: &mut Bytes) {
    let slot = u64::from(input.byte() & 31);
    let pick = |list: &[u8], byte: u8| if byte < 220 { list[usize::from(byte) % list.len()] } else { byte };
    let mut fis = [0u8; 20];
    (fis[0], fis[1], fis[2]) = (if input.byte() < 250 { 0x27 } else { input.byte() }, 0x80, pick(COMMANDS, input.byte()));
    (fis[3], fis[4], fis[7], fis[12]) = (input.byte() & 0x83, input.byte() & 0x3f, 0x40, input.byte() & 15);
    if fis[2] & 0xfe == 0x60 {
        (fis[12], fis[3]) = ((slot as u8) << 3, input.byte() & 7);
    }
    if input.byte() < 16 {
        (fis[1], fis[15]) = (0, input.byte());
    }
    let mut packet = [0u8; 16];
    packet[0] = pick(PACKETS, input.byte());
    for byte in &mut packet[1..10] {
        *byte = input.byte() & 0x13;
    }
    let regions = u32::from(input.byte() & 7);
    let table = if input.byte() < 240 { TABLE + slot * 0x200 } else { input.quad() };
    let _ = mem.write_le(GuestAddr(LIST + 32 * slot), 5 | regions << 16);
    let _ = mem.write_le(GuestAddr(LIST + 32 * slot + 8), table);
    let _ = mem.write(GuestAddr(table), &fis);
    let _ = mem.write(GuestAddr(table.wrapping_add(0x40)), &packet);
    for index in 0..u64::from(regions) {
        let at = table.wrapping_add(0x80 + 16 * index);
        let _ = mem.write_le(GuestAddr(at), address(input));
        let _ = mem.write_le(GuestAddr(at.wrapping_add(12)), u32::from(input.word() & 0x1fff));
    }
    if fis[2] & 0xfe == 0x60 {
        ahci.bar_write(ABAR, 0x134, 4, 1 << slot);
    }
    ahci.bar_write(ABAR, 0x138, 4, 1 << slot);
}
