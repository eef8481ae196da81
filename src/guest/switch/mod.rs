//! Conversion of the switches of the host file and of fleets for the host's tools.

pub mod taps; // taps of the embedded engine

use std::time::Duration;

use crate::config::{HostConfig, NicConfig, SwitchConfig, SwitchKind};
use crate::host::dnsmasq::Range;
use crate::host::ifconfig::Prefix;
use crate::host::switch::{Kind, Switch};

use super::error::{GuestError, Result};

/// Duration of a lease.
const LEASE: Duration = Duration::from_secs(12 * 3600);

/// Converts one switch.
pub fn switch(config: &SwitchConfig) -> Switch {
    Switch {
        id: config.id.clone(),
        kind: match &config.kind {
            SwitchKind::Bridge => Kind::Bridge,
            SwitchKind::Manual { bridge } => Kind::Manual { bridge: bridge.clone() },
            SwitchKind::Vxlan { vni, group } => Kind::Vxlan { vni: *vni, group: *group },
            SwitchKind::Netgraph { node, ours } => Kind::Netgraph { node: node.clone(), ours: *ours },
            SwitchKind::Vale => Kind::Vale,
        },
        uplinks: config.uplinks.clone(),
        vlan: config.vlan,
        addresses: config.addresses.iter().map(|address| Prefix { address: address.address, length: address.prefix }).collect(),
        mtu: config.mtu.map(u32::from),
        private: config.private,
        nat: config.nat.is_some(),
        egress: config.nat.as_ref().and_then(|nat| nat.egress.clone()),
        dhcp: config.dhcp.as_ref().map(|dhcp| Range { first: dhcp.first, last: dhcp.last, lease: LEASE }),
        dns: config.dhcp.as_ref().map(|dhcp| dhcp.dns.clone()).unwrap_or_default(),
        domain: config.dhcp.as_ref().and_then(|dhcp| dhcp.domain.clone()),
    }
}

/// Returns the switch that an interface is on.
pub fn find<'a>(switches: &'a [SwitchConfig], nic: &NicConfig, id: &str) -> Result<&'a SwitchConfig> {
    switches.iter().find(|switch| switch.id == id).ok_or_else(|| {
        let known: Vec<_> = switches.iter().map(|switch| format!("`{}`", switch.id)).collect();
        let error = GuestError::user(format!("nic `{}`: no switch is called `{id}`", nic.id));
        match known.is_empty() {
            true => error.hint("add one to the host file, or to a fleet file: `[[switches]]` with `id` and `uplinks`"),
            false => error.hint(format!("there are: {}", known.join(", "))),
        }
    })
}

/// Returns the bridge of a switch.
pub fn bridge_of(nic: &NicConfig, config: &SwitchConfig) -> Result<String> {
    switch(config).bridge().ok_or_else(|| {
        GuestError::user(format!("nic `{}`: the switch `{}` takes no taps", nic.id, config.id))
            .hint("set `backend` to the switch's own type")
    })
}

/// Returns the switches of these names, or all of them.
pub fn chosen(host: &HostConfig, names: &[String]) -> Result<Vec<Switch>> {
    if names.is_empty() {
        return Ok(host.switches.iter().map(switch).collect());
    }
    names.iter().map(|name| named(host, name)).collect()
}

/// Returns the switch of this name.
pub fn named(host: &HostConfig, name: &str) -> Result<Switch> {
    host.switches.iter().find(|config| config.id == name).map(switch).ok_or_else(|| {
        let known: Vec<String> = host.switches.iter().map(|config| format!("`{}`", config.id)).collect();
        let hint = match known.is_empty() {
            true => format!("add `[[switches]]` with `id = \"{name}\"` to the host file or a fleet file"),
            false => format!("there are: {}", known.join(", ")),
        };
        GuestError::user(format!("no switch is called `{name}`")).hint(hint)
    })
}
