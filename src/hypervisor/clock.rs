//! Time as the guest sees it: nanoseconds since the machine was powered on.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// A monotonic clock, and the wall clock that it was started at.
pub trait Clock: Send + Sync {
    /// Nanoseconds since the machine's power-on; never goes back.
    fn now_ns(&self) -> u64;
    /// Nanoseconds since the Unix epoch, of the moment `now_ns` returns now.
    fn unix_ns(&self) -> u64;
}

/// The host's monotonic clock.
pub struct HostClock {
    start: Instant,
}

impl HostClock {
    /// A clock that reads zero now.
    pub fn new() -> Arc<HostClock> {
        Arc::new(HostClock { start: Instant::now() })
    }
}

impl Clock for HostClock {
    fn now_ns(&self) -> u64 {
        self.start.elapsed().as_nanos() as u64
    }
    fn unix_ns(&self) -> u64 {
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64)
    }
}

/// A clock that moves only when told: tests, and the deterministic mode in which retired instructions are time.
pub struct ManualClock {
    now_ns: AtomicU64,
    unix_start_ns: u64,
}

impl ManualClock {
    /// A clock that reads zero, at `unix_start_ns` of the Unix epoch.
    pub fn new(unix_start_ns: u64) -> Arc<ManualClock> {
        Arc::new(ManualClock { now_ns: AtomicU64::new(0), unix_start_ns })
    }
    /// Moves time on.
    pub fn advance_ns(&self, ns: u64) {
        self.now_ns.fetch_add(ns, Ordering::Relaxed);
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
}
