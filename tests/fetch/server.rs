//! An HTTP/1.1 server that behaves as badly as a test asks.

use std::io::{BufRead, BufReader, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What a client asked for.
#[derive(Debug, Clone, Default)]
pub struct Asked {
    /// The path of the URL.
    pub path: String,
    /// The first byte of its range.
    pub range: Option<u64>,
    /// Its `If-Range`.
    pub if_range: Option<String>,
    /// How many requests came before it.
    pub number: usize,
}

/// Where an answer goes: a connection, plain or not.
pub trait Wire: Write + Send {}
impl<T: Write + Send> Wire for T {}

type Handler = dyn Fn(&Asked, &mut dyn Wire) + Send + Sync;

/// A server on the loopback, until dropped.
pub struct Server {
    addr: SocketAddr,
    log: Arc<Mutex<Vec<Asked>>>,
    stop: Arc<AtomicBool>,
    scheme: &'static str,
}

impl Server {
    /// Answers each request, on a connection of its own, as `handler` does.
    pub fn start(handler: impl Fn(&Asked, &mut dyn Wire) + Send + Sync + 'static) -> Self {
        Self::run("http", Arc::new(handler), None)
    }

    /// Over TLS.
    pub fn start_tls(config: rustls::ServerConfig, handler: impl Fn(&Asked, &mut dyn Wire) + Send + Sync + 'static) -> Self {
        Self::run("https", Arc::new(handler), Some(Arc::new(config)))
    }

    fn run(scheme: &'static str, handler: Arc<Handler>, tls: Option<Arc<rustls::ServerConfig>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("the loopback has a free port");
        let addr = listener.local_addr().expect("bound");
        let (log, stop) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let (thread_log, thread_stop) = (log.clone(), stop.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if thread_stop.load(Ordering::SeqCst) {
                    break;
                }
                let (handler, log, tls) = (handler.clone(), thread_log.clone(), tls.clone());
                std::thread::spawn(move || match tls {
                    None => answer(stream.try_clone().expect("a second handle"), &stream, &*handler, &log),
                    Some(config) => {
                        let connection = rustls::ServerConnection::new(config).expect("the configuration is whole");
                        let mut stream = rustls::StreamOwned::new(connection, stream);
                        let Some(asked) = read_request(&mut BufReader::new(&mut stream), &log) else { return };
                        handler(&asked, &mut stream);
                        stream.conn.send_close_notify();
                        let _ = stream.flush();
                    }
                });
            }
        });
        Self { addr, log, stop, scheme }
    }

    /// The URL of a path.
    pub fn url(&self, path: &str) -> String {
        format!("{}://127.0.0.1:{}{path}", self.scheme, self.addr.port())
    }

    /// What was asked so far.
    pub fn asked(&self) -> Vec<Asked> {
        self.log.lock().unwrap().clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.addr);
    }
}

fn answer(reader: TcpStream, mut stream: &TcpStream, handler: &Handler, log: &Mutex<Vec<Asked>>) {
    if let Some(asked) = read_request(&mut BufReader::new(reader), log) {
        handler(&asked, &mut stream);
    }
    let _ = stream.shutdown(Shutdown::Write);
    // Until the client has read it all: a close with bytes unread would take the answer with it.
    let _ = stream.set_read_timeout(Some(Duration::from_secs(5)));
    let _ = std::io::copy(&mut stream, &mut std::io::sink());
}

fn read_request(reader: &mut impl BufRead, log: &Mutex<Vec<Asked>>) -> Option<Asked> {
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let mut asked = Asked { path: line.split(' ').nth(1)?.to_owned(), ..Asked::default() };
    loop {
        line.clear();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim().split_once(": ") else { break };
        match name.to_ascii_lowercase().as_str() {
            "range" => asked.range = value.strip_prefix("bytes=")?.split('-').next()?.parse().ok(),
            "if-range" => asked.if_range = Some(value.to_owned()),
            _ => {}
        }
    }
    let mut log = log.lock().unwrap();
    asked.number = log.len();
    log.push(asked.clone());
    Some(asked)
}

/// A file as a good server has it.
#[derive(Clone)]
pub struct Content {
    pub bytes: Arc<Vec<u8>>,
    pub etag: &'static str,
}

impl Content {
    pub fn new(bytes: impl Into<Vec<u8>>) -> Self {
        Self { bytes: Arc::new(bytes.into()), etag: "\"v1\"" }
    }

    /// The head of the right answer, and the bytes that follow it.
    pub fn right_answer(&self, asked: &Asked) -> (String, &[u8]) {
        let same = asked.if_range.as_ref().is_none_or(|tag| tag == self.etag);
        let total = self.bytes.len();
        let etag = self.etag;
        match asked.range.filter(|_| same) {
            Some(start) if start as usize >= total => {
                ("HTTP/1.1 416 Range Not Satisfiable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".into(), &[])
            }
            Some(start) => {
                let rest = &self.bytes[start as usize..];
                let head = format!(
                    "HTTP/1.1 206 Partial Content\r\nETag: {etag}\r\nContent-Range: bytes {start}-{}/{total}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                    total - 1,
                    rest.len()
                );
                (head, rest)
            }
            None => {
                let head = format!(
                    "HTTP/1.1 200 OK\r\nETag: {etag}\r\nAccept-Ranges: bytes\r\nContent-Length: {total}\r\nConnection: close\r\n\r\n"
                );
                (head, &self.bytes)
            }
        }
    }

    /// Answers rightly.
    pub fn serve(&self, asked: &Asked, wire: &mut dyn Wire) {
        self.serve_part(asked, wire, usize::MAX);
    }

    /// Answers rightly, and cuts the connection after so many bytes.
    pub fn serve_part(&self, asked: &Asked, wire: &mut dyn Wire, most: usize) {
        let (head, body) = self.right_answer(asked);
        let _ = wire.write_all(head.as_bytes()).and_then(|()| wire.write_all(&body[..body.len().min(most)]));
        let _ = wire.flush();
    }
}

/// An answer without a body.
pub fn status(wire: &mut dyn Wire, line: &str, headers: &str) {
    let _ = write!(wire, "HTTP/1.1 {line}\r\n{headers}Content-Length: 0\r\nConnection: close\r\n\r\n");
}
