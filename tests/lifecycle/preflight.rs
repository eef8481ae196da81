//! What is known before anything is made or started: told with its place, by every command alike, with the same status.

use std::net::TcpListener;

use crate::console::Terminal;
use crate::world::{World, eventually};

fn text(path: &std::path::Path) -> &str {
    path.to_str().expect("UTF-8")
}

#[test]
fn files_that_are_missing_are_told_with_their_place_by_check_and_by_start_alike() {
    let world = World::new();
    let file = world.make("g", "", "");
    std::fs::remove_file(world.path().join("kernel")).expect("removed");
    let words = format!("{}:2:20: `kernel.image`: there is no file `{}`", file.display(), world.path().join("kernel").display());
    world.vmctl(&["check", text(&file)]).fails(1, &words);
    world.vmctl(&["check", "g"]).fails(1, &words);
    world.vmctl(&["check", "--offline", "g"]).ok();
    for command in [&["start", "g"][..], &["up", "g"], &["restart", "g"]] {
        world.vmctl(command).fails(1, &words);
    }
    world.vmctl(&["run", "g"]).fails(4, &words);
    assert_eq!(world.word("g"), "stopped");
}

#[test]
fn what_a_guest_is_made_of_is_looked_at_before_anything_is_made() {
    let world = World::new();
    for (more, line, words) in [
        ("disks = [{ id = \"d\", source = \"./none.raw\" }]", "3:31", "disk `d`: there is no file"),
        ("disks = [{ id = \"d\", source = \"debian-99\" }]", "3:31", "no image is called `debian-99`"),
        ("disks = [{ id = \"d\", source = \"https://example.org/a.raw\" }]", "3:31", "there is no checksum to hold"),
        ("disks = [{ id = \"d\", path = \"none.raw\" }]", "3:29", "disk `d`: there is no file"),
        ("cloud-init = { ssh_keys = [\"none.pub\"] }", "3:27", "none.pub"),
    ] {
        let file = world.file("g", "", more);
        let place = format!("{}:{line}: ", file.display());
        let said = world.vmctl(&["check", text(&file)]).fails(1, words);
        assert!(said.err.contains(&place), "no {place} in {said:?}");
        let said = world.vmctl(&["create", "g", "--file", text(&file)]).fails(1, words);
        assert!(said.err.contains(&place) && !said.err.contains(".new-"), "no {place} in {said:?}");
        let said = world.vmctl(&["launch", "--file", text(&file)]).fails(1, words);
        assert!(said.err.contains(&place), "no {place} in {said:?}");
        assert!(!world.guest("g").exists());
        world.vmctl(&["check", "--offline", text(&file)]).ok();
    }
}

#[test]
fn a_port_in_use_is_told_with_its_forward_and_who_has_it() {
    let world = World::new();
    let listener = TcpListener::bind("127.0.0.1:0").expect("binds");
    let port = listener.local_addr().expect("bound").port();
    let forwards = |port: u16| format!("[[nics]]\nid = \"net0\"\nforwards = [{{ host_port = {port}, guest_port = 22 }}]");
    let file = world.make("g", "", &forwards(port));
    let words = format!("{}:5:27: port {port} of the host, which leads to port 22 of the guest, is in use by `", file.display());
    for command in [&["check", "g"][..], &["start", "g"], &["check", text(&file)]] {
        world.vmctl(command).fails(1, &words).says(&format!("(process {})", std::process::id())).says("host_port");
    }
    drop(listener);
    world.vmctl(&["check", "g"]).ok();
    // Another guest has it: the fake engine listens nowhere, so this does in its place.
    world.vmctl(&["start", "g"]).ok();
    let _listener = TcpListener::bind(("127.0.0.1", port)).expect("binds");
    world.vmctl(&["check", "g"]).ok();
    world.make("h", "", &forwards(port));
    world.vmctl(&["start", "h"]).fails(1, "is in use by guest `g`").says("vmctl stop g");
}

#[test]
fn a_start_waits_for_a_port_that_an_ended_process_is_giving_up() {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, getsockname, socket};
    use std::os::fd::AsRawFd;
    let world = World::new();
    // A port that is taken and at which nobody listens: so is one whose process is about to be gone.
    let held = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).expect("a socket");
    bind(held.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, 0)).expect("binds");
    let port = getsockname::<SockaddrIn>(held.as_raw_fd()).expect("bound").port();
    world.make("g", "", &format!("nics = [{{ id = \"n\", forwards = [{{ host_port = {port}, guest_port = 22 }}] }}]"));
    world.vmctl(&["check", "g"]).fails(1, "is in use");
    let giving_up = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(700));
        drop(held);
    });
    world.vmctl(&["start", "g"]).ok();
    giving_up.join().expect("given up");
}

#[test]
fn more_memory_than_the_host_has_is_refused_until_it_is_insisted_on() {
    let world = World::new();
    let file = world.make("g", "", "");
    let less = std::fs::read_to_string(&file).expect("reads");
    std::fs::write(&file, less.replace("\"64M\"", "\"4096G\"")).expect("writes");
    let words = format!("{}:1:10: 4TiB of memory is more than this host has", file.display());
    world.vmctl(&["check", "g"]).fails(1, &words).says("memory.overcommit = true");
    world.vmctl(&["start", "g"]).fails(1, &words);
    let insists = less.replace("memory = \"64M\"", "memory = { size = \"4096G\", overcommit = true }");
    std::fs::write(&file, insists).expect("writes");
    world.vmctl(&["start", "g"]).ok().does_not_say("available");
}

#[test]
fn a_disk_that_no_file_system_here_holds_is_told_before_it_is_made() {
    let world = World::new();
    let file = world.file("g", "", "disks = [{ id = \"d\", size = \"1P\" }]");
    // A limit on files stands for a file system that takes no larger one.
    let limited = |arguments: &str| {
        let script = format!("ulimit -f 1000; exec '{}' {arguments}", env!("CARGO_BIN_EXE_vmctl"));
        let mut shell = std::process::Command::new("bash");
        let world = world.command(&[]);
        shell.args(["-c", &script]).env_clear().envs(world.get_envs().filter_map(|(key, value)| Some((key, value?))));
        shell.current_dir(world.get_current_dir().expect("set"));
        crate::world::Said::from(shell.output().expect("runs"))
    };
    let words = format!("{}:3:29: disk `d`: ", file.display());
    limited(&format!("check {}", text(&file))).fails(1, &words).says("cannot hold a file of 1PiB");
    limited(&format!("create g --file {}", text(&file))).fails(1, &words);
    assert!(!world.guest("g").exists());
}

#[test]
fn a_path_may_begin_at_home_and_a_set_may_too() {
    let world = World::new();
    std::fs::create_dir(world.path().join("in-home")).expect("makes");
    std::fs::write(world.path().join("in-home/kernel"), "a kernel").expect("writes");
    for path in ["~/in-home/kernel", "$HOME/in-home/kernel"] {
        let file = world.file("g", "", "");
        let before = std::fs::read_to_string(&file).expect("reads");
        std::fs::write(&file, before.replace("image = \"kernel\"", &format!("image = \"{path}\""))).expect("writes");
        world.vmctl(&["check", text(&file)]).ok();
    }
    let file = world.file_for_copies("h", "");
    world.vmctl(&["create", "h", "--file", text(&file), "--set", "kernel.image=~/in-home/kernel"]).ok();
    let text = std::fs::read_to_string(world.guest("h").join("guest.toml")).expect("reads");
    assert!(text.contains(&format!("\"{}/in-home/kernel\"", world.path().display())), "{text}");
}

#[test]
fn a_source_needs_no_loader_and_one_that_the_engine_cannot_boot_is_refused() {
    let world = World::new().with_cache();
    let file = world.path().join("g.toml");
    let write = |source: &str| std::fs::write(&file, format!("disks = [{{ id = \"root\", source = \"{source}\" }}]\n"));
    write("debian-13").expect("writes");
    world.vmctl(&["check", "g.toml"]).ok();
    world.vmctl(&["show", "--explain", "g.toml"]).ok().says("loader = \"grub\"");
    write("freebsd-15.1").expect("writes");
    world.vmctl(&["check", "g.toml"]).fails(1, "g.toml:1:34: image `freebsd-15.1` boots with `bhyveload`");
    world.vmctl(&["launch", "freebsd-15.1", "g"]).fails(1, "image `freebsd-15.1` boots with `bhyveload`");
    write("debian-12-built").expect("writes");
    world.vmctl(&["check", "g.toml"]).fails(1, "has no boot menu").says("vmctl launch debian-12-built");
    assert!(!world.guest("g").exists());
    world.vmctl(&["image", "list", "--all"]).ok().says("needs bhyve (bhyveload)");
}

#[test]
fn a_launch_that_fails_leaves_nothing_behind() {
    let world = World::new();
    let listener = TcpListener::bind("127.0.0.1:0").expect("binds");
    let port = listener.local_addr().expect("bound").port();
    let taken = format!("nics = [{{ id = \"net0\", forwards = [{{ host_port = {port}, guest_port = 22 }}] }}]");
    let hook = "[[hooks]]\nevent = \"pre-start\"\ncommand = [\"/bin/false\"]\non_failure = \"fail\"";
    for (part, more, words) in
        [("", taken.as_str(), "is in use"), ("", hook, "hook `pre-start` failed"), ("error:no_engine", "", "no")]
    {
        let file = world.file("g", part, more);
        let said = world.vmctl(&["launch", "--file", text(&file)]);
        assert!(said.code != Some(0) && said.err.contains(words), "{said:?}");
        assert!(!world.guest("g").exists(), "{said:?}");
        assert!(!said.err.contains(".new-"), "{said:?}");
    }
    // A guest that runs stays, whatever it says.
    let file = world.file("g", "say:boot", "ready.timeout = \"200ms\"");
    world.vmctl(&["launch", "--file", text(&file)]).fails(1, "not ready in time").says("g keeps running").says("vmctl logs g");
    assert_eq!(world.word("g"), "running");
    // One that no engine of this host runs is not made.
    world.vmctl(&["launch", "--template", "freebsd", "f"]).fails(1, "");
    world.vmctl(&["launch", "windows", "f"]).fails(1, "");
    assert!(!world.guest("f").exists());
}

#[test]
fn messages_of_a_guest_that_was_not_made_name_no_place_of_ours() {
    let world = World::new();
    std::fs::create_dir_all(world.path().join("ds/guests")).expect("makes");
    std::fs::write(world.path().join("kernel"), "no kernel").expect("writes");
    let template = world.path().join("ds/templates");
    std::fs::create_dir_all(&template).expect("makes");
    std::fs::write(
        template.join("t.toml"),
        "kernel = { image = \"k\" }\ndisks = [{ id = \"d\", size = \"1M\", serial = \"\" }]\n",
    )
    .expect("writes");
    let said = world.vmctl(&["create", "g", "--template", "t", "--set", "memory=8"]).fails(1, "--set:1:8");
    assert!(!said.err.contains(".new-"), "{said:?}");
    let said = world.vmctl(&["create", "g", "--template", "t"]).fails(1, "t.toml:2:");
    assert!(!said.err.contains(".new-"), "{said:?}");
}

#[test]
fn what_runs_is_shown_and_what_comes_with_the_next_boot_is_marked() {
    let world = World::new();
    let uuid = "6f0a7c1e-9a51-4b7e-8a2e-3a6f3d0c9b11";
    let more = format!("uuid = \"{uuid}\"\ncpus = 2\ndisks = [{{ id = \"root\", size = \"1M\" }}]");
    let file = world.make("g", "say:login:", &more);
    assert_eq!(world.state("g")["uuid"], uuid);
    world.vmctl(&["list", "-o", "wide"]).ok().says(uuid);
    world.vmctl(&["start", "g"]).ok();
    let before = std::fs::read_to_string(&file).expect("reads");
    let after = before.replace("cpus = 2", "cpus = 4").replace("\"64M\"", "\"80M\"").replace("\"root\"", "\"data\"");
    std::fs::write(&file, after + "nics = [{ id = \"net0\" }]\n").expect("writes");
    let state = world.state("g");
    assert_eq!((&state["cpus"], &state["memory_bytes"]), (&2.into(), &(64u64 << 20).into()), "{state:#}");
    assert_eq!((&state["next_boot"]["cpus"], &state["next_boot"]["memory_bytes"]), (&4.into(), &(80u64 << 20).into()));
    let info = world.vmctl(&["info", "g"]).ok().out;
    for line in [
        "2 (next 4)",
        "64MiB (next 80MiB)",
        "raw (until the next boot)",
        "raw (from the next boot on)",
        "10.0.2.15 (from the next boot on)",
    ] {
        assert!(info.contains(line), "no {line} in {info}");
    }
    world.vmctl(&["list"]).ok().says("2 (next 4)").says("restart pending");
    world.vmctl(&["restart", "g"]).ok();
    let state = world.state("g");
    assert!(state["next_boot"].is_null() && state["cpus"] == 4 && state["disks"].as_array().is_some_and(|it| it.len() == 1));
    assert_eq!(state["disks"][0]["boot"], "both");
}

#[test]
fn it_is_said_which_bytes_stay_and_asked_before_any_go() {
    let world = World::new();
    let made = "disks = [{ id = \"root\", size = \"1M\" }, { id = \"own\", path = \"own.raw\", size = \"1M\" }]";
    let file = world.make("g", "", made);
    let disk = world.guest("g").join("disks/root.raw");
    world.vmctl(&["disk", "remove", "g", "root", "--purge"]).fails(1, "are not removed without being asked about").says("--yes");
    let mut terminal = Terminal::open(&world, &["disk", "remove", "g", "root", "--purge"]);
    terminal.wait_for("and its bytes at");
    terminal.type_in("n\r");
    assert_eq!(terminal.code(), Some(1));
    world.vmctl(&["disk", "remove", "g", "root"]).ok().says(&format!("the bytes of disk root are kept at {}", disk.display()));
    assert!(disk.exists());
    let own = world.path().join("own.raw");
    let said = world.vmctl(&["destroy", "g", "--yes"]).ok().says("left where they are").says(text(&file));
    assert!(said.err.contains(text(&own)) && own.exists() && file.exists(), "{said:?}");
}

#[test]
fn an_image_is_asked_about_before_it_goes() {
    let world = World::new().with_cache();
    std::fs::write(world.path().join("base.raw"), vec![7; 4096]).expect("writes");
    world.vmctl(&["image", "import", "./base.raw", "--name", "base"]).ok();
    world.vmctl(&["image", "remove", "base"]).fails(1, "is not removed without confirmation").says("--yes");
    let mut terminal = Terminal::open(&world, &["image", "remove", "base"]);
    terminal.wait_for("from the cache? [y/N]");
    terminal.type_in("y\r");
    assert_eq!(terminal.code(), Some(0));
    eventually("it is gone", || world.vmctl(&["image", "list", "-o", "name"]).out.is_empty());
}

#[test]
fn words_that_people_know_from_elsewhere_are_understood() {
    let world = World::new();
    world.make("g", "say:login:", "");
    for word in ["ls", "ps", "status"] {
        world.vmctl(&[word]).ok().says("g ");
    }
    world.vmctl(&["rm", "g", "--yes"]).ok().says("g is gone");
    for word in ["shell", "delete", "remove", "reboot"] {
        world.vmctl(&[word, "g"]).fails(1, "no guest is called `g`");
    }
    world.vmctl(&["exec", "g", "true"]).fails(1, "no guest is called `g`");
}
