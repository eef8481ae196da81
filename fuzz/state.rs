//! The envelope of a machine's saved state, and the sections in it.

use vmctl::testing::hypervisor::state::{open, seal};

/// Reads the bytes as an envelope, and as the sections of one whose head is right.
pub fn saved_state(data: &[u8]) {
    let empty = seal(&[]).expect("it is short");
    let (magic_and_version, content) = (&empty[..12], data);
    let length = (content.len() as u32).to_le_bytes();
    let sum = crc32fast::hash(content).to_le_bytes();
    let whole = [magic_and_version, &length, &sum, content].concat();
    for envelope in [data, &whole] {
        if let Ok(sections) = open(&mut &*envelope) {
            let bytes: usize = sections.iter().map(|section| section.kind.len() + section.bytes.len()).sum();
            assert!(bytes <= envelope.len(), "sections hold no more than the envelope does");
            let again = seal(&sections).expect("as long as it was");
            assert_eq!(open(&mut &*again), Ok(sections));
        }
    }
}
