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
    // As a start that was killed while it copied leaves it.
    let half = world.guest("g").join("disks/root.raw.making");
    std::fs::create_dir_all(half.parent().expect("a folder")).expect("made");
    std::fs::write(&half, "half").expect("writes");
    world.vmctl(&["start", "g"]).ok();
    assert!(!half.exists());
    assert_eq!(std::fs::metadata(world.guest("g").join("disks/root.raw")).expect("made").len(), 3 << 20);
}

#[test]
fn a_disk_that_a_command_adds_is_made_from_its_image_at_once_or_nothing_changes() {
    let world = World::new();
    image(&world);
    let file = world.make("g", "", "");
    let before = std::fs::read_to_string(&file).expect("readable");
    world.vmctl(&["disk", "add", "g", "bad", "--source", "./none.raw"]).says("none.raw");
    world.vmctl(&["disk", "add", "g", "bad", "--source", "./base.raw", "--size", "2M"]).fails(1, "of 2MiB, and image");
    assert_eq!(std::fs::read_to_string(&file).expect("readable"), before);
    let disk = |name: &str| world.guest("g").join(format!("disks/{name}.raw"));
    assert!(!disk("bad").exists());
    world.vmctl(&["disk", "add", "g", "root", "--source", "./base.raw", "--size", "4M"]).ok();
    let made = std::fs::read(disk("root")).expect("made at once");
    assert!(made.len() == 4 << 20 && made[4096..].starts_with(b"what the image holds"));
    world.vmctl(&["start", "g"]).ok();
    world.vmctl(&["disk", "add", "g", "more", "--source", "./base.raw"]).ok().says("at its next boot");
    assert_eq!(std::fs::metadata(disk("more")).expect("made at once").len(), 3 << 20);
    world.vmctl(&["restart", "g"]).ok();
}

#[test]
fn a_disk_is_made_only_of_an_image_with_the_checksum_that_the_guest_or_its_fleet_gives() {
    let world = World::new();
    let path = image(&world);
    let right = format!(
        "sha256:{}",
        vmctl::testing::fetch::Digest::of(vmctl::testing::fetch::digest::Algorithm::Sha256, &std::fs::read(path).expect("reads"))
            .hex()
    );
    let wrong = format!("sha256:{}", "0".repeat(64));
    for (checksum, fits) in [(&wrong, false), (&right, true)] {
        let file =
            world.file("g", "", &format!("disks = [{{ id = \"root\", source = \"./base.raw\", checksum = \"{checksum}\" }}]"));
        let said = world.vmctl(&["create", "g", "--file", file.to_str().expect("UTF-8")]);
        assert_eq!((said.code == Some(0), world.guest("g").join("disks/root.raw").exists()), (fits, fits), "{said:?}");
        assert_eq!(said.err.contains(&format!("not `{wrong}`")) || said.err.contains(&wrong), !fits, "{said:?}");
    }
    world.vmctl(&["disk", "add", "g", "more", "--source", "./base.raw", "--checksum", &wrong]).says(&wrong);
    world.vmctl(&["disk", "add", "g", "more", "--source", "./base.raw", "--checksum", &right]).ok();
    std::fs::write(world.path().join("kernel"), "no kernel").expect("writes");
    let fleet = |checksum: &str| {
        let text = format!(
            "name = \"room\"\n[[images]]\nid = \"base\"\nimage = \"./base.raw\"\nchecksum = \"{checksum}\"\n\
             [[guests]]\nname = \"plain\"\nkernel.image = \"kernel\"\ndisks = [{{ id = \"root\", source = \"./base.raw\" }}]\n\
             [[guests]]\nname = \"pinned\"\nkernel.image = \"kernel\"\ndisks = [{{ id = \"root\", source = \"{{{{ image.base }}}}\" }}]\n"
        );
        std::fs::write(world.path().join("fleet.toml"), text).expect("writes");
    };
    fleet(&wrong);
    world.vmctl(&["apply", "--yes"]).says(&wrong);
    assert!(!world.guest("pinned").exists() && world.guest("plain").join("disks/root.raw").exists());
    fleet(&right);
    world.vmctl(&["apply", "--yes"]).ok().says("pinned is made");
    let text = std::fs::read_to_string(world.guest("pinned").join("guest.toml")).expect("reads");
    assert!(text.contains(&format!("checksum = \"{right}\"")), "{text}");
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
    assert!(block.contains("    Port 7") && block.contains("ds/ssh/id_ed25519"), "{block}");
    vmctl(&["launch", "neither-image-nor-template", "h"]).fails(1, "neither-image-nor-template");
}
