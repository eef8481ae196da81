//! OpenBSD's signify(1): Ed25519 signatures of checksum files.
//!
//! A signature file with an embedded message (`signify -S -e`, OpenBSD's `SHA256.sig`) is a line `untrusted comment: ...`, a line
//! of base64, and the message. The base64 holds the two bytes `Ed`, eight bytes of key number and the signature of 64
//! bytes; a public key is `Ed`, its number and 32 bytes (usr.bin/signify/signify.c: struct sig, struct pubkey).

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::signature::{ED25519, UnparsedPublicKey};

use super::error::{FetchError, Result};

const ALGORITHM: &[u8; 2] = b"Ed";
const KEY_BYTES: usize = 2 + 8 + 32;
const SIGNATURE_BYTES: usize = 2 + 8 + 64;

/// Returns the message of a signature file, if `key` (base64, as in a `.pub` file) signed it.
pub fn open<'a>(file: &'a str, key: &str) -> Result<&'a str> {
    let malformed = |what: &str| FetchError::user(format!("the signature file {what}"));
    let (comment, rest) = file.split_once('\n').ok_or_else(|| malformed("is cut short"))?;
    if !comment.starts_with("untrusted comment: ") {
        return Err(malformed("does not begin with signify's comment"));
    }
    let (signature, message) = rest.split_once('\n').ok_or_else(|| malformed("is cut short"))?;
    let signature =
        decode(signature.trim_end(), SIGNATURE_BYTES).ok_or_else(|| malformed("has no Ed25519 signature of signify"))?;
    let key = decode(key.trim(), KEY_BYTES).ok_or_else(|| FetchError::user(format!("`{key}` is not a public key of signify")))?;
    if signature[2..10] != key[2..10] {
        return Err(FetchError::user("the checksum file is signed with another key than the catalogue names")
            .hint("a newer release has a newer key; do not use the file until the catalogue has it"));
    }
    UnparsedPublicKey::new(&ED25519, &key[10..])
        .verify(message.as_bytes(), &signature[10..])
        .map_err(|_| FetchError::user("the signature of the checksum file is wrong: it was changed after it was signed"))?;
    Ok(message)
}

/// Decodes base64 of exactly `len` bytes that begin with the algorithm's mark.
fn decode(text: &str, len: usize) -> Option<Vec<u8>> {
    let bytes = STANDARD.decode(text).ok()?;
    (bytes.len() == len && bytes.starts_with(ALGORITHM)).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ring::signature::{Ed25519KeyPair, KeyPair};

    const NUMBER: &[u8; 8] = b"key-no-1";

    fn encode(number: &[u8; 8], bytes: &[u8]) -> String {
        STANDARD.encode([&ALGORITHM[..], number, bytes].concat())
    }

    fn signed(message: &str) -> (String, String) {
        let pair = Ed25519KeyPair::from_seed_unchecked(&[7; 32]).unwrap();
        let key = encode(NUMBER, pair.public_key().as_ref());
        let signature = encode(NUMBER, pair.sign(message.as_bytes()).as_ref());
        (format!("untrusted comment: verify with x.pub\n{signature}\n{message}"), key)
    }

    #[test]
    fn a_signed_message_comes_out_and_a_changed_one_does_not() {
        let (file, key) = signed("SHA256 (install.iso) = 00\n");
        assert_eq!(open(&file, &key).unwrap(), "SHA256 (install.iso) = 00\n");
        let changed = file.replace("= 00", "= 01");
        assert!(open(&changed, &key).unwrap_err().to_string().contains("signature of the checksum file is wrong"));
    }

    #[test]
    fn another_key_and_a_file_without_a_signature_are_told_apart() {
        let (file, key) = signed("x\n");
        let other = encode(b"key-no-2", &[1; 32]);
        assert!(open(&file, &other).unwrap_err().to_string().contains("another key"));
        assert!(open("SHA256 (a) = 00\nb\n", &key).unwrap_err().to_string().contains("signify's comment"));
        assert!(open("untrusted comment: x\n!!!!\nm\n", &key).unwrap_err().to_string().contains("no Ed25519 signature"));
        assert!(open("", &key).is_err());
    }

    #[test]
    fn a_key_of_openbsd_is_read() {
        assert!(decode("RWSMSt0erHTctUxq2JDAgQRo64ztikp8JvQeiSPte3NZ0Geou0TkTEiE", KEY_BYTES).is_some());
    }
}
