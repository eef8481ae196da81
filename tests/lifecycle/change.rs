//! Disks, interfaces and media come and go by command; the seed of cloud-init follows the guest file.

use crate::world::World;

const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGmJ3z0p7mB9cO8u me@example";

#[test]
fn a_disk_is_added_grown_and_taken_away_and_the_rest_of_the_file_stays() {
    let world = World::new();
    let file = world.make("g", "", "# a comment that stays");
    world.vmctl(&["disk", "add", "g", "data", "--size", "2M"]).ok().says("disk data is added");
    world.vmctl(&["disk", "add", "g", "data", "--size", "2M"]).fails(1, "has a disk `data` already");
    world.vmctl(&["disk", "resize", "g", "data", "4M"]).ok();
    let disk = world.guest("g").join("disks/data.raw");
    assert_eq!(std::fs::metadata(&disk).expect("made").len(), 4 << 20);
    world.vmctl(&["disk", "resize", "g", "data", "1M"]).fails(1, "never made smaller");
    world.vmctl(&["start", "g"]).ok();
    world.vmctl(&["disk", "resize", "g", "data", "8M"]).ok().says("at its next boot");
    world.vmctl(&["disk", "remove", "g", "data", "--purge", "--yes"]).fails(1, "is in use");
    world.vmctl(&["poweroff", "g"]).ok();
    world.vmctl(&["disk", "remove", "g", "other"]).fails(1, "has no disk `other`");
    world.vmctl(&["disk", "remove", "g", "data"]).ok();
    assert!(disk.exists(), "its bytes stay");
    let text = std::fs::read_to_string(&file).expect("readable");
    assert!(text.contains("# a comment that stays") && !text.contains("data"), "{text}");
}

#[test]
fn an_image_is_taken_for_a_raw_disk_by_no_command_unless_that_is_insisted_on() {
    let world = World::new();
    let image = world.path().join("victim.qcow2");
    std::fs::write(&image, [&b"QFI\xfb\0\0\0\x03"[..], &[0; 65528]].concat()).expect("writes");
    let words = "is a qcow2 image, not a raw disk";
    let file = world.file("g", "", "disks = [{ id = \"data\", path = \"victim.qcow2\" }]");
    let file = file.to_str().expect("UTF-8");
    world.vmctl(&["check", file]).fails(1, words).says("format = \"raw\"");
    world.vmctl(&["create", "g", "--file", file]).fails(1, words);
    assert!(!world.guest("g").exists());
    world.vmctl(&["create", "g", "--file", file, "--set", "disks.data.format=raw"]).ok();
    world.vmctl(&["start", "g"]).ok();
    world.vmctl(&["poweroff", "g"]).ok();

    let other = world.make("h", "", "");
    world.vmctl(&["disk", "add", "h", "data", "--path", "victim.qcow2"]).fails(1, words);
    world.vmctl(&["media", "insert", "h", "victim.qcow2"]).fails(1, words);
    assert!(!std::fs::read_to_string(&other).expect("readable").contains("victim"));
    // It was a raw disk when the guest was made, and is one no more.
    std::fs::write(world.path().join("plain.raw"), vec![0x5a; 65536]).expect("writes");
    world.vmctl(&["disk", "add", "h", "data", "--path", "plain.raw", "--ro"]).ok();
    std::fs::copy(&image, world.path().join("plain.raw")).expect("copies");
    world.vmctl(&["start", "h"]).fails(1, words);
    world.vmctl(&["clone", "h", "i"]).fails(1, words);
    assert!(!world.guest("i").exists());
}

#[test]
fn a_fifo_in_the_place_of_a_file_is_named_and_holds_no_command_up() {
    let world = World::new();
    nix::unistd::mkfifo(&world.path().join("fifo"), nix::sys::stat::Mode::S_IRWXU).expect("a FIFO");
    for (more, words) in [
        ("include = [\"fifo\"]", "it is a FIFO"),
        ("disks = [{ id = \"d\", source = \"./fifo\" }]", "it is a FIFO"),
        ("disks = [{ id = \"d\", path = \"fifo\" }]", "it is a FIFO"),
        ("cloud-init.user_data = \"fifo\"", "it is a FIFO"),
        ("cloud-init.ssh_keys = [\"./fifo\"]", "it is a FIFO"),
    ] {
        let file = world.file("g", "", more);
        let file = file.to_str().expect("UTF-8");
        world.vmctl(&["check", file]).fails(1, words);
        let said = world.vmctl(&["create", "g", "--file", file]).failed_with(&[1, 2], words);
        assert!(!world.guest("g").exists(), "{}", said.err);
    }
    world.vmctl(&["check", world.path().join("fifo").to_str().expect("UTF-8")]).fails(1, "");
}

#[test]
fn what_a_template_brought_is_taken_away_by_name_and_a_purge_takes_the_bytes() {
    let world = World::new();
    let templates = world.path().join("ds/templates");
    std::fs::create_dir_all(&templates).expect("made");
    let text = format!("kernel.image = \"{}/kernel\"\ndisks = [{{ id = \"data\", size = \"1M\" }}]\n", world.path().display());
    std::fs::write(templates.join("t.toml"), text).expect("writes");
    std::fs::write(world.path().join("kernel"), "no kernel").expect("writes");
    world.vmctl(&["create", "g", "--template", "t"]).ok();
    let disk = world.guest("g").join("disks/data.raw");
    assert!(disk.exists());
    world.vmctl(&["disk", "remove", "g", "data", "--purge", "--yes"]).ok();
    assert!(!disk.exists());
    let shown = world.vmctl(&["show", "g", "--resolved"]).ok().out;
    assert!(!shown.contains("\"data\""), "{shown}");
}

#[test]
fn interfaces_and_media_come_and_go_and_what_does_not_check_is_not_saved() {
    let world = World::new();
    let file = world.make("g", "", "");
    world.vmctl(&["nic", "add", "g", "net0", "--mac", "02:00:00:00:00:07"]).ok();
    let before = std::fs::read_to_string(&file).expect("readable");
    world.vmctl(&["nic", "add", "g", "net1", "--mac", "nonsense"]).fails(1, "nonsense");
    assert_eq!(std::fs::read_to_string(&file).expect("readable"), before);
    std::fs::write(world.path().join("cd.iso"), vec![0u8; 4096]).expect("writes");
    world.vmctl(&["media", "insert", "g", "no.iso"]).fails(1, "`no.iso` is not a file");
    world.vmctl(&["media", "insert", "g", "cd.iso"]).ok();
    world.vmctl(&["media", "insert", "g", "cd.iso"]).ok();
    let text = std::fs::read_to_string(&file).expect("readable");
    assert_eq!(text.matches("cd0").count(), 1, "{text}");
    assert!(text.contains("device = \"ahci-cd\"") && text.contains("ro = true"), "{text}");
    assert!(text.contains(world.path().join("cd.iso").to_str().expect("UTF-8")), "{text}");
    world.vmctl(&["media", "eject", "g"]).ok();
    world.vmctl(&["nic", "remove", "g", "net0"]).ok();
    let text = std::fs::read_to_string(&file).expect("readable");
    assert!(!text.contains("cd0") && !text.contains("net0"), "{text}");
}

#[test]
fn the_seed_is_there_for_the_guest_and_ssh_knows_the_way() {
    let world = World::new();
    let forward = "nics = [{ id = \"n\", forwards = [{ id = \"ssh\", host_port = 42022, guest_port = 22 }] }]";
    let seed = format!("{forward}\n[cloud-init]\nuser = \"ann\"\nssh_keys = [\"{KEY}\"]\n");
    world.make("g", "", &seed);
    let path = world.guest("g").join("disks/cidata.raw");
    let label = std::process::Command::new("/sbin/blkid").args(["-o", "value", "-s", "LABEL"]).arg(&path).output();
    assert_eq!(String::from_utf8_lossy(&label.expect("blkid runs").stdout).trim(), "CIDATA");
    let block = world.vmctl(&["ssh-config", "g"]).ok().out;
    for line in ["Host g\n", "    Port 42022\n", "    User ann\n", "    HostKeyAlias vmctl-g\n"] {
        assert!(block.contains(line), "{block}");
    }
}

#[test]
fn a_seed_that_cannot_be_made_makes_no_guest() {
    let world = World::new();
    let file = world.file("g", "", "[cloud-init]\nssh_keys = [\"no-such-file.pub\"]\n");
    let file = file.to_str().expect("UTF-8");
    world.vmctl(&["create", "g", "--file", file]).fails(1, "no-such-file.pub");
    assert!(!world.guest("g").exists());
    world.make("h", "", "");
    world.vmctl(&["ssh", "h", "true"]).fails(1, "no way to port 22 of `h` is known");
    world.vmctl(&["cp", "a", "b"]).fails(1, "no path is in a guest");
}
