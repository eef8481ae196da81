//! What tests that boot Debian's kernel need beside the tree: `make test` prepares it.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// Returns the folder with the test kernel and its initrd.
pub fn folder() -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("build/test-guest");
    assert!(folder.join("initrd.img").exists(), "`{}` is missing: `make test` prepares it", folder.display());
    folder
}

/// A datastore with one guest, `g`, which is killed in the end.
pub struct Store {
    dir: tempfile::TempDir,
}

impl Store {
    /// Makes a folder for it.
    pub fn new() -> Store {
        Store { dir: tempfile::tempdir().expect("a scratch folder") }
    }

    /// Returns the path of a file beside the datastore.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Returns a command on the datastore, without input.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(program());
        command.arg("--datastore").arg(self.path("store")).args(arguments).stdin(Stdio::null());
        command
    }

    /// Runs a command without input.
    pub fn vmctl(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().expect("vmctl runs")
    }

    /// Runs a command that must succeed; returns what it printed.
    pub fn ok(&self, arguments: &[&str]) -> String {
        let output = self.vmctl(arguments);
        let words = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "vmctl {arguments:?}: {words}\n{}", self.log());
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Returns what the guest's console said.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&self.vmctl(&["logs", "g"]).stdout).into_owned()
    }

    /// Returns whether the guest has stopped.
    pub fn is_stopped(&self) -> bool {
        self.ok(&["list", "-o", "jsonl"]).contains("\"state\":\"stopped\"")
    }

    /// Makes the guest, whose file ends with this text.
    pub fn create(&self, text: &str) {
        let file = self.path("g.toml");
        let head = "name = \"g\"\nmemory = \"256M\"\nengine = \"embedded\"\nbackend = \"soft\"\n";
        std::fs::write(&file, format!("{head}{text}")).expect("a written guest file");
        self.ok(&["create", "g", "--file", file.to_str().expect("a plain path")]);
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        let _ = self.vmctl(&["kill", "g"]);
    }
}

/// Returns the program: the optimised one that `VMCTL_TEST_PROGRAM` names, as a boot on a software CPU that is not
/// optimised takes five times as long, else the one that was built with the tests.
pub fn program() -> PathBuf {
    std::env::var_os("VMCTL_TEST_PROGRAM").map_or_else(|| env!("CARGO_BIN_EXE_vmctl").into(), PathBuf::from)
}
