//! A datastore of its own for each test, and `vmctl` run in it.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

#[path = "../said/mod.rs"]
mod said;
pub use said::Said;

/// A datastore that is gone, with all that runs in it, when the test ends.
pub struct World {
    dir: tempfile::TempDir,
}

impl Said {
    #[track_caller]
    pub fn fails(self, code: i32, words: &str) -> Said {
        self.failed_with(&[code], words)
    }
}

impl World {
    pub fn new() -> World {
        World { dir: tempfile::Builder::new().prefix("vmctl-test-").tempdir_in("/tmp").expect("a directory") }
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// The directory of a guest.
    pub fn guest(&self, name: &str) -> PathBuf {
        self.path().join("ds/guests").join(name)
    }

    /// `vmctl` with the fake engine, and nothing of the user's.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vmctl"));
        let engine = std::env::current_exe().expect("this test");
        command
            .args(arguments)
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("HOME", self.path())
            .env("XDG_RUNTIME_DIR", self.path())
            .env("VMCTL_DATASTORE", self.path().join("ds"))
            .env("VMCTL_ENGINE_COMMAND", format!("{} --exact engine::engine_of_the_other_tests --nocapture", engine.display()))
            .env(super::engine::PART, "1")
            .current_dir(self.path())
            .stdin(Stdio::null());
        if self.path().join("host.toml").exists() {
            command.env("VMCTL_CONFIG", self.path().join("host.toml"));
        }
        command
    }

    /// With a cache of its own.
    pub fn with_cache(self) -> World {
        std::fs::write(self.path().join("host.toml"), format!("cache_dir = \"{}\"\n", self.cache().display())).expect("writes");
        self
    }

    pub fn cache(&self) -> PathBuf {
        self.path().join("cache")
    }

    pub fn vmctl(&self, arguments: &[&str]) -> Said {
        self.command(arguments).output().expect("runs").into()
    }

    /// Writes a guest file whose guest plays `part`, with `more` lines of TOML, and makes the guest.
    pub fn make(&self, name: &str, part: &str, more: &str) -> PathBuf {
        let file = self.file(name, part, more);
        self.vmctl(&["create", name, "--file", file.to_str().expect("UTF-8")]).ok();
        file
    }

    pub fn file(&self, name: &str, part: &str, more: &str) -> PathBuf {
        let file = self.path().join(format!("{name}.toml"));
        std::fs::write(self.path().join("kernel"), "no kernel").expect("writes");
        let text = format!("memory = \"64M\"\nkernel = {{ image = \"kernel\", cmdline = \"{part}\" }}\n{more}\n");
        std::fs::write(&file, text).expect("writes");
        file
    }

    /// One that names files by absolute paths.
    pub fn file_for_copies(&self, name: &str, more: &str) -> PathBuf {
        let file = self.file(name, "", more);
        let text = std::fs::read_to_string(&file).expect("reads");
        let kernel = self.path().join("kernel");
        std::fs::write(&file, text.replace("\"kernel\"", &format!("\"{}\"", kernel.display()))).expect("writes");
        file
    }

    pub fn state(&self, name: &str) -> serde_json::Value {
        let said = self.vmctl(&["info", name, "-o", "jsonl"]).ok();
        serde_json::from_str(&said.out).expect("JSON")
    }

    pub fn word(&self, name: &str) -> String {
        self.state(name)["state"].as_str().expect("a word").to_owned()
    }

    /// The kinds of a guest's events, in order.
    pub fn events(&self, name: &str) -> Vec<String> {
        let text = std::fs::read_to_string(self.guest(name).join("events.jsonl")).expect("events");
        let kind = |line: &str| -> String {
            let event: serde_json::Value = serde_json::from_str(line).expect("JSON");
            event["event"].as_str().expect("a kind").to_owned()
        };
        text.lines().map(kind).collect()
    }

    #[track_caller]
    pub fn wait_for(&self, name: &str, state: &str) {
        eventually(&format!("{name} is {state}"), || self.word(name) == state);
    }
}

/// Waits until it holds.
#[track_caller]
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < Duration::from_secs(30), "not in time: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if self.path().join("ds/guests").is_dir() {
            self.vmctl(&["kill", "*", "-q"]);
        }
    }
}

/// Returns whether any thread of the process still runs, and so may hold files and locks.
///
/// A process that was killed may stay as a zombie where nobody reaps; and its first thread may be one already while
/// others still end.
pub fn alive(pid: u64) -> bool {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    threads.into_iter().any(|thread| {
        let stat = std::fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
        stat.rsplit(')').next().is_some_and(|rest| !rest.is_empty() && !rest.trim_start().starts_with(['Z', 'X']))
    })
}

pub fn kill(pid: u64) {
    let pid = nix::unistd::Pid::from_raw(pid as i32);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).expect("killed");
}
