//! Arguments that name a guest file: a path, or a guest of the datastore.

use std::path::{Path, PathBuf};

use super::{App, Failure};
use crate::config::{DatastoreConfig, GUEST_FILE, GUESTS_DIR, GuestRequest, HostConfig, LoadedGuest, load_guest};
use crate::guest::state::{STATE_FILE, settled_engine};

/// A guest file that an argument names.
pub struct GuestSource {
    /// The guest file.
    pub file: PathBuf,
    /// The guest's name, if it is one of the datastore.
    pub name: Option<String>,
}

impl GuestSource {
    /// An argument with a slash or with `.toml` at its end is a file, any other a guest.
    pub fn find(argument: &str, store: &DatastoreConfig) -> Result<Self, Failure> {
        if argument.contains('/') || argument.ends_with(".toml") {
            return Ok(Self { file: argument.into(), name: None });
        }
        let file = store.path.join(GUESTS_DIR).join(argument).join(GUEST_FILE);
        if file.is_file() {
            return Ok(Self { file, name: Some(argument.to_owned()) });
        }
        let hint = match std::path::Path::new(&format!("{argument}.toml")).is_file() {
            true => format!("the file is named `{argument}.toml`"),
            false => "`vmctl list` shows the guests; a file is named with `.toml` at its end, or with a slash".to_owned(),
        };
        Err(Failure::user(format!("there is no guest `{argument}` in `{}`", store.path.display())).hint(hint))
    }

    /// Every guest of the datastore.
    pub fn all(store: &DatastoreConfig) -> Vec<Self> {
        let mut found: Vec<Self> = std::fs::read_dir(store.path.join(GUESTS_DIR))
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| {
                let file = entry.path().join(GUEST_FILE);
                let name = entry.file_name().into_string().ok()?;
                file.is_file().then_some(Self { file, name: Some(name) })
            })
            .collect();
        found.sort_by(|a, b| a.name.cmp(&b.name));
        found
    }

    /// How the guest is called in words for the user.
    pub fn shown(&self) -> String {
        self.name.clone().unwrap_or_else(|| self.file.display().to_string())
    }

    /// Reads and checks it.
    pub fn load(
        &self,
        host: &HostConfig,
        store: &DatastoreConfig,
        sets: &[String],
    ) -> Result<LoadedGuest, crate::config::Diagnostics> {
        let Some(name) = &self.name else {
            return load_guest(&GuestRequest { file: &self.file, text: None, name: None, sets, host, datastore: &store.path });
        };
        // A file that is the user's own is linked: paths in it start where it really is.
        let directory = self.file.parent().unwrap_or(Path::new("/"));
        let file = std::fs::read_link(&self.file).map_or_else(|_| self.file.clone(), |target| directory.join(target));
        // What runs it when its file does not say was settled when it was made.
        let engine = settled_engine(&directory.join(STATE_FILE)).unwrap_or(host.default_engine);
        let host = &HostConfig { default_engine: engine, ..host.clone() };
        load_guest(&GuestRequest { file: &file, text: None, name: Some(name), sets, host, datastore: &store.path })
    }
}

impl App {
    /// The host file and the datastore that the user means.
    pub fn host_and_datastore(&self) -> Result<(HostConfig, DatastoreConfig), Failure> {
        let host = self.host()?;
        let store = self.datastore(&host)?;
        Ok((host, store))
    }
}
