//! Disks: making, growing, copying and removing them.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::config::cloud_init::SEED_DISK;
use crate::config::{DiskBackend, DiskConfig, GuestConfig};
use crate::host::files::{create_sparse, disk_size};
use crate::host::zfs;
use crate::units::ByteSize;

use super::disk_record::DiskRecord;
use super::error::{GuestError, Result};
use super::named_files::{Missing, check_disk};
use super::store::GuestDir;

/// Returns the path of a disk's bytes.
pub fn disk_path(guest: &GuestDir, disk: &DiskConfig) -> Result<PathBuf> {
    match (&disk.path, disk.backend) {
        (Some(path), _) => Ok(path.clone()),
        (None, DiskBackend::Zvol) => Ok(zfs::volume_device(&volume(guest, disk)?)),
        (None, _) => Ok(guest.disks_dir().join(format!("{}.raw", disk.id))),
    }
}

/// Returns the ZFS volume of a disk: the one of its path, or one beside the dataset of the guest's directory.
fn volume(guest: &GuestDir, disk: &DiskConfig) -> Result<String> {
    if let Some(path) = &disk.path {
        return zfs::volume_of_device(path).ok_or_else(|| {
            GuestError::user(format!("disk `{}`: `{}` is no device of a ZFS volume", disk.id, path.display()))
                .hint("they are below /dev/zvol; leave `path` out and vmctl names the volume itself")
        });
    }
    volume_called(guest, &disk.id)
}

fn volume_called(guest: &GuestDir, id: &str) -> Result<String> {
    let directory = guest.path().parent().unwrap_or(guest.path());
    let dataset = zfs::dataset_of(directory).map_err(|error| {
        GuestError::user(format!("disk `{id}`: no ZFS dataset holds `{}`: {error}", directory.display()))
            .hint("use `backend = \"sparse\"`, or put the datastore on ZFS")
    })?;
    Ok(format!("{dataset}/{}-{id}", guest.name()))
}

/// Returns whether vmctl makes and removes a disk: one that has no path of its own.
pub fn is_own(disk: &DiskConfig) -> bool {
    disk.path.is_none() && matches!(disk.backend, DiskBackend::Sparse | DiskBackend::Zvol)
}

/// Refuses disks that are about to be made while a file or volume of their name exists: it has other contents, and
/// would be taken for the new disk.
pub fn refuse_found(guest: &GuestDir, config: &GuestConfig) -> Result<()> {
    refuse_found_volumes(guest, config)?;
    for disk in config.disks.iter().filter(|disk| is_own(disk) && !is_own_volume(disk)) {
        let path = disk_path(guest, disk)?;
        if std::fs::symlink_metadata(&path).is_ok() {
            return Err(found(disk, &path));
        }
    }
    Ok(())
}

/// Creates the error for a file or volume that has the name of a disk but is not the guest's.
pub fn found(disk: &DiskConfig, path: &Path) -> GuestError {
    GuestError::user(format!("disk `{}`: `{}` exists already and is not this disk", disk.id, path.display())).hint(format!(
        "to use it as it is, name it by its path, with `path = \"{}\"` or `--path`; else remove it",
        path.display()
    ))
}

/// Returns whether a disk is a ZFS volume that vmctl named, and that is removed with the guest.
fn is_own_volume(disk: &DiskConfig) -> bool {
    disk.backend == DiskBackend::Zvol && disk.path.is_none()
}

fn of_disk(disk: &DiskConfig) -> impl Fn(GuestError) -> GuestError {
    move |error| error.about(&format!("disk `{}`", disk.id))
}

/// A list of things that were made, to be undone when a later step fails.
#[derive(Debug, Default)]
pub struct Made {
    files: Vec<PathBuf>,
    volumes: Vec<String>,
}

impl Made {
    /// Adds a file that was made.
    pub fn add_file(&mut self, path: PathBuf) {
        self.files.push(path);
    }
    /// Adds another list.
    pub fn and(mut self, more: Made) -> Made {
        self.files.extend(more.files);
        self.volumes.extend(more.volumes);
        self
    }
    /// Removes everything again. Returns the first error, with what could not be removed.
    pub fn undo(self, error: GuestError) -> GuestError {
        let mut left = Vec::new();
        for file in self.files {
            match std::fs::remove_file(&file) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    left.push(format!("`{}` stays: {error}", file.display()));
                }
                _ => {}
            }
        }
        for volume in self.volumes {
            if let Err(error) = zfs::destroy_volume(&volume) {
                left.push(format!("the volume `{volume}` stays: {error}"));
            }
        }
        error.with_left(&left)
    }

    /// Makes a volume of a guest. It is noted beside a new guest before it can exist, and in this list before anything
    /// waits for its device.
    fn make_volume(&mut self, guest: &GuestDir, name: &str, make: impl FnOnce(&str) -> Result<()>) -> Result<File> {
        note_volume(guest, name)?;
        make(name)?;
        self.volumes.push(name.to_owned());
        zfs::open_volume(name, true).map_err(GuestError::as_host)
    }

    /// Makes a volume with a temporary name until `fill` has written it, so that a volume with the disk's name is
    /// always complete.
    fn fill_volume(
        &mut self,
        guest: &GuestDir,
        name: &str,
        make: impl FnOnce(&str) -> Result<()>,
        fill: impl FnOnce(&File) -> Result<()>,
    ) -> Result<()> {
        let making = format!("{name}{}", zfs::MAKING);
        // A killed command left it.
        zfs::destroy_volume(&making).map_err(GuestError::as_host)?;
        note_volume(guest, &making)?;
        self.volumes.push(making.clone());
        make(&making)?;
        let device = zfs::open_volume(&making, true).map_err(GuestError::as_host)?;
        fill(&device)?;
        drop(device);
        note_volume(guest, name)?;
        zfs::rename_volume(&making, name).map_err(GuestError::as_host)?;
        self.volumes.push(name.to_owned());
        zfs::open_volume(name, false).map(drop).map_err(GuestError::as_host)
    }
}

/// Returns the path of the notes about volumes of a guest that does not exist yet.
fn volume_notes(directory: &Path) -> PathBuf {
    directory.join("volumes")
}

/// Notes a volume beside a guest that is being made. If the command is killed, [`sweep_volumes`] finds it.
fn note_volume(guest: &GuestDir, name: &str) -> Result<()> {
    if guest.is_being_made() {
        let path = volume_notes(guest.path());
        let mut file = File::options().create(true).append(true).open(&path);
        let noted = file.as_mut().map_err(|error| std::io::Error::from(error.kind())).and_then(|file| {
            file.write_all(format!("{name}\n").as_bytes())?;
            file.sync_all()
        });
        noted.map_err(|error| GuestError::io("write", &path, error))?;
    }
    Ok(())
}

/// Removes the notes: the guest exists, and owns its volumes.
pub fn keep_volumes(guest: &GuestDir) {
    let _ = std::fs::remove_file(volume_notes(guest.path()));
}

/// Removes the volumes of a guest that was never completed. Returns `false` if one of them stays.
pub fn sweep_volumes(directory: &Path) -> bool {
    let noted = std::fs::read_to_string(volume_notes(directory)).unwrap_or_default();
    noted.lines().filter(|name| zfs::destroy_volume(name).is_err()).count() == 0
}

/// Refuses a disk, or a guest, that is about to be made while a volume of that name exists: it has other contents, and
/// would be taken for the new disk.
pub fn refuse_found_volumes(guest: &GuestDir, config: &GuestConfig) -> Result<()> {
    for disk in config.disks.iter().filter(|disk| is_own_volume(disk)) {
        let name = volume(guest, disk)?;
        if zfs::volume_size(&name).map_err(of_disk(disk))?.is_some() {
            return Err(GuestError::user(format!("disk `{}`: the volume `{name}` exists already", disk.id)).hint(format!(
                "to use it as it is, name it: `path = \"{}\"`; to be rid of it: `zfs destroy -r {name}`",
                zfs::volume_device(&name).display()
            )));
        }
    }
    Ok(())
}

/// Makes the missing disks and grows those that are too small. Those made before a failure are removed. No disk is ever
/// made smaller.
pub fn ensure_disks(guest: &GuestDir, config: &GuestConfig) -> Result<Made> {
    let record = DiskRecord::load(guest)?;
    let mut made = Made::default();
    for disk in &config.disks {
        if let Err(error) = ensure_disk(guest, config, disk, &record, &mut made) {
            return Err(made.undo(error));
        }
    }
    Ok(made)
}

/// Returns whether a disk exists, as a file, a device, or a volume whose device may still be missing.
pub fn is_there(guest: &GuestDir, disk: &DiskConfig) -> Result<bool> {
    match is_own_volume(disk) {
        true => Ok(zfs::volume_size(&volume(guest, disk)?).map_err(of_disk(disk))?.is_some()),
        false => Ok(disk_path(guest, disk)?.exists()),
    }
}

/// Returns the size of an existing disk. The device of a volume can be opened afterwards.
fn size_of(guest: &GuestDir, disk: &DiskConfig) -> Result<Option<u64>> {
    if is_own_volume(disk) {
        let name = volume(guest, disk)?;
        let size = zfs::volume_size(&name).map_err(of_disk(disk))?;
        if size.is_some() {
            zfs::open_volume(&name, false).map_err(of_disk(disk))?;
        }
        return Ok(size);
    }
    let path = disk_path(guest, disk)?;
    match disk_size(&path) {
        Ok((size, _)) => Ok(Some(size)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && disk.backend != DiskBackend::File => Ok(None),
        Err(error) => Err(GuestError::io(&format!("use disk `{}` at", disk.id), &path, error)),
    }
}

fn ensure_disk(guest: &GuestDir, config: &GuestConfig, disk: &DiskConfig, record: &DiskRecord, made: &mut Made) -> Result<()> {
    // A unit of a target appears at the boot.
    if disk.backend == DiskBackend::Iscsi {
        return Ok(());
    }
    let Some(size) = size_of(guest, disk)? else {
        if let Some(source) = &disk.source {
            return Err(GuestError::user(format!("disk `{}` is not there yet: it is made from image `{source}`", disk.id))
                .hint(format!("`vmctl start {}` makes it", guest.name())));
        }
        let Some(size) = disk.size else {
            let path = disk_path(guest, disk)?;
            return Err(GuestError::user(format!(
                "disk `{}`: `{}` does not exist and no size is given",
                disk.id,
                path.display()
            ))
            .hint("add `size = \"10G\"` and it is made"));
        };
        // Noted first, since a file that exists without a note is taken for something else.
        note(guest, config, disk)?;
        return make_empty(guest, disk, size, made);
    };
    if is_own(disk) && !record.knows(&disk.id) {
        return Err(found(disk, &disk_path(guest, disk)?));
    }
    match disk.size {
        Some(wanted) if wanted.bytes() > size && disk.backend == DiskBackend::Sparse => {
            grow(disk, &disk_path(guest, disk)?, wanted.bytes())
        }
        Some(wanted) if wanted.bytes() > size && is_own_volume(disk) => zfs::grow_volume(&volume(guest, disk)?, wanted.bytes())
            .map_err(|error| GuestError::host(format!("disk `{}`: {error}", disk.id))),
        Some(wanted) if wanted.bytes() < size && disk.backend != DiskBackend::File => Err(GuestError::user(format!(
            "disk `{}` is of {} and the guest file says {wanted}: a disk is never made smaller",
            disk.id,
            ByteSize::from_bytes(size)
        ))
        .hint(format!("set `size` to the disk's own, {size}B, or more"))),
        _ => Ok(()),
    }
}

/// Notes that a disk will be made.
pub fn note(guest: &GuestDir, config: &GuestConfig, disk: &DiskConfig) -> Result<()> {
    match is_own(disk) {
        true => DiskRecord::add(guest, config, std::iter::once(disk.id.as_str())),
        false => Ok(()),
    }
}

/// Makes a disk without contents.
fn make_empty(guest: &GuestDir, disk: &DiskConfig, size: ByteSize, made: &mut Made) -> Result<()> {
    if disk.backend == DiskBackend::Zvol {
        let create = |name: &str| zfs::create_volume(name, size.bytes(), disk.thin, &disk.properties);
        let created = made.make_volume(guest, &volume(guest, disk)?, create);
        return created.map(drop).map_err(|error| error.about(&format!("disk `{}`", disk.id)));
    }
    let path = disk_path(guest, disk)?;
    create_sparse(&path, size.bytes()).map_err(|error| GuestError::io(&format!("make disk `{}` at", disk.id), &path, error))?;
    made.files.push(path);
    Ok(())
}

/// Makes the volume of a disk. `fill` writes its contents to the device.
pub fn make_filled_volume(
    guest: &GuestDir,
    disk: &DiskConfig,
    size: ByteSize,
    made: &mut Made,
    fill: impl FnOnce(&File) -> std::io::Result<()>,
) -> Result<()> {
    let name = volume(guest, disk)?;
    let create = |making: &str| zfs::create_volume(making, size.bytes(), disk.thin, &disk.properties);
    let filled = made.fill_volume(guest, &name, create, |device| {
        fill(device).map_err(|error| GuestError::io("write to", &zfs::volume_device(&name), error))
    });
    filled.map_err(|error| error.about(&format!("disk `{}`", disk.id)))
}

fn grow(disk: &DiskConfig, path: &std::path::Path, size: u64) -> Result<()> {
    let grown =
        std::fs::File::options().write(true).open(path).and_then(|file| file.set_len(size).and_then(|()| file.sync_all()));
    grown.map_err(|error| GuestError::io(&format!("grow disk `{}` at", disk.id), path, error))
}

/// Removes the volumes of a guest that is destroyed, if they still exist. Its files are removed with its directory.
/// Files and devices with a path belong to the user and stay.
pub fn remove_volumes(guest: &GuestDir, config: &GuestConfig) -> Result<()> {
    for disk in config.disks.iter().filter(|disk| is_own_volume(disk)) {
        remove_own(guest, &disk.id, true)?;
    }
    Ok(())
}

/// Way in which disks are copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Copying {
    /// Byte by byte: the copy is independent.
    Whole,
    /// ZFS volumes share their bytes with their source, which cannot be removed before them.
    Linked,
}

/// Removes the file or volume that vmctl made for a disk, if it still exists, and a volume that a killed command was
/// filling for it.
pub fn remove_own(guest: &GuestDir, id: &str, zvol: bool) -> Result<()> {
    if zvol {
        let name = volume_called(guest, id)?;
        let gone = zfs::destroy_volume(&name).and_then(|()| zfs::destroy_volume(&format!("{name}{}", zfs::MAKING)));
        return gone.map_err(|error| GuestError::host(format!("disk `{id}`: {error}")));
    }
    let path = guest.disks_dir().join(format!("{id}.raw"));
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(GuestError::io("remove", &path, error)),
        _ => Ok(()),
    }
}

/// Copies the disks of a stopped guest to one that is being made.
pub fn copy_disks(from: &GuestDir, config: &GuestConfig, to: &GuestDir, how: Copying) -> Result<Made> {
    if how == Copying::Linked && !config.disks.iter().any(is_own_volume) {
        return Err(GuestError::user(format!("`{}` has no disk that is a ZFS volume, and only those are linked", from.name()))
            .hint("leave out `--linked`, and its disks are copied"));
    }
    refuse_found_volumes(to, config)?;
    let mut made = Made::default();
    // A seed tells a guest who it is: the other one's is written for it, as for every new guest.
    for disk in config.disks.iter().filter(|disk| config.cloud_init.is_none() || disk.id != SEED_DISK) {
        if let Err(error) = copy_disk(from, to, disk, how, &mut made) {
            return Err(made.undo(error));
        }
    }
    Ok(made)
}

fn copy_disk(from: &GuestDir, to: &GuestDir, disk: &DiskConfig, how: Copying, made: &mut Made) -> Result<()> {
    if disk.path.is_some() && disk.ro {
        return check_disk(disk, Missing::Allowed);
    }
    if let Some(path) = &disk.path {
        return Err(GuestError::user(format!(
            "disk `{}` is `{}`, and two guests cannot write to one disk",
            disk.id,
            path.display()
        ))
        .hint("copy it, and give the clone a guest file of its own with `vmctl create`"));
    }
    if disk.backend == DiskBackend::Zvol {
        let (source, target) = (volume(from, disk)?, volume(to, disk)?);
        let copied = match how {
            Copying::Whole => {
                let copy = |making: &str| zfs::copy_volume(&source, making).map_err(GuestError::as_host);
                made.fill_volume(to, &target, copy, |_| Ok(()))
            }
            // Complete from the first moment on.
            Copying::Linked => {
                let clone = |name: &str| zfs::clone_volume(&source, name).map_err(GuestError::as_host);
                made.make_volume(to, &target, clone).map(drop)
            }
        };
        return copied.map_err(|error| error.about(&format!("disk `{}`", disk.id)));
    }
    let (source, target) = (disk_path(from, disk)?, disk_path(to, disk)?);
    if !source.exists() {
        return Ok(());
    }
    crate::host::files::copy_sparse(&source, &target)
        .map_err(|error| GuestError::io(&format!("copy disk `{}` to", disk.id), &target, error))?;
    made.files.push(target);
    Ok(())
}
