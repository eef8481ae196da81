//! Where things are when nobody says: the system's paths for root, the XDG directories for everyone else.

use std::path::{Path, PathBuf};

use super::diagnostic::{Diagnostic, Diagnostics};

/// Directory of a datastore that holds one directory a guest.
pub const GUESTS_DIR: &str = "guests";
/// Name of the guest file in a guest's directory.
pub const GUEST_FILE: &str = "guest.toml";
/// Directory of a datastore that holds its templates, `NAME.toml`.
pub const TEMPLATES_DIR: &str = "templates";
/// Directory of a datastore that holds one directory a fleet that was applied there.
pub const FLEETS_DIR: &str = "fleets";

/// Where what belongs to a fleet in a datastore is kept: its journal, its lock, its secrets, its switches.
pub fn fleet_directory(datastore: &Path, fleet: &str) -> PathBuf {
    datastore.join(FLEETS_DIR).join(fleet)
}

/// The default paths of the user who runs us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostPaths {
    /// The host file; need not exist.
    pub config_file: PathBuf,
    /// The datastore when the host file names none.
    pub datastore: PathBuf,
    /// Downloads.
    pub cache_dir: PathBuf,
    /// Control sockets; gone after a boot of the host.
    pub runtime_dir: PathBuf,
}

impl HostPaths {
    /// Of the effective user.
    pub fn of_this_user() -> Result<Self, Diagnostics> {
        let get = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let paths = Self::of(nix::unistd::geteuid().is_root(), cfg!(target_os = "freebsd"), get)?;
        Ok(Self { runtime_dir: get("VMCTL_RUNTIME_DIR").unwrap_or(paths.runtime_dir), ..paths })
    }

    /// `variable` gives absolute paths only, as the XDG specification asks.
    fn of(root: bool, freebsd: bool, variable: impl Fn(&str) -> Option<PathBuf>) -> Result<Self, Diagnostics> {
        if root {
            let (config, data, run) = match freebsd {
                true => ("/usr/local/etc/vmctl", "/var/db/vmctl", "/var/run/vmctl"),
                false => ("/etc/vmctl", "/var/lib/vmctl", "/run/vmctl"),
            };
            return Ok(Self {
                config_file: PathBuf::from(config).join("vmctl.toml"),
                datastore: data.into(),
                cache_dir: "/var/cache/vmctl".into(),
                runtime_dir: run.into(),
            });
        }
        let home = variable("HOME");
        let under = |name: &str, fallback: &str| {
            variable(name).or_else(|| home.as_ref().map(|home| home.join(fallback))).map(|path| path.join("vmctl")).ok_or_else(
                || {
                    Diagnostics::from(
                        Diagnostic::plain(format!("neither `HOME` nor `{name}` is set to an absolute path"))
                            .hint("set `HOME`, or name a directory with `--datastore`"),
                    )
                },
            )
        };
        let datastore = under("XDG_DATA_HOME", ".local/share")?;
        Ok(Self {
            config_file: under("XDG_CONFIG_HOME", ".config")?.join("vmctl.toml"),
            cache_dir: under("XDG_CACHE_HOME", ".cache")?,
            runtime_dir: variable("XDG_RUNTIME_DIR").map_or_else(|| datastore.join("run"), |path| path.join("vmctl")),
            datastore,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_uses_the_paths_of_its_platform() {
        let linux = HostPaths::of(true, false, |_| None).unwrap();
        assert_eq!(linux.datastore, PathBuf::from("/var/lib/vmctl"));
        let freebsd = HostPaths::of(true, true, |_| None).unwrap();
        assert_eq!(freebsd.config_file, PathBuf::from("/usr/local/etc/vmctl/vmctl.toml"));
    }

    #[test]
    fn a_user_without_xdg_directories_falls_back_to_home_and_without_a_home_is_told() {
        let paths = HostPaths::of(false, false, |name| (name == "HOME").then(|| "/home/u".into())).unwrap();
        assert_eq!(paths.datastore, PathBuf::from("/home/u/.local/share/vmctl"));
        assert_eq!(paths.runtime_dir, PathBuf::from("/home/u/.local/share/vmctl/run"));
        assert!(HostPaths::of(false, false, |_| None).unwrap_err().to_string().contains("`HOME`"));
    }
}
