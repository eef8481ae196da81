//! Progress of a fetch, and its cancellation.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use super::error::{self, Result};

/// An event of one job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event<'a> {
    /// A step begins: `downloading`, `unpacking`, `converting`, `checking`, `building`. `done` of `total` bytes exist
    /// already. There is no total if it is not known.
    Step {
        /// Name of the step.
        step: &'a str,
        /// Total number of bytes.
        total: Option<u64>,
        /// Number of bytes that are done already.
        done: u64,
    },
    /// This many bytes of the step are done.
    At(u64),
    /// The last line of a program that does the step.
    Line(&'a str),
    /// A note for the user: a mirror that failed, a download that is resumed.
    Note(&'a str),
    /// The job is over, successfully or not.
    End,
}

/// A listener for events. Jobs may run in several threads at once.
pub trait Progress: Sync {
    /// Handles an event of the job of this name.
    fn event(&self, job: &str, event: Event<'_>);
    /// Returns whether the user interrupted it.
    fn cancelled(&self) -> bool {
        false
    }
}

/// A listener that ignores everything.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Progress for Silent {
    fn event(&self, _job: &str, _event: Event<'_>) {}
}

/// Number of bytes after which the listener gets the next event.
const GRAIN: u64 = 1 << 20;

/// One fetch.
pub struct Job<'a> {
    name: &'a str,
    progress: &'a dyn Progress,
    reported: AtomicU64,
    step: Mutex<String>,
}

impl<'a> Job<'a> {
    /// Begins a job.
    pub fn new(name: &'a str, progress: &'a dyn Progress) -> Self {
        Self { name, progress, reported: AtomicU64::new(0), step: Mutex::default() }
    }
    /// Returns its name.
    pub fn name(&self) -> &str {
        self.name
    }
    /// Begins a step.
    pub fn step(&self, step: &str, total: Option<u64>, done: u64) {
        self.reported.store(done, Ordering::Relaxed);
        step.clone_into(&mut self.step.lock().expect("nothing panics while it is held"));
        self.progress.event(self.name, Event::Step { step, total, done });
    }
    /// Reports how much of the step is done. Threads may report out of order.
    pub fn at(&self, done: u64) {
        let reported = self.reported.fetch_max(done, Ordering::Relaxed);
        if done / GRAIN > reported / GRAIN {
            self.progress.event(self.name, Event::At(done));
        }
    }
    /// Reports the last line of a program that does the step.
    pub fn line(&self, words: &str) {
        self.progress.event(self.name, Event::Line(words));
    }
    /// Reports a note for the user.
    pub fn note(&self, words: &str) {
        self.progress.event(self.name, Event::Note(words));
    }
    /// Returns an error once the user has interrupted the job.
    pub fn check(&self) -> Result<()> {
        match self.progress.cancelled() {
            true => Err(error::interrupted(&self.step.lock().expect("nothing panics while it is held"))),
            false => Ok(()),
        }
    }
}

impl Drop for Job<'_> {
    fn drop(&mut self) {
        self.progress.event(self.name, Event::End);
    }
}
