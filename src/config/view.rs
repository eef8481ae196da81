//! Reading values out of a tree that the walk has passed: a missing one is the key table's default.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::diagnostic::Place;
use super::key::{Key, KeyTable, Kind};
use super::layer::{Node, Table, Value};
use crate::choices::{Choices, EngineKind};
use crate::units::{ByteSize, parse_duration};

/// One table of the tree, there or not.
#[derive(Clone, Copy)]
pub struct View<'a> {
    table: Option<&'a Table>,
    /// Where the table stands, or what it would stand in.
    pub place: &'a Place,
    path: &'static str,
    keys: &'static KeyTable,
    directory: &'a Path,
    engine: EngineKind,
}

impl<'a> View<'a> {
    /// The whole tree. `directory` is what a relative path is relative to if its file has none.
    /// `engine` decides some defaults.
    pub fn new(table: &'a Table, place: &'a Place, keys: &'static KeyTable, directory: &'a Path, engine: EngineKind) -> Self {
        Self { table: Some(table), place, path: "", keys, directory, engine }
    }

    /// A part of a tree that stands alone: the table at `path` of the key table. No default of it depends on an engine.
    pub fn part(table: &'a Table, place: &'a Place, keys: &'static KeyTable, path: &'static str) -> Self {
        Self { table: Some(table), place, path, keys, directory: Path::new("/"), engine: EngineKind::Embedded }
    }

    fn key(&self, leaf: &str) -> &'static Key {
        self.keys.child(self.path, leaf).expect("asked for by its name in the key table")
    }

    /// The table itself, if it is there.
    pub fn whole(&self) -> Option<&'a Table> {
        self.table
    }

    /// The value that was written.
    pub fn node(&self, leaf: &str) -> Option<&'a Node> {
        self.table?.get(leaf)
    }

    /// The value that was written, if it is not the default: a rule about a key that does nothing leaves a file alone
    /// that says what holds anyway.
    pub fn unlike_default(&self, leaf: &str) -> Option<&'a Node> {
        let default = self.key(leaf).default_on(self.engine).map(literal);
        self.node(leaf).filter(|node| Some(&node.value) != default.as_ref())
    }

    /// Where a key is set, or else where its table is.
    pub fn place_of(&self, leaf: &str) -> &'a Place {
        self.node(leaf).map_or(self.place, |node| &node.place)
    }

    /// A table in this one.
    pub fn table(&self, leaf: &str) -> View<'a> {
        let node = self.node(leaf);
        let table = match node.map(|node| &node.value) {
            Some(Value::Table(table)) => Some(table),
            _ => None,
        };
        View { table, place: node.map_or(self.place, |node| &node.place), path: self.key(leaf).path, ..*self }
    }

    /// The entries of an array of tables.
    pub fn entries(&self, leaf: &str) -> Vec<View<'a>> {
        let path = self.key(leaf).path;
        let Some(Node { value: Value::Array(items), .. }) = self.node(leaf) else { return Vec::new() };
        let view = |node: &'a Node| match &node.value {
            Value::Table(table) => Some(View { table: Some(table), place: &node.place, path, ..*self }),
            _ => None,
        };
        items.iter().filter_map(view).collect()
    }

    fn value(&self, leaf: &str) -> Option<Value> {
        if let Some(node) = self.node(leaf) {
            return Some(node.value.clone());
        }
        self.key(leaf).default_on(self.engine).map(literal)
    }

    /// A text, or its default.
    pub fn text(&self, leaf: &str) -> Option<String> {
        match self.value(leaf)? {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// A choice, if it was written or has a default; the walk has seen that its word is one of those.
    pub fn chosen<T: Choices>(&self, leaf: &str) -> Option<T> {
        debug_assert_eq!(self.key(leaf).kind, Kind::OneOf(T::ROWS), "`{leaf}` is read as another choice than its key has");
        let word = self.text(leaf)?;
        Some(T::of_word(&word).expect("the walk has seen that it is one of them"))
    }

    /// A choice that has a default, or that was asked for.
    pub fn choice<T: Choices>(&self, leaf: &str) -> T {
        self.chosen(leaf).expect("a choice has a default or was asked for")
    }

    /// A flag with a default.
    pub fn flag(&self, leaf: &str) -> bool {
        matches!(self.value(leaf), Some(Value::Flag(true)))
    }

    /// A number, or its default.
    pub fn number(&self, leaf: &str) -> Option<i64> {
        match self.value(leaf)? {
            Value::Integer(number) => Some(number),
            _ => None,
        }
    }

    /// A number that the key table keeps within 32 bits.
    pub fn small(&self, leaf: &str) -> Option<u32> {
        self.number(leaf).map(|number| u32::try_from(number).expect("the key table's bounds fit"))
    }

    /// A size, or its default.
    pub fn size(&self, leaf: &str) -> Option<ByteSize> {
        self.text(leaf)?.parse().ok()
    }

    /// A duration with a default.
    pub fn duration(&self, leaf: &str) -> Duration {
        self.text(leaf).and_then(|text| parse_duration(&text).ok()).expect("walked, and every duration has a default")
    }

    /// An array of texts; empty when it is missing.
    pub fn texts(&self, leaf: &str) -> Vec<String> {
        self.text_nodes(leaf).into_iter().map(|(text, _)| text.to_owned()).collect()
    }

    /// An array of texts with their places.
    pub fn text_nodes(&self, leaf: &str) -> Vec<(&'a str, &'a Node)> {
        let Some(Node { value: Value::Array(items), .. }) = self.node(leaf) else { return Vec::new() };
        let text = |node: &'a Node| match &node.value {
            Value::Text(text) => Some((text.as_str(), node)),
            _ => None,
        };
        items.iter().filter_map(text).collect()
    }

    /// A path, made absolute with the directory of the file that it stands in, or with the user's home.
    pub fn path(&self, leaf: &str) -> Option<PathBuf> {
        let node = self.node(leaf)?;
        match &node.value {
            Value::Text(text) => Some(self.absolute(text, node)),
            _ => None,
        }
    }

    /// A path that stands at `node`.
    pub fn absolute(&self, text: &str, node: &Node) -> PathBuf {
        super::paths::absolute(node.place.source.directory.as_deref().unwrap_or(self.directory), text)
    }
}

/// A default of the key table as a value.
pub fn literal(written: &str) -> Value {
    match written {
        "true" => Value::Flag(true),
        "false" => Value::Flag(false),
        _ => match written.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) {
            Some(text) => Value::Text(text.into()),
            None => Value::Integer(written.parse().expect("a default is a text, a flag or a number")),
        },
    }
}
