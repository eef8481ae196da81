//! The PCI root: bus 0 with its functions, both configuration mechanisms, and the windows that hold the BARs.
//!
//! PCI Local Bus 3.0, section 3.2.2.3.2 (CONFIG_ADDRESS, CONFIG_DATA); PCI Express Base 4.0, sections 7.2.2 (ECAM) and
//! 7.5.3 (the PCI Express capability); 00:00.0 is a generic host bridge. The port pair's second byte is the reset control
//! register of Intel's ICH9 (section 13.7.5, RST_CNT), because its address lies inside the pair.
//!
//! | region | what |
//! |---|---|
//! | 0 | 8 ports: CONFIG_ADDRESS, RST_CNT as its second byte, CONFIG_DATA |
//! | 1 | ECAM, 1 MiB for bus 0 |
//! | 2, 3, 4 | the windows for 32-bit memory, 64-bit memory and I/O BARs |
//!
//! **Not modelled**: buses beyond 0 (they read as all ones: no device), hot plug, bridges.
//!
//! **Hostile guest**: BARs may be put anywhere, also over each other: the lowest function answers, and no function
//! answers outside of the windows. An access that leaves a BAR reads as all ones.
//!
//! **Saved state**: CONFIG_ADDRESS, RST_CNT and the section of each function, by its slot.

use serde::{Deserialize, Serialize};
use std::sync::Arc;

use super::{BarKind, ConfigSpace, ConfigState, Identity, PciDevice};
use crate::hypervisor::backend::MachineExit;
use crate::hypervisor::bus::{Access, Device};
use crate::hypervisor::state::{Section, StateError};
use crate::hypervisor::waking::Attention;

const KIND: &str = "pci-root";
const VERSION: u32 = 1;
const CONFIG_ENABLE: u32 = 1 << 31;
/// RST_CNT: full reset (3), reset now (2), system rather than CPU only (1).
const RST_CNT_WRITABLE: u8 = 0b1110;
const RST_CNT_NOW: u8 = 0b0100;

/// A range of addresses for BARs, as the board laid it out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Window {
    /// First address.
    pub base: u64,
    /// Bytes; 0 for none.
    pub len: u64,
}

/// The three windows for BARs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Windows {
    /// Window below 4 GiB for 32-bit memory BARs.
    pub memory32: Window,
    /// Window for 64-bit memory BARs. Those that do not fit go to `memory32`.
    pub memory64: Window,
    /// Window for I/O BARs.
    pub io: Window,
}

/// The error for a function that cannot be added, or whose BARs do not fit.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PciError {
    /// Bus 0 is the only bus.
    #[error("PCI device `{0}` does not exist: bus 0 has devices 0 to 31, and there is no other bus")]
    NoSuchDevice(u8),
    /// A device has eight functions.
    #[error("PCI function `{0}` does not exist: a device has functions 0 to 7")]
    NoSuchFunction(u8),
    /// The slot is taken.
    #[error("PCI slot `{0}.{1}` is taken by `{2}`")]
    Taken(u8, u8, &'static str),
    /// Systems do not look for a function where function 0 is missing.
    #[error("PCI slot `{0}.{1}` would never be found: `{0}.0` is empty")]
    NoFunctionZero(u8, u8),
    /// A window has no room.
    #[error("no room for BAR {bar} of `{name}` ({size:#x} bytes)")]
    NoRoom {
        /// The function.
        name: &'static str,
        /// The register.
        bar: u8,
        /// Its size.
        size: u64,
    },
}

struct Slot {
    device: u8,
    function: u8,
    chip: Box<dyn PciDevice>,
}

#[derive(Clone, Copy)]
struct Route {
    io: bool,
    base: u64,
    size: u64,
    slot: usize,
    bar: u8,
}

/// The host bridge, the functions behind it and the windows.
pub struct PciRoot {
    windows: Windows,
    attention: Arc<Attention>,
    /// Sorted by device, then function.
    slots: Vec<Slot>,
    routes: Vec<Route>,
    /// Whether BARs are placed at reset, since there is no firmware to do it.
    assign: bool,
    config_address: u32,
    reset_control: u8,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    config_address: u32,
    reset_control: u8,
    functions: Vec<(u8, u8, Section)>,
}

impl PciRoot {
    /// Region of the configuration ports.
    pub const PORTS: u16 = 0;
    /// Region of the ECAM.
    pub const ECAM: u16 = 1;
    /// Region of the 32-bit memory window.
    pub const MEMORY32: u16 = 2;
    /// Region of the 64-bit memory window.
    pub const MEMORY64: u16 = 3;
    /// Region of the I/O window.
    pub const IO: u16 = 4;
    /// Bytes of ECAM that one bus takes.
    pub const ECAM_BYTES: u64 = 1 << 20;

    /// Creates a bus with only its host bridge. A guest that requests a reset stops the machine through `attention`.
    pub fn new(windows: Windows, attention: Arc<Attention>) -> PciRoot {
        let bridge = Slot { device: 0, function: 0, chip: Box::new(HostBridge::new()) };
        PciRoot { windows, attention, slots: vec![bridge], routes: vec![], assign: false, config_address: 0, reset_control: 0 }
    }

    /// Returns the windows that this root was built with.
    pub fn windows(&self) -> Windows {
        self.windows
    }

    /// Adds a function to bus 0.
    pub fn add(&mut self, device: u8, function: u8, chip: Box<dyn PciDevice>) -> Result<(), PciError> {
        if device > 31 {
            return Err(PciError::NoSuchDevice(device));
        }
        if function > 7 {
            return Err(PciError::NoSuchFunction(function));
        }
        if let Some(slot) = self.slots.iter().find(|s| (s.device, s.function) == (device, function)) {
            return Err(PciError::Taken(device, function, slot.chip.name()));
        }
        if function > 0 {
            let zero = self.slots.iter_mut().find(|s| (s.device, s.function) == (device, 0));
            // A guest asks the functions 1 to 7 only if function 0 has the bit.
            zero.ok_or(PciError::NoFunctionZero(device, function))?.chip.config_mut().set_multi_function();
        }
        // In order, so that BARs get the same addresses whatever the order of the calls was.
        let at = self.slots.partition_point(|s| (s.device, s.function) < (device, function));
        self.slots.insert(at, Slot { device, function, chip });
        self.reroute();
        Ok(())
    }

    /// Returns the function in a slot, for the board and for tests.
    pub fn function_mut(&mut self, device: u8, function: u8) -> Option<&mut dyn PciDevice> {
        let slot = self.slots.iter_mut().find(|s| (s.device, s.function) == (device, function))?;
        Some(slot.chip.as_mut())
    }

    /// Places every BAR in its window and enables it, now and after each reset, as firmware would.
    pub fn assign_bars(&mut self) -> Result<(), PciError> {
        let mut next = [self.windows.memory32, self.windows.memory64, self.windows.io].map(|w| (w.base, w.base + w.len));
        let mut take = |window: usize, size: u64| {
            let (at, end) = next[window];
            // A BAR at address 0 counts as not placed.
            let start = at.max(1).checked_next_multiple_of(size)?;
            let after = start.checked_add(size).filter(|&after| after <= end)?;
            next[window].0 = after;
            Some(start)
        };
        for slot in &mut self.slots {
            let name = slot.chip.name();
            for bar in slot.chip.config().bars().collect::<Vec<_>>() {
                let place = match bar.kind {
                    BarKind::Io => take(2, bar.size),
                    BarKind::Memory32 => take(0, bar.size),
                    BarKind::Memory64 { .. } => take(1, bar.size).or_else(|| take(0, bar.size)),
                };
                let place = place.ok_or(PciError::NoRoom { name, bar: bar.bar, size: bar.size })?;
                slot.chip.config_mut().place_bar(bar.bar, place);
            }
        }
        self.assign = true;
        self.reroute();
        Ok(())
    }

    fn reroute(&mut self) {
        self.routes.clear();
        for (index, slot) in self.slots.iter().enumerate() {
            for bar in slot.chip.config().bars().filter(|bar| bar.enabled) {
                let io = bar.kind == BarKind::Io;
                self.routes.push(Route { io, base: bar.address, size: bar.size, slot: index, bar: bar.bar });
            }
        }
    }

    fn route(&self, io: bool, address: u64, width: u8) -> Option<(usize, u8, u64)> {
        // The guest may put BARs on top of each other; then the first slot wins.
        let route = self.routes.iter().find(|r| r.io == io && address.wrapping_sub(r.base) < r.size)?;
        let offset = address - route.base;
        // An access across the end of a BAR reaches nothing: no function sees an offset outside its BAR.
        (u64::from(width) <= route.size - offset).then_some((route.slot, route.bar, offset))
    }

    fn window_address(&self, access: Access) -> Option<(bool, u64)> {
        let (io, window) = match access.region {
            PciRoot::MEMORY32 => (false, self.windows.memory32),
            PciRoot::MEMORY64 => (false, self.windows.memory64),
            PciRoot::IO => (true, self.windows.io),
            _ => return None,
        };
        (access.offset < window.len).then(|| (io, window.base + access.offset))
    }

    /// Returns the slot for `bdf`, which is bus, device and function as in CONFIG_ADDRESS bits 23:8.
    fn config_slot(&self, bdf: u32) -> Option<usize> {
        let (device, function) = ((bdf >> 3 & 0x1f) as u8, (bdf & 7) as u8);
        let on_bus_0 = bdf >> 8 == 0;
        self.slots.iter().position(|s| on_bus_0 && (s.device, s.function) == (device, function))
    }

    fn config_read(&mut self, bdf: u32, offset: u16, width: u8) -> u64 {
        let Some(slot) = self.config_slot(bdf) else { return u64::MAX };
        let chip = &mut self.slots[slot].chip;
        match width {
            8 => u64::from(chip.config_read(offset, 4)) | u64::from(chip.config_read(offset.wrapping_add(4), 4)) << 32,
            _ => u64::from(chip.config_read(offset, width)),
        }
    }

    fn config_write(&mut self, bdf: u32, offset: u16, width: u8, value: u64) {
        let Some(slot) = self.config_slot(bdf) else { return };
        let chip = &mut self.slots[slot].chip;
        chip.config_write(offset, width.min(4), value as u32);
        if width == 8 {
            chip.config_write(offset.wrapping_add(4), 4, (value >> 32) as u32);
        }
        // Only the command register and the BARs move windows.
        if offset < 0x28 {
            self.reroute();
        }
    }

    fn ports_read(&mut self, offset: u64, width: u8) -> u64 {
        match (offset, width) {
            (0, 4) => u64::from(self.config_address),
            (1, 1) => u64::from(self.reset_control),
            (4..=7, 1 | 2 | 4) if self.config_address & CONFIG_ENABLE != 0 => {
                let register = (self.config_address & 0xfc) as u16 + (offset - 4) as u16;
                self.config_read(self.config_address >> 8 & 0xffff, register, width)
            }
            _ => u64::MAX,
        }
    }

    fn ports_write(&mut self, offset: u64, width: u8, value: u64) {
        match (offset, width) {
            // Bits 30:24 and 1:0 are reserved and read as zeros.
            (0, 4) => self.config_address = value as u32 & 0x80ff_fffc,
            (1, 1) => {
                // Only the edge resets. A guest first writes the type of reset, and then the same
                // with this bit.
                let rising = value as u8 & RST_CNT_NOW & !self.reset_control;
                self.reset_control = value as u8 & RST_CNT_WRITABLE;
                if rising != 0 {
                    self.attention.stop(MachineExit::Reboot);
                }
            }
            (4..=7, 1 | 2 | 4) if self.config_address & CONFIG_ENABLE != 0 => {
                let register = (self.config_address & 0xfc) as u16 + (offset - 4) as u16;
                self.config_write(self.config_address >> 8 & 0xffff, register, width, value);
            }
            _ => {}
        }
    }
}

impl Device for PciRoot {
    fn name(&self) -> &'static str {
        KIND
    }

    fn read(&mut self, access: Access) -> u64 {
        match access.region {
            PciRoot::PORTS => self.ports_read(access.offset, access.width),
            PciRoot::ECAM => {
                let bdf = u32::try_from(access.offset >> 12).unwrap_or(u32::MAX);
                self.config_read(bdf, (access.offset & 0xfff) as u16, access.width)
            }
            _ => {
                let target = self.window_address(access).and_then(|(io, address)| self.route(io, address, access.width));
                let Some((slot, bar, offset)) = target else { return u64::MAX };
                let chip = &mut self.slots[slot].chip;
                match chip.config().msix_read(bar, offset, access.width) {
                    Some(value) => value,
                    None => chip.bar_read(bar, offset, access.width),
                }
            }
        }
    }

    fn write(&mut self, access: Access, value: u64) {
        match access.region {
            PciRoot::PORTS => self.ports_write(access.offset, access.width, value),
            PciRoot::ECAM => {
                let bdf = u32::try_from(access.offset >> 12).unwrap_or(u32::MAX);
                self.config_write(bdf, (access.offset & 0xfff) as u16, access.width, value);
            }
            _ => {
                let target = self.window_address(access).and_then(|(io, address)| self.route(io, address, access.width));
                let Some((slot, bar, offset)) = target else { return };
                let chip = &mut self.slots[slot].chip;
                if !chip.config_mut().msix_write(bar, offset, access.width, value) {
                    chip.bar_write(bar, offset, access.width, value);
                }
            }
        }
    }

    fn quiesce(&mut self) -> bool {
        self.slots.iter_mut().fold(true, |quiet, slot| slot.chip.quiesce() & quiet)
    }

    fn resume(&mut self) {
        self.slots.iter_mut().for_each(|slot| slot.chip.resume());
    }

    fn reset(&mut self) {
        self.config_address = 0;
        self.reset_control = 0;
        self.slots.iter_mut().for_each(|slot| slot.chip.reset());
        if self.assign {
            self.assign_bars().expect("the same BARs found room before");
        }
        self.reroute();
    }

    fn save(&self) -> Section {
        let functions = self.slots.iter().map(|s| (s.device, s.function, s.chip.save())).collect();
        let state = State { config_address: self.config_address, reset_control: self.reset_control, functions };
        Section::encode(KIND, VERSION, &state)
    }

    fn load(&mut self, section: &Section) -> Result<(), StateError> {
        let state: State = section.decode(KIND, VERSION)?;
        let damaged = |why: &str| StateError::Damaged { kind: KIND, why: why.to_string() };
        if state.config_address & !0x80ff_fffc != 0 || state.reset_control & !RST_CNT_WRITABLE != 0 {
            return Err(damaged("a reserved bit is set"));
        }
        let places = self.slots.iter().map(|s| (s.device, s.function));
        if !places.eq(state.functions.iter().map(|&(device, function, _)| (device, function))) {
            return Err(damaged("it is of a machine with other PCI functions"));
        }
        // All or nothing: a machine with half of its functions restored cannot run.
        let before: Vec<Section> = self.slots.iter().map(|s| s.chip.save()).collect();
        for (index, (_, _, function)) in state.functions.iter().enumerate() {
            if let Err(error) = self.slots[index].chip.load(function) {
                for (slot, section) in self.slots.iter_mut().zip(&before[..index]) {
                    slot.chip.load(section).expect("a function takes back the state that it just gave");
                }
                return Err(error);
            }
        }
        self.config_address = state.config_address;
        self.reset_control = state.reset_control;
        self.reroute();
        Ok(())
    }

    fn deadline_ns(&self) -> Option<u64> {
        self.slots.iter().filter_map(|s| s.chip.deadline_ns()).min()
    }

    fn poll(&mut self, now_ns: u64) {
        self.slots.iter_mut().for_each(|s| s.chip.poll(now_ns));
    }
}

/// Function 00:00.0: QEMU's generic PCI Express host bridge (1b36:0008), for which no system has a driver or a quirk.
struct HostBridge {
    config: ConfigSpace,
}

const BRIDGE: &str = "pci-host-bridge";

/// The PCI Express capability: its id, and its length in its second version, with the two header bytes.
const CAP_ID_EXPRESS: u8 = 0x10;
const EXPRESS_LEN: usize = 0x3c;

impl HostBridge {
    fn new() -> HostBridge {
        let identity = Identity {
            vendor: 0x1b36,
            device: 0x0008,
            class: 0x06_00_00,
            revision: 0,
            subsystem_vendor: 0x1af4,
            subsystem: 0x1100,
        };
        let mut config = ConfigSpace::new(&identity);
        // FreeBSD uses no MSI and no MSI-X on a machine in which no function has this capability (`sys/dev/pci/pci.c`
        // pci_msi_blacklisted): it takes the chipset for one older than PCI Express.
        config.add_capability(CAP_ID_EXPRESS, &express_endpoint(), &[]);
        HostBridge { config }
    }
}

/// Returns the body of a PCI Express capability for an endpoint that is integrated into the root complex and has no link:
/// payloads of 128 bytes, no error reporting, nothing to control, so every register but the first two is zero.
fn express_endpoint() -> [u8; EXPRESS_LEN - 2] {
    const VERSION: u16 = 2;
    const INTEGRATED_ENDPOINT: u16 = 9 << 4;
    const ROLE_BASED_ERRORS: u32 = 1 << 15;
    let mut body = [0; EXPRESS_LEN - 2];
    body[..2].copy_from_slice(&(VERSION | INTEGRATED_ENDPOINT).to_le_bytes());
    body[2..6].copy_from_slice(&ROLE_BASED_ERRORS.to_le_bytes());
    body
}

impl PciDevice for HostBridge {
    fn name(&self) -> &'static str {
        BRIDGE
    }
    fn config(&self) -> &ConfigSpace {
        &self.config
    }
    fn config_mut(&mut self) -> &mut ConfigSpace {
        &mut self.config
    }
    fn bar_read(&mut self, _: u8, _: u64, _: u8) -> u64 {
        u64::MAX
    }
    fn bar_write(&mut self, _: u8, _: u64, _: u8, _: u64) {}
    fn reset(&mut self) {
        self.config.reset();
    }
    fn save(&self) -> Section {
        Section::encode(BRIDGE, 1, &self.config.save())
    }
    fn load(&mut self, section: &Section) -> Result<(), StateError> {
        let state: ConfigState = section.decode(BRIDGE, 1)?;
        self.config.load(BRIDGE, &state)
    }
}
