//! A made-up FreeBSD and a datastore on it for each test, and `vmctl` run there.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::fake;

#[path = "../said/mod.rs"]
mod said;
pub use said::Said;

/// A host that is gone, with all that runs on it, when the test ends.
pub struct World {
    dir: tempfile::TempDir,
}

impl Said {
    /// The user's error or the machine's.
    #[track_caller]
    pub fn fails(self, words: &str) -> Said {
        self.failed_with(&[1, 2], words)
    }
}

/// A host file with a switch that is a bridge of the user's.
const HOST: &str = "[[switches]]\nid = \"lan\"\ntype = \"manual\"\nbridge = \"bridge0\"\n\
    [[switches]]\nid = \"own\"\nprivate = true\nmtu = 9000\n[[switches]]\nid = \"fast\"\ntype = \"vale\"\n\
    [[switches]]\nid = \"graph\"\ntype = \"netgraph\"\nbridge = \"br0\"\n";
/// What the kernel says of a processor that vmm(4) runs guests on.
pub const PROCESSOR: &str = "  Features2=0x1<SSE3,VMX,POPCNT>\n  VT-x: PAT,HLT,MTRR,PAUSE,EPT,UG,VPID\n";
/// An interface on it.
pub const NIC: &str = "[[nics]]\nid = \"net0\"\nbackend = \"tap\"\nswitch = \"lan\"\n";

impl World {
    /// A host with every program, firmware, a bridge, and no module loaded.
    pub fn new() -> World {
        let world = World { dir: tempfile::Builder::new().prefix("vmctl-bsd-").tempdir_in("/tmp").expect("a directory") };
        for directory in ["bin", "dev", "var/run", "boot/kernel", "usr/local/share/uefi-firmware"] {
            fs::create_dir_all(world.root().join(directory)).expect("makes");
        }
        for directory in [
            "modules",
            "built-in",
            "sysctl",
            "interfaces",
            "jails",
            "fail",
            "orders",
            "parts",
            "loaders",
            "tpms",
            "hooks",
            "going",
            "volumes",
            "interfaces-vms",
            "jail-lines",
        ]
        .map(|d| world.state(d))
        {
            fs::create_dir_all(directory).expect("makes");
        }
        for program in fake::PROGRAMS {
            fake::install(&world.root(), program);
        }
        for (name, value) in [
            ("net.link.tap.up_on_open", "0"),
            ("hw.vmm.maxcpu", "16"),
            ("hw.ncpu", "16"),
            ("kern.osreldate", "1302001"),
            ("kern.module_path", "/boot/kernel;/boot/modules"),
            ("kern.securelevel", "-1"),
            ("security.jail.jailed", "0"),
        ] {
            fs::write(world.state("sysctl").join(name), value).expect("writes");
        }
        for module in ["if_tuntap", "if_bridge"] {
            fs::write(world.state("built-in").join(module), "").expect("writes");
        }
        for interfaces in ["interfaces", "interfaces-vms"] {
            fs::write(world.state(interfaces).join("bridge0"), "").expect("writes");
        }
        for (file, text) in [
            ("boot/userboot.so", "loader"),
            ("boot/kernel/vmm.ko", "module"),
            ("var/run/dmesg.boot", PROCESSOR),
            ("usr/local/share/uefi-firmware/BHYVE_UEFI_CODE.fd", "code"),
            ("usr/local/share/uefi-firmware/BHYVE_UEFI_VARS.fd", "variables"),
            ("disk.img", "disk".repeat(128).as_str()),
            ("host.toml", HOST),
        ] {
            fs::write(world.root().join(file), text).expect("writes");
        }
        world
    }

    /// Makes it a FreeBSD 15.0, which has what 13.2 has not.
    pub fn modern(self) -> World {
        fs::write(self.state("release-15"), "").expect("writes");
        fs::write(self.state("sysctl").join("kern.osreldate"), "1500068").expect("writes");
        self
    }

    /// The directory that stands in for `/`.
    pub fn root(&self) -> PathBuf {
        self.dir.path().to_owned()
    }

    /// What the programs of the host keep.
    pub fn state(&self, name: &str) -> PathBuf {
        self.root().join("state").join(name)
    }

    /// The directory of a guest.
    pub fn guest(&self, name: &str) -> PathBuf {
        self.root().join("ds/guests").join(name)
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        self.command_of(Path::new(env!("CARGO_BIN_EXE_vmctl")), arguments)
    }

    /// The same, run from another file.
    pub fn command_of(&self, program: &Path, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        command
            .args(arguments)
            .env_clear()
            .env("PATH", format!("{}:/usr/bin:/bin", self.root().join("bin").display()))
            .env("HOME", self.root())
            .env("XDG_RUNTIME_DIR", self.root())
            .env("VMCTL_DATASTORE", self.root().join("ds"))
            .env("VMCTL_CONFIG", self.root().join("host.toml"))
            .env("VMCTL_HOST_ROOT", self.root())
            // As an administrator may have them for other eyes.
            .envs(fake::FORMATS.map(|name| (name, "inet:cidr")))
            .current_dir(self.root())
            .stdin(Stdio::null());
        command
    }

    pub fn vmctl(&self, arguments: &[&str]) -> Said {
        self.command(arguments).output().expect("runs").into()
    }

    /// The jail `vms`, with a network stack of its own when a guest in it has a tap.
    pub fn jail(&self, more: &str) {
        fs::write(self.state("jails").join("vms"), format!("allow.vmm=true\npath=/\n{more}")).expect("writes");
    }

    /// The part that a guest plays: see [`fake`].
    pub fn part(&self, name: &str, part: &str) {
        fs::write(self.state("parts").join(name), part).expect("writes");
    }

    /// The part of its loader.
    pub fn loader_part(&self, name: &str, part: &str) {
        fs::write(self.state("loaders").join(name), part).expect("writes");
    }

    /// The next call that has `piece` in it fails with a code and words.
    pub fn fail(&self, piece: &str, code: i32, words: &str) {
        let number = fs::read_dir(self.state("fail")).expect("lists").count();
        fs::write(self.state("fail").join(format!("{number}")), format!("{piece}\n{code}\n{words}\n")).expect("writes");
    }

    /// The call of this number, counted from the next one, fails, and no other: before it has done anything, or after.
    pub fn fail_call(&self, number: usize, when: &str) {
        self.forget_calls();
        let _ = fs::remove_file(self.state("failed-call"));
        fs::write(self.state("fail-call"), format!("{number} {when}")).expect("writes");
    }

    /// The call that failed because of its number. From now on none does.
    pub fn failed_call(&self) -> Option<String> {
        let _ = fs::remove_file(self.state("fail-call"));
        fs::read_to_string(self.state("failed-call")).ok()
    }

    /// The kernel is as it was when it booted.
    pub fn unload_modules(&self) {
        for name in self.names(&self.state("modules")) {
            fs::remove_file(self.state("modules").join(name)).expect("removes");
        }
        fs::write(self.state("sysctl").join("net.link.tap.up_on_open"), "0").expect("writes");
    }

    /// Makes a guest that boots with bhyveload and plays a part.
    pub fn make(&self, name: &str, part: &str, more: &str) {
        self.make_with(name, part, &format!("loader = \"bhyveload\"\n{more}"));
    }

    /// Makes a guest that boots with UEFI firmware and plays a part.
    pub fn make_uefi(&self, name: &str, part: &str, more: &str) {
        self.make_with(name, part, &format!("loader = \"uefi\"\n{more}"));
    }

    pub fn make_with(&self, name: &str, part: &str, text: &str) {
        self.part(name, part);
        let file = self.root().join(format!("{name}.toml"));
        let disk = self.root().join(format!("{name}.img"));
        fs::write(&disk, [0xd1; 4096]).expect("writes");
        let disk = format!("[[disks]]\nid = \"root\"\npath = \"{}\"\n", disk.display());
        fs::write(&file, format!("engine = \"bhyve\"\nmemory = \"256M\"\n{text}\n{disk}")).expect("writes");
        self.vmctl(&["create", name, "--file", file.to_str().expect("UTF-8")]).ok();
    }

    /// Changes a guest's file.
    pub fn edit(&self, name: &str, change: impl FnOnce(String) -> String) {
        let file = self.root().join(format!("{name}.toml"));
        let text = fs::read_to_string(&file).expect("reads");
        fs::write(&file, change(text)).expect("writes");
    }

    pub fn info(&self, name: &str) -> serde_json::Value {
        let said = self.vmctl(&["info", name, "-o", "jsonl"]).ok();
        serde_json::from_str(&said.out).expect("JSON")
    }

    pub fn word(&self, name: &str) -> String {
        self.info(name)["state"].as_str().expect("a word").to_owned()
    }

    /// Sends a supervisor a request that no verb makes, and waits for the answer: frames of docs/control-protocol.md.
    pub fn request(&self, name: &str, json: &str) {
        use std::io::{Read, Write};
        let socket = self.guest(name).join("control.sock");
        let mut stream = std::os::unix::net::UnixStream::connect(socket).expect("a supervisor");
        let mut frame = (json.len() as u32).to_le_bytes().to_vec();
        frame.push(b'J');
        frame.extend(json.as_bytes());
        stream.write_all(&frame).expect("sends");
        stream.read_exact(&mut [0; 5]).expect("an answer");
    }

    #[track_caller]
    pub fn wait_for(&self, name: &str, state: &str) {
        eventually(&format!("{name} is {state}"), || self.word(name) == state);
    }

    /// Every call of a program, in order.
    pub fn calls(&self) -> Vec<String> {
        fs::read_to_string(self.state("calls")).unwrap_or_default().lines().map(str::to_owned).collect()
    }

    /// The calls that change something, without their arguments that only a test of the argument builder looks at.
    pub fn changes(&self) -> Vec<String> {
        let quiet = [
            "kldstat",
            "uname",
            "ps",
            "jls",
            "acpidump",
            "pciconf",
            "ngctl show",
            "iscsictl --libxo",
            "service iscsid onestatus",
            "bhyve -s help",
            "bhyve -l help",
            "bhyve -h",
            "sysctl -n",
            "ifconfig -a",
        ];
        let asks = |call: &str| {
            quiet.iter().any(|quiet| call.starts_with(quiet))
                || (call.starts_with("ifconfig ") && call.split(' ').count() == 2)
                || call == "bhyvectl"
                || call.contains("--get-stats")
                || call.starts_with("netstat ")
        };
        let short = |call: String| match call.split(' ').next() {
            Some(program @ ("bhyve" | "bhyveload" | "grub-bhyve")) => {
                format!("{program} {}", call.rsplit(' ').next().unwrap_or(""))
            }
            _ => call,
        };
        self.calls().into_iter().filter(|call| !asks(call)).map(short).collect()
    }

    /// Forgets the calls so far.
    pub fn forget_calls(&self) {
        let _ = fs::remove_file(self.state("calls"));
    }

    pub fn console_log(&self, name: &str) -> String {
        fs::read_to_string(self.guest(name).join("console.log")).unwrap_or_default()
    }

    /// The volumes that there are.
    pub fn volumes(&self) -> Vec<String> {
        let names = self.names(&self.state("volumes"));
        names.iter().filter_map(|name| name.strip_suffix(".size")).map(|name| name.replace(':', "/")).collect()
    }

    pub fn taps(&self) -> Vec<String> {
        [self.names(&self.state("interfaces")), self.names(&self.state("interfaces-vms"))]
            .concat()
            .into_iter()
            .filter(|name| name.starts_with("tap") || name.starts_with("vmnet"))
            .collect()
    }

    fn names(&self, directory: &Path) -> Vec<String> {
        let entries = fs::read_dir(directory).into_iter().flatten().flatten();
        let mut names: Vec<_> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    /// What boots have left on the host.
    pub fn leftovers(&self) -> Vec<String> {
        let mut left = self.taps();
        left.extend(self.names(&self.root().join("dev/vmm")).into_iter().map(|name| format!("vmm/{name}")));
        // A line's name outlives a killed holder on a made-up host, its lock does not.
        let held = |name: &String| {
            let lock = self.root().join("dev").join(name).with_extension("lock");
            name.starts_with("nmdm") && fs::File::open(lock).is_ok_and(|file| file.try_lock_shared().is_err())
        };
        left.extend(self.names(&self.root().join("dev")).into_iter().filter(|name| name.ends_with('A')).filter(held));
        for guest in self.names(&self.root().join("ds/guests")) {
            let files = self.names(&self.guest(&guest));
            let socket = |name: &String| name.ends_with(".sock") && name != "control.sock";
            left.extend(files.into_iter().filter(|name| name == "bhyve.journal" || socket(name)));
        }
        left
    }

    #[track_caller]
    pub fn nothing_is_left(&self) {
        assert_eq!(self.leftovers(), Vec::<String>::new(), "{:#?}", self.calls());
    }
}

/// Waits until it holds.
#[track_caller]
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < Duration::from_secs(60), "not in time: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if self.root().join("ds/guests").is_dir() {
            self.vmctl(&["kill", "*", "-q"]);
        }
    }
}

/// Returns whether any thread of the process still runs, and so may hold files and locks.
///
/// A process that was killed may stay as a zombie where nobody reaps; and its first thread may be one already while
/// others still end.
pub fn alive(pid: u64) -> bool {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    threads.into_iter().any(|thread| {
        let stat = fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
        stat.rsplit(')').next().is_some_and(|rest| !rest.is_empty() && !rest.trim_start().starts_with(['Z', 'X']))
    })
}

pub fn kill(pid: u64) {
    let pid = nix::unistd::Pid::from_raw(pid as i32);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).expect("killed");
}
