//! The record of a guest's disks that vmctl has made: `disks.json`, beside the state.
//!
//! A file or volume that has a disk's name but is not in the record is not the disk: it was removed from the guest
//! without its bytes, or comes from elsewhere. It is never used as the disk. A guest of an earlier version has no
//! record; all its existing disks are then recorded once.
//!
//! It is a file of its own because a supervisor owns `state.json` as long as the guest runs, while commands add and
//! remove disks.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::config::GuestConfig;
use crate::host::files::write_atomically;

use super::error::{GuestError, Result};
use super::provision::is_own;
use super::store::GuestDir;

/// The version of the document.
const RECORD_VERSION: u32 = 1;

/// The document `disks.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Document {
    version: u32,
    made: BTreeSet<String>,
}

/// The disks of a guest that vmctl has made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskRecord(Option<BTreeSet<String>>);

impl DiskRecord {
    /// Reads the record of a guest.
    pub fn load(guest: &GuestDir) -> Result<DiskRecord> {
        let path = path(guest);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(DiskRecord(None)),
            Err(error) => return Err(GuestError::io("read", &path, error)),
        };
        match serde_json::from_slice::<Document>(&text) {
            Ok(document) if document.version == RECORD_VERSION => Ok(DiskRecord(Some(document.made))),
            Ok(document) => Err(GuestError::user(format!("`{}` is of version {}", path.display(), document.version))
                .hint("a newer vmctl wrote it: use that one")),
            Err(error) => Err(GuestError::user(format!("`{}` is damaged: {error}", path.display()))
                .hint("remove it; the disks that exist then count as the guest's own")),
        }
    }

    /// Returns whether the file or volume of this disk's name is the disk.
    pub fn knows(&self, id: &str) -> bool {
        self.0.as_ref().is_none_or(|made| made.contains(id))
    }

    /// Notes disks that are about to be made, and begins the record of a guest that has none. `config` is the guest's
    /// configuration.
    pub fn add<'a>(guest: &GuestDir, config: &GuestConfig, ids: impl Iterator<Item = &'a str>) -> Result<()> {
        change(guest, config, |made| made.extend(ids.map(str::to_owned)))
    }

    /// Removes a disk from the record.
    pub fn forget(guest: &GuestDir, config: &GuestConfig, id: &str) -> Result<()> {
        change(guest, config, |made| made.retain(|known| known != id))
    }
}

fn path(guest: &GuestDir) -> PathBuf {
    guest.path().join("disks.json")
}

fn change(guest: &GuestDir, config: &GuestConfig, how: impl FnOnce(&mut BTreeSet<String>)) -> Result<()> {
    // A supervisor and a command may come at the same time.
    let _turn = guest.short_turn("disks.json")?;
    let before = DiskRecord::load(guest)?.0;
    let mut made = before.clone().unwrap_or_else(|| all(guest, config));
    how(&mut made);
    if before.as_ref() == Some(&made) {
        return Ok(());
    }
    let path = path(guest);
    let mut text = serde_json::to_vec(&Document { version: RECORD_VERSION, made }).expect("plain fields");
    text.push(b'\n');
    write_atomically(&path, &text, 0o644).map_err(|error| GuestError::io("write", &path, error))
}

/// Returns the disks of a guest without a record: those that the guest file names and that exist.
fn all(guest: &GuestDir, config: &GuestConfig) -> BTreeSet<String> {
    let named = config.disks.iter().filter(|disk| is_own(disk)).map(|disk| disk.id.clone());
    let files = fs::read_dir(guest.disks_dir()).into_iter().flatten().flatten();
    let found = files.filter_map(|entry| Some(entry.file_name().to_str()?.strip_suffix(".raw")?.to_owned()));
    named.chain(found.filter(|id| !id.starts_with('.'))).collect()
}
