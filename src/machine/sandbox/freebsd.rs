//! Capsicum: capability mode for the engine, and rights on each of its descriptors.
//!
//! In capability mode (cap_enter(2)) a process cannot look up global names: open(2), connect(2), bind(2), sendto(2) with an
//! address and sysctl(2) of most names fail with ECAPMODE. The remaining calls are marked CAPENABLED in
//! sys/kern/syscalls.master. A process can then do only what its descriptors allow, and these are limited first
//! (rights(4)):
//!
//! | descriptor | rights | why |
//! |---|---|---|
//! | a file or a disk | PREAD PWRITE FSYNC FSTAT FPATHCONF, IOCTL for DIOCGSECTORSIZE, DIOCGFLUSH, DIOCGDELETE, DIOCGATTR | pread, pwrite, fspacectl, fdatasync; see `devices/disk/medium.rs` |
//! | a socket | READ WRITE EVENT ACCEPT SHUTDOWN, names and options, IOCTL for FIONBIO | console, control, the connector, forwards; an accepted socket inherits them (accept(2) in sys/kern/uipc_syscalls.c) |
//! | a back end's machine | MMAP_RW, IOCTL for its requests: those that put the machine together until it is, then those of a running guest | `hypervisor/vmm` |
//! | anything else | READ WRITE EVENT FSTAT | standard input, output and error |
//!
//! No descriptor has CAP_FCNTL, so the process can set neither its flags nor an owner that gets SIGIO (cap_fcntls_limit(2)).
//!
//! Capability mode still lets a process make sockets, with whose ioctl(2) root can configure interfaces. It can signal other
//! processes only with pdkill(2), for which it has no descriptor. So the engine gives up root too: if root started it, it
//! becomes a user that only this guest has, or else `nobody` (65534), which has no files and no privileges. Open files stay
//! open. The privileges of root on FreeBSD come from its number alone: priv(9).
//!
//! A connector becomes the same user. The host services stay root: only root can make a raw ICMP socket (rip_attach in
//! raw_ip.c asks priv_check for PRIV_NETINET_RAW), and FreeBSD has no other way to ping.
//!
//! std's sleep uses clock_nanosleep(2), which is not CAPENABLED, and panics if it fails. So threads of the engine sleep only
//! with poll(2) or a condition variable.
//!
//! An unsafe island: the calls themselves.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::RawFd;

use nix::sys::resource::{Resource, setrlimit};
use nix::sys::stat::{SFlag, fstat};
use nix::unistd::{Gid, Pid, Uid, geteuid, getppid, setgid, setgroups, setuid};

use super::{Confinement, SandboxError};
use crate::hypervisor::backend::Rights;

const MISSING: &str = "this kernel was built without `options CAPABILITY_MODE` and `options CAPABILITIES`";
const FEATURE: &str = "Capsicum";
/// `nobody` and its group: etc/master.passwd and etc/group of the base system.
const NOBODY: u32 = 65534;
/// Number of descriptors to check if the kernel does not tell how many are open.
const LOOK_AT: usize = 65536;

nix::ioctl_read!(diocgsectorsize, b'd', 128, libc::c_uint);
/// sys/sys/disk.h and sys/sys/filio.h.
const DISK_REQUESTS: [libc::c_ulong; 4] = [
    nix::request_code_read!(b'd', 128, size_of::<libc::c_uint>()),
    nix::request_code_none!(b'd', 135),
    nix::request_code_write!(b'd', 136, size_of::<[libc::off_t; 2]>()),
    // DIOCGATTR takes a `struct diocgattr_arg`: a name of 64 bytes, an int, and a union of 256 bytes aligned to eight.
    nix::request_code_readwrite!(b'd', 142, 64 + 8 + 256),
];
const SOCKET_REQUESTS: [libc::c_ulong; 1] = [libc::FIONBIO];

/// Confines the engine child. Root becomes `run_as`.
pub fn enter(run_as: Option<u32>, _memory_bytes: u64, rights: &Rights) -> Result<Confinement, SandboxError> {
    let mut confinement = Confinement::default();
    let lacks = |confinement: Confinement| Confinement {
        missing: [confinement.missing, vec![format!("{FEATURE}: {MISSING}")]].concat(),
        ..confinement
    };
    let limited = limit_descriptors(rights);
    give_up(run_as, &mut confinement)?;
    match limited {
        Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => return Ok(lacks(confinement)),
        other => other.map_err(|error| SandboxError::Capsicum("limit the descriptors", error))?,
    }
    // SAFETY: the call has no argument and touches no memory.
    match done(unsafe { libc::cap_enter() }) {
        Ok(()) => confinement.held.push(format!("{FEATURE}: capability mode, limited descriptors")),
        Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => return Ok(lacks(confinement)),
        Err(error) => return Err(SandboxError::Capsicum("enter capability mode", error)),
    }
    Ok(confinement)
}

/// Takes the requests away that put a machine together. Capability mode does not limit threads.
pub fn seal(rights: &Rights) -> Result<(), SandboxError> {
    let Some(device) = rights.device else { return Ok(()) };
    match limit_requests(device, &words(rights.running)) {
        // A kernel without Capsicum, which was reported.
        Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => Ok(()),
        other => other.map_err(|error| SandboxError::Capsicum("limit the requests to vmm(4)", error)),
    }
}

/// Returns requests as cap_ioctls_limit(2) takes them.
fn words(requests: &[u32]) -> Vec<libc::c_ulong> {
    requests.iter().map(|&request| request.into()).collect()
}

/// Confines a connector, which cannot be in capability mode since it connects. Root becomes `run_as`.
pub fn enter_connector(run_as: Option<u32>) -> Result<Confinement, SandboxError> {
    let mut confinement = Confinement::default();
    give_up(run_as, &mut confinement)?;
    Ok(confinement)
}

/// Confines the host services. They stay root, since only root may make raw sockets.
pub fn enter_host_services(_run_as: Option<u32>, _needs_raw: impl FnOnce() -> bool) -> Result<Confinement, SandboxError> {
    limit_core().map_err(|error| SandboxError::Privileges("limit its resources", error))?;
    Ok(Confinement::default())
}

fn limit_core() -> io::Result<()> {
    Ok(setrlimit(Resource::RLIMIT_CORE, 0, 0)?)
}

/// Gives up the user, core files and tracers, for all threads: on FreeBSD credentials belong to the process.
fn give_up(run_as: Option<u32>, confinement: &mut Confinement) -> Result<(), SandboxError> {
    let cannot = |what: &'static str| move |error| SandboxError::Privileges(what, error);
    let parent = getppid();
    limit_core().map_err(cannot("limit its resources"))?;
    if geteuid().is_root() {
        let uid = run_as.unwrap_or(NOBODY);
        become_user(uid).map_err(|errno| SandboxError::Privileges("give up root", errno.into()))?;
        confinement.held.push(format!("uid {uid}"));
    }
    hide_from_tracers().map_err(cannot("hide from tracers"))?;
    die_with(parent).map_err(cannot("be tied to its parent"))
}

fn become_user(uid: u32) -> nix::Result<()> {
    setgroups(&[Gid::from_raw(uid)])?;
    setgid(Gid::from_raw(uid))?;
    setuid(Uid::from_raw(uid))
}

/// Keeps processes of the same user from looking into this one, and the kernel from writing a core file: procctl(2)
/// PROC_TRACE_CTL.
fn hide_from_tracers() -> io::Result<()> {
    let mut how: libc::c_int = libc::PROC_TRACE_CTL_DISABLE;
    // SAFETY: the request reads one int, which lives over the call.
    done(unsafe { libc::procctl(libc::P_PID, 0, libc::PROC_TRACE_CTL, (&raw mut how).cast()) })
}

/// Requests again that the process is killed when `parent` ends, since a change of the user may clear that (procctl(2)
/// PROC_PDEATHSIG_CTL). Fails if the parent has ended.
fn die_with(parent: Pid) -> io::Result<()> {
    let mut signal: libc::c_int = libc::SIGKILL;
    // SAFETY: the request reads one int, which lives over the call.
    done(unsafe { libc::procctl(libc::P_PID, 0, libc::PROC_PDEATHSIG_CTL, (&raw mut signal).cast()) })?;
    match getppid() == parent {
        true => Ok(()),
        false => Err(io::Error::from_raw_os_error(libc::ESRCH)),
    }
}

fn done(answer: libc::c_int) -> io::Result<()> {
    match answer {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn limit_descriptors(backend: &Rights) -> io::Result<()> {
    let open = count_open().unwrap_or(usize::MAX);
    let mut limited = 0;
    for fd in 0..LOOK_AT as RawFd {
        if limited >= open {
            break;
        }
        // SAFETY: fcntl with F_GETFD looks at a descriptor number and touches no memory.
        if unsafe { libc::fcntl(fd, libc::F_GETFD) } >= 0 {
            limit(fd, backend)?;
            limited += 1;
        }
    }
    Ok(())
}

/// Returns the number of descriptors of this process: kern.proc.nfds (sysctl_kern_proc_nfds in sys/kern/kern_descrip.c).
fn count_open() -> Option<usize> {
    let name = [libc::CTL_KERN, libc::KERN_PROC, libc::KERN_PROC_NFDS, 0];
    let (mut count, mut bytes) = (0 as libc::c_int, size_of::<libc::c_int>());
    let out = (&raw mut count).cast();
    // SAFETY: the kernel reads four integers and writes one of the size that `bytes` says.
    done(unsafe { libc::sysctl(name.as_ptr(), name.len() as u32, out, &mut bytes, std::ptr::null(), 0) }).ok()?;
    usize::try_from(count).ok().filter(|&count| count > 0)
}

fn limit(fd: RawFd, backend: &Rights) -> io::Result<()> {
    if backend.device == Some(fd) {
        let requests = words(&[backend.assembly, backend.running].concat());
        return limit_to(fd, &[libc::CAP_IOCTL, libc::CAP_MMAP_RW], &requests);
    }
    // SAFETY: the descriptor is open, as its caller has seen, and nothing closes descriptors while the engine starts.
    let stat = fstat(unsafe { std::os::fd::BorrowedFd::borrow_raw(fd) })?;
    let kind = SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT;
    let mut sector = 0;
    // SAFETY: the request writes one u_int; a device that is no disk refuses it.
    let is_disk = kind == SFlag::S_IFREG || unsafe { diocgsectorsize(fd, &mut sector) }.is_ok();
    let (rights, requests): (&[u64], &[libc::c_ulong]) = if is_disk {
        let rights = &[libc::CAP_PREAD, libc::CAP_PWRITE, libc::CAP_FSYNC, libc::CAP_FSTAT, libc::CAP_FPATHCONF, libc::CAP_IOCTL];
        (rights, &DISK_REQUESTS)
    } else if kind == SFlag::S_IFSOCK {
        let rights = &[
            libc::CAP_READ,
            libc::CAP_WRITE,
            libc::CAP_EVENT,
            libc::CAP_ACCEPT,
            libc::CAP_SHUTDOWN,
            libc::CAP_GETPEERNAME,
            libc::CAP_GETSOCKNAME,
            libc::CAP_GETSOCKOPT,
            libc::CAP_SETSOCKOPT,
            libc::CAP_FSTAT,
            libc::CAP_IOCTL,
        ];
        (rights, &SOCKET_REQUESTS)
    } else {
        (&[libc::CAP_READ, libc::CAP_WRITE, libc::CAP_EVENT, libc::CAP_FSTAT], &[])
    };
    limit_to(fd, rights, requests)
}

fn limit_requests(fd: RawFd, requests: &[libc::c_ulong]) -> io::Result<()> {
    // SAFETY: the kernel reads `requests.len()` words.
    done(unsafe { libc::cap_ioctls_limit(fd, requests.as_ptr(), requests.len()) })
}

fn limit_to(fd: RawFd, rights: &[u64], requests: &[libc::c_ulong]) -> io::Result<()> {
    if !requests.is_empty() {
        limit_requests(fd, requests)?;
    }
    // SAFETY: an all-zero structure is what cap_rights_init(3) starts from; a zero ends each list of rights.
    unsafe {
        let mut set: libc::cap_rights_t = std::mem::zeroed();
        libc::__cap_rights_init(libc::CAP_RIGHTS_VERSION, &mut set, 0u64);
        for &right in rights {
            libc::__cap_rights_set(&mut set, right, 0u64);
        }
        done(libc::cap_rights_limit(fd, &set))
    }
}
