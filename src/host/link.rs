//! Changes to network interfaces of Linux: what rtnetlink(7) is asked for, printed as ip(8) and bridge(8) would be typed.

use std::fmt;
use std::net::IpAddr;

use super::error::HostError;
use super::ifconfig::Prefix;

/// A change to an interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkChange {
    /// Makes a bridge that is up.
    Bridge {
        /// Its name.
        name: String,
        /// Its description (IFLA_IFALIAS).
        alias: String,
    },
    /// Makes an interface in a VLAN of another one, which is up.
    Vlan {
        /// Its name.
        name: String,
        /// The other interface.
        parent: String,
        /// Number of the VLAN.
        tag: u16,
        /// Its description.
        alias: String,
    },
    /// Describes an interface.
    Alias {
        /// The interface.
        name: String,
        /// Its description.
        alias: String,
    },
    /// Removes an interface.
    Destroy {
        /// The interface.
        name: String,
    },
    /// Turns an interface on or off.
    Up {
        /// The interface.
        name: String,
        /// Whether it is on then.
        up: bool,
    },
    /// Makes an interface a member of a bridge, or of none.
    Member {
        /// The interface.
        name: String,
        /// The bridge.
        bridge: Option<String>,
    },
    /// Sets whether a member of a bridge cannot talk to other isolated ones.
    Isolated {
        /// The member.
        name: String,
        /// Whether it cannot.
        isolated: bool,
    },
    /// Sets the largest packet.
    Mtu {
        /// The interface.
        name: String,
        /// In bytes.
        mtu: u32,
    },
    /// Adds or removes an address.
    Address {
        /// The interface.
        name: String,
        /// The address.
        prefix: Prefix,
        /// Whether it is there then.
        there: bool,
    },
    /// Adds or removes the default route.
    DefaultRoute {
        /// The router.
        gateway: IpAddr,
        /// Whether it is there then.
        there: bool,
    },
}

impl fmt::Display for LinkChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LinkChange::Bridge { name, alias } => write!(f, "ip link add {name} alias '{alias}' up type bridge"),
            LinkChange::Vlan { name, parent, tag, alias } => {
                write!(f, "ip link add link {parent} name {name} alias '{alias}' up type vlan id {tag}")
            }
            LinkChange::Alias { name, alias } => write!(f, "ip link set {name} alias '{alias}'"),
            LinkChange::Destroy { name } => write!(f, "ip link delete {name}"),
            LinkChange::Up { name, up } => write!(f, "ip link set {name} {}", if *up { "up" } else { "down" }),
            LinkChange::Member { name, bridge: Some(bridge) } => write!(f, "ip link set {name} master {bridge}"),
            LinkChange::Member { name, bridge: None } => write!(f, "ip link set {name} nomaster"),
            LinkChange::Isolated { name, isolated } => {
                write!(f, "bridge link set dev {name} isolated {}", if *isolated { "on" } else { "off" })
            }
            LinkChange::Mtu { name, mtu } => write!(f, "ip link set {name} mtu {mtu}"),
            LinkChange::Address { name, prefix, there } => {
                write!(f, "ip address {} {prefix} dev {name}", if *there { "add" } else { "delete" })
            }
            LinkChange::DefaultRoute { gateway, there } => {
                write!(f, "ip route {} default via {gateway}", if *there { "add" } else { "delete" })
            }
        }
    }
}

impl LinkChange {
    /// Carries it out.
    #[cfg(target_os = "linux")]
    pub fn perform(&self) -> Result<(), HostError> {
        super::netlink::perform(self).map_err(|error| self.failed(&error))
    }

    /// Carries it out.
    #[cfg(not(target_os = "linux"))]
    pub fn perform(&self) -> Result<(), HostError> {
        Err(self.failed(&std::io::Error::from(std::io::ErrorKind::Unsupported)))
    }

    /// Returns the error of a change that the kernel refuses.
    fn failed(&self, error: &std::io::Error) -> HostError {
        let message = |text: String| HostError::user(text);
        match (error.raw_os_error(), self) {
            (Some(libc::EPERM | libc::EACCES), _) => {
                message(format!("`{self}` was refused: only root may change the interfaces of this host"))
                    .hint("run the command as root, as with `sudo`")
            }
            (Some(libc::EOPNOTSUPP), LinkChange::Bridge { name, .. }) => {
                message(format!("cannot make the bridge `{name}`: this kernel has no bridges"))
                    .hint("load the module with `modprobe bridge`, or boot a kernel that has it (CONFIG_BRIDGE)")
            }
            (Some(libc::EOPNOTSUPP), LinkChange::Vlan { name, .. }) => {
                message(format!("cannot make `{name}`: this kernel has no interfaces in VLANs"))
                    .hint("load the module with `modprobe 8021q`, or boot a kernel that has it (CONFIG_VLAN_8021Q)")
            }
            (Some(libc::EOPNOTSUPP), LinkChange::Member { name, bridge: Some(bridge) }) => {
                message(format!("`{name}` cannot be a member of `{bridge}`: its kind of interface can be on no bridge"))
                    .hint("a wireless interface cannot; leave it out of `uplinks`, and let guests out with `nat`")
            }
            _ => message(format!("`{self}` failed: {error}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_change_says_what_to_do() {
        let bridge = LinkChange::Bridge { name: "sw-lan".into(), alias: "vmctl switch lan".into() };
        let vlan = LinkChange::Vlan { name: "em0.7".into(), parent: "em0".into(), tag: 7, alias: "vmctl switch lan".into() };
        let member = LinkChange::Member { name: "wlan0".into(), bridge: Some("sw-lan".into()) };
        for (change, errno, words, hint) in [
            (&bridge, libc::EPERM, "only root may change", "as root"),
            (&bridge, libc::EOPNOTSUPP, "this kernel has no bridges", "modprobe bridge"),
            (&vlan, libc::EOPNOTSUPP, "no interfaces in VLANs", "modprobe 8021q"),
            (&member, libc::EOPNOTSUPP, "can be on no bridge", "`nat`"),
        ] {
            let error = change.failed(&std::io::Error::from_raw_os_error(errno));
            assert!(error.to_string().contains(words), "{error}");
            assert!(error.next_step().is_some_and(|step| step.contains(hint)), "{error:?}");
        }
        let other = bridge.failed(&std::io::Error::from_raw_os_error(libc::EEXIST));
        assert!(
            other.to_string().starts_with("`ip link add sw-lan alias 'vmctl switch lan' up type bridge` failed: "),
            "{other}"
        );
    }
}
