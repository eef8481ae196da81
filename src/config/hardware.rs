//! What a guest's machine has beyond processors, memory, disks and interfaces, and how it boots through firmware or a
//! loader: what bhyve(8) acts on. Part of [`super::guest`], made by [`super::check_hardware`].

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
    /// Its root; jls(8) knows it when the file does not say.
    pub root: Option<PathBuf>,
}

/// Numbers from the first to the last, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Span {
    /// The first.
    pub first: u32,
    /// The last; not below the first.
    pub last: u32,
}

/// Which CPUs of the host a virtual CPU may use. At most one of these for a virtual CPU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CpuPin {
    /// Below the number of virtual CPUs.
    pub vcpu: u32,
    /// At least one.
    pub host: Vec<Span>,
}

/// A NUMA domain of the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NumaDomain {
    /// Its name; domains are numbered in the order of the file.
    pub id: String,
    /// RAM; the domains' sum is the guest's.
    #[serde(rename = "size_bytes")]
    pub size: ByteSize,
    /// Its virtual CPUs; each one is in one domain.
    pub cpus: Vec<Span>,
    /// domainset(9) of the host.
    pub policy: Option<String>,
}

/// For `loader = "grub"`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Grub {
    /// `1`, `gpt2`, `msdos1`...; `none` for a disk without partitions.
    pub partition: Option<String>,
    /// Directory of the configuration in the guest.
    pub directory: Option<String>,
    /// Name of the configuration.
    pub file: Option<String>,
    /// Instead of the guest's own configuration; may be empty.
    pub commands: Vec<String>,
    /// The entry that boots, by title, id or number; `None` takes the configuration's default.
    pub entry: Option<String>,
    /// Whether a Linux command line without a console is given the serial one.
    pub console: bool,
    /// How long the menu of `commands` waits with bhyve.
    #[serde(rename = "timeout_seconds", serialize_with = "serialize_seconds")]
    pub timeout: Duration,
    /// How long a menu of the embedded engine waits; `None` leaves it to the guest's configuration.
    #[serde(skip)]
    pub menu_timeout: Option<Duration>,
    /// What is loaded.
    pub system: GrubSystem,
    /// The kernel, for OpenBSD and NetBSD.
    pub kernel: Option<String>,
    /// The root device that the kernel is told, for OpenBSD and NetBSD.
    pub root: Option<String>,
}

/// For `loader = "uefi"`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Uefi {
    /// Instead of the packaged one.
    pub firmware: Option<PathBuf>,
    /// What a new guest's variables start from, instead of the packaged ones.
    pub vars: Option<PathBuf>,
    /// The guest has variables of its own.
    pub persistent: bool,
    /// The firmware that boots as a BIOS does; has no variables.
    pub csm: bool,
}

/// For `loader = "bhyveload"`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Bhyveload {
    /// Instead of /boot/userboot.so.
    pub loader: Option<PathBuf>,
    /// Variables of the loader, in the order of the file.
    pub env: Vec<(String, String)>,
    /// What the loader reads as `host0:`.
    pub host_dir: Option<PathBuf>,
    /// Further arguments.
    pub args: Vec<String>,
    /// How long the menu waits: `autoboot_delay`.
    #[serde(rename = "timeout_seconds", serialize_with = "optional_seconds")]
    pub timeout: Option<Duration>,
}

fn optional_seconds<S: serde::Serializer>(duration: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
    match duration {
        Some(duration) => serialize_seconds(duration, serializer),
        None => serializer.serialize_none(),
    }
}

/// What is booted from.
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
    /// Like `iqn.2026-01.example:disk0`.
    pub target: String,
    /// Host or host:port.
    pub portal: String,
    /// From 0.
    pub lun: u32,
}

/// Sector sizes that the guest sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct SectorSize {
    /// A power of two from 512.
    pub logical: u32,
    /// A power of two, not below the logical one; the same when the file does not say.
    pub physical: u32,
}

/// A hook of a netgraph node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NetgraphHook {
    /// The node's path; the switch gives it when the file does not.
    pub path: Option<String>,
    /// Its hook; found when the file does not say.
    pub peerhook: Option<String>,
    /// The hook of bhyve's own node.
    pub hook: Option<String>,
    /// The name of bhyve's own node.
    pub socket: Option<String>,
}

/// A port of the virtio console.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Channel {
    /// Unique; its name in the guest.
    pub id: String,
    /// The socket, instead of one in the guest's directory.
    pub path: Option<PathBuf>,
}

/// A screen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Graphics {
    /// Where its viewer comes from.
    pub listen: VncListen,
    /// Width and height.
    pub resolution: Option<(u32, u32)>,
    /// File with the password.
    pub password_file: Option<PathBuf>,
    /// The guest waits for a viewer.
    pub wait: bool,
    /// Its VGA part.
    pub vga: Option<Vga>,
    /// Keyboard layout.
    pub keyboard: Option<String>,
    /// There is a USB tablet.
    pub tablet: bool,
    /// Where it is on PCI.
    pub slot: Option<PciAddress>,
}

/// Where VNC is listened on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum VncListen {
    /// A TCP port; the first free one from 5900 when there is none.
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
    /// Device that plays.
    pub play: String,
    /// Device that records.
    pub record: Option<String>,
}

/// An input device of the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct InputDevice {
    /// Unique.
    pub id: String,
    /// Like `/dev/input/event0`.
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

/// A PCI device of the host that the guest gets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Passthru {
    /// Unique.
    pub id: String,
    /// Which one.
    pub device: PassthruDevice,
    /// Image of its option ROM.
    pub rom: Option<PathBuf>,
    /// Where the guest sees it.
    pub slot: Option<PciAddress>,
}

/// A PCI device of the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum PassthruDevice {
    /// Where it is.
    Address(PciAddress),
    /// Its ppt(4) device, like `ppt0`.
    Ppt(String),
}

/// A directory of the host that the guest mounts with 9p.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Share {
    /// Unique; the mount tag.
    pub id: String,
    /// The directory.
    pub path: PathBuf,
    /// Writes are refused.
    pub ro: bool,
}

/// What the guest reads about its machine; printable ASCII.
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

/// What the guest may use of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Default)]
pub struct Limits {
    /// 100 is one CPU.
    pub cpu_percent: Option<u32>,
    /// Scheduling priority, -20 to 20.
    pub nice: Option<i32>,
    /// Bytes read a second.
    pub read_bps: Option<ByteSize>,
    /// Bytes written a second.
    pub write_bps: Option<ByteSize>,
    /// Reads a second.
    pub read_iops: Option<u32>,
    /// Writes a second.
    pub write_iops: Option<u32>,
}

/// What only bhyve(8) has. The defaults are those of a guest of the embedded engine, for which it means nothing.
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
    /// How firmware is told of the machine.
    pub fwcfg: Option<FwCfg>,
    /// Items of the firmware configuration device.
    pub fw_cfg: Vec<FwCfgItem>,
    /// False for Windows with a TPM.
    pub acpi_tables_in_memory: bool,
    /// Accesses of unknown MSRs are ignored.
    pub ignore_bad_msr: bool,
    /// bhyve ends at an access of an unknown port.
    pub strict_io: bool,
    /// An idle virtual CPU gives way.
    pub vmexit_on_hlt: bool,
    /// A spinning virtual CPU gives way.
    pub vmexit_on_pause: bool,
    /// The local APIC has its x2APIC mode.
    pub x2apic: bool,
    /// There is an MP table.
    pub mptable: bool,
    /// virtio devices have MSI-X.
    pub virtio_msix: bool,
}

/// An item of the firmware configuration device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FwCfgItem {
    /// Its name.
    pub name: String,
    /// What it holds.
    pub content: FwCfgContent,
}

/// What an item of the firmware configuration device holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FwCfgContent {
    /// This text.
    Text(String),
    /// The bytes of this file.
    File(PathBuf),
}

/// A stub for gdb(1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct GdbStub {
    /// Where it listens.
    pub listen: SocketAddr,
    /// The guest waits for the debugger.
    pub wait: bool,
}
