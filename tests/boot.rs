//! Boots Debian's own kernel with a busybox initramfs through the whole program: a guest file, `create`, `start
//! --wait`, the supervisor, the confined engine child and the software CPU. `make test` prepares `build/test-guest`.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

struct Store {
    dir: tempfile::TempDir,
}

impl Store {
    fn new() -> Store {
        Store { dir: tempfile::tempdir().expect("a scratch folder") }
    }

    fn vmctl(&self, arguments: &[&str]) -> Output {
        let store = self.dir.path().join("store");
        Command::new(env!("CARGO_BIN_EXE_vmctl")).arg("--datastore").arg(store).args(arguments).output().expect("vmctl runs")
    }

    /// Runs a command that must succeed; returns what it printed.
    fn ok(&self, arguments: &[&str]) -> String {
        let output = self.vmctl(arguments);
        let words = String::from_utf8_lossy(&output.stderr).into_owned();
        let log = self.vmctl(&["logs", "g"]);
        assert!(output.status.success(), "vmctl {arguments:?}: {words}\n{}", String::from_utf8_lossy(&log.stdout));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Makes guest `g`, which runs `command` (with `_` for a space) and is ready when its console says `ready`.
    fn create(&self, more: &str, command: &str, ready: &str) {
        let folder = prepared();
        let text = format!(
            "name = \"g\"\nmemory = \"256M\"\nengine = \"embedded\"\nbackend = \"soft\"\n{more}\n[kernel]\nimage = \"{0}/vmlinuz\"\n\
             initrd = \"{0}/initrd.img\"\ncmdline = \"console=ttyS0 quiet vmctl.run={command}\"\n\
             [ready]\nconsole = \"{ready}\"\ntimeout = \"5m\"\n",
            folder.display()
        );
        let file = self.dir.path().join("g.toml");
        std::fs::write(&file, text).expect("a written guest file");
        self.ok(&["create", "g", "--file", file.to_str().expect("a plain path")]);
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        let _ = self.vmctl(&["kill", "g"]);
    }
}

fn prepared() -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("build/test-guest");
    assert!(
        folder.join("initrd.img").exists(),
        "`{}` is missing: run the tests by `make test`, which prepares it",
        folder.display()
    );
    folder
}

#[test]
fn a_debian_kernel_boots_with_two_processors_a_disk_and_a_network_and_powers_off() {
    let store = Store::new();
    let more = "cpus = 2\ndisks = [{ id = \"data\", size = \"64M\" }]\nnics = [{ id = \"net0\", backend = \"user\" }]";
    let command =
        "dd_if=/dev/zero_of=/dev/vda_bs=1M_count=8_&&_sync_&&_ip_link_set_eth0_up_&&_echo_all_$((40+2))_well_&&_sleep_2";
    store.create(more, command, "all 42 well");
    store.ok(&["start", "--wait", "g"]);
    let log = store.ok(&["logs", "g"]);
    assert!(log.contains("vmctl-test-guest: ready, 2 cpus"), "{log}");
    for _ in 0..120 {
        if store.ok(&["list", "-o", "jsonl"]).contains("\"state\":\"stopped\"") {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(500));
    }
    panic!("the guest powered off and is not stopped:\n{}", store.ok(&["logs", "g"]));
}

#[test]
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
    store.create("nics = [{ id = \"net0\", backend = \"user\" }]", &command, "word from outside");
    store.ok(&["start", "--wait", "g"]);
    store.ok(&["poweroff", "g"]);
}

#[test]
fn a_guest_that_reboots_comes_back_by_itself() {
    let store = Store::new();
    // The disk remembers the first boot: the second one finds its mark.
    let more = "disks = [{ id = \"data\", size = \"1M\" }]";
    let command = "if_grep_-q_mark_/dev/vda;_then_echo_second_$((1+1));_sleep_100;_fi;_echo_mark_>/dev/vda;_sync;_reboot_-f";
    store.create(more, command, "second 2");
    store.ok(&["start", "--wait", "g"]);
    store.ok(&["poweroff", "g"]);
    assert!(store.ok(&["list", "-o", "jsonl"]).contains("\"state\":\"stopped\""));
}
