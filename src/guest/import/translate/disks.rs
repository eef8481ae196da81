//! Disks and shares of a guest of vm-bhyve.

use std::path::{Path, PathBuf};

use toml_edit::{Array, Table, value};

use crate::choices::{Choices, DiskDevice};
use crate::config::validate::is_name;
use crate::host::program;
use crate::units::ByteSize;

use super::{Translation, array};

impl Translation<'_> {
    pub(super) fn disks(&mut self) {
        let limit = self.number("ahci_device_limit").filter(|limit| (2..=32).contains(limit)).unwrap_or(1) as usize;
        let names: Vec<String> = self.conf.numbered("disk", "_name").into_iter().map(str::to_owned).collect();
        let mut order: Vec<(i64, String)> = Vec::new();
        let (mut on_ahci, mut any) = (0usize, false);
        for (at, name) in names.iter().enumerate() {
            let Some(kind) = self.conf.get(&format!("disk{at}_type")).map(str::to_owned) else {
                self.notes.add(
                    format!("disk{at}_name"),
                    name,
                    format!("vm-bhyve stops at the first disk without a `disk{at}_type`"),
                );
                break;
            };
            any = true;
            let shared = limit > 1 && matches!(kind.as_str(), "ahci-hd" | "ahci-cd");
            let controller = shared.then(|| format!("ahci{}", on_ahci / limit));
            if shared {
                on_ahci += 1;
            }
            // A controller gets its address when it is full, or after the last disk.
            let address = match shared {
                false => Some(self.layout.disk()),
                true if on_ahci % limit == 0 => {
                    let address = self.layout.disk();
                    self.slot(&format!("ahci:ahci{}", (on_ahci - 1) / limit), address);
                    None
                }
                true => None,
            };
            self.disk(at, name, &kind, controller, address, &mut order);
        }
        if on_ahci % limit != 0 {
            let address = self.layout.disk();
            self.slot(&format!("ahci:ahci{}", on_ahci / limit), address);
        }
        self.layout.after_disks(any);
        if !order.is_empty() {
            order.sort();
            if self.conf.get("fwcfg") == Some("qemu") && self.uefi {
                self.table("boot")["order"] = array(order.iter().map(|(_, id)| id.as_str()));
            } else {
                let words: Vec<&str> = order.iter().map(|(_, id)| id.as_str()).collect();
                self.notes.add("bootindex", words.join(" "), "without effect unless `fwcfg` is `qemu`, also in vm-bhyve");
            }
        }
    }

    fn disk(
        &mut self,
        at: usize,
        name: &str,
        kind: &str,
        controller: Option<String>,
        address: Option<String>,
        order: &mut Vec<(i64, String)>,
    ) {
        let options = self.conf.get(&format!("disk{at}_opts")).unwrap_or_default().to_owned();
        let device = self.conf.get(&format!("disk{at}_dev")).unwrap_or("file").to_owned();
        let size = self.conf.get(&format!("disk{at}_size")).map(str::to_owned);
        if kind == "virtio-9p" {
            self.share(at, name, &options, address);
            return;
        }
        let path = self.disk_path(name, &device);
        if DiskDevice::of_word(kind).is_none() {
            let Some(address) = address else { return };
            let options = if options.is_empty() { String::new() } else { format!(",{options}") };
            let path = path.map(|path| path.display().to_string()).unwrap_or_else(|| name.to_owned());
            self.raw.extend(["-s".to_owned(), format!("{address},{kind},{path}{options}")]);
            self.notes.add(
                format!("disk{at}_type"),
                kind,
                "not a kind of disk here; handed to bhyve as it stands, in `bhyve.args`",
            );
            return;
        }
        let id = format!("disk{at}");
        let mut entry = Table::new();
        entry["id"] = value(id.as_str());
        let scsi = kind == "virtio-scsi";
        match device.as_str() {
            "iscsi" => self.iscsi(at, name, &mut entry),
            "zvol" | "sparse-zvol" if self.source.template => {
                entry["backend"] = value("zvol");
                entry["size"] = value(self.template_size(at, size.as_deref()));
                if device == "zvol" {
                    entry["thin"] = value(false);
                }
            }
            "file" if self.source.template && !scsi && kind != "ahci-cd" => {
                entry["size"] = value(self.template_size(at, size.as_deref()));
            }
            _ => match path {
                Some(path) => {
                    entry["backend"] = value("file");
                    entry["path"] = value(path.display().to_string());
                }
                None => {
                    let reason = "vm-bhyve's datastore is not on ZFS, so where this volume is cannot be known; set `path`";
                    self.notes.add(format!("disk{at}_dev"), &device, reason);
                    entry["backend"] = value("file");
                    entry["path"] = value(self.source.directory.join(name).display().to_string());
                }
            },
        }
        if let Some(size) = size.filter(|_| !self.source.template) {
            self.notes.add(format!("disk{at}_size"), size, "a disk that is there has its own size, also in vm-bhyve");
        }
        if kind != "virtio-blk" {
            entry["device"] = value(kind);
        }
        match (controller, address) {
            (Some(controller), _) => entry["controller"] = value(controller),
            (None, Some(address)) if !self.source.template => entry["slot"] = value(address),
            _ => {}
        }
        self.disk_options(at, &id, &options, &mut entry, order);
        self.push("disks", entry);
    }

    fn template_size(&mut self, at: usize, size: Option<&str>) -> String {
        // The default size in vm-bhyve (lib/vm-core).
        const DEFAULT: &str = "20G";
        match size.map(str::parse::<ByteSize>) {
            Some(Ok(size)) => size.to_string(),
            Some(Err(_)) => {
                self.notes.add(format!("disk{at}_size"), size.unwrap_or_default(), format!("not a size; {DEFAULT} is taken"));
                DEFAULT.into()
            }
            None => DEFAULT.into(),
        }
    }

    /// Returns the path at which vm-bhyve looks for a disk (`lib/vm-run`, get_disk_path).
    fn disk_path(&self, name: &str, device: &str) -> Option<PathBuf> {
        match device {
            "zvol" | "sparse-zvol" => {
                let dataset = self.source.dataset?;
                Some(Path::new("/dev/zvol").join(dataset).join(self.source.name).join(name))
            }
            "custom" => Some(self.path(name).into()),
            _ => Some(self.source.directory.join(name)),
        }
    }

    fn disk_options(&mut self, at: usize, id: &str, options: &str, entry: &mut Table, order: &mut Vec<(i64, String)>) {
        let mut others = Array::new();
        let scsi = entry.get("device").and_then(|device| device.as_str()) == Some(DiskDevice::VirtioScsi.as_str());
        for option in options.split(',').map(str::trim).filter(|option| !option.is_empty()) {
            if scsi && matches!(option.split('=').next(), Some("nocache" | "direct" | "sync" | "ro" | "ser")) {
                self.notes.add(format!("disk{at}_opts"), option, "without effect on a `virtio-scsi` disk");
                continue;
            }
            match option.split_once('=') {
                None if option == "nocache" => entry["cache"] = value("none"),
                None if matches!(option, "direct" | "sync") => entry["cache"] = value("writethrough"),
                None if option == "ro" => entry["ro"] = value(true),
                Some(("sectorsize" | "sectsz", size)) => entry["sector_size"] = value(size),
                Some(("ser", serial)) => entry["serial"] = value(serial),
                Some(("bootindex", index)) => match index.parse() {
                    Ok(index) => order.push((index, id.to_owned())),
                    Err(_) => self.notes.add(format!("disk{at}_opts"), option, "not a number"),
                },
                _ => others.push(option),
            }
        }
        if !others.is_empty() {
            entry["options"] = value(others);
        }
    }

    fn iscsi(&mut self, at: usize, name: &str, entry: &mut Table) {
        let (target, lun) = name.split_once('/').unwrap_or((name, "0"));
        entry["backend"] = value("iscsi");
        entry["target"] = value(target);
        if let Ok(lun) = lun.parse::<i64>()
            && lun != 0
        {
            entry["lun"] = value(lun);
        }
        match program::run("iscsictl", &["-L"]).ok().and_then(|text| portal_of(&text, target)) {
            Some(portal) => entry["portal"] = value(portal),
            None => {
                let reason = "iscsictl(8) lists no session with it now, so where it is must be said: set `portal`";
                self.notes.add(format!("disk{at}_name"), name, reason);
                entry["portal"] = value("localhost");
            }
        }
    }

    /// Converts `tag=/path` of a virtio-9p device.
    fn share(&mut self, at: usize, name: &str, options: &str, address: Option<String>) {
        let Some((tag, path)) = name.split_once('=').filter(|(tag, _)| is_name(tag)) else {
            self.notes.add(format!("disk{at}_name"), name, "a share is `name=/path`, its name of lower-case characters");
            return;
        };
        let mut entry = Table::new();
        entry["id"] = value(tag);
        entry["path"] = value(self.path(path));
        for option in options.split(',').filter(|option| !option.is_empty()) {
            match option {
                "ro" => entry["ro"] = value(true),
                other => self.notes.add(format!("disk{at}_opts"), other, "a share has no such option"),
            }
        }
        if let Some(address) = address {
            self.slot(&format!("share:{tag}"), address);
        }
        self.push("shares", entry);
    }
}

/// Returns the portal of a target from the output of `iscsictl -L`: `Target name`, `Target portal`, `State` in columns
/// (`usr.bin/iscsictl/iscsictl.c`).
pub(super) fn portal_of(text: &str, target: &str) -> Option<String> {
    text.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        (words.next()? == target).then(|| words.next().map(str::to_owned)).flatten()
    })
}
