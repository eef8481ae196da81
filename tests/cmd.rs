//! The pages of `tests/cmd`: each is a session that a user could have, and is held to what vmctl says.

#[test]
fn every_page_shows_what_vmctl_says() {
    trycmd::TestCases::new()
        .env("VMCTL_CONFIG", "/dev/null")
        .env("VMCTL_DATASTORE", "./store")
        .env("NO_COLOR", "1")
        .case("tests/cmd/*.md");
}

#[test]
fn init_writes_a_first_guest_that_checks_clean_and_never_over_a_file() {
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let vmctl = |args: &[&str]| {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_vmctl"))
            .current_dir(directory.path())
            .env("VMCTL_CONFIG", "/dev/null")
            .args(["--datastore", "./store"])
            .args(args)
            .output()
            .expect("vmctl runs");
        (output.status.code(), String::from_utf8(output.stderr).expect("words are UTF-8"))
    };
    let (status, said) = vmctl(&["init"]);
    assert!(status == Some(0) && said.contains("wrote `demo.toml`"), "{said}");
    assert!(directory.path().join("store/guests").is_dir() && directory.path().join("store/templates").is_dir());
    assert_eq!(vmctl(&["check", "demo.toml"]), (Some(0), "demo.toml: ok\n".into()));
    let before = std::fs::read(directory.path().join("demo.toml")).unwrap();
    let (status, said) = vmctl(&["init"]);
    assert!(status == Some(1) && said.contains("`demo.toml` exists already\nhint: name another file"), "{said}");
    assert_eq!(std::fs::read(directory.path().join("demo.toml")).unwrap(), before);
}

#[test]
fn a_reader_that_goes_away_ends_a_command_quietly() {
    let script = format!("'{}' schema | head -1; echo \"${{PIPESTATUS[0]}}\"", env!("CARGO_BIN_EXE_vmctl"));
    let output = std::process::Command::new("bash").args(["-c", &script]).output().expect("bash runs");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "{\n0\n");
    assert!(output.stderr.is_empty());
}
