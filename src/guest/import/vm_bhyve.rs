//! A datastore of vm-bhyve, read in place: its guests, its templates, its switches, and its settings in rc.conf(5).

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::config::diagnostic::Source as ConfigSource;
use crate::config::{GUESTS_DIR, GuestConfig, HostConfig, HostPaths, TEMPLATES_DIR};
use crate::fetch::Silent;
use crate::host::files::{disk_size, make_directory, mode_of, rewrite, write_atomically};
use crate::host::ifconfig;
use crate::host::rc::beside_vm_bhyve;
use crate::host::sysrc::RcConf;
use crate::host::zfs;

use super::super::create::{self, Origin};
use super::super::definition::{Definition, Surroundings};
use super::super::error::{GuestError, Result};
use super::super::named_files::{Missing, check_disk, own_path};
use super::super::store::Store;
use super::conf::Conf;
use super::switches::{self, ImportedSwitch};
use super::translate::{Source, translate};
use super::{Note, Notes};

/// vm-bhyve's directory for its own configuration, in the default datastore.
const CONFIG_DIR: &str = ".config";

/// The file in a guest's directory that holds the password of its screen.
const PASSWORD_FILE: &str = "vnc-password";

/// One thing to import.
#[derive(Debug, Clone, Serialize)]
pub struct Imported {
    /// `host`, `template` or `guest`.
    pub kind: &'static str,
    /// Its name.
    pub name: String,
    /// The file that it was read from.
    pub from: PathBuf,
    /// The imported text in TOML, or `None` if there is nothing to write.
    pub toml: Option<String>,
    /// What the import finds of it, or does with it.
    pub state: ImportState,
    /// The disks of a guest.
    pub disks: Vec<ImportedDisk>,
    /// Notes about settings that were not imported unchanged.
    pub notes: Vec<Note>,
    /// Reason why it cannot be imported.
    pub problem: Option<String>,
    #[serde(skip)]
    password: Option<String>,
    /// The old contents of the file that will be replaced.
    #[serde(skip)]
    before: String,
}

/// State of a thing to import.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ImportState {
    /// It will be written.
    New,
    /// An earlier import wrote it, and it is as it was written.
    TakenOver,
    /// An earlier import wrote it, and its file was changed since, here or in vm-bhyve.
    TakenOverAndChanged,
    /// Something else has its name.
    NameTaken,
    /// vm-bhyve runs the guest.
    Running,
    /// It cannot be imported.
    Wrong,
    /// There is nothing to write.
    Nothing,
}

impl ImportState {
    /// Returns it in words.
    pub fn words(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::TakenOver => "taken over already",
            Self::TakenOverAndChanged => "taken over already, changed since",
            Self::NameTaken => "the name is taken",
            Self::Running => "vm-bhyve runs it",
            Self::Wrong => "cannot be taken over",
            Self::Nothing => "nothing to add",
        }
    }
}

/// A disk of a guest to import.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ImportedDisk {
    /// Its id in the guest file.
    pub id: String,
    /// Path of its bytes.
    pub path: PathBuf,
    /// Its size in bytes, if this user can read it.
    pub bytes: Option<u64>,
}

/// A datastore of vm-bhyve.
#[derive(Debug, Clone, PartialEq, Eq)]
struct SourceDatastore {
    directory: PathBuf,
    dataset: Option<String>,
}

/// Parses a specification of vm-bhyve: a directory, or `zfs:` and a dataset.
fn datastore_of(spec: &str) -> Result<SourceDatastore> {
    if let Some(dataset) = spec.strip_prefix("zfs:") {
        let mountpoint = zfs::property(dataset, "mountpoint").map_err(|error| {
            GuestError::user(format!("cannot find vm-bhyve's dataset `{dataset}`: {error}")).hint("name its directory instead")
        })?;
        return Ok(SourceDatastore { directory: mountpoint.into(), dataset: Some(dataset.to_owned()) });
    }
    // The path is written to other files, so it must be absolute.
    let directory = std::path::absolute(spec).map_err(|error| GuestError::io("find", Path::new(spec), error))?;
    // vm-bhyve uses volumes only with `zfs:`, but a directory that is a dataset has them below it in any case.
    let dataset = zfs::is_there().then(|| zfs::dataset_mounted_at(&directory)).flatten();
    Ok(SourceDatastore { directory, dataset })
}

/// Returns everything that vm-bhyve has in `spec`, or in the datastore that rc.conf(5) names, compared with `store`.
/// Nothing is written.
pub fn read(
    spec: Option<&str>,
    host: &HostConfig,
    paths: &HostPaths,
    store: &Store,
    surroundings: Surroundings<'_>,
) -> Result<Vec<Imported>> {
    let rc = RcConf::of(Path::new("/"));
    let rc_value = |name: &str| rc.get(name).ok().flatten();
    let spec = match spec {
        Some(spec) => spec.to_owned(),
        None => rc_value("vm_dir").ok_or_else(|| {
            GuestError::user("rc.conf has no `vm_dir`").hint("name vm-bhyve's datastore: a directory, or `zfs:` and a dataset")
        })?,
    };
    let datastore = datastore_of(&spec)?;
    let config_dir = datastore.directory.join(CONFIG_DIR);
    if !config_dir.is_dir() {
        return Err(GuestError::user(format!("`{}` is no datastore of vm-bhyve", datastore.directory.display()))
            .hint(format!("it has a directory `{CONFIG_DIR}` and a directory for each guest")));
    }
    let system_file = config_dir.join("system.conf");
    let system = if system_file.exists() { Conf::read(&system_file)? } else { Conf::default() };
    let mut notes = Notes::default();
    let switches = switches::read(&system, &mut notes);
    let places = datastores(&system, datastore, &mut notes);
    let autostart = autostart(&rc_value("vm_list").unwrap_or_default(), rc_value("vm_delay").as_deref());
    settings_of_the_tool(&system, &mut notes);
    if let Some((words, hint)) = beside_vm_bhyve(&rc) {
        notes.add("vm_enable", rc_value("vm_enable").unwrap_or_default(), format!("{words}; {hint}"));
    }
    old_bridges(&switches, &mut notes);
    let host_before = fs::read_to_string(surroundings.host_file).unwrap_or_default();
    let (host_toml, new_host) = host_file(host, paths, surroundings.host_file, &switches, &mut notes)?;
    let mut found = vec![Imported {
        kind: "host",
        name: "switches".into(),
        from: system_file,
        state: if host_toml.is_some() { ImportState::New } else { ImportState::Nothing },
        toml: host_toml,
        disks: Vec::new(),
        notes: notes.0,
        problem: None,
        password: None,
        before: host_before,
    }];
    let surroundings = Surroundings { host: &new_host, ..surroundings };
    let context = Context { config_dir: &config_dir, switches: &switches, autostart: &autostart, store, surroundings };
    found.extend(context.templates(&places[0]));
    for datastore in &places {
        found.extend(context.guests(datastore)?);
    }
    let missing: Vec<&String> = autostart.keys().filter(|name| !found.iter().any(|item| item.name == **name)).collect();
    for name in missing {
        let note = Note { key: "vm_list".into(), value: name.clone(), reason: "vm-bhyve has no guest of this name".into() };
        found[0].notes.push(note);
    }
    Ok(found)
}

/// Returns the datastores of guests, the default one first.
fn datastores(system: &Conf, first: SourceDatastore, notes: &mut Notes) -> Vec<SourceDatastore> {
    let mut places = vec![first];
    for name in system.get("datastore_list").unwrap_or_default().split_whitespace() {
        let key = format!("path_{name}");
        let Some(spec) = system.get(&key) else { continue };
        if spec.starts_with("iso:") || spec.starts_with("img:") {
            notes.add(key, spec, "a list of media; name the files as disks where they are needed");
            continue;
        }
        match datastore_of(spec) {
            Ok(datastore) => places.push(datastore),
            Err(error) => notes.add(key, spec, error.chain()),
        }
    }
    places
}

/// Notes the bridges that vm-bhyve has made for its switches and that still exist: the new switches cannot get their
/// members and addresses.
fn old_bridges(switches: &[ImportedSwitch], notes: &mut Notes) {
    let interfaces = ifconfig::interfaces().unwrap_or_default();
    for switch in switches.iter().filter(|switch| matches!(switch.kind, "bridge" | "vxlan")) {
        let name = format!("vm-{}", switch.old);
        let Some(bridge) = interfaces.iter().find(|interface| interface.name == name) else { continue };
        let addresses = bridge.addresses.iter().map(ToString::to_string);
        let has: Vec<String> = addresses.chain(bridge.members.iter().cloned()).collect();
        let has = if has.is_empty() { "its name".to_owned() } else { has.join(", ") };
        let reason = format!(
            "vm-bhyve's bridge is still there and has {has}; when none of its guests runs, `vmctl switch create {id} \
             --take-over {name}` makes the switch `{id}` in its place",
            id = switch.id
        );
        notes.add("switch_list", name, reason);
    }
}

/// Returns the guests of `vm_list`, each with its position and the seconds before it is started: `vm_delay` between any
/// two.
fn autostart(list: &str, delay: Option<&str>) -> BTreeMap<String, (usize, u64)> {
    // This is the default in vm-bhyve's code, which its manual does not match.
    let delay = delay.and_then(|text| text.parse().ok()).unwrap_or(2);
    list.split_whitespace().enumerate().map(|(at, name)| (name.to_owned(), (at, if at == 0 { 0 } else { delay }))).collect()
}

/// Notes the settings of `vm set`.
fn settings_of_the_tool(system: &Conf, notes: &mut Notes) {
    for (key, reason) in [
        ("console", "vmctl keeps consoles itself; tmux is not needed"),
        ("compress", "for images of vm-bhyve"),
        ("decompress", "for images of vm-bhyve"),
        ("suspend", "a guest is suspended with a file of its own, not by a setting"),
    ] {
        if let Some(text) = system.get(key) {
            notes.add(key, text, reason);
        }
    }
    for (key, text) in system.unseen() {
        notes.add(key, text, "not a setting that vm-bhyve knows");
    }
}

/// Returns the text of the host file with vm-bhyve's switches, if it changes, and its configuration.
fn host_file(
    host: &HostConfig,
    paths: &HostPaths,
    file: &Path,
    switches: &[ImportedSwitch],
    notes: &mut Notes,
) -> Result<(Option<String>, HostConfig)> {
    let text = match fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(GuestError::io("read the host file", file, error)),
    };
    let new =
        switches::with_switches(&text, switches).map_err(|error| GuestError::user(format!("`{}`: {error}", file.display())))?;
    let Some(new) = new else { return Ok((None, host.clone())) };
    let source =
        ConfigSource { label: file.display().to_string(), text: new.clone(), directory: file.parent().map(Path::to_path_buf) };
    match HostConfig::parse(source, paths, host.default_engine) {
        Ok(config) => Ok((Some(new), config)),
        Err(problems) => {
            notes.add("switch_list", "", format!("not taken over, since the host file would be wrong: {problems}"));
            Ok((None, host.clone()))
        }
    }
}

struct Context<'a> {
    config_dir: &'a Path,
    switches: &'a [ImportedSwitch],
    autostart: &'a BTreeMap<String, (usize, u64)>,
    store: &'a Store,
    surroundings: Surroundings<'a>,
}

impl Context<'_> {
    fn templates(&self, datastore: &SourceDatastore) -> Vec<Imported> {
        let directory = datastore.directory.join(".templates");
        let mut files: Vec<PathBuf> = fs::read_dir(&directory)
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| path.extension().is_some_and(|ext| ext == "conf"))
            .collect();
        files.sort();
        files.into_iter().map(|file| self.one("template", &file, &directory, None)).collect()
    }

    fn guests(&self, datastore: &SourceDatastore) -> Result<Vec<Imported>> {
        let entries = fs::read_dir(&datastore.directory).map_err(|error| GuestError::io("read", &datastore.directory, error))?;
        let mut found: Vec<(String, PathBuf)> = entries
            .flatten()
            .filter_map(|entry| {
                let name = entry.file_name().into_string().ok()?;
                let file = entry.path().join(format!("{name}.conf"));
                file.is_file().then_some((name, file))
            })
            .collect();
        found.sort();
        let one = |(_, file): (String, PathBuf)| {
            let directory = file.parent().expect("a file in a directory").to_path_buf();
            self.one("guest", &file, &directory, datastore.dataset.as_deref())
        };
        Ok(found.into_iter().map(one).collect())
    }

    fn one(&self, kind: &'static str, file: &Path, directory: &Path, dataset: Option<&str>) -> Imported {
        let name = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let mut imported = Imported {
            kind,
            name: name.clone(),
            from: file.to_owned(),
            toml: None,
            state: ImportState::Wrong,
            disks: Vec::new(),
            notes: Vec::new(),
            problem: None,
            password: None,
            before: String::new(),
        };
        let conf = match Conf::read(file) {
            Ok(conf) => conf,
            Err(error) => return Imported { problem: Some(error.chain()), ..imported },
        };
        let source = Source {
            name: &name,
            directory,
            dataset,
            config_dir: self.config_dir,
            switches: self.switches,
            template: kind == "template",
            autostart: self.autostart.get(&name).copied(),
        };
        let translated = translate(&source, &conf);
        imported.notes = translated.notes.0;
        imported.password = translated.password;
        let mut toml = translated.toml;
        if imported.password.is_some() {
            let path = self.surroundings.datastore.join(GUESTS_DIR).join(&name).join(PASSWORD_FILE);
            toml["graphics"]["password_file"] = toml_edit::value(path.display().to_string());
        }
        let text = format!("{}{toml}", head(file, &imported.notes, kind == "template"));
        // A template's name is checked like the name of a guest, which will be made from it.
        let checked = Definition::load_file(&directory.join("guest.toml"), &name, Some(&text), &[], self.surroundings);
        imported.problem = match (&checked, create::check_name(&name)) {
            (Err(error), _) => Some(format!("its guest file would be wrong:\n{}", error.to_string().trim_end())),
            (_, Err(error)) => Some(error.to_string()),
            _ => None,
        };
        if let Ok(definition) = &checked
            && kind == "guest"
        {
            let (disks, problem) = disks_of(&definition.config);
            imported.disks = disks;
            imported.problem = imported.problem.or(problem);
        }
        imported.toml = Some(text);
        imported.state = self.state_of(&imported);
        imported
    }

    fn state_of(&self, imported: &Imported) -> ImportState {
        match there(imported, self.store) {
            Some(text) if imported.toml.as_ref() == Some(&text) => ImportState::TakenOver,
            Some(text) if text.lines().next() == Some(origin(&imported.from).as_str()) => ImportState::TakenOverAndChanged,
            Some(_) => ImportState::NameTaken,
            None if imported.problem.is_some() => ImportState::Wrong,
            None if imported.kind == "guest" && runs(imported) => ImportState::Running,
            None => ImportState::New,
        }
    }
}

/// Looks at the disks that a guest brings along. Returns them, and what is wrong with the first that cannot be used.
fn disks_of(config: &GuestConfig) -> (Vec<ImportedDisk>, Option<String>) {
    let mut problem = None;
    let mut disks = Vec::new();
    for disk in &config.disks {
        let Some(path) = own_path(disk) else { continue };
        let bytes = disk_size(path).ok().map(|(bytes, _)| bytes);
        disks.push(ImportedDisk { id: disk.id.clone(), path: path.to_owned(), bytes });
        problem = problem.or(check_disk(disk, Missing::Refused).err().map(|error| error.chain()));
    }
    (disks, problem)
}

/// Returns the first line of a file that was made from one of vm-bhyve's.
fn origin(file: &Path) -> String {
    format!("# From vm-bhyve's {}.", file.display())
}

fn head(file: &Path, notes: &[Note], template: bool) -> String {
    let mut text = origin(file) + "\n";
    if !template {
        text.push_str("# Every `slot` is where vm-bhyve has the device, so that the guest sees no new hardware.\n");
    }
    for note in notes {
        let reason = note.reason.replace('\n', " ");
        text.push_str(&format!("#   {}={}: {reason}\n", note.key, note.value.replace('\n', " ")));
    }
    text + "\n"
}

/// Returns whether vm-bhyve runs a guest now, as far as its lock tells.
fn runs(imported: &Imported) -> bool {
    imported.from.with_file_name("run.lock").exists()
}

/// Writes one of the things that were read, unless it is there already. Returns whether it was written.
pub fn write(imported: &Imported, store: &Store, surroundings: Surroundings<'_>) -> Result<bool> {
    if matches!(imported.state, ImportState::TakenOver | ImportState::TakenOverAndChanged | ImportState::Nothing) {
        return Ok(false);
    }
    if let Some(problem) = &imported.problem {
        return Err(
            GuestError::user(problem).hint(format!("correct `{}`, or write the guest file by hand", imported.from.display()))
        );
    }
    let Some(toml) = &imported.toml else { return Ok(false) };
    let put = |path: &Path, text: &str, mode: u32| {
        if let Some(parent) = path.parent() {
            make_directory(parent, 0o755).map_err(|error| GuestError::io("make", parent, error))?;
        }
        write_atomically(path, text.as_bytes(), mode).map_err(|error| GuestError::io("write", path, error))
    };
    match imported.kind {
        "host" => {
            let _turn = store.file_turn(surroundings.host_file)?;
            // The text was made from the contents of the file at the time when it was read.
            if fs::read_to_string(surroundings.host_file).unwrap_or_default() != imported.before {
                return Err(GuestError::user(format!(
                    "`{}` was changed meanwhile by someone else",
                    surroundings.host_file.display()
                ))
                .hint("run the import again"));
            }
            match surroundings.host_file.exists() {
                true => rewrite(surroundings.host_file, toml.as_bytes())
                    .map_err(|error| GuestError::io("write", surroundings.host_file, error)),
                false => put(surroundings.host_file, toml, 0o644),
            }
        }
        "template" => {
            let path = store.root().join(TEMPLATES_DIR).join(format!("{}.toml", imported.name));
            let _turn = store.file_turn(&path)?;
            if path.exists() {
                return Err(GuestError::user(format!("a template called `{}` exists already, and differs", imported.name))
                    .hint(format!("it is kept; `{}` is what it would be made from", imported.from.display())));
            }
            put(&path, toml, 0o644)
        }
        _ => guest(imported, toml, store, surroundings),
    }?;
    Ok(true)
}

/// Returns the result of an earlier import of a guest or a template.
fn there(imported: &Imported, store: &Store) -> Option<String> {
    let path = match imported.kind {
        "guest" => store.guest(&imported.name).ok()?.file(),
        "template" => store.root().join(TEMPLATES_DIR).join(format!("{}.toml", imported.name)),
        _ => return None,
    };
    fs::read_to_string(path).ok()
}

fn guest(imported: &Imported, toml: &str, store: &Store, surroundings: Surroundings<'_>) -> Result<()> {
    if runs(imported) {
        return Err(GuestError::user(format!("vm-bhyve runs `{}`", imported.name))
            .hint(format!("stop it first with `vm stop {}`, so that its disks are not used twice", imported.name)));
    }
    let password = imported.password.iter().map(|password| (PASSWORD_FILE, format!("{password}\n")));
    let origin = Origin::Text { text: toml.to_owned(), mode: mode_of(&imported.from), beside: password.collect() };
    create::create(store, &imported.name, &origin, &[], surroundings, &Silent).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guests_of_the_list_start_in_its_order_with_a_delay_between_them() {
        let all = autostart("db web  mail", Some("7"));
        assert_eq!(all["db"], (0, 0));
        assert_eq!(all["web"], (1, 7));
        assert_eq!(all["mail"], (2, 7));
        assert_eq!(autostart("a b", None)["b"], (1, 2));
    }
}
