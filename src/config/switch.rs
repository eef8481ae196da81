//! Switches of the host file or of a fleet: their configuration, and the rules that involve more than one key.

use std::net::{IpAddr, Ipv4Addr};

use serde::Serialize;

use super::addresses::InterfaceAddress;
use super::diagnostic::{Diagnostic, Location, Problems};
use super::table_reader::TableReader;
use crate::choices::SwitchType;

/// Configuration of a switch for guests' interfaces.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SwitchConfig {
    /// Id, which is unique and has at most 12 characters.
    pub id: String,
    /// Kind of the switch.
    pub kind: SwitchKind,
    /// Interfaces of the host that belong to it; at least one with a `vlan`, exactly one for vxlan.
    pub uplinks: Vec<String>,
    /// VLAN of the uplinks.
    pub vlan: Option<u16>,
    /// Addresses of the host on it.
    pub addresses: Vec<InterfaceAddress>,
    /// Largest packet.
    pub mtu: Option<u16>,
    /// Whether guests on it cannot talk to each other.
    pub private: bool,
    /// NAT, if guests reach the outside through the host's addresses. There is an IPv4 address then.
    pub nat: Option<Nat>,
    /// DHCP range, which lies in the network of an address of the host.
    pub dhcp: Option<Dhcp>,
    /// The fleet that declares it; `None` for the host file.
    pub fleet: Option<String>,
}

impl SwitchConfig {
    /// Returns whether the other one is the same switch, wherever it is declared.
    pub fn is_like(&self, other: &SwitchConfig) -> bool {
        SwitchConfig { fleet: other.fleet.clone(), ..self.clone() } == *other
    }
    /// Returns the file that declares it, in words.
    pub fn declared(&self) -> String {
        match &self.fleet {
            Some(fleet) => format!("the fleet `{fleet}`"),
            None => "the host file".to_owned(),
        }
    }
}

/// Kind of a switch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum SwitchKind {
    /// An if_bridge(4) that vmctl makes.
    Bridge,
    /// A bridge of the user.
    Manual {
        /// The interface.
        bridge: String,
    },
    /// A bridge with a vxlan(4) interface that vmctl makes.
    Vxlan {
        /// Number of the network.
        vni: u32,
        /// Multicast group. By default it follows from the switch's name.
        group: Option<IpAddr>,
    },
    /// A vale(4) switch.
    Vale,
    /// An ng_bridge(4) node.
    Netgraph {
        /// Its name, without a colon.
        node: String,
        /// Whether vmctl makes it; otherwise it belongs to the user.
        ours: bool,
    },
}

/// NAT for guests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Nat {
    /// Outgoing interface; by default that of the default route.
    pub egress: Option<String>,
}

/// DHCP for guests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Dhcp {
    /// The first address.
    pub first: Ipv4Addr,
    /// The last address, which is not below the first.
    pub last: Ipv4Addr,
    /// The host's address in the same network: the router and the server.
    pub router: Ipv4Addr,
    /// Prefix length of the network.
    pub prefix: u8,
    /// Name servers for guests; by default the router.
    pub dns: Vec<IpAddr>,
    /// Domain for guests.
    pub domain: Option<String>,
}

/// Reads `[[switches]]`, whose keys have been checked.
pub(super) fn switches(view: &TableReader<'_>, problems: &mut Problems) -> Vec<SwitchConfig> {
    let mut seen: Vec<String> = Vec::new();
    let mut found = Vec::new();
    for entry in view.entries("switches") {
        let Some(id) = entry.text("id") else {
            problems.push(Diagnostic::at(entry.location, "an entry of `switches` has no `id`").hint("add `id = \"NAME\"`"));
            continue;
        };
        if seen.contains(&id) {
            problems.push(Diagnostic::at(entry.location_of("id"), format!("id `{id}` is used twice in `switches`")));
        } else if id.len() > 12 {
            let message = format!("`{id}` has more than the 12 characters that the name of a switch can have");
            problems.push(Diagnostic::at(entry.location_of("id"), message).hint("its interfaces are named after it"));
        }
        seen.push(id.clone());
        found.extend(switch(&entry, id, problems));
    }
    found
}

fn switch(entry: &TableReader<'_>, id: String, problems: &mut Problems) -> Option<SwitchConfig> {
    let before = problems.len();
    let kind: SwitchType = entry.choice("type");
    allowed(entry, kind, problems);
    let uplinks: Vec<String> = entry.text_nodes("uplinks").into_iter().map(|(text, _)| text.to_owned()).collect();
    for (text, node) in entry.text_nodes("uplinks") {
        interface(text, &node.location, problems);
    }
    let addresses = addresses(entry, problems);
    let kind = match kind {
        SwitchType::Bridge => SwitchKind::Bridge,
        SwitchType::Vale => SwitchKind::Vale,
        SwitchType::Vxlan => {
            if uplinks.len() != 1 {
                let message = format!("switch `{id}` has {} uplinks, a vxlan leaves through one", uplinks.len());
                problems.push(Diagnostic::at(entry.location_of("uplinks"), message).hint("set `uplinks = [\"INTERFACE\"]`"));
            }
            let group: Option<IpAddr> = entry.text("group").and_then(|text| text.parse().ok());
            if group.is_some_and(|group| !group.is_multicast()) {
                problems.push(Diagnostic::at(entry.location_of("group"), "`switches.group` is not a multicast address"));
            }
            SwitchKind::Vxlan { vni: needed(entry, "vni", &id, problems, |leaf| entry.small(leaf))?, group }
        }
        SwitchType::Manual => {
            let bridge = needed(entry, "bridge", &id, problems, |leaf| entry.text(leaf))?;
            interface(&bridge, entry.location_of("bridge"), problems);
            SwitchKind::Manual { bridge }
        }
        SwitchType::Netgraph => match entry.text("bridge") {
            None => SwitchKind::Netgraph { node: format!("vmctl-{id}"), ours: true },
            Some(node) => {
                let node = node.strip_suffix(':').unwrap_or(&node).to_owned();
                if node.is_empty() || node.len() > 31 || node.contains([':', '.', ' ', ',']) {
                    let message = format!("`{node}` is not the name of a netgraph node");
                    problems.push(Diagnostic::at(entry.location_of("bridge"), message));
                }
                SwitchKind::Netgraph { node, ours: false }
            }
        },
    };
    let vlan = entry.small("vlan").map(|vlan| u16::try_from(vlan).expect("the key table's bounds fit"));
    if vlan.is_some() && uplinks.is_empty() {
        let message = format!("switch `{id}` is in a VLAN of its uplinks and has none");
        problems.push(Diagnostic::at(entry.location_of("vlan"), message).hint("set `uplinks = [\"INTERFACE\"]`"));
    }
    let nat = entry.flag("nat").then(|| Nat { egress: entry.text("egress") });
    if nat.is_some() && !addresses.iter().any(|address| address.address.is_ipv4()) {
        let message = format!("switch `{id}` has NAT and no IPv4 address, which is the guests' router");
        problems.push(Diagnostic::at(entry.location_of("nat"), message).hint("set `addresses = [\"10.1.0.1/24\"]`"));
    }
    if let Some(egress) = entry.text("egress") {
        interface(&egress, entry.location_of("egress"), problems);
        if nat.is_none() {
            let message = "`switches.egress` does nothing without `nat = true`";
            problems.push(Diagnostic::at(entry.location_of("egress"), message));
        }
    }
    let dhcp = dhcp(entry, &id, &addresses, problems);
    let mtu = entry.small("mtu").map(|mtu| u16::try_from(mtu).expect("the key table's bounds fit"));
    let private = entry.flag("private");
    let switch = SwitchConfig { id, kind, uplinks, vlan, addresses, mtu, private, nat, dhcp, fleet: None };
    (problems.len() == before).then_some(switch)
}

/// Returns a key that this type of switch needs.
fn needed<T>(
    entry: &TableReader<'_>,
    leaf: &str,
    id: &str,
    problems: &mut Problems,
    read: impl Fn(&str) -> Option<T>,
) -> Option<T> {
    let value = read(leaf);
    if value.is_none() {
        let kind = entry.text("type").expect("has a default");
        problems
            .push(Diagnostic::at(entry.location_of("type"), format!("switch `{id}` is of type `{kind}` and has no `{leaf}`")));
    }
    value
}

/// Refuses the keys that this type of switch does not use.
fn allowed(entry: &TableReader<'_>, kind: SwitchType, problems: &mut Problems) {
    const OURS: [&str; 6] = ["addresses", "mtu", "nat", "egress", "dhcp", "uplinks"];
    for leaf in
        ["bridge", "uplinks", "vlan", "vni", "group", "addresses", "mtu", "private", "nat", "egress", "dhcp", "dns", "domain"]
    {
        let fits = match kind {
            SwitchType::Bridge => !matches!(leaf, "bridge" | "vni" | "group"),
            SwitchType::Vxlan => !matches!(leaf, "bridge" | "vlan"),
            SwitchType::Manual => matches!(leaf, "bridge" | "private"),
            SwitchType::Vale => leaf == "uplinks",
            SwitchType::Netgraph if entry.node("bridge").is_none() => matches!(leaf, "uplinks" | "vlan"),
            SwitchType::Netgraph => leaf == "bridge",
        };
        if !fits && let Some(node) = entry.node(leaf) {
            let diagnostic = Diagnostic::at(&node.location, format!("a switch of type `{}` has no `{leaf}`", kind.as_str()));
            let hint = match kind {
                SwitchType::Manual if OURS.contains(&leaf) => Some("the bridge is yours: set it up there".to_owned()),
                SwitchType::Netgraph if matches!(leaf, "uplinks" | "vlan") => {
                    Some("the node is yours: connect it there".to_owned())
                }
                _ => None,
            };
            problems.push(diagnostic.maybe_hint(hint));
        }
    }
}

/// Checks the name of an interface: at most 15 bytes (IFNAMSIZ of FreeBSD's net/if.h, with its NUL).
fn interface(text: &str, location: &Location, problems: &mut Problems) {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.');
    if text.is_empty() || text.len() > 15 || !text.bytes().all(plain) {
        let hint = "at most 15 letters, digits, `.`, `_` and `-`";
        problems.push(Diagnostic::at(location, format!("`{text}` is not the name of an interface")).hint(hint));
    }
}

fn addresses(entry: &TableReader<'_>, problems: &mut Problems) -> Vec<InterfaceAddress> {
    let mut found: Vec<InterfaceAddress> = Vec::new();
    for (text, node) in entry.text_nodes("addresses") {
        match text.parse::<InterfaceAddress>() {
            Ok(address) if found.contains(&address) => {
                problems.push(Diagnostic::at(&node.location, format!("address `{text}` is given twice")));
            }
            Ok(address) => found.push(address),
            Err(()) => problems.push(
                Diagnostic::at(&node.location, format!("`{text}` is not an address with its prefix length"))
                    .hint("like `10.1.0.1/24` or `fd00::1/64`"),
            ),
        }
    }
    found
}

fn dhcp(entry: &TableReader<'_>, id: &str, addresses: &[InterfaceAddress], problems: &mut Problems) -> Option<Dhcp> {
    let Some(text) = entry.text("dhcp") else {
        for leaf in ["dns", "domain"] {
            if let Some(node) = entry.node(leaf) {
                let message = format!("`switches.{leaf}` does nothing without `dhcp`");
                problems.push(Diagnostic::at(&node.location, message));
            }
        }
        return None;
    };
    let location = entry.location_of("dhcp");
    let range = text.split_once('-').and_then(|(first, last)| {
        let (first, last): (Ipv4Addr, Ipv4Addr) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        (first <= last).then_some((first, last))
    });
    let Some((first, last)) = range else {
        let message = format!("`{text}` is not a range of addresses");
        problems.push(Diagnostic::at(location, message).hint("like `10.1.0.100-10.1.0.199`"));
        return None;
    };
    let mut dns = Vec::new();
    for (text, node) in entry.text_nodes("dns") {
        match text.parse::<IpAddr>() {
            Ok(address) => dns.push(address),
            Err(_) => {
                problems.push(Diagnostic::at(&node.location, format!("`{text}` is not an IP address")).hint("like `9.9.9.9`"))
            }
        }
    }
    let Some((network, router)) = addresses.iter().find_map(|network| match network.address {
        IpAddr::V4(router) if network.holds(first) && network.holds(last) => Some((network, router)),
        _ => None,
    }) else {
        let message = format!("the range of switch `{id}` is in no network of its addresses");
        problems.push(Diagnostic::at(location, message).hint("set `addresses`, like `[\"10.1.0.1/24\"]`"));
        return None;
    };
    if (first..=last).contains(&router) {
        let message = format!("the range of switch `{id}` contains the host's own address `{router}`");
        problems.push(Diagnostic::at(location, message));
    }
    let (lowest, highest) = network.ends().expect("it is an IPv4 network");
    if first == lowest || last == highest {
        let message = format!("the range of switch `{id}` contains the first or the last address of `{network}`");
        problems.push(Diagnostic::at(location, message).hint("they are the network itself and its broadcast address"));
    }
    Some(Dhcp { first, last, router, prefix: network.prefix, dns, domain: entry.text("domain") })
}
