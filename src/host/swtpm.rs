//! swtpm(8), a TPM in software: a process beside the guest, which keeps the TPM's state in a directory.

use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::error::HostError;
use super::process::spawn_tied;
use super::program::find;

/// Time-out until it listens.
const PATIENCE: Duration = Duration::from_secs(10);
/// Maximum number of bytes of its output that are kept for messages.
const LAST_WORDS: usize = 2000;

/// One TPM.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Tpm {
    /// Directory of its state. It is made if it does not exist, for its owner only.
    pub directory: PathBuf,
    /// Socket on which it listens.
    pub socket: PathBuf,
    /// File with its process id.
    pub pid_file: PathBuf,
}

impl Tpm {
    /// Returns its command line: TPM 2.0, with one connection for commands and data, and it ends with the connection.
    pub fn words(&self) -> Vec<String> {
        let text = |path: &PathBuf| path.display().to_string();
        vec![
            "swtpm".into(),
            "socket".into(),
            "--tpm2".into(),
            "--tpmstate".into(),
            format!("dir={}", text(&self.directory)),
            "--server".into(),
            format!("type=unixio,path={}", text(&self.socket)),
            "--flags".into(),
            "not-need-init,startup-clear".into(),
            "--pid".into(),
            format!("file={}", text(&self.pid_file)),
        ]
    }

    /// Starts it and waits until it listens. It is killed when the calling thread ends. Its standard error goes to this
    /// process's own; if it does not start, that is part of the error.
    pub fn start(&self) -> Result<Child, HostError> {
        let failed = |error: io::Error| HostError::user(format!("cannot start `swtpm`: {error}"));
        super::files::private_directory(&self.directory)
            .map_err(|error| format!("cannot use `{}`: {error}", self.directory.display()))?;
        let _ = std::fs::remove_file(&self.socket);
        let words = self.words();
        let mut command = Command::new(find("swtpm").ok_or("there is no program `swtpm`")?);
        let (heard, theirs) = io::pipe().map_err(failed)?;
        command.args(&words[1..]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(theirs);
        let mut child = spawn_tied(&mut command, &[]).map_err(failed)?;
        drop(command);
        let listener = std::thread::Builder::new().spawn(move || pass_on(heard)).map_err(|error| {
            let _ = child.kill();
            let _ = child.wait();
            failed(error)
        })?;
        let last_words = || match listener.join().unwrap_or_default() {
            words if words.is_empty() => String::new(),
            words => format!(": {words}"),
        };
        let until = Instant::now() + PATIENCE;
        while !self.socket.exists() {
            if let Ok(Some(status)) = child.try_wait() {
                return Err(format!("`swtpm` ended at once ({status}){}", last_words()).into());
            }
            if Instant::now() > until {
                let _ = child.kill();
                let _ = child.wait();
                return Err(format!("`swtpm` does not listen after {} s{}", PATIENCE.as_secs(), last_words()).into());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(child)
    }
}

/// Copies swtpm's output to standard error until it ends, and returns the end of it in one line.
fn pass_on(mut from: io::PipeReader) -> String {
    let (mut kept, mut buffer) = (Vec::new(), [0; 1024]);
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        let _ = io::stderr().write_all(&buffer[..count]);
        kept.extend_from_slice(&buffer[..count]);
        kept.drain(..kept.len().saturating_sub(LAST_WORDS));
    }
    let text = String::from_utf8_lossy(&kept);
    text.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join("; ")
}
