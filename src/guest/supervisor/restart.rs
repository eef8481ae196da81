//! What follows an exit: the policy of the guest file, the crash limit and the back-off.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::config::{ExitAction, RestartConfig};
use crate::units::format_duration;

/// How an engine ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitReason {
    /// Code 0.
    Reboot,
    /// Code 1.
    PowerOff,
    /// Code 2.
    Halt,
    /// Code 3.
    TripleFault,
    /// Code 4.
    Error,
    /// Code 5.
    Suspended,
    /// The guest wrote this to the debug-exit port.
    Debug(u8),
    /// Another code.
    Unknown(i32),
    /// Ended by a signal.
    Signal(i32),
}

impl ExitReason {
    /// Of an exit code; `debug` is what the guest wrote to the debug-exit port, if it did.
    pub fn of(code: Option<i32>, signal: Option<i32>, debug: Option<u8>) -> ExitReason {
        match (debug, code, signal) {
            (Some(value), Some(code), _) if code == (i32::from(value) << 1 | 1) & 0xff => ExitReason::Debug(value),
            (_, Some(0), _) => ExitReason::Reboot,
            (_, Some(1), _) => ExitReason::PowerOff,
            (_, Some(2), _) => ExitReason::Halt,
            (_, Some(3), _) => ExitReason::TripleFault,
            (_, Some(4), _) => ExitReason::Error,
            (_, Some(5), _) => ExitReason::Suspended,
            (_, Some(code), _) => ExitReason::Unknown(code),
            (_, None, signal) => ExitReason::Signal(signal.unwrap_or(0)),
        }
    }

    /// For people.
    pub fn words(self) -> String {
        match self {
            ExitReason::Reboot => "the guest rebooted".into(),
            ExitReason::PowerOff => "the guest powered off".into(),
            ExitReason::Halt => "the guest halted".into(),
            ExitReason::TripleFault => "triple fault".into(),
            ExitReason::Error => "the engine failed".into(),
            ExitReason::Suspended => "suspended".into(),
            ExitReason::Debug(value) => format!("the guest wrote {value:#x} to the debug-exit port"),
            ExitReason::Unknown(code) => format!("the engine ended with the unknown code {code}"),
            ExitReason::Signal(signal) => match nix::sys::signal::Signal::try_from(signal) {
                Ok(name) => format!("the engine was ended by {name}"),
                Err(_) => format!("the engine was ended by signal {signal}"),
            },
        }
    }

    /// Whether it counts as a crash.
    pub fn is_crash(self) -> bool {
        matches!(self, ExitReason::TripleFault | ExitReason::Error | ExitReason::Unknown(_) | ExitReason::Signal(_))
    }
}

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Boot again, after a wait.
    Restart(Duration),
    /// Leave it stopped.
    Stop,
    /// The crash limit is reached, for this reason.
    Fail(String),
}

/// The crashes that still count.
#[derive(Debug, Default)]
pub struct CrashHistory {
    crashes: VecDeque<Instant>,
}

impl CrashHistory {
    /// What follows an exit at `now`.
    pub fn decide(&mut self, reason: ExitReason, policy: &RestartConfig, now: Instant) -> Decision {
        let action = match reason {
            ExitReason::Reboot => policy.on_reboot,
            ExitReason::PowerOff | ExitReason::Halt => policy.on_poweroff,
            ExitReason::Suspended | ExitReason::Debug(_) => ExitAction::Stop,
            _ => policy.on_crash,
        };
        match action {
            ExitAction::Stop => Decision::Stop,
            ExitAction::Restart if reason.is_crash() => self.crash(reason, policy, now),
            ExitAction::Restart => Decision::Restart(Duration::ZERO),
        }
    }

    fn crash(&mut self, reason: ExitReason, policy: &RestartConfig, now: Instant) -> Decision {
        while self.crashes.front().is_some_and(|at| now.duration_since(*at) > policy.window) {
            self.crashes.pop_front();
        }
        let restarts = self.crashes.len() as u32;
        if policy.limit != 0 && restarts >= policy.limit {
            let window = format_duration(policy.window);
            return Decision::Fail(format!("{}; restarted {restarts} times within {window}, the limit", reason.words()));
        }
        self.crashes.push_back(now);
        // With `limit = 0` the history must not grow without bound; the wait has reached its most long before.
        if self.crashes.len() > 1024 {
            self.crashes.pop_front();
        }
        let doubled = policy.backoff_initial.saturating_mul(1u32.checked_shl(restarts).unwrap_or(u32::MAX));
        Decision::Restart(doubled.min(policy.backoff_max))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy() -> RestartConfig {
        RestartConfig {
            on_reboot: ExitAction::Restart,
            on_poweroff: ExitAction::Stop,
            on_crash: ExitAction::Restart,
            limit: 5,
            window: Duration::from_secs(600),
            backoff_initial: Duration::from_secs(1),
            backoff_max: Duration::from_secs(10),
        }
    }

    #[test]
    fn every_code_has_its_reason() {
        let of = |code| ExitReason::of(Some(code), None, None);
        assert_eq!(
            [of(0), of(1), of(2), of(3), of(4), of(5), of(77)],
            [
                ExitReason::Reboot,
                ExitReason::PowerOff,
                ExitReason::Halt,
                ExitReason::TripleFault,
                ExitReason::Error,
                ExitReason::Suspended,
                ExitReason::Unknown(77)
            ]
        );
        assert_eq!(ExitReason::of(Some(3), None, Some(1)), ExitReason::Debug(1));
        assert_eq!(ExitReason::of(None, Some(9), None), ExitReason::Signal(9));
        assert_eq!(ExitReason::of(None, Some(9), Some(1)), ExitReason::Signal(9));
    }

    #[test]
    fn crashes_wait_longer_each_time_and_the_limit_ends_them() {
        let mut history = CrashHistory::default();
        let now = Instant::now();
        let waits: Vec<_> = (0..6).map(|_| history.decide(ExitReason::TripleFault, &policy(), now)).collect();
        let seconds = |s| Decision::Restart(Duration::from_secs(s));
        assert_eq!(waits[..5], [seconds(1), seconds(2), seconds(4), seconds(8), seconds(10)]);
        assert!(matches!(&waits[5], Decision::Fail(reason) if reason.contains("restarted 5 times within 10")), "{:?}", waits[5]);
    }

    #[test]
    fn a_crash_long_ago_does_not_count() {
        let mut history = CrashHistory::default();
        let start = Instant::now();
        for round in 0..50 {
            let now = start + Duration::from_secs(601) * round;
            assert_eq!(history.decide(ExitReason::Signal(9), &policy(), now), Decision::Restart(Duration::from_secs(1)));
        }
    }

    #[test]
    fn without_a_limit_it_goes_on_and_the_memory_of_it_is_bounded() {
        let mut history = CrashHistory::default();
        let unlimited = RestartConfig { limit: 0, ..policy() };
        for _ in 0..3000 {
            assert!(matches!(history.decide(ExitReason::Error, &unlimited, Instant::now()), Decision::Restart(_)));
        }
        assert!(history.crashes.len() <= 1024);
    }

    #[test]
    fn reboots_are_no_crashes_and_policies_hold_for_each_exit() {
        let mut history = CrashHistory::default();
        for _ in 0..100 {
            assert_eq!(history.decide(ExitReason::Reboot, &policy(), Instant::now()), Decision::Restart(Duration::ZERO));
        }
        assert_eq!(history.decide(ExitReason::PowerOff, &policy(), Instant::now()), Decision::Stop);
        assert_eq!(history.decide(ExitReason::Halt, &policy(), Instant::now()), Decision::Stop);
        let always = RestartConfig { on_poweroff: ExitAction::Restart, on_reboot: ExitAction::Stop, ..policy() };
        assert_eq!(history.decide(ExitReason::PowerOff, &always, Instant::now()), Decision::Restart(Duration::ZERO));
        assert_eq!(history.decide(ExitReason::Reboot, &always, Instant::now()), Decision::Stop);
        assert_eq!(history.decide(ExitReason::Debug(1), &always, Instant::now()), Decision::Stop);
    }
}
