//! The bus: the map from ports and addresses to devices.
//!
//! A device sees `(region, offset, width)`, never an address. A read that no device answers gives all ones, and a write
//! is dropped, as on a PC.

use std::collections::BTreeMap;

use super::state::{Section, StateError};

/// One access to a device's registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Access {
    /// Number of the register region. The device numbers its regions.
    pub region: u16,
    /// Bytes from the region's start.
    pub offset: u64,
    /// Bytes accessed: 1, 2, 4 or 8.
    pub width: u8,
}

/// A chip or a function: registers on the bus, reset, and state that can be saved.
///
/// Its methods run under the board's lock; it has no lock of its own and never blocks. What must wait (files, sockets)
/// runs on a thread of its own and comes back through a [`Waker`](super::waking::Waker) and [`Device::poll`].
pub trait Device: Send {
    /// Returns the name in the datasheet, for messages and as the kind of its state.
    fn name(&self) -> &'static str;
    /// Reads a register. The caller ignores bits above the width.
    fn read(&mut self, access: Access) -> u64;
    /// Writes a register; bits of `value` above the width are zero.
    fn write(&mut self, access: Access, value: u64);
    /// Takes nothing new from the guest until `resume`, and returns whether nothing of the guest's is with the host any more:
    /// no thread of the device's back end touches guest memory or the device's interrupts. Is called until it is `true`, and
    /// the board's lock is free in between, so that only this wait is for the host's I/O. A device that hands nothing to the
    /// host is always quiet.
    fn quiesce(&mut self) -> bool {
        true
    }
    /// Goes on after `quiesce`.
    fn resume(&mut self) {}
    /// Resets the device to its state after power-on. Like `save` and `load` it comes between `quiesce` and `resume`. The
    /// guest's own resets, by a register, are the device's: it answers as its datasheet says while it waits.
    fn reset(&mut self);
    /// Returns the state. It is complete: a new device of the same configuration that loads it continues without a
    /// visible difference.
    fn save(&self) -> Section;
    /// Restores a saved state. On an error the device is unchanged.
    fn load(&mut self, section: &Section) -> Result<(), StateError>;
    /// Returns when `poll` must be called next even if nothing wakes the device, in the machine's time.
    fn deadline_ns(&self) -> Option<u64> {
        None
    }
    /// Does what is due, when the deadline has passed or a back end woke the device.
    fn poll(&mut self, now_ns: u64) {
        let _ = now_ns;
    }
}

/// The two address spaces of a PC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Space {
    /// 16-bit I/O ports.
    Port,
    /// Guest-physical memory addresses.
    Memory,
}

/// Index of a device on the board.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct DeviceId(pub usize);

#[derive(Debug, Clone, Copy)]
struct Window {
    len: u64,
    device: DeviceId,
    region: u16,
}

/// The map from addresses to devices. The devices themselves belong to the board.
#[derive(Debug, Default)]
pub struct Bus {
    ports: BTreeMap<u64, Window>,
    memory: BTreeMap<u64, Window>,
}

/// The error for two windows that would overlap.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{space:?} range {base:#x} of {len:#x} bytes overlaps one that is already mapped")]
pub struct Overlap {
    /// The address space.
    pub space: Space,
    /// First address of the refused window.
    pub base: u64,
    /// Length of the refused window in bytes.
    pub len: u64,
}

impl Bus {
    fn map_of(&self, space: Space) -> &BTreeMap<u64, Window> {
        match space {
            Space::Port => &self.ports,
            Space::Memory => &self.memory,
        }
    }

    /// Maps `len` addresses from `base` to `region` of `device`.
    pub fn map(&mut self, space: Space, base: u64, len: u64, device: DeviceId, region: u16) -> Result<(), Overlap> {
        let overlap = Overlap { space, base, len };
        let end = base.checked_add(len).filter(|_| len > 0).ok_or(Overlap { space, base, len })?;
        let map = self.map_of(space);
        let before = map.range(..end).next_back();
        if before.is_some_and(|(&start, w)| start + w.len > base) {
            return Err(overlap);
        }
        let window = Window { len, device, region };
        match space {
            Space::Port => self.ports.insert(base, window),
            Space::Memory => self.memory.insert(base, window),
        };
        Ok(())
    }

    /// Returns the window that covers all `width` bytes at `addr`, as device and access.
    pub fn find(&self, space: Space, addr: u64, width: u8) -> Option<(DeviceId, Access)> {
        let (&start, w) = self.map_of(space).range(..=addr).next_back()?;
        let offset = addr - start;
        if offset >= w.len || u64::from(width) > w.len - offset {
            return None;
        }
        Some((w.device, Access { region: w.region, offset, width }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlapping_windows_are_refused_and_neighbours_are_not() {
        let mut bus = Bus::default();
        bus.map(Space::Port, 0x60, 1, DeviceId(0), 0).unwrap();
        bus.map(Space::Port, 0x64, 1, DeviceId(0), 1).unwrap();
        bus.map(Space::Port, 0x61, 3, DeviceId(1), 0).unwrap();
        assert!(bus.map(Space::Port, 0x62, 1, DeviceId(2), 0).is_err());
        assert!(bus.map(Space::Port, 0x50, 0x11, DeviceId(2), 0).is_err());
        assert_eq!(bus.find(Space::Port, 0x63, 1).unwrap(), (DeviceId(1), Access { region: 0, offset: 2, width: 1 }));
        assert!(bus.find(Space::Port, 0x63, 2).is_none());
        assert!(bus.find(Space::Memory, 0x63, 1).is_none());
    }
}
