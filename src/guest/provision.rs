//! Disks: made, grown, copied, removed.

use std::path::PathBuf;

use crate::config::{DiskBackend, DiskConfig, GuestConfig};
use crate::host::files::{create_sparse, disk_size};
use crate::host::zfs;
use crate::units::ByteSize;

use super::error::{GuestError, Result};
use super::store::GuestDir;

/// Where a disk's bytes are.
pub fn disk_path(guest: &GuestDir, disk: &DiskConfig) -> Result<PathBuf> {
    match (&disk.path, disk.backend) {
        (Some(path), _) => Ok(path.clone()),
        (None, DiskBackend::Zvol) => Ok(zfs::volume_device(&volume(guest, disk)?)),
        (None, _) => Ok(guest.disks_dir().join(format!("{}.raw", disk.id))),
    }
}

/// The ZFS volume of a disk that has no path: beside the dataset that the guest's directory is in.
fn volume(guest: &GuestDir, disk: &DiskConfig) -> Result<String> {
    let directory = guest.path().parent().unwrap_or(guest.path());
    let dataset = zfs::dataset_of(directory).map_err(|error| {
        GuestError::user(format!("disk `{}`: no ZFS dataset holds `{}`: {error}", disk.id, directory.display()))
            .hint("use `backend = \"sparse\"`, or put the datastore on ZFS")
    })?;
    Ok(format!("{dataset}/{}-{}", guest.name(), disk.id))
}

/// What was made, to be undone when a later step fails.
#[derive(Debug, Default)]
pub struct Made {
    files: Vec<PathBuf>,
    volumes: Vec<String>,
}

impl Made {
    /// Another file that was made.
    pub fn add_file(&mut self, path: PathBuf) {
        self.files.push(path);
    }
    /// With what else was made.
    pub fn and(mut self, more: Made) -> Made {
        self.files.extend(more.files);
        self.volumes.extend(more.volumes);
        self
    }
    /// Removes it all again.
    pub fn undo(self) {
        for file in self.files {
            let _ = std::fs::remove_file(file);
        }
        for volume in self.volumes {
            let _ = zfs::destroy_volume(&volume);
        }
    }
}

/// Makes the disks that are missing and grows those that have become too small. What was made before a failure is
/// undone. Nothing is ever made smaller.
pub fn ensure_disks(guest: &GuestDir, config: &GuestConfig) -> Result<Made> {
    let mut made = Made::default();
    for disk in &config.disks {
        if let Err(error) = ensure_disk(guest, disk, &mut made) {
            made.undo();
            return Err(error);
        }
    }
    Ok(made)
}

fn ensure_disk(guest: &GuestDir, disk: &DiskConfig, made: &mut Made) -> Result<()> {
    // A unit of a target comes with the boot.
    if disk.backend == DiskBackend::Iscsi {
        return Ok(());
    }
    let path = disk_path(guest, disk)?;
    let size = match disk_size(&path) {
        Ok((size, _)) => size,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && disk.backend != DiskBackend::File => {
            if let Some(source) = &disk.source {
                return Err(GuestError::user(format!("disk `{}` is not there yet: it is made from image `{source}`", disk.id))
                    .hint(format!("`vmctl start {}` makes it", guest.name())));
            }
            let Some(size) = disk.size else {
                return Err(GuestError::user(format!(
                    "disk `{}`: `{}` does not exist and no size is given",
                    disk.id,
                    path.display()
                ))
                .hint("add `size = \"10G\"` and it is made"));
            };
            return make_empty(guest, disk, path, size, made);
        }
        Err(error) => return Err(GuestError::io(&format!("use disk `{}` at", disk.id), &path, error)),
    };
    match disk.size {
        Some(wanted) if wanted.bytes() > size && disk.backend == DiskBackend::Sparse => grow(disk, &path, wanted.bytes()),
        Some(wanted) if wanted.bytes() > size && disk.backend == DiskBackend::Zvol && disk.path.is_none() => {
            zfs::grow_volume(&volume(guest, disk)?, wanted.bytes())
                .map_err(|error| GuestError::host(format!("disk `{}`: {error}", disk.id)))
        }
        Some(wanted) if wanted.bytes() < size && disk.backend != DiskBackend::File => Err(GuestError::user(format!(
            "disk `{}` is of {} and the guest file says {wanted}: a disk is never made smaller",
            disk.id,
            ByteSize::from_bytes(size)
        ))
        .hint(format!("set `size` to the disk's own, {size}B, or more"))),
        _ => Ok(()),
    }
}

/// Makes a disk without contents.
pub fn make_empty(guest: &GuestDir, disk: &DiskConfig, path: PathBuf, size: ByteSize, made: &mut Made) -> Result<()> {
    if disk.backend == DiskBackend::Zvol {
        let name = volume(guest, disk)?;
        zfs::create_volume(&name, size.bytes(), disk.thin, &disk.properties)
            .map_err(|error| GuestError::user(format!("disk `{}`: {error}", disk.id)))?;
        made.volumes.push(name);
        return Ok(());
    }
    create_sparse(&path, size.bytes()).map_err(|error| GuestError::io(&format!("make disk `{}` at", disk.id), &path, error))?;
    made.files.push(path);
    Ok(())
}

fn grow(disk: &DiskConfig, path: &std::path::Path, size: u64) -> Result<()> {
    let grown =
        std::fs::File::options().write(true).open(path).and_then(|file| file.set_len(size).and_then(|()| file.sync_all()));
    grown.map_err(|error| GuestError::io(&format!("grow disk `{}` at", disk.id), path, error))
}

/// Removes the volumes of a guest that is destroyed; its files go with its directory. Files and devices that were
/// named by a path are the user's and stay.
pub fn remove_volumes(guest: &GuestDir, config: &GuestConfig) -> Result<()> {
    for disk in config.disks.iter().filter(|disk| disk.backend == DiskBackend::Zvol && disk.path.is_none()) {
        let name = volume(guest, disk)?;
        zfs::destroy_volume(&name).map_err(|error| GuestError::host(format!("disk `{}`: {error}", disk.id)))?;
    }
    Ok(())
}

/// How disks are copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Copying {
    /// Byte by byte: the copy stands on its own.
    Whole,
    /// ZFS volumes share their bytes with what they were cloned from, which cannot be removed before them.
    Linked,
}

/// Removes what vmctl made for a disk that has no path of its own. One of the user's stays.
pub fn remove_disk(guest: &GuestDir, disk: &DiskConfig) -> Result<()> {
    match (&disk.path, disk.backend) {
        (None, DiskBackend::Zvol) => {
            zfs::destroy_volume(&volume(guest, disk)?).map_err(|error| GuestError::host(format!("disk `{}`: {error}", disk.id)))
        }
        (None, DiskBackend::Sparse) => {
            let path = disk_path(guest, disk)?;
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(GuestError::io("remove", &path, error)),
                _ => Ok(()),
            }
        }
        _ => Err(GuestError::user(format!("disk `{}` is not one that vmctl made, and stays", disk.id))),
    }
}

/// Copies the disks of a stopped guest to one that is being made.
pub fn copy_disks(from: &GuestDir, config: &GuestConfig, to: &GuestDir, how: Copying) -> Result<Made> {
    let is_volume = |disk: &DiskConfig| disk.backend == DiskBackend::Zvol && disk.path.is_none();
    if how == Copying::Linked && !config.disks.iter().any(is_volume) {
        return Err(GuestError::user(format!("`{}` has no disk that is a ZFS volume, and only those are linked", from.name()))
            .hint("leave out `--linked`, and its disks are copied"));
    }
    let mut made = Made::default();
    for disk in &config.disks {
        if let Err(error) = copy_disk(from, to, disk, how, &mut made) {
            made.undo();
            return Err(error);
        }
    }
    Ok(made)
}

fn copy_disk(from: &GuestDir, to: &GuestDir, disk: &DiskConfig, how: Copying, made: &mut Made) -> Result<()> {
    if disk.path.is_some() && disk.ro {
        return Ok(());
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
            Copying::Whole => zfs::copy_volume(&source, &target),
            Copying::Linked => zfs::clone_volume(&source, &target),
        };
        copied.map_err(|error| GuestError::host(format!("disk `{}`: {error}", disk.id)))?;
        made.volumes.push(target);
        return Ok(());
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
