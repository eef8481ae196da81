//! `vmctl doctor`.

use serde::Serialize;

use super::{App, Column, ExitStatus, Outcome};
use crate::guest::bhyve::leftovers;
use crate::guest::host_needs;
use crate::guest::store::Store;
use crate::host::doctor::{Finding, Verdict, examine};

/// Say what this host offers and what is missing
///
/// Exits with 1 when something that vmctl needs is not right. What guests left on the host that were killed with all that
/// ran them is removed as it is found.
#[derive(Debug, clap::Args)]
pub struct Args {}

#[derive(Serialize)]
struct Row {
    check: &'static str,
    verdict: &'static str,
    finding: String,
    hint: Option<String>,
}

const COLUMNS: [Column<Row>; 3] = [
    Column { title: "CHECK", wide: false, text: |row| row.check.to_owned() },
    Column { title: "VERDICT", wide: false, text: |row| row.verdict.to_owned() },
    Column { title: "FINDING", wide: false, text: |row| row.finding.clone() },
];

impl Args {
    pub fn run(self, app: &App) -> Outcome {
        let paths = crate::config::HostPaths::of_this_user()?;
        let host_file = app.config.clone().unwrap_or(paths.config_file);
        let datastore = app.host().and_then(|host| app.datastore(&host));
        let mut findings = vec![match &datastore {
            Ok(_) if host_file.exists() => Finding::good("host file", host_file.display().to_string()),
            Ok(_) => Finding::good("host file", format!("none at {}; the defaults hold", host_file.display())),
            Err(failure) => Finding::bad("host file", failure.error.to_string(), "correct it, or name another with `--config`"),
        }];
        // A host file that cannot be read has been told; the host is looked at all the same.
        let needs = app.place().map(|place| host_needs::needs(&place.store, place.around())).unwrap_or_default();
        let path = datastore.map(|datastore| datastore.path).unwrap_or(paths.datastore);
        findings.extend(examine(&path, &paths.runtime_dir, &needs));
        findings.extend(app.place().map(|place| left_behind(&place.store)).unwrap_or_default());
        let bad = findings.iter().any(|finding| finding.verdict == Verdict::Bad);
        let rows: Vec<Row> = findings.into_iter().map(row).collect();
        app.ui.list("doctor", 1, &rows, &COLUMNS, |row| row.check.to_owned())?;
        if !app.ui.is_json() {
            for row in rows.iter().filter(|row| row.verdict != "ok") {
                if let Some(hint) = &row.hint {
                    app.ui.warn(format!("{}: {hint}", row.check));
                }
            }
        }
        Ok(if bad { ExitStatus::User } else { ExitStatus::Done })
    }
}

/// What guests left on this host that were killed with all that ran them. It is removed as it is found.
fn left_behind(store: &Store) -> Vec<Finding> {
    let swept = leftovers::sweep_all(store, None).into_iter().map(|(name, swept)| match swept {
        Ok(()) => Finding::note("leftovers", format!("`{name}` was killed; what it had left on this host is removed")),
        Err(error) => Finding::bad("leftovers", error.chain(), "remove it by hand; the next start of the guest tries again"),
    });
    swept.collect()
}

fn row(finding: Finding) -> Row {
    let verdict = match finding.verdict {
        Verdict::Good => "ok",
        Verdict::Note => "note",
        Verdict::Bad => "bad",
    };
    Row { check: finding.check, verdict, finding: finding.words, hint: finding.hint }
}
