//! What follows each way in which a boot ends.

use crate::world::{World, alive, eventually, kill};

const QUICK: &str = "restart = { backoff_initial = \"10ms\", backoff_max = \"20ms\" }";

#[test]
fn a_guest_that_reboots_comes_back_and_one_that_powers_off_stays_away() {
    let world = World::new();
    world.make("g", "say:one exit:0 / say:two exit:0 / say:three exit:1", "");
    world.vmctl(&["start", "g"]).ok().says("g is running");
    world.wait_for("g", "stopped");
    assert_eq!(world.state("g")["boots"], 3);
    let log = std::fs::read_to_string(world.guest("g").join("console.log")).expect("a log");
    assert_eq!(log, "onetwothree");
    let state = world.state("g");
    assert_eq!(state["last_exit"]["reason"], "the guest powered off");
    assert_eq!(state["restarts"], 2, "also once it has stopped");
    world.vmctl(&["info", "g"]).ok().says("3 (2 restarts since it was last started)");
}

#[test]
fn a_guest_that_reboots_at_once_again_and_again_fails_at_the_limit() {
    let world = World::new();
    world.make("g", "exit:0", "restart = { limit = 3, backoff_initial = \"1ms\" }");
    world.vmctl(&["start", "g"]).ok();
    world.wait_for("g", "failed");
    let state = world.state("g");
    assert_eq!((state["boots"].as_u64(), state["restarts"].as_u64()), (Some(4), Some(3)));
    let reason = state["failed"].as_str().expect("a reason");
    assert!(reason.contains("the guest rebooted sooner than 10s after its start; restarted 3 times within 10m"), "{reason}");
}

#[test]
fn a_halted_and_a_suspended_guest_stay_away_also_if_reboots_are_not_followed() {
    for (part, more, reason) in [
        ("exit:2", "", "the guest halted"),
        ("exit:5", "", "suspended"),
        ("exit:0", "restart = { on_reboot = \"stop\" }", "the guest rebooted"),
        ("debug:7", "debug = { exit_port = true }", "the guest wrote 0x7 to the debug-exit port"),
        ("exit:3", "restart = { on_crash = \"stop\" }", "triple fault"),
    ] {
        let world = World::new();
        world.make("g", part, more);
        world.vmctl(&["start", "g"]).ok();
        world.wait_for("g", "stopped");
        let state = world.state("g");
        assert_eq!((state["last_exit"]["reason"].as_str(), state["boots"].as_u64()), (Some(reason), Some(1)), "{part}");
    }
}

#[test]
fn a_guest_that_crashes_in_a_loop_fails_at_the_limit_until_it_is_started_by_hand() {
    let world = World::new();
    world.make("g", "exit:3 / exit:4 / signal:6 / exit:99 / exit:3", "restart = { limit = 4, backoff_initial = \"1ms\" }");
    world.vmctl(&["start", "g"]).ok();
    world.wait_for("g", "failed");
    let state = world.state("g");
    assert_eq!(state["boots"], 5);
    assert!(state["failed"].as_str().is_some_and(|reason| reason.contains("triple fault; restarted 4 times")), "{state}");
    let events = world.events("g");
    assert_eq!(events.iter().filter(|kind| *kind == "restarting").count(), 4);
    assert_eq!(events[events.len() - 2..], ["failed", "stopped"]);
    world.vmctl(&["list", "g"]).ok().says("failed");
    world.vmctl(&["reset-failed", "g"]).ok().says("failure cleared");
    assert_eq!(world.word("g"), "stopped");
    world.vmctl(&["reset-failed", "g"]).ok().says("has not failed");
    world.vmctl(&["start", "g"]).ok();
    world.wait_for("g", "failed");
}

#[test]
fn a_killed_engine_is_a_crash_and_the_policy_applies() {
    let world = World::new();
    world.make("g", "", QUICK);
    world.vmctl(&["start", "g"]).ok();
    let first = world.state("g")["engine_pid"].as_u64().expect("an engine");
    kill(first);
    eventually("another engine runs", || {
        let state = world.state("g");
        state["state"] == "running" && state["engine_pid"].as_u64() != Some(first)
    });
    let state = world.state("g");
    assert_eq!(state["last_exit"]["reason"], "the engine was ended by SIGKILL");
    assert_eq!(state["restarts"], 1);
}

#[test]
fn a_killed_supervisor_takes_its_engine_along_and_the_next_start_works() {
    let world = World::new();
    world.make("g", "", "");
    world.vmctl(&["start", "g"]).ok();
    let state = world.state("g");
    let (supervisor, engine) = (state["pid"].as_u64().expect("a pid"), state["engine_pid"].as_u64().expect("a pid"));
    kill(supervisor);
    world.vmctl(&["start", "g"]).ok();
    assert!(!alive(engine));
    let state = world.state("g");
    assert_eq!(state["state"], "running");
    assert_ne!(state["pid"].as_u64(), Some(supervisor));
    assert!(world.events("g").contains(&"supervisor-lost".to_owned()));
    kill(state["pid"].as_u64().expect("a pid"));
    let engine = state["engine_pid"].as_u64().expect("a pid");
    eventually("the engine is gone", || !alive(engine));
    // The kernel gives up the lock with the supervisor's last thread, which may end after the engine.
    world.wait_for("g", "stopped");
    world.vmctl(&["stop", "g"]).ok().says("is stopped already");
}

#[test]
fn a_guest_file_that_is_broken_at_a_reboot_ends_the_guest_with_a_reason() {
    let world = World::new();
    let file = world.make("g", "sleep:200 exit:0", "");
    world.vmctl(&["start", "g"]).ok();
    std::fs::write(&file, "memroy = \"1G\"\n").expect("writes");
    world.wait_for("g", "failed");
    let state = world.state("g");
    assert!(state["failed"].as_str().is_some_and(|reason| reason.contains("g.toml:1:1: unknown key `memroy`")), "{state}");
    world.vmctl(&["start", "g"]).fails(1, "unknown key `memroy`");
}

#[test]
fn an_edit_waits_for_the_next_boot_and_info_says_so() {
    let world = World::new();
    let file = world.make("g", "", "");
    world.vmctl(&["start", "g"]).ok();
    assert_eq!(world.state("g")["restart_pending"], false);
    let text = std::fs::read_to_string(&file).expect("reads");
    std::fs::write(&file, format!("# a comment changes nothing\n{text}")).expect("writes");
    assert_eq!(world.state("g")["restart_pending"], false);
    std::fs::write(&file, text.replace("64M", "128M")).expect("writes");
    assert_eq!(world.state("g")["restart_pending"], true);
    world.vmctl(&["list"]).ok().says("restart pending");
    world.vmctl(&["restart", "g"]).ok().says("running again");
    let state = world.state("g");
    assert_eq!((state["restart_pending"].as_bool(), state["memory_bytes"].as_u64()), (Some(false), Some(128 << 20)));
    let spec = std::fs::read_to_string(world.guest("g").join("vmm.json")).expect("a specification");
    assert!(spec.contains("\"memory_bytes\": 134217728"), "{spec}");
}

#[test]
fn a_stop_during_the_back_off_ends_the_wait() {
    let world = World::new();
    world.make("g", "exit:3", "restart = { backoff_initial = \"1h\", backoff_max = \"1h\" }");
    world.vmctl(&["start", "g"]).ok();
    world.wait_for("g", "waiting");
    world.vmctl(&["stop", "g"]).ok().says("it was not running yet");
    assert_eq!(world.word("g"), "stopped");
}

#[test]
fn a_restart_during_the_back_off_boots_at_once() {
    let world = World::new();
    world.make("g", "exit:3 / deaf", "restart = { backoff_initial = \"1h\", backoff_max = \"1h\" }");
    world.vmctl(&["start", "g"]).ok();
    world.wait_for("g", "waiting");
    world.vmctl(&["restart", "g"]).ok();
    assert_eq!(world.word("g"), "running");
}

#[test]
fn hooks_run_at_their_turns_and_get_the_story() {
    let world = World::new();
    let script = world.path().join("hook");
    std::fs::write(&script, "#!/bin/sh\nread line; echo \"$VMCTL_EVENT $line\" >> hooks.out\n").expect("writes");
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).expect("sets");
    let events = ["post-create", "pre-start", "post-start", "ready", "pre-stop", "post-stop", "crash", "failed", "pre-destroy"];
    let hook = |event| format!("[[hooks]]\nevent = \"{event}\"\ncommand = [\"{}\"]\n", script.display());
    let hooks: String = events.iter().map(hook).collect();
    world.make(
        "g",
        "say:login: sleep:300 exit:3 / say:login: deaf / exit:3",
        &format!("restart = {{ limit = 1, backoff_initial = \"1ms\" }}\nstop_timeout = \"0s\"\n{hooks}"),
    );
    world.vmctl(&["start", "g"]).ok();
    eventually("the second boot is ready", || world.state("g")["boots"] == 2 && world.state("g")["ready"] == true);
    world.vmctl(&["stop", "g", "--timeout", "1ms"]).ok();
    let out = std::fs::read_to_string(world.guest("g").join("hooks.out")).expect("hooks ran");
    let ran: Vec<&str> = out.lines().filter_map(|line| line.split(' ').next()).collect();
    let wanted =
        ["post-create", "pre-start", "post-start", "ready", "crash", "pre-start", "post-start", "ready", "pre-stop", "post-stop"];
    assert_eq!(ran, wanted, "{out}");
    assert!(out.contains("\"event\":\"crash\",\"guest\":\"g\"") && out.contains("\"reason\":\"triple fault\""), "{out}");
}

#[test]
fn a_hook_that_fails_before_a_start_prevents_it() {
    let world = World::new();
    let hook =
        "[[hooks]]\nevent = \"pre-start\"\ncommand = [\"/bin/sh\", \"-c\", \"echo no network; exit 1\"]\non_failure = \"fail\"";
    world.make("g", "", hook);
    world.vmctl(&["start", "g"]).fails(1, "hook `pre-start` failed").says("no network");
    assert_eq!(world.word("g"), "stopped");
}

#[test]
fn a_hook_that_fails_before_a_stop_keeps_the_guest_running_and_force_goes_past_it() {
    let world = World::new();
    let hook = "[[hooks]]\nevent = \"pre-stop\"\ncommand = [\"/bin/false\"]\non_failure = \"fail\"";
    world.make("g", "", hook);
    world.vmctl(&["start", "g"]).ok();
    world.vmctl(&["stop", "g"]).fails(1, "hook `pre-stop` failed").says("--force");
    assert_eq!(world.word("g"), "running");
    world.vmctl(&["stop", "g", "--force"]).ok().says("powered off");
}
