//! `vmctl fetch`, `vmctl image`, `vmctl iso`, as a user types them.

use std::time::Duration;

use crate::server::{Content, Server, status};
use crate::world::{World, noise, read, sha256};

#[test]
fn several_are_fetched_at_once_and_one_that_fails_does_not_stop_the_others() {
    let world = World::new();
    let contents: Vec<Content> = (0..3).map(|seed| Content::new(noise(102_400, 50 + seed))).collect();
    let waiting = std::sync::Arc::new(std::sync::Barrier::new(3));
    let server = Server::start({
        let contents = contents.clone();
        move |asked, wire| match asked.path.strip_prefix("/").and_then(|path| path.parse::<usize>().ok()) {
            Some(at) => {
                // None is answered before all three have asked.
                waiting.wait();
                contents[at].serve(asked, wire);
            }
            None => status(wire, "404 Not Found", ""),
        }
    });
    let mut catalogue = String::new();
    for (at, content) in contents.iter().enumerate() {
        let digest = sha256(&content.bytes);
        catalogue.push_str(&format!(
            "[[image]]\nname = 'disk-{at}'\nurls = ['{}']\nsha256 = '{}'\nformat = 'raw'\n",
            server.url(&format!("/{at}")),
            digest.hex()
        ));
    }
    catalogue.push_str(&format!("[[image]]\nname = 'gone'\nurls = ['{}']\nsha256 = '{}'\n", server.url("/x"), "0".repeat(64)));
    std::fs::write(world.path("ours.toml"), catalogue).unwrap();
    std::fs::write(
        world.path("vmctl.toml"),
        format!(
            "cache_dir = '{}'\n[[catalogues]]\nid = 'ours'\nurl = '{}'\n",
            world.cache().display(),
            world.path("ours.toml").display()
        ),
    )
    .unwrap();
    let (code, data, said) =
        world.run(&["fetch", "image", "disk-0", "disk-1", "gone", "disk-2", "--parallel", "4", "-o", "name"]);
    assert_eq!((code, data.as_str()), (2, "disk-0\ndisk-1\ndisk-2\n"), "{said}");
    assert!(said.contains("error: image `gone` could not be fetched"), "{said}");
    assert!(said.contains("the server answers 404 Not Found"), "{said}");
    let (_, listed, _) = world.run(&["image", "list", "--all", "-o", "jsonl"]);
    let ours = listed.lines().find(|line| line.contains("\"disk-1\"")).unwrap();
    assert!(ours.contains("\"cached\":true"), "{ours}");
    let offered = listed.lines().find(|line| line.contains("\"freebsd-15.1\"")).unwrap();
    assert!(offered.contains("\"cached\":false"), "{offered}");
}

#[test]
fn off_a_terminal_progress_is_plain_lines_and_quiet_means_none() {
    let (world, content) = (World::new(), Content::new(noise(8 << 20, 55)));
    let digest = sha256(&content.bytes).to_string();
    let server = Server::start(move |asked, wire| content.serve(asked, wire));
    let url = server.url("/disk.raw");
    let (code, data, said) = world.run(&["fetch", "image", &url, "--checksum", &digest]);
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("disk.raw: downloading 8MiB\n") && said.contains("disk.raw: downloading 50%\n"), "{said}");
    assert!(!said.contains('\u{1b}') && !said.contains('\r'), "{said:?}");
    assert!(data.starts_with("NAME") && data.contains("disk.raw") && data.contains("8MiB"), "{data}");
    world.run(&["image", "remove", "--yes", "disk.raw"]);
    let (code, _, said) = world.run(&["-q", "fetch", "image", &url, "--checksum", &digest]);
    assert_eq!((code, said.as_str()), (0, ""));
}

#[test]
fn an_image_is_imported_shown_checked_and_removed() {
    let world = World::new();
    std::fs::write(world.path("disk.raw"), noise(2 << 20, 60)).unwrap();
    let file = world.path("disk.raw");
    let file = file.to_str().unwrap();
    assert_eq!(
        world.run(&["image", "list"]),
        (
            0,
            String::from("NAME  VERSION  STATE  SIZE  USED  DESCRIPTION\n"),
            "nothing is in the cache; `--all` shows what can be fetched\n".into()
        )
    );
    let (code, _, said) = world.run(&["image", "import", file, "--name", "mine"]);
    assert!(code == 0 && said.ends_with("image `mine` is there, 2MiB\n"), "{said}");
    let (_, shown, _) = world.run(&["image", "show", "mine"]);
    assert!(shown.contains("name:        mine\n") && shown.contains("size:        2MiB\n"), "{shown}");
    assert_eq!(world.run(&["image", "check", "-q"]).0, 0);
    let other = world.path("other.raw");
    std::fs::write(&other, noise(4096, 61)).unwrap();
    let (code, _, said) = world.run(&["image", "import", other.to_str().unwrap(), "--name", "mine"]);
    assert!(code == 1 && said.contains("image `mine` exists already") && said.contains("--refresh"), "{said}");
    // A bit of the kept image changes.
    let object = world.cache().join("objects").join(&world.entries("objects")[0]).join("disk.raw");
    let mut bytes = std::fs::read(&object).unwrap();
    bytes[1_000_000] ^= 1;
    std::fs::write(&object, bytes).unwrap();
    let (code, table, said) = world.run(&["image", "check", "-q", "mine"]);
    assert!(code == 1 && table.contains("it differs from what was fetched"), "{table}{said}");
    assert!(said.contains("vmctl image remove --yes mine"), "{said}");
    assert_eq!(world.run(&["image", "remove", "--yes", "mine"]).2, "mine is removed\n");
    let (code, _, said) = world.run(&["image", "remove", "--yes", "mine"]);
    assert!(code == 1 && said.contains("no image called `mine` is in the cache"), "{said}");
    assert!(world.is_clean());
}

#[test]
fn what_is_no_disk_is_imported_by_nobody_and_named() {
    let world = World::new();
    let html = b"<!DOCTYPE html>\n<html><body>404 Not Found</body></html>\n".to_vec();
    let whole = |mark: &[u8]| [mark, &vec![0; 4096 - mark.len()]].concat();
    for (name, bytes, words) in [
        ("page.img", html.clone(), "it is an HTML page, not a disk image"),
        ("page.raw", [&html[..], &vec![b' '; 1024 - html.len()]].concat(), "it is an HTML page, not a disk image"),
        ("error.img", b"{ \"message\": \"rate limit\" }\n".to_vec(), "it is a text file, not a disk image"),
        ("a.zip", whole(b"PK\x03\x04"), "it is a zip archive, not a disk image"),
        ("a.7z", whole(b"7z\xbc\xaf\x27\x1c"), "it is a 7-zip archive, not a disk image"),
        ("a.rar", whole(b"Rar!\x1a\x07\0"), "it is a RAR archive, not a disk image"),
        ("a.lz4", whole(b"\x04\x22\x4d\x18"), "it is an LZ4 file, not a disk image"),
        ("a.Z", whole(b"\x1f\x9d\x90"), "it is a file of compress(1), not a disk image"),
        ("a.hds", whole(b"WithoutFreeSpace"), "Parallels images are not read"),
        ("a.vma", whole(b"VMA\0"), "Proxmox VMA images are not read"),
        ("._disk.raw", whole(b"\0\x05\x16\x07"), "it is an AppleDouble file"),
        ("odd.raw", noise(1000, 71), "it has 1000 bytes, which is not a multiple of 512: it is incomplete, or no image"),
        ("empty.raw", Vec::new(), "the image is empty"),
    ] {
        let file = world.path(name);
        std::fs::write(&file, bytes).unwrap();
        let (code, _, said) = world.run(&["image", "import", file.to_str().unwrap(), "--name", "x"]);
        assert!(code == 1 && said.contains(words), "{name}: {said}");
    }
    let fifo = world.path("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let (code, _, said) = world.run(&["image", "import", fifo.to_str().unwrap()]);
    assert!(code == 1 && said.contains("it is a FIFO"), "{said}");
    assert!(world.entries("objects").is_empty() && world.is_clean());

    // Who says that it is raw has it, in whole sectors.
    let (code, _, said) =
        world.run(&["image", "import", world.path("odd.raw").to_str().unwrap(), "--name", "x", "--format", "raw"]);
    assert_eq!(code, 0, "{said}");
    let disk = std::fs::read(world.cache().join("objects").join(&world.entries("objects")[0]).join("disk.raw")).unwrap();
    assert_eq!((disk.len(), &disk[..1000]), (1024, &noise(1000, 71)[..]));
    assert_eq!(world.run(&["image", "check", "-q"]).0, 0);
}

#[test]
fn a_sparse_or_cut_archive_is_imported_whole_or_not_at_all() {
    let world = World::new();
    let disk = std::fs::File::create(world.path("disk.raw")).unwrap();
    disk.set_len(8 << 20).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&disk, &noise(70_000, 72), 3 << 20).unwrap();
    let bytes = std::fs::read(world.path("disk.raw")).unwrap();
    let tar = |arguments: &[&str], file: &str| {
        let done = std::process::Command::new("tar")
            .current_dir(world.path(""))
            .args(arguments)
            .args(["-cf", file, "disk.raw"])
            .status();
        assert!(done.unwrap().success());
    };
    for version in ["0.0", "0.1", "1.0"] {
        let file = format!("{version}.tar");
        tar(&["--format=posix", "-S", &format!("--sparse-version={version}")], &file);
        let (code, _, said) = world.run(&["image", "import", world.path(&file).to_str().unwrap(), "--name", "x", "--refresh"]);
        assert_eq!(code, 0, "{said}");
        let (_, shown, _) = world.run(&["image", "show", "x"]);
        let path = shown.lines().find_map(|line| line.strip_prefix("path:")).unwrap().trim();
        assert!(std::fs::read(path).unwrap() == bytes, "{version}");
    }
    tar(&[], "whole.tar");
    let whole = std::fs::read(world.path("whole.tar")).unwrap();
    std::fs::write(world.path("cut.tar"), &whole[..5 << 20]).unwrap();
    let (code, _, said) = world.run(&["image", "import", world.path("cut.tar").to_str().unwrap(), "--name", "cut"]);
    assert!(code == 1 && said.contains("the archive ends within `disk.raw`"), "{said}");
    assert_eq!(world.run(&["image", "show", "cut"]).0, 1);
}

#[test]
fn two_names_share_one_object_until_both_are_gone() {
    let world = World::new();
    std::fs::write(world.path("disk.raw"), noise(1 << 20, 62)).unwrap();
    let file = world.path("disk.raw");
    for name in ["a", "b"] {
        assert_eq!(world.run(&["image", "import", file.to_str().unwrap(), "--name", name, "-q"]).0, 0);
    }
    assert_eq!(world.entries("objects").len(), 1);
    world.run(&["image", "remove", "--yes", "a"]);
    assert_eq!(world.entries("objects").len(), 1);
    world.run(&["image", "remove", "--yes", "b"]);
    assert!(world.entries("objects").is_empty());
}

#[test]
fn an_image_that_is_being_used_is_not_removed() {
    let world = World::new();
    let bytes = noise(1 << 20, 63);
    std::fs::write(world.path("disk.raw"), &bytes).unwrap();
    assert_eq!(world.run(&["image", "import", world.path("disk.raw").to_str().unwrap(), "--name", "a", "-q"]).0, 0);
    let fetcher = world.fetcher(&vmctl::testing::fetch::Silent);
    let used = fetcher.obtain(&vmctl::testing::fetch::Request::new(vmctl::testing::fetch::Kind::Image, "a")).unwrap();
    let (code, _, said) = world.run(&["image", "remove", "--yes", "a"]);
    assert!(code == 1 && said.contains("image `a` is in use"), "{said}");
    drop(used);
    assert_eq!(world.run(&["image", "remove", "--yes", "a"]).0, 0);
}

#[test]
fn prune_removes_cut_downloads_broken_work_and_what_has_no_name_and_says_so() {
    let (world, content) = (World::new(), Content::new(noise(3 << 20, 64)));
    let digest = sha256(&content.bytes).to_string();
    let server = Server::start(move |asked, wire| {
        content.serve_part(asked, wire, if asked.range.is_none() { 1 << 20 } else { 0 });
    });
    let url = server.url("/disk.raw");
    let (code, ..) = world.run(&["fetch", "image", &url, "--checksum", &digest]);
    assert_ne!(code, 0);
    assert_eq!(world.partial_downloads().len(), 1);
    std::fs::create_dir_all(world.cache().join("work/sha256-0-1-0")).unwrap();
    std::fs::write(world.cache().join("work/sha256-0-1-0/disk.raw"), [1; 10_000]).unwrap();
    std::fs::create_dir_all(world.cache().join("objects/sha256-nameless")).unwrap();
    std::fs::write(world.cache().join("objects/sha256-nameless/object.json"), "{}").unwrap();
    let (code, text, _) = world.run(&["image", "prune"]);
    assert_eq!(code, 0);
    assert!(text.contains("removed the incomplete download sha256-"), "{text}");
    assert!(text.contains("removed the remains of interrupted commands"), "{text}");
    assert!(text.contains("removed `sha256-nameless`, which has no name"), "{text}");
    assert!(world.is_clean() && world.entries("partial").is_empty());
    std::fs::write(world.path("old.raw"), noise(8192, 65)).unwrap();
    assert_eq!(world.run(&["image", "import", world.path("old.raw").to_str().unwrap(), "-q"]).0, 0);
    world.run(&["image", "prune", "--unused", "1h"]);
    assert_eq!(world.entries("objects").len(), 1);
    std::thread::sleep(Duration::from_millis(20));
    let (_, text, _) = world.run(&["image", "prune", "--unused", "10ms"]);
    assert!(text.contains("removed image `old.raw`"), "{text}");
    assert!(world.entries("objects").is_empty());
}

#[test]
fn an_installation_medium_is_added_listed_and_removed_and_a_disk_is_no_medium() {
    let world = World::new();
    let mut iso = vec![0u8; 64 << 10];
    iso[32769..32774].copy_from_slice(b"CD001");
    std::fs::write(world.path("small.iso"), iso).unwrap();
    std::fs::write(world.path("disk.raw"), noise(64 << 10, 66)).unwrap();
    let (code, _, said) = world.run(&["iso", "add", "./small.iso", "--name", "small"]);
    assert!(code == 0 && said.ends_with("iso `small` is there, 64KiB\n"), "{said}");
    assert_eq!(world.run(&["iso", "list", "-o", "name"]).1, "small\n");
    let (code, _, said) = world.run(&["iso", "add", "./disk.raw"]);
    assert!(code == 1 && said.contains("it is no ISO 9660 image"), "{said}");
    let (code, _, said) = world.run(&["iso", "add", "https://example.org/x.iso"]);
    assert!(
        code == 1 && said.contains("hint: vmctl fetch iso https://example.org/x.iso") || said.contains("`vmctl fetch iso"),
        "{said}"
    );
    assert_eq!(world.run(&["iso", "remove", "--yes", "small"]).0, 0);
}

#[test]
fn what_cannot_be_fetched_is_refused_with_the_next_step() {
    let world = World::new();
    for (arguments, expected) in [
        (&["fetch", "image", "debian-21"][..], "error: no image is called `debian-21`\nhint: did you mean"),
        (&["fetch", "iso", "debian-12"], "hint: there is such an image: `vmctl fetch image debian-12`"),
        (&["fetch", "image", "ftp://x/y"], "error: `ftp://x/y` is not a URL"),
        (&["fetch", "image", "https://x/y", "--checksum", "12"], "error: `12` is not a checksum"),
        (&["fetch", "image", "./missing.raw"], "error: cannot use `./missing.raw`"),
        (&["image", "show", "nothing"], "error: no image is called `nothing`"),
        (&["fetch", "image", "a", "b", "--name", "c"], "error: `--name` and `--checksum` go with one thing to fetch"),
    ] {
        let (code, _, said) = world.run(arguments);
        assert!(code != 0 && said.contains(expected), "{arguments:?}: {said}");
    }
    if !cfg!(target_os = "freebsd") {
        let (_, _, said) = world.run(&["fetch", "image", "freebsd-built"]);
        assert!(said.contains("is built on FreeBSD only"), "{said}");
    }
}

#[test]
fn an_apply_shows_what_it_fetches_for_a_guest_that_it_makes() {
    let (world, content) = (World::new(), Content::new(noise(1 << 20, 77)));
    let digest = sha256(&content.bytes);
    let server = Server::start(move |asked, wire| content.serve(asked, wire));
    let catalogue =
        format!("[[image]]\nname = 'base'\nurls = ['{}']\nsha256 = '{}'\nformat = 'raw'\n", server.url("/base"), digest.hex());
    std::fs::write(world.path("ours.toml"), catalogue).unwrap();
    let host = format!(
        "cache_dir = '{}'\n[[catalogues]]\nid = 'ours'\nurl = '{}'\n",
        world.cache().display(),
        world.path("ours.toml").display()
    );
    std::fs::write(world.path("vmctl.toml"), host).unwrap();
    std::fs::write(world.path("kernel"), "no kernel").unwrap();
    let fleet = "name = 'f'\n[[guests]]\nname = 'g'\nkernel = { image = 'kernel' }\n\
                 disks = [{ id = 'root', source = 'base', size = '2M' }]\n";
    std::fs::write(world.path("fleet.toml"), fleet).unwrap();
    let store = world.path("store").display().to_string();
    let fleet = world.path("fleet.toml").display().to_string();
    let (code, _, said) = world.run(&["--datastore", &store, "apply", &fleet, "--yes"]);
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("base: downloading"), "{said}");
    assert_eq!(read(&world.path("store/guests/g/disks/root.raw")).len(), 2 << 20);
    // What is there is not fetched again.
    let (code, _, said) = world.run(&["--datastore", &store, "apply", &fleet, "--yes"]);
    assert_eq!((code, said.contains("base:")), (0, false), "{said}");
}
