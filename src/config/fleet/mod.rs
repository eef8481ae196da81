//! The fleet file, `fleet.toml`: many guests as one declaration.
//!
//! An entry of `[[guests]]` is laid on its templates (those of the fleet, of the datastore and the built-in ones), on
//! the fleet's `[defaults]` and on those of the host, and then becomes as many guests as `count` or `for_each` say. Each
//! goes through the same [`check`](super::check) as a guest file, so that every message has its place in the fleet file
//! or a template. A secret is handed over as the path of a file, so that no document can carry it.
//!
//! **Bounds.** A file is at most 1 MiB, a fleet at most [`keys::MAX_GUESTS`] guests and 64 MiB of guest files.

mod agreement; // what guests of one fleet must not share
mod contents; // what a fleet file yields
mod entries; // templates and guests as they are written
pub mod keys; // the table of keys
mod read; // from the file to its guests
mod secrets; // what must not stand in a file
pub mod switches; // what guests of the fleet are plugged into

pub use contents::{Fleet, FleetGuest, is_fleet};
pub use read::{FleetRequest, load_fleet};
pub use secrets::{SecretConfig, SecretSource};
pub use switches::FleetSwitch;
