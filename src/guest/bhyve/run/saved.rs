//! A guest's saved state: three files of bhyve's, and a note of ours that makes them count.

use std::io;
use std::path::PathBuf;

use crate::host::files::write_atomically;

use super::plan::Saved;

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

    /// bhyve has written everything: from now on it counts.
    pub fn keep(&self) -> io::Result<()> {
        match self.files().iter().all(|file| file.is_file()) {
            true => write_atomically(&self.note(), self.fingerprint.as_bytes(), 0o600),
            false => Ok(()),
        }
    }

    /// Forgets it: the guest has gone on, and its disks are no longer what they were.
    pub fn forget(&self) {
        // The note first: without it the rest does not count.
        let _ = std::fs::remove_file(self.note());
        self.files().iter().for_each(|file| drop(std::fs::remove_file(file)));
    }

    /// The fingerprint of what was saved, if anything was.
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
