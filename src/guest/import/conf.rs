//! vm-bhyve's files: guests, templates, `system.conf`.
//!
//! Format (`sample-templates/config.sample`): `key="value"` lines, the quotes optional; a key begins in the first
//! column, other lines are ignored; `#` begins a comment even inside quotes; the last line of a key counts.
//!
//! Hostile input: a file of more than [`LIMIT`] bytes is refused, everything else is read in one pass.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use crate::inputs;

use super::super::error::{GuestError, Result};

/// Maximum size of a file.
const LIMIT: u64 = 1 << 20;

/// The settings of one file, with those that were read: the rest at the end is unknown.
#[derive(Debug, Default)]
pub struct Conf {
    values: BTreeMap<String, String>,
    seen: RefCell<BTreeSet<String>>,
}

impl Conf {
    /// Reads a file.
    pub fn read(path: &Path) -> Result<Conf> {
        let text = inputs::read(path, LIMIT).map_err(|error| GuestError::input("read", path, error))?;
        Ok(Conf::parse(&String::from_utf8_lossy(&text)))
    }

    /// Reads a text.
    pub fn parse(text: &str) -> Conf {
        let mut values = BTreeMap::new();
        for line in text.lines() {
            let line = line.split('#').next().unwrap_or_default();
            let Some((key, value)) = line.split_once('=') else { continue };
            let is_key = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.');
            if key.is_empty() || !key.bytes().all(is_key) {
                continue;
            }
            let value = value.trim();
            let value = ['"', '\''].iter().find_map(|q| value.strip_prefix(*q)?.strip_suffix(*q)).unwrap_or(value);
            values.insert(key.to_owned(), value.to_owned());
        }
        Conf { values, seen: RefCell::default() }
    }

    /// Returns a setting that is not empty.
    pub fn get(&self, key: &str) -> Option<&str> {
        let (key, value) = self.values.get_key_value(key)?;
        self.seen.borrow_mut().insert(key.clone());
        Some(value.as_str()).filter(|value| !value.is_empty())
    }

    /// Returns a setting that means yes or no: anything except empty, no, off, false and 0 is yes.
    pub fn yes(&self, key: &str) -> Option<bool> {
        self.get(key).map(is_yes)
    }

    /// Returns the settings `PREFIX0SUFFIX`, `PREFIX1SUFFIX`... up to the first that is empty.
    pub fn numbered<'a>(&'a self, prefix: &str, suffix: &str) -> Vec<&'a str> {
        (0..).map_while(|number: u32| self.get(&format!("{prefix}{number}{suffix}"))).collect()
    }

    /// Returns the settings that were not read and are not empty.
    pub fn unseen(&self) -> Vec<(String, String)> {
        let seen = self.seen.borrow();
        let unseen = self.values.iter().filter(|(key, value)| !seen.contains(*key) && !value.is_empty());
        unseen.map(|(key, value)| (key.clone(), value.clone())).collect()
    }
}

/// Returns whether vm-bhyve accepts the text as yes.
pub fn is_yes(text: &str) -> bool {
    !matches!(text.to_ascii_lowercase().as_str(), "" | "no" | "off" | "false" | "0")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_as_vm_bhyve_reads_them() {
        let conf = Conf::parse(
            "cpu=1\nmemory=\"512M\" # small\n loader=\"grub\"\nvnc_password=\"a#b\"\ncpu=\"2\"\nempty=\"\"\nnonsense\n=x\n",
        );
        assert_eq!(conf.get("cpu"), Some("2"));
        assert_eq!(conf.get("memory"), Some("512M"));
        assert_eq!(conf.get("loader"), None);
        assert_eq!(conf.get("empty"), None);
        assert_eq!(conf.unseen(), [("vnc_password".to_owned(), "\"a".to_owned())]);
    }

    #[test]
    fn numbered_settings_end_at_the_first_gap() {
        let conf = Conf::parse("disk0_name=\"a\"\ndisk1_name=\"b\"\ndisk3_name=\"d\"\n");
        assert_eq!(conf.numbered("disk", "_name"), ["a", "b"]);
        assert_eq!(conf.unseen(), [("disk3_name".to_owned(), "d".to_owned())]);
    }

    #[test]
    fn yes_is_anything_but_no() {
        for (text, yes) in [("yes", true), ("ON", true), ("csm", true), ("No", false), ("off", false), ("0", false), ("", false)]
        {
            assert_eq!(is_yes(text), yes, "{text}");
        }
    }

    #[test]
    fn any_text_is_read_without_harm() {
        let text = "a=\"b\nc='d'\n\"=\"\n#=#\nä=ö\nx=\"\"\"\n";
        for cut in (0..text.len()).filter(|cut| text.is_char_boundary(*cut)) {
            let _ = Conf::parse(&text[cut..]);
        }
    }
}
