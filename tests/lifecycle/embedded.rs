//! The embedded engine itself, as the host sees it while a guest of a few bytes runs: what its processes were given and what
//! was taken from them.
#![cfg(target_os = "linux")]
#![allow(unsafe_code)]

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::world::World;

/// A Multiboot kernel (specification 0.6.96, section 3.1, with addresses): says READY on COM1, masks the interrupts, sleeps.
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

/// Makes a guest that the embedded engine runs.
fn make(world: &World, name: &str, more: &str) {
    std::fs::write(world.path().join("tiny"), kernel()).expect("writes");
    let file = world.path().join(format!("{name}.toml"));
    let ready = "ready = { console = \"READY\", timeout = \"5m\" }";
    std::fs::write(&file, format!("memory = \"16M\"\nkernel = {{ image = \"tiny\" }}\n{ready}\n{more}\n")).expect("writes");
    world.vmctl(&["create", name, "--file", file.to_str().expect("UTF-8")]).ok();
}

/// Starts it with a low limit of descriptors and something to hide in the environment.
fn start(world: &World, name: &str) {
    let mut command = world.command(&["start", name, "--wait"]);
    command.env_remove("VMCTL_ENGINE_COMMAND").env("VMCTL_TEST_SECRET", "hidden");
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("known");
    // SAFETY: setrlimit(2) is one system call, as is allowed between fork and exec.
    unsafe { command.pre_exec(move || setrlimit(Resource::RLIMIT_NOFILE, 64, hard).map_err(std::io::Error::from)) };
    crate::world::Said::from(command.output().expect("runs")).ok();
}

/// A process of this host.
struct Process(u64);

impl Process {
    fn file(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/{name}", self.0))
    }
    fn status(&self, field: &str) -> String {
        let status = std::fs::read_to_string(self.file("status")).expect("a status");
        let value = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        value.unwrap_or_else(|| panic!("no {field}")).trim().to_owned()
    }
    /// The soft and the hard limit.
    fn limit(&self, name: &str) -> (String, String) {
        let limits = std::fs::read_to_string(self.file("limits")).expect("limits");
        let line = limits.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("no {name}"));
        let mut words = line[name.len()..].split_whitespace().map(str::to_owned);
        (words.next().expect("a limit"), words.next().expect("a limit"))
    }
    /// Processes whose parent it is.
    fn children(&self) -> Vec<Process> {
        let all = std::fs::read_dir("/proc").expect("lists").flatten();
        let numbers = all.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let is_child = |pid: &u64| {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            let parent = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(1)?.parse().ok());
            parent == Some(self.0)
        };
        numbers.filter(is_child).map(Process).collect()
    }
}

fn engine(world: &World, name: &str) -> Process {
    Process(world.state(name)["engine_pid"].as_u64().expect("an engine"))
}

/// Whether this host makes process namespaces for this user, as unshare(1) finds out.
fn makes_process_namespaces() -> bool {
    let how: &[&str] = if nix::unistd::geteuid().is_root() { &["-pf", "true"] } else { &["-rpf", "true"] };
    Command::new("unshare").args(how).output().is_ok_and(|output| output.status.success())
}

#[test]
fn an_engine_has_its_own_limits_user_and_namespace_and_nothing_of_the_environment() {
    let is_root = nix::unistd::geteuid().is_root();
    let world = World::new();
    let names = ["a", "b"];
    for name in names {
        make(&world, name, "nics = [{ id = \"net0\", backend = \"user\" }]");
        start(&world, name);
    }
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("known");
    let mut users = Vec::new();
    for name in names {
        let engine = engine(&world, name);
        assert_eq!(engine.limit("Max core file size"), ("0".into(), "0".into()));
        let data = (2 * (16 << 20) + (2u64 << 30)).to_string();
        assert_eq!(engine.limit("Max data size"), (data.clone(), data));
        let of_files = if hard == nix::libc::RLIM_INFINITY { "unlimited".to_owned() } else { hard.to_string() };
        assert_eq!(engine.limit("Max open files"), (of_files.clone(), of_files), "the soft limit is raised");
        let parts = engine.children();
        assert_eq!(parts.len(), 2, "a connector and the host services");
        for process in [engine].iter().chain(&parts) {
            match std::fs::read(process.file("environ")) {
                Ok(environment) => assert_eq!(String::from_utf8_lossy(&environment), ""),
                // They hide from others of their user, too.
                Err(error) => assert!(!is_root && error.kind() == std::io::ErrorKind::PermissionDenied, "{error}"),
            }
            assert_eq!((process.status("Seccomp"), process.status("NoNewPrivs")), ("2".into(), "1".into()));
            // The host services may need CAP_NET_RAW, on a host without other means to ping.
            let words = std::fs::read(process.file("cmdline")).expect("words");
            let raw = String::from_utf8_lossy(&words).contains("--host-services").then_some("0000000000002000");
            let kept = process.status("CapPrm");
            assert!(kept == "0000000000000000" || Some(kept.as_str()) == raw, "{kept}");
            // As the host sees it, and last as it sees itself.
            let numbers: Vec<u64> =
                process.status("NSpid").split_whitespace().map(|pid| pid.parse().expect("a number")).collect();
            assert_eq!(numbers[0], process.0);
            if makes_process_namespaces() {
                assert_eq!(numbers.last(), Some(&1), "{numbers:?}");
            }
            if is_root {
                let user = process.status("Uid");
                assert!(user.split_whitespace().all(|id| id != "0"), "{user}");
                assert_eq!(process.status("Groups"), "");
                users.push(user);
            }
        }
        let info = world.state(name);
        let words = |list: &str| info["confined"][list].as_array().expect("a list").clone();
        let has_its_own = words("by").iter().any(|held| held.as_str().is_some_and(|held| held.starts_with("namespaces pid ")));
        let lacks =
            words("without").iter().any(|missing| missing.as_str().is_some_and(|words| words.contains("process namespace")));
        assert_eq!((has_its_own, lacks), (makes_process_namespaces(), !makes_process_namespaces()), "{info}");
    }
    if is_root {
        assert_eq!(users.len(), 6);
        assert!(users[..3].iter().all(|user| *user == users[0]) && users[3..].iter().all(|user| *user == users[3]), "{users:?}");
        assert_ne!(users[0], users[3], "a user of its own for each guest");
    }
}

#[test]
fn an_isolated_guest_starts_and_its_engine_is_told_so() {
    let world = World::new();
    make(&world, "g", "nics = [{ id = \"net0\", backend = \"user\", isolated = true }]");
    start(&world, "g");
    assert_eq!(world.word("g"), "running");
    let spec: serde_json::Value =
        serde_json::from_slice(&std::fs::read(world.guest("g").join("vmm.json")).expect("a specification")).expect("JSON");
    assert_eq!(spec["nics"][0]["backend"]["isolated"], true, "{spec}");
    // So is the process that makes its sockets, which refuses by itself.
    let connector = engine(&world, "g").children().into_iter().find(|process| {
        let words = std::fs::read(process.file("cmdline")).expect("words");
        String::from_utf8_lossy(&words).contains("\"isolated\":true")
    });
    assert!(connector.is_some());
    world.vmctl(&["stop", "g", "--timeout", "1s"]).ok();
}
