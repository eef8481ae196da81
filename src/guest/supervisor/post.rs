//! Messages of the supervisor's helper threads: a message, and a byte on the stream that wakes the poll.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, mpsc};

use crate::guest::engine::RunningEngine;
use crate::guest::error::{GuestError, Result};

use super::Message;

/// Sends messages to the supervisor and wakes it.
#[derive(Clone)]
pub(super) struct Poster {
    pub(super) sender: mpsc::SyncSender<Message>,
    pub(super) waker: Arc<UnixStream>,
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
