//! Saved state: one section per part, with a kind, a version and bytes; and the envelope in which the sections of a
//! machine are kept. Neither is trusted when it is read.
//!
//! Everything in it is in postcard's binary form (<https://postcard.jamesmunns.com/wire-format>). The envelope is, with all
//! numbers little-endian:
//!
//! | bytes | |
//! |---|---|
//! | 0 to 7 | [`MAGIC`] |
//! | 8 to 11 | version of the envelope, [`VERSION`] |
//! | 12 to 15 | length of the sections in bytes, at most [`MAX_BYTES`] |
//! | 16 to 19 | their CRC-32 |
//! | from 20 | the sections |

use std::io::Read;

use serde::{Serialize, de::DeserializeOwned};

/// The first bytes of an envelope.
pub const MAGIC: [u8; 8] = *b"vmctlst\0";
/// The version of the envelope that this build writes and reads.
pub const VERSION: u32 = 1;
/// Maximum number of bytes of the sections of one machine. The memory of the guest is not among them.
pub const MAX_BYTES: u32 = 64 << 20;
const HEADER: usize = 20;

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
    #[allow(dead_code, reason = "only vmm(4) needs it")]
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
        let bytes = postcard::to_stdvec(state).expect("device state is plain data, which always serialises");
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
        parse(kind, &self.bytes)
    }
}

fn parse<T: DeserializeOwned>(kind: &'static str, bytes: &[u8]) -> Result<T, StateError> {
    let damaged = |why: String| StateError::Damaged { kind, why };
    match postcard::take_from_bytes(bytes) {
        Ok((state, [])) => Ok(state),
        Ok((_, left)) => Err(damaged(format!("{} bytes too many", left.len()))),
        Err(error) => Err(damaged(error.to_string())),
    }
}

const MACHINE: &str = "machine";

/// Returns the envelope with `sections` in it.
pub fn seal(sections: &[Section]) -> Result<Vec<u8>, StateError> {
    let content = postcard::to_stdvec(sections).expect("sections are plain data, which always serialises");
    let length = u32::try_from(content.len()).ok().filter(|&length| length <= MAX_BYTES);
    let length = length.ok_or_else(|| StateError::Damaged { kind: MACHINE, why: too_long(content.len() as u64) })?;
    let mut envelope = Vec::with_capacity(HEADER + content.len());
    envelope.extend(MAGIC);
    for word in [VERSION, length, crc32fast::hash(&content)] {
        envelope.extend(word.to_le_bytes());
    }
    envelope.extend(content);
    Ok(envelope)
}

/// Returns the sections of the envelope that `from` yields. Length and checksum are looked at before anything else is, and
/// no more than an envelope may have is read.
pub fn open(from: &mut impl Read) -> Result<Vec<Section>, StateError> {
    let damaged = |why: String| StateError::Damaged { kind: MACHINE, why };
    let cut = |error: std::io::Error| damaged(format!("it cannot be read whole: {error}"));
    let mut header = [0; HEADER];
    from.read_exact(&mut header).map_err(cut)?;
    if header[..8] != MAGIC {
        return Err(damaged("it does not begin as a state does".into()));
    }
    let word = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().expect("four bytes"));
    let (version, length, sum) = (word(8), word(12), word(16));
    if version != VERSION {
        return Err(StateError::Version { kind: MACHINE, expected: VERSION, found: version });
    }
    if length > MAX_BYTES {
        return Err(damaged(too_long(length.into())));
    }
    let mut content = Vec::new();
    from.take(length.into()).read_to_end(&mut content).map_err(cut)?;
    if content.len() != length as usize {
        return Err(damaged(format!("it ends after {} of {length} bytes", content.len())));
    }
    if crc32fast::hash(&content) != sum {
        return Err(damaged("its checksum is wrong".into()));
    }
    parse(MACHINE, &content)
}

fn too_long(length: u64) -> String {
    format!("it has {length} bytes, of which there may be {MAX_BYTES}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sections() -> Vec<Section> {
        vec![Section::encode("i8259", 1, &(1u8, 0x1234_5678u32)), Section::encode("nothing", 7, &())]
    }

    #[test]
    fn an_envelope_gives_back_what_was_put_in() {
        let sealed = seal(&sections()).unwrap();
        assert_eq!(sealed[..16], *b"vmctlst\0\x01\0\0\0\x19\0\0\0");
        assert_eq!(open(&mut &sealed[..]).unwrap(), sections());
        assert_eq!(sections()[0].decode::<(u8, u32)>("i8259", 1).unwrap(), (1, 0x1234_5678));
    }

    #[test]
    fn an_envelope_that_is_cut_changed_or_too_long_is_refused() {
        let sealed = seal(&sections()).unwrap();
        for cut in 0..sealed.len() {
            assert!(open(&mut &sealed[..cut]).is_err(), "cut to {cut} bytes");
        }
        for bit in 0..sealed.len() * 8 {
            let mut changed = sealed.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert!(open(&mut &changed[..]).is_err(), "bit {bit} changed");
        }
        let newer = [&sealed[..8], &[2], &sealed[9..]].concat();
        assert_eq!(open(&mut &newer[..]), Err(StateError::Version { kind: MACHINE, expected: 1, found: 2 }));
    }

    #[test]
    fn the_length_is_checked_before_anything_is_read() {
        struct Endless(Vec<u8>);
        impl Read for Endless {
            fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
                assert!(!self.0.is_empty(), "it reads behind the header");
                let taken = buf.len().min(self.0.len());
                buf[..taken].copy_from_slice(&self.0[..taken]);
                self.0.drain(..taken);
                Ok(taken)
            }
        }
        let mut header = seal(&sections()).unwrap()[..HEADER].to_vec();
        header[12..16].copy_from_slice(&(MAX_BYTES + 1).to_le_bytes());
        let error = open(&mut Endless(header)).unwrap_err().to_string();
        assert_eq!(error, "state of `machine` is damaged: it has 67108865 bytes, of which there may be 67108864");
    }
}
