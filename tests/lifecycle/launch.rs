//! From an image to a running guest.

use std::os::unix::fs::FileExt;

use crate::world::World;

/// A raw image with something at its beginning, and a hole.
fn image(world: &World) -> std::path::PathBuf {
    let path = world.path().join("base.raw");
    let file = std::fs::File::create(&path).expect("made");
    file.set_len(3 << 20).expect("sized");
    file.write_all_at(b"what the image holds", 4096).expect("written");
    path
}

#[test]
fn a_disk_is_made_from_an_image_once_grown_to_its_size_and_the_image_stays_as_it_is() {
    let world = World::new();
    let path = image(&world);
    let before = std::fs::read(&path).expect("readable");
    world.make("g", "", "disks = [{ id = \"root\", source = \"./base.raw\", size = \"8M\" }]");
    let disk = world.guest("g").join("disks/root.raw");
    let made = std::fs::read(&disk).expect("made");
    assert_eq!(made.len(), 8 << 20);
    assert!(made[..before.len()] == before[..]);
    std::fs::write(&disk, vec![7; 8 << 20]).expect("the guest writes");
    world.vmctl(&["start", "g"]).ok();
    assert_eq!(std::fs::read(&disk).expect("readable")[0], 7, "it is not made again");
    assert!(std::fs::read(&path).expect("readable") == before);
}

#[test]
fn an_image_larger_than_the_disk_or_not_there_makes_no_guest() {
    let world = World::new();
    image(&world);
    for (disk, words) in [
        ("{ id = \"root\", source = \"./base.raw\", size = \"2M\" }", "of 2MiB, and image"),
        ("{ id = \"root\", source = \"./none.raw\", size = \"8M\" }", "none.raw"),
    ] {
        let file = world.file("g", "", &format!("disks = [{disk}]"));
        let said = world.vmctl(&["create", "g", "--file", file.to_str().expect("UTF-8")]);
        assert!(said.err.contains(words), "{said:?}");
        assert_ne!(said.code, Some(0));
        assert!(!world.guest("g").exists());
    }
}

#[test]
fn a_disk_that_an_edit_brings_is_made_by_the_next_start() {
    let world = World::new();
    image(&world);
    let file = world.make("g", "", "");
    let text = std::fs::read_to_string(&file).expect("readable");
    std::fs::write(&file, text + "disks = [{ id = \"root\", source = \"./base.raw\" }]\n").expect("writes");
    world.vmctl(&["start", "g"]).ok();
    assert_eq!(std::fs::metadata(world.guest("g").join("disks/root.raw")).expect("made").len(), 3 << 20);
}

#[test]
fn launch_goes_from_an_image_of_the_cache_to_a_running_guest_that_ssh_finds() {
    let world = World::new();
    image(&world);
    std::fs::write(world.path().join("kernel"), "no kernel").expect("writes");
    // A cache of its own: root's is the host's.
    let host = world.path().join("vmctl.toml");
    std::fs::write(&host, "cache_dir = \"cache\"\n").expect("writes");
    let host = host.to_str().expect("UTF-8");
    let vmctl = |arguments: &[&str]| {
        let arguments: Vec<&str> = ["--config", host].iter().chain(arguments).copied().collect();
        world.vmctl(&arguments)
    };
    vmctl(&["image", "import", "./base.raw", "--name", "base"]).ok();
    let sets = ["--set", "kernel.image=kernel", "--set", "memory=64M", "--no-wait"];
    let arguments: Vec<&str> = ["launch", "base", "g"].into_iter().chain(sets).collect();
    vmctl(&arguments).ok().says("g is running");
    let block = vmctl(&["ssh-config", "g"]).ok().out;
    assert!(block.contains("    Port 42") && block.contains("ds/ssh/id_ed25519"), "{block}");
    vmctl(&["launch", "base"]).fails(1, "no guest is named");
    vmctl(&["launch", "neither-image-nor-template", "h"]).fails(1, "neither-image-nor-template");
}
