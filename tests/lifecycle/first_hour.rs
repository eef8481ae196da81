//! The first hour with vmctl as a page, `first-hour.md`: every command of it is run, with the engine of these tests, and
//! what vmctl says is what the page shows. `BLESS=1` writes the page anew.

use std::io::Write;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Stdio;
use std::sync::mpsc::{Receiver, channel};

use crate::world::{World, eventually};

const PAGE: &str = "tests/lifecycle/first-hour.md";

/// The programs and files that the page's commands find in their directory.
fn prepare(world: &World) {
    let image = std::fs::File::create(world.path().join("debian.raw")).expect("made");
    image.set_len(3 << 20).expect("sized");
    std::fs::write(world.path().join("kernel"), "no kernel").expect("writes");
    let fleet = "name = \"shop\"\n\n[defaults]\nkernel.image = \"kernel\"\nmemory = \"64M\"\n\n\
                 [[guests]]\nname = \"db\"\n\n[[guests]]\nname = \"front\"\nautostart = { after = [\"db\"] }\n";
    std::fs::write(world.path().join("fleet.toml"), fleet).expect("writes");
    let bin = world.path().join("bin");
    std::fs::create_dir(&bin).expect("made");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_vmctl"), bin.join("vmctl")).expect("linked");
    // The guest's side: the engine of the tests has no network.
    let ssh = bin.join("ssh");
    std::fs::write(&ssh, "#!/bin/sh\necho 'Linux web 6.1.0-41-cloud-amd64 x86_64 GNU/Linux'\n").expect("writes");
    std::fs::set_permissions(&ssh, std::fs::Permissions::from_mode(0o755)).expect("set");
}

/// What differs from one run to the next, and what the page has in its place.
struct Substitutes {
    /// Ports of this host, in the order in which they were seen: the page has 7200, 7201 and so on.
    ports: Vec<String>,
    /// The free port that is 18080 on the page.
    free: String,
}

impl Substitutes {
    fn new() -> Substitutes {
        let listener = TcpListener::bind("127.0.0.1:0").expect("binds");
        Substitutes { ports: Vec::new(), free: listener.local_addr().expect("has an address").port().to_string() }
    }

    /// Runs a line as a user types it; returns what the terminal would show.
    fn run(&mut self, world: &World, line: &str) -> String {
        let command = world.command(&[]);
        let mut shell = std::process::Command::new("sh");
        let line = line.replace("18080", &self.free);
        shell.args(["-c", &format!("{line} 2>&1")]).env_clear().current_dir(world.path()).stdin(Stdio::null());
        shell.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        shell.env("PATH", format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", world.path().join("bin").display()));
        let output = shell.output().expect("runs");
        let text = String::from_utf8(output.stdout).expect("UTF-8");
        let mut lines: Vec<String> = text.lines().map(|line| self.plain(line, world.path())).collect();
        // Only a slow machine shows them.
        lines.retain(|line| !is_progress(line));
        // Guests are made and removed side by side.
        for done in [" is made", " is gone"] {
            lines.chunk_by_mut(|a, b| a.ends_with(done) && b.ends_with(done)).for_each(<[String]>::sort);
        }
        let mut text: String = lines.iter().map(|line| format!("{line}\n")).collect();
        if !output.status.success() {
            text.push_str(&format!("? {}\n", output.status.code().expect("ended by itself")));
        }
        text
    }

    fn plain(&mut self, line: &str, directory: &Path) -> String {
        let line = line.replace(&directory.display().to_string(), "/home/ada").replace(&self.free, "18080");
        let mut plain = String::new();
        for part in line.split_inclusive(|c: char| !c.is_ascii_alphanumeric()) {
            let word = part.trim_end_matches(|c: char| !c.is_ascii_alphanumeric());
            let end = &part[word.len()..];
            let is_number = !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_digit());
            match word {
                _ if is_number && word.len() == 4 && word.starts_with('7') => plain.push_str(&self.port(word)),
                _ if is_number && plain.ends_with("after ") => plain.push('0'),
                _ if word.strip_suffix('s').is_some_and(|n| n.parse::<u64>().is_ok()) => plain.push_str("0s"),
                _ => plain.push_str(word),
            }
            plain.push_str(end);
        }
        plain.trim_end().to_owned()
    }

    fn port(&mut self, port: &str) -> String {
        let at = self.ports.iter().position(|known| known == port).unwrap_or_else(|| {
            self.ports.push(port.to_owned());
            self.ports.len() - 1
        });
        (7200 + at).to_string()
    }
}

/// Whether a line says how many seconds something takes so far: `web: shutting down, 5 s of 90 s`.
fn is_progress(line: &str) -> bool {
    line.split(", ").any(|part| {
        let mut words = part.split(' ');
        let count = words.next().is_some_and(|word| word.parse::<u64>().is_ok());
        count && words.next().is_some_and(|word| word == "s" || word == "s:")
    })
}

/// Without the widths of columns, which follow the longest word of this run.
fn squeezed(page: &str) -> String {
    page.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ") + "\n").collect()
}

/// Greets as sshd does at the guest's forward, once the guest runs; the channel tells from when on.
fn greet(world: &World) -> Receiver<()> {
    let (sender, greets) = channel();
    let (directory, mut ask) = (world.guest("web"), world.command(&["info", "web", "-o", "jsonl"]));
    std::thread::spawn(move || {
        eventually("web runs", || {
            let output = ask.output().expect("runs");
            String::from_utf8_lossy(&output.stdout).contains("\"state\":\"running\"")
        });
        let text = std::fs::read_to_string(directory.join("guest.toml")).expect("reads");
        let port = text.split("host_port = ").nth(1).expect("a forward");
        let port: u16 = port.chars().take_while(char::is_ascii_digit).collect::<String>().parse().expect("a port");
        let listener = TcpListener::bind(("127.0.0.1", port)).expect("binds");
        sender.send(()).expect("somebody waits");
        for mut stream in listener.incoming().flatten() {
            let _ = stream.write_all(b"SSH-2.0-test\r\n");
        }
    });
    greets
}

#[test]
fn the_page_of_the_first_hour_shows_what_vmctl_says() {
    let world = World::new().with_cache();
    prepare(&world);
    let greets = greet(&world);
    let page = std::fs::read_to_string(PAGE).expect("the page");
    let mut now = String::new();
    let mut shown = false;
    let mut substitutes = Substitutes::new();
    for line in page.lines() {
        if let Some(typed) = line.strip_prefix("$ ") {
            now.push_str(&format!("{line}\n{}", substitutes.run(&world, typed)));
            if typed.starts_with("vmctl launch") {
                greets.recv().expect("web runs");
            }
            shown = true;
            continue;
        }
        if line.starts_with("```") {
            shown = false;
        }
        // What the page has behind a command is made anew.
        if !shown {
            now.push_str(line);
            now.push('\n');
        }
    }
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(PAGE, &now).expect("writes");
        return;
    }
    for (now, page) in squeezed(&now).lines().zip(squeezed(&page).lines()) {
        assert_eq!(now, page, "{PAGE} is behind what vmctl says: BLESS=1 cargo test --test lifecycle first_hour");
    }
}
