//! `vmctl disk`.

use std::path::PathBuf;

use super::ask::Consent;
use super::progress::{Shown, watch_signals};
use super::{App, ExitStatus, Failure, Outcome, parts};
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
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Add a disk
    ///
    /// A file or volume that is there already under its name is not taken for it.
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
        /// A file or device that is there already
        #[arg(long, value_name = "PATH", conflicts_with = "source")]
        path: Option<PathBuf>,
        /// Image that it is made from: a name of the catalogue, a URL or a path
        #[arg(long, value_name = "IMAGE")]
        source: Option<String>,
        /// What the image's file must be, like `sha256:HEX`; needed for a URL
        #[arg(long, value_name = "DIGEST", requires = "source")]
        checksum: Option<String>,
        /// Where its bytes are: sparse, zvol or file
        #[arg(long, value_name = "BACKEND")]
        backend: Option<String>,
        /// What the guest sees, like virtio-blk
        #[arg(long, value_name = "DEVICE")]
        device: Option<String>,
        /// Refuse the guest's writes
        #[arg(long)]
        ro: bool,
    },
    /// Take a disk away
    ///
    /// Its bytes stay, and it is said where.
    Remove {
        /// The guest
        #[arg(value_name = "GUEST")]
        guest: String,
        /// The disk
        #[arg(value_name = "DISK")]
        disk: String,
        /// Remove its bytes too; only of a disk that vmctl made, and while the guest is stopped
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

/// Where the bytes of a guest's disk are.
fn disk_at(guest: &GuestDir, id: &str, around: Surroundings<'_>) -> Option<PathBuf> {
    let config = Definition::load(guest, around).ok()?.config;
    disk_path(guest, config.disks.iter().find(|disk| disk.id == id)?).ok()
}

impl Args {
    pub fn run(self, app: &App) -> Outcome {
        let place = app.place()?;
        let around = place.around();
        match self.action {
            Action::Add { guest, disk, size, path, source, checksum, backend, device, ro } => {
                let guest = place.store.guest(&guest)?;
                let mut keys = Vec::new();
                keys.extend(size.map(|size| ("size", change::text(&size.to_string()))));
                keys.extend(path.map(|path| change::path(&path)).transpose()?.map(|path| ("path", path)));
                keys.extend(source.map(|source| change::image(&source)).transpose()?.map(|source| ("source", source)));
                keys.extend(checksum.map(|checksum| ("checksum", change::text(&checksum))));
                keys.extend(backend.map(|backend| ("backend", change::text(&backend))));
                keys.extend(device.map(|device| ("device", change::text(&device))));
                keys.extend(ro.then(|| ("ro", "true".to_owned())));
                watch_signals();
                let when = change::add_disk(&guest, &disk, &keys, around, &Shown::new(&app.ui))?;
                parts::done(app, &guest, Class::Disk, &disk, "added", when)
            }
            Action::Remove { guest, disk, purge, yes } => {
                let guest = place.store.guest(&guest)?;
                let path = disk_at(&guest, &disk, around);
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
                parts::remove(app, &place, guest.name(), Class::Disk, &disk, purge)?;
                if let Some(path) = path.filter(|path| !purge && path.exists()) {
                    app.ui.done(format!("{}: the bytes of disk {disk} stay at {}", guest.name(), path.display()));
                }
                Ok(ExitStatus::Done)
            }
            Action::Resize { guest, disk, size } => {
                let guest = place.store.guest(&guest)?;
                let when = change::resize(&guest, &disk, size, around)?;
                parts::done(app, &guest, Class::Disk, &disk, &format!("of {size}"), when)
            }
        }
    }
}
