//! Migration from other managers. Their configuration of a guest becomes a guest file, their disks are used where they
//! are, and every setting without a counterpart is reported with the reason.

pub mod conf; // the files of vm-bhyve
pub mod pci; // PCI addresses of vm-bhyve
pub mod switches; // switches of vm-bhyve
pub mod translate; // one guest of vm-bhyve
pub mod vm_bhyve; // a datastore of vm-bhyve

use serde::Serialize;

/// A note about a setting that was not imported unchanged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Note {
    /// The setting, as written in its file.
    pub key: String,
    /// Its value.
    pub value: String,
    /// The reason, and what to do.
    pub reason: String,
}

/// Notes of one file.
#[derive(Debug, Clone, Default)]
pub struct Notes(pub Vec<Note>);

impl Notes {
    /// Adds a note.
    pub fn add(&mut self, key: impl Into<String>, value: impl Into<String>, reason: impl Into<String>) {
        self.0.push(Note { key: key.into(), value: value.into(), reason: reason.into() });
    }
}
