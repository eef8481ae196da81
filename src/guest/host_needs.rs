//! Needs of a datastore's guests and switches on a FreeBSD host, for `vmctl doctor`, `host setup` and `jail`.

use crate::config::{EngineKind, GuestConfig, HostConfig, LoaderKind, PassthruDevice, SwitchKind, Tpm};
use crate::host::doctor::freebsd::Needs;
use crate::host::jail::JailNeeds;
use crate::host::setup::Uses;
use crate::host::zfs;

use super::definition::{Definition, Surroundings};
use super::engine::bhyve::needs::has_taps;
use super::provision;
use super::snapshot;
use super::store::{GuestDir, Store};
use super::switch;

/// Returns the guests whose files can be read, with their configurations.
fn guests(store: &Store, surroundings: Surroundings<'_>) -> Vec<(GuestDir, GuestConfig)> {
    let names = store.names().unwrap_or_default();
    let read = |name: String| {
        let guest = store.guest(&name).ok()?;
        let config = Definition::load(&guest, surroundings).ok()?.config;
        Some((guest, config))
    };
    names.into_iter().filter_map(read).collect()
}

fn has_limits(config: &GuestConfig) -> bool {
    let limits = &config.limits;
    limits.cpu_percent.is_some()
        || limits.read_bps.is_some()
        || limits.write_bps.is_some()
        || limits.read_iops.is_some()
        || limits.write_iops.is_some()
}

/// Returns the needs for `vmctl doctor`.
pub fn needs(store: &Store, surroundings: Surroundings<'_>) -> Needs {
    let mut needs = Needs {
        #[cfg(target_os = "linux")]
        switches: Some(surroundings.host.switches.iter().map(|switch| switch.id.clone()).collect()),
        nat: surroundings.host.switches.iter().any(|switch| switch.nat.is_some()),
        dhcp: surroundings.host.switches.iter().any(|switch| switch.dhcp.is_some()),
        ..Needs::default()
    };
    let mut jails: Vec<String> = Vec::new();
    for (guest, config) in guests(store, surroundings).iter().filter(|(_, config)| config.engine == EngineKind::Bhyve) {
        needs.uefi |= config.uefi.as_ref().is_some_and(|uefi| uefi.firmware.is_none());
        needs.grub |= config.loader == LoaderKind::Grub;
        needs.bhyveload |= config.loader == LoaderKind::Bhyveload;
        needs.swtpm |= matches!(config.tpm, Some(Tpm::Swtpm));
        needs.limits |= has_limits(config);
        needs.passthru |= !config.passthru.is_empty();
        needs.cached_twice.extend(snapshot::cached_twice(guest, config));
        jails.extend(config.jail.iter().map(|jail| jail.name.clone()));
    }
    jails.sort();
    jails.dedup();
    needs.jails = jails.into_iter().map(|name| jail(&name, None, store, surroundings)).collect();
    needs
}

/// Returns the needs for `vmctl host setup`.
pub fn uses(store: &Store, surroundings: Surroundings<'_>) -> Uses {
    let mut uses = Uses {
        nat: surroundings.host.switches.iter().any(|switch| switch.nat.is_some()),
        manual_bridges: manual_bridges(surroundings.host),
        ..Uses::default()
    };
    for (_, config) in guests(store, surroundings).iter().filter(|(_, config)| config.engine == EngineKind::Bhyve) {
        uses.limits |= has_limits(config);
        uses.stop_seconds = uses.stop_seconds.max(config.stop_timeout.as_secs());
        for device in &config.passthru {
            if let PassthruDevice::Address(address) = device.device {
                uses.passthru.push(format!("{}/{}/{}", address.bus, address.slot, address.function));
            }
        }
    }
    uses.passthru.sort();
    uses.passthru.dedup();
    uses.amd = crate::host::program::run("sysctl", &["-n", "hw.model"]).is_ok_and(|model| model.contains("AMD"));
    uses
}

fn manual_bridges(host: &HostConfig) -> Vec<String> {
    let bridge = |kind: &SwitchKind| match kind {
        SwitchKind::Manual { bridge } => Some(bridge.clone()),
        _ => None,
    };
    host.switches.iter().filter_map(|switch| bridge(&switch.kind)).collect()
}

/// Returns the needs of a jail for all the guests that run in it.
pub fn jail(name: &str, ruleset: Option<u32>, store: &Store, surroundings: Surroundings<'_>) -> JailNeeds {
    let rules = std::fs::read_to_string("/etc/devfs.rules").unwrap_or_default();
    let mut needs = JailNeeds {
        name: name.to_owned(),
        root: format!("/jails/{name}").into(),
        ruleset: ruleset.unwrap_or_else(|| crate::host::jail::free_ruleset(&rules)),
        volumes: Vec::new(),
        // Names of null modems and taps are chosen when a guest boots.
        nodes: vec!["nmdm-vmctl-*".into(), "tap*".into()],
        passthru: false,
        taps: false,
        bridges: Vec::new(),
    };
    for (guest, config) in guests(store, surroundings) {
        let Some(jail) = config.jail.as_ref().filter(|jail| jail.name == name) else { continue };
        if let Some(root) = &jail.root {
            needs.root.clone_from(root);
        }
        needs.passthru |= !config.passthru.is_empty();
        let volumes = config.disks.iter().filter_map(|disk| zfs::volume_of_device(&provision::disk_path(&guest, disk).ok()?));
        needs.volumes.extend(volumes);
        needs.taps |= has_taps(&config);
        let switches = config.nics.iter().filter_map(|nic| nic.switch.as_ref());
        let found = switches.filter_map(|id| surroundings.host.switches.iter().find(|switch| switch.id == *id));
        needs.bridges.extend(found.filter_map(|config| switch::switch(config).bridge()));
    }
    needs.bridges.sort();
    needs.bridges.dedup();
    needs.volumes.sort();
    needs.volumes.dedup();
    needs
}
