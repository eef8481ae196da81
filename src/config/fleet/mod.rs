//! The fleet file, `fleet.toml`, which declares many guests.
//!
//! An entry of `[[guests]]` is merged with its templates (those of the fleet, of the datastore and the built-in ones),
//! with the fleet's `[defaults]` and with those of the host, and then becomes as many guests as `count` or `for_each`
//! say. Each goes through the same [`check`](super::check) as a guest file, so that every message has its position in
//! the fleet file or a template. A secret is passed as the path of a file, so that no document can contain it.
//!
//! **Bounds.** A file is at most 1 MiB, a fleet at most [`keys::MAX_GUESTS`] guests and 64 MiB of guest files.

mod agreement; // checks of a fleet's guests against each other
mod contents; // what a fleet file yields
mod entries; // templates and guests as they are written
pub mod keys; // the table of keys
mod read; // from the file to its guests
mod secrets; // secrets by reference
pub mod switches; // the switches of a fleet

pub use contents::{Fleet, FleetGuest, is_fleet};
pub use read::{FleetRequest, load_fleet};
pub use secrets::{SecretConfig, SecretSource};
