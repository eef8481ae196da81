//! What a fetch costs, against other programs in the same run.
//!
//! * A download from the loopback, hashed and kept: against `curl | sha256sum`, which keeps nothing.
//! * The same, packed with gzip: against `curl | gzip -dc`, which keeps nothing either.
//! * qcow2 to raw: against `qemu-img convert`.
//!
//! Prints one line a case, with the ratio. `VMCTL_BENCH_MIB` sets the size (1024 without it); from 512 on the ratios are
//! held: the download to 1.15, the conversions to 1.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use vmctl::testing::fetch::digest::Algorithm;
use vmctl::testing::fetch::image::{self, FileStorage, Format};
use vmctl::testing::fetch::progress::{Job, Silent};
use vmctl::testing::fetch::space::Room;
use vmctl::testing::fetch::{Digest, sparse};

const ROUNDS: usize = 3;
/// Below this, starting the programs is what is measured.
const HELD_FROM_MIB: usize = 512;

fn main() {
    // cargo's own arguments (`--bench`) mean nothing here; `cargo test` only wants to see that it builds.
    if std::env::args().any(|argument| argument == "--test") {
        return;
    }
    let mib = std::env::var("VMCTL_BENCH_MIB").map_or(1024, |text| text.parse().expect("VMCTL_BENCH_MIB is a number"));
    let dir = tempfile::tempdir().expect("a directory");
    let mut missed = Vec::new();
    let mut report = |name: &str, ours: Duration, theirs: Duration, most: Option<f64>| {
        let ratio = ours.as_secs_f64() / theirs.as_secs_f64();
        println!("{name}: vmctl {:.3} s, other {:.3} s, ratio {ratio:.2}", ours.as_secs_f64(), theirs.as_secs_f64());
        if most.is_some_and(|most| ratio > most) && mib >= HELD_FROM_MIB {
            missed.push(format!("{name}: {ratio:.2}"));
        }
    };
    let content = noise(mib << 20);
    download(dir.path(), &content, &mut report);
    drop(content);
    convert(dir.path(), mib, &mut report);
    assert!(missed.is_empty(), "slower than promised: {}", missed.join(", "));
}

/// Half of it does not compress, a quarter does, a quarter is zero, in runs of a MiB.
fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut bytes = vec![0u8; len];
    for (at, run) in bytes.chunks_mut(1 << 20).enumerate() {
        match at % 4 {
            0 => {}
            1 => run.iter_mut().enumerate().for_each(|(at, byte)| *byte = b"what people write compresses well. "[at % 35]),
            _ => run.chunks_mut(8).for_each(|word| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                word.copy_from_slice(&state.to_le_bytes()[..word.len()]);
            }),
        }
    }
    bytes
}

/// Serves `content` on the loopback for as long as the process lives. Returns the URL.
fn serve(content: Arc<Vec<u8>>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let url = format!("http://{}/disk.raw", listener.local_addr().expect("bound"));
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let content = content.clone();
            std::thread::spawn(move || {
                let lines = BufReader::new(stream.try_clone().expect("a second handle")).lines();
                let _request: Vec<String> = lines.map_while(Result::ok).take_while(|line| !line.is_empty()).collect();
                let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", content.len());
                let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&content));
            });
        }
    });
    url
}

/// The least of several rounds, the two sides by turns.
fn least(mut ours: impl FnMut() -> Duration, mut theirs: impl FnMut() -> Duration) -> (Duration, Duration) {
    let rounds: Vec<_> = (0..ROUNDS).map(|_| (ours(), theirs())).collect();
    let least = |side: fn(&(Duration, Duration)) -> Duration| rounds.iter().map(side).min().expect("rounds were run");
    (least(|round| round.0), least(|round| round.1))
}

fn run(command: &mut Command) -> Duration {
    let start = Instant::now();
    let output = command.stdout(Stdio::null()).stderr(Stdio::piped()).output().expect("the program is installed");
    let took = start.elapsed();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    took
}

type Report<'a> = dyn FnMut(&str, Duration, Duration, Option<f64>) + 'a;

fn download(dir: &Path, content: &[u8], report: &mut Report<'_>) {
    std::fs::write(dir.join("vmctl.toml"), format!("cache_dir = '{}'\n", dir.join("cache").display())).expect("written");
    let fetch = |url: &str, digest: &Digest| {
        let _ = std::fs::remove_dir_all(dir.join("cache"));
        let mut command = Command::new(env!("CARGO_BIN_EXE_vmctl"));
        command.arg("--config").arg(dir.join("vmctl.toml")).args([
            "-q",
            "fetch",
            "image",
            url,
            "--checksum",
            &digest.to_string(),
        ]);
        run(&mut command)
    };
    let shell = |text: String| run(Command::new("sh").args(["-c", &text]));
    let digest = Digest::of(Algorithm::Sha256, content);
    let url = serve(Arc::new(content.to_vec()));
    let (ours, theirs) = least(|| fetch(&url, &digest), || shell(format!("curl -s {url} | sha256sum")));
    report("download", ours, theirs, Some(1.15));
    std::fs::write(dir.join("plain"), content).expect("written");
    assert!(Command::new("gzip").arg("-1").arg(dir.join("plain")).status().expect("gzip is installed").success());
    let packed = std::fs::read(dir.join("plain.gz")).expect("readable");
    let digest = Digest::of(Algorithm::Sha256, &packed);
    let url = serve(Arc::new(packed));
    let (ours, theirs) = least(|| fetch(&url, &digest), || shell(format!("curl -s {url} | gzip -dc")));
    report("download and gunzip", ours, theirs, None);
    let _ = std::fs::remove_dir_all(dir.join("cache"));
}

fn convert(dir: &Path, mib: usize, report: &mut Report<'_>) {
    let raw = dir.join("disk.raw");
    std::fs::write(&raw, noise(mib << 20)).expect("written");
    for (name, options) in [
        ("qcow2 to raw", &[][..]),
        ("qcow2 (zlib) to raw", &["-c", "-o", "compression_type=zlib"]),
        ("qcow2 (zstd) to raw", &["-c", "-o", "compression_type=zstd"]),
    ] {
        let image = dir.join("disk.qcow2");
        let mut make = Command::new("qemu-img");
        run(make.args(["convert", "-f", "raw", "-O", "qcow2"]).args(options).args([&raw, &image]));
        let (target, theirs) = (dir.join("ours.raw"), dir.join("theirs.raw"));
        let ours = || {
            let _ = std::fs::remove_file(&target);
            let start = Instant::now();
            let disk = image::open(Format::Qcow2, Box::new(FileStorage::open(&image).expect("opens")), None).expect("right");
            let file = sparse::create(&target).expect("made");
            file.set_len(disk.size()).expect("grown");
            let room = Room::at(dir);
            image::convert(disk.as_ref(), &file, image::threads(), &room, &Job::new("bench", &Silent)).expect("converted");
            start.elapsed()
        };
        let other = || {
            let _ = std::fs::remove_file(&theirs);
            run(Command::new("qemu-img").args(["convert", "-f", "qcow2", "-O", "raw"]).args([&image, &theirs]))
        };
        let (ours, other) = least(ours, other);
        report(name, ours, other, Some(1.0));
        std::fs::remove_file(&image).expect("removed");
    }
    let same = Command::new("cmp").args([dir.join("ours.raw"), dir.join("theirs.raw")]).status().expect("cmp runs");
    assert!(same.success(), "both make the same disk");
}
