//! The network's thread: takes frames from the guest, waits on all sockets with poll(2), gives frames to the guest.

use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::dhcp::{self, Lease};
use super::fragments::Fragments;
use super::packet::{self, Content, Mac, Route};
use super::reach::{Addresses, Destination, Reach};
use super::sockets::{AddedForward, Sockets, name_servers_of};
use super::tcp::{self, Flow, Tcp};
use super::udp::{self, Udp};
use super::{Forward, ForwardChange, MTU, Outside, Protocol, QUEUE_FRAMES, Shared, UserNetConfig};
use crate::poll::Poll;

/// Time until the next try while the guest takes nothing.
const GUEST_STALLED: Duration = Duration::from_millis(200);

enum Waiting {
    Bell,
    Tcp(tcp::Waiting),
    Udp(udp::Waiting),
}

/// State that the thread owns.
pub struct Engine {
    shared: Arc<Shared>,
    heard: UnixStream,
    outside: Arc<dyn Sockets>,
    tcp: Tcp,
    udp: Udp,
    network: Addresses,
    reach: Reach,
    fragments: Fragments,
    mtu: usize,
    lease: Lease,
    name_servers: Vec<SocketAddr>,
    fixed_name_servers: bool,
    next_name_server: usize,
    guest_mac: Option<Mac>,
    /// Whether the address for answers is in use.
    serves: bool,
    identification: u16,
    expired: Instant,
}

impl Engine {
    /// Creates an engine that does not run yet.
    pub fn new(
        shared: Arc<Shared>,
        heard: UnixStream,
        config: &UserNetConfig,
        (tcp, udp): (Vec<tcp::Listener>, Vec<udp::Listener>),
        outside: &Outside,
    ) -> Engine {
        let now = Instant::now();
        let network = config.addresses;
        let mtu = config.mtu.map_or(MTU, |mtu| usize::from(mtu).min(MTU));
        let lease = Lease {
            guest: network.guest,
            gateway: network.gateway,
            dns: network.dns,
            mask: network.mask(),
            leads_out: !config.reach.isolated,
            host_name: config.host_name.clone(),
        };
        let mut engine = Engine {
            shared,
            heard,
            tcp: Tcp::new(&network, mtu, tcp, outside, now),
            udp: Udp::new(network.gateway, network.guest, udp, Arc::clone(&outside.sockets)),
            outside: Arc::clone(&outside.sockets),
            network,
            reach: config.reach.clone(),
            fragments: Fragments::default(),
            mtu,
            lease,
            name_servers: config.name_servers.clone(),
            fixed_name_servers: !config.name_servers.is_empty(),
            next_name_server: 0,
            guest_mac: None,
            serves: false,
            identification: 0,
            expired: now,
        };
        if let Some(files) = &config.answers {
            engine.tcp.serve(network.answers_at(), Arc::clone(files));
            engine.serves = true;
        }
        engine.look_up_name_servers();
        engine
    }

    /// Reads the name servers again, since the host may have moved to another network.
    fn look_up_name_servers(&mut self) {
        if self.fixed_name_servers {
            return;
        }
        match self.outside.name_servers() {
            Some(servers) => self.name_servers = servers,
            None if self.name_servers.is_empty() => self.name_servers = name_servers_of(""),
            None => {}
        }
    }

    /// Runs until it is told to stop.
    pub fn run(mut self) {
        while !self.shared.stop.load(Ordering::Acquire) {
            let now = Instant::now();
            let waiting = self.shared.to_guest.lock().expect("no panic happens under this lock").len();
            self.tcp.wire.room = QUEUE_FRAMES.saturating_sub(waiting);
            self.take_frames(now);
            self.tcp.run(now);
            if now.duration_since(self.expired) >= Duration::from_secs(1) {
                self.expired = now;
                self.expire(now);
            }
            self.give_frames();
            self.wait(now);
        }
    }

    fn expire(&mut self, now: Instant) {
        self.udp.expire(now);
        self.fragments.expire(now);
        if std::mem::take(&mut self.udp.dns_failed) {
            self.look_up_name_servers();
            self.next_name_server = self.next_name_server.wrapping_add(1);
        }
    }

    fn route(&mut self, destination_mac: Mac) -> Route {
        self.identification = self.identification.wrapping_add(1);
        let source_mac = self.network.gateway_mac();
        Route { source_mac, destination_mac, identification: self.identification, mtu: self.mtu }
    }

    fn take_frames(&mut self, now: Instant) {
        // The stack leaves frames in its queue while the guest takes none of its answers.
        let room = QUEUE_FRAMES.saturating_sub(self.tcp.wire.from_guest.len());
        let frames: Vec<Vec<u8>> = {
            let mut queue = self.shared.from_guest.lock().expect("no panic happens under this lock");
            let n = queue.len().min(room);
            queue.drain(..n).collect()
        };
        for frame in frames {
            if let Some(frame) = self.fragments.take(frame, now) {
                self.take_frame(frame, now);
            }
        }
    }

    /// Returns the destination of a packet of the guest.
    fn destination(&self, protocol: Option<Protocol>, to: SocketAddrV4) -> Destination {
        let name_server = self.name_servers[self.next_name_server % self.name_servers.len().max(1)];
        self.reach.destination(&self.network, protocol, to, name_server)
    }

    fn take_frame(&mut self, frame: Vec<u8>, now: Instant) {
        let Some((mac, content)) = packet::parse(&frame) else { return };
        let network = self.network;
        let from_guest = |source: Ipv4Addr| network.may_be_guest(source);
        match content {
            Content::Arp { target } => {
                // Answer only for addresses that are in use: an answer for the guest's own address would look like a
                // conflict to it.
                if [network.gateway, network.dns].contains(&target) || self.serves && target == network.answers {
                    self.guest_mac = Some(mac);
                    self.tcp.wire.from_guest.push_back(frame);
                }
            }
            Content::Tcp { source, destination, opens } if from_guest(*source.ip()) => {
                self.guest_mac = Some(mac);
                let to = self.destination(Some(Protocol::Tcp), destination);
                self.tcp.segment(frame, Flow { guest: source, remote: destination }, opens, to, now);
            }
            Content::Udp { source, destination, payload } if destination.port() == dhcp::SERVER_PORT => {
                let asks = source.port() == dhcp::CLIENT_PORT;
                if let Some(reply) = asks.then(|| dhcp::answer(&self.lease, payload)).flatten() {
                    let route = self.route(reply.mac);
                    let server = SocketAddrV4::new(network.gateway, dhcp::SERVER_PORT);
                    let client = SocketAddrV4::new(reply.destination, dhcp::CLIENT_PORT);
                    self.tcp.wire.to_guest.extend(packet::udp(&route, server, client, &reply.message));
                }
            }
            Content::Udp { source, destination, payload } if from_guest(*source.ip()) => {
                self.guest_mac = Some(mac);
                let flow = Flow { guest: source, remote: destination };
                let is_dns = *destination.ip() == network.dns;
                let to = self.destination(Some(Protocol::Udp), destination);
                if let Some(code) = self.udp.datagram(flow, to, is_dns, payload, now) {
                    let route = self.route(mac);
                    self.tcp.wire.to_guest.extend(packet::udp_unreachable(&route, code, source, destination));
                }
            }
            Content::Echo { source, destination, identifier, message } if from_guest(source) => {
                self.guest_mac = Some(mac);
                self.echo((source, destination), mac, identifier, message, now);
            }
            _ => {}
        }
    }

    fn echo(&mut self, (guest, remote): (Ipv4Addr, Ipv4Addr), mac: Mac, identifier: u16, message: &[u8], now: Instant) {
        // These two addresses are ours only.
        if remote == self.network.gateway || remote == self.network.dns {
            let route = self.route(mac);
            self.tcp.wire.to_guest.extend(packet::echo_reply(&route, remote, guest, identifier, message));
            return;
        }
        let code = match self.destination(None, SocketAddrV4::new(remote, 0)) {
            Destination::Host(_, scope) => self.udp.echo((guest, remote), scope, identifier, message, now),
            Destination::Refused => Some(packet::unreachable::PROHIBITED),
            Destination::Nobody => None,
        };
        if let Some(code) = code {
            let route = self.route(mac);
            self.tcp.wire.to_guest.extend(packet::echo_unreachable(&route, code, guest, remote, message));
        }
    }

    fn give_frames(&mut self) {
        if self.tcp.wire.to_guest.is_empty() {
            return;
        }
        {
            let mut queue = self.shared.to_guest.lock().expect("no panic happens under this lock");
            let room = QUEUE_FRAMES.saturating_sub(queue.len());
            // Frames that smoltcp makes fit. A burst of datagrams beyond the queue is lost, as on a wire.
            queue.extend(self.tcp.wire.to_guest.drain(..).take(room));
        }
        self.tcp.wire.to_guest.clear();
        self.shared.waker.wake();
    }

    /// When something is due though nothing comes.
    fn deadline(&mut self, now: Instant) -> Option<Instant> {
        let queued = self.shared.to_guest.lock().expect("no panic happens under this lock").len();
        let stack = self.tcp.delay(now).map(|delay| match queued >= QUEUE_FRAMES {
            true => delay.max(GUEST_STALLED),
            false => delay,
        });
        let fragments = (!self.fragments.is_empty()).then_some(Duration::from_secs(5));
        [stack, self.udp.delay(), fragments].into_iter().flatten().min().map(|delay| Instant::now() + delay)
    }

    /// Waits for the guest, a socket or a timer, and handles what has arrived.
    fn wait(&mut self, now: Instant) {
        let until = self.deadline(now);
        let mut poll = Poll::new();
        poll.add_reader(Waiting::Bell, self.heard.as_fd());
        self.tcp.watch(&mut |fd, events, waiting| poll.add(Waiting::Tcp(waiting), fd.as_fd(), events));
        self.udp.watch(&mut |fd, events, waiting| poll.add(Waiting::Udp(waiting), fd.as_fd(), events));
        // The host is short of memory: try again in a moment.
        let Ok(ready) = poll.wait(until) else { return };
        let now = Instant::now();
        for (waiting, events) in ready {
            match waiting {
                Waiting::Bell => self.hear(),
                Waiting::Tcp(waiting) => self.tcp.ready(waiting, events, now),
                Waiting::Udp(waiting) => self.take_datagrams(waiting, now),
            }
        }
    }

    fn hear(&mut self) {
        let mut bytes = [0; 64];
        while matches!(self.heard.read(&mut bytes), Ok(n) if n == bytes.len()) {}
        // Cleared before the queues are looked at: a frame that comes later rings again.
        self.shared.notified.store(false, Ordering::Release);
        let changes = std::mem::take(&mut *self.shared.changes.lock().expect("no panic happens under this lock"));
        for change in changes {
            match change {
                ForwardChange::Add(forward, AddedForward::Tcp(socket)) => {
                    self.tcp.remove_listener(forward.host);
                    self.tcp.add_listener(socket, forward.host, forward.guest_port);
                }
                ForwardChange::Add(forward, AddedForward::Udp(socket)) => {
                    self.udp.remove_listener(forward.host);
                    self.udp.add_listener(udp::Listener { socket, host: forward.host, guest_port: forward.guest_port });
                }
                ForwardChange::Remove(Forward { protocol: Protocol::Tcp, host, .. }) => self.tcp.remove_listener(host),
                ForwardChange::Remove(Forward { protocol: Protocol::Udp, host, .. }) => self.udp.remove_listener(host),
            }
        }
    }

    fn take_datagrams(&mut self, waiting: udp::Waiting, now: Instant) {
        // It is read even without a receiver, or poll would return at once forever.
        let destination_mac = self.guest_mac.unwrap_or_default();
        let room = match self.guest_mac {
            Some(_) => QUEUE_FRAMES.saturating_sub(self.tcp.wire.to_guest.len()).max(1),
            None => 64,
        };
        let (source_mac, mtu) = (self.network.gateway_mac(), self.mtu);
        let identification = &mut self.identification;
        let mut route = || {
            *identification = identification.wrapping_add(1);
            Route { source_mac, destination_mac, identification: *identification, mtu }
        };
        let frames = self.udp.ready(waiting, &mut route, now, room);
        if self.guest_mac.is_some() {
            self.tcp.wire.to_guest.extend(frames);
        }
    }
}
