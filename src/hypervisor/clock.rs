//! Time as the guest sees it: nanoseconds since the machine was powered on.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::time::{ClockId, clock_gettime};

/// A monotonic clock, and the wall clock that it was started at.
pub trait Clock: Send + Sync {
    /// Nanoseconds since the machine's power-on; never goes back.
    fn now_ns(&self) -> u64;
    /// Nanoseconds since the Unix epoch, of the moment `now_ns` returns now.
    fn unix_ns(&self) -> u64;
    /// How much of `now_ns` the host slept, so that no guest could run.
    fn slept_ns(&self) -> u64;
}

/// The host's clock that goes on while the host sleeps, so that a guest's time is right after a suspend: its TSC, its
/// kvmclock and its timers are all this one. On Linux CLOCK_BOOTTIME (clock_gettime(2)); elsewhere CLOCK_MONOTONIC, for
/// FreeBSD has no clock that counts a sleep.
pub struct HostClock {
    start: Duration,
    slept_before: Duration,
}

/// [`HostClock`]'s clock.
#[cfg(target_os = "linux")]
const SINCE_BOOT: ClockId = ClockId::CLOCK_BOOTTIME;
#[cfg(not(target_os = "linux"))]
const SINCE_BOOT: ClockId = ClockId::CLOCK_MONOTONIC;

fn read(clock: ClockId) -> Duration {
    clock_gettime(clock).map(Duration::from).unwrap_or_default()
}

/// How long the host has slept since it booted. The clock that stops is read last, so that nothing between the two reads
/// counts as sleep.
fn slept() -> Duration {
    let all = read(SINCE_BOOT);
    all.saturating_sub(read(ClockId::CLOCK_MONOTONIC))
}

impl HostClock {
    /// A clock that reads zero now.
    pub fn new() -> Arc<HostClock> {
        Arc::new(HostClock { start: read(SINCE_BOOT), slept_before: slept() })
    }
}

impl Clock for HostClock {
    fn now_ns(&self) -> u64 {
        read(SINCE_BOOT).saturating_sub(self.start).as_nanos() as u64
    }
    fn unix_ns(&self) -> u64 {
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64)
    }
    fn slept_ns(&self) -> u64 {
        slept().saturating_sub(self.slept_before).as_nanos() as u64
    }
}

/// A clock that moves only when told: tests, and the deterministic mode in which retired instructions are time.
pub struct ManualClock {
    now_ns: AtomicU64,
    slept_ns: AtomicU64,
    unix_start_ns: u64,
}

impl ManualClock {
    /// A clock that reads zero, at `unix_start_ns` of the Unix epoch.
    pub fn new(unix_start_ns: u64) -> Arc<ManualClock> {
        Arc::new(ManualClock { now_ns: AtomicU64::new(0), slept_ns: AtomicU64::new(0), unix_start_ns })
    }
    /// Moves time on.
    pub fn advance_ns(&self, ns: u64) {
        self.now_ns.fetch_add(ns, Ordering::Relaxed);
    }
    /// Moves time on as a host does that sleeps.
    pub fn sleep_ns(&self, ns: u64) {
        self.slept_ns.fetch_add(ns, Ordering::Relaxed);
        self.advance_ns(ns);
    }
    /// Sets the time; an earlier time than the present one is ignored.
    pub fn set_ns(&self, ns: u64) {
        self.now_ns.fetch_max(ns, Ordering::Relaxed);
    }
}

impl Clock for ManualClock {
    fn now_ns(&self) -> u64 {
        self.now_ns.load(Ordering::Relaxed)
    }
    fn unix_ns(&self) -> u64 {
        self.unix_start_ns + self.now_ns()
    }
    fn slept_ns(&self) -> u64 {
        self.slept_ns.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_clock_starts_at_zero_and_has_not_slept() {
        let clock = HostClock::new();
        let first = clock.now_ns();
        std::thread::sleep(Duration::from_millis(5));
        let second = clock.now_ns();
        assert!(second >= first + 5_000_000, "{first} {second}");
        assert!(second < 60_000_000_000, "{second}");
        assert!(clock.slept_ns() < 1_000_000, "{}", clock.slept_ns());
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn the_time_that_the_host_sleeps_is_the_guests_too() {
        // The clock that goes on: its reading is never behind the one that stops.
        assert_eq!(SINCE_BOOT, ClockId::CLOCK_BOOTTIME);
        let monotonic = read(ClockId::CLOCK_MONOTONIC);
        assert!(read(SINCE_BOOT) >= monotonic);
        // As if it had booted in another stretch: what it slept before its start is not the guest's.
        let clock = HostClock { start: read(SINCE_BOOT).saturating_sub(Duration::from_secs(10)), slept_before: Duration::ZERO };
        assert!(clock.now_ns() >= 10_000_000_000);
    }
}
