//! Tap interfaces, through ifconfig(8). The kernel chooses the number; a tap is recognised by its description. With a
//! jail, taps and bridges are those of the jail's network stack.

use super::error::HostError;
use super::ifconfig::{self, Interface};
use super::jail_run::run_in;
use super::program::{Cause, ProgramError};

/// A tap to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewTap<'a> {
    /// `tap`, or `vmnet`, which goes down when it is closed.
    pub kind: &'a str,
    /// Description, by which the tap is found again: at most 63 bytes and without blanks.
    pub description: &'a str,
    /// Largest packet; the kernel's default without it.
    pub mtu: Option<u16>,
}

/// Makes a tap and returns its name. It is one call, so that no tap is ever without its description.
pub fn create(tap: &NewTap<'_>, jail: Option<&str>) -> Result<String, ProgramError> {
    let mut arguments = vec![tap.kind, "create", "description", tap.description];
    let mtu = tap.mtu.map(|mtu| mtu.to_string());
    if let Some(mtu) = &mtu {
        arguments.extend(["mtu", mtu]);
    }
    // ifconfig prints a name that the caller does not know (`sbin/ifconfig/ifclone.c`, ifclonecreate).
    let printed = run_in(jail, "ifconfig", &arguments)?;
    let name = printed.split_whitespace().last().filter(|name| name.starts_with(tap.kind));
    name.map(str::to_owned).ok_or_else(|| ProgramError {
        command: format!("ifconfig {}", arguments.join(" ")),
        cause: Cause::Run(format!("it printed no tap name: `{}`", printed.trim())),
    })
}

/// Membership of a tap in a bridge.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Membership {
    /// Whether it cannot talk to the bridge's other private members.
    pub private: bool,
    /// Whether it gets a copy of every frame, instead of being a member.
    pub span: bool,
}

/// Adds an interface to a bridge and brings it up.
pub fn join(interface: &str, bridge: &str, how: Membership, jail: Option<&str>) -> Result<(), ProgramError> {
    let words = match how {
        Membership { span: true, .. } => vec![bridge, "span", interface],
        Membership { private: true, .. } => vec![bridge, "addm", interface, "private", interface],
        _ => vec![bridge, "addm", interface],
    };
    run_in(jail, "ifconfig", &words)?;
    run_in(jail, "ifconfig", &[interface, "up"]).map(drop)
}

/// Removes an interface.
pub fn destroy(interface: &str, jail: Option<&str>) -> Result<(), ProgramError> {
    run_in(jail, "ifconfig", &[interface, "destroy"]).map(drop)
}

/// Returns whether there is an interface of this name. ifconfig prints `interface NAME does not exist` if there is none
/// (`sbin/ifconfig/ifconfig.c`, main).
pub fn exists(interface: &str, jail: Option<&str>) -> Result<bool, ProgramError> {
    match run_in(jail, "ifconfig", &[interface]) {
        Ok(_) => Ok(true),
        Err(ProgramError { cause: Cause::Failed { words, .. }, .. }) if words.contains("does not exist") => Ok(false),
        Err(error) => Err(error),
    }
}

/// Returns the process that has a tap open. ifconfig then prints `Opened by PID 7` (`sys/net/if_tuntap.c`, tunifioctl).
pub fn opened_by(interface: &str, jail: Option<&str>) -> Option<u32> {
    let text = run_in(jail, "ifconfig", &[interface]).ok()?;
    text.lines().find_map(|line| line.trim().strip_prefix("Opened by PID ")?.trim().parse().ok())
}

/// Returns the taps with this description.
pub fn described(description: &str, jail: Option<&str>) -> Result<Vec<String>, HostError> {
    let mine = |interface: &Interface| {
        interface.description == description && (interface.name.starts_with("tap") || interface.name.starts_with("vmnet"))
    };
    Ok(ifconfig::interfaces_in(jail)?.into_iter().filter(mine).map(|interface| interface.name).collect())
}
