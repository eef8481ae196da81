//! Printing a resolved guest file as one TOML text that needs no template, with the origin of each key.

use std::sync::Arc;

use serde::Serialize;

use super::diagnostic::{Location, Source};
use super::key::{Key, KeyTable, Kind};
use super::keys::GUEST_KEYS;
use super::layer::{Spanned, Table, Value};
use super::paths::is_path;
use super::resolve::Resolved;
use super::table_reader::literal;
use crate::choices::EngineKind;

/// Origin of one key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Origin {
    /// The key, dotted. The part after an array of tables is the id of the entry.
    pub key: String,
    /// Value in TOML.
    pub value: String,
    /// The file, `--set`, or `default`.
    pub source: String,
    /// Line, from 1; `None` for a default.
    pub line: Option<usize>,
    /// Column, from 1; `None` for a default.
    pub column: Option<usize>,
}

/// An item to print: a value that was set, or one that was not, with its origin.
enum Item<'a> {
    Set(&'a Spanned, &'static Key),
    Given(Value, &'static str),
}

struct Printer {
    keys: &'static KeyTable,
    engine: EngineKind,
    explain: bool,
    /// Print only set values, without those that this text sets.
    without: Option<Option<Arc<Source>>>,
    text: String,
    origins: Vec<Origin>,
}

/// Returns the guest as one file, with all defaults; with `explain`, each line has its origin. The second value is the
/// same as data.
pub fn render(resolved: &Resolved, explain: bool) -> (String, Vec<Origin>) {
    Printer::new(&GUEST_KEYS, resolved.engine, explain, None).run(resolved)
}

/// Returns the guest as one file that needs no template, with the set values and no defaults. `without` is a text whose
/// values are left out: the defaults of the host file, which apply to every guest file in any case.
pub fn render_set(resolved: &Resolved, without: Option<&Arc<Source>>) -> String {
    Printer::new(&GUEST_KEYS, resolved.engine, false, Some(without.cloned())).run(resolved).0
}

/// Returns one entry of an array of tables: the set values as a text, and all values as data.
pub fn render_entry(table: &Table, keys: &'static KeyTable, class: &'static str) -> (String, Vec<Origin>) {
    // The class has no defaults that depend on an engine, and this engine supports all of its keys.
    let mut set = Printer::new(keys, EngineKind::Bhyve, false, Some(None));
    let mut whole = Printer::new(keys, EngineKind::Bhyve, false, None);
    for printer in [&mut set, &mut whole] {
        printer.table(table, class, "", &format!("[[{class}]]"));
    }
    (set.text, whole.origins)
}

impl Printer {
    fn new(keys: &'static KeyTable, engine: EngineKind, explain: bool, without: Option<Option<Arc<Source>>>) -> Printer {
        Printer { keys, engine, explain, without, text: String::new(), origins: Vec::new() }
    }

    fn run(mut self, resolved: &Resolved) -> (String, Vec<Origin>) {
        let printer = &mut self;
        let name = Value::Text(resolved.name.clone());
        printer.line(
            "name",
            "name",
            &match resolved.table.get("name").filter(|node| node.value == name) {
                Some(node) => Item::Set(node, GUEST_KEYS.find("name").expect("it is in the key table")),
                None => Item::Given(name, "the name of its file or directory"),
            },
        );
        printer.table(&resolved.table, "", "", "");
        (self.text, self.origins)
    }

    /// Prints the plain keys of a table, then its tables, then its arrays of tables: the order that TOML needs.
    fn table(&mut self, table: &Table, path: &str, shown: &str, header: &str) {
        let children: Vec<&'static Key> = self.keys.children(path).filter(|key| key.support.on(Some(self.engine))).collect();
        let mut printed_header = header.is_empty();
        for key in children.iter().filter(|key| !matches!(key.kind, Kind::Table { .. } | Kind::Entries) && key.path != "name") {
            let item = match (table.get(key.leaf()), key.default_on(self.engine), &self.without) {
                (Some(node), _, Some(Some(without))) if Arc::ptr_eq(&node.location.source, without) => continue,
                (Some(node), ..) => Item::Set(node, key),
                (None, Some(default), None) => Item::Given(literal(default), "default"),
                (None, ..) => continue,
            };
            if !printed_header {
                self.text.push_str(&format!("\n{header}\n"));
                printed_header = true;
            }
            self.line(&join(shown, key.leaf()), key.leaf(), &item);
        }
        for key in children.iter().filter(|key| matches!(key.kind, Kind::Table { .. })) {
            let empty = Table::default();
            let inner = match table.get(key.leaf()).map(|node| &node.value) {
                Some(Value::Table(inner)) => inner,
                _ if key.is_optional() => continue,
                _ => &empty,
            };
            self.table(inner, key.path, &join(shown, key.leaf()), &format!("[{}]", key.path));
        }
        for key in children.iter().filter(|key| key.kind == Kind::Entries) {
            let Some(Spanned { value: Value::Array(items), .. }) = table.get(key.leaf()) else { continue };
            for (at, item) in items.iter().enumerate() {
                let Value::Table(inner) = &item.value else { continue };
                let id = inner.id().map_or_else(|| at.to_string(), str::to_owned);
                self.table(inner, key.path, &join(&join(shown, key.leaf()), &id), &format!("[[{}]]", key.path));
            }
        }
    }

    fn line(&mut self, shown: &str, leaf: &str, item: &Item<'_>) {
        let (value, location, given): (String, Option<&Location>, &str) = match item {
            Item::Set(node, key) => (written(&moved(node, key)), Some(&node.location), ""),
            Item::Given(value, by) => (written(value), None, by),
        };
        let line = format!("{leaf} = {value}");
        let position = location.map(Location::line_column);
        let source = location.map_or_else(|| given.to_owned(), |location| location.source.label.clone());
        if self.explain {
            let comment = position.map_or_else(|| source.clone(), |(line, _)| format!("{source}:{line}"));
            self.text.push_str(&format!("{line:<40} # {comment}\n"));
        } else {
            self.text.push_str(&format!("{line}\n"));
        }
        if self.without.is_some() {
            return;
        }
        self.origins.push(Origin {
            key: shown.to_owned(),
            value,
            source,
            line: position.map(|(line, _)| line),
            column: position.map(|(_, column)| column),
        });
    }
}

/// Returns a value for a file in another directory: its paths are absolute.
fn moved(node: &Spanned, key: &Key) -> Value {
    let mut value = node.value.clone();
    let is_command = matches!(key.path, "hooks.command" | "ready.exec");
    match &mut value {
        Value::Text(text) if is_path(key, text) => make_absolute(text, node),
        Value::Array(items) if is_command => {
            if let Some(Spanned { value: Value::Text(program), .. }) = items.first_mut()
                && program.contains('/')
            {
                make_absolute(program, node);
            }
        }
        Value::Array(items) => {
            for item in items {
                let node = item.clone();
                if let Value::Text(text) = &mut item.value
                    && is_path(key, text)
                {
                    make_absolute(text, &node);
                }
            }
        }
        _ => {}
    }
    value
}

fn make_absolute(text: &mut String, node: &Spanned) {
    if let Some(directory) = &node.location.source.directory {
        *text = super::paths::absolute(directory, text).to_string_lossy().into_owned();
    }
}

fn join(path: &str, leaf: &str) -> String {
    if path.is_empty() { leaf.to_owned() } else { format!("{path}.{leaf}") }
}

/// Returns a value in TOML on one line.
fn written(value: &Value) -> String {
    match value {
        Value::Text(text) => toml_text(text),
        Value::Integer(number) => number.to_string(),
        Value::Float(text) | Value::Datetime(text) => text.clone(),
        Value::Flag(flag) => flag.to_string(),
        Value::Array(items) => format!("[{}]", items.iter().map(|item| written(&item.value)).collect::<Vec<_>>().join(", ")),
        Value::Table(table) => {
            let fields: Vec<String> =
                table.0.iter().map(|(name, node)| format!("{} = {}", toml_text(&name.text), written(&node.value))).collect();
            format!("{{ {} }}", fields.join(", "))
        }
    }
}

/// Returns a basic string. Braces that would begin an expression are escaped, since the result is read again.
fn toml_text(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.replace("{{", "{{ \"{{\" }}").chars() {
        match c {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\t' => quoted.push_str("\\t"),
            c if c.is_control() => quoted.push_str(&format!("\\u{:04X}", c as u32)),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}
