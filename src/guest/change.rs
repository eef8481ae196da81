//! Changes of a guest file that a command makes: a disk, an interface or a medium added, resized or taken away.
//!
//! The file is edited in place as `edit` does it: comments and order stay, and nothing is saved that does not check.

use std::path::Path;

use crate::config::{DiskBackend, GuestConfig};
use crate::units::ByteSize;

use super::create::Edit;
use super::definition::{Definition, Surroundings};
use super::error::{GuestError, Result};
use super::launcher::supervisor_of;
use super::provision::{self, disk_path};
use super::store::GuestDir;

/// When a change takes effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// It has.
    Now,
    /// The guest runs: at its next boot.
    NextBoot,
}

impl When {
    /// For a message.
    pub fn words(self) -> &'static str {
        match self {
            When::Now => "",
            When::NextBoot => " at its next boot",
        }
    }
}

/// The two classes of entries that commands add and remove.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// `[[disks]]`.
    Disk,
    /// `[[nics]]`.
    Nic,
}

impl Class {
    fn table(self) -> &'static str {
        match self {
            Class::Disk => "disks",
            Class::Nic => "nics",
        }
    }
    fn word(self) -> &'static str {
        match self {
            Class::Disk => "disk",
            Class::Nic => "interface",
        }
    }
    fn has(self, config: &GuestConfig, id: &str) -> bool {
        match self {
            Class::Disk => config.disks.iter().any(|disk| disk.id == id),
            Class::Nic => config.nics.iter().any(|nic| nic.id == id),
        }
    }
    fn ids(self, config: &GuestConfig) -> String {
        let ids: Vec<String> = match self {
            Class::Disk => config.disks.iter().map(|disk| format!("`{}`", disk.id)).collect(),
            Class::Nic => config.nics.iter().map(|nic| format!("`{}`", nic.id)).collect(),
        };
        if ids.is_empty() { "none".into() } else { ids.join(", ") }
    }
}

/// Adds an entry with these keys, `(key, TOML value)`.
pub fn add(guest: &GuestDir, class: Class, id: &str, keys: &[(&str, String)], around: Surroundings<'_>) -> Result<When> {
    let config = Definition::load(guest, around)?.config;
    if class.has(&config, id) {
        return Err(GuestError::user(format!("`{}` has a {} `{id}` already", guest.name(), class.word())));
    }
    put(guest, class, id, keys, &[], around)
}

/// Adds an entry, or replaces one, with these keys.
pub fn replace(guest: &GuestDir, class: Class, id: &str, keys: &[(&str, String)], around: Surroundings<'_>) -> Result<When> {
    put(guest, class, id, keys, &[(class.table(), id)], around)
}

/// Takes an entry away. With `purge`, the file or volume that vmctl made for a disk goes, too; never one of the user's.
pub fn remove(guest: &GuestDir, class: Class, id: &str, purge: bool, around: Surroundings<'_>) -> Result<When> {
    let config = known(guest, class, id, around)?;
    if purge && supervisor_of(guest).is_some() {
        return Err(GuestError::user(format!("`{}` runs, and its disk `{id}` is in use", guest.name()))
            .hint("remove it without `--purge`, or stop the guest first"));
    }
    let edit = Edit::begin(guest)?;
    edit.apply(&[], &[(class.table(), id)])?;
    // What a template brought is not in the file: it is dropped by name.
    let text = std::fs::read_to_string(&edit.copy).map_err(|error| GuestError::io("read", &edit.copy, error))?;
    let after = Definition::load_file(&guest.config_file(), guest.name(), Some(&text), &[], around)?;
    if class.has(&after.config, id) {
        edit.apply(&[format!("{}.{id}.remove=true", class.table())], &[])?;
    }
    edit.save(around)?;
    if purge && let Some(disk) = config.disks.iter().find(|disk| class == Class::Disk && disk.id == id) {
        provision::remove_disk(guest, disk)?;
    }
    Ok(when(guest))
}

/// Gives a disk another size. A stopped guest's disk grows at once.
pub fn resize(guest: &GuestDir, id: &str, size: ByteSize, around: Surroundings<'_>) -> Result<When> {
    let config = known(guest, Class::Disk, id, around)?;
    let disk = config.disks.iter().find(|disk| disk.id == id).expect("known");
    if matches!(disk.backend, DiskBackend::File | DiskBackend::Iscsi) {
        return Err(GuestError::user(format!("disk `{id}` is yours: vmctl does not change its size"))
            .hint(format!("it is `{}`", disk_path(guest, disk)?.display())));
    }
    if let Ok((now, _)) = crate::host::files::disk_size(&disk_path(guest, disk)?)
        && now > size.bytes()
    {
        let now = ByteSize::from_bytes(now);
        return Err(GuestError::user(format!("disk `{id}` is of {now}: a disk is never made smaller")));
    }
    let when = put(guest, Class::Disk, id, &[("size", format!("\"{size}\""))], &[], around)?;
    if when == When::Now {
        let _lock = guest.lock_stopped("grow a disk of")?;
        provision::ensure_disks(guest, &Definition::load(guest, around)?.config)?;
    }
    Ok(when)
}

fn known(guest: &GuestDir, class: Class, id: &str, around: Surroundings<'_>) -> Result<GuestConfig> {
    let config = Definition::load(guest, around)?.config;
    if !class.has(&config, id) {
        return Err(GuestError::user(format!("`{}` has no {} `{id}`", guest.name(), class.word()))
            .hint(format!("there are: {}", class.ids(&config))));
    }
    Ok(config)
}

fn put(
    guest: &GuestDir,
    class: Class,
    id: &str,
    keys: &[(&str, String)],
    drops: &[(&str, &str)],
    around: Surroundings<'_>,
) -> Result<When> {
    let sets: Vec<String> = keys.iter().map(|(key, value)| format!("{}.{id}.{key}={value}", class.table())).collect();
    let edit = Edit::begin(guest)?;
    edit.apply(&sets, drops)?;
    edit.save(around)?;
    Ok(when(guest))
}

fn when(guest: &GuestDir) -> When {
    if supervisor_of(guest).is_some() { When::NextBoot } else { When::Now }
}

/// A TOML string.
pub fn text(value: &str) -> String {
    toml_edit::Value::from(value).to_string()
}

/// A path as a TOML string, absolute: on a command line it is relative to where it is typed.
pub fn path(value: &Path) -> Result<String> {
    let absolute = std::path::absolute(value).map_err(|error| GuestError::io("find", value, error))?;
    absolute.to_str().map(text).ok_or_else(|| GuestError::user(format!("`{}` is not UTF-8", value.display())))
}
