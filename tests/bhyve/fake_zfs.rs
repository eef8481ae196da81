//! zfs(8): a file for each volume, what is in it beside that, and its device, which comes into being as a test wants it.
//!
//! A file of the state makes a host slow as the real 13.2 was with `vfs.zfs.vol.mode=1`: `zvol-no-node` (a new volume, or
//! one with a new name, has no device until its `volmode` is set to `none` and back), `zvol-not-ready` (it has one that
//! cannot be opened yet: ENXIO), `zvol-never` (nothing helps).

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use super::Fake;

/// What ends a dataset's name, in the words of `lib/libzfs/libzfs_dataset.c`.
fn no_such(name: &str) -> i32 {
    eprintln!("cannot open '{name}': dataset does not exist");
    1
}

impl Fake {
    pub(super) fn zfs(&self, words: &[&str]) -> i32 {
        let last = words.last().copied().unwrap_or_default();
        match words {
            ["list", .., "name,volsize", name] => match self.volume(name, "size") {
                Some(size) => self.print(&format!("{name}\t{size}\n")),
                None => return no_such(name),
            },
            ["list", ..] => self.print("tank/vms\n"),
            ["get", .., property, name] => match self.volume(name, property) {
                Some(value) => self.print(&format!("{value}\n")),
                None if fs::exists(self.volume_file(name, "size")).expect("looks") => self.print("-\n"),
                None => return no_such(name),
            },
            ["create", .., "-V", size, name] => {
                if self.volume(name, "size").is_some() {
                    eprintln!("cannot create '{name}': dataset already exists");
                    return 1;
                }
                self.put_volume(name, "size", size);
                fs::File::create(self.volume_file(name, "data"))
                    .expect("creates")
                    .set_len(size.parse().expect("a number"))
                    .expect("sets");
                self.put_volume(name, "volmode", "dev");
                self.node_of_new(name);
            }
            ["set", setting, name] => {
                let (property, value) = setting.split_once('=').expect("a value");
                if self.volume(name, "size").is_none() {
                    return no_such(name);
                }
                let property = if property == "volsize" { "size" } else { property };
                self.put_volume(name, property, value);
                match (property, value) {
                    ("volmode", "none") => drop(fs::remove_file(self.node(name))),
                    ("volmode", _) => self.make_node(name),
                    _ => {}
                }
            }
            ["rename", from, to] => {
                if self.volume(from, "size").is_none() {
                    return no_such(from);
                }
                for part in ["size", "data", "volmode"] {
                    fs::rename(self.volume_file(from, part), self.volume_file(to, part)).expect("renames");
                }
                let _ = fs::remove_file(self.node(from));
                self.node_of_new(to);
            }
            ["destroy", ..] if !last.contains('@') => {
                if self.volume(last, "size").is_none() {
                    return no_such(last);
                }
                for part in ["size", "data", "volmode"] {
                    fs::remove_file(self.volume_file(last, part)).expect("removes");
                }
                let _ = fs::remove_file(self.node(last));
            }
            ["snapshot", snapshot] => {
                let (name, _) = snapshot.split_once('@').expect("a snapshot");
                if self.volume(name, "size").is_none() {
                    return no_such(name);
                }
            }
            ["send", snapshot] => {
                let (name, _) = snapshot.split_once('@').expect("a snapshot");
                self.print(&fs::read_to_string(self.volume_file(name, "data")).expect("reads"));
            }
            ["receive", "-o", "volmode=dev", name] => {
                let data = std::io::read_to_string(std::io::stdin()).expect("reads");
                self.put_volume(name, "size", &data.len().to_string());
                self.put_volume(name, "data", &data);
                self.put_volume(name, "volmode", "dev");
                self.node_of_new(name);
            }
            _ => {}
        }
        0
    }

    fn volume_file(&self, name: &str, part: &str) -> PathBuf {
        self.state("volumes").join(format!("{}.{part}", name.replace('/', ":")))
    }

    fn volume(&self, name: &str, part: &str) -> Option<String> {
        fs::read_to_string(self.volume_file(name, part)).ok()
    }

    fn put_volume(&self, name: &str, part: &str, value: &str) {
        fs::write(self.volume_file(name, part), value).expect("writes");
    }

    fn node(&self, name: &str) -> PathBuf {
        self.root.join("dev/zvol").join(name)
    }

    /// The node of a volume that is new, or has a new name.
    fn node_of_new(&self, name: &str) {
        let has = |flag: &str| self.state(flag).exists();
        match () {
            () if has("zvol-no-node") || has("zvol-never") => {}
            // Opening a socket is ENXIO, as is a device without its driver.
            () if has("zvol-not-ready") => {
                fs::create_dir_all(self.node(name).parent().expect("a parent")).expect("makes");
                drop(std::os::unix::net::UnixListener::bind(self.node(name)).expect("binds"));
            }
            () => self.make_node(name),
        }
    }

    fn make_node(&self, name: &str) {
        if self.state("zvol-never").exists() {
            return;
        }
        fs::create_dir_all(self.node(name).parent().expect("a parent")).expect("makes");
        let _ = fs::remove_file(self.node(name));
        symlink(self.volume_file(name, "data"), self.node(name)).expect("links");
    }
}
