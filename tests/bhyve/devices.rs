//! What a boot makes beside the guest, and what it is told of it.

use std::fs;

use crate::world::{NIC, World, alive, eventually, kill};

/// The line that bhyve was started with.
fn bhyve(world: &World) -> String {
    let calls = world.calls();
    calls.into_iter().rfind(|call| call.starts_with("bhyve ") && call.contains(" -m ")).expect("bhyve was started")
}

#[test]
fn uefi_variables_are_copied_once_and_then_the_guests_own() {
    let world = World::new();
    world.make_uefi("g", "say:up", "");
    world.vmctl(&["start", "g"]).ok();
    let variables = world.guest("g").join("uefi-vars.fd");
    assert_eq!(fs::read_to_string(&variables).expect("reads"), "variables");
    let line = bhyve(&world);
    assert!(line.contains(&format!("BHYVE_UEFI_CODE.fd,{}", variables.display())), "{line}");
    fs::write(&variables, "changed by the guest").expect("writes");
    world.vmctl(&["reset", "g"]).ok();
    eventually("it boots again", || world.word("g") == "running");
    assert_eq!(fs::read_to_string(&variables).expect("reads"), "changed by the guest");
    world.edit("g", |text| text.replace("loader", "uefi = { persistent = false }\nloader"));
    world.vmctl(&["restart", "g"]).ok();
    assert_eq!(fs::read_to_string(&variables).expect("reads"), "variables");
    world.vmctl(&["stop", "g"]).ok();
}

#[test]
fn two_screens_at_the_first_free_port_have_two_ports_and_a_socket_is_cleaned_up() {
    let world = World::new().modern();
    for name in ["a", "b"] {
        world.make_uefi(name, "say:up", "graphics = true");
    }
    world.make_uefi("c", "say:up", "graphics = { socket = true }");
    world.vmctl(&["start", "a", "b", "c"]).ok();
    let screen = |name: &str| world.info(name)["screen"].as_str().expect("a screen").to_owned();
    assert_ne!(screen("a"), screen("b"));
    assert!(screen("c").starts_with("unix:") && screen("c").ends_with("/vnc.sock"), "{}", screen("c"));
    fs::write(world.guest("c").join("vnc.sock"), "as bhyve leaves it").expect("writes");
    world.vmctl(&["stop", "a", "b", "c"]).ok();
    world.nothing_is_left();
    assert_eq!(world.info("a")["screen"], serde_json::Value::Null);
}

#[test]
fn grub_gets_its_device_map() {
    let world = World::new();
    world.make_with("g", "say:up", "loader = \"grub\"");
    world.vmctl(&["start", "g"]).ok();
    let calls = world.calls();
    let line = calls.iter().find(|call| call.starts_with("grub-bhyve ")).expect("grub ran");
    let map = line.split(' ').skip_while(|word| !matches!(*word, "-m" | "--device-map")).nth(1).expect("a map");
    let map = fs::read_to_string(map).expect("the map is there");
    assert!(map.contains(&format!("(hd0) {}", world.root().join("g.img").display())), "{map}");
    world.vmctl(&["stop", "g"]).ok();
}

#[test]
fn a_tpm_runs_beside_the_guest_and_ends_with_it_also_after_a_kill() {
    let world = World::new().modern();
    world.make_uefi("g", "say:up", &format!("tpm = {{ type = \"swtpm\" }}\nrestart = {{ on_crash = \"stop\" }}\n{NIC}"));
    let pid = || fs::read_to_string(world.guest("g").join("tpm.pid")).ok().and_then(|text| text.trim().parse::<u64>().ok());
    world.vmctl(&["start", "g"]).ok();
    let first = pid().expect("a TPM");
    assert!(alive(first));
    let line = bhyve(&world);
    assert!(line.contains(&format!("tpm,swtpm,{}", world.guest("g").join("tpm.sock").display())), "{line}");
    world.vmctl(&["stop", "g"]).ok();
    assert!(!alive(first));
    world.nothing_is_left();
    world.vmctl(&["start", "g"]).ok();
    let second = pid().expect("a TPM");
    kill(world.info("g")["engine_pid"].as_u64().expect("an engine"));
    world.wait_for("g", "stopped");
    eventually("the TPM is gone", || !alive(second));
    world.nothing_is_left();
}

#[test]
fn limits_and_priority_are_those_of_bhyves_process() {
    let world = World::new();
    world.make("g", "say:up", "limits = { cpu_percent = 150, read_bps = \"1M\", nice = 5 }");
    world.vmctl(&["start", "g"]).ok();
    let calls = world.calls();
    let rules: Vec<&str> = calls.iter().filter_map(|call| call.strip_prefix("rctl -a process:")).collect();
    assert_eq!(rules.len(), 2, "{calls:#?}");
    assert!(rules[0].ends_with(":pcpu:deny=150") && rules[1].ends_with(":readbps:throttle=1048576"), "{rules:?}");
    assert!(calls.iter().any(|call| call.starts_with("nice -n 5 bhyve ")), "{calls:#?}");
    assert!(!calls.iter().any(|call| call.starts_with("nice -n 5 bhyveload ")), "{calls:#?}");
    world.vmctl(&["stop", "g"]).ok();
}

#[test]
fn a_volume_is_made_before_the_boot_and_goes_with_the_guest() {
    let world = World::new();
    world.make("g", "say:up", "[[disks]]\nid = \"data\"\nbackend = \"zvol\"\nsize = \"1G\"\n");
    world.vmctl(&["start", "g"]).ok();
    let device = world.root().join("dev/zvol/tank/vms/g-data");
    assert!(device.exists());
    assert!(bhyve(&world).contains(&*device.to_string_lossy()));
    world.vmctl(&["stop", "g"]).ok();
    world.vmctl(&["destroy", "g", "--yes"]).ok();
    assert!(!device.exists());
}

#[test]
fn a_unit_of_a_target_is_attached_for_the_boot_and_detached_after_it() {
    let world = World::new();
    let disk =
        "[[disks]]\nid = \"far\"\nbackend = \"iscsi\"\ntarget = \"iqn.2026-01.example:x\"\nportal = \"10.0.0.9\"\nlun = 2\n";
    world.make("g", "say:up", disk);
    world.vmctl(&["start", "g"]).ok();
    let line = bhyve(&world);
    assert!(line.contains("/dev/da7"), "{line}");
    let calls = world.calls();
    assert!(calls.contains(&"iscsictl -A -p 10.0.0.9 -t iqn.2026-01.example:x".to_owned()), "{calls:#?}");
    world.vmctl(&["stop", "g"]).ok();
    assert!(!world.state("session").exists());
    // A session of the user's stays.
    fs::write(world.state("session"), "iqn.2026-01.example:x").expect("writes");
    world.vmctl(&["start", "g"]).ok();
    world.vmctl(&["stop", "g"]).ok();
    assert!(world.state("session").exists());
}

#[test]
fn a_second_serial_port_joins_the_console() {
    let world = World::new();
    world.make("g", "say:up", "console = { com2 = \"console\" }");
    world.vmctl(&["start", "g"]).ok();
    let line = bhyve(&world);
    assert!(line.contains("com1,/dev/nmdm") && line.contains("com2,/dev/nmdm"), "{line}");
    world.vmctl(&["stop", "g"]).ok();
    world.nothing_is_left();
}

#[test]
fn interfaces_are_plugged_into_switches_of_every_type() {
    let world = World::new();
    fs::write(world.state("interfaces").join("sw-own"), "").expect("writes");
    fs::write(world.state("ngctl"), "  Name: br0\n  link0  em0 ether 2 lower\n  link1  vm9 socket a vmlink\n").expect("writes");
    let nic = |id: &str, backend: &str, switch: &str| {
        format!("[[nics]]\nid = \"{id}\"\nbackend = \"{backend}\"\nswitch = \"{switch}\"\n")
    };
    let nics = [nic("a", "tap", "own"), nic("b", "vmnet", "lan"), nic("c", "vale", "fast"), nic("d", "netgraph", "graph")];
    world.make("g", "say:up", &nics.concat());
    world.vmctl(&["start", "g"]).ok();
    assert_eq!(world.taps(), ["tap0", "vmnet0"]);
    let calls = world.calls();
    assert!(
        calls.iter().any(|call| call.starts_with("ifconfig tap create description vmctl/g/a/") && call.ends_with(" mtu 9000"))
    );
    for call in ["ifconfig sw-own addm tap0 private tap0", "ifconfig bridge0 addm vmnet0", "ngctl show br0:"] {
        assert!(calls.contains(&call.to_owned()), "no `{call}` in {calls:#?}");
    }
    let line = bhyve(&world);
    for piece in ["virtio-net,tap0,", "virtio-net,vmnet0,", "virtio-net,vale-fast:", "netgraph,path=br0:,peerhook=link2"] {
        assert!(line.contains(piece), "no `{piece}` in {line}");
    }
    world.vmctl(&["stop", "g"]).ok();
    world.nothing_is_left();
    world.edit("g", |text| text.replace("switch = \"own\"", "switch = \"fast\""));
    world.vmctl(&["start", "g"]).fails("the switch `fast` takes no taps");
    world.edit("g", |text| text.replace("backend = \"tap\"\nswitch = \"fast\"", "backend = \"tap\"\nswitch = \"fsat\""));
    world.vmctl(&["start", "g"]).fails("no switch is called `fsat`");
}

#[test]
fn two_guests_that_start_at_one_instant_have_two_hooks_of_a_node() {
    let world = World::new();
    fs::write(world.state("connects-late"), "").expect("writes");
    let nic = "[[nics]]\nid = \"net0\"\nbackend = \"netgraph\"\nswitch = \"graph\"\n";
    for name in ["a", "b"] {
        world.make(name, "say:up", nic);
    }
    let starts = ["a", "b"].map(|name| world.command(&["start", name]).spawn().expect("starts"));
    for mut start in starts {
        assert!(start.wait().expect("ends").success());
    }
    let mut hooks: Vec<String> = world
        .calls()
        .iter()
        .filter(|call| call.starts_with("bhyve ") && call.contains(" -m "))
        .map(|call| call.split("peerhook=").nth(1).expect("a hook").split(',').next().expect("a hook").to_owned())
        .collect();
    hooks.sort();
    assert_eq!(hooks, ["link0", "link1"], "{:#?}", world.calls());
    // What a guest gives back is taken again.
    world.vmctl(&["stop", "a"]).ok();
    world.forget_calls();
    world.vmctl(&["start", "a"]).ok();
    assert!(bhyve(&world).contains("peerhook=link"), "{:#?}", world.calls());
    assert_eq!(world.vmctl(&["list", "-o", "jsonl"]).ok().out.matches("\"running\"").count(), 2);
    world.vmctl(&["stop", "a", "b"]).ok();
    world.nothing_is_left();
}
