//! Giving up the user, capabilities, namespaces and limits of a process for good.
//!
//! On Linux namespaces, capabilities and the parent-death signal belong to a thread, so these functions must be called while
//! the process has one thread.
//!
//! An unsafe island: unshare(2), prctl(2), capset(2) and setresuid(2) themselves.
#![allow(unsafe_code)]

use std::io;

use nix::sys::resource::{Resource, setrlimit};

/// `nobody` and its group on every distribution; the kernel's overflow uid.
pub const NOBODY: u32 = 65534;
/// linux/capability.h.
pub const CAP_NET_RAW: u32 = 13;
/// linux/prctl.h.
const PR_CAP_AMBIENT: libc::c_int = 47;
const PR_CAP_AMBIENT_CLEAR_ALL: libc::c_ulong = 4;
const CAPABILITY_VERSION_3: u32 = 0x2008_0522;

/// `struct __user_cap_header_struct`, linux/capability.h.
#[repr(C)]
struct CapabilityHeader {
    version: u32,
    pid: libc::c_int,
}

/// `struct __user_cap_data_struct`, linux/capability.h; two of them hold 64 capabilities.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct CapabilityData {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

fn done(answer: libc::c_long) -> io::Result<()> {
    match answer {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Calls prctl(2) with numbers as arguments.
fn prctl(option: libc::c_int, argument: libc::c_ulong) -> io::Result<()> {
    // SAFETY: the options of this file take numbers and touch no memory.
    done(unsafe { libc::prctl(option, argument, 0, 0, 0) }.into())
}

/// Forbids core files, and limits the private memory to `data_bytes`, if given.
pub fn limit_resources(data_bytes: Option<u64>) -> io::Result<()> {
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    if let Some(bytes) = data_bytes {
        let (_, most) = nix::sys::resource::getrlimit(Resource::RLIMIT_DATA)?;
        let bytes = bytes.min(most);
        setrlimit(Resource::RLIMIT_DATA, bytes, bytes)?;
    }
    Ok(())
}

/// The kinds of namespaces that a process leaves.
const NAMESPACES: [(&str, libc::c_int); 3] =
    [("net", libc::CLONE_NEWNET), ("ipc", libc::CLONE_NEWIPC), ("uts", libc::CLONE_NEWUTS)];

/// Moves to new namespaces, including the network if `network` is set. A process without the right to that uses a user
/// namespace. Returns the names of the new namespaces, and the error of those that failed.
pub fn leave_namespaces(network: bool) -> (Vec<&'static str>, Option<io::Error>) {
    let (mut left, mut error) = (Vec::new(), None);
    // SAFETY: unshare takes flags and touches no memory.
    let unshare = |flag| done(unsafe { libc::unshare(flag) }.into());
    if !nix::unistd::geteuid().is_root() {
        match unshare(libc::CLONE_NEWUSER) {
            Ok(()) => left.push("user"),
            Err(why) => return (left, Some(why)),
        }
    }
    for (name, flag) in NAMESPACES.into_iter().filter(|&(name, _)| network || name != "net") {
        match unshare(flag) {
            Ok(()) => left.push(name),
            Err(why) => error = Some(why),
        }
    }
    (left, error)
}

/// Gives up the rights that the process could gain by executing a program.
pub fn bar_gains() -> io::Result<()> {
    for capability in 0..64 {
        match prctl(libc::PR_CAPBSET_DROP, capability) {
            Ok(()) => {}
            // After the last capability; or the process has no right to drop one, and then has none.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EPERM)) => break,
            Err(error) => return Err(error),
        }
    }
    prctl(libc::PR_SET_NO_NEW_PRIVS, 1)
}

/// Changes to user and group `uid`, with no other group. Permitted capabilities stay until [`keep_capabilities`] drops
/// them.
pub fn become_user(uid: u32) -> io::Result<()> {
    if uid == 0 || uid == u32::MAX {
        // Root, and the value for "no change" in setresuid(2).
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    prctl(libc::PR_SET_KEEPCAPS, 1)?;
    // A user namespace may refuse it. Its creator has chosen the groups then.
    // SAFETY: an empty list is not looked at.
    let _ = unsafe { libc::setgroups(0, std::ptr::null()) };
    // SAFETY: both take numbers and touch no memory.
    done(unsafe { libc::setresgid(uid, uid, uid) }.into())?;
    // SAFETY: as above.
    done(unsafe { libc::setresuid(uid, uid, uid) }.into())
}

/// Keeps those of the capabilities `kept` that the process has, and gives up all others.
pub fn keep_capabilities(kept: &[u32]) -> io::Result<()> {
    let mut data = [CapabilityData::default(); 2];
    for &capability in kept {
        let bit = 1 << (capability % 32);
        data[capability as usize / 32].effective |= bit;
        data[capability as usize / 32].permitted |= bit;
    }
    // Before Linux 4.3 there is no ambient set.
    let _ = prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL);
    let header = CapabilityHeader { version: CAPABILITY_VERSION_3, pid: 0 };
    // SAFETY: the kernel reads one header and, for version 3, two sets; both live over the call.
    done(unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) })
}

/// Prevents processes of the same user from tracing this one.
pub fn hide_from_tracers() -> io::Result<()> {
    prctl(libc::PR_SET_DUMPABLE, 0)
}

/// Requests again that the process is killed when `parent` ends, since a change of the user clears that (prctl(2)). Fails if
/// the parent has ended.
pub fn die_with(parent: nix::unistd::Pid) -> io::Result<()> {
    prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as libc::c_ulong)?;
    match nix::unistd::getppid() == parent {
        true => Ok(()),
        false => Err(io::Error::from_raw_os_error(libc::ESRCH)),
    }
}
