//! Stages of the supervisor. A stage owns the state of its boot, which is created for each boot and dropped with its
//! stage: nothing of an earlier boot can be left in it.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::guest::agent::service::Agent;
use crate::guest::control::StopWay;
use crate::guest::engine::{Engine, RunningEngine};
use crate::guest::error::GuestError;
use crate::guest::install::Install;

use super::ready::Readiness;
use super::restart::ExitReason;

/// Number of bytes of an engine's output that are shown when a start fails.
const LAST_WORDS: usize = 4096;

/// Event that the supervisor waits for.
pub(super) enum Stage {
    /// The end of the hooks before a boot.
    PreStart(Preparation),
    /// The engine's report that the guest runs.
    Booting {
        /// The boot.
        boot: Box<Boot>,
        /// Time at which the engine is killed.
        until: Instant,
    },
    /// The guest's end.
    Running(Box<Boot>),
    /// The end of the hooks after a crash.
    CrashHooks {
        /// Reason of the end of the boot.
        reason: ExitReason,
        /// Time for which the guest ran.
        ran: Duration,
        /// A request since then.
        asked: Option<Asked>,
    },
    /// The next boot.
    Waiting {
        /// Time at which it begins.
        until: Instant,
    },
    /// The end of the hooks after the guest's end.
    Ending,
    /// Nothing.
    Done,
}

/// A boot whose engine is not started yet. Its parts move into the [`Boot`].
pub(super) struct Preparation {
    /// The engine.
    pub(super) maker: Box<dyn Engine>,
    /// The installer's run of this boot.
    pub(super) install: Option<Install>,
    /// A request since then.
    pub(super) asked: Option<Asked>,
}

/// A boot, from the start of its engine to the engine's end.
pub(super) struct Boot {
    /// Its number, which tells messages of its helpers from those of an earlier boot.
    pub(super) number: u64,
    /// The installer's run of this boot.
    pub(super) install: Option<Install>,
    /// The engine's child.
    pub(super) engine: RunningEngine,
    /// Whether the engine's process has ended. Its status is then still to be read.
    pub(super) engine_ended: bool,
    /// Whether the stream of the guest's console is open.
    pub(super) console_open: bool,
    /// Whether the stream of the engine's events is open.
    pub(super) control_open: bool,
    /// The engine's error message.
    pub(super) engine_error: Option<String>,
    /// Value that the guest wrote to the debug-exit port.
    pub(super) debug_exit: Option<u8>,
    /// Whether the engine reported that the guest could not notice the power button.
    pub(super) no_acpi: bool,
    /// The last part of the engine's standard error.
    pub(super) last_words: LastWords,
    /// Time at which the guest began to run.
    pub(super) running_since: Option<Instant>,
    /// The guest's agent, once the guest runs.
    pub(super) agent: Option<Agent>,
    /// Progress towards being ready.
    pub(super) readiness: Readiness,
    /// A request, which overrides the policy at this boot's end.
    pub(super) asked: Option<Asked>,
}

impl Boot {
    /// Creates a boot whose engine was just started.
    pub(super) fn new(number: u64, install: Option<Install>, engine: RunningEngine, readiness: Readiness) -> Boot {
        Boot {
            number,
            install,
            engine,
            engine_ended: false,
            console_open: true,
            control_open: true,
            engine_error: None,
            debug_exit: None,
            no_acpi: false,
            last_words: LastWords::default(),
            running_since: None,
            agent: None,
            readiness,
            asked: None,
        }
    }
}

/// The last part of an engine's output.
#[derive(Default)]
pub(super) struct LastWords(VecDeque<u8>);

impl LastWords {
    pub(super) fn add(&mut self, bytes: &[u8]) {
        self.0.extend(&bytes[bytes.len().saturating_sub(LAST_WORDS)..]);
        let surplus = self.0.len().saturating_sub(LAST_WORDS);
        self.0.drain(..surplus);
    }

    /// Returns the error of a failed start: `words`, and the last part of the engine's output.
    pub(super) fn explain(&self, words: &str) -> GuestError {
        let text: Vec<u8> = self.0.iter().copied().collect();
        let said = String::from_utf8_lossy(&text).trim().to_owned();
        match said.is_empty() {
            true => GuestError::host(words.to_owned()),
            false => GuestError::host(format!("{words}; its output:\n{said}")),
        }
    }
}

/// A request, which overrides the policy at the next exit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Asked {
    /// The way in which the guest is ended.
    pub(super) way: StopWay,
    /// Whether to boot again afterwards.
    pub(super) again: bool,
    /// Time that the guest has after the power button.
    pub(super) timeout: Duration,
    /// Whether the hooks before the power button still run. It is pressed after them.
    pub(super) hooks_first: bool,
    /// When the power button is pressed again, since a guest that is still booting does not notice it.
    pub(super) press_at: Option<Instant>,
    /// When the guest is powered off.
    pub(super) power_off_at: Option<Instant>,
    /// When the engine is killed.
    pub(super) kill_at: Option<Instant>,
}

impl Asked {
    /// Creates a request to end the guest in this way, without any time-out.
    pub(super) fn plain(way: StopWay, again: bool, timeout: Duration) -> Asked {
        Asked { way, again, timeout, hooks_first: false, press_at: None, power_off_at: None, kill_at: None }
    }

    /// Applies a further request to end the guest, within `timeout` from now.
    pub(super) fn hurry(&mut self, timeout: Duration, now: Instant) {
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
}

impl Stage {
    /// Returns whether the guest runs.
    pub(super) fn is_running(&self) -> bool {
        matches!(self, Stage::Running(_))
    }

    /// Returns the boot whose engine was started, until its end.
    pub(super) fn boot(&self) -> Option<&Boot> {
        match self {
            Stage::Booting { boot, .. } | Stage::Running(boot) => Some(boot),
            _ => None,
        }
    }

    pub(super) fn boot_mut(&mut self) -> Option<&mut Boot> {
        match self {
            Stage::Booting { boot, .. } | Stage::Running(boot) => Some(boot),
            _ => None,
        }
    }

    /// Returns the engine's child.
    pub(super) fn engine_mut(&mut self) -> Option<&mut RunningEngine> {
        self.boot_mut().map(|boot| &mut boot.engine)
    }

    /// Takes the boot that is being prepared. The caller sets the next stage.
    pub(super) fn take_preparation(&mut self) -> Option<Preparation> {
        match std::mem::replace(self, Stage::Ending) {
            Stage::PreStart(preparation) => Some(preparation),
            other => {
                *self = other;
                None
            }
        }
    }

    /// Takes the boot that has not begun to run. The caller sets the next stage.
    pub(super) fn take_booting(&mut self) -> Option<Box<Boot>> {
        match self {
            Stage::Booting { .. } => self.take_boot(),
            _ => None,
        }
    }

    /// Takes the boot. The caller sets the next stage.
    pub(super) fn take_boot(&mut self) -> Option<Box<Boot>> {
        match std::mem::replace(self, Stage::Ending) {
            Stage::Booting { boot, .. } | Stage::Running(boot) => Some(boot),
            other => {
                *self = other;
                None
            }
        }
    }

    /// Returns the request.
    pub(super) fn asked(&self) -> Option<Asked> {
        match self {
            Stage::PreStart(preparation) => preparation.asked,
            Stage::Booting { boot, .. } | Stage::Running(boot) => boot.asked,
            Stage::CrashHooks { asked, .. } => *asked,
            Stage::Waiting { .. } | Stage::Ending | Stage::Done => None,
        }
    }

    /// Returns the place of a request, in a stage that accepts one.
    pub(super) fn asked_mut(&mut self) -> Option<&mut Option<Asked>> {
        match self {
            Stage::PreStart(preparation) => Some(&mut preparation.asked),
            Stage::Booting { boot, .. } | Stage::Running(boot) => Some(&mut boot.asked),
            Stage::CrashHooks { asked, .. } => Some(asked),
            Stage::Waiting { .. } | Stage::Ending | Stage::Done => None,
        }
    }

    /// Drops the request.
    pub(super) fn forget_asked(&mut self) {
        if let Some(asked) = self.asked_mut() {
            *asked = None;
        }
    }
}
