//! GRUB's environment block: a file of 1024 bytes that a boot loader can change without support for writing files
//! (GRUB, `grub-core/lib/envblk.c`, `include/grub/lib/envblk.h`).
//!
//! It has a signature line, then lines `name=value`, then `#` up to its end. A backslash keeps the character after it,
//! even a line's end. Other lines that begin with `#` are comments and stay.

/// Size of a block.
pub const BYTES: usize = 1024;
/// First line of a block.
pub const SIGNATURE: &[u8] = b"# GRUB Environment Block\n";
/// Maximum number of variables that are read from a block.
const MAX_VARIABLES: usize = 1024;

/// Error of a block that cannot take a value, in GRUB's words if it has some.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EnvblkError {
    /// The block has another size, another first line, or other characters than `#` after its lines.
    #[error("invalid environment block")]
    Invalid,
    /// There is no room for the value.
    #[error("environment block too small")]
    TooSmall,
    /// The name would be read back as something else.
    #[error("no name that an environment block can hold")]
    BadName,
}

/// Returns the lines, each with its end if it has one.
fn lines(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut escaped = false;
    bytes.split_inclusive(move |&byte| {
        let ends = byte == b'\n' && !escaped;
        escaped = byte == b'\\' && !escaped;
        ends
    })
}

/// Returns the name and value of a line, as they are written.
fn variable(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let line = line.strip_suffix(b"\n").filter(|line| !line.starts_with(b"#"))?;
    let at = line.iter().position(|&byte| byte == b'=')?;
    Some((&line[..at], &line[at + 1..]))
}

/// Returns the variables of a block, in the order of the block.
pub fn variables(bytes: &[u8]) -> Vec<(String, String)> {
    let plain = |value: &[u8]| {
        let mut plain = Vec::new();
        let mut left = value.iter().copied();
        while let Some(byte) = left.next() {
            plain.extend(if byte == b'\\' { left.next() } else { Some(byte) });
        }
        String::from_utf8_lossy(&plain).into_owned()
    };
    let found = lines(bytes).filter_map(variable).take(MAX_VARIABLES);
    found.map(|(name, value)| (String::from_utf8_lossy(name).into_owned(), plain(value))).collect()
}

/// Returns the block with a variable set, or without it. All other bytes stay.
pub fn with(block: &[u8], name: &str, value: Option<&str>) -> Result<Vec<u8>, EnvblkError> {
    if block.len() != BYTES || !block.starts_with(SIGNATURE) {
        return Err(EnvblkError::Invalid);
    }
    if name.is_empty() || name.starts_with('#') || name.contains(['=', '\n', '\\']) {
        return Err(EnvblkError::BadName);
    }
    let mut new_line = value.map(|value| {
        let escaped = value.replace('\\', "\\\\").replace('\n', "\\\n");
        format!("{name}={escaped}\n").into_bytes()
    });
    let mut changed = Vec::with_capacity(BYTES);
    for line in lines(block) {
        if !line.ends_with(b"\n") {
            // The padding. An escape before it would make the rest a value.
            if line.iter().any(|&byte| byte != b'#') {
                return Err(EnvblkError::Invalid);
            }
        } else if variable(line).is_some_and(|(found, _)| found == name.as_bytes()) {
            changed.extend(new_line.take().unwrap_or_default());
        } else {
            changed.extend_from_slice(line);
        }
    }
    changed.extend(new_line.unwrap_or_default());
    if changed.len() > BYTES {
        return Err(EnvblkError::TooSmall);
    }
    changed.resize(BYTES, b'#');
    Ok(changed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(lines: &str) -> Vec<u8> {
        let mut bytes = [SIGNATURE, lines.as_bytes()].concat();
        bytes.resize(BYTES, b'#');
        bytes
    }

    fn pairs(bytes: &[u8]) -> Vec<(String, String)> {
        variables(bytes)
    }

    #[test]
    fn a_variable_is_set_in_its_place_added_behind_the_others_and_taken_out() {
        let start = block("# WARNING: Do not edit\na=1\nb=2\n");
        assert_eq!(with(&start, "a", Some("long er")).unwrap(), block("# WARNING: Do not edit\na=long er\nb=2\n"));
        assert_eq!(with(&start, "c", Some("")).unwrap(), block("# WARNING: Do not edit\na=1\nb=2\nc=\n"));
        assert_eq!(with(&start, "a", None).unwrap(), block("# WARNING: Do not edit\nb=2\n"));
        assert_eq!(with(&start, "none", None).unwrap(), start);
        // A variable that occurs twice occurs once afterwards.
        assert_eq!(with(&block("a=1\na=2\n"), "a", Some("3")).unwrap(), block("a=3\n"));
    }

    #[test]
    fn what_is_written_is_read_back() {
        for value in ["", "x", "a\\b", "two\nlines", "\\\n\\", "ends in \\", "# = \u{e4}", "#"] {
            let written = with(&block("z=9\n"), "name", Some(value)).unwrap();
            assert_eq!(written.len(), BYTES);
            let expected = [("z".to_owned(), "9".to_owned()), ("name".to_owned(), value.to_owned())];
            assert_eq!(pairs(&written), expected);
            assert_eq!(with(&written, "name", None).unwrap(), block("z=9\n"));
        }
    }

    #[test]
    fn what_does_not_fit_and_what_is_no_block_is_refused() {
        let room = BYTES - SIGNATURE.len() - "n=\n".len();
        assert_eq!(with(&block(""), "n", Some(&"x".repeat(room))).map(|block| block.len()), Ok(BYTES));
        assert_eq!(with(&block(""), "n", Some(&"x".repeat(room + 1))), Err(EnvblkError::TooSmall));
        assert_eq!(with(&[b'#'; BYTES], "n", None), Err(EnvblkError::Invalid));
        assert_eq!(with(&block("")[..1023], "n", None), Err(EnvblkError::Invalid));
        assert_eq!(with(&[block(""), block("")].concat(), "n", None), Err(EnvblkError::Invalid));
        let mut broken = block("a=1\n");
        broken[1000] = b'x';
        assert_eq!(with(&broken, "n", None), Err(EnvblkError::Invalid));
        for name in ["", "#a", "a=b", "a\nb", "a\\"] {
            assert_eq!(with(&block(""), name, Some("1")), Err(EnvblkError::BadName), "{name}");
        }
    }

    #[test]
    fn a_file_that_is_no_block_still_has_lines() {
        assert_eq!(pairs(b"a=1\nno line\n#b=2\nc=3"), [("a".to_owned(), "1".to_owned())]);
        assert!(pairs(b"").is_empty() && pairs(&[0xff; 64]).is_empty());
    }
}
