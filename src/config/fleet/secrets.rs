//! Secrets by reference: their sources, and the paths at which guests find them.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::entries::twice;
use super::keys::FLEET_KEYS;
use crate::config::diagnostic::{Diagnostic, Location};
use crate::config::layer::Table;
use crate::config::paths::fleet_directory;
use crate::config::table_reader::TableReader;

/// Configuration of a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretConfig {
    /// Its name.
    pub id: String,
    /// Position in the fleet file.
    pub location: Location,
    /// Source of the secret.
    pub source: SecretSource,
    /// The file with the secret for the guests.
    pub path: PathBuf,
}

/// Source of a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SecretSource {
    /// The file itself, which guests use directly.
    File,
    /// An environment variable of `vmctl apply`.
    Env(String),
    /// The output of a command.
    Command {
        /// Program and arguments.
        words: Vec<String>,
        /// Time-out after which it is killed.
        timeout: Duration,
    },
}

/// Returns the secrets of `[[secrets]]`. The keys of the table have been checked.
pub fn secrets(
    table: &Table,
    start: &Location,
    fleet: &str,
    datastore: &Path,
    problems: &mut Vec<Diagnostic>,
) -> Vec<SecretConfig> {
    let mut found: Vec<SecretConfig> = Vec::new();
    for entry in TableReader::part(table, start, &FLEET_KEYS, "").entries("secrets") {
        let Some(id) = entry.text("id") else {
            problems.push(Diagnostic::at(entry.location, "a secret has no `id`").hint("add `id = \"NAME\"`"));
            continue;
        };
        if let Some(other) = found.iter().find(|other| other.id == id) {
            problems.push(twice(entry.location_of("id"), &format!("two secrets are called `{id}`"), &other.location));
            continue;
        }
        let given = ["file", "env", "command"].into_iter().filter(|leaf| entry.node(leaf).is_some()).collect::<Vec<_>>();
        let [given] = given[..] else {
            let message = match given.len() {
                0 => format!("secret `{id}` has no source"),
                _ => format!("secret `{id}` has {} sources", given.len()),
            };
            let hint = "give one of `file = \"PATH\"`, `env = \"VARIABLE\"` and `command = [\"PROGRAM\"]`";
            problems.push(Diagnostic::at(entry.location, message).hint(hint));
            continue;
        };
        let words = entry.texts("command");
        let env = entry.text("env").unwrap_or_default();
        let bad_env = env.is_empty() || env.contains(['=', '\0']);
        if (given == "command" && words.first().is_none_or(String::is_empty)) || (given == "env" && bad_env) {
            problems.push(Diagnostic::at(entry.location_of(given), format!("`secrets.{given}` names nothing")));
            continue;
        }
        let kept = fleet_directory(datastore, fleet).join("secrets").join(&id);
        let (source, path) = match given {
            "file" => (SecretSource::File, entry.path("file").unwrap_or(kept)),
            "env" => (SecretSource::Env(env), kept),
            _ => (SecretSource::Command { words, timeout: entry.duration("timeout") }, kept),
        };
        found.push(SecretConfig { id, location: entry.location_of("id").clone(), source, path });
    }
    found
}
