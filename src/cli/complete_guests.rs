//! `vmctl __complete-guests`: names for the shells' completions. Never fails aloud: a shell is at its prompt.

use super::{App, ExitStatus, Outcome};

/// List the names of all guests, one a line
#[derive(Debug, clap::Args)]
pub struct Args {}

impl Args {
    pub fn run(self, app: &App) -> Outcome {
        let store = app.datastore(&app.host()?)?;
        let mut names: Vec<String> = std::fs::read_dir(store.path.join(crate::config::GUESTS_DIR))
            .into_iter()
            .flatten()
            .flatten()
            .filter(|entry| entry.path().join(crate::config::GUEST_FILE).is_file())
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect();
        names.sort();
        app.ui.data(&names.iter().map(|name| format!("{name}\n")).collect::<String>())?;
        Ok(ExitStatus::Done)
    }
}
