//! External programs: finding them through `PATH`, running them to their end, and reporting their errors.
//!
//! Every tool of the host has a file of its own beside this one, which knows its arguments and its output. This file
//! only runs programs. A test puts a directory of small programs at the front of `PATH`.

use std::fmt;
use std::io::{self, Write};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use super::error::{self, HostError};
use super::link::LinkChange;
use super::process;

/// Time-out for a process that is asked to end.
const END_PATIENCE: Duration = Duration::from_secs(3);
/// Maximum number of bytes of a program's output in an error.
const MAX_WORDS: usize = 2000;

/// The error for a program that could not be run, or that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProgramError {
    /// The command line, as a user would type it.
    pub command: String,
    /// Cause of the error.
    pub cause: Cause,
}

/// Cause of a program's error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cause {
    /// `PATH` has no such program. The text says how to install it.
    Missing(&'static str),
    /// The program could not be run for another reason.
    Run(String),
    /// The program ended with this status and this message on standard error.
    Failed {
        /// Exit status; `None` after a signal.
        status: Option<i32>,
        /// Its output, in one line.
        words: String,
    },
}

impl ProgramError {
    /// Returns what to do about it, if that is known.
    pub fn hint(&self) -> Option<&'static str> {
        match self.cause {
            Cause::Missing(hint) => Some(hint),
            _ => None,
        }
    }
}

impl fmt::Display for ProgramError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let program = self.command.split(' ').next().unwrap_or_default();
        match &self.cause {
            Cause::Missing(_) => write!(f, "there is no program `{program}` in `PATH`"),
            Cause::Run(words) => write!(f, "cannot run `{program}`: {words}"),
            Cause::Failed { words, .. } if !words.is_empty() => write!(f, "`{}` failed: {words}", self.command),
            Cause::Failed { status: Some(status), .. } => write!(f, "`{}` failed with status {status}", self.command),
            Cause::Failed { status: None, .. } => write!(f, "`{}` was killed", self.command),
        }
    }
}

impl std::error::Error for ProgramError {}

/// Returns how to install a program of a port. Base programs exist on FreeBSD and nowhere else.
pub fn brought_by(program: &str) -> &'static str {
    match program {
        "bhyveload" | "bhyve" | "bhyvectl" => "it is part of FreeBSD's base system on amd64",
        "dnsmasq" => "install it with `pkg install dnsmasq` (dns/dnsmasq)",
        "nft" => "install nftables, on Debian with `apt-get install nftables`",
        "grub-bhyve" => "install it with `pkg install grub2-bhyve` (sysutils/grub2-bhyve)",
        "swtpm" => "install it with `pkg install swtpm` (sysutils/swtpm)",
        "zfs" | "zpool" => "this needs ZFS",
        _ => "this needs FreeBSD's base system",
    }
}

/// Returns the command line as a user would type it, with quotes only where they are needed.
pub fn typed(program: &str, arguments: &[&str]) -> String {
    let plain = |word: &str| !word.is_empty() && word.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_./:=@,+%*".contains(&b));
    let quoted = |word: &&str| if plain(word) { (*word).to_owned() } else { format!("'{}'", word.replace('\'', "'\\''")) };
    std::iter::once(&program).chain(arguments).map(quoted).collect::<Vec<_>>().join(" ")
}

/// Runs a program and returns its standard error in one line: for a program whose status says too little.
pub fn run_for_stderr(program: &str, arguments: &[&str]) -> Result<String, ProgramError> {
    finish(program, arguments, "").map(|output| one_line(&output.stderr))
}

/// Runs a program and returns its standard output.
pub fn run(program: &str, arguments: &[&str]) -> Result<String, ProgramError> {
    run_with(program, arguments, "")
}

/// Runs a program as [`run`] does, with a text on its standard input.
pub fn run_with(program: &str, arguments: &[&str], input: &str) -> Result<String, ProgramError> {
    finish(program, arguments, input).map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs a program to its end. It is an error if the program fails.
fn finish(program: &str, arguments: &[&str], input: &str) -> Result<Output, ProgramError> {
    let fault = |cause| ProgramError { command: typed(program, arguments), cause };
    if find(program).is_none() && !program.contains('/') {
        return Err(fault(Cause::Missing(brought_by(program))));
    }
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => fault(Cause::Missing(brought_by(program))),
        _ => fault(Cause::Run(error.to_string())),
    };
    let stdin = if input.is_empty() { Stdio::null() } else { Stdio::piped() };
    let mut child =
        command(program, arguments).stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().map_err(failed)?;
    // The inputs are small rule sets that fit in a pipe. A program that does not read one reports why.
    if let Some(mut stdin) = child.stdin.take() {
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().map_err(failed)?;
    if output.status.success() {
        return Ok(output);
    }
    // bhyvectl(8) reports its errors on standard output.
    let words = one_line(if output.stderr.is_empty() { &output.stdout } else { &output.stderr });
    Err(fault(Cause::Failed { status: output.status.code(), words }))
}

/// Returns a program's message, in one line of bounded length. The usage text that some programs print after every
/// mistake is left out, since the reader of the error did not type the command.
fn one_line(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    let is_usage = |line: &str| line.get(..6).is_some_and(|start| start.eq_ignore_ascii_case("usage:"));
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    // If there is nothing else, the usage text stays.
    let mut words: Vec<&str> = lines.next().into_iter().collect();
    words.extend(lines.take_while(|line| !is_usage(line)));
    let mut words = words.join("; ");
    if let Some((at, _)) = words.char_indices().nth(MAX_WORDS) {
        words.truncate(at);
    }
    words
}

/// Returns a program's standard output, whatever its status: for a program whose status says nothing. The output is
/// empty if the program cannot be run.
pub fn printed(program: &str, arguments: &[&str]) -> String {
    let output = command(program, arguments).stdin(Stdio::null()).stderr(Stdio::null()).output();
    output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default()
}

/// Creates the command of a program whose output is parsed. It sets the environment so that the output is the same for
/// every user, whatever the language and formats (ifconfig(8), ENVIRONMENT; libxo(3)).
fn command(program: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(find(program).unwrap_or_else(|| program.into()));
    command.args(arguments).env("LC_ALL", "C").env_remove("IFCONFIG_FORMAT").env_remove("LIBXO_OPTIONS");
    command
}

/// Directories in which ports install programs. rc(8) starts services without these in `PATH`.
const PORTS: &[&str] = &["/usr/local/sbin", "/usr/local/bin"];
/// Directories of the administrator's programs in FreeBSD's base system, which not every `PATH` has.
const BASE: &[&str] = if cfg!(target_os = "freebsd") { &["/sbin", "/usr/sbin"] } else { &[] };
/// The same of Linux distributions, for the programs that are looked for there.
const LINUX: &[&str] = &["/usr/sbin", "/sbin"];

/// Returns the path of a program in `PATH`, or in the base system's or the ports' directories.
pub fn find(program: &str) -> Option<std::path::PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // A user's `PATH` on Debian has no /usr/sbin, where nftables puts its program.
    let linux = if cfg!(target_os = "linux") && program == "nft" { LINUX } else { &[] };
    let directories = std::env::split_paths(&path).chain(BASE.iter().chain(PORTS).chain(linux).map(std::path::PathBuf::from));
    directories.map(|directory| directory.join(program)).find(|file| file.is_file())
}

/// Returns the path of a program of an administrator on Linux.
#[cfg(target_os = "linux")]
pub fn find_on_linux(program: &str) -> Option<std::path::PathBuf> {
    find(program)
        .or_else(|| LINUX.iter().map(|directory| std::path::Path::new(directory).join(program)).find(|file| file.is_file()))
}

/// Returns whether this host is FreeBSD, or claims to be: the output of `uname -s`.
pub fn is_freebsd() -> bool {
    cfg!(target_os = "freebsd") || run("uname", &["-s"]).is_ok_and(|name| name.trim() == "FreeBSD")
}

/// One change to the host, with the change that undoes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// The change.
    pub action: HostChange,
    /// The change that undoes it, when a later step fails.
    pub undo: Option<HostChange>,
}

/// A change to the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostChange {
    /// Runs a program, with a text on its standard input if that is not empty.
    Run {
        /// Program and arguments.
        words: Vec<String>,
        /// Standard input.
        input: String,
    },
    /// Writes a file that only its owner can read, and makes its directory.
    Write {
        /// Path of the file.
        path: std::path::PathBuf,
        /// Contents of the file.
        text: String,
    },
    /// Removes a file, if it exists.
    Remove {
        /// Path of the file.
        path: std::path::PathBuf,
    },
    /// Changes a network interface of Linux.
    Link(LinkChange),
    /// Sets a variable of the Linux kernel, below /proc/sys.
    Set {
        /// Path of the variable.
        path: std::path::PathBuf,
        /// Its value.
        text: String,
    },
    /// Ends a process of Linux, and waits for a moment until it has gone.
    End {
        /// Its id.
        pid: u32,
    },
}

/// The error of a sequence of steps.
#[derive(Debug)]
pub struct StepError {
    /// Error of the step that failed.
    pub error: HostError,
    /// Steps that could not be undone.
    pub left: Vec<String>,
}

impl fmt::Display for StepError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.error)?;
        match self.left.is_empty() {
            true => Ok(()),
            false => write!(f, " (and could not be taken back: {})", self.left.join("; ")),
        }
    }
}

impl std::error::Error for StepError {}

impl HostChange {
    /// Creates the change that runs a program with arguments.
    pub fn run<W: AsRef<str>>(words: &[W]) -> HostChange {
        HostChange::Run { words: words.iter().map(|word| word.as_ref().to_owned()).collect(), input: String::new() }
    }

    fn perform(&self) -> Result<(), HostError> {
        let io = |what: &str, path: &std::path::Path, error: io::Error| error::io(what, path, &error);
        match self {
            HostChange::Run { words, input } => {
                let arguments: Vec<&str> = words[1..].iter().map(String::as_str).collect();
                Ok(run_with(&words[0], &arguments, input).map(drop)?)
            }
            HostChange::Write { path, text } => {
                let parent = path.parent().unwrap_or(std::path::Path::new("/"));
                super::files::private_directory(parent).map_err(|error| io("make", parent, error))?;
                super::files::replace(path, text.as_bytes(), 0o600).map_err(|error| io("write", path, error))
            }
            HostChange::Remove { path } => match std::fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io("remove", path, error)),
                _ => Ok(()),
            },
            HostChange::Link(change) => change.perform(),
            HostChange::Set { path, text } => std::fs::write(path, text).map_err(|error| match error.kind() {
                io::ErrorKind::PermissionDenied => {
                    io("write", path, error).hint("only root may: run the command as root, as with `sudo`")
                }
                _ => io("write", path, error),
            }),
            HostChange::End { pid } => end(*pid),
        }
    }
}

/// Asks a process to end, and waits for a moment until it has.
fn end(pid: u32) -> Result<(), HostError> {
    let id = i32::try_from(pid).map_err(|_| HostError::user(format!("there is no process {pid}")))?;
    match nix::sys::signal::kill(nix::unistd::Pid::from_raw(id), nix::sys::signal::Signal::SIGTERM) {
        Ok(()) => {}
        Err(nix::errno::Errno::ESRCH) => return Ok(()),
        Err(error) => return Err(HostError::user(format!("cannot end process {pid}: {error}"))),
    }
    let started = Instant::now();
    while process::is_there(pid) && started.elapsed() < END_PATIENCE {
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

impl fmt::Display for HostChange {
    /// Prints the change as a user would type it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HostChange::Run { words, input } => {
                let arguments: Vec<&str> = words[1..].iter().map(String::as_str).collect();
                f.write_str(&typed(&words[0], &arguments))?;
                for line in input.lines() {
                    write!(f, "\n  | {line}")?;
                }
                Ok(())
            }
            HostChange::Write { path, text } => {
                write!(f, "write {}", path.display())?;
                for line in text.lines() {
                    write!(f, "\n  | {line}")?;
                }
                Ok(())
            }
            HostChange::Remove { path } => write!(f, "rm -f {}", path.display()),
            HostChange::Link(change) => change.fmt(f),
            HostChange::Set { path, text } => write!(f, "echo {text} > {}", path.display()),
            HostChange::End { pid } => write!(f, "kill {pid}"),
        }
    }
}

impl Step {
    /// Creates a step that cannot be undone.
    pub fn once(action: HostChange) -> Step {
        Step { action, undo: None }
    }
    /// Creates a step with the change that undoes it.
    pub fn undone_by(action: HostChange, undo: HostChange) -> Step {
        Step { action, undo: Some(undo) }
    }
}

/// Performs the steps in order. If one fails, undoes those before it, the last one first.
pub fn perform(steps: &[Step]) -> Result<(), StepError> {
    for (at, step) in steps.iter().enumerate() {
        if let Err(error) = step.action.perform() {
            let undo = steps[..at].iter().rev().filter_map(|step| step.undo.as_ref());
            let left = undo.filter_map(|action| action.perform().err().map(|error| error.to_string())).collect();
            return Err(StepError { error, left });
        }
    }
    Ok(())
}

/// Performs all the steps, even after one fails: for taking things down. Returns the errors.
pub fn perform_all(steps: &[Step]) -> Vec<String> {
    steps.iter().filter_map(|step| step.action.perform().err().map(|error| error.to_string())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_program_prints_is_returned_and_its_input_reaches_it() {
        assert_eq!(run("echo", &["a", "b c"]).expect("runs"), "a b c\n");
        assert_eq!(run_with("cat", &[], "pass all\n").expect("runs"), "pass all\n");
    }

    #[test]
    fn what_a_program_prints_is_there_whatever_its_status() {
        assert_eq!(printed("sh", &["-c", "echo one; echo two >&2; exit 3"]), "one\n");
        assert_eq!(printed("valectl-that-is-not-there", &[]), "");
    }

    #[test]
    fn a_program_that_fails_is_quoted_with_its_words() {
        let error = run("sh", &["-c", "echo one >&2; echo two >&2; exit 3"]).expect_err("fails");
        assert_eq!(error.cause, Cause::Failed { status: Some(3), words: "one; two".into() });
        assert_eq!(error.to_string(), "`sh -c 'echo one >&2; echo two >&2; exit 3'` failed: one; two");
    }

    #[test]
    fn how_a_program_is_used_is_no_part_of_its_error() {
        let said = "echo 'cannot create snapshot: no such pool' >&2; echo usage: >&2; echo '\tsnapshot [-r]' >&2; exit 2";
        let error = run("sh", &["-c", said]).expect_err("fails");
        assert_eq!(error.cause, Cause::Failed { status: Some(2), words: "cannot create snapshot: no such pool".into() });
        let error = run("sh", &["-c", "echo 'Usage: x [-y]' >&2; echo '  -y: z' >&2; exit 2"]).expect_err("fails");
        assert_eq!(error.cause, Cause::Failed { status: Some(2), words: "Usage: x [-y]; -y: z".into() });
    }

    #[test]
    fn a_program_that_is_missing_is_named_with_what_brings_it() {
        let error = run("dnsmasq-that-is-not-there", &[]).expect_err("is not there");
        assert_eq!(error.to_string(), "there is no program `dnsmasq-that-is-not-there` in `PATH`");
        assert!(brought_by("dnsmasq").contains("pkg install dnsmasq"));
    }

    #[test]
    fn steps_before_a_failure_are_taken_back_the_last_one_first() {
        let dir = tempfile::tempdir().expect("a directory");
        let log = dir.path().join("log");
        let say = |word: &str| HostChange::run(&["sh", "-c", &format!("echo {word} >> {}", log.display())]);
        let steps = [
            Step::undone_by(say("one"), say("not-one")),
            Step::once(say("two")),
            Step::undone_by(say("three"), HostChange::run(&["sh", "-c", "echo stuck >&2; exit 1"])),
            Step::undone_by(HostChange::run(&["sh", "-c", "exit 1"]), say("never")),
        ];
        let error = perform(&steps).expect_err("the last one fails");
        assert!(error.to_string().contains("could not be taken back") && error.to_string().contains("stuck"), "{error}");
        assert_eq!(std::fs::read_to_string(&log).expect("reads"), "one\ntwo\nthree\nnot-one\n");
    }
}
