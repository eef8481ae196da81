//! Progress of long work, and its interruption: bars on a terminal, plain lines elsewhere, nothing with `-q`.
//!
//! SIGINT, SIGTERM and SIGHUP ask the work to stop. It then removes what it cannot use again. A second one ends the
//! process at once.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use nix::sys::signal::{SigSet, Signal};

use super::Ui;
use crate::fetch::{Event, Progress};
use crate::units::ByteSize;

static CANCELLED: AtomicBool = AtomicBool::new(false);
/// Exit status of a process that a signal ended, by the shell's custom.
const INTERRUPTED: i32 = 130;
/// Number of lines for a step of known length that is not shown on a terminal.
const LINES_A_STEP: u64 = 4;

/// Makes signals set [`ProgressDisplay::cancelled`] instead of ending the process. Must be called before there are other threads.
pub fn watch_signals() {
    let signals = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]);
    if signals.thread_block().is_err() {
        return; // then a signal ends the process, and the next run sweeps
    }
    std::thread::spawn(move || {
        while signals.wait().is_ok() {
            if CANCELLED.swap(true, Ordering::SeqCst) {
                std::process::exit(INTERRUPTED);
            }
        }
    });
}

/// Shows the progress of jobs.
pub struct ProgressDisplay<'a> {
    ui: &'a Ui,
    bars: Option<MultiProgress>,
    jobs: Mutex<HashMap<String, Line>>,
}

#[derive(Default)]
struct Line {
    bar: Option<ProgressBar>,
    step: String,
    total: Option<u64>,
    reported: u64,
}

impl<'a> ProgressDisplay<'a> {
    /// Creates the display for the settings of `ui`.
    pub fn new(ui: &'a Ui) -> Self {
        Self { ui, bars: ui.is_watched().then(MultiProgress::new), jobs: Mutex::default() }
    }

    fn step(&self, name: &str, line: &mut Line, step: &str, total: Option<u64>, done: u64) {
        (line.step, line.total, line.reported) = (step.to_owned(), total, done);
        let Some(bars) = &self.bars else {
            let size = total.map(|total| format!(" {}", size_words(total))).unwrap_or_default();
            let from = if done > 0 { format!(", {} are there", size_words(done)) } else { String::new() };
            self.ui.progress(&format!("{name}: {step}{size}{from}"));
            return;
        };
        let bar = line.bar.get_or_insert_with(|| bars.add(ProgressBar::no_length()));
        let template = match total {
            Some(_) => "{prefix} {msg} [{bar:24}] {bytes}/{total_bytes} {bytes_per_sec} {eta}",
            None => "{prefix} {msg} {spinner} {bytes} {elapsed}",
        };
        bar.set_style(ProgressStyle::with_template(template).expect("the template is right").progress_chars("=> "));
        bar.set_prefix(name.to_owned());
        bar.set_message(step.to_owned());
        bar.set_length(total.unwrap_or(0));
        bar.set_position(done);
        bar.reset_eta();
    }

    fn at(&self, name: &str, line: &mut Line, done: u64) {
        if let Some(bar) = &line.bar {
            bar.set_position(done);
            return;
        }
        let Some(total) = line.total.filter(|total| *total > 0 && self.bars.is_none()) else { return };
        let part = |bytes: u64| u128::from(bytes) * u128::from(LINES_A_STEP) / u128::from(total);
        if part(done) > part(line.reported) && done < total {
            self.ui.progress(&format!("{name}: {} {}%", line.step, u128::from(done) * 100 / u128::from(total)));
        }
        line.reported = done;
    }
}

/// Returns a size for users, with at most one digit after the point.
pub fn size_words(bytes: u64) -> String {
    let exact = ByteSize::from_bytes(bytes).to_string();
    if exact.len() <= 7 && exact.ends_with("iB") {
        return exact;
    }
    for (unit, shift) in [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)] {
        if bytes >= 1 << shift {
            return format!("{:.1}{unit}", bytes as f64 / f64::from(2f32.powi(shift)));
        }
    }
    exact
}

impl Progress for ProgressDisplay<'_> {
    fn event(&self, job: &str, event: Event<'_>) {
        let mut jobs = self.jobs.lock().expect("nothing panics while it is held");
        match event {
            Event::Step { step, total, done } => {
                let line = jobs.entry(job.to_owned()).or_default();
                self.step(job, line, step, total, done);
            }
            Event::At(done) => {
                if let Some(line) = jobs.get_mut(job) {
                    self.at(job, line, done);
                }
            }
            Event::Note(words) => match &self.bars {
                Some(bars) => bars.suspend(|| self.ui.warn(format!("{job}: {words}"))),
                None => self.ui.warn(format!("{job}: {words}")),
            },
            Event::End => {
                if let Some(bar) = jobs.remove(job).and_then(|line| line.bar) {
                    bar.finish_and_clear();
                }
            }
        }
    }

    fn cancelled(&self) -> bool {
        CANCELLED.load(Ordering::SeqCst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_short_for_people() {
        for (bytes, words) in [(0, "0B"), (1 << 30, "1GiB"), (1_500_000_000, "1.4GiB"), (5 << 20, "5MiB"), (123_456, "120.6KiB")]
        {
            assert_eq!(size_words(bytes), words);
        }
    }
}
