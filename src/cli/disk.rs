//! `vmctl disk`: changes the disks of a guest.

use std::path::PathBuf;

use super::ask::Consent;
use super::progress::{Awaited, ProgressDisplay, watch_signals};
use super::{App, ExitStatus, Failure, Outcome, entries};
use crate::guest::change::{self, Class};
use crate::guest::definition::{Definition, Surroundings};
use crate::guest::provision::disk_path;
use crate::guest::store::GuestDir;
use crate::units::ByteSize;

/// Add, remove and resize disks
///
/// Changes the guest file as `edit` does. A running guest sees it at its next boot.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    action: DiskCommand,
}

#[derive(Debug, clap::Subcommand)]
enum DiskCommand {
    /// Add a disk
    ///
    /// An existing file or volume of its name is not used for it.
    Add {
        /// The guest
        #[arg(value_name = "GUEST")]
        guest: String,
        /// Name of the disk
        #[arg(value_name = "DISK")]
        disk: String,
        /// Size of the new disk
        #[arg(long, value_name = "SIZE", required_unless_present_any = ["path", "source"])]
        size: Option<ByteSize>,
        /// An existing file or device
        #[arg(long, value_name = "PATH", conflicts_with = "source")]
        path: Option<PathBuf>,
        /// Image to make it from: a name of the catalogue, a URL or a path
        #[arg(long, value_name = "IMAGE")]
        source: Option<String>,
        /// Expected checksum of the image's file, like `sha256:HEX`; needed for a URL
        #[arg(long, value_name = "DIGEST", requires = "source")]
        checksum: Option<String>,
        /// Storage of its bytes: sparse, zvol or file
        #[arg(long, value_name = "BACKEND")]
        backend: Option<String>,
        /// Device that the guest sees, like virtio-blk
        #[arg(long, value_name = "DEVICE")]
        device: Option<String>,
        /// Refuse the guest's writes
        #[arg(long)]
        ro: bool,
    },
    /// Remove a disk
    ///
    /// Its bytes are kept, and the command reports where.
    #[command(aliases = ["rm", "delete"])]
    Remove {
        /// The guest
        #[arg(value_name = "GUEST")]
        guest: String,
        /// The disk
        #[arg(value_name = "DISK")]
        disk: String,
        /// Also remove its bytes; only for a disk that vmctl made, while the guest is stopped
        #[arg(long)]
        purge: bool,
        /// Do not ask about `--purge`
        #[arg(short, long)]
        yes: bool,
    },
    /// Make a disk larger
    Resize {
        /// The guest
        #[arg(value_name = "GUEST")]
        guest: String,
        /// The disk
        #[arg(value_name = "DISK")]
        disk: String,
        /// The new size
        #[arg(value_name = "SIZE")]
        size: ByteSize,
    },
}

/// Returns where the bytes of a guest's disk are.
fn disk_at(guest: &GuestDir, id: &str, surroundings: Surroundings<'_>) -> Option<PathBuf> {
    let config = Definition::load(guest, surroundings).ok()?.config;
    disk_path(guest, config.disks.iter().find(|disk| disk.id == id)?).ok()
}

impl Args {
    pub fn run(self, app: &App) -> Outcome {
        let context = app.context()?;
        let surroundings = context.surroundings();
        match self.action {
            DiskCommand::Add { guest, disk, size, path, source, checksum, backend, device, ro } => {
                let guest = context.store.guest(&guest)?;
                let mut keys = Vec::new();
                keys.extend(size.map(|size| ("size", change::text(&size.to_string()))));
                keys.extend(path.map(|path| change::path(&path)).transpose()?.map(|path| ("path", path)));
                keys.extend(source.map(|source| change::image(&source)).transpose()?.map(|source| ("source", source)));
                keys.extend(checksum.map(|checksum| ("checksum", change::text(&checksum))));
                keys.extend(backend.map(|backend| ("backend", change::text(&backend))));
                keys.extend(device.map(|device| ("device", change::text(&device))));
                keys.extend(ro.then(|| ("ro", "true".to_owned())));
                watch_signals();
                let name = guest.name();
                let undone = format!("{name}: disk {disk} is not added; the next command removes what there is of it");
                let shown = app.ui.wait(Awaited::work(name, format!("making disk {disk}"), undone));
                let when = change::add_disk(&guest, &disk, &keys, surroundings, &ProgressDisplay::new(&app.ui))?;
                drop(shown);
                entries::done(app, &guest, Class::Disk, &disk, "added", when)
            }
            DiskCommand::Remove { guest, disk, purge, yes } => {
                let guest = context.store.guest(&guest)?;
                let path = disk_at(&guest, &disk, surroundings);
                if purge {
                    let bytes = path.as_ref().map(|path| format!(" at {}", path.display())).unwrap_or_default();
                    let unasked = || {
                        Failure::user(format!("the bytes of disk `{disk}` are not removed without being asked about"))
                            .hint("add `--yes`")
                    };
                    let question = format!("Remove disk {disk} of {} and its bytes{bytes}?", guest.name());
                    if !Consent::new(yes, false).ask(&question, unasked)? {
                        return Err(Failure::user(format!("disk `{disk}` was not removed")));
                    }
                }
                entries::remove(app, &context, guest.name(), Class::Disk, &disk, purge)?;
                if let Some(path) = path.filter(|path| !purge && path.exists()) {
                    app.ui.done(format!("{}: the bytes of disk {disk} are kept at {}", guest.name(), path.display()));
                }
                Ok(ExitStatus::Done)
            }
            DiskCommand::Resize { guest, disk, size } => {
                let guest = context.store.guest(&guest)?;
                let when = change::resize(&guest, &disk, size, surroundings)?;
                entries::done(app, &guest, Class::Disk, &disk, &format!("of {size}"), when)
            }
        }
    }
}
