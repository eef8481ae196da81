//! Network interfaces and further devices of a guest of vm-bhyve.

use toml_edit::{Item, Table, value};

use crate::config::MacAddr;
use crate::config::validate::is_name;

use super::Translation;

impl Translation<'_> {
    pub(super) fn nics(&mut self) {
        let kinds: Vec<String> = self.conf.numbered("network", "_type").into_iter().map(str::to_owned).collect();
        for (at, kind) in kinds.iter().enumerate() {
            let key = |leaf: &str| format!("network{at}_{leaf}");
            let address = self.layout.nic();
            let mut entry = Table::new();
            entry["id"] = value(format!("net{at}"));
            match kind.as_str() {
                "virtio-net" => {}
                "e1000" => entry["device"] = value("e1000"),
                other => self.notes.add(key("type"), other, "not a kind of interface here; it is a virtio-net"),
            }
            self.wiring(at, &mut entry);
            if let Some(mac) = self.conf.get(&key("mac")).map(str::to_owned).filter(|_| !self.source.template) {
                match mac.to_lowercase().parse::<MacAddr>() {
                    Ok(mac) => entry["mac"] = value(mac.to_string()),
                    Err(()) => self.notes.add(key("mac"), mac, "not a MAC address"),
                }
            }
            if let Some(name) = self.conf.get(&key("name")).map(str::to_owned) {
                self.notes.add(key("name"), name, "taps have the names that the kernel gives them; `vmctl info` shows which");
            }
            if !self.source.template {
                entry["slot"] = value(address);
            }
            self.push("nics", entry);
        }
        self.layout.after_nics(!kinds.is_empty());
    }

    fn wiring(&mut self, at: usize, entry: &mut Table) {
        let key = |leaf: &str| format!("network{at}_{leaf}");
        let device = self.conf.get(&key("device")).map(str::to_owned);
        let switch = self.conf.get(&key("switch")).map(str::to_owned);
        let span = self.conf.yes(&key("span")) == Some(true);
        if let Some(device) = device {
            entry["backend"] = value(if device.starts_with("vale") { "vale" } else { "tap" });
            entry["interface"] = value(device);
            if let Some(switch) = switch {
                self.notes.add(key("switch"), switch, "without effect beside an interface of your own, also in vm-bhyve");
            }
            return;
        }
        let Some(name) = switch else {
            entry["backend"] = value("none");
            if entry.remove("device").is_some() {
                self.notes.add(key("type"), "e1000", "bhyve(8) has no e1000 without a cable; it is virtio-net here");
            }
            self.notes.add(key("switch"), "", "vm-bhyve makes an interface that nothing is connected to; it has no link here");
            return;
        };
        let known = self.source.switches.iter().find(|other| other.old == name);
        if known.is_none() && !self.source.template {
            self.notes.add(key("switch"), &name, "vm-bhyve has no switch of this name; the host file must have one");
        }
        let id = known.map_or(name.as_str(), |switch| switch.id.as_str());
        match known.map(|switch| switch.kind) {
            Some(kind @ ("vale" | "netgraph")) => {
                entry["backend"] = value(kind);
                entry["switch"] = value(id);
                if span {
                    self.notes.add(key("span"), "yes", format!("a switch of type `{kind}` has no such ports"));
                }
            }
            _ => {
                entry["switch"] = value(id);
                if span {
                    entry["span"] = value(true);
                }
            }
        }
    }

    pub(super) fn rng(&mut self) {
        let wanted = self.conf.yes("virt_random") == Some(true);
        self.toml["rng"] = value(wanted);
        if wanted {
            let address = self.layout.single();
            self.slot("rng", address);
        }
    }

    pub(super) fn passthru(&mut self) {
        let devices: Vec<String> = self.conf.numbered("passthru", "").into_iter().map(str::to_owned).collect();
        let free: Vec<&str> = devices.iter().filter(|device| !device.contains('=')).map(String::as_str).collect();
        let mut addresses = self.layout.passthru(&free).into_iter();
        for (at, device) in devices.iter().enumerate() {
            let (device, slot) = match device.split_once('=') {
                Some((device, slot)) => (device, Some(format!("0:{slot}"))),
                None => (device.as_str(), addresses.next()),
            };
            let mut entry = Table::new();
            entry["id"] = value(format!("pci{at}"));
            entry["device"] = value(device);
            if let Some(slot) = slot {
                entry["slot"] = value(slot);
            }
            let options = self.conf.get(&format!("passthru{at}_options")).unwrap_or_default().to_owned();
            for option in options.split(',').filter(|option| !option.is_empty()) {
                match option.split_once('=') {
                    Some(("rom", path)) => entry["rom"] = value(self.path(path)),
                    _ => self.notes.add(
                        format!("passthru{at}_options"),
                        option,
                        "a device has no such option; see `bhyve.options`",
                    ),
                }
            }
            self.push("passthru", entry);
        }
    }

    pub(super) fn graphics(&mut self) {
        const KEYS: [&str; 6] =
            ["graphics_port", "graphics_listen", "graphics_res", "graphics_wait", "graphics_vga", "vnc_password"];
        let wanted = self.conf.yes("graphics") == Some(true);
        let tablet = self.conf.yes("xhci_mouse") == Some(true);
        if !wanted || !self.uefi {
            let reason = if wanted { "a screen needs UEFI, also in vm-bhyve" } else { "without `graphics`, it says nothing" };
            if wanted {
                self.notes.add("graphics", "yes", reason);
            }
            for key in KEYS {
                if let Some(text) = self.conf.get(key) {
                    self.notes.add(key, if key == "vnc_password" { "..." } else { text }, reason);
                }
            }
            if tablet {
                self.notes.add("xhci_mouse", "yes", "a pointer without a screen; leave it out");
                self.layout.single();
            }
            return;
        }
        let address = self.layout.single();
        let mut table = Table::new();
        if !self.source.template {
            table["slot"] = value(address);
        }
        match self.conf.get("graphics_listen").map(str::to_owned) {
            Some(listen) => table["listen"] = value(listen),
            None => {
                let reason = "vm-bhyve listens on all addresses when nobody says; here it is 127.0.0.1, see `graphics.listen`";
                self.notes.add("graphics_listen", "", reason);
            }
        }
        if let Some(port) = self.number("graphics_port") {
            table["port"] = value(port);
        }
        if let Some(resolution) = self.conf.get("graphics_res").map(str::to_owned) {
            table["resolution"] = value(resolution);
        }
        // `auto` waits only in installations.
        if self.conf.get("graphics_wait").is_some_and(|text| text != "auto" && super::super::conf::is_yes(text)) {
            table["wait"] = value(true);
        }
        if let Some(vga) = self.conf.get("graphics_vga").map(str::to_owned) {
            table["vga"] = value(vga);
        }
        if let Some(password) = self.conf.get("vnc_password").map(str::to_owned) {
            match self.source.template {
                true => self.notes.add("vnc_password", "...", "a template has none; set `graphics.password_file` of each guest"),
                false => self.password = Some(password),
            }
        }
        table["tablet"] = value(tablet);
        self.toml["graphics"] = Item::Table(table);
        if tablet {
            let address = self.layout.single();
            self.slot("tablet", address);
        }
    }

    pub(super) fn sound(&mut self) {
        let [play, record] = ["sound_play", "sound_rec"].map(|key| self.conf.get(key).map(str::to_owned));
        if self.conf.yes("sound") != Some(true) {
            for (key, text) in [("sound_play", play), ("sound_rec", record)] {
                if let Some(text) = text {
                    self.notes.add(key, text, "without `sound`, it says nothing");
                }
            }
            return;
        }
        let address = self.layout.single();
        self.slot("sound", address);
        let table = self.table("sound");
        if let Some(play) = play {
            table["play"] = value(play);
        }
        if let Some(record) = record {
            table["record"] = value(record);
        }
    }

    pub(super) fn channels(&mut self) {
        let names: Vec<String> = self.conf.numbered("virt_console", "").into_iter().map(str::to_owned).collect();
        let mut any = false;
        for (at, name) in names.iter().enumerate() {
            let numbered = matches!(name.to_ascii_lowercase().as_str(), "yes" | "on" | "1");
            let id = if numbered { at.to_string() } else { name.clone() };
            if at >= 16 || !is_name(&id) {
                let reason =
                    if at >= 16 { "vm-bhyve has 16 at the most" } else { "its name must be of lower-case characters here" };
                self.notes.add(format!("virt_console{at}"), name, reason);
                continue;
            }
            any = true;
            let mut entry = Table::new();
            entry["id"] = value(id.as_str());
            if !self.source.template {
                entry["path"] = value(self.source.directory.join(format!("vtcon.{id}")).display().to_string());
            }
            self.push("channels", entry);
        }
        if any {
            let address = self.layout.single();
            self.slot("channels", address);
        }
    }
}
