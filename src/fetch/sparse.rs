//! Raw files with holes: writing them in order, and reading them again to check that they are unchanged.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use nix::unistd::{Whence, lseek};

use super::digest::{Algorithm, Digest, Hasher};
use super::error::{self, Result};
use super::image::{HOLE, runs};
use super::progress::Job;
use super::space::Room;
use super::unpack;
use crate::inputs;

/// A writer of a file from its start to its end that leaves holes for blocks of zeros.
#[derive(Debug)]
pub struct SparseWriter<'a> {
    file: &'a File,
    room: &'a Room,
    position: u64,
}

impl<'a> SparseWriter<'a> {
    /// Continues at `position` of a file that has nothing after it.
    pub fn at(file: &'a File, room: &'a Room, position: u64) -> Self {
        Self { file, room, position }
    }
    /// Writes the next bytes.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        // Blocks are those of the file, not of the buffer.
        let first = (HOLE - (self.position % HOLE as u64) as usize) % HOLE;
        let (head, rest) = bytes.split_at(first.min(bytes.len()));
        for part in [head, rest] {
            for (start, end) in runs(part) {
                self.room.take((end - start) as u64)?;
                let offset = self.position + start as u64;
                self.file.write_all_at(&part[start..end], offset).map_err(|error| self.room.failed(error))?;
            }
            self.position += part.len() as u64;
        }
        Ok(())
    }
    /// Sets the file's length to the bytes written, including holes at its end. Returns the length.
    pub fn finish(self) -> Result<u64> {
        self.file.set_len(self.position).map_err(|error| self.room.failed(error))?;
        Ok(self.position)
    }
}

/// Creates a file for this user.
pub fn create(path: &Path) -> Result<File> {
    let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o644).open(path);
    file.map_err(|error| error::io("make", path, error))
}

/// Copies a stream to a file and replaces its contents. Returns its length.
pub fn copy(stream: &mut dyn Read, file: &File, room: &Room, job: &Job<'_>) -> Result<u64> {
    file.set_len(0).map_err(|error| room.failed(error))?;
    let mut writer = SparseWriter::at(file, room, 0);
    let mut buffer = vec![0; 256 << 10];
    loop {
        job.check()?;
        let mut filled = 0;
        while filled < buffer.len() {
            match stream.read(&mut buffer[filled..]) {
                Ok(0) => break,
                Ok(n) => filled += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(unpack::damaged(error)),
            }
        }
        if filled == 0 {
            return writer.finish();
        }
        writer.write(&buffer[..filled])?;
    }
}

/// Size of the pieces that are hashed separately.
const PIECE: u64 = 1 << 20;

/// Computes the digest of a file's contents, with or without holes: the SHA-256 of its length and, for every MiB that
/// is not all zero, of its number and its own SHA-256. Holes cost nothing.
pub fn contents(path: &Path, job: &Job<'_>) -> Result<Digest> {
    let opened = inputs::open(path).and_then(|file| Ok((file.metadata()?.len(), file)));
    let (size, file) = opened.map_err(|error| error::input("open", path, error))?;
    let mut whole = Hasher::new(Algorithm::Sha256);
    whole.update(&size.to_le_bytes());
    let mut buffer = vec![0u8; PIECE as usize];
    let mut position = 0;
    while position < size {
        job.check()?;
        let data = next_data(&file, position, size).map_err(|error| error::io("look for the holes of", path, error))?;
        position = data / PIECE * PIECE;
        if position >= size {
            break;
        }
        let len = PIECE.min(size - position) as usize;
        file.read_exact_at(&mut buffer[..len], position).map_err(|error| error::io("read", path, error))?;
        if runs(&buffer[..len]).next().is_some() {
            whole.update(&(position / PIECE).to_le_bytes());
            whole.update(Digest::of(Algorithm::Sha256, &buffer[..len]).hex().as_bytes());
        }
        position += PIECE;
        job.at(position);
    }
    Ok(whole.finish())
}

/// Returns the position of the next data, or `size` if only holes are left.
fn next_data(file: &File, position: u64, size: u64) -> io::Result<u64> {
    match lseek(file, position as i64, Whence::SeekData) {
        Ok(offset) => Ok((offset as u64).min(size)),
        Err(nix::errno::Errno::ENXIO) => Ok(size),
        // The file system does not know its holes: everything is data.
        Err(nix::errno::Errno::EINVAL) => Ok(position),
        Err(errno) => Err(errno.into()),
    }
}

/// Computes the digest of a file's bytes, from its start.
pub fn whole_file(path: &Path, algorithm: Algorithm, job: &Job<'_>) -> Result<Digest> {
    let mut file = inputs::open(path).map_err(|error| error::input("open", path, error))?;
    file.seek(SeekFrom::Start(0)).map_err(|error| error::io("read", path, error))?;
    let mut hasher = Hasher::new(algorithm);
    let mut buffer = vec![0; 256 << 10];
    let mut done = 0;
    loop {
        job.check()?;
        match file.read(&mut buffer) {
            Ok(0) => return Ok(hasher.finish()),
            Ok(n) => {
                hasher.update(&buffer[..n]);
                done += n as u64;
                job.at(done);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error::io("read", path, error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::progress::Silent;
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn zeros_become_holes_wherever_the_buffers_are_cut() {
        let dir = tempfile::tempdir().unwrap();
        let mut bytes = vec![0u8; 3 << 20];
        bytes[1 << 20..(1 << 20) + 5000].fill(7);
        for cut in [1, 4095, 4096, 100_001] {
            let path = dir.path().join(format!("cut-{cut}"));
            let (file, room) = (create(&path).unwrap(), Room::unbounded());
            let mut writer = SparseWriter::at(&file, &room, 0);
            bytes.chunks(cut).for_each(|part| writer.write(part).unwrap());
            assert_eq!(writer.finish().unwrap(), 3 << 20);
            assert!(std::fs::read(&path).unwrap() == bytes, "{cut}");
            let used = std::fs::metadata(&path).unwrap().blocks() * 512;
            assert!(used < 256 << 10, "cut {cut}: {used} bytes in use");
        }
    }

    #[test]
    fn the_digest_of_contents_is_the_same_with_and_without_holes_and_differs_with_the_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let job = Job::new("x", &Silent);
        let mut bytes = vec![0u8; (5 << 20) + 17];
        bytes[3 << 20] = 1;
        let (dense, sparse) = (dir.path().join("dense"), dir.path().join("sparse"));
        std::fs::write(&dense, &bytes).unwrap();
        copy(&mut &bytes[..], &create(&sparse).unwrap(), &Room::unbounded(), &job).unwrap();
        let digest = contents(&dense, &job).unwrap();
        assert_eq!(contents(&sparse, &job).unwrap(), digest);
        bytes[3 << 20] = 2;
        std::fs::write(&dense, &bytes).unwrap();
        assert_ne!(contents(&dense, &job).unwrap(), digest);
        std::fs::write(&dense, &bytes[..bytes.len() - 1]).unwrap();
        assert_ne!(contents(&dense, &job).unwrap(), digest);
    }
}
