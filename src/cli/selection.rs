//! From the names, globs and tags of a command line to guests, and the same done to each of them.

use std::path::PathBuf;
use std::sync::Mutex;

use super::{App, ExitStatus, Failure, Guests, Outcome};
use crate::config::{DatastoreConfig, HostConfig, HostPaths};
use crate::guest::definition::Surroundings;
use crate::guest::error::GuestError;
use crate::guest::lock::Waiting;
use crate::guest::overview::Observer;
use crate::guest::store::{GuestDir, Store};
use crate::guest::trust;

/// How many guests are worked on at the same time.
const AT_ONCE: usize = 8;

/// The store of a command, and what guest files are read with.
pub struct Place {
    /// The host file, checked.
    pub host: HostConfig,
    host_file: PathBuf,
    datastore: DatastoreConfig,
    /// The guests.
    pub store: Store,
}

impl Place {
    /// Where the guests are.
    pub fn datastore(&self) -> &DatastoreConfig {
        &self.datastore
    }

    /// What guest files are read with.
    pub fn around(&self) -> Surroundings<'_> {
        Surroundings { host: &self.host, host_file: &self.host_file, datastore: &self.datastore.path }
    }
}

/// One guest that a command is about.
pub struct Chosen {
    /// As it was written, when it means no guest.
    pub shown: String,
    /// The guest, or that there is none.
    pub guest: Result<GuestDir, GuestError>,
    /// It was named, and not only matched by a pattern or a tag: not being in the right state is then an error.
    pub named: bool,
}

impl App {
    /// The host file, the datastore and the store that the user means. What killed commands left in it is swept.
    pub fn place(&self) -> Result<Place, Failure> {
        let place = trusted(self.place_as_left()?)?;
        place.store.sweep();
        Ok(place)
    }

    /// The same, and nothing is swept: for a command that tells of it.
    pub fn place_as_left(&self) -> Result<Place, Failure> {
        self.place_of(self.host()?)
    }

    /// The same, without the switches of fleets.
    pub fn place_alone(&self) -> Result<Place, Failure> {
        let place = trusted(self.place_of(self.host_alone()?)?)?;
        place.store.sweep();
        Ok(place)
    }

    /// The same for a command that only looks: then the datastore may be anybody's. It is swept where it can be trusted.
    pub fn place_to_look(&self) -> Result<Place, Failure> {
        let place = self.place_as_left()?;
        if trust::check_datastore(place.store.root()).is_ok() {
            place.store.sweep();
        }
        Ok(place)
    }

    fn place_of(&self, host: HostConfig) -> Result<Place, Failure> {
        let paths = HostPaths::of_this_user()?;
        let datastore = self.datastore(&host)?;
        let path = std::path::absolute(&datastore.path)?;
        let datastore = DatastoreConfig { path, ..datastore };
        let host_file = self.config.clone().unwrap_or_else(|| paths.config_file.clone());
        let host_file = std::path::absolute(&host_file)?;
        let ui = self.ui.clone();
        let store = Store::new(&datastore, &paths.runtime_dir).telling(Waiting::told(move |words| ui.progress(words)));
        Ok(Place { host, host_file, datastore, store })
    }
}

/// A datastore of somebody else's decides nothing of what this user runs and writes.
fn trusted(place: Place) -> Result<Place, Failure> {
    trust::check_datastore(place.store.root())?;
    Ok(place)
}

impl Guests {
    /// The guests that are meant; what means none is among them, to be reported in its turn.
    pub fn choose(&self, place: &Place) -> Result<Vec<Chosen>, Failure> {
        let patterns = if self.names.is_empty() { vec!["*".to_owned()] } else { self.names.clone() };
        if self.names.is_empty() && place.store.names()?.is_empty() {
            return Ok(Vec::new());
        }
        let mut chosen = Vec::new();
        for pattern in patterns {
            let named = !pattern.contains(['*', '?', '[', '{']);
            for guest in place.store.select(std::slice::from_ref(&pattern))? {
                let shown = guest.as_ref().map_or_else(|_| pattern.clone(), |guest| guest.name().to_owned());
                if !chosen.iter().any(|other: &Chosen| other.shown == shown) {
                    chosen.push(Chosen { shown, guest, named });
                }
            }
        }
        if !self.tags.is_empty() {
            let mut observer = Observer::new(place.around());
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

impl App {
    /// Does the same to each guest, some at a time; goes on after one fails and reports each as it ends. Returns the
    /// worst status.
    pub fn each_guest(&self, chosen: Vec<Chosen>, action: impl Fn(&GuestDir, bool) -> Outcome + Sync) -> Outcome {
        let many = chosen.len();
        let queue = Mutex::new(chosen.into_iter());
        let worst = Mutex::new(ExitStatus::Done);
        let work = || {
            loop {
                let next = queue.lock().expect("no panic happens under this lock").next();
                let Some(Chosen { shown, guest, named }) = next else { return };
                let outcome = match guest {
                    Ok(guest) => action(&guest, named),
                    Err(error) => Err(Failure::from(error)),
                };
                let mut worst = worst.lock().expect("no panic happens under this lock");
                let status = outcome.unwrap_or_else(|failure| self.ui.failure_about(many > 1, &shown, &failure));
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

    /// As [`App::each_guest`], one after the other, for commands that talk with the user.
    pub fn each_in_turn(&self, chosen: Vec<Chosen>, mut action: impl FnMut(&GuestDir) -> Outcome) -> Outcome {
        let many = chosen.len() > 1;
        let mut worst = ExitStatus::Done;
        for Chosen { shown, guest, .. } in chosen {
            let outcome = guest.map_err(Failure::from).and_then(|guest| action(&guest));
            worst = worst.max(outcome.unwrap_or_else(|failure| self.ui.failure_about(many, &shown, &failure)));
        }
        Ok(worst)
    }
}
