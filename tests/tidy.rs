//! The rules of the house, held as tests: who imports whom, where `unsafe` may live, what every file has.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Who may import whom: the table of ARCHITECTURE.md. A part may always import itself.
const IMPORTS: &[(&str, &[&str])] = &[
    ("units", &[]),
    ("inputs", &[]),
    ("choices", &[]),
    ("config", &["choices", "inputs", "units"]),
    ("fetch", &["inputs", "units"]),
    ("host", &["inputs", "units"]),
    ("hypervisor", &["units"]),
    ("devices", &["hypervisor", "units"]),
    ("machine", &["choices", "devices", "hypervisor", "inputs", "units"]),
    ("guest", &["choices", "config", "fetch", "host", "inputs", "machine", "units"]),
    ("cli", &["choices", "config", "devices", "fetch", "guest", "host", "hypervisor", "inputs", "machine", "units"]),
];

/// Files and folders in which `unsafe` may stand.
const UNSAFE_ISLANDS: &[&str] = &[
    "src/hypervisor/memory.rs",
    "src/hypervisor/soft/op.rs",
    "src/hypervisor/soft/mem.rs",
    "src/hypervisor/soft/block.rs",
    "src/hypervisor/soft/run.rs",
    "src/hypervisor/soft/mmu.rs",
    "src/hypervisor/soft/int/",
    "src/hypervisor/soft/simd/fast.rs",
    "src/devices/disk/medium.rs",
    "src/machine/sandbox/freebsd.rs",
    "src/host/",
];

/// Most lines of a file before its tests.
const MAX_LINES: usize = 800;

fn sources(dir: &str) -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    let mut stack = vec![root.join(dir)];
    while let Some(path) = stack.pop() {
        if path.is_dir() {
            stack.extend(fs::read_dir(&path).expect("a readable folder").map(|entry| entry.expect("an entry").path()));
        } else if path.extension().is_some_and(|ext| ext == "rs") {
            let name = path.strip_prefix(root).expect("below the root").to_string_lossy().into_owned();
            found.push((name, fs::read_to_string(&path).expect("a readable file")));
        }
    }
    found.sort();
    found
}

/// The lines before the file's unit tests, which may reach for more.
fn before_tests(text: &str) -> &str {
    text.find("#[cfg(test)]\nmod ").or_else(|| text.find("#[cfg(all(test")).map_or(text, |at| &text[..at])
}

fn part_of(file: &str) -> &str {
    let rest = file.strip_prefix("src/").expect("a source file");
    let first = rest.split('/').next().expect("never empty");
    first.strip_suffix(".rs").unwrap_or(first)
}

fn is_test_file(file: &str) -> bool {
    file.ends_with("/tests.rs") || file.contains("/tests/") || file.ends_with("conformance.rs")
}

/// The parts that a text names in `crate::part` paths, with `crate::{a, b}` groups.
fn imported(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (at, _) in text.match_indices("crate::") {
        let rest = &text[at + "crate::".len()..];
        let Some(group) = rest.strip_prefix('{') else {
            found.push(rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect());
            continue;
        };
        let (mut depth, mut name) = (1, String::new());
        for c in group.chars() {
            match c {
                '{' => depth += 1,
                '}' => depth -= 1,
                ',' if depth == 1 => found.push(std::mem::take(&mut name)),
                c if depth == 1 && !c.is_whitespace() => name.push(c),
                _ => {}
            }
            if depth == 0 {
                break;
            }
        }
        found.push(name);
    }
    found
        .into_iter()
        .map(|name: String| name.split("::").next().unwrap_or("").to_string())
        .filter(|name| !name.is_empty())
        .collect()
}

#[test]
fn every_part_imports_only_what_the_table_allows() {
    let table: BTreeMap<&str, &[&str]> = IMPORTS.iter().copied().collect();
    let mut wrong = Vec::new();
    for (file, text) in
        sources("src").iter().filter(|(file, _)| !matches!(file.as_str(), "src/lib.rs" | "src/main.rs") && !is_test_file(file))
    {
        let part = part_of(file);
        let allowed = table.get(part).unwrap_or_else(|| panic!("{file} is in no part of the table"));
        for name in imported(before_tests(text)) {
            if table.contains_key(name.as_str()) && name != part && !allowed.contains(&name.as_str()) {
                wrong.push(format!("{file}: {part} must not import {name}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn unsafe_code_stands_only_on_its_islands_and_every_block_says_why() {
    let mut wrong = Vec::new();
    for (file, text) in sources("src") {
        let code = before_tests(&text);
        if !code.contains("allow(unsafe_code)") || is_test_file(&file) {
            continue;
        }
        if !UNSAFE_ISLANDS.iter().any(|island| file.starts_with(island)) {
            wrong.push(format!("{file}: allows unsafe code and is no island"));
        }
        if code.contains("unsafe {") && !code.contains("SAFETY:") {
            wrong.push(format!("{file}: has unsafe blocks and no SAFETY comment"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_file_says_what_it_is_and_stays_readable() {
    let mut wrong = Vec::new();
    for (file, text) in sources("src") {
        if !text.starts_with("//!") && !is_test_file(&file) {
            wrong.push(format!("{file}: does not begin with its documentation"));
        }
        let lines = before_tests(&text).lines().count();
        if lines > MAX_LINES && !is_test_file(&file) {
            wrong.push(format!("{file}: {lines} lines before its tests, {MAX_LINES} at the most"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn nothing_is_left_unfinished_or_never_run() {
    let mut wrong = Vec::new();
    for (file, text) in sources("src").into_iter().chain(sources("tests")).filter(|(file, _)| file != "tests/tidy.rs") {
        for mark in ["todo!(", "unimplemented!(", "#[ignore"] {
            if text.contains(mark) {
                wrong.push(format!("{file}: {mark}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn no_folder_or_file_has_a_name_that_says_nothing() {
    const NOTHING: &[&str] = &["util", "utils", "common", "misc", "helpers", "types", "manager"];
    let wrong: Vec<PathBuf> = sources("src")
        .into_iter()
        .map(|(file, _)| PathBuf::from(file))
        .filter(|path| {
            path.with_extension("").components().any(|part| NOTHING.contains(&part.as_os_str().to_string_lossy().as_ref()))
        })
        .collect();
    assert!(wrong.is_empty(), "{wrong:?}");
}

/// Folders of the tree whose paths stand in backticks in the documents.
const NAMED: &[&str] = &[
    "src/",
    "tests/",
    "docs/",
    "scripts/",
    "fuzz/",
    "man/",
    "packaging/",
    "templates/",
    "examples/",
    "benches/",
    "catalogue/",
    "rc.d/",
];

#[test]
fn paths_that_the_documents_name_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut documents: Vec<PathBuf> = ["ARCHITECTURE.md", "README.md", "SECURITY.md"].map(|name| root.join(name)).into();
    for folder in ["docs", "docs/decisions", "packaging/freebsd"] {
        let entries = fs::read_dir(root.join(folder)).expect("a readable folder");
        documents
            .extend(entries.map(|entry| entry.expect("an entry").path()).filter(|path| path.extension() == Some("md".as_ref())));
    }
    let mut wrong = Vec::new();
    for document in documents {
        let text = fs::read_to_string(&document).expect("a readable file");
        let name = document.strip_prefix(root).expect("below the root").display().to_string();
        let folder = document.parent().expect("a file has a folder");
        // Files of the tree, in backticks; a made-up name is in capitals or has a star.
        let quoted = text.split('`').skip(1).step_by(2);
        let paths =
            quoted.filter_map(|word| word.split_whitespace().next()).filter(|word| NAMED.iter().any(|at| word.starts_with(at)));
        for path in paths.filter(|path| !path.contains(['*', '{', '<']) && !path.chars().any(char::is_uppercase)) {
            if !root.join(path.trim_end_matches([':', ',', '.'])).exists() {
                wrong.push(format!("{name}: `{path}`"));
            }
        }
        // Links to other documents.
        for (at, _) in text.match_indices("](") {
            let target = text[at + 2..].split([')', '#']).next().expect("never empty");
            if !target.is_empty() && !target.contains("://") && !folder.join(target).exists() {
                wrong.push(format!("{name}: ({target})"));
            }
        }
    }
    assert!(wrong.is_empty(), "not there:\n{}", wrong.join("\n"));
}
