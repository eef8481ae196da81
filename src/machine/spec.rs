//! The contract between the supervisor and the engine child, and the only one between `guest` and `machine`.
//!
//! The supervisor starts `vmctl vmm --spec FILE` once per boot. FILE holds a [`VmmSpec`] as JSON: everything that the
//! child needs, with absolute paths, so that the child reads no guest file and looks nothing up. The child inherits
//!
//! * [`CONSOLE_FD`]: a stream socket that carries the output and the input of COM1;
//! * [`CONTROL_FD`]: a stream socket of JSON lines, [`EngineEvent`] upwards and [`EngineCommand`] downwards;
//! * [`FORWARDS_FD`], with a user-mode network: a stream for its connector, on which the supervisor passes the sockets of
//!   forwards that are added while the guest runs;
//! * [`AGENT_FD`], with [`VmmSpec::agent_port`]: a stream socket that carries the bytes of this port;
//! * [`TAPS_FD`] and the numbers after it: the taps of the interfaces that have one, in the order of the interfaces;
//! * [`LEASE_FD`]: nothing to read; it holds a file lock that tells the next supervisor that this engine is alive;
//! * standard error: kept by the supervisor in a bounded log, shown to the user when a start fails.
//!
//! The process's exit code is [`crate::hypervisor::backend::MachineExit::code`], or [`ABORTED`]. The child exits when its control
//! stream ends: a killed supervisor leaves no engine behind.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::choices::{BackendKind, EmbeddedDiskCache, EmbeddedDiskDevice, EmbeddedNicDevice, ForwardProto};
use crate::units::Topology;

/// The version of this contract. Both sides come from one binary; a difference means that the binary was replaced
/// meanwhile.
pub const SPEC_VERSION: u32 = 3;
/// The exit code of a child that aborted in a process namespace of its own, whose first process no signal of its own ends:
/// 128 plus SIGABRT's number, as in a shell. No end of a machine has it: those above 5 are odd.
pub const ABORTED: u8 = 128 + 6;
/// The descriptor of the console stream in the child.
pub const CONSOLE_FD: i32 = 3;
/// The descriptor of the control stream in the child.
pub const CONTROL_FD: i32 = 4;
/// The descriptor whose file lock shows that the child is alive. It stays open as long as the child has any disk open.
pub const LEASE_FD: i32 = 5;
/// The descriptor on which the connector takes requests for sockets; see [`crate::devices::net::user::connector`].
pub const CONNECTOR_FD: i32 = 3;
/// The descriptor at which a connector asks the host services.
pub const SERVICES_FD: i32 = 4;
/// Descriptor of the supervisor's forwards in the engine, which hands it to its connector and closes it.
pub const FORWARDS_FD: i32 = 6;
/// The same in the connector.
pub const OFFERS_FD: i32 = 5;
/// The descriptor of the agent's stream in the engine.
pub const AGENT_FD: i32 = 7;
/// The first descriptor of a tap in the engine.
pub const TAPS_FD: i32 = 8;
/// The port at which a user-mode network serves [`UserNetSpec::answers`].
pub use crate::devices::net::user::ANSWERS_PORT;
/// The longest line that either side accepts on the control stream, in bytes.
pub const MAX_CONTROL_LINE: usize = 64 * 1024;
/// The PCI slots that the supervisor gives to disks and nics. The others belong to the board.
pub const DEVICE_SLOTS: std::ops::RangeInclusive<u8> = 4..=30;

/// Specification of one machine, completely resolved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmmSpec {
    /// Always [`SPEC_VERSION`].
    pub version: u32,
    /// The guest's name, for messages and SMBIOS.
    pub name: String,
    /// UUID for SMBIOS, in the usual 8-4-4-4-12 form.
    pub uuid: String,
    /// The back end that runs the vCPUs.
    pub backend: BackendKind,
    /// The vCPUs.
    pub cpus: Topology,
    /// Guest RAM, a multiple of 4096.
    pub memory_bytes: u64,
    /// The way in which the guest is entered.
    pub loader: LoaderSpec,
    /// Disks, in the order of the guest file.
    pub disks: Vec<DiskSpec>,
    /// Network interfaces, in the order of the guest file.
    pub nics: Vec<NicSpec>,
    /// Whether there is a virtio entropy device.
    pub rng: bool,
    /// Which of COM1 to COM4 exist. The output of all goes to the console stream, whose input goes to COM1.
    pub com: [bool; 4],
    /// Whether there is a virtio console besides COM1, on the same console stream.
    pub virtio_console: bool,
    /// Name of a port of a virtio console for the guest's agent, if it has one.
    #[serde(default)]
    pub agent_port: Option<String>,
    /// The port of QEMU's isa-debug-exit device, if the guest file asks for it.
    pub debug_exit_port: Option<u16>,
    /// Whether guest time is counted in instructions and no entropy comes from the host, so that runs are repeatable.
    pub deterministic: bool,
    /// The user and group that root goes on as once everything is open.
    #[serde(default)]
    pub run_as: Option<u32>,
}

impl VmmSpec {
    /// Returns the name by which a kernel's hypervisor knows the machine: the same in each boot of the guest, and no other
    /// guest's, whatever the datastore.
    pub fn kernel_name(&self) -> String {
        format!("vmctl-{}", self.uuid)
    }

    /// Returns how many of its interfaces have a tap.
    pub fn taps(&self) -> usize {
        self.nics.iter().filter(|nic| nic.backend == NicBackend::Tap).count()
    }
    /// Returns whether one of its interfaces has a user-mode network.
    pub fn has_user_network(&self) -> bool {
        self.nics.iter().any(|nic| matches!(nic.backend, NicBackend::User(_)))
    }
}

/// The way in which the guest is entered.
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
    /// The boot menu on the guest's own disks, which the child itself shows on COM1.
    Grub(GrubSpec),
}

/// A module of a kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModuleSpec {
    /// Its file.
    pub path: PathBuf,
    /// Its arguments. The file's name goes before them.
    pub args: String,
}

/// The table `[grub]` of the guest file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GrubSpec {
    /// The entry that boots, instead of the configuration's default.
    pub entry: Option<String>,
    /// Commands instead of a configuration. May be empty.
    pub commands: Vec<String>,
    /// Directory of the configuration.
    pub directory: Option<String>,
    /// Name of the configuration.
    pub file: Option<String>,
    /// Partition of the configuration: `1`, `gpt2`, `hd1,msdos1`, `cd0`, `none`.
    pub partition: Option<String>,
    /// Time that the menu waits, instead of the configuration's own time.
    pub timeout_ms: Option<u64>,
    /// Whether to add `console=ttyS0` to a Linux command line that names no console.
    pub add_console: bool,
    /// The only disk whose configuration counts: that of an installer's medium.
    #[serde(default)]
    pub disk: Option<String>,
    /// Words for the kernel's command line, before a `---` in it.
    #[serde(default)]
    pub append: Vec<String>,
}

/// Specification of a disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskSpec {
    /// The id in the guest file.
    pub id: String,
    /// A file or block device.
    pub path: PathBuf,
    /// The device that the guest sees.
    pub device: EmbeddedDiskDevice,
    /// Its PCI slot, which is the same in all boots.
    pub slot: u8,
    /// Whether the guest may not write.
    pub read_only: bool,
    /// When a write is durable.
    pub cache: EmbeddedDiskCache,
    /// The serial number that the guest reads, at most 20 bytes of ASCII.
    pub serial: String,
    /// Whether a guest's discard frees space on the host.
    pub discard: bool,
}

/// Specification of a network interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NicSpec {
    /// The id in the guest file.
    pub id: String,
    /// Its hardware address.
    pub mac: [u8; 6],
    /// The device that the guest sees.
    pub device: EmbeddedNicDevice,
    /// Its PCI slot, which is the same in all boots.
    pub slot: u8,
    /// The MTU that is announced to the guest.
    pub mtu: u16,
    /// The other end of the link.
    pub backend: NicBackend,
}

/// The other end of the link.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum NicBackend {
    /// The user-mode network.
    User(UserNetSpec),
    /// A tap that the supervisor has opened: see [`TAPS_FD`].
    Tap,
    /// None: the link is down.
    None,
}

/// The user-mode network of one interface. Every address is in `network/prefix`.
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
    /// The address that DHCP gives to the guest.
    pub guest: Ipv4Addr,
    /// Address at which `answers` are served.
    pub answers_address: Ipv4Addr,
    /// Servers to which queries are forwarded; those of the host when empty.
    pub dns_servers: Vec<IpAddr>,
    /// Whether nothing may leave except to `host_ports` at the gateway. Forwards still work.
    pub isolated: bool,
    /// Whether the guest reaches the host itself.
    pub host_access: bool,
    /// Ports of the host that it reaches even without `host_access`.
    pub host_ports: Vec<PortsSpec>,
    /// Whether it reaches 169.254.0.0/16.
    pub link_local: bool,
    /// Connections that the host accepts and passes to the guest.
    pub forwards: Vec<ForwardSpec>,
    /// Files that the guest may read over HTTP, at an unused address.
    #[serde(default)]
    pub answers: Vec<AnswerSpec>,
}

/// A file that is served to the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AnswerSpec {
    /// Its path on the server: `/preseed.cfg`.
    pub path: String,
    /// Contents of the file.
    pub content: AnswerContent,
}

/// Contents of a served file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AnswerContent {
    /// A file of the host, read when the machine is built.
    File(PathBuf),
    /// A text.
    Text(String),
}

/// Ports of the host that the guest reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortsSpec {
    /// TCP or UDP.
    pub protocol: ForwardProto,
    /// The first port.
    pub first: u16,
    /// The last port.
    pub last: u16,
}

/// A port of the host that is forwarded to the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ForwardSpec {
    /// TCP or UDP.
    pub protocol: ForwardProto,
    /// The address on which the host listens.
    pub host_address: IpAddr,
    /// The host's port.
    pub host_port: u16,
    /// The guest's port.
    pub guest_port: u16,
}

/// A message of the child to the supervisor: one JSON line each.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum EngineEvent {
    /// The machine is built, every file and port is open, and the first guest instruction is about to run.
    Running {
        /// The back end in use: `soft`, `kvm` or `vmm`.
        backend: String,
    },
    /// The child has given up what it does not need; sent before the machine is built.
    Confined {
        /// What holds, in words: `seccomp`, `uid 1900000001`.
        by: Vec<String>,
        /// What this host lacks or refuses, and why.
        without: Vec<String>,
    },
    /// The machine cannot be built or cannot continue. The exit code is that of an error.
    Error {
        /// The message for the user: lower-case, no final stop.
        message: String,
    },
    /// The guest wrote to the debug-exit port. The process exits next.
    DebugExit {
        /// The value that it wrote.
        value: u8,
    },
    /// The power button was pressed, but the guest could not notice it since it has not enabled ACPI. The machine is
    /// powered off without a shutdown, and the process exits next.
    NoAcpi,
    /// The address of the guest's VNC screen: `ADDRESS:PORT`, or `unix:PATH`.
    Screen {
        /// The address.
        address: String,
    },
    /// The guest could not be saved and continues.
    NotSuspended {
        /// The reason, as a message for the user.
        message: String,
    },
    /// For the first time in this boot, the guest has accepted a TCP connection through this forward. The forward
    /// itself accepts as soon as the engine runs.
    ForwardOpen {
        /// The address on which the host listens for the forward.
        address: SocketAddr,
    },
    /// The answer to [`EngineCommand::AddForward`] and [`EngineCommand::RemoveForward`].
    ForwardChanged {
        /// Whether it was to be added.
        added: bool,
        /// Name of the interface.
        nic: String,
        /// The forward.
        forward: ForwardSpec,
        /// Reason why nothing has changed, as a message for the user.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        error: Option<String>,
    },
    /// The answer to [`EngineCommand::Stats`].
    Stats {
        /// Counters by name. docs/control-protocol.md lists those that `metrics` and `top` use.
        counters: BTreeMap<String, u64>,
    },
}

/// A message of the supervisor to the child: one JSON line each.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "cmd", rename_all = "kebab-case", deny_unknown_fields)]
pub enum EngineCommand {
    /// Presses the ACPI power button. It is repeated every few seconds until the guest has ended.
    PowerButton,
    /// Stops with exit code 0, as the guest's own reset does.
    Reset,
    /// Stops with exit code 1, as the guest's own power-off does.
    Poweroff,
    /// Saves the guest and stops with exit code 5. The next boot continues from there. The answer is
    /// [`EngineEvent::NotSuspended`] if it cannot be done.
    Suspend,
    /// Raises a non-maskable interrupt on every vCPU.
    Nmi,
    /// Asks for [`EngineEvent::Stats`].
    Stats,
    /// Takes a forward into use whose socket the supervisor has given to the connector.
    AddForward {
        /// Name of the interface.
        nic: String,
        /// The forward.
        forward: ForwardSpec,
    },
    /// Closes a forward, and the connections through it.
    RemoveForward {
        /// Name of the interface.
        nic: String,
        /// The forward.
        forward: ForwardSpec,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_messages_are_the_documented_lines() {
        let line = |value: &EngineCommand| serde_json::to_string(value).expect("serializes");
        assert_eq!(line(&EngineCommand::PowerButton), r#"{"cmd":"power-button"}"#);
        assert_eq!(line(&EngineCommand::Stats), r#"{"cmd":"stats"}"#);
        let (protocol, host_address) = (ForwardProto::Tcp, IpAddr::from([127, 0, 0, 1]));
        let forward = ForwardSpec { protocol, host_address, host_port: 8080, guest_port: 80 };
        assert_eq!(
            line(&EngineCommand::AddForward { nic: "net0".into(), forward }),
            r#"{"cmd":"add-forward","nic":"net0","forward":{"protocol":"tcp","host_address":"127.0.0.1","host_port":8080,"guest_port":80}}"#
        );
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
            cpus: Topology { sockets: 1, cores: 2, threads: 1 },
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
            agent_port: Some("agent".into()),
            debug_exit_port: Some(0xf4),
            deterministic: false,
            run_as: Some(1_900_000_000),
        };
        let text = serde_json::to_string(&spec).expect("serializes");
        assert_eq!(serde_json::from_str::<VmmSpec>(&text).expect("parses"), spec);
        assert_eq!(spec.cpus.count(), 2);
    }
}
