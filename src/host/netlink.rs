//! Interfaces, addresses and routes of Linux, through rtnetlink(7).
//!
//! An interface that vmctl makes is in the group [`GROUP`] from the request on that makes it, and gets its description by
//! the next one, since the kernel takes none with the first (`net/core/rtnetlink.c`, rtnl_create_link). One of the group
//! without a description was made by a command that was killed in between.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage};
use netlink_packet_route::link::{
    InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoPortKind, InfoVlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::sys::socket::{
    AddressFamily as Domain, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send, socket,
};

use super::error::HostError;
use super::ifconfig::{Interface, Prefix, Traffic};
use super::link::LinkChange;
use super::route::DefaultRoute;

/// The group (IFLA_GROUP) of the interfaces that vmctl makes: "vm" in ASCII.
const GROUP: u32 = 0x766d;
/// Room for one read of answers: the kernel fills at most 32 KiB of a dump (`net/netlink/af_netlink.c`, netlink_dump).
const ANSWER_BYTES: usize = 64 << 10;

/// A socket of rtnetlink(7).
struct Netlink {
    socket: OwnedFd,
    sequence: u32,
}

impl Netlink {
    fn open() -> io::Result<Netlink> {
        let socket = socket(Domain::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkRoute)?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        Ok(Netlink { socket, sequence: 0 })
    }

    /// Sends a request and returns what the kernel answers before its acknowledgement, or before the end of a dump.
    fn ask(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<Vec<RouteNetlinkMessage>> {
        self.sequence += 1;
        let mut packet = NetlinkMessage::new(NetlinkHeader::default(), NetlinkPayload::from(message));
        packet.header.flags = NLM_F_REQUEST | flags;
        packet.header.sequence_number = self.sequence;
        packet.finalize();
        let mut bytes = vec![0; packet.buffer_len()];
        packet.serialize(&mut bytes);
        send(self.socket.as_raw_fd(), &bytes, MsgFlags::empty())?;
        let (mut answers, mut buffer) = (Vec::new(), vec![0; ANSWER_BYTES]);
        loop {
            let count = recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
            let mut rest = &buffer[..count];
            while !rest.is_empty() {
                let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest).map_err(io::Error::other)?;
                // Lengths are rounded up to 4 (netlink(7), NLMSG_ALIGN).
                let length = (answer.header.length as usize).next_multiple_of(4).clamp(4, rest.len());
                rest = &rest[length..];
                if answer.header.sequence_number != self.sequence {
                    continue;
                }
                match answer.payload {
                    NetlinkPayload::Done(_) => return Ok(answers),
                    NetlinkPayload::Error(error) if error.code.is_none() => return Ok(answers),
                    NetlinkPayload::Error(error) => return Err(error.to_io()),
                    NetlinkPayload::InnerMessage(message) => answers.push(message),
                    _ => {}
                }
            }
        }
    }

    /// Asks for a change.
    fn change(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.ask(message, NLM_F_ACK | flags).map(drop)
    }

    fn links(&mut self) -> io::Result<Vec<LinkMessage>> {
        let answers = self.ask(RouteNetlinkMessage::GetLink(LinkMessage::default()), NLM_F_DUMP)?;
        let link = |answer| match answer {
            RouteNetlinkMessage::NewLink(link) => Some(link),
            _ => None,
        };
        Ok(answers.into_iter().filter_map(link).collect())
    }

    /// Returns a message about the interface of this name.
    fn link(&mut self, name: &str) -> io::Result<LinkMessage> {
        let mut message = LinkMessage::default();
        message.header.index = index(name)?;
        Ok(message)
    }

    /// Sets attributes of an interface.
    fn set(&mut self, name: &str, attributes: Vec<LinkAttribute>) -> io::Result<()> {
        let mut message = self.link(name)?;
        message.attributes = attributes;
        self.change(RouteNetlinkMessage::SetLink(message), 0)
    }

    fn make(&mut self, name: &str, alias: &str, mut attributes: Vec<LinkAttribute>) -> io::Result<()> {
        let mut message = LinkMessage::default();
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
        attributes.extend([LinkAttribute::IfName(name.to_owned()), LinkAttribute::Group(GROUP)]);
        message.attributes = attributes;
        self.change(RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL)?;
        self.set(name, vec![LinkAttribute::IfAlias(alias.to_owned())])
    }
}

/// Returns the number of an interface: ENODEV where there is none of this name.
fn index(name: &str) -> io::Result<u32> {
    nix::net::if_::if_nametoindex(name).map_err(io::Error::from)
}

/// Returns an address for a bridge that is its own for good. Without one, the address is that of a member and changes
/// with the members (`net/bridge/br_stp_if.c`, br_stp_recalculate_bridge_id), and guests lose the host for minutes.
fn own_address() -> Vec<u8> {
    let mut bytes = [0; 6];
    // Without random numbers the kernel's own choice stands.
    if getrandom::fill(&mut bytes).is_err() {
        return Vec::new();
    }
    // Locally administered, and of one station (IEEE 802, 8.4).
    bytes[0] = (bytes[0] & !1) | 2;
    bytes.to_vec()
}

/// Carries out a change.
pub fn perform(change: &LinkChange) -> io::Result<()> {
    let mut netlink = Netlink::open()?;
    match change {
        LinkChange::Bridge { name, alias } => {
            let mut attributes = vec![LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge)])];
            let address = own_address();
            if !address.is_empty() {
                attributes.push(LinkAttribute::Address(address));
            }
            netlink.make(name, alias, attributes)
        }
        LinkChange::Vlan { name, parent, tag, alias } => {
            let info = vec![LinkInfo::Kind(InfoKind::Vlan), LinkInfo::Data(InfoData::Vlan(vec![InfoVlan::Id(*tag)]))];
            netlink.make(name, alias, vec![LinkAttribute::Link(index(parent)?), LinkAttribute::LinkInfo(info)])
        }
        LinkChange::Alias { name, alias } => netlink.set(name, vec![LinkAttribute::IfAlias(alias.clone())]),
        LinkChange::Destroy { name } => {
            let message = netlink.link(name)?;
            netlink.change(RouteNetlinkMessage::DelLink(message), 0)
        }
        LinkChange::Up { name, up } => {
            let mut message = netlink.link(name)?;
            message.header.change_mask = LinkFlags::Up;
            message.header.flags = if *up { LinkFlags::Up } else { LinkFlags::empty() };
            netlink.change(RouteNetlinkMessage::SetLink(message), 0)
        }
        LinkChange::Member { name, bridge } => {
            let bridge = bridge.as_deref().map(index).transpose()?.unwrap_or(0);
            netlink.set(name, vec![LinkAttribute::Controller(bridge)])
        }
        LinkChange::Isolated { name, isolated } => {
            let mut message = netlink.link(name)?;
            let data = InfoPortData::BridgePort(vec![InfoBridgePort::Isolated(*isolated)]);
            message.attributes =
                vec![LinkAttribute::LinkInfo(vec![LinkInfo::PortKind(InfoPortKind::Bridge), LinkInfo::PortData(data)])];
            // Only a request of this kind reaches the settings of a member (`net/core/rtnetlink.c`, rtnl_changelink).
            netlink.change(RouteNetlinkMessage::NewLink(message), 0)
        }
        LinkChange::Mtu { name, mtu } => netlink.set(name, vec![LinkAttribute::Mtu(*mtu)]),
        LinkChange::Address { name, prefix, there } => address(&mut netlink, name, *prefix, *there),
        LinkChange::DefaultRoute { gateway, there } => route(&mut netlink, *gateway, *there),
    }
}

fn address(netlink: &mut Netlink, name: &str, prefix: Prefix, there: bool) -> io::Result<()> {
    let mut message = AddressMessage::default();
    message.header.family = if prefix.address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    message.header.prefix_len = prefix.length;
    message.header.index = index(name)?;
    message.attributes = vec![AddressAttribute::Local(prefix.address), AddressAttribute::Address(prefix.address)];
    if let (IpAddr::V4(address), 1..=30) = (prefix.address, prefix.length) {
        let hosts = u32::MAX >> prefix.length;
        message.attributes.push(AddressAttribute::Broadcast((address.to_bits() | hosts).into()));
    }
    match there {
        true => netlink.change(RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE | NLM_F_EXCL),
        false => netlink.change(RouteNetlinkMessage::DelAddress(message), 0),
    }
}

fn route(netlink: &mut Netlink, gateway: IpAddr, there: bool) -> io::Result<()> {
    let mut message = RouteMessage::default();
    message.header.address_family = if gateway.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.attributes = vec![RouteAttribute::Gateway(RouteAddress::from(gateway))];
    match there {
        true => {
            message.header.protocol = RouteProtocol::Static;
            message.header.kind = RouteType::Unicast;
            netlink.change(RouteNetlinkMessage::NewRoute(message), NLM_F_CREATE | NLM_F_EXCL)
        }
        false => {
            // "Any" (`net/ipv4/fib_trie.c`, fib_table_delete).
            message.header.scope = RouteScope::NoWhere;
            netlink.change(RouteNetlinkMessage::DelRoute(message), 0)
        }
    }
}

/// Returns all interfaces of this host.
pub fn interfaces() -> Result<Vec<Interface>, HostError> {
    look().map_err(|error| HostError::user(format!("the interfaces of this host cannot be listed: {error}")))
}

fn look() -> io::Result<Vec<Interface>> {
    let mut netlink = Netlink::open()?;
    let links = netlink.links()?;
    let answers = netlink.ask(RouteNetlinkMessage::GetAddress(AddressMessage::default()), NLM_F_DUMP)?;
    let mut found: Vec<(u32, Option<u32>, Interface)> = links.iter().map(interface).collect();
    let names: Vec<(u32, String)> = found.iter().map(|(index, _, one)| (*index, one.name.clone())).collect();
    let named = |index: u32| names.iter().find(|(other, _)| *other == index).map(|(_, name)| name.clone());
    for (link, (_, _, one)) in links.iter().zip(&mut found) {
        one.vlan = vlan(link).and_then(|(tag, parent)| Some((tag, named(parent)?)));
    }
    let members: Vec<(u32, String)> = found.iter().filter_map(|(_, bridge, one)| Some(((*bridge)?, one.name.clone()))).collect();
    for (bridge, member) in members {
        if let Some((_, _, one)) = found.iter_mut().find(|(index, ..)| *index == bridge) {
            one.members.push(member);
        }
    }
    for answer in answers {
        if let RouteNetlinkMessage::NewAddress(message) = answer
            && let Some(prefix) = prefix(&message)
            && let Some((_, _, one)) = found.iter_mut().find(|(index, ..)| *index == message.header.index)
        {
            one.addresses.push(prefix);
        }
    }
    Ok(found.into_iter().map(|(_, _, one)| one).collect())
}

/// Returns an interface with its number and that of its bridge.
fn interface(link: &LinkMessage) -> (u32, Option<u32>, Interface) {
    let mut one = Interface { up: link.header.flags.contains(LinkFlags::Up), ..Interface::default() };
    let (mut bridge, mut ours) = (None, false);
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::IfName(name) => one.name.clone_from(name),
            LinkAttribute::IfAlias(alias) => one.description.clone_from(alias),
            LinkAttribute::Mtu(mtu) => one.mtu = *mtu,
            LinkAttribute::Controller(index) if *index != 0 => bridge = Some(*index),
            LinkAttribute::Group(group) => ours = *group == GROUP,
            LinkAttribute::LinkInfo(infos) => {
                let kind = infos.iter().find_map(|info| match info {
                    LinkInfo::Kind(kind) => Some(kind.to_string()),
                    _ => None,
                });
                one.kind = kind.unwrap_or_default();
            }
            _ => {}
        }
    }
    one.unfinished = ours && one.description.is_empty();
    (link.header.index, bridge, one)
}

/// Returns the number of an interface's VLAN, and the number of the interface that it is on.
fn vlan(link: &LinkMessage) -> Option<(u16, u32)> {
    let (mut tag, mut parent) = (None, None);
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::Link(index) => parent = Some(*index),
            LinkAttribute::LinkInfo(infos) => {
                tag = infos.iter().find_map(|info| match info {
                    LinkInfo::Data(InfoData::Vlan(infos)) => infos.iter().find_map(|info| match info {
                        InfoVlan::Id(tag) => Some(*tag),
                        _ => None,
                    }),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    Some((tag?, parent?))
}

/// Returns an address, unless it is a link-local one of IPv6, or one that the network gave for a time.
fn prefix(message: &AddressMessage) -> Option<Prefix> {
    let (mut local, mut other) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(address) => local = Some(*address),
            AddressAttribute::Address(address) => other = Some(*address),
            _ => {}
        }
    }
    let address = local.or(other)?;
    let passes = match address {
        IpAddr::V4(_) => false,
        IpAddr::V6(v6) => v6.is_unicast_link_local() || !message.header.flags.contains(AddressHeaderFlags::Permanent),
    };
    (!passes).then_some(Prefix { address, length: message.header.prefix_len })
}

/// Returns the IPv4 default route with the least metric, if there is one.
pub fn default_route() -> Option<DefaultRoute> {
    let mut netlink = Netlink::open().ok()?;
    let mut message = RouteMessage::default();
    message.header.address_family = AddressFamily::Inet;
    let answers = netlink.ask(RouteNetlinkMessage::GetRoute(message), NLM_F_DUMP).ok()?;
    let routes = answers.into_iter().filter_map(|answer| match answer {
        RouteNetlinkMessage::NewRoute(route) => default_of(&route),
        _ => None,
    });
    let (_, index, gateway) = routes.min_by_key(|(metric, ..)| *metric)?;
    let name = nix::net::if_::if_indextoname(index).ok()?;
    Some(DefaultRoute { interface: name.to_str().ok()?.to_owned(), gateway })
}

/// Returns metric, interface and router of a default route of the main table.
fn default_of(route: &RouteMessage) -> Option<(u32, u32, Option<IpAddr>)> {
    let header = &route.header;
    let counts = header.destination_prefix_length == 0
        && header.table == RouteHeader::RT_TABLE_MAIN
        && header.kind == RouteType::Unicast
        && header.address_family == AddressFamily::Inet;
    let (mut metric, mut index, mut gateway) = (0, None, None);
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Priority(priority) => metric = *priority,
            RouteAttribute::Oif(oif) => index = Some(*oif),
            RouteAttribute::Gateway(RouteAddress::Inet(address)) => gateway = Some(IpAddr::V4(*address)),
            _ => {}
        }
    }
    counts.then_some((metric, index?, gateway))
}

/// Returns the traffic of an interface.
pub fn traffic(name: &str) -> Option<Traffic> {
    let mut netlink = Netlink::open().ok()?;
    let message = netlink.link(name).ok()?;
    let answers = netlink.ask(RouteNetlinkMessage::GetLink(message), NLM_F_ACK).ok()?;
    answers.iter().find_map(|answer| match answer {
        RouteNetlinkMessage::NewLink(link) => link.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::Stats64(stats) => Some(Traffic {
                received_bytes: stats.rx_bytes,
                received_packets: stats.rx_packets,
                sent_bytes: stats.tx_bytes,
                sent_packets: stats.tx_packets,
            }),
            _ => None,
        }),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interfaces_of_this_host_are_listed_with_their_addresses() {
        let all = interfaces().expect("lists");
        let loopback = all.iter().find(|one| one.name == "lo").expect("every network stack has it");
        assert!(loopback.mtu > 0 && !loopback.unfinished && loopback.members.is_empty());
        assert!(traffic("lo").is_some());
        assert_eq!(traffic("not-there"), None);
        let error = perform(&LinkChange::Up { name: "not-there".into(), up: true }).expect_err("is not there");
        assert_eq!(error.raw_os_error(), Some(libc::ENODEV));
    }

    #[test]
    fn a_made_up_address_is_local_and_of_one_station() {
        for _ in 0..100 {
            let address = own_address();
            assert_eq!((address.len(), address[0] & 3), (6, 2));
        }
    }

    #[test]
    fn the_default_route_is_the_one_without_a_destination_in_the_main_table() {
        let mut route = RouteMessage::default();
        route.header.address_family = AddressFamily::Inet;
        route.header.table = RouteHeader::RT_TABLE_MAIN;
        route.header.kind = RouteType::Unicast;
        let router = IpAddr::from([192, 0, 2, 1]);
        route.attributes =
            vec![RouteAttribute::Oif(3), RouteAttribute::Gateway(RouteAddress::from(router)), RouteAttribute::Priority(100)];
        assert_eq!(default_of(&route), Some((100, 3, Some(router))));
        let mut other = route.clone();
        other.header.destination_prefix_length = 24;
        assert_eq!(default_of(&other), None);
        route.header.table = 7;
        assert_eq!(default_of(&route), None);
    }
}
