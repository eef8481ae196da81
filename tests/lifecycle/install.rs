//! An installer's run: one boot has the medium, and no other.

use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use crate::world::{World, alive, eventually, kill};

/// What is an ISO as far as the head of its first volume descriptor goes.
fn medium(world: &World) -> PathBuf {
    let path = world.path().join("installer.iso");
    let file = std::fs::File::create(&path).expect("made");
    file.set_len(1 << 20).expect("sized");
    file.write_all_at(b"CD001", 16 * 2048 + 1).expect("written");
    path
}

/// A guest that boots by its own menu; its installed system plays `part`.
fn make(world: &World, part: &str, more: &str) {
    let text = format!(
        "memory = \"64M\"\nloader = \"grub\"\ngrub = {{ entry = \"{part}\" }}\ndisks = [{{ id = \"root\", size = \"8M\" }}]\n\
         nics = [{{ id = \"net0\", backend = \"user\" }}]\n{more}\n"
    );
    let file = world.path().join("g.toml");
    std::fs::write(&file, text).expect("writes");
    world.vmctl(&["create", "g", "--file", file.to_str().expect("UTF-8")]).ok();
}

fn install(world: &World, part: &str, more: &[&str]) -> crate::world::Said {
    let medium = medium(world);
    let mut arguments = vec!["install", "g", medium.to_str().expect("UTF-8"), "--append", part];
    arguments.extend_from_slice(more);
    world.vmctl(&arguments)
}

fn log(world: &World) -> String {
    world.vmctl(&["logs", "g"]).out
}

#[test]
fn the_medium_is_gone_when_the_installer_reboots_and_the_devices_stay_where_they_are() {
    let world = World::new();
    make(&world, "disks say:installed", "ready = { console = \"installed\" }");
    install(&world, "disks say:installed_no_it_is_the_installer exit:0", &["--wait"]).ok().says("g is ready");
    let log = log(&world);
    assert!(log.contains("[install@6 root@4]") && log.contains("[root@4]"), "{log}");
    assert_eq!(world.events("g").iter().filter(|kind| *kind == "installing").count(), 1);
    assert_eq!(world.events("g").iter().filter(|kind| *kind == "ready").count(), 1, "the installer is not what is waited for");
}

#[test]
fn an_installer_that_powers_off_leaves_the_guest_stopped_and_without_the_medium() {
    let world = World::new();
    make(&world, "disks", "");
    install(&world, "disks exit:1", &["--detach"]).ok();
    world.wait_for("g", "stopped");
    world.vmctl(&["start", "g"]).ok();
    eventually("the installed system runs", || log(&world).contains("[root@4]"));
}

#[test]
fn a_medium_does_not_outlive_a_killed_supervisor() {
    let world = World::new();
    make(&world, "disks", "");
    install(&world, "disks", &["--detach"]).ok();
    eventually("the installer runs", || log(&world).contains("[install@6 root@4]"));
    world.vmctl(&["info", "g"]).ok().says("installer.iso");
    let pid = world.state("g")["pid"].as_u64().expect("a process");
    kill(pid);
    eventually("it is gone", || !alive(pid));
    world.vmctl(&["start", "g"]).ok();
    eventually("the next boot is without it", || log(&world).contains("[root@4]"));
    assert!(!world.vmctl(&["info", "g"]).ok().out.contains("installer.iso"));
}

#[test]
fn a_crash_of_the_installer_is_said_and_not_repeated_from_the_empty_disk() {
    let world = World::new();
    make(&world, "disks", "restart = { on_crash = \"restart\" }");
    install(&world, "sleep:100 exit:3", &["--detach"]).ok();
    world.wait_for("g", "failed");
    world.vmctl(&["info", "g"]).ok().says("it was being installed from");
    assert!(!log(&world).contains("[root@4]"));
    install(&world, "disks", &["--detach"]).ok();
    eventually("it is installed once more", || log(&world).contains("[install@6 root@4]"));
}

#[test]
fn a_reset_ends_the_run_as_a_reboot_does() {
    let world = World::new();
    make(&world, "disks", "");
    install(&world, "disks", &["--detach"]).ok();
    world.vmctl(&["suspend", "g"]).fails(1, "needs the medium");
    world.vmctl(&["reset", "g"]).ok();
    eventually("the disk boots", || log(&world).contains("[root@4]"));
}

#[test]
fn the_answer_file_is_served_and_told_to_the_installer_alone() {
    let world = World::new();
    make(&world, "disks", "");
    let preseed = world.path().join("answers.cfg");
    std::fs::write(&preseed, "d-i a b c\n").expect("written");
    install(&world, "word", &["--detach", "--preseed", preseed.to_str().expect("UTF-8")]).ok();
    let spec = || std::fs::read_to_string(world.guest("g").join("vmm.json")).expect("a specification");
    for text in ["url=http://10.0.2.4/preseed.cfg", "\"/preseed.cfg\"", "answers.cfg", "\"word\""] {
        assert!(spec().contains(text), "no `{text}` in {}", spec());
    }
    world.vmctl(&["reset", "g"]).ok();
    assert!(!spec().contains("preseed"), "{}", spec());
}

#[test]
fn a_guest_is_made_for_the_run_and_off_a_terminal_it_is_said_what_is_missing() {
    let world = World::new();
    let medium = medium(&world);
    let medium = medium.to_str().expect("UTF-8");
    world
        .vmctl(&["install", "h", medium, "--size", "16M"])
        .fails(1, "options for a new one are missing: --memory, --network, --loader")
        .says("--template");
    assert!(!world.guest("h").exists());
    let all = ["--size", "16M", "--memory", "64M", "--network", "user", "--loader", "grub"];
    world.vmctl(&[&["install", "h", medium, "--detach"][..], &all].concat()).ok().says("h is running");
    assert_eq!(std::fs::metadata(world.guest("h").join("disks/root.raw")).expect("made").len(), 16 << 20);
    world.vmctl(&["install", "h", medium]).fails(1, "is running");
    world.vmctl(&["kill", "h"]).ok();
    world.vmctl(&[&["install", "h", medium][..], &all].concat()).fails(1, "exists already, and `--size` is for a new guest");
    world.vmctl(&["install", "i", medium, "--network", "lan"]).fails(1, "--size");
}

#[test]
fn what_cannot_be_installed_is_refused_before_anything_starts() {
    let world = World::new();
    let medium = medium(&world);
    let medium = medium.to_str().expect("UTF-8");
    world.make("k", "", "disks = [{ id = \"root\", size = \"8M\" }]");
    world.vmctl(&["install", "k", medium]).fails(1, "boots a kernel of the host, not a medium");
    let file = world.path().join("n.toml");
    std::fs::write(&file, "memory = \"64M\"\nloader = \"grub\"\nnics = []\n").expect("written");
    world.vmctl(&["create", "n", "--file", file.to_str().expect("UTF-8")]).ok();
    world.vmctl(&["install", "n", medium]).fails(1, "no disk that could be installed to");
    std::fs::write(&file, "memory = \"64M\"\nloader = \"grub\"\nnics = []\ndisks = [{ id = \"root\", size = \"8M\" }]\n")
        .expect("written");
    let answers = world.path().join("answers.cfg");
    std::fs::write(&answers, "").expect("written");
    let preseed = answers.to_str().expect("UTF-8");
    world.vmctl(&["install", "n", medium, "--preseed", preseed]).fails(1, "has no user-mode network");
    world.vmctl(&["install", "n", medium, "--autoinstall", preseed]).fails(1, "does not begin with `#cloud-config`");
    world.vmctl(&["install", "n", medium, "--preseed", "none.cfg"]).fails(1, "none.cfg");
    world.vmctl(&["install", "n", "no-such-medium"]).fails(1, "no-such-medium");
    assert!(world.events("n").iter().all(|kind| kind == "created"), "{:?}", world.events("n"));
}
