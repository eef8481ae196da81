//! `vmctl rename`.

use super::{App, ExitStatus, Outcome};
use crate::guest::create;

/// Give a stopped guest another name
///
/// Its UUID and its MAC addresses stay.
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
        let place = app.place()?;
        let guest = place.store.guest(&self.guest)?;
        create::rename(&place.store, &guest, &self.name, place.around())?;
        app.ui.done(format!("{} is now {}", self.guest, self.name));
        Ok(ExitStatus::Done)
    }
}
