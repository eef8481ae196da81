//! A console session: the terminal on one side, the supervisor on the other. The terminal is always restored, and
//! nothing in a session blocks the guest.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal};

use super::escape::{Escapes, HELP, Typed};
use super::progress::leave_signals;
use super::{App, ExitStatus, Failure, Outcome};
use crate::guest::control::{CONNECT_PATIENCE, ControlClient, Frame, Reply, Request, parse_reply};
use crate::guest::launcher;
use crate::guest::stopping::end_guest;
use crate::guest::store::GuestDir;
use crate::host::terminal::{RawMode, own_window_size, reset_modes};
use crate::poll::{Poll, PollFlags};

/// Options of a session.
#[derive(Debug, Default)]
pub struct Session {
    /// Watch only.
    pub read_only: bool,
    /// Take the keyboard from the session that has it.
    pub take: bool,
    /// A file to which the output is appended too.
    pub log: Option<File>,
    /// Number of bytes of scroll-back that are shown first; `None` shows a screenful or two.
    pub replay: Option<u64>,
    /// Tell the guest the window's size at the beginning.
    pub resize: bool,
    /// Pass every byte to the guest.
    pub no_escapes: bool,
}

/// Maximum number of bytes of input that wait here for the guest. Up to it, escapes after pasted text are still
/// recognised.
const UNSENT_LIMIT: usize = 1 << 20;
const DEFAULT_REPLAY: u64 = 16 * 1024;
/// With nothing more to type, a session ends when the guest has been silent for so many milliseconds, or has continued
/// for so long. Where something was typed, there is an answer to wait for.
const LEAVING: [(Duration, Duration); 2] =
    [(Duration::from_millis(300), Duration::from_secs(2)), (Duration::from_secs(1), Duration::from_secs(30))];

/// Reason why a session ended.
enum End {
    Detached,
    GuestStopped,
    Signal(Signal),
    TerminalGone,
}

/// Opens the console of a running guest and stays until the user leaves or the guest stops.
pub fn attach(app: &App, guest: &GuestDir, session: &Session) -> Outcome {
    // Before raw mode, and before any other thread: from here on signals arrive as bytes on a stream.
    let signals = signal_stream()?;
    let replay_bytes = session.replay.unwrap_or(DEFAULT_REPLAY);
    let request = Request::Console { write: !session.read_only, take: session.take, replay_bytes };
    let mut client = launcher::ask(guest, request)?;
    let writer = match client.reply_within(CONNECT_PATIENCE)? {
        Some(Some(Reply::Console { writer })) => writer,
        Some(Some(Reply::Error { message, .. })) => return Err(Failure::user(message)),
        None => {
            let message = format!("the supervisor of `{}` does not answer", guest.name());
            return Err(Failure::user(message).hint(format!("`vmctl kill {}` ends it and the guest", guest.name())));
        }
        other => return Err(Failure::machine(anyhow::anyhow!("the supervisor answered {other:?}"))),
    };
    if !writer && !session.read_only {
        app.ui.warn("someone else has the keyboard: you watch (`--take` takes it)");
    }
    app.ui.done(format!("console of {}; `~.` leaves, `~?` lists the escapes", guest.name()));
    match talk(app, guest, session, &mut client, writer, Some(signals))? {
        End::Detached => app.ui.done(format!("\nleft the console; {} keeps running", guest.name())),
        End::GuestStopped => app.ui.done(format!("\n{} has stopped", guest.name())),
        End::TerminalGone => {}
        // The same status as a shell would report.
        End::Signal(signal) => return Ok(ExitStatus::Engine(128 + signal as u8)),
    }
    Ok(ExitStatus::Done)
}

/// Returns the console of a guest that this very process supervises, which has the signals. Leaving it leaves the guest
/// and this process; without a console it continues until the guest has stopped. Ends with the supervisor's end of the
/// stream.
pub fn in_foreground(app: &App, guest: &GuestDir, stream: UnixStream) -> Result<(), Failure> {
    let mut client = ControlClient::over(stream);
    match talk(app, guest, &Session::default(), &mut client, true, None)? {
        End::Detached => {
            let name = guest.name();
            app.ui.done(format!("\nleft the console; {name} keeps running until this command ends (Ctrl-C stops it)"));
        }
        End::TerminalGone => drop(end_guest(guest, &Request::Stop { timeout_ms: None }, None)?),
        End::GuestStopped | End::Signal(_) => {}
    }
    Ok(())
}

fn talk(
    app: &App,
    guest: &GuestDir,
    session: &Session,
    client: &mut ControlClient,
    writer: bool,
    signals: Option<UnixStream>,
) -> Result<End, Failure> {
    let raw =
        RawMode::enter().map_err(|error| Failure::machine(anyhow::Error::new(error).context("cannot set up the terminal")))?;
    let is_terminal = raw.is_some();
    // From here on the supervisor may read slowly: input waits here, and the guest's output is shown meanwhile.
    client.stream().set_nonblocking(true)?;
    let escapes = Escapes::new(!session.no_escapes && is_terminal);
    let mut talk = Talk { app, guest, client, session, writer, raw, signals, escapes, unsent: VecDeque::new(), log_lost: false };
    let end = talk.run();
    let unsent = talk.unsent.len();
    if is_terminal {
        reset_modes(&mut io::stdout());
    }
    // Restore the terminal before anything is printed.
    drop(talk);
    if unsent > 0 && matches!(end, Ok(End::Detached)) {
        app.ui.warn("the guest has not read all that was typed; the rest is lost");
    }
    end
}

/// Returns a stream of the signals that end or change a session, as bytes.
pub fn signal_stream() -> Result<UnixStream, Failure> {
    leave_signals();
    let set =
        SigSet::from_iter([Signal::SIGTERM, Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGWINCH, Signal::SIGPIPE]);
    set.thread_block()?;
    let (ours, theirs) = UnixStream::pair()?;
    std::thread::spawn(move || {
        while let Ok(signal) = set.wait() {
            if (&theirs).write_all(&[signal as u8]).is_err() {
                return;
            }
        }
    });
    Ok(ours)
}

struct Talk<'a> {
    app: &'a App,
    guest: &'a GuestDir,
    client: &'a mut ControlClient,
    session: &'a Session,
    writer: bool,
    raw: Option<RawMode>,
    signals: Option<UnixStream>,
    escapes: Escapes,
    /// Input that the supervisor has not taken yet.
    unsent: VecDeque<u8>,
    /// Whether a write to the log has failed and was reported.
    log_lost: bool,
}

impl Talk<'_> {
    fn run(&mut self) -> Result<End, Failure> {
        let mut stdin_open = true;
        // Since when there is no more to type, in a session that ends then; what was said before is still shown.
        let mut leaving: Option<Instant> = None;
        let mut has_typed = false;
        if self.session.resize {
            self.resize();
        }
        loop {
            // Frames that came together with the greeting.
            if let Some(end) = self.drain_frames()? {
                return Ok(end);
            }
            let (quiet, most) = LEAVING[usize::from(has_typed)];
            let until = leaving.map(|_| Instant::now() + quiet);
            let sent = self.unsent.is_empty();
            let [typed, said, signalled] = self.wait(stdin_open, until)?;
            match leaving {
                Some(_) if !sent => leaving = Some(Instant::now()),
                Some(since) if !said || since.elapsed() > most => return Ok(End::Detached),
                _ => {}
            }
            if signalled && let Some(end) = self.signalled() {
                return Ok(end);
            }
            if said && self.client.fill_some()? == Some(0) {
                self.drain_frames()?;
                return Ok(End::GuestStopped);
            }
            if !self.flush() {
                self.drain_frames()?;
                return Ok(End::GuestStopped);
            }
            if typed {
                match self.typed()? {
                    Input::Go => has_typed = true,
                    Input::Closed => {
                        stdin_open = false;
                        // One that only watches, or has the guest in this process, continues.
                        leaving = (!self.session.read_only && self.signals.is_some()).then(Instant::now);
                    }
                    Input::End(end) => return Ok(end),
                }
            }
        }
    }

    /// Waits, for input of the user, output of the supervisor, and a signal. Returns which of them there is.
    fn wait(&self, stdin_open: bool, until: Option<Instant>) -> Result<[bool; 3], Failure> {
        let stdin = io::stdin();
        // Pasted text waits in the terminal while the guest does not take it.
        let stdin_open = stdin_open && self.unsent.len() < UNSENT_LIMIT;
        let mut poll = Poll::new();
        poll.add_both(Source::Supervisor, self.client.stream().as_fd(), true, !self.unsent.is_empty());
        if let Some(signals) = &self.signals {
            poll.add_reader(Source::Signals, signals.as_fd());
        }
        if stdin_open {
            poll.add_reader(Source::Terminal, stdin.as_fd());
        }
        let ready = poll.wait(until);
        let ready = ready.map_err(|error| Failure::machine(anyhow::Error::new(error).context("cannot wait for the console")))?;
        let found = |source: Source| ready.iter().any(|(ready, flags)| *ready == source && flags.intersects(!PollFlags::POLLOUT));
        Ok([Source::Terminal, Source::Supervisor, Source::Signals].map(found))
    }

    fn drain_frames(&mut self) -> Result<Option<End>, Failure> {
        while let Some(frame) = self.client.take_frame()? {
            let shown = match frame {
                Frame::Console(bytes) => {
                    self.keep(&bytes);
                    self.show(&bytes)
                }
                Frame::Json(text) => match parse_reply(&text)? {
                    Reply::Notice { message } => self.show(format!("\r\n[vmctl: {message}]\r\n").as_bytes()),
                    _ => Ok(()),
                },
            };
            if shown.is_err() {
                return Ok(Some(End::TerminalGone));
            }
        }
        Ok(None)
    }

    /// Appends to the log of the session. A failure is reported once and does not end the session.
    fn keep(&mut self, bytes: &[u8]) {
        let Some(mut log) = self.session.log.as_ref() else { return };
        let Err(error) = log.write_all(bytes) else { return };
        if !std::mem::replace(&mut self.log_lost, true) {
            // On a raw terminal the cursor does not return by itself.
            let (before, after) = if self.raw.is_some() { ("\r\n", "\r") } else { ("", "") };
            let _ = io::stderr().write_all(before.as_bytes());
            self.app.ui.warn(format!("the session's log cannot be written and is incomplete: {error}"));
            let _ = io::stderr().write_all(after.as_bytes());
        }
    }

    fn show(&self, bytes: &[u8]) -> io::Result<()> {
        let mut stdout = io::stdout().lock();
        stdout.write_all(bytes)?;
        stdout.flush()
    }

    fn signalled(&mut self) -> Option<End> {
        let mut byte = [0u8; 1];
        self.signals.as_mut()?.read_exact(&mut byte).ok()?;
        match Signal::try_from(i32::from(byte[0])).ok()? {
            // A serial line has no window size: `~w` sends it to the guest when the user wants it.
            Signal::SIGWINCH | Signal::SIGPIPE => None,
            Signal::SIGHUP => Some(End::TerminalGone),
            signal => Some(End::Signal(signal)),
        }
    }

    fn typed(&mut self) -> Result<Input, Failure> {
        let mut buffer = [0u8; 4096];
        let count = match nix::unistd::read(io::stdin().as_fd(), &mut buffer) {
            Ok(0) if self.raw.is_some() => return Ok(Input::End(End::TerminalGone)),
            Ok(0) => return Ok(Input::Closed),
            Ok(count) => count,
            Err(nix::errno::Errno::EINTR | nix::errno::Errno::EAGAIN) => return Ok(Input::Go),
            // EIO: the terminal has hung up.
            Err(_) => return Ok(Input::End(End::TerminalGone)),
        };
        for typed in self.escapes.feed(&buffer[..count]) {
            match typed {
                Typed::Bytes(bytes) => self.send(&bytes),
                Typed::Detach => return Ok(Input::End(End::Detached)),
                Typed::Stop => self.stop(),
                Typed::Help => {
                    let _ = self.show(format!("\r\n{}", HELP.replace('\n', "\r\n")).as_bytes());
                }
                Typed::Resize => self.resize(),
                Typed::Suspend => self.suspend(),
            }
        }
        Ok(Input::Go)
    }

    fn send(&mut self, bytes: &[u8]) {
        if self.writer {
            self.unsent.extend(Frame::Console(bytes.to_vec()).encode());
        }
    }

    /// Sends as much as the supervisor takes. Returns `false` when it is gone.
    fn flush(&mut self) -> bool {
        while !self.unsent.is_empty() {
            let mut stream = self.client.stream();
            match stream.write(self.unsent.make_contiguous()) {
                Ok(count) => drop(self.unsent.drain(..count)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
                Err(_) => return false,
            }
        }
        true
    }

    /// Asks the guest to stop. What it says while it shuts down is worth seeing.
    fn stop(&self) {
        let _ = self.show(b"\r\n[vmctl: stopping the guest]\r\n");
        let guest = self.guest.clone();
        std::thread::spawn(move || end_guest(&guest, &Request::Stop { timeout_ms: None }, None).map(drop));
    }

    /// Types a command that sets the size in the guest's shell, since there is no other way over a serial line.
    fn resize(&mut self) {
        if let Some((rows, columns)) = own_window_size() {
            self.send(format!("stty rows {rows} cols {columns}\r").as_bytes());
        }
    }

    fn suspend(&mut self) {
        let Some(raw) = &self.raw else { return };
        raw.suspend();
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(0), Signal::SIGSTOP);
        let _ = raw.resume();
    }
}

/// A source of events.
#[derive(Clone, Copy, PartialEq)]
enum Source {
    Terminal,
    Supervisor,
    Signals,
}

enum Input {
    Go,
    Closed,
    End(End),
}
