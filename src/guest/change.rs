//! Changes of a guest file that a command makes: a disk, an interface or a medium added, resized or taken away.
//!
//! The file is edited in place as `edit` does it: comments and order stay, and nothing is saved that does not check.

use std::path::Path;

use crate::config::check::is_image_path;
use crate::config::{DiskBackend, GuestConfig};
use crate::fetch::Progress;
use crate::units::ByteSize;

use super::create::Edit;
use super::definition::{Definition, Surroundings};
use super::error::{GuestError, Result};
use super::images::Images;
use super::launcher::supervisor_of;
use super::named_files::check_disk;
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
    /// One of them, for people.
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
pub fn add(guest: &GuestDir, class: Class, id: &str, keys: &[(&str, String)], around: Surroundings<'_>) -> Result<When> {
    unknown(guest, class, id, around)?;
    put(guest, class, id, keys, &[], around)
}

/// Adds a disk with these keys. It is made at once, from its image or empty, before the guest file says it: a guest that
/// runs has it at its next boot, and if it cannot be made, nothing has changed.
pub fn add_disk(
    guest: &GuestDir,
    id: &str,
    keys: &[(&str, String)],
    around: Surroundings<'_>,
    progress: &dyn Progress,
) -> Result<When> {
    unknown(guest, Class::Disk, id, around)?;
    let edit = Edit::begin(guest)?;
    edit.apply(&sets(Class::Disk, id, keys), &[])?;
    let mut config = edited(guest, &edit, around)?;
    config.disks.retain(|disk| disk.id == id);
    provision::refuse_found_volumes(guest, &config)?;
    let made = Images { host: around.host, progress }.make_all_disks(guest, &config)?;
    match edit.save(around) {
        Ok(_) => Ok(when(guest)),
        Err(error) => Err(made.undo(error)),
    }
}

/// Adds an entry, or replaces one, with these keys.
pub fn replace(guest: &GuestDir, class: Class, id: &str, keys: &[(&str, String)], around: Surroundings<'_>) -> Result<When> {
    let edit = Edit::begin(guest)?;
    edit.apply(&sets(class, id, keys), &[(class.table(), id)])?;
    let config = edited(guest, &edit, around)?;
    config.disks.iter().filter(|disk| class == Class::Disk && disk.id == id).try_for_each(check_disk)?;
    edit.save(around)?;
    Ok(when(guest))
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
    if class.has(&edited(guest, &edit, around)?, id) {
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
        let ids: Vec<String> = class.ids(&config).iter().map(|id| format!("`{id}`")).collect();
        let known = if ids.is_empty() { "none".into() } else { ids.join(", ") };
        return Err(
            GuestError::user(format!("`{}` has no {} `{id}`", guest.name(), class.word())).hint(format!("there are: {known}"))
        );
    }
    Ok(config)
}

fn unknown(guest: &GuestDir, class: Class, id: &str, around: Surroundings<'_>) -> Result<()> {
    match class.has(&Definition::load(guest, around)?.config, id) {
        true => Err(GuestError::user(format!("`{}` has a {} `{id}` already", guest.name(), class.word()))),
        false => Ok(()),
    }
}

/// What a guest file would mean as it is edited now.
fn edited(guest: &GuestDir, edit: &Edit, around: Surroundings<'_>) -> Result<GuestConfig> {
    let text = std::fs::read_to_string(&edit.copy).map_err(|error| GuestError::io("read", &edit.copy, error))?;
    Ok(Definition::load_text(guest, &guest.config_file(), Some(&text), around)?.config)
}

fn sets(class: Class, id: &str, keys: &[(&str, String)]) -> Vec<String> {
    keys.iter().map(|(key, value)| format!("{}.{id}.{key}={value}", class.table())).collect()
}

fn put(
    guest: &GuestDir,
    class: Class,
    id: &str,
    keys: &[(&str, String)],
    drops: &[(&str, &str)],
    around: Surroundings<'_>,
) -> Result<When> {
    let edit = Edit::begin(guest)?;
    edit.apply(&sets(class, id, keys), drops)?;
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
    absolute(value).map(|path| text(&path))
}

fn absolute(value: &Path) -> Result<String> {
    let absolute = std::path::absolute(value).map_err(|error| GuestError::io("find", value, error))?;
    absolute.to_str().map(str::to_owned).ok_or_else(|| GuestError::user(format!("`{}` is not UTF-8", value.display())))
}

/// What a disk is made from as a TOML string: a name of the catalogue, a URL, or a path with a slash, as [`path`] takes it.
pub fn image(value: &str) -> Result<String> {
    image_source(value).map(|source| text(&source))
}

/// The same, bare.
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
