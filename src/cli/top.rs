//! `vmctl top`, and sampling of guests for it and `metrics`.

use std::cmp::Ordering;
use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::attach::signal_stream;
use super::list::uptime;
use super::selection::CommandContext;
use super::{AnyGuests, App, Column, ExitStatus, Failure, Guests, Outcome};
use crate::guest::figures::{self, Figures, Rates, Samples};
use crate::guest::overview::{Observer, Overview};
use crate::guest::store::GuestDir;
use crate::host::terminal::{RawMode, own_window_size, reset_modes};
use crate::poll::Poll;

/// Show the resource usage of running guests
///
/// Without a terminal, with --once and in the JSON formats, prints one table of two samples. On a terminal `c`, `m`,
/// `d`, `n` and `g` sort by processor, memory, disk, network and guest, and `q` quits.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    guests: AnyGuests,
    /// Sort order
    #[arg(long, value_enum, default_value = "cpu", value_name = "WHAT")]
    sort: Sort,
    /// Time between two samples, at least `100ms`; by default 2 s on a terminal and 1 s without one
    #[arg(long, value_name = "DURATION", value_parser = crate::units::parse_duration)]
    interval: Option<Duration>,
    /// One table
    #[arg(long)]
    once: bool,
}

/// Sort order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Sort {
    /// By use of the processors
    Cpu,
    /// By memory
    Memory,
    /// By traffic from and to disks
    Disk,
    /// By network traffic
    Network,
    /// By name
    Name,
}

/// One guest in the table.
#[derive(Debug, Clone, Serialize)]
struct Row {
    #[serde(flatten)]
    figures: Figures,
    rates: Rates,
}

const COLUMNS: [Column<Row>; 10] = [
    Column { title: "NAME", wide: false, text: |row| row.figures.overview.name.clone() },
    Column { title: "STATE", wide: false, text: |row| row.figures.overview.state.to_owned() },
    Column { title: "CPU%", wide: false, text: |row| row.rates.cpu_percent.map(|cpu| format!("{cpu:.1}")).unwrap_or_default() },
    Column { title: "RESIDENT", wide: false, text: |row| short(row.figures.resident_bytes.map(|bytes| bytes as f64)) },
    Column { title: "MEMORY", wide: false, text: |row| short(row.figures.overview.memory_bytes.map(|bytes| bytes as f64)) },
    Column { title: "READ/s", wide: false, text: |row| short(row.rates.disk_read) },
    Column { title: "WRITTEN/s", wide: false, text: |row| short(row.rates.disk_written) },
    Column { title: "RECEIVED/s", wide: false, text: |row| short(row.rates.net_received) },
    Column { title: "SENT/s", wide: false, text: |row| short(row.rates.net_sent) },
    Column { title: "UPTIME", wide: false, text: |row| uptime(&row.figures.overview) },
];

/// Returns the bytes in at most six characters, or an empty text if they are not known.
fn short(bytes: Option<f64>) -> String {
    let Some(mut value) = bytes else { return String::new() };
    let mut units = ["B", "K", "M", "G", "T"].into_iter();
    let mut unit = units.next().unwrap_or_default();
    while value >= 1024.0
        && let Some(next) = units.next()
    {
        (value, unit) = (value / 1024.0, next);
    }
    if unit == "B" || value >= 100.0 { format!("{value:.0}{unit}") } else { format!("{value:.1}{unit}") }
}

impl Sort {
    fn of_key(key: u8) -> Option<Sort> {
        Some(match key {
            b'c' => Sort::Cpu,
            b'm' => Sort::Memory,
            b'd' => Sort::Disk,
            b'n' => Sort::Network,
            b'g' => Sort::Name,
            _ => return None,
        })
    }

    fn word(self) -> &'static str {
        match self {
            Sort::Cpu => "processor",
            Sort::Memory => "memory",
            Sort::Disk => "disk",
            Sort::Network => "network",
            Sort::Name => "guest",
        }
    }

    /// Returns the figure to sort by. Unknown ones come last.
    fn figure(self, row: &Row) -> f64 {
        let both = |one: Option<f64>, other: Option<f64>| one.or(other).map(|_| one.unwrap_or(0.0) + other.unwrap_or(0.0));
        let figure = match self {
            Sort::Cpu => row.rates.cpu_percent,
            Sort::Memory => row.figures.resident_bytes.map(|bytes| bytes as f64),
            Sort::Disk => both(row.rates.disk_read, row.rates.disk_written),
            Sort::Network => both(row.rates.net_received, row.rates.net_sent),
            Sort::Name => None,
        };
        figure.unwrap_or(-1.0)
    }

    fn order(self, one: &Row, other: &Row) -> Ordering {
        let by_name = || one.figures.overview.name.cmp(&other.figures.overview.name);
        self.figure(other).total_cmp(&self.figure(one)).then_with(by_name)
    }
}

/// Samples the selected guests and reports those that cannot be sampled.
pub fn look(app: &App, context: &CommandContext, guests: &Guests) -> Result<(Vec<Figures>, ExitStatus), Failure> {
    let mut observer = Observer::new(context.surroundings());
    let mut seen = Vec::new();
    let status = app.each_in_turn(guests.choose(context)?, |guest| {
        seen.push((guest.clone(), observer.look(guest)?.0));
        Ok(ExitStatus::Done)
    })?;
    Ok((figures::look(seen), status))
}

/// Samples the guests that are selected now. A guest that cannot be sampled, or is just being removed, is left out.
pub fn look_again(context: &CommandContext, guests: &Guests) -> Vec<Figures> {
    let mut observer = Observer::new(context.surroundings());
    let chosen = guests.choose(context).unwrap_or_default();
    let seen: Vec<(GuestDir, Overview)> = chosen
        .into_iter()
        .filter_map(|chosen| {
            let guest = chosen.guest.ok()?;
            let overview = observer.look(&guest).ok()?.0;
            Some((guest, overview))
        })
        .collect();
    figures::look(seen)
}

impl Args {
    pub fn run(self, app: &App) -> Outcome {
        if self.interval.is_some_and(|interval| interval < Duration::from_millis(100)) {
            return Err(Failure::user("`--interval` is at least `100ms`"));
        }
        let context = app.context_to_look()?;
        let guests = self.guests.clone().guests();
        let mut samples = Samples::default();
        let (first, status) = look(app, &context, &guests)?;
        samples.next(first);
        let watched = app.ui.format() == super::OutputFormat::Table && io::stdin().is_terminal() && io::stdout().is_terminal();
        if watched && !self.once {
            return self.live(app, &context, &guests, &mut samples);
        }
        std::thread::sleep(self.interval.unwrap_or(Duration::from_secs(1)));
        let rows = rows(&mut samples, look_again(&context, &guests), self.sort);
        app.ui.list("guest-usage", 1, &rows, &COLUMNS, |row| row.figures.overview.name.clone())?;
        Ok(status)
    }

    fn live(&self, app: &App, context: &CommandContext, guests: &Guests, samples: &mut Samples) -> Outcome {
        let signals = signal_stream()?;
        let raw = RawMode::enter();
        let _raw = raw.map_err(|error| Failure::machine(anyhow::Error::new(error).context("cannot set up the terminal")))?;
        let mut screen = Screen::open();
        let interval = self.interval.unwrap_or(Duration::from_secs(2));
        let mut sort = self.sort;
        // The first rates come soon, and those after them cover the whole interval.
        let mut next = Instant::now() + interval.min(Duration::from_millis(500));
        let mut rows: Vec<Row> = Vec::new();
        loop {
            if Instant::now() >= next {
                rows = self::rows(samples, look_again(context, guests), sort);
                next = Instant::now() + interval;
            }
            if screen.draw(&app.ui.table(&rows, &COLUMNS), rows.len(), sort).is_err() {
                return Ok(ExitStatus::Done);
            }
            match wait(&signals, next)? {
                Heard::Nothing => {}
                Heard::Leave => return Ok(ExitStatus::Done),
                Heard::Signal(number) => return Ok(ExitStatus::Engine(128 + number)),
                Heard::Key(key) => {
                    sort = Sort::of_key(key).unwrap_or(sort);
                    rows.sort_by(|one, other| sort.order(one, other));
                }
            }
        }
    }
}

/// Returns the running guests, sorted.
fn rows(samples: &mut Samples, figures: Vec<Figures>, sort: Sort) -> Vec<Row> {
    let seen = samples.next(figures).into_iter().filter(|(figures, _)| figures.overview.pid.is_some());
    let mut rows: Vec<Row> = seen.map(|(figures, rates)| Row { figures, rates }).collect();
    rows.sort_by(|one, other| sort.order(one, other));
    rows
}

/// Event while waiting.
enum Heard {
    Nothing,
    Key(u8),
    Signal(u8),
    Leave,
}

/// A source of events.
#[derive(Clone, Copy, PartialEq)]
enum Source {
    Terminal,
    Signals,
}

/// Waits for a key, a signal or the time, whichever is first.
fn wait(signals: &UnixStream, until: Instant) -> Result<Heard, Failure> {
    let stdin = io::stdin();
    let mut poll = Poll::new();
    poll.add_reader(Source::Terminal, stdin.as_fd());
    poll.add_reader(Source::Signals, signals.as_fd());
    let ready = poll.wait(Some(until));
    let ready = ready.map_err(|error| Failure::machine(anyhow::Error::new(error).context("cannot wait for a key")))?;
    let [typed, signalled] = [Source::Terminal, Source::Signals].map(|source| ready.iter().any(|(ready, _)| *ready == source));
    let mut byte = [0u8; 1];
    if signalled && (&mut &*signals).read_exact(&mut byte).is_ok() {
        let number = i32::from(byte[0]);
        // After a change of the window's size the table is drawn again. The signal of a broken pipe needs nothing.
        let harmless = [nix::libc::SIGWINCH, nix::libc::SIGPIPE].contains(&number);
        return Ok(if harmless { Heard::Nothing } else { Heard::Signal(byte[0]) });
    }
    if typed {
        return Ok(match nix::unistd::read(stdin.as_fd(), &mut byte) {
            Err(nix::errno::Errno::EINTR | nix::errno::Errno::EAGAIN) => Heard::Nothing,
            // Ctrl-C and Ctrl-D are characters in raw mode. End of input means that the terminal is gone.
            Ok(0) | Err(_) => Heard::Leave,
            Ok(_) if matches!(byte[0], b'q' | b'Q' | 3 | 4) => Heard::Leave,
            Ok(_) => Heard::Key(byte[0]),
        });
    }
    Ok(Heard::Nothing)
}

/// The terminal's alternate screen, which is left when this is dropped.
struct Screen;

impl Screen {
    fn open() -> Screen {
        // xterm control sequences: the alternate screen, and no cursor.
        let _ = io::stdout().write_all(b"\x1b[?1049h\x1b[?25l");
        Screen
    }

    /// Draws what fits. Clears the end of each line and of the screen, so that nothing flickers.
    fn draw(&mut self, table: &str, guests: usize, sort: Sort) -> io::Result<()> {
        let (rows, columns) = own_window_size().map_or((24, 80), |(rows, columns)| (usize::from(rows), usize::from(columns)));
        let many = if guests == 1 { "guest" } else { "guests" };
        let title = format!("vmctl top: {guests} {many}, by {} (c m d n g sort, q leaves)", sort.word());
        let mut text = String::from("\x1b[H");
        for (at, line) in std::iter::once(title.as_str()).chain([""]).chain(table.lines()).take(rows.max(1)).enumerate() {
            text.push_str(if at > 0 { "\r\n" } else { "" });
            text.extend(line.chars().take(columns));
            text.push_str("\x1b[K");
        }
        text.push_str("\x1b[J");
        let mut out = io::stdout().lock();
        out.write_all(text.as_bytes())?;
        out.flush()
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        reset_modes(&mut io::stdout());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_short_and_nothing_known_is_nothing_shown() {
        let shown = [0.0, 1023.0, 1024.0, 10.5 * 1048576.0, 1e9, 5e15].map(|bytes| short(Some(bytes)));
        assert_eq!(shown, ["0B", "1023B", "1.0K", "10.5M", "954M", "4547T"]);
        assert_eq!(short(None), "");
    }
}
