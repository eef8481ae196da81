//! A host of fake programs in a directory at the front of `PATH`, and `vmctl` run on it.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

#[path = "../said/mod.rs"]
mod said;
pub use said::Said;

/// A host that is gone when the test ends.
pub struct World {
    dir: tempfile::TempDir,
}

/// A command that runs.
pub struct Underway {
    child: Child,
    lines: Box<dyn Iterator<Item = String>>,
}

impl Underway {
    pub fn interrupt(&self) {
        kill(Pid::from_raw(self.child.id() as i32), Signal::SIGINT).expect("is there");
    }

    /// Waits until it ends. Returns its exit status, and the further lines of standard error.
    pub fn end(mut self) -> (Option<i32>, String) {
        let lines: Vec<String> = self.lines.by_ref().collect();
        (self.child.wait().expect("ends").code(), lines.join("\n"))
    }
}

impl Said {
    #[track_caller]
    pub fn fails(self, code: i32, words: &str) -> Said {
        self.failed_with(&[code], words)
    }
}

impl World {
    /// A host that calls itself FreeBSD and has no other program yet.
    pub fn new() -> World {
        let world = World { dir: tempfile::Builder::new().prefix("vmctl-host-").tempdir_in("/tmp").expect("a directory") };
        for directory in ["bin", "state", "ds/guests"] {
            std::fs::create_dir_all(world.path().join(directory)).expect("makes");
        }
        world.quiet_program("uname", "echo FreeBSD");
        world
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// A program that records each call, fails when it is told to, and else does what `body`, a text for sh(1), says.
    /// `$STATE` is a directory for what must be remembered.
    pub fn program(&self, name: &str, body: &str) {
        let log = "echo \"${0##*/} $*\" >> \"$STATE/log\"\n\
                   if [ -s \"$STATE/fail\" ] && echo \"${0##*/} $*\" | grep -qF -f \"$STATE/fail\"; then\n\
                   echo \"told to fail\" >&2; exit 1; fi\n\
                   held=0\n\
                   while [ -s \"$STATE/hold\" ] && echo \"${0##*/} $*\" | grep -qF -f \"$STATE/hold\" && kill -0 $PPID; do\n\
                   held=1; sleep 0.05; done\n\
                   if [ $held = 1 ] && ! kill -0 $PPID; then exit 1; fi\n\
                   if [ -s \"$STATE/kill\" ] && echo \"${0##*/} $*\" | grep -qF -e \"$(cat \"$STATE/kill\")\"; then kill -9 $PPID; exit 1; fi\n";
        self.quiet_program(name, &format!("{log}{body}"));
    }

    fn quiet_program(&self, name: &str, body: &str) {
        let path = self.path().join("bin").join(name);
        // Written under another name: a text that is open for writing anywhere cannot be run.
        let temporary = path.with_extension("new");
        std::fs::write(&temporary, format!("#!/bin/sh\n{body}\n")).expect("writes");
        std::fs::set_permissions(&temporary, std::fs::Permissions::from_mode(0o755)).expect("sets");
        std::fs::rename(&temporary, &path).expect("renames");
    }

    /// A file of the fake programs' state.
    pub fn state(&self, name: &str) -> PathBuf {
        self.path().join("state").join(name)
    }

    /// Lets every call fail that contains these words; none for an empty text.
    pub fn fail(&self, words: &str) {
        std::fs::write(self.state("fail"), words).expect("writes");
    }

    /// Lets every call that contains these words wait until another text is given; none for an empty one. A call whose caller
    /// has ended does nothing.
    pub fn hold(&self, words: &str) {
        std::fs::write(self.state("hold"), words).expect("writes");
    }

    /// Starts `vmctl`, and returns it once it has printed a line to standard error that contains `words`.
    pub fn until(&self, arguments: &[&str], words: &str) -> Underway {
        let mut child = self.command(arguments).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("runs");
        let mut lines = BufReader::new(child.stderr.take().expect("piped")).lines().map_while(Result::ok);
        let mut seen = Vec::new();
        while !seen.last().is_some_and(|line: &String| line.contains(words)) {
            seen.push(lines.next().unwrap_or_else(|| panic!("no `{words}` in {seen:?}")));
        }
        Underway { child, lines: Box::new(lines) }
    }

    /// Ends whoever makes a call with these words, as a power cut would; none for an empty text.
    pub fn kill(&self, words: &str) {
        std::fs::write(self.state("kill"), words).expect("writes");
    }

    /// The calls since the last time, without those that only look.
    pub fn calls(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.state("log")).unwrap_or_default();
        let _ = std::fs::remove_file(self.state("log"));
        text.lines().map(|line| line.trim_end().to_owned()).collect()
    }

    /// The calls since the last time that begin with one of these.
    pub fn calls_of(&self, starts: &[&str]) -> Vec<String> {
        self.calls().into_iter().filter(|call| starts.iter().any(|start| call.starts_with(start))).collect()
    }

    /// Writes a guest file into the datastore, as if the guest had been made.
    pub fn guest(&self, name: &str, text: &str) {
        let directory = self.path().join("ds/guests").join(name);
        std::fs::create_dir_all(directory.join("disks")).expect("makes");
        std::fs::write(directory.join("guest.toml"), text).expect("writes");
    }

    /// Writes the host file.
    pub fn host_file(&self, text: &str) {
        std::fs::write(self.path().join("host.toml"), text).expect("writes");
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vmctl"));
        command
            .args(arguments)
            .env_clear()
            .env("PATH", format!("{}:/usr/bin:/bin", self.path().join("bin").display()))
            .env("STATE", self.path().join("state"))
            .env("HOME", self.path())
            .env("VMCTL_RUNTIME_DIR", self.path().join("run"))
            .env("VMCTL_DATASTORE", self.path().join("ds"))
            .current_dir(self.path())
            .stdin(Stdio::null());
        if self.path().join("host.toml").exists() {
            command.env("VMCTL_CONFIG", self.path().join("host.toml"));
        }
        command
    }

    pub fn vmctl(&self, arguments: &[&str]) -> Said {
        self.command(arguments).output().expect("runs").into()
    }
}
