//! A disk behind AHCI: the ATA commands (ATA8-ACS, ACS-3 for trim) that drivers use.
//!
//! **Not modelled**: SMART, security, host protected area, streaming, logs other than that of queued errors; they are
//! aborted, as on a drive without the feature set.

use super::port::{Command, CommandOutcome, ERROR_ABRT, Port};
use crate::devices::disk::DiskOp;

const SECTOR: u64 = 512;
/// Number of 512-byte blocks of ranges in one trim command.
const TRIM_BLOCKS: u16 = 8;
const ERROR_IDNF: u8 = 0x10;

/// Decodes a command to its outcome.
pub fn decode(port: &mut Port, command: &Command) -> CommandOutcome {
    match command.code {
        // READ and WRITE, with 28-bit addresses...
        0x20 | 0xc4 | 0xc8 => transfer(port, command, DiskOp::Read, false, false),
        0x30 | 0xc5 | 0xca => transfer(port, command, DiskOp::Write, false, false),
        // ... with 48-bit addresses...
        0x24 | 0x25 | 0x29 => transfer(port, command, DiskOp::Read, true, false),
        0x34 | 0x35 | 0x39 => transfer(port, command, DiskOp::Write, true, false),
        // ... and past the cache (FUA).
        0x3d | 0xce => transfer(port, command, DiskOp::Write, true, true),
        0x60 => queued(port, command, DiskOp::Read),
        0x61 => queued(port, command, DiskOp::Write),
        0xe7 | 0xea => CommandOutcome::Requests(vec![(DiskOp::Flush, 0)]),
        0x06 if command.features & 1 != 0 && port.disk.can_discard() && (1..=TRIM_BLOCKS).contains(&command.count) => {
            CommandOutcome::Trim { bytes: usize::from(command.count) * SECTOR as usize }
        }
        0x40 | 0x42 => verify(port, command),
        0xec => CommandOutcome::PioIn(identify(port)),
        0xef => set_features(port, command),
        0x2f if command.lba & 0xff == 0x10 && command.count == 1 => CommandOutcome::PioIn(queued_error_log(port)),
        // SET MULTIPLE, INITIALIZE DEVICE PARAMETERS, RECALIBRATE, and the power commands.
        0xc6 | 0x91 | 0x10 | 0xe0..=0xe3 | 0xe6 => CommandOutcome::Done,
        0xe5 => CommandOutcome::DoneWithCount(0xff),
        _ => CommandOutcome::Failed(ERROR_ABRT),
    }
}

fn byte_range(command: &Command, long: bool) -> (u64, u64) {
    match long {
        true => (command.lba & 0xffff_ffff_ffff, if command.count == 0 { 65_536 } else { command.count.into() }),
        false => {
            let count = command.count & 0xff;
            (command.lba & 0xff_ffff | u64::from(command.device & 0xf) << 24, if count == 0 { 256 } else { count.into() })
        }
    }
}

fn transfer(port: &Port, command: &Command, op: DiskOp, long: bool, through: bool) -> CommandOutcome {
    let (lba, sectors) = byte_range(command, long);
    let (offset, bytes) = (lba.checked_mul(SECTOR), sectors * SECTOR);
    if op == DiskOp::Write && port.disk.read_only() {
        return CommandOutcome::Failed(ERROR_ABRT);
    }
    match offset.filter(|_| port.in_range(offset, bytes)) {
        None => CommandOutcome::Failed(ERROR_IDNF),
        Some(offset) => {
            let flush = op == DiskOp::Write && (through || port.drive.writethrough);
            CommandOutcome::Transfer { op, offset, bytes, flush, queued: false }
        }
    }
}

/// Decodes READ and WRITE FPDMA QUEUED. The count is in the features, FUA is bit 7 of the device register.
fn queued(port: &Port, command: &Command, op: DiskOp) -> CommandOutcome {
    let sectors = if command.features == 0 { 65_536 } else { u64::from(command.features) };
    let (offset, bytes) = ((command.lba & 0xffff_ffff_ffff).checked_mul(SECTOR), sectors * SECTOR);
    // In AHCI the tag is the slot.
    let fits = command.count >> 3 & 31 == u16::from(command.slot);
    if !fits || op == DiskOp::Write && port.disk.read_only() {
        return CommandOutcome::QueuedFailed(ERROR_ABRT);
    }
    match offset.filter(|_| port.in_range(offset, bytes)) {
        None => CommandOutcome::QueuedFailed(ERROR_IDNF),
        Some(offset) => {
            let flush = op == DiskOp::Write && (command.device & 0x80 != 0 || port.drive.writethrough);
            CommandOutcome::Transfer { op, offset, bytes, flush, queued: true }
        }
    }
}

fn verify(port: &Port, command: &Command) -> CommandOutcome {
    let (lba, sectors) = byte_range(command, command.code == 0x42);
    match port.in_range(lba.checked_mul(SECTOR), sectors * SECTOR) {
        true => CommandOutcome::Done,
        false => CommandOutcome::Failed(ERROR_IDNF),
    }
}

fn set_features(port: &mut Port, command: &Command) -> CommandOutcome {
    match command.features & 0xff {
        0x02 => port.drive.writethrough = false,
        0x82 => port.drive.writethrough = true,
        // Transfer mode, look-ahead on and off, automatic acoustics: accepted without effect.
        0x03 | 0xaa | 0x55 | 0x66 | 0xcc => {}
        _ => return CommandOutcome::Failed(ERROR_ABRT),
    }
    CommandOutcome::Done
}

/// Decodes the ranges of a trim command: 48 bits of address, 16 of count. An entry with a count of 0 is empty.
pub fn trim(port: &Port, ranges: &[u8]) -> CommandOutcome {
    let mut requests = Vec::new();
    for raw in ranges.chunks_exact(8) {
        let range = u64::from_le_bytes(raw.try_into().expect("eight bytes"));
        let (lba, sectors) = (range & 0xffff_ffff_ffff, range >> 48);
        let (offset, bytes) = (lba.checked_mul(SECTOR), sectors * SECTOR);
        match offset.filter(|_| port.in_range(offset, bytes)) {
            None => return CommandOutcome::Failed(ERROR_IDNF),
            Some(_) if sectors == 0 => {}
            Some(offset) => requests.push((DiskOp::Discard { bytes }, offset)),
        }
    }
    if requests.is_empty() { CommandOutcome::Done } else { CommandOutcome::Requests(requests) }
}

/// Returns log 10h: the queued command that failed.
fn queued_error_log(port: &mut Port) -> Vec<u8> {
    let mut log = vec![0u8; 512];
    match port.drive.queued_error.take() {
        Some((slot, status, error)) => (log[0], log[2], log[3]) = (slot, status, error),
        None => log[0] = 0x80,
    }
    log[511] = checksum(&log[..511]);
    log
}

fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)).wrapping_neg()
}

/// Writes a text to words. The first character of each is the high byte; the rest is spaces.
pub fn text(words: &mut [u8], text: &str) {
    words.fill(b' ');
    for (i, byte) in text.bytes().take(words.len()).enumerate() {
        words[i ^ 1] = byte;
    }
}

/// Returns IDENTIFY DEVICE data.
fn identify(port: &Port) -> Vec<u8> {
    let mut data = vec![0u8; 512];
    text(&mut data[20..40], &port.serial);
    text(&mut data[46..54], "1.0");
    text(&mut data[54..94], "vmctl disk");
    let sectors = port.disk.size_bytes() / SECTOR;
    let (short, cylinders) = (sectors.min(0x0fff_ffff) as u32, (sectors / (16 * 63)).min(16_383) as u16);
    let trim = port.disk.can_discard();
    let words: &[(usize, u16)] = &[
        (0, 0x0040),
        (1, cylinders),
        (3, 16),
        (6, 63),
        (47, 0x8010),
        (49, 0x0f00),
        (50, 1 << 14),
        (53, 0x0006),
        (59, 0x0110),
        (60, short as u16),
        (61, (short >> 16) as u16),
        (63, 0x0007),
        (64, 0x0003),
        (65, 120),
        (66, 120),
        (67, 120),
        (68, 120),
        (75, 31),
        // Gen1, Gen2, NCQ.
        (76, 1 << 8 | 3 << 1),
        (80, 0x01f0),
        // Look-ahead, write cache, power management; 48-bit addresses and both flushes.
        (82, 1 << 6 | 1 << 5 | 1 << 3),
        (83, 1 << 14 | 1 << 13 | 1 << 12 | 1 << 10),
        (84, 1 << 14 | 1 << 6),
        (85, 1 << 6 | u16::from(!port.drive.writethrough) << 5 | 1 << 3),
        (86, 1 << 13 | 1 << 12 | 1 << 10),
        (87, 1 << 14 | 1 << 6),
        (88, 0x407f),
        (105, if trim { TRIM_BLOCKS } else { 0 }),
        // Eight logical sectors of 512 bytes in a physical one.
        (106, 1 << 14 | 1 << 13 | 3),
        (169, trim.into()),
        // It does not rotate.
        (217, 1),
        (222, 0x1020),
    ];
    for &(word, value) in words {
        data[2 * word..2 * word + 2].copy_from_slice(&value.to_le_bytes());
    }
    data[200..208].copy_from_slice(&sectors.to_le_bytes());
    data[510] = 0xa5;
    data[511] = checksum(&data[..511]);
    data
}
