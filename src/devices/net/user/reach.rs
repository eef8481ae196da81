//! What the guest may reach: the addresses of its network, and the rules for everything else.
//!
//! | destination | reached |
//! |---|---|
//! | the gateway, which is the host's 127.0.0.1 | with `host_access`, or at a port of `host_ports` |
//! | the name server, port 53 | unless isolated |
//! | the address of [`answers`](super::answers), port 80 | when there are files |
//! | another address of the host | as the gateway, and not when isolated |
//! | 169.254.0.0/16, where clouds serve the identity of their machines | with `link_local` |
//! | 127.0.0.0/8, 0.0.0.0/8 | never: they are the guest's own |
//! | the rest | unless isolated |
//!
//! Everything else is refused at once: TCP with RST, the rest with "administratively prohibited" (RFC 1812, 5.2.7.1).
//! The code that makes the sockets decides whether an address is one of the host's own, since the host may move.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};

use super::packet::Mac;
use super::{Protocol, sockets::Scope};

const DNS_PORT: u16 = 53;

/// The addresses of a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Addresses {
    /// Its first address.
    pub network: Ipv4Addr,
    /// Bits of the prefix.
    pub prefix: u8,
    /// The gateway, the DHCP server and the host.
    pub gateway: Ipv4Addr,
    /// The name server.
    pub dns: Ipv4Addr,
    /// Address at which files are served, if there are any.
    pub answers: Ipv4Addr,
    /// The guest.
    pub guest: Ipv4Addr,
}

impl Default for Addresses {
    fn default() -> Addresses {
        let at = |last| Ipv4Addr::new(10, 0, 2, last);
        Addresses { network: at(0), prefix: 24, gateway: at(2), dns: at(3), answers: at(4), guest: at(15) }
    }
}

impl Addresses {
    /// Returns the network's mask.
    pub fn mask(&self) -> Ipv4Addr {
        Ipv4Addr::from(u32::MAX.checked_shl(32 - u32::from(self.prefix.min(32))).unwrap_or(0))
    }

    /// Returns whether an address is in the network.
    pub fn contains(&self, ip: Ipv4Addr) -> bool {
        (u32::from(ip) ^ u32::from(self.network)) & u32::from(self.mask()) == 0
    }

    /// Returns whether an address can be the guest's: it is in the network and not in use.
    pub fn may_be_guest(&self, ip: Ipv4Addr) -> bool {
        self.contains(ip) && ![self.gateway, self.dns].contains(&ip)
    }

    /// Returns the gateway's Ethernet address: locally administered, its IP address in the last four bytes.
    pub fn gateway_mac(&self) -> Mac {
        let [a, b, c, d] = self.gateway.octets();
        [0x52, 0x55, a, b, c, d]
    }

    /// Returns the address at which files are served.
    pub fn answers_at(&self) -> SocketAddrV4 {
        SocketAddrV4::new(self.answers, super::ANSWERS_PORT)
    }
}

/// A range of ports of one protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ports {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// The first port.
    pub first: u16,
    /// The last port.
    pub last: u16,
}

/// Rules for what the guest may reach.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reach {
    /// No access to the outside, and no name server.
    pub isolated: bool,
    /// Access to the host itself.
    pub host_access: bool,
    /// Ports of the host that the guest reaches even without `host_access`.
    pub host_ports: Vec<Ports>,
    /// Access to link-local addresses.
    pub link_local: bool,
}

/// Destination of a packet of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Destination {
    /// An address as the host sees it.
    Host(SocketAddr, Scope),
    /// Refused with an answer to the guest.
    Refused,
    /// An unused address.
    Nobody,
}

impl Reach {
    fn opens(&self, protocol: Option<Protocol>, port: u16) -> bool {
        let listed = |ports: &Ports| Some(ports.protocol) == protocol && (ports.first..=ports.last).contains(&port);
        self.host_access || self.host_ports.iter().any(listed)
    }

    /// Returns the destination of a packet to `to`. ICMP has no protocol and port 0.
    pub fn destination(
        &self,
        network: &Addresses,
        protocol: Option<Protocol>,
        to: SocketAddrV4,
        name_server: SocketAddr,
    ) -> Destination {
        let (ip, port) = (*to.ip(), to.port());
        if ip == network.gateway {
            return match self.opens(protocol, port) {
                true => Destination::Host(SocketAddr::from((Ipv4Addr::LOCALHOST, port)), Scope::Everywhere),
                false => Destination::Refused,
            };
        }
        if ip == network.dns {
            return match port == DNS_PORT && !self.isolated {
                true => Destination::Host(name_server, Scope::Everywhere),
                false => Destination::Refused,
            };
        }
        self.beyond(network, protocol, to)
    }

    /// Where a packet to an address goes that is none of the network's own.
    fn beyond(&self, network: &Addresses, protocol: Option<Protocol>, to: SocketAddrV4) -> Destination {
        let ip = *to.ip();
        if network.contains(ip) || ip.is_multicast() || ip.is_broadcast() {
            return Destination::Nobody;
        }
        let own = ip.is_loopback() || ip.octets()[0] == 0;
        if self.isolated || own || ip.is_link_local() && !self.link_local {
            return Destination::Refused;
        }
        let open = self.opens(protocol, to.port());
        Destination::Host(SocketAddr::V4(to), if open { Scope::Everywhere } else { Scope::OtherHosts })
    }
}

/// What one interface of a guest may reach: for those who make its sockets.
#[derive(Debug, Clone, Default)]
pub struct NicReach {
    /// Its network.
    pub addresses: Addresses,
    /// What the guest may reach by it.
    pub reach: Reach,
    /// Its name servers; those of the host if empty.
    pub name_servers: Vec<SocketAddr>,
}

impl NicReach {
    /// Whether its queries go to the host's name servers.
    pub fn asks_the_hosts(&self) -> bool {
        !self.reach.isolated && self.name_servers.is_empty()
    }

    /// The hosts that a socket to `to`, an address as the host sees it, may lead to; `None`: it leads to none. ICMP has no
    /// protocol and port 0. `host_servers` are the host's name servers.
    pub fn scope(&self, protocol: Option<Protocol>, to: SocketAddr, host_servers: &[SocketAddr]) -> Option<Scope> {
        let servers = if self.name_servers.is_empty() { host_servers } else { &self.name_servers };
        if protocol.is_some() && !self.reach.isolated && servers.contains(&to) {
            return Some(Scope::Everywhere);
        }
        let SocketAddr::V4(to) = to else { return None };
        if *to.ip() == Ipv4Addr::LOCALHOST {
            return self.reach.opens(protocol, to.port()).then_some(Scope::Everywhere);
        }
        match self.reach.beyond(&self.addresses, protocol, to) {
            Destination::Host(_, scope) => Some(scope),
            Destination::Refused | Destination::Nobody => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVER: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::new(127, 0, 0, 53)), 53);

    fn at(text: &str) -> SocketAddrV4 {
        text.parse().unwrap()
    }

    fn host(text: &str, scope: Scope) -> Destination {
        Destination::Host(SocketAddr::V4(at(text)), scope)
    }

    fn tcp(reach: &Reach, to: &str) -> Destination {
        reach.destination(&Addresses::default(), Some(Protocol::Tcp), at(to), SERVER)
    }

    #[test]
    fn by_itself_a_guest_reaches_the_world_and_its_name_server_and_nothing_of_the_host() {
        let reach = Reach::default();
        assert_eq!(tcp(&reach, "192.0.2.1:80"), host("192.0.2.1:80", Scope::OtherHosts));
        assert_eq!(tcp(&reach, "10.0.2.3:53"), host("127.0.0.53:53", Scope::Everywhere));
        let refused = [
            "10.0.2.2:22",
            "10.0.2.2:0",
            "10.0.2.3:80",
            "127.0.0.1:22",
            "127.255.0.1:22",
            "0.0.0.0:22",
            "0.1.2.3:22",
            "169.254.169.254:80",
            "169.254.0.1:80",
        ];
        for to in refused {
            assert_eq!(tcp(&reach, to), Destination::Refused, "{to}");
        }
        for to in ["10.0.2.99:80", "10.0.2.255:80", "224.0.0.1:80", "255.255.255.255:80"] {
            assert_eq!(tcp(&reach, to), Destination::Nobody, "{to}");
        }
    }

    #[test]
    fn ports_of_the_host_are_opened_one_by_one_and_by_protocol() {
        let ports = |protocol, first, last| Ports { protocol, first, last };
        let host_ports = vec![ports(Protocol::Tcp, 3128, 3128), ports(Protocol::Udp, 5000, 5002)];
        let reach = Reach { host_ports, ..Reach::default() };
        assert_eq!(tcp(&reach, "10.0.2.2:3128"), host("127.0.0.1:3128", Scope::Everywhere));
        assert_eq!(tcp(&reach, "192.0.2.1:3128"), host("192.0.2.1:3128", Scope::Everywhere), "at the host's other addresses too");
        assert_eq!(tcp(&reach, "10.0.2.2:3129"), Destination::Refused);
        assert_eq!(tcp(&reach, "10.0.2.2:5001"), Destination::Refused, "that is UDP's");
        let udp = |to| reach.destination(&Addresses::default(), Some(Protocol::Udp), at(to), SERVER);
        assert_eq!([udp("10.0.2.2:5000"), udp("10.0.2.2:5002")].map(|to| to != Destination::Refused), [true; 2]);
        assert_eq!([udp("10.0.2.2:4999"), udp("10.0.2.2:5003"), udp("10.0.2.2:3128")], [Destination::Refused; 3]);
        let icmp = reach.destination(&Addresses::default(), None, at("192.0.2.1:0"), SERVER);
        assert_eq!(icmp, host("192.0.2.1:0", Scope::OtherHosts));
    }

    #[test]
    fn host_access_opens_the_host_and_link_local_the_metadata_and_neither_the_guests_own_loopback() {
        let reach = Reach { host_access: true, link_local: true, ..Reach::default() };
        assert_eq!(tcp(&reach, "10.0.2.2:22"), host("127.0.0.1:22", Scope::Everywhere));
        assert_eq!(tcp(&reach, "192.0.2.1:80"), host("192.0.2.1:80", Scope::Everywhere));
        assert_eq!(tcp(&reach, "169.254.169.254:80"), host("169.254.169.254:80", Scope::Everywhere));
        assert_eq!([tcp(&reach, "127.0.0.1:22"), tcp(&reach, "0.0.0.0:22")], [Destination::Refused; 2]);
    }

    #[test]
    fn an_isolated_guest_reaches_nothing_but_ports_that_were_opened_at_the_gateway() {
        let host_ports = vec![Ports { protocol: Protocol::Tcp, first: 3128, last: 3128 }];
        let reach = Reach { isolated: true, link_local: true, host_ports, ..Reach::default() };
        for to in ["192.0.2.1:80", "10.0.2.3:53", "10.0.2.2:22", "169.254.169.254:80", "127.0.0.1:22", "192.0.2.1:3128"] {
            assert_eq!(tcp(&reach, to), Destination::Refused, "{to}");
        }
        assert_eq!(tcp(&reach, "10.0.2.2:3128"), host("127.0.0.1:3128", Scope::Everywhere));
    }

    #[test]
    fn a_network_of_any_size_has_its_mask_and_its_members() {
        for (prefix, mask, last) in
            [(8, "255.0.0.0", "10.255.255.255"), (24, "255.255.255.0", "10.0.0.255"), (28, "255.255.255.240", "10.0.0.15")]
        {
            let network = Addresses { network: Ipv4Addr::new(10, 0, 0, 0), prefix, ..Addresses::default() };
            let last: Ipv4Addr = last.parse().unwrap();
            assert_eq!(network.mask().to_string(), mask);
            assert!(network.contains(last) && !network.contains(Ipv4Addr::from(u32::from(last) + 1)), "/{prefix}");
        }
    }
}
