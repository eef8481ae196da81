//! What is left when bhyve, its engine child and the supervisor are killed at one instant: nobody is there to undo it, and
//! the next command does.

use crate::world::{NIC, World, alive, kill};

/// Starts a guest and kills all that runs it, in an order in which nobody can clean up.
fn kill_all(world: &World, name: &str) {
    world.vmctl(&["start", name]).ok();
    let info = world.info(name);
    let pid = |key: &str| info[key].as_u64().unwrap_or_else(|| panic!("no {key} in {info}"));
    let (supervisor, engine) = (pid("pid"), pid("engine_pid"));
    let children = std::fs::read_to_string(format!("/proc/{engine}/task/{engine}/children")).expect("the engine runs");
    for process in [supervisor, engine] {
        stop(process);
    }
    for process in [supervisor, engine] {
        kill(process);
    }
    let bhyve: Vec<u64> = children.split_whitespace().map(|word| word.parse().expect("a number")).collect();
    crate::world::eventually("all are gone", || ![supervisor, engine].iter().chain(&bhyve).any(|pid| alive(*pid)));
}

/// A process that is stopped does nothing before it is killed.
fn stop(pid: u64) {
    let pid = nix::unistd::Pid::from_raw(pid as i32);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGSTOP).expect("stopped");
}

fn world() -> World {
    let world = World::new();
    world.make("g", "say:up", NIC);
    kill_all(&world, "g");
    assert_eq!(world.leftovers().len(), 3, "{:?}", world.leftovers());
    world
}

#[test]
fn info_says_how_a_boot_ended_that_nobody_saw_end() {
    let world = World::new();
    world.make("g", "say:up exit:1 / say:up", NIC);
    world.vmctl(&["start", "g"]).ok();
    world.wait_for("g", "stopped");
    assert_eq!(world.info("g")["last_exit"]["reason"], "the guest powered off");
    kill_all(&world, "g");
    let lost = "the supervisor was killed, or the host went down";
    assert_eq!((world.word("g").as_str(), &world.info("g")["last_exit"]["reason"]), ("stopped", &lost.into()));
    world.vmctl(&["stop", "g"]).ok();
    assert_eq!(world.info("g")["last_exit"]["reason"], lost);
    world.vmctl(&["events", "g"]).ok().says("was killed, or the host went down");
}

#[test]
fn stop_removes_what_a_killed_guest_left_and_says_so() {
    let world = world();
    world.vmctl(&["stop", "g"]).ok().says("g was not running any more");
    world.nothing_is_left();
    world.vmctl(&["stop", "g"]).ok().says("g is stopped already");
}

#[test]
fn doctor_removes_what_a_killed_guest_left_and_says_so() {
    let world = world();
    world.vmctl(&["doctor"]).says("`g` was killed; its leftovers on this host are removed");
    world.nothing_is_left();
    world.vmctl(&["doctor"]).does_not_say("was killed");
}

#[test]
fn the_start_of_another_guest_removes_what_a_killed_guest_left() {
    let world = world();
    world.make("h", "say:up", NIC);
    world.vmctl(&["start", "h"]).ok().says("g was killed: its leftovers on this host are removed");
    let left = world.leftovers();
    assert!(!left.iter().any(|name| name == "vmm/g"), "{left:?}");
    world.vmctl(&["stop", "h"]).ok();
    world.nothing_is_left();
}

#[test]
fn what_cannot_be_removed_is_said_and_tried_again() {
    let world = world();
    world.fail("bhyvectl --vm=g --destroy", 1, "Device busy");
    world.vmctl(&["stop", "g"]).fails("what `g` left on this host cannot be removed").says("Device busy");
    world.vmctl(&["stop", "g"]).ok();
    world.nothing_is_left();
}
