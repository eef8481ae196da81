//! `vmctl autostart enable` of a user, against programs that answer as systemctl(1) and loginctl(1) of a host do: what was
//! seen in a Debian guest (`make systemd-proof`).

use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use crate::world::{Said, World};

/// Without the address of the user's manager there is no answer; who may linger is in the file `linger`, and whether
/// polkit is there to let a user say so in `polkit`.
const SYSTEMCTL: &str = "#!/bin/sh
echo \"systemctl $*\" >> \"$HOME/calls\"
case $* in
--user*) [ -S \"$XDG_RUNTIME_DIR/systemd/private\" ] || { echo 'Failed to connect to bus: No medium found' >&2; exit 1; } ;;
show*) echo TimeoutStopUSec=2min ;;
esac
";
const LOGINCTL: &str = "#!/bin/sh
echo \"loginctl $*\" >> \"$HOME/calls\"
case $1 in
show-user) if [ -e \"$HOME/linger\" ]; then echo Linger=yes; else echo Linger=no; fi ;;
enable-linger)
    [ -e \"$HOME/polkit\" ] || { echo 'Could not enable linger: Access denied' >&2; exit 1; }
    touch \"$HOME/linger\"
    ;;
esac
";

/// A host with systemd on which this user is not root.
struct Host {
    world: World,
    _manager: std::os::unix::net::UnixListener,
}

impl Host {
    fn new() -> Host {
        let world = World::new();
        let at = |path: &str| world.path().join(path);
        let runtime = at("host/run/user").join(nix::unistd::geteuid().to_string()).join("systemd");
        for directory in [at("bin"), at("host/run/systemd/system"), runtime.clone()] {
            std::fs::create_dir_all(directory).expect("made");
        }
        std::fs::write(at("host/not-root"), "").expect("writes");
        for (name, text) in [("systemctl", SYSTEMCTL), ("loginctl", LOGINCTL)] {
            let path = at("bin").join(name);
            std::fs::write(&path, text).expect("writes");
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("sets");
        }
        let _manager = std::os::unix::net::UnixListener::bind(runtime.join("private")).expect("listens");
        Host { world, _manager }
    }

    fn touch(&self, name: &str) {
        std::fs::write(self.world.path().join(name), "").expect("writes");
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.world.command(arguments);
        let path = format!("{}/bin:/usr/sbin:/usr/bin:/sbin:/bin", self.world.path().display());
        command.env("PATH", path).env("VMCTL_HOST_ROOT", self.world.path().join("host")).env_remove("XDG_RUNTIME_DIR");
        command
    }

    fn vmctl(&self, arguments: &[&str]) -> Said {
        self.command(arguments).output().expect("runs").into()
    }

    fn unit(&self) -> String {
        let path = self.world.path().join(".config/systemd/user/vmctl-autostart.service");
        std::fs::read_to_string(path).unwrap_or_default()
    }
}

#[test]
fn a_session_that_does_not_know_the_users_manager_finds_it() {
    let host = Host::new();
    host.touch("linger");
    let said = host.vmctl(&["autostart", "enable"]).ok();
    assert!(!said.err.contains("warning"), "{said:?}");
    said.says("vmctl-autostart.service` is enabled");
    let calls = std::fs::read_to_string(host.world.path().join("calls")).expect("calls");
    assert!(calls.contains("systemctl --user daemon-reload\nsystemctl --user enable vmctl-autostart.service\n"), "{calls}");
    host.vmctl(&["autostart", "disable"]).ok();
    assert_eq!(host.unit(), "");
}

#[test]
fn who_lingers_already_is_not_warned_and_who_may_not_is() {
    let host = Host::new();
    host.vmctl(&["autostart", "enable"]).ok().says("warning: guests start when you log in, and stop when you log out");
    host.touch("polkit");
    let said = host.vmctl(&["autostart", "enable"]).ok();
    assert!(!said.err.contains("log in"), "{said:?}");
    assert!(host.world.path().join("linger").exists());
    std::fs::remove_file(host.world.path().join("polkit")).expect("removed");
    let said = host.vmctl(&["autostart", "enable"]).ok();
    assert!(!said.err.contains("log in"), "{said:?}");
}

#[test]
fn the_guests_of_a_user_have_no_longer_to_stop_than_the_users_manager() {
    let host = Host::new();
    host.touch("linger");
    host.vmctl(&["autostart", "enable"]).ok();
    let unit = host.unit();
    assert!(unit.contains(" down --all --timeout 100s\n") && unit.contains("\nTimeoutStopSec=115s\n"), "{unit}");
    host.vmctl(&["autostart", "enable", "--stop-timeout", "5m"]).ok().says("guests have only 1m40s to stop instead of `5m`");
    assert!(host.unit().contains(" down --all --timeout 100s\n"), "{}", host.unit());
    let said = host.vmctl(&["autostart", "enable", "--stop-timeout", "30s"]).ok();
    assert!(!said.err.contains("warning"), "{said:?}");
    assert!(host.unit().contains(" down --all --timeout 30s\n"), "{}", host.unit());
}
