//! The switches that a fleet declares, and the file in which an applied fleet keeps them.
//!
//! A fleet file declares the switches of its guests. From the apply on, those of this host are in the datastore, in
//! `switches.toml` of the fleet's directory: a guest that starts, and `vmctl switch`, do not read fleet files. The host
//! file has priority: a switch of a fleet never replaces one of the host file, or of another fleet.

use std::path::{Path, PathBuf};

use super::entries::{Selector, selector, texts};
use super::keys::{FLEET_KEYS, KEPT_KEYS};
use crate::config::diagnostic::{Diagnostic, Diagnostics, Location, Problems, Source};
use crate::config::host::HostConfig;
use crate::config::layer::{Layer, Name, Spanned, Table, Value, read};
use crate::config::paths::{FLEETS_DIR, fleet_directory};
use crate::config::render::{Origin, render_entry};
use crate::config::switch::{self, SwitchConfig};
use crate::config::table_reader::TableReader;
use crate::config::validate::{self, is_name};

/// The name of the file in the fleet's directory.
pub const KEPT: &str = "switches.toml";

/// A switch that a fleet declares.
#[derive(Debug, Clone)]
pub struct FleetSwitch {
    /// Its configuration.
    pub config: SwitchConfig,
    /// Whether it is for this host.
    pub here: bool,
    /// Position of its name.
    pub location: Location,
    /// Its entry in the kept file.
    pub text: String,
    /// Origin of each key, with all defaults.
    pub origins: Vec<Origin>,
}

/// Returns the switches of a fleet file, whose keys have been checked without a problem.
pub(super) fn declared(table: &Table, fleet: &str, host: &HostConfig, problems: &mut Problems) -> Vec<FleetSwitch> {
    let Some(node @ Spanned { value: Value::Array(items), .. }) = table.get("switches") else { return Vec::new() };
    let (mut here, mut elsewhere) = (Vec::new(), Vec::new());
    for item in items {
        let Value::Table(entry) = &item.value else { continue };
        for (name, node) in entry.0.iter().filter(|(_, node)| texts(node).iter().any(|text| text.contains("{{"))) {
            problems.push(Diagnostic::at(&node.location, format!("`switches.{}` takes no expressions", name.text)));
        }
        let view = TableReader::part(entry, &item.location, &FLEET_KEYS, "switches");
        let means = |selector: Selector| selector.means(&host.name, &host.labels);
        let is_here = entry.get("host").is_none() || means(selector(&view.table("host"), problems));
        let mut entry = entry.clone();
        entry.take("host");
        let item = Spanned { value: Value::Table(entry), ..item.clone() };
        if is_here { here.push(item) } else { elsewhere.push(item) }
    }
    let mut found = read_entries(here, &node.location, fleet, problems);
    // Two of the same name may be for different hosts, so each is checked alone.
    for item in elsewhere {
        let alone = read_entries(vec![item], &node.location, fleet, problems);
        found.extend(alone.into_iter().map(|switch| FleetSwitch { here: false, ..switch }));
    }
    found
}

/// Returns the entries of `[[switches]]` with the keys of the host file.
fn read_entries(items: Vec<Spanned>, location: &Location, fleet: &str, problems: &mut Problems) -> Vec<FleetSwitch> {
    let name = Name { text: "switches".into(), location: location.clone() };
    let table = Table(vec![(name, Spanned { value: Value::Array(items), location: location.clone(), replaces: false })]);
    let view = TableReader::part(&table, location, &KEPT_KEYS, "");
    let configs = switch::switches(&view, problems);
    let entries = view.entries("switches");
    let make = |config: SwitchConfig| {
        let entry = entries.iter().find(|entry| entry.text("id").as_ref() == Some(&config.id))?;
        let (text, origins) = render_entry(entry.whole()?, &KEPT_KEYS, "switches");
        let location = entry.location_of("id").clone();
        Some(FleetSwitch {
            config: SwitchConfig { fleet: Some(fleet.to_owned()), ..config },
            here: true,
            location,
            text,
            origins,
        })
    };
    configs.into_iter().filter_map(make).collect()
}

/// Returns the switches that a fleet of a datastore had when it was last applied.
pub fn kept_switches(datastore: &Path, fleet: &str) -> Result<Vec<FleetSwitch>, Diagnostics> {
    let file = kept_file(datastore, fleet);
    if !file.exists() {
        return Ok(Vec::new());
    }
    let source = Source { label: file.display().to_string(), text: read(&file)?, directory: None };
    let anew = |problems: Vec<Diagnostic>| {
        let hint = "remove the file, and `vmctl apply` of the fleet writes it again";
        Diagnostics(problems.into_iter().map(|problem| problem.hint(hint)).collect())
    };
    let mut layer = Layer::parse(source, &KEPT_KEYS).map_err(anew)?;
    let location = Location { source: layer.source.clone(), span: 0..0 };
    let mut problems = Vec::new();
    validate::check_table(&mut layer.table, "", &KEPT_KEYS, None, &mut problems);
    let mut found = Vec::new();
    if let (true, Some((_, node))) = (problems.is_empty(), layer.table.take("switches"))
        && let Value::Array(items) = node.value
    {
        found = read_entries(items, &location, fleet, &mut problems);
    }
    if problems.is_empty() { Ok(found) } else { Err(anew(problems)) }
}

/// Returns the path of the file for [`kept_switches`].
pub fn kept_file(datastore: &Path, fleet: &str) -> PathBuf {
    fleet_directory(datastore, fleet).join(KEPT)
}

/// Returns the text of the kept file.
pub fn kept_text(fleet: &str, switches: &[FleetSwitch]) -> String {
    let entries: String = switches.iter().map(|switch| switch.text.as_str()).collect();
    format!("# The switches of the fleet `{fleet}` on this host. Written by `vmctl apply`.\n{entries}")
}

impl HostConfig {
    /// Adds the switches of the fleets that were applied to its datastores, and to another one, except those of one
    /// fleet.
    pub fn add_fleets(&mut self, datastore: Option<&Path>, but: Option<&str>) -> Result<(), Diagnostics> {
        let mut stores: Vec<PathBuf> = self.datastores.iter().map(|store| store.path.clone()).collect();
        stores.extend(datastore.filter(|other| !stores.iter().any(|store| store == other)).map(Path::to_path_buf));
        for store in stores {
            let Ok(entries) = std::fs::read_dir(store.join(FLEETS_DIR)) else { continue };
            let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
            let mut names: Vec<String> = names.filter(|name| is_name(name) && Some(name.as_str()) != but).collect();
            names.sort();
            for name in names {
                for switch in kept_switches(&store, &name)? {
                    if !self.switches.iter().any(|other| other.id == switch.config.id) {
                        self.switches.push(switch.config);
                    }
                }
            }
        }
        Ok(())
    }
}
