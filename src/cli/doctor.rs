//! `vmctl doctor`: checks this host.

use serde::Serialize;

use super::selection::CommandContext;
use super::{App, Column, ExitStatus, Outcome};
use crate::fetch::cache::Cache;
use crate::guest::definition::Definition;
use crate::guest::engine::leftovers;
use crate::guest::fleet::plan::left_over;
use crate::guest::store::Store;
use crate::guest::{host_needs, pending};
use crate::host::doctor::{Finding, Verdict, examine};
use crate::hypervisor::backends;

/// Show what this host offers and what is missing
///
/// Exits with 1 if something that vmctl needs is not right. Removes what killed guests left on the host. Also lists
/// what killed commands left.
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
            Ok(_) => Finding::good("host file", format!("none at {}; the defaults apply", host_file.display())),
            Err(failure) => Finding::bad("host file", failure.error.to_string(), "correct it, or name another with `--config`"),
        }];
        // An unreadable host file has been reported. The host is checked nevertheless.
        let context = app.context_unswept();
        let needs = context.as_ref().map(|context| host_needs::needs(&context.store, context.surroundings())).unwrap_or_default();
        let path = datastore.map(|datastore| datastore.path).unwrap_or(paths.datastore);
        findings.extend(examine(&path, &paths.runtime_dir, &needs, backends::works));
        if let Ok(context) = &context {
            findings.extend(left_on_the_host(&context.store));
            findings.push(left_behind(context));
            findings.extend(unused_disks(context));
        }
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

/// Removes the remains of guests that were killed with all their processes on this host, and returns what was found.
fn left_on_the_host(store: &Store) -> Vec<Finding> {
    let swept = leftovers::sweep_all(store, None).into_iter().map(|(name, swept)| match swept {
        Ok(()) => Finding::note("leftovers", format!("`{name}` was killed; its leftovers on this host are removed")),
        Err(error) => Finding::bad("leftovers", error.chain(), "remove it by hand; the next start of the guest tries again"),
    });
    swept.collect()
}

/// Returns the remains of killed commands. Those that belong to no guest are removed at once.
fn left_behind(context: &CommandContext) -> Finding {
    let hidden = context.store.left_hidden();
    context.store.sweep();
    let mut words: Vec<String> = hidden
        .iter()
        .map(|path| format!("`{}`{}", path.display(), if path.exists() { "" } else { ", which is removed" }))
        .collect();
    for guest in context.store.names().unwrap_or_default().iter().filter_map(|name| context.store.guest(name).ok()) {
        let mut left = guest.left_behind();
        left.extend(guest.kept_edit().exists().then(|| guest.kept_edit()));
        words.extend(left.iter().map(|path| format!("`{}`", path.display())));
        if pending::is_there(&guest) {
            words.push(format!("a disk of `{}` that is only partly made or removed", guest.name()));
        }
    }
    words.extend(Cache::look(&context.host.cache_dir).left_behind().iter().map(|path| format!("`{}`", path.display())));
    match words.is_empty() {
        true => Finding::good("killed commands", "they left nothing"),
        false => Finding {
            hint: Some("the next command that changes the guest, or the cache, removes it".into()),
            ..Finding::note("killed commands", format!("they left {}", words.join("; ")))
        },
    }
}

/// Returns files among the disks of guests that their guest files do not name.
fn unused_disks(context: &CommandContext) -> Option<Finding> {
    let guests = context.store.names().unwrap_or_default().into_iter().filter_map(|name| context.store.guest(&name).ok());
    let unused =
        guests.filter_map(|guest| left_over(&guest, &Definition::load(&guest, context.surroundings()).ok()?.config).ok());
    let words: Vec<String> = unused.flatten().map(|path| format!("`{}`", path.display())).collect();
    (!words.is_empty()).then(|| Finding {
        hint: Some("remove them, or name them in a guest file by their paths".into()),
        ..Finding::note("unused disks", format!("no guest file names {}", words.join(", ")))
    })
}

fn row(finding: Finding) -> Row {
    let verdict = match finding.verdict {
        Verdict::Good => "ok",
        Verdict::Note => "note",
        Verdict::Bad => "bad",
    };
    Row { check: finding.check, verdict, finding: finding.words, hint: finding.hint }
}
