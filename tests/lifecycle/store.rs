//! The datastore: one writer of a file at a time, whose bytes a disk's are, locks, modes, and what killed commands leave.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::world::{Said, World, eventually};

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap_or_else(|error| panic!("{}: {error}", path.display())).permissions().mode() & 0o777
}

/// Every file and directory below one.
pub fn below(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        found.push(entry.path());
        if entry.file_type().expect("a type").is_dir() {
            found.extend(below(&entry.path()));
        }
    }
    found.sort();
    found
}

/// What no command leaves behind that has ended.
pub fn leftovers(directory: &Path) -> Vec<PathBuf> {
    let is_one = |path: &&PathBuf| {
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        [".new-", ".gone-", ".edit-", ".import-"].iter().any(|start| name.starts_with(start))
            || [".tmp", ".making"].iter().any(|end| name.ends_with(end))
            || name == "pending.json"
            || path.parent().is_some_and(|parent| parent.ends_with("locks") || parent.ends_with("work"))
    };
    below(directory).iter().filter(is_one).cloned().collect()
}

fn spawn(world: &World, arguments: &[&str]) -> Child {
    world.command(arguments).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("runs")
}

fn said(child: Child) -> Said {
    child.wait_with_output().expect("ends").into()
}

#[test]
fn a_directory_that_is_no_guests_is_neither_adopted_nor_removed() {
    let world = World::new();
    let file = world.make("a", "", "disks = [{ id = \"root\", size = \"1M\" }]");
    let file = file.to_str().expect("UTF-8");
    let foreign = world.guest("foreign");
    std::fs::create_dir_all(foreign.join("disks")).expect("makes");
    std::fs::write(foreign.join("disks/root.raw"), "mine").expect("writes");
    let elsewhere = world.path().join("elsewhere");
    std::fs::create_dir_all(&elsewhere).expect("makes");
    std::fs::write(elsewhere.join("guest.toml"), "mine").expect("writes");
    std::os::unix::fs::symlink(&elsewhere, world.guest("link")).expect("links");
    std::fs::write(world.guest("file"), "mine").expect("writes");
    for name in ["foreign", "link", "file"] {
        let there = "is there already, and is no guest";
        world.vmctl(&["create", name, "--file", file]).fails(1, there).says("take it away yourself");
        world.vmctl(&["clone", "a", name]).fails(1, there);
        world.vmctl(&["rename", "a", name]).fails(1, there);
        for verb in [&["destroy", "-f", "-y"][..], &["start"], &["disk", "add"], &["rename"], &["info"]] {
            let mut arguments = vec![verb[0], name];
            match verb[0] {
                "disk" => arguments = vec!["disk", "add", name, "d", "--size", "1M"],
                "rename" => arguments.push("b"),
                _ => arguments.extend(&verb[1..]),
            }
            let said = world.vmctl(&arguments).fails(1, &format!("no guest is called `{name}`"));
            assert!(said.err.contains("it has neither guest.toml nor state.json"), "{said:?}");
        }
    }
    world.vmctl(&["destroy", "*", "-y"]).ok();
    assert_eq!(world.vmctl(&["list", "-o", "name"]).ok().out, "");
    world.vmctl(&["doctor"]);
    assert_eq!(std::fs::read(foreign.join("disks/root.raw")).expect("there"), b"mine");
    assert_eq!(std::fs::read(elsewhere.join("guest.toml")).expect("there"), b"mine");
    assert!(world.guest("link").is_symlink() && world.guest("file").is_file());
    assert_eq!(std::fs::read_dir(&foreign).expect("lists").count(), 1, "no lock and no state either");
}

#[test]
fn bytes_that_were_there_already_are_never_taken_for_a_new_disk() {
    let world = World::new();
    let file = world.make("g", "", "");
    let disk = world.guest("g").join("disks/extra.raw");
    world.vmctl(&["disk", "add", "g", "extra", "--size", "1M"]).ok();
    std::fs::write(&disk, [9u8; 4096]).expect("writes");
    world.vmctl(&["disk", "remove", "g", "extra"]).ok();
    std::fs::write(world.path().join("base.raw"), vec![7; 1 << 20]).expect("writes");
    for more in [&["--size", "1M"][..], &["--source", "./base.raw", "--size", "2M"]] {
        let arguments = [&["disk", "add", "g", "extra"], more].concat();
        world.vmctl(&arguments).fails(1, "extra.raw` exists already and is not this disk").says("--path");
    }
    // Nor by a boot, when somebody writes it into the file.
    let before = std::fs::read_to_string(&file).expect("reads");
    std::fs::write(&file, format!("{before}disks = [{{ id = \"extra\", size = \"1M\" }}]\n")).expect("writes");
    world.vmctl(&["start", "g"]).fails(1, "exists already and is not this disk");
    assert_eq!(std::fs::read(&disk).expect("reads"), [9u8; 4096]);
    // Named by its path it is what the user says, and the name is free when it is gone.
    std::fs::write(&file, before).expect("writes");
    world.vmctl(&["disk", "add", "g", "extra", "--path", disk.to_str().expect("UTF-8")]).ok();
    world.vmctl(&["disk", "remove", "g", "extra", "--purge", "--yes"]).fails(1, "is not one that vmctl made");
    world.vmctl(&["disk", "remove", "g", "extra"]).ok();
    std::fs::remove_file(&disk).expect("removes");
    world.vmctl(&["disk", "add", "g", "extra", "--source", "./base.raw", "--size", "2M"]).ok();
    assert!(std::fs::read(&disk).expect("reads").starts_with(&[7; 512]));
    world.vmctl(&["start", "g"]).ok();
}

#[test]
fn a_guest_keeps_its_disks_over_boots_edits_and_an_update_from_a_version_without_a_record() {
    let world = World::new();
    let file = world.make("g", "", "disks = [{ id = \"root\", size = \"1M\" }]");
    let disk = world.guest("g").join("disks/root.raw");
    std::fs::write(&disk, vec![b'x'; 1 << 20]).expect("writes");
    let boot = || {
        world.vmctl(&["start", "g"]).ok();
        world.vmctl(&["poweroff", "g"]).ok();
        assert_eq!(std::fs::read(&disk).expect("reads"), vec![b'x'; 1 << 20]);
    };
    boot();
    // Out of the file for a while, by hand.
    let text = std::fs::read_to_string(&file).expect("reads");
    std::fs::write(&file, text.replace("disks =", "# disks =")).expect("writes");
    world.vmctl(&["start", "g"]).ok();
    world.vmctl(&["poweroff", "g"]).ok();
    std::fs::write(&file, &text).expect("writes");
    boot();
    std::fs::remove_file(world.guest("g").join("disks.json")).expect("there");
    boot();
    let _ = std::fs::remove_file(world.guest("g").join("disks.json"));
    world.vmctl(&["disk", "remove", "g", "root"]).ok();
    std::fs::write(&file, &text).expect("writes");
    world.vmctl(&["start", "g"]).fails(1, "is not this disk");
}

#[test]
fn a_fleet_that_wants_a_disk_again_does_not_get_what_is_left_of_an_old_one() {
    let world = World::new();
    std::fs::write(world.path().join("kernel"), "no kernel").expect("writes");
    let fleet = |disks: &str| {
        let text =
            format!("name = \"room\"\n[[guests]]\nname = \"g\"\nmemory = \"64M\"\nkernel = {{ image = \"kernel\" }}\n{disks}");
        std::fs::write(world.path().join("fleet.toml"), text).expect("writes");
        world.vmctl(&["apply", "--yes"])
    };
    fleet("disks = [{ id = \"data\", size = \"1M\" }]").ok();
    fleet("").ok();
    fleet("disks = [{ id = \"data\", size = \"1M\" }]").fails(1, "data.raw` exists already and is not this disk");
    std::fs::remove_file(world.guest("g").join("disks/data.raw")).expect("removes");
    fleet("disks = [{ id = \"data\", size = \"1M\" }]").ok();
}

/// Runs commands at once and returns the last words of those that succeeded.
fn at_once(world: &World, commands: &[Vec<String>]) -> Vec<bool> {
    let children: Vec<Child> =
        commands.iter().map(|words| spawn(world, &words.iter().map(String::as_str).collect::<Vec<_>>())).collect();
    children
        .into_iter()
        .map(|child| {
            let said = said(child);
            assert!(matches!(said.code, Some(0 | 1)), "{said:?}");
            said.code == Some(0)
        })
        .collect()
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

#[test]
fn commands_that_change_a_guest_at_once_lose_nothing_of_each_other() {
    let world = World::new();
    let file = world.make("g", "", "disks = [{ id = \"root\", size = \"1M\" }]");
    std::fs::write(world.path().join("cd.iso"), vec![0u8; 4096]).expect("writes");
    for round in 0..2 {
        let mut commands: Vec<Vec<String>> = (0..4).map(|n| words(&format!("nic add g n{round}{n}"))).collect();
        commands.extend((0..4).map(|n| words(&format!("disk add g d{round}{n} --size 1M"))));
        commands.push(words(&format!("media insert g cd.iso --drive cd{round}")));
        commands.extend([2, 5, 3, 4].map(|size| words(&format!("disk resize g root {}M", size + round))));
        let done = at_once(&world, &commands);
        let text = std::fs::read_to_string(&file).expect("reads");
        for (words, done) in commands.iter().zip(&done).filter(|(words, _)| words[1] != "resize") {
            let id = if words[0] == "media" { &words[5] } else { &words[3] };
            assert!(*done, "{words:?}");
            assert!(text.contains(&format!("\"{id}\"")), "{words:?} was done, and is not in\n{text}");
        }
        let size = std::fs::metadata(world.guest("g").join("disks/root.raw")).expect("there").len();
        assert!(text.contains(&format!("id = \"root\", size = \"{}MiB\"", size >> 20)), "of {size}:\n{text}");
    }
    world.vmctl(&["start", "g"]).ok();
    assert!(leftovers(world.path()).is_empty(), "{:?}", leftovers(world.path()));
}

#[test]
fn editors_and_commands_at_once_lose_nothing_of_each_other_also_where_guests_share_a_file() {
    let world = World::new();
    let file = world.make("a", "", "");
    world.vmctl(&["create", "b", "--file", file.to_str().expect("UTF-8")]).ok();
    let edit = |guest: &str, line: &str| {
        let mut command = world.command(&["edit", guest]);
        command.env("EDITOR", format!("sh -c 'sleep 0.1; printf \"{line}\\\\n\" >> \"$0\"'"));
        command.stderr(Stdio::piped()).spawn().expect("runs")
    };
    let children = [
        edit("a", "description = \\\"of a\\\""),
        edit("b", "protected = false"),
        spawn(&world, &["nic", "add", "a", "na"]),
        spawn(&world, &["nic", "add", "b", "nb"]),
    ];
    // A table that the commands add would take in what an editor puts behind it; who loses by that is told.
    let done: Vec<bool> = children.into_iter().map(|child| said(child).code == Some(0)).collect();
    let text = std::fs::read_to_string(&file).expect("reads");
    for (done, word) in done.iter().zip(["of a", "protected", "\"na\"", "\"nb\""]) {
        assert_eq!(*done, text.contains(word), "{word} in\n{text}");
    }
    assert!(done[2] && done[3]);
}

#[test]
fn an_open_editor_keeps_other_commands_from_the_file_and_they_say_whom_they_wait_for() {
    let world = World::new();
    world.make("g", "", "");
    let mut command = world.command(&["edit", "g"]);
    let go = world.path().join("go");
    command.env("EDITOR", format!("sh -c 'while ! [ -e {} ]; do sleep 0.05; done'", go.display()));
    let editor = command.stderr(Stdio::piped()).spawn().expect("runs");
    eventually("the editor is open", || !leftovers(world.path()).is_empty());
    let adding = spawn(&world, &["nic", "add", "g", "n"]);
    // What does not change the file does not wait.
    let started = Instant::now();
    world.vmctl(&["list"]).ok();
    assert!(started.elapsed() < Duration::from_secs(1));
    std::thread::sleep(Duration::from_millis(1500));
    std::fs::write(&go, "").expect("writes");
    let pid = editor.id();
    said(editor).ok();
    said(adding).ok().says(&format!("waiting: process {pid} changes the file of `g`"));
}

#[test]
fn nobody_else_can_hold_a_lock_and_old_ones_are_mended() {
    let world = World::new();
    world.make("g", "", "disks = [{ id = \"root\", size = \"1M\" }]");
    world.vmctl(&["start", "g"]).ok();
    world.vmctl(&["nic", "add", "g", "n"]).ok();
    let locks = || -> Vec<PathBuf> {
        let name = |path: &PathBuf| path.file_name().expect("a name").to_string_lossy().into_owned();
        below(world.path()).into_iter().filter(|path| path.is_file() && name(path).contains("lock")).collect()
    };
    assert!(locks().len() >= 3, "{:?}", locks());
    for lock in locks() {
        assert_eq!(mode(&lock), 0o600, "{}", lock.display());
        std::fs::set_permissions(&lock, std::fs::Permissions::from_mode(0o666)).expect("sets");
    }
    assert_eq!(mode(&world.path().join("ds/locks")), 0o700);
    world.vmctl(&["list"]).ok();
    world.vmctl(&["poweroff", "g"]).ok();
    world.vmctl(&["start", "g"]).ok();
    world.make("h", "", "");
    for lock in locks() {
        assert_eq!(mode(&lock), 0o600, "{}", lock.display());
    }
}

#[test]
fn every_copy_of_a_guest_file_is_as_private_as_the_file() {
    let world = World::new();
    let file = world.file_for_copies("g", "");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).expect("sets");
    let path = file.to_str().expect("UTF-8");
    world.vmctl(&["create", "g", "--file", path, "--copy"]).ok();
    world.vmctl(&["create", "s", "--file", path, "--set", "memory=80M"]).ok();
    world.vmctl(&["clone", "g", "c"]).ok();
    world.vmctl(&["nic", "add", "g", "n"]).ok();
    for name in ["g", "s", "c"] {
        assert_eq!(mode(&world.guest(name).join("guest.toml")), 0o600, "{name}");
    }
    let fleet = world.path().join("fleet.toml");
    std::fs::write(&fleet, "name = \"room\"\n[[guests]]\nname = \"f\"\nkernel = { image = \"kernel\" }\n").expect("writes");
    std::fs::set_permissions(&fleet, std::fs::Permissions::from_mode(0o600)).expect("sets");
    world.vmctl(&["apply", "--yes"]).ok();
    world.vmctl(&["render", "--out", "rendered"]).ok();
    for path in [world.guest("f").join("guest.toml"), world.path().join("rendered/f.toml")] {
        assert_eq!(mode(&path), 0o600, "{}", path.display());
    }
}

#[test]
fn a_name_that_reads_as_a_file_is_no_name_for_a_guest_and_an_old_one_is_found() {
    let world = World::new();
    let file = world.make("g", "", "");
    let path = file.to_str().expect("UTF-8");
    for command in [&["create", "x.toml", "--file", path][..], &["rename", "g", "x.toml"], &["clone", "g", "x.toml"]] {
        world.vmctl(command).fails(1, "`x.toml` is not a name for a guest").says("`.toml`");
    }
    std::fs::write(world.path().join("named.toml"), "name = \"x.toml\"\nkernel = { image = \"kernel\" }\n").expect("writes");
    world.vmctl(&["check", "named.toml"]).fails(1, "cannot be the name of a new guest");
    std::fs::write(
        world.path().join("fleet.toml"),
        "name = \"room\"\n[[guests]]\nname = \"x.toml\"\nkernel = { image = \"kernel\" }\n",
    )
    .expect("writes");
    world.vmctl(&["check", "fleet.toml"]).fails(1, "cannot be the name of a guest");
    // One of an earlier version.
    std::fs::rename(world.guest("g"), world.guest("x.toml")).expect("renames");
    for command in ["show", "check", "argv"] {
        world.vmctl(&[command, "x.toml"]).does_not_say("cannot read");
    }
    world.vmctl(&["start", "x.toml"]).ok();
    std::fs::write(world.path().join("x.toml"), "memory = \"1G\"\nkernel = { image = \"kernel\" }\n").expect("writes");
    world.vmctl(&["show", "x.toml"]).ok().says("1G");
}

#[test]
fn a_check_leaves_alone_what_is_being_made_or_removed() {
    let world = World::new();
    world.make("g", "", "");
    for name in [".new-n-1", ".gone-n-1"] {
        std::fs::create_dir(world.guest(name)).expect("makes");
        std::fs::write(world.guest(name).join("guest.toml"), "memory = {").expect("writes");
        std::fs::write(world.guest(name).join("lock"), "").expect("writes");
    }
    // Somebody is at work on them.
    let held: Vec<std::fs::File> = [".new-n-1", ".gone-n-1"]
        .iter()
        .map(|name| {
            let file = std::fs::File::open(world.guest(name).join("lock")).expect("opens");
            file.lock().expect("locks");
            file
        })
        .collect();
    world.vmctl(&["check"]).ok().does_not_say("new-n");
    world.vmctl(&["check", ".new-n-1"]).fails(1, "there is no guest `.new-n-1`");
    assert!(world.guest(".new-n-1").exists() && world.guest(".gone-n-1").exists());
    drop(held);
    world.vmctl(&["check"]).ok();
    assert!(!world.guest(".new-n-1").exists() && !world.guest(".gone-n-1").exists());
}

/// What killed commands of this and earlier versions leave.
fn litter(world: &World) -> Vec<PathBuf> {
    let guest = world.guest("g");
    let cache = world.cache();
    let all = [
        guest.join(".state.json.4194305.tmp"),
        guest.join(".guest.toml.4194305.tmp"),
        guest.join(".edit-g-4194305.toml"),
        guest.join("..edit-g-4194305.toml.4194305.tmp"),
        guest.join("disks/extra.raw.making"),
        guest.join("disks/.extra.raw.4194305.tmp"),
        world.guest(".new-n-4194305").join("guest.toml"),
        world.guest(".gone-n-4194305").join("disks/root.raw"),
        cache.join("names/image/n.4194305.tmp"),
    ];
    for path in &all {
        std::fs::create_dir_all(path.parent().expect("a directory")).expect("makes");
        std::fs::write(path, "half").expect("writes");
    }
    all.to_vec()
}

#[test]
fn what_killed_commands_left_is_shown_by_doctor_and_swept_by_the_next_command() {
    let world = World::new().with_cache();
    world.make("g", "", "");
    std::fs::remove_file(world.guest("g").join("guest.toml")).expect("a link");
    std::fs::copy(world.path().join("g.toml"), world.guest("g").join("guest.toml")).expect("copies");
    std::fs::write(world.path().join("disk.raw"), vec![1; 1 << 20]).expect("writes");
    for command in
        [&["nic", "add", "g", "n"][..], &["disk", "add", "g", "d", "--size", "1M"], &["edit", "g"], &["rename", "g", "h"]]
    {
        let litter = litter(&world);
        let told = world.vmctl(&["doctor", "-o", "json"]).out;
        for path in litter.iter().filter(|path| !path.ends_with(".edit-g-4194305.toml")) {
            let mut shown = path.ancestors().take_while(|path| !path.ends_with("g") && !path.ends_with("guests"));
            assert!(shown.any(|path| told.contains(&format!("{}`", path.display()))), "{}: {told}", path.display());
        }
        let mut command = world.command(command);
        let said: Said = command.env("EDITOR", "true").output().expect("runs").into();
        said.ok();
        let name = format!("i{}", litter.len());
        world.vmctl(&["image", "import", "disk.raw", "--name", &name]).ok();
        world.vmctl(&["image", "remove", "--yes", &name]).ok();
        assert!(leftovers(world.path()).is_empty(), "{:?}", leftovers(world.path()));
    }
    // What somebody typed is not thrown away.
    assert_eq!(std::fs::read(world.guest("h").join("edited.toml")).expect("kept"), b"half");
}

#[test]
fn a_destroy_or_list_sweeps_what_others_left() {
    let world = World::new();
    world.make("g", "", "");
    for command in [&["list"][..], &["info", "g"], &["show", "g"], &["destroy", "g", "--yes"]] {
        let gone = world.guest(".gone-n-4194305");
        std::fs::create_dir_all(gone.join("disks")).expect("makes");
        std::fs::write(gone.join("disks/root.raw"), "all of it").expect("writes");
        world.vmctl(command).ok();
        assert!(!gone.exists(), "{command:?}");
    }
}

/// No file may grow at all: what a full disk does to whoever writes.
fn on_a_full_disk(mut command: Command) -> Said {
    // SAFETY: setrlimit and signal are async-signal-safe, and nothing else runs between fork and exec.
    #[allow(unsafe_code)]
    unsafe {
        command.pre_exec(|| {
            use nix::sys::resource::{Resource, setrlimit};
            use nix::sys::signal::{SigHandler, Signal, signal};
            signal(Signal::SIGXFSZ, SigHandler::SigIgn)?;
            Ok(setrlimit(Resource::RLIMIT_FSIZE, 0, 0)?)
        });
    }
    command.output().expect("runs").into()
}

#[test]
fn on_a_full_disk_a_command_has_either_been_done_or_has_failed() {
    let world = World::new();
    let file = world.make("g", "", "disks = [{ id = \"root\", size = \"1M\" }]");
    std::fs::write(
        world.path().join("fleet.toml"),
        "name = \"room\"\n[[guests]]\nname = \"f\"\nkernel = { image = \"kernel\" }\n",
    )
    .expect("writes");
    world.vmctl(&["apply", "--yes"]).ok();
    for (old, new) in [("g", "g2"), ("f", "f2")] {
        let said = on_a_full_disk(world.command(&["rename", old, new]));
        assert_eq!(said.code == Some(0), world.guest(new).exists(), "{said:?}");
        assert_eq!(said.code == Some(0), !world.guest(old).exists(), "{said:?}");
        if said.code != Some(0) {
            world.vmctl(&["rename", old, new]).ok();
        }
        assert_eq!(world.state(new)["name"], new);
    }
    // A guest that has left its fleet is not its any more, however its record fared.
    std::fs::write(world.path().join("fleet.toml"), "name = \"room\"\n").expect("writes");
    world.vmctl(&["apply", "--yes", "--prune"]).ok();
    assert!(world.guest("f2").exists());
    let before = std::fs::read(&file).expect("reads");
    let disk = world.guest("g2").join("disks/root.raw");
    for command in [
        &["disk", "resize", "g2", "root", "4M"][..],
        &["disk", "add", "g2", "more", "--size", "1M"],
        &["disk", "remove", "g2", "root", "--purge", "--yes"],
        &["nic", "add", "g2", "n"],
        &["clone", "g2", "c"],
    ] {
        let said = on_a_full_disk(world.command(command));
        assert!(matches!(said.code, Some(1 | 2)), "{command:?}: {said:?}");
        assert_eq!(std::fs::read(&file).expect("reads"), before, "{command:?}");
        assert_eq!(std::fs::metadata(&disk).expect("there").len(), 1 << 20, "{command:?}");
        assert!(!world.guest("g2").join("disks/more.raw").exists() && !world.guest("c").exists());
        assert!(leftovers(world.path()).is_empty(), "{command:?}: {:?}", leftovers(world.path()));
    }
    world.vmctl(&["start", "g2"]).ok();
}

#[test]
fn a_datastore_that_is_a_link_to_nowhere_names_where_it_leads() {
    let world = World::new();
    let file = world.file("g", "", "");
    symlink("/no/such/pool", world.path().join("ds")).expect("links");
    for command in [&["create", "g", "--file", file.to_str().expect("UTF-8")][..], &["init", "first.toml"]] {
        world.vmctl(command).fails(1, "is a link to `/no/such/pool`, which does not exist");
    }
}

#[test]
fn a_guest_whose_hook_fails_after_it_is_made_is_said_to_be_made() {
    let world = World::new();
    let hook = "hooks = [{ event = \"post-create\", command = [\"/bin/false\"] }]";
    let file = world.file("g", "", hook);
    let said = world.vmctl(&["create", "g", "--file", file.to_str().expect("UTF-8")]);
    assert_eq!(said.code == Some(0), !said.err.contains("failed"), "{said:?}");
    assert!(world.guest("g").exists());
    if said.code != Some(0) {
        said.fails(1, "`g` is made, but");
    }
}
