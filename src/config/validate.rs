//! Check of a tree against the key table: unknown keys, wrong types, values out of range, and keys and values that this
//! build does not support.

use std::net::IpAddr;

use super::addresses::{MacAddr, PciAddress, network};
use super::diagnostic::{Diagnostic, nearest};
use super::key::{Key, KeyTable, Kind};
use super::layer::{Name, Spanned, Table, Value};
use crate::choices::{Choice, EngineKind, Support};
use crate::units::{ByteSize, UnitError, parse_duration};

/// What to do without a folder that is shared with the guest.
const SHARE_HINT: &str = "the embedded engine shares no folders yet: `vmctl cp` copies them into the guest and out of it";

/// Reports everything in `table` that the key table does not allow on this engine; for `None`, on any. A number that
/// stands for a text (the result of an expression, or a value of `--set`) becomes a text.
pub fn check_table(
    table: &mut Table,
    parent: &str,
    keys: &'static KeyTable,
    engine: Option<EngineKind>,
    problems: &mut Vec<Diagnostic>,
) {
    for (name, node) in &mut table.0 {
        let path = if parent.is_empty() { name.text.clone() } else { format!("{parent}.{}", name.text) };
        match keys.find(&path) {
            None => problems.push(unknown(name, parent, keys, engine)),
            Some(key) => match refusal(key.support, engine) {
                Some((reason, hint)) => {
                    let hint = if path == "shares" { SHARE_HINT } else { hint };
                    problems.push(Diagnostic::at(&name.location, format!("`{path}` {reason}")).hint(hint));
                }
                None => value(node, key, keys, engine, problems),
            },
        }
    }
}

fn unknown(name: &Name, parent: &str, keys: &'static KeyTable, engine: Option<EngineKind>) -> Diagnostic {
    let here = if parent.is_empty() { String::new() } else { format!(" in `{parent}`") };
    let diagnostic = Diagnostic::at(&name.location, format!("unknown key `{}`{here}", name.text));
    let siblings = keys.children(parent).map(|key| key.leaf());
    if let Some(near) = nearest(&name.text, siblings) {
        return diagnostic.hint(format!("did you mean `{near}`?"));
    }
    match keys.iter().find(|key| key.leaf() == name.text && !key.parent().is_empty()) {
        Some(elsewhere) if matches!(keys.find(elsewhere.parent()), Some(Key { kind: Kind::Entries, .. })) => {
            diagnostic.hint(format!("it belongs in `[[{}]]`", elsewhere.parent()))
        }
        Some(elsewhere) => diagnostic.hint(format!("it belongs in `[{}]`", elsewhere.parent())),
        None => {
            let known: Vec<String> =
                keys.children(parent).filter(|key| key.support.on(engine)).map(|key| format!("`{}`", key.leaf())).collect();
            diagnostic.hint(format!("known keys: {}", known.join(", ")))
        }
    }
}

/// Returns why the guest's engine does not support something, and what to do.
pub fn refusal(support: Support, engine: Option<EngineKind>) -> Option<(String, &'static str)> {
    if support.on(engine) {
        return None;
    }
    match support {
        Support::Later(until) => Some(("is not in this version of vmctl".into(), until)),
        Support::Embedded => Some((
            "needs the engine `embedded`, and this guest's engine is `bhyve`".into(),
            "set `engine = \"embedded\"`, or leave it out",
        )),
        Support::Bhyve | Support::Now => Some((
            "needs the engine `bhyve`, and this guest's engine is `embedded`".into(),
            "set `engine = \"bhyve\"`, or leave it out",
        )),
    }
}

fn value(
    node: &mut Spanned,
    key: &'static Key,
    keys: &'static KeyTable,
    engine: Option<EngineKind>,
    problems: &mut Vec<Diagnostic>,
) {
    become_text(node, key.kind);
    let location = node.location.clone();
    let mut report = |message: String, hint: Option<String>| problems.push(Diagnostic::at(&location, message).maybe_hint(hint));
    let wrong = |value: &Value| (format!("`{}` is {}, not {}", key.path, value.kind(), key.kind.words()), None);
    match (key.kind, &mut node.value) {
        (Kind::Table { .. }, Value::Table(table)) => check_table(table, key.path, keys, engine, problems),
        (Kind::Entries, Value::Array(items)) => entries(items, key, keys, engine, problems),
        (Kind::Entries, Value::Table(_)) => {
            report(format!("`{}` is a table, not an array of tables", key.path), Some(format!("write `[[{}]]`", key.path)));
        }
        (Kind::Map, Value::Table(_)) | (Kind::Flag, Value::Flag(_)) => {}
        (Kind::Integer { min, max }, Value::Integer(number)) => {
            if !(min..=max).contains(number) {
                report(format!("`{}` is `{number}`, not {}", key.path, key.kind.words()), None);
            }
        }
        (Kind::Size, Value::Integer(number)) => unit_error(number.to_string().parse::<ByteSize>().err(), key, &mut report),
        (Kind::Duration, Value::Integer(number)) => unit_error(parse_duration(&number.to_string()).err(), key, &mut report),
        (Kind::Texts { .. } | Kind::Paths, Value::Array(items)) => {
            for item in items {
                become_text(item, Kind::Text);
                if !matches!(item.value, Value::Text(_)) {
                    let message = format!("an item of `{}` is {}, not a text", key.path, item.value.kind());
                    problems.push(Diagnostic::at(&item.location, message));
                }
            }
        }
        (Kind::Texts { .. } | Kind::Paths, Value::Text(text)) => {
            report(format!("`{}` is a text, not an array", key.path), Some(format!("write `[\"{text}\"]`")));
        }
        (
            Kind::Table { .. } | Kind::Entries | Kind::Map | Kind::Flag | Kind::Integer { .. } | Kind::Texts { .. } | Kind::Paths,
            other,
        ) => {
            let (message, hint) = wrong(other);
            report(message, hint.or_else(|| unquoted(other, key.kind)));
        }
        (kind, Value::Text(text)) => scalar(text, kind, key, engine, &mut report),
        (_, other) => {
            let (message, hint) = wrong(other);
            report(message, hint);
        }
    }
}

/// Returns the value that a quoted one stands for: `"true"` for true, `"2"` for 2.
fn unquoted(value: &Value, kind: Kind) -> Option<String> {
    let Value::Text(text) = value else { return None };
    let fits = match kind {
        Kind::Flag => text == "true" || text == "false",
        Kind::Integer { .. } => text.parse::<i64>().is_ok(),
        _ => false,
    };
    fits.then(|| format!("write `{text}` without quotes"))
}

fn entries(
    items: &mut [Spanned],
    key: &'static Key,
    keys: &'static KeyTable,
    engine: Option<EngineKind>,
    problems: &mut Vec<Diagnostic>,
) {
    for item in items {
        match &mut item.value {
            Value::Table(table) => check_table(table, key.path, keys, engine, problems),
            other => {
                let message = format!("an item of `{}` is {}, not a table", key.path, other.kind());
                problems.push(Diagnostic::at(&item.location, message).hint(format!("write `[[{}]]`", key.path)));
            }
        }
    }
}

/// Makes a text of a number, which is the result of an expression or was given with `--set`.
fn become_text(node: &mut Spanned, kind: Kind) {
    let textual = !matches!(
        kind,
        Kind::Table { .. } | Kind::Entries | Kind::Map | Kind::Flag | Kind::Integer { .. } | Kind::Texts { .. } | Kind::Paths
    );
    let written = node.location.source.text.get(node.location.span.clone()).unwrap_or_default();
    let stands_in = written.starts_with(['"', '\''])
        || (node.location.source.label == "--set" && kind != Kind::Size && kind != Kind::Duration);
    if textual && stands_in {
        match &node.value {
            Value::Integer(number) => node.value = Value::Text(number.to_string()),
            Value::Flag(flag) => node.value = Value::Text(flag.to_string()),
            _ => {}
        }
    }
}

fn unit_error(error: Option<UnitError>, key: &Key, report: &mut impl FnMut(String, Option<String>)) {
    if let Some(error) = error {
        report(format!("`{}`: {}", key.path, error.message), error.hint);
    }
}

fn scalar(text: &str, kind: Kind, key: &Key, engine: Option<EngineKind>, report: &mut impl FnMut(String, Option<String>)) {
    let mut bad = |hint: &str| report(format!("`{}` is `{text}`, not {}", key.path, kind.words()), Some(hint.to_owned()));
    match kind {
        Kind::Size => unit_error(text.parse::<ByteSize>().err(), key, report),
        Kind::Duration => unit_error(parse_duration(text).err(), key, report),
        Kind::OneOf(choices) => choice(text, choices, key, engine, report),
        Kind::Name if !is_name(text) => {
            bad("lower-case letters, digits, `.`, `_` and `-`, at most 63, beginning and ending with a letter or digit");
        }
        Kind::Path if text.is_empty() || text.contains('\0') => bad("a path is not empty"),
        Kind::Text if text.contains('\0') => bad("a text has no NUL"),
        Kind::Mac if text.parse::<MacAddr>().is_err() => {
            bad("six bytes like `02:00:00:12:34:56`; the first one is even, and not all are zero");
        }
        Kind::Uuid if !is_uuid(text) => bad("like `6f1c5a9e-0d2b-4c3f-9e57-1b2a3c4d5e6f`"),
        Kind::Address if text.parse::<IpAddr>().is_err() => bad("like `127.0.0.1` or `::1`; not a host's name"),
        Kind::Network if network(text).is_none() => {
            bad("like `10.0.2.0/24`: the first address of the network and a prefix length from 8 to 28");
        }
        Kind::Slot if text.parse::<PciAddress>().is_err() => {
            bad("slot, slot:function or bus:slot:function, like `4`, `4:1` or `0:4:0`; slots go to 31, functions to 7");
        }
        _ => {}
    }
}

fn choice(
    text: &str,
    choices: &[Choice],
    key: &Key,
    engine: Option<EngineKind>,
    report: &mut impl FnMut(String, Option<String>),
) {
    let Some(found) = choices.iter().find(|choice| choice.value == text) else {
        let near = nearest(text, choices.iter().map(|choice| choice.value)).map(|near| format!("did you mean `{near}`?"));
        report(format!("`{}` is `{text}`, not {}", key.path, key.kind.words()), near);
        return;
    };
    if let Some((reason, hint)) = refusal(found.support, engine) {
        report(format!("`{} = \"{text}\"` {reason}", key.path), Some(hint.to_owned()));
    }
}

/// Returns whether a text can name a guest, a disk, a template.
pub fn is_name(text: &str) -> bool {
    let plain = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
    let bytes = text.as_bytes();
    (1..=63).contains(&bytes.len())
        && plain(bytes[0])
        && plain(bytes[bytes.len() - 1])
        && bytes.iter().all(|&c| plain(c) || matches!(c, b'.' | b'_' | b'-'))
}

/// Returns whether a text can name a guest: an argument that ends in `.toml` names a file.
pub fn is_guest_name(text: &str) -> bool {
    is_name(text) && !text.ends_with(".toml")
}

/// Description of valid guest names.
pub const GUEST_NAMES: &str = "at most 63 of a-z, 0-9, `.`, `_` and `-`, with a letter or digit at each end, and not with `.toml` at the end, as files have";

fn is_uuid(text: &str) -> bool {
    let lengths = [8, 4, 4, 4, 12];
    let mut parts = text.split('-');
    lengths.iter().all(|length| parts.next().is_some_and(|p| p.len() == *length && p.bytes().all(|b| b.is_ascii_hexdigit())))
        && parts.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_plain_and_bounded() {
        for good in ["a", "web1", "web-1.example_x", "0"] {
            assert!(is_name(good), "{good}");
        }
        for bad in ["", "-a", "a-", ".", "..", "A", "a b", "a/b", "é", &"a".repeat(64)] {
            assert!(!is_name(bad), "{bad}");
        }
    }
}
