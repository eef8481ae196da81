//! Preparation of the host for one boot. [`look`] finds obstacles and changes nothing. [`make`] changes the host step
//! by step, and notes each step in the journal first.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::Path;
use std::process::Child;

use crate::host::error::HostError;
use crate::host::files::write_atomically;
use crate::host::iscsi::Target;
use crate::host::jail_run::{self, Standing};
use crate::host::netgraph;
use crate::host::nmdm::{self, Line};
use crate::host::port::{Reserved, reserve};
use crate::host::program::ProgramError;
use crate::host::tap::{self, Membership, NewTap};
use crate::host::{environment, kmod, sysctl};
use crate::inputs;
use crate::machine::spec::EngineEvent;

use super::super::word::{Piece, Word};
use super::boot_plan::{BhyvePlan, CopiedFile, DiskUse, Program, Screen, TapPlan, UnitPlan};
use super::journal::{Journal, Made};
use super::outcome::Trouble;
use super::watch::Watch;

/// The ports that are tried for a screen without a port of its own.
const SCREEN_PORTS: std::ops::RangeInclusive<u16> = 5900..=5999;

/// Locks that are taken before anything is changed, and released after the boot.
#[derive(Debug)]
pub struct Reservations {
    disks: Vec<File>,
    port: Option<Reserved>,
    /// The jail of the network stack with the guest's taps; `None` for the host's.
    network: Option<String>,
}

/// Names for the command lines, and programs that run beside the guest.
#[derive(Debug)]
pub struct Prepared {
    taps: BTreeMap<String, String>,
    hooks: BTreeMap<String, netgraph::Reserved>,
    devices: BTreeMap<String, String>,
    port: Option<u16>,
    tpm: Option<Child>,
    reservations: Reservations,
}

fn failed(message: impl Into<String>) -> Trouble {
    Trouble::Failed(message.into())
}

fn host_failed(error: ProgramError) -> Trouble {
    match error.hint() {
        Some(hint) => failed(format!("{error}; {hint}")),
        None => failed(error.to_string()),
    }
}

/// Checks for all obstacles, and takes the locks that two boots must not share.
pub fn look(plan: &BhyvePlan, journal: &Journal) -> Result<Reservations, Trouble> {
    let vm = plan.machine();
    if vm.exists() && !journal.has_vm(&vm.name) {
        return Err(failed(format!(
            "there is a virtual machine `{name}` already (/dev/vmm/{name}), and it is not this guest's; \
             if nothing runs it, remove it with `bhyvectl --vm={name} --destroy`",
            name = vm.name
        )));
    }
    if let Some(line) = plan.lines.iter().find(|line| !nmdm::wait_until_free(line)) {
        return Err(failed(format!("`{}` is in use by another program", nmdm::a_side(line))));
    }
    if let Some(jail) = &plan.jail {
        match jail_run::standing(jail) {
            Standing::Missing => return Err(no_jail(jail)),
            Standing::NotAllowed => return Err(jail_not_allowed(jail)),
            // It is not known before vmm(4) is loaded, and checked again then.
            Standing::Allowed | Standing::Unknown(_) => {}
        }
    }
    let network = network(plan)?;
    for interface in &plan.interfaces {
        let (nic, name) = (&interface.nic, &interface.name);
        if !tap::exists(name, network.as_deref()).map_err(|error| failed(format!("nic `{nic}`: {error}")))? {
            return Err(failed(match &network {
                Some(jail) => format!("nic `{nic}`: there is no interface `{name}` in the jail `{jail}`"),
                None => format!("nic `{nic}`: there is no interface `{name}`; leave `interface` out and vmctl makes one"),
            }));
        }
        if let Some(pid) = tap::opened_by(name, network.as_deref()) {
            return Err(failed(format!("nic `{nic}`: `{name}` is in use by process {pid}")));
        }
    }
    let disks = plan.disks.iter().map(lock).collect::<Result<Vec<_>, _>>()?;
    let port = match &plan.screen {
        Some(Screen::Port { address, port: Some(port) }) => {
            Some(reserve(*address, std::iter::once(*port)).map_err(|error| match error.kind() {
                io::ErrorKind::AddrInUse => {
                    failed(format!("port {port} at {address} is in use; leave `graphics.port` out and a free one is taken"))
                }
                _ => failed(format!("the screen cannot be shown at {address}, port {port}: {error}")),
            })?)
        }
        Some(Screen::Port { address, port: None }) => Some(
            reserve(*address, SCREEN_PORTS)
                .map_err(|error| failed(format!("no port of 5900 to 5999 at {address} can be had for the screen: {error}")))?,
        ),
        _ => None,
    };
    Ok(Reservations { disks, port, network })
}

/// Returns the jail whose network stack has the guest's taps. A jail without one of its own shares the host's, and on some
/// releases bhyve can use no tap in it.
fn network(plan: &BhyvePlan) -> Result<Option<String>, Trouble> {
    let Some(jail) = plan.jail.as_ref().filter(|_| !plan.taps.is_empty() || !plan.interfaces.is_empty()) else {
        return Ok(None);
    };
    match jail_run::has_vnet(jail).map_err(host_failed)? {
        true => Ok(Some(jail.clone())),
        false if !jail_run::taps_need_vnet() => Ok(None),
        false => Err(failed(format!("{}; {}", jail_run::no_tap_without_vnet(jail), jail_run::vnet_hint(jail)))),
    }
}

fn no_jail(jail: &str) -> Trouble {
    failed(jail_run::missing(jail))
}

fn jail_not_allowed(jail: &str) -> Trouble {
    failed(format!(
        "the jail `{jail}` does not allow vmm(4); put `allow.vmm;` into its part of /etc/jail.conf and start it again"
    ))
}

/// Locks a disk against other guests, since two writers would destroy it. The lock is advisory, as in all engines of
/// this program.
fn lock(disk: &DiskUse) -> Result<File, Trouble> {
    let file = inputs::open_at_once(&disk.path)
        .map_err(|error| failed(format!("cannot open disk `{}` at `{}`: {error}", disk.id, disk.path.display())))?;
    let locked = if disk.read_only { file.try_lock_shared() } else { file.try_lock() };
    match locked {
        Err(std::fs::TryLockError::WouldBlock) => {
            Err(failed(format!("disk `{}`: `{}` is in use by another guest", disk.id, disk.path.display())))
        }
        // A device without support for locks is used nevertheless.
        _ => Ok(file),
    }
}

/// Makes the plan's resources. Those made before a failure are in the journal, for the caller to undo.
pub fn make(
    plan: &BhyvePlan,
    journal: &mut Journal,
    watch: &mut Watch<'_>,
    reservations: Reservations,
) -> Result<Prepared, Trouble> {
    for module in &plan.modules {
        kmod::ensure(module).map_err(|error| no_module(module, error))?;
        watch.orders()?;
    }
    if let Some(jail) = &plan.jail {
        match jail_run::standing(jail) {
            Standing::Allowed => {}
            Standing::NotAllowed => return Err(jail_not_allowed(jail)),
            Standing::Missing => return Err(no_jail(jail)),
            Standing::Unknown(error) => return Err(host_failed(error)),
        }
    }
    let port = reservations.port.as_ref().map(|port| port.address.port());
    let network = reservations.network.clone();
    let mut prepared =
        Prepared { taps: BTreeMap::new(), hooks: BTreeMap::new(), devices: BTreeMap::new(), port, tpm: None, reservations };
    if !plan.taps.is_empty() || !plan.interfaces.is_empty() {
        // Without it a tap stays down when bhyve opens it.
        sysctl::ensure("net.link.tap.up_on_open", "1").map_err(host_failed)?;
    }
    for interface in &plan.interfaces {
        watch.plugged(&interface.nic, &interface.name, network.as_deref());
    }
    for tap in &plan.taps {
        let name = make_tap(tap, network.as_deref(), journal)?;
        watch.plugged(&tap.nic, &name, network.as_deref());
        prepared.taps.insert(tap.nic.clone(), name);
        watch.orders()?;
    }
    for hook in &plan.hooks {
        let reserved = netgraph::reserve_link(&hook.path).map_err(|words| failed(format!("nic `{}`: {words}", hook.nic)))?;
        prepared.hooks.insert(hook.nic.clone(), reserved);
        watch.orders()?;
    }
    for unit in &plan.units {
        let device = attach(unit, journal)?;
        let used =
            DiskUse { id: unit.disk.clone(), path: environment::path(&format!("/dev/{device}")), read_only: unit.read_only };
        prepared.reservations.disks.push(lock(&used)?);
        prepared.devices.insert(unit.disk.clone(), device);
        watch.orders()?;
    }
    for file in &plan.files {
        write_atomically(&file.path, prepared.word(&file.text).as_bytes(), 0o600)
            .map_err(|error| failed(format!("cannot write `{}`: {error}", file.path.display())))?;
    }
    if let Some(variables) = &plan.variables {
        copy(variables)?;
    }
    for socket in &plan.sockets {
        journal.note(Made::File(socket.clone()))?;
        remove_stale(socket)?;
    }
    if let Some(tpm) = &plan.tpm {
        journal.note(Made::Tpm { pid_file: tpm.pid_file.clone() })?;
        journal.note(Made::File(tpm.socket.clone()))?;
        prepared.tpm = Some(tpm.start().map_err(|error| failed(error.to_string()))?);
        watch.orders()?;
    }
    for line in &plan.lines {
        if let Some(jail) = &plan.jail
            && !nmdm::make_in_jail(line, jail).map_err(host_failed)?
        {
            return Err(failed(format!(
                "the jail `{jail}` does not see the console `{}`; `vmctl jail prepare {jail}` shows the devfs(8) rules that it \
                 needs",
                nmdm::a_side(line)
            )));
        }
        let opened = Line::open(line)
            .map_err(|error| failed(format!("cannot open the console `{}`: {error}", nmdm::a_side(line).replace('A', "B"))))?;
        watch.open_line(opened);
    }
    let screen = match (&plan.screen, &prepared.reservations.port) {
        (Some(Screen::Socket(path)), _) => Some(format!("unix:{}", path.display())),
        (_, Some(port)) => Some(port.address.to_string()),
        _ => None,
    };
    if let Some(address) = screen {
        watch.tell(&EngineEvent::Screen { address });
    }
    Ok(prepared)
}

fn no_module(module: &str, error: ProgramError) -> Trouble {
    let why = match module {
        "vmm" => {
            "; it needs a processor with VT-x, EPT and unrestricted guest, or with AMD-V and RVI, switched on in the \
             firmware: `vmctl doctor` looks, and `engine = \"embedded\"` runs guests without it"
        }
        _ => "",
    };
    failed(format!("the kernel module `{module}` cannot be loaded: {error}{why}"))
}

fn make_tap(plan: &TapPlan, jail: Option<&str>, journal: &mut Journal) -> Result<String, Trouble> {
    let wrong = |error: ProgramError| failed(format!("nic `{}`: {error}", plan.nic));
    if let Some((switch, bridge)) = &plan.bridge
        && !tap::exists(bridge, jail).map_err(wrong)?
    {
        return Err(failed(match jail {
            Some(jail) => format!(
                "nic `{}`: the jail `{jail}` has a network stack of its own, and no bridge `{bridge}` of the switch `{switch}` \
                 in it; {}",
                plan.nic,
                jail_run::vnet_hint(jail)
            ),
            None => format!(
                "nic `{}`: the switch `{switch}` is not up: there is no interface `{bridge}`; `vmctl switch create {switch}` \
                 makes it",
                plan.nic
            ),
        }));
    }
    journal.note(Made::Tap { description: plan.description.clone(), jail: jail.map(str::to_owned) })?;
    let new = NewTap { kind: &plan.kind, description: &plan.description, mtu: plan.mtu };
    let name = tap::create(&new, jail).map_err(wrong)?;
    if let Some((_, bridge)) = &plan.bridge {
        tap::join(&name, bridge, Membership { private: plan.private, span: plan.span }, jail).map_err(wrong)?;
    }
    Ok(name)
}

/// Attaches a unit of a target, and returns its device.
fn attach(unit: &UnitPlan, journal: &mut Journal) -> Result<String, Trouble> {
    let wrong = |error: HostError| failed(format!("disk `{}`: {error}", unit.disk));
    Target::prepare().map_err(wrong)?;
    // An existing session of the user is used and left alone.
    if !unit.target.is_attached().map_err(wrong)? {
        journal.note(Made::Session(unit.target.clone()))?;
        unit.target.attach().map_err(wrong)?;
    }
    unit.target.device(unit.lun).map_err(wrong)
}

/// Maximum size of firmware variables and similar files: 64 MiB.
const MAX_COPY: u64 = 64 << 20;

/// Copies a file. The guest writes to its copy, which is its own unless it is copied for every boot.
fn copy(copy: &CopiedFile) -> Result<(), Trouble> {
    if copy.to.is_file() && !copy.anew {
        return Ok(());
    }
    let text =
        inputs::read(&copy.from, MAX_COPY).map_err(|error| failed(format!("cannot read `{}`: {error}", copy.from.display())))?;
    write_atomically(&copy.to, &text, 0o600).map_err(|error| failed(format!("cannot write `{}`: {error}", copy.to.display())))
}

/// Removes a socket without a listener, which would prevent the next one from being bound.
fn remove_stale(socket: &Path) -> Result<(), Trouble> {
    match std::fs::remove_file(socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(failed(format!("cannot remove `{}`: {error}", socket.display())))
        }
        _ => Ok(()),
    }
}

impl Prepared {
    /// Returns the words of a command line, with the names that are known now, for its jail.
    pub fn words(&self, plan: &BhyvePlan, program: &Program) -> Vec<String> {
        let mut words = vec![program.program.clone()];
        words.extend(program.arguments.iter().map(|argument| self.word(argument)));
        jail_run::inside(plan.jail.as_deref(), words)
    }

    /// Returns the words of bhyve itself as [`words`](Prepared::words) does, with its priority.
    pub fn bhyve_words(&self, plan: &BhyvePlan) -> Vec<String> {
        let mut words = self.words(plan, &plan.bhyve);
        if let Some(nice) = plan.nice {
            // nice(1) becomes the program, as jexec(8) does.
            words.splice(0..0, ["nice".to_owned(), "-n".to_owned(), nice.to_string()]);
        }
        words
    }

    fn word(&self, word: &Word) -> String {
        let piece = |piece: &Piece| match piece {
            Piece::Text(text) => text.clone(),
            Piece::Tap(nic) => self.taps.get(nic).expect("the plan makes every tap that it names").clone(),
            Piece::Hook(nic) => self.hooks.get(nic).expect("the plan chooses every hook that it names").hook.clone(),
            Piece::Device(disk) => self.devices.get(disk).expect("the plan attaches every unit that it names").clone(),
            Piece::ScreenPort => self.port.expect("the plan has a screen if it names its port").to_string(),
        };
        word.pieces().iter().map(piece).collect()
    }

    /// Ends the programs that run beside the guest.
    pub fn end(&mut self) {
        if let Some(mut tpm) = self.tpm.take() {
            // swtpm writes its state continuously and ends with its only connection. If not, it gets a signal.
            let pid = nix::unistd::Pid::from_raw(tpm.id() as i32);
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
            for _ in 0..200 {
                if !matches!(tpm.try_wait(), Ok(None)) {
                    return;
                }
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
            let _ = tpm.kill();
            let _ = tpm.wait();
        }
    }
}
