//! Paths of this host's devices and run-time files, and whether this process may use them.
//!
//! A debug build reads `VMCTL_HOST_ROOT`: a directory that replaces `/` for devices and run-time files, so that the
//! tests can use a made-up host. A release build ignores the variable.

use std::path::{Path, PathBuf};

/// Returns the directory that replaces `/` in the tests.
fn stand_in() -> Option<PathBuf> {
    match cfg!(debug_assertions) {
        true => std::env::var_os("VMCTL_HOST_ROOT").map(PathBuf::from),
        false => None,
    }
}

/// Returns an absolute path of the host.
pub fn path(absolute: &str) -> PathBuf {
    match stand_in() {
        Some(root) => root.join(absolute.trim_start_matches('/')),
        None => PathBuf::from(absolute),
    }
}

/// Returns whether this is a made-up host of the tests.
pub fn is_made_up() -> bool {
    stand_in().is_some()
}

/// Returns whether this process is root. On a made-up host it is, unless there is a file `not-root`.
pub fn is_root() -> bool {
    match stand_in() {
        Some(root) => !root.join("not-root").exists(),
        None => nix::unistd::geteuid().is_root(),
    }
}

/// Returns whether a directory has an entry of this name. It reads the list of names, since a look-up of the name
/// itself creates some devices.
pub fn has_entry(directory: &Path, name: &str) -> bool {
    std::fs::read_dir(directory).is_ok_and(|entries| entries.flatten().any(|entry| entry.file_name() == name))
}

/// Returns the directory of run-time files that belong to no guest.
pub fn run_directory() -> PathBuf {
    path("/var/run/vmctl")
}
