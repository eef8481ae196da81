//! The changes that switches are made of, in the words of the host's tools: ifconfig(8) and route(8) on FreeBSD,
//! rtnetlink(7) on Linux.

use std::net::IpAddr;

use super::super::ifconfig::{self, Prefix, Traffic};
use super::super::link::LinkChange;
use super::super::program::{self, HostChange, Step};
use super::description;

/// The tools of a host.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Tools {
    /// ifconfig(8), route(8), pf(4) and sysctl(8).
    #[default]
    FreeBsd,
    /// rtnetlink(7), nftables and proc(5).
    Linux,
}

fn owned(word: &str) -> String {
    word.to_owned()
}

impl Tools {
    /// Returns the tools of this host.
    pub fn of_this_host() -> Tools {
        if program::is_freebsd() { Tools::FreeBsd } else { Tools::Linux }
    }

    /// Makes a bridge, which is up.
    pub fn make_bridge(self, switch: &str, name: &str) -> Step {
        let make = match self {
            Tools::FreeBsd => freebsd_interface(&["bridge", "create"], switch, name),
            Tools::Linux => HostChange::Link(LinkChange::Bridge { name: owned(name), alias: description(switch) }),
        };
        Step::undone_by(make, self.destroy(name))
    }

    /// Makes the bridge of another manager again.
    pub fn remake_bridge(self, name: &str) -> HostChange {
        match self {
            Tools::FreeBsd => HostChange::run(&["ifconfig", "bridge", "create", "up", "name", name]),
            Tools::Linux => HostChange::Link(LinkChange::Bridge { name: owned(name), alias: String::new() }),
        }
    }

    /// Makes an interface in a VLAN of `parent`, which is up.
    pub fn make_vlan(self, switch: &str, name: &str, parent: &str, tag: u16) -> Step {
        let make = match self {
            Tools::FreeBsd => freebsd_interface(&["vlan", "create", "vlandev", parent, "vlan", &tag.to_string()], switch, name),
            Tools::Linux => {
                let (name, parent, alias) = (owned(name), owned(parent), description(switch));
                HostChange::Link(LinkChange::Vlan { name, parent, tag, alias })
            }
        };
        Step::undone_by(make, self.destroy(name))
    }

    /// Gives an interface that was left without it its description.
    pub fn describe(self, switch: &str, name: &str) -> Step {
        let alias = description(switch);
        Step::once(match self {
            Tools::FreeBsd => HostChange::run(&["ifconfig", name, "description", &alias]),
            Tools::Linux => HostChange::Link(LinkChange::Alias { name: owned(name), alias }),
        })
    }

    /// Removes an interface.
    pub fn destroy(self, name: &str) -> HostChange {
        match self {
            Tools::FreeBsd => HostChange::run(&["ifconfig", name, "destroy"]),
            Tools::Linux => HostChange::Link(LinkChange::Destroy { name: owned(name) }),
        }
    }

    /// Turns an interface on.
    pub fn up(self, name: &str) -> Step {
        let change = |up: bool| match self {
            Tools::FreeBsd => HostChange::run(&["ifconfig", name, if up { "up" } else { "down" }]),
            Tools::Linux => HostChange::Link(LinkChange::Up { name: owned(name), up }),
        };
        Step::undone_by(change(true), change(false))
    }

    /// Makes an interface a member of a bridge, or ends that.
    fn member(self, bridge: &str, name: &str, is: bool) -> HostChange {
        match self {
            Tools::FreeBsd => HostChange::run(&["ifconfig", bridge, if is { "addm" } else { "deletem" }, name]),
            Tools::Linux => HostChange::Link(LinkChange::Member { name: owned(name), bridge: is.then(|| owned(bridge)) }),
        }
    }

    /// Adds a member to a bridge.
    pub fn join(self, bridge: &str, name: &str) -> Step {
        Step::undone_by(self.member(bridge, name, true), self.member(bridge, name, false))
    }

    /// Removes a member from a bridge.
    pub fn leave(self, bridge: &str, name: &str) -> Step {
        Step::undone_by(self.member(bridge, name, false), self.member(bridge, name, true))
    }

    /// Sets whether a member of a bridge can talk to its other private members.
    pub fn private(self, bridge: &str, name: &str, private: bool) -> HostChange {
        match self {
            Tools::FreeBsd => HostChange::run(&["ifconfig", bridge, if private { "private" } else { "-private" }, name]),
            Tools::Linux => HostChange::Link(LinkChange::Isolated { name: owned(name), isolated: private }),
        }
    }

    /// Sets the largest packet of an interface.
    pub fn mtu(self, name: &str, mtu: u32) -> HostChange {
        match self {
            Tools::FreeBsd => HostChange::run(&["ifconfig", name, "mtu", &mtu.to_string()]),
            Tools::Linux => HostChange::Link(LinkChange::Mtu { name: owned(name), mtu }),
        }
    }

    /// Adds an address to an interface.
    pub fn add_address(self, name: &str, prefix: Prefix) -> HostChange {
        match self {
            Tools::FreeBsd => HostChange::run(&["ifconfig", name, prefix.family(), &prefix.to_string(), "alias"]),
            Tools::Linux => HostChange::Link(LinkChange::Address { name: owned(name), prefix, there: true }),
        }
    }

    /// Removes an address from an interface.
    pub fn remove_address(self, name: &str, prefix: Prefix) -> HostChange {
        match self {
            Tools::FreeBsd => HostChange::run(&["ifconfig", name, prefix.family(), &prefix.address.to_string(), "-alias"]),
            Tools::Linux => HostChange::Link(LinkChange::Address { name: owned(name), prefix, there: false }),
        }
    }

    /// Adds or removes the default route.
    pub fn default_route(self, gateway: IpAddr, there: bool) -> HostChange {
        match (self, there) {
            (Tools::FreeBsd, true) => HostChange::run(&["route", "-n", "add", "default", &gateway.to_string()]),
            (Tools::FreeBsd, false) => HostChange::run(&["route", "-n", "delete", "default"]),
            (Tools::Linux, _) => HostChange::Link(LinkChange::DefaultRoute { gateway, there }),
        }
    }

    /// Lets packets pass between interfaces.
    pub fn forward(self) -> Step {
        let change = |on: &str| match self {
            Tools::FreeBsd => HostChange::run(&["sysctl", &format!("net.inet.ip.forwarding={on}")]),
            Tools::Linux => HostChange::Set { path: FORWARDING.into(), text: owned(on) },
        };
        Step::undone_by(change("1"), change("0"))
    }

    /// Returns what to do so that this holds after the next boot.
    pub fn forwarding_note(self) -> &'static str {
        match self {
            Tools::FreeBsd => "`sysrc gateway_enable=YES` keeps forwarding on after a boot",
            Tools::Linux => "`net.ipv4.ip_forward = 1` in a file of /etc/sysctl.d keeps forwarding on after a boot",
        }
    }

    /// Returns the traffic of an interface.
    pub fn traffic(self, name: &str) -> Option<Traffic> {
        match self {
            Tools::FreeBsd => ifconfig::traffic(name, None),
            #[cfg(target_os = "linux")]
            Tools::Linux => super::super::netlink::traffic(name),
            #[cfg(not(target_os = "linux"))]
            Tools::Linux => None,
        }
    }

    /// Returns how a user makes a bridge.
    pub fn bridge_hint(self, bridge: &str) -> String {
        match self {
            Tools::FreeBsd => format!("ifconfig {bridge} create"),
            Tools::Linux => format!("ip link add {bridge} type bridge"),
        }
    }
}

/// Whether Linux forwards packets (ip-sysctl of the kernel's documentation).
pub(super) const FORWARDING: &str = "/proc/sys/net/ipv4/ip_forward";

/// Makes an interface in one call, so that there is never one without its description, which nothing would recognise
/// later. The name comes last: ifconfig(8) before 14.0 continues with the old one (`sbin/ifconfig/ifconfig.c`, setifname).
pub(super) fn freebsd_interface(create: &[&str], switch: &str, name: &str) -> HostChange {
    let description = description(switch);
    let words = ["description", &description, "group", "vmctl", "up", "name", name];
    HostChange::run(&[&["ifconfig"], create, &words].concat())
}
