//! Operations on files: replacing a file atomically, making and copying sparse files, free space.
//!
//! A file that is being written has a temporary name until it is complete ([`write_atomically`], [`make_new`]), and is
//! locked with flock(2) for as long as its writer lives. So a process that finds such a file knows whether its writer
//! is gone ([`sweep`]).

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::unistd::{Whence, lseek};

/// Replaces `path` with `bytes`. A reader sees the old file or the new one and nothing between, even after a power cut.
pub fn write_atomically(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    put(path, bytes, mode, true)?;
    sync_directory(path.parent().unwrap_or(Path::new(".")))
}

/// Replaces `path` with `bytes`. A reader sees the old file or the new one. After a power cut it may be damaged or
/// gone.
pub fn replace(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    put(path, bytes, mode, false)
}

/// Replaces a file of the user as [`write_atomically`] does. The new file has the old one's mode, and its owner if this
/// process may give files away. A link stays a link.
pub fn rewrite(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let path = &fs::canonicalize(path)?;
    let before = fs::metadata(path)?;
    let temporary = temporary_name(path);
    let written = (|| {
        let mut file = claim(&temporary, 0o600)?;
        file.write_all(bytes)?;
        // Root may edit the file of a user, who must still be able to read it. Other users cannot give files away.
        let _ = std::os::unix::fs::fchown(&file, Some(before.uid()), Some(before.gid()));
        file.set_permissions(Permissions::from_mode(before.mode() & 0o7777))?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    })();
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written?;
    sync_directory(path.parent().unwrap_or(Path::new(".")))
}

fn put(path: &Path, bytes: &[u8], mode: u32, durable: bool) -> io::Result<()> {
    let temporary = temporary_name(path);
    let written = (|| {
        let mut file = claim(&temporary, mode)?;
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

/// Makes a new file, which is not visible before `fill` has filled it and it is on the disk. An existing file is an
/// error and is not changed.
pub fn make_new(path: &Path, fill: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<()> {
    if fs::symlink_metadata(path).is_ok() {
        return Err(io::ErrorKind::AlreadyExists.into());
    }
    let temporary = temporary_name(path);
    let made = (|| {
        let mut file = claim(&temporary, 0o600)?;
        fill(&mut file)?;
        file.sync_all()?;
        rename_new(&temporary, path)
    })();
    if made.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    made?;
    sync_directory(path.parent().unwrap_or(Path::new(".")))
}

/// Renames a file to a name that is free. If a file gets the name meanwhile, it stays.
fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    match fs::hard_link(from, to) {
        Ok(()) => fs::remove_file(from),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(error),
        // The file system has no links. Only a foreign program could have taken the name since the check.
        Err(_) if fs::symlink_metadata(to).is_err() => fs::rename(from, to),
        Err(_) => Err(io::ErrorKind::AlreadyExists.into()),
    }
}

/// Opens `path`, but not through a symbolic link that a user other than root and this one has made: where such a user
/// may write into a directory, the link may lead anywhere.
pub fn open_no_foreign_link(options: &OpenOptions, path: &Path) -> io::Result<File> {
    match options.clone().custom_flags(nix::libc::O_NOFOLLOW).open(path) {
        // ELOOP on Linux, EMLINK on FreeBSD (open(2)).
        Err(error) if matches!(error.raw_os_error(), Some(nix::libc::ELOOP | nix::libc::EMLINK)) => {
            let owner = fs::symlink_metadata(path)?.uid();
            if owner != 0 && owner != nix::unistd::geteuid().as_raw() {
                let message = format!("it is a symbolic link of user {owner}");
                return Err(io::Error::new(io::ErrorKind::PermissionDenied, message));
            }
            options.open(path)
        }
        opened => opened,
    }
}

/// Returns the temporary name beside `path`.
fn temporary_name(path: &Path) -> PathBuf {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(format!(".{}.tmp", std::process::id()));
    path.with_file_name(name)
}

/// Returns the file for which a name is the temporary name.
pub fn temporary_of(name: &str) -> Option<&str> {
    let (file, pid) = name.strip_prefix('.')?.strip_suffix(".tmp")?.rsplit_once('.')?;
    (!file.is_empty() && !pid.is_empty() && pid.bytes().all(|byte| byte.is_ascii_digit())).then_some(file)
}

/// Opens an empty temporary file and locks it, so that it is not taken for an abandoned one.
fn claim(path: &Path, mode: u32) -> io::Result<File> {
    loop {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(true).mode(mode);
        let file = open_no_foreign_link(&options, path)?;
        file.lock()?;
        if is_still_there(&file, path) {
            return Ok(file);
        }
    }
}

/// Returns whether an open file still has this name.
pub fn is_still_there(file: &File, path: &Path) -> bool {
    match (file.metadata(), fs::metadata(path)) {
        (Ok(ours), Ok(theirs)) => (ours.dev(), ours.ino()) == (theirs.dev(), theirs.ino()),
        _ => false,
    }
}

/// Returns the half-written files in a directory whose writers are gone. `is_one` recognises them by their names.
pub fn abandoned(directory: &Path, is_one: impl Fn(&str) -> bool) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let named = entries.filter(|entry| entry.file_name().to_str().is_some_and(&is_one)).map(|entry| entry.path());
    named.filter(|path| open_plain(path).is_ok_and(|file| file.try_lock_shared().is_ok())).collect()
}

/// Removes the files that [`abandoned`] finds.
pub fn sweep(directory: &Path, is_one: impl Fn(&str) -> bool) {
    for path in abandoned(directory, is_one) {
        if let Ok(file) = open_plain(&path)
            && file.try_lock().is_ok()
            && is_still_there(&file, &path)
        {
            let _ = fs::remove_file(&path);
        }
    }
}

/// Opens a file of this program for reading. It does not follow a link and does not wait for a pipe.
pub fn open_plain(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK).open(path)
}

/// Opens a lock file that only its owner can open, since flock(2) needs no more than an open file. One that others
/// could open is repaired.
pub fn open_lock(path: &Path) -> io::Result<File> {
    let flags = nix::libc::O_NOFOLLOW;
    let file =
        OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).custom_flags(flags).open(path)?;
    close_to_others(&file);
    Ok(file)
}

/// Denies other users access to a lock file of this user.
pub fn close_to_others(file: &File) {
    if let Ok(metadata) = file.metadata()
        && metadata.mode() & 0o077 != 0
        && metadata.uid() == nix::unistd::geteuid().as_raw()
    {
        let _ = file.set_permissions(Permissions::from_mode(0o600));
    }
}

/// Returns the mode of a file, for a copy with the same contents: whoever could not read the one cannot read the other.
pub fn mode_of(path: &Path) -> u32 {
    fs::metadata(path).map_or(0o600, |metadata| metadata.mode() & 0o666 | 0o600)
}

/// Makes a directory and its parents, as mkdir(2) does with a mode. An existing one is accepted. A link without a
/// target is reported as such.
pub fn make_directory(path: &Path, mode: u32) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new().recursive(true).mode(mode).create(path).map_err(|error| {
        let links = path.ancestors().filter(|above| fs::symlink_metadata(above).is_ok_and(|it| it.is_symlink()));
        match links.filter_map(|link| Some((link, fs::read_link(link).ok()?))).find(|(link, _)| !link.exists()) {
            Some((link, target)) => io::Error::new(
                io::ErrorKind::NotFound,
                format!("`{}` is a link to `{}`, which does not exist", link.display(), target.display()),
            ),
            None => error,
        }
    })
}

/// Makes renames and new names in a directory durable.
pub fn sync_directory(path: &Path) -> io::Result<()> {
    match File::open(path)?.sync_all() {
        // Some file systems refuse fsync on a directory. Nothing more can be done on those.
        Err(error) if error.raw_os_error() == Some(nix::libc::EINVAL) => Ok(()),
        other => other,
    }
}

/// Makes a new file of `size` bytes that takes no space yet. An existing file is an error.
pub fn create_sparse(path: &Path, size: u64) -> io::Result<()> {
    make_new(path, |file| file.set_len(size))
}

/// Copies a file to a new one and preserves its holes. An incomplete copy is removed.
pub fn copy_sparse(from: &Path, to: &Path) -> io::Result<()> {
    let source = File::open(from)?;
    make_new(to, |target| copy_data(&source, target))
}

/// Copies a file to a new one, as [`clone_or_copy_into`] does.
pub fn clone_or_copy(from: &Path, to: &Path) -> io::Result<()> {
    make_new(to, |target| clone_or_copy_into(from, target))
}

/// Copies a file into an empty one. It shares the blocks if the file system can; otherwise it copies the bytes and
/// preserves holes.
pub fn clone_or_copy_into(from: &Path, target: &mut File) -> io::Result<()> {
    let source = File::open(from)?;
    if share_blocks(&source, target) {
        return Ok(());
    }
    copy_data(&source, target)
}

/// Calls ioctl_ficlonerange(2). Returns false if the file system or the two files do not allow it.
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

/// Returns the size of a disk and its usage of the host: a file's length, or a block device's size.
pub fn disk_size(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = fs::metadata(path)?;
    if metadata.file_type().is_block_device() || metadata.file_type().is_char_device() {
        let size = crate::inputs::open_at_once(path)?.seek(SeekFrom::End(0))?;
        return Ok((size, size));
    }
    Ok((metadata.len(), metadata.blocks() * 512))
}

/// Returns the free bytes of the file system that holds `path`.
pub fn free_space(path: &Path) -> io::Result<u64> {
    let stat = nix::sys::statvfs::statvfs(path).map_err(io::Error::from)?;
    #[allow(clippy::unnecessary_cast, reason = "the widths differ between platforms")]
    Ok(stat.blocks_available() as u64 * stat.fragment_size() as u64)
}

/// Whether the file system of a directory, or of the nearest one that is there, takes a file of `size` bytes with holes. A
/// directory that nothing can be made in is not asked.
pub fn can_hold(directory: &Path, size: u64) -> io::Result<()> {
    // The directories that are missing will be made on the file system of the nearest one that exists.
    if directory.ancestors().find_map(|directory| free_space(directory).ok()).is_some_and(|free| free >= size) {
        return Ok(());
    }
    let Some(directory) = directory.ancestors().find(|directory| directory.is_dir()) else { return Ok(()) };
    let probe = directory.join(format!(".probe-{}", std::process::id()));
    let made = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&probe);
    let Ok(file) = made else { return Ok(()) };
    let removed = fs::remove_file(&probe);
    file.set_len(size).and(removed)
}

/// Makes a directory that only this user may enter, or checks that an existing one is like that.
pub fn private_directory(path: &Path) -> std::io::Result<()> {
    make_directory(path, 0o700)?;
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

    #[test]
    fn what_a_killed_writer_left_is_swept_and_what_a_living_one_writes_is_not() {
        let dir = tempfile::tempdir().expect("a directory");
        let left = dir.path().join(".state.json.4194305.tmp");
        fs::write(&left, "half").expect("writes");
        let alive = dir.path().join(".state.json.4194306.tmp");
        let file = claim(&alive, 0o644).expect("opens");
        let other = dir.path().join(".state.json.tmp");
        fs::write(&other, "of the user").expect("writes");
        let is_one = |name: &str| temporary_of(name) == Some("state.json");
        assert_eq!(abandoned(dir.path(), is_one), std::slice::from_ref(&left));
        sweep(dir.path(), is_one);
        assert!(!left.exists() && alive.exists() && other.exists());
        drop(file);
        sweep(dir.path(), is_one);
        assert!(!alive.exists() && other.exists());
    }

    #[test]
    fn a_file_that_is_made_is_seen_when_it_is_whole_and_never_takes_a_name_that_is_taken() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("disk.raw");
        let failed = make_new(&path, |file| {
            assert!(!path.exists());
            file.write_all(b"half").and(Err(io::ErrorKind::StorageFull.into()))
        });
        assert!(failed.is_err());
        assert_eq!(fs::read_dir(dir.path()).expect("lists").count(), 0);
        make_new(&path, |file| file.write_all(b"whole")).expect("makes");
        let taken = make_new(&path, |_| Ok(())).expect_err("refused");
        assert_eq!((taken.kind(), fs::read(&path).expect("reads")), (io::ErrorKind::AlreadyExists, b"whole".to_vec()));
        // Another process takes the name while the file is being made.
        let late = dir.path().join("late.raw");
        let raced = make_new(&late, |_| fs::write(&late, "another's"));
        assert_eq!(raced.expect_err("refused").kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&late).expect("reads"), b"another's");
        assert_eq!(fs::read_dir(dir.path()).expect("lists").count(), 2);
    }

    #[test]
    fn a_rewritten_file_keeps_its_mode_whatever_the_umask() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("guest.toml");
        for mode in [0o600, 0o664, 0o640] {
            fs::write(&path, "a").expect("writes");
            fs::set_permissions(&path, Permissions::from_mode(mode)).expect("sets");
            rewrite(&path, b"b").expect("writes");
            assert_eq!(fs::metadata(&path).expect("there").mode() & 0o777, mode);
        }
    }

    #[test]
    fn a_file_that_is_rewritten_through_a_link_leaves_the_link() {
        let dir = tempfile::tempdir().expect("a directory");
        let (path, link) = (dir.path().join("guest.toml"), dir.path().join("link.toml"));
        fs::write(&path, "a").expect("writes");
        std::os::unix::fs::symlink("guest.toml", &link).expect("links");
        rewrite(&link, b"b").expect("writes");
        assert!(fs::symlink_metadata(&link).expect("there").is_symlink());
        assert_eq!(fs::read(&path).expect("reads"), b"b");
    }

    #[test]
    fn a_lock_file_is_its_owners_alone_and_an_old_one_is_mended() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("lock");
        let mode = || fs::metadata(&path).expect("there").mode() & 0o777;
        drop(open_lock(&path).expect("opens"));
        assert_eq!(mode(), 0o600);
        fs::set_permissions(&path, Permissions::from_mode(0o666)).expect("sets");
        drop(open_lock(&path).expect("opens"));
        assert_eq!(mode(), 0o600);
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&path, &link).expect("links");
        assert!(open_lock(&link).is_err());
    }

    #[test]
    fn a_directory_below_a_link_that_leads_nowhere_names_what_is_missing() {
        let dir = tempfile::tempdir().expect("a directory");
        let link = dir.path().join("ds");
        std::os::unix::fs::symlink("/no/such/disk", &link).expect("links");
        let error = make_directory(&link.join("guests"), 0o755).expect_err("refused").to_string();
        assert!(error.contains("is a link to `/no/such/disk`, which does not exist"), "{error}");
    }
}
