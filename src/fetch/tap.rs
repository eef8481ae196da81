//! Unpacking of a download while it arrives, on a thread of its own, into a file that is not visible before its digest
//! is right.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use super::archive::Choice;
use super::contents::HEAD;
use super::download::Tap;
use super::error::{Fault, FetchError, Result};
use super::progress::{Job, Silent};
use super::space::Room;
use super::{sparse, unpack};

/// The receiver of a download that unpacks it.
pub struct Unpacker {
    path: PathBuf,
    choice: Choice,
    directory: PathBuf,
    state: Unpacking,
}

enum Unpacking {
    /// There are too few bytes to decide.
    Undecided(Vec<u8>),
    /// It is not packed.
    Plain,
    Running(SyncSender<Option<Vec<u8>>>, std::thread::JoinHandle<Result<u64>>),
    Over(Result<u64>),
}

/// Number of pieces between the download and the unpacker.
const PIECES: usize = 16;

impl Unpacker {
    /// Unpacks the chosen file into a new file at `path` on the file system of `directory`.
    pub fn new(path: PathBuf, choice: Choice, directory: &Path) -> Self {
        Self { path, choice, directory: directory.to_owned(), state: Unpacking::Undecided(Vec::new()) }
    }

    fn start(&self) -> Result<Unpacking> {
        let (sender, receiver) = sync_channel(PIECES);
        let (path, choice, room) = (self.path.clone(), self.choice.clone(), Room::at(&self.directory));
        let file = sparse::create(&path)?;
        let work = move || {
            let stream = Pieces { receiver, piece: Vec::new(), at: 0, ended: false };
            let job = Job::new("", &Silent);
            unpack::unpack(Box::new(stream), &choice, &mut |stream| sparse::copy(stream, &file, &room, &job))
        };
        let thread = std::thread::Builder::new().name("unpack".into()).spawn(work);
        let thread = thread.map_err(|error| FetchError::host("cannot start a thread").because(error))?;
        Ok(Unpacking::Running(sender, thread))
    }

    fn send(&mut self, piece: Vec<u8>) -> Result<()> {
        let Unpacking::Running(sender, _) = &self.state else { return Ok(()) };
        if sender.send(Some(piece)).is_ok() {
            return Ok(());
        }
        // The unpacker has the file, or has failed. A full disk ends the download too. Damage is reported once the
        // digest is known.
        let over = self.join();
        match over {
            Err(error) if error.fault() == Fault::Host => Err(error),
            over => {
                self.state = Unpacking::Over(over);
                Ok(())
            }
        }
    }

    fn join(&mut self) -> Result<u64> {
        match std::mem::replace(&mut self.state, Unpacking::Plain) {
            Unpacking::Running(sender, thread) => {
                drop(sender);
                thread.join().unwrap_or_else(|_| Err(FetchError::host("the unpacker has died")))
            }
            Unpacking::Over(result) => result,
            Unpacking::Undecided(_) | Unpacking::Plain => Ok(0),
        }
    }

    fn decide(&mut self, seen: Vec<u8>) -> Result<()> {
        if !unpack::is_packed(&seen) {
            self.state = Unpacking::Plain;
            return Ok(());
        }
        self.state = self.start()?;
        self.send(seen)
    }

    /// Returns the path of the unpacked file, or `None` if the download is not packed.
    pub fn finish(mut self, job: &Job<'_>) -> Result<Option<PathBuf>> {
        if let Unpacking::Undecided(seen) = &mut self.state {
            let seen = std::mem::take(seen);
            self.decide(seen)?;
        }
        if matches!(self.state, Unpacking::Plain) {
            return Ok(None);
        }
        if let Unpacking::Running(sender, thread) = &self.state {
            job.step("unpacking", None, 0);
            let _ = sender.send(None);
            while !thread.is_finished() {
                job.check()?;
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        self.join()?;
        Ok(Some(self.path.clone()))
    }
}

impl Tap for Unpacker {
    fn restart(&mut self) -> Result<()> {
        let _ = self.join();
        let _ = fs::remove_file(&self.path);
        self.state = Unpacking::Undecided(Vec::new());
        Ok(())
    }

    fn bytes(&mut self, bytes: &[u8]) -> Result<()> {
        match &mut self.state {
            Unpacking::Undecided(seen) => {
                seen.extend_from_slice(bytes);
                if seen.len() < HEAD {
                    return Ok(());
                }
                let seen = std::mem::take(seen);
                self.decide(seen)
            }
            Unpacking::Running(..) => self.send(bytes.to_vec()),
            Unpacking::Plain | Unpacking::Over(_) => Ok(()),
        }
    }
}

/// The pieces of a download as a stream. The stream ends without error only if the download did.
struct Pieces {
    receiver: Receiver<Option<Vec<u8>>>,
    piece: Vec<u8>,
    at: usize,
    ended: bool,
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.at == self.piece.len() {
            if self.ended {
                return Ok(0);
            }
            match self.receiver.recv() {
                Ok(Some(piece)) => (self.piece, self.at) = (piece, 0),
                Ok(None) => self.ended = true,
                Err(_) => return Err(io::Error::other("the download was interrupted")),
            }
        }
        let n = buffer.len().min(self.piece.len() - self.at);
        buffer[..n].copy_from_slice(&self.piece[self.at..self.at + n]);
        self.at += n;
        Ok(n)
    }
}
