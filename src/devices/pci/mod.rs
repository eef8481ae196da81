//! PCI: configuration space, BARs, MSI-X, the root.
//!
//! A function implements [`PciDevice`]; [`PciRoot`] owns the functions of bus 0 and is the only one of them on the
//! board's bus. A function sees `(bar, offset, width)`, wherever the guest put its BARs.

mod config;
mod msix;
mod root;
#[cfg(test)]
mod tests;

pub use config::{BarKind, ConfigSpace, ConfigState, Identity};
pub use msix::Messages;
pub use root::{PciError, PciRoot, Window, Windows};

use crate::hypervisor::state::{Section, StateError};

/// A PCI function. The rules of [`Device`](crate::hypervisor::bus::Device) apply: no lock, no blocking, bounded.
pub trait PciDevice: Send {
    /// Returns the name in the datasheet, for messages and as the kind of its state.
    fn name(&self) -> &'static str;
    /// Returns the function's configuration space.
    fn config(&self) -> &ConfigSpace;
    /// Returns the function's configuration space for changes.
    fn config_mut(&mut self) -> &mut ConfigSpace;
    /// Reads 1, 2 or 4 bytes of configuration space. A function overrides it if a register is computed.
    fn config_read(&mut self, offset: u16, width: u8) -> u32 {
        self.config().read(offset, width)
    }
    /// Writes 1, 2 or 4 bytes of configuration space. A function overrides it if a register has an effect.
    fn config_write(&mut self, offset: u16, width: u8, value: u32) {
        self.config_mut().write(offset, width, value);
    }
    /// Reads from a BAR. Accesses to the MSI-X structures do not get here.
    fn bar_read(&mut self, bar: u8, offset: u64, width: u8) -> u64;
    /// Writes to a BAR.
    fn bar_write(&mut self, bar: u8, offset: u64, width: u8, value: u64);
    /// Takes nothing new from the guest until `resume`, and returns whether nothing of it is with the host any more: see
    /// [`Device::quiesce`](crate::hypervisor::bus::Device::quiesce).
    fn quiesce(&mut self) -> bool {
        true
    }
    /// Goes on after `quiesce`.
    fn resume(&mut self) {}
    /// Resets the function and its configuration space to the state after power-on. Comes between `quiesce` and `resume`.
    fn reset(&mut self);
    /// Returns the state, including that of the configuration space.
    fn save(&self) -> Section;
    /// Restores a saved state. On an error the function is unchanged.
    fn load(&mut self, section: &Section) -> Result<(), StateError>;
    /// Returns when `poll` must be called next even if nothing wakes the device, in the machine's time.
    fn deadline_ns(&self) -> Option<u64> {
        None
    }
    /// Does what is due, when the deadline has passed or a back end woke the board. Must be cheap when nothing is due.
    fn poll(&mut self, now_ns: u64) {
        let _ = now_ns;
    }
}
