//! `vmctl host`: sets up a FreeBSD host.

use std::path::PathBuf;

use serde::Serialize;

use super::{App, Column, ExitStatus, Failure, Outcome};
use crate::guest::host_needs;
use crate::host::program;
use crate::host::setup::{self, Change};

/// Set up a FreeBSD host
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Show, and with --write write, the permanent settings that this host needs
    ///
    /// They are lines of rc.conf (through sysrc), sysctl.conf and loader.conf, and the rc.d script that starts and
    /// stops guests with the host. They depend on the features that guest files and switches use. Exits with 2 if
    /// something is missing and nothing was written.
    Setup {
        /// Write what is missing
        #[arg(long)]
        write: bool,
        /// Work on the system below this directory
        #[arg(long, value_name = "DIR", default_value = "/")]
        root: PathBuf,
    },
}

#[derive(Serialize)]
struct Row {
    file: String,
    line: String,
    reason: String,
    reboot: bool,
}

const COLUMNS: [Column<Row>; 3] = [
    Column { title: "FILE", wide: false, text: |row| row.file.clone() },
    Column { title: "LINE", wide: false, text: |row| row.line.clone() },
    Column { title: "REASON", wide: false, text: |row| row.reason.clone() },
];

impl Args {
    pub fn run(self, app: &App) -> Outcome {
        let Verb::Setup { write, root } = self.verb;
        if !program::is_freebsd() {
            return Err(Failure::user("this is for FreeBSD hosts").hint("elsewhere nothing has to be set up"));
        }
        let context = app.context()?;
        let changes = setup::plan(&root, &host_needs::uses(&context.store, context.surroundings()))?;
        if changes.is_empty() {
            app.ui.list("host-setup", 1, &[] as &[Row], &[], |row| row.line.clone())?;
            app.ui.done("nothing is missing");
            return Ok(ExitStatus::Done);
        }
        let rows: Vec<Row> = changes.iter().map(row).collect();
        app.ui.list("host-setup", 1, &rows, &COLUMNS, |row| row.line.clone())?;
        if !write {
            app.ui.done("nothing was written; `--write` does");
            return Ok(ExitStatus::Machine);
        }
        let status = app.ui.each(
            &changes,
            |change| change.line.clone(),
            |change| {
                setup::write(&root, change)?;
                Ok(ExitStatus::Done)
            },
        )?;
        if changes.iter().any(|change| change.reboot) {
            app.ui.warn("what is in loader.conf applies after the next boot");
        }
        Ok(status)
    }
}

fn row(change: &Change) -> Row {
    Row {
        file: change.file.display().to_string(),
        line: change.line.clone(),
        reason: change.reason.clone(),
        reboot: change.reboot,
    }
}
