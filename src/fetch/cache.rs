//! The cache of files that were fetched, built or imported. Each is kept once, however many names and guests share it.
//!
//! ```text
//! CACHE/
//!   objects/KEY/               one object: disk.raw, medium.iso or firmware.fd; kernel and initrd; object.json; lease
//!   names/KIND/NAME.json       the object that a name stands for, and what is known of it
//!   partial/                   incomplete downloads, to be resumed
//!   work/KEY-PID-N/            objects that are being made; swept when their maker is gone
//!   catalogues/                copies of catalogues from the net
//!   lock                       held while names and objects change
//! ```
//!
//! A key is the digest of the download, of the imported file, or of the recipe of a built image. An object appears
//! whole, by a rename, and never changes. A user of an object holds a [`Lease`], a shared flock(2) on its `lease`. A
//! leased object is not removed. Only their owner can open the lock files, since flock(2) needs no more than an open
//! file.

use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::catalogue::{Facts, Kind, check_name};
use super::digest::Digest;
use super::error::{self, FetchError, Result};
use super::progress::Job;
use super::sparse;

/// Name of an object's own description.
const OBJECT: &str = "object.json";
const LOCK: &str = "lock";
/// Name of the file in an object that its users lock.
const LEASE: &str = "lease";

/// Means to check that an object is unchanged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Seal {
    /// The digest of its bytes.
    Bytes(Digest),
    /// The digest of its contents, as [`sparse::contents`] makes it.
    Contents(Digest),
}

/// Description of an object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Object {
    /// Name of its main file.
    pub file: String,
    /// Means to check that it is unchanged.
    pub seal: Seal,
    /// Bytes of the disk or file.
    pub size_bytes: u64,
    /// A kernel beside it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<String>,
    /// An initial RAM disk beside it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initrd: Option<String>,
}

/// Record of a name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Kind of the object.
    pub kind: Kind,
    /// The name.
    pub name: String,
    /// The key of the object.
    pub object: String,
    /// Where it came from: a URL, a path, a recipe.
    pub source: String,
    /// Size, time and inode of the file that it was imported from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stamp: Option<String>,
    /// The checksum that it was verified with; `None` if there was none.
    pub verified: Option<Digest>,
    /// The digest of what came where there was no checksum, so that the next time is held to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seen: Option<Digest>,
    /// Time of the fetch, in seconds since 1970.
    pub fetched_unix: u64,
    /// Facts about the object.
    pub facts: Facts,
}

impl Record {
    /// Returns whether the object is known to be what this checksum says, or there is none to ask for.
    pub fn is_held_to(&self, wanted: Option<&Digest>) -> bool {
        wanted.is_none_or(|wanted| [&self.verified, &self.seen].into_iter().flatten().any(|known| known == wanted))
    }
}

/// An object in the cache, found by its name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Stored {
    /// Record of its name.
    #[serde(flatten)]
    pub record: Record,
    /// Path of its main file.
    pub path: PathBuf,
    /// Bytes of the disk or file.
    pub size_bytes: u64,
    /// Bytes that it uses on the host.
    pub used_bytes: u64,
    /// A kernel beside it.
    pub kernel: Option<PathBuf>,
    /// An initial RAM disk beside it.
    pub initrd: Option<PathBuf>,
}

/// A lease that keeps an object from being removed until it is dropped.
#[derive(Debug)]
pub struct Lease {
    _file: Option<File>,
}

/// The cache of a host.
#[derive(Debug, Clone)]
pub struct Cache {
    dir: PathBuf,
}

/// A directory in which an object is being made.
#[derive(Debug)]
pub struct Work {
    dir: PathBuf,
    _lock: File,
}

impl Work {
    /// Returns a path in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }
    /// Returns the directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        // If it became an object, there is nothing left under this name.
        let _ = fs::remove_dir_all(&self.dir);
        let _ = fs::remove_file(self.dir.with_extension(LOCK));
    }
}

/// Result of [`Cache::prune`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Pruned {
    /// Descriptions of the removed things.
    pub removed: Vec<String>,
    /// Number of bytes freed.
    pub freed_bytes: u64,
    /// Things that were kept because they are in use.
    pub in_use: Vec<String>,
}

/// Result of [`Cache::check`] for one object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Kind of the object.
    pub kind: Kind,
    /// Its name.
    pub name: String,
    /// The problem; `None` if the object is unchanged.
    pub problem: Option<String>,
}

impl Cache {
    /// Opens the cache in `dir`, and creates it if it is missing.
    pub fn open(dir: &Path) -> Result<Self> {
        let cache = Self { dir: dir.to_owned() };
        let kinds = [Kind::Image, Kind::Iso, Kind::Firmware].map(|kind| format!("names/{}", kind.name()));
        for name in ["objects", "partial", "work", "catalogues"].into_iter().chain(kinds.iter().map(String::as_str)) {
            let path = dir.join(name);
            fs::create_dir_all(&path).map_err(|error| error::io("make", &path, error))?;
        }
        Ok(cache)
    }

    /// Opens a cache for reading only: nothing is created, and a missing one is empty.
    pub fn look(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    /// Returns the directory of the cache.
    pub fn dir(&self) -> &Path {
        &self.dir
    }
    /// Returns the directory of incomplete downloads.
    pub fn partial_dir(&self) -> PathBuf {
        self.dir.join("partial")
    }
    /// Returns the path of the copy of a catalogue from the net.
    pub fn catalogue_file(&self, id: &str) -> PathBuf {
        self.dir.join("catalogues").join(format!("{id}.toml"))
    }
    fn object_dir(&self, key: &str) -> PathBuf {
        self.dir.join("objects").join(key)
    }
    fn record_file(&self, kind: Kind, name: &str) -> PathBuf {
        self.dir.join("names").join(kind.name()).join(format!("{name}.json"))
    }

    /// Locks the cache while names and objects change. Sweeps the remains of an interrupted change.
    fn lock(&self) -> Result<File> {
        let lock = lock_file(&self.dir.join(LOCK), &|| Ok(()))?;
        for path in self.half_written() {
            sweep_file(&path);
        }
        for dir in self.half_removed() {
            let _ = fs::remove_dir_all(dir);
        }
        Ok(lock)
    }

    /// Returns the remains of commands that were killed, which the next command sweeps.
    pub fn left_behind(&self) -> Vec<PathBuf> {
        let mut left = self.half_written();
        left.extend(self.half_removed());
        left.extend(self.broken_off().into_iter().filter(|path| path.extension().is_none_or(|ext| ext != LOCK)));
        left
    }

    /// Returns temporary files that were not renamed and have no writer any more.
    fn half_written(&self) -> Vec<PathBuf> {
        let kinds = [Kind::Image, Kind::Iso, Kind::Firmware].map(|kind| self.dir.join("names").join(kind.name()));
        let dirs = kinds.into_iter().chain(["partial", "catalogues"].map(|name| self.dir.join(name)));
        let files = dirs.flat_map(|dir| fs::read_dir(dir).into_iter().flatten().flatten()).map(|entry| entry.path());
        files.filter(|path| is_temporary(path) && File::open(path).is_ok_and(|file| file.try_lock_shared().is_ok())).collect()
    }

    /// Returns objects without their description, which is removed first.
    fn half_removed(&self) -> Vec<PathBuf> {
        let objects = fs::read_dir(self.dir.join("objects")).into_iter().flatten().flatten().map(|entry| entry.path());
        objects.filter(|dir| dir.is_dir() && !dir.join(OBJECT).exists()).collect()
    }

    /// Locks `key` against other commands that would fetch the same, as long as the returned file is open. Calls `wait`
    /// repeatedly while another process has the lock.
    pub fn claim(&self, key: &str, wait: &dyn Fn() -> Result<()>) -> Result<File> {
        lock_file(&self.partial_dir().join(format!("{key}.lock")), wait)
    }

    /// Creates a directory to make an object in. Sweeps the remains of earlier makers.
    pub fn work(&self, key: &str) -> Result<Work> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        self.sweep();
        let name = format!("{key}-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let dir = self.dir.join("work").join(name);
        // The lock is beside the directory, since the directory becomes the object with all its contents.
        let lock_path = dir.with_extension("lock");
        let lock = lock_file(&lock_path, &|| Ok(()))?;
        fs::create_dir(&dir).map_err(|error| error::io("make", &dir, error))?;
        Ok(Work { dir, _lock: lock })
    }

    /// Returns the remains in `work` of makers that are gone: directories, and locks of dead processes.
    fn broken_off(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.dir.join("work")).into_iter().flatten().flatten().map(|entry| entry.path());
        // A maker takes its lock before it creates its directory.
        let is_free = |lock: &Path| match File::open(lock) {
            Ok(file) => file.try_lock().is_ok(),
            Err(error) => error.kind() == io::ErrorKind::NotFound,
        };
        entries.filter(|path| is_free(&path.with_extension(LOCK))).collect()
    }

    /// Removes the remains of makers that are gone. Returns the number of bytes.
    fn sweep(&self) -> u64 {
        let mut freed = 0;
        for path in self.broken_off() {
            if path.extension().is_some_and(|ext| ext == LOCK) {
                if let Ok(file) = File::open(&path)
                    && file.try_lock().is_ok()
                {
                    let dir = path.with_extension("");
                    freed += used_below(&dir);
                    let _ = fs::remove_dir_all(&dir);
                    let _ = fs::remove_file(&path);
                }
            } else if !path.with_extension(LOCK).exists() {
                freed += used_below(&path);
                let _ = fs::remove_dir_all(&path);
            }
        }
        freed
    }

    /// Returns whether there is an object of this key.
    pub fn has(&self, key: &str) -> bool {
        self.object_dir(key).join(OBJECT).is_file()
    }

    /// Turns the contents of `work` into the object `key`. An object that exists already is kept.
    pub fn commit(&self, work: Work, key: &str, object: &Object) -> Result<()> {
        self.put(work, key, object, false)
    }

    /// Commits as [`Cache::commit`] does, but replaces an existing object, which must not be in use.
    pub fn replace(&self, work: Work, key: &str, object: &Object) -> Result<()> {
        self.put(work, key, object, true)
    }

    fn put(&self, work: Work, key: &str, object: &Object, replace: bool) -> Result<()> {
        let text = serde_json::to_vec_pretty(object).expect("plain fields");
        let description = work.path(OBJECT);
        fs::write(&description, text).map_err(|error| error::io("write", &description, error))?;
        let beside = object.kernel.iter().chain(&object.initrd).map(|name| work.path(name));
        for path in beside.chain([work.path(&object.file), description, work.dir().to_owned()]) {
            // Everything is on the disk before the rename: after a power cut an object is complete, or it does not
            // exist.
            sync(&path)?;
        }
        let _lock = self.lock()?;
        let target = self.object_dir(key);
        if self.has(key) {
            if !replace {
                return Ok(());
            }
            if self.remove_object(key)?.is_none() {
                return Err(FetchError::user("the image that it replaces is in use").hint("try again in a moment"));
            }
        }
        // Remains without a description; rename(2) replaces only an empty directory.
        let _ = fs::remove_dir_all(&target);
        fs::rename(work.dir(), &target).map_err(|error| error::io("make", &target, error))?;
        sync(&self.dir.join("objects"))
    }

    /// Gives an object a name.
    pub fn name(&self, record: &Record) -> Result<()> {
        check_name(&record.name)?;
        let path = self.record_file(record.kind, &record.name);
        let text = serde_json::to_vec_pretty(record).expect("plain fields");
        let _lock = self.lock()?;
        write_whole(&path, &text).map_err(|error| error::io("write", &path, error))
    }

    /// Returns the object of a name, with a lease on it. Returns `None` if there is none. Notes the time of use.
    pub fn find(&self, kind: Kind, name: &str) -> Result<Option<(Stored, Lease)>> {
        if check_name(name).is_err() {
            return Ok(None);
        }
        let Some(stored) = self.read(kind, name)? else { return Ok(None) };
        let description = self.object_dir(&stored.record.object).join(OBJECT);
        let lease = description.with_file_name(LEASE);
        let leased = match open_alone(&lease) {
            Ok(file) => file.lock_shared().map(|()| Some(file)),
            // The cache belongs to another user: it is read without a note of the use.
            Err(error) if matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem) => Ok(None),
            Err(error) => Err(error),
        };
        match leased {
            Ok(file) if description.exists() => {
                if let Ok(file) = File::options().append(true).open(self.record_file(kind, name)) {
                    let _ = file.set_modified(SystemTime::now());
                }
                Ok(Some((stored, Lease { _file: file })))
            }
            // It was removed just now.
            Ok(_) => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error::io("lock", &lease, error)),
        }
    }

    /// Returns all objects with a name, sorted by kind and name.
    pub fn list(&self) -> Result<Vec<Stored>> {
        let mut all = Vec::new();
        for kind in [Kind::Image, Kind::Iso, Kind::Firmware] {
            let dir = self.dir.join("names").join(kind.name());
            let mut names: Vec<String> = match fs::read_dir(&dir) {
                Ok(entries) => entries
                    .filter_map(|entry| entry.ok()?.file_name().into_string().ok()?.strip_suffix(".json").map(str::to_owned))
                    .collect(),
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error::io("list", &dir, error)),
            };
            names.sort();
            for name in names.iter().filter(|name| check_name(name).is_ok()) {
                all.extend(self.read(kind, name)?);
            }
        }
        Ok(all)
    }

    /// Reads the record of a name. A record whose object is gone counts as missing.
    fn read(&self, kind: Kind, name: &str) -> Result<Option<Stored>> {
        let path = self.record_file(kind, name);
        let Some(record) = read_json::<Record>(&path)? else { return Ok(None) };
        let dir = self.object_dir(&record.object);
        // A removal takes the description first, so that a reader never finds half an object.
        let Some(object) = read_json::<Object>(&dir.join(OBJECT))? else { return Ok(None) };
        let file = dir.join(&object.file);
        Ok(Some(Stored {
            used_bytes: used_below(&dir),
            size_bytes: object.size_bytes,
            kernel: object.kernel.map(|name| dir.join(name)),
            initrd: object.initrd.map(|name| dir.join(name)),
            path: file,
            record,
        }))
    }

    /// Removes a name, and its object if no other name shares it.
    pub fn remove(&self, kind: Kind, name: &str) -> Result<()> {
        let gone = || FetchError::user(format!("no {} called `{name}` is in the cache", kind.name()));
        check_name(name).map_err(|_| gone())?;
        let _lock = self.lock()?;
        let stored = self.read(kind, name)?.ok_or_else(gone)?;
        let key = &stored.record.object;
        let others = self
            .list()?
            .iter()
            .any(|other| other.record.object == *key && (other.record.kind, other.record.name.as_str()) != (kind, name));
        // The object goes before its name: after a crash in between, the name counts as missing.
        if !others && self.remove_object(key)?.is_none() {
            return Err(FetchError::user(format!("{} `{name}` is in use", kind.name()))
                .hint("wait until the guest that is made from it exists"));
        }
        let path = self.record_file(kind, name);
        fs::remove_file(&path).map_err(|error| error::io("remove", &path, error))
    }

    /// Removes an object unless it is leased. Returns the bytes that it used, or `None`. The caller has the lock.
    fn remove_object(&self, key: &str) -> Result<Option<u64>> {
        let dir = self.object_dir(key);
        let description = dir.join(OBJECT);
        if description.exists() {
            let lease = dir.join(LEASE);
            let file = open_alone(&lease).map_err(|error| error::io("open", &lease, error))?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Ok(None),
                Err(TryLockError::Error(error)) => return Err(error::io("lock", &lease, error)),
            }
            // Without its description it is no object any more, wherever this is interrupted.
            fs::remove_file(&description).map_err(|error| error::io("remove", &description, error))?;
        }
        let used = used_below(&dir);
        fs::remove_dir_all(&dir).map_err(|error| error::io("remove", &dir, error))?;
        Ok(Some(used))
    }

    /// Removes everything that is not needed: the work of makers that are gone, objects without a name, incomplete
    /// downloads; with `unused`, also names that were not used for this long.
    pub fn prune(&self, unused: Option<Duration>) -> Result<Pruned> {
        let mut pruned = Pruned::default();
        let swept = self.sweep();
        if swept > 0 {
            pruned.removed.push("the remains of interrupted commands".into());
            pruned.freed_bytes += swept;
        }
        self.prune_partial(&mut pruned)?;
        if let Some(age) = unused {
            self.prune_names(age, &mut pruned)?;
        }
        let _lock = self.lock()?;
        let named: Vec<String> = self.list()?.into_iter().map(|stored| stored.record.object).collect();
        for key in entries(&self.dir.join("objects"))?.into_iter().filter(|key| !named.contains(key)) {
            match self.remove_object(&key)? {
                Some(used) => {
                    pruned.removed.push(format!("`{key}`, which has no name"));
                    pruned.freed_bytes += used;
                }
                None => pruned.in_use.push(key),
            }
        }
        Ok(pruned)
    }

    fn prune_partial(&self, pruned: &mut Pruned) -> Result<()> {
        let dir = self.partial_dir();
        for name in entries(&dir)? {
            let Some(key) = name.strip_suffix(".lock") else { continue };
            let path = dir.join(&name);
            let Ok(file) = File::open(&path) else { continue };
            if file.try_lock().is_err() {
                pruned.in_use.push(format!("download {key}"));
                continue;
            }
            let part = dir.join(format!("{key}.part"));
            if part.exists() {
                pruned.freed_bytes += used(&part);
                pruned.removed.push(format!("the incomplete download {key}"));
            }
            for end in ["part", "json", "lock"] {
                let _ = fs::remove_file(dir.join(format!("{key}.{end}")));
            }
        }
        Ok(())
    }

    fn prune_names(&self, age: Duration, pruned: &mut Pruned) -> Result<()> {
        for stored in self.list()? {
            let (kind, name) = (stored.record.kind, &stored.record.name);
            let used_at = fs::metadata(self.record_file(kind, name)).and_then(|metadata| metadata.modified());
            let old = used_at.ok().and_then(|at| at.elapsed().ok()).is_some_and(|since| since >= age);
            if old && self.remove(kind, name).is_ok() {
                pruned.removed.push(format!("{} `{name}`", kind.name()));
                pruned.freed_bytes += stored.used_bytes;
            }
        }
        Ok(())
    }

    /// Reads all objects of these kinds (and names) again and compares them with their description.
    pub fn check(&self, kinds: &[Kind], names: &[String], job: &Job<'_>) -> Result<Vec<Finding>> {
        let mut findings = Vec::new();
        for stored in self.list()?.into_iter().filter(|stored| kinds.contains(&stored.record.kind)) {
            let Record { kind, name, object, .. } = &stored.record;
            if !names.is_empty() && !names.contains(name) {
                continue;
            }
            job.step(&format!("checking {name}"), Some(stored.size_bytes), 0);
            let description: Option<Object> = read_json(&self.object_dir(object).join(OBJECT))?;
            let problem = match description.map(|object| object.seal) {
                None => Some("it has been removed".into()),
                Some(Seal::Bytes(digest)) => compare(&digest, sparse::whole_file(&stored.path, digest.algorithm(), job))?,
                Some(Seal::Contents(digest)) => compare(&digest, sparse::contents(&stored.path, job))?,
            };
            findings.push(Finding { kind: *kind, name: name.clone(), problem });
        }
        Ok(findings)
    }
}

fn compare(expected: &Digest, found: Result<Digest>) -> Result<Option<String>> {
    match found {
        Ok(found) if found == *expected => Ok(None),
        Ok(_) => Ok(Some("it differs from what was fetched: the disk or a program changed it".into())),
        Err(error) if error.fault() == super::error::Fault::Interrupted => Err(error),
        Err(error) => Ok(Some(error.to_string())),
    }
}

/// Returns the seconds since 1970.
pub fn now_unix() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Opens a lock file that only its owner can open. Repairs one of an earlier version.
fn open_alone(path: &Path) -> io::Result<File> {
    let file = File::options().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
    if file.metadata().is_ok_and(|metadata| metadata.mode() & 0o077 != 0) {
        let _ = file.set_permissions(fs::Permissions::from_mode(0o600));
    }
    Ok(file)
}

/// Takes an exclusive lock on a file that exists for that purpose. Calls `wait` while another process has it.
fn lock_file(path: &Path, wait: &dyn Fn() -> Result<()>) -> Result<File> {
    loop {
        let file = open_alone(path).map_err(|error| error::io("open", path, error))?;
        match file.try_lock() {
            // The previous holder may have removed the file. Then the lock protects nothing.
            Ok(()) if is_still_there(&file, path) => return Ok(file),
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                wait()?;
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(TryLockError::Error(error)) => return Err(error::io("lock", path, error)),
        }
    }
}

fn is_still_there(file: &File, path: &Path) -> bool {
    match (file.metadata(), fs::metadata(path)) {
        (Ok(ours), Ok(theirs)) => (ours.dev(), ours.ino()) == (theirs.dev(), theirs.ino()),
        _ => false,
    }
}

/// Writes a file under a temporary name and renames it. The temporary file is locked for as long as its writer lives.
pub fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension(format!("{}.tmp", std::process::id()));
    let written = (|| {
        let mut file = loop {
            let file = File::options().read(true).write(true).create(true).truncate(true).open(&temporary)?;
            file.lock()?;
            if is_still_there(&file, &temporary) {
                break file;
            }
        };
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    })();
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written
}

/// Returns whether a name is a temporary name of [`write_whole`].
fn is_temporary(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_suffix(".tmp"));
    let pid = name.and_then(|name| name.rsplit_once('.'));
    pid.is_some_and(|(_, pid)| !pid.is_empty() && pid.bytes().all(|byte| byte.is_ascii_digit()))
}

/// Removes a file if no process has locked it.
fn sweep_file(path: &Path) {
    if let Ok(file) = File::open(path)
        && file.try_lock().is_ok()
        && is_still_there(&file, path)
    {
        let _ = fs::remove_file(path);
    }
}

fn sync(path: &Path) -> Result<()> {
    match File::open(path).and_then(|file| file.sync_all()) {
        Err(error) if error.raw_os_error() == Some(nix::libc::EINVAL) => Ok(()),
        other => other.map_err(|error| error::io("write", path, error)),
    }
}

/// Reads a JSON file. Returns `None` if it is missing. It is an error for the user if it cannot be read.
fn read_json<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<Option<T>> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error::io("read", path, error)),
    };
    let parsed = serde_json::from_slice(&bytes);
    parsed.map(Some).map_err(|error| {
        FetchError::user(format!("`{}` is damaged", path.display())).because(error).hint("remove it and fetch again")
    })
}

fn entries(dir: &Path) -> Result<Vec<String>> {
    match fs::read_dir(dir) {
        Ok(entries) => Ok(entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error::io("list", dir, error)),
    }
}

fn used(path: &Path) -> u64 {
    fs::symlink_metadata(path).map_or(0, |metadata| metadata.blocks() * 512)
}

/// Returns the bytes that the files in a directory use.
fn used_below(dir: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(dir) else { return 0 };
    entries.filter_map(|entry| Some(used(&entry.ok()?.path()))).sum()
}
