//! What the host offers.
pub mod doctor; // the probe behind `vmctl doctor`
pub mod files; // replaced whole, sparse, copied
pub mod inherited; // descriptors that a parent left open
pub mod process; // detached and tied children, the boot of this host
pub mod terminal; // raw mode and window size
pub mod zfs; // volumes, through zfs(8)
