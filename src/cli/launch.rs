//! `vmctl launch`: create, start, and wait, in one go.

use super::create::What;
use super::start::{self, How};
use super::{App, Outcome};

/// Make guests and start them
///
/// As `create` and `start --wait` do one after the other. With `--console`, shows the console instead of waiting.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    what: What,
    /// Show the console once the guest runs, instead of waiting until it is ready
    #[arg(long)]
    console: bool,
    /// Return when the guest runs, ready or not
    #[arg(long, conflicts_with = "console")]
    no_wait: bool,
}

impl Args {
    pub fn run(self, app: &App) -> Outcome {
        let place = app.place()?;
        let how = if self.console { How::with_console() } else { How::plain(!self.no_wait) };
        self.what.each(app, &place, |guest| start::start(app, &place, guest, &how))
    }
}
