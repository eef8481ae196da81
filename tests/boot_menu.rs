//! A guest that boots by the menu on its own medium, through the whole program, and the environment block that it saves;
//! a stop and a power button that end the menu; a start that is told of empty disks. `make test` prepares
//! `build/test-guest`.

mod prepared;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

struct Store {
    dir: tempfile::TempDir,
}

impl Store {
    fn new() -> Store {
        Store { dir: tempfile::tempdir().expect("a scratch folder") }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn vmctl(&self, arguments: &[&str]) -> Output {
        let store = self.path("store");
        let mut command = Command::new(prepared::program());
        command.arg("--datastore").arg(store).args(arguments).stdin(Stdio::null()).output().expect("vmctl runs")
    }

    fn ok(&self, arguments: &[&str]) -> String {
        let output = self.vmctl(arguments);
        let words = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "vmctl {arguments:?}: {words}\n{}", self.log());
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn log(&self) -> String {
        String::from_utf8_lossy(&self.vmctl(&["logs", "g"]).stdout).into_owned()
    }

    fn create(&self, text: &str) {
        let file = self.path("g.toml");
        fs::write(&file, format!("name = \"g\"\nmemory = \"256M\"\nengine = \"embedded\"\nbackend = \"soft\"\n{text}")).unwrap();
        self.ok(&["create", "g", "--file", file.to_str().expect("a plain path")]);
    }

    fn wait_for(&self, what: &str, holds: impl Fn(&Store) -> bool) {
        let start = Instant::now();
        while !holds(self) {
            assert!(start.elapsed() < Duration::from_secs(300), "{what}:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    fn is_stopped(&self) -> bool {
        self.ok(&["list", "-o", "jsonl"]).contains("\"state\":\"stopped\"")
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        let _ = self.vmctl(&["kill", "g"]);
    }
}

/// An ISO with the test kernel and a menu.
fn medium(store: &Store, config: &str) -> PathBuf {
    let (root, image) = (store.path("root"), store.path("medium.iso"));
    fs::create_dir_all(root.join("boot/grub")).unwrap();
    for name in ["vmlinuz", "initrd.img"] {
        fs::copy(prepared::folder().join(name), root.join("boot").join(name)).unwrap();
    }
    fs::write(root.join("boot/grub/grub.cfg"), config).unwrap();
    let flags = ["-as", "mkisofs", "-quiet", "-R", "-V", "MEDIUM", "-o"];
    let output = Command::new("xorriso").args(flags).arg(&image).arg(&root).output().expect("xorriso; `make test` installs it");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    image
}

const MENU: &str = "set default=second\nmenuentry First { linux /boot/none }\n\
    menuentry Second --id second {\n\tsave_env -f (hd2)/grubenv chosen\n\tlinux /boot/vmlinuz quiet vmctl.run=head_-c_32774_/dev/vda_|_tail_-c_5_&&_echo_booted_$((20+3))\n\
    \tinitrd /boot/initrd.img\n}\n";

fn tool(name: &str, arguments: &[&str]) -> String {
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let output = Command::new(name).args(arguments).env("PATH", path).stdin(Stdio::null()).output();
    let output = output.unwrap_or_else(|e| panic!("{name}: {e}; `make test` installs what is missing"));
    assert!(output.status.success(), "{name} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

/// A disk with an environment block.
fn with_environment(store: &Store) -> PathBuf {
    let (root, image) = (store.path("env"), store.path("env.img"));
    fs::create_dir(&root).unwrap();
    let text = |path: &Path| path.to_str().expect("a plain path").to_owned();
    tool("grub-editenv", &[&text(&root.join("grubenv")), "create"]);
    fs::File::create(&image).unwrap().set_len(4 << 20).unwrap();
    tool("mke2fs", &["-q", "-t", "ext4", "-d", &text(&root), &text(&image)]);
    image
}

#[test]
#[ignore = "needs a guest: make test"]
fn a_medium_boots_by_its_own_menu_and_the_guest_reads_it() {
    let store = Store::new();
    let image = medium(&store, MENU);
    let environment = with_environment(&store);
    store.create(&format!(
        "loader = \"grub\"\ngrub.timeout = \"1s\"\ndisks = [{{ id = \"medium\", path = \"{}\", ro = true }}, {{ id = \"data\", size = \"16M\", device = \"ahci-hd\" }}, {{ id = \"env\", path = \"{}\" }}]\n\
         [ready]\nconsole = \"booted 23\"\ntimeout = \"5m\"\n",
        image.display(),
        environment.display()
    ));
    store.ok(&["start", "--wait", "g"]);
    let log = store.log();
    assert!(log.contains("vmctl boot menu") && log.contains("`console=ttyS0` is added"), "{log}");
    assert!(log.contains("CD001"), "the guest reads its medium: {log}");
    // The confined engine has written it, before the guest ran.
    let block = tool("debugfs", &["-R", "cat /grubenv", environment.to_str().expect("a plain path")]);
    assert!(block.contains("\nchosen=second\n#"), "{block}\n{log}");
    store.wait_for("the guest powers off by itself", Store::is_stopped);
}

#[test]
#[ignore = "needs a guest: make test"]
fn a_menu_that_waits_is_stopped_by_the_power_button_and_starts_are_told_of_empty_disks() {
    let store = Store::new();
    let image = medium(&store, MENU);
    store.create(&format!(
        "loader = \"grub\"\ndisks = [{{ id = \"cd\", path = \"{}\", device = \"ahci-cd\" }}]\n",
        image.display()
    ));
    store.ok(&["start", "g"]);
    store.wait_for("the menu is shown", |store| store.log().contains("vmctl boot menu"));
    store.ok(&["stop", "g"]);
    assert!(store.is_stopped());
    store.ok(&["destroy", "--yes", "g"]);

    store.create("loader = \"grub\"\ndisks = [{ id = \"root\", size = \"16M\" }]\n");
    let output = store.vmctl(&["start", "g"]);
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && words.contains("disk `root` (hd0): unknown contents"), "{words}");
}
