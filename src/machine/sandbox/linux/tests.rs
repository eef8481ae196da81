//! What is left to a confined process: the filters are evaluated for every call, and a process that is really confined
//! tries what it must not do.
#![allow(unsafe_code)]

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch, sock_filter};

use super::filter::{Role, program};
use super::*;

/// Behind the last call that Linux 6.18 has (arch/x86/entry/syscalls/syscall_64.tbl ends with 470).
const CALLS: i64 = 512;
const X86_64: u32 = 0xc000_003e;
const PART: &str = "VMCTL_SANDBOX_PART";
const USER: u32 = 1_900_000_007;
const NO_RIGHTS: Rights = Rights { assembly: &[], running: &[], kick: None, large_pages: false, device: None };
/// The roles of an engine with the software CPU.
const ASSEMBLY: Role = Role::Assembly(NO_RIGHTS);
const MACHINE: Role = Role::Machine(NO_RIGHTS);

/// What a filter says: the instructions of linux/filter.h that seccompiler makes.
fn evaluate(program: &[sock_filter], call: i64, arguments: [u64; 6]) -> u32 {
    let mut data = [0; 64];
    data[..4].copy_from_slice(&(call as u32).to_le_bytes());
    data[4..8].copy_from_slice(&X86_64.to_le_bytes());
    for (at, argument) in arguments.iter().enumerate() {
        data[16 + at * 8..24 + at * 8].copy_from_slice(&argument.to_le_bytes());
    }
    let (mut at, mut word) = (0, 0u32);
    loop {
        let sock_filter { code, jt, jf, k } = program[at];
        at += 1;
        let jump = match code {
            0x20 => {
                word = u32::from_le_bytes(data[k as usize..k as usize + 4].try_into().expect("four bytes"));
                continue;
            }
            0x54 => {
                word &= k;
                continue;
            }
            0x06 => return k,
            0x05 => {
                at += k as usize;
                continue;
            }
            0x15 => word == k,
            0x25 => word > k,
            0x35 => word >= k,
            _ => panic!("instruction {code:#x}"),
        };
        at += usize::from(if jump { jt } else { jf });
    }
}

const REFUSED: u32 = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
const UNKNOWN: u32 = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;

fn allows(role: Role, call: i64, arguments: [u64; 6]) -> bool {
    let answer = evaluate(&program(role, 4711).expect("a program"), call, arguments);
    assert!([REFUSED, UNKNOWN, libc::SECCOMP_RET_ALLOW].contains(&answer), "{answer:#x}");
    answer == libc::SECCOMP_RET_ALLOW
}

/// What Firecracker lets through in all its threads: the calls of resources/seccomp/x86_64-unknown-linux-musl.json at
/// commit 01a3b57933e4.
const FIRECRACKER: &[i64] = &[
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_open,
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_fsync,
    libc::SYS_close,
    libc::SYS_uname,
    libc::SYS_eventfd2,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_register,
    libc::SYS_brk,
    libc::SYS_clock_gettime,
    libc::SYS_connect,
    libc::SYS_fstat,
    libc::SYS_ftruncate,
    libc::SYS_lseek,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_accept4,
    libc::SYS_fcntl,
    libc::SYS_futex,
    libc::SYS_madvise,
    libc::SYS_mmap,
    libc::SYS_rt_sigaction,
    libc::SYS_socket,
    libc::SYS_tkill,
    libc::SYS_timerfd_settime,
    libc::SYS_ioctl,
    libc::SYS_sched_yield,
];

/// What a running machine has and Firecracker has not: ours where Firecracker's goes through io_uring, epoll and musl.
const BEYOND: &[i64] = &[
    // Disks, which are open; there through io_uring, which can do much more.
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_preadv,
    libc::SYS_pwritev,
    libc::SYS_fdatasync,
    libc::SYS_fallocate,
    // Sockets, which are open; there by read, write, socket and connect.
    libc::SYS_poll,
    libc::SYS_sendto,
    libc::SYS_getpeername,
    libc::SYS_shutdown,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    // The C library's allocator and abort(3): memory of this process, a signal to this process.
    libc::SYS_mprotect,
    libc::SYS_sched_getaffinity,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_tgkill,
    libc::SYS_restart_syscall,
    // The C library's, in a thread that has not come to its first instruction when the filter does.
    libc::SYS_rseq,
    // The guest's entropy device.
    libc::SYS_getrandom,
];

/// Argument lists that reach into every branch of a filter.
fn argument_lists() -> Vec<[u64; 6]> {
    let mut lists = vec![[0; 6], [u64::MAX; 6], [1; 6], [2; 6], [3; 6], [4711; 6]];
    // What is let through, so that the calls with arguments show up at all.
    lists.push([4711, 0, 6, 0x22, u64::MAX, 0]);
    lists.push([4711, 4711, 6, 0x22, u64::MAX, 0]);
    lists.push([0, 0, 4, 0, 0, 0]);
    lists.push([6, 3, 0, 0, 0, 0]);
    lists.push([0, libc::FIONBIO, 0, 0, 0, 0]);
    lists.push([0, 1, 4, 0, 0, 0]);
    lists.push([0, 6, 1, 0, 0, 0]);
    lists.push([0, 0, 0, 0x22, u64::MAX, 0]);
    lists
}

fn calls_of(role: Role) -> Vec<i64> {
    (0..CALLS).filter(|&call| argument_lists().iter().any(|&list| allows(role, call, list))).collect()
}

#[test]
fn a_running_machine_has_no_call_but_those_of_firecracker_and_the_ones_that_are_explained() {
    let left = calls_of(MACHINE);
    let unexplained: Vec<i64> =
        left.iter().copied().filter(|call| !FIRECRACKER.contains(call) && !BEYOND.contains(call)).collect();
    assert!(unexplained.is_empty(), "{unexplained:?}");
    // Each explanation is of a call that is there.
    let idle: Vec<&i64> = BEYOND.iter().filter(|call| !left.contains(call)).collect();
    assert!(idle.is_empty(), "{idle:?}");
    for never in [
        libc::SYS_open,
        libc::SYS_openat,
        libc::SYS_socket,
        libc::SYS_connect,
        // Its address is in memory: a forward's socket would send to anybody.
        libc::SYS_sendmsg,
        libc::SYS_io_uring_setup,
        libc::SYS_io_uring_register,
        libc::SYS_tkill,
        libc::SYS_clone,
        libc::SYS_clone3,
        libc::SYS_prctl,
        libc::SYS_execve,
        libc::SYS_statx,
        libc::SYS_newfstatat,
    ] {
        assert!(!left.contains(&never), "{never}");
    }
    assert!(left.len() <= FIRECRACKER.len() + BEYOND.len() - 12, "{}", left.len());
}

#[test]
fn a_machine_that_is_put_together_has_threads_beyond_that_and_nothing_else() {
    let (assembly, machine) = (calls_of(ASSEMBLY), calls_of(MACHINE));
    let thread = [0x3d_0f00, 0, 0, 0, 0, 0];
    assert!(allows(ASSEMBLY, libc::SYS_clone, thread) && !allows(MACHINE, libc::SYS_clone, thread));
    assert!(allows(ASSEMBLY, libc::SYS_prctl, [libc::PR_SET_NAME as u64, 0, 0, 0, 0, 0]));
    let more: Vec<i64> = assembly.into_iter().filter(|call| !machine.contains(call)).collect();
    let expected = [libc::SYS_set_robust_list, libc::SYS_seccomp];
    assert_eq!(more, expected);
    // `struct seccomp_data` of another architecture, and x32's numbers, are none of ours.
    assert_eq!(evaluate(&program(MACHINE, 1).expect("a program"), libc::SYS_clone3, [0; 6]), UNKNOWN);
    assert!((0..CALLS).all(|call| !allows(ASSEMBLY, call | 0x4000_0000, [0; 6])));
}

#[test]
fn every_argument_that_reaches_beyond_the_process_is_looked_at() {
    let user_namespace = (libc::CLONE_NEWUSER | libc::SIGCHLD) as u64;
    let thread_elsewhere = 0x3d_0f00 | libc::CLONE_NEWNET as u64;
    let anonymous = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u64;
    let cases: &[(i64, [u64; 6], bool)] = &[
        (libc::SYS_tgkill, [4711, 4712, 6, 0, 0, 0], true),
        (libc::SYS_tgkill, [4711, 4712, 15, 0, 0, 0], false),
        (libc::SYS_tgkill, [1, 1, 6, 0, 0, 0], false),
        (libc::SYS_clone, [17, 0, 0, 0, 0, 0], false),
        (libc::SYS_clone, [user_namespace, 0, 0, 0, 0, 0], false),
        (libc::SYS_clone, [thread_elsewhere, 0, 0, 0, 0, 0], false),
        (libc::SYS_clone, [0x3d_0f00 | 1 << 40, 0, 0, 0, 0, 0], false),
        (libc::SYS_clone, [0x7d_0f00, 0, 0, 0, 0, 0], true),
        (libc::SYS_mmap, [0, 4096, 3, anonymous, u64::MAX, 0], true),
        (libc::SYS_mmap, [0, 4096, 3, anonymous, u64::from(u32::MAX), 0], true),
        (libc::SYS_mmap, [0, 4096, 7, anonymous, u64::MAX, 0], false),
        (libc::SYS_mmap, [0, 4096, 4, anonymous, u64::MAX, 0], false),
        (libc::SYS_mmap, [0, 4096, 3 | 1 << 32, anonymous, u64::MAX, 0], false),
        (libc::SYS_mmap, [0, 4096, 1, libc::MAP_PRIVATE as u64, 3, 0], false),
        (libc::SYS_mmap, [0, 4096, 3, libc::MAP_SHARED as u64, 3, 0], false),
        (libc::SYS_mmap, [0, 4096, 3, anonymous | libc::MAP_FIXED as u64, u64::MAX, 0], false),
        (libc::SYS_mprotect, [0, 4096, 3, 0, 0, 0], true),
        (libc::SYS_mprotect, [0, 4096, 5, 0, 0, 0], false),
        (libc::SYS_mremap, [0, 4096, 8192, 1, 0, 0], true),
        (libc::SYS_mremap, [0, 4096, 8192, 3, 0, 0], false),
        (libc::SYS_madvise, [0, 4096, 4, 0, 0, 0], true),
        (libc::SYS_madvise, [0, 4096, 100, 0, 0, 0], false),
        (libc::SYS_prctl, [libc::PR_SET_NAME as u64, 0, 0, 0, 0, 0], true),
        (libc::SYS_prctl, [libc::PR_SET_PDEATHSIG as u64, 0, 0, 0, 0, 0], false),
        (libc::SYS_prctl, [libc::PR_SET_DUMPABLE as u64, 1, 0, 0, 0, 0], false),
        (libc::SYS_ioctl, [0, libc::FIONBIO, 0, 0, 0, 0], true),
        (libc::SYS_ioctl, [0, libc::TUNSETOFFLOAD, 0, 0, 0, 0], true),
        (libc::SYS_ioctl, [0, libc::TUNSETIFF, 0, 0, 0, 0], false),
        (libc::SYS_ioctl, [0, libc::TIOCSTI, 0, 0, 0, 0], false),
        (libc::SYS_ioctl, [0, libc::FIOASYNC, 0, 0, 0, 0], false),
        (libc::SYS_ioctl, [0, libc::SIOCGIFCONF, 0, 0, 0, 0], false),
        (libc::SYS_fcntl, [0, libc::F_DUPFD_CLOEXEC as u64, 0, 0, 0, 0], true),
        (libc::SYS_fcntl, [0, libc::F_SETOWN as u64, 1, 0, 0, 0], false),
        (libc::SYS_fcntl, [0, libc::F_SETFL as u64, libc::O_ASYNC as u64, 0, 0, 0], false),
        (libc::SYS_fcntl, [0, libc::F_SETLEASE as u64, 0, 0, 0, 0], false),
        (libc::SYS_sendto, [0, 0, 0, 0, 0, 0], true),
        (libc::SYS_sendto, [0, 0, 0, 0, 1 << 33, 16], false),
        (libc::SYS_setsockopt, [0, 6, 1, 0, 0, 0], true),
        (libc::SYS_setsockopt, [0, 1, libc::SO_BINDTODEVICE as u64, 0, 0, 0], false),
        (libc::SYS_io_uring_enter, [5, 1, 1, 1, 0, 8], true),
        (libc::SYS_io_uring_enter, [5, 1, 1, 1, 4096, 8], false),
        (libc::SYS_io_uring_enter, [5, 1, 1, 2, 0, 8], false),
        (libc::SYS_io_uring_enter, [5, 1, 1, 9, 0, 8], false),
        (libc::SYS_fallocate, [0, 3, 0, 0, 0, 0], true),
        (libc::SYS_fallocate, [0, 0, 0, 0, 0, 0], false),
        (libc::SYS_socketpair, [1, 0x8_0001, 0, 0, 0, 0], true),
        (libc::SYS_socketpair, [16, 0x8_0001, 0, 0, 0, 0], false),
        (libc::SYS_futex, [0, 137, 0, 0, 0, 0], true),
        (libc::SYS_futex, [0, libc::FUTEX_LOCK_PI as u64, 0, 0, 0, 0], false),
        (libc::SYS_rt_sigaction, [libc::SIGSEGV as u64, 0, 0, 0, 0, 0], true),
        (libc::SYS_rt_sigaction, [libc::SIGTERM as u64, 0, 0, 0, 0, 0], false),
    ];
    for &(call, arguments, expected) in cases {
        assert_eq!(allows(ASSEMBLY, call, arguments), expected, "{call} {arguments:x?}");
    }
}

/// An `or_insert` of a list without conditions would allow the call with any argument.
#[test]
fn a_call_is_never_listed_both_with_and_without_conditions() {
    let rights = Rights { assembly: &[0xae10], running: &[0xae80], kick: Some(libc::SIGUSR1), large_pages: true, device: None };
    for role in [Role::Assembly(rights), Role::Machine(rights), Role::Connector, Role::HostServices] {
        let all = super::filter::calls(role, 4711);
        for (call, lists) in &all {
            let others = all.iter().filter(|(other, _)| other == call);
            assert!(others.into_iter().all(|(_, other)| other.is_empty() == lists.is_empty()), "{call}");
        }
    }
}

#[test]
fn a_back_end_has_its_requests_and_its_signal_and_nothing_else() {
    let rights =
        Rights { assembly: &[0x4020_ae46], running: &[0xae80], kick: Some(libc::SIGUSR1), large_pages: true, device: None };
    let (assembly, machine) = (Role::Assembly(rights), Role::Machine(rights));
    let request = |number| (libc::SYS_ioctl, [7, number, 0, 0, 0, 0]);
    let signal = |process, signal| (libc::SYS_tgkill, [process, 4712, signal, 0, 0, 0]);
    let advice = |advice| (libc::SYS_madvise, [0, 4096, advice, 0, 0, 0]);
    // In: the software CPU's assembly, this one's, and while the guest runs.
    let cases = [
        (request(0xae80), [false, true, true]),
        (request(0x4020_ae46), [false, true, false]),
        (request(0xae41), [false, false, false]),
        (request(libc::FIONBIO), [true, true, true]),
        (signal(4711, libc::SIGUSR1 as u64), [false, true, true]),
        (signal(4711, libc::SIGABRT as u64), [true, true, true]),
        (signal(4711, libc::SIGUSR2 as u64), [false, false, false]),
        (signal(1, libc::SIGUSR1 as u64), [false, false, false]),
        (advice(libc::MADV_HUGEPAGE as u64), [false, true, false]),
        (advice(libc::MADV_DONTNEED as u64), [true, true, true]),
    ];
    for ((call, arguments), expected) in cases {
        assert_eq!([ASSEMBLY, assembly, machine].map(|role| allows(role, call, arguments)), expected, "{call} {arguments:x?}");
    }
    let all = |role| (0..CALLS).filter(move |&call| argument_lists().iter().any(|&list| allows(role, call, list)));
    assert!(all(machine).eq(all(MACHINE)), "no further call");
}

#[test]
fn a_connector_makes_sockets_of_two_families_and_opens_nothing() {
    let flags = (libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK) as u64;
    let socket = |role, family: i32, kind: i32, protocol: i32| {
        allows(role, libc::SYS_socket, [family as u64, kind as u64 | flags, protocol as u64, 0, 0, 0])
    };
    let connector = |family, kind, protocol| socket(Role::Connector, family, kind, protocol);
    for family in [libc::AF_INET, libc::AF_INET6] {
        assert!(connector(family, libc::SOCK_STREAM, 0) && connector(family, libc::SOCK_DGRAM, 0));
        assert!(!connector(family, libc::SOCK_RAW, 0) && !connector(family, libc::SOCK_RAW, libc::IPPROTO_ICMP));
        assert!(!connector(family, libc::SOCK_SEQPACKET, libc::IPPROTO_SCTP) && !connector(family, libc::SOCK_STREAM, 262));
    }
    assert!(connector(libc::AF_INET, libc::SOCK_DGRAM, libc::IPPROTO_ICMP));
    let others = (0..64).filter(|family| ![libc::AF_INET, libc::AF_INET6].contains(family));
    assert!(others.into_iter().all(|family| !connector(family, libc::SOCK_DGRAM, 0) && !connector(family, libc::SOCK_STREAM, 0)));
    for call in [libc::SYS_open, libc::SYS_openat, libc::SYS_openat2, libc::SYS_bind, libc::SYS_listen, libc::SYS_clone] {
        assert!(argument_lists().iter().all(|&list| !allows(Role::Connector, call, list)), "{call}");
    }
    let services = |family, kind, protocol| socket(Role::HostServices, family, kind, protocol);
    assert!(services(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP) && !services(libc::AF_INET, libc::SOCK_STREAM, 0));
    assert!(!services(libc::AF_PACKET, libc::SOCK_RAW, libc::IPPROTO_ICMP));
    let here = libc::AT_FDCWD as u32 as u64;
    assert!(allows(Role::HostServices, libc::SYS_openat, [here, 0, libc::O_CLOEXEC as u64, 0, 0, 0]));
    assert!(!allows(Role::HostServices, libc::SYS_openat, [here, 0, (libc::O_CLOEXEC | libc::O_WRONLY) as u64, 0, 0, 0]));
}

/// This test again, as a process that is confined as `part` says; it answers with lines.
struct Confined {
    child: Child,
    input: ChildStdin,
    lines: BufReader<ChildStdout>,
}

impl Confined {
    fn start(part: &str) -> Confined {
        let mut child = Command::new(std::env::current_exe().expect("this test"))
            .args(["--exact", "machine::sandbox::linux::tests::a_process_of_the_other_tests", "--nocapture"])
            .env(PART, part)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("starts");
        let (input, output) = (child.stdin.take().expect("piped"), child.stdout.take().expect("piped"));
        Confined { child, input, lines: BufReader::new(output) }
    }

    /// The lines that begin with a colon, up to that which says `done`.
    fn said(&mut self) -> Vec<String> {
        let mut said = Vec::new();
        loop {
            let mut line = String::new();
            let read = self.lines.read_line(&mut line).expect("reads");
            assert!(read > 0, "it ended after {said:?}");
            match line.trim_end().split_once(':') {
                Some((_, "done")) => return said,
                Some(("", text)) => said.push(text.to_owned()),
                _ => {}
            }
        }
    }

    fn end(mut self) {
        drop(self.input);
        assert!(self.child.wait().expect("waits").success());
    }
}

/// Says a line, and at the end waits to be looked at.
fn say(text: &str) {
    println!("\n:{text}");
    std::io::stdout().flush().expect("written");
}

fn number(call: i64, arguments: [u64; 6]) -> i32 {
    let [a, b, c, d, e, f] = arguments;
    // SAFETY: what is tried is refused before it looks at memory; what is let through gets numbers or null.
    match unsafe { libc::syscall(call, a, b, c, d, e, f) } {
        -1 => io::Error::last_os_error().raw_os_error().expect("errno"),
        _ => 0,
    }
}

/// The calls of `role` that are refused with no arguments, tried for real: those that were not refused.
fn try_all(role: Role) -> Vec<(i64, i32)> {
    let filter = program(role, std::process::id()).expect("a program");
    // The kernel's own trampolines make 335 and 336, uretprobe and uprobe, past every filter; SIGILL answers others.
    let harmless = (0..CALLS).filter(|call| ![335, 336].contains(call));
    let refused = harmless.filter(|&call| evaluate(&filter, call, [0; 6]) != libc::SECCOMP_RET_ALLOW);
    let tried: Vec<(i64, i32)> = refused.map(|call| (call, number(call, [0; 6]))).collect();
    assert!(tried.len() > 300, "{}", tried.len());
    let expected = |call| if call == libc::SYS_clone3 { libc::ENOSYS } else { libc::EPERM };
    tried.into_iter().filter(|&(call, errno)| errno != expected(call)).collect()
}

/// What must fail with EPERM in each part, with its arguments; `victim` is a process of the same user.
fn dangerous(victim: u64) -> Vec<(&'static str, i64, [u64; 6])> {
    let path = c"/etc/shadow".as_ptr() as u64;
    let here = libc::AT_FDCWD as u64;
    let own = std::process::id() as u64;
    let anonymous = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u64;
    vec![
        ("open", libc::SYS_open, [path, 0, 0, 0, 0, 0]),
        ("openat to write", libc::SYS_openat, [here, path, libc::O_WRONLY as u64, 0, 0, 0]),
        ("statx", libc::SYS_statx, [here, path, 0, 0, 0, 0]),
        ("execve", libc::SYS_execve, [c"/bin/true".as_ptr() as u64, 0, 0, 0, 0, 0]),
        ("fork", libc::SYS_fork, [0; 6]),
        ("clone", libc::SYS_clone, [libc::SIGCHLD as u64, 0, 0, 0, 0, 0]),
        ("clone with a user namespace", libc::SYS_clone, [(libc::CLONE_NEWUSER | libc::SIGCHLD) as u64, 0, 0, 0, 0, 0]),
        ("unshare", libc::SYS_unshare, [libc::CLONE_NEWUSER as u64, 0, 0, 0, 0, 0]),
        ("kill", libc::SYS_kill, [victim, 15, 0, 0, 0, 0]),
        ("tgkill of another", libc::SYS_tgkill, [victim, victim, 15, 0, 0, 0]),
        ("tgkill of another, SIGABRT", libc::SYS_tgkill, [victim, victim, 6, 0, 0, 0]),
        ("tgkill of oneself, SIGUSR1", libc::SYS_tgkill, [own, own, 10, 0, 0, 0]),
        ("tkill", libc::SYS_tkill, [victim, 6, 0, 0, 0, 0]),
        ("pidfd_open", libc::SYS_pidfd_open, [victim, 0, 0, 0, 0, 0]),
        ("ptrace", libc::SYS_ptrace, [libc::PTRACE_ATTACH as u64, victim, 0, 0, 0, 0]),
        ("process_vm_readv", libc::SYS_process_vm_readv, [victim, 0, 0, 0, 0, 0]),
        ("process_vm_writev", libc::SYS_process_vm_writev, [victim, 0, 0, 0, 0, 0]),
        ("mmap to write and execute", libc::SYS_mmap, [0, 4096, 7, anonymous, u64::MAX, 0]),
        ("mmap to execute", libc::SYS_mmap, [0, 4096, 5, anonymous, u64::MAX, 0]),
        ("mprotect to execute", libc::SYS_mprotect, [number as *const () as u64 & !4095, 4096, 5, 0, 0, 0]),
        ("AF_UNIX", libc::SYS_socket, [1, 1, 0, 0, 0, 0]),
        ("AF_NETLINK", libc::SYS_socket, [16, 3, 0, 0, 0, 0]),
        ("AF_PACKET", libc::SYS_socket, [17, 3, 0, 0, 0, 0]),
        ("AF_VSOCK", libc::SYS_socket, [40, 1, 0, 0, 0, 0]),
        ("setuid", libc::SYS_setuid, [0; 6]),
        ("capset", libc::SYS_capset, [0; 6]),
        ("prctl PR_SET_PDEATHSIG", libc::SYS_prctl, [libc::PR_SET_PDEATHSIG as u64, 0, 0, 0, 0, 0]),
        ("prctl PR_SET_DUMPABLE", libc::SYS_prctl, [libc::PR_SET_DUMPABLE as u64, 1, 0, 0, 0, 0]),
        ("ioctl TIOCSTI", libc::SYS_ioctl, [0, libc::TIOCSTI, 0, 0, 0, 0]),
        ("ioctl SIOCSIFADDR", libc::SYS_ioctl, [0, 0x8916, 0, 0, 0, 0]),
        ("fcntl F_SETOWN", libc::SYS_fcntl, [0, libc::F_SETOWN as u64, victim, 0, 0, 0]),
        ("mount", libc::SYS_mount, [0; 6]),
        ("setns", libc::SYS_setns, [0; 6]),
        ("chroot", libc::SYS_chroot, [path, 0, 0, 0, 0, 0]),
        ("bpf", libc::SYS_bpf, [0; 6]),
        ("io_uring_setup", libc::SYS_io_uring_setup, [1, 0, 0, 0, 0, 0]),
        ("prlimit64", libc::SYS_prlimit64, [0; 6]),
        ("x32's write", libc::SYS_write | 0x4000_0000, [1, 0, 0, 0, 0, 0]),
    ]
}

fn thread_status(child: &Child, thread: &str) -> String {
    std::fs::read_to_string(format!("/proc/{}/task/{thread}/status", child.id())).expect("a status")
}

fn field<'a>(status: &'a str, name: &str) -> &'a str {
    status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap_or_else(|| panic!("no {name}")).trim()
}

/// What the kernel says of a process that gave up what it had.
fn check_status(confined: &Confined, said: &[String]) {
    let thread = said.iter().find_map(|line| line.strip_prefix("thread ")).expect("a thread");
    let status = thread_status(&confined.child, thread);
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(field(&status, set), "0000000000000000", "{set}");
    }
    assert_eq!((field(&status, "NoNewPrivs"), field(&status, "Seccomp")), ("1", "2"));
    let user = [USER.to_string().as_str(); 4].join("\t");
    assert_eq!((field(&status, "Uid"), field(&status, "Gid"), field(&status, "Groups")), (user.as_str(), user.as_str(), ""));
}

#[track_caller]
fn assert_is_root() {
    assert!(geteuid().is_root(), "run this test as root: it looks at what root gives up");
}

#[test]
fn a_machine_that_root_started_can_do_nothing_of_three_hundred_calls() {
    assert_is_root();
    let mut victim = Command::new("sleep").arg("1000").spawn().expect("starts");
    let mut confined = Confined::start(&format!("machine {}", victim.id()));
    let said = confined.said();
    let wrong: Vec<&String> = said.iter().filter(|line| line.starts_with("wrong")).collect();
    assert!(wrong.is_empty(), "{wrong:?}");
    check_status(&confined, &said);
    let thread = said.iter().find_map(|line| line.strip_prefix("thread ")).expect("a thread");
    for space in ["net", "ipc", "uts"] {
        let of = |path: String| std::fs::read_link(path).expect("a namespace");
        let theirs = of(format!("/proc/{}/task/{thread}/ns/{space}", confined.child.id()));
        assert_ne!(theirs, of(format!("/proc/self/ns/{space}")), "{space}");
    }
    confined.end();
    assert!(victim.try_wait().expect("looked at").is_none(), "the victim lives");
    victim.kill().and_then(|()| victim.wait()).expect("ends");
}

#[test]
fn a_connector_that_root_started_connects_and_can_do_nothing_else() {
    assert_is_root();
    for part in ["connector", "services"] {
        let mut confined = Confined::start(&format!("{part} 1"));
        let said = confined.said();
        let wrong: Vec<&String> = said.iter().filter(|line| line.starts_with("wrong")).collect();
        assert!(wrong.is_empty(), "{wrong:?}");
        check_status(&confined, &said);
        confined.end();
    }
}

#[test]
fn landlock_alone_holds_files_ports_and_signals() {
    assert_is_root();
    let mut victim = Command::new("sleep").arg("1000").spawn().expect("starts");
    let mut confined = Confined::start(&format!("walls {}", victim.id()));
    let said = confined.said();
    confined.end();
    victim.kill().and_then(|()| victim.wait()).expect("ends");
    let abi = said.iter().find_map(|line| line.strip_prefix("Landlock ")).map_or(0, |abi| abi.parse::<i32>().expect("a number"));
    let errno = |what: &str| said.iter().find_map(|line| line.strip_prefix(what)).map(|errno| errno.trim().parse::<i32>());
    if abi >= 1 {
        assert_eq!(errno("file"), Some(Ok(libc::EACCES)));
    }
    if abi >= 4 {
        assert_eq!(errno("port"), Some(Ok(libc::EACCES)));
    }
    if abi >= 6 {
        assert_eq!(errno("signal"), Some(Ok(libc::EPERM)));
    }
    // What the kernel lacks is told.
    assert_eq!(said.iter().any(|line| line.starts_with("missing Landlock")), abi < LANDLOCK_ABI as i32, "{said:?}");
}

#[test]
fn a_user_that_this_host_does_not_map_becomes_nobody() {
    assert_is_root();
    // (uid_t)-1 is refused wherever this runs, as an unmapped one is in a container.
    let mut confined = Confined::start("unmapped 1");
    let said = confined.said();
    confined.end();
    assert!(said.contains(&format!("held uid {NOBODY}")), "{said:?}");
    assert!(said.iter().any(|line| line.starts_with("missing uid of its own")), "{said:?}");
}

#[test]
fn a_fault_and_an_abort_end_a_confined_process_by_their_signals() {
    use std::os::unix::process::ExitStatusExt;
    for (part, signal) in [("fault", libc::SIGSEGV), ("abort", libc::SIGABRT), ("overflow", libc::SIGABRT)] {
        let mut confined = Confined::start(&format!("{part} 1"));
        drop(confined.input);
        let started = std::time::Instant::now();
        let status = loop {
            match confined.child.try_wait().expect("looked at") {
                Some(status) => break status,
                None if started.elapsed().as_secs() > 120 => {
                    confined.child.kill().expect("killed");
                    panic!("{part}: it goes on");
                }
                None => std::thread::sleep(std::time::Duration::from_millis(5)),
            }
        };
        assert_eq!(status.signal(), Some(signal), "{part}: {status}");
    }
}

#[test]
fn what_a_container_refuses_is_told_and_the_rest_holds() {
    assert_is_root();
    // These tests start their processes as std does.
    const APART: &str = "a process namespace of its own";
    for (part, absent) in [
        (
            "contained",
            &[APART, "namespaces of its own: Operation not permitted", "uid of its own: it stays root", "Landlock: "][..],
        ),
        ("unfiltered", &[APART, "seccomp: Operation not permitted"]),
    ] {
        let mut confined = Confined::start(&format!("{part} 1"));
        let said = confined.said();
        let missing: Vec<&str> = said.iter().filter_map(|line| line.strip_prefix("missing ")).collect();
        assert_eq!(missing.len(), absent.len(), "{missing:?}");
        assert!(missing.iter().zip(absent).all(|(missing, words)| missing.starts_with(words)), "{missing:?}");
        assert!(said.contains(&"held no capabilities".to_owned()), "{said:?}");
        assert_eq!(said.contains(&"held seccomp".to_owned()), part == "contained", "{said:?}");
        let thread = said.iter().find_map(|line| line.strip_prefix("thread ")).expect("a thread");
        assert_eq!(field(&thread_status(&confined.child, thread), "CapEff"), "0000000000000000");
        confined.end();
    }
}

/// Makes these calls fail with EPERM, as a container does.
fn refuse(calls: &[i64]) {
    let rules = calls.iter().map(|&call| (call, Vec::new())).collect();
    let refused = SeccompAction::Errno(libc::EPERM as u32);
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, refused, TargetArch::x86_64).expect("a filter");
    seccompiler::apply_filter_all_threads(&BpfProgram::try_from(filter).expect("a program")).expect("applied");
}

/// Uses up the stack.
#[allow(unconditional_recursion)]
fn overflow(depth: u64) -> u64 {
    let used = std::hint::black_box([depth; 64]);
    overflow(depth + 1) + used[0]
}

/// Not a test of its own: the process that the others start.
#[test]
fn a_process_of_the_other_tests() {
    let Ok(part) = std::env::var(PART) else { return };
    let (part, victim) = part.split_once(' ').expect("two words");
    let victim: u64 = victim.parse().expect("a number");
    let confinement = match part {
        "machine" => {
            let confinement = enter(Some(USER), 64 << 20, &Rights::default()).expect("confined");
            assert_eq!(number(libc::SYS_clone3, [0; 6]), libc::ENOSYS, "a C library falls back to clone");
            std::thread::spawn(|| ()).join().expect("threads are made until it is sealed");
            seal(&Rights::default()).expect("sealed");
            confinement
        }
        "connector" => enter_connector(Some(USER)).expect("confined"),
        "services" => enter_host_services(Some(USER), || false).expect("confined"),
        "contained" | "unfiltered" => {
            let users = [libc::SYS_unshare, libc::SYS_setresuid, libc::SYS_setresgid, libc::SYS_landlock_create_ruleset];
            refuse(if part == "contained" { &users } else { &[libc::SYS_seccomp] });
            let confinement = enter(Some(USER), 64 << 20, &Rights::default()).expect("confined with what holds");
            seal(&Rights::default()).expect("sealed");
            confinement
        }
        "fault" | "abort" | "overflow" => {
            enter(Some(USER), 64 << 20, &Rights::default()).expect("confined");
            seal(&Rights::default()).expect("sealed");
            match part {
                // SAFETY: nothing is mapped there, so the write has no effect but the fault.
                "fault" => unsafe { std::ptr::without_provenance_mut::<u8>(16).write_volatile(1) },
                "abort" => std::process::abort(),
                _ => assert_eq!(overflow(0), 0),
            }
            return;
        }
        "unmapped" => {
            let mut confinement = Confinement::default();
            change_user(Some(u32::MAX), &mut confinement);
            confinement
        }
        _ => {
            let mut confinement = Confinement::default();
            // Root's rights would hide what Landlock refuses to nobody but root.
            landlock(AccessFs::from_all(LANDLOCK_ABI), AccessNet::from_all(LANDLOCK_ABI), &mut confinement).expect("walls");
            confinement
        }
    };
    confinement.held.iter().for_each(|held| say(if held.starts_with("Landlock") { held } else { "" }));
    confinement.held.iter().for_each(|held| say(&format!("held {held}")));
    confinement.missing.iter().for_each(|missing| say(&format!("missing {missing}")));
    say(&format!("thread {}", nix::unistd::gettid()));
    let errno = |result: io::Result<()>| result.err().and_then(|error| error.raw_os_error()).unwrap_or(0);
    match part {
        "machine" => {
            try_all(MACHINE).iter().for_each(|tried| say(&format!("wrong {tried:?}")));
            for (what, call, arguments) in dangerous(victim) {
                if number(call, arguments) != libc::EPERM {
                    say(&format!("wrong {what}"));
                }
            }
            if std::thread::Builder::new().spawn(|| ()).is_ok() {
                say("wrong: a thread");
            }
            // Life goes on: memory, the time, randomness.
            assert!(vec![1u8; 32 << 20].iter().all(|&byte| byte == 1));
            assert!(std::time::Instant::now().elapsed().as_secs() < 60 && getrandom::u32().is_ok());
        }
        "connector" => {
            try_all(Role::Connector).iter().for_each(|tried| say(&format!("wrong {tried:?}")));
            for (what, call, arguments) in dangerous(victim) {
                if number(call, arguments) != libc::EPERM {
                    say(&format!("wrong {what}"));
                }
            }
            let flags = (libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK) as u64;
            assert_eq!(number(libc::SYS_socket, [2, 1 | flags, 0, 0, 0, 0]), 0);
            assert_eq!(number(libc::SYS_socket, [10, 2 | flags, 0, 0, 0, 0]), 0);
            assert_eq!(std::fs::read("/etc/resolv.conf").expect_err("refused").raw_os_error(), Some(libc::EPERM));
        }
        "services" => {
            try_all(Role::HostServices).iter().for_each(|tried| say(&format!("wrong {tried:?}")));
            for (what, call, arguments) in dangerous(victim) {
                if number(call, arguments) != libc::EPERM {
                    say(&format!("wrong {what}"));
                }
            }
            // What only root reads stays root's.
            if std::fs::read("/etc/shadow").is_ok() {
                say("wrong: /etc/shadow");
            }
            std::fs::read("/etc/passwd").expect("what everybody reads");
        }
        "walls" => {
            say(&format!("file {}", errno(std::fs::read("/etc/passwd").map(drop))));
            say(&format!("port {}", errno(std::net::TcpListener::bind("127.0.0.1:0").map(drop))));
            say(&format!("signal {}", number(libc::SYS_kill, [victim, 0, 0, 0, 0, 0])));
        }
        _ => {}
    }
    say("done");
    let _ = std::io::stdin().read_line(&mut String::new());
    std::process::exit(0);
}
