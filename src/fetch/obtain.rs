//! The way from a name, a URL or a path to a verified file.
//!
//! A name that is in the cache needs neither the net nor a catalogue. A download is hashed and unpacked while it
//! arrives, and becomes an object of the cache only once its digest is right. A path to a raw image is used as it is.
//! Any other image is converted into the cache, once as long as the file does not change.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

use super::archive::Choice;
use super::build::{DISK, INITRD, KERNEL};
use super::cache::{Cache, Lease, Object, Record, Seal, Stored, Work, now_unix, write_whole};
use super::catalogue::{self, Build, Catalogue, Checksum, Download, Entry, Facts, Kind, Source, check_name};
use super::contents::Contents;
use super::digest::{Algorithm, Digest};
use super::download::{Downloaded, Part, Wanted, download};
use super::error::{self, Fault, FetchError, Result};
use super::image::{self, FileStorage, Format, Storage};
use super::net::{Net, Patience};
use super::progress::{Job, Progress};
use super::space::Room;
use super::tap::Unpacker;
use super::{signify, sparse, sums, unpack};
use crate::inputs;

/// A catalogue of the host file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CatalogueSource {
    /// Its name.
    pub id: String,
    /// An https URL, or an absolute path.
    pub at: String,
}

/// A request for an image, a medium or a firmware.
#[derive(Debug, Clone)]
pub struct Request {
    /// Kind of the thing.
    pub kind: Kind,
    /// A name of the catalogue or the cache, a URL, or a path (with a slash).
    pub target: String,
    /// The name that it gets in the cache, instead of the obvious one.
    pub name: Option<String>,
    /// The expected checksum: for a URL, and for a name instead of the catalogue's.
    pub checksum: Option<Digest>,
    /// A checksum file, for a URL.
    pub checksum_file: Option<String>,
    /// Whether it may be fetched without any checksum.
    pub allow_unverified: bool,
    /// Whether to ask the publisher for a newer one.
    pub refresh: bool,
    /// Format of the disk, if it must not be detected.
    pub format: Option<Format>,
}

impl Request {
    /// Creates a request for a thing of this kind, by name, URL or path.
    pub fn new(kind: Kind, target: impl Into<String>) -> Self {
        let target = target.into();
        Self {
            kind,
            target,
            name: None,
            checksum: None,
            checksum_file: None,
            allow_unverified: false,
            refresh: false,
            format: None,
        }
    }
}

/// The result of a request, on this host.
#[derive(Debug)]
pub struct Obtained {
    /// Kind of the thing.
    pub kind: Kind,
    /// Its name.
    pub name: String,
    /// A raw disk image, an ISO, or a firmware. It must not be written to.
    pub path: PathBuf,
    /// Bytes of the disk or file.
    pub size_bytes: u64,
    /// A kernel that belongs to it.
    pub kernel: Option<PathBuf>,
    /// An initial RAM disk that belongs to it.
    pub initrd: Option<PathBuf>,
    /// Facts of the catalogue about it.
    pub facts: Facts,
    /// The checksum that it was verified with.
    pub verified: Option<Digest>,
    /// The digest of what came where there was no checksum.
    pub seen: Option<Digest>,
    /// Whether it was fetched just now.
    pub fresh: bool,
    /// Keeps it from being removed while it is used. `None` for a file of the user's own.
    pub lease: Option<Lease>,
}

impl Obtained {
    fn stored(stored: Stored, lease: Lease, fresh: bool) -> Self {
        Self {
            kind: stored.record.kind,
            name: stored.record.name,
            path: stored.path,
            size_bytes: stored.size_bytes,
            kernel: stored.kernel,
            initrd: stored.initrd,
            facts: stored.record.facts,
            verified: stored.record.verified,
            seen: stored.record.seen,
            fresh,
            lease: Some(lease),
        }
    }
}

/// What to do about a name that something else has; the commands that fetch on the way have no such options.
fn another_name(request: &Request) -> String {
    let verb = match (inputs::is_url(&request.target), request.kind) {
        (true, kind) => format!("fetch {}", kind.name()),
        (false, Kind::Iso) => "iso add".into(),
        (false, _) => "image import".into(),
    };
    format!("`vmctl {verb} {} --name NAME` gives this one another name, `--refresh` there replaces that one", request.target)
}

/// Age at which the copy of a catalogue from the net is fetched again.
const CATALOGUE_AGE: Duration = Duration::from_secs(24 * 3600);

/// Unit of a disk.
const SECTOR: u64 = 512;

/// The fetcher. Several threads may share one.
pub struct Fetcher<'a> {
    cache: Cache,
    sources: Vec<CatalogueSource>,
    progress: &'a dyn Progress,
    patience: Patience,
    net: Mutex<Option<Net>>,
    catalogue: OnceLock<Catalogue>,
}

impl<'a> Fetcher<'a> {
    /// Opens the cache at `cache_dir`, with the shipped catalogue and those of the host file.
    pub fn open(cache_dir: &Path, sources: Vec<CatalogueSource>, progress: &'a dyn Progress) -> Result<Self> {
        let cache = Cache::open(cache_dir)?;
        Ok(Self { cache, sources, progress, patience: Patience::default(), net: Mutex::new(None), catalogue: OnceLock::new() })
    }

    /// Sets other time-outs and retries.
    pub fn patience(mut self, patience: Patience) -> Self {
        self.patience = patience;
        self
    }

    /// Returns the cache.
    pub fn cache(&self) -> &Cache {
        &self.cache
    }

    /// Sets up TLS when it is first needed.
    fn net(&self) -> Net {
        let mut net = self.net.lock().expect("nothing panics while it is held");
        if let Some(net) = &*net {
            return net.clone();
        }
        let made = Net::new(self.patience);
        *net = Some(made.clone());
        made
    }

    /// Returns all catalogues combined. Those from the net are at most a day old, or the last copy when the net is not
    /// reachable.
    pub fn catalogue(&self) -> Result<&Catalogue> {
        if let Some(catalogue) = self.catalogue.get() {
            return Ok(catalogue);
        }
        let mut catalogue = Catalogue::shipped();
        for source in &self.sources {
            let (label, text) = self.read_catalogue(source)?;
            catalogue.add(&label, &text)?;
        }
        Ok(self.catalogue.get_or_init(|| catalogue))
    }

    fn read_catalogue(&self, source: &CatalogueSource) -> Result<(String, String)> {
        if !source.at.starts_with("https://") {
            let path = Path::new(&source.at);
            let text = inputs::read_text(path, catalogue::MAX_BYTES as u64);
            let text = text.map_err(|error| error::input("read the catalogue", path, error))?;
            return Ok((source.at.clone(), text));
        }
        let copy = self.cache.catalogue_file(&source.id);
        let age = fs::metadata(&copy).and_then(|metadata| metadata.modified()).ok().and_then(|at| at.elapsed().ok());
        if let (Some(age), Ok(text)) = (age, fs::read_to_string(&copy))
            && age < CATALOGUE_AGE
        {
            return Ok((source.at.clone(), text));
        }
        let job = Job::new(&source.id, self.progress);
        let fetched = self.net().small(&source.at, catalogue::MAX_BYTES, &job).and_then(|text| {
            // Check the text first: a text that is no catalogue must not replace one that is.
            Catalogue::default().add(&source.at, &text)?;
            Ok(text)
        });
        match (fetched, fs::read_to_string(&copy)) {
            (Ok(text), _) => {
                write_whole(&copy, text.as_bytes()).map_err(|error| error::io("write", &copy, error))?;
                Ok((source.at.clone(), text))
            }
            (Err(error), Ok(text)) if error.fault() != Fault::Interrupted => {
                job.note(&format!("catalogue `{}` could not be fetched ({error}); its last copy is used", source.id));
                Ok((source.at.clone(), text))
            }
            (Err(error), _) => Err(error.within(format!("catalogue `{}` could not be fetched", source.id))),
        }
    }

    /// Makes the requested thing available.
    pub fn obtain(&self, request: &Request) -> Result<Obtained> {
        if let Some(name) = &request.name {
            check_name(name)?;
        }
        if inputs::is_url(&request.target) {
            return self.from_url(request);
        }
        if request.target.contains('/') {
            return self.from_path(request);
        }
        let name = request.name.as_deref().unwrap_or(&request.target);
        if !request.refresh
            && let Some((stored, lease)) = self.cache.find(request.kind, name)?
            && stored.record.is_held_to(request.checksum.as_ref())
        {
            return Ok(Obtained::stored(stored, lease, false));
        }
        let entry = self.catalogue()?.find(request.kind, &request.target)?;
        let job = Job::new(name, self.progress);
        match &entry.source {
            Source::Download(download) => self.by_download(request, name, download, &entry.facts, &job),
            Source::Build(build) => self.by_building(request, name, entry, build, &job),
        }
        .map_err(|error| about(error, entry.kind, name))
    }

    fn from_url(&self, request: &Request) -> Result<Obtained> {
        catalogue::check_url(&request.target)?;
        let name = match &request.name {
            Some(name) => name.clone(),
            None => name_of(&request.target).ok_or_else(|| {
                FetchError::user(format!("`{}` does not end in a name", request.target)).hint(format!(
                    "`vmctl fetch {} {} --name NAME` gives it one",
                    request.kind.name(),
                    request.target
                ))
            })?,
        };
        if !request.refresh
            && let Some((stored, lease)) = self.cache.find(request.kind, &name)?
        {
            if stored.record.source == request.target && stored.record.is_held_to(request.checksum.as_ref()) {
                return Ok(Obtained::stored(stored, lease, false));
            }
            if stored.record.source != request.target {
                return Err(FetchError::user(format!(
                    "{} `{name}` exists already, from `{}`",
                    request.kind.name(),
                    stored.record.source
                ))
                .hint(another_name(request)));
            }
        }
        let checksum = match &request.checksum_file {
            Some(url) => {
                catalogue::check_url(url)?;
                if !url.starts_with("https://") {
                    return Err(
                        FetchError::user(format!("`{url}` can be changed in transit")).hint("take the checksum file over https")
                    );
                }
                Checksum::File { url: url.clone(), name: file_of(&request.target).to_owned(), signify_key: None }
            }
            None => Checksum::None,
        };
        let download =
            Download { urls: vec![request.target.clone()], checksum, size: None, format: request.format, member: None };
        let job = Job::new(&name, self.progress);
        self.by_download(request, &name, &download, &Facts::default(), &job).map_err(|error| about(error, request.kind, &name))
    }

    /// Obtains a path: a raw image is used as it is, another one is converted once.
    fn from_path(&self, request: &Request) -> Result<Obtained> {
        let path = fs::canonicalize(&request.target).map_err(|error| error::io("use", Path::new(&request.target), error))?;
        let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or("local");
        let storage = FileStorage::open(&path)?;
        if self.is_usable_as_it_is(request, &storage)? {
            check_contents(request.kind, &storage, &path)?;
            check_sectors(request.kind, request.format, storage.len())?;
            self.held_to(request, &path)?;
            return Ok(Obtained {
                kind: request.kind,
                name: stem.to_owned(),
                size_bytes: storage.len(),
                path,
                kernel: None,
                initrd: None,
                facts: Facts::default(),
                verified: request.checksum.clone(),
                seen: None,
                fresh: false,
                lease: None,
            });
        }
        // Each path has its own name, even if another path has the same file name.
        let mark = Digest::of(Algorithm::Sha256, path.as_os_str().as_encoded_bytes());
        let name = format!("{}-{}", name_of(stem).unwrap_or_else(|| "local".into()), &mark.hex()[..8]);
        self.import(&Request { name: Some(name), ..request.clone() })
    }

    fn is_usable_as_it_is(&self, request: &Request, storage: &FileStorage) -> Result<bool> {
        let whole = storage.len() % SECTOR == 0;
        match (request.format, Contents::of(storage)?) {
            // Use the bytes as they are, with zeros up to the next sector.
            (Some(format), _) => Ok(format == Format::Raw && (whole || request.kind != Kind::Image)),
            (None, Contents::Packed(_)) => Ok(false),
            (None, contents) if request.kind == Kind::Image => Ok(contents.disk()? == Format::Raw),
            (None, _) => Ok(true),
        }
    }

    fn held_to(&self, request: &Request, path: &Path) -> Result<()> {
        let Some(wanted) = &request.checksum else { return Ok(()) };
        let job = Job::new(&request.target, self.progress);
        job.step("checking", fs::metadata(path).ok().map(|metadata| metadata.len()), 0);
        let found = sparse::whole_file(path, wanted.algorithm(), &job)?;
        if found == *wanted { Ok(()) } else { Err(wrong_digest(&path.display().to_string(), &found, wanted)) }
    }

    /// Imports a file of this host into the cache, under `request.name` or its own.
    pub fn import(&self, request: &Request) -> Result<Obtained> {
        let path = fs::canonicalize(&request.target).map_err(|error| error::io("import", Path::new(&request.target), error))?;
        let name = match &request.name {
            Some(name) => name.clone(),
            None => name_of(&path.to_string_lossy()).ok_or_else(|| {
                FetchError::user(format!("`{}` has no name that can be kept", path.display())).hint("give it one with `--name`")
            })?,
        };
        check_name(&name)?;
        let metadata = fs::metadata(&path).map_err(|error| error::io("import", &path, error))?;
        // A file that has no end must not be read for its digest.
        inputs::open(&path).map_err(|error| error::input("import", &path, error))?;
        let stamp = format!("{} {}.{:09} {}", metadata.len(), metadata.mtime(), metadata.mtime_nsec(), metadata.ino());
        let source = path.display().to_string();
        if let Some((stored, lease)) = self.cache.find(request.kind, &name)? {
            if stored.record.source == source && stored.record.stamp.as_ref() == Some(&stamp) && request.checksum.is_none() {
                return Ok(Obtained::stored(stored, lease, false));
            }
            if stored.record.source != source && !request.refresh {
                return Err(FetchError::user(format!(
                    "{} `{name}` exists already, from `{}`",
                    request.kind.name(),
                    stored.record.source
                ))
                .hint(another_name(request)));
            }
        }
        let label = name.clone();
        let job = Job::new(&label, self.progress);
        job.step("reading", Some(metadata.len()), 0);
        let algorithm = request.checksum.as_ref().map_or(Algorithm::Sha256, Digest::algorithm);
        let digest = sparse::whole_file(&path, algorithm, &job)?;
        if let Some(wanted) = request.checksum.as_ref().filter(|wanted| **wanted != digest) {
            return Err(wrong_digest(&source, &digest, wanted));
        }
        let key = key_of(&digest, None, request.format);
        let _claim = self.claim(&key, &job)?;
        if !self.cache.has(&key) {
            let work = self.cache.work(&key)?;
            let room = Room::at(self.cache.dir());
            let unpacked = self.unpack_file(&path, request, &work, &room, &job)?;
            let made = Made { unpacked, plain: &path, may_move: false, digest: &digest };
            let object = self.assemble(request.kind, request.format, &work, made, &room, &job)?;
            self.cache.commit(work, &key, &object)?;
        }
        let record = Record {
            kind: request.kind,
            name,
            object: key,
            source,
            stamp: Some(stamp),
            verified: request.checksum.clone(),
            seen: None,
            fetched_unix: now_unix(),
            facts: Facts::default(),
        };
        self.conclude(&record)
    }

    fn unpack_file(&self, path: &Path, request: &Request, work: &Work, room: &Room, job: &Job<'_>) -> Result<Option<PathBuf>> {
        if !matches!(Contents::of(&FileStorage::open(path)?)?, Contents::Packed(_)) {
            return Ok(None);
        }
        job.step("unpacking", None, 0);
        let target = work.path("unpacked");
        let file = sparse::create(&target)?;
        let stream = inputs::open(path).map_err(|error| error::input("open", path, error))?;
        let choice = Choice::any(request.kind);
        unpack::unpack(Box::new(stream), &choice, &mut |stream| sparse::copy(stream, &file, room, job))?;
        Ok(Some(target))
    }

    fn claim(&self, key: &str, job: &Job<'_>) -> Result<fs::File> {
        let told = std::cell::Cell::new(false);
        self.cache.claim(key, &|| {
            if !told.replace(true) {
                job.note("another command fetches the same; waiting for it");
            }
            job.check()
        })
    }

    fn conclude(&self, record: &Record) -> Result<Obtained> {
        self.cache.name(record)?;
        let found = self.cache.find(record.kind, &record.name)?;
        let (stored, lease) = found.ok_or_else(|| FetchError::host(format!("`{}` was removed just now", record.name)))?;
        Ok(Obtained::stored(stored, lease, true))
    }

    fn by_download(&self, request: &Request, name: &str, wanted: &Download, facts: &Facts, job: &Job<'_>) -> Result<Obtained> {
        let digest = match &request.checksum {
            Some(digest) => Some(digest.clone()),
            None => self.checksum(&wanted.checksum, job)?,
        };
        if digest.is_none() && !request.allow_unverified {
            return Err(FetchError::user("there is no checksum to verify it with")
                .hint(format!(
                    "`--checksum` gives one, and for a guest file's disk its `checksum`; `vmctl fetch {} {}` also takes `--checksum-file` and `--insecure-no-checksum`",
                    request.kind.name(),
                    request.target
                )));
        }
        let format = request.format.or(wanted.format);
        let part_key = match &digest {
            Some(digest) => digest.file_stem(),
            None => format!("url-{}", Digest::of(Algorithm::Sha256, wanted.urls[0].as_bytes()).hex()),
        };
        let _claim = self.claim(&part_key, job)?;
        let known = digest.as_ref().map(|digest| key_of(digest, wanted.member.as_deref(), format));
        let (key, source, seen) = match known.filter(|key| self.cache.has(key)) {
            Some(key) => (key, wanted.urls[0].clone(), None),
            None => self.download(request.kind, wanted, format, &digest, &part_key, job)?,
        };
        let record = Record {
            kind: request.kind,
            name: name.to_owned(),
            object: key,
            source,
            stamp: None,
            seen: seen.filter(|_| digest.is_none()),
            verified: digest,
            fetched_unix: now_unix(),
            facts: facts.clone(),
        };
        self.conclude(&record)
    }

    /// Downloads, unpacks and converts. Returns the object's key, its origin, and the digest of what came.
    fn download(
        &self,
        kind: Kind,
        wanted: &Download,
        format: Option<Format>,
        digest: &Option<Digest>,
        part_key: &str,
        job: &Job<'_>,
    ) -> Result<(String, String, Option<Digest>)> {
        let work = self.cache.work(part_key)?;
        let room = Room::at(self.cache.dir());
        let part = Part::new(&self.cache.partial_dir(), part_key);
        let mut tap = Unpacker::new(work.path("unpacked"), Choice { kind, member: wanted.member.clone() }, self.cache.dir());
        let what = Wanted { urls: wanted.urls.clone(), digest: digest.clone(), size: wanted.size };
        let Downloaded { digest: found, url, .. } = download(&self.net(), &what, &part, &room, job, &mut tap)?;
        let unpacked = tap.finish(job);
        let made = unpacked.and_then(|unpacked| {
            let made = Made { unpacked, plain: part.path(), may_move: true, digest: &found };
            self.assemble(kind, format, &work, made, &room, job)
        });
        let object = made.inspect_err(|error| {
            // A complete file that cannot be used would be found again by the next run.
            if error.fault() == Fault::User {
                part.discard();
            }
        })?;
        let key = key_of(&found, wanted.member.as_deref(), format);
        self.cache.commit(work, &key, &object)?;
        part.discard();
        Ok((key, url, Some(found)))
    }

    fn checksum(&self, checksum: &Checksum, job: &Job<'_>) -> Result<Option<Digest>> {
        match checksum {
            Checksum::None => Ok(None),
            Checksum::Known(digest) => Ok(Some(digest.clone())),
            Checksum::File { url, name, signify_key } => {
                job.step("asking for the checksum", None, 0);
                let text = self.net().small(url, sums::MAX_BYTES, job)?;
                let within = |error: FetchError| error.within(format!("`{url}` cannot be used"));
                let signed = match signify_key {
                    Some(key) => signify::open(&text, key).map_err(within)?,
                    None => &text,
                };
                sums::find(signed, name).map(Some).map_err(within)
            }
        }
    }

    /// Makes the object's file in `work` from the unpacked or plain file.
    fn assemble(
        &self,
        kind: Kind,
        format: Option<Format>,
        work: &Work,
        made: Made<'_>,
        room: &Room,
        job: &Job<'_>,
    ) -> Result<Object> {
        let name = match kind {
            Kind::Image => "disk.raw",
            Kind::Iso => "medium.iso",
            Kind::Firmware => "firmware.fd",
        };
        let target = work.path(name);
        let from = made.unpacked.as_deref().unwrap_or(made.plain);
        let storage = FileStorage::open(from)?;
        let found = match (kind, format) {
            (Kind::Iso | Kind::Firmware, _) => Format::Raw,
            (Kind::Image, Some(Format::Raw)) => Format::Raw,
            (Kind::Image, wanted) => {
                let found = image::probe(&storage)?;
                if let Some(wanted) = wanted.filter(|wanted| *wanted != found) {
                    return Err(FetchError::user(format!("the image is {} instead of {}", found.name(), wanted.name())));
                }
                found
            }
        };
        let (len, mut as_it_came) = (storage.len(), false);
        if found != Format::Raw {
            let beside = if made.unpacked.is_none() { from.parent() } else { None };
            let disk = image::open(found, Box::new(storage), beside)?;
            check_sectors(kind, None, disk.size())?;
            job.step("converting", Some(disk.size()), 0);
            let file = sparse::create(&target)?;
            file.set_len(disk.size()).map_err(|error| error::io("grow", &target, error))?;
            image::convert(disk.as_ref(), &file, image::threads(), room, job)?;
        } else {
            check_contents(kind, &storage, from)?;
            check_sectors(kind, format, len)?;
            if made.unpacked.is_some() || made.may_move {
                fs::rename(from, &target).map_err(|error| error::io("move", from, error))?;
                as_it_came = made.unpacked.is_none();
            } else {
                job.step("copying", Some(len), 0);
                let mut stream = inputs::open(from).map_err(|error| error::input("open", from, error))?;
                sparse::copy(&mut stream, &sparse::create(&target)?, room, job)?;
            }
        }
        if let Some(path) = made.unpacked.filter(|path| path.exists()) {
            let _ = fs::remove_file(path);
        }
        if found == Format::Raw && kind == Kind::Image && len % SECTOR != 0 {
            job.note(&format!("its {len} bytes are not a whole number of sectors; zeros fill the last one"));
            let file = fs::OpenOptions::new().write(true).open(&target);
            let grown = file.and_then(|file| file.set_len(len.next_multiple_of(SECTOR)));
            grown.map_err(|error| error::io("grow", &target, error))?;
            as_it_came = false;
        }
        let size_bytes = fs::metadata(&target).map_err(|error| error::io("look at", &target, error))?.len();
        let seal = if as_it_came {
            Seal::Bytes(made.digest.clone())
        } else {
            job.step("sealing", Some(size_bytes), 0);
            Seal::Contents(sparse::contents(&target, job)?)
        };
        Ok(Object { file: name.to_owned(), seal, size_bytes, kernel: None, initrd: None })
    }

    fn by_building(&self, request: &Request, name: &str, entry: &Entry, build: &Build, job: &Job<'_>) -> Result<Obtained> {
        if request.checksum.is_some() {
            return Err(FetchError::user("an image that is built here has no checksum to be held to"));
        }
        let key = build.key();
        let _claim = self.claim(&key, job)?;
        if request.refresh || !self.cache.has(&key) {
            build.check()?;
            let work = self.cache.work(&key)?;
            build.run(work.dir(), job)?;
            let file = "disk.raw";
            let disk = work.path(file);
            fs::rename(work.path(DISK), &disk).map_err(|error| error::io("move", &disk, error))?;
            let beside = |name: &str| work.path(name).is_file().then(|| name.to_owned());
            let size_bytes = fs::metadata(&disk).map_err(|error| error::io("look at", &disk, error))?.len();
            job.step("sealing", Some(size_bytes), 0);
            let seal = Seal::Contents(sparse::contents(&disk, job)?);
            let object = Object { file: file.into(), seal, size_bytes, kernel: beside(KERNEL), initrd: beside(INITRD) };
            if request.refresh {
                self.cache.replace(work, &key, &object)?;
            } else {
                self.cache.commit(work, &key, &object)?;
            }
        }
        let record = Record {
            kind: entry.kind,
            name: name.to_owned(),
            object: key,
            source: "built on this host".into(),
            stamp: None,
            verified: None,
            seen: None,
            fetched_unix: now_unix(),
            facts: entry.facts.clone(),
        };
        self.conclude(&record)
    }
}

/// State of a download or a file on its way into the cache.
struct Made<'a> {
    /// The unpacked file, if it was packed.
    unpacked: Option<PathBuf>,
    /// The file as it was fetched.
    plain: &'a Path,
    /// Whether the plain file may be moved.
    may_move: bool,
    digest: &'a Digest,
}

fn wrong_digest(what: &str, found: &Digest, wanted: &Digest) -> FetchError {
    FetchError::user(format!("`{what}` has the {found} instead of {wanted}"))
}

fn about(error: FetchError, kind: Kind, name: &str) -> FetchError {
    if error.fault() == Fault::Interrupted {
        error
    } else {
        error.within(format!("{} `{name}` could not be fetched", kind.name()))
    }
}

/// Returns the key of an object, since the same download can hold several.
fn key_of(digest: &Digest, member: Option<&str>, format: Option<Format>) -> String {
    match (member, format) {
        (None, None | Some(Format::Qcow2 | Format::Vmdk | Format::Vhd)) => digest.file_stem(),
        (member, format) => {
            let text = format!("{}\n{}", member.unwrap_or_default(), format.map_or("", Format::name));
            format!("{}-{}", digest.file_stem(), &Digest::of(Algorithm::Sha256, text.as_bytes()).hex()[..8])
        }
    }
}

/// Returns the file name in a URL.
fn file_of(url: &str) -> &str {
    let path = url.split(['?', '#']).next().unwrap_or(url);
    path.rsplit('/').next().unwrap_or(path)
}

/// Derives a name for the cache from a URL or a path.
fn name_of(source: &str) -> Option<String> {
    let plain = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | '+') { c } else { '-' };
    let name: String = file_of(source).chars().map(plain).take(60).collect();
    let name = name.trim_start_matches(|c: char| !c.is_ascii_alphanumeric()).to_owned();
    check_name(&name).is_ok().then_some(name)
}

/// Checks the contents: an installation medium is a file system of a CD, ISO 9660 (ECMA-119, 8.1) or UDF (ECMA-167,
/// 2/9.1), whose descriptors begin at byte 32768.
fn check_contents(kind: Kind, storage: &dyn Storage, path: &Path) -> Result<()> {
    let mut mark = [0; 5];
    let n = storage.read_at(&mut mark, 32769).map_err(|error| error::io("read", path, error))?;
    if storage.is_empty() {
        return Err(FetchError::user(format!("the {} is empty", kind.name())));
    }
    if kind == Kind::Iso && !matches!(&mark[..n], b"CD001" | b"BEA01") {
        return Err(FetchError::user("it is no ISO 9660 image").hint("a disk image is fetched with `vmctl fetch image`"));
    }
    Ok(())
}

/// Checks that the bytes of a disk are whole sectors. If they are not, the file is incomplete or not a disk, and is
/// accepted only if the user says that it is raw.
fn check_sectors(kind: Kind, format: Option<Format>, len: u64) -> Result<()> {
    if kind == Kind::Firmware || len % SECTOR == 0 || (kind == Kind::Image && format == Some(Format::Raw)) {
        return Ok(());
    }
    let error =
        FetchError::user(format!("it has {len} bytes, which is not a multiple of 512: it is incomplete, or no {}", kind.name()));
    Err(error.hint("inspect it with file(1); `--format raw` fills the last sector with zeros"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_from_the_ends_of_urls_and_paths() {
        assert_eq!(name_of("https://x/y/disk.qcow2?token=1").as_deref(), Some("disk.qcow2"));
        assert_eq!(name_of("/a/b c.raw").as_deref(), Some("b-c.raw"));
        assert_eq!(name_of("https://x/"), None);
        assert_eq!(file_of("https://x/a%2b.img#frag"), "a%2b.img");
    }
}
