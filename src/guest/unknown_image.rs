//! Facts about an image that no catalogue describes: one of a URL, or the user's own file. Its file systems are read.

use std::fs::File;
use std::path::Path;

use crate::fetch::Facts;
use crate::machine::loader::volume::probe::{Found, probe};
use crate::machine::loader::volume::{FileSystem, Medium, NodeKind, partition};

/// The file that every cloud-init has (cloud-init, "Base configuration").
const CLOUD_INIT: &str = "/etc/cloud/cloud.cfg";
/// Maximum size of that file.
const MAX_BYTES: u64 = 256 << 10;

/// Returns what can be seen of a raw disk. An image with a file system that cannot be read may have cloud-init, so it
/// gets a seed: one that nothing reads does no harm.
pub fn facts(image: &Path) -> Facts {
    let (mut unreadable, mut seen) = (false, None);
    for window in windows(image) {
        match probe(&window) {
            Found::Volume(volume) => seen = seen.or_else(|| of_volume(volume.as_ref())),
            Found::Named(what) if what == "swap space" => {}
            Found::Named(_) | Found::Broken(_) => unreadable = true,
            Found::Unknown => {}
        }
    }
    seen.unwrap_or(Facts { cloud_init: unreadable, ..Facts::default() })
}

/// Returns the partitions of a disk, or the whole disk if it has none.
fn windows(image: &Path) -> Vec<Medium> {
    let Ok(file) = File::open(image) else { return Vec::new() };
    let disk = Medium::of_file(file);
    match partition::read(&disk) {
        Ok(partitions) if !partitions.is_empty() => partitions.iter().map(|part| disk.window(part.start, part.len)).collect(),
        _ => vec![disk],
    }
}

/// Returns the facts about a root file system with cloud-init.
fn of_volume(volume: &dyn FileSystem) -> Option<Facts> {
    volume.window().allow(MAX_BYTES);
    volume.kind_of(CLOUD_INIT).ok().filter(|kind| *kind == NodeKind::File)?;
    let text = volume.read(CLOUD_INIT, MAX_BYTES).unwrap_or_default();
    Some(Facts { cloud_init: true, user: default_user(&String::from_utf8_lossy(&text)), ..Facts::default() })
}

/// Returns `system_info.default_user.name` of cloud-init's configuration: the user that gets the keys of a seed without
/// `users` (cloud-init, "Users and Groups").
fn default_user(text: &str) -> Option<String> {
    let mut lines = text.lines().skip_while(|line| line.trim() != "default_user:");
    let depth = |line: &str| line.len() - line.trim_start().len();
    let own = depth(lines.next()?);
    let mut below = lines.take_while(|line| line.trim().is_empty() || depth(line) > own);
    let name = below.find_map(|line| line.trim().strip_prefix("name:"))?.trim().trim_matches(['"', '\'']).to_owned();
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    (name.bytes().all(plain) && name.starts_with(|first: char| first.is_ascii_alphanumeric() || first == '_')).then_some(name)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    const CONFIGURATION: &str = "users:\n  - default\nsystem_info:\n  distro: debian\n  default_user:\n    # the one\n    \
                                 name: \"debian\"\n    lock_passwd: True\n  paths:\n    name: other\n";

    #[test]
    fn the_user_that_gets_the_keys_is_the_default_one() {
        assert_eq!(default_user(CONFIGURATION).as_deref(), Some("debian"));
        assert_eq!(default_user(&CONFIGURATION.replace("debian\"", "-oProxyCommand=x\"")), None);
        assert_eq!(default_user("default_user:\nname: other\n"), None);
        assert_eq!(default_user(""), None);
    }

    #[test]
    fn bytes_without_a_file_system_have_no_cloud_init_and_a_file_system_that_is_not_read_may_have_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("disk");
        std::fs::write(&path, vec![7; 1 << 20]).expect("writes");
        assert_eq!(facts(&path), Facts::default());
        let mut btrfs = vec![0; 1 << 20];
        btrfs[0x1_0040..0x1_0048].copy_from_slice(b"_BHRfS_M");
        std::fs::write(&path, btrfs).expect("writes");
        assert!(facts(&path).cloud_init);
        assert_eq!(facts(&dir.path().join("none")), Facts::default());
    }

    #[test]
    #[ignore = "needs tools: make test"]
    fn a_root_file_system_with_cloud_init_is_known_with_its_user() {
        let dir = tempfile::tempdir().expect("a directory");
        let tree = dir.path().join("tree");
        std::fs::create_dir_all(tree.join("etc/cloud")).expect("makes");
        std::fs::write(tree.join("etc/cloud/cloud.cfg"), CONFIGURATION).expect("writes");
        let image = dir.path().join("disk");
        File::create(&image).and_then(|file| file.set_len(8 << 20)).expect("sized");
        let made = Command::new("/usr/sbin/mke2fs").args(["-q", "-t", "ext4", "-d"]).arg(&tree).arg(&image).status();
        assert!(made.expect("mke2fs runs").success());
        assert_eq!(facts(&image), Facts { cloud_init: true, user: Some("debian".into()), ..Facts::default() });
    }
}
