//! `kill -9` before every single call of a command that changes something on the disk, for every verb that writes: then the
//! datastore is whole, the same command finishes what was begun, and nothing is left over.
//!
//! The commands are traced with ptrace(2), as a debugger does, and killed where they enter the call.
#![cfg(target_os = "linux")]
#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::store::{below, leftovers};
use crate::world::World;

/// How a traced command ended.
#[derive(Debug, PartialEq, Eq)]
enum Ended {
    /// At the call that was meant.
    Killed,
    /// By itself, with this code.
    With(i32),
}

/// Whether a call changes what is on the disk (ptrace(2), PTRACE_GET_SYSCALL_INFO: the number and the arguments).
fn changes_the_disk(number: u64, arguments: &[u64; 6]) -> bool {
    const WRITERS: &[libc::c_long] = &[
        libc::SYS_renameat,
        libc::SYS_renameat2,
        libc::SYS_unlinkat,
        libc::SYS_mkdirat,
        libc::SYS_symlinkat,
        libc::SYS_linkat,
        libc::SYS_ftruncate,
        libc::SYS_fsync,
        libc::SYS_fdatasync,
        libc::SYS_fchmod,
        libc::SYS_copy_file_range,
    ];
    #[cfg(target_arch = "x86_64")]
    const OLD: &[libc::c_long] = &[
        libc::SYS_rename,
        libc::SYS_unlink,
        libc::SYS_rmdir,
        libc::SYS_mkdir,
        libc::SYS_symlink,
        libc::SYS_link,
        libc::SYS_chmod,
    ];
    #[cfg(not(target_arch = "x86_64"))]
    const OLD: &[libc::c_long] = &[];
    let number = number as libc::c_long;
    let creates = |flags: u64| flags as libc::c_int & libc::O_CREAT != 0;
    match number {
        libc::SYS_openat => creates(arguments[2]),
        // Not to the streams of the command.
        libc::SYS_write | libc::SYS_pwrite64 => arguments[0] > 2,
        number => WRITERS.contains(&number) || OLD.contains(&number),
    }
}

/// Runs a command and kills it as it enters the `nth` call that changes the disk.
fn run_and_kill(command: Command, nth: usize) -> Ended {
    run_and_act(command, nth, |leader| kill(leader, Signal::SIGKILL).expect("there")).0
}

/// Runs a command and does something with it as it enters the `nth` call that changes the disk. It stands still meanwhile.
/// Returns the number of such calls up to that one, too.
#[allow(clippy::zombie_processes, reason = "it is waited for by waitpid(2), as its threads are")]
fn run_and_act(mut command: Command, nth: usize, act: impl Fn(Pid)) -> (Ended, usize) {
    command.stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
    // SAFETY: ptrace(2) with PTRACE_TRACEME is one system call without memory, as is allowed between fork and exec.
    unsafe {
        command.pre_exec(|| match libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0) {
            -1 => Err(std::io::Error::last_os_error()),
            _ => Ok(()),
        });
    }
    let child = command.spawn().expect("runs");
    let leader = Pid::from_raw(child.id() as i32);
    let go_on = |pid: Pid, signal: libc::c_int| {
        // SAFETY: a request without memory to a thread that this one traces; one that is gone is no error here.
        unsafe { libc::ptrace(libc::PTRACE_SYSCALL, pid.as_raw(), 0, signal) };
    };
    waitpid(leader, Some(WaitPidFlag::__WALL)).expect("stops at its exec");
    let options = libc::PTRACE_O_TRACESYSGOOD | libc::PTRACE_O_TRACECLONE | libc::PTRACE_O_EXITKILL;
    // SAFETY: a request without memory to the process that this thread traces.
    assert_eq!(unsafe { libc::ptrace(libc::PTRACE_SETOPTIONS, leader.as_raw(), 0, options) }, 0);
    go_on(leader, 0);
    let mut seen = 0;
    loop {
        // Threads are in the group, too; a program that the command runs is not traced.
        match waitpid(Pid::from_raw(-leader.as_raw()), Some(WaitPidFlag::__WALL)).expect("a thread of the command") {
            WaitStatus::Exited(pid, code) if pid == leader => return (Ended::With(code), seen),
            WaitStatus::Signaled(pid, ..) if pid == leader => return (Ended::Killed, seen),
            WaitStatus::PtraceSyscall(pid) if seen < nth => {
                if enters_a_change(pid) {
                    seen += 1;
                    if seen == nth {
                        act(leader);
                    }
                }
                // One that was killed is gone, which is no error here.
                go_on(pid, 0);
            }
            // A new thread begins with a stop of its own.
            WaitStatus::Stopped(pid, Signal::SIGSTOP) => go_on(pid, 0),
            WaitStatus::Stopped(pid, signal) => go_on(pid, signal as libc::c_int),
            WaitStatus::PtraceEvent(pid, ..) | WaitStatus::PtraceSyscall(pid) => go_on(pid, 0),
            _ => {}
        }
    }
}

fn enters_a_change(pid: Pid) -> bool {
    // SAFETY: all zeros are a value of this plain structure.
    let mut info: libc::ptrace_syscall_info = unsafe { std::mem::zeroed() };
    let size = std::mem::size_of_val(&info);
    // SAFETY: the kernel writes at most `size` bytes to `info`, which lives over the call.
    let got = unsafe { libc::ptrace(libc::PTRACE_GET_SYSCALL_INFO, pid.as_raw(), size, &raw mut info) };
    if got <= 0 || info.op != libc::PTRACE_SYSCALL_INFO_ENTRY {
        return false;
    }
    // SAFETY: `op` says that it is this member of the union.
    let entry = unsafe { info.u.entry };
    changes_the_disk(entry.nr, &entry.args)
}

/// What a datastore says, without what differs from one time to another.
fn meaning(world: &World) -> BTreeMap<PathBuf, Vec<u8>> {
    let store = world.path().join("ds");
    let told = |path: &Path| {
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        name == "guest.toml" || name == "disks.json" || path.parent().is_some_and(|parent| parent.ends_with("disks"))
    };
    let files = below(&store).into_iter().filter(|path| path.is_file() && told(path));
    files.map(|path| (path.strip_prefix(&store).expect("below").to_owned(), std::fs::read(&path).expect("reads"))).collect()
}

fn copy(from: &Path, to: &Path) {
    let _ = std::fs::remove_dir_all(to);
    let done = Command::new("cp").arg("-a").arg(from).arg(to).status().expect("runs");
    assert!(done.success());
}

/// What holds of every guest at any time.
fn is_whole(world: &World, what: &str) {
    world.vmctl(&["check"]).ok();
    let names: Vec<String> = world.vmctl(&["list", "-o", "name"]).ok().out.lines().map(str::to_owned).collect();
    for name in names {
        let guest = world.guest(&name);
        assert!(guest.join("state.json").is_file(), "{what}: {name} has no state");
        let info = world.state(&name);
        assert_eq!(info["name"], *name, "{what}");
        // The boot makes a disk that an apply did not get to.
        let disks = info["disks"].as_array().into_iter().flatten();
        for disk in disks.filter(|_| !what.contains("apply")) {
            assert!(disk["size_bytes"].as_u64().is_some(), "{what}: a disk of {name} is not there: {disk}");
        }
    }
}

/// Kills the command before each of its calls in turn, starting from the datastore as it is; each time runs it again, and
/// compares with what comes of it when nobody kills it.
fn kill_everywhere(world: &World, arguments: &[&str], done_before: &str) -> usize {
    let (store, saved) = (world.path().join("ds"), world.path().join("saved"));
    let command = || {
        let mut command = world.command(arguments);
        command.env("EDITOR", "sed -i s/64M/96M/");
        command
    };
    copy(&store, &saved);
    assert_eq!(run_and_kill(command(), usize::MAX), Ended::With(0), "{arguments:?}");
    let wanted = meaning(world);
    for nth in 1.. {
        copy(&saved, &store);
        let ended = run_and_kill(command(), nth);
        let what = format!("{arguments:?}, killed before call {nth}");
        if ended != Ended::Killed {
            assert_eq!(ended, Ended::With(0), "{what}");
            let _ = std::fs::remove_dir_all(&saved);
            return nth - 1;
        }
        is_whole(world, &what);
        let again: crate::world::Said = command().output().expect("runs").into();
        let finished =
            again.code == Some(0) || (again.code == Some(1) && !done_before.is_empty() && again.err.contains(done_before));
        assert!(finished, "{what}: {again:?}");
        is_whole(world, &what);
        assert_eq!(meaning(world).keys().collect::<Vec<_>>(), wanted.keys().collect::<Vec<_>>(), "{what}: {again:?}");
        assert!(meaning(world) == wanted, "{what}: it is not what it should be");
        // What is in the directory of a guest goes with the next command that takes the guest.
        for name in world.vmctl(&["list", "-o", "name"]).ok().out.lines() {
            world.vmctl(&["nic", "remove", name, "nobody"]).fails(1, "has no interface `nobody`");
        }
        assert!(leftovers(&store).is_empty(), "{what}: {:?}", leftovers(&store));
    }
    unreachable!("a command has an end")
}

/// A datastore with a guest that has a file of its own.
fn world() -> World {
    let world = World::new().with_cache();
    let more = "disks = [{ id = \"root\", size = \"1M\" }]\nnics = [{ id = \"net0\", backend = \"none\" }]";
    let file = world.file_for_copies("g", more);
    world.vmctl(&["create", "g", "--file", file.to_str().expect("UTF-8"), "--copy"]).ok();
    std::fs::write(world.guest("g").join("disks/root.raw"), vec![b'x'; 1 << 20]).expect("writes");
    std::fs::write(world.path().join("base.raw"), vec![7; 1 << 20]).expect("writes");
    std::fs::write(world.path().join("cd.iso"), [0; 4096]).expect("writes");
    world
}

#[test]
fn a_guest_that_is_made_copied_renamed_or_removed_survives_a_kill_at_every_call() {
    let world = world();
    let file = world.path().join("g.toml");
    let file = file.to_str().expect("UTF-8");
    let mut calls = 0;
    calls += kill_everywhere(&world, &["create", "n", "--file", file], "a guest called `n` exists already");
    calls += kill_everywhere(&world, &["create", "c", "--file", file, "--copy", "--set", "disks.more.size=1M"], "exists already");
    calls += kill_everywhere(&world, &["clone", "g", "k"], "exists already");
    calls += kill_everywhere(&world, &["rename", "k", "l"], "no guest is called `k`");
    calls += kill_everywhere(&world, &["destroy", "l", "--yes"], "no guest is called `l`");
    assert!(calls > 100, "{calls}");
}

#[test]
fn a_clone_that_takes_long_holds_up_no_command_but_those_that_want_its_name_or_its_guest() {
    let world = world();
    let file = world.path().join("g.toml");
    let file = file.to_str().expect("UTF-8");
    let (ended, calls) = run_and_act(world.command(&["clone", "g", "whole"]), usize::MAX, |_| ());
    assert_eq!(ended, Ended::With(0));
    world.vmctl(&["destroy", "whole", "--yes"]).ok();
    // Half of its calls are made: it stands still in the middle of its work for as long as the others take.
    let (ended, seen) = run_and_act(world.command(&["clone", "g", "k"]), calls / 2, |leader| {
        world.vmctl(&["create", "n", "--file", file]).ok();
        world.vmctl(&["start", "n"]).ok();
        world.vmctl(&["disk", "add", "n", "d", "--size", "1M"]);
        world.vmctl(&["kill", "n"]).ok();
        let words = format!("(process {leader}) is making a guest called `k`");
        world.vmctl(&["create", "k", "--file", file]).fails(1, &words);
        world.vmctl(&["destroy", "g", "--yes"]).fails(1, &format!("(process {leader})"));
    });
    assert_eq!((ended, seen), (Ended::With(0), calls / 2));
    is_whole(&world, "after the clone");
    let names = world.vmctl(&["list", "-o", "name"]).ok().out;
    assert_eq!(names.lines().collect::<Vec<_>>(), ["g", "k", "n"]);
}

/// Kills a command that makes a guest run, or leads to one that runs, before each of its calls in turn. The same command, or
/// a start of what it has made, finishes it.
fn kill_everywhere_of_a_start(world: &World, arguments: &[&str]) -> usize {
    let (store, saved) = (world.path().join("ds"), world.path().join("saved"));
    // A port of the host is chosen anew each time.
    let meaning = || {
        let without_ports = |(path, bytes): (PathBuf, Vec<u8>)| match path.ends_with("guest.toml") {
            true => {
                let text = String::from_utf8(bytes).expect("UTF-8");
                let words =
                    text.split(' ').map(|word| if word.trim_end_matches(',').parse::<u16>().is_ok() { "N" } else { word });
                (path, words.collect::<Vec<_>>().join(" ").into_bytes())
            }
            false => (path, bytes),
        };
        meaning(world).into_iter().map(without_ports).collect::<BTreeMap<_, _>>()
    };
    world.vmctl(arguments).ok();
    world.vmctl(&["kill", "g", "-q"]);
    let wanted = meaning();
    let _ = std::fs::remove_dir_all(&store);
    if saved.is_dir() {
        copy(&saved, &store);
    }
    for nth in 1.. {
        let ended = run_and_kill(world.command(arguments), nth);
        let what = format!("{arguments:?}, killed before call {nth}");
        if ended == Ended::Killed {
            world.vmctl(&["check"]).ok();
            let again = world.vmctl(arguments);
            let made = ["exists already", "is running", "runs already"].iter().any(|words| again.err.contains(words));
            assert!(again.code == Some(0) || made, "{what}: {again:?}");
            if again.code != Some(0) {
                world.vmctl(&["start", "g"]);
            }
        } else {
            assert_eq!(ended, Ended::With(0), "{what}");
        }
        world.wait_for("g", "running");
        world.vmctl(&["kill", "g"]).ok();
        is_whole(world, &what);
        assert_eq!(meaning().keys().collect::<Vec<_>>(), wanted.keys().collect::<Vec<_>>(), "{what}");
        assert!(meaning() == wanted, "{what}: it is not what it should be");
        world.vmctl(&["nic", "remove", "g", "nobody"]).fails(1, "has no interface `nobody`");
        assert!(leftovers(&store).is_empty(), "{what}: {:?}", leftovers(&store));
        let _ = std::fs::remove_dir_all(&store);
        if saved.is_dir() {
            copy(&saved, &store);
        }
        if ended != Ended::Killed {
            return nth - 1;
        }
    }
    unreachable!("a command has an end")
}

#[test]
fn a_launch_survives_a_kill_at_every_call() {
    let world = World::new().with_cache();
    std::fs::write(world.path().join("kernel"), "no kernel").expect("writes");
    std::fs::write(world.path().join("base.raw"), vec![7; 1 << 20]).expect("writes");
    world.vmctl(&["image", "import", "./base.raw", "--name", "base"]).ok();
    let arguments = [
        "launch",
        "base",
        "g",
        "--set",
        "kernel.image=kernel",
        "--set",
        "memory=64M",
        "--set",
        "disks.root.size=2M",
        "--no-wait",
    ];
    let calls = kill_everywhere_of_a_start(&world, &arguments);
    assert!(calls > 20, "{calls}");
}

#[test]
fn an_install_survives_a_kill_at_every_call() {
    use std::os::unix::fs::FileExt;
    let world = World::new();
    let iso = std::fs::File::create(world.path().join("installer.iso")).expect("made");
    iso.set_len(1 << 20).expect("sized");
    iso.write_all_at(b"CD001", 16 * 2048 + 1).expect("written");
    let text = "memory = \"64M\"\nloader = \"grub\"\ndisks = [{ id = \"root\", size = \"8M\" }]\n";
    std::fs::write(world.path().join("g.toml"), text).expect("writes");
    world.vmctl(&["create", "g", "--file", "./g.toml"]).ok();
    copy(&world.path().join("ds"), &world.path().join("saved"));
    let calls = kill_everywhere_of_a_start(&world, &["install", "g", "installer.iso", "--append", "say:hello", "--detach"]);
    assert!(calls > 0, "{calls}");
}

#[test]
fn a_guest_file_that_is_changed_survives_a_kill_at_every_call() {
    let world = world();
    let mut calls = 0;
    calls += kill_everywhere(&world, &["edit", "g"], "");
    calls += kill_everywhere(&world, &["nic", "add", "g", "n"], "has a interface `n` already");
    calls += kill_everywhere(&world, &["forward", "add", "g", "18081:81"], "has the forward");
    calls += kill_everywhere(&world, &["forward", "remove", "g", "18081"], "has no forward");
    calls += kill_everywhere(&world, &["nic", "remove", "g", "n"], "has no interface `n`");
    calls += kill_everywhere(&world, &["media", "insert", "g", "cd.iso"], "");
    calls += kill_everywhere(&world, &["media", "eject", "g"], "has no disk `cd0`");
    assert!(calls > 50, "{calls}");
}

#[test]
fn an_import_from_vm_bhyve_survives_a_kill_at_every_call() {
    let world = world();
    let put = |file: &str, text: &str| {
        let path = world.path().join("vm").join(file);
        std::fs::create_dir_all(path.parent().expect("below vm")).expect("makes");
        std::fs::write(path, text).expect("writes");
    };
    put(".config/system.conf", "");
    put(".templates/base.conf", "loader=\"uefi\"\ncpu=1\nmemory=512M\n");
    for name in ["web", "db"] {
        put(&format!("{name}/{name}.conf"), "loader=\"uefi\"\ncpu=1\nmemory=512M\n");
    }
    let calls = kill_everywhere(&world, &["import", "vm-bhyve", "vm"], "");
    assert!(calls > 20, "{calls}");
}

#[test]
fn a_disk_that_comes_grows_or_goes_survives_a_kill_at_every_call() {
    let world = world();
    let mut calls = 0;
    calls += kill_everywhere(&world, &["disk", "add", "g", "d", "--size", "1M"], "has a disk `d` already");
    calls +=
        kill_everywhere(&world, &["disk", "add", "g", "s", "--source", "./base.raw", "--size", "2M"], "has a disk `s` already");
    calls += kill_everywhere(&world, &["disk", "resize", "g", "root", "2M"], "");
    calls += kill_everywhere(&world, &["disk", "remove", "g", "d"], "has no disk `d`");
    // What is taken away without its bytes is not taken for a new disk, and a purge that was broken off is finished.
    world.vmctl(&["disk", "add", "g", "d", "--size", "1M"]).fails(1, "exists already");
    calls += kill_everywhere(&world, &["disk", "remove", "g", "s", "--purge", "--yes"], "has no disk `s`");
    assert!(!world.guest("g").join("disks/s.raw").exists());
    assert!(calls > 80, "{calls}");
}

#[test]
fn a_fleet_that_is_applied_survives_a_kill_at_every_call() {
    let world = World::new();
    std::fs::write(world.path().join("kernel"), "no kernel").expect("writes");
    let fleet = |guests: &str| {
        let head = "name = \"room\"\n[defaults]\nkernel = { image = \"kernel\" }\n";
        std::fs::write(world.path().join("fleet.toml"), format!("{head}{guests}")).expect("writes");
    };
    let data = "disks = [{ id = \"data\", size = \"1M\" }]";
    fleet(&format!("[[guests]]\nname = \"a\"\n{data}\n[[guests]]\nname = \"old\"\n{data}\n"));
    let apply = ["apply", "--yes", "--prune", "--parallel", "1"];
    world.vmctl(&apply).ok();
    std::fs::write(world.guest("a").join("disks/data.raw"), vec![b'x'; 1 << 20]).expect("writes");
    let more = "disks = [{ id = \"data\", size = \"2M\" }, { id = \"more\", size = \"1M\" }]";
    fleet(&format!("[[guests]]\nname = \"a\"\nmemory = \"96M\"\n{more}\n[[guests]]\nname = \"b\"\n{data}\n"));
    let calls = kill_everywhere(&world, &apply, "");
    assert!(calls > 60, "{calls}");
    assert!(std::fs::read(world.guest("a").join("disks/data.raw")).expect("reads").starts_with(&vec![b'x'; 1 << 20]));
}

#[test]
fn an_image_that_is_imported_or_removed_survives_a_kill_at_every_call() {
    let world = world();
    let cache = world.cache();
    let import = ["image", "import", "base.raw", "--name", "base"];
    let everywhere = |arguments: &[&str], there_after: bool| {
        let saved = world.path().join("saved-cache");
        let _ = std::fs::create_dir_all(&cache);
        copy(&cache, &saved);
        for nth in 1.. {
            copy(&saved, &cache);
            let ended = run_and_kill(world.command(arguments), nth);
            let what = format!("{arguments:?}, killed before call {nth}");
            let again = world.vmctl(arguments);
            assert!(
                again.code == Some(0) || again.err.contains("no image called") || again.err.contains("already"),
                "{what}: {again:?}"
            );
            let listed = world.vmctl(&["image", "list", "-o", "name"]).ok().out;
            assert_eq!(listed.contains("base"), there_after, "{what}: {listed}");
            if there_after {
                world.vmctl(&["image", "check"]).ok();
            }
            // The next command that changes the cache.
            world.vmctl(&["image", "prune"]).ok();
            assert!(leftovers(&cache).is_empty(), "{what}: {:?}", leftovers(&cache));
            let objects = std::fs::read_dir(cache.join("objects")).expect("lists").count();
            assert_eq!(objects, usize::from(there_after), "{what}");
            if ended != Ended::Killed {
                assert!(nth > 10, "{what}");
                return;
            }
        }
    };
    everywhere(&import, true);
    everywhere(&["image", "remove", "--yes", "base"], false);
}
