//! The console of a running guest: its output is logged and kept for later clients, and the writer's input waits here
//! until the guest takes it.
//!
//! **Hostile guest**: the scroll-back, the input queue and the log are bounded; a log that cannot be written is lost
//! and reported once.

use std::collections::VecDeque;

use crate::config::LOGIN_PROMPT;
use crate::guest::logs::RotatingLog;

/// Number of bytes of waiting input from which on no more is read from the writer.
pub const INPUT_LIMIT: usize = 64 * 1024;

/// State of the console.
pub struct Console {
    log: RotatingLog,
    log_failing: bool,
    scrollback: VecDeque<u8>,
    limit: usize,
    input: VecDeque<u8>,
    watch: Vec<Watch>,
    login: Watch,
}

/// A text that is waited for.
struct Watch {
    text: Vec<u8>,
    tail: Vec<u8>,
    seen: bool,
}

impl Console {
    /// Creates the console with its log and at most `scrollback` bytes kept.
    pub fn new(log: RotatingLog, scrollback: usize) -> Console {
        Console {
            log,
            log_failing: false,
            scrollback: VecDeque::new(),
            limit: scrollback,
            input: VecDeque::new(),
            watch: Vec::new(),
            login: Watch::of(LOGIN_PROMPT.into()),
        }
    }

    /// Changes the bounds, as after an edit.
    pub fn set_bounds(&mut self, log_size: u64, log_files: u32, scrollback: usize) {
        self.log.set_bounds(log_size, log_files);
        self.limit = scrollback;
        self.trim();
    }

    /// Handles output of the guest. Returns why the log is lost, the first time that it is.
    pub fn output(&mut self, bytes: &[u8]) -> Option<String> {
        self.scrollback.extend(&bytes[bytes.len().saturating_sub(self.limit)..]);
        self.trim();
        for watch in self.watch.iter_mut().chain([&mut self.login]) {
            watch.look(bytes);
        }
        match self.log.append(bytes) {
            Ok(()) => {
                self.log_failing = false;
                None
            }
            Err(_) if self.log_failing => None,
            Err(error) => {
                self.log_failing = true;
                Some(format!("console.log: {error}"))
            }
        }
    }

    fn trim(&mut self) {
        let surplus = self.scrollback.len().saturating_sub(self.limit);
        self.scrollback.drain(..surplus);
    }

    /// Returns the last `most` bytes of the guest's output.
    pub fn replay(&self, most: usize) -> Vec<u8> {
        let skip = self.scrollback.len().saturating_sub(most);
        self.scrollback.iter().skip(skip).copied().collect()
    }

    /// Returns how many more bytes of input there is room for.
    pub fn input_room(&self) -> usize {
        INPUT_LIMIT.saturating_sub(self.input.len())
    }

    /// Queues input for the guest, all of it, since input that was read must not be lost. It is bounded by the limit
    /// and by the size of one read, which is a frame and a buffer.
    pub fn type_in(&mut self, bytes: &[u8]) {
        self.input.extend(bytes);
    }

    /// Returns the waiting input.
    pub fn pending_input(&mut self) -> &[u8] {
        self.input.make_contiguous()
    }

    /// Removes `count` bytes that the guest took.
    pub fn input_taken(&mut self, count: usize) {
        self.input.drain(..count.min(self.input.len()));
    }

    /// Begins a new boot: the input for the old one is dropped, and texts are waited for again.
    pub fn new_boot(&mut self, texts: impl Iterator<Item = String>) {
        self.input.clear();
        self.watch = texts.map(Watch::of).collect();
        self.login = Watch::of(LOGIN_PROMPT.into());
    }

    /// Returns whether a login was asked for since the boot.
    pub fn has_asked_for_login(&self) -> bool {
        self.login.seen
    }

    /// Returns the first text that has not been seen since the boot.
    pub fn missing_text(&self) -> Option<String> {
        self.watch.iter().find(|watch| !watch.seen).map(|watch| String::from_utf8_lossy(&watch.text).into_owned())
    }
}

impl Watch {
    fn of(text: String) -> Watch {
        Watch { text: text.into_bytes(), tail: Vec::new(), seen: false }
    }

    fn look(&mut self, bytes: &[u8]) {
        if self.seen {
            return;
        }
        // The end of the last piece may be the beginning of the text.
        self.tail.extend_from_slice(bytes);
        let length = self.text.len().max(1);
        self.seen = self.text.is_empty() || self.tail.windows(length).any(|window| window == self.text);
        let surplus = self.tail.len().saturating_sub(length - 1);
        self.tail.drain(..surplus);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn console(path: &Path, scrollback: usize) -> Console {
        Console::new(RotatingLog::open(path, 4096, 1, 0o600), scrollback)
    }

    #[test]
    fn the_scrollback_keeps_the_newest_bytes() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut console = console(&dir.path().join("log"), 8);
        console.output(b"0123456789");
        console.output(b"ab");
        assert_eq!(console.replay(100), b"456789ab");
        assert_eq!(console.replay(3), b"9ab");
    }

    #[test]
    fn a_text_is_found_across_pieces_and_only_since_the_boot() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut console = console(&dir.path().join("log"), 8);
        console.output(b"login: ");
        console.new_boot(["login: ".to_owned()].into_iter());
        assert_eq!(console.missing_text().as_deref(), Some("login: "));
        console.output(b"debian lo");
        console.output(b"g");
        console.output(b"in: ");
        assert_eq!(console.missing_text(), None);
    }

    #[test]
    fn input_is_never_lost_before_the_guest_took_it_and_gone_at_the_next_boot() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut console = console(&dir.path().join("log"), 8);
        console.type_in(&vec![b'x'; INPUT_LIMIT + 5]);
        assert_eq!((console.input_room(), console.pending_input().len()), (0, INPUT_LIMIT + 5));
        console.input_taken(10);
        assert_eq!(console.input_room(), 5);
        console.new_boot(std::iter::empty());
        assert!(console.pending_input().is_empty());
    }

    #[test]
    fn a_lost_log_is_said_once() {
        if !Path::new("/dev/full").exists() {
            return;
        }
        let mut console = console(Path::new("/dev/full"), 8);
        assert!(console.output(b"x").is_some());
        assert!(console.output(b"x").is_none());
        assert_eq!(console.replay(9), b"xx");
    }
}
