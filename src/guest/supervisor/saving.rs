//! Writing the guest's state on a file system that may be full, and the end of the supervisor.

use std::time::{Duration, Instant};

use crate::guest::control::{Reply, StopWay};
use crate::guest::engine;
use crate::guest::error::Result;
use crate::guest::events::EventKind;
use crate::guest::state::Phase;
use crate::guest::timestamp::{BootTime, Timestamp};

use super::clients::{Client, Purpose};
use super::restart::ExitReason;
use super::{Ending, Supervisor, note, start_error_reply};

/// Time between two attempts to write.
const SAVE_AGAIN: Duration = Duration::from_secs(5);

impl Supervisor {
    pub(super) fn set_phase(&mut self, phase: Phase) {
        if let Some(run) = &mut self.state.run {
            (run.phase, run.since, run.since_boot) = (phase, Timestamp::now(), Some(BootTime::now()));
        }
        self.save_run();
    }

    pub(super) fn save_run(&mut self) {
        if let Err(error) = self.state.save_run(&self.guest.state_file()) {
            note(&error.chain());
            self.save_at.get_or_insert(Instant::now() + SAVE_AGAIN);
        }
    }

    pub(super) fn save(&self) -> Result<()> {
        self.state.save(&self.guest.state_file())
    }

    /// Writes the state, or notes that it must still be written, like the event log.
    pub(super) fn save_or_later(&mut self) {
        let before = self.save_at.take();
        match self.save() {
            Ok(()) if before.is_some() => self.save_run(),
            Ok(()) => {}
            Err(error) => {
                self.save_at = Some(Instant::now() + SAVE_AGAIN);
                if before.is_none() {
                    note(&error.chain());
                    self.emit(EventKind::LogLost { message: format!("{}; it is written when it can be", error.chain()) });
                }
            }
        }
    }

    /// Writes the state for the last time. It removes this process's own files to make room on a full file system, so
    /// that a failure can be seen afterwards.
    fn save_at_last(&mut self) {
        let saved = self.save().is_ok();
        self.state.run = None;
        self.save_run();
        if saved || self.save().is_ok() {
            return;
        }
        let _ = std::fs::remove_file(self.guest.spec_file());
        if let Err(error) = self.save() {
            note(&error.chain());
        }
    }

    /// Releases the guest, answers the waiting clients, and ends.
    pub(super) fn finish(&mut self) -> Result<Ending> {
        self.emit(EventKind::Stopped);
        // An engine that was killed could not clean up.
        if let Err(error) = engine::sweep(&self.guest) {
            note(&error.chain());
        }
        self.save_at_last();
        let _ = std::fs::remove_file(self.guest.socket());
        // Take the clients that have connected so far: no more can.
        self.accept();
        self.listener = None;
        // The lock is released before the answers, since a client that gets one may start the guest at once.
        self.lock = None;
        let how = self.stop_way.unwrap_or(StopWay::NotRunning);
        let reason = self.last_exit.filter(|_| how == StopWay::Otherwise).map(ExitReason::words);
        let stopped = Reply::Stopped { how, reason };
        let other = start_error_reply("the guest has stopped".into());
        self.answer_all(|purpose| purpose == Purpose::Stop, &stopped);
        self.answer_all(
            |purpose| {
                matches!(
                    purpose,
                    Purpose::Ready(_)
                        | Purpose::Login(_)
                        | Purpose::Agent(_)
                        | Purpose::Running
                        | Purpose::Stats
                        | Purpose::Execute(_)
                        | Purpose::Forward { .. }
                )
            },
            &other,
        );
        self.answer_latecomers(&stopped, &other);
        let until = Instant::now() + Duration::from_secs(2);
        while self.clients.iter().any(Client::has_output) && Instant::now() < until {
            for client in &mut self.clients {
                client.flush();
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        match (self.start_failure.take(), self.failure.take()) {
            (Some(error), _) => Err(error),
            (None, Some(reason)) => Ok(Ending::Failed(reason)),
            (None, None) => Ok(Ending::Stopped(self.last_exit)),
        }
    }
}
