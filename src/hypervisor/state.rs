//! Saved state: one section a part, of a kind, a version and bytes. What is read back is not trusted.

use serde::{Serialize, de::DeserializeOwned};

/// The saved state of one part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, serde::Deserialize)]
pub struct Section {
    /// Which kind of part wrote it: `uart16550`, `i8259`.
    pub kind: String,
    /// Version of the layout of `bytes`, counted from 1 by the kind.
    pub version: u32,
    /// The state, in the kind's own layout.
    pub bytes: Vec<u8>,
}

/// State that cannot be taken in.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum StateError {
    /// The section is of another part.
    #[error("state of kind `{found}` given to `{expected}`")]
    Kind {
        /// What the part is.
        expected: &'static str,
        /// What the section says.
        found: String,
    },
    /// The section is of a version that this build does not read.
    #[error("state of `{kind}` has version {found}, this build reads {expected}")]
    Version {
        /// What the part is.
        kind: &'static str,
        /// The version that it reads.
        expected: u32,
        /// The version found.
        found: u32,
    },
    /// The bytes are not a state: too short, too long, or of impossible values.
    #[error("state of `{kind}` is damaged: {why}")]
    Damaged {
        /// What the part is.
        kind: &'static str,
        /// What is wrong with it.
        why: String,
    },
}

impl Section {
    /// A section of `kind` holding `state`.
    pub fn encode<T: Serialize>(kind: &'static str, version: u32, state: &T) -> Section {
        let bytes = serde_json::to_vec(state).expect("device state is plain data, which always serialises");
        Section { kind: kind.to_string(), version, bytes }
    }

    /// The state in this section, if it is of `kind` and `version` and nothing is left over.
    ///
    /// The caller still checks the values: a state may come from anywhere.
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
