//! A thousand guests: `plan`, `apply` with nothing to do, `check` of their files, `list`. Prints the medians, each with what
//! is promised of it.
//!
//! The fleet is made in a temporary datastore; nothing is started. `VMCTL_BENCH_RUNS` is the number of runs (default 7).

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

const GUESTS: usize = 1000;

const FLEET: &str = r#"name = "bench"
[defaults]
stop_timeout = "30s"
[[templates]]
id = "server"
template = "linux-kernel"
parameters = [{ id = "disk", default = "8G" }, { id = "ssh" }]
kernel = { image = "vmlinuz", initrd = "initrd.img" }
disks = [{ id = "root", size = "{{ disk }}" }]
autostart = { enabled = true, after = ["web-0001"] }
nics = [{ id = "net0", forwards = [{ id = "ssh", host_port = "{{ ssh }}", guest_port = 22 }] }]
[[guests]]
name = "web-{{ index | pad(4) }}"
template = "server"
count = COUNT
with = { ssh = "{{ 20000 + index }}" }
unset = ["autostart"]
"#;

fn main() {
    let runs: usize = std::env::var("VMCTL_BENCH_RUNS").ok().and_then(|text| text.parse().ok()).unwrap_or(7);
    let dir = tempfile::tempdir().expect("a scratch folder");
    std::fs::write(dir.path().join("fleet.toml"), FLEET.replace("COUNT", &GUESTS.to_string())).expect("writes");
    let made = Instant::now();
    run(dir.path(), &["apply", "--yes", "-q", "--parallel", "16"]);
    println!("fleet: {GUESTS} guests made in {:.1} s", made.elapsed().as_secs_f64());
    run(dir.path(), &["render", "--out", "rendered", "-q"]);
    let files: Vec<String> = (1..=GUESTS).map(|at| format!("rendered/web-{at:04}.toml")).collect();
    let check: Vec<&str> = ["check", "-q"].into_iter().chain(files.iter().map(String::as_str)).collect();
    let (mut plan, mut apply, mut checks, mut list) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..runs {
        plan.push(run(dir.path(), &["plan", "-q"]));
        apply.push(run(dir.path(), &["apply", "--yes", "-q"]));
        checks.push(run(dir.path(), &check));
        list.push(run(dir.path(), &["list", "-o", "name"]));
    }
    let (plan, apply) = (median(plan), median(apply));
    println!("fleet: plan over {GUESTS} guests: {plan:.1} ms (target 300; median of {runs})");
    println!("fleet: apply with nothing to do: {apply:.1} ms, {:.2} times the plan (target 1.2)", apply / plan);
    println!("fleet: check of {GUESTS} files: {:.1} ms (target 100)", median(checks));
    println!("fleet: list of {GUESTS} guests: {:.1} ms (target 50)", median(list));
}

/// Milliseconds.
fn median(mut times: Vec<Duration>) -> f64 {
    times.sort();
    times[times.len() / 2].as_secs_f64() * 1000.0
}

/// Runs a command that must succeed; how long it took, with its process.
fn run(directory: &Path, arguments: &[&str]) -> Duration {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vmctl"));
    command.current_dir(directory).env("VMCTL_CONFIG", "/dev/null").env("VMCTL_DATASTORE", directory.join("store"));
    let start = Instant::now();
    let output = command.args(arguments).output().expect("vmctl runs");
    let took = start.elapsed();
    assert!(output.status.success(), "vmctl {}: {}", arguments[0], String::from_utf8_lossy(&output.stderr));
    took
}
