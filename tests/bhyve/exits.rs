//! What follows each way in which bhyve ends.

use crate::world::{NIC, World, eventually};

#[test]
fn every_exit_code_and_signal_has_its_reason_and_the_machine_is_destroyed_after_each() {
    for (part, reason) in [
        ("exit:1", "the guest powered off"),
        ("exit:2", "the guest halted"),
        ("exit:3", "triple fault"),
        ("exit:5", "suspended"),
        ("exit:64", "the engine ended with the unknown code 64"),
        ("exit:71", "the engine ended with the unknown code 71"),
        ("exit:100", "the engine ended with the unknown code 100"),
        ("signal:6", "the engine was ended by SIGABRT"),
        ("signal:9", "the engine was ended by SIGKILL"),
        ("words:no_more_memory exit:4", "the engine failed: `bhyve` ended with status 4: no more memory"),
    ] {
        let world = World::new();
        let (setup, end) = part.split_once(' ').unwrap_or(("", part));
        world.make("g", &format!("say:up {setup} {end}"), "restart = { on_crash = \"stop\" }");
        world.vmctl(&["start", "g"]).ok();
        world.wait_for("g", "stopped");
        let info = world.info("g");
        assert_eq!((info["last_exit"]["reason"].as_str(), info["boots"].as_u64()), (Some(reason), Some(1)), "{part}");
        let signal = part.strip_prefix("signal:").map(|number| number.parse::<i64>().expect("a number"));
        assert_eq!(info["last_exit"]["signal"].as_i64(), signal, "{part}");
        assert!(world.changes().contains(&"bhyvectl --vm=g --destroy".to_owned()), "{part}");
        world.nothing_is_left();
    }
}

#[test]
fn a_guest_that_crashes_in_every_way_is_restarted_up_to_the_limit() {
    let world = World::new();
    let part = "say:up exit:3 / exit:4 / exit:64 / exit:71 / signal:6 / exit:100 / exit:3";
    world.make("g", part, &format!("restart = {{ limit = 6, backoff_initial = \"1ms\", backoff_max = \"2ms\" }}\n{NIC}"));
    world.vmctl(&["start", "g"]).ok();
    world.wait_for("g", "failed");
    assert_eq!(world.info("g")["boots"], 7);
    world.nothing_is_left();
}

#[test]
fn a_power_off_at_once_with_words_on_standard_error_is_an_error_that_is_shown() {
    let world = World::new();
    world.make("g", "words:Device_emulation_already_exists_at_slot_4 exit:1", NIC);
    world.vmctl(&["start", "g"]).fails("`bhyve` ended with status 1: Device emulation already exists at slot 4");
    assert_eq!(world.word("g"), "stopped");
    world.nothing_is_left();
    world.vmctl(&["logs", "--vmm", "g"]).ok().says("Device emulation already exists");
}

#[test]
fn a_power_off_at_once_without_words_and_a_late_one_with_words_are_power_offs() {
    let world = World::new();
    world.make("g", "exit:1", "");
    world.make("h", "say:up words:fbuf_frame_buffer_base sleep:2500 exit:1", "");
    for name in ["g", "h"] {
        world.vmctl(&["start", name]);
        world.wait_for(name, "stopped");
        assert_eq!(world.info(name)["last_exit"]["reason"], "the guest powered off", "{name}");
    }
}

#[test]
fn bhyves_standard_error_is_always_kept() {
    let world = World::new();
    world.make("g", "words:wrmsr_to_register_0x10 say:up", "");
    world.vmctl(&["start", "g"]).ok();
    eventually("it is kept", || world.vmctl(&["logs", "--vmm", "g"]).out.contains("wrmsr to register 0x10"));
    world.vmctl(&["stop", "g"]).ok();
}

#[test]
fn the_loaders_own_ways_out_are_followed() {
    let world = World::new();
    world.make("g", "say:up", NIC);
    world.loader_part("g", "exit:2 / exit:2 / exit:0");
    world.vmctl(&["start", "g"]);
    eventually("it boots in the end", || {
        world.vmctl(&["start", "g"]);
        world.word("g") == "running"
    });
    world.vmctl(&["stop", "g"]).ok();
    world.make("h", "", NIC);
    world.loader_part("h", "words:no_memory exit:1");
    world.vmctl(&["start", "h"]).fails("`bhyveload` ended with status 1: no memory");
    world.nothing_is_left();
}

#[test]
fn a_power_button_that_ends_bhyve_before_the_guest_knows_of_one_is_an_end_of_its_own() {
    let world = World::new();
    world.make("g", "say:up early", NIC);
    world.vmctl(&["start", "g"]).ok();
    eventually("it runs", || world.console_log("g").contains("up"));
    let words = "it was powered off without a shutdown, for it had not turned on ACPI";
    world.vmctl(&["stop", "g"]).ok().says(words).does_not_say("shut itself down");
    let info = world.info("g");
    assert_eq!((info["state"].as_str(), info["last_exit"]["kind"].as_str()), (Some("stopped"), Some("no-acpi")));
    assert!(info["last_exit"]["reason"].as_str().is_some_and(|reason| reason.starts_with(words)), "{info}");
    world.nothing_is_left();
}
