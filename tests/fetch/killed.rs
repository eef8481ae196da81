//! kill -9 at points of a fetch, and then a run that finishes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::server::{Content, Server};
use crate::world::{World, noise, read, sha256};

const SIZE: usize = 4 << 20;

/// Polls until `done`.
fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(60), "{what} did not come");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_download_that_is_killed_anywhere_is_finished_by_the_next_run() {
    let (world, content) = (World::new(), Content::new(noise(SIZE, 30)));
    let digest = sha256(&content.bytes).to_string();
    // The server stops at a mark that the test moves, and holds the connection.
    let mark = Arc::new(AtomicU64::new(0));
    let server = Server::start({
        let (content, mark) = (content.clone(), mark.clone());
        move |asked, wire| {
            let (head, body) = content.right_answer(asked);
            let start = asked.range.unwrap_or(0);
            if wire.write_all(head.as_bytes()).is_err() {
                return;
            }
            for (at, piece) in body.chunks(64 << 10).enumerate() {
                let position = start + (at as u64) * (64 << 10);
                while position >= mark.load(Ordering::SeqCst) {
                    std::thread::sleep(Duration::from_millis(5));
                }
                if wire.write_all(piece).and_then(|()| wire.flush()).is_err() {
                    return;
                }
            }
        }
    });
    let url = server.url("/disk.raw");
    let arguments = ["fetch", "image", &url, "--checksum", &digest];
    for point in [0u64, 256 << 10, 1 << 20, 2 << 20, 3 << 20] {
        mark.store(point, Ordering::SeqCst);
        let before = server.asked().len();
        let mut child = world.vmctl(&arguments).stderr(std::process::Stdio::null()).spawn().unwrap();
        wait_for("a request", || server.asked().len() > before);
        // Whole pieces of 256 KiB are written at once.
        wait_for("the part", || {
            world.partial_downloads().first().map_or(0, |part| std::fs::metadata(part).unwrap().len()) >= point
        });
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(world.entries("objects").is_empty(), "nothing is kept that is not whole");
    }
    mark.store(u64::MAX, Ordering::SeqCst);
    let (status, _, said) = world.run(&arguments);
    assert_eq!(status, 0, "{said}");
    assert_eq!(server.asked().last().unwrap().range, Some(3 << 20), "what came before is not asked for again");
    let object = world.cache().join("objects").join(&world.entries("objects")[0]).join("disk.raw");
    assert!(read(&object) == *content.bytes);
    assert!(world.entries("work").is_empty() && world.entries("partial").is_empty());
}

#[test]
fn a_fetch_that_is_killed_while_it_unpacks_and_converts_is_finished_by_the_next_run() {
    let world = World::new();
    let mut disk = noise(24 << 20, 31);
    // Compresses a little, so that unpacking and converting take their time.
    disk.iter_mut().for_each(|byte| *byte &= 0x3f);
    std::fs::write(world.path("disk.raw"), &disk).unwrap();
    for tool in
        [&["qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-c", "disk.raw", "disk.qcow2"][..], &["xz", "-0", "disk.qcow2"]]
    {
        let done = std::process::Command::new(tool[0]).args(&tool[1..]).current_dir(world.path("")).status();
        assert!(done.unwrap_or_else(|error| panic!("{}: {error}", tool[0])).success());
    }
    let content = Content::new(read(&world.path("disk.qcow2.xz")));
    let digest = sha256(&content.bytes).to_string();
    let server = Server::start({
        let content = content.clone();
        move |asked, wire| content.serve(asked, wire)
    });
    let url = server.url("/disk.qcow2.xz");
    let arguments = ["fetch", "image", &url, "--checksum", &digest];
    let file_in_work =
        |name: &str| world.entries("work").iter().any(|entry| world.cache().join("work").join(entry).join(name).exists());
    for name in ["unpacked", "disk.raw"] {
        let mut child = world.vmctl(&arguments).stderr(std::process::Stdio::null()).spawn().unwrap();
        wait_for(name, || file_in_work(name) || child.try_wait().unwrap().is_some());
        child.kill().unwrap();
        child.wait().unwrap();
    }
    let (status, _, said) = world.run(&arguments);
    assert_eq!(status, 0, "{said}");
    let object = world.cache().join("objects").join(&world.entries("objects")[0]).join("disk.raw");
    assert!(read(&object) == disk);
    assert!(world.entries("work").is_empty() && world.entries("partial").is_empty());
    let again = server.asked().split_off(1);
    assert!(again.iter().all(|asked| asked.range.is_some()), "what has come is not asked for again: {again:?}");
}

#[test]
fn an_interrupted_command_says_so_and_sweeps_what_it_made() {
    let (world, content) = (World::new(), Content::new(noise(SIZE, 32)));
    let digest = sha256(&content.bytes).to_string();
    let server = Server::start({
        let content = content.clone();
        move |asked, wire| {
            content.serve_part(asked, wire, 1 << 20);
            std::thread::sleep(Duration::from_secs(30));
        }
    });
    let url = server.url("/disk.raw");
    let child =
        world.vmctl(&["fetch", "image", &url, "--checksum", &digest]).stderr(std::process::Stdio::piped()).spawn().unwrap();
    wait_for("the part", || !world.partial_downloads().is_empty());
    let start = Instant::now();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.id() as i32), nix::sys::signal::Signal::SIGINT).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(start.elapsed() < Duration::from_secs(20), "it does not wait for the server");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("error: interrupted") && said.contains("resumes where it was interrupted"), "{said}");
    assert_eq!(output.status.code(), Some(1));
    assert!(world.entries("work").is_empty() && world.entries("objects").is_empty());
    assert_eq!(world.partial_downloads().len(), 1);
}
