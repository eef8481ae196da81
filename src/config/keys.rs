//! The table of all keys. The reader's types, ranges, defaults and suggestions, the refusal of keys that an engine does
//! not support, `vmctl schema`, `show --explain` and the manual page's key list all come from it.

use super::key::{Key, KeyTable, Kind, TABLE, key, short, with};
use crate::choices::{
    AutostartWait, BackendKind, Choices, Clock, DiskBackend, DiskCache, DiskDevice, DiskFormat, EngineKind, ExitAction,
    ForwardProto, FwCfg, GrubSystem, HookEvent, HookFailure, Hostbridge, LoaderKind, NicBackend, NicDevice, Support, TpmKind,
    Vga,
};

use Kind::{
    Address, Duration, Entries, Flag, Integer, Mac, Map, Name, Network, OneOf, Path, Paths, Size, Slot, Text, Texts, Uuid,
};
use Support::{Bhyve, Embedded, Later, Now};

const PORT: Kind = Integer { min: 1, max: 65535 };
const PERCENT: Kind = Integer { min: 1, max: 1_000_000 };
const RATE: Kind = Integer { min: 1, max: 1_000_000_000 };

const VLAN_LATER: &str =
    "bridges of FreeBSD before 15.0 know no VLANs of their members; until then give each VLAN a switch of its own";
const MAC_LOCK_LATER: &str = "if_bridge(4) limits how many addresses a port has, not which; until then write `ether` rules for pf(4), \
    which has them since FreeBSD 14.0";
const RATE_LATER: &str = "until then limit the tap with dummynet(4) and ipfw(8)";
const NOTHING: &str = "leave it out until then";

const COM_DOC: &str =
    "Where it leads: `console`, `none`, a terminal device like `/dev/nmdm-x.1A`, or a TCP port like `127.0.0.1:4001`.";

/// The keys of a guest file and of a template.
pub static GUEST_KEYS: KeyTable = KeyTable::new(KEYS);

const KEYS: &[Key] = &[
    // Identity.
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
    // Sources of the other keys.
    key("template", Name, Now, "The template that this file starts from: the first of `extends`."),
    key("extends", Texts { one: true }, Now, "Templates that this file starts from, each applied over the ones before it."),
    key("include", Paths, Now, "Files that are applied over the templates, before this file."),
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
    // Engine.
    key(
        "engine",
        OneOf(EngineKind::ROWS),
        Now,
        "What runs the guest. Without it `bhyve` where vmm(4) is available when the guest is made (see `vmctl doctor`), and `embedded` elsewhere.",
    ),
    with("backend", OneOf(BackendKind::ROWS), "\"auto\"", Embedded, "The virtual CPU of the embedded engine."),
    with("clock", OneOf(Clock::ROWS), "\"utc\"", Now, "What the real-time clock shows."),
    key("jail", short("name"), Bhyve, "The jail that bhyve runs in. `jail = \"vms\"` is short for `jail.name = \"vms\"`."),
    key("jail.name", Name, Bhyve, "Its name; it needs `allow.vmm`. Required."),
    key("jail.root", Path, Bhyve, "Its root directory, below which every path of the guest lies; without it jls(8) is asked."),
    key("cpus", short("count"), Now, "Processors. `cpus = 2` is short for `cpus.count = 2`."),
    key("cpus.count", Integer { min: 1, max: 64 }, Now, "How many; without it the product of the other three, or 1."),
    key("cpus.sockets", Integer { min: 1, max: 64 }, Now, "Packages; without it as many as are needed."),
    with("cpus.cores", Integer { min: 1, max: 64 }, "1", Now, "Cores in a package."),
    with("cpus.threads", Integer { min: 1, max: 64 }, "1", Now, "Threads in a core."),
    key("cpus.pin", Texts { one: false }, Bhyve, "Which CPUs of the host a virtual CPU may use, like `\"0:4\"` or `\"1:5-6\"`."),
    key("memory", short("size"), Now, "RAM. `memory = \"1G\"` is short for `memory.size = \"1G\"`."),
    with("memory.size", Size, "\"512M\"", Now, "How much: at least 16M, whole MiB."),
    with(
        "memory.overcommit",
        Flag,
        "false",
        Now,
        "Whether the guest may have more memory than the host has. It also silences the warning when it may use more than is available.",
    ),
    with("memory.wired", Flag, "false", Bhyve, "Whether the host may not page it out. Passthrough needs it and turns it on."),
    with("memory.in_core", Flag, "false", Bhyve, "Whether it is part of bhyve's core dumps."),
    key("numa", Entries, Bhyve, "NUMA domains of the guest, at most 8."),
    key("numa.id", Name, Bhyve, "Its name. Required."),
    key("numa.size", Size, Bhyve, "RAM of the domain; together they make the guest's. Required."),
    key("numa.cpus", Text, Bhyve, "Its virtual CPUs, like `0-3` or `0,2`. Required."),
    key("numa.policy", Text, Bhyve, "Where the host takes it from: a policy of domainset(9) like `prefer:0`."),
    // Boot.
    key(
        "loader",
        OneOf(LoaderKind::ROWS),
        Now,
        "How the guest boots. Without it `uefi` with bhyve; with the embedded engine `grub` for a guest without `[kernel]` whose first disk has a `source` or a `path`, else `kernel`.",
    ),
    key("kernel", TABLE, Embedded, "For `loader = \"kernel\"`."),
    key("kernel.image", Path, Embedded, "The kernel. Required with `loader = \"kernel\"`."),
    key("kernel.initrd", Path, Embedded, "The initial RAM disk, or the first module of a Multiboot kernel."),
    with(
        "kernel.cmdline",
        Text,
        "\"\"",
        Embedded,
        "The kernel's command line. A Multiboot kernel gets the image's file name in front.",
    ),
    key("kernel.modules", Entries, Embedded, "Modules of a Multiboot or PVH kernel, behind the initial RAM disk."),
    key(
        "kernel.modules.id",
        Name,
        Embedded,
        "Its name, so that it can be overridden; a module without one is added to the others.",
    ),
    key("kernel.modules.remove", Flag, Embedded, "Removes the module that a template defines."),
    key("kernel.modules.path", Path, Embedded, "Its file. Required."),
    with("kernel.modules.args", Text, "\"\"", Embedded, "Its arguments; the file's name goes in front."),
    key("grub", TABLE, Now, "For `loader = \"grub\"`."),
    key(
        "grub.partition",
        Text,
        Now,
        "Where GRUB looks, like `1`, `gpt2` or `msdos1`; `none` for a disk without partitions. The embedded engine looks everywhere without it, and also takes a disk as GRUB names it: `hd1,gpt2`, `cd0`.",
    ),
    key(
        "grub.directory",
        Text,
        Now,
        "Directory of the configuration in the guest; without it `/boot/grub`, or with the embedded engine wherever one is found.",
    ),
    key("grub.file", Text, Now, "Name of the configuration; `grub.cfg` without it."),
    key("grub.commands", Texts { one: false }, Now, "Commands instead of the guest's own configuration."),
    key(
        "grub.entry",
        Text,
        Embedded,
        "The entry of the menu that boots, by title, id or number from 0; `a>b` for one in a submenu. Without it the configuration's default.",
    ),
    with(
        "grub.console",
        Flag,
        "true",
        Embedded,
        "Whether `console=ttyS0` is added to a Linux command line that names no console; the console says so.",
    ),
    with(
        "grub.timeout",
        Duration,
        "\"3s\"",
        Now,
        "How long the menu waits; with bhyve that of `commands`. Without it a menu of the embedded engine waits as its configuration has it.",
    ),
    with("grub.system", OneOf(GrubSystem::ROWS), "\"linux\"", Now, "What it loads."),
    key("grub.kernel", Text, Bhyve, "The kernel in the guest, for OpenBSD and NetBSD; `/bsd` or `/netbsd` without it."),
    key(
        "grub.root",
        Text,
        Bhyve,
        "The root device that is passed to the kernel, like `sd0a`; for OpenBSD and NetBSD. Without it, the one that is found on the disk.",
    ),
    key("uefi", TABLE, Bhyve, "For `loader = \"uefi\"`."),
    key("uefi.firmware", Path, Bhyve, "The firmware's code, instead of the packaged one."),
    key("uefi.vars", Path, Bhyve, "The variables that a new guest starts from, instead of the packaged ones."),
    with("uefi.persistent", Flag, "true", Bhyve, "Whether the guest has its own variables, kept between boots."),
    with("uefi.csm", Flag, "false", Bhyve, "Whether the packaged firmware that boots like a BIOS (CSM) is used."),
    key("bhyveload", TABLE, Bhyve, "For `loader = \"bhyveload\"`."),
    key("bhyveload.loader", Path, Bhyve, "The loader, instead of /boot/userboot.so."),
    key("bhyveload.env", Map, Bhyve, "Variables of the loader."),
    key("bhyveload.host_dir", Path, Bhyve, "Directory of the host that the loader reads as `host0:`."),
    key("bhyveload.args", Texts { one: false }, Bhyve, "Further arguments of bhyveload(8)."),
    key("bhyveload.timeout", Duration, Bhyve, "How long the menu waits."),
    key("boot", TABLE, Bhyve, "What the loader or the firmware boots from."),
    key(
        "boot.order",
        Texts { one: false },
        Bhyve,
        "Ids of disks, the first one first; without it, the order of the file. With UEFI also of interfaces, and `bhyve.fwcfg = \"qemu\"` is needed.",
    ),
    // Disks.
    key("disks", Entries, Now, "Disks, in the order in which the guest sees them."),
    key("disks.id", Name, Now, "Its name. Required."),
    key("disks.remove", Flag, Now, "Removes the disk that a template defines."),
    key(
        "disks.backend",
        OneOf(DiskBackend::ROWS),
        Now,
        "Where its bytes are. Without it `file` when there is a `path` and no `size`, else `sparse`.",
    ),
    key("disks.path", Path, Now, "The file or device. Without it vmctl keeps the file in the guest's directory."),
    key(
        "disks.format",
        OneOf(DiskFormat::ROWS),
        Now,
        "How the file at `path`, or of `source`, is stored. Without it, a file that begins like an image (qcow2, VMDK, VHD, VHDX, VDI...), an archive or a packed file is not taken for a raw disk.",
    ),
    key("disks.size", Size, Now, "Size to create, or to grow to. Required unless the backend is `file`."),
    with("disks.device", OneOf(DiskDevice::ROWS), "\"virtio-blk\"", Now, "What the guest sees."),
    with("disks.ro", Flag, "false", Now, "Whether writes are refused."),
    with("disks.cache", OneOf(DiskCache::ROWS), "\"writeback\"", Now, "What a write waits for."),
    key(
        "disks.serial",
        Text,
        Now,
        "Serial number that the guest sees: at most 20 printable ASCII characters. Without it the id, or with bhyve a number that bhyve derives from the path.",
    ),
    with("disks.discard", Flag, "true", Now, "Whether space that the guest discards is given back to the host."),
    key(
        "disks.source",
        Text,
        Now,
        "Image that the disk is made from, once: a name of the catalogue, a URL, or a path with a slash. `size` then grows it.",
    ),
    key(
        "disks.checksum",
        Text,
        Now,
        "Checksum of the file of `source`, like `sha256:HEX` or `sha512:HEX`: required for a URL, and used instead of the catalogue's for a name.",
    ),
    key("disks.properties", Map, Bhyve, "Properties of the ZFS volume when it is made, like `{ volblocksize = \"16K\" }`."),
    with("disks.thin", Flag, "true", Bhyve, "Whether a ZFS volume takes up only what was written."),
    key("disks.target", Text, Bhyve, "Name of the iSCSI target, like `iqn.2026-01.example:disk0`."),
    key("disks.portal", Text, Bhyve, "Where the iSCSI target is: a host, or host:port."),
    with("disks.lun", Integer { min: 0, max: 16383 }, "0", Bhyve, "Unit of the iSCSI target."),
    key("disks.sector_size", Text, Bhyve, "Sector size that the guest sees, like `512` or `512/4096` (logical/physical)."),
    key(
        "disks.controller",
        Name,
        Bhyve,
        "Disks of type `ahci-hd` and `ahci-cd` with one name here share a controller, at most 32.",
    ),
    key("disks.slot", Slot, Bhyve, "PCI address, like `0:4:0`, instead of the one that vmctl chooses once and keeps."),
    key("disks.options", Texts { one: false }, Bhyve, "Further options of bhyve(8) for the device, like `maxq=8`."),
    // Network interfaces.
    key("nics", Entries, Now, "Network interfaces, in the order in which the guest sees them."),
    key("nics.id", Name, Now, "Its name. Required."),
    key("nics.remove", Flag, Now, "Removes the interface that a template defines."),
    key(
        "nics.backend",
        OneOf(NicBackend::ROWS),
        Now,
        "What it is connected to. Without it `tap` when there is a `switch`, else `user`.",
    ),
    key("nics.switch", Name, Now, "The switch, of the host file or of a fleet, for `tap`, `vmnet`, `vale` and `netgraph`."),
    key(
        "nics.interface",
        Text,
        Now,
        "An existing interface, like `tap7`, which vmctl neither makes nor removes; for `vale` a port like `vale0:p1`.",
    ),
    key("nics.path", Text, Bhyve, "The netgraph node, like `bridge0:`."),
    key("nics.peerhook", Text, Bhyve, "The hook of that node, like `link2`."),
    key("nics.hook", Text, Bhyve, "The hook of bhyve's own node; `vmlink` without it."),
    key("nics.socket", Text, Bhyve, "The name of bhyve's own netgraph node."),
    key("nics.mac", Mac, Now, "MAC address. Without it vmctl derives a stable one."),
    with("nics.device", OneOf(NicDevice::ROWS), "\"virtio-net\"", Now, "What the guest sees."),
    with("nics.mtu", Integer { min: 576, max: 9000 }, "1500", Now, "Largest packet that the guest may send."),
    with(
        "nics.network",
        Network,
        "\"10.0.2.0/24\"",
        Embedded,
        "The network of `user`: its address 2 is the gateway, 3 the resolver, 15 the guest (4 in a /28). Prefix length 8 to 28.",
    ),
    key("nics.dns", Texts { one: false }, Embedded, "Name servers that queries are forwarded to, instead of the host's own."),
    with(
        "nics.isolated",
        Flag,
        "false",
        Now,
        "Whether everything that the guest sends out is refused: connections, datagrams, names. Forwards still work, and so does what `host_ports` opens at the gateway's address.",
    ),
    with(
        "nics.host_access",
        Flag,
        "false",
        Embedded,
        "Whether the guest reaches the host itself: its 127.0.0.1, at the gateway's address, and its other addresses. Without it that is refused at once; name lookups and the answer files of an installer still work.",
    ),
    key(
        "nics.host_ports",
        Texts { one: false },
        Embedded,
        "Single ports of the host that the guest reaches without `host_access`, like `\"3128\"`, `\"8000-8010\"` or `\"53/udp\"`: those of the host's 127.0.0.1 at the gateway's address, and those of the host's other addresses.",
    ),
    with(
        "nics.link_local",
        Flag,
        "false",
        Embedded,
        "Whether the guest reaches 169.254.0.0/16, where clouds serve secrets to their machines (169.254.169.254).",
    ),
    key("nics.forwards", Entries, Now, "Ports of the host that lead into the guest, with `user`."),
    key("nics.forwards.id", Name, Now, "Its name, so that it can be overridden; a forward without one is added to the others."),
    key("nics.forwards.remove", Flag, Now, "Removes the forward that a template defines."),
    with("nics.forwards.proto", OneOf(ForwardProto::ROWS), "\"tcp\"", Now, "Protocol."),
    with("nics.forwards.host_addr", Address, "\"127.0.0.1\"", Now, "Address of the host to listen on."),
    key("nics.forwards.host_port", PORT, Now, "Port of the host. Required."),
    key("nics.forwards.guest_port", PORT, Now, "Port in the guest. Required."),
    key("nics.vlan", Integer { min: 1, max: 4094 }, Later(VLAN_LATER), "The VLAN it is in, on a VLAN-aware switch."),
    key(
        "nics.tagged",
        Texts { one: false },
        Later(VLAN_LATER),
        "VLANs that reach the guest with their tags, like `\"10\"` or `\"20-29\"`.",
    ),
    with("nics.private", Flag, "false", Now, "Whether it cannot talk to other private ports of the switch."),
    with("nics.span", Flag, "false", Bhyve, "Whether it gets a copy of every frame of the switch."),
    key("nics.mac_lock", Flag, Later(MAC_LOCK_LATER), "Whether frames with another MAC address are dropped."),
    key("nics.rate_in", Size, Later(RATE_LATER), "Bytes per second into the guest."),
    key("nics.rate_out", Size, Later(RATE_LATER), "Bytes per second out of the guest."),
    key("nics.slot", Slot, Bhyve, "PCI address, instead of the one that vmctl chooses once and keeps."),
    key("nics.options", Texts { one: false }, Bhyve, "Further options of bhyve(8) for the device."),
    // Console.
    key("console", TABLE, Now, "Serial ports and their logs."),
    with("console.com1", Text, "\"console\"", Now, COM_DOC),
    with("console.com2", Text, "\"none\"", Now, COM_DOC),
    with("console.com3", Text, "\"none\"", Now, COM_DOC),
    with("console.com4", Text, "\"none\"", Now, COM_DOC),
    with(
        "console.virtio",
        Flag,
        "false",
        Embedded,
        "Whether the guest has a virtio console too, joined to the first serial port's console.",
    ),
    with("console.log_size", Size, "\"1M\"", Now, "Size at which the console's log is rotated: 4K to 1G."),
    with("console.log_files", Integer { min: 0, max: 99 }, "3", Now, "Rotated logs that are kept."),
    with("console.scrollback", Size, "\"64K\"", Now, "How much earlier output a reader gets when attaching: at most 16M."),
    key("channels", Entries, Bhyve, "Ports of a virtio console, at most 16, each a socket in the guest's directory."),
    key("channels.id", Name, Bhyve, "Its name in the guest. Required."),
    key("channels.path", Path, Bhyve, "The socket, instead of one in the guest's directory."),
    with(
        "agent",
        Flag,
        "false",
        Now,
        "Whether the guest has a port of a virtio console for the QEMU guest agent, `org.qemu.guest_agent.0`. The agent is a package of the guest's system, `qemu-guest-agent`.",
    ),
    // Life cycle.
    key("restart", TABLE, Now, "What happens when the guest exits."),
    with("restart.on_reboot", OneOf(ExitAction::ROWS), "\"restart\"", Now, "When it asks for a reboot."),
    with("restart.on_poweroff", OneOf(ExitAction::ROWS), "\"stop\"", Now, "When it powers off or halts."),
    with("restart.on_crash", OneOf(ExitAction::ROWS), "\"restart\"", Now, "When it or its engine crashes."),
    with(
        "restart.limit",
        Integer { min: 0, max: 1000 },
        "5",
        Now,
        "Restarts that are allowed within `window` after crashes, and after reboots within ten seconds of a boot; the next leaves the guest failed until `reset-failed`. 0 for no limit.",
    ),
    with("restart.window", Duration, "\"10m\"", Now, "See `limit`."),
    with(
        "restart.backoff_initial",
        Duration,
        "\"1s\"",
        Now,
        "Wait before the first restart after a crash, or the second after a reboot that came too soon; it doubles with each further one.",
    ),
    with("restart.backoff_max", Duration, "\"1m\"", Now, "The longest wait."),
    with(
        "stop_timeout",
        Duration,
        "\"60s\"",
        Now,
        "How long `stop` waits after the power button, which is pressed again every few seconds, before it powers off.",
    ),
    key("autostart", short("enabled"), Now, "Start with the host. `autostart = true` is short for `autostart.enabled = true`."),
    with("autostart.enabled", Flag, "false", Now, "Whether the guest starts with the host."),
    with("autostart.order", Integer { min: 0, max: 1_000_000 }, "100", Now, "Lower ones start first."),
    with("autostart.delay", Duration, "\"0s\"", Now, "Wait before this guest is started."),
    key("autostart.after", Texts { one: false }, Now, "Guests that start before this one."),
    with("autostart.wait", OneOf(AutostartWait::ROWS), "\"running\"", Now, "What the guests after this one wait for."),
    with("autostart.timeout", Duration, "\"5m\"", Now, "How long they wait."),
    key(
        "ready",
        TABLE,
        Now,
        "When the guest counts as ready: when every probe that is given has passed. Without one, when sshd(8) greets, for a guest with `[cloud-init]` and a forward to port 22; else when its console has shown `login:`; without a console, when its agent answers.",
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
    with("ready.agent", Flag, "false", Now, "The QEMU guest agent answers. Needs `agent = true`."),
    with("ready.timeout", Duration, "\"5m\"", Now, "How long `start --wait` waits."),
    key("hooks", Entries, Now, "Commands that the supervisor runs; they get a JSON object on standard input."),
    key("hooks.id", Name, Now, "Its name; without it, the event."),
    key("hooks.remove", Flag, Now, "Removes the hook that a template defines."),
    key("hooks.event", OneOf(HookEvent::ROWS), Now, "The event. Required."),
    key(
        "hooks.command",
        Texts { one: false },
        Now,
        "Program and arguments; no shell is involved. A program with a slash is a path, relative to the file. Required.",
    ),
    with("hooks.timeout", Duration, "\"30s\"", Now, "It is killed after this."),
    with("hooks.on_failure", OneOf(HookFailure::ROWS), "\"ignore\"", Now, "What happens when it fails."),
    // Further devices.
    key("rng", short("enabled"), Now, "A virtio device with random numbers. `rng = false` is short for `rng.enabled = false`."),
    with("rng.enabled", Flag, "true", Now, "Whether there is one."),
    key(
        "graphics",
        short("enabled"),
        Bhyve,
        "A screen, seen with VNC; needs UEFI. `graphics = true` is short for `graphics.enabled = true`.",
    ),
    with("graphics.enabled", Flag, "true", Bhyve, "Whether there is a screen when there is `[graphics]`."),
    with("graphics.listen", Address, "\"127.0.0.1\"", Bhyve, "Address to listen on."),
    key("graphics.port", PORT, Bhyve, "Port; the first free one from 5900 without it."),
    with("graphics.socket", Flag, "false", Bhyve, "Whether a socket in the guest's directory is used instead of a port."),
    key("graphics.resolution", Text, Bhyve, "From `640x480` to `3840x2160`; `1024x768` without it."),
    key("graphics.password_file", Path, Bhyve, "File with the password, of which VNC takes 8 characters."),
    with("graphics.wait", Flag, "false", Bhyve, "Whether the guest waits for a viewer."),
    key("graphics.vga", OneOf(Vga::ROWS), Bhyve, "The VGA part of the screen; `io` without it."),
    key("graphics.keyboard", Text, Bhyve, "Keyboard layout: a file of /usr/share/bhyve/kbdlayout."),
    with("graphics.tablet", Flag, "true", Bhyve, "Whether there is a USB tablet, so that the pointer is where the viewer's is."),
    key("graphics.slot", Slot, Bhyve, "PCI address, instead of the one that vmctl chooses once and keeps."),
    key("sound", TABLE, Bhyve, "An HD audio device."),
    with("sound.play", Text, "\"/dev/dsp0\"", Bhyve, "Device of the host that plays."),
    key("sound.record", Text, Bhyve, "Device of the host that records."),
    key("inputs", Entries, Bhyve, "Input devices of the host that the guest gets with virtio."),
    key("inputs.id", Name, Bhyve, "Its name. Required."),
    key("inputs.path", Path, Bhyve, "Like `/dev/input/event0`. Required."),
    key("tpm", TABLE, Bhyve, "A trusted platform module."),
    with("tpm.type", OneOf(TpmKind::ROWS), "\"swtpm\"", Bhyve, "Where it is."),
    key("tpm.path", Path, Bhyve, "The device, for `passthru`; /dev/tpm0 without it."),
    with("tpm.version", Text, "\"2.0\"", Bhyve, "`2.0` is the only supported one."),
    key("passthru", Entries, Bhyve, "PCI devices of the host that the guest gets."),
    key("passthru.id", Name, Bhyve, "Its name. Required."),
    key("passthru.device", Text, Bhyve, "Like `5/0/0`, or the name of its ppt(4) device like `ppt0`. Required."),
    key("passthru.rom", Path, Bhyve, "Image of its option ROM."),
    key("passthru.slot", Slot, Bhyve, "PCI address in the guest, instead of the one that vmctl chooses once and keeps."),
    key("shares", Entries, Bhyve, "Directories of the host that the guest mounts with 9p."),
    key("shares.id", Name, Bhyve, "The mount tag. Required."),
    key("shares.path", Path, Bhyve, "The directory. Required."),
    with("shares.ro", Flag, "false", Bhyve, "Whether writes are refused."),
    key("smbios", TABLE, Bhyve, "What the guest reads about its machine."),
    key("smbios.manufacturer", Text, Bhyve, "Manufacturer."),
    key("smbios.product", Text, Bhyve, "Product."),
    key("smbios.version", Text, Bhyve, "Version."),
    key("smbios.serial", Text, Bhyve, "Serial number."),
    key("smbios.sku", Text, Bhyve, "SKU."),
    key("smbios.family", Text, Bhyve, "Family."),
    key("smbios.asset_tag", Text, Bhyve, "Asset tag of the board and the chassis."),
    // Limits, provisioning, snapshots.
    key("limits", TABLE, Bhyve, "What the guest may use of the host; all but `nice` need `kern.racct.enable=1`."),
    key("limits.cpu_percent", PERCENT, Bhyve, "CPU time; 100 is one CPU."),
    key("limits.nice", Integer { min: -20, max: 20 }, Bhyve, "Scheduling priority."),
    key("limits.read_bps", Size, Bhyve, "Bytes read per second."),
    key("limits.write_bps", Size, Bhyve, "Bytes written per second."),
    key("limits.read_iops", RATE, Bhyve, "Reads per second."),
    key("limits.write_iops", RATE, Bhyve, "Writes per second."),
    key(
        "cloud-init",
        TABLE,
        Now,
        "Data for cloud-init in the guest, on a read-only disk `cidata` that vmctl writes before every boot. A change of the data makes a new instance: cloud-init then runs again.",
    ),
    key("cloud-init.hostname", Text, Now, "Host name; the guest's name without it."),
    key(
        "cloud-init.user",
        Text,
        Now,
        "User that is created in addition to the distribution's own, with the right to become root. Without it, the keys and the password are those of the distribution's own user.",
    ),
    key("cloud-init.ssh_keys", Texts { one: false }, Now, "Public keys, or paths of files with them."),
    key(
        "cloud-init.password_file",
        Path,
        Now,
        "File with the password for the console, or with its crypt(3) hash, which begins with `$`.",
    ),
    key(
        "cloud-init.addresses",
        Texts { one: false },
        Now,
        "Addresses of the first interface with their prefix lengths, instead of DHCP.",
    ),
    key("cloud-init.gateways", Texts { one: false }, Now, "Routers of the first interface, with `addresses`."),
    key("cloud-init.nameservers", Texts { one: false }, Now, "Name servers, with `addresses`."),
    key("cloud-init.user_data", Path, Now, "User data as it is, instead of what `user`, `ssh_keys` and `password_file` make."),
    key("cloud-init.meta_data", Path, Now, "Meta data as it is, instead of what `hostname` makes."),
    key("cloud-init.vendor_data", Path, Now, "Vendor data as it is."),
    key("cloud-init.network_config", Path, Now, "Network configuration as it is, instead of what `addresses` makes."),
    key("snapshots", TABLE, Later(NOTHING), "Snapshots that are made and kept."),
    key("snapshots.schedule", Text, Later(NOTHING), "`hourly`, `daily` or `weekly`."),
    key("snapshots.keep", Integer { min: 1, max: 10_000 }, Later(NOTHING), "How many."),
    // Raw and rare keys.
    key("bhyve", TABLE, Bhyve, "Settings that only bhyve(8) has."),
    key("bhyve.args", Texts { one: false }, Bhyve, "Further arguments, each one word."),
    key("bhyve.options", Map, Bhyve, "Variables of bhyve_config(5), like `\"pci.0.4.0.maxq\" = 8`."),
    key(
        "bhyve.slots",
        Map,
        Bhyve,
        "PCI addresses of the devices that have no `slot` of their own: `hostbridge`, `lpc`, `rng`, `tablet`, `sound`, `channels`, `ahci:CONTROLLER`, `input:ID`, `share:ID`.",
    ),
    with("bhyve.hostbridge", OneOf(Hostbridge::ROWS), "\"standard\"", Bhyve, "The bridge at slot 0."),
    key("bhyve.fwcfg", OneOf(FwCfg::ROWS), Bhyve, "How firmware learns about the machine; `bhyve` without it."),
    key("bhyve.fw_cfg", Map, Bhyve, "Items of the firmware configuration device, like `\"opt/org.example/key\" = \"text\"`."),
    key("bhyve.fw_cfg_files", Map, Bhyve, "The same, each the absolute path of a file of the host."),
    with("bhyve.acpi_tables_in_memory", Flag, "true", Bhyve, "False for Windows with a TPM."),
    with("bhyve.ignore_bad_msr", Flag, "false", Bhyve, "Whether accesses of unknown MSRs are ignored; Windows needs it."),
    with("bhyve.strict_io", Flag, "false", Bhyve, "Whether bhyve ends at an access of an unknown port."),
    with("bhyve.vmexit_on_hlt", Flag, "true", Bhyve, "Whether an idle virtual CPU yields; otherwise it uses a whole CPU."),
    with("bhyve.vmexit_on_pause", Flag, "true", Bhyve, "Whether a spinning virtual CPU yields."),
    with("bhyve.x2apic", Flag, "false", Bhyve, "Whether the local APIC has its x2APIC mode."),
    with("bhyve.mptable", Flag, "true", Bhyve, "Whether there is an MP table; it cannot describe more than one PCI bus."),
    with("bhyve.virtio_msix", Flag, "true", Bhyve, "Whether virtio devices use MSI-X instead of MSI."),
    key("debug", TABLE, Now, "For people who develop kernels, and for tests."),
    with(
        "debug.exit_port",
        Flag,
        "false",
        Embedded,
        "QEMU's isa-debug-exit device at port 0xf4: a guest that writes N there ends with status 2N+1.",
    ),
    with(
        "debug.deterministic",
        Flag,
        "false",
        Embedded,
        "Whether the guest's time is counted in instructions, so that every run is the same; needs the software CPU and 1 CPU.",
    ),
    key("debug.gdb", TABLE, Bhyve, "A stub for gdb(1)."),
    key("debug.gdb.port", PORT, Bhyve, "Its port. Required."),
    with("debug.gdb.listen", Address, "\"127.0.0.1\"", Bhyve, "Address to listen on."),
    with("debug.gdb.wait", Flag, "false", Bhyve, "Whether the guest waits for the debugger."),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::host_keys::HOST_KEYS;

    #[test]
    fn every_key_stands_once_after_its_table_and_is_documented() {
        for keys in [&GUEST_KEYS, &HOST_KEYS] {
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
        for keys in [&GUEST_KEYS, &HOST_KEYS] {
            for key in keys.iter() {
                if let Some(parent) = keys.find(key.parent()) {
                    assert!(parent.support == Now || key.support != Now, "{} is not refused", key.path);
                }
            }
        }
    }
}
