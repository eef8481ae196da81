//! Engine `bhyve`: FreeBSD's own bhyve(8).
pub mod argv; // the command lines of a boot
pub mod slots; // where devices are on PCI
