//! A guest's saved state: three files of bhyve, and a note that makes them valid.

use std::io;
use std::path::PathBuf;

use crate::host::files::write_atomically;

use super::boot_plan::Saved;

impl Saved {
    fn with(&self, suffix: &str) -> PathBuf {
        let mut name = self.memory.as_os_str().to_owned();
        name.push(suffix);
        PathBuf::from(name)
    }

    fn files(&self) -> [PathBuf; 3] {
        [self.memory.clone(), self.with(".kern"), self.with(".meta")]
    }

    fn note(&self) -> PathBuf {
        self.with(".note")
    }

    /// Makes the state valid, since bhyve has written everything.
    pub fn keep(&self) -> io::Result<()> {
        match self.files().iter().all(|file| file.is_file()) {
            true => write_atomically(&self.note(), self.fingerprint.as_bytes(), 0o600),
            false => Ok(()),
        }
    }

    /// Removes the state: the guest has continued, and its disks have changed since.
    pub fn forget(&self) {
        // The note goes first: without it the rest is not valid.
        let _ = std::fs::remove_file(self.note());
        self.files().iter().for_each(|file| drop(std::fs::remove_file(file)));
    }

    /// Returns the fingerprint of the saved state, if there is one.
    pub fn kept(&self) -> Option<String> {
        std::fs::read_to_string(self.note()).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_state_counts_and_a_forgotten_one_is_gone() {
        let dir = tempfile::tempdir().expect("a directory");
        let saved = Saved { memory: dir.path().join("saved"), inside: "/saved".into(), fingerprint: "abc".into() };
        std::fs::write(dir.path().join("saved"), "memory").expect("writes");
        saved.keep().expect("nothing to do");
        assert_eq!(saved.kept(), None);
        for suffix in [".kern", ".meta"] {
            std::fs::write(saved.with(suffix), "x").expect("writes");
        }
        saved.keep().expect("writes");
        assert_eq!(saved.kept().as_deref(), Some("abc"));
        saved.forget();
        assert_eq!(std::fs::read_dir(dir.path()).expect("lists").count(), 0);
    }
}
