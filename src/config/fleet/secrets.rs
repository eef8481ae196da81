//! Secrets by reference: where they come from, and the path at which a guest finds them.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::entries::twice;
use super::keys::FLEET_KEYS;
use crate::config::diagnostic::{Diagnostic, Place};
use crate::config::layer::Table;
use crate::config::paths::fleet_directory;
use crate::config::view::View;

/// A secret, as meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretConfig {
    /// Its name.
    pub id: String,
    /// Where it stands in the fleet file.
    pub place: Place,
    /// Where it comes from.
    pub source: SecretSource,
    /// The file that holds it for the guests.
    pub path: PathBuf,
}

/// Where a secret comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SecretSource {
    /// The file itself, which guests use where it is.
    File,
    /// An environment variable of `vmctl apply`.
    Env(String),
    /// What a command prints.
    Command {
        /// Program and arguments.
        words: Vec<String>,
        /// Killed after this.
        timeout: Duration,
    },
}

/// The secrets of `[[secrets]]`; the table has been walked.
pub fn secrets(table: &Table, start: &Place, fleet: &str, datastore: &Path, problems: &mut Vec<Diagnostic>) -> Vec<SecretConfig> {
    let mut found: Vec<SecretConfig> = Vec::new();
    for entry in View::part(table, start, &FLEET_KEYS, "").entries("secrets") {
        let Some(id) = entry.text("id") else {
            problems.push(Diagnostic::at(entry.place, "a secret has no `id`").hint("add `id = \"NAME\"`"));
            continue;
        };
        if let Some(other) = found.iter().find(|other| other.id == id) {
            problems.push(twice(entry.place_of("id"), &format!("two secrets are called `{id}`"), &other.place));
            continue;
        }
        let given = ["file", "env", "command"].into_iter().filter(|leaf| entry.node(leaf).is_some()).collect::<Vec<_>>();
        let [given] = given[..] else {
            let message = match given.len() {
                0 => format!("secret `{id}` comes from nowhere"),
                _ => format!("secret `{id}` comes from {} places", given.len()),
            };
            let hint = "give one of `file = \"PATH\"`, `env = \"VARIABLE\"` and `command = [\"PROGRAM\"]`";
            problems.push(Diagnostic::at(entry.place, message).hint(hint));
            continue;
        };
        let words = entry.texts("command");
        let env = entry.text("env").unwrap_or_default();
        let bad_env = env.is_empty() || env.contains(['=', '\0']);
        if (given == "command" && words.first().is_none_or(String::is_empty)) || (given == "env" && bad_env) {
            problems.push(Diagnostic::at(entry.place_of(given), format!("`secrets.{given}` names nothing")));
            continue;
        }
        let kept = fleet_directory(datastore, fleet).join("secrets").join(&id);
        let (source, path) = match given {
            "file" => (SecretSource::File, entry.path("file").unwrap_or(kept)),
            "env" => (SecretSource::Env(env), kept),
            _ => (SecretSource::Command { words, timeout: entry.duration("timeout") }, kept),
        };
        found.push(SecretConfig { id, place: entry.place_of("id").clone(), source, path });
    }
    found
}
