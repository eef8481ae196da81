//! The first steps on a FreeBSD: from `init` to `destroy`.

use std::fs;

use crate::world::{World, eventually};

#[test]
fn the_first_guest_file_is_one_for_bhyve_and_goes_all_the_way() {
    let world = World::new();
    let host = "[[switches]]\nid = \"lan\"\ntype = \"manual\"\nbridge = \"bridge0\"\n";
    fs::write(world.root().join("host.toml"), host).expect("writes");
    world.vmctl(&["init", "web1.toml"]).ok().says("name a disk in it").says("does not have yet: add `[[switches]]`");
    let text = fs::read_to_string(world.root().join("web1.toml")).expect("written");
    assert!(text.contains("engine = \"bhyve\"") && text.contains("loader = \"bhyveload\""), "{text}");
    fs::write(world.root().join("root.img"), [0xd1; 4096]).expect("writes");
    world.part("web1", "say:login:");
    world.vmctl(&["create", "web1", "--file", "web1.toml"]).ok();
    world.vmctl(&["start", "web1"]).fails("no switch is called `public`");
    fs::write(world.root().join("host.toml"), host.replace("lan", "public")).expect("writes");
    world.vmctl(&["check", "web1.toml"]).ok();
    world.vmctl(&["start", "web1"]).ok().says("web1 is running");
    eventually("it talks", || world.console_log("web1").contains("login:"));
    world.vmctl(&["list"]).ok().says("web1").says("running");
    assert_eq!(world.taps(), ["tap0"]);
    world.vmctl(&["stop", "web1"]).ok();
    world.nothing_is_left();
    world.vmctl(&["destroy", "web1", "--yes"]).ok();
    assert!(!world.vmctl(&["list"]).ok().out.contains("web1"));
    assert!(world.root().join("root.img").exists(), "the disk is the user's");
    world.vmctl(&["init", "web1.toml"]).fails("exists already");
}

#[test]
fn a_guest_starts_on_a_switch_that_a_fleet_declared() {
    let world = World::new();
    let fleet = "name = \"net\"\n[[switches]]\nid = \"floor\"\ntype = \"manual\"\nbridge = \"bridge0\"\n";
    fs::write(world.root().join("fleet.toml"), fleet).expect("writes");
    fs::write(world.root().join("root.img"), [0xd1; 4096]).expect("writes");
    let guest = "engine = \"bhyve\"\nloader = \"bhyveload\"\nmemory = \"256M\"\ndisks = [{ id = \"root\", path = \"root.img\" }]\n\
                 nics = [{ id = \"net0\", backend = \"tap\", switch = \"floor\" }]\n";
    fs::write(world.root().join("web1.toml"), guest).expect("writes");
    world.part("web1", "say:login:");
    world.vmctl(&["create", "web1", "--file", "web1.toml"]).ok();
    world.vmctl(&["start", "web1"]).fails("no switch is called `floor`");
    world.vmctl(&["apply", "--yes"]).ok().says("switch floor is made");
    world.vmctl(&["start", "web1"]).ok().says("web1 is running");
    // The fleet file may be gone: the supervisor reads what was kept.
    fs::remove_file(world.root().join("fleet.toml")).expect("removes");
    world.vmctl(&["restart", "web1"]).ok();
    world.vmctl(&["stop", "web1"]).ok();
    world.nothing_is_left();
}
