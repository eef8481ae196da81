//! A CD drive behind AHCI: ATAPI packets (ATA8-ACS) with the commands of MMC-5 and SPC-3 that drivers use, and a disc
//! of one data track that cannot be ejected.
//!
//! **Not modelled**: audio, subchannels, writing, DVD structures, ejecting. Such commands end with ILLEGAL REQUEST.

use super::ata;
use super::port::{Command, CommandOutcome, ERROR_ABRT, Port};
use crate::devices::disk::DiskOp;

const BLOCK: u64 = 2048;
const ILLEGAL_REQUEST: u8 = 5;
const UNIT_ATTENTION: u8 = 6;
const MEDIUM_ERROR: u8 = 3;
/// Profile: CD-ROM.
const PROFILE_CD_ROM: u16 = 0x0008;

/// Decodes a command to its outcome.
pub fn decode(port: &mut Port, command: &Command) -> CommandOutcome {
    match command.code {
        0xa0 => packet(port, command),
        0xa1 => CommandOutcome::PioIn(identify(port)),
        0xef | 0xe0..=0xe3 | 0xe6 | 0xe7 | 0xea => CommandOutcome::Done,
        0xe5 => CommandOutcome::DoneWithCount(0xff),
        // IDENTIFY DEVICE is aborted. That tells a driver that this is a packet device.
        _ => CommandOutcome::Failed(ERROR_ABRT),
    }
}

fn sense(port: &mut Port, key: u8, code: u8, qualifier: u8) -> CommandOutcome {
    port.drive.sense = (key, code, qualifier);
    CommandOutcome::Failed(key << 4 | ERROR_ABRT)
}

/// Sets the sense data for a read that failed on the host, and returns the error register.
pub fn medium_error(port: &mut Port) -> u8 {
    // Unrecovered read error.
    port.drive.sense = (MEDIUM_ERROR, 0x11, 0);
    MEDIUM_ERROR << 4
}

fn be16(bytes: &[u8], at: usize) -> usize {
    usize::from(bytes[at]) << 8 | usize::from(bytes[at + 1])
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// Truncates data to the host's buffer.
fn reply(mut data: Vec<u8>, room: usize) -> CommandOutcome {
    data.truncate(room);
    if data.is_empty() { CommandOutcome::Done } else { CommandOutcome::PacketIn(data) }
}

fn packet(port: &mut Port, command: &Command) -> CommandOutcome {
    let packet = &command.packet;
    let code = packet[0];
    // After power-on or a reset, every command except these reports it first.
    if port.drive.attention && !matches!(code, 0x03 | 0x12 | 0x46 | 0x4a) {
        port.drive.attention = false;
        return sense(port, UNIT_ATTENTION, 0x29, 0);
    }
    if code != 0x03 {
        port.drive.sense = (0, 0, 0);
    }
    match code {
        // TEST UNIT READY, PREVENT/ALLOW, SEEK, SYNCHRONIZE CACHE, SET SPEED.
        0x00 | 0x1e | 0x2b | 0x35 | 0xbb => CommandOutcome::Done,
        0x03 => request_sense(port, packet[4].into()),
        0x12 => reply(inquiry(), be16(packet, 3)),
        // START STOP UNIT: the disc stays in.
        0x1b if packet[4] & 3 == 2 => sense(port, ILLEGAL_REQUEST, 0x53, 2),
        0x1b => CommandOutcome::Done,
        0x25 => reply(capacity(port), 8),
        0x28 => read(port, be32(packet, 2), be16(packet, 7) as u32),
        0xa8 => read(port, be32(packet, 2), be32(packet, 6)),
        0x43 => table_of_contents(port, packet),
        0x46 => reply(configuration(packet), be16(packet, 7)),
        0x4a if packet[1] & 1 != 0 => reply(events(packet), be16(packet, 7)),
        0x51 => reply(disc_information(), be16(packet, 7)),
        0x5a => mode_sense(port, packet[2], be16(packet, 7)),
        0xbd => reply(vec![0; 8], be16(packet, 8)),
        _ => sense(port, ILLEGAL_REQUEST, 0x20, 0),
    }
}

fn blocks(port: &Port) -> u32 {
    (port.disk.size_bytes() / BLOCK).min(u32::MAX.into()) as u32
}

fn read(port: &mut Port, first: u32, count: u32) -> CommandOutcome {
    if count == 0 {
        return CommandOutcome::Done;
    }
    let (offset, bytes) = (u64::from(first) * BLOCK, u64::from(count) * BLOCK);
    if u64::from(first) + u64::from(count) > blocks(port).into() {
        // Logical block address out of range.
        return sense(port, ILLEGAL_REQUEST, 0x21, 0);
    }
    CommandOutcome::Transfer { op: DiskOp::Read, offset, bytes, flush: false, queued: false }
}

fn request_sense(port: &mut Port, room: usize) -> CommandOutcome {
    let (key, code, qualifier) = std::mem::take(&mut port.drive.sense);
    let mut data = vec![0u8; 18];
    (data[0], data[2], data[7], data[12], data[13]) = (0x70, key, 10, code, qualifier);
    reply(data, room)
}

fn inquiry() -> Vec<u8> {
    let mut data = vec![0u8; 36];
    // A CD drive with a removable medium, SPC-3.
    (data[0], data[1], data[2], data[3], data[4]) = (5, 0x80, 5, 0x32, 31);
    data[8..36].copy_from_slice(b"vmctl   CD drive        1.0 ");
    data
}

fn capacity(port: &Port) -> Vec<u8> {
    let last = blocks(port).saturating_sub(1);
    [last.to_be_bytes(), (BLOCK as u32).to_be_bytes()].concat()
}

/// Returns a block's address as minute, second and frame.
fn msf(block: u32) -> [u8; 4] {
    let frames = u64::from(block) + 150;
    [0, (frames / (75 * 60)).min(255) as u8, (frames / 75 % 60) as u8, (frames % 75) as u8]
}

fn table_of_contents(port: &mut Port, packet: &[u8; 12]) -> CommandOutcome {
    let (time, room) = (packet[1] & 2 != 0, be16(packet, 7));
    let address = |block: u32| if time { msf(block) } else { block.to_be_bytes() };
    // The format is in byte 2. Old drivers have it in the last one.
    let format = if packet[2] & 0xf != 0 { packet[2] & 0xf } else { packet[9] >> 6 };
    let track = |number: u8, block: u32| [[0, 0x14, number, 0], address(block)].concat();
    let (first, last) = (1u8, 1u8);
    let tracks = match format {
        0 if packet[6] > 1 && packet[6] != 0xaa => return sense(port, ILLEGAL_REQUEST, 0x24, 0),
        0 if packet[6] == 0xaa => track(0xaa, blocks(port)),
        0 => [track(1, 0), track(0xaa, blocks(port))].concat(),
        // Sessions: one, which begins with the first track.
        1 => track(1, 0),
        _ => return sense(port, ILLEGAL_REQUEST, 0x24, 0),
    };
    let mut data = ((tracks.len() + 2) as u16).to_be_bytes().to_vec();
    data.extend([first, last]);
    data.extend(tracks);
    reply(data, room)
}

fn configuration(packet: &[u8; 12]) -> Vec<u8> {
    let start = be16(packet, 2) as u16;
    // Profile list, core, removable medium, random reading, CD reading.
    let features: [(u16, u8, &[u8]); 5] = [
        (0x0000, 0x03, &[0x00, 0x08, 0x01, 0x00]),
        (0x0001, 0x0b, &[0, 0, 0, 7, 1, 0, 0, 0]),
        (0x0003, 0x03, &[0x21, 0, 0, 0]),
        (0x0010, 0x01, &[0, 0, 8, 0, 0, 1, 0, 0]),
        (0x001e, 0x09, &[0, 0, 0, 0]),
    ];
    let mut data = vec![0u8; 6];
    data.extend(PROFILE_CD_ROM.to_be_bytes());
    let one = packet[1] & 3 == 2;
    for (feature, flags, body) in features.into_iter().filter(|f| if one { f.0 == start } else { f.0 >= start }) {
        data.extend(feature.to_be_bytes());
        data.extend([flags, body.len() as u8]);
        data.extend(body);
    }
    let len = data.len() as u32 - 4;
    data[..4].copy_from_slice(&len.to_be_bytes());
    data
}

/// Returns the event status: the class of media, nothing new, disc present; or that the class does not exist.
fn events(packet: &[u8; 12]) -> Vec<u8> {
    const MEDIA: u8 = 4;
    match packet[4] & 1 << MEDIA != 0 {
        true => vec![0, 6, MEDIA, 1 << MEDIA, 0, 2, 0, 0],
        false => vec![0, 2, 0x80, 1 << MEDIA],
    }
}

fn disc_information() -> Vec<u8> {
    let mut data = vec![0u8; 34];
    // 32 bytes follow; a complete disc with a complete session; one session; tracks 1 to 1.
    (data[1], data[2], data[3], data[4], data[5], data[6]) = (32, 0x0e, 1, 1, 1, 1);
    data
}

fn mode_sense(port: &mut Port, page: u8, room: usize) -> CommandOutcome {
    let recovery: &[u8] = &[0x01, 6, 0, 5, 0, 0, 0, 0];
    // Capabilities: reads mode 2, does not write; the tray is locked; 706 kB/s.
    let capabilities: &[u8] = &[0x2a, 18, 0, 0, 0x70, 0, 0x23, 0, 2, 0xc2, 0, 0, 0, 0, 2, 0xc2, 0, 0, 0, 0];
    let pages: Vec<u8> = match page & 0x3f {
        0x01 => recovery.to_vec(),
        0x2a => capabilities.to_vec(),
        0x3f => [recovery, capabilities].concat(),
        // Invalid field in the command.
        _ => return sense(port, ILLEGAL_REQUEST, 0x24, 0),
    };
    let mut data = vec![0u8; 8];
    data[..2].copy_from_slice(&((pages.len() + 6) as u16).to_be_bytes());
    data[2] = 0x01;
    data.extend(pages);
    reply(data, room)
}

/// Returns IDENTIFY PACKET DEVICE data.
fn identify(port: &Port) -> Vec<u8> {
    let mut data = vec![0u8; 512];
    ata::text(&mut data[20..40], &port.serial);
    ata::text(&mut data[46..54], "1.0");
    ata::text(&mut data[54..94], "vmctl CD drive");
    let words: &[(usize, u16)] = &[
        // A CD drive with a removable medium, 12-byte packets.
        (0, 2 << 14 | 5 << 8 | 1 << 7 | 2 << 5),
        (49, 0x0f00),
        (50, 1 << 14),
        (53, 0x0006),
        (63, 0x0007),
        (64, 0x0003),
        (65, 120),
        (66, 120),
        (67, 120),
        (68, 120),
        (76, 3 << 1),
        (80, 0x01f0),
        (82, 1 << 4),
        (83, 1 << 14),
        (84, 1 << 14),
        (85, 1 << 4),
        (87, 1 << 14),
        (88, 0x407f),
        (222, 0x1020),
    ];
    for &(word, value) in words {
        data[2 * word..2 * word + 2].copy_from_slice(&value.to_le_bytes());
    }
    data
}
