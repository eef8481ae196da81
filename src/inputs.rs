//! Files that a user names: opened without waiting, and read within a bound.
//!
//! A path in a configuration may lead to a FIFO without a writer, to a terminal, or to a device that never ends. Code
//! that reads such a file opens it here: with O_NONBLOCK (POSIX open(2): a FIFO then opens at once), and with fstat(2)
//! once it is open, so that the file cannot be replaced in between.

use std::fs::{File, FileType, Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

/// Opens a regular file for reading, or /dev/null, which usually stands for an empty one. Anything else is an error
/// that names its type.
pub fn open(path: &Path) -> io::Result<File> {
    open_with_length(path).map(|(file, _)| file)
}

/// Opens a regular file. Returns its length too, which may be wrong by the time that it is read.
fn open_with_length(path: &Path) -> io::Result<(File, u64)> {
    let file = open_at_once(path)?;
    let metadata = file.metadata()?;
    match metadata.is_file() || is_null(&metadata) {
        true => Ok((file, metadata.len())),
        false => Err(wrong(metadata.file_type(), "not a regular file")),
    }
}

/// Returns whether a file is /dev/null, under any name.
pub fn is_null(metadata: &Metadata) -> bool {
    metadata.file_type().is_char_device() && std::fs::metadata("/dev/null").is_ok_and(|null| null.rdev() == metadata.rdev())
}

/// Opens a regular file or a disk of the host for reading.
pub fn open_disk(path: &Path) -> io::Result<File> {
    let file = open_at_once(path)?;
    let kind = file.metadata()?.file_type();
    match kind.is_file() || kind.is_block_device() || is_character_disk(&file, kind) {
        true => Ok(file),
        false => Err(wrong(kind, "neither a file nor a disk")),
    }
}

/// Reads all bytes of a regular file that has at most `most` of them.
pub fn read(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let (file, length) = open_with_length(path)?;
    // Room for the whole file: an empty buffer would grow from reads of 32 bytes.
    let mut bytes = Vec::with_capacity(length.min(most) as usize);
    read_open(&file, most, &mut bytes)?;
    Ok(bytes)
}

/// Appends all bytes of an open file that has at most `most` of them.
pub fn read_open(file: &File, most: u64, bytes: &mut Vec<u8>) -> io::Result<()> {
    // The length is not trusted: a file below /proc has none, and another may grow.
    let count = file.take(most.saturating_add(1)).read_to_end(bytes)?;
    match count as u64 > most {
        true => Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("it is longer than {}", words(most)))),
        false => Ok(()),
    }
}

/// Reads the text of a regular file of at most `most` bytes.
pub fn read_text(path: &Path, most: u64) -> io::Result<String> {
    String::from_utf8(read(path, most)?).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        io::Error::new(io::ErrorKind::InvalidData, format!("byte {at} is not UTF-8"))
    })
}

/// Returns whether a text that may be a path or a URL is a URL: a scheme (RFC 3986, 3.1) and `://`.
pub fn is_url(text: &str) -> bool {
    let is_scheme = |scheme: &str| {
        scheme.starts_with(|c: char| c.is_ascii_alphabetic())
            && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte))
    };
    text.split_once("://").is_some_and(|(scheme, _)| is_scheme(scheme))
}

/// Opens a file of any type for reading, without waiting.
pub fn open_at_once(path: &Path) -> io::Result<File> {
    let opened = OpenOptions::new().read(true).custom_flags(nix::libc::O_NONBLOCK | nix::libc::O_NOCTTY).open(path);
    // A socket cannot be opened. The error names it instead of `No such device or address`.
    opened.map_err(|error| match std::fs::metadata(path) {
        Ok(metadata) if metadata.file_type().is_socket() => wrong(metadata.file_type(), "not a regular file"),
        _ => error,
    })
}

/// Returns whether this is a disk of FreeBSD, which is a character device (geom(4)). Devices without a seekable end,
/// like a terminal, are not disks.
fn is_character_disk(file: &File, kind: FileType) -> bool {
    use std::io::{Seek, SeekFrom};
    let mut file = file;
    cfg!(target_os = "freebsd") && kind.is_char_device() && file.seek(SeekFrom::End(0)).is_ok_and(|size| size > 0)
}

fn wrong(kind: FileType, wanted: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, format!("it is {}, {wanted}", name(kind)))
}

/// Returns the type of a file that is not regular, with its article.
fn name(kind: FileType) -> &'static str {
    match kind {
        kind if kind.is_dir() => "a directory",
        kind if kind.is_fifo() => "a FIFO",
        kind if kind.is_socket() => "a socket",
        kind if kind.is_char_device() => "a character device",
        kind if kind.is_block_device() => "a block device",
        _ => "something else",
    }
}

fn words(bytes: u64) -> String {
    match bytes {
        bytes if bytes >= 1 << 20 && bytes % (1 << 20) == 0 => format!("{} MiB", bytes >> 20),
        bytes if bytes >= 1 << 10 && bytes % (1 << 10) == 0 => format!("{} KiB", bytes >> 10),
        bytes => format!("{bytes} bytes"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(path: &Path) -> String {
        read(path, 1 << 20).expect_err("is refused").to_string()
    }

    #[test]
    fn what_is_no_regular_file_is_refused_at_once_and_named() {
        let dir = tempfile::tempdir().expect("a directory");
        let fifo = dir.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).expect("a FIFO");
        let socket = dir.path().join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).expect("a socket");
        assert_eq!(said(&fifo), "it is a FIFO, not a regular file");
        assert_eq!(said(&socket), "it is a socket, not a regular file");
        assert_eq!(said(dir.path()), "it is a directory, not a regular file");
        assert_eq!(said(Path::new("/dev/zero")), "it is a character device, not a regular file");
        for path in [&fifo, &socket, dir.path(), Path::new("/dev/null")] {
            let error = open_disk(path).expect_err("is no disk").to_string();
            assert!(error.ends_with("neither a file nor a disk") || error.ends_with("not a regular file"), "{error}");
        }
    }

    #[test]
    fn dev_null_is_an_empty_file() {
        assert_eq!(read_text(Path::new("/dev/null"), 10).expect("reads"), "");
    }

    #[test]
    fn a_file_is_read_up_to_its_bound_and_no_further() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("file");
        std::fs::write(&file, [b'a'; 2048]).expect("writes");
        assert_eq!(read(&file, 2048).expect("fits").len(), 2048);
        assert_eq!(read(&file, 1024).expect_err("too long").to_string(), "it is longer than 1 KiB");
        std::fs::write(&file, b"ab\xff").expect("writes");
        assert_eq!(read_text(&file, 10).expect_err("no text").to_string(), "byte 2 is not UTF-8");
    }

    #[test]
    fn a_path_with_a_colon_and_slashes_is_no_url() {
        assert!(["https://a/b", "HTTP://a", "a+b.c-1://x"].into_iter().all(is_url));
        assert!(["./a://b", "/x/a://b", "://x", "1a://x", "debian-12", "a b://c", ""].into_iter().all(|text| !is_url(text)));
    }

    #[test]
    fn a_link_leads_to_its_file_and_a_file_of_the_kernel_is_read_without_a_length() {
        let dir = tempfile::tempdir().expect("a directory");
        let (file, link) = (dir.path().join("file"), dir.path().join("link"));
        std::fs::write(&file, b"text").expect("writes");
        std::os::unix::fs::symlink(&file, &link).expect("links");
        assert_eq!(read_text(&link, 10).expect("reads"), "text");
        if cfg!(target_os = "linux") {
            assert!(!read(Path::new("/proc/self/status"), 1 << 20).expect("reads").is_empty());
        }
    }
}
