//! Reading a guest file, from its path to its configuration.

use std::path::{Path, PathBuf};

use super::check;
use super::diagnostic::{Diagnostic, Diagnostics, Location, Source};
use super::guest::GuestConfig;
use super::host::HostConfig;
use super::layer::{self, Table, Value};
use super::resolve::{self, Request, Resolved, Templates};
use super::validate::{GUEST_NAMES, is_guest_name};

/// Parameters for reading a guest file.
#[derive(Debug, Clone, Copy)]
pub struct GuestRequest<'a> {
    /// The guest file.
    pub file: &'a Path,
    /// Its text, if it differs from the file's contents, as in `edit`.
    pub text: Option<&'a str>,
    /// The guest's name, if it already has one: the name of its directory.
    pub name: Option<&'a str>,
    /// `KEY=VALUE` of `--set`, merged over the file. The last one wins.
    pub sets: &'a [String],
    /// The host file.
    pub host: &'a HostConfig,
    /// Directory of the datastore with the templates.
    pub datastore: &'a Path,
}

/// A guest file that was read and checked.
#[derive(Debug, Clone)]
pub struct LoadedGuest {
    /// Its configuration.
    pub config: GuestConfig,
    /// Its resolved keys, with the origin of each.
    pub resolved: Resolved,
}

impl LoadedGuest {
    /// Returns where a key is, like `kernel.image` or, with the id of an entry (or `#N`, its number from 0),
    /// `disks.root.path`: the nearest place that there is.
    pub fn location_of(&self, path: &str) -> Location {
        let (mut location, mut table) = (self.resolved.start.clone(), Some(&self.resolved.table));
        let mut parts = path.split('.');
        while let (Some(within), Some(part)) = (table, parts.next()) {
            let Some(node) = within.get(part) else { break };
            location = node.location.clone();
            table = match &node.value {
                Value::Table(inner) => Some(inner),
                Value::Array(items) => {
                    let id = parts.next();
                    let is_it = |table: &Table| matches!(table.get("id").map(|id| &id.value), Some(Value::Text(text)) if Some(text.as_str()) == id);
                    let is_at = |at: usize| id.and_then(|id| id.strip_prefix('#')?.parse().ok()) == Some(at);
                    let entry = items.iter().enumerate().find_map(|(at, item)| match &item.value {
                        Value::Table(table) if is_it(table) || is_at(at) => Some((item, table)),
                        _ => None,
                    });
                    location = entry.map_or(location, |(item, _)| item.location.clone());
                    entry.map(|(_, table)| table)
                }
                _ => None,
            };
        }
        location
    }

    /// Returns every file that was read: the guest file, then its templates and included files.
    pub fn files(&self) -> &[PathBuf] {
        &self.resolved.files
    }
}

/// Reads and checks a guest file. Relative paths in it, in a built-in template and in `--set` are relative to the guest
/// file.
pub fn load_guest(request: &GuestRequest<'_>) -> Result<LoadedGuest, Diagnostics> {
    let text = match request.text {
        Some(text) => text.to_owned(),
        None => layer::read(request.file)?,
    };
    let absolute = std::path::absolute(request.file).unwrap_or_else(|_| request.file.to_path_buf());
    let directory = absolute.parent().unwrap_or(Path::new("/")).to_path_buf();
    let mut resolved = resolve::resolve(Request {
        source: Source { label: request.file.display().to_string(), text, directory: Some(directory.clone()) },
        file: Some(request.file),
        name: request.name,
        sets: request.sets,
        defaults: request.host.defaults.as_ref(),
        templates: Templates { dirs: request.host.template_search(request.datastore), ..Templates::default() },
        default_engine: request.host.default_engine,
    })?;
    let config = check::check(&mut resolved, &directory)?;
    if request.name.is_none() && !is_guest_name(&config.name) {
        let message = format!("`{}` cannot be the name of a new guest", config.name);
        return Err(Diagnostic::plain(message).hint(GUEST_NAMES).into());
    }
    Ok(LoadedGuest { config, resolved })
}

/// Returns the configuration that a guest file with this text has, for tests. There are no templates, and no host file.
#[cfg(test)]
pub fn guest_of(text: &str) -> GuestConfig {
    use super::paths::HostPaths;
    let nowhere = || "/nonexistent".into();
    let paths = HostPaths { config_file: nowhere(), datastore: nowhere(), cache_dir: nowhere(), runtime_dir: nowhere() };
    let host = HostConfig::of(&paths, crate::choices::EngineKind::Embedded);
    let (file, datastore) = (Path::new("/nonexistent/g.toml"), Path::new("/nonexistent"));
    let request = GuestRequest { file, text: Some(text), name: Some("g"), sets: &[], host: &host, datastore };
    load_guest(&request).unwrap_or_else(|problems| panic!("{problems}")).config
}
