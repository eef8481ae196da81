//! Identity of a guest: its UUID, made once, and the MAC addresses that follow from it.

use sha2::{Digest, Sha256};

use crate::config::MacAddr;

/// Returns a random UUID (RFC 9562 version 4).
pub fn random_uuid() -> String {
    let mut bytes = [0u8; 16];
    getrandom::fill(&mut bytes).expect("the host's random numbers are there once it has booted");
    format_uuid(bytes, 4)
}

/// Returns the UUID of a guest whose state was lost: it is always the same for the same words (RFC 9562 version 8).
pub fn derived_uuid(words: &[&str]) -> String {
    let digest = digest(words);
    format_uuid(digest[..16].try_into().expect("16 of 32 bytes"), 8)
}

fn format_uuid(mut bytes: [u8; 16], version: u8) -> String {
    bytes[6] = bytes[6] & 0x0f | version << 4;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

/// Returns the address of the interface `nic` of the guest with this UUID: locally administered, individual, and the
/// same on every boot and every host.
pub fn derived_mac(uuid: &str, nic: &str) -> MacAddr {
    let digest = digest(&[uuid, nic]);
    let mut mac: [u8; 6] = digest[..6].try_into().expect("6 of 32 bytes");
    mac[0] = mac[0] & 0xfc | 0x02;
    MacAddr(mac)
}

/// Returns a short hash of words for a file name.
pub fn short_hash(words: &[&str]) -> String {
    digest(words)[..8].iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A number that follows from the words.
pub fn short_word(words: &[&str]) -> u64 {
    u64::from_le_bytes(digest(words)[..8].try_into().expect("8 of 32 bytes"))
}

fn digest(words: &[&str]) -> [u8; 32] {
    let mut hash = Sha256::new();
    for word in words {
        // The length distinguishes ("ab", "c") from ("a", "bc").
        hash.update((word.len() as u64).to_le_bytes());
        hash.update(word.as_bytes());
    }
    hash.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_derived_mac_is_stable_local_and_individual() {
        let mac = derived_mac("1b4e28ba-2fa1-4d39-883f-0016d3cca427", "net0");
        assert_eq!(mac, derived_mac("1b4e28ba-2fa1-4d39-883f-0016d3cca427", "net0"));
        assert_ne!(mac, derived_mac("1b4e28ba-2fa1-4d39-883f-0016d3cca427", "net1"));
        assert_eq!(mac.0[0] & 3, 2);
    }

    #[test]
    fn a_uuid_says_its_version_and_variant() {
        let uuid = random_uuid();
        assert_eq!(uuid.len(), 36);
        assert_eq!(&uuid[14..15], "4");
        assert!("89ab".contains(&uuid[19..20]));
        assert_ne!(uuid, random_uuid());
        assert_eq!(derived_uuid(&["a", "bc"]), derived_uuid(&["a", "bc"]));
        assert_ne!(derived_uuid(&["a", "bc"]), derived_uuid(&["ab", "c"]));
    }
}
