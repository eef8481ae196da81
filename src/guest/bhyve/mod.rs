//! Engine `bhyve`: FreeBSD's own bhyve(8).
pub mod argv; // the command lines of a boot
mod engine; // what the supervisor sees of it
pub mod leftovers; // what killed boots left, removed
pub mod needs; // whether this host can run a guest under it
pub mod partitions; // where the root of OpenBSD and NetBSD is
mod planning; // from a configuration to the plan of a boot
pub mod run; // one boot: the host made ready, the loader, bhyve, and all of it undone
pub mod slots; // where devices are on PCI

pub use engine::BhyveEngine;
