//! What guests use: `top`, and `metrics` with clients that mean no good.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::console::Terminal;
use crate::world::{World, eventually};

fn running(world: &World, names: &[&str]) {
    for name in names {
        world.make(name, "say:login:", "");
        world.vmctl(&["start", name]).ok();
    }
}

#[test]
fn a_table_of_two_looks_has_rates_and_leaves_out_who_does_not_run() {
    let world = World::new();
    running(&world, &["a", "b"]);
    world.make("off", "", "");
    let table = world.vmctl(&["top", "--interval", "200ms"]).ok().out;
    assert!(table.starts_with("NAME  STATE    CPU%  RESIDENT  MEMORY  READ/s"), "{table}");
    assert_eq!(table.lines().count(), 3, "{table}");
    let said = world.vmctl(&["top", "--once", "--interval", "200ms", "--sort", "name", "-o", "jsonl"]).ok();
    let rows: Vec<serde_json::Value> = said.out.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(rows.iter().map(|row| row["name"].as_str().expect("a name")).collect::<Vec<_>>(), ["a", "b"]);
    for row in &rows {
        assert!(row["rates"]["disk_read"].as_f64().expect("counted") > 0.0, "{row}");
        assert!(row["rates"]["net_sent"].as_f64().expect("counted") > 0.0, "{row}");
        assert!(row["rates"]["net_received"].is_null(), "not counted, not zero: {row}");
        assert!(row["resident_bytes"].as_u64().expect("known") > 1 << 20, "{row}");
        assert!(row["rates"]["cpu_percent"].as_f64().expect("known") >= 0.0, "{row}");
        assert_eq!(row["disks"][0]["id"], "data.1");
    }
    world.vmctl(&["top", "--interval", "1ms"]).fails(1, "at least `100ms`");
}

#[test]
fn on_a_terminal_it_goes_on_is_sorted_by_keys_and_leaves_the_terminal_as_it_was() {
    let world = World::new();
    running(&world, &["a"]);
    let mut terminal = Terminal::open(&world, &["top", "--interval", "200ms"]);
    terminal.wait_for("\u{1b}[?1049h");
    terminal.wait_for("1 guest, by processor");
    assert!(terminal.is_raw());
    terminal.type_in("m");
    terminal.wait_for("by memory");
    running(&world, &["b"]);
    terminal.wait_for("2 guests, by memory");
    terminal.type_in("xq");
    terminal.wait_for("\u{1b}[?1049l");
    assert_eq!(terminal.code(), Some(0));
    assert!(!terminal.is_raw());
}

#[test]
fn a_signal_and_control_c_end_it_and_the_terminal_is_as_before() {
    let world = World::new();
    let mut terminal = Terminal::open(&world, &["top"]);
    terminal.wait_for("0 guests");
    terminal.signal(Signal::SIGTERM);
    terminal.wait_for("\u{1b}[?1049l");
    assert_eq!(terminal.code(), Some(128 + 15));
    assert!(!terminal.is_raw());
    let mut terminal = Terminal::open(&world, &["top"]);
    terminal.wait_for("0 guests");
    terminal.type_in("\u{3}");
    assert_eq!(terminal.code(), Some(0));
    assert!(!terminal.is_raw());
}

/// A sample of a line in the text format: name, labels, value.
fn sample(line: &str) -> (&str, &str, f64) {
    let (series, value) = line.rsplit_once(' ').expect("a value");
    let (name, labels) = series.split_once('{').expect("labels");
    (name, labels.strip_suffix('}').expect("the labels end"), value.parse().expect("a number"))
}

#[test]
fn metrics_are_groups_with_help_and_type_and_every_guest_has_its_state() {
    let world = World::new();
    running(&world, &["a"]);
    world.make("off", "", "");
    let text = world.vmctl(&["metrics"]).ok().out;
    let mut group = "";
    let mut seen: Vec<&str> = Vec::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            group = rest.split(' ').next().expect("a name");
            assert!(!seen.contains(&group), "{group} twice");
            seen.push(group);
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            assert!([format!("{group} counter"), format!("{group} gauge")].contains(&rest.to_owned()), "{line}");
        } else {
            assert_eq!(sample(line).0, group, "{line}");
        }
    }
    let value = |name: &str, labels: &str| {
        text.lines().filter(|line| !line.starts_with('#')).map(sample).find(|s| (s.0, s.1) == (name, labels)).map(|s| s.2)
    };
    assert_eq!(value("vmctl_guest_state", "guest=\"a\",state=\"running\""), Some(1.0), "{text}");
    assert_eq!(value("vmctl_guest_state", "guest=\"off\",state=\"stopped\""), Some(1.0));
    assert_eq!(value("vmctl_guest_state", "guest=\"off\",state=\"running\""), Some(0.0));
    assert_eq!(value("vmctl_guest_memory_bytes", "guest=\"off\""), Some(f64::from(64 << 20)));
    assert_eq!(value("vmctl_guest_disk_read_bytes_total", "guest=\"a\",disk=\"data.1\""), Some(f64::from(1 << 20)));
    assert!(value("vmctl_guest_cpu_seconds_total", "guest=\"a\"").is_some());
    assert_eq!(value("vmctl_guest_cpu_seconds_total", "guest=\"off\""), None);
    let wrong = world.vmctl(&["metrics", "a", "nobody"]);
    assert!(wrong.out.contains("guest=\"a\""), "{wrong:?}");
    wrong.fails(1, "nobody");
}

/// `vmctl metrics --listen`, ended with the test.
struct Server {
    child: Child,
    at: String,
}

impl Server {
    fn start(world: &World, listen: &str) -> Server {
        let mut child = world.command(&["metrics", "--listen", listen]).stderr(Stdio::piped()).spawn().expect("starts");
        let mut line = String::new();
        BufReader::new(child.stderr.take().expect("piped")).read_line(&mut line).expect("reads");
        let at = line.trim().strip_prefix("listening on ").unwrap_or_else(|| panic!("{line:?}"));
        let at = at.strip_prefix("http://").and_then(|at| at.strip_suffix("/metrics")).unwrap_or(at).to_owned();
        Server { child, at }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(&self.at).expect("connects");
        stream.set_read_timeout(Some(Duration::from_secs(30))).expect("sets");
        stream
    }

    fn ask(&self, request: &str) -> String {
        let mut stream = self.connect();
        stream.write_all(request.as_bytes()).expect("writes");
        let mut answer = Vec::new();
        // Bytes of ours that nobody read end the connection the hard way, after the answer.
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const SCRAPE: &str = "GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: text/plain\r\n\r\n";

#[test]
fn a_scrape_over_http_is_answered_once_and_whole() {
    let world = World::new();
    running(&world, &["a"]);
    let server = Server::start(&world, "127.0.0.1:0");
    let answer = server.ask(SCRAPE);
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    assert!(head.contains("Content-Type: text/plain; version=0.0.4"), "{head}");
    assert!(head.contains(&format!("Content-Length: {}", body.len())), "{head}");
    assert!(body.contains("vmctl_guest_state{guest=\"a\",state=\"running\"} 1\n"), "{body}");
    let head_only = server.ask(&SCRAPE.replace("GET", "HEAD"));
    assert!(head_only.starts_with("HTTP/1.1 200 OK") && head_only.ends_with("\r\n\r\n"), "{head_only}");
    let open = server.ask(&SCRAPE.replace("text/plain", "application/openmetrics-text;version=1.0.0;q=0.6,text/plain;q=0.3"));
    let (head, body) = open.split_once("\r\n\r\n").expect("a head");
    assert!(head.contains("Content-Type: application/openmetrics-text; version=1.0.0; charset=utf-8\r\n"), "{head}");
    assert!(body.contains("# TYPE vmctl_guest_disk_read_bytes counter\n# UNIT vmctl_guest_disk_read_bytes bytes\n"), "{body}");
    assert!(body.contains("vmctl_guest_disk_read_bytes_total{guest=\"a\",disk=\"data.1\"} "), "{body}");
    assert!(body.ends_with("\n# EOF\n") && head.contains(&format!("Content-Length: {}", body.len())), "{head}{body}");
    running(&world, &["later"]);
    eventually("a new guest is in it", || server.ask(SCRAPE).contains("vmctl_guest_state{guest=\"later\",state=\"running\"} 1"));
}

#[test]
fn what_is_no_scrape_is_refused_and_hurts_nobody() {
    let world = World::new();
    let server = Server::start(&world, "127.0.0.1:0");
    let long = format!("GET /metrics HTTP/1.1\r\nHost: localhost\r\nX: {}\r\n\r\n", "x".repeat(100_000));
    for (request, status) in [
        ("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", "404"),
        ("DELETE /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n", "405"),
        ("GET /metrics HTTP/1.1\r\nHost: evil.example\r\n\r\n", "421"),
        ("GET /metrics HTTP/1.1\r\n\r\n", "400"),
        ("\x16\x03\x01\x02\x00\x01\x00\x01\r\n\r\n", "400"),
    ] {
        let answer = server.ask(request);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{request:?}: {answer:?}");
    }
    let mut stream = server.connect();
    // It is cut off while it still writes, perhaps with its answer.
    let _ = stream.write_all(long.as_bytes());
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 431 "), "{answer:?}");
    assert!(server.ask(SCRAPE).starts_with("HTTP/1.1 200 OK"));
}

#[test]
fn clients_that_say_little_or_nothing_hold_nobody_up_and_are_cut_off() {
    let world = World::new();
    let server = Server::start(&world, "127.0.0.1:0");
    let stuck: Vec<TcpStream> = (0..60)
        .map(|number| {
            let mut stream = server.connect();
            stream.write_all(&SCRAPE.as_bytes()[..number % 30]).expect("writes");
            stream
        })
        .collect();
    let asked = Instant::now();
    assert!(server.ask(SCRAPE).starts_with("HTTP/1.1 200 OK"));
    // Five seconds would be the patience with those before it.
    assert!(asked.elapsed() < Duration::from_secs(4), "{:?}", asked.elapsed());
    for mut stream in stuck {
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 408 "), "{answer:?}");
    }
    let threads = std::fs::read_dir(format!("/proc/{}/task", server.child.id())).expect("it runs").count();
    assert!(threads < 20, "{threads} threads");
}

#[test]
fn addresses_that_others_can_reach_are_refused() {
    let world = World::new();
    for address in ["0.0.0.0:9177", "[::]:9177", "192.0.2.7:9177"] {
        world.vmctl(&["metrics", "--listen", address]).fails(1, "is not on this machine's loopback").says("proxy");
    }
    world.vmctl(&["metrics", "--listen", "9177"]).fails(1, "`9177` is not an address").says("127.0.0.1:9177");
}

#[test]
fn a_socket_is_this_users_alone_is_taken_over_when_stale_and_goes_with_the_server() {
    let world = World::new();
    let path = world.path().join("metrics.sock");
    let listen = format!("unix:{}", path.display());
    // Killed: it stays behind.
    let mut server = Server::start(&world, &listen);
    world.vmctl(&["metrics", "--listen", &listen]).fails(1, "cannot listen");
    server.child.kill().expect("killed");
    server.child.wait().expect("ended");
    assert!(path.exists());
    let mut server = Server::start(&world, &listen);
    assert_eq!(std::fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
    let mut stream = UnixStream::connect(&path).expect("connects");
    stream.write_all(SCRAPE.replace("127.0.0.1", "whatever").as_bytes()).expect("writes");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("reads");
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    let pid = nix::unistd::Pid::from_raw(server.child.id() as i32);
    nix::sys::signal::kill(pid, Signal::SIGTERM).expect("sent");
    assert_eq!(server.child.wait().expect("ends").code(), Some(0));
    assert!(!path.exists());
    // What is no socket is nobody's to remove.
    std::fs::write(&path, "mine").expect("writes");
    world.vmctl(&["metrics", "--listen", &listen]).fails(1, "cannot listen");
    assert_eq!(std::fs::read_to_string(&path).expect("still there"), "mine");
}
