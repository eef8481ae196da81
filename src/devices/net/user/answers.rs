//! A server of files for the guest over HTTP/1.1 (RFC 9112), at an unused address of the network. An installer reads
//! its answer file from it. It gives access to the given files and to nothing else of the host.
//!
//! Each connection carries one request: `GET` or `HEAD` of a file by its name. The answer always has `Connection:
//! close`.
//!
//! **Not modelled**: ranges, conditions, percent-encoding (no name needs it).
//!
//! **Hostile guest**: a request has at most [`MAX_REQUEST`] bytes, bytes after it are dropped, and the files are shared
//! by all connections, whose number [`super::tcp`] bounds.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::sync::Arc;

/// The longest request that is read.
pub const MAX_REQUEST: usize = 8 * 1024;
/// Maximum number of headers. A request with more is refused.
const MAX_HEADERS: usize = 64;

/// The files to serve: bytes by path, `/preseed.cfg`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Files(BTreeMap<String, Arc<[u8]>>);

impl Files {
    /// Creates the set of files from `(path, bytes)`.
    pub fn new(files: impl IntoIterator<Item = (String, Vec<u8>)>) -> Files {
        Files(files.into_iter().map(|(path, bytes)| (path, bytes.into())).collect())
    }

    fn find(&self, target: &str) -> Option<Arc<[u8]>> {
        let path = target.split(['?', '#']).next().unwrap_or(target);
        // A request to a proxy has the whole URL, and is answered like a path.
        let path = path.strip_prefix("http://").map_or(path, |rest| rest.find('/').map_or("/", |at| &rest[at..]));
        self.0.get(path).cloned()
    }
}

/// One connection: what the guest sends is written to it, what the guest gets is read from it.
pub struct Exchange {
    files: Arc<Files>,
    request: Vec<u8>,
    answer: Option<Answer>,
}

struct Answer {
    head: Vec<u8>,
    body: Arc<[u8]>,
    sent: usize,
}

impl Exchange {
    /// Creates a connection without a request.
    pub fn new(files: Arc<Files>) -> Exchange {
        Exchange { files, request: Vec::new(), answer: None }
    }

    /// Notes that the guest will send no more.
    pub fn end(&mut self) {
        if self.answer.is_none() {
            self.refuse("400 Bad Request", "");
        }
    }

    fn refuse(&mut self, status: &str, header: &str) {
        let body = format!("{status}\n").into_bytes();
        self.reply(status, header, body.len(), body.into());
    }

    fn reply(&mut self, status: &str, header: &str, length: usize, body: Arc<[u8]>) {
        self.request = Vec::new();
        let head = format!(
            "HTTP/1.1 {status}\r\nServer: vmctl\r\n{header}Content-Type: text/plain\r\nContent-Length: {length}\r\n\
             Connection: close\r\n\r\n"
        );
        self.answer = Some(Answer { head: head.into_bytes(), body, sent: 0 });
    }

    /// Answers once the request is complete or can never be.
    fn look(&mut self) {
        let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let mut request = httparse::Request::new(&mut headers);
        let parsed = match request.parse(&self.request) {
            Ok(httparse::Status::Complete(_)) => Ok((request.method.unwrap_or(""), request.path.unwrap_or(""))),
            Ok(httparse::Status::Partial) if self.request.len() < MAX_REQUEST => return,
            Ok(httparse::Status::Partial) | Err(httparse::Error::TooManyHeaders) => Err("431 Request Header Fields Too Large"),
            Err(_) => Err("400 Bad Request"),
        };
        match parsed {
            Ok((method @ ("GET" | "HEAD"), target)) => match (self.files.find(target), method) {
                (Some(body), "GET") => self.reply("200 OK", "", body.len(), body),
                (Some(body), _) => self.reply("200 OK", "", body.len(), Arc::from([])),
                (None, _) => self.refuse("404 Not Found", ""),
            },
            Ok(_) => self.refuse("405 Method Not Allowed", "Allow: GET, HEAD\r\n"),
            Err(status) => self.refuse(status, ""),
        }
    }
}

impl io::Write for Exchange {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.answer.is_none() {
            let room = MAX_REQUEST - self.request.len();
            self.request.extend_from_slice(&bytes[..bytes.len().min(room)]);
            self.look();
        }
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl io::Read for Exchange {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(answer) = &mut self.answer else { return Err(ErrorKind::WouldBlock.into()) };
        let head = answer.head.get(answer.sent..).unwrap_or_default();
        let rest = if head.is_empty() { &answer.body[answer.sent - answer.head.len()..] } else { head };
        let count = rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&rest[..count]);
        answer.sent += count;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    fn files() -> Arc<Files> {
        Arc::new(Files::new([("/preseed.cfg".to_owned(), b"d-i a b c\n".to_vec()), ("/big".to_owned(), vec![7; 100_000])]))
    }

    fn ask(request: &[u8]) -> String {
        let mut exchange = Exchange::new(files());
        exchange.write_all(request).expect("takes anything");
        exchange.end();
        let mut answer = Vec::new();
        exchange.read_to_end(&mut answer).expect("answers");
        String::from_utf8_lossy(&answer).into_owned()
    }

    #[test]
    fn a_file_that_was_given_is_answered_with_its_bytes_and_no_other_is() {
        let answer = ask(b"GET /preseed.cfg HTTP/1.1\r\nHost: 10.0.2.4\r\n\r\n");
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert!(answer.contains("Content-Length: 10\r\n") && answer.ends_with("\r\n\r\nd-i a b c\n"), "{answer}");
        assert!(ask(b"GET /preseed.cfg?x=1 HTTP/1.0\r\n\r\n").ends_with("d-i a b c\n"));
        assert!(ask(b"GET http://10.0.2.4/preseed.cfg HTTP/1.1\r\n\r\n").ends_with("d-i a b c\n"));
        for path in ["/", "/etc/passwd", "/../preseed.cfg", "//preseed.cfg", "*", "/preseed.cfg/"] {
            let answer = ask(format!("GET {path} HTTP/1.1\r\n\r\n").as_bytes());
            assert!(answer.starts_with("HTTP/1.1 404 "), "{path}: {answer}");
        }
    }

    #[test]
    fn head_says_how_long_the_file_is_and_sends_none_of_it() {
        let answer = ask(b"HEAD /big HTTP/1.1\r\n\r\n");
        assert!(answer.contains("Content-Length: 100000\r\n") && answer.ends_with("\r\n\r\n"), "{answer}");
    }

    #[test]
    fn what_is_no_request_for_a_file_is_refused() {
        assert!(ask(b"POST /preseed.cfg HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc").starts_with("HTTP/1.1 405 "));
        assert!(ask(b"\0\0\0\0").starts_with("HTTP/1.1 400 "));
        assert!(ask(b"").starts_with("HTTP/1.1 400 "));
        assert!(ask(b"GET /preseed.cfg HTTP/1.1\r\nHost: x").starts_with("HTTP/1.1 400 "));
        let many = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(MAX_HEADERS + 1));
        assert!(ask(many.as_bytes()).starts_with("HTTP/1.1 431 "));
    }

    #[test]
    fn a_request_without_an_end_is_bounded() {
        let mut exchange = Exchange::new(files());
        exchange.write_all(b"GET / HTTP/1.1\r\na: ").expect("taken");
        for _ in 0..1000 {
            exchange.write_all(&[b'x'; 1000]).expect("taken");
            assert!(exchange.request.capacity() <= 2 * MAX_REQUEST);
        }
        let mut answer = String::new();
        exchange.read_to_string(&mut answer).expect("answers");
        assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
    }

    #[test]
    fn a_request_in_single_bytes_is_one_all_the_same() {
        let mut exchange = Exchange::new(files());
        for byte in b"GET /big HTTP/1.1\r\n\r\n" {
            assert_eq!(exchange.read(&mut [0; 8]).expect_err("too early").kind(), ErrorKind::WouldBlock);
            exchange.write_all(&[*byte]).expect("taken");
        }
        let mut answer = Vec::new();
        exchange.read_to_end(&mut answer).expect("answers");
        assert_eq!(answer.iter().filter(|byte| **byte == 7).count(), 100_000);
    }
}
