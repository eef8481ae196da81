//! One TOML text as a tree with the position of each key and value, and the merging of trees.
//!
//! Tables merge key by key. An array of tables merges by `id`: an entry with a known id is merged with it, another one
//! is added, and one with `remove = true` drops it. Any other value replaces the old one, and so does the short form of
//! a table (`cpus = 2`).

use std::path::Path;
use std::sync::Arc;

use toml::de::{DeTable, DeValue};

use super::diagnostic::{Diagnostic, Diagnostics, Location, Source};
use super::key::{Key, KeyTable, Kind};
use crate::inputs;

/// Maximum size of a configuration. A larger file is something else.
pub const MAX_FILE_BYTES: usize = 1 << 20;

/// One TOML text, parsed.
#[derive(Debug, Clone, PartialEq)]
pub struct Layer {
    /// The text.
    pub source: Arc<Source>,
    /// Its contents.
    pub table: Table,
}

/// A value with its position.
#[derive(Debug, Clone, PartialEq)]
pub struct Spanned {
    /// The value.
    pub value: Value,
    /// Its position.
    pub location: Location,
    /// Whether it is the short form of a table, which replaces a table instead of merging with it.
    pub replaces: bool,
}

/// A TOML value.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// A string.
    Text(String),
    /// An integer.
    Integer(i64),
    /// A float, as written.
    Float(String),
    /// A boolean.
    Flag(bool),
    /// A date or time, as written.
    Datetime(String),
    /// An array.
    Array(Vec<Spanned>),
    /// A table.
    Table(Table),
}

/// Keys and values in the order of the file.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Table(pub Vec<(Name, Spanned)>);

/// A key with its position.
#[derive(Debug, Clone, PartialEq)]
pub struct Name {
    /// The key.
    pub text: String,
    /// Its position.
    pub location: Location,
}

impl Value {
    /// Returns the name of the type with its article, for messages.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Text(_) => "a text",
            Self::Integer(_) => "a number",
            Self::Float(_) => "a fraction",
            Self::Flag(_) => "a boolean",
            Self::Datetime(_) => "a date",
            Self::Array(_) => "an array",
            Self::Table(_) => "a table",
        }
    }
}

impl Table {
    /// Returns the value of a key.
    pub fn get(&self, key: &str) -> Option<&Spanned> {
        self.0.iter().find(|(name, _)| name.text == key).map(|(_, node)| node)
    }
    /// Removes a key and returns it.
    pub fn take(&mut self, key: &str) -> Option<(Name, Spanned)> {
        let at = self.0.iter().position(|(name, _)| name.text == key)?;
        Some(self.0.remove(at))
    }
    /// Returns the value at a dotted path of tables.
    pub fn at(&self, path: &str) -> Option<&Spanned> {
        let (head, rest) = path.split_once('.').unwrap_or((path, ""));
        let node = self.get(head)?;
        match (&node.value, rest) {
            (_, "") => Some(node),
            (Value::Table(table), rest) => table.at(rest),
            _ => None,
        }
    }
    /// Returns the text of `id`, in an entry of an array of tables.
    pub fn id(&self) -> Option<&str> {
        match &self.get("id")?.value {
            Value::Text(id) => Some(id),
            _ => None,
        }
    }
}

impl Layer {
    /// Parses a text. `keys` says which tables have a short form.
    pub fn parse(source: Source, keys: &'static KeyTable) -> Result<Self, Vec<Diagnostic>> {
        let source = Arc::new(source);
        let whole = Location { source: source.clone(), span: 0..0 };
        if source.text.len() > MAX_FILE_BYTES {
            return Err(vec![Diagnostic::plain(format!("`{}` is larger than 1 MiB", source.label))]);
        }
        let (parsed, errors) = DeTable::parse_recoverable(&source.text);
        if !errors.is_empty() {
            let location = |span| Location { source: source.clone(), span };
            let diagnostics = errors.iter().take(10).map(|error| {
                let at = error.span().map_or(whole.clone(), location);
                let message = match error.message().trim() {
                    "duplicate key" => format!("key `{}` is given twice", &source.text[at.span.clone()]),
                    message => message.replace('\n', ", "),
                };
                Diagnostic::at(&at, message)
            });
            return Err(diagnostics.collect());
        }
        let mut problems = Vec::new();
        let mut table = table_of(parsed.get_ref(), &source, &mut problems);
        if !problems.is_empty() {
            return Err(problems);
        }
        expand_short_forms(&mut table, "", keys);
        Ok(Self { source, table })
    }

    /// Parses one `KEY=VALUE` of the command line. A value that is not TOML is a text: `memory=1G`.
    pub fn from_set(argument: &str, keys: &'static KeyTable) -> Result<Self, Vec<Diagnostic>> {
        let source = Arc::new(Source { label: "--set".into(), text: argument.into(), directory: None });
        let whole = Location { source: source.clone(), span: 0..argument.len() };
        let Some((path, text)) = argument.split_once('=') else {
            return Err(vec![Diagnostic::at(&whole, format!("`{argument}` has no `=`")).hint("write `--set KEY=VALUE`")]);
        };
        let value_place = Location { source: source.clone(), span: path.len() + 1..argument.len() };
        let key_place = Location { source: source.clone(), span: 0..path.len() };
        let mut problems = Vec::new();
        let value = match DeValue::parse(text.trim()) {
            Ok(value) => value_of(value.get_ref(), &source, &mut problems),
            Err(_) => Value::Text(text.into()),
        };
        if !problems.is_empty() {
            return Err(problems);
        }
        let mut node = Spanned { value, location: value_place.clone(), replaces: false };
        place_all(&mut node, &value_place);
        let parts: Vec<&str> = path.trim().split('.').collect();
        if parts.iter().any(|part| part.is_empty()) || parts.len() > 8 {
            return Err(vec![Diagnostic::at(&key_place, format!("`{path}` is not a key"))]);
        }
        let table = nest(&parts, "", node, &key_place, keys).map_err(|error| vec![error])?;
        let mut table = Table(vec![table]);
        expand_short_forms(&mut table, "", keys);
        Ok(Self { source, table })
    }
}

/// Builds `a.b.c = node` as nested tables. In an array of tables the part after its name is the id of the entry.
fn nest(
    parts: &[&str],
    parent: &str,
    node: Spanned,
    location: &Location,
    keys: &'static KeyTable,
) -> Result<(Name, Spanned), Diagnostic> {
    let name = |text: &str| Name { text: text.into(), location: location.clone() };
    let plain = |value| Spanned { value, location: location.clone(), replaces: false };
    let [head, rest @ ..] = parts else { unreachable!("callers give at least one part") };
    let path = if parent.is_empty() { (*head).to_owned() } else { format!("{parent}.{head}") };
    if rest.is_empty() {
        return Ok((name(head), node));
    }
    if !matches!(keys.find(&path), Some(Key { kind: Kind::Entries, .. })) {
        let inner = nest(rest, &path, node, location, keys)?;
        return Ok((name(head), plain(Value::Table(Table(vec![inner])))));
    }
    let [id, rest @ ..] = rest else { unreachable!("checked: not empty") };
    if rest.is_empty() {
        return Err(Diagnostic::at(location, format!("`{}` names no key of the entry", parts.join(".")))
            .hint(format!("write `{path}.{id}.KEY=VALUE`")));
    }
    let inner = nest(rest, &path, node, location, keys)?;
    let entry = Table(vec![(name("id"), plain(Value::Text((*id).to_owned()))), inner]);
    Ok((name(head), plain(Value::Array(vec![plain(Value::Table(entry))]))))
}

fn place_all(node: &mut Spanned, location: &Location) {
    node.location = location.clone();
    match &mut node.value {
        Value::Array(items) => items.iter_mut().for_each(|item| place_all(item, location)),
        Value::Table(table) => table.0.iter_mut().for_each(|(name, node)| {
            name.location = location.clone();
            place_all(node, location);
        }),
        _ => {}
    }
}

fn table_of(table: &DeTable<'_>, source: &Arc<Source>, problems: &mut Vec<Diagnostic>) -> Table {
    let mut entries: Vec<(Name, Spanned)> = table
        .iter()
        .map(|(key, value)| {
            let location = |span| Location { source: source.clone(), span };
            let name = Name { text: key.get_ref().to_string(), location: location(key.span()) };
            let value_place = location(value.span());
            (
                name,
                Spanned {
                    value: value_at(value.get_ref(), source, &value_place, problems),
                    location: value_place,
                    replaces: false,
                },
            )
        })
        .collect();
    entries.sort_by_key(|(name, _)| name.location.span.start);
    Table(entries)
}

fn value_of(value: &DeValue<'_>, source: &Arc<Source>, problems: &mut Vec<Diagnostic>) -> Value {
    let location = Location { source: source.clone(), span: 0..source.text.len() };
    value_at(value, source, &location, problems)
}

fn value_at(value: &DeValue<'_>, source: &Arc<Source>, location: &Location, problems: &mut Vec<Diagnostic>) -> Value {
    match value {
        DeValue::String(text) => Value::Text(text.to_string()),
        DeValue::Integer(number) => {
            // The parser leaves the sign and the digits. Underscores and the radix mark are gone.
            let text = number.as_str().trim_start_matches('+');
            Value::Integer(i64::from_str_radix(text, number.radix()).unwrap_or_else(|_| {
                problems.push(Diagnostic::at(location, format!("number `{text}` does not fit in 64 bits")));
                0
            }))
        }
        DeValue::Float(number) => Value::Float(number.as_str().to_owned()),
        DeValue::Boolean(flag) => Value::Flag(*flag),
        DeValue::Datetime(when) => Value::Datetime(when.to_string()),
        DeValue::Array(items) => Value::Array(
            items
                .iter()
                .map(|item| {
                    let location = Location { source: source.clone(), span: item.span() };
                    Spanned { value: value_at(item.get_ref(), source, &location, problems), location, replaces: false }
                })
                .collect(),
        ),
        DeValue::Table(table) => Value::Table(table_of(table, source, problems)),
    }
}

/// Expands short forms: `cpus = 2` becomes `cpus.count = 2`, `extends = "x"` an array.
pub fn expand_short_forms(table: &mut Table, parent: &str, keys: &'static KeyTable) {
    for (name, node) in &mut table.0 {
        let path = if parent.is_empty() { name.text.clone() } else { format!("{parent}.{}", name.text) };
        let Some(key) = keys.find(&path) else { continue };
        match (key.kind, &mut node.value) {
            (Kind::Table { .. }, Value::Table(inner)) => expand_short_forms(inner, &path, keys),
            (Kind::Entries, Value::Array(items)) => {
                for item in items {
                    if let Value::Table(inner) = &mut item.value {
                        expand_short_forms(inner, &path, keys);
                    }
                }
            }
            (Kind::Table { short: Some(inner) }, value) if !matches!(value, Value::Array(_)) => {
                let value = std::mem::replace(value, Value::Flag(false));
                let inner_name = Name { text: inner.into(), location: name.location.clone() };
                let inner_node = Spanned { value, location: node.location.clone(), replaces: false };
                node.value = Value::Table(Table(vec![(inner_name, inner_node)]));
                node.replaces = true;
            }
            (Kind::Texts { one: true }, value @ Value::Text(_)) => {
                let value = std::mem::replace(value, Value::Flag(false));
                node.value = Value::Array(vec![Spanned { value, location: node.location.clone(), replaces: false }]);
            }
            _ => {}
        }
    }
}

/// Merges `over` into `base`.
pub fn merge(base: &mut Table, over: Table, parent: &str, keys: &'static KeyTable, problems: &mut Vec<Diagnostic>) {
    for (name, node) in over.0 {
        let path = if parent.is_empty() { name.text.clone() } else { format!("{parent}.{}", name.text) };
        let entries = matches!(keys.find(&path), Some(Key { kind: Kind::Entries, .. }));
        let Some(at) = base.0.iter().position(|(other, _)| other.text == name.text) else {
            let mut fresh = (name, node);
            if let (true, Value::Array(items)) = (entries, &mut fresh.1.value) {
                let added = std::mem::take(items);
                merge_entries(items, added, &path, keys, problems);
            }
            base.0.push(fresh);
            continue;
        };
        let (base_name, base_node) = &mut base.0[at];
        match (&mut base_node.value, node.value) {
            (Value::Table(below), Value::Table(above)) if !node.replaces => merge(below, above, &path, keys, problems),
            (Value::Array(below), Value::Array(above)) if entries => merge_entries(below, above, &path, keys, problems),
            (slot, value) => {
                *slot = value;
                base_node.location = node.location;
                base_node.replaces = node.replaces;
                *base_name = name;
            }
        }
    }
}

fn merge_entries(
    below: &mut Vec<Spanned>,
    above: Vec<Spanned>,
    path: &str,
    keys: &'static KeyTable,
    problems: &mut Vec<Diagnostic>,
) {
    let from_below = below.len();
    let mut seen: Vec<String> = Vec::new();
    for mut node in above {
        let Value::Table(table) = &mut node.value else {
            below.push(node); // the key check reports the wrong type
            continue;
        };
        let id = table.id().map(str::to_owned);
        let removed = match table.get("remove") {
            Some(Spanned { value: Value::Flag(true), .. }) => true,
            Some(Spanned { value: Value::Flag(false), .. }) => {
                table.take("remove");
                false
            }
            _ => false,
        };
        if let Some(id) = &id {
            if seen.contains(id) {
                let location = table.get("id").map_or(&node.location, |id| &id.location);
                problems.push(Diagnostic::at(location, format!("id `{id}` is used twice in `{path}`")));
                continue;
            }
            seen.push(id.clone());
        }
        let known = below.iter().take(from_below).position(|node| match &node.value {
            Value::Table(table) => id.is_some() && table.id() == id.as_deref(),
            _ => false,
        });
        match (known, removed) {
            (Some(at), true) => {
                // Kept as a mark until the layer is merged, so that positions stay right.
                below[at] = node;
            }
            (None, true) => {
                let shown = id.unwrap_or_else(|| "without id".into());
                let known: Vec<String> = below
                    .iter()
                    .filter_map(|node| if let Value::Table(t) = &node.value { t.id() } else { None })
                    .map(|id| format!("`{id}`"))
                    .collect();
                let hint = (!known.is_empty()).then(|| format!("known: {}", known.join(", ")));
                problems.push(
                    Diagnostic::at(&node.location, format!("there is no `{shown}` in `{path}` to remove")).maybe_hint(hint),
                );
            }
            (Some(at), false) => match (&mut below[at].value, node.value) {
                (Value::Table(base), Value::Table(over)) => merge(base, over, path, keys, problems),
                _ => unreachable!("both are tables: one has an id, the other was matched above"),
            },
            (None, false) => {
                let fresh = std::mem::take(table);
                merge(table, fresh, path, keys, problems);
                below.push(node);
            }
        }
    }
    below.retain(|node| match &node.value {
        Value::Table(table) => !matches!(table.get("remove"), Some(Spanned { value: Value::Flag(true), .. })),
        _ => true,
    });
}

/// Drops the key at a dotted path. The part after an array of tables is an id. Returns false when there is none.
pub fn unset(table: &mut Table, path: &str) -> bool {
    let (head, rest) = path.split_once('.').unwrap_or((path, ""));
    if rest.is_empty() {
        return table.take(head).is_some();
    }
    let Some((_, node)) = table.0.iter_mut().find(|(name, _)| name.text == head) else { return false };
    match &mut node.value {
        Value::Table(inner) => unset(inner, rest),
        Value::Array(items) => {
            let (id, rest) = rest.split_once('.').unwrap_or((rest, ""));
            let is_it = |node: &Spanned| matches!(&node.value, Value::Table(table) if table.id() == Some(id));
            let Some(at) = items.iter().position(is_it) else { return false };
            if rest.is_empty() {
                items.remove(at);
                return true;
            }
            match &mut items[at].value {
                Value::Table(inner) => unset(inner, rest),
                _ => false,
            }
        }
        _ => false,
    }
}

/// Returns the dotted paths of everything in a table. The part after an array of tables is the id of the entry.
pub fn paths(table: &Table, parent: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (name, node) in &table.0 {
        let path = if parent.is_empty() { name.text.clone() } else { format!("{parent}.{}", name.text) };
        match &node.value {
            Value::Table(inner) => found.extend(paths(inner, &path)),
            Value::Array(items) => {
                for item in items {
                    if let Value::Table(inner) = &item.value
                        && let Some(id) = inner.id()
                    {
                        let path = format!("{path}.{id}");
                        found.extend(paths(inner, &path));
                        found.push(path);
                    }
                }
            }
            _ => {}
        }
        found.push(path);
    }
    found
}

/// Reads the text of a file of this program: a regular file of at most 1 MiB.
pub(super) fn file_text(file: &Path) -> std::io::Result<String> {
    inputs::read_text(file, MAX_FILE_BYTES as u64).map_err(|error| match error.kind() {
        std::io::ErrorKind::FileTooLarge => std::io::Error::new(error.kind(), "a file of vmctl is at most 1 MiB"),
        _ => error,
    })
}

/// Reads the text of a file, within its bounds.
pub(super) fn read(file: &Path) -> Result<String, Diagnostics> {
    let plain = |reason: String| Diagnostics::from(Diagnostic::plain(format!("cannot read `{}`: {reason}", file.display())));
    file_text(file).map_err(|error| plain(error.to_string()))
}
