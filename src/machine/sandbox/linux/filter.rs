//! The system calls that a confined process may make, with their arguments: seccomp(2) programs.
//!
//! A call that is not listed fails with EPERM. clone3(2) fails with ENOSYS: its flags are in memory, which a filter cannot
//! read, and a C library without it uses clone(2), whose flags are an argument.
//!
//! A confined process cannot make a mapping executable. A translator's code region is mapped twice before the filter is
//! installed, once for writing and once for execution (memfd_create(2)), so that it needs no call that is refused here.
//!
//! Numbers and flags are those of libc, and the order of arguments is that of each call's manual page. The flags that
//! libraries use are from the sources of glibc (sysdeps/unix/sysv/linux, nptl, malloc/arena.c) and std
//! (library/std/src/sys).

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
    sock_filter,
};

use super::super::SandboxError;
use crate::hypervisor::backend::Rights;

/// Waits for answers: include/uapi/linux/io_uring.h.
const IORING_ENTER_GETEVENTS: libc::c_int = 1;

/// The role of a process, which determines its system calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The engine child while it assembles its machine and starts threads, with what the back end needs.
    Assembly(Rights),
    /// The engine child while the guest runs.
    Machine(Rights),
    /// Makes sockets for the engine child.
    Connector,
    /// Reads resolv.conf(5) and makes raw ICMP sockets for the engine child.
    HostServices,
}

/// A call and the allowed argument lists. An empty list allows all.
pub type Call = (libc::c_long, Vec<Vec<Argument>>);

/// A condition on one argument.
#[derive(Debug, Clone, Copy)]
pub struct Argument {
    index: u8,
    /// Bits that are compared.
    mask: u64,
    value: u64,
    /// Whether the kernel takes an int and so ignores the upper half.
    int: bool,
}

/// Requires that the argument is an int of this value.
fn int(index: u8, value: libc::c_int) -> Argument {
    Argument { index, mask: u64::from(u32::MAX), value: u64::from(value as u32), int: true }
}

/// Requires that the argument is an int with no bits outside of `allowed`.
fn int_within(index: u8, allowed: libc::c_int) -> Argument {
    Argument { index, mask: u64::from(!allowed as u32), value: 0, int: true }
}

/// Requires that the argument is a long of this value, in which the bits `free` may also be set.
fn long(index: u8, value: u64, free: u64) -> Argument {
    Argument { index, mask: !free, value, int: false }
}

fn any(call: libc::c_long) -> Call {
    (call, Vec::new())
}

fn when(call: libc::c_long, arguments: &[Argument]) -> Call {
    (call, vec![arguments.to_vec()])
}

/// Allows a call if one argument is one of these values.
fn one_of(call: libc::c_long, index: u8, values: &[libc::c_int]) -> Call {
    (call, values.iter().map(|&value| vec![int(index, value)]).collect())
}

/// Returns the calls for memory that is not executable, for std's locks and for the C library's allocator.
fn memory() -> Vec<Call> {
    let data = (libc::PROT_READ | libc::PROT_WRITE) as u64;
    let plain = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u64;
    let harmless = (libc::MAP_NORESERVE | libc::MAP_STACK) as u64;
    vec![
        any(libc::SYS_brk),
        when(libc::SYS_mmap, &[long(2, 0, data), long(3, plain, harmless), int(4, -1)]),
        any(libc::SYS_munmap),
        when(libc::SYS_mremap, &[int_within(3, libc::MREMAP_MAYMOVE)]),
        when(libc::SYS_mprotect, &[long(2, 0, data)]),
        one_of(libc::SYS_madvise, 2, &[libc::MADV_DONTNEED]),
        one_of(
            libc::SYS_futex,
            1,
            &[
                libc::FUTEX_WAIT,
                libc::FUTEX_WAKE,
                libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG,
                libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG,
                libc::FUTEX_WAIT_BITSET | libc::FUTEX_PRIVATE_FLAG,
                libc::FUTEX_WAIT_BITSET | libc::FUTEX_PRIVATE_FLAG | libc::FUTEX_CLOCK_REALTIME,
                // pthread_join(3): the kernel wakes the futex of an ended thread as a shared one.
                libc::FUTEX_WAIT_BITSET | libc::FUTEX_CLOCK_REALTIME,
            ],
        ),
        any(libc::SYS_sched_yield),
        // For the number of arenas of malloc(3), and to find a thread's guard page.
        any(libc::SYS_sched_getaffinity),
        any(libc::SYS_getrandom),
        // A thread that was started before the last filter may execute its first instruction after it: glibc registers
        // the thread's rseq area there, and aborts the process if that fails (sysdeps/unix/sysv/linux/rseq-internal.h, nptl).
        any(libc::SYS_rseq),
    ]
}

/// Returns the calls for the time, for the end, and for abort(3) of a panic, which may signal only this process `pid`.
///
/// std handles SIGSEGV and SIGBUS, to report a stack overflow. After any other fault its handler restores the default and
/// returns, so that the fault comes again and ends the process (library/std/src/sys/pal/unix/stack_overflow.rs). If the
/// filter refused that, the process would fault for ever.
fn living(pid: u32) -> Vec<Call> {
    vec![
        any(libc::SYS_getpid),
        any(libc::SYS_gettid),
        any(libc::SYS_clock_gettime),
        any(libc::SYS_rt_sigprocmask),
        any(libc::SYS_rt_sigreturn),
        any(libc::SYS_sigaltstack),
        any(libc::SYS_restart_syscall),
        one_of(libc::SYS_rt_sigaction, 0, &[libc::SIGABRT, libc::SIGSEGV, libc::SIGBUS]),
        when(libc::SYS_tgkill, &[int(0, pid as libc::c_int), int(2, libc::SIGABRT)]),
        any(libc::SYS_exit),
        any(libc::SYS_exit_group),
    ]
}

/// Returns the calls for reading and writing open files and sockets, and for receiving descriptors.
fn streams() -> Vec<Call> {
    vec![
        any(libc::SYS_read),
        any(libc::SYS_write),
        any(libc::SYS_writev),
        any(libc::SYS_recvfrom),
        any(libc::SYS_recvmsg),
        any(libc::SYS_close),
        any(libc::SYS_poll),
        // F_SETOWN, F_SETSIG and O_ASYNC would send signals to others.
        one_of(libc::SYS_fcntl, 1, &[libc::F_GETFD, libc::F_DUPFD_CLOEXEC]),
    ]
}

/// Returns the calls for disks and for the sockets of a user-mode network, which are already open.
fn devices() -> Vec<Call> {
    let hole = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    let zeros = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;
    vec![
        any(libc::SYS_pread64),
        any(libc::SYS_pwrite64),
        any(libc::SYS_preadv),
        any(libc::SYS_pwritev),
        any(libc::SYS_lseek),
        any(libc::SYS_fsync),
        any(libc::SYS_fdatasync),
        // The rings of disks, which were made before, do nothing but reads, writes and syncs of their disk
        // (devices/disk/uring.rs). No flag beyond waiting, and no signal mask.
        when(libc::SYS_io_uring_enter, &[int_within(3, IORING_ENTER_GETEVENTS), long(4, 0, 0)]),
        one_of(libc::SYS_fallocate, 1, &[hole, zeros]),
        // What a tap leaves undone for the guest, which is settled when the guest's driver starts.
        one_of(libc::SYS_ioctl, 1, &[libc::FIONBIO as libc::c_int, libc::TUNSETOFFLOAD as libc::c_int]),
        // Only to the connected address. Only the connector may choose others. sendmsg(2) is not here, since its address is
        // in memory, which a filter cannot read.
        when(libc::SYS_sendto, &[long(4, 0, 0)]),
        when(libc::SYS_accept4, &[int_within(3, libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK)]),
        any(libc::SYS_getpeername),
        any(libc::SYS_shutdown),
        when(libc::SYS_getsockopt, &[int(1, libc::SOL_SOCKET), int(2, libc::SO_ERROR)]),
        when(libc::SYS_setsockopt, &[int(1, libc::IPPROTO_TCP), int(2, libc::TCP_NODELAY)]),
    ]
}

/// Returns the calls for threads of this process, for the socket pair that wakes a network's thread, and for a further
/// filter, which can only take away rights.
fn assembly() -> Vec<Call> {
    let thread = libc::CLONE_VM
        | libc::CLONE_FS
        | libc::CLONE_FILES
        | libc::CLONE_SIGHAND
        | libc::CLONE_THREAD
        | libc::CLONE_SYSVSEM
        | libc::CLONE_SETTLS
        | libc::CLONE_PARENT_SETTID
        | libc::CLONE_CHILD_CLEARTID;
    vec![
        // musl also sets a flag that no longer has an effect.
        when(libc::SYS_clone, &[long(0, thread as u64, libc::CLONE_DETACHED as u64)]),
        any(libc::SYS_set_robust_list),
        one_of(libc::SYS_prctl, 0, &[libc::PR_SET_NAME, libc::PR_SET_NO_NEW_PRIVS]),
        when(
            libc::SYS_seccomp,
            &[int(0, libc::SECCOMP_SET_MODE_FILTER as libc::c_int), int(1, libc::SECCOMP_FILTER_FLAG_TSYNC as libc::c_int)],
        ),
        when(libc::SYS_socketpair, &[int(0, libc::AF_UNIX), int(1, libc::SOCK_STREAM | libc::SOCK_CLOEXEC), int(2, 0)]),
    ]
}

/// Allows a socket of this family, kind and protocol, with the flags that the connector sets.
fn socket(family: libc::c_int, kind: libc::c_int, protocol: libc::c_int) -> Vec<Argument> {
    vec![int(0, family), int(1, kind | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK), int(2, protocol)]
}

/// Returns the calls for the work of a connector.
fn connections() -> Vec<Call> {
    let sockets = vec![
        socket(libc::AF_INET, libc::SOCK_STREAM, 0),
        socket(libc::AF_INET, libc::SOCK_DGRAM, 0),
        socket(libc::AF_INET, libc::SOCK_DGRAM, libc::IPPROTO_ICMP),
        socket(libc::AF_INET6, libc::SOCK_STREAM, 0),
        socket(libc::AF_INET6, libc::SOCK_DGRAM, 0),
    ];
    vec![
        (libc::SYS_socket, sockets),
        any(libc::SYS_connect),
        // To find out whether a socket leads to this host.
        any(libc::SYS_getsockname),
        // From a forward's socket to the sender that it answers.
        any(libc::SYS_sendto),
        // To pass the sockets.
        any(libc::SYS_sendmsg),
    ]
}

/// Returns the calls for the work of the host services.
fn services() -> Vec<Call> {
    vec![
        when(libc::SYS_openat, &[int(0, libc::AT_FDCWD), int(2, libc::O_RDONLY | libc::O_CLOEXEC)]),
        (
            libc::SYS_socket,
            vec![
                socket(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP),
                // Only connected, to find out whether an address belongs to this host. Nothing is sent from it.
                socket(libc::AF_INET, libc::SOCK_DGRAM, 0),
            ],
        ),
        any(libc::SYS_connect),
        any(libc::SYS_getsockname),
        when(libc::SYS_sendto, &[long(4, 0, 0)]),
        any(libc::SYS_sendmsg),
    ]
}

/// Returns the calls of a back end: these requests to its open files, and the signal that brings a thread of this process
/// `pid` back from them.
fn back_end(requests: &[u32], kick: Option<libc::c_int>, pid: u32) -> Vec<Call> {
    let requests: Vec<_> = requests.iter().map(|&request| vec![int(1, request as libc::c_int)]).collect();
    let signal = kick.map(|signal| when(libc::SYS_tgkill, &[int(0, pid as libc::c_int), int(2, signal)]));
    signal.into_iter().chain((!requests.is_empty()).then_some((libc::SYS_ioctl, requests))).collect()
}

/// Returns the calls of a back end while its machine is put together. Where it needs large pages, they can be asked for.
fn back_end_assembly(rights: &Rights, pid: u32) -> Vec<Call> {
    let large_pages = rights.large_pages.then(|| one_of(libc::SYS_madvise, 2, &[libc::MADV_HUGEPAGE]));
    let requests = [rights.assembly, rights.running].concat();
    back_end(&requests, rights.kick, pid).into_iter().chain(large_pages).collect()
}

/// Returns the calls of a role in the process `pid`.
pub fn calls(role: Role, pid: u32) -> Vec<Call> {
    let special = match role {
        Role::Assembly(rights) => [devices(), assembly(), back_end_assembly(&rights, pid)].concat(),
        Role::Machine(rights) => [devices(), back_end(rights.running, rights.kick, pid)].concat(),
        Role::Connector => connections(),
        Role::HostServices => services(),
    };
    [memory(), living(pid), streams(), special].concat()
}

/// Returns one entry for each call: it has the argument lists of all its entries.
fn merged(calls: Vec<Call>) -> BTreeMap<libc::c_long, Vec<Vec<Argument>>> {
    let mut merged: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for (call, mut lists) in calls {
        merged.entry(call).and_modify(|before| before.append(&mut lists)).or_insert(lists);
    }
    merged
}

/// Returns the program for a role in the process `pid`.
pub fn program(role: Role, pid: u32) -> Result<BpfProgram, SandboxError> {
    let text = |e: &dyn std::fmt::Display| SandboxError::Seccomp(e.to_string());
    let arch = TargetArch::try_from(std::env::consts::ARCH).map_err(|e| text(&e))?;
    let mut rules = BTreeMap::new();
    for (call, lists) in merged(calls(role, pid)) {
        let lists: Result<Vec<SeccompRule>, _> = lists.iter().map(|list| rule(list)).collect();
        rules.insert(call, lists.map_err(|e| text(&e))?);
    }
    let refuse = SeccompAction::Errno(libc::EPERM as u32);
    let filter = SeccompFilter::new(rules, refuse, SeccompAction::Allow, arch).map_err(|e| text(&e))?;
    let listed: BpfProgram = filter.try_into().map_err(|e: seccompiler::BackendError| text(&e))?;
    Ok([clone3_is_unknown().as_slice(), &listed].concat())
}

fn rule(arguments: &[Argument]) -> Result<SeccompRule, seccompiler::BackendError> {
    let condition = |argument: &Argument| {
        let length = if argument.int { SeccompCmpArgLen::Dword } else { SeccompCmpArgLen::Qword };
        SeccompCondition::new(argument.index, length, SeccompCmpOp::MaskedEq(argument.mask), argument.value)
    };
    SeccompRule::new(arguments.iter().map(condition).collect::<Result<_, _>>()?)
}

/// Returns instructions that answer clone3(2) with ENOSYS and continue with any other call: `struct seccomp_data` of
/// linux/seccomp.h begins with the call's number; the codes are those of linux/bpf_common.h and linux/filter.h.
fn clone3_is_unknown() -> [sock_filter; 3] {
    let load = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    let jump_if_equal = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    let answer = (libc::BPF_RET | libc::BPF_K) as u16;
    [
        sock_filter { code: load, jt: 0, jf: 0, k: 0 },
        sock_filter { code: jump_if_equal, jt: 0, jf: 1, k: libc::SYS_clone3 as u32 },
        sock_filter { code: answer, jt: 0, jf: 0, k: libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32 },
    ]
}
