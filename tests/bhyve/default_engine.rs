//! What runs a guest whose file names no engine: bhyve where vmm(4) can be had, the engine in the program elsewhere. It
//! is settled when the guest is made.

use std::fs;

use crate::world::{PROCESSOR, World};

/// A guest file that means something under both engines.
const EITHER: &str = "loader = \"grub\"\nmemory = \"256M\"\n[[disks]]\nid = \"root\"\npath = \"disk.img\"\n";

/// What runs a new guest with this file.
fn engine(world: &World, text: &str) -> String {
    fs::write(world.root().join("new.toml"), text).expect("writes");
    world.vmctl(&["create", "new", "--file", "new.toml"]).ok();
    let engine = settled(world, "new");
    world.vmctl(&["destroy", "new", "--yes"]).ok();
    engine
}

/// What runs a guest, as every command that reads its file has it.
fn settled(world: &World, name: &str) -> String {
    let engine = world.info(name)["engine"].as_str().expect("a word").to_owned();
    let shown: serde_json::Value = serde_json::from_str(&world.vmctl(&["show", name, "-o", "json"]).ok().out).expect("JSON");
    assert_eq!(shown["items"][0]["config"]["engine"], engine.as_str(), "{shown}");
    let disk = &shown["items"][0]["config"]["disks"][0]["path"];
    assert_eq!(disk, world.root().join("disk.img").to_str().expect("UTF-8"), "beside the file that was linked");
    world.vmctl(&["check", name]).ok();
    match engine.as_str() {
        "bhyve" => world.vmctl(&["argv", name]).ok(),
        _ => world.vmctl(&["argv", name]).fails("runs under the embedded engine"),
    };
    engine
}

fn set(world: &World, sysctl: &str, value: &str) {
    fs::write(world.state("sysctl").join(sysctl), value).expect("writes");
}

fn load_vmm(world: &World) {
    fs::write(world.state("modules/vmm"), "").expect("writes");
}

/// A change of the host after which vmm(4) cannot be had, and what `doctor` says of it.
type Change = (fn(&World), &'static str);

const WITHOUT: &[Change] = &[
    (|world| set(world, "security.jail.jailed", "1"), "a jail cannot load it"),
    (
        |world| {
            load_vmm(world);
            fs::write(world.state("no-vmm-in-this-jail"), "").expect("writes");
        },
        "this jail has no `allow.vmm`",
    ),
    (|world| set(world, "kern.securelevel", "1"), "secure level forbids loading it"),
    (|world| fs::remove_file(world.root().join("boot/kernel/vmm.ko")).expect("is there"), "there is no module vmm.ko"),
    (|world| fs::remove_file(world.root().join("bin/bhyve")).expect("is there"), "there is no program `bhyve`"),
    (|world| fs::write(world.root().join("not-root"), "").expect("writes"), "only root may use vmm(4)"),
    (|world| boot_messages(world, "  Features2=0x1<SSE3,POPCNT,HV>\n"), "has no EPT and no nested paging"),
    (|world| boot_messages(world, &PROCESSOR.replace("PAT", "(disabled in BIOS) PAT")), "turned off in the host's firmware"),
];

fn boot_messages(world: &World, text: &str) {
    fs::write(world.root().join("var/run/dmesg.boot"), text).expect("writes");
}

#[test]
fn bhyve_runs_a_guest_that_does_not_say_where_vmm_is_loaded_or_can_be() {
    let world = World::new();
    assert_eq!(engine(&world, EITHER), "bhyve");
    world.vmctl(&["doctor"]).says("bhyve runs guests whose files name no engine");
    assert!(!world.state("modules/vmm").exists(), "nothing is loaded to know it");
    boot_messages(&world, "");
    assert_eq!(engine(&world, EITHER), "bhyve", "what cannot be known is tried");
    load_vmm(&world);
    boot_messages(&world, "  Features2=0x1<SSE3>\n");
    assert_eq!(engine(&world, EITHER), "bhyve", "vmm(4) that is loaded is asked itself");
    set(&world, "security.jail.jailed", "1");
    assert_eq!(engine(&world, EITHER), "bhyve", "a jail with allow.vmm");
}

#[test]
fn the_engine_of_the_program_runs_a_guest_that_does_not_say_where_vmm_cannot_be_had() {
    for (change, why) in WITHOUT {
        let world = World::new();
        change(&world);
        assert_eq!(engine(&world, EITHER), "embedded", "{why}");
        world.vmctl(&["doctor"]).says(why).says("guests whose files name no engine get the software CPU");
    }
}

#[test]
fn a_guest_file_and_the_host_file_decide_before_the_host_does() {
    for without in [false, true] {
        let world = World::new();
        if without {
            set(&world, "security.jail.jailed", "1");
        }
        for wanted in ["bhyve", "embedded"] {
            assert_eq!(engine(&world, &format!("engine = \"{wanted}\"\n{EITHER}")), wanted);
            let other = World::new();
            fs::write(other.root().join("host.toml"), format!("[defaults]\nengine = \"{wanted}\"\n")).expect("writes");
            if without {
                set(&other, "security.jail.jailed", "1");
            }
            assert_eq!(engine(&other, EITHER), wanted);
        }
    }
}

#[test]
fn a_guest_stays_with_the_engine_that_it_was_made_for_when_the_host_changes() {
    let world = World::new();
    fs::write(world.root().join("g.toml"), EITHER).expect("writes");
    world.vmctl(&["create", "old", "--file", "g.toml"]).ok();
    fs::write(world.root().join("own.toml"), EITHER.replace("path = \"disk.img\"", "size = \"1M\"")).expect("writes");
    world.vmctl(&["create", "own", "--file", "own.toml"]).ok();
    set(&world, "security.jail.jailed", "1");
    world.vmctl(&["create", "new", "--file", "g.toml"]).ok();
    for jailed in ["1", "0"] {
        set(&world, "security.jail.jailed", jailed);
        assert_eq!((settled(&world, "old"), settled(&world, "new")), ("bhyve".to_owned(), "embedded".to_owned()));
        let list = world.vmctl(&["list", "-o", "json"]).ok().out;
        let list: serde_json::Value = serde_json::from_str(&list).expect("JSON");
        let engine = |name: &str| {
            list["items"].as_array().expect("a list").iter().find(|g| g["name"] == name).expect("there")["engine"].clone()
        };
        assert_eq!((engine("old"), engine("new")), ("bhyve".into(), "embedded".into()));
    }
    // The other way round, and what is made from a guest is what the guest is.
    set(&world, "security.jail.jailed", "1");
    world.vmctl(&["clone", "own", "copy"]).ok();
    assert_eq!(world.info("copy")["engine"], "bhyve");
    // Its file still decides, and the change back too.
    fs::write(world.root().join("g.toml"), format!("engine = \"embedded\"\n{EITHER}")).expect("writes");
    assert_eq!(settled(&world, "old"), "embedded");
    fs::write(world.root().join("g.toml"), EITHER).expect("writes");
    assert_eq!(settled(&world, "old"), "bhyve");
}

#[test]
fn a_guest_of_a_fleet_stays_with_its_engine_and_the_plan_sees_no_change() {
    let world = World::new();
    fs::write(
        world.root().join("fleet.toml"),
        format!("name = \"f\"\n[[guests]]\nname = \"one\"\n{}", EITHER.replace("[[disks]]", "[[guests.disks]]")),
    )
    .expect("writes");
    world.vmctl(&["apply", "--yes"]).ok();
    assert_eq!(settled(&world, "one"), "bhyve");
    set(&world, "security.jail.jailed", "1");
    world.vmctl(&["plan"]).ok();
    assert_eq!(settled(&world, "one"), "bhyve");
}

#[test]
fn a_guest_whose_engine_was_never_settled_has_it_settled_by_its_first_start() {
    let world = World::new();
    world.part("g", "say:up");
    fs::write(world.root().join("g.toml"), EITHER.replace("grub", "bhyveload")).expect("writes");
    world.vmctl(&["create", "g", "--file", "g.toml"]).ok();
    let file = world.guest("g").join("state.json");
    let mut state: serde_json::Value = serde_json::from_slice(&fs::read(&file).expect("reads")).expect("JSON");
    assert_eq!(state["engine"], "bhyve");
    state.as_object_mut().expect("a table").remove("engine");
    fs::write(&file, state.to_string()).expect("writes");
    world.vmctl(&["start", "g"]).ok();
    world.vmctl(&["stop", "g"]).ok();
    set(&world, "security.jail.jailed", "1");
    world.unload_modules();
    assert_eq!(world.info("g")["engine"], "bhyve");
    world.nothing_is_left();
}

#[test]
fn the_first_guest_file_is_one_for_the_engine_that_the_host_has() {
    let world = World::new();
    set(&world, "security.jail.jailed", "1");
    world.vmctl(&["init", "first.toml"]).ok().says("vmctl launch --file first.toml");
    let text = fs::read_to_string(world.root().join("first.toml")).expect("written");
    assert!(text.contains("source = ") && !text.contains("bhyve"), "{text}");
    world.vmctl(&["check", "first.toml"]).ok();
}

#[test]
fn an_image_is_launched_on_the_engine_that_its_guest_file_is_for() {
    let world = World::new();
    fs::write(world.root().join("image.raw"), vec![0; 1 << 20]).expect("writes");
    // It has nothing on its disk to boot: that it was made is enough here. Only a protected guest stays when a launch fails.
    world.vmctl(&["launch", "./image.raw", "one", "--no-wait", "--set", "loader=grub", "--set", "protected=true"]);
    world.vmctl(&["kill", "one"]);
    assert_eq!(world.info("one")["engine"], "embedded", "it has a user-mode network with a way to its sshd");
    let file = world.guest("one").join("guest.toml");
    assert!(fs::read_to_string(file).expect("reads").contains("engine = \"embedded\""));
    assert_eq!(engine(&world, EITHER), "bhyve", "others are left alone");
}
