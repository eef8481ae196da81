//! Conversion of `bhyve_options` of vm-bhyve: options of bhyve(8) that have a key become that key.
//!
//! The words are read as getopt(3) reads them, with bhyve's own list of options
//! (`usr.sbin/bhyve/amd64/bhyverun_machdep.c` and `bhyverun.c`, optstr): several without a value may be together, and a
//! value may be in the same word. Options without a key are passed to bhyve unchanged.

use toml_edit::{Item, Table, value};

use crate::config::bhyve_variables;

use super::{Translation, array};

/// Options of bhyve(8) that take a value.
const WITH_VALUE: &str = "BGKUcfklmnoprs";

impl Translation<'_> {
    pub(super) fn options(&mut self, text: &str) {
        let mut words = text.split_whitespace();
        let mut pins: Vec<String> = Vec::new();
        while let Some(word) = words.next() {
            let Some(letters) = word.strip_prefix('-').filter(|letters| !letters.is_empty()) else {
                self.raw.push(word.to_owned());
                continue;
            };
            for (at, letter) in letters.char_indices() {
                if !WITH_VALUE.contains(letter) {
                    self.switch(letter);
                    continue;
                }
                let rest = &letters[at + letter.len_utf8()..];
                let given = if rest.is_empty() { words.next() } else { Some(rest) };
                match given {
                    Some(given) if letter == 'p' && !self.source.template => pins.push(given.to_owned()),
                    Some(given) => self.option(letter, given),
                    None => self.raw.push(format!("-{letter}")),
                }
                break;
            }
        }
        if !pins.is_empty() {
            self.pins(&pins);
        }
    }

    /// Returns the table `name`. A short form of a key is expanded for it: `memory = "1G"` becomes `memory.size`.
    fn long_table(&mut self, name: &str, short: &str) -> &mut Table {
        let item = self.toml.entry(name).or_insert_with(|| Item::Table(Table::new()));
        if !item.is_table() {
            let mut table = Table::new();
            table[short] = std::mem::take(item);
            *item = Item::Table(table);
        }
        item.as_table_mut().expect("made one above")
    }

    /// Converts an option without a value.
    fn switch(&mut self, letter: char) {
        match letter {
            'S' => self.long_table("memory", "size")["wired"] = value(true),
            'C' => self.long_table("memory", "size")["in_core"] = value(true),
            'u' => self.toml["clock"] = value("utc"),
            'H' => self.table("bhyve")["vmexit_on_hlt"] = value(true),
            'P' => self.table("bhyve")["vmexit_on_pause"] = value(true),
            'w' => self.table("bhyve")["ignore_bad_msr"] = value(true),
            'e' => self.table("bhyve")["strict_io"] = value(true),
            'x' => self.table("bhyve")["x2apic"] = value(true),
            'a' => self.table("bhyve")["x2apic"] = value(false),
            'W' => self.table("bhyve")["virtio_msix"] = value(false),
            'Y' => self.table("bhyve")["mptable"] = value(false),
            // These are the ACPI tables, which every guest has here.
            'A' => {}
            other => self.raw.push(format!("-{other}")),
        }
    }

    /// Converts an option with its value.
    fn option(&mut self, letter: char, given: &str) {
        let pair = given.split_once('=').filter(|(name, _)| !name.is_empty());
        match (letter, pair) {
            ('o', Some((name, text))) if bhyve_variables::refusal(name).is_none() => {
                let options = self.table("bhyve").entry("options").or_insert_with(|| Item::Table(Table::new()));
                if let Some(options) = options.as_table_mut() {
                    options[name] = value(text);
                }
            }
            ('U', _) if !self.source.template && self.toml.get("uuid").is_none() => self.toml["uuid"] = value(given),
            ('K', _) if self.toml.get("graphics").is_some() => self.table("graphics")["keyboard"] = value(given),
            // Without QEMU's interface the guest does not see these items, and such a file is refused.
            ('f', _) if self.conf.get("fwcfg") == Some("qemu") => self.firmware_item(given),
            _ => self.raw.extend([format!("-{letter}"), given.to_owned()]),
        }
    }

    /// Converts `[name=]NAME,string=TEXT` or `[name=]NAME,file=PATH` of `-f` (`usr.sbin/bhyve/qemu_fwcfg.c`,
    /// qemu_fwcfg_parse_cmdline_arg).
    fn firmware_item(&mut self, given: &str) {
        let name_of = |text: &str| text.strip_prefix("name=").unwrap_or(text).to_owned();
        let parts = given.split_once(',').and_then(|(name, rest)| Some((name_of(name), rest.split_once('=')?)));
        let (key, name, text) = match parts {
            Some((name, ("string", text))) => ("fw_cfg", name, text.to_owned()),
            Some((name, ("file", path))) => ("fw_cfg_files", name, self.path(path)),
            _ => return self.raw.extend(["-f".to_owned(), given.to_owned()]),
        };
        let items = self.table("bhyve").entry(key).or_insert_with(|| Item::Table(Table::new()));
        if let Some(items) = items.as_table_mut() {
            items[&name] = value(text);
        }
    }

    /// Converts `VCPU:HOST` of `-p`. Those that bhyve would refuse are noted.
    fn pins(&mut self, pins: &[String]) {
        let count = self.conf.get("cpu").and_then(|text| text.parse().ok()).unwrap_or(1u32);
        let fits = |pin: &String| {
            let pair = pin.split_once(':').and_then(|(vcpu, host)| Some((vcpu.parse::<u32>().ok()?, host.parse::<u32>().ok()?)));
            pair.is_some_and(|(vcpu, _)| vcpu < count)
        };
        let vcpu = |pin: &String| pin.split(':').next().unwrap_or_default().to_owned();
        let mut good: Vec<&String> = Vec::new();
        for pin in pins {
            let again = good.iter().any(|other| vcpu(other) == vcpu(pin));
            match fits(pin) && !again {
                true => good.push(pin),
                false => self.notes.add(
                    "bhyve_options",
                    format!("-p {pin}"),
                    "not a virtual CPU of the guest and one of the host, or one that is pinned already",
                ),
            }
        }
        if !good.is_empty() {
            let words: Vec<String> = good.into_iter().cloned().collect();
            self.long_table("cpus", "count")["pin"] = array(words.iter().map(String::as_str));
        }
    }
}
