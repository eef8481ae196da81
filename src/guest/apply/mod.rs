//! A plan, carried out. Each guest is a step of its own: announced in the journal, done, undone if it fails.
//!
//! Nothing is remembered but in the guests themselves: what a killed apply did not get to is found by planning again. The
//! journal says where it may have been in the middle of a guest. No step removes a byte of a disk before what takes its
//! place is there, and none without `prune`.

pub mod journal;
mod steps;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use crate::config::{Fleet, fleet_directory};
use crate::fetch::Progress;
use crate::host::files::make_directory;

use super::definition::Surroundings;
use super::error::{GuestError, Result};
use super::fleet_switches::{Making, SwitchPlan};
use super::lock::{GuestLock, Role};
use super::plan::{Action, Plan};
use super::secrets;
use super::store::Store;
use journal::{Journal, Line};

/// Held while a fleet is applied.
pub struct FleetLock {
    _lock: GuestLock,
    directory: PathBuf,
}

impl FleetLock {
    /// Takes the lock of a fleet, or says who has it; with `wait`, waits until it is free. `waiting` is told once whom
    /// for.
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

    /// Puts right what an apply that was killed was in the middle of. Returns the guests that it was at.
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

/// What became of one guest, or of one switch.
pub struct Outcome {
    /// Which: its name, or `switch NAME`.
    pub what: String,
    /// What was done.
    pub action: Action,
    /// It was booted again.
    pub restarted: bool,
    /// Or why it was not; it is then as it was before.
    pub error: Option<GuestError>,
}

/// How a plan is carried out.
#[derive(Clone, Copy)]
pub struct Manner<'a> {
    /// At most so many guests at once.
    pub parallel: usize,
    /// Data may be removed.
    pub prune: bool,
    /// Running guests whose next boot would be another are booted again.
    pub reboot: bool,
    /// Hears of images that are fetched.
    pub progress: &'a dyn Progress,
}

/// A plan that is carried out.
pub struct Apply<'a> {
    /// Held meanwhile.
    pub lock: &'a FleetLock,
    /// The fleet.
    pub fleet: &'a Fleet,
    /// What is done.
    pub plan: &'a Plan,
    /// Where its guests are.
    pub store: &'a Store,
    /// What guest files are read with.
    pub around: Surroundings<'a>,
    /// How it is done.
    pub manner: Manner<'a>,
}

impl Apply<'_> {
    /// The secrets, the switches, then guest by guest, and the switches that go; `each` is told as they end. Goes on after
    /// one fails.
    pub fn run(&self, each: impl Fn(Outcome) + Sync) -> Result<()> {
        for secret in self.fleet.secrets.iter().filter(|secret| self.plan.secrets.contains(&secret.id)) {
            if let (_, Some(value)) = secrets::look(secret)? {
                secrets::keep(secret, &value)?;
            }
        }
        let making = Making { fleet: self.fleet, host: self.around.host, datastore: self.around.datastore };
        let switch = |planned: &SwitchPlan, result: Result<()>| {
            let what = format!("switch {}", planned.name);
            each(Outcome { what, action: planned.action, restarted: false, error: result.err() });
        };
        making.make(&self.plan.switches, switch)?;
        self.guests(&each)?;
        making.remove(&self.plan.switches, switch)
    }

    fn guests(&self, each: &(impl Fn(Outcome) + Sync)) -> Result<()> {
        let Apply { fleet, store, around, manner, .. } = *self;
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
                let step = steps::Step { fleet, planned, store, around, manner, journal: &journal };
                let (restarted, error) = match step.run() {
                    Ok(restarted) => (restarted, None),
                    Err(error) => (false, Some(error)),
                };
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

/// A journal that a killed apply left, once all it told of is put right.
fn remove_journal(directory: &Path) -> Result<()> {
    let path = directory.join(journal::FILE);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(GuestError::io("remove", &path, error)),
        _ => Ok(()),
    }
}

/// For [`steps`]: a line is written, and the guest's part of it done.
fn done(journal: &Journal, guest: &str) -> Result<()> {
    journal.write(&Line::Done { guest: guest.to_owned() })
}
