//! The decision after an exit: the policy of the guest file, the crash limit and the back-off.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::config::{ExitAction, RestartConfig};
use crate::guest::control::StopWay;
use crate::units::format_duration;

const SIGKILL: i32 = nix::sys::signal::Signal::SIGKILL as i32;

/// Reason of an engine's exit.
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
    /// Code 1, since the supervisor had the machine powered off.
    PoweredOff,
    /// The same, after a power button that the guest did not obey in time.
    TimedOut,
    /// Code 1 for a power button that the guest could not notice: it had not enabled ACPI.
    NoAcpi,
    /// Code 0, since the supervisor had the machine reset.
    Reset,
    /// The supervisor killed the engine.
    Killed,
}

impl ExitReason {
    /// Returns the reason for an exit code. `debug` is the value that the guest wrote to the debug-exit port, if it
    /// did.
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

    /// Returns the real reason, which the exit code alone does not tell: it depends on the supervisor's request, and on
    /// whether the engine reported that the guest could not notice the power button.
    pub fn in_truth(self, asked: Option<StopWay>, no_acpi: bool) -> ExitReason {
        match (self, asked) {
            (_, Some(StopWay::Killed)) => ExitReason::Killed,
            (ExitReason::Signal(SIGKILL), Some(_)) => ExitReason::Killed,
            (ExitReason::PowerOff, _) if no_acpi => ExitReason::NoAcpi,
            (ExitReason::PowerOff, Some(StopWay::TimedOut)) => ExitReason::TimedOut,
            (ExitReason::PowerOff, Some(StopWay::PoweredOff)) => ExitReason::PoweredOff,
            (ExitReason::Reboot, Some(StopWay::PoweredOff)) => ExitReason::Reset,
            (reason, _) => reason,
        }
    }

    /// Returns the result for the client that requested the end.
    pub fn stop_way(self, asked: StopWay) -> StopWay {
        match self {
            ExitReason::PowerOff | ExitReason::Halt => StopWay::PowerButton,
            ExitReason::Suspended => StopWay::Suspended,
            ExitReason::PoweredOff | ExitReason::TimedOut => asked,
            ExitReason::NoAcpi => StopWay::NoAcpi,
            ExitReason::Killed => StopWay::Killed,
            _ => StopWay::Otherwise,
        }
    }

    /// Returns one word for programs.
    pub fn kind(self) -> &'static str {
        match self {
            ExitReason::Reboot => "reboot",
            ExitReason::PowerOff => "power-off",
            ExitReason::Halt => "halt",
            ExitReason::TripleFault => "triple-fault",
            ExitReason::Error => "error",
            ExitReason::Suspended => "suspended",
            ExitReason::Debug(_) => "debug-exit",
            ExitReason::Unknown(_) => "unknown",
            ExitReason::Signal(_) => "signal",
            ExitReason::PoweredOff => "powered-off",
            ExitReason::TimedOut => "timed-out",
            ExitReason::NoAcpi => "no-acpi",
            ExitReason::Reset => "reset",
            ExitReason::Killed => "killed",
        }
    }

    /// Returns words for users.
    pub fn words(self) -> String {
        match self {
            ExitReason::PoweredOff => "it was powered off".into(),
            ExitReason::TimedOut => StopWay::TimedOut.words().into(),
            ExitReason::NoAcpi => StopWay::NoAcpi.words().into(),
            ExitReason::Reset => "it was reset".into(),
            ExitReason::Killed => "the engine was killed".into(),
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

    /// Returns whether it counts as a crash.
    pub fn is_crash(self) -> bool {
        matches!(self, ExitReason::TripleFault | ExitReason::Error | ExitReason::Unknown(_) | ExitReason::Signal(_))
    }
}

/// A guest that reboots sooner than this after its start may be in a loop.
const SOON: Duration = Duration::from_secs(10);

/// Decision about the next step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Boot again, after a wait.
    Restart(Duration),
    /// Leave it stopped.
    Stop,
    /// Fail, since the crash limit is reached.
    Fail(String),
}

/// The crashes and early reboots that still count.
#[derive(Debug, Default)]
pub struct CrashHistory {
    crashes: VecDeque<Instant>,
}

impl CrashHistory {
    /// Decides after an exit at `now` of a guest that `ran` for this long.
    pub fn decide(&mut self, reason: ExitReason, policy: &RestartConfig, now: Instant, ran: Duration) -> Decision {
        let action = match reason {
            ExitReason::Reboot | ExitReason::Reset => policy.on_reboot,
            ExitReason::PowerOff | ExitReason::Halt | ExitReason::PoweredOff | ExitReason::TimedOut | ExitReason::NoAcpi => {
                policy.on_poweroff
            }
            ExitReason::Suspended | ExitReason::Debug(_) | ExitReason::Killed => ExitAction::Stop,
            _ => policy.on_crash,
        };
        match action {
            ExitAction::Stop => Decision::Stop,
            ExitAction::Restart if reason.is_crash() => self.count(&reason.words(), policy, now, 0),
            // A guest may have a reason to reboot at once, but not repeatedly: then it waits, as after a crash.
            ExitAction::Restart if ran < SOON => {
                let words = format!("{} sooner than {} after its start", reason.words(), format_duration(SOON));
                self.count(&words, policy, now, 1)
            }
            ExitAction::Restart => Decision::Restart(Duration::ZERO),
        }
    }

    /// Counts an exit that must not repeat forever. The first `free` ones need no wait.
    fn count(&mut self, words: &str, policy: &RestartConfig, now: Instant, free: u32) -> Decision {
        while self.crashes.front().is_some_and(|at| now.duration_since(*at) > policy.window) {
            self.crashes.pop_front();
        }
        let restarts = self.crashes.len() as u32;
        if policy.limit != 0 && restarts >= policy.limit {
            let window = format_duration(policy.window);
            return Decision::Fail(format!("{words}; restarted {restarts} times within {window}, the limit"));
        }
        self.crashes.push_back(now);
        // With `limit = 0` the history must not grow without bound. The wait has reached its maximum before.
        if self.crashes.len() > 1024 {
            self.crashes.pop_front();
        }
        let Some(doublings) = restarts.checked_sub(free) else { return Decision::Restart(Duration::ZERO) };
        let doubled = policy.backoff_initial.saturating_mul(1u32.checked_shl(doublings).unwrap_or(u32::MAX));
        Decision::Restart(doubled.min(policy.backoff_max))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(3600);

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
    fn an_end_is_the_guests_own_only_if_nobody_forced_it() {
        use StopWay as Way;
        let ends = [
            (ExitReason::PowerOff, None, false, ExitReason::PowerOff, Way::PowerButton),
            (ExitReason::PowerOff, Some(Way::PowerButton), false, ExitReason::PowerOff, Way::PowerButton),
            (ExitReason::PowerOff, Some(Way::PowerButton), true, ExitReason::NoAcpi, Way::NoAcpi),
            (ExitReason::PowerOff, Some(Way::TimedOut), true, ExitReason::NoAcpi, Way::NoAcpi),
            (ExitReason::PowerOff, Some(Way::TimedOut), false, ExitReason::TimedOut, Way::TimedOut),
            (ExitReason::PowerOff, Some(Way::PoweredOff), false, ExitReason::PoweredOff, Way::PoweredOff),
            (ExitReason::Reboot, Some(Way::PoweredOff), false, ExitReason::Reset, Way::Otherwise),
            (ExitReason::Reboot, Some(Way::PowerButton), false, ExitReason::Reboot, Way::Otherwise),
            (ExitReason::TripleFault, Some(Way::PowerButton), false, ExitReason::TripleFault, Way::Otherwise),
            (ExitReason::TripleFault, Some(Way::PowerButton), true, ExitReason::TripleFault, Way::Otherwise),
            (ExitReason::Signal(9), Some(Way::TimedOut), false, ExitReason::Killed, Way::Killed),
            (ExitReason::PowerOff, Some(Way::Suspended), false, ExitReason::PowerOff, Way::PowerButton),
            (ExitReason::Suspended, Some(Way::Suspended), false, ExitReason::Suspended, Way::Suspended),
        ];
        for (code, asked, no_acpi, reason, way) in ends {
            assert_eq!(code.in_truth(asked, no_acpi), reason, "{code:?} {asked:?}");
            assert_eq!(reason.stop_way(asked.unwrap_or(Way::PowerButton)), way, "{code:?} {asked:?}");
        }
    }

    #[test]
    fn crashes_wait_longer_each_time_and_the_limit_ends_them() {
        let mut history = CrashHistory::default();
        let now = Instant::now();
        let waits: Vec<_> = (0..6).map(|_| history.decide(ExitReason::TripleFault, &policy(), now, LONG)).collect();
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
            assert_eq!(history.decide(ExitReason::Signal(9), &policy(), now, LONG), Decision::Restart(Duration::from_secs(1)));
        }
    }

    #[test]
    fn without_a_limit_it_goes_on_and_the_memory_of_it_is_bounded() {
        let mut history = CrashHistory::default();
        let unlimited = RestartConfig { limit: 0, ..policy() };
        for _ in 0..3000 {
            assert!(matches!(history.decide(ExitReason::Error, &unlimited, Instant::now(), LONG), Decision::Restart(_)));
        }
        assert!(history.crashes.len() <= 1024);
    }

    #[test]
    fn a_reboot_loop_waits_longer_each_time_and_the_limit_ends_it() {
        let (mut history, now, soon) = (CrashHistory::default(), Instant::now(), Duration::from_secs(3));
        let waits: Vec<_> = (0..6).map(|_| history.decide(ExitReason::Reboot, &policy(), now, soon)).collect();
        let seconds = |s| Decision::Restart(Duration::from_secs(s));
        assert_eq!(waits[..5], [seconds(0), seconds(1), seconds(2), seconds(4), seconds(8)]);
        let Decision::Fail(reason) = &waits[5] else { panic!("{:?}", waits[5]) };
        assert_eq!(reason, "the guest rebooted sooner than 10s after its start; restarted 5 times within 10m, the limit");
        assert_eq!(history.decide(ExitReason::Reboot, &policy(), now, LONG), seconds(0), "one that ran is in no loop");
        let always = RestartConfig { on_poweroff: ExitAction::Restart, limit: 0, ..policy() };
        assert_eq!(history.decide(ExitReason::PowerOff, &always, now, soon), seconds(10), "without a limit it waits");
    }

    #[test]
    fn reboots_are_no_crashes_and_policies_hold_for_each_exit() {
        let mut history = CrashHistory::default();
        for _ in 0..100 {
            assert_eq!(history.decide(ExitReason::Reboot, &policy(), Instant::now(), LONG), Decision::Restart(Duration::ZERO));
        }
        assert_eq!(history.decide(ExitReason::PowerOff, &policy(), Instant::now(), LONG), Decision::Stop);
        assert_eq!(history.decide(ExitReason::Halt, &policy(), Instant::now(), LONG), Decision::Stop);
        let always = RestartConfig { on_poweroff: ExitAction::Restart, on_reboot: ExitAction::Stop, ..policy() };
        assert_eq!(history.decide(ExitReason::PowerOff, &always, Instant::now(), LONG), Decision::Restart(Duration::ZERO));
        assert_eq!(history.decide(ExitReason::Reboot, &always, Instant::now(), LONG), Decision::Stop);
        assert_eq!(history.decide(ExitReason::Debug(1), &always, Instant::now(), LONG), Decision::Stop);
    }
}
