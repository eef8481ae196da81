//! Selection of guests by the names, globs and tags of a command line, and running an action on each.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Mutex;

use super::{App, ExitStatus, Failure, Guests, Outcome};
use crate::config::resolve::Templates;
use crate::config::{DatastoreConfig, HostConfig, HostPaths};
use crate::guest::definition::Surroundings;
use crate::guest::error::GuestError;
use crate::guest::lock::Waiting;
use crate::guest::overview::Observer;
use crate::guest::store::{GuestDir, Store};
use crate::guest::trust;

/// Number of guests that are worked on at the same time.
const AT_ONCE: usize = 8;

/// Number of guests for which a thread is not worth its start.
const FEW: usize = 16;

/// The store of a command, with the parameters for reading guest files.
pub struct CommandContext {
    /// The host file, checked.
    pub host: HostConfig,
    host_file: PathBuf,
    datastore: DatastoreConfig,
    /// The guests.
    pub store: Store,
}

impl CommandContext {
    /// Returns where the guests are.
    pub fn datastore(&self) -> &DatastoreConfig {
        &self.datastore
    }

    /// Returns the parameters for reading guest files.
    pub fn surroundings(&self) -> Surroundings<'_> {
        Surroundings { host: &self.host, host_file: &self.host_file, datastore: &self.datastore.path }
    }

    /// Returns the templates of guest files.
    pub fn templates(&self) -> Templates {
        Templates { dirs: self.host.template_search(&self.datastore.path), ..Templates::default() }
    }
}

/// One selected guest.
pub struct Chosen {
    /// Its name as it was written, even if there is no such guest.
    pub label: String,
    /// The guest, or the error that there is none.
    pub guest: Result<GuestDir, GuestError>,
    /// Whether it was named, and not only matched by a pattern or a tag: then a wrong state is an error.
    pub named: bool,
}

impl App {
    /// Returns the host file, the datastore and the store that the user selected. Sweeps the remains of killed
    /// commands.
    pub fn context(&self) -> Result<CommandContext, Failure> {
        let context = trusted(self.context_unswept()?)?;
        context.store.sweep();
        Ok(context)
    }

    /// Returns the same without sweeping, for a command that reports the remains.
    pub fn context_unswept(&self) -> Result<CommandContext, Failure> {
        self.context_of(self.host()?)
    }

    /// Returns the same, without the switches of fleets.
    pub fn context_without_fleets(&self) -> Result<CommandContext, Failure> {
        let context = trusted(self.context_of(self.host_alone()?)?)?;
        context.store.sweep();
        Ok(context)
    }

    /// Returns the same for a command that only reads: then the datastore may belong to anybody. It is swept only if it
    /// can be trusted.
    pub fn context_to_look(&self) -> Result<CommandContext, Failure> {
        let context = self.context_unswept()?;
        if trust::check_datastore(context.store.root()).is_ok() {
            context.store.sweep();
        }
        Ok(context)
    }

    fn context_of(&self, host: HostConfig) -> Result<CommandContext, Failure> {
        let paths = HostPaths::of_this_user()?;
        let datastore = self.datastore(&host)?;
        let path = std::path::absolute(&datastore.path)?;
        let datastore = DatastoreConfig { path, ..datastore };
        let host_file = self.config.clone().unwrap_or_else(|| paths.config_file.clone());
        let host_file = std::path::absolute(&host_file)?;
        let ui = self.ui.clone();
        let store = Store::new(&datastore, &paths.runtime_dir).telling(Waiting::notify_with(move |words| ui.progress(words)));
        Ok(CommandContext { host, host_file, datastore, store })
    }
}

/// Refuses the datastore of another user, which must not decide what this user runs and writes.
fn trusted(context: CommandContext) -> Result<CommandContext, Failure> {
    trust::check_datastore(context.store.root())?;
    Ok(context)
}

impl Guests {
    /// Returns the selected guests. A name without a guest is among them, and is reported in its turn.
    pub fn choose(&self, context: &CommandContext) -> Result<Vec<Chosen>, Failure> {
        let patterns = if self.names.is_empty() { vec!["*".to_owned()] } else { self.names.clone() };
        if self.names.is_empty() && context.store.names()?.is_empty() {
            return Ok(Vec::new());
        }
        let mut chosen = Vec::new();
        let mut labels = HashSet::new();
        for pattern in patterns {
            let named = !pattern.contains(['*', '?', '[', '{']);
            for guest in context.store.select(std::slice::from_ref(&pattern))? {
                let label = guest.as_ref().map_or_else(|_| pattern.clone(), |guest| guest.name().to_owned());
                if labels.insert(label.clone()) {
                    chosen.push(Chosen { label, guest, named });
                }
            }
        }
        if !self.tags.is_empty() {
            let mut observer = Observer::new(context.surroundings());
            chosen.retain_mut(|chosen| {
                let Ok(guest) = &chosen.guest else { return true };
                let tags = observer.look(guest).map(|(overview, _)| overview.tags).unwrap_or_default();
                self.tags.iter().all(|tag| tags.contains(tag))
            });
            if chosen.is_empty() {
                let tags: Vec<_> = self.tags.iter().map(|tag| format!("`{tag}`")).collect();
                return Err(Failure::user(format!("no guest has the tag {}", tags.join(" and ")))
                    .hint("`vmctl list -o wide` shows the tags"));
            }
        }
        Ok(chosen)
    }
}

/// Applies a function to each item, for several at the same time where there are many, and returns the results in the order
/// of the items. Each thread makes a state of its own with `start`. For what takes microseconds: reading a guest's files.
pub fn map_in_order<T: Send, S, R: Send>(
    items: Vec<T>,
    start: impl Fn() -> S + Sync,
    look: impl Fn(&mut S, T) -> R + Sync,
) -> Vec<R> {
    let work = |items: Vec<T>| {
        let mut state = start();
        items.into_iter().map(|item| look(&mut state, item)).collect::<Vec<R>>()
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(AT_ONCE).min(items.len() / FEW);
    if threads < 2 {
        return work(items);
    }
    let (share, work) = (items.len().div_ceil(threads), &work);
    let mut items = items.into_iter();
    std::thread::scope(|scope| {
        let shares =
            std::iter::repeat_with(|| items.by_ref().take(share).collect::<Vec<T>>()).take_while(|share| !share.is_empty());
        let running: Vec<_> = shares.map(|share| scope.spawn(move || work(share))).collect();
        let joined = running.into_iter().map(|thread| thread.join());
        joined.flat_map(|done| done.unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
    })
}

impl App {
    /// Runs an action on each guest, for several at the same time. Continues after a failure and reports each guest at
    /// its end. Returns the worst status.
    pub fn each_guest(&self, chosen: Vec<Chosen>, action: impl Fn(&GuestDir, bool) -> Outcome + Sync) -> Outcome {
        let many = chosen.len();
        let queue = Mutex::new(chosen.into_iter());
        let worst = Mutex::new(ExitStatus::Done);
        let work = || {
            loop {
                let next = queue.lock().expect("no panic happens under this lock").next();
                let Some(Chosen { label, guest, named }) = next else { return };
                let outcome = match guest {
                    Ok(guest) => action(&guest, named),
                    Err(error) => Err(Failure::from(error)),
                };
                let mut worst = worst.lock().expect("no panic happens under this lock");
                let status = outcome.unwrap_or_else(|failure| self.ui.failure_about(many > 1, &label, &failure));
                *worst = (*worst).max(status);
            }
        };
        std::thread::scope(|scope| {
            for _ in 0..many.min(AT_ONCE) {
                scope.spawn(work);
            }
        });
        Ok(worst.into_inner().expect("no panic happened under this lock"))
    }

    /// Runs an action as [`App::each_guest`] does, but on one guest after the other, for commands that talk with the
    /// user.
    pub fn each_in_turn(&self, chosen: Vec<Chosen>, mut action: impl FnMut(&GuestDir) -> Outcome) -> Outcome {
        let many = chosen.len() > 1;
        let mut worst = ExitStatus::Done;
        for Chosen { label, guest, .. } in chosen {
            let outcome = guest.map_err(Failure::from).and_then(|guest| action(&guest));
            worst = worst.max(outcome.unwrap_or_else(|failure| self.ui.failure_about(many, &label, &failure)));
        }
        Ok(worst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_in_the_order_of_the_items_however_many_there_are() {
        for count in [0, 1, FEW, 2 * FEW - 1, 2 * FEW, 2 * FEW + 1, 1000] {
            let items: Vec<usize> = (0..count).collect();
            let looked = map_in_order(
                items.clone(),
                || 0,
                |seen, item| {
                    *seen += 1;
                    (item, *seen)
                },
            );
            assert_eq!(looked.iter().map(|(item, _)| *item).collect::<Vec<_>>(), items);
            let states = looked.iter().filter(|(_, seen)| *seen == 1).count();
            assert!(states <= AT_ONCE && (count == 0 || states >= 1), "a state for each thread, not for each item: {states}");
        }
    }
}
