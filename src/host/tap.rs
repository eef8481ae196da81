//! Tap interfaces, through ifconfig(8). The kernel chooses the number; a tap is known again by its description. With a
//! jail, they and their bridge are those of its network stack.

use super::error::HostError;
use super::ifconfig::{self, Interface};
use super::jail_run::run_in;
use super::program::{Cause, ProgramError};

/// A tap that is to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewTap<'a> {
    /// `tap`, or `vmnet`, which goes down when it is closed.
    pub kind: &'a str,
    /// By which it is found again; at most 63 bytes and without blanks.
    pub description: &'a str,
    /// Largest packet; the kernel's default without it.
    pub mtu: Option<u16>,
}

/// Makes a tap and returns its name. One call, so that no tap is ever without its description.
pub fn create(tap: &NewTap<'_>, jail: Option<&str>) -> Result<String, ProgramError> {
    let mut arguments = vec![tap.kind, "create", "description", tap.description];
    let mtu = tap.mtu.map(|mtu| mtu.to_string());
    if let Some(mtu) = &mtu {
        arguments.extend(["mtu", mtu]);
    }
    // ifconfig prints the name that it did not know before (`sbin/ifconfig/ifclone.c`, ifclonecreate).
    let printed = run_in(jail, "ifconfig", &arguments)?;
    let name = printed.split_whitespace().last().filter(|name| name.starts_with(tap.kind));
    name.map(str::to_owned).ok_or_else(|| ProgramError {
        command: format!("ifconfig {}", arguments.join(" ")),
        cause: Cause::Run(format!("it printed no name of a tap: `{}`", printed.trim())),
    })
}

/// How a tap is a member of a bridge.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Membership {
    /// It cannot talk to the bridge's other private members.
    pub private: bool,
    /// It gets a copy of every frame, and is no member otherwise.
    pub span: bool,
}

/// Puts an interface on a bridge and brings it up.
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

/// Whether there is an interface of this name: ifconfig says `interface NAME does not exist` when there is none
/// (`sbin/ifconfig/ifconfig.c`, main).
pub fn exists(interface: &str, jail: Option<&str>) -> Result<bool, ProgramError> {
    match run_in(jail, "ifconfig", &[interface]) {
        Ok(_) => Ok(true),
        Err(ProgramError { cause: Cause::Failed { words, .. }, .. }) if words.contains("does not exist") => Ok(false),
        Err(error) => Err(error),
    }
}

/// The process that has a tap open: ifconfig prints `Opened by PID 7` then (`sys/net/if_tuntap.c`, tunifioctl).
pub fn opened_by(interface: &str, jail: Option<&str>) -> Option<u32> {
    let text = run_in(jail, "ifconfig", &[interface]).ok()?;
    text.lines().find_map(|line| line.trim().strip_prefix("Opened by PID ")?.trim().parse().ok())
}

/// The taps with this description.
pub fn described(description: &str, jail: Option<&str>) -> Result<Vec<String>, HostError> {
    let mine = |interface: &Interface| {
        interface.description == description && (interface.name.starts_with("tap") || interface.name.starts_with("vmnet"))
    };
    Ok(ifconfig::interfaces_in(jail)?.into_iter().filter(mine).map(|interface| interface.name).collect())
}
