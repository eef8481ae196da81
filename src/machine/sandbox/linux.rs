//! Landlock and seccomp.

use std::collections::BTreeMap;

use landlock::{ABI, Access, AccessFs, BitFlags, Ruleset, RulesetAttr};

use super::{Confinement, SandboxError};

/// System calls of every confined process: memory, signals and time; reading and writing what is open, sockets among it;
/// ending.
const EVERYBODY: &[libc::c_long] = &[
    libc::SYS_brk,
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_mprotect,
    libc::SYS_madvise,
    libc::SYS_futex,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_clock_gettime,
    libc::SYS_getrandom,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_tgkill,
    libc::SYS_restart_syscall,
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_lseek,
    libc::SYS_fstat,
    libc::SYS_statx,
    libc::SYS_fcntl,
    libc::SYS_close,
    libc::SYS_poll,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    libc::SYS_sendto,
    libc::SYS_recvfrom,
    libc::SYS_sendmsg,
    libc::SYS_recvmsg,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// Those of a running machine beside them: threads, disks, and accepting on its forwards.
const ENGINE: &[libc::c_long] = &[
    libc::SYS_clone,
    libc::SYS_clone3,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_prctl,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_gettimeofday,
    libc::SYS_readv,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_preadv,
    libc::SYS_pwritev,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_fallocate,
    libc::SYS_ioctl,
    libc::SYS_dup,
    libc::SYS_ppoll,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    libc::SYS_eventfd2,
    libc::SYS_pipe2,
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_shutdown,
];

/// Those of a connector beside them: it reads resolv.conf(5), makes sockets, and sees whether one leads to this host.
const CONNECTOR: &[libc::c_long] = &[libc::SYS_openat, libc::SYS_socket, libc::SYS_connect, libc::SYS_getsockname];

/// Confines the process, all its threads.
pub fn enter() -> Result<Confinement, SandboxError> {
    landlock(AccessFs::from_all(ABI::V3))?;
    seccomp(ENGINE)
}

/// Confines a connector.
pub fn enter_connector() -> Result<Confinement, SandboxError> {
    landlock(AccessFs::from_all(ABI::V3) & !AccessFs::ReadFile)?;
    seccomp(CONNECTOR)
}

/// Takes these rights to the file system away, as far as this kernel can.
fn landlock(rights: BitFlags<AccessFs>) -> Result<(), SandboxError> {
    let text = |e: landlock::RulesetError| SandboxError::Landlock(e.to_string());
    let rules = Ruleset::default().handle_access(rights).map_err(text)?;
    rules.create().map_err(text)?.restrict_self().map_err(text)?;
    Ok(())
}

/// Refuses all system calls but those of everybody and `more`.
fn seccomp(more: &[libc::c_long]) -> Result<Confinement, SandboxError> {
    use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch};
    let text = |e: &dyn std::fmt::Display| SandboxError::Seccomp(e.to_string());
    let arch = TargetArch::try_from(std::env::consts::ARCH).map_err(|e| text(&e))?;
    let rules: BTreeMap<i64, Vec<_>> = EVERYBODY.iter().chain(more).map(|&call| (call, Vec::new())).collect();
    let refuse = SeccompAction::Errno(libc::EPERM as u32);
    let filter = SeccompFilter::new(rules, refuse, SeccompAction::Allow, arch).map_err(|e| text(&e))?;
    let program: BpfProgram = filter.try_into().map_err(|e: seccompiler::BackendError| text(&e))?;
    match seccompiler::apply_filter_all_threads(&program) {
        Ok(()) => Ok(Confinement::Full),
        Err(seccompiler::Error::Seccomp(e)) if e.raw_os_error() == Some(libc::EINVAL) => {
            Ok(Confinement::Missing("this kernel was built without seccomp"))
        }
        Err(e) => Err(text(&e)),
    }
}
