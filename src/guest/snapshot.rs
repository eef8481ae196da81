//! Snapshots of a guest's disks, through ZFS: taking, listing, rolling back and removing them.
//!
//! A snapshot covers what the guest owns: the dataset of its directory, if it is one, and the volumes of its disks. A
//! disk that is a file in a dataset shared with other guests has no snapshots of its own and is refused, so that no
//! user relies on a snapshot that does not exist.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::config::{DiskBackend, GuestConfig};
use crate::host::zfs::{self, SnapshotError};

use super::definition::{Definition, Surroundings};
use super::error::{GuestError, Result};
use super::provision;
use super::store::GuestDir;
use super::timestamp::Timestamp;

/// A snapshot of a guest.
#[derive(Debug, Clone, Serialize)]
pub struct GuestSnapshot {
    /// Name of the guest.
    pub guest: String,
    /// Its name.
    pub name: String,
    /// Time of the snapshot.
    pub created: Timestamp,
    /// Bytes that only it holds.
    pub used_bytes: u64,
    /// The datasets and volumes that have it.
    pub datasets: Vec<String>,
    /// Whether each of the guest's datasets has it.
    pub complete: bool,
}

/// Returns the datasets and volumes of a guest.
fn datasets(guest: &GuestDir, config: &GuestConfig) -> Result<Vec<String>> {
    if !zfs::is_there() {
        return Err(GuestError::user("this host has no ZFS, and snapshots are ZFS's")
            .hint("stop the guest and copy it with `vmctl clone` instead"));
    }
    let own = zfs::dataset_mounted_at(guest.path());
    let mut found: Vec<String> = own.iter().cloned().collect();
    for disk in &config.disks {
        let path = provision::disk_path(guest, disk)?;
        if let Some(volume) = zfs::volume_of_device(&path) {
            // A volume below the guest's own dataset is part of its recursive snapshot.
            let below =
                own.as_ref().is_some_and(|own| volume.strip_prefix(own.as_str()).is_some_and(|rest| rest.starts_with('/')));
            if !below && !found.contains(&volume) {
                found.push(volume);
            }
        } else if disk.ro {
            continue;
        } else if disk.backend == DiskBackend::File && !path.starts_with(guest.path()) {
            return Err(GuestError::user(format!(
                "disk `{}` is `{}`, which is not in ZFS as the guest's own",
                disk.id,
                path.display()
            ))
            .hint("snapshots are of ZFS volumes, and of guests whose directory is a dataset"));
        } else if own.is_none() {
            return Err(GuestError::user(format!("disk `{}` is a file in a dataset that is not the guest's own", disk.id))
                .hint(format!("use `backend = \"zvol\"`, or make `{}` a dataset of its own", guest.path().display())));
        }
    }
    match found.is_empty() {
        true => Err(GuestError::user(format!("`{}` has nothing in ZFS", guest.name()))),
        false => Ok(found),
    }
}

fn of(guest: &GuestDir, surroundings: Surroundings<'_>) -> Result<Vec<String>> {
    datasets(guest, &Definition::load(guest, surroundings)?.config)
}

/// Converts an error of zfs(8), and adds the next step.
fn failed(error: SnapshotError) -> GuestError {
    match error {
        SnapshotError::Full(error) => error.hint("free some space, or remove snapshots with `vmctl snapshot --remove`"),
        SnapshotError::HasClones(error) => error.hint("a guest was cloned from it with `--linked`; destroy that one first"),
        SnapshotError::Other(error) => error,
    }
}

/// Takes a snapshot. The default name is the time. Returns the name.
pub fn take(guest: &GuestDir, name: Option<&str>, surroundings: Surroundings<'_>) -> Result<String> {
    let name = name.map_or_else(|| Timestamp::now().to_string().replace(':', "-"), str::to_owned);
    check_name(&name)?;
    let datasets = of(guest, surroundings)?;
    zfs::snapshot(&datasets, &name).map_err(failed)?;
    Ok(name)
}

fn check_name(name: &str) -> Result<()> {
    match zfs::is_snapshot_name(name) {
        true => Ok(()),
        false => Err(GuestError::user(format!("`{name}` is not a name for a snapshot"))
            .hint("at most 100 letters, digits, `-`, `_`, `.` and `:`")),
    }
}

/// Returns the snapshots of a guest, the oldest first.
pub fn list(guest: &GuestDir, surroundings: Surroundings<'_>) -> Result<Vec<GuestSnapshot>> {
    let datasets = of(guest, surroundings)?;
    let mut found: BTreeMap<String, GuestSnapshot> = BTreeMap::new();
    for dataset in &datasets {
        for snapshot in zfs::snapshots(dataset).map_err(GuestError::as_host)? {
            let entry = found.entry(snapshot.name.clone()).or_insert_with(|| GuestSnapshot {
                guest: guest.name().to_owned(),
                name: snapshot.name,
                created: Timestamp(snapshot.created.saturating_mul(1000)),
                used_bytes: 0,
                datasets: Vec::new(),
                complete: false,
            });
            entry.used_bytes += snapshot.used;
            entry.datasets.push(snapshot.dataset);
        }
    }
    let mut all: Vec<GuestSnapshot> = found.into_values().collect();
    for snapshot in &mut all {
        snapshot.complete = snapshot.datasets.len() == datasets.len();
    }
    all.sort_by(|a, b| (a.created, &a.name).cmp(&(b.created, &b.name)));
    Ok(all)
}

/// Returns every dataset of the guest that has this snapshot. It is an error if one does not.
fn with(guest: &GuestDir, name: &str, surroundings: Surroundings<'_>) -> Result<(GuestSnapshot, Vec<GuestSnapshot>)> {
    let mut all = list(guest, surroundings)?;
    let Some(at) = all.iter().position(|snapshot| snapshot.name == name) else {
        let known: Vec<String> = all.iter().map(|snapshot| format!("`{}`", snapshot.name)).collect();
        let hint = if known.is_empty() { "it has none".to_owned() } else { format!("it has: {}", known.join(", ")) };
        return Err(GuestError::user(format!("`{}` has no snapshot called `{name}`", guest.name())).hint(hint));
    };
    let newer = all.split_off(at + 1);
    Ok((all.remove(at), newer))
}

/// Rolls a guest's disks back to a snapshot. Later data is lost, and so are the later snapshots, which `newer` must
/// allow. A running guest is refused unless `force`: its file systems change under it.
pub fn rollback(guest: &GuestDir, name: &str, newer: bool, force: bool, surroundings: Surroundings<'_>) -> Result<()> {
    let _lock = match force {
        true => None,
        false => Some(guest.lock_stopped("roll back").map_err(|error| {
            match super::lock::GuestLock::holder(&guest.lock_file()) {
                Some(holder) if holder.role == super::lock::Role::Supervisor => GuestError::user(format!(
                    "`{}` runs, and going back to a snapshot under a running guest damages its file systems and may crash it",
                    guest.name()
                ))
                .hint(format!("stop it first with `vmctl stop {}`; `--force` does it all the same", guest.name())),
                _ => error,
            }
        })?),
    };
    let (snapshot, after) = with(guest, name, surroundings)?;
    if !snapshot.complete {
        return Err(GuestError::user(format!("not every disk of `{}` has the snapshot `{name}`", guest.name()))
            .hint(format!("it is of {}", snapshot.datasets.join(", "))));
    }
    if !after.is_empty() && !newer {
        let names: Vec<String> = after.iter().map(|snapshot| format!("`{}`", snapshot.name)).collect();
        return Err(GuestError::user(format!("snapshots after `{name}` would be destroyed: {}", names.join(", ")))
            .hint("add `--destroy-newer` if that is meant"));
    }
    for dataset in &snapshot.datasets {
        zfs::rollback(dataset, name, newer).map_err(GuestError::as_host)?;
    }
    Ok(())
}

/// Removes a snapshot.
pub fn remove(guest: &GuestDir, name: &str, surroundings: Surroundings<'_>) -> Result<()> {
    let (snapshot, _) = with(guest, name, surroundings)?;
    for dataset in &snapshot.datasets {
        zfs::destroy_snapshot(dataset, name).map_err(failed)?;
    }
    Ok(())
}

/// Returns the volumes of a guest that are cached twice: in the guest's own cache and in the host's. It is advice, not
/// an error.
pub fn cached_twice(guest: &GuestDir, config: &GuestConfig) -> Vec<String> {
    let volumes = config.disks.iter().filter_map(|disk| zfs::volume_of_device(&provision::disk_path(guest, disk).ok()?));
    volumes.filter(|volume| zfs::property(volume, "primarycache").is_ok_and(|value| value == "all")).collect()
}
