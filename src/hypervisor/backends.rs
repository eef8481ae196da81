//! The list of vCPU back ends: which there are in this program, in which order they are tried, and how each is opened.

use super::backend::{Needs, OpenBackend, Reason};
use super::soft;
use crate::units::Topology;

/// A back end of this program.
struct Entry {
    /// The word of the guest file.
    name: &'static str,
    /// Opens it, if it works on this host.
    open: fn(&Needs<'_>) -> Result<Box<dyn OpenBackend>, Reason>,
    /// Why only a guest that names it gets it.
    held_back: Option<&'static str>,
}

/// All back ends of this program, the fastest first. The last one works everywhere.
const ENTRIES: &[Entry] = &[
    #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
    Entry { name: "kvm", open: super::kvm::open, held_back: None },
    #[cfg(all(target_os = "freebsd", target_arch = "x86_64"))]
    Entry {
        name: "vmm",
        open: super::vmm::open,
        held_back: Some("it has not run on a FreeBSD host yet, and is for guests whose file names it"),
    },
    Entry { name: "soft", open: soft::run::open, held_back: None },
];

/// The error for a back end that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The back end is not in the program for this system.
    #[error("`backend = \"{0}\"` is not for this system")]
    Foreign(String),
    /// It does not work on this host, or not for this guest.
    #[error("`backend = \"{name}\"` cannot be used")]
    Unusable {
        /// Its name.
        name: &'static str,
        /// The reason.
        source: Reason,
    },
}

/// Opens the back end of this name, or the fastest that works if there is none. `note` gets one line for each faster one
/// that does not work or is held back.
pub fn open(name: Option<&str>, needs: &Needs<'_>, note: &dyn Fn(&str)) -> Result<Box<dyn OpenBackend>, OpenError> {
    open_of(ENTRIES, name, needs, note)
}

/// Checks whether the back end of this name works on this host. The error says why not.
pub fn works(name: &str) -> Result<(), String> {
    let needs = Needs { machine: "", topology: Topology::ONE, deterministic: false };
    match open(Some(name), &needs, &|_| ()) {
        Ok(_) => Ok(()),
        Err(OpenError::Unusable { source, .. }) => Err(chain(&*source)),
        Err(foreign) => Err(foreign.to_string()),
    }
}

fn open_of(
    entries: &[Entry],
    name: Option<&str>,
    needs: &Needs<'_>,
    note: &dyn Fn(&str),
) -> Result<Box<dyn OpenBackend>, OpenError> {
    if let Some(name) = name {
        let entry = entries.iter().find(|entry| entry.name == name).ok_or_else(|| OpenError::Foreign(name.into()))?;
        return (entry.open)(needs).map_err(|source| OpenError::Unusable { name: entry.name, source });
    }
    let (last, faster) = entries.split_last().expect("there is a back end for every system");
    for entry in faster {
        let reason = match entry.held_back {
            Some(why) => format!("is not taken by itself: {why}"),
            None => match (entry.open)(needs) {
                Ok(open) => return Ok(open),
                Err(reason) => format!("cannot be used: {}", chain(&*reason)),
            },
        };
        note(&format!("the guest runs on the back end `{}`, since `{}` {reason}", last.name, entry.name));
    }
    (last.open)(needs).map_err(|source| OpenError::Unusable { name: last.name, source })
}

/// Returns an error with its causes.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    const NEEDS: Needs<'static> = Needs { machine: "", topology: Topology::ONE, deterministic: false };

    fn refuses(_: &Needs<'_>) -> Result<Box<dyn OpenBackend>, Reason> {
        Err("the host has none".into())
    }

    #[test]
    fn the_fastest_that_works_is_taken_and_the_others_are_told_once() {
        let fast = Entry { name: "fast", open: refuses, held_back: None };
        let slow = Entry { name: "soft", open: soft::run::open, held_back: None };
        let notes = RefCell::new(Vec::new());
        let note = |text: &str| notes.borrow_mut().push(text.to_string());
        let taken = open_of(&[fast, slow], None, &NEEDS, &note).unwrap();
        assert_eq!(taken.name(), "soft");
        let text = "the guest runs on the back end `soft`, since `fast` cannot be used: the host has none";
        assert_eq!(notes.into_inner(), [text]);
    }

    #[test]
    fn a_back_end_that_is_asked_for_is_never_replaced() {
        let fast = Entry { name: "fast", open: refuses, held_back: Some("it is new") };
        let entries = [fast, Entry { name: "soft", open: soft::run::open, held_back: None }];
        let silent = |text: &str| panic!("{text}");
        let error = open_of(&entries, Some("fast"), &NEEDS, &silent).err().unwrap();
        assert_eq!(chain(&error), "`backend = \"fast\"` cannot be used: the host has none");
        let error = open_of(&entries, Some("other"), &NEEDS, &silent).err().unwrap();
        assert_eq!(error.to_string(), "`backend = \"other\"` is not for this system");
        assert_eq!(open_of(&entries, Some("soft"), &NEEDS, &silent).unwrap().name(), "soft");
        // One that is held back is taken only by its name.
        let notes = RefCell::new(Vec::new());
        let taken = open_of(&entries, None, &NEEDS, &|text| notes.borrow_mut().push(text.to_string())).unwrap();
        assert_eq!(taken.name(), "soft");
        let text = "the guest runs on the back end `soft`, since `fast` is not taken by itself: it is new";
        assert_eq!(notes.into_inner(), [text]);
    }
}
