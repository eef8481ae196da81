//! Checks of the rules that involve more than one key, for the parts that bhyve(8) uses: loaders, firmware, and every
//! device that is neither a disk nor an interface. The results are in [`super::hardware`].

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use super::addresses::PciAddress;
use super::bhyve_variables;
use super::diagnostic::{Diagnostic, Location, Problems, nearest};
use super::guest::{ComPort, DiskConfig, GuestConfig, NicConfig};
use super::hardware::*;
use super::layer::{Spanned, Value};
use super::rules::{command_words, entry_id, map};
use super::table_reader::TableReader;
use crate::choices::{
    BhyveDiskDevice, Choices, DiskBackend, DiskDevice, EngineKind, FwCfg, GrubSystem, Hostbridge, LoaderKind, NicBackend, TpmKind,
};
use crate::units::{ByteSize, parse_duration};

/// Refuses the table of a loader that the guest does not use, since it would silently have no effect.
pub(super) fn loader_tables(view: &TableReader<'_>, loader: LoaderKind, problems: &mut Problems) {
    let name = loader.as_str();
    for of in LoaderKind::ALL.iter().filter(|of| **of != loader) {
        // Its table is called after it.
        let table = of.as_str();
        if let Some(node) = view.node(table) {
            let message = format!("`{table}` does nothing with `loader = \"{name}\"`");
            let hint = format!("set `loader = \"{table}\"`, or drop the table (`unset = [\"{table}\"]` if a template sets it)");
            problems.push(Diagnostic::at(&node.location, message).hint(hint));
        }
    }
}

pub(super) fn jail(view: &TableReader<'_>, problems: &mut Problems) -> Option<JailConfig> {
    view.node("jail")?;
    let table = view.table("jail");
    let Some(name) = table.text("name") else {
        problems.push(Diagnostic::at(table.location, "`jail` has no `name`").hint("`jail = \"NAME\"` is enough"));
        return None;
    };
    Some(JailConfig { name, root: table.path("root") })
}

/// Parses `0-3` or `0,2,5-6`: numbers and spans, in any order, none twice, at most 1024 spans.
pub fn spans(text: &str) -> Option<Vec<Span>> {
    let mut found: Vec<Span> = Vec::new();
    for part in text.split(',') {
        let number = |text: &str| match (1..=5).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit()) {
            true => text.parse::<u32>().ok(),
            false => None,
        };
        let span = match part.trim().split_once('-') {
            Some((first, last)) => Span { first: number(first)?, last: number(last)? },
            None => number(part.trim()).map(|one| Span { first: one, last: one })?,
        };
        let apart = found.iter().all(|other| span.last < other.first || other.last < span.first);
        if span.first > span.last || !apart || found.len() >= 1024 {
            return None;
        }
        found.push(span);
    }
    Some(found)
}

pub(super) fn pins(view: &TableReader<'_>, vcpus: u32, problems: &mut Problems) -> Vec<CpuPin> {
    let mut pins: Vec<CpuPin> = Vec::new();
    for (text, node) in view.table("cpus").text_nodes("pin") {
        let parsed = text.split_once(':').and_then(|(vcpu, host)| Some((spans(vcpu)?, spans(host)?)));
        let Some((wanted, host)) = parsed.filter(|(wanted, _)| matches!(wanted[..], [Span { first, last }] if first == last))
        else {
            let hint = "a virtual CPU, a colon, and CPUs of the host: `0:4` or `1:5-6`";
            problems.push(Diagnostic::at(&node.location, format!("`{text}` is not a CPU pinning")).hint(hint));
            continue;
        };
        let vcpu = wanted[0].first;
        if vcpu >= vcpus {
            let message = format!("`{text}` pins CPU {vcpu} of a guest that has {vcpus}, from 0");
            problems.push(Diagnostic::at(&node.location, message));
        } else if pins.iter().any(|pin| pin.vcpu == vcpu) {
            let hint = format!("one entry names all of them: `{vcpu}:4,6`");
            problems.push(Diagnostic::at(&node.location, format!("CPU {vcpu} is pinned twice")).hint(hint));
        }
        pins.push(CpuPin { vcpu, host });
    }
    pins
}

pub(super) fn numa(view: &TableReader<'_>, config: (u32, ByteSize, LoaderKind), problems: &mut Problems) -> Vec<NumaDomain> {
    let (vcpus, memory, loader) = config;
    let mut seen = Vec::new();
    let mut owner: Vec<Option<String>> = vec![None; vcpus as usize];
    let mut domains = Vec::new();
    let entries = view.entries("numa");
    for entry in &entries {
        let id = entry_id(entry, "numa", &mut seen, problems);
        let (Some(size), Some(text)) = (entry.size("size"), entry.text("cpus")) else {
            let missing = if entry.node("size").is_none() { "size" } else { "cpus" };
            problems.push(Diagnostic::at(entry.location, format!("NUMA domain `{id}` has no `{missing}`")));
            continue;
        };
        let Some(cpus) = spans(&text) else {
            problems
                .push(Diagnostic::at(entry.location_of("cpus"), format!("`{text}` names no CPUs")).hint("like `0-3` or `0,2`"));
            continue;
        };
        for cpu in cpus.iter().flat_map(|span| span.first..=span.last).take(4096) {
            match owner.get_mut(cpu as usize) {
                None => {
                    let message = format!("domain `{id}` has CPU {cpu}, the guest has {vcpus}, from 0");
                    problems.push(Diagnostic::at(entry.location_of("cpus"), message));
                    break;
                }
                Some(Some(other)) => {
                    let message = format!("CPU {cpu} is in the domains `{other}` and `{id}`");
                    problems.push(Diagnostic::at(entry.location_of("cpus"), message));
                    break;
                }
                Some(free) => *free = Some(id.clone()),
            }
        }
        domains.push(NumaDomain { id, size, cpus, policy: entry.text("policy") });
    }
    if domains.is_empty() || domains.len() != entries.len() {
        return domains;
    }
    let location = entries[0].location;
    let sum: u64 = domains.iter().map(|domain| domain.size.bytes()).fold(0, u64::saturating_add);
    if domains.len() > 8 {
        problems.push(Diagnostic::at(location, format!("{} NUMA domains are more than the maximum of 8", domains.len())));
    } else if sum != memory.bytes() {
        let message = format!("the NUMA domains have {} together, the guest has {memory}", ByteSize::from_bytes(sum));
        problems.push(Diagnostic::at(location, message).hint("make `size` of the domains add up to `memory`"));
    } else if let Some(cpu) = owner.iter().position(Option::is_none) {
        problems.push(Diagnostic::at(location, format!("CPU {cpu} is in no NUMA domain")));
    } else if loader != LoaderKind::Uefi {
        let message = "NUMA domains need `loader = \"uefi\"`: the other loaders know of no domains";
        problems.push(Diagnostic::at(location, message));
    }
    domains
}

pub(super) fn grub(view: &TableReader<'_>, engine: EngineKind, problems: &mut Problems) -> Grub {
    let table = view.table("grub");
    let system: GrubSystem = table.choice("system");
    for leaf in ["partition", "directory", "file", "kernel", "root", "entry"] {
        if let Some(text) = table.text(leaf) {
            one_line(&text, &format!("grub.{leaf}"), table.location_of(leaf), problems);
        }
    }
    for (text, node) in table.text_nodes("commands") {
        one_line(text, "grub.commands", &node.location, problems);
    }
    let without = |leaf: &str, why: &str, problems: &mut Problems| {
        if let Some(node) = table.unlike_default(leaf) {
            problems.push(Diagnostic::at(&node.location, format!("`grub.{leaf}` does nothing {why}")));
        }
    };
    if system == GrubSystem::Linux {
        without("kernel", "with `system = \"linux\"`: write `commands`", problems);
        without("root", "with `system = \"linux\"`: write `commands`", problems);
    } else if table.node("commands").is_some() {
        without("commands", "with OpenBSD and NetBSD, whose commands are written from `kernel` and `root`", problems);
    }
    if table.node("commands").is_some() || system != GrubSystem::Linux {
        without("directory", "when vmctl writes the configuration", problems);
        without("file", "when vmctl writes the configuration", problems);
        without("entry", "without a menu: `commands` have none", problems);
    }
    // grub-bhyve shows the guest's own menu as that is configured, and has no option for the time.
    if engine == EngineKind::Bhyve && system == GrubSystem::Linux && table.node("commands").is_none() {
        without("timeout", "without `commands`: the guest's own configuration sets the time of its menu", problems);
    }
    let timeout = table.text("timeout").and_then(|text| parse_duration(&text).ok());
    Grub {
        partition: table.text("partition"),
        directory: table.text("directory"),
        file: table.text("file"),
        commands: table.texts("commands"),
        entry: table.text("entry"),
        console: table.flag("console"),
        timeout: timeout.unwrap_or(Duration::from_secs(3)),
        menu_timeout: timeout,
        system,
        kernel: table.text("kernel"),
        root: table.text("root"),
    }
}

fn one_line(text: &str, what: &str, location: &Location, problems: &mut Problems) {
    if text.chars().any(char::is_control) {
        problems.push(Diagnostic::at(location, format!("`{what}` has a control character; it is one line")));
    }
}

pub(super) fn uefi(view: &TableReader<'_>, problems: &mut Problems) -> Uefi {
    let table = view.table("uefi");
    let csm = table.flag("csm");
    for leaf in ["firmware", "vars"] {
        if csm && let Some(node) = table.unlike_default(leaf) {
            let message =
                format!("`uefi.{leaf}` does not go with `csm = true`, which is a firmware of its own without variables");
            problems.push(Diagnostic::at(&node.location, message));
        }
    }
    let persistent = table.flag("persistent");
    if !persistent && let Some(node) = table.node("vars") {
        problems.push(Diagnostic::at(&node.location, "`uefi.vars` does nothing with `persistent = false`"));
    }
    Uefi { firmware: table.path("firmware"), vars: table.path("vars"), persistent: persistent && !csm, csm }
}

pub(super) fn bhyveload(view: &TableReader<'_>, problems: &mut Problems) -> Bhyveload {
    let table = view.table("bhyveload");
    Bhyveload {
        loader: table.path("loader"),
        env: map(&table, "env", problems),
        host_dir: table.path("host_dir"),
        args: command_words(&table, "args", problems),
        timeout: table.node("timeout").map(|_| table.duration("timeout")),
    }
}

pub(super) fn boot_order(
    view: &TableReader<'_>,
    config: (&[DiskConfig], &[NicConfig], LoaderKind),
    problems: &mut Problems,
) -> Vec<BootTarget> {
    let (disks, nics, loader) = config;
    let table = view.table("boot");
    let mut order = Vec::new();
    for (id, node) in table.text_nodes("order") {
        let target = match (disks.iter().any(|disk| disk.id == id), nics.iter().any(|nic| nic.id == id)) {
            (true, _) => BootTarget::Disk(id.to_owned()),
            (false, true) if loader == LoaderKind::Uefi => BootTarget::Nic(id.to_owned()),
            (false, true) => {
                problems.push(Diagnostic::at(&node.location, format!("only UEFI boots from an interface, like `{id}`")));
                continue;
            }
            (false, false) => {
                problems.push(Diagnostic::at(&node.location, format!("no disk and no interface has the id `{id}`")));
                continue;
            }
        };
        if order.contains(&target) {
            problems.push(Diagnostic::at(&node.location, format!("`{id}` is given twice")));
        }
        order.push(target);
    }
    let qemu = view.table("bhyve").chosen("fwcfg") == Some(FwCfg::Qemu);
    if !order.is_empty() && loader == LoaderKind::Uefi && !qemu {
        let message = "firmware learns `boot.order` only with `bhyve.fwcfg = \"qemu\"`";
        let hint = "set it, with a firmware that reads it; or put the disk that is booted first in the file";
        problems.push(Diagnostic::at(table.location_of("order"), message).hint(hint));
    }
    order
}

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

pub(super) fn channels(view: &TableReader<'_>, problems: &mut Problems) -> Vec<Channel> {
    let mut seen = Vec::new();
    let entries = view.entries("channels");
    if entries.len() > 16 {
        let message = format!("{} channels are more than the 16 ports of a virtio console", entries.len());
        problems.push(Diagnostic::at(view.location_of("channels"), message));
    }
    let channel =
        |entry: &TableReader<'_>| Channel { id: entry_id(entry, "channels", &mut seen, problems), path: entry.path("path") };
    entries.iter().map(channel).collect()
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

pub(super) fn smbios(view: &TableReader<'_>, problems: &mut Problems) -> Smbios {
    let table = view.table("smbios");
    let mut text = |leaf: &str| {
        let text = table.text(leaf)?;
        if text.is_empty() || text.len() > 128 || !text.bytes().all(|b| (0x20..0x7f).contains(&b)) {
            let message = format!("`{text}` cannot be in the SMBIOS tables");
            let hint = "1 to 128 printable ASCII characters";
            problems.push(Diagnostic::at(table.location_of(leaf), message).hint(hint));
        }
        Some(text)
    };
    Smbios {
        manufacturer: text("manufacturer"),
        product: text("product"),
        version: text("version"),
        serial: text("serial"),
        sku: text("sku"),
        family: text("family"),
        asset_tag: text("asset_tag"),
    }
}

pub(super) fn limits(view: &TableReader<'_>, problems: &mut Problems) -> Limits {
    let table = view.table("limits");
    let mut bps = |leaf: &str| {
        let size = table.size(leaf)?;
        if size.bytes() == 0 {
            problems.push(Diagnostic::at(table.location_of(leaf), format!("`limits.{leaf}` is zero")));
        }
        Some(size)
    };
    Limits {
        cpu_percent: table.small("cpu_percent"),
        nice: table.number("nice").map(|nice| i32::try_from(nice).expect("the key table's bounds fit")),
        read_bps: bps("read_bps"),
        write_bps: bps("write_bps"),
        read_iops: table.small("read_iops"),
        write_iops: table.small("write_iops"),
    }
}

pub(super) fn gdb(view: &TableReader<'_>, problems: &mut Problems) -> Option<GdbStub> {
    let debug = view.table("debug");
    debug.node("gdb")?;
    let table = debug.table("gdb");
    let Some(port) = table.small("port") else {
        problems.push(Diagnostic::at(table.location, "`debug.gdb` has no `port`").hint("like `port = 1234`"));
        return None;
    };
    let address: IpAddr = table.text("listen").and_then(|text| text.parse().ok()).expect("walked, and has a default");
    let port = u16::try_from(port).expect("the key table's bounds fit");
    Some(GdbStub { listen: SocketAddr::new(address, port), wait: table.flag("wait") })
}

pub(super) fn bhyve(view: &TableReader<'_>, problems: &mut Problems) -> BhyveConfig {
    let table = view.table("bhyve");
    let mut fw_cfg: Vec<FwCfgItem> = map(&table, "fw_cfg", problems)
        .into_iter()
        .map(|(name, text)| FwCfgItem { name, content: FwCfgContent::Text(text) })
        .collect();
    for (name, text) in map(&table, "fw_cfg_files", problems) {
        if !text.starts_with('/') {
            let message = format!("`{text}` is not an absolute path");
            problems.push(Diagnostic::at(table.location_of("fw_cfg_files"), message));
        }
        fw_cfg.push(FwCfgItem { name, content: FwCfgContent::File(text.into()) });
    }
    for item in &fw_cfg {
        // QEMU_FWCFG_MAX_NAME in qemu_fwcfg.c, with its NUL; a comma would end the name on bhyve's command line.
        if item.name.is_empty() || item.name.len() > 55 || item.name.contains([',', ' ']) || !item.name.is_ascii() {
            let message = format!("`{}` is not the name of a firmware configuration item", item.name);
            problems.push(Diagnostic::at(table.location, message).hint("at most 55 characters, like `opt/org.example/key`"));
        }
    }
    if !fw_cfg.is_empty() && table.chosen("fwcfg") != Some(FwCfg::Qemu) {
        let message = "a guest sees firmware configuration items only with `fwcfg = \"qemu\"`";
        problems.push(Diagnostic::at(table.location, message).hint("set it in `[bhyve]`"));
    }
    let mut slots = Vec::new();
    for (name, text) in map(&table, "slots", problems) {
        match text.parse::<PciAddress>() {
            Ok(address) => slots.push((name, address)),
            Err(()) => {
                let message = format!("`bhyve.slots.{name}` is `{text}`, not a PCI address");
                problems.push(Diagnostic::at(table.location_of("slots"), message).hint("like `31` or `0:31:0`"));
            }
        }
    }
    for (name, _) in map(&table, "options", &mut Vec::new()) {
        if let Some((message, hint)) = bhyve_variables::refusal(&name) {
            problems.push(Diagnostic::at(place_in(&table, "options", &name), message).maybe_hint(hint));
        }
    }
    BhyveConfig {
        args: command_words(&table, "args", problems),
        options: map(&table, "options", problems),
        slots,
        hostbridge: table.choice("hostbridge"),
        fwcfg: table.chosen("fwcfg"),
        fw_cfg,
        acpi_tables_in_memory: table.flag("acpi_tables_in_memory"),
        ignore_bad_msr: table.flag("ignore_bad_msr"),
        strict_io: table.flag("strict_io"),
        vmexit_on_hlt: table.flag("vmexit_on_hlt"),
        vmexit_on_pause: table.flag("vmexit_on_pause"),
        x2apic: table.flag("x2apic"),
        mptable: table.flag("mptable"),
        virtio_msix: table.flag("virtio_msix"),
    }
}

/// Returns the position of a name in a table with the user's own names.
fn place_in<'a>(view: &TableReader<'a>, leaf: &str, name: &str) -> &'a Location {
    match view.node(leaf) {
        Some(Spanned { value: Value::Table(table), .. }) => {
            table.0.iter().find(|(other, _)| other.text == name).map_or(view.location, |(name, _)| &name.location)
        }
        _ => view.location,
    }
}

/// Checks that the names in `bhyve.slots` are devices of the guest.
pub(super) fn slot_names(view: &TableReader<'_>, config: &GuestConfig, problems: &mut Problems) {
    let table = view.table("bhyve");
    let known = known_slots(config);
    let mut taken: Vec<(PciAddress, String)> = Vec::new();
    let mut all: Vec<(PciAddress, String, &Location)> = Vec::new();
    for class in ["disks", "nics", "passthru"] {
        for entry in view.entries(class) {
            let name = format!("{class}.{}", entry.text("id").unwrap_or_default());
            all.extend(slot(&entry).map(|address| (address, name, entry.location_of("slot"))));
        }
    }
    let graphics = view.table("graphics");
    all.extend(slot(&graphics).map(|address| (address, "graphics".to_owned(), graphics.location_of("slot"))));
    for (name, address) in &config.bhyve.slots {
        all.push((*address, format!("bhyve.slots.{name}"), place_in(&table, "slots", name)));
    }
    for (slot, name, location) in all {
        if let Some((_, other)) = taken.iter().find(|(taken, _)| *taken == slot) {
            problems.push(Diagnostic::at(location, format!("`{other}` and `{name}` are both at the PCI address {slot}")));
        }
        taken.push((slot, name));
    }
    for (name, slot) in &config.bhyve.slots {
        let location = place_in(&table, "slots", name);
        if !known.contains(name) {
            let hint = nearest(name, known.iter().map(String::as_str))
                .map_or_else(|| format!("it has {}", known.join(", ")), |near| format!("did you mean `{near}`?"));
            problems.push(
                Diagnostic::at(location, format!("the guest has no device `{name}` without a `slot` of its own")).hint(hint),
            );
        } else if name == "lpc" && slot.bus != 0 {
            problems.push(Diagnostic::at(location, "bhyve(8) has the LPC bridge only on bus 0"));
        }
    }
}

/// Returns the valid names for `bhyve.slots`.
fn known_slots(config: &GuestConfig) -> Vec<String> {
    let mut known = vec!["lpc".to_owned()];
    known.extend((config.bhyve.hostbridge != Hostbridge::None).then(|| "hostbridge".into()));
    known.extend(config.rng.then(|| "rng".into()));
    known.extend(config.graphics.as_ref().filter(|graphics| graphics.tablet).map(|_| "tablet".into()));
    known.extend(config.sound.as_ref().map(|_| "sound".into()));
    known.extend((!config.channels.is_empty()).then(|| "channels".into()));
    known.extend(config.disks.iter().filter_map(|disk| Some(format!("ahci:{}", disk.controller.as_ref()?))));
    known.extend(config.inputs.iter().map(|input| format!("input:{}", input.id)));
    known.extend(config.shares.iter().map(|share| format!("share:{}", share.id)));
    known.dedup();
    known
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_numbers_and_ranges_without_overlap() {
        assert_eq!(spans("0-3"), Some(vec![Span { first: 0, last: 3 }]));
        assert_eq!(spans("0, 5-6"), Some(vec![Span { first: 0, last: 0 }, Span { first: 5, last: 6 }]));
        for bad in ["", "-", "3-1", "0,0", "0-4,2", "a", "+1", "1-", "123456"] {
            assert_eq!(spans(bad), None, "{bad}");
        }
    }
}
