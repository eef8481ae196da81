//! Golden configurations: `tests/config/pass-*.toml` check clean, `fail-*.toml` yield exactly the text beside them, both
//! through `vmctl check`. `BLESS=1` writes the texts anew. A first line `# args: ...` gives further arguments.
//! And what must hold of any text at all: no panic, and a file that is right means the same when it is printed resolved.

#[path = "config/key_table.rs"]
mod key_table; // every accepted key has an effect

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use vmctl::testing::config::render::render;
use vmctl::testing::config::{Diagnostics, EngineKind, GuestRequest, HostConfig, HostPaths, LoadedGuest, load_guest};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn files(dir: &str, prefix: &str, extension: &str) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(root().join(dir))
        .expect("the directory is part of the source")
        .map(|entry| entry.expect("it is readable").path())
        .filter(|path| path.extension().is_some_and(|found| found == extension))
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix)))
        .collect();
    files.sort();
    assert!(!files.is_empty(), "no {dir}/{prefix}*.{extension}");
    files
}

fn check(file: &Path) -> Output {
    let text = std::fs::read_to_string(file).expect("it is there");
    let args = text.lines().next().and_then(|line| line.strip_prefix("# args: ")).unwrap_or_default();
    Command::new(env!("CARGO_BIN_EXE_vmctl"))
        .current_dir(root().join("tests/config"))
        .args(["--config", "host.toml", "--datastore", "./no-datastore", "check", "--offline"])
        .arg(file.file_name().expect("a file has a name"))
        .args(args.split_whitespace())
        .output()
        .expect("vmctl runs")
}

#[test]
fn golden_files_that_are_right_check_clean() {
    for file in files("tests/config", "pass-", "toml") {
        let output = check(&file);
        let name = file.file_name().unwrap().to_string_lossy().into_owned();
        assert_eq!(String::from_utf8_lossy(&output.stderr), format!("{name}: ok\n"));
        assert_eq!((output.status.code(), output.stdout.len()), (Some(0), 0), "{name}");
    }
}

#[test]
fn golden_files_that_are_wrong_say_exactly_why() {
    for file in files("tests/config", "fail-", "toml") {
        let output = check(&file);
        let stderr = String::from_utf8(output.stderr).expect("messages are UTF-8");
        let golden = file.with_extension("stderr");
        if std::env::var_os("BLESS").is_some() {
            std::fs::write(&golden, &stderr).expect("the source is writable");
        }
        let expected = std::fs::read_to_string(&golden).unwrap_or_default();
        assert_eq!(stderr, expected, "{}", file.display());
        assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0), "{}", file.display());
    }
}

fn host() -> HostConfig {
    let paths = HostPaths {
        config_file: "/nonexistent/vmctl.toml".into(),
        datastore: "/nonexistent".into(),
        cache_dir: "/nonexistent".into(),
        runtime_dir: "/nonexistent".into(),
    };
    let mut host = HostConfig::of(&paths, EngineKind::Embedded);
    host.template_dirs.push(root().join("tests/config/templates"));
    host
}

fn load(file: &Path, text: Option<&str>, sets: &[String], name: Option<&str>) -> Result<LoadedGuest, Diagnostics> {
    load_guest(&GuestRequest { file, text, name, sets, host: &host(), datastore: Path::new("/nonexistent") })
}

#[test]
fn every_template_checks_clean_once_its_kernel_and_disk_are_named() {
    for file in files("templates", "", "toml") {
        let sets = ["kernel.image=vmlinuz".to_owned()];
        let mut text = std::fs::read_to_string(&file).unwrap();
        if text.contains("[[disks]]") {
            text.push_str("\n[[disks]]\nid = \"extra\"\nsize = \"1G\"\n");
        }
        // The disk of the debian template has no size: that is the user's to say.
        let sets: Vec<String> =
            sets.into_iter().chain(text.contains("id = \"root\"").then(|| "disks.root.size=8G".into())).collect();
        // Those for bhyve are complete as they are.
        if load(&file, Some(&text), &[], Some("guest")).is_err() {
            load(&file, Some(&text), &sets, Some("guest")).unwrap_or_else(|problems| panic!("{problems}"));
        }
        let name = file.file_stem().unwrap().to_string_lossy().into_owned();
        let built_in = vmctl::testing::config::resolve::BUILT_IN_TEMPLATES.iter().any(|(known, _)| *known == name);
        assert!(built_in, "{name} is not built in");
    }
}

#[test]
fn every_example_checks_clean() {
    for file in files("examples", "", "toml") {
        if file.file_name().unwrap() == "vmctl.toml" {
            let paths = HostPaths::of_this_user().unwrap();
            HostConfig::load(Some(&file), &paths, EngineKind::Embedded).unwrap_or_else(|problems| panic!("{problems}"));
        } else {
            load(&file, None, &[], None).unwrap_or_else(|problems| panic!("{problems}"));
        }
    }
}

#[test]
fn what_a_resolved_file_prints_means_the_same() {
    for file in files("tests/config", "pass-", "toml").into_iter().chain(files("examples", "", "toml")) {
        if file.ends_with("vmctl.toml") || file.ends_with("pass-set.toml") {
            continue; // the host file is no guest file; the other needs its arguments
        }
        let guest = load(&file, None, &[], None).unwrap_or_else(|problems| panic!("{problems}"));
        for explain in [false, true] {
            let (text, _) = render(&guest.resolved, explain);
            let again = load(Path::new("/elsewhere/x.toml"), Some(&text), &[], None);
            let again = again.unwrap_or_else(|problems| panic!("{text}\n{problems}"));
            assert_eq!(again.config, guest.config, "{text}");
        }
    }
}

#[test]
fn the_platform_chooses_the_engine_of_a_guest_that_does_not() {
    use vmctl::testing::config::LoaderKind;
    let engine_and_loader = |engine, text: &str| {
        let host = HostConfig { default_engine: engine, ..host() };
        let file = Path::new("/x/guest.toml");
        let request =
            GuestRequest { file, text: Some(text), name: None, sets: &[], host: &host, datastore: Path::new("/nonexistent") };
        let config = load_guest(&request).unwrap_or_else(|problems| panic!("{problems}")).config;
        (config.engine, config.loader)
    };
    let kernel = "kernel.image = 'vmlinuz'";
    assert_eq!(engine_and_loader(EngineKind::Bhyve, ""), (EngineKind::Bhyve, LoaderKind::Uefi));
    assert_eq!(engine_and_loader(EngineKind::Bhyve, "loader = 'bhyveload'"), (EngineKind::Bhyve, LoaderKind::Bhyveload));
    assert_eq!(engine_and_loader(EngineKind::Embedded, kernel), (EngineKind::Embedded, LoaderKind::Kernel));
    let embedded = format!("engine = 'embedded'\n{kernel}");
    assert_eq!(engine_and_loader(EngineKind::Bhyve, &embedded), (EngineKind::Embedded, LoaderKind::Kernel));
    assert_eq!(engine_and_loader(EngineKind::Embedded, "engine = 'bhyve'"), (EngineKind::Bhyve, LoaderKind::Uefi));
}

/// A small generator: the same numbers on every run.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % bound.max(1) as u64) as usize
    }
}

#[test]
fn no_text_makes_the_reader_panic() {
    let corpus: Vec<String> = files("tests/config", "", "toml")
        .into_iter()
        .chain(files("templates", "", "toml"))
        .map(|file| std::fs::read_to_string(file).unwrap())
        .collect();
    let words = [
        "{{",
        "}}",
        "\"",
        "'",
        "[[",
        "]]",
        "[",
        "]",
        "=",
        "\n",
        ".",
        "-1",
        "0",
        "9223372036854775807",
        "true",
        "id",
        "remove",
        "disks",
        "nics",
        "template",
        "extends = [\"debian\"]\n",
        "\u{e9}",
        "\0",
        "\t",
        "\"\"\"",
        "{ a = 1 }",
        "{{ a | pad(9) }}",
        "1e9",
        "1979-05-27",
        "unset = [\"disks.root\"]\n",
        "\\u0000",
        "#",
    ];
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut right = 0;
    for round in 0..4000 {
        let mut text = corpus[random.below(corpus.len())].clone();
        for _ in 0..=random.below(4) {
            let boundary = |text: &str, mut at: usize| {
                while !text.is_char_boundary(at) {
                    at -= 1;
                }
                at
            };
            let from = boundary(&text, random.below(text.len() + 1));
            let to = boundary(&text, (from + random.below(12)).min(text.len())).max(from);
            match random.below(4) {
                0 => text.replace_range(from..to, ""),
                1 => text.insert_str(from, words[random.below(words.len())]),
                2 => text.replace_range(from..to, words[random.below(words.len())]),
                _ => {
                    let other = &corpus[random.below(corpus.len())];
                    let line = other.lines().nth(random.below(40)).unwrap_or_default();
                    text.insert_str(from, &format!("\n{line}\n"));
                }
            }
        }
        let sets = [text.lines().nth(random.below(9)).unwrap_or_default().to_owned()];
        let sets = if round % 4 == 0 { &sets[..] } else { &[] };
        match load(&root().join("tests/config/mutated.toml"), Some(&text), sets, Some("guest")) {
            Ok(guest) => {
                right += 1;
                let (printed, _) = render(&guest.resolved, round % 2 == 0);
                let again = load(&root().join("tests/config/mutated.toml"), Some(&printed), &[], Some("guest"));
                let again = again.unwrap_or_else(|problems| panic!("{text}\n---\n{printed}\n{problems}"));
                assert_eq!(again.config, guest.config, "{text}\n---\n{printed}");
            }
            Err(problems) => {
                assert!(!problems.0.is_empty(), "a failure without a reason:\n{text}");
                assert!(!problems.to_string().is_empty());
            }
        }
    }
    assert!(right > 40, "the mutations are too wild to reach the rules: {right} files were right");
}
