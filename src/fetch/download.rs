//! Download of a file: resumed after an interruption, from mirrors in turn, hashed while it arrives.
//!
//! The bytes received so far are kept in `KEY.part`, with a note of their origin in `KEY.json`, so that a later run
//! resumes there. Only bytes of one file of one server are combined: the rest is requested with `If-Range` or, if a
//! digest is known that decides in the end, from any mirror whose file has the same length. If a resumed file has the
//! wrong digest, it was combined from two files or damaged on the disk; it is fetched once more from its start.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::digest::{Algorithm, Digest, Hasher};
use super::error::{self, FetchError, Result};
use super::net::{Have, Head, Net, Taker, Trouble};
use super::progress::Job;
use super::space::Room;
use super::sparse::SparseWriter;

/// The file to download.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// URLs, in the order in which they are tried.
    pub urls: Vec<String>,
    /// The expected digest.
    pub digest: Option<Digest>,
    /// The expected length.
    pub size: Option<u64>,
}

/// A receiver that sees the bytes of a download as they arrive, from its start.
pub trait Tap {
    /// Notes that the download begins, or begins again.
    fn restart(&mut self) -> Result<()>;
    /// Receives the next bytes.
    fn bytes(&mut self, bytes: &[u8]) -> Result<()>;
}

/// A finished download.
#[derive(Debug)]
pub struct Downloaded {
    /// Digest of the file: the requested one, or its SHA-256.
    pub digest: Digest,
    /// The last URL that it came from.
    pub url: String,
}

/// Origin of the part.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Origin {
    url: String,
    validator: Option<String>,
    total: Option<u64>,
}

/// A file of which a part may already exist.
#[derive(Debug, Clone)]
pub struct Part {
    path: PathBuf,
    note: PathBuf,
}

impl Part {
    /// Creates a part in a directory, under a name of its own.
    pub fn new(directory: &Path, key: &str) -> Self {
        Self { path: directory.join(format!("{key}.part")), note: directory.join(format!("{key}.json")) }
    }
    /// Returns the path of the bytes.
    pub fn path(&self) -> &Path {
        &self.path
    }
    /// Removes the part.
    pub fn discard(&self) {
        let _ = std::fs::remove_file(&self.path);
        let _ = std::fs::remove_file(&self.note);
    }
    fn origin(&self) -> Option<Origin> {
        serde_json::from_slice(&std::fs::read(&self.note).ok()?).ok()
    }
    /// Stores the origin. If this note is lost or torn, the download only starts again.
    fn remember(&self, origin: &Origin) -> Result<()> {
        let text = serde_json::to_vec(origin).expect("plain fields");
        std::fs::write(&self.note, text).map_err(|error| error::io("write", &self.note, error))
    }
}

/// A download in progress.
struct Run<'a> {
    wanted: &'a Wanted,
    part: &'a Part,
    file: File,
    room: &'a Room,
    job: &'a Job<'a>,
    tap: &'a mut dyn Tap,
    origin: Origin,
    /// Number of bytes in the file, hashed and seen by the tap.
    done: u64,
    hasher: Hasher,
    resumed: bool,
}

/// Downloads into `part`, which holds the whole file afterwards.
pub fn download(net: &Net, wanted: &Wanted, part: &Part, room: &Room, job: &Job<'_>, tap: &mut dyn Tap) -> Result<Downloaded> {
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o644).open(&part.path);
    let file = file.map_err(|error| error::io("open", &part.path, error))?;
    let hasher = Hasher::new(wanted.digest.as_ref().map_or(Algorithm::Sha256, Digest::algorithm));
    let mut run = Run { wanted, part, file, room, job, tap, origin: Origin::default(), done: 0, hasher, resumed: false };
    run.take_up()?;
    let mut failures: Vec<FetchError> = Vec::new();
    for url in &wanted.urls {
        match run.from(net, url) {
            Ok(downloaded) => return Ok(downloaded),
            Err(Trouble::Ours(error)) => return Err(error),
            Err(Trouble::Passing(error) | Trouble::Changed(error) | Trouble::Lasting(error)) => {
                if wanted.urls.len() > 1 {
                    job.note(&with_cause(&error));
                }
                failures.push(error);
            }
        }
    }
    let last = failures.pop().unwrap_or_else(|| FetchError::user("there is no URL to download it from"));
    Err(if failures.is_empty() { last } else { last.within(format!("none of {} mirrors has it whole", wanted.urls.len())) })
}

fn with_cause(error: &FetchError) -> String {
    std::error::Error::source(error).map_or(error.to_string(), |cause| format!("{error}: {cause}"))
}

/// The receiver for the answer of one server.
struct FromOne<'r, 'a> {
    run: &'r mut Run<'a>,
    url: &'r str,
}

impl Taker for FromOne<'_, '_> {
    fn begin(&mut self, head: &Head) -> std::result::Result<(), Trouble> {
        self.run.begin(self.url, head)
    }
    fn piece(&mut self, piece: &[u8]) -> std::result::Result<(), Trouble> {
        self.run.piece(piece).map_err(Trouble::Ours)
    }
}

impl Run<'_> {
    /// Resumes the part of an earlier run.
    fn take_up(&mut self) -> Result<()> {
        let len = self.file.metadata().map_err(|error| error::io("look at", &self.part.path, error))?.len();
        let origin = self.part.origin().filter(|origin| origin.total.is_none_or(|total| len <= total));
        // A part that is longer than the wanted file is of another one.
        let fits = self.wanted.size.is_none_or(|size| len <= size);
        // Without a digest nothing would reveal bytes of another server's file.
        let known = |origin: &Origin| self.wanted.urls.contains(&origin.url) || self.wanted.digest.is_some();
        match origin.filter(|origin| len > 0 && fits && known(origin)) {
            Some(origin) => self.origin = origin,
            None => return self.restart(),
        }
        self.tap.restart()?;
        self.job.step("reading what is here already", Some(len), 0);
        let mut buffer = vec![0; 256 << 10];
        while self.done < len {
            self.job.check()?;
            let n = self.file.read_at(&mut buffer, self.done);
            match n {
                Ok(0) => break,
                Ok(n) => {
                    self.hasher.update(&buffer[..n]);
                    self.tap.bytes(&buffer[..n])?;
                    self.done += n as u64;
                    self.job.at(self.done);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error::io("read", &self.part.path, error)),
            }
        }
        self.resumed = true;
        Ok(())
    }

    /// Begins the file again.
    fn restart(&mut self) -> Result<()> {
        self.file.set_len(0).map_err(|error| error::io("empty", &self.part.path, error))?;
        self.hasher = Hasher::new(self.wanted.digest.as_ref().map_or(Algorithm::Sha256, Digest::algorithm));
        (self.done, self.resumed, self.origin) = (0, false, Origin::default());
        self.tap.restart()
    }

    /// Tries one server until it has sent everything or gives a lasting error.
    fn from(&mut self, net: &Net, url: &str) -> std::result::Result<Downloaded, Trouble> {
        let mut tries = 0;
        loop {
            let before = self.done;
            let trouble = match self.once(net, url) {
                Ok(()) => match self.verify(url) {
                    Ok(downloaded) => return Ok(downloaded),
                    Err(trouble) => trouble,
                },
                Err(trouble) => trouble,
            };
            let error = match trouble {
                Trouble::Passing(error) => error,
                Trouble::Changed(error) => {
                    self.restart().map_err(Trouble::Ours)?;
                    error
                }
                lasting => return Err(lasting),
            };
            // Progress resets the count, so that a slow but working server is never given up.
            tries = if self.done > before { 1 } else { tries + 1 };
            if tries >= net.patience.tries {
                return Err(Trouble::Lasting(error));
            }
            self.job.note(&format!("{}; trying again", with_cause(&error)));
            net.pause(tries, self.job).map_err(Trouble::Ours)?;
        }
    }

    /// Sends one request, for the missing bytes.
    fn once(&mut self, net: &Net, url: &str) -> std::result::Result<(), Trouble> {
        let same = self.origin.url == url;
        let complete = self.done > 0 && self.origin.total == Some(self.done);
        // Everything was there already: only the digest is left to check.
        if complete && (same || self.wanted.digest.is_some()) {
            return Ok(());
        }
        let validator = if same { self.origin.validator.clone() } else { None };
        // Without a validator, the total in the answer must be the known one.
        let trusting = self.wanted.digest.is_some() && self.origin.total.is_some();
        let have = Have { bytes: self.done, validator, trusting };
        let job = self.job;
        net.get(url, &have, job, &mut FromOne { run: self, url })?;
        match self.origin.total {
            Some(total) if self.done < total => {
                Err(Trouble::Passing(FetchError::host(format!("`{url}`: the server sent {} of {total} bytes", self.done))))
            }
            _ => Ok(()),
        }
    }

    fn begin(&mut self, url: &str, head: &Head) -> std::result::Result<(), Trouble> {
        if let (Some(wanted), Some(total)) = (self.wanted.size, head.total)
            && wanted != total
        {
            let message = format!("`{url}` has {total} bytes instead of {wanted}");
            return Err(Trouble::Lasting(FetchError::host(message)));
        }
        // A mirror may have another version of the file under the same name.
        let other_file = head.start > 0 && self.origin.total.zip(head.total).is_some_and(|(known, said)| known != said);
        if head.start != self.done || other_file {
            if self.done > 0 {
                self.job.note(&format!("`{url}` cannot be resumed; the download starts again"));
            }
            self.restart().map_err(Trouble::Ours)?;
            if head.start > 0 {
                return Err(Trouble::Changed(FetchError::host(format!("`{url}`: the file has changed"))));
            }
        }
        self.resumed |= head.start > 0;
        let total = head.total.or(self.wanted.size);
        self.origin = Origin { url: url.to_owned(), validator: head.validator.clone(), total };
        if let Some(total) = total {
            self.room.need(total.saturating_sub(self.done)).map_err(Trouble::Ours)?;
        }
        self.part.remember(&self.origin).map_err(Trouble::Ours)?;
        self.job.step("downloading", total, self.done);
        Ok(())
    }

    fn piece(&mut self, piece: &[u8]) -> Result<()> {
        let mut writer = SparseWriter::at(&self.file, self.room, self.done);
        writer.write(piece)?;
        self.hasher.update(piece);
        self.tap.bytes(piece)?;
        self.done += piece.len() as u64;
        self.job.at(self.done);
        Ok(())
    }

    /// Verifies the length and the digest of a complete file.
    fn verify(&mut self, url: &str) -> std::result::Result<Downloaded, Trouble> {
        SparseWriter::at(&self.file, self.room, self.done).finish().map_err(Trouble::Ours)?;
        let digest = self.hasher.clone().finish();
        let wrong = match (&self.wanted.digest, self.wanted.size) {
            (_, Some(size)) if size != self.done => Some(format!("`{url}` has {} bytes instead of {size}", self.done)),
            (Some(wanted), _) if *wanted != digest => Some(format!("`{url}` has the {digest} instead of {wanted}")),
            _ => None,
        };
        let Some(wrong) = wrong else {
            return Ok(Downloaded { digest, url: url.to_owned() });
        };
        let resumed = self.resumed;
        self.restart().map_err(Trouble::Ours)?;
        let error =
            FetchError::host(wrong).hint("the file was changed after its checksum was published, or on the way; it was not kept");
        // Old and new bytes may be of different versions. A download from the start cannot be mixed, so its failure
        // lasts.
        Err(if resumed { Trouble::Passing(error) } else { Trouble::Lasting(error) })
    }
}
