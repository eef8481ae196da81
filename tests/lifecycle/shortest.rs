//! The shortest commands: what people type in their first hour, with what is not said made up or asked for.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use vmctl::testing::fetch::Digest;
use vmctl::testing::fetch::digest::Algorithm;

use crate::console::Terminal;
use crate::world::{Said, World};

/// A raw image, and its digest.
fn image(world: &World, name: &str) -> (PathBuf, String) {
    let path = world.path().join(name);
    let file = std::fs::File::create(&path).expect("made");
    file.set_len(1 << 20).expect("sized");
    file.write_all_at(name.as_bytes(), 4096).expect("written");
    let digest = Digest::of(Algorithm::Sha256, &std::fs::read(&path).expect("reads"));
    (path, digest.to_string())
}

/// Serves a file to everybody who asks, and returns its URL.
fn serve(path: &Path) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("binds");
    let (port, bytes) = (listener.local_addr().expect("an address").port(), std::fs::read(path).expect("reads"));
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut request = [0; 4096];
            let _ = stream.read(&mut request);
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", bytes.len());
            let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&bytes));
        }
    });
    format!("http://127.0.0.1:{port}/{}", path.file_name().expect("a name").to_string_lossy())
}

/// `launch` with what the fake engine needs.
fn launching(world: &World, words: &[&str]) -> Command {
    std::fs::write(world.path().join("kernel"), "no kernel").expect("writes");
    let sets = ["--set", "kernel.image=kernel", "--set", "memory=64M", "--no-wait"];
    world.command(&["launch"].iter().chain(words).copied().chain(sets).collect::<Vec<_>>())
}

fn launch(world: &World, words: &[&str]) -> Said {
    launching(world, words).output().expect("runs").into()
}

fn guest_file(world: &World, name: &str) -> String {
    std::fs::read_to_string(world.guest(name).join("guest.toml")).expect("reads")
}

/// Gives the world a cache of its own and a catalogue beside the shipped one.
fn with_catalogue(world: &World, catalogue: &str) {
    let file = world.path().join("ours.toml");
    std::fs::write(&file, catalogue).expect("writes");
    let host = format!("cache_dir = '{}'\n[[catalogues]]\nid = 'ours'\nurl = '{}'\n", world.cache().display(), file.display());
    std::fs::write(world.path().join("host.toml"), host).expect("writes");
}

#[test]
fn a_family_of_images_means_its_newest_release_that_can_run_and_a_guest_is_called_after_it() {
    let world = World::new();
    let mut catalogue = String::new();
    for (version, loader) in [("9", None), ("10", None), ("11", Some("uefi"))] {
        let (path, digest) = image(&world, &format!("mini-{version}.raw"));
        let loader = loader.map(|loader| format!("loader = '{loader}'\n")).unwrap_or_default();
        let hex = digest.strip_prefix("sha256:").expect("SHA-256");
        catalogue += &format!("[[image]]\nname = 'mini-{version}'\nurls = ['{}']\nsha256 = '{hex}'\n{loader}", serve(&path));
    }
    with_catalogue(&world, &catalogue);
    launch(&world, &["mini"]).ok().says("mini: of the image mini-10").says("mini is running");
    assert!(guest_file(&world, "mini").contains("source = \"mini-10\""), "the file says which release it is");
    launch(&world, &["mini-9"]).ok().says("mini-2 is running");
    launch(&world, &["mini-9", "web"]).ok().says("web is running").does_not_say("of the image");
    launch(&world, &["mini", "a", "b"]).ok().says("a is running").says("b is running");
    launch(&world, &["mini-11"]).fails(1, "image `mini-11` boots with `uefi`");
    launch(&world, &["miin", "c"])
        .fails(1, "there is no image, template or file `miin`")
        .says("did you mean `mini`")
        .does_not_say("mini-11");
    launch(&world, &["zzz"]).fails(1, "`zzz`").says("vmctl image list --all");
    world.vmctl(&["fetch", "image", "mini"]).fails(1, "no image is called `mini`").says("its newest is `mini-11`");
}

#[test]
fn where_a_release_cannot_be_fetched_its_family_is_built_of_the_hosts_packages_or_that_is_said() {
    let world = World::new();
    let gone = TcpListener::bind("127.0.0.1:0").expect("binds").local_addr().expect("an address").port();
    let catalogue = format!(
        "[[image]]\nname = 'mini-9'\nurls = ['http://127.0.0.1:{gone}/x']\nsha256 = '{}'\n\
         [[image]]\nname = 'mini-9-built'\nbuild = 'freebsd'\nloader = 'grub'\n",
        "0".repeat(64)
    );
    with_catalogue(&world, &catalogue);
    // Neither a mirror nor a tool is there.
    let empty = world.path().join("empty");
    std::fs::create_dir(&empty).expect("makes");
    let said = Said::from(launching(&world, &["mini"]).env("PATH", &empty).output().expect("runs"));
    said.failed_with(&[1, 2], "mini-9").says("mini-9-built");
    // A name that is a release's means that one alone.
    let said = Said::from(launching(&world, &["mini-9"]).env("PATH", &empty).output().expect("runs"));
    said.failed_with(&[1, 2], "mini-9").does_not_say("mini-9-built");
    assert!(!world.guest("mini").exists());
}

#[test]
fn a_url_without_a_checksum_is_asked_about_once_and_held_to_what_came_then() {
    let world = World::new().with_cache();
    let (path, digest) = image(&world, "cloud.raw");
    let url = serve(&path);
    launch(&world, &[&url]).fails(1, "there is no checksum to hold").says("--checksum sha256:HEX").says("vmctl fetch image");
    assert!(!world.guest("cloud").exists());
    let mut terminal = Terminal::of(&mut launching(&world, &[&url]));
    terminal.wait_for("Take what it sends, and remember that? [y/N]");
    terminal.type_in("n\r");
    assert_eq!(terminal.code(), Some(1));
    let mut terminal = Terminal::of(&mut launching(&world, &[&url]));
    terminal.wait_for("[y/N]");
    terminal.type_in("y\r");
    terminal.wait_for("cloud is running");
    assert_eq!(terminal.code(), Some(0));
    assert!(guest_file(&world, "cloud").contains(&format!("checksum = \"{digest}\"")), "{}", guest_file(&world, "cloud"));
    // It is not asked again, and later guests are held to the same.
    launch(&world, &[&url, "more"]).ok();
    assert!(guest_file(&world, "more").contains(&digest));
    world.vmctl(&["check", "more"]).ok();
    let wrong = format!("sha256:{}", "0".repeat(64));
    launch(&world, &[&url, "bad", "--checksum", &wrong]).says(&wrong);
    assert!(!world.guest("bad").exists());
    let other = serve(&image(&world, "other.raw").0);
    let right = image(&world, "other.raw").1;
    launch(&world, &[&other, "--checksum", &right]).ok().says("other is running");
}

#[test]
fn a_file_is_launched_as_what_it_is() {
    let world = World::new().with_cache();
    image(&world, "my Disk.raw");
    launch(&world, &["./my Disk.raw"]).ok().says("my-disk is running");
    launch(&world, &["my Disk.raw"]).ok().says("my-disk-2 is running");
    world.file("web", "", "");
    world.vmctl(&["launch", "./web.toml", "--no-wait"]).ok().says("web is running");
    world.vmctl(&["launch", "web.toml", "--no-wait", "other"]).ok().says("other is running");
    world.vmctl(&["launch", "web.toml", "--checksum", "sha256:00"]).fails(1, "is no image");
    std::fs::write(world.path().join("fleet.toml"), "name = \"room\"\n").expect("writes");
    world.vmctl(&["launch", "fleet.toml"]).fails(1, "is a fleet file").says("vmctl up ./fleet.toml");
    world.vmctl(&["launch", "./none.raw"]).fails(1, "none.raw");
    // A template needs no name either.
    let template = world.path().join("ds/templates");
    std::fs::create_dir_all(&template).expect("makes");
    let kernel = world.path().join("kernel");
    std::fs::write(template.join("bare.toml"), format!("kernel.image = \"{}\"\n", kernel.display())).expect("writes");
    launch(&world, &["bare"]).ok().says("bare is running");
    world.vmctl(&["create", "--template", "bare"]).ok().says("bare-2 is made");
}

#[test]
fn a_guest_file_is_started_and_made_if_it_is_not_there() {
    let world = World::new();
    world.file("web", "", "");
    world.vmctl(&["start", "./web.toml"]).ok().says("web is made").says("web is running");
    world.vmctl(&["stop", "web"]).ok();
    world.vmctl(&["start", "web.toml"]).ok().does_not_say("is made").says("web is running");
    world.vmctl(&["start", "./none.toml"]).fails(1, "none.toml");
    // A guest that is made with changes includes the file.
    world.file("set", "", "");
    world.vmctl(&["create", "--file", "set.toml", "--set", "cpus=2"]).ok();
    world.vmctl(&["start", "set.toml"]).ok().does_not_say("is made");
    // Another guest of that name is not taken for it.
    let elsewhere = world.path().join("elsewhere");
    std::fs::create_dir(&elsewhere).expect("makes");
    std::fs::copy(world.path().join("web.toml"), elsewhere.join("web.toml")).expect("copies");
    world.vmctl(&["start", "elsewhere/web.toml"]).fails(1, "there is another guest `web`");
    std::fs::write(world.path().join("fleet.toml"), "name = \"room\"\n").expect("writes");
    world.vmctl(&["start", "./fleet.toml"]).fails(1, "is a fleet file").says("vmctl up ./fleet.toml");
}

#[test]
fn a_folder_with_a_guest_file_is_a_project_that_comes_up_and_goes_down() {
    let world = World::new();
    world.make("unrelated", "", "");
    for (folder, file) in [("shop", "vm.toml"), ("Blog Site", "vmctl.toml")] {
        let folder = world.path().join(folder);
        std::fs::create_dir(&folder).expect("makes");
        std::fs::write(folder.join("kernel"), "no kernel").expect("writes");
        std::fs::write(folder.join(file), "memory = \"64M\"\nkernel.image = \"kernel\"\n").expect("writes");
    }
    let within = |folder: &str, words: &[&str]| {
        Said::from(world.command(words).current_dir(world.path().join(folder)).output().expect("runs"))
    };
    within("shop", &["down"]).ok().says("shop is not made");
    within("shop", &["up"]).ok().says("shop is made").says("shop is running").does_not_say("unrelated");
    within("shop", &["up"]).ok().does_not_say("is made");
    within("Blog Site", &["up"]).ok().says("blog-site is running");
    within("shop", &["down"]).ok().says("shop has stopped");
    assert_eq!([world.word("shop"), world.word("blog-site")], ["stopped", "running"]);
    world.vmctl(&["down", "Blog Site/vmctl.toml"]).ok().says("blog-site has stopped");
    // A host file is no project.
    let host = world.path().join("etc");
    std::fs::create_dir(&host).expect("makes");
    std::fs::write(host.join("vmctl.toml"), "cache_dir = \"/nowhere\"\n").expect("writes");
    within("etc", &["up"]).fails(1, "nothing says which guests are meant");
    within("etc", &["up", "./vmctl.toml"]).fails(1, "is a host file");
}

#[test]
fn up_makes_what_a_fleet_has_not_yet_and_starts_all_of_it() {
    let world = World::new();
    std::fs::write(world.path().join("kernel"), "no kernel").expect("writes");
    let fleet = |names: &str| {
        let text = format!(
            "name = \"room\"\n[defaults]\nmemory = \"64M\"\nkernel.image = \"kernel\"\n[[guests]]\nname = \"{names}-{{{{ index }}}}\"\ncount = 2\n"
        );
        std::fs::write(world.path().join("fleet.toml"), text).expect("writes");
    };
    fleet("web");
    world.vmctl(&["up"]).ok().says("web-1 is made").says("web-2 is running");
    world.vmctl(&["up", "./fleet.toml"]).ok().does_not_say("is made");
    // What the file does not name any more is left alone.
    fleet("db");
    world.vmctl(&["up"]).ok().says("db-1 is made");
    assert_eq!([world.word("web-1"), world.word("db-2")], ["running", "running"]);
}

/// A program in front of the others of the path that prints its arguments.
fn pretend(world: &World, program: &str) -> std::ffi::OsString {
    let folder = world.path().join("bin");
    std::fs::create_dir_all(&folder).expect("makes");
    let path = folder.join(program);
    std::fs::write(&path, "#!/bin/sh\nprintf '%s\\n' \"$@\"\n").expect("writes");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("sets");
    let mut list = folder.into_os_string();
    list.push(":/usr/bin:/bin");
    list
}

#[test]
fn ssh_and_cp_wait_for_a_guest_that_boots_and_tell_one_that_does_not_run() {
    let world = World::new();
    let listener = TcpListener::bind("127.0.0.1:0").expect("binds");
    let port = listener.local_addr().expect("an address").port();
    drop(listener);
    let keys = world.path().join(".ssh");
    std::fs::create_dir_all(&keys).expect("makes");
    let public = |n: u8| format!("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGmJ3z0p7mB9cO8{n}");
    for (name, n) in [("id_work", 1), ("id_named", 2), ("id_other", 3)] {
        std::fs::write(keys.join(name), "private").expect("writes");
        std::fs::write(keys.join(format!("{name}.pub")), public(n) + " me@here\n").expect("writes");
    }
    world.make(
        "web3",
        "say:booting",
        &format!(
            "nics = [{{ id = \"net0\", forwards = [{{ host_port = {port}, guest_port = 22 }}] }}]\n\
             cloud-init = {{ ssh_keys = [\"{}\", \"~/.ssh/id_named.pub\"] }}\nready.timeout = \"20s\"",
            public(1)
        ),
    );
    world.vmctl(&["ssh", "web3"]).fails(1, "`web3` is stopped").says("vmctl start web3");
    world.vmctl(&["cp", "a", "web3:b"]).fails(1, "`web3` is stopped");
    world.vmctl(&["start", "web3"]).ok();
    let greets = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_secs(2));
        let listener = TcpListener::bind(("127.0.0.1", port)).expect("binds");
        for stream in listener.incoming().flatten() {
            let _ = Write::write_all(&mut { stream }, b"SSH-2.0-test\r\n");
        }
    });
    let path = pretend(&world, "ssh");
    let said = Said::from(world.command(&["shell", "web3", "uptime"]).env("PATH", &path).output().expect("runs")).ok();
    let said = said.says(&format!("web3 is booting: waiting for its sshd at 127.0.0.1:{port}")).says("uptime");
    let identity = |name: &str| format!("IdentityFile=\"{}\"", keys.join(name).display());
    assert!(said.out.contains(&identity("id_work")) && said.out.contains(&identity("id_named")), "{said:?}");
    assert!(!said.out.contains("id_other"), "{said:?}");
    let path = pretend(&world, "scp");
    let said = Said::from(world.command(&["cp", "a", "web3:b"]).env("PATH", &path).output().expect("runs")).ok();
    assert!(said.out.contains("127.0.0.1:b") && said.out.contains(&identity("id_named")), "{said:?}");
    said.does_not_say("is booting");
    drop(greets);
}

#[test]
fn the_first_guest_file_starts_as_it_is() {
    let world = World::new().with_cache();
    let ssh = world.path().join(".ssh");
    std::fs::create_dir_all(&ssh).expect("makes");
    std::fs::write(ssh.join("id_ed25519.pub"), "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGmJ3z0p7mB9cO8u me@here\n").expect("writes");
    world.vmctl(&["init"]).ok().says("vmctl launch --file demo.toml");
    let text = std::fs::read_to_string(world.path().join("demo.toml")).expect("reads");
    for part in ["source = \"debian-13\"", "loader = \"grub\"", "guest_port = 22", "[cloud-init]", "/.ssh/id_ed25519.pub"] {
        assert!(text.contains(part), "{part} in {text}");
    }
    world.vmctl(&["check", "demo.toml"]).ok();
    // The first of the manual, and that of the README.
    for (page, begin, end) in
        [("man/vmctl.toml.5", ".Bd -literal -offset indent\nname", ".Ed"), ("README.md", "```\nname", "```")]
    {
        let page = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(page)).expect("reads");
        let start = page.find(begin).expect("it has an example") + begin.len() - "name".len();
        let example = &page[start..];
        let example = &example[..example.find(end).expect("it ends")].replace("AAAA...", "AAAAC3NzaC1lZDI1NTE5AAAAIGmJ3z0p7");
        std::fs::write(world.path().join("example.toml"), example).expect("writes");
        world.vmctl(&["check", "example.toml"]).ok();
        assert!(example.contains("source = "), "{example}");
    }
}

#[test]
fn a_list_shows_how_ssh_reaches_a_guest_and_takes_states_that_there_are() {
    let world = World::new();
    let listener = TcpListener::bind("127.0.0.1:0").expect("binds");
    let port = listener.local_addr().expect("an address").port();
    drop(listener);
    let more = format!("nics = [{{ id = \"n\", forwards = [{{ host_port = {port}, guest_port = 22 }}] }}]");
    world.make(
        "web",
        "say:login:",
        &format!("description = \"the shop, and all that it needs, with the database\"\n{more}\nready.console = \"login:\""),
    );
    world.vmctl(&["start", "web", "--wait"]).ok();
    let address = format!("127.0.0.1:{port}");
    world.vmctl(&["list"]).ok().says("READY").says(&address).says("10.0.2.15").says("the shop");
    let state = world.state("web");
    assert_eq!((state["ssh"].as_str(), state["addresses"][0].as_str()), (Some(address.as_str()), Some("10.0.2.15")));
    world.vmctl(&["info", "web"]).ok().says(&address).does_not_say("counter");
    world.vmctl(&["info", "web", "--counters"]).ok().says("counter").says("vcpu0.instructions");
    // Where there is no room, what is needed least is left out first.
    for (columns, shown, hidden) in [(200, "the shop", "none"), (80, &address[..], "the shop"), (30, "MEMORY", &address[..])] {
        let command = world.command(&[]);
        let mut narrow = Command::new("/bin/sh");
        narrow.args(["-c", &format!("stty rows 24 cols {columns}; exec \"$0\" list")]).arg(command.get_program()).env_clear();
        narrow.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?)))).current_dir(world.path());
        let said = Terminal::of(&mut narrow).all();
        assert!(said.contains(shown) && !said.contains(hidden), "{columns}: {said}");
    }
    world.vmctl(&["list", "--state", "foo"]).fails(1, "foo").says("running");
    assert_eq!(world.vmctl(&["list", "--state", "running", "-o", "name"]).ok().out, "web\n");
    assert_eq!(world.vmctl(&["list", "--state", "stopped", "-o", "name"]).ok().out, "");
}

#[test]
fn logs_are_json_where_json_is_asked_for() {
    let world = World::new();
    world.make("g", "say:one say:login:", "ready.console = \"login:\"");
    world.vmctl(&["start", "g", "--wait"]).ok();
    let json = |words: &[&str]| -> serde_json::Value { serde_json::from_str(&world.vmctl(words).ok().out).expect("JSON") };
    let document = json(&["logs", "g", "-o", "json"]);
    assert_eq!((&document["kind"], &document["items"][0]["guest"]), (&"log".into(), &"g".into()), "{document}");
    assert!(document["items"][0]["text"].as_str().is_some_and(|text| text.contains("one")), "{document}");
    let events = json(&["logs", "g", "--events", "-o", "json"]);
    assert_eq!(events["items"][0]["event"]["event"], "created", "{events}");
    world.vmctl(&["logs", "g", "-o", "json", "--follow"]).fails(1, "-o jsonl");
}

#[test]
fn images_are_listed_by_name_family_and_glob() {
    let world = World::new().with_cache();
    let names = |words: &[&str]| world.vmctl(&[&["image", "list", "-o", "name"], words].concat()).ok().out;
    assert_eq!(names(&["debian"]), "debian-12\ndebian-12-built\ndebian-12-built-cloud\ndebian-13\n");
    assert_eq!(names(&["*-cloud", "rocky-10"]), "debian-12-built-cloud\nfreebsd-15.1-cloud\nrocky-10\n");
    assert_eq!(names(&[]), "");
    world.vmctl(&["image", "ls", "nothing"]).fails(1, "nothing is called `nothing`").says("vmctl image list --all");
    assert_eq!(world.vmctl(&["iso", "ls", "alpine", "-o", "name"]).ok().out, "alpine-3.23-virt\n");
}

#[test]
fn words_of_other_managers_are_understood_or_explained() {
    let world = World::new();
    world.make("g", "", "");
    for words in [&["ls"][..], &["ps"], &["status"], &["list"]] {
        world.vmctl(words).ok().says("g");
    }
    world.vmctl(&["strat", "g"]).fails(1, "`vmctl` has no command `strat`").says("did you mean `start`");
    world.vmctl(&["attach", "g"]).fails(1, "has no command `attach`").says("vmctl console GUEST");
    world.vmctl(&["image", "fetch", "debian"]).fails(1, "`vmctl image` has no command").says("vmctl fetch image NAME");
    world.vmctl(&["help", "start"]).ok().says("--if-stopped");
    world.vmctl(&["shell", "g", "true"]).fails(1, "no way to port 22");
    world.vmctl(&["exec", "g", "true"]).fails(1, "`g` is not running");
    world.vmctl(&["create", "h", "--template", "small", "--set", "memroy=1G"]).fails(1, "--set:1:1: unknown key `memroy`");
    world.vmctl(&["stop", "g"]).ok().says("g is stopped already");
    world.vmctl(&["rm", "g", "--yes"]).ok();
    world.vmctl(&["delete", "g", "--yes"]).fails(1, "no guest is called `g`");
}

#[test]
fn the_shell_is_told_the_names_that_there_are() {
    let world = World::new().with_cache();
    world.make("web", "", "disks = [{ id = \"root\", size = \"1M\" }]");
    world.make("db", "", "");
    let asked = |line: &str| {
        let words: Vec<&str> = ["__complete", "--"].into_iter().chain(line.split(' ')).collect();
        world.vmctl(&words)
    };
    assert_eq!(asked("start ").ok().out, "db\nweb\n");
    assert_eq!(asked("disk remove web ").ok().out, "root\n");
    let images = asked("launch deb").ok().out;
    for name in ["debian", "debian-12", "debian-13", "rocky-10", "small"] {
        assert!(images.lines().any(|line| line == name), "{name} in {images}");
    }
    assert!(!images.contains("alpine") && !images.contains("windows"), "for bhyve alone: {images}");
    assert_eq!(asked("sta").code, Some(1));
}
