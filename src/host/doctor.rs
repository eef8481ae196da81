//! The probe behind `vmctl doctor`: the features of this host, and the missing ones.

pub mod freebsd; // checks for FreeBSD only
#[cfg(target_os = "linux")]
mod linux; // what engines are confined with, and switches

use std::fs::File;
use std::path::Path;

use super::files::{free_space, private_directory};
use super::process::kernel;
use crate::units::size_words;

/// Result of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is as it should be.
    Good,
    /// It is not ideal, but vmctl works.
    Note,
    /// vmctl does not work like this.
    Bad,
}

/// Finding of one check.
#[derive(Debug, Clone)]
pub struct Finding {
    /// Name of the check.
    pub check: &'static str,
    /// Result of the check.
    pub verdict: Verdict,
    /// Description.
    pub words: String,
    /// Hint for the user.
    pub hint: Option<String>,
}

impl Finding {
    /// Creates a finding that all is well.
    pub fn good(check: &'static str, words: impl Into<String>) -> Finding {
        Finding { check, verdict: Verdict::Good, words: words.into(), hint: None }
    }
    /// Creates a finding that is worth knowing.
    pub fn note(check: &'static str, words: impl Into<String>) -> Finding {
        Finding { check, verdict: Verdict::Note, words: words.into(), hint: None }
    }
    /// Creates a finding that prevents work.
    pub fn bad(check: &'static str, words: impl Into<String>, hint: impl Into<String>) -> Finding {
        Finding { check, verdict: Verdict::Bad, words: words.into(), hint: Some(hint.into()) }
    }
}

/// Runs all checks. `works` says whether the embedded engine's back end of a name works here.
pub fn examine(
    datastore: &Path,
    runtime: &Path,
    needs: &freebsd::Needs,
    works: impl Fn(&str) -> Result<(), String>,
) -> Vec<Finding> {
    let mut findings = vec![
        Finding::good("vmctl", format!("{} for {} {}", env!("CARGO_PKG_VERSION"), std::env::consts::OS, std::env::consts::ARCH)),
        Finding::good("host", kernel()),
        processors(),
        Finding::good("soft", "the software CPU works on any host"),
        found("kvm", works("kvm")),
        vmm(),
        writable(datastore),
        space(datastore),
        runtime_directory(runtime),
    ];
    if cfg!(target_os = "freebsd") {
        findings.push(found("backend vmm", works("vmm")));
    }
    #[cfg(target_os = "linux")]
    if !super::program::is_freebsd() {
        findings.extend(linux::examine(needs, runtime));
    }
    if super::program::is_freebsd() {
        findings.extend(freebsd::examine(needs));
    }
    findings
}

fn processors() -> Finding {
    match std::thread::available_parallelism() {
        Ok(count) => Finding::good("processors", count.to_string()),
        Err(error) => Finding::note("processors", format!("unknown: {error}")),
    }
}

/// Returns what there is to say about a back end of the embedded engine.
fn found(check: &'static str, works: Result<(), String>) -> Finding {
    match works {
        Ok(()) => Finding::good(check, "works: guests with `backend = \"auto\"` run on it"),
        Err(why) => Finding::note(check, format!("{why}; the software CPU is used")),
    }
}

fn vmm() -> Finding {
    if !super::program::is_freebsd() {
        return Finding::note("vmm", "FreeBSD only");
    }
    match super::vmm::can_be_had() {
        Ok(()) => Finding::good("vmm", "available: bhyve runs guests whose files name no engine"),
        Err(why) => Finding::note("vmm", format!("{why}; guests whose files name no engine get the software CPU")),
    }
}

/// Returns the first directory above a path that exists.
fn existing(path: &Path) -> &Path {
    path.ancestors().find(|path| path.is_dir()).unwrap_or(Path::new("/"))
}

fn writable(datastore: &Path) -> Finding {
    let directory = existing(datastore);
    let there = if directory == datastore { "" } else { " (made when it is first used)" };
    let probe = directory.join(format!(".vmctl-doctor-{}", std::process::id()));
    let written = File::create_new(&probe);
    let _ = std::fs::remove_file(&probe);
    match written {
        Ok(_) => Finding::good("datastore", format!("{}{there}", datastore.display())),
        Err(error) => Finding::bad(
            "datastore",
            format!("`{}` cannot be written to: {error}", directory.display()),
            "choose another with `--datastore`, or run as its owner",
        ),
    }
}

fn space(datastore: &Path) -> Finding {
    let directory = existing(datastore);
    match free_space(directory) {
        Ok(bytes) if bytes < 1 << 30 => Finding {
            hint: Some("free some space, or choose a datastore elsewhere".into()),
            ..Finding::note("disk space", format!("{} MiB free below {}", bytes >> 20, directory.display()))
        },
        Ok(bytes) => Finding::good("disk space", format!("{} free below {}", size_words(bytes >> 20 << 20), directory.display())),
        Err(error) => Finding::note("disk space", format!("unknown: {error}")),
    }
}

fn runtime_directory(runtime: &Path) -> Finding {
    match private_directory(runtime) {
        Ok(()) => Finding::good("runtime directory", runtime.display().to_string()),
        Err(error) => Finding {
            hint: Some("guests whose directories have long paths cannot be started; set XDG_RUNTIME_DIR".into()),
            ..Finding::note("runtime directory", format!("`{}`: {error}", runtime.display()))
        },
    }
}
