//! What the supervisor and the engine child say to each other: the one contract between `guest` and `machine`.
//!
//! The supervisor starts `vmctl vmm --spec FILE` once a boot. FILE holds a [`VmmSpec`] as JSON: everything the child
//! needs, with every path absolute, so that the child reads no guest file and looks nothing up. The child inherits
//!
//! * [`CONSOLE_FD`]: a stream socket; what COM1 sends is written to it, what is read from it is COM1's input;
//! * [`CONTROL_FD`]: a stream socket of JSON lines, [`EngineEvent`] upwards and [`EngineCommand`] downwards;
//! * [`LEASE_FD`]: nothing to read; it holds a file lock that tells the next supervisor that this engine lives;
//! * standard error: kept by the supervisor in a bounded log, shown to the user when a start fails.
//!
//! The process's exit code is [`crate::hypervisor::backend::MachineExit::code`]. The child exits when its control
//! stream ends: a killed supervisor leaves no engine behind.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::choices::{BackendKind, EmbeddedDiskCache, EmbeddedDiskDevice, EmbeddedNicDevice, ForwardProto};

/// The version of this contract; both sides come from one binary, a difference means that it was replaced mid-way.
pub const SPEC_VERSION: u32 = 2;
/// The descriptor of the console stream in the child.
pub const CONSOLE_FD: i32 = 3;
/// The descriptor of the control stream in the child.
pub const CONTROL_FD: i32 = 4;
/// The descriptor whose file lock says that the child lives. It stays open as long as the child has any disk open.
pub const LEASE_FD: i32 = 5;
/// The descriptor at which a connector is asked for sockets; see [`crate::devices::net::user::connector`].
pub const CONNECTOR_FD: i32 = 3;
/// The descriptor at which a connector asks the host services.
pub const SERVICES_FD: i32 = 4;
/// The port at which a user-mode network serves [`UserNetSpec::answers`].
pub use crate::devices::net::user::ANSWERS_PORT;
/// The longest line that either side takes on the control stream, in bytes.
pub const MAX_CONTROL_LINE: usize = 64 * 1024;
/// The PCI slots that the supervisor hands out to disks and nics; the others are the board's own.
pub const DEVICE_SLOTS: std::ops::RangeInclusive<u8> = 4..=30;

/// One machine, resolved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmmSpec {
    /// [`SPEC_VERSION`].
    pub version: u32,
    /// The guest's name, for messages and SMBIOS.
    pub name: String,
    /// In the usual 8-4-4-4-12 form; SMBIOS.
    pub uuid: String,
    /// Which back end runs the vCPUs.
    pub backend: BackendKind,
    /// The vCPUs.
    pub cpus: CpuTopology,
    /// Guest RAM, a multiple of 4096.
    pub memory_bytes: u64,
    /// How the guest is entered.
    pub loader: LoaderSpec,
    /// In the order of the guest file.
    pub disks: Vec<DiskSpec>,
    /// In the order of the guest file.
    pub nics: Vec<NicSpec>,
    /// Whether there is a virtio entropy device.
    pub rng: bool,
    /// Which of COM1 to COM4 are there; what they send joins in the console stream, its input goes to COM1.
    pub com: [bool; 4],
    /// Whether there is a virtio console beside COM1, joined to the same console stream.
    pub virtio_console: bool,
    /// The port of QEMU's isa-debug-exit device, for those who asked for it.
    pub debug_exit_port: Option<u16>,
    /// Guest time is counted in instructions and no entropy comes from the host: for repeatable runs.
    pub deterministic: bool,
    /// The user and group that root goes on as once everything is open.
    #[serde(default)]
    pub run_as: Option<u32>,
}

/// The vCPUs: `sockets * cores * threads` of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CpuTopology {
    /// Sockets.
    pub sockets: u32,
    /// Cores a socket.
    pub cores: u32,
    /// Threads a core.
    pub threads: u32,
}

impl VmmSpec {
    /// Whether a user-mode network is among its interfaces.
    pub fn has_user_network(&self) -> bool {
        self.nics.iter().any(|nic| matches!(nic.backend, NicBackend::User(_)))
    }
}

impl CpuTopology {
    /// How many vCPUs.
    pub fn count(&self) -> usize {
        self.sockets as usize * self.cores as usize * self.threads as usize
    }
}

/// How the guest is entered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum LoaderSpec {
    /// A kernel image (bzImage or ELF) put into memory from the host.
    Kernel {
        /// The image.
        image: PathBuf,
        /// Its initial RAM disk.
        initrd: Option<PathBuf>,
        /// Its modules.
        #[serde(default)]
        modules: Vec<ModuleSpec>,
        /// Its command line.
        cmdline: String,
    },
    /// The boot menu on the guest's own disks, shown on COM1 by the child itself.
    Grub(GrubSpec),
}

/// A module of a kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModuleSpec {
    /// Its file.
    pub path: PathBuf,
    /// Its arguments; the file's name goes in front.
    pub args: String,
}

/// What the guest file says of its boot menu.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GrubSpec {
    /// The entry that boots, instead of the configuration's default.
    pub entry: Option<String>,
    /// Commands instead of a configuration; may be empty.
    pub commands: Vec<String>,
    /// Directory of the configuration.
    pub directory: Option<String>,
    /// Name of the configuration.
    pub file: Option<String>,
    /// Where it is: `1`, `gpt2`, `hd1,msdos1`, `cd0`, `none`.
    pub partition: Option<String>,
    /// How long the menu waits, instead of the configuration's own time.
    pub timeout_ms: Option<u64>,
    /// A Linux command line that names no console is given `console=ttyS0`.
    pub add_console: bool,
    /// The one disk whose configuration counts: that of an installer's medium.
    #[serde(default)]
    pub disk: Option<String>,
    /// Words for the kernel's command line, before a `---` in it.
    #[serde(default)]
    pub append: Vec<String>,
}

/// One disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskSpec {
    /// The id in the guest file.
    pub id: String,
    /// A file or block device.
    pub path: PathBuf,
    /// What the guest sees.
    pub device: EmbeddedDiskDevice,
    /// Its PCI slot, stable over boots.
    pub slot: u8,
    /// The guest may not write.
    pub read_only: bool,
    /// What a write means.
    pub cache: EmbeddedDiskCache,
    /// The serial number that the guest reads, at most 20 bytes of ASCII.
    pub serial: String,
    /// A guest's discard frees space on the host.
    pub discard: bool,
}

/// One network interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NicSpec {
    /// The id in the guest file.
    pub id: String,
    /// Its hardware address.
    pub mac: [u8; 6],
    /// What the guest sees.
    pub device: EmbeddedNicDevice,
    /// Its PCI slot, stable over boots.
    pub slot: u8,
    /// The MTU that the guest is told.
    pub mtu: u16,
    /// What the other end of the wire is.
    pub backend: NicBackend,
}

/// What the other end of the wire is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum NicBackend {
    /// The user-mode network.
    User(UserNetSpec),
    /// No wire: the link is down.
    None,
}

/// The user-mode network of one interface; every address lies in `network/prefix`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserNetSpec {
    /// First address of the network.
    pub network: Ipv4Addr,
    /// Prefix length, 8 to 28.
    pub prefix: u8,
    /// Router, and the host as the guest sees it.
    pub gateway: Ipv4Addr,
    /// Resolver.
    pub dns: Ipv4Addr,
    /// The lease that DHCP gives.
    pub guest: Ipv4Addr,
    /// Where `answers` are served.
    pub answers_address: Ipv4Addr,
    /// Servers that queries are forwarded to; those of the host when empty.
    pub dns_servers: Vec<IpAddr>,
    /// Nothing leaves but to `host_ports` at the gateway; forwards still work.
    pub isolated: bool,
    /// The guest reaches the host itself.
    pub host_access: bool,
    /// Ports of the host that it reaches all the same.
    pub host_ports: Vec<PortsSpec>,
    /// It reaches 169.254.0.0/16.
    pub link_local: bool,
    /// Connections taken on the host and handed to the guest.
    pub forwards: Vec<ForwardSpec>,
    /// Files that the guest may read over HTTP, from an address that nobody else has.
    #[serde(default)]
    pub answers: Vec<AnswerSpec>,
}

/// A file that is served to the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AnswerSpec {
    /// Its path there: `/preseed.cfg`.
    pub path: String,
    /// What it holds.
    pub content: AnswerContent,
}

/// What a served file holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AnswerContent {
    /// A file of the host, read as the machine is built.
    File(PathBuf),
    /// This.
    Text(String),
}

/// Ports of the host that the guest reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortsSpec {
    /// TCP or UDP.
    pub protocol: ForwardProto,
    /// The first.
    pub first: u16,
    /// The last.
    pub last: u16,
}

/// A port of the host that leads into the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ForwardSpec {
    /// TCP or UDP.
    pub protocol: ForwardProto,
    /// Where the host listens.
    pub host_address: IpAddr,
    /// The host's port.
    pub host_port: u16,
    /// The guest's port.
    pub guest_port: u16,
}

/// What the child tells the supervisor: one JSON line each.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum EngineEvent {
    /// The machine is built, every file and port is open, and the first guest instruction is about to run.
    Running {
        /// The back end that was taken: `soft`, `kvm` or `vmm`.
        backend: String,
    },
    /// The child has given up what it does not need; sent before the machine is built.
    Confined {
        /// What holds, in words: `seccomp`, `uid 1900000001`.
        by: Vec<String>,
        /// What this host lacks or refuses, and why.
        without: Vec<String>,
    },
    /// The machine cannot be built or go on; the exit code is that of an error. In the words a user reads.
    Error {
        /// Lower-case, no final stop.
        message: String,
    },
    /// The guest wrote to the debug-exit port; the process exits next.
    DebugExit {
        /// What it wrote.
        value: u8,
    },
    /// The power button was pressed, the guest could not hear it since it has not turned on ACPI, and the machine is
    /// being powered off without a shutdown; the process exits next.
    NoAcpi,
    /// Where the guest's screen is seen with VNC: `ADDRESS:PORT`, or `unix:PATH`.
    Screen {
        /// Where.
        address: String,
    },
    /// The guest could not be saved and goes on.
    NotSuspended {
        /// Why, in the words a user reads.
        message: String,
    },
    /// For the first time of this boot, the guest has accepted a TCP connection that came by this forward. The forward
    /// itself accepts as soon as the engine runs.
    ForwardOpen {
        /// Where the forward listens on the host.
        address: SocketAddr,
    },
    /// The answer to [`EngineCommand::Stats`].
    Stats {
        /// Counters by name; docs/control-protocol.md lists those that have a meaning for `metrics` and `top`.
        counters: BTreeMap<String, u64>,
    },
}

/// What the supervisor tells the child: one JSON line each.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "cmd", rename_all = "kebab-case", deny_unknown_fields)]
pub enum EngineCommand {
    /// Presses the ACPI power button. Comes again every few seconds until the guest has ended.
    PowerButton,
    /// Stops with exit code 0, as the guest's own reset does.
    Reset,
    /// Stops with exit code 1, as the guest's own power-off does.
    Poweroff,
    /// Saves the guest and stops with exit code 5; the next boot goes on from there. Answered by
    /// [`EngineEvent::NotSuspended`] when it cannot be done.
    Suspend,
    /// Raises a non-maskable interrupt on every vCPU.
    Nmi,
    /// Asks for [`EngineEvent::Stats`].
    Stats,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_messages_are_the_documented_lines() {
        let line = |value: &EngineCommand| serde_json::to_string(value).expect("serializes");
        assert_eq!(line(&EngineCommand::PowerButton), r#"{"cmd":"power-button"}"#);
        assert_eq!(line(&EngineCommand::Stats), r#"{"cmd":"stats"}"#);
        let event = |value: &EngineEvent| serde_json::to_string(value).expect("serializes");
        assert_eq!(event(&EngineEvent::Running { backend: "soft".into() }), r#"{"event":"running","backend":"soft"}"#);
        assert_eq!(event(&EngineEvent::DebugExit { value: 3 }), r#"{"event":"debug-exit","value":3}"#);
    }

    #[test]
    fn a_spec_survives_its_json() {
        let spec = VmmSpec {
            version: SPEC_VERSION,
            name: "g".into(),
            uuid: "00000000-0000-4000-8000-000000000000".into(),
            backend: BackendKind::Auto,
            cpus: CpuTopology { sockets: 1, cores: 2, threads: 1 },
            memory_bytes: 1 << 28,
            loader: LoaderSpec::Kernel {
                image: "/k".into(),
                initrd: None,
                modules: vec![ModuleSpec { path: "/m".into(), args: "a".into() }],
                cmdline: "console=ttyS0".into(),
            },
            disks: vec![DiskSpec {
                id: "root".into(),
                path: "/d".into(),
                device: EmbeddedDiskDevice::VirtioBlk,
                slot: 4,
                read_only: false,
                cache: EmbeddedDiskCache::Writeback,
                serial: "root".into(),
                discard: true,
            }],
            nics: vec![NicSpec {
                id: "net0".into(),
                mac: [2, 0, 0, 0, 0, 1],
                device: EmbeddedNicDevice::VirtioNet,
                slot: 5,
                mtu: 1500,
                backend: NicBackend::User(UserNetSpec {
                    network: Ipv4Addr::new(10, 0, 2, 0),
                    prefix: 24,
                    gateway: Ipv4Addr::new(10, 0, 2, 2),
                    dns: Ipv4Addr::new(10, 0, 2, 3),
                    guest: Ipv4Addr::new(10, 0, 2, 15),
                    answers_address: Ipv4Addr::new(10, 0, 2, 4),
                    dns_servers: Vec::new(),
                    isolated: false,
                    host_access: false,
                    host_ports: vec![PortsSpec { protocol: ForwardProto::Udp, first: 53, last: 54 }],
                    link_local: true,
                    forwards: vec![ForwardSpec {
                        protocol: ForwardProto::Tcp,
                        host_address: Ipv4Addr::LOCALHOST.into(),
                        host_port: 2222,
                        guest_port: 22,
                    }],
                    answers: vec![AnswerSpec { path: "/a".into(), content: AnswerContent::Text("b".into()) }],
                }),
            }],
            rng: true,
            com: [true, false, false, false],
            virtio_console: false,
            debug_exit_port: Some(0xf4),
            deterministic: false,
            run_as: Some(1_900_000_000),
        };
        let text = serde_json::to_string(&spec).expect("serializes");
        assert_eq!(serde_json::from_str::<VmmSpec>(&text).expect("parses"), spec);
        assert_eq!(spec.cpus.count(), 2);
    }
}
