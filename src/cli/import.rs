//! `vmctl import`: imports the guests of another manager.

use super::ui::Column;
use super::{App, ExitStatus, Failure, Outcome};
use crate::config::HostPaths;
use crate::guest::import::vm_bhyve::{self, ImportState, Imported};
use crate::units::ByteSize;

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
        /// Show what would be taken over, with the disks as they are found, but write nothing
        #[arg(long)]
        dry_run: bool,
        /// With --dry-run, show the files that would be written
        #[arg(long, requires = "dry_run")]
        files: bool,
    },
}

impl Args {
    pub fn run(self, app: &App) -> Outcome {
        let Verb::VmBhyve { from, dry_run, files } = self.verb;
        let context = app.context()?;
        let surroundings = context.surroundings();
        let paths = HostPaths::of_this_user()?;
        let found = vm_bhyve::read(from.as_deref(), &context.host, &paths, &context.store, surroundings)?;
        if dry_run {
            return show(app, &found, files);
        }
        app.ui.each(&found, title, |imported| {
            let written = vm_bhyve::write(imported, &context.store, surroundings)?;
            match imported.state {
                _ if written => app.ui.done(format!("{}: taken over from {}", title(imported), imported.from.display())),
                ImportState::Nothing => {}
                state => {
                    app.ui.done(format!("{}: {}", title(imported), state.words()));
                    return Ok(ExitStatus::Done);
                }
            }
            warn(app, imported);
            Ok(ExitStatus::Done)
        })
    }
}

fn title(imported: &Imported) -> String {
    match imported.kind {
        "host" => "host file".into(),
        kind => format!("{kind} {}", imported.name),
    }
}

fn warn(app: &App, imported: &Imported) {
    for note in &imported.notes {
        app.ui.warn(format!("{}: {}={}: {}", title(imported), note.key, note.value, note.reason));
    }
}

/// Number of disks and their sizes together.
fn disks(imported: &Imported) -> String {
    let sizes: Vec<u64> = imported.disks.iter().filter_map(|disk| disk.bytes).collect();
    match (imported.disks.len(), sizes.len()) {
        (0, _) => String::new(),
        (count, 0) => count.to_string(),
        (count, _) => format!("{count} ({})", ByteSize::from_bytes(sizes.iter().sum())),
    }
}

fn show(app: &App, found: &[Imported], files: bool) -> Outcome {
    let columns = [
        Column { title: "WHAT", wide: false, text: title },
        Column { title: "STATE", wide: false, text: |imported: &Imported| imported.state.words().into() },
        Column { title: "DISKS", wide: false, text: disks },
        Column {
            title: "NOTES",
            wide: false,
            text: |imported: &Imported| match imported.notes.len() {
                0 => String::new(),
                count => count.to_string(),
            },
        },
    ];
    app.ui.list("import", 1, found, &columns, |imported| imported.name.clone())?;
    if files && !app.ui.is_json() {
        for imported in found {
            let Some(toml) = &imported.toml else { continue };
            app.ui.data(&format!("\n## {}\n{toml}", title(imported)))?;
        }
    }
    let coming = |imported: &&Imported| !matches!(imported.state, ImportState::TakenOver | ImportState::TakenOverAndChanged);
    found.iter().filter(coming).for_each(|imported| warn(app, imported));
    if !files {
        app.ui.done("nothing was written; `--dry-run --files` shows the files");
    }
    let wrong: Vec<&Imported> = found.iter().filter(|imported| imported.problem.is_some()).filter(coming).collect();
    app.ui.each(
        &wrong,
        |imported| title(imported),
        |imported| Err(Failure::user(imported.problem.as_deref().unwrap_or_default().trim_end())),
    )
}
