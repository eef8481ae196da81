//! `vmctl image`: manages images and firmware in the cache.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Serialize;

use super::ask::Consent;
use super::fetch::FormatArg;
use super::progress::{ProgressDisplay, size_words, watch_signals};
use super::{App, Column, ExitStatus, Failure, Outcome};
use crate::config::{EngineKind, NamePattern};
use crate::fetch::cache::Finding;
use crate::fetch::catalogue::Source;
use crate::fetch::image::Format;
use crate::fetch::progress::Job;
use crate::fetch::{Cache, Catalogue, Digest, Entry, Facts, Kind, Request, Stored};
use crate::guest::images::Images;
use crate::units::parse_duration;

/// Disk images and firmware in the cache
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    action: ImageCommand,
}

#[derive(Debug, clap::Subcommand)]
enum ImageCommand {
    #[command(alias = "ls")]
    List(List),
    Show(Show),
    Import(Import),
    #[command(aliases = ["rm", "delete"])]
    Remove(Remove),
    Prune(Prune),
    Check(Check),
}

/// List images and firmware
#[derive(Debug, clap::Args)]
struct List {
    /// Only those of this name, of this family, or that match a glob, also those that are not here yet
    #[arg(value_name = "IMAGE")]
    names: Vec<String>,
    /// Also list what the catalogues offer and is not here yet
    #[arg(short, long)]
    all: bool,
}

/// Show the details of an image or a firmware
#[derive(Debug, clap::Args)]
struct Show {
    /// Its name
    #[arg(value_name = "IMAGE")]
    name: String,
}

/// Import a file of this host into the cache
///
/// It is unpacked (gzip, xz, lzma, zstd, bzip2, tar) and converted (qcow2, VMDK, VHD) to a raw file with holes. The
/// file itself is not changed.
#[derive(Debug, clap::Args)]
struct Import {
    /// The file
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Name in the cache, instead of the file's name
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Expected digest
    #[arg(long, value_name = "DIGEST")]
    checksum: Option<String>,
    /// Format of the disk, instead of detecting it
    #[arg(long, value_name = "FORMAT")]
    format: Option<FormatArg>,
    /// Replace an image of this name from another file
    #[arg(long)]
    refresh: bool,
}

/// Remove images or firmware from the cache
///
/// Asks first. Guests that were made from them keep their own disks.
#[derive(Debug, clap::Args)]
struct Remove {
    /// Their names
    #[arg(value_name = "IMAGE", required = true)]
    names: Vec<String>,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
}

/// Remove everything from the cache that is not needed
///
/// Removes incomplete downloads, the remains of interrupted commands, and objects without a name.
#[derive(Debug, clap::Args)]
struct Prune {
    /// Also remove what was not used for this long, like `30d`
    #[arg(long, value_name = "DURATION")]
    unused: Option<String>,
}

/// Read the cache again and check that nothing has changed
///
/// Exits with 1 if something has changed.
#[derive(Debug, clap::Args)]
struct Check {
    /// Names; all by default
    #[arg(value_name = "IMAGE")]
    names: Vec<String>,
}

/// One line of `list`.
#[derive(Serialize)]
pub struct Row {
    kind: Kind,
    name: String,
    version: Option<String>,
    description: Option<String>,
    cached: bool,
    size_bytes: Option<u64>,
    used_bytes: Option<u64>,
    verified: Option<Digest>,
    source: String,
    path: Option<PathBuf>,
    #[serde(skip)]
    built: bool,
    /// The loader that it boots with, where that is bhyve's.
    #[serde(skip)]
    of_bhyve: Option<String>,
}

const COLUMNS: [Column<Row>; 9] = [
    Column { title: "NAME", wide: false, text: |row| row.name.clone() },
    Column { title: "KIND", wide: true, text: |row| row.kind.name().to_owned() },
    Column { title: "VERSION", wide: false, text: |row| row.version.clone().unwrap_or_default() },
    Column { title: "STATE", wide: false, text: state },
    Column { title: "SIZE", wide: false, text: |row| row.size_bytes.map(size_words).unwrap_or_default() },
    Column { title: "USED", wide: false, text: |row| row.used_bytes.map(size_words).unwrap_or_default() },
    Column { title: "VERIFIED", wide: true, text: |row| row.verified.as_ref().map(ToString::to_string).unwrap_or_default() },
    Column { title: "SOURCE", wide: true, text: |row| row.source.clone() },
    Column { title: "DESCRIPTION", wide: false, text: |row| row.description.clone().unwrap_or_default() },
];

fn state(row: &Row) -> String {
    if let Some(loader) = &row.of_bhyve {
        return format!("needs bhyve ({loader})");
    }
    match (row.cached, row.built) {
        (true, _) => "here".into(),
        (false, true) => "can be built".into(),
        (false, false) => "can be fetched".into(),
    }
}

/// Returns a loader that only bhyve has.
fn of_bhyve(loader: Option<String>) -> Option<String> {
    loader.filter(|loader| matches!(loader.as_str(), "uefi" | "bhyveload"))
}

impl Row {
    fn stored(stored: Stored) -> Self {
        let facts = stored.record.facts;
        Self {
            kind: stored.record.kind,
            name: stored.record.name,
            version: facts.version,
            description: facts.description,
            cached: true,
            size_bytes: Some(stored.size_bytes),
            used_bytes: Some(stored.used_bytes),
            verified: stored.record.verified,
            source: stored.record.source,
            path: Some(stored.path),
            built: false,
            of_bhyve: of_bhyve(facts.loader),
        }
    }

    fn offered(entry: &Entry) -> Self {
        let (source, built) = match &entry.source {
            Source::Download(download) => (download.urls.first().cloned().unwrap_or_default(), false),
            Source::Build(_) => ("built on this host".into(), true),
        };
        Self {
            kind: entry.kind,
            name: entry.name.clone(),
            version: entry.facts.version.clone(),
            description: entry.facts.description.clone(),
            cached: false,
            size_bytes: None,
            used_bytes: None,
            verified: None,
            source,
            path: None,
            built,
            of_bhyve: of_bhyve(entry.facts.loader.clone()),
        }
    }
}

impl Args {
    pub fn run(self, app: &App) -> Outcome {
        match self.action {
            ImageCommand::List(args) => list(app, &[Kind::Image, Kind::Firmware], &args.names, args.all),
            ImageCommand::Show(args) => args.run(app),
            ImageCommand::Import(args) => args.run(app),
            ImageCommand::Remove(args) => remove(app, &[Kind::Image, Kind::Firmware], &args.names, args.yes),
            ImageCommand::Prune(args) => args.run(app),
            ImageCommand::Check(args) => args.run(app),
        }
    }
}

/// Lists the contents of the cache and, with `all` or for names, what the catalogues offer.
pub fn list(app: &App, kinds: &[Kind], names: &[String], all: bool) -> Outcome {
    let host = app.host()?;
    let patterns = names.iter().map(|name| name.parse::<NamePattern>()).collect::<Result<Vec<_>, _>>()?;
    let mut rows = BTreeMap::new();
    if all || !names.is_empty() {
        watch_signals();
        let display = ProgressDisplay::new(&app.ui);
        let fetcher = Images { host: &host, progress: &display }.fetcher()?;
        for entry in fetcher.catalogue()?.entries() {
            rows.insert((entry.kind, entry.name.clone()), Row::offered(entry));
        }
    }
    for stored in Cache::look(&host.cache_dir).list()? {
        rows.insert((stored.record.kind, stored.record.name.clone()), Row::stored(stored));
    }
    // Elsewhere, what no guest of this host can boot is no offer.
    if host.default_engine == EngineKind::Bhyve {
        rows.values_mut().for_each(|row| row.of_bhyve = None);
    }
    // `debian` means all whose names begin with that word.
    let is_meant = |row: &Row| {
        let begins = |name: &String| row.name.strip_prefix(name.as_str()).is_some_and(|rest| rest.starts_with('-'));
        patterns.is_empty() || patterns.iter().any(|pattern| pattern.matches(&row.name)) || names.iter().any(begins)
    };
    let rows: Vec<Row> = rows.into_values().filter(|row| kinds.contains(&row.kind) && is_meant(row)).collect();
    if rows.is_empty() && !names.is_empty() {
        let list = if kinds.contains(&Kind::Iso) { "iso" } else { "image" };
        return Err(Failure::user(format!("nothing is called {}", words_of(names)))
            .hint(format!("`vmctl {list} list --all` lists all that there is")));
    }
    app.ui.list("images", 1, &rows, &COLUMNS, |row| row.name.clone())?;
    if rows.is_empty() && !app.ui.is_json() {
        app.ui.done("nothing is in the cache; `--all` shows what can be fetched");
    }
    Ok(ExitStatus::Done)
}

/// Returns names as words for a message.
fn words_of(names: &[String]) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(" or ")
}

/// Removes each, of whichever of the kinds it is, once the user has agreed.
pub fn remove(app: &App, kinds: &[Kind], names: &[String], yes: bool) -> Outcome {
    let cache = Cache::open(&app.host()?.cache_dir)?;
    let there = cache.list()?;
    let mut consent = Consent::new(yes, names.len() > 1);
    app.ui.each(names, String::clone, |name| {
        let found = there.iter().find(|stored| stored.record.name == *name && kinds.contains(&stored.record.kind));
        if let Some(stored) = found {
            let question = format!("Remove {name} ({}) from the cache?", size_words(stored.used_bytes));
            let unasked = || Failure::user(format!("`{name}` is not removed without confirmation")).hint("add `--yes`");
            if !consent.ask(&question, unasked)? {
                return Err(Failure::user(format!("`{name}` was not removed")));
            }
        }
        cache.remove(found.map_or(kinds[0], |stored| stored.record.kind), name)?;
        app.ui.done(format!("{name} is removed"));
        Ok(ExitStatus::Done)
    })
}

/// Imports one file.
pub fn import(app: &App, request: &Request) -> Outcome {
    watch_signals();
    let display = ProgressDisplay::new(&app.ui);
    let host = app.host()?;
    let obtained = Images { host: &host, progress: &display }.fetcher()?.import(request)?;
    app.ui.done(format!("{} `{}` is there, {}", obtained.kind.name(), obtained.name, size_words(obtained.size_bytes)));
    Ok(ExitStatus::Done)
}

#[derive(Serialize)]
struct Known {
    kind: Kind,
    name: String,
    cached: bool,
    path: Option<PathBuf>,
    kernel: Option<PathBuf>,
    initrd: Option<PathBuf>,
    size_bytes: Option<u64>,
    verified: Option<Digest>,
    source: String,
    #[serde(flatten)]
    facts: Facts,
}

impl Known {
    fn find(cache: &Cache, catalogue: &Catalogue, name: &str) -> Result<Self, Failure> {
        for kind in [Kind::Image, Kind::Firmware] {
            if let Some((stored, _lease)) = cache.find(kind, name)? {
                return Ok(Self {
                    kind,
                    name: name.to_owned(),
                    cached: true,
                    path: Some(stored.path),
                    kernel: stored.kernel,
                    initrd: stored.initrd,
                    size_bytes: Some(stored.size_bytes),
                    verified: stored.record.verified,
                    source: stored.record.source,
                    facts: stored.record.facts,
                });
            }
        }
        let entry = catalogue.find(Kind::Firmware, name).or_else(|_| catalogue.find(Kind::Image, name))?;
        let row = Row::offered(entry);
        Ok(Self {
            kind: entry.kind,
            name: name.to_owned(),
            cached: false,
            path: None,
            kernel: None,
            initrd: None,
            size_bytes: None,
            verified: None,
            source: row.source,
            facts: entry.facts.clone(),
        })
    }

    fn text(&self) -> String {
        let facts = &self.facts;
        let path = |path: &Option<PathBuf>| path.as_ref().map(|path| path.display().to_string());
        let lines = [
            ("name", Some(self.name.clone())),
            ("kind", Some(self.kind.name().to_owned())),
            ("description", facts.description.clone()),
            ("version", facts.version.clone()),
            ("path", path(&self.path)),
            ("kernel", path(&self.kernel)),
            ("initrd", path(&self.initrd)),
            ("cmdline", facts.cmdline.clone()),
            ("size", self.size_bytes.map(size_words)),
            ("least disk", facts.least_disk_bytes.map(size_words)),
            ("loader", facts.loader.clone()),
            ("user", facts.user.clone()),
            ("cloud-init", Some(if facts.cloud_init { "yes" } else { "no" }.to_owned())),
            ("verified", self.verified.as_ref().map(ToString::to_string)),
            ("source", Some(self.source.clone())),
        ];
        let known = lines.into_iter().filter_map(|(key, value)| Some((key, value?)));
        known.map(|(key, value)| format!("{:<12} {value}\n", format!("{key}:"))).collect()
    }
}

impl Show {
    fn run(self, app: &App) -> Outcome {
        let display = ProgressDisplay::new(&app.ui);
        let host = app.host()?;
        let fetcher = Images { host: &host, progress: &display }.fetcher()?;
        let known = Known::find(fetcher.cache(), fetcher.catalogue()?, &self.name)?;
        app.ui.record("image", 1, &known, &known.name, &known.text())?;
        Ok(ExitStatus::Done)
    }
}

impl Import {
    fn run(self, app: &App) -> Outcome {
        let request = Request {
            name: self.name,
            checksum: self.checksum.as_deref().map(str::parse).transpose()?,
            format: self.format.map(Format::from),
            refresh: self.refresh,
            ..Request::new(Kind::Image, self.file.to_string_lossy())
        };
        import(app, &request)
    }
}

impl Prune {
    fn run(self, app: &App) -> Outcome {
        let unused = self.unused.as_deref().map(parse_duration).transpose()?;
        let pruned = Cache::open(&app.host()?.cache_dir)?.prune(unused)?;
        let mut text = String::new();
        for what in &pruned.removed {
            text.push_str(&format!("removed {what}\n"));
        }
        for what in &pruned.in_use {
            text.push_str(&format!("kept {what}: it is in use\n"));
        }
        text.push_str(&format!("{} freed\n", size_words(pruned.freed_bytes)));
        app.ui.record("pruned", 1, &pruned, "", &text)?;
        Ok(ExitStatus::Done)
    }
}

const FINDINGS: [Column<Finding>; 3] = [
    Column { title: "NAME", wide: false, text: |found| found.name.clone() },
    Column { title: "KIND", wide: true, text: |found| found.kind.name().to_owned() },
    Column { title: "VERDICT", wide: false, text: |found| found.problem.clone().unwrap_or_else(|| "as it was".into()) },
];

impl Check {
    fn run(self, app: &App) -> Outcome {
        watch_signals();
        let display = ProgressDisplay::new(&app.ui);
        let job = Job::new("cache", &display);
        let kinds = [Kind::Image, Kind::Iso, Kind::Firmware];
        let findings = Cache::look(&app.host()?.cache_dir).check(&kinds, &self.names, &job)?;
        drop(job);
        if let Some(missing) = self.names.iter().find(|name| !findings.iter().any(|found| found.name == **name)) {
            return Err(Failure::user(format!("nothing called `{missing}` is in the cache")));
        }
        app.ui.list("findings", 1, &findings, &FINDINGS, |found| found.name.clone())?;
        match findings.iter().find(|found| found.problem.is_some()) {
            None => Ok(ExitStatus::Done),
            Some(bad) => Err(Failure::user("the cached file has changed since it was fetched").hint(format!(
                "fetch it again: `vmctl {} remove --yes {name}`, then `vmctl fetch {} {name}`",
                if bad.kind == Kind::Iso { "iso" } else { "image" },
                bad.kind.name(),
                name = bad.name
            ))),
        }
    }
}
