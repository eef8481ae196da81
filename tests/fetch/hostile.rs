//! Servers that behave badly.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use base64::Engine;
use ring::signature::{Ed25519KeyPair, KeyPair};
use vmctl::testing::fetch::{Event, Fault, Kind, Progress, Request};

use crate::server::{Content, Server, status};
use crate::world::{World, noise, read, said, sha256};

const SIZE: usize = 3 << 20;

#[test]
fn a_download_is_kept_and_found_again_without_the_net() {
    let (world, content) = (World::new(), Content::new(noise(SIZE, 1)));
    let digest = sha256(&content.bytes);
    let server = Server::start({
        let content = content.clone();
        move |asked, wire| content.serve(asked, wire)
    });
    let first = world.fetch(&server.url("/disk.raw"), Some(&digest)).unwrap();
    assert!(first.fresh && read(&first.path) == *content.bytes);
    assert_eq!(first.verified, Some(digest.clone()));
    let second = world.fetch(&server.url("/disk.raw"), Some(&digest)).unwrap();
    assert!(!second.fresh && second.path == first.path);
    assert_eq!(server.asked().len(), 1);
    assert!(world.partial_downloads().is_empty() && world.entries("work").is_empty());
}

#[test]
fn a_download_that_was_cut_goes_on_where_it_was() {
    let (world, content) = (World::new(), Content::new(noise(SIZE, 2)));
    let digest = sha256(&content.bytes);
    let server = Server::start({
        let content = content.clone();
        move |asked, wire| content.serve_part(asked, wire, if asked.number < 2 { 1 << 20 } else { usize::MAX })
    });
    let obtained = world.fetch(&server.url("/disk.raw"), Some(&digest)).unwrap();
    assert!(read(&obtained.path) == *content.bytes);
    let asked = server.asked();
    let ranges: Vec<_> = asked.iter().map(|asked| asked.range).collect();
    assert_eq!(ranges, [None, Some(1 << 20), Some(2 << 20)]);
    assert_eq!(asked[1].if_range.as_deref(), Some("\"v1\""));
}

#[test]
fn a_server_that_promises_more_than_it_sends_leaves_a_part_that_the_next_run_takes_up() {
    let (world, content) = (World::new(), Content::new(noise(SIZE, 3)));
    let digest = sha256(&content.bytes);
    let honest = Arc::new(AtomicBool::new(false));
    let server = Server::start({
        let (content, honest) = (content.clone(), honest.clone());
        move |asked, wire| {
            if honest.load(Ordering::SeqCst) {
                return content.serve(asked, wire);
            }
            // Only ever the first MiB, whatever is asked.
            let start = asked.range.unwrap_or(0) as usize;
            content.serve_part(asked, wire, (1usize << 20).saturating_sub(start));
        }
    });
    let error = world.fetch(&server.url("/disk.raw"), Some(&digest)).unwrap_err();
    assert!(error.contains("the connection was cut"), "{error}");
    assert_eq!(world.partial_downloads().len(), 1);
    assert!(world.entries("objects").is_empty() && world.entries("work").is_empty());
    honest.store(true, Ordering::SeqCst);
    let obtained = world.fetch(&server.url("/disk.raw"), Some(&digest)).unwrap();
    assert!(read(&obtained.path) == *content.bytes);
    assert_eq!(server.asked().last().unwrap().range, Some(1 << 20));
    assert!(world.partial_downloads().is_empty());
}

#[test]
fn a_server_that_promises_less_than_the_file_is_caught_by_the_digest() {
    let (world, content) = (World::new(), Content::new(noise(SIZE, 4)));
    let digest = sha256(&content.bytes);
    let short = Content::new(content.bytes[..SIZE / 2].to_vec());
    let server = Server::start(move |asked, wire| short.serve(asked, wire));
    let error = world.fetch(&server.url("/disk.raw"), Some(&digest)).unwrap_err();
    assert!(error.contains("instead of sha256:"), "{error}");
    assert!(world.is_clean());
}

#[test]
fn a_server_that_stalls_is_left_and_asked_for_the_rest() {
    let (world, content) = (World::new(), Content::new(noise(SIZE, 5)));
    let digest = sha256(&content.bytes);
    let server = Server::start({
        let content = content.clone();
        move |asked, wire| match asked.number {
            0 => {
                content.serve_part(asked, wire, 1 << 20);
                std::thread::sleep(Duration::from_secs(20));
            }
            _ => content.serve(asked, wire),
        }
    });
    let obtained = world.fetch(&server.url("/disk.raw"), Some(&digest)).unwrap();
    assert!(read(&obtained.path) == *content.bytes);
    assert_eq!(server.asked()[1].range, Some(1 << 20));
}

#[test]
fn a_server_that_says_nothing_and_one_that_trickles_are_given_up() {
    let world = World::new();
    let silent = Server::start(|_, _| std::thread::sleep(Duration::from_secs(60)));
    let error = world.fetch(&silent.url("/disk.raw"), Some(&sha256(b""))).unwrap_err();
    assert!(error.contains("the server does not answer"), "{error}");
    let trickle = Server::start(|_, wire| {
        let _ = wire.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n");
        while wire.write_all(b"x").and_then(|()| wire.flush()).is_ok() {
            std::thread::sleep(Duration::from_millis(200));
        }
    });
    let error = world.fetch(&trickle.url("/disk.raw"), Some(&sha256(b""))).unwrap_err();
    assert!(error.contains("stalled") || error.contains("cut"), "{error}");
}

#[test]
fn redirects_are_followed_but_not_without_end() {
    let (world, content) = (World::new(), Content::new(noise(1024, 6)));
    let digest = sha256(&content.bytes);
    let server = Server::start(move |asked, wire| match asked.path.as_str() {
        "/moved.raw" => status(wire, "302 Found", "Location: /disk.raw\r\n"),
        "/disk.raw" => content.serve(asked, wire),
        _ => status(wire, "301 Moved Permanently", &format!("Location: /loop{}\r\n", asked.number)),
    });
    world.fetch(&server.url("/moved.raw"), Some(&digest)).unwrap();
    let before = server.asked().len();
    let error = world.fetch(&server.url("/loop"), Some(&sha256(b"another"))).unwrap_err();
    assert!(error.contains("leads nowhere: the server redirects without end"), "{error}");
    assert!(server.asked().len() - before <= 12, "{}", server.asked().len());
}

#[test]
fn a_range_that_was_not_asked_for_is_not_used() {
    for lie in ["bytes 0-3145727/3145728", "bytes 1048577-3145727/3145728", "bytes 1048576-3145727/3145729", "nonsense"] {
        let (world, content) = (World::new(), Content::new(noise(SIZE, 7)));
        let digest = sha256(&content.bytes);
        let server = Server::start({
            let content = content.clone();
            move |asked, wire| match asked.range {
                None if asked.number == 0 => content.serve_part(asked, wire, 1 << 20),
                None => content.serve(asked, wire),
                Some(start) => {
                    let rest = &content.bytes[start as usize..];
                    let head =
                        format!("HTTP/1.1 206 Partial Content\r\nContent-Range: {lie}\r\nContent-Length: {}\r\n\r\n", rest.len());
                    let _ = wire.write_all(head.as_bytes()).and_then(|()| wire.write_all(rest));
                }
            }
        });
        let obtained = world.fetch(&server.url("/disk.raw"), Some(&digest)).unwrap_or_else(|error| panic!("{lie}: {error}"));
        assert!(read(&obtained.path) == *content.bytes, "{lie}");
    }
}

#[test]
fn a_range_with_other_bytes_is_caught_by_the_digest_and_the_file_taken_from_its_start() {
    let (world, content) = (World::new(), Content::new(noise(SIZE, 8)));
    let digest = sha256(&content.bytes);
    let server = Server::start({
        let content = content.clone();
        move |asked, wire| match asked.range {
            None if asked.number == 0 => content.serve_part(asked, wire, 1 << 20),
            None => content.serve(asked, wire),
            Some(_) => {
                let (head, rest) = content.right_answer(asked);
                let _ = wire.write_all(head.as_bytes()).and_then(|()| wire.write_all(&vec![7; rest.len()]));
            }
        }
    });
    let obtained = world.fetch(&server.url("/disk.raw"), Some(&digest)).unwrap();
    assert!(read(&obtained.path) == *content.bytes);
    assert_eq!(server.asked().iter().map(|asked| asked.range).collect::<Vec<_>>(), [None, Some(1 << 20), None]);
}

#[test]
fn a_server_without_ranges_sends_the_file_again() {
    let (world, content) = (World::new(), Content::new(noise(SIZE, 9)));
    let digest = sha256(&content.bytes);
    let server = Server::start({
        let content = content.clone();
        move |asked, wire| {
            let asked = crate::server::Asked { range: None, ..asked.clone() };
            content.serve_part(&asked, wire, if asked.number == 0 { 1 << 20 } else { usize::MAX });
        }
    });
    let obtained = world.fetch(&server.url("/disk.raw"), Some(&digest)).unwrap();
    assert!(read(&obtained.path) == *content.bytes);
}

#[test]
fn a_file_that_changes_under_a_resume_comes_whole_and_of_one_piece() {
    let (world, old) = (World::new(), Content::new(noise(SIZE, 10)));
    let new = Content { etag: "\"v2\"", ..Content::new(noise(SIZE, 11)) };
    let server = Server::start({
        let new = new.clone();
        move |asked, wire| match asked.number {
            0 => old.serve_part(asked, wire, 1 << 20),
            _ => new.serve(asked, wire),
        }
    });
    // Nothing but If-Range can tell here.
    let request = Request { allow_unverified: true, ..Request::new(Kind::Image, server.url("/disk.raw")) };
    let obtained = world.fetcher(&vmctl::testing::fetch::Silent).obtain(&request).unwrap();
    assert!(read(&obtained.path) == *new.bytes);
    assert_eq!(obtained.verified, None);
    assert_eq!(server.asked()[1].if_range.as_deref(), Some("\"v1\""));
}

#[test]
fn mirrors_are_tried_in_turn_and_the_next_one_goes_on() {
    let (world, content) = (World::new(), Content::new(noise(SIZE, 12)));
    let gone = Server::start(|_, wire| status(wire, "404 Not Found", ""));
    let cutting = Server::start({
        let content = content.clone();
        move |asked, wire| match asked.number {
            0 => content.serve_part(asked, wire, 1 << 20),
            _ => status(wire, "503 Service Unavailable", ""),
        }
    });
    let good = Server::start({
        let content = Content { etag: "\"other\"", ..content.clone() };
        move |asked, wire| content.serve(asked, wire)
    });
    let catalogue = format!(
        "[[image]]\nname = 'disk'\nurls = ['{}', '{}', '{}']\nsha256 = '{}'\nformat = 'raw'\nuser = 'debian'\nleast_disk = '2G'\n",
        gone.url("/a"),
        cutting.url("/b"),
        good.url("/c"),
        sha256(&content.bytes).hex()
    );
    let obtained = world.fetch_name(&catalogue, Kind::Image, "disk").unwrap();
    assert!(read(&obtained.path) == *content.bytes);
    assert_eq!(obtained.facts.user.as_deref(), Some("debian"));
    assert_eq!(obtained.facts.least_disk_bytes, Some(2 << 30));
    assert_eq!(gone.asked().len(), 1);
    assert_eq!(good.asked().len(), 1);
    assert_eq!((good.asked()[0].range, good.asked()[0].if_range.clone()), (Some(1 << 20), None));
}

#[test]
fn when_no_mirror_has_it_the_last_reason_is_told() {
    let world = World::new();
    let server = Server::start(|_, wire| status(wire, "404 Not Found", ""));
    let catalogue = format!(
        "[[image]]\nname = 'disk'\nurls = ['{}', '{}']\nsha256 = '{}'\n",
        server.url("/a"),
        server.url("/b"),
        "0".repeat(64)
    );
    let error = world.fetch_name(&catalogue, Kind::Image, "disk").unwrap_err();
    assert!(error.starts_with("image `disk` could not be fetched: none of 2 mirrors has it whole: "), "{error}");
    assert!(error.contains("/b`: the server answers 404 Not Found"), "{error}");
}

#[test]
fn a_wrong_file_is_refused_with_both_digests_and_not_kept() {
    let (world, content) = (World::new(), Content::new(noise(SIZE, 13)));
    let found = sha256(&content.bytes);
    let server = Server::start(move |asked, wire| content.serve(asked, wire));
    let wanted = sha256(b"something else");
    let error = world.fetch(&server.url("/disk.raw"), Some(&wanted)).unwrap_err();
    assert!(error.contains(&found.to_string()) && error.contains(&wanted.to_string()), "{error}");
    assert!(world.is_clean());
    assert_eq!(server.asked().len(), 1, "a whole file that is wrong is not asked for again");
}

#[test]
fn without_a_checksum_nothing_is_fetched() {
    let world = World::new();
    let server = Server::start(|_, wire| status(wire, "500 no", ""));
    let error = world.fetch(&server.url("/disk.raw"), None).unwrap_err();
    assert!(error.contains("there is no checksum to verify it with") && error.contains("--insecure-no-checksum"), "{error}");
    assert!(server.asked().is_empty());
}

#[test]
fn a_size_that_the_catalogue_knows_is_held_to() {
    let (world, content) = (World::new(), Content::new(noise(5000, 14)));
    let digest = sha256(&content.bytes);
    let server = Server::start(move |asked, wire| content.serve(asked, wire));
    let catalogue =
        format!("[[image]]\nname = 'disk'\nurls = ['{}']\nsha256 = '{}'\nsize = 5001\n", server.url("/a"), digest.hex());
    let error = world.fetch_name(&catalogue, Kind::Image, "disk").unwrap_err();
    assert!(error.contains("has 5000 bytes instead of 5001"), "{error}");
}

#[test]
fn a_file_that_cannot_fit_on_the_disk_is_refused_before_a_byte_of_it_is_kept() {
    let world = World::new();
    let server = Server::start(|_, wire| {
        let _ = wire.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1152921504606846976\r\n\r\nxxxxxxxx");
        std::thread::sleep(Duration::from_secs(5));
    });
    let error = world.fetch(&server.url("/disk.raw"), Some(&sha256(b""))).unwrap_err();
    assert!(error.contains("left, and 1024PiB are needed"), "{error}");
    assert!(world.is_clean());
}

/// A checksum file and the key that signed it.
fn signed(text: &str) -> (String, String) {
    let pair = Ed25519KeyPair::from_seed_unchecked(&[3; 32]).unwrap();
    let pack = |bytes: &[u8]| base64::engine::general_purpose::STANDARD.encode([&b"Ed12345678"[..], bytes].concat());
    let signature = pack(pair.sign(text.as_bytes()).as_ref());
    (format!("untrusted comment: verify with test.pub\n{signature}\n{text}"), pack(pair.public_key().as_ref()))
}

#[test]
fn a_signed_checksum_file_is_believed_and_a_changed_one_or_one_that_lacks_the_name_is_not() {
    let content = Content::new(noise(SIZE, 15));
    let line = format!("SHA256 (install.iso) = {}\n", sha256(&content.bytes).hex());
    let (right, key) = signed(&line);
    let (lacking, _) = signed("SHA256 (other.iso) = 0000000000000000000000000000000000000000000000000000000000000000\n");
    let changed = right.replace("install.iso", "Install.iso");
    let endless = "x".repeat(5 << 20);
    for (sums, expected) in [
        (right, None),
        (lacking, Some("does not list `install.iso`; hint: it lists `other.iso`")),
        (changed, Some("the signature of the checksum file is wrong")),
        (line, Some("does not begin with signify's comment")),
        (endless, Some("is longer than 4194304 bytes")),
    ] {
        let world = World::new();
        let sums = Content::new(sums);
        let server = Server::start({
            let content = content.clone();
            move |asked, wire| if asked.path == "/SHA256.sig" { sums.serve(asked, wire) } else { content.serve(asked, wire) }
        });
        let catalogue = format!(
            "[[image]]\nname = 'it'\nurls = ['{}']\nchecksums = '{}'\nsignify_key = '{key}'\nformat = 'raw'\n",
            server.url("/install.iso"),
            server.url("/SHA256.sig")
        );
        match (world.fetch_name(&catalogue, Kind::Image, "it"), expected) {
            (Ok(obtained), None) => assert!(read(&obtained.path) == *content.bytes),
            (Err(error), Some(expected)) => {
                assert!(error.contains(expected), "{error}");
                assert!(server.asked().iter().all(|asked| asked.path == "/SHA256.sig"), "nothing else is asked for");
                assert!(world.is_clean());
            }
            (outcome, expected) => panic!("{outcome:?} where {expected:?} was expected"),
        }
    }
}

#[test]
fn a_packed_image_is_unpacked_and_converted_and_a_damaged_one_leaves_nothing() {
    let world = World::new();
    let disk = noise(SIZE, 16);
    std::fs::write(world.path("disk.raw"), &disk).unwrap();
    let tool = |arguments: &[&str]| {
        let done = std::process::Command::new(arguments[0]).args(&arguments[1..]).current_dir(world.path("")).status();
        assert!(done.unwrap_or_else(|error| panic!("{}: {error}", arguments[0])).success());
    };
    tool(&["qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-c", "disk.raw", "disk.qcow2"]);
    tool(&["xz", "-0", "disk.qcow2"]);
    let packed = read(&world.path("disk.qcow2.xz"));
    let damaged = packed[..packed.len() / 2].to_vec();
    let digests = [sha256(&packed), sha256(&damaged)];
    let server = Server::start(move |asked, wire| {
        let bytes = if asked.path == "/damaged.xz" { &damaged } else { &packed };
        Content::new(bytes.clone()).serve(asked, wire);
    });
    let obtained = world.fetch(&server.url("/disk.qcow2.xz"), Some(&digests[0])).unwrap();
    assert!(read(&obtained.path) == disk);
    let error = world.fetch(&server.url("/damaged.xz"), Some(&digests[1])).unwrap_err();
    assert!(error.contains("the packed file is damaged"), "{error}");
    assert_eq!(world.entries("objects").len(), 1);
    assert!(world.partial_downloads().is_empty() && world.entries("work").is_empty());
}

/// Breaks off after so many bytes.
struct BreaksOff {
    after: u64,
    off: AtomicBool,
}

impl Progress for BreaksOff {
    fn event(&self, _job: &str, event: Event<'_>) {
        if matches!(event, Event::At(done) if done >= self.after) {
            self.off.store(true, Ordering::SeqCst);
        }
    }
    fn cancelled(&self) -> bool {
        self.off.load(Ordering::SeqCst)
    }
}

#[test]
fn an_interrupt_leaves_the_part_and_nothing_else_and_the_next_run_goes_on() {
    let (world, content) = (World::new(), Content::new(noise(8 << 20, 17)));
    let digest = sha256(&content.bytes);
    let server = Server::start({
        let content = content.clone();
        move |asked, wire| content.serve(asked, wire)
    });
    let request = Request { checksum: Some(digest.clone()), ..Request::new(Kind::Image, server.url("/disk.raw")) };
    let breaks = BreaksOff { after: 3 << 20, off: AtomicBool::new(false) };
    let error = world.fetcher(&breaks).obtain(&request).unwrap_err();
    assert_eq!(error.fault(), Fault::Interrupted, "{}", said(&error));
    assert!(world.entries("objects").is_empty() && world.entries("work").is_empty());
    let part = std::fs::metadata(&world.partial_downloads()[0]).unwrap().len();
    assert!((3 << 20..8 << 20).contains(&part), "{part}");
    assert!(read(&world.fetch(&server.url("/disk.raw"), Some(&digest)).unwrap().path) == *content.bytes);
    assert_eq!(server.asked()[1].range, Some(part));
}

#[test]
fn two_who_want_the_same_fetch_it_once() {
    let (world, content) = (World::new(), Content::new(noise(SIZE, 18)));
    let digest = sha256(&content.bytes);
    let bodies = Arc::new(AtomicUsize::new(0));
    let server = Server::start({
        let (content, bodies) = (content.clone(), bodies.clone());
        move |asked, wire| {
            bodies.fetch_add(1, Ordering::SeqCst);
            std::thread::sleep(Duration::from_millis(300));
            content.serve(asked, wire);
        }
    });
    std::thread::scope(|scope| {
        let all: Vec<_> =
            (0..4).map(|_| scope.spawn(|| world.fetch(&server.url("/disk.raw"), Some(&digest)).unwrap().path)).collect();
        let paths: Vec<_> = all.into_iter().map(|thread| thread.join().unwrap()).collect();
        assert!(paths.iter().all(|path| *path == paths[0]));
    });
    assert_eq!(bodies.load(Ordering::SeqCst), 1);
}

#[test]
fn a_page_that_is_no_iso_is_not_kept_as_one() {
    let world = World::new();
    let page = Content::new("<html>please log in</html>".repeat(5000).into_bytes());
    let digest = sha256(&page.bytes);
    let server = Server::start(move |asked, wire| page.serve(asked, wire));
    let request = Request { checksum: Some(digest), ..Request::new(Kind::Iso, server.url("/install.iso")) };
    let error = said(&world.fetcher(&vmctl::testing::fetch::Silent).obtain(&request).unwrap_err());
    assert!(error.contains("it is no ISO 9660 image"), "{error}");
    assert!(world.is_clean());
}
