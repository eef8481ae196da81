//! Confinement on Linux: a process gives up its user, capabilities and namespaces (`privileges.rs`), files, ports and
//! signals with Landlock, and system calls and their arguments with seccomp (`filter.rs`).

mod filter;
mod privileges;
#[cfg(test)]
mod tests;

use std::io;

use landlock::{ABI, Access, AccessFs, AccessNet, BitFlags, LandlockStatus, Ruleset, RulesetAttr, Scope};
use nix::unistd::{geteuid, getppid};

use super::{Confinement, SandboxError};
use crate::hypervisor::backend::Rights;
use filter::Role;
use privileges::{CAP_NET_RAW, NOBODY};

/// The first ABI of Landlock with everything that is used here: files, ports, signals and abstract sockets.
const LANDLOCK_ABI: ABI = ABI::V6;
/// Number of bytes that an engine may allocate beyond twice the guest's memory: a boot menu has a kernel and its initrd in
/// memory before they are placed, and a running machine its queues and decoded code.
const MEMORY_BEYOND_BYTES: u64 = 2 << 30;

/// Confines the engine child, which has one thread and may start more until [`seal`]. Root becomes `run_as`. The back end
/// needs `rights`.
pub fn enter(run_as: Option<u32>, memory_bytes: u64, rights: &Rights) -> Result<Confinement, SandboxError> {
    let data_bytes = memory_bytes.saturating_mul(2).saturating_add(MEMORY_BEYOND_BYTES);
    let mut confinement = Confinement::default();
    give_up(run_as, Some(data_bytes), true, || false, &mut confinement)?;
    let net = AccessNet::from_all(LANDLOCK_ABI);
    landlock(AccessFs::from_all(LANDLOCK_ABI), net, &mut confinement)?;
    seccomp(Role::Assembly(*rights), &mut confinement)?;
    Ok(confinement)
}

/// Takes the right to start threads from the engine child. The guest runs next.
pub fn seal(rights: &Rights) -> Result<(), SandboxError> {
    seccomp(Role::Machine(*rights), &mut Confinement::default())
}

/// Confines a connector, which opens no files and makes connections.
pub fn enter_connector(run_as: Option<u32>) -> Result<Confinement, SandboxError> {
    let mut confinement = Confinement::default();
    give_up(run_as, None, false, || false, &mut confinement)?;
    landlock(AccessFs::from_all(LANDLOCK_ABI), AccessNet::BindTcp.into(), &mut confinement)?;
    seccomp(Role::Connector, &mut confinement)?;
    Ok(confinement)
}

/// Confines the host services, which read files. If `needs_raw` returns `true`, they keep the right to raw sockets, and the
/// filter lets them make those of ICMP. It is called as the user that root becomes.
pub fn enter_host_services(run_as: Option<u32>, needs_raw: impl FnOnce() -> bool) -> Result<Confinement, SandboxError> {
    let mut confinement = Confinement::default();
    give_up(run_as, None, false, needs_raw, &mut confinement)?;
    let files = AccessFs::from_all(LANDLOCK_ABI) & !AccessFs::ReadFile;
    landlock(files, AccessNet::from_all(LANDLOCK_ABI), &mut confinement)?;
    seccomp(Role::HostServices, &mut confinement)?;
    Ok(confinement)
}

fn give_up(
    run_as: Option<u32>,
    data_bytes: Option<u64>,
    network: bool,
    keep_raw: impl FnOnce() -> bool,
    confinement: &mut Confinement,
) -> Result<(), SandboxError> {
    let cannot = |what: &'static str| move |error| SandboxError::Privileges(what, error);
    let parent = getppid();
    privileges::limit_resources(data_bytes).map_err(cannot("limit its resources"))?;
    let (mut left, refused) = privileges::leave_namespaces(network);
    // It was started in it, or not at all: a process does not change its number.
    match std::process::id() {
        1 => left.insert(0, "pid"),
        _ => confinement.missing.push("a process namespace of its own: the host makes none".into()),
    }
    if !left.is_empty() {
        confinement.held.push(format!("namespaces {}", left.join(" ")));
    }
    if let Some(error) = refused {
        confinement.missing.push(format!("namespaces of its own: {error}"));
    }
    let was_root = geteuid().is_root();
    privileges::bar_gains().map_err(cannot("give up what it could gain"))?;
    if was_root {
        change_user(run_as, confinement);
    }
    let kept: &[u32] = if was_root && keep_raw() { &[CAP_NET_RAW] } else { &[] };
    privileges::keep_capabilities(kept).map_err(cannot("give up its capabilities"))?;
    confinement.held.push(if kept.is_empty() { "no capabilities" } else { "no capability but CAP_NET_RAW" }.into());
    privileges::hide_from_tracers().map_err(cannot("hide from tracers"))?;
    privileges::die_with(parent).map_err(cannot("be tied to its parent"))
}

/// Changes from root to a user that only this guest has, or to `nobody` if that user is not mapped in the user namespace.
fn change_user(run_as: Option<u32>, confinement: &mut Confinement) {
    let mut refused = None;
    for uid in run_as.into_iter().chain([NOBODY]) {
        match privileges::become_user(uid) {
            Ok(()) => {
                confinement.held.push(format!("uid {uid}"));
                if run_as.is_some_and(|wanted| wanted != uid) {
                    confinement.missing.push(format!("uid of its own: {}", refused.unwrap_or_else(io::Error::last_os_error)));
                }
                return;
            }
            Err(error) => refused = Some(error),
        }
    }
    let why = refused.map(|error| error.to_string()).unwrap_or_default();
    confinement.missing.push(format!("uid of its own: it stays root, without capabilities: {why}"));
}

/// Gives up these rights, as far as the kernel supports it.
fn landlock(files: BitFlags<AccessFs>, ports: BitFlags<AccessNet>, confinement: &mut Confinement) -> Result<(), SandboxError> {
    let text = |e: landlock::RulesetError| SandboxError::Landlock(e.to_string());
    let rules = Ruleset::default().handle_access(files).map_err(text)?.handle_access(ports).map_err(text)?;
    let rules = rules.scope(Scope::from_all(LANDLOCK_ABI)).map_err(text)?;
    let status = rules.create().map_err(text)?.restrict_self().map_err(text)?;
    match status.landlock {
        LandlockStatus::Available { effective_abi, .. } => {
            confinement.held.push(format!("Landlock {}", effective_abi as i32));
            if effective_abi < LANDLOCK_ABI {
                confinement.missing.push(format!(
                    "Landlock {}: this kernel has {} (signals, abstract sockets{})",
                    LANDLOCK_ABI as i32,
                    effective_abi as i32,
                    if effective_abi < ABI::V4 { ", ports" } else { "" }
                ));
            }
        }
        LandlockStatus::NotEnabled => confinement.missing.push("Landlock: it is not enabled in this kernel".into()),
        LandlockStatus::NotImplemented => confinement.missing.push("Landlock: this kernel has none, or it is refused".into()),
    }
    Ok(())
}

/// Refuses all system calls except for those of `role`.
fn seccomp(role: Role, confinement: &mut Confinement) -> Result<(), SandboxError> {
    let program = filter::program(role, std::process::id())?;
    match seccompiler::apply_filter_all_threads(&program) {
        Ok(()) => confinement.held.push("seccomp".into()),
        Err(seccompiler::Error::Seccomp(e)) if e.raw_os_error() == Some(libc::EINVAL) => {
            confinement.missing.push("seccomp: this kernel was built without it".into());
        }
        // Another filter refuses it, such as that of a container.
        Err(seccompiler::Error::Seccomp(e)) if matches!(e.raw_os_error(), Some(libc::EPERM | libc::ENOSYS)) => {
            confinement.missing.push(format!("seccomp: {e}"));
        }
        Err(e) => return Err(SandboxError::Seccomp(e.to_string())),
    }
    Ok(())
}
