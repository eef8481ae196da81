//! Guests whose bhyve runs in a jail: whose console it is, and in which network stack their taps are.

use std::fs;

use crate::world::{NIC, World};

#[test]
fn the_console_of_a_guest_in_a_jail_is_the_jails_own() {
    let world = World::new();
    world.jail("");
    world.make("g", "say:up", "jail = \"vms\"");
    world.vmctl(&["start", "g"]).ok();
    assert!(world.console_log("g").contains("up"));
    let calls = world.calls();
    let at = |start: &str| calls.iter().position(|call| call.starts_with(start)).unwrap_or_else(|| panic!("{start}: {calls:#?}"));
    assert!(at("jexec vms test -e /dev/nmdm-vmctl-") < at("jexec vms bhyveload"));
    world.vmctl(&["stop", "g"]).ok();
    world.jail("hides=nmdm\n");
    world
        .vmctl(&["start", "g"])
        .fails("the jail `vms` does not see the console `/dev/nmdm-vmctl-")
        .says("vmctl jail prepare vms");
    world.nothing_is_left();
}

#[test]
fn a_tap_in_a_jail_without_a_network_stack_of_its_own_is_refused_before_anything_is_made_where_bhyve_cannot_use_it() {
    let world = World::new();
    world.jail("");
    world.make("g", "say:up", &format!("jail = \"vms\"\n{NIC}"));
    let words = "the jail `vms` has no network stack of its own (`vnet`)";
    world.forget_calls();
    world.vmctl(&["start", "g"]).fails(words).says("vmctl jail prepare vms");
    assert!(!world.calls().iter().any(|call| call.starts_with("kldload") || call.contains(" create")), "{:#?}", world.calls());
    world.vmctl(&["check", "g"]).fails(words);
    world.vmctl(&["doctor"]).says("vms: ").says("it has no network stack of its own (`vnet`)");
    world.jail("vnet=new\n");
    world.vmctl(&["check", "g"]).ok();
    world.vmctl(&["doctor"]).does_not_say("no network stack of its own");
}

#[test]
fn where_bhyve_brings_its_tap_up_by_itself_a_jail_without_a_network_stack_of_its_own_uses_one_of_the_host() {
    let world = World::new().modern();
    world.jail("");
    world.make("g", "say:up", &format!("jail = \"vms\"\n{NIC}"));
    world.vmctl(&["check", "g"]).ok();
    world.vmctl(&["doctor"]).does_not_say("no network stack of its own");
    world.forget_calls();
    world.vmctl(&["start", "g"]).ok();
    assert_eq!(world.taps(), ["tap0"]);
    let calls = world.calls();
    for call in ["ifconfig tap create description vmctl/g/net0/", "ifconfig bridge0 addm tap0", "jexec vms bhyve"] {
        assert!(calls.iter().any(|made| made.starts_with(call)), "no `{call}` in {calls:#?}");
    }
    world.vmctl(&["stop", "g"]).ok();
    world.nothing_is_left();
}

#[test]
fn taps_of_a_guest_in_a_jail_are_in_the_jails_stack() {
    let world = World::new();
    world.jail("vnet=new\n");
    world.make("g", "say:up", &format!("jail = \"vms\"\n{NIC}"));
    world.vmctl(&["start", "g"]).ok();
    assert_eq!(world.taps(), ["tap100"]);
    let calls = world.calls();
    for call in ["jexec vms ifconfig tap create description vmctl/g/net0/", "jexec vms ifconfig bridge0 addm tap100"] {
        assert!(calls.iter().any(|made| made.starts_with(call)), "no `{call}` in {calls:#?}");
    }
    assert_eq!(world.info("g")["counters"]["nic.net0.received-packets"], 78);
    world.vmctl(&["stop", "g"]).ok();
    world.nothing_is_left();
    fs::remove_file(world.state("interfaces-vms").join("bridge0")).expect("removes");
    world.vmctl(&["start", "g"]).fails("no bridge `bridge0` of the switch `lan` in it").says("vmctl jail prepare vms");
    world.nothing_is_left();
}

#[test]
fn a_jail_is_prepared_with_the_bridges_of_its_guests() {
    let world = World::new();
    world.make("g", "say:up", &format!("jail = \"vms\"\n{NIC}"));
    world.make("h", "say:up", "jail = \"plain\"");
    let said = world.vmctl(&["jail", "prepare", "g", "--ruleset", "100"]).ok();
    let said = said.says("\tvnet;\n").says("exec.start += \"/sbin/ifconfig bridge create name bridge0 up\";");
    said.says("vnet.interface += \"epair1000b\";").does_not_say("ip4 = inherit");
    world.vmctl(&["jail", "prepare", "h"]).ok().says("ip4 = inherit;").does_not_say("vnet");
}
