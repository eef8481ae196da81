//! ACPI tables: RSDP, XSDT, FADT, FACS, MADT, MCFG, SPCR, DSDT.
//!
//! Source: ACPI Specification 6.5, sections 5.2.5 (RSDP), 5.2.8 (XSDT), 5.2.9 (FADT), 5.2.10 (FACS), 5.2.12 (MADT), 6.2
//! and 6.4 (device configuration, resources); PCI Firmware Specification 3.3 sections 4.1.2 (MCFG) and 4.5.1 (`_OSC`);
//! Microsoft, Serial Port Console Redirection Table, revision 2, table 1.
//!
//! Not modelled: general-purpose events (nothing is hot-plugged), embedded controller, processor power states (a halted
//! vCPU already costs nothing), a keyboard: the 8042's ports exist for resets, there is no user to type, and with a
//! keyboard alone Linux complains about the missing mouse.

use acpi_tables::aml::{
    self, AddressSpace, AddressSpaceCacheable, And, Arg, CreateDWordField, Device, EISAName, Else, Equal, IO, If, Interrupt,
    Local, Memory32Fixed, Method, Name, NotEqual, Or, Package, PackageBuilder, Path, ResourceTemplate, Return, Scope, Store,
    Uuid,
};
use acpi_tables::sdt::Sdt;
use acpi_tables::{Aml, AmlSink};

use crate::hypervisor::memory::{GuestAddr, GuestMemory, OutOfRange};
use crate::machine::layout;

const OEM_ID: [u8; 6] = *b"VMCTL ";
const OEM_TABLE: [u8; 8] = *b"VMCTLPC ";
const OEM_REVISION: u32 = 1;
const HEADER: usize = 36;

/// Properties of the machine that the tables depend on.
#[derive(Debug, Clone)]
pub struct Shape {
    /// Number of vCPUs. APIC ids count from 0.
    pub vcpus: usize,
    /// Which of COM1 to COM4 exist.
    pub serial: [bool; 4],
    /// PCI devices on bus 0 that may use an interrupt line.
    pub pci_devices: u8,
}

fn header(signature: &[u8; 4], revision: u8) -> Sdt {
    Sdt::new(*signature, HEADER as u32, revision, OEM_ID, OEM_TABLE, OEM_REVISION)
}

/// Writes all tables and returns the address of the root pointer.
pub fn write(mem: &GuestMemory, shape: &Shape) -> Result<u64, OutOfRange> {
    let rsdp_at = layout::ACPI_BASE;
    let facs_at = layout::ACPI_BASE + 0x40;
    let mut next = layout::ACPI_BASE + 0x100;
    mem.write(GuestAddr(facs_at), &facs())?;
    let mut put = |table: &Sdt| -> Result<u64, OutOfRange> {
        let at = next;
        let bytes = table.as_slice();
        if at + bytes.len() as u64 > layout::ACPI_END {
            return Err(OutOfRange { addr: GuestAddr(at), len: bytes.len() });
        }
        mem.write(GuestAddr(at), bytes)?;
        next = (at + bytes.len() as u64).next_multiple_of(64);
        Ok(at)
    };
    let dsdt_at = put(&dsdt(shape))?;
    let mut entries = vec![put(&fadt(dsdt_at, facs_at))?, put(&madt(shape))?, put(&mcfg())?];
    if shape.serial[0] {
        entries.push(put(&spcr())?);
    }
    let mut xsdt = header(b"XSDT", 1);
    for entry in entries {
        xsdt.append_slice(&entry.to_le_bytes());
    }
    let xsdt_at = put(&xsdt)?;
    let mut rsdp = Vec::new();
    acpi_tables::rsdp::Rsdp::new(OEM_ID, xsdt_at).to_aml_bytes(&mut rsdp);
    mem.write(GuestAddr(rsdp_at), &rsdp)?;
    Ok(rsdp_at)
}

/// Returns the firmware control structure: global lock and waking vector, neither used.
fn facs() -> [u8; 64] {
    let mut table = [0; 64];
    table[..4].copy_from_slice(b"FACS");
    table[4..8].copy_from_slice(&64u32.to_le_bytes());
    table[32] = 2; // version
    table
}

/// Builds a generic address in I/O space of `bits` bits at `port` (ACPI 6.5 section 5.2.3.2).
fn io_address(bits: u8, access: u8, port: u16) -> [u8; 12] {
    let mut gas = [0; 12];
    gas[0] = 1; // system I/O
    gas[1] = bits;
    gas[3] = access;
    gas[4..6].copy_from_slice(&port.to_le_bytes());
    gas
}

/// Builds the FADT, with offsets as in ACPI 6.5 table 5.9.
fn fadt(dsdt: u64, facs: u64) -> Sdt {
    const LENGTH: u32 = 276;
    let mut t = Sdt::new(*b"FACP", LENGTH, 6, OEM_ID, OEM_TABLE, OEM_REVISION);
    t.write_u32(36, facs as u32);
    t.write_u32(40, dsdt as u32);
    t.write_u16(46, layout::SCI_IRQ as u16);
    t.write_u32(56, u32::from(layout::PM1A_EVT));
    t.write_u32(64, u32::from(layout::PM1A_CNT));
    t.write_u32(76, u32::from(layout::PM_TMR));
    t.write_u8(88, 4); // PM1_EVT_LEN
    t.write_u8(89, 2); // PM1_CNT_LEN
    t.write_u8(91, 4); // PM_TMR_LEN
    t.write_u16(96, 0xffff); // no C2
    t.write_u16(98, 0xffff); // no C3
    t.write_u8(108, 0x32); // century byte of the real-time clock
    // IA-PC boot flags: legacy devices, no VGA, no ASPM; no 8042 with a keyboard (table 5.11).
    t.write_u16(109, 1 << 0 | 1 << 2 | 1 << 4);
    // Fixed feature flags (table 5.10): WBINVD, SLP_BUTTON absent, TMR_VAL_EXT (32 bits), RESET_REG_SUP. PWR_BUTTON
    // clear means that the power button is fixed hardware.
    t.write_u32(112, 1 << 0 | 1 << 5 | 1 << 8 | 1 << 10);
    t.write_bytes(116, &io_address(8, 1, layout::RESET_REG));
    t.write_u8(128, layout::RESET_VALUE);
    t.write_u8(131, 5); // minor revision
    t.write_u64(132, facs);
    t.write_u64(140, dsdt);
    t.write_bytes(148, &io_address(32, 2, layout::PM1A_EVT));
    t.write_bytes(172, &io_address(16, 2, layout::PM1A_CNT));
    t.write_bytes(208, &io_address(32, 3, layout::PM_TMR));
    t.write_bytes(268, b"vmctl\0\0\0"); // hypervisor vendor identity
    // FIRMWARE_CTRL must be zero where X_FIRMWARE_CTRL is used.
    t.write_u32(36, 0);
    t
}

fn madt(shape: &Shape) -> Sdt {
    const PCAT_COMPAT: u32 = 1;
    let mut t = header(b"APIC", 5);
    t.append_slice(&(layout::LAPIC_BASE as u32).to_le_bytes());
    t.append_slice(&PCAT_COMPAT.to_le_bytes());
    for id in 0..shape.vcpus as u32 {
        if id < 255 {
            t.append_slice(&[0, 8, id as u8, id as u8, 1, 0, 0, 0]); // processor local APIC, enabled
        } else {
            let mut x2apic = vec![9, 16, 0, 0];
            x2apic.extend(id.to_le_bytes());
            x2apic.extend(1u32.to_le_bytes());
            x2apic.extend(id.to_le_bytes());
            t.append_slice(&x2apic);
        }
    }
    let mut ioapic = vec![1, 12, 0, 0];
    ioapic.extend((layout::IOAPIC_BASE as u32).to_le_bytes());
    ioapic.extend(0u32.to_le_bytes());
    t.append_slice(&ioapic);
    t.append_slice(&interrupt_override(layout::PIT_IRQ as u8, 2, 0));
    // Level-triggered, active high (table 5.26: polarity 01, trigger mode 11).
    t.append_slice(&interrupt_override(layout::SCI_IRQ as u8, layout::SCI_IRQ, 0b1101));
    t.append_slice(&[4, 6, 0xff, 0, 0, 1]); // NMI at LINT1 of every processor
    t
}

fn interrupt_override(irq: u8, gsi: u32, flags: u16) -> [u8; 10] {
    let g = gsi.to_le_bytes();
    let f = flags.to_le_bytes();
    [2, 10, 0, irq, g[0], g[1], g[2], g[3], f[0], f[1]]
}

fn mcfg() -> Sdt {
    let mut t = header(b"MCFG", 1);
    t.append_slice(&[0; 8]);
    t.append_slice(&layout::PCI_ECAM.0.to_le_bytes());
    t.append_slice(&[0, 0, 0, 0]); // segment 0, bus 0 to 0
    t.append_slice(&[0; 4]);
    t
}

/// Builds the SPCR, which says that COM1 is the machine's console. FreeBSD has no console without it, unless its
/// command line names one (`sys/dev/uart/uart_cpu_x86.c`, uart_cpu_getdev).
fn spcr() -> Sdt {
    const LENGTH: u32 = 80;
    const PIC_AND_IOAPIC: u8 = 0b11;
    const BAUD_115200: u8 = 7;
    const VT_UTF8: u8 = 2;
    let (port, irq) = layout::SERIAL[0];
    let mut t = Sdt::new(*b"SPCR", LENGTH, 2, OEM_ID, OEM_TABLE, OEM_REVISION);
    t.write_u8(36, 0); // a full 16550
    t.write_bytes(40, &io_address(8, 1, port as u16));
    t.write_u8(52, PIC_AND_IOAPIC);
    t.write_u8(53, irq as u8);
    t.write_u32(54, irq);
    t.write_u8(58, BAUD_115200);
    t.write_u8(60, 1); // stop bits; no parity, no flow control
    t.write_u8(62, VT_UTF8);
    t.write_u32(64, u32::MAX); // no PCI device
    t
}

fn dsdt(shape: &Shape) -> Sdt {
    let mut aml = Vec::new();
    sleep_states(&mut aml);
    pci_root(&mut aml, shape);
    isa_devices(&mut aml, shape);
    let mut t = header(b"DSDT", 2);
    t.append_slice(&aml);
    t
}

fn sleep_states(sink: &mut dyn AmlSink) {
    let package = Package::new(vec![&layout::S5_SLP_TYP, &0u8, &0u8, &0u8]);
    Name::new(Path::new("\\_S5_"), &package).to_aml_bytes(sink);
}

/// AML that is already bytes.
struct Raw(Vec<u8>);

impl Aml for Raw {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(&self.0);
    }
}

fn raw(aml: &dyn Aml) -> Raw {
    let mut bytes = Vec::new();
    aml.to_aml_bytes(&mut bytes);
    Raw(bytes)
}

fn named(path: &str, value: &dyn Aml) -> Raw {
    raw(&Name::new(Path::new(path), value))
}

fn device(path: &str, parts: &[Raw]) -> Raw {
    raw(&Device::new(Path::new(path), parts.iter().map(|part| part as &dyn Aml).collect()))
}

fn pci_root(sink: &mut dyn AmlSink, shape: &Shape) {
    let (memory, memory_len) = layout::PCI_MEMORY;
    let (io, io_len) = layout::PCI_IO;
    let (config, config_len) = (layout::PCI_CONFIG_PORT.0 as u16, layout::PCI_CONFIG_PORT.1 as u8);
    let config_ports = IO::new(config, config, 1, config_len);
    let buses = AddressSpace::new_bus_number(0u16, 0u16);
    let low_io = AddressSpace::new_io(0u16, config - 1, None);
    let high_io = AddressSpace::new_io(io as u16, (io + io_len - 1) as u16, None);
    let window = AddressSpace::new_memory(
        AddressSpaceCacheable::NotCacheable,
        true,
        memory as u32,
        (memory + memory_len - 1) as u32,
        None,
    );
    let root = device(
        "PCI0",
        &[
            named("_HID", &EISAName::new("PNP0A08")),
            named("_CID", &EISAName::new("PNP0A03")),
            named("_ADR", &aml::ZERO),
            named("_UID", &aml::ZERO),
            named("_SEG", &aml::ZERO),
            named("_BBN", &aml::ZERO),
            named("_CRS", &ResourceTemplate::new(vec![&buses, &config_ports, &low_io, &high_io, &window])),
            named("_PRT", &interrupt_routes(shape)),
            express_control(),
        ],
    );
    // The configuration window must be claimed by a motherboard resource (PCI Firmware Specification 4.1.2).
    let ecam = Memory32Fixed::new(true, layout::PCI_ECAM.0 as u32, layout::PCI_ECAM.1 as u32);
    let pm_ports = IO::new(layout::PM1A_EVT, layout::PM1A_EVT, 1, 16);
    let [data, command] = layout::PS2_PORTS.map(|port| IO::new(port as u16, port as u16, 1, 1));
    let claimed = ResourceTemplate::new(vec![&ecam, &pm_ports, &data, &command]);
    let board = device("MBRD", &[named("_HID", &EISAName::new("PNP0C02")), named("_UID", &aml::ZERO), named("_CRS", &claimed)]);
    Scope::new(Path::new("_SB_"), vec![&root, &board]).to_aml_bytes(sink);
}

/// Builds `_OSC`: the operating system may control every feature of PCI Express that it asks for, since the firmware
/// controls none (PCI Firmware Specification 4.5.1). The result is the argument, with errors in its first word.
fn express_control() -> Raw {
    const HOST_BRIDGE: &str = "33DB4D5B-1FF7-401C-9657-7441C03DD766";
    const REVISION: u8 = 1;
    /// Native hot plug, SHPC, PME, AER, capability structure, LTR.
    const CONTROLS: u8 = 0x3f;
    const UNKNOWN_UUID: u8 = 1 << 2;
    const UNKNOWN_REVISION: u8 = 1 << 3;
    const MASKED: u8 = 1 << 4;
    let (status, control) = (Path::new("CDW1"), Path::new("CDW3"));
    let (uuid, revision, capabilities, granted) = (Arg(0), Arg(1), Arg(3), Local(0));
    let or_status = |bit: u8| raw(&Or::new(&status, &status, &bit));
    let known = raw(&Equal::new(&uuid, &Uuid::new(HOST_BRIDGE)));
    let answers = [
        raw(&CreateDWordField::new(&control, &capabilities, &8u8)),
        raw(&If::new(&NotEqual::new(&revision, &REVISION), vec![&or_status(UNKNOWN_REVISION)])),
        raw(&And::new(&granted, &control, &CONTROLS)),
        raw(&If::new(&NotEqual::new(&control, &granted), vec![&or_status(MASKED)])),
        raw(&Store::new(&control, &granted)),
    ];
    let body = [
        raw(&CreateDWordField::new(&status, &capabilities, &aml::ZERO)),
        raw(&If::new(&known, answers.iter().map(|part| part as &dyn Aml).collect())),
        raw(&Else::new(vec![&or_status(UNKNOWN_UUID)])),
        raw(&Return::new(&capabilities)),
    ];
    // Serialized: it creates names.
    raw(&Method::new(Path::new("_OSC"), 4, true, body.iter().map(|part| part as &dyn Aml).collect()))
}

/// Builds `_PRT`: pin INTA of each device, wired to the I/O APIC without a link device (section 6.2.13).
fn interrupt_routes(shape: &Shape) -> PackageBuilder {
    let mut routes = PackageBuilder::new();
    for device in 1..=shape.pci_devices.min(31) {
        let address = u32::from(device) << 16 | 0xffff;
        let gsi = layout::pci_gsi(device);
        routes.add_element(&Package::new(vec![&address, &aml::ZERO, &aml::ZERO, &gsi]));
    }
    routes
}

fn isa_devices(sink: &mut dyn AmlSink, shape: &Shape) {
    let mut parts: Vec<Raw> = Vec::new();
    for (i, (port, irq)) in layout::SERIAL.into_iter().enumerate().filter(|&(i, _)| shape.serial[i]) {
        parts.push(isa_device(&format!("COM{}", i + 1), "PNP0501", i as u8, &[(port as u16, 8)], irq));
    }
    parts.push(isa_device("RTC_", "PNP0B00", 0, &[(layout::RTC_PORT as u16, 2)], layout::RTC_IRQ));
    Scope::new(Path::new("_SB_.PCI0"), parts.iter().map(|part| part as &dyn Aml).collect()).to_aml_bytes(sink);
}

fn isa_device(name: &str, hid: &str, uid: u8, ports: &[(u16, u8)], irq: u32) -> Raw {
    let ios: Vec<IO> = ports.iter().map(|&(port, len)| IO::new(port, port, 1, len)).collect();
    let interrupt = Interrupt::new(true, true, false, false, irq);
    let mut resources: Vec<&dyn Aml> = ios.iter().map(|io| io as &dyn Aml).collect();
    resources.push(&interrupt);
    // _STA: present, enabled, shown, working.
    let parts = [
        named("_HID", &EISAName::new(hid)),
        named("_UID", &uid),
        named("_STA", &0x0fu8),
        named("_CRS", &ResourceTemplate::new(resources)),
    ];
    device(name, &parts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::loader::test_memory;

    fn shape() -> Shape {
        Shape { vcpus: 2, serial: [true, true, false, false], pci_devices: 8 }
    }

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, b| sum.wrapping_add(*b))
    }

    fn read(mem: &GuestMemory, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        mem.read(GuestAddr(at), &mut bytes).unwrap();
        bytes
    }

    #[test]
    fn every_table_is_reachable_from_the_root_and_sums_to_zero() {
        let seen = tables(&shape());
        let signatures: Vec<_> = seen.iter().map(|table| String::from_utf8_lossy(&table[..4]).into_owned()).collect();
        assert_eq!(signatures, ["FACP", "APIC", "MCFG", "SPCR"]);
    }

    #[test]
    fn com1_is_the_console_and_without_it_no_port_is() {
        let seen = tables(&shape());
        let spcr = seen.iter().find(|table| table.starts_with(b"SPCR")).expect("there is an SPCR");
        assert_eq!((spcr.len(), spcr[8], spcr[36]), (80, 2, 0), "revision 2, a 16550");
        // ACPI 6.5, 5.2.3.2: I/O space, 8 bits, bit 0, byte accesses, 3f8h.
        assert_eq!(spcr[40..52], [1, 8, 0, 1, 0xf8, 3, 0, 0, 0, 0, 0, 0]);
        assert_eq!(spcr[52..58], [3, 4, 4, 0, 0, 0], "line 4 of both controllers");
        assert_eq!(spcr[58..64], [7, 0, 1, 0, 2, 0], "115200 bits per second, no parity, one stop bit");
        assert_eq!(spcr[64..68], [0xff; 4], "not on PCI");
        let without = tables(&Shape { serial: [false, true, false, false], ..shape() });
        assert!(!without.iter().any(|table| table.starts_with(b"SPCR")));
    }

    /// Returns the tables that the XSDT names. Checks the sums on the way.
    fn tables(shape: &Shape) -> Vec<Vec<u8>> {
        let mem = test_memory(4);
        let rsdp = write(&mem, shape).unwrap();
        let root = read(&mem, rsdp, 36);
        assert_eq!(&root[..8], b"RSD PTR ");
        assert_eq!((sum(&root[..20]), sum(&root)), (0, 0));
        let xsdt_at = u64::from_le_bytes(root[24..32].try_into().unwrap());
        let table = |at: u64| {
            let len: u32 = mem.read_le(GuestAddr(at + 4)).unwrap();
            read(&mem, at, len as usize)
        };
        let xsdt = table(xsdt_at);
        assert_eq!(sum(&xsdt), 0);
        let mut seen = Vec::new();
        for entry in xsdt[36..].chunks_exact(8) {
            let bytes = table(u64::from_le_bytes(entry.try_into().unwrap()));
            assert_eq!(sum(&bytes), 0);
            if &bytes[..4] == b"FACP" {
                let dsdt = table(u64::from_le_bytes(bytes[140..148].try_into().unwrap()));
                assert_eq!((&dsdt[..4], sum(&dsdt)), (b"DSDT".as_slice(), 0));
            }
            seen.push(bytes);
        }
        seen
    }

    #[test]
    fn the_operating_system_may_control_pci_express_and_no_keyboard_is_announced() {
        let mem = test_memory(4);
        write(&mem, &shape()).unwrap();
        let tables = read(&mem, layout::ACPI_BASE, 0x1000);
        let has = |bytes: &[u8]| tables.windows(bytes.len()).any(|window| window == bytes);
        // The method's name and flags: four arguments, serialized. The UUID as a buffer has it (ACPI 6.5, 19.6.152).
        assert!(has(b"_OSC\x0c") && has(&[0x5b, 0x4d, 0xdb, 0x33, 0xf7, 0x1f, 0x1c, 0x40, 0x96, 0x57]));
        assert!(!has(b"KBD_"));
        let fadt = tables.windows(4).position(|window| window == b"FACP").unwrap();
        assert_eq!(tables[fadt + 109], 0b1_0101);
    }

    #[test]
    fn two_hundred_and_fifty_five_vcpus_still_fit() {
        write(&test_memory(4), &Shape { vcpus: 255, serial: [true; 4], pci_devices: 31 }).unwrap();
    }
}
