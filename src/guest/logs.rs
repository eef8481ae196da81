//! Logs that do not grow without bound: a current file and a number of older ones, with `NAME.1` as the youngest.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::host::files::open_no_foreign_link;

/// A log that is written to by one process.
pub struct RotatingLog {
    path: PathBuf,
    file: Option<File>,
    size: u64,
    limit: u64,
    keep: u32,
    mode: u32,
}

impl RotatingLog {
    /// Continues the log at `path`. At `limit` bytes it becomes `PATH.1` and so on up to `PATH.keep`.
    pub fn open(path: &Path, limit: u64, keep: u32, mode: u32) -> RotatingLog {
        RotatingLog { path: path.to_owned(), file: None, size: 0, limit: limit.max(4096), keep, mode }
    }

    /// Changes the bounds, as after an edit.
    pub fn set_bounds(&mut self, limit: u64, keep: u32) {
        (self.limit, self.keep) = (limit.max(4096), keep);
    }

    /// Appends bytes. After an error (a full disk) the bytes are lost, and the next append opens the file again.
    pub fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let written = self.try_append(bytes);
        if written.is_err() {
            self.file = None;
        }
        written
    }

    fn try_append(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.file.is_some() && self.size > 0 && self.size + bytes.len() as u64 > self.limit {
            self.rotate()?;
        }
        if self.file.is_none() {
            let mut options = OpenOptions::new();
            options.create(true).append(true).mode(self.mode);
            let file = open_no_foreign_link(&options, &self.path)?;
            self.size = file.metadata()?.len();
            self.file = Some(file);
            if self.size > 0 && self.size + bytes.len() as u64 > self.limit {
                self.rotate()?;
                return self.try_append(bytes);
            }
        }
        let file = self.file.as_mut().expect("opened above");
        file.write_all(bytes)?;
        self.size += bytes.len() as u64;
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        self.file = None;
        self.size = 0;
        rotate(&self.path, self.keep)
    }
}

fn rotate(path: &Path, keep: u32) -> io::Result<()> {
    if keep == 0 {
        return fs::remove_file(path);
    }
    // From the oldest down, so that each name is free when it is used. A gap is no error.
    for number in (1..keep).rev() {
        match fs::rename(numbered(path, number), numbered(path, number + 1)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    fs::rename(path, numbered(path, 1))
}

/// Returns the name of an older log.
pub fn numbered(path: &Path, number: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number}"));
    PathBuf::from(name)
}

/// Returns the last `lines` lines of a file, read from its end. At most 4 MiB are read.
pub fn tail(path: &Path, lines: usize) -> io::Result<Vec<u8>> {
    use std::io::{Read, Seek, SeekFrom};
    const MOST: u64 = 4 << 20;
    let mut file = File::open(path)?;
    let size = file.metadata()?.len();
    file.seek(SeekFrom::Start(size.saturating_sub(MOST)))?;
    let mut bytes = Vec::new();
    file.take(MOST).read_to_end(&mut bytes)?;
    let body = bytes.strip_suffix(b"\n").unwrap_or(&bytes);
    let mut start = 0;
    if lines == 0 {
        return Ok(Vec::new());
    }
    let mut seen = 0;
    for (at, byte) in body.iter().enumerate().rev() {
        if *byte == b'\n' {
            seen += 1;
            if seen == lines {
                start = at + 1;
                break;
            }
        }
    }
    Ok(bytes.split_off(start))
}

/// The last line of a log that grows, for a user who waits.
#[derive(Debug)]
pub struct LastLine {
    path: PathBuf,
    /// Size that the file had already.
    since: u64,
    /// Size at the last look.
    seen: u64,
}

impl LastLine {
    /// Creates it for the whole log at `path`.
    pub fn of(path: PathBuf) -> LastLine {
        LastLine { path, since: 0, seen: 0 }
    }

    /// Creates it for what a run wrote that began at `began`: the whole log, unless nothing was written since.
    pub fn since(path: PathBuf, began: SystemTime) -> LastLine {
        let written = fs::metadata(&path).and_then(|metadata| metadata.modified());
        match written {
            Ok(at) if at < began => LastLine::from_now(path),
            _ => LastLine::of(path),
        }
    }

    /// Creates it for what is written from now on.
    pub fn from_now(path: PathBuf) -> LastLine {
        let since = fs::metadata(&path).map_or(0, |metadata| metadata.len());
        LastLine { path, since, seen: since }
    }

    /// Returns the last line that is not empty, if the log has changed since the last call.
    pub fn read(&mut self) -> Option<String> {
        use std::io::{Read, Seek, SeekFrom};
        const MOST: u64 = 4096;
        let mut file = File::open(&self.path).ok()?;
        let size = file.metadata().ok()?.len();
        if size == std::mem::replace(&mut self.seen, size) {
            return None;
        }
        if size < self.since {
            self.since = 0; // a new file
        }
        file.seek(SeekFrom::Start(size.saturating_sub(MOST).max(self.since))).ok()?;
        let mut bytes = Vec::new();
        file.take(MOST).read_to_end(&mut bytes).ok()?;
        let text = without_sequences(&String::from_utf8_lossy(&bytes));
        text.rsplit(['\n', '\r']).map(str::trim).find(|line| !line.is_empty()).map(str::to_owned)
    }
}

/// Returns the text of a terminal without its control sequences (ECMA-48, 5.4, and 8.3.89 for OSC) and without control
/// characters except for the ends of lines.
fn without_sequences(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(char) = chars.next() {
        match char {
            '\x1b' => match chars.next() {
                Some('[') => drop(chars.find(|char| matches!(char, '\x40'..='\x7e'))),
                Some(']') => drop(chars.find(|char| matches!(char, '\x07' | '\x1b' | '\n'))),
                Some(_) | None => {}
            },
            '\n' | '\r' => plain.push(char),
            '\t' => plain.push(' '),
            char if char.is_control() => {}
            char => plain.push(char),
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_log_keeps_its_bounds() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("console.log");
        let mut log = RotatingLog::open(&path, 4096, 2, 0o600);
        for round in 0..40u8 {
            log.append(&[b'a' + round % 26; 1000]).expect("appends");
        }
        let names: Vec<_> = fs::read_dir(dir.path()).expect("lists").map(|e| e.expect("entry").file_name()).collect();
        assert_eq!(names.len(), 3, "{names:?}");
        for number in [path.clone(), numbered(&path, 1), numbered(&path, 2)] {
            assert!(fs::metadata(number).expect("stats").len() <= 4096);
        }
    }

    #[test]
    fn a_log_goes_on_where_it_was_left() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("console.log");
        RotatingLog::open(&path, 4096, 1, 0o600).append(b"one ").expect("appends");
        RotatingLog::open(&path, 4096, 1, 0o600).append(b"two").expect("appends");
        assert_eq!(fs::read(&path).expect("reads"), b"one two");
    }

    #[test]
    fn a_full_disk_loses_bytes_and_nothing_else() {
        let mut log = RotatingLog::open(Path::new("/dev/full"), u64::MAX, 1, 0o600);
        if !Path::new("/dev/full").exists() {
            return;
        }
        assert_eq!(log.append(b"x").expect_err("full").kind(), io::ErrorKind::StorageFull);
        assert!(log.append(b"y").is_err());
    }

    #[test]
    fn the_tail_is_the_last_lines() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("log");
        fs::write(&path, "one\ntwo\nthree\n").expect("writes");
        assert_eq!(tail(&path, 2).expect("reads"), b"two\nthree\n");
        assert_eq!(tail(&path, 9).expect("reads"), b"one\ntwo\nthree\n");
        assert_eq!(tail(&path, 0).expect("reads"), b"");
    }

    #[test]
    fn the_last_line_is_without_colours_and_none_of_before() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("log");
        assert_eq!(LastLine::of(path.clone()).read(), None);
        fs::write(&path, "of an earlier boot\n").expect("writes");
        let mut last = LastLine::from_now(path.clone());
        assert_eq!(last.read(), None);
        let append = |text: &str| RotatingLog::open(&path, 4096, 1, 0o600).append(text.as_bytes()).expect("appends");
        append("[\x1b[0;32m  OK  \x1b[0m] Started ssh\r\n\x1b]0;title\x07\r\n");
        assert_eq!(last.read().as_deref(), Some("[  OK  ] Started ssh"));
        assert_eq!(last.read(), None, "nothing new");
        append("10%\r20%");
        assert_eq!(last.read().as_deref(), Some("20%"));
        fs::write(&path, "new\n").expect("writes");
        assert_eq!(last.read().as_deref(), Some("new"), "of a file that was begun again");
        let later = SystemTime::now() + Duration::from_secs(5);
        assert_eq!(LastLine::since(path.clone(), later).read(), None, "of an earlier run");
        let earlier = SystemTime::now() - Duration::from_secs(60);
        assert_eq!(LastLine::since(path, earlier).read().as_deref(), Some("new"));
    }
}
