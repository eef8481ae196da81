//! Network interfaces, read from the output of ifconfig(8).
//!
//! The shapes of the lines are those of FreeBSD's `sbin/ifconfig`: `ifconfig.c` (flags, mtu, description), `af_inet.c`
//! and `af_inet6.c` (addresses), `ifgroup.c` (groups), `ifbridge.c` (members), `ifvlan.c` (tag and parent; 13.0 put the
//! protocol between the two).

use std::net::IpAddr;

use super::error::HostError;
use super::jail_run::run_in;

/// The longest name of an interface: IFNAMSIZ of FreeBSD's `sys/net/if.h` without its zero byte.
#[cfg(test)]
pub const NAME_LIMIT: usize = 15;

/// An address with the prefix length of its network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prefix {
    /// The address.
    pub address: IpAddr,
    /// Number of bits of the network.
    pub length: u8,
}

impl std::fmt::Display for Prefix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

impl std::str::FromStr for Prefix {
    type Err = HostError;
    fn from_str(text: &str) -> Result<Prefix, HostError> {
        let wrong = || {
            HostError::user(format!("`{text}` is not an address with its prefix length"))
                .hint("like `10.10.0.1/24` or `fd00:10::1/64`")
        };
        let (address, length) = text.split_once('/').ok_or_else(wrong)?;
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let length: u8 = length.parse().map_err(|_| wrong())?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        if length > most { Err(wrong()) } else { Ok(Prefix { address, length }) }
    }
}

impl Prefix {
    /// Returns whether an address is in the same network.
    pub fn contains(&self, other: IpAddr) -> bool {
        let bits = |address: IpAddr| match address {
            IpAddr::V4(v4) => (u128::from(v4.to_bits()) << 96, true),
            IpAddr::V6(v6) => (v6.to_bits(), false),
        };
        let ((a, a4), (b, b4)) = (bits(self.address), bits(other));
        let shift = 128 - u32::from(self.length);
        a4 == b4 && (shift >= 128 || a >> shift == b >> shift)
    }
    /// Returns the first address of the network.
    pub fn network(&self) -> Prefix {
        let address = match self.address {
            IpAddr::V4(v4) => IpAddr::V4((v4.to_bits() & u32::MAX.checked_shl(32 - u32::from(self.length)).unwrap_or(0)).into()),
            IpAddr::V6(v6) => {
                IpAddr::V6((v6.to_bits() & u128::MAX.checked_shl(128 - u32::from(self.length)).unwrap_or(0)).into())
            }
        };
        Prefix { address, length: self.length }
    }
    /// Returns the name of the family in ifconfig(8) and pf.conf(5): `inet` or `inet6`.
    pub fn family(&self) -> &'static str {
        if self.address.is_ipv4() { "inet" } else { "inet6" }
    }
}

/// One interface.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Whether it is up.
    pub up: bool,
    /// Largest packet.
    pub mtu: u32,
    /// Its description.
    pub description: String,
    /// Its addresses without the link-local ones of IPv6.
    pub addresses: Vec<Prefix>,
    /// Its groups.
    pub groups: Vec<String>,
    /// The members of a bridge.
    pub members: Vec<String>,
    /// Tag and parent of a vlan(4) interface.
    pub vlan: Option<(u16, String)>,
    /// Linux's word for its kind: `bridge`, `vlan`, `tun`. Empty for hardware, and on FreeBSD.
    pub kind: String,
    /// Whether vmctl made it and was killed before it got its description. Never so on FreeBSD, where that is one call.
    pub unfinished: bool,
}

/// Returns all interfaces of this host.
pub fn interfaces() -> Result<Vec<Interface>, HostError> {
    interfaces_in(None)
}

/// Returns all interfaces of this host, or of a jail.
pub fn interfaces_in(jail: Option<&str>) -> Result<Vec<Interface>, HostError> {
    Ok(parse(&run_in(jail, "ifconfig", &["-a"])?))
}

/// Parses the output of `ifconfig -a`. Lines of unknown form are skipped.
pub fn parse(text: &str) -> Vec<Interface> {
    let mut found: Vec<Interface> = Vec::new();
    for line in text.lines() {
        if !line.starts_with([' ', '\t']) {
            if let Some((name, rest)) = line.split_once(": flags=") {
                found.push(head(name, rest));
            }
            continue;
        }
        let Some(interface) = found.last_mut() else { continue };
        let line = line.trim();
        if let Some(text) = line.strip_prefix("description: ") {
            interface.description = text.to_owned();
        } else if let Some(text) = line.strip_prefix("groups: ") {
            interface.groups = text.split_whitespace().map(str::to_owned).collect();
        } else if let Some(text) = line.strip_prefix("member: ") {
            interface.members.extend(text.split_whitespace().next().map(str::to_owned));
        } else if let Some(text) = line.strip_prefix("vlan: ") {
            interface.vlan = vlan(text);
        } else if let Some(text) = line.strip_prefix("inet ") {
            interface.addresses.extend(inet(text));
        } else if let Some(text) = line.strip_prefix("inet6 ") {
            interface.addresses.extend(inet6(text));
        }
    }
    found
}

fn head(name: &str, rest: &str) -> Interface {
    let flags = rest.split_once('<').and_then(|(_, rest)| rest.split_once('>')).map_or("", |(flags, _)| flags);
    let mut words = rest.split_whitespace().skip_while(|word| *word != "mtu").skip(1);
    let mtu = words.next().and_then(|word| word.parse().ok()).unwrap_or(0);
    Interface { name: name.to_owned(), up: flags.split(',').any(|flag| flag == "UP"), mtu, ..Interface::default() }
}

fn vlan(text: &str) -> Option<(u16, String)> {
    let tag = text.split_whitespace().next()?.parse().ok()?;
    let (_, parent) = text.split_once("parent interface: ")?;
    Some((tag, parent.split_whitespace().next()?.to_owned()))
}

fn inet(text: &str) -> Option<Prefix> {
    let address: IpAddr = text.split_whitespace().next()?.parse().ok()?;
    let mask = text.split_whitespace().skip_while(|word| *word != "netmask").nth(1)?;
    let mask = u32::from_str_radix(mask.strip_prefix("0x")?, 16).ok()?;
    Some(Prefix { address, length: mask.leading_ones() as u8 })
}

fn inet6(text: &str) -> Option<Prefix> {
    let address = text.split_whitespace().next()?;
    if address.contains('%') {
        return None;
    }
    let length = text.split_whitespace().skip_while(|word| *word != "prefixlen").nth(1)?.parse().ok()?;
    Some(Prefix { address: address.parse().ok()?, length })
}

/// Traffic of an interface. The directions are those of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Traffic {
    /// Number of bytes received.
    pub received_bytes: u64,
    /// Number of packets received.
    pub received_packets: u64,
    /// Number of bytes sent.
    pub sent_bytes: u64,
    /// Number of packets sent.
    pub sent_packets: u64,
}

impl Traffic {
    /// Returns the counters of the guest's interface `nic`, whose other end this is: the packets that the guest sends
    /// are received here.
    pub fn of_a_guest(self, nic: &str) -> [(String, u64); 4] {
        [
            ("received-bytes", self.sent_bytes),
            ("received-packets", self.sent_packets),
            ("sent-bytes", self.received_bytes),
            ("sent-packets", self.received_packets),
        ]
        .map(|(name, value)| (format!("nic.{nic}.{name}"), value))
    }
}

/// Returns the traffic of an interface from netstat(1): `usr.bin/netstat/if.c` prints one line for the link
/// (`<Link#N>`) whose last columns are Ipkts Ierrs Idrop Ibytes Opkts Oerrs Obytes Coll.
pub fn traffic(name: &str, jail: Option<&str>) -> Option<Traffic> {
    link_traffic(&run_in(jail, "netstat", &["-I", name, "-b", "-n"]).ok()?)
}

fn link_traffic(text: &str) -> Option<Traffic> {
    let mut lines = text.lines();
    let head: Vec<&str> = lines.next()?.split_whitespace().collect();
    let link: Vec<&str> = lines.find(|line| line.contains("<Link#"))?.split_whitespace().collect();
    // An interface without a link address has an empty column there. So columns are counted from the right.
    let column = |title: &str| -> Option<u64> {
        let from_right = head.len() - head.iter().position(|word| *word == title)?;
        link.get(link.len().checked_sub(from_right)?)?.parse().ok()
    };
    Some(Traffic {
        received_bytes: column("Ibytes")?,
        received_packets: column("Ipkts")?,
        sent_bytes: column("Obytes")?,
        sent_packets: column("Opkts")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTPUT: &str = "\
em0: flags=8943<UP,BROADCAST,RUNNING,PROMISC,SIMPLEX,MULTICAST> metric 0 mtu 1500
	options=48505bb<RXCSUM,TXCSUM,VLAN_MTU>
	ether 58:9c:fc:00:00:01
	inet 192.0.2.5 netmask 0xffffff00 broadcast 192.0.2.255
	inet6 fe80::5a9c:fcff:fe00:1%em0 prefixlen 64 scopeid 0x1
	inet6 2001:db8::5 prefixlen 64
	media: Ethernet autoselect (1000baseT <full-duplex>)
	status: active
sw-lan: flags=8802<BROADCAST,SIMPLEX,MULTICAST> metric 0 mtu 9000
	description: vmctl switch lan
	id 00:00:00:00:00:00 priority 32768 hellotime 2 fwddelay 15
	member: tap0 flags=943<LEARNING,DISCOVER,PRIVATE,AUTOEDGE,AUTOPTP>
	        ifmaxaddr 0 port 5 priority 128 path cost 2000000
	member: em0.10 flags=143<LEARNING,DISCOVER,AUTOEDGE,AUTOPTP>
	groups: bridge vmctl
em0.10: flags=8843<UP,BROADCAST,RUNNING,SIMPLEX,MULTICAST> metric 0 mtu 1500
	groups: vlan
	vlan: 10 vlanproto: 802.1q vlanpcp: 0 parent interface: em0
tun0: flags=8051<UP,POINTOPOINT,RUNNING,MULTICAST> metric 0 mtu 1500
	inet 10.8.0.1 --> 10.8.0.2 netmask 0xffffffff
";

    #[test]
    fn interfaces_are_read_as_freebsd_prints_them() {
        let all = parse(OUTPUT);
        assert_eq!(all.iter().map(|one| one.name.as_str()).collect::<Vec<_>>(), ["em0", "sw-lan", "em0.10", "tun0"]);
        assert!(all[0].up && !all[1].up);
        assert_eq!(all[0].addresses.iter().map(ToString::to_string).collect::<Vec<_>>(), ["192.0.2.5/24", "2001:db8::5/64"]);
        assert_eq!(all[1].mtu, 9000);
        assert_eq!(all[1].description, "vmctl switch lan");
        assert_eq!(all[1].members, ["tap0", "em0.10"]);
        assert_eq!(all[1].groups, ["bridge", "vmctl"]);
        assert_eq!(all[2].vlan, Some((10, "em0".into())));
        assert_eq!(all[3].addresses[0].to_string(), "10.8.0.1/32");
    }

    #[test]
    fn the_vlan_line_of_older_releases_is_read_too() {
        assert_eq!(vlan("7 parent interface: igb1"), Some((7, "igb1".into())));
    }

    #[test]
    fn any_text_is_read_without_harm() {
        for cut in 0..OUTPUT.len() {
            let _ = parse(&OUTPUT[cut..]);
            let _ = parse(&OUTPUT[..cut]);
        }
        assert!(parse("\tinet 1.2.3.4\nx: flags=\n\tvlan: x\n\tinet 1 netmask 0xzz\n")[0].addresses.is_empty());
    }

    #[test]
    fn networks_contain_their_addresses_whatever_the_length() {
        let net: Prefix = "10.10.3.1/22".parse().expect("a prefix");
        assert_eq!(net.network().to_string(), "10.10.0.0/22");
        assert!(net.contains("10.10.0.9".parse().expect("an address")));
        assert!(!net.contains("10.10.4.1".parse().expect("an address")));
        assert!(!net.contains("::1".parse().expect("an address")));
        let all: Prefix = "10.0.0.1/0".parse().expect("a prefix");
        assert!(all.contains("1.1.1.1".parse().expect("an address")));
        assert_eq!(all.network().to_string(), "0.0.0.0/0");
        assert_eq!("fd00::5/64".parse::<Prefix>().expect("a prefix").network().to_string(), "fd00::/64");
        assert!("10.0.0.1/33".parse::<Prefix>().is_err() && "10.0.0.1".parse::<Prefix>().is_err());
    }

    #[test]
    fn traffic_is_found_with_and_without_a_link_address() {
        let head =
            "Name    Mtu Network       Address              Ipkts Ierrs Idrop     Ibytes    Opkts Oerrs     Obytes  Coll\n";
        let with = format!(
            "{head}em0    1500 <Link#1>      58:9c:fc:00:00:01      10     0     0       1000       20     0       2000     0\n"
        );
        let expected = Traffic { received_bytes: 1000, received_packets: 10, sent_bytes: 2000, sent_packets: 20 };
        assert_eq!(link_traffic(&with), Some(expected));
        let without = format!("{head}tun0   1500 <Link#4>      10     0     0       1000       20     0       2000     0\n");
        assert_eq!(link_traffic(&without), Some(expected));
        assert_eq!(link_traffic(""), None);
    }
}
