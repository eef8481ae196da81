//! Tests of the whole key table: a key that `check` accepts for an engine must reach, and change, a machine specification
//! that the embedded engine's assembly accepts, or a command line or the rest of a boot's plan of bhyve(8).
//!
//! A context is a guest file in which some keys have an effect: a disk of one device and back end, a loader. Each key is
//! tried in the contexts that are about it, with values of its kind. Where `check` refuses it, this test has nothing to
//! say; but each key must be accepted in some context, or its value here is wrong. Where `check` accepts it, it must change
//! the configuration, and that must change the machine, unless the key is about the guest's life.

use std::collections::BTreeSet;
use std::net::TcpListener;

use vmctl::testing::choices::{Choices, DiskBackend, DiskDevice, EngineKind, GrubSystem, HookEvent, NicBackend, NicDevice};
use vmctl::testing::config::check::EMBEDDED_SLOTS;
use vmctl::testing::config::key::{Key, Kind};
use vmctl::testing::config::keys::GUEST_KEYS;
use vmctl::testing::config::{
    DatastoreConfig, GuestConfig, GuestRequest, HostConfig, HostPaths, SwitchConfig, SwitchKind, load_guest,
};
use vmctl::testing::guest::engine::bhyve::{argv, boot_planner};
use vmctl::testing::guest::engine::{BootSetup, resolve};
use vmctl::testing::guest::state::GuestState;
use vmctl::testing::guest::store::{GuestDir, Store};
use vmctl::testing::guest::switch::taps;
use vmctl::testing::host::bhyve::HostFeatures;
use vmctl::testing::machine::assembly::assembles;
use vmctl::testing::machine::spec::{DEVICE_SLOTS, VmmSpec};

/// Keys that have an effect only while the guest file is read: templates, variables, and those that merge entries.
const READING: &[&str] = &["name", "template", "extends", "include", "unset", "index", "vars"];

/// Keys that affect the guest's life and not its machine: the store, the supervisor, the creation of disks.
const LIFE: &[&str] = &[
    "description",
    "owner",
    "tags",
    "protected",
    "restart",
    "stop_timeout",
    "autostart",
    "ready",
    "hooks",
    "cloud-init",
    "console.log_size",
    "console.log_files",
    "console.scrollback",
    "memory.overcommit",
    "disks.size",
    "disks.source",
    "disks.checksum",
    "disks.format",
    "disks.properties",
    "disks.thin",
];

/// Keys that change nothing in a context with this line, and the reason why they are still accepted.
const ANYWAY: &[(&str, &str, &str)] = &[
    ("disks.discard", "disks.d.device=\"ahci-cd\"", "a CD is never discarded"),
    ("nics", "nics.n.backend=\"none\"", "an interface whose link is down keeps its settings for when it is connected again"),
];

/// Keys that no context here can have, with the reason.
const UNTRIED: &[(EngineKind, &str, &str)] =
    &[(EngineKind::Bhyve, "uefi.csm", "its firmware is a FreeBSD package, which must be installed on the host")];

/// Returns whether a key only names or removes an entry.
fn joins(key: &Key) -> bool {
    key.path.ends_with(".id") || key.path.ends_with(".remove")
}

fn is_below(path: &str, tables: &[&str]) -> bool {
    tables.iter().any(|table| path == *table || path.strip_prefix(table).is_some_and(|rest| rest.starts_with('.')))
}

/// A guest file in which some keys have an effect.
struct Context {
    name: String,
    engine: EngineKind,
    sets: Vec<String>,
    /// Keys to try in it: these, and those below these tables.
    about: Vec<&'static str>,
}

struct World {
    dir: tempfile::TempDir,
    host: HostConfig,
    guest: GuestDir,
    features: HostFeatures,
    switches: Vec<SwitchConfig>,
    accepted: BTreeSet<(&'static str, String)>,
    wrong: Vec<String>,
    /// A port without a listener.
    port: u16,
}

impl World {
    fn new() -> World {
        let dir = tempfile::tempdir().expect("a directory");
        let at = |name: &str| dir.path().join(name);
        let paths =
            HostPaths { config_file: at("vmctl.toml"), datastore: at("store"), cache_dir: at("cache"), runtime_dir: at("run") };
        let host = HostConfig::of(&paths, EngineKind::Embedded);
        let guest = Store::new(&DatastoreConfig { id: "default".into(), path: at("store") }, &at("run")).directory_of("g");
        std::fs::create_dir_all(guest.disks_dir()).expect("a directory");
        std::fs::write(at("kernel"), multiboot_kernel()).expect("writes");
        std::fs::write(at("file"), vec![0; 1 << 20]).expect("writes");
        std::fs::write(at("password"), "secret\n").expect("writes");
        let switch = |id: &str, kind| SwitchConfig {
            id: id.into(),
            kind,
            uplinks: Vec::new(),
            vlan: None,
            addresses: Vec::new(),
            mtu: None,
            private: false,
            nat: None,
            dhcp: None,
            fleet: None,
        };
        let node = |id: &str| SwitchKind::Netgraph { node: id.into(), ours: true };
        let switches = vec![
            switch("bridge", SwitchKind::Bridge),
            switch("bridge2", SwitchKind::Bridge),
            switch("vale", SwitchKind::Vale),
            switch("vale2", SwitchKind::Vale),
            switch("netgraph", node("n")),
            switch("netgraph2", node("n2")),
        ];
        let features = HostFeatures::of_release("current").expect("a known release");
        let (accepted, wrong, port) = (BTreeSet::new(), Vec::new(), free_port());
        World { dir, host, guest, features, switches, accepted, wrong, port }
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    /// Returns the configuration of a guest file, or an error if `check` refuses it.
    fn config(&self, sets: &[String]) -> Result<GuestConfig, String> {
        let (file, datastore) = (self.dir.path().join("g.toml"), self.dir.path().join("store"));
        let request =
            GuestRequest { file: &file, text: Some(""), name: Some("g"), sets, host: &self.host, datastore: &datastore };
        load_guest(&request).map(|loaded| loaded.config).map_err(|problems| problems.to_string())
    }

    /// Returns the next boot as text. This must not fail, since the guest file was accepted.
    fn machine(&self, config: &GuestConfig) -> Result<String, String> {
        let mut state = GuestState::new("g");
        state.uuid = "1b4e28ba-2fa1-4d39-883f-0016d3cca427".into();
        state.assign(config).map_err(|error| error.chain())?;
        match config.engine {
            EngineKind::Embedded => {
                let spec = resolve(&self.guest, config, &state).map_err(|error| error.chain())?;
                self.assembles(&spec)?;
                // The supervisor opens the taps, which are no part of the specification.
                let taps = taps::plan(config, &self.switches).map_err(|error| error.chain())?;
                let text = |lines: serde_json::Result<String>| lines.expect("plain fields");
                Ok(text(serde_json::to_string(&spec)) + &text(serde_json::to_string(&taps)))
            }
            EngineKind::Bhyve => {
                let setup = BootSetup { guest: &self.guest, config, state: &state, switches: &self.switches, install: None };
                let plan = boot_planner::plan(setup, &self.features).map_err(|error| error.chain())?;
                let resolved = argv::Resolved::defaults(config, self.guest.path());
                let inputs = argv::Inputs { config, state: &state, features: &self.features, resolved: &resolved };
                let lines = argv::build(inputs).map_err(|error| error.chain())?;
                let text = |lines: serde_json::Result<String>| lines.expect("plain fields");
                Ok(text(serde_json::to_string(&lines)) + &text(serde_json::to_string(&plan)))
            }
        }
    }

    fn assembles(&self, spec: &VmmSpec) -> Result<(), String> {
        for disk in spec.disks.iter().filter(|disk| !disk.path.exists()) {
            std::fs::File::create(&disk.path).and_then(|file| file.set_len(1 << 20)).map_err(|error| error.to_string())?;
        }
        // A process that another test starts at this moment has this one's descriptors until its exec, and so holds the locks
        // of disks that were closed meanwhile.
        let taken = |result: &Result<(), String>| result.as_ref().is_err_and(|why| why.contains("is in use by another guest"));
        let mut result = assembles(spec);
        for _ in 0..500 {
            if !taken(&result) {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
            result = assembles(spec);
        }
        result
    }

    /// Tries a context's keys one by one.
    fn try_keys(&mut self, context: &Context) {
        let Ok(base) = self.config(&context.sets) else { return };
        let before = match self.machine(&base) {
            Ok(before) => before,
            Err(error) => return self.wrong.push(format!("{}: accepted, and then: {error}", context.name)),
        };
        let set: BTreeSet<&str> = context.sets.iter().filter_map(|set| set.split('=').next()).collect();
        // The keys of the context itself are accepted.
        for key in GUEST_KEYS.iter().filter(|key| set.contains(named(key).as_str())) {
            self.accept(context.engine, key.path, context.sets.iter().find(|set| set.starts_with(&format!("{}=", named(key)))));
        }
        for key in GUEST_KEYS.iter().filter(|key| is_below(key.path, &context.about) && key.support.on(Some(context.engine))) {
            if set.contains(named(key).as_str()) || joins(key) {
                continue;
            }
            for value in self.values(key, context) {
                let mut sets = context.sets.clone();
                sets.push(format!("{}={value}", named(key)));
                let Ok(config) = self.config(&sets) else { continue };
                self.accept(context.engine, key.path, sets.last());
                // A flag without a default is off.
                let default = key.default_on(context.engine).or_else(|| (key.kind == Kind::Flag).then_some("false"));
                let is_default = default == Some(value.as_str());
                if let Err(problem) = self.goes_somewhere(key, context, (&base, &before), &config, is_default) {
                    self.wrong.push(format!("{}: `{}`: {problem}", context.name, sets.last().expect("just pushed")));
                }
            }
        }
    }

    fn goes_somewhere(
        &self,
        key: &Key,
        context: &Context,
        (base, before): (&GuestConfig, &str),
        config: &GuestConfig,
        is_default: bool,
    ) -> Result<(), String> {
        // A template may name a switch of the user.
        if is_below(key.path, READING) {
            return Ok(());
        }
        let after = self.machine(config).map_err(|error| format!("accepted, and then: {error}"))?;
        let anyway =
            |(keys, line, _): &(&str, &str, &str)| is_below(key.path, &[keys]) && context.sets.iter().any(|set| set == line);
        if is_default || ANYWAY.iter().any(anyway) {
            return Ok(());
        }
        if base == config {
            return Err("accepted, and does not change the configuration".into());
        }
        match before == after && !is_below(key.path, LIFE) {
            true => Err("accepted, and does not change the machine".into()),
            false => Ok(()),
        }
    }

    fn accept(&mut self, engine: EngineKind, path: &str, set: Option<&String>) {
        let value = set.and_then(|set| set.split_once('=')).map(|(_, value)| value.trim_matches('"')).unwrap_or_default();
        self.accepted.insert((engine.as_str(), path.to_owned()));
        self.accepted.insert((engine.as_str(), format!("{path} = {value}")));
    }

    /// Returns values of a key, as TOML.
    fn values(&self, key: &Key, context: &Context) -> Vec<String> {
        let on = |backend: NicBackend| context.sets.contains(&format!("nics.n.backend=\"{}\"", backend.as_str()));
        let texts: &[&str] = match key.path {
            "cpus.count" | "cpus.sockets" | "cpus.cores" | "cpus.threads" => &["2"],
            "cpus.pin" => &["[\"0:0\"]"],
            "memory.size" => &["\"32M\""],
            "numa.policy" => &["\"prefer:0\""],
            "grub.partition" => &["\"gpt2\"", "\"none\""],
            "grub.commands" => &["[\"linux /k\"]"],
            "boot.order" => &["[\"d2\", \"d\"]"],
            "disks.size" => &["\"2M\""],
            "disks.path" => return vec![format!("\"{}\"", self.path("other"))],
            "disks.source" => &["\"debian-13\""],
            "disks.checksum" => return vec![format!("\"sha256:{}\"", "0".repeat(64))],
            "disks.properties" => &["{ volblocksize = \"16K\" }"],
            "disks.sector_size" => &["\"4096\"", "\"512/4096\""],
            "disks.options" => &["[\"maxq=8\"]"],
            "nics.options" => &["[\"mtu=9000\"]"],
            // A switch of another kind is refused only at boot, since it is in another file, the host file.
            "nics.switch" if on(NicBackend::Vale) => &["\"vale2\""],
            "nics.switch" if on(NicBackend::Netgraph) => &["\"netgraph2\""],
            "nics.switch" => &["\"bridge2\""],
            "nics.dns" => &["[\"127.0.0.1\"]"],
            "nics.host_ports" => &["[\"3128\"]"],
            "nics.forwards.host_port" => return vec![free_port().to_string()],
            "nics.forwards.guest_port" => &["23"],
            "nics.forwards.host_addr" => &["\"0.0.0.0\""],
            "console.com1" | "console.com2" | "console.com3" | "console.com4" => {
                &["\"console\"", "\"none\"", "\"/dev/nmdm-x.1A\"", "\"127.0.0.1:4001\""]
            }
            "graphics.resolution" => &["\"800x600\""],
            "graphics.password_file" => return vec![format!("\"{}\"", self.path("password"))],
            "graphics.listen" => &["\"127.0.0.2\""],
            "sound.play" | "sound.record" => &["\"/dev/dsp7\""],
            "tpm.version" => &["\"2.0\""],
            "passthru.device" => &["\"6/0/0\"", "\"ppt1\""],
            "ready.tcp" => &["22"],
            "ready.address" => &["\"192.0.2.1\""],
            "ready.exec" | "hooks.command" => &["[\"/bin/true\"]"],
            "cloud-init.addresses" => &["[\"192.0.2.10/24\"]"],
            "cloud-init.gateways" | "cloud-init.nameservers" => &["[\"192.0.2.1\"]"],
            "cloud-init.ssh_keys" => &["[\"key.pub\"]"],
            "template" => &["\"debian\"", "\"debian-uefi\""],
            "extends" => &["[\"debian\"]", "[\"debian-uefi\"]"],
            "include" | "unset" => &["[]"],
            "jail.root" => return vec![format!("\"{}\"", self.dir.path().display())],
            "bhyve.args" => &["[\"-x\"]"],
            "bhyve.options" => &["{ \"x86.verbosemsr\" = true }"],
            "bhyve.slots" => &["{ lpc = \"30\" }"],
            "bhyve.fw_cfg" => &["{ \"opt/org.example/key\" = \"text\" }"],
            "bhyve.fw_cfg_files" => &["{ \"opt/org.example/key\" = \"/etc/hostid\" }"],
            "limits.nice" => &["5"],
            _ => &[],
        };
        if !texts.is_empty() {
            return texts.iter().map(|text| (*text).to_owned()).collect();
        }
        match key.kind {
            Kind::Table { .. } | Kind::Entries => Vec::new(),
            Kind::Flag => vec!["true".into(), "false".into()],
            Kind::Integer { min, max } => vec![(min + 1).min(max).to_string()],
            Kind::Size => vec!["\"64K\"".into()],
            Kind::Duration => vec!["\"7s\"".into()],
            Kind::OneOf(choices) => choices.iter().map(|choice| format!("\"{}\"", choice.value)).collect(),
            Kind::Path => vec![format!("\"{}\"", self.path("file"))],
            Kind::Text | Kind::Name => vec!["\"other\"".into()],
            Kind::Texts { .. } | Kind::Paths => vec!["[\"other\"]".into()],
            Kind::Map => vec!["{ a = \"b\" }".into()],
            Kind::Mac => vec!["\"02:00:00:12:34:56\"".into()],
            Kind::Uuid => vec!["\"6f1c5a9e-0d2b-4c3f-9e57-1b2a3c4d5e6f\"".into()],
            Kind::Address => vec!["\"127.0.0.1\"".into()],
            Kind::Network => vec!["\"10.9.0.0/24\"".into()],
            Kind::Slot => vec!["\"9\"".into()],
        }
    }
}

/// Returns the name of a key for `--set`. The ids of entries are the first letter of their class.
fn named(key: &Key) -> String {
    let (mut name, mut path) = (String::new(), String::new());
    let parts: Vec<&str> = key.path.split('.').collect();
    for (at, part) in parts.iter().enumerate() {
        let dot = if at > 0 { "." } else { "" };
        name = format!("{name}{dot}{part}");
        path = format!("{path}{dot}{part}");
        if at + 1 < parts.len() && GUEST_KEYS.find(&path).is_some_and(|key| key.kind == Kind::Entries) {
            name = format!("{name}.{}", &part[..1]);
        }
    }
    name
}

/// Returns a port of 127.0.0.1 without a listener.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a free port").port()
}

/// Returns a Multiboot kernel that does nothing: a header with load addresses (Multiboot Specification 0.6.96, section
/// 3.1), and HLT.
fn multiboot_kernel() -> Vec<u8> {
    const MAGIC: u32 = 0x1bad_b002;
    const HAS_ADDRESSES: u32 = 1 << 16;
    let at = 0x10_0000u32;
    let header = [MAGIC, HAS_ADDRESSES, 0u32.wrapping_sub(MAGIC + HAS_ADDRESSES), at, at, 0, 0, at + 32];
    let mut image: Vec<u8> = header.iter().flat_map(|word| word.to_le_bytes()).collect();
    image.resize(4096, 0xf4);
    image
}

fn context(name: impl Into<String>, engine: EngineKind, sets: &[&str], about: &[&'static str]) -> Context {
    let mut all = vec![format!("engine=\"{}\"", engine.as_str())];
    all.extend(sets.iter().map(|set| (*set).to_owned()));
    Context { name: format!("{}, {}", engine.as_str(), name.into()), engine, sets: all, about: about.to_vec() }
}

/// Returns the minimal settings of a guest that boots.
fn boots(engine: EngineKind, world: &World) -> Vec<String> {
    match engine {
        EngineKind::Embedded => vec!["loader=\"grub\"".into()],
        EngineKind::Bhyve => vec!["loader=\"uefi\"".into(), format!("uefi.firmware=\"{}\"", world.path("file"))],
    }
}

/// Keys of the machine that are in no array of tables, and of the guest's life.
const MACHINE: &[&str] = &[
    "name",
    "description",
    "owner",
    "tags",
    "protected",
    "uuid",
    "template",
    "extends",
    "include",
    "unset",
    "index",
    "vars",
    "engine",
    "backend",
    "clock",
    "cpus",
    "memory",
    "console",
    "agent",
    "restart",
    "stop_timeout",
    "autostart",
    "rng",
    "smbios",
    "limits",
    "bhyve",
    "debug",
];

fn contexts(world: &World) -> Vec<Context> {
    let mut all = Vec::new();
    for engine in EngineKind::ALL.iter().copied() {
        let boots = boots(engine, world);
        let mut add = |name: &str, sets: &[String], about: &[&'static str]| {
            let sets: Vec<&str> = boots.iter().chain(sets).map(String::as_str).collect();
            all.push(context(name, engine, &sets, about));
        };
        let forward = [format!("nics.n.forwards.f.host_port={}", world.port), "nics.n.forwards.f.guest_port=22".into()];
        add("a machine", &[], MACHINE);
        add("a forward", &forward, &["ready"]);
        add("a probe", &[&forward[..], &["ready.tcp=22".into()]].concat(), &["ready"]);
        let plain: &[(&str, &[&str], &[&'static str])] = &[
            ("a seed", &["cloud-init.hostname=\"g\"", "nics.n.mtu=1400"], &["cloud-init"]),
            ("a seed of files", &["cloud-init={}"], &["cloud-init"]),
            ("a seed with an address", &["cloud-init.addresses=[\"192.0.2.10/24\"]", "nics.n.mtu=1400"], &["cloud-init"]),
            ("a sound card", &["sound={}"], &["sound"]),
            ("a TPM", &["tpm={}"], &["tpm"]),
            ("a TPM of the host", &["tpm.type=\"passthru\""], &["tpm"]),
            ("a screen", &["graphics={}"], &["graphics"]),
            ("a screen at a socket", &["graphics.socket=true"], &["graphics"]),
            ("a debugger", &["debug.gdb.port=1234"], &["debug.gdb"]),
            ("a channel", &["channels.c.id=\"c\""], &["channels"]),
            ("an input", &["inputs.i.path=\"/dev/input/event0\""], &["inputs"]),
            ("a share", &["shares.s.path=\"/srv\""], &["shares"]),
            ("a device of the host", &["passthru.p.device=\"5/0/0\""], &["passthru"]),
            ("a domain", &["numa.n.size=\"512M\"", "numa.n.cpus=\"0\""], &["numa"]),
            ("QEMU's firmware", &["bhyve.fwcfg=\"qemu\"", "disks.d.size=\"1M\"", "disks.d2.size=\"1M\""], &["bhyve", "boot"]),
            ("a jail", &["jail.name=\"vms\"", "jail.root=\"/\""], &["jail"]),
        ];
        for (name, sets, about) in plain {
            let sets: Vec<String> = sets.iter().map(|set| (*set).to_owned()).collect();
            add(name, &sets, about);
        }
        for event in HookEvent::ALL {
            let event = format!("hooks.h.event=\"{}\"", event.as_str());
            add("a hook", &[event, "hooks.h.command=[\"/bin/true\"]".into()], &["hooks"]);
        }
        let root = format!("jail.root=\"{}\"", world.dir.path().display());
        add("a jail with its root", &["jail.name=\"vms\"".into(), root], &[]);
        disks(world, &mut add);
        nics(&forward, &mut add);
    }
    loaders(world, &mut all);
    all
}

/// Adds every device with every back end, as far as `check` allows it.
fn disks(world: &World, add: &mut impl FnMut(&str, &[String], &[&'static str])) {
    for device in DiskDevice::ALL {
        for backend in DiskBackend::ALL {
            let is = [format!("disks.d.device=\"{}\"", device.as_str()), format!("disks.d.backend=\"{}\"", backend.as_str())];
            let file = format!("disks.d.path=\"{}\"", world.path("file"));
            let of: Vec<Vec<String>> = match backend {
                DiskBackend::Sparse => {
                    vec![vec!["disks.d.size=\"1M\"".into()], vec!["disks.d.source=\"https://example.org/a\"".into()]]
                }
                DiskBackend::Zvol => vec![vec!["disks.d.path=\"/dev/zvol/tank/g-d\"".into(), "disks.d.size=\"1M\"".into()]],
                DiskBackend::Iscsi => vec![vec!["disks.d.target=\"iqn.x:d\"".into(), "disks.d.portal=\"san\"".into()]],
                DiskBackend::File => vec![vec![file.clone()], vec![file, "disks.d.controller=\"c\"".into()]],
            };
            for more in of {
                let sets = [&is[..], &more].concat();
                add(&sets.join(", "), &sets, &["disks"]);
            }
        }
    }
}

/// Adds every device with every back end and connection, as far as `check` allows it.
fn nics(forward: &[String], add: &mut impl FnMut(&str, &[String], &[&'static str])) {
    let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<String>>();
    let plugs = [
        Vec::new(),
        texts(&["nics.n.switch=\"bridge\""]),
        texts(&["nics.n.switch=\"vale\""]),
        texts(&["nics.n.switch=\"netgraph\""]),
        texts(&["nics.n.interface=\"x7\""]),
        texts(&["nics.n.path=\"b0:\"", "nics.n.peerhook=\"link2\""]),
        forward.to_vec(),
    ];
    for device in NicDevice::ALL {
        for backend in NicBackend::ALL {
            let is = [format!("nics.n.device=\"{}\"", device.as_str()), format!("nics.n.backend=\"{}\"", backend.as_str())];
            for plug in &plugs {
                // A switch of another kind is refused only at boot, since it is in another file, the host file.
                let on = |kind: &str| plug.contains(&format!("nics.n.switch=\"{kind}\""));
                let fits = match backend {
                    NicBackend::Tap | NicBackend::Vmnet => !on("vale") && !on("netgraph"),
                    NicBackend::Vale => !on("bridge") && !on("netgraph"),
                    NicBackend::Netgraph => !on("bridge") && !on("vale"),
                    _ => true,
                };
                if fits {
                    let sets = [&is[..], plug].concat();
                    add(&sets.join(", "), &sets, &["nics"]);
                }
            }
        }
    }
}

fn loaders(world: &World, all: &mut Vec<Context>) {
    use EngineKind::{Bhyve, Embedded};
    let (kernel, file) = (format!("kernel.image=\"{}\"", world.path("kernel")), world.path("file"));
    let module = format!("kernel.modules.m.path=\"{file}\"");
    all.push(context("a kernel", Embedded, &["loader=\"kernel\"", &kernel, &module], &["kernel"]));
    let disks = ["disks.d.size=\"1M\"", "disks.d2.size=\"1M\""];
    for engine in [Embedded, Bhyve] {
        for system in GrubSystem::ALL {
            let system = format!("grub.system=\"{}\"", system.as_str());
            let sets = ["loader=\"grub\"", &system, disks[0], disks[1]];
            all.push(context(&system, engine, &sets, &["grub", "boot", "memory"]));
            let sets = ["loader=\"grub\"", &system, "grub.commands=[\"boot\"]", disks[0], disks[1]];
            all.push(context(format!("{system} with commands"), engine, &sets, &["grub", "boot"]));
        }
    }
    let sets = ["loader=\"bhyveload\"", disks[0], disks[1]];
    all.push(context("bhyveload", Bhyve, &sets, &["bhyveload", "boot", "memory"]));
    let firmware = format!("uefi.firmware=\"{file}\"");
    all.push(context("firmware", Bhyve, &["loader=\"uefi\"", &firmware], &["uefi"]));
    let vars = format!("uefi.vars=\"{file}\"");
    all.push(context("firmware with variables", Bhyve, &["loader=\"uefi\"", &firmware, &vars], &["uefi"]));
}

#[test]
fn what_check_accepts_for_an_engine_reaches_the_machine() {
    let mut world = World::new();
    for context in contexts(&world) {
        world.try_keys(&context);
    }
    for engine in EngineKind::ALL.iter().copied() {
        for key in GUEST_KEYS.iter().filter(|key| key.support.on(Some(engine))) {
            let untried = UNTRIED.iter().any(|(of, path, _)| *of == engine && *path == key.path);
            if untried || joins(key) || is_below(key.path, READING) || matches!(key.kind, Kind::Table { .. } | Kind::Entries) {
                continue;
            }
            if !world.accepted.contains(&(engine.as_str(), key.path.to_owned())) {
                world.wrong.push(format!("{}: no value of `{}` is accepted in any context here", engine.as_str(), key.path));
            }
            let Kind::OneOf(choices) = key.kind else { continue };
            for choice in choices.iter().filter(|choice| choice.support.on(Some(engine))) {
                if key.path != "engine"
                    && !world.accepted.contains(&(engine.as_str(), format!("{} = {}", key.path, choice.value)))
                {
                    world.wrong.push(format!(
                        "{}: `{} = \"{}\"` is accepted nowhere here",
                        engine.as_str(),
                        key.path,
                        choice.value
                    ));
                }
            }
        }
    }
    assert!(world.wrong.is_empty(), "{}\n{} in all", world.wrong.join("\n"), world.wrong.len());
}

#[test]
fn check_counts_the_slots_that_the_embedded_engine_has() {
    assert_eq!(EMBEDDED_SLOTS, DEVICE_SLOTS.count());
    let world = World::new();
    let guest = |disks: usize, nics: usize| {
        let disks = (0..disks).map(|at| format!("disks.d{at}.size=\"1M\""));
        let nics = (0..nics).map(|at| format!("nics.n{at}.backend=\"none\""));
        world.config(&["loader=\"grub\"".to_owned()].into_iter().chain(disks).chain(nics).collect::<Vec<_>>())
    };
    world.machine(&guest(20, 7).expect("they fit")).expect("they fit");
    assert!(guest(20, 8).expect_err("one too many").contains("28 disks and interfaces are more than the 27 that fit"));
}
