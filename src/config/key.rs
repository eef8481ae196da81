//! What the key tables are made of: keys, the kinds of their values, and a table that finds a key by its path.

use std::collections::HashMap;
use std::ops::Deref;
use std::sync::OnceLock;

use crate::choices::{Choice, EngineKind, Support};

/// Kind of a key's value. Every scalar may also be written as an expression in a string.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A table. With `short`, a bare value stands for a table with that one key.
    Table {
        /// The key that a bare value sets.
        short: Option<&'static str>,
    },
    /// An array of tables, merged by their `id`.
    Entries,
    /// Any text.
    Text,
    /// The name of a guest, disk, interface, template...
    Name,
    /// A path. A relative one is relative to its file.
    Path,
    /// true or false.
    Flag,
    /// A whole number within these bounds.
    Integer {
        /// Minimum.
        min: i64,
        /// Maximum.
        max: i64,
    },
    /// A number of bytes with its unit.
    Size,
    /// A duration with its unit.
    Duration,
    /// One of these.
    OneOf(&'static [Choice]),
    /// An array of texts. With `one`, a bare text stands for an array of it.
    Texts {
        /// Whether a bare text is allowed.
        one: bool,
    },
    /// An array of paths.
    Paths,
    /// A table with the user's own names and plain values.
    Map,
    /// A MAC address.
    Mac,
    /// A UUID.
    Uuid,
    /// An IP address.
    Address,
    /// An IPv4 network with its prefix length.
    Network,
    /// A PCI address: slot, slot:function or bus:slot:function.
    Slot,
}

/// One key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Key {
    /// Names joined by dots, without the ids of entries in an array of tables: `disks.size`.
    pub path: &'static str,
    /// Kind of its value.
    pub kind: Kind,
    /// Its default, as it would be written; `None` if there is none, or if it depends on other keys.
    pub default: Option<&'static str>,
    /// The engines that support it.
    pub support: Support,
    /// Description in one or two sentences.
    pub doc: &'static str,
}

/// A table without a short form.
pub(super) const TABLE: Kind = Kind::Table { short: None };

/// Returns a table for which the bare value of one of its keys may be.
pub(super) const fn short(key: &'static str) -> Kind {
    Kind::Table { short: Some(key) }
}

/// Returns a key without a default.
pub(super) const fn key(path: &'static str, kind: Kind, support: Support, doc: &'static str) -> Key {
    Key { path, kind, default: None, support, doc }
}

/// Returns a key with the default that holds without it.
pub(super) const fn with(path: &'static str, kind: Kind, default: &'static str, support: Support, doc: &'static str) -> Key {
    Key { path, kind, default: Some(default), support, doc }
}

/// A table of keys: those of one kind of file, in the order of the manual.
pub struct KeyTable {
    keys: &'static [Key],
    /// Made when the first key is looked up: a file has a hundred keys, and a fleet a thousand files.
    index: OnceLock<Index>,
}

struct Index {
    by_path: HashMap<&'static str, &'static Key>,
    /// Keys by their table, with the last part of their paths, in the order of the key table.
    by_parent: HashMap<&'static str, Vec<(&'static str, &'static Key)>>,
}

impl KeyTable {
    /// Creates a table of these keys.
    pub const fn new(keys: &'static [Key]) -> Self {
        Self { keys, index: OnceLock::new() }
    }

    fn index(&self) -> &Index {
        self.index.get_or_init(|| {
            let mut index = Index { by_path: HashMap::new(), by_parent: HashMap::new() };
            for key in self.keys {
                index.by_path.entry(key.path).or_insert(key);
                index.by_parent.entry(key.parent()).or_default().push((key.leaf(), key));
            }
            index
        })
    }

    /// Returns the key of this path.
    pub fn find(&self, path: &str) -> Option<&'static Key> {
        self.index().by_path.get(path).copied()
    }

    /// Returns the keys right under `table`; those at the top for an empty one.
    pub fn children(&self, table: &str) -> impl Iterator<Item = &'static Key> + use<'_> {
        self.index().by_parent.get(table).into_iter().flatten().map(|(_, key)| *key)
    }

    /// Returns the key of this name right under `table`.
    pub fn child(&self, table: &str, leaf: &str) -> Option<&'static Key> {
        self.index().by_parent.get(table)?.iter().find(|(other, _)| *other == leaf).map(|(_, key)| *key)
    }
}

/// Every key, in order.
impl Deref for KeyTable {
    type Target = [Key];
    fn deref(&self) -> &[Key] {
        self.keys
    }
}

impl Key {
    /// Returns the path of its table; empty at the top.
    pub fn parent(&self) -> &'static str {
        self.path.rsplit_once('.').map_or("", |(parent, _)| parent)
    }
    /// Returns whether its defaults apply only if the table exists: the table of a device, or of one loader.
    pub fn is_optional(&self) -> bool {
        const OPTIONAL: [&str; 9] = ["jail", "kernel", "grub", "uefi", "bhyveload", "graphics", "sound", "tpm", "debug.gdb"];
        OPTIONAL.contains(&self.path)
    }
    /// Returns its default on this engine, as it would be written.
    pub fn default_on(&self, engine: EngineKind) -> Option<&'static str> {
        match (self.path, engine) {
            ("engine", EngineKind::Bhyve) => Some("\"bhyve\""),
            ("engine", EngineKind::Embedded) => Some("\"embedded\""),
            ("loader", EngineKind::Bhyve) => Some("\"uefi\""),
            ("loader", EngineKind::Embedded) => Some("\"kernel\""),
            // The guest's own configuration sets the waiting time of its menu.
            ("grub.timeout", EngineKind::Embedded) => None,
            _ => self.default,
        }
    }
    /// Returns the last part of its path.
    pub fn leaf(&self) -> &'static str {
        self.path.rsplit_once('.').map_or(self.path, |(_, leaf)| leaf)
    }
}

impl Kind {
    /// Returns a description for messages and the manual: `a size`, `true or false`.
    pub fn words(&self) -> String {
        use Kind::*;
        match self {
            Table { short: None } => "a table".into(),
            Table { short: Some(key) } => format!("a table, or its `{key}`"),
            Entries => "an array of tables".into(),
            Text => "a text".into(),
            Name => "a name".into(),
            Path => "a path".into(),
            Flag => "true or false".into(),
            Integer { min, max } => format!("a number from {min} to {max}"),
            Size => "a size".into(),
            Duration => "a duration".into(),
            OneOf(choices) => choices.iter().map(|c| format!("`{}`", c.value)).collect::<Vec<_>>().join(" or "),
            Texts { one: false } => "an array of texts".into(),
            Texts { one: true } => "an array of texts, or one text".into(),
            Paths => "an array of paths".into(),
            Map => "a table of your own".into(),
            Mac => "a MAC address".into(),
            Uuid => "a UUID".into(),
            Address => "an IP address".into(),
            Network => "an IPv4 network".into(),
            Slot => "a PCI address".into(),
        }
    }
}
