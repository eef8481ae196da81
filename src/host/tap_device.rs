//! Taps of Linux, opened for an engine: /dev/net/tun (Documentation/networking/tuntap.rst of the kernel).
//!
//! A tap that vmctl makes exists as long as a descriptor of it is open. So nothing is left of a killed engine.
//!
//! An unsafe island: ioctl(2) with a name in memory.
#![allow(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::error::HostError;
use super::ifconfig::Interface;
use super::link::LinkChange;
use super::netlink;

/// The device that taps come from.
const DEVICE: &str = "/dev/net/tun";
/// Length of the header before each frame: `struct virtio_net_hdr_v1` (virtio 1.2, 5.1.6).
const HEADER_BYTES: libc::c_int = 12;

/// A tap to open.
#[derive(Debug, Clone, Copy)]
pub struct TapRequest<'a> {
    /// The user's own, which exists already. Without it vmctl makes one.
    pub existing: Option<&'a str>,
    /// Description of a new one.
    pub description: &'a str,
    /// Bridge that a new one becomes a member of.
    pub bridge: Option<&'a str>,
    /// Whether a new one cannot talk to the bridge's other private members.
    pub private: bool,
    /// Largest packet of a new one; the kernel's default without it.
    pub mtu: Option<u16>,
}

/// Opens a tap, with a header for offloads before each frame, and returns its name.
pub fn open(tap: &TapRequest<'_>) -> Result<(String, OwnedFd), HostError> {
    if let Some(name) = tap.existing {
        check_existing(name)?;
    }
    let device = open_device()?;
    let name = attach(&device, tap.existing.unwrap_or("tap%d")).map_err(|error| refused(tap, &error))?;
    // SAFETY: the kernel reads one int, which lives over the call (TUNSETVNETHDRSZ of linux/if_tun.h).
    let set = unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETVNETHDRSZ, &HEADER_BYTES) };
    if set < 0 {
        let error = io::Error::last_os_error();
        return Err(HostError::user(format!("the tap `{name}` takes no headers for offloads: {error}")));
    }
    if tap.existing.is_none() {
        plug_in(&name, tap)?;
    }
    Ok((name, device.into()))
}

/// Describes a new tap, makes it a member of its bridge and turns it on.
fn plug_in(name: &str, tap: &TapRequest<'_>) -> Result<(), HostError> {
    // The host takes no part in the guest's network through the tap itself; not fatal on a kernel without IPv6.
    let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6"), "1");
    let name = name.to_owned();
    let mut changes = vec![LinkChange::Alias { name: name.clone(), alias: tap.description.to_owned() }];
    changes.extend(tap.mtu.map(|mtu| LinkChange::Mtu { name: name.clone(), mtu: mtu.into() }));
    if let Some(bridge) = tap.bridge {
        changes.push(LinkChange::Member { name: name.clone(), bridge: Some(bridge.to_owned()) });
        if tap.private {
            changes.push(LinkChange::Isolated { name: name.clone(), isolated: true });
        }
    }
    changes.push(LinkChange::Up { name, up: true });
    changes.iter().try_for_each(LinkChange::perform)
}

fn open_device() -> Result<File, HostError> {
    let device = Path::new(DEVICE);
    let opened = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(device);
    opened.map_err(|error| {
        let failed = HostError::user(format!("a tap cannot be had: cannot open `{DEVICE}`: {error}"));
        match error.kind() {
            io::ErrorKind::NotFound => failed.hint("load the module with `modprobe tun`, or give the container this device"),
            io::ErrorKind::PermissionDenied => failed.hint(format!("let users open it: as root, `chmod 666 {DEVICE}`")),
            _ => failed.hint("load the module with `modprobe tun`"),
        }
    })
}

/// Attaches an open device to the tap of this name, and returns the name that it has then.
fn attach(device: &File, name: &str) -> io::Result<String> {
    // SAFETY: the structure is integers, arrays of them and raw pointers, all of which may be zero.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()).take(libc::IFNAMSIZ - 1) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
    // SAFETY: the kernel reads and writes one `ifreq`, which lives over the call (TUNSETIFF of linux/if_tun.h).
    if unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETIFF, &mut request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    let name: Vec<u8> = request.ifr_name.iter().map(|byte| *byte as u8).take_while(|byte| *byte != 0).collect();
    Ok(String::from_utf8_lossy(&name).into_owned())
}

/// Refuses an interface of the user's that is none, no tap, or not on.
fn check_existing(name: &str) -> Result<(), HostError> {
    let missing = || {
        HostError::user(format!("there is no interface `{name}`"))
            .hint(format!("root makes it once: `ip tuntap add dev {name} mode tap user USER`; see TAPS in vmctl.toml(5)"))
    };
    let all = netlink::interfaces()?;
    let Interface { up, kind, .. } = all.into_iter().find(|one| one.name == name).ok_or_else(missing)?;
    if kind != "tun" {
        return Err(HostError::user(format!("the interface `{name}` is no tap")).hint("name a tap, or use `switch`"));
    }
    if !up {
        LinkChange::Up { name: name.to_owned(), up: true }.perform().map_err(|_| {
            HostError::user(format!("the tap `{name}` is down")).hint(format!("as root, `ip link set {name} up`"))
        })?;
    }
    Ok(())
}

/// Returns the error of a tap that the kernel refuses.
fn refused(tap: &TapRequest<'_>, error: &io::Error) -> HostError {
    match (error.raw_os_error(), tap.existing) {
        (Some(libc::EPERM), Some(name)) => HostError::user(format!("the tap `{name}` is another user's"))
            .hint(format!("root makes it yours: `ip tuntap add dev {name} mode tap user USER`")),
        (Some(libc::EBUSY), Some(name)) => {
            HostError::user(format!("the tap `{name}` is in use")).hint("another guest or program has it open")
        }
        (Some(libc::EINVAL), Some(name)) => HostError::user(format!("the interface `{name}` cannot be opened as a tap"))
            .hint(format!("make it with `ip tuntap add dev {name} mode tap user USER`, without `multi_queue`")),
        (Some(libc::EPERM), None) => HostError::user("only root may make a tap").hint(
            "start the guest as root; or root prepares a tap for this user once, and the guest file names it with `interface`: \
             see TAPS in vmctl.toml(5)",
        ),
        (_, name) => HostError::user(format!("cannot open the tap `{}`: {error}", name.unwrap_or("tap"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_tap_says_what_to_type() {
        let request = |existing| TapRequest { existing, description: "d", bridge: None, private: false, mtu: None };
        for (existing, errno, words, hint) in [
            (Some("tap7"), libc::EPERM, "`tap7` is another user's", "ip tuntap add dev tap7 mode tap user USER"),
            (Some("tap7"), libc::EBUSY, "`tap7` is in use", "has it open"),
            (Some("tap7"), libc::EINVAL, "cannot be opened as a tap", "multi_queue"),
            (None, libc::EPERM, "only root may make a tap", "`interface`"),
        ] {
            let error = refused(&request(existing), &io::Error::from_raw_os_error(errno));
            assert!(error.to_string().contains(words), "{error}");
            assert!(error.next_step().is_some_and(|step| step.contains(hint)), "{error:?}");
        }
    }

    #[test]
    fn an_interface_that_is_missing_or_no_tap_is_refused() {
        let error = check_existing("not-there").expect_err("is not there");
        assert!(error.next_step().is_some_and(|step| step.contains("ip tuntap add dev not-there")), "{error:?}");
        assert_eq!(check_existing("lo").expect_err("is no tap").to_string(), "the interface `lo` is no tap");
    }
}
