//! `vmctl import`: imports the guests of another manager.

use super::{App, ExitStatus, Failure, Outcome};
use crate::config::HostPaths;
use crate::guest::import::vm_bhyve::{self, Imported, Written};

/// Import from another manager
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Import the guests, templates and switches of vm-bhyve
    ///
    /// Its datastore is read in place and not changed. Disks stay where they are and are named by their paths. UUIDs,
    /// MAC addresses and PCI slots are kept. vm_list becomes autostart, and switches become those of the host file. A
    /// setting without a counterpart is reported with the reason. A guest that vm-bhyve runs is refused.
    VmBhyve {
        /// vm-bhyve's datastore: a directory, or zfs: and a dataset; vm_dir of rc.conf by default
        #[arg(value_name = "DIR")]
        from: Option<String>,
        /// Show what would be written, but write nothing
        #[arg(long)]
        dry_run: bool,
    },
}

impl Args {
    pub fn run(self, app: &App) -> Outcome {
        let Verb::VmBhyve { from, dry_run } = self.verb;
        let context = app.context()?;
        let surroundings = context.surroundings();
        let found = vm_bhyve::read(from.as_deref(), &context.host, &HostPaths::of_this_user()?, surroundings)?;
        if dry_run {
            return show(app, &found);
        }
        let status = app.ui.each(&found, title, |imported| {
            match vm_bhyve::write(imported, &context.store, surroundings)? {
                Written::New => app.ui.done(format!("{}: taken over from {}", title(imported), imported.from.display())),
                Written::Unchanged => {
                    app.ui.done(format!("{}: is there already, unchanged", title(imported)));
                    return Ok(ExitStatus::Done);
                }
                Written::Nothing => {}
            }
            for note in &imported.notes {
                app.ui.warn(format!("{}: {}={}: {}", title(imported), note.key, note.value, note.reason));
            }
            Ok(ExitStatus::Done)
        })?;
        Ok(status)
    }
}

fn title(imported: &Imported) -> String {
    match imported.kind {
        "host" => "host file".into(),
        kind => format!("{kind} {}", imported.name),
    }
}

fn show(app: &App, found: &[Imported]) -> Outcome {
    if app.ui.is_json() {
        app.ui.list("import", 1, found, &[], |imported| imported.name.clone())?;
    } else {
        for imported in found {
            let Some(toml) = &imported.toml else { continue };
            app.ui.data(&format!("## {}\n{toml}\n", title(imported)))?;
        }
        for note in found.iter().filter(|imported| imported.kind == "host").flat_map(|imported| &imported.notes) {
            app.ui.warn(format!("{}={}: {}", note.key, note.value, note.reason));
        }
    }
    let wrong: Vec<&Imported> = found.iter().filter(|imported| imported.problem.is_some()).collect();
    app.ui.each(
        &wrong,
        |imported| title(imported),
        |imported| Err(Failure::user(imported.problem.as_deref().unwrap_or_default().trim_end())),
    )
}
