//! Guests of the embedded engine on switches of Linux, in network namespaces: with each other, with the host, with the
//! world outside through NAT, and at taps that root prepared. `make test` prepares the guest that they run.

use std::path::Path;
use std::process::Child;
use std::time::{Duration, Instant};

use super::linux::{Host, program};

/// Makes guest `name`, whose interface is `nic` and which runs `command`, and starts it; it is ready when its console says
/// `ready`.
fn start(host: &Host, name: &str, nic: &str, command: &str, ready: &str) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("build/test-guest");
    assert!(folder.join("initrd.img").exists(), "`{}` is missing: run the tests by `make test`", folder.display());
    let text = format!(
        "name = \"{name}\"\nmemory = \"256M\"\nengine = \"embedded\"\nbackend = \"soft\"\nnics = [{{ id = \"net0\", {nic} }}]\n\
         [kernel]\nimage = \"{0}/vmlinuz\"\ninitrd = \"{0}/initrd.img\"\ncmdline = \"console=ttyS0 quiet vmctl.run={1}\"\n\
         [ready]\nconsole = \"{ready}\"\ntimeout = \"15m\"\n",
        folder.display(),
        command.replace(' ', "_")
    );
    let file = host.path().join(format!("{name}.toml"));
    std::fs::write(&file, text).expect("writes");
    host.vmctl(&["create", name, "--file", file.to_str().expect("a plain path")]).ok();
    let started = host.vmctl(&["start", "--wait", name]);
    let log = host.vmctl(&["logs", name]).out;
    assert_eq!(started.code, Some(0), "{started:?}\n{log}");
}

/// A process that ends with the test.
struct Service(Child);

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Frames and bytes of an interface in one direction.
fn counted(host: &Host, guest: &str, direction: &str) -> (f64, f64) {
    let until = Instant::now() + Duration::from_secs(60);
    let value = |text: &str, what: &str| {
        let name = format!("vmctl_guest_network_{direction}_{what}_total");
        text.lines().find(|line| line.starts_with(&name))?.rsplit_once(' ')?.1.parse().ok()
    };
    loop {
        let text = host.vmctl(&["metrics", guest]).ok().out;
        if let (Some(packets), Some(bytes)) = (value(&text, "packets"), value(&text, "bytes")) {
            return (packets, bytes);
        }
        assert!(Instant::now() < until, "no counters of {direction} in {text}");
    }
}

const LAN: &str = "[[switches]]\nid = \"lan\"\naddresses = [\"10.10.0.1/24\"]\nnat = true\negress = \"up0\"\n\
                   dhcp = \"10.10.0.100-10.10.0.199\"\n";

/// Takes an address by DHCP.
const DHCP: &str = "ip link set eth0 up; echo '#!/bin/sh' >/tmp/s; echo 'case $1 in bound) ip addr add $ip/24 dev eth0; ip route add \
                    default via $router;; esac' >>/tmp/s; chmod 755 /tmp/s; udhcpc -n -q -t 20 -i eth0 -s /tmp/s";

#[test]
#[ignore = "needs a guest: make test"]
fn two_guests_reach_each_other_the_host_and_the_world_outside() {
    let (host, world) = (Host::new(LAN, ""), Host::new("", ""));
    host.cable("up0", &world, "out0");
    // The world knows no way back to 10.10.0.0/24: only translated packets are answered.
    world.sh("ip address add 198.51.100.9/24 dev out0");
    host.sh("ip address add 198.51.100.1/24 dev up0");
    host.vmctl(&["switch", "create", "lan"]).ok();
    let page = host.path().join("page");
    std::fs::write(&page, vec![b'x'; 4_000_000]).expect("writes");
    let folder = host.path().to_str().expect("a plain path").to_owned();
    let _server = Service(host.command("busybox", &["httpd", "-f", "-p", "8080", "-h", &folder]).spawn().expect("starts"));
    let command = "ip link set eth0 up; ip addr add 10.10.0.20/24 dev eth0; echo a $((40+2)) waits; sleep 1000";
    start(&host, "a", "switch = \"lan\"", command, "a 42 waits");
    let command = format!(
        "{DHCP} && ping -c 2 -W 30 10.10.0.20 && ping -c 2 -W 30 198.51.100.9 && ip addr show eth0 | grep 10.10.0.1[0-9][0-9]/ && \
         wget -q -O- http://10.10.0.1:8080/page | wc -c && ip addr add 10.10.0.21/24 dev eth0 && mkdir /tmp/w && \
         head -c 3000000 /dev/zero >/tmp/w/file && httpd -p 80 -h /tmp/w && echo b $((40+2)) well; sleep 1000"
    );
    host.vmctl(&["switch", "info", "lan"]).ok().says("ports      tap0");
    start(&host, "b", "switch = \"lan\"", &command, "b 42 well");
    let log = host.vmctl(&["logs", "b"]).ok().out;
    assert!(log.contains("4000000"), "{log}");
    // A frame without segmentation offloads has at most 1514 bytes.
    let large = |direction: &str, before: (f64, f64), least: f64| {
        let (packets, bytes) = counted(&host, "b", direction);
        let (packets, bytes) = (packets - before.0, bytes - before.1);
        assert!(bytes > least && bytes / packets > 1514.0, "{direction}: {bytes} bytes in {packets} frames");
    };
    large("receive", (0.0, 0.0), 4e6);
    let before = counted(&host, "b", "transmit");
    assert_eq!(host.sh("busybox wget -q -O- http://10.10.0.21/file | wc -c"), "3000000\n");
    large("transmit", before, 3e6);
    host.vmctl(&["switch", "destroy", "lan"]).fails(1, "in use by tap0, tap1");
    // Nothing is left of an engine that is killed, nor of one that is powered off.
    host.vmctl(&["kill", "a"]).ok();
    host.vmctl(&["poweroff", "b"]).ok();
    host.sh("until ! ip link | grep -q tap; do sleep 0.1; done");
    host.vmctl(&["switch", "destroy", "lan"]).ok();
}

#[test]
#[ignore = "needs tools: make test"]
fn a_tap_that_cannot_be_had_is_refused_with_what_to_type() {
    let nowhere = Host::new(LAN, "mount -t tmpfs none /dev/net &&");
    let host = Host::new(LAN, "");
    for (host, nic, up, words, hint) in [
        (&host, "switch = \"lan\"", false, "the switch `lan` is not up: there is no bridge `sw-lan`", "vmctl switch create lan"),
        (&host, "switch = \"wan\"", false, "no switch is called `wan`", "there are: `lan`"),
        (&host, "backend = \"tap\", interface = \"tap7\"", false, "there is no interface `tap7`", "ip tuntap add dev tap7"),
        (&host, "backend = \"tap\", interface = \"lo\"", false, "the interface `lo` is no tap", "`switch`"),
        (&nowhere, "switch = \"lan\"", true, "cannot open `/dev/net/tun`", "modprobe tun"),
    ] {
        if up {
            host.sh("ip link add sw-lan type bridge");
        }
        let kernel = host.path().join("kernel");
        std::fs::write(&kernel, "no kernel").expect("writes");
        let text = format!(
            "engine = \"embedded\"\nbackend = \"soft\"\nkernel = {{ image = \"{}\" }}\nnics = [{{ id = \"net0\", {nic} }}]\n",
            kernel.display()
        );
        let file = host.path().join("g.toml");
        std::fs::write(&file, text).expect("writes");
        let _ = host.vmctl(&["destroy", "--yes", "g"]);
        host.vmctl(&["create", "g", "--file", file.to_str().expect("a plain path")]).ok();
        let said = host.vmctl(&["start", "g"]);
        assert!(said.code.is_some_and(|code| code != 0), "{said:?}");
        said.says(words).says(hint);
    }
}

#[test]
#[ignore = "needs a guest: make test"]
fn a_user_without_root_runs_a_guest_at_a_tap_that_root_prepared() {
    // A device of taps that everybody may open, as udev(7) makes it.
    let open = "mknod /run/vmctl-tun-$$ c 10 200 && chmod 666 /run/vmctl-tun-$$ && mount --bind /run/vmctl-tun-$$ /dev/net/tun && \
                rm /run/vmctl-tun-$$ &&";
    let host = Host::new("[[switches]]\nid = \"lan\"\naddresses = [\"10.10.0.1/24\"]\n", open);
    host.vmctl(&["switch", "create", "lan"]).ok();
    // What the manual page has root type, for the user `nobody`.
    host.sh("ip tuntap add dev tap7 mode tap user 65534 && ip link set tap7 master sw-lan up");
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("build/test-guest");
    let own = host.path().join("own");
    std::fs::create_dir(&own).expect("makes");
    for name in ["vmlinuz", "initrd.img"] {
        std::fs::copy(folder.join(name), own.join(name)).expect("`make test` prepares it");
    }
    // The program may be where only root looks.
    std::fs::copy(program(), own.join("vmctl")).expect("copies");
    let text = "engine = \"embedded\"\nbackend = \"soft\"\nmemory = \"256M\"\n\
                nics = [{ id = \"net0\", backend = \"tap\", interface = \"tap7\" }]\n[kernel]\nimage = \"vmlinuz\"\n\
                initrd = \"initrd.img\"\ncmdline = \"console=ttyS0 quiet \
                vmctl.run=ip_link_set_eth0_up;_ip_addr_add_10.10.0.20/24_dev_eth0;_echo_up_$((40+2))_now;_sleep_1000\"\n\
                [ready]\nconsole = \"up 42 now\"\ntimeout = \"15m\"\n";
    std::fs::write(own.join("g.toml"), text).expect("writes");
    let place = own.to_str().expect("a plain path");
    host.sh(&format!("chmod 755 {} && chown -R 65534:65534 {place}", host.path().display()));
    let vmctl = |words: &str| {
        let script =
            format!("cd {place} && HOME={place} VMCTL_RUNTIME_DIR={place}/run VMCTL_DATASTORE={place}/ds ./vmctl {words}");
        let user = ["--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all", "--", "sh", "-c", &script];
        let output = host.command("setpriv", &user).output().expect("setpriv runs");
        assert!(output.status.success(), "{words}: {}", String::from_utf8_lossy(&output.stderr));
    };
    vmctl("create g --file g.toml");
    vmctl("start --wait g");
    host.sh("ping -c 3 -W 30 10.10.0.20");
    vmctl("poweroff g");
    assert!(host.sh("ip link").contains("tap7"), "it is root's, and stays");
}
