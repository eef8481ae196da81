//! Where things stand by default: the system's places for root, the XDG base directories for everyone else.

use std::path::{Path, PathBuf};

/// Whether this process runs as root.
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// The default datastore: `/var/db/vmctl` (FreeBSD) or `/var/lib/vmctl` for root, `$XDG_DATA_HOME/vmctl` otherwise.
pub fn datastore() -> Option<PathBuf> {
    if is_root() {
        return Some(PathBuf::from(if cfg!(target_os = "freebsd") { "/var/db/vmctl" } else { "/var/lib/vmctl" }));
    }
    xdg("XDG_DATA_HOME", ".local/share")
}

/// The configuration's directory: `/usr/local/etc/vmctl` (FreeBSD) or `/etc/vmctl` for root, `$XDG_CONFIG_HOME/vmctl`
/// otherwise.
pub fn configuration() -> Option<PathBuf> {
    if is_root() {
        return Some(PathBuf::from(if cfg!(target_os = "freebsd") { "/usr/local/etc/vmctl" } else { "/etc/vmctl" }));
    }
    xdg("XDG_CONFIG_HOME", ".config")
}

/// Short-lived files with short names: `/var/run/vmctl` for root, else `$XDG_RUNTIME_DIR/vmctl`, else
/// `/tmp/vmctl-UID`.
pub fn runtime() -> PathBuf {
    if is_root() {
        return PathBuf::from("/var/run/vmctl");
    }
    match std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|dir| dir.is_absolute()) {
        Some(dir) => dir.join("vmctl"),
        None => PathBuf::from(format!("/tmp/vmctl-{}", nix::unistd::geteuid())),
    }
}

fn xdg(variable: &str, fallback: &str) -> Option<PathBuf> {
    // A relative value is invalid and ignored (XDG Base Directory Specification 0.8).
    match std::env::var_os(variable).map(PathBuf::from).filter(|dir| dir.is_absolute()) {
        Some(dir) => Some(dir.join("vmctl")),
        None => std::env::home_dir().filter(|home| home.is_absolute()).map(|home| home.join(fallback).join("vmctl")),
    }
}

/// Makes a directory that only this user enters, or checks that an existing one is such.
pub fn private_directory(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::{DirBuilderExt, MetadataExt};
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    let metadata = std::fs::symlink_metadata(path)?;
    if !metadata.is_dir() || metadata.uid() != nix::unistd::geteuid().as_raw() || metadata.mode() & 0o022 != 0 {
        return Err(std::io::Error::other("it belongs to someone else or others may write to it"));
    }
    Ok(())
}
