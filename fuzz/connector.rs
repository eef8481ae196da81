//! What an engine that a guest has taken over may say to its connector, and what a guest may ask of the files that it is
//! served: any bytes end it or are answered.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};

use vmctl::devices::net::user::answers::{Exchange, Files};
use vmctl::devices::net::user::connector::{REPLY_BYTES, serve};
use vmctl::devices::net::user::sockets::{EchoSocket, Sockets};

/// A host that refuses everything and counts what it was asked.
#[derive(Default)]
struct Refusing(Mutex<Vec<usize>>);

impl Sockets for Refusing {
    fn tcp(&self, _: SocketAddr) -> io::Result<TcpStream> {
        Err(io::ErrorKind::ConnectionRefused.into())
    }
    fn udp(&self, _: SocketAddr) -> io::Result<UdpSocket> {
        Err(io::ErrorKind::PermissionDenied.into())
    }
    fn echo(&self, _: Ipv4Addr) -> io::Result<EchoSocket> {
        Err(io::ErrorKind::PermissionDenied.into())
    }
    fn adopt(&self, _: &UdpSocket) -> io::Result<u32> {
        Err(io::ErrorKind::QuotaExceeded.into())
    }
    fn answer(&self, _: u32, _: SocketAddr, payload: &[u8]) {
        self.0.lock().expect("no panic happens under this lock").push(payload.len());
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

/// The whole input is sent at once; it and the answers fit in the sockets' buffers, so that nobody waits.
pub fn connector(data: &[u8]) {
    let (mut engine, ours) = UnixStream::pair().expect("a socket pair");
    engine.set_nonblocking(true).expect("does not wait");
    let sent = engine.write(&data[..data.len().min(16 * 28)]).unwrap_or(0);
    engine.shutdown(Shutdown::Write).expect("shut");
    let host = Refusing::default();
    let _ = serve(&ours, &host);
    drop(ours);
    let mut answered = Vec::new();
    engine.set_nonblocking(false).expect("waits");
    // A peer that has gone with bytes unread resets the connection; what it answered before has been read by then.
    let _ = engine.read_to_end(&mut answered);
    // At the most 16 servers are named for each request of 28 bytes.
    assert!(answered.len() <= (sent / 28 + 1) * (REPLY_BYTES + 16 * 19), "{sent} bytes got {} back", answered.len());
    let payload: usize = host.0.lock().expect("no panic happens under this lock").iter().sum();
    assert!(payload <= sent, "more sent on than came");
}
