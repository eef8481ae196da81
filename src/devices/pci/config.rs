//! A function's configuration space: PCI Local Bus 3.0, chapter 6 (type 0 header, capabilities, INTx).
//!
//! 256 bytes with a mask of the bits that the guest may write and of those that it clears by writing ones. A BAR is
//! only such a mask, so sizing (write ones, read back) needs no code of its own. The 3840 bytes of PCI Express extended
//! space read as zeros: no extended capability.
//!
//! **Not modelled**: expansion ROMs, MSI without X, power management states, parity and system errors (their status
//! bits never rise).
//!
//! **Hostile guest**: every offset is masked into the 256 bytes; nothing is allocated after construction.
//!
//! **Saved state**: [`ConfigState`], embedded by the function in its own section; refused where a read-only bit differs
//! from this function's.

use serde::{Deserialize, Serialize};
use std::sync::Arc;

use super::msix::{Messages, MsixState, MsixTable};
use crate::hypervisor::irq::{IrqLine, IrqSink};
use crate::hypervisor::state::StateError;

/// Command register, section 6.2.2.
const COMMAND: usize = 0x04;
const COMMAND_IO: u16 = 1 << 0;
const COMMAND_MEMORY: u16 = 1 << 1;
const COMMAND_BUS_MASTER: u16 = 1 << 2;
const COMMAND_PARITY: u16 = 1 << 6;
const COMMAND_SERR: u16 = 1 << 8;
const COMMAND_INTX_DISABLE: u16 = 1 << 10;
/// Status register, section 6.2.3.
const STATUS: usize = 0x06;
const STATUS_INTERRUPT: u8 = 1 << 3;
const STATUS_CAPABILITIES: u8 = 1 << 4;
const STATUS_ERRORS_HIGH: u8 = 0xf9;
const CACHE_LINE_SIZE: usize = 0x0c;
const LATENCY_TIMER: usize = 0x0d;
const HEADER_TYPE: usize = 0x0e;
const MULTI_FUNCTION: u8 = 0x80;
const BAR0: usize = 0x10;
const SUBSYSTEM: usize = 0x2c;
const CAPABILITIES: usize = 0x34;
const INTERRUPT_LINE: usize = 0x3c;
const INTERRUPT_PIN: usize = 0x3d;
const FIRST_CAPABILITY: usize = 0x40;
const CAP_ID_MSIX: u8 = 0x11;
const BARS: usize = 6;

/// Identity of a function in its header.
#[derive(Debug, Clone, Copy)]
pub struct Identity {
    /// Vendor ID.
    pub vendor: u16,
    /// Device ID.
    pub device: u16,
    /// Class code: base class, sub-class, programming interface in bits 23:0.
    pub class: u32,
    /// Revision ID.
    pub revision: u8,
    /// Subsystem vendor ID.
    pub subsystem_vendor: u16,
    /// Subsystem ID.
    pub subsystem: u16,
}

/// Kind of a base address register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BarKind {
    /// I/O ports.
    Io,
    /// Memory below 4 GiB.
    Memory32,
    /// Memory anywhere. It takes this register and the next.
    Memory64 {
        /// Reads have no side effects and writes may be merged.
        prefetchable: bool,
    },
}

/// A BAR with its kind and the address at which the guest put it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BarWindow {
    /// Number of the register.
    pub bar: u8,
    /// Kind of the register.
    pub kind: BarKind,
    /// Its present address.
    pub address: u64,
    /// Bytes, a power of two.
    pub size: u64,
    /// Whether the command register enables the window.
    pub enabled: bool,
}

struct Intx {
    line: IrqLine,
    /// The level that the function requests, before the disable bit.
    level: bool,
}

/// A function's configuration space.
pub struct ConfigSpace {
    bytes: [u8; 256],
    power_on: [u8; 256],
    writable: [u8; 256],
    write_one_to_clear: [u8; 256],
    bars: [Option<(BarKind, u64)>; BARS],
    next_capability: usize,
    last_capability: usize,
    msix: Option<(usize, Messages)>,
    intx: Option<Intx>,
}

/// The state of a configuration space with its MSI-X table.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConfigState {
    bytes: Vec<u8>,
    intx_level: bool,
    msix: Option<MsixState>,
}

impl ConfigSpace {
    /// Creates a function with no BAR, no capability and no interrupt.
    pub fn new(identity: &Identity) -> ConfigSpace {
        let mut config = ConfigSpace {
            bytes: [0; 256],
            power_on: [0; 256],
            writable: [0; 256],
            write_one_to_clear: [0; 256],
            bars: [None; BARS],
            next_capability: FIRST_CAPABILITY,
            last_capability: 0,
            msix: None,
            intx: None,
        };
        config.fix(0x00, &identity.vendor.to_le_bytes());
        config.fix(0x02, &identity.device.to_le_bytes());
        config.fix(0x08, &[identity.revision]);
        config.fix(0x09, &identity.class.to_le_bytes()[..3]);
        config.fix(SUBSYSTEM, &identity.subsystem_vendor.to_le_bytes());
        config.fix(SUBSYSTEM + 2, &identity.subsystem.to_le_bytes());
        let command = COMMAND_BUS_MASTER | COMMAND_PARITY | COMMAND_SERR | COMMAND_INTX_DISABLE;
        config.allow(COMMAND, &command.to_le_bytes());
        config.write_one_to_clear[STATUS + 1] = STATUS_ERRORS_HIGH;
        config.allow(CACHE_LINE_SIZE, &[0xff]);
        config.allow(LATENCY_TIMER, &[0xff]);
        config.allow(INTERRUPT_LINE, &[0xff]);
        config
    }

    fn fix(&mut self, offset: usize, value: &[u8]) {
        self.bytes[offset..offset + value.len()].copy_from_slice(value);
        self.power_on[offset..offset + value.len()].copy_from_slice(value);
    }

    fn allow(&mut self, offset: usize, mask: &[u8]) {
        for (own, more) in self.writable[offset..].iter_mut().zip(mask) {
            *own |= more;
        }
    }

    /// Gives the function a BAR. `size` is a power of two, at least 16 for memory and 4 for ports.
    ///
    /// Panics if the caller's table is wrong: a register used twice, or a size that is not valid.
    pub fn add_bar(&mut self, bar: u8, kind: BarKind, size: u64) {
        let index = usize::from(bar);
        let registers = if matches!(kind, BarKind::Memory64 { .. }) { 2 } else { 1 };
        assert!(index + registers <= BARS && self.bars[index].is_none(), "BAR {bar} is free and exists");
        assert!(size.is_power_of_two() && size >= if kind == BarKind::Io { 4 } else { 16 }, "BAR size {size:#x} is legal");
        let (flags, command): (u8, u16) = match kind {
            BarKind::Io => (0b01, COMMAND_IO),
            BarKind::Memory32 => (0b0000, COMMAND_MEMORY),
            BarKind::Memory64 { prefetchable } => (0b0100 | u8::from(prefetchable) << 3, COMMAND_MEMORY),
        };
        let mask = !(size - 1);
        // The type bits are fixed, and the address bits below the size read as zeros: that is all that
        // sizing needs.
        self.fix(BAR0 + 4 * index, &[flags]);
        self.allow(BAR0 + 4 * index, &mask.to_le_bytes()[..4 * registers]);
        self.allow(COMMAND, &command.to_le_bytes());
        self.bars[index] = Some((kind, size));
    }

    /// Adds a capability with this id and the body that follows the two header bytes. `writable` is a mask of the
    /// body's bits. Returns the capability's offset.
    pub fn add_capability(&mut self, id: u8, body: &[u8], writable: &[u8]) -> u8 {
        let at = self.next_capability;
        let end = at + 2 + body.len();
        assert!(end <= 256, "the function's capabilities fit into configuration space");
        self.fix(at, &[id, 0]);
        self.fix(at + 2, body);
        self.allow(at + 2, writable);
        let link = if self.last_capability == 0 { CAPABILITIES } else { self.last_capability + 1 };
        self.fix(link, &[at as u8]);
        self.bytes[STATUS] |= STATUS_CAPABILITIES;
        self.power_on[STATUS] |= STATUS_CAPABILITIES;
        self.last_capability = at;
        self.next_capability = (end + 3) & !3;
        at as u8
    }

    /// Gives the function `vectors` MSI-X vectors. Their table and pending bits lie in `bar`, which was added before.
    /// Accesses to them never reach the function's `bar_read` and `bar_write`.
    pub fn add_msix(&mut self, bar: u8, table_offset: u32, pba_offset: u32, vectors: u16, sink: Arc<dyn IrqSink>) -> u8 {
        let size = self.bars[usize::from(bar)].expect("the MSI-X BAR was added before").1;
        let table = MsixTable::new(bar, u64::from(table_offset), u64::from(pba_offset), vectors, sink);
        assert!(table.end() <= size && (table_offset | pba_offset) & 7 == 0, "the MSI-X structures fit into their BAR");
        let mut body = Vec::with_capacity(10);
        body.extend_from_slice(&(vectors - 1).to_le_bytes());
        body.extend_from_slice(&(table_offset | u32::from(bar)).to_le_bytes());
        body.extend_from_slice(&(pba_offset | u32::from(bar)).to_le_bytes());
        let at = self.add_capability(CAP_ID_MSIX, &body, &[0, 0xc0]);
        self.msix = Some((usize::from(at), Messages::new(table)));
        at
    }

    /// Wires interrupt pin `pin` (1 is INTA#) to `line`. The line register starts with the line's number.
    pub fn set_intx(&mut self, pin: u8, line: IrqLine) {
        self.fix(INTERRUPT_PIN, &[pin]);
        self.fix(INTERRUPT_LINE, &[u8::try_from(line.gsi()).unwrap_or(0xff)]);
        self.intx = Some(Intx { line, level: false });
    }

    /// Marks function 0 of a device that has more functions.
    pub fn set_multi_function(&mut self) {
        let header = self.power_on[HEADER_TYPE] | MULTI_FUNCTION;
        self.fix(HEADER_TYPE, &[header]);
    }

    fn command(&self) -> u16 {
        u16::from_le_bytes([self.bytes[COMMAND], self.bytes[COMMAND + 1]])
    }

    /// Returns whether the function may read and write guest memory.
    pub fn bus_master(&self) -> bool {
        self.command() & COMMAND_BUS_MASTER != 0
    }

    /// Reads 1, 2 or 4 bytes. Bytes beyond the 256 read as zeros.
    pub fn read(&self, offset: u16, width: u8) -> u32 {
        let mut value = 0;
        for i in 0..usize::from(width.min(4)) {
            let at = usize::from(offset) + i;
            let mut byte = self.bytes.get(at).copied().unwrap_or(0);
            // The bit shows the function's request, also while the disable bit keeps it from the line
            // (6.2.3).
            if at == STATUS && self.intx.as_ref().is_some_and(|intx| intx.level) {
                byte |= STATUS_INTERRUPT;
            }
            value |= u32::from(byte) << (8 * i);
        }
        value
    }

    /// Writes the writable bits of 1, 2 or 4 bytes.
    pub fn write(&mut self, offset: u16, width: u8, value: u32) {
        for i in 0..usize::from(width.min(4)) {
            let at = usize::from(offset) + i;
            if at >= 256 {
                return;
            }
            let new = value.to_le_bytes()[i];
            let kept = self.bytes[at] & !self.writable[at] & !(new & self.write_one_to_clear[at]);
            self.bytes[at] = kept | (new & self.writable[at]);
        }
        self.apply();
    }

    /// Applies the command register and the MSI-X control word.
    fn apply(&mut self) {
        if let Some((at, messages)) = &self.msix {
            let control = self.bytes[*at + 3];
            messages.table().set_control(control & 0x80 != 0, control & 0x40 != 0);
        }
        self.drive_line(false);
    }

    fn drive_line(&self, restore: bool) {
        let Some(intx) = &self.intx else { return };
        // A function uses one kind of interrupt at a time (6.8.2.1).
        let level = intx.level && self.command() & COMMAND_INTX_DISABLE == 0 && !self.msix_enabled();
        match restore {
            // The interrupt controllers have their own saved state: a restore must not send an edge to
            // them.
            true => intx.line.restore(level),
            false => intx.line.set(level),
        }
    }

    /// Drives the function's INTx pin. Nothing reaches the line while the guest disables it or uses MSI-X.
    pub fn drive_intx(&mut self, level: bool) {
        if let Some(intx) = &mut self.intx {
            intx.level = level;
        }
        self.drive_line(false);
    }

    /// Returns whether the guest enabled MSI-X.
    pub fn msix_enabled(&self) -> bool {
        self.msix.as_ref().is_some_and(|(_, messages)| messages.table().enabled())
    }

    /// Returns the number of MSI-X vectors, 0 without MSI-X.
    pub fn msix_vectors(&self) -> u16 {
        self.msix.as_ref().map_or(0, |(_, messages)| messages.table().vectors())
    }

    /// Sends the MSI-X message of `vector`, or keeps it pending while it is masked. Does nothing without MSI-X, or for
    /// a vector that does not exist.
    pub fn notify(&mut self, vector: u16) {
        if let Some((_, messages)) = &self.msix {
            messages.table().notify(vector);
        }
    }

    /// Returns what other threads send the function's messages by, if it has MSI-X.
    pub fn messages(&self) -> Option<Messages> {
        self.msix.as_ref().map(|(_, messages)| messages.clone())
    }

    /// Reads from a BAR if the offset belongs to the MSI-X structures.
    pub fn msix_read(&self, bar: u8, offset: u64, width: u8) -> Option<u64> {
        self.msix.as_ref()?.1.table().read(bar, offset, width)
    }

    /// Writes to a BAR if the offset belongs to the MSI-X structures.
    pub fn msix_write(&mut self, bar: u8, offset: u64, width: u8, value: u64) -> bool {
        self.msix.as_ref().is_some_and(|(_, messages)| messages.table().write(bar, offset, width, value))
    }

    /// Returns the BARs with their present addresses.
    pub fn bars(&self) -> impl Iterator<Item = BarWindow> + '_ {
        let command = self.command();
        self.bars.iter().enumerate().filter_map(move |(index, bar)| {
            let (kind, size) = (*bar)?;
            let low = u64::from(self.read((BAR0 + 4 * index) as u16, 4));
            let (address, gate) = match kind {
                BarKind::Io => (low & !3, COMMAND_IO),
                BarKind::Memory32 => (low & !0xf, COMMAND_MEMORY),
                BarKind::Memory64 { .. } => {
                    (low & !0xf | u64::from(self.read((BAR0 + 4 * index + 4) as u16, 4)) << 32, COMMAND_MEMORY)
                }
            };
            Some(BarWindow { bar: index as u8, kind, address, size, enabled: command & gate != 0 })
        })
    }

    /// Puts a BAR at `address` and enables it, as firmware would.
    pub fn place_bar(&mut self, bar: u8, address: u64) {
        let Some(Some((kind, _))) = self.bars.get(usize::from(bar)).copied() else { return };
        let at = (BAR0 + 4 * usize::from(bar)) as u16;
        self.write(at, 4, address as u32);
        if matches!(kind, BarKind::Memory64 { .. }) {
            self.write(at + 4, 4, (address >> 32) as u32);
        }
        let gate = if kind == BarKind::Io { COMMAND_IO } else { COMMAND_MEMORY };
        let command = self.command() | gate;
        self.write(COMMAND as u16, 2, u32::from(command));
    }

    /// Resets the function to its power-on state: no BAR placed, nothing enabled, the pin low.
    pub fn reset(&mut self) {
        self.bytes = self.power_on;
        if let Some((_, messages)) = &self.msix {
            messages.table().reset();
        }
        if let Some(intx) = &mut self.intx {
            intx.level = false;
        }
        self.apply();
    }

    /// Returns the state, for the function's own section.
    pub fn save(&self) -> ConfigState {
        ConfigState {
            bytes: self.bytes.to_vec(),
            intx_level: self.intx.as_ref().is_some_and(|intx| intx.level),
            msix: self.msix.as_ref().map(|(_, messages)| messages.table().save()),
        }
    }

    /// Restores a saved state. On an error the function is unchanged. `kind` is the function's, for the message.
    pub fn load(&mut self, kind: &'static str, state: &ConfigState) -> Result<(), StateError> {
        let damaged = |why: String| StateError::Damaged { kind, why };
        let bytes: [u8; 256] =
            state.bytes.as_slice().try_into().map_err(|_| damaged("configuration space is not 256 bytes".into()))?;
        for (at, byte) in bytes.iter().enumerate() {
            let fixed = !(self.writable[at] | self.write_one_to_clear[at]);
            if (byte ^ self.power_on[at]) & fixed != 0 {
                return Err(damaged(format!("configuration byte {at:#x} is of another function")));
            }
        }
        if state.intx_level && self.intx.is_none() {
            return Err(damaged("an interrupt pin that the function lacks is raised".into()));
        }
        match (&self.msix, &state.msix) {
            (Some((_, messages)), Some(saved)) => messages.table().load(saved).map_err(damaged)?,
            (None, None) => {}
            _ => return Err(damaged("MSI-X is not on both sides".into())),
        }
        self.bytes = bytes;
        if let Some((at, messages)) = &self.msix {
            let control = self.bytes[*at + 3];
            messages.table().restore_control(control & 0x80 != 0, control & 0x40 != 0);
        }
        if let Some(intx) = &mut self.intx {
            intx.level = state.intx_level;
        }
        self.drive_line(true);
        Ok(())
    }
}
