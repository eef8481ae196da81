//! Forwards of UDP: datagrams that come to a port of the host, and the answers to them.
//!
//! A socket that hears anybody can send to anybody. So an engine that may make no sockets has none of these either: its
//! connector keeps them, and passes each datagram over a pair of unix(4) sockets, the sender's address in front. What the
//! engine writes there goes to the address in front, if that is one that was heard from lately: a guest that took its
//! engine over can answer, and cannot ask services of the host that trust their neighbours.
//!
//! **Hostile engine, hostile host**: at most [`MAX_FLOWS`] senders are remembered, the one that was idle the longest makes
//! room; one datagram waits for an engine that takes none, the rest with the kernel. A turn takes a bounded number.

use std::collections::HashMap;
use std::io::{self, ErrorKind};
use std::net::{SocketAddr, UdpSocket};
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};

use super::sockets::{ADDRESS_BYTES, decode, encode};
use super::udp::{IDLE, MAX_FLOWS};
use crate::poll::PollFlags;

/// Datagrams taken of one socket before the others have their turn.
const TURNS: usize = 64;
/// An address and the longest datagram.
const BUFFER_BYTES: usize = ADDRESS_BYTES + 65535;
/// What waits between the two processes. FreeBSD's own size is below that of one long datagram (unix(4)).
const PAIR_BYTES: usize = 256 << 10;
/// The engine forgets a sender first, whatever its clock.
const FORGOTTEN: Duration = IDLE.saturating_add(Duration::from_secs(30));

/// Where a forward's datagrams are heard, and answered. It does not block.
pub enum ForwardSocket {
    /// The socket itself.
    Own(UdpSocket),
    /// The engine's end of a pair; its connector has the socket.
    Relayed(UnixDatagram),
}

impl ForwardSocket {
    /// Takes a datagram: its sender, and where in `buffer` it is.
    pub fn receive(&self, buffer: &mut [u8]) -> io::Result<(SocketAddr, Range<usize>)> {
        match self {
            ForwardSocket::Own(socket) => socket.recv_from(buffer).map(|(n, from)| (from, 0..n)),
            ForwardSocket::Relayed(pair) => {
                let n = pair.recv(buffer)?;
                let from = buffer[..n].first_chunk().and_then(decode).ok_or(ErrorKind::InvalidData)?;
                Ok((from, ADDRESS_BYTES..n))
            }
        }
    }

    /// Sends a datagram; what cannot be sent now is lost, as on a wire.
    pub fn send(&self, to: SocketAddr, payload: &[u8]) {
        let _ = match self {
            ForwardSocket::Own(socket) => socket.send_to(payload, to),
            ForwardSocket::Relayed(pair) => pair.send(&[&encode(to)[..], payload].concat()),
        };
    }
}

impl AsFd for ForwardSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            ForwardSocket::Own(socket) => socket.as_fd(),
            ForwardSocket::Relayed(pair) => pair.as_fd(),
        }
    }
}

/// The two ends that datagrams are passed between; neither blocks.
pub fn pair() -> io::Result<(UnixDatagram, UnixDatagram)> {
    let (ours, theirs) = UnixDatagram::pair()?;
    for end in [&ours, &theirs] {
        end.set_nonblocking(true)?;
        // A host that gives less passes shorter datagrams.
        let _ = setsockopt(end, sockopt::SndBuf, &PAIR_BYTES);
        let _ = setsockopt(end, sockopt::RcvBuf, &PAIR_BYTES);
    }
    Ok((ours, theirs))
}

/// The connector's side of a forward.
pub struct Relay {
    socket: ForwardSocket,
    engine: UnixDatagram,
    /// Those who have sent something, by their address as it is passed on.
    senders: HashMap<[u8; ADDRESS_BYTES], Sender>,
    /// A datagram that the engine had no room for.
    waiting: Option<Vec<u8>>,
    buffer: Vec<u8>,
}

struct Sender {
    /// With all that belongs to it, as the scope of a link-local one.
    address: SocketAddr,
    last_active: Instant,
}

impl Relay {
    /// Passes what comes to `socket` on to `engine`.
    pub fn new(socket: ForwardSocket, engine: UnixDatagram) -> Relay {
        Relay { socket, engine, senders: HashMap::new(), waiting: None, buffer: vec![0; BUFFER_BYTES] }
    }

    /// What to poll.
    pub fn watch<'a>(&'a self, add: &mut dyn FnMut(BorrowedFd<'a>, PollFlags)) {
        match self.waiting {
            // The kernel keeps what comes meanwhile.
            Some(_) => add(self.engine.as_fd(), PollFlags::POLLIN | PollFlags::POLLOUT),
            None => {
                add(self.engine.as_fd(), PollFlags::POLLIN);
                add(self.socket.as_fd(), PollFlags::POLLIN);
            }
        }
    }

    /// Moves what can be moved without waiting.
    pub fn run(&mut self, now: Instant) {
        for _ in 0..TURNS {
            match self.engine.recv(&mut self.buffer) {
                Ok(n) => self.answer(n, now),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        if let Some(datagram) = self.waiting.take() {
            self.pass(datagram);
        }
        for _ in 0..TURNS {
            if self.waiting.is_some() {
                break;
            }
            match self.socket.receive(&mut self.buffer) {
                Ok((from, payload)) => {
                    self.remember(from, now);
                    let datagram = [&encode(from)[..], &self.buffer[payload]].concat();
                    self.pass(datagram);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                // What an earlier answer met.
                Err(_) => {}
            }
        }
    }

    fn pass(&mut self, datagram: Vec<u8>) {
        match self.engine.send(&datagram) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => self.waiting = Some(datagram),
            // ENOBUFS is FreeBSD's word for a full one (uipc_usrreq.c), which poll(2) does not wait for: lost, as on a wire.
            _ => {}
        }
    }

    /// Sends what the engine wrote, `n` bytes in the buffer.
    fn answer(&mut self, n: usize, now: Instant) {
        let Some((address, payload)) = self.buffer[..n].split_first_chunk::<ADDRESS_BYTES>() else { return };
        let Some(sender) = self.senders.get_mut(address) else { return };
        if now.duration_since(sender.last_active) < FORGOTTEN {
            sender.last_active = now;
            self.socket.send(sender.address, payload);
        }
    }

    fn remember(&mut self, address: SocketAddr, now: Instant) {
        let key = encode(address);
        if self.senders.len() >= MAX_FLOWS
            && !self.senders.contains_key(&key)
            && let Some(oldest) = self.senders.iter().min_by_key(|(_, sender)| sender.last_active).map(|(key, _)| *key)
        {
            self.senders.remove(&oldest);
        }
        self.senders.insert(key, Sender { address, last_active: now });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    #[test]
    fn who_was_silent_for_too_long_or_made_room_is_answered_no_more() {
        let [socket, client] = [(); 2].map(|()| UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("binds"));
        client.set_nonblocking(true).expect("sets");
        let (engine, theirs) = pair().expect("a pair");
        let mut relay = Relay::new(ForwardSocket::Own(socket), theirs);
        relay.socket_is_not_waited_for();
        let (begun, address) = (Instant::now(), client.local_addr().expect("bound"));
        let answered = |relay: &mut Relay, after: Duration| {
            engine.send(&[&encode(address)[..], b"x"].concat()).expect("sends");
            relay.run(begun + after);
            std::thread::sleep(Duration::from_millis(50));
            client.recv(&mut [0; 8]).is_ok()
        };
        assert!(!answered(&mut relay, Duration::ZERO), "not heard yet");
        relay.remember(address, begun);
        assert!(answered(&mut relay, FORGOTTEN / 2), "and that makes it young again");
        assert!(answered(&mut relay, FORGOTTEN));
        assert!(!answered(&mut relay, FORGOTTEN * 3));
        relay.remember(address, begun);
        for port in 0..MAX_FLOWS as u16 {
            relay.remember((Ipv4Addr::LOCALHOST, 1 + port).into(), begun + Duration::from_secs(1));
        }
        assert_eq!(relay.senders.len(), MAX_FLOWS);
        assert!(!answered(&mut relay, Duration::from_secs(1)));
    }

    #[test]
    fn an_engine_that_takes_nothing_holds_one_datagram_up_and_loses_none() {
        let [socket, client] = [(); 2].map(|()| UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("binds"));
        let at = socket.local_addr().expect("bound");
        let (engine, theirs) = pair().expect("a pair");
        let mut relay = Relay::new(ForwardSocket::Own(socket), theirs);
        relay.socket_is_not_waited_for();
        let (now, mut sent) = (Instant::now(), 0u32);
        while relay.waiting.is_none() {
            client.send_to(&[&sent.to_le_bytes()[..], &[0; 8000]].concat(), at).expect("sends");
            sent += 1;
            relay.run(now);
            assert!(sent < 1000, "it takes all");
        }
        let (mut got, mut buffer) = (0u32, vec![0; BUFFER_BYTES]);
        while got < sent {
            engine.recv(&mut buffer).expect("a datagram");
            assert_eq!(buffer[ADDRESS_BYTES..ADDRESS_BYTES + 4], got.to_le_bytes());
            got += 1;
            relay.run(now);
        }
        assert!(engine.recv(&mut buffer).is_err(), "no more");
    }

    impl Relay {
        fn socket_is_not_waited_for(&self) {
            if let ForwardSocket::Own(socket) = &self.socket {
                socket.set_nonblocking(true).expect("sets");
            }
        }
    }
}
