//! What is wrong with a host or a guest file is said before anything is changed.

use std::fs;
use std::net::TcpListener;

use crate::world::{NIC, Said, World};

/// A start that fails without a change to the host.
#[track_caller]
fn refused(world: &World, words: &str) -> Said {
    world.forget_calls();
    let said = world.vmctl(&["start", "g"]).fails(words);
    let changes: Vec<String> = world.changes().into_iter().filter(|call| !call.starts_with("kldload")).collect();
    assert_eq!(changes, Vec::<String>::new());
    world.nothing_is_left();
    said
}

#[test]
fn without_vmm_the_reason_and_the_way_round_are_said() {
    let world = World::new();
    world.make("g", "", NIC);
    world.fail("kldload -n vmm", 1, "can't load vmm: Device not configured");
    refused(&world, "the kernel module `vmm` cannot be loaded").says("engine = \"embedded\"");
}

#[test]
fn without_root_nothing_is_tried() {
    let world = World::new();
    world.make("g", "", NIC);
    fs::write(world.root().join("not-root"), "").expect("writes");
    refused(&world, "root");
}

#[test]
fn another_system_than_freebsd_is_refused() {
    let world = World::new();
    world.make("g", "", NIC);
    fs::remove_file(world.root().join("bin/uname")).expect("removes");
    refused(&world, "FreeBSD").says("engine = \"embedded\"");
}

#[test]
fn a_missing_loader_is_named_with_the_package_that_brings_it() {
    let world = World::new();
    world.make_with("g", "", "loader = \"grub\"");
    fs::remove_file(world.root().join("bin/grub-bhyve")).expect("removes");
    refused(&world, "grub-bhyve").says("grub2-bhyve");
}

#[test]
fn missing_firmware_is_named_with_the_package_that_brings_it() {
    let world = World::new();
    world.make_uefi("g", "", "");
    fs::remove_dir_all(world.root().join("usr/local/share/uefi-firmware")).expect("removes");
    refused(&world, "UEFI").says("edk2-bhyve");
}

#[test]
fn a_disk_that_another_guest_has_open_is_refused() {
    let world = World::new();
    world.make("g", "say:up", "");
    world.make("h", "say:up", "");
    let disk = world.root().join("h.img");
    world.edit("g", |text| text.replace("g.img", "h.img"));
    world.vmctl(&["start", "h"]).ok();
    world.vmctl(&["start", "g"]).fails(&format!("disk `root`: `{}` is in use by another guest", disk.display()));
    world.vmctl(&["stop", "h"]).ok();
    world.vmctl(&["start", "g"]).ok();
    world.vmctl(&["stop", "g"]).ok();
}

#[test]
fn a_machine_of_the_same_name_that_is_not_the_guests_is_left_alone() {
    let world = World::new();
    world.make("g", "", NIC);
    fs::create_dir_all(world.root().join("dev/vmm")).expect("makes");
    fs::write(world.root().join("dev/vmm/g"), "another's").expect("writes");
    world.vmctl(&["start", "g"]).fails("there is a virtual machine `g` already").says("bhyvectl --vm=g --destroy");
    assert_eq!(world.leftovers(), ["vmm/g"]);
}

#[test]
fn a_tap_of_the_users_must_be_there_and_free() {
    let world = World::new();
    world.make("g", "", "[[nics]]\nid = \"net0\"\nbackend = \"tap\"\ninterface = \"tap7\"\n");
    refused(&world, "there is no interface `tap7`");
    let tap = world.state("interfaces").join("tap7");
    fs::write(&tap, "\tOpened by PID 4711\n").expect("writes");
    world.vmctl(&["start", "g"]).fails("`tap7` is in use by process 4711");
    fs::write(&tap, "").expect("writes");
    world.part("g", "say:up");
    world.vmctl(&["start", "g"]).ok();
    world.vmctl(&["stop", "g"]).ok();
    assert_eq!(world.taps(), ["tap7"]);
}

#[test]
fn a_switch_that_is_not_up_is_named() {
    let world = World::new();
    world.make("g", "", NIC);
    fs::remove_file(world.state("interfaces").join("bridge0")).expect("removes");
    world.vmctl(&["start", "g"]).fails("the switch `lan` is not up: there is no interface `bridge0`");
    world.nothing_is_left();
}

#[test]
fn a_port_of_the_screen_that_is_taken_is_refused_and_a_free_one_is_found() {
    let world = World::new();
    let taken = TcpListener::bind("127.0.0.1:0").expect("binds");
    let port = taken.local_addr().expect("an address").port();
    world.make_uefi("g", "say:up", &format!("graphics = {{ port = {port} }}\n{NIC}"));
    refused(&world, &format!("port {port} at 127.0.0.1 is in use"));
    world.edit("g", |text| text.replace(&format!("{{ port = {port} }}"), "true"));
    world.vmctl(&["start", "g"]).ok();
    let screen = world.info("g")["screen"].as_str().expect("a screen").to_owned();
    assert!(screen.starts_with("127.0.0.1:59"), "{screen}");
    world.vmctl(&["list", "-o", "wide"]).ok().says(&screen);
    assert!(world.calls().iter().any(|call| call.starts_with("bhyve -") && call.contains(&format!("tcp={screen}"))));
    world.vmctl(&["stop", "g"]).ok();
}

#[test]
fn a_jail_that_is_not_there_or_does_not_allow_vmm_is_refused() {
    let world = World::new();
    world.make("g", "say:up", "jail = \"vms\"");
    refused(&world, "there is no jail `vms`");
    let jail = world.state("jails").join("vms");
    fs::write(&jail, "allow.vmm=false\npath=/\n").expect("writes");
    refused(&world, "the jail `vms` does not allow vmm(4)");
    fs::write(&jail, "allow.vmm=true\npath=/\n").expect("writes");
    world.vmctl(&["start", "g"]).ok();
    let calls = world.changes();
    for call in ["jexec vms bhyvectl --vm=g --create", "jexec vms bhyveload", "jexec vms bhyve -"] {
        assert!(calls.iter().any(|other| other.starts_with(call)), "no `{call}` in {calls:#?}");
    }
    world.vmctl(&["stop", "g"]).ok();
    assert!(world.calls().contains(&"jexec vms bhyvectl --vm=g --destroy".to_owned()));
    world.nothing_is_left();
}

#[test]
fn limits_on_a_kernel_that_does_not_count_are_refused_with_the_way_to_have_them() {
    let world = World::new();
    world.make("g", "say:up", &format!("limits = {{ cpu_percent = 150 }}\n{NIC}"));
    fs::write(world.state("no-racct"), "").expect("writes");
    world.vmctl(&["start", "g"]).fails("kern.racct.enable=1");
    world.nothing_is_left();
}

#[test]
fn a_key_that_came_later_than_the_hosts_bhyve_names_the_release_that_has_it() {
    let world = World::new();
    world.make_uefi("g", "", "tpm = { type = \"swtpm\" }");
    refused(&world, "FreeBSD 13.2").says("FreeBSD 1");
}

#[test]
fn a_line_that_another_program_has_open_is_refused() {
    let world = World::new();
    world.make("g", "say:up", "");
    world.vmctl(&["start", "g"]).ok();
    let line = world.leftovers().into_iter().find(|name| name.starts_with("nmdm")).expect("a line");
    world.vmctl(&["stop", "g"]).ok();
    let lock = fs::File::open(world.root().join("dev").join(line).with_extension("lock")).expect("opens");
    lock.lock().expect("locks");
    world.vmctl(&["start", "g"]).fails("is in use by another program");
    drop(lock);
    world.vmctl(&["start", "g"]).ok();
    world.vmctl(&["stop", "g"]).ok();
}

const PASSTHRU: &str = "[[passthru]]\nid = \"nic\"\ndevice = \"2/0/0\"\n";

#[test]
fn a_device_of_the_host_needs_an_iommu_and_must_be_given_away() {
    let world = World::new();
    world.make("g", "say:up", PASSTHRU);
    refused(&world, "`passthru` needs an IOMMU").says("VT-d");
    fs::write(world.state("acpidump"), "  DMAR: Length=128, Revision=1\n").expect("writes");
    refused(&world, "this host has no device `2/0/0`");
    let line = |driver: &str| {
        format!(
            "{driver}@pci0:2:0:0:\tclass=0x020000 rev=0x01 hdr=0x00 vendor=0x8086 device=0x1521 subvendor=0x8086 subdevice=0x0001\n"
        )
    };
    fs::write(world.state("pciconf"), line("igb0")).expect("writes");
    refused(&world, "the host itself uses `2/0/0` (igb0)").says("pptdevs");
    fs::write(world.state("pciconf"), line("ppt0")).expect("writes");
    world.vmctl(&["start", "g"]).ok();
    assert!(world.calls().iter().any(|call| call.starts_with("bhyve ") && call.contains("passthru,2/0/0")));
    world.vmctl(&["stop", "g"]).ok();
}

#[test]
fn a_zfs_volume_that_another_guest_has_open_is_refused() {
    let world = World::new();
    let volume = world.root().join("dev/zvol/tank/shared");
    fs::create_dir_all(volume.parent().expect("a parent")).expect("makes");
    fs::write(&volume, "blocks".repeat(256)).expect("writes");
    for name in ["g", "h"] {
        world.make(name, "say:up", &format!("[[disks]]\nid = \"data\"\npath = \"{}\"\n", volume.display()));
    }
    world.vmctl(&["start", "h"]).ok();
    world.vmctl(&["start", "g"]).fails(&format!("disk `data`: `{}` is in use by another guest", volume.display()));
    world.vmctl(&["stop", "h"]).ok();
}

#[test]
fn a_dataset_that_is_full_is_said_and_nothing_is_changed() {
    let world = World::new();
    world.make("g", "say:up", "");
    world.edit("g", |text| format!("{text}[[disks]]\nid = \"data\"\nbackend = \"zvol\"\nsize = \"1G\"\n"));
    world.fail("zfs create", 1, "cannot create 'tank/vms/g-data': out of space");
    world.vmctl(&["start", "g"]).fails("out of space");
    assert!(!world.changes().iter().any(|call| call.starts_with("kldload") || call.starts_with("ifconfig")));
    world.nothing_is_left();
    world.vmctl(&["start", "g"]).ok();
    world.vmctl(&["stop", "g"]).ok();
}

#[test]
fn as_many_cpus_as_the_host_has_can_be_had_before_vmm_is_loaded_and_no_more() {
    let world = World::new();
    std::fs::write(world.state("sysctl/hw.ncpu"), "20").expect("writes");
    std::fs::write(world.state("sysctl/hw.vmm.maxcpu"), "20").expect("writes");
    world.make("g", "say:up", "cpus = 20\n");
    world.make("h", "say:up", "cpus = 21\n");
    world.vmctl(&["start", "h"]).fails("`cpus.count` is 21, and bhyve(8) of this host gives a guest at most 20");
    assert!(!world.state("modules/vmm").exists(), "it was not loaded for that");
    world.vmctl(&["start", "g"]).ok();
    world.vmctl(&["stop", "g"]).ok();
}
