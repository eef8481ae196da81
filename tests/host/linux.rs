//! `vmctl switch` on Linux, in network namespaces of their own: real bridges, a real nftables and dnsmasq. `make test` runs
//! these tests as root, with the tools that they need.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::world::Said;

/// A network namespace, which goes with its last process, and what a host has: a host file and a runtime directory.
pub struct Host {
    dir: tempfile::TempDir,
    holder: Child,
}

impl Host {
    /// Makes a host. In a mount namespace too, nothing that `hide` names exists there.
    pub fn new(switches: &str, hide: &str) -> Host {
        assert!(nix::unistd::geteuid().is_root(), "run these tests as root: they make network namespaces");
        let dir = tempfile::Builder::new().prefix("vmctl-net-").tempdir_in("/tmp").expect("a directory");
        std::fs::create_dir_all(dir.path().join("ds/guests")).expect("makes");
        std::fs::write(dir.path().join("host.toml"), switches).expect("writes");
        let script = format!("mount --make-rprivate / && {hide} ip link set lo up && echo ready && exec cat");
        let mut holder = Command::new("unshare")
            .args(["--net", "--mount", "sh", "-c", &script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("unshare runs");
        let mut line = String::new();
        BufReader::new(holder.stdout.as_mut().expect("piped")).read_line(&mut line).expect("reads");
        assert_eq!(line, "ready\n");
        Host { dir, holder }
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn host_file(&self, text: &str) {
        std::fs::write(self.path().join("host.toml"), text).expect("writes");
    }

    /// Returns a command in the namespaces.
    pub fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--net", "--mount", "--target", &self.holder.id().to_string(), "--", program]).args(arguments);
        command.stdin(Stdio::null());
        command
    }

    pub fn vmctl(&self, arguments: &[&str]) -> Said {
        let mut command = self.command(program().to_str().expect("a plain path"), arguments);
        command
            .env("VMCTL_RUNTIME_DIR", self.path().join("run"))
            .env("VMCTL_DATASTORE", self.path().join("ds"))
            .env("VMCTL_CONFIG", self.path().join("host.toml"))
            .env_remove("SSH_CONNECTION");
        command.output().expect("runs").into()
    }

    /// Runs a text of sh(1), which must succeed; returns what it prints.
    pub fn sh(&self, script: &str) -> String {
        let output = self.command("sh", &["-ec", script]).output().expect("runs");
        assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Joins this host to another one by a cable: an interface on each.
    pub fn cable(&self, here: &str, other: &Host, there: &str) {
        self.sh(&format!("ip link add {here} type veth peer name {there} netns {} && ip link set {here} up", other.holder.id()));
        other.sh(&format!("ip link set {there} up"));
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        for entry in std::fs::read_dir(self.path().join("ds/guests")).into_iter().flatten().flatten() {
            let _ = self.vmctl(&["kill", &entry.file_name().to_string_lossy()]);
        }
        // Processes of a service live in no namespace's care: they are ended by their files.
        for entry in std::fs::read_dir(self.path().join("run/switches")).into_iter().flatten().flatten() {
            if let Ok(pid) = std::fs::read_to_string(entry.path().join("dnsmasq.pid")) {
                let _ = Command::new("sh").args(["-c", &format!("kill {}", pid.trim())]).status();
            }
        }
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

const LAN: &str =
    "[[switches]]\nid = \"lan\"\nuplinks = [\"up0\"]\nmtu = 1400\naddresses = [\"10.10.0.1/24\", \"fd00:10::1/64\"]\n";

/// A host with the interface `up0`, which leads nowhere.
fn host(switches: &str) -> Host {
    let host = Host::new(switches, "");
    host.sh("ip link add up0 type veth peer name far0");
    host
}

/// Returns the program, the optimised one where there is one: guests boot here (see `scripts/cargo-test`).
pub fn program() -> PathBuf {
    std::env::var_os("VMCTL_TEST_PROGRAM").map_or_else(|| env!("CARGO_BIN_EXE_vmctl").into(), PathBuf::from)
}

#[test]
#[ignore = "needs tools: make test"]
fn a_switch_is_made_once_shown_and_unmade_on_linux() {
    let host = host(LAN);
    host.vmctl(&["switch", "list"]).ok().says("lan   bridge  down");
    host.vmctl(&["switch", "plan"]).fails(2, "").says("ip link add sw-lan alias 'vmctl switch lan' up type bridge");
    host.vmctl(&["switch", "create", "lan"]).ok().says("lan is made");
    let links = host.sh("ip -d link show sw-lan; ip address show sw-lan; ip link show master sw-lan");
    for words in
        ["mtu 1400", "alias vmctl switch lan", "inet 10.10.0.1/24", "brd 10.10.0.255", "inet6 fd00:10::1/64", ": up0@", "state "]
    {
        assert!(links.contains(words), "{words}: {links}");
    }
    host.vmctl(&["switch", "create", "--all"]).ok().says("lan is there");
    host.vmctl(&["switch", "plan", "lan"]).ok().says("nothing to do");
    let said = host.vmctl(&["switch", "list", "-o", "json"]).ok();
    let document: serde_json::Value = serde_json::from_str(&said.out).expect("JSON");
    assert_eq!(document["items"][0]["state"], "up");
    assert_eq!(document["items"][0]["addresses"][0], "10.10.0.1/24");
    host.vmctl(&["switch", "info", "lan"]).ok().says("uplinks    up0").says("received   ");
    host.sh("ip tuntap add dev tap0 mode tap && ip link set tap0 master sw-lan");
    host.vmctl(&["switch", "destroy", "lan"]).fails(1, "switch `lan` is in use by tap0");
    host.vmctl(&["switch", "destroy", "--force", "lan"]).ok().says("lan is gone");
    assert!(host.sh("ip link").contains("up0") && !host.sh("ip link").contains("sw-lan"));
}

#[test]
#[ignore = "needs tools: make test"]
fn an_address_moves_from_the_uplink_with_its_route_and_back() {
    let host = host("[[switches]]\nid = \"lan\"\nuplinks = [\"up0\"]\naddresses = [\"192.0.2.5/24\"]\n");
    host.sh("ip link set up0 up && ip address add 192.0.2.5/24 dev up0 && ip route add default via 192.0.2.1");
    host.vmctl(&["switch", "create", "lan"]).fails(1, "session's own network could be cut");
    host.vmctl(&["switch", "create", "--yes", "lan"]).ok();
    assert!(host.sh("ip route").contains("default via 192.0.2.1 dev sw-lan"), "{}", host.sh("ip route"));
    assert!(!host.sh("ip address show up0").contains("192.0.2.5"));
    host.vmctl(&["switch", "destroy", "--yes", "lan"]).ok();
    assert!(host.sh("ip route").contains("default via 192.0.2.1 dev up0"), "{}", host.sh("ip route"));
    // One that would stay on the member is refused.
    host.host_file("[[switches]]\nid = \"lan\"\nuplinks = [\"up0\"]\n");
    host.vmctl(&["switch", "create", "--yes", "lan"]).fails(1, "`up0` has the address `192.0.2.5/24`").says("which moves it");
}

#[test]
#[ignore = "needs tools: make test"]
fn what_is_somebody_elses_or_missing_is_refused_and_nothing_is_left() {
    let host = host(LAN);
    host.sh("ip link add sw-lan type bridge");
    host.vmctl(&["switch", "create", "lan"]).fails(1, "`sw-lan` exists and was not made by vmctl");
    host.vmctl(&["switch", "destroy", "lan"]).ok();
    host.sh("ip link show sw-lan && ip link delete sw-lan");
    let nat = "[[switches]]\nid = \"lan\"\naddresses = [\"10.10.0.1/24\"]\nnat = true\negress = \"up0\"\n";
    host.host_file(nat);
    host.sh("nft add table ip vmctl-lan");
    host.vmctl(&["switch", "create", "lan"]).fails(1, "the nftables table `vmctl-lan` exists and was not made by vmctl");
    host.sh("nft delete table ip vmctl-lan");
    host.host_file("[[switches]]\nid = \"lan\"\nuplinks = [\"gone0\"]\n");
    host.vmctl(&["switch", "create", "lan"])
        .fails(1, "the uplink `gone0`, and there is no such interface")
        .says("there are: lo,");
    host.host_file("[[switches]]\nid = \"lan\"\ntype = \"manual\"\nbridge = \"up0\"\n");
    host.vmctl(&["switch", "create", "lan"]).fails(1, "this interface is no bridge");
    host.host_file("[[switches]]\nid = \"lan\"\ntype = \"manual\"\nbridge = \"br7\"\n");
    host.vmctl(&["switch", "create", "lan"]).fails(1, "there is none of that name").says("ip link add br7 type bridge");
    host.host_file("[[switches]]\nid = \"lan\"\ntype = \"vale\"\n");
    host.vmctl(&["switch", "create", "lan"]).fails(1, "which only FreeBSD has").says("`bridge` and `manual`");
    assert!(!host.sh("ip link").contains("sw-lan"));
    // A user who is not root may look, and change nothing.
    host.host_file(LAN);
    let user = |verb: &str| {
        let vmctl =
            format!("VMCTL_CONFIG={0}/host.toml VMCTL_RUNTIME_DIR={0}/other VMCTL_DATASTORE={0}/ds", host.path().display());
        let program = format!("{vmctl} {} switch {verb} lan", program().display());
        host.command("setpriv", &["--bounding-set=-net_admin", "--inh-caps=-net_admin", "--", "sh", "-c", &program]).output()
    };
    let said: Said = user("create").expect("setpriv runs").into();
    said.fails(1, "only root may change the interfaces of this host").says("as root");
    assert!(!host.sh("ip link").contains("sw-lan"));
}

#[test]
#[ignore = "needs tools: make test"]
fn a_vlan_has_an_interface_on_the_uplink_or_the_kernel_lacks_them() {
    let host = host("[[switches]]\nid = \"lan\"\nuplinks = [\"up0\"]\nvlan = 7\n");
    let has = host.command("ip", &["link", "add", "link", "up0", "name", "x", "type", "vlan", "id", "9"]).status();
    match has.expect("ip runs").success() {
        true => {
            host.vmctl(&["switch", "create", "lan"]).ok();
            assert!(host.sh("ip -d link show up0.7").contains("vlan protocol 802.1Q id 7"));
            assert!(host.sh("ip link show master sw-lan").contains("up0.7@up0"));
            host.vmctl(&["switch", "list"]).ok().says("lan   bridge  up");
            host.vmctl(&["switch", "destroy", "lan"]).ok();
        }
        false => {
            host.vmctl(&["switch", "create", "lan"]).fails(1, "this kernel has no interfaces in VLANs").says("modprobe 8021q");
        }
    }
    let links = host.sh("ip link");
    assert!(!links.contains("up0.7") && !links.contains("sw-lan"), "{links}");
}

#[test]
#[ignore = "needs tools: make test"]
fn a_bridge_that_a_killed_command_left_is_finished_or_removed() {
    let host = host(LAN);
    // The group is the first request's, the description the second's.
    let half = "ip link add sw-lan group 30317 type bridge";
    host.sh(half);
    host.vmctl(&["switch", "list"]).ok().says("lan   bridge  partial").says("missing: ip link set sw-lan alias");
    host.vmctl(&["switch", "create", "lan"]).ok();
    assert!(host.sh("ip -d link show sw-lan").contains("alias vmctl switch lan"));
    host.vmctl(&["switch", "list"]).ok().says("lan   bridge  up");
    host.vmctl(&["switch", "destroy", "lan"]).ok();
    host.sh(half);
    host.vmctl(&["switch", "destroy", "lan"]).ok().says("lan is gone");
    assert!(!host.sh("ip link").contains("sw-lan"));
}

#[test]
#[ignore = "needs tools: make test"]
fn doctor_names_what_is_left_of_a_switch_that_is_not_declared_any_more() {
    let host = host(NAT);
    host.vmctl(&["switch", "create", "lan"]).ok();
    host.vmctl(&["doctor"]).does_not_say("what is left of a switch").says("/dev/net/tun");
    let file = std::fs::read_to_string(host.path().join("host.toml")).expect("written");
    host.host_file("");
    let said =
        host.vmctl(&["doctor"]).says("the interface `sw-lan`, the nftables table `vmctl-lan`, the dnsmasq of switch `lan`");
    said.says("`ip link delete sw-lan`, `nft delete table ip vmctl-lan`, `kill ");
    host.host_file(&file);
    host.vmctl(&["switch", "destroy", "lan"]).ok();
    host.host_file("");
    host.vmctl(&["doctor"]).does_not_say("what is left of a switch");
}

const NAT: &str = "[[switches]]\nid = \"lan\"\naddresses = [\"10.10.0.1/24\"]\nnat = true\negress = \"up0\"\n\
                   dhcp = \"10.10.0.100-10.10.0.199\"\ndomain = \"guests.example\"\n";

#[test]
#[ignore = "needs tools: make test"]
fn nat_is_a_table_of_our_own_and_dhcp_a_dnsmasq_of_its_own() {
    let host = host(NAT);
    host.sh("nft add table ip mine && nft add chain ip mine f '{ type filter hook forward priority 0; policy drop; }'");
    host.vmctl(&["switch", "create", "lan"]).ok().says("the nftables chain `ip mine f` drops").says("/etc/sysctl.d");
    let rules = host.sh("nft list table ip vmctl-lan");
    assert!(rules.contains("ip saddr 10.10.0.0/24 ip daddr != 10.10.0.0/24 oifname \"up0\" masquerade"), "{rules}");
    assert_eq!(host.sh("cat /proc/sys/net/ipv4/ip_forward"), "1\n");
    host.vmctl(&["switch", "list", "-o", "wide"]).ok().says("lan   bridge  up").says("10.10.0.100-10.10.0.199 (runs)");
    host.vmctl(&["switch", "create", "lan"]).ok().says("lan is there");
    let pid = || std::fs::read_to_string(host.path().join("run/switches/lan/dnsmasq.pid")).expect("it runs").trim().to_owned();
    let first = pid();
    // Another range restarts the service, and other rules take the place of the old ones.
    host.sh("nft flush table ip vmctl-lan");
    host.host_file(&NAT.replace("0.199", "0.150"));
    host.vmctl(&["switch", "list"]).ok().says("partial").says("missing: nft -f -");
    host.vmctl(&["switch", "create", "lan"]).ok();
    assert_ne!(pid(), first);
    assert!(host.sh("nft list table ip vmctl-lan").contains("masquerade"));
    // A service that was killed is started again.
    host.sh(&format!("kill -9 {}", pid()));
    host.vmctl(&["switch", "list"]).ok().says("partial");
    host.vmctl(&["switch", "create", "lan"]).ok();
    let last = pid();
    host.vmctl(&["switch", "destroy", "lan"]).ok();
    assert!(!PathBuf::from(format!("/proc/{last}")).exists());
    assert_eq!(host.sh("nft list tables ip"), "table ip mine\n");
    assert!(!host.path().join("run/switches/lan/dnsmasq.conf").exists());
}

#[test]
#[ignore = "needs tools: make test"]
fn nft_and_dnsmasq_that_are_not_installed_are_named_with_their_packages() {
    let none = "for f in /usr/sbin/nft /usr/sbin/dnsmasq; do mount --bind /dev/null $f; done;";
    let host = Host::new(NAT, none);
    host.sh("ip link add up0 type veth peer name far0");
    host.vmctl(&["switch", "create", "lan"]).fails(1, "dnsmasq(8) is not installed").says("apt-get install dnsmasq-base");
    host.host_file("[[switches]]\nid = \"lan\"\naddresses = [\"10.10.0.1/24\"]\nnat = true\negress = \"up0\"\n");
    host.vmctl(&["switch", "create", "lan"]).fails(1, "there is no program `nft`").says("apt-get install nftables");
    assert!(!host.sh("ip link").contains("sw-lan"));
}
