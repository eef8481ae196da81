//! vmctl: a virtual-machine manager for FreeBSD's bhyve and for Linux, with an engine of its own.
//!
//! In reading order:
pub mod choices; // the words that a file may choose between, and which engine has each
pub mod cli; // one file a verb
pub mod config; // guest, template and host files: what was written, what is meant
pub mod devices; // one chip or function a file, and what stands behind them
pub mod fetch; // images, media and firmware: found by name, fetched, verified, kept
pub mod guest; // the life of a guest: store, supervisor, engines, console
pub mod host; // what the host offers, and the probe behind `vmctl doctor`
pub mod hypervisor; // memory, bus, interrupt lines, clock, state; the vCPU back ends
pub mod inputs; // files that a user names, opened and read within bounds
pub mod machine; // the board: addresses, wiring, loaders, tables, vCPU threads
pub mod units; // sizes and durations
