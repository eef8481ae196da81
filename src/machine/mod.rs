//! The board and its loaders: the one place that knows both the specification of a machine and the devices.
//!
//! In reading order:
pub mod assembly; // the one wiring table: from a specification to a machine
pub mod board; // devices on a bus, under one lock
pub mod forwards; // forwards that are added to a running guest
pub mod interrupts; // the interrupt controllers, shared by vCPUs and board
pub mod layout; // every fixed address, port and line
pub mod loader; // kernels and boot menus into guest memory
pub mod memory; // guest RAM
pub mod opened; // files and ports, opened before the rights to them are given up
pub mod sandbox; // the confinement of the engine child
pub mod spec; // the contract between the supervisor and the engine child
pub mod tables; // ACPI and SMBIOS
pub mod vmm; // the engine child
