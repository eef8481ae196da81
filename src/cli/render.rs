//! `vmctl render`: prints the guest files of a fleet file.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::selection::CommandContext;
use super::{App, ExitStatus, Failure, Outcome};
use crate::config::{Fleet, FleetRequest, load_fleet};
use crate::host::files::{make_directory, mode_of, write_atomically};

/// Print the guest files of a fleet file
///
/// Prints those for this host, with templates, parameters and expressions filled in. Does not change the datastore and
/// reads no secret: a guest file names the path at which the secret will be.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    fleet: FleetFile,
    /// Directory to write each file to as `NAME.toml`; made if it does not exist
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Also print those for other hosts
    #[arg(long)]
    all_hosts: bool,
}

/// The fleet file of a command.
#[derive(Debug, Clone, clap::Args)]
pub struct FleetFile {
    /// Fleet file
    #[arg(value_name = "FLEET", default_value = "fleet.toml")]
    file: PathBuf,
}

impl FleetFile {
    /// Returns one that was named otherwise.
    pub fn of(file: PathBuf) -> FleetFile {
        FleetFile { file }
    }

    /// Reads and checks it.
    pub fn load(&self, app: &App) -> Result<Fleet, Failure> {
        self.load_in(&app.context_without_fleets()?)
    }

    fn load_in(&self, context: &CommandContext) -> Result<Fleet, Failure> {
        let (surroundings, engines) = (context.surroundings(), context.store.settled_engines());
        let request = FleetRequest {
            file: &self.file,
            text: None,
            host: surroundings.host,
            datastore: surroundings.datastore,
            engines: &engines,
        };
        Ok(load_fleet(&request)?)
    }

    /// Returns the same with the place for it. Its host has the switches that the fleet declares now, instead of those
    /// that it declared when it was applied.
    pub fn load_with_context(&self, app: &App) -> Result<(Fleet, CommandContext), Failure> {
        let mut context = app.context_without_fleets()?;
        let fleet = self.load_in(&context)?;
        let datastore = context.surroundings().datastore.to_owned();
        context.host.add_fleets(Some(&datastore), Some(&fleet.name))?;
        context.host.add_declared(&fleet)?;
        Ok((fleet, context))
    }
}

#[derive(Serialize)]
struct Rendered<'a> {
    name: &'a str,
    here: bool,
    text: &'a str,
}

impl Args {
    pub fn run(self, app: &App) -> Outcome {
        let fleet = self.fleet.load(app)?;
        let guests: Vec<Rendered> = fleet
            .guests
            .iter()
            .filter(|guest| guest.here || self.all_hosts)
            .map(|guest| Rendered { name: &guest.config.name, here: guest.here, text: &guest.text })
            .collect();
        if let Some(directory) = &self.out {
            let directory = &std::path::absolute(directory)?;
            let failed = |action: &str, path: &Path, error: std::io::Error| {
                Failure::user(format!("cannot {action} `{}`: {error}", path.display()))
            };
            make_directory(directory, 0o755).map_err(|error| failed("make", directory, error))?;
            for guest in &guests {
                let path = directory.join(format!("{}.toml", guest.name));
                write_atomically(&path, guest.text.as_bytes(), mode_of(&fleet.file))
                    .map_err(|error| failed("write", &path, error))?;
            }
            app.ui.done(format!("wrote {} guest files to `{}`", guests.len(), directory.display()));
            return Ok(ExitStatus::Done);
        }
        if app.ui.is_json() || app.ui.format() == super::OutputFormat::Name {
            app.ui.list("rendered", 1, &guests, &[], |guest| guest.name.to_owned())?;
            return Ok(ExitStatus::Done);
        }
        let texts: Vec<String> = guests.iter().map(|guest| format!("# {}.toml\n{}", guest.name, guest.text)).collect();
        app.ui.data(&texts.join("\n"))?;
        Ok(ExitStatus::Done)
    }
}
