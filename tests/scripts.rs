//! The scripts that `make` and CI call, with made-up programs in their search path.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

/// Runs `scripts/apt update` with an apt-get that fails `failures` times with `message`.
fn apt(failures: u32, message: &str) -> (Output, u32) {
    let dir = tempfile::tempdir().expect("a folder");
    let program = dir.path().join("apt-get");
    let text = format!(
        "#!/bin/sh\necho call >> {dir}/calls\nif [ $(wc -l < {dir}/calls) -le {failures} ]; then echo '{message}' >&2; exit 100; fi\n",
        dir = dir.path().display()
    );
    fs::write(&program, text).expect("a file");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("a mode");
    let path = format!("{}:{}", dir.path().display(), std::env::var("PATH").unwrap_or_default());
    let output = Command::new("sh")
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/apt"))
        .arg("update")
        .env("PATH", path)
        .env("VMCTL_APT_TRIES", "2")
        .output()
        .expect("sh runs");
    let calls = fs::read_to_string(dir.path().join("calls")).unwrap_or_default().lines().count();
    (output, calls as u32)
}

#[test]
fn apt_is_called_again_while_another_program_holds_its_lock() {
    for message in [
        "E: Could not get lock /var/lib/apt/lists/lock. It is held by process 17 (apt)",
        "E: Unable to acquire the dpkg frontend lock (/var/lib/dpkg/lock-frontend), is another process using it?",
        "E: Unable to lock directory /var/lib/apt/lists/",
    ] {
        let (output, calls) = apt(1, message);
        assert!(output.status.success(), "{output:?}");
        assert_eq!(calls, 2);
        assert!(String::from_utf8_lossy(&output.stderr).contains("waiting for another program that uses apt"));
    }
}

#[test]
fn apt_gives_up_on_a_lock_that_stays_and_tells_why() {
    let (output, calls) = apt(9, "E: Could not get lock /var/lib/apt/lists/lock");
    assert_eq!((output.status.code(), calls), (Some(100), 2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("E: Could not get lock"));
}

#[test]
fn apt_is_not_called_again_after_another_error() {
    let (output, calls) = apt(1, "E: Unable to locate package vmctl-nothing");
    assert_eq!((output.status.code(), calls), (Some(100), 1));
}
