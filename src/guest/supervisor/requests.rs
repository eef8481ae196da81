//! Requests for a running guest: stop, restart, reset, power-off, kill. Each overrides the policy once.

use std::time::{Duration, Instant};

use crate::config::HookEvent;
use crate::guest::control::{Hello, PROTOCOL_VERSION, Reply, Request, StopWay};
use crate::guest::events::EventKind;
use crate::guest::state::Phase;
use crate::machine::spec::EngineCommand;

use super::clients::Purpose;
use super::stage::{Asked, Stage};
use super::{Supervisor, start_error_reply};

/// Time between two presses of the power button, until the guest ends or its time is over.
const PRESS_AGAIN: Duration = Duration::from_secs(4);
/// Time-out for an engine to end after it was told to.
const END_PATIENCE: Duration = Duration::from_secs(10);

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
            Request::WaitReady { timeout_ms, login, agent } => match (login, agent) {
                (_, true) => self.wait_agent(at, timeout_ms),
                (login, false) => self.wait_ready(at, timeout_ms, login),
            },
            Request::Execute { command, input } => self.execute(at, command, input.as_deref()),
            Request::Console { write, take, replay_bytes } => self.attach(at, write, take, replay_bytes),
            Request::Stats => self.ask_engine(at, &EngineCommand::Stats, Purpose::Stats),
            Request::Nmi => {
                self.ask_engine(at, &EngineCommand::Nmi, Purpose::Answered);
                if self.clients[at].purpose == Purpose::Answered && self.stage.is_running() {
                    self.requested("nmi");
                    self.clients[at].answer(&Reply::Done);
                }
            }
            Request::AddForward { nic, forward } => self.change_forward(at, &nic, forward, true),
            Request::RemoveForward { nic, forward } => self.change_forward(at, &nic, forward, false),
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
        match &mut self.stage {
            Stage::Running(boot) => {
                boot.engine.command(command);
                self.clients[at].purpose = purpose;
            }
            _ => self.clients[at].answer(&start_error_reply("the guest does not run at this moment".into())),
        }
    }

    fn wait_ready(&mut self, at: usize, timeout_ms: Option<u64>, login: bool) {
        let is_there = match login {
            true => self.stage.is_running() && self.console.has_asked_for_login(),
            false => self.stage.boot().is_some_and(|boot| boot.readiness.is_ready()),
        };
        if is_there {
            return self.clients[at].answer(&Reply::Ready);
        }
        let until = self.patience(timeout_ms);
        self.clients[at].purpose = if login { Purpose::Login(until) } else { Purpose::Ready(until) };
    }

    fn wait_agent(&mut self, at: usize, timeout_ms: Option<u64>) {
        match self.stage.boot() {
            Some(boot) if boot.readiness.agent_answered => return self.clients[at].answer(&Reply::Ready),
            Some(boot) if self.stage.is_running() && boot.agent.is_none() => {
                let message = "the guest has no port for an agent in this boot".to_owned();
                let hint = Some("set `agent = true` in the guest file, and restart the guest".to_owned());
                return self.clients[at].answer(&Reply::Error { message, hint });
            }
            _ => {}
        }
        self.clients[at].purpose = Purpose::Agent(self.patience(timeout_ms));
    }

    /// Returns the time until which a client waits.
    fn patience(&self, timeout_ms: Option<u64>) -> Instant {
        let timeout = timeout_ms.map_or(self.config.ready.timeout, Duration::from_millis);
        // Far beyond any user's patience, and within the range of an Instant.
        Instant::now() + timeout.min(Duration::from_secs(30 * 24 * 3600))
    }

    /// Handles a signal of the host: it stops the guest as `stop` does, and a second one powers it off.
    pub(super) fn signalled(&mut self) {
        let again = self.stage.asked().is_some_and(|asked| !asked.again);
        self.requested(if again { "poweroff" } else { "stop" });
        self.stop(again.then_some(0), false);
    }

    /// Ends the guest, by power button or at once, and boots it `again` or not.
    pub(super) fn stop(&mut self, timeout_ms: Option<u64>, again: bool) {
        let timeout = timeout_ms.map_or(self.config.stop_timeout, Duration::from_millis);
        match &mut self.stage {
            Stage::Ending | Stage::Done => {}
            // The requested boot is already under way.
            Stage::PreStart(_) | Stage::Booting { .. } if again => {}
            Stage::Waiting { .. } if again => self.begin_boot(false),
            Stage::Waiting { .. } => {
                self.stop_way = Some(StopWay::NotRunning);
                self.end();
            }
            Stage::PreStart(_) | Stage::CrashHooks { .. } => self.ask(Asked::plain(StopWay::NotRunning, again, timeout)),
            Stage::Booting { .. } => self.power_off(StopWay::PoweredOff, again),
            Stage::Running(_) if timeout.is_zero() => self.power_off(StopWay::PoweredOff, again),
            Stage::Running(boot) => match &mut boot.asked {
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
        if let Some(slot) = self.stage.asked_mut() {
            *slot = Some(asked);
        }
        self.set_phase(Phase::Stopping);
    }

    /// Sends a command to the engine, if there is one.
    fn command(&mut self, command: &EngineCommand) {
        if let Some(engine) = self.stage.engine_mut() {
            engine.command(command);
        }
    }

    /// Continues after the hooks before the power button.
    pub(super) fn pre_stop_done(&mut self, fatal: Option<String>) {
        let asked = self.stage.asked_mut().and_then(Option::as_mut);
        let Some(asked) = asked.filter(|asked| asked.hooks_first) else { return };
        if let Some(words) = fatal {
            self.stage.forget_asked();
            self.set_phase(Phase::Running);
            let hint = Some(format!("`vmctl stop --force {}` stops it without the hooks", self.guest.name()));
            let reply = Reply::Error { message: words, hint };
            return self.answer_all(|purpose| matches!(purpose, Purpose::Stop | Purpose::Running), &reply);
        }
        asked.hooks_first = false;
        let now = Instant::now();
        asked.power_off_at = now.checked_add(asked.timeout);
        asked.press_at = Some(now + PRESS_AGAIN);
        self.command(&EngineCommand::PowerButton);
        // A guest without anything that listens for the button is shut down by its agent.
        if let Some(boot) = self.stage.boot().filter(|boot| boot.readiness.agent_answered)
            && let Some(agent) = &boot.agent
        {
            agent.shut_down();
        }
    }

    fn power_off(&mut self, way: StopWay, again: bool) {
        let again = again && self.stage.asked().is_none_or(|asked| asked.again);
        self.ask(Asked { kill_at: Some(Instant::now() + END_PATIENCE), ..Asked::plain(way, again, Duration::ZERO) });
        self.command(&EngineCommand::Poweroff);
    }

    fn reset(&mut self, at: usize) {
        if !self.stage.is_running() {
            let message = "the guest does not run at this moment".to_owned();
            return self.clients[at].answer(&start_error_reply(message));
        }
        self.requested("reset");
        self.clients[at].purpose = Purpose::Running;
        if self.stage.asked().is_some_and(|asked| !asked.again) {
            return self.clients[at].answer(&start_error_reply("the guest is being stopped".into()));
        }
        self.ask(Asked {
            kill_at: Some(Instant::now() + END_PATIENCE),
            ..Asked::plain(StopWay::PoweredOff, true, Duration::ZERO)
        });
        self.command(&EngineCommand::Reset);
    }

    /// Saves the guest, without a time-out, and stops it.
    fn suspend(&mut self, at: usize) {
        let boot = self.stage.boot().filter(|boot| self.stage.is_running() && boot.asked.is_none());
        let Some(boot) = boot else {
            let message = "the guest does not run, or is being stopped, at this moment".to_owned();
            return self.clients[at].answer(&start_error_reply(message));
        };
        if boot.install.is_some() {
            // The saved state would need the medium, which the next boot does not have.
            let message = "the guest is being installed, and what would be saved needs the medium".to_owned();
            return self.clients[at].answer(&start_error_reply(message));
        }
        self.requested("suspend");
        self.clients[at].purpose = Purpose::Stop;
        self.ask(Asked::plain(StopWay::Suspended, false, Duration::ZERO));
        self.command(&EngineCommand::Suspend);
    }

    /// Handles a failure to save the guest, which continues.
    pub(super) fn not_suspended(&mut self, message: String) {
        if self.stage.asked().is_some_and(|asked| asked.way == StopWay::Suspended) {
            self.stage.forget_asked();
            self.set_phase(Phase::Running);
            self.answer_all(|purpose| purpose == Purpose::Stop, &start_error_reply(message));
        }
    }

    fn kill(&mut self) {
        match self.stage.engine_mut() {
            Some(engine) => {
                engine.kill();
                self.ask(Asked::plain(StopWay::Killed, false, Duration::ZERO));
            }
            None => self.stop(Some(0), false),
        }
    }

    /// Does what is due for a request.
    pub(super) fn press_on(&mut self, now: Instant) {
        let Some(asked) = self.stage.asked_mut().and_then(Option::as_mut) else { return };
        if asked.power_off_at.is_some_and(|at| now >= at) {
            (asked.power_off_at, asked.kill_at, asked.way) = (None, Some(now + END_PATIENCE), StopWay::TimedOut);
            asked.press_at = None;
            let after_seconds = asked.timeout.as_secs();
            self.command(&EngineCommand::Poweroff);
            return self.emit(EventKind::StopTimedOut { after_seconds });
        }
        let (presses, kills) = (asked.press_at.is_some_and(|at| now >= at), asked.kill_at.is_some_and(|at| now >= at));
        if presses {
            asked.press_at = Some(now + PRESS_AGAIN);
        }
        if kills {
            asked.kill_at = None;
        }
        // The first press may have come before the guest could handle it.
        if presses {
            self.command(&EngineCommand::PowerButton);
        }
        if let Some(engine) = self.stage.engine_mut().filter(|_| kills) {
            engine.kill();
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
