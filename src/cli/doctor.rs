//! `vmctl doctor`.

use serde::Serialize;

use super::selection::Place;
use super::{App, Column, ExitStatus, Outcome};
use crate::fetch::cache::Cache;
use crate::guest::bhyve::leftovers;
use crate::guest::definition::Definition;
use crate::guest::plan::left_over;
use crate::guest::store::Store;
use crate::guest::{host_needs, pending};
use crate::host::doctor::{Finding, Verdict, examine};

/// Say what this host offers and what is missing
///
/// Exits with 1 when something that vmctl needs is not right. What guests left on the host that were killed with all that
/// ran them is removed as it is found. Tells of what killed commands have left, too.
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
        let place = app.place_as_left();
        let needs = place.as_ref().map(|place| host_needs::needs(&place.store, place.around())).unwrap_or_default();
        let path = datastore.map(|datastore| datastore.path).unwrap_or(paths.datastore);
        findings.extend(examine(&path, &paths.runtime_dir, &needs));
        if let Ok(place) = &place {
            findings.extend(left_on_the_host(&place.store));
            findings.push(left_behind(place));
            findings.extend(unused_disks(place));
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

/// What guests left on this host that were killed with all that ran them. It is removed as it is found.
fn left_on_the_host(store: &Store) -> Vec<Finding> {
    let swept = leftovers::sweep_all(store, None).into_iter().map(|(name, swept)| match swept {
        Ok(()) => Finding::note("leftovers", format!("`{name}` was killed; what it had left on this host is removed")),
        Err(error) => Finding::bad("leftovers", error.chain(), "remove it by hand; the next start of the guest tries again"),
    });
    swept.collect()
}

/// What killed commands left. What is no guest's is swept at once.
fn left_behind(place: &Place) -> Finding {
    let hidden = place.store.left_hidden();
    place.store.sweep();
    let mut words: Vec<String> = hidden
        .iter()
        .map(|path| format!("`{}`{}", path.display(), if path.exists() { "" } else { ", which is swept" }))
        .collect();
    for guest in place.store.names().unwrap_or_default().iter().filter_map(|name| place.store.guest(name).ok()) {
        let mut left = guest.left_behind();
        left.extend(guest.kept_edit().exists().then(|| guest.kept_edit()));
        words.extend(left.iter().map(|path| format!("`{}`", path.display())));
        if pending::is_there(&guest) {
            words.push(format!("a disk of `{}` that is half-made or half-gone", guest.name()));
        }
    }
    words.extend(Cache::look(&place.host.cache_dir).left_behind().iter().map(|path| format!("`{}`", path.display())));
    match words.is_empty() {
        true => Finding::good("killed commands", "they left nothing"),
        false => Finding {
            hint: Some("the next command that changes the guest, or the cache, sweeps it".into()),
            ..Finding::note("killed commands", format!("they left {}", words.join("; ")))
        },
    }
}

/// Files among the disks of guests that their guest files do not name.
fn unused_disks(place: &Place) -> Option<Finding> {
    let guests = place.store.names().unwrap_or_default().into_iter().filter_map(|name| place.store.guest(&name).ok());
    let unused = guests.filter_map(|guest| left_over(&guest, &Definition::load(&guest, place.around()).ok()?.config).ok());
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
