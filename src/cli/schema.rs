//! `vmctl schema`: prints the JSON Schema with which editors check and complete guest files.

use super::{App, ExitStatus, Outcome};
use crate::config::schema::{fleet_schema, guest_schema, host_schema};

/// Print the JSON Schema of guest files
///
/// Editors use it for completion: put `#:schema ./vmctl.schema.json` at the top of a guest file for taplo and tools
/// that use it.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Print the schema of the host file, vmctl.toml, instead
    #[arg(long)]
    host: bool,
    /// Print the schema of a fleet file, fleet.toml, instead
    #[arg(long, conflicts_with = "host")]
    fleet: bool,
}

impl Args {
    pub fn run(self, app: &App) -> Outcome {
        let schema = match (self.host, self.fleet) {
            (true, _) => host_schema(),
            (_, true) => fleet_schema(),
            _ => guest_schema(),
        };
        app.ui.data(&format!("{schema:#}\n"))?;
        Ok(ExitStatus::Done)
    }
}
