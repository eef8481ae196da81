//! vmctl: a virtual-machine manager for FreeBSD's bhyve and for Linux, with an engine of its own.
//!
//! In reading order:
pub mod choices; // the words that a file may choose between, and which engine has each
pub mod cli; // one file per verb
pub mod config; // guest, template, fleet and host files: reading and checking them
pub mod devices; // one chip or function per file, and their back ends
pub mod fetch; // images, media and firmware: finding, fetching, verifying and keeping them
pub mod guest; // the life of a guest: store, supervisor, engines, console
pub mod host; // the host's tools, and the checks of `vmctl doctor`
pub mod hypervisor; // memory, bus, interrupt lines, clock, state; the vCPU back ends
pub mod inputs; // files that a user names, opened and read within bounds
pub mod machine; // the board: addresses, wiring, loaders, tables, vCPU threads
pub mod units; // sizes and durations
