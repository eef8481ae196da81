//! Order in which guests start and stop.
//!
//! A guest comes after those in its `after`, and after every guest of a lower `order` that does not itself wait for one
//! of a higher: its rank is its `order`, or the rank of a guest that it comes after if that is higher. Names that are
//! not candidates do not count. Guests stop in the reverse order.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Condvar, Mutex};
use std::time::{Duration, Instant};

use crate::config::AutostartConfig;
use crate::config::order::circle;

/// A guest to order.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// Its name.
    pub name: String,
    /// Its `[autostart]` table.
    pub config: AutostartConfig,
}

/// An order of guests, with the guests before each.
#[derive(Debug, Clone, Default)]
pub struct Schedule {
    candidates: Vec<Candidate>,
    /// For each guest, those right before it, by their index in `candidates`.
    before: Vec<Vec<usize>>,
}

/// Direction in which a schedule runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Starting.
    Forwards,
    /// Stopping.
    Backwards,
}

impl Schedule {
    /// Orders the candidates. Guests that wait for each other in a circle are not in the order: the second value has
    /// each circle, with its first name again at the end.
    pub fn new(mut candidates: Vec<Candidate>) -> (Schedule, Vec<Vec<String>>) {
        candidates.sort_by(|a, b| a.name.cmp(&b.name));
        let mut circles: Vec<Vec<String>> = Vec::new();
        loop {
            let edges: BTreeMap<&str, Vec<&str>> = candidates
                .iter()
                .map(|candidate| (candidate.name.as_str(), candidate.config.after.iter().map(String::as_str).collect()))
                .collect();
            let Some(found) = circle(&edges) else { break };
            let found: Vec<String> = found.into_iter().map(str::to_owned).collect();
            candidates.retain(|candidate| !found.contains(&candidate.name));
            circles.push(found);
        }
        let ranks = ranks(&candidates);
        let mut sorted: Vec<(i64, Candidate)> = ranks.into_iter().zip(candidates).collect();
        sorted.sort_by(|(a, one), (b, two)| (a, &one.name).cmp(&(b, &two.name)));
        let names: BTreeMap<String, usize> =
            sorted.iter().enumerate().map(|(at, (_, candidate))| (candidate.name.clone(), at)).collect();
        let mut before = Vec::with_capacity(sorted.len());
        for (rank, candidate) in &sorted {
            // All of the next lower rank. Those of lower ranks come before these.
            let lower = sorted.iter().map(|(other, _)| other).filter(|other| *other < rank).max();
            let mut those: BTreeSet<usize> =
                sorted.iter().enumerate().filter(|(_, (other, _))| Some(other) == lower).map(|(at, _)| at).collect();
            those.extend(candidate.config.after.iter().filter_map(|name| names.get(name)));
            before.push(those.into_iter().collect());
        }
        (Schedule { candidates: sorted.into_iter().map(|(_, candidate)| candidate).collect(), before }, circles)
    }

    /// Returns the guests, each after those before it.
    pub fn candidates(&self) -> &[Candidate] {
        &self.candidates
    }

    /// Returns the length of the chain of guests before each, in the order of [`Schedule::candidates`].
    pub fn levels(&self) -> Vec<usize> {
        let mut levels: Vec<usize> = vec![0; self.candidates.len()];
        // `after` within a rank may name a guest that is later in the alphabet. So repeat until nothing changes.
        loop {
            let next: Vec<usize> =
                self.before.iter().map(|before| before.iter().map(|&at| levels[at] + 1).max().unwrap_or(0)).collect();
            if next == levels {
                return levels;
            }
            levels = next;
        }
    }

    /// Calls `each` for every guest once it is done for all guests before it, for at most `parallel` at the same time.
    pub fn run(&self, direction: Direction, parallel: usize, each: impl Fn(&Candidate) + Sync) {
        let mut waits_for = self.before.clone();
        if direction == Direction::Backwards {
            waits_for = vec![Vec::new(); self.candidates.len()];
            for (at, before) in self.before.iter().enumerate() {
                before.iter().for_each(|&earlier| waits_for[earlier].push(at));
            }
        }
        let state = Mutex::new(Progress { left: (0..self.candidates.len()).collect(), done: BTreeSet::new() });
        let changed = Condvar::new();
        let work = || {
            let mut progress = state.lock().expect("no panic happens under this lock");
            loop {
                let free =
                    progress.left.iter().copied().find(|at| waits_for[*at].iter().all(|other| progress.done.contains(other)));
                match free {
                    Some(at) => {
                        progress.left.remove(&at);
                        drop(progress);
                        each(&self.candidates[at]);
                        progress = state.lock().expect("no panic happens under this lock");
                        progress.done.insert(at);
                        changed.notify_all();
                    }
                    None if progress.left.is_empty() => return,
                    None => progress = changed.wait(progress).expect("no panic happens under this lock"),
                }
            }
        };
        std::thread::scope(|scope| {
            for _ in 0..parallel.clamp(1, self.candidates.len().max(1)) {
                scope.spawn(work);
            }
        });
    }

    /// Returns how long stopping takes if every guest uses its whole time-out, from each guest to the end.
    pub fn tails(&self, timeout: impl Fn(&Candidate) -> Duration) -> BTreeMap<String, Duration> {
        let levels = self.levels();
        let mut order: Vec<usize> = (0..self.candidates.len()).collect();
        order.sort_by_key(|at| levels[*at]);
        let mut tails = vec![Duration::ZERO; self.candidates.len()];
        for at in order {
            let after = self.before[at].iter().map(|&earlier| tails[earlier]).max().unwrap_or_default();
            tails[at] = after.saturating_add(timeout(&self.candidates[at]));
        }
        self.candidates.iter().map(|candidate| candidate.name.clone()).zip(tails).collect()
    }
}

struct Progress {
    left: BTreeSet<usize>,
    done: BTreeSet<usize>,
}

/// Returns the rank of each candidate. There is no circle.
fn ranks(candidates: &[Candidate]) -> Vec<i64> {
    let places: BTreeMap<&str, usize> =
        candidates.iter().enumerate().map(|(at, candidate)| (candidate.name.as_str(), at)).collect();
    let mut ranks: Vec<i64> = candidates.iter().map(|candidate| candidate.config.order).collect();
    loop {
        let mut changed = false;
        for (at, candidate) in candidates.iter().enumerate() {
            let after = candidate.config.after.iter().filter_map(|name| places.get(name.as_str()));
            let highest = after.map(|other| ranks[*other]).max().unwrap_or(i64::MIN);
            if highest > ranks[at] {
                ranks[at] = highest;
                changed = true;
            }
        }
        if !changed {
            return ranks;
        }
    }
}

/// Returns how much time a guest has to stop, if all must have stopped by `end` and the guests after it would take
/// `tail`.
pub fn share(wanted: Duration, tail: Duration, end: Instant) -> Duration {
    let left = end.saturating_duration_since(Instant::now());
    if tail <= left || tail.is_zero() {
        return wanted;
    }
    wanted.mul_f64(left.as_secs_f64() / tail.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::AutostartWait;

    fn candidate(name: &str, order: i64, after: &[&str]) -> Candidate {
        let config = AutostartConfig {
            enabled: true,
            order,
            delay: Duration::ZERO,
            after: after.iter().map(|name| (*name).to_owned()).collect(),
            wait: AutostartWait::Running,
            timeout: Duration::from_secs(1),
        };
        Candidate { name: name.into(), config }
    }

    /// Returns the names by level.
    fn levels(all: Vec<Candidate>) -> Vec<Vec<String>> {
        let (schedule, circles) = Schedule::new(all);
        assert!(circles.is_empty());
        let mut found: Vec<Vec<String>> = Vec::new();
        for (level, candidate) in schedule.levels().into_iter().zip(schedule.candidates()) {
            found.resize(found.len().max(level + 1), Vec::new());
            found[level].push(candidate.name.clone());
        }
        found
    }

    #[test]
    fn guests_start_by_order_and_after_those_they_name() {
        let all = vec![
            candidate("web", 100, &["db", "not-here"]),
            candidate("db", 100, &[]),
            candidate("dns", 10, &[]),
            candidate("log", 100, &[]),
        ];
        assert_eq!(levels(all), [vec!["dns"], vec!["db", "log"], vec!["web"]]);
    }

    #[test]
    fn a_guest_that_waits_for_one_of_a_higher_order_holds_up_none_in_between() {
        let all = vec![candidate("a", 1, &["b"]), candidate("b", 9, &[]), candidate("c", 5, &[])];
        assert_eq!(levels(all), [["c"], ["b"], ["a"]]);
    }

    #[test]
    fn a_circle_is_told_and_keeps_nobody_else_from_starting() {
        let all = vec![candidate("a", 1, &["b"]), candidate("b", 1, &["a"]), candidate("c", 9, &["a"])];
        let (schedule, circles) = Schedule::new(all);
        assert_eq!(circles, [["a", "b", "a"]]);
        assert_eq!(schedule.candidates().len(), 1);
    }

    #[test]
    fn a_run_keeps_the_order_both_ways_and_never_has_more_at_once_than_it_may() {
        let one = |name: &str| candidate(name, if name < "c" { 1 } else { 2 }, &[]);
        let mut all: Vec<Candidate> = ["a", "b", "c", "d", "e", "f"].into_iter().map(one).collect();
        all.push(candidate("z", 1, &["f"]));
        let (schedule, _) = Schedule::new(all);
        for direction in [Direction::Forwards, Direction::Backwards] {
            let seen = Mutex::new((Vec::new(), 0usize));
            schedule.run(direction, 2, |candidate| {
                let at_once = {
                    let mut seen = seen.lock().expect("no panic");
                    seen.1 += 1;
                    seen.1
                };
                assert!(at_once <= 2);
                std::thread::sleep(Duration::from_millis(2));
                let mut seen = seen.lock().expect("no panic");
                seen.0.push(candidate.name.clone());
                seen.1 -= 1;
            });
            let mut names = seen.into_inner().expect("no panic").0;
            if direction == Direction::Backwards {
                names.reverse();
            }
            names[..2].sort();
            assert_eq!(names[..2].join(""), "ab");
            // Others may end at the same time: only the guests that it waits for come before it.
            let at = |name: &str| names.iter().position(|other| other == name);
            assert!(at("f") < at("z"), "{names:?}");
            assert_eq!(names.len(), 7);
        }
    }

    #[test]
    fn with_too_little_time_each_guest_gets_its_part_of_it() {
        let (schedule, _) = Schedule::new(vec![candidate("db", 1, &[]), candidate("web", 2, &[])]);
        let tails = schedule.tails(|_| Duration::from_secs(60));
        assert_eq!((tails["web"], tails["db"]), (Duration::from_secs(120), Duration::from_secs(60)));
        let end = Instant::now() + Duration::from_secs(60);
        let web = share(Duration::from_secs(60), tails["web"], end);
        assert!(web > Duration::from_secs(28) && web <= Duration::from_secs(30), "{web:?}");
        assert_eq!(share(Duration::from_secs(5), Duration::from_secs(10), end), Duration::from_secs(5));
    }
}
