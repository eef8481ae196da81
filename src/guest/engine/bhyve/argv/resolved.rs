//! The names that exist only at run time: the taps of the interfaces, the port of VNC, the paths of sockets.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use super::super::partitions::{self, RootPartition};
use crate::config::{ComPort, DiskBackend, GuestConfig, JailConfig, NicBackend, VncListen};

/// Names that the command lines need and that are in no file. [`Resolved::defaults`] guesses those of a boot, for
/// `vmctl argv`; the engine fills in the real ones.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Resolved {
    /// Directory of generated files: the guest's directory.
    pub directory: PathBuf,
    /// The root of the guest's jail. bhyve gets paths relative to it.
    pub jail_root: Option<PathBuf>,
    /// Path of each disk, by its id.
    pub disks: BTreeMap<String, DiskPath>,
    /// The host's end of each interface, by its id. An interface without a link has none.
    pub interfaces: BTreeMap<String, Plug>,
    /// The device of each serial port that leads to the console.
    pub consoles: [Option<String>; 4],
    /// Address of VNC.
    pub vnc: Option<ScreenAddress>,
    /// The password of VNC, if the guest file names a file with one.
    pub vnc_password: Option<String>,
    /// The socket of swtpm(8).
    pub tpm_socket: Option<PathBuf>,
    /// The socket of each channel, by its id.
    pub channels: BTreeMap<String, PathBuf>,
    /// Firmware of a guest with UEFI.
    pub firmware: Option<Firmware>,
    /// Partition of the root of an installed OpenBSD or NetBSD; see [`Resolved::look_at_disk`].
    pub root_partition: Option<RootPartition>,
}

/// Path of a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DiskPath {
    /// A file or device.
    File(PathBuf),
    /// The device of the disk's iSCSI unit, which is known only in the boot.
    Unit,
}

/// The host's end of an interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Plug {
    /// A name: `tap7`, `vmnet0`, `vale0:p1`, the interface of netmap.
    Name(String),
    /// The tap that is made for it in this boot.
    Tap,
    /// A node of netgraph(4).
    Netgraph {
        /// The node, like `bridge0:`.
        path: String,
        /// Its hook, or `None` for the one that is chosen in this boot.
        peerhook: Option<String>,
    },
}

/// Address of VNC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ScreenAddress {
    /// A TCP port.
    Tcp {
        /// IP address.
        address: IpAddr,
        /// Port, or `None` for the one that is chosen in this boot.
        port: Option<u16>,
    },
    /// A socket.
    Socket(PathBuf),
}

/// UEFI firmware.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Firmware {
    /// Its code.
    pub code: PathBuf,
    /// The guest's own variables.
    pub vars: Option<PathBuf>,
}

/// Path at which the ports install firmware (`sysutils/edk2`, flavour bhyve; `sysutils/uefi-edk2-bhyve-csm`).
const FIRMWARE: &str = "/usr/local/share/uefi-firmware";

impl Resolved {
    /// Returns the names that a boot of a guest in `directory` would get on a host where nothing else runs.
    pub fn defaults(config: &GuestConfig, directory: &Path) -> Resolved {
        let jail_root = config.jail.as_ref().and_then(|jail: &JailConfig| jail.root.clone());
        let consoles = std::array::from_fn(|at| {
            (config.console.com[at] == ComPort::Console).then(|| format!("/dev/nmdm-vmctl-{}-{}A", config.name, at + 1))
        });
        Resolved {
            directory: directory.to_owned(),
            jail_root,
            disks: config
                .disks
                .iter()
                .map(|disk| (disk.id.clone(), DiskPath::File(disk_path(config, disk, directory))))
                .collect(),
            interfaces: interfaces(config),
            consoles,
            vnc: config.graphics.as_ref().map(|graphics| match graphics.listen {
                VncListen::Tcp { address, port } => ScreenAddress::Tcp { address, port: port.or(Some(5900)) },
                VncListen::Socket => ScreenAddress::Socket(directory.join("vnc.sock")),
            }),
            vnc_password: None,
            tpm_socket: (config.tpm == Some(crate::config::Tpm::Swtpm)).then(|| directory.join("tpm.sock")),
            channels: config
                .channels
                .iter()
                .map(|channel| {
                    let made = || directory.join(format!("channel-{}.sock", channel.id));
                    (channel.id.clone(), channel.path.clone().unwrap_or_else(made))
                })
                .collect(),
            firmware: config.uefi.as_ref().map(|uefi| Firmware {
                code: uefi.firmware.clone().unwrap_or_else(|| {
                    // A firmware with variables has two files. One without is the combined file.
                    let name = match (uefi.csm, uefi.persistent) {
                        (true, _) => "BHYVE_UEFI_CSM.fd",
                        (false, true) => "BHYVE_UEFI_CODE.fd",
                        (false, false) => "BHYVE_UEFI.fd",
                    };
                    Path::new(FIRMWARE).join(name)
                }),
                vars: uefi.persistent.then(|| directory.join("uefi-vars.fd")),
            }),
            root_partition: None,
        }
    }
}

impl Resolved {
    /// Searches the disk that GRUB boots from for the root of OpenBSD or NetBSD, if the guest file leaves it open. A
    /// disk that is missing or cannot be read counts as one on which nothing is installed yet.
    pub fn look_at_disk(&mut self, config: &GuestConfig) {
        let Some(grub) = config.grub.as_ref().filter(|grub| grub.partition.is_none()) else { return };
        let disk = super::loader::boot_disk(config).and_then(|disk| self.disks.get(&disk.id));
        let Some(DiskPath::File(path)) = disk else { return };
        let Ok(mut file) = crate::inputs::open_disk(path) else { return };
        self.root_partition = partitions::find(&mut file, grub.system).ok().flatten();
    }
}

fn disk_path(config: &GuestConfig, disk: &crate::config::DiskConfig, directory: &Path) -> PathBuf {
    match (&disk.path, disk.backend) {
        (Some(path), _) => path.clone(),
        (None, DiskBackend::Zvol) => format!("/dev/zvol/POOL/DATASET/{}-{}", config.name, disk.id).into(),
        (None, DiskBackend::Iscsi) => format!("/dev/ISCSI-{}", disk.id).into(),
        (None, DiskBackend::Sparse | DiskBackend::File) => directory.join("disks").join(format!("{}.raw", disk.id)),
    }
}

/// Numbers the taps from 0, as on a host without taps.
fn interfaces(config: &GuestConfig) -> BTreeMap<String, Plug> {
    let mut found = BTreeMap::new();
    let (mut taps, mut vmnets) = (0, 0);
    for nic in &config.nics {
        let next = |prefix: &str, count: &mut u32| {
            *count += 1;
            Plug::Name(format!("{prefix}{}", *count - 1))
        };
        let plug = match (nic.backend, &nic.interface) {
            (NicBackend::User | NicBackend::None, _) => continue,
            (_, Some(interface)) => Plug::Name(interface.clone()),
            (NicBackend::Tap, None) => next("tap", &mut taps),
            (NicBackend::Vmnet, None) => next("vmnet", &mut vmnets),
            (NicBackend::Vale | NicBackend::Netmap, None) => {
                Plug::Name(format!("vale-{}:{}", nic.switch.as_deref().unwrap_or_default(), nic.id))
            }
            (NicBackend::Netgraph, None) => {
                let hook = nic.netgraph.as_ref();
                let path = hook
                    .and_then(|hook| hook.path.clone())
                    .unwrap_or_else(|| format!("{}:", nic.switch.as_deref().unwrap_or("")));
                Plug::Netgraph { path, peerhook: hook.and_then(|hook| hook.peerhook.clone()).or_else(|| Some("link2".into())) }
            }
        };
        found.insert(nic.id.clone(), plug);
    }
    found
}
