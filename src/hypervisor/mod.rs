//! The VMM core: guest memory, the bus, interrupt lines, time, saved state, and the vCPU back ends.
//!
//! This layer knows no device, no port and no TOML.
pub mod backend;
pub mod backends;
pub mod bus;
pub mod clock;
pub mod cpuid;
pub mod entry;
pub mod guest_errors;
pub mod irq;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub mod kvm;
pub mod memory;
pub mod soft;
pub mod state;
#[cfg(any(all(target_os = "freebsd", target_arch = "x86_64"), all(test, target_arch = "x86_64")))]
mod vmm;
pub mod waking;
