//! Moving over from other managers: what they keep of a guest becomes a guest file, their disks are adopted where they
//! are, and every setting that has no place in ours is told with the reason.

pub mod conf; // the files of vm-bhyve
pub mod pci; // where vm-bhyve puts devices
pub mod switches; // switches of vm-bhyve
pub mod translate; // one guest of vm-bhyve
pub mod vm_bhyve; // a datastore of vm-bhyve

use serde::Serialize;

/// A setting that was not taken over as it stood.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Note {
    /// The setting, as its file spells it.
    pub key: String,
    /// Its value.
    pub value: String,
    /// Why, and what to do.
    pub reason: String,
}

/// Notes of one file.
#[derive(Debug, Clone, Default)]
pub struct Notes(pub Vec<Note>);

impl Notes {
    /// Adds one.
    pub fn add(&mut self, key: impl Into<String>, value: impl Into<String>, reason: impl Into<String>) {
        self.0.push(Note { key: key.into(), value: value.into(), reason: reason.into() });
    }
}
