//! The connector: makes sockets for a network whose process may make none itself.
//!
//! The engine child runs what a guest controls, so it gives up opening anything before the guest runs. FreeBSD's
//! capability mode has no connect(2) at all (capabilities.conf of its kernel; cap_enter(2)), and no sendto(2) with an
//! address. A second process, started before and never touched by the guest's bytes, keeps that right and nothing else:
//! it is asked over a stream socket and passes descriptors back (SCM_RIGHTS of unix(4), unix(7)). The same pair runs
//! on Linux, where the engine's system-call filter then knows no socket(2), bind(2) or connect(2).
//!
//! A third process, the *host services*, answers the same protocol for what a connector may not do either: it reads
//! resolv.conf(5) again whenever it is asked, and makes raw ICMP sockets where there is no other way to ping.
//!
//! A request is [`REQUEST_BYTES`] long, in the order of the fields, numbers little-endian:
//!
//! | bytes | field |
//! |---|---|
//! | 0 | what: 1 TCP, 2 UDP, 3 echo, 4 take the descriptor that comes along, 5 datagram, 6 name servers |
//! | 1 | family of the address: 4, 6; 0 for none |
//! | 2-3 | port |
//! | 4-19 | address |
//! | 20-23 | which forward, for 5; for 1 to 3 the scope: 0 everywhere, 1 other hosts only |
//! | 24-27 | bytes that follow, for 5 |
//!
//! Each but a datagram is answered with [`REPLY_BYTES`]: the errno or 0, and a word (echo: 1 when the socket is raw; 4: the
//! forward's number; 6: bytes that follow, 19 for each server). TCP, UDP and echo bring a descriptor along.
//!
//! **Hostile engine**: the engine is what a guest may have taken over. It gets what the guest itself is given, sockets to
//! addresses of its choice; a request that is none ends the connector, and with it all further connections.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Mutex;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

use super::sockets::{EchoSocket, Scope, Sockets, from_bytes, to_bytes};

/// Bytes of a request.
pub const REQUEST_BYTES: usize = 28;
/// Bytes of a reply.
pub const REPLY_BYTES: usize = 8;
/// Bytes of a name server: family, port, address.
const SERVER_BYTES: usize = 19;
const MAX_SERVERS: usize = 16;
const MAX_PAYLOAD: usize = 65535;

const TCP: u8 = 1;
const UDP: u8 = 2;
const ECHO: u8 = 3;
const ADOPT: u8 = 4;
const ANSWER: u8 = 5;
const NAME_SERVERS: u8 = 6;

struct Request {
    what: u8,
    to: Option<SocketAddr>,
    /// Which forward, or the scope.
    word: u32,
    payload_bytes: u32,
}

impl Request {
    fn encode(&self) -> [u8; REQUEST_BYTES] {
        let mut bytes = [0; REQUEST_BYTES];
        bytes[0] = self.what;
        if let Some(to) = self.to {
            let (family, address) = to_bytes(to.ip());
            bytes[1] = family;
            bytes[2..4].copy_from_slice(&to.port().to_le_bytes());
            bytes[4..20].copy_from_slice(&address);
        }
        bytes[20..24].copy_from_slice(&self.word.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.payload_bytes.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8; REQUEST_BYTES]) -> Request {
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        let address = bytes[4..20].try_into().expect("sixteen bytes");
        let port = u16::from_le_bytes([bytes[2], bytes[3]]);
        let to = from_bytes(bytes[1], address).map(|ip| SocketAddr::new(ip, port));
        Request { what: bytes[0], to, word: word(20), payload_bytes: word(24) }
    }
}

/// Sends all bytes, and a descriptor along with the first. Without one it is no sendmsg(2), which an engine has no more.
fn send(stream: &UnixStream, bytes: &[u8], fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let mut sent = 0;
    while sent < bytes.len() {
        let part = &bytes[sent..];
        let done = match fd.filter(|_| sent == 0) {
            Some(fd) => send_with(stream, part, fd),
            None => rustix::net::send(stream, part, SendFlags::NOSIGNAL),
        };
        match done {
            Ok(n) => sent += n,
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

fn send_with(stream: &UnixStream, bytes: &[u8], fd: BorrowedFd<'_>) -> rustix::io::Result<usize> {
    let fds = [fd];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    assert!(ancillary.push(SendAncillaryMessage::ScmRights(&fds)), "there is room for one");
    sendmsg(stream, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL)
}

/// Fills `bytes`, and takes the descriptor that came along. `Ok(None)`: the other end is gone.
fn receive(stream: &UnixStream, bytes: &mut [u8]) -> io::Result<Option<Option<OwnedFd>>> {
    let (mut got, mut fd) = (0, None);
    while got < bytes.len() {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
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
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                // More than one are closed again.
                fd = fds.into_iter().next().or(fd);
            }
        }
    }
    Ok(Some(fd))
}

/// Sockets that a connector makes, and what the host services know.
pub struct RemoteSockets {
    connector: Remote,
    services: Remote,
}

impl RemoteSockets {
    /// Asks the processes at the other ends of these streams.
    pub fn new(connector: UnixStream, services: UnixStream) -> RemoteSockets {
        let remote = |stream| Remote { stream: Mutex::new(stream) };
        RemoteSockets { connector: remote(connector), services: remote(services) }
    }
}

/// A process that is asked; one request at a time.
struct Remote {
    stream: Mutex<UnixStream>,
}

impl Remote {
    /// The word and the descriptor of the answer; `rest` is called for what follows it.
    fn ask<T>(
        &self,
        what: u8,
        to: Option<(SocketAddr, Scope)>,
        fd: Option<BorrowedFd<'_>>,
        rest: impl FnOnce(&UnixStream, u32, Option<OwnedFd>) -> io::Result<T>,
    ) -> io::Result<T> {
        let stream = self.stream.lock().expect("no panic happens under this lock");
        let scope = u32::from(to.is_some_and(|(_, scope)| scope == Scope::OtherHosts));
        let request = Request { what, to: to.map(|(to, _)| to), word: scope, payload_bytes: 0 };
        send(&stream, &request.encode(), fd)?;
        let mut reply = [0; REPLY_BYTES];
        let fd = receive(&stream, &mut reply)?.ok_or(io::ErrorKind::UnexpectedEof)?;
        let word = |at: usize| u32::from_le_bytes(reply[at..at + 4].try_into().expect("four bytes"));
        match word(0) {
            0 => rest(&stream, word(4), fd),
            errno => Err(io::Error::from_raw_os_error(errno as i32)),
        }
    }

    fn socket(&self, what: u8, to: SocketAddr, scope: Scope) -> io::Result<(u32, OwnedFd)> {
        self.ask(what, Some((to, scope)), None, |_, word, fd| Ok((word, fd.ok_or(io::ErrorKind::InvalidData)?)))
    }

    fn echo(&self, to: Ipv4Addr, scope: Scope) -> io::Result<EchoSocket> {
        let (word, fd) = self.socket(ECHO, (to, 0).into(), scope)?;
        Ok(EchoSocket { socket: fd.into(), raw: word == 1 })
    }
}

impl Sockets for RemoteSockets {
    fn tcp(&self, to: SocketAddr, scope: Scope) -> io::Result<TcpStream> {
        Ok(self.connector.socket(TCP, to, scope)?.1.into())
    }

    fn udp(&self, to: SocketAddr, scope: Scope) -> io::Result<UdpSocket> {
        Ok(self.connector.socket(UDP, to, scope)?.1.into())
    }

    fn echo(&self, to: Ipv4Addr, scope: Scope) -> io::Result<EchoSocket> {
        self.connector.echo(to, scope).or_else(|_| self.services.echo(to, scope))
    }

    fn adopt(&self, forward: &UdpSocket) -> io::Result<u32> {
        self.connector.ask(ADOPT, None, Some(forward.as_fd()), |_, number, _| Ok(number))
    }

    fn answer(&self, forward: u32, to: SocketAddr, payload: &[u8]) {
        let payload = &payload[..payload.len().min(MAX_PAYLOAD)];
        let request = Request { what: ANSWER, to: Some(to), word: forward, payload_bytes: payload.len() as u32 };
        let stream = self.connector.stream.lock().expect("no panic happens under this lock");
        let _ = send(&stream, &[&request.encode()[..], payload].concat(), None);
    }

    fn name_servers(&self) -> Option<Vec<SocketAddr>> {
        let read = |mut stream: &UnixStream, bytes: u32, _| {
            let mut list = vec![0; (bytes as usize).min(MAX_SERVERS * SERVER_BYTES)];
            stream.read_exact(&mut list).map(|()| list)
        };
        let list = self.services.ask(NAME_SERVERS, None, None, read).ok()?;
        let servers = list.chunks_exact(SERVER_BYTES).filter_map(|server| {
            let ip = from_bytes(server[0], server[3..].try_into().ok()?)?;
            Some(SocketAddr::new(ip, u16::from_le_bytes([server[1], server[2]])))
        });
        Some(servers.collect()).filter(|servers: &Vec<_>| !servers.is_empty())
    }
}

/// Serves requests on `stream` with what `sockets` makes, until the other end is gone or asks nonsense.
pub fn serve(stream: &UnixStream, sockets: &dyn Sockets) -> io::Result<()> {
    let mut request = [0; REQUEST_BYTES];
    while let Some(fd) = receive(stream, &mut request)? {
        serve_one(stream, sockets, &Request::decode(&request), fd)?;
    }
    Ok(())
}

fn serve_one(mut stream: &UnixStream, sockets: &dyn Sockets, request: &Request, fd: Option<OwnedFd>) -> io::Result<()> {
    let nonsense = || io::Error::from(io::ErrorKind::InvalidData);
    let to = || request.to.ok_or_else(nonsense);
    let scope = || match request.word {
        0 => Ok(Scope::Everywhere),
        1 => Ok(Scope::OtherHosts),
        _ => Err(nonsense()),
    };
    match request.what {
        TCP => reply(stream, sockets.tcp(to()?, scope()?).map(|socket| (0, Some(socket.into())))),
        UDP => reply(stream, sockets.udp(to()?, scope()?).map(|socket| (0, Some(socket.into())))),
        ECHO => {
            let SocketAddr::V4(to) = to()? else { return Err(nonsense()) };
            reply(stream, sockets.echo(*to.ip(), scope()?).map(|echo| (u32::from(echo.raw), Some(echo.socket.into()))))
        }
        ADOPT => {
            let forward = UdpSocket::from(fd.ok_or_else(nonsense)?);
            reply(stream, sockets.adopt(&forward).map(|number| (number, None)))
        }
        ANSWER => {
            let bytes = request.payload_bytes as usize;
            if bytes > MAX_PAYLOAD {
                return Err(nonsense());
            }
            let mut payload = vec![0; bytes];
            stream.read_exact(&mut payload)?;
            sockets.answer(request.word, to()?, &payload);
            Ok(())
        }
        NAME_SERVERS => {
            let mut list = Vec::new();
            for server in sockets.name_servers().unwrap_or_default().into_iter().take(MAX_SERVERS) {
                let (family, address) = to_bytes(server.ip());
                list.push(family);
                list.extend(server.port().to_le_bytes());
                list.extend(address);
            }
            reply(stream, Ok((list.len() as u32, None)))?;
            stream.write_all(&list)
        }
        _ => Err(nonsense()),
    }
}

fn reply(stream: &UnixStream, made: io::Result<(u32, Option<OwnedFd>)>) -> io::Result<()> {
    let (errno, word, fd) = match made {
        Ok((word, fd)) => (0, word, fd),
        // An error without a number is ours; the guest sees a refusal all the same.
        Err(error) => (error.raw_os_error().unwrap_or(libc::EIO) as u32, 0, None),
    };
    let mut bytes = [0; REPLY_BYTES];
    bytes[..4].copy_from_slice(&errno.to_le_bytes());
    bytes[4..].copy_from_slice(&word.to_le_bytes());
    send(stream, &bytes, fd.as_ref().map(AsFd::as_fd))
}

#[cfg(test)]
mod tests {
    use super::super::sockets::{HostServices, OwnSockets};
    use super::*;
    use std::net::TcpListener;

    fn connector() -> (RemoteSockets, std::thread::JoinHandle<io::Result<()>>) {
        let (ours, theirs) = UnixStream::pair().expect("a socket pair");
        let thread = std::thread::spawn(move || serve(&theirs, &OwnSockets::default()));
        (RemoteSockets::new(ours, services()), thread)
    }

    fn services() -> UnixStream {
        let (ours, theirs) = UnixStream::pair().expect("a socket pair");
        std::thread::spawn(move || serve(&theirs, &HostServices::default()));
        ours
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
    fn datagrams_and_answers_from_a_forward_arrive_and_servers_are_named() {
        let (sockets, _thread) = connector();
        let server = UdpSocket::bind(loopback(0)).expect("binds");
        let at = server.local_addr().expect("bound");
        sockets.udp(at, Scope::Everywhere).expect("connects").send(b"ping").expect("sends");
        let mut buffer = [0; 64];
        let (n, _) = server.recv_from(&mut buffer).expect("receives");
        assert_eq!(&buffer[..n], b"ping");
        let forward = UdpSocket::bind(loopback(0)).expect("binds");
        let number = sockets.adopt(&forward).expect("takes it");
        sockets.answer(number, at, b"answer");
        sockets.answer(number + 7, at, b"from nowhere");
        let (n, from) = server.recv_from(&mut buffer).expect("receives");
        assert_eq!((&buffer[..n], from), (&b"answer"[..], forward.local_addr().expect("bound")));
        assert_eq!(sockets.name_servers(), OwnSockets::default().name_servers());
    }

    #[test]
    fn an_error_of_the_host_comes_back_as_it_is() {
        let (sockets, _thread) = connector();
        // Nothing may connect to the broadcast address.
        let here = OwnSockets::default().tcp((Ipv4Addr::BROADCAST, 9).into(), Scope::Everywhere).expect_err("refused");
        let there = sockets.tcp((Ipv4Addr::BROADCAST, 9).into(), Scope::Everywhere).expect_err("refused");
        assert_eq!(there.raw_os_error(), here.raw_os_error());
    }

    #[test]
    fn nonsense_ends_the_connector_and_then_every_request_is_an_error() {
        for (at, value) in [(0, 0), (0, 99), (1, 7), (20, 2), (24, 0xff)] {
            let (ours, theirs) = UnixStream::pair().expect("a socket pair");
            let thread = std::thread::spawn(move || serve(&theirs, &OwnSockets::default()));
            let mut request = Request { what: ANSWER, to: Some(loopback(9)), word: 0, payload_bytes: 0 }.encode();
            // A scope is part of a request for a socket.
            request[0] = if at == 20 { TCP } else { request[0] };
            request[at] = value;
            request[26] = if at == 24 { 0xff } else { 0 };
            send(&ours, &request, None).expect("sends");
            assert!(thread.join().expect("no panic").is_err(), "byte {at} = {value}");
            let sockets = RemoteSockets::new(ours, services());
            assert!(sockets.tcp(loopback(9), Scope::Everywhere).is_err());
            assert!(sockets.udp(loopback(9), Scope::Everywhere).is_err());
        }
    }

    #[test]
    fn a_request_cut_short_is_an_error_and_none_at_all_is_the_end() {
        let (mut ours, theirs) = UnixStream::pair().expect("a socket pair");
        ours.write_all(&[TCP; 5]).expect("writes");
        drop(ours);
        assert!(serve(&theirs, &OwnSockets::default()).is_err());
        let (ours, theirs) = UnixStream::pair().expect("a socket pair");
        drop(ours);
        serve(&theirs, &OwnSockets::default()).expect("the end");
    }
}
