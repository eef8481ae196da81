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
fn a_device_that_never_ends_is_refused_as_whatever_file_a_command_is_given() {
    let world = World::new();
    let zero = "it is a character device";
    // With so little memory and time a command that reads on fails in another way.
    let bounded = |arguments: &[&str]| {
        let mut limited = std::process::Command::new("prlimit");
        let command = world.command(arguments);
        limited.args(["--as=4294967296", "--cpu=120", "--core=0", "--"]).arg(command.get_program()).args(command.get_args());
        limited.env_clear().envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        limited.current_dir(world.path()).stdin(std::process::Stdio::null());
        crate::world::Said::from(limited.output().expect("runs"))
    };
    for more in [
        "include = [\"/dev/zero\"]",
        "disks = [{ id = \"d\", source = \"/dev/zero\" }]",
        "disks = [{ id = \"d\", path = \"/dev/zero\" }]",
        "cloud-init.user_data = \"/dev/zero\"",
        "cloud-init.meta_data = \"/dev/zero\"",
        "cloud-init.vendor_data = \"/dev/zero\"",
        "cloud-init.network_config = \"/dev/zero\"",
        "cloud-init.password_file = \"/dev/zero\"",
        "cloud-init.ssh_keys = [\"/dev/zero\"]",
        "kernel.image = \"/dev/zero\"",
        "kernel = { image = \"kernel\", initrd = \"/dev/zero\" }",
        "kernel = { image = \"kernel\", modules = [{ id = \"m\", path = \"/dev/zero\" }] }",
    ] {
        std::fs::write(world.path().join("kernel"), "no kernel").expect("writes");
        let kernel = if more.starts_with("kernel") { "" } else { "kernel.image = \"kernel\"\n" };
        let file = world.path().join("g.toml");
        std::fs::write(&file, format!("memory = \"64M\"\n{kernel}{more}\n")).expect("writes");
        let file = file.to_str().expect("UTF-8");
        bounded(&["check", file]).fails(1, zero);
        let said = bounded(&["create", "g", "--file", file]).failed_with(&[1, 2], zero);
        assert!(!world.guest("g").exists(), "{more}: {}", said.err);
    }
    let templates = world.path().join("ds/templates");
    std::fs::create_dir_all(&templates).expect("made");
    std::os::unix::fs::symlink("/dev/zero", templates.join("endless.toml")).expect("links");
    world.make("k", "", "");
    for arguments in [
        &["check", "/dev/zero"][..],
        &["create", "g", "--file", "/dev/zero"],
        &["create", "g", "--template", "endless"],
        &["plan", "/dev/zero"],
        &["apply", "--yes", "/dev/zero"],
        &["image", "import", "/dev/zero", "--name", "z"],
        &["disk", "add", "k", "d", "--source", "/dev/zero"],
        &["install", "k", "/dev/zero"],
        &["media", "insert", "k", "/dev/zero"],
        &["--config", "/dev/zero", "list"],
    ] {
        let said = bounded(arguments);
        assert!(matches!(said.code, Some(1 | 2)), "{arguments:?}: {said:?}");
        assert!(said.err.contains("/dev/zero") || said.err.contains("endless"), "{arguments:?}: {said:?}");
        assert!(said.err.contains("device") || said.err.contains("not a"), "{arguments:?}: {said:?}");
        assert!(!world.guest("g").exists(), "{arguments:?}");
    }
    assert_eq!(world.word("k"), "stopped");
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
