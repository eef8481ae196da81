//! The life of a guest: start, console, orders, stop; one and two at a time; and what a killed process leaves.

use std::io::Write;
use std::process::Stdio;

use crate::world::{NIC, World, alive, eventually, kill};

#[test]
fn a_guest_starts_talks_and_stops_and_leaves_nothing_behind() {
    let world = World::new();
    world.loader_part("g", "say:Welcome_to_the_loader");
    world.make("g", "say:login:", NIC);
    world.vmctl(&["start", "g"]).ok().says("g is running");
    eventually("it talks", || world.console_log("g").contains("login:"));
    assert_eq!(world.console_log("g"), "Welcome to the loaderlogin:");
    assert_eq!(world.taps(), ["tap0"]);
    assert!(world.guest("g").join("bhyve.journal").exists());
    let info = world.info("g");
    assert_eq!((info["engine"].as_str(), info["backend"].as_str()), (Some("bhyve"), Some("vmm")));
    world.vmctl(&["stop", "g"]).ok().says("shut itself down");
    assert!(world.console_log("g").ends_with("shutting down\r\n"), "{}", world.console_log("g"));
    world.nothing_is_left();
    let description = world.calls().into_iter().find_map(|call| Some(call.strip_prefix("ifconfig tap create ")?.to_owned()));
    let description = description.expect("a tap was made");
    assert!(description.starts_with("description vmctl/g/net0/"), "{description}");
    assert_eq!(
        world.changes(),
        [
            "kldload -n vmm",
            "kldload -n nmdm",
            "kldload -n if_tuntap",
            "kldload -n if_bridge",
            "sysctl net.link.tap.up_on_open=1",
            &format!("ifconfig tap create {description}"),
            "ifconfig bridge0 addm tap0",
            "ifconfig tap0 up",
            "bhyvectl --vm=g --create",
            "bhyveload g",
            "bhyve g",
            "bhyvectl --vm=g --destroy",
            "ifconfig tap0 destroy",
        ]
    );
}

#[test]
fn what_is_typed_reaches_the_guest_and_its_answer_comes_back() {
    let world = World::new();
    world.make("g", "echo say:hello", "");
    world.vmctl(&["start", "g"]).ok();
    let mut console = world.command(&["console", "g"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("starts");
    let mut keys = console.stdin.take().expect("piped");
    keys.write_all(b"abc\r").expect("types");
    eventually("it echoes", || world.console_log("g").contains("<abc\r>"));
    console.kill().expect("killed");
    console.wait().expect("ends");
    world.vmctl(&["stop", "g"]).ok();
}

#[test]
fn a_reboot_destroys_the_machine_and_goes_through_the_loader_again() {
    let world = World::new();
    world.make("g", "say:one exit:0 / exit:0 / say:up", NIC);
    world.vmctl(&["start", "g"]).ok();
    eventually("the third boot", || world.info("g")["boots"] == 3 && world.word("g") == "running");
    let changes = world.changes();
    let of = |what: &str| changes.iter().filter(|call| *call == what).count();
    assert_eq!((of("bhyveload g"), of("bhyve g"), of("bhyvectl --vm=g --destroy")), (3, 3, 2));
    world.vmctl(&["stop", "g"]).ok();
    world.nothing_is_left();
}

#[test]
fn a_machine_and_a_console_that_take_their_time_to_go_do_not_stop_the_next_boot() {
    for loader in ["bhyveload", "uefi"] {
        let world = World::new();
        std::fs::write(world.state("goes-late"), "").expect("writes");
        world.make_with("g", "say:one exit:0 / say:up", &format!("loader = \"{loader}\"\nrestart = {{ on_crash = \"stop\" }}"));
        world.vmctl(&["start", "g"]);
        eventually("the second boot", || world.info("g")["boots"] == 2 && world.word("g") == "running");
        world.vmctl(&["stop", "g"]).ok();
        // As when the devices of the last line are still being destroyed.
        let devices = std::fs::read_dir(world.root().join("dev")).expect("lists").flatten().map(|entry| entry.path());
        let lock = devices.filter(|path| path.extension().is_some_and(|end| end == "lock")).last().expect("the line's lock");
        let held = std::fs::File::open(lock).expect("opens");
        held.lock().expect("locks");
        let start = world.command(&["start", "g"]).spawn().expect("starts");
        std::thread::sleep(std::time::Duration::from_millis(800));
        drop(held);
        assert!(start.wait_with_output().expect("ends").status.success());
        world.vmctl(&["stop", "g"]).ok();
        world.nothing_is_left();
    }
}

#[test]
fn orders_become_the_calls_of_bhyvectl() {
    let world = World::new();
    world.make("g", "say:up", "cpus = 2");
    world.vmctl(&["start", "g"]).ok();
    assert_eq!(world.info("g")["counters"]["vcpu1.vm-exits-due-to-hlt"], 11);
    world.vmctl(&["reset", "g"]).ok();
    eventually("it boots again", || world.info("g")["boots"] == 2 && world.word("g") == "running");
    assert!(world.calls().contains(&"bhyvectl --vm=g --force-reset".to_owned()));
    world.vmctl(&["poweroff", "g"]).ok();
    assert!(world.calls().contains(&"bhyvectl --vm=g --force-poweroff".to_owned()));
    assert_eq!(world.info("g")["last_exit"]["reason"], "it was powered off");
    world.nothing_is_left();
}

#[test]
fn a_guest_that_ignores_the_power_button_is_powered_off_after_its_time() {
    let world = World::new();
    world.make("g", "deaf say:up", "stop_timeout = \"1s\"");
    world.vmctl(&["start", "g"]).ok();
    world.vmctl(&["stop", "g"]).ok().says("powered off");
    assert!(world.calls().contains(&"bhyvectl --vm=g --force-poweroff".to_owned()));
    world.nothing_is_left();
}

#[test]
fn a_guest_that_hears_nothing_at_all_is_killed() {
    let world = World::new();
    world.make("g", "stuck say:up", NIC);
    world.vmctl(&["start", "g"]).ok();
    world.vmctl(&["stop", "g", "--force"]).ok();
    world.nothing_is_left();
    world.vmctl(&["start", "g"]).ok();
    world.vmctl(&["kill", "g"]).ok();
    world.nothing_is_left();
    assert_eq!(world.info("g")["last_exit"]["reason"], "the engine was killed");
}

#[test]
fn a_loader_that_waits_for_a_person_can_be_stopped() {
    let world = World::new();
    world.loader_part("g", "say:boot> wait");
    world.make("g", "", NIC);
    let mut start = world.command(&["start", "g"]).stderr(Stdio::null()).spawn().expect("starts");
    eventually("the prompt", || world.console_log("g").contains("boot>"));
    world.vmctl(&["stop", "g"]).ok();
    start.wait().expect("ends");
    world.wait_for("g", "stopped");
    world.nothing_is_left();
    assert!(!world.changes().contains(&"bhyve g".to_owned()));
}

#[test]
fn two_guests_have_taps_lines_and_machines_of_their_own() {
    let world = World::new();
    for name in ["a", "b"] {
        world.make(name, "say:up", NIC);
    }
    world.vmctl(&["start", "a", "b"]).ok();
    assert_eq!(world.taps(), ["tap0", "tap1"]);
    let mut left = world.leftovers();
    left.retain(|name| name.starts_with("nmdm") || name.starts_with("vmm"));
    assert_eq!(left.len(), 4, "{left:?}");
    world.vmctl(&["stop", "a"]).ok();
    assert_eq!((world.taps().len(), world.word("b")), (1, "running".to_owned()));
    assert!(world.leftovers().contains(&"vmm/b".to_owned()));
    world.vmctl(&["stop", "b"]).ok();
    world.nothing_is_left();
}

#[test]
fn a_killed_engine_child_takes_bhyve_along_and_the_next_boot_cleans_up() {
    let world = World::new();
    world.make("g", "say:up", &format!("restart = {{ backoff_initial = \"10ms\" }}\n{NIC}"));
    world.vmctl(&["start", "g"]).ok();
    let first = world.info("g")["engine_pid"].as_u64().expect("an engine");
    kill(first);
    eventually("another boot", || {
        let info = world.info("g");
        info["state"] == "running" && info["engine_pid"].as_u64() != Some(first)
    });
    assert_eq!(world.info("g")["last_exit"]["reason"], "the engine was ended by SIGKILL");
    assert_eq!(world.taps().len(), 1);
    world.vmctl(&["stop", "g"]).ok();
    world.nothing_is_left();
}

#[test]
fn what_a_killed_engine_child_left_goes_when_the_guest_is_not_started_again() {
    let world = World::new();
    world.make("g", "say:up", &format!("restart = {{ on_crash = \"stop\" }}\n{NIC}"));
    world.vmctl(&["start", "g"]).ok();
    kill(world.info("g")["engine_pid"].as_u64().expect("an engine"));
    world.wait_for("g", "stopped");
    world.nothing_is_left();
}

#[test]
fn a_killed_supervisor_ends_the_guest_and_nothing_is_left() {
    let world = World::new();
    world.make("g", "say:up", NIC);
    world.vmctl(&["start", "g"]).ok();
    let info = world.info("g");
    let (supervisor, engine) = (info["pid"].as_u64().expect("a pid"), info["engine_pid"].as_u64().expect("a pid"));
    kill(supervisor);
    eventually("the engine child is gone", || !alive(engine));
    world.nothing_is_left();
    world.vmctl(&["start", "g"]).ok();
    world.vmctl(&["stop", "g"]).ok();
    world.nothing_is_left();
}

#[test]
fn a_host_that_lost_both_processes_at_once_is_cleaned_by_the_next_start_and_by_destroy() {
    let world = World::new();
    world.make("g", "say:up", NIC);
    for end in ["start", "destroy"] {
        world.vmctl(&["start", "g"]).ok();
        let info = world.info("g");
        let (supervisor, engine) = (info["pid"].as_u64().expect("a pid"), info["engine_pid"].as_u64().expect("a pid"));
        kill(engine);
        kill(supervisor);
        eventually("both are gone", || !alive(engine) && !alive(supervisor));
        match end {
            "start" => {
                world.vmctl(&["start", "g"]).ok();
                world.vmctl(&["stop", "g"]).ok();
            }
            _ => drop(world.vmctl(&["destroy", "g", "--yes"]).ok()),
        }
        world.nothing_is_left();
    }
}

#[test]
fn the_engine_child_ends_everything_when_it_is_told_to() {
    let world = World::new();
    world.make("g", "stuck say:up", &format!("restart = {{ on_crash = \"stop\" }}\n{NIC}"));
    world.vmctl(&["start", "g"]).ok();
    let engine = world.info("g")["engine_pid"].as_u64().expect("a pid");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(engine as i32), nix::sys::signal::Signal::SIGTERM).expect("sent");
    world.wait_for("g", "stopped");
    world.nothing_is_left();
    assert_eq!(world.info("g")["last_exit"]["reason"], "the guest powered off");
    let calls = world.changes();
    assert_eq!(calls[calls.len() - 2..], ["bhyvectl --vm=g --destroy", "ifconfig tap0 destroy"]);
}

#[test]
fn the_hosts_shutdown_reaches_a_guest_as_its_power_button_also_through_the_engine_child() {
    let world = World::new();
    world.make("g", "say:up", NIC);
    world.vmctl(&["start", "g"]).ok();
    let engine = world.info("g")["engine_pid"].as_u64().expect("a pid");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(engine as i32), nix::sys::signal::Signal::SIGTERM).expect("sent");
    world.wait_for("g", "stopped");
    assert!(world.console_log("g").ends_with("shutting down\r\n"), "{}", world.console_log("g"));
    world.nothing_is_left();
}

#[test]
fn what_a_guest_uses_is_asked_of_bhyves_process_of_vmm_and_of_its_tap() {
    let world = World::new();
    world.make("g", "say:login:", NIC);
    world.vmctl(&["start", "g"]).ok();
    eventually("it talks", || world.console_log("g").contains("login:"));
    let text = world.vmctl(&["metrics", "g"]).ok().out;
    for line in [
        "vmctl_guest_resident_bytes{guest=\"g\"} 268435456",
        "vmctl_guest_network_transmit_bytes_total{guest=\"g\",nic=\"net0\"} 3456",
        "vmctl_guest_network_transmit_packets_total{guest=\"g\",nic=\"net0\"} 12",
        "vmctl_guest_network_receive_bytes_total{guest=\"g\",nic=\"net0\"} 9012",
        "vmctl_guest_network_receive_packets_total{guest=\"g\",nic=\"net0\"} 78",
    ] {
        assert!(text.lines().any(|other| other == line), "no {line} in {text}");
    }
    assert!(text.contains("vmctl_guest_cpu_seconds_total{guest=\"g\"}"), "{text}");
    // bhyve counts nothing of its disks: not known, and not zero.
    assert!(!text.contains("disk"), "{text}");
    let counters = &world.info("g")["counters"];
    let (bhyve, child) = (counters["process-id"].as_u64().expect("known"), world.info("g")["engine_pid"].as_u64());
    assert!(alive(bhyve) && Some(bhyve) != child, "{counters}");
    world.vmctl(&["stop", "g"]).ok();
    world.nothing_is_left();
}

#[test]
fn a_guest_goes_on_through_a_reboot_after_the_program_was_replaced() {
    let world = World::new();
    world.make("g", "say:one sleep:1500 exit:0 / say:two", NIC);
    let program = world.root().join("vmctl");
    let install = || {
        std::fs::copy(env!("CARGO_BIN_EXE_vmctl"), world.root().join("new")).expect("copies");
        std::fs::rename(world.root().join("new"), &program).expect("renames");
    };
    install();
    let said: crate::world::Said = world.command_of(&program, &["start", "g"]).output().expect("runs").into();
    said.ok();
    install();
    eventually("it has booted again", || world.console_log("g").contains("two"));
    world.vmctl(&["stop", "g"]).ok();
    world.nothing_is_left();
}
