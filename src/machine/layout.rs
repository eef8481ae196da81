//! Every fixed guest address, port and interrupt line of the board, in one place.
//!
//! ```text
//! 0000_0000  RAM: boot structures below 0x9_fc00, see `boot`
//! 000a_0000  hole (no display adapter)
//! 000c_0000  RAM: ACPI tables at 0xe_0000, SMBIOS at 0xf_0000, both reserved in the memory map
//! 0010_0000  RAM, up to 3 GiB
//! c000_0000  PCI memory window
//! e000_0000  PCI configuration space (ECAM), bus 0
//! fec0_0000  I/O APIC
//! fee0_0000  local APICs
//! 1_0000_0000  the rest of RAM
//! ```

/// Highest possible end of the RAM below 4 GiB.
pub const LOW_RAM_END: u64 = 0xc000_0000;
/// Start of the RAM above the PCI hole.
pub const HIGH_RAM_BASE: u64 = 0x1_0000_0000;
/// The hole of the legacy display adapter.
pub const VGA_HOLE: (u64, u64) = (0xa_0000, 0xc_0000);
/// Windows of devices, for the memory types: the display adapter's hole, and the fourth GiB with the PCI window, ECAM
/// and the interrupt controllers.
pub const DEVICE_WINDOWS: [(u64, u64); 2] = [(VGA_HOLE.0, VGA_HOLE.1 - VGA_HOLE.0), (LOW_RAM_END, HIGH_RAM_BASE - LOW_RAM_END)];
/// End of conventional memory in the memory map. The last KiB is the extended BIOS data area.
pub const CONVENTIONAL_END: u64 = 0x9_fc00;

/// Structures that a loader leaves for the kernel. All are in conventional memory, which is free once the kernel runs.
pub mod boot {
    /// Global descriptor table.
    pub const GDT: u64 = 0x500;
    /// PVH's `hvm_start_info`, or Multiboot's information structure.
    pub const START_INFO: u64 = 0x6000;
    /// Linux's zero page.
    pub const ZERO_PAGE: u64 = 0x7000;
    /// Six pages of page tables: PML4, PDPT, four page directories.
    pub const PAGE_TABLES: u64 = 0x9000;
    /// The kernel's command line.
    pub const CMDLINE: u64 = 0x2_0000;
    /// Size of the command line's area in bytes.
    pub const CMDLINE_BYTES: u64 = 0x1_0000;
    /// Modules and memory map lists of PVH and Multiboot, and the whole information of Multiboot 2, which contains
    /// strings.
    pub const LISTS: u64 = 0x3_0000;
    /// The strings of modules.
    pub const STRINGS: u64 = 0x4_0000;
    /// Size of their area in bytes.
    pub const STRINGS_BYTES: u64 = 0x1_0000;
}

/// First byte of the area that is searched for the ACPI root pointer (ACPI 6.5 section 5.2.5.1).
pub const ACPI_BASE: u64 = 0xe_0000;
/// End of the ACPI tables.
pub const ACPI_END: u64 = 0xf_0000;
/// Start of the area that is searched for the SMBIOS entry point (SMBIOS 3.6 section 5.2).
pub const SMBIOS_BASE: u64 = 0xf_0000;
/// End of the SMBIOS tables.
pub const SMBIOS_END: u64 = 0x10_0000;
/// Lowest address at which a kernel may be loaded.
pub const KERNEL_FLOOR: u64 = 0x10_0000;

/// 32-bit PCI memory window: base and bytes.
pub const PCI_MEMORY: (u64, u64) = (0xc000_0000, 0x2000_0000);
/// PCI I/O window: base and bytes.
pub const PCI_IO: (u64, u64) = (0x1000, 0xf000);
/// Configuration space of bus 0.
pub const PCI_ECAM: (u64, u64) = (0xe000_0000, 0x10_0000);
/// Configuration address and data ports.
pub const PCI_CONFIG_PORT: (u64, u64) = (0xcf8, 8);

/// I/O APIC registers.
pub const IOAPIC_BASE: u64 = 0xfec0_0000;
/// Local APIC registers after reset.
pub const LAPIC_BASE: u64 = 0xfee0_0000;
/// Size of either APIC's window in bytes.
pub const APIC_WINDOW: u64 = 0x1000;

/// COM1 to COM4: port and ISA interrupt.
pub const SERIAL: [(u64, u32); 4] = [(0x3f8, 4), (0x2f8, 3), (0x3e8, 4), (0x2e8, 3)];
/// First 8259A, second 8259A, edge/level control registers.
pub const PIC_PORTS: [u64; 3] = [0x20, 0xa0, 0x4d0];
/// Interval timer.
pub const PIT_PORT: u64 = 0x40;
/// Port 61h: gate and output of timer channel 2.
pub const PIT_GATE_PORT: u64 = 0x61;
/// The interval timer's ISA interrupt.
pub const PIT_IRQ: u32 = 0;
/// Real-time clock.
pub const RTC_PORT: u64 = 0x70;
/// The real-time clock's ISA interrupt.
pub const RTC_IRQ: u32 = 8;
/// Keyboard controller: data and command ports.
pub const PS2_PORTS: [u64; 2] = [0x60, 0x64];
/// System control port A, which belongs to the keyboard controller: fast reset, A20.
pub const SYSTEM_CONTROL_PORT: u64 = 0x92;
/// The keyboard's ISA interrupt.
pub const PS2_IRQ: u32 = 1;
/// ACPI fixed hardware: PM1a event block, 4 bytes.
pub const PM1A_EVT: u16 = 0x600;
/// PM1a control block, 2 bytes.
pub const PM1A_CNT: u16 = 0x604;
/// PM timer, 4 bytes.
pub const PM_TMR: u16 = 0x608;
/// Reset register: RST_CNT, which lies inside the PCI configuration address port and belongs to the PCI root.
pub const RESET_REG: u16 = 0xcf9;
/// Value for the reset register: a full reset of the system, now.
pub const RESET_VALUE: u8 = 0x06;
/// The system control interrupt, level-triggered.
pub const SCI_IRQ: u32 = 9;
/// SLP_TYP of S5, as in the DSDT's `\_S5`.
pub const S5_SLP_TYP: u8 = 5;

/// First global system interrupt of the eight PCI lines.
pub const PCI_GSI_BASE: u32 = 16;

/// Returns the global system interrupt of pin INTA of the function at `device`: one of 16 to 23 in turn.
pub const fn pci_gsi(device: u8) -> u32 {
    PCI_GSI_BASE + (device as u32 % 8)
}
