//! `vmctl import`.

use super::{App, ExitStatus, Failure, Outcome};
use crate::config::HostPaths;
use crate::guest::import::vm_bhyve::{self, Imported, Written};

/// Move over from another manager
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Take over the guests, templates and switches of vm-bhyve
    ///
    /// Its datastore is read in place and not changed. Disks stay where they are and are named by their paths; UUIDs, MAC
    /// addresses and PCI slots are kept; vm_list becomes autostart, and switches become those of the host file. A setting
    /// that has no place here is told with the reason. A guest that vm-bhyve runs is refused.
    VmBhyve {
        /// vm-bhyve's datastore: a directory, or zfs: and a dataset; vm_dir of rc.conf if left out
        #[arg(value_name = "DIR")]
        from: Option<String>,
        /// Show what would be written, and write nothing
        #[arg(long)]
        dry_run: bool,
    },
}

impl Args {
    pub fn run(self, app: &App) -> Outcome {
        let Verb::VmBhyve { from, dry_run } = self.verb;
        let place = app.place()?;
        let around = place.around();
        let found = vm_bhyve::read(from.as_deref(), &place.host, &HostPaths::of_this_user()?, around)?;
        if dry_run {
            return show(app, &found);
        }
        let status = app.ui.each(&found, shown, |imported| {
            match vm_bhyve::write(imported, &place.store, around)? {
                Written::New => app.ui.done(format!("{}: taken over from {}", shown(imported), imported.from.display())),
                Written::Unchanged => {
                    app.ui.done(format!("{}: is there already, as it would be taken over", shown(imported)));
                    return Ok(ExitStatus::Done);
                }
                Written::Nothing => {}
            }
            for note in &imported.notes {
                app.ui.warn(format!("{}: {}={}: {}", shown(imported), note.key, note.value, note.reason));
            }
            Ok(ExitStatus::Done)
        })?;
        Ok(status)
    }
}

fn shown(imported: &Imported) -> String {
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
            app.ui.data(&format!("## {}\n{toml}\n", shown(imported)))?;
        }
        for note in found.iter().filter(|imported| imported.kind == "host").flat_map(|imported| &imported.notes) {
            app.ui.warn(format!("{}={}: {}", note.key, note.value, note.reason));
        }
    }
    let wrong: Vec<&Imported> = found.iter().filter(|imported| imported.problem.is_some()).collect();
    app.ui.each(
        &wrong,
        |imported| shown(imported),
        |imported| Err(Failure::user(imported.problem.as_deref().unwrap_or_default().trim_end())),
    )
}
