//! A guest file as the supervisor and the commands read it: what it means, and what it was made from.

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
    /// What it means.
    pub config: GuestConfig,
    /// Every file that it was made from.
    pub sources: Vec<PathBuf>,
    /// Differs when the meaning differs.
    pub hash: String,
    /// The host's switches, which its interfaces are plugged into.
    pub switches: Vec<SwitchConfig>,
    /// What runs it as long as its file does not say.
    pub default_engine: EngineKind,
    /// The users that root's engines go on as.
    pub engine_uids: UidRange,
}

/// What guest files are read with.
#[derive(Debug, Clone, Copy)]
pub struct Surroundings<'a> {
    /// The host file, checked.
    pub host: &'a HostConfig,
    /// Where the host file is, if there is one; its defaults change what guest files mean.
    pub host_file: &'a Path,
    /// The datastore whose templates are used.
    pub datastore: &'a Path,
}

impl Surroundings<'_> {
    /// The host file as it holds for a guest that is there: what runs it when its file does not say was settled when it
    /// was made.
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
    pub fn load(guest: &GuestDir, around: Surroundings<'_>) -> Result<Definition> {
        Definition::load_text(guest, &guest.config_file(), None, around)
    }

    /// As [`load`](Definition::load), of what stands or is to be put into its file: `file` says where paths start.
    pub fn load_text(guest: &GuestDir, file: &Path, text: Option<&str>, around: Surroundings<'_>) -> Result<Definition> {
        let host = around.host_for(guest);
        Definition::load_file(file, guest.name(), text, &[], Surroundings { host: &host, ..around })
    }

    /// Reads and checks a file, or a `text` that is to be put there, as that of a new guest `name`.
    pub fn load_file(
        file: &Path,
        name: &str,
        text: Option<&str>,
        sets: &[String],
        around: Surroundings<'_>,
    ) -> Result<Definition> {
        let request = GuestRequest { file, text, name: Some(name), sets, host: around.host, datastore: around.datastore };
        let loaded = load_guest(&request)?;
        let sources = loaded.files().to_vec();
        Ok(Definition {
            switches: around.host.switches.clone(),
            default_engine: around.host.default_engine,
            engine_uids: around.host.engine_uids,
            ..Definition::new(loaded.config, sources)
        })
    }

    /// Of a checked configuration.
    pub fn new(config: GuestConfig, sources: Vec<PathBuf>) -> Definition {
        let text = serde_json::to_vec(&config).expect("our own types have string keys and finite numbers");
        let digest = Sha256::digest(&text);
        let hash = digest[..16].iter().map(|byte| format!("{byte:02x}")).collect();
        let default_engine = config.engine;
        Definition { config, sources, hash, switches: Vec::new(), default_engine, engine_uids: UidRange::default() }
    }

    /// What `list` shows of it.
    pub fn summary(&self, host_file: &Path) -> Summary {
        let sources = self.sources.iter().map(PathBuf::as_path).chain([host_file]);
        Summary {
            program: env!("CARGO_PKG_VERSION").to_owned(),
            sources: sources.map(Stamp::of).collect(),
            cpus: self.config.cpus.count,
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
