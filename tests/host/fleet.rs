//! A fleet whose guests are on switches of the host file.

use super::switch::{LAN, world};
use super::world::World;

fn fleet(world: &World) {
    let text = "name = \"room\"\n[[guests]]\nname = \"web-{{ index }}\"\ncount = 2\nengine = \"bhyve\"\nloader = \"uefi\"\nmemory = \"256M\"\n\
                disks = [{ id = \"root\", size = \"1M\" }]\nnics = [{ id = \"net0\", backend = \"tap\", switch = \"lan\" }]\n";
    std::fs::write(world.path().join("fleet.toml"), text).expect("writes");
}

#[test]
fn a_switch_that_is_gone_is_shown_and_made_again() {
    let world = world(LAN);
    fleet(&world);
    world.vmctl(&["plan"]).fails(2, "").says("switch lan: it is not there, and is made (drift)");
    world.vmctl(&["apply", "--yes"]).ok().says("web-2 is made");
    assert!(world.calls_of(&["ifconfig bridge"]).len() == 1);
    world.vmctl(&["plan"]).ok().says("nothing to do");
    world.vmctl(&["switch", "destroy", "lan", "--yes", "--force"]).ok();
    world.vmctl(&["plan"]).fails(2, "").says("switch lan").says("no guest to change");
    world.vmctl(&["apply", "--yes"]).ok();
    world.vmctl(&["plan"]).ok().says("nothing to do");
}

#[test]
fn a_switch_that_the_host_file_does_not_have_is_an_error_with_the_next_step() {
    let world = world("");
    fleet(&world);
    world.vmctl(&["plan"]).fails(1, "the host file has no switch `lan`").says("[[switches]]");
}
