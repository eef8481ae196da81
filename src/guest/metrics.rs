//! Metrics of guests in Prometheus' formats: text exposition format 0.0.4
//! (<https://prometheus.io/docs/instrumenting/exposition_formats/>), and OpenMetrics 1.0.0
//! (<https://prometheus.io/docs/specs/om/open_metrics_spec/>, "Text format").
//!
//! Names follow the conventions of both: base units, `_total` after counters. OpenMetrics needs the metadata under the
//! name without it, a `UNIT` if the name ends with one, and an end mark, so that a part is not taken for the whole. The
//! samples are the same. An unknown figure has no line.

use std::fmt::Write;

use super::figures::{DiskFigures, Figures, NicFigures};
use super::metrics_format::Format;

/// Units at the end of names. Other metrics are counts or states.
const UNITS: &[&str] = &["bytes", "seconds"];

/// All states that a guest can have, so that each has its line.
pub const STATES: &[&str] = &["stopped", "failed", "starting", "running", "stopping", "waiting", "busy"];

/// One metric.
pub struct Metric {
    /// Its name.
    pub name: &'static str,
    /// Prometheus' type.
    pub kind: &'static str,
    /// Description in one sentence.
    pub help: &'static str,
    figures: Source,
}

/// Source of a metric's lines.
enum Source {
    /// One line for each state, with 1 for the state of the guest.
    State,
    Guest(fn(&Figures) -> Option<f64>),
    Disk(fn(&DiskFigures) -> Option<u64>),
    Nic(fn(&NicFigures) -> Option<u64>),
}

const fn gauge(name: &'static str, help: &'static str, read: fn(&Figures) -> Option<f64>) -> Metric {
    Metric { name, kind: "gauge", help, figures: Source::Guest(read) }
}

const fn disk(name: &'static str, help: &'static str, read: fn(&DiskFigures) -> Option<u64>) -> Metric {
    Metric { name, kind: "counter", help, figures: Source::Disk(read) }
}

const fn nic(name: &'static str, help: &'static str, read: fn(&NicFigures) -> Option<u64>) -> Metric {
    Metric { name, kind: "counter", help, figures: Source::Nic(read) }
}

fn whole(value: Option<u64>) -> Option<f64> {
    value.map(|value| value as f64)
}

/// Every metric, in the order in which they are written.
pub const METRICS: &[Metric] = &[
    Metric {
        name: "vmctl_guest_state",
        kind: "gauge",
        help: "1 for the state that the guest is in, 0 for the others.",
        figures: Source::State,
    },
    gauge("vmctl_guest_ready", "Whether all readiness probes have passed.", |guest| Some(f64::from(guest.overview.ready))),
    gauge("vmctl_guest_uptime_seconds", "How long the guest has been running.", |guest| whole(guest.overview.uptime_seconds)),
    gauge("vmctl_guest_restarts", "Restarts since the guest was started.", |guest| {
        guest.overview.pid.map(|_| guest.overview.restarts as f64)
    }),
    gauge("vmctl_guest_vcpus", "Virtual CPUs, as configured.", |guest| guest.overview.cpus.map(f64::from)),
    gauge("vmctl_guest_memory_bytes", "Memory of the guest, as configured.", |guest| whole(guest.overview.memory_bytes)),
    Metric {
        name: "vmctl_guest_cpu_seconds_total",
        kind: "counter",
        help: "Processor time of the host that the engine has used.",
        figures: Source::Guest(|guest| guest.cpu_seconds),
    },
    gauge("vmctl_guest_resident_bytes", "Memory of the host that the guest's engine has.", |guest| whole(guest.resident_bytes)),
    gauge("vmctl_guest_supervisor_resident_bytes", "Memory of the host that the guest's supervisor has.", |guest| {
        whole(guest.supervisor_resident_bytes)
    }),
    disk("vmctl_guest_disk_read_bytes_total", "Bytes that the guest has read.", |disk| disk.read_bytes),
    disk("vmctl_guest_disk_reads_total", "Reads of the guest.", |disk| disk.read_ops),
    disk("vmctl_guest_disk_written_bytes_total", "Bytes that the guest has written.", |disk| disk.written_bytes),
    disk("vmctl_guest_disk_writes_total", "Writes of the guest.", |disk| disk.write_ops),
    disk("vmctl_guest_disk_flushes_total", "Flushes of the guest.", |disk| disk.flush_ops),
    disk("vmctl_guest_disk_discards_total", "Discards of the guest.", |disk| disk.discard_ops),
    disk("vmctl_guest_disk_failures_total", "Requests of the guest that failed.", |disk| disk.failed_ops),
    disk("vmctl_guest_disk_guest_errors_total", "Rules that the guest's driver broke.", |disk| disk.guest_errors),
    nic("vmctl_guest_network_receive_bytes_total", "Bytes of frames to the guest.", |nic| nic.received_bytes),
    nic("vmctl_guest_network_receive_packets_total", "Frames to the guest.", |nic| nic.received_packets),
    nic("vmctl_guest_network_transmit_bytes_total", "Bytes of frames from the guest.", |nic| nic.sent_bytes),
    nic("vmctl_guest_network_transmit_packets_total", "Frames from the guest.", |nic| nic.sent_packets),
    nic("vmctl_guest_network_guest_errors_total", "Rules that the guest's driver broke.", |nic| nic.guest_errors),
];

/// Returns the text for `guests`, which have different names.
pub fn exposition(guests: &[Figures], format: Format) -> String {
    let mut text = String::new();
    for metric in METRICS {
        let mut lines = String::new();
        for guest in guests {
            metric.write(guest, &mut lines);
        }
        if !lines.is_empty() {
            metric.describe(format, &mut text);
            text += &lines;
        }
    }
    if format == Format::OpenMetrics {
        text += "# EOF\n";
    }
    text
}

impl Metric {
    fn describe(&self, format: Format, text: &mut String) {
        let Metric { name, kind, help, .. } = self;
        let _ = match format {
            Format::Prometheus => write!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n"),
            Format::OpenMetrics => {
                let family = name.strip_suffix("_total").unwrap_or(name);
                let unit = family.rsplit('_').next().filter(|unit| UNITS.contains(unit));
                let unit = unit.map(|unit| format!("# UNIT {family} {unit}\n")).unwrap_or_default();
                write!(text, "# TYPE {family} {kind}\n{unit}# HELP {family} {help}\n")
            }
        };
    }

    fn write(&self, guest: &Figures, text: &mut String) {
        let name = guest.overview.name.as_str();
        match self.figures {
            Source::State => {
                for state in STATES {
                    let value = u64::from(guest.overview.state == *state);
                    self.line(&[("guest", name), ("state", state)], Some(value), text);
                }
            }
            Source::Guest(read) => self.line(&[("guest", name)], read(guest), text),
            Source::Disk(read) => {
                guest.disks.iter().for_each(|disk| self.line(&[("guest", name), ("disk", &disk.id)], read(disk), text));
            }
            Source::Nic(read) => {
                guest.nics.iter().for_each(|nic| self.line(&[("guest", name), ("nic", &nic.id)], read(nic), text));
            }
        }
    }

    fn line(&self, labels: &[(&str, &str)], value: Option<impl std::fmt::Display>, text: &mut String) {
        if let Some(value) = value {
            let labels: Vec<String> = labels.iter().map(|(name, value)| format!("{name}=\"{}\"", escaped(value))).collect();
            let _ = writeln!(text, "{}{{{}}} {value}", self.name, labels.join(","));
        }
    }
}

/// Escapes a label's value, which may contain any text except for three characters.
fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::super::figures::tests::figures;
    use super::*;

    #[test]
    fn each_metric_is_one_group_with_its_help_and_type_first() {
        let guests = [
            figures("web", "embedded", &[("disk.root.read-bytes", 1 << 60), ("nic.net0.sent-packets", 3)]),
            figures("db", "embedded", &[("disk.root.read-bytes", 5)]),
        ];
        let text = exposition(&guests, Format::Prometheus);
        let expected = "\
# HELP vmctl_guest_disk_read_bytes_total Bytes that the guest has read.
# TYPE vmctl_guest_disk_read_bytes_total counter
vmctl_guest_disk_read_bytes_total{guest=\"web\",disk=\"root\"} 1152921504606846976
vmctl_guest_disk_read_bytes_total{guest=\"db\",disk=\"root\"} 5
";
        assert!(text.contains(expected), "{text}");
        assert!(text.contains("vmctl_guest_state{guest=\"db\",state=\"running\"} 1\n"), "{text}");
        assert!(text.contains("vmctl_guest_state{guest=\"db\",state=\"failed\"} 0\n"), "{text}");
        // The figures of writes and of the processor are not known: there is neither a line nor a heading, and no zero.
        assert!(!text.contains("written") && !text.contains("cpu_seconds"), "{text}");
        assert!(text.ends_with('\n'));
    }

    #[test]
    fn open_metrics_names_families_without_total_and_says_units_and_the_end() {
        let text = exposition(
            &[figures("web", "embedded", &[("disk.root.read-bytes", 5), ("disk.root.read-ops", 1)])],
            Format::OpenMetrics,
        );
        let expected = "\
# TYPE vmctl_guest_disk_read_bytes counter
# UNIT vmctl_guest_disk_read_bytes bytes
# HELP vmctl_guest_disk_read_bytes Bytes that the guest has read.
vmctl_guest_disk_read_bytes_total{guest=\"web\",disk=\"root\"} 5
# TYPE vmctl_guest_disk_reads counter
# HELP vmctl_guest_disk_reads Reads of the guest.
vmctl_guest_disk_reads_total{guest=\"web\",disk=\"root\"} 1
# EOF
";
        assert!(text.ends_with(expected), "{text}");
        assert!(text.contains("# TYPE vmctl_guest_uptime_seconds gauge\n# UNIT vmctl_guest_uptime_seconds seconds\n"), "{text}");
        assert_eq!(exposition(&[], Format::OpenMetrics), "# EOF\n");
        let samples = |text: &str| text.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(
            samples(&text),
            samples(&exposition(
                &[figures("web", "embedded", &[("disk.root.read-bytes", 5), ("disk.root.read-ops", 1)])],
                Format::Prometheus
            ))
        );
    }

    #[test]
    fn what_would_end_a_label_is_escaped() {
        assert_eq!(escaped("a\\b\"c\nd"), "a\\\\b\\\"c\\nd");
    }

    #[test]
    fn every_metric_is_in_the_manual_and_named_as_prometheus_wants_it() {
        let manual = include_str!("../../docs/metrics.md");
        let names: Vec<&str> = METRICS.iter().map(|metric| metric.name).collect();
        for metric in METRICS {
            let row = format!("| `{}` | {} |", metric.name, metric.kind);
            assert!(manual.contains(&row), "docs/metrics.md has no row beginning with {row}");
            assert_eq!(metric.kind == "counter", metric.name.ends_with("_total"), "{}", metric.name);
            assert!(metric.name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'), "{}", metric.name);
        }
        let rows = manual.lines().filter_map(|line| line.strip_prefix("| `vmctl_")?.split_once('`'));
        for (rest, _) in rows {
            assert!(names.contains(&format!("vmctl_{rest}").as_str()), "docs/metrics.md has vmctl_{rest}, which is no metric");
        }
    }
}
