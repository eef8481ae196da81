//! Messages of the supervisor's helper threads: a message, and a byte on the stream that wakes the poll.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use crate::guest::engine::RunningEngine;
use crate::guest::error::{GuestError, Result};

use super::Message;

/// Maximum number of waiting messages of the helpers. A helper with more to send waits.
const MOST_MESSAGES: usize = 64;

/// The receiving end, which the supervisor has.
pub(super) struct Mailbox {
    messages: mpsc::Receiver<Message>,
    /// Messages that arrived while the supervisor waited for others.
    postponed: VecDeque<Message>,
    wake: UnixStream,
    poster: Poster,
}

impl Mailbox {
    /// Creates an empty mailbox.
    pub(super) fn new() -> Result<Mailbox> {
        let (wake, waker) =
            UnixStream::pair().map_err(|error| GuestError::host(format!("cannot make a socket pair: {error}")))?;
        let nonblocking = wake.set_nonblocking(true).and_then(|()| waker.set_nonblocking(true));
        nonblocking.map_err(|error| GuestError::host(format!("cannot set up a socket pair: {error}")))?;
        let (sender, messages) = mpsc::sync_channel(MOST_MESSAGES);
        Ok(Mailbox { messages, postponed: VecDeque::new(), wake, poster: Poster { sender, waker: Arc::new(waker) } })
    }

    /// Returns a sending end for a helper.
    pub(super) fn poster(&self) -> Poster {
        self.poster.clone()
    }

    /// Returns the stream that is readable when there is a message.
    pub(super) fn wake(&self) -> &UnixStream {
        &self.wake
    }

    /// Empties the wake stream.
    pub(super) fn clear_wake(&self) {
        while matches!((&self.wake).read(&mut [0u8; 256]), Ok(count) if count > 0) {}
    }

    /// Returns the next message, without waiting for one.
    pub(super) fn next(&mut self) -> Option<Message> {
        self.postponed.pop_front().or_else(|| self.messages.try_recv().ok())
    }

    /// Returns the next message if it arrives within `patience`. Skips the postponed ones.
    pub(super) fn next_within(&self, patience: Duration) -> Option<Message> {
        self.messages.recv_timeout(patience).ok()
    }

    /// Keeps a message for later.
    pub(super) fn postpone(&mut self, message: Message) {
        self.postponed.push_back(message);
    }
}

/// Sends messages to the supervisor and wakes it.
#[derive(Clone)]
pub(super) struct Poster {
    sender: mpsc::SyncSender<Message>,
    waker: Arc<UnixStream>,
}

impl Poster {
    pub(super) fn send(&self, message: Message) {
        // A full wake stream has already woken it. If the supervisor is gone, nothing is needed.
        if self.sender.send(message).is_ok() {
            let _ = (&*self.waker).write(&[0]);
        }
    }
}

/// Watches an engine's process and its standard error, each from a thread.
pub(super) fn watch_engine(engine: &RunningEngine, boot: u64, post: &Poster) -> Result<()> {
    use nix::sys::wait::{Id, WaitPidFlag, waitid};
    let mut stderr =
        engine.stderr().try_clone().map_err(|error| GuestError::host(format!("cannot watch the engine: {error}")))?;
    let pid = nix::unistd::Pid::from_raw(engine.pid() as i32);
    let (ended, said) = (post.clone(), post.clone());
    std::thread::spawn(move || {
        // WNOWAIT: the process stays a zombie until the main thread takes its status, so its id is not reused before.
        while waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT) == Err(nix::errno::Errno::EINTR) {}
        ended.send(Message::EngineEnded(boot));
    });
    std::thread::spawn(move || {
        let mut buffer = [0u8; 4096];
        while let Ok(count) = stderr.read(&mut buffer) {
            if count == 0 {
                break;
            }
            said.send(Message::Stderr(buffer[..count].to_vec()));
        }
    });
    Ok(())
}
