//! What an engine that a guest has taken over may say to its connector, and what a guest may ask of the files that it is
//! served: any bytes end it or are answered.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use vmctl::testing::devices::net::user::answers::{Exchange, Files};
use vmctl::testing::devices::net::user::connector::{REPLY_BYTES, REQUEST_BYTES, serve};
use vmctl::testing::devices::net::user::fragments::{Fragments, MAX_DATAGRAMS};
use vmctl::testing::devices::net::user::packet;
use vmctl::testing::devices::net::user::relay::ForwardSocket;
use vmctl::testing::devices::net::user::sockets::{EchoSocket, Scope, Sockets};

/// A host that refuses everything.
struct Refusing;

impl Sockets for Refusing {
    fn tcp(&self, _: SocketAddr, _: Scope) -> io::Result<TcpStream> {
        Err(io::ErrorKind::ConnectionRefused.into())
    }
    fn udp(&self, _: SocketAddr, _: Scope) -> io::Result<UdpSocket> {
        Err(io::ErrorKind::PermissionDenied.into())
    }
    fn echo(&self, _: Ipv4Addr, _: Scope) -> io::Result<EchoSocket> {
        Err(io::ErrorKind::PermissionDenied.into())
    }
    fn forward(&self, _: UdpSocket) -> io::Result<ForwardSocket> {
        Err(io::ErrorKind::QuotaExceeded.into())
    }
    fn name_servers(&self) -> Option<Vec<SocketAddr>> {
        Some(vec![(Ipv4Addr::LOCALHOST, 53).into(); 40])
    }
}

/// What a guest may ask the server of answer files: the answer is one, and bounded.
pub fn answers(data: &[u8]) {
    let files = Arc::new(Files::new([("/preseed.cfg".to_owned(), vec![b'x'; 100])]));
    let mut exchange = Exchange::new(files);
    // In pieces whose sizes the input gives.
    let mut rest = data;
    while let Some((&size, more)) = rest.split_first() {
        let (piece, left) = more.split_at(more.len().min(usize::from(size)));
        exchange.write_all(piece).expect("takes anything");
        rest = left;
    }
    exchange.end();
    let mut answer = Vec::new();
    exchange.read_to_end(&mut answer).expect("answers");
    assert!(answer.starts_with(b"HTTP/1.1 ") && answer.len() < 1024, "{} bytes", answer.len());
}

/// Frames of a guest: what is put together of fragments is bounded, and what comes out is a packet that is whole.
pub fn frames(data: &[u8]) {
    let (mut fragments, mut now) = (Fragments::default(), Instant::now());
    let mut rest = data;
    while let Some((&[size, millis, ref fields @ ..], more)) = rest.split_first_chunk::<8>() {
        let (piece, left) = more.split_at(more.len().min(usize::from(size)));
        rest = left;
        now += Duration::from_millis(u64::from(millis) * 16);
        // Addresses, protocols and numbers of which few differ, so that fragments meet.
        let [flags, offset, protocol, number, repeat, odd] = *fields;
        let data = piece.repeat(usize::from(repeat & 31));
        let mut frame = vec![0u8; 34];
        frame[12] = 8;
        frame[14] = 0x45 ^ (odd & 0x80 >> 7);
        frame[16..18].copy_from_slice(&((20 + data.len()) as u16).wrapping_add(u16::from(odd & 3)).to_be_bytes());
        frame[19] = number & 3;
        frame[20..22].copy_from_slice(&(u16::from(flags & 0x3f) << 8 | u16::from(offset)).to_be_bytes());
        frame[23] = [1, 6, 17, protocol][usize::from(protocol & 3)];
        frame.extend(data);
        if let Some(whole) = fragments.take(frame, now) {
            assert!(whole.len() <= 14 + 65_535 && packet::fragment(&whole).is_none());
            let _ = packet::parse(&whole);
        }
        assert!(fragments.len() <= MAX_DATAGRAMS);
    }
}

/// The whole input is sent at once; it and the answers fit in the sockets' buffers, so that nobody waits.
pub fn connector(data: &[u8]) {
    let (mut engine, ours) = UnixStream::pair().expect("a socket pair");
    engine.set_nonblocking(true).expect("does not wait");
    let sent = engine.write(&data[..data.len().min(16 * REQUEST_BYTES)]).unwrap_or(0);
    engine.shutdown(Shutdown::Write).expect("shut");
    let _ = serve(&ours, &Refusing);
    drop(ours);
    let mut answered = Vec::new();
    engine.set_nonblocking(false).expect("waits");
    // A peer that has gone with bytes unread resets the connection; what it answered before has been read by then.
    let _ = engine.read_to_end(&mut answered);
    // At the most 16 servers are named for each request.
    assert!(answered.len() <= (sent / REQUEST_BYTES + 1) * (REPLY_BYTES + 16 * 19), "{sent} bytes got {} back", answered.len());
}
