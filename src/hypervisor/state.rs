//! Saved state: one section per part, with a kind, a version and bytes. A section that is read is not trusted.

use serde::{Serialize, de::DeserializeOwned};

/// The saved state of one part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, serde::Deserialize)]
pub struct Section {
    /// Kind of the part that wrote it: `uart16550`, `i8259`.
    pub kind: String,
    /// Version of the layout of `bytes`, counted from 1 by the kind.
    pub version: u32,
    /// The state, in the kind's own layout.
    pub bytes: Vec<u8>,
}

/// The error for state that cannot be restored.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum StateError {
    /// The section is of another part.
    #[error("state of kind `{found}` given to `{expected}`")]
    Kind {
        /// The expected kind.
        expected: &'static str,
        /// The kind in the section.
        found: String,
    },
    /// The section is of a version that this build does not read.
    #[error("state of `{kind}` has version {found}, this build reads {expected}")]
    Version {
        /// The kind of the part.
        kind: &'static str,
        /// The version that this build reads.
        expected: u32,
        /// The version found.
        found: u32,
    },
    /// The part is not one whose state can be saved.
    #[cfg_attr(not(all(target_os = "linux", target_arch = "x86_64")), allow(dead_code, reason = "only KVM needs it"))]
    #[error("the state of `{kind}` cannot be saved in this version")]
    NotSaved {
        /// The kind of the part.
        kind: &'static str,
    },
    /// The bytes are not a state: too short, too long, or of impossible values.
    #[error("state of `{kind}` is damaged: {why}")]
    Damaged {
        /// The kind of the part.
        kind: &'static str,
        /// Reason why the bytes are no state.
        why: String,
    },
}

impl Section {
    /// Returns a section of `kind` holding `state`.
    pub fn encode<T: Serialize>(kind: &'static str, version: u32, state: &T) -> Section {
        let bytes = serde_json::to_vec(state).expect("device state is plain data, which always serialises");
        Section { kind: kind.to_string(), version, bytes }
    }

    /// Returns the state in this section, if the section is of `kind` and `version` and no bytes are left over.
    ///
    /// The caller still checks the values, since a state may come from anywhere.
    pub fn decode<T: DeserializeOwned>(&self, kind: &'static str, version: u32) -> Result<T, StateError> {
        if self.kind != kind {
            return Err(StateError::Kind { expected: kind, found: self.kind.clone() });
        }
        if self.version != version {
            return Err(StateError::Version { kind, expected: version, found: self.version });
        }
        serde_json::from_slice(&self.bytes).map_err(|e| StateError::Damaged { kind, why: e.to_string() })
    }
}
