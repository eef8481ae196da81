//! Requests for a running guest: stop, restart, reset, power-off, kill. Each overrides the policy once.

use std::time::{Duration, Instant};

use crate::config::HookEvent;
use crate::guest::control::{Hello, PROTOCOL_VERSION, Reply, Request, StopWay};
use crate::guest::events::EventKind;
use crate::guest::state::Phase;
use crate::machine::spec::EngineCommand;

use super::clients::Purpose;
use super::{Asked, END_PATIENCE, PRESS_AGAIN, Stage, Supervisor, start_error_reply};

impl Supervisor {
    /// Handles the first document of a client.
    pub(super) fn greeted(&mut self, at: usize, text: &[u8]) {
        let hello = match serde_json::from_slice::<Hello>(text) {
            Ok(hello) if hello.version == PROTOCOL_VERSION => hello,
            _ => {
                let message = format!("the request is not understood; this supervisor speaks version {PROTOCOL_VERSION}");
                let hint = Some("it may be of another version of vmctl: stop and start the guest".to_owned());
                return self.clients[at].answer(&Reply::Error { message, hint });
            }
        };
        match hello.request {
            Request::Status => {
                let run = self.state.run.clone().expect("set while the supervisor runs");
                self.clients[at].answer(&Reply::Status(Box::new(run)));
            }
            Request::Events => self.clients[at].purpose = Purpose::Events,
            Request::WaitReady { timeout_ms, login } => self.wait_ready(at, timeout_ms, login),
            Request::Console { write, take, replay_bytes } => self.attach(at, write, take, replay_bytes),
            Request::Stats => self.ask_engine(at, &EngineCommand::Stats, Purpose::Stats),
            Request::Nmi => {
                self.ask_engine(at, &EngineCommand::Nmi, Purpose::Answered);
                if self.clients[at].purpose == Purpose::Answered && self.stage == Stage::Running {
                    self.requested("nmi");
                    self.clients[at].answer(&Reply::Done);
                }
            }
            Request::Stop { timeout_ms } => {
                self.requested("stop");
                self.clients[at].purpose = Purpose::Stop;
                self.stop(timeout_ms, false);
            }
            Request::Restart { timeout_ms } => {
                self.requested("restart");
                self.clients[at].purpose = Purpose::Running;
                self.stop(timeout_ms, true);
            }
            Request::Poweroff => {
                self.requested("poweroff");
                self.clients[at].purpose = Purpose::Stop;
                self.stop(Some(0), false);
            }
            Request::Suspend => self.suspend(at),
            Request::Reset => self.reset(at),
            Request::Kill => {
                self.requested("kill");
                self.clients[at].purpose = Purpose::Stop;
                self.kill();
            }
        }
    }

    fn requested(&mut self, action: &str) {
        self.emit(EventKind::Requested { action: action.to_owned() });
    }

    fn ask_engine(&mut self, at: usize, command: &EngineCommand, purpose: Purpose) {
        match &mut self.engine {
            Some(engine) if self.stage == Stage::Running => {
                engine.command(command);
                self.clients[at].purpose = purpose;
            }
            _ => self.clients[at].answer(&start_error_reply("the guest does not run at this moment".into())),
        }
    }

    fn wait_ready(&mut self, at: usize, timeout_ms: Option<u64>, login: bool) {
        let is_there = if login { self.stage == Stage::Running && self.console.has_asked_for_login() } else { self.ready };
        if is_there {
            return self.clients[at].answer(&Reply::Ready);
        }
        let timeout = timeout_ms.map_or(self.config.ready.timeout, Duration::from_millis);
        // Far beyond any user's patience, and within the range of an Instant.
        let until = Instant::now() + timeout.min(Duration::from_secs(30 * 24 * 3600));
        self.clients[at].purpose = if login { Purpose::Login(until) } else { Purpose::Ready(until) };
    }

    /// Handles a signal of the host: it stops the guest as `stop` does, and a second one powers it off.
    pub(super) fn signalled(&mut self) {
        let again = self.asked.is_some_and(|asked| !asked.again);
        self.requested(if again { "poweroff" } else { "stop" });
        self.stop(again.then_some(0), false);
    }

    /// Ends the guest, by power button or at once, and boots it `again` or not.
    pub(super) fn stop(&mut self, timeout_ms: Option<u64>, again: bool) {
        let timeout = timeout_ms.map_or(self.config.stop_timeout, Duration::from_millis);
        match self.stage {
            Stage::Ending | Stage::Done => {}
            // The requested boot is already under way.
            Stage::PreStart | Stage::Booting { .. } if again => {}
            Stage::Waiting { .. } if again => self.begin_boot(false),
            Stage::Waiting { .. } => {
                self.stop_way = Some(StopWay::NotRunning);
                self.end();
            }
            Stage::PreStart | Stage::CrashHooks(_) => self.ask(Asked::plain(StopWay::NotRunning, again, timeout)),
            Stage::Booting { .. } => self.power_off(StopWay::PoweredOff, again),
            Stage::Running if timeout.is_zero() => self.power_off(StopWay::PoweredOff, again),
            Stage::Running => match &mut self.asked {
                // There is an earlier request: stop wins over restart, and the shorter time over the longer.
                Some(asked) => {
                    asked.again &= again;
                    asked.hurry(timeout, Instant::now());
                }
                None => {
                    self.ask(Asked { hooks_first: true, ..Asked::plain(StopWay::PowerButton, again, timeout) });
                    if !self.submit_hooks(HookEvent::PreStop, "") {
                        self.pre_stop_done(None);
                    }
                }
            },
        }
    }

    fn ask(&mut self, asked: Asked) {
        self.asked = Some(asked);
        self.set_phase(Phase::Stopping);
    }

    /// Continues after the hooks before the power button.
    pub(super) fn pre_stop_done(&mut self, fatal: Option<String>) {
        let Some(asked) = self.asked.as_mut().filter(|asked| asked.hooks_first) else { return };
        if let Some(words) = fatal {
            self.asked = None;
            self.set_phase(Phase::Running);
            let hint = Some(format!("`vmctl stop --force {}` stops it without the hooks", self.guest.name()));
            let reply = Reply::Error { message: words, hint };
            return self.answer_all(|purpose| matches!(purpose, Purpose::Stop | Purpose::Running), &reply);
        }
        asked.hooks_first = false;
        let now = Instant::now();
        asked.power_off_at = now.checked_add(asked.timeout);
        asked.press_at = Some(now + PRESS_AGAIN);
        if let Some(engine) = &mut self.engine {
            engine.command(&EngineCommand::PowerButton);
        }
    }

    fn power_off(&mut self, way: StopWay, again: bool) {
        let again = again && self.asked.is_none_or(|asked| asked.again);
        self.ask(Asked { kill_at: Some(Instant::now() + END_PATIENCE), ..Asked::plain(way, again, Duration::ZERO) });
        if let Some(engine) = &mut self.engine {
            engine.command(&EngineCommand::Poweroff);
        }
    }

    fn reset(&mut self, at: usize) {
        if self.stage != Stage::Running {
            let message = "the guest does not run at this moment".to_owned();
            return self.clients[at].answer(&start_error_reply(message));
        }
        self.requested("reset");
        self.clients[at].purpose = Purpose::Running;
        if self.asked.is_some_and(|asked| !asked.again) {
            return self.clients[at].answer(&start_error_reply("the guest is being stopped".into()));
        }
        self.ask(Asked {
            kill_at: Some(Instant::now() + END_PATIENCE),
            ..Asked::plain(StopWay::PoweredOff, true, Duration::ZERO)
        });
        if let Some(engine) = &mut self.engine {
            engine.command(&EngineCommand::Reset);
        }
    }

    /// Saves the guest, without a time-out, and stops it.
    fn suspend(&mut self, at: usize) {
        if self.stage != Stage::Running || self.asked.is_some() {
            let message = "the guest does not run, or is being stopped, at this moment".to_owned();
            return self.clients[at].answer(&start_error_reply(message));
        }
        if self.install.is_some() {
            // The saved state would need the medium, which the next boot does not have.
            let message = "the guest is being installed, and what would be saved needs the medium".to_owned();
            return self.clients[at].answer(&start_error_reply(message));
        }
        self.requested("suspend");
        self.clients[at].purpose = Purpose::Stop;
        self.ask(Asked::plain(StopWay::Suspended, false, Duration::ZERO));
        if let Some(engine) = &mut self.engine {
            engine.command(&EngineCommand::Suspend);
        }
    }

    /// Handles a failure to save the guest, which continues.
    pub(super) fn not_suspended(&mut self, message: String) {
        if self.asked.is_some_and(|asked| asked.way == StopWay::Suspended) {
            self.asked = None;
            self.set_phase(Phase::Running);
            self.answer_all(|purpose| purpose == Purpose::Stop, &start_error_reply(message));
        }
    }

    fn kill(&mut self) {
        match &mut self.engine {
            Some(engine) => {
                engine.kill();
                self.ask(Asked::plain(StopWay::Killed, false, Duration::ZERO));
            }
            None => self.stop(Some(0), false),
        }
    }

    /// Does what is due for a request.
    pub(super) fn press_on(&mut self, now: Instant) {
        let Some(asked) = &mut self.asked else { return };
        if asked.power_off_at.is_some_and(|at| now >= at) {
            (asked.power_off_at, asked.kill_at, asked.way) = (None, Some(now + END_PATIENCE), StopWay::TimedOut);
            asked.press_at = None;
            let after_seconds = asked.timeout.as_secs();
            if let Some(engine) = &mut self.engine {
                engine.command(&EngineCommand::Poweroff);
            }
            return self.emit(EventKind::StopTimedOut { after_seconds });
        }
        // The first press may have come before the guest could handle it.
        if asked.press_at.is_some_and(|at| now >= at) {
            asked.press_at = Some(now + PRESS_AGAIN);
            if let Some(engine) = &mut self.engine {
                engine.command(&EngineCommand::PowerButton);
            }
        }
        if asked.kill_at.is_some_and(|at| now >= at) {
            asked.kill_at = None;
            if let Some(engine) = &mut self.engine {
                engine.kill();
            }
        }
    }

    /// Attaches a client to the console.
    fn attach(&mut self, at: usize, write: bool, take: bool, replay_bytes: u64) {
        let writing = self.clients.iter().position(|client| client.purpose == Purpose::Console { writer: true });
        let writer = write && (take || writing.is_none());
        if let Some(other) = writing.filter(|_| writer) {
            self.clients[other].purpose = Purpose::Console { writer: false };
            self.clients[other].reply(&Reply::Notice { message: "someone else took the keyboard; you go on watching".into() });
        }
        let replay = self.console.replay(usize::try_from(replay_bytes).unwrap_or(usize::MAX));
        let client = &mut self.clients[at];
        client.purpose = Purpose::Console { writer };
        client.reply(&Reply::Console { writer });
        client.console(&replay);
        self.emit(EventKind::ConsoleAttached { writer });
    }
}

impl Asked {
    /// Applies a further request to end the guest, within `timeout` from now.
    fn hurry(&mut self, timeout: Duration, now: Instant) {
        let at = now.checked_add(timeout);
        if self.kill_at.is_some() {
            return;
        }
        if self.hooks_first {
            self.timeout = self.timeout.min(timeout);
        } else if at.is_some_and(|at| self.power_off_at.is_none_or(|before| at < before)) {
            (self.power_off_at, self.timeout) = (at, timeout);
        }
    }

    fn plain(way: StopWay, again: bool, timeout: Duration) -> Asked {
        Asked { way, again, timeout, hooks_first: false, press_at: None, power_off_at: None, kill_at: None }
    }
}
