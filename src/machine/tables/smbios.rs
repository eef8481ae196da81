//! SMBIOS tables, which `dmidecode` and cloud-init read.
//!
//! Source: DMTF DSP0134 (SMBIOS) 3.6: section 5.2.1 and 5.2.2 (32-bit and 64-bit entry point), 7.1 (type 0), 7.2 (type 1), 7.4 (type 3), 7.5
//! (type 4), 7.17 (type 16), 7.18 (type 17), 7.20 (type 19), 7.33 (type 32), 7.46 (type 127).

use crate::hypervisor::memory::{GuestAddr, GuestMemory, OutOfRange};
use crate::machine::layout;
use crate::units::Topology;

/// Properties of the machine in the tables.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The guest's UUID, in text order.
    pub uuid: [u8; 16],
    /// RAM in bytes.
    pub memory_bytes: u64,
    /// Sockets, cores per socket, threads per core.
    pub topology: Topology,
}

struct Tables {
    bytes: Vec<u8>,
    handle: u16,
    /// Length of the longest structure.
    longest: usize,
}

impl Tables {
    /// Appends a structure: formatted area without its header, then its strings.
    fn add(&mut self, kind: u8, area: &[u8], strings: &[&str]) -> u16 {
        let handle = self.handle;
        let start = self.bytes.len();
        self.handle += 1;
        self.bytes.extend([kind, area.len() as u8 + 4]);
        self.bytes.extend(handle.to_le_bytes());
        self.bytes.extend(area);
        for text in strings {
            self.bytes.extend(text.as_bytes());
            self.bytes.push(0);
        }
        if strings.is_empty() {
            self.bytes.push(0);
        }
        self.bytes.push(0);
        self.longest = self.longest.max(self.bytes.len() - start);
        handle
    }
}

const VERSION: [u8; 2] = [3, 6];
/// Distance of the 32-bit entry point, and of the structures, from the first entry point. Both are searched for in steps of
/// 16 bytes.
const ENTRY_32: u64 = 0x20;
const STRUCTURES: u64 = 0x40;

/// Writes the entry points and the structures. There are two, since FreeBSD up to 14 and Linux before 3.19 know only the
/// older one.
pub fn write(mem: &GuestMemory, identity: &Identity) -> Result<(), OutOfRange> {
    let table_at = layout::SMBIOS_BASE + STRUCTURES;
    let tables = build(identity);
    mem.write(GuestAddr(layout::SMBIOS_BASE), &entry_64(&tables, table_at))?;
    mem.write(GuestAddr(layout::SMBIOS_BASE + ENTRY_32), &entry_32(&tables, table_at as u32))?;
    mem.write(GuestAddr(table_at), &tables.bytes)
}

fn entry_64(tables: &Tables, table_at: u64) -> Vec<u8> {
    let mut entry = Vec::with_capacity(24);
    entry.extend(b"_SM3_");
    entry.extend([0, 24, VERSION[0], VERSION[1], 0, 1, 0]);
    entry.extend((tables.bytes.len() as u32).to_le_bytes());
    entry.extend(table_at.to_le_bytes());
    entry[5] = checksum(&entry);
    entry
}

fn entry_32(tables: &Tables, table_at: u32) -> Vec<u8> {
    const INTERMEDIATE: usize = 0x10;
    let mut entry = Vec::with_capacity(31);
    entry.extend(b"_SM_");
    entry.extend([0, 31, VERSION[0], VERSION[1]]);
    entry.extend((tables.longest as u16).to_le_bytes());
    entry.extend([0; 6]); // entry point revision, formatted area
    entry.extend(b"_DMI_");
    entry.push(0);
    entry.extend((tables.bytes.len() as u16).to_le_bytes());
    entry.extend(table_at.to_le_bytes());
    entry.extend(tables.handle.to_le_bytes()); // the number of structures
    entry.push(VERSION[0] << 4 | VERSION[1]);
    entry[INTERMEDIATE + 5] = checksum(&entry[INTERMEDIATE..]);
    entry[4] = checksum(&entry);
    entry
}

/// Returns the byte that makes the sum of all zero.
fn checksum(bytes: &[u8]) -> u8 {
    0u8.wrapping_sub(bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte)))
}

fn build(identity: &Identity) -> Tables {
    let mut t = Tables { bytes: Vec::new(), handle: 0, longest: 0 };
    let version = env!("CARGO_PKG_VERSION");
    // Type 0: characteristics "not supported" (bit 3), extension: virtual machine (bit 4 of byte 2).
    let mut bios = vec![1, 2, 0, 0, 0, 0];
    bios.extend((1u64 << 3).to_le_bytes());
    bios.extend([0, 1 << 4 | 1 << 2, 0, 0, 0xff, 0xff, 0, 0]);
    t.add(0, &bios, &["vmctl", version]);
    let mut system = vec![1, 2, 3, 0];
    // The first three fields of a UUID are little-endian (section 7.2.1).
    let u = identity.uuid;
    system.extend([u[3], u[2], u[1], u[0], u[5], u[4], u[7], u[6]]);
    system.extend(&u[8..]);
    system.extend([6, 0, 0]);
    t.add(1, &system, &["vmctl", "vmctl machine", version]);
    // Type 3: chassis of kind "other", all states unknown.
    t.add(3, &[1, 1, 0, 0, 0, 2, 2, 2, 2, 0, 0, 0, 0, 0, 0, 0, 0], &["vmctl"]);
    let Topology { sockets, cores, threads } = identity.topology;
    for socket in 0..sockets {
        let name = format!("CPU {socket}");
        t.add(4, &processor(cores, threads), &[&name, "vmctl"]);
    }
    memory(&mut t, identity.memory_bytes);
    t.add(32, &[0; 7], &[]);
    t.add(127, &[], &[]);
    t
}

fn processor(cores: u32, threads: u32) -> Vec<u8> {
    let byte = |n: u32| n.min(255) as u8;
    let mut area = vec![1, 3, 0x01, 2]; // designation, central processor, family other, manufacturer
    area.extend([0; 8]); // processor id
    area.extend([0, 0]); // version string, voltage
    area.extend([0; 6]); // clocks unknown
    area.extend([0x41, 1]); // populated and enabled, upgrade other
    area.extend([0xff; 6]); // no cache handles
    area.extend([0, 0, 0]); // serial, asset, part
    area.extend([byte(cores), byte(cores), byte(cores * threads)]);
    area.extend((1u16 << 2).to_le_bytes()); // 64-bit capable
    area.extend(0x01u16.to_le_bytes()); // family 2: other
    for count in [cores, cores, cores * threads] {
        area.extend((count as u16).to_le_bytes());
    }
    area
}

fn memory(t: &mut Tables, bytes: u64) {
    let kib = bytes >> 10;
    let mut array = vec![1, 3, 6]; // other location, system memory, multi-bit ECC
    array.extend(u32::try_from(kib).unwrap_or(0x8000_0000).to_le_bytes());
    array.extend([0xfe, 0xff, 1, 0]);
    array.extend(if u32::try_from(kib).is_ok() { 0 } else { bytes }.to_le_bytes());
    let array = t.add(16, &array, &[]);
    let mib = bytes >> 20;
    let mut device = Vec::new();
    device.extend(array.to_le_bytes());
    device.extend([0xfe, 0xff, 64, 0, 64, 0]); // no error information, 64 bits wide
    let extended = mib >= 0x7fff;
    device.extend(if extended { 0x7fffu16 } else { mib as u16 }.to_le_bytes());
    device.extend([9, 0, 1, 0, 7, 0, 0]); // DIMM, set none, locator string, bank none, type RAM, detail
    device.extend([0, 0, 2, 0, 0, 0, 0]); // speed unknown, manufacturer, serial, asset, part, attributes
    device.extend(if extended { mib as u32 } else { 0 }.to_le_bytes());
    device.extend([0, 0, 0, 0, 0, 0, 0, 0]); // clock and voltages unknown
    t.add(17, &device, &["DIMM 0", "vmctl"]);
    let mut mapped = 0u32.to_le_bytes().to_vec();
    mapped.extend(u32::try_from(kib.saturating_sub(1)).unwrap_or(u32::MAX - 1).to_le_bytes());
    mapped.extend(array.to_le_bytes());
    mapped.push(1);
    mapped.extend([0; 16]);
    t.add(19, &mapped, &[]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::loader::test_memory;

    fn identity(sockets: u32) -> Identity {
        let topology = Topology { sockets, cores: 2, threads: 1 };
        Identity { uuid: *b"0123456789abcdef", memory_bytes: 512 << 20, topology }
    }

    #[test]
    fn structures_chain_to_the_end_and_tell_the_uuid() {
        let tables = build(&identity(1)).bytes;
        let (mut at, mut kinds) = (0, Vec::new());
        while at < tables.len() {
            kinds.push(tables[at]);
            if tables[at] == 1 {
                assert_eq!(&tables[at + 8..at + 24], b"3210547689abcdef");
            }
            let strings = at + usize::from(tables[at + 1]);
            let end = tables[strings..].windows(2).position(|pair| pair == [0, 0]).expect("strings end with two NULs");
            at = strings + end + 2;
        }
        assert_eq!(kinds, [0, 1, 3, 4, 16, 17, 19, 32, 127]);
    }

    #[test]
    fn both_entry_points_lead_to_the_same_structures() {
        // As many structures as there can be: a table has its 64 KiB.
        for sockets in [1, 64] {
            let mem = test_memory(4);
            write(&mem, &identity(sockets)).unwrap();
            let Tables { bytes, handle, longest } = build(&identity(sockets));
            let read = |at: u64, len: usize| {
                let mut found = vec![0; len];
                mem.read(GuestAddr(at), &mut found).unwrap();
                found
            };
            let sum = |bytes: &[u8]| bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
            let word = |bytes: &[u8]| usize::from(u16::from_le_bytes([bytes[0], bytes[1]]));
            let dword = |bytes: &[u8]| u32::from_le_bytes(bytes[..4].try_into().unwrap());
            let new = read(layout::SMBIOS_BASE, 24);
            assert_eq!((&new[..5], new[6], sum(&new)), (b"_SM3_".as_slice(), 24, 0));
            let old = read(layout::SMBIOS_BASE + 0x20, 31);
            assert_eq!((&old[..4], old[5], sum(&old)), (b"_SM_".as_slice(), 31, 0));
            assert_eq!((&old[16..21], sum(&old[16..])), (b"_DMI_".as_slice(), 0));
            assert_eq!((old[6], old[7], old[30]), (3, 6, 0x36));
            assert_eq!((word(&old[8..]), word(&old[28..])), (longest, usize::from(handle)));
            assert_eq!((word(&old[22..]), dword(&new[12..]) as usize), (bytes.len(), bytes.len()));
            assert_eq!(dword(&old[24..]), dword(&new[16..]));
            assert_eq!(read(u64::from(dword(&old[24..])), bytes.len()), bytes);
        }
    }
}
