//! What is told while something is fetched, and how it is broken off.

use std::sync::atomic::{AtomicU64, Ordering};

use super::error::{FetchError, Result};

/// Something that happened to one job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event<'a> {
    /// A step begins: `downloading`, `unpacking`, `converting`, `checking`, `building`. `done` of `total` bytes are
    /// there already; no total where it is not known.
    Step {
        /// What is done.
        step: &'a str,
        /// Bytes in all.
        total: Option<u64>,
        /// Bytes that are done already.
        done: u64,
    },
    /// So many bytes of the step are done.
    At(u64),
    /// Something that the user should know: a mirror that failed, a download that goes on.
    Note(&'a str),
    /// The job is over, well or not.
    End,
}

/// Whoever listens. Jobs may come from several threads at once.
pub trait Progress: Sync {
    /// Something happened to the job of that name.
    fn event(&self, job: &str, event: Event<'_>);
    /// Whether the user broke it off.
    fn cancelled(&self) -> bool {
        false
    }
}

/// Nobody listens.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Progress for Silent {
    fn event(&self, _job: &str, _event: Event<'_>) {}
}

/// Bytes after which a listener is told again.
const GRAIN: u64 = 1 << 20;

/// One thing that is being fetched.
pub struct Job<'a> {
    name: &'a str,
    progress: &'a dyn Progress,
    told: AtomicU64,
}

impl<'a> Job<'a> {
    /// Begins a job.
    pub fn new(name: &'a str, progress: &'a dyn Progress) -> Self {
        Self { name, progress, told: AtomicU64::new(0) }
    }
    /// What it is called.
    pub fn name(&self) -> &str {
        self.name
    }
    /// A step begins.
    pub fn step(&self, step: &str, total: Option<u64>, done: u64) {
        self.told.store(done, Ordering::Relaxed);
        self.progress.event(self.name, Event::Step { step, total, done });
    }
    /// So much of the step is done. Threads may tell this out of order.
    pub fn at(&self, done: u64) {
        let told = self.told.fetch_max(done, Ordering::Relaxed);
        if done / GRAIN > told / GRAIN {
            self.progress.event(self.name, Event::At(done));
        }
    }
    /// Something the user should know.
    pub fn note(&self, words: &str) {
        self.progress.event(self.name, Event::Note(words));
    }
    /// An error once the user broke it off.
    pub fn check(&self) -> Result<()> {
        if self.progress.cancelled() { Err(FetchError::interrupted()) } else { Ok(()) }
    }
}

impl Drop for Job<'_> {
    fn drop(&mut self) {
        self.progress.event(self.name, Event::End);
    }
}
