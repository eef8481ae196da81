//! Changing the bytes of a small file where they are, without knowing how its file system makes files. GRUB does so with its
//! environment block (GRUB, `grub-core/commands/loadenv.c`): it notes the sectors that reading the file has read, and writes
//! them. The readers here do not say where a file's bytes are, so it is found and then proven:
//!
//! 1. The file is read anew, through a fresh reader; the places of the disk that were read and hold the file's bytes, whole and
//!    in one piece, are candidates.
//! 2. For each candidate another fresh reader reads the file on a disk on which only these bytes are exchanged for the new
//!    ones. If the file has the new bytes there, they are the file's.
//! 3. The place is read once more from the disk itself, and written.
//!
//! **Hostile guest**: whatever the file system claims, only a place inside of its own partition is written, only if it holds
//! exactly the old bytes, and only if the file then has the new ones. So nothing else on the disk changes, and a file whose
//! bytes are in several pieces, compressed or made up is left alone. Candidates and readings are counted.

use std::collections::BTreeSet;
use std::io;
use std::sync::{Arc, Mutex};

use super::probe::{Found, probe};
use super::{FileSystem, Medium, VolumeError};
use crate::devices::disk::DiskReader;

/// File systems' blocks begin at a multiple of it.
const SECTOR: usize = 512;
/// Places that are tried.
const MAX_CANDIDATES: usize = 16;

/// Why a file was left as it is.
#[derive(Debug, thiserror::Error)]
pub enum InPlaceError {
    /// The file system does not allow it, for this reason.
    #[error("{0}")]
    Pinned(&'static str),
    /// The file is not what it was.
    #[error("it is not on the disk as it was read")]
    Changed,
    /// No place of the disk holds the file's bytes.
    #[error("its bytes are not in one place of the disk")]
    NotInOnePlace,
    /// It cannot be read.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// It cannot be written.
    #[error("cannot write the disk: {0}")]
    Disk(#[from] io::Error),
}

/// A disk on which some bytes are others, and that notes where a block's bytes were seen.
struct Watched {
    disk: Arc<dyn DiskReader>,
    /// What the sector that is looked for begins with.
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

/// A fresh reader of what is on `medium`, on another disk.
fn reader(medium: &Medium, disk: Arc<Watched>) -> Result<Box<dyn FileSystem>, InPlaceError> {
    match probe(&medium.on(disk)) {
        Found::Volume(volume) => Ok(volume),
        Found::Broken(error) => Err(error.into()),
        Found::Named(_) | Found::Unknown => Err(InPlaceError::Changed),
    }
}

/// Exchanges the bytes of the file at `path`, which were `before` when it was read, for as many others.
pub fn replace(volume: &dyn FileSystem, path: &str, before: &[u8], after: &[u8]) -> Result<(), InPlaceError> {
    let (medium, place) = (volume.window(), find(volume, path, before, after)?);
    medium.disk().write_at(place, after)?;
    medium.forget(place, after.len() as u64);
    Ok(())
}

/// Whether [`replace`] would know what to write, which only the writing itself can still fail.
pub fn look(volume: &dyn FileSystem, path: &str, before: &[u8], after: &[u8]) -> Result<(), InPlaceError> {
    find(volume, path, before, after).map(drop)
}

/// The place on the disk.
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
