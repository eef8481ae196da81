//! What the host offers.
pub mod doctor; // the probe behind `vmctl doctor`
pub mod files; // replaced whole, sparse, copied
pub mod process; // detached and tied children, the boot of this host
pub mod terminal;
pub mod zfs; // volumes, through zfs(8) // raw mode and window size
