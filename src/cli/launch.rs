//! `vmctl launch`: creates guests, starts them, and waits.

use std::ffi::OsString;
use std::time::Instant;

use super::create::NewGuestArgs;
use super::progress::{Awaited, ProgressDisplay, watch_signals};
use super::selection::CommandContext;
use super::start::{self, How};
use super::stop::is_running;
use super::{App, Failure, Outcome};
use crate::fetch::Kind;
use crate::guest::change::image_source;
use crate::guest::clone::ports_in_use;
use crate::guest::create::{self, Origin};
use crate::guest::images::{Images, Known};
use crate::guest::launch_file;
use crate::guest::preflight::not_for_embedded;
use crate::guest::store::GuestDir;
use crate::inputs::is_url;

/// Make guests and start them
///
/// `vmctl launch IMAGE GUEST` makes a guest with a disk from an image of the catalogue (`vmctl image list --all`), a
/// user-mode network and, if the image has cloud-init, the user's public key. `IMAGE` may also be a template. With
/// `--file` or `--template`, it does the same as `create` and `start --wait`. With `--console`, it shows the console
/// instead of waiting.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    guests: NewGuestArgs,
    /// Show the console once the guest runs, instead of waiting until it is ready
    #[arg(long)]
    console: bool,
    /// Return when the guest runs, even if it is not ready
    #[arg(long, conflicts_with = "console")]
    no_wait: bool,
    /// Expected checksum of the image's file, like `sha256:HEX`; needed for a URL
    #[arg(long, value_name = "DIGEST", conflicts_with_all = ["file", "template"])]
    checksum: Option<String>,
}

impl Args {
    pub fn run(self, app: &App) -> Outcome {
        watch_signals();
        let context = app.context()?;
        let how = if self.console { How::with_console() } else { How::plain(!self.no_wait) };
        if self.guests.is_by_image() {
            return by_image(app, &context, &self.guests, self.checksum.as_deref(), &how);
        }
        let what = self.guests.to_start();
        what.each(app, &context, |guest| start_or_remove(app, &context, guest, &how))
    }
}

fn by_image(app: &App, context: &CommandContext, what: &NewGuestArgs, checksum: Option<&str>, how: &How) -> Outcome {
    let [image, names @ ..] = &what.names[..] else { return Err(Failure::user("no image and no guest is named")) };
    if names.is_empty() {
        return Err(Failure::user(format!("no guest is named for `{image}`"))
            .hint("`vmctl launch IMAGE GUEST`, or `--file`, or `--template`"));
    }
    let progress = ProgressDisplay::new(&app.ui);
    let images = Images { host: &context.host, progress: &progress };
    let fetcher = images.fetcher()?;
    let known = fetcher.cache().find(Kind::Image, image)?.is_some()
        || fetcher.catalogue()?.find(Kind::Image, image).is_ok()
        || image.contains('/');
    if !known {
        if checksum.is_some() {
            return Err(Failure::user(format!("there is no image `{image}`, and a template has no checksum")));
        }
        // A template has no slash, and a message of its own if there is none of this name.
        return what.of_template(image, names).to_start().each(app, context, |guest| start_or_remove(app, context, guest, how));
    }
    // What it boots with is known before it is fetched.
    if let Known::Here(facts) = images.known(image)
        && let Some(loader) = facts.loader.filter(|loader| !["grub", "kernel"].contains(&loader.as_str()))
    {
        return Err(not_for_embedded(image, &loader).into());
    }
    if is_url(image) && checksum.is_none() && matches!(images.known(image), Known::Elsewhere) {
        return Err(Failure::user(format!("there is no checksum to hold `{image}` to")).hint(format!(
            "add `--checksum sha256:HEX`; or take it as it comes, and launch it by its name: `vmctl fetch image {image} --insecure-no-checksum`"
        )));
    }
    let source = image_source(image)?;
    let mut taken = ports_in_use(&context.store, context.surroundings());
    app.ui.each(names, String::clone, |name| {
        let obtained = images.obtain(image, checksum, None)?;
        let home = std::env::var_os("HOME").map(std::path::PathBuf::from);
        let key = launch_file::public_key(&context.store, home.as_deref())?;
        let port = launch_file::free_port(&taken)?;
        taken.push(port);
        let mut boot = Vec::new();
        boot.extend(obtained.kernel.clone().map(|path| (path, "vmlinuz")));
        boot.extend(obtained.initrd.clone().map(|path| (path, "initrd.img")));
        let text = launch_file::text(&obtained, (&source, checksum), &key, port, context.host.engine());
        let origin = Origin::Image { text, boot, user: obtained.facts.user.clone() };
        let shown = app.ui.wait(Awaited::making(name));
        let guest = create::create(&context.store, name, &origin, &what.sets, context.surroundings(), &progress)?;
        drop(shown);
        start_or_remove(app, context, &guest, how)
    })
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
            app.ui.warn(format!("{} stays, and does not run: {}", guest.name(), error.chain()));
        }
        return Err(failure);
    }
    Ok(())
}
