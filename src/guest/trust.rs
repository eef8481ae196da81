//! Permission of this user to run the programs of a datastore: hooks and probes run, and files are written, with this
//! user's rights.
//!
//! As vmd(8) of OpenBSD does with its configuration (`usr.sbin/vmd/parse.y`, check_file_secrecy): programs, and the
//! files that name them, must belong to root or to the user who runs them, and no other user may write to them. A group
//! may, if it is the user's own group.

use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::config::{GuestConfig, ReadyProbe};
use crate::inputs;

use super::definition::Definition;
use super::error::{GuestError, Result};
use super::store::GuestDir;

/// The user to check for.
#[derive(Debug, Clone, Copy)]
struct Caller {
    uid: u32,
    gid: u32,
}

impl Caller {
    fn this() -> Caller {
        Caller { uid: nix::unistd::geteuid().as_raw(), gid: nix::unistd::getegid().as_raw() }
    }

    fn name(self) -> String {
        user_name(self.uid)
    }

    /// Returns the problem of a file or directory, and the command to fix it.
    fn distrusts(self, path: &Path, metadata: &Metadata) -> Option<GuestError> {
        let (owner, mode) = (metadata.uid(), metadata.mode());
        let shown = path.display();
        if owner != 0 && owner != self.uid {
            let (owner, caller) = (user_name(owner), self.name());
            let message = format!("`{shown}` belongs to `{owner}`, who would decide what runs as `{caller}`");
            let hint = format!("run the command as `{owner}`, or take it over: `chown {caller} {shown}`");
            return Some(GuestError::user(message).hint(hint));
        }
        let own_group = self.uid != 0 && metadata.gid() == self.gid;
        let sticky = metadata.is_dir() && mode & 0o1000 != 0;
        let (others, group) = (mode & 0o002 != 0 && !sticky, mode & 0o020 != 0 && !own_group && !sticky);
        if others || group {
            let by = if others { "everybody" } else { "its group" };
            let message = format!("{by} may write to `{shown}`, and so decide what runs as `{}`", self.name());
            let hint = format!("take that away: `chmod {} {shown}`", if others { "go-w" } else { "g-w" });
            return Some(GuestError::user(message).hint(hint));
        }
        None
    }

    /// Checks a path. A missing one is reported by the code that needs it.
    fn check(self, path: &Path) -> Result<()> {
        match fs::metadata(path) {
            // Whatever is written to /dev/null, it reads as an empty file.
            Ok(metadata) if inputs::is_null(&metadata) => Ok(()),
            Ok(metadata) => self.distrusts(path, &metadata).map_or(Ok(()), Err),
            Err(_) => Ok(()),
        }
    }
}

fn user_name(uid: u32) -> String {
    let user = nix::unistd::User::from_uid(nix::unistd::Uid::from_raw(uid)).ok().flatten();
    user.map_or_else(|| format!("user {uid}"), |user| user.name)
}

/// Checks whether this user may change guests in the datastore at `root`, and run them.
pub fn check_datastore(root: &Path) -> Result<()> {
    let caller = Caller::this();
    caller.check(root)?;
    caller.check(&root.join(crate::config::GUESTS_DIR))
}

/// Checks whether this user may run a guest: its directory, all files that define it, and the programs that they name.
pub fn check_guest(guest: &GuestDir, definition: &Definition, host_file: &Path) -> Result<()> {
    let caller = Caller::this();
    caller.check(guest.path())?;
    // Who may write here may put a link to any disk of the host in the place of a guest's.
    caller.check(&guest.disks_dir())?;
    for source in definition.summary(host_file).sources {
        caller.check(&source.path)?;
    }
    check_programs(guest, &definition.config)
}

/// Whether this user may run a guest that is about to be made: no guest is made that its first start would refuse.
/// `origin` is the user's file that it is made from, which a copy may stand for.
pub fn check_new(guest: &GuestDir, definition: &Definition, host_file: &Path, origin: Option<&Path>) -> Result<()> {
    let checked = check_guest(guest, definition, host_file);
    let Some(origin) = origin.filter(|origin| Caller::this().check(origin).is_err()) else { return checked };
    checked.map_err(|error| {
        let (name, shown) = (guest.name(), origin.display());
        let copy = format!("let the guest have a copy that is yours: `vmctl create {name} --copy --file {shown}`");
        let hint = error.next_step().map_or_else(|| copy.clone(), |hint| format!("{copy}; or {hint}"));
        error.hint(hint)
    })
}

/// Checks whether this user may run the hooks and probes of a guest.
pub fn check_programs(guest: &GuestDir, config: &GuestConfig) -> Result<()> {
    let caller = Caller::this();
    let probes = config.ready.probes.iter().filter_map(|probe| match probe {
        ReadyProbe::Exec(command) => Some(command),
        _ => None,
    });
    for word in config.hooks.iter().map(|hook| &hook.command).chain(probes).flatten() {
        // A program, or a script that is passed to one. A program that is searched in PATH belongs to the host.
        let path = guest.path().join(word);
        if word.contains('/') && fs::metadata(&path).is_ok_and(|metadata| metadata.is_file()) {
            caller.check(&path)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn what_somebody_else_owns_or_may_write_to_is_not_run() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("guest.toml");
        fs::write(&path, "").expect("writes");
        let metadata = |mode: u32| {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("sets");
            fs::metadata(&path).expect("stats")
        };
        let (uid, gid) = (metadata(0o644).uid(), metadata(0o644).gid());
        let message = |caller: Caller, mode: u32| caller.distrusts(&path, &metadata(mode)).map(|error| error.to_string());
        let (owner, root, other) = (Caller { uid, gid }, Caller { uid: 0, gid: 0 }, Caller { uid: uid + 1, gid });
        assert_eq!(message(owner, 0o600), None);
        assert_eq!(message(owner, 0o644), None);
        assert!(message(owner, 0o646).is_some_and(|words| words.contains("everybody may write")));
        let stranger = Caller { uid: uid + 1, ..other };
        assert_eq!(message(stranger, 0o644).is_some(), uid != 0, "root's files are everybody's to run");
        if uid == 0 {
            assert!(message(root, 0o664).is_some_and(|words| words.contains("its group may write")));
            nix::unistd::chown(&path, Some(nix::unistd::Uid::from_raw(65534)), None).expect("chowns");
            let error = root.distrusts(&path, &metadata(0o644)).expect("distrusted");
            assert!(error.to_string().contains("who would decide what runs as `root`"), "{error}");
            assert!(error.next_step().is_some_and(|hint| hint.contains("chown root")), "{error:?}");
        } else {
            assert_eq!(message(owner, 0o664), None, "a user's own group is the user");
        }
    }

    #[test]
    fn an_empty_host_file_that_is_the_null_device_is_trusted() {
        let (null, dir) = (Path::new("/dev/null"), tempfile::tempdir().expect("a directory"));
        let link = dir.path().join("vmctl.toml");
        std::os::unix::fs::symlink(null, &link).expect("links");
        for path in [null, &link] {
            assert!(Caller::this().check(path).is_ok(), "{}", path.display());
        }
        assert!(Caller::this().check(Path::new("/dev/zero")).is_err(), "everybody may write to it, and it is not empty");
    }

    #[test]
    fn a_directory_in_which_everybody_may_make_files_is_trusted_only_if_it_is_sticky() {
        let dir = tempfile::tempdir().expect("a directory");
        let caller = Caller::this();
        for (mode, trusted) in [(0o755, true), (0o777, false), (0o1777, true)] {
            fs::set_permissions(dir.path(), fs::Permissions::from_mode(mode)).expect("sets");
            assert_eq!(caller.check(dir.path()).is_ok(), trusted, "{mode:o}");
        }
    }
}
