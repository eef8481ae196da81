//! Checks of the rules for devices: those that only bhyve(8) has, and what only bhyve does with a disk or an interface. The
//! results are in [`super::hardware`].

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use super::addresses::PciAddress;
use super::bhyve_variables;
use super::diagnostic::{Diagnostic, Problems};
use super::guest::ComPort;
use super::hardware::*;
use super::rules::{entry_id, map};
use super::table_reader::TableReader;
use crate::choices::{BhyveDiskDevice, DiskBackend, DiskDevice, EngineKind, LoaderKind, NicBackend, TpmKind};

/// Returns the destination of a serial port: `console`, `none`, a device, or a TCP port.
pub(super) fn com_port(view: &TableReader<'_>, leaf: &str, engine: EngineKind, problems: &mut Problems) -> ComPort {
    let text = view.text(leaf).expect("has a default");
    let location = view.location_of(leaf);
    let port = match text.as_str() {
        "none" => ComPort::None,
        "console" => ComPort::Console,
        path if path.starts_with("/dev/") && !path.contains([',', '\n']) => ComPort::Device(PathBuf::from(path)),
        address => match address.parse::<SocketAddr>() {
            Ok(address) if address.port() != 0 => ComPort::Tcp(address),
            _ => {
                let hint = "`console`, `none`, a device like `/dev/nmdm-x.1A`, or a port like `127.0.0.1:4001`";
                problems.push(Diagnostic::at(location, format!("`{text}` is not an end of a serial line")).hint(hint));
                ComPort::None
            }
        },
    };
    let first = leaf == "com1";
    // The embedded engine has only the first port, which is the guest's console.
    let has = if first { ComPort::Console } else { ComPort::None };
    if engine == EngineKind::Embedded && port != has {
        let message = format!("`console.{leaf} = \"{text}\"` needs the engine `bhyve`, and this guest's engine is `embedded`");
        let hint = "the embedded engine supports only `com1 = \"console\"`";
        problems.push(Diagnostic::at(location, message).hint(hint));
    }
    port
}

/// Returns the ports of bhyve's virtio console: those of the file, and that of the agent.
pub(super) fn channels(view: &TableReader<'_>, engine: EngineKind, problems: &mut Problems) -> Vec<Channel> {
    let mut seen = Vec::new();
    let entries = view.entries("channels");
    let agent = (engine == EngineKind::Bhyve && view.flag("agent")).then(|| Channel { id: AGENT_PORT.into(), path: None });
    if entries.len() + agent.iter().count() > 16 {
        let with = if agent.is_some() { " and the agent's" } else { "" };
        let message = format!("{} channels{with} are more than the 16 ports of a virtio console", entries.len());
        problems.push(Diagnostic::at(view.location_of("channels"), message));
    }
    let channel =
        |entry: &TableReader<'_>| Channel { id: entry_id(entry, "channels", &mut seen, problems), path: entry.path("path") };
    let channels: Vec<Channel> = entries.iter().map(channel).collect();
    if agent.is_some()
        && let Some(at) = channels.iter().position(|channel| channel.id == AGENT_PORT)
    {
        let message = format!("the channel `{AGENT_PORT}` is that of `agent = true`");
        problems.push(Diagnostic::at(entries[at].location_of("id"), message).hint("remove one of the two"));
    }
    channels.into_iter().chain(agent).collect()
}

pub(super) fn graphics(view: &TableReader<'_>, loader: LoaderKind, problems: &mut Problems) -> Option<Graphics> {
    view.node("graphics")?;
    let table = view.table("graphics");
    if !table.flag("enabled") {
        return None;
    }
    if loader != LoaderKind::Uefi {
        let message = "a screen needs `loader = \"uefi\"`: it is the firmware's";
        problems.push(Diagnostic::at(table.location, message));
    }
    let socket = table.flag("socket");
    for leaf in ["listen", "port"] {
        if socket && let Some(node) = table.unlike_default(leaf) {
            problems.push(Diagnostic::at(&node.location, format!("`graphics.{leaf}` does nothing with `socket = true`")));
        }
    }
    let address: IpAddr = table.text("listen").and_then(|text| text.parse().ok()).expect("walked, and has a default");
    let port = table.small("port").map(|port| u16::try_from(port).expect("the key table's bounds fit"));
    let resolution = table.text("resolution").and_then(|text| {
        let parsed = text.split_once('x').and_then(|(w, h)| Some((w.parse::<u32>().ok()?, h.parse::<u32>().ok()?)));
        // The bounds of pci_fbuf.c: COLS_MIN to COLS_MAX and ROWS_MIN to ROWS_MAX.
        let fits = parsed.filter(|(w, h)| (640..=3840).contains(w) && (480..=2160).contains(h));
        if fits.is_none() {
            let message = format!("`{text}` is not a screen resolution");
            let hint = "from `640x480` to `3840x2160`";
            problems.push(Diagnostic::at(table.location_of("resolution"), message).hint(hint));
        }
        fits
    });
    if let Some(keyboard) = table.text("keyboard")
        && (keyboard.is_empty() || !keyboard.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b)))
    {
        let message = format!("`{keyboard}` is not the name of a keyboard layout");
        problems.push(Diagnostic::at(table.location_of("keyboard"), message).hint("the names of /usr/share/bhyve/kbdlayout"));
    }
    Some(Graphics {
        listen: if socket { VncListen::Socket } else { VncListen::Tcp { address, port } },
        resolution,
        password_file: table.path("password_file"),
        wait: table.flag("wait"),
        vga: table.chosen("vga"),
        keyboard: table.text("keyboard"),
        tablet: table.flag("tablet"),
        slot: slot(&table),
    })
}

/// Returns the address of a device. The key check has verified that it is one.
pub(super) fn slot(view: &TableReader<'_>) -> Option<PciAddress> {
    view.text("slot").and_then(|text| text.parse().ok())
}

pub(super) fn sound(view: &TableReader<'_>, problems: &mut Problems) -> Option<Sound> {
    view.node("sound")?;
    let table = view.table("sound");
    for leaf in ["play", "record"] {
        if let Some(text) = table.text(leaf)
            && (!text.starts_with('/') || text.contains(','))
        {
            let message = format!("`{text}` is not the path of a device");
            problems.push(Diagnostic::at(table.location_of(leaf), message).hint("like `/dev/dsp0`"));
        }
    }
    Some(Sound { play: table.text("play").expect("has a default"), record: table.text("record") })
}

pub(super) fn inputs(view: &TableReader<'_>, problems: &mut Problems) -> Vec<InputDevice> {
    with_path(view, "inputs", problems).into_iter().map(|(id, path, _)| InputDevice { id, path }).collect()
}

pub(super) fn shares(view: &TableReader<'_>, problems: &mut Problems) -> Vec<Share> {
    with_path(view, "shares", problems).into_iter().map(|(id, path, entry)| Share { id, path, ro: entry.flag("ro") }).collect()
}

/// Returns the entries of a class that have an id and a path.
fn with_path<'a>(view: &TableReader<'a>, class: &str, problems: &mut Problems) -> Vec<(String, PathBuf, TableReader<'a>)> {
    let mut seen = Vec::new();
    let mut found = Vec::new();
    for entry in view.entries(class) {
        let id = entry_id(&entry, class, &mut seen, problems);
        match entry.path("path") {
            Some(path) => found.push((id, path, entry)),
            None => problems.push(Diagnostic::at(entry.location, format!("an entry of `{class}` has no `path`"))),
        }
    }
    found
}

pub(super) fn tpm(view: &TableReader<'_>, problems: &mut Problems) -> Option<Tpm> {
    view.node("tpm")?;
    let table = view.table("tpm");
    let version = table.text("version").expect("has a default");
    if version != "2.0" {
        let message = format!("`{version}` is not a version of the TPM");
        problems.push(Diagnostic::at(table.location_of("version"), message).hint("`2.0` is the only one"));
    }
    match table.choice("type") {
        TpmKind::Swtpm => {
            if let Some(node) = table.node("path") {
                problems.push(Diagnostic::at(&node.location, "`tpm.path` does nothing with `type = \"swtpm\"`"));
            }
            Some(Tpm::Swtpm)
        }
        TpmKind::Passthru => Some(Tpm::Passthru(table.path("path").unwrap_or_else(|| "/dev/tpm0".into()))),
    }
}

pub(super) fn passthru(view: &TableReader<'_>, problems: &mut Problems) -> Vec<Passthru> {
    let mut seen = Vec::new();
    let mut found: Vec<Passthru> = Vec::new();
    for entry in view.entries("passthru") {
        let id = entry_id(&entry, "passthru", &mut seen, problems);
        let Some(text) = entry.text("device") else {
            problems.push(Diagnostic::at(entry.location, format!("`{id}` has no `device`")).hint("like `device = \"5/0/0\"`"));
            continue;
        };
        let ppt = text.strip_prefix("ppt").is_some_and(|n| (1..=4).contains(&n.len()) && n.bytes().all(|b| b.is_ascii_digit()));
        let address = text.strip_prefix("pci0:").or(text.strip_prefix("pci")).unwrap_or(&text).replace('/', ":");
        let parts = address.matches(':').count();
        let device = match (ppt, address.parse::<PciAddress>()) {
            (true, _) => PassthruDevice::Ppt(text),
            (false, Ok(address)) if parts == 2 => PassthruDevice::Address(address),
            _ => {
                let message = format!("`{text}` is not the address of a PCI device");
                let hint = "bus/slot/function like `5/0/0`, or the name of its ppt(4) device like `ppt0`";
                problems.push(Diagnostic::at(entry.location_of("device"), message).hint(hint));
                continue;
            }
        };
        if found.iter().any(|other| other.device == device) {
            problems.push(Diagnostic::at(entry.location_of("device"), format!("`{id}` is a device that another entry has")));
        }
        found.push(Passthru { id, device, rom: entry.path("rom"), slot: slot(&entry) });
    }
    found
}

/// Returns a device's own options: each is one word, as between bhyve's commas.
pub(super) fn device_options(view: &TableReader<'_>, problems: &mut Problems) -> Vec<String> {
    for (text, node) in view.text_nodes("options") {
        if text.is_empty() || text.contains(',') || text.chars().any(char::is_control) {
            let message = format!("`{text}` is not one option of bhyve(8)");
            problems.push(Diagnostic::at(&node.location, message).hint("one per text: `options = [\"maxq=8\", \"nodelete\"]`"));
        } else if let Some((message, hint)) = bhyve_variables::device_refusal(text.split('=').next().unwrap_or_default()) {
            problems.push(Diagnostic::at(&node.location, message).maybe_hint(hint));
        }
    }
    view.texts("options")
}

/// Properties of a disk that only bhyve(8) uses.
pub(super) struct DiskExtras {
    pub iscsi: Option<IscsiUnit>,
    pub properties: Vec<(String, String)>,
    pub sector_size: Option<SectorSize>,
    pub controller: Option<String>,
}

pub(super) fn disk_extras(
    entry: &TableReader<'_>,
    id: &str,
    (backend, device): (DiskBackend, DiskDevice),
    problems: &mut Problems,
) -> DiskExtras {
    let mut only = |leaf: &str, fits: bool, with: &str| {
        if !fits && let Some(node) = entry.unlike_default(leaf) {
            problems
                .push(Diagnostic::at(&node.location, format!("`disks.{leaf}` does nothing on disk `{id}`: it is for {with}")));
        }
    };
    for leaf in ["target", "portal", "lun"] {
        only(leaf, backend == DiskBackend::Iscsi, "`backend = \"iscsi\"`");
    }
    for leaf in ["properties", "thin"] {
        only(leaf, backend == DiskBackend::Zvol, "`backend = \"zvol\"`");
    }
    let ahci = matches!(device, DiskDevice::AhciHd | DiskDevice::AhciCd);
    only("controller", ahci, "disks of type `ahci-hd` and `ahci-cd`");
    // The CAM target layer has its own settings: pci_virtio_scsi.c has none of these options.
    for leaf in ["ro", "cache", "serial", "discard"] {
        only(leaf, device != DiskDevice::VirtioScsi, "disks of another type than `virtio-scsi`");
    }
    only("slot", entry.node("controller").is_none(), "disks without a `controller`, whose address is `bhyve.slots`'");
    let iscsi =
        (backend == DiskBackend::Iscsi).then(|| (entry.text("target"), entry.text("portal"))).and_then(|pair| match pair {
            (Some(target), Some(portal)) => Some(IscsiUnit { target, portal, lun: entry.small("lun").unwrap_or(0) }),
            (target, _) => {
                let missing = if target.is_none() { "target" } else { "portal" };
                let message = format!("disk `{id}` has the backend `iscsi` and no `{missing}`");
                problems.push(Diagnostic::at(entry.location_of("backend"), message));
                None
            }
        });
    DiskExtras {
        iscsi,
        properties: map(entry, "properties", problems),
        sector_size: entry.text("sector_size").and_then(|text| sector_size(entry, &text, id, device, problems)),
        controller: entry.text("controller"),
    }
}

fn sector_size(entry: &TableReader<'_>, text: &str, id: &str, device: DiskDevice, problems: &mut Problems) -> Option<SectorSize> {
    let (logical, physical) = text.split_once('/').unwrap_or((text, text));
    let parsed = logical.parse::<u32>().ok().zip(physical.parse::<u32>().ok());
    let fits = parsed.filter(|(logical, physical)| match device.on_bhyve() {
        // pci_nvme.c: sectsz= takes 512, 4096 and 8192.
        Some(BhyveDiskDevice::Nvme) => matches!(logical, 512 | 4096 | 8192) && physical == logical,
        // block_if.c: powers of two from DEV_BSIZE; the physical size is not below the logical one.
        Some(BhyveDiskDevice::VirtioBlk | BhyveDiskDevice::AhciHd) => {
            [logical, physical].iter().all(|size| size.is_power_of_two() && (512..=1 << 20).contains(*size))
                && physical >= logical
        }
        Some(BhyveDiskDevice::AhciCd | BhyveDiskDevice::VirtioScsi) | None => false,
    });
    if fits.is_none() {
        let hint = match device.on_bhyve() {
            Some(BhyveDiskDevice::Nvme) => "`512`, `4096` or `8192`",
            Some(BhyveDiskDevice::VirtioBlk | BhyveDiskDevice::AhciHd) => {
                "powers of two from 512, like `512`, `4096` or `512/4096`"
            }
            Some(BhyveDiskDevice::AhciCd | BhyveDiskDevice::VirtioScsi) | None => "leave it out: this device has its own",
        };
        let message = format!("`{text}` is not a sector size for disk `{id}`");
        problems.push(Diagnostic::at(entry.location_of("sector_size"), message).hint(hint));
    }
    fits.map(|(logical, physical)| SectorSize { logical, physical })
}

/// Returns the connection of an interface, checked against its backend.
pub(super) fn nic_wiring(
    entry: &TableReader<'_>,
    id: &str,
    backend: NicBackend,
    problems: &mut Problems,
) -> Option<NetgraphHook> {
    let name = backend.as_str();
    use NicBackend::{Netgraph, Netmap, None as Unplugged, Tap, User, Vale, Vmnet};
    let fits: [(&str, &[NicBackend]); 15] = [
        ("switch", &[Tap, Vmnet, Vale, Netgraph]),
        ("interface", &[Tap, Vmnet, Vale, Netmap]),
        ("path", &[Netgraph]),
        ("peerhook", &[Netgraph]),
        ("hook", &[Netgraph]),
        ("socket", &[Netgraph]),
        ("private", &[Tap, Vmnet]),
        ("span", &[Tap, Vmnet]),
        ("network", &[User]),
        ("dns", &[User]),
        ("forwards", &[User]),
        ("isolated", &[User]),
        ("host_access", &[User]),
        ("host_ports", &[User]),
        ("link_local", &[User]),
    ];
    for (leaf, backends) in fits {
        // An interface whose link is down keeps all settings for when it is connected again.
        if backend != Unplugged
            && !backends.contains(&backend)
            && let Some(node) = entry.unlike_default(leaf)
        {
            let message = format!("`nics.{leaf}` does nothing on `{id}`, whose backend is `{name}`");
            problems.push(Diagnostic::at(&node.location, message));
        }
    }
    let missing = match backend {
        Vale if entry.node("switch").is_none() && entry.node("interface").is_none() => {
            Some("`switch`, or `interface` like `vale0:p1`")
        }
        Netgraph if entry.node("switch").is_none() && (entry.node("path").is_none() || entry.node("peerhook").is_none()) => {
            Some("`switch`, or `path` and `peerhook`")
        }
        Netmap if entry.node("interface").is_none() => Some("`interface`"),
        _ => None,
    };
    if let Some(missing) = missing {
        let message = format!("`{id}` has the backend `{name}` and is not connected to anything");
        problems.push(Diagnostic::at(entry.location_of("backend"), message).hint(format!("set {missing}")));
    }
    if entry.node("switch").is_some() && entry.node("interface").is_some() && matches!(backend, Tap | Vmnet | Vale) {
        let message = format!("`{id}` has a `switch` and an `interface`");
        let hint = "vmctl makes the interface on the switch, or takes yours as it is";
        problems.push(Diagnostic::at(entry.location_of("interface"), message).hint(hint));
    }
    if entry.node("switch").is_some() && entry.node("path").is_some() && backend == Netgraph {
        let message = format!("`{id}` has a `switch` and the `path` of a node");
        let hint = "a switch of netgraph is a node: leave one of them out";
        problems.push(Diagnostic::at(entry.location_of("path"), message).hint(hint));
    }
    for leaf in ["private", "span"] {
        if matches!(backend, Tap | Vmnet)
            && entry.node("switch").is_none()
            && let Some(node) = entry.unlike_default(leaf)
        {
            let message = format!("`nics.{leaf}` does nothing on `{id}`, which is on no `switch`");
            problems.push(Diagnostic::at(&node.location, message));
        }
    }
    for leaf in ["interface", "path", "peerhook", "hook", "socket"] {
        if let Some(text) = entry.text(leaf)
            && (text.is_empty() || text.len() > 63 || text.contains([',', ' ']) || text.chars().any(char::is_control))
        {
            problems.push(Diagnostic::at(entry.location_of(leaf), format!("`{text}` cannot be `nics.{leaf}`")));
        }
    }
    (backend == Netgraph).then(|| NetgraphHook {
        path: entry.text("path"),
        peerhook: entry.text("peerhook"),
        hook: entry.text("hook"),
        socket: entry.text("socket"),
    })
}
