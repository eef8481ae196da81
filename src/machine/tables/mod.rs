//! What firmware would leave in memory: ACPI and SMBIOS tables.
pub mod acpi;
pub mod smbios;
