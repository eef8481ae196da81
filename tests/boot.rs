//! Boots Debian's own kernel with a busybox initramfs through the whole program: a guest file, `create`, `start
//! --wait`, the supervisor, the confined engine child and the software CPU. `make test` prepares `build/test-guest`.

mod prepared;

use prepared::Store;

/// Makes guest `g`, which runs `command` (with `_` for a space) and is ready when its console says `ready`.
fn create(store: &Store, more: &str, command: &str, ready: &str) {
    store.create(&format!(
        "{more}\n[kernel]\nimage = \"{0}/vmlinuz\"\ninitrd = \"{0}/initrd.img\"\n\
         cmdline = \"console=ttyS0 quiet vmctl.run={command}\"\n[ready]\nconsole = \"{ready}\"\ntimeout = \"5m\"\n",
        prepared::folder().display()
    ));
}

#[test]
#[ignore = "needs a guest: make test"]
fn a_debian_kernel_boots_with_two_processors_a_disk_and_a_network_and_powers_off() {
    let store = Store::new();
    let more = "cpus = 2\ndisks = [{ id = \"data\", size = \"64M\" }]\nnics = [{ id = \"net0\", backend = \"user\" }]";
    let command =
        "dd_if=/dev/zero_of=/dev/vda_bs=1M_count=8_&&_sync_&&_ip_link_set_eth0_up_&&_echo_all_$((40+2))_well_&&_sleep_2";
    create(&store, more, command, "all 42 well");
    store.ok(&["start", "--wait", "g"]);
    let log = store.log();
    assert!(log.contains("vmctl-test-guest: ready, 2 cpus"), "{log}");
    for _ in 0..120 {
        if store.is_stopped() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(500));
    }
    panic!("the guest powered off and is not stopped:\n{}", store.log());
}

/// A session on the console of guest `g`.
struct Session {
    vmctl: std::process::Child,
    heard: std::sync::mpsc::Receiver<Vec<u8>>,
}

impl Session {
    fn new(store: &Store) -> Session {
        use std::io::Read;
        let mut command = store.command(&["console", "g"]);
        command.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
        let mut vmctl = command.spawn().expect("the program starts");
        let mut output = vmctl.stdout.take().expect("piped");
        let (says, heard) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let mut chunk = [0; 4096];
            while let Ok(n @ 1..) = output.read(&mut chunk) {
                if says.send(chunk[..n].to_vec()).is_err() {
                    return;
                }
            }
        });
        Session { vmctl, heard }
    }

    /// Types a line and waits until the console says `answer`.
    fn ask(&mut self, line: &str, answer: &str) {
        use std::io::Write;
        let input = self.vmctl.stdin.as_mut().expect("piped");
        input.write_all(format!("{line}\n").as_bytes()).expect("a session takes input");
        let mut said = Vec::new();
        while !String::from_utf8_lossy(&said).contains(answer) {
            let limit = std::time::Duration::from_secs(120);
            let more = self.heard.recv_timeout(limit);
            said.extend(more.unwrap_or_else(|_| panic!("no {answer:?} to {line:?}: {}", String::from_utf8_lossy(&said))));
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ = self.vmctl.kill();
        let _ = self.vmctl.wait();
    }
}

#[test]
#[ignore = "needs a guest: make test"]
fn every_line_that_is_typed_is_answered_and_two_processors_work_at_once() {
    let store = Store::new();
    store.create(&format!(
        "cpus = 2\n[kernel]\nimage = \"{0}/vmlinuz\"\ninitrd = \"{0}/initrd.img\"\ncmdline = \"console=ttyS0 quiet\"\n\
         [ready]\nconsole = \"vmctl-test-guest: ready\"\ntimeout = \"5m\"\n",
        prepared::folder().display()
    ));
    store.ok(&["start", "--wait", "g"]);
    let mut session = Session::new(&store);
    for i in 0..5 {
        session.ask(&format!("echo line-$(({i}+100))"), &format!("line-{}", i + 100));
    }
    // Each count is right on its own processor, while the processes of both come and go.
    let count = "(i=0; while [ $i -lt 3000 ]; do i=$((i+1)); done; echo counted-$i)";
    let forks = "(for i in 1 2 3 4 5 6 7 8 9 10; do busybox true || echo wrong; done)";
    session.ask(&format!("{count} & {count} & {forks} & {forks} & wait; echo all-$((40+2))"), "all-42");
    drop(session);
    assert_eq!(store.log().matches("counted-3000").count(), 2);
    assert!(!store.log().contains("wrong\r\n"));
    store.ok(&["kill", "g"]);
}

#[test]
#[ignore = "needs a guest: make test"]
fn a_guest_reaches_the_outside_through_sockets_that_its_engine_may_not_make() {
    use std::io::{Read, Write};
    let server = std::net::TcpListener::bind("127.0.0.1:0").expect("listens");
    let port = server.local_addr().expect("bound").port();
    std::thread::spawn(move || {
        for stream in server.incoming() {
            let mut stream = stream.expect("a connection");
            let mut request = [0; 512];
            let _ = stream.read(&mut request);
            let _ = stream.write_all(b"HTTP/1.0 200 OK\r\n\r\nword from outside\n");
        }
    });
    let store = Store::new();
    let command =
        format!("ip_addr_add_10.0.2.15/24_dev_eth0;_ip_link_set_eth0_up;_wget_-q_-O_-_http://10.0.2.2:{port}/;_sleep_100");
    create(&store, "nics = [{ id = \"net0\", backend = \"user\", host_access = true }]", &command, "word from outside");
    store.ok(&["start", "--wait", "g"]);
    store.ok(&["poweroff", "g"]);
}

#[test]
#[ignore = "needs a guest: make test"]
fn a_guest_that_reboots_comes_back_by_itself() {
    let store = Store::new();
    // The disk remembers the first boot: the second one finds its mark.
    let more = "disks = [{ id = \"data\", size = \"1M\" }]";
    let command = "if_grep_-q_mark_/dev/vda;_then_echo_second_$((1+1));_sleep_100;_fi;_echo_mark_>/dev/vda;_sync;_reboot_-f";
    create(&store, more, command, "second 2");
    store.ok(&["start", "--wait", "g"]);
    store.ok(&["poweroff", "g"]);
    assert!(store.is_stopped());
}

/// What a guest's program talks to: gives out a page, holds up who asks to wait, and counts what is sent without asking.
struct Peer {
    port: u16,
    sent_to_it: std::sync::Arc<std::sync::atomic::AtomicU64>,
    go_on: std::sync::mpsc::Sender<()>,
}

const PAGE_BYTES: usize = 1 << 20;

impl Peer {
    fn start() -> Peer {
        use std::io::{BufRead, BufReader, Read, Write};
        use std::sync::atomic::Ordering;
        let server = std::net::TcpListener::bind("127.0.0.1:0").expect("listens");
        let port = server.local_addr().expect("bound").port();
        let (go_on, held) = std::sync::mpsc::channel::<()>();
        let sent_to_it = std::sync::Arc::<std::sync::atomic::AtomicU64>::default();
        let count = sent_to_it.clone();
        std::thread::spawn(move || {
            for stream in server.incoming() {
                let mut stream = BufReader::new(stream.expect("a connection"));
                if stream.fill_buf().is_ok_and(|bytes| bytes.starts_with(b"\0")) {
                    let mut bytes = Vec::new();
                    stream.read_to_end(&mut bytes).expect("a connection that ends");
                    count.fetch_add(bytes.len() as u64, Ordering::SeqCst);
                    continue;
                }
                let mut request = String::new();
                stream.read_line(&mut request).expect("a request");
                if request.starts_with("GET /wait") {
                    let _ = held.recv();
                }
                while stream.read_line(&mut request).is_ok_and(|count| count > 2) {}
                let head = format!("HTTP/1.0 200 OK\r\nContent-Length: {PAGE_BYTES}\r\n\r\n");
                // It may be gone when the test ends.
                let _ = stream.get_mut().write_all(&[head.as_bytes(), &vec![b'x'; PAGE_BYTES]].concat());
            }
        });
        Peer { port, sent_to_it, go_on }
    }

    fn sent_to_it(&self) -> u64 {
        self.sent_to_it.load(std::sync::atomic::Ordering::SeqCst)
    }
}

/// What a command says once the supervisor has answered it in time: on a busy machine a look may be without its counters.
fn counted(store: &Store, arguments: &[&str], is_whole: impl Fn(&str) -> bool) -> String {
    let until = std::time::Instant::now() + std::time::Duration::from_secs(60);
    loop {
        let text = store.ok(arguments);
        if is_whole(&text) {
            return text;
        }
        assert!(std::time::Instant::now() < until, "vmctl {arguments:?} says no more than: {text}");
    }
}

/// What `vmctl metrics` says of guest `g`: each series without the guest's label, and its value.
fn metrics(store: &Store) -> std::collections::BTreeMap<String, f64> {
    let text = counted(store, &["metrics", "g"], |text| text.contains("vmctl_guest_disk_written_bytes_total"));
    let samples = text.lines().filter(|line| !line.starts_with('#'));
    let sample = |line: &str| {
        let (series, value) = line.rsplit_once(' ').expect("a value");
        let series = series.replace("vmctl_guest_", "").replace("guest=\"g\",", "").replace("{guest=\"g\"}", "");
        (series, value.parse().expect("a number"))
    };
    samples.map(sample).collect()
}

#[test]
#[ignore = "needs a guest: make test"]
fn what_a_guest_uses_is_what_it_did_and_only_grows() {
    const MIB: f64 = 1048576.0;
    let began = std::time::Instant::now();
    let cores = std::thread::available_parallelism().expect("a number of processors").get() as f64;
    let (store, peer) = (Store::new(), Peer::start());
    let more = "disks = [{ id = \"data\", size = \"64M\" }]\nnics = [{ id = \"net0\", backend = \"user\", host_access = true }]";
    let get = |what: &str| format!("wget_-q_-O_/dev/null_http://10.0.2.2:{}/{what}", peer.port);
    let send = |bytes: u64| format!("head_-c_{bytes}_/dev/zero_|_nc_10.0.2.2_{}", peer.port);
    let command = format!(
        "ip_addr_add_10.0.2.15/24_dev_eth0;_ip_link_set_eth0_up;_dd_if=/dev/zero_of=/dev/vda_bs=1M_count=8_conv=fsync;_\
         dd_if=/dev/vda_of=/dev/null_bs=1M_skip=16_count=4;_{};_{};_echo_all_$((1+1))_done;_{};_\
         while_true;_do_dd_if=/dev/zero_of=/dev/vda_bs=1M_count=1_conv=fsync;_{};_done",
        get("page"),
        send(512 << 10),
        get("wait"),
        send(64 << 10)
    );
    create(&store, more, &command, "all 2 done");
    store.ok(&["start", "--wait", "g"]);

    // The guest waits for an answer: what has happened has all been counted, and is looked at in three ways.
    let did = metrics(&store);
    let of = |series: &str| *did.get(series).unwrap_or_else(|| panic!("no {series} in {did:#?}"));
    let within = |series: &str, least: f64, most: f64| {
        assert!((least..=most).contains(&of(series)), "{series} is not between {least} and {most}: {did:#?}");
    };
    within("disk_written_bytes_total{disk=\"data\"}", 8.0 * MIB, 8.0 * MIB);
    within("disk_writes_total{disk=\"data\"}", 1.0, 8.0 * MIB / 4096.0);
    within("disk_flushes_total{disk=\"data\"}", 1.0, 16.0);
    // The kernel looks for partitions and reads ahead.
    within("disk_read_bytes_total{disk=\"data\"}", 4.0 * MIB, 6.0 * MIB);
    within("disk_failures_total{disk=\"data\"}", 0.0, 0.0);
    // Headers and acknowledgements are more than the data, and frames are at most an Ethernet frame long.
    within("network_receive_bytes_total{nic=\"net0\"}", MIB, 1.25 * MIB);
    within("network_receive_packets_total{nic=\"net0\"}", MIB / 1514.0, 4000.0);
    within("network_transmit_bytes_total{nic=\"net0\"}", 0.5 * MIB, 0.75 * MIB);
    within("network_transmit_packets_total{nic=\"net0\"}", 0.5 * MIB / 1514.0, 4000.0);
    assert_eq!(peer.sent_to_it(), 512 << 10);
    within("cpu_seconds_total", 0.1, began.elapsed().as_secs_f64() * cores);
    within("resident_bytes", 32.0 * MIB, 512.0 * MIB);
    within("ready", 1.0, 1.0);
    let info = counted(&store, &["info", "g", "-o", "jsonl"], |text| text.contains("disk.data.written-bytes"));
    let info: serde_json::Value = serde_json::from_str(&info).expect("JSON");
    assert_eq!(info["counters"]["disk.data.written-bytes"].as_f64(), Some(8.0 * MIB), "{info}");
    assert!(info["counters"]["nic.net0.received-bytes"].as_f64() >= Some(MIB), "{info}");
    let listed: serde_json::Value = serde_json::from_str(&store.ok(&["list", "-o", "jsonl"])).expect("JSON");
    assert_eq!((listed["state"].as_str(), listed["ready"].as_bool()), (Some("running"), Some(true)), "{listed}");
    assert!(listed["uptime_seconds"].as_f64().is_some_and(|uptime| uptime <= began.elapsed().as_secs_f64()), "{listed}");

    // It goes on, and every look is at least the one before.
    peer.go_on.send(()).expect("the peer listens");
    let counters = |look: &std::collections::BTreeMap<String, f64>| -> Vec<(String, f64)> {
        look.iter().filter(|(series, _)| series.contains("_total")).map(|(series, value)| (series.clone(), *value)).collect()
    };
    let mut last = did.clone();
    let until = std::time::Instant::now() + std::time::Duration::from_secs(120);
    let grown = |look: &std::collections::BTreeMap<String, f64>, series: &str, by: f64| look[series] >= of(series) + by;
    loop {
        let look = metrics(&store);
        for ((series, before), (_, now)) in counters(&last).iter().zip(counters(&look)) {
            assert!(now >= *before, "{series} went back from {before} to {now}");
        }
        last = look;
        if grown(&last, "disk_written_bytes_total{disk=\"data\"}", 3.0 * MIB)
            && grown(&last, "network_transmit_bytes_total{nic=\"net0\"}", 3.0 * 65536.0)
            && grown(&last, "cpu_seconds_total", 0.05)
        {
            break;
        }
        assert!(std::time::Instant::now() < until, "it does not go on: {last:#?}");
    }
    // The rates of `top` are those of the counters around it.
    let row = |text: &str| -> serde_json::Value { serde_json::from_str(text).expect("JSON") };
    let goes_on = |text: &str| ["disk_written", "net_sent"].iter().all(|rate| row(text)["rates"][rate].as_f64() > Some(0.0));
    let row = row(&counted(&store, &["top", "--once", "--interval", "2s", "-o", "jsonl"], goes_on));
    let after = metrics(&store);
    for (rate, series, least) in [
        ("disk_written", "disk_written_bytes_total{disk=\"data\"}", 1.0),
        ("net_sent", "network_transmit_bytes_total{nic=\"net0\"}", 1.0),
        ("net_received", "network_receive_bytes_total{nic=\"net0\"}", 1.0),
        ("disk_read", "disk_read_bytes_total{disk=\"data\"}", 0.0),
    ] {
        let moved = row["rates"][rate].as_f64().unwrap_or_else(|| panic!("no {rate} in {row}")) * 2.0;
        assert!(moved >= least && moved <= after[series] - last[series], "{rate}: {moved} of {last:#?} to {after:#?}");
    }
    let cpu = row["rates"]["cpu_percent"].as_f64().expect("known");
    assert!(cpu > 0.0 && cpu <= 100.0 * cores + 10.0, "{row}");
    let table = store.ok(&["top", "--once", "--interval", "500ms"]);
    assert!(table.lines().nth(1).is_some_and(|line| line.starts_with("g ") && line.contains(" running ")), "{table}");
}

#[test]
fn a_connector_connects_to_what_its_guest_may_reach_and_to_nothing_else_of_this_host() {
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;
    use vmctl::testing::devices::net::user::connector::RemoteSockets;
    use vmctl::testing::devices::net::user::sockets::{Scope, Sockets};
    use vmctl::testing::machine::spec::{CONNECTOR_FD, SERVICES_FD};

    let start = |arguments: &[&str], inherited: Vec<(i32, OwnedFd)>| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_vmctl"));
        command.arg("vmm").args(arguments);
        vmctl::testing::host::process::spawn_tied(&mut command, &inherited).expect("starts")
    };
    let [shut, open] = [(); 2].map(|()| std::net::TcpListener::bind("127.0.0.1:0").expect("listens"));
    let port = |listener: &std::net::TcpListener| listener.local_addr().expect("bound").port();
    let reach = format!(
        r#"[{{"network":"10.0.2.0","prefix":24,"gateway":"10.0.2.2","dns":"10.0.2.3","guest":"10.0.2.15",
        "answers_address":"10.0.2.4","dns_servers":["192.0.2.53"],"isolated":false,"host_access":false,
        "host_ports":[{{"protocol":"tcp","first":{0},"last":{0}}}],"link_local":false,"forwards":[]}}]"#,
        port(&open)
    );
    let (services, asked) = UnixStream::pair().expect("a pair");
    let (engine, connector) = UnixStream::pair().expect("a pair");
    let mut children = vec![start(&["--host-services"], vec![(CONNECTOR_FD, asked.into())])];
    let descriptors = vec![(CONNECTOR_FD, connector.into()), (SERVICES_FD, services.into())];
    children.push(start(&["--connector", "--reach", &reach], descriptors));
    let sockets = RemoteSockets::new(engine);
    let tcp = |to: (&str, u16)| {
        let to = std::net::SocketAddr::new(to.0.parse().expect("an address"), to.1);
        let made = sockets.tcp(to, Scope::Everywhere).map(drop).err();
        (made.as_ref().and_then(std::io::Error::raw_os_error), sockets.udp(to, Scope::Everywhere).map(drop).err())
    };
    assert_eq!(tcp(("127.0.0.1", port(&open))).0, None, "a port that was opened");
    shut.set_nonblocking(true).expect("sets");
    let refused = ["127.0.0.1", "127.0.0.2", "0.0.0.0", "169.254.169.254", "10.0.2.99", "::1", "::ffff:127.0.0.1"];
    for to in refused {
        let (stream, datagram) = tcp((to, port(&shut)));
        assert_eq!(stream, Some(libc::EACCES), "{to}");
        assert_eq!(datagram.and_then(|error| error.raw_os_error()), Some(libc::EACCES), "{to}");
    }
    assert!(tcp(("127.0.0.1", port(&open))).1.is_some(), "TCP's port alone");
    assert!(sockets.echo(std::net::Ipv4Addr::LOCALHOST, Scope::Everywhere).is_err());
    assert!(shut.accept().is_err(), "nobody came");
    // A forward of UDP answers those who have asked.
    let [forward, client, stranger] = [(); 3].map(|()| std::net::UdpSocket::bind("127.0.0.1:0").expect("binds"));
    let at = forward.local_addr().expect("bound");
    forward.set_nonblocking(true).expect("sets");
    let forward = sockets.forward(forward).expect("is relayed");
    client.send_to(b"question", at).expect("sends");
    let mut buffer = [0; 256];
    let until = std::time::Instant::now() + std::time::Duration::from_secs(20);
    let (from, payload) = loop {
        match forward.receive(&mut buffer) {
            Ok(heard) => break heard,
            Err(error) => assert!(std::time::Instant::now() < until, "{error}"),
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    };
    assert_eq!((from, &buffer[payload]), (client.local_addr().expect("bound"), &b"question"[..]));
    forward.send(stranger.local_addr().expect("bound"), b"unasked");
    forward.send(from, b"answer");
    client.set_read_timeout(Some(std::time::Duration::from_secs(20))).expect("sets");
    assert_eq!(client.recv_from(&mut buffer).expect("the answer"), (6, at));
    stranger.set_nonblocking(true).expect("sets");
    assert!(stranger.recv_from(&mut buffer).is_err(), "nobody asked");
    // They end with their engine.
    drop(sockets);
    for child in children.iter_mut().rev() {
        assert!(child.wait().expect("waits").success());
    }
}

/// What the guest's web server says through a port of the host, if anything answers.
fn page_at(port: u16) -> Option<String> {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(std::time::Duration::from_secs(60))).ok()?;
    stream.write_all(b"GET /page HTTP/1.0\r\n\r\n").ok()?;
    let mut page = String::new();
    stream.read_to_string(&mut page).ok()?;
    Some(page)
}

#[test]
#[ignore = "needs a guest: make test"]
fn a_forward_that_is_added_while_the_guest_runs_carries_data_and_none_once_it_is_removed() {
    let store = Store::new();
    let command = "ip_addr_add_10.0.2.15/24_dev_eth0;_ip_link_set_eth0_up;_mkdir_/www;_echo_word_from_inside_>/www/page;\
                   _httpd_-h_/www_-p_80;_echo_it_$((40+2))_serves;_sleep_1000";
    create(&store, "nics = [{ id = \"net0\", backend = \"user\" }]", command, "it 42 serves");
    store.ok(&["start", "--wait", "g"]);
    let [tcp, udp] =
        [(); 2].map(|()| std::net::TcpListener::bind("127.0.0.1:0").expect("binds").local_addr().expect("bound").port());
    assert_eq!(page_at(tcp), None, "nothing is forwarded yet");
    for _ in 0..2 {
        store.ok(&["forward", "add", "g", &format!("{tcp}:80"), &format!("{udp}:53/udp")]);
        let page = page_at(tcp).expect("the guest answers");
        assert!(page.contains("word from inside"), "{page}");
        assert!(std::net::UdpSocket::bind(("127.0.0.1", udp)).is_err(), "the connector has the port");
        let listed = store.ok(&["forward", "list", "g", "-o", "jsonl"]);
        assert_eq!(listed.matches("\"active\":true").count(), 2, "{listed}");
        store.ok(&["forward", "remove", "g", &tcp.to_string(), &format!("{udp}/udp")]);
        assert_eq!(page_at(tcp), None, "the host listens no more");
        std::net::UdpSocket::bind(("127.0.0.1", udp)).expect("the port is free");
    }
    store.ok(&["poweroff", "g"]);
}

#[test]
#[ignore = "needs a guest: make test"]
fn a_guest_whose_agent_answers_on_its_port_is_ready_runs_commands_and_shuts_down() {
    let store = Store::new();
    store.create(&format!(
        "agent = true\nready = {{ agent = true, timeout = \"5m\" }}\n[kernel]\nimage = \"{0}/vmlinuz\"\n\
         initrd = \"{0}/initrd.img\"\ncmdline = \"console=ttyS0 quiet vmctl.run=agent\"\n",
        prepared::folder().display()
    ));
    store.ok(&["start", "--wait", "g"]);
    assert_eq!(store.ok(&["exec", "g", "--", "uname", "-s", "-m"]), "Linux x86_64\n");
    let failed = store.vmctl(&["exec", "g", "--", "sh", "-c", "exit 7"]);
    assert_eq!(failed.status.code(), Some(7), "{failed:?}");
    // 200 KB through the queues of one port.
    let long = store.ok(&["exec", "g", "--", "seq", "1", "36000"]);
    assert!(long.ends_with("\n36000\n"), "{} bytes", long.len());
    for _ in 0..200 {
        if store.ok(&["info", "g"]).contains("192.0.2.9") {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(200));
    }
    assert!(store.ok(&["list"]).contains("192.0.2.9"));
    // Its shell does not hear the power button.
    let stopped = store.vmctl(&["stop", "g"]);
    assert!(String::from_utf8_lossy(&stopped.stderr).contains("the guest shut itself down"), "{stopped:?}");
}
