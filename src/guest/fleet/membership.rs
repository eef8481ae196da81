//! Membership of a guest in a fleet: `fleet.json` beside its state.
//!
//! It is a file of its own, because a supervisor owns `state.json` as long as the guest runs. It also holds the state
//! after the last apply, so that a later one can detect changes by hand.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::host::files::write_atomically;

use crate::guest::error::{GuestError, Result};
use crate::guest::state::GuestState;
use crate::guest::store::GuestDir;
use crate::guest::timestamp::Timestamp;

/// The version of the document.
const MEMBERSHIP_VERSION: u32 = 1;

/// The document `fleet.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Membership {
    /// Always [`MEMBERSHIP_VERSION`].
    pub version: u32,
    /// The guest's name at that time. A guest with another name is in no fleet. Earlier versions did not write it.
    #[serde(default)]
    pub guest: Option<String>,
    /// The fleet's name.
    pub fleet: String,
    /// The fleet file of the last apply.
    pub file: PathBuf,
    /// Hash of the guest file that it wrote.
    pub file_hash: String,
    /// The guest's UUID at that time.
    pub uuid: String,
    /// Its MAC addresses at that time, by interface.
    pub macs: BTreeMap<String, String>,
    /// Time of the last apply.
    pub applied: Timestamp,
    /// The boot of the guest that runs with an older configuration than its file. A restart is due while it lasts.
    #[serde(default)]
    pub pending_boot: Option<u64>,
}

impl Membership {
    /// Creates the membership of a guest whose file now holds `text`.
    pub fn now(fleet: &str, file: PathBuf, text: &str, state: &GuestState) -> Membership {
        Membership {
            version: MEMBERSHIP_VERSION,
            guest: Some(state.name.clone()),
            fleet: fleet.to_owned(),
            file,
            file_hash: hash_of(text),
            uuid: state.uuid.clone(),
            macs: state.macs.clone(),
            applied: Timestamp::now(),
            pending_boot: None,
        }
    }

    /// Reads the membership of a guest, or `None` if it belongs to no fleet. A damaged file is an error, since it
    /// decides what may be removed.
    pub fn load(guest: &GuestDir) -> Result<Option<Membership>> {
        let path = path(guest);
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(GuestError::io("read", &path, error)),
        };
        match serde_json::from_slice::<Membership>(&text) {
            Ok(membership) if membership.version == MEMBERSHIP_VERSION => {
                let renamed = membership.guest.as_ref().is_some_and(|name| name != guest.name());
                Ok((!renamed).then_some(membership))
            }
            Ok(other) => Err(GuestError::user(format!("`{}` is of version {}", path.display(), other.version))
                .hint("a newer vmctl wrote it: use that one")),
            Err(error) => Err(GuestError::user(format!("`{}` is damaged: {error}", path.display()))
                .hint("remove it, and the guest belongs to no fleet any more")),
        }
    }

    /// Writes the membership of a guest.
    pub fn save(&self, guest: &GuestDir) -> Result<()> {
        let path = path(guest);
        let named = Membership { guest: Some(guest.name().to_owned()), ..self.clone() };
        let mut text = serde_json::to_vec_pretty(&named).expect("plain fields");
        text.push(b'\n');
        write_atomically(&path, &text, 0o644).map_err(|error| GuestError::io("write", &path, error))
    }

    /// Removes a guest from its fleet.
    pub fn remove(guest: &GuestDir) -> Result<()> {
        let path = path(guest);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(GuestError::io("remove", &path, error)),
            _ => Ok(()),
        }
    }
}

fn path(guest: &GuestDir) -> PathBuf {
    guest.path().join("fleet.json")
}

/// Returns the hash of a text.
pub fn hash_of(text: &str) -> String {
    Sha256::digest(text.as_bytes())[..16].iter().map(|byte| format!("{byte:02x}")).collect()
}
