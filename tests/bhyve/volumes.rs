//! ZFS volumes of guests: made whole or not at all, on a host whose device nodes come late or not at all.

use std::fs;
use std::os::unix::fs::FileTypeExt;

use crate::world::{Said, World, eventually};

const DATA: &str = "tank/vms/g-data";

/// A guest file with a volume, made from an image when there is one.
fn file(world: &World, more: &str) -> String {
    let path = world.root().join("g.toml");
    let disks = format!(
        "[[disks]]\nid = \"root\"\npath = \"{}\"\n[[disks]]\nid = \"data\"\nbackend = \"zvol\"\nsize = \"1M\"\n{more}",
        world.root().join("disk.img").display()
    );
    fs::write(&path, format!("engine = \"bhyve\"\nmemory = \"256M\"\nloader = \"bhyveload\"\n{disks}")).expect("writes");
    world.part("g", "say:up");
    path.to_str().expect("UTF-8").to_owned()
}

/// An image of one sector block, as text.
fn image(world: &World, text: &str) -> String {
    let path = world.root().join("image.raw");
    fs::write(&path, text.repeat(8192 / text.len())).expect("writes");
    format!("source = \"{}\"\n", path.display())
}

fn create(world: &World, file: &str) -> Said {
    world.vmctl(&["create", "g", "--file", file])
}

fn contents(world: &World, volume: &str) -> String {
    let bytes = fs::read(world.root().join("dev/zvol").join(volume)).expect("reads");
    String::from_utf8_lossy(&bytes[..8]).into_owned()
}

fn flag(world: &World, name: &str) {
    fs::write(world.state(name), "").expect("writes");
}

#[test]
fn a_volume_whose_device_does_not_come_by_itself_is_brought_forth_and_filled() {
    for flags in ["zvol-no-node", "zvol-not-ready"] {
        let world = World::new();
        flag(&world, flags);
        let file = file(&world, &image(&world, "imagery!"));
        create(&world, &file).ok();
        assert_eq!(contents(&world, DATA), "imagery!", "{flags}");
        assert_eq!(world.volumes(), [DATA], "{flags}");
        let calls = world.calls();
        assert!(calls.contains(&format!("zfs set volmode=none {DATA}.making")), "{flags}: {calls:#?}");
        assert!(calls.contains(&format!("zfs rename {DATA}.making {DATA}")), "{flags}: {calls:#?}");
        // After a boot of the host it is missing again.
        fs::remove_file(world.root().join("dev/zvol").join(DATA)).expect("removes");
        world.vmctl(&["start", "g"]).ok();
        assert_eq!(contents(&world, DATA), "imagery!", "{flags}");
        world.vmctl(&["stop", "g"]).ok();
        world.vmctl(&["destroy", "g", "--yes"]).ok();
        assert!(world.volumes().is_empty());
    }
}

#[test]
fn a_volume_without_a_device_is_an_error_that_leaves_nothing_and_the_next_create_makes_it_anew() {
    let world = World::new();
    flag(&world, "zvol-never");
    let with_image = file(&world, &image(&world, "imagery!"));
    create(&world, &with_image).fails("cannot be opened").says("disk `data`");
    assert!(world.volumes().is_empty(), "{:?}", world.volumes());
    create(&world, &file(&world, "")).fails("cannot be opened").says("disk `data`");
    assert!(world.volumes().is_empty(), "{:?}", world.volumes());
    // What cannot be undone is said, and no later create takes it for its own.
    world.fail(&format!("destroy -r {DATA}"), 1, "cannot destroy: dataset is busy");
    create(&world, &file(&world, "")).fails("and not undone: the volume `tank/vms/g-data` stays").says("dataset is busy");
    assert_eq!(world.volumes(), [DATA]);
    fs::remove_file(world.state("zvol-never")).expect("removes");
    create(&world, &file(&world, "")).fails("the volume `tank/vms/g-data` exists already").says("zfs destroy -r tank/vms/g-data");
    assert_eq!(world.volumes(), [DATA]);
}

#[test]
fn a_volume_that_is_there_is_never_taken_for_a_new_disk() {
    let world = World::new();
    let plain = file(&world, "");
    create(&world, &plain).ok();
    world.vmctl(&["disk", "remove", "g", "data", "--yes"]).ok();
    let again = ["disk", "add", "g", "data", "--size", "1M", "--backend", "zvol"];
    world.vmctl(&again).fails("the volume `tank/vms/g-data` exists already");
    assert_eq!(world.volumes(), [DATA]);
    world.vmctl(&["destroy", "g", "--yes"]).ok();
    // The command took the disk out of the user's own file.
    create(&world, &file(&world, "")).fails("the volume `tank/vms/g-data` exists already");
    let clone = file(&world, "").replace("g.toml", "h.toml");
    fs::copy(world.root().join("g.toml"), &clone).expect("copies");
    // The root disk is the user's own here and cannot be cloned: only volumes.
    let text = fs::read_to_string(&clone).expect("reads");
    let at = text.find("[[disks]]").expect("disks");
    let volume_only = format!("{}[[disks]]\nid = \"data\"\nbackend = \"zvol\"\nsize = \"1M\"\n", &text[..at]);
    fs::write(&clone, volume_only).expect("writes");
    world.vmctl(&["create", "h", "--file", &clone]).ok();
    world.vmctl(&["clone", "h", "g"]).fails("the volume `tank/vms/g-data` exists already");
    assert_eq!(world.volumes(), [DATA, "tank/vms/h-data"]);
}

#[test]
fn what_a_killed_create_was_filling_is_made_anew() {
    let world = World::new();
    let with_image = file(&world, &image(&world, "imagery!"));
    // Killed while it waits for a device that never comes.
    for what in [&with_image, &file(&world, "")] {
        flag(&world, "zvol-never");
        let mut create = world.command(&["create", "g", "--file", what]).spawn().expect("starts");
        eventually("a volume is there", || !world.volumes().is_empty());
        create.kill().expect("killed");
        create.wait().expect("ends");
        fs::remove_file(world.state("zvol-never")).expect("removes");
        assert_eq!(world.volumes().len(), 1);
        world.vmctl(&["create", "g", "--file", what]).ok();
        assert_eq!(world.volumes(), [DATA]);
        world.vmctl(&["destroy", "g", "--yes"]).ok();
        assert!(world.volumes().is_empty());
    }
}

#[test]
fn a_guest_whose_volume_is_gone_can_be_destroyed() {
    let world = World::new();
    create(&world, &file(&world, "")).ok();
    for part in ["size", "data", "volmode"] {
        fs::remove_file(world.state("volumes").join(format!("tank:vms:g-data.{part}"))).expect("removes");
    }
    fs::remove_file(world.root().join("dev/zvol").join(DATA)).expect("removes");
    world.vmctl(&["destroy", "g", "--yes"]).ok();
    assert!(!world.guest("g").exists());
    // One that cannot be destroyed for another reason keeps its guest.
    create(&world, &file(&world, "")).ok();
    world.fail(&format!("destroy -r {DATA}"), 1, "cannot destroy: dataset is busy");
    world.vmctl(&["destroy", "g", "--yes"]).fails("dataset is busy");
    assert!(world.guest("g").exists());
}

#[test]
fn a_clone_of_a_volume_is_filled_under_another_name_too() {
    let world = World::new();
    let path = file(&world, &image(&world, "imagery!"));
    let text = fs::read_to_string(&path).expect("reads");
    let (head, tail) = (text.find("[[disks]]").expect("disks"), text.rfind("[[disks]]").expect("disks"));
    fs::write(&path, format!("{}{}", &text[..head], &text[tail..])).expect("writes");
    create(&world, &path).ok();
    flag(&world, "zvol-no-node");
    world.vmctl(&["clone", "g", "h"]).ok();
    assert_eq!(contents(&world, "tank/vms/h-data"), "imagery!");
    assert!(world.calls().contains(&"zfs rename tank/vms/h-data.making tank/vms/h-data".to_owned()), "{:#?}", world.calls());
    world.fail("zfs receive", 1, "cannot receive: out of space");
    world.vmctl(&["clone", "g", "i"]).fails("out of space");
    assert_eq!(world.volumes(), [DATA, "tank/vms/h-data"]);
    let node = fs::metadata(world.root().join("dev/zvol/tank/vms/h-data")).expect("looks");
    assert!(!node.file_type().is_socket());
}
