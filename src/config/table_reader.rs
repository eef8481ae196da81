//! Typed values of a tree whose keys have been checked. A missing value is the key table's default.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::diagnostic::Location;
use super::key::{Key, KeyTable, Kind};
use super::layer::{Spanned, Table, Value};
use crate::choices::{Choices, EngineKind};
use crate::units::{ByteSize, parse_duration};

/// One table of the tree, which may be missing.
#[derive(Clone, Copy)]
pub struct TableReader<'a> {
    table: Option<&'a Table>,
    /// Position of the table, or of the table that would contain it.
    pub location: &'a Location,
    path: &'static str,
    keys: &'static KeyTable,
    directory: &'a Path,
    engine: EngineKind,
}

impl<'a> TableReader<'a> {
    /// Creates the view of the whole tree. Relative paths are relative to `directory` if their file has none. Some
    /// defaults depend on `engine`.
    pub fn new(
        table: &'a Table,
        location: &'a Location,
        keys: &'static KeyTable,
        directory: &'a Path,
        engine: EngineKind,
    ) -> Self {
        Self { table: Some(table), location, path: "", keys, directory, engine }
    }

    /// Creates the view of a part of a tree: the table at `path` of the key table. None of its defaults depends on an
    /// engine.
    pub fn part(table: &'a Table, location: &'a Location, keys: &'static KeyTable, path: &'static str) -> Self {
        Self { table: Some(table), location, path, keys, directory: Path::new("/"), engine: EngineKind::Embedded }
    }

    fn key(&self, leaf: &str) -> &'static Key {
        self.keys.child(self.path, leaf).expect("asked for by its name in the key table")
    }

    /// Returns the table itself, if it exists.
    pub fn whole(&self) -> Option<&'a Table> {
        self.table
    }

    /// Returns the written value.
    pub fn node(&self, leaf: &str) -> Option<&'a Spanned> {
        self.table?.get(leaf)
    }

    /// Returns the written value, if it is not the default: a rule about a key without an effect accepts a file that
    /// states the default.
    pub fn unlike_default(&self, leaf: &str) -> Option<&'a Spanned> {
        let default = self.key(leaf).default_on(self.engine).map(literal);
        self.node(leaf).filter(|node| Some(&node.value) != default.as_ref())
    }

    /// Returns the position of a key or, if it is not set, of its table.
    pub fn location_of(&self, leaf: &str) -> &'a Location {
        self.node(leaf).map_or(self.location, |node| &node.location)
    }

    /// Returns a table in this one.
    pub fn table(&self, leaf: &str) -> TableReader<'a> {
        let node = self.node(leaf);
        let table = match node.map(|node| &node.value) {
            Some(Value::Table(table)) => Some(table),
            _ => None,
        };
        TableReader { table, location: node.map_or(self.location, |node| &node.location), path: self.key(leaf).path, ..*self }
    }

    /// Returns the entries of an array of tables.
    pub fn entries(&self, leaf: &str) -> Vec<TableReader<'a>> {
        let path = self.key(leaf).path;
        let Some(Spanned { value: Value::Array(items), .. }) = self.node(leaf) else { return Vec::new() };
        let view = |node: &'a Spanned| match &node.value {
            Value::Table(table) => Some(TableReader { table: Some(table), location: &node.location, path, ..*self }),
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

    /// Returns a text, or its default.
    pub fn text(&self, leaf: &str) -> Option<String> {
        match self.value(leaf)? {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// Returns a choice, if it was written or has a default. The check of the keys has seen that its word is valid.
    pub fn chosen<T: Choices>(&self, leaf: &str) -> Option<T> {
        debug_assert_eq!(self.key(leaf).kind, Kind::OneOf(T::ROWS), "`{leaf}` is read as another choice than its key has");
        let word = self.text(leaf)?;
        Some(T::of_word(&word).expect("the walk has seen that it is one of them"))
    }

    /// Returns a choice that has a default, or that was asked for.
    pub fn choice<T: Choices>(&self, leaf: &str) -> T {
        self.chosen(leaf).expect("a choice has a default or was asked for")
    }

    /// Returns a flag with a default.
    pub fn flag(&self, leaf: &str) -> bool {
        matches!(self.value(leaf), Some(Value::Flag(true)))
    }

    /// Returns a number, or its default.
    pub fn number(&self, leaf: &str) -> Option<i64> {
        match self.value(leaf)? {
            Value::Integer(number) => Some(number),
            _ => None,
        }
    }

    /// Returns a number that the key table limits to 32 bits.
    pub fn small(&self, leaf: &str) -> Option<u32> {
        self.number(leaf).map(|number| u32::try_from(number).expect("the key table's bounds fit"))
    }

    /// Returns a size, or its default.
    pub fn size(&self, leaf: &str) -> Option<ByteSize> {
        self.text(leaf)?.parse().ok()
    }

    /// Returns a duration with a default.
    pub fn duration(&self, leaf: &str) -> Duration {
        self.text(leaf).and_then(|text| parse_duration(&text).ok()).expect("walked, and every duration has a default")
    }

    /// Returns an array of texts, which is empty if it is missing.
    pub fn texts(&self, leaf: &str) -> Vec<String> {
        self.text_nodes(leaf).into_iter().map(|(text, _)| text.to_owned()).collect()
    }

    /// Returns an array of texts with their positions.
    pub fn text_nodes(&self, leaf: &str) -> Vec<(&'a str, &'a Spanned)> {
        let Some(Spanned { value: Value::Array(items), .. }) = self.node(leaf) else { return Vec::new() };
        let text = |node: &'a Spanned| match &node.value {
            Value::Text(text) => Some((text.as_str(), node)),
            _ => None,
        };
        items.iter().filter_map(text).collect()
    }

    /// Returns a path, made absolute with the directory of the file that it is in, or with the user's home.
    pub fn path(&self, leaf: &str) -> Option<PathBuf> {
        let node = self.node(leaf)?;
        match &node.value {
            Value::Text(text) => Some(self.absolute(text, node)),
            _ => None,
        }
    }

    /// Returns the path at `node`, made absolute.
    pub fn absolute(&self, text: &str, node: &Spanned) -> PathBuf {
        super::paths::absolute(node.location.source.directory.as_deref().unwrap_or(self.directory), text)
    }
}

/// Returns a default of the key table as a value.
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
