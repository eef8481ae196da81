//! The BIOS data area, as far as kernels read it without calling a BIOS.
//!
//! Source: "IBM Personal System/2 and Personal Computer BIOS Interface Technical Reference" (1987), section 3, "BIOS Data
//! Area". Linux looks at 40:0E and 40:13 for the end of conventional memory (`arch/x86/kernel/ebda.c`), Xen for the place of
//! its trampoline (`xen/arch/x86/boot/head.S`), FreeBSD's and others' serial consoles at 40:00 for their ports; the ACPI root
//! pointer may be in the extended area (ACPI 6.5 section 5.2.5.1).

use crate::hypervisor::memory::{GuestAddr, GuestMemory, OutOfRange};
use crate::machine::layout;

const BASE: u64 = 0x400;
/// Ports of COM1 to COM4, 0 for none.
const SERIAL: u64 = 0x00;
/// Segment of the extended BIOS data area.
const EBDA_SEGMENT: u64 = 0x0e;
/// Bit 1: a coprocessor; bits 9 to 11: the number of serial ports. No diskette drive, no display adapter except one
/// with a BIOS of its own, no parallel port.
const EQUIPMENT: u64 = 0x10;
/// KiB of conventional memory below the extended area.
const MEMORY_KIB: u64 = 0x13;

/// Writes the area. `com` says which serial ports exist.
pub fn write(mem: &GuestMemory, com: [bool; 4]) -> Result<(), OutOfRange> {
    mem.fill(GuestAddr(BASE), 0, 0x100)?;
    // A BIOS lists the ports that it finds without gaps.
    let ports: Vec<u16> = layout::SERIAL.iter().zip(com).filter(|(_, there)| *there).map(|(&(port, _), _)| port as u16).collect();
    for (number, port) in ports.iter().enumerate() {
        mem.write_le(GuestAddr(BASE + SERIAL + number as u64 * 2), *port)?;
    }
    mem.write_le(GuestAddr(BASE + EBDA_SEGMENT), (layout::CONVENTIONAL_END >> 4) as u16)?;
    mem.write_le(GuestAddr(BASE + EQUIPMENT), 1 << 1 | (ports.len() as u16) << 9)?;
    mem.write_le(GuestAddr(BASE + MEMORY_KIB), (layout::CONVENTIONAL_END >> 10) as u16)?;
    // The extended area begins with its size in KiB.
    mem.write_le(GuestAddr(layout::CONVENTIONAL_END), ((layout::VGA_HOLE.0 - layout::CONVENTIONAL_END) >> 10) as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conventional_memory_and_serial_ports_are_where_a_bios_tells_them() {
        let mem = crate::machine::memory::build(4 << 20).unwrap();
        write(&mem, [true, false, true, false]).unwrap();
        let word = |at: u64| mem.read_le::<u16>(GuestAddr(at)).unwrap();
        assert_eq!([word(0x400), word(0x402), word(0x404)], [0x3f8, 0x3e8, 0]);
        assert_eq!((word(0x40e), word(0x410), word(0x413)), (0x9fc0, 0x0402, 639));
        assert_eq!(mem.read_le::<u8>(GuestAddr(u64::from(word(0x40e)) << 4)).unwrap(), 1);
    }
}
