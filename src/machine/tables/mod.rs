//! Tables that firmware would leave in memory: ACPI and SMBIOS tables, the BIOS data area.
pub mod acpi;
pub mod bda; // the BIOS data area
pub mod smbios;
