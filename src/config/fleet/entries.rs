//! Templates and guests of a fleet file as they are written. The keys of the fleet are separated from those of a guest
//! file, and parameters are compared with the declarations of the templates.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use super::keys::{FLEET_KEYS, MAX_GUESTS};
use crate::config::diagnostic::{Diagnostic, Location, Problems, Source, nearest};
use crate::config::expression::{Scalar, names_in};
use crate::config::host;
use crate::config::keys::GUEST_KEYS;
use crate::config::layer::{Layer, Name, Spanned, Table, Value, expand_short_forms};
use crate::config::pattern::{NamePattern, PatternError};
use crate::config::table_reader::TableReader;
use crate::config::validate::{self, is_name};

/// A template of the fleet.
pub struct Template {
    /// Its name.
    pub id: String,
    /// Position of its name.
    pub location: Location,
    /// Its declared parameters.
    pub parameters: Vec<Parameter>,
    /// Arguments for the templates below it.
    pub with: Vec<(Name, Spanned)>,
    /// Its keys of a guest file.
    pub layer: Layer,
}

/// A parameter of a template.
pub struct Parameter {
    /// Its name.
    pub id: Name,
    /// Default for guests that do not give it.
    pub default: Option<Spanned>,
}

/// An entry of `[[guests]]`.
pub struct Entry {
    /// Position of the entry.
    pub location: Location,
    /// Position of its name.
    pub name_place: Location,
    /// One set of variables per guest.
    pub items: Vec<Item>,
    /// Whether it makes several guests by `count` or `for_each`.
    pub many: bool,
    /// The hosts for which it is.
    pub host: Option<Selector>,
    /// Arguments for its templates.
    pub with: Vec<(Name, Spanned)>,
    /// Its keys of a guest file.
    pub layer: Layer,
}

/// Variables that distinguish one guest of an entry from the others.
#[derive(Clone, Default)]
pub struct Item {
    /// `index`, if it differs from the entry's own.
    pub index: Option<i64>,
    /// `each` and `each.KEY`.
    pub variables: Vec<(String, Scalar)>,
}

/// A selection of hosts for an entry.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Selector {
    names: Vec<NamePattern>,
    labels: Vec<String>,
}

impl Selector {
    /// Returns whether it selects the host of this name with these labels.
    pub fn means(&self, name: &str, labels: &[String]) -> bool {
        let named = self.names.is_empty() || self.names.iter().any(|pattern| pattern.matches(name));
        named && self.labels.iter().all(|label| labels.contains(label))
    }
}

/// One entry of `class`, with its keys split into those of the fleet and those of a guest file.
struct Split {
    fleet: Table,
    guest: Table,
}

/// Splits the keys of an entry. `name` belongs to a guest file, and so do all keys that the fleet's table does not
/// have.
fn split(table: Table, class: &'static str, problems: &mut Problems) -> Split {
    let mut parts = Split { fleet: Table::default(), guest: Table::default() };
    for (name, node) in table.0 {
        let fleet = FLEET_KEYS.children(class).any(|key| key.leaf() == name.text);
        if fleet && name.text != "name" {
            parts.fleet.0.push((name, node));
        } else if GUEST_KEYS.find(&name.text).is_some() {
            parts.guest.0.push((name, node));
        } else {
            let own = FLEET_KEYS.children(class).map(|key| key.leaf());
            let guests = GUEST_KEYS.children("").map(|key| key.leaf());
            let hint = match nearest(&name.text, own.chain(guests)) {
                Some(near) => format!("did you mean `{near}`?"),
                None => "see the keys of a fleet file and of a guest file in vmctl.toml(5)".into(),
            };
            let message = format!("unknown key `{}` in `{class}`", name.text);
            problems.push(Diagnostic::at(&name.location, message).hint(hint));
        }
    }
    expand_short_forms(&mut parts.guest, "", &GUEST_KEYS);
    parts
}

/// Returns the tables of an array of tables.
fn tables(node: Spanned, class: &str, problems: &mut Problems) -> Vec<(Table, Location)> {
    let wrong = |node: &Spanned| {
        let message = format!("`{class}` is {}, not an array of tables", node.value.kind());
        Diagnostic::at(&node.location, message).hint(format!("write `[[{class}]]`"))
    };
    let Value::Array(items) = node.value else {
        problems.push(wrong(&node));
        return Vec::new();
    };
    let mut found = Vec::new();
    for item in items {
        match item.value {
            Value::Table(table) => found.push((table, item.location)),
            _ => problems.push(wrong(&item)),
        }
    }
    found
}

/// Returns the templates of `[[templates]]`.
pub fn templates(node: Option<Spanned>, source: &Arc<Source>, problems: &mut Problems) -> Vec<Template> {
    let mut found: Vec<Template> = Vec::new();
    let Some(node) = node else { return found };
    for (table, location) in tables(node, "templates", problems) {
        let Split { mut fleet, mut guest } = split(table, "templates", problems);
        if let Some((name, _)) = guest.take("name") {
            problems.push(
                Diagnostic::at(&name.location, "a template gives no guest its `name`").hint("a template's own name is its `id`"),
            );
        }
        let with = with(fleet.take("with"), problems);
        let parameters = parameters(fleet.take("parameters"), problems);
        let before = problems.len();
        validate::check_table(&mut fleet, "templates", &FLEET_KEYS, None, problems);
        host::part(&guest, problems);
        let (id, id_place) = match fleet.get("id") {
            Some(Spanned { value: Value::Text(id), location, .. }) if problems.len() == before || is_name(id) => {
                (id.clone(), location.clone())
            }
            Some(_) => continue,
            None => {
                problems.push(
                    Diagnostic::at(&location, "a template has no `id`")
                        .hint("add `id = \"NAME\"`; guests name it with `template`"),
                );
                continue;
            }
        };
        if let Some(other) = found.iter().find(|other| other.id == id) {
            problems.push(twice(&id_place, &format!("two templates are called `{id}`"), &other.location));
            continue;
        }
        found.push(Template { id, location: id_place, parameters, with, layer: Layer { source: source.clone(), table: guest } });
    }
    found
}

/// Creates the problem for a duplicate.
pub fn twice(location: &Location, message: &str, first: &Location) -> Diagnostic {
    Diagnostic::at(location, message).note(format!("the other one is at {first}"))
}

fn parameters(taken: Option<(Name, Spanned)>, problems: &mut Problems) -> Vec<Parameter> {
    let mut found: Vec<Parameter> = Vec::new();
    let Some((_, node)) = taken else { return found };
    for (mut table, location) in tables(node, "templates.parameters", problems) {
        let default = table.take("default").map(|(_, node)| node);
        if let Some(node) = &default
            && !is_scalar(&node.value)
        {
            let message = format!("`templates.parameters.default` is {}, not a text, a number, true or false", node.value.kind());
            problems.push(Diagnostic::at(&node.location, message));
        }
        validate::check_table(&mut table, "templates.parameters", &FLEET_KEYS, None, problems);
        let Some(Spanned { value: Value::Text(id), location: id_place, .. }) = table.get("id") else {
            problems.push(Diagnostic::at(&location, "a parameter has no `id`").hint("add `id = \"NAME\"`"));
            continue;
        };
        if id.contains('.') || id == "index" || id == "name" || id == "each" {
            problems.push(Diagnostic::at(id_place, format!("`{id}` cannot be the name of a parameter")));
        }
        if let Some(other) = found.iter().find(|other| other.id.text == *id) {
            problems.push(twice(id_place, &format!("two parameters are called `{id}`"), &other.id.location));
            continue;
        }
        found.push(Parameter { id: Name { text: id.clone(), location: id_place.clone() }, default });
    }
    found
}

fn is_scalar(value: &Value) -> bool {
    matches!(value, Value::Text(_) | Value::Integer(_) | Value::Flag(_))
}

/// Returns the arguments for templates.
fn with(taken: Option<(Name, Spanned)>, problems: &mut Problems) -> Vec<(Name, Spanned)> {
    let Some((_, node)) = taken else { return Vec::new() };
    let Value::Table(table) = node.value else {
        let message = format!("`with` is {}, not a table", node.value.kind());
        problems.push(Diagnostic::at(&node.location, message).hint("write `with = { NAME = VALUE }`"));
        return Vec::new();
    };
    for (name, node) in table.0.iter().filter(|(_, node)| !is_scalar(&node.value)) {
        let message = format!("parameter `{}` is {}, not a text, a number, true or false", name.text, node.value.kind());
        problems.push(Diagnostic::at(&node.location, message));
    }
    table.0
}

/// Returns the entries of `[[guests]]`.
pub fn guests(node: Option<Spanned>, source: &Arc<Source>, problems: &mut Problems) -> Vec<Entry> {
    let mut found = Vec::new();
    let Some(node) = node else { return found };
    for (table, location) in tables(node, "guests", problems) {
        let Split { mut fleet, guest } = split(table, "guests", problems);
        let with = with(fleet.take("with"), problems);
        let for_each = fleet.take("for_each");
        let before = problems.len();
        validate::check_table(&mut fleet, "guests", &FLEET_KEYS, None, problems);
        if problems.len() > before {
            continue;
        }
        let Some(name_place) = guest.get("name").map(|node| node.location.clone()) else {
            problems.push(Diagnostic::at(&location, "a guest has no `name`").hint("add `name = \"NAME\"`"));
            continue;
        };
        let view = TableReader::part(&fleet, &location, &FLEET_KEYS, "guests");
        let host = fleet.get("host").is_some().then(|| selector(&view.table("host"), problems));
        let index = match guest.get("index").map(|node| &node.value) {
            None => Some(1),
            Some(Value::Integer(index)) => Some(*index),
            Some(_) => None,
        };
        let many = fleet.get("count").is_some() || for_each.is_some();
        let items = match (fleet.get("count"), for_each) {
            (Some(count), Some((name, _))) => {
                let message = "an entry has either `count` or `for_each`";
                problems.push(twice(&name.location, message, &count.location));
                continue;
            }
            (Some(_), None) => {
                let count = view.number("count").expect("walked, and there");
                vec![Item::default(); usize::try_from(count).expect("the key table's bounds fit")]
            }
            (None, Some((_, node))) => items(&node, problems),
            (None, None) => vec![Item::default()],
        };
        let mut items = items;
        if many {
            let Some(index) = index else {
                let location = &guest.get("index").expect("it is not the default").location;
                problems.push(Diagnostic::at(location, "with `count` or `for_each`, `index` is a number and not an expression"));
                continue;
            };
            items.iter_mut().zip(index..).for_each(|(item, index)| item.index = Some(index));
        }
        let layer = Layer { source: source.clone(), table: guest };
        found.push(Entry { location, name_place, items, many, host, with, layer });
    }
    let total: usize = found.iter().map(|entry| entry.items.len()).sum();
    if total > MAX_GUESTS {
        problems.push(Diagnostic::plain(format!("`{}` means {total} guests, the maximum is {MAX_GUESTS}", source.label)));
        found.clear();
    }
    found
}

/// Returns the selection of hosts in a table `host`.
pub fn selector(view: &TableReader<'_>, problems: &mut Problems) -> Selector {
    let mut names = Vec::new();
    for (name, node) in view.text_nodes("names") {
        match name.parse() {
            Ok(pattern) => names.push(pattern),
            Err(error) => problems.push(Diagnostic::at(&node.location, PatternError::to_string(&error))),
        }
    }
    Selector { names, labels: view.texts("labels") }
}

/// Returns the items of `for_each`.
fn items(node: &Spanned, problems: &mut Problems) -> Vec<Item> {
    let Value::Array(nodes) = &node.value else {
        let message = format!("`guests.for_each` is {}, not an array of texts, numbers or tables", node.value.kind());
        problems.push(Diagnostic::at(&node.location, message));
        return Vec::new();
    };
    let mut found = Vec::new();
    for node in nodes {
        let mut item = Item::default();
        match &node.value {
            Value::Table(table) => {
                for (name, node) in &table.0 {
                    item.variables.extend(scalar(node, problems).map(|value| (format!("each.{}", name.text), value)));
                }
            }
            _ => item.variables.extend(scalar(node, problems).map(|value| ("each".to_owned(), value))),
        }
        found.push(item);
    }
    found
}

fn scalar(node: &Spanned, problems: &mut Problems) -> Option<Scalar> {
    match &node.value {
        Value::Text(text) if text.contains("{{") => {
            problems.push(Diagnostic::at(&node.location, "an item of `guests.for_each` takes no expressions"));
            None
        }
        Value::Text(text) => Some(Scalar::Text(text.clone())),
        Value::Integer(number) => Some(Scalar::Integer(*number)),
        Value::Flag(flag) => Some(Scalar::Flag(*flag)),
        other => {
            let message = format!("an item of `guests.for_each` is {}, not a text, a number or a table of them", other.kind());
            problems.push(Diagnostic::at(&node.location, message));
            None
        }
    }
}

/// Returns the templates of this fleet below a layer, each after those that it builds on.
pub fn chain<'t>(layer: &Layer, templates: &'t [Template]) -> Vec<&'t Template> {
    fn visit<'t>(layer: &Layer, templates: &'t [Template], seen: &mut BTreeSet<&'t str>, found: &mut Vec<&'t Template>) {
        for name in ["template", "extends"].iter().filter_map(|key| layer.table.get(key)).flat_map(texts) {
            let Some(template) = templates.iter().find(|template| template.id == name) else { continue };
            // A circle is reported where the templates are merged.
            if seen.insert(&template.id) {
                visit(&template.layer, templates, seen, found);
                found.push(template);
            }
        }
    }
    let (mut seen, mut found) = (BTreeSet::new(), Vec::new());
    visit(layer, templates, &mut seen, &mut found);
    found
}

/// Returns the texts in a value.
pub fn texts(node: &Spanned) -> Vec<&str> {
    match &node.value {
        Value::Text(text) => vec![text],
        Value::Array(items) => items.iter().flat_map(texts).collect(),
        Value::Table(table) => table.0.iter().flat_map(|(_, node)| texts(node)).collect(),
        _ => Vec::new(),
    }
}

/// Returns the parameters of the templates in `chain`, with their arguments from `with` and the templates. Reports
/// missing parameters at `at`, and arguments that no template declares.
pub fn arguments(chain: &[&Template], with: &[(Name, Spanned)], at: &Location, problems: &mut Problems) -> Vec<(Name, Spanned)> {
    let mut values: Vec<(Name, Option<Spanned>, &str)> = Vec::new();
    let set = |id: &Name, value: Option<&Spanned>, values: &mut Vec<(Name, Option<Spanned>, &str)>| -> bool {
        match values.iter_mut().find(|(name, ..)| name.text == id.text) {
            Some((_, slot, _)) => {
                *slot = value.cloned();
                true
            }
            None => false,
        }
    };
    for template in chain {
        for (name, node) in &template.with {
            if !set(name, Some(node), &mut values) {
                problems.push(no_parameter(name, values.iter().map(|(name, ..)| name.text.as_str())));
            }
        }
        for parameter in &template.parameters {
            if !set(&parameter.id, parameter.default.as_ref(), &mut values) {
                values.push((parameter.id.clone(), parameter.default.clone(), &template.id));
            }
        }
    }
    for (name, node) in with {
        if !set(name, Some(node), &mut values) {
            problems.push(no_parameter(name, values.iter().map(|(name, ..)| name.text.as_str())));
        }
    }
    let mut given = Vec::new();
    for (name, value, template) in values {
        match value {
            Some(node) => given.push((name, node)),
            None => {
                let message = format!("parameter `{}` of template `{template}` is not given", name.text);
                let hint = format!("add `with = {{ {} = ... }}`", name.text);
                problems.push(Diagnostic::at(at, message).note(format!("it is declared at {}", name.location)).hint(hint));
            }
        }
    }
    given
}

fn no_parameter<'a>(name: &Name, known: impl Iterator<Item = &'a str>) -> Diagnostic {
    let known: Vec<&str> = known.collect();
    let hint = match (nearest(&name.text, known.iter().copied()), known.is_empty()) {
        (Some(near), _) => format!("did you mean `{near}`?"),
        (None, true) => "none of its templates has parameters".into(),
        (None, false) => format!("known: {}", known.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")),
    };
    Diagnostic::at(&name.location, format!("no template of this guest has a parameter `{}`", name.text)).hint(hint)
}

/// Reports the parameters that nothing in their template uses. `below` is the template with everything below it.
pub fn unused_parameters(template: &Template, below: &Table, problems: &mut Problems) {
    let whole = Spanned { value: Value::Table(below.clone()), location: template.location.clone(), replaces: false };
    let mut used: BTreeSet<String> = texts(&whole).into_iter().flat_map(names_in).collect();
    for node in template.parameters.iter().filter_map(|parameter| parameter.default.as_ref()) {
        used.extend(texts(node).into_iter().flat_map(names_in));
    }
    used.extend(template.with.iter().flat_map(|(_, node)| texts(node)).flat_map(names_in));
    for parameter in template.parameters.iter().filter(|parameter| !used.contains(&parameter.id.text)) {
        let message = format!("nothing in template `{}` uses its parameter `{}`", template.id, parameter.id.text);
        let hint = format!("use it as `{{{{ {} }}}}`, or remove it", parameter.id.text);
        problems.push(Diagnostic::at(&parameter.id.location, message).hint(hint));
    }
}

/// Returns the base of relative paths in a fleet file.
pub fn directory(source: &Source) -> &Path {
    source.directory.as_deref().unwrap_or(Path::new("/"))
}
