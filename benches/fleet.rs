//! A thousand guests: `plan`, `apply` with nothing to do, `check` of their files, `list`. Prints the medians, each with what
//! is promised of it. Then twenty small guests on the software CPU, brought up by `up`, and `launch` of a cached image.
//!
//! The fleet of a thousand is made in a temporary datastore, and nothing of it is started. The guests that run have a
//! kernel of 64 bytes that says READY and sleeps. `VMCTL_BENCH_RUNS` is the number of runs (default 7).

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
    // `check` looks for them.
    ["vmlinuz", "initrd.img"].iter().for_each(|file| std::fs::write(dir.path().join(file), "nothing starts").expect("writes"));
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
    up();
    launch(runs);
}

/// How many guests are brought up.
const SMALL: usize = 20;
/// What a supervisor may have of its own.
const SUPERVISOR_TARGET_MIB: f64 = 6.0;

/// Ends what a bench has started.
struct Running<'a>(&'a Path);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        run(self.0, &["kill", "*", "-q"]);
    }
}

/// A Multiboot kernel (specification 0.6.96, section 3.1, with addresses): masks the interrupts, says READY on COM1, sleeps.
fn kernel() -> Vec<u8> {
    const LOADED_AT: u32 = 0x10_0000;
    const HEADER: usize = 32;
    const ADDRESSES: u32 = 1 << 16;
    const MAGIC: u32 = 0x1bad_b002;
    let checksum = 0u32.wrapping_sub(MAGIC).wrapping_sub(ADDRESSES);
    let header = [MAGIC, ADDRESSES, checksum, LOADED_AT, LOADED_AT, 0, 0, LOADED_AT + HEADER as u32];
    let mut image: Vec<u8> = header.iter().flat_map(|word| word.to_le_bytes()).collect();
    image.extend([0xb0, 0xff, 0xe6, 0x21, 0xe6, 0xa1]); // mov al, 0xff; out 0x21, al; out 0xa1, al
    image.extend([0x66, 0xba, 0xf8, 0x03]); // mov dx, 0x3f8
    for byte in b"READY\n" {
        image.extend([0xb0, *byte, 0xee]); // mov al, byte; out dx, al
    }
    image.extend([0xfb, 0xf4, 0xeb, 0xfc]); // sti; again: hlt; jmp again - 1
    image
}

/// Twenty guests, all ready; what their supervisors have of their own; whether every one of their events is kept.
fn up() {
    let dir = tempfile::tempdir().expect("a scratch folder");
    std::fs::write(dir.path().join("kernel"), kernel()).expect("writes");
    let guests = format!(
        "name = \"small\"\n[[guests]]\nname = \"s-{{{{ index | pad(2) }}}}\"\ncount = {SMALL}\nmemory = \"16M\"\n\
         backend = \"soft\"\nkernel = {{ image = \"kernel\" }}\nready = {{ console = \"READY\", timeout = \"2m\" }}\n\
         autostart = {{ enabled = true, wait = \"ready\" }}\n"
    );
    std::fs::write(dir.path().join("fleet.toml"), guests).expect("writes");
    run(dir.path(), &["apply", "--yes", "-q"]);
    let _running = Running(dir.path());
    let took = run(dir.path(), &["up", "-q"]);
    let (mut private, mut ready, mut events) = (Vec::new(), 0, 0);
    for name in (1..=SMALL).map(|at| format!("s-{at:02}")) {
        let guest = dir.path().join("store/guests").join(&name);
        let text = std::fs::read_to_string(guest.join("run.json")).expect("it runs");
        let state: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        ready += usize::from(state["ready"] == true);
        private.push(of_its_own_kib(state["pid"].as_u64().expect("a process")));
        let log = std::fs::read_to_string(guest.join("events.jsonl")).expect("it has events");
        let kind = |line| serde_json::from_str::<serde_json::Value>(line).expect("whole lines")["event"].clone();
        let kinds: Vec<serde_json::Value> = log.lines().map(kind).collect();
        events += usize::from(["running", "ready"].iter().all(|wanted| kinds.iter().filter(|kind| *kind == wanted).count() == 1));
    }
    assert_eq!((ready, events), (SMALL, SMALL), "guests that are ready, guests whose events are all there");
    private.sort_unstable();
    let mib = |kib: u64| kib as f64 / 1024.0;
    println!("fleet: up of {SMALL} guests on the software CPU: all ready after {:.2} s, no event lost", took.as_secs_f64());
    println!(
        "fleet: memory of a supervisor, proportional set size: {:.1} MiB the middle one, {:.1} MiB the largest (target {SUPERVISOR_TARGET_MIB})",
        mib(private[SMALL / 2]),
        mib(private[SMALL - 1])
    );
}

/// The proportional set size (proc(5), smaps_rollup): what the process has of its own, and its share of what several have.
fn of_its_own_kib(pid: u64) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).expect("the kernel tells");
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:")).expect("a proportional set size");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

/// The image that is launched: 2 GiB, of which so much is written.
const IMAGE_BYTES: u64 = 2 << 30;
const WRITTEN_MIB: u64 = 64;

/// `launch` of a cached image, from the command to the guest's first instruction.
fn launch(runs: usize) {
    use std::io::{Seek, SeekFrom, Write};
    let dir = tempfile::tempdir().expect("a scratch folder");
    std::fs::write(dir.path().join("kernel"), kernel()).expect("writes");
    std::fs::write(dir.path().join("vmctl.toml"), "cache_dir = \"cache\"\n").expect("writes");
    let mut image = std::fs::File::create(dir.path().join("image.raw")).expect("makes");
    image.set_len(IMAGE_BYTES).expect("sizes");
    for at in 0..WRITTEN_MIB {
        image.seek(SeekFrom::Start(at * (IMAGE_BYTES / WRITTEN_MIB))).expect("seeks");
        image.write_all(&vec![at as u8 + 1; 1 << 20]).expect("writes");
    }
    drop(image);
    let host = ["--config", "vmctl.toml"];
    run(dir.path(), &[&host[..], &["image", "import", "image.raw", "--name", "bench", "-q"]].concat());
    let _running = Running(dir.path());
    let image = dir.path().join("kernel").display().to_string();
    let kernel = format!("kernel.image={image}");
    let times = (0..runs).map(|at| {
        let name = format!("l-{at}");
        let launch =
            ["launch", "bench", &name, "--no-wait", "-q", "--set", "loader=kernel", "--set", &kernel, "--set", "backend=soft"];
        run(dir.path(), &[&host[..], &launch[..]].concat())
    });
    println!(
        "fleet: launch of a cached image of 2 GiB, {WRITTEN_MIB} MiB of it written, to the first instruction: {:.0} ms (target 300; median of {runs})",
        median(times.collect())
    );
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
