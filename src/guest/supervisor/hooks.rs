//! Hooks: the user's commands at events of a guest's life. They run one after another on a thread of their own, get a
//! JSON document on standard input, and are killed after their time-out.

use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use crate::config::{HookConfig, HookEvent, HookFailure};

/// The version of a hook's document.
pub const HOOK_VERSION: u32 = 1;
/// Maximum number of bytes of a hook's output that are kept.
const OUTPUT_LIMIT: u64 = 4096;

/// The document for a hook.
#[derive(Debug, Clone, serde::Serialize)]
pub struct HookDocument {
    /// Always [`HOOK_VERSION`].
    pub version: u32,
    /// The event, as the guest file spells it.
    pub event: &'static str,
    /// The guest's name.
    pub guest: String,
    /// Its UUID.
    pub uuid: String,
    /// Its directory in the datastore.
    pub directory: std::path::PathBuf,
    /// Number of the boot.
    pub boot: u64,
    /// The exit or the failure, in words; empty for the other events.
    pub reason: String,
}

/// Outcome of one hook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HookOutcome {
    /// Its id.
    pub hook: String,
    /// The error.
    pub error: Option<String>,
    /// Whether the step after it must not happen.
    pub fatal: bool,
}

/// Runs the hooks of `document.event` in order. After one that fails with `on_failure = "fail"` no other runs.
pub fn run_hooks(hooks: &[HookConfig], event: HookEvent, document: &HookDocument) -> Vec<HookOutcome> {
    let mut outcomes = Vec::new();
    for hook in hooks.iter().filter(|hook| hook.event == event) {
        let error = run_one(hook, document).err();
        let fatal = error.is_some() && hook.on_failure == HookFailure::Fail;
        outcomes.push(HookOutcome { hook: hook.id.clone(), error, fatal });
        if fatal {
            break;
        }
    }
    outcomes
}

fn run_one(hook: &HookConfig, document: &HookDocument) -> Result<(), String> {
    let (program, arguments) = hook.command.split_first().ok_or("it names no program")?;
    let mut input = serde_json::to_vec(document).expect("plain fields");
    input.push(b'\n');
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env("VMCTL_GUEST", &document.guest)
        .env("VMCTL_EVENT", document.event)
        .current_dir(&document.directory);
    let (status, output) = run_limited(command, &input, hook.timeout)?;
    match status {
        Some(status) if status.success() => Ok(()),
        Some(status) => Err(format!("it ended with {status}{}", said(&output))),
        None => Err(format!("it did not end within {} s and was killed{}", hook.timeout.as_secs(), said(&output))),
    }
}

fn said(output: &[u8]) -> String {
    let text = String::from_utf8_lossy(output);
    match text.trim() {
        "" => String::new(),
        text => format!(": {text}"),
    }
}

/// Runs a command in a process group of its own, with `input` on its standard input. The group is killed after
/// `timeout`. Returns the status (`None` after a kill) and the beginning of its output.
pub fn run_limited(
    mut command: Command,
    input: &[u8],
    timeout: Duration,
) -> Result<(Option<std::process::ExitStatus>, Vec<u8>), String> {
    let (mut reader, writer) = std::io::pipe().map_err(|error| error.to_string())?;
    let errors = writer.try_clone().map_err(|error| error.to_string())?;
    command.stdin(Stdio::piped()).stdout(writer).stderr(errors).process_group(0);
    let mut child = command.spawn().map_err(|error| format!("cannot run `{}`: {error}", command.get_program().display()))?;
    // The command holds the write ends, which must close so that the reader below sees the end.
    drop(command);
    let group = nix::unistd::Pid::from_raw(child.id() as i32);
    let mut stdin = child.stdin.take().expect("piped above");
    let input = input.to_vec();
    // A command that does not read must not block us. If it has ended, the write fails, which does not matter.
    let feeder = std::thread::spawn(move || drop(stdin.write_all(&input)));
    let (sender, output) = mpsc::channel();
    std::thread::spawn(move || {
        let mut kept = Vec::new();
        let _ = reader.by_ref().take(OUTPUT_LIMIT).read_to_end(&mut kept);
        let _ = sender.send(kept);
        let _ = std::io::copy(&mut reader, &mut std::io::sink());
    });
    let started = Instant::now();
    let mut pause = Duration::from_millis(1);
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break Some(status),
            Ok(None) if started.elapsed() >= timeout => {
                let _ = nix::sys::signal::killpg(group, nix::sys::signal::Signal::SIGKILL);
                let _ = child.wait();
                break None;
            }
            Ok(None) => std::thread::sleep(pause),
            Err(error) => return Err(error.to_string()),
        }
        pause = (pause * 2).min(Duration::from_millis(20));
    };
    drop(feeder);
    // A process that it left in the background may keep the pipe open. Its output is not waited for.
    Ok((status, output.recv_timeout(Duration::from_millis(200)).unwrap_or_default()))
}

/// A job of the hook thread.
pub struct HookJob {
    /// The event.
    pub event: HookEvent,
    /// All hooks of the guest file at that time.
    pub hooks: Vec<HookConfig>,
    /// The document for them.
    pub document: HookDocument,
}

/// Starts the hook thread. It calls `done` after each job, and ends when the sender is dropped.
pub fn start_thread(done: impl Fn(HookEvent, Vec<HookOutcome>) + Send + 'static) -> mpsc::Sender<HookJob> {
    let (sender, jobs) = mpsc::channel::<HookJob>();
    std::thread::spawn(move || {
        for job in jobs {
            let outcomes = run_hooks(&job.hooks, job.event, &job.document);
            done(job.event, outcomes);
        }
    });
    sender
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hook(script: &str, timeout_ms: u64, on_failure: HookFailure) -> HookConfig {
        HookConfig {
            id: "h".into(),
            event: HookEvent::PreStart,
            command: vec!["/bin/sh".into(), "-c".into(), script.into()],
            timeout: Duration::from_millis(timeout_ms),
            on_failure,
        }
    }

    fn document() -> HookDocument {
        HookDocument {
            version: HOOK_VERSION,
            event: "pre-start",
            guest: "g".into(),
            uuid: "u".into(),
            directory: "/".into(),
            boot: 1,
            reason: String::new(),
        }
    }

    #[test]
    fn a_hook_reads_the_document_on_its_standard_input() {
        let script = r#"read line; case "$line" in *'"event":"pre-start","guest":"g"'*) exit 0;; esac; exit 1"#;
        let outcomes = run_hooks(&[hook(script, 5000, HookFailure::Fail)], HookEvent::PreStart, &document());
        assert_eq!(outcomes, [HookOutcome { hook: "h".into(), error: None, fatal: false }]);
    }

    #[test]
    fn a_failing_hook_says_what_it_printed_and_ends_the_row_only_if_asked_to() {
        let hooks = [hook("echo no disk >&2; exit 3", 5000, HookFailure::Ignore), hook("exit 1", 5000, HookFailure::Fail)];
        let outcomes = run_hooks(&[&hooks[..], &hooks[..]].concat(), HookEvent::PreStart, &document());
        assert_eq!(outcomes.len(), 2);
        assert!(outcomes[0].error.as_ref().is_some_and(|e| e.contains("no disk")), "{outcomes:?}");
        assert!(!outcomes[0].fatal);
        assert!(outcomes[1].fatal);
    }

    #[test]
    fn a_hook_that_hangs_is_killed_with_all_it_started() {
        let started = Instant::now();
        let outcomes = run_hooks(&[hook("sleep 60 & sleep 60", 100, HookFailure::Fail)], HookEvent::PreStart, &document());
        assert!(started.elapsed() < Duration::from_secs(10));
        assert!(outcomes[0].error.as_ref().is_some_and(|e| e.contains("killed")), "{outcomes:?}");
    }

    #[test]
    fn a_hook_that_does_not_exist_says_so() {
        let mut missing = hook("", 100, HookFailure::Fail);
        missing.command = vec!["/nonexistent/hook".into()];
        let outcomes = run_hooks(&[missing], HookEvent::PreStart, &document());
        assert!(outcomes[0].error.as_ref().is_some_and(|e| e.contains("/nonexistent/hook")), "{outcomes:?}");
    }
}
