//! `vmctl launch`: creates guests, starts them, and waits.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::ask::Consent;
use super::create::{NewGuestArgs, SourceArgs, free_name};
use super::progress::{Awaited, ProgressDisplay, watch_signals};
use super::project::{FileKind, kind_of};
use super::selection::CommandContext;
use super::start::{self, How};
use super::stop::is_running;
use super::{App, Failure, Outcome};
use crate::config::EngineKind;
use crate::config::paths::home;
use crate::fetch::catalogue::{family_of, near};
use crate::fetch::{Facts, Fault, FetchError, Fetcher, Kind, Obtained, Request};
use crate::guest::change::image_source;
use crate::guest::clone::ports_in_use;
use crate::guest::create::{self, Origin};
use crate::guest::images::{Images, Known, KnownImages};
use crate::guest::launch_file;
use crate::guest::preflight::not_for_embedded;
use crate::guest::store::GuestDir;
use crate::guest::unknown_image;
use crate::inputs::is_url;

/// Make guests and start them
///
/// Makes a guest with a disk from an image of the catalogue (`vmctl image list --all`), a user-mode network and, if the
/// image has cloud-init, the user's public key. A family of images, like `debian`, means its newest release that can
/// run here. Without a name, the guest is called after its image. The image may also be a URL or the file of a disk,
/// and the first word a template or a guest file. For a URL without `--checksum`, asks whether to trust the download;
/// later guests must get the same bytes.
///
/// With `--file` or `--template`, all words are names of guests. With `--console`, shows the console instead of waiting.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What to make guests of: an image, a family of images, a template, a URL, or a file
    #[arg(value_name = "IMAGE|TEMPLATE|FILE", required_unless_present_any = ["file", "template"])]
    image: Option<String>,
    /// Names of the new guests
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    #[command(flatten)]
    source: SourceArgs,
    /// Show the console once the guest runs, instead of waiting until it is ready
    #[arg(long)]
    console: bool,
    /// Return when the guest runs, even if it is not ready
    #[arg(long, conflicts_with = "console")]
    no_wait: bool,
    /// Expected checksum of the image's file, like `sha256:HEX`
    #[arg(long, value_name = "DIGEST", conflicts_with_all = ["file", "template"])]
    checksum: Option<String>,
}

/// The meaning of the first word.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Named {
    /// An image: a name of the catalogue or the cache, a URL, or a path.
    Image(String),
    /// A template.
    Template(String),
    /// A guest file.
    GuestFile(PathBuf),
}

impl Args {
    pub fn run(self, app: &App) -> Outcome {
        watch_signals();
        let context = app.context()?;
        let how = if self.console { How::with_console() } else { How::plain(!self.no_wait) };
        let mut source = self.source;
        if source.file.is_some() || source.template.is_some() {
            let names = self.image.into_iter().chain(self.names).collect();
            return make(app, &context, names, source, &how);
        }
        let word = self.image.unwrap_or_default();
        let image = match named(app, &context, &word)? {
            Named::Image(image) => image,
            _ if self.checksum.is_some() => {
                return Err(Failure::user(format!("`{word}` is no image, and only the file of an image has a checksum")));
            }
            Named::Template(template) => {
                source.template = Some(template);
                return make(app, &context, self.names, source, &how);
            }
            Named::GuestFile(file) => {
                source.file = Some(file);
                return make(app, &context, self.names, source, &how);
            }
        };
        let wanted = WantedImage::new(&context, &word, image, self.checksum)?;
        wanted.launch(app, &context, &self.names, &source.sets, &how)
    }
}

/// Makes guests of a file or a template, and starts them.
fn make(app: &App, context: &CommandContext, names: Vec<String>, source: SourceArgs, how: &How) -> Outcome {
    NewGuestArgs::to_start(names, source).each(app, context, |guest| start_or_remove(app, context, guest, how))
}

/// Returns what the first word names: what the cache and the catalogue have comes before templates, and those before
/// files without a slash.
fn named(app: &App, context: &CommandContext, word: &str) -> Result<Named, Failure> {
    if is_url(word) {
        return Ok(Named::Image(word.to_owned()));
    }
    if word.contains('/') {
        return of_file(Path::new(word));
    }
    let progress = ProgressDisplay::new(&app.ui);
    let fetcher = Images { host: &context.host, progress: &progress }.fetcher()?;
    let catalogue = fetcher.catalogue()?;
    if fetcher.cache().find(Kind::Image, word)?.is_some() || catalogue.find(Kind::Image, word).is_ok() {
        return Ok(Named::Image(word.to_owned()));
    }
    let templates = context.templates();
    let has_bhyve = context.host.default_engine == EngineKind::Bhyve;
    if let Some(newest) = catalogue.newest(word, is_bootable) {
        // A template for bhyve, where that is, is better than an image that is for it alone.
        if is_bootable(&newest.facts) || !has_bhyve || !templates.names().iter().any(|name| name == word) {
            return Ok(Named::Image(newest.name.clone()));
        }
    }
    if templates.names().iter().any(|name| name == word) {
        return Ok(Named::Template(word.to_owned()));
    }
    if Path::new(word).is_file() {
        return of_file(&Path::new(".").join(word));
    }
    let templates = if has_bhyve { templates.names() } else { templates.names_by_engine().0 };
    Err(nothing_called(&fetcher, &templates, word)?)
}

/// Returns whether a guest of the embedded engine boots an image with these facts.
pub fn is_bootable(facts: &Facts) -> bool {
    facts.loader.as_deref().is_none_or(|loader| ["grub", "kernel"].contains(&loader))
}

/// Returns what a file is: of a guest, or of a disk.
fn of_file(path: &Path) -> Result<Named, Failure> {
    let shown = path.display();
    if !path.exists() {
        return Err(Failure::user(format!("there is no file `{shown}`"))
            .hint("`vmctl image list --all` shows the images that are launched by name"));
    }
    if path.extension().is_none_or(|extension| extension != "toml") {
        return Ok(Named::Image(path.to_string_lossy().into_owned()));
    }
    match kind_of(path) {
        FileKind::Fleet => {
            Err(Failure::user(format!("`{shown}` is a fleet file"))
                .hint(format!("`vmctl up {shown}` makes and starts its guests")))
        }
        FileKind::Host | FileKind::Guest => Ok(Named::GuestFile(path.to_owned())),
    }
}

/// Returns the error for a word that nothing has, with what is much like it.
fn nothing_called(fetcher: &Fetcher<'_>, templates: &[String], word: &str) -> Result<Failure, Failure> {
    let images = fetcher.catalogue()?.entries().iter();
    let images: Vec<&str> =
        images.filter(|entry| entry.kind == Kind::Image && is_bootable(&entry.facts)).map(|entry| entry.name.as_str()).collect();
    let families = images.iter().filter_map(|name| family_of(name)).map(|(family, _)| family);
    let mut known: Vec<String> = families.chain(fetcher.cache().list()?.into_iter().map(|stored| stored.record.name)).collect();
    known.extend(images.iter().map(|name| (*name).to_owned()));
    known.extend(templates.iter().cloned());
    known.sort();
    known.dedup();
    let failure = Failure::user(format!("there is no image, template or file `{word}`"));
    Ok(match near(word, known.iter().map(String::as_str)) {
        Some(near) => failure.hint(format!("did you mean {near}? `vmctl image list --all` shows all images")),
        None => failure.hint("`vmctl image list --all` shows the images; a file is named with a slash, like `./disk.img`"),
    })
}

/// The image of a `launch`.
struct WantedImage {
    /// Name, URL or path.
    image: String,
    /// The same for the guest file.
    source: String,
    /// Word of which a guest's name is made.
    base: String,
    /// Whether the user gave another word for it.
    is_of_family: bool,
    checksum: Option<String>,
    /// Whether the user takes what a URL without a checksum sends.
    is_trusted: bool,
}

impl WantedImage {
    /// Checks what is known of an image before it is fetched, and asks about a URL without a checksum.
    fn new(context: &CommandContext, word: &str, image: String, checksum: Option<String>) -> Result<WantedImage, Failure> {
        let known = KnownImages::new(&context.host).find(&image);
        if let Known::Here(facts) = &known
            && !is_bootable(facts)
        {
            return Err(not_for_embedded(&image, facts.loader.as_deref().unwrap_or_default()).into());
        }
        let is_trusted = is_url(&image) && checksum.is_none() && matches!(known, Known::Elsewhere);
        if is_trusted {
            let unasked = || {
                Failure::user(format!("there is no checksum to hold `{image}` to")).hint(format!(
                    "add `--checksum sha256:HEX`; or take it as it comes, and launch it then: `vmctl fetch image {image} --insecure-no-checksum`"
                ))
            };
            let question = format!("There is no checksum to hold {image} to. Take what it sends, and remember that?");
            if !Consent::new(false, false).ask(&question, unasked)? {
                return Err(Failure::user("nothing was fetched"));
            }
        }
        let base = match image.contains('/') {
            true => stem(&image).to_owned(),
            false => family_of(&image).map_or_else(|| image.clone(), |(family, _)| family),
        };
        let source = image_source(&image)?;
        Ok(WantedImage { is_of_family: image != word && !image.contains('/'), image, source, base, checksum, is_trusted })
    }

    fn launch(&self, app: &App, context: &CommandContext, names: &[String], sets: &[String], how: &How) -> Outcome {
        let progress = ProgressDisplay::new(&app.ui);
        let fetcher = Images { host: &context.host, progress: &progress }.fetcher()?;
        let unnamed = names.is_empty();
        let names = if unnamed { vec![free_name(&self.base, &context.store)?] } else { names.to_vec() };
        if unnamed || self.is_of_family {
            app.ui.done(format!("{}: of the image {}", names.join(", "), self.image));
        }
        let mut taken = ports_in_use(&context.store, context.surroundings());
        app.ui.each(&names, String::clone, |name| {
            let obtained = self.obtain(app, &fetcher)?;
            let source = if self.is_of_family { &obtained.name } else { &self.source };
            let key = launch_file::public_key(&context.store, home().as_deref())?;
            let port = launch_file::free_port(&taken)?;
            taken.push(port);
            let mut boot = Vec::new();
            boot.extend(obtained.kernel.clone().map(|path| (path, "vmlinuz")));
            boot.extend(obtained.initrd.clone().map(|path| (path, "initrd.img")));
            // A later guest of this file is held to what came when the user agreed.
            let seen = obtained.seen.as_ref().map(ToString::to_string);
            let checksum = self.checksum.as_deref().or(seen.as_deref());
            let text = launch_file::text(&obtained, (source, checksum), &key, port, context.host.engine());
            let origin = Origin::Image { text, boot, user: obtained.facts.user.clone() };
            let shown = app.ui.wait(Awaited::making(name));
            let guest = create::create(&context.store, name, &origin, sets, context.surroundings(), &progress)?;
            drop(shown);
            start_or_remove(app, context, &guest, how)
        })
    }

    /// Fetches the image, and looks into one that no catalogue describes.
    fn obtain(&self, app: &App, fetcher: &Fetcher<'_>) -> Result<Obtained, Failure> {
        let checksum = self.checksum.as_deref().map(str::parse).transpose()?;
        let request = Request { checksum, allow_unverified: self.is_trusted, ..Request::new(Kind::Image, &self.image) };
        let mut obtained = match fetcher.obtain(&request) {
            Err(error) if self.is_of_family && error.fault() == Fault::Host => self.build(app, fetcher, error)?,
            obtained => obtained?,
        };
        if obtained.facts == Facts::default() {
            obtained.facts = unknown_image::facts(&obtained.path);
        }
        Ok(obtained)
    }
}

impl WantedImage {
    /// Takes the image of the family that is built on this host, where the newest release cannot be fetched.
    fn build(&self, app: &App, fetcher: &Fetcher<'_>, error: FetchError) -> Result<Obtained, Failure> {
        let Some((entry, build)) = fetcher.catalogue()?.built(&self.base).filter(|(entry, _)| is_bootable(&entry.facts)) else {
            return Err(error.into());
        };
        let name = &entry.name;
        if fetcher.cache().find(Kind::Image, name)?.is_none()
            && let Err(missing) = build.check()
        {
            let failure = Failure::from(error);
            return Err(match missing.next_step() {
                Some(step) => failure.hint(format!("or build one without that server, `vmctl launch {name}`: {step}")),
                None => failure,
            });
        }
        app.ui.warn(format!("{}: instead, {name} is built of the packages of this host's system", Failure::from(error).text()));
        Ok(fetcher.obtain(&Request::new(Kind::Image, name))?)
    }
}

/// Returns the last part of a URL or a path without the endings of images and of packing.
fn stem(path: &str) -> &str {
    const ENDINGS: [&str; 14] =
        ["qcow2", "raw", "img", "vmdk", "vhd", "tar", "tgz", "txz", "gz", "xz", "zst", "bz2", "lzma", "image"];
    let path = path.split(['?', '#']).next().unwrap_or_default().trim_end_matches('/');
    let mut name = path.rsplit('/').next().unwrap_or_default();
    while let Some((rest, ending)) = name.rsplit_once('.') {
        if rest.is_empty() || !ENDINGS.contains(&ending) {
            break;
        }
        name = rest;
    }
    name
}

/// Starts a guest that was made just now. One that does not come as far as to run is removed again; one that has run stays,
/// with what it said.
fn start_or_remove(app: &App, context: &CommandContext, guest: &GuestDir, how: &How) -> Outcome {
    let began = Instant::now();
    boot_or_remove(app, context, guest, &[])?;
    let outcome = start::then(app, context, guest, how, began);
    if outcome.is_err() {
        let (name, is) = (guest.name(), if is_running(guest) { "keeps running" } else { "stays" });
        app.ui.warn(format!("{name} {is}: `vmctl logs {name}` shows its console, `vmctl destroy {name}` removes it"));
    }
    outcome
}

/// Starts a guest that was made just now, and removes it when it does not come as far as to run; `words` are those of `run`
/// for an installer's run.
pub fn boot_or_remove(app: &App, context: &CommandContext, guest: &GuestDir, words: &[OsString]) -> Result<(), Failure> {
    if let Err(failure) = start::boot(app, context, guest, words) {
        if let Err(error) = create::destroy(&context.store, guest, context.surroundings()) {
            app.ui.warn(format!("{} is kept and does not run: {}", guest.name(), error.chain()));
        }
        return Err(failure);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_without_a_name_is_called_after_the_file_of_its_image() {
        for (path, name) in [
            ("https://example.org/a/debian-12-generic-amd64.qcow2?x=1", "debian-12-generic-amd64"),
            ("./FreeBSD-15.1-RELEASE-amd64.raw.xz", "FreeBSD-15.1-RELEASE-amd64"),
            ("/images/.qcow2", ".qcow2"),
            ("disk", "disk"),
        ] {
            assert_eq!(stem(path), name);
        }
    }
}
