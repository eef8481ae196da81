//! The machine's chips and functions, one per file, and their back ends.
//!
//! A chip knows its registers; the board (`machine`) knows its ports and its line.
//!
//! There is no HPET: the guest has kvmclock and the TSC for time, the local APIC's TSC deadline for events, and the PM
//! timer and the PIT for systems that know neither. An HPET would only be a slower clock source to choose by mistake.
pub mod ahci; // AHCI with a disk or a CD drive
#[cfg(test)]
pub mod conformance; // the contract that every device must meet
pub mod debug_exit; // the isa-debug-exit port
pub mod disk; // Disk back ends
pub mod ioapic; // I/O APIC
pub mod lapic; // local APIC and x2APIC
pub mod net;
pub mod pci; // PCI: configuration space, BARs, MSI-X, the root
pub mod pic; // 8259A interrupt controllers
pub mod pit; // 8254 interval timer
pub mod pm; // ACPI fixed hardware
pub mod ps2; // 8042 keyboard controller
pub mod rtc; // MC146818 real-time clock
pub mod serial; // 16550A UART
pub mod stream; // a console over a stream socket
pub mod virtio; // virtio 1.2: transport, queues, devices // Network back ends
