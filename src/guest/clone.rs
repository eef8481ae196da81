//! Clones: a guest with a file of its own, copies of the disks, and an identity of its own.
//!
//! The clone's file is the source's, whose comments and order stay. What two guests cannot share is another one in it: the
//! ports of the host that lead to it, and the host name that its seed of cloud-init tells. Paths that start elsewhere for
//! the clone are written whole; files in the source's own directory are copied with it.

use std::fs;
use std::path::{Component, Path, PathBuf};

use toml_edit::{DocumentMut, Item, TableLike, Value};

use crate::config::keys::GUEST_KEYS;
use crate::config::layer::MAX_FILE_BYTES;
use crate::config::paths::{in_home, is_path};
use crate::config::render::render_set;
use crate::config::{GuestConfig, GuestRequest, load_guest};
use crate::host::files::{clone_or_copy, mode_of, write_atomically};
use crate::inputs;

use super::create::{Origin, apply_set, check_name, finish};
use super::definition::{Definition, Surroundings};
use super::error::{GuestError, Result, told_of};
use super::events::EventKind;
use super::launch_file::free_port;
use super::provision::{Copying, copy_disks};
use super::state::GuestState;
use super::store::{GuestDir, NewGuest, Store};

/// Makes a guest with a copy of the file and of the disks of another, and an identity of its own. Both are stopped. Returns
/// notes for the user: the differences, and what the clone still shares with its source.
pub fn clone(store: &Store, source: &GuestDir, name: &str, how: Copying, surroundings: Surroundings<'_>) -> Result<Vec<String>> {
    check_name(name)?;
    let _lock = source.lock_stopped("clone")?;
    let host = surroundings.host_for(source);
    let surroundings = Surroundings { host: &host, ..surroundings };
    let definition = Definition::load(source, surroundings)?;
    if definition.config.uuid.is_some() || definition.config.nics.iter().any(|nic| nic.mac.is_some()) {
        return Err(GuestError::user(format!(
            "the file of `{}` sets `uuid` or `mac`, which the clone would share",
            source.name()
        ))
        .hint("remove them from the file, or make the other guest from a file of its own"));
    }
    let new = store.begin(name)?;
    let (hidden, shown) = (new.guest().path().to_owned(), new.destination().path().to_owned());
    fill(store, source, (new, name), how, &definition, surroundings).map_err(|error| told_of(error, &hidden, &shown))
}

fn fill(
    store: &Store,
    source: &GuestDir,
    (new, name): (NewGuest, &str),
    how: Copying,
    definition: &Definition,
    surroundings: Surroundings<'_>,
) -> Result<Vec<String>> {
    let file = CloneFile { source, config: &definition.config, name, surroundings };
    let (text, copied, mut notes) = file.write(&ports_in_use(store, surroundings))?;
    for relative in &copied {
        let (from, to) = (source.path().join(relative), new.guest().path().join(relative));
        let folder = to.parent().expect("it is below the guest's directory");
        fs::create_dir_all(folder).map_err(|error| GuestError::io("make", folder, error))?;
        clone_or_copy(&from, &to).map_err(|error| GuestError::io("copy", &from, error))?;
    }
    let target = new.guest().file();
    let mode = mode_of(&source.config_file());
    write_atomically(&target, text.as_bytes(), mode).map_err(|error| GuestError::io("write", &target, error))?;
    notes.extend(shared(&definition.config, &Definition::load(new.guest(), surroundings)?.config, source.name()));
    let origin = EventKind::Cloned { from: source.name().to_owned() };
    let own = Origin::File { path: source.config_file(), copy: true };
    let state = GuestState { default_user: source.state()?.default_user, ..GuestState::new(name) };
    finish(new, state, origin, &own, surroundings, |guest, _| copy_disks(source, &definition.config, guest, how))?;
    Ok(notes)
}

/// Returns the ports of the host that guests of the store are reached at, running or not. A guest whose file is broken
/// has none.
pub fn ports_in_use(store: &Store, surroundings: Surroundings<'_>) -> Vec<u16> {
    let guests = store.names().unwrap_or_default().into_iter().map(|name| store.directory_of(&name));
    let configs = guests.filter_map(|guest| Some(Definition::load(&guest, surroundings).ok()?.config));
    configs.flat_map(|config| host_ports(&config)).collect()
}

fn host_ports(config: &GuestConfig) -> Vec<u16> {
    config.nics.iter().flat_map(|nic| &nic.forwards).map(|forward| forward.host_port).collect()
}

/// Returns what a clone has in common with its source that only one of them can have at a time.
fn shared(source: &GuestConfig, clone: &GuestConfig, name: &str) -> Vec<String> {
    let mut notes = Vec::new();
    let (theirs, ours) = (host_ports(source), host_ports(clone));
    if let Some(port) = ours.iter().find(|port| theirs.contains(port)) {
        notes.push(format!("port {port} of the host leads to `{name}` too, whichever runs first: a template says it"));
    }
    if let (Some(theirs), Some(ours)) = (&source.cloud_init, &clone.cloud_init) {
        if !ours.addresses.is_empty() && ours.addresses == theirs.addresses {
            notes.push(format!("`cloud-init.addresses` are those of `{name}`"));
        }
        if ours.meta_data.is_some() && ours.meta_data == theirs.meta_data {
            notes
                .push(format!("`cloud-init.meta_data` names the instance id of `{name}`, so that the clone takes itself for it"));
        }
    }
    notes
}

/// The guest file of a clone.
struct CloneFile<'a> {
    source: &'a GuestDir,
    config: &'a GuestConfig,
    name: &'a str,
    surroundings: Surroundings<'a>,
}

impl CloneFile<'_> {
    /// Returns its text, the files of the source's directory that it names, and what is different in it.
    fn write(&self, taken: &[u16]) -> Result<(String, Vec<PathBuf>, Vec<String>)> {
        let file = self.source.config_file();
        let text = inputs::read_text(&file, MAX_FILE_BYTES as u64).map_err(|error| GuestError::input("read", &file, error))?;
        let own = fs::symlink_metadata(self.source.file()).is_ok_and(|metadata| metadata.is_file());
        let mut document = text.parse::<DocumentMut>().map_err(|error| GuestError::user(error.to_string()))?;
        let mut copied = Vec::new();
        if own {
            let directory = self.source.path();
            each_value(document.as_table_mut(), "", &mut |path, value| {
                let Some(relative) = inside(directory, path, value) else { return };
                if Path::new(value.as_str().unwrap_or_default()).is_absolute() {
                    replace(value, relative.to_string_lossy().as_ref());
                }
                copied.push(relative);
            });
        } else {
            let directory = file.parent().unwrap_or(Path::new("/")).to_owned();
            each_value(document.as_table_mut(), "", &mut |path, value| make_absolute(&directory, path, value));
            document = self.meaning_the_same(document, &file)?;
        }
        let notes = self.set_apart(&mut document, taken)?;
        Ok((document.to_string(), copied, notes))
    }

    /// Returns the document, when it means from the clone's directory what the file means where it is; else one that
    /// says all that the file means, without the templates and files that it builds on.
    fn meaning_the_same(&self, document: DocumentMut, file: &Path) -> Result<DocumentMut> {
        let elsewhere = self.surroundings.datastore.join(".clone").join("guest.toml");
        let as_clone = |file: &Path, text: Option<&str>| Definition::load_file(file, self.name, text, &[], self.surroundings);
        let there = as_clone(file, None)?;
        if as_clone(&elsewhere, Some(&document.to_string())).is_ok_and(|here| here.hash == there.hash) {
            return Ok(document);
        }
        let Surroundings { host, datastore, .. } = self.surroundings;
        let loaded = load_guest(&GuestRequest { file, text: None, name: Some(self.name), sets: &[], host, datastore })?;
        let text = render_set(&loaded.resolved, host.defaults.as_ref().map(|layer| &layer.source));
        text.parse::<DocumentMut>().map_err(|error| GuestError::host(format!("the file of the clone is not TOML: {error}")))
    }

    /// Gives the clone ports of the host and a host name of its own.
    fn set_apart(&self, document: &mut DocumentMut, taken: &[u16]) -> Result<Vec<String>> {
        let mut taken = taken.to_vec();
        let (mut notes, mut failed) = (Vec::new(), None);
        each_value(document.as_table_mut(), "", &mut |path, value| {
            let Some(port) = value.as_integer().filter(|_| path == "nics.forwards.host_port") else { return };
            match free_port(&taken) {
                Ok(free) => {
                    taken.push(free);
                    notes.push(format!("port {free} of the host leads to it where {port} leads to `{}`", self.source.name()));
                    replace(value, i64::from(free));
                }
                Err(error) => failed = Some(error),
            }
        });
        if let Some(error) = failed {
            return Err(error);
        }
        if document.contains_key("name") {
            document["name"] = toml_edit::value(self.name);
        }
        if let Some(told) = self.config.cloud_init.as_ref().filter(|told| told.hostname != self.source.name().to_lowercase()) {
            // Of a name with a domain, only the first part is the guest's own.
            let domain = told.hostname.split_once('.').map(|(_, domain)| format!(".{domain}")).unwrap_or_default();
            let host = self.name.replace('_', "-").to_lowercase() + &domain;
            apply_set(document.as_table_mut(), &format!("cloud-init.hostname={}", Value::from(host.as_str())))?;
            notes.push(format!("its host name is {host}"));
        }
        Ok(notes)
    }
}

/// Puts another value in the place of one; its spaces and comments stay.
fn replace(value: &mut Value, other: impl Into<Value>) {
    let decor = value.decor().clone();
    *value = other.into();
    *value.decor_mut() = decor;
}

/// Returns the path that a value is, when it is one of a file: not where something stands for the rest of it.
fn path_in<'a>(path: &str, value: &'a Value) -> Option<&'a str> {
    let text = value.as_str().filter(|text| !text.contains("{{") && !text.is_empty())?;
    GUEST_KEYS.find(path).is_some_and(|key| is_path(key, text)).then_some(text)
}

/// Of a value that names a file below `directory`: its path from there.
fn inside(directory: &Path, path: &str, value: &Value) -> Option<PathBuf> {
    let named = Path::new(path_in(path, value)?);
    let relative = if named.is_absolute() { named.strip_prefix(directory).ok()? } else { named };
    let plain = relative.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
    (plain && directory.join(relative).is_file()).then(|| relative.to_owned())
}

fn make_absolute(directory: &Path, path: &str, value: &mut Value) {
    let Some(text) = path_in(path, value) else { return };
    if !Path::new(text).is_absolute() && in_home(text).is_none() {
        let whole = directory.join(text).components().collect::<PathBuf>();
        replace(value, whole.to_string_lossy().as_ref());
    }
}

/// Calls `each` for every value of a document, with its path in the key table.
fn each_value(table: &mut dyn TableLike, prefix: &str, each: &mut dyn FnMut(&str, &mut Value)) {
    for (key, item) in table.iter_mut() {
        let path = if prefix.is_empty() { key.get().to_owned() } else { format!("{prefix}.{}", key.get()) };
        match item {
            Item::None => {}
            Item::Value(value) => each_in_value(value, &path, each),
            Item::Table(inner) => each_value(inner, &path, each),
            Item::ArrayOfTables(entries) => entries.iter_mut().for_each(|entry| each_value(entry, &path, each)),
        }
    }
}

fn each_in_value(value: &mut Value, path: &str, each: &mut dyn FnMut(&str, &mut Value)) {
    match value {
        Value::InlineTable(inner) => each_value(inner, path, each),
        Value::Array(items) => items.iter_mut().for_each(|item| each_in_value(item, path, each)),
        value => each(path, value),
    }
}
