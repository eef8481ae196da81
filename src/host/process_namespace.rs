//! The process namespace of a child: it sees no process but itself and those that it starts (pid_namespaces(7)).
//!
//! A namespace is made with its first process, by clone(2). So the child that std has forked clones itself once more before
//! it executes its program: the copy has the same parent (CLONE_PARENT), is the first process of a new namespace, and
//! executes the program; the child reports the copy's number and ends. No process more than without a namespace remains.
//!
//! Namespaces are made by a process with the right to it, or else, by one that has no rights at all, in a user namespace
//! that maps its own user and group. A process with some rights keeps them instead, since they would not hold in a user
//! namespace: a forward may need CAP_NET_BIND_SERVICE. If the host makes no namespace, the child goes on without.
//!
//! Calls between fork and exec: clone(2), open(2), write(2), read(2), close(2), setpgid(2), _exit(2), none of which
//! allocates.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, RawFd};

use nix::unistd::{getegid, geteuid};

use super::process::die_with_parent;

/// Preparations for the namespace of one child.
pub struct Namespace {
    /// What the child reports to this process.
    report: Pipe,
    /// What the copy in a user namespace reports to the child.
    mapped: Pipe,
    /// The lines of uid_map and gid_map (user_namespaces(7)), if the namespace may be made in a user namespace.
    maps: Option<[String; 2]>,
}

struct Pipe {
    reader: File,
    writer: File,
}

impl Pipe {
    fn new() -> io::Result<Pipe> {
        let (reader, writer) = io::pipe()?;
        let file = |end: std::os::fd::OwnedFd| File::from(end);
        Ok(Pipe { reader: file(reader.into()), writer: file(writer.into()) })
    }
}

/// The descriptors and texts that a child needs between fork and exec.
pub struct Steps {
    report: [RawFd; 2],
    mapped: [RawFd; 2],
    maps: Option<[String; 2]>,
}

/// The processes that came of a child's steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcome {
    /// The first process of the namespace, if there is one. The child has ended then.
    pub first: Option<i32>,
    /// A process that could not go on, and must be waited for.
    pub failed: Option<i32>,
}

impl Namespace {
    /// Prepares the namespace of a child that is about to be forked.
    pub fn prepare() -> io::Result<Namespace> {
        let map = |id: u32| format!("{id} {id} 1\n");
        let maps = has_no_capabilities().then(|| [map(geteuid().as_raw()), map(getegid().as_raw())]);
        Ok(Namespace { report: Pipe::new()?, mapped: Pipe::new()?, maps })
    }

    /// Returns the steps of the child.
    pub fn steps(&self) -> Steps {
        let ends = |pipe: &Pipe| [pipe.reader.as_raw_fd(), pipe.writer.as_raw_fd()];
        Steps { report: ends(&self.report), mapped: ends(&self.mapped), maps: self.maps.clone() }
    }

    /// Returns what came of the steps of the child, which was forked. Waits until the child has ended, or it or its copy has
    /// executed its program.
    pub fn outcome(self) -> io::Result<Outcome> {
        drop((self.report.writer, self.mapped));
        let mut words = Vec::new();
        (&self.report.reader).read_to_end(&mut words)?;
        let number = |four: &[u8]| i32::from_ne_bytes(four.try_into().expect("four bytes"));
        let (mut first, mut failed) = (None, None);
        // One report has the numbers. If the child was killed before it sent that, there is none.
        for report in words.chunks_exact(REPORT_BYTES) {
            first = Some(number(&report[..4])).filter(|pid| *pid > 0).or(first);
            failed = Some(number(&report[4..])).filter(|pid| *pid > 0).or(failed);
        }
        Ok(Outcome { first, failed })
    }
}

/// Length of a report, two numbers. A pipe takes it whole (pipe(7), PIPE_BUF).
const REPORT_BYTES: usize = 8;

impl Steps {
    /// Takes the steps in the child. Returns in the process that executes the program: the first process of the namespace, or
    /// the child itself if the host makes none.
    ///
    /// # Safety
    /// Called between fork and exec, in a process with one thread.
    pub unsafe fn take(&self) -> io::Result<()> {
        // SAFETY: these ends are this process's own since the fork, and nothing else here uses them. All other calls of this
        // block take numbers.
        unsafe {
            // Whoever is left with the writing end sees whether the parent still has the reading one.
            libc::close(self.report[0]);
            let copy = clone_as_sibling(libc::CLONE_NEWPID);
            match (copy, &self.maps) {
                (0, _) => self.be_first(),
                (1.., _) => self.report_and_end(copy),
                (_, Some(maps)) => self.try_user_namespace(maps),
                (_, None) => {
                    self.report(0, 0);
                    Ok(())
                }
            }
        }
    }

    unsafe fn try_user_namespace(&self, maps: &[String; 2]) -> io::Result<()> {
        // SAFETY: as in `take`.
        unsafe {
            let copy = clone_as_sibling(libc::CLONE_NEWUSER | libc::CLONE_NEWPID);
            if copy == 0 {
                if !map_ids(maps) {
                    libc::_exit(1);
                }
                libc::write(self.mapped[1], b"m".as_ptr().cast(), 1);
                return self.be_first();
            }
            libc::close(self.mapped[1]);
            let mut byte = 0u8;
            if copy > 0 && read_byte(self.mapped[0], &mut byte) {
                self.report_and_end(copy);
            }
            // A security module may let a user namespace be made and refuse its use.
            self.report(0, copy.max(0));
            Ok(())
        }
    }

    /// Ties the first process of the namespace to the parent of the process that it is a copy of.
    unsafe fn be_first(&self) -> io::Result<()> {
        die_with_parent()?;
        // SAFETY: setpgid takes numbers.
        unsafe { libc::setpgid(0, 0) };
        // getppid(2) has no number for a process outside of the namespace. If the parent is gone, nobody reads the report, and
        // writing to it fails, or ends this process by SIGPIPE.
        match self.report(0, 0) {
            true => Ok(()),
            false => Err(io::Error::from_raw_os_error(libc::ESRCH)),
        }
    }

    unsafe fn report_and_end(&self, first: i32) -> ! {
        self.report(first, 0);
        // SAFETY: it takes a number, and runs nothing of what the parent has registered for its own end.
        unsafe { libc::_exit(0) }
    }

    /// Returns whether somebody may read it.
    fn report(&self, first: i32, failed: i32) -> bool {
        let mut words = [0; REPORT_BYTES];
        words[..4].copy_from_slice(&first.to_ne_bytes());
        words[4..].copy_from_slice(&failed.to_ne_bytes());
        // SAFETY: the kernel reads eight bytes of `words`, which lives over the call.
        unsafe { libc::write(self.report[1], words.as_ptr().cast(), words.len()) == REPORT_BYTES as isize }
    }
}

/// Returns whether this process has no capabilities: proc(5), `CapEff` and `CapPrm` of /proc/self/status.
fn has_no_capabilities() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let set = |name| status.lines().find_map(|line| u64::from_str_radix(line.strip_prefix(name)?.trim(), 16).ok());
    set("CapEff:") == Some(0) && set("CapPrm:") == Some(0)
}

/// Forks with namespaces. The child's parent is that of this process, which gets its end reported by SIGCHLD. Returns -1 on
/// failure.
///
/// # Safety
/// The caller has one thread and calls nothing but async-signal-safe functions in the child: the C library does not know of
/// the fork.
unsafe fn clone_as_sibling(namespaces: libc::c_int) -> i32 {
    let flags = (namespaces | libc::CLONE_PARENT | libc::SIGCHLD) as libc::c_ulong;
    // SAFETY: without a stack and shared memory it is a fork (clone(2), raw system call).
    i32::try_from(unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) }).unwrap_or(-1)
}

/// Maps the user and the group of the process that made the user namespace (user_namespaces(7)).
unsafe fn map_ids(maps: &[String; 2]) -> bool {
    let write = |file: &CStr, text: &[u8]| {
        // SAFETY: the path is a C string, and the kernel reads `text.len()` bytes of `text`; both live over the calls.
        unsafe {
            let fd = libc::open(file.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
            let written = libc::write(fd, text.as_ptr().cast(), text.len());
            libc::close(fd);
            usize::try_from(written) == Ok(text.len())
        }
    };
    // A gid_map of one's own is written after setgroups(2) has been given up.
    write(c"/proc/self/setgroups", b"deny")
        && write(c"/proc/self/uid_map", maps[0].as_bytes())
        && write(c"/proc/self/gid_map", maps[1].as_bytes())
}

unsafe fn read_byte(fd: RawFd, byte: &mut u8) -> bool {
    loop {
        // SAFETY: the kernel writes one byte to `byte`, which lives over the call.
        match unsafe { libc::read(fd, std::ptr::from_mut(byte).cast(), 1) } {
            1 => return true,
            -1 if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => {}
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixStream;
    use std::os::unix::process::{CommandExt, ExitStatusExt};
    use std::process::{Command, Stdio};

    use crate::host::process::{ChildProcess, is_there, spawn_tied_apart};

    /// Set for the process that the tests start as another user.
    const PART: &str = "VMCTL_NAMESPACE_PART";

    /// Starts a shell as an engine is started. It reads a line at descriptor 4 first.
    fn shell(script: &str) -> (ChildProcess, UnixStream) {
        let (ours, theirs) = UnixStream::pair().expect("a socket pair");
        let mut command = Command::new("/bin/sh");
        command.args(["-c", &format!("read word <&4; {script}")]).stderr(Stdio::null());
        (spawn_tied_apart(&mut command, &[(4, theirs.into())]).expect("starts"), ours)
    }

    fn said(script: &str) -> (String, std::process::ExitStatus) {
        use std::io::Read;
        let (mut child, mut stream) = shell(script);
        stream.write_all(b"go\n").expect("writes");
        let mut text = String::new();
        stream.read_to_string(&mut text).expect("reads");
        (text, child.wait().expect("waits"))
    }

    /// Runs the body of a test: as root, and as a user without rights.
    fn as_root_and_as_nobody(test: &str, body: fn()) {
        if std::env::var_os(PART).is_some() || !nix::unistd::geteuid().is_root() {
            return body();
        }
        body();
        let mut command = Command::new("/proc/self/exe");
        command.args(["--exact", &format!("host::process_namespace::tests::{test}"), "--nocapture"]);
        let output = command.env(PART, "1").current_dir("/").uid(65534).gid(65534).output().expect("starts");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// Whether this host makes process namespaces for this user, as unshare(1) finds out.
    fn can_be_had() -> bool {
        let how: &[&str] = if nix::unistd::geteuid().is_root() { &["-pf", "true"] } else { &["-rpf", "true"] };
        Command::new("unshare").args(how).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
    }

    #[test]
    fn a_process_apart_sees_no_other_where_the_host_makes_namespaces() {
        as_root_and_as_nobody("a_process_apart_sees_no_other_where_the_host_makes_namespaces", || {
            let own = std::process::id();
            let script = format!("kill -0 {own} && seen=yes || seen=no; echo $$ $PPID $seen $(id -u) >&4; exit 7");
            let (text, status) = said(&script);
            assert_eq!(status.code(), Some(7));
            let words: Vec<&str> = text.split_whitespace().collect();
            let uid = nix::unistd::geteuid().to_string();
            match can_be_had() {
                true => assert_eq!(words, ["1", "0", "no", &uid]),
                false => assert_eq!(words[1..], [&own.to_string(), "yes", &uid]),
            }
        });
    }

    #[test]
    fn its_number_is_that_of_this_host_and_it_leads_a_group_and_can_be_killed() {
        as_root_and_as_nobody("its_number_is_that_of_this_host_and_it_leads_a_group_and_can_be_killed", || {
            let (mut child, _stream) = shell("exit");
            let pid = nix::unistd::Pid::from_raw(child.id() as i32);
            let words = crate::host::process::look_at(child.id()).expect("there").words;
            assert_eq!(words[..2], ["/bin/sh", "-c"]);
            assert_eq!(nix::unistd::getpgid(Some(pid)), Ok(pid));
            assert!(child.try_wait().expect("looked at").is_none());
            child.kill().expect("killed");
            assert_eq!(child.wait().expect("waits").signal(), Some(libc::SIGKILL));
            assert_eq!(child.try_wait().expect("known").and_then(|status| status.signal()), Some(libc::SIGKILL));
            assert!(!is_there(child.id()));
            // What has ended is not killed, though its number may be another's by now.
            child.kill().expect("nothing to do");
        });
    }

    #[test]
    fn a_fault_ends_it_by_its_signal_and_an_abort_by_the_code_that_was_agreed() {
        const TEST: &str = "a_fault_ends_it_by_its_signal_and_an_abort_by_the_code_that_was_agreed";
        match std::env::var(PART).as_deref() {
            Ok("fault") => {
                // SAFETY: nothing is mapped there, so the write has no effect but the fault.
                unsafe { std::ptr::without_provenance_mut::<u8>(16).write_volatile(1) };
            }
            Ok("abort") => {
                crate::host::process::exit_if_aborted(99);
                std::process::abort();
            }
            _ => {}
        }
        as_root_and_as_nobody(TEST, || {
            let end_of = |part: &str| {
                let mut command = Command::new("/proc/self/exe");
                command.args(["--exact", &format!("host::process_namespace::tests::{TEST}")]).env(PART, part);
                command.current_dir("/").stdout(Stdio::null()).stderr(Stdio::null());
                let status = spawn_tied_apart(&mut command, &[]).expect("starts").wait().expect("waits");
                (status.code(), status.signal())
            };
            assert_eq!(end_of("fault"), (None, Some(libc::SIGSEGV)));
            match can_be_had() {
                true => assert_eq!(end_of("abort"), (Some(99), None)),
                false => assert_eq!(end_of("abort"), (None, Some(libc::SIGABRT))),
            }
        });
    }

    #[test]
    fn a_program_that_does_not_exist_is_an_error_and_leaves_no_process() {
        as_root_and_as_nobody("a_program_that_does_not_exist_is_an_error_and_leaves_no_process", || {
            let (_, theirs) = UnixStream::pair().expect("a socket pair");
            let mut command = Command::new("/nonexistent/program");
            let error = spawn_tied_apart(&mut command, &[(3, theirs.into())]).expect_err("cannot start");
            assert_eq!(error.kind(), std::io::ErrorKind::NotFound);
        });
    }

    #[test]
    fn it_ends_with_its_parent() {
        as_root_and_as_nobody("it_ends_with_its_parent", || {
            use std::io::{BufRead, BufReader};
            if std::env::var_os("VMCTL_NAMESPACE_PARENT").is_some() {
                let (child, _stream) = shell("exit");
                println!("\nchild {}", child.id());
                loop {
                    std::thread::park();
                }
            }
            let mut parent = Command::new("/proc/self/exe");
            parent.args(["--exact", "host::process_namespace::tests::it_ends_with_its_parent", "--nocapture"]);
            // The thread of the test is the child's parent, so that the test harness must not use another one for it.
            parent.arg("--test-threads=1").env(PART, "1").env("VMCTL_NAMESPACE_PARENT", "1").current_dir("/");
            let mut parent = parent.stdout(Stdio::piped()).spawn().expect("starts");
            let lines = BufReader::new(parent.stdout.take().expect("piped")).lines();
            let child = lines.map_while(Result::ok).find_map(|line| line.strip_prefix("child ").map(str::to_owned));
            let child: u32 = child.expect("a child").parse().expect("a number");
            assert!(is_there(child));
            parent.kill().and_then(|()| parent.wait()).expect("ends");
            let started = std::time::Instant::now();
            // Its new parent may not wait for it.
            let runs = || std::fs::read_to_string(format!("/proc/{child}/stat")).is_ok_and(|stat| !stat.contains(") Z "));
            while runs() {
                assert!(started.elapsed().as_secs() < 60, "it goes on");
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
        });
    }
}
