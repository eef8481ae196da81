//! The host file, `vmctl.toml`: datastores, defaults, template directories, catalogues.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;

use super::diagnostic::{Diagnostic, Diagnostics, Location, Source};
use super::host_keys::HOST_KEYS;
use super::key::KeyTable;
use super::keys::GUEST_KEYS;
use super::layer::{self, Layer, Spanned, Table, Value};
use super::paths::{HostPaths, TEMPLATES_DIR};
use super::resolve::engine_of;
use super::switch::{self, SwitchConfig};
use super::table_reader::TableReader;
use super::uids::UidRange;
use super::validate;
use crate::choices::EngineKind;

/// Configuration of the host file.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct HostConfig {
    /// Name of the host in fleet files.
    pub name: String,
    /// Labels by which fleet files select it.
    pub labels: Vec<String>,
    /// Datastores, at least one. The first is the default unless `default_datastore` names another.
    pub datastores: Vec<DatastoreConfig>,
    /// Id of the default one.
    pub default_datastore: String,
    /// Directories searched for templates, before the datastore's own and the built-in ones.
    pub template_dirs: Vec<PathBuf>,
    /// Directory of downloads.
    pub cache_dir: PathBuf,
    /// Catalogues in which `launch` finds images.
    pub catalogues: Vec<CatalogueConfig>,
    /// Maximum number of guests that autostart starts at the same time.
    pub autostart_parallel: u32,
    /// The users that root's engines go on as.
    pub engine_uids: UidRange,
    /// Switches for guests' interfaces.
    pub switches: Vec<SwitchConfig>,
    /// Default engine, for a guest whose file and templates name none. It depends on this host's features.
    pub default_engine: EngineKind,
    /// The `[defaults]` table, if there is one, which is below every guest file.
    #[serde(skip)]
    pub defaults: Option<Layer>,
}

/// A datastore, in which guests live.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DatastoreConfig {
    /// Its name.
    pub id: String,
    /// Its directory, absolute.
    pub path: PathBuf,
}

/// One catalogue of images.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CatalogueConfig {
    /// Its name.
    pub id: String,
    /// An https URL, or an absolute path.
    pub url: String,
}

impl HostConfig {
    /// Returns the defaults without a host file, on a host with `engine` as the default engine.
    pub fn of(paths: &HostPaths, engine: EngineKind) -> Self {
        Self {
            name: nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default(),
            labels: Vec::new(),
            datastores: vec![DatastoreConfig { id: "default".into(), path: paths.datastore.clone() }],
            default_datastore: "default".into(),
            template_dirs: Vec::new(),
            cache_dir: paths.cache_dir.clone(),
            catalogues: Vec::new(),
            autostart_parallel: 2,
            engine_uids: UidRange::default(),
            switches: Vec::new(),
            default_engine: engine,
            defaults: None,
        }
    }

    /// Reads `file`, or the user's own host file, or the defaults if there is none.
    pub fn load(file: Option<&Path>, paths: &HostPaths, engine: EngineKind) -> Result<Self, Diagnostics> {
        let path = file.unwrap_or(&paths.config_file);
        match layer::file_text(path) {
            Ok(text) => {
                let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
                let directory = absolute.parent().map(Path::to_path_buf);
                Self::parse(Source { label: path.display().to_string(), text, directory }, paths, engine)
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && file.is_none() => Ok(Self::of(paths, engine)),
            Err(error) => Err(Diagnostic::plain(format!("cannot read the host file `{}`: {error}", path.display())).into()),
        }
    }

    /// Reads the text of a host file.
    pub fn parse(source: Source, paths: &HostPaths, engine: EngineKind) -> Result<Self, Diagnostics> {
        let mut layer = Layer::parse(source, &HOST_KEYS).map_err(Diagnostics)?;
        let start = Location { source: layer.source.clone(), span: 0..0 };
        let mut problems = Vec::new();
        validate::check_table(&mut layer.table, "", &HOST_KEYS, None, &mut problems);
        let mut config = Self::of(paths, engine);
        if problems.is_empty() {
            let view = TableReader::new(&layer.table, &start, &HOST_KEYS, Path::new("/"), config.default_engine);
            config.fill(&view, &mut problems);
            config.defaults = layer.table.get("defaults").and_then(|node| defaults(node, &layer.source, &mut problems));
        }
        if problems.is_empty() { Ok(config) } else { Err(Diagnostics(problems)) }
    }

    fn fill(&mut self, view: &TableReader<'_>, problems: &mut Vec<Diagnostic>) {
        if let Some(name) = view.text("name") {
            self.name = name;
        }
        self.labels = view.texts("labels");
        let stores = view.entries("datastores");
        if !stores.is_empty() {
            self.datastores = entries(&stores, "datastores", "path", |entry| entry.path("path"), problems)
                .into_iter()
                .map(|(id, path)| DatastoreConfig { id, path })
                .collect();
            self.default_datastore = self.datastores.first().map(|store| store.id.clone()).unwrap_or_default();
        }
        if let Some(wanted) = view.text("default_datastore") {
            if !self.datastores.iter().any(|store| store.id == wanted) {
                let known: Vec<String> = self.datastores.iter().map(|store| format!("`{}`", store.id)).collect();
                let message = format!("no datastore is called `{wanted}`");
                problems.push(
                    Diagnostic::at(view.location_of("default_datastore"), message).hint(format!("known: {}", known.join(", "))),
                );
            }
            self.default_datastore = wanted;
        }
        self.catalogues = entries(&view.entries("catalogues"), "catalogues", "url", |entry| entry.text("url"), problems)
            .into_iter()
            .map(|(id, url)| CatalogueConfig { id, url })
            .collect();
        for entry in view.entries("catalogues") {
            let url = entry.text("url").unwrap_or_default();
            if !url.starts_with("https://") && !url.starts_with('/') {
                let message = format!("`{url}` is not the address of a catalogue");
                problems.push(Diagnostic::at(entry.location_of("url"), message).hint("an `https://` URL, or an absolute path"));
            }
        }
        self.template_dirs = view.text_nodes("template_dirs").iter().map(|(text, node)| view.absolute(text, node)).collect();
        if let Some(path) = view.path("cache_dir") {
            self.cache_dir = path;
        }
        self.autostart_parallel = view.small("autostart_parallel").expect("has a default");
        match view.text("engine_uids").expect("has a default").parse() {
            Ok(range) => self.engine_uids = range,
            Err(message) => {
                let hint = "numbers that no user of this host has, like `1900000000-1999999999`";
                problems.push(Diagnostic::at(view.location_of("engine_uids"), message).hint(hint));
            }
        }
        self.switches = switch::switches(view, problems);
    }

    /// Returns the default datastore.
    pub fn datastore(&self) -> &DatastoreConfig {
        self.datastores
            .iter()
            .find(|store| store.id == self.default_datastore)
            .expect("checked: default_datastore names one of the datastores")
    }

    /// Returns the default engine by the host file.
    pub fn engine(&self) -> EngineKind {
        self.defaults.as_ref().map_or(self.default_engine, |layer| engine_of(&layer.table, self.default_engine))
    }

    /// Returns the directories of templates for a guest in `datastore`.
    pub fn template_search(&self, datastore: &Path) -> Vec<PathBuf> {
        std::iter::once(datastore.join(TEMPLATES_DIR)).chain(self.template_dirs.iter().cloned()).collect()
    }
}

/// Returns whether a text is that of a host file and not of a guest file: it has a key that only host files have.
pub fn is_host_file(text: &str) -> bool {
    let has = |keys: &'static KeyTable, name: &str| keys.iter().any(|key| key.path == name);
    let table = text.parse::<toml::Table>().unwrap_or_default();
    table.keys().any(|name| has(&HOST_KEYS, name) && !has(&GUEST_KEYS, name))
}

/// Returns the entries of a class whose `id` and one other key are required.
fn entries<T>(
    views: &[TableReader<'_>],
    class: &str,
    required: &str,
    value: impl Fn(&TableReader<'_>) -> Option<T>,
    problems: &mut Vec<Diagnostic>,
) -> Vec<(String, T)> {
    let mut found: Vec<(String, T)> = Vec::new();
    for view in views {
        match (view.text("id"), value(view)) {
            (Some(id), _) if found.iter().any(|(other, _)| *other == id) => {
                problems.push(Diagnostic::at(view.location_of("id"), format!("id `{id}` is used twice in `{class}`")));
            }
            (Some(id), Some(value)) => found.push((id, value)),
            (id, _) => {
                let missing = if id.is_none() { "id" } else { required };
                problems.push(Diagnostic::at(view.location, format!("an entry of `{class}` has no `{missing}`")));
            }
        }
    }
    found
}

/// Checks `[defaults]` as far as possible without a guest. Its keys are parsed again under the guest's table, so that
/// short forms work in it.
pub(super) fn defaults(node: &Spanned, source: &Arc<Source>, problems: &mut Vec<Diagnostic>) -> Option<Layer> {
    let Value::Table(table) = &node.value else { return None };
    let mut table = table.clone();
    for banned in ["name", "template", "extends", "include", "unset", "uuid"] {
        if let Some((name, _)) = table.take(banned) {
            problems.push(Diagnostic::at(&name.location, format!("`{banned}` cannot be a default of all guests")));
        }
    }
    layer::expand_short_forms(&mut table, "", &GUEST_KEYS);
    part(&table, problems);
    Some(Layer { source: source.clone(), table })
}

/// Checks a part of a guest file as far as possible without a guest.
pub(super) fn part(table: &Table, problems: &mut Vec<Diagnostic>) {
    // Problems that depend on an expression are known only with a guest.
    let mut found = Vec::new();
    validate::check_table(&mut table.clone(), "", &GUEST_KEYS, None, &mut found);
    let text = |location: &Location| location.source.text.get(location.span.clone()).unwrap_or_default().contains("{{");
    problems.extend(found.into_iter().filter(|problem| !problem.location.as_ref().is_some_and(text)));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<HostConfig, String> {
        let paths = HostPaths {
            config_file: "/etc/vmctl.toml".into(),
            datastore: "/var/store".into(),
            cache_dir: "/var/cache".into(),
            runtime_dir: "/run".into(),
        };
        let source = Source { label: "vmctl.toml".into(), text: text.into(), directory: Some("/etc".into()) };
        HostConfig::parse(source, &paths, EngineKind::Embedded).map_err(|problems| problems.to_string())
    }

    #[test]
    fn an_empty_host_file_is_the_default() {
        let host = parse("").unwrap();
        assert_eq!(host.datastore().path, PathBuf::from("/var/store"));
        assert_eq!(host.template_search(Path::new("/s")), [PathBuf::from("/s/templates")]);
    }

    #[test]
    fn engines_of_root_get_users_of_a_range() {
        assert_eq!(parse("").unwrap().engine_uids, UidRange::default());
        assert_eq!(parse("engine_uids = '70000-70099'").unwrap().engine_uids, UidRange { first: 70000, last: 70099 });
    }

    #[test]
    fn the_first_datastore_is_the_default_unless_another_is_named() {
        let two = "[[datastores]]\nid = 'a'\npath = 'a'\n[[datastores]]\nid = 'b'\npath = '/b'\n";
        assert_eq!(parse(two).unwrap().datastore().path, PathBuf::from("/etc/a"));
        assert_eq!(parse(&format!("default_datastore = 'b'\n{two}")).unwrap().datastore().id, "b");
        assert!(parse(&format!("default_datastore = 'c'\n{two}")).unwrap_err().contains("hint: known: `a`, `b`"));
    }

    #[test]
    fn what_is_wrong_with_a_host_file_is_said_with_its_place() {
        for (text, expected) in [
            ("datastore = 1", "vmctl.toml:1:1: unknown key `datastore`"),
            ("[[datastores]]\nid = 'a'", "vmctl.toml:1:1: an entry of `datastores` has no `path`"),
            ("[[catalogues]]\nid = 'a'\nurl = 'http://x'", "vmctl.toml:3:7: `http://x` is not the address of a catalogue"),
            ("[[switches]]\ntype = 'bridge'", "vmctl.toml:1:1: an entry of `switches` has no `id`"),
            ("[[switches]]\nid = 'a'\ntype = 'manual'", "vmctl.toml:3:8: switch `a` is of type `manual` and has no `bridge`"),
            ("[[switches]]\nid = 'a'\nnat = true", "vmctl.toml:3:7: switch `a` has NAT and no IPv4 address"),
            ("[[switches]]\nid = 'a'\ntype = 'vale'\nmtu = 1500", "vmctl.toml:4:7: a switch of type `vale` has no `mtu`"),
            (
                "[[switches]]\nid = 'a'\naddresses = ['10.0.0.1/24']\ndhcp = '10.0.0.1-10.0.0.9'",
                "vmctl.toml:4:8: the range of switch `a` contains the host's own address `10.0.0.1`",
            ),
            (
                "[[switches]]\nid = 'a'\naddresses = ['10.0.0.1/24']\ndhcp = '10.0.1.1-10.0.1.9'",
                "vmctl.toml:4:8: the range of switch `a` is in no network of its addresses",
            ),
            ("[[switches]]\nid = 'a'\nvlan = 7", "vmctl.toml:3:8: switch `a` is in a VLAN of its uplinks and has none"),
            ("[[switches]]\nid = 'a'\ntype = 'vxlan'\nvni = 7", "vmctl.toml:1:1: switch `a` has 0 uplinks"),
            ("autostart_parallel = 0", "vmctl.toml:1:22: `autostart_parallel` is `0`, not a number from 1 to 64"),
            ("engine_uids = '0-70000'", "vmctl.toml:1:15: `0-70000` is not a range between 1000 and 2147483647"),
            ("[defaults]\nname = 'x'", "vmctl.toml:2:1: `name` cannot be a default of all guests"),
            ("[defaults]\nmemroy = '1G'", "vmctl.toml:2:1: unknown key `memroy`"),
        ] {
            let said = parse(text).unwrap_err();
            assert!(said.starts_with(expected), "{said}");
        }
    }

    #[test]
    fn the_defaults_say_the_engine_before_the_host_does() {
        assert_eq!(parse("").unwrap().engine(), EngineKind::Embedded);
        assert_eq!(parse("[defaults]\nengine = 'bhyve'").unwrap().engine(), EngineKind::Bhyve);
    }

    #[test]
    fn defaults_take_short_forms_and_expressions() {
        let host = parse("[defaults]\ncpus = 2\nmemory = '{{ mem }}'\nautostart.order = '{{ index }}'").unwrap();
        assert!(host.defaults.unwrap().table.at("cpus.count").is_some());
    }
}
