//! The protocol between commands and a supervisor over `control.sock`.
//!
//! A connection is a stream of frames, both ways: four bytes of length (little-endian, of what follows the kind), one
//! byte of kind, the payload. Kind `J` is a JSON document, kind `C` bytes of the console. The first frame of a client
//! is a [`Request`] with the protocol's version; the supervisor answers with [`Reply`]s. See docs/control-protocol.md.
//!
//! **Hostile peer**: a frame longer than [`MAX_FRAME`] ends the connection before it is stored.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::error::{GuestError, Result};
use super::events::Event;
use super::state::RunState;
use crate::machine::spec::ForwardSpec;
use crate::poll::Poll;

/// The version of the protocol.
pub const PROTOCOL_VERSION: u32 = 1;
/// The longest payload of a frame, in bytes.
pub const MAX_FRAME: usize = 256 * 1024;
/// Length of the header before a payload.
const HEADER: usize = 5;

/// A request of a client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case")]
pub enum Request {
    /// Asks for the supervisor's state. The answer is [`Reply::Status`].
    Status,
    /// Stops the guest: power button, and power-off after the time-out. The answer is [`Reply::Stopped`] at the end.
    Stop {
        /// Time-out instead of the guest file's `stop_timeout`; 0 powers off at once.
        timeout_ms: Option<u64>,
    },
    /// Stops as [`Request::Stop`] does and boots again. The answer is [`Reply::Running`] or [`Reply::Error`].
    Restart {
        /// As above.
        timeout_ms: Option<u64>,
    },
    /// Resets the machine at once and boots again. The answer is as for [`Request::Restart`].
    Reset,
    /// Powers the machine off at once.
    Poweroff,
    /// Saves the guest and stops it. The answer is [`Reply::Stopped`], or [`Reply::Error`] if the guest continues.
    Suspend,
    /// Kills the engine. The restart policy is not applied.
    Kill,
    /// Raises a non-maskable interrupt. The answer is [`Reply::Done`].
    Nmi,
    /// Asks the engine for its counters. The answer is [`Reply::Stats`].
    Stats,
    /// Asks for every event from now on, one [`Reply::Event`] each.
    Events,
    /// Waits until the guest is ready. The answer is [`Reply::Ready`], or [`Reply::Error`] when it will not be ready.
    WaitReady {
        /// Time-out instead of the guest file's `ready.timeout`.
        timeout_ms: Option<u64>,
        /// For the login prompt of the console, whatever the guest's probes are.
        #[serde(default)]
        login: bool,
        /// For the guest's agent, whatever the guest's probes are.
        #[serde(default)]
        agent: bool,
    },
    /// Runs a command in the guest by its agent. The answers are [`Reply::Output`], any number of them, and then
    /// [`Reply::Executed`].
    Execute {
        /// Program and arguments.
        command: Vec<String>,
        /// Its standard input, in base64.
        input: Option<String>,
    },
    /// Adds a forward to a user-mode network of the running guest. The answer is [`Reply::Done`].
    AddForward {
        /// Name of the interface.
        nic: String,
        /// The forward.
        forward: ForwardSpec,
    },
    /// Removes a forward of the running guest, and closes the connections through it. The answer is [`Reply::Done`].
    RemoveForward {
        /// Name of the interface.
        nic: String,
        /// The forward.
        forward: ForwardSpec,
    },
    /// Opens the console. The answer is [`Reply::Console`]. `C` frames follow, and the writer may send some.
    Console {
        /// Whether the client wants to type.
        write: bool,
        /// Whether to take the keyboard from the present writer.
        take: bool,
        /// Maximum number of bytes of scroll-back that are sent first.
        replay_bytes: u64,
    },
}

impl Request {
    /// Returns whether it asks for the guest's end. Then it is done when the guest has ended.
    pub fn ends_the_guest(&self) -> bool {
        matches!(self, Request::Stop { .. } | Request::Poweroff | Request::Suspend | Request::Kill)
    }
}

/// The first frame of a client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Always [`PROTOCOL_VERSION`].
    pub version: u32,
    /// The request.
    #[serde(flatten)]
    pub request: Request,
}

/// An answer of a supervisor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "kebab-case")]
pub enum Reply {
    /// The request was carried out.
    Done,
    /// The request failed.
    Error {
        /// Lower-case, no final stop.
        message: String,
        /// The next step.
        hint: Option<String>,
    },
    /// The answer to [`Request::Status`].
    Status(Box<RunState>),
    /// The guest has stopped.
    Stopped {
        /// The way in which it stopped.
        how: StopWay,
        /// The exit in words, for [`StopWay::Otherwise`].
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    /// The guest runs again.
    Running,
    /// All probes have passed.
    Ready,
    /// The answer to [`Request::Stats`].
    Stats {
        /// Counters by name.
        counters: BTreeMap<String, u64>,
    },
    /// A part of what a command in the guest wrote.
    Output {
        /// Whether it is of its standard error.
        error: bool,
        /// The bytes.
        base64: String,
    },
    /// A command in the guest has ended.
    Executed {
        /// Its exit code, unless a signal ended it.
        code: Option<i64>,
        /// The signal that ended it.
        signal: Option<i64>,
        /// Whether some of its output is missing, since there was too much of it.
        truncated: bool,
    },
    /// An event happened.
    Event(Event),
    /// The console is open.
    Console {
        /// Whether input is passed on.
        writer: bool,
    },
    /// A notice for the user of the console.
    Notice {
        /// The text.
        message: String,
    },
}

/// The way in which a guest was stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StopWay {
    /// The guest powered itself off after the power button.
    PowerButton,
    /// It did not power itself off in time, and was powered off.
    TimedOut,
    /// It was powered off at once, as requested.
    PoweredOff,
    /// Its engine was killed.
    Killed,
    /// It did not run: a restart was pending, or a start was under way.
    NotRunning,
    /// It was saved.
    Suspended,
    /// It had not enabled ACPI, so it could not notice the power button, and was powered off.
    NoAcpi,
    /// It ended in another way meanwhile, such as a crash.
    Otherwise,
}

impl StopWay {
    /// Returns words that complete "stopped: ".
    pub fn words(self) -> &'static str {
        match self {
            StopWay::PowerButton => "the guest shut itself down",
            StopWay::TimedOut => "the guest did not shut down in time and was powered off",
            StopWay::PoweredOff => "powered off",
            StopWay::Suspended => "suspended; `vmctl start` goes on from there",
            StopWay::Killed => "the engine was killed",
            StopWay::NotRunning => "it was not running yet",
            StopWay::NoAcpi => "it was powered off without a shutdown, for it had not turned on ACPI and heard no power button",
            StopWay::Otherwise => "it ended by itself, and not by a shutdown",
        }
    }
}

impl Reply {
    /// Returns words that complete "stopped: " for [`Reply::Stopped`].
    pub fn stopped_words(how: StopWay, reason: Option<&str>) -> &str {
        reason.unwrap_or(how.words())
    }
}

/// Contents of a frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// Kind `J`.
    Json(Vec<u8>),
    /// Kind `C`.
    Console(Vec<u8>),
}

impl Frame {
    /// Returns the bytes for the wire.
    pub fn encode(&self) -> Vec<u8> {
        let (kind, payload) = match self {
            Frame::Json(payload) => (b'J', payload),
            Frame::Console(payload) => (b'C', payload),
        };
        let mut bytes = Vec::with_capacity(HEADER + payload.len());
        bytes.extend_from_slice(&(payload.len() as u32).to_le_bytes());
        bytes.push(kind);
        bytes.extend_from_slice(payload);
        bytes
    }

    /// Creates a frame with a document.
    pub fn json(value: &impl Serialize) -> Frame {
        Frame::Json(serde_json::to_vec(value).expect("plain fields"))
    }
}

/// Splits a stream of bytes into frames.
#[derive(Debug, Default)]
pub struct FrameReader {
    bytes: Vec<u8>,
}

impl FrameReader {
    /// Adds bytes that have arrived.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Returns the next complete frame. It is an error if the peer uses another protocol.
    pub fn next_frame(&mut self) -> std::result::Result<Option<Frame>, &'static str> {
        let Some(header) = self.bytes.first_chunk::<HEADER>() else { return Ok(None) };
        let length = u32::from_le_bytes([header[0], header[1], header[2], header[3]]) as usize;
        let kind = header[4];
        if length > MAX_FRAME {
            return Err("a frame is too long");
        }
        if self.bytes.len() < HEADER + length {
            return Ok(None);
        }
        let rest = self.bytes.split_off(HEADER + length);
        let payload = std::mem::replace(&mut self.bytes, rest).split_off(HEADER);
        match kind {
            b'J' => Ok(Some(Frame::Json(payload))),
            b'C' => Ok(Some(Frame::Console(payload))),
            _ => Err("a frame is of no known kind"),
        }
    }
}

/// A command's connection to a supervisor.
pub struct ControlClient {
    stream: UnixStream,
    reader: FrameReader,
}

/// Time-out for a connection, after which the supervisor counts as stuck.
pub const CONNECT_PATIENCE: Duration = Duration::from_secs(10);

impl ControlClient {
    /// Connects and sends a request. Returns `None` if nothing listens at `socket`.
    pub fn ask(socket: &Path, request: Request) -> Result<Option<ControlClient>> {
        let stream = match connect(socket, CONNECT_PATIENCE) {
            Ok(stream) => stream,
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => return Ok(None),
            Err(error) => return Err(GuestError::io("connect to", socket, error)),
        };
        let _ = stream.set_write_timeout(Some(CONNECT_PATIENCE));
        let client = ControlClient { stream, reader: FrameReader::default() };
        let hello = Frame::json(&Hello { version: PROTOCOL_VERSION, request }).encode();
        match (&client.stream).write_all(&hello) {
            // The supervisor was ending, and did not take this connection any more.
            Err(error) if matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) => Ok(None),
            Err(error) => Err(lost(error)),
            Ok(()) => Ok(Some(client)),
        }
    }

    /// Creates a client on an existing connection, without a request.
    pub fn over(stream: UnixStream) -> ControlClient {
        ControlClient { stream, reader: FrameReader::default() }
    }

    /// Returns the stream, to poll.
    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Sends one frame.
    pub fn send(&mut self, frame: &Frame) -> Result<()> {
        self.stream.write_all(&frame.encode()).map_err(lost)
    }

    /// Waits for the next frame. Returns `None` when the supervisor has closed the connection.
    pub fn receive(&mut self) -> Result<Option<Frame>> {
        loop {
            if let Some(frame) = self.take_frame()? {
                return Ok(Some(frame));
            }
            if self.fill()? == 0 {
                return Ok(None);
            }
        }
    }

    /// Returns a frame that has arrived already.
    pub fn take_frame(&mut self) -> Result<Option<Frame>> {
        self.reader.next_frame().map_err(|what| GuestError::host(format!("the supervisor's answer is malformed: {what}")))
    }

    /// Reads the available bytes and returns their number; 0 at the end of the connection.
    pub fn fill(&mut self) -> Result<usize> {
        let mut buffer = [0u8; 16 * 1024];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(count) => {
                    self.reader.push(&buffer[..count]);
                    return Ok(count);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(0),
                Err(error) => return Err(lost(error)),
            }
        }
    }

    /// Reads as [`ControlClient::fill`] does, on a stream that does not block. Returns `None` if there is nothing yet.
    pub fn fill_some(&mut self) -> Result<Option<usize>> {
        let mut buffer = [0u8; 16 * 1024];
        match self.stream.read(&mut buffer) {
            Ok(count) => {
                self.reader.push(&buffer[..count]);
                Ok(Some(count))
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock) => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(Some(0)),
            Err(error) => Err(lost(error)),
        }
    }

    /// Returns the next reply, if one comes within `limit`. The inner `None` is the end of the connection.
    pub fn reply_within(&mut self, limit: Duration) -> Result<Option<Option<Reply>>> {
        use std::os::fd::AsFd;
        let until = std::time::Instant::now() + limit;
        loop {
            match self.take_frame()? {
                Some(Frame::Json(text)) => return Ok(Some(Some(parse_reply(&text)?))),
                Some(Frame::Console(_)) => continue,
                None => {}
            }
            let late = std::time::Instant::now() >= until;
            let mut poll = Poll::new();
            poll.add_reader((), self.stream.as_fd());
            match poll.wait(Some(until)).map_err(lost)?.is_empty() {
                true if late => return Ok(None),
                true => {}
                false if self.fill()? == 0 => return Ok(Some(None)),
                false => {}
            }
        }
    }

    /// Returns the next reply, and skips console bytes. Returns `None` at the end of the connection.
    pub fn reply(&mut self) -> Result<Option<Reply>> {
        while let Some(frame) = self.receive()? {
            if let Frame::Json(text) = frame {
                return Ok(Some(parse_reply(&text)?));
            }
        }
        Ok(None)
    }
}

/// Parses a reply.
pub fn parse_reply(text: &[u8]) -> Result<Reply> {
    serde_json::from_slice(text).map_err(|error| {
        GuestError::host(format!("the supervisor's answer is not understood: {error}"))
            .hint("it may be of another version: restart the guest")
    })
}

fn lost(error: io::Error) -> GuestError {
    GuestError::host(format!("the connection to the supervisor is lost: {error}"))
}

/// Connects. While the listener's queue is full, as for a stopped supervisor, a blocking connect would wait without end
/// (unix(7)). So this one does not block and is tried again for at most `patience`.
pub fn connect(socket: &Path, patience: Duration) -> io::Result<UnixStream> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr};
    use std::os::fd::AsRawFd;
    let address = UnixAddr::new(socket)?;
    let started = std::time::Instant::now();
    loop {
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let fd = nix::sys::socket::socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
        match nix::sys::socket::connect(fd.as_raw_fd(), &address) {
            Ok(()) => {
                let stream = UnixStream::from(fd);
                stream.set_nonblocking(false)?;
                return Ok(stream);
            }
            Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EINTR) if started.elapsed() < patience => {
                std::thread::sleep(Duration::from_millis(10));
            }
            Err(errno) => return Err(errno.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_out_as_they_went_in_however_they_are_cut() {
        let frames = [Frame::json(&Reply::Done), Frame::Console(b"login: ".to_vec()), Frame::Console(Vec::new())];
        let bytes: Vec<u8> = frames.iter().flat_map(Frame::encode).collect();
        for cut in 1..bytes.len() {
            let mut reader = FrameReader::default();
            let mut seen = Vec::new();
            for part in bytes.chunks(cut) {
                reader.push(part);
                while let Some(frame) = reader.next_frame().expect("well-formed") {
                    seen.push(frame);
                }
            }
            assert_eq!(seen, frames);
        }
    }

    #[test]
    fn a_frame_that_is_too_long_or_of_no_kind_is_refused_before_it_is_stored() {
        let mut reader = FrameReader::default();
        reader.push(&[0xff, 0xff, 0xff, 0xff, b'J']);
        assert!(reader.next_frame().is_err());
        let mut reader = FrameReader::default();
        reader.push(&[0, 0, 0, 0, b'?']);
        assert!(reader.next_frame().is_err());
    }

    #[test]
    fn the_documents_are_the_documented_ones() {
        let hello = Hello { version: 1, request: Request::Console { write: true, take: false, replay_bytes: 10 } };
        let text = serde_json::to_string(&hello).expect("plain fields");
        assert_eq!(text, r#"{"version":1,"request":"console","write":true,"take":false,"replay_bytes":10}"#);
        assert_eq!(serde_json::from_str::<Hello>(&text).expect("parses"), hello);
        let stopped = serde_json::to_string(&Reply::Stopped { how: StopWay::TimedOut, reason: None }).expect("plain fields");
        assert_eq!(stopped, r#"{"reply":"stopped","how":"timed-out"}"#);
    }
}
