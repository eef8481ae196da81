//! Conversion of one guest or template of vm-bhyve to a guest file.
//!
//! The meaning of each key is in vm-bhyve's `sample-templates/config.sample` and `vm.8` and, where those and the code
//! disagree, in the code: `lib/vm-run`, `lib/vm-guest`, `lib/vm-rctl`.

mod devices; // interfaces and all devices that are not disks
mod disks;
mod options; // `bhyve_options`

use std::path::Path;

use toml_edit::{Array, ArrayOfTables, DocumentMut, Item, Table, value};

use crate::inputs;
use crate::units::ByteSize;

use super::Notes;
use super::conf::Conf;
use super::pci::Layout;
use super::switches::ImportedSwitch;

/// Parameters for a guest's settings.
#[derive(Debug, Clone)]
pub struct Source<'a> {
    /// Name of the guest or the template.
    pub name: &'a str,
    /// Its directory in vm-bhyve's datastore.
    pub directory: &'a Path,
    /// The ZFS dataset of that datastore, which contains the guest's volumes.
    pub dataset: Option<&'a str>,
    /// The directory `.config` of vm-bhyve.
    pub config_dir: &'a Path,
    /// vm-bhyve's switches.
    pub switches: &'a [ImportedSwitch],
    /// Whether it is a template: no identity, and disks are to be made.
    pub template: bool,
    /// Its position in `vm_list` and the seconds before it is started.
    pub autostart: Option<(usize, u64)>,
}

/// Result of the conversion.
#[derive(Debug, Clone)]
pub struct Translated {
    /// The guest file.
    pub toml: DocumentMut,
    /// Notes about settings that were not imported unchanged.
    pub notes: Notes,
    /// The password of its screen, for a file of its own.
    pub password: Option<String>,
}

struct Translation<'a> {
    source: &'a Source<'a>,
    conf: &'a Conf,
    toml: DocumentMut,
    notes: Notes,
    layout: Layout,
    slots: Table,
    raw: Vec<String>,
    uefi: bool,
    password: Option<String>,
}

/// Translates a guest's settings.
pub fn translate(source: &Source<'_>, conf: &Conf) -> Translated {
    let loader = conf.get("loader").map(str::to_owned);
    let uefi = loader.as_deref().is_some_and(|loader| loader.starts_with("uefi")) || conf.yes("uefi") == Some(true);
    let start = conf.get("start_slot").and_then(|text| text.parse().ok()).unwrap_or(4);
    let mut translation = Translation {
        source,
        conf,
        toml: DocumentMut::new(),
        notes: Notes::default(),
        layout: Layout::new(start, uefi),
        slots: Table::new(),
        raw: Vec::new(),
        uefi,
        password: None,
    };
    translation.all(loader.as_deref());
    let Translation { toml, notes, password, .. } = translation;
    Translated { toml, notes, password }
}

fn array<'a>(words: impl IntoIterator<Item = &'a str>) -> Item {
    value(words.into_iter().collect::<Array>())
}

impl Translation<'_> {
    fn all(&mut self, loader: Option<&str>) {
        self.toml["engine"] = value("bhyve");
        self.identity();
        self.processors();
        self.memory();
        self.loader(loader);
        self.console();
        self.disks();
        self.nics();
        self.rng();
        self.passthru();
        self.graphics();
        self.sound();
        self.channels();
        self.life();
        self.limits();
        self.bhyve();
        self.without_place();
    }

    /// Returns an absolute path. A relative one is searched in the guest's directory.
    fn path(&self, text: &str) -> String {
        self.source.directory.join(text).display().to_string()
    }

    fn table(&mut self, name: &str) -> &mut Table {
        self.toml.entry(name).or_insert_with(|| Item::Table(Table::new())).as_table_mut().expect("made as one")
    }

    /// Says in a comment above a key of a table where its value comes from.
    fn explain(&mut self, table: &str, key: &str, why: &str) {
        if let Some(mut key) = self.table(table).key_mut(key) {
            key.leaf_decor_mut().set_prefix(format!("# {why}\n"));
        }
    }

    fn push(&mut self, class: &str, entry: Table) {
        let item = self.toml.entry(class).or_insert_with(|| Item::ArrayOfTables(ArrayOfTables::new()));
        item.as_array_of_tables_mut().expect("made as one").push(entry);
    }

    fn number(&mut self, key: &str) -> Option<i64> {
        let text = self.conf.get(key)?;
        match text.parse() {
            Ok(number) => Some(number),
            Err(_) => {
                self.notes.add(key, text, "not a number");
                None
            }
        }
    }

    fn slot(&mut self, name: &str, address: String) {
        if !self.source.template {
            self.slots[name] = value(address);
        }
    }

    fn identity(&mut self) {
        if let Some(uuid) = self.conf.get("uuid").filter(|_| !self.source.template) {
            self.toml["uuid"] = value(uuid);
        }
        if let Some(tags) = self.conf.get("tags") {
            self.toml["tags"] = array(tags.split([' ', ',']).filter(|tag| !tag.is_empty()));
        }
        if self.conf.yes("utctime") == Some(false) {
            self.toml["clock"] = value("localtime");
        }
    }

    fn processors(&mut self) {
        let count = self.number("cpu");
        let [sockets, cores, threads] = ["cpu_sockets", "cpu_cores", "cpu_threads"].map(|key| self.number(key));
        if count.is_none() {
            self.notes.add("cpu", "", "vm-bhyve does not start a guest without it; it has 1 here");
        }
        let count = count.unwrap_or(1);
        if sockets.or(cores).or(threads).is_none() {
            self.toml["cpus"] = value(count);
            return;
        }
        let package = cores.unwrap_or(1) * threads.unwrap_or(1);
        let fits = sockets.map_or(package > 0 && count % package == 0, |sockets| sockets * package == count);
        let table = self.table("cpus");
        table["count"] = value(count);
        if fits {
            for (key, number) in [("sockets", sockets), ("cores", cores), ("threads", threads)] {
                if let Some(number) = number {
                    table[key] = value(number);
                }
            }
        } else {
            let words = [sockets, cores, threads].map(|n| n.unwrap_or(1).to_string()).join(" x ");
            self.notes.add(
                "cpu_sockets, cpu_cores, cpu_threads",
                words,
                format!("they do not make {count} CPUs, which bhyve refuses"),
            );
        }
    }

    /// Converts a size as bhyve(8) reads `-m` (libvmmapi, vm_parse_memsize): a bare number below 1 Mi is MiB, others
    /// are bytes.
    fn memory(&mut self) {
        let text = self.conf.get("memory").unwrap_or_default();
        // `512MB` is not documented in bhyve(8), but is in a template of vm-bhyve.
        let short = text.strip_suffix(['B', 'b']).filter(|short| !short.ends_with(|c: char| c.is_ascii_digit()));
        let size = match text.parse::<u64>() {
            Ok(number) if number < 1 << 20 => Some(ByteSize::from_mib(number)),
            Ok(number) => Some(ByteSize::from_bytes(number)),
            Err(_) => short.unwrap_or(text).parse::<ByteSize>().ok(),
        };
        match size {
            Some(size) => {
                if short.is_some() || text.bytes().all(|b| b.is_ascii_digit()) {
                    self.notes.add("memory", text, format!("it is {size} here; sizes are written with their unit, like `512M`"));
                }
                match self.conf.yes("wired_memory") == Some(true) {
                    true => {
                        let table = self.table("memory");
                        table["size"] = value(size.to_string());
                        table["wired"] = value(true);
                    }
                    false => self.toml["memory"] = value(size.to_string()),
                }
            }
            None => {
                self.conf.get("wired_memory");
                self.notes.add("memory", text, "not a size; the guest has the default of 512M here");
            }
        }
    }

    fn loader(&mut self, loader: Option<&str>) {
        let timeout = self.conf.get("loader_timeout").map(str::to_owned);
        let seconds = timeout.as_deref().and_then(|text| text.parse::<u64>().ok());
        let old = (self.conf.get("uefi").map(str::to_owned), self.conf.get("guest").map(str::to_owned));
        let kind = match (loader, &old) {
            (Some("bhyveload"), _) => "bhyveload",
            (Some("grub"), _) => "grub",
            (Some(loader), _) if loader.starts_with("uefi") => "uefi",
            (_, (Some(uefi), _)) if super::conf::is_yes(uefi) => "uefi",
            (None, (_, Some(guest))) if guest == "freebsd" => "bhyveload",
            (None, (_, Some(guest))) if !matches!(guest.as_str(), "windows" | "generic") => "grub",
            (other, _) => {
                self.notes.add("loader", other.unwrap_or_default(), "vm-bhyve does not know how to boot it; it has UEFI here");
                "uefi"
            }
        };
        self.toml["loader"] = value(kind);
        match kind {
            "bhyveload" => self.bhyveload(seconds),
            "grub" => self.grub(seconds),
            _ => self.firmware(loader, old.0.as_deref()),
        }
        if let Some(text) = &timeout
            && (seconds.is_none() || kind == "uefi")
        {
            let reason = if seconds.is_none() { "not a number of seconds" } else { "UEFI firmware has its own menu" };
            self.notes.add("loader_timeout", text, reason);
        }
    }

    fn bhyveload(&mut self, seconds: Option<u64>) {
        let (loader, args) = (self.conf.get("bhyveload_loader"), self.conf.get("bhyveload_args"));
        if loader.is_none() && args.is_none() && seconds.is_none() {
            return;
        }
        let (loader, args) = (loader.map(|loader| self.path(loader)), args.map(str::to_owned));
        let table = self.table("bhyveload");
        if let Some(loader) = loader {
            table["loader"] = value(loader);
        }
        if let Some(args) = args {
            table["args"] = array(args.split_whitespace());
        }
        if let Some(seconds) = seconds {
            table["timeout"] = value(format!("{seconds}s"));
        }
    }

    fn grub(&mut self, seconds: Option<u64>) {
        let mut commands: Vec<String> = self.conf.numbered("grub_run", "").into_iter().map(str::to_owned).collect();
        // A file with the commands, of vm-bhyve before 1.0.
        if let Some(name) = self.conf.get("grub_commands") {
            match commands_in(&self.source.directory.join(name)) {
                Some(found) => commands.extend(found),
                None => self.notes.add("grub_commands", name, "the file cannot be read, or is longer than commands are"),
            }
        }
        for (at, text) in self.conf.numbered("grub_install", "").into_iter().enumerate() {
            let reason = "for installations only: to install again, add the medium as a disk and these as `grub.commands`";
            self.notes.add(format!("grub_install{at}"), text, reason);
        }
        let without_partition = self.conf.yes("grub_run_no_partition") == Some(true);
        let named = self.conf.get("grub_run_partition").map(str::to_owned);
        let [directory, file] = ["grub_run_dir", "grub_run_file"].map(|key| self.conf.get(key).map(str::to_owned));
        if without_partition {
            self.notes.add("grub_run_no_partition", "yes", "it never worked in vm-bhyve; here it is `partition = \"none\"`");
        }
        let table = self.table("grub");
        table["partition"] = value(if without_partition { "none" } else { named.as_deref().unwrap_or("1") });
        match seconds {
            Some(seconds) if !commands.is_empty() => table["timeout"] = value(format!("{seconds}s")),
            Some(seconds) => {
                let reason = "the guest's own configuration sets the time of its menu";
                self.notes.add("loader_timeout", seconds.to_string(), reason);
            }
            None => {}
        }
        if named.is_none() && !without_partition {
            self.explain("grub", "partition", "vm-bhyve's default");
        }
        if !commands.is_empty() {
            let table = self.table("grub");
            // vmctl adds the last one itself.
            commands.retain(|command| !command.trim().is_empty() && command.trim() != "boot");
            table["commands"] = array(commands.iter().map(|command| command.trim()));
        }
        for (key, old, text) in [("directory", "grub_run_dir", directory), ("file", "grub_run_file", file)] {
            match text {
                Some(text) if commands.is_empty() => self.table("grub")[key] = value(text),
                Some(text) => self.notes.add(old, text, "without effect beside `grub_runN`, also in vm-bhyve"),
                None => {}
            }
        }
    }

    fn firmware(&mut self, loader: Option<&str>, old: Option<&str>) {
        let vars = self.conf.yes("uefi_vars") == Some(true);
        let csm = loader == Some("uefi-csm") || old.is_some_and(|old| old.contains("csm"));
        let custom = self.source.config_dir.join("BHYVE_UEFI.fd");
        let own_vars = self.source.directory.join("uefi-vars.fd");
        let template = self.source.template;
        let table = self.table("uefi");
        match (csm, loader) {
            (true, _) => table["csm"] = value(true),
            (_, Some("uefi-custom")) => table["firmware"] = value(custom.display().to_string()),
            (_, Some("uefi-devel")) => {
                table["firmware"] = value("/usr/local/share/uefi-firmware/BHYVE_UEFI_CODE-devel.fd");
            }
            _ => {}
        }
        match vars {
            true if csm => self.notes.add("uefi_vars", "yes", "that firmware has no variables"),
            // The guest starts with the variables that it has set so far.
            true if !template && own_vars.exists() => table["vars"] = value(own_vars.display().to_string()),
            true => {}
            false if !csm => {
                table["persistent"] = value(false);
                self.explain("uefi", "persistent", "without `uefi_vars`, vm-bhyve starts with new variables at each boot");
            }
            false => {}
        }
    }

    fn console(&mut self) {
        let ports: Vec<String> = self.conf.get("comports").unwrap_or("com1").split_whitespace().map(str::to_owned).collect();
        if ports.first().is_some_and(|first| first != "com1") {
            let words = ports.join(" ");
            self.notes.add("comports", words, "the loader and `vmctl console` use com1 first");
        }
        for port in &ports {
            match port.as_str() {
                "com1" => {}
                "com2" | "com3" | "com4" => self.table("console")[port.as_str()] = value("console"),
                other => self.notes.add("comports", other, "not a serial port"),
            }
        }
    }

    fn life(&mut self) {
        let action = |text: &str| if text == "restart" { "restart" } else { "stop" };
        if let Some(text) = self.conf.get("on_restart").map(str::to_owned) {
            self.table("restart")["on_reboot"] = value(action(&text));
        }
        let fault = self.conf.get("on_fault").map(str::to_owned);
        self.table("restart")["on_crash"] = value(action(fault.as_deref().unwrap_or("shutdown")));
        if fault.is_none() {
            self.explain("restart", "on_crash", "vm-bhyve's default of `on_fault`");
        }
        if let Some((place, delay)) = self.source.autostart {
            let table = self.table("autostart");
            table["enabled"] = value(true);
            table["order"] = value(100 + 10 * i64::try_from(place).unwrap_or(0));
            if delay > 0 {
                table["delay"] = value(format!("{delay}s"));
                self.explain("autostart", "delay", "`vm_delay` of rc.conf, or vm-bhyve's default");
            }
            self.explain("autostart", "order", &format!("number {} of `vm_list` in rc.conf", place + 1));
        }
        if let Some(script) = self.conf.get("prestart") {
            let path = self.source.directory.join(script).display().to_string();
            let dataset = self.source.dataset.map(|dataset| format!("{dataset}/{}", self.source.name)).unwrap_or_default();
            let mut entry = Table::new();
            entry["event"] = value("pre-start");
            entry["command"] = array([path.as_str(), self.source.name, &dataset].into_iter().filter(|word| !word.is_empty()));
            self.push("hooks", entry);
        }
    }

    fn limits(&mut self) {
        if let Some(nice) = self.number("priority") {
            self.table("limits")["nice"] = value(nice.clamp(-20, 20));
        }
        for (old, new) in [("limit_pcpu", "cpu_percent"), ("limit_riops", "read_iops"), ("limit_wiops", "write_iops")] {
            if let Some(number) = self.number(old) {
                self.table("limits")[new] = value(number);
            }
        }
        for (old, new) in [("limit_rbps", "read_bps"), ("limit_wbps", "write_bps")] {
            let Some(text) = self.conf.get(old) else { continue };
            // rctl(8) uses bytes without a unit.
            let size = text.parse::<u64>().map(ByteSize::from_bytes).ok().or_else(|| text.parse().ok());
            match size {
                Some(size) => self.table("limits")[new] = value(size.to_string()),
                None => self.notes.add(old, text, "not a number of bytes"),
            }
        }
    }

    fn bhyve(&mut self) {
        let bridge = self.conf.get("hostbridge").unwrap_or("standard").to_owned();
        let fwcfg = self.conf.get("fwcfg").map(str::to_owned);
        let words = self.conf.get("bhyve_options").unwrap_or_default().to_owned();
        self.options(&words);
        let raw = std::mem::take(&mut self.raw);
        let slots = std::mem::take(&mut self.slots);
        let table = self.table("bhyve");
        // vm-bhyve always gives -w, whatever `ignore_bad_msr` says.
        table["ignore_bad_msr"] = value(true);
        match bridge.as_str() {
            "amd" => table["hostbridge"] = value("amd"),
            text if text.starts_with("no") => table["hostbridge"] = value("none"),
            _ => {}
        }
        if let Some(fwcfg) = fwcfg {
            table["fwcfg"] = value(fwcfg);
        }
        if !raw.is_empty() {
            table["args"] = array(raw.iter().map(String::as_str));
            self.explain("bhyve", "args", "of `bhyve_options`: what no key of a guest file stands for");
        }
        if !slots.is_empty() {
            let mut slots = slots;
            slots.decor_mut().set_prefix("\n# the PCI addresses that vm-bhyve gives: the guest sees no new hardware\n");
            self.table("bhyve")["slots"] = Item::Table(slots);
        }
        self.explain("bhyve", "ignore_bad_msr", "vm-bhyve always gives bhyve(8) `-w`");
    }

    /// Notes settings without a counterpart, and those that vm-bhyve does not have either.
    fn without_place(&mut self) {
        for (key, reason) in [
            ("debug", "what bhyve says is always kept: `vmctl logs --vmm`"),
            ("install_slot", "media are disks of the guest file here, with a `slot` of their own"),
            ("zfs_dataset_opts", "for datasets that are made; those that are there keep their properties"),
            ("zfs_zvol_opts", "for volumes that are made: `properties` of a disk"),
            ("nulliso_fix", "UEFI guests have no empty medium in their drive here"),
            ("ignore_bad_msr", "vm-bhyve never reads it and always ignores them; so does `bhyve.ignore_bad_msr` here"),
            ("ignore_msr", "vm-bhyve always ignores them; so does `bhyve.ignore_bad_msr` here"),
            ("linux_kernel", "of vm-bhyve before 1.0: write `grub.commands`"),
            ("guest_version", "of vm-bhyve before 1.0: write `grub.commands`"),
            ("arch", "of vm-bhyve before 1.0: write `grub.commands`"),
            ("nice", "of vm-bhyve before 1.2: `limits.nice`"),
            ("bhyveload_loader", "only with `loader = \"bhyveload\"`"),
            ("bhyveload_args", "only with `loader = \"bhyveload\"`"),
            ("uefi_vars", "only with UEFI"),
        ] {
            let asked = self.conf.unseen().iter().any(|(unseen, _)| unseen == key);
            if let (true, Some(text)) = (asked, self.conf.get(key)) {
                let reason = match (key, self.zvol_properties()) {
                    ("zfs_zvol_opts", true) => continue,
                    _ => reason,
                };
                self.notes.add(key, text, reason);
            }
        }
        // This was read above and has no counterpart in the guest file.
        self.conf.get("start_slot");
        self.conf.get("guest");
        for (key, text) in self.conf.unseen() {
            self.conf.get(&key);
            let reason = match key.starts_with("grub_") {
                true => "only with `loader = \"grub\"`",
                false => "not a setting that vm-bhyve knows",
            };
            self.notes.add(key, text, reason);
        }
    }

    /// Adds properties of volumes to the disks, in a template. Returns whether it did.
    fn zvol_properties(&mut self) -> bool {
        if !self.source.template {
            return false;
        }
        let pairs: Vec<(String, String)> = self
            .conf
            .get("zfs_zvol_opts")
            .unwrap_or_default()
            .split_whitespace()
            .filter_map(|word| word.split_once('=').map(|(name, text)| (name.to_owned(), text.to_owned())))
            .collect();
        let Some(disks) = self.toml.get_mut("disks").and_then(Item::as_array_of_tables_mut) else { return false };
        let mut any = false;
        for disk in disks.iter_mut().filter(|disk| disk.get("backend").and_then(Item::as_str) == Some("zvol")) {
            let mut table = toml_edit::InlineTable::new();
            table.extend(pairs.iter().map(|(name, text)| (name.as_str(), text.as_str())));
            disk["properties"] = value(table);
            any = true;
        }
        any
    }
}

/// Returns the lines of a file of commands.
fn commands_in(path: &Path) -> Option<Vec<String>> {
    const LIMIT: u64 = 64 << 10;
    Some(inputs::read_text(path, LIMIT).ok()?.lines().map(str::to_owned).collect())
}

#[cfg(test)]
mod tests;
