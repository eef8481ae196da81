//! Every step of a boot fails once: the start says what failed, what was made before is undone, and the next start
//! works.

use crate::world::{NIC, World, alive, eventually, kill};

/// A step's call, and words that its failure must show.
const STEPS: &[(&str, &str)] = &[
    ("kldload -n vmm", "the kernel module `vmm` cannot be loaded"),
    ("kldload -n nmdm", "the kernel module `nmdm` cannot be loaded"),
    ("sysctl net.link.tap.up_on_open=1", "up_on_open"),
    ("ifconfig tap create", "nic `net0`"),
    ("addm tap", "nic `net0`"),
    ("ifconfig tap0 up", "nic `net0`"),
    ("swtpm socket", "swtpm"),
    ("rctl -a", "rctl -a process:"),
];

#[test]
fn every_step_that_fails_is_said_and_what_was_made_before_it_is_undone() {
    let world = World::new().modern();
    world.make_uefi("g", "say:up", &format!("tpm = {{ type = \"swtpm\" }}\nlimits = {{ cpu_percent = 150 }}\n{NIC}"));
    for (piece, words) in STEPS {
        world.fail(piece, 1, "made to fail");
        world.vmctl(&["start", "g"]).fails(words);
        assert_eq!(world.word("g"), "stopped", "{piece}");
        world.nothing_is_left();
        // Modules stay loaded; they are the host's. The next step is reached all the same.
        assert_eq!(std::fs::read_dir(world.state("fail")).expect("lists").count(), 0, "`{piece}` was never called");
    }
    world.vmctl(&["start", "g"]).ok();
    world.vmctl(&["stop", "g"]).ok();
    world.nothing_is_left();
}

#[test]
fn a_jail_or_a_target_that_fails_is_said_and_undone_too() {
    let world = World::new();
    world.jail("vnet=new\n");
    let disk =
        "[[disks]]\nid = \"far\"\nbackend = \"iscsi\"\ntarget = \"iqn.2026-01.example:x\"\nportal = \"10.0.0.9\"\nlun = 2\n";
    world.make("g", "say:up", &format!("jail = \"vms\"\n{NIC}{disk}"));
    for (piece, words) in [
        ("kldload -n iscsi", "disk `far`"),
        ("iscsictl -A", "disk `far`"),
        ("jexec vms ifconfig tap create", "nic `net0`"),
        ("jexec vms test -e /dev/nmdm-vmctl-", "jexec"),
        ("jexec vms bhyvectl --vm=g --create", "bhyvectl"),
        ("jexec vms bhyveload", "bhyveload"),
    ] {
        world.fail(piece, 1, "made to fail");
        world.vmctl(&["start", "g"]).fails(words);
        world.nothing_is_left();
        assert!(!world.state("session").exists(), "{piece}");
        assert_eq!(std::fs::read_dir(world.state("fail")).expect("lists").count(), 0, "`{piece}` was never called");
    }
    world.vmctl(&["start", "g"]).ok();
    world.vmctl(&["stop", "g"]).ok();
    world.nothing_is_left();
}

#[test]
fn an_engine_child_that_is_killed_between_two_steps_leaves_nothing_either() {
    let world = World::new();
    world.make("g", "say:up", NIC);
    world.fail("addm tap0", 1, crate::fake::HANGS);
    let mut start = world.command(&["start", "g"]).stderr(std::process::Stdio::null()).spawn().expect("starts");
    eventually("the tap is there", || world.taps() == ["tap0"]);
    kill(world.info("g")["engine_pid"].as_u64().expect("an engine"));
    assert!(!start.wait().expect("ends").success());
    world.wait_for("g", "stopped");
    world.nothing_is_left();
}

#[test]
fn a_supervisor_that_is_killed_while_the_loader_waits_leaves_nothing_either() {
    let world = World::new();
    world.loader_part("g", "say:boot> wait");
    world.make("g", "say:up", NIC);
    let mut start = world.command(&["start", "g"]).stderr(std::process::Stdio::null()).spawn().expect("starts");
    eventually("the prompt", || world.console_log("g").contains("boot>"));
    let info = world.info("g");
    kill(info["pid"].as_u64().expect("a supervisor"));
    assert!(!start.wait().expect("ends").success());
    let engine = info["engine_pid"].as_u64().expect("an engine");
    eventually("the engine child is gone", || !alive(engine));
    world.nothing_is_left();
}

#[test]
fn a_loader_or_a_bhyve_that_fails_undoes_everything() {
    let world = World::new();
    world.make("g", "say:up", NIC);
    world.fail("bhyveload -", 1, "vm_create: Device not configured");
    world.vmctl(&["start", "g"]).fails("`bhyveload` ended with status 1: bhyveload: vm_create: Device not configured");
    world.nothing_is_left();
    world.fail("bhyve -A", 4, "Unable to set up memory");
    world.vmctl(&["start", "g"]).fails("Unable to set up memory");
    world.nothing_is_left();
    world.vmctl(&["start", "g"]).ok();
    world.vmctl(&["stop", "g"]).ok();
}

#[test]
fn what_cannot_be_undone_at_once_is_undone_later() {
    let world = World::new();
    world.make("g", "say:up", NIC);
    for piece in ["bhyvectl --vm=g --destroy", "ifconfig tap0 destroy"] {
        world.vmctl(&["start", "g"]).ok();
        world.fail(piece, 1, "Device busy");
        world.vmctl(&["stop", "g"]).ok();
        // The supervisor tries what its engine child could not do.
        world.nothing_is_left();
    }
}

#[test]
fn what_an_earlier_boot_left_and_cannot_be_removed_stops_the_next_boot() {
    let world = World::new();
    world.make("g", "say:up", &format!("restart = {{ on_crash = \"stop\" }}\n{NIC}"));
    world.vmctl(&["start", "g"]).ok();
    // Thrice: by the engine child, by the supervisor, and by the next engine child.
    for _ in 0..3 {
        world.fail("bhyvectl --vm=g --destroy", 1, "Device busy");
    }
    world.vmctl(&["stop", "g"]).ok();
    world.vmctl(&["start", "g"]).fails("what an earlier boot left behind cannot be removed");
    world.vmctl(&["start", "g"]).ok();
    world.vmctl(&["stop", "g"]).ok();
    world.nothing_is_left();
}

#[test]
fn a_machine_that_somebody_destroys_first_is_gone_all_the_same() {
    let world = World::new();
    world.make("g", "say:up", NIC);
    std::fs::write(world.state("vanishes"), "").expect("writes");
    world.vmctl(&["start", "g"]).ok();
    world.vmctl(&["stop", "g"]).ok();
    world.nothing_is_left();
    assert!(!world.vmctl(&["logs", "--vmm", "g"]).ok().out.contains("not undone"));
}
