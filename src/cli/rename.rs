//! `vmctl rename`: renames a stopped guest.

use super::{App, ExitStatus, Outcome};
use crate::guest::create;

/// Rename a stopped guest
///
/// Its UUID and its MAC addresses are kept.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The guest
    #[arg(value_name = "GUEST")]
    guest: String,
    /// Its new name
    #[arg(value_name = "NAME")]
    name: String,
}

impl Args {
    pub fn run(self, app: &App) -> Outcome {
        let context = app.context()?;
        let guest = context.store.guest(&self.guest)?;
        create::rename(&context.store, &guest, &self.name, context.surroundings())?;
        app.ui.done(format!("{} is now {}", self.guest, self.name));
        Ok(ExitStatus::Done)
    }
}
