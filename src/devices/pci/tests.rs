use super::config::BarWindow;
use super::*;
use crate::devices::conformance;
use crate::hypervisor::backend::MachineExit;
use crate::hypervisor::bus::{Access, Device};
use crate::hypervisor::irq::{IrqLine, IrqProbe};
use crate::hypervisor::waking::Attention;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

const WINDOWS: Windows = Windows {
    memory32: Window { base: 0xc000_0000, len: 0x1000_0000 },
    memory64: Window { base: 0x80_0000_0000, len: 0x1_0000_0000 },
    io: Window { base: 0x6000, len: 0x2000 },
};

/// A function with a scratch register in each BAR.
struct Scratch {
    config: ConfigSpace,
    regs: [u64; 6],
}

#[derive(Serialize, Deserialize)]
struct ScratchState {
    config: ConfigState,
    regs: [u64; 6],
}

impl Scratch {
    fn new(probe: &Arc<IrqProbe>) -> Scratch {
        let identity =
            Identity { vendor: 0x1234, device: 0x5678, class: 0x02_00_00, revision: 3, subsystem_vendor: 1, subsystem: 2 };
        let mut config = ConfigSpace::new(&identity);
        config.add_bar(0, BarKind::Io, 0x20);
        config.add_bar(1, BarKind::Memory32, 0x1000);
        config.add_bar(4, BarKind::Memory64 { prefetchable: true }, 0x4000);
        config.add_capability(9, &[1, 2, 3], &[0, 0xff, 0]);
        config.add_msix(1, 0x800, 0xc00, 4, probe.clone());
        config.set_intx(1, IrqLine::new(probe.clone(), 17));
        Scratch { config, regs: [0; 6] }
    }
}

impl PciDevice for Scratch {
    fn name(&self) -> &'static str {
        "scratch"
    }
    fn config(&self) -> &ConfigSpace {
        &self.config
    }
    fn config_mut(&mut self) -> &mut ConfigSpace {
        &mut self.config
    }
    fn bar_read(&mut self, bar: u8, _: u64, _: u8) -> u64 {
        self.regs[usize::from(bar)]
    }
    fn bar_write(&mut self, bar: u8, _: u64, _: u8, value: u64) {
        self.regs[usize::from(bar)] = value;
    }
    fn reset(&mut self) {
        self.config.reset();
        self.regs = [0; 6];
    }
    fn save(&self) -> Section {
        Section::encode("scratch", 1, &ScratchState { config: self.config.save(), regs: self.regs })
    }
    fn load(&mut self, section: &Section) -> Result<(), StateError> {
        let state: ScratchState = section.decode("scratch", 1)?;
        self.config.load("scratch", &state.config)?;
        self.regs = state.regs;
        Ok(())
    }
}

fn root() -> (PciRoot, Arc<IrqProbe>, Arc<Attention>) {
    let (probe, attention) = (IrqProbe::new(), Attention::new(1));
    let mut root = PciRoot::new(WINDOWS, attention.clone());
    root.add(3, 0, Box::new(Scratch::new(&probe))).unwrap();
    (root, probe, attention)
}

fn port(root: &mut PciRoot, offset: u64, width: u8, value: Option<u64>) -> u64 {
    let access = Access { region: PciRoot::PORTS, offset, width };
    match value {
        Some(value) => root.write(access, value),
        None => return root.read(access) & (u64::MAX >> (64 - 8 * width)),
    }
    0
}

fn cfg(device: u64, offset: u64) -> u64 {
    1 << 31 | device << 11 | offset
}

fn cfg_read(root: &mut PciRoot, device: u64, offset: u64) -> u32 {
    port(root, 0, 4, Some(cfg(device, offset)));
    port(root, 4, 4, None) as u32
}

fn cfg_write(root: &mut PciRoot, device: u64, offset: u64, value: u32) {
    port(root, 0, 4, Some(cfg(device, offset)));
    port(root, 4, 4, Some(u64::from(value)));
}

fn mem(root: &mut PciRoot, address: u64, width: u8) -> u64 {
    root.read(Access { region: PciRoot::MEMORY32, offset: address - WINDOWS.memory32.base, width })
}

fn mem_write(root: &mut PciRoot, address: u64, width: u8, value: u64) {
    root.write(Access { region: PciRoot::MEMORY32, offset: address - WINDOWS.memory32.base, width }, value);
}

#[test]
fn a_scan_finds_the_bridge_and_the_function_and_nothing_else() {
    let (mut root, ..) = root();
    let found: Vec<_> = (0..32).filter(|&d| cfg_read(&mut root, d, 0) != u32::MAX).collect();
    assert_eq!(found, [0, 3]);
    assert_eq!(cfg_read(&mut root, 3, 0), 0x5678_1234);
    assert_eq!(cfg_read(&mut root, 3, 8), 0x0200_0003);
    port(&mut root, 0, 4, Some(cfg(3, 0) | 1 << 16));
    assert_eq!(port(&mut root, 4, 4, None) as u32, u32::MAX, "bus 1 is empty");
    let ecam = Access { region: PciRoot::ECAM, offset: 3 << 15, width: 4 };
    assert_eq!(root.read(ecam), 0x5678_1234);
    assert_eq!(root.read(Access { offset: 3 << 15 | 0x100, ..ecam }), 0, "no extended capability");
}

#[test]
fn the_bridge_is_a_pci_express_function_without_which_freebsd_uses_no_message_signalled_interrupts() {
    let (mut root, ..) = root();
    assert_ne!(cfg_read(&mut root, 0, 4) & 1 << 20, 0, "there are capabilities");
    let at = u64::from(cfg_read(&mut root, 0, 0x34) & 0xff);
    let header = cfg_read(&mut root, 0, at);
    assert_eq!(header & 0xffff, 0x10, "PCI Express, and the last one");
    assert_eq!(header >> 16, 0x92, "version 2, integrated endpoint");
    assert_eq!(cfg_read(&mut root, 0, at + 4), 1 << 15);
    for offset in (8..0x3c).step_by(4) {
        cfg_write(&mut root, 0, at + offset, u32::MAX);
        assert_eq!(cfg_read(&mut root, 0, at + offset), 0, "{offset:#x}: nothing to control");
    }
}

#[test]
fn writing_ones_to_a_bar_tells_its_size() {
    let (mut root, ..) = root();
    for (offset, size) in [(0x10, 0xffff_ffe1u32), (0x14, 0xffff_f000), (0x18, 0), (0x20, 0xffff_c00c), (0x24, u32::MAX)] {
        cfg_write(&mut root, 3, offset, u32::MAX);
        assert_eq!(cfg_read(&mut root, 3, offset), size, "{offset:#x}");
    }
}

#[test]
fn an_access_reaches_the_function_wherever_its_bar_was_moved() {
    let (mut root, ..) = root();
    cfg_write(&mut root, 3, 0x14, 0xc010_0000);
    assert_eq!(mem(&mut root, 0xc010_0000, 4), u64::MAX, "memory decoding is off");
    cfg_write(&mut root, 3, 4, 7);
    mem_write(&mut root, 0xc010_0010, 4, 42);
    assert_eq!(mem(&mut root, 0xc010_0000, 4), 42);
    cfg_write(&mut root, 3, 0x14, 0xc020_0000);
    assert_eq!(mem(&mut root, 0xc010_0000, 4), u64::MAX);
    assert_eq!(mem(&mut root, 0xc020_0000, 4), 42);
    assert_eq!(mem(&mut root, 0xc020_0ffe, 4), u64::MAX, "an access that leaves the BAR");
    cfg_write(&mut root, 3, 0x20, 0x1_0000);
    cfg_write(&mut root, 3, 0x24, 0x80);
    let high = Access { region: PciRoot::MEMORY64, offset: 0x1_0008, width: 8 };
    root.write(high, 0x1234_5678_9abc);
    assert_eq!(root.read(high), 0x1234_5678_9abc);
}

#[test]
fn assigned_bars_are_in_their_windows_and_come_back_after_a_reset() {
    let (mut root, probe, _) = root();
    root.add(4, 0, Box::new(Scratch::new(&probe))).unwrap();
    root.assign_bars().unwrap();
    let places = |root: &mut PciRoot| -> Vec<BarWindow> {
        (3..5).flat_map(|d| root.function_mut(d, 0).unwrap().config().bars().collect::<Vec<_>>()).collect()
    };
    let before = places(&mut root);
    assert!(before.iter().all(|b| b.enabled && b.address % b.size == 0));
    assert_eq!(
        before.iter().map(|b| b.address).collect::<Vec<_>>(),
        [0x6000, 0xc000_0000, 0x80_0000_0000, 0x6020, 0xc000_1000, 0x80_0000_4000]
    );
    cfg_write(&mut root, 3, 0x14, 0xc020_0000);
    root.reset();
    assert_eq!(places(&mut root), before);
}

#[test]
fn a_window_that_is_too_small_is_said() {
    let probe = IrqProbe::new();
    let mut root = PciRoot::new(Windows { io: Window { base: 0x1000, len: 0x10 }, ..WINDOWS }, Attention::new(1));
    root.add(1, 0, Box::new(Scratch::new(&probe))).unwrap();
    assert_eq!(root.assign_bars(), Err(PciError::NoRoom { name: "scratch", bar: 0, size: 0x20 }));
}

#[test]
fn places_that_do_not_exist_or_are_taken_are_refused() {
    let (mut root, probe, _) = root();
    let scratch = || Box::new(Scratch::new(&probe));
    assert_eq!(root.add(32, 0, scratch()), Err(PciError::NoSuchDevice(32)));
    assert_eq!(root.add(1, 8, scratch()), Err(PciError::NoSuchFunction(8)));
    assert_eq!(root.add(3, 0, scratch()), Err(PciError::Taken(3, 0, "scratch")));
    assert_eq!(root.add(5, 1, scratch()), Err(PciError::NoFunctionZero(5, 1)));
    root.add(3, 1, scratch()).unwrap();
    assert_eq!(cfg_read(&mut root, 3, 0x0c) >> 16 & 0xff, 0x80, "function 0 says that there are more");
}

#[test]
fn capabilities_are_linked_and_only_their_writable_bits_change() {
    let (mut root, ..) = root();
    assert_eq!(cfg_read(&mut root, 3, 0x34), 0x40);
    assert_eq!(cfg_read(&mut root, 3, 0x40), 0x0201_4809);
    assert_eq!(cfg_read(&mut root, 3, 0x48), 0x0003_0011);
    assert_eq!(cfg_read(&mut root, 3, 0x4c), 0x801);
    assert_eq!(cfg_read(&mut root, 3, 0x50), 0xc01);
    assert_ne!(cfg_read(&mut root, 3, 4) & 1 << 20, 0);
    cfg_write(&mut root, 3, 0x40, u32::MAX);
    assert_eq!(cfg_read(&mut root, 3, 0x40), 0xff01_4809);
}

#[test]
fn a_masked_vector_stays_pending_and_is_sent_when_unmasked() {
    let (mut root, probe, _) = root();
    root.assign_bars().unwrap();
    let table = 0xc000_0800;
    mem_write(&mut root, table + 16, 4, 0xfee0_1000);
    mem_write(&mut root, table + 24, 4, 0x41);
    assert_eq!(mem(&mut root, table + 28, 4), 1, "masked after reset");
    let notify = |root: &mut PciRoot| root.function_mut(3, 0).unwrap().config_mut().notify(1);
    notify(&mut root);
    cfg_write(&mut root, 3, 0x48, 0x8000_0000);
    assert!(probe.take_messages().is_empty(), "before MSI-X was on nothing is kept");
    notify(&mut root);
    assert_eq!(mem(&mut root, table + 0x400, 8), 0b10);
    mem_write(&mut root, table + 28, 4, 0);
    assert_eq!(probe.take_messages(), [(0xfee0_1000, 0x41)]);
    assert_eq!(mem(&mut root, table + 0x400, 8), 0);
    cfg_write(&mut root, 3, 0x48, 0xc000_0000);
    notify(&mut root);
    assert!(probe.take_messages().is_empty());
    cfg_write(&mut root, 3, 0x48, 0x8000_0000);
    assert_eq!(probe.take_messages(), [(0xfee0_1000, 0x41)]);
    root.function_mut(3, 0).unwrap().config_mut().notify(4000);
}

#[test]
fn the_pin_is_held_back_by_the_disable_bit_and_by_msix() {
    let (mut root, probe, _) = root();
    assert_eq!(cfg_read(&mut root, 3, 0x3c) & 0xffff, 0x0111);
    root.function_mut(3, 0).unwrap().config_mut().drive_intx(true);
    assert!(probe.level(17));
    assert_ne!(cfg_read(&mut root, 3, 4) & 1 << 19, 0);
    cfg_write(&mut root, 3, 4, 1 << 10);
    assert!(!probe.level(17));
    assert_ne!(cfg_read(&mut root, 3, 4) & 1 << 19, 0, "the status bit shows the pin all the same");
    cfg_write(&mut root, 3, 4, 0);
    assert!(probe.level(17));
    cfg_write(&mut root, 3, 0x48, 0x8000_0000);
    assert!(!probe.level(17));
}

#[test]
fn a_rising_reset_bit_reboots_the_machine() {
    let (mut root, _, attention) = root();
    port(&mut root, 1, 1, Some(2));
    assert_eq!(attention.stopped(), None);
    assert_eq!(port(&mut root, 1, 1, None), 2);
    port(&mut root, 1, 1, Some(6));
    assert_eq!(attention.stopped(), Some(MachineExit::Reboot));
}

#[test]
fn a_state_of_another_function_is_refused_and_changes_nothing() {
    let (mut root, probe, _) = root();
    let good = root.save();
    root.add(4, 0, Box::new(Scratch::new(&probe))).unwrap();
    assert!(root.load(&good).is_err());
}

#[test]
fn the_root_keeps_the_contract_of_devices() {
    let assigned = || {
        let mut root = root().0;
        root.assign_bars().unwrap();
        root
    };
    let regions = [
        (PciRoot::PORTS, 8),
        (PciRoot::ECAM, PciRoot::ECAM_BYTES),
        (PciRoot::MEMORY32, WINDOWS.memory32.len),
        (PciRoot::MEMORY64, WINDOWS.memory64.len),
        (PciRoot::IO, WINDOWS.io.len),
    ];
    conformance::check(|| root().0, &regions);
    conformance::check(assigned, &regions);
}
