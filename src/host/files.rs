//! Files: replaced whole or not at all, sparse files made and copied, free space.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::unistd::{Whence, lseek};

/// Replaces `path` with `bytes`: a reader, and a power cut, sees the old file or the new one and nothing between.
pub fn write_atomically(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    put(path, bytes, mode, true)?;
    sync_directory(path.parent().unwrap_or(Path::new(".")))
}

/// Replaces `path` with `bytes`: a reader sees the old file or the new one; after a power cut it may be damaged or gone.
pub fn replace(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    put(path, bytes, mode, false)
}

fn put(path: &Path, bytes: &[u8], mode: u32, durable: bool) -> io::Result<()> {
    let temporary = temporary_name(path);
    let written = (|| {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&temporary)?;
        file.write_all(bytes)?;
        if durable {
            file.sync_all()?;
        }
        fs::rename(&temporary, path)
    })();
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written
}

/// The name beside `path` that is written before it is renamed.
fn temporary_name(path: &Path) -> PathBuf {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(format!(".{}.tmp", std::process::id()));
    path.with_file_name(name)
}

/// Makes renames and new names in a directory durable.
pub fn sync_directory(path: &Path) -> io::Result<()> {
    match File::open(path)?.sync_all() {
        // Some file systems refuse fsync on a directory; there is nothing more to be done on those.
        Err(error) if error.raw_os_error() == Some(nix::libc::EINVAL) => Ok(()),
        other => other,
    }
}

/// Makes a new file of `size` bytes that takes no space yet. An existing file is an error.
pub fn create_sparse(path: &Path, size: u64) -> io::Result<()> {
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    let made = file.set_len(size).and_then(|()| file.sync_all());
    if made.is_err() {
        let _ = fs::remove_file(path);
    }
    made
}

/// Copies a file to a new one and leaves its holes holes. A half-made copy is removed.
pub fn copy_sparse(from: &Path, to: &Path) -> io::Result<()> {
    let source = File::open(from)?;
    let mut target = OpenOptions::new().write(true).create_new(true).mode(0o600).open(to)?;
    let copied = copy_data(&source, &mut target).and_then(|()| target.sync_all());
    if copied.is_err() {
        let _ = fs::remove_file(to);
    }
    copied
}

/// Copies a file to a new one: as a share of the same blocks where the file system can, or else byte by byte, holes left
/// holes. A half-made copy is removed.
pub fn clone_or_copy(from: &Path, to: &Path) -> io::Result<()> {
    let source = File::open(from)?;
    let target = OpenOptions::new().write(true).create_new(true).mode(0o600).open(to)?;
    if share_blocks(&source, &target) {
        return Ok(());
    }
    drop(target);
    fs::remove_file(to)?;
    copy_sparse(from, to)
}

/// ioctl_ficlonerange(2); false where the file system or the two files do not allow it.
#[cfg(target_os = "linux")]
#[allow(unsafe_code)]
fn share_blocks(source: &File, target: &File) -> bool {
    use std::os::fd::AsRawFd;
    // SAFETY: FICLONE takes a descriptor by value; both are open for the time of the call.
    unsafe { libc::ioctl(target.as_raw_fd(), libc::FICLONE, source.as_raw_fd()) == 0 }
}

#[cfg(not(target_os = "linux"))]
fn share_blocks(_source: &File, _target: &File) -> bool {
    false
}

fn copy_data(mut source: &File, target: &mut File) -> io::Result<()> {
    let size = source.metadata()?.len();
    target.set_len(size)?;
    let mut buffer = vec![0u8; 1 << 20];
    let mut position = 0u64;
    while position < size {
        let start = match lseek(source, position as i64, Whence::SeekData) {
            Ok(offset) => offset as u64,
            Err(nix::errno::Errno::ENXIO) => break,
            // The file system, or a device, does not know its holes: everything is data.
            Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOTTY | nix::errno::Errno::EOPNOTSUPP) => position,
            Err(errno) => return Err(errno.into()),
        };
        let end = match lseek(source, start as i64, Whence::SeekHole) {
            Ok(offset) => (offset as u64).min(size),
            Err(_) => size,
        };
        source.seek(SeekFrom::Start(start))?;
        target.seek(SeekFrom::Start(start))?;
        let mut left = end - start;
        while left > 0 {
            let want = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let got = source.read(&mut buffer[..want])?;
            if got == 0 {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the file became shorter while it was copied"));
            }
            target.write_all(&buffer[..got])?;
            left -= got as u64;
        }
        position = end.max(start + 1);
    }
    Ok(())
}

/// How large a disk is and how much of the host it takes: a file's length, a block device's size.
pub fn disk_size(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = fs::metadata(path)?;
    if metadata.file_type().is_block_device() || metadata.file_type().is_char_device() {
        let size = crate::inputs::open_at_once(path)?.seek(SeekFrom::End(0))?;
        return Ok((size, size));
    }
    Ok((metadata.len(), metadata.blocks() * 512))
}

/// Free bytes of the file system that holds `path`.
pub fn free_space(path: &Path) -> io::Result<u64> {
    let stat = nix::sys::statvfs::statvfs(path).map_err(io::Error::from)?;
    #[allow(clippy::unnecessary_cast, reason = "the widths differ between platforms")]
    Ok(stat.blocks_available() as u64 * stat.fragment_size() as u64)
}

/// Makes a directory that only this user enters, or checks that an existing one is such.
pub fn private_directory(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::{DirBuilderExt, MetadataExt};
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    let metadata = std::fs::symlink_metadata(path)?;
    if !metadata.is_dir() || metadata.uid() != nix::unistd::geteuid().as_raw() || metadata.mode() & 0o022 != 0 {
        return Err(std::io::Error::other("it belongs to someone else or others may write to it"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replaced_file_is_whole_and_leaves_no_temporary_behind() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("state.json");
        write_atomically(&path, b"one", 0o644).expect("writes");
        write_atomically(&path, b"two", 0o644).expect("writes");
        assert_eq!(fs::read(&path).expect("reads"), b"two");
        assert_eq!(fs::read_dir(dir.path()).expect("lists").count(), 1);
    }

    #[test]
    fn a_replacement_that_fails_keeps_the_old_file() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("taken");
        fs::create_dir(&path).expect("makes");
        assert!(write_atomically(&path, b"x", 0o644).is_err());
        assert!(path.is_dir());
        assert_eq!(fs::read_dir(dir.path()).expect("lists").count(), 1);
    }

    #[test]
    fn a_sparse_copy_has_the_bytes_and_the_holes() {
        let dir = tempfile::tempdir().expect("a directory");
        let (from, to) = (dir.path().join("a"), dir.path().join("b"));
        create_sparse(&from, 64 << 20).expect("makes");
        let mut file = OpenOptions::new().write(true).open(&from).expect("opens");
        file.seek(SeekFrom::Start(32 << 20)).expect("seeks");
        file.write_all(b"in the middle").expect("writes");
        drop(file);
        copy_sparse(&from, &to).expect("copies");
        let (size, used) = disk_size(&to).expect("stats");
        assert_eq!(size, 64 << 20);
        assert!(used < 8 << 20, "{used} bytes in use");
        let mut file = File::open(&to).expect("opens");
        file.seek(SeekFrom::Start(32 << 20)).expect("seeks");
        let mut word = [0; 13];
        file.read_exact(&mut word).expect("reads");
        assert_eq!(&word, b"in the middle");
    }

    #[test]
    fn a_copy_over_an_existing_file_is_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let (from, to) = (dir.path().join("a"), dir.path().join("b"));
        fs::write(&from, "new").expect("writes");
        fs::write(&to, "old").expect("writes");
        assert_eq!(copy_sparse(&from, &to).expect_err("refused").kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&to).expect("reads"), b"old");
    }
}
