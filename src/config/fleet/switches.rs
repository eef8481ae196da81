//! The switches that a fleet declares, and the file in which an applied fleet keeps them.
//!
//! A fleet file says which switches its guests are on. What holds on this host is in the datastore, `switches.toml` of
//! the fleet's directory, from the apply on: a guest that starts, and `vmctl switch`, know nothing of fleet files. The
//! host file comes first: a switch of a fleet never takes the place of one of the host file, or of another fleet.

use std::path::{Path, PathBuf};

use super::entries::{Selector, selector, texts};
use super::keys::{FLEET_KEYS, KEPT_KEYS};
use crate::config::diagnostic::{Diagnostic, Diagnostics, Place, Problems, Source};
use crate::config::host::HostConfig;
use crate::config::layer::{Layer, Name, Node, Table, Value, read};
use crate::config::paths::{FLEETS_DIR, fleet_directory};
use crate::config::render::{Origin, render_entry};
use crate::config::switch::{self, SwitchConfig};
use crate::config::view::View;
use crate::config::walk::{self, is_name};

/// The name of the file in the fleet's directory.
pub const KEPT: &str = "switches.toml";

/// A switch that a fleet declares.
#[derive(Debug, Clone)]
pub struct FleetSwitch {
    /// What it means.
    pub config: SwitchConfig,
    /// It is for this host.
    pub here: bool,
    /// Where its name stands.
    pub place: Place,
    /// The entry of the kept file that says it.
    pub text: String,
    /// Key by key, with every default.
    pub origins: Vec<Origin>,
}

/// Those of a fleet file, which the walk has been over and found nothing wrong with.
pub(super) fn declared(table: &Table, fleet: &str, host: &HostConfig, problems: &mut Problems) -> Vec<FleetSwitch> {
    let Some(node @ Node { value: Value::Array(items), .. }) = table.get("switches") else { return Vec::new() };
    let (mut here, mut elsewhere) = (Vec::new(), Vec::new());
    for item in items {
        let Value::Table(entry) = &item.value else { continue };
        for (name, node) in entry.0.iter().filter(|(_, node)| texts(node).iter().any(|text| text.contains("{{"))) {
            problems.push(Diagnostic::at(&node.place, format!("`switches.{}` takes no expressions", name.text)));
        }
        let view = View::part(entry, &item.place, &FLEET_KEYS, "switches");
        let means = |selector: Selector| selector.means(&host.name, &host.labels);
        let is_here = entry.get("host").is_none() || means(selector(&view.table("host"), problems));
        let mut entry = entry.clone();
        entry.take("host");
        let item = Node { value: Value::Table(entry), ..item.clone() };
        if is_here { here.push(item) } else { elsewhere.push(item) }
    }
    let mut found = read_entries(here, &node.place, fleet, problems);
    // Two of one name may be for different hosts, so that each is looked at alone.
    for item in elsewhere {
        let alone = read_entries(vec![item], &node.place, fleet, problems);
        found.extend(alone.into_iter().map(|switch| FleetSwitch { here: false, ..switch }));
    }
    found
}

/// Entries of `[[switches]]` with the keys of the host file.
fn read_entries(items: Vec<Node>, place: &Place, fleet: &str, problems: &mut Problems) -> Vec<FleetSwitch> {
    let name = Name { text: "switches".into(), place: place.clone() };
    let table = Table(vec![(name, Node { value: Value::Array(items), place: place.clone(), replaces: false })]);
    let view = View::part(&table, place, &KEPT_KEYS, "");
    let configs = switch::switches(&view, problems);
    let entries = view.entries("switches");
    let make = |config: SwitchConfig| {
        let entry = entries.iter().find(|entry| entry.text("id").as_ref() == Some(&config.id))?;
        let (text, origins) = render_entry(entry.whole()?, &KEPT_KEYS, "switches");
        let place = entry.place_of("id").clone();
        Some(FleetSwitch { config: SwitchConfig { fleet: Some(fleet.to_owned()), ..config }, here: true, place, text, origins })
    };
    configs.into_iter().filter_map(make).collect()
}

/// The switches that a fleet of a datastore had when it was last applied.
pub fn kept_switches(datastore: &Path, fleet: &str) -> Result<Vec<FleetSwitch>, Diagnostics> {
    let file = kept_file(datastore, fleet);
    if !file.exists() {
        return Ok(Vec::new());
    }
    let source = Source { label: file.display().to_string(), text: read(&file)?, directory: None };
    let anew = |problems: Vec<Diagnostic>| {
        let hint = "remove the file, and `vmctl apply` of the fleet writes it anew";
        Diagnostics(problems.into_iter().map(|problem| problem.hint(hint)).collect())
    };
    let mut layer = Layer::parse(source, &KEPT_KEYS).map_err(anew)?;
    let place = Place { source: layer.source.clone(), span: 0..0 };
    let mut problems = Vec::new();
    walk::walk(&mut layer.table, "", &KEPT_KEYS, None, &mut problems);
    let mut found = Vec::new();
    if let (true, Some((_, node))) = (problems.is_empty(), layer.table.take("switches"))
        && let Value::Array(items) = node.value
    {
        found = read_entries(items, &place, fleet, &mut problems);
    }
    if problems.is_empty() { Ok(found) } else { Err(anew(problems)) }
}

/// Where [`kept_switches`] finds them.
pub fn kept_file(datastore: &Path, fleet: &str) -> PathBuf {
    fleet_directory(datastore, fleet).join(KEPT)
}

/// The text of the kept file.
pub fn kept_text(fleet: &str, switches: &[FleetSwitch]) -> String {
    let entries: String = switches.iter().map(|switch| switch.text.as_str()).collect();
    format!("# The switches of the fleet `{fleet}` on this host. Written by `vmctl apply`.\n{entries}")
}

impl HostConfig {
    /// Adds the switches of the fleets that were applied to its datastores, and to another one, but for those of one
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
