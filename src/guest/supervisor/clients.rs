//! The connections to a supervisor's control socket.
//!
//! **Hostile peer**: what waits for a client is bounded; one that reads too slowly loses console bytes and is told how
//! many, and never holds the guest up. The number of clients is bounded.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use crate::guest::control::{Frame, FrameReader, Reply};

/// The most connections at a time.
pub const MOST_CLIENTS: usize = 64;
/// The most bytes that wait for one client before console output is left out.
const OUTBOX_LIMIT: usize = 1 << 20;
/// The largest piece of console output in one frame.
const CONSOLE_PIECE: usize = 32 * 1024;

/// What a client is there for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// It has not asked yet.
    Unknown,
    /// It watches the console, and types if it is the writer.
    Console {
        /// Whether what it types is passed on.
        writer: bool,
    },
    /// It wants the events.
    Events,
    /// It waits for the guest to stop.
    Stop,
    /// It waits for the guest to run again.
    Running,
    /// It waits for the guest to be ready, until then.
    Ready(Instant),
    /// It waits for the engine's counters.
    Stats,
    /// It has its answer; the connection ends when it is sent.
    Answered,
}

/// One connection.
pub struct Client {
    stream: UnixStream,
    reader: FrameReader,
    outbox: VecDeque<Vec<u8>>,
    /// How much of the first piece is sent.
    sent: usize,
    waiting: usize,
    skipped: u64,
    /// What it is there for.
    pub purpose: Purpose,
    /// The connection is broken or done with.
    pub gone: Option<&'static str>,
}

impl Client {
    /// A new connection.
    pub fn new(stream: UnixStream) -> io::Result<Client> {
        stream.set_nonblocking(true)?;
        Ok(Client {
            stream,
            reader: FrameReader::default(),
            outbox: VecDeque::new(),
            sent: 0,
            waiting: 0,
            skipped: 0,
            purpose: Purpose::Unknown,
            gone: None,
        })
    }

    /// The stream, to poll.
    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }
    /// Whether something waits to be sent.
    pub fn has_output(&self) -> bool {
        !self.outbox.is_empty()
    }
    /// Whether it watches the console.
    pub fn watches(&self) -> bool {
        matches!(self.purpose, Purpose::Console { .. })
    }

    /// Reads what there is and cuts it into frames.
    pub fn receive(&mut self) -> Vec<Frame> {
        let mut buffer = [0u8; 16 * 1024];
        match self.stream.read(&mut buffer) {
            Ok(0) => self.gone = Some("the client left"),
            Ok(count) => self.reader.push(&buffer[..count]),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(_) => self.gone = Some("the connection broke"),
        }
        let mut frames = Vec::new();
        loop {
            match self.reader.next_frame() {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => return frames,
                Err(reason) => {
                    self.gone = Some(reason);
                    return frames;
                }
            }
        }
    }

    /// Sends a document. One that does not fit ends the connection: its reader has stopped reading long ago.
    pub fn reply(&mut self, reply: &Reply) {
        if self.waiting > 2 * OUTBOX_LIMIT {
            self.gone = Some("the client does not read");
            return;
        }
        self.push(Frame::json(reply).encode());
    }

    /// Sends a document and ends the connection after it.
    pub fn answer(&mut self, reply: &Reply) {
        self.reply(reply);
        self.purpose = Purpose::Answered;
    }

    /// Sends what the guest said, or counts what there is no room for.
    pub fn console(&mut self, bytes: &[u8]) {
        if self.skipped > 0 && self.waiting < OUTBOX_LIMIT / 2 {
            let message = format!("{} bytes were left out: this terminal was too slow", self.skipped);
            self.skipped = 0;
            self.push(Frame::json(&Reply::Notice { message }).encode());
        }
        if self.skipped > 0 || self.waiting + bytes.len() > OUTBOX_LIMIT {
            self.skipped += bytes.len() as u64;
            return;
        }
        for piece in bytes.chunks(CONSOLE_PIECE) {
            self.push(Frame::Console(piece.to_vec()).encode());
        }
    }

    fn push(&mut self, bytes: Vec<u8>) {
        self.waiting += bytes.len();
        self.outbox.push_back(bytes);
        self.flush();
    }

    /// Sends what the stream takes.
    pub fn flush(&mut self) {
        while let Some(first) = self.outbox.front() {
            match self.stream.write(&first[self.sent..]) {
                Ok(count) => {
                    self.sent += count;
                    self.waiting -= count;
                    if self.sent == first.len() {
                        self.outbox.pop_front();
                        self.sent = 0;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => {
                    self.gone = Some("the client left");
                    self.outbox.clear();
                    return;
                }
            }
        }
        if self.skipped > 0 {
            self.console(b"");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::control::parse_reply;

    fn pair() -> (Client, UnixStream) {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        (Client::new(ours).expect("a client"), theirs)
    }

    #[test]
    fn a_client_that_does_not_read_costs_a_bounded_amount_and_learns_what_it_missed() {
        let (mut client, mut theirs) = pair();
        client.purpose = Purpose::Console { writer: false };
        for _ in 0..10_000 {
            client.console(&[b'x'; 1000]);
        }
        assert!(client.waiting <= OUTBOX_LIMIT + 6 * 40, "{}", client.waiting);
        assert!(client.skipped > 0);
        assert_eq!(client.gone, None);
        theirs.set_nonblocking(true).expect("sets");
        let (mut reader, mut seen, mut notices) = (FrameReader::default(), 0u64, Vec::new());
        let mut buffer = vec![0; 1 << 16];
        for _ in 0..1000 {
            client.flush();
            while let Ok(count) = theirs.read(&mut buffer) {
                reader.push(&buffer[..count]);
            }
            while let Some(frame) = reader.next_frame().expect("well-formed") {
                match frame {
                    Frame::Console(bytes) => seen += bytes.len() as u64,
                    Frame::Json(text) => notices.push(parse_reply(&text).expect("a reply")),
                }
            }
        }
        let missed = 10_000_000 - seen;
        let message = format!("{missed} bytes were left out: this terminal was too slow");
        assert_eq!(notices, [Reply::Notice { message }]);
    }

    #[test]
    fn a_client_that_left_is_noticed() {
        let (mut client, theirs) = pair();
        drop(theirs);
        assert!(client.receive().is_empty());
        assert!(client.gone.is_some());
    }

    #[test]
    fn garbage_ends_the_connection() {
        let (mut client, mut theirs) = pair();
        theirs.write_all(b"GET / HTTP/1.1\r\n\r\n").expect("writes");
        assert!(client.receive().is_empty());
        assert!(client.gone.is_some());
    }
}
