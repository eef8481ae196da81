//! Waiting for several descriptors at once, with poll(2): the sandbox of the engine child allows no other call of that
//! kind on every system, and it is fast enough for the few descriptors of a thread.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

pub use nix::poll::PollFlags;
use nix::poll::{PollFd, PollTimeout, poll};

/// Maximum duration of a wait with a deadline. The caller looks at the clock again afterwards.
const LONGEST: Duration = Duration::from_secs(60);
/// Duration of a wait that fails.
const FAILED: Duration = Duration::from_millis(100);

/// A set of descriptors to wait for, each with the token of its owner.
pub struct Poll<'fd, T> {
    fds: Vec<PollFd<'fd>>,
    tokens: Vec<T>,
}

impl<'fd, T> Poll<'fd, T> {
    /// Creates an empty set.
    pub fn new() -> Poll<'fd, T> {
        Poll { fds: Vec::new(), tokens: Vec::new() }
    }

    /// Adds a descriptor, to wait for these flags and for its end.
    pub fn add(&mut self, token: T, fd: BorrowedFd<'fd>, flags: PollFlags) {
        self.fds.push(PollFd::new(fd, flags));
        self.tokens.push(token);
    }

    /// Adds a descriptor, to wait until it can be read.
    pub fn add_reader(&mut self, token: T, fd: BorrowedFd<'fd>) {
        self.add(token, fd, PollFlags::POLLIN);
    }

    /// Adds a descriptor, to wait until it can be read or written, or only for its end if both are `false`.
    pub fn add_both(&mut self, token: T, fd: BorrowedFd<'fd>, reads: bool, writes: bool) {
        let mut flags = PollFlags::empty();
        flags.set(PollFlags::POLLIN, reads);
        flags.set(PollFlags::POLLOUT, writes);
        self.add(token, fd, flags);
    }

    /// Waits until a descriptor is ready and returns the ready ones. Returns none at `until`, after a minute, and after a
    /// signal was handled. A failure takes some time, so that a loop that ignores it does not spin.
    pub fn wait(mut self, until: Option<Instant>) -> io::Result<Vec<(T, PollFlags)>> {
        let timeout = until.map_or(PollTimeout::NONE, |until| timeout(until.saturating_duration_since(Instant::now())));
        match poll(&mut self.fds, timeout) {
            Ok(_) => {}
            Err(nix::errno::Errno::EINTR) => return Ok(Vec::new()),
            Err(errno) => {
                pause(FAILED);
                return Err(errno.into());
            }
        }
        let flags = self.fds.iter().map(|fd| fd.revents().unwrap_or(PollFlags::empty()));
        Ok(self.tokens.into_iter().zip(flags).filter(|(_, flags)| !flags.is_empty()).collect())
    }
}

/// Returns the time-out, rounded up: so the time has come when the wait ends, and the last part of a millisecond does not
/// make a loop spin.
fn timeout(left: Duration) -> PollTimeout {
    let rounded = left.min(LONGEST) + Duration::from_micros(999);
    PollTimeout::from(rounded.as_millis() as u16)
}

/// Sleeps with poll(2), since FreeBSD's capability mode lacks clock_nanosleep(2), with which std sleeps.
fn pause(time: Duration) {
    let _ = poll(&mut [], timeout(time));
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    #[test]
    fn what_is_ready_is_told_with_its_token_and_a_moment_has_come_when_the_wait_ends() {
        let ((one, mut peer), (two, _held)) = (UnixStream::pair().unwrap(), UnixStream::pair().unwrap());
        let both = || {
            let mut poll = Poll::new();
            poll.add_reader("one", one.as_fd());
            poll.add_reader("two", two.as_fd());
            poll
        };
        let until = Instant::now() + Duration::from_micros(1500);
        assert!(both().wait(Some(until)).unwrap().is_empty());
        assert!(Instant::now() >= until);
        peer.write_all(b"x").unwrap();
        assert_eq!(both().wait(None).unwrap(), [("one", PollFlags::POLLIN)]);
        drop(peer);
        let mut poll = Poll::new();
        poll.add_both((), one.as_fd(), false, false);
        assert!(poll.wait(None).unwrap()[0].1.contains(PollFlags::POLLHUP), "an end is told to whoever waits for nothing");
    }
}
