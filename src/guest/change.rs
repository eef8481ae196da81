//! Changes of a guest file by commands: adding, resizing or removing a disk, an interface or a medium.
//!
//! The file is edited as by `edit`: comments and order stay, and only a valid file is saved.

use std::path::Path;

use crate::config::check::is_image_path;
use crate::config::{DiskBackend, GuestConfig};
use crate::fetch::Progress;
use crate::units::ByteSize;

use super::definition::Surroundings;
use super::disk_record::DiskRecord;
use super::edit::Edit;
use super::error::{GuestError, Result};
use super::images::Images;
use super::launcher::supervisor_of;
use super::named_files::{Missing, check_disk};
use super::pending::{self, Fate};
use super::provision::{self, disk_path};
use super::store::GuestDir;

/// Time at which a change takes effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// It already has.
    Now,
    /// At the next boot, since the guest runs.
    NextBoot,
}

impl When {
    /// Returns the words for a message.
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
    /// Returns the name of one entry, for messages.
    pub fn word(self) -> &'static str {
        match self {
            Class::Disk => "disk",
            Class::Nic => "interface",
        }
    }
    fn ids(self, config: &GuestConfig) -> Vec<&str> {
        match self {
            Class::Disk => config.disks.iter().map(|disk| disk.id.as_str()).collect(),
            Class::Nic => config.nics.iter().map(|nic| nic.id.as_str()).collect(),
        }
    }
    fn has(self, config: &GuestConfig, id: &str) -> bool {
        self.ids(config).contains(&id)
    }
}

/// Adds an entry with these keys, `(key, TOML value)`.
pub fn add(guest: &GuestDir, class: Class, id: &str, keys: &[(&str, String)], surroundings: Surroundings<'_>) -> Result<When> {
    let edit = Edit::begin(guest, surroundings)?;
    unknown(guest, class, id, &edit.config(surroundings)?)?;
    put(edit, guest, class, id, keys, &[], surroundings)
}

/// Adds a disk with these keys. The disk is made at once, from its image or empty, before the guest file is changed. So
/// a running guest has it at its next boot, and if it cannot be made, nothing has changed. An existing file of its name
/// is not used for it.
pub fn add_disk(
    guest: &GuestDir,
    id: &str,
    keys: &[(&str, String)],
    surroundings: Surroundings<'_>,
    progress: &dyn Progress,
) -> Result<When> {
    let mut edit = Edit::begin(guest, surroundings)?;
    let before = edit.config(surroundings)?;
    unknown(guest, Class::Disk, id, &before)?;
    edit.apply(&sets(Class::Disk, id, keys), &[])?;
    let mut config = edit.config(surroundings)?;
    config.disks.retain(|disk| disk.id == id);
    provision::refuse_found(guest, &config)?;
    if let Some(disk) = config.disks.iter().find(|disk| provision::is_own(disk)) {
        pending::announce(guest, disk, Fate::Remove)?;
        DiskRecord::add(guest, &before, std::iter::once(id))?;
    }
    let made = Images { host: surroundings.host, progress }.make_all_disks(guest, &config);
    let saved = made.and_then(|made| edit.save(surroundings).map_err(|error| made.undo(error)));
    let settled = pending::settle(guest, surroundings);
    saved.and(settled)?;
    Ok(when(guest))
}

/// Adds an entry, or replaces one, with these keys.
pub fn replace(
    guest: &GuestDir,
    class: Class,
    id: &str,
    keys: &[(&str, String)],
    surroundings: Surroundings<'_>,
) -> Result<When> {
    let mut edit = Edit::begin(guest, surroundings)?;
    edit.apply(&sets(class, id, keys), &[(class.table(), id)])?;
    let config = edit.config(surroundings)?;
    config
        .disks
        .iter()
        .filter(|disk| class == Class::Disk && disk.id == id)
        .try_for_each(|disk| check_disk(disk, Missing::Allowed))?;
    edit.save(surroundings)?;
    Ok(when(guest))
}

/// Removes an entry. With `purge`, also removes the file or volume that vmctl made for a disk, but never one of the
/// user.
pub fn remove(guest: &GuestDir, class: Class, id: &str, purge: bool, surroundings: Surroundings<'_>) -> Result<When> {
    let mut edit = Edit::begin(guest, surroundings)?;
    let config = known(guest, class, id, edit.config(surroundings)?)?;
    let disk = config.disks.iter().find(|disk| class == Class::Disk && disk.id == id);
    if purge && let Some(disk) = disk {
        if !provision::is_own(disk) {
            return Err(GuestError::user(format!("disk `{id}` is not one that vmctl made, and its bytes are not removed"))
                .hint("without `--purge`, the disk is removed and its bytes are kept"));
        }
        if !edit.hold()? {
            return Err(GuestError::user(format!("`{}` runs, and its disk `{id}` is in use", guest.name()))
                .hint("remove it without `--purge`, or stop the guest first"));
        }
    }
    edit.apply(&[], &[(class.table(), id)])?;
    // An entry from a template is not in the file. It is dropped by name.
    if class.has(&edit.config(surroundings)?, id) {
        edit.apply(&[format!("{}.{id}.remove=true", class.table())], &[])?;
    }
    if let Some(disk) = disk.filter(|disk| provision::is_own(disk)) {
        // Before the file, so that an interrupted command can be completed.
        DiskRecord::add(guest, &config, std::iter::empty())?;
        pending::announce(guest, disk, if purge { Fate::Remove } else { Fate::Forget })?;
    }
    let saved = edit.save(surroundings);
    let settled = pending::settle(guest, surroundings);
    saved?;
    settled?;
    Ok(when(guest))
}

/// Changes the size of a disk. A stopped guest's disk grows at once.
pub fn resize(guest: &GuestDir, id: &str, size: ByteSize, surroundings: Surroundings<'_>) -> Result<When> {
    let mut edit = Edit::begin(guest, surroundings)?;
    let config = known(guest, Class::Disk, id, edit.config(surroundings)?)?;
    let disk = config.disks.iter().find(|disk| disk.id == id).expect("known");
    if matches!(disk.backend, DiskBackend::File | DiskBackend::Iscsi) {
        return Err(GuestError::user(format!("disk `{id}` is yours: vmctl does not change its size"))
            .hint(format!("it is `{}`", disk_path(guest, disk)?.display())));
    }
    let stopped = edit.hold()?;
    let now = crate::host::files::disk_size(&disk_path(guest, disk)?).ok().map(|(now, _)| now);
    if let Some(now) = now.filter(|now| *now > size.bytes()) {
        let now = ByteSize::from_bytes(now);
        return Err(GuestError::user(format!("disk `{id}` is of {now}: a disk is never made smaller")));
    }
    // A running guest may boot at any moment, and then its disk gets the size in the file.
    if let Some(due) = disk.size.filter(|due| !stopped && due.bytes() > size.bytes()) {
        return Err(GuestError::user(format!("disk `{id}` is of {due} at the next boot: a disk is never made smaller"))
            .hint(format!("stop the guest first: `vmctl stop {}`", guest.name())));
    }
    edit.apply(&sets(Class::Disk, id, &[("size", format!("\"{size}\""))]), &[])?;
    let mut config = edit.config(surroundings)?;
    config.disks.retain(|disk| disk.id == id);
    edit.save(surroundings)?;
    if stopped && now.is_some() {
        provision::ensure_disks(guest, &config).map_err(|error| edit.put_back(error, surroundings))?;
    }
    Ok(if stopped { When::Now } else { When::NextBoot })
}

fn known(guest: &GuestDir, class: Class, id: &str, config: GuestConfig) -> Result<GuestConfig> {
    if !class.has(&config, id) {
        let ids: Vec<String> = class.ids(&config).iter().map(|id| format!("`{id}`")).collect();
        let known = if ids.is_empty() { "none".into() } else { ids.join(", ") };
        return Err(
            GuestError::user(format!("`{}` has no {} `{id}`", guest.name(), class.word())).hint(format!("there are: {known}"))
        );
    }
    Ok(config)
}

fn unknown(guest: &GuestDir, class: Class, id: &str, config: &GuestConfig) -> Result<()> {
    match class.has(config, id) {
        true => Err(GuestError::user(format!("`{}` has a {} `{id}` already", guest.name(), class.word()))),
        false => Ok(()),
    }
}

fn sets(class: Class, id: &str, keys: &[(&str, String)]) -> Vec<String> {
    keys.iter().map(|(key, value)| format!("{}.{id}.{key}={value}", class.table())).collect()
}

fn put(
    mut edit: Edit,
    guest: &GuestDir,
    class: Class,
    id: &str,
    keys: &[(&str, String)],
    drops: &[(&str, &str)],
    surroundings: Surroundings<'_>,
) -> Result<When> {
    edit.apply(&sets(class, id, keys), drops)?;
    edit.save(surroundings)?;
    Ok(when(guest))
}

fn when(guest: &GuestDir) -> When {
    if supervisor_of(guest).is_some() { When::NextBoot } else { When::Now }
}

/// Returns a TOML string.
pub fn text(value: &str) -> String {
    toml_edit::Value::from(value).to_string()
}

/// Returns a path as a TOML string. It is made absolute, since on a command line it is relative to the current
/// directory.
pub fn path(value: &Path) -> Result<String> {
    absolute(value).map(|path| text(&path))
}

fn absolute(value: &Path) -> Result<String> {
    let absolute = std::path::absolute(value).map_err(|error| GuestError::io("find", value, error))?;
    absolute.to_str().map(str::to_owned).ok_or_else(|| GuestError::user(format!("`{}` is not UTF-8", value.display())))
}

/// Returns the source of a disk as a TOML string: a name of the catalogue, a URL, or a path with a slash, made absolute
/// as by [`path`].
pub fn image(value: &str) -> Result<String> {
    image_source(value).map(|source| text(&source))
}

/// Returns the same without quotes.
pub fn image_source(value: &str) -> Result<String> {
    if is_image_path(value) { absolute(Path::new(value)) } else { Ok(value.to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_of_the_command_line_is_relative_to_where_it_is_typed() {
        let here = std::env::current_dir().expect("a current folder");
        assert_eq!(image("./sub/base.raw").unwrap(), text(here.join("sub/base.raw").to_str().expect("UTF-8")));
        for said in ["/images/base.raw", "debian-12", "https://example.org/a.qcow2"] {
            assert_eq!(image(said).unwrap(), text(said));
        }
    }
}
