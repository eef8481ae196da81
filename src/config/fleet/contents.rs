//! The contents of a fleet file: its guests, its secrets and its switches.

use std::path::{Path, PathBuf};

use super::secrets::SecretConfig;
use super::switches::FleetSwitch;
use crate::config::diagnostic::{Diagnostic, Diagnostics, Location};
use crate::config::guest::GuestConfig;
use crate::config::host::HostConfig;
use crate::config::resolve::Resolved;

/// A fleet file that was read and checked.
#[derive(Debug, Clone)]
pub struct Fleet {
    /// Its name.
    pub name: String,
    /// The file, absolute.
    pub file: PathBuf,
    /// Every guest, also those for other hosts, in the order of the file.
    pub guests: Vec<FleetGuest>,
    /// The secrets that guests of this host use.
    pub secrets: Vec<SecretConfig>,
    /// The switches that it declares, also those for other hosts.
    pub switches: Vec<FleetSwitch>,
}

/// One guest of a fleet.
#[derive(Debug, Clone)]
pub struct FleetGuest {
    /// Its configuration.
    pub config: GuestConfig,
    /// Its resolved keys, with the origin of each.
    pub resolved: Resolved,
    /// Its guest file, which needs no template.
    pub text: String,
    /// Position of its entry.
    pub location: Location,
    /// Whether it is for this host.
    pub here: bool,
}

impl Fleet {
    /// Returns the guests of this host.
    pub fn here(&self) -> impl Iterator<Item = &FleetGuest> {
        self.guests.iter().filter(|guest| guest.here)
    }
    /// Returns the guest of this name for this host.
    pub fn guest(&self, name: &str) -> Option<&FleetGuest> {
        self.here().find(|guest| guest.config.name == name)
    }
    /// Returns the switches that it declares for this host.
    pub fn switches_here(&self) -> impl Iterator<Item = &FleetSwitch> {
        self.switches.iter().filter(|switch| switch.here)
    }
}

impl HostConfig {
    /// Adds the switches that a fleet declares for this host. It is an error if there is a different one of the same
    /// name.
    pub fn add_declared(&mut self, fleet: &Fleet) -> Result<(), Diagnostics> {
        let mut problems = Vec::new();
        for switch in fleet.switches_here() {
            match self.switches.iter().find(|other| other.id == switch.config.id) {
                None => self.switches.push(switch.config.clone()),
                Some(other) if other.is_like(&switch.config) => {}
                Some(other) => {
                    let message = format!("switch `{}` is another one in {}", other.id, other.declared());
                    let hint = "make them alike, or give one another name";
                    problems.push(Diagnostic::at(&switch.location, message).hint(hint));
                }
            }
        }
        if problems.is_empty() { Ok(()) } else { Err(Diagnostics(problems)) }
    }
}

/// Returns whether a file is a fleet file and not a guest file: it is called `fleet.toml`, or has `[[guests]]` or
/// `[[templates]]`.
pub fn is_fleet(file: &Path, text: &str) -> bool {
    let named = file.file_name().is_some_and(|name| name == "fleet.toml");
    let names = |line: &str| {
        let rest = line.trim_start();
        let key = rest.strip_prefix("[[").unwrap_or(rest).trim_start();
        let rest = key.strip_prefix("guests").or_else(|| key.strip_prefix("templates"));
        rest.is_some_and(|rest| rest.trim_start().starts_with(['=', ']']))
    };
    named || text.lines().any(names)
}
