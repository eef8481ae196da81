//! Fleets: planned, applied, killed in the middle, started and stopped in order.

use std::io::BufRead;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::console::Terminal;
use crate::world::{Said, World, eventually, kill};

/// Writes `fleet.toml` with what all guests of these tests have, and `more`.
fn fleet(world: &World, more: &str) {
    std::fs::write(world.path().join("kernel"), "no kernel").expect("writes");
    let head = "name = \"room\"\n[defaults]\nmemory = \"64M\"\nkernel = { image = \"kernel\", cmdline = \"\" }\nstop_timeout = \"20s\"\n";
    std::fs::write(world.path().join("fleet.toml"), format!("{head}{more}")).expect("writes");
}

const THREE: &str = "[[guests]]\nname = \"web-{{ index }}\"\ncount = 2\n[[guests]]\nname = \"db\"\n\
                     disks = [{ id = \"data\", size = \"1M\" }]\n";

fn apply(world: &World, more: &[&str]) -> Said {
    world.vmctl(&[&["apply", "--yes", "--parallel", "1"], more].concat())
}

/// A plan as a document.
fn plan(world: &World, more: &[&str]) -> (Option<i32>, serde_json::Value) {
    let said = world.vmctl(&[&["plan", "-o", "jsonl"], more].concat());
    let document = serde_json::from_str(&said.out).unwrap_or_else(|_| panic!("{said:?}"));
    (said.code, document)
}

fn guest<'a>(plan: &'a serde_json::Value, name: &str) -> &'a serde_json::Value {
    plan["guests"].as_array().expect("guests").iter().find(|guest| guest["name"] == name).unwrap_or(&serde_json::Value::Null)
}

fn nothing_to_do(world: &World, more: &[&str]) {
    let (code, plan) = plan(world, more);
    assert_eq!((code, plan["guests"].as_array().map(Vec::len)), (Some(0), Some(0)), "{plan:#}");
}

#[test]
fn a_fleet_is_made_and_a_second_apply_finds_nothing_to_do() {
    let world = World::new();
    fleet(&world, THREE);
    assert_eq!(plan(&world, &[]).0, Some(2));
    world.vmctl(&["apply"]).fails(1, "nothing is applied without confirmation").says("add `--yes`");
    assert!(!world.guest("db").exists());
    apply(&world, &[]).ok().says("web-1 is made");
    nothing_to_do(&world, &[]);
    apply(&world, &[]).ok().says("room: nothing to do");
    // Guests of a fleet are guests.
    world.vmctl(&["start", "web-1"]).ok();
    nothing_to_do(&world, &[]);
    assert_eq!(world.word("web-1"), "running");
}

#[test]
fn changes_are_sorted_by_when_they_take_effect_and_a_running_guest_is_booted_again_only_when_asked() {
    let world = World::new();
    fleet(&world, THREE);
    apply(&world, &[]).ok();
    world.vmctl(&["start", "web-1"]).ok();
    fleet(&world, &THREE.replace("count = 2", "count = 2\nmemory = \"96M\"\ndescription = \"{{ name }}\""));
    let (code, document) = plan(&world, &[]);
    assert_eq!(code, Some(2));
    let web = guest(&document, "web-1");
    let change = |class: &str| {
        web["changes"].as_array().expect("changes").iter().find(|change| change["class"] == class).expect("one").clone()
    };
    let (live, next) = (change("live"), change("next-boot"));
    assert_eq!((live["key"].as_str(), live["after"].as_str()), (Some("description"), Some("\"web-1\"")));
    assert_eq!(
        (next["key"].as_str(), next["before"].as_str(), next["after"].as_str()),
        (Some("memory.size"), Some("\"64M\""), Some("\"96M\""))
    );
    assert_eq!((next["source"].as_str(), next["line"].as_u64()), (Some("fleet.toml"), Some(9)));
    assert!(web["restart"] == true && guest(&document, "web-2")["restart"] == false);
    apply(&world, &[]).ok();
    assert_eq!(world.state("web-1")["boots"], 1);
    // Nothing is left to be written, but a restart is due, and is done once when it is asked for.
    assert_eq!(plan(&world, &[]).0, Some(0));
    assert_eq!(plan(&world, &["--reboot", "when-needed"]).0, Some(2));
    apply(&world, &["--reboot", "when-needed"]).ok().says("runs again");
    eventually("it has booted again", || world.state("web-1")["boots"] == 2);
    nothing_to_do(&world, &["--reboot", "when-needed"]);
    // What only commands read needs no boot.
    fleet(&world, &THREE.replace("count = 2", "count = 2\nmemory = \"96M\"\ndescription = \"another\""));
    apply(&world, &["--reboot", "when-needed"]).ok();
    assert_eq!(world.state("web-1")["boots"], 2);
}

#[test]
fn drift_is_found_shown_and_put_right() {
    let world = World::new();
    fleet(&world, THREE);
    apply(&world, &[]).ok();
    let uuid = world.state("db")["uuid"].clone();
    std::fs::remove_file(world.guest("db").join("disks/data.raw")).expect("removes");
    let state = world.guest("db").join("state.json");
    let edited = std::fs::read_to_string(&state)
        .expect("reads")
        .replace(uuid.as_str().expect("text"), "00000000-1111-4222-8333-444444444444");
    std::fs::write(&state, edited).expect("writes");
    let file = world.guest("web-1").join("guest.toml");
    let text = std::fs::read_to_string(&file).expect("reads");
    std::fs::write(&file, text.replace("64M", "128M")).expect("writes");
    std::fs::write(world.guest("web-2").join("guest.toml"), "memory = {").expect("writes");
    let (code, document) = plan(&world, &[]);
    assert_eq!(code, Some(2));
    let drift = |name: &str| -> Vec<String> {
        let changes = guest(&document, name)["changes"].as_array().expect("changes").clone();
        changes
            .iter()
            .filter(|change| change["drift"] == true)
            .map(|change| change["key"].as_str().expect("a key").to_owned())
            .collect()
    };
    assert_eq!(drift("db"), ["state.uuid", "disks.data"]);
    assert_eq!(drift("web-1"), ["memory.size"]);
    assert_eq!(drift("web-2"), ["guest.toml"]);
    apply(&world, &[]).ok();
    nothing_to_do(&world, &[]);
    assert_eq!(world.state("db")["uuid"], uuid);
    assert_eq!(std::fs::read_to_string(&file).expect("reads"), text);
    assert!(world.guest("db").join("disks/data.raw").exists());
}

#[test]
fn a_prune_removes_what_is_of_this_fleet_and_not_protected_and_nothing_else() {
    let world = World::new();
    fleet(&world, &format!("{THREE}[[guests]]\nname = \"kept\"\nprotected = true\n[[guests]]\nname = \"renamed\"\n"));
    apply(&world, &[]).ok();
    world.make("mine", "", "");
    world.vmctl(&["rename", "renamed", "mine-too"]).ok();
    world.vmctl(&["start", "web-2"]).ok();
    fleet(&world, &THREE.replace("count = 2", "count = 1"));
    // Without the word nothing goes.
    let (code, document) = plan(&world, &[]);
    assert_eq!((code, guest(&document, "web-2")["action"].as_str()), (Some(0), Some("leave")), "{document:#}");
    apply(&world, &[]).ok().says("nothing to do");
    world.vmctl(&["apply", "--prune"]).fails(1, "nothing is applied without confirmation").says("add `--yes` beside `--prune`");
    assert_eq!(world.word("web-2"), "running");
    apply(&world, &["--prune"]).fails(1, "`kept` is protected").says("web-2 is gone");
    for name in ["web-1", "db", "kept", "mine", "mine-too"] {
        assert!(world.guest(name).is_dir(), "{name}");
    }
    assert!(!world.guest("web-2").exists());
}

#[test]
fn a_disk_is_never_made_smaller_without_a_prune() {
    let world = World::new();
    fleet(&world, THREE);
    apply(&world, &[]).ok();
    let disk = world.guest("db").join("disks/data.raw");
    fleet(&world, &THREE.replace("\"1M\"", "\"2M\""));
    apply(&world, &[]).ok();
    assert_eq!(std::fs::metadata(&disk).expect("there").len(), 2 << 20);
    fleet(&world, THREE);
    world.vmctl(&["plan"]).fails(1, "`--prune` allows it").says("recreate");
    apply(&world, &[]).fails(1, "disk `data` would be made anew");
    assert_eq!(std::fs::metadata(&disk).expect("there").len(), 2 << 20);
    world.vmctl(&["start", "db"]).ok();
    apply(&world, &["--prune"]).fails(1, "`db` runs").says("vmctl stop db");
    world.vmctl(&["stop", "db"]).ok();
    apply(&world, &["--prune"]).ok();
    assert_eq!(std::fs::metadata(&disk).expect("there").len(), 1 << 20);
    nothing_to_do(&world, &["--prune"]);
    // A disk that is left out stays, and is told of, until it may go.
    fleet(&world, &THREE.replace("disks = [{ id = \"data\", size = \"1M\" }]\n", ""));
    apply(&world, &[]).ok();
    world.vmctl(&["plan"]).ok().says("is not a disk of it any more");
    assert!(disk.exists());
    apply(&world, &["--prune"]).ok();
    assert!(!disk.exists());
}

#[test]
fn a_guest_of_somebody_else_is_left_alone_and_said() {
    let world = World::new();
    world.make("db", "", "");
    fleet(&world, THREE);
    world.vmctl(&["plan"]).fails(1, "`db` exists already and belongs to no fleet");
    apply(&world, &[]).fails(1, "belongs to no fleet").says("web-2 is made");
    let text = std::fs::read_to_string(world.path().join("fleet.toml")).expect("reads");
    let other = world.path().join("other.toml");
    std::fs::write(&other, text.replace("\"room\"", "\"other\"").replace("name = \"db\"", "name = \"third\"")).expect("writes");
    world.vmctl(&["apply", "--yes", "other.toml"]).fails(1, "`web-1` belongs to the fleet `room`").says("third is made");
    // Each sees its own.
    std::fs::write(&other, "name = \"other\"\n").expect("writes");
    world.vmctl(&["apply", "--yes", "--prune", "other.toml"]).ok().says("third is gone");
    assert!(world.guest("web-1").is_dir());
}

#[test]
fn a_step_that_fails_is_undone_and_the_others_go_on() {
    let world = World::new();
    fleet(&world, THREE);
    apply(&world, &[]).ok();
    let before = std::fs::read_to_string(world.guest("db").join("guest.toml")).expect("reads");
    // The second of its new disks cannot be made.
    let disks = "disks = [{ id = \"data\", size = \"1M\" }, { id = \"one\", size = \"1M\" }, { id = \"two\", path = \"no/such/place\", size = \"1M\" }]";
    fleet(
        &world,
        &THREE.replace("disks = [{ id = \"data\", size = \"1M\" }]", disks).replace("count = 2", "count = 2\nmemory = \"96M\""),
    );
    apply(&world, &[]).fails(1, "make disk `two`").says("web-2 has changed");
    assert_eq!(std::fs::read_to_string(world.guest("db").join("guest.toml")).expect("reads"), before);
    let disks: Vec<_> =
        std::fs::read_dir(world.guest("db").join("disks")).expect("lists").map(|e| e.expect("one").file_name()).collect();
    assert_eq!(disks, ["data.raw"]);
    assert!(!world.path().join("ds/fleets/room/journal.jsonl").exists());
    world.vmctl(&["plan", "--target", "nobody"]).fails(1, "no guest of the fleet `room` matches `nobody`");
    assert_eq!(plan(&world, &["--target", "web-*"]).0, Some(0));
}

#[test]
fn a_second_apply_says_who_is_at_work_or_waits() {
    let world = World::new();
    // The hook holds the first apply up for as long as the file is missing.
    let hook =
        "hooks = [{ event = \"post-create\", command = [\"/bin/sh\", \"-c\", \"while ! [ -e go ]; do sleep 0.05; done\"] }]";
    let hook = hook.replace("[ -e go ]", &format!("[ -e {}/go ]", world.path().display()));
    fleet(&world, &THREE.replace("count = 2", &format!("count = 1\n{hook}")));
    let mut first = world.command(&["apply", "--yes", "-q"]).spawn().expect("runs");
    eventually("the first is at work", || world.guest("web-1").is_dir());
    let said = apply(&world, &[]).fails(1, "is at work on the fleet `room`").says("add `--wait`");
    assert!(said.err.contains(&format!("(process {})", first.id())), "{said:?}");
    let mut second = world.command(&["apply", "--yes", "--wait"]).stderr(std::process::Stdio::piped()).spawn().expect("runs");
    let mut words = std::io::BufReader::new(second.stderr.take().expect("piped")).lines().map(|line| line.expect("text"));
    assert!(words.next().expect("a line").contains("waiting for another apply"));
    std::fs::write(world.path().join("go"), "").expect("writes");
    assert!(first.wait().expect("ends").success());
    assert!(words.any(|line| line.contains("nothing to do")));
    assert!(second.wait().expect("ends").success());
}

/// The guests' disks hold what was written to them, wherever an apply is killed, and the next one finishes.
#[test]
fn an_apply_that_is_killed_after_any_line_of_its_journal_is_finished_by_the_next_and_nothing_is_lost() {
    let world = World::new();
    let first = format!("{THREE}[[guests]]\nname = \"old\"\ndisks = [{{ id = \"data\", size = \"1M\" }}]\n");
    let second = THREE
        .replace("count = 2", "count = 3\nmemory = \"96M\"")
        .replace("{ id = \"data\", size = \"1M\" }", "{ id = \"data\", size = \"2M\" }, { id = \"more\", size = \"1M\" }");
    let data = world.guest("db").join("disks/data.raw");
    let reset = || {
        fleet(&world, "");
        apply(&world, &["--prune"]).ok();
        fleet(&world, &first);
        apply(&world, &[]).ok();
        std::fs::write(&data, [b'x'; 1 << 20]).expect("writes");
        world.vmctl(&["start", "web-1"]).ok();
    };
    let mut killed = 0;
    for line in 1..40 {
        reset();
        fleet(&world, &second);
        let arguments = ["apply", "--yes", "--prune", "--parallel", "1", "--reboot", "when-needed"];
        let status =
            world.command(&arguments).env("VMCTL_TEST_APPLY_KILL_AFTER", line.to_string()).output().expect("runs").status;
        if status.code() == Some(0) {
            break;
        }
        assert_eq!(status.signal(), Some(9), "line {line}");
        killed += 1;
        assert!(world.vmctl(&["plan", "--prune", "--reboot", "when-needed"]).out.contains("was interrupted"), "line {line}");
        world.vmctl(&arguments).ok();
        nothing_to_do(&world, &["--prune", "--reboot", "when-needed"]);
        assert_eq!(&std::fs::read(&data).expect("reads")[..1 << 20], [b'x'; 1 << 20], "line {line}");
        assert_eq!(std::fs::metadata(&data).expect("there").len(), 2 << 20, "line {line}");
        assert!(world.guest("web-3").is_dir() && !world.guest("old").exists(), "line {line}");
        eventually("it runs with its new memory", || world.state("web-1")["boots"] == 2);
        assert!(!world.path().join("ds/fleets/room/journal.jsonl").exists());
    }
    // Begin; db, web-1, web-2 changed and done, web-1 restarted; web-3 made, old removed, and done.
    assert_eq!(killed, 12);
}

#[test]
fn an_apply_that_is_killed_at_any_moment_is_finished_by_the_next() {
    let world = World::new();
    let data = world.guest("db").join("disks/data.raw");
    fleet(&world, THREE);
    apply(&world, &[]).ok();
    std::fs::write(&data, [b'x'; 1 << 20]).expect("writes");
    for round in 0..12u64 {
        let more = format!("count = {}\nmemory = \"{}M\"", 2 + round % 3, 64 + round);
        fleet(&world, &THREE.replace("count = 2", &more));
        let mut child = world.command(&["apply", "--yes", "--prune", "-q"]).spawn().expect("runs");
        std::thread::sleep(Duration::from_millis(round * 7 % 40));
        let _ = child.kill();
        let _ = child.wait();
        apply(&world, &["--prune"]).ok();
        nothing_to_do(&world, &["--prune"]);
        assert_eq!(std::fs::read(&data).expect("reads"), vec![b'x'; 1 << 20], "round {round}");
    }
}

/// Every file below a directory that holds the bytes.
fn holders(directory: &Path, bytes: &[u8], found: &mut Vec<std::path::PathBuf>) {
    for entry in std::fs::read_dir(directory).expect("lists").flatten() {
        let path = entry.path();
        if path.is_dir() {
            holders(&path, bytes, found);
        } else if path.is_file() && std::fs::read(&path).is_ok_and(|text| text.windows(bytes.len()).any(|part| part == bytes)) {
            found.push(path);
        }
    }
}

#[test]
fn a_secret_is_in_one_file_of_this_user_and_nowhere_else() {
    use std::os::unix::fs::PermissionsExt;
    let world = World::new();
    let secrets = "[[secrets]]\nid = \"env\"\nenv = \"ROOM_SECRET\"\n[[secrets]]\nid = \"told\"\ncommand = [\"/bin/sh\", \"-c\", \"printf 'hunter%s\\\\n' 2-told\"]\n\
                   [[guests]]\nname = \"db\"\nhooks = [{ event = \"pre-start\", command = [\"/bin/sh\", \"-c\", \"cat $0 $1 > seen\", \"{{ secret.env }}\", \"{{ secret.told }}\"] }]\n";
    let secrets = secrets.replace("> seen", &format!("> {}/seen", world.path().display()));
    fleet(&world, &secrets);
    world.vmctl(&["plan"]).fails(1, "secret `env`: the environment has no `ROOM_SECRET`");
    let run = |arguments: &[&str], value: &str| -> Said {
        let said: Said = world.command(arguments).env("ROOM_SECRET", value).output().expect("runs").into();
        assert!(!said.out.contains("hunter2") && !said.err.contains("hunter2"), "{said:?}");
        said
    };
    run(&["plan"], "hunter2-env").fails(2, "").says("secret told");
    run(&["plan", "-o", "json"], "hunter2-env").fails(2, "");
    run(&["apply", "--yes"], "hunter2-env").ok();
    run(&["render"], "hunter2-env").ok().says("fleets/room/secrets/env");
    assert_eq!(run(&["plan"], "hunter2-env").code, Some(0));
    run(&["start", "db"], "").ok();
    assert_eq!(std::fs::read_to_string(world.path().join("seen")).expect("the hook ran"), "hunter2-envhunter2-told");
    std::fs::remove_file(world.path().join("seen")).expect("removes");
    run(&["plan"], "hunter2-other").fails(2, "").says("secret env: it is new, or another one");
    run(&["apply", "--yes"], "hunter2-other").ok();
    let mut found = Vec::new();
    holders(world.path(), b"hunter2", &mut found);
    found.sort();
    let kept = world.path().join("ds/fleets/room/secrets");
    assert_eq!(found, [kept.join("env"), kept.join("told")]);
    let mode = |path: &Path| std::fs::metadata(path).expect("there").permissions().mode() & 0o777;
    assert_eq!((mode(&kept), mode(&kept.join("env"))), (0o700, 0o600));
}

#[test]
fn on_a_terminal_an_apply_asks_and_a_prune_asks_for_the_name() {
    let world = World::new();
    fleet(&world, THREE);
    let mut terminal = Terminal::open(&world, &["apply"]);
    terminal.wait_for("Apply this?");
    terminal.type_in("n");
    assert_eq!(terminal.code(), Some(1));
    assert!(!world.guest("db").exists());
    let mut terminal = Terminal::open(&world, &["apply"]);
    terminal.wait_for("Apply this?");
    terminal.type_in("y");
    assert_eq!(terminal.code(), Some(0));
    fleet(&world, "");
    let mut terminal = Terminal::open(&world, &["apply", "--prune"]);
    terminal.wait_for("Apply this?");
    terminal.type_in("y");
    terminal.wait_for("Type `room` to continue");
    terminal.type_in("yes\r");
    assert_eq!(terminal.code(), Some(1));
    assert!(world.guest("db").exists());
    let mut terminal = Terminal::open(&world, &["apply", "--prune"]);
    terminal.wait_for("Apply this?");
    terminal.type_in("y");
    terminal.wait_for("Type `room` to continue");
    terminal.type_in("room\r");
    assert_eq!(terminal.code(), Some(0));
    assert!(!world.guest("db").exists());
}

/// When each of these guests had an event of that kind, in the order of time.
fn order(world: &World, kind: &str, names: &[&str]) -> Vec<String> {
    let mut seen = Vec::new();
    for name in names {
        let text = std::fs::read_to_string(world.guest(name).join("events.jsonl")).expect("events");
        let events = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).expect("JSON"));
        seen.extend(events.filter(|event| event["event"] == kind).map(|event| (event["time"].to_string(), (*name).to_owned())));
    }
    seen.sort();
    seen.into_iter().map(|(_, name)| name).collect()
}

#[test]
fn guests_come_up_in_their_order_and_go_down_in_reverse() {
    let world = World::new();
    let ready = "ready = { console = \"up\" }\nautostart = { enabled = true, wait = \"ready\", AFTER }";
    let part = |text: &str, after: &str| {
        ready.replace("AFTER", after) + &format!("\nkernel = {{ image = \"kernel\", cmdline = \"{text}\" }}\n")
    };
    let guests = format!(
        "[[guests]]\nname = \"a-last\"\n{}[[guests]]\nname = \"db\"\n{}[[guests]]\nname = \"web\"\n{}[[guests]]\nname = \"off\"\n",
        part("say:up", "order = 200"),
        part("sleep:400 say:up", ""),
        part("say:up", "after = [\"db\"]"),
    );
    fleet(&world, &guests);
    apply(&world, &[]).ok();
    world.vmctl(&["autostart", "start"]).ok().says("web is ready");
    let names = ["web", "db", "a-last", "off"];
    assert_eq!(order(&world, "running", &names), ["db", "web", "a-last"]);
    assert!(order(&world, "ready", &["db"]).len() == 1);
    world.vmctl(&["up"]).ok().says("off is running");
    assert_eq!(world.state("db")["boots"], 1);
    world.vmctl(&["down"]).ok().says("db has stopped: the guest shut itself down");
    assert_eq!(order(&world, "exited", &["web", "db", "a-last"]), ["a-last", "web", "db"]);
    assert_eq!(world.word("off"), "stopped");
    // A name brings those before it.
    world.vmctl(&["up", "web"]).ok();
    assert_eq!((world.word("db"), world.word("a-last")), ("running".into(), "stopped".into()));
    world.vmctl(&["autostart", "list"]).ok().says("a-last");
    world.vmctl(&["autostart", "graph"]).ok().says("web (until ready) <- db");
    world.vmctl(&["graph"]).ok().says("<svg");
}

#[test]
fn up_and_down_in_a_folder_with_a_fleet_file_mean_that_fleet_and_no_other_guest() {
    let world = World::new();
    world.make("other", "", "autostart = true");
    world.make("of-its-name", "", "");
    fleet(&world, &format!("{THREE}[[guests]]\nname = \"of-its-name\"\n"));
    apply(&world, &[]).fails(1, "exists already and belongs to no fleet");
    world.vmctl(&["up"]).fails(1, "exists already and belongs to no fleet");
    let words = |world: &World| ["db", "web-1", "web-2", "other", "of-its-name"].map(|name| world.word(name) == "running");
    assert_eq!(words(&world), [true, true, true, false, false]);
    world.vmctl(&["start", "other"]).ok();
    world.vmctl(&["down"]).ok().says("db has stopped").does_not_say("other");
    assert_eq!(words(&world), [false, false, false, true, false]);
    // From elsewhere the file is named; one guest is, too.
    let elsewhere = world.path().join("elsewhere");
    std::fs::create_dir(&elsewhere).expect("makes");
    let from = |arguments: &[&str]| Said::from(world.command(arguments).current_dir(&elsewhere).output().expect("runs"));
    from(&["up", "../fleet.toml"]).fails(1, "belongs to no fleet");
    from(&["down", "web-*"]).ok();
    assert_eq!(words(&world), [true, false, false, true, false]);
    from(&["down", "../fleet.toml", "other"]).fails(1, "cannot be combined");
    from(&["down", "../other.toml"]).ok().says("other has stopped");
    from(&["start", "other"]).ok();
    // Anything wider is asked about, and where there is nobody to ask it is not done.
    from(&["down"]).fails(1, "nothing says which guests are meant").says("`--all`");
    from(&["up"]).fails(1, "nothing says which guests are meant").says("`vmctl autostart start`");
    assert_eq!(words(&world), [true, false, false, true, false]);
    let mut command = world.command(&["down"]);
    let mut terminal = Terminal::of(command.current_dir(&elsewhere));
    terminal.wait_for("Stop 2 guests of this datastore (db, other)? [y/N]");
    terminal.type_in("y\r");
    assert_eq!(terminal.code(), Some(0));
    from(&["down"]).ok();
    from(&["up", "--all"]).ok();
    assert_eq!(words(&world), [true; 5]);
    // What the unit of an earlier version runs as the host goes down.
    let mut unit = world.command(&["down", "--timeout", "60s"]);
    Said::from(unit.current_dir("/").env("SERVICE_RESULT", "success").output().expect("runs")).ok();
    assert_eq!(words(&world), [false; 5]);
}

#[test]
fn a_fleet_is_removed_at_once_and_asked_about_once() {
    let world = World::new();
    world.make("other", "", "");
    fleet(&world, THREE);
    apply(&world, &[]).ok();
    // One that the file does not name any more is one of it.
    fleet(&world, "[[guests]]\nname = \"web-{{ index }}\"\ncount = 2\n");
    world.vmctl(&["destroy", "--fleet"]).fails(1, "the fleet `room` is not removed without confirmation").says("db");
    world.vmctl(&["start", "web-2"]).ok();
    world.vmctl(&["destroy", "--fleet", "--yes"]).fails(1, "`web-2` of the fleet `room` is running").says("vmctl down");
    let mut terminal = Terminal::of(&mut world.command(&["destroy", "--fleet", "fleet.toml", "--force"]));
    terminal.wait_for("Remove the fleet room: 3 guests and all disks? [y/N]");
    terminal.type_in("y\r");
    assert_eq!(terminal.code(), Some(0));
    assert_eq!(world.vmctl(&["list", "-o", "name"]).ok().out, "other\n");
    world.vmctl(&["destroy", "--fleet"]).ok().says("nothing of the fleet `room` is there");
    assert!(world.path().join("fleet.toml").is_file());
}

#[test]
fn a_fleet_with_a_protected_guest_stays_whole() {
    let world = World::new();
    fleet(&world, &format!("{THREE}protected = true\n"));
    apply(&world, &[]).ok();
    world.vmctl(&["destroy", "--fleet", "--yes"]).fails(1, "`db` is protected");
    assert!(world.guest("web-1").exists() && world.guest("db").exists());
}

#[test]
fn all_answers_for_every_guest_that_is_left() {
    let world = World::new();
    for name in ["a", "b", "c"] {
        world.make(name, "", "");
    }
    let mut terminal = Terminal::of(&mut world.command(&["destroy", "*"]));
    terminal.wait_for("Remove a and its disks? [y/N/all]");
    terminal.type_in("n\r");
    terminal.wait_for("Remove b and its disks? [y/N/all]");
    terminal.type_in("all\r");
    assert_eq!(terminal.code(), Some(1));
    assert_eq!(world.vmctl(&["list", "-o", "name"]).ok().out, "a\n");
}

#[test]
fn guests_that_do_not_listen_are_stopped_within_the_time_that_there_is() {
    let world = World::new();
    let deaf = "kernel = { image = \"kernel\", cmdline = \"deaf\" }\nautostart = { enabled = true, order = ORDER }\n";
    let guests: String =
        (1..=3).map(|n| format!("[[guests]]\nname = \"deaf-{n}\"\n{}", deaf.replace("ORDER", &n.to_string()))).collect();
    fleet(&world, &guests);
    apply(&world, &[]).ok();
    world.vmctl(&["up"]).ok();
    let started = Instant::now();
    world.vmctl(&["down", "--timeout", "3s"]).ok().says("was powered off");
    // Each of the three has 20 s by its file.
    assert!(started.elapsed() < Duration::from_secs(15), "{:?}", started.elapsed());
    assert_eq!(order(&world, "exited", &["deaf-1", "deaf-2", "deaf-3"]), ["deaf-3", "deaf-2", "deaf-1"]);
}

#[test]
fn a_circle_is_shown_and_its_guests_are_not_started() {
    let world = World::new();
    world.make("a", "", "autostart = { enabled = true, after = [\"b\"] }");
    world.make("b", "", "autostart = { enabled = true, after = [\"a\"] }");
    world.make("c", "", "autostart = true");
    world.vmctl(&["autostart", "start"]).fails(1, "guests wait for each other in a circle: a -> b -> a").says("c is running");
    assert_eq!(world.word("a"), "stopped");
}

#[test]
fn a_supervisor_that_was_killed_holds_nothing_up() {
    let world = World::new();
    fleet(&world, THREE);
    apply(&world, &[]).ok();
    world.vmctl(&["start", "db"]).ok();
    kill(world.state("db")["pid"].as_u64().expect("a pid"));
    eventually("it is stopped", || world.word("db") == "stopped");
    fleet(&world, &THREE.replace("\"1M\"", "\"2M\""));
    apply(&world, &[]).ok();
    nothing_to_do(&world, &[]);
}
