//! Default paths: the system's paths for root, the XDG directories for other users.

use std::path::{Path, PathBuf};

use super::cloud_init::is_public_key;
use super::diagnostic::{Diagnostic, Diagnostics};
use super::key::{Key, Kind};
use crate::inputs::is_url;

/// Directory of a datastore with one directory per guest.
pub const GUESTS_DIR: &str = "guests";
/// Name of the guest file in a guest's directory.
pub const GUEST_FILE: &str = "guest.toml";
/// Directory of a datastore that holds its templates, `NAME.toml`.
pub const TEMPLATES_DIR: &str = "templates";
/// Directory of a datastore that holds one directory a fleet that was applied there.
pub const FLEETS_DIR: &str = "fleets";

/// Returns where what belongs to a fleet in a datastore is kept: its journal, its lock, its secrets, its switches.
pub fn fleet_directory(datastore: &Path, fleet: &str) -> PathBuf {
    datastore.join(FLEETS_DIR).join(fleet)
}

/// The default paths of the user who runs this process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostPaths {
    /// The host file, which need not exist.
    pub config_file: PathBuf,
    /// The datastore when the host file names none.
    pub datastore: PathBuf,
    /// Directory of downloads.
    pub cache_dir: PathBuf,
    /// Directory of control sockets, which is empty after a boot of the host.
    pub runtime_dir: PathBuf,
}

impl HostPaths {
    /// Returns the paths of the effective user.
    pub fn of_this_user() -> Result<Self, Diagnostics> {
        let get = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let paths = Self::of(nix::unistd::geteuid().is_root(), cfg!(target_os = "freebsd"), get)?;
        Ok(Self { runtime_dir: get("VMCTL_RUNTIME_DIR").unwrap_or(paths.runtime_dir), ..paths })
    }

    /// Returns the paths. `variable` must return only absolute paths, as the XDG specification asks.
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

/// Returns whether the source of a disk is a path: not a URL, and with a slash, which no name has.
pub fn is_image_path(text: &str) -> bool {
    text.contains('/') && !is_url(text)
}

/// Returns whether a text that is at a key is a path: where a file is said otherwise than by a key for paths, its form
/// tells.
pub fn is_path(key: &Key, text: &str) -> bool {
    match (key.kind, key.path) {
        (Kind::Path | Kind::Paths, _) => true,
        (_, "disks.source") => is_image_path(text),
        (_, "cloud-init.ssh_keys") => !is_public_key(text) && !text.contains(char::is_whitespace),
        _ => false,
    }
}

/// Returns a path as a file means it: a relative one starts at the file's `directory`, `~/` and `$HOME/` at the user's
/// home.
pub fn absolute(directory: &Path, text: &str) -> PathBuf {
    let joined = in_home(text).unwrap_or_else(|| directory.join(text));
    std::path::absolute(&joined).unwrap_or(joined)
}

/// Returns a path that begins at the home of the user who runs us.
pub fn in_home(text: &str) -> Option<PathBuf> {
    let rest = ["~", "$HOME", "${HOME}"].into_iter().find_map(|home| text.strip_prefix(home))?;
    let below = if rest.is_empty() { rest } else { rest.strip_prefix('/')? };
    Some(home()?.join(below))
}

/// Returns the home of the user who runs us: `HOME`, as the shell has it; that of the account where the variable is missing,
/// or is that of a host that boots.
pub fn home() -> Option<PathBuf> {
    homes().into_iter().next()
}

/// Returns the directories that may be the user's home, that of the shell first. ssh(1) and ssh-keygen(1) do not look at
/// `HOME`: their keys are in the home of the account (ssh(1), FILES).
pub fn homes() -> Vec<PathBuf> {
    let set = std::env::var_os("HOME").map(PathBuf::from).filter(|home| home.is_absolute() && home != Path::new("/"));
    let account = nix::unistd::User::from_uid(nix::unistd::geteuid()).ok().flatten().map(|user| user.dir);
    let account = account.filter(|account| set.as_ref() != Some(account));
    set.into_iter().chain(account).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tilde_and_the_variable_begin_a_path_at_home_and_stand_for_themselves_elsewhere() {
        let home = home().expect("the tests have one");
        let at = |text: &str| absolute(Path::new("/srv"), text);
        assert_eq!([at("~/k.pub"), at("$HOME/k.pub"), at("${HOME}/k.pub")], [(); 3].map(|()| home.join("k.pub")));
        assert_eq!(at("~"), home);
        for own in ["~k", "a/~/b", "$HOMES/b", "./~/b"] {
            assert_eq!(at(own), std::path::absolute(Path::new("/srv").join(own)).unwrap(), "{own}");
        }
    }

    #[test]
    fn the_home_of_the_account_is_a_home_too_whatever_the_variable_says() {
        let account = nix::unistd::User::from_uid(nix::unistd::geteuid()).expect("looks").map(|user| user.dir);
        let homes = homes();
        assert!(account.is_none_or(|account| homes.contains(&account)), "{homes:?}");
        assert_eq!(homes.first().cloned(), home());
    }

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
