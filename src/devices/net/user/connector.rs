//! The connector: a process that makes sockets for a network whose own process may not make any.
//!
//! A guest may take over the engine child, so the engine child gives up the right to open anything before the guest runs.
//! FreeBSD's capability mode has no connect(2) at all (capabilities.conf of its kernel; cap_enter(2)), and no sendto(2)
//! with an address. A second process, which is started before and never sees the guest's bytes, keeps only that right. It
//! takes requests over a stream socket and passes descriptors back (SCM_RIGHTS of unix(4), unix(7)). The same processes
//! run on Linux, where the engine's system-call filter allows no socket(2), bind(2) or connect(2).
//!
//! A forward that is added while the guest runs has a socket that its supervisor bound. The supervisor passes it to the
//! connector over a stream of its own (8, and 9 takes it back); the engine then asks for it (5) and gets no other. So an
//! engine that a guest has taken over cannot make the host listen anywhere.
//!
//! It makes only sockets to addresses that the guest's interfaces may reach ([`allowed`](super::allowed)), which it gets at
//! its start. From a forward it sends datagrams only to addresses from which it has received some there ([`relay`]).
//!
//! A third process, the *host services*, speaks the same protocol with the connector and does what that may not do either:
//! it reads resolv.conf(5) for each request, and makes raw ICMP sockets if there is no other way to ping.
//!
//! A request is [`REQUEST_BYTES`] long, in the order of the fields, numbers little-endian:
//!
//! | bytes | field |
//! |---|---|
//! | 0 | kind: 1 TCP, 2 UDP, 3 echo, 4 relay a forward, 5 take an added forward, 6 name servers; of the supervisor 8 a forward is added, 9 a forward is removed |
//! | 1 | family of the address: 4, 6; 0 for none |
//! | 2-3 | port |
//! | 4-19 | address |
//! | 20-23 | for 1 to 3 the scope: 0 everywhere, 1 other hosts only; for 5, 8 and 9 the protocol: 0 TCP, 1 UDP |
//!
//! The reply has [`REPLY_BYTES`]: the errno or 0, and a word (echo: 1 if the socket is raw; 6: number of bytes that follow,
//! 19 for each server). The replies to TCP, UDP, echo and 5 carry a descriptor. The request for a forward carries its socket
//! and the socket on which the connector passes its datagrams. Messages of the supervisor have no reply: 8 carries TCP's
//! listening socket, or UDP's socket and the connector's and the engine's end of what its datagrams are passed over.
//!
//! **Hostile engine**: a guest may have taken over the engine. The engine gets only what the guest itself may have: sockets
//! to addresses that its interfaces may reach. An invalid request ends the connector, and with it all further connections.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::sync::Mutex;
use std::time::Instant;

use nix::errno::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

use super::relay::{self, ForwardSocket, Relay};
use super::sockets::{ADDRESS_BYTES, AddedForward, EchoSocket, Scope, Sockets, decode, encode};
use super::{Forward, Protocol};
use crate::poll::Poll;

/// Size of a request in bytes.
pub const REQUEST_BYTES: usize = 24;
/// Size of a reply in bytes.
pub const REPLY_BYTES: usize = 8;
const MAX_SERVERS: usize = 16;
/// Maximum number of forwards whose sockets are handed over.
const MAX_FORWARDS: usize = 256;
/// Maximum number of descriptors with a request.
const MAX_DESCRIPTORS: usize = 3;

const TCP: u8 = 1;
const UDP: u8 = 2;
const ECHO: u8 = 3;
const FORWARD: u8 = 4;
const TAKE: u8 = 5;
const NAME_SERVERS: u8 = 6;
const OFFER: u8 = 8;
const WITHDRAW: u8 = 9;

struct Request {
    kind: u8,
    to: Option<SocketAddr>,
    /// The scope, or the protocol.
    word: u32,
}

impl Request {
    fn to_bytes(&self) -> [u8; REQUEST_BYTES] {
        let mut bytes = [0; REQUEST_BYTES];
        bytes[0] = self.kind;
        if let Some(to) = self.to {
            bytes[1..20].copy_from_slice(&encode(to));
        }
        bytes[20..].copy_from_slice(&self.word.to_le_bytes());
        bytes
    }

    fn of_bytes(bytes: &[u8; REQUEST_BYTES]) -> Request {
        let to = decode(bytes[1..20].try_into().expect("nineteen bytes"));
        Request { kind: bytes[0], to, word: u32::from_le_bytes(bytes[20..].try_into().expect("four bytes")) }
    }
}

/// Sends all bytes, with the descriptors along the first. Without descriptors it avoids sendmsg(2), which an engine may not
/// call.
fn send(stream: &UnixStream, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut sent = 0;
    while sent < bytes.len() {
        let part = &bytes[sent..];
        let done = match sent == 0 && !fds.is_empty() {
            true => send_with(stream, part, fds),
            false => rustix::net::send(stream, part, SendFlags::NOSIGNAL),
        };
        match done {
            Ok(n) => sent += n,
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

fn send_with(stream: &UnixStream, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> rustix::io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    assert!(ancillary.push(SendAncillaryMessage::ScmRights(fds)), "nobody sends more than there is room for");
    sendmsg(stream, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL)
}

/// Fills `bytes` and returns the descriptors that came along. Returns `Ok(None)` if the other end is gone.
fn receive(stream: &UnixStream, bytes: &mut [u8]) -> io::Result<Option<Vec<OwnedFd>>> {
    let (mut got, mut fds) = (0, Vec::new());
    while got < bytes.len() {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let received = recvmsg(stream, &mut [IoSliceMut::new(&mut bytes[got..])], &mut ancillary, RecvFlags::CMSG_CLOEXEC);
        match received {
            Ok(received) if received.bytes == 0 && got == 0 => return Ok(None),
            Ok(received) if received.bytes == 0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(received) => got += received.bytes,
            Err(rustix::io::Errno::INTR) => continue,
            Err(errno) => return Err(errno.into()),
        }
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(more) = message {
                fds.extend(more);
                // Any further ones are closed.
                fds.truncate(MAX_DESCRIPTORS);
            }
        }
    }
    Ok(Some(fds))
}

/// The sockets of another process: those of a connector for its engine, or those of the host services for a connector. It
/// sends one request at a time.
pub struct RemoteSockets {
    stream: Mutex<UnixStream>,
}

impl RemoteSockets {
    /// Uses the process at the other end of `stream`.
    pub fn new(stream: UnixStream) -> RemoteSockets {
        RemoteSockets { stream: Mutex::new(stream) }
    }

    /// Sends a request. Passes the word and the descriptor of the reply to `rest`, which reads what follows, and returns its
    /// result.
    fn ask<T>(
        &self,
        kind: u8,
        to: Option<(SocketAddr, u32)>,
        fds: &[BorrowedFd<'_>],
        rest: impl FnOnce(&UnixStream, u32, Option<OwnedFd>) -> io::Result<T>,
    ) -> io::Result<T> {
        let stream = self.stream.lock().expect("no panic happens under this lock");
        let request = Request { kind, to: to.map(|(to, _)| to), word: to.map_or(0, |(_, word)| word) };
        send(&stream, &request.to_bytes(), fds)?;
        let mut reply = [0; REPLY_BYTES];
        let fds = receive(&stream, &mut reply)?.ok_or(io::ErrorKind::UnexpectedEof)?;
        let word = |at: usize| u32::from_le_bytes(reply[at..at + 4].try_into().expect("four bytes"));
        match word(0) {
            0 => rest(&stream, word(4), fds.into_iter().next()),
            errno => Err(io::Error::from_raw_os_error(errno as i32)),
        }
    }

    fn socket(&self, kind: u8, to: SocketAddr, scope: Scope) -> io::Result<(u32, OwnedFd)> {
        let scope = u32::from(scope == Scope::OtherHosts);
        self.ask(kind, Some((to, scope)), &[], |_, word, fd| Ok((word, fd.ok_or(io::ErrorKind::InvalidData)?)))
    }
}

impl Sockets for RemoteSockets {
    fn tcp(&self, to: SocketAddr, scope: Scope) -> io::Result<TcpStream> {
        Ok(self.socket(TCP, to, scope)?.1.into())
    }

    fn udp(&self, to: SocketAddr, scope: Scope) -> io::Result<UdpSocket> {
        Ok(self.socket(UDP, to, scope)?.1.into())
    }

    fn echo(&self, to: Ipv4Addr, scope: Scope) -> io::Result<EchoSocket> {
        let (word, fd) = self.socket(ECHO, (to, 0).into(), scope)?;
        Ok(EchoSocket { socket: fd.into(), raw: word == 1 })
    }

    fn forward(&self, socket: UdpSocket) -> io::Result<ForwardSocket> {
        let (ours, theirs) = relay::pair()?;
        self.ask(FORWARD, None, &[socket.as_fd(), theirs.as_fd()], |_, _, _| Ok(ForwardSocket::Relayed(ours)))
    }

    fn added_forward(&self, forward: &Forward) -> io::Result<AddedForward> {
        let request = Some((forward.host, protocol_word(forward.protocol)));
        let fd = self.ask(TAKE, request, &[], |_, _, fd| fd.ok_or_else(|| io::ErrorKind::InvalidData.into()))?;
        Ok(match forward.protocol {
            Protocol::Tcp => AddedForward::Tcp(fd.into()),
            Protocol::Udp => AddedForward::Udp(ForwardSocket::Relayed(fd.into())),
        })
    }

    fn name_servers(&self) -> Option<Vec<SocketAddr>> {
        let read = |mut stream: &UnixStream, bytes: u32, _| {
            let mut list = vec![0; (bytes as usize).min(MAX_SERVERS * ADDRESS_BYTES)];
            stream.read_exact(&mut list).map(|()| list)
        };
        let list = self.ask(NAME_SERVERS, None, &[], read).ok()?;
        let servers = list.as_chunks::<ADDRESS_BYTES>().0.iter().filter_map(decode);
        Some(servers.collect()).filter(|servers: &Vec<_>| !servers.is_empty())
    }
}

fn protocol_word(protocol: Protocol) -> u32 {
    match protocol {
        Protocol::Tcp => 0,
        Protocol::Udp => 1,
    }
}

/// A socket that the supervisor has bound for a forward of a running guest.
pub enum Bound {
    /// A listening socket.
    Tcp(TcpListener),
    /// A socket, and the connector's and the engine's end of what its datagrams are passed over.
    Udp(UdpSocket, UnixDatagram, UnixDatagram),
}

impl Bound {
    /// Listens at `host`, without blocking later.
    pub fn at(protocol: Protocol, host: SocketAddr) -> io::Result<Bound> {
        Ok(match protocol {
            Protocol::Tcp => {
                let socket = TcpListener::bind(host)?;
                socket.set_nonblocking(true)?;
                Bound::Tcp(socket)
            }
            Protocol::Udp => {
                let socket = UdpSocket::bind(host)?;
                socket.set_nonblocking(true)?;
                let (engine, connector) = relay::pair()?;
                Bound::Udp(socket, connector, engine)
            }
        })
    }

    /// Passes it to the connector at the other end of `stream`.
    pub fn offer(self, stream: &UnixStream, host: SocketAddr) -> io::Result<()> {
        let send = |protocol, fds: &[BorrowedFd<'_>]| {
            let request = Request { kind: OFFER, to: Some(host), word: protocol_word(protocol) };
            send(stream, &request.to_bytes(), fds)
        };
        match &self {
            Bound::Tcp(socket) => send(Protocol::Tcp, &[socket.as_fd()]),
            Bound::Udp(socket, connector, engine) => send(Protocol::Udp, &[socket.as_fd(), connector.as_fd(), engine.as_fd()]),
        }
    }
}

/// Tells the connector at the other end of `stream` that a forward is no more.
pub fn withdraw(stream: &UnixStream, protocol: Protocol, host: SocketAddr) -> io::Result<()> {
    send(stream, &Request { kind: WITHDRAW, to: Some(host), word: protocol_word(protocol) }.to_bytes(), &[])
}

/// The forwards that a connector has to do with.
#[derive(Default)]
struct Forwards {
    /// What passes the datagrams of UDP's, by the address on which the host listens.
    relays: Vec<(Option<SocketAddr>, Relay)>,
    /// Sockets that the engine has not taken: the protocol's word, the address, and what it gets.
    added: Vec<(u32, SocketAddr, OwnedFd)>,
}

impl Forwards {
    /// Handles a message of the supervisor. It is dropped if there are too many forwards, and then the engine gets none.
    fn hear(&mut self, request: &Request, fds: Vec<OwnedFd>) {
        let Some(host) = request.to else { return };
        // A socket of an earlier forward of the same address is closed, and one that was removed for good.
        self.added.retain(|(word, at, _)| (*word, *at) != (request.word, host));
        if request.word == protocol_word(Protocol::Udp) {
            self.relays.retain(|(at, _)| *at != Some(host));
        }
        if request.kind != OFFER || self.added.len() + self.relays.len() >= MAX_FORWARDS {
            return;
        }
        let taken = match <[OwnedFd; 3]>::try_from(fds) {
            Ok([socket, connector, engine]) => {
                let socket = ForwardSocket::Own(UdpSocket::from(socket));
                self.relays.push((Some(host), Relay::new(socket, UnixDatagram::from(connector))));
                Some(engine)
            }
            Err(fds) => fds.into_iter().next(),
        };
        self.added.extend(taken.map(|taken| (request.word, host, taken)));
    }

    /// Returns the socket of a forward that the supervisor has added.
    fn take(&mut self, word: u32, host: SocketAddr) -> io::Result<OwnedFd> {
        let found = self.added.iter().position(|(other, at, _)| (*other, *at) == (word, host));
        found.map(|at| self.added.swap_remove(at).2).ok_or_else(|| Errno::EACCES.into())
    }
}

/// Serves requests on `stream` with sockets made by `sockets`, until the other end is gone or sends an invalid request.
pub fn serve(stream: &UnixStream, sockets: &dyn Sockets) -> io::Result<()> {
    serve_with(stream, None, sockets)
}

/// Does the same, with the supervisor's stream for the forwards of a running guest.
pub fn serve_with(stream: &UnixStream, mut supervisor: Option<UnixStream>, sockets: &dyn Sockets) -> io::Result<()> {
    let mut request = [0; REQUEST_BYTES];
    let mut forwards = Forwards::default();
    loop {
        let (asked, mut told) = wait(stream, supervisor.as_ref(), &forwards.relays)?;
        // What the supervisor has sent before the engine asks is there before it.
        while let Some(from) = supervisor.as_ref().filter(|_| told || asked) {
            if !told && !has_input(from)? {
                break;
            }
            told = false;
            match receive(from, &mut request) {
                Ok(Some(fds)) => forwards.hear(&Request::of_bytes(&request), fds),
                // It is gone, and this process ends with the engine.
                _ => supervisor = None,
            }
        }
        if asked {
            let Some(fds) = receive(stream, &mut request)? else { return Ok(()) };
            serve_one(stream, sockets, &Request::of_bytes(&request), fds, &mut forwards)?;
        }
        let now = Instant::now();
        forwards.relays.iter_mut().for_each(|(_, relay)| relay.run(now));
    }
}

/// Returns whether there is a message of the supervisor now.
fn has_input(stream: &UnixStream) -> io::Result<bool> {
    let mut poll = Poll::new();
    poll.add_reader((), stream.as_fd());
    Ok(!poll.wait(Some(Instant::now()))?.is_empty())
}

/// Waits for a request, a message of the supervisor or a datagram. Returns whether there is a request, and a message.
fn wait(
    stream: &UnixStream,
    supervisor: Option<&UnixStream>,
    relays: &[(Option<SocketAddr>, Relay)],
) -> io::Result<(bool, bool)> {
    if relays.is_empty() && supervisor.is_none() {
        return Ok((true, false));
    }
    let mut poll = Poll::new();
    poll.add_reader((true, false), stream.as_fd());
    if let Some(supervisor) = supervisor {
        poll.add_reader((false, true), supervisor.as_fd());
    }
    relays.iter().for_each(|(_, relay)| relay.watch(&mut |fd, events| poll.add((false, false), fd, events)));
    let ready = poll.wait(None)?;
    Ok(ready.iter().fold((false, false), |(asked, told), ((asks, tells), _)| (asked || *asks, told || *tells)))
}

fn serve_one(
    mut stream: &UnixStream,
    sockets: &dyn Sockets,
    request: &Request,
    fds: Vec<OwnedFd>,
    forwards: &mut Forwards,
) -> io::Result<()> {
    let nonsense = || io::Error::from(io::ErrorKind::InvalidData);
    let to = || request.to.ok_or_else(nonsense);
    let scope = || match request.word {
        0 => Ok(Scope::Everywhere),
        1 => Ok(Scope::OtherHosts),
        _ => Err(nonsense()),
    };
    match request.kind {
        TCP => reply(stream, sockets.tcp(to()?, scope()?).map(|socket| (0, Some(socket.into())))),
        UDP => reply(stream, sockets.udp(to()?, scope()?).map(|socket| (0, Some(socket.into())))),
        ECHO => {
            let SocketAddr::V4(to) = to()? else { return Err(nonsense()) };
            reply(stream, sockets.echo(*to.ip(), scope()?).map(|echo| (u32::from(echo.raw), Some(echo.socket.into()))))
        }
        FORWARD => {
            let [socket, engine] = <[OwnedFd; 2]>::try_from(fds).map_err(|_| nonsense())?;
            let (socket, engine) = (UdpSocket::from(socket), UnixDatagram::from(engine));
            let host = socket.local_addr().ok();
            let made = match forwards.relays.len() < MAX_FORWARDS {
                true => sockets.forward(socket),
                false => Err(io::ErrorKind::QuotaExceeded.into()),
            };
            let made = made.map(|socket| forwards.relays.push((host, Relay::new(socket, engine))));
            reply(stream, made.map(|()| (0, None)))
        }
        TAKE => {
            let host = to()?;
            reply(stream, forwards.take(request.word, host).map(|socket| (0, Some(socket))))
        }
        NAME_SERVERS => {
            let servers = sockets.name_servers().unwrap_or_default();
            let list: Vec<u8> = servers.into_iter().take(MAX_SERVERS).flat_map(encode).collect();
            reply(stream, Ok((list.len() as u32, None)))?;
            stream.write_all(&list)
        }
        _ => Err(nonsense()),
    }
}

fn reply(stream: &UnixStream, made: io::Result<(u32, Option<OwnedFd>)>) -> io::Result<()> {
    let (errno, word, fd) = match made {
        Ok((word, fd)) => (0, word, fd),
        // An error without a number is our own mistake. The guest sees a refusal nevertheless.
        Err(error) => (error.raw_os_error().unwrap_or(libc::EIO) as u32, 0, None),
    };
    let mut bytes = [0; REPLY_BYTES];
    bytes[..4].copy_from_slice(&errno.to_le_bytes());
    bytes[4..].copy_from_slice(&word.to_le_bytes());
    let fds: Vec<BorrowedFd<'_>> = fd.iter().map(AsFd::as_fd).collect();
    send(stream, &bytes, &fds)
}

#[cfg(test)]
mod tests {
    use super::super::sockets::{HostServices, OwnSockets};
    use super::*;
    use std::net::TcpListener;
    use std::time::Duration;

    fn connector() -> (RemoteSockets, std::thread::JoinHandle<io::Result<()>>) {
        serving(OwnSockets)
    }

    fn serving(sockets: impl Sockets + 'static) -> (RemoteSockets, std::thread::JoinHandle<io::Result<()>>) {
        let (ours, theirs) = UnixStream::pair().expect("a socket pair");
        let thread = std::thread::spawn(move || serve(&theirs, &sockets));
        (RemoteSockets::new(ours), thread)
    }

    fn loopback(port: u16) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, port).into()
    }

    #[test]
    fn a_connection_made_elsewhere_carries_data_here() {
        let (sockets, thread) = connector();
        let listener = TcpListener::bind(loopback(0)).expect("listens");
        let mut ours = sockets.tcp(listener.local_addr().expect("bound"), Scope::Everywhere).expect("connects");
        let (mut theirs, _) = listener.accept().expect("accepts");
        ours.set_nonblocking(false).expect("blocks");
        ours.write_all(b"hello").expect("writes");
        let mut got = [0; 5];
        theirs.read_exact(&mut got).expect("reads");
        assert_eq!(&got, b"hello");
        drop(sockets);
        thread.join().expect("no panic").expect("ends without an error");
    }

    #[test]
    fn datagrams_arrive_and_servers_are_named() {
        let (sockets, _thread) = connector();
        let server = UdpSocket::bind(loopback(0)).expect("binds");
        let at = server.local_addr().expect("bound");
        sockets.udp(at, Scope::Everywhere).expect("connects").send(b"ping").expect("sends");
        let mut buffer = [0; 64];
        let (n, _) = server.recv_from(&mut buffer).expect("receives");
        assert_eq!(&buffer[..n], b"ping");
        assert_eq!(sockets.name_servers(), OwnSockets.name_servers());
    }

    /// What comes to a forward, waited for.
    fn heard(forward: &ForwardSocket) -> Option<(SocketAddr, Vec<u8>)> {
        let mut buffer = vec![0; 65536];
        let mut poll = Poll::new();
        poll.add_reader((), forward.as_fd());
        if poll.wait(Some(Instant::now() + Duration::from_secs(20))).expect("polls").is_empty() {
            return None;
        }
        let (from, payload) = forward.receive(&mut buffer).expect("a datagram");
        Some((from, buffer[payload].to_vec()))
    }

    #[test]
    fn a_forward_hears_anybody_and_answers_those_alone_that_it_has_heard() {
        let (sockets, _thread) = connector();
        let [forward, client, stranger] = [(); 3].map(|()| UdpSocket::bind(loopback(0)).expect("binds"));
        let at = forward.local_addr().expect("bound");
        forward.set_nonblocking(true).expect("sets");
        let forward = sockets.forward(forward).expect("takes it");
        // As long as datagrams are.
        let long = vec![7; 65507];
        for payload in [&b"question"[..], &long, b""] {
            client.send_to(payload, at).expect("sends");
            let (from, got) = heard(&forward).expect("heard");
            assert_eq!((from, &got[..]), (client.local_addr().expect("bound"), payload));
            forward.send(from, payload);
            let mut buffer = vec![0; 65536];
            client.set_read_timeout(Some(Duration::from_secs(20))).expect("sets");
            let (n, by) = client.recv_from(&mut buffer).expect("the answer");
            assert_eq!((&buffer[..n], by), (payload, at));
        }
        forward.send(stranger.local_addr().expect("bound"), b"unasked");
        stranger.set_read_timeout(Some(Duration::from_millis(500))).expect("sets");
        assert!(stranger.recv_from(&mut [0; 64]).is_err(), "nobody asked");
    }

    /// A connector with a supervisor.
    fn supervised() -> (RemoteSockets, UnixStream) {
        let [(ours, theirs), (supervisor, heard)] = [(); 2].map(|()| UnixStream::pair().expect("a socket pair"));
        std::thread::spawn(move || serve_with(&theirs, Some(heard), &OwnSockets));
        (RemoteSockets::new(ours), supervisor)
    }

    fn free_port(protocol: Protocol) -> SocketAddr {
        match protocol {
            Protocol::Tcp => TcpListener::bind(loopback(0)).expect("binds").local_addr(),
            Protocol::Udp => UdpSocket::bind(loopback(0)).expect("binds").local_addr(),
        }
        .expect("bound")
    }

    #[test]
    fn an_engine_gets_the_forward_that_its_supervisor_has_bound_once_and_no_other() {
        let (sockets, supervisor) = supervised();
        let host = free_port(Protocol::Tcp);
        let forward = Forward { protocol: Protocol::Tcp, host, guest_port: 80 };
        let refused = |forward: &Forward| sockets.added_forward(forward).err().and_then(|error| error.raw_os_error());
        assert_eq!(refused(&forward), Some(libc::EACCES), "nobody has added it");
        Bound::at(Protocol::Tcp, host).expect("listens").offer(&supervisor, host).expect("passed");
        assert_eq!(refused(&Forward { protocol: Protocol::Udp, ..forward }), Some(libc::EACCES));
        assert_eq!(refused(&Forward { host: (Ipv4Addr::UNSPECIFIED, host.port()).into(), ..forward }), Some(libc::EACCES));
        let Ok(AddedForward::Tcp(listener)) = sockets.added_forward(&forward) else { panic!("a listener") };
        let mut client = TcpStream::connect(host).expect("connects");
        listener.set_nonblocking(false).expect("sets");
        let mut accepted = listener.accept().expect("accepts").0;
        client.write_all(b"hello").expect("writes");
        accepted.read_exact(&mut [0; 5]).expect("reads");
        assert_eq!(refused(&forward), Some(libc::EACCES), "it has been taken");
        drop((listener, accepted));
        assert!(TcpStream::connect(host).is_err(), "the connector has kept none of it");
    }

    #[test]
    fn an_added_forward_of_udp_is_relayed_until_the_supervisor_takes_it_back() {
        let (sockets, supervisor) = supervised();
        let host = free_port(Protocol::Udp);
        let forward = Forward { protocol: Protocol::Udp, host, guest_port: 53 };
        Bound::at(Protocol::Udp, host).expect("binds").offer(&supervisor, host).expect("passed");
        let Ok(AddedForward::Udp(engine)) = sockets.added_forward(&forward) else { panic!("a socket") };
        let client = UdpSocket::bind(loopback(0)).expect("binds");
        client.connect(host).expect("connects");
        client.send(b"question").expect("sends");
        let (from, got) = heard(&engine).expect("heard");
        assert_eq!((from, &got[..]), (client.local_addr().expect("bound"), &b"question"[..]));
        engine.send(from, b"answer");
        client.set_read_timeout(Some(Duration::from_secs(20))).expect("sets");
        assert_eq!(client.recv(&mut [0; 64]).expect("the answer"), 6);
        withdraw(&supervisor, Protocol::Udp, host).expect("told");
        // Answered after the message before it was heard.
        sockets.name_servers();
        UdpSocket::bind(host).expect("the port is free again");
    }

    #[test]
    fn a_supervisor_that_is_gone_ends_no_connector() {
        let (sockets, supervisor) = supervised();
        drop(supervisor);
        assert_eq!(sockets.name_servers(), OwnSockets.name_servers());
        assert_eq!(sockets.name_servers(), OwnSockets.name_servers());
    }

    #[test]
    fn the_host_services_connect_to_nobody_and_relay_nothing() {
        let (sockets, _thread) = serving(HostServices::default());
        assert!(sockets.tcp(loopback(9), Scope::Everywhere).is_err() && sockets.udp(loopback(9), Scope::Everywhere).is_err());
        assert!(sockets.forward(UdpSocket::bind(loopback(0)).expect("binds")).is_err());
        assert_eq!(sockets.name_servers(), OwnSockets.name_servers());
    }

    #[test]
    fn an_error_of_the_host_comes_back_as_it_is() {
        let (sockets, _thread) = connector();
        // Nothing may connect to the broadcast address.
        let here = OwnSockets.tcp((Ipv4Addr::BROADCAST, 9).into(), Scope::Everywhere).expect_err("refused");
        let there = sockets.tcp((Ipv4Addr::BROADCAST, 9).into(), Scope::Everywhere).expect_err("refused");
        assert_eq!(there.raw_os_error(), here.raw_os_error());
    }

    #[test]
    fn nonsense_ends_the_connector_and_then_every_request_is_an_error() {
        for (at, value) in [(0, 0), (0, 99), (0, FORWARD), (1, 7), (20, 2)] {
            let (ours, theirs) = UnixStream::pair().expect("a socket pair");
            let thread = std::thread::spawn(move || serve(&theirs, &OwnSockets));
            let mut request = Request { kind: TCP, to: Some(loopback(9)), word: 0 }.to_bytes();
            request[at] = value;
            send(&ours, &request, &[]).expect("sends");
            assert!(thread.join().expect("no panic").is_err(), "byte {at} = {value}");
            let sockets = RemoteSockets::new(ours);
            assert!(sockets.tcp(loopback(9), Scope::Everywhere).is_err());
            assert!(sockets.name_servers().is_none());
        }
    }

    #[test]
    fn a_request_cut_short_is_an_error_and_none_at_all_is_the_end() {
        let (mut ours, theirs) = UnixStream::pair().expect("a socket pair");
        ours.write_all(&[TCP; 5]).expect("writes");
        drop(ours);
        assert!(serve(&theirs, &OwnSockets).is_err());
        let (ours, theirs) = UnixStream::pair().expect("a socket pair");
        drop(ours);
        serve(&theirs, &OwnSockets).expect("the end");
    }
}
