//! `vmctl fetch`: fetches into the cache.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use clap::ValueEnum;
use serde::Serialize;

use super::progress::{ProgressDisplay, size_words, watch_signals};
use super::{App, Column, ExitStatus, Failure, Outcome};
use crate::fetch::image::Format;
use crate::fetch::{Digest, Fetcher, Kind, Obtained, Request};
use crate::guest::images::Images;

/// Fetch images, installation media or firmware into the cache
///
/// Takes names of the catalogue or URLs. A download is verified before it is kept and unpacked while it arrives, and
/// disk images become raw files with holes. An interrupted download is resumed.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Kind of the thing to fetch
    #[arg(value_name = "KIND")]
    kind: KindArg,
    /// Names of the catalogue (`vmctl image list --all`), or URLs
    #[arg(value_name = "NAME|URL", required = true)]
    what: Vec<String>,
    /// Name in the cache, instead of the catalogue's or the URL's last part
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    #[command(flatten)]
    trust: Trust,
    /// Ask the publisher again, and fetch a newer version if there is one
    #[arg(long)]
    refresh: bool,
    /// Format of the disk, instead of detecting it
    #[arg(long, value_name = "FORMAT")]
    format: Option<FormatArg>,
    /// Maximum number of parallel downloads
    #[arg(long, value_name = "N", default_value = "3", value_parser = clap::value_parser!(u8).range(1..=16))]
    parallel: u8,
}

/// Options for verifying a download.
#[derive(Debug, Clone, clap::Args)]
pub struct Trust {
    /// Expected digest: `sha256:` or `sha512:` and hexadecimal digits
    #[arg(long, value_name = "DIGEST")]
    checksum: Option<String>,
    /// The publisher's checksum file, an https URL, that lists the URL's last part
    #[arg(long, value_name = "URL", conflicts_with = "checksum")]
    checksum_file: Option<String>,
    /// Accept any content if there is no checksum
    #[arg(long)]
    insecure_no_checksum: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum KindArg {
    /// Disk image
    Image,
    /// Installation medium
    Iso,
    /// Firmware
    Firmware,
}

/// Format of a disk.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum FormatArg {
    /// Raw
    Raw,
    /// QEMU's format
    Qcow2,
    /// VMware's format
    Vmdk,
    /// Virtual PC's format
    Vhd,
}

impl From<FormatArg> for Format {
    fn from(format: FormatArg) -> Self {
        match format {
            FormatArg::Raw => Self::Raw,
            FormatArg::Qcow2 => Self::Qcow2,
            FormatArg::Vmdk => Self::Vmdk,
            FormatArg::Vhd => Self::Vhd,
        }
    }
}

#[derive(Serialize)]
struct Row {
    kind: Kind,
    name: String,
    size_bytes: u64,
    fresh: bool,
    verified: Option<Digest>,
    path: std::path::PathBuf,
}

const COLUMNS: [Column<Row>; 5] = [
    Column { title: "NAME", wide: false, text: |row| row.name.clone() },
    Column { title: "KIND", wide: true, text: |row| row.kind.name().to_owned() },
    Column { title: "SIZE", wide: false, text: |row| size_words(row.size_bytes) },
    Column { title: "VERIFIED", wide: true, text: |row| row.verified.as_ref().map(ToString::to_string).unwrap_or_default() },
    Column { title: "PATH", wide: false, text: |row| row.path.display().to_string() },
];

impl Args {
    pub fn run(self, app: &App) -> Outcome {
        if self.what.len() > 1 && (self.name.is_some() || self.trust.checksum.is_some()) {
            return Err(Failure::user("`--name` and `--checksum` go with one thing to fetch"));
        }
        let kind = match self.kind {
            KindArg::Image => Kind::Image,
            KindArg::Iso => Kind::Iso,
            KindArg::Firmware => Kind::Firmware,
        };
        let checksum = self.trust.checksum.as_deref().map(str::parse::<Digest>).transpose()?;
        watch_signals();
        let display = ProgressDisplay::new(&app.ui);
        let host = app.host()?;
        let fetcher = Images { host: &host, progress: &display }.fetcher()?;
        let requests: Vec<Request> = self
            .what
            .iter()
            .map(|what| Request {
                name: self.name.clone(),
                checksum: checksum.clone(),
                checksum_file: self.trust.checksum_file.clone(),
                allow_unverified: self.trust.insecure_no_checksum,
                refresh: self.refresh,
                format: self.format.map(Format::from),
                ..Request::new(kind, what)
            })
            .collect();
        let outcomes = several(&fetcher, &requests, usize::from(self.parallel));
        let (mut rows, mut worst) = (Vec::new(), ExitStatus::Done);
        for (request, outcome) in requests.iter().zip(outcomes) {
            match outcome {
                Ok(obtained) => rows.push(row(&obtained)),
                Err(failure) => worst = worst.max(app.ui.failure_about(requests.len() > 1, &request.target, &failure)),
            }
        }
        if !rows.is_empty() {
            app.ui.list("fetched", 1, &rows, &COLUMNS, |row| row.name.clone())?;
        }
        Ok(worst)
    }
}

/// Obtains each, `at_once` at the same time. Returns the results in the order of the requests.
fn several(fetcher: &Fetcher<'_>, requests: &[Request], at_once: usize) -> Vec<Result<Obtained, Failure>> {
    let (next, outcomes) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..at_once.min(requests.len()) {
            scope.spawn(|| {
                while let Some((at, request)) =
                    Some(next.fetch_add(1, Ordering::Relaxed)).and_then(|at| Some((at, requests.get(at)?)))
                {
                    let outcome = fetcher.obtain(request).map_err(Failure::from);
                    outcomes.lock().expect("nothing panics while it is held").push((at, outcome));
                }
            });
        }
    });
    let mut outcomes = outcomes.into_inner().expect("nothing panics while it is held");
    outcomes.sort_by_key(|(at, _)| *at);
    outcomes.into_iter().map(|(_, outcome)| outcome).collect()
}

fn row(obtained: &Obtained) -> Row {
    Row {
        kind: obtained.kind,
        name: obtained.name.clone(),
        size_bytes: obtained.size_bytes,
        fresh: obtained.fresh,
        verified: obtained.verified.clone(),
        path: obtained.path.clone(),
    }
}
