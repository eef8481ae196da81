//! The rules of the house, held as tests: who imports whom, where `unsafe` may live, what every file has.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Who may import whom: the table of ARCHITECTURE.md. A part may always import itself.
const IMPORTS: &[(&str, &[&str])] = &[
    ("error", &[]),
    ("poll", &[]),
    ("units", &[]),
    ("inputs", &[]),
    ("choices", &[]),
    ("config", &["choices", "inputs", "units"]),
    ("fetch", &["error", "inputs", "units"]),
    ("host", &["error", "inputs", "poll", "units"]),
    ("hypervisor", &["units"]),
    ("devices", &["hypervisor", "poll", "units"]),
    ("machine", &["choices", "devices", "hypervisor", "inputs", "units"]),
    ("guest", &["choices", "config", "error", "fetch", "host", "inputs", "machine", "poll", "units"]),
    ("testing", &["choices", "cli", "config", "devices", "fetch", "guest", "host", "hypervisor", "inputs", "machine", "units"]),
    (
        "cli",
        &["choices", "config", "devices", "error", "fetch", "guest", "host", "hypervisor", "inputs", "machine", "poll", "units"],
    ),
];

/// Files and folders in which `unsafe` may stand.
const UNSAFE_ISLANDS: &[&str] = &[
    // The kernel writes to the memory of a slot; mmap(2) of a vCPU's page, a signal handler, tgkill(2).
    "src/hypervisor/kvm/memory.rs",
    "src/hypervisor/kvm/page.rs",
    // ioctl(2) on a machine's descriptor, mmap(2) of its memory.
    "src/hypervisor/vmm/freebsd.rs",
    // The kernel's structures as bytes; KVM_SET_XSAVE.
    "src/hypervisor/kvm/saved.rs",
    "src/hypervisor/memory/host.rs",
    "src/hypervisor/memory/io.rs",
    "src/hypervisor/memory/mod.rs",
    "src/hypervisor/soft/op.rs",
    "src/hypervisor/soft/mem.rs",
    "src/hypervisor/soft/block.rs",
    "src/hypervisor/soft/run.rs",
    "src/hypervisor/soft/mmu.rs",
    "src/hypervisor/soft/one.rs",
    "src/hypervisor/soft/int/",
    "src/hypervisor/soft/simd/fast.rs",
    "src/devices/disk/medium.rs",
    // The kernel gets addresses of guest memory that it uses later.
    "src/devices/disk/uring.rs",
    "src/devices/net/tap.rs",
    "src/machine/sandbox/freebsd.rs",
    "src/machine/sandbox/linux/privileges.rs",
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

/// The words of a text that may be names.
fn names(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty())
}

#[test]
fn nothing_is_public_but_the_command_and_what_the_tests_use() {
    // What is public is used as far as the compiler knows: so it finds what nothing uses.
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |file: &str| fs::read_to_string(root.join(file)).expect("a readable file");
    let lib = read("src/lib.rs");
    let public: Vec<&str> = lib.lines().filter_map(|line| line.trim_start().strip_prefix("pub ")).collect();
    let words: Vec<Vec<&str>> = public.iter().map(|line| names(line).take(2).collect()).collect();
    assert_eq!(words, [["mod", "testing"], ["fn", "main"]], "make it private");

    let users: Vec<(String, String)> = ["tests", "benches", "fuzz"].into_iter().flat_map(sources).collect();
    let used: BTreeSet<&str> = users.iter().flat_map(|(_, text)| names(text)).collect();
    let testing = read("src/testing.rs");
    let exports = testing.split(';').filter_map(|item| item.split_once("pub use crate::")).map(|(_, path)| path);
    let left: Vec<&str> = exports
        .flat_map(|path| {
            names(path.split_once('{').map_or_else(|| path.rsplit("::").next().expect("never empty"), |(_, group)| group))
        })
        .filter(|name| !used.contains(name))
        .collect();
    assert!(left.is_empty(), "src/testing.rs has what no test, bench or fuzz body names: {left:?}");
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
        // What a bare `cargo test` cannot run is run by `make test`, and says so.
        let text =
            text.replace("#[ignore = \"needs a guest: make test\"]", "").replace("#[ignore = \"needs tools: make test\"]", "");
        for mark in ["todo!(", "unimplemented!(", "#[ignore"] {
            if text.contains(mark) {
                wrong.push(format!("{file}: {mark}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn one_place_polls() {
    let polls = |text: &str| ["nix::poll", "libc::poll"].iter().any(|name| before_tests(text).contains(name));
    let files = sources("src").into_iter().filter(|(file, text)| polls(text) && !is_test_file(file)).map(|(file, _)| file);
    assert_eq!(files.collect::<Vec<_>>(), ["src/poll.rs"], "use crate::poll");
}

#[test]
fn one_place_knows_where_the_program_is() {
    let knows = |text: &str| ["current_exe", "proc/self/exe"].iter().any(|name| before_tests(text).contains(name));
    let files = sources("src").into_iter().filter(|(file, text)| !is_test_file(file) && knows(text)).map(|(file, _)| file);
    assert_eq!(files.collect::<Vec<_>>(), ["src/host/process.rs"], "use host::process::own_program or own_file");
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
    let mut documents: Vec<PathBuf> =
        ["ARCHITECTURE.md", "CONTRIBUTING.md", "README.md", "SECURITY.md"].map(|name| root.join(name)).into();
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

/// The paths that a file's code names below `crate`: those of `use`, with their groups written out, and those in the
/// code itself. `super` and `self` are followed from the file's own module.
fn paths_named(file: &str, text: &str) -> Vec<Vec<String>> {
    let code: String =
        before_tests(text).lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n");
    let module = module_of(file);
    // What `super` leads to is the module's parent, also from a `mod.rs`.
    let own: Vec<String> = module.split("::").map(str::to_owned).collect();
    let mut found = Vec::new();
    for start in ["crate::", "super::", "self::"] {
        for (at, _) in code.match_indices(start) {
            let inside_a_path = code[..at].ends_with("::") || code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_');
            // `super::super::x` is found from its first word.
            if inside_a_path {
                continue;
            }
            let mut base = match start {
                "crate::" => Vec::new(),
                _ => own.clone(),
            };
            let mut rest = &code[at..];
            while let Some(after) = rest.strip_prefix("super::") {
                base.pop();
                rest = after;
            }
            rest = rest.strip_prefix("crate::").or_else(|| rest.strip_prefix("self::")).unwrap_or(rest);
            tree(rest, &mut base, &mut found);
        }
    }
    found
}

/// Writes the paths of a `use` tree (or of one path) out, below `base`; returns what follows it.
fn tree<'a>(text: &'a str, base: &mut Vec<String>, found: &mut Vec<Vec<String>>) -> &'a str {
    let text = text.trim_start();
    if let Some(mut inner) = text.strip_prefix('{') {
        loop {
            inner = tree(inner, base, found).trim_start();
            match inner.chars().next() {
                Some(',') => inner = inner[1..].trim_start(),
                Some('}') => return &inner[1..],
                // No group of a `use` after all.
                _ => return inner,
            }
            if let Some(after) = inner.strip_prefix('}') {
                return after;
            }
        }
    }
    let end = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
    let (name, rest) = text.split_at(end);
    base.push(name.to_owned());
    let rest = match rest.strip_prefix("::") {
        Some(below) if below.starts_with(|c: char| c.is_alphanumeric() || c == '_' || c == '{') => tree(below, base, found),
        _ => {
            found.push(base.clone());
            rest
        }
    };
    base.pop();
    // `x as y`
    match rest.strip_prefix(" as ") {
        Some(renamed) => renamed.trim_start_matches(|c: char| c.is_alphanumeric() || c == '_'),
        None => rest,
    }
}

/// `config::fleet::keys` for `src/config/fleet/keys.rs`, `config::fleet` for its `mod.rs`.
fn module_of(file: &str) -> String {
    let path = file.strip_prefix("src/").expect("a source file").strip_suffix(".rs").expect("a source file");
    path.strip_suffix("/mod").unwrap_or(path).replace('/', "::")
}

/// Which module of a folder of `src` imports which, each named in full.
fn imports_within(folder: &str) -> BTreeMap<String, BTreeSet<String>> {
    let files: Vec<(String, String)> =
        sources(&format!("src/{folder}")).into_iter().filter(|(file, _)| !is_test_file(file)).collect();
    let modules: BTreeSet<String> = files.iter().map(|(file, _)| module_of(file)).collect();
    let mut graph = BTreeMap::new();
    for (file, text) in &files {
        let mut to = BTreeSet::new();
        for path in paths_named(file, text) {
            // The longest start of the path that is a module; what follows is an item of it.
            let module = (1..=path.len()).rev().map(|length| path[..length].join("::")).find(|start| modules.contains(start));
            to.extend(module.filter(|module| *module != module_of(file)));
        }
        graph.insert(module_of(file), to);
    }
    // A `mod.rs` declares the modules of its folder, and what it hands on comes from them.
    for (file, text) in files.iter().filter(|(file, _)| file.ends_with("/mod.rs")) {
        let module = module_of(file);
        let declared = before_tests(text).lines().filter_map(|line| line.trim_start_matches("pub ").strip_prefix("mod "));
        let declared: Vec<String> =
            declared.map(|rest| format!("{module}::{}", rest.split([';', ' ']).next().unwrap_or_default())).collect();
        graph.get_mut(&module).expect("it is in the graph").extend(declared);
    }
    graph
}

/// A circle of the graph: each imports the next, and the last one the first.
fn circle(graph: &BTreeMap<String, BTreeSet<String>>) -> Option<Vec<String>> {
    // Whoever imports nothing that is left cannot be in a circle.
    let mut left = graph.clone();
    loop {
        let free: Vec<String> = left.iter().filter(|(_, to)| to.is_empty()).map(|(name, _)| name.clone()).collect();
        if free.is_empty() {
            break;
        }
        left.retain(|name, _| !free.contains(name));
        left.values_mut().for_each(|to| to.retain(|name| !free.contains(name)));
    }
    let mut path: Vec<String> = vec![left.keys().next()?.clone()];
    loop {
        let next = left[path.last().expect("never empty")].iter().next().expect("it imports one that is left").clone();
        if let Some(at) = path.iter().position(|name| *name == next) {
            return Some(path.split_off(at));
        }
        path.push(next);
    }
}

#[test]
fn no_file_of_config_imports_one_that_imports_it() {
    for part in ["choices", "config"] {
        let found = circle(&imports_within(part));
        assert!(found.is_none(), "{part}: {}", found.unwrap_or_default().join(" -> "));
    }
}

#[test]
fn a_circle_of_imports_is_found() {
    let paths =
        paths_named("src/config/a.rs", "use super::{b::{C, d}, e};\nuse crate::config::f as g;\nfn h() { super::i::j(1) }");
    let paths: Vec<String> = paths.iter().map(|path| path.join("::")).collect();
    assert_eq!(paths, ["config::f", "config::b::C", "config::b::d", "config::e", "config::i::j"]);
    let graph = |edges: &[(&str, &[&str])]| {
        edges.iter().map(|(from, to)| ((*from).to_owned(), to.iter().map(|to| (*to).to_owned()).collect())).collect()
    };
    assert_eq!(circle(&graph(&[("a", &["b", "c"]), ("b", &["c"]), ("c", &[])])), None);
    assert_eq!(circle(&graph(&[("a", &["b"]), ("b", &["c"]), ("c", &["b"])])), Some(vec!["b".to_owned(), "c".to_owned()]));
}

#[test]
fn no_macro_lands_in_the_crate_root() {
    let wrong: Vec<String> = sources("src")
        .into_iter()
        .filter(|(_, text)| text.lines().any(|line| line.trim_start().starts_with("#[macro_export]")))
        .map(|(file, _)| format!("{file}: `pub(crate) use` takes a macro to where it is wanted"))
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
