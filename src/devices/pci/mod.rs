//! PCI: configuration space, BARs, MSI-X, the root.
//!
//! A function implements [`PciDevice`]; [`PciRoot`] owns the functions of bus 0 and is the only one of them on the
//! board's bus. A function sees `(bar, offset, width)`, wherever the guest put its BARs.

mod config;
mod msix;
mod root;
#[cfg(test)]
mod tests;

pub use config::{BarKind, BarWindow, ConfigSpace, ConfigState, Identity};
pub use msix::{MsixState, MsixTable};
pub use root::{PciError, PciRoot, Window, Windows};

use crate::hypervisor::state::{Section, StateError};

/// A PCI function. The rules of [`Device`](crate::hypervisor::bus::Device) hold: no lock, no blocking, bounded.
pub trait PciDevice: Send {
    /// The datasheet's name, for messages and as the kind of its state.
    fn name(&self) -> &'static str;
    /// The function's configuration space.
    fn config(&self) -> &ConfigSpace;
    /// The function's configuration space, to change.
    fn config_mut(&mut self) -> &mut ConfigSpace;
    /// A configuration read of 1, 2 or 4 bytes; overridden where a register is live.
    fn config_read(&mut self, offset: u16, width: u8) -> u32 {
        self.config().read(offset, width)
    }
    /// A configuration write of 1, 2 or 4 bytes; overridden where a register does something.
    fn config_write(&mut self, offset: u16, width: u8, value: u32) {
        self.config_mut().write(offset, width, value);
    }
    /// Reads from a BAR. The MSI-X structures were answered before.
    fn bar_read(&mut self, bar: u8, offset: u64, width: u8) -> u64;
    /// Writes to a BAR.
    fn bar_write(&mut self, bar: u8, offset: u64, width: u8, value: u64);
    /// Back to the state after power-on, with its configuration space.
    fn reset(&mut self);
    /// The state, with the configuration space's.
    fn save(&self) -> Section;
    /// Takes over a saved state, or refuses it and is unchanged.
    fn load(&mut self, section: &Section) -> Result<(), StateError>;
    /// When, in the machine's time, `poll` must be called next without anybody waking the device.
    fn deadline_ns(&self) -> Option<u64> {
        None
    }
    /// Time has come, or some back end woke the board: do what is due. Must be cheap when nothing is.
    fn poll(&mut self, now_ns: u64) {
        let _ = now_ns;
    }
}
