//! `vmctl disk`.

use std::path::PathBuf;

use super::progress::{Shown, watch_signals};
use super::{App, Outcome, parts};
use crate::guest::change::{self, Class};
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
    /// Take a disk away; its bytes stay
    Remove {
        /// The guest
        #[arg(value_name = "GUEST")]
        guest: String,
        /// The disk
        #[arg(value_name = "DISK")]
        disk: String,
        /// Remove its bytes too; only of a disk that vmctl made, and while the guest is stopped
        #[arg(long, requires = "yes")]
        purge: bool,
        /// Do not ask
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
            Action::Remove { guest, disk, purge, yes: _ } => parts::remove(app, &place, &guest, Class::Disk, &disk, purge),
            Action::Resize { guest, disk, size } => {
                let guest = place.store.guest(&guest)?;
                let when = change::resize(&guest, &disk, size, around)?;
                parts::done(app, &guest, Class::Disk, &disk, &format!("of {size}"), when)
            }
        }
    }
}
