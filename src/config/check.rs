//! Checks of the rules that involve more than one key. Only this module makes a [`GuestConfig`].

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use super::addresses::{MacAddr, network};
use super::check_cloud_init::{cloud_init, seed_disk};
use super::check_devices as devices;
use super::check_firmware as firmware;
use super::check_hardware as hardware;
use super::diagnostic::{Diagnostic, Diagnostics, Location, Problems};
use super::guest::*;
use super::keys::GUEST_KEYS;
use super::layer::{Name, Spanned, Table, Value};
pub use super::paths::is_image_path;
use super::resolve::Resolved;
use super::rules::entry_id;
use super::table_reader::TableReader;
use super::validate::{self, is_name};
use crate::choices::{
    BackendKind, DiskBackend, DiskDevice, DiskFormat, EngineKind, ForwardProto, HookEvent, HookFailure, LoaderKind, NicBackend,
    NicDevice,
};
use crate::units::{ByteSize, Topology};

/// Checks a resolved guest file. Relative paths of templates and `--set` are relative to `directory`.
pub fn check(resolved: &mut Resolved, directory: &std::path::Path) -> Result<GuestConfig, Diagnostics> {
    let mut found = Vec::new();
    validate::check_table(&mut resolved.table, "", &GUEST_KEYS, Some(resolved.engine), &mut found);
    // A value whose expression is wrong has been reported. Its form does not matter any more.
    found.retain(|problem: &Diagnostic| !resolved.problems.iter().any(|other| overlap(problem, other)));
    let mut problems = std::mem::take(&mut resolved.problems);
    problems.extend(found);
    if problems.is_empty() {
        choose_loader(&mut resolved.table, resolved.engine);
    }
    // With a value of the wrong type around, the rules below would only report its consequences.
    if problems.is_empty() {
        let view = TableReader::new(&resolved.table, &resolved.start, &GUEST_KEYS, directory, resolved.engine);
        let config = guest(&view, &resolved.name, resolved.engine, &mut problems);
        if problems.is_empty() {
            return Ok(config);
        }
    }
    problems.sort_by_key(|problem| {
        problem.location.as_ref().map(|location| {
            let source = (location.source != resolved.start.source, location.source.label.clone());
            (source, location.span.start)
        })
    });
    Err(Diagnostics(problems))
}

/// Writes the loader of a guest of the embedded engine that says none: with a disk that holds something and no kernel of
/// its own, it boots from that disk.
fn choose_loader(table: &mut Table, engine: EngineKind) {
    if engine != EngineKind::Embedded || table.get("loader").is_some() || table.get("kernel").is_some() {
        return;
    }
    let Some(Value::Array(disks)) = table.get("disks").map(|disks| &disks.value) else { return };
    let Some(Value::Table(first)) = disks.first().map(|first| &first.value) else { return };
    let Some(holds) = first.get("source").or_else(|| first.get("path")) else { return };
    let location = holds.location.clone();
    let name = Name { text: "loader".into(), location: location.clone() };
    table.0.push((name, Spanned { value: Value::Text("grub".into()), location, replaces: false }));
}

fn overlap(a: &Diagnostic, b: &Diagnostic) -> bool {
    match (&a.location, &b.location) {
        (Some(a), Some(b)) => a.source == b.source && a.span.start < b.span.end && b.span.start < a.span.end,
        _ => false,
    }
}

/// Suffix of a ZFS volume's name while it is being filled: `host::zfs::MAKING`, which this part may not import.
const MAKING: &str = ".making";

/// Number of PCI slots of the embedded engine for disks and interfaces: `machine::spec::DEVICE_SLOTS`, which this part may not
/// import.
pub const EMBEDDED_SLOTS: usize = 27;

fn guest(view: &TableReader<'_>, name: &str, engine: EngineKind, problems: &mut Problems) -> GuestConfig {
    if !is_name(name) {
        let message = format!("`{name}` cannot be the name of a guest");
        problems.push(Diagnostic::at(view.location_of("name"), message).hint(
            "lower-case letters, digits, `.`, `_` and `-`, at most 63, beginning and ending with a letter or digit; set `name`",
        ));
    }
    let loader: LoaderKind = view.choice("loader");
    firmware::loader_tables(view, loader, problems);
    let mut disks = disks(view, engine, problems);
    let nics = nics(view, problems);
    let cloud_init = cloud_init(view, name, (&disks, &nics), problems);
    if cloud_init.is_some() {
        disks.push(seed_disk(engine));
    }
    if engine == EngineKind::Embedded && disks.len() + nics.len() > EMBEDDED_SLOTS {
        let message = format!("{} disks and interfaces are more than the {EMBEDDED_SLOTS} that fit", disks.len() + nics.len());
        problems.push(Diagnostic::at(view.location_of("disks"), message));
    }
    let cpus = cpus(view, problems);
    let memory = memory(view, problems);
    let passthru = devices::passthru(view, problems);
    let debug = view.table("debug");
    let deterministic = debug.flag("deterministic");
    if deterministic && cpus.count() != 1 {
        let message = format!("`debug.deterministic` needs 1 CPU, the guest has {}", cpus.count());
        problems.push(Diagnostic::at(debug.location_of("deterministic"), message).hint("set `cpus = 1`"));
    }
    let backend: BackendKind = view.choice("backend");
    if deterministic && !matches!(backend, BackendKind::Auto | BackendKind::Soft) {
        let message = format!("`debug.deterministic` needs the software CPU, the guest has `backend = \"{}\"`", backend.as_str());
        let at = debug.location_of("deterministic");
        problems.push(Diagnostic::at(at, message).hint("set `backend = \"soft\"`"));
    }
    let config = GuestConfig {
        name: name.to_owned(),
        description: view.text("description"),
        owner: view.text("owner"),
        tags: tags(view, problems),
        protected: view.flag("protected"),
        engine,
        backend,
        clock: view.choice("clock"),
        jail: hardware::jail(view, problems),
        uuid: view.text("uuid").map(|uuid| uuid.to_lowercase()),
        pins: hardware::pins(view, cpus.count(), problems),
        numa: hardware::numa(view, (cpus.count(), memory, loader), problems),
        cpus,
        memory,
        memory_wired: view.table("memory").flag("wired") || !passthru.is_empty(),
        memory_overcommit: view.table("memory").flag("overcommit"),
        memory_in_core: view.table("memory").flag("in_core"),
        loader,
        kernel: if loader == LoaderKind::Kernel { kernel(view, problems) } else { None },
        grub: (loader == LoaderKind::Grub).then(|| firmware::grub(view, engine, problems)),
        uefi: (loader == LoaderKind::Uefi).then(|| firmware::uefi(view, problems)),
        bhyveload: (loader == LoaderKind::Bhyveload).then(|| firmware::bhyveload(view, problems)),
        boot_order: firmware::boot_order(view, (&disks, &nics, loader), problems),
        disks,
        console: console(&view.table("console"), engine, problems),
        channels: devices::channels(view, engine, problems),
        agent: view.flag("agent"),
        graphics: devices::graphics(view, loader, problems),
        sound: devices::sound(view, problems),
        inputs: devices::inputs(view, problems),
        tpm: devices::tpm(view, problems),
        passthru,
        shares: devices::shares(view, problems),
        smbios: firmware::smbios(view, problems),
        limits: hardware::limits(view, problems),
        bhyve: hardware::bhyve(view, problems),
        restart: restart(&view.table("restart"), problems),
        stop_timeout: view.duration("stop_timeout"),
        autostart: autostart(&view.table("autostart"), name, problems),
        ready: ready(&view.table("ready"), &nics, view.flag("agent"), problems),
        hooks: hooks(view, problems),
        rng: view.table("rng").flag("enabled"),
        cloud_init,
        debug: DebugConfig { exit_port: debug.flag("exit_port"), deterministic, gdb: hardware::gdb(view, problems) },
        nics,
    };
    if engine == EngineKind::Bhyve {
        hardware::slot_names(view, &config, problems);
    }
    config
}

fn tags(view: &TableReader<'_>, problems: &mut Problems) -> Vec<String> {
    for (tag, node) in view.text_nodes("tags") {
        if tag.is_empty() || tag.chars().any(|c| c.is_whitespace() || c.is_control() || c == ',') {
            problems.push(
                Diagnostic::at(&node.location, format!("`{tag}` cannot be a tag")).hint("a word without blanks and commas"),
            );
        }
    }
    view.texts("tags")
}

fn cpus(view: &TableReader<'_>, problems: &mut Problems) -> Topology {
    let table = view.table("cpus");
    let cores = table.small("cores").expect("has a default");
    let threads = table.small("threads").expect("has a default");
    let package = cores * threads;
    let (count, sockets) = match (table.small("count"), table.small("sockets")) {
        (None, sockets) => (package * sockets.unwrap_or(1), sockets.unwrap_or(1)),
        (Some(count), None) => (count, count.div_ceil(package)),
        (Some(count), Some(sockets)) => (count, sockets),
    };
    if sockets * package != count {
        let message = format!(
            "`cpus.count` is {count}, but {sockets} sockets x {cores} cores x {threads} threads are {}",
            sockets * package
        );
        problems.push(Diagnostic::at(table.location_of("count"), message).hint("leave `count` out, or make them agree"));
        // What else is wrong is told of the number that was asked for.
        return Topology { sockets: count, cores: 1, threads: 1 };
    } else if count > 64 {
        problems.push(Diagnostic::at(table.location, format!("{count} CPUs are more than the 64 that a guest can have")));
    }
    Topology { sockets, cores, threads }
}

fn memory(view: &TableReader<'_>, problems: &mut Problems) -> ByteSize {
    let table = view.table("memory");
    let memory = table.size("size").expect("has a default");
    let location = table.location_of("size");
    if memory < ByteSize::from_mib(16) {
        problems.push(Diagnostic::at(location, format!("`{memory}` of memory is less than the minimum, `16M`")));
    } else if memory > ByteSize::from_gib(4096) {
        problems.push(Diagnostic::at(location, format!("`{memory}` of memory is more than the maximum, `4T`")));
    } else if memory.bytes() % ByteSize::from_mib(1).bytes() != 0 {
        problems.push(Diagnostic::at(location, format!("`{memory}` of memory is not a whole number of MiB")));
    }
    memory
}

fn kernel(view: &TableReader<'_>, problems: &mut Problems) -> Option<Kernel> {
    let table = view.table("kernel");
    let cmdline = table.text("cmdline").expect("has a default");
    if cmdline.len() > 2047 {
        let message = format!("the kernel's command line has {} characters, the maximum is 2047", cmdline.len());
        problems.push(Diagnostic::at(table.location_of("cmdline"), message));
    }
    let Some(image) = table.path("image") else {
        let location = if view.node("kernel").is_some() { table.location } else { view.location_of("loader") };
        let message = "`loader = \"kernel\"` needs the kernel: `kernel.image` is not set";
        problems.push(Diagnostic::at(location, message).hint("add `image = \"PATH\"` in `[kernel]`"));
        return None;
    };
    let mut modules = Vec::new();
    for entry in table.entries("modules") {
        match entry.path("path") {
            Some(path) => modules.push(KernelModule { path, args: entry.text("args").expect("has a default") }),
            None => problems
                .push(Diagnostic::at(entry.location, "a module of the kernel has no `path`").hint("add `path = \"FILE\"`")),
        }
    }
    Some(Kernel { image, initrd: table.path("initrd"), modules, cmdline })
}

fn disks(view: &TableReader<'_>, engine: EngineKind, problems: &mut Problems) -> Vec<DiskConfig> {
    let mut seen = Vec::new();
    let entries = view.entries("disks");
    if engine == EngineKind::Embedded && entries.len() > 24 {
        problems.push(Diagnostic::at(
            view.location_of("disks"),
            format!("{} disks are more than the 24 that a guest can have", entries.len()),
        ));
    }
    entries.iter().map(|entry| disk(entry, engine, &mut seen, problems)).collect()
}

fn disk(entry: &TableReader<'_>, engine: EngineKind, seen: &mut Vec<String>, problems: &mut Problems) -> DiskConfig {
    let id = entry_id(entry, "disks", seen, problems);
    let (path, size) = (entry.path("path"), entry.size("size"));
    let source = source(entry, problems);
    let backend = match entry.chosen("backend") {
        Some(backend) => backend,
        None if path.is_some() && size.is_none() => DiskBackend::File,
        None => DiskBackend::Sparse,
    };
    let here = |leaf: &str, message: String| Diagnostic::at(entry.location_of(leaf), message);
    if backend == DiskBackend::Zvol && id.ends_with(MAKING) {
        problems.push(here("id", format!("`{id}` cannot be the id of a disk: a volume is called so while it is filled")));
    }
    match (backend, &path, size) {
        (DiskBackend::File, None, _) => {
            problems
                .push(here("backend", format!("disk `{id}` has the backend `file` and no `path`")).hint("add `path = \"PATH\"`"));
        }
        (DiskBackend::Iscsi, Some(_), _) => {
            problems.push(here("path", format!("disk `{id}` is an iSCSI unit and has no `path`: the host finds its device")));
        }
        (DiskBackend::Iscsi, _, Some(_)) => {
            problems.push(here("size", format!("disk `{id}` is an iSCSI unit, whose size vmctl does not change")));
        }
        (DiskBackend::File, _, Some(_)) => {
            let hint = "leave `size` out, or set `backend = \"sparse\"` and vmctl makes and grows the file";
            problems.push(here("size", format!("disk `{id}` is a file of yours, whose size vmctl does not change")).hint(hint));
        }
        (DiskBackend::File | DiskBackend::Iscsi, ..) if source.is_some() => {
            let message = format!("disk `{id}` exists already and is not made from `source`");
            problems.push(here("source", message).hint("set `backend = \"sparse\"` and it is made from it once"));
        }
        (DiskBackend::Sparse | DiskBackend::Zvol, _, None) if source.is_none() => {
            let hint = "add `size = \"8G\"`, or `path = \"PATH\"` of an image that is there";
            problems.push(here("backend", format!("disk `{id}` has no `size`")).hint(hint));
        }
        (_, _, Some(size)) if size < ByteSize::from_mib(1) || size > ByteSize::from_gib(1 << 20) => {
            problems.push(here("size", format!("disk `{id}` is `{size}`, not `1M` to `1P`")));
        }
        (_, _, Some(size)) if size.bytes() % 512 != 0 => {
            problems.push(here("size", format!("disk `{id}` is `{size}`, not a whole number of 512-byte sectors")));
        }
        _ => {}
    }
    let device: DiskDevice = entry.choice("device");
    if matches!(device, DiskDevice::AhciCd | DiskDevice::VirtioScsi) && backend != DiskBackend::File {
        let name = device.as_str();
        let hint = "`path = \"PATH\"` and no `size`";
        problems.push(here("device", format!("disk `{id}` is of type `{name}`, which needs an existing backing")).hint(hint));
    }
    let extras = devices::disk_extras(entry, &id, (backend, device), problems);
    let serial = entry.text("serial");
    // The embedded engine uses the id if there is none. A comma would end a value of bhyve.
    if let Some(serial) = &serial
        && (serial.is_empty()
            || serial.len() > 20
            || !serial.bytes().all(|b| (0x20..0x7f).contains(&b))
            || (engine == EngineKind::Bhyve && serial.contains(',')))
    {
        let hint = "1 to 20 printable ASCII characters";
        problems.push(here("serial", format!("`{serial}` cannot be a serial number")).hint(hint));
    }
    if let (Some(node), None) = (entry.node("checksum"), &source) {
        let message = format!("disk `{id}` has a `checksum` and no `source` that it applies to");
        problems.push(Diagnostic::at(&node.location, message));
    }
    if let (Some(node), None, None) = (entry.node("format"), &path, &source) {
        let message = format!("disk `{id}` has a `format`, and neither a `path` nor a `source` that it applies to");
        problems.push(Diagnostic::at(&node.location, message));
    }
    DiskConfig {
        id,
        raw: entry.chosen("format") == Some(DiskFormat::Raw),
        backend,
        path,
        size,
        device,
        ro: entry.flag("ro"),
        cache: entry.choice("cache"),
        serial,
        discard: entry.flag("discard"),
        source,
        checksum: checksum(entry, problems),
        iscsi: extras.iscsi,
        properties: extras.properties,
        thin: entry.flag("thin"),
        sector_size: extras.sector_size,
        controller: extras.controller,
        slot: devices::slot(entry),
        options: devices::device_options(entry, problems),
    }
}

/// Returns the source of a disk: a name, a URL, or a path, which is made absolute. A path may contain any character
/// except NUL, which no system call accepts. Names and URLs contain no blanks.
fn source(entry: &TableReader<'_>, problems: &mut Problems) -> Option<String> {
    let (text, node) = (entry.text("source")?, entry.node("source")?);
    let is_path = is_image_path(&text);
    let wrong = |c: char| if is_path { c == '\0' } else { c.is_control() || c.is_whitespace() };
    let reason = match text.chars().find(|c| wrong(*c)) {
        _ if text.is_empty() => Some("it is empty".to_owned()),
        Some(' ') => Some("it has a blank".to_owned()),
        Some(c) => Some(format!("it has the character {}", c.escape_unicode())),
        None => None,
    };
    if let Some(reason) = reason {
        let hint = "a name of the catalogue, a URL, or a path with a slash, like `./my image.raw`";
        problems.push(Diagnostic::at(&node.location, format!("`{text}` cannot be an image: {reason}")).hint(hint));
    }
    Some(if is_path { entry.absolute(&text, node).to_string_lossy().into_owned() } else { text })
}

/// Returns a digest as `sha256:` and 64 hexadecimal digits, or `sha512:` and 128.
pub fn checksum(entry: &TableReader<'_>, problems: &mut Problems) -> Option<String> {
    let (text, node) = (entry.text("checksum")?, entry.node("checksum")?);
    let digits = match text.split_once(':') {
        Some(("sha256", hex)) if hex.len() == 64 => hex,
        Some(("sha512", hex)) if hex.len() == 128 => hex,
        _ => "none",
    };
    if !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        let hint = "`sha256:` and 64 hexadecimal digits, or `sha512:` and 128";
        problems.push(Diagnostic::at(&node.location, format!("`{text}` is not a checksum")).hint(hint));
    }
    Some(text)
}

fn nics(view: &TableReader<'_>, problems: &mut Problems) -> Vec<NicConfig> {
    let mut seen = Vec::new();
    let mut macs: Vec<MacAddr> = Vec::new();
    // Host ports that are taken, with the interface that took them.
    let mut taken: Vec<(Forward, String)> = Vec::new();
    let entries = view.entries("nics");
    if entries.len() > 16 {
        let message = format!("{} interfaces are more than the 16 that a guest can have", entries.len());
        problems.push(Diagnostic::at(view.location_of("nics"), message));
    }
    let mut nics = Vec::new();
    for entry in &entries {
        let id = entry_id(entry, "nics", &mut seen, problems);
        let backend = match entry.chosen("backend") {
            None if entry.node("switch").is_some() => NicBackend::Tap,
            None => NicBackend::User,
            Some(backend) => backend,
        };
        let device = entry.choice("device");
        if device == NicDevice::E1000
            && let Some(node) = entry.unlike_default("mtu")
        {
            problems
                .push(Diagnostic::at(&node.location, format!("`{id}` is an e1000, which cannot announce an `mtu` to the guest")));
        }
        if (device, backend) == (NicDevice::E1000, NicBackend::None) {
            let hint = "set `device = \"virtio-net\"`, or drop the interface";
            problems.push(
                Diagnostic::at(
                    entry.location_of("device"),
                    format!("`{id}` is not connected, and bhyve(8) has no e1000 without a cable"),
                )
                .hint(hint),
            );
        }
        let netgraph = devices::nic_wiring(entry, &id, backend, problems);
        let mac: Option<MacAddr> = entry.text("mac").and_then(|mac| mac.parse().ok());
        if let Some(mac) = mac {
            if macs.contains(&mac) {
                problems.push(Diagnostic::at(entry.location_of("mac"), format!("MAC address `{mac}` is used twice")));
            }
            macs.push(mac);
        }
        // An interface whose link is down keeps its forwards in the file. They are checked and not used.
        let forwards = forwards(entry, &id, &mut taken, problems);
        nics.push(NicConfig {
            id,
            backend,
            switch: entry.text("switch"),
            mac,
            interface: entry.text("interface"),
            netgraph,
            private: entry.flag("private"),
            span: entry.flag("span"),
            slot: devices::slot(entry),
            options: devices::device_options(entry, problems),
            device,
            mtu: u16::try_from(entry.small("mtu").expect("has a default")).expect("the key table's bounds fit"),
            forwards: if backend == NicBackend::User { forwards } else { Vec::new() },
            user: user_network(entry, problems),
        });
    }
    nics
}

fn user_network(entry: &TableReader<'_>, problems: &mut Problems) -> UserNetwork {
    let text = entry.text("network").expect("has a default");
    let (network, prefix) = network(&text).expect("the walk has seen that it is one");
    let at = |offset: u32| Ipv4Addr::from(u32::from(network) + offset);
    let mut dns_servers = Vec::new();
    for (text, node) in entry.text_nodes("dns") {
        match text.parse::<IpAddr>() {
            Ok(address) => dns_servers.push(address),
            Err(_) => {
                problems.push(Diagnostic::at(&node.location, format!("`{text}` is not an IP address")).hint("like `9.9.9.9`"))
            }
        }
    }
    let (guest, answers) = if prefix <= 27 { (at(15), at(4)) } else { (at(4), at(5)) };
    let isolated = entry.flag("isolated");
    for leaf in ["host_access", "link_local"] {
        if isolated && entry.flag(leaf) {
            let message = format!("`nics.{leaf}` opens what `isolated` closes");
            let hint = "an isolated guest can be given single ports of the host with `host_ports`";
            problems.push(Diagnostic::at(entry.location_of(leaf), message).hint(hint));
        }
    }
    UserNetwork {
        network,
        prefix,
        gateway: at(2),
        dns: at(3),
        guest,
        answers,
        dns_servers,
        isolated,
        host_access: entry.flag("host_access"),
        host_ports: host_ports(entry, problems),
        link_local: entry.flag("link_local"),
    }
}

fn host_ports(entry: &TableReader<'_>, problems: &mut Problems) -> Vec<HostPorts> {
    let mut ports = Vec::new();
    for (text, node) in entry.text_nodes("host_ports") {
        match text.parse() {
            Ok(some) => ports.push(some),
            Err(()) => {
                let hint = "a port from 1 to 65535 or a range of them, like `3128`, `8000-8010` or `53/udp`";
                problems.push(Diagnostic::at(&node.location, format!("`{text}` is not a port of the host")).hint(hint));
            }
        }
    }
    ports
}

fn forwards(nic: &TableReader<'_>, id: &str, taken: &mut Vec<(Forward, String)>, problems: &mut Problems) -> Vec<Forward> {
    let mut forwards = Vec::new();
    for entry in nic.entries("forwards") {
        let (Some(host_port), Some(guest_port)) = (entry.small("host_port"), entry.small("guest_port")) else {
            let missing = if entry.node("host_port").is_none() { "host_port" } else { "guest_port" };
            let message = format!("a forward of `{id}` has no `{missing}`");
            problems.push(Diagnostic::at(entry.location, message).hint("a forward leads from `host_port` to `guest_port`"));
            continue;
        };
        let port = |port: u32| u16::try_from(port).expect("the key table's bounds fit");
        let forward = Forward {
            proto: entry.choice("proto"),
            host_addr: entry.text("host_addr").and_then(|text| text.parse().ok()).expect("walked, and has a default"),
            host_port: port(host_port),
            guest_port: port(guest_port),
        };
        let clashes = |other: &Forward| {
            let same = other.host_addr == forward.host_addr;
            let any = other.host_addr.is_unspecified() || forward.host_addr.is_unspecified();
            other.proto == forward.proto && other.host_port == forward.host_port && (same || any)
        };
        if let Some((_, nic)) = taken.iter().find(|(other, _)| clashes(other)) {
            let message = format!("port {} of the host is already forwarded by `{nic}`", forward.host_port);
            problems.push(Diagnostic::at(entry.location_of("host_port"), message));
        }
        taken.push((forward, id.to_owned()));
        forwards.push(forward);
    }
    forwards
}

fn console(view: &TableReader<'_>, engine: EngineKind, problems: &mut Problems) -> ConsoleConfig {
    let com = ["com1", "com2", "com3", "com4"].map(|leaf| devices::com_port(view, leaf, engine, problems));
    for (at, port) in com.iter().enumerate() {
        if !matches!(port, ComPort::None | ComPort::Console) && com[..at].contains(port) {
            let message = format!("COM{} leads to the same place as another port", at + 1);
            problems.push(Diagnostic::at(view.location_of(&format!("com{}", at + 1)), message));
        }
    }
    let mut bounded = |leaf: &str, least: ByteSize, most: ByteSize| {
        let size = view.size(leaf).expect("has a default");
        if size < least || size > most {
            let message = format!("`console.{leaf}` is `{size}`, not {least} to {most}");
            problems.push(Diagnostic::at(view.location_of(leaf), message));
        }
        size
    };
    ConsoleConfig {
        com,
        virtio: view.flag("virtio"),
        log_size: bounded("log_size", ByteSize::from_kib(4), ByteSize::from_gib(1)),
        log_files: view.small("log_files").expect("has a default"),
        scrollback: bounded("scrollback", ByteSize::from_bytes(0), ByteSize::from_mib(16)),
    }
}

fn restart(view: &TableReader<'_>, problems: &mut Problems) -> RestartConfig {
    let config = RestartConfig {
        on_reboot: view.choice("on_reboot"),
        on_poweroff: view.choice("on_poweroff"),
        on_crash: view.choice("on_crash"),
        limit: view.small("limit").expect("has a default"),
        window: view.duration("window"),
        backoff_initial: view.duration("backoff_initial"),
        backoff_max: view.duration("backoff_max"),
    };
    if config.backoff_max < config.backoff_initial {
        let leaf = if view.node("backoff_max").is_some() { "backoff_max" } else { "backoff_initial" };
        let message = "`restart.backoff_max` is shorter than `restart.backoff_initial`";
        problems.push(Diagnostic::at(view.location_of(leaf), message));
    }
    if config.limit > 0 && config.window.is_zero() {
        let message = "`restart.window` is zero, so that `restart.limit` never applies";
        problems.push(Diagnostic::at(view.location_of("window"), message).hint("set `limit = 0` for no limit"));
    }
    config
}

fn autostart(view: &TableReader<'_>, name: &str, problems: &mut Problems) -> AutostartConfig {
    for (after, node) in view.text_nodes("after") {
        if after == name {
            problems.push(Diagnostic::at(&node.location, "a guest cannot start after itself"));
        } else if !is_name(after) {
            problems.push(Diagnostic::at(&node.location, format!("`{after}` cannot be the name of a guest")));
        }
    }
    AutostartConfig {
        enabled: view.flag("enabled"),
        order: view.number("order").expect("has a default"),
        delay: view.duration("delay"),
        after: view.texts("after"),
        wait: view.choice("wait"),
        timeout: view.duration("timeout"),
    }
}

fn ready(view: &TableReader<'_>, nics: &[NicConfig], agent: bool, problems: &mut Problems) -> ReadyConfig {
    let mut probes = Vec::new();
    let address: Option<IpAddr> = view.text("address").and_then(|text| text.parse().ok());
    if let Some(port) = view.small("tcp") {
        let port = u16::try_from(port).expect("the key table's bounds fit");
        let forwards = || nics.iter().flat_map(|nic| &nic.forwards);
        let forward = forwards().find(|forward| forward.guest_port == port && forward.proto == ForwardProto::Tcp);
        match (address, forward) {
            (Some(address), _) => probes.push(ReadyProbe::Tcp(SocketAddr::new(address, port))),
            (None, Some(forward)) => probes.push(ReadyProbe::Tcp(forward.reachable())),
            (None, None) => {
                let message = format!("`ready.tcp` is {port}, and no forward leads to port {port} of the guest");
                let hint = format!(
                    "add a forward: `[[nics.forwards]]` with `host_port = ...` and `guest_port = {port}`; or set `ready.address`"
                );
                problems.push(Diagnostic::at(view.location_of("tcp"), message).hint(hint));
            }
        }
    } else if address.is_some() {
        let message = "`ready.address` does nothing without `ready.tcp`";
        problems.push(Diagnostic::at(view.location_of("address"), message));
    }
    if let Some(text) = view.text("console") {
        if text.is_empty() || text.len() > 1024 {
            problems.push(Diagnostic::at(view.location_of("console"), "`ready.console` is empty or longer than 1024 bytes"));
        }
        probes.push(ReadyProbe::Console(text));
    }
    if view.node("exec").is_some() {
        probes.push(ReadyProbe::Exec(command(view, "exec", problems)));
    }
    if view.flag("agent") {
        if !agent {
            let message = "`ready.agent` waits for an agent, and the guest has no port for one";
            problems.push(Diagnostic::at(view.location_of("agent"), message).hint("add `agent = true` at the top of the file"));
        }
        probes.push(ReadyProbe::Agent);
    }
    ReadyConfig { probes, timeout: view.duration("timeout") }
}

/// Returns a command. A program with a slash is a path relative to its file, another is searched in `PATH`.
fn command(view: &TableReader<'_>, leaf: &str, problems: &mut Problems) -> Vec<String> {
    let mut words = Vec::new();
    for (at, (text, node)) in view.text_nodes(leaf).into_iter().enumerate() {
        if text.contains('\0') {
            problems.push(Diagnostic::at(&node.location, "a word of a command has no NUL"));
        }
        words.push(match at == 0 && text.contains('/') {
            true => view.absolute(text, node).to_string_lossy().into_owned(),
            false => text.to_owned(),
        });
    }
    if words.first().is_none_or(String::is_empty) {
        let location: &Location = view.location_of(leaf);
        problems.push(
            Diagnostic::at(location, format!("`{leaf}` names no program")).hint("like `[\"/usr/bin/logger\", \"started\"]`"),
        );
    }
    words
}

fn hooks(view: &TableReader<'_>, problems: &mut Problems) -> Vec<HookConfig> {
    let mut hooks: Vec<HookConfig> = Vec::new();
    for entry in view.entries("hooks") {
        if entry.node("event").is_none() {
            let hint = "add `event = \"...\"`: pre-start, post-start, ready, pre-stop, post-stop, crash, failed, post-create or pre-destroy";
            problems.push(Diagnostic::at(entry.location, "a hook has no `event`").hint(hint));
            continue;
        }
        let event: HookEvent = entry.choice("event");
        let id = entry.text("id").unwrap_or_else(|| {
            let same = hooks.iter().filter(|hook| hook.event == event).count();
            if same == 0 { event.as_str().into() } else { format!("{}-{}", event.as_str(), same + 1) }
        });
        if hooks.iter().any(|hook| hook.id == id) {
            problems.push(Diagnostic::at(entry.location_of("id"), format!("id `{id}` is used twice in `hooks`")));
        }
        let on_failure = entry.choice("on_failure");
        if on_failure == HookFailure::Fail && !event.as_str().starts_with("pre-") {
            let message = format!("a hook at `{}` comes too late to stop anything", event.as_str());
            let hint = "`on_failure = \"fail\"` goes with pre-start, pre-stop and pre-destroy";
            problems.push(Diagnostic::at(entry.location_of("on_failure"), message).hint(hint));
        }
        let timeout = entry.duration("timeout");
        if timeout.is_zero() {
            problems.push(Diagnostic::at(entry.location_of("timeout"), format!("hook `{id}` has no time to run")));
        }
        let command = command(&entry, "command", problems);
        hooks.push(HookConfig { id, event, command, timeout, on_failure });
    }
    hooks
}
