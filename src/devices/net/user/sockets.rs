//! The host's sockets for the network: made here, in this process, or by the [connector](super::connector).
//!
//! ICMP echo goes through a datagram socket where Linux allows it (net.ipv4.ping_group_range), else through a raw
//! socket, which needs root; FreeBSD has raw sockets only (icmp(4)), in a jail with allow.raw_sockets.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};

use super::Forward;
use super::relay::ForwardSocket;
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, SockaddrIn, SockaddrIn6, connect, socket};

pub(super) const DNS_PORT: u16 = 53;

/// A socket for ICMP echo to one address.
pub struct EchoSocket {
    /// Connected and not blocking.
    pub socket: UdpSocket,
    /// The socket carries whole packets: ours are sent with a checksum, received ones come with an IP header.
    pub raw: bool,
}

/// The hosts that a socket may connect to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// All hosts, including this one.
    Everywhere,
    /// All hosts except this one. A socket to one of its own addresses gives [`io::ErrorKind::PermissionDenied`].
    OtherHosts,
}

/// The socket of a forward that was added while the guest runs.
pub enum AddedForward {
    /// It listens.
    Tcp(TcpListener),
    /// Its datagrams are heard and answered here.
    Udp(ForwardSocket),
}

/// A maker of sockets, none of which blocks.
pub trait Sockets: Send + Sync {
    /// Creates a TCP socket that is being connected.
    fn tcp(&self, to: SocketAddr, scope: Scope) -> io::Result<TcpStream>;
    /// Creates a UDP socket that exchanges datagrams with `to` alone.
    fn udp(&self, to: SocketAddr, scope: Scope) -> io::Result<UdpSocket>;
    /// Creates a socket that sends echo requests to `to`.
    fn echo(&self, to: Ipv4Addr, scope: Scope) -> io::Result<EchoSocket>;
    /// Takes a forward's socket, which does not block; what comes to it is heard through the one that is returned.
    fn forward(&self, socket: UdpSocket) -> io::Result<ForwardSocket>;
    /// Takes the socket of a forward that the supervisor has added. Only a connector has a supervisor, so only its engine
    /// gets one.
    fn added_forward(&self, _forward: &Forward) -> io::Result<AddedForward> {
        Err(io::ErrorKind::Unsupported.into())
    }
    /// Returns the host's present name servers, or `None` if the host does not tell them.
    fn name_servers(&self) -> Option<Vec<SocketAddr>>;
}

/// Sockets made by this process.
#[derive(Default)]
pub struct OwnSockets;

impl Sockets for OwnSockets {
    fn tcp(&self, to: SocketAddr, scope: Scope) -> io::Result<TcpStream> {
        refuse_own(to, scope)?;
        connected(to, SockType::Stream, None).map(TcpStream::from)
    }

    fn udp(&self, to: SocketAddr, scope: Scope) -> io::Result<UdpSocket> {
        refuse_own(to, scope)?;
        connected(to, SockType::Datagram, None).map(UdpSocket::from)
    }

    fn echo(&self, to: Ipv4Addr, scope: Scope) -> io::Result<EchoSocket> {
        let to = SocketAddr::from((to, 0));
        refuse_own(to, scope)?;
        #[cfg(target_os = "linux")]
        if let Ok(fd) = connected(to, SockType::Datagram, Some(SockProtocol::Icmp)) {
            return Ok(EchoSocket { socket: fd.into(), raw: false });
        }
        raw_echo(to)
    }

    fn forward(&self, socket: UdpSocket) -> io::Result<ForwardSocket> {
        Ok(ForwardSocket::Own(socket))
    }

    fn name_servers(&self) -> Option<Vec<SocketAddr>> {
        std::fs::read_to_string("/etc/resolv.conf").ok().map(|text| name_servers_of(&text))
    }
}

/// Refuses an address of this host, if the scope leaves it out.
///
/// A packet to an address of one's own has that address for its source too, which a datagram socket reports once it is
/// connected. That sends nothing. So the answer is also right on a host that has just moved.
fn refuse_own(to: SocketAddr, scope: Scope) -> io::Result<()> {
    if scope == Scope::Everywhere {
        return Ok(());
    }
    // Port 0 cannot be connected to everywhere, and the port does not matter.
    let socket = UdpSocket::from(connected(SocketAddr::new(to.ip(), DNS_PORT), SockType::Datagram, None)?);
    match socket.local_addr()?.ip() == to.ip() {
        true => Err(Errno::EACCES.into()),
        false => Ok(()),
    }
}

/// Sockets of the process that only names name servers and makes raw ICMP sockets.
#[derive(Default)]
pub struct HostServices(OwnSockets);

impl Sockets for HostServices {
    fn tcp(&self, _: SocketAddr, _: Scope) -> io::Result<TcpStream> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn udp(&self, _: SocketAddr, _: Scope) -> io::Result<UdpSocket> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn echo(&self, to: Ipv4Addr, scope: Scope) -> io::Result<EchoSocket> {
        let to = SocketAddr::from((to, 0));
        refuse_own(to, scope)?;
        raw_echo(to)
    }
    fn forward(&self, _: UdpSocket) -> io::Result<ForwardSocket> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn name_servers(&self) -> Option<Vec<SocketAddr>> {
        self.0.name_servers()
    }
}

/// Whether this user may ask for an echo without a raw socket: net.ipv4.ping_group_range of Linux.
pub fn has_ping_sockets() -> bool {
    #[cfg(target_os = "linux")]
    let has = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, SockProtocol::Icmp).is_ok();
    #[cfg(not(target_os = "linux"))]
    let has = false;
    has
}

/// Creates a raw socket for echo.
pub(super) fn raw_echo(to: SocketAddr) -> io::Result<EchoSocket> {
    let fd = connected(to, SockType::Raw, Some(SockProtocol::Icmp))?;
    Ok(EchoSocket { socket: fd.into(), raw: true })
}

/// Creates a socket that begins to connect and does not wait for the result.
fn connected(to: SocketAddr, kind: SockType, protocol: Option<SockProtocol>) -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let (fd, begun) = match to {
        SocketAddr::V4(to) => {
            let fd = socket(AddressFamily::Inet, kind, flags, protocol)?;
            let begun = connect(fd.as_raw_fd(), &SockaddrIn::from(to));
            (fd, begun)
        }
        SocketAddr::V6(to) => {
            let fd = socket(AddressFamily::Inet6, kind, flags, protocol)?;
            let begun = connect(fd.as_raw_fd(), &SockaddrIn6::from(to));
            (fd, begun)
        }
    };
    match begun {
        Ok(()) | Err(Errno::EINPROGRESS) => Ok(fd),
        Err(errno) => Err(errno.into()),
    }
}

/// Returns the name servers of a resolv.conf(5). Without any it is the local host.
pub fn name_servers_of(text: &str) -> Vec<SocketAddr> {
    let servers: Vec<SocketAddr> = text
        .lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let address = words.next().filter(|&word| word == "nameserver").and(words.next())?;
            Some(SocketAddr::new(address.parse::<IpAddr>().ok()?, DNS_PORT))
        })
        .collect();
    if servers.is_empty() { vec![SocketAddr::from((Ipv4Addr::LOCALHOST, DNS_PORT))] } else { servers }
}

/// Bytes of an address and port: family, port, address.
pub(super) const ADDRESS_BYTES: usize = 19;

/// An address and port; numbers are little-endian.
pub(super) fn encode(address: SocketAddr) -> [u8; ADDRESS_BYTES] {
    let (family, ip) = to_bytes(address.ip());
    let mut bytes = [0; ADDRESS_BYTES];
    bytes[0] = family;
    bytes[1..3].copy_from_slice(&address.port().to_le_bytes());
    bytes[3..].copy_from_slice(&ip);
    bytes
}

/// Converts the other way round.
pub(super) fn decode(bytes: &[u8; ADDRESS_BYTES]) -> Option<SocketAddr> {
    let ip = from_bytes(bytes[0], bytes[3..].try_into().expect("sixteen bytes"))?;
    Some(SocketAddr::new(ip, u16::from_le_bytes([bytes[1], bytes[2]])))
}

/// Converts an address to its family, 4 or 6, and 16 bytes, with IPv4 in the first four.
pub(super) fn to_bytes(ip: IpAddr) -> (u8, [u8; 16]) {
    match ip {
        IpAddr::V4(ip) => {
            let mut bytes = [0; 16];
            bytes[..4].copy_from_slice(&ip.octets());
            (4, bytes)
        }
        IpAddr::V6(ip) => (6, ip.octets()),
    }
}

/// Converts the other way round.
pub(super) fn from_bytes(family: u8, bytes: [u8; 16]) -> Option<IpAddr> {
    match family {
        4 => Some(Ipv4Addr::new(bytes[0], bytes[1], bytes[2], bytes[3]).into()),
        6 => Some(Ipv6Addr::from(bytes).into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_servers_are_read_as_resolv_conf_says() {
        let text = "# a comment\nsearch example.org\nnameserver 192.0.2.1\nnameserver ::1\nnameserver nonsense\n";
        let servers: Vec<String> = name_servers_of(text).iter().map(ToString::to_string).collect();
        assert_eq!(servers, ["192.0.2.1:53", "[::1]:53"]);
        assert_eq!(name_servers_of("")[0].to_string(), "127.0.0.1:53");
    }

    #[test]
    fn an_address_of_this_host_is_refused_where_only_others_are_meant() {
        let own = OwnSockets;
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("listens");
        let at = listener.local_addr().expect("bound");
        let refused = |error: io::Error| error.kind() == io::ErrorKind::PermissionDenied;
        assert!(refused(own.tcp(at, Scope::OtherHosts).expect_err("refused")));
        assert!(refused(own.udp(at, Scope::OtherHosts).expect_err("refused")));
        assert!(own.echo(Ipv4Addr::LOCALHOST, Scope::OtherHosts).is_err_and(refused));
        listener.set_nonblocking(true).expect("sets");
        assert!(listener.accept().is_err(), "not even a connection that ends at once");
        own.tcp(at, Scope::Everywhere).expect("connects");
        assert!(own.udp(at, Scope::Everywhere).is_ok());
        // The host's address on its network, if it has one (198.51.100.0/24 is reserved: RFC 5737).
        let towards = UdpSocket::bind("0.0.0.0:0").expect("binds");
        if towards.connect("198.51.100.1:9").is_ok() {
            let mine = towards.local_addr().expect("bound");
            assert!(refused(own.tcp(mine, Scope::OtherHosts).expect_err("refused")), "{mine}");
            assert!(own.udp("198.51.100.1:9".parse().expect("an address"), Scope::OtherHosts).is_ok());
        }
    }
}
