//! Search for a guest's boot configuration.
//!
//! It looks disk by disk in the order of the guest file, and on each disk for these: a `grub.cfg` of an installed
//! system or a medium; one in the EFI system partition; Boot Loader Specification entries; a configuration of the
//! syslinux family.

use super::bls;
use super::device::{Device, Devices};
use super::{GrubError, Options};
use crate::machine::loader::volume::{NodeKind, VolumeError};

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
/// Maximum number of directories of vendors in an EFI system partition that are searched.
const MAX_VENDORS: usize = 64;

/// Kind of a configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A script of GRUB.
    Grub,
    /// Entries of the Boot Loader Specification.
    Entries,
    /// Syslinux, isolinux, extlinux.
    Syslinux,
}

/// A configuration that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Configuration {
    /// The device's name.
    pub device: String,
    /// The file, or the directory of the entries.
    pub path: String,
    /// Kind of the configuration.
    pub kind: Kind,
}

/// Result of the search, with what could not be read.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Configurations {
    /// The configurations, in the order in which they are tried.
    pub found: Vec<Configuration>,
    /// Errors of disks and file systems, for messages: a part that could not be read may have had a configuration.
    pub troubles: Vec<String>,
}

/// Maximum number of troubles that are kept.
const MAX_TROUBLES: usize = 8;

impl Configurations {
    /// Returns a file's kind or another answer of a file system, or `None` if there is no file. An error is kept.
    fn look<T>(&mut self, device: &Device, path: &str, answer: Result<T, VolumeError>) -> Option<T> {
        match answer {
            Ok(answer) => Some(answer),
            Err(error) => {
                if !error.is_absence() {
                    self.trouble(format!("({}){path}: {error}", device.name));
                }
                None
            }
        }
    }

    fn trouble(&mut self, text: String) {
        // A damaged disk gives one error for each path that is tried.
        if self.troubles.len() < MAX_TROUBLES && !self.troubles.contains(&text) {
            self.troubles.push(text);
        }
    }

    fn add_if_file(&mut self, device: &Device, path: &str, kind: Kind) {
        let Some(volume) = device.volume() else { return };
        if self.look(device, path, volume.kind_of(path)) == Some(NodeKind::File) {
            self.found.push(Configuration { device: device.name.clone(), path: path.to_string(), kind });
        }
    }
}

/// Returns the devices to search, by `grub.partition`.
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

/// Returns the device that `root` begins with when the guest file gives the commands.
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

/// Finds the configurations.
pub fn configurations(devices: &Devices, options: &Options) -> Result<Configurations, GrubError> {
    let chosen = chosen(devices, options)?;
    let mut configurations = Configurations::default();
    for disk in 0..devices.disks() {
        let own: Vec<&Device> =
            chosen.iter().copied().filter(|device| device.disk == disk && device.volume().is_some()).collect();
        if options.directory.is_some() || options.file.is_some() {
            own.iter().for_each(|device| named(device, options, &mut configurations));
            continue;
        }
        // The full configuration first: those in `/EFI` often only refer to it.
        own.iter().for_each(|device| among(device, GRUB, Kind::Grub, &mut configurations));
        own.iter().for_each(|device| vendors(device, &mut configurations));
        own.iter().for_each(|device| specification(device, &mut configurations));
        own.iter().for_each(|device| among(device, SYSLINUX, Kind::Syslinux, &mut configurations));
    }
    if configurations.found.is_empty() {
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
        let mut error = nothing(devices, &what);
        if !configurations.troubles.is_empty() {
            error.0.push_str(&format!("; could not be read: {}", configurations.troubles.join("; ")));
        }
        return Err(error);
    }
    Ok(configurations)
}

fn kind_of(name: &str) -> Kind {
    if ["syslinux", "isolinux", "extlinux"].iter().any(|stem| name.contains(stem)) { Kind::Syslinux } else { Kind::Grub }
}

fn named(device: &Device, options: &Options, configurations: &mut Configurations) {
    let file = options.file.as_deref().unwrap_or("grub.cfg").trim_start_matches('/');
    let directories: Vec<String> = match &options.directory {
        Some(directory) => vec![directory.clone()],
        None => GRUB.iter().filter_map(|path| Some(path.rsplit_once('/')?.0.to_string())).collect(),
    };
    for directory in directories {
        let path = format!("/{}/{file}", directory.trim_matches('/')).replace("//", "/");
        configurations.add_if_file(device, &path, kind_of(&path));
    }
}

fn among(device: &Device, paths: &[&str], kind: Kind, configurations: &mut Configurations) {
    paths.iter().for_each(|path| configurations.add_if_file(device, path, kind));
}

fn vendors(device: &Device, configurations: &mut Configurations) {
    let Some(volume) = device.volume() else { return };
    let names = configurations.look(device, "/EFI", volume.list("/EFI")).unwrap_or_default();
    for (name, _) in names.into_iter().filter(|(_, kind)| *kind == NodeKind::Directory).take(MAX_VENDORS) {
        configurations.add_if_file(device, &format!("/EFI/{name}/grub.cfg"), Kind::Grub);
    }
}

fn specification(device: &Device, configurations: &mut Configurations) {
    let mut troubles = Vec::new();
    let found = bls::entries(device, "", &mut troubles);
    troubles.into_iter().for_each(|text| configurations.trouble(text));
    if let Some((directory, _)) = found {
        configurations.found.push(Configuration {
            device: device.name.clone(),
            path: directory.to_string(),
            kind: Kind::Entries,
        });
    }
}
