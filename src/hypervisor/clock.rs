//! Time as the guest sees it: nanoseconds since the machine was powered on.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::time::{ClockId, clock_gettime};

/// Frequency of a guest's time-stamp counter, which never changes while the guest runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TscFrequency {
    khz: NonZeroU32,
}

impl TscFrequency {
    /// One tick a nanosecond: the counter is the machine's time.
    pub const NANOSECONDS: TscFrequency = TscFrequency { khz: NonZeroU32::new(1_000_000).expect("it is not zero") };

    /// Returns the frequency of `khz` thousand ticks a second, unless that is zero.
    #[cfg_attr(not(any(all(target_os = "linux", target_arch = "x86_64"), test)), allow(dead_code, reason = "only KVM tells it"))]
    pub fn from_khz(khz: u32) -> Option<TscFrequency> {
        NonZeroU32::new(khz).map(|khz| TscFrequency { khz })
    }

    /// Returns the number of thousand ticks a second.
    pub const fn khz(self) -> u32 {
        self.khz.get()
    }

    /// Returns the ticks in `ns` nanoseconds, rounded down.
    #[inline]
    pub const fn ticks(self, ns: u64) -> u64 {
        (ns as u128 * self.khz() as u128 / 1_000_000) as u64
    }

    /// Returns the nanoseconds in `ticks`, rounded down; the longest time there is if they are more.
    #[inline]
    pub const fn ns(self, ticks: u64) -> u64 {
        let ns = ticks as u128 * 1_000_000 / self.khz() as u128;
        if ns > u64::MAX as u128 { u64::MAX } else { ns as u64 }
    }

    /// Returns multiplier and shift by which kvmclock's readers make nanoseconds of ticks, `(ticks << shift) * multiplier >>
    /// 32`, with as many bits as there are (Linux, Documentation/virt/kvm/x86/msr.rst, MSR_KVM_SYSTEM_TIME_NEW).
    pub fn kvmclock_scale(self) -> (u32, i8) {
        // The multiplier without a shift, and 32 bits more.
        let scale = (1_000_000u128 << 64) / u128::from(self.khz());
        let shift = 64 - scale.leading_zeros() as i8;
        ((scale >> (32 + shift)) as u32, shift)
    }
}

/// A monotonic clock, and the wall clock that it was started at.
pub trait Clock: Send + Sync {
    /// Returns the nanoseconds since the machine's power-on. The value never decreases.
    fn now_ns(&self) -> u64;
    /// Returns the nanoseconds since the Unix epoch, at the moment that `now_ns` returns now.
    fn unix_ns(&self) -> u64;
    /// Returns how much of `now_ns` the host slept. No guest could run in that time.
    fn slept_ns(&self) -> u64;
}

/// The clock of the host that also counts while the host sleeps, so that a guest's time is right after a suspend. The
/// guest's TSC, kvmclock and timers all follow it. It is CLOCK_BOOTTIME on Linux (clock_gettime(2)) and CLOCK_MONOTONIC
/// elsewhere, since FreeBSD has no clock that counts a sleep.
pub struct HostClock {
    start: Duration,
    slept_before: Duration,
}

/// The system clock that [`HostClock`] reads.
#[cfg(target_os = "linux")]
const SINCE_BOOT: ClockId = ClockId::CLOCK_BOOTTIME;
#[cfg(not(target_os = "linux"))]
const SINCE_BOOT: ClockId = ClockId::CLOCK_MONOTONIC;

fn read(clock: ClockId) -> Duration {
    clock_gettime(clock).map(Duration::from).unwrap_or_default()
}

/// Returns how long the host has slept since it booted. It reads the clock that stops last, so that the time between
/// the two reads does not count as sleep.
fn slept() -> Duration {
    let all = read(SINCE_BOOT);
    all.saturating_sub(read(ClockId::CLOCK_MONOTONIC))
}

impl HostClock {
    /// Creates a clock that reads zero now.
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

/// A clock that moves only when it is set: for tests, and for the deterministic mode in which retired instructions are
/// time.
pub struct ManualClock {
    now_ns: AtomicU64,
    slept_ns: AtomicU64,
    unix_start_ns: u64,
}

impl ManualClock {
    /// Creates a clock that reads zero, at `unix_start_ns` of the Unix epoch.
    pub fn new(unix_start_ns: u64) -> Arc<ManualClock> {
        Arc::new(ManualClock { now_ns: AtomicU64::new(0), slept_ns: AtomicU64::new(0), unix_start_ns })
    }
    /// Advances the time.
    pub fn advance_ns(&self, ns: u64) {
        self.now_ns.fetch_add(ns, Ordering::Relaxed);
    }
    /// Advances the time as a host does that sleeps.
    pub fn sleep_ns(&self, ns: u64) {
        self.slept_ns.fetch_add(ns, Ordering::Relaxed);
        self.advance_ns(ns);
    }
    /// Sets the time. An earlier time than the present one is ignored.
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
    fn ticks_and_nanoseconds_follow_the_frequency() {
        let own = TscFrequency::NANOSECONDS;
        assert_eq!((own.ticks(u64::MAX), own.ns(u64::MAX), own.kvmclock_scale()), (u64::MAX, u64::MAX, (1 << 31, 1)));
        let host = TscFrequency::from_khz(2_500_000).unwrap();
        assert_eq!((host.ticks(1_000), host.ns(2_500), host.khz()), (2_500, 1_000, 2_500_000));
        let slow = TscFrequency::from_khz(1).unwrap();
        assert_eq!((slow.ticks(999_999), slow.ns(3), slow.ns(u64::MAX)), (0, 3_000_000, u64::MAX));
        assert_eq!(TscFrequency::from_khz(0), None);
        for khz in [1, 999_999, 1_000_001, 2_500_000, 3_693_060, u32::MAX] {
            let frequency = TscFrequency::from_khz(khz).unwrap();
            let (multiplier, shift) = frequency.kvmclock_scale();
            assert!(multiplier >= 1 << 31, "{khz} kHz: {multiplier:#x}");
            let ticks = frequency.ticks(1_000_000_000_000);
            let shifted = if shift < 0 { u128::from(ticks) >> -shift } else { u128::from(ticks) << shift };
            let ns = (shifted * u128::from(multiplier) >> 32) as i128;
            assert!((ns - i128::from(frequency.ns(ticks))).abs() < 1_000, "{khz} kHz: {ns}");
        }
    }

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
        // The clock that counts a sleep is never behind the one that stops.
        assert_eq!(SINCE_BOOT, ClockId::CLOCK_BOOTTIME);
        let monotonic = read(ClockId::CLOCK_MONOTONIC);
        assert!(read(SINCE_BOOT) >= monotonic);
        // A sleep before the clock was made must not count as the guest's.
        let clock = HostClock { start: read(SINCE_BOOT).saturating_sub(Duration::from_secs(10)), slept_before: Duration::ZERO };
        assert!(clock.now_ns() >= 10_000_000_000);
    }
}
