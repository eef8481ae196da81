//! Secrets of a fleet: reading them from their sources, and keeping them in private files.
//!
//! No value leaves this module: not in a message, a plan, a journal or a state.

use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use crate::config::{SecretConfig, SecretSource};
use crate::host::files::{private_directory, write_atomically};

use crate::guest::error::{GuestError, Result};

/// Maximum size of a secret.
const MAX_BYTES: usize = 64 << 10;

/// The bytes of a secret. Printing it shows none of them.
pub struct SecretValue(Vec<u8>);

impl std::fmt::Debug for SecretValue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SecretValue")
    }
}

/// State of a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SecretState {
    /// The guests have the present value.
    Kept,
    /// It is new.
    New,
    /// It has changed.
    Changed,
}

/// Reads a secret that vmctl keeps, and returns its state. A secret that is a file of the user has no value here, but
/// must exist.
pub fn look(secret: &SecretConfig) -> Result<(SecretState, Option<SecretValue>)> {
    let value = match &secret.source {
        SecretSource::File => {
            let metadata = fs::metadata(&secret.path)
                .map_err(|error| GuestError::io(&format!("use secret `{}` at", secret.id), &secret.path, error))?;
            if !metadata.is_file() {
                return Err(GuestError::user(format!("secret `{}`: `{}` is no file", secret.id, secret.path.display())));
            }
            return Ok((SecretState::Kept, None));
        }
        SecretSource::Env(variable) => match std::env::var_os(variable) {
            Some(value) if !value.is_empty() => std::os::unix::ffi::OsStringExt::into_vec(value),
            _ => {
                return Err(GuestError::user(format!("secret `{}`: the environment has no `{variable}`", secret.id))
                    .hint(format!("set it for this command: `{variable}=... vmctl apply`")));
            }
        },
        SecretSource::Command { words, timeout } => printed(secret, words, *timeout)?,
    };
    if value.len() > MAX_BYTES {
        return Err(GuestError::user(format!("secret `{}` is longer than 64 KiB", secret.id)));
    }
    let state = match fs::read(&secret.path) {
        Ok(kept) if kept == value => SecretState::Kept,
        Ok(_) => SecretState::Changed,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => SecretState::New,
        Err(error) => return Err(GuestError::io(&format!("read secret `{}` at", secret.id), &secret.path, error)),
    };
    Ok((state, Some(SecretValue(value))))
}

/// Keeps a secret for the guests: in a private directory and file.
pub fn keep(secret: &SecretConfig, value: &SecretValue) -> Result<()> {
    let directory = secret.path.parent().unwrap_or(Path::new("/"));
    private_directory(directory).map_err(|error| GuestError::io("keep secrets in", directory, error))?;
    write_atomically(&secret.path, &value.0, 0o600)
        .map_err(|error| GuestError::io(&format!("write secret `{}` to", secret.id), &secret.path, error))
}

/// Returns the output of a secret's command, without its final line end.
fn printed(secret: &SecretConfig, words: &[String], timeout: std::time::Duration) -> Result<Vec<u8>> {
    let failed = |why: String| GuestError::user(format!("secret `{}`: `{}` {why}", secret.id, words[0]));
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit());
    if let Some(directory) = &secret.location.source.directory {
        command.current_dir(directory);
    }
    let mut child = command.spawn().map_err(|error| failed(format!("cannot be run: {error}")))?;
    let stdout = child.stdout.take().expect("piped above");
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut value = Vec::new();
        let read = stdout.take(MAX_BYTES as u64 + 1).read_to_end(&mut value);
        let _ = sender.send(read.map(|_| value));
    });
    let started = Instant::now();
    let value = receiver.recv_timeout(timeout);
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if value.is_ok() && started.elapsed() < timeout => std::thread::sleep(std::time::Duration::from_millis(5)),
            _ => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(failed(format!("has not ended within {}", crate::units::format_duration(timeout))));
            }
        }
    };
    let mut value = match value {
        Ok(Ok(value)) => value,
        _ => return Err(failed("cannot be read from".into())),
    };
    if !status.success() {
        return Err(failed(format!("failed ({status})")));
    }
    if value.ends_with(b"\n") {
        value.pop();
    }
    if value.is_empty() {
        return Err(failed("printed nothing".into()));
    }
    Ok(value)
}
