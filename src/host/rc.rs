//! Autostart on FreeBSD: the variables `vmctl_enable` and `vmctl_list` of rc.conf(5), and the rc.d script of the tree.

use std::path::{Path, PathBuf};

use super::error::{self, HostError};
use super::files::write_atomically;
use super::process::own_file;
use super::sysrc::RcConf;

/// The rc.d script of the tree.
pub const SCRIPT: &str = include_str!("../../rc.d/vmctl");
/// The program that it runs. `vmctl_path` of rc.conf(5) names another.
const PROGRAM: &str = "/usr/local/bin/vmctl";

/// Returns the script as it is installed: it runs the program that installs it, wherever that is.
pub fn script() -> String {
    script_for(&own_file().unwrap_or_else(|_| PROGRAM.into()))
}

fn script_for(program: &Path) -> String {
    // Only a path that a shell reads literally is inserted. Any other path needs `vmctl_path`.
    let plain = |path: &&str| path.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/._+-".contains(&byte));
    SCRIPT.replace(PROGRAM, program.to_str().filter(plain).unwrap_or(PROGRAM))
}

/// Returns the path at which it is installed.
pub fn script_path(root: &Path) -> PathBuf {
    root.join("usr/local/etc/rc.d/vmctl")
}

/// Returns the guests that start with this host in addition to those whose files say so, in the order of `vmctl_list`.
pub fn list(rc: &RcConf) -> Result<Vec<String>, HostError> {
    rc.words("vmctl_list")
}

/// Adds guests to those that start with this host, after the present ones. Returns the new ones.
pub fn enable(rc: &RcConf, guests: &[String]) -> Result<Vec<String>, HostError> {
    let mut all = list(rc)?;
    let new: Vec<String> = guests.iter().filter(|guest| !all.contains(guest)).cloned().collect();
    if !new.is_empty() {
        all.extend(new.iter().cloned());
        rc.set("vmctl_list", &all.join(" "))?;
    }
    Ok(new)
}

/// Removes guests from those that start with this host. Returns the removed ones.
pub fn disable(rc: &RcConf, guests: &[String]) -> Result<Vec<String>, HostError> {
    let (gone, stay): (Vec<String>, Vec<String>) = list(rc)?.into_iter().partition(|guest| guests.contains(guest));
    if !gone.is_empty() {
        rc.set("vmctl_list", &stay.join(" "))?;
    }
    Ok(gone)
}

/// Returns what is missing for the host's boot to start guests, if anything is.
pub fn missing(rc: &RcConf, root: &Path) -> Result<Option<String>, HostError> {
    if !script_path(root).exists() {
        return Ok(Some("`vmctl host setup --write` installs the rc.d script".into()));
    }
    match rc.is_yes("vmctl_enable")? {
        true => Ok(None),
        false => Ok(Some("`sysrc vmctl_enable=YES` lets rc(8) start guests".into())),
    }
}

/// Returns the conflict with vm-bhyve's rc.d script if that is enabled, and the command to solve it: at a shutdown it
/// sends SIGTERM to every bhyve of the host, its own or not (`lib/vm-core`, core::stopall), and rc.shutdown(8) runs it
/// before vmctl's.
pub fn beside_vm_bhyve(rc: &RcConf) -> Option<(String, &'static str)> {
    rc.is_yes("vm_enable").unwrap_or(false).then(|| {
        let words = "vm-bhyve's `vm_enable` is on: it starts its guests with this host too, and at a shutdown it stops all of \
                     vmctl's first, in no order";
        (words.to_owned(), "when all guests have moved: `sysrc vm_enable=NO`")
    })
}

/// Installs the rc.d script.
pub fn install(root: &Path) -> Result<(), HostError> {
    let path = script_path(root);
    let parent = path.parent().expect("it has one");
    std::fs::create_dir_all(parent).map_err(|error| error::io("make", parent, &error))?;
    write_atomically(&path, script().as_bytes(), 0o555).map_err(|error| error::io("write", &path, &error))
}

/// Returns whether the installed script is the one of this build and runs this program.
pub fn is_installed(root: &Path) -> bool {
    std::fs::read_to_string(script_path(root)).is_ok_and(|text| text == script())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_script_is_one_that_rcorder_and_rc_shutdown_find() {
        let lines: Vec<&str> = SCRIPT.lines().collect();
        assert_eq!(lines[0], "#!/bin/sh");
        // rcorder(8): the lines are in one sequence, each begins with `# ` and its word.
        let first = lines.iter().position(|line| line.starts_with("# PROVIDE: ")).expect("provides");
        assert_eq!(lines[first], "# PROVIDE: vmctl");
        assert!(lines[first + 1].starts_with("# REQUIRE: DAEMON"));
        assert!(lines[first + 2].starts_with("# KEYWORD: ") && lines[first + 2].contains("shutdown"));
        assert!(SCRIPT.contains("rcvar=vmctl_enable") && SCRIPT.ends_with("run_rc_command \"$1\"\n"));
    }

    #[test]
    fn the_script_runs_the_program_that_installs_it() {
        assert!(script_for(Path::new("/root/vmctl-0.1/vmctl")).contains(": ${vmctl_path:=/root/vmctl-0.1/vmctl}\n"));
        assert_eq!(script_for(Path::new("/root/my $(reboot)/vmctl")), SCRIPT);
        assert_eq!(script_for(Path::new(PROGRAM)), SCRIPT);
        assert!(SCRIPT.contains(&format!(": ${{vmctl_path:={PROGRAM}}}\n")));
    }

    #[test]
    fn an_installed_script_is_executable_and_known() {
        use std::os::unix::fs::PermissionsExt;
        let root = tempfile::tempdir().expect("a directory");
        assert!(!is_installed(root.path()));
        install(root.path()).expect("installs");
        assert!(is_installed(root.path()));
        let mode = std::fs::metadata(script_path(root.path())).expect("is there").permissions().mode();
        assert_eq!(mode & 0o777, 0o555);
    }
}
