//! Checks of the files that a guest file names, before they are used: disks must be raw disks, and the others must be
//! files.
//!
//! A raw disk has no mark of its own. A file with the mark of an image, an archive or a packed stream is therefore
//! refused wherever it would become a disk: used as raw bytes, the guest's first write would destroy it. The engine
//! itself does not guess.
//!
//! Only files that the user names are checked. The guest has written the disks that vmctl made, and they may contain
//! anything.

use std::path::Path;

use crate::config::check::is_image_path;
use crate::config::{DiskBackend, DiskConfig, DiskDevice, GuestConfig};
use crate::fetch::contents::Contents;
use crate::fetch::image::{FileStorage, Storage};
use crate::inputs;

use super::error::{GuestError, Result};
use super::seed;

/// Unit of a disk.
const SECTOR: u64 = 512;

/// What a missing file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missing {
    /// A mistake: it is needed here and now.
    Refused,
    /// No mistake: it may exist on the machine where the guest will run, or by the time that it starts.
    Allowed,
}

/// Returns the path of a disk that the user made and that is looked at before a boot.
pub fn own_path(disk: &DiskConfig) -> Option<&Path> {
    // A virtio-scsi disk is a port of CAM, and an iSCSI unit appears at the boot.
    let is_elsewhere = disk.device == DiskDevice::VirtioScsi || disk.backend == DiskBackend::Iscsi;
    disk.path.as_deref().filter(|_| !is_elsewhere)
}

/// Refuses a disk at a path of the user whose bytes are not a raw disk, or which is missing.
pub fn check_disk(disk: &DiskConfig, missing: Missing) -> Result<()> {
    let Some(path) = own_path(disk) else { return Ok(()) };
    let failed = |error: std::io::Error| GuestError::input(&format!("use disk `{}` at", disk.id), path, error);
    match inputs::open_disk(path) {
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return match missing {
                Missing::Refused => Err(no_such_file(&format!("disk `{}`", disk.id), path)),
                Missing::Allowed => Ok(()),
            };
        }
        // The user who runs the guest may be able to read it, even if this user is not.
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => return Ok(()),
        Err(error) => return Err(failed(error)),
    }
    let storage = FileStorage::open_disk(path)?;
    let contents = if disk.raw { Contents::Raw } else { Contents::of(&storage).map_err(GuestError::in_one)? };
    if contents != Contents::Raw {
        let message = format!("disk `{}`: `{}` is {}, not a raw disk", disk.id, path.display(), contents.words());
        let hint = match contents {
            Contents::Image(_) | Contents::Packed(_) => {
                format!(
                    "make a disk of it with `source = \"{}\"` in place of `path`; `format = \"raw\"` takes its bytes as they are",
                    path.display()
                )
            }
            _ => "`format = \"raw\"` takes its bytes as they are".into(),
        };
        return Err(GuestError::user(message).hint(hint));
    }
    let grows = disk.size.is_some_and(|size| size.bytes() > storage.len());
    if storage.len() % SECTOR != 0 && !grows {
        let message = format!(
            "disk `{}`: `{}` has {} bytes, no multiple of 512: it is cut short, or no raw disk",
            disk.id,
            path.display(),
            storage.len()
        );
        return Err(GuestError::user(message).hint("look at it with file(1); truncate(1) gives a disk whole sectors"));
    }
    Ok(())
}

/// Refuses the first disk that is not a raw disk.
pub fn check_disks(config: &GuestConfig) -> Result<()> {
    config.disks.iter().try_for_each(|disk| check_disk(disk, Missing::Allowed))
}

/// Returns the problems of the files that a guest file names, each with its key. The last two are about disks of the user
/// and the files of `[kernel]`; missing files that vmctl itself needs to make the guest are always reported.
pub fn problems(config: &GuestConfig, disks: Missing, kernel: Missing) -> Vec<(String, GuestError)> {
    let mut found = Vec::new();
    for disk in &config.disks {
        let key = |leaf: &str| format!("disks.{}.{leaf}", disk.id);
        // The others are made where they are missing.
        let missing = if disk.backend == DiskBackend::File { disks } else { Missing::Allowed };
        found.extend(check_disk(disk, missing).err().map(|error| (key("path"), error)));
        let source = disk.source.as_deref().filter(|source| is_image_path(source)).map(Path::new);
        found.extend(source.and_then(|path| source_problem(disk, path)).map(|error| (key("source"), error)));
    }
    let uefi = config.uefi.iter().flat_map(|uefi| [("uefi.firmware", uefi.firmware.as_ref()), ("uefi.vars", uefi.vars.as_ref())]);
    let loader = config.bhyveload.iter().map(|bhyveload| ("bhyveload.loader", bhyveload.loader.as_ref()));
    let screen = config.graphics.iter().map(|graphics| ("graphics.password_file", graphics.password_file.as_ref()));
    let others = uefi.chain(loader).chain(screen).filter_map(|(key, path)| Some((key, path?.as_path(), Missing::Allowed)));
    for (key, path, missing) in of_kernel(config).map(|(key, path)| (key, path, kernel)).chain(others) {
        found.extend(no_file(key, path, missing).map(|error| (key.to_owned(), error)));
    }
    if let Some(cloud_init) = &config.cloud_init {
        found.extend(seed::problems(cloud_init).into_iter().map(|(key, error)| (format!("cloud-init.{key}"), error)));
    }
    found
}

/// Returns the files of `[kernel]`, each with its key.
fn of_kernel(config: &GuestConfig) -> impl Iterator<Item = (&'static str, &Path)> {
    config.kernel.iter().flat_map(|kernel| {
        let initrd = kernel.initrd.as_deref().map(|path| ("kernel.initrd", path));
        let modules = kernel.modules.iter().map(|module| ("kernel.modules", module.path.as_path()));
        std::iter::once(("kernel.image", kernel.image.as_path())).chain(initrd).chain(modules)
    })
}

/// Returns the error for a file that is missing.
pub fn no_such_file(what: &str, path: &Path) -> GuestError {
    GuestError::user(format!("{what}: there is no file `{}`", path.display()))
}

/// Returns why a file cannot be used for a key. One that belongs to another user may be readable for the user who runs
/// the guest.
fn no_file(key: &str, path: &Path, missing: Missing) -> Option<GuestError> {
    let error = inputs::open(path).err()?;
    match error.kind() {
        std::io::ErrorKind::NotFound if missing == Missing::Refused => Some(no_such_file(&format!("`{key}`"), path)),
        std::io::ErrorKind::NotFound | std::io::ErrorKind::PermissionDenied => None,
        _ => Some(GuestError::input(&format!("use `{key}`"), path, error)),
    }
}

/// Returns why a disk cannot be made from an existing file.
fn source_problem(disk: &DiskConfig, path: &Path) -> Option<GuestError> {
    if let Some(error) = no_file("source", path, Missing::Allowed) {
        return Some(error);
    }
    let storage = FileStorage::open(path).ok()?;
    let contents = if disk.raw { Contents::Raw } else { Contents::of(&storage).ok()? };
    let words = match contents {
        Contents::Other(words) => format!("is {words}, and no disk image"),
        Contents::OtherImage(name) => format!("is of a format that is not read: {name}"),
        Contents::Raw if storage.is_empty() => "is empty".into(),
        Contents::Raw if storage.len() % SECTOR != 0 && !disk.raw => {
            format!("has {} bytes, no multiple of 512: it is cut short, or no disk image", storage.len())
        }
        _ => return None,
    };
    Some(GuestError::user(format!("disk `{}`: `{}` {words}", disk.id, path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::guest_of;

    fn complaints_about(text: &str) -> Vec<(String, String)> {
        problems(&guest_of(text), Missing::Allowed, Missing::Allowed)
            .into_iter()
            .map(|(key, error)| (key, error.chain()))
            .collect()
    }

    const KERNEL: &str = "kernel.image = \"/nonexistent/k\"\n";

    #[test]
    fn a_file_of_every_known_kind_is_refused_as_a_raw_disk_unless_that_is_insisted_on() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("disk");
        let tar = {
            let mut header = tar_header();
            header.resize(4096, 0);
            header
        };
        let at_end = |mark: &[u8]| {
            let mut file = vec![0; 4096 + 512];
            file[4096..4096 + mark.len()].copy_from_slice(mark);
            let sum: u32 = file[4096..].iter().map(|byte| u32::from(*byte)).sum();
            file[4096 + 64..4096 + 68].copy_from_slice(&(!sum).to_be_bytes());
            file
        };
        let begins = |mark: &[u8]| [mark, &vec![0; 4096 - mark.len()]].concat();
        for (file, words) in [
            (begins(b"QFI\xfb\0\0\0\x03"), "a qcow2 image"),
            (begins(b"QFI\xfb\0\0\0\x01"), "a qcow version 1 image"),
            (begins(b"KDMV"), "a VMDK image"),
            (begins(b"# Disk DescriptorFile\n"), "a VMDK image"),
            (begins(b"COWD"), "a VMDK version 3 (COWD) image"),
            (begins(b"conectix"), "a VHD image"),
            (at_end(b"conectix"), "a VHD image"),
            (begins(b"vhdxfile"), "a VHDX image"),
            (begins(&[&[b' '; 64][..], b"\x7f\x10\xda\xbe"].concat()), "a VDI image"),
            (begins(b"QED\0"), "a QED image"),
            (begins(b"WithoutFreeSpace"), "a Parallels image"),
            (begins(b"\x1f\x8b\x08\0"), "a gzip file"),
            (begins(b"\xfd7zXZ\0"), "an xz file"),
            (begins(b"\x28\xb5\x2f\xfd"), "a zstd file"),
            (begins(b"BZh9"), "a bzip2 file"),
            (begins(b"PK\x03\x04"), "a zip archive"),
            (begins(b"<!DOCTYPE html>"), "an HTML page"),
            (tar, "a tar archive"),
        ] {
            std::fs::write(&path, &file).expect("writes");
            for more in ["", ", ro = true", ", device = \"ahci-hd\"", ", device = \"ahci-cd\""] {
                let disk =
                    |format: &str| format!("{KERNEL}disks = [{{ id = \"d\", path = \"{}\"{more}{format} }}]\n", path.display());
                let error = check_disks(&guest_of(&disk(""))).expect_err(words);
                assert!(error.chain().ends_with(&format!("is {words}, not a raw disk")), "{}", error.chain());
                assert!(error.next_step().is_some_and(|hint| hint.contains("format = \"raw\"")), "{words}");
                check_disks(&guest_of(&disk(", format = \"raw\""))).expect("insisted on");
            }
        }
        std::fs::write(&path, vec![0x5a; 8192]).expect("writes");
        check_disks(&guest_of(&format!("{KERNEL}disks = [{{ id = \"d\", path = \"{}\" }}]\n", path.display())))
            .expect("a raw disk");
    }

    fn tar_header() -> Vec<u8> {
        let mut header = vec![0u8; 512];
        header[..8].copy_from_slice(b"disk.raw");
        header[257..263].copy_from_slice(b"ustar\0");
        header
    }

    #[test]
    fn a_disk_of_odd_size_is_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("disk");
        std::fs::write(&path, vec![0x5a; 8191]).expect("writes");
        let disk = |more: &str| guest_of(&format!("{KERNEL}disks = [{{ id = \"d\", path = \"{}\"{more} }}]\n", path.display()));
        assert!(check_disks(&disk("")).expect_err("odd").chain().contains("has 8191 bytes, no multiple of 512"));
        assert!(check_disks(&disk(", format = \"raw\"")).is_err(), "no engine takes it");
        check_disks(&disk(", size = \"1M\"")).expect("it grows to whole sectors");
    }

    #[test]
    fn what_is_no_file_is_told_with_its_key() {
        let dir = tempfile::tempdir().expect("a directory");
        let fifo = dir.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).expect("a FIFO");
        let fifo = fifo.display();
        let found = complaints_about(&format!(
            "kernel = {{ image = \"/dev/zero\", initrd = \"{fifo}\" }}\n\
             disks = [{{ id = \"a\", path = \"/etc\" }}, {{ id = \"b\", path = \"{fifo}\" }}, {{ id = \"c\", source = \"{fifo}\" }}]\n"
        ));
        let keys: Vec<&str> = found.iter().map(|(key, _)| key.as_str()).collect();
        assert_eq!(keys, ["disks.a.path", "disks.b.path", "disks.c.source", "kernel.image", "kernel.initrd"], "{found:?}");
        assert!(found[0].1.contains("it is a directory") && found[1].1.contains("it is a FIFO"), "{found:?}");
        assert!(found[3].1.contains("it is a character device"), "{found:?}");
        assert_eq!(complaints_about(KERNEL), [], "a kernel that is not here may be where the guest is to run");
    }

    #[test]
    fn a_source_that_no_disk_can_be_made_of_is_told() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("my image.raw");
        for (bytes, words) in [
            (b"<html><body>404</body></html>".to_vec(), "is an HTML page"),
            (vec![0x5a; 1000], "has 1000 bytes, no multiple of 512"),
            (Vec::new(), "is empty"),
            ([&b"vhdxfile"[..], &[0; 504]].concat(), "not read: VHDX"),
        ] {
            std::fs::write(&path, bytes).expect("writes");
            let found = complaints_about(&format!("{KERNEL}disks = [{{ id = \"d\", source = \"{}\" }}]\n", path.display()));
            assert!(found.len() == 1 && found[0].0 == "disks.d.source" && found[0].1.contains(words), "{found:?}");
        }
        std::fs::write(&path, vec![0x5a; 1024]).expect("writes");
        assert_eq!(complaints_about(&format!("{KERNEL}disks = [{{ id = \"d\", source = \"{}\" }}]\n", path.display())), []);
    }

    #[test]
    fn files_of_cloud_init_that_are_missing_or_too_long_are_told() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("user-data");
        let text = |key: &str| format!("{KERNEL}[cloud-init]\n{key} = \"{}\"\n", path.display());
        for key in ["user_data", "vendor_data", "meta_data", "network_config", "password_file"] {
            let found = complaints_about(&text(key));
            assert!(found.len() == 1 && found[0].0 == format!("cloud-init.{key}"), "{key}: {found:?}");
        }
        std::fs::write(&path, vec![b'a'; (1 << 20) + 1]).expect("writes");
        assert!(complaints_about(&text("user_data"))[0].1.contains("longer than 1 MiB"));
        std::fs::write(&path, b"#cloud-config\n").expect("writes");
        assert_eq!(complaints_about(&text("user_data")), []);
    }
}
