//! The one table of keys. The reader's types, ranges, defaults and did-you-mean, the refusal of what this build does
//! not act on, `vmctl schema`, `show --explain` and the manual page's key list all come from it.

/// What a key's value may be. Every scalar may also be written as an expression in a string.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A table. With `short`, a bare value stands for a table with that one key.
    Table {
        /// The key that a bare value sets.
        short: Option<&'static str>,
    },
    /// An array of tables, merged by their `id`.
    Entries,
    /// Any text.
    Text,
    /// The name of a guest, disk, interface, template...
    Name,
    /// A path; a relative one is relative to the file that it stands in.
    Path,
    /// true or false.
    Flag,
    /// A whole number within these bounds.
    Integer {
        /// Least.
        min: i64,
        /// Most.
        max: i64,
    },
    /// A number of bytes with its unit.
    Size,
    /// A duration with its unit.
    Duration,
    /// One of these.
    OneOf(&'static [Choice]),
    /// An array of texts. With `one`, a bare text stands for an array of it.
    Texts {
        /// Whether a bare text is allowed.
        one: bool,
    },
    /// An array of paths.
    Paths,
    /// A table of names and plain values that are the user's own.
    Map,
    /// A MAC address.
    Mac,
    /// A UUID.
    Uuid,
    /// An IP address.
    Address,
    /// An IPv4 network with its prefix length.
    Network,
}

/// One value of a [`Kind::OneOf`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Choice {
    /// As written.
    pub value: &'static str,
    /// Whether this build acts on it.
    pub support: Support,
    /// What it means.
    pub doc: &'static str,
}

/// Whether this build acts on a key or a value. What it does not act on is refused, never ignored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Support {
    /// Yes.
    Now,
    /// Only FreeBSD's bhyve can; the engine comes in a later version.
    Bhyve,
    /// A later version will; the text says what to do until then.
    Later(&'static str),
}

/// One key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Key {
    /// Names joined by dots; the entries of an array of tables are not counted: `disks.size`.
    pub path: &'static str,
    /// What it may be.
    pub kind: Kind,
    /// What holds without it, as it would be written; `None` when nothing does.
    pub default: Option<&'static str>,
    /// Whether this build acts on it.
    pub support: Support,
    /// One or two sentences.
    pub doc: &'static str,
}

use Kind::{
    Address, Duration, Entries, Flag, Integer, Mac, Map, Name, Network, OneOf, Path, Paths, Size, Table, Text, Texts, Uuid,
};
use Support::{Bhyve, Later, Now};

const TABLE: Kind = Table { short: None };
const PORT: Kind = Integer { min: 1, max: 65535 };
const PERCENT: Kind = Integer { min: 1, max: 1_000_000 };
const RATE: Kind = Integer { min: 1, max: 1_000_000_000 };

const fn short(key: &'static str) -> Kind {
    Table { short: Some(key) }
}
const fn now(value: &'static str, doc: &'static str) -> Choice {
    Choice { value, support: Now, doc }
}
const fn bhyve(value: &'static str, doc: &'static str) -> Choice {
    Choice { value, support: Bhyve, doc }
}
const fn later(value: &'static str, until: &'static str, doc: &'static str) -> Choice {
    Choice { value, support: Later(until), doc }
}
const fn key(path: &'static str, kind: Kind, support: Support, doc: &'static str) -> Key {
    Key { path, kind, default: None, support, doc }
}
const fn with(path: &'static str, kind: Kind, default: &'static str, support: Support, doc: &'static str) -> Key {
    Key { path, kind, default: Some(default), support, doc }
}

const TAP_LATER: &str = "until then `backend = \"user\"` with `[[nics.forwards]]`";
const DISK_LATER: &str = "until then `device = \"virtio-blk\"`";
const LOADER_LATER: &str = "until then `loader = \"kernel\"` with `kernel.image`";
const CATALOGUE_LATER: &str = "until then name kernels and images of this host in guest files";
const NOTHING: &str = "leave it out until then";

const ENGINES: Kind = OneOf(&[
    now("embedded", "The hypervisor in this program, on any machine."),
    later("bhyve", "until then `engine = \"embedded\"`", "bhyve(8), on FreeBSD."),
]);
const BACKENDS: Kind = OneOf(&[
    now("auto", "The fastest that really works on this machine."),
    later("kvm", "until then `backend = \"soft\"`", "KVM, on Linux."),
    later("vmm", "until then `backend = \"soft\"`", "vmm(4), on FreeBSD."),
    now("soft", "The software CPU, on any machine."),
]);
const LOADERS: Kind = OneOf(&[
    now(
        "kernel",
        "A kernel from the host, entered directly: a Linux bzImage, an ELF file with a PVH note, or a Multiboot 1 image.",
    ),
    later("grub", LOADER_LATER, "The guest's own GRUB configuration."),
    later("uefi", LOADER_LATER, "UEFI firmware."),
    later("bhyveload", LOADER_LATER, "FreeBSD's loader, for FreeBSD guests."),
]);
const DISK_BACKENDS: Kind = OneOf(&[
    now("sparse", "A sparse raw file that vmctl makes and grows; it takes up what was written."),
    later("zvol", "until then `backend = \"sparse\"`", "A ZFS volume that vmctl makes."),
    now("file", "A raw file or device that is there already; vmctl never creates, grows or deletes it."),
]);
const DISK_DEVICES: Kind = OneOf(&[
    now("virtio-blk", "A virtio block device."),
    later("ahci-hd", DISK_LATER, "A SATA disk."),
    later("ahci-cd", DISK_LATER, "A SATA CD drive."),
    later("nvme", DISK_LATER, "An NVMe disk; the best choice for Windows."),
    bhyve("virtio-scsi", "A virtio SCSI controller on a CAM target layer device."),
]);
const DISK_CACHES: Kind = OneOf(&[
    now("writeback", "The host's page cache; the guest's flush waits for the medium."),
    now("writethrough", "Every write waits for the medium."),
    now("unsafe", "The guest's flush waits for nothing: a power cut loses data."),
]);
const NIC_BACKENDS: Kind = OneOf(&[
    now("user", "A network inside vmctl with DHCP, DNS and NAT; needs no root."),
    later("tap", TAP_LATER, "A tap interface on a switch of the host file."),
    now("none", "Not connected: the link is down. The other keys are kept for when it is connected again."),
]);
const NIC_DEVICES: Kind = OneOf(&[
    now("virtio-net", "A virtio network device."),
    later("e1000", "until then `device = \"virtio-net\"`", "An Intel 82540EM."),
]);
const PROTOS: Kind = OneOf(&[now("tcp", "TCP."), now("udp", "UDP.")]);
const COM1: Kind = OneOf(&[now("console", "The guest's console.")]);
const COM: Kind = OneOf(&[
    now("none", "Not there."),
    later("console", "until then only `com1` leads to a console", "A second console."),
    bhyve("nmdm", "A null-modem device, nmdm(4)."),
    bhyve("tcp", "A TCP port of the host's loopback."),
]);
const ACTIONS: Kind = OneOf(&[now("restart", "Boot again."), now("stop", "Leave it stopped.")]);
const WAITS: Kind = OneOf(&[now("running", "It runs."), now("ready", "Its `[ready]` probes have passed.")]);
const FAILURES: Kind = OneOf(&[
    now("ignore", "It is logged."),
    now("fail", "What the hook came before does not happen; only for the `pre-` events."),
]);
const EVENTS: Kind = OneOf(&[
    now("post-create", "The guest was created."),
    now("pre-start", "Before every boot, also after a reboot."),
    now("post-start", "The guest runs."),
    now("ready", "Its probes have passed."),
    now("pre-stop", "Before `stop` presses the power button."),
    now("post-stop", "It has stopped for good."),
    now("crash", "It crashed; before the policy is applied."),
    now("failed", "The limit of crashes was reached."),
    now("pre-destroy", "Before it is destroyed."),
]);
const CLOCKS: Kind = OneOf(&[
    now("utc", "UTC, as Unix systems expect."),
    later("localtime", "until then `clock = \"utc\"`", "The host's local time, as Windows expects."),
]);

/// The keys of a guest file and of a template.
pub const GUEST_KEYS: &[Key] = &[
    // Who it is.
    key(
        "name",
        Name,
        Now,
        "Name of the guest when it is created from this file and given no other; afterwards the name of its directory counts. Without it, the file's name without `.toml`.",
    ),
    key("description", Text, Now, "For people."),
    key("owner", Text, Now, "The user that, besides root, may stop and restart the running guest and use its console."),
    key("tags", Texts { one: false }, Now, "Words for `--tag`."),
    with("protected", Flag, "false", Now, "Whether `destroy` refuses."),
    key("uuid", Uuid, Now, "UUID that the guest sees. Without it vmctl makes one and keeps it with the guest's state."),
    // Where the rest comes from.
    key("template", Name, Now, "The template that this file starts from: the first of `extends`."),
    key("extends", Texts { one: true }, Now, "Templates that this file starts from, each laid over the ones before it."),
    key("include", Paths, Now, "Files that are laid over the templates and under this file."),
    key(
        "unset",
        Texts { one: false },
        Now,
        "Keys of the templates and included files that are dropped, like `kernel.initrd` or `disks.root.serial`.",
    ),
    with(
        "index",
        Integer { min: 0, max: 1_000_000 },
        "0",
        Now,
        "A number for expressions, to tell guests of one template apart.",
    ),
    key("vars", Map, Now, "Variables for expressions."),
    // What runs it.
    with("engine", ENGINES, "\"embedded\"", Now, "What runs the guest."),
    with("backend", BACKENDS, "\"auto\"", Now, "The virtual CPU of the embedded engine."),
    with("clock", CLOCKS, "\"utc\"", Now, "What the real-time clock shows."),
    key("jail", Name, Bhyve, "The jail that bhyve runs in; it needs `allow.vmm`."),
    key("cpus", short("count"), Now, "Processors. `cpus = 2` stands for `cpus.count = 2`."),
    key("cpus.count", Integer { min: 1, max: 64 }, Now, "How many; without it the product of the other three, or 1."),
    key("cpus.sockets", Integer { min: 1, max: 64 }, Now, "Packages; without it as many as are needed."),
    with("cpus.cores", Integer { min: 1, max: 64 }, "1", Now, "Cores in a package."),
    with("cpus.threads", Integer { min: 1, max: 64 }, "1", Now, "Threads in a core."),
    key(
        "cpus.pin",
        Texts { one: false },
        Later(NOTHING),
        "Which CPUs of the host a virtual CPU may use, like `\"0:4\"` or `\"1:5-6\"`.",
    ),
    key("memory", short("size"), Now, "RAM. `memory = \"1G\"` stands for `memory.size = \"1G\"`."),
    with("memory.size", Size, "\"512M\"", Now, "How much: at least 16M, whole MiB."),
    key("memory.wired", Flag, Bhyve, "Whether the host may not page it out; passthrough needs it."),
    key("numa", Entries, Bhyve, "NUMA domains of the guest, at most 8."),
    key("numa.id", Name, Bhyve, "Its name."),
    key("numa.size", Size, Bhyve, "RAM of the domain."),
    key("numa.cpus", Text, Bhyve, "Its virtual CPUs, like `0-3`."),
    key("numa.policy", Text, Bhyve, "The domain policy of the host, see domainset(9)."),
    // How it boots.
    with("loader", LOADERS, "\"kernel\"", Now, "How the guest boots."),
    key("kernel", TABLE, Now, "For `loader = \"kernel\"`."),
    key("kernel.image", Path, Now, "The kernel. Required with `loader = \"kernel\"`."),
    key("kernel.initrd", Path, Now, "The initial RAM disk, or the module of a Multiboot kernel."),
    with("kernel.cmdline", Text, "\"\"", Now, "The kernel's command line."),
    key("grub", TABLE, Later(LOADER_LATER), "For `loader = \"grub\"`."),
    key(
        "grub.partition",
        Text,
        Later(LOADER_LATER),
        "Where GRUB looks, like `1` or `gpt2`; `none` for a disk without partitions.",
    ),
    key("grub.directory", Text, Later(LOADER_LATER), "Directory of the configuration in the guest."),
    key("grub.file", Text, Later(LOADER_LATER), "Name of the configuration."),
    key("grub.commands", Texts { one: false }, Later(LOADER_LATER), "Commands instead of the guest's own configuration."),
    key("grub.timeout", Duration, Later(LOADER_LATER), "How long the menu waits."),
    key("uefi", TABLE, Later(LOADER_LATER), "For `loader = \"uefi\"`."),
    key("uefi.firmware", Path, Later(LOADER_LATER), "The firmware's code, instead of the packaged one."),
    key("uefi.vars", Path, Later(LOADER_LATER), "The variables that a new guest starts from, instead of the packaged ones."),
    key("uefi.persistent", Flag, Later(LOADER_LATER), "Whether variables outlive a boot."),
    key("uefi.csm", Flag, Bhyve, "Whether the firmware boots as a BIOS does."),
    key("bhyveload", TABLE, Bhyve, "For `loader = \"bhyveload\"`."),
    key("bhyveload.loader", Path, Bhyve, "The loader, instead of /boot/userboot.so."),
    key("bhyveload.env", Map, Bhyve, "Variables of the loader."),
    key("bhyveload.host_dir", Path, Bhyve, "Directory of the host that the loader reads as `host0:`."),
    key("bhyveload.args", Texts { one: false }, Bhyve, "Further arguments of bhyveload(8)."),
    key("bhyveload.timeout", Duration, Bhyve, "How long the menu waits."),
    key("boot", TABLE, Later(LOADER_LATER), "What firmware boots from."),
    key("boot.order", Texts { one: false }, Later(LOADER_LATER), "Ids of disks and interfaces, the first one first."),
    // Disks.
    key("disks", Entries, Now, "Disks, in the order in which the guest sees them."),
    key("disks.id", Name, Now, "Its name. Required."),
    key("disks.remove", Flag, Now, "Drop the disk that a template brought."),
    key(
        "disks.backend",
        DISK_BACKENDS,
        Now,
        "Where its bytes are. Without it `file` when there is a `path` and no `size`, else `sparse`.",
    ),
    key("disks.path", Path, Now, "The file or device. Without it vmctl keeps the file in the guest's directory."),
    key("disks.size", Size, Now, "Size to create, or to grow to. Required unless the backend is `file`."),
    with("disks.device", DISK_DEVICES, "\"virtio-blk\"", Now, "What the guest sees."),
    with("disks.ro", Flag, "false", Now, "Whether writes are refused."),
    with("disks.cache", DISK_CACHES, "\"writeback\"", Now, "What a write waits for."),
    key(
        "disks.serial",
        Text,
        Now,
        "Serial number that the guest sees: at most 20 printable ASCII characters. Without it, the id.",
    ),
    with("disks.discard", Flag, "true", Now, "Whether space that the guest discards is given back to the host."),
    key(
        "disks.source",
        Text,
        Later("until then copy the image yourself and name it with `path`"),
        "Image that the disk is made from.",
    ),
    key("disks.properties", Map, Later("until then set them with zfs(8)"), "Properties of the ZFS volume."),
    key("disks.sector_size", Integer { min: 512, max: 8192 }, Bhyve, "Sector size that the guest sees."),
    key("disks.slot", Text, Bhyve, "PCI address, like `0:4:0`, instead of the one that vmctl chooses once and keeps."),
    key("disks.options", Texts { one: false }, Bhyve, "Further options of bhyve(8) for the device."),
    // Network interfaces.
    key("nics", Entries, Now, "Network interfaces, in the order in which the guest sees them."),
    key("nics.id", Name, Now, "Its name. Required."),
    key("nics.remove", Flag, Now, "Drop the interface that a template brought."),
    with("nics.backend", NIC_BACKENDS, "\"user\"", Now, "What it is connected to."),
    key("nics.switch", Name, Later(TAP_LATER), "The switch, for `tap`."),
    key("nics.mac", Mac, Now, "MAC address. Without it vmctl derives a stable one."),
    with("nics.device", NIC_DEVICES, "\"virtio-net\"", Now, "What the guest sees."),
    with("nics.mtu", Integer { min: 576, max: 9000 }, "1500", Now, "Largest packet that the guest may send."),
    with(
        "nics.network",
        Network,
        "\"10.0.2.0/24\"",
        Now,
        "The network of `user`: its address 2 is the host, 3 the resolver, 15 the guest (4 in a /28). Prefix length 8 to 28.",
    ),
    key("nics.dns", Texts { one: false }, Now, "Name servers that queries are forwarded to, instead of the host's own."),
    with(
        "nics.isolated",
        Flag,
        "false",
        Now,
        "Whether connections from the guest to the world outside are refused; forwards still work.",
    ),
    key("nics.forwards", Entries, Now, "Ports of the host that lead into the guest, with `user`."),
    key("nics.forwards.id", Name, Now, "Its name, so that it can be overridden; a forward without one is added to the others."),
    key("nics.forwards.remove", Flag, Now, "Drop the forward that a template brought."),
    with("nics.forwards.proto", PROTOS, "\"tcp\"", Now, "Protocol."),
    with("nics.forwards.host_addr", Address, "\"127.0.0.1\"", Now, "Address of the host that is listened on."),
    key("nics.forwards.host_port", PORT, Now, "Port of the host. Required."),
    key("nics.forwards.guest_port", PORT, Now, "Port in the guest. Required."),
    key("nics.vlan", Integer { min: 1, max: 4094 }, Later(TAP_LATER), "The VLAN it is in, on a VLAN-aware switch."),
    key(
        "nics.tagged",
        Texts { one: false },
        Later(TAP_LATER),
        "VLANs that reach the guest with their tags, like `\"10\"` or `\"20-29\"`.",
    ),
    key("nics.private", Flag, Later(TAP_LATER), "Whether it cannot talk to other private ports of the switch."),
    key("nics.mac_lock", Flag, Later(TAP_LATER), "Whether frames with another MAC address are dropped."),
    key("nics.rate_in", Size, Later(TAP_LATER), "Bytes a second into the guest."),
    key("nics.rate_out", Size, Later(TAP_LATER), "Bytes a second out of the guest."),
    key("nics.slot", Text, Bhyve, "PCI address, instead of the one that vmctl chooses once and keeps."),
    key("nics.options", Texts { one: false }, Bhyve, "Further options of bhyve(8) for the device."),
    // Console.
    key("console", TABLE, Now, "Serial ports and what is kept of them."),
    with("console.com1", COM1, "\"console\"", Now, "Where the first serial port leads."),
    with("console.com2", COM, "\"none\"", Now, "Where the second serial port leads."),
    with("console.com3", COM, "\"none\"", Now, "Where the third serial port leads."),
    with("console.com4", COM, "\"none\"", Now, "Where the fourth serial port leads."),
    with(
        "console.virtio",
        Flag,
        "false",
        Now,
        "Whether the guest has a virtio console too, joined to the first serial port's console.",
    ),
    with("console.log_size", Size, "\"1M\"", Now, "Size at which the console's log is rotated: 4K to 1G."),
    with("console.log_files", Integer { min: 0, max: 99 }, "3", Now, "Rotated logs that are kept."),
    with("console.scrollback", Size, "\"64K\"", Now, "How much a reader who attaches sees again: at most 16M."),
    key("channels", Entries, Bhyve, "Ports of a virtio console, each a socket in the guest's directory."),
    key("channels.id", Name, Bhyve, "Its name."),
    key("agent", Flag, Later(NOTHING), "Whether the guest runs the QEMU guest agent and gets a channel for it."),
    // Life.
    key("restart", TABLE, Now, "What happens when the guest exits."),
    with("restart.on_reboot", ACTIONS, "\"restart\"", Now, "When it asks for a reboot."),
    with("restart.on_poweroff", ACTIONS, "\"stop\"", Now, "When it powers off or halts."),
    with("restart.on_crash", ACTIONS, "\"restart\"", Now, "When it or its engine crashes."),
    with(
        "restart.limit",
        Integer { min: 0, max: 1000 },
        "5",
        Now,
        "Restarts after crashes that are allowed within `window`; the next leaves the guest failed until `reset-failed`. 0 for no limit.",
    ),
    with("restart.window", Duration, "\"10m\"", Now, "See `limit`."),
    with(
        "restart.backoff_initial",
        Duration,
        "\"1s\"",
        Now,
        "Wait before the first restart after a crash; it doubles with each further one.",
    ),
    with("restart.backoff_max", Duration, "\"1m\"", Now, "The longest wait."),
    with("stop_timeout", Duration, "\"60s\"", Now, "How long `stop` waits after the power button before it powers off."),
    key("autostart", short("enabled"), Now, "Start with the host. `autostart = true` stands for `autostart.enabled = true`."),
    with("autostart.enabled", Flag, "false", Now, "Whether."),
    with("autostart.order", Integer { min: 0, max: 1_000_000 }, "100", Now, "Lower ones start first."),
    with("autostart.delay", Duration, "\"0s\"", Now, "Wait before this guest is started."),
    key("autostart.after", Texts { one: false }, Now, "Guests that come first."),
    with("autostart.wait", WAITS, "\"running\"", Now, "What the guests after this one wait for."),
    with("autostart.timeout", Duration, "\"5m\"", Now, "How long they wait."),
    key(
        "ready",
        TABLE,
        Now,
        "When the guest counts as ready: when every probe that is given has passed. Without one, when it runs.",
    ),
    key(
        "ready.tcp",
        PORT,
        Now,
        "A port of the guest that accepts connections; reached through a forward, or at `ready.address`.",
    ),
    key("ready.address", Address, Now, "Address of the guest for `ready.tcp`."),
    key("ready.console", Text, Now, "Text that the console shows."),
    key(
        "ready.exec",
        Texts { one: false },
        Now,
        "A command on the host that ends with status 0. `VMCTL_GUEST` holds the guest's name.",
    ),
    with("ready.timeout", Duration, "\"5m\"", Now, "How long `start --wait` waits."),
    key("hooks", Entries, Now, "Commands that the supervisor runs; they get a JSON object on standard input."),
    key("hooks.id", Name, Now, "Its name; without it, the event."),
    key("hooks.remove", Flag, Now, "Drop the hook that a template brought."),
    key("hooks.event", EVENTS, Now, "When. Required."),
    key(
        "hooks.command",
        Texts { one: false },
        Now,
        "Program and arguments; no shell is involved. A program with a slash is a path, relative to the file. Required.",
    ),
    with("hooks.timeout", Duration, "\"30s\"", Now, "It is killed after this."),
    with("hooks.on_failure", FAILURES, "\"ignore\"", Now, "What its failure means."),
    // Further devices.
    key("rng", short("enabled"), Now, "A virtio device with random numbers. `rng = false` stands for `rng.enabled = false`."),
    with("rng.enabled", Flag, "true", Now, "Whether."),
    key("graphics", short("enabled"), Later(NOTHING), "A screen, seen with VNC."),
    key("graphics.enabled", Flag, Later(NOTHING), "Whether."),
    key("graphics.listen", Address, Later(NOTHING), "Address, the loopback without it."),
    key("graphics.port", PORT, Later(NOTHING), "Port; the first free one from 5900 without it."),
    key("graphics.socket", Flag, Later(NOTHING), "Whether a socket in the guest's directory is used instead of a port."),
    key("graphics.resolution", Text, Later(NOTHING), "Like `1024x768`."),
    key("graphics.password_file", Path, Later(NOTHING), "File with the password."),
    key("graphics.wait", Flag, Later(NOTHING), "Whether the guest waits for a viewer."),
    key("graphics.vga", Text, Bhyve, "`io`, `on` or `off`, see bhyve(8)."),
    key("graphics.keyboard", Text, Bhyve, "Keyboard layout."),
    key("graphics.tablet", Flag, Later(NOTHING), "Whether there is a USB tablet as a pointer."),
    key("sound", TABLE, Bhyve, "An HD audio device."),
    key("sound.play", Path, Bhyve, "Device of the host that plays."),
    key("sound.record", Path, Bhyve, "Device of the host that records."),
    key("inputs", Entries, Bhyve, "Input devices of the host that the guest gets."),
    key("inputs.id", Name, Bhyve, "Its name."),
    key("inputs.path", Path, Bhyve, "Like `/dev/input/event0`."),
    key("tpm", TABLE, Later(NOTHING), "A trusted platform module."),
    key("tpm.type", Text, Later(NOTHING), "`swtpm`, which vmctl starts, or `passthru`."),
    key("tpm.path", Path, Later(NOTHING), "The device, for `passthru`."),
    key("tpm.version", Text, Later(NOTHING), "`2.0`."),
    key("passthru", Entries, Bhyve, "PCI devices of the host that the guest gets."),
    key("passthru.id", Name, Bhyve, "Its name."),
    key("passthru.device", Text, Bhyve, "Like `5/0/0`."),
    key("passthru.rom", Path, Bhyve, "Image of its option ROM."),
    key("passthru.slot", Text, Bhyve, "PCI address in the guest."),
    key(
        "shares",
        Entries,
        Later("until then copy the files, or use a network file system"),
        "Directories of the host that the guest mounts with 9p.",
    ),
    key("shares.id", Name, Later(NOTHING), "The mount tag."),
    key("shares.path", Path, Later(NOTHING), "The directory."),
    key("shares.ro", Flag, Later(NOTHING), "Whether writes are refused."),
    key("smbios", TABLE, Later(NOTHING), "What the guest reads about its machine."),
    key("smbios.manufacturer", Text, Later(NOTHING), "Manufacturer."),
    key("smbios.product", Text, Later(NOTHING), "Product."),
    key("smbios.version", Text, Later(NOTHING), "Version."),
    key("smbios.serial", Text, Later(NOTHING), "Serial number."),
    key("smbios.sku", Text, Later(NOTHING), "SKU."),
    key("smbios.family", Text, Later(NOTHING), "Family."),
    key("smbios.asset_tag", Text, Later(NOTHING), "Asset tag."),
    // Limits, provisioning, snapshots.
    key("limits", TABLE, Later("until then use systemd-run(1) or rctl(8)"), "What the guest may use of the host."),
    key("limits.cpu_percent", PERCENT, Later(NOTHING), "CPU time; 100 is one CPU."),
    key("limits.nice", Integer { min: -20, max: 20 }, Later(NOTHING), "Scheduling priority."),
    key("limits.read_bps", Size, Later(NOTHING), "Bytes read a second."),
    key("limits.write_bps", Size, Later(NOTHING), "Bytes written a second."),
    key("limits.read_iops", RATE, Later(NOTHING), "Reads a second."),
    key("limits.write_iops", RATE, Later(NOTHING), "Writes a second."),
    key(
        "cloud-init",
        TABLE,
        Later("until then build the seed yourself and add it as a disk"),
        "The seed that cloud-init reads in the guest.",
    ),
    key("cloud-init.hostname", Text, Later(NOTHING), "Host name; the guest's name without it."),
    key("cloud-init.user", Text, Later(NOTHING), "User that is made."),
    key("cloud-init.ssh_keys", Texts { one: false }, Later(NOTHING), "Public keys, or paths of files with them."),
    key("cloud-init.password_file", Path, Later(NOTHING), "File with the password."),
    key("cloud-init.user_data", Path, Later(NOTHING), "User data, instead of the keys above."),
    key("cloud-init.meta_data", Path, Later(NOTHING), "Meta data."),
    key("cloud-init.vendor_data", Path, Later(NOTHING), "Vendor data."),
    key("cloud-init.network_config", Path, Later(NOTHING), "Network configuration."),
    key("snapshots", TABLE, Later(NOTHING), "Snapshots that are made and kept."),
    key("snapshots.schedule", Text, Later(NOTHING), "`hourly`, `daily` or `weekly`."),
    key("snapshots.keep", Integer { min: 1, max: 10_000 }, Later(NOTHING), "How many."),
    // Raw and rare.
    key("bhyve", TABLE, Bhyve, "What only bhyve(8) has."),
    key("bhyve.args", Texts { one: false }, Bhyve, "Further arguments."),
    key("bhyve.options", Map, Bhyve, "Variables of bhyve_config(5)."),
    key("bhyve.hostbridge", Text, Bhyve, "`standard`, `amd` or `none`."),
    key("bhyve.fwcfg", Text, Bhyve, "`bhyve` or `qemu`."),
    key("bhyve.fw_cfg", Map, Bhyve, "Items of the firmware configuration device."),
    key("bhyve.acpi_tables_in_memory", Flag, Bhyve, "False for Windows with a TPM."),
    key("bhyve.ignore_bad_msr", Flag, Bhyve, "Whether accesses of unknown MSRs are ignored."),
    key("bhyve.vmexit_on_pause", Flag, Bhyve, "Whether a spinning virtual CPU gives way."),
    key("bhyve.x2apic", Flag, Bhyve, "Whether the local APIC has its x2APIC mode."),
    key("debug", TABLE, Now, "For people who develop kernels, and for tests."),
    with(
        "debug.exit_port",
        Flag,
        "false",
        Now,
        "QEMU's isa-debug-exit device at port 0xf4: a guest that writes N there ends with status 2N+1.",
    ),
    with(
        "debug.deterministic",
        Flag,
        "false",
        Now,
        "Whether the guest's time is counted in instructions, so that every run is the same; needs the software CPU and 1 CPU.",
    ),
    key("debug.gdb", TABLE, Later(NOTHING), "A gdb(1) stub."),
    key("debug.gdb.port", PORT, Later(NOTHING), "Its port on the loopback."),
    key("debug.gdb.wait", Flag, Later(NOTHING), "Whether the guest waits for the debugger."),
];

const SWITCH_LATER: &str = "until then guests use `backend = \"user\"`";

/// The keys of the host file; `[defaults]` holds the keys of a guest.
pub const HOST_KEYS: &[Key] = &[
    key("default_datastore", Name, Now, "The datastore that is used when none is named; the first one without it."),
    key(
        "template_dirs",
        Paths,
        Now,
        "Directories with templates, searched after the datastore's own and before the built-in ones.",
    ),
    key("cache_dir", Path, Now, "Where downloads are kept."),
    with("autostart_parallel", Integer { min: 1, max: 64 }, "2", Now, "How many guests autostart starts at once."),
    key("defaults", Map, Now, "Keys of a guest file that hold for every guest unless its templates or its file say otherwise."),
    key("datastores", Entries, Now, "Where guests live. Without one, the default directory of the user is used."),
    key("datastores.id", Name, Now, "Its name. Required."),
    key("datastores.path", Path, Now, "Its directory. Required."),
    key("datastores.dataset", Text, Later("until then mount the dataset and give its `path`"), "ZFS dataset."),
    key("catalogues", Entries, Later(CATALOGUE_LATER), "Where `launch` finds images."),
    key("catalogues.id", Name, Later(CATALOGUE_LATER), "Its name. Required."),
    key("catalogues.url", Text, Later(CATALOGUE_LATER), "An https URL or an absolute path. Required."),
    key("switches", Entries, Later(SWITCH_LATER), "What `tap` interfaces are plugged into."),
    key("switches.id", Name, Later(SWITCH_LATER), "Its name."),
    key("switches.type", Text, Later(SWITCH_LATER), "`bridge`, `manual`, `nat`, `vale`, `vxlan` or `netgraph`."),
    key("switches.bridge", Text, Later(SWITCH_LATER), "The interface, for `manual`."),
    key("switches.uplinks", Texts { one: false }, Later(SWITCH_LATER), "Interfaces of the host that belong to it."),
    key("switches.vlan", Integer { min: 1, max: 4094 }, Later(SWITCH_LATER), "VLAN of the uplinks, or the VXLAN's number."),
    key("switches.addresses", Texts { one: false }, Later(SWITCH_LATER), "Addresses of the host on it, with prefix lengths."),
    key("switches.mtu", Integer { min: 576, max: 9000 }, Later(SWITCH_LATER), "Largest packet."),
    key("switches.private", Flag, Later(SWITCH_LATER), "Whether guests cannot talk to each other."),
    key("switches.nat", Flag, Later(SWITCH_LATER), "Whether guests reach the world through the host's addresses."),
    key("switches.dhcp", Text, Later(SWITCH_LATER), "Range of addresses that are given out."),
];

/// The key of that path.
pub fn find(keys: &'static [Key], path: &str) -> Option<&'static Key> {
    keys.iter().find(|key| key.path == path)
}

/// The keys right under `table`; those at the top for an empty one.
pub fn children<'a>(keys: &'static [Key], table: &'a str) -> impl Iterator<Item = &'static Key> + 'a {
    keys.iter().filter(move |key| key.parent() == table)
}

impl Key {
    /// The path of the table that it is in; empty at the top.
    pub fn parent(&self) -> &'static str {
        self.path.rsplit_once('.').map_or("", |(parent, _)| parent)
    }
    /// The last part of its path.
    pub fn leaf(&self) -> &'static str {
        self.path.rsplit_once('.').map_or(self.path, |(_, leaf)| leaf)
    }
}

impl Kind {
    /// In words, for messages and the manual: `a size`, `true or false`.
    pub fn words(&self) -> String {
        match self {
            Table { short: None } => "a table".into(),
            Table { short: Some(key) } => format!("a table, or its `{key}`"),
            Entries => "an array of tables".into(),
            Text => "a text".into(),
            Name => "a name".into(),
            Path => "a path".into(),
            Flag => "true or false".into(),
            Integer { min, max } => format!("a number from {min} to {max}"),
            Size => "a size".into(),
            Duration => "a duration".into(),
            OneOf(choices) => choices.iter().map(|c| format!("`{}`", c.value)).collect::<Vec<_>>().join(" or "),
            Texts { one: false } => "an array of texts".into(),
            Texts { one: true } => "an array of texts, or one text".into(),
            Paths => "an array of paths".into(),
            Map => "a table of your own".into(),
            Mac => "a MAC address".into(),
            Uuid => "a UUID".into(),
            Address => "an IP address".into(),
            Network => "an IPv4 network".into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_stands_once_after_its_table_and_is_documented() {
        for keys in [GUEST_KEYS, HOST_KEYS] {
            for (at, key) in keys.iter().enumerate() {
                assert!(keys[..at].iter().all(|other| other.path != key.path), "{} stands twice", key.path);
                let parent = key.parent();
                assert!(
                    parent.is_empty() || keys[..at].iter().any(|other| other.path == parent),
                    "{} before its table",
                    key.path
                );
                assert!(key.doc.ends_with('.'), "{} has no sentence", key.path);
            }
        }
    }

    #[test]
    fn a_key_under_a_table_that_is_refused_is_refused_too() {
        for keys in [GUEST_KEYS, HOST_KEYS] {
            for key in keys {
                if let Some(parent) = find(keys, key.parent()) {
                    assert!(parent.support == Now || key.support != Now, "{}", key.path);
                }
            }
        }
    }
}
