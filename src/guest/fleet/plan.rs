//! The plan of a fleet: the changes that applying it would make. It compares the fleet file with the existing guests.
//!
//! For a guest whose file is as the fleet wants it, only its record, its disks and its identity are checked. Another
//! guest's file is read, and the two are compared key by key.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::config::render::{Origin, render};
use crate::config::{
    DiskBackend, Fleet, FleetGuest, GuestConfig, GuestRequest, NamePattern, PatternError, fleet_directory, load_guest,
};
use crate::host::files::disk_size;
use crate::inputs;
use crate::units::ByteSize;

use super::membership::{Membership, hash_of};
use super::secrets::{self, SecretState};
use super::switches::{self, SwitchPlan};
use crate::guest::definition::{Definition, Surroundings};
use crate::guest::disk_record::DiskRecord;
use crate::guest::error::{GuestError, Result};
use crate::guest::lock::{GuestLock, Role};
use crate::guest::provision::{disk_path, found, is_own};
use crate::guest::store::{GuestDir, Store};

/// Class of a change: when it takes effect, and what it costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Class {
    /// A new guest.
    Create,
    /// At once.
    Live,
    /// When the guest boots the next time.
    NextBoot,
    /// Something is recreated. Its old contents are removed, or are gone already.
    Recreate,
    /// Data is removed.
    Destroy,
}

/// One change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Change {
    /// When it takes effect.
    pub class: Class,
    /// The key, dotted as in `--set`, or another subject, like `disks.root`.
    pub key: String,
    /// Old value in TOML; `None` if it was not set.
    pub before: Option<String>,
    /// New value in TOML; `None` if it is not set any more.
    pub after: Option<String>,
    /// The file that sets it.
    pub source: Option<String>,
    /// Line in the file, from 1.
    pub line: Option<usize>,
    /// Whether it was changed by hand, not in the fleet file.
    pub drift: bool,
    /// A remark, if the values do not explain the change.
    pub note: Option<String>,
}

/// Plan for one guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct GuestPlan {
    /// Its name.
    pub name: String,
    /// Action for the whole guest.
    pub action: GuestAction,
    /// Whether a supervisor has it.
    pub running: bool,
    /// Whether it runs with another configuration than its file will have.
    pub restart: bool,
    /// Changes, key by key.
    pub changes: Vec<Change>,
    /// Reason why nothing is done.
    pub refused: Option<String>,
    /// Its data that only `--prune` removes, if that was not requested.
    pub left_over: Vec<PathBuf>,
}

/// Action for a guest or a switch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum GuestAction {
    /// Nothing.
    None,
    /// It is made.
    Create,
    /// It changes.
    Change,
    /// It is removed with its disks.
    Destroy,
    /// It is not in the fleet any more, and stays because `--prune` was not requested.
    Leave,
}

/// Plan of a fleet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FleetPlan {
    /// Name of the fleet.
    pub fleet: String,
    /// Whether an apply was killed before it was done.
    pub interrupted: bool,
    /// The guests with changes, in the order of the fleet file, then those to remove.
    pub guests: Vec<GuestPlan>,
    /// Names of secrets that are new or changed.
    pub secrets: Vec<String>,
    /// Switches of the fleet or its guests that are not as they should be.
    pub switches: Vec<SwitchPlan>,
    /// Number of guests that are as they should be.
    pub unchanged: usize,
    /// Number of guests of other hosts.
    pub elsewhere: usize,
}

/// Scope of a plan.
#[derive(Debug, Clone, Default)]
pub struct Scope {
    /// Names or globs; all guests when empty.
    pub targets: Vec<String>,
    /// Whether data may be removed.
    pub prune: bool,
    /// Whether to restart a running guest whose next boot would differ.
    pub reboot: bool,
}

impl FleetPlan {
    /// Returns whether applying it would do something.
    pub fn has_changes(&self) -> bool {
        !self.secrets.is_empty()
            || self.switches.iter().any(SwitchPlan::does_something)
            || self.guests.iter().any(GuestPlan::does_something)
    }
    /// Returns the number of guests with this action.
    pub fn count(&self, action: GuestAction) -> usize {
        self.guests.iter().filter(|guest| guest.action == action).count()
    }
    /// Returns whether data is removed.
    pub fn destroys(&self) -> bool {
        self.guests.iter().any(GuestPlan::destroys)
    }
}

impl GuestPlan {
    fn of(name: &str) -> GuestPlan {
        GuestPlan {
            name: name.to_owned(),
            action: GuestAction::None,
            running: false,
            restart: false,
            changes: Vec::new(),
            refused: None,
            left_over: Vec::new(),
        }
    }
    /// Returns whether applying it would do something.
    pub fn does_something(&self) -> bool {
        matches!(self.action, GuestAction::Create | GuestAction::Change | GuestAction::Destroy)
    }
    /// Returns whether data is removed.
    pub fn destroys(&self) -> bool {
        self.action == GuestAction::Destroy || self.changes.iter().any(|change| change.class == Class::Destroy)
    }
    fn is_silent(&self) -> bool {
        self.action == GuestAction::None && self.refused.is_none() && self.left_over.is_empty() && !self.restart
    }
}

/// Compares a fleet with the guests of a store.
pub fn plan(fleet: &Fleet, store: &Store, surroundings: Surroundings<'_>, scope: &Scope) -> Result<FleetPlan> {
    let targets = Targets::new(fleet, store, &scope.targets)?;
    let journal = fleet_directory(surroundings.datastore, &fleet.name).join(super::apply::journal::FILE);
    let mut plan = FleetPlan {
        fleet: fleet.name.clone(),
        interrupted: journal.exists(),
        guests: Vec::new(),
        secrets: Vec::new(),
        switches: switches::look(fleet, store, surroundings, &targets, scope.prune)?,
        unchanged: 0,
        elsewhere: fleet.guests.iter().filter(|guest| !guest.here).count(),
    };
    for secret in &fleet.secrets {
        if secrets::look(secret)?.0 != SecretState::Kept {
            plan.secrets.push(secret.id.clone());
        }
    }
    let there: BTreeSet<String> = store.names()?.into_iter().collect();
    let wanted: HashMap<&str, &FleetGuest> = fleet.here().map(|guest| (guest.config.name.as_str(), guest)).collect();
    for guest in fleet.here().filter(|guest| targets.mean(&guest.config.name)) {
        let planned = match there.contains(&guest.config.name) {
            true => change(fleet, guest, &store.directory_of(&guest.config.name), surroundings, scope)?,
            false => create(guest),
        };
        match planned.is_silent() {
            true => plan.unchanged += 1,
            false => plan.guests.push(planned),
        }
    }
    for name in there.iter().filter(|name| !wanted.contains_key(name.as_str()) && targets.mean(name)) {
        plan.guests.extend(removal(fleet, &store.directory_of(name), surroundings, scope)?);
    }
    Ok(plan)
}

/// Selection of guests.
pub struct Targets(Option<Vec<NamePattern>>);

impl Targets {
    fn new(fleet: &Fleet, store: &Store, patterns: &[String]) -> Result<Targets> {
        if patterns.is_empty() {
            return Ok(Targets(None));
        }
        let there = store.names()?;
        let mut set = Vec::new();
        for pattern in patterns {
            let compiled: NamePattern = pattern.parse().map_err(|error: PatternError| GuestError::user(error.to_string()))?;
            let known = || fleet.here().map(|guest| guest.config.name.as_str()).chain(there.iter().map(String::as_str));
            if !known().any(|name| compiled.matches(name)) {
                let error = GuestError::user(format!("no guest of the fleet `{}` matches `{pattern}`", fleet.name));
                return Err(match crate::config::diagnostic::nearest(pattern, known()) {
                    Some(near) => error.hint(format!("did you mean `{near}`?")),
                    None => error,
                });
            }
            set.push(compiled);
        }
        Ok(Targets(Some(set)))
    }

    /// Whether they are all guests.
    pub fn are_all(&self) -> bool {
        self.0.is_none()
    }

    pub fn mean(&self, name: &str) -> bool {
        self.0.as_ref().is_none_or(|set| set.iter().any(|pattern| pattern.matches(name)))
    }
}

/// Plans a new guest.
fn create(guest: &FleetGuest) -> GuestPlan {
    let changes = additions(render(&guest.resolved, false).1);
    GuestPlan { action: GuestAction::Create, changes, ..GuestPlan::of(&guest.config.name) }
}

fn changed(class: Class, before: Option<&Origin>, after: Option<Origin>) -> Change {
    let (key, after, source, line) = match after {
        Some(origin) => (origin.key, Some(origin.value), Some(origin.source), origin.line),
        None => (before.map(|origin| origin.key.clone()).unwrap_or_default(), None, None, None),
    };
    Change { class, key, before: before.map(|origin| origin.value.clone()), after, source, line, drift: false, note: None }
}

/// Returns the settings of something new.
pub fn additions(origins: Vec<Origin>) -> Vec<Change> {
    let set = origins.into_iter().filter(|origin| origin.line.is_some());
    set.map(|origin| changed(Class::Create, None, Some(origin))).collect()
}

/// Returns the differences, key by key: changed or new ones in the order of `after`, then removed ones.
pub fn differences(before: &[Origin], after: Vec<Origin>, class: impl Fn(&str) -> Class) -> Vec<Change> {
    let mut old: BTreeMap<&str, &Origin> = before.iter().map(|origin| (origin.key.as_str(), origin)).collect();
    let mut changes = Vec::new();
    for origin in after {
        let was = old.remove(origin.key.as_str());
        if was.is_none_or(|was| was.value != origin.value) {
            changes.push(changed(class(&origin.key), was, Some(origin)));
        }
    }
    let mut gone: Vec<&Origin> = old.into_values().collect();
    gone.sort_by_key(|origin| origin.line);
    changes.extend(gone.into_iter().map(|origin| changed(class(&origin.key), Some(origin), None)));
    changes
}

/// Creates a change that is described in words.
pub fn remark(class: Class, key: impl Into<String>, note: impl Into<String>, drift: bool) -> Change {
    Change { class, key: key.into(), before: None, after: None, source: None, line: None, drift, note: Some(note.into()) }
}

/// Plans an existing guest.
fn change(
    fleet: &Fleet,
    wanted: &FleetGuest,
    guest: &GuestDir,
    surroundings: Surroundings<'_>,
    scope: &Scope,
) -> Result<GuestPlan> {
    let mut planned = GuestPlan::of(guest.name());
    let record = match Membership::load(guest)? {
        Some(record) if record.fleet == fleet.name => record,
        other => {
            planned.refused = Some(match other {
                Some(record) => format!("`{}` belongs to the fleet `{}`", guest.name(), record.fleet),
                None => format!("`{}` exists already and belongs to no fleet", guest.name()),
            });
            return Ok(planned);
        }
    };
    let holder = GuestLock::holder(&guest.lock_file());
    planned.running = holder.is_some_and(|holder| holder.role == Role::Supervisor);
    let file = guest.file();
    let text = inputs::read_text(&file, 1 << 20).ok();
    let mut before = None;
    if text.as_deref() != Some(wanted.text.as_str()) {
        let by_hand = text.as_ref().is_none_or(|text| hash_of(text) != record.file_hash);
        before = compare(wanted, guest, text.as_deref(), by_hand, surroundings, &mut planned);
    } else if hash_of(&wanted.text) != record.file_hash {
        planned.changes.push(remark(Class::Live, "fleet.json", "it is behind the guest file, and is written anew", true));
    }
    disks(wanted, before.as_ref(), guest, scope, &mut planned)?;
    identity(guest, &record, &wanted.config, &mut planned)?;
    if planned.running {
        let waits = record.pending_boot.is_some() && record.pending_boot == Some(guest.state()?.boots);
        planned.restart = waits || planned.changes.iter().any(|change| change.class >= Class::NextBoot);
    }
    planned.changes.sort_by_key(|change| change.class);
    if !planned.changes.is_empty() || (planned.restart && scope.reboot) {
        planned.action = GuestAction::Change;
    }
    Ok(planned)
}

/// Compares the two guest files key by key. Returns the present configuration.
fn compare(
    wanted: &FleetGuest,
    guest: &GuestDir,
    text: Option<&str>,
    by_hand: bool,
    surroundings: Surroundings<'_>,
    planned: &mut GuestPlan,
) -> Option<GuestConfig> {
    let whole = |note: &str, planned: &mut GuestPlan| planned.changes.push(remark(Class::NextBoot, "guest.toml", note, by_hand));
    let Some(text) = text else {
        whole("it is missing or cannot be read, and is written anew", planned);
        return None;
    };
    let file = guest.file();
    let host = surroundings.host_for(guest);
    let request = GuestRequest {
        file: &file,
        text: Some(text),
        name: Some(guest.name()),
        sets: &[],
        host: &host,
        datastore: surroundings.datastore,
    };
    let Ok(present) = load_guest(&request) else {
        whole("what is in it is wrong, and is written anew", planned);
        return None;
    };
    let (_, before) = render(&present.resolved, false);
    let (_, after) = render(&wanted.resolved, false);
    let changes = differences(&before, after, class_of).into_iter();
    planned.changes.extend(changes.map(|change| Change { drift: by_hand, ..change }));
    if planned.changes.is_empty() {
        let note = "it is written differently and means the same";
        planned.changes.push(remark(Class::Live, "guest.toml", note, by_hand));
    }
    Some(present.config)
}

/// Returns the class of a key. Keys that only commands read take effect without a boot.
fn class_of(key: &str) -> Class {
    let table = key.split('.').next().unwrap_or(key);
    match table {
        "name" | "description" | "tags" | "protected" | "index" | "autostart" => Class::Live,
        _ => Class::NextBoot,
    }
}

/// Finds disks that are missing, too small, too large, or not wanted any more.
fn disks(
    wanted: &FleetGuest,
    before: Option<&GuestConfig>,
    guest: &GuestDir,
    scope: &Scope,
    planned: &mut GuestPlan,
) -> Result<()> {
    let config = &wanted.config;
    let made = DiskRecord::load(guest)?;
    for disk in &config.disks {
        if !matches!(disk.backend, DiskBackend::Sparse | DiskBackend::File) {
            continue; // its holder is asked when the guest boots
        }
        let path = disk_path(guest, disk)?;
        let key = format!("disks.{}", disk.id);
        // A disk of the present guest file was made before.
        let had = before.is_none_or(|before| before.disks.iter().any(|other| other.id == disk.id && other.path == disk.path));
        match (disk_size(&path), disk.size) {
            (Err(error), _) if error.kind() == std::io::ErrorKind::NotFound && disk.backend == DiskBackend::File => {
                planned.refused = Some(format!("disk `{}`: `{}` is missing", disk.id, path.display()));
            }
            (Err(error), _) if error.kind() == std::io::ErrorKind::NotFound && had => {
                let note = format!("`{}` is missing; an empty disk is made", path.display());
                planned.changes.push(remark(Class::Recreate, key, note, true));
            }
            (Ok(_), _) if is_own(disk) && !made.knows(&disk.id) => {
                planned.refused = Some(found(disk, &path).to_string());
            }
            (Ok((size, _)), Some(size_wanted)) if size_wanted.bytes() < size && disk.backend != DiskBackend::File => {
                let shown = ByteSize::from_bytes(size);
                let note = format!("it is of {shown}; an empty one of {size_wanted} takes its place");
                planned.changes.push(remark(Class::Recreate, key.clone(), note, had && before.is_none()));
                match scope.prune {
                    true => planned.changes.push(remark(Class::Destroy, key, format!("`{}` is removed", path.display()), false)),
                    false => {
                        let words = format!("disk `{}` would be made anew and its {shown} be lost: `--prune` allows it", disk.id);
                        planned.refused = Some(words);
                    }
                }
            }
            (Ok((size, _)), Some(size_wanted)) if size_wanted.bytes() > size && before.is_none() => {
                let note = format!("it is of {}, and grows to {size_wanted}", ByteSize::from_bytes(size));
                planned.changes.push(remark(Class::NextBoot, key, note, true));
            }
            _ => {}
        }
    }
    let left_over = left_over(guest, config)?;
    match scope.prune {
        true => planned.changes.extend(left_over.iter().map(|path| {
            let id = path.file_stem().unwrap_or_default().to_string_lossy();
            let id = id.trim_start_matches(BEFORE).to_owned();
            remark(Class::Destroy, format!("disks.{id}"), format!("`{}` is removed", path.display()), false)
        })),
        false => planned.left_over = left_over,
    }
    Ok(())
}

/// Beginning of the name of a replaced disk: `.before-ID.raw`.
pub const BEFORE: &str = ".before-";

/// Returns files in a guest's disk directory that are not its disks any more.
pub fn left_over(guest: &GuestDir, config: &GuestConfig) -> Result<Vec<PathBuf>> {
    let directory = guest.disks_dir();
    let entries = match fs::read_dir(&directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(GuestError::io("read", &directory, error)),
    };
    let is_disk = |path: &Path| {
        let id = path.file_stem().and_then(|stem| stem.to_str());
        config.disks.iter().any(|disk| disk.path.as_deref() == Some(path) || (disk.path.is_none() && id == Some(&disk.id)))
    };
    let mut found: Vec<PathBuf> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "raw") && !is_disk(path))
        .collect();
    found.sort();
    Ok(found)
}

/// Checks for a state that was edited by hand, or lost: the guest would boot with another identity.
fn identity(guest: &GuestDir, record: &Membership, config: &GuestConfig, planned: &mut GuestPlan) -> Result<()> {
    if planned.running {
        return Ok(()); // the supervisor has the valid state, and writes it again
    }
    let state = guest.state()?;
    let mut differs = |key: &str, now: Option<&String>, then: &String| {
        if now != Some(then) {
            let change = remark(Class::NextBoot, format!("state.{key}"), "it is not what the last apply left", true);
            planned.changes.push(Change { before: now.cloned(), after: Some(then.clone()), ..change });
        }
    };
    differs("uuid", Some(&state.uuid), &record.uuid);
    let kept = |nic: &str| config.nics.iter().any(|other| other.id == nic && other.mac.is_none());
    for (nic, mac) in record.macs.iter().filter(|(nic, _)| kept(nic)) {
        differs(&format!("macs.{nic}"), state.macs.get(nic), mac);
    }
    Ok(())
}

/// Plans a guest that the fleet file does not have (any more).
fn removal(fleet: &Fleet, guest: &GuestDir, surroundings: Surroundings<'_>, scope: &Scope) -> Result<Option<GuestPlan>> {
    match Membership::load(guest) {
        Ok(Some(record)) if record.fleet == fleet.name => {}
        // Its fleet is not known, so it must not be removed.
        _ => return Ok(None),
    }
    let mut planned = GuestPlan::of(guest.name());
    planned.running = GuestLock::holder(&guest.lock_file()).is_some_and(|holder| holder.role == Role::Supervisor);
    planned.action = if scope.prune { GuestAction::Destroy } else { GuestAction::Leave };
    let protected = match Definition::load(guest, surroundings) {
        Ok(definition) => definition.config.protected,
        Err(_) => guest.state()?.summary.is_some_and(|summary| summary.protected),
    };
    if scope.prune && protected {
        planned.refused = Some(format!("`{}` is protected", guest.name()));
    }
    if scope.prune {
        planned.changes.push(remark(Class::Destroy, "", "the guest and its disks are removed", false));
    }
    Ok(Some(planned))
}
