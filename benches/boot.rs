//! Boot times and what a guest costs: this program's software CPU against `qemu-system-x86_64 -accel tcg -cpu max`, with
//! the same kernel, initial RAM disk, disk and command line.
//!
//! The sides boot in turn, so that what else the machine does hits both, and the least time of each side counts: the one
//! that was disturbed least. Two ratios are printed: of wall time and of processor time (of all of a side's processes
//! up to the awaited text), which says the same on an idle machine and is all that can be trusted on a busy one.
//!
//! Behind the boots: what an idle guest costs of a core, the resident memory of the VMM beyond the guest's RAM, and how long
//! `vmctl start` takes to the guest's first instruction.
//!
//! `VMCTL_BENCH_RUNS` is the number of runs a side (default 5). Needs what `make bench` prepares in `build/`.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A boot that takes longer has failed.
const LIMIT: Duration = Duration::from_secs(300);

struct Boot {
    name: &'static str,
    folder: &'static str,
    cmdline: &'static str,
    memory_mib: u32,
    disk: bool,
    /// What the console says at the end.
    until: &'static str,
    /// The ratio that is promised.
    target: f64,
}

const BOOTS: &[Boot] = &[
    Boot {
        name: "Debian kernel + busybox to its shell",
        folder: "build/test-guest",
        cmdline: "console=ttyS0",
        memory_mib: 512,
        disk: false,
        until: "vmctl-test-guest: ready",
        target: 1.0,
    },
    Boot {
        name: "whole Debian to login:",
        folder: "build/debian",
        cmdline: "console=ttyS0 root=/dev/vda ro",
        memory_mib: 512,
        disk: true,
        until: "login:",
        target: 1.5,
    },
];

/// The wait before an idle guest is looked at, and for how long it is.
const SETTLE: Duration = Duration::from_secs(5);
const IDLE: Duration = Duration::from_secs(20);
/// What an idle guest may cost of a core, in percent.
const IDLE_TARGET: f64 = 2.0;
/// How often a guest is started, and how long that may take.
const START_RUNS: usize = 9;
const START_TARGET_MS: f64 = 100.0;
/// What may be resident besides the guest's RAM.
const MEMORY_TARGET_MIB: f64 = 40.0;

/// What a boot took.
#[derive(Clone, Copy)]
struct Took {
    wall: Duration,
    processor: Duration,
}

fn main() {
    let runs: usize = std::env::var("VMCTL_BENCH_RUNS").ok().and_then(|text| text.parse().ok()).unwrap_or(5);
    for boot in BOOTS {
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for _ in 0..runs {
            theirs.push(qemu(boot));
            ours.push(vmctl(boot).took);
        }
        for (what, of) in [("wall time", (|t| t.wall) as fn(&Took) -> Duration), ("processor time", |t| t.processor)] {
            let least = |times: &[Took]| times.iter().map(of).min().unwrap_or_default().as_secs_f64();
            let (ours, theirs) = (least(&ours), least(&theirs));
            println!(
                "boot: {}: {what}: vmctl {ours:.2} s, qemu tcg {theirs:.2} s, ratio {:.2} (target {:.1}{}; least of {runs})",
                boot.name,
                ours / theirs,
                boot.target,
                missed(ours / theirs > boot.target)
            );
        }
    }
    costs(&BOOTS[0]);
    starts(&BOOTS[1]);
}

fn missed(is: bool) -> &'static str {
    if is { ", MISSED" } else { "" }
}

/// Boots once more and looks at the guest while it idles at its shell.
fn costs(boot: &Boot) {
    let guest = vmctl(boot);
    std::thread::sleep(SETTLE);
    let pids = guest.processes();
    let before: Duration = pids.iter().map(|&pid| processor_time(pid)).sum();
    let start = Instant::now();
    std::thread::sleep(IDLE);
    let spent = pids.iter().map(|&pid| processor_time(pid)).sum::<Duration>() - before;
    let percent = 100.0 * spent.as_secs_f64() / start.elapsed().as_secs_f64();
    println!("idle: {percent:.2} % of a core (target {IDLE_TARGET:.0} %{})", missed(percent > IDLE_TARGET));
    let (beyond, touched) =
        pids.iter().map(|&pid| resident_mib(pid, boot.memory_mib)).fold((0.0, 0.0), |all, one| (all.0 + one.0, all.1 + one.1));
    println!(
        "memory: {beyond:.1} MiB resident beyond the guest's RAM (target {MEMORY_TARGET_MIB:.0} MiB{}), {touched:.0} of {} MiB of it touched",
        missed(beyond > MEMORY_TARGET_MIB),
        boot.memory_mib
    );
}

/// How long `vmctl start` takes: it returns when the engine is about to run the first guest instruction. The disk is made.
fn starts(boot: &Boot) {
    let guest = vmctl(boot);
    let mut times: Vec<Duration> = (0..START_RUNS)
        .map(|_| {
            Guest::run(guest.dir.path(), &["kill", "bench"]);
            let start = Instant::now();
            Guest::run(guest.dir.path(), &["start", "bench"]);
            start.elapsed()
        })
        .collect();
    times.sort();
    let (least, median) = (times[0].as_secs_f64() * 1000.0, times[START_RUNS / 2].as_secs_f64() * 1000.0);
    println!(
        "start: {median:.0} ms to the first instruction of {} (median of {START_RUNS}, least {least:.0}; target {START_TARGET_MS:.0} ms{})",
        boot.folder,
        missed(median > START_TARGET_MS)
    );
}

/// User and system time of a process so far: fields 14 and 15 of proc_pid_stat(5).
fn processor_time(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or("").split_whitespace().collect();
    let ticks = |n: usize| fields.get(n - 3).and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
    // Linux shows them in hundredths of a second on all its x86 and Arm configurations (USER_HZ).
    Duration::from_millis(10 * (ticks(14) + ticks(15)))
}

/// Resident MiB of a process besides mappings as large as guest memory is, and of those.
fn resident_mib(pid: u32, memory_mib: u32) -> (f64, f64) {
    let (mut beyond, mut touched, mut size) = (0, 0, 0);
    for line in std::fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap_or_default().lines() {
        let mut words = line.split_whitespace();
        let (name, value) = (words.next().unwrap_or(""), words.next().and_then(|text| text.parse::<u64>().ok()).unwrap_or(0));
        match name {
            "Size:" => size = value,
            "Rss:" if size >= u64::from(memory_mib) * 1024 / 2 => touched += value,
            "Rss:" => beyond += value,
            _ => {}
        }
    }
    (beyond as f64 / 1024.0, touched as f64 / 1024.0)
}

/// A scratch copy of the boot's disk, sparse: a boot writes to it.
fn scratch_disk(boot: &Boot, dir: &Path) -> Option<PathBuf> {
    boot.disk.then(|| {
        let copy = dir.join("root.img");
        let status = Command::new("cp").args(["--sparse=always"]).arg(format!("{}/root.img", boot.folder)).arg(&copy).status();
        assert!(status.expect("cp runs").success());
        copy
    })
}

fn qemu(boot: &Boot) -> Took {
    let dir = tempfile::tempdir().expect("a scratch folder");
    let disk = scratch_disk(boot, dir.path());
    let mut command = Command::new("qemu-system-x86_64");
    command.args(["-accel", "tcg", "-cpu", "max", "-nographic", "-no-reboot", "-m", &boot.memory_mib.to_string()]);
    command.args(["-kernel", &format!("{}/vmlinuz", boot.folder), "-initrd", &format!("{}/initrd.img", boot.folder)]);
    command.args(["-append", boot.cmdline]);
    if let Some(disk) = &disk {
        command.args(["-drive", &format!("file={},format=raw,if=virtio", disk.display())]);
    }
    let start = Instant::now();
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("qemu-system-x86_64 runs");
    let wall = wait_for(&mut child, boot.until, start);
    let took = Took { wall, processor: processor_time(child.id()) };
    let _ = child.kill();
    let _ = child.wait();
    took
}

/// Reads the child's output until it holds `text`.
fn wait_for(child: &mut Child, text: &str, start: Instant) -> Duration {
    let mut output = BufReader::new(child.stdout.take().expect("piped"));
    let mut seen = Vec::new();
    let mut chunk = [0; 4096];
    while start.elapsed() < LIMIT {
        let n = output.read(&mut chunk).expect("readable");
        seen.extend_from_slice(&chunk[..n]);
        if String::from_utf8_lossy(&seen).contains(text) {
            return start.elapsed();
        }
        if n == 0 {
            break;
        }
    }
    panic!("the boot did not get to `{text}`:\n{}", String::from_utf8_lossy(&seen));
}

/// A guest that has booted; it is powered off when this goes.
struct Guest {
    dir: tempfile::TempDir,
    took: Took,
}

impl Guest {
    fn run(dir: &Path, arguments: &[&str]) {
        let output = Command::new(env!("CARGO_BIN_EXE_vmctl")).arg("--datastore").arg(dir.join("store")).args(arguments).output();
        let output = output.expect("vmctl runs");
        let words = || output.stderr.lines().map_while(Result::ok).collect::<Vec<_>>().join("\n");
        assert!(output.status.success(), "vmctl {arguments:?}: {}", words());
    }

    /// The supervisor and the engine: what names the datastore in its command line.
    fn processes(&self) -> Vec<u32> {
        processes_of(self.dir.path())
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        Guest::run(self.dir.path(), &["poweroff", "bench"]);
    }
}

fn processes_of(dir: &Path) -> Vec<u32> {
    let dir = dir.to_str().expect("a plain path");
    let processes = std::fs::read_dir("/proc").expect("a readable /proc").flatten();
    let named = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    named
        .filter(|pid| {
            let cmdline = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&cmdline).contains(dir)
        })
        .collect()
}

fn vmctl(boot: &Boot) -> Guest {
    let dir = tempfile::tempdir().expect("a scratch folder");
    let here = std::env::current_dir().expect("a current folder");
    let disk = scratch_disk(boot, dir.path());
    let disk = disk
        .map_or(String::new(), |path| format!("[[disks]]\nid = \"root\"\nbackend = \"file\"\npath = \"{}\"\n", path.display()));
    let file = dir.path().join("bench.toml");
    let text = format!(
        "name = \"bench\"\nmemory = \"{}M\"\nengine = \"embedded\"\nbackend = \"soft\"\nloader = \"kernel\"\n\
         [kernel]\nimage = \"{folder}/vmlinuz\"\ninitrd = \"{folder}/initrd.img\"\ncmdline = \"{}\"\n{disk}\
         [ready]\nconsole = \"{}\"\ntimeout = \"5m\"\n",
        boot.memory_mib,
        boot.cmdline,
        boot.until,
        folder = here.join(boot.folder).display(),
    );
    std::fs::write(&file, text).expect("a written guest file");
    Guest::run(dir.path(), &["create", "bench", "--file", file.to_str().expect("a plain path")]);
    let start = Instant::now();
    Guest::run(dir.path(), &["start", "--wait", "bench"]);
    let wall = start.elapsed();
    let processor = processes_of(dir.path()).into_iter().map(processor_time).sum();
    Guest { dir, took: Took { wall, processor } }
}
