//! A guest made of a second smoltcp interface, against the real network and servers on the host's loopback.

use super::allowed::AllowedSockets;
use super::connector::{Bound, RemoteSockets, serve, serve_with, withdraw};
use super::fragments::Fragments;
use super::packet::{self, Content, Mac, Route};
use super::reach::{NicReach, Ports};
use super::sockets::{HostServices, OwnSockets, Sockets};
use super::tcp::Wire;
use super::*;
use crate::hypervisor::waking::Attention;
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::time::Instant as StackInstant;
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpAddress, IpCidr};
use std::io::Read;
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream};
use std::time::{Duration, Instant};

const MAC: Mac = [0x52, 0x54, 0, 0x12, 0x34, 0x56];
const PATIENCE: Duration = Duration::from_secs(20);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
const GATEWAY_MAC: Mac = [0x52, 0x55, 10, 0, 2, 2];
const DNS: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 3);
const ANSWERS: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 0, 2, 4), 80);
const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);

/// Returns a network whose guest reaches the host, where the servers of these tests are.
fn open() -> UserNetConfig {
    UserNetConfig { reach: Reach { host_access: true, ..Reach::default() }, ..UserNetConfig::default() }
}

fn route(identification: u16) -> Route {
    Route { source_mac: MAC, destination_mac: GATEWAY_MAC, identification, mtu: 1500 }
}

struct Guest {
    net: UserNet,
    attention: Arc<Attention>,
    interface: Interface,
    sockets: SocketSet<'static>,
    wire: Wire,
    /// Frames seen, for tests that run without a stack. Fragments have been assembled.
    seen: Vec<Vec<u8>>,
    fragments: Fragments,
    /// The stack does not see TCP to this port.
    deaf: Option<u16>,
    /// Forwards through which the guest has accepted a connection.
    opened: Arc<Mutex<Vec<SocketAddr>>>,
    /// What the connector's supervisor has.
    supervisor: UnixStream,
    started: Instant,
}

/// Sockets of a connector, as the engine child of a guest with this network has them.
fn remote(config: &UserNetConfig) -> (Arc<dyn Sockets>, UnixStream) {
    let (services, theirs) = UnixStream::pair().unwrap();
    std::thread::spawn(move || serve(&theirs, &HostServices::default()));
    let (addresses, reach, name_servers) = (config.addresses, config.reach.clone(), config.name_servers.clone());
    let nics = vec![NicReach { addresses, reach, name_servers }];
    let allowed = AllowedSockets::new(nics, OwnSockets, Box::new(RemoteSockets::new(services)));
    let (connector, theirs) = UnixStream::pair().unwrap();
    let (supervisor, heard) = UnixStream::pair().unwrap();
    std::thread::spawn(move || serve_with(&theirs, Some(heard), &allowed));
    (Arc::new(RemoteSockets::new(connector)), supervisor)
}

/// Returns an outside with sockets of a connector. Forwards that are opened are pushed to `opened`.
fn outside(config: &UserNetConfig, opened: &Arc<Mutex<Vec<SocketAddr>>>) -> (Outside, UnixStream) {
    let opened = Arc::clone(opened);
    let on_open = Arc::new(move |address| opened.lock().unwrap().push(address));
    let (sockets, supervisor) = remote(config);
    (Outside { sockets, on_open, on_note: Arc::new(|text| panic!("{text}")) }, supervisor)
}

fn guest(config: &UserNetConfig) -> Guest {
    let attention = Attention::new(1);
    let opened = Arc::default();
    let (outside, supervisor) = outside(config, &opened);
    let net = UserNet::new(config, Waker::new(attention.clone()), outside).unwrap();
    let mut wire = Wire { from_guest: VecDeque::new(), to_guest: vec![], room: 4096, mtu: 1500 };
    let mut interface =
        Interface::new(Config::new(HardwareAddress::Ethernet(EthernetAddress(MAC))), &mut wire, StackInstant::ZERO);
    interface.update_ip_addrs(|addresses| {
        addresses.push(IpCidr::new(IpAddress::Ipv4(config.addresses.guest), config.addresses.prefix)).unwrap()
    });
    interface.routes_mut().add_default_ipv4_route(config.addresses.gateway).unwrap();
    let sockets = SocketSet::new(vec![]);
    let (seen, fragments, deaf, started) = (vec![], Fragments::default(), None, Instant::now());
    Guest { net, attention, interface, sockets, wire, seen, fragments, deaf, opened, supervisor, started }
}

impl Guest {
    fn poll(&mut self) {
        self.attention.take_board();
        while let Some(frame) = self.net.receive() {
            self.seen.extend(self.fragments.take(frame.clone(), Instant::now()));
            let heard = match packet::parse(&frame) {
                Some((_, Content::Tcp { destination, .. })) => self.deaf != Some(destination.port()),
                _ => true,
            };
            if heard {
                self.wire.from_guest.push_back(frame);
            }
        }
        let now = StackInstant::from_micros(self.started.elapsed().as_micros() as i64);
        self.interface.poll(now, &mut self.wire, &mut self.sockets);
        for frame in self.wire.to_guest.drain(..) {
            self.net.transmit(&frame);
        }
    }

    /// Polls until `done` returns something.
    fn until<T>(&mut self, what: &str, mut done: impl FnMut(&mut Guest) -> Option<T>) -> T {
        let start = Instant::now();
        loop {
            self.poll();
            if let Some(value) = done(self) {
                return value;
            }
            assert!(start.elapsed() < PATIENCE, "waited too long: {what}");
            std::thread::park_timeout(Duration::from_millis(2));
        }
    }

    fn connect(&mut self, to: SocketAddrV4, port: u16) -> SocketHandle {
        let mut socket = Socket::new(SocketBuffer::new(vec![0; 65536]), SocketBuffer::new(vec![0; 65536]));
        socket.connect(self.interface.context(), (IpAddress::Ipv4(*to.ip()), to.port()), port).unwrap();
        self.sockets.add(socket)
    }

    fn socket(&mut self, handle: SocketHandle) -> &mut Socket<'static> {
        self.sockets.get_mut(handle)
    }

    /// Sends all data, ends, and reads to the end.
    fn exchange(&mut self, handle: SocketHandle, request: &[u8]) -> Vec<u8> {
        let (mut sent, mut got) = (0, vec![]);
        self.until("an exchange", |guest| {
            let socket = guest.socket(handle);
            if sent < request.len() && socket.can_send() {
                sent += socket.send_slice(&request[sent..]).unwrap();
                if sent == request.len() {
                    socket.close();
                }
            }
            let mut buf = [0; 16384];
            while socket.can_recv() {
                let n = socket.recv_slice(&mut buf).unwrap();
                got.extend_from_slice(&buf[..n]);
            }
            (sent == request.len() && !socket.may_recv() && socket.state() != State::SynSent).then_some(())
        });
        got
    }

    fn send_udp(&mut self, from_port: u16, to: SocketAddrV4, payload: &[u8]) {
        for frame in packet::udp(&route(from_port), SocketAddrV4::new(GUEST, from_port), to, payload) {
            self.net.transmit(&frame);
        }
    }

    /// Sends a frame that reaches the host: the network learns the guest's Ethernet address from its first one.
    fn shows_itself(&mut self) {
        let server = UdpSocket::bind(loopback(0)).unwrap();
        self.send_udp(514, gateway(server.local_addr().unwrap().port()), b"here");
        server.recv_from(&mut [0; 64]).unwrap();
    }

    /// Waits for "destination unreachable" from `remote`, and returns its code.
    fn unreachable(&mut self, remote: Ipv4Addr) -> u8 {
        self.until("the message", |guest| {
            let of = |f: &Vec<u8>| f[12..14] == [8, 0] && f[23] == 1 && f[34] == 3 && f[26..30] == remote.octets();
            guest.seen.drain(..).find(of).map(|frame| frame[35])
        })
    }

    fn receive_udp(&mut self, port: u16) -> (SocketAddrV4, Vec<u8>) {
        self.until("a datagram", |guest| {
            guest.seen.drain(..).find_map(|frame| match packet::parse(&frame) {
                Some((_, Content::Udp { source, destination, payload })) if destination.port() == port => {
                    Some((source, payload.to_vec()))
                }
                _ => None,
            })
        })
    }
}

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

/// Starts a server that reads each connection to its end and then answers with the reversed bytes.
fn reversing_server() -> u16 {
    let listener = TcpListener::bind(loopback(0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            std::thread::spawn(move || {
                let mut got = vec![];
                let _ = stream.read_to_end(&mut got);
                got.reverse();
                let _ = stream.write_all(&got);
            });
        }
    });
    port
}

#[test]
fn files_that_were_given_are_read_at_an_address_of_their_own_by_many_at_once() {
    let body: Vec<u8> = (0..300_000u32).map(|n| n as u8).collect();
    let files = Arc::new(answers::Files::new([("/user-data".to_owned(), body.clone())]));
    let mut guest = guest(&UserNetConfig { answers: Some(files), ..open() });
    for port in 4000..4003 {
        let handle = guest.connect(ANSWERS, port);
        let got = guest.exchange(handle, b"GET /user-data HTTP/1.1\r\nHost: 10.0.2.4\r\n\r\n");
        assert!(got.starts_with(b"HTTP/1.1 200 OK\r\n") && got.ends_with(&body), "{} bytes", got.len());
    }
    let handle = guest.connect(ANSWERS, 4003);
    assert!(guest.exchange(handle, b"GET / HT").starts_with(b"HTTP/1.1 400 "), "cut off in the middle");
    let elsewhere = guest.connect(SocketAddrV4::new(*ANSWERS.ip(), 81), 4004);
    guest.until("a refusal", |guest| (guest.socket(elsewhere).state() == State::Closed).then_some(()));
}

#[test]
fn without_files_nobody_is_at_their_address() {
    let mut guest = guest(&open());
    let handle = guest.connect(ANSWERS, 4000);
    let begin = Instant::now();
    guest.until("some time", |_| (begin.elapsed() > Duration::from_millis(500)).then_some(()));
    assert_eq!(guest.socket(handle).state(), State::SynSent, "not even its Ethernet address is known");
}

fn gateway(port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(GATEWAY, port)
}

#[test]
fn a_connection_carries_data_both_ways_and_ends_one_way_at_a_time() {
    let port = reversing_server();
    let mut guest = guest(&open());
    let request: Vec<u8> = (0..1_500_000u32).map(|i| (i * 7 >> 3) as u8).collect();
    let handle = guest.connect(gateway(port), 50000);
    let mut got = guest.exchange(handle, &request);
    got.reverse();
    assert!(got == request, "{} of {} bytes", got.len(), request.len());
}

#[test]
fn many_connections_to_one_place_are_not_mixed_up() {
    let port = reversing_server();
    let mut guest = guest(&open());
    let handles: Vec<_> = (0..20).map(|i| guest.connect(gateway(port), 50000 + i)).collect();
    for (i, &handle) in handles.iter().enumerate().rev() {
        let request = format!("connection {i}");
        let got = guest.exchange(handle, request.as_bytes());
        assert_eq!(got.into_iter().rev().collect::<Vec<_>>(), request.as_bytes());
    }
}

#[test]
fn a_refused_connection_is_refused_in_the_guest() {
    let free = TcpListener::bind(loopback(0)).unwrap().local_addr().unwrap().port();
    let mut guest = guest(&open());
    let handle = guest.connect(gateway(free), 50000);
    guest.until("the refusal", |guest| (guest.socket(handle).state() == State::Closed).then_some(()));
    let handle = guest.connect(SocketAddrV4::new(DNS, 80), 50001);
    guest.until("the refusal", |guest| (guest.socket(handle).state() == State::Closed).then_some(()));
}

#[test]
fn datagrams_reach_the_host_and_come_back() {
    let server = UdpSocket::bind(loopback(0)).unwrap();
    let port = server.local_addr().unwrap().port();
    let mut guest = guest(&open());
    guest.send_udp(4000, gateway(port), b"ping");
    let mut buf = [0; 64];
    let (n, from) = server.recv_from(&mut buf).unwrap();
    assert_eq!(&buf[..n], b"ping");
    server.send_to(b"pong", from).unwrap();
    assert_eq!(guest.receive_udp(4000), (gateway(port), b"pong".to_vec()));
}

#[test]
fn a_datagram_to_nobody_is_answered_with_port_unreachable() {
    let free = UdpSocket::bind(loopback(0)).unwrap().local_addr().unwrap().port();
    let mut guest = guest(&open());
    guest.send_udp(4000, gateway(free), b"anybody?");
    guest.until("the message", |guest| guest.seen.drain(..).find(|f| f[23] == 1 && f[34] == 3 && f[35] == 3));
}

#[test]
fn names_are_asked_of_the_host_s_server_by_datagram_and_by_connection() {
    let server = UdpSocket::bind(loopback(0)).unwrap();
    let address = server.local_addr().unwrap();
    let stream = TcpListener::bind(address).unwrap();
    let mut guest = guest(&UserNetConfig { name_servers: vec![address], ..open() });
    guest.send_udp(4001, SocketAddrV4::new(DNS, 53), b"a question");
    let mut buf = [0; 64];
    let (n, from) = server.recv_from(&mut buf).unwrap();
    assert_eq!(&buf[..n], b"a question");
    server.send_to(&[7; 3000], from).unwrap();
    assert_eq!(guest.receive_udp(4001), (SocketAddrV4::new(DNS, 53), vec![7; 3000]));
    let handle = guest.connect(SocketAddrV4::new(DNS, 53), 50001);
    guest.until("the connection", |guest| guest.socket(handle).may_send().then_some(()));
    assert!(stream.accept().is_ok());
}

#[test]
fn a_forward_reaches_the_guest_s_server() {
    let forwards = vec![Forward { protocol: Protocol::Tcp, host: loopback(0), guest_port: 22 }];
    let mut guest = guest(&UserNetConfig { forwards, ..open() });
    let host = guest.net.forwards()[0].host;
    let mut socket = Socket::new(SocketBuffer::new(vec![0; 4096]), SocketBuffer::new(vec![0; 4096]));
    socket.listen(22).unwrap();
    let handle = guest.sockets.add(socket);
    let client = std::thread::spawn(move || {
        let mut stream = TcpStream::connect(host).unwrap();
        stream.write_all(b"hello guest").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    });
    let mut got = vec![];
    guest.until("the greeting", |guest| {
        let socket = guest.socket(handle);
        let mut buf = [0; 64];
        if socket.can_recv() {
            let n = socket.recv_slice(&mut buf).unwrap();
            got.extend_from_slice(&buf[..n]);
        }
        (got == b"hello guest").then_some(())
    });
    guest.socket(handle).send_slice(b"hello host").unwrap();
    guest.socket(handle).close();
    guest.until("the client's end", |_| client.is_finished().then_some(()));
    assert_eq!(client.join().unwrap(), "hello host");
    assert_eq!(*guest.opened.lock().unwrap(), [host]);
}

#[test]
fn a_forward_is_open_once_the_guest_accepts_and_not_when_the_forward_does() {
    let forwards = vec![Forward { protocol: Protocol::Tcp, host: loopback(0), guest_port: 22 }];
    let mut guest = guest(&UserNetConfig { forwards, ..open() });
    let host = guest.net.forwards()[0].host;
    // Nothing listens in the guest: it refuses, and the connection ends.
    let mut refused = TcpStream::connect(host).unwrap();
    refused.set_nonblocking(true).unwrap();
    guest.until("the end of a refused connection", |_| match refused.read(&mut [0]) {
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => None,
        _ => Some(()),
    });
    assert!(guest.opened.lock().unwrap().is_empty());
    for _ in 0..2 {
        let mut socket = Socket::new(SocketBuffer::new(vec![0; 4096]), SocketBuffer::new(vec![0; 4096]));
        socket.listen(22).unwrap();
        let handle = guest.sockets.add(socket);
        let _stream = TcpStream::connect(host).unwrap();
        guest.until("the connection", |guest| (guest.socket(handle).state() == State::Established).then_some(()));
        guest.until("the news", |guest| (!guest.opened.lock().unwrap().is_empty()).then_some(()));
    }
    assert_eq!(*guest.opened.lock().unwrap(), [host]);
}

#[test]
fn a_forward_of_datagrams_goes_there_and_back() {
    let forwards = vec![Forward { protocol: Protocol::Udp, host: loopback(0), guest_port: 514 }];
    let mut guest = guest(&UserNetConfig { forwards, ..open() });
    let host = guest.net.forwards()[0].host;
    guest.shows_itself();
    let clients = ["one", "two"].map(|words| (UdpSocket::bind(loopback(0)).unwrap(), words));
    let senders = clients.each_ref().map(|(client, words)| {
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        client.send_to(words.as_bytes(), host).unwrap();
        let (from, payload) = guest.receive_udp(514);
        assert_eq!((*from.ip(), payload.as_slice()), (GATEWAY, words.as_bytes()));
        from
    });
    assert_ne!(senders[0], senders[1]);
    // The answers go out in the other order, each to its client.
    for ((client, words), from) in clients.iter().zip(senders).rev() {
        guest.send_udp(514, from, words.repeat(2).as_bytes());
        let mut buf = [0; 64];
        assert_eq!(client.recv_from(&mut buf).unwrap(), (6, host));
        assert_eq!(&buf[..6], words.repeat(2).as_bytes());
    }
}

#[test]
fn a_forward_is_added_to_a_network_that_runs_and_removed_with_its_connections() {
    let mut guest = guest(&open());
    let control = guest.net.forward_control();
    let host = std::net::TcpListener::bind(loopback(0)).unwrap().local_addr().unwrap();
    let forward = Forward { protocol: Protocol::Tcp, host, guest_port: 22 };
    assert!(control.add(forward).is_err(), "the supervisor has added none");
    for _ in 0..2 {
        Bound::at(Protocol::Tcp, host).unwrap().offer(&guest.supervisor, host).unwrap();
        control.add(forward).unwrap();
        let mut socket = Socket::new(SocketBuffer::new(vec![0; 4096]), SocketBuffer::new(vec![0; 4096]));
        socket.listen(22).unwrap();
        let handle = guest.sockets.add(socket);
        let mut client = TcpStream::connect(host).unwrap();
        guest.until("the connection", |guest| (guest.socket(handle).state() == State::Established).then_some(()));
        guest.until("the news", |guest| guest.opened.lock().unwrap().pop().map(|opened| assert_eq!(opened, host)));
        control.remove(forward);
        client.set_nonblocking(true).unwrap();
        guest.until("the end at the host", |_| match client.read(&mut [0]) {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => None,
            _ => Some(()),
        });
        guest.until("the end in the guest", |guest| (guest.socket(handle).state() == State::Closed).then_some(()));
        assert!(TcpStream::connect(host).is_err(), "nothing listens any more");
    }
}

#[test]
fn a_forward_of_datagrams_is_added_to_a_network_that_runs_and_removed() {
    let mut guest = guest(&open());
    let control = guest.net.forward_control();
    let host = UdpSocket::bind(loopback(0)).unwrap().local_addr().unwrap();
    let forward = Forward { protocol: Protocol::Udp, host, guest_port: 514 };
    Bound::at(Protocol::Udp, host).unwrap().offer(&guest.supervisor, host).unwrap();
    control.add(forward).unwrap();
    guest.shows_itself();
    UdpSocket::bind(loopback(0)).unwrap().send_to(b"log this", host).unwrap();
    assert_eq!(guest.receive_udp(514).1, b"log this");
    withdraw(&guest.supervisor, Protocol::Udp, host).unwrap();
    control.remove(forward);
    let start = Instant::now();
    while UdpSocket::bind(host).is_err() {
        assert!(start.elapsed() < PATIENCE, "the port is still taken");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn a_port_that_is_taken_is_an_error_that_names_it() {
    let taken = TcpListener::bind(loopback(0)).unwrap();
    let host = taken.local_addr().unwrap();
    let forwards = vec![Forward { protocol: Protocol::Tcp, host, guest_port: 22 }];
    let config = UserNetConfig { forwards, ..open() };
    let result = UserNet::new(&config, Waker::new(Attention::new(1)), outside(&config, &Arc::default()).0);
    let error = result.err().expect("the port is taken");
    assert_eq!(error.to_string(), format!("port already taken: `{host}` is in use by another program"));
}

#[test]
fn dhcp_gives_the_address_before_there_is_one() {
    let mut guest = guest(&UserNetConfig { host_name: Some("demo".into()), ..open() });
    let mut message = vec![0; 236];
    message[..3].copy_from_slice(&[1, 1, 6]);
    message[28..34].copy_from_slice(&MAC);
    message.extend_from_slice(&[99, 130, 83, 99, 53, 1, 1, 255]);
    let route = Route { destination_mac: [0xff; 6], ..route(1) };
    let (from, to) = (SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 68), SocketAddrV4::new(Ipv4Addr::BROADCAST, 67));
    guest.net.transmit(&packet::udp(&route, from, to, &message)[0]);
    let (server, offer) = guest.receive_udp(68);
    assert_eq!(server, gateway(67));
    assert_eq!(&offer[16..20], &GUEST.octets());
}

#[test]
fn the_gateway_answers_arp_and_echo_and_nobody_answers_for_the_guest() {
    let mut guest = guest(&open());
    let arp = |target: Ipv4Addr| {
        let mut frame = [&[0xff; 6][..], &MAC, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1], &MAC, &GUEST.octets(), &[0; 6]].concat();
        frame.extend_from_slice(&target.octets());
        frame
    };
    guest.net.transmit(&arp(GUEST));
    guest.net.transmit(&arp(Ipv4Addr::new(10, 0, 2, 99)));
    guest.net.transmit(&arp(GATEWAY));
    let reply = guest.until("the ARP reply", |guest| guest.seen.drain(..).find(|f| f[12..14] == [8, 6]));
    assert_eq!((&reply[22..28], &reply[28..32]), (&GATEWAY_MAC[..], &GATEWAY.octets()[..]));
    let mut echo = packet::echo_reply(&route(1), GUEST, GATEWAY, 77, &[0, 0, 0, 0, 0, 0, 0, 1, b'x']).remove(0);
    echo[34] = 8;
    guest.net.transmit(&echo);
    let reply = guest.until("the echo reply", |guest| guest.seen.drain(..).find(|f| f[23] == 1));
    assert_eq!((reply[34], &reply[38..40], reply[42]), (0, &[0, 77][..], b'x'));
}

#[test]
fn garbage_does_no_harm() {
    let port = reversing_server();
    let mut guest = guest(&open());
    let mut word = 0x2545_f491_4f6c_dd1du64;
    for i in 0..3000usize {
        let frame: Vec<u8> = (0..i % 90)
            .map(|at| {
                word = word.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                match at {
                    12 => 8,
                    13 => (i % 2 * 6) as u8,
                    14 => 0x45,
                    23 => [1, 6, 17][i % 3],
                    26..=28 => GUEST.octets()[at - 26],
                    30..=32 => GUEST.octets()[at - 30],
                    _ => (word >> 33) as u8,
                }
            })
            .collect();
        guest.net.transmit(&frame);
    }
    guest.net.transmit(&vec![0; 100_000]);
    guest.poll();
    let handle = guest.connect(gateway(port), 50000);
    assert_eq!(guest.exchange(handle, b"abc"), b"cba");
}

#[test]
fn datagrams_and_echoes_longer_than_a_frame_go_there_and_come_back() {
    let server = UdpSocket::bind(loopback(0)).unwrap();
    let port = server.local_addr().unwrap().port();
    let mut guest = guest(&open());
    let mut buf = vec![0; 65536];
    for len in [1472, 1473, 4000, 65_507] {
        let data: Vec<u8> = (0..len).map(|n| (n * 7 >> 3) as u8).collect();
        guest.send_udp(4000 + (len % 1000) as u16, gateway(port), &data);
        let (n, from) = server.recv_from(&mut buf).unwrap();
        assert!(buf[..n] == data, "{n} bytes of {len}");
        server.send_to(&data, from).unwrap();
        let (from, got) = guest.receive_udp(4000 + (len % 1000) as u16);
        assert!((from, got.len()) == (gateway(port), data.len()) && got == data, "{len}");
    }
    // ping -s 4000
    let mut message = vec![b'x'; 4008];
    message[..8].copy_from_slice(&[0, 0, 0, 0, 0, 77, 0, 1]);
    for mut frame in packet::echo_reply(&route(9), GUEST, GATEWAY, 77, &message) {
        if frame[20..22] == [0x20, 0] {
            frame[34] = 8;
        }
        guest.net.transmit(&frame);
    }
    let reply = guest.until("the echo reply", |guest| guest.seen.drain(..).find(|f| f[23] == 1 && f[34] == 0));
    assert_eq!(reply.len(), 34 + 4008);
    assert!(reply[42..].iter().all(|&byte| byte == b'x'));
}

#[test]
fn the_hosts_loopback_is_out_of_reach_and_refused_at_once_but_for_ports_that_were_opened() {
    let (closed, opened) = (reversing_server(), reversing_server());
    let udp = UdpSocket::bind(loopback(0)).unwrap();
    udp.set_nonblocking(true).unwrap();
    let udp_port = udp.local_addr().unwrap().port();
    let host_ports = vec![Ports { protocol: Protocol::Tcp, first: opened, last: opened }];
    let mut guest = guest(&UserNetConfig { reach: Reach { host_ports, ..Reach::default() }, ..UserNetConfig::default() });
    let metadata = Ipv4Addr::new(169, 254, 169, 254);
    let refused = [gateway(closed), SocketAddrV4::new(metadata, 80), SocketAddrV4::new(Ipv4Addr::new(0, 0, 0, 1), closed)];
    for (n, to) in refused.into_iter().enumerate() {
        let begun = Instant::now();
        let handle = guest.connect(to, 50000 + n as u16);
        guest.until("the refusal", |guest| (guest.socket(handle).state() == State::Closed).then_some(()));
        assert!(begun.elapsed() < Duration::from_secs(5), "{to}");
    }
    guest.send_udp(4000, gateway(udp_port), b"anybody?");
    assert_eq!(guest.unreachable(GATEWAY), packet::unreachable::PROHIBITED);
    guest.send_udp(4001, SocketAddrV4::new(metadata, 80), b"secrets?");
    assert_eq!(guest.unreachable(metadata), packet::unreachable::PROHIBITED);
    assert!(udp.recv(&mut [0; 64]).is_err(), "nothing came through");
    let handle = guest.connect(gateway(opened), 50010);
    assert_eq!(guest.exchange(handle, b"abc"), b"cba");
    let mut echo = packet::echo_reply(&route(1), GUEST, metadata, 77, &[0; 16]).remove(0);
    echo[34] = 8;
    guest.net.transmit(&echo);
    assert_eq!(guest.unreachable(metadata), packet::unreachable::PROHIBITED);
}

#[test]
fn the_hosts_own_address_on_its_network_is_out_of_reach_too() {
    let towards = UdpSocket::bind("0.0.0.0:0").unwrap();
    // A host without any network has no such address. There, `sockets`' test of the loopback covers the case.
    let mine = towards.connect("198.51.100.1:9").and_then(|()| towards.local_addr());
    let Ok(SocketAddr::V4(mine)) = mine else { return assert!(mine.is_err()) };
    let listener = TcpListener::bind((*mine.ip(), 0)).unwrap();
    listener.set_nonblocking(true).unwrap();
    let at = SocketAddrV4::new(*mine.ip(), listener.local_addr().unwrap().port());
    let mut shut = guest(&UserNetConfig::default());
    let handle = shut.connect(at, 50000);
    shut.until("the refusal", |guest| (guest.socket(handle).state() == State::Closed).then_some(()));
    shut.send_udp(4000, at, b"anybody?");
    assert_eq!(shut.unreachable(*mine.ip()), packet::unreachable::PROHIBITED);
    assert!(listener.accept().is_err(), "nobody came");
    let mut free = guest(&open());
    let handle = free.connect(at, 50000);
    free.until("the connection", |guest| guest.socket(handle).may_send().then_some(()));
}

#[test]
fn an_isolated_guest_gets_its_address_and_its_forwards_and_nothing_else() {
    let server = TcpListener::bind(loopback(0)).unwrap();
    server.set_nonblocking(true).unwrap();
    let names = UdpSocket::bind(loopback(0)).unwrap();
    names.set_nonblocking(true).unwrap();
    let mut guest = guest(&UserNetConfig {
        reach: Reach { isolated: true, ..Reach::default() },
        name_servers: vec![names.local_addr().unwrap()],
        forwards: vec![
            Forward { protocol: Protocol::Tcp, host: loopback(0), guest_port: 22 },
            Forward { protocol: Protocol::Udp, host: loopback(0), guest_port: 514 },
        ],
        ..UserNetConfig::default()
    });
    let outside = Ipv4Addr::new(192, 0, 2, 1);
    let to = [gateway(server.local_addr().unwrap().port()), SocketAddrV4::new(outside, 80), SocketAddrV4::new(DNS, 53)];
    for (n, to) in to.into_iter().enumerate() {
        let handle = guest.connect(to, 50000 + n as u16);
        guest.until("the refusal", |guest| (guest.socket(handle).state() == State::Closed).then_some(()));
        guest.send_udp(4000, to, b"a question");
        assert_eq!(guest.unreachable(*to.ip()), packet::unreachable::PROHIBITED, "{to}");
    }
    assert!(server.accept().is_err() && names.recv(&mut [0; 64]).is_err(), "nothing came through");
    // Forwards reach the guest, and it answers.
    let (tcp, udp) = (guest.net.forwards()[0].host, guest.net.forwards()[1].host);
    let mut socket = Socket::new(SocketBuffer::new(vec![0; 4096]), SocketBuffer::new(vec![0; 4096]));
    socket.listen(22).unwrap();
    let handle = guest.sockets.add(socket);
    let mut stream = TcpStream::connect(tcp).unwrap();
    guest.until("the connection", |guest| guest.socket(handle).may_send().then_some(()));
    guest.socket(handle).send_slice(b"hello").unwrap();
    let reader = std::thread::spawn(move || {
        let mut got = [0; 5];
        stream.read_exact(&mut got).unwrap();
        got
    });
    guest.until("the greeting", |_| reader.is_finished().then_some(()));
    assert_eq!(&reader.join().unwrap(), b"hello");
    let client = UdpSocket::bind(loopback(0)).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    client.send_to(b"log this", udp).unwrap();
    let (from, _) = guest.receive_udp(514);
    guest.send_udp(514, from, b"done");
    assert_eq!(client.recv_from(&mut [0; 64]).unwrap(), (4, udp));
}

#[test]
fn another_network_has_its_own_addresses_for_everything() {
    let port = reversing_server();
    for (prefix, guest_at, answers_at) in [(28, 4, 5), (20, 15, 4)] {
        let at = |last| Ipv4Addr::new(192, 168, 64, last);
        let addresses =
            Addresses { network: at(0), prefix, gateway: at(2), dns: at(3), answers: at(answers_at), guest: at(guest_at) };
        let files = Arc::new(answers::Files::new([("/a".to_owned(), b"an answer".to_vec())]));
        let mut guest = guest(&UserNetConfig { addresses, answers: Some(files), ..open() });
        let handle = guest.connect(SocketAddrV4::new(at(2), port), 50000);
        assert_eq!(guest.exchange(handle, b"abc"), b"cba", "/{prefix}");
        let handle = guest.connect(SocketAddrV4::new(at(answers_at), 80), 50001);
        assert!(guest.exchange(handle, b"GET /a HTTP/1.1\r\n\r\n").ends_with(b"an answer"), "/{prefix}");
        // The default gateway's address is an outside address here.
        let mut message = vec![0; 236];
        message[..3].copy_from_slice(&[1, 1, 6]);
        message[28..34].copy_from_slice(&MAC);
        message.extend_from_slice(&[99, 130, 83, 99, 53, 1, 1, 255]);
        let (from, to) = (SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 68), SocketAddrV4::new(Ipv4Addr::BROADCAST, 67));
        guest.net.transmit(&packet::udp(&route(1), from, to, &message)[0]);
        let (server, offer) = guest.receive_udp(68);
        assert_eq!((*server.ip(), &offer[16..20]), (at(2), &at(guest_at).octets()[..]));
        let mask = addresses.mask().octets();
        assert!(offer.windows(6).any(|bytes| bytes == [1, 4, mask[0], mask[1], mask[2], mask[3]]), "the mask");
    }
}

#[test]
fn a_forward_whose_places_are_all_taken_shuts_nobody_out_of_another_and_gives_up_the_silent_ones() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    // Both ends of each connection are in this process.
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    assert!(hard >= 2048, "this test needs 2,048 descriptors, the hard limit is {hard}");
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    let forward = |guest_port| Forward { protocol: Protocol::Tcp, host: loopback(0), guest_port };
    let mut guest = guest(&UserNetConfig { forwards: vec![forward(7), forward(8)], ..open() });
    let (full, other) = (guest.net.forwards()[0].host, guest.net.forwards()[1].host);
    guest.deaf = Some(7);
    let begun = Instant::now();
    let crowd: Vec<TcpStream> = (0..600).map_while(|_| TcpStream::connect(full).ok()).collect();
    assert_eq!(crowd.len(), 600);
    let accepted = |guest: &mut Guest, port| {
        let mut socket = Socket::new(SocketBuffer::new(vec![0; 4096]), SocketBuffer::new(vec![0; 4096]));
        socket.listen(port).unwrap();
        let handle = guest.sockets.add(socket);
        guest.until("a connection", |guest| guest.socket(handle).may_send().then_some(()));
    };
    let _other = TcpStream::connect(other).unwrap();
    accepted(&mut guest, 8);
    // The guest's own connections do not wait for a place either.
    let port = reversing_server();
    let handle = guest.connect(gateway(port), 50000);
    assert_eq!(guest.exchange(handle, b"abc"), b"cba");
    // A silent connection makes room for one that comes later.
    guest.until("some time", |_| (begun.elapsed() > Duration::from_millis(5500)).then_some(()));
    let mut late = TcpStream::connect(full).unwrap();
    late.set_nonblocking(true).unwrap();
    let begun = Instant::now();
    guest.until("some time", |_| (begun.elapsed() > Duration::from_millis(300)).then_some(()));
    let error = late.read(&mut [0]).expect_err("it was let in");
    assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
}
