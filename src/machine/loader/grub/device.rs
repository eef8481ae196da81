//! GRUB's names for disks, partitions and files: `(hd0,gpt1)/boot/vmlinuz`.
//!
//! `hd0` is the guest's first disk that is not a CD, in the order of the guest file; `cd0` is its first CD.

use std::sync::Arc;

use crate::devices::disk::DiskReader;
use crate::machine::loader::volume::iso9660::{BootImage, Iso};
use crate::machine::loader::volume::partition::{self, Scheme};
use crate::machine::loader::volume::probe::{Found, probe};
use crate::machine::loader::volume::{FileSystem, Medium, NodeKind};

/// A disk of the guest.
#[derive(Clone)]
pub struct BootDisk {
    /// Its id in the guest file.
    pub id: String,
    /// Whether it is a CD drive.
    pub is_cd: bool,
    /// Its bytes.
    pub reader: Arc<dyn DiskReader>,
}

/// A disk or a partition, and its contents.
pub struct Device {
    /// Name as GRUB writes it, without parentheses: `hd0`, `hd0,msdos1`, `cd0`.
    pub name: String,
    /// Index of the guest's disk.
    pub disk: usize,
    /// Number of the partition; 0 for the disk itself.
    pub partition: u32,
    /// The partition's own UUID.
    pub part_uuid: String,
    /// Contents that were detected.
    pub found: Found,
    /// The boot images of El Torito, on an ISO.
    pub boot_images: Vec<BootImage>,
}

impl Device {
    /// Returns its file system, if it has one that can be read.
    pub fn volume(&self) -> Option<&dyn FileSystem> {
        match &self.found {
            Found::Volume(volume) => Some(volume.as_ref()),
            _ => None,
        }
    }
}

/// All disks and partitions of the guest.
pub struct Devices {
    list: Vec<Device>,
    /// The disks' ids in the guest file.
    ids: Vec<String>,
}

impl Devices {
    /// Reads the partition tables and detects the contents.
    pub fn new(disks: Vec<BootDisk>) -> Devices {
        let (mut hd, mut cd) = (0, 0);
        let mut list = Vec::new();
        for (index, disk) in disks.iter().enumerate() {
            let (kind, number) = if disk.is_cd { ("cd", &mut cd) } else { ("hd", &mut hd) };
            let name = format!("{kind}{number}");
            *number += 1;
            let medium = Medium::new(Arc::clone(&disk.reader));
            let (partitions, unread) = match partition::read(&medium) {
                Ok(partitions) => (partitions, None),
                Err(error) => (Vec::new(), Some(Found::Broken(error.into()))),
            };
            let whole = unread.unwrap_or_else(|| probe(&medium));
            // A disk with a partition table has no file system of its own, except for ISO images, which may have both.
            let whole = match whole {
                Found::Volume(volume) if !partitions.is_empty() && volume.kind() == "fat" => Found::Unknown,
                other => other,
            };
            let device = |name: String, partition: u32, part_uuid: String, found: Found| Device {
                name,
                disk: index,
                partition,
                part_uuid,
                found,
                boot_images: Vec::new(),
            };
            let mut all = device(name.clone(), 0, String::new(), whole);
            all.boot_images = Iso::boot_images(&medium);
            list.push(all);
            for part in partitions {
                let scheme = if part.scheme == Scheme::Gpt { "gpt" } else { "msdos" };
                let found = probe(&medium.window(part.start, part.len));
                list.push(device(format!("{name},{scheme}{}", part.number), part.number, part.uuid, found));
            }
        }
        let ids = disks.into_iter().map(|disk| disk.id).collect();
        Devices { list, ids }
    }

    /// Creates one disk, `hd0`, with a file system and no partitions: for tests.
    pub fn of(volume: Box<dyn FileSystem>) -> Devices {
        let device = Device {
            name: "hd0".into(),
            disk: 0,
            partition: 0,
            part_uuid: String::new(),
            found: Found::Volume(volume),
            boot_images: Vec::new(),
        };
        Devices { list: vec![device], ids: vec!["hd0".into()] }
    }

    /// Returns all devices, disks before their partitions.
    pub fn all(&self) -> &[Device] {
        &self.list
    }

    /// Returns the devices on the disk at `index`.
    pub fn on_disk(&self, index: usize) -> impl Iterator<Item = &Device> {
        self.list.iter().filter(move |device| device.disk == index)
    }

    /// Returns the number of disks.
    pub fn disks(&self) -> usize {
        self.ids.len()
    }

    /// Returns the disk with this id in the guest file.
    pub fn with_id(&self, id: &str) -> Option<usize> {
        self.ids.iter().position(|other| other == id)
    }

    /// Returns the device of this name, with or without parentheses. `hd0,1` stands for the partition of either table.
    pub fn find(&self, name: &str) -> Option<&Device> {
        let name = name.strip_prefix('(').map_or(name, |name| name.strip_suffix(')').unwrap_or(name));
        let name = if matches!(name, "cd" | "hd") { &format!("{name}0") } else { name };
        self.list.iter().find(|device| device.name == name).or_else(|| {
            let (disk, number) = name.split_once(',')?;
            let number: u32 = number.trim_start_matches("msdos").trim_start_matches("gpt").parse().ok()?;
            let disk = self.list.iter().find(|device| device.name == disk)?.disk;
            self.list.iter().find(|device| device.disk == disk && device.partition == number && number > 0)
        })
    }

    /// Describes the contents of all devices, one line per disk or partition, for messages about a missing
    /// configuration.
    pub fn describe(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for device in &self.list {
            let has_partitions = self.list.iter().any(|other| other.disk == device.disk && other.partition > 0);
            let place = match device.partition {
                0 => format!("disk `{}` ({})", self.ids[device.disk], device.name),
                number => format!("partition {number} ({})", device.name),
            };
            let what = match &device.found {
                Found::Volume(volume) => describe_volume(volume.as_ref(), device),
                Found::Named(name) => name.clone(),
                Found::Broken(error) => error.to_string(),
                Found::Unknown if device.partition == 0 && has_partitions => continue,
                Found::Unknown => "unknown contents".into(),
            };
            lines.push(format!("{place}: {what}"));
        }
        lines
    }
}

fn describe_volume(volume: &dyn FileSystem, device: &Device) -> String {
    let kind = if volume.kind() == "ext2" { "ext2/3/4" } else { volume.kind() };
    let mut text = match volume.label().as_str() {
        "" => kind.to_string(),
        label => format!("{kind} `{label}`"),
    };
    let images: Vec<String> = device
        .boot_images
        .iter()
        .map(|image| match image {
            BootImage::Bios => "a BIOS".into(),
            BootImage::Uefi => "UEFI".into(),
            BootImage::Other(platform) => format!("platform {platform}"),
        })
        .collect();
    if !images.is_empty() {
        text.push_str(&format!(", with boot images for {}", images.join(" and ")));
    }
    const SYSTEMS: &[(&str, &str)] = &[
        ("/boot/loader", "FreeBSD's loader"),
        ("/sources/boot.wim", "Windows Setup"),
        ("/bsd.rd", "OpenBSD's kernel"),
        ("/EFI/BOOT/BOOTX64.EFI", "a program for UEFI firmware"),
    ];
    for (path, what) in SYSTEMS {
        if matches!(volume.kind_of(path), Ok(NodeKind::File)) {
            text.push_str(&format!(", with {what}"));
        }
    }
    text
}
