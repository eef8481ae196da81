//! Where a guest's boot configuration is.
//!
//! Disk by disk in the order of the guest file, and on each disk: a `grub.cfg` of an installed system or a medium;
//! one in the EFI system partition; Boot Loader Specification entries; a configuration of the syslinux family.

use super::bls;
use super::device::{Device, Devices};
use super::{GrubError, Options};
use crate::machine::loader::volume::{FileSystem, NodeKind};

const GRUB: &[&str] = &["/boot/grub/grub.cfg", "/boot/grub2/grub.cfg", "/grub/grub.cfg", "/grub2/grub.cfg", "/boot/grub.cfg"];
const SYSLINUX: &[&str] = &[
    "/boot/extlinux/extlinux.conf",
    "/extlinux/extlinux.conf",
    "/boot/extlinux.conf",
    "/extlinux.conf",
    "/isolinux/isolinux.cfg",
    "/boot/isolinux/isolinux.cfg",
    "/isolinux.cfg",
    "/boot/syslinux/syslinux.cfg",
    "/syslinux/syslinux.cfg",
    "/boot/syslinux/isolinux.cfg",
    "/syslinux.cfg",
];
/// Directories of vendors in an EFI system partition that are looked into.
const MAX_VENDORS: usize = 64;

/// What kind of configuration it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A script of GRUB.
    Grub,
    /// Entries of the Boot Loader Specification.
    Entries,
    /// Syslinux, isolinux, extlinux.
    Syslinux,
}

/// A configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The device's name.
    pub device: String,
    /// The file, or the directory of the entries.
    pub path: String,
    /// What it is.
    pub kind: Kind,
}

fn is_file(volume: &dyn FileSystem, path: &str) -> bool {
    matches!(volume.kind_of(path), Ok(NodeKind::File))
}

/// The devices that may be looked at, by `grub.partition`.
fn chosen<'a>(devices: &'a Devices, options: &Options) -> Result<Vec<&'a Device>, GrubError> {
    if let Some(id) = &options.disk {
        let disk = devices.with_id(id);
        return Ok(devices.all().iter().filter(|device| Some(device.disk) == disk).collect());
    }
    let Some(wanted) = options.partition.as_deref() else { return Ok(devices.all().iter().collect()) };
    let (disk, part) = match wanted.split_once(',') {
        Some((disk, part)) => (Some(disk), part),
        None if wanted.starts_with("hd") || wanted.starts_with("cd") => (Some(wanted), "none"),
        None => (None, wanted),
    };
    let disk = match disk {
        Some(name) => devices.find(name).map(|device| device.disk),
        None => (devices.disks() > 0).then_some(0),
    };
    let found = disk.and_then(|disk| match part {
        "none" => devices.on_disk(disk).find(|device| device.partition == 0),
        part => {
            let number: Option<u32> = part.trim_start_matches("msdos").trim_start_matches("gpt").parse().ok();
            devices.on_disk(disk).find(|device| device.partition > 0 && Some(device.partition) == number)
        }
    });
    match found {
        Some(device) => Ok(vec![device]),
        None => Err(nothing(devices, &format!("`grub.partition` is `{wanted}`, which this guest does not have"))),
    }
}

/// The device that `root` begins with when the guest file gives the commands.
pub fn start(devices: &Devices, options: &Options) -> Option<String> {
    let chosen = chosen(devices, options).ok()?;
    let device = chosen.iter().find(|device| device.volume().is_some()).or(chosen.first())?;
    Some(device.name.clone())
}

fn nothing(devices: &Devices, what: &str) -> GrubError {
    if devices.disks() == 0 {
        return GrubError(format!("{what}: it has no disk"));
    }
    GrubError(format!("{what}; found: {}", devices.describe().join("; ")))
}

/// The configurations, in the order in which they are tried.
pub fn places(devices: &Devices, options: &Options) -> Result<Vec<Place>, GrubError> {
    let chosen = chosen(devices, options)?;
    let mut found = Vec::new();
    for disk in 0..devices.disks() {
        let own: Vec<&Device> =
            chosen.iter().copied().filter(|device| device.disk == disk && device.volume().is_some()).collect();
        if options.directory.is_some() || options.file.is_some() {
            found.extend(own.iter().flat_map(|device| named(device, options)));
            continue;
        }
        found.extend(own.iter().flat_map(|device| among(device, GRUB, Kind::Grub)));
        found.extend(own.iter().flat_map(|device| vendors(device)));
        found.extend(own.iter().filter_map(|device| specification(device)));
        found.extend(own.iter().flat_map(|device| among(device, SYSLINUX, Kind::Syslinux)));
    }
    if found.is_empty() {
        let what = match (&options.directory, &options.file) {
            (None, None) => {
                "no boot configuration: neither a grub.cfg, nor Boot Loader Specification entries, nor one of syslinux's"
                    .to_string()
            }
            (directory, file) => {
                let directory = directory.as_deref().unwrap_or("(any directory of GRUB's)");
                format!("no boot configuration `{}` in `{directory}`", file.as_deref().unwrap_or("grub.cfg"))
            }
        };
        return Err(nothing(devices, &what));
    }
    Ok(found)
}

fn kind_of(name: &str) -> Kind {
    if ["syslinux", "isolinux", "extlinux"].iter().any(|stem| name.contains(stem)) { Kind::Syslinux } else { Kind::Grub }
}

fn named(device: &Device, options: &Options) -> Vec<Place> {
    let file = options.file.as_deref().unwrap_or("grub.cfg").trim_start_matches('/');
    let directories: Vec<String> = match &options.directory {
        Some(directory) => vec![directory.clone()],
        None => GRUB.iter().filter_map(|path| Some(path.rsplit_once('/')?.0.to_string())).collect(),
    };
    let paths = directories.iter().map(|directory| format!("/{}/{file}", directory.trim_matches('/')).replace("//", "/"));
    let volume = device.volume();
    paths
        .filter(|path| volume.is_some_and(|volume| is_file(volume, path)))
        .map(|path| Place { device: device.name.clone(), kind: kind_of(&path), path })
        .collect()
}

fn among(device: &Device, paths: &[&str], kind: Kind) -> Vec<Place> {
    let Some(volume) = device.volume() else { return Vec::new() };
    let there = paths.iter().filter(|path| is_file(volume, path));
    there.map(|path| Place { device: device.name.clone(), path: path.to_string(), kind }).collect()
}

fn vendors(device: &Device) -> Vec<Place> {
    let Some(volume) = device.volume() else { return Vec::new() };
    let names = volume.list("/EFI").unwrap_or_default();
    let directories = names.into_iter().filter(|(_, kind)| *kind == NodeKind::Directory).take(MAX_VENDORS);
    directories
        .map(|(name, _)| format!("/EFI/{name}/grub.cfg"))
        .filter(|path| is_file(volume, path))
        .map(|path| Place { device: device.name.clone(), path, kind: Kind::Grub })
        .collect()
}

fn specification(device: &Device) -> Option<Place> {
    bls::entries(device)?;
    let volume = device.volume()?;
    let path = bls::DIRECTORIES.iter().find(|path| volume.kind_of(path).is_ok())?;
    Some(Place { device: device.name.clone(), path: path.to_string(), kind: Kind::Entries })
}
