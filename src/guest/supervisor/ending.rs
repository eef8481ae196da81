//! The end of a boot: the real reason, the policy, the guest's end.

use std::time::{Duration, Instant};

use crate::config::HookEvent;
use crate::guest::error::GuestError;
use crate::guest::events::EventKind;
use crate::guest::state::{Failure, LastExit, Phase};
use crate::guest::timestamp::Timestamp;

use super::clients::Purpose;
use super::restart::{Decision, ExitReason};
use super::stage::{Asked, Boot, Stage};
use super::{Supervisor, start_error_reply, start_failed};

impl Supervisor {
    /// Handles the end of the engine's process.
    pub(super) fn engine_exited(&mut self, status: std::process::ExitStatus) {
        use std::os::unix::process::ExitStatusExt;
        self.drain_engine();
        let was_running = self.stage.is_running();
        let Some(boot) = self.stage.take_boot() else { return };
        let Boot { engine, readiness, install, engine_error, debug_exit, no_acpi, last_words, running_since, asked, .. } = *boot;
        // Its streams, and the probes, are of no use to the next boot.
        drop((engine, readiness));
        let (code, signal) = (status.code(), status.signal());
        let reason = ExitReason::of(code, signal, debug_exit).in_truth(asked.map(|asked| asked.way), no_acpi);
        let mut words = reason.words();
        if let (Some(error), true) = (&engine_error, reason == ExitReason::Error) {
            words = format!("{words}: {error}");
        }
        let ran = running_since.map_or(Duration::ZERO, |since| since.elapsed());
        self.last_exit = Some(reason);
        self.state.last_exit = Some(LastExit::new(words.clone(), reason.kind(), (code, signal)));
        if let Some(run) = &mut self.state.run {
            (run.engine_pid, run.ready, run.screen, run.confined) = (None, false, None, None);
            (run.agent, run.interfaces) = (false, Vec::new());
        }
        let ended = start_error_reply("the guest ended before the command did".into());
        self.answer_all(|purpose| matches!(purpose, Purpose::Execute(_)), &ended);
        self.emit(EventKind::Exited { reason: words.clone(), kind: reason.kind().to_owned(), code, signal });
        match asked {
            Some(Asked { again: true, .. }) => self.begin_boot(false),
            Some(asked) => {
                self.stop_way = Some(reason.stop_way(asked.way));
                self.end();
            }
            // The first boot ended before the guest ran: the start fails, and nothing is retried.
            None if !was_running && self.started.is_some() => {
                let error = engine_error.map_or_else(|| last_words.explain(&words), GuestError::user);
                self.give_up(error.hint(format!("`vmctl logs --vmm {}` shows what the engine wrote", self.guest.name())));
            }
            None => {
                self.answer_all(|purpose| purpose == Purpose::Running, &start_failed(&words));
                match install.filter(|_| reason.is_crash()) {
                    Some(install) => self.fail(format!("{words}; it was being installed from `{}`", install.medium().display())),
                    None if reason.is_crash() && self.submit_hooks(HookEvent::Crash, &words) => {
                        self.stage = Stage::CrashHooks { reason, ran, asked: None };
                    }
                    None => self.apply_policy(reason, ran),
                }
            }
        }
    }

    pub(super) fn apply_policy(&mut self, reason: ExitReason, ran: Duration) {
        match self.crashes.decide(reason, &self.config.restart, Instant::now(), ran) {
            Decision::Stop => self.end(),
            Decision::Fail(reason) => self.fail(reason),
            Decision::Restart(delay) => {
                self.emit(EventKind::Restarting { delay_ms: delay.as_millis() as u64 });
                if delay.is_zero() {
                    return self.begin_boot(false);
                }
                self.stage = Stage::Waiting { until: Instant::now() + delay };
                self.set_phase(Phase::Waiting);
            }
        }
    }

    /// Handles a boot that cannot even begin: if it is the first one the start fails, otherwise the guest ends.
    pub(super) fn give_up(&mut self, error: GuestError) {
        let words = error.chain();
        self.answer_all(|purpose| purpose == Purpose::Running, &start_failed(&words));
        match self.started.take() {
            Some(started) => {
                if self.last_exit.is_none() {
                    self.state.last_exit = Some(LastExit::new(format!("did not start: {words}"), "not-started", (None, None)));
                }
                started(Err(&error));
                self.start_failure = Some(error);
                self.end();
            }
            None if error.is_full() => self.wait_for_room(&words),
            None => self.fail(words),
        }
    }

    /// Waits since a later boot cannot begin on a full file system. It is tried again for as long as it takes.
    fn wait_for_room(&mut self, words: &str) {
        let delay = self.config.restart.backoff_max;
        self.emit(EventKind::BootDelayed { reason: words.to_owned(), delay_ms: delay.as_millis() as u64 });
        // It does not count as a boot.
        self.state.boots -= 1;
        if let Some(run) = &mut self.state.run {
            run.restarts = run.restarts.saturating_sub(1);
        }
        self.stage = Stage::Waiting { until: Instant::now() + delay };
        self.set_phase(Phase::Waiting);
    }

    pub(super) fn fail(&mut self, reason: String) {
        self.emit(EventKind::Failed { reason: reason.clone() });
        self.state.failed = Some(Failure { reason: reason.clone(), at: Timestamp::now() });
        self.submit_hooks(HookEvent::Failed, &reason);
        self.failure = Some(reason);
        self.end();
    }

    pub(super) fn end(&mut self) {
        let reason = self.state.last_exit.as_ref().map(|exit| exit.reason.clone()).unwrap_or_default();
        self.stage = Stage::Ending;
        self.set_phase(Phase::Stopping);
        self.submit_hooks(HookEvent::PostStop, &reason);
        if self.hooks_pending == 0 {
            self.stage = Stage::Done;
        }
    }
}
