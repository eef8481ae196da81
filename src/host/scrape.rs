//! One document over HTTP/1.1 (RFC 9112), for a program on this machine that asks for it now and then.
//!
//! Which form the document has is decided by the function that makes it, from the request's `Accept` field.
//!
//! Listens on loopback or a Unix socket only: there is neither a password nor encryption. Over TCP the `Host` field
//! must name this machine's loopback, so that a page in a browser cannot read the document under a name of its own.
//!
//! **Hostile peer**: a request is at most [`HEAD_LIMIT`] bytes, and [`PATIENCE`] is the time-out for the request and
//! again for the answer. With more than [`MOST_CLIENTS`] clients the oldest connection is cut, so that silent clients
//! keep no other client out. Every connection ends with its answer.
//!
//! **Not modelled**: bodies of requests, ranges, compression, persistent connections.

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::error::HostError;
use crate::poll::Poll;

/// Maximum size of a request in bytes.
pub const HEAD_LIMIT: usize = 8 * 1024;
/// Maximum number of connections at a time.
pub const MOST_CLIENTS: usize = 16;
/// Time-out for a request to arrive.
pub const PATIENCE: Duration = Duration::from_secs(5);
/// Maximum number of fields of a request.
const MOST_FIELDS: usize = 64;
/// Path of the document.
const PATH: &str = "/metrics";

/// An address to listen on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listen {
    /// A port of a loopback address; 0 for any free port.
    Tcp(SocketAddr),
    /// A socket to which only this user may connect.
    Unix(PathBuf),
}

impl FromStr for Listen {
    type Err = HostError;

    fn from_str(text: &str) -> Result<Listen, HostError> {
        if let Some(path) = text.strip_prefix("unix:").filter(|path| !path.is_empty()) {
            return Ok(Listen::Unix(path.into()));
        }
        let address: SocketAddr = text.parse().map_err(|_| {
            HostError::user(format!("`{text}` is not an address to listen on"))
                .hint("write `127.0.0.1:9177`, `[::1]:9177` or `unix:/path/to/socket`")
        })?;
        match address.ip().is_loopback() {
            true => Ok(Listen::Tcp(address)),
            false => Err(HostError::user(format!("`{text}` is not on this machine's loopback")).hint(
                "it has no password: listen on `127.0.0.1` or `unix:PATH`, and put a proxy with a password in front of it",
            )),
        }
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Listen::Tcp(address) => write!(f, "http://{address}{PATH}"),
            Listen::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// The response to a request.
pub struct Document {
    /// Its `Content-Type`.
    pub content_type: &'static str,
    /// Its text.
    pub body: String,
}

/// A listening socket. A Unix socket is removed when it is dropped.
pub struct Listener {
    socket: Socket,
    address: Listen,
}

enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    /// Listens on the address. Replaces a socket without a listener.
    pub fn open(listen: &Listen) -> Result<Listener, HostError> {
        let failed = |error: io::Error| HostError::user(format!("cannot listen on `{listen}`: {error}"));
        let listener = match listen {
            Listen::Tcp(address) => {
                let listener = TcpListener::bind(address).map_err(failed)?;
                let address = Listen::Tcp(listener.local_addr().map_err(failed)?);
                Listener { socket: Socket::Tcp(listener), address }
            }
            Listen::Unix(path) => {
                remove_stale(path).map_err(failed)?;
                let listener =
                    Listener { socket: Socket::Unix(UnixListener::bind(path).map_err(failed)?), address: listen.clone() };
                std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(failed)?;
                listener
            }
        };
        match &listener.socket {
            Socket::Tcp(socket) => socket.set_nonblocking(true),
            Socket::Unix(socket) => socket.set_nonblocking(true),
        }
        .map_err(failed)?;
        Ok(listener)
    }

    /// Returns the address. A port that was left open is known here.
    pub fn address(&self) -> &Listen {
        &self.address
    }

    /// Answers until `stop` can be read. `document` is called with the `Accept` field of each request, from several threads.
    pub fn serve(&self, stop: BorrowedFd<'_>, document: &(dyn Fn(&str) -> Document + Sync)) -> io::Result<()> {
        let clients = Mutex::new(Clients::default());
        let checks_host = matches!(self.address, Listen::Tcp(_));
        std::thread::scope(|scope| {
            while !self.wait(stop)? {
                // The client went away again, or there are no descriptors for the moment.
                let Ok(stream) = self.accept() else { continue };
                let Ok((number, stream)) = lock(&clients).enter(stream) else { continue };
                let clients = &clients;
                let spawned = std::thread::Builder::new().name("scrape".into()).spawn_scoped(scope, move || {
                    let _ = Client { stream: &stream, document }.serve(checks_host);
                    lock(clients).leave(number);
                });
                if spawned.is_err() {
                    lock(clients).leave(number);
                }
            }
            lock(&clients).leave_all();
            Ok(())
        })
    }

    /// Waits for a client. Returns whether it is time to stop.
    fn wait(&self, stop: BorrowedFd<'_>) -> io::Result<bool> {
        let listener = match &self.socket {
            Socket::Tcp(socket) => socket.as_fd(),
            Socket::Unix(socket) => socket.as_fd(),
        };
        let mut poll = Poll::new();
        poll.add_reader(true, stop);
        poll.add_reader(false, listener);
        Ok(poll.wait(None)?.into_iter().any(|(stops, _)| stops))
    }

    /// Returns a connection, with one type for both kinds: reading, writing, time limits and shutting down are the same
    /// calls.
    fn accept(&self) -> io::Result<UnixStream> {
        let accepted = match &self.socket {
            Socket::Tcp(socket) => socket.accept().map(|(stream, _)| OwnedFd::from(stream)),
            Socket::Unix(socket) => socket.accept().map(|(stream, _)| OwnedFd::from(stream)),
        };
        let stream = match accepted {
            Ok(stream) => UnixStream::from(stream),
            Err(error) => {
                // Without descriptors the connection stays in the queue. Wait, so that this does not loop at full
                // speed.
                if !matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::ConnectionAborted) {
                    std::thread::sleep(Duration::from_millis(50));
                }
                return Err(error);
            }
        };
        // FreeBSD passes the listener's flag on.
        stream.set_nonblocking(false)?;
        Ok(stream)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Listen::Unix(path) = &self.address {
            let _ = std::fs::remove_file(path);
        }
    }
}

fn remove_stale(path: &Path) -> io::Result<()> {
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket());
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused && is_socket => std::fs::remove_file(path),
        _ => Ok(()),
    }
}

/// The connected clients, the oldest first.
#[derive(Default)]
struct Clients {
    next: u64,
    streams: VecDeque<(u64, UnixStream)>,
}

fn lock(clients: &Mutex<Clients>) -> std::sync::MutexGuard<'_, Clients> {
    clients.lock().expect("no panic happens under this lock")
}

impl Clients {
    fn enter(&mut self, stream: UnixStream) -> io::Result<(u64, UnixStream)> {
        let copy = stream.try_clone()?;
        if self.streams.len() >= MOST_CLIENTS
            && let Some((_, oldest)) = self.streams.pop_front()
        {
            // Its thread wakes and ends.
            let _ = oldest.shutdown(Shutdown::Both);
        }
        self.next += 1;
        self.streams.push_back((self.next, copy));
        Ok((self.next, stream))
    }

    fn leave(&mut self, number: u64) {
        self.streams.retain(|(other, _)| *other != number);
    }

    fn leave_all(&mut self) {
        for (_, stream) in self.streams.drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

/// Reason for the refusal of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refusal {
    Malformed,
    NotFound,
    NotAllowed,
    TooSlow,
    ForeignHost,
    TooLong,
}

impl Refusal {
    fn status(self) -> &'static str {
        match self {
            Refusal::Malformed => "400 Bad Request",
            Refusal::NotFound => "404 Not Found",
            Refusal::NotAllowed => "405 Method Not Allowed",
            Refusal::TooSlow => "408 Request Timeout",
            Refusal::ForeignHost => "421 Misdirected Request",
            Refusal::TooLong => "431 Request Header Fields Too Large",
        }
    }
}

/// A valid request.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Wanted {
    head_only: bool,
    /// All `Accept` fields, joined.
    accept: String,
}

/// Parses a head from the bytes so far. Returns `None` while more are needed.
fn understand(head: &[u8], checks_host: bool) -> Option<Result<Wanted, Refusal>> {
    let mut fields = [httparse::EMPTY_HEADER; MOST_FIELDS];
    let mut request = httparse::Request::new(&mut fields);
    match request.parse(head) {
        Ok(httparse::Status::Complete(_)) => {}
        Ok(httparse::Status::Partial) if head.len() >= HEAD_LIMIT => return Some(Err(Refusal::TooLong)),
        Ok(httparse::Status::Partial) => return None,
        Err(httparse::Error::TooManyHeaders) => return Some(Err(Refusal::TooLong)),
        Err(_) => return Some(Err(Refusal::Malformed)),
    }
    let mut hosts = request.headers.iter().filter(|field| field.name.eq_ignore_ascii_case("host"));
    let host = hosts.next().map(|field| String::from_utf8_lossy(field.value).into_owned());
    // RFC 9112, 3.2: exactly one in every request of HTTP/1.1.
    if hosts.next().is_some() || (host.is_none() && request.version == Some(1)) {
        return Some(Err(Refusal::Malformed));
    }
    if checks_host && host.is_some_and(|host| !is_loopback(&host)) {
        return Some(Err(Refusal::ForeignHost));
    }
    let accepts = request.headers.iter().filter(|field| field.name.eq_ignore_ascii_case("accept"));
    let accept = accepts.map(|field| String::from_utf8_lossy(field.value)).collect::<Vec<_>>().join(",");
    let path = request.path.unwrap_or_default().split('?').next();
    Some(match (path == Some(PATH), request.method) {
        (false, _) => Err(Refusal::NotFound),
        (true, Some("GET")) => Ok(Wanted { head_only: false, accept }),
        (true, Some("HEAD")) => Ok(Wanted { head_only: true, accept }),
        (true, _) => Err(Refusal::NotAllowed),
    })
}

/// Returns whether a `Host` field names the loopback, with or without a port.
fn is_loopback(host: &str) -> bool {
    let name = match host.trim().strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.trim().split(':').next().unwrap_or_default(),
    };
    name.eq_ignore_ascii_case("localhost") || name.parse().is_ok_and(|address: IpAddr| address.is_loopback())
}

/// One connection.
struct Client<'a> {
    stream: &'a UnixStream,
    document: &'a (dyn Fn(&str) -> Document + Sync),
}

impl Client<'_> {
    fn serve(&self, checks_host: bool) -> io::Result<()> {
        let answer = match self.request(checks_host)? {
            Ok(wanted) => {
                let Document { content_type, body } = (self.document)(&wanted.accept);
                let head = self.head("200 OK", content_type, body.len(), "Vary: Accept\r\n");
                if wanted.head_only { head } else { head + &body }
            }
            Err(refusal) => {
                let body = format!("{}\n", refusal.status());
                let allow = if refusal == Refusal::NotAllowed { "Allow: GET, HEAD\r\n" } else { "" };
                self.head(refusal.status(), "text/plain; charset=utf-8", body.len(), allow) + &body
            }
        };
        self.write(answer.as_bytes())?;
        self.stream.shutdown(Shutdown::Write)
    }

    fn head(&self, status: &str, content_type: &str, length: usize, more: &str) -> String {
        format!(
            "HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {length}\r\nCache-Control: no-store\r\n\
             {more}Connection: close\r\n\r\n"
        )
    }

    fn request(&self, checks_host: bool) -> io::Result<Result<Wanted, Refusal>> {
        let until = Instant::now() + PATIENCE;
        let mut head = Vec::new();
        loop {
            if let Some(understood) = understand(&head, checks_host) {
                return Ok(understood);
            }
            let Some(left) = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) else {
                return Ok(Err(Refusal::TooSlow));
            };
            self.stream.set_read_timeout(Some(left))?;
            let mut buffer = [0u8; 1024];
            let room = (HEAD_LIMIT - head.len()).min(buffer.len());
            match (&mut &*self.stream).read(&mut buffer[..room]) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => head.extend_from_slice(&buffer[..count]),
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn write(&self, mut bytes: &[u8]) -> io::Result<()> {
        let until = Instant::now() + PATIENCE;
        while !bytes.is_empty() {
            let left = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero());
            self.stream.set_write_timeout(Some(left.ok_or(io::ErrorKind::TimedOut)?))?;
            match (&mut &*self.stream).write(bytes) {
                Ok(count) => bytes = &bytes[count..],
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// Reads `bytes` as a request, for the fuzz target: the `Accept` field of one that is answered.
pub fn understands(bytes: &[u8]) -> Option<String> {
    Some(understand(&bytes[..bytes.len().min(HEAD_LIMIT)], true)?.ok()?.accept)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_and_sockets_are_listened_on() {
        let parse = |text: &str| text.parse::<Listen>();
        assert_eq!(parse("127.0.0.1:9177").expect("loopback").to_string(), "http://127.0.0.1:9177/metrics");
        assert!(matches!(parse("[::1]:0"), Ok(Listen::Tcp(_))));
        assert_eq!(parse("unix:/run/x").expect("a socket"), Listen::Unix("/run/x".into()));
        for refused in ["0.0.0.0:9177", "[::]:9177", "192.0.2.1:9177", "[::ffff:192.0.2.1]:1", "9177", "localhost", "unix:", ""] {
            assert!(parse(refused).is_err(), "{refused}");
        }
    }

    #[test]
    fn a_request_is_understood_whole_and_no_sooner() {
        let request = b"GET /metrics?x=1 HTTP/1.1\r\nHost: localhost:9177\r\nAccept: */*\r\n\r\n";
        for cut in 0..request.len() {
            assert_eq!(understand(&request[..cut], true), None);
        }
        assert_eq!(understand(request, true), Some(Ok(Wanted { head_only: false, accept: "*/*".into() })));
        let head = understand(b"HEAD /metrics HTTP/1.0\r\n\r\n", true);
        assert_eq!(head, Some(Ok(Wanted { head_only: true, accept: String::new() })));
    }

    #[test]
    fn what_is_no_scrape_is_refused_by_its_name() {
        let refused = |text: &str| understand(text.as_bytes(), true).expect("whole").expect_err("refused");
        assert_eq!(refused("GET /etc/passwd HTTP/1.1\r\nHost: [::1]:1\r\n\r\n"), Refusal::NotFound);
        assert_eq!(refused("POST /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"), Refusal::NotAllowed);
        assert_eq!(refused("GET /metrics HTTP/1.1\r\nHost: evil.example\r\n\r\n"), Refusal::ForeignHost);
        assert_eq!(refused("GET /metrics HTTP/1.1\r\nHost: 127.0.0.1.evil.example\r\n\r\n"), Refusal::ForeignHost);
        assert_eq!(refused("GET /metrics HTTP/1.1\r\n\r\n"), Refusal::Malformed);
        assert_eq!(refused("GET /metrics HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n"), Refusal::Malformed);
        assert_eq!(refused("\x16\x03\x01\x02 hello"), Refusal::Malformed);
        let long = format!("GET /metrics HTTP/1.1\r\nX: {}", "x".repeat(HEAD_LIMIT));
        assert_eq!(understand(&long.as_bytes()[..HEAD_LIMIT], true), Some(Err(Refusal::TooLong)));
        let many = format!("GET /metrics HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(MOST_FIELDS + 1));
        assert_eq!(refused(&many), Refusal::TooLong);
    }
}
