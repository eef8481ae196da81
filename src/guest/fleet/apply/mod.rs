//! Execution of a plan. Each guest is a step of its own: announced in the journal, done, and undone if it fails.
//!
//! There is no state besides the guests themselves: planning again finds what a killed apply did not do. The journal
//! shows the guest that it may have been working on. No step removes a byte of a disk before its replacement exists,
//! and none does without `prune`.

pub mod journal;
mod steps;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use crate::config::{Fleet, fleet_directory};
use crate::fetch::Progress;
use crate::host::files::make_directory;

use super::plan::{FleetPlan, GuestAction};
use super::secrets;
use super::switches::{Making, SwitchPlan};
use crate::guest::definition::Surroundings;
use crate::guest::error::{GuestError, Result};
use crate::guest::lock::{GuestLock, Role};
use crate::guest::store::Store;
use journal::{Journal, Line};

/// The lock of a fleet while it is applied.
pub struct FleetLock {
    _lock: GuestLock,
    directory: PathBuf,
}

impl FleetLock {
    /// Takes the lock of a fleet, or reports its holder. With `wait`, waits until it is free. `waiting` gets the holder
    /// once.
    pub fn take(fleet: &str, datastore: &Path, wait: bool, waiting: impl FnOnce(u32)) -> Result<FleetLock> {
        let directory = fleet_directory(datastore, fleet);
        make_directory(&directory, 0o755).map_err(|error| GuestError::io("make", &directory, error))?;
        let path = directory.join("lock");
        let mut waiting = Some(waiting);
        loop {
            match GuestLock::acquire(&path, Role::Command)? {
                Ok(lock) => return Ok(FleetLock { _lock: lock, directory }),
                Err(holder) => {
                    let pid = holder.map_or(0, |holder| holder.pid);
                    if !wait {
                        return Err(GuestError::user(format!("another apply (process {pid}) is at work on the fleet `{fleet}`"))
                            .hint("try again when it is done, or add `--wait`"));
                    }
                    if let Some(waiting) = waiting.take() {
                        waiting(pid);
                    }
                    std::thread::sleep(Duration::from_millis(50));
                }
            }
        }
    }

    /// Completes or undoes the steps that a killed apply was working on. Returns its guests.
    pub fn recover(&self, store: &Store) -> Result<Vec<String>> {
        let mut guests = Vec::new();
        for line in Journal::unfinished(&self.directory)? {
            steps::recover(store, &line)?;
            guests.extend(line.guest().map(str::to_owned));
        }
        guests.dedup();
        Ok(guests)
    }
}

/// Outcome of one guest, or of one switch.
pub struct Outcome {
    /// Name of the guest, or `switch NAME`.
    pub what: String,
    /// The action that was carried out.
    pub action: GuestAction,
    /// Whether it was restarted.
    pub restarted: bool,
    /// The error if it failed. Then it is unchanged.
    pub error: Option<GuestError>,
}

/// Options of an apply.
#[derive(Clone, Copy)]
pub struct Manner<'a> {
    /// Maximum number of guests at the same time.
    pub parallel: usize,
    /// Whether data may be removed.
    pub prune: bool,
    /// Whether to restart running guests whose next boot would differ.
    pub reboot: bool,
    /// Gets the progress of images that are fetched.
    pub progress: &'a dyn Progress,
}

/// The execution of a plan.
pub struct Apply<'a> {
    /// Lock of the fleet.
    pub lock: &'a FleetLock,
    /// The fleet.
    pub fleet: &'a Fleet,
    /// The plan.
    pub plan: &'a FleetPlan,
    /// The store of its guests.
    pub store: &'a Store,
    /// Surroundings for reading guest files.
    pub surroundings: Surroundings<'a>,
    /// The options.
    pub manner: Manner<'a>,
}

impl Apply<'_> {
    /// Applies the secrets, the switches, then each guest, and then the switches to remove. Calls `each` at the end of
    /// each, and `begin` with its name at its beginning, whose result lives until then. Continues after a failure.
    pub fn run<T>(&self, begin: impl Fn(&str, GuestAction) -> T + Sync, each: impl Fn(Outcome) + Sync) -> Result<()> {
        for secret in self.fleet.secrets.iter().filter(|secret| self.plan.secrets.contains(&secret.id)) {
            if let (_, Some(value)) = secrets::look(secret)? {
                secrets::keep(secret, &value)?;
            }
        }
        let making = Making { fleet: self.fleet, host: self.surroundings.host, datastore: self.surroundings.datastore };
        let switch = |planned: &SwitchPlan, result: Result<()>| {
            let what = format!("switch {}", planned.name);
            each(Outcome { what, action: planned.action, restarted: false, error: result.err() });
        };
        making.make(&self.plan.switches, switch)?;
        self.guests(&begin, &each)?;
        making.remove(&self.plan.switches, switch)
    }

    fn guests<T>(&self, begin: &(impl Fn(&str, GuestAction) -> T + Sync), each: &(impl Fn(Outcome) + Sync)) -> Result<()> {
        let Apply { fleet, store, surroundings, manner, .. } = *self;
        let todo: Vec<_> = self.plan.guests.iter().filter(|guest| guest.does_something() && guest.refused.is_none()).collect();
        if todo.is_empty() {
            return remove_journal(&self.lock.directory);
        }
        let journal = Journal::begin(&self.lock.directory)?;
        let queue = Mutex::new(todo.iter());
        let work = || {
            loop {
                let next = queue.lock().expect("no panic happens under this lock").next();
                let Some(planned) = next else { return };
                if manner.progress.cancelled() {
                    return;
                }
                let shown = begin(&planned.name, planned.action);
                let step = steps::Step { fleet, planned, store, surroundings, manner, journal: &journal };
                let (restarted, error) = match step.run() {
                    Ok(restarted) => (restarted, None),
                    Err(error) => (false, Some(error)),
                };
                drop(shown);
                each(Outcome { what: planned.name.clone(), action: planned.action, restarted, error });
            }
        };
        std::thread::scope(|scope| {
            for _ in 0..manner.parallel.clamp(1, todo.len()) {
                scope.spawn(work);
            }
        });
        journal.end()
    }
}

/// Removes the journal of a killed apply, once all its steps are settled.
fn remove_journal(directory: &Path) -> Result<()> {
    let path = directory.join(journal::FILE);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(GuestError::io("remove", &path, error)),
        _ => Ok(()),
    }
}

/// Notes that a guest is done, for [`steps`].
fn done(journal: &Journal, guest: &str) -> Result<()> {
    journal.write(&Line::Done { guest: guest.to_owned() })
}
