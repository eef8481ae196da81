//! The network's thread: takes frames from the guest, waits on all sockets with poll(2), gives frames to the guest.

use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::dhcp::{self, Lease};
use super::packet::{self, Content, Mac, Route};
use super::sockets::{Sockets, name_servers_of};
use super::tcp::{self, Flow, Tcp};
use super::udp::{self, Udp};
use super::{ANSWERS, DNS, GATEWAY, GATEWAY_MAC, GUEST, MASK, Outside, QUEUE_FRAMES, Shared, UserNetConfig};

const DNS_PORT: u16 = 53;
/// How long to wait before looking again while the guest takes nothing.
const GUEST_STALLED: Duration = Duration::from_millis(200);

enum Waiting {
    Bell,
    Tcp(tcp::Waiting),
    Udp(udp::Waiting),
}

/// Everything that the thread owns.
pub struct Engine {
    shared: Arc<Shared>,
    heard: UnixStream,
    outside: Arc<dyn Sockets>,
    tcp: Tcp,
    udp: Udp,
    lease: Lease,
    name_servers: Vec<SocketAddr>,
    fixed_name_servers: bool,
    next_name_server: usize,
    guest_mac: Option<Mac>,
    /// Somebody is at [`ANSWERS`].
    serves: bool,
    identification: u16,
    expired: Instant,
}

impl Engine {
    /// An engine that has not run yet.
    pub fn new(
        shared: Arc<Shared>,
        heard: UnixStream,
        config: &UserNetConfig,
        (tcp, udp): (Vec<tcp::Listener>, Vec<udp::Listener>),
        Outside { sockets: outside, on_open }: Outside,
    ) -> Engine {
        let now = Instant::now();
        let lease = Lease { guest: GUEST, gateway: GATEWAY, dns: DNS, mask: MASK, host_name: config.host_name.clone() };
        let mut engine = Engine {
            shared,
            heard,
            tcp: Tcp::new((GATEWAY, GUEST), GATEWAY_MAC, (tcp, on_open), Arc::clone(&outside), now),
            udp: Udp::new(GATEWAY, GUEST, udp, Arc::clone(&outside)),
            outside,
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
            engine.tcp.serve(ANSWERS, Arc::clone(files));
            engine.serves = true;
        }
        engine.look_up_name_servers();
        engine
    }

    /// The host may have moved to another network since.
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

    /// Runs until told to stop.
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
        if std::mem::take(&mut self.udp.dns_failed) {
            self.look_up_name_servers();
            self.next_name_server = self.next_name_server.wrapping_add(1);
        }
    }

    fn route(&mut self, destination_mac: Mac) -> Route {
        self.identification = self.identification.wrapping_add(1);
        Route { source_mac: GATEWAY_MAC, destination_mac, identification: self.identification }
    }

    fn take_frames(&mut self, now: Instant) {
        // The stack leaves frames where they are while the guest takes none of its answers.
        let room = QUEUE_FRAMES.saturating_sub(self.tcp.wire.from_guest.len());
        let frames: Vec<Vec<u8>> = {
            let mut queue = self.shared.from_guest.lock().expect("no panic happens under this lock");
            let n = queue.len().min(room);
            queue.drain(..n).collect()
        };
        for frame in frames {
            self.take_frame(frame, now);
        }
    }

    /// Where an address of the guest's view is on the host's side.
    fn host_side(&self, to: SocketAddrV4) -> Option<SocketAddr> {
        let ip = *to.ip();
        let inside = ip.octets()[..3] == GATEWAY.octets()[..3];
        match ip {
            GATEWAY => Some(SocketAddr::from((Ipv4Addr::LOCALHOST, to.port()))),
            DNS if to.port() == DNS_PORT => Some(self.name_servers[self.next_name_server % self.name_servers.len().max(1)]),
            _ if inside || ip.is_multicast() || ip.is_broadcast() || ip.is_loopback() || ip.is_unspecified() => None,
            _ => Some(SocketAddr::V4(to)),
        }
    }

    fn take_frame(&mut self, frame: Vec<u8>, now: Instant) {
        let Some((mac, content)) = packet::parse(&frame) else { return };
        let from_guest = |source: Ipv4Addr| source.octets()[..3] == GUEST.octets()[..3] && source != GATEWAY && source != DNS;
        match content {
            Content::Arp { target } => {
                // Only for those who are there: an answer for the guest's own address would be a conflict to it.
                if target == GATEWAY || target == DNS || self.serves && target == *ANSWERS.ip() {
                    self.guest_mac = Some(mac);
                    self.tcp.wire.from_guest.push_back(frame);
                }
            }
            Content::Tcp { source, destination, opens } if from_guest(*source.ip()) => {
                self.guest_mac = Some(mac);
                let host = self.host_side(destination);
                self.tcp.segment(frame, Flow { guest: source, remote: destination }, opens, host, now);
            }
            Content::Udp { source, destination, payload } if destination.port() == dhcp::SERVER_PORT => {
                let asks = source.port() == dhcp::CLIENT_PORT;
                if let Some(reply) = asks.then(|| dhcp::answer(&self.lease, payload)).flatten() {
                    let route = self.route(reply.mac);
                    let server = SocketAddrV4::new(GATEWAY, dhcp::SERVER_PORT);
                    let client = SocketAddrV4::new(reply.destination, dhcp::CLIENT_PORT);
                    self.tcp.wire.to_guest.extend(packet::udp(&route, server, client, &reply.message));
                }
            }
            Content::Udp { source, destination, payload } if from_guest(*source.ip()) => {
                self.guest_mac = Some(mac);
                let flow = Flow { guest: source, remote: destination };
                let is_dns = *destination.ip() == DNS;
                let host = self.host_side(destination);
                self.udp.datagram(flow, host, is_dns, payload, now);
            }
            Content::Echo { source, destination, identifier, message } if from_guest(source) => {
                self.guest_mac = Some(mac);
                if destination == GATEWAY || destination == DNS {
                    let route = self.route(mac);
                    self.tcp.wire.to_guest.extend(packet::echo_reply(&route, destination, source, identifier, message));
                } else if self.host_side(SocketAddrV4::new(destination, 0)).is_some() {
                    self.udp.echo(source, destination, identifier, message, now);
                }
            }
            _ => {}
        }
    }

    fn give_frames(&mut self) {
        if self.tcp.wire.to_guest.is_empty() {
            return;
        }
        {
            let mut queue = self.shared.to_guest.lock().expect("no panic happens under this lock");
            let room = QUEUE_FRAMES.saturating_sub(queue.len());
            // What smoltcp makes fits; a burst of datagrams beyond the queue is lost, as on a wire.
            queue.extend(self.tcp.wire.to_guest.drain(..).take(room));
        }
        self.tcp.wire.to_guest.clear();
        self.shared.waker.wake();
    }

    fn timeout(&mut self, now: Instant) -> PollTimeout {
        let queued = self.shared.to_guest.lock().expect("no panic happens under this lock").len();
        let stack = self.tcp.delay(now).map(|delay| match queued >= QUEUE_FRAMES {
            true => delay.max(GUEST_STALLED),
            false => delay,
        });
        match [stack, self.udp.delay()].into_iter().flatten().min() {
            // Rounded up: a timer that is almost due must not make us spin.
            Some(delay) => PollTimeout::try_from(delay + Duration::from_micros(999)).unwrap_or(PollTimeout::MAX),
            None => PollTimeout::NONE,
        }
    }

    /// Waits for the guest, a socket or a timer, and takes what has come.
    fn wait(&mut self, now: Instant) {
        let timeout = self.timeout(now);
        let mut fds = vec![PollFd::new(self.heard.as_fd(), PollFlags::POLLIN)];
        let mut whose = vec![Waiting::Bell];
        self.tcp.watch(&mut |fd, events, waiting| {
            fds.push(PollFd::new(fd.as_fd(), events));
            whose.push(Waiting::Tcp(waiting));
        });
        self.udp.watch(&mut |fd, events, waiting| {
            fds.push(PollFd::new(fd.as_fd(), events));
            whose.push(Waiting::Udp(waiting));
        });
        if poll(&mut fds, timeout).is_err() {
            // Interrupted, or the host is short of memory: look again in a moment.
            // By poll again: FreeBSD's capability mode lacks clock_nanosleep(2), which std sleeps with.
            let _ = poll(&mut [], 1u8);
            return;
        }
        let events: Vec<PollFlags> = fds.iter().map(|fd| fd.revents().unwrap_or(PollFlags::empty())).collect();
        drop(fds);
        let now = Instant::now();
        for (waiting, events) in whose.into_iter().zip(events).filter(|(_, events)| !events.is_empty()) {
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
        // Cleared before the queues are looked at: who comes later rings again.
        self.shared.told.store(false, Ordering::Release);
    }

    fn take_datagrams(&mut self, waiting: udp::Waiting, now: Instant) {
        let Some(mac) = self.guest_mac else {
            // Nobody to give it to yet; it is taken all the same, or poll would return at once for ever.
            let _ = self.udp.ready(
                waiting,
                &mut || Route { source_mac: GATEWAY_MAC, destination_mac: [0; 6], identification: 0 },
                now,
                64,
            );
            return;
        };
        let room = QUEUE_FRAMES.saturating_sub(self.tcp.wire.to_guest.len()).max(1);
        let identification = &mut self.identification;
        let mut route = || {
            *identification = identification.wrapping_add(1);
            Route { source_mac: GATEWAY_MAC, destination_mac: mac, identification: *identification }
        };
        let frames = self.udp.ready(waiting, &mut route, now, room);
        self.tcp.wire.to_guest.extend(frames);
    }
}
