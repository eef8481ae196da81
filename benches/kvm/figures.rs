//! The same guest on this program and on other VMMs, all on KVM: time to the guest's init, exits, memory, many at once, disk.
//!
//! The sides run in turn, so that what else the host does hits all; of the times the least and the median are printed. In a
//! host that is itself emulated, times vary by a factor of two and an exit costs much more than on hardware: there the
//! ratios within one run count, and the numbers of exits.
//!
//! A peer is one line of the file that `VMCTL_KVM_PEERS` names: its name, a colon, and its command, in which {memory} (MiB),
//! {cmdline} and {disk} are replaced. COM1 must be its standard output. A peer whose program is not there is named as such.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A boot that takes longer has failed.
const LIMIT: Duration = Duration::from_secs(240);
const MEMORY_MIB: u32 = 128;
const READY: &str = "vmctl-test-guest: ready";
/// What is promised.
const EXITS: u64 = 4000;
const ANONYMOUS_MIB: f64 = 2.0;
const SHARE_MIB: f64 = 4.0;
const MANY: usize = 20;
const EACH_OF_MANY: f64 = 1.5;
/// What the guest reads in each of the two trials of its disk, in MiB.
const READ_MIB: [u32; 2] = [64, 8];

/// A VMM.
struct Side {
    name: String,
    /// The words of its command; none for this program.
    command: Vec<String>,
}

impl Side {
    fn all() -> Vec<Side> {
        let mut sides = vec![Side { name: "vmctl".into(), command: vec![] }];
        let file = std::env::var("VMCTL_KVM_PEERS").unwrap_or_default();
        for line in std::fs::read_to_string(&file).unwrap_or_default().lines().filter(|line| !line.starts_with('#')) {
            let Some((name, command)) = line.split_once(':') else { continue };
            let command: Vec<String> = command.split_whitespace().map(String::from).collect();
            let there = command.first().is_some_and(|program| Command::new(program).arg("--version").output().is_ok());
            match there {
                true => sides.push(Side { name: name.trim().into(), command }),
                false => println!("kvm: {} is not here", name.trim()),
            }
        }
        sides
    }

    /// Starts a guest called `name`, whose command line has `words` besides.
    fn start(&self, name: &str, words: &str, disk: Option<&Path>) -> Guest {
        let cmdline = format!("console=ttyS0 {words}");
        let mut command = match self.command.as_slice() {
            [] => vmctl(name, &cmdline, disk),
            [program, words @ ..] => {
                let disk = disk.map_or_else(|| image("none", 1), Path::to_path_buf).display().to_string();
                let mut command = Command::new(program);
                command.args(words.iter().map(|word| {
                    let word = word.replace("{memory}", &MEMORY_MIB.to_string());
                    word.replace("{cmdline}", &cmdline).replace("{disk}", &disk)
                }));
                command
            }
        };
        let start = Instant::now();
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        let child = command.spawn().unwrap_or_else(|error| panic!("{}: {error}", self.name));
        Guest { child, start, said: String::new(), ours: self.command.is_empty().then(|| name.to_string()) }
    }
}

/// Makes an empty disk.
fn image(name: &str, mib: u32) -> PathBuf {
    let path = PathBuf::from(format!("/tmp/{name}.img"));
    let file = std::fs::File::create(&path).expect("a disk");
    file.set_len(u64::from(mib) << 20).expect("a length");
    path
}

/// Makes a guest of this program's and returns the command that runs it.
fn vmctl(name: &str, cmdline: &str, disk: Option<&Path>) -> Command {
    let disk = disk.map_or(String::new(), |path| format!("[[disks]]\nid = \"data\"\npath = \"{}\"\n", path.display()));
    let text = format!(
        "name = \"{name}\"\nengine = \"embedded\"\nbackend = \"kvm\"\nmemory = \"{MEMORY_MIB}M\"\nrng = false\n\
         [kernel]\nimage = \"/guest/vmlinuz\"\ninitrd = \"/guest/initrd.img\"\ncmdline = \"{cmdline}\"\n{disk}"
    );
    let file = format!("/tmp/{name}.toml");
    std::fs::write(&file, text).expect("a written guest file");
    let made = Command::new("vmctl").args(["create", name, "--file", &file]).output().expect("vmctl runs");
    assert!(made.status.success(), "vmctl create: {}", String::from_utf8_lossy(&made.stderr));
    let mut command = Command::new("vmctl");
    command.args(["run", name]);
    command
}

/// A running guest.
struct Guest {
    child: Child,
    start: Instant,
    said: String,
    ours: Option<String>,
}

impl Guest {
    /// Reads the console until it says `text`. Returns how long that took from the start of the process.
    fn until(&mut self, text: &str) -> Duration {
        let mut chunk = [0; 4096];
        let output = self.child.stdout.as_mut().expect("piped");
        while self.start.elapsed() < LIMIT {
            let n = output.read(&mut chunk).expect("readable");
            self.said.push_str(&String::from_utf8_lossy(&chunk[..n]));
            if self.said.contains(text) {
                return self.start.elapsed();
            }
            if n == 0 {
                break;
            }
        }
        panic!("the guest did not say `{text}`:\n{}", self.said);
    }

    /// Its process and all below it.
    fn processes(&self) -> Vec<u32> {
        let parent_of = |pid: u32| -> Option<u32> {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            stat.rsplit(')').next()?.split_whitespace().nth(1)?.parse().ok()
        };
        let all: Vec<u32> = std::fs::read_dir("/proc")
            .expect("a readable /proc")
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .collect();
        let mut tree = vec![self.child.id()];
        loop {
            let below = |pid: &u32| !tree.contains(pid) && parent_of(*pid).is_some_and(|parent| tree.contains(&parent));
            let found: Vec<u32> = all.iter().copied().filter(|pid| below(pid)).collect();
            if found.is_empty() {
                return tree;
            }
            tree.extend(found);
        }
    }

    /// Anonymous memory and proportional share of its processes besides the guest's RAM, in MiB.
    fn memory(&self) -> (f64, f64) {
        let (mut anonymous, mut share) = (0, 0);
        for pid in self.processes() {
            let mut size = 0;
            for line in std::fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap_or_default().lines() {
                let mut words = line.split_whitespace();
                let (name, value) = (words.next().unwrap_or(""), words.next().and_then(|text| text.parse::<u64>().ok()));
                match (name, value.unwrap_or(0)) {
                    ("Size:", value) => size = value,
                    // A mapping as large as the guest is the guest.
                    _ if size >= u64::from(MEMORY_MIB) * 1024 / 2 => {}
                    ("Pss:", value) => share += value,
                    ("Anonymous:", value) => anonymous += value,
                    _ => {}
                }
            }
        }
        (anonymous as f64 / 1024.0, share as f64 / 1024.0)
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        if let Some(name) = &self.ours {
            let _ = Command::new("vmctl").args(["kill", name]).output();
            let _ = self.child.wait();
            let _ = Command::new("vmctl").args(["destroy", "--yes", name]).output();
        } else {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// One of KVM's counters, over all machines that there are now.
fn counter(name: &str) -> u64 {
    let text = std::fs::read_to_string(format!("/sys/kernel/debug/kvm/{name}"));
    text.unwrap_or_else(|error| panic!("KVM's counters: {error}")).trim().parse().expect("a number")
}

fn missed(is: bool) -> &'static str {
    if is { ", MISSED" } else { "" }
}

fn least_and_median(times: &[Duration]) -> (f64, f64) {
    let mut times: Vec<f64> = times.iter().map(Duration::as_secs_f64).collect();
    times.sort_by(f64::total_cmp);
    (times[0], times[times.len() / 2])
}

/// What a side's boots took.
#[derive(Default)]
struct Boots {
    times: Vec<Duration>,
    exits: Vec<u64>,
    memory: Vec<(f64, f64)>,
    com1: Vec<f64>,
}

/// Prints all figures.
pub fn race() {
    let runs: usize = std::env::var("VMCTL_BENCH_RUNS").ok().and_then(|text| text.parse().ok()).unwrap_or(5);
    let sides = Side::all();
    let mut boots: Vec<Boots> = sides.iter().map(|_| Boots::default()).collect();
    for run in 0..runs {
        for (side, boots) in sides.iter().zip(&mut boots) {
            let mut guest = side.start(&format!("boot{run}"), "quiet", None);
            boots.times.push(guest.until(READY));
            boots.exits.push(counter("exits"));
            let (ports, length) = (counter("io_exits"), guest.said.len());
            boots.memory.push(guest.memory());
            drop(guest);
            if run == 0 {
                let mut guest = side.start("talks", "", None);
                guest.until(READY);
                let (more, characters) = (counter("io_exits").saturating_sub(ports), guest.said.len().saturating_sub(length));
                boots.com1.push(more as f64 / characters.max(1) as f64);
            }
        }
    }
    boot_table(&sides, &boots, runs);
    sides.iter().for_each(disk);
    sides.iter().for_each(|side| many(side, boots_alone(side)));
}

fn boot_table(sides: &[Side], boots: &[Boots], runs: usize) {
    let best_peer = boots[1..].iter().map(|boots| least_and_median(&boots.times).0).min_by(f64::total_cmp);
    for (n, (side, boots)) in sides.iter().zip(boots).enumerate() {
        let (least, median) = least_and_median(&boots.times);
        let exits = *boots.exits.iter().min().expect("a run");
        let (anonymous, share) = boots.memory[0];
        let ours = n == 0;
        let ratio = best_peer.map_or(String::new(), |peer| {
            let slower = ours && least > peer;
            format!(", {:.2} of the fastest peer{}", least / peer, missed(slower))
        });
        println!("kvm: {}: to init {least:.2} s, median {median:.2} of {runs}{ratio}", side.name);
        println!("kvm: {}: {exits} exits to init{}", side.name, missed(ours && exits > EXITS));
        let com1 = boots.com1[0];
        println!("kvm: {}: {com1:.2} port exits a character on COM1{}", side.name, missed(ours && com1 > 1.0));
        println!(
            "kvm: {}: besides guest RAM {anonymous:.1} MiB anonymous, {share:.1} MiB proportional share{}",
            side.name,
            missed(ours && anonymous > ANONYMOUS_MIB)
        );
    }
}

/// The time of one guest alone, the least of two.
fn boots_alone(side: &Side) -> Duration {
    (0..2).map(|_| side.start("alone", "quiet", None).until(READY)).min().expect("two")
}

/// Starts many guests at once.
fn many(side: &Side, alone: Duration) {
    let start = Instant::now();
    let mut guests: Vec<Guest> = (0..MANY).map(|n| side.start(&format!("many{n}"), "quiet", None)).collect();
    for guest in &mut guests {
        guest.until(READY);
    }
    let each = start.elapsed().as_secs_f64() / MANY as f64 / alone.as_secs_f64();
    let shares: Vec<f64> = guests.iter().map(|guest| guest.memory().1).collect();
    let largest = shares.iter().copied().fold(0.0, f64::max);
    let ours = side.command.is_empty();
    println!(
        "kvm: {}: {MANY} at once, all up, each {each:.2} of one alone{}, proportional share at most {largest:.1} MiB each{}",
        side.name,
        missed(ours && each > EACH_OF_MANY),
        missed(ours && largest > SHARE_MIB)
    );
}

/// Reads a disk whose file is in memory: large requests, and 4 KiB requests one at a time. The order of the blocks makes no
/// difference to such a file, so the small ones are read as they come.
fn disk(side: &Side) {
    let path = image("data", READ_MIB[0]);
    let [large, small] = READ_MIB;
    let blocks = small * 256;
    let run = format!(
        "quiet vmctl.run=dd_if=/dev/vda_of=/dev/null_bs=1M_count={large}_iflag=direct_2>&1;\
         dd_if=/dev/vda_of=/dev/null_bs=4096_count={blocks}_iflag=direct_2>&1;echo_read_$((40+2));sleep_1000"
    );
    let mut guest = side.start("disk", &run, Some(&path));
    guest.until("read 42");
    // dd's line: BYTES bytes (SIZE) copied, SECONDS seconds, RATE
    let seconds = |line: &str| line.split("copied, ").nth(1)?.split_whitespace().next()?.parse::<f64>().ok();
    let times: Vec<f64> = guest.said.lines().filter_map(seconds).collect();
    let [first, second] = times[..] else { panic!("dd said:\n{}", guest.said) };
    println!(
        "kvm: {}: disk: {:.0} MiB/s in requests of 1 MiB, {:.0} requests of 4 KiB a second, one at a time",
        side.name,
        f64::from(large) / first,
        f64::from(blocks) / second
    );
}
