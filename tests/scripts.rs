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

/// Runs `scripts/need cargo:rustc` where nothing but `programs`, each a name and its script, and a few tools can be found;
/// `CALLS` in a script stands for a file whose lines come back.
fn need_cargo(programs: &[(&str, &str)]) -> (Output, String) {
    let dir = tempfile::tempdir().expect("a folder");
    let calls = dir.path().join("calls");
    for name in ["sh", "dirname", "sed", "awk", "head", "sort", "mktemp", "rm", "cat", "grep"] {
        let real = ["/bin", "/usr/bin"].map(|folder| Path::new(folder).join(name)).into_iter().find(|path| path.exists());
        std::os::unix::fs::symlink(real.expect("a tool of every system"), dir.path().join(name)).expect("a link");
    }
    for (name, script) in programs {
        let program = dir.path().join(name);
        fs::write(&program, format!("#!/bin/sh\n{}\n", script.replace("CALLS", &calls.display().to_string()))).expect("a file");
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("a mode");
    }
    let output = Command::new(dir.path().join("sh"))
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/need"))
        .arg("cargo:rustc")
        .env("PATH", dir.path())
        .output()
        .expect("sh runs");
    let calls = fs::read_to_string(calls).unwrap_or_default();
    (output, calls)
}

#[test]
fn an_old_or_missing_cargo_is_told_with_how_to_get_one() {
    for (programs, found) in [
        (&[("cargo", "echo cargo 1.63.0"), ("id", "echo 0"), ("apt-get", "echo $* >> CALLS")][..], "cargo is 1.63.0"),
        (&[("id", "echo 1000"), ("apt-get", "echo $* >> CALLS")], "cargo is missing"),
        (&[("id", "echo 0")], "cargo is missing"),
    ] {
        let (output, calls) = need_cargo(programs);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!((output.status.code(), calls.as_str()), (Some(1), ""), "{text}");
        assert!(text.contains(found) && text.contains("https://sh.rustup.rs") && text.contains("pkg install rust"), "{text}");
    }
    let (output, _) = need_cargo(&[("cargo", "exit 1"), ("rustup", ":")]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("rustup update stable"), "{output:?}");
}

#[test]
fn a_cargo_that_is_new_enough_is_taken_as_it_is() {
    for version in ["1.90.0", "1.101.0", "2.0.0-nightly"] {
        let (output, calls) = need_cargo(&[("cargo", &format!("echo cargo {version}")), ("apt-get", "echo $* >> CALLS")]);
        assert!(output.status.success() && calls.is_empty(), "{version}: {output:?}");
    }
}

#[test]
fn root_of_a_debian_without_cargo_gets_debians_cargo_or_rustup() {
    let apt = |cargo: &str, rustup: &str| {
        format!("case $2 in cargo) echo '  Candidate: {cargo}' ;; rustup) echo '  Candidate: {rustup}' ;; esac")
    };
    for (cargo, rustup, installed) in
        [("1.95.0+dfsg-1", "1.27.1-4", "recommends cargo"), ("1.85.0+dfsg3-1", "1.27.1-4", "recommends rustup gcc libc6-dev")]
    {
        // What apt-get installs is there afterwards.
        let apt_get = "echo $* >> CALLS; case $* in *rustup*) printf '#!/bin/sh\\necho rustup $* >> CALLS\\n' > ${0%/*}/rustup; /bin/chmod 755 ${0%/*}/rustup ;; esac";
        let (output, calls) = need_cargo(&[("id", "echo 0"), ("apt-get", apt_get), ("apt-cache", &apt(cargo, rustup))]);
        assert!(output.status.success(), "{output:?}");
        assert!(calls.contains(installed), "{calls}");
        assert_eq!(calls.contains("rustup toolchain install stable"), installed.contains("rustup"), "{calls}");
    }
}

/// Runs `scripts/announce-build release` over a target folder that has `file`.
fn announce(file: Option<&str>) -> String {
    let target = tempfile::tempdir().expect("a folder");
    if let Some(file) = file {
        let path = target.path().join(file);
        fs::create_dir_all(path.parent().expect("a folder")).expect("folders");
        fs::write(path, "").expect("a file");
    }
    let output = Command::new("sh")
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/announce-build"))
        .arg("release")
        .env("CARGO_TARGET_DIR", target.path())
        .output()
        .expect("sh runs");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).expect("text")
}

#[test]
fn a_first_build_says_that_it_takes_minutes_and_a_later_one_nothing() {
    assert!(announce(None).contains("several minutes"));
    assert!(announce(Some("debug/deps/libvmctl-1.rlib")).contains("several minutes"), "built for another profile only");
    assert_eq!(announce(Some("release/deps/libvmctl-1.rlib")), "");
}

/// Every file that `scripts/install-files` puts below `prefix` on `system`, sorted, without the prefix.
fn installed(prefix: &str, system: &str, zsh: &str) -> Vec<String> {
    let dir = tempfile::tempdir().expect("a folder");
    let output = Command::new("sh")
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/install-files"))
        .args([Path::new(env!("CARGO_BIN_EXE_vmctl")), dir.path(), Path::new(prefix), Path::new(system)])
        .env("STRIP_PROGRAM", ":")
        .env("ZSH_DIR", zsh)
        .output()
        .expect("sh runs");
    assert!(output.status.success(), "{output:?}");
    let root = dir.path().join(prefix.trim_start_matches('/'));
    let (mut files, mut folders) = (Vec::new(), vec![root.clone()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path()) {
            match entry.is_dir() {
                true => folders.push(entry),
                false => files.push(entry.strip_prefix(&root).expect("below it").display().to_string()),
            }
        }
    }
    let bash = fs::read_to_string(root.join("share/bash-completion/completions/vmctl")).expect("completions");
    assert!(bash.contains("complete -F"), "the program was asked for its completions");
    files.sort();
    files
}

/// Holds a list of the tree against `files`; `BLESS=1` writes it anew.
fn hold(list: &str, files: &[String]) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(list);
    let text = files.join("\n") + "\n";
    if std::env::var_os("BLESS").is_some() {
        fs::write(&path, &text).expect("a file");
    }
    assert_eq!(fs::read_to_string(&path).expect("a list"), text, "{list}; BLESS=1 writes it anew");
}

#[test]
fn what_is_installed_on_linux_is_what_the_debian_list_says() {
    hold("packaging/debian/files", &installed("/usr", "Linux", "share/zsh/vendor-completions"));
}

/// The ports framework packs manual pages itself, and has a name for the folder of examples (bsd.port.mk).
#[test]
fn what_is_installed_on_freebsd_is_what_the_port_says() {
    let files = installed("/usr/local", "FreeBSD", "share/zsh/site-functions").into_iter().map(|file| {
        let packed = if file.starts_with("share/man/") { ".gz" } else { "" };
        file.replace("share/examples/vmctl", "%%EXAMPLESDIR%%") + packed
    });
    let mut files: Vec<String> = files.collect();
    files.sort();
    hold("packaging/freebsd/pkg-plist", &files);
}

#[test]
fn the_port_and_the_package_have_the_version_of_the_program() {
    let port = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/freebsd/Makefile")).expect("a port");
    assert!(port.contains(&format!("DISTVERSION=\t{}\n", env!("CARGO_PKG_VERSION"))), "{port}");
}
