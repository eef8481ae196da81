//! The plan of one boot from a guest's configuration: it names what the command lines leave open, and lists what they
//! need of the host.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::config::{
    ComPort, DiskBackend, DiskConfig, GuestConfig, Limits, NicBackend, NicConfig, SwitchConfig, SwitchKind, Tpm, Uefi, VncListen,
};
use crate::guest::engine::BootSetup;
use crate::guest::error::{GuestError, Result};
use crate::guest::identity::short_hash;
use crate::guest::provision::disk_path;
use crate::guest::store::GuestDir;
use crate::guest::switch;
use crate::host::bhyve::HostFeatures;
use crate::host::iscsi::Target;
use crate::host::{firmware, jail_run, nmdm};
use crate::inputs;

use super::argv::{self, CommandLine, DiskPath, Firmware, Inputs, Plug, Resolved, ScreenAddress};
use super::run::boot_plan::{
    BhyvePlan, CopiedFile, DiskUse, HookPlan, InterfaceUse, NewFile, PLAN_VERSION, Program, Saved, Screen, TapPlan, UnitPlan,
};
use super::run::journal;

/// Returns the plan of a guest's next boot.
pub fn plan(boot: BootSetup<'_>, features: &HostFeatures) -> Result<BhyvePlan> {
    let BootSetup { guest, config, .. } = boot;
    let mark = short_hash(&[boot.state.uuid.as_str(), &guest.path().to_string_lossy()]);
    let (taps, interfaces) = interfaces(boot, &mark)?;
    let tpm = (config.tpm == Some(Tpm::Swtpm)).then(|| crate::host::swtpm::Tpm {
        directory: guest.path().join("tpm"),
        socket: guest.socket_called("tpm"),
        pid_file: guest.path().join("tpm.pid"),
    });
    let screen = config.graphics.as_ref().map(|graphics| match graphics.listen {
        VncListen::Tcp { address, port } => Screen::Port { address, port },
        VncListen::Socket => Screen::Socket(guest.socket_called("vnc")),
    });
    let lines: [Option<String>; 4] =
        std::array::from_fn(|at| (config.console.com[at] == ComPort::Console).then(|| format!("-vmctl-{mark}-{}", at + 1)));
    let firmware = config.uefi.as_ref().map(|uefi| find_firmware(guest, uefi)).transpose()?;
    let channels: BTreeMap<String, PathBuf> = config
        .channels
        .iter()
        .map(|channel| {
            let made = || channel_socket(guest, &channel.id);
            (channel.id.clone(), channel.path.clone().unwrap_or_else(made))
        })
        .collect();
    let mut resolved = Resolved {
        directory: guest.path().to_owned(),
        jail_root: jail_root(config)?,
        disks: config.disks.iter().map(|disk| Ok((disk.id.clone(), where_disk_is(guest, disk)?))).collect::<Result<_>>()?,
        interfaces: plugged_into(boot, &mark)?,
        consoles: lines.clone().map(|line| line.map(|line| nmdm::a_side(&line))),
        vnc: screen.as_ref().map(screen_address),
        vnc_password: config.graphics.as_ref().and_then(|g| g.password_file.as_deref()).map(password).transpose()?,
        tpm_socket: tpm.as_ref().map(|tpm| tpm.socket.clone()),
        channels: channels.clone(),
        firmware: firmware.as_ref().map(|(firmware, _)| firmware.clone()),
        root_partition: None,
    };
    resolved.look_at_disk(config);
    let commands = argv::build(Inputs { config, state: boot.state, features, resolved: &resolved })?;
    let mut bhyve = program(&commands.bhyve);
    let saved = saved(guest, resolved.jail_root.as_deref(), &bhyve)?;
    let resumes = resumes(&saved, guest.name())?;
    if resumes {
        bhyve.arguments.splice(0..0, ["-r".into(), saved.inside.display().to_string().into()]);
    }
    let mut sockets: Vec<PathBuf> = channels.into_values().collect();
    if let Some(Screen::Socket(path)) = &screen {
        sockets.push(path.clone());
    }
    let file = |file: &argv::GeneratedFile| NewFile { path: file.path.clone(), text: file.content.text().clone() };
    Ok(BhyvePlan {
        version: PLAN_VERSION,
        name: config.name.clone(),
        cpus: config.cpus.count(),
        journal: journal::file(guest),
        modules: modules(&lines, &taps, &interfaces),
        disks: disks(boot)?,
        units: units(config),
        taps,
        hooks: hooks(boot)?,
        interfaces,
        files: commands.files.iter().map(file).collect(),
        variables: firmware.and_then(|(_, copy)| copy),
        sockets,
        lines: lines.into_iter().flatten().collect(),
        tpm,
        screen,
        loader: commands.loader.as_ref().map(program),
        bhyve,
        jail: commands.jail,
        limits: limits(&config.limits),
        nice: config.limits.nice,
        saved,
        suspends: features.snapshot,
        resumes,
    })
}

/// Returns the socket of a port of the virtio console that has no `path`.
pub fn channel_socket(guest: &GuestDir, id: &str) -> PathBuf {
    guest.socket_called(&format!("channel-{id}"))
}

fn program(line: &CommandLine) -> Program {
    let arguments = line.arguments.iter().flat_map(|argument| argument.words.iter().cloned()).collect();
    Program { program: line.program.to_owned(), arguments }
}

/// Returns the address in the form of [`Resolved`]. The port is not known before the boot.
fn screen_address(screen: &Screen) -> ScreenAddress {
    match screen {
        Screen::Port { address, .. } => ScreenAddress::Tcp { address: *address, port: None },
        Screen::Socket(path) => ScreenAddress::Socket(path.clone()),
    }
}

/// Returns the first line of a file with a password. VNC accepts 8 characters.
fn password(path: &Path) -> Result<String> {
    let text = inputs::read_text(path, 4096).map_err(|error| GuestError::input("read the password in", path, error))?;
    let line = text.lines().next().unwrap_or_default();
    match (1..=8).contains(&line.len()) && line.bytes().all(|byte| (0x21..0x7f).contains(&byte)) {
        true => Ok(line.to_owned()),
        false => Err(GuestError::user(format!("the password in `{}` is not one of VNC", path.display()))
            .hint("a line of 1 to 8 printable ASCII characters")),
    }
}

fn modules(lines: &[Option<String>], taps: &[TapPlan], interfaces: &[InterfaceUse]) -> Vec<String> {
    let wanted = [
        ("vmm", true),
        ("nmdm", lines.iter().any(Option::is_some)),
        ("if_tuntap", !taps.is_empty() || !interfaces.is_empty()),
        ("if_bridge", taps.iter().any(|tap| tap.bridge.is_some())),
    ];
    wanted.iter().filter(|(_, wanted)| *wanted).map(|(name, _)| (*name).to_owned()).collect()
}

/// Returns the root of the guest's jail.
fn jail_root(config: &GuestConfig) -> Result<Option<PathBuf>> {
    let Some(jail) = &config.jail else { return Ok(None) };
    match &jail.root {
        Some(root) => Ok(Some(root.clone())),
        None => match jail_run::root(&jail.name) {
            Ok(root) => Ok(Some(root)),
            Err(error) => Err(GuestError::user(jail_run::words_of(&jail.name, &error))),
        },
    }
}

/// Returns the firmware, and the source of the guest's variables.
fn find_firmware(guest: &GuestDir, uefi: &Uefi) -> Result<(Firmware, Option<CopiedFile>)> {
    let missing = |what: &str, package: &str| {
        GuestError::user(format!("this host has no {what} for guests")).hint(format!("install it with `pkg install {package}`"))
    };
    let there = |path: &Path| match path.is_file() {
        true => Ok(()),
        false => Err(GuestError::user(format!("there is no firmware at `{}`", path.display()))),
    };
    if uefi.csm {
        let code = firmware::csm().ok_or_else(|| missing("UEFI firmware with CSM", firmware::CSM_PACKAGE))?;
        return Ok((Firmware { code, vars: None }, None));
    }
    let packaged = firmware::uefi();
    let code = match &uefi.firmware {
        Some(code) => code.clone(),
        None => {
            packaged.as_ref().map(|found| found.code.clone()).ok_or_else(|| missing("UEFI firmware", firmware::UEFI_PACKAGE))?
        }
    };
    there(&code)?;
    // The user's firmware has its own variables or none: those of another firmware do not fit.
    let template = match (&uefi.vars, &uefi.firmware) {
        (Some(vars), _) => Some(vars.clone()),
        (None, None) => packaged.and_then(|found| found.vars),
        (None, Some(_)) => None,
    };
    let Some(from) = template else { return Ok((Firmware { code, vars: None }, None)) };
    there(&from)?;
    let to = guest.path().join("uefi-vars.fd");
    let copy = CopiedFile { from, to: to.clone(), anew: !uefi.persistent };
    Ok((Firmware { code, vars: Some(to) }, Some(copy)))
}

/// Returns the host's end of each interface, by its id.
fn plugged_into(boot: BootSetup<'_>, mark: &str) -> Result<BTreeMap<String, Plug>> {
    let mut found = BTreeMap::new();
    for nic in &boot.config.nics {
        let end = match (nic.backend, &nic.interface) {
            (NicBackend::User | NicBackend::None, _) => continue,
            (_, Some(interface)) => Plug::Name(interface.clone()),
            (NicBackend::Tap | NicBackend::Vmnet, None) => Plug::Tap,
            (NicBackend::Vale, None) => {
                // Names of ports have at most 15 bytes, and two guests must not share one.
                let port = short_hash(&[mark, &nic.id]);
                let vale = match &nic.switch {
                    Some(id) => switch::switch(switch::find(boot.switches, nic, id)?).vale(),
                    None => "vale-vmctl".to_owned(),
                };
                Plug::Name(format!("{vale}:{}", &port[..12]))
            }
            (NicBackend::Netmap, None) => {
                return Err(GuestError::user(format!("nic `{}`: netmap needs an interface", nic.id)).hint("set `interface`"));
            }
            (NicBackend::Netgraph, None) => {
                let peerhook = nic.netgraph.as_ref().and_then(|hook| hook.peerhook.clone());
                Plug::Netgraph { path: netgraph_path(boot.switches, nic)?, peerhook }
            }
        };
        found.insert(nic.id.clone(), end);
    }
    Ok(found)
}

fn netgraph_path(switches: &[SwitchConfig], nic: &NicConfig) -> Result<String> {
    match (nic.netgraph.as_ref().and_then(|hook| hook.path.clone()), &nic.switch) {
        (Some(path), _) => Ok(path),
        (None, Some(id)) => match &switch::find(switches, nic, id)?.kind {
            SwitchKind::Netgraph { node, .. } => Ok(format!("{node}:")),
            _ => Err(GuestError::user(format!("nic `{}`: the switch `{id}` is none of netgraph", nic.id))
                .hint("set `backend` to the switch's own type")),
        },
        (None, None) => {
            Err(GuestError::user(format!("nic `{}`: no netgraph node is named", nic.id)).hint("set `path`, or `switch`"))
        }
    }
}

/// Returns the hooks that must be chosen, since the guest file names none.
fn hooks(boot: BootSetup<'_>) -> Result<Vec<HookPlan>> {
    let named = |nic: &NicConfig| nic.netgraph.as_ref().is_some_and(|hook| hook.peerhook.is_some());
    let open = |nic: &&NicConfig| nic.backend == NicBackend::Netgraph && nic.interface.is_none() && !named(nic);
    let nics = boot.config.nics.iter().filter(open);
    nics.map(|nic| Ok(HookPlan { nic: nic.id.clone(), path: netgraph_path(boot.switches, nic)? })).collect()
}

/// Returns the path of a disk.
fn where_disk_is(guest: &GuestDir, disk: &DiskConfig) -> Result<DiskPath> {
    match disk.iscsi {
        Some(_) => Ok(DiskPath::Unit),
        None => Ok(DiskPath::File(disk_path(guest, disk)?)),
    }
}

fn units(config: &GuestConfig) -> Vec<UnitPlan> {
    let unit = |disk: &DiskConfig| {
        let unit = disk.iscsi.as_ref()?;
        let target = Target { name: unit.target.clone(), portal: unit.portal.clone() };
        Some(UnitPlan { disk: disk.id.clone(), target, lun: unit.lun, read_only: disk.ro })
    };
    config.disks.iter().filter_map(unit).collect()
}

fn disks(boot: BootSetup<'_>) -> Result<Vec<DiskUse>> {
    let disks = boot.config.disks.iter().filter(|disk| disk.backend != DiskBackend::Iscsi);
    disks.map(|disk| Ok(DiskUse { id: disk.id.clone(), path: disk_path(boot.guest, disk)?, read_only: disk.ro })).collect()
}

/// Returns the taps to make, and the existing ones.
fn interfaces(boot: BootSetup<'_>, mark: &str) -> Result<(Vec<TapPlan>, Vec<InterfaceUse>)> {
    let (mut taps, mut interfaces) = (Vec::new(), Vec::new());
    for nic in &boot.config.nics {
        let kind = match nic.backend {
            NicBackend::Tap => "tap",
            NicBackend::Vmnet => "vmnet",
            _ => continue,
        };
        if let Some(name) = &nic.interface {
            interfaces.push(InterfaceUse { nic: nic.id.clone(), name: name.clone() });
            continue;
        }
        let switch = nic.switch.as_ref().map(|id| switch::find(boot.switches, nic, id)).transpose()?;
        taps.push(TapPlan {
            nic: nic.id.clone(),
            kind: kind.to_owned(),
            description: format!("vmctl/{}/{}/{mark}", boot.config.name, nic.id),
            bridge: switch.map(|switch| Ok::<_, GuestError>((switch.id.clone(), switch::bridge_of(nic, switch)?))).transpose()?,
            mtu: (nic.mtu != 1500).then_some(nic.mtu).or(switch.and_then(|switch| switch.mtu)),
            private: nic.private || switch.is_some_and(|switch| switch.private),
            span: nic.span,
        });
    }
    Ok((taps, interfaces))
}

/// Returns the paths of the saved state. bhyve's command line identifies the devices that it was saved with.
fn saved(guest: &GuestDir, jail_root: Option<&Path>, bhyve: &Program) -> Result<Saved> {
    let words = serde_json::to_string(bhyve).expect("plain fields");
    let memory = guest.path().join("saved");
    let inside = match jail_root {
        None => memory.clone(),
        Some(root) => Path::new("/").join(memory.strip_prefix(root).map_err(|_| {
            GuestError::user(format!("the guest's directory `{}` is outside of its jail", guest.path().display()))
                .hint(format!("use a datastore below the jail's root, `{}`", root.display()))
        })?),
    };
    Ok(Saved { memory, inside, fingerprint: short_hash(&[&words]) })
}

/// Returns whether there is a saved state to resume. A state with other devices stops the boot, since it would be lost.
fn resumes(saved: &Saved, name: &str) -> Result<bool> {
    match saved.kept() {
        None => Ok(false),
        Some(fingerprint) if fingerprint == saved.fingerprint => Ok(true),
        Some(_) => Err(GuestError::user(format!("`{name}` was suspended, and its devices are others now"))
            .hint(format!("undo the change of its file, or give up what was saved: `rm {}*`", saved.memory.display()))),
    }
}

/// Returns the rules of rctl(8), without the process.
fn limits(limits: &Limits) -> Vec<String> {
    let rule = |what: &str, value: Option<u64>, action: &str| value.map(|value| format!("{what}:{action}={value}"));
    let bytes = |size: Option<crate::units::ByteSize>| size.map(|size| size.bytes());
    [
        rule("pcpu", limits.cpu_percent.map(u64::from), "deny"),
        rule("readbps", bytes(limits.read_bps), "throttle"),
        rule("writebps", bytes(limits.write_bps), "throttle"),
        rule("readiops", limits.read_iops.map(u64::from), "throttle"),
        rule("writeiops", limits.write_iops.map(u64::from), "throttle"),
    ]
    .into_iter()
    .flatten()
    .collect()
}
