//! `vmctl __complete-guests`: names for the shells' completions. It reports no error, since the user is at a shell
//! prompt.

use super::source::GuestSource;
use super::{App, ExitStatus, Outcome};

/// List the names of all guests, one per line
#[derive(Debug, clap::Args)]
pub struct Args {}

impl Args {
    pub fn run(self, app: &App) -> Outcome {
        let store = app.datastore(&app.host()?)?;
        let names = GuestSource::all(&store).into_iter().map(|source| source.display_name() + "\n");
        app.ui.data(&names.collect::<String>())?;
        Ok(ExitStatus::Done)
    }
}
