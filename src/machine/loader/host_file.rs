//! A file of the host that the guest is loaded from, opened before the process is confined.

use std::fs::File;
use std::io::Seek;
use std::path::{Path, PathBuf};

use super::LoadError;
use crate::inputs;

/// A file of the host, open for reading.
#[derive(Debug)]
pub struct HostFile {
    /// What it is to the user: `kernel image`, `initrd`.
    object: &'static str,
    path: PathBuf,
    pub(super) file: File,
    /// Bytes, when it was opened: a confined process cannot ask.
    pub(super) length: u64,
}

impl HostFile {
    /// Opens `path`.
    pub fn open(object: &'static str, path: &Path) -> Result<HostFile, LoadError> {
        let failed = |source| LoadError::Read { object, path: path.to_owned(), source };
        let file = inputs::open(path).map_err(failed)?;
        let length = file.metadata().map_err(failed)?.len();
        Ok(HostFile { object, path: path.to_owned(), file, length })
    }

    /// All that is in it, if that is at most `most` bytes.
    pub fn read(&self, most: u64) -> Result<Vec<u8>, LoadError> {
        // Without its length the buffer would be copied as it grows.
        let mut bytes = Vec::with_capacity(self.length.min(most) as usize);
        let read = (&self.file).rewind().and_then(|()| inputs::read_open(&self.file, most, &mut bytes));
        read.map_err(|source| self.failed(source))?;
        Ok(bytes)
    }

    /// Its name without its directory, which is nothing that a guest should know.
    pub(super) fn name(&self) -> String {
        self.path.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// The error of a file without a byte in it.
    pub(super) fn empty(&self) -> LoadError {
        LoadError::Empty { object: self.object, path: self.path.clone() }
    }

    /// The error of a system call on it.
    pub(super) fn failed(&self, source: std::io::Error) -> LoadError {
        LoadError::Read { object: self.object, path: self.path.clone(), source }
    }
}
