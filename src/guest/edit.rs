//! One change of a guest file, by an editor or by a command. It is checked before it replaces the file.
//!
//! A command that changes a file has its turn ([`GuestDir::turn`]) from before it reads the file until all consequences
//! of the change are done. So no change is lost. Comments and order stay.

use std::fs;
use std::path::PathBuf;

use toml_edit::DocumentMut;

use crate::config::GuestConfig;
use crate::config::layer::MAX_FILE_BYTES;
use crate::host::files::{rewrite, write_atomically};
use crate::inputs;

use super::create::{absolute_sets, apply_set, drop_entry};
use super::definition::{Definition, Surroundings};
use super::error::{GuestError, Result};
use super::launcher::supervisor_of;
use super::lock::{GuestLock, Role, Turn};
use super::pending;
use super::store::GuestDir;

/// A guest file that is being changed.
pub struct Edit {
    guest: GuestDir,
    file: PathBuf,
    before: Vec<u8>,
    text: String,
    copy: Option<PathBuf>,
    lock: Option<GuestLock>,
    _turn: Turn,
}

impl Edit {
    /// Waits for the turn, and reads the file.
    pub fn begin(guest: &GuestDir, surroundings: Surroundings<'_>) -> Result<Edit> {
        let turn = pending::turn(guest, surroundings)?;
        let file = guest.config_file();
        let before = inputs::read(&file, MAX_FILE_BYTES as u64).map_err(|error| GuestError::input("read", &file, error))?;
        let text = String::from_utf8(before.clone()).map_err(|_| GuestError::user("the file is not UTF-8"))?;
        Ok(Edit { guest: guest.clone(), file, before, text, copy: None, lock: None, _turn: turn })
    }

    /// Keeps the guest from being started until this ends. Returns `false` when a supervisor has it.
    pub fn hold(&mut self) -> Result<bool> {
        if self.lock.is_none() && supervisor_of(&self.guest).is_none() {
            self.lock = Some(self.guest.lock(Role::Command)?);
        }
        Ok(self.lock.is_some())
    }

    /// Makes the copy for an editor. The user corrects its mistakes, so it becomes the [`GuestDir::file`] only after
    /// [`Edit::read_copy`] and [`Edit::save`].
    pub fn copy(&mut self) -> Result<PathBuf> {
        let copy = self.guest.edited_file();
        write_atomically(&copy, &self.before, 0o600).map_err(|error| GuestError::io("write", &copy, error))?;
        self.copy = Some(copy.clone());
        Ok(copy)
    }

    /// Reads the editor's version of the copy.
    pub fn read_copy(&mut self) -> Result<()> {
        let Some(copy) = &self.copy else { return Ok(()) };
        let text = fs::read(copy).map_err(|error| GuestError::io("read", copy, error))?;
        self.text = String::from_utf8(text).map_err(|_| GuestError::user("the file is not UTF-8"))?;
        Ok(())
    }

    /// Writes sets and drops entries, as an editor would.
    pub fn apply(&mut self, sets: &[String], drops: &[(&str, &str)]) -> Result<()> {
        let mut document = self.text.parse::<DocumentMut>().map_err(|error| GuestError::user(error.to_string()))?;
        for (class, id) in drops {
            drop_entry(document.as_table_mut(), class, id);
        }
        for set in absolute_sets(sets) {
            apply_set(document.as_table_mut(), &set)?;
        }
        self.text = document.to_string();
        Ok(())
    }

    /// Changes the document.
    pub fn change(&mut self, change: impl FnOnce(&mut DocumentMut)) -> Result<()> {
        let mut document = self.text.parse::<DocumentMut>().map_err(|error| GuestError::user(error.to_string()))?;
        change(&mut document);
        self.text = document.to_string();
        Ok(())
    }

    /// Returns the configuration of the text as edited so far.
    pub fn config(&self, surroundings: Surroundings<'_>) -> Result<GuestConfig> {
        Ok(Definition::load_text(&self.guest, &self.file, Some(&self.text), surroundings)?.config)
    }

    /// Checks the text and replaces the file. Returns `false` if nothing was changed.
    pub fn save(&self, surroundings: Surroundings<'_>) -> Result<bool> {
        if self.text.as_bytes() == self.before {
            return Ok(false);
        }
        Definition::load_text(&self.guest, &self.file, Some(&self.text), surroundings)?;
        // Other editors do not take turns.
        let now = fs::read(&self.file).unwrap_or_default();
        if now != self.before {
            return Err(GuestError::user(format!("`{}` was changed meanwhile by someone else", self.file.display()))
                .hint("compare the two, then edit again"));
        }
        rewrite(&self.file, self.text.as_bytes()).map_err(|error| GuestError::io("write", &self.file, error))?;
        self.summarize(surroundings);
        Ok(true)
    }

    /// Updates the summary for `list`. While a supervisor runs, only it writes the state, and the next boot updates the
    /// summary.
    fn summarize(&self, surroundings: Surroundings<'_>) {
        let _lock = match &self.lock {
            Some(_) => None,
            None if GuestLock::holder(&self.guest.lock_file()).is_some() => return,
            None => match self.guest.lock(Role::Command) {
                Ok(lock) => Some(lock),
                Err(_) => return,
            },
        };
        if let (Ok(mut state), Ok(definition)) = (self.guest.state(), Definition::load(&self.guest, surroundings)) {
            state.summary = Some(definition.summary(surroundings.host_file));
            let _ = state.save(&self.guest.state_file());
        }
    }

    /// Restores the file after a consequence of the change has failed. Returns that failure, with further errors.
    pub fn put_back(&self, error: GuestError, surroundings: Surroundings<'_>) -> GuestError {
        match rewrite(&self.file, &self.before) {
            Ok(()) => {
                self.summarize(surroundings);
                error
            }
            Err(second) => GuestError::user(format!(
                "{}; and `{}` cannot be put back as it was: {second}",
                error.chain(),
                self.file.display()
            )),
        }
    }

    /// Keeps the copy and returns its path, for an edit that is given up with its mistakes.
    pub fn keep(mut self) -> PathBuf {
        match self.copy.take() {
            Some(copy) => self.guest.keep_edited(&copy).unwrap_or(copy),
            None => self.file.clone(),
        }
    }
}

impl Drop for Edit {
    fn drop(&mut self) {
        if let Some(copy) = &self.copy {
            let _ = fs::remove_file(copy);
        }
    }
}
