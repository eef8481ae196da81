//! A fleet whose guests are on switches, of the host file and of its own.

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
    world.vmctl(&["plan"]).fails(1, "no switch is called `lan`").says("[[switches]]");
}

/// A fleet that declares its switches.
fn declaring(world: &World, switches: &str) {
    let guest = "engine = \"bhyve\"\nloader = \"uefi\"\nmemory = \"256M\"\ndisks = [{ id = \"root\", size = \"1M\" }]\n";
    let text = format!(
        "name = \"room\"\n[[guests]]\nname = \"web\"\n{guest}nics = [{{ id = \"net0\", backend = \"tap\", switch = \"lan\" }}]\n{switches}"
    );
    std::fs::write(world.path().join("fleet.toml"), text).expect("writes");
}

#[test]
fn a_switch_of_a_fleet_is_made_changed_and_taken_down_by_apply() {
    let world = world("");
    declaring(&world, LAN);
    world
        .vmctl(&["plan"])
        .fails(2, "")
        .says("+ switch lan  bridge, uplinks em1, vlan 10, addresses 10.10.0.1/24")
        .says("# fleet.toml:10");
    world.vmctl(&["switch", "list"]).ok();
    world.vmctl(&["apply", "--yes"]).ok().says("switch lan is made").says("web is made");
    world.vmctl(&["plan"]).ok().says("nothing to do");
    // It is known without the fleet file now.
    world.vmctl(&["switch", "list"]).ok().says("lan   bridge  up");
    world.vmctl(&["switch", "info", "lan"]).ok().says("declared   in the fleet room");
    world.vmctl(&["switch", "destroy", "lan", "--yes"]).ok();
    world.vmctl(&["plan"]).fails(2, "").says("~ switch lan: it is not there, and is made (drift)");
    world.vmctl(&["switch", "create", "--all"]).ok().says("lan is made");

    // A key of it: what it does not have any more goes, and a guest stays on it.
    world.calls();
    std::fs::write(world.state("if").join("sw-lan/member"), "em1.10\ntap4\n").expect("writes");
    declaring(&world, &LAN.replace("10.10.0.1/24", "10.10.0.2/24"));
    world
        .vmctl(&["plan"])
        .fails(2, "")
        .says("~ switch lan: addresses: [\"10.10.0.1/24\"] -> [\"10.10.0.2/24\"]  # fleet.toml:13");
    world.vmctl(&["apply", "--yes"]).ok().says("switch lan has changed");
    let changes = world.calls_of(&["ifconfig sw-lan", "ifconfig em"]);
    assert_eq!(changes, ["ifconfig sw-lan inet 10.10.0.1 -alias", "ifconfig sw-lan inet 10.10.0.2/24 alias"]);
    world.vmctl(&["plan"]).ok().says("nothing to do");

    // Another VLAN is another bridge.
    let other = LAN.replace("10.10.0.1/24", "10.10.0.2/24").replace("vlan = 10", "vlan = 11");
    declaring(&world, &other);
    world.vmctl(&["apply", "--yes"]).fails(1, "switch `lan` is in use by tap4").says("stop the guests on it first");
    std::fs::write(world.state("if").join("sw-lan/member"), "em1.10\n").expect("writes");
    world.vmctl(&["apply", "--yes"]).ok().says("switch lan has changed");
    world.vmctl(&["switch", "info", "lan"]).ok().says("uplinks    em1 vlan 11").says("state      up");
    assert!(!world.state("if").join("em1.10").exists());

    // What is not declared any more stays until it is pruned, and is not taken from a guest.
    std::fs::write(world.path().join("fleet.toml"), "name = \"room\"\n").expect("writes");
    world.vmctl(&["plan"]).ok().says("switch lan: not in the fleet file any more; `--prune` removes it");
    world.vmctl(&["plan", "--prune"]).fails(2, "").says("- switch lan: it is taken down");
    world.vmctl(&["apply", "--yes", "--prune"]).ok().says("web is gone").says("switch lan is gone");
    assert!(!world.state("if").join("sw-lan").exists());
    assert!(!world.path().join("ds/fleets/room/switches.toml").exists());
    world.vmctl(&["plan", "--prune"]).ok().says("nothing to do");
}

#[test]
fn a_switch_that_goes_stays_while_a_guest_of_nobody_is_on_it() {
    let world = world("");
    declaring(&world, LAN);
    world.vmctl(&["apply", "--yes"]).ok();
    let guest = "engine = \"bhyve\"\nloader = \"uefi\"\nmemory = \"256M\"\ndisks = [{ id = \"root\", size = \"1M\" }]\n\
                 nics = [{ id = \"net0\", backend = \"tap\", switch = \"lan\" }]\n";
    std::fs::write(world.path().join("own.toml"), guest).expect("writes");
    world.vmctl(&["create", "own", "--file", "own.toml"]).ok();
    std::fs::write(world.path().join("fleet.toml"), "name = \"room\"\n").expect("writes");
    world.vmctl(&["apply", "--yes", "--prune"]).fails(1, "guest `own` is plugged into it");
    assert!(world.state("if").join("sw-lan").exists());
    world.vmctl(&["destroy", "own", "--yes"]).ok();
    world.vmctl(&["apply", "--yes", "--prune"]).ok().says("switch lan is gone");
}

#[test]
fn a_switch_of_the_host_file_or_of_another_fleet_is_not_replaced() {
    let world = world(LAN);
    declaring(&world, LAN);
    world.vmctl(&["apply", "--yes"]).ok();
    declaring(&world, &LAN.replace("vlan = 10", "vlan = 11"));
    world.vmctl(&["plan"]).fails(1, "fleet.toml:10:6: switch `lan` is another one in the host file").says("make them alike");
    // It is the host file's when the fleet does not declare it any more.
    declaring(&world, "");
    world.vmctl(&["plan"]).fails(2, "").says("switch lan: it stays: the host file has it");
    world.vmctl(&["apply", "--yes"]).ok();
    world.vmctl(&["plan"]).ok().says("nothing to do");
    world.vmctl(&["switch", "info", "lan"]).ok().says("declared   in the host file").says("state      up");
    world.host_file("");
    declaring(&world, LAN);
    world.vmctl(&["apply", "--yes"]).ok();
    std::fs::write(world.path().join("other.toml"), format!("name = \"other\"\n{}", LAN.replace("em1", "em0"))).expect("writes");
    world.vmctl(&["plan", "other.toml"]).fails(1, "switch `lan` is another one in the fleet `room`");
}

#[test]
fn a_switch_that_cannot_be_made_or_that_could_cut_the_session_is_refused_before_anything_is_done() {
    let world = world("");
    declaring(&world, &LAN.replace("em1", "ix7"));
    world.vmctl(&["apply", "--yes"]).fails(1, "has the uplink `ix7`, and there is no such interface").says("web is made");
    assert!(world.calls_of(&["ifconfig bridge"]).is_empty());
    declaring(&world, "[[switches]]\nid = \"lan\"\nuplinks = [\"em0\"]\n");
    world.vmctl(&["apply", "--yes"]).fails(1, "switch `lan` is not made unasked").says("`vmctl switch create lan` asks about it");
    world.vmctl(&["switch", "create", "lan", "--yes"]).ok().says("lan is made");
    world.vmctl(&["plan"]).ok().says("nothing to do");
}

#[test]
fn a_switch_for_another_host_is_not_made_here() {
    let world = world("");
    let lan = format!("{LAN}host = {{ names = [\"node-2\"] }}\n");
    declaring(&world, &lan);
    world.vmctl(&["plan"]).fails(1, "no switch is called `lan`").says("or a fleet file");
    declaring(&world, &format!("{lan}[[switches]]\nid = \"lan\"\nhost = {{ names = [\"*\"] }}\n"));
    world.vmctl(&["apply", "--yes"]).ok().says("switch lan is made");
    world.vmctl(&["switch", "info", "lan"]).ok().says("uplinks    none");
}

#[test]
fn an_apply_that_fails_at_a_switch_says_so_and_the_next_one_finishes() {
    let world = world("");
    declaring(&world, LAN);
    world.fail("addm em1.10");
    world.vmctl(&["apply", "--yes"]).fails(1, "told to fail").says("web is made");
    world.vmctl(&["plan"]).fails(2, "").says("switch lan");
    world.fail("no such call");
    world.vmctl(&["apply", "--yes"]).ok();
    world.vmctl(&["plan"]).ok().says("nothing to do");
}

#[test]
fn a_kept_switch_that_cannot_be_read_is_said_with_its_place_and_the_next_step() {
    let world = world("");
    declaring(&world, LAN);
    world.vmctl(&["apply", "--yes"]).ok();
    std::fs::write(world.path().join("ds/fleets/room/switches.toml"), "[[switches]]\nid = \"lan\"\nvlna = 3\n").expect("writes");
    world
        .vmctl(&["switch", "list"])
        .fails(1, "switches.toml:3:1: unknown key `vlna`")
        .says("`vmctl apply` of the fleet writes it again");
}

#[test]
fn an_apply_that_is_killed_at_any_call_is_finished_by_the_next_one() {
    let first = format!("{LAN}nat = true\n");
    let second = "[[switches]]\nid = \"lan\"\naddresses = [\"10.10.0.2/24\"]\nprivate = true\n";
    // What is declared, and the calls of an apply of it after the one before.
    let stages: [(&str, &[&str]); 3] = [
        (&first, &["bridge create", "vlan create", "addm em1.10", "10.10.0.1/24 alias", "-f -", "forwarding=1"]),
        (second, &["-F all", "sw-lan destroy", "em1.10 destroy", "bridge create", "10.10.0.2/24 alias"]),
        ("", &["sw-lan destroy"]),
    ];
    for (stage, (_, calls)) in stages.iter().enumerate() {
        for call in *calls {
            let world = world("");
            let apply = |world: &World| world.vmctl(&["apply", "--yes", "--prune"]);
            let say = |at: usize| match stages[at].0 {
                "" => std::fs::write(world.path().join("fleet.toml"), "name = \"room\"\n").expect("writes"),
                switches => declaring(&world, switches),
            };
            for before in 0..stage {
                say(before);
                apply(&world).ok();
            }
            say(stage);
            world.kill(call);
            assert_eq!(apply(&world).code, None, "killed at `{call}`");
            world.kill("");
            apply(&world).ok();
            world.vmctl(&["plan", "--prune"]).ok().says("nothing to do");
            let interfaces: Vec<String> = std::fs::read_dir(world.state("if"))
                .expect("lists")
                .map(|entry| entry.expect("an entry").file_name().into_string().expect("UTF-8"))
                .collect();
            let expected = [4, 3, 2][stage];
            assert_eq!(interfaces.len(), expected, "killed at `{call}`: {interfaces:?}");
        }
    }
}
