//! Checks of a fleet's guests against each other: things that guests on one host must not share, and the order in which
//! they start.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::path::Path;

use super::contents::FleetGuest;
use super::entries::twice;
use crate::config::diagnostic::{Diagnostic, Location, nearest};
use crate::config::layer::{Spanned, Value};
use crate::config::paths::GUESTS_DIR;
use crate::config::validate::{GUEST_NAMES, is_guest_name, is_name};

/// Reports things that two guests of this host both have and only one may, and circles in `autostart.after`.
pub fn check(guests: &[FleetGuest], datastore: &Path, problems: &mut Vec<Diagnostic>) {
    for guest in guests.iter().filter(|guest| is_name(&guest.config.name) && !is_guest_name(&guest.config.name)) {
        let message = format!("`{}` cannot be the name of a guest", guest.config.name);
        problems.push(Diagnostic::at(&key_place(guest, "name"), message).hint(GUEST_NAMES));
    }
    let here: Vec<&FleetGuest> = guests.iter().filter(|guest| guest.here).collect();
    alone(&here, problems);
    let names: HashMap<&str, &FleetGuest> = here.iter().map(|guest| (guest.config.name.as_str(), *guest)).collect();
    for guest in &here {
        for after in &guest.config.autostart.after {
            let elsewhere = || guests.iter().any(|other| other.config.name == *after);
            let known = names.contains_key(after.as_str()) || elsewhere();
            if !known && !(is_name(after) && datastore.join(GUESTS_DIR).join(after).is_dir()) {
                let hint = match nearest(after, names.keys().copied()) {
                    Some(near) => format!("did you mean `{near}`?"),
                    None => "it is neither in the fleet nor in the datastore".into(),
                };
                let message = format!("`{}` starts after `{after}`, and no guest is called so", guest.config.name);
                problems.push(Diagnostic::at(&after_place(guest, after), message).hint(hint));
            }
        }
    }
    if let Some(circle) = circle(&names) {
        let first = names[circle[0]];
        let message = "guests wait for each other in a circle";
        problems.push(Diagnostic::at(&after_place(first, circle[1]), message).note(circle.join(" -> ")));
    }
}

/// Reports identities, host ports and disks that more than one guest has.
fn alone(here: &[&FleetGuest], problems: &mut Vec<Diagnostic>) {
    let mut uuids = Owners::default();
    let mut macs = Owners::default();
    let mut ports = Owners::default();
    let mut disks = Owners::default();
    for guest in here {
        let config = &guest.config;
        if let Some(uuid) = &config.uuid {
            uuids.take(uuid.clone(), guest, || (key_place(guest, "uuid"), format!("UUID `{uuid}`")), problems);
        }
        for nic in &config.nics {
            if let Some(mac) = nic.mac {
                let words = || (entry_place(guest, "nics", &nic.id, "mac"), format!("MAC address `{mac}`"));
                macs.take(mac, guest, words, problems);
            }
            for forward in &nic.forwards {
                let key = (forward.proto, forward.host_port, forward.host_addr);
                let location = || entry_place(guest, "nics", &nic.id, "forwards");
                ports.take(key, guest, || (location(), format!("port {} of the host", forward.host_port)), problems);
            }
        }
        for disk in config.disks.iter().filter(|disk| !disk.ro) {
            if let Some(path) = &disk.path {
                let words = || (entry_place(guest, "disks", &disk.id, "path"), format!("the file of disk `{}`", disk.id));
                disks.take(path.clone(), guest, words, problems);
            }
        }
    }
}

/// Returns the position of a key in an entry.
fn entry_place(guest: &FleetGuest, class: &str, id: &str, key: &str) -> Location {
    let items = match guest.resolved.table.get(class).map(|node| &node.value) {
        Some(Value::Array(items)) => items.as_slice(),
        _ => &[],
    };
    let tables = items.iter().filter_map(|node| if let Value::Table(table) = &node.value { Some(table) } else { None });
    let found = tables.filter(|table| table.id() == Some(id)).find_map(|table| table.get(key));
    found.map_or_else(|| key_place(guest, class), |node| node.location.clone())
}

/// Owners of things.
struct Owners<'a, K>(HashMap<K, &'a FleetGuest>);

impl<K> Default for Owners<'_, K> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<'a, K: Eq + Hash> Owners<'a, K> {
    fn take(
        &mut self,
        key: K,
        guest: &'a FleetGuest,
        words: impl FnOnce() -> (Location, String),
        problems: &mut Vec<Diagnostic>,
    ) {
        if let Some(other) = self.0.insert(key, guest) {
            let (location, what) = words();
            let (one, two) = (&other.config.name, &guest.config.name);
            problems.push(twice(&location, &format!("{what} is used by both `{one}` and `{two}`"), &other.location));
        }
    }
}

fn key_place(guest: &FleetGuest, key: &str) -> Location {
    guest.resolved.table.get(key).map_or_else(|| guest.location.clone(), |node| node.location.clone())
}

fn after_place(guest: &FleetGuest, after: &str) -> Location {
    let nodes = match guest.resolved.table.at("autostart.after") {
        Some(Spanned { value: Value::Array(nodes), .. }) => nodes.as_slice(),
        _ => &[],
    };
    let found = nodes.iter().find(|node| node.value == Value::Text(after.to_owned()));
    found.map_or_else(|| guest.location.clone(), |node| node.location.clone())
}

/// Returns guests that wait for each other, with the first one again at the end; `None` if there are none.
fn circle<'a>(names: &HashMap<&'a str, &'a FleetGuest>) -> Option<Vec<&'a str>> {
    let after: BTreeMap<&str, Vec<&str>> =
        names.iter().map(|(name, guest)| (*name, guest.config.autostart.after.iter().map(String::as_str).collect())).collect();
    crate::config::order::circle(&after)
}
