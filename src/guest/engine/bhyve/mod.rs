//! Engine `bhyve`: FreeBSD's own bhyve(8).
pub mod argv; // the command lines of a boot
pub mod boot_planner; // the plan of a boot, from a configuration
mod engine; // the engine as the supervisor sees it
pub mod needs; // checks whether this host can run a guest under it
pub mod partitions; // search for the root of OpenBSD and NetBSD
pub mod run; // one boot: preparing the host, the loader, bhyve, and undoing it all
pub mod slots; // PCI addresses of devices
mod word; // words of a command line, with names that only the boot knows

pub use engine::BhyveEngine;
