//! The verbs, and what bad input gets.

use std::os::unix::process::CommandExt;
use std::time::{Duration, Instant};

use crate::world::{World, alive, eventually};

#[test]
fn a_start_tells_the_truth() {
    let world = World::new();
    world.make("g", "error:cannot_open_`/no/such`:_No_such_file".replace('/', "|").as_str(), "");
    let said = world.vmctl(&["start", "g"]).fails(1, "cannot open `|no|such`: No such file");
    assert!(said.err.contains("vmctl logs --vmm g"), "{said:?}");
    assert_eq!(world.word("g"), "stopped");
    world.vmctl(&["logs", "--vmm", "g"]).ok().says("fake engine: cannot open");
    world.make("h", "die:4", "");
    world.vmctl(&["start", "h"]).fails(2, "the engine failed").says("fake engine: last words");
}

#[test]
fn a_second_start_is_an_error_unless_a_pattern_chose_the_guest() {
    let world = World::new();
    world.make("g", "", "");
    world.vmctl(&["start", "g"]).ok();
    world.vmctl(&["start", "g"]).fails(1, "`g` is running already");
    world.vmctl(&["start", "g", "--if-stopped"]).ok();
    world.vmctl(&["start", "*"]).ok();
    assert_eq!(world.state("g")["boots"], 1);
}

#[test]
fn ten_starts_at_once_give_one_guest() {
    let world = World::new();
    world.make("g", "", "");
    let children: Vec<_> = (0..10).map(|_| world.command(&["start", "g", "-q"]).spawn().expect("starts")).collect();
    let codes: Vec<_> = children.into_iter().map(|mut child| child.wait().expect("ends").code()).collect();
    assert_eq!(codes.iter().filter(|code| **code == Some(0)).count(), 1, "{codes:?}");
    assert_eq!(world.state("g")["boots"], 1);
}

#[test]
fn a_stop_says_how_the_guest_stopped() {
    let world = World::new();
    world.make("obeys", "", "");
    world.make("deaf", "deaf", "");
    world.make("stopped", "", "");
    world.vmctl(&["start", "obeys", "deaf"]).ok();
    world.vmctl(&["stop", "obeys"]).ok().says("obeys has stopped: the guest shut itself down");
    let started = Instant::now();
    world.vmctl(&["stop", "deaf", "--timeout", "300ms"]).ok().says("did not shut down in time and was powered off");
    assert!(started.elapsed() >= Duration::from_millis(300));
    assert!(world.events("deaf").contains(&"stop-timed-out".to_owned()));
    world.vmctl(&["stop", "stopped"]).ok().says("stopped is stopped already");
    world.vmctl(&["stop", "stopped", "--if-running"]).ok();
    world.vmctl(&["stop", "*"]).ok();
}

#[test]
fn a_power_button_that_came_too_early_is_pressed_again() {
    let world = World::new();
    world.make("g", "late:3", "");
    world.vmctl(&["start", "g"]).ok();
    world.vmctl(&["stop", "g", "--timeout", "60s"]).ok().says("g has stopped: the guest shut itself down");
    assert_eq!(world.state("g")["last_exit"]["kind"], "power-off");
}

#[test]
fn a_stop_that_the_guest_could_not_hear_is_an_end_of_its_own() {
    let world = World::new();
    for part in ["no-acpi", "brittle"] {
        world.make(part, part, "");
        world.vmctl(&["start", part]).ok();
        world.vmctl(&["stop", part, "--timeout", "300ms"]).ok().says("without a shutdown").says("had not turned on ACPI");
        let state = world.state(part);
        assert_eq!((state["state"].as_str(), state["last_exit"]["kind"].as_str()), (Some("stopped"), Some("no-acpi")));
        world.vmctl(&["events", part]).ok().says("exited: it was powered off without a shutdown");
        world.vmctl(&["info", part]).ok().says("had not turned on ACPI");
        world.vmctl(&["list", part, "-o", "wide"]).ok().says("no-acpi");
    }
}

#[test]
fn a_guest_that_did_not_shut_itself_down_is_not_said_to_have() {
    let world = World::new();
    for (part, verb, says, kind) in [
        ("deaf", &["poweroff", "g"][..], "powered off", "powered-off"),
        ("deaf", &["stop", "g", "--timeout", "100ms"], "did not shut down in time", "timed-out"),
        ("deaf", &["kill", "g"], "the engine was killed", "killed"),
        ("sleep:1000 exit:3", &["stop", "g"], "g has stopped: triple fault", "triple-fault"),
        ("sleep:1000 exit:0", &["stop", "g"], "g has stopped: the guest rebooted", "reboot"),
    ] {
        world.make("g", part, "");
        world.vmctl(&["start", "g"]).ok();
        world.vmctl(verb).ok().says(says);
        assert_eq!(world.state("g")["last_exit"]["kind"], kind, "{part} {verb:?}");
        world.vmctl(&["destroy", "g", "-y", "-q"]).ok();
    }
}

#[test]
fn a_command_on_many_goes_on_after_one_fails_and_its_status_says_so() {
    let world = World::new();
    world.make("a", "", "");
    world.make("b", "error:broken", "");
    world.make("c", "", "tags = [\"web\"]");
    world.vmctl(&["start", "a", "b", "nobody", "c"]).fails(1, "b: broken").says("no guest is called `nobody`");
    assert_eq!([world.word("a"), world.word("b"), world.word("c")], ["running", "stopped", "running"]);
    world.vmctl(&["stop", "--tag", "web"]).ok();
    assert_eq!([world.word("a"), world.word("c")], ["running", "stopped"]);
    world.vmctl(&["stop", "--tag", "nothing"]).fails(1, "no guest has the tag `nothing`");
    world.vmctl(&["poweroff", "[ab]"]).ok().says("powered off");
}

#[test]
fn kill_reset_and_restart_do_what_they_say() {
    let world = World::new();
    world.make("g", "stuck / deaf", "");
    world.vmctl(&["start", "g"]).ok();
    world.vmctl(&["kill", "g"]).ok().says("the engine was killed");
    assert_eq!(world.word("g"), "stopped");
    world.vmctl(&["reset", "g"]).fails(1, "is not running");
    world.vmctl(&["start", "g"]).ok();
    world.vmctl(&["reset", "g"]).ok().says("running again");
    world.vmctl(&["restart", "g", "--force"]).ok();
    assert_eq!(world.state("g")["boots"], 4);
    assert_eq!(world.state("g")["counters"]["vcpu0.instructions"], 42);
}

#[test]
fn a_start_waits_for_what_the_console_shows() {
    let world = World::new();
    world.make("g", "say:boot sleep:300 say:debian_lo say:gin:", "ready = { console = \"login:\" }");
    let started = Instant::now();
    world.vmctl(&["start", "g", "--wait"]).ok().says("g is ready");
    assert!(started.elapsed() >= Duration::from_millis(300));
    world.make("h", "", "ready = { console = \"login:\" }");
    world.vmctl(&["start", "h", "--wait", "--timeout", "100ms"]).fails(1, "the console has not shown `login:`");
    assert_eq!(world.word("h"), "running");
}

#[test]
fn without_probes_a_guest_is_ready_when_its_console_asks_for_a_login() {
    let world = World::new();
    world.make("g", "say:boot sleep:600 say:debian_login:", "");
    let started = Instant::now();
    world.vmctl(&["start", "g"]).ok().says("g is running");
    assert_eq!(world.state("g")["ready"], false);
    // One that boots is waited for, whoever started it.
    world.vmctl(&["start", "g", "--wait", "--if-stopped"]).ok();
    assert!(started.elapsed() >= Duration::from_millis(600) && world.state("g")["ready"] == true);
    world.make("mute", "say:boot", "");
    world.vmctl(&["start", "mute", "--wait", "--timeout", "200ms"]).fails(1, "the console has not shown `login:`");
    world.vmctl(&["start", "m*", "--wait", "--timeout", "200ms"]).fails(1, "the console has not shown `login:`");
}

#[test]
fn without_probes_a_guest_of_cloud_init_is_ready_when_its_sshd_greets() {
    let world = World::new();
    // The guest's side of the forward: the fake engine has no network, and this listener has its port.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("binds");
    let port = listener.local_addr().expect("has an address").port();
    drop(listener);
    let more = format!(
        "cloud-init = {{}}\nnics = [{{ id = \"net0\", forwards = [{{ host_port = {port}, guest_port = 22 }}] }}]\nready.timeout = \"20s\""
    );
    world.make("g", "say:login:", &more);
    world.vmctl(&["start", "g"]).ok();
    let words = format!("no ssh greeting at 127.0.0.1:{port}");
    world.vmctl(&["wait", "g", "--timeout", "300ms"]).fails(1, &words);
    world.vmctl(&["wait", "g", "--for", "ssh", "--timeout", "300ms"]).fails(1, &words);
    world.vmctl(&["wait", "g", "--for", "login"]).ok().says("g asks for a login");
    let listener = std::net::TcpListener::bind(("127.0.0.1", port)).expect("binds");
    let thread = std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let _ = std::io::Write::write_all(&mut { stream }, b"SSH-2.0-test\r\n");
        }
    });
    world.vmctl(&["wait", "g", "--for", "ssh"]).ok().says("g answers ssh");
    world.vmctl(&["wait", "g"]).ok().says("g is ready");
    drop(thread);
}

#[test]
fn wait_ends_with_the_guest_and_says_so() {
    let world = World::new();
    world.make("g", "sleep:1500 exit:1", "");
    world.vmctl(&["wait", "g"]).fails(1, "`g` is not running");
    world.vmctl(&["wait", "g", "--for", "login"]).fails(1, "`g` is not running");
    world.vmctl(&["wait", "g", "--for", "stopped"]).ok().says("g has stopped");
    world.vmctl(&["start", "g"]).ok();
    world.vmctl(&["wait", "g", "--for", "stopped", "--timeout", "200ms"]).fails(1, "it still runs");
    world.vmctl(&["wait", "g"]).fails(1, "has stopped");
    world.vmctl(&["start", "g"]).ok();
    world.vmctl(&["wait", "g", "--for", "stopped"]).ok();
    assert_eq!(world.word("g"), "stopped");
}

#[test]
fn a_guest_that_stops_before_it_is_ready_ends_the_wait() {
    let world = World::new();
    world.make("g", "sleep:200 exit:1", "ready = { console = \"login:\" }");
    world.vmctl(&["start", "g", "--wait"]).fails(1, "has stopped");
}

#[test]
fn a_guest_is_made_from_a_template_with_sets_and_keeps_its_identity() {
    let world = World::new();
    std::fs::write(world.path().join("kernel"), "x").expect("writes");
    let create = [
        "create",
        "g",
        "--template",
        "linux-kernel",
        "--set",
        "kernel.image=kernel",
        "--set",
        "disks.data.size=1G",
        "--set",
        "nics.net0.backend=user",
    ];
    world.vmctl(&create).ok();
    let state = world.state("g");
    assert_eq!(state["disks"][0]["size_bytes"], 1 << 30);
    assert_eq!(state["disks"][0]["used_bytes"], 0);
    world.vmctl(&["start", "g"]).ok();
    let spec: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(world.guest("g").join("vmm.json")).expect("a specification"))
            .expect("JSON");
    assert_eq!(spec["loader"]["image"], world.path().join("kernel").to_str().expect("UTF-8"));
    world.vmctl(&["stop", "g"]).ok();
    let before = world.state("g");
    world.vmctl(&["rename", "g", "h"]).ok();
    let after = world.state("h");
    assert_eq!((&before["uuid"], &before["nics"][0]["mac"]), (&after["uuid"], &after["nics"][0]["mac"]));
    world.vmctl(&["start", "g"]).fails(1, "no guest is called `g`");
    world.vmctl(&["start", "h"]).ok();
    world.vmctl(&["rename", "h", "g"]).fails(1, "cannot rename a running guest");
}

#[test]
fn a_clone_has_the_disks_and_an_identity_of_its_own() {
    let world = World::new();
    world.make("g", "", "disks = [{ id = \"root\", size = \"8M\" }]\nnics = [{ id = \"net0\", backend = \"user\" }]");
    let disk = |name: &str| world.guest(name).join("disks/root.raw");
    std::fs::write(disk("g"), "bytes").expect("writes");
    world.vmctl(&["clone", "g", "h", "i"]).ok();
    assert!(std::fs::read(disk("h")).expect("a disk").starts_with(b"bytes"));
    let [g, h, i] = ["g", "h", "i"].map(|name| world.state(name));
    assert_ne!(g["uuid"], h["uuid"]);
    assert_ne!(h["nics"][0]["mac"], i["nics"][0]["mac"]);
    world.vmctl(&["clone", "g", "h"]).fails(1, "exists already");
    world.vmctl(&["start", "g"]).ok();
    world.vmctl(&["clone", "g", "j"]).fails(1, "cannot clone a running guest");
}

#[test]
fn a_clone_of_a_linked_file_has_a_file_and_ports_of_its_own() {
    let world = World::new();
    std::fs::write(world.path().join("key.pub"), "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGmJ3z0p7mB9cO8u me@example\n")
        .expect("writes");
    let more = "# the user's own words\ncloud-init = { ssh_keys = [\"key.pub\"] }\n\
                [[nics]]\nid = \"net0\"\nforwards = [{ host_port = 2222, guest_port = 22 }]";
    let file = world.make("g", "", more);
    let before = std::fs::read_to_string(&file).expect("reads");
    world.vmctl(&["clone", "g", "h", "i"]).ok().says("leads to it where 2222 leads to `g`");
    let own = |name: &str| world.guest(name).join("guest.toml");
    for name in ["h", "i"] {
        assert!(std::fs::symlink_metadata(own(name)).expect("there").is_file(), "{name}");
    }
    let text = std::fs::read_to_string(own("h")).expect("reads");
    let key = world.path().join("key.pub");
    assert!(text.contains("# the user's own words") && text.contains(key.to_str().expect("UTF-8")), "{text}");
    let port = |name: &str| {
        let document = world.vmctl(&["show", name, "-o", "json"]).ok().out;
        let at = document.find("host_port").expect("a port");
        document[at..].chars().skip_while(|c| !c.is_ascii_digit()).take_while(char::is_ascii_digit).collect::<String>()
    };
    assert!(port("g") == "2222" && port("h") != "2222" && port("h") != port("i"), "{} {}", port("h"), port("i"));
    world.vmctl(&["nic", "add", "h", "more"]).ok();
    assert_eq!(std::fs::read_to_string(&file).expect("reads"), before);
    // The seed tells the clone who it is: another instance, another host name.
    let seed = |name: &str| std::fs::read(world.guest(name).join("disks/cidata.raw")).expect("a seed");
    let has = |seed: &[u8], text: &str| seed.windows(text.len()).any(|window| window == text.as_bytes());
    assert!(has(&seed("g"), "\"local-hostname\": \"g\"") && has(&seed("h"), "\"local-hostname\": \"h\""));
    let id = |name: &str| {
        let seed = seed(name);
        let at = seed.windows(6).position(|window| window == b"vmctl-").expect("an instance id");
        String::from_utf8_lossy(&seed[at..at + 22]).into_owned()
    };
    assert!(id("g") != id("h") && id("h") != id("i"));
    world.vmctl(&["start", "h"]).ok();
}

#[test]
fn a_clone_has_its_own_host_name_and_the_files_of_the_guests_directory() {
    let world = World::new();
    let file = world.file_for_copies("g", "name = \"g\"\ncloud-init = { hostname = \"base.example.org\" }");
    world.vmctl(&["create", "g", "--file", file.to_str().expect("UTF-8"), "--copy"]).ok();
    // As `launch` lays a kernel beside the file of its guest.
    let boot = world.guest("g").join("boot");
    std::fs::create_dir(&boot).expect("makes");
    std::fs::write(boot.join("vmlinuz"), "a kernel").expect("writes");
    let text = std::fs::read_to_string(world.guest("g").join("guest.toml")).expect("reads");
    let kernel = world.path().join("kernel").display().to_string();
    std::fs::write(world.guest("g").join("guest.toml"), text.replace(&kernel, "boot/vmlinuz")).expect("writes");
    world.vmctl(&["clone", "g", "web_2"]).ok().says("its host name is web-2.example.org");
    world.vmctl(&["destroy", "g", "--yes"]).ok();
    assert_eq!(std::fs::read(world.guest("web_2").join("boot/vmlinuz")).expect("copied"), b"a kernel");
    world.vmctl(&["start", "web_2"]).ok();
}

#[test]
fn a_clone_of_a_guest_of_templates_means_the_same_or_is_written_out() {
    let world = World::new();
    std::fs::create_dir(world.path().join("more")).expect("makes");
    std::fs::write(world.path().join("more/disk.toml"), "disks = [{ id = \"root\", size = \"8M\" }]\n").expect("writes");
    let file = world.file("g", "", "include = [\"more/disk.toml\"]\n[ready]\nexec = [\"./probe\"]");
    world.vmctl(&["create", "g", "--file", file.to_str().expect("UTF-8")]).ok();
    world.vmctl(&["clone", "g", "h"]).ok();
    let shown = |name: &str| world.vmctl(&["show", name]).ok().out;
    let probe = world.path().join("probe").display().to_string();
    assert!(shown("h").contains(&probe) && shown("h").contains("8M"), "{}", shown("h"));
    assert!(world.guest("h").join("disks/root.raw").exists());
}

#[test]
fn destroy_asks_and_refuses_what_is_protected_or_runs() {
    let world = World::new();
    let file = world.make("g", "", "");
    world.make("p", "", "protected = true");
    world.vmctl(&["destroy", "g"]).fails(1, "add `--yes`");
    world.vmctl(&["destroy", "p", "--yes"]).fails(1, "`p` is protected");
    world.vmctl(&["start", "g", "p"]).ok();
    world.vmctl(&["destroy", "g", "--yes"]).fails(1, "`g` is running");
    world.vmctl(&["destroy", "p", "--yes", "--force"]).fails(1, "`p` is protected");
    assert_eq!(world.word("p"), "running");
    world.vmctl(&["destroy", "g", "--yes", "--force"]).ok().says("g is gone");
    assert!(!world.guest("g").exists());
    assert!(file.exists());
    std::fs::remove_file(world.path().join("p.toml")).expect("removes");
    world.vmctl(&["poweroff", "p"]).ok();
    world.vmctl(&["destroy", "p", "--yes"]).fails(1, "protected");
}

#[test]
fn a_create_that_fails_leaves_nothing() {
    let world = World::new();
    let file = world.file(
        "g",
        "",
        "disks = [{ id = \"a\", size = \"1M\" }, { id = \"b\", backend = \"file\", path = \"missing.img\" }]",
    );
    let file = file.to_str().expect("UTF-8");
    world.vmctl(&["create", "g", "--file", file]).fails(1, "missing.img");
    let left: Vec<_> =
        std::fs::read_dir(world.path().join("ds/guests")).expect("lists").map(|e| e.expect("entry").file_name()).collect();
    assert_eq!(left, [".lock"]);
    world.vmctl(&["create", "Bad Name", "--file", file]).fails(1, "is not a name for a guest");
    world.vmctl(&["create", "g", "--file", "nowhere.toml"]).fails(1, "nowhere.toml");
    world.vmctl(&["create", "g", "--template", "debiam"]).fails(1, "did you mean `debian`");
}

#[test]
fn an_edit_is_checked_before_it_is_saved() {
    let world = World::new();
    let file = world.make("g", "", "");
    let before = std::fs::read(&file).expect("reads");
    let edit = |editor: &str| world.command(&["edit", "g"]).env("VISUAL", editor).output().expect("runs").into();
    let said: crate::world::Said = edit("echo 'cpus = 0' >>");
    said.fails(1, "cpus").says("your text is kept in");
    assert_eq!(std::fs::read(&file).expect("reads"), before);
    let said: crate::world::Said = edit("true");
    said.ok().says("nothing changed");
    let said: crate::world::Said = edit("echo 'cpus = 3' >>");
    said.ok().says("g: saved");
    assert_eq!(world.state("g")["cpus"], 3);
    let said: crate::world::Said = edit("false");
    said.fails(1, "the editor `false` ended with");
}

#[test]
fn a_full_disk_is_said_and_costs_no_guest() {
    let world = World::new();
    world.make("g", "", "");
    let mut limited = world.command(&["start", "g"]);
    // No file may grow at all: what a full disk does to whoever writes.
    // SAFETY: setrlimit and signal are async-signal-safe, and nothing else runs between fork and exec.
    #[allow(unsafe_code)]
    unsafe {
        limited.pre_exec(|| {
            use nix::sys::resource::{Resource, setrlimit};
            use nix::sys::signal::{SigHandler, Signal, signal};
            signal(Signal::SIGXFSZ, SigHandler::SigIgn)?;
            Ok(setrlimit(Resource::RLIMIT_FSIZE, 0, 0)?)
        });
    }
    let said: crate::world::Said = limited.output().expect("runs").into();
    assert!(matches!(said.code, Some(1 | 2)), "{said:?}");
    assert!(said.err.contains("state.json") || said.err.contains("vmm.json"), "{said:?}");
    assert_eq!(world.word("g"), "stopped");
    world.vmctl(&["start", "g"]).ok();
}

#[test]
fn a_full_disk_while_the_guest_runs_loses_the_log_and_keeps_the_guest() {
    if !std::path::Path::new("/dev/full").exists() {
        return;
    }
    let world = World::new();
    world.make("g", "spam:10 sleep:100 say:done", "ready = { console = \"done\" }");
    std::os::unix::fs::symlink("/dev/full", world.guest("g").join("console.log")).expect("links");
    world.vmctl(&["start", "g", "--wait"]).ok();
    assert!(world.events("g").contains(&"log-lost".to_owned()));
    world.vmctl(&["stop", "g"]).ok();
}

#[test]
fn the_supervisor_stops_its_guest_when_the_host_ends_it() {
    let world = World::new();
    world.make("g", "", "");
    world.vmctl(&["start", "g"]).ok();
    let state = world.state("g");
    let (pid, engine) = (state["pid"].as_u64().expect("a pid"), state["engine_pid"].as_u64().expect("a pid"));
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid as i32), nix::sys::signal::Signal::SIGTERM).expect("sent");
    world.wait_for("g", "stopped");
    eventually("both are gone", || !alive(pid) && !alive(engine));
    let log = std::fs::read_to_string(world.guest("g").join("console.log")).expect("a log");
    assert!(log.contains("shutting down"), "{log}");
}

#[test]
fn run_stays_in_the_foreground_and_hands_the_debug_exit_through() {
    let world = World::new();
    world.make("g", "say:hello debug:16", "debug = { exit_port = true }");
    let said = world.vmctl(&["run", "g"]);
    assert_eq!(said.code, Some(33), "{said:?}");
    assert!(said.out.contains("hello"), "{said:?}");
    world.make("h", "exit:1", "");
    world.vmctl(&["run", "h"]).ok().says("powered off");
    world.make("i", "error:no_luck", "");
    // Not 1: that is what a guest ends with that writes 0.
    world.vmctl(&["run", "i"]).fails(4, "no luck");
    world.vmctl(&["run", "nobody"]).fails(4, "nobody");
    world.make("j", "debug:0", "debug = { exit_port = true }");
    assert_eq!(world.vmctl(&["run", "j"]).code, Some(1));
}

#[test]
fn a_datastore_with_a_long_path_works() {
    let world = World::new();
    let long = world.path().join("d".repeat(90));
    let long = long.to_str().expect("UTF-8");
    let file = world.file("g", "", "");
    let at = |arguments: &[&str]| world.vmctl(&[&["--datastore", long], arguments].concat());
    at(&["create", "g", "--file", file.to_str().expect("UTF-8")]).ok();
    at(&["start", "g"]).ok();
    at(&["stop", "g"]).ok().says("shut itself down");
}

#[test]
fn a_thousand_guests_are_listed_without_a_process_or_a_connection_each() {
    let world = World::new();
    let file = world.make("g0", "", "");
    for number in 1..1000 {
        let guest = world.guest(&format!("g{number}"));
        std::fs::create_dir_all(&guest).expect("makes");
        std::os::unix::fs::symlink(&file, guest.join("guest.toml")).expect("links");
        std::fs::copy(world.guest("g0").join("state.json"), guest.join("state.json")).expect("copies");
        std::fs::write(guest.join("lock"), "").expect("writes");
    }
    let said = world.vmctl(&["list", "-o", "name"]).ok();
    assert_eq!(said.out.lines().count(), 1000);
    let trace = world.path().join("trace");
    let traced = std::process::Command::new("strace")
        .args(["-f", "-o", trace.to_str().expect("UTF-8"), "-e", "trace=process,connect,socket"])
        .arg(env!("CARGO_BIN_EXE_vmctl"))
        .args(["--datastore", world.path().join("ds").to_str().expect("UTF-8"), "list", "-o", "name"])
        .output();
    // Without strace the promise is held by the benchmark's time alone.
    if traced.is_ok_and(|output| output.status.success()) {
        let text = std::fs::read_to_string(&trace).expect("a trace");
        // A few threads share the reading.
        let costly = text
            .lines()
            .filter(|line| !line.contains("CLONE_THREAD"))
            .filter(|line| ["clone", "fork", "execve", "connect", "socket"].iter().any(|call| line.contains(call)));
        assert!(costly.count() <= 1, "{text}");
    }
}

#[test]
fn autostart_starts_in_order_what_is_meant_to_start() {
    let world = World::new();
    world.make("web", "", "autostart = { enabled = true, after = [\"db\"] }");
    world.make("db", "say:up", "autostart = { enabled = true, wait = \"ready\" }\nready = { console = \"up\" }");
    world.make("other", "", "");
    world.make("broken", "error:broken", "autostart = true");
    world.vmctl(&["autostart"]).fails(1, "broken");
    assert_eq!(["web", "db", "other", "broken"].map(|name| world.word(name)), ["running", "running", "stopped", "stopped"]);
    let started = |name: &str| -> String {
        let text = std::fs::read_to_string(world.guest(name).join("events.jsonl")).expect("events");
        let line = text.lines().find(|line| line.contains("\"event\":\"starting\"")).expect("a start").to_owned();
        serde_json::from_str::<serde_json::Value>(&line).expect("JSON")["time"].as_str().expect("a time").to_owned()
    };
    assert!(started("db") < started("web"));
}

#[test]
fn an_owner_that_is_nobody_is_refused() {
    let world = World::new();
    world.make("g", "", "owner = \"no-such-user\"");
    world.vmctl(&["start", "g"]).fails(1, "no user of this host is called `no-such-user`");
}
