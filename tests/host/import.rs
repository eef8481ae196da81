//! `vmctl import vm-bhyve`, over a datastore made by the test.

use super::world::World;

fn put(world: &World, file: &str, text: &str) {
    let path = world.path().join("vm").join(file);
    std::fs::create_dir_all(path.parent().expect("it has one")).expect("makes");
    std::fs::write(path, text).expect("writes");
}

/// What may be a raw disk: whole sectors, and no text.
fn raw_disk() -> String {
    "\0disk".repeat(1024)[..1024].to_owned()
}

fn world() -> (World, String) {
    let world = World::new();
    world.host_file("# mine\n");
    put(
        &world,
        ".config/system.conf",
        "switch_list=\"public\"\ntype_public=\"standard\"\nports_public=\"em0\"\nvlan_public=\"10\"\nnat_public=\"yes\"\n\
         datastore_list=\"media\"\npath_media=\"iso:/isos\"\nconsole=\"tmux\"\n",
    );
    put(
        &world,
        "web/web.conf",
        "loader=\"uefi\"\ncpu=2\nmemory=1G\nnetwork0_type=\"virtio-net\"\nnetwork0_switch=\"public\"\n\
         network0_mac=\"58:9c:fc:01:02:03\"\ndisk0_type=\"virtio-blk\"\ndisk0_name=\"disk0.img\"\n\
         uuid=\"6f1c5a9e-0d2b-4c3f-9e57-1b2a3c4d5e6f\"\ngraphics=\"yes\"\nvnc_password=\"geheim\"\ntypo=\"x\"\n",
    );
    put(&world, "web/disk0.img", &raw_disk());
    put(&world, "db/db.conf", "loader=\"bhyveload\"\ncpu=1\nmemory=512M\ndisk0_type=\"virtio-blk\"\ndisk0_name=\"disk0.img\"\n");
    put(&world, "db/disk0.img", &raw_disk());
    put(
        &world,
        ".templates/default.conf",
        "loader=\"bhyveload\"\ncpu=1\nmemory=512M\nnetwork0_type=\"virtio-net\"\nnetwork0_switch=\"public\"\ndisk0_type=\"virtio-blk\"\ndisk0_name=\"disk0.img\"\n",
    );
    world.program("sysrc", "case \"$3\" in vm_dir) dirname \"$STATE\" | sed 's,$,/vm,' ;; vm_list) echo 'db web gone' ;; vm_delay) echo 5 ;; *) exit 1 ;; esac");
    let directory = world.path().join("vm").to_str().expect("UTF-8").to_owned();
    (world, directory)
}

#[test]
fn a_dry_run_shows_every_file_and_writes_none() {
    let (world, directory) = world();
    let said = world.vmctl(&["import", "vm-bhyve", &directory, "--dry-run"]).ok();
    said.says("guest web         new")
        .says("1 (1KiB)")
        .says("--files")
        .does_not_say("## guest web")
        .says("typo=x: not a setting");
    let said = world.vmctl(&["import", "vm-bhyve", &directory, "--dry-run", "--files"]).ok();
    let said = said.says("## host file").says("[[switches]]\nid = \"public\"\nuplinks = [\"em0\"]\nvlan = 10\n");
    let said = said.says("## guest web").says("mac = \"58:9c:fc:01:02:03\"").says("#   typo=x: not a setting");
    let said = said.says("## template default").says("size = \"20G\"").says("nat_public=yes");
    said.does_not_say("geheim").says("path_media=iso:/isos");
    assert_eq!(std::fs::read_to_string(world.path().join("host.toml")).expect("reads"), "# mine\n");
    assert_eq!(std::fs::read_dir(world.path().join("ds/guests")).expect("lists").count(), 0);
}

#[test]
fn guests_come_along_with_their_identity_and_their_disks_stay_where_they_are() {
    let (world, _) = world();
    world.vmctl(&["import", "vm-bhyve"]).ok().says("guest web: taken over").says("vm_list=gone");
    world.vmctl(&["check"]).ok().says("web: ok").says("db: ok");
    let host = std::fs::read_to_string(world.path().join("host.toml")).expect("reads");
    assert!(host.starts_with("# mine\n") && host.contains("id = \"public\""), "{host}");
    let web = world.path().join("ds/guests/web");
    let text = std::fs::read_to_string(web.join("guest.toml")).expect("reads");
    let disk = world.path().join("vm/web/disk0.img");
    assert!(text.contains(&format!("path = \"{}\"", disk.display())), "{text}");
    let started = "[autostart]\nenabled = true\n# number 2 of `vm_list` in rc.conf\norder = 110\n\
                   # `vm_delay` of rc.conf, or vm-bhyve's default\ndelay = \"5s\"\n";
    assert!(text.contains(started), "{text}");
    for odd in [
        "# vm-bhyve always gives bhyve(8) `-w`\nignore_bad_msr = true\n",
        "# vm-bhyve's default of `on_fault`\non_crash = \"stop\"\n",
        "# without `uefi_vars`, vm-bhyve starts with new variables at each boot\npersistent = false\n",
        "# Every `slot` is where vm-bhyve has the device, so that the guest sees no new hardware.\n",
    ] {
        assert!(text.contains(odd), "no {odd} in {text}");
    }
    assert_eq!(std::fs::read(&disk).expect("is there"), raw_disk().as_bytes());
    assert_eq!(std::fs::read_dir(web.join("disks")).expect("lists").count(), 0);
    assert_eq!(std::fs::read_to_string(web.join("vnc-password")).expect("reads"), "geheim\n");
    let state: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(web.join("state.json")).expect("reads")).expect("JSON");
    assert_eq!(state["macs"]["net0"], "58:9c:fc:01:02:03");
    assert!(world.path().join("ds/templates/default.toml").exists());
    assert!(world.path().join("vm/web/web.conf").exists());
    // A second time, what is there stays and is no error, unless it is something else.
    let again = world.vmctl(&["import", "vm-bhyve"]).ok();
    let again = again.says("guest web: taken over already").says("template default: taken over already");
    again.does_not_say("exists already").does_not_say("taken over from");
    let file = web.join("guest.toml");
    std::fs::write(&file, text.replace("memory", "# mine\nmemory")).expect("writes");
    world.vmctl(&["import", "vm-bhyve"]).ok().says("guest web: taken over already, changed since");
    assert!(std::fs::read_to_string(&file).expect("reads").contains("# mine"));
    // One that an import did not write keeps its name.
    std::fs::write(&file, "engine = \"bhyve\"\nloader = \"uefi\"\n").expect("writes");
    let words = "a guest called `web` exists already";
    world.vmctl(&["import", "vm-bhyve"]).fails(1, words).says("guest db: taken over already");
    world.vmctl(&["import", "vm-bhyve", "--dry-run"]).ok().says("the name is taken");
}

#[test]
fn what_was_refused_comes_along_the_next_time_without_errors_for_the_others() {
    let (world, directory) = world();
    put(&world, "web/run.lock", "host\n");
    world.vmctl(&["import", "vm-bhyve", &directory]).fails(1, "vm-bhyve runs `web`");
    std::fs::remove_file(world.path().join("vm/web/run.lock")).expect("removes");
    world.vmctl(&["import", "vm-bhyve", &directory]).ok().says("guest web: taken over from").says("guest db: taken over already");
}

#[test]
fn a_relative_directory_is_read_and_what_is_written_is_absolute() {
    let (world, directory) = world();
    world.vmctl(&["import", "vm-bhyve", "vm"]).ok().says("guest web: taken over");
    let text = std::fs::read_to_string(world.path().join("ds/guests/web/guest.toml")).expect("reads");
    assert!(text.contains(&format!("path = \"{directory}/web/disk0.img\"")), "{text}");
}

#[test]
fn a_dry_run_looks_at_the_disks() {
    let (world, directory) = world();
    std::fs::write(world.path().join("vm/web/disk0.img"), [b"QFI\xfb".as_slice(), &[0; 1020]].concat()).expect("writes");
    put(&world, "db/run.lock", "host\n");
    std::fs::remove_file(world.path().join("vm/db/disk0.img")).expect("removes");
    for more in [&["--dry-run"][..], &[]] {
        let said = world.vmctl(&[&["import", "vm-bhyve", &directory], more].concat()).fails(1, "not a raw disk");
        said.says("disk `disk0`: there is no file `");
    }
}

#[test]
fn what_vm_bhyve_goes_on_doing_is_said_with_what_to_type() {
    let (world, directory) = world();
    let ifconfig = "printf 'vm-public: flags=8843<UP,BROADCAST> metric 0 mtu 1500\\n\\tinet 10.0.0.1 netmask 0xffffff00 broadcast 10.0.0.255\\n\\tmember: em0.10 flags=143<LEARNING>\\n'";
    world.program("ifconfig", ifconfig);
    world.program("sysrc", "case \"$3\" in vm_enable) echo YES ;; *) exit 1 ;; esac");
    for more in [&["--dry-run"][..], &[]] {
        let said = world.vmctl(&[&["import", "vm-bhyve", &directory], more].concat()).ok();
        let said = said.says("vm_enable=YES").says("sysrc vm_enable=NO");
        said.says("has 10.0.0.1/24, em0.10").says("vmctl switch create public --take-over vm-public");
    }
}

#[test]
fn a_guest_that_vm_bhyve_runs_is_refused_and_the_others_come_along() {
    let (world, directory) = world();
    put(&world, "web/run.lock", "host\n");
    world.vmctl(&["import", "vm-bhyve", &directory]).fails(1, "vm-bhyve runs `web`").says("guest db: taken over");
    assert!(!world.path().join("ds/guests/web").exists());
}

#[test]
fn a_guest_that_cannot_be_is_told_with_what_is_wrong() {
    let (world, directory) = world();
    put(&world, "odd/odd.conf", "loader=\"uefi\"\ncpu=900\nmemory=1G\nuuid=\"none\"\n");
    put(&world, "lost/lost.conf", "loader=\"uefi\"\ncpu=1\nmemory=1G\ndisk0_type=\"nvme\"\ndisk0_name=\"gone.img\"\n");
    let said = world.vmctl(&["import", "vm-bhyve", &directory, "--dry-run"]).fails(1, "`uuid`");
    said.says("gone.img").says("cannot be taken over").does_not_say("--files shows the files\n##");
    let said = world.vmctl(&["import", "vm-bhyve", &directory]).fails(1, "gone.img");
    said.says("its guest file would be wrong").says("guest web: taken over");
    world.vmctl(&["import", "vm-bhyve", "/etc"]).fails(1, "`/etc` is no datastore of vm-bhyve");
}

/// The guests whose command lines were traced through vm-bhyve's own code: their devices stay at their PCI addresses.
#[test]
fn an_imported_guest_has_its_devices_where_vm_bhyve_put_them() {
    let (world, directory) = world();
    let mac = "network0_mac=\"58:9c:fc:01:02:03\"\n";
    put(
        &world,
        "win/win.conf",
        &format!(
            "loader=\"uefi\"\ncpu=2\nmemory=4G\nuefi_vars=\"yes\"\ngraphics=\"yes\"\nxhci_mouse=\"yes\"\n\
             disk0_type=\"nvme\"\ndisk0_name=\"disk0.img\"\nnetwork0_type=\"virtio-net\"\nnetwork0_switch=\"public\"\n{mac}"
        ),
    );
    put(&world, "win/disk0.img", &raw_disk());
    put(
        &world,
        "deb/deb.conf",
        &format!(
            "loader=\"grub\"\ncpu=1\nmemory=512M\ndisk0_type=\"virtio-blk\"\ndisk0_name=\"disk0.img\"\n\
             network0_type=\"virtio-net\"\nnetwork0_switch=\"public\"\ngrub_run_partition=\"1\"\n{mac}"
        ),
    );
    put(&world, "deb/disk0.img", &raw_disk());
    world.vmctl(&["import", "vm-bhyve", &directory]).ok();
    let win = world.vmctl(&["argv", "win"]).ok().out;
    for words in ["0,hostbridge", "31,lpc", "4,nvme,", "5,virtio-net,", "6,fbuf,", "7,xhci,tablet"] {
        assert!(has(&win, words), "no `{words}` in {win}");
    }
    assert!(win.contains("mac=58:9c:fc:01:02:03") && win.contains("4G") && win.contains("-w"), "{win}");
    let deb = world.vmctl(&["argv", "deb"]).ok().out;
    for words in ["0,hostbridge", "31,lpc", "4,virtio-blk,", "5,virtio-net,"] {
        assert!(has(&deb, words), "no `{words}` in {deb}");
    }
    assert!(deb.contains("grub-bhyve") && deb.contains("hd0,1"), "{deb}");
}

/// Whether a device stands at an address of bus 0, however much of the address is written.
fn has(argv: &str, words: &str) -> bool {
    let (slot, rest) = words.split_once(',').expect("a slot and a device");
    [format!("{slot},{rest}"), format!("{slot}:0,{rest}"), format!("0:{slot}:0,{rest}")]
        .iter()
        .any(|form| argv.split(|c: char| c.is_whitespace() || c == '\'').any(|word| word.starts_with(form.as_str())))
}
