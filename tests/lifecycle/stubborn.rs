//! Owners, supervisors and disks that do not do their part: what people ask for happens all the same, in bounded time.

use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::store::leftovers;
use crate::world::{World, alive, eventually};

fn supervisor(world: &World) -> Pid {
    Pid::from_raw(world.state("g")["pid"].as_i64().expect("a supervisor") as i32)
}

/// Stops a process again and again, until dropped.
struct StoppedProcess {
    done: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl StoppedProcess {
    fn new(pid: Pid) -> StoppedProcess {
        let done = Arc::new(AtomicBool::new(false));
        let stop = Arc::clone(&done);
        kill(pid, Signal::SIGSTOP).expect("stopped");
        let thread = std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) && kill(pid, Signal::SIGSTOP).is_ok() {
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        StoppedProcess { done, thread: Some(thread) }
    }
}

impl Drop for StoppedProcess {
    fn drop(&mut self) {
        self.done.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(std::thread::JoinHandle::join);
    }
}

#[test]
fn connections_that_say_nothing_hold_nobody_up_and_are_cut_off() {
    let world = World::new();
    world.make("g", "", "");
    world.vmctl(&["start", "g"]).ok();
    let socket = world.guest("g").join("control.sock");
    let mut silent: Vec<UnixStream> = (0..200).map(|_| UnixStream::connect(&socket).expect("connects")).collect();
    let asked = Instant::now();
    assert_eq!(world.state("g")["counters"]["vcpu0.instructions"], 42, "the supervisor answers");
    assert!(asked.elapsed() < Duration::from_secs(4), "{:?}", asked.elapsed());
    // The oldest made room at once, and the last is cut off after its time.
    for at in [0, 199] {
        let stream = &mut silent[at];
        stream.set_read_timeout(Some(Duration::from_secs(15))).expect("sets");
        assert_eq!(stream.read(&mut [0; 1]).expect("is cut off"), 0);
    }
    let more: Vec<UnixStream> = (0..200).map(|_| UnixStream::connect(&socket).expect("connects")).collect();
    let asked = Instant::now();
    world.vmctl(&["stop", "g"]).ok().says("the guest shut itself down");
    assert!(asked.elapsed() < Duration::from_secs(4), "{:?}", asked.elapsed());
    drop(more);
}

#[test]
fn a_later_stop_does_not_wait_for_the_longer_time_of_an_earlier_one() {
    let world = World::new();
    world.make("g", "deaf", "");
    world.vmctl(&["start", "g"]).ok();
    let mut patient = world.command(&["stop", "g", "--timeout", "1h", "-q"]).spawn().expect("runs");
    eventually("it is asked", || world.word("g") == "stopping");
    world.vmctl(&["stop", "g", "--timeout", "200ms"]).ok().says("did not shut down in time");
    assert!(patient.wait().expect("ends").success());
}

#[test]
fn a_supervisor_that_was_stopped_is_woken_and_does_what_is_asked() {
    let world = World::new();
    world.make("g", "", "");
    for (verb, says) in [
        (&["stop", "g"][..], "the guest shut itself down"),
        (&["kill", "g"], "the engine was killed"),
        (&["destroy", "g", "-f", "-y"], "g is gone"),
    ] {
        world.vmctl(&["start", "g"]).ok();
        kill(supervisor(&world), Signal::SIGSTOP).expect("stopped");
        let asked = Instant::now();
        world.vmctl(verb).ok().says(says);
        assert!(asked.elapsed() < Duration::from_secs(20), "{verb:?}: {:?}", asked.elapsed());
    }
}

#[test]
fn a_supervisor_that_cannot_be_woken_is_killed_and_its_engine_goes_with_it() {
    let world = World::new();
    world.make("g", "", "");
    for verb in [&["stop", "g"][..], &["kill", "g"], &["destroy", "g", "-f", "-y"]] {
        world.vmctl(&["start", "g"]).ok();
        let engine = world.state("g")["engine_pid"].as_u64().expect("an engine");
        let stopped = StoppedProcess::new(supervisor(&world));
        let asked = Instant::now();
        let said = world.vmctl(verb).ok();
        assert!(asked.elapsed() < Duration::from_secs(30), "{verb:?}: {:?}", asked.elapsed());
        assert!(!alive(engine));
        drop(stopped);
        // Between being woken and stopped again it may have come as far as that by itself.
        if verb[0] != "destroy" {
            said.says("g has stopped");
            assert_eq!(world.word("g"), "stopped");
        }
    }
}

#[test]
fn down_is_over_in_its_time_whatever_one_guest_does() {
    let world = World::new();
    world.make("g", "", "autostart = { order = 2 }");
    world.make("last", "", "autostart = { order = 1 }");
    world.vmctl(&["start", "g", "last"]).ok();
    let stopped = StoppedProcess::new(supervisor(&world));
    let asked = Instant::now();
    world.vmctl(&["down", "--all", "--timeout", "6s"]).ok().says("last has stopped");
    assert!(asked.elapsed() < Duration::from_secs(15), "{:?}", asked.elapsed());
    drop(stopped);
    assert_eq!(world.word("g"), "stopped");
}

#[test]
fn commands_that_end_a_guest_at_the_same_time_have_all_done_it() {
    let world = World::new();
    world.make("g", "", "");
    for round in 0..10 {
        world.vmctl(&["start", "g"]).ok();
        let verbs =
            [&["stop", "g", "--if-running"][..], &["poweroff", "g"], &["kill", "g"], &["stop", "g", "-f", "--if-running"]];
        let children: Vec<_> = verbs.iter().map(|verb| world.command(verb).output()).map(|said| said.expect("runs")).collect();
        for said in children {
            let words = String::from_utf8_lossy(&said.stderr).into_owned();
            assert_ne!(said.status.code(), Some(2), "round {round}: {words}");
        }
        let together: Vec<_> = {
            world.vmctl(&["start", "g"]).ok();
            let spawn = |verb: &&[&str]| world.command(verb).stderr(std::process::Stdio::piped()).spawn().expect("runs");
            verbs.iter().chain(&verbs).map(spawn).collect()
        };
        for child in together {
            let said = child.wait_with_output().expect("ends");
            let words = String::from_utf8_lossy(&said.stderr).into_owned();
            let was_late = said.status.code() == Some(1) && words.contains("is not running");
            assert!(said.status.code() == Some(0) || was_late, "round {round}: {:?} {words}", said.status);
        }
    }
}

#[test]
fn a_start_that_comes_to_nothing_says_why() {
    let world = World::new();
    world.make("g", "", "");
    // As of a guest that is destroyed between the command's look and its supervisor's.
    let said = world.vmctl(&["run", "--supervise", "nobody"]);
    assert!(said.out.contains("no guest is called `nobody`") && said.out.contains("\"running\":false"), "{said:?}");
}

#[test]
fn a_guest_boots_again_though_its_state_cannot_be_written_which_is_made_up_for() {
    let world = World::new();
    world.make("h", "say:one / say:two", "");
    world.vmctl(&["start", "h"]).ok();
    let directory = world.guest("h");
    let pid = world.state("h")["pid"].as_u64().expect("a supervisor");
    // Neither the state nor what the engine is told can be written: a directory has the name that both are written under.
    let in_the_way = ["state.json", "run.json", "vmm.json"].map(|name| directory.join(format!(".{name}.{pid}.tmp")));
    in_the_way.iter().for_each(|path| std::fs::create_dir(path).expect("made"));
    world.vmctl(&["reset", "h"]).ok().says("running again");
    eventually("it has booted again", || std::fs::read_to_string(directory.join("console.log")).is_ok_and(|log| log == "onetwo"));
    in_the_way.iter().for_each(|path| std::fs::remove_dir(path).expect("removed"));
    assert_eq!(world.state("h")["boots"], 1);
    eventually("what could not be written is", || world.state("h")["boots"] == 2 && world.word("h") == "running");
}

#[test]
#[allow(unsafe_code)]
fn a_limit_on_the_size_of_files_ends_neither_the_supervisor_nor_the_guest() {
    let world = World::new();
    world.make("g", "sleep:300 spam:400 say:END", "");
    let mut command = world.command(&["start", "g"]);
    let limit = || setrlimit(Resource::RLIMIT_FSIZE, 100 << 10, 100 << 10).map_err(std::io::Error::from);
    // SAFETY: setrlimit(2) is async-signal-safe.
    unsafe {
        command.pre_exec(limit);
    }
    assert!(command.status().expect("runs").success());
    eventually("the log is full", || world.events("g").contains(&"log-lost".to_owned()));
    assert_eq!(world.word("g"), "running");
    world.vmctl(&["stop", "g"]).ok().says("the guest shut itself down");
}

#[test]
fn a_datastore_in_which_others_may_write_runs_nothing() {
    let world = World::new();
    let hook = "[[hooks]]\nevent = \"pre-start\"\ncommand = [\"/bin/sh\", \"-c\", \"echo ran > ran\"]";
    let file = world.make("g", "", hook);
    let set = |path: &std::path::Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("sets");
    };
    let store = world.path().join("ds");
    for (path, mode) in [(store.clone(), 0o777), (world.guest("g"), 0o777), (file.clone(), 0o666)] {
        let before = std::fs::metadata(&path).expect("there").permissions().mode();
        set(&path, mode);
        let name = path.display().to_string();
        world.vmctl(&["start", "g"]).fails(1, "everybody may write to").says(&name).says("chmod go-w");
        world.vmctl(&["list"]).ok().says("stopped");
        set(&path, before & 0o7777);
    }
    if nix::unistd::geteuid().is_root() {
        let nobody = Some(nix::unistd::Uid::from_raw(65534));
        for path in [&store, &file] {
            nix::unistd::chown(path, nobody, None).expect("given away");
            let words = "who would decide what runs as `root`";
            world.vmctl(&["start", "g"]).fails(1, words).says("chown root");
            nix::unistd::chown(path, Some(nix::unistd::Uid::from_raw(0)), None).expect("taken back");
        }
    }
    assert!(!world.guest("g").join("ran").exists());
    world.vmctl(&["start", "g"]).ok();
    assert!(world.guest("g").join("ran").exists());
}

#[test]
fn no_file_that_is_written_in_a_guests_directory_leads_elsewhere_by_somebody_elses_link() {
    assert!(nix::unistd::geteuid().is_root(), "run this test as root: it makes links of another user");
    let nobody = Some(nix::unistd::Uid::from_raw(65534));
    let link = |path: &std::path::Path, to: &std::path::Path| {
        let _ = std::fs::remove_file(path);
        std::os::unix::fs::symlink(to, path).expect("links");
        nix::unistd::fchownat(nix::fcntl::AT_FDCWD, path, nobody, None, nix::fcntl::AtFlags::AT_SYMLINK_NOFOLLOW)
            .expect("given away");
    };
    let written = [
        "events.jsonl",
        "console.log",
        "vmm.log",
        "supervisor.log",
        "state.json",
        "run.json",
        "vmm.json",
        "disks.json",
        "lock",
        "engine.lock",
    ];
    for name in written {
        let world = World::new();
        world.make("g", "say:hello", "disks = [{ id = \"root\", size = \"1M\" }]");
        let path = world.guest("g").join(name);
        // What is there is readable at the other end, so that it is not the reading that fails.
        let victim = world.path().join("victim");
        match std::fs::read(&path) {
            Ok(bytes) => std::fs::write(&victim, bytes).expect("writes"),
            Err(_) => std::fs::write(&victim, "").expect("writes"),
        }
        std::fs::set_permissions(&victim, std::os::unix::fs::PermissionsExt::from_mode(0o640)).expect("sets");
        link(&path, &victim);
        let looks = || {
            let metadata = std::fs::metadata(&victim).expect("there");
            (std::fs::read(&victim).expect("reads"), metadata.permissions().mode(), metadata.modified().expect("a time"))
        };
        let before = looks();
        // Refused or done without the file; in either case nothing comes out at the other end.
        world.vmctl(&["start", "g"]);
        world.vmctl(&["disk", "add", "g", "more", "--size", "1M"]);
        world.vmctl(&["stop", "g"]);
        world.vmctl(&["disk", "resize", "g", "root", "2M"]);
        world.vmctl(&["rename", "g", "h"]);
        world.vmctl(&["kill", "*", "-q"]);
        assert!(looks() == before, "{name} was written to through the link");
        // A link that root has made is followed where that is of use.
        let own = World::new();
        own.make("g", "say:hello", "");
        let log = own.path().join("kept.log");
        std::fs::write(&log, "").expect("writes");
        if name == "console.log" {
            let _ = std::fs::remove_file(own.guest("g").join(name));
            std::os::unix::fs::symlink(&log, own.guest("g").join(name)).expect("links");
            own.vmctl(&["start", "g"]).ok();
            eventually("the log is written", || std::fs::read_to_string(&log).expect("reads").contains("hello"));
        }
    }
    // A disk: where others may put links, nothing is started.
    let world = World::new();
    world.make("g", "", "disks = [{ id = \"root\", size = \"1M\" }]");
    let disks = world.guest("g").join("disks");
    std::fs::set_permissions(&disks, std::os::unix::fs::PermissionsExt::from_mode(0o777)).expect("sets");
    world.vmctl(&["start", "g"]).fails(1, "everybody may write to").says("/guests/g/disks`");
    std::fs::set_permissions(&disks, std::os::unix::fs::PermissionsExt::from_mode(0o700)).expect("sets");
    nix::unistd::chown(&disks, nobody, None).expect("given away");
    world.vmctl(&["start", "g"]).fails(1, "who would decide what runs as `root`").says("/guests/g/disks`");
}

#[test]
fn a_guest_that_its_first_start_would_refuse_is_not_made() {
    let world = World::new();
    let file = world.file_for_copies("g", "disks = [{ id = \"root\", size = \"1M\" }]");
    let shown = file.to_str().expect("UTF-8").to_owned();
    let nothing_is_made = || assert!(!world.guest("g").exists() && leftovers(&world.path().join("ds")).is_empty());
    let copy = format!("`vmctl create g --copy --file {shown}`");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o666)).expect("sets");
    for more in [&[][..], &["--set", "memory=64M"]] {
        let arguments = [&["create", "g", "--file", &shown], more].concat();
        world.vmctl(&arguments).fails(1, "everybody may write to").says(&copy).says("chmod go-w");
        nothing_is_made();
    }
    if nix::unistd::geteuid().is_root() {
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).expect("sets");
        nix::unistd::chown(&file, Some(nix::unistd::Uid::from_raw(65534)), None).expect("given away");
        let refused = world.vmctl(&["create", "--file", &shown]).fails(1, "who would decide what runs as `root`");
        refused.says(&copy).says("chown root");
        nothing_is_made();
        // What it builds on is no other's either.
        let outer = world.path().join("outer.toml");
        std::fs::write(&outer, "include = [\"g.toml\"]\n").expect("writes");
        let outer = outer.to_str().expect("UTF-8");
        world.vmctl(&["create", "g", "--file", outer]).fails(1, "/g.toml` belongs to `nobody`").says("chown root");
        nothing_is_made();
    }
    // What the hint says works, and the copy is nobody else's to change.
    world.vmctl(&["create", "g", "--copy", "--file", &shown]).ok();
    world.vmctl(&["start", "g"]).ok();
}
