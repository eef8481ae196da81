//! Guests are made: from a file, from a template, from an image. Half-made ones leave no trace.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use toml_edit::{Array, ArrayOfTables, DocumentMut, InlineTable, Item, Table, TableLike, Value};

use crate::config::key::Kind;
use crate::config::keys::GUEST_KEYS;
use crate::config::layer::MAX_FILE_BYTES;
use crate::config::{GuestConfig, GuestRequest, HookEvent, load_guest, paths};
use crate::fetch::Progress;
use crate::host::files::{clone_or_copy, mode_of, write_atomically};
use crate::inputs;

use super::definition::{Definition, Surroundings};
use super::disk_record::DiskRecord;
use super::engine;
use super::error::{GuestError, Result, told_of};
use super::events::{self, EventKind};
use super::fleet::membership::Membership;
use super::images::{Images, KnownImages};
use super::pending;
use super::preflight::{Moment, Preflight};
use super::provision::{Made, is_own, refuse_found, remove_volumes};
use super::seed;
use super::state::GuestState;
use super::store::{GuestDir, NewGuest, Store};
use super::supervisor::hooks::{HOOK_VERSION, HookDocument, run_hooks};

/// The source of a new guest.
#[derive(Debug, Clone)]
pub enum Origin {
    /// A guest file, which stays at its path, or is copied into the datastore.
    File {
        /// Its path.
        path: PathBuf,
        /// Whether to copy it.
        copy: bool,
    },
    /// A template.
    Template(String),
    /// A guest of a fleet.
    Fleet {
        /// Its guest file's text.
        text: String,
        /// The fleet's name.
        fleet: String,
        /// The fleet file.
        file: PathBuf,
    },
    /// The text of a guest file that is in no file yet.
    Text {
        /// The guest file.
        text: String,
        /// Mode of the file.
        mode: u32,
        /// Private files beside it: names and texts.
        beside: Vec<(&'static str, String)>,
    },
    /// An image: the text of a guest file, and the image's files.
    Image {
        /// The guest file.
        text: String,
        /// Files to copy to `boot/` in the guest's directory, with their names there.
        boot: Vec<(PathBuf, &'static str)>,
        /// User to log in as.
        user: Option<String>,
    },
}

/// Makes a guest. Each of `sets` is `KEY=VALUE` and is written into the guest's file.
pub fn create(
    store: &Store,
    name: &str,
    origin: &Origin,
    sets: &[String],
    surroundings: Surroundings<'_>,
    progress: &dyn Progress,
) -> Result<GuestDir> {
    check_name(name)?;
    let new = store.begin(name)?;
    let (hidden, shown) = (new.guest().path().to_owned(), new.destination().path().to_owned());
    let made = (|| {
        write_file(store, &new, name, origin, sets, surroundings)?;
        let mut state = GuestState::new(name);
        if let Origin::Image { user, .. } = origin {
            state.default_user.clone_from(user);
        }
        create_from(new, state, origin, surroundings, progress)
    })();
    made.map_err(|error| told_of(error, &hidden, &shown))
}

fn create_from(
    new: NewGuest,
    state: GuestState,
    origin: &Origin,
    surroundings: Surroundings<'_>,
    progress: &dyn Progress,
) -> Result<GuestDir> {
    finish(new, state, EventKind::Created, origin, surroundings, |guest, definition| {
        refuse_found(guest, &definition.config)?;
        Images { host: surroundings.host, progress }.make_all_disks(guest, &definition.config)
    })
}

/// Completes a new guest once its file exists: a check, disks, a state, a name.
pub(super) fn finish(
    new: NewGuest,
    mut state: GuestState,
    event: EventKind,
    origin: &Origin,
    surroundings: Surroundings<'_>,
    make_disks: impl FnOnce(&GuestDir, &Definition) -> Result<Made>,
) -> Result<GuestDir> {
    let name = new.destination().name().to_owned();
    let definition = Definition::load(new.guest(), surroundings)?;
    state.engine = Some(definition.default_engine);
    state.assign(&definition.config)?;
    let linked = match (&event, origin) {
        (EventKind::Created, Origin::File { path, copy: false }) => fs::canonicalize(path).ok(),
        _ => None,
    };
    super::trust::check_new(new.guest(), &definition, surroundings.host_file, linked.as_deref())?;
    seed::ensure(new.guest(), &definition.config, &state)?;
    let made = make_disks(new.guest(), &definition)?;
    let own = definition.config.disks.iter().filter(|disk| is_own(disk)).map(|disk| disk.id.as_str());
    let noted = DiskRecord::add(new.guest(), &definition.config, own);
    events::record(&new.guest().events_log(), &name, event);
    // A guest of a fleet is recorded as such first, so that a later apply finds it whatever happens to this one.
    let recorded = match origin {
        Origin::Fleet { text, fleet, file } => Membership::now(fleet, file.clone(), text, &state).save(new.guest()),
        _ => Ok(()),
    };
    if let Err(error) = noted.and(recorded).and_then(|()| state.save(&new.guest().state_file())) {
        return Err(made.undo(error));
    }
    let (guest, _lock) = match new.commit() {
        Ok(committed) => committed,
        Err(error) => return Err(made.undo(error)),
    };
    // Only now does the file have the path at which `list` will find it.
    if let Ok(definition) = Definition::load(&guest, surroundings) {
        state.summary = Some(definition.summary(surroundings.host_file));
        let _ = state.save(&guest.state_file());
    }
    run_event_hooks(&guest, &definition.config, &state, HookEvent::PostCreate).map_err(|error| {
        GuestError::user(format!("`{name}` is made, but {}", error.chain()))
            .hint(format!("`vmctl events {name}` shows the hook's output; `vmctl destroy {name}` removes the guest"))
    })?;
    Ok(guest)
}

/// Runs the hooks of an event outside a supervisor; the outcomes go to the event log.
fn run_event_hooks(guest: &GuestDir, config: &GuestConfig, state: &GuestState, event: HookEvent) -> Result<()> {
    if config.hooks.iter().any(|hook| hook.event == event) {
        super::trust::check_programs(guest, config)?;
    }
    let document = HookDocument {
        version: HOOK_VERSION,
        event: event.as_str(),
        guest: guest.name().to_owned(),
        uuid: state.uuid_for(config).to_owned(),
        directory: guest.path().to_owned(),
        boot: state.boots,
        reason: String::new(),
    };
    for outcome in run_hooks(&config.hooks, event, &document) {
        let words = outcome.error.clone().unwrap_or_else(|| "ok".into());
        events::record(&guest.events_log(), guest.name(), EventKind::Hook { hook: outcome.hook.clone(), outcome: words.clone() });
        if outcome.fatal {
            return Err(GuestError::user(format!("hook `{}` failed: {words}", outcome.hook)));
        }
    }
    Ok(())
}

/// Removes a stopped guest, its disks in the datastore and its volumes. A guest whose file is broken is removed too.
pub fn destroy(store: &Store, guest: &GuestDir, surroundings: Surroundings<'_>) -> Result<()> {
    let turn = pending::turn(guest, surroundings)?;
    let lock = guest.lock_stopped("destroy")?;
    let state = guest.state()?;
    match Definition::load(guest, surroundings) {
        Ok(definition) if definition.config.protected => {
            return Err(GuestError::user(format!("`{}` is protected", guest.name()))
                .hint(format!("set `protected = false` first: `vmctl edit {}`", guest.name())));
        }
        Ok(definition) => {
            run_event_hooks(guest, &definition.config, &state, HookEvent::PreDestroy)?;
            remove_volumes(guest, &definition.config)?;
        }
        // The file cannot be read any more, so the last known summary decides.
        Err(_) if state.summary.as_ref().is_some_and(|summary| summary.protected) => {
            return Err(GuestError::user(format!("`{}` is protected, and its file cannot be read", guest.name()))
                .hint(format!("`vmctl check {}` says what is wrong with it", guest.name())));
        }
        Err(_) => {}
    }
    engine::sweep(guest)?;
    store.remove(guest)?;
    drop((lock, turn));
    Ok(())
}

/// Renames a stopped guest. ZFS volumes have the old name and prevent it.
pub fn rename(store: &Store, guest: &GuestDir, name: &str, surroundings: Surroundings<'_>) -> Result<GuestDir> {
    check_name(name)?;
    let _turn = pending::turn(guest, surroundings)?;
    let _lock = guest.lock_stopped("rename")?;
    if let Ok(definition) = Definition::load(guest, surroundings) {
        let volumes = |disk: &&crate::config::DiskConfig| disk.backend == crate::config::DiskBackend::Zvol && disk.path.is_none();
        if let Some(disk) = definition.config.disks.iter().find(volumes) {
            return Err(GuestError::user(format!("disk `{}` is a ZFS volume that carries the guest's name", disk.id))
                .hint("clone the guest to the new name, then destroy the old one"));
        }
    }
    // No fleet file has the new name, and a prune must not remove the guest: its record says for which name it is
    // valid.
    if let Ok(Some(record)) = Membership::load(guest) {
        record.save(guest)?;
    }
    let renamed = store.rename(guest, name)?;
    // The rename is complete. The rest is made up for later if it is missing, so it must not fail on a full disk.
    let _ = Membership::remove(&renamed);
    if let Ok(mut state) = renamed.state() {
        state.summary =
            Definition::load(&renamed, surroundings).ok().map(|definition| definition.summary(surroundings.host_file));
        let _ = state.save(&renamed.state_file());
    }
    Ok(renamed)
}

/// Checks whether a guest may have this name.
pub fn check_name(name: &str) -> Result<()> {
    match crate::config::validate::is_guest_name(name) {
        true => Ok(()),
        false => Err(GuestError::user(format!("`{name}` is not a name for a guest")).hint(crate::config::validate::GUEST_NAMES)),
    }
}

/// Refuses a guest whose engine this host has not, before anything is made of it.
pub fn check_engine(name: &str, origin: &Origin, sets: &[String], surroundings: Surroundings<'_>) -> Result<()> {
    let nowhere = surroundings.datastore.join(".launch").join("guest.toml");
    let config = match origin {
        Origin::File { path, .. } => Definition::load_file(path, name, None, sets, surroundings)?.config,
        Origin::Template(template) => {
            let text = format!("template = {}\n", Value::from(template.as_str()));
            Definition::load_file(&nowhere, name, Some(&text), &absolute_sets(sets), surroundings)?.config
        }
        Origin::Fleet { .. } | Origin::Text { .. } | Origin::Image { .. } => return Ok(()),
    };
    super::engine::of(config.engine).map(drop)
}

/// Returns what a file means as that of a new guest, once this host knows nothing against it.
fn look_at(
    store: &Store,
    name: &str,
    file: &Path,
    text: Option<&str>,
    sets: &[String],
    surroundings: Surroundings<'_>,
) -> Result<Definition> {
    let request = GuestRequest { file, text, name: Some(name), sets, host: surroundings.host, datastore: surroundings.datastore };
    let images = KnownImages::new(surroundings.host);
    Preflight { store, surroundings, images: &images, guest: None }.check(&load_guest(&request)?, Moment::Making)?;
    Definition::load_file(file, name, text, sets, surroundings)
}

fn write_file(
    store: &Store,
    new: &NewGuest,
    name: &str,
    origin: &Origin,
    sets: &[String],
    surroundings: Surroundings<'_>,
) -> Result<()> {
    let target = new.guest().file();
    match origin {
        Origin::File { path, copy } => {
            let path = fs::canonicalize(path).map_err(|error| GuestError::io("read the guest file", path, error))?;
            let meant = look_at(store, name, &path, None, sets, surroundings)?;
            match (copy, sets.is_empty()) {
                (false, true) => symlink(&path, &target).map_err(|error| GuestError::io("link", &target, error)),
                (false, false) => {
                    let path = path.to_str().ok_or_else(|| GuestError::user(format!("`{}` is not UTF-8", path.display())))?;
                    let mut document = DocumentMut::new();
                    document["include"] = Item::Value(Value::Array(Array::from_iter([path])));
                    write_document(&target, document, sets, own_mode(Path::new(path)))
                }
                (true, _) => copy_file(&path, &target, name, sets, &meant, surroundings),
            }
        }
        Origin::Image { text, boot, .. } => {
            // A mistake of `--set` is shown where the user made it.
            look_at(store, name, &new.destination().file(), Some(text), &absolute_sets(sets), surroundings)?;
            let folder = new.guest().path().join("boot");
            for (from, to) in boot {
                fs::create_dir_all(&folder).map_err(|error| GuestError::io("make", &folder, error))?;
                clone_or_copy(from, &folder.join(to)).map_err(|error| GuestError::io("copy", from, error))?;
            }
            let document = text.parse::<DocumentMut>().expect("made by this program");
            write_document(&target, document, sets, 0o644)
        }
        Origin::Template(template) => {
            let mut document = DocumentMut::new();
            document["template"] = toml_edit::value(template.as_str());
            // Checked with the sets applied, so that a mistake is reported for the user's own file.
            let shown = new.destination().file();
            look_at(store, name, &shown, Some(&document.to_string()), &absolute_sets(sets), surroundings)?;
            write_document(&target, document, sets, 0o644)
        }
        Origin::Fleet { text, file, .. } => {
            write_atomically(&target, text.as_bytes(), own_mode(file)).map_err(|error| GuestError::io("write", &target, error))
        }
        Origin::Text { text, mode, beside } => {
            for (name, text) in beside {
                let path = new.guest().path().join(name);
                write_atomically(&path, text.as_bytes(), 0o600).map_err(|error| GuestError::io("write", &path, error))?;
            }
            write_atomically(&target, text.as_bytes(), *mode).map_err(|error| GuestError::io("write", &target, error))
        }
    }
}

/// The mode of a file, for one of our own: whoever may read that may read this, and nobody else writes.
fn own_mode(path: &Path) -> u32 {
    mode_of(path) & !0o022
}

fn copy_file(
    from: &Path,
    to: &Path,
    name: &str,
    sets: &[String],
    meant: &Definition,
    surroundings: Surroundings<'_>,
) -> Result<()> {
    let text = inputs::read_text(from, MAX_FILE_BYTES as u64).map_err(|error| GuestError::input("read", from, error))?;
    let document = text.parse::<DocumentMut>().map_err(|error| GuestError::user(error.to_string()))?;
    write_document(to, document, sets, own_mode(from))?;
    match Definition::load_file(to, name, None, &[], surroundings) {
        Ok(copied) if copied.hash == meant.hash => Ok(()),
        _ => Err(GuestError::user(format!("`{}` names files relative to itself, a copy would mean others", from.display()))
            .hint("leave out `--copy`, or write absolute paths")),
    }
}

fn write_document(target: &Path, mut document: DocumentMut, sets: &[String], mode: u32) -> Result<()> {
    for set in absolute_sets(sets) {
        apply_set(document.as_table_mut(), &set)?;
    }
    write_atomically(target, document.to_string().as_bytes(), mode).map_err(|error| GuestError::io("write", target, error))
}

/// Returns the sets with absolute paths, since on a command line they are relative to the current directory.
pub(super) fn absolute_sets(sets: &[String]) -> Vec<String> {
    let Ok(here) = std::env::current_dir() else { return sets.to_vec() };
    let absolute = |set: &String| -> Option<String> {
        let (key, value) = set.split_once('=')?;
        let schema: Vec<&str> = schema_path(key).into_iter().map(|(part, _)| part).collect();
        let kind = GUEST_KEYS.find(&schema.join("."))?;
        let whole = |text: &str| {
            let relative = paths::is_path(kind, text) && !text.contains("{{") && !text.starts_with('/');
            relative.then(|| Value::from(paths::absolute(&here, text).to_string_lossy().as_ref()))
        };
        let value = value.trim();
        let written = match value.parse::<Value>() {
            Ok(Value::Array(mut items)) => {
                for item in items.iter_mut() {
                    if let Some(path) = item.as_str().and_then(whole) {
                        *item = path;
                    }
                }
                Value::Array(items)
            }
            _ => whole(value.trim_matches('"'))?,
        };
        Some(format!("{key}={written}"))
    };
    sets.iter().map(|set| absolute(set).unwrap_or_else(|| set.clone())).collect()
}

/// Splits the path of `--set` into parts, each with the id after it if it names an array of tables.
fn schema_path(path: &str) -> Vec<(&str, Option<&str>)> {
    let mut parts = path.trim().split('.').peekable();
    let mut row: Vec<(&str, Option<&str>)> = Vec::new();
    while let Some(part) = parts.next() {
        let so_far: Vec<&str> = row.iter().map(|(part, _)| *part).chain([part]).collect();
        let entries = GUEST_KEYS.find(&so_far.join(".")).is_some_and(|key| matches!(key.kind, Kind::Entries));
        let id = if entries { parts.next() } else { None };
        row.push((part, id));
    }
    row
}

/// Writes one `KEY=VALUE` into a guest file. An entry of an array is found by its id, or added. A short form in braces
/// stays short.
pub(super) fn apply_set(root: &mut Table, set: &str) -> Result<()> {
    let (path, text) = set.split_once('=').ok_or_else(|| GuestError::user(format!("`{set}` has no `=`")))?;
    let mut value = text.trim().parse::<Value>().unwrap_or_else(|_| Value::from(text));
    let row = schema_path(path);
    let Some(((leaf, None), tables)) = row.split_last() else {
        return Err(
            GuestError::user(format!("`{path}` names a whole entry")).hint(format!("name a key in it, like `{path}.size`"))
        );
    };
    let mut table: &mut dyn TableLike = root;
    let mut short = false;
    for (part, id) in tables {
        let item = table.entry(part).or_insert_with(|| match (id, short) {
            (Some(_), false) => Item::ArrayOfTables(ArrayOfTables::new()),
            (None, false) => Item::Table(Table::new()),
            (Some(_), true) => Item::Value(Value::Array(Array::new())),
            (None, true) => Item::Value(Value::InlineTable(InlineTable::new())),
        });
        short |= item.is_value();
        let inner = match id {
            Some(id) => entry(item, id),
            None => item.as_table_like_mut(),
        };
        table = inner.ok_or_else(|| {
            GuestError::user(format!("`{part}` is not written as a table that `{path}` could be set in"))
                .hint("write it as a table in the guest file")
        })?;
    }
    if let Some(before) = table.get(leaf).and_then(Item::as_value) {
        *value.decor_mut() = before.decor().clone();
    }
    table.insert(leaf, Item::Value(value));
    Ok(())
}

/// Returns the entry of this id, which is added if there is none. Returns `None` if `item` is not an array of tables.
fn entry<'a>(item: &'a mut Item, id: &str) -> Option<&'a mut dyn TableLike> {
    let is_it = |entry: &dyn TableLike| entry.get("id").and_then(Item::as_str) == Some(id);
    match item {
        Item::ArrayOfTables(entries) => {
            let found = entries.iter().position(|entry| is_it(entry));
            let at = found.unwrap_or_else(|| {
                let mut entry = Table::new();
                entry["id"] = toml_edit::value(id);
                entries.push(entry);
                entries.len() - 1
            });
            entries.get_mut(at).map(|entry| entry as &mut dyn TableLike)
        }
        Item::Value(Value::Array(entries)) => {
            let found = entries.iter().position(|entry| entry.as_inline_table().is_some_and(|entry| is_it(entry)));
            let at = found.unwrap_or_else(|| {
                entries.push(InlineTable::from_iter([("id", id)]));
                entries.len() - 1
            });
            entries.get_mut(at)?.as_inline_table_mut().map(|entry| entry as &mut dyn TableLike)
        }
        _ => None,
    }
}

/// Drops an entry of an array of tables: removes the file's own, or excludes a template's.
pub(super) fn drop_entry(root: &mut Table, class: &str, id: &str) {
    let is_it = |text: Option<&str>| text == Some(id);
    let found = match root.get_mut(class) {
        Some(Item::ArrayOfTables(entries)) => {
            let before = entries.len();
            entries.retain(|entry| !is_it(entry.get("id").and_then(Item::as_str)));
            entries.len() < before
        }
        Some(Item::Value(Value::Array(entries))) => {
            let before = entries.len();
            entries.retain(|entry| !is_it(entry.as_inline_table().and_then(|table| table.get("id")).and_then(Value::as_str)));
            entries.len() < before
        }
        _ => false,
    };
    let empty = match root.get(class) {
        Some(Item::ArrayOfTables(entries)) => entries.is_empty(),
        Some(Item::Value(Value::Array(entries))) => entries.is_empty(),
        _ => false,
    };
    if found && empty {
        root.remove(class);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(text: &str, sets: &[&str]) -> String {
        let mut document: DocumentMut = text.parse().expect("TOML");
        for set in sets {
            apply_set(document.as_table_mut(), set).expect("applies");
        }
        document.to_string()
    }

    #[test]
    fn a_set_goes_where_the_key_stands_and_an_entry_is_found_by_its_id() {
        let text = "[[disks]]\nid = \"root\" # kept\nsize = \"1G\"\n";
        let after = set(text, &["disks.root.size=20G", "memory=2G", "kernel.image=/boot/vmlinuz", "cpus=4"]);
        assert!(after.contains("id = \"root\" # kept\nsize = \"20G\""), "{after}");
        assert!(after.contains("memory = \"2G\""), "{after}");
        assert!(after.contains("[kernel]\nimage = \"/boot/vmlinuz\""), "{after}");
        assert!(after.contains("cpus = 4"), "{after}");
    }

    #[test]
    fn an_entry_that_is_not_there_is_added_also_in_an_entry() {
        let after = set("", &["disks.data.size=1G", "nics.net0.forwards.ssh.host_port=2222"]);
        let parsed: toml_edit::DocumentMut = after.parse().expect("TOML");
        assert_eq!(parsed["disks"][0]["id"].as_str(), Some("data"));
        assert_eq!(parsed["nics"][0]["forwards"][0]["host_port"].as_integer(), Some(2222));
    }

    #[test]
    fn what_is_written_in_braces_stays_so_and_comments_stay() {
        let text = "disks = [{ id = \"root\", size = \"1G\" }]\nmemory = \"1G\" # enough\n";
        let after = set(text, &["disks.root.size=2G", "disks.data.size=3G", "memory=2G", "nics.a.forwards.ssh.host_port=1"]);
        assert!(after.contains("disks = [{ id = \"root\", size = \"2G\" }, { id = \"data\", size = \"3G\" }]"), "{after}");
        assert!(after.contains("memory = \"2G\" # enough"), "{after}");
        let deep = set("nics = [{ id = \"a\" }]", &["nics.a.forwards.ssh.host_port=1"]);
        let parsed: DocumentMut = deep.parse().expect("TOML");
        assert_eq!(parsed["nics"][0]["forwards"][0]["host_port"].as_integer(), Some(1), "{deep}");
    }

    #[test]
    fn an_entry_is_dropped_however_it_is_written() {
        for text in ["[[disks]]\nid = \"a\"\n\n[[disks]]\nid = \"b\"\n", "disks = [{ id = \"a\" }, { id = \"b\" }]\n"] {
            let mut document: DocumentMut = text.parse().expect("TOML");
            drop_entry(document.as_table_mut(), "disks", "a");
            let after = document.to_string();
            assert!(!after.contains("\"a\"") && after.contains("\"b\""), "{after}");
            drop_entry(document.as_table_mut(), "disks", "b");
            assert_eq!(document.to_string().trim(), "");
        }
    }

    #[test]
    fn paths_of_the_command_line_are_relative_to_where_it_is_typed() {
        let here = std::env::current_dir().expect("somewhere");
        let sets = absolute_sets(&["kernel.image=vmlinuz".into(), "disks.root.path=/a".into(), "memory=1G".into()]);
        assert_eq!(
            sets,
            [format!("kernel.image=\"{}\"", here.join("vmlinuz").display()), "disks.root.path=/a".into(), "memory=1G".into()]
        );
    }

    #[test]
    fn names_that_lead_elsewhere_are_no_names() {
        for name in ["", "..", "a/b", "-a", "A", "a ", "x.toml", &"a".repeat(64)] {
            assert!(check_name(name).is_err(), "{name}");
        }
        assert!(check_name("web-1.example").is_ok());
    }
}
