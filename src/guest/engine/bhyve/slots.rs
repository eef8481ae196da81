//! PCI addresses of a guest's devices: decided once, kept in the state, stable under edits.
//!
//! A guest finds its disks and interfaces by these addresses (Windows, and the interface names of Linux), so a device
//! keeps its address until it is removed. Bus 0 is filled from slot 3, where firmware and Windows look for disks first;
//! slot 0 is the host bridge and slot 31 the LPC bridge, where Windows wants them; 29 and 30 are the screen and the
//! tablet, as in FreeBSD's handbook. When bus 0 is full, buses 1 to 255 follow.
//!
//! `pci_emul.c` pci_parse_slot refuses an address that is taken, and knows 256 buses (MAXBUSES) of 32 slots (MAXSLOTS)
//! of 8 functions (MAXFUNCS). A guest looks for the other functions of a slot only when there is a function 0.

use std::collections::BTreeMap;

use crate::config::{DeviceKey, DiskConfig, GuestConfig, Hostbridge, PciAddress};
use crate::guest::error::{GuestError, Result};
use crate::guest::state::GuestState;

/// A device of the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// Name of the device.
    pub name: DeviceKey,
    /// The key of the guest file that it comes from.
    pub key: String,
    /// Address in the guest file.
    fixed: Option<PciAddress>,
    /// Preferred address, if that is free.
    preferred: Option<PciAddress>,
}

/// Returns the name of a disk's device: its own, or the controller that it shares.
pub fn disk_device(disk: &DiskConfig) -> DeviceKey {
    match &disk.controller {
        Some(controller) => DeviceKey::Controller(controller.clone()),
        None => DeviceKey::Disk(disk.id.clone()),
    }
}

/// Returns the devices of a guest, in the order in which they get addresses.
pub fn devices(config: &GuestConfig) -> Vec<Device> {
    let mut found: Vec<Device> = Vec::new();
    let mut add = |name: DeviceKey, key: String, own: Option<PciAddress>, preferred: Option<u8>| {
        let listed =
            config.bhyve.slots.iter().find(|(wanted, _)| wanted.parse().as_ref() == Ok(&name)).map(|(_, address)| *address);
        if !found.iter().any(|device| device.name == name) {
            found.push(Device { name, key, fixed: own.or(listed), preferred: preferred.map(PciAddress::slot) });
        }
    };
    if config.bhyve.hostbridge != Hostbridge::None {
        add(DeviceKey::Hostbridge, "bhyve.hostbridge".into(), None, Some(0));
    }
    add(DeviceKey::Lpc, "console".into(), None, Some(31));
    for disk in &config.disks {
        add(disk_device(disk), format!("disks.{}", disk.id), disk.slot, None);
    }
    for nic in &config.nics {
        add(DeviceKey::Nic(nic.id.clone()), format!("nics.{}", nic.id), nic.slot, None);
    }
    for device in &config.passthru {
        add(DeviceKey::Passthru(device.id.clone()), format!("passthru.{}", device.id), device.slot, None);
    }
    if let Some(graphics) = &config.graphics {
        add(DeviceKey::Graphics, "graphics".into(), graphics.slot, Some(29));
        if graphics.tablet {
            add(DeviceKey::Tablet, "graphics.tablet".into(), None, Some(30));
        }
    }
    if config.rng {
        add(DeviceKey::Rng, "rng".into(), None, None);
    }
    if !config.channels.is_empty() {
        add(DeviceKey::Channels, "channels".into(), None, None);
    }
    if config.sound.is_some() {
        add(DeviceKey::Sound, "sound".into(), None, None);
    }
    for input in &config.inputs {
        add(DeviceKey::Input(input.id.clone()), format!("inputs.{}", input.id), None, None);
    }
    for share in &config.shares {
        add(DeviceKey::Share(share.id.clone()), format!("shares.{}", share.id), None, None);
    }
    found
}

/// Gives every device an address. A device with an address keeps it unless the guest file puts another device there.
pub fn assign(config: &GuestConfig, state: &mut GuestState) -> Result<()> {
    let devices = devices(config);
    let mut taken: BTreeMap<PciAddress, &Device> = BTreeMap::new();
    for device in &devices {
        let Some(address) = device.fixed else { continue };
        if let Some(other) = taken.insert(address, device) {
            let message = format!("`{}` and `{}` are both at the PCI address {address}", other.key, device.key);
            return Err(GuestError::user(message).hint("give one of them another `slot`, or none"));
        }
    }
    for device in devices.iter().filter(|device| device.fixed.is_none()) {
        if let Some(address) = state.addresses.get(&device.name).copied().filter(|address| !taken.contains_key(address)) {
            taken.insert(address, device);
        }
    }
    for device in &devices {
        if taken.values().any(|other| other.name == device.name) {
            continue;
        }
        let free = |address: &PciAddress| !taken.keys().any(|other| (other.bus, other.slot) == (address.bus, address.slot));
        let Some(address) = device.preferred.filter(free).or_else(|| candidates().find(free)) else {
            return Err(GuestError::user(format!("`{}` has more devices than there are PCI slots", config.name)));
        };
        taken.insert(address, device);
    }
    for (address, device) in &taken {
        let first = PciAddress { function: 0, ..*address };
        if !taken.contains_key(&first) {
            let message = format!("`{}` is at the PCI address {address}, and nothing is at {first}", device.key);
            return Err(GuestError::user(message).hint("a guest looks for the other functions of a slot only with function 0"));
        }
        if device.name == DeviceKey::Lpc && address.bus != 0 {
            return Err(GuestError::user(format!("the LPC bridge is at {address}, and bhyve(8) has it only on bus 0")));
        }
    }
    state.addresses = taken.iter().map(|(address, device)| (device.name.clone(), *address)).collect();
    Ok(())
}

/// Returns addresses for a device without a fixed or previous one, in order of preference.
fn candidates() -> impl Iterator<Item = PciAddress> {
    let first = (3..=28).chain([2, 1, 30, 29, 31, 0]).map(PciAddress::slot);
    let rest = (1..=u8::MAX).flat_map(|bus| (1..=31).map(move |slot| PciAddress { bus, slot, function: 0 }));
    first.chain(rest)
}
