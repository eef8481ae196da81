//! Changing the bytes of a small file in place, without support for writing its file system. GRUB does so with its
//! environment block (GRUB, `grub-core/commands/loadenv.c`): it notes the sectors that are read with the file, and
//! writes them. The readers here do not report the position of a file's bytes, so it is searched for and then proven:
//!
//! 1. The file is read again, through a fresh reader. The positions on the disk that were read and hold the file's
//!    bytes, complete and in one piece, are candidates.
//! 2. For each candidate another fresh reader reads the file on a disk on which only these bytes are replaced by the
//!    new ones. If the file then has the new bytes, the position is the file's.
//! 3. The position is read once more from the disk itself, and written.
//!
//! **Hostile guest**: whatever the file system claims, only bytes inside of its own partition are written, only if they
//! are exactly the old bytes, and only if the file then has the new ones. So nothing else on the disk changes, and a
//! file whose bytes are in several pieces, compressed or computed is not written. The number of candidates and reads is
//! bounded.

use std::collections::BTreeSet;
use std::io;
use std::sync::{Arc, Mutex};

use super::probe::{Found, probe};
use super::{FileSystem, Medium, VolumeError};
use crate::devices::disk::DiskReader;

/// Blocks of file systems begin at a multiple of this.
const SECTOR: usize = 512;
/// Maximum number of positions that are tried.
const MAX_CANDIDATES: usize = 16;

/// Reason why a file was not written.
#[derive(Debug, thiserror::Error)]
pub enum InPlaceError {
    /// The file system does not allow it, for this reason.
    #[error("{0}")]
    Pinned(&'static str),
    /// The file has changed.
    #[error("it is not on the disk as it was read")]
    Changed,
    /// No position on the disk holds all of the file's bytes.
    #[error("its bytes are not in one place of the disk")]
    NotInOnePlace,
    /// It cannot be read.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// It cannot be written.
    #[error("cannot write the disk: {0}")]
    Disk(#[from] io::Error),
}

/// A disk on which some bytes are replaced, and that notes where a block's bytes were read.
struct Watched {
    disk: Arc<dyn DiskReader>,
    /// The beginning of the sector that is searched for.
    wanted: Vec<u8>,
    seen: Mutex<BTreeSet<u64>>,
    exchanged: Option<(u64, Vec<u8>)>,
}

impl DiskReader for Watched {
    fn size_bytes(&self) -> u64 {
        self.disk.size_bytes()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.disk.read_at(offset, buffer)?;
        if let Some((at, bytes)) = &self.exchanged {
            for (byte, place) in buffer.iter_mut().zip(offset..) {
                if let Some(other) = place.checked_sub(*at).and_then(|index| bytes.get(index as usize)) {
                    *byte = *other;
                }
            }
            return Ok(());
        }
        let mut seen = self.seen.lock().expect("no panic happens under this lock");
        let first = (offset.next_multiple_of(SECTOR as u64) - offset) as usize;
        for (number, sector) in buffer.get(first..).unwrap_or_default().chunks_exact(SECTOR).enumerate() {
            if seen.len() < MAX_CANDIDATES && sector.starts_with(&self.wanted) {
                seen.insert(offset + (first + number * SECTOR) as u64);
            }
        }
        Ok(())
    }
}

/// Creates a fresh reader of the contents of `medium`, on another disk.
fn reader(medium: &Medium, disk: Arc<Watched>) -> Result<Box<dyn FileSystem>, InPlaceError> {
    match probe(&medium.on(disk)) {
        Found::Volume(volume) => Ok(volume),
        Found::Broken(error) => Err(error.into()),
        Found::Named(_) | Found::Unknown => Err(InPlaceError::Changed),
    }
}

/// Replaces the bytes of the file at `path`, which were `before` when it was read, by as many others.
pub fn replace(volume: &dyn FileSystem, path: &str, before: &[u8], after: &[u8]) -> Result<(), InPlaceError> {
    let (medium, place) = (volume.window(), find(volume, path, before, after)?);
    medium.disk().write_at(place, after)?;
    medium.forget(place, after.len() as u64);
    Ok(())
}

/// Checks whether [`replace`] would find the position. Then only the writing itself can still fail.
pub fn look(volume: &dyn FileSystem, path: &str, before: &[u8], after: &[u8]) -> Result<(), InPlaceError> {
    find(volume, path, before, after).map(drop)
}

/// Finds the position on the disk.
fn find(volume: &dyn FileSystem, path: &str, before: &[u8], after: &[u8]) -> Result<u64, InPlaceError> {
    let (medium, len) = (volume.window(), before.len());
    if len == 0 || after.len() != len {
        return Err(InPlaceError::NotInOnePlace);
    }
    let watched = |exchanged| {
        let (disk, wanted) = (Arc::clone(medium.disk()), before[..len.min(SECTOR)].to_vec());
        Arc::new(Watched { disk, wanted, seen: Mutex::default(), exchanged })
    };
    let looked = watched(None);
    let fresh = reader(medium, Arc::clone(&looked))?;
    if let Some(why) = fresh.pinned(path)? {
        return Err(InPlaceError::Pinned(why));
    }
    if fresh.read(path, len as u64)? != before {
        return Err(InPlaceError::Changed);
    }
    let mut on_disk = vec![0; len];
    let mut holds = |at: u64| {
        let inside = medium.range().contains(&at) && at + len as u64 <= medium.range().end;
        inside && medium.disk().read_at(at, &mut on_disk).is_ok() && on_disk == before
    };
    let seen = std::mem::take(&mut *looked.seen.lock().expect("no panic happens under this lock"));
    let is_the_file = |at: &u64| {
        let exchanged = reader(medium, watched(Some((*at, after.to_vec()))));
        exchanged.is_ok_and(|volume| volume.read(path, len as u64).is_ok_and(|bytes| bytes == after))
    };
    seen.into_iter().filter(|&at| holds(at)).find(is_the_file).ok_or(InPlaceError::NotInOnePlace)
}
