//! Capsicum: capability mode for the engine, and rights on each of its descriptors.
//!
//! In capability mode (cap_enter(2)) no global name is looked up any more: open(2), connect(2), bind(2), sendto(2)
//! with an address and sysctl(2) of most names fail with ECAPMODE; the calls that are left are marked CAPENABLED in
//! sys/kern/syscalls.master. What is left is what the descriptors allow, and these are limited first (rights(4)):
//!
//! | descriptor | rights | why |
//! |---|---|---|
//! | a file or a disk | PREAD PWRITE FSYNC FSTAT, IOCTL for DIOCGSECTORSIZE, DIOCGFLUSH, DIOCGDELETE | pread, pwrite, fspacectl, fdatasync; see `devices/disk/medium.rs` |
//! | a socket | READ WRITE EVENT ACCEPT SHUTDOWN, names and options, IOCTL for FIONBIO | console, control, the connector, forwards; an accepted socket inherits them (accept(2) in sys/kern/uipc_syscalls.c) |
//! | anything else | READ WRITE EVENT FSTAT | standard input, output and error |
//!
//! Capability mode still lets a process make sockets, whose ioctl(2) root configures interfaces with. So root is given
//! up too: an engine that was started by root goes on as `nobody` (65534), which has no files and no privilege; what is
//! open stays open.
//!
//! std's sleep uses clock_nanosleep(2), which is not CAPENABLED, and panics where it fails: no thread of the engine
//! sleeps but by poll(2) or a condition variable.
//!
//! An unsafe island: the calls themselves.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::RawFd;

use nix::sys::stat::{SFlag, fstat};
use nix::unistd::{Gid, Uid, geteuid, setgid, setgroups, setuid};

use super::{Confinement, SandboxError};

const MISSING: &str = "this kernel was built without `options CAPABILITY_MODE` and `options CAPABILITIES`";
/// `nobody` and its group: etc/master.passwd and etc/group of the base system.
const NOBODY: u32 = 65534;
/// Descriptors looked at where the kernel does not say how many are open.
const LOOK_AT: usize = 65536;

nix::ioctl_read!(diocgsectorsize, b'd', 128, libc::c_uint);
/// sys/sys/disk.h and sys/sys/filio.h.
const DISK_REQUESTS: [libc::c_ulong; 3] = [
    nix::request_code_read!(b'd', 128, size_of::<libc::c_uint>()),
    nix::request_code_none!(b'd', 135),
    nix::request_code_write!(b'd', 136, size_of::<[libc::off_t; 2]>()),
];
const SOCKET_REQUESTS: [libc::c_ulong; 1] = [libc::FIONBIO];

/// Confines the process, all its threads.
pub fn enter() -> Result<Confinement, SandboxError> {
    match limit_descriptors() {
        Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => return Ok(Confinement::Missing(MISSING)),
        other => other.map_err(|error| SandboxError::Capsicum("limit the descriptors", error))?,
    }
    give_up_root().map_err(|error| SandboxError::Capsicum("give up root", error))?;
    // SAFETY: the call has no argument and touches no memory.
    match done(unsafe { libc::cap_enter() }) {
        Ok(()) => Ok(Confinement::Full),
        Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => Ok(Confinement::Missing(MISSING)),
        Err(error) => Err(SandboxError::Capsicum("enter capability mode", error)),
    }
}

/// A connector connects, which capability mode does not know: it keeps its parent's privileges.
pub fn enter_connector() -> Result<Confinement, SandboxError> {
    Ok(Confinement::Full)
}

/// For all threads: on FreeBSD credentials are the process's.
fn give_up_root() -> io::Result<()> {
    if geteuid().is_root() {
        setgroups(&[Gid::from_raw(NOBODY)])?;
        setgid(Gid::from_raw(NOBODY))?;
        setuid(Uid::from_raw(NOBODY))?;
    }
    Ok(())
}

fn done(answer: libc::c_int) -> io::Result<()> {
    match answer {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn limit_descriptors() -> io::Result<()> {
    let open = count_open().unwrap_or(usize::MAX);
    let mut limited = 0;
    for fd in 0..LOOK_AT as RawFd {
        if limited >= open {
            break;
        }
        // SAFETY: fcntl with F_GETFD looks at a descriptor number and touches no memory.
        if unsafe { libc::fcntl(fd, libc::F_GETFD) } >= 0 {
            limit(fd)?;
            limited += 1;
        }
    }
    Ok(())
}

/// How many descriptors this process has: kern.proc.nfds (sysctl_kern_proc_nfds in sys/kern/kern_descrip.c).
fn count_open() -> Option<usize> {
    let name = [libc::CTL_KERN, libc::KERN_PROC, libc::KERN_PROC_NFDS, 0];
    let (mut count, mut bytes) = (0 as libc::c_int, size_of::<libc::c_int>());
    let out = (&raw mut count).cast();
    // SAFETY: the kernel reads four integers and writes one of the size that `bytes` says.
    done(unsafe { libc::sysctl(name.as_ptr(), name.len() as u32, out, &mut bytes, std::ptr::null(), 0) }).ok()?;
    usize::try_from(count).ok().filter(|&count| count > 0)
}

fn limit(fd: RawFd) -> io::Result<()> {
    // SAFETY: the descriptor is open, as its caller has seen, and nothing closes descriptors while the engine starts.
    let stat = fstat(unsafe { std::os::fd::BorrowedFd::borrow_raw(fd) })?;
    let kind = SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT;
    let mut sector = 0;
    // SAFETY: the request writes one u_int; a device that is no disk refuses it.
    let is_disk = kind == SFlag::S_IFREG || unsafe { diocgsectorsize(fd, &mut sector) }.is_ok();
    let (rights, requests): (&[u64], &[libc::c_ulong]) = if is_disk {
        let rights = &[libc::CAP_PREAD, libc::CAP_PWRITE, libc::CAP_FSYNC, libc::CAP_FSTAT, libc::CAP_IOCTL];
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
    if !requests.is_empty() {
        // SAFETY: the kernel reads `requests.len()` words.
        done(unsafe { libc::cap_ioctls_limit(fd, requests.as_ptr(), requests.len()) })?;
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
