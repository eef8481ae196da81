//! Which guests start with the host, and in what order.

use std::collections::BTreeSet;

use crate::config::AutostartConfig;

/// A guest that starts with the host.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// Its name.
    pub name: String,
    /// Its `[autostart]`.
    pub config: AutostartConfig,
}

/// The candidates in waves: all of one wave may start at the same time, and wait for the wave before. A guest comes
/// after those that its `after` names, and after those of a lower `order`. Names that are no candidates do not count.
/// Guests that wait for each other in a circle are the second part: they cannot be put in an order.
pub fn waves(mut candidates: Vec<Candidate>) -> (Vec<Vec<Candidate>>, Vec<Candidate>) {
    candidates.sort_by(|a, b| (a.config.order, &a.name).cmp(&(b.config.order, &b.name)));
    let mut waves = Vec::new();
    while !candidates.is_empty() {
        let waiting: BTreeSet<String> = candidates.iter().map(|candidate| candidate.name.clone()).collect();
        let free = |candidate: &Candidate| !candidate.config.after.iter().any(|name| waiting.contains(name));
        // The lowest order among those that wait for nobody.
        let Some(order) = candidates.iter().find(|candidate| free(candidate)).map(|candidate| candidate.config.order) else {
            return (waves, candidates);
        };
        let (wave, rest) = candidates.into_iter().partition(|candidate| candidate.config.order == order && free(candidate));
        waves.push(wave);
        candidates = rest;
    }
    (waves, Vec::new())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::AutostartWait;
    use std::time::Duration;

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

    fn names(waves: Vec<Vec<Candidate>>) -> Vec<Vec<String>> {
        waves.into_iter().map(|wave| wave.into_iter().map(|candidate| candidate.name).collect()).collect()
    }

    #[test]
    fn guests_start_by_order_and_after_those_they_name() {
        let all = vec![
            candidate("web", 100, &["db", "not-here"]),
            candidate("db", 100, &[]),
            candidate("dns", 10, &[]),
            candidate("log", 100, &[]),
        ];
        let (waves, circle) = waves(all);
        assert_eq!(names(waves), [vec!["dns"], vec!["db", "log"], vec!["web"]]);
        assert!(circle.is_empty());
    }

    #[test]
    fn a_circle_is_told_and_keeps_nobody_else_from_starting() {
        let all = vec![candidate("a", 1, &["b"]), candidate("b", 1, &["a"]), candidate("c", 9, &[])];
        let (waves, circle) = waves(all);
        assert_eq!(names(waves), [["c"]]);
        assert_eq!(circle.len(), 2);
    }
}
