//! What a fleet file yields: its guests, its secrets and its switches.

use std::path::{Path, PathBuf};

use super::secrets::SecretConfig;
use super::switches::FleetSwitch;
use crate::config::diagnostic::{Diagnostic, Diagnostics, Place};
use crate::config::guest::GuestConfig;
use crate::config::host::HostConfig;
use crate::config::resolve::Resolved;

/// A fleet file that was read and is right.
#[derive(Debug, Clone)]
pub struct Fleet {
    /// Its name.
    pub name: String,
    /// The file, absolute.
    pub file: PathBuf,
    /// Every guest, also those of other hosts, in the order of the file.
    pub guests: Vec<FleetGuest>,
    /// The secrets that guests of this host use.
    pub secrets: Vec<SecretConfig>,
    /// The switches that it declares, also those of other hosts.
    pub switches: Vec<FleetSwitch>,
}

/// One guest of a fleet.
#[derive(Debug, Clone)]
pub struct FleetGuest {
    /// What it means.
    pub config: GuestConfig,
    /// What it says, with where each key comes from.
    pub resolved: Resolved,
    /// The guest file that says it, which needs no template.
    pub text: String,
    /// Where its entry stands.
    pub place: Place,
    /// It is for this host.
    pub here: bool,
}

impl Fleet {
    /// The guests of this host.
    pub fn here(&self) -> impl Iterator<Item = &FleetGuest> {
        self.guests.iter().filter(|guest| guest.here)
    }
    /// The guest of this host with that name.
    pub fn guest(&self, name: &str) -> Option<&FleetGuest> {
        self.here().find(|guest| guest.config.name == name)
    }
    /// The switches that it declares for this host.
    pub fn switches_here(&self) -> impl Iterator<Item = &FleetSwitch> {
        self.switches.iter().filter(|switch| switch.here)
    }
}

impl HostConfig {
    /// Adds the switches that a fleet declares for this host. One that is there and is another one is refused.
    pub fn add_declared(&mut self, fleet: &Fleet) -> Result<(), Diagnostics> {
        let mut problems = Vec::new();
        for switch in fleet.switches_here() {
            match self.switches.iter().find(|other| other.id == switch.config.id) {
                None => self.switches.push(switch.config.clone()),
                Some(other) if other.is_like(&switch.config) => {}
                Some(other) => {
                    let message = format!("switch `{}` is another one in {}", other.id, other.declared());
                    let hint = "make them alike, or give one another name";
                    problems.push(Diagnostic::at(&switch.place, message).hint(hint));
                }
            }
        }
        if problems.is_empty() { Ok(()) } else { Err(Diagnostics(problems)) }
    }
}

/// Whether a file is a fleet file and no guest file: it is called `fleet.toml`, or has `[[guests]]` or `[[templates]]`.
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
