//! Sockets to what a guest's interfaces may reach, and to nothing else: what a connector gives to an engine.
//!
//! The engine asks for no other: it has looked at the same rules ([`reach`](super::reach)) for the interface that a packet
//! came by. A guest that has taken its engine over looks at none, and meets them here again, as far as a socket tells what
//! it is for: what any of its interfaces may reach.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::sync::Mutex;

use nix::errno::Errno;

use super::Protocol;
use super::reach::NicReach;
use super::relay::ForwardSocket;
use super::sockets::{DNS_PORT, EchoSocket, Scope, Sockets, name_servers_of};

/// Sockets of this process, to what a guest's interfaces may reach.
pub struct AllowedSockets<S> {
    nics: Vec<NicReach>,
    /// Makes them.
    own: S,
    /// Knows the host's name servers, and makes sockets for an echo where this process makes none.
    services: Box<dyn Sockets>,
    /// The host's name servers, as last heard.
    host_servers: Mutex<Vec<SocketAddr>>,
}

impl<S: Sockets> AllowedSockets<S> {
    /// What any of `nics` may reach.
    pub fn new(nics: Vec<NicReach>, own: S, services: Box<dyn Sockets>) -> AllowedSockets<S> {
        AllowedSockets { nics, own, services, host_servers: Mutex::default() }
    }

    /// The hosts that a socket to `to` may lead to, of those that were `asked` for.
    fn scope(&self, protocol: Option<Protocol>, to: SocketAddr, asked: Scope) -> io::Result<Scope> {
        let mut widest = self.widest(protocol, to);
        if widest != Some(Scope::Everywhere) && protocol.is_some() && to.port() == DNS_PORT && self.name_servers().is_some() {
            // The host may have moved to another network.
            widest = self.widest(protocol, to);
        }
        match (widest, asked) {
            (None, _) => Err(Errno::EACCES.into()),
            (Some(Scope::OtherHosts), _) => Ok(Scope::OtherHosts),
            (Some(Scope::Everywhere), asked) => Ok(asked),
        }
    }

    fn widest(&self, protocol: Option<Protocol>, to: SocketAddr) -> Option<Scope> {
        let servers = self.host_servers.lock().expect("no panic happens under this lock");
        let scopes = self.nics.iter().filter_map(|nic| nic.scope(protocol, to, &servers));
        scopes.reduce(|one, other| if one == Scope::Everywhere { one } else { other })
    }
}

impl<S: Sockets> Sockets for AllowedSockets<S> {
    fn tcp(&self, to: SocketAddr, scope: Scope) -> io::Result<TcpStream> {
        self.own.tcp(to, self.scope(Some(Protocol::Tcp), to, scope)?)
    }

    fn udp(&self, to: SocketAddr, scope: Scope) -> io::Result<UdpSocket> {
        self.own.udp(to, self.scope(Some(Protocol::Udp), to, scope)?)
    }

    fn echo(&self, to: Ipv4Addr, scope: Scope) -> io::Result<EchoSocket> {
        let scope = self.scope(None, (to, 0).into(), scope)?;
        self.own.echo(to, scope).or_else(|_| self.services.echo(to, scope))
    }

    fn forward(&self, socket: UdpSocket) -> io::Result<ForwardSocket> {
        self.own.forward(socket)
    }

    fn name_servers(&self) -> Option<Vec<SocketAddr>> {
        if !self.nics.iter().any(NicReach::asks_the_hosts) {
            return None;
        }
        // A host that names none has one itself: resolv.conf(5).
        let servers = self.services.name_servers().unwrap_or_else(|| name_servers_of(""));
        self.host_servers.lock().expect("no panic happens under this lock").clone_from(&servers);
        Some(servers)
    }
}

#[cfg(test)]
mod tests {
    use super::super::connector::{RemoteSockets, serve};
    use super::super::reach::{Ports, Reach};
    use super::super::sockets::OwnSockets;
    use super::*;
    use std::net::TcpListener;
    use std::os::unix::net::UnixStream;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    /// Host services that name these servers, counted; an echo of theirs is a socket for datagrams.
    struct Naming(Arc<Mutex<Vec<SocketAddr>>>, Arc<AtomicU64>);

    impl Sockets for Naming {
        fn tcp(&self, _: SocketAddr, _: Scope) -> io::Result<TcpStream> {
            panic!("host services connect to nobody")
        }
        fn udp(&self, _: SocketAddr, _: Scope) -> io::Result<UdpSocket> {
            panic!("host services connect to nobody")
        }
        fn echo(&self, to: Ipv4Addr, scope: Scope) -> io::Result<EchoSocket> {
            Ok(EchoSocket { socket: OwnSockets.udp((to, 9).into(), scope)?, raw: true })
        }
        fn forward(&self, _: UdpSocket) -> io::Result<ForwardSocket> {
            panic!("host services relay nothing")
        }
        fn name_servers(&self) -> Option<Vec<SocketAddr>> {
            self.1.fetch_add(1, Ordering::SeqCst);
            Some(self.0.lock().expect("no panic happens under this lock").clone())
        }
    }

    /// Refuses every connection with an error that names the requested scope, so that a test reaches no host.
    struct Refusing;

    const EVERYWHERE: i32 = 9001;
    const OTHER_HOSTS: i32 = 9002;

    fn refuse<T>(scope: Scope) -> io::Result<T> {
        Err(io::Error::from_raw_os_error(if scope == Scope::Everywhere { EVERYWHERE } else { OTHER_HOSTS }))
    }

    impl Sockets for Refusing {
        fn tcp(&self, _: SocketAddr, scope: Scope) -> io::Result<TcpStream> {
            refuse(scope)
        }
        fn udp(&self, _: SocketAddr, scope: Scope) -> io::Result<UdpSocket> {
            refuse(scope)
        }
        fn echo(&self, _: Ipv4Addr, scope: Scope) -> io::Result<EchoSocket> {
            refuse(scope)
        }
        fn forward(&self, socket: UdpSocket) -> io::Result<ForwardSocket> {
            Ok(ForwardSocket::Own(socket))
        }
        fn name_servers(&self) -> Option<Vec<SocketAddr>> {
            None
        }
    }

    struct World {
        /// What an engine has: it asks for anything.
        engine: RemoteSockets,
        servers: Arc<Mutex<Vec<SocketAddr>>>,
        asked: Arc<AtomicU64>,
    }

    fn world(nics: Vec<NicReach>, own: impl Sockets + 'static) -> World {
        let servers = Arc::new(Mutex::new(vec![at("127.0.0.53:53")]));
        let asked = Arc::default();
        let allowed = AllowedSockets::new(nics, own, Box::new(Naming(Arc::clone(&servers), Arc::clone(&asked))));
        let (ours, theirs) = UnixStream::pair().expect("a socket pair");
        std::thread::spawn(move || serve(&theirs, &allowed));
        World { engine: RemoteSockets::new(ours), servers, asked }
    }

    fn at(text: &str) -> SocketAddr {
        text.parse().expect("an address")
    }

    fn errno<T>(made: io::Result<T>) -> i32 {
        made.err().and_then(|error| error.raw_os_error()).unwrap_or(0)
    }

    impl World {
        fn tcp(&self, to: &str, scope: Scope) -> i32 {
            errno(self.engine.tcp(at(to), scope))
        }
        fn udp(&self, to: &str) -> i32 {
            errno(self.engine.udp(at(to), Scope::Everywhere))
        }
    }

    fn nic(reach: Reach) -> NicReach {
        NicReach { reach, ..NicReach::default() }
    }

    const ALL_REFUSE: [&str; 9] = [
        "127.0.0.2:80",
        "0.0.0.0:80",
        "10.0.2.2:80",
        "10.0.2.99:80",
        "224.0.0.1:80",
        "255.255.255.255:80",
        "[::1]:80",
        "[2001:db8::1]:80",
        "[::ffff:127.0.0.1]:22",
    ];

    #[test]
    fn an_engine_that_asks_for_the_host_and_its_neighbours_is_refused() {
        let world = world(vec![nic(Reach::default())], Refusing);
        for to in ALL_REFUSE.into_iter().chain(["127.0.0.1:22", "127.0.0.1:53", "169.254.169.254:80", "127.0.0.53:54"]) {
            assert_eq!((world.tcp(to, Scope::Everywhere), world.udp(to)), (libc::EACCES, libc::EACCES), "{to}");
        }
        for to in [Ipv4Addr::LOCALHOST, Ipv4Addr::new(169, 254, 169, 254), Ipv4Addr::new(127, 0, 0, 53)] {
            assert_eq!(errno(world.engine.echo(to, Scope::Everywhere)), libc::EACCES, "{to}");
        }
        // Whatever the engine says, the world is other hosts.
        assert_eq!(world.tcp("192.0.2.1:80", Scope::Everywhere), OTHER_HOSTS);
        assert_eq!(world.udp("192.0.2.1:53"), OTHER_HOSTS);
        // Where this process makes no such socket, the host services do.
        let echo = world.engine.echo(Ipv4Addr::new(192, 0, 2, 1), Scope::OtherHosts);
        assert!(echo.map_or_else(|error| error.raw_os_error() == Some(libc::ENETUNREACH), |echo| echo.raw));
    }

    #[test]
    fn the_host_s_own_addresses_are_refused_by_a_connector_that_was_asked_for_everywhere() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("listens");
        listener.set_nonblocking(true).expect("sets");
        let port = listener.local_addr().expect("bound").port();
        let shut = world(vec![nic(Reach::default())], OwnSockets);
        let opened = Ports { protocol: Protocol::Tcp, first: port, last: port };
        let open = world(vec![nic(Reach { host_ports: vec![opened], ..Reach::default() })], OwnSockets);
        let here = format!("127.0.0.1:{port}");
        assert_eq!(shut.tcp(&here, Scope::Everywhere), libc::EACCES);
        assert!(listener.accept().is_err(), "nobody came");
        assert_eq!(open.tcp(&here, Scope::Everywhere), 0);
        assert_eq!(open.udp(&here), libc::EACCES, "TCP's port alone");
        // The host's address on its network, if it has one (198.51.100.0/24 is nobody's: RFC 5737).
        let towards = UdpSocket::bind("0.0.0.0:0").expect("binds");
        if towards.connect("198.51.100.1:9").is_ok() {
            let mine = towards.local_addr().expect("bound").ip();
            assert_eq!(errno(shut.engine.tcp((mine, port).into(), Scope::Everywhere)), libc::EACCES, "{mine}");
        }
    }

    #[test]
    fn a_connector_allows_what_any_interface_does_and_no_more() {
        let ports = Ports { protocol: Protocol::Udp, first: 5000, last: 5002 };
        let isolated = Reach { isolated: true, link_local: true, host_ports: vec![ports], ..Reach::default() };
        let inside = world(vec![nic(isolated.clone())], Refusing);
        for to in ALL_REFUSE.into_iter().chain(["192.0.2.1:80", "169.254.169.254:80", "127.0.0.53:53", "192.0.2.1:5000"]) {
            assert_eq!((inside.tcp(to, Scope::Everywhere), inside.udp(to)), (libc::EACCES, libc::EACCES), "{to}");
        }
        assert_eq!((inside.udp("127.0.0.1:5002"), inside.udp("127.0.0.1:5003")), (EVERYWHERE, libc::EACCES));
        assert_eq!(inside.engine.name_servers(), None, "it has none");
        assert_eq!(inside.asked.load(Ordering::SeqCst), 0);
        // With one that leads out beside it.
        let both = world(vec![nic(isolated), nic(Reach::default())], Refusing);
        assert_eq!(both.udp("127.0.0.1:5002"), EVERYWHERE);
        assert_eq!(both.tcp("192.0.2.1:80", Scope::Everywhere), OTHER_HOSTS);
        assert_eq!(both.tcp("169.254.169.254:80", Scope::Everywhere), libc::EACCES, "that one is isolated");
        let all = world(vec![nic(Reach { host_access: true, link_local: true, ..Reach::default() })], Refusing);
        for (to, scope) in [("127.0.0.1:22", EVERYWHERE), ("192.0.2.1:22", EVERYWHERE), ("169.254.169.254:80", EVERYWHERE)] {
            assert_eq!(all.tcp(to, Scope::Everywhere), scope, "{to}");
        }
        assert_eq!(all.tcp("192.0.2.1:22", Scope::OtherHosts), OTHER_HOSTS, "less is what was asked for");
        assert_eq!(all.tcp("127.0.0.2:22", Scope::Everywhere), libc::EACCES);
        assert_eq!(world(vec![], Refusing).tcp("192.0.2.1:22", Scope::OtherHosts), libc::EACCES, "no interface, no reach");
    }

    #[test]
    fn name_servers_are_reached_wherever_they_are_and_only_as_such() {
        let world = world(vec![nic(Reach::default())], Refusing);
        assert_eq!((world.udp("127.0.0.53:53"), world.tcp("127.0.0.53:53", Scope::Everywhere)), (EVERYWHERE, EVERYWHERE));
        assert_eq!(world.engine.name_servers(), Some(vec![at("127.0.0.53:53")]));
        // The host has moved.
        *world.servers.lock().expect("no panic happens under this lock") = vec![at("[2001:db8::53]:53")];
        assert_eq!(world.udp("[2001:db8::53]:53"), EVERYWHERE);
        assert_eq!(world.udp("127.0.0.53:53"), libc::EACCES);
        // One of the guest's own is one, and the host's is not.
        let own = NicReach { name_servers: vec![at("127.0.0.1:5353")], ..NicReach::default() };
        let fixed = self::world(vec![own], Refusing);
        assert_eq!((fixed.udp("127.0.0.1:5353"), fixed.udp("127.0.0.53:53")), (EVERYWHERE, libc::EACCES));
        assert_eq!(fixed.engine.name_servers(), None);
    }
}
