//! TCP: for each connection a smoltcp socket towards the guest, spliced with a socket of the host.
//!
//! Outbound: the guest's SYN is kept while the host connects. If that succeeds a smoltcp socket listens for just that
//! connection and is given the SYN; if not, smoltcp is given the SYN with nobody listening and answers with RST.
//! Inbound: a connection accepted on a forward's address is opened to the guest from the gateway.
//! A connection to the address of [`answers`](super::answers) has no socket of the host behind it.
//!
//! **Hostile guest**: at most [`MAX_CONNECTIONS`] at a time, each with fixed buffers; beyond that the one that was
//! idle the longest goes, if it was for a minute, and otherwise the new one is refused.

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

use nix::poll::PollFlags;

use super::ForwardOpened;
use super::answers::{Exchange, Files};
use super::packet::Mac;
use super::sockets::Sockets;

/// Connections at a time, those that are being made among them.
pub const MAX_CONNECTIONS: usize = 512;
/// What the guest may send before the host takes it.
const FROM_GUEST_BYTES: usize = 64 * 1024;
/// What may be on the way to the guest.
const TO_GUEST_BYTES: usize = 256 * 1024;
const FRAME_BYTES: usize = 1514;
/// A guest that does not answer an inbound connection.
const GUEST_CONNECT: Duration = Duration::from_secs(30);
/// How long a host may take to accept.
const HOST_CONNECT: Duration = Duration::from_secs(120);
const EVICTABLE: Duration = Duration::from_secs(60);
/// Calls of read or write for one connection before the others have their turn.
const TURNS: usize = 32;

/// A conversation, as the guest sees it.
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
    /// How many frames `to_guest` may hold now.
    pub room: usize,
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
        capabilities.max_transmission_unit = FRAME_BYTES;
        capabilities
    }
}

struct Connecting {
    stream: TcpStream,
    syn: Vec<u8>,
    since: Instant,
}

/// What is behind a connection.
enum Far {
    /// A socket of the host.
    Host(TcpStream),
    /// Files that the guest may read.
    Answers(Exchange),
}

impl Far {
    /// The guest will send no more.
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
    /// The host has something, as far as we know.
    readable: bool,
    /// The host takes something, as far as we know.
    writable: bool,
    host_ended: bool,
    guest_ended: bool,
    /// Its turn ended before its data.
    more: bool,
    last_active: Instant,
    /// The forward that it came by, until the guest has answered.
    unanswered: Option<usize>,
}

/// A forward's listening socket and the guest's port.
pub struct Listener {
    /// Listens on the host.
    pub socket: TcpListener,
    /// Where it listens.
    pub host: SocketAddr,
    /// Where connections go.
    pub guest_port: u16,
    /// Whether the guest has accepted one.
    pub opened: bool,
}

/// What a file descriptor is polled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waiting {
    /// A connection to be made.
    Connect(Flow),
    /// One that is made.
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
    listeners: Vec<Listener>,
    on_open: ForwardOpened,
    outside: Arc<dyn Sockets>,
    answers: Option<(SocketAddrV4, Arc<Files>)>,
    gateway: Ipv4Addr,
    guest: Ipv4Addr,
    next_port: u16,
    started: Instant,
}

impl Tcp {
    /// A stack that is `gateway` to `guest`.
    pub fn new(
        (gateway, guest): (Ipv4Addr, Ipv4Addr),
        mac: Mac,
        (listeners, on_open): (Vec<Listener>, ForwardOpened),
        outside: Arc<dyn Sockets>,
        now: Instant,
    ) -> Tcp {
        let mut config = Config::new(HardwareAddress::Ethernet(EthernetAddress(mac)));
        config.random_seed = getrandom::u64().unwrap_or_else(|_| u64::from(std::process::id()));
        let mut wire = Wire { from_guest: VecDeque::new(), to_guest: vec![], room: 0 };
        let mut interface = Interface::new(config, &mut wire, StackInstant::ZERO);
        interface.update_ip_addrs(|addresses| {
            addresses.push(IpCidr::new(IpAddress::Ipv4(gateway), 24)).expect("room for one address");
        });
        // Every address outside is ours: the guest's packets to it end here.
        interface.set_any_ip(true);
        Tcp {
            interface,
            sockets: SocketSet::new(vec![]),
            wire,
            connecting: HashMap::new(),
            connections: HashMap::new(),
            listeners,
            on_open,
            outside,
            answers: None,
            gateway,
            guest,
            next_port: 32768,
            started: now,
        }
    }

    /// Serves files to the guest at an address of the network.
    pub fn serve(&mut self, at: SocketAddrV4, files: Arc<Files>) {
        self.answers = Some((at, files));
    }

    fn stack_now(&self, now: Instant) -> StackInstant {
        StackInstant::from_micros(now.duration_since(self.started).as_micros() as i64)
    }

    /// A TCP frame came from the guest. `host` is where its destination is on the host's side, `None` if nowhere.
    pub fn segment(&mut self, frame: Vec<u8>, flow: Flow, opens: bool, host: Option<SocketAddr>, now: Instant) {
        if self.connecting.contains_key(&flow) {
            // A SYN sent again: the host's answer is on its way.
            return;
        }
        if !opens {
            self.wire.from_guest.push_back(frame);
            return;
        }
        if let Some(known) = self.connections.get(&flow) {
            // A SYN for a connection that has ended on our side only for the sake of late segments is a new one.
            if self.sockets.get::<Socket>(known.handle).state() != State::TimeWait {
                self.wire.from_guest.push_back(frame);
                return;
            }
            self.forget(&flow);
        }
        if let Some(files) = self.answers.as_ref().filter(|(at, _)| *at == flow.remote).map(|(_, files)| Arc::clone(files)) {
            let far = self.has_room(now).then(|| Far::Answers(Exchange::new(files)));
            return self.meet(flow, far, frame, now);
        }
        let stream = host.filter(|_| self.has_room(now)).and_then(|host| self.outside.tcp(host).ok());
        match stream {
            Some(stream) => {
                self.connecting.insert(flow, Connecting { stream, syn: frame, since: now });
            }
            // Nobody listens for it in the stack: it answers with RST.
            None => self.wire.from_guest.push_back(frame),
        }
    }

    fn has_room(&mut self, now: Instant) -> bool {
        if self.connecting.len() + self.connections.len() < MAX_CONNECTIONS {
            return true;
        }
        let oldest = self.connections.iter().min_by_key(|(_, c)| c.last_active).map(|(flow, c)| (*flow, c.last_active));
        match oldest {
            Some((flow, active)) if now.duration_since(active) >= EVICTABLE => {
                self.forget(&flow);
                true
            }
            _ => false,
        }
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

    fn insert(&mut self, flow: Flow, far: Far, socket: Socket<'static>, unanswered: Option<usize>, now: Instant) {
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
            unanswered,
        };
        self.connections.insert(flow, connection);
    }

    /// A host's answer to connect has come, or its time is up.
    fn connected(&mut self, flow: Flow, now: Instant) {
        let Some(Connecting { stream, syn, .. }) = self.connecting.remove(&flow) else { return };
        let answered = matches!(stream.take_error(), Ok(None)) && stream.peer_addr().is_ok();
        let _ = stream.set_nodelay(true);
        self.meet(flow, answered.then_some(Far::Host(stream)), syn, now);
    }

    /// Gives the stack the guest's SYN, with `far` behind the connection; with nothing there it answers with RST.
    fn meet(&mut self, flow: Flow, far: Option<Far>, syn: Vec<u8>, now: Instant) {
        let mut socket = Tcp::new_socket();
        let endpoint = IpListenEndpoint { addr: Some(IpAddress::Ipv4(*flow.remote.ip())), port: flow.remote.port() };
        if let Some(far) = far
            && socket.listen(endpoint).is_ok()
        {
            self.insert(flow, far, socket, None, now);
        }
        self.feed(syn, now);
        // One that listens on would take the SYN of another connection to the same place.
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
        while let Ok((stream, _)) = self.listeners[index].socket.accept() {
            if stream.set_nonblocking(true).is_err() || !self.has_room(now) {
                continue;
            }
            let _ = stream.set_nodelay(true);
            let guest = SocketAddrV4::new(self.guest, self.listeners[index].guest_port);
            let Some(flow) = self.free_flow(guest) else { continue };
            let mut socket = Tcp::new_socket();
            socket.set_timeout(Some(GUEST_CONNECT.into()));
            let to = (IpAddress::Ipv4(*flow.guest.ip()), flow.guest.port());
            let from = (IpAddress::Ipv4(*flow.remote.ip()), flow.remote.port());
            if socket.connect(self.interface.context(), to, from).is_ok() {
                self.insert(flow, Far::Host(stream), socket, Some(index), now);
            }
        }
    }

    /// A port of the gateway that no connection to `guest` uses.
    fn free_flow(&mut self, guest: SocketAddrV4) -> Option<Flow> {
        (0..=MAX_CONNECTIONS).find_map(|_| {
            self.next_port = self.next_port.checked_add(1).unwrap_or(32768);
            let flow = Flow { guest, remote: SocketAddrV4::new(self.gateway, self.next_port) };
            (!self.connections.contains_key(&flow) && !self.connecting.contains_key(&flow)).then_some(flow)
        })
    }

    /// Takes what poll(2) said of a file descriptor.
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

    /// Runs the stack and moves data both ways until neither has more to do for now.
    pub fn run(&mut self, now: Instant) {
        let late: Vec<Flow> =
            self.connecting.iter().filter(|(_, c)| now.duration_since(c.since) >= HOST_CONNECT).map(|(flow, _)| *flow).collect();
        late.into_iter().for_each(|flow| self.connected(flow, now));
        let stack_now = self.stack_now(now);
        self.interface.poll(stack_now, &mut self.wire, &mut self.sockets);
        for connection in self.connections.values_mut() {
            connection.splice(self.sockets.get_mut(connection.handle), now);
            let answered = self.sockets.get::<Socket>(connection.handle).timeout().is_none();
            if let Some(index) = connection.unanswered.take_if(|_| answered)
                && !std::mem::replace(&mut self.listeners[index].opened, true)
            {
                (self.on_open)(self.listeners[index].host);
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

    /// When `run` is due without any file descriptor being ready.
    pub fn delay(&mut self, now: Instant) -> Option<Duration> {
        if self.connections.values().any(|connection| connection.more) {
            return Some(Duration::ZERO);
        }
        let stack_now = self.stack_now(now);
        let stack = self.interface.poll_delay(stack_now, &self.sockets).map(Duration::from);
        let connect = (!self.connecting.is_empty()).then_some(Duration::from_secs(1));
        [stack, connect].into_iter().flatten().min()
    }

    /// What to poll: file descriptors, events, and what they are.
    pub fn watch<'a>(&'a self, add: &mut dyn FnMut(&'a dyn AsFdRef, PollFlags, Waiting)) {
        for (flow, connecting) in &self.connecting {
            add(&connecting.stream, PollFlags::POLLOUT, Waiting::Connect(*flow));
        }
        for (index, listener) in self.listeners.iter().enumerate() {
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
            // Without an event to wait for, a broken connection would be reported on and on.
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
    /// Moves what can be moved without waiting.
    fn splice(&mut self, socket: &mut Socket<'static>, now: Instant) {
        let state = socket.state();
        if matches!(state, State::Listen | State::SynSent | State::SynReceived | State::Closed) {
            self.more = false;
            return;
        }
        if socket.timeout().is_some() {
            // The guest has answered: from now on the connection may be as idle as it likes.
            socket.set_timeout(None);
        }
        let heard = self.to_host(socket);
        // Nobody polls what answers by itself.
        self.readable |= heard && matches!(self.far, Far::Answers(_));
        let moved = heard | self.to_guest(socket);
        self.more = self.writable && socket.recv_queue() > 0 || self.readable && !self.host_ended && socket.can_send();
        if moved {
            self.last_active = now;
        }
        if self.host_ended && socket.send_queue() == 0 {
            // Not before: in LAST-ACK smoltcp 0.14 takes a window update for a duplicate ACK, and waits for its probe.
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
