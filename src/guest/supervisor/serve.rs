//! The supervisor's poll loop: it waits for the engine, the clients and the helpers, and moves bytes between them.

use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use crate::guest::control::{Frame, Hello, Reply};
use crate::guest::events::EventKind;
use crate::poll::{Poll, PollFlags};

use super::Supervisor;
use super::clients::{Client, MOST_CLIENTS, Purpose, Room, room};

/// Owner of a descriptor.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Token {
    Wake,
    Listener,
    Console,
    Control,
    Client(usize),
}

/// Maximum number of bytes read from the guest's console in one round, so that clients are served in between.
const CONSOLE_ROUND: usize = 64 * 1024;
/// Time for which the supervisor sleeps when nothing is due.
const IDLE: Duration = Duration::from_secs(60);
/// Time for which no client is accepted after the host had no descriptor for one.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);
/// Time-out for the request of a client that connected at the guest's very end.
const LATE_GREETING: Duration = Duration::from_millis(300);

impl Supervisor {
    /// Sleeps until there is work, and moves all bytes that can be moved.
    pub(super) fn wait_and_serve(&mut self) {
        for (token, flags) in self.poll() {
            match token {
                Token::Wake => self.mailbox.clear_wake(),
                Token::Listener => self.accept(),
                Token::Console => self.serve_console(flags),
                Token::Control => self.serve_control(flags),
                Token::Client(at) => self.serve_client(at, flags),
            }
        }
        self.feed_guest();
        self.drop_gone();
    }

    fn poll(&mut self) -> Vec<(Token, PollFlags)> {
        // Later than now, since something due may wait for something else, and must not make this spin.
        let (now, least) = (Instant::now(), Duration::from_millis(1));
        let until = self.deadline().unwrap_or(now + IDLE).max(now + least);
        let has_input = !self.console.pending_input().is_empty();
        let input_room = self.console.input_room() > 0;
        let mut poll = Poll::new();
        poll.add_reader(Token::Wake, self.mailbox.wake().as_fd());
        if let Some(listener) = self.listener.as_ref().filter(|_| self.accept_again_at.is_none()) {
            poll.add_reader(Token::Listener, listener.as_fd());
        }
        // A stream that has ended would wake us forever. Then only the end of the process counts.
        if let Some(boot) = self.stage.boot() {
            let engine = &boot.engine;
            if boot.console_open {
                poll.add_both(Token::Console, engine.console().as_fd(), true, has_input);
            }
            if boot.control_open {
                poll.add_both(Token::Control, engine.control().as_fd(), true, engine.has_commands());
            }
        }
        for (at, client) in self.clients.iter().enumerate() {
            let reads = input_room || client.purpose != (Purpose::Console { writer: true });
            poll.add_both(Token::Client(at), client.stream().as_fd(), reads, client.has_output());
        }
        poll.wait(Some(until)).unwrap_or_else(|error| {
            // This cannot happen with descriptors that we hold.
            super::note(&format!("poll: {error}"));
            Vec::new()
        })
    }

    /// Accepts waiting clients. It is bounded, so that one who connects without end does not block the others.
    pub(super) fn accept(&mut self) {
        for _ in 0..MOST_CLIENTS {
            let Some(accepted) = self.listener.as_ref().map(|listener| listener.accept()) else { return };
            match accepted.map(|(stream, _)| Client::new(stream)) {
                Ok(Ok(client)) => self.admit(client),
                Ok(Err(_)) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted) => {}
                // Out of descriptors or memory: the clients still wait in a moment, and the poll must not spin.
                Err(_) => return self.accept_again_at = Some(Instant::now() + ACCEPT_PAUSE),
            }
        }
    }

    fn admit(&mut self, mut client: Client) {
        match room(&self.clients, &client) {
            Room::Free => {}
            // It keeps its index until the round is over, since the poll's results refer to indices.
            Room::Instead(at) => self.clients[at].gone = Some("it made room for another connection"),
            Room::None => {
                let message = format!("the supervisor of `{}` has as many connections as it takes", self.guest.name());
                let hint = Some("end some of those that watch it, or ask as root".to_owned());
                return client.answer(&Reply::Error { message, hint });
            }
        }
        self.clients.push(client);
    }

    /// Does what is due for the clients.
    pub(super) fn press_on_clients(&mut self, now: Instant) {
        self.clients.iter_mut().for_each(|client| client.press_on(now));
        if self.accept_again_at.is_some_and(|at| now >= at) {
            self.accept_again_at = None;
        }
    }

    /// Answers clients that had connected but sent no request when the guest ended.
    pub(super) fn answer_latecomers(&mut self, stopped: &Reply, other: &Reply) {
        let until = Instant::now() + LATE_GREETING;
        loop {
            for client in self.clients.iter_mut().filter(|client| client.purpose == Purpose::Unknown && client.gone.is_none()) {
                if let Some(Frame::Json(text)) = client.receive().into_iter().next() {
                    let wants_an_end = serde_json::from_slice::<Hello>(&text).is_ok_and(|hello| hello.request.ends_the_guest());
                    client.answer(if wants_an_end { stopped } else { other });
                }
            }
            let waiting = |client: &Client| client.purpose == Purpose::Unknown && client.gone.is_none();
            if !self.clients.iter().any(waiting) || Instant::now() >= until {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
    }

    /// Serves the guest's serial line.
    fn serve_console(&mut self, flags: PollFlags) {
        if !flags.intersects(PollFlags::POLLIN | PollFlags::POLLHUP | PollFlags::POLLERR) {
            return;
        }
        let mut buffer = [0u8; 16 * 1024];
        let mut taken = 0;
        while taken < CONSOLE_ROUND {
            let Some(boot) = self.stage.boot_mut() else { return };
            match boot.engine.console().read(&mut buffer) {
                Ok(0) => return boot.console_open = false,
                Ok(count) => {
                    taken += count;
                    self.guest_said(&buffer[..count]);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => return boot.console_open = false,
            }
        }
        self.check_ready();
    }

    fn guest_said(&mut self, bytes: &[u8]) {
        if let Some(message) = self.console.output(bytes) {
            self.emit(EventKind::LogLost { message });
        }
        for client in self.clients.iter_mut().filter(|client| client.watches()) {
            client.console(bytes);
        }
    }

    /// Moves input into the guest.
    fn feed_guest(&mut self) {
        while let Some(boot) = self.stage.boot().filter(|boot| boot.console_open) {
            let pending = self.console.pending_input();
            if pending.is_empty() {
                return;
            }
            match boot.engine.console().write(pending) {
                Ok(count) if count > 0 => self.console.input_taken(count),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                _ => return,
            }
        }
    }

    fn serve_control(&mut self, flags: PollFlags) {
        let Some(boot) = self.stage.boot_mut() else { return };
        if flags.contains(PollFlags::POLLOUT) {
            boot.engine.flush_commands();
        }
        if flags.intersects(PollFlags::POLLIN | PollFlags::POLLHUP | PollFlags::POLLERR) {
            let (events, open) = boot.engine.events();
            boot.control_open = open;
            for event in events {
                match event {
                    Ok(event) => self.engine_event(event),
                    Err(line) => self.engine_said(format!("not understood: {line}\n").as_bytes()),
                }
            }
        }
    }

    /// Reads the rest of the ended engine's output.
    pub(super) fn drain_engine(&mut self) {
        // Bounded, in case of a bug: the process is gone, so the sockets contain all there is.
        for _ in 0..64 {
            let Some((console, control)) = self.stage.boot().map(|boot| (boot.console_open, boot.control_open)) else { break };
            if !console && !control {
                break;
            }
            if console {
                self.serve_console(PollFlags::POLLIN);
            }
            if control {
                self.serve_control(PollFlags::POLLIN);
            }
        }
        while let Some(message) = self.mailbox.next_within(Duration::from_millis(5)) {
            match message {
                super::Message::Stderr(bytes) => self.engine_said(&bytes),
                super::Message::EngineEnded(_) => {}
                other => self.mailbox.postpone(other),
            }
        }
    }

    fn serve_client(&mut self, at: usize, flags: PollFlags) {
        if self.clients[at].gone.is_some() {
            return;
        }
        if flags.contains(PollFlags::POLLOUT) {
            self.clients[at].flush();
        }
        if !flags.intersects(PollFlags::POLLIN | PollFlags::POLLHUP | PollFlags::POLLERR) {
            return;
        }
        for frame in self.clients[at].receive() {
            match (frame, self.clients[at].purpose) {
                (Frame::Json(text), Purpose::Unknown) => self.greeted(at, &text),
                (Frame::Console(bytes), Purpose::Console { writer: true }) => {
                    // The poll does not read from the writer while the queue is full.
                    self.console.type_in(&bytes);
                }
                (_, Purpose::Answered) => {}
                // A watcher may send input, which is dropped. Anything else is a broken peer.
                (Frame::Console(_), Purpose::Console { writer: false }) => {}
                _ => self.clients[at].gone = Some("the client does not keep to the protocol"),
            }
        }
    }

    fn drop_gone(&mut self) {
        let mut left = Vec::new();
        self.clients.retain(|client| {
            let gone = match client.gone {
                Some(reason) => Some(reason),
                None if client.purpose == Purpose::Answered && !client.has_output() => Some("answered"),
                None => None,
            };
            if let (Some(reason), true) = (gone, client.watches()) {
                left.push(reason);
            }
            gone.is_none()
        });
        for reason in left {
            self.emit(EventKind::ConsoleDetached { reason: reason.to_owned() });
        }
    }

    /// Answers every client that `which` selects.
    pub(super) fn answer_all(&mut self, which: impl Fn(Purpose) -> bool, reply: &Reply) {
        for client in self.clients.iter_mut().filter(|client| which(client.purpose)) {
            client.answer(reply);
        }
    }
}
