//! Texts that other programs wrote: what is read of them is bounded, and never a panic.

use std::path::Path;

use vmctl::testing::config::GrubSystem;
use vmctl::testing::guest::engine::bhyve::partitions;
use vmctl::testing::guest::engine::bhyve::run::boot_plan::BhyvePlan;
use vmctl::testing::guest::engine::bhyve::run::journal;
use vmctl::testing::guest::import::Notes;
use vmctl::testing::guest::import::conf::Conf;
use vmctl::testing::guest::import::switches;
use vmctl::testing::guest::import::translate::{Source, translate};
use vmctl::testing::guest::metrics_format::Format;
use vmctl::testing::host::bhyve::{HostFeatures, ProbeOutputs};
use vmctl::testing::host::iscsi::{self, Target};
use vmctl::testing::host::{bhyvectl, ifconfig, netgraph, passthru, scrape};

use super::Bytes;

/// Keys of vm-bhyve, so that the bytes reach what stands behind them.
const KEYS: &[&str] = &[
    "loader",
    "loader_timeout",
    "uefi_vars",
    "cpu",
    "cpu_sockets",
    "cpu_cores",
    "cpu_threads",
    "memory",
    "wired_memory",
    "hostbridge",
    "fwcfg",
    "comports",
    "utctime",
    "uuid",
    "bhyve_options",
    "start_slot",
    "ahci_device_limit",
    "disk0_type",
    "disk0_name",
    "disk0_dev",
    "disk0_opts",
    "disk0_size",
    "disk1_type",
    "disk1_name",
    "disk1_opts",
    "network0_type",
    "network0_switch",
    "network0_device",
    "network0_mac",
    "network0_span",
    "passthru0",
    "passthru1",
    "passthru0_options",
    "virt_random",
    "virt_console0",
    "graphics",
    "graphics_port",
    "graphics_res",
    "graphics_vga",
    "vnc_password",
    "xhci_mouse",
    "sound",
    "grub_run0",
    "grub_run_partition",
    "zfs_zvol_opts",
    "prestart",
    "priority",
    "limit_pcpu",
    "limit_rbps",
    "tags",
    "on_fault",
    "switch_list",
    "type_a",
    "ports_a",
    "vlan_a",
    "addr_a",
    "mtu_a",
    "bridge_a",
];

/// Values that mean something for many keys.
const VALUES: &[&str] =
    &["yes", "no", "uefi", "grub", "bhyveload", "1", "32", "ahci-hd", "ahci-cd", "virtio-9p", "custom", "5/0/0", "a", "standard"];

/// Whether a text is one of these.
fn reads<T: std::str::FromStr>(_: &T, text: &str) -> bool {
    text.parse::<T>().is_ok()
}

pub fn vm_bhyve(data: &[u8]) {
    let mut bytes = Bytes::new(data);
    let mut text = String::new();
    while !bytes.is_empty() {
        let key = KEYS[usize::from(bytes.byte()) % KEYS.len()];
        let value = match bytes.byte() {
            kind if kind < 128 => VALUES[usize::from(kind) % VALUES.len()].to_owned(),
            length => (0..length % 24).map(|_| char::from(bytes.byte())).collect(),
        };
        text.push_str(&format!("{key}=\"{value}\"\n"));
    }
    for text in [text, String::from_utf8_lossy(data).into_owned()] {
        for template in [false, true] {
            let conf = Conf::parse(&text);
            let mut notes = Notes::default();
            let found = switches::read(&conf, &mut notes);
            let source = Source {
                name: "g",
                directory: Path::new("/nonexistent"),
                dataset: Some("tank/vm"),
                config_dir: Path::new("/nonexistent"),
                switches: &found,
                template,
                autostart: Some((1, 2)),
            };
            let translated = translate(&source, &conf);
            assert!(conf.unseen().is_empty(), "a setting was neither translated nor told");
            let toml = translated.toml.to_string();
            assert!(reads(&translated.toml, &toml), "what is written is no TOML: {toml}");
        }
    }
}

pub fn listings(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let lines =
        "em0: flags=8<UP> mtu 1\n\tinet 1.2.3.4 netmask 0x\n\tvlan: \n\tmember: \nppt0@pci0:1:2:3:\thdr=0x00\n    vendor = \n";
    for text in [text.clone(), format!("{lines}{text}").into(), text.replace('\0', lines).into()] {
        for interface in ifconfig::parse(&text) {
            interface.addresses.iter().for_each(|prefix| assert!(prefix.contains(prefix.network().address)));
        }
        let _ = passthru::parse(&text);
        assert!(bhyvectl::counters(&text, 0).len() <= 4096);
        let taken = (0..64).filter(|number| netgraph::is_taken(&text, &format!("link{number}"))).count();
        assert!(taken <= text.lines().count());
    }
}

/// A small disk, with what leads further in where it belongs: the signatures, and a label behind a partition.
pub fn partitions(data: &[u8]) {
    let mut bytes = Bytes::new(data);
    let mut disk = vec![0u8; 16 * 512];
    let kind = [0xa6, 0xa9, 0xee, 0x83][usize::from(bytes.byte() % 4)];
    let start = bytes.byte() % 20;
    for _ in 0..bytes.byte() {
        let at = usize::from(bytes.word()) % disk.len();
        disk[at] = bytes.byte();
    }
    disk[450] = kind;
    disk[454..458].copy_from_slice(&u32::from(start).to_le_bytes());
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    match kind {
        0xee => disk[512..520].copy_from_slice(b"EFI PART"),
        _ if start < 15 => disk[(usize::from(start) + 1) * 512..][..4].copy_from_slice(&0x8256_4557u32.to_le_bytes()),
        _ => {}
    }
    disk.truncate(disk.len() - usize::from(bytes.word()) % disk.len());
    for system in [GrubSystem::Linux, GrubSystem::Openbsd, GrubSystem::Netbsd] {
        let found = partitions::find(&mut std::io::Cursor::new(&disk), system).expect("memory can be read");
        assert!(found.is_none_or(|found| found.grub.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())));
    }
}

pub fn bhyve_probe(data: &[u8]) {
    let text = String::from_utf8_lossy(data).into_owned();
    let usage = format!("Usage: bhyve [-{text}]\n       -{text}: x\n");
    let outputs = ProbeOutputs {
        devices: text.clone(),
        lpc: text.clone(),
        usage,
        bhyvectl: text,
        osreldate: 1_400_000,
        max_cpus: None,
        host_cpus: None,
    };
    let features = HostFeatures::parse(&outputs);
    assert!(features.devices.iter().chain(&features.lpc).all(|name| name.len() <= 32));
}

/// A plan of a boot with everything in it.
const PLAN: &str = r#"{"version":2,"name":"g","cpus":2,"journal":"/g/bhyve.journal","modules":["vmm","nmdm"],
"disks":[{"id":"root","path":"/g/root.raw","read_only":false}],
"units":[{"disk":"far","target":{"name":"iqn.a:x","portal":"10.0.0.9"},"lun":2,"read_only":true}],
"taps":[{"nic":"net0","kind":"tap","description":"vmctl/g/net0/m","bridge":["lan","bridge0"],"mtu":9000,"private":true,"span":false}],
"hooks":[{"nic":"net1","path":"br0:"}],"interfaces":[{"nic":"net2","name":"tap7"}],
"files":[{"path":"/g/device.map","text":[{"text":"(hd0) /dev/"},{"device":"far"}]}],
"variables":{"from":"/a","to":"/b","anew":false},"sockets":["/g/c.sock"],"lines":["-vmctl-m-1"],
"tpm":{"directory":"/g/tpm","socket":"/g/tpm.sock","pid_file":"/g/tpm.pid"},
"screen":{"port":{"address":"127.0.0.1","port":null}},
"loader":{"program":"grub-bhyve","arguments":[[{"text":"-m"}]]},
"bhyve":{"program":"bhyve","arguments":[[{"text":"4,virtio-net,"},{"tap":"net0"}],[{"hook":"net1"}],["screen-port"]]},
"jail":"vms","limits":["pcpu:deny=150"],"nice":5,"saved":{"memory":"/g/saved","inside":"/saved","fingerprint":"f"},
"suspends":true,"resumes":false}"#;
const JOURNAL: &str = r#"{"boot_id":"b","made":[{"tap":{"description":"vmctl/g/net0/m"}},{"vm":{"name":"g","jail":null}},
{"session":{"name":"iqn.a:x","portal":"10.0.0.9"}},{"file":"/g/c.sock"},{"tpm":{"pid_file":"/g/tpm.pid"}}]}"#;
const SESSIONS: &str = r#"{"iscsictl":{"session":[{"name":"iqn.a:x","portal":"10.0.0.9","state":"Connected",
"devices":{"lun":[{"lun":2,"device":"da7"}],"scbus":7}}]}}"#;

/// What a boot is planned by, what it leaves noted, and what iscsictl(8) says: valid JSON with bytes of it changed.
pub fn boot_documents(data: &[u8]) {
    let changed = |text: &str| {
        let mut bytes = Bytes::new(data);
        let mut text = text.as_bytes().to_vec();
        while !bytes.is_empty() {
            let at = usize::from(bytes.word()) % text.len();
            match bytes.byte() {
                kind @ 0..=15 => drop(text.drain(at..(at + usize::from(kind)).min(text.len() - 1).max(at))),
                kind @ 16..=31 => {
                    let copy = text[at..(at + usize::from(kind)).min(text.len())].to_vec();
                    text.splice(at..at, copy);
                }
                _ => text[at] = bytes.byte(),
            }
        }
        text
    };
    let target = Target { name: "iqn.a:x".into(), portal: "10.0.0.9".into() };
    assert!(BhyvePlan::read(PLAN.as_bytes()).is_ok() && journal::read(JOURNAL.as_bytes(), "b").len() == 5);
    assert!(iscsi::find(SESSIONS, &target).is_some());
    for text in [PLAN.as_bytes().to_vec(), changed(PLAN), data.to_vec()] {
        if let Ok(plan) = BhyvePlan::read(&text) {
            assert_eq!(BhyvePlan::read(&plan.write()).as_ref(), Ok(&plan), "a plan is read otherwise than it was written");
        }
    }
    for text in [JOURNAL.as_bytes().to_vec(), changed(JOURNAL), data.to_vec()] {
        let made = journal::read(&text, "b");
        assert_eq!(journal::read(&journal::write(&made, "b".into()), "b"), made);
        assert!(journal::read(&text, "another boot").iter().all(|made| matches!(made, journal::Made::File(_))));
    }
    for text in [SESSIONS.as_bytes().to_vec(), changed(SESSIONS), data.to_vec()] {
        let _ = iscsi::find(&String::from_utf8_lossy(&text), &target);
    }
}

/// Requests of whoever connects to `metrics --listen`: alone, and behind a first line that is right.
pub fn scrape(data: &[u8]) {
    for head in [&b""[..], b"GET /metrics HTTP/1.1\r\n", b"GET /metrics HTTP/1.1\r\nHost: localhost"] {
        let request = [head, data].concat();
        let accept = scrape::understands(&request);
        // What follows a request is not of it.
        let followed = [&request[..], b"more"].concat();
        assert!(accept.is_none() || scrape::understands(&followed) == accept);
        let _ = Format::of_accept(&accept.unwrap_or_else(|| String::from_utf8_lossy(data).into_owned()));
    }
}
