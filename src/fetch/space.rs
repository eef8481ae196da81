//! Free space: reports a full disk before writing to it.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::error::{self, FetchError, Result};
use crate::units::ByteSize;

/// Bytes that are left for the rest of the host.
const RESERVE: u64 = 64 << 20;
/// Number of bytes after which the file system is asked again.
const INTERVAL: u64 = 64 << 20;

/// The room for one file.
#[derive(Debug)]
pub struct Room {
    /// The directory of the file; `None` if nothing bounds it.
    directory: Option<PathBuf>,
    /// Number of bytes that may be written before the file system is asked again.
    left: AtomicU64,
}

impl Room {
    /// Creates the room for a file in a directory.
    pub fn at(directory: &Path) -> Self {
        Self { directory: Some(directory.to_owned()), left: AtomicU64::new(0) }
    }
    /// Creates room without a bound, for sinks that use no space.
    pub fn unbounded() -> Self {
        Self { directory: None, left: AtomicU64::new(u64::MAX) }
    }
    /// Refuses a size that is known not to fit.
    pub fn need(&self, bytes: u64) -> Result<()> {
        let Some(directory) = &self.directory else { return Ok(()) };
        let free = free(directory).map_err(|error| error::io("look at the free space of", directory, error))?;
        if bytes.saturating_add(RESERVE) > free { Err(full(directory, bytes, free)) } else { Ok(()) }
    }
    /// Reserves `bytes` that will be written next.
    pub fn take(&self, bytes: u64) -> Result<()> {
        let taken = self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(bytes));
        if taken.is_ok() {
            return Ok(());
        }
        self.need(bytes.max(INTERVAL))?;
        self.left.store(INTERVAL.saturating_sub(bytes), Ordering::Relaxed);
        Ok(())
    }
    /// Creates the error for a write that failed.
    pub fn failed(&self, error: io::Error) -> FetchError {
        error::io("write in", self.directory.as_deref().unwrap_or(Path::new(".")), error)
    }
}

fn full(directory: &Path, bytes: u64, free: u64) -> FetchError {
    let (bytes, free) = (ByteSize::from_mib(bytes.div_ceil(1 << 20)), ByteSize::from_mib(free >> 20));
    FetchError::host(format!("the file system of `{}` has {free} left, and {bytes} are needed", directory.display()))
        .hint("make room with `vmctl image prune`, or name another `cache_dir` in the host file")
}

/// Returns the free bytes of the file system of `path`, for this user.
fn free(path: &Path) -> io::Result<u64> {
    let stat = nix::sys::statvfs::statvfs(path).map_err(io::Error::from)?;
    #[allow(clippy::unnecessary_cast, reason = "the widths differ between platforms")]
    Ok(stat.blocks_available() as u64 * stat.fragment_size() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_cannot_fit_is_refused_before_it_is_begun() {
        let dir = tempfile::tempdir().unwrap();
        let room = Room::at(dir.path());
        room.need(1).expect("a machine that runs tests has 64 MiB left");
        let error = room.need(1 << 60).unwrap_err();
        assert!(error.to_string().contains("left, and 1024PiB are needed"), "{error}");
        assert!(error.next_step().unwrap().contains("vmctl image prune"));
    }

    #[test]
    fn a_disk_that_fills_up_meanwhile_is_noticed() {
        let room = Room::unbounded();
        room.take(u64::MAX - 1).unwrap();
        assert_eq!(room.left.load(Ordering::Relaxed), 1);
    }
}
