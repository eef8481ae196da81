//! `vmctl argv`: prints the command lines that boot a guest under bhyve(8), on any machine.

use std::path::PathBuf;

use super::source::GuestSource;
use super::{App, ExitStatus, Failure, Outcome};
use crate::guest::engine::bhyve::argv::{Inputs, Resolved, as_shell_text, build};
use crate::guest::state::{GuestState, STATE_FILE};
use crate::host::bhyve::HostFeatures;
use crate::inputs;

/// Show the command lines that boot a guest under bhyve(8)
///
/// Shows those of the loader and of bhyve, and the files that they read. Works on any machine: without
/// `--host-features` they are for this host, or for the newest release if this host is not FreeBSD. Names that exist
/// only while a guest runs (taps, ports, consoles) are those of a host where nothing else runs.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A guest, or a guest file (with a slash, or `.toml` at the end)
    #[arg(value_name = "GUEST|FILE", required_unless_present = "file", conflicts_with = "file")]
    guest: Option<String>,
    /// A guest file
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Show for each argument the keys that made it
    #[arg(long)]
    explain: bool,
    /// Features of bhyve: a release like `13.2`, `14.3`, `15.0` or `current`, or a file with the JSON of another host
    #[arg(long, value_name = "FILE|RELEASE")]
    host_features: Option<String>,
    /// Override a key, like `memory=2G` or `disks.root.size=20G`
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
}

impl Args {
    pub fn run(self, app: &App) -> Outcome {
        let (host, store) = app.host_and_datastore()?;
        let source = match (self.file, self.guest) {
            (Some(file), _) => GuestSource { file, name: None },
            (None, guest) => GuestSource::find(&guest.unwrap_or_default(), &store)?,
        };
        let guest = source.load(&host, &store, &self.sets)?;
        let file = std::path::absolute(&source.file)?;
        let directory = file.parent().unwrap_or(&file).to_owned();
        let mut state = GuestState::load(&directory.join(STATE_FILE), &guest.config.name)?;
        state.assign(&guest.config)?;
        let mut resolved = Resolved::defaults(&guest.config, &directory);
        resolved.look_at_disk(&guest.config);
        let features = features(self.host_features.as_deref())?;
        let lines = build(Inputs { config: &guest.config, state: &state, features: &features, resolved: &resolved })?;
        app.ui.record("argv", 1, &lines, &guest.config.name, &as_shell_text(&lines, self.explain))?;
        Ok(ExitStatus::Done)
    }
}

/// Returns the features of the host, or of the named one.
fn features(named: Option<&str>) -> Result<HostFeatures, Failure> {
    let Some(name) = named else {
        let newest = || HostFeatures::of_release("15.0").expect("it is one of the known releases");
        return Ok(HostFeatures::of_this_host().unwrap_or_else(|_| newest()));
    };
    if let Some(features) = HostFeatures::of_release(name) {
        return Ok(features);
    }
    if !name.contains('/') && !name.ends_with(".json") {
        let known = HostFeatures::RELEASES.map(|name| format!("`{name}`")).join(", ");
        return Err(Failure::user(format!("`{name}` is neither a release nor a file"))
            .hint(format!("known: {known}; a file is named with a slash, or with `.json` at its end")));
    }
    let text = inputs::read_text(std::path::Path::new(name), 16 << 20)
        .map_err(|error| Failure::user(format!("cannot read `{name}`: {error}")))?;
    serde_json::from_str(&text).map_err(|error| Failure::user(format!("`{name}` is not the features of a host: {error}")))
}
