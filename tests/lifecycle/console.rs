//! The console: through the protocol, and through the command on a terminal.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::fcntl::OFlag;
use nix::pty::{PtyMaster, grantpt, posix_openpt, unlockpt};
use nix::sys::termios::{LocalFlags, tcgetattr};
use vmctl::testing::guest::control::{ControlClient, Frame, Reply, Request};

use crate::world::{World, eventually};

fn open(world: &World, write: bool, take: bool) -> (ControlClient, bool) {
    let socket = world.guest("g").join("control.sock");
    let request = Request::Console { write, take, replay_bytes: 1 << 20 };
    let mut client = ControlClient::ask(&socket, request).expect("connects").expect("is there");
    match client.reply().expect("answers") {
        Some(Reply::Console { writer }) => (client, writer),
        other => panic!("{other:?}"),
    }
}

/// Reads console bytes until they end with `text`.
#[track_caller]
fn read_until(client: &mut ControlClient, text: &str) -> String {
    let mut seen = Vec::new();
    client.stream().set_read_timeout(Some(Duration::from_secs(20))).expect("sets");
    while !String::from_utf8_lossy(&seen).contains(text) {
        match client.receive().unwrap_or_else(|error| panic!("{}: saw {:?}", error.chain(), String::from_utf8_lossy(&seen))) {
            Some(Frame::Console(bytes)) => seen.extend(bytes),
            Some(Frame::Json(_)) => {}
            None => panic!("ended; saw {:?}", String::from_utf8_lossy(&seen)),
        }
    }
    String::from_utf8_lossy(&seen).into_owned()
}

fn type_in(client: &mut ControlClient, text: &str) {
    client.send(&Frame::Console(text.as_bytes().to_vec())).expect("sends");
}

#[test]
fn one_types_and_all_see_and_who_comes_later_sees_what_was_before() {
    let world = World::new();
    world.make("g", "echo say:login:", "");
    world.vmctl(&["start", "g"]).ok();
    let (mut first, writes) = open(&world, true, false);
    assert!(writes);
    assert_eq!(read_until(&mut first, "login:"), "login:");
    let (mut second, writes) = open(&world, true, false);
    assert!(!writes);
    type_in(&mut second, "ignored");
    type_in(&mut first, "root");
    assert_eq!(read_until(&mut second, ">"), "login:<root>");
    let (mut third, writes) = open(&world, true, true);
    assert!(writes);
    type_in(&mut third, "\u{3}");
    assert!(read_until(&mut third, "<\u{3}>").starts_with("login:<root>"));
    type_in(&mut first, "also ignored");
    type_in(&mut third, "x");
    assert_eq!(read_until(&mut first, "<x>"), "<root><\u{3}><x>");
}

#[test]
fn a_reader_that_does_not_read_holds_nobody_up() {
    let world = World::new();
    world.make("g", "sleep:300 spam:8192 say:END", "ready = { console = \"END\" }");
    world.vmctl(&["start", "g"]).ok();
    let (mut slow, _) = open(&world, false, false);
    world.vmctl(&["start", "g", "--if-stopped", "--wait"]).ok();
    eventually("the guest has said it all", || world.state("g")["ready"] == true);
    let resident = std::fs::read_to_string(format!("/proc/{}/statm", world.state("g")["pid"])).expect("the supervisor");
    let pages: u64 = resident.split(' ').nth(1).expect("a field").parse().expect("a number");
    assert!(pages * 4 < 64 * 1024, "{pages} pages resident");
    // It learns what it missed once it reads again, and sees the end.
    let mut notices = 0;
    slow.stream().set_read_timeout(Some(Duration::from_secs(5))).expect("sets");
    let (mut console, mut seen) = (0u64, 0u64);
    world.vmctl(&["stop", "g"]).ok();
    while let Ok(Some(frame)) = slow.receive() {
        match frame {
            Frame::Console(bytes) => console += bytes.len() as u64,
            Frame::Json(_) => notices += 1,
        }
        seen += 1;
    }
    assert!(seen > 0 && console < 8 << 20, "{console} bytes");
    assert!(notices <= 2);
}

#[test]
fn garbage_on_the_control_socket_hurts_nobody() {
    let world = World::new();
    world.make("g", "", "");
    world.vmctl(&["start", "g"]).ok();
    let socket = world.guest("g").join("control.sock");
    let mut streams = Vec::new();
    for number in 0..100u8 {
        let mut stream = UnixStream::connect(&socket).expect("connects");
        let _ = stream.write_all(&[number; 100]);
        streams.push(stream);
    }
    let mut unknown = UnixStream::connect(&socket).expect("connects");
    drop(streams);
    unknown.write_all(&Frame::Json(b"{\"version\":9,\"request\":\"status\"}".to_vec()).encode()).expect("writes");
    let mut answer = Vec::new();
    unknown.read_to_end(&mut answer).expect("answers");
    assert!(String::from_utf8_lossy(&answer).contains("speaks version 1"), "{answer:?}");
    world.vmctl(&["stop", "g"]).ok();
}

/// `vmctl console` on a terminal of its own.
pub struct Terminal {
    child: Child,
    ours: PtyMaster,
    theirs: File,
    seen: Vec<u8>,
}

/// The name of a terminal's other end.
#[cfg(target_os = "linux")]
fn other_end(master: &PtyMaster) -> String {
    nix::pty::ptsname_r(master).expect("a name")
}

/// The name of a terminal's other end.
#[cfg(not(target_os = "linux"))]
#[allow(unsafe_code)]
fn other_end(master: &PtyMaster) -> String {
    static ONE_AT_A_TIME: std::sync::Mutex<()> = std::sync::Mutex::new(());
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    // SAFETY: ptsname(3) answers in a buffer of its own, which nothing else reads while the lock is held.
    unsafe { nix::pty::ptsname(master) }.expect("a name")
}

impl Terminal {
    pub fn open(world: &World, arguments: &[&str]) -> Terminal {
        Terminal::of(&mut world.command(arguments))
    }

    pub fn of(command: &mut Command) -> Terminal {
        // Close-on-exec from the beginning: a terminal whose end another test's child holds never disappears.
        let master = posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).expect("a terminal");
        grantpt(&master).expect("granted");
        unlockpt(&master).expect("unlocked");
        let name = other_end(&master);
        let slave = File::options().read(true).write(true).custom_flags(OFlag::O_NOCTTY.bits()).open(name).expect("opens");
        let end = || Stdio::from(slave.try_clone().expect("cloned"));
        command.stdin(end()).stdout(end()).stderr(end());
        let child = command.spawn().expect("runs");
        Terminal { child, ours: master, theirs: slave, seen: Vec::new() }
    }

    #[track_caller]
    pub fn wait_for(&mut self, text: &str) {
        let started = Instant::now();
        loop {
            let mut buffer = [0; 4096];
            if let Ok(count) = self.ours.read(&mut buffer) {
                self.seen.extend(&buffer[..count]);
            }
            let seen = String::from_utf8_lossy(&self.seen);
            if seen.contains(text) {
                return self.seen.clear();
            }
            assert!(started.elapsed() < Duration::from_secs(20), "no {text:?} in {seen:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// What the command shows until it ends.
    pub fn all(&mut self) -> String {
        let mut buffer = [0; 4096];
        eventually("the command ends", || {
            let ended = self.child.try_wait().expect("waits").is_some();
            while let Ok(count @ 1..) = self.ours.read(&mut buffer) {
                self.seen.extend(&buffer[..count]);
            }
            ended
        });
        String::from_utf8_lossy(&self.seen).into_owned()
    }

    pub fn type_in(&mut self, text: &str) {
        self.ours.write_all(text.as_bytes()).expect("writes");
    }

    pub fn is_raw(&self) -> bool {
        !tcgetattr(&self.theirs).expect("a terminal").local_flags.contains(LocalFlags::ICANON)
    }

    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.child.id() as i32), signal).expect("sent");
    }

    pub fn code(&mut self) -> Option<i32> {
        eventually("the command ends", || {
            // What it still writes must have somewhere to go.
            let _ = self.ours.read(&mut [0; 4096]);
            self.child.try_wait().expect("waits").is_some()
        });
        self.child.wait().expect("waited").code()
    }
}

#[test]
fn a_session_on_a_terminal_is_left_and_come_back_to() {
    let world = World::new();
    world.make("g", "echo say:login:", "");
    world.vmctl(&["start", "g"]).ok();
    let log = world.path().join("session.log");
    let mut terminal = Terminal::open(&world, &["console", "g", "--log", log.to_str().expect("UTF-8")]);
    terminal.wait_for("login:");
    assert!(terminal.is_raw());
    terminal.type_in("a~.b\u{3}\r");
    terminal.wait_for("<a~.b\u{3}\r>");
    terminal.type_in("~?");
    terminal.wait_for("leave the console");
    terminal.type_in("~.");
    terminal.wait_for("g keeps running");
    assert_eq!(terminal.code(), Some(0));
    assert!(!terminal.is_raw());
    assert_eq!(world.word("g"), "running");
    let mut again = Terminal::open(&world, &["console", "g", "--read-only"]);
    again.wait_for("login:<a~.b\u{3}\r>");
    again.type_in("nobody hears this");
    world.vmctl(&["stop", "g"]).ok();
    again.wait_for("g has stopped");
    assert_eq!(again.code(), Some(0));
    let logged = std::fs::read(&log).expect("a log");
    assert!(logged.starts_with(b"login:<a~.b"), "{logged:?}");
}

#[test]
fn a_long_paste_reaches_the_guest_to_its_last_byte() {
    let world = World::new();
    // It takes its time, so that what is typed waits in every place there is.
    world.make("g", "echo slow say:login:", "console = { scrollback = \"4M\" }");
    world.vmctl(&["start", "g"]).ok();
    let text: String = (0..60_000).map(|number| format!("{number:06}\n")).collect();
    let mut command = world.command(&["console", "g"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("runs");
    let mut stdin = child.stdin.take().expect("piped");
    let paste = text.clone();
    let feeder = std::thread::spawn(move || stdin.write_all(paste.as_bytes()).expect("takes it all"));
    let mut stdout = child.stdout.take().expect("piped");
    let (mut seen, mut buffer) = (Vec::new(), [0; 1 << 16]);
    let started = Instant::now();
    while !seen.ends_with(b"059999\n>") {
        let count = stdout.read(&mut buffer).expect("reads");
        seen.extend(&buffer[..count]);
        assert!(count > 0 && started.elapsed() < Duration::from_secs(60), "{} bytes came back", seen.len());
    }
    feeder.join().expect("no panic");
    let echoed: Vec<u8> = seen.into_iter().filter(|byte| !b"<>".contains(byte)).collect();
    assert_eq!(echoed.strip_prefix(b"login:"), Some(text.as_bytes()));
    child.kill().expect("killed");
    child.wait().expect("ended");
}

#[test]
fn a_session_whose_log_cannot_be_written_says_so_once() {
    let world = World::new();
    world.make("g", "echo say:login:", "");
    world.vmctl(&["start", "g"]).ok();
    let mut terminal = Terminal::open(&world, &["console", "g", "--log", "/dev/full"]);
    terminal.wait_for("the session's log cannot be written");
    terminal.type_in("on\r");
    terminal.wait_for("<on\r>");
    terminal.type_in("~.");
    terminal.wait_for("g keeps running");
    assert_eq!(terminal.code(), Some(0));
}

#[test]
fn a_session_without_input_shows_what_was_said_and_ends_even_while_the_guest_speaks() {
    let world = World::new();
    world.make("quiet", "echo say:login:", "");
    world.make("loud", "spam:1000000", "");
    world.vmctl(&["start", "quiet", "loud"]).ok();
    let started = Instant::now();
    world.vmctl(&["console", "quiet"]).ok().says("login:").says("quiet keeps running");
    world.vmctl(&["console", "loud"]).ok();
    assert!(started.elapsed() < Duration::from_secs(15), "{:?}", started.elapsed());
    assert_eq!(world.word("quiet"), "running");
    // What is piped in is typed, and its answer shown.
    let mut child = world.command(&["console", "quiet"]);
    let mut child = child.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("runs");
    child.stdin.take().expect("piped").write_all(b"on\n").expect("written");
    let output = child.wait_with_output().expect("ends");
    assert!(String::from_utf8_lossy(&output.stdout).contains("<on\n>"), "{output:?}");
    // One that watches has nothing to type, and stays.
    let mut watch = world.command(&["console", "quiet", "--read-only"]).stdout(Stdio::null()).spawn().expect("runs");
    std::thread::sleep(Duration::from_millis(1500));
    assert!(watch.try_wait().expect("waits").is_none());
    watch.kill().expect("killed");
    watch.wait().expect("ended");
}

#[test]
fn the_escapes_mean_the_same_in_console_and_in_run() {
    let world = World::new();
    world.make("g", "say:login:", "");
    let mut run = Terminal::open(&world, &["run", "g"]);
    run.wait_for("login:");
    run.type_in("~.");
    run.wait_for("left the console; g keeps running until this command ends");
    assert!(!run.is_raw());
    assert_eq!(world.word("g"), "running");
    let mut console = Terminal::open(&world, &["console", "g"]);
    console.wait_for("login:");
    console.type_in("~.");
    console.wait_for("left the console; g keeps running");
    assert_eq!((console.code(), world.word("g")), (Some(0), "running".into()));
    let mut console = Terminal::open(&world, &["console", "g"]);
    console.wait_for("login:");
    console.type_in("~s");
    console.wait_for("g has stopped");
    assert_eq!((console.code(), run.code()), (Some(0), Some(0)));
    let mut run = Terminal::open(&world, &["run", "g"]);
    run.wait_for("login:");
    run.type_in("~s");
    run.wait_for("the guest powered off");
    assert_eq!(run.code(), Some(0));
}

#[test]
fn what_a_guest_says_moves_no_terminal_that_reads_its_log() {
    let world = World::new();
    world.make("g", "say:a\\u001b]52;c;cm0=\\u0007b", "description = \"a \\u001b[2J description\"");
    world.vmctl(&["start", "g"]).ok();
    eventually("it has said it", || world.vmctl(&["logs", "g"]).out == "a\u{1b}]52;c;cm0=\u{7}b");
    let mut terminal = Terminal::open(&world, &["logs", "g"]);
    terminal.wait_for("a^[]52;c;cm0=^Gb");
    assert_eq!(terminal.code(), Some(0));
    for command in [&["list"][..], &["info", "g"]] {
        let mut terminal = Terminal::open(&world, command);
        terminal.wait_for("a ^[[2J description");
        assert_eq!(terminal.code(), Some(0));
    }
}

#[test]
fn a_signal_ends_a_session_and_the_terminal_is_as_before() {
    let world = World::new();
    world.make("g", "say:login:", "");
    world.vmctl(&["start", "g"]).ok();
    let mut terminal = Terminal::open(&world, &["console", "g"]);
    terminal.wait_for("login:");
    assert!(terminal.is_raw());
    terminal.signal(nix::sys::signal::Signal::SIGTERM);
    assert_eq!(terminal.code(), Some(128 + 15));
    assert!(!terminal.is_raw());
    assert_eq!(world.word("g"), "running");
}

#[test]
fn a_terminal_that_disappears_ends_the_session_and_not_the_guest() {
    let world = World::new();
    world.make("g", "say:login: sleep:400 spam:256", "");
    world.vmctl(&["start", "g"]).ok();
    let mut terminal = Terminal::open(&world, &["console", "g"]);
    terminal.wait_for("login:");
    let Terminal { mut child, ours, theirs, .. } = terminal;
    drop(ours);
    drop(theirs);
    eventually("the command ends", || child.try_wait().expect("waits").is_some());
    assert_eq!(world.word("g"), "running");
    let (_, writes) = open(&world, true, false);
    assert!(writes);
}

#[test]
fn a_console_of_a_stopped_guest_says_what_to_do() {
    let world = World::new();
    world.make("g", "", "");
    world.vmctl(&["console", "g"]).fails(1, "`g` is not running").says("vmctl start g");
}
