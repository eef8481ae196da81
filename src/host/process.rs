//! Processes: this program's own file, the detached supervisor, the engine child with its inherited descriptors, and the boot of this host.
//!
//! An unsafe island: `pre_exec` closures and `prctl`/`procctl`. Linux prctl(2) PR_SET_PDEATHSIG, FreeBSD procctl(2)
//! PROC_PDEATHSIG_CTL.
#![allow(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};

use nix::sys::signal::{SigSet, SigmaskHow, pthread_sigmask};

use super::environment;

/// Returns the path of this program, to start it again, even after the file from which it was started was replaced.
pub fn own_program() -> io::Result<PathBuf> {
    static STARTED_FROM: OnceLock<PathBuf> = OnceLock::new();
    // A made-up FreeBSD must do the same as a real one.
    if cfg!(target_os = "linux") && !environment::is_made_up() {
        return Ok(PathBuf::from("/proc/self/exe"));
    }
    if let Some(path) = STARTED_FROM.get() {
        return Ok(path.clone());
    }
    // Asked once and never again: the kernel does not know the path of a file that was replaced since
    // (`sys/kern/kern_proc.c`, proc_get_binpath).
    let path = own_file()?;
    Ok(STARTED_FROM.get_or_init(|| path).clone())
}

/// Returns the path of this program's file, for a service that starts it when this process is gone.
pub fn own_file() -> io::Result<PathBuf> {
    std::env::current_exe()
}

/// Starts `command` in a session of its own, with no signal blocked. It outlives the terminal from which it was
/// started.
pub fn spawn_detached(command: &mut Command) -> io::Result<Child> {
    // SAFETY: the closure runs between fork and exec and calls async-signal-safe functions only.
    unsafe {
        command.pre_exec(|| {
            unblock_signals()?;
            nix::unistd::setsid().map(drop).map_err(io::Error::from)
        });
    }
    command.spawn()
}

/// Starts `command` in a process group of its own, with each descriptor of `inherited` at its number. The process is
/// killed when the calling *thread* ends, so it must be called from the main thread.
///
/// The numbers must be small (below 10) and the command may not have been given other `pre_exec` steps.
pub fn spawn_tied(command: &mut Command, inherited: &[(RawFd, OwnedFd)]) -> io::Result<Child> {
    spawn_with(command, inherited, true, || Ok(()))
}

/// Starts a child as [`spawn_tied`] does, in a process namespace of its own where this host makes one. The child sees no
/// process but those that it starts, its own number is 1 and its parent's 0. No signal that is sent to it ends it but
/// SIGKILL, unless it handles it (pid_namespaces(7)).
pub fn spawn_tied_apart(command: &mut Command, inherited: &[(RawFd, OwnedFd)]) -> io::Result<ChildProcess> {
    spawn_apart(command, inherited)
}

#[cfg(not(target_os = "linux"))]
fn spawn_apart(command: &mut Command, inherited: &[(RawFd, OwnedFd)]) -> io::Result<ChildProcess> {
    spawn_tied(command, inherited).map(ChildProcess::from)
}

#[cfg(target_os = "linux")]
fn spawn_apart(command: &mut Command, inherited: &[(RawFd, OwnedFd)]) -> io::Result<ChildProcess> {
    let occupied = occupy_up_to(highest_of(inherited))?;
    let namespace = super::process_namespace::Namespace::prepare()?;
    let steps = namespace.steps();
    // SAFETY: it is called between fork and exec.
    let spawned = spawn_with(command, inherited, true, move || unsafe { steps.take() });
    drop(occupied);
    let outcome = namespace.outcome()?;
    if let Some(failed) = outcome.failed {
        ChildProcess { pid: failed, status: None }.wait()?;
    }
    match (spawned, outcome.first) {
        (Ok(child), None) => Ok(ChildProcess::from(child)),
        (Ok(mut child), Some(first)) => {
            child.wait()?;
            Ok(ChildProcess { pid: first, status: None })
        }
        (Err(error), None) => Err(error),
        (Err(error), Some(first)) => {
            // It could not execute the program.
            ChildProcess { pid: first, status: None }.wait()?;
            Err(error)
        }
    }
}

/// Starts a child as [`spawn_tied`] does, but the child is not killed with this process: it ends by itself, because it
/// has to clean up.
pub fn spawn_untied(command: &mut Command, inherited: &[(RawFd, OwnedFd)]) -> io::Result<Child> {
    spawn_with(command, inherited, false, || Ok(()))
}

fn highest_of(inherited: &[(RawFd, OwnedFd)]) -> RawFd {
    inherited.iter().map(|(number, _)| *number).max().unwrap_or(2)
}

/// Opens descriptors until all numbers up to `highest` are in use.
fn occupy_up_to(highest: RawFd) -> io::Result<Vec<OwnedFd>> {
    let mut occupied: Vec<OwnedFd> = Vec::new();
    loop {
        let file: OwnedFd = File::open("/dev/null")?.into();
        if file.as_raw_fd() > highest {
            return Ok(occupied);
        }
        occupied.push(file);
    }
}

/// Starts a child. `last` is its last step before it executes its program, and calls async-signal-safe functions only.
fn spawn_with(
    command: &mut Command,
    inherited: &[(RawFd, OwnedFd)],
    tied: bool,
    last: impl Fn() -> io::Result<()> + Send + Sync + 'static,
) -> io::Result<Child> {
    // The pipe through which std reports a failed exec must not have a number that is about to be overwritten.
    let _occupied = occupy_up_to(highest_of(inherited))?;
    // Move the sources above every target, so that no dup2 overwrites a source that is still needed.
    let mut moves: Vec<(RawFd, OwnedFd)> = Vec::new();
    for (number, fd) in inherited {
        // SAFETY: F_DUPFD_CLOEXEC on an open descriptor returns a new descriptor that nothing else owns.
        let copy = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 10) };
        if copy < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: as above, `copy` is a fresh descriptor.
        moves.push((*number, unsafe { OwnedFd::from_raw_fd(copy) }));
    }
    let raw: Vec<(RawFd, RawFd)> = moves.iter().map(|(number, fd)| (*number, fd.as_raw_fd())).collect();
    let parent = nix::unistd::getpid();
    command.process_group(0);
    // SAFETY: the closure runs between fork and exec; it allocates nothing and calls async-signal-safe functions only.
    unsafe {
        command.pre_exec(move || {
            unblock_signals()?;
            // This is an engine, or a program that it runs the guest with: a limit on files must not end the guest.
            libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
            if tied {
                die_with_parent()?;
                if nix::unistd::getppid() != parent {
                    return Err(io::Error::from_raw_os_error(libc::ESRCH));
                }
            }
            for (number, fd) in &raw {
                if libc::dup2(*fd, *number) < 0 {
                    return Err(io::Error::last_os_error());
                }
            }
            last()
        });
    }
    command.spawn()
}

fn unblock_signals() -> io::Result<()> {
    pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None).map_err(io::Error::from)
}

/// Makes the kernel kill the calling process when its parent ends.
#[cfg(target_os = "linux")]
pub fn die_with_parent() -> io::Result<()> {
    // SAFETY: PR_SET_PDEATHSIG takes a signal number and touches no memory.
    match unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Makes the kernel kill the calling process when its parent ends.
#[cfg(target_os = "freebsd")]
pub fn die_with_parent() -> io::Result<()> {
    let mut signal: libc::c_int = libc::SIGKILL;
    let data = (&raw mut signal).cast::<libc::c_void>();
    // SAFETY: PROC_PDEATHSIG_CTL reads one int from `data`, which lives over the call.
    match unsafe { libc::procctl(libc::P_PID, 0, libc::PROC_PDEATHSIG_CTL, data) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A child of this process. When this is dropped, the child is neither killed nor waited for, as one of std.
#[derive(Debug)]
pub struct ChildProcess {
    pid: libc::pid_t,
    status: Option<ExitStatus>,
}

impl From<Child> for ChildProcess {
    /// The child's streams are closed.
    fn from(child: Child) -> ChildProcess {
        ChildProcess { pid: child.id() as libc::pid_t, status: None }
    }
}

impl ChildProcess {
    /// Returns its process id, as this process sees it.
    pub fn id(&self) -> u32 {
        self.pid as u32
    }

    /// Kills it, unless it is known to have ended.
    pub fn kill(&mut self) -> io::Result<()> {
        if self.status.is_some() {
            return Ok(());
        }
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.pid), nix::sys::signal::Signal::SIGKILL).map_err(io::Error::from)
    }

    /// Returns its exit status, if it has ended.
    pub fn try_wait(&mut self) -> io::Result<Option<ExitStatus>> {
        self.wait_with(libc::WNOHANG)
    }

    /// Waits until it has ended.
    pub fn wait(&mut self) -> io::Result<ExitStatus> {
        loop {
            if let Some(status) = self.wait_with(0)? {
                return Ok(status);
            }
        }
    }

    fn wait_with(&mut self, options: libc::c_int) -> io::Result<Option<ExitStatus>> {
        while self.status.is_none() {
            let mut status = 0;
            // SAFETY: waitpid writes an int to `status`, which lives over the call.
            match unsafe { libc::waitpid(self.pid, &raw mut status, options) } {
                0 => return Ok(None),
                -1 => match io::Error::last_os_error() {
                    error if error.kind() == io::ErrorKind::Interrupted => {}
                    error => return Err(error),
                },
                _ => self.status = Some(ExitStatus::from_raw(status)),
            }
        }
        Ok(self.status)
    }
}

/// Makes abort(3) end this process with the exit code `code`, if it is the first one of its process namespace: the signal
/// would not end it, and the C library would go on to a fault.
pub fn exit_if_aborted(code: u8) {
    extern "C" fn exit(_: libc::c_int) {
        // SAFETY: it takes a number, and may be called in a signal handler.
        unsafe { libc::_exit(ABORT_CODE.load(Ordering::Relaxed).into()) };
    }
    static ABORT_CODE: AtomicU8 = AtomicU8::new(0);
    if !is_first_of_namespace() {
        return;
    }
    ABORT_CODE.store(code, Ordering::Relaxed);
    let handler = nix::sys::signal::SigHandler::Handler(exit);
    let action = nix::sys::signal::SigAction::new(handler, nix::sys::signal::SaFlags::SA_ONSTACK, SigSet::empty());
    // SAFETY: the handler calls one async-signal-safe function.
    let _ = unsafe { nix::sys::signal::sigaction(nix::sys::signal::Signal::SIGABRT, &action) };
}

/// Returns whether this process is the first one of a process namespace and was started from another one.
fn is_first_of_namespace() -> bool {
    std::process::id() == 1 && nix::unistd::getppid().as_raw() == 0
}

/// Returns whether there is a process of this number, of any user.
pub fn is_there(pid: u32) -> bool {
    let Some(pid) = i32::try_from(pid).ok().filter(|pid| *pid > 0) else { return false };
    let asked = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), None);
    matches!(asked, Ok(()) | Err(nix::errno::Errno::EPERM))
}

/// Returns how long this host has been up. On Linux this is CLOCK_BOOTTIME, which also counts while the host sleeps
/// (clock_gettime(2)). FreeBSD's CLOCK_MONOTONIC is the time since the boot, but no clock of it counts a sleep.
pub fn time_since_boot() -> std::time::Duration {
    #[cfg(target_os = "linux")]
    const CLOCK: nix::time::ClockId = nix::time::ClockId::CLOCK_BOOTTIME;
    #[cfg(not(target_os = "linux"))]
    const CLOCK: nix::time::ClockId = nix::time::ClockId::CLOCK_MONOTONIC;
    nix::time::clock_gettime(CLOCK).map(std::time::Duration::from).unwrap_or_default()
}

/// The process at the other end of a connection, as reported by the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// Its effective user.
    pub uid: u32,
    /// Its id, if the kernel reports it: at a socket that was connected to, it is the process that listens.
    pub pid: Option<u32>,
}

/// Returns the process at the other end of `stream`: SO_PEERCRED of unix(7).
#[cfg(target_os = "linux")]
pub fn peer_of(stream: &std::os::unix::net::UnixStream) -> Option<Peer> {
    let peer = nix::sys::socket::getsockopt(stream, nix::sys::socket::sockopt::PeerCredentials).ok()?;
    Some(Peer { uid: peer.uid(), pid: u32::try_from(peer.pid()).ok().filter(|pid| *pid != 0) })
}

/// Returns the process at the other end of `stream`: getpeereid(3), which does not report its id.
#[cfg(not(target_os = "linux"))]
pub fn peer_of(stream: &std::os::unix::net::UnixStream) -> Option<Peer> {
    let (uid, _) = nix::unistd::getpeereid(stream).ok()?;
    Some(Peer { uid: uid.as_raw(), pid: None })
}

/// State of a process that can be inspected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Its effective user.
    pub uid: u32,
    /// Whether it was stopped, as by SIGSTOP or a debugger.
    pub stopped: bool,
    /// The words of its command line, if the host reports them.
    pub words: Vec<String>,
}

/// Returns the state of process `pid`: proc(5), `status`, `stat` and `cmdline`.
#[cfg(not(target_os = "freebsd"))]
pub fn look_at(pid: u32) -> Option<Process> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let state = stat[stat.rfind(')')? + 1..].trim_start().chars().next()?;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let uids = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    // Real, effective, saved, file system.
    let uid = uids.split_whitespace().nth(1)?.parse().ok()?;
    let cmdline = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let words = cmdline.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect();
    Some(Process { uid, stopped: matches!(state, 'T' | 't'), words })
}

/// Returns the state of process `pid`: kern.proc.pid and kern.proc.args (sysctl(3); `struct kinfo_proc` and SSTOP of
/// sys/sys/user.h and sys/sys/proc.h).
#[cfg(target_os = "freebsd")]
pub fn look_at(pid: u32) -> Option<Process> {
    const SSTOP: libc::c_char = 4;
    let info = kinfo(pid)?;
    let name = [libc::CTL_KERN, libc::KERN_PROC, libc::KERN_PROC_ARGS, libc::c_int::try_from(pid).ok()?];
    let mut bytes = [0u8; 4096];
    let mut length = bytes.len();
    // SAFETY: the kernel reads four integers; `length` bounds what it writes to `bytes`, which lives over the call.
    let answer =
        unsafe { libc::sysctl(name.as_ptr(), name.len() as u32, bytes.as_mut_ptr().cast(), &mut length, std::ptr::null(), 0) };
    let args = if answer == 0 { &bytes[..length.min(bytes.len())] } else { &[][..] };
    let words = args.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect();
    Some(Process { uid: info.ki_uid, stopped: info.ki_stat == SSTOP, words })
}

/// Returns a word that differs between two boots of this host.
#[cfg(target_os = "linux")]
pub fn boot_id() -> String {
    match std::fs::read_to_string("/proc/sys/kernel/random/boot_id") {
        Ok(text) => text.trim().to_owned(),
        Err(_) => "unknown".to_owned(),
    }
}

/// Returns a word that differs between two boots of this host: kern.boot_id if the kernel has it (sys/kern/kern_mib.c),
/// else the time of the boot, which changes when the clock is stepped (kern.boottime is the time now less the uptime).
#[cfg(target_os = "freebsd")]
pub fn boot_id() -> String {
    let mut id = [0u8; 16];
    let mut time = libc::timeval { tv_sec: 0, tv_usec: 0 };
    // SAFETY: the first is 16 bytes, the second a timeval; both live over their calls, which write no more than that.
    unsafe {
        if sysctl(c"kern.boot_id", (&raw mut id).cast(), size_of_val(&id)) {
            return id.iter().map(|byte| format!("{byte:02x}")).collect();
        }
        match sysctl(c"kern.boottime", (&raw mut time).cast(), size_of_val(&time)) {
            true => format!("boottime-{}", time.tv_sec),
            false => "unknown".to_owned(),
        }
    }
}

/// Reads a variable of the kernel that is `bytes` long. Returns `false` if there is none of that size.
///
/// # Safety
/// `out` points to `bytes` bytes that may be written, and any bits are valid there.
#[cfg(target_os = "freebsd")]
unsafe fn sysctl(name: &std::ffi::CStr, out: *mut libc::c_void, bytes: usize) -> bool {
    let mut length = bytes;
    // SAFETY: the name is a C string; `length` bounds what is written to `out`, which the caller vouches for.
    let answer = unsafe { libc::sysctlbyname(name.as_ptr(), out, &mut length, std::ptr::null(), 0) };
    answer == 0 && length == bytes
}

/// Returns the kernel's name and release, for `doctor`.
pub fn kernel() -> String {
    match nix::sys::utsname::uname() {
        Ok(name) => format!("{} {}", name.sysname().to_string_lossy(), name.release().to_string_lossy()),
        Err(_) => "unknown".to_owned(),
    }
}

/// Returns the resident bytes of a process and the CPU time that it has used, if the host reports them: kern.proc.pid
/// (sysctl(3), `struct kinfo_proc` of sys/sys/user.h).
#[cfg(target_os = "freebsd")]
pub fn usage(pid: u32) -> Option<(u64, std::time::Duration)> {
    let info = kinfo(pid)?;
    let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok()??;
    let resident = u64::try_from(info.ki_rssize).ok()? * page as u64;
    Some((resident, std::time::Duration::from_micros(info.ki_runtime)))
}

/// Returns the kernel's information about a process.
#[cfg(target_os = "freebsd")]
fn kinfo(pid: u32) -> Option<libc::kinfo_proc> {
    let name = [libc::CTL_KERN, libc::KERN_PROC, libc::KERN_PROC_PID, libc::c_int::try_from(pid).ok()?];
    let mut length = size_of::<libc::kinfo_proc>();
    // SAFETY: the structure is integers, arrays of them and raw pointers, all of which may be zero.
    let mut info: libc::kinfo_proc = unsafe { std::mem::zeroed() };
    let out = (&raw mut info).cast();
    // SAFETY: the kernel reads four integers; `length` bounds what it writes to `info`, which lives over the call.
    let answer = unsafe { libc::sysctl(name.as_ptr(), name.len() as u32, out, &mut length, std::ptr::null(), 0) };
    (answer == 0 && length == size_of::<libc::kinfo_proc>() && info.ki_structsize as usize == length).then_some(info)
}

/// Returns the resident bytes of a process and the CPU time that it has used, if the host reports them (Linux /proc).
#[cfg(not(target_os = "freebsd"))]
pub fn usage(pid: u32) -> Option<(u64, std::time::Duration)> {
    let statm = std::fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
    let pages: u64 = statm.split_whitespace().nth(1)?.parse().ok()?;
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command's name may contain spaces and parentheses, so fields are counted after the last one (proc(5)).
    let fields: Vec<&str> = stat[stat.rfind(')')? + 1..].split_whitespace().collect();
    let ticks: u64 = fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?;
    let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok()??;
    let hertz = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).ok()??;
    Some((pages * page as u64, std::time::Duration::from_millis(ticks * 1000 / hertz.max(1) as u64)))
}

/// Makes a write past the limit of a file's size (RLIMIT_FSIZE, as of `ulimit -f` or a unit's `LimitFSIZE=`) fail with
/// EFBIG, like one on a full disk, instead of ending this process by SIGXFSZ (setrlimit(2)).
///
/// The signal is caught and not ignored: a caught signal is set to its default in programs that are started, an ignored
/// one stays ignored (execve(2)), and that is not ours to decide for other programs.
pub fn survive_file_size_limit() {
    extern "C" fn nothing(_: libc::c_int) {}
    let action = nix::sys::signal::SigAction::new(
        nix::sys::signal::SigHandler::Handler(nothing),
        nix::sys::signal::SaFlags::SA_RESTART,
        SigSet::empty(),
    );
    // SAFETY: the handler does nothing, so it is safe at any moment.
    let _ = unsafe { nix::sys::signal::sigaction(nix::sys::signal::Signal::SIGXFSZ, &action) };
}

/// Makes sure that programs started from now on do not inherit these descriptors.
pub fn keep_from_children(descriptors: &[RawFd]) -> io::Result<()> {
    for fd in descriptors {
        // SAFETY: fcntl with F_SETFD changes a flag of a descriptor number and touches no memory.
        if unsafe { libc::fcntl(*fd, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Closes standard output by replacing it with /dev/null. The reader of it sees its end.
pub fn give_up_stdout() {
    if let Ok(null) = OpenOptions::new().write(true).open("/dev/null") {
        let _ = nix::unistd::dup2_stdout(null);
    }
}

/// Opens a log for a detached process. It appends, and starts again when the log has grown past `limit_bytes`.
pub fn open_log(path: &std::path::Path, limit_bytes: u64) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    let mut options = OpenOptions::new();
    options.create(true).append(true).mode(0o600);
    let file = super::files::open_no_foreign_link(&options, path)?;
    if file.metadata()?.len() > limit_bytes {
        file.set_len(0)?;
    }
    Ok(file)
}

/// Raises the limit of descriptors of this process to its maximum: a user-mode network has one for each connection, and
/// login shells start programs with a low limit.
pub fn raise_descriptor_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard
    {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_tied_child_finds_its_descriptors_at_their_numbers() {
        let (mut ours, theirs) = UnixStream::pair().expect("a socket pair");
        let (_, other) = UnixStream::pair().expect("a socket pair");
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "read word <&4; echo \"got $word\" >&4"]);
        let mut child = spawn_tied(&mut command, &[(3, other.into()), (4, theirs.into())]).expect("starts");
        drop(command);
        ours.write_all(b"hello\n").expect("writes");
        let mut answer = String::new();
        ours.read_to_string(&mut answer).expect("reads");
        assert_eq!(answer, "got hello\n");
        assert!(child.wait().expect("waits").success());
    }

    #[test]
    fn a_program_that_does_not_exist_is_an_error_of_the_spawn() {
        let (_, theirs) = UnixStream::pair().expect("a socket pair");
        let mut command = Command::new("/nonexistent/program");
        let error = spawn_tied(&mut command, &[(3, theirs.into())]).expect_err("cannot start");
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn the_host_tells_what_this_process_uses_and_nothing_of_one_that_does_not_exist() {
        let (resident, _) = usage(std::process::id()).expect("known");
        assert!(resident > 1 << 20, "{resident} bytes");
        assert!(usage(u32::MAX).is_none());
    }

    #[test]
    fn a_write_past_the_limit_fails_and_a_program_that_is_started_has_the_default_again() {
        survive_file_size_limit();
        let dir = tempfile::tempdir().expect("a directory");
        let script = "ulimit -f 1; head -c 100000 /dev/zero > big";
        let status = Command::new("/bin/sh").args(["-c", script]).current_dir(dir.path()).status().expect("runs");
        // `head` was ended by the signal, either directly or as the shell reports it.
        use std::os::unix::process::ExitStatusExt;
        let signal = status.signal().or(status.code().map(|code| code - 128));
        assert_eq!(signal, Some(libc::SIGXFSZ), "{status}");
        // A tied child ignores the signal: the write fails, and `head` reports it itself.
        let (_, theirs) = UnixStream::pair().expect("a socket pair");
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]).current_dir(dir.path()).stderr(std::process::Stdio::null());
        let status = spawn_tied(&mut command, &[(3, theirs.into())]).expect("starts").wait().expect("ends");
        assert_eq!(status.code(), Some(1));
    }

    #[test]
    fn the_process_at_the_other_end_is_known() {
        let (ours, _theirs) = UnixStream::pair().expect("a socket pair");
        let peer = peer_of(&ours).expect("known");
        assert_eq!(peer.uid, nix::unistd::geteuid().as_raw());
        let process = look_at(std::process::id()).expect("there");
        assert_eq!((process.uid, process.stopped), (peer.uid, false));
        assert!(!process.words[0].is_empty());
        assert_eq!(look_at(u32::MAX), None);
    }

    #[test]
    fn the_soft_limit_of_descriptors_is_raised_to_the_hard_one() {
        use nix::sys::resource::{Resource, getrlimit, setrlimit};
        const PART: &str = "VMCTL_LIMIT_PART";
        if std::env::var_os(PART).is_some() {
            let before = getrlimit(Resource::RLIMIT_NOFILE).expect("known");
            raise_descriptor_limit();
            let after = getrlimit(Resource::RLIMIT_NOFILE).expect("known");
            // A lower limit than it has already is never set.
            raise_descriptor_limit();
            assert_eq!((before, after, getrlimit(Resource::RLIMIT_NOFILE)), ((40, 60), (60, 60), Ok((60, 60))));
            let mut open = Vec::new();
            while let Ok(file) = File::open("/dev/null") {
                open.push(file);
            }
            assert!(open.len() > 40, "{}", open.len());
            return;
        }
        // A process of its own, since the limit is that of the whole process.
        let mut command = Command::new(std::env::current_exe().expect("this test"));
        command.args(["--exact", "host::process::tests::the_soft_limit_of_descriptors_is_raised_to_the_hard_one"]);
        // SAFETY: setrlimit(2) is one system call, as is allowed between fork and exec.
        unsafe { command.env(PART, "1").pre_exec(|| setrlimit(Resource::RLIMIT_NOFILE, 40, 60).map_err(io::Error::from)) };
        let output = command.output().expect("runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    }

    #[test]
    fn the_boot_id_is_the_same_twice() {
        assert_eq!(boot_id(), boot_id());
        assert!(!boot_id().is_empty());
    }
}
