//! `vmctl info`.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::PathBuf;

use serde::Serialize;

use super::list::uptime;
use super::selection::Place;
use super::{App, ExitStatus, Failure, Guests, Outcome};
use crate::guest::definition::Definition;
use crate::guest::figures::counters;
use crate::guest::overview::{Observer, Overview};
use crate::guest::provision::disk_path;
use crate::guest::store::GuestDir;
use crate::host::{files::disk_size, process};
use crate::units::ByteSize;

/// Show what is known of guests
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    guests: Guests,
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
    forwards: Vec<String>,
    resident_bytes: Option<u64>,
    cpu_seconds: Option<f64>,
    counters: BTreeMap<String, u64>,
}

#[derive(Serialize)]
struct DiskInfo {
    id: String,
    path: PathBuf,
    size_bytes: Option<u64>,
    used_bytes: Option<u64>,
    slot: Option<u8>,
}

#[derive(Serialize)]
struct NicInfo {
    id: String,
    mac: Option<String>,
    slot: Option<u8>,
    /// What the user-mode network's DHCP hands out.
    address: Option<String>,
}

impl Args {
    pub fn run(self, app: &App) -> Outcome {
        let place = app.place_to_look()?;
        let mut infos = Vec::new();
        let status = app.each_in_turn(self.guests.choose(&place)?, |guest| {
            infos.push(gather(guest, &place)?);
            Ok(ExitStatus::Done)
        })?;
        if app.ui.is_json() || app.ui.format() == super::OutputFormat::Name {
            app.ui.list("guest-info", 1, &infos, &[], |info: &Info| info.overview.name.clone())?;
        } else {
            app.ui.data(&infos.iter().map(text).collect::<Vec<_>>().join("\n"))?;
        }
        Ok(status)
    }
}

fn gather(guest: &GuestDir, place: &Place) -> Result<Info, Failure> {
    let (overview, state) = Observer::new(place.around()).look(guest)?;
    let config = Definition::load(guest, place.around()).ok().map(|definition| definition.config);
    let disks = config.iter().flat_map(|config| &config.disks).map(|disk| {
        let path = disk_path(guest, disk).unwrap_or_default();
        let size = disk_size(&path).ok();
        let slot = state.slots.get(&format!("disk:{}", disk.id)).copied();
        DiskInfo { id: disk.id.clone(), size_bytes: size.map(|s| s.0), used_bytes: size.map(|s| s.1), path, slot }
    });
    let nics = config.iter().flat_map(|config| &config.nics).map(|nic| NicInfo {
        id: nic.id.clone(),
        mac: state.macs.get(&nic.id).cloned(),
        slot: state.slots.get(&format!("nic:{}", nic.id)).copied(),
        address: (nic.backend == crate::config::NicBackend::User).then(|| nic.user.guest.to_string()),
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
        forwards: state.run.as_ref().filter(|_| overview.pid.is_some()).map(|run| run.forwards.clone()).unwrap_or_default(),
        resident_bytes: usage.map(|(bytes, _)| bytes),
        cpu_seconds: usage.map(|(_, time)| time.as_secs_f64()),
        // A user that may not talk to the supervisor, or an engine that does not answer, costs only the counters.
        counters: running.then(|| counters(guest)).flatten().unwrap_or_default(),
        overview,
    })
}

fn text(info: &Info) -> String {
    let guest = &info.overview;
    let mut out = String::new();
    let mut line = |key: &str, value: String| {
        if !value.is_empty() {
            let _ = writeln!(out, "{key:<14}{value}");
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
    line("cpus", guest.cpus.map(|cpus| cpus.to_string()).unwrap_or_default());
    line("memory", guest.memory_bytes.map(|bytes| ByteSize::from_bytes(bytes).to_string()).unwrap_or_default());
    let backend = guest.backend.as_ref().map(|backend| format!(" ({backend})")).unwrap_or_default();
    line("engine", guest.engine.as_ref().map(|engine| format!("{engine}{backend}")).unwrap_or_default());
    if let (Some(pid), Some(engine)) = (guest.pid, guest.engine_pid) {
        line("processes", format!("supervisor {pid}, engine {engine}"));
    }
    if let (Some(bytes), Some(seconds)) = (info.resident_bytes, info.cpu_seconds) {
        line("engine uses", format!("{} MiB of memory, {seconds:.1} s of processor time", bytes >> 20));
    }
    for disk in &info.disks {
        let bytes =
            |bytes: Option<u64>| bytes.map_or("?".into(), |bytes| format!("{:.1} GiB", bytes as f64 / (1u64 << 30) as f64));
        line(
            "disk",
            format!("{}: {}, {} used, {}", disk.id, bytes(disk.size_bytes), bytes(disk.used_bytes), disk.path.display()),
        );
    }
    for nic in &info.nics {
        let address = nic.address.as_ref().map(|address| format!(", {address}")).unwrap_or_default();
        line("nic", format!("{}: {}{address}", nic.id, nic.mac.as_deref().unwrap_or("no address yet")));
    }
    for forward in &info.forwards {
        line("forward", forward.clone());
    }
    line("installing", guest.medium.as_ref().map(|path| format!("from {}", path.display())).unwrap_or_default());
    line("screen", guest.screen.clone().unwrap_or_default());
    line("tags", guest.tags.join(", "));
    line("uuid", guest.uuid.clone());
    line("created", info.created.clone().unwrap_or_default());
    line("file", info.file.display().to_string());
    line("directory", info.directory.display().to_string());
    for (name, value) in &info.counters {
        line("counter", format!("{name} {value}"));
    }
    out
}
