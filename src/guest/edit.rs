//! One change of a guest file: by an editor or by a command, checked before it takes the file's place.
//!
//! Whoever changes a file has its turn ([`GuestDir::turn`]) from before it is read until after what follows from the
//! change is done, so that no change is lost. Comments and order stay.

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
    pub fn begin(guest: &GuestDir, around: Surroundings<'_>) -> Result<Edit> {
        let turn = pending::turn(guest, around)?;
        let file = guest.config_file();
        let before = inputs::read(&file, MAX_FILE_BYTES as u64).map_err(|error| GuestError::input("read", &file, error))?;
        let text = String::from_utf8(before.clone()).map_err(|_| GuestError::user("the file is not UTF-8"))?;
        Ok(Edit { guest: guest.clone(), file, before, text, copy: None, lock: None, _turn: turn })
    }

    /// Keeps the guest from being started until this ends; `false` when a supervisor has it.
    pub fn hold(&mut self) -> Result<bool> {
        if self.lock.is_none() && supervisor_of(&self.guest).is_none() {
            self.lock = Some(self.guest.lock(Role::Command)?);
        }
        Ok(self.lock.is_some())
    }

    /// Makes the copy that an editor is given. Its mistakes are the user's to correct, so that it is no [`GuestDir::file`]
    /// before [`Edit::read_copy`] and [`Edit::save`].
    pub fn copy(&mut self) -> Result<PathBuf> {
        let copy = self.guest.edited_file();
        write_atomically(&copy, &self.before, 0o600).map_err(|error| GuestError::io("write", &copy, error))?;
        self.copy = Some(copy.clone());
        Ok(copy)
    }

    /// Takes over what the editor made of the copy.
    pub fn read_copy(&mut self) -> Result<()> {
        let Some(copy) = &self.copy else { return Ok(()) };
        let text = fs::read(copy).map_err(|error| GuestError::io("read", copy, error))?;
        self.text = String::from_utf8(text).map_err(|_| GuestError::user("the file is not UTF-8"))?;
        Ok(())
    }

    /// Writes sets, and drops entries, as an editor would.
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

    /// What the file would mean as it is edited now.
    pub fn config(&self, around: Surroundings<'_>) -> Result<GuestConfig> {
        Ok(Definition::load_text(&self.guest, &self.file, Some(&self.text), around)?.config)
    }

    /// Checks the text and puts it in the file's place; `false` when nothing was changed.
    pub fn save(&self, around: Surroundings<'_>) -> Result<bool> {
        if self.text.as_bytes() == self.before {
            return Ok(false);
        }
        Definition::load_text(&self.guest, &self.file, Some(&self.text), around)?;
        // Editors of the user's know nothing of turns.
        let now = fs::read(&self.file).unwrap_or_default();
        if now != self.before {
            return Err(GuestError::user(format!("`{}` was changed meanwhile by someone else", self.file.display()))
                .hint("compare the two, then edit again"));
        }
        rewrite(&self.file, self.text.as_bytes()).map_err(|error| GuestError::io("write", &self.file, error))?;
        self.summarize(around);
        Ok(true)
    }

    /// What `list` shows. While a supervisor has the state, it is the only one to write it; the next boot does.
    fn summarize(&self, around: Surroundings<'_>) {
        let _lock = match &self.lock {
            Some(_) => None,
            None if GuestLock::holder(&self.guest.lock_file()).is_some() => return,
            None => match self.guest.lock(Role::Command) {
                Ok(lock) => Some(lock),
                Err(_) => return,
            },
        };
        if let (Ok(mut state), Ok(definition)) = (self.guest.state(), Definition::load(&self.guest, around)) {
            state.summary = Some(definition.summary(around.host_file));
            let _ = state.save(&self.guest.state_file());
        }
    }

    /// Puts the file back as it was, after what follows from the change has failed; returns that failure, with what more
    /// went wrong.
    pub fn put_back(&self, error: GuestError, around: Surroundings<'_>) -> GuestError {
        match rewrite(&self.file, &self.before) {
            Ok(()) => {
                self.summarize(around);
                error
            }
            Err(second) => GuestError::user(format!(
                "{}; and `{}` cannot be put back as it was: {second}",
                error.chain(),
                self.file.display()
            )),
        }
    }

    /// Keeps the copy and says where: for an edit that is given up with its mistakes.
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
