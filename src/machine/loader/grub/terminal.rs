//! The serial console as the menu sees it: text out, keys in, and the machine's stop in between.

use std::time::{Duration, Instant};

use super::Halt;
use crate::devices::serial::CharBackend;
use crate::devices::stream::StreamConsole;
use crate::hypervisor::backend::MachineExit;
use crate::hypervisor::waking::Attention;

/// Maximum time between the bytes of one key.
const KEY_GAP: Duration = Duration::from_millis(50);
/// Interval at which a wait checks whether the machine must stop.
const LOOK: Duration = Duration::from_millis(50);
/// Time that output waits for a reader before it is dropped.
const OUTPUT_PATIENCE: Duration = Duration::from_secs(2);

/// The input and output of a terminal. A test has its own.
pub trait Port {
    /// Writes bytes, within a bounded time.
    fn write(&mut self, bytes: &[u8]);
    /// Returns the bytes that have arrived, or arrive within `wait`.
    fn read(&mut self, wait: Duration) -> Vec<u8>;
    /// Returns the reason to stop, if the machine must stop.
    fn stopped(&self) -> Option<MachineExit>;
    /// Returns the time since a fixed moment.
    fn now(&self) -> Duration;
}

/// The console stream of COM1, before the guest has it.
pub struct ConsolePort {
    console: StreamConsole,
    attention: std::sync::Arc<Attention>,
    start: Instant,
}

impl ConsolePort {
    /// Creates the port on `console`, until the machine of `attention` stops.
    pub fn new(console: StreamConsole, attention: std::sync::Arc<Attention>) -> ConsolePort {
        ConsolePort { console, attention, start: Instant::now() }
    }
}

impl Port for ConsolePort {
    fn write(&mut self, mut bytes: &[u8]) {
        let start = Instant::now();
        while !bytes.is_empty() && start.elapsed() < OUTPUT_PATIENCE {
            let count = self.console.write(bytes);
            bytes = &bytes[count..];
            if count == 0 {
                self.console.flush(LOOK);
            }
        }
    }

    fn read(&mut self, wait: Duration) -> Vec<u8> {
        self.console.wait_for_input(wait);
        let mut buffer = [0; 256];
        let count = self.console.read(&mut buffer);
        buffer[..count].to_vec()
    }

    fn stopped(&self) -> Option<MachineExit> {
        self.attention.stopped()
    }

    fn now(&self) -> Duration {
        self.start.elapsed()
    }
}

/// A key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Key {
    /// A printable character.
    Char(char),
    /// Return.
    Enter,
    /// Up.
    Up,
    /// Down.
    Down,
    /// Left.
    Left,
    /// Right.
    Right,
    /// Home.
    Home,
    /// End.
    End,
    /// Backspace.
    Backspace,
    /// Delete.
    Delete,
    /// Escape alone.
    Escape,
    /// Control and a letter, or F10, which has the same effect as control-x.
    Control(char),
}

/// A terminal: text out, keys in.
pub struct Terminal {
    port: Box<dyn Port>,
    pending: Vec<u8>,
}

impl Terminal {
    /// Creates a terminal on `port`.
    pub fn new(port: Box<dyn Port>) -> Terminal {
        Terminal { port, pending: Vec::new() }
    }

    /// Writes text. A line feed becomes a carriage return and a line feed.
    pub fn print(&mut self, text: &str) {
        self.port.write(text.replace('\n', "\r\n").as_bytes());
    }

    /// Returns the time since a fixed moment.
    pub fn now(&self) -> Duration {
        self.port.now()
    }

    /// Returns an error if the machine must stop.
    pub fn check(&self) -> Result<(), Halt> {
        self.port.stopped().map_or(Ok(()), |exit| Err(Halt::Stopped(exit)))
    }

    /// Waits for a key, at most `limit`.
    pub fn key(&mut self, limit: Option<Duration>) -> Result<Option<Key>, Halt> {
        let end = limit.map(|limit| self.now() + limit);
        loop {
            self.check()?;
            if let Some(key) = self.decode() {
                return Ok(Some(key));
            }
            let left = end.map_or(LOOK, |end| end.saturating_sub(self.now()).min(LOOK));
            if left.is_zero() && end.is_some() {
                return Ok(None);
            }
            let more = self.port.read(left);
            self.pending.extend(more);
        }
    }

    fn more(&mut self, bytes: usize) -> bool {
        if self.pending.len() < bytes {
            let more = self.port.read(KEY_GAP);
            self.pending.extend(more);
        }
        self.pending.len() >= bytes
    }

    fn decode(&mut self) -> Option<Key> {
        loop {
            let first = *self.pending.first()?;
            let (bytes, key) = match first {
                b'\r' | b'\n' => (1, Some(Key::Enter)),
                8 | 127 => (1, Some(Key::Backspace)),
                27 => self.escape(),
                1..27 => (1, Some(control(first))),
                32..127 => (1, Some(Key::Char(char::from(first)))),
                0x80.. => {
                    // The number of leading ones is the length of a UTF-8 character.
                    let len = first.leading_ones().clamp(1, 4) as usize;
                    self.more(len);
                    let len = len.min(self.pending.len());
                    let text = std::str::from_utf8(&self.pending[..len]).ok();
                    (len, text.and_then(|text| text.chars().next()).map(Key::Char))
                }
                _ => (1, None),
            };
            self.pending.drain(..bytes.min(self.pending.len()));
            if key.is_some() {
                return key;
            }
        }
    }

    /// Parses a sequence of ECMA-48 that terminals send for keys.
    fn escape(&mut self) -> (usize, Option<Key>) {
        // A key's sequence arrives at once, so a pause after the escape tells the Escape key from it.
        if !self.more(2) || !matches!(self.pending[1], b'[' | b'O') {
            return (1, Some(Key::Escape));
        }
        let mut len = 3;
        // A limit, for a sequence that never ends.
        while self.more(len) && !(0x40..=0x7e).contains(&self.pending[len - 1]) && len < 8 {
            len += 1;
        }
        let len = len.min(self.pending.len());
        let key = match &self.pending[2..len] {
            b"A" => Some(Key::Up),
            b"B" => Some(Key::Down),
            b"C" => Some(Key::Right),
            b"D" => Some(Key::Left),
            b"H" | b"1~" => Some(Key::Home),
            b"F" | b"4~" => Some(Key::End),
            b"3~" => Some(Key::Delete),
            b"21~" => Some(Key::Control('x')),
            _ => None,
        };
        (len, key)
    }
}

/// Returns the key for a control character. GRUB's menu and editor share these with Emacs.
fn control(byte: u8) -> Key {
    match char::from(byte + 0x60) {
        'a' => Key::Home,
        'b' => Key::Left,
        'd' => Key::Delete,
        'e' => Key::End,
        'f' => Key::Right,
        'n' => Key::Down,
        'p' => Key::Up,
        letter => Key::Control(letter),
    }
}
