//! `vmctl info`: shows the details of guests.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::PathBuf;

use serde::Serialize;

use super::list::{cpus, memory, uptime, uuid};
use super::progress::size_words;
use super::selection::CommandContext;
use super::{App, ExitStatus, Failure, Guests, Outcome};
use crate::config::{DeviceKey, EngineKind};
use crate::guest::agent::commands::AgentInterface;
use crate::guest::definition::Definition;
use crate::guest::figures::counters;
use crate::guest::overview::{Observer, Overview};
use crate::guest::state::{Confined, Machine};
use crate::guest::store::GuestDir;
use crate::host::{files::disk_size, process};

/// Show the details of guests
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    guests: Guests,
    /// Also show the counters of the engine and of its devices; JSON has them anyway
    #[arg(long)]
    counters: bool,
}

#[derive(Serialize)]
struct Info {
    #[serde(flatten)]
    overview: Overview,
    directory: PathBuf,
    file: PathBuf,
    created: Option<String>,
    boots: u64,
    disks: Vec<DiskInfo>,
    nics: Vec<NicInfo>,
    /// The guest's interfaces, as its agent tells them.
    interfaces: Vec<AgentInterface>,
    /// Whether its agent has answered in this boot; `null` while it does not run.
    agent: Option<bool>,
    forwards: Vec<String>,
    resident_bytes: Option<u64>,
    cpu_seconds: Option<f64>,
    /// What the engine gave up.
    confined: Option<Confined>,
    counters: BTreeMap<String, u64>,
}

#[derive(Serialize)]
struct DiskInfo {
    id: String,
    path: PathBuf,
    size_bytes: Option<u64>,
    used_bytes: Option<u64>,
    slot: Option<u8>,
    boot: Boot,
}

#[derive(Serialize)]
struct NicInfo {
    id: String,
    mac: Option<String>,
    slot: Option<u8>,
    /// Address that the user-mode network's DHCP gives.
    address: Option<String>,
    boot: Boot,
}

/// Which boot has a part.
#[derive(Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Boot {
    /// This one and the next; of a guest that does not run, the next.
    Both,
    /// This one alone: the guest file has it no more.
    This,
    /// The next.
    Next,
}

impl Boot {
    fn words(self) -> &'static str {
        match self {
            Boot::Both => "",
            Boot::This => " (until the next boot)",
            Boot::Next => " (from the next boot on)",
        }
    }
}

/// Returns the parts of this boot and of the next, each once, those that run first.
fn of_both<T: PartialEq>(now: Option<Vec<T>>, next: Option<Vec<T>>) -> Vec<(T, Boot)> {
    match (now, next) {
        (Some(now), Some(next)) => {
            let new: Vec<(T, Boot)> = next.into_iter().map(|part| (part, Boot::Next)).collect();
            let (kept, new): (Vec<_>, Vec<_>) = new.into_iter().partition(|(part, _)| now.contains(part));
            let is_kept = |part: &T| kept.iter().any(|(other, _)| other == part);
            let mut parts: Vec<(T, Boot)> = now
                .into_iter()
                .map(|part| {
                    let boot = if is_kept(&part) { Boot::Both } else { Boot::This };
                    (part, boot)
                })
                .collect();
            parts.extend(new);
            parts
        }
        (now, next) => now.or(next).unwrap_or_default().into_iter().map(|part| (part, Boot::Both)).collect(),
    }
}

impl Args {
    pub fn run(self, app: &App) -> Outcome {
        let context = app.context_to_look()?;
        let mut infos = Vec::new();
        let status = app.each_in_turn(self.guests.choose(&context)?, |guest| {
            infos.push(gather(guest, &context)?);
            Ok(ExitStatus::Done)
        })?;
        if app.ui.is_json() || app.ui.format() == super::OutputFormat::Name {
            app.ui.list("guest-info", 1, &infos, &[], |info: &Info| info.overview.name.clone())?;
        } else {
            app.ui.data(&infos.iter().map(|info| text(info, self.counters, app.ui.columns())).collect::<Vec<_>>().join("\n"))?;
        }
        Ok(status)
    }
}

fn gather(guest: &GuestDir, context: &CommandContext) -> Result<Info, Failure> {
    let (overview, state) = Observer::new(context.surroundings()).look(guest)?;
    let config = Definition::load(guest, context.surroundings()).ok().map(|definition| definition.config);
    // Under bhyve an address also has a bus and a function.
    let embedded = config.as_ref().is_some_and(|config| config.engine == EngineKind::Embedded);
    let slot = |key: DeviceKey| state.address(&key).filter(|_| embedded).map(|address| address.slot);
    let next = config.map(|config| Machine::of(guest, &config, &state));
    let machine = state.run.as_ref().filter(|_| overview.pid.is_some()).and_then(|run| run.machine.clone());
    let (disks, nics) = (machine.as_ref().map(|it| it.disks.clone()), machine.map(|it| it.nics));
    let disks = of_both(disks, next.as_ref().map(|it| it.disks.clone())).into_iter().map(|((id, path), boot)| {
        let size = disk_size(&path).ok();
        let slot = slot(DeviceKey::Disk(id.clone()));
        DiskInfo { id, size_bytes: size.map(|s| s.0), used_bytes: size.map(|s| s.1), path, slot, boot }
    });
    let nics = of_both(nics, next.map(|it| it.nics)).into_iter().map(|(nic, boot)| NicInfo {
        slot: slot(DeviceKey::Nic(nic.id.clone())),
        id: nic.id,
        mac: nic.mac,
        address: nic.address,
        boot,
    });
    let usage = overview.engine_pid.and_then(process::usage);
    let running = overview.state == "running";
    Ok(Info {
        directory: guest.path().to_owned(),
        file: guest.config_file(),
        created: state.created.map(|created| created.to_string()),
        boots: state.boots,
        disks: disks.collect(),
        nics: nics.collect(),
        interfaces: state.run.as_ref().filter(|_| running).map(|run| run.interfaces.clone()).unwrap_or_default(),
        agent: state.run.as_ref().filter(|_| running).map(|run| run.agent),
        forwards: state.run.as_ref().filter(|_| overview.pid.is_some()).map(|run| run.forwards.clone()).unwrap_or_default(),
        resident_bytes: usage.map(|(bytes, _)| bytes),
        cpu_seconds: usage.map(|(_, time)| time.as_secs_f64()),
        // If the user may not talk to the supervisor, or the engine does not answer, only the counters are missing.
        counters: running.then(|| counters(guest)).flatten().unwrap_or_default(),
        confined: state.run.as_ref().filter(|_| running).and_then(|run| run.confined.clone()),
        overview,
    })
}

/// Width of the column of keys.
const KEYS: usize = 14;

/// Breaks a value at spaces where the terminal has no room for it. What has no space, like a path, is left whole.
fn broken(value: &str, columns: Option<usize>) -> String {
    let room = columns.unwrap_or(usize::MAX).saturating_sub(KEYS);
    let (mut out, mut width) = (String::new(), 0);
    for word in value.split(' ') {
        let length = word.chars().count();
        if width > 0 && width + 1 + length > room {
            out.push_str(&format!("\n{:KEYS$}", ""));
            width = 0;
        } else if width > 0 {
            out.push(' ');
            width += 1;
        }
        out.push_str(word);
        width += length;
    }
    out
}

/// Returns the details in words, a line for each that is not empty.
fn text(info: &Info, with_counters: bool, columns: Option<usize>) -> String {
    let guest = &info.overview;
    let mut out = String::new();
    let mut line = |key: &str, value: String| {
        if !value.is_empty() {
            let _ = writeln!(out, "{key:<KEYS$}{}", broken(&value, columns));
        }
    };
    let yes = |flag: bool, word: &str| if flag { word.to_owned() } else { String::new() };
    line("name", guest.name.clone());
    line("description", guest.description.clone().unwrap_or_default());
    line("state", guest.state.to_owned());
    line("failed", guest.failed.clone().unwrap_or_default());
    line("problem", guest.problem.clone().unwrap_or_default());
    line("ready", yes(guest.ready, "yes"));
    line("restart", yes(guest.restart_pending, "pending: the guest file has changed since this boot"));
    line("protected", yes(guest.protected, "yes"));
    line("uptime", uptime(guest));
    line("boots", format!("{} ({} restarts since it was last started)", info.boots, guest.restarts));
    if let Some(exit) = &guest.last_exit {
        line("last exit", format!("{}, at {}", exit.reason, exit.at));
    }
    line("cpus", cpus(guest));
    line("memory", memory(guest));
    let backend = guest.backend.as_ref().map(|backend| format!(" ({backend})")).unwrap_or_default();
    line("engine", guest.engine.as_ref().map(|engine| format!("{engine}{backend}")).unwrap_or_default());
    if let (Some(pid), Some(engine)) = (guest.pid, guest.engine_pid) {
        line("processes", format!("supervisor {pid}, engine {engine}"));
    }
    if let Some(confined) = &info.confined {
        line("confined by", confined.by.join(", "));
        line("not by", confined.without.join("; "));
    }
    if let (Some(bytes), Some(seconds)) = (info.resident_bytes, info.cpu_seconds) {
        line("engine uses", format!("{} of memory, {seconds:.1} s of processor time", size_words(bytes)));
    }
    for disk in &info.disks {
        let bytes = |bytes: Option<u64>| bytes.map_or("?".into(), size_words);
        line(
            "disk",
            format!(
                "{}: {}, {} used, {}{}",
                disk.id,
                bytes(disk.size_bytes),
                bytes(disk.used_bytes),
                disk.path.display(),
                disk.boot.words()
            ),
        );
    }
    for nic in &info.nics {
        let address = nic.address.as_ref().map(|address| format!(", {address}")).unwrap_or_default();
        line("nic", format!("{}: {}{address}{}", nic.id, nic.mac.as_deref().unwrap_or("no address yet"), nic.boot.words()));
    }
    for interface in &info.interfaces {
        let addresses: Vec<String> = interface.addresses.iter().map(ToString::to_string).collect();
        let mac = interface.mac.as_ref().map(|mac| format!(" ({mac})")).unwrap_or_default();
        line("in the guest", format!("{}{mac}: {}", interface.name, addresses.join(", ")));
    }
    for forward in &info.forwards {
        line("forward", forward.clone());
    }
    line("installing", guest.medium.as_ref().map(|path| format!("from {}", path.display())).unwrap_or_default());
    line("ssh", guest.ssh.clone().unwrap_or_default());
    line("screen", guest.screen.clone().unwrap_or_default());
    line("tags", guest.tags.join(", "));
    line("uuid", uuid(guest));
    line("created", info.created.clone().unwrap_or_default());
    line("file", info.file.display().to_string());
    line("directory", info.directory.display().to_string());
    for (name, value) in info.counters.iter().filter(|_| with_counters) {
        line("counter", format!("{name} {value}"));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_value_goes_on_below_itself_and_a_word_stays_whole() {
        let value = "namespaces net ipc uts, no capabilities";
        assert_eq!(broken(value, None), value);
        assert_eq!(broken(value, Some(KEYS + value.len())), value);
        let keys = " ".repeat(KEYS);
        assert_eq!(broken(value, Some(KEYS + 26)), format!("namespaces net ipc uts, no\n{keys}capabilities"));
        assert_eq!(broken("root: /a/very/long/path", Some(KEYS + 8)), format!("root:\n{keys}/a/very/long/path"));
        assert_eq!(broken("two  spaces", None), "two  spaces");
        assert_eq!(broken("", Some(3)), "");
    }
}
