//! The journal of a boot: it lists the resources that were made for a boot and must be removed. Each is noted in a file
//! in the guest's directory before it is made. The file outlives an engine child that is killed: the next child, or the
//! supervisor when the guest has stopped, undoes it. To undo something that is already gone does no harm.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::guest::error::GuestError;
use crate::guest::store::GuestDir;
use crate::host::bhyvectl::Vm;
use crate::host::files::replace;
use crate::host::iscsi::Target;
use crate::host::jail_run::{self, Standing};
use crate::host::process::boot_id;
use crate::host::program::run;
use crate::host::tap;

use super::outcome::Trouble;

/// Returns the path of a guest's journal.
pub fn file(guest: &GuestDir) -> PathBuf {
    guest.path().join("bhyve.journal")
}

/// A resource that was made, or is about to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Made {
    /// The tap with this description.
    Tap {
        /// See [`tap::NewTap::description`].
        description: String,
        /// The jail of the network stack.
        #[serde(default)]
        jail: Option<String>,
    },
    /// A virtual machine of vmm(4).
    Vm {
        /// Its name.
        name: String,
        /// The jail that it is in.
        jail: Option<String>,
    },
    /// A session with a target of iSCSI.
    Session(Target),
    /// A file or socket of this boot.
    File(PathBuf),
    /// The TPM's process, whose id is in this file.
    Tpm {
        /// See [`crate::host::swtpm::Tpm`].
        pid_file: PathBuf,
    },
}

/// Contents of the file.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Document {
    /// Boot of the host: resources of an earlier boot are gone, except files.
    boot_id: String,
    made: Vec<Made>,
}

/// The journal of one guest.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    made: Vec<Made>,
}

impl Journal {
    /// Reads the journal of an earlier child. A damaged file counts as empty.
    pub fn open(path: &Path) -> Journal {
        let made = std::fs::read(path).map(|text| read(&text, &boot_id())).unwrap_or_default();
        Journal { path: path.to_owned(), made }
    }

    /// Returns whether it has the virtual machine `name` of this guest.
    pub fn has_vm(&self, name: &str) -> bool {
        self.made.iter().any(|made| matches!(made, Made::Vm { name: other, .. } if other == name))
    }

    /// Notes a resource that is about to be made.
    pub fn note(&mut self, made: Made) -> Result<(), Trouble> {
        self.made.push(made);
        self.save().map_err(|error| Trouble::Failed(format!("cannot write `{}`: {error}", self.path.display())))
    }

    /// Undoes everything, the last one first, and continues after a failure. Entries that could not be undone stay in
    /// the journal, and are returned as a message.
    pub fn undo(&mut self) -> Result<(), GuestError> {
        let mut left = Vec::new();
        let mut words = Vec::new();
        while let Some(made) = self.made.pop() {
            if let Err(error) = made.undo() {
                words.push(error.to_string());
                left.push(made);
            }
        }
        left.reverse();
        self.made = left;
        if let Err(error) = self.save() {
            words.push(format!("cannot write `{}`: {error}", self.path.display()));
        }
        if words.is_empty() { Ok(()) } else { Err(GuestError::host(words.join("; "))) }
    }

    fn save(&self) -> std::io::Result<()> {
        if self.made.is_empty() {
            return match std::fs::remove_file(&self.path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            };
        }
        replace(&self.path, &write(&self.made, boot_id()), 0o600)
    }
}

/// Returns the entries of a journal's file that must still be undone in this boot of the host.
pub fn read(text: &[u8], boot_id: &str) -> Vec<Made> {
    let document: Document = serde_json::from_slice(text).unwrap_or_default();
    let survives = |made: &Made| document.boot_id == boot_id || matches!(made, Made::File(_));
    document.made.into_iter().filter(survives).collect()
}

/// Returns the text of a journal's file.
pub fn write(made: &[Made], boot_id: String) -> Vec<u8> {
    serde_json::to_vec(&Document { boot_id, made: made.to_vec() }).expect("plain fields")
}

impl Made {
    fn undo(&self) -> Result<(), GuestError> {
        match self {
            // Interfaces in the stack of a jail that is gone are gone too, or came back to the host.
            Made::Tap { description, jail } => match remove_taps(description, jail.as_deref()) {
                Err(_) if jail.as_deref().is_some_and(|jail| jail_run::standing(jail) == Standing::Missing) => {
                    remove_taps(description, None)
                }
                other => other,
            },
            Made::Vm { name, jail } => {
                let vm = Vm { name: name.clone(), jail: jail.clone() };
                match vm.destroy() {
                    // A jail that is gone cannot be asked. The host may remove its resources.
                    Err(_) if jail.is_some() => Vm { jail: None, ..vm }.destroy(),
                    other => other,
                }
                .map_err(GuestError::from)
            }
            Made::Session(target) => target.detach(),
            Made::File(path) => match std::fs::remove_file(path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    Err(format!("cannot remove `{}`: {error}", path.display()).into())
                }
                _ => Ok(()),
            },
            Made::Tpm { pid_file } => end_tpm(pid_file),
        }
    }
}

fn remove_taps(description: &str, jail: Option<&str>) -> Result<(), GuestError> {
    let taps = tap::described(description, jail)?;
    Ok(taps.iter().try_for_each(|tap| tap::destroy(tap, jail))?)
}

/// Ends the process whose id is in a file of swtpm, if it is still swtpm.
fn end_tpm(pid_file: &Path) -> Result<(), GuestError> {
    let pid = std::fs::read_to_string(pid_file).ok().and_then(|text| text.trim().parse::<i32>().ok()).filter(|pid| *pid > 1);
    if let Some(pid) = pid
        && run("ps", &["-o", "comm=", "-p", &pid.to_string()]).is_ok_and(|name| name.trim().ends_with("swtpm"))
    {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGTERM);
    }
    let _ = std::fs::remove_file(pid_file);
    Ok(())
}

/// Undoes the remains of an engine child that was killed. Does nothing if there are none.
pub fn sweep(path: &Path) -> Result<(), GuestError> {
    match path.exists() {
        true => Journal::open(path).undo(),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_noted_is_found_again_and_gone_when_it_is_undone() {
        let dir = tempfile::tempdir().expect("a directory");
        let (path, made) = (dir.path().join("bhyve.journal"), dir.path().join("made"));
        let mut journal = Journal::open(&path);
        journal.note(Made::File(made.clone())).expect("writes");
        std::fs::write(&made, "x").expect("writes");
        sweep(&path).expect("undone");
        assert!(!made.exists() && !path.exists());
        sweep(&path).expect("nothing to do");
    }

    #[test]
    fn what_the_kernel_forgot_with_the_hosts_last_boot_is_not_looked_for() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("bhyve.journal");
        let made = vec![Made::Vm { name: "g".into(), jail: None }, Made::File(dir.path().join("f"))];
        let old = Document { boot_id: "another".into(), made };
        std::fs::write(&path, serde_json::to_vec(&old).expect("plain")).expect("writes");
        let journal = Journal::open(&path);
        assert!(!journal.has_vm("g"));
        assert_eq!(journal.made.len(), 1);
    }

    #[test]
    fn a_damaged_journal_says_nothing() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("bhyve.journal");
        std::fs::write(&path, "{\"boot_id\":").expect("writes");
        assert!(Journal::open(&path).made.is_empty());
        sweep(&path).expect("removes it");
        assert!(!path.exists());
    }
}
