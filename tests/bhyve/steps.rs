//! Every call of every start fails once, whatever loads the guest: what was made is undone, and the error names the
//! program and shows what it said. So do the files that a start writes, and the calls that an order makes.

use std::fs;

use crate::fake::MADE_TO_FAIL;
use crate::world::{NIC, World, eventually};

const ISCSI: &str = "[[disks]]\nid = \"far\"\nbackend = \"iscsi\"\ntarget = \"iqn.2026-01.example:x\"\nportal = \"10.0.0.9\"\n\
    lun = 2\n";
const GRAPH: &str = "[[nics]]\nid = \"net1\"\nbackend = \"netgraph\"\nswitch = \"graph\"\n";

/// Calls that a start goes on without, because their failure is an answer.
const ANSWERS: &[&str] = &[
    // Not loaded; it is loaded then, which does no harm to one that is.
    "kldstat -q -m",
    // Its usage is printed with status 1 at any time.
    "bhyvectl",
    // So is bhyve's, with whatever status.
    "bhyve -h",
    // There is none before vmm(4) is loaded, and before 13.2; the number of the host's CPUs stands in for it.
    "sysctl -n hw.vmm.maxcpu",
    "sysctl -n hw.ncpu",
    // What the default engine is found out with; these guests name theirs.
    "sysctl -n hw.vmm.create",
    "sysctl -n security.jail.jailed",
    "sysctl -n kern.securelevel",
    "sysctl -n kern.module_path",
    // Not running; it is started then.
    "service iscsid onestatus",
    // Unknown before vmm(4) is loaded; asked again afterwards.
    "jls -j vms allow.vmm",
    // Asked by the supervisor before anything is made, and again by its child, which needs the answer.
    "jls -j vms vnet",
];
/// As above, when the module came all the same: kldload(8) says so of a module that another program has loaded.
const LOADED: &str = "kldload -n if_";
/// What the made-up FreeBSD asks to know that it is one. A real one is not asked.
const WHAT_SYSTEM: &str = "uname -s";

/// Lets each call of a start fail once, before it has done anything, or after it has done all.
fn fail_each_call(world: &World, when: &str) {
    let fresh = || {
        world.unload_modules();
        for counter in ["parts/g.count", "loaders/g.count"] {
            let _ = fs::remove_file(world.state(counter));
        }
    };
    fresh();
    world.forget_calls();
    world.vmctl(&["start", "g"]).ok();
    let calls = world.calls();
    world.vmctl(&["stop", "g"]).ok();
    world.nothing_is_left();
    let mut failed = 0;
    // These run on, or become another program: they cannot fail after they have done what they do.
    let runs_on = |call: &str| {
        when == "after"
            && ["swtpm", "nice", "jexec", "bhyve -", "bhyveload", "grub-bhyve"].iter().any(|start| call.starts_with(start))
    };
    for (at, call) in calls.iter().enumerate() {
        if call == WHAT_SYSTEM || runs_on(call) {
            continue;
        }
        fresh();
        world.fail_call(at + 1, when);
        let said = world.vmctl(&["start", "g"]);
        let call = world.failed_call().unwrap_or_else(|| panic!("`{call}` was not made: {:#?}", world.calls()));
        let answers = ANSWERS.iter().any(|answer| *answer == call || (answer.starts_with("kldstat") && call.starts_with(answer)));
        if said.code == Some(0) {
            // The last calls are made side by side: another one may have had this number.
            let passed = answers || runs_on(&call) || (when == "after" && call.starts_with(LOADED));
            assert!(passed, "{when} `{call}`: the start went on");
            world.vmctl(&["stop", "g"]).ok();
        } else {
            let program = call.split(' ').next().expect("a program");
            let shown = said.err.contains(MADE_TO_FAIL) && said.err.contains(program);
            assert!(shown, "{when} `{call}`: {}", said.err);
            assert_eq!(world.word("g"), "stopped", "{when} `{call}`");
            failed += 1;
        }
        world.nothing_is_left();
        assert!(!world.state("session").exists(), "{when} `{call}`");
    }
    assert!(failed > 5, "{calls:#?}");
    fresh();
    world.vmctl(&["start", "g"]).ok();
    world.vmctl(&["stop", "g"]).ok();
    world.nothing_is_left();
}

fn walk_both_ways(world: &World) {
    fail_each_call(world, "before");
    fail_each_call(world, "after");
}

#[test]
fn every_call_fails_once_with_bhyveload_limits_and_a_tap() {
    let world = World::new();
    world.make("g", "say:up", &format!("limits = {{ cpu_percent = 150, nice = 5 }}\n{NIC}"));
    walk_both_ways(&world);
}

#[test]
fn every_call_fails_once_with_grub_and_netgraph() {
    let world = World::new();
    world.make_with("g", "say:up", &format!("loader = \"grub\"\n{NIC}{GRAPH}"));
    walk_both_ways(&world);
}

#[test]
fn every_call_fails_once_with_uefi_and_a_tpm() {
    let world = World::new().modern();
    world.make_uefi("g", "say:up", &format!("graphics = true\ntpm = {{ type = \"swtpm\" }}\n{NIC}"));
    walk_both_ways(&world);
}

#[test]
fn every_call_fails_once_in_a_jail_with_a_unit_of_a_target() {
    let world = World::new();
    world.jail("vnet=new\n");
    world.make("g", "say:up", &format!("jail = \"vms\"\n{NIC}{ISCSI}"));
    walk_both_ways(&world);
}

#[test]
fn every_call_fails_once_when_a_saved_guest_goes_on_and_the_state_is_kept() {
    let world = World::new();
    fs::write(world.state("snapshot"), "").expect("writes");
    world.make("g", "say:up", NIC);
    world.vmctl(&["start", "g"]).ok();
    world.vmctl(&["suspend", "g"]).ok();
    let saved = world.guest("g").join("saved");
    for number in 1.. {
        world.unload_modules();
        world.fail_call(number, "before");
        let said = world.vmctl(&["start", "g"]);
        let Some(call) = world.failed_call() else { break };
        if said.code == Some(0) {
            // It went on, or began anew when bhyvectl did not say that it can save: it is saved again.
            world.vmctl(&["suspend", "g"]);
            world.vmctl(&["kill", "g"]);
        }
        assert!(saved.exists() || said.code == Some(0), "`{call}`: {}", said.err);
        world.nothing_is_left();
        if !saved.exists() {
            world.vmctl(&["start", "g"]).ok();
            world.vmctl(&["suspend", "g"]).ok();
        }
    }
    world.vmctl(&["stop", "g"]).ok();
    world.nothing_is_left();
}

/// A start that fails because a directory stands where a file is to be written, which stops root too.
#[track_caller]
fn cannot_write(world: &World, file: &str) {
    let path = world.guest("g").join(file);
    let kept = fs::read(&path).ok();
    let _ = fs::remove_file(&path);
    fs::create_dir_all(path.join("in-the-way")).expect("makes");
    world.vmctl(&["start", "g"]).fails(file);
    assert_eq!(world.word("g"), "stopped", "{file}");
    fs::remove_dir_all(&path).expect("removes");
    if let Some(bytes) = kept {
        fs::write(&path, bytes).expect("writes");
    }
    world.nothing_is_left();
}

#[test]
fn a_file_that_cannot_be_written_is_named_and_what_was_made_is_undone() {
    let world = World::new();
    world.make_with("g", "say:up", &format!("loader = \"grub\"\ngrub = {{ commands = [\"boot\"] }}\n{NIC}"));
    for file in ["vmm.json", "bhyve.journal", "device.map", "grub.cfg"] {
        cannot_write(&world, file);
    }
    let world = World::new();
    world.make_uefi("g", "say:up", NIC);
    cannot_write(&world, "uefi-vars.fd");
    world.vmctl(&["start", "g"]).ok();
    world.vmctl(&["stop", "g"]).ok();
}

#[test]
fn a_console_that_cannot_be_opened_is_named_and_what_was_made_is_undone() {
    let world = World::new();
    world.make("g", "say:up", NIC);
    world.vmctl(&["start", "g"]).ok();
    world.vmctl(&["stop", "g"]).ok();
    let devices = fs::read_dir(world.root().join("dev")).expect("lists").flatten().map(|entry| entry.path());
    let lock = devices.filter(|path| path.extension().is_some_and(|end| end == "lock")).last().expect("the line's lock");
    fs::remove_file(&lock).expect("removes");
    fs::create_dir(&lock).expect("makes");
    world.vmctl(&["start", "g"]).fails("cannot open the console `/dev/nmdm-vmctl-");
    world.nothing_is_left();
    fs::remove_dir(&lock).expect("removes");
    world.vmctl(&["start", "g"]).ok();
    world.vmctl(&["stop", "g"]).ok();
}

#[test]
fn every_call_of_an_order_fails_once_and_the_order_is_carried_out_all_the_same_or_its_failure_is_said() {
    let world = World::new();
    world.make("g", "say:up", &format!("cpus = 2\n{NIC}"));
    world.vmctl(&["start", "g"]).ok();
    let log = |words: &str| world.vmctl(&["logs", "--vmm", "g"]).out.contains(words);
    // Counters of the other CPU are shown still.
    world.fail("--cpu=0 --get-stats", 1, MADE_TO_FAIL);
    let counters = &world.info("g")["counters"];
    assert!(counters["vcpu0.vm-exits-due-to-hlt"].is_null() && counters["vcpu1.vm-exits-due-to-hlt"] == 11, "{counters}");
    world.fail("--inject-nmi", 1, MADE_TO_FAIL);
    world.request("g", r#"{"version":1,"request":"nmi"}"#);
    eventually("it is said", || log("--inject-nmi` failed: bhyvectl: made to fail"));
    assert_eq!(world.word("g"), "running");
    world.fail("--force-reset", 1, MADE_TO_FAIL);
    world.vmctl(&["reset", "g"]).ok();
    eventually("it boots again", || world.info("g")["boots"] == 2 && world.word("g") == "running");
    assert!(log("--force-reset` failed: bhyvectl: made to fail"));
    world.fail("--force-poweroff", 1, MADE_TO_FAIL);
    world.vmctl(&["poweroff", "g"]).ok();
    world.wait_for("g", "stopped");
    assert_eq!(world.info("g")["last_exit"]["reason"], "it was powered off");
    world.nothing_is_left();
}
