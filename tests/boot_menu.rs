//! A guest that boots by the menu on its own medium, through the whole program, and the environment block that it saves;
//! a stop and a power button that end the menu; a start that is told of empty disks. `make test` prepares
//! `build/test-guest`.

mod prepared;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use prepared::Store;

/// Waits for something to hold, five minutes at the most.
fn wait_for(store: &Store, what: &str, holds: impl Fn(&Store) -> bool) {
    let start = Instant::now();
    while !holds(store) {
        assert!(start.elapsed() < Duration::from_secs(300), "{what}:\n{}", store.log());
        std::thread::sleep(Duration::from_millis(200));
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
    wait_for(&store, "the guest powers off by itself", Store::is_stopped);
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
    wait_for(&store, "the menu is shown", |store| store.log().contains("vmctl boot menu"));
    store.ok(&["stop", "g"]);
    assert!(store.is_stopped());
    store.ok(&["destroy", "--yes", "g"]);

    store.create("loader = \"grub\"\ndisks = [{ id = \"root\", size = \"16M\" }]\n");
    let output = store.vmctl(&["start", "g"]);
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && words.contains("disk `root` (hd0): unknown contents"), "{words}");
}
