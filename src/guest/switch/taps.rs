//! Taps of the embedded engine on Linux: what they are on, and opening them for a boot.

use std::os::fd::OwnedFd;

use serde::Serialize;

use crate::config::{GuestConfig, NicBackend, NicConfig, SwitchConfig};
use crate::host::program::is_freebsd;
use crate::host::switch::{Kind, Switch};

use super::{bridge_of, find, switch};
use crate::guest::error::{GuestError, Result};

/// A tap of the next boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct EngineTap {
    /// The guest's interface.
    pub nic: String,
    /// The user's own tap. Without it vmctl makes one.
    pub interface: Option<String>,
    /// The switch, and the bridge that it is.
    pub bridge: Option<(String, String)>,
    /// Whether it cannot talk to the bridge's other private members.
    pub private: bool,
    /// Largest packet, unless it is the kernel's default.
    pub mtu: Option<u16>,
    /// Description of one that vmctl makes.
    pub description: String,
}

/// Returns the taps of a guest, in the order of its interfaces.
pub fn plan(config: &GuestConfig, switches: &[SwitchConfig]) -> Result<Vec<EngineTap>> {
    let taps = config.nics.iter().filter(|nic| nic.backend == NicBackend::Tap);
    taps.map(|nic| tap(&config.name, nic, switches)).collect()
}

fn tap(guest: &str, nic: &NicConfig, switches: &[SwitchConfig]) -> Result<EngineTap> {
    let switch = nic.switch.as_ref().map(|id| find(switches, nic, id)).transpose()?;
    Ok(EngineTap {
        nic: nic.id.clone(),
        interface: nic.interface.clone(),
        bridge: switch.map(|switch| Ok::<_, GuestError>((switch.id.clone(), bridge_of(nic, switch)?))).transpose()?,
        private: nic.private || switch.is_some_and(|switch| switch.private),
        mtu: (nic.mtu != 1500).then_some(nic.mtu).or(switch.and_then(|switch| switch.mtu)),
        description: format!("vmctl/{guest}/{}", nic.id),
    })
}

/// Returns what is wrong with a guest's taps on this kind of host, each with the key that it is about.
pub fn problems(config: &GuestConfig, switches: &[SwitchConfig]) -> Vec<(String, GuestError)> {
    let mut found = Vec::new();
    for nic in config.nics.iter().filter(|nic| nic.backend == NicBackend::Tap) {
        if is_freebsd() || !cfg!(target_os = "linux") {
            let error = GuestError::user(format!("nic `{}`: the embedded engine has taps on Linux only", nic.id))
                .hint("use `engine = \"bhyve\"`, or `backend = \"user\"`");
            found.push((format!("nics.{}.backend", nic.id), error));
        } else if let Err(error) = tap(&config.name, nic, switches).and_then(|_| of_linux(nic, switches)) {
            found.push((format!("nics.{}.switch", nic.id), error));
        }
    }
    found
}

/// Refuses a switch of a kind that Linux does not have.
fn of_linux(nic: &NicConfig, switches: &[SwitchConfig]) -> Result<()> {
    let Some(Switch { id, kind, .. }) = switches.iter().find(|one| Some(&one.id) == nic.switch.as_ref()).map(switch) else {
        return Ok(());
    };
    match kind {
        Kind::Bridge | Kind::Manual { .. } => Ok(()),
        _ => Err(GuestError::user(format!(
            "nic `{}`: the switch `{id}` is of type `{}`, which only FreeBSD has",
            nic.id,
            kind.word()
        ))
        .hint("on Linux there are the types `bridge` and `manual`")),
    }
}

/// Refuses taps that this host cannot have now: a switch that is not up.
#[cfg(target_os = "linux")]
pub fn check(taps: &[EngineTap]) -> Result<()> {
    if taps.is_empty() {
        return Ok(());
    }
    let interfaces = crate::host::switch::bridges()?;
    for EngineTap { nic, bridge, .. } in taps {
        let Some((switch, bridge)) = bridge else { continue };
        if !interfaces.contains(bridge) {
            return Err(GuestError::user(format!("nic `{nic}`: the switch `{switch}` is not up: there is no bridge `{bridge}`"))
                .hint(format!("as root, `vmctl switch create {switch}` makes it")));
        }
    }
    Ok(())
}

/// Opens the taps, in order.
#[cfg(target_os = "linux")]
pub fn open(taps: &[EngineTap]) -> Result<Vec<OwnedFd>> {
    use crate::host::tap_device::{self, TapRequest};
    let open = |tap: &EngineTap| {
        let request = TapRequest {
            existing: tap.interface.as_deref(),
            description: &tap.description,
            bridge: tap.bridge.as_ref().map(|(_, bridge)| bridge.as_str()),
            private: tap.private,
            mtu: tap.mtu,
        };
        let opened = tap_device::open(&request).map(|(_, device)| device);
        opened.map_err(|error| error.about(&format!("nic `{}`", tap.nic)))
    };
    taps.iter().map(open).collect()
}

/// Refuses every tap.
#[cfg(not(target_os = "linux"))]
pub fn check(taps: &[EngineTap]) -> Result<()> {
    match taps.first() {
        None => Ok(()),
        Some(tap) => Err(GuestError::user(format!("nic `{}`: the embedded engine has taps on Linux only", tap.nic))
            .hint("use `engine = \"bhyve\"`, or `backend = \"user\"`")),
    }
}

/// Opens no tap: there is none.
#[cfg(not(target_os = "linux"))]
pub fn open(taps: &[EngineTap]) -> Result<Vec<OwnedFd>> {
    check(taps).map(|()| Vec::new())
}
