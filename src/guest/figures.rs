//! Figures of guests: processor time, memory, and the traffic of their disks and interfaces. For `top`, `metrics` and
//! `info`.
//!
//! Processor time and memory are those of the engine's process, as the host reports them. Under engine `bhyve` that is
//! the process of bhyve(8), which the engine child names; the guest's memory is not that process's but the virtual
//! machine's, and vmm(4) reports how much of it is resident ("Resident memory", `sys/amd64/vmm/vmm.c`, vm_get_rescnt).
//! The embedded engine counts disks and interfaces. For bhyve the host's end of an interface counts, and there are no
//! counters of disks. An unknown figure is `None`, never 0.
//!
//! **Hostile peer**: if a supervisor does not answer within [`PATIENCE`], only its own figures are missing.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::control::{ControlClient, Reply, Request};
use super::overview::Overview;
use super::store::GuestDir;
use crate::host::process;

/// Time-out for a supervisor's answer.
const PATIENCE: Duration = Duration::from_secs(1);
/// Number of supervisors that are asked at the same time.
const AT_ONCE: usize = 16;

/// Figures of one guest.
#[derive(Debug, Clone, Serialize)]
pub struct Figures {
    /// Overview from its files.
    #[serde(flatten)]
    pub overview: Overview,
    /// Processor time that its engine has used since the engine's process began.
    pub cpu_seconds: Option<f64>,
    /// Memory of the host that its engine uses.
    pub resident_bytes: Option<u64>,
    /// Memory of the host that its supervisor uses.
    pub supervisor_resident_bytes: Option<u64>,
    /// Disks, in the order of their ids.
    pub disks: Vec<DiskFigures>,
    /// Interfaces, in the order of their ids.
    pub nics: Vec<NicFigures>,
}

/// Figures of a disk since the guest was booted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct DiskFigures {
    /// Its id in the guest file.
    pub id: String,
    /// Bytes that the guest has read.
    pub read_bytes: Option<u64>,
    /// Number of reads.
    pub read_ops: Option<u64>,
    /// Bytes that the guest has written.
    pub written_bytes: Option<u64>,
    /// Number of writes.
    pub write_ops: Option<u64>,
    /// Number of flushes.
    pub flush_ops: Option<u64>,
    /// Number of discards.
    pub discard_ops: Option<u64>,
    /// Number of failed requests.
    pub failed_ops: Option<u64>,
    /// What the guest's driver did wrong.
    pub guest_errors: Option<u64>,
}

/// Figures of an interface since the guest was booted. The directions are those of the guest.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct NicFigures {
    /// Its id in the guest file.
    pub id: String,
    /// Bytes of frames to the guest.
    pub received_bytes: Option<u64>,
    /// Frames to the guest.
    pub received_packets: Option<u64>,
    /// Bytes of frames from the guest.
    pub sent_bytes: Option<u64>,
    /// Frames from the guest.
    pub sent_packets: Option<u64>,
    /// What the guest's driver did wrong.
    pub guest_errors: Option<u64>,
}

/// Rates per second between two samples of a guest; `None` if they are not known.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Rates {
    /// Percent of one processor of the host: 200 is two of them.
    pub cpu_percent: Option<f64>,
    /// Bytes per second.
    pub disk_read: Option<f64>,
    /// Bytes per second.
    pub disk_written: Option<f64>,
    /// Bytes per second.
    pub net_received: Option<f64>,
    /// Bytes per second.
    pub net_sent: Option<f64>,
}

/// Returns the engine's counters of a running guest, if its supervisor answers.
pub fn counters(guest: &GuestDir) -> Option<BTreeMap<String, u64>> {
    let mut client = ControlClient::ask(&guest.socket(), Request::Stats).ok()??;
    client.stream().set_read_timeout(Some(PATIENCE)).ok()?;
    match client.reply().ok()?? {
        Reply::Stats { counters } => Some(counters),
        _ => None,
    }
}

/// Reads the figures of guests, several at the same time. Keeps their order.
pub fn look(guests: Vec<(GuestDir, Overview)>) -> Vec<Figures> {
    let queue = Mutex::new(guests.into_iter().enumerate());
    let found = Mutex::new(BTreeMap::new());
    let work = || {
        loop {
            let Some((at, (guest, overview))) = queue.lock().expect("no panic happens under this lock").next() else { return };
            let figures = Figures::of(&guest, overview);
            found.lock().expect("no panic happens under this lock").insert(at, figures);
        }
    };
    let many = queue.lock().expect("nobody else has it yet").len();
    std::thread::scope(|scope| (0..many.min(AT_ONCE)).for_each(|_| drop(scope.spawn(work))));
    found.into_inner().expect("no panic happened under this lock").into_values().collect()
}

impl Figures {
    fn of(guest: &GuestDir, overview: Overview) -> Figures {
        let asked = overview.pid.is_some() && matches!(overview.state, "running" | "stopping");
        let counters = asked.then(|| counters(guest)).flatten().unwrap_or_default();
        Figures::from_counters(overview, &counters)
    }

    fn from_counters(overview: Overview, counters: &BTreeMap<String, u64>) -> Figures {
        let is_bhyve = overview.engine.as_deref() == Some("bhyve");
        let engine = match is_bhyve {
            // The engine child only watches bhyve.
            true => counters.get("process-id").and_then(|pid| u32::try_from(*pid).ok()),
            false => overview.engine_pid,
        };
        let usage = engine.and_then(process::usage);
        Figures {
            cpu_seconds: usage.map(|(_, time)| time.as_secs_f64()),
            resident_bytes: match is_bhyve {
                true => counters.get("vcpu0.Resident-memory").copied(),
                false => usage.map(|(bytes, _)| bytes),
            },
            supervisor_resident_bytes: overview.pid.and_then(process::usage).map(|(bytes, _)| bytes),
            disks: devices(counters, "disk").into_iter().map(DiskFigures::from_counters).collect(),
            nics: devices(counters, "nic").into_iter().map(NicFigures::from_counters).collect(),
            overview,
        }
    }

    /// Returns the sum over all disks, as far as it is known.
    pub fn sum_of_disks(&self, what: fn(&DiskFigures) -> Option<u64>) -> Option<u64> {
        sum(self.disks.iter().map(what))
    }

    /// Returns the sum over all interfaces, as [`Figures::sum_of_disks`] does.
    pub fn sum_of_nics(&self, what: fn(&NicFigures) -> Option<u64>) -> Option<u64> {
        sum(self.nics.iter().map(what))
    }

    /// Returns the rates since `before`, `elapsed` ago. They are not known if counters have decreased, since those
    /// belong to another boot.
    pub fn rates(&self, before: &Figures, elapsed: Duration) -> Rates {
        let seconds = elapsed.as_secs_f64();
        if seconds <= 0.0 || self.overview.engine_pid != before.overview.engine_pid {
            return Rates::default();
        }
        let disks = |what| Some(self.sum_of_disks(what)?.checked_sub(before.sum_of_disks(what)?)? as f64 / seconds);
        let nics = |what| Some(self.sum_of_nics(what)?.checked_sub(before.sum_of_nics(what)?)? as f64 / seconds);
        let cpu = || Some((self.cpu_seconds? - before.cpu_seconds?) / seconds * 100.0).filter(|percent| *percent >= 0.0);
        Rates {
            cpu_percent: cpu(),
            disk_read: disks(|disk| disk.read_bytes),
            disk_written: disks(|disk| disk.written_bytes),
            net_received: nics(|nic| nic.received_bytes),
            net_sent: nics(|nic| nic.sent_bytes),
        }
    }
}

/// Returns the sum of the known values. It is not known if no value is.
fn sum(values: impl Iterator<Item = Option<u64>>) -> Option<u64> {
    values.flatten().fold(None, |sum: Option<u64>, value| Some(sum.unwrap_or(0).saturating_add(value)))
}

/// Returns the counters of each device of a class, by its id: `CLASS.ID.NAME`. An id may contain dots.
fn devices<'a>(counters: &'a BTreeMap<String, u64>, class: &str) -> BTreeMap<&'a str, BTreeMap<&'a str, u64>> {
    let mut found: BTreeMap<&str, BTreeMap<&str, u64>> = BTreeMap::new();
    for (key, value) in counters {
        let rest = key.strip_prefix(class).and_then(|rest| rest.strip_prefix('.'));
        if let Some((id, name)) = rest.and_then(|rest| rest.rsplit_once('.')) {
            found.entry(id).or_default().insert(name, *value);
        }
    }
    found
}

impl DiskFigures {
    fn from_counters((id, counters): (&str, BTreeMap<&str, u64>)) -> DiskFigures {
        let get = |name| counters.get(name).copied();
        DiskFigures {
            id: id.to_owned(),
            read_bytes: get("read-bytes"),
            read_ops: get("read-ops"),
            written_bytes: get("written-bytes"),
            write_ops: get("write-ops"),
            flush_ops: get("flush-ops"),
            discard_ops: get("discard-ops"),
            failed_ops: get("failed-ops"),
            guest_errors: get("guest-errors"),
        }
    }
}

impl NicFigures {
    fn from_counters((id, counters): (&str, BTreeMap<&str, u64>)) -> NicFigures {
        let get = |name| counters.get(name).copied();
        NicFigures {
            id: id.to_owned(),
            received_bytes: get("received-bytes"),
            received_packets: get("received-packets"),
            sent_bytes: get("sent-bytes"),
            sent_packets: get("sent-packets"),
            guest_errors: get("guest-errors"),
        }
    }
}

/// Samples of the same guests over time.
#[derive(Default)]
pub struct Samples {
    last: BTreeMap<String, (Instant, Figures)>,
}

impl Samples {
    /// Returns the figures of each guest, and its rates since the last sample.
    pub fn next(&mut self, figures: Vec<Figures>) -> Vec<(Figures, Rates)> {
        let now = Instant::now();
        let before = std::mem::take(&mut self.last);
        let rated = |figures: Figures| {
            let name = figures.overview.name.clone();
            let rates = before.get(&name).map(|(then, last)| figures.rates(last, now.duration_since(*then)));
            self.last.insert(name, (now, figures.clone()));
            (figures, rates.unwrap_or_default())
        };
        figures.into_iter().map(rated).collect()
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// Creates the figures of a running guest of which only `counters` are known.
    pub fn figures(name: &str, engine: &str, counters: &[(&str, u64)]) -> Figures {
        let overview = Overview {
            name: name.into(),
            state: "running",
            cpus: Some(2),
            memory_bytes: Some(1 << 29),
            engine: Some(engine.into()),
            backend: None,
            tags: Vec::new(),
            description: None,
            protected: false,
            uuid: String::new(),
            ssh: None,
            addresses: Vec::new(),
            screen: None,
            medium: None,
            next_boot: None,
            pid: None,
            engine_pid: None,
            uptime_seconds: Some(60),
            ready: true,
            restarts: 0,
            restart_pending: false,
            failed: None,
            last_exit: None,
            problem: None,
        };
        let counters = counters.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect();
        Figures::from_counters(overview, &counters)
    }

    #[test]
    fn devices_are_told_apart_by_ids_with_dots_and_what_is_not_counted_is_not_known() {
        let found = figures(
            "g",
            "embedded",
            &[("disk.data.1.read-bytes", 7), ("disk.root.read-bytes", 1), ("disk.root.failed-ops", 0), ("diskette", 5)],
        );
        assert_eq!(found.disks.iter().map(|disk| disk.id.as_str()).collect::<Vec<_>>(), ["data.1", "root"]);
        assert_eq!((found.disks[1].failed_ops, found.disks[1].write_ops), (Some(0), None));
        assert_eq!(found.sum_of_disks(|disk| disk.read_bytes), Some(8));
        assert_eq!((found.sum_of_disks(|disk| disk.write_ops), found.sum_of_nics(|nic| nic.sent_bytes)), (None, None));
    }

    #[test]
    fn a_bhyve_guest_is_the_process_that_its_engine_names_and_the_memory_that_vmm_counts() {
        let pid = u64::from(std::process::id());
        let found = figures("g", "bhyve", &[("process-id", pid), ("vcpu0.Resident-memory", 4096)]);
        assert!(found.cpu_seconds.is_some());
        assert_eq!(found.resident_bytes, Some(4096));
        let silent = figures("g", "bhyve", &[]);
        assert_eq!((silent.cpu_seconds, silent.resident_bytes), (None, None));
    }

    #[test]
    fn rates_are_per_second_and_not_known_over_a_reboot() {
        let before = figures("g", "embedded", &[("disk.root.read-bytes", 1000), ("nic.net0.sent-bytes", 50)]);
        let mut after = figures("g", "embedded", &[("disk.root.read-bytes", 3000), ("nic.net0.sent-bytes", 10)]);
        let rates = after.rates(&before, Duration::from_secs(2));
        assert_eq!((rates.disk_read, rates.net_sent, rates.cpu_percent), (Some(1000.0), None, None));
        after.overview.engine_pid = Some(7);
        assert_eq!(after.rates(&before, Duration::from_secs(2)), Rates::default());
    }
}
