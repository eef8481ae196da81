//! What the engine child gives up before the first guest instruction runs.
//!
//! On Linux: Landlock (no file system access any more; all files are open by then) and a seccomp filter that lets
//! through what a running machine needs and answers everything else with EPERM. On FreeBSD cap_enter(2) would forbid
//! the user-mode network's connect(2); there the child only has its parent's privileges.
//!
//! A host whose kernel has neither feature runs the engine unconfined, as `vmctl doctor` says.

/// A kernel that has the feature and refuses its use.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// Landlock.
    #[error("landlock: {0}")]
    Landlock(String),
    /// Seccomp.
    #[error("seccomp: {0}")]
    Seccomp(String),
}

/// Confines the process, all its threads.
#[cfg(not(target_os = "linux"))]
pub fn enter() -> Result<(), SandboxError> {
    Ok(())
}

#[cfg(target_os = "linux")]
pub use linux::enter;

#[cfg(target_os = "linux")]
mod linux {
    use std::collections::BTreeMap;

    use super::SandboxError;

    /// System calls of a running machine: memory, threads and time; reading and writing what is open; the sockets of
    /// the user-mode network; ending.
    const ALLOWED: &[libc::c_long] = &[
        libc::SYS_brk,
        libc::SYS_mmap,
        libc::SYS_munmap,
        libc::SYS_mremap,
        libc::SYS_mprotect,
        libc::SYS_madvise,
        libc::SYS_futex,
        libc::SYS_clone,
        libc::SYS_clone3,
        libc::SYS_set_robust_list,
        libc::SYS_rseq,
        libc::SYS_sched_yield,
        libc::SYS_sched_getaffinity,
        libc::SYS_gettid,
        libc::SYS_getpid,
        libc::SYS_prctl,
        libc::SYS_clock_gettime,
        libc::SYS_clock_nanosleep,
        libc::SYS_nanosleep,
        libc::SYS_gettimeofday,
        libc::SYS_getrandom,
        libc::SYS_rt_sigaction,
        libc::SYS_rt_sigprocmask,
        libc::SYS_rt_sigreturn,
        libc::SYS_sigaltstack,
        libc::SYS_tgkill,
        libc::SYS_restart_syscall,
        libc::SYS_read,
        libc::SYS_write,
        libc::SYS_readv,
        libc::SYS_writev,
        libc::SYS_pread64,
        libc::SYS_pwrite64,
        libc::SYS_preadv,
        libc::SYS_pwritev,
        libc::SYS_lseek,
        libc::SYS_fsync,
        libc::SYS_fdatasync,
        libc::SYS_fallocate,
        libc::SYS_fstat,
        libc::SYS_statx,
        libc::SYS_fcntl,
        libc::SYS_ioctl,
        libc::SYS_dup,
        libc::SYS_close,
        libc::SYS_poll,
        libc::SYS_ppoll,
        libc::SYS_epoll_create1,
        libc::SYS_epoll_ctl,
        libc::SYS_epoll_wait,
        libc::SYS_epoll_pwait,
        libc::SYS_eventfd2,
        libc::SYS_pipe2,
        libc::SYS_socket,
        libc::SYS_bind,
        libc::SYS_listen,
        libc::SYS_connect,
        libc::SYS_accept,
        libc::SYS_accept4,
        libc::SYS_getsockname,
        libc::SYS_getpeername,
        libc::SYS_getsockopt,
        libc::SYS_setsockopt,
        libc::SYS_sendto,
        libc::SYS_recvfrom,
        libc::SYS_sendmsg,
        libc::SYS_recvmsg,
        libc::SYS_shutdown,
        libc::SYS_exit,
        libc::SYS_exit_group,
    ];

    /// Confines the process, all its threads.
    pub fn enter() -> Result<(), SandboxError> {
        landlock()?;
        seccomp()
    }

    /// Takes away the file system, as far as this kernel can.
    fn landlock() -> Result<(), SandboxError> {
        use landlock::{ABI, Access, AccessFs, Ruleset, RulesetAttr};
        let text = |e: landlock::RulesetError| SandboxError::Landlock(e.to_string());
        let rules = Ruleset::default().handle_access(AccessFs::from_all(ABI::V3)).map_err(text)?;
        rules.create().map_err(text)?.restrict_self().map_err(text)?;
        Ok(())
    }

    fn seccomp() -> Result<(), SandboxError> {
        use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch};
        let text = |e: &dyn std::fmt::Display| SandboxError::Seccomp(e.to_string());
        let arch = TargetArch::try_from(std::env::consts::ARCH).map_err(|e| text(&e))?;
        let rules: BTreeMap<i64, Vec<_>> = ALLOWED.iter().map(|&call| (call, Vec::new())).collect();
        let refuse = SeccompAction::Errno(libc::EPERM as u32);
        let filter = SeccompFilter::new(rules, refuse, SeccompAction::Allow, arch).map_err(|e| text(&e))?;
        let program: BpfProgram = filter.try_into().map_err(|e: seccompiler::BackendError| text(&e))?;
        match seccompiler::apply_filter_all_threads(&program) {
            Ok(()) => Ok(()),
            // A kernel built without seccomp.
            Err(seccompiler::Error::Seccomp(e)) if e.raw_os_error() == Some(libc::EINVAL) => Ok(()),
            Err(e) => Err(text(&e)),
        }
    }
}
