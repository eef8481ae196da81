//! AHCI host bus adapter with one port: Serial ATA AHCI 1.3.1, as an Intel ICH9's (8086:2922).
//!
//! BAR 5 (32-bit memory, 4 KiB):
//!
//! | offset | register |
//! |---|---|
//! | 0x00 | CAP: 32 command slots, NCQ, 64-bit addresses, 3 Gbit/s, AHCI only |
//! | 0x04 | GHC: AE (always set), IE, HR |
//! | 0x08 | IS: write 1 to clear |
//! | 0x0c | PI: port 0 |
//! | 0x10 | VS: 1.3.1 |
//! | 0x100 | port 0: PxCLB to PxSACT, see [`port`] |
//!
//! Behind the port is a disk ([`ata`]) or a CD drive ([`atapi`]). The interrupt is INTx.
//!
//! **Not modelled**: MSI, port multipliers, command completion coalescing, enclosure management, power states of the
//! link, hot plug, more than one port. None is offered.
//!
//! A reset by GHC.HR is done once nothing is with the host any more; writes before that are dropped.
//!
//! **Hostile guest**: registers accept aligned 32-bit accesses only; other writes are dropped, and other reads give
//! zeros. A command has at most [`port::PRDS_MAX`] regions, and each is checked to be memory; at most 32 commands are
//! in flight. Structures outside of memory stop the port with a host bus error. While bus mastering is off, guest
//! memory is not touched.
//!
//! **Saved state**: the registers, the drive's state, and which commands were in flight: the new device executes them
//! again. That is harmless, since their completion was not reported to the driver. A reset that is not done is saved as done.

mod ata;
mod atapi;
mod port;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use self::port::{Port, PortState};
use super::disk::Disk;
use super::pci::{BarKind, ConfigSpace, ConfigState, Identity, PciDevice};
use crate::hypervisor::guest_errors::GuestErrors;
use crate::hypervisor::irq::IrqLine;
use crate::hypervisor::memory::GuestMemory;
use crate::hypervisor::state::{Section, StateError};
use crate::hypervisor::waking::Waker;

const NAME: &str = "ahci";
const VERSION: u32 = 1;
const ABAR: u8 = 5;
const ABAR_BYTES: u64 = 0x1000;

/// S64A, SNCQ, SAM, ISS = 2 (3 Gbit/s), NCS = 31 (32 slots), NP = 0 (one port).
const CAP: u32 = 1 << 31 | 1 << 30 | 1 << 18 | 2 << 20 | 31 << 8;
const GHC_HR: u32 = 1 << 0;
const GHC_IE: u32 = 1 << 1;
const GHC_AE: u32 = 1 << 31;
const VS: u32 = 0x0001_0301;
const PORT0: u64 = 0x100;
const PORT_END: u64 = 0x180;

/// Kind of the drive behind the port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DriveKind {
    /// A disk.
    Disk,
    /// A CD drive with a disc in it.
    Cd,
}

/// The adapter and its drive.
pub struct Ahci {
    config: ConfigSpace,
    waker: Waker,
    port: Port,
    interrupts_enabled: bool,
    /// IS: the port requests an interrupt.
    pending: bool,
    /// A state was loaded, or the board goes on: look for commands to execute.
    again: bool,
    /// The driver set GHC.HR, and the drive is not idle yet.
    resetting: bool,
    /// The board wants no new commands to begin.
    quiet: bool,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    config: ConfigState,
    interrupts_enabled: bool,
    pending: bool,
    port: PortState,
}

impl Ahci {
    /// Creates an adapter with `disk` behind its port. `waker` is the one that the disk wakes.
    pub fn new(kind: DriveKind, disk: Box<dyn Disk>, serial: &str, mem: GuestMemory, waker: Waker, line: IrqLine) -> Ahci {
        let identity = Identity {
            vendor: 0x8086,
            device: 0x2922,
            class: 0x01_06_01,
            revision: 2,
            subsystem_vendor: 0x1af4,
            subsystem: 0x1100,
        };
        let mut config = ConfigSpace::new(&identity);
        config.add_bar(ABAR, BarKind::Memory32, ABAR_BYTES);
        config.set_intx(1, line);
        let port = Port::new(kind, disk, serial, mem);
        Ahci { config, waker, port, interrupts_enabled: false, pending: false, again: false, resetting: false, quiet: false }
    }

    /// Reports what the driver does wrong to `errors`.
    pub fn report_to(mut self, errors: Arc<GuestErrors>) -> Ahci {
        self.port.report_to(errors);
        self
    }

    fn update_line(&mut self) {
        self.pending |= self.port.interrupts();
        self.config.drive_intx(self.interrupts_enabled && self.pending);
    }

    fn run_port(&mut self) {
        self.finish_reset();
        if self.resetting {
            return;
        }
        if self.config.bus_master() && !self.quiet {
            self.port.run();
        }
        self.port.collect();
        self.update_line();
    }

    /// Finishes the reset that GHC.HR began, once nothing is with the host any more. HR reads as 1 until then (3.1.2), and
    /// the driver waits for that (10.4.3).
    fn finish_reset(&mut self) {
        if self.resetting && self.port.is_idle() {
            self.reset_adapter();
        }
    }

    fn reset_adapter(&mut self) {
        self.resetting = false;
        self.port.reset();
        self.interrupts_enabled = false;
        self.pending = false;
        self.again = false;
    }

    fn register(&mut self, offset: u64) -> u32 {
        match offset {
            0x00 => CAP,
            0x04 if self.resetting => GHC_AE | GHC_HR,
            0x04 => GHC_AE | if self.interrupts_enabled { GHC_IE } else { 0 },
            0x08 => self.pending.into(),
            0x0c => 1,
            0x10 => VS,
            PORT0..PORT_END => self.port.register(offset - PORT0),
            _ => 0,
        }
    }

    fn set_register(&mut self, offset: u64, value: u32) {
        self.finish_reset();
        if self.resetting {
            return;
        }
        match offset {
            0x04 if value & GHC_HR != 0 => self.resetting = true,
            0x04 => self.interrupts_enabled = value & GHC_IE != 0,
            0x08 if value & 1 != 0 => self.pending = false,
            PORT0..PORT_END => self.port.set_register(offset - PORT0, value),
            _ => {}
        }
        self.run_port();
    }
}

impl PciDevice for Ahci {
    fn name(&self) -> &'static str {
        NAME
    }
    fn config(&self) -> &ConfigSpace {
        &self.config
    }
    fn config_mut(&mut self) -> &mut ConfigSpace {
        &mut self.config
    }

    fn config_write(&mut self, offset: u16, width: u8, value: u32) {
        self.config.write(offset, width, value);
        // The driver may have enabled bus mastering after it issued commands.
        self.run_port();
    }

    fn bar_read(&mut self, bar: u8, offset: u64, width: u8) -> u64 {
        if bar != ABAR || offset % u64::from(width.max(1)) != 0 {
            return 0;
        }
        self.finish_reset();
        let word = u64::from(self.register(offset & !3)) >> (8 * (offset & 3));
        match width {
            8 => word | u64::from(self.register(offset + 4)) << 32,
            _ => word,
        }
    }

    fn bar_write(&mut self, bar: u8, offset: u64, width: u8, value: u64) {
        if bar != ABAR || offset % 4 != 0 {
            return;
        }
        match width {
            4 => self.set_register(offset, value as u32),
            8 if offset % 8 == 0 => {
                self.set_register(offset, value as u32);
                self.set_register(offset + 4, (value >> 32) as u32);
            }
            _ => {}
        }
    }

    fn quiesce(&mut self) -> bool {
        self.quiet = true;
        self.run_port();
        !self.resetting && self.port.has_nothing_in_flight()
    }

    fn resume(&mut self) {
        self.quiet = false;
        self.again = true;
    }

    fn reset(&mut self) {
        self.reset_adapter();
        self.config.reset();
    }

    fn save(&self) -> Section {
        let state = State {
            config: self.config.save(),
            interrupts_enabled: self.interrupts_enabled && !self.resetting,
            pending: self.pending && !self.resetting,
            port: if self.resetting { self.port.save_fresh() } else { self.port.save() },
        };
        Section::encode(NAME, VERSION, &state)
    }

    fn load(&mut self, section: &Section) -> Result<(), StateError> {
        let state: State = section.decode(NAME, VERSION)?;
        state.port.check().map_err(|why| StateError::Damaged { kind: NAME, why })?;
        self.config.load(NAME, &state.config)?;
        self.port.load(state.port);
        self.interrupts_enabled = state.interrupts_enabled;
        self.pending = state.pending;
        self.again = true;
        self.resetting = false;
        Ok(())
    }

    fn deadline_ns(&self) -> Option<u64> {
        self.again.then_some(0)
    }

    fn poll(&mut self, _: u64) {
        if self.waker.take() || std::mem::take(&mut self.again) {
            self.run_port();
        }
    }
}
