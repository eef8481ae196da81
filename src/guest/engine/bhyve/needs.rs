//! Checks whether this host can run a guest under bhyve, before anything is made or changed.

use crate::config::{BhyveLoaderKind, GuestConfig, NicBackend, PassthruDevice, Tpm};
use crate::guest::error::{GuestError, Result};
use crate::host::jail_run;
use crate::host::passthru::{self, Iommu};
use crate::host::{environment, program};

/// Checks that the host is FreeBSD, and this process root.
pub fn host() -> Result<()> {
    if !program::is_freebsd() {
        return Err(GuestError::user("engine `bhyve` needs FreeBSD, and this host is none")
            .hint("set `engine = \"embedded\"`, which runs guests on any host"));
    }
    if !environment::is_root() {
        return Err(GuestError::user("only root can run guests under bhyve")
            .hint("run the command as root, or set `engine = \"embedded\"`"));
    }
    Ok(())
}

/// Checks that the programs of a guest are installed. An error says how to install them.
pub fn programs(config: &GuestConfig) -> Result<()> {
    let mut wanted = vec!["bhyve", "bhyvectl"];
    match config.loader.on_bhyve() {
        Some(BhyveLoaderKind::Grub) => wanted.push("grub-bhyve"),
        Some(BhyveLoaderKind::Bhyveload) => wanted.push("bhyveload"),
        Some(BhyveLoaderKind::Uefi) | None => {}
    }
    if config.tpm == Some(Tpm::Swtpm) {
        wanted.push("swtpm");
    }
    for name in wanted {
        if program::find(name).is_none() {
            return Err(GuestError::user(format!("there is no program `{name}` on this host")).hint(program::brought_by(name)));
        }
    }
    Ok(())
}

/// Returns whether a guest has an interface that is a tap on the host.
pub fn has_taps(config: &GuestConfig) -> bool {
    config.nics.iter().any(|nic| matches!(nic.backend, NicBackend::Tap | NicBackend::Vmnet))
}

/// Checks the jail of a guest with taps, which must have a network stack of its own on some releases. A jail that does not
/// exist yet, or cannot be asked, is reported when the guest boots.
pub fn network(config: &GuestConfig) -> Result<()> {
    match config.jail.as_ref().filter(|_| has_taps(config)) {
        Some(jail) if jail_run::has_vnet(&jail.name) == Ok(false) && jail_run::taps_need_vnet() => {
            Err(GuestError::user(jail_run::no_tap_without_vnet(&jail.name)).hint(jail_run::vnet_hint(&jail.name)))
        }
        _ => Ok(()),
    }
}

/// Checks the host's devices for a guest: there must be an IOMMU, and ppt(4) must have them.
pub fn passthru(config: &GuestConfig) -> Result<()> {
    if config.passthru.is_empty() {
        return Ok(());
    }
    let iommu = passthru::iommu();
    if let Iommu::Absent | Iommu::Off(_) = iommu {
        let (words, hint) = iommu.words();
        let error = GuestError::user(format!("`passthru` needs an IOMMU; on this host: {words}"));
        return Err(match hint {
            Some(hint) => error.hint(hint),
            None => error,
        });
    }
    let present = passthru::devices().map_err(|error| GuestError::host(error.to_string()))?;
    for wanted in &config.passthru {
        let (name, found) = match &wanted.device {
            PassthruDevice::Address(at) => {
                let name = format!("{}/{}/{}", at.bus, at.slot, at.function);
                let found = present.iter().find(|device| device.device == name);
                (name, found)
            }
            PassthruDevice::Ppt(name) => (name.clone(), present.iter().find(|device| device.driver == *name)),
        };
        match found {
            None => {
                return Err(GuestError::user(format!("passthru `{}`: this host has no device `{name}`", wanted.id))
                    .hint("`vmctl passthru list` shows the devices"));
            }
            Some(device) if !device.ready => {
                return Err(GuestError::user(format!(
                    "passthru `{}`: the host itself uses `{name}` ({})",
                    wanted.id, device.driver
                ))
                .hint(format!(
                    "put `pptdevs=\"{name}\"` into /boot/loader.conf and boot the host again, or give it away now with \
                         `devctl set driver -f {} ppt`",
                    device.selector
                )));
            }
            Some(_) => {}
        }
    }
    Ok(())
}
