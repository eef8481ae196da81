//! Boot times: this program's software CPU against `qemu-system-x86_64 -accel tcg -cpu max`, with the same kernel,
//! initial RAM disk, disk and command line, in turn, both sides in one run. Prints the ratio of the medians.
//!
//! `VMCTL_BENCH_RUNS` is the number of runs a side (default 3). Needs what `make bench` prepares in `build/`.

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

fn main() {
    let runs: usize = std::env::var("VMCTL_BENCH_RUNS").ok().and_then(|text| text.parse().ok()).unwrap_or(3);
    for boot in BOOTS {
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for _ in 0..runs {
            theirs.push(qemu(boot));
            ours.push(vmctl(boot));
        }
        let (ours, theirs) = (median(ours), median(theirs));
        let ratio = ours.as_secs_f64() / theirs.as_secs_f64();
        println!(
            "boot: {}: vmctl {:.2} s, qemu tcg {:.2} s, ratio {ratio:.2} (target {:.1}; median of {runs})",
            boot.name,
            ours.as_secs_f64(),
            theirs.as_secs_f64(),
            boot.target
        );
    }
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
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

fn qemu(boot: &Boot) -> Duration {
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
    let took = wait_for(&mut child, boot.until, start);
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

fn vmctl(boot: &Boot) -> Duration {
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
    let run = |arguments: &[&str]| {
        let output =
            Command::new(env!("CARGO_BIN_EXE_vmctl")).arg("--datastore").arg(dir.path().join("store")).args(arguments).output();
        let output = output.expect("vmctl runs");
        let words = || output.stderr.lines().map_while(Result::ok).collect::<Vec<_>>().join("\n");
        assert!(output.status.success(), "vmctl {arguments:?}: {}", words());
    };
    run(&["create", "bench", "--file", file.to_str().expect("a plain path")]);
    let start = Instant::now();
    run(&["start", "--wait", "bench"]);
    let took = start.elapsed();
    run(&["poweroff", "bench"]);
    took
}
