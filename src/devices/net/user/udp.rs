//! UDP and ICMP echo: for each conversation a connected socket of the host, with an idle time-out. DNS goes the same
//! way, to the host's name server.
//!
//! **Hostile guest, hostile host**: at most [`MAX_FLOWS`] conversations of the guest, and as many peers of each
//! forward; the one that was idle the longest makes room for a new one. A turn takes a bounded number of datagrams of
//! each socket.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::packet::{self, Route, unreachable};
use super::reach::Destination;
use super::relay::ForwardSocket;
use super::sockets::{Scope, Sockets};
use super::tcp::{AsFdRef, Flow};
use crate::poll::PollFlags;

/// Maximum number of conversations of the guest, or of peers of one forward.
pub const MAX_FLOWS: usize = 512;
/// How long an idle one is remembered.
pub const IDLE: Duration = Duration::from_secs(90);
const DNS_IDLE: Duration = Duration::from_secs(15);
const ECHO_IDLE: Duration = Duration::from_secs(30);
/// Datagrams taken from one socket before the others get their turn.
const TURNS: usize = 64;
const FIRST_PEER_PORT: u16 = 49152;

/// A conversation's key: a pair of ends for UDP, or an echo's identifier and destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Key {
    /// UDP.
    Datagrams(Flow),
    /// ICMP echo from the guest's address with an identifier.
    Echo {
        /// The guest.
        guest: Ipv4Addr,
        /// The address that it asks.
        remote: Ipv4Addr,
        /// Identifier of the program in the guest.
        identifier: u16,
    },
}

struct Conversation {
    socket: UdpSocket,
    /// Identifier of our own echo requests, if the socket is raw.
    raw: Option<u16>,
    idle: Duration,
    last_active: Instant,
    answered: bool,
}

/// A forward's socket and the guest's port.
pub struct Listener {
    /// Bound on the host.
    pub socket: ForwardSocket,
    /// The address on which the host hears.
    pub host: SocketAddr,
    /// The destination port in the guest.
    pub guest_port: u16,
}

/// A sender to a forward. The guest sees it as a port of the gateway.
struct Peer {
    listener: usize,
    address: SocketAddr,
    last_active: Instant,
}

/// Purpose for which a file descriptor is polled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waiting {
    /// A conversation.
    Conversation(Key),
    /// A forward.
    Forward(usize),
}

/// All conversations and forwards.
pub struct Udp {
    conversations: HashMap<Key, Conversation>,
    /// One that was removed leaves its place empty.
    listeners: Vec<Option<Listener>>,
    outside: Arc<dyn Sockets>,
    peers: HashMap<u16, Peer>,
    next_peer: u16,
    gateway: Ipv4Addr,
    guest: Ipv4Addr,
    buffer: Vec<u8>,
    /// A name server did not answer. The next one is used from now on.
    pub dns_failed: bool,
}

impl Udp {
    /// Creates the state without conversations.
    pub fn new(gateway: Ipv4Addr, guest: Ipv4Addr, listeners: Vec<Listener>, outside: Arc<dyn Sockets>) -> Udp {
        Udp {
            conversations: HashMap::new(),
            listeners: listeners.into_iter().map(Some).collect(),
            outside,
            peers: HashMap::new(),
            next_peer: FIRST_PEER_PORT,
            gateway,
            guest,
            buffer: vec![0; 65536],
            dns_failed: false,
        }
    }

    /// Takes a forward into use.
    pub fn add_listener(&mut self, listener: Listener) {
        match self.listeners.iter().position(Option::is_none) {
            Some(place) => self.listeners[place] = Some(listener),
            None => self.listeners.push(Some(listener)),
        }
    }

    /// Closes the forward at this address.
    pub fn remove_listener(&mut self, host: SocketAddr) {
        let at_host = |listener: &Option<Listener>| listener.as_ref().is_some_and(|listener| listener.host == host);
        let Some(index) = self.listeners.iter().position(at_host) else { return };
        self.listeners[index] = None;
        self.peers.retain(|_, peer| peer.listener != index);
    }

    /// Handles a datagram from the guest to `to`. If it cannot be sent, returns the code of "unreachable" for the
    /// guest.
    pub fn datagram(&mut self, flow: Flow, to: Destination, is_dns: bool, payload: &[u8], now: Instant) -> Option<u8> {
        if *flow.remote.ip() == self.gateway
            && let Some(peer) = self.peers.get_mut(&flow.remote.port())
        {
            if let Some(listener) = &self.listeners[peer.listener]
                && listener.guest_port == flow.guest.port()
            {
                peer.last_active = now;
                listener.socket.send(peer.address, payload);
            }
            return None;
        }
        let (host, scope) = match to {
            Destination::Host(host, scope) => (host, scope),
            Destination::Refused => return Some(unreachable::PROHIBITED),
            Destination::Nobody => return None,
        };
        let idle = if is_dns { DNS_IDLE } else { IDLE };
        let key = Key::Datagrams(flow);
        match self.conversation(key, idle, now, |outside| Ok((outside.udp(host, scope)?, false))) {
            // A datagram that the host cannot take now is lost, as on a wire.
            Ok(conversation) => drop(conversation.socket.send(payload)),
            Err(error) => return code_of(&error),
        }
        None
    }

    /// Handles an echo request from the guest to the outside. Returns the same as [`Udp::datagram`].
    pub fn echo(
        &mut self,
        (guest, remote): (Ipv4Addr, Ipv4Addr),
        scope: Scope,
        identifier: u16,
        message: &[u8],
        now: Instant,
    ) -> Option<u8> {
        let key = Key::Echo { guest, remote, identifier };
        let open = |outside: &dyn Sockets| outside.echo(remote, scope).map(|echo| (echo.socket, echo.raw));
        match self.conversation(key, ECHO_IDLE, now, open) {
            Ok(conversation) => {
                let _ = match conversation.raw {
                    Some(identifier) => conversation.socket.send(&packet::echo_request(identifier, message)),
                    None => conversation.socket.send(message),
                };
                None
            }
            Err(error) => code_of(&error),
        }
    }

    fn conversation(
        &mut self,
        key: Key,
        idle: Duration,
        now: Instant,
        open: impl FnOnce(&dyn Sockets) -> std::io::Result<(UdpSocket, bool)>,
    ) -> std::io::Result<&mut Conversation> {
        if !self.conversations.contains_key(&key) {
            if self.conversations.len() >= MAX_FLOWS
                && let Some(oldest) = self.conversations.iter().min_by_key(|(_, c)| c.last_active).map(|(key, _)| *key)
            {
                self.conversations.remove(&oldest);
            }
            let (socket, raw) = open(&*self.outside)?;
            // All raw sockets to one address receive all replies. The identifier marks ours.
            let raw = raw.then(|| getrandom::u32().map_or(self.conversations.len() as u16, |word| word as u16));
            self.conversations.insert(key, Conversation { socket, raw, idle, last_active: now, answered: false });
        }
        let conversation = self.conversations.get_mut(&key).expect("there, or just put there");
        conversation.last_active = now;
        Ok(conversation)
    }

    /// Takes data that has come for the guest. `room` bounds how many frames are made.
    pub fn ready(&mut self, waiting: Waiting, route: &mut dyn FnMut() -> Route, now: Instant, room: usize) -> Vec<Vec<u8>> {
        match waiting {
            Waiting::Conversation(key) => self.receive(key, route, now, room),
            Waiting::Forward(index) => self.receive_forward(index, route, now, room),
        }
    }

    fn receive(&mut self, key: Key, route: &mut dyn FnMut() -> Route, now: Instant, room: usize) -> Vec<Vec<u8>> {
        let mut frames = vec![];
        let Some(conversation) = self.conversations.get_mut(&key) else { return frames };
        for _ in 0..TURNS {
            if frames.len() >= room {
                break;
            }
            match conversation.socket.recv(&mut self.buffer) {
                Ok(n) => {
                    let mut payload = &self.buffer[..n];
                    if let Some(identifier) = conversation.raw {
                        let Some(message) = packet::echo_answer(payload, identifier) else { continue };
                        payload = message;
                    }
                    conversation.last_active = now;
                    conversation.answered = true;
                    frames.extend(match key {
                        Key::Datagrams(flow) => packet::udp(&route(), flow.remote, flow.guest, payload),
                        Key::Echo { guest, remote, identifier } => {
                            packet::echo_reply(&route(), remote, guest, identifier, payload)
                        }
                    });
                }
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
                    if let Key::Datagrams(flow) = key {
                        frames.extend(packet::udp_unreachable(&route(), unreachable::PORT, flow.guest, flow.remote));
                    }
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        frames
    }

    fn receive_forward(&mut self, index: usize, route: &mut dyn FnMut() -> Route, now: Instant, room: usize) -> Vec<Vec<u8>> {
        let mut frames = vec![];
        for _ in 0..TURNS {
            if frames.len() >= room {
                break;
            }
            let Some(listener) = &self.listeners[index] else { break };
            let guest = SocketAddrV4::new(self.guest, listener.guest_port);
            match listener.socket.receive(&mut self.buffer) {
                Ok((address, payload)) => {
                    let Some(port) = self.peer_port(index, address, now) else { continue };
                    let from = SocketAddrV4::new(self.gateway, port);
                    frames.extend(packet::udp(&route(), from, guest, &self.buffer[payload]));
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        frames
    }

    fn peer_port(&mut self, listener: usize, address: SocketAddr, now: Instant) -> Option<u16> {
        let known = self.peers.iter_mut().find(|(_, p)| p.listener == listener && p.address == address);
        if let Some((&port, peer)) = known {
            peer.last_active = now;
            return Some(port);
        }
        let own = || self.peers.iter().filter(|(_, peer)| peer.listener == listener);
        if own().count() >= MAX_FLOWS || self.peers.len() > usize::from(u16::MAX - FIRST_PEER_PORT) {
            // A peer of this forward if it has any; of another only when all ports are in use.
            let oldest = own().min_by_key(|(_, p)| p.last_active).or(self.peers.iter().min_by_key(|(_, p)| p.last_active));
            let oldest = *oldest?.0;
            self.peers.remove(&oldest);
        }
        let port = (FIRST_PEER_PORT..=u16::MAX).find_map(|_| {
            self.next_peer = self.next_peer.checked_add(1).unwrap_or(FIRST_PEER_PORT);
            (!self.peers.contains_key(&self.next_peer)).then_some(self.next_peer)
        })?;
        self.peers.insert(port, Peer { listener, address, last_active: now });
        Some(port)
    }

    /// Drops the conversations that were silent for too long.
    pub fn expire(&mut self, now: Instant) {
        let mut dns_failed = false;
        self.conversations.retain(|_, c| {
            let keep = now.duration_since(c.last_active) < c.idle;
            dns_failed |= !keep && c.idle == DNS_IDLE && !c.answered;
            keep
        });
        self.dns_failed |= dns_failed;
        self.peers.retain(|_, peer| now.duration_since(peer.last_active) < IDLE);
    }

    /// Returns the time until `expire` is due.
    pub fn delay(&self) -> Option<Duration> {
        (!self.conversations.is_empty() || !self.peers.is_empty()).then_some(Duration::from_secs(5))
    }

    /// Reports what to poll: file descriptors, events, and their purpose.
    pub fn watch<'a>(&'a self, add: &mut dyn FnMut(&'a dyn AsFdRef, PollFlags, Waiting)) {
        for (key, conversation) in &self.conversations {
            add(&conversation.socket, PollFlags::POLLIN, Waiting::Conversation(*key));
        }
        let listeners = self.listeners.iter().enumerate().filter_map(|(index, listener)| Some((index, listener.as_ref()?)));
        for (index, listener) in listeners {
            add(&listener.socket, PollFlags::POLLIN, Waiting::Forward(index));
        }
    }
}

/// Returns the code of "unreachable" for the error of a socket that could not be made, if there is one.
fn code_of(error: &std::io::Error) -> Option<u8> {
    match error.kind() {
        ErrorKind::PermissionDenied => Some(unreachable::PROHIBITED),
        ErrorKind::NetworkUnreachable => Some(unreachable::NETWORK),
        ErrorKind::HostUnreachable => Some(unreachable::HOST),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::sockets::{EchoSocket, OwnSockets, raw_echo};
    use super::*;
    use std::net::TcpStream;

    /// A host that sends echo requests only through raw sockets, like FreeBSD.
    struct RawOnly(OwnSockets);

    impl Sockets for RawOnly {
        fn tcp(&self, to: SocketAddr, scope: Scope) -> std::io::Result<TcpStream> {
            self.0.tcp(to, scope)
        }
        fn udp(&self, to: SocketAddr, scope: Scope) -> std::io::Result<UdpSocket> {
            self.0.udp(to, scope)
        }
        fn echo(&self, to: Ipv4Addr, _: Scope) -> std::io::Result<EchoSocket> {
            raw_echo((to, 0).into())
        }
        fn forward(&self, socket: UdpSocket) -> std::io::Result<ForwardSocket> {
            self.0.forward(socket)
        }
        fn name_servers(&self) -> Option<Vec<SocketAddr>> {
            None
        }
    }

    fn echo_through(outside: Arc<dyn Sockets>) {
        let (guest, remote) = (Ipv4Addr::new(10, 0, 2, 15), Ipv4Addr::LOCALHOST);
        let allowed = outside.echo(remote, Scope::Everywhere).is_ok();
        let mut udp = Udp::new(Ipv4Addr::new(10, 0, 2, 2), guest, vec![], outside);
        let started = Instant::now();
        let told = udp.echo((guest, remote), Scope::Everywhere, 77, &[8, 0, 0, 0, 0, 77, 0, 1, b'x'], started);
        let key = Key::Echo { guest, remote, identifier: 77 };
        // Without the permission there is no conversation, and the guest's request is lost.
        assert_eq!(udp.conversations.contains_key(&key), allowed);
        assert_eq!(told, (!allowed).then_some(unreachable::PROHIBITED));
        let mut route = || Route { source_mac: [2; 6], destination_mac: [4; 6], identification: 1, mtu: 1500 };
        if !allowed {
            return;
        }
        loop {
            assert!(started.elapsed() < Duration::from_secs(20), "no echo from the loopback address");
            let frames = udp.ready(Waiting::Conversation(key), &mut route, Instant::now(), 8);
            if let Some(frame) = frames.first() {
                assert_eq!((frame[34], &frame[38..40], frame[42]), (0, &[0, 77][..], b'x'));
                return;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    #[test]
    fn an_echo_comes_back_to_its_program_through_either_kind_of_socket() {
        echo_through(Arc::new(OwnSockets));
        echo_through(Arc::new(RawOnly(OwnSockets)));
    }
    #[test]
    fn peers_of_one_forward_do_not_push_out_those_of_another() {
        let outside: Arc<dyn Sockets> = Arc::new(OwnSockets);
        let listener = |guest_port| {
            let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
            let host = socket.local_addr().unwrap();
            Listener { socket: outside.forward(socket).unwrap(), host, guest_port }
        };
        let listeners = vec![listener(1), listener(2)];
        let mut udp = Udp::new(Ipv4Addr::new(10, 0, 2, 2), Ipv4Addr::new(10, 0, 2, 15), listeners, Arc::clone(&outside));
        let begun = Instant::now();
        let from = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let other = udp.peer_port(1, from(9), begun).unwrap();
        let first = udp.peer_port(0, from(1000), begun).unwrap();
        for n in 0..2000u16 {
            udp.peer_port(0, from(1001 + n), begun + Duration::from_millis(1 + u64::from(n))).unwrap();
        }
        let later = begun + Duration::from_secs(10);
        assert_eq!(udp.peer_port(1, from(9), later), Some(other));
        assert_ne!(udp.peer_port(0, from(1000), later), Some(first), "the oldest of its own forward went");
        assert_eq!(udp.peers.values().filter(|peer| peer.listener == 0).count(), MAX_FLOWS);
    }
}
