//! What the host offers.
pub mod files; // replaced whole, sparse, copied
pub mod paths; // where things stand by default
pub mod process; // detached and tied children, the boot of this host
pub mod terminal; // raw mode and window size
