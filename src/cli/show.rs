//! `vmctl show`: shows a guest's configuration, as written or resolved.

use serde::Serialize;

use super::source::GuestSource;
use super::{App, ExitStatus, Failure, Outcome};
use crate::config::GuestConfig;
use crate::config::render::{Origin, render};
use crate::inputs;

/// Show the configuration of a guest
///
/// Shows it as written or, with `--resolved`, as one file that needs no template, with all defaults. The JSON formats
/// are always resolved.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A guest, or a guest file (with a slash, or `.toml` at the end)
    #[arg(value_name = "GUEST|FILE")]
    guest: String,
    /// Fill in templates, included files, expressions and defaults
    #[arg(long)]
    resolved: bool,
    /// Show for each key the file and line that set it
    #[arg(long)]
    explain: bool,
    /// Override a key, like `memory=2G` or `disks.root.size=20G`
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
}

#[derive(Serialize)]
struct ConfigReport<'a> {
    config: &'a GuestConfig,
    #[serde(skip_serializing_if = "Option::is_none")]
    origins: Option<Vec<Origin>>,
    files: &'a [std::path::PathBuf],
}

impl Args {
    pub fn run(self, app: &App) -> Outcome {
        let (host, store) = app.host_and_datastore()?;
        let source = GuestSource::find(&self.guest, &store)?;
        if !self.resolved && !self.explain && self.sets.is_empty() && !app.ui.is_json() {
            let text = inputs::read_text(&source.file, 1 << 20)
                .map_err(|error| Failure::user(format!("cannot read `{}`: {error}", source.file.display())))?;
            app.ui.data(&text)?;
            return Ok(ExitStatus::Done);
        }
        let guest = source.load(&host, &store, &self.sets)?;
        let (text, origins) = render(&guest.resolved, self.explain);
        let report = ConfigReport { config: &guest.config, origins: self.explain.then_some(origins), files: guest.files() };
        app.ui.record("guest-config", 1, &report, &guest.config.name, &text)?;
        Ok(ExitStatus::Done)
    }
}
