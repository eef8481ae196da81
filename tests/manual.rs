//! The manual page of the files holds every key of the key table and no other, and is clean mdoc. Its lists of keys are
//! written from the table: `BLESS=1` puts them in.

use std::fmt::Write;
use std::path::Path;
use std::process::Command;

use vmctl::config::keys::{GUEST_KEYS, HOST_KEYS, Key, Kind, Support};

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/man/vmctl.toml.5");

/// A text of the key table as mdoc: one sentence a line, words in backticks in bold.
fn mdoc(text: &str) -> String {
    let mut result = String::new();
    for (at, part) in text.replace('\\', "\\e").split('`').enumerate() {
        result.push_str(&if at % 2 == 1 { format!("\\fB{part}\\fP") } else { part.replace(". ", ".\n") });
    }
    result.lines().map(|line| if line.starts_with(['.', '\'']) { format!("\\&{line}\n") } else { format!("{line}\n") }).collect()
}

fn argument(kind: Kind) -> &'static str {
    match kind {
        Kind::Table { short: None } => "table",
        Kind::Table { short: Some(_) } => "value | table",
        Kind::Entries => "tables",
        Kind::Text => "text",
        Kind::Name => "name",
        Kind::Path => "path",
        Kind::Flag => "true | false",
        Kind::Integer { .. } => "number",
        Kind::Size => "size",
        Kind::Duration => "duration",
        Kind::OneOf(_) => "choice",
        Kind::Texts { one: false } => "[texts]",
        Kind::Texts { one: true } => "text | [texts]",
        Kind::Paths => "[paths]",
        Kind::Map => "table of your own",
        Kind::Mac => "MAC-address",
        Kind::Uuid => "UUID",
        Kind::Address => "IP-address",
        Kind::Network => "IPv4-network",
    }
}

/// Which engines act on it; nothing for those of this version.
fn engines(support: Support) -> &'static str {
    match support {
        Support::Now => "",
        Support::Bhyve => "Only with the engine bhyve, which is not in this version.\n",
        Support::Later(_) => "Not in this version.\n",
    }
}

fn item(key: &Key, text: &mut String) {
    let head = match key.kind {
        Kind::Table { short: None } => format!("[{}]", key.path),
        Kind::Entries => format!("[[{}]]", key.path),
        kind => format!("{} No = Ar {}", key.path, argument(kind)),
    };
    writeln!(text, ".It Ic {head}").unwrap();
    text.push_str(&mdoc(key.doc));
    if let Kind::Integer { min, max } = key.kind {
        writeln!(text, "From {min} to {max}.").unwrap();
    }
    if let Kind::OneOf(choices) = key.kind {
        writeln!(text, ".Bl -tag -width writethrough -compact").unwrap();
        for choice in choices {
            writeln!(text, ".It Li {}", choice.value).unwrap();
            text.push_str(&mdoc(choice.doc));
            if choice.support != Support::Now {
                text.push_str(engines(choice.support));
            }
        }
        writeln!(text, ".El").unwrap();
    }
    if let Some(default) = key.default {
        writeln!(text, "Default:\n.Li {} .", default.replace('"', "\\(dq")).unwrap();
    }
    text.push_str(engines(key.support));
}

fn list(keys: &[Key]) -> String {
    let mut text = String::from(".Bl -tag -width Ds\n");
    keys.iter().for_each(|key| item(key, &mut text));
    text.push_str(".El\n");
    text
}

/// The page with its lists as the key table has them now.
fn written(page: &str) -> String {
    let mut page = page.to_owned();
    for (name, keys) in [("guest", GUEST_KEYS), ("host", HOST_KEYS)] {
        let begin = format!(".\\\" BEGIN {name}\n");
        let start = page.find(&begin).expect("the page has the mark") + begin.len();
        let end = page.find(&format!(".\\\" END {name}\n")).expect("the page has the mark");
        page.replace_range(start..end, &list(keys));
    }
    page
}

#[test]
fn the_manual_page_has_every_key_of_the_table_and_no_other() {
    let page = std::fs::read_to_string(PAGE).expect("it is part of the source");
    let expected = written(&page);
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(PAGE, &expected).expect("the source is writable");
    } else {
        assert!(page == expected, "man/vmctl.toml.5 is behind src/config/keys.rs: BLESS=1 cargo test --test manual");
    }
    for key in GUEST_KEYS.iter().chain(HOST_KEYS) {
        let heads = [format!(".It Ic {} ", key.path), format!(".It Ic [{}]\n", key.path), format!(".It Ic [[{}]]\n", key.path)];
        assert!(heads.iter().any(|head| expected.contains(head)), "{}", key.path);
    }
}

#[test]
fn every_manual_page_is_clean_mdoc() {
    if Command::new("mandoc").arg("-h").output().is_err() {
        eprintln!("not checked: mandoc is not installed; CI has it");
        return;
    }
    for entry in std::fs::read_dir(Path::new(PAGE).parent().unwrap()).unwrap() {
        let path = entry.unwrap().path();
        let output = Command::new("mandoc").args(["-Tlint", "-Wwarning"]).arg(&path).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.is_empty(), "{said}");
    }
}
