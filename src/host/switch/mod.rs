//! The switches that guests are connected to: planning, making, showing and removing them.
//!
//! The wanted switches come from the host file. The present state comes from ifconfig(8) and similar tools, as
//! [`Observed`]. [`steps`] compares the two and returns the missing steps. So making an existing switch does nothing,
//! and a switch's state follows from the rest of its plan. Everything that vmctl makes has the description `vmctl
//! switch NAME`, and nothing without it is ever removed.

pub mod change; // removal of parts when a switch becomes another one
#[cfg(target_os = "linux")]
mod linux; // state of a Linux host
#[cfg(target_os = "linux")]
pub use linux::{Leftover, left_over};
mod netgraph; // switches that are nodes of netgraph(4)
pub mod status; // the present state
pub mod steps; // the missing steps, and taking a switch down
pub mod take_over; // a switch in place of another manager's bridge
pub mod tools; // what each host calls the changes

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use super::dnsmasq::Range;
use super::error::HostError;
use super::ifconfig::{self, Interface, Prefix};
use super::netgraph::NetgraphNode;
use super::nft;
use super::pf::{self, Pf};
use super::program::{self, HostChange};
use super::route::{self, DefaultRoute};
use super::sysctl;
use tools::Tools;

/// A switch as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Switch {
    /// Its name, at most 12 characters.
    pub id: String,
    /// Kind of the switch.
    pub kind: Kind,
    /// Interfaces of the host that belong to it.
    pub uplinks: Vec<String>,
    /// The VLAN of the uplinks.
    pub vlan: Option<u16>,
    /// Addresses of the host on it.
    pub addresses: Vec<Prefix>,
    /// Largest packet.
    pub mtu: Option<u32>,
    /// Whether guests on it cannot talk to each other.
    pub private: bool,
    /// Whether guests reach the outside through the host's addresses.
    pub nat: bool,
    /// The interface of NAT; by default that of the default route.
    pub egress: Option<String>,
    /// Addresses for DHCP.
    pub dhcp: Option<Range>,
    /// Name servers for DHCP; the host's address on the switch when empty.
    pub dns: Vec<IpAddr>,
    /// Domain for DHCP.
    pub domain: Option<String>,
}

/// Kind of a switch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// if_bridge(4), made by vmctl.
    Bridge,
    /// A bridge of the user.
    Manual {
        /// Its interface.
        bridge: String,
    },
    /// A bridge with a vxlan(4) interface to other hosts.
    Vxlan {
        /// Number of the network.
        vni: u32,
        /// Multicast group. By default it follows from the number.
        group: Option<IpAddr>,
    },
    /// An ng_bridge(4) node.
    Netgraph {
        /// Its name.
        node: String,
        /// Whether vmctl makes it; otherwise it belongs to the user.
        ours: bool,
    },
    /// A vale(4) switch. The kernel creates it with its first port.
    Vale,
}

impl Kind {
    /// Returns the name in the host file.
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

/// Present state of the host.
#[derive(Debug, Clone, Default)]
pub struct Observed {
    /// Its tools.
    pub tools: Tools,
    /// Its interfaces.
    pub interfaces: Vec<Interface>,
    /// Its IPv4 default route.
    pub default_route: Option<DefaultRoute>,
    /// The address that the session of this terminal is connected to.
    pub session: Option<IpAddr>,
    /// Whether packets are forwarded between interfaces.
    pub forwarding: bool,
    /// Whether a member of a bridge may have no IP address. On Linux one has no use for it.
    pub members_without_addresses: bool,
    /// The packet filter, if a switch needs it and it can be asked.
    pub pf: Option<Result<Pf, HostError>>,
    /// Why nftables cannot be asked for the rules of switches, if it cannot.
    pub nft: Option<HostError>,
    /// Chains of others that drop what is forwarded.
    pub dropping: Vec<String>,
    /// Switches with a table of ours, whatever is in it.
    pub filtered: Vec<String>,
    /// Switches whose table is somebody else's.
    pub foreign_tables: Vec<String>,
    /// Switches whose rules are loaded as they should be.
    pub loaded: Vec<String>,
    /// Switches whose DHCP service runs as it should.
    pub serving: Vec<String>,
    /// Existing netgraph nodes, of those that switches name.
    pub nodes: Vec<NetgraphNode>,
    /// Ports of vale(4) switches, like `vale-lan:em0`.
    pub vale_ports: Vec<String>,
    /// Whether dnsmasq(8) is installed.
    pub dnsmasq: bool,
}

/// Returns the description of everything that vmctl makes for a switch.
pub fn description(id: &str) -> String {
    format!("vmctl switch {id}")
}

impl Switch {
    /// Returns the interface that taps are added to. There is none for netgraph and vale.
    pub fn bridge(&self) -> Option<String> {
        match &self.kind {
            Kind::Bridge | Kind::Vxlan { .. } => Some(format!("sw-{}", self.id)),
            Kind::Manual { bridge } => Some(bridge.clone()),
            Kind::Netgraph { .. } | Kind::Vale => None,
        }
    }
    /// Returns the netgraph node that vmctl makes for it.
    pub fn own_node(&self) -> Option<&str> {
        match &self.kind {
            Kind::Netgraph { node, ours: true } => Some(node),
            _ => None,
        }
    }
    /// Returns the interfaces and nodes of guests on it: the members of its bridge or its own node that do not belong
    /// to the switch itself.
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
    /// Returns the vxlan(4) interface of a switch of that kind.
    pub fn vxlan_interface(&self) -> String {
        format!("vx-{}", self.id)
    }
    /// Returns the vale(4) switch: its ports are called `vale-ID:PORT`.
    pub fn vale(&self) -> String {
        format!("vale-{}", self.id)
    }
    /// Returns the multicast group of a vxlan: 239/8 is for use within an organisation (RFC 2365), the rest is the
    /// number.
    pub fn vxlan_group(&self) -> Option<IpAddr> {
        let Kind::Vxlan { vni, group } = &self.kind else { return None };
        let [_, a, b, c] = vni.to_be_bytes();
        Some(group.unwrap_or(IpAddr::V4(Ipv4Addr::new(239, a, b, c))))
    }
    /// Returns the interface of an uplink that is a member: the uplink itself, or the vlan(4) child on it.
    pub fn member_of(&self, uplink: &str) -> String {
        match self.vlan {
            Some(tag) => format!("{uplink}.{tag}"),
            None => uplink.to_owned(),
        }
    }
    /// Returns the directory of its files.
    pub fn directory(&self, runtime: &Path) -> PathBuf {
        runtime.join("switches").join(&self.id)
    }
    /// Returns the IPv4 networks of its addresses.
    pub fn networks(&self) -> Vec<Prefix> {
        self.addresses.iter().filter(|prefix| prefix.address.is_ipv4()).map(Prefix::network).collect()
    }
    /// Returns the network that DHCP serves: that of the first IPv4 address which contains the range.
    pub fn served(&self) -> Option<Prefix> {
        let range = self.dhcp.as_ref()?;
        let v4 = || self.addresses.iter().filter(|prefix| prefix.address.is_ipv4());
        v4().find(|prefix| prefix.contains(range.first.into())).or_else(|| v4().next()).copied()
    }
    /// Returns the interface of NAT.
    pub fn egress_in(&self, observed: &Observed) -> Option<String> {
        self.egress.clone().or_else(|| observed.default_route.as_ref().map(|route| route.interface.clone()))
    }
}

/// Returns the names of the bridges of a Linux host.
#[cfg(target_os = "linux")]
pub fn bridges() -> Result<Vec<String>, HostError> {
    let all = super::netlink::interfaces()?.into_iter();
    Ok(all.filter(|one| one.kind == "bridge").map(|one| one.name).collect())
}

/// Returns whether a bridge refuses members with IP addresses, and a member refuses addresses, both with EINVAL: from
/// 15.0 on, unless `net.link.bridge.member_ifaddrs` is 1 (if_bridge(4) and the release notes of 15.0; 16 removes it).
/// Before if_bridge(4) is loaded there is no such variable.
fn members_without_addresses() -> bool {
    match sysctl::get("net.link.bridge.member_ifaddrs") {
        Ok(value) => value == "0",
        Err(_) => sysctl::get("kern.osreldate").is_ok_and(|text| text.parse::<u32>().is_ok_and(|release| release >= 1_500_000)),
    }
}

impl Observed {
    /// Reads the state that these switches depend on.
    pub fn look(switches: &[Switch], runtime: &Path) -> Result<Observed, HostError> {
        match Tools::of_this_host() {
            Tools::FreeBsd => Observed::look_at_freebsd(switches, runtime),
            #[cfg(target_os = "linux")]
            Tools::Linux => linux::look(switches, runtime),
            #[cfg(not(target_os = "linux"))]
            Tools::Linux => Err(HostError::user("switches are for FreeBSD and Linux")),
        }
    }

    fn look_at_freebsd(switches: &[Switch], runtime: &Path) -> Result<Observed, HostError> {
        let mut observed = Observed {
            interfaces: ifconfig::interfaces()?,
            default_route: route::default_route(),
            session: route::session_address(),
            dnsmasq: program::find("dnsmasq").is_some(),
            ..Observed::default()
        };
        if switches.iter().any(|switch| switch.bridge().is_some() && !switch.uplinks.is_empty()) {
            observed.members_without_addresses = members_without_addresses();
        }
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
            observed.serve(switch, runtime);
            if let Kind::Netgraph { node, .. } = &switch.kind {
                observed.nodes.extend(super::netgraph::node(node));
            }
        }
        if switches.iter().any(|switch| switch.kind == Kind::Vale) {
            // It ends with status 1 whether or not there are ports (`usr.sbin/valectl/valectl.c`, list_all).
            observed.vale_ports = vale_ports(&program::printed("valectl", &[]));
        }
        Ok(observed)
    }

    /// Notes whether the DHCP service of a switch runs.
    fn serve(&mut self, switch: &Switch, runtime: &Path) {
        if steps::service(switch, self.tools, &switch.directory(runtime)).is_some_and(|service| service.is_running()) {
            self.serving.push(switch.id.clone());
        }
    }
    /// Returns the change that removes the rules of a switch. Where that fails without any, there is none then.
    fn flush(&self, switch: &str) -> Option<HostChange> {
        match self.tools {
            Tools::FreeBsd => Some(pf::flush(switch)),
            Tools::Linux => self.filtered.iter().any(|id| id == switch).then(|| nft::flush(switch)),
        }
    }
    /// Returns why the packet filter cannot be asked, if it cannot: only root may.
    pub fn unasked(&self) -> Option<&HostError> {
        match &self.pf {
            Some(Err(error)) => Some(error),
            _ => self.nft.as_ref(),
        }
    }
    /// Returns the interface of this name.
    pub fn interface(&self, name: &str) -> Option<&Interface> {
        self.interfaces.iter().find(|interface| interface.name == name)
    }
    /// Returns the netgraph node of this name.
    pub fn node(&self, name: &str) -> Option<&NetgraphNode> {
        self.nodes.iter().find(|node| node.name == name)
    }
    /// Returns the bridge that an interface is a member of.
    pub fn bridge_of(&self, member: &str) -> Option<&Interface> {
        self.interfaces.iter().find(|interface| interface.members.iter().any(|name| name == member))
    }
    /// Returns the interface of the session.
    pub fn session_interface(&self) -> Option<&Interface> {
        let session = self.session?;
        self.interfaces.iter().find(|one| one.addresses.iter().any(|prefix| prefix.address == session))
    }
}

/// Parses the ports that valectl(8) lists as `NAME bridge_idx N port_idx N` (FreeBSD `usr.sbin/valectl/valectl.c`,
/// list_all).
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

    /// Creates a bridge with this name and no other setting.
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
    fn the_ports_of_vale_switches_are_listed() {
        let text = "vale-lan:em0 bridge_idx 0 port_idx 0\nvale-lan:em0^ bridge_idx 0 port_idx 1\n";
        assert_eq!(vale_ports(text), ["vale-lan:em0", "vale-lan:em0^"]);
    }
}
