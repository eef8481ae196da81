//! The TOML files: what was written, and what is meant.
//!
//! A guest file is read in steps, each of which remembers where every value stands: [`layer`] parses, [`resolve`] lays
//! it on its templates and replaces `{{ }}`, [`walk`] holds it against the table of [`keys`], [`check`] applies the rules
//! that go beyond one key. Only that yields a [`GuestConfig`]. All that is wrong is reported at once, as [`Diagnostics`].
pub mod addresses; // MAC, PCI and IP addresses as the files write them
pub mod bhyve_variables; // what `bhyve.options` may name
pub mod check; // what is written -> what is meant
pub mod check_cloud_init; // the same, for `[cloud-init]`
pub mod check_hardware; // the same, for what bhyve(8) acts on
pub mod cloud_init; // what cloud-init in the guest is told
pub mod diagnostic; // what is wrong with a file, and where
pub mod expression; // `{{ ... }}`
pub mod fleet; // the fleet file: many guests as one declaration
pub mod guest; // what a guest file means
pub mod hardware; // what bhyve(8) acts on, as it is meant
pub mod host; // the host file
pub mod host_keys; // the keys of the host file
pub mod key; // what the table of keys is made of
pub mod keys; // the one table of keys
pub mod layer; // one TOML text as a tree with places
pub mod load; // a guest file, from its path to its meaning
pub mod order; // circles in a graph of names
pub mod paths; // where things are when nobody says
pub mod pattern; // patterns of guest names
pub mod render; // a resolved guest file printed again, with where each key comes from
pub mod resolve; // templates, includes, --set
pub mod rules; // what several classes of keys share
pub mod schema; // JSON Schema for editors
pub mod switch; // the switches of the host file
pub mod uids; // users that nobody else is
pub mod view; // values read out of a tree
pub mod walk; // unknown keys, types, ranges, refusals

pub use crate::choices::*;
pub use addresses::{InterfaceAddress, MacAddr, PciAddress};
pub use cloud_init::{CloudInit, SshKey};
pub use diagnostic::{Diagnostic, Diagnostics};
pub use fleet::{Fleet, FleetGuest, FleetRequest, SecretConfig, SecretSource, load_fleet};
pub use guest::*;
pub use hardware::*;
pub use host::{CatalogueConfig, DatastoreConfig, HostConfig};
pub use load::{GuestRequest, LoadedGuest, load_guest};
pub use paths::{GUEST_FILE, GUESTS_DIR, HostPaths, TEMPLATES_DIR, fleet_directory};
pub use pattern::NamePattern;
pub use switch::{Dhcp, Nat, SwitchConfig, SwitchKind};
pub use uids::UidRange;
