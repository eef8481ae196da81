//! Configuration of a guest, with all defaults and after all checks. Only [`super::check`] makes it, so that the code
//! that runs guests never gets an invalid value. It holds the keys that an engine of this build supports. A key that
//! the guest's engine does not support is refused by the key table, and its field here is empty.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

use super::addresses::{MacAddr, PciAddress};
use super::cloud_init::CloudInit;
use super::hardware::{
    BhyveConfig, Bhyveload, BootTarget, Channel, CpuPin, GdbStub, Graphics, Grub, InputDevice, IscsiUnit, JailConfig, Limits,
    NetgraphHook, NumaDomain, Passthru, SectorSize, Share, Smbios, Sound, Tpm, Uefi,
};
use crate::choices::{
    AutostartWait, BackendKind, Clock, DiskBackend, DiskCache, DiskDevice, EngineKind, ExitAction, ForwardProto, HookEvent,
    HookFailure, LoaderKind, NicBackend, NicDevice,
};
use crate::units::{ByteSize, Topology, serialize_seconds};

/// Configuration of one guest.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct GuestConfig {
    /// Name: lower-case letters, digits, `.`, `_`, `-`; at most 63 characters; starts and ends with a letter or digit.
    pub name: String,
    /// Description for users.
    pub description: Option<String>,
    /// The user that, besides root, may stop and restart the running guest and use its console.
    pub owner: Option<String>,
    /// Tags, for `--tag`.
    pub tags: Vec<String>,
    /// Whether `destroy` refuses it.
    pub protected: bool,
    /// The engine.
    pub engine: EngineKind,
    /// The vCPU back end of the embedded engine.
    pub backend: BackendKind,
    /// Time that the real-time clock shows.
    pub clock: Clock,
    /// The jail that bhyve runs in.
    pub jail: Option<JailConfig>,
    /// UUID that the guest sees. The store makes one if the file has none.
    pub uuid: Option<String>,
    /// Processors.
    pub cpus: Topology,
    /// The CPUs of the host that they may use.
    pub pins: Vec<CpuPin>,
    /// RAM: a multiple of 1 MiB, at least 16 MiB.
    #[serde(rename = "memory_bytes")]
    pub memory: ByteSize,
    /// Whether the host may not page it out; always with passthrough.
    pub memory_wired: bool,
    /// It may be more than the host has.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub memory_overcommit: bool,
    /// Whether it is part of bhyve's core dumps.
    pub memory_in_core: bool,
    /// NUMA domains; none, or all of the memory and all of the processors.
    pub numa: Vec<NumaDomain>,
    /// The way in which it boots.
    pub loader: LoaderKind,
    /// Kernel, always set for `loader = "kernel"`.
    pub kernel: Option<Kernel>,
    /// GRUB, always set for `loader = "grub"`.
    pub grub: Option<Grub>,
    /// Firmware, always set for `loader = "uefi"`.
    pub uefi: Option<Uefi>,
    /// bhyveload, always set for `loader = "bhyveload"`.
    pub bhyveload: Option<Bhyveload>,
    /// Devices to boot from, in order; if empty, in the order of the file.
    pub boot_order: Vec<BootTarget>,
    /// Disks, in the order of the file.
    pub disks: Vec<DiskConfig>,
    /// Interfaces, in the order of the file.
    pub nics: Vec<NicConfig>,
    /// Serial lines and their log.
    pub console: ConsoleConfig,
    /// Ports of bhyve's virtio console, that of the agent among them; at most 16.
    pub channels: Vec<Channel>,
    /// Whether the guest has a port for the QEMU guest agent.
    pub agent: bool,
    /// A screen; only with UEFI.
    pub graphics: Option<Graphics>,
    /// An HD audio device.
    pub sound: Option<Sound>,
    /// Input devices of the host.
    pub inputs: Vec<InputDevice>,
    /// A trusted platform module.
    pub tpm: Option<Tpm>,
    /// PCI devices of the host.
    pub passthru: Vec<Passthru>,
    /// Directories of the host.
    pub shares: Vec<Share>,
    /// Strings that it reads about its machine.
    pub smbios: Smbios,
    /// Its limits on the host.
    pub limits: Limits,
    /// Settings that only bhyve(8) has.
    pub bhyve: BhyveConfig,
    /// Policy for the guest's exit.
    pub restart: RestartConfig,
    /// Time that `stop` waits after the power button before it powers off.
    #[serde(rename = "stop_timeout_seconds", serialize_with = "serialize_seconds")]
    pub stop_timeout: Duration,
    /// Settings for the start with the host.
    pub autostart: AutostartConfig,
    /// When the guest counts as ready; see [`GuestConfig::ready_probes`].
    pub ready: ReadyConfig,
    /// Commands of the user, which the supervisor runs.
    pub hooks: Vec<HookConfig>,
    /// Whether it has a virtio random-number device.
    pub rng: bool,
    /// Settings for cloud-init in the guest.
    pub cloud_init: Option<CloudInit>,
    /// Settings for kernel developers and for tests.
    pub debug: DebugConfig,
}

/// The kernel for `loader = "kernel"`. Paths are absolute.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Kernel {
    /// bzImage, ELF (PVH) or Multiboot image.
    pub image: PathBuf,
    /// Initial RAM disk, or the first module.
    pub initrd: Option<PathBuf>,
    /// More modules.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub modules: Vec<KernelModule>,
    /// Command line; may be empty.
    pub cmdline: String,
}

/// A module of a Multiboot or PVH kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct KernelModule {
    /// Absolute path of its file.
    pub path: PathBuf,
    /// Its arguments; may be empty.
    pub args: String,
}

/// A disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DiskConfig {
    /// Unique among the disks of the guest.
    pub id: String,
    /// Storage of its bytes.
    pub backend: DiskBackend,
    /// Absolute path of the file or device. Without it the store names the file after `id` in the guest's directory.
    pub path: Option<PathBuf>,
    /// Source of a missing disk: a name of the catalogue, a URL, or an absolute path.
    pub source: Option<String>,
    /// Expected checksum of the image's file, like `sha256:HEX`. Without one the catalogue's is used, or none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checksum: Option<String>,
    /// Whether its bytes are used unchanged, whatever they look like.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub raw: bool,
    /// Size to create, or to grow to. `None` only with a `path` or a `source`, whose size is then used.
    #[serde(rename = "size_bytes")]
    pub size: Option<ByteSize>,
    /// The device that the guest sees.
    pub device: DiskDevice,
    /// Whether writes are refused.
    pub ro: bool,
    /// When a write completes.
    pub cache: DiskCache,
    /// Serial number that the guest sees (at most 20 bytes of ASCII). With the embedded engine it is the id if the file
    /// has none.
    pub serial: Option<String>,
    /// Whether discard frees space on the host.
    pub discard: bool,
    /// iSCSI unit, always set for `backend = "iscsi"`.
    pub iscsi: Option<IscsiUnit>,
    /// Properties of a new ZFS volume.
    pub properties: Vec<(String, String)>,
    /// Whether a ZFS volume uses only the space that was written.
    pub thin: bool,
    /// Sector size that the guest sees.
    pub sector_size: Option<SectorSize>,
    /// The AHCI controller that it shares with other disks of this controller name.
    pub controller: Option<String>,
    /// Its PCI address, instead of the one in the state.
    pub slot: Option<PciAddress>,
    /// Further options of bhyve(8), one word each.
    pub options: Vec<String>,
}

impl DiskConfig {
    /// Creates a disk of vmctl that the guest cannot write: an installer's medium, a seed.
    pub fn read_only(id: &str, device: DiskDevice, path: Option<PathBuf>) -> Self {
        Self {
            id: id.to_owned(),
            backend: DiskBackend::File,
            path,
            source: None,
            checksum: None,
            raw: true,
            size: None,
            device,
            ro: true,
            cache: DiskCache::Writeback,
            serial: None,
            discard: false,
            iscsi: None,
            properties: Vec::new(),
            thin: true,
            sector_size: None,
            controller: None,
            slot: None,
            options: Vec::new(),
        }
    }
}

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NicConfig {
    /// Unique among the interfaces of the guest.
    pub id: String,
    /// Its connection.
    pub backend: NicBackend,
    /// Switch of the host file, for `tap`, `vmnet`, `vale` and `netgraph`.
    pub switch: Option<String>,
    /// An existing interface or port, instead of a new one.
    pub interface: Option<String>,
    /// netgraph hook, always set for `backend = "netgraph"`.
    pub netgraph: Option<NetgraphHook>,
    /// Whether it cannot talk to other private ports of the switch.
    pub private: bool,
    /// Whether it gets a copy of every frame of the switch.
    pub span: bool,
    /// Its PCI address, instead of the one in the state.
    pub slot: Option<PciAddress>,
    /// Further options of bhyve(8), one word each.
    pub options: Vec<String>,
    /// MAC address. The store derives a stable one if the file has none.
    pub mac: Option<MacAddr>,
    /// The device that the guest sees.
    pub device: NicDevice,
    /// MTU that is announced to the guest.
    pub mtu: u16,
    /// Forwards from the host into the guest; only with `user`.
    pub forwards: Vec<Forward>,
    /// Settings of the user-mode network; used with `user`.
    pub user: UserNetwork,
}

/// The user-mode network of one interface. The guest's own lease is `guest`, its router `gateway` and its resolver
/// `dns`, all in `network/prefix`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct UserNetwork {
    /// First address of the network, default 10.0.2.0.
    pub network: Ipv4Addr,
    /// Prefix length, default 24; 8 to 28.
    pub prefix: u8,
    /// Router, and the host as the guest sees it: network + 2.
    pub gateway: Ipv4Addr,
    /// Resolver: network + 3.
    pub dns: Ipv4Addr,
    /// The address that DHCP gives: network + 15, or network + 4 in a /28.
    pub guest: Ipv4Addr,
    /// Address of an installer's answer files: network + 4, or network + 5 in a /28.
    pub answers: Ipv4Addr,
    /// Servers to which queries are forwarded; those of the host when empty.
    pub dns_servers: Vec<IpAddr>,
    /// Whether no connection may leave except to `host_ports` at the gateway. Forwards still work.
    pub isolated: bool,
    /// Whether the guest reaches the host itself: its loopback at the gateway's address, and its other addresses.
    pub host_access: bool,
    /// Ports of the host that it reaches even without `host_access`.
    pub host_ports: Vec<HostPorts>,
    /// Whether it reaches 169.254.0.0/16.
    pub link_local: bool,
}

/// Ports of the host that a guest reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct HostPorts {
    /// TCP or UDP.
    pub proto: ForwardProto,
    /// The first port.
    pub first: u16,
    /// The last port.
    pub last: u16,
}

impl std::str::FromStr for HostPorts {
    type Err = ();

    /// Parses `3128`, `8000-8010`, `53/udp`.
    fn from_str(text: &str) -> Result<HostPorts, ()> {
        let (ports, proto) = match text.split_once('/') {
            None | Some((_, "tcp")) => (text.trim_end_matches("/tcp"), ForwardProto::Tcp),
            Some((ports, "udp")) => (ports, ForwardProto::Udp),
            Some(_) => return Err(()),
        };
        let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
        let port = |text: &str| match text.bytes().all(|byte| byte.is_ascii_digit()) {
            true => text.parse::<u16>().ok().filter(|&port| port != 0).ok_or(()),
            false => Err(()),
        };
        let (first, last) = (port(first)?, port(last)?);
        if first <= last { Ok(HostPorts { proto, first, last }) } else { Err(()) }
    }
}

/// One port of the host that is forwarded to the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Forward {
    /// TCP or UDP.
    pub proto: ForwardProto,
    /// Address on which the host listens, default 127.0.0.1.
    pub host_addr: IpAddr,
    /// Port on the host.
    pub host_port: u16,
    /// Port in the guest.
    pub guest_port: u16,
}

impl Forward {
    /// Returns it in words: `tcp 127.0.0.1:2222 -> 22`.
    pub fn words(&self) -> String {
        format!("{} {} -> {}", self.proto.as_str(), self.host(), self.guest_port)
    }

    /// Returns the address on which the host listens.
    pub fn host(&self) -> SocketAddr {
        SocketAddr::new(self.host_addr, self.host_port)
    }

    /// Returns the address at which the host itself reaches it.
    pub fn reachable(&self) -> SocketAddr {
        let loopback = match self.host_addr {
            IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
            other => other,
        };
        SocketAddr::new(loopback, self.host_port)
    }
}

/// The serial lines. With the embedded engine `com1` is the guest's console and always exists.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ConsoleConfig {
    /// Destinations of COM1 to COM4.
    pub com: [ComPort; 4],
    /// Whether there is a virtio console (`hvc0`) besides COM1, on the same console.
    pub virtio: bool,
    /// Size at which the console's log is rotated.
    #[serde(rename = "log_size_bytes")]
    pub log_size: ByteSize,
    /// Number of rotated logs in addition to the current one.
    pub log_files: u32,
    /// Amount of earlier output that a new session sees.
    #[serde(rename = "scrollback_bytes")]
    pub scrollback: ByteSize,
}

/// Destination of a serial port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ComPort {
    /// The port does not exist.
    None,
    /// The supervisor's console.
    Console,
    /// A terminal device, like one end of an nmdm(4) pair.
    Device(PathBuf),
    /// A TCP port on which bhyve listens.
    Tcp(SocketAddr),
}

/// Policy for a guest's exit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct RestartConfig {
    /// Action after a reboot.
    pub on_reboot: ExitAction,
    /// Action after a power-off or halt.
    pub on_poweroff: ExitAction,
    /// Action after a crash (triple fault), or a crash of the engine.
    pub on_crash: ExitAction,
    /// Number of restarts after crashes that are allowed within `window`; the next crash leaves the guest `failed`. 0
    /// means no limit.
    pub limit: u32,
    /// Window for `limit`.
    #[serde(rename = "window_seconds", serialize_with = "serialize_seconds")]
    pub window: Duration,
    /// Wait before the first restart after a crash. It doubles with each further one in the window.
    #[serde(rename = "backoff_initial_seconds", serialize_with = "serialize_seconds")]
    pub backoff_initial: Duration,
    /// Maximum wait.
    #[serde(rename = "backoff_max_seconds", serialize_with = "serialize_seconds")]
    pub backoff_max: Duration,
}

/// Settings for the start with the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AutostartConfig {
    /// Whether it starts with the host.
    pub enabled: bool,
    /// Position in the order: lower starts first; default 100.
    pub order: i64,
    /// Wait before it is started.
    #[serde(rename = "delay_seconds", serialize_with = "serialize_seconds")]
    pub delay: Duration,
    /// Guests that come before it.
    pub after: Vec<String>,
    /// State that the next ones wait for.
    pub wait: AutostartWait,
    /// Time that they wait.
    #[serde(rename = "timeout_seconds", serialize_with = "serialize_seconds")]
    pub timeout: Duration,
}

/// Prompt of getty(8) on a console.
pub const LOGIN_PROMPT: &str = "login:";

impl GuestConfig {
    /// Returns what must have passed for the guest to be ready: its `[ready]`; without one, sshd(8) greets where
    /// cloud-init lets a user in and a forward leads to it; else the console asks for a login, or, without a console, the
    /// agent answers. A guest with neither is ready when it runs.
    pub fn ready_probes(&self) -> Vec<ReadyProbe> {
        if !self.ready.probes.is_empty() {
            return self.ready.probes.clone();
        }
        let mut forwards = self.nics.iter().flat_map(|nic| &nic.forwards);
        let ssh = forwards.find(|forward| forward.proto == ForwardProto::Tcp && forward.guest_port == 22);
        if let (Some(_), Some(forward)) = (&self.cloud_init, ssh) {
            return vec![ReadyProbe::Ssh(forward.reachable())];
        }
        let speaks = self.console.virtio || self.console.com.contains(&ComPort::Console);
        match (speaks, self.agent) {
            (true, _) => vec![ReadyProbe::Console(LOGIN_PROMPT.into())],
            (false, true) => vec![ReadyProbe::Agent],
            (false, false) => Vec::new(),
        }
    }
}

/// Conditions for a guest to be ready: all probes have passed once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ReadyConfig {
    /// All must pass; none where the file has none.
    pub probes: Vec<ReadyProbe>,
    /// Time that `start --wait` waits.
    #[serde(rename = "timeout_seconds", serialize_with = "serialize_seconds")]
    pub timeout: Duration,
}

/// One probe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ReadyProbe {
    /// The guest accepts TCP connections at this address: on the host side of a forward, or at the given address.
    Tcp(SocketAddr),
    /// sshd(8) greets who connects here.
    Ssh(SocketAddr),
    /// The console has shown this text since the boot.
    Console(String),
    /// This command on the host ends with status 0. `VMCTL_GUEST` holds the name.
    Exec(Vec<String>),
    /// The guest's agent answers.
    Agent,
}

/// A command of the user.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct HookConfig {
    /// Unique among the hooks; the event's name when the file has none.
    pub id: String,
    /// The event.
    pub event: HookEvent,
    /// Program and arguments; never a shell unless the user names one. A program with a slash is absolute, another is
    /// searched in `PATH`.
    pub command: Vec<String>,
    /// Time-out after which it is killed.
    #[serde(rename = "timeout_seconds", serialize_with = "serialize_seconds")]
    pub timeout: Duration,
    /// Consequence of its failure.
    pub on_failure: HookFailure,
}

/// Settings for kernel developers and for tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct DebugConfig {
    /// QEMU's isa-debug-exit at port 0xf4.
    pub exit_port: bool,
    /// Whether guest time is counted in instructions, without entropy from the host. Needs the software CPU.
    pub deterministic: bool,
    /// A stub for gdb(1).
    pub gdb: Option<GdbStub>,
}
