//! The switches that guests are plugged into: planned, made, shown and unmade.
//!
//! What a switch should be comes from the host file; what there is comes from ifconfig(8) and its kin, as [`Observed`].
//! [`plan`] compares the two and says which steps are missing, so making a switch that is there does nothing, and a
//! switch's state is how much of its plan is left. Everything that vmctl makes carries the description
//! `vmctl switch NAME`, and nothing without it is ever removed.

pub mod change; // what goes when a switch becomes another one
mod netgraph; // switches that are nodes of netgraph(4)
pub mod plan; // what is missing, and how a switch is taken down
pub mod status; // what there is
pub mod take_over; // a switch in the place of another manager's bridge

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use super::dnsmasq::Range;
use super::error::HostError;
use super::ifconfig::{self, Interface, Prefix};
use super::netgraph::Node;
use super::pf::{self, Pf};
use super::program;
use super::route::{self, DefaultRoute};

/// One switch, as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Switch {
    /// Its name, at most 12 characters.
    pub id: String,
    /// What it is.
    pub kind: Kind,
    /// Interfaces of the host that belong to it.
    pub uplinks: Vec<String>,
    /// The VLAN of the uplinks that it is in.
    pub vlan: Option<u16>,
    /// Addresses of the host on it.
    pub addresses: Vec<Prefix>,
    /// Largest packet.
    pub mtu: Option<u32>,
    /// Guests on it cannot talk to each other.
    pub private: bool,
    /// Guests reach the world through the host's addresses.
    pub nat: bool,
    /// Where NAT leaves; the interface of the default route without it.
    pub egress: Option<String>,
    /// Addresses that are given out.
    pub dhcp: Option<Range>,
    /// Name servers that DHCP tells; the host's address on the switch when empty.
    pub dns: Vec<IpAddr>,
    /// Domain that DHCP tells.
    pub domain: Option<String>,
}

/// What a switch is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// if_bridge(4), made here.
    Bridge,
    /// A bridge of the user's.
    Manual {
        /// Its interface.
        bridge: String,
    },
    /// A bridge with a vxlan(4) interface to other hosts.
    Vxlan {
        /// Number of the network.
        vni: u32,
        /// Multicast group; one that follows from the number without it.
        group: Option<IpAddr>,
    },
    /// An ng_bridge(4) node.
    Netgraph {
        /// Its name.
        node: String,
        /// It is made here; else it is the user's.
        ours: bool,
    },
    /// A vale(4) switch; it comes into being with its first port.
    Vale,
}

impl Kind {
    /// As the host file spells it.
    pub fn word(&self) -> &'static str {
        match self {
            Kind::Bridge => "bridge",
            Kind::Manual { .. } => "manual",
            Kind::Vxlan { .. } => "vxlan",
            Kind::Netgraph { .. } => "netgraph",
            Kind::Vale => "vale",
        }
    }
}

/// What was found on the host.
#[derive(Debug, Clone, Default)]
pub struct Observed {
    /// Its interfaces.
    pub interfaces: Vec<Interface>,
    /// Its IPv4 default route.
    pub default_route: Option<DefaultRoute>,
    /// The address that the session of this terminal is connected to.
    pub session: Option<IpAddr>,
    /// Packets are forwarded between interfaces.
    pub forwarding: bool,
    /// The packet filter, when a switch needs it and it can be asked.
    pub pf: Option<Result<Pf, HostError>>,
    /// Switches whose rules are loaded as they should be.
    pub loaded: Vec<String>,
    /// Switches whose DHCP service runs as it should.
    pub serving: Vec<String>,
    /// netgraph nodes that are there, of those that switches name.
    pub nodes: Vec<Node>,
    /// Ports of vale(4) switches, like `vale-lan:em0`.
    pub vale_ports: Vec<String>,
    /// dnsmasq(8) is installed.
    pub dnsmasq: bool,
}

/// The description of everything that vmctl makes for a switch.
pub fn description(id: &str) -> String {
    format!("vmctl switch {id}")
}

impl Switch {
    /// The interface that taps are added to; none for netgraph and vale.
    pub fn bridge(&self) -> Option<String> {
        match &self.kind {
            Kind::Bridge | Kind::Vxlan { .. } => Some(format!("sw-{}", self.id)),
            Kind::Manual { bridge } => Some(bridge.clone()),
            Kind::Netgraph { .. } | Kind::Vale => None,
        }
    }
    /// The netgraph node that is made for it.
    pub fn own_node(&self) -> Option<&str> {
        match &self.kind {
            Kind::Netgraph { node, ours: true } => Some(node),
            _ => None,
        }
    }
    /// The interfaces and nodes of guests on it: what is on its bridge or its own node and was not put there for it.
    pub fn ports(&self, observed: &Observed) -> Vec<String> {
        if let Some(node) = self.own_node() {
            return netgraph::guests(self, node, observed);
        }
        let uplinks: Vec<String> = self.uplinks.iter().map(|uplink| self.member_of(uplink)).collect();
        let interface = self.bridge().and_then(|name| observed.interface(&name));
        let members = interface.map(|one| one.members.as_slice()).unwrap_or_default();
        let is_port = |name: &&String| !uplinks.contains(name) && **name != self.vxlan_interface();
        members.iter().filter(is_port).cloned().collect()
    }
    /// The vxlan(4) interface of a switch of that kind.
    pub fn vxlan_interface(&self) -> String {
        format!("vx-{}", self.id)
    }
    /// The vale(4) switch: its ports are called `vale-ID:PORT`.
    pub fn vale(&self) -> String {
        format!("vale-{}", self.id)
    }
    /// The multicast group of a vxlan: 239/8 is for use within an organisation (RFC 2365), the rest is the number.
    pub fn vxlan_group(&self) -> Option<IpAddr> {
        let Kind::Vxlan { vni, group } = &self.kind else { return None };
        let [_, a, b, c] = vni.to_be_bytes();
        Some(group.unwrap_or(IpAddr::V4(Ipv4Addr::new(239, a, b, c))))
    }
    /// The interface of an uplink that is a member: itself, or the vlan(4) child on it.
    pub fn member_of(&self, uplink: &str) -> String {
        match self.vlan {
            Some(tag) => format!("{uplink}.{tag}"),
            None => uplink.to_owned(),
        }
    }
    /// Where its files are.
    pub fn directory(&self, runtime: &Path) -> PathBuf {
        runtime.join("switches").join(&self.id)
    }
    /// The IPv4 networks of its addresses.
    pub fn networks(&self) -> Vec<Prefix> {
        self.addresses.iter().filter(|prefix| prefix.address.is_ipv4()).map(Prefix::network).collect()
    }
    /// The network that DHCP serves: that of the first IPv4 address which holds the range.
    pub fn served(&self) -> Option<Prefix> {
        let range = self.dhcp.as_ref()?;
        let v4 = || self.addresses.iter().filter(|prefix| prefix.address.is_ipv4());
        v4().find(|prefix| prefix.contains(range.first.into())).or_else(|| v4().next()).copied()
    }
    /// Where NAT leaves.
    pub fn egress_in(&self, observed: &Observed) -> Option<String> {
        self.egress.clone().or_else(|| observed.default_route.as_ref().map(|route| route.interface.clone()))
    }
    /// What tap interfaces must be told when they join: words for ifconfig(8) after the bridge's name. The kernel lets
    /// private members of a bridge talk to others and not to each other.
    pub fn join(&self, tap: &str) -> Option<Vec<String>> {
        let mut words = vec!["ifconfig".to_owned(), self.bridge()?, "addm".to_owned(), tap.to_owned()];
        if self.private {
            words.extend(["private".to_owned(), tap.to_owned()]);
        }
        Some(words)
    }
}

impl Observed {
    /// Looks at what these switches need to know.
    pub fn look(switches: &[Switch], runtime: &Path) -> Result<Observed, HostError> {
        let mut observed = Observed {
            interfaces: ifconfig::interfaces()?,
            default_route: route::default_route(),
            session: route::session_address(),
            dnsmasq: program::find("dnsmasq").is_some(),
            ..Observed::default()
        };
        if switches.iter().any(|switch| switch.nat) {
            observed.forwarding = program::run("sysctl", &["-n", "net.inet.ip.forwarding"]).is_ok_and(|text| text.trim() == "1");
            observed.pf = Some(pf::look());
        }
        for switch in switches {
            if let (true, Some(egress)) = (switch.nat, switch.egress_in(&observed))
                && pf::is_loaded(&switch.id, &switch.networks(), &egress)
            {
                observed.loaded.push(switch.id.clone());
            }
            if plan::service(switch, &switch.directory(runtime)).is_some_and(|service| service.is_running()) {
                observed.serving.push(switch.id.clone());
            }
            if let Kind::Netgraph { node, .. } = &switch.kind {
                observed.nodes.extend(super::netgraph::node(node));
            }
        }
        if switches.iter().any(|switch| switch.kind == Kind::Vale) {
            // It ends with status 1 whether there are ports or none (`usr.sbin/valectl/valectl.c`, list_all).
            observed.vale_ports = vale_ports(&program::printed("valectl", &[]));
        }
        Ok(observed)
    }

    /// The interface of that name.
    pub fn interface(&self, name: &str) -> Option<&Interface> {
        self.interfaces.iter().find(|interface| interface.name == name)
    }
    /// The netgraph node of that name.
    pub fn node(&self, name: &str) -> Option<&Node> {
        self.nodes.iter().find(|node| node.name == name)
    }
    /// The bridge that an interface is a member of.
    pub fn bridge_of(&self, member: &str) -> Option<&Interface> {
        self.interfaces.iter().find(|interface| interface.members.iter().any(|name| name == member))
    }
    /// The interface that the session came in through.
    pub fn session_interface(&self) -> Option<&Interface> {
        let session = self.session?;
        self.interfaces.iter().find(|one| one.addresses.iter().any(|prefix| prefix.address == session))
    }
}

/// The ports that valectl(8) lists, as `NAME bridge_idx N port_idx N` (FreeBSD `usr.sbin/valectl/valectl.c`, list_all).
fn vale_ports(text: &str) -> Vec<String> {
    text.lines()
        .flat_map(str::split_whitespace)
        .filter(|word| word.starts_with("vale") && word.contains(':'))
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A bridge of that name and nothing else.
    pub fn plain(id: &str) -> Switch {
        Switch {
            id: id.into(),
            kind: Kind::Bridge,
            uplinks: Vec::new(),
            vlan: None,
            addresses: Vec::new(),
            mtu: None,
            private: false,
            nat: false,
            egress: None,
            dhcp: None,
            dns: Vec::new(),
            domain: None,
        }
    }

    #[test]
    fn names_of_interfaces_fit_whatever_the_switch_is_called() {
        let longest = Switch { kind: Kind::Vxlan { vni: 1, group: None }, ..plain("twelve-chars") };
        assert_eq!(longest.bridge().expect("a bridge").len(), ifconfig::NAME_LIMIT);
        assert_eq!(longest.vxlan_interface().len(), ifconfig::NAME_LIMIT);
    }

    #[test]
    fn a_vxlan_has_a_group_that_all_hosts_find() {
        let switch = Switch { kind: Kind::Vxlan { vni: 0x01_02_03, group: None }, ..plain("x") };
        assert_eq!(switch.vxlan_group().expect("a group").to_string(), "239.1.2.3");
    }

    #[test]
    fn a_tap_on_a_private_switch_is_a_private_member() {
        let private = Switch { private: true, ..plain("lan") };
        assert_eq!(private.join("tap3").expect("a bridge").join(" "), "ifconfig sw-lan addm tap3 private tap3");
        assert_eq!(Switch { kind: Kind::Vale, ..plain("lan") }.join("tap3"), None);
    }

    #[test]
    fn the_ports_of_vale_switches_are_listed() {
        let text = "vale-lan:em0 bridge_idx 0 port_idx 0\nvale-lan:em0^ bridge_idx 0 port_idx 1\n";
        assert_eq!(vale_ports(text), ["vale-lan:em0", "vale-lan:em0^"]);
    }
}
