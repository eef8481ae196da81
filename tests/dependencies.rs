//! The rules for dependencies: licence, source, one release of each, and a reason.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// Licences that a dependency may have.
const LICENCES: &[&str] = &[
    "0BSD",
    "Apache-2.0",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "CDLA-Permissive-2.0",
    "ISC",
    "MIT",
    "Unicode-3.0",
    "Zlib",
    "bzip2-1.0.6",
];

/// Crates of which two releases are compiled, each with the one that holds the older back.
const TWICE: &[(&str, &str)] = &[
    ("bitflags", "fatfs and smoltcp"),
    ("embedded-io", "features of postcard that are off: cargo lists them and compiles neither"),
    ("getrandom", "ring"),
    ("shlex", "trycmd"),
    ("syn", "enumflags2_derive of landlock, zerocopy-derive of acpi_tables"),
];

/// What cargo says of the packages that a build for Linux compiles.
fn packages() -> Vec<serde_json::Value> {
    let arguments = ["metadata", "--locked", "--format-version", "1", "--filter-platform", "x86_64-unknown-linux-gnu"];
    let mut cargo = std::process::Command::new(env!("CARGO"));
    let output = cargo.args(arguments).current_dir(env!("CARGO_MANIFEST_DIR")).output().expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let used: Vec<_> = metadata["resolve"]["nodes"].as_array().expect("nodes").iter().map(|node| node["id"].clone()).collect();
    metadata["packages"].as_array().expect("packages").iter().filter(|package| used.contains(&package["id"])).cloned().collect()
}

/// Whether a licence expression (SPDX specification, annex D; `/` is cargo's older `OR`) can be met by [`LICENCES`].
fn is_allowed(expression: &str) -> bool {
    let expression = expression.replace('/', " OR ");
    let any = |text: &str| text.split(" OR ").any(|one| LICENCES.contains(&one.split(" WITH ").next().unwrap_or(one).trim()));
    expression.split(" AND ").all(|part| any(part.trim().trim_start_matches('(').trim_end_matches(')')))
}

#[test]
fn every_dependency_has_a_known_licence_and_source_and_is_compiled_once() {
    let packages = packages();
    let mut releases: BTreeMap<&str, usize> = BTreeMap::new();
    for package in &packages {
        let text = |key: &str| package[key].as_str().unwrap_or_default();
        *releases.entry(text("name")).or_default() += 1;
        assert!(is_allowed(text("license")), "{}: `{}`", text("name"), text("license"));
        let from_registry = text("source").starts_with("registry+") || text("name") == "vmctl";
        assert!(from_registry, "{} does not come from the registry: `{}`", text("name"), text("source"));
    }
    let twice: Vec<&str> = releases.iter().filter(|(_, count)| **count > 1).map(|(name, _)| *name).collect();
    assert_eq!(twice, TWICE.iter().map(|(name, _)| *name).collect::<Vec<_>>());
}

#[test]
fn every_dependency_has_its_reason() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let reasons = fs::read_to_string(root.join("docs/dependencies.md")).expect("a readable file");
    let rows = reasons.lines().filter_map(|line| line.strip_prefix("| ")?.split(" | ").next());
    let named = rows.chain(reasons.lines().filter(|line| line.starts_with("For tests only"))).collect::<Vec<_>>().join(" ");
    let words: Vec<&str> = named.split(|c: char| !c.is_ascii_alphanumeric() && !"-_".contains(c)).collect();
    let manifest: toml::Table = fs::read_to_string(root.join("Cargo.toml")).expect("a readable file").parse().expect("TOML");
    let mut tables = vec![&manifest["dependencies"], &manifest["dev-dependencies"]];
    tables.extend(manifest["target"].as_table().expect("a table").values().map(|target| &target["dependencies"]));
    for name in tables.into_iter().flat_map(|table| table.as_table().expect("a table").keys()) {
        assert!(words.contains(&name.as_str()), "docs/dependencies.md does not say why `{name}` is there");
    }
}
