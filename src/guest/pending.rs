//! Disks that are being made or removed: `pending.json`, which exists while a command works on it, or was killed.
//!
//! The guest file decides about each of them, and is replaced atomically. A disk that it names stays. One that it does
//! not name (any more) is removed, or only forgotten, as requested. So an interrupted addition leaves nothing, and an
//! interrupted purge is completed, by the next command that has the turn.

use std::fs;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::config::{DiskBackend, DiskConfig};
use crate::host::files::write_atomically;

use super::definition::{Definition, Surroundings};
use super::disk_record::DiskRecord;
use super::error::{GuestError, Result};
use super::lock::Turn;
use super::provision;
use super::store::GuestDir;

/// The version of the document.
const PENDING_VERSION: u32 = 1;

/// Fate of a disk that the guest file does not name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fate {
    /// It is removed with its bytes.
    Remove,
    /// Its bytes stay, but are no disk of the guest.
    Forget,
}

#[derive(Debug, Serialize, Deserialize)]
struct Pending {
    version: u32,
    disk: String,
    zvol: bool,
    fate: Fate,
}

fn path(guest: &GuestDir) -> PathBuf {
    guest.path().join("pending.json")
}

/// Returns whether there is anything to settle.
pub fn is_there(guest: &GuestDir) -> bool {
    path(guest).exists()
}

/// Waits for the turn of a guest's file, and settles the work of an interrupted command.
pub fn turn(guest: &GuestDir, surroundings: Surroundings<'_>) -> Result<Turn> {
    let turn = guest.turn()?;
    settle(guest, surroundings)?;
    Ok(turn)
}

/// Settles the work of a killed command, unless another process has the turn.
pub fn settle_if_free(guest: &GuestDir, surroundings: Surroundings<'_>) -> Result<()> {
    if is_there(guest)
        && let Some(_turn) = guest.try_turn()?
    {
        settle(guest, surroundings)?;
    }
    Ok(())
}

/// Announces that a disk without a path of its own is about to be made or removed. The caller has the turn.
pub fn announce(guest: &GuestDir, disk: &DiskConfig, fate: Fate) -> Result<()> {
    let zvol = disk.backend == DiskBackend::Zvol;
    let pending = Pending { version: PENDING_VERSION, disk: disk.id.clone(), zvol, fate };
    let text = serde_json::to_vec(&pending).expect("plain fields");
    write_atomically(&path(guest), &text, 0o600).map_err(|error| GuestError::io("write", &path(guest), error))
}

/// Settles the disks as the guest file decides. The caller has the turn. If the file cannot be read now, it decides
/// later.
pub fn settle(guest: &GuestDir, surroundings: Surroundings<'_>) -> Result<()> {
    let path = path(guest);
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(GuestError::io("read", &path, error)),
    };
    let pending: Pending = match serde_json::from_slice::<Pending>(&text) {
        Ok(pending) if pending.version == PENDING_VERSION => pending,
        _ => {
            return Err(GuestError::user(format!("`{}` is damaged, or a newer vmctl wrote it", path.display()))
                .hint("finish with that one, or remove the file"));
        }
    };
    let Ok(definition) = Definition::load(guest, surroundings) else { return Ok(()) };
    let is_it = |disk: &&DiskConfig| disk.id == pending.disk && disk.path.is_none();
    if definition.config.disks.iter().find(is_it).is_none() {
        if pending.fate == Fate::Remove {
            provision::remove_own(guest, &pending.disk, pending.zvol).map_err(|error| {
                GuestError::host(format!("disk `{}` of `{}` is not removed yet: {}", pending.disk, guest.name(), error.chain()))
                    .hint("the next command that changes the guest tries again")
            })?;
        }
        DiskRecord::forget(guest, &definition.config, &pending.disk)?;
    }
    fs::remove_file(&path).map_err(|error| GuestError::io("remove", &path, error))
}
