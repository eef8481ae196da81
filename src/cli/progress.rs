//! Progress of long work, and its interruption: lines that change in place on a terminal, a line every few seconds
//! elsewhere, nothing with `-q` and the JSON formats.
//!
//! There are two kinds of line. A *job* is work of this process ([`Progress`]): downloads, builds, copies. A [`Wait`] is
//! for something that goes on without this command: a guest that boots or shuts down. SIGINT, SIGTERM and SIGHUP ask jobs
//! to stop; they then remove what they cannot use again. Once no job is left, the command says what goes on, and ends. A
//! second signal ends the process at once.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Once};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use nix::sys::signal::{SigSet, Signal, kill};

use super::Ui;
use super::visible::{visible, visible_but_colours};
use crate::fetch::{Event, Progress};
use crate::guest::logs::LastLine;
pub use crate::units::size_words;

static CANCELLED: AtomicBool = AtomicBool::new(false);
/// Whether the user is being asked something.
static ASKING: AtomicBool = AtomicBool::new(false);
/// Whether another part of the process takes the signals now.
static GIVEN_UP: AtomicBool = AtomicBool::new(false);
/// Exit status of a process that a signal ended, by the shell's custom.
const INTERRUPTED: i32 = 130;
/// Number of lines for a step of known length that is not shown on a terminal.
const LINES_A_STEP: u64 = 4;
/// Time between two looks at what is shown.
const TICK: Duration = Duration::from_millis(200);
/// Time after which a wait is shown, on a terminal and elsewhere. Most are over before.
const SHOWN_AFTER: [Duration; 2] = [Duration::from_millis(800), Duration::from_secs(3)];
/// Time between two plain lines in the first minute, and later.
const LINE_EVERY: [Duration; 2] = [Duration::from_secs(5), Duration::from_secs(15)];

/// Makes signals set [`Progress::cancelled`] instead of ending the process. Must be called before there are other threads.
pub fn watch_signals() {
    static WATCHED: Once = Once::new();
    WATCHED.call_once(|| {
        let signals = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]);
        if signals.thread_block().is_err() {
            return; // then a signal ends the process, and the next run sweeps
        }
        std::thread::spawn(move || {
            while let Ok(signal) = signals.wait() {
                if GIVEN_UP.load(Ordering::SeqCst) {
                    // It stays pending until the thread that waits for it now takes it.
                    let _ = kill(nix::unistd::getpid(), signal);
                    return;
                }
                if ASKING.load(Ordering::SeqCst) || CANCELLED.swap(true, Ordering::SeqCst) {
                    std::process::exit(INTERRUPTED);
                }
            }
        });
    });
}

/// Asks the user something: a signal ends the process, as there is nothing to undo.
pub fn asking<T>(ask: impl FnOnce() -> T) -> T {
    ASKING.store(true, Ordering::SeqCst);
    let answer = ask();
    ASKING.store(false, Ordering::SeqCst);
    answer
}

/// Leaves the signals to another part of the process, like the console.
pub fn leave_signals() {
    GIVEN_UP.store(true, Ordering::SeqCst);
}

/// How progress is shown.
enum Shown {
    /// Lines that change in place, on a terminal.
    Bars(MultiProgress),
    /// Plain lines.
    Lines,
    /// Nothing.
    Nothing,
}

/// What standard error shows of long work. All messages to it go through here, so that they do not tear the lines.
pub struct Display {
    shown: Shown,
    ticking: Once,
    lines: Mutex<BTreeMap<Key, Line>>,
    /// What goes on of a wait that ended after a signal.
    broken_off: Mutex<Option<String>>,
}

/// A line: that of a wait or of a job, of this name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    is_wait: bool,
    name: String,
}

/// Something that takes long and may be left at any moment: it goes on without this command, or is undone.
pub struct Awaited {
    /// Name of the guest.
    pub name: String,
    /// What is waited for, like `waiting for its login prompt`.
    pub what: String,
    /// Time after which it is not waited for any more.
    pub limit: Option<Duration>,
    /// The log whose last line is shown.
    pub log: Option<LastLine>,
    /// What goes on after Ctrl-C or was undone, and the next command.
    pub goes_on: String,
}

impl Awaited {
    /// Work on a guest that may be broken off at any moment, since the next command finds and undoes what is half done.
    pub fn work(name: &str, what: impl Into<String>, goes_on: impl Into<String>) -> Awaited {
        Awaited { name: name.to_owned(), what: what.into(), limit: None, log: None, goes_on: goes_on.into() }
    }

    /// The making of a guest.
    pub fn making(name: &str) -> Awaited {
        Awaited::work(name, "making its disks", format!("{name} is not made; the next command removes what there is of it"))
    }
}

#[derive(Debug)]
struct Line {
    began: Instant,
    /// When it was printed last, as a plain line.
    printed: Option<Instant>,
    step: String,
    limit: Option<Duration>,
    total: Option<u64>,
    done: u64,
    last: String,
    log: Option<LastLine>,
    goes_on: String,
    bar: Option<ProgressBar>,
}

impl Line {
    fn new(step: &str, now: Instant) -> Line {
        Line {
            began: now,
            printed: None,
            step: step.to_owned(),
            limit: None,
            total: None,
            done: 0,
            last: String::new(),
            log: None,
            goes_on: String::new(),
            bar: None,
        }
    }

    /// Returns the step, how far it is, and the last line of what is at work.
    fn text(&self, now: Instant) -> String {
        let mut text = self.step.clone();
        match self.total.filter(|total| *total > 0) {
            Some(total) => text.push_str(&format!(" {}%", u128::from(self.done.min(total)) * 100 / u128::from(total))),
            None if self.done > 0 => text.push_str(&format!(", {}", size_words(self.done))),
            None => {}
        }
        text.push_str(&format!(", {}", seconds(now.saturating_duration_since(self.began))));
        if let Some(limit) = self.limit {
            text.push_str(&format!(" of {}", seconds(limit)));
        }
        if !self.last.is_empty() {
            text.push_str(&format!(": {}", self.last));
        }
        text
    }

    /// Returns whether a plain line is due. A job has printed its step when it began.
    fn is_due(&self, now: Instant) -> bool {
        let age = now.saturating_duration_since(self.began);
        match self.printed {
            None => age >= SHOWN_AFTER[1],
            Some(at) => now.saturating_duration_since(at) >= LINE_EVERY[usize::from(age > Duration::from_secs(60))],
        }
    }
}

/// Returns a duration in whole seconds, like `63 s`.
pub fn seconds(duration: Duration) -> String {
    format!("{} s", duration.as_secs())
}

impl Display {
    /// Creates the display: `watched` by a user at a terminal, or `quiet`.
    pub fn new(quiet: bool, watched: bool) -> Arc<Display> {
        let shown = match (quiet, watched) {
            (true, _) => Shown::Nothing,
            (false, true) => Shown::Bars(MultiProgress::new()),
            (false, false) => Shown::Lines,
        };
        Arc::new(Display { shown, ticking: Once::new(), lines: Mutex::default(), broken_off: Mutex::default() })
    }

    /// Runs an action that prints, while the lines that change in place are away.
    pub fn aside<T>(&self, print: impl FnOnce() -> T) -> T {
        match &self.shown {
            Shown::Bars(bars) => bars.suspend(print),
            Shown::Lines | Shown::Nothing => print(),
        }
    }

    /// Shows that a command waits, until the result is dropped.
    pub fn wait(self: &Arc<Self>, awaited: Awaited) -> Wait {
        let key = Key { is_wait: true, name: awaited.name };
        let line =
            Line { limit: awaited.limit, log: awaited.log, goes_on: awaited.goes_on, ..Line::new(&awaited.what, Instant::now()) };
        self.lines().insert(key.clone(), line);
        self.start_ticking();
        Wait { display: Arc::clone(self), key }
    }

    /// Returns what goes on of the wait that ended last, if that was after a signal.
    pub fn broken_off(&self) -> Option<String> {
        self.broken_off.lock().expect("nothing panics while it is held").take()
    }

    /// Removes the line of a wait.
    fn end(&self, key: &Key, after_signal: bool) {
        let Some(line) = self.lines().remove(key) else { return };
        if let Some(bar) = line.bar {
            bar.finish_and_clear();
        }
        if after_signal {
            *self.broken_off.lock().expect("nothing panics while it is held") = Some(line.goes_on);
        }
    }

    fn lines(&self) -> MutexGuard<'_, BTreeMap<Key, Line>> {
        self.lines.lock().expect("nothing panics while it is held")
    }

    fn start_ticking(self: &Arc<Self>) {
        let display = Arc::clone(self);
        self.ticking.call_once(|| {
            std::thread::spawn(move || {
                // The signals are for the threads that wait for them.
                let _ = SigSet::all().thread_block();
                let mut told = false;
                loop {
                    std::thread::sleep(TICK);
                    display.tick(Instant::now());
                    if CANCELLED.load(Ordering::SeqCst) && !GIVEN_UP.load(Ordering::SeqCst) {
                        display.break_off(&mut told);
                    }
                }
            });
        });
    }

    /// Brings what is shown up to date.
    fn tick(&self, now: Instant) {
        for (key, line) in self.lines().iter_mut() {
            if let Some(last) = line.log.as_mut().and_then(LastLine::read) {
                line.last = last;
            }
            match &self.shown {
                Shown::Bars(bars) => {
                    if line.bar.is_none() && now.saturating_duration_since(line.began) >= SHOWN_AFTER[0] {
                        line.bar = Some(add_bar(bars, &key.name, "{prefix} {spinner} {wide_msg}"));
                    }
                    let Some(bar) = &line.bar else { continue };
                    if line.total.is_none() {
                        bar.set_message(String::from_utf8_lossy(&visible(line.text(now).as_bytes())).into_owned());
                    }
                    bar.tick();
                }
                Shown::Lines if line.is_due(now) => {
                    line.printed = Some(now);
                    print_line(&format!("{}: {}", key.name, line.text(now)));
                }
                Shown::Lines | Shown::Nothing => {}
            }
        }
    }

    /// Ends the process after a signal once no job is left that must undo something, and says what goes on.
    fn break_off(&self, told: &mut bool) {
        let lines = self.lines();
        if lines.is_empty() {
            return;
        }
        if let Some(job) = lines.keys().find(|key| !key.is_wait) {
            if !std::mem::replace(told, true) && !matches!(self.shown, Shown::Nothing) {
                let words = format!("interrupted: {} is broken off; a second Ctrl-C does not wait for that", job.name);
                self.aside(|| print_line(&words));
            }
            return;
        }
        if let Shown::Bars(bars) = &self.shown {
            let _ = bars.clear();
        }
        for line in lines.values() {
            print_line(&format!("interrupted: {}", line.goes_on));
        }
        std::process::exit(INTERRUPTED);
    }

    fn step(&self, name: &str, line: &mut Line, (step, total, done): (&str, Option<u64>, u64)) {
        let bar = line.bar.take();
        *line = Line { total, done, bar, ..Line::new(step, Instant::now()) };
        match &self.shown {
            Shown::Nothing => {}
            Shown::Lines => {
                let size = total.map(|total| format!(" {}", size_words(total))).unwrap_or_default();
                let from = if done > 0 { format!(", {} are there", size_words(done)) } else { String::new() };
                line.printed = Some(line.began);
                print_line(&format!("{name}: {step}{size}{from}"));
            }
            Shown::Bars(bars) => {
                let template = match total {
                    Some(_) => "{prefix} {msg} [{bar:24}] {bytes}/{total_bytes} {bytes_per_sec} {eta}",
                    None => "{prefix} {spinner} {wide_msg}",
                };
                if let Some(bar) = line.bar.take() {
                    bar.finish_and_clear();
                }
                let bar = add_bar(bars, name, template);
                bar.set_message(step.to_owned());
                bar.set_length(total.unwrap_or(0));
                bar.set_position(done);
                bar.reset_eta();
                line.bar = Some(bar);
            }
        }
    }

    fn at(&self, name: &str, line: &mut Line, done: u64) {
        let before = std::mem::replace(&mut line.done, done);
        if let Some(bar) = &line.bar {
            return bar.set_position(done);
        }
        let Some(total) = line.total.filter(|total| *total > 0 && matches!(self.shown, Shown::Lines)) else { return };
        let part = |bytes: u64| u128::from(bytes) * u128::from(LINES_A_STEP) / u128::from(total);
        if part(done) > part(before) && done < total {
            line.printed = Some(Instant::now());
            print_line(&format!("{name}: {} {}%", line.step, u128::from(done) * 100 / u128::from(total)));
        }
    }
}

impl std::fmt::Debug for Display {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Display")
    }
}

fn add_bar(bars: &MultiProgress, name: &str, template: &str) -> ProgressBar {
    let bar = bars.add(ProgressBar::no_length());
    bar.set_style(ProgressStyle::with_template(template).expect("the template is right").progress_chars("=> "));
    bar.set_prefix(name.to_owned());
    bar
}

/// Prints a line to standard error. If that is closed, there is no reader.
fn print_line(text: &str) {
    let line = format!("{text}\n");
    let shown = match io::IsTerminal::is_terminal(&io::stderr()) {
        true => visible_but_colours(line.as_bytes()),
        false => line.as_bytes().into(),
    };
    let _ = io::stderr().lock().write_all(&shown);
}

/// A wait that is shown, until this is dropped.
pub struct Wait {
    display: Arc<Display>,
    key: Key,
}

impl Drop for Wait {
    fn drop(&mut self) {
        self.display.end(&self.key, CANCELLED.load(Ordering::SeqCst));
    }
}

/// The progress of jobs, shown on a [`Display`].
pub struct ProgressDisplay<'a> {
    ui: &'a Ui,
    display: &'a Arc<Display>,
}

impl<'a> ProgressDisplay<'a> {
    /// Creates it for the display of `ui`.
    pub fn new(ui: &'a Ui) -> Self {
        Self { ui, display: ui.display() }
    }
}

impl Progress for ProgressDisplay<'_> {
    fn event(&self, job: &str, event: Event<'_>) {
        let key = Key { is_wait: false, name: job.to_owned() };
        let mut lines = self.display.lines();
        match event {
            Event::Step { step, total, done } => {
                let line = lines.entry(key).or_insert_with(|| Line::new(step, Instant::now()));
                self.display.step(job, line, (step, total, done));
                self.display.start_ticking();
            }
            Event::At(done) => {
                if let Some(line) = lines.get_mut(&key) {
                    self.display.at(job, line, done);
                }
            }
            Event::Line(words) => {
                if let Some(line) = lines.get_mut(&key) {
                    line.last = words.to_owned();
                }
            }
            Event::Note(words) => self.ui.warn(format!("{job}: {words}")),
            Event::End => {
                if let Some(bar) = lines.remove(&key).and_then(|line| line.bar) {
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
    fn a_line_says_what_is_waited_for_how_long_and_the_last_line() {
        let now = Instant::now();
        let mut line = Line { limit: Some(Duration::from_secs(300)), ..Line::new("waiting for its login prompt", now) };
        let later = now + Duration::from_millis(12_900);
        assert_eq!(line.text(later), "waiting for its login prompt, 12 s of 300 s");
        line.last = "Started sshd".into();
        assert_eq!(line.text(later), "waiting for its login prompt, 12 s of 300 s: Started sshd");
        let job = Line { total: Some(200), done: 50, ..Line::new("converting", now) };
        assert_eq!(job.text(later), "converting 25%, 12 s");
        let job = Line { done: 5 << 20, ..Line::new("unpacking", now) };
        assert_eq!(job.text(later), "unpacking, 5MiB, 12 s");
    }

    #[test]
    fn what_goes_on_is_kept_of_a_wait_that_ends_after_a_signal_and_only_then() {
        let display = Display::new(true, false);
        let wait = |name: &str| {
            let key = Key { is_wait: true, name: name.to_owned() };
            display.lines().insert(key.clone(), Line { goes_on: format!("{name} goes on"), ..Line::new("", Instant::now()) });
            key
        };
        display.end(&wait("a"), false);
        assert_eq!(display.broken_off(), None);
        display.end(&wait("b"), true);
        assert_eq!((display.broken_off(), display.broken_off()), (Some("b goes on".into()), None));
    }

    #[test]
    fn a_log_has_nothing_of_a_short_wait_and_a_line_every_few_seconds_of_a_long_one() {
        let now = Instant::now();
        let mut line = Line::new("starting", now);
        let mut due = Vec::new();
        for second in 0..=100 {
            let at = now + Duration::from_secs(second);
            if line.is_due(at) {
                line.printed = Some(at);
                due.push(second);
            }
        }
        assert_eq!(due, [3, 8, 13, 18, 23, 28, 33, 38, 43, 48, 53, 58, 73, 88]);
    }
}
