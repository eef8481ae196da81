//! Arguments of the PCI devices: `-s` in the order of their addresses.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::config::{
    AGENT_PORT, BhyveDiskCache, BhyveDiskDevice, BootTarget, Channel, DeviceKey, DiskConfig, DiskDevice, Graphics, GuestConfig,
    Hostbridge, LoaderKind, NicBackend, NicConfig, NicDevice, PassthruDevice, PciAddress,
};
use crate::guest::error::{GuestError, Result};
use crate::host::bhyve as host;

use super::super::slots;
use super::super::word::{Piece, Word};
use super::{Argument, CommandLine, DiskPath, Inputs, Plug, ScreenAddress, slot, value};

/// A device before it is written as an argument.
struct Device {
    model: &'static str,
    /// The parts after the model, between commas.
    parts: Vec<Word>,
    keys: Vec<String>,
}

impl Device {
    fn new(model: &'static str, parts: Vec<Word>, key: &str) -> Self {
        Self { model, parts, keys: vec![key.to_owned()] }
    }
}

/// Adds every device, and after them the variables that `-s` cannot hold.
pub(super) fn devices(inputs: Inputs<'_>, line: &mut CommandLine) -> Result<()> {
    let mut found: BTreeMap<PciAddress, Device> = BTreeMap::new();
    let mut variables: Vec<(String, String)> = Vec::new();
    plain(inputs, &mut found)?;
    disks(inputs, &mut found)?;
    for nic in &inputs.config.nics {
        let address = inputs.address(&DeviceKey::Nic(nic.id.clone()))?;
        let device = interface(inputs, nic, address, &mut variables)?;
        found.insert(address, device);
    }
    for (address, device) in found {
        if !inputs.features.devices.contains(device.model) {
            let release = inputs.features.release();
            let message = format!("`{}`: bhyve(8) of {release} has no device `{}`", device.keys[0], device.model);
            return Err(GuestError::user(message).hint("a later release may have it; `bhyve -s help` shows the host's"));
        }
        let mut text = Word::from(format!("{},{}", slot(address), device.model));
        for part in device.parts {
            text.push(",");
            text.push(part);
        }
        line.arguments.push(Argument { words: vec!["-s".into(), text], keys: device.keys });
    }
    for (variable, key) in variables {
        line.add(["-o".into(), variable], &[&key]);
    }
    Ok(())
}

/// Collects the devices that are neither disks nor interfaces.
fn plain(inputs: Inputs<'_>, found: &mut BTreeMap<PciAddress, Device>) -> Result<()> {
    let config = inputs.config;
    let mut put = |key: DeviceKey, device: Device| {
        found.insert(inputs.address(&key)?, device);
        Ok::<(), GuestError>(())
    };
    match config.bhyve.hostbridge {
        Hostbridge::Standard => put(DeviceKey::Hostbridge, Device::new("hostbridge", vec![], "bhyve.hostbridge"))?,
        Hostbridge::Amd => put(DeviceKey::Hostbridge, Device::new("amd_hostbridge", vec![], "bhyve.hostbridge"))?,
        Hostbridge::None => {}
    }
    put(DeviceKey::Lpc, Device::new("lpc", vec![], "console"))?;
    if config.rng {
        put(DeviceKey::Rng, Device::new("virtio-rnd", vec![], "rng.enabled"))?;
    }
    if let Some(graphics) = &config.graphics {
        put(DeviceKey::Graphics, screen(inputs, graphics)?)?;
        if graphics.tablet {
            put(DeviceKey::Tablet, Device::new("xhci", vec!["tablet".into()], "graphics.tablet"))?;
        }
    }
    if let Some(sound) = &config.sound {
        let mut parts = vec![Word::from(format!("play={}", value(&sound.play, "sound.play")?))];
        if let Some(record) = &sound.record {
            parts.push(format!("rec={}", value(record, "sound.record")?).into());
        }
        put(DeviceKey::Sound, Device::new("hda", parts, "sound"))?;
    }
    if !config.channels.is_empty() {
        let mut parts = Vec::new();
        for channel in &config.channels {
            let key = channel_key(config, channel);
            let socket = inputs.resolved.channels.get(&channel.id);
            let socket = socket.ok_or_else(|| GuestError::host(format!("no socket for channel `{}`", channel.id)))?;
            parts.push(format!("{}={}", channel.id, inputs.value(socket, &key)?).into());
        }
        let keys = config.channels.iter().map(|channel| channel_key(config, channel)).collect();
        put(DeviceKey::Channels, Device { model: "virtio-console", parts, keys })?;
    }
    for input in &config.inputs {
        let key = format!("inputs.{}", input.id);
        let part = inputs.value(&input.path, &key)?;
        put(DeviceKey::Input(input.id.clone()), Device::new("virtio-input", vec![part.into()], &key))?;
    }
    for share in &config.shares {
        let key = format!("shares.{}", share.id);
        let mut parts = vec![Word::from(format!("{}={}", share.id, inputs.value(&share.path, &key)?))];
        parts.extend(share.ro.then(|| "ro".into()));
        put(DeviceKey::Share(share.id.clone()), Device::new("virtio-9p", parts, &key))?;
    }
    for device in &config.passthru {
        let key = format!("passthru.{}", device.id);
        let mut parts: Vec<Word> = match &device.device {
            PassthruDevice::Address(at) => vec![format!("{}/{}/{}", at.bus, at.slot, at.function).into()],
            PassthruDevice::Ppt(name) => {
                inputs.needs(host::PPT_NAMES, &key)?;
                vec![name.as_str().into()]
            }
        };
        if let Some(rom) = &device.rom {
            inputs.needs(host::PASSTHRU_ROM, &key)?;
            parts.push(format!("rom={}", inputs.value(rom, &key)?).into());
        }
        put(DeviceKey::Passthru(device.id.clone()), Device::new("passthru", parts, &key))?;
    }
    Ok(())
}

/// Returns the key that made a port.
fn channel_key(config: &GuestConfig, channel: &Channel) -> String {
    match config.agent && channel.id == AGENT_PORT {
        true => "agent".into(),
        false => format!("channels.{}", channel.id),
    }
}

fn screen(inputs: Inputs<'_>, graphics: &Graphics) -> Result<Device> {
    let listens = inputs.resolved.vnc.as_ref().ok_or_else(|| GuestError::host("no place for VNC to listen at"))?;
    let mut parts: Vec<Word> = Vec::new();
    let mut keys = vec!["graphics".to_owned()];
    match listens {
        ScreenAddress::Socket(path) => {
            inputs.needs(host::VNC_SOCKET, "graphics.socket")?;
            parts.push(format!("rfb=unix:{}", inputs.value(path, "graphics.socket")?).into());
            keys.push("graphics.socket".into());
        }
        ScreenAddress::Tcp { address, port } => {
            let address = match address {
                IpAddr::V4(address) => address.to_string(),
                IpAddr::V6(address) => format!("[{address}]"),
            };
            let port = port.map_or_else(|| Piece::ScreenPort.into(), |port| Word::from(port.to_string()));
            parts.push(Word::from(format!("tcp={address}:")).then(port));
            keys.push("graphics.listen".into());
        }
    }
    if let Some((width, height)) = graphics.resolution {
        if width > 1920 || height > 1200 {
            inputs.needs(host::LARGE_SCREEN, "graphics.resolution")?;
        }
        parts.extend([format!("w={width}").into(), format!("h={height}").into()]);
        keys.push("graphics.resolution".into());
    }
    if let Some(vga) = graphics.vga {
        parts.push(format!("vga={}", vga.as_str()).into());
        keys.push("graphics.vga".into());
    }
    if graphics.wait {
        parts.push("wait".into());
        keys.push("graphics.wait".into());
    }
    Ok(Device { model: "fbuf", parts, keys })
}

/// Collects the disks: each is a device of its own, or those of one controller are together.
fn disks(inputs: Inputs<'_>, found: &mut BTreeMap<PciAddress, Device>) -> Result<()> {
    for disk in &inputs.config.disks {
        let address = inputs.address(&slots::disk_device(disk))?;
        let key = format!("disks.{}", disk.id);
        let mut parts = backing(inputs, disk, &key)?;
        if disk.controller.is_none() {
            found.insert(address, Device::new(disk.device.as_str(), parts, &key));
            continue;
        }
        let kind = if disk.device == DiskDevice::AhciCd { "cd" } else { "hd" };
        parts[0] = Word::from(format!("{kind}:")).then(std::mem::take(&mut parts[0]));
        let device = found.entry(address).or_insert_with(|| Device { model: "ahci", parts: vec![], keys: vec![] });
        device.parts.extend(parts);
        device.keys.push(key);
        // MAX_PORTS of pci_ahci.c.
        if device.keys.len() > 32 {
            let message =
                format!("controller `{}` has more than the 32 disks that fit", disk.controller.as_deref().unwrap_or(""));
            return Err(GuestError::user(message));
        }
    }
    Ok(())
}

/// Returns path and options of a disk.
fn backing(inputs: Inputs<'_>, disk: &DiskConfig, key: &str) -> Result<Vec<Word>> {
    let path = match inputs.resolved.disks.get(&disk.id) {
        Some(DiskPath::File(path)) => inputs.value(path, key)?.into(),
        _ => inputs.disk(disk)?,
    };
    let mut parts: Vec<Word> = vec![path];
    let file = disk.device != DiskDevice::VirtioScsi;
    if disk.ro && file {
        parts.push("ro".into());
    }
    match disk.cache.on_bhyve() {
        Some(BhyveDiskCache::Writethrough) if file => parts.push("direct".into()),
        Some(BhyveDiskCache::None) if file => parts.push("nocache".into()),
        Some(BhyveDiskCache::Writeback | BhyveDiskCache::Writethrough | BhyveDiskCache::None) => {}
        None => return Err(GuestError::host(format!("`{key}`: bhyve(8) has no `cache = \"{}\"`", disk.cache.as_str()))),
    }
    if let Some(size) = disk.sector_size {
        let text = match disk.device {
            DiskDevice::Nvme => format!("sectsz={}", size.logical),
            _ if size.logical == size.physical => format!("sectorsize={}", size.logical),
            _ => format!("sectorsize={}/{}", size.logical, size.physical),
        };
        parts.push(text.into());
    }
    match disk.device.on_bhyve() {
        Some(BhyveDiskDevice::Nvme) if !disk.discard => parts.push("dsm=disable".into()),
        Some(BhyveDiskDevice::VirtioBlk | BhyveDiskDevice::AhciHd) if !disk.discard => parts.push("nodelete".into()),
        Some(BhyveDiskDevice::Nvme | BhyveDiskDevice::VirtioBlk | BhyveDiskDevice::AhciHd) => {}
        Some(BhyveDiskDevice::AhciCd | BhyveDiskDevice::VirtioScsi) => {}
        None => return Err(GuestError::host(format!("`{key}`: bhyve(8) has no `device = \"{}\"`", disk.device.as_str()))),
    }
    if let Some(serial) = &disk.serial
        && file
    {
        parts.push(format!("ser={}", value(serial, key)?).into());
    }
    parts.extend(boot_index(inputs, &BootTarget::Disk(disk.id.clone()))?.map(Word::from));
    parts.extend(disk.options.iter().map(|option| option.as_str().into()));
    Ok(parts)
}

/// Returns the position in the boot order, from 1. Only firmware needs it.
fn boot_index(inputs: Inputs<'_>, target: &BootTarget) -> Result<Option<String>> {
    if inputs.config.loader != LoaderKind::Uefi {
        return Ok(None);
    }
    let Some(at) = inputs.config.boot_order.iter().position(|other| other == target) else { return Ok(None) };
    // Without it firmware finds the medium of an installer by itself, since the disk beside it does not boot yet.
    if *target == BootTarget::Disk(crate::guest::install::DRIVE.to_owned()) && !inputs.features.has(host::BOOT_INDEX) {
        return Ok(None);
    }
    inputs.needs(host::BOOT_INDEX, "boot.order")?;
    Ok(Some(format!("bootindex={}", at + 1)))
}

fn interface(inputs: Inputs<'_>, nic: &NicConfig, address: PciAddress, variables: &mut Vec<(String, String)>) -> Result<Device> {
    let key = format!("nics.{}", nic.id);
    let model = nic.device.as_str();
    let mac = inputs.state.mac(&nic.id).ok_or_else(|| GuestError::host(format!("no address for nic `{}`", nic.id)))?;
    let mut options = vec![format!("mac={mac}")];
    if nic.mtu != 1500 {
        options.push(format!("mtu={}", nic.mtu));
    }
    options.extend(boot_index(inputs, &BootTarget::Nic(nic.id.clone()))?);
    options.extend(nic.options.iter().cloned());
    let plugged = || {
        let name = inputs.resolved.interfaces.get(&nic.id);
        name.ok_or_else(|| GuestError::host(format!("no interface for nic `{}`", nic.id)))
    };
    let name = || match plugged()? {
        Plug::Name(name) => Ok(Word::from(value(name, &key)?)),
        Plug::Tap => Ok(Piece::Tap(nic.id.clone()).into()),
        Plug::Netgraph { .. } => Err(GuestError::host(format!("nic `{}` is on a netgraph node", nic.id))),
    };
    let mut parts: Vec<Word> = match nic.backend {
        NicBackend::None => {
            if nic.device == NicDevice::E1000 {
                let message = format!("`{key}`: bhyve(8) has no e1000 without a cable");
                return Err(GuestError::user(message).hint("set `device = \"virtio-net\"`, or drop the interface"));
            }
            // The first part would be the backend, so the other settings are variables.
            let node = format!("pci.{}.{}.{}", address.bus, address.slot, address.function);
            variables.extend(options.iter().map(|option| (format!("{node}.{option}"), key.clone())));
            return Ok(Device::new(model, vec![], &key));
        }
        NicBackend::User => slirp(inputs, nic, &key)?,
        NicBackend::Tap | NicBackend::Vmnet | NicBackend::Vale => vec![name()?],
        NicBackend::Netmap => vec![Word::from("netmap:").then(name()?)],
        NicBackend::Netgraph => {
            inputs.needs(host::NETGRAPH, &key)?;
            let Plug::Netgraph { path, peerhook } = plugged()? else {
                return Err(GuestError::host(format!("nic `{}` is on no netgraph node", nic.id)));
            };
            let peerhook = match peerhook {
                Some(name) => Word::from(name.as_str()),
                None => Piece::Hook(nic.id.clone()).into(),
            };
            let hook = nic.netgraph.as_ref();
            let mut parts = vec!["netgraph".into(), format!("path={path}").into(), Word::from("peerhook=").then(peerhook)];
            parts.extend(hook.and_then(|hook| hook.hook.as_ref()).map(|hook| format!("hook={hook}").into()));
            parts.extend(hook.and_then(|hook| hook.socket.as_ref()).map(|socket| format!("socket={socket}").into()));
            parts
        }
    };
    parts.extend(options.into_iter().map(Word::from));
    Ok(Device::new(model, parts, &key))
}

/// Sets up the network inside bhyve: 10.0.2.0/24 with the guest at 15, as `net_backend_slirp.c` does.
fn slirp(inputs: Inputs<'_>, nic: &NicConfig, key: &str) -> Result<Vec<Word>> {
    inputs.needs(host::SLIRP, key)?;
    let mut parts: Vec<Word> = vec!["slirp".into()];
    if !nic.user.isolated {
        inputs.needs(host::SLIRP_OPEN, key)?;
        parts.push("open".into());
    }
    let mut rules = Vec::new();
    for forward in &nic.forwards {
        let proto = forward.proto.as_str();
        if forward.host_addr.is_ipv6() {
            let message = format!("`{key}`: bhyve(8) forwards from IPv4 addresses alone, not from `{}`", forward.host_addr);
            return Err(GuestError::user(message));
        }
        rules.push(format!("{proto}:{}:{}-{}:{}", forward.host_addr, forward.host_port, nic.user.guest, forward.guest_port));
    }
    if !rules.is_empty() {
        parts.push(format!("hostfwd={}", rules.join(";")).into());
    }
    Ok(parts)
}
