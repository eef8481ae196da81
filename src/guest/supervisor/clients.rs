//! The connections to a supervisor's control socket.
//!
//! **Hostile peer**: the output queue of a client is bounded. A client that reads too slowly loses console bytes and is
//! told how many, and never blocks the guest. The number of clients is bounded.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use crate::config::ForwardProto;
use crate::guest::control::{Frame, FrameReader, Reply};
use crate::host::process::peer_of;

/// Maximum number of connections at a time.
pub const MOST_CLIENTS: usize = 64;
/// Number of them that are reserved for root and for the user who runs the supervisor: a guest's owner cannot take them
/// all.
pub const KEPT_CLIENTS: usize = 8;
/// Time-out for a client to send its request, and to read its answer.
const GREETING_PATIENCE: Duration = Duration::from_secs(5);
/// Maximum number of bytes that wait for one client before console output is skipped.
const OUTBOX_LIMIT: usize = 1 << 20;
/// Maximum size of console output in one frame.
const CONSOLE_PIECE: usize = 32 * 1024;

/// Purpose of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// It has not sent a request yet.
    Unknown,
    /// It watches the console, and types if it is the writer.
    Console {
        /// Whether its input is passed on.
        writer: bool,
    },
    /// It wants the events.
    Events,
    /// It waits for the guest to stop.
    Stop,
    /// It waits for the guest to run again.
    Running,
    /// It waits for the guest to be ready, until this time.
    Ready(Instant),
    /// It waits for the console to ask for a login, until then.
    Login(Instant),
    /// It waits for the guest's agent to answer, until then.
    Agent(Instant),
    /// It waits for the end of the command of this number in the guest.
    Execute(u64),
    /// It waits for the engine's counters.
    Stats,
    /// It waits for a forward to be added, or removed, at this address of the host.
    Forward {
        /// Whether it is to be added.
        added: bool,
        /// The protocol.
        protocol: ForwardProto,
        /// The address.
        host: SocketAddr,
    },
    /// It has its answer. The connection ends when it is sent.
    Answered,
}

/// One connection.
pub struct Client {
    stream: UnixStream,
    reader: FrameReader,
    outbox: VecDeque<Vec<u8>>,
    /// Number of bytes of the first piece that are sent.
    sent: usize,
    waiting: usize,
    skipped: u64,
    /// Whether it belongs to root, or to the user who runs the supervisor.
    privileged: bool,
    /// Time by which it must have sent its request, or have read its answer.
    until: Instant,
    /// Its purpose.
    pub purpose: Purpose,
    /// The reason, if the connection is broken or done.
    pub gone: Option<&'static str>,
}

impl Client {
    /// Creates a new connection.
    pub fn new(stream: UnixStream) -> io::Result<Client> {
        stream.set_nonblocking(true)?;
        let ours = nix::unistd::geteuid().as_raw();
        let privileged = peer_of(&stream).is_some_and(|peer| peer.uid == 0 || peer.uid == ours);
        Ok(Client {
            stream,
            reader: FrameReader::default(),
            outbox: VecDeque::new(),
            sent: 0,
            waiting: 0,
            skipped: 0,
            privileged,
            until: Instant::now() + GREETING_PATIENCE,
            purpose: Purpose::Unknown,
            gone: None,
        })
    }

    /// Returns the stream, to poll.
    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }
    /// Returns whether output waits to be sent.
    pub fn has_output(&self) -> bool {
        !self.outbox.is_empty()
    }
    /// Returns the time by which something must happen, or `None` for a client that may wait.
    pub fn deadline(&self) -> Option<Instant> {
        matches!(self.purpose, Purpose::Unknown | Purpose::Answered).then_some(self.until)
    }
    /// Drops it when it has sent nothing, or read nothing, for too long.
    pub fn press_on(&mut self, now: Instant) {
        if self.gone.is_none() && self.deadline().is_some_and(|until| now >= until) {
            self.gone = Some("the client is silent");
        }
    }
    /// Returns whether it watches the console.
    pub fn watches(&self) -> bool {
        matches!(self.purpose, Purpose::Console { .. })
    }

    /// Reads the available bytes and splits them into frames.
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

    /// Sends a document. If it does not fit the connection ends, since its reader has stopped reading long ago.
    pub fn reply(&mut self, reply: &Reply) {
        if self.waiting > 2 * OUTBOX_LIMIT {
            self.gone = Some("the client does not read");
            return;
        }
        self.push(Frame::json(reply).encode());
    }

    /// Sends a piece of a command's output, which is bounded as a whole by what an agent may answer.
    pub fn output(&mut self, reply: &Reply) {
        self.push(Frame::json(reply).encode());
    }

    /// Sends a document and ends the connection after it.
    pub fn answer(&mut self, reply: &Reply) {
        match self.purpose {
            Purpose::Execute(_) => self.output(reply),
            _ => self.reply(reply),
        }
        self.purpose = Purpose::Answered;
        self.until = Instant::now() + GREETING_PATIENCE;
    }

    /// Sends the guest's output, or counts the bytes for which there is no room.
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

    /// Sends as much as the stream takes.
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

/// Whether there is room for one more client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Room {
    /// There is room.
    Free,
    /// There is room if this one is dropped.
    Instead(usize),
    /// There is none.
    None,
}

/// Returns the room for a new client among the present ones, the oldest first. Silent clients make room. All clients
/// make room for root and for the user who runs the supervisor.
pub fn room(clients: &[Client], newcomer: &Client) -> Room {
    let live = || clients.iter().enumerate().filter(|(_, client)| client.gone.is_none());
    let others = live().filter(|(_, client)| !client.privileged).count();
    let free = live().count() < MOST_CLIENTS && (newcomer.privileged || others < MOST_CLIENTS - KEPT_CLIENTS);
    if free {
        return Room::Free;
    }
    let silent = |client: &Client| client.purpose == Purpose::Unknown;
    let oldest = |fits: &dyn Fn(&Client) -> bool| live().find(|(_, client)| fits(client)).map(|(at, _)| at);
    let leaves = oldest(&|client| !client.privileged && silent(client));
    let leaves = match newcomer.privileged {
        true => leaves.or_else(|| oldest(&|client| !client.privileged)).or_else(|| oldest(&silent)),
        false => leaves,
    };
    leaves.map_or(Room::None, Room::Instead)
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

    /// Clients of the guest's owner, with the other ends of their connections.
    fn owners(count: usize, purpose: Purpose) -> (Vec<Client>, Vec<UnixStream>) {
        let client = |_| {
            let (client, theirs) = pair();
            (Client { privileged: false, purpose, ..client }, theirs)
        };
        (0..count).map(client).unzip()
    }

    #[test]
    fn the_oldest_silent_client_makes_room_and_root_has_a_place_whatever_the_owner_does() {
        let (root, _theirs) = pair();
        let owner = Client { privileged: false, ..pair().0 };
        let (mut clients, _ends) = owners(MOST_CLIENTS - KEPT_CLIENTS, Purpose::Events);
        assert_eq!(room(&clients, &owner), Room::None);
        assert_eq!(room(&clients, &root), Room::Free);
        clients[3].purpose = Purpose::Unknown;
        assert_eq!(room(&clients, &owner), Room::Instead(3));
        clients[3].gone = Some("made room");
        assert_eq!(room(&clients, &owner), Room::Free);
        let (mut more, _more_ends) = owners(KEPT_CLIENTS + 1, Purpose::Events);
        clients.append(&mut more);
        assert_eq!(room(&clients, &root), Room::Instead(0), "those who wait make room for root, too");
        assert_eq!(room(&clients, &owner), Room::None);
        clients[5].purpose = Purpose::Unknown;
        assert_eq!(room(&clients, &root), Room::Instead(5), "but silent ones first");
    }

    #[test]
    fn who_says_nothing_or_reads_no_answer_is_let_go_and_who_waits_is_not() {
        let late = || Instant::now() + GREETING_PATIENCE + Duration::from_millis(1);
        for (purpose, goes) in [(Purpose::Unknown, true), (Purpose::Answered, true), (Purpose::Stop, false)] {
            let (mut client, _theirs) = pair();
            client.purpose = purpose;
            client.press_on(Instant::now());
            assert_eq!(client.gone, None);
            client.press_on(late());
            assert_eq!(client.gone.is_some(), goes, "{purpose:?}");
        }
        // A greeting in pieces counts only once it is complete.
        let (mut client, mut theirs) = pair();
        theirs.write_all(&[9, 0]).expect("writes");
        assert!(client.receive().is_empty());
        client.press_on(late());
        assert!(client.gone.is_some());
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
