//! Programs in a jail, through jexec(8), and properties of jails from jls(8).

use std::path::PathBuf;

use super::program::{Cause, ProgramError, run};

/// Permission of a jail to use vmm(4).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// The jail may use it.
    Allowed,
    /// The jail exists but may not use it.
    NotAllowed,
    /// There is no such jail.
    Missing,
    /// jls(8) failed.
    Unknown(ProgramError),
}

/// The first `kern.osreldate` whose bhyve(8) is known to bring up a tap through its device: that of stable/14 in January
/// 2024, before 14.1. 14.0 was not at hand.
const TAP_BROUGHT_UP_BY_ITSELF: u32 = 1_400_507;

/// Returns the permission of the jail `name`. jls(8) prints `true` or `false` for a parameter that is requested by
/// name, and does not know `allow.vmm` before vmm(4) is loaded.
pub fn standing(name: &str) -> Standing {
    match run("jls", &["-j", name, "allow.vmm"]) {
        Ok(text) if matches!(text.trim(), "true" | "1") => Standing::Allowed,
        Ok(_) => Standing::NotAllowed,
        Err(ProgramError { cause: Cause::Failed { words, .. }, .. }) if words.contains("not found") => Standing::Missing,
        Err(error) => Standing::Unknown(error),
    }
}

/// Returns whether a jail has a network stack of its own. jls(8) prints this parameter as one of these words of
/// jail(3): `new` for such a jail, else `inherit` or `disable` (`lib/libjail/jail.c`, jailparam_export). A kernel
/// without VIMAGE does not know it.
pub fn has_vnet(name: &str) -> Result<bool, ProgramError> {
    match run("jls", &["-j", name, "vnet"]) {
        Ok(text) => Ok(text.trim() == "new"),
        Err(ProgramError { cause: Cause::Failed { words, .. }, .. }) if words.contains("unknown parameter") => Ok(false),
        Err(error) => Err(error),
    }
}

/// Returns whether this release's bhyve(8) can use a tap only in a jail with a network stack of its own. Up to 13 it
/// brings its tap up through a socket (SIOCSIFFLAGS; `usr.sbin/bhyve/net_backends.c`, tap_init), which a jail may do only
/// in its own stack (PRIV_NET_SETIFFLAGS). Later it does so through the tap's device, which needs no privilege
/// (VMIO_SIOCSIFFLAGS; `sys/net/if_tuntap.c`, tunioctl). A release that cannot be asked counts as one of the former.
pub fn taps_need_vnet() -> bool {
    let release = super::sysctl::get("kern.osreldate").ok().and_then(|text| text.parse::<u32>().ok());
    release.is_none_or(|release| release < TAP_BROUGHT_UP_BY_ITSELF)
}

/// Returns the message that a guest in a jail without a network stack of its own cannot have a tap, where
/// [`taps_need_vnet`].
pub fn no_tap_without_vnet(jail: &str) -> String {
    format!("the jail `{jail}` has no network stack of its own (`vnet`), and bhyve cannot use a tap in it")
}

/// Returns the hint for it.
pub fn vnet_hint(jail: &str) -> String {
    format!("`vmctl jail prepare {jail}` shows a jail with `vnet` and the bridges of its guests in it")
}

/// Returns whether programs in a jail see a device, by test(1) of the jail.
pub fn sees(jail: &str, device: &str) -> Result<bool, ProgramError> {
    match run("jexec", &[jail, "test", "-e", device]) {
        Ok(_) => Ok(true),
        Err(ProgramError { cause: Cause::Failed { status: Some(1), words }, .. }) if words.is_empty() => Ok(false),
        Err(error) => Err(error),
    }
}

/// Runs a program, in a jail if one is named.
pub fn run_in(jail: Option<&str>, program: &str, arguments: &[&str]) -> Result<String, ProgramError> {
    match jail {
        Some(jail) => run("jexec", &[&[jail, program], arguments].concat()),
        None => run(program, arguments),
    }
}

/// Returns the root directory of a jail.
pub fn root(name: &str) -> Result<PathBuf, ProgramError> {
    run("jls", &["-j", name, "path"]).map(|text| PathBuf::from(text.trim_end_matches('\n')))
}

/// Returns the message that there is no jail of this name.
pub fn missing(name: &str) -> String {
    format!("there is no jail `{name}`; `vmctl jail prepare {name}` shows how to make it, `service jail start {name}` starts it")
}

/// Returns the message for an error of jls(8) about a jail.
pub fn words_of(name: &str, error: &ProgramError) -> String {
    match &error.cause {
        Cause::Failed { words, .. } if words.contains("not found") => missing(name),
        _ => error.to_string(),
    }
}

/// Returns a command line that does in the jail what `words` does outside. jexec(8) becomes the program, so the process
/// id is the program's.
pub fn inside(jail: Option<&str>, words: Vec<String>) -> Vec<String> {
    match jail {
        Some(jail) => ["jexec".to_owned(), jail.to_owned()].into_iter().chain(words).collect(),
        None => words,
    }
}
