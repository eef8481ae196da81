//! A guest file as the supervisor and the commands read it: its configuration, and its sources.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::config::{EngineKind, GuestConfig, GuestRequest, HostConfig, SwitchConfig, UidRange, load_guest};

use super::error::Result;
use super::state::{SUMMARY_FORM, Stamp, Summary, settled_engine};
use super::store::GuestDir;

/// A checked guest file.
#[derive(Debug, Clone)]
pub struct Definition {
    /// The configuration.
    pub config: GuestConfig,
    /// Every file that it was read from.
    pub sources: Vec<PathBuf>,
    /// Hash of the configuration.
    pub hash: String,
    /// The host's switches, for its interfaces.
    pub switches: Vec<SwitchConfig>,
    /// The engine, if the file does not name one.
    pub default_engine: EngineKind,
    /// The users that root's engines go on as.
    pub engine_uids: UidRange,
}

/// Parameters for reading guest files.
#[derive(Debug, Clone, Copy)]
pub struct Surroundings<'a> {
    /// The host file, checked.
    pub host: &'a HostConfig,
    /// Path of the host file, if there is one. Its defaults change what guest files mean.
    pub host_file: &'a Path,
    /// The datastore with the templates.
    pub datastore: &'a Path,
}

impl Surroundings<'_> {
    /// Returns the host file as it is valid for an existing guest, whose default engine was fixed when it was made.
    pub fn host_for(&self, guest: &GuestDir) -> Cow<'_, HostConfig> {
        match settled_engine(&guest.state_file()) {
            Some(engine) if engine != self.host.default_engine => {
                Cow::Owned(HostConfig { default_engine: engine, ..self.host.clone() })
            }
            _ => Cow::Borrowed(self.host),
        }
    }
}

impl Definition {
    /// Reads and checks the file of a guest.
    pub fn load(guest: &GuestDir, surroundings: Surroundings<'_>) -> Result<Definition> {
        Definition::load_text(guest, &guest.config_file(), None, surroundings)
    }

    /// Reads and checks a text as [`load`](Definition::load) does, which is in the guest's file or will be. Paths are
    /// relative to `file`.
    pub fn load_text(guest: &GuestDir, file: &Path, text: Option<&str>, surroundings: Surroundings<'_>) -> Result<Definition> {
        let host = surroundings.host_for(guest);
        Definition::load_file(file, guest.name(), text, &[], Surroundings { host: &host, ..surroundings })
    }

    /// Reads and checks a file, or a `text` that will be put there, as that of a new guest `name`.
    pub fn load_file(
        file: &Path,
        name: &str,
        text: Option<&str>,
        sets: &[String],
        surroundings: Surroundings<'_>,
    ) -> Result<Definition> {
        let request =
            GuestRequest { file, text, name: Some(name), sets, host: surroundings.host, datastore: surroundings.datastore };
        let loaded = load_guest(&request)?;
        let sources = loaded.files().to_vec();
        Ok(Definition {
            switches: surroundings.host.switches.clone(),
            default_engine: surroundings.host.default_engine,
            engine_uids: surroundings.host.engine_uids,
            ..Definition::new(loaded.config, sources)
        })
    }

    /// Creates the definition of a checked configuration.
    pub fn new(config: GuestConfig, sources: Vec<PathBuf>) -> Definition {
        let text = serde_json::to_vec(&config).expect("our own types have string keys and finite numbers");
        let digest = Sha256::digest(&text);
        let hash = digest[..16].iter().map(|byte| format!("{byte:02x}")).collect();
        let default_engine = config.engine;
        Definition { config, sources, hash, switches: Vec::new(), default_engine, engine_uids: UidRange::default() }
    }

    /// Returns the summary for `list`.
    pub fn summary(&self, host_file: &Path) -> Summary {
        let sources = self.sources.iter().map(PathBuf::as_path).chain([host_file]);
        Summary {
            program: env!("CARGO_PKG_VERSION").to_owned(),
            sources: sources.map(Stamp::of).collect(),
            cpus: self.config.cpus.count(),
            memory_bytes: self.config.memory.bytes(),
            engine: self.config.engine.as_str().into(),
            tags: self.config.tags.clone(),
            description: self.config.description.clone(),
            protected: self.config.protected,
            config_hash: self.hash.clone(),
            uuid: self.config.uuid.clone(),
            form: SUMMARY_FORM,
        }
    }
}
