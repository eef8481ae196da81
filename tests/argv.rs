//! The command lines for bhyve(8): golden ones for every template (`tests/argv/*.txt`, `BLESS=1` writes them anew), and
//! those of FreeBSD's handbook, held against the table in docs/handbook.md.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use vmctl::testing::config::{EngineKind, GuestConfig, GuestRequest, HostConfig, HostPaths, load_guest};
use vmctl::testing::guest::engine::bhyve::argv::{CommandLine, Inputs, Lines, Resolved, as_shell_text, build};
use vmctl::testing::guest::state::GuestState;
use vmctl::testing::host::bhyve::HostFeatures;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn load(file: &Path, text: Option<&str>, name: Option<&str>) -> GuestConfig {
    let paths = HostPaths {
        config_file: "/nonexistent/vmctl.toml".into(),
        datastore: "/nonexistent".into(),
        cache_dir: "/nonexistent".into(),
        runtime_dir: "/nonexistent".into(),
    };
    let host = HostConfig::of(&paths, EngineKind::Embedded);
    let request = GuestRequest { file, text, name, sets: &[], host: &host, datastore: Path::new("/nonexistent") };
    load_guest(&request).unwrap_or_else(|problems| panic!("{problems}")).config
}

fn state(config: &GuestConfig) -> GuestState {
    let mut state = GuestState::new(&config.name);
    state.uuid = "1b4e28ba-2fa1-4d39-883f-0016d3cca427".into();
    state.assign(config).unwrap_or_else(|error| panic!("{error}"));
    state
}

fn lines(config: &GuestConfig, release: &str) -> Result<Lines, String> {
    let state = state(config);
    let features = HostFeatures::of_release(release).expect("a known release");
    // The guests of a jail live below its root.
    let root = config.jail.as_ref().and_then(|jail| jail.root.clone()).unwrap_or_default();
    let resolved = Resolved::defaults(config, &Path::new("/").join(root).join("guests").join(&config.name));
    let built = build(Inputs { config, state: &state, features: &features, resolved: &resolved });
    built.map_err(|error| match error.next_step() {
        Some(hint) => format!("error: {error}\nhint: {hint}\n"),
        None => format!("error: {error}\n"),
    })
}

fn golden(name: &str, config: &GuestConfig, releases: &[&str]) {
    let mut text = String::new();
    for release in releases {
        let built = lines(config, release).map_or_else(|error| error, |lines| as_shell_text(&lines, true));
        text.push_str(&format!("## FreeBSD {release}\n{built}\n"));
    }
    let file = root().join("tests/argv").join(format!("{name}.txt"));
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(&file, &text).expect("the source is writable");
    }
    assert_eq!(std::fs::read_to_string(&file).unwrap_or_default(), text, "{name}");
}

#[test]
fn every_template_for_bhyve_has_the_command_lines_that_are_written_down() {
    let mut seen = 0;
    for (name, text) in vmctl::testing::config::resolve::BUILT_IN_TEMPLATES {
        if !["bhyve", "template = \"freebsd", "template = \"linux-uefi", "template = \"windows"]
            .iter()
            .any(|mark| text.contains(mark))
        {
            continue;
        }
        let text = format!("template = \"{name}\"");
        let config = load(Path::new("/guests/guest.toml"), Some(&text), Some("guest"));
        assert_eq!(config.engine, EngineKind::Bhyve, "{name}");
        golden(&format!("template-{name}"), &config, &["13.2", "15.0"]);
        seen += 1;
    }
    assert!(seen >= 14, "{seen}");
}

#[test]
fn files_with_every_key_have_the_command_lines_that_are_written_down() {
    for name in ["pass-bhyve-uefi", "pass-bhyve-grub", "pass-bhyve-openbsd", "pass-bhyveload"] {
        let text = std::fs::read_to_string(root().join(format!("tests/config/{name}.toml"))).expect("it is there");
        // The paths of the file would be those of this checkout; those of the jail lie below its root.
        let config = load(
            Path::new("/jails/vms/guests/guest.toml"),
            Some(
                &text
                    .replace("\"/usr/src\"", "\"src\"")
                    .replace("\"/etc/hostid\"", "\"/jails/vms/hostid\"")
                    .replace("\"/var/run/other.sock\"", "\"other.sock\""),
            ),
            Some("guest"),
        );
        let state = state(&config);
        let features = HostFeatures::of_release("current").expect("a known release");
        let resolved = Resolved::defaults(&config, Path::new("/jails/vms/guests"));
        let built = build(Inputs { config: &config, state: &state, features: &features, resolved: &resolved });
        let text = as_shell_text(&built.unwrap_or_else(|error| panic!("{name}: {error}")), true);
        let file = root().join("tests/argv").join(format!("{name}.txt"));
        if std::env::var_os("BLESS").is_some() {
            std::fs::write(&file, &text).expect("the source is writable");
        }
        assert_eq!(std::fs::read_to_string(&file).unwrap_or_default(), text, "{name}");
    }
}

/// Flags of each program that take a value.
fn takes_a_value(program: &str, flag: char) -> bool {
    match program {
        "bhyve" => "cfGkKlmnoprsU".contains(flag),
        "bhyveload" => "cdehlm".contains(flag),
        _ => "cdgmMr".contains(flag),
    }
}

/// A command line as a set of flags and values, with the differences taken out that docs/handbook.md lists.
fn normal(words: &[String]) -> BTreeMap<String, usize> {
    let program = words[0].as_str();
    let mut found = BTreeMap::new();
    let mut add = |entry: String| *found.entry(entry).or_insert(0) += 1;
    let mut rest = words[1..].iter();
    while let Some(word) = rest.next() {
        let Some(flags) = word.strip_prefix('-') else {
            add(format!("name {word}"));
            continue;
        };
        let mut flags = flags.chars();
        while let Some(flag) = flags.next() {
            if !takes_a_value(program, flag) {
                // 2: no -A on 14; 6: no -D.
                if !(program == "bhyve" && "AD".contains(flag)) {
                    add(format!("-{flag}"));
                }
                continue;
            }
            let inline: String = flags.by_ref().collect();
            let value = if inline.is_empty() { rest.next().expect("a flag has its value").clone() } else { inline };
            if (program == "bhyve" && flag == 'U') || value.starts_with("smbios.system.uuid=") {
                break; // 4
            }
            add(format!("-{flag} {}", normal_value(program, flag, &value)));
            break;
        }
    }
    found
}

fn normal_value(program: &str, flag: char, value: &str) -> String {
    match (program, flag) {
        ("bhyve" | "bhyveload", 'm') | ("grub-bhyve", 'M') => value.replace("1024M", "1G"),
        ("bhyve", 's') => {
            let (address, device) = value.split_once(',').expect("a slot has a device");
            let address = address.strip_suffix(":0").unwrap_or(address);
            let parts = device.split(',').filter(|part| !part.starts_with("mac="));
            let fbuf = device.starts_with("fbuf,");
            let parts = parts.filter(|part| !(fbuf && *part == "tablet")); // 8
            format!("{address},{}", parts.map(file_name).collect::<Vec<_>>().join(","))
        }
        ("bhyve", 'l') => {
            let mut parts: Vec<&str> = value.split(',').collect();
            if parts[0] == "com1" && (parts[1] == "stdio" || parts[1].starts_with("/dev/nmdm-vmctl-")) {
                parts[1] = "console"; // 5
            }
            if parts.len() == 3 {
                parts[2] = "the guest's variables"; // 7
            }
            parts.join(",")
        }
        ("bhyveload" | "grub-bhyve", 'c') => "console".into(), // 5
        ("bhyveload", 'd') | ("grub-bhyve", 'm') => file_name(value).to_owned(),
        _ => value.to_owned(),
    }
}

/// 3: what a relative path names. Devices are no files.
fn file_name(part: &str) -> &str {
    let relative = part.starts_with("./") || part.contains("/examples/handbook/") || part.starts_with("/guests/");
    if relative { part.rsplit('/').next().expect("never empty") } else { part }
}

fn words(line: &CommandLine) -> Vec<String> {
    std::iter::once(line.program.to_owned()).chain(line.words()).collect()
}

#[test]
fn each_command_of_the_handbook_is_built_from_its_guest_file() {
    let page = std::fs::read_to_string(root().join("docs/handbook.md")).expect("it is part of the source");
    let directory = root().join("examples/handbook");
    let mut used: Vec<PathBuf> = Vec::new();
    for row in page.lines().filter(|line| line.starts_with("| 24.")) {
        let cells: Vec<&str> = row.trim_matches('|').split(" | ").map(str::trim).collect();
        let [_, command, file] = cells[..] else { panic!("{row}") };
        let expected: Vec<String> = command.trim_matches('`').split_whitespace().map(str::to_owned).collect();
        let path = directory.join(file.trim());
        let config = load(&path, None, None);
        let built = lines(&config, "14.0").unwrap_or_else(|error| panic!("{file}: {error}"));
        let line = if expected[0] == "bhyve" { &built.bhyve } else { built.loader.as_ref().expect("it has a loader") };
        let (mut ours, theirs) = (normal(&words(line)), normal(&expected));
        if file == "windows.toml" {
            let screen = ours.keys().find(|key| key.contains(",fbuf,")).cloned().expect("9: it has a screen");
            ours.remove(&screen);
        }
        if !theirs.contains_key("-c console") {
            ours.remove("-c console"); // 5: the handbook leaves the loader at the terminal that it was typed at
        }
        assert_eq!(ours, theirs, "{file}: {command}");
        used.push(path);
    }
    assert!(used.len() >= 20, "{} rows", used.len());
    for entry in std::fs::read_dir(&directory).expect("it is part of the source") {
        let path = entry.expect("readable").path();
        assert!(used.contains(&path), "{} is in no row of docs/handbook.md", path.display());
    }
}

#[test]
fn every_argument_says_which_key_made_it() {
    for (name, text) in vmctl::testing::config::resolve::BUILT_IN_TEMPLATES {
        if !text.contains("engine = \"bhyve\"") {
            continue;
        }
        let config = load(Path::new("/guests/guest.toml"), Some(&format!("template = \"{name}\"")), Some("guest"));
        let built = lines(&config, "15.0").unwrap_or_else(|error| panic!("{name}: {error}"));
        for argument in built.bhyve.arguments.iter().chain(built.loader.iter().flat_map(|line| &line.arguments)) {
            assert!(!argument.keys.is_empty() && argument.keys.iter().all(|key| !key.is_empty()), "{argument:?}");
        }
    }
}
