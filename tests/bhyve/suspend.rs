//! Guests are saved and go on, where bhyve can do that.

use crate::world::{NIC, World, eventually};

#[test]
fn a_guest_is_saved_and_goes_on_without_its_loader() {
    let world = World::new();
    std::fs::write(world.state("snapshot"), "").expect("writes");
    world.make("g", "say:one / say:two", NIC);
    world.vmctl(&["start", "g"]).ok();
    world.vmctl(&["suspend", "g"]).ok().says("suspended");
    world.nothing_is_left();
    assert_eq!(world.info("g")["last_exit"]["reason"], "suspended");
    let saved = world.guest("g").join("saved");
    assert!(saved.exists());
    world.forget_calls();
    world.vmctl(&["start", "g"]).ok();
    eventually("it goes on", || world.console_log("g").ends_with("two"));
    let changes = world.changes();
    assert!(!changes.iter().any(|call| call.starts_with("bhyveload")), "{changes:#?}");
    assert!(changes.contains(&"bhyvectl --vm=g --create".to_owned()), "{changes:#?}");
    assert!(world.calls().iter().any(|call| call.starts_with(&format!("bhyve -r {} ", saved.display()))));
    // The disks go on with the guest: a second start from the same state would destroy them.
    assert!(!saved.exists());
    world.vmctl(&["reset", "g"]).ok();
    eventually("it boots as ever", || world.changes().contains(&"bhyveload g".to_owned()));
    world.vmctl(&["stop", "g"]).ok();
    world.nothing_is_left();
}

#[test]
fn a_bhyve_that_cannot_save_says_so_and_the_guest_goes_on() {
    let world = World::new();
    world.make("g", "say:up", "");
    world.vmctl(&["start", "g"]).ok();
    world.vmctl(&["suspend", "g"]).fails("BHYVE_SNAPSHOT");
    assert_eq!(world.word("g"), "running");
    world.vmctl(&["stop", "g"]).ok();
}

#[test]
fn a_state_that_cannot_be_written_is_no_state() {
    let world = World::new();
    std::fs::write(world.state("snapshot"), "").expect("writes");
    world.make("g", "say:up", "");
    world.vmctl(&["start", "g"]).ok();
    world.fail("--suspend=", 1, "Failed to send checkpoint request");
    world.vmctl(&["suspend", "g"]).fails("the guest could not be saved");
    assert_eq!(world.word("g"), "running");
    world.vmctl(&["stop", "g"]).ok();
    world.forget_calls();
    world.vmctl(&["start", "g"]).ok();
    assert!(world.changes().contains(&"bhyveload g".to_owned()));
    world.vmctl(&["stop", "g"]).ok();
}

#[test]
fn a_state_of_other_devices_is_not_gone_on_from_and_not_lost() {
    let world = World::new();
    std::fs::write(world.state("snapshot"), "").expect("writes");
    world.make("g", "say:up", "");
    world.vmctl(&["start", "g"]).ok();
    world.vmctl(&["suspend", "g"]).ok();
    world.edit("g", |text| format!("{text}{NIC}"));
    world.vmctl(&["start", "g"]).fails("was suspended, and its devices are others now");
    world.edit("g", |text| text.replace(NIC, ""));
    world.vmctl(&["start", "g"]).ok();
    world.vmctl(&["stop", "g"]).ok();
}

#[test]
fn a_guest_in_a_jail_is_saved_where_the_jail_sees_it() {
    let world = World::new();
    std::fs::write(world.state("snapshot"), "").expect("writes");
    std::fs::write(world.state("jails").join("vms"), format!("allow.vmm=true\npath={}\n", world.root().display()))
        .expect("writes");
    world.make("g", "say:up", "jail = \"vms\"");
    world.vmctl(&["start", "g"]).ok();
    // The made-up jail's root is not `/` for the one who writes: what counts is what bhyvectl is told.
    world.fail("--suspend=/ds/guests/g/saved", 1, "no such directory out here");
    world.vmctl(&["suspend", "g"]).fails("no such directory out here");
    world.vmctl(&["stop", "g"]).ok();
    std::fs::write(world.state("jails").join("vms"), "allow.vmm=true\npath=/somewhere/else\n").expect("writes");
    world.vmctl(&["start", "g"]).fails("outside of the");
}
