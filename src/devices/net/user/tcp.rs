//! TCP: for each connection a smoltcp socket towards the guest, spliced with a socket of the host.
//!
//! Outbound: the guest's SYN is kept while the host connects. If that succeeds, a smoltcp socket listens for just that
//! connection and gets the SYN. If not, smoltcp gets the SYN without a listening socket and answers with RST. Inbound:
//! a connection accepted on a forward's address is opened to the guest from the gateway. A connection to the address of
//! [`answers`](super::answers) has no socket of the host behind it.
//!
//! **Hostile guest, hostile host**: at most [`MAX_CONNECTIONS`] at a time of each side, each with fixed buffers: those
//! that the guest opened are one side, those of each forward another. A side that is full closes for a new one the
//! oldest that was never answered or has never carried a byte, after [`SILENT`], or the one that was idle the longest,
//! after [`EVICTABLE`]. Otherwise the new one is refused. A forward for which the host has no descriptor is paused for
//! [`PAUSE`].

use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::time::Instant as StackInstant;
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpAddress, IpCidr, IpListenEndpoint};
use std::collections::{HashMap, VecDeque};
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::answers::{Exchange, Files};
use super::packet::ETHERNET_BYTES;
use super::reach::{Addresses, Destination};
use super::sockets::Sockets;
use super::{ForwardOpened, Noted, Outside};
use crate::poll::PollFlags;

/// Maximum number of connections of one side, including those that are being made.
pub const MAX_CONNECTIONS: usize = 512;
/// Bytes that the guest may send before the host takes them.
const FROM_GUEST_BYTES: usize = 64 * 1024;
/// Bytes that may be on the way to the guest.
const TO_GUEST_BYTES: usize = 256 * 1024;
/// Time-out of an inbound connection that the guest does not answer.
const GUEST_CONNECT: Duration = Duration::from_secs(30);
/// Time-out for a host to accept.
const HOST_CONNECT: Duration = Duration::from_secs(120);
/// Idle time after which a connection may be closed when others need its place.
const EVICTABLE: Duration = Duration::from_secs(60);
/// The same time for a connection that has never carried anything.
const SILENT: Duration = Duration::from_secs(5);
/// Time for which a forward accepts nothing after the host had no descriptor.
const PAUSE: Duration = Duration::from_millis(500);
/// The first port of the gateway for connections to the guest.
const FIRST_PORT: u16 = 32768;
/// Calls of read or write for one connection before the others get their turn.
const TURNS: usize = 32;

/// Both ends of a conversation, as the guest sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Flow {
    /// The guest's end.
    pub guest: SocketAddrV4,
    /// The other end.
    pub remote: SocketAddrV4,
}

/// The wire between smoltcp and the guest's queues.
pub struct Wire {
    /// Frames from the guest that smoltcp has not seen yet.
    pub from_guest: VecDeque<Vec<u8>>,
    /// Frames for the guest.
    pub to_guest: Vec<Vec<u8>>,
    /// Number of frames that `to_guest` may hold now.
    pub room: usize,
    /// The longest packet that the link takes.
    pub mtu: usize,
}

pub struct Received(Vec<u8>);
pub struct Transmit<'a>(&'a mut Vec<Vec<u8>>);

impl RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl TxToken for Transmit<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut frame = vec![0; len];
        let result = f(&mut frame);
        self.0.push(frame);
        result
    }
}

impl Device for Wire {
    type RxToken<'a> = Received;
    type TxToken<'a> = Transmit<'a>;

    fn receive(&mut self, _: StackInstant) -> Option<(Received, Transmit<'_>)> {
        if self.to_guest.len() >= self.room {
            return None;
        }
        self.from_guest.pop_front().map(|frame| (Received(frame), Transmit(&mut self.to_guest)))
    }

    fn transmit(&mut self, _: StackInstant) -> Option<Transmit<'_>> {
        (self.to_guest.len() < self.room).then_some(Transmit(&mut self.to_guest))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = ETHERNET_BYTES + self.mtu;
        capabilities
    }
}

struct Connecting {
    stream: TcpStream,
    syn: Vec<u8>,
    since: Instant,
}

/// The far end of a connection.
enum Far {
    /// A socket of the host.
    Host(TcpStream),
    /// The server of files for the guest.
    Answers(Exchange),
}

impl Far {
    /// Notes that the guest will send no more.
    fn end(&mut self) {
        match self {
            Far::Host(stream) => drop(stream.shutdown(Shutdown::Write)),
            Far::Answers(exchange) => exchange.end(),
        }
    }
}

impl Read for Far {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        match self {
            Far::Host(stream) => stream.read(buffer),
            Far::Answers(exchange) => exchange.read(buffer),
        }
    }
}

impl Write for Far {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        match self {
            Far::Host(stream) => stream.write(bytes),
            Far::Answers(exchange) => exchange.write(bytes),
        }
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

struct Connection {
    far: Far,
    handle: SocketHandle,
    /// The host's socket is readable, as far as we know.
    readable: bool,
    /// The host's socket is writable, as far as we know.
    writable: bool,
    host_ended: bool,
    guest_ended: bool,
    /// Its turn ended before its data did.
    more: bool,
    last_active: Instant,
    side: Side,
    /// The guest has accepted the connection.
    answered: bool,
    /// The connection has carried a byte.
    used: bool,
}

/// The side that opened a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    /// The guest.
    Guest,
    /// A peer that came through a forward.
    Forward(usize),
}

/// A forward's listening socket and the guest's port.
pub struct Listener {
    /// The listening socket on the host.
    pub socket: TcpListener,
    /// The address on which it listens.
    pub host: SocketAddr,
    /// The port for connections in the guest.
    pub guest_port: u16,
    /// Whether the guest has accepted a connection.
    pub opened: bool,
    /// Until when no connection is accepted, since the host has no descriptors.
    pub paused: Option<Instant>,
}

/// Purpose for which a file descriptor is polled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waiting {
    /// A connection that is being made.
    Connect(Flow),
    /// A connection that exists.
    Data(Flow),
    /// A forward.
    Accept(usize),
}

/// All connections and the stack towards the guest.
pub struct Tcp {
    interface: Interface,
    sockets: SocketSet<'static>,
    /// The wire.
    pub wire: Wire,
    connecting: HashMap<Flow, Connecting>,
    connections: HashMap<Flow, Connection>,
    /// By [`Side::Forward`]; one that was removed leaves its place empty.
    listeners: Vec<Option<Listener>>,
    on_open: ForwardOpened,
    on_note: Noted,
    /// The lack of descriptors was reported.
    noted: bool,
    outside: Arc<dyn Sockets>,
    answers: Option<(SocketAddrV4, Arc<Files>)>,
    gateway: Ipv4Addr,
    guest: Ipv4Addr,
    next_port: u16,
    started: Instant,
}

impl Tcp {
    /// Creates a stack that is the gateway of the network for its guest, over a link of `mtu`.
    pub fn new(network: &Addresses, mtu: usize, listeners: Vec<Listener>, outside: &Outside, now: Instant) -> Tcp {
        let mac = network.gateway_mac();
        let mut config = Config::new(HardwareAddress::Ethernet(EthernetAddress(mac)));
        config.random_seed = getrandom::u64().unwrap_or_else(|_| u64::from(std::process::id()));
        let mut wire = Wire { from_guest: VecDeque::new(), to_guest: vec![], room: 0, mtu };
        let mut interface = Interface::new(config, &mut wire, StackInstant::ZERO);
        interface.update_ip_addrs(|addresses| {
            addresses.push(IpCidr::new(IpAddress::Ipv4(network.gateway), network.prefix)).expect("room for one address");
        });
        // All outside addresses are ours: the guest's packets to them end here.
        interface.set_any_ip(true);
        Tcp {
            interface,
            sockets: SocketSet::new(vec![]),
            wire,
            connecting: HashMap::new(),
            connections: HashMap::new(),
            listeners: listeners.into_iter().map(Some).collect(),
            on_open: Arc::clone(&outside.on_open),
            on_note: Arc::clone(&outside.on_note),
            noted: false,
            outside: Arc::clone(&outside.sockets),
            answers: None,
            gateway: network.gateway,
            guest: network.guest,
            next_port: FIRST_PORT,
            started: now,
        }
    }

    /// Takes a forward into use, whose socket does not block.
    pub fn add_listener(&mut self, socket: TcpListener, host: SocketAddr, guest_port: u16) {
        let listener = Some(Listener { socket, host, guest_port, opened: false, paused: None });
        match self.listeners.iter().position(Option::is_none) {
            Some(place) => self.listeners[place] = listener,
            None => self.listeners.push(listener),
        }
    }

    /// Closes the forward at this address, and its connections.
    pub fn remove_listener(&mut self, host: SocketAddr) {
        let at_host = |listener: &Option<Listener>| listener.as_ref().is_some_and(|listener| listener.host == host);
        let Some(index) = self.listeners.iter().position(at_host) else { return };
        self.listeners[index] = None;
        for connection in self.connections.values_mut().filter(|connection| connection.side == Side::Forward(index)) {
            // The guest is told with an RST; what is closed then is forgotten.
            self.sockets.get_mut::<Socket>(connection.handle).abort();
            connection.side = Side::Guest;
        }
    }

    /// Serves files to the guest at an address of the network.
    pub fn serve(&mut self, at: SocketAddrV4, files: Arc<Files>) {
        self.answers = Some((at, files));
    }

    fn stack_now(&self, now: Instant) -> StackInstant {
        StackInstant::from_micros(now.duration_since(self.started).as_micros() as i64)
    }

    /// Handles a TCP frame from the guest to `to`.
    pub fn segment(&mut self, frame: Vec<u8>, flow: Flow, opens: bool, to: Destination, now: Instant) {
        if self.connecting.contains_key(&flow) {
            // A repeated SYN: the host's answer is still to come.
            return;
        }
        if !opens {
            self.wire.from_guest.push_back(frame);
            return;
        }
        if let Some(known) = self.connections.get(&flow) {
            // Our side keeps an ended connection only for late segments. A SYN for it opens a new one.
            if self.sockets.get::<Socket>(known.handle).state() != State::TimeWait {
                self.wire.from_guest.push_back(frame);
                return;
            }
            self.forget(&flow);
        }
        if let Some(files) = self.answers.as_ref().filter(|(at, _)| *at == flow.remote).map(|(_, files)| Arc::clone(files)) {
            let far = self.has_room(Side::Guest, now).then(|| Far::Answers(Exchange::new(files)));
            return self.meet(flow, far, frame, now);
        }
        let stream = match to {
            Destination::Host(host, scope) if self.has_room(Side::Guest, now) => self.outside.tcp(host, scope).ok(),
            _ => None,
        };
        match stream {
            Some(stream) => {
                self.connecting.insert(flow, Connecting { stream, syn: frame, since: now });
            }
            // No socket listens for it in the stack, so the stack answers with RST.
            None => self.wire.from_guest.push_back(frame),
        }
    }

    /// Returns whether a side has room for another connection. If need be, closes one that is of no use.
    fn has_room(&mut self, side: Side, now: Instant) -> bool {
        let connecting = if side == Side::Guest { self.connecting.len() } else { 0 };
        let of_side = || self.connections.iter().filter(|(_, c)| c.side == side);
        if connecting + of_side().count() < MAX_CONNECTIONS {
            return true;
        }
        let idle = |since: Instant, limit| now.duration_since(since) >= limit;
        let silent = of_side().filter(|(_, c)| !c.used && idle(c.last_active, SILENT)).map(|(flow, c)| (c.last_active, *flow));
        let unanswered = self.connecting.iter().filter(|(_, c)| connecting > 0 && idle(c.since, SILENT));
        let idlest = of_side().filter(|(_, c)| idle(c.last_active, EVICTABLE)).map(|(flow, c)| (c.last_active, *flow));
        let useless = silent.chain(unanswered.map(|(flow, c)| (c.since, *flow)));
        let Some((_, flow)) = useless.min_by_key(|(since, _)| *since).or_else(|| idlest.min_by_key(|(since, _)| *since)) else {
            return false;
        };
        self.connecting.remove(&flow);
        self.forget(&flow);
        true
    }

    fn forget(&mut self, flow: &Flow) {
        if let Some(connection) = self.connections.remove(flow) {
            self.sockets.remove(connection.handle);
        }
    }

    fn new_socket() -> Socket<'static> {
        let mut socket = Socket::new(SocketBuffer::new(vec![0; FROM_GUEST_BYTES]), SocketBuffer::new(vec![0; TO_GUEST_BYTES]));
        socket.set_nagle_enabled(false);
        socket
    }

    fn insert(&mut self, flow: Flow, far: Far, socket: Socket<'static>, side: Side, now: Instant) {
        let handle = self.sockets.add(socket);
        let connection = Connection {
            far,
            handle,
            readable: true,
            writable: true,
            host_ended: false,
            guest_ended: false,
            more: false,
            last_active: now,
            side,
            answered: side == Side::Guest,
            used: false,
        };
        self.connections.insert(flow, connection);
    }

    /// Handles a host's answer to connect, or its time-out.
    fn connected(&mut self, flow: Flow, now: Instant) {
        let Some(Connecting { stream, syn, .. }) = self.connecting.remove(&flow) else { return };
        let answered = matches!(stream.take_error(), Ok(None)) && stream.peer_addr().is_ok();
        let _ = stream.set_nodelay(true);
        self.meet(flow, answered.then_some(Far::Host(stream)), syn, now);
    }

    /// Gives the stack the guest's SYN, with `far` behind the connection. Without a far end the stack answers with RST.
    fn meet(&mut self, flow: Flow, far: Option<Far>, syn: Vec<u8>, now: Instant) {
        let mut socket = Tcp::new_socket();
        let endpoint = IpListenEndpoint { addr: Some(IpAddress::Ipv4(*flow.remote.ip())), port: flow.remote.port() };
        if let Some(far) = far
            && socket.listen(endpoint).is_ok()
        {
            self.insert(flow, far, socket, Side::Guest, now);
        }
        self.feed(syn, now);
        // A socket that still listens would take the SYN of another connection to the same address.
        let listens = |c: &Connection| self.sockets.get::<Socket>(c.handle).state() == State::Listen;
        if self.connections.get(&flow).is_some_and(listens) {
            self.forget(&flow);
        }
    }

    /// Gives one frame to the stack, before all others and whether or not the guest takes frames now.
    fn feed(&mut self, frame: Vec<u8>, now: Instant) {
        let stack_now = self.stack_now(now);
        let room = std::mem::replace(&mut self.wire.room, usize::MAX);
        self.wire.from_guest.push_front(frame);
        self.interface.poll_ingress_single(stack_now, &mut self.wire, &mut self.sockets);
        self.wire.room = room;
    }

    fn accept(&mut self, index: usize, now: Instant) {
        // Poll reports the rest again.
        for _ in 0..TURNS {
            // It may have been removed in this very round.
            let Some(listener) = &self.listeners[index] else { return };
            match listener.socket.accept() {
                Ok((stream, _)) => self.take(index, stream, now),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                // The error of one connection, which has already gone: accept(2).
                Err(error) if matches!(error.kind(), ErrorKind::ConnectionAborted | ErrorKind::Interrupted) => {}
                Err(error) => return self.pause(index, &error, now),
            }
        }
    }

    /// Pauses a forward: the cause that keeps accept(2) from working would still be there at once.
    fn pause(&mut self, index: usize, error: &std::io::Error, now: Instant) {
        let Some(listener) = &mut self.listeners[index] else { return };
        listener.paused = Some(now + PAUSE);
        if !std::mem::replace(&mut self.noted, true) {
            let host = listener.host;
            (self.on_note)(&format!("the forward at `{host}` cannot accept: {error}; its connections wait until it can"));
        }
    }

    /// Opens a connection to the guest for one that came through a forward.
    fn take(&mut self, index: usize, stream: TcpStream, now: Instant) {
        if stream.set_nonblocking(true).is_err() || !self.has_room(Side::Forward(index), now) {
            return;
        }
        let _ = stream.set_nodelay(true);
        let guest_port = self.listeners[index].as_ref().map(|listener| listener.guest_port);
        let guest = guest_port.map(|port| SocketAddrV4::new(self.guest, port));
        let Some(flow) = guest.and_then(|guest| self.free_flow(guest)) else { return };
        let mut socket = Tcp::new_socket();
        socket.set_timeout(Some(GUEST_CONNECT.into()));
        let to = (IpAddress::Ipv4(*flow.guest.ip()), flow.guest.port());
        let from = (IpAddress::Ipv4(*flow.remote.ip()), flow.remote.port());
        if socket.connect(self.interface.context(), to, from).is_ok() {
            self.insert(flow, Far::Host(stream), socket, Side::Forward(index), now);
        }
    }

    /// Returns a flow with a port of the gateway that no connection to `guest` uses.
    fn free_flow(&mut self, guest: SocketAddrV4) -> Option<Flow> {
        (FIRST_PORT..=u16::MAX).find_map(|_| {
            self.next_port = self.next_port.checked_add(1).unwrap_or(FIRST_PORT);
            let flow = Flow { guest, remote: SocketAddrV4::new(self.gateway, self.next_port) };
            (!self.connections.contains_key(&flow) && !self.connecting.contains_key(&flow)).then_some(flow)
        })
    }

    /// Handles the events of a file descriptor from poll(2).
    pub fn ready(&mut self, waiting: Waiting, events: PollFlags, now: Instant) {
        match waiting {
            Waiting::Connect(flow) => self.connected(flow, now),
            Waiting::Accept(index) => self.accept(index, now),
            Waiting::Data(flow) => {
                if let Some(connection) = self.connections.get_mut(&flow) {
                    let broken = events.intersects(PollFlags::POLLERR | PollFlags::POLLHUP | PollFlags::POLLNVAL);
                    connection.readable |= broken || events.contains(PollFlags::POLLIN);
                    connection.writable |= broken || events.contains(PollFlags::POLLOUT);
                }
            }
        }
    }

    /// Runs the stack and moves data in both directions until neither can continue for now.
    pub fn run(&mut self, now: Instant) {
        let late: Vec<Flow> =
            self.connecting.iter().filter(|(_, c)| now.duration_since(c.since) >= HOST_CONNECT).map(|(flow, _)| *flow).collect();
        late.into_iter().for_each(|flow| self.connected(flow, now));
        for listener in self.listeners.iter_mut().flatten() {
            listener.paused = listener.paused.filter(|until| *until > now);
        }
        let stack_now = self.stack_now(now);
        self.interface.poll(stack_now, &mut self.wire, &mut self.sockets);
        for connection in self.connections.values_mut() {
            connection.splice(self.sockets.get_mut(connection.handle), now);
            let answers = !connection.answered && self.sockets.get::<Socket>(connection.handle).timeout().is_none();
            connection.answered |= answers;
            if let (true, Side::Forward(index)) = (answers, connection.side)
                && let Some(listener) = &mut self.listeners[index]
                && !std::mem::replace(&mut listener.opened, true)
            {
                (self.on_open)(listener.host);
            }
        }
        self.interface.poll(stack_now, &mut self.wire, &mut self.sockets);
        let sockets = &mut self.sockets;
        self.connections.retain(|_, connection| {
            let keep = sockets.get::<Socket>(connection.handle).state() != State::Closed;
            if !keep {
                sockets.remove(connection.handle);
            }
            keep
        });
    }

    /// Returns the time until `run` is due without any ready file descriptor.
    pub fn delay(&mut self, now: Instant) -> Option<Duration> {
        if self.connections.values().any(|connection| connection.more) {
            return Some(Duration::ZERO);
        }
        let stack_now = self.stack_now(now);
        let stack = self.interface.poll_delay(stack_now, &self.sockets).map(Duration::from);
        let connect = (!self.connecting.is_empty()).then_some(Duration::from_secs(1));
        let paused =
            self.listeners.iter().flatten().filter_map(|listener| listener.paused).map(|until| until.duration_since(now));
        paused.chain([stack, connect].into_iter().flatten()).min()
    }

    /// Reports what to poll: file descriptors, events, and their purpose.
    pub fn watch<'a>(&'a self, add: &mut dyn FnMut(&'a dyn AsFdRef, PollFlags, Waiting)) {
        for (flow, connecting) in &self.connecting {
            add(&connecting.stream, PollFlags::POLLOUT, Waiting::Connect(*flow));
        }
        let listeners = self.listeners.iter().enumerate().filter_map(|(index, listener)| Some((index, listener.as_ref()?)));
        for (index, listener) in listeners.filter(|(_, listener)| listener.paused.is_none()) {
            add(&listener.socket, PollFlags::POLLIN, Waiting::Accept(index));
        }
        for (flow, connection) in &self.connections {
            let socket = self.sockets.get::<Socket>(connection.handle);
            let mut events = PollFlags::empty();
            if !connection.host_ended && !connection.readable && socket.can_send() {
                events |= PollFlags::POLLIN;
            }
            if !connection.writable && socket.recv_queue() > 0 {
                events |= PollFlags::POLLOUT;
            }
            // Without an event to wait for, a broken connection would be reported again and again.
            if let (Far::Host(stream), false) = (&connection.far, events.is_empty()) {
                add(stream, events, Waiting::Data(*flow));
            }
        }
    }
}

/// Sockets that can be polled.
pub trait AsFdRef: std::os::fd::AsFd {}
impl<T: std::os::fd::AsFd> AsFdRef for T {}

impl Connection {
    /// Moves all data that can be moved without waiting.
    fn splice(&mut self, socket: &mut Socket<'static>, now: Instant) {
        let state = socket.state();
        if matches!(state, State::Listen | State::SynSent | State::SynReceived | State::Closed) {
            self.more = false;
            return;
        }
        if socket.timeout().is_some() {
            // The guest has answered. From now on the connection may be idle for any time.
            socket.set_timeout(None);
        }
        let heard = self.to_host(socket);
        // The file server has no descriptor to poll.
        self.readable |= heard && matches!(self.far, Far::Answers(_));
        let moved = heard | self.to_guest(socket);
        self.more = self.writable && socket.recv_queue() > 0 || self.readable && !self.host_ended && socket.can_send();
        if moved {
            self.last_active = now;
            self.used = true;
        }
        if self.host_ended && socket.send_queue() == 0 {
            // Not before, since in LAST-ACK smoltcp 0.14 takes a window update for a duplicate ACK, and waits for its
            // probe.
            socket.close();
        }
        let guest_closed = matches!(state, State::CloseWait | State::LastAck | State::Closing | State::TimeWait);
        if guest_closed && !self.guest_ended && socket.recv_queue() == 0 {
            self.guest_ended = true;
            self.far.end();
            if matches!(self.far, Far::Answers(_)) && !self.host_ended {
                (self.readable, self.more) = (true, true);
            }
        }
    }

    fn to_host(&mut self, socket: &mut Socket<'static>) -> bool {
        let mut moved = false;
        for _ in 0..TURNS {
            if !self.writable || socket.recv_queue() == 0 {
                break;
            }
            let far = &mut self.far;
            let written = socket.recv(|bytes| match far.write(bytes) {
                Ok(n) => (n, Ok(n)),
                Err(error) => (0, Err(error)),
            });
            match written {
                Ok(Ok(n)) => moved |= n > 0,
                Ok(Err(error)) if error.kind() == ErrorKind::WouldBlock => self.writable = false,
                Ok(Err(error)) if error.kind() == ErrorKind::Interrupted => {}
                _ => {
                    socket.abort();
                    break;
                }
            }
        }
        moved
    }

    fn to_guest(&mut self, socket: &mut Socket<'static>) -> bool {
        let mut moved = false;
        for _ in 0..TURNS {
            if !self.readable || self.host_ended || !socket.can_send() {
                break;
            }
            let far = &mut self.far;
            let read = socket.send(|bytes| match far.read(bytes) {
                Ok(n) => (n, Ok(n)),
                Err(error) => (0, Err(error)),
            });
            match read {
                Ok(Ok(0)) => self.host_ended = true,
                Ok(Ok(_)) => moved = true,
                Ok(Err(error)) if error.kind() == ErrorKind::WouldBlock => self.readable = false,
                Ok(Err(error)) if error.kind() == ErrorKind::Interrupted => {}
                _ => {
                    socket.abort();
                    break;
                }
            }
        }
        moved
    }
}

#[cfg(test)]
mod tests {
    use super::super::sockets::OwnSockets;
    use super::*;
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
    use std::sync::Mutex;

    /// Returns TCP with one forward, and where its notes go.
    fn tcp_of(listener: Listener, begun: Instant) -> (Tcp, Arc<Mutex<Vec<String>>>) {
        let notes: Arc<Mutex<Vec<String>>> = Arc::default();
        let heard = Arc::clone(&notes);
        let outside = Outside {
            sockets: Arc::new(OwnSockets),
            on_open: Arc::new(|_| {}),
            on_note: Arc::new(move |text| heard.lock().unwrap().push(text.into())),
        };
        (Tcp::new(&Addresses::default(), 1500, vec![listener], &outside, begun), notes)
    }

    #[test]
    fn a_forward_that_cannot_accept_is_left_alone_for_a_while_and_told_of_once() {
        // A socket that does not listen fails each accept and is always ready, like a listener when the process has no
        // descriptor left.
        let broken = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_NONBLOCK, None).expect("a socket");
        let host = SocketAddr::from((Ipv4Addr::LOCALHOST, 2222));
        let listener = Listener { socket: broken.into(), host, guest_port: 22, opened: false, paused: None };
        let begun = Instant::now();
        let (mut tcp, notes) = tcp_of(listener, begun);
        let watched = |tcp: &Tcp| {
            let mut watched = 0;
            tcp.watch(&mut |_, _, _| watched += 1);
            watched
        };
        for round in 0..3 {
            let now = begun + PAUSE * round;
            tcp.run(now);
            assert_eq!(watched(&tcp), 1, "round {round}");
            tcp.ready(Waiting::Accept(0), PollFlags::POLLIN, now);
            assert_eq!(watched(&tcp), 0, "nothing is polled that would be ready at once");
            tcp.run(now + PAUSE / 2);
            assert_eq!(watched(&tcp), 0);
            assert_eq!(tcp.delay(now + PAUSE / 2), Some(PAUSE / 2), "and somebody comes back");
        }
        let notes = notes.lock().unwrap();
        assert_eq!(notes.len(), 1, "{notes:?}");
        assert!(notes[0].starts_with("the forward at `127.0.0.1:2222` cannot accept: "), "{notes:?}");
    }

    #[test]
    fn a_process_without_descriptors_leaves_its_listeners_alone_and_accepts_when_it_has_some_again() {
        use nix::sys::resource::{Resource, getrlimit, setrlimit};
        const TEST: &str = "devices::net::user::tcp::tests::a_process_without_descriptors_leaves_its_listeners_alone_and_accepts_when_it_has_some_again";
        const PART: &str = "VMCTL_DESCRIPTORS_PART";
        if std::env::var_os(PART).is_none() {
            // A process of its own, since the limit is that of the whole process.
            let mut command = std::process::Command::new(std::env::current_exe().expect("this test"));
            let output = command.args(["--exact", TEST, "--nocapture"]).env(PART, "1").output().expect("runs");
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            return;
        }
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("listens");
        listener.set_nonblocking(true).expect("sets");
        let host = listener.local_addr().expect("bound");
        let client = std::net::TcpStream::connect(host).expect("is in the listener's queue");
        let listener = Listener { socket: listener, host, guest_port: 22, opened: false, paused: None };
        let begun = Instant::now();
        let (mut tcp, notes) = tcp_of(listener, begun);
        let watched = |tcp: &Tcp| {
            let mut watched = Vec::new();
            tcp.watch(&mut |_, _, what| watched.push(format!("{what:?}")));
            watched
        };
        tcp.run(begun);
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("known");
        setrlimit(Resource::RLIMIT_NOFILE, 64, hard).expect("set");
        let mut taken = Vec::new();
        while let Ok(file) = std::fs::File::open("/dev/null") {
            taken.push(file);
        }
        tcp.ready(Waiting::Accept(0), PollFlags::POLLIN, begun);
        assert_eq!(watched(&tcp), Vec::<String>::new(), "nothing is polled that would be ready at once");
        drop(taken);
        assert_eq!(tcp.delay(begun), Some(PAUSE));
        tcp.run(begun + PAUSE);
        assert_eq!(watched(&tcp).len(), 1);
        tcp.ready(Waiting::Accept(0), PollFlags::POLLIN, begun + PAUSE);
        assert!(!watched(&tcp).is_empty(), "it listens on");
        let words = format!("the forward at `{host}` cannot accept: ");
        assert!(matches!(&notes.lock().unwrap()[..], [note] if note.starts_with(&words) && note.contains("Too many open files")));
        drop(client);
    }
}
