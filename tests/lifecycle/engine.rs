//! An engine that keeps the contract of `vmctl::machine::spec` and plays a part.
//!
//! The kernel's command line (with a boot menu, the words that an installer's run adds to it, or else the entry) is its
//! part, words between spaces, one sentence a boot between `/`; the last is repeated.
//! `error:TEXT` fails before the guest runs; `die:N` ends with N before it; then the guest runs, and: `say:TEXT`,
//! `spam:KIB`, `disks` (says which there are), `debug:VALUE`, `exit:N`, `signal:N`, `sleep:MS`; without an end, it waits for commands. `deaf` ignores the
//! power button, `late:N` all but the Nth press of it, `stuck` ignores everything; `no-acpi` has no power button and says so
//! when it is powered off, and `brittle` ends at the first press as bhyve does; `refuses` takes no forwards;
//! `agent`, `agent:lies`, `agent:floods` and `agent:silent` are agents of the guest (see [`agent`]); `echo` answers what is typed with `<` and `>` around it. `slow` takes its time with it. `_`
//! is a space.
#![allow(unsafe_code)]

use std::io::{Read, Write};
use std::os::fd::FromRawFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use vmctl::testing::machine::spec::{AGENT_FD, CONSOLE_FD, CONTROL_FD, EngineCommand, EngineEvent, LoaderSpec, VmmSpec};

/// Set for the process that plays the engine.
pub const PART: &str = "VMCTL_TEST_ENGINE";

/// Not a test of its own: the other tests start this binary again with this test's name as their engine.
#[test]
fn engine_of_the_other_tests() {
    if std::env::var_os(PART).is_some() {
        std::process::exit(play());
    }
}

fn play() -> i32 {
    let file = std::env::args().next_back().expect("the specification's path");
    let spec: VmmSpec = serde_json::from_slice(&std::fs::read(&file).expect("readable")).expect("a specification");
    // SAFETY: the supervisor hands in these two descriptors, and nothing else in this process uses them.
    let (mut console, control) = unsafe { (UnixStream::from_raw_fd(CONSOLE_FD), UnixStream::from_raw_fd(CONTROL_FD)) };
    let cmdline = &match &spec.loader {
        LoaderSpec::Kernel { cmdline, .. } => cmdline.clone(),
        LoaderSpec::Grub(menu) if menu.append.is_empty() => menu.entry.clone().unwrap_or_default(),
        LoaderSpec::Grub(menu) => menu.append.join(" "),
    };
    let count_file = std::path::Path::new(&file).with_file_name("boots.count");
    let boot: usize = std::fs::read_to_string(&count_file).ok().and_then(|text| text.parse().ok()).unwrap_or(0);
    std::fs::write(&count_file, (boot + 1).to_string()).expect("writable");
    let sentences: Vec<&str> = cmdline.split('/').collect();
    let words: Vec<String> =
        sentences[boot.min(sentences.len() - 1)].split_whitespace().map(|word| word.replace('_', " ")).collect();
    let send = |event: EngineEvent| {
        let line = serde_json::to_string(&event).expect("plain") + "\n";
        (&control).write_all(line.as_bytes()).expect("the supervisor listens");
    };
    let mut running = false;
    for word in &words {
        let (verb, value) = word.split_once(':').unwrap_or((word, ""));
        if !running
            && !["error", "die", "deaf", "late", "no-acpi", "brittle", "stuck", "echo", "slow", "refuses", "agent"]
                .contains(&verb)
        {
            send(EngineEvent::Running { backend: "fake".into() });
            running = true;
        }
        match verb {
            "error" => {
                eprintln!("fake engine: {value}");
                send(EngineEvent::Error { message: value.into() });
                return 4;
            }
            "die" => {
                eprintln!("fake engine: last words");
                return value.parse().expect("a number");
            }
            "disks" => {
                let ids: Vec<String> = spec.disks.iter().map(|disk| format!("{}@{}", disk.id, disk.slot)).collect();
                writeln!(console, "[{}]", ids.join(" ")).expect("the supervisor listens");
            }
            "say" => console.write_all(value.as_bytes()).expect("the supervisor listens"),
            "spam" => {
                let line = [b'x'; 1024];
                for _ in 0..value.parse().expect("a number") {
                    console.write_all(&line).expect("the supervisor listens");
                }
            }
            "debug" => {
                let value: u8 = value.parse().expect("a number");
                send(EngineEvent::DebugExit { value });
                return i32::from(value << 1 | 1);
            }
            "exit" => return value.parse().expect("a number"),
            "signal" => {
                let signal = nix::sys::signal::Signal::try_from(value.parse::<i32>().expect("a number")).expect("a signal");
                nix::sys::signal::raise(signal).expect("raised");
                // In a process namespace of its own nothing that it raises ends it.
                return 128 + signal as i32;
            }
            "sleep" => std::thread::sleep(Duration::from_millis(value.parse().expect("a number"))),
            _ => {}
        }
    }
    if !running {
        send(EngineEvent::Running { backend: "fake".into() });
    }
    let has = |word: &str| words.iter().any(|other| other == word);
    if let Some(kind) = words.iter().find_map(|word| word.strip_prefix("agent")) {
        let (kind, console) = (kind.trim_start_matches(':').to_owned(), console.try_clone().expect("cloned"));
        std::thread::spawn(move || agent(&kind, console));
    }
    if has("echo") {
        let (mut line, slow) = (console.try_clone().expect("cloned"), has("slow"));
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count) = line.read(&mut buffer) {
                if count == 0 {
                    break;
                }
                if slow {
                    std::thread::sleep(Duration::from_millis(5));
                }
                line.write_all(&[b"<", &buffer[..count], b">"].concat()).expect("the supervisor listens");
            }
        });
    }
    let late = words.iter().find_map(|word| word.strip_prefix("late:")).map_or(1, |n| n.parse().expect("a number"));
    let ears = Ears {
        deaf: has("deaf"),
        stuck: has("stuck"),
        no_acpi: has("no-acpi"),
        brittle: has("brittle"),
        refuses: has("refuses"),
        late,
    };
    obey(control, console, ears)
}

/// The guest's agent: `echo WORDS`, `cat`, `warn`, `crash`, `flood` and `stay` are the programs of its guest.
fn agent(kind: &str, mut console: UnixStream) {
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;
    use std::io::BufRead;
    // SAFETY: the supervisor hands in this descriptor to an engine whose guest has an agent, and nothing else uses it.
    let stream = unsafe { UnixStream::from_raw_fd(AGENT_FD) };
    let mut ends: Vec<serde_json::Value> = Vec::new();
    for line in std::io::BufReader::new(stream.try_clone().expect("cloned")).split(b'\n').map_while(Result::ok) {
        let text: Vec<u8> = line.into_iter().filter(|byte| *byte != 0xff).collect();
        let request: serde_json::Value = serde_json::from_slice(&text).expect("a request");
        let arguments = &request["arguments"];
        let command = request["execute"].as_str().expect("a command");
        let answer = match (kind, command) {
            ("silent", _) => continue,
            ("floods", _) => {
                while (&stream).write_all(&[b'x'; 4096]).is_ok() {}
                return;
            }
            (_, "guest-sync-delimited") => {
                (&stream).write_all(&[0xff]).expect("the supervisor listens");
                return_of(arguments["id"].clone())
            }
            ("lies", _) => serde_json::json!(["lies"]),
            (_, "guest-network-get-interfaces") => return_of(serde_json::json!([
                { "name": "lo", "ip-addresses": [{ "ip-address": "127.0.0.1", "ip-address-type": "ipv4", "prefix": 8 }] },
                { "name": "eth0", "hardware-address": "52:54:00:AA:BB:CC", "ip-addresses": [
                    { "ip-address": "192.0.2.7", "ip-address-type": "ipv4", "prefix": 24 },
                    { "ip-address": "fe80::1", "ip-address-type": "ipv6", "prefix": 64 },
                ] },
            ])),
            (_, "guest-exec") => {
                let words: Vec<&str> =
                    arguments["arg"].as_array().expect("words").iter().map(|word| word.as_str().expect("text")).collect();
                writeln!(console, "runs {}\r", arguments["path"]).expect("the supervisor listens");
                let data = |text: &str| STANDARD.encode(text);
                let end = match arguments["path"].as_str().expect("a program") {
                    "echo" => serde_json::json!({ "exited": true, "exitcode": 0, "out-data": data(&(words.join(" ") + "\n")) }),
                    "cat" => serde_json::json!({ "exited": true, "exitcode": 0, "out-data": arguments["input-data"] }),
                    "warn" => serde_json::json!({ "exited": true, "exitcode": 3, "err-data": data("careful\n") }),
                    "crash" => serde_json::json!({ "exited": true, "signal": 11 }),
                    "flood" => serde_json::json!({ "exited": true, "exitcode": 0, "out-data": data(&"y\n".repeat(4 << 20)) }),
                    "stay" => serde_json::json!({ "exited": false }),
                    other => {
                        let desc = format!("Failed to execute child process {other} (No such file or directory)");
                        send(&stream, &serde_json::json!({ "error": { "class": "GenericError", "desc": desc } }));
                        continue;
                    }
                };
                ends.push(end);
                return_of(serde_json::json!({ "pid": ends.len() - 1 }))
            }
            (_, "guest-exec-status") => return_of(ends[arguments["pid"].as_u64().expect("a number") as usize].clone()),
            (_, "guest-shutdown") => {
                console.write_all(b"told to shut down\r\n").expect("the supervisor listens");
                continue;
            }
            (_, other) => panic!("no command {other}"),
        };
        send(&stream, &answer);
    }
}

fn return_of(value: serde_json::Value) -> serde_json::Value {
    serde_json::json!({ "return": value })
}

fn send(mut stream: &UnixStream, answer: &serde_json::Value) {
    // A client that has given up is no reason to fail.
    let _ = stream.write_all((answer.to_string() + "\n").as_bytes());
}

/// What it does about commands.
struct Ears {
    deaf: bool,
    stuck: bool,
    no_acpi: bool,
    brittle: bool,
    refuses: bool,
    late: u32,
}

fn obey(control: UnixStream, mut console: UnixStream, ears: Ears) -> i32 {
    use std::io::BufRead;
    let mut lines = std::io::BufReader::new(control.try_clone().expect("cloned")).lines();
    let (mut looks, mut presses) = (0, 0);
    let no_acpi = || {
        let line = serde_json::to_string(&EngineEvent::NoAcpi).expect("plain") + "\n";
        (&control).write_all(line.as_bytes()).expect("the supervisor listens");
        1
    };
    while let Some(Ok(line)) = lines.next() {
        if ears.stuck {
            continue;
        }
        match serde_json::from_str::<EngineCommand>(&line).expect("a command") {
            EngineCommand::PowerButton if ears.brittle => return no_acpi(),
            EngineCommand::PowerButton if ears.deaf || ears.no_acpi => {}
            EngineCommand::PowerButton if presses + 1 < ears.late => presses += 1,
            EngineCommand::Poweroff if ears.no_acpi => return no_acpi(),
            EngineCommand::PowerButton => {
                console.write_all(b"shutting down\r\n").expect("the supervisor listens");
                return 1;
            }
            EngineCommand::Poweroff => return 1,
            EngineCommand::Reset => return 0,
            EngineCommand::Suspend => return 5,
            EngineCommand::AddForward { nic, forward } | EngineCommand::RemoveForward { nic, forward } => {
                let added = line.contains("add-forward");
                let error = ears.refuses.then(|| "the network is full".to_owned());
                let line = serde_json::to_string(&EngineEvent::ForwardChanged { added, nic, forward, error }).expect("plain");
                (&control).write_all((line + "\n").as_bytes()).expect("the supervisor listens");
            }
            EngineCommand::Nmi => console.write_all(b"nmi\r\n").expect("the supervisor listens"),
            EngineCommand::Stats => {
                looks += 1;
                let counters = [
                    ("vcpu0.instructions", 42),
                    ("disk.data.1.read-bytes", looks << 20),
                    ("disk.data.1.failed-ops", 0),
                    ("nic.net0.sent-bytes", looks << 10),
                ];
                let counters = counters.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
                let event = EngineEvent::Stats { counters };
                let line = serde_json::to_string(&event).expect("plain") + "\n";
                (&control).write_all(line.as_bytes()).expect("the supervisor listens");
            }
        }
    }
    4
}
