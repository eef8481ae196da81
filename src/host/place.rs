//! Where this host keeps its devices and run-time files, and whether this process may use them.
//!
//! A debug build takes `VMCTL_HOST_ROOT`: a directory that stands in for `/` where devices and run-time files are
//! concerned, so that a made-up host can be driven by the tests. A release build knows no such variable.

use std::path::{Path, PathBuf};

/// The directory that stands in for `/`, in the tests.
fn stand_in() -> Option<PathBuf> {
    match cfg!(debug_assertions) {
        true => std::env::var_os("VMCTL_HOST_ROOT").map(PathBuf::from),
        false => None,
    }
}

/// An absolute path of the host.
pub fn path(absolute: &str) -> PathBuf {
    match stand_in() {
        Some(root) => root.join(absolute.trim_start_matches('/')),
        None => PathBuf::from(absolute),
    }
}

/// Whether this host is one that the tests made up.
pub fn is_made_up() -> bool {
    stand_in().is_some()
}

/// Whether this process is root; on a made-up host, unless a file `not-root` says otherwise.
pub fn is_root() -> bool {
    match stand_in() {
        Some(root) => !root.join("not-root").exists(),
        None => nix::unistd::geteuid().is_root(),
    }
}

/// Whether a directory has an entry of this name. Looks at the list of names: a look-up of the name itself makes
/// some devices come into being.
pub fn has_entry(directory: &Path, name: &str) -> bool {
    std::fs::read_dir(directory).is_ok_and(|entries| entries.flatten().any(|entry| entry.file_name() == name))
}

/// Where run-time files that belong to no guest are kept.
pub fn run_directory() -> PathBuf {
    path("/var/run/vmctl")
}
