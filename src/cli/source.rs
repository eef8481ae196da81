//! Arguments that name a guest file: a path, or a guest of the datastore.

use std::path::{Path, PathBuf};

use super::{App, Failure};
use crate::config::{DatastoreConfig, GUEST_FILE, GUESTS_DIR, GuestRequest, HostConfig, LoadedGuest, load_guest};
use crate::guest::state::{STATE_FILE, settled_engine};
use crate::guest::store::Store;

/// A guest file that an argument names.
pub struct GuestSource {
    /// The guest file.
    pub file: PathBuf,
    /// The guest's name, if it is one of the datastore.
    pub name: Option<String>,
}

impl GuestSource {
    /// Finds the guest file of an argument: with a slash or with `.toml` at its end it is a file, otherwise a guest.
    /// New guests have no such names. An old one with such a name is found if there is no file of that name.
    pub fn find(argument: &str, store: &DatastoreConfig) -> Result<Self, Failure> {
        let guest = store.path.join(GUESTS_DIR).join(argument).join(GUEST_FILE);
        if argument.contains('/') || (argument.ends_with(".toml") && (Path::new(argument).exists() || !guest.is_file())) {
            return Ok(Self { file: argument.into(), name: None });
        }
        if guest.is_file() && !argument.starts_with('.') {
            return Ok(Self { file: guest, name: Some(argument.to_owned()) });
        }
        let hint = match std::path::Path::new(&format!("{argument}.toml")).is_file() {
            true => format!("the file is named `{argument}.toml`"),
            false => "`vmctl list` shows the guests; a file is named with `.toml` at its end, or with a slash".to_owned(),
        };
        Err(Failure::user(format!("there is no guest `{argument}` in `{}`", store.path.display())).hint(hint))
    }

    /// Returns every guest of the datastore.
    pub fn all(store: &DatastoreConfig) -> Vec<Self> {
        let names = Store::new(store, Path::new("")).names().unwrap_or_default().into_iter();
        let source = |name: String| Self { file: store.path.join(GUESTS_DIR).join(&name).join(GUEST_FILE), name: Some(name) };
        names.map(source).filter(|source| source.file.is_file()).collect()
    }

    /// Returns the guest's name for messages.
    pub fn display_name(&self) -> String {
        self.name.clone().unwrap_or_else(|| self.file.display().to_string())
    }

    /// Reads and checks it.
    pub fn load(
        &self,
        host: &HostConfig,
        store: &DatastoreConfig,
        sets: &[String],
    ) -> Result<LoadedGuest, crate::config::Diagnostics> {
        self.load_text(None, host, store, sets)
    }

    /// Checks it, and reads it unless its text is known.
    pub fn load_text(
        &self,
        text: Option<&str>,
        host: &HostConfig,
        store: &DatastoreConfig,
        sets: &[String],
    ) -> Result<LoadedGuest, crate::config::Diagnostics> {
        let Some(name) = &self.name else {
            return load_guest(&GuestRequest { file: &self.file, text, name: None, sets, host, datastore: &store.path });
        };
        // A user's own file is a link: paths in it are relative to its real directory.
        let directory = self.file.parent().unwrap_or(Path::new("/"));
        let file = std::fs::read_link(&self.file).map_or_else(|_| self.file.clone(), |target| directory.join(target));
        // The default engine of an existing guest was fixed when it was made.
        let engine = settled_engine(&directory.join(STATE_FILE)).unwrap_or(host.default_engine);
        let host = &HostConfig { default_engine: engine, ..host.clone() };
        load_guest(&GuestRequest { file: &file, text, name: Some(name), sets, host, datastore: &store.path })
    }
}

impl App {
    /// Returns the host file and the datastore that the user selected. Sweeps the remains of killed commands.
    pub fn host_and_datastore(&self) -> Result<(HostConfig, DatastoreConfig), Failure> {
        let host = self.host()?;
        let store = self.datastore(&host)?;
        Store::new(&store, Path::new("")).sweep();
        Ok((host, store))
    }
}
