//! Fleet files: golden ones as in `tests/config`, and a session with the example fleet as a page that is documentation and
//! test. `BLESS=1` writes the golden texts anew.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn files(prefix: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(root().join("tests/fleet")).expect("the directory is part of the source");
    let mut files: Vec<PathBuf> = entries
        .map(|entry| entry.expect("it is readable").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "toml"))
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix)))
        .collect();
    files.sort();
    assert!(!files.is_empty());
    files
}

fn check(file: &Path) -> Output {
    let text = std::fs::read_to_string(file).expect("it is there");
    let args = text.lines().next().and_then(|line| line.strip_prefix("# args: ")).unwrap_or_default();
    Command::new(env!("CARGO_BIN_EXE_vmctl"))
        .current_dir(root().join("tests/fleet"))
        .env("VMCTL_CONFIG", "/dev/null")
        .args(["--datastore", "./no-datastore", "check", "--offline"])
        .arg(file.file_name().expect("a file has a name"))
        .args(args.split_whitespace())
        .output()
        .expect("vmctl runs")
}

#[test]
fn golden_fleets_that_are_right_check_clean() {
    for file in files("pass-") {
        let output = check(&file);
        let name = file.file_name().unwrap().to_string_lossy().into_owned();
        assert_eq!(String::from_utf8_lossy(&output.stderr), format!("{name}: ok\n"));
        assert_eq!((output.status.code(), output.stdout.len()), (Some(0), 0), "{name}");
    }
}

#[test]
fn golden_fleets_that_are_wrong_say_exactly_why() {
    for file in files("fail-") {
        let output = check(&file);
        let stderr = String::from_utf8(output.stderr).expect("messages are UTF-8");
        let golden = file.with_extension("stderr");
        if std::env::var_os("BLESS").is_some() {
            std::fs::write(&golden, &stderr).expect("the source is writable");
        }
        assert_eq!(stderr, std::fs::read_to_string(&golden).unwrap_or_default(), "{}", file.display());
        assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0), "{}", file.display());
    }
}

/// A page: in each block of `console`, a line with `$` is run by a shell, and what it prints stands below it, then how it
/// exited if not with 0.
fn run_page(page: &str, directory: &Path) -> String {
    let vmctl = Path::new(env!("CARGO_BIN_EXE_vmctl")).parent().expect("in a directory");
    let path = format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", vmctl.display());
    let mut seen = String::new();
    let mut lines = page.lines().peekable();
    while let Some(line) = lines.next() {
        seen.push_str(&format!("{line}\n"));
        if line != "```console" {
            continue;
        }
        while let Some(line) = lines.next_if(|line| *line != "```") {
            let Some(command) = line.strip_prefix("$ ") else { continue };
            let output = Command::new("/bin/sh")
                .args(["-c", &format!("{command} 2>&1")])
                .current_dir(directory)
                .env_clear()
                .env("PATH", &path)
                .env("HOME", directory)
                .env("XDG_RUNTIME_DIR", directory)
                .env("VMCTL_CONFIG", directory.join("host.toml"))
                .env("VMCTL_DATASTORE", directory.join("store"))
                .output()
                .expect("a shell runs");
            let text = String::from_utf8(output.stdout).expect("text").replace(&*directory.to_string_lossy(), "[CWD]");
            seen.push_str(&format!("$ {command}\n{text}"));
            if output.status.code() != Some(0) {
                seen.push_str(&format!("? {}\n", output.status.code().expect("no signal")));
            }
        }
    }
    seen
}

#[test]
fn the_example_fleet_is_planned_applied_edited_and_pruned_as_its_page_shows() {
    let directory = tempfile::Builder::new().prefix("vmctl-test-").tempdir_in("/tmp").expect("a directory");
    for name in ["fleet.toml", "host.toml"] {
        std::fs::copy(root().join("examples/fleet").join(name), directory.path().join(name)).expect("copies");
    }
    let file = root().join("tests/fleet/machine-room.md");
    let page = std::fs::read_to_string(&file).expect("it is part of the source");
    let seen = run_page(&page, directory.path());
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(&file, &seen).expect("the source is writable");
    }
    assert_eq!(seen, std::fs::read_to_string(&file).expect("it is part of the source"));
}

#[test]
fn what_a_fleet_renders_checks_clean_guest_by_guest_and_means_the_same_elsewhere() {
    let directory = tempfile::tempdir().expect("a directory");
    let vmctl = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vmctl"));
        command.env("VMCTL_CONFIG", "/dev/null").args(["--datastore", "./store"]).args(arguments).current_dir(directory.path());
        let output = command.output().expect("vmctl runs");
        (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr))
    };
    for fleet in ["tests/fleet/pass-everything.toml", "examples/fleet/fleet.toml"] {
        let fleet = root().join(fleet);
        let (code, said) = vmctl(&["render", fleet.to_str().expect("UTF-8"), "--out", "rendered", "--all-hosts"]);
        assert_eq!(code, Some(0), "{said}");
    }
    let names: Vec<String> = std::fs::read_dir(directory.path().join("rendered"))
        .expect("lists")
        .map(|entry| format!("rendered/{}", entry.expect("one").file_name().to_string_lossy()))
        .collect();
    assert_eq!(names.len(), 47);
    let arguments: Vec<&str> = ["check", "--offline"].into_iter().chain(names.iter().map(String::as_str)).collect();
    let (code, said) = vmctl(&arguments);
    assert_eq!(code, Some(0), "{said}");
    // Every reading verb shows the same fleet.
    let (_, printed) = vmctl(&["render", root().join("tests/fleet/pass-least.toml").to_str().expect("UTF-8")]);
    let image = root().join("tests/fleet/vmlinuz");
    let expected = format!(
        "# a.toml\n# Written by `vmctl apply` from the fleet `room`.\nname = \"a\"\n\n[kernel]\nimage = \"{}\"\n",
        image.display()
    );
    assert_eq!(printed, expected);
}

#[test]
fn a_guest_is_for_the_hosts_that_its_names_and_labels_mean() {
    let directory = tempfile::tempdir().expect("a directory");
    let guest = |name: &str, host: &str| format!("[[guests]]\nname = \"{name}\"\nkernel = {{ image = \"k\" }}\n{host}\n");
    let fleet = [
        "name = \"room\"\n".to_owned(),
        guest("everywhere", ""),
        guest("rack", "host = { names = [\"attic\", \"rack-*\"] }"),
        guest("both", "host = { names = [\"rack-1\"], labels = [\"ssd\", \"north\"] }"),
        guest("twin", "host = { names = [\"rack-1\"] }"),
        guest("twin", "host = { names = [\"rack-2\"] }"),
        guest("large", "host = { labels = [\"ssd\", \"large\"] }"),
    ];
    std::fs::write(directory.path().join("fleet.toml"), fleet.concat()).expect("writes");
    let names = |host: &str| {
        std::fs::write(directory.path().join("host.toml"), host).expect("writes");
        let mut command = Command::new(env!("CARGO_BIN_EXE_vmctl"));
        command.args(["--config", "host.toml", "--datastore", "./store", "render", "-o", "name"]).current_dir(directory.path());
        String::from_utf8(command.output().expect("vmctl runs").stdout).expect("text").replace('\n', " ")
    };
    assert_eq!(names("name = \"rack-1\"\nlabels = [\"ssd\", \"north\"]"), "everywhere rack both twin ");
    assert_eq!(names("name = \"rack-2\"\nlabels = [\"ssd\", \"large\"]"), "everywhere rack twin large ");
    assert_eq!(names("name = \"cellar\""), "everywhere ");
}
