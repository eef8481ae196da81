//! What guests do wrong to devices: counted, and told in a few words.
//!
//! A driver that breaks a rule of its device gets the answer that the device's specification gives it, which a person
//! hardly ever sees: a disk hangs, bytes are missing. So each device reports the rule here. Every report is counted, and the
//! first ones are written to the engine's log.
//!
//! **Hostile guest**: a guest can break rules as often as it can write to a register. At most [`BURST`] notes of a device
//! come at once, and one a [`REFILL`] later on; the next note says how many were left out.

use std::fmt::Display;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Number of notes of one device that may come at once.
const BURST: u32 = 5;
/// Time after which one more note may come.
const REFILL: Duration = Duration::from_secs(60);

/// The writer of notes: lines without a line end.
pub type Note = Arc<dyn Fn(&str) + Send + Sync>;

/// The sink for what a guest does wrong to one device.
pub struct GuestErrors {
    device: String,
    note: Option<Note>,
    count: AtomicU64,
    limiter: Mutex<Limiter>,
}

impl GuestErrors {
    /// Creates the sink of `device`, a name that the user knows. Its notes go to `note`.
    pub fn new(device: impl Into<String>, note: Note) -> Arc<GuestErrors> {
        GuestErrors::with(device.into(), Some(note))
    }

    /// Creates a sink that counts and writes nothing: for a device outside of a machine.
    pub fn silent() -> Arc<GuestErrors> {
        GuestErrors::with(String::new(), None)
    }

    fn with(device: String, note: Option<Note>) -> Arc<GuestErrors> {
        Arc::new(GuestErrors { device, note, count: AtomicU64::new(0), limiter: Mutex::default() })
    }

    /// Counts one error of the guest, and tells `what` it was unless there were many.
    pub fn report(&self, what: &dyn Display) {
        self.count.fetch_add(1, Ordering::Relaxed);
        let Some(note) = &self.note else { return };
        let admitted = self.limiter.lock().unwrap_or_else(PoisonError::into_inner).admit(Instant::now());
        match admitted {
            None => {}
            Some(0) => note(&format!("{}: the guest's driver breaks a rule: {what}", self.device)),
            Some(n) => note(&format!("{}: the guest's driver breaks a rule: {what} ({n} more were not shown)", self.device)),
        }
    }

    /// Returns the number of errors so far.
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }
}

/// A token bucket: [`BURST`] at once, then one a [`REFILL`].
#[derive(Default)]
struct Limiter {
    /// Notes since the bucket was full.
    spent: u32,
    /// When the bucket was looked at, less the part of a [`REFILL`] that has not counted yet.
    since: Option<Instant>,
    left_out: u64,
}

impl Limiter {
    /// Returns the number of notes that were left out since the last one, if one may come at `now`.
    fn admit(&mut self, now: Instant) -> Option<u64> {
        let since = *self.since.get_or_insert(now);
        let refilled = u32::try_from(now.saturating_duration_since(since).as_secs() / REFILL.as_secs()).unwrap_or(u32::MAX);
        if refilled >= self.spent {
            (self.spent, self.since) = (0, Some(now));
        } else {
            self.spent -= refilled;
            self.since = Some(since + REFILL * refilled);
        }
        if self.spent >= BURST {
            self.left_out += 1;
            return None;
        }
        self.spent += 1;
        Some(std::mem::take(&mut self.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_notes_come_at_once_and_later_ones_say_how_many_were_left_out() {
        let mut limiter = Limiter::default();
        let start = Instant::now();
        let admitted = (0..8).map(|_| limiter.admit(start)).collect::<Vec<_>>();
        assert_eq!(admitted, [Some(0), Some(0), Some(0), Some(0), Some(0), None, None, None]);
        assert_eq!(limiter.admit(start + REFILL / 2), None);
        assert_eq!(limiter.admit(start + REFILL), Some(4));
        assert_eq!(limiter.admit(start + REFILL), None, "one for each minute");
        assert_eq!(limiter.admit(start + REFILL * 100), Some(1));
        let after = (0..5).map(|_| limiter.admit(start + REFILL * 100)).collect::<Vec<_>>();
        assert_eq!(after, [Some(0), Some(0), Some(0), Some(0), None], "the bucket holds no more than before");
    }

    #[test]
    fn every_error_is_counted_and_the_first_are_told_with_the_device() {
        let lines = Arc::new(Mutex::new(Vec::new()));
        let heard = Arc::clone(&lines);
        let errors = GuestErrors::new("disk `root`", Arc::new(move |line: &str| heard.lock().unwrap().push(line.to_owned())));
        (0..100).for_each(|i| errors.report(&format_args!("queue {i}")));
        assert_eq!(errors.count(), 100);
        let lines = lines.lock().unwrap();
        assert_eq!(lines.len(), 5);
        assert_eq!(lines[0], "disk `root`: the guest's driver breaks a rule: queue 0");
    }
}
