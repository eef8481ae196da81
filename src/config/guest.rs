//! What a guest file means: every default filled in, every rule checked. Made only by [`super::check`], so that the
//! code that runs guests never meets an impossible value. Holds what an engine of this build acts on; a key that the
//! guest's engine does not act on is in the key table and is refused there, and its field here is empty.

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
use crate::units::{ByteSize, serialize_seconds};

/// One guest, as meant.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct GuestConfig {
    /// Lower-case letters, digits, `.`, `_`, `-`; at most 63 characters; starts and ends with a letter or digit.
    pub name: String,
    /// For people.
    pub description: Option<String>,
    /// The user that, besides root, may stop and restart the running guest and use its console.
    pub owner: Option<String>,
    /// For `--tag`.
    pub tags: Vec<String>,
    /// `destroy` refuses.
    pub protected: bool,
    /// What runs it.
    pub engine: EngineKind,
    /// The vCPU back end of the embedded engine.
    pub backend: BackendKind,
    /// What the real-time clock shows.
    pub clock: Clock,
    /// The jail that bhyve runs in.
    pub jail: Option<JailConfig>,
    /// UUID that the guest sees; the store makes one when the file has none.
    pub uuid: Option<String>,
    /// Processors.
    pub cpus: Cpus,
    /// Which CPUs of the host they may use.
    pub pins: Vec<CpuPin>,
    /// RAM: a multiple of 1 MiB, at least 16 MiB.
    #[serde(rename = "memory_bytes")]
    pub memory: ByteSize,
    /// The host may not page it out; always with passthrough.
    pub memory_wired: bool,
    /// It may be more than the host has.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub memory_overcommit: bool,
    /// It is part of bhyve's core dumps.
    pub memory_in_core: bool,
    /// NUMA domains; none, or all of the memory and all of the processors.
    pub numa: Vec<NumaDomain>,
    /// How it boots.
    pub loader: LoaderKind,
    /// For `loader = "kernel"`: always there then.
    pub kernel: Option<Kernel>,
    /// For `loader = "grub"`: always there then.
    pub grub: Option<Grub>,
    /// For `loader = "uefi"`: always there then.
    pub uefi: Option<Uefi>,
    /// For `loader = "bhyveload"`: always there then.
    pub bhyveload: Option<Bhyveload>,
    /// What is booted from, the first one first; the order of the file when it is empty.
    pub boot_order: Vec<BootTarget>,
    /// In the order of the file.
    pub disks: Vec<DiskConfig>,
    /// In the order of the file.
    pub nics: Vec<NicConfig>,
    /// Serial lines and their log.
    pub console: ConsoleConfig,
    /// Ports of the virtio console; at most 16.
    pub channels: Vec<Channel>,
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
    /// What it reads about its machine.
    pub smbios: Smbios,
    /// What it may use of the host.
    pub limits: Limits,
    /// What only bhyve(8) has.
    pub bhyve: BhyveConfig,
    /// What happens when the guest exits.
    pub restart: RestartConfig,
    /// How long `stop` waits after the power button before it powers off.
    #[serde(rename = "stop_timeout_seconds", serialize_with = "serialize_seconds")]
    pub stop_timeout: Duration,
    /// Start with the host.
    pub autostart: AutostartConfig,
    /// When the guest counts as ready; see [`GuestConfig::ready_probes`].
    pub ready: ReadyConfig,
    /// Commands of the user's, run by the supervisor.
    pub hooks: Vec<HookConfig>,
    /// Whether it has a virtio random-number device.
    pub rng: bool,
    /// What cloud-init in the guest is told.
    pub cloud_init: Option<CloudInit>,
    /// For people who develop kernels and for tests.
    pub debug: DebugConfig,
}

/// Processors; `count` is always `sockets * cores * threads` and at least 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Cpus {
    /// vCPUs.
    pub count: u32,
    /// Packages.
    pub sockets: u32,
    /// Cores a package.
    pub cores: u32,
    /// Threads a core.
    pub threads: u32,
}

/// What `loader = "kernel"` enters. Paths are absolute.
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
    /// Where its bytes are.
    pub backend: DiskBackend,
    /// Absolute path of the file or device; without it the store names the file after `id` in the guest's directory.
    pub path: Option<PathBuf>,
    /// What it is made from when it is not there yet: a name of the catalogue, a URL, or an absolute path.
    pub source: Option<String>,
    /// What the image's file must be, like `sha256:HEX`; the catalogue's or none when there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checksum: Option<String>,
    /// Its bytes are taken as they are, whatever they look like.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub raw: bool,
    /// Size to create, or to grow to; `None` only with a `path` or a `source`, whose size is then taken.
    #[serde(rename = "size_bytes")]
    pub size: Option<ByteSize>,
    /// What the guest sees.
    pub device: DiskDevice,
    /// Writes are refused.
    pub ro: bool,
    /// What a write waits for.
    pub cache: DiskCache,
    /// Serial number that the guest sees (at most 20 bytes of ASCII). With the embedded engine the id when the file has
    /// none.
    pub serial: Option<String>,
    /// Whether discard frees space on the host.
    pub discard: bool,
    /// For `backend = "iscsi"`: always there then.
    pub iscsi: Option<IscsiUnit>,
    /// Properties of the ZFS volume when it is made.
    pub properties: Vec<(String, String)>,
    /// Whether a ZFS volume takes up only what was written.
    pub thin: bool,
    /// Sector size that the guest sees.
    pub sector_size: Option<SectorSize>,
    /// The AHCI controller that it shares with others of this name.
    pub controller: Option<String>,
    /// Where it is on PCI, instead of the address in the state.
    pub slot: Option<PciAddress>,
    /// Further options of bhyve(8), one word each.
    pub options: Vec<String>,
}

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NicConfig {
    /// Unique among the interfaces of the guest.
    pub id: String,
    /// What it is plugged into.
    pub backend: NicBackend,
    /// Switch of the host file, for `tap`, `vmnet`, `vale` and `netgraph`.
    pub switch: Option<String>,
    /// An interface or port that is there already, instead of one that is made.
    pub interface: Option<String>,
    /// For `backend = "netgraph"`: always there then.
    pub netgraph: Option<NetgraphHook>,
    /// It cannot talk to other private ports of the switch.
    pub private: bool,
    /// It gets a copy of every frame of the switch.
    pub span: bool,
    /// Where it is on PCI, instead of the address in the state.
    pub slot: Option<PciAddress>,
    /// Further options of bhyve(8), one word each.
    pub options: Vec<String>,
    /// MAC address; the store derives a stable one when the file has none.
    pub mac: Option<MacAddr>,
    /// What the guest sees.
    pub device: NicDevice,
    /// MTU that the guest is told.
    pub mtu: u16,
    /// From the host into the guest; only with `user`.
    pub forwards: Vec<Forward>,
    /// The user-mode network's settings; used with `user`.
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
    /// The lease that DHCP gives: network + 15, or network + 4 in a /28.
    pub guest: Ipv4Addr,
    /// Where an installer's answer files are served: network + 4, or network + 5 in a /28.
    pub answers: Ipv4Addr,
    /// Servers that queries are forwarded to; those of the host when empty.
    pub dns_servers: Vec<IpAddr>,
    /// No connection leaves but to `host_ports` at the gateway; forwards still work.
    pub isolated: bool,
    /// The guest reaches the host itself: its loopback at the gateway's address, and its other addresses.
    pub host_access: bool,
    /// Ports of the host that it reaches all the same.
    pub host_ports: Vec<HostPorts>,
    /// It reaches 169.254.0.0/16.
    pub link_local: bool,
}

/// Ports of the host that a guest reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct HostPorts {
    /// TCP or UDP.
    pub proto: ForwardProto,
    /// The first.
    pub first: u16,
    /// The last.
    pub last: u16,
}

impl std::str::FromStr for HostPorts {
    type Err = ();

    /// `3128`, `8000-8010`, `53/udp`.
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

/// One port of the host that leads into the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Forward {
    /// TCP or UDP.
    pub proto: ForwardProto,
    /// Where the host listens, default 127.0.0.1.
    pub host_addr: IpAddr,
    /// Port on the host.
    pub host_port: u16,
    /// Port in the guest.
    pub guest_port: u16,
}

impl Forward {
    /// Where the host listens.
    pub fn host(&self) -> SocketAddr {
        SocketAddr::new(self.host_addr, self.host_port)
    }

    /// Where that is reached from the host itself.
    pub fn reachable(&self) -> SocketAddr {
        let loopback = match self.host_addr {
            IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
            other => other,
        };
        SocketAddr::new(loopback, self.host_port)
    }
}

/// The serial lines. With the embedded engine `com1` is the guest's console and always there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ConsoleConfig {
    /// Where COM1 to COM4 lead.
    pub com: [ComPort; 4],
    /// A virtio console (`hvc0`) beside COM1, joined to the same console.
    pub virtio: bool,
    /// Size at which the console's log is rotated.
    #[serde(rename = "log_size_bytes")]
    pub log_size: ByteSize,
    /// Rotated logs kept besides the current one.
    pub log_files: u32,
    /// What a reader who attaches sees again.
    #[serde(rename = "scrollback_bytes")]
    pub scrollback: ByteSize,
}

/// Where a serial port leads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ComPort {
    /// Not there.
    None,
    /// To the supervisor's console.
    Console,
    /// A terminal device, like one end of an nmdm(4) pair.
    Device(PathBuf),
    /// A TCP port that bhyve listens on.
    Tcp(SocketAddr),
}

/// What happens when a guest exits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct RestartConfig {
    /// It asked for a reboot.
    pub on_reboot: ExitAction,
    /// It powered off or halted.
    pub on_poweroff: ExitAction,
    /// It crashed (triple fault), or the engine did.
    pub on_crash: ExitAction,
    /// So many restarts after crashes within `window` are allowed; the next leaves the guest `failed`. 0: no limit.
    pub limit: u32,
    /// See `limit`.
    #[serde(rename = "window_seconds", serialize_with = "serialize_seconds")]
    pub window: Duration,
    /// Wait before the first restart after a crash; doubles with each further one in the window.
    #[serde(rename = "backoff_initial_seconds", serialize_with = "serialize_seconds")]
    pub backoff_initial: Duration,
    /// The wait grows no further than this.
    #[serde(rename = "backoff_max_seconds", serialize_with = "serialize_seconds")]
    pub backoff_max: Duration,
}

/// Start with the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AutostartConfig {
    /// Whether.
    pub enabled: bool,
    /// Lower starts first; default 100.
    pub order: i64,
    /// Wait before it is started.
    #[serde(rename = "delay_seconds", serialize_with = "serialize_seconds")]
    pub delay: Duration,
    /// Guests that come before it.
    pub after: Vec<String>,
    /// What the next ones wait for.
    pub wait: AutostartWait,
    /// How long they wait.
    #[serde(rename = "timeout_seconds", serialize_with = "serialize_seconds")]
    pub timeout: Duration,
}

/// What a getty(8) asks on a console.
pub const LOGIN_PROMPT: &str = "login:";

impl GuestConfig {
    /// What must have passed for the guest to be ready: its `[ready]`; without one, sshd(8) greets where cloud-init lets a
    /// user in and a forward leads to it, and else the console asks for a login. A guest without a console is ready when it
    /// runs.
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
        if speaks { vec![ReadyProbe::Console(LOGIN_PROMPT.into())] } else { Vec::new() }
    }
}

/// When a guest is ready: all probes have passed once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ReadyConfig {
    /// All must pass; none where the file has none.
    pub probes: Vec<ReadyProbe>,
    /// How long `start --wait` waits.
    #[serde(rename = "timeout_seconds", serialize_with = "serialize_seconds")]
    pub timeout: Duration,
}

/// One probe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ReadyProbe {
    /// The guest accepts TCP connections here: on the host side of a forward, or at the address that was given.
    Tcp(SocketAddr),
    /// sshd(8) greets who connects here.
    Ssh(SocketAddr),
    /// The console has shown this text since the boot.
    Console(String),
    /// This command on the host ends with status 0. `VMCTL_GUEST` holds the name.
    Exec(Vec<String>),
}

/// A command of the user's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct HookConfig {
    /// Unique among the hooks; the event's name when the file has none.
    pub id: String,
    /// When.
    pub event: HookEvent,
    /// Program and arguments; never a shell unless the user names one. A program with a slash
    /// is absolute; another is looked for in `PATH`.
    pub command: Vec<String>,
    /// Killed after this.
    #[serde(rename = "timeout_seconds", serialize_with = "serialize_seconds")]
    pub timeout: Duration,
    /// What its failure means.
    pub on_failure: HookFailure,
}

/// For people who develop kernels and for tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct DebugConfig {
    /// QEMU's isa-debug-exit at port 0xf4.
    pub exit_port: bool,
    /// Guest time is counted in instructions; no entropy from the host. Needs the software CPU.
    pub deterministic: bool,
    /// A stub for gdb(1).
    pub gdb: Option<GdbStub>,
}
