//! What the key table is made of: the kinds of values, and which engine acts on a key.

use std::collections::HashMap;
use std::sync::RwLock;

use super::meant::EngineKind;

/// What a key's value may be. Every scalar may also be written as an expression in a string.
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
    /// A path; a relative one is relative to the file that it stands in.
    Path,
    /// true or false.
    Flag,
    /// A whole number within these bounds.
    Integer {
        /// Least.
        min: i64,
        /// Most.
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
    /// A table of names and plain values that are the user's own.
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

/// One value of a [`Kind::OneOf`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Choice {
    /// As written.
    pub value: &'static str,
    /// Whether this build acts on it.
    pub support: Support,
    /// What it means.
    pub doc: &'static str,
}

/// Which engines act on a key or a value. What the guest's engine does not act on is refused, never ignored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Support {
    /// Every engine.
    Now,
    /// bhyve(8) alone.
    Bhyve,
    /// The hypervisor in this program alone.
    Embedded,
    /// None of this version; the text says what to do until then.
    Later(&'static str),
}

impl Support {
    /// Whether this engine acts on it; for `None`, whether any does.
    pub fn on(self, engine: Option<EngineKind>) -> bool {
        match self {
            Self::Now => true,
            Self::Bhyve => engine != Some(EngineKind::Embedded),
            Self::Embedded => engine != Some(EngineKind::Bhyve),
            Self::Later(_) => false,
        }
    }

    /// For whoever writes a file: nothing for what every engine acts on.
    pub fn words(self) -> &'static str {
        match self {
            Self::Now => "",
            Self::Bhyve => "Only with `engine = \"bhyve\"`.",
            Self::Embedded => "Only with `engine = \"embedded\"`.",
            Self::Later(_) => "Not in this version.",
        }
    }
}

/// One key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Key {
    /// Names joined by dots; the entries of an array of tables are not counted: `disks.size`.
    pub path: &'static str,
    /// What it may be.
    pub kind: Kind,
    /// What holds without it, as it would be written; `None` when nothing does, or when that depends on other keys.
    pub default: Option<&'static str>,
    /// Whether this build acts on it.
    pub support: Support,
    /// One or two sentences.
    pub doc: &'static str,
}

/// A table of keys, by path and by the table that a key is in. A file has a hundred keys and is looked up in as often.
struct Index {
    by_path: HashMap<&'static str, &'static Key>,
    /// With the last part of their paths, in the order of the table.
    by_parent: HashMap<&'static str, Vec<(&'static str, &'static Key)>>,
}

/// One for each table, made when it is first asked for. The address tells tables apart, and is never read through.
static INDEXES: RwLock<Vec<(usize, &'static Index)>> = RwLock::new(Vec::new());

fn index(keys: &'static [Key]) -> &'static Index {
    let address = keys.as_ptr().addr();
    let known =
        |indexes: &[(usize, &'static Index)]| indexes.iter().find(|(other, _)| *other == address).map(|(_, index)| *index);
    if let Some(index) = known(&INDEXES.read().expect("no panic happens under this lock")) {
        return index;
    }
    let mut indexes = INDEXES.write().expect("no panic happens under this lock");
    known(&indexes).unwrap_or_else(|| {
        let mut index = Index { by_path: HashMap::new(), by_parent: HashMap::new() };
        for key in keys {
            index.by_path.entry(key.path).or_insert(key);
            index.by_parent.entry(key.parent()).or_default().push((key.leaf(), key));
        }
        let index: &'static Index = Box::leak(Box::new(index));
        indexes.push((address, index));
        index
    })
}

/// The key of that path.
pub fn find(keys: &'static [Key], path: &str) -> Option<&'static Key> {
    index(keys).by_path.get(path).copied()
}

/// The keys right under `table`; those at the top for an empty one.
pub fn children<'a>(keys: &'static [Key], table: &'a str) -> impl Iterator<Item = &'static Key> + 'a {
    index(keys).by_parent.get(table).into_iter().flatten().map(|(_, key)| *key)
}

/// The key of that name right under `table`.
pub fn child(keys: &'static [Key], table: &str, leaf: &str) -> Option<&'static Key> {
    index(keys).by_parent.get(table)?.iter().find(|(other, _)| *other == leaf).map(|(_, key)| *key)
}

impl Key {
    /// The path of the table that it is in; empty at the top.
    pub fn parent(&self) -> &'static str {
        self.path.rsplit_once('.').map_or("", |(parent, _)| parent)
    }
    /// Whether its defaults hold only when it is there: the table of a device, or of one loader.
    pub fn is_optional(&self) -> bool {
        const OPTIONAL: [&str; 9] = ["jail", "kernel", "grub", "uefi", "bhyveload", "graphics", "sound", "tpm", "debug.gdb"];
        OPTIONAL.contains(&self.path)
    }
    /// What holds on this engine without it, as it would be written.
    pub fn default_on(&self, engine: EngineKind) -> Option<&'static str> {
        match (self.path, engine) {
            ("engine", EngineKind::Bhyve) => Some("\"bhyve\""),
            ("engine", EngineKind::Embedded) => Some("\"embedded\""),
            ("loader", EngineKind::Bhyve) => Some("\"uefi\""),
            ("loader", EngineKind::Embedded) => Some("\"kernel\""),
            // The guest's own configuration says how long its menu waits.
            ("grub.timeout", EngineKind::Embedded) => None,
            _ => self.default,
        }
    }
    /// The last part of its path.
    pub fn leaf(&self) -> &'static str {
        self.path.rsplit_once('.').map_or(self.path, |(_, leaf)| leaf)
    }
}

impl Kind {
    /// In words, for messages and the manual: `a size`, `true or false`.
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
