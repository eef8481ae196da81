//! Disks made from images: `disks.source` is copied once, and the copy is independent.
//!
//! Fetching takes long and shows its progress, so only commands do it: a supervisor needs the disk to exist, or says
//! how to make it.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::OnceLock;

use crate::config::{DiskBackend, DiskConfig, GuestConfig, HostConfig};
use crate::fetch::catalogue::MAX_BYTES;
use crate::fetch::image::Format;
use crate::fetch::{Cache, Catalogue, CatalogueSource, Facts, Fetcher, Kind, Obtained, Progress, Request, Stored};
use crate::host::files::{clone_or_copy_into, make_new};
use crate::inputs::is_url;
use crate::units::ByteSize;

use super::disk_record::DiskRecord;
use super::error::{GuestError, Result};
use super::gpt;
use super::named_files::check_disks;
use super::provision::{Made, disk_path, ensure_disks, found, is_own, is_there, make_filled_volume, note};
use super::store::GuestDir;

/// Parameters for obtaining images.
#[derive(Clone, Copy)]
pub struct Images<'a> {
    /// The host file, with the cache and the catalogues.
    pub host: &'a HostConfig,
    /// Gets the progress.
    pub progress: &'a dyn Progress,
}

/// Facts about an image that are known without the network.
#[derive(Debug)]
pub enum Known {
    /// It is in the cache, or in a catalogue.
    Here(Facts),
    /// It can be asked for elsewhere: at its URL, or in a catalogue of the net.
    Elsewhere,
    /// It is nowhere.
    Nowhere(GuestError),
}

/// The images that are known without the network. The cache and the catalogues are read when the first image is looked
/// for, and only once for all guests of a command.
pub struct KnownImages<'a> {
    host: &'a HostConfig,
    stored: OnceLock<Vec<Stored>>,
    catalogue: OnceLock<KnownCatalogue>,
}

/// The catalogues of the host file combined, as far as they can be read.
struct KnownCatalogue {
    catalogue: Catalogue,
    /// Whether all of them were read.
    is_complete: bool,
}

impl<'a> KnownImages<'a> {
    /// Creates the lookup for a host file's cache and catalogues.
    pub fn new(host: &'a HostConfig) -> Self {
        Self { host, stored: OnceLock::new(), catalogue: OnceLock::new() }
    }

    /// Looks for an image by its name or URL. Nothing is fetched, and the cache is left as it is.
    pub fn find(&self, what: &str) -> Known {
        let stored = self.stored.get_or_init(|| Cache::look(&self.host.cache_dir).list().unwrap_or_default());
        let is_it =
            |stored: &&Stored| stored.record.kind == Kind::Image && (stored.record.name == what || stored.record.source == what);
        if let Some(stored) = stored.iter().find(is_it) {
            return Known::Here(stored.record.facts.clone());
        }
        if is_url(what) {
            return Known::Elsewhere;
        }
        let known = self.catalogue.get_or_init(|| KnownCatalogue::read(self.host));
        match known.catalogue.find(Kind::Image, what) {
            Ok(entry) => Known::Here(entry.facts.clone()),
            Err(error) if known.is_complete => Known::Nowhere(error.in_one()),
            Err(_) => Known::Elsewhere,
        }
    }
}

impl KnownCatalogue {
    fn read(host: &HostConfig) -> Self {
        let cache = Cache::look(&host.cache_dir);
        let mut known = Self { catalogue: Catalogue::shipped(), is_complete: true };
        for source in &host.catalogues {
            let remote = source.url.starts_with("https://");
            let path = if remote { cache.catalogue_file(&source.id) } else { source.url.clone().into() };
            let text = crate::inputs::read_text(&path, MAX_BYTES as u64);
            known.is_complete &= text.is_ok_and(|text| known.catalogue.add(&source.url, &text).is_ok());
        }
        known
    }
}

impl<'a> Images<'a> {
    /// Returns the fetcher, with the host file's cache and catalogues.
    pub fn fetcher(&self) -> Result<Fetcher<'a>> {
        let sources = self.host.catalogues.iter().map(|it| CatalogueSource { id: it.id.clone(), at: it.url.clone() });
        Fetcher::open(&self.host.cache_dir, sources.collect(), self.progress).map_err(GuestError::in_one)
    }

    /// Obtains an image of the catalogue, of a URL, or of the user. The checksum and the format are used if they are
    /// given.
    pub fn obtain(&self, what: &str, checksum: Option<&str>, format: Option<Format>) -> Result<Obtained> {
        let checksum = checksum.map(str::parse).transpose().map_err(GuestError::in_one)?;
        self.fetcher()?.obtain(&Request { checksum, format, ..Request::new(Kind::Image, what) }).map_err(GuestError::in_one)
    }

    /// Makes the missing disks of a guest that have a source. Those made before a failure are removed.
    pub fn make_disks(&self, guest: &GuestDir, config: &GuestConfig) -> Result<Made> {
        let mut made = Made::default();
        for disk in &config.disks {
            if let Err(error) = self.make_disk(guest, config, disk, &mut made) {
                return Err(made.undo(error));
            }
        }
        Ok(made)
    }

    /// Makes every missing disk of a guest, from its source or empty, and grows those that are too small.
    pub fn make_all_disks(&self, guest: &GuestDir, config: &GuestConfig) -> Result<Made> {
        check_disks(config)?;
        let made = self.make_disks(guest, config)?;
        match ensure_disks(guest, config) {
            Ok(more) => Ok(made.and(more)),
            Err(error) => Err(made.undo(error)),
        }
    }

    fn make_disk(&self, guest: &GuestDir, config: &GuestConfig, disk: &DiskConfig, made: &mut Made) -> Result<()> {
        let Some(source) = &disk.source else { return Ok(()) };
        if is_there(guest, disk)? {
            return match is_own(disk) && !DiskRecord::load(guest)?.knows(&disk.id) {
                true => Err(found(disk, &disk_path(guest, disk)?)),
                false => Ok(()),
            };
        }
        let image = self.obtain(source, disk.checksum.as_deref(), disk.raw.then_some(Format::Raw))?;
        let size = disk.size.map_or(image.size_bytes, ByteSize::bytes);
        if size < image.size_bytes {
            return Err(GuestError::user(format!(
                "disk `{}` is of {}, and image `{source}` of {}",
                disk.id,
                ByteSize::from_bytes(size),
                ByteSize::from_bytes(image.size_bytes)
            ))
            .hint(format!("set `size` to {}B or more", image.size_bytes)));
        }
        note(guest, config, disk)?;
        if disk.backend == DiskBackend::Zvol {
            return make_filled_volume(guest, disk, ByteSize::from_bytes(size), made, |device| {
                write_volume(&image.path, device)?;
                gpt::move_end(device, size)?;
                device.sync_all()
            });
        }
        let path = disk_path(guest, disk)?;
        let failed = |error| GuestError::io(&format!("make disk `{}` at", disk.id), &path, error);
        write_file(&image.path, &path, size).map_err(failed)?;
        made.add_file(path);
        Ok(())
    }
}

/// Makes a file of `size` bytes from an image.
fn write_file(image: &Path, path: &Path, size: u64) -> std::io::Result<()> {
    make_new(path, |target| {
        clone_or_copy_into(image, target)?;
        target.set_len(size)?;
        gpt::move_end(target, size).map(drop)
    })
}

/// Writes an image into a new volume. The volume reads as zeros, so blocks of zeros are skipped.
fn write_volume(from: &Path, mut target: &File) -> std::io::Result<()> {
    let mut source = File::open(from)?;
    let mut buffer = vec![0u8; 1 << 20];
    let mut position = 0u64;
    loop {
        let mut count = 0;
        while count < buffer.len() {
            match source.read(&mut buffer[count..])? {
                0 => break,
                more => count += more,
            }
        }
        if count == 0 {
            return Ok(());
        }
        // A device accepts whole sectors only.
        let whole = count.next_multiple_of(4096).min(buffer.len());
        buffer[count..whole].fill(0);
        if buffer[..count].iter().any(|byte| *byte != 0) {
            target.seek(SeekFrom::Start(position))?;
            target.write_all(&buffer[..whole])?;
        }
        position += count as u64;
    }
}
