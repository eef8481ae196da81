//! Rules that several classes of keys share: the ids of entries, the words of a command line, tables of the user's own.

use super::diagnostic::{Diagnostic, Problems};
use super::layer::{Spanned, Value};
use super::table_reader::TableReader;

/// Returns the `id` of an entry, which must exist and differ from those before it.
pub(super) fn entry_id(entry: &TableReader<'_>, class: &str, seen: &mut Vec<String>, problems: &mut Problems) -> String {
    let Some(id) = entry.text("id") else {
        let message = format!("an entry of `{class}` has no `id`");
        problems.push(Diagnostic::at(entry.location, message).hint("add `id = \"NAME\"`; templates and state refer to it"));
        return String::new();
    };
    if seen.contains(&id) {
        problems.push(Diagnostic::at(entry.location_of("id"), format!("id `{id}` is used twice in `{class}`")));
    }
    seen.push(id.clone());
    id
}

/// Returns the words of a command line: no NUL, none empty.
pub(super) fn command_words(view: &TableReader<'_>, leaf: &str, problems: &mut Problems) -> Vec<String> {
    for (text, node) in view.text_nodes(leaf) {
        if text.is_empty() || text.contains(['\0', '\n']) {
            problems.push(Diagnostic::at(&node.location, format!("a word of `{leaf}` is empty or has a line end")));
        }
    }
    view.texts(leaf)
}

/// Returns the names and values of a table with the user's own names. Numbers and flags stay as they are written.
pub(super) fn map(view: &TableReader<'_>, leaf: &str, problems: &mut Problems) -> Vec<(String, String)> {
    let Some(Spanned { value: Value::Table(table), .. }) = view.node(leaf) else { return Vec::new() };
    let mut found = Vec::new();
    for (name, node) in &table.0 {
        let text = match &node.value {
            Value::Text(text) => text.clone(),
            Value::Integer(number) => number.to_string(),
            Value::Flag(flag) => flag.to_string(),
            other => {
                let message = format!("`{}` is {}, not a text, a number or a boolean", name.text, other.kind());
                let diagnostic = Diagnostic::at(&node.location, message);
                let dotted = matches!(other, Value::Table(_)) && leaf == "options";
                problems
                    .push(diagnostic.maybe_hint(
                        dotted.then(|| "a name with dots is written in quotes: `\"pci.0.4.0.maxq\" = 8`".to_owned()),
                    ));
                continue;
            }
        };
        if text.contains(['\0', '\n']) || name.text.is_empty() || name.text.contains(['=', '\n', '\0']) {
            problems.push(Diagnostic::at(&node.location, format!("`{}` and its value cannot be on a command line", name.text)));
        }
        found.push((name.text.clone(), text));
    }
    found
}
