//! The board and its loaders: the one place that knows both the configuration and the devices.
pub mod layout;
pub mod loader;
pub mod memory;
pub mod spec;
pub mod tables;
pub mod interrupts; // the interrupt controllers, shared by vCPUs and board
