//! What a guest's machine has beyond processors, memory, disks and interfaces, and how it boots through firmware or a
//! loader: what bhyve(8) acts on. Part of [`super::guest`], made by [`super::check_devices`], [`super::check_firmware`] and
//! [`super::check_hardware`].

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

use super::addresses::PciAddress;
use crate::choices::{FwCfg, GrubSystem, Hostbridge, Vga};
use crate::units::{ByteSize, serialize_seconds};

/// The jail that bhyve runs in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct JailConfig {
    /// Its name.
    pub name: String,
    /// Its root. jls(8) reports it if the file does not name it.
    pub root: Option<PathBuf>,
}

/// A range of numbers, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Span {
    /// The first.
    pub first: u32,
    /// The last; not below the first.
    pub last: u32,
}

/// The CPUs of the host that a virtual CPU may use. There is at most one per virtual CPU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CpuPin {
    /// The virtual CPU, below their number.
    pub vcpu: u32,
    /// The host's CPUs, at least one.
    pub host: Vec<Span>,
}

/// A NUMA domain of the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NumaDomain {
    /// Its name; domains are numbered in the order of the file.
    pub id: String,
    /// RAM. The sum of the domains is that of the guest.
    #[serde(rename = "size_bytes")]
    pub size: ByteSize,
    /// Its virtual CPUs. Each is in one domain.
    pub cpus: Vec<Span>,
    /// domainset(9) of the host.
    pub policy: Option<String>,
}

/// Settings for `loader = "grub"`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Grub {
    /// `1`, `gpt2`, `msdos1`...; `none` for a disk without partitions.
    pub partition: Option<String>,
    /// Directory of the configuration in the guest.
    pub directory: Option<String>,
    /// Name of the configuration.
    pub file: Option<String>,
    /// Commands instead of the guest's own configuration; may be empty.
    pub commands: Vec<String>,
    /// The entry that boots, by title, id or number; `None` takes the configuration's default.
    pub entry: Option<String>,
    /// Whether to add the serial console to a Linux command line without one.
    pub console: bool,
    /// Time that the menu of `commands` waits with bhyve.
    #[serde(rename = "timeout_seconds", serialize_with = "serialize_seconds")]
    pub timeout: Duration,
    /// Time that a menu of the embedded engine waits; `None` leaves it to the guest's configuration.
    #[serde(skip)]
    pub menu_timeout: Option<Duration>,
    /// The system to load.
    pub system: GrubSystem,
    /// The kernel, for OpenBSD and NetBSD.
    pub kernel: Option<String>,
    /// The root device for the kernel of OpenBSD or NetBSD.
    pub root: Option<String>,
}

/// Settings for `loader = "uefi"`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Uefi {
    /// Firmware instead of the packaged one.
    pub firmware: Option<PathBuf>,
    /// Template for a new guest's variables, instead of the packaged one.
    pub vars: Option<PathBuf>,
    /// Whether the guest has variables of its own.
    pub persistent: bool,
    /// Whether to use BIOS firmware, which has no variables.
    pub csm: bool,
}

/// Settings for `loader = "bhyveload"`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Bhyveload {
    /// Loader instead of /boot/userboot.so.
    pub loader: Option<PathBuf>,
    /// Variables of the loader, in the order of the file.
    pub env: Vec<(String, String)>,
    /// Directory that the loader reads as `host0:`.
    pub host_dir: Option<PathBuf>,
    /// Further arguments.
    pub args: Vec<String>,
    /// Time that the menu waits: `autoboot_delay`.
    #[serde(rename = "timeout_seconds", serialize_with = "optional_seconds")]
    pub timeout: Option<Duration>,
}

fn optional_seconds<S: serde::Serializer>(duration: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
    match duration {
        Some(duration) => serialize_seconds(duration, serializer),
        None => serializer.serialize_none(),
    }
}

/// A device to boot from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum BootTarget {
    /// The disk with this id.
    Disk(String),
    /// The interface with this id.
    Nic(String),
}

/// A unit of an iSCSI target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct IscsiUnit {
    /// Name of the target, like `iqn.2026-01.example:disk0`.
    pub target: String,
    /// Host or host:port.
    pub portal: String,
    /// Number of the unit, from 0.
    pub lun: u32,
}

/// Sector sizes that the guest sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct SectorSize {
    /// Logical size: a power of two from 512.
    pub logical: u32,
    /// Physical size: a power of two, not below the logical one, which is the default.
    pub physical: u32,
}

/// A hook of a netgraph node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NetgraphHook {
    /// The node's path; by default that of the switch.
    pub path: Option<String>,
    /// Its hook; by default a free one.
    pub peerhook: Option<String>,
    /// The hook of bhyve's own node.
    pub hook: Option<String>,
    /// The name of bhyve's own node.
    pub socket: Option<String>,
}

/// Name of the port at which qemu-ga(8) answers, unless it is told another one: its `virtio-serial` method's default.
pub const AGENT_PORT: &str = "org.qemu.guest_agent.0";

/// A port of the virtio console.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Channel {
    /// Unique; its name in the guest.
    pub id: String,
    /// Path of the socket, instead of one in the guest's directory.
    pub path: Option<PathBuf>,
}

/// A screen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Graphics {
    /// Address for its viewer.
    pub listen: VncListen,
    /// Width and height.
    pub resolution: Option<(u32, u32)>,
    /// File with the password.
    pub password_file: Option<PathBuf>,
    /// Whether the guest waits for a viewer.
    pub wait: bool,
    /// Its VGA part.
    pub vga: Option<Vga>,
    /// Keyboard layout.
    pub keyboard: Option<String>,
    /// Whether there is a USB tablet.
    pub tablet: bool,
    /// Its PCI address.
    pub slot: Option<PciAddress>,
}

/// Address on which VNC listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum VncListen {
    /// A TCP port. The default is the first free one from 5900.
    Tcp {
        /// The address.
        address: IpAddr,
        /// The port.
        port: Option<u16>,
    },
    /// A socket in the guest's directory.
    Socket,
}

/// An HD audio device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Sound {
    /// Device for playback.
    pub play: String,
    /// Device for recording.
    pub record: Option<String>,
}

/// An input device of the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct InputDevice {
    /// Its id, which is unique.
    pub id: String,
    /// Path, like `/dev/input/event0`.
    pub path: PathBuf,
}

/// A trusted platform module, version 2.0.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Tpm {
    /// swtpm(8), started and stopped with the guest.
    Swtpm,
    /// A device of the host.
    Passthru(PathBuf),
}

/// A PCI device of the host for the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Passthru {
    /// Its id, which is unique.
    pub id: String,
    /// The device.
    pub device: PassthruDevice,
    /// Image of its option ROM.
    pub rom: Option<PathBuf>,
    /// Its PCI address in the guest.
    pub slot: Option<PciAddress>,
}

/// A PCI device of the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum PassthruDevice {
    /// By its PCI address.
    Address(PciAddress),
    /// By its ppt(4) device, like `ppt0`.
    Ppt(String),
}

/// A directory of the host that the guest mounts with 9p.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Share {
    /// Its id, which is unique, and the mount tag.
    pub id: String,
    /// The directory.
    pub path: PathBuf,
    /// Whether writes are refused.
    pub ro: bool,
}

/// Strings that the guest reads about its machine, in printable ASCII.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Default)]
pub struct Smbios {
    /// Manufacturer.
    pub manufacturer: Option<String>,
    /// Product.
    pub product: Option<String>,
    /// Version.
    pub version: Option<String>,
    /// Serial number.
    pub serial: Option<String>,
    /// SKU.
    pub sku: Option<String>,
    /// Family.
    pub family: Option<String>,
    /// Asset tag of the board and the chassis.
    pub asset_tag: Option<String>,
}

/// Limits of the guest on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Default)]
pub struct Limits {
    /// CPU time in percent: 100 is one CPU.
    pub cpu_percent: Option<u32>,
    /// Scheduling priority, -20 to 20.
    pub nice: Option<i32>,
    /// Bytes read per second.
    pub read_bps: Option<ByteSize>,
    /// Bytes written per second.
    pub write_bps: Option<ByteSize>,
    /// Reads per second.
    pub read_iops: Option<u32>,
    /// Writes per second.
    pub write_iops: Option<u32>,
}

/// Settings that only bhyve(8) has. For a guest of the embedded engine they have their defaults and no effect.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BhyveConfig {
    /// Further arguments, one word each.
    pub args: Vec<String>,
    /// Variables of bhyve_config(5), in the order of the file.
    pub options: Vec<(String, String)>,
    /// Addresses of devices that have no `slot` of their own.
    pub slots: Vec<(String, PciAddress)>,
    /// The bridge at slot 0.
    pub hostbridge: Hostbridge,
    /// Interface through which firmware learns about the machine.
    pub fwcfg: Option<FwCfg>,
    /// Items of the firmware configuration device.
    pub fw_cfg: Vec<FwCfgItem>,
    /// Whether ACPI tables are in memory. Must be false for Windows with a TPM.
    pub acpi_tables_in_memory: bool,
    /// Whether accesses to unknown MSRs are ignored.
    pub ignore_bad_msr: bool,
    /// Whether bhyve ends at an access to an unknown port.
    pub strict_io: bool,
    /// Whether an idle virtual CPU yields.
    pub vmexit_on_hlt: bool,
    /// Whether a spinning virtual CPU yields.
    pub vmexit_on_pause: bool,
    /// Whether the local APIC has its x2APIC mode.
    pub x2apic: bool,
    /// Whether there is an MP table.
    pub mptable: bool,
    /// Whether virtio devices have MSI-X.
    pub virtio_msix: bool,
}

/// An item of the firmware configuration device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FwCfgItem {
    /// Its name.
    pub name: String,
    /// Its contents.
    pub content: FwCfgContent,
}

/// Contents of an item of the firmware configuration device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FwCfgContent {
    /// A text.
    Text(String),
    /// A file.
    File(PathBuf),
}

/// A stub for gdb(1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct GdbStub {
    /// Address on which it listens.
    pub listen: SocketAddr,
    /// Whether the guest waits for the debugger.
    pub wait: bool,
}
