//! Checksum files of publishers.
//!
//! Three forms, detected line by line: GNU coreutils' `HEX  NAME` and `HEX *NAME` (sha256sum(1), "escaped" names have a
//! leading backslash), BSD's `SHA256 (NAME) = HEX` (sha256(1) of FreeBSD, OpenBSD and NetBSD; Fedora and Rocky write it
//! too), and a file that holds only one bare digest. Other lines (comments, the armour of a clear-signed file) are
//! skipped.
//!
//! **Hostile file**: at most [`MAX_BYTES`] are read, and every line is parsed once.

use super::digest::{Algorithm, Digest};
use super::error::{FetchError, Result};

/// Maximum size of a checksum file.
pub const MAX_BYTES: usize = 4 << 20;

/// Returns the strongest digest of `name`. It is an error if the name is missing, or has two different digests of one
/// kind.
pub fn find(text: &str, name: &str) -> Result<Digest> {
    let mut found: Vec<Digest> = Vec::new();
    let mut names: Vec<&str> = Vec::new();
    let mut bare: Vec<Digest> = Vec::new();
    let mut other = false;
    for line in text.lines().map(str::trim) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        match parse(line) {
            Some((digest, file)) if base(file) == name => found.push(digest),
            Some((_, file)) => names.push(file),
            None => match Digest::from_hex(line) {
                Some(digest) => bare.push(digest),
                None => other = true,
            },
        }
    }
    if found.is_empty() && names.is_empty() && !other && bare.len() == 1 {
        return Ok(bare.remove(0));
    }
    for algorithm in [Algorithm::Sha512, Algorithm::Sha256] {
        let mut of_kind = found.iter().filter(|digest| digest.algorithm() == algorithm);
        let Some(first) = of_kind.next() else { continue };
        if of_kind.any(|digest| digest != first) {
            return Err(FetchError::user(format!("the checksum file has two different digests of `{name}`")));
        }
        return Ok(first.clone());
    }
    let known: Vec<_> = nearest(&names, name).into_iter().map(|file| format!("`{file}`")).collect();
    let error = FetchError::user(format!("the checksum file does not list `{name}`"));
    Err(if known.is_empty() {
        error.hint("it lists no file at all")
    } else {
        error.hint(format!("it lists {}", known.join(", ")))
    })
}

/// Parses a line's digest and name.
fn parse(line: &str) -> Option<(Digest, &str)> {
    if let Some((head, hex)) = line.rsplit_once(" = ")
        && let Some((algorithm, name)) = head.split_once(" (")
        && let Some(name) = name.strip_suffix(')')
    {
        let digest = Digest::from_hex(hex.trim())?;
        return algorithm.eq_ignore_ascii_case(digest.algorithm().name()).then_some((digest, name));
    }
    let line = line.strip_prefix('\\').unwrap_or(line);
    let (hex, name) = line.split_once([' ', '\t'])?;
    let name = name.trim_start();
    let name = name.strip_prefix('*').unwrap_or(name);
    (!name.is_empty()).then_some((Digest::from_hex(hex)?, name))
}

/// Returns the name without its directory, since publishers write `./NAME` and `DIR/NAME` too.
fn base(name: &str) -> &str {
    name.rsplit('/').next().unwrap_or(name)
}

/// Returns up to three names that are most similar.
fn nearest<'a>(names: &[&'a str], name: &str) -> Vec<&'a str> {
    let clip = |text: &str| text.chars().take(100).collect::<String>();
    let mut scored: Vec<_> = names.iter().take(1000).map(|file| (strsim::jaro(&clip(file), &clip(name)), *file)).collect();
    scored.sort_by(|a, b| b.0.total_cmp(&a.0));
    scored.dedup_by_key(|(_, file)| *file);
    scored.into_iter().take(3).map(|(_, file)| file).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(digit: char) -> String {
        String::from(digit).repeat(64)
    }

    #[test]
    fn the_forms_of_gnu_and_bsd_and_a_bare_digest_are_read() {
        let a = Digest::from_hex(&hex('a')).unwrap();
        for text in [
            format!("{}  disk.img\n{}  other.img\n", hex('a'), hex('b')),
            format!("{} *disk.img\n", hex('A')),
            format!("{}  ./images/disk.img\n", hex('a')),
            format!("SHA256 (other.img) = {}\nSHA256 (disk.img) = {}\n", hex('b'), hex('a')),
            format!(
                "-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA256\n\n# disk.img: 5 bytes\nSHA256 (disk.img) = {}\n",
                hex('a')
            ),
            format!("\n{}\n", hex('a')),
        ] {
            assert_eq!(find(&text, "disk.img").unwrap(), a, "{text}");
        }
    }

    #[test]
    fn the_strongest_digest_is_taken() {
        let strong = "c".repeat(128);
        let text = format!("SHA256 (disk.img) = {}\nSHA512 (disk.img) = {strong}\n", hex('a'));
        assert_eq!(find(&text, "disk.img").unwrap().hex(), strong);
    }

    #[test]
    fn a_file_that_lacks_the_name_says_what_it_has() {
        let error = find(&format!("{}  disk-2.img\n", hex('a')), "disk.img").unwrap_err();
        assert_eq!(error.to_string(), "the checksum file does not list `disk.img`");
        assert_eq!(error.next_step(), Some("it lists `disk-2.img`"));
        assert_eq!(find("<html>not found</html>", "disk.img").unwrap_err().next_step(), Some("it lists no file at all"));
        assert!(find(&format!("{}  x\n{}\n", hex('a'), hex('b')), "disk.img").is_err(), "a bare digest among others is nobody's");
    }

    #[test]
    fn a_name_with_two_digests_is_refused() {
        let text = format!("{}  disk.img\n{}  disk.img\n", hex('a'), hex('b'));
        assert!(find(&text, "disk.img").unwrap_err().to_string().contains("two different digests"));
    }

    #[test]
    fn a_digest_of_the_wrong_length_for_its_label_is_passed_over() {
        assert!(find(&format!("SHA512 (disk.img) = {}\n", hex('a')), "disk.img").is_err());
        assert!(find("MD5 (disk.img) = d41d8cd98f00b204e9800998ecf8427e\n", "disk.img").is_err());
    }
}
