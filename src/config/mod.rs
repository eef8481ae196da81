//! The TOML files: reading and checking them.
//!
//! A guest file is read in steps, each of which keeps the position of every value: [`layer`] parses it, [`resolve`]
//! merges it with its templates and replaces `{{ }}`, [`validate`] compares it with the table of [`keys`], and [`check`]
//! applies the rules that involve more than one key. Only the last step makes a [`GuestConfig`]. All problems are
//! reported at once, as [`Diagnostics`].
pub mod addresses; // MAC, PCI and IP addresses as the files write them
pub mod bhyve_variables; // names for `bhyve.options`
pub mod check; // rules that involve more than one key
pub mod check_cloud_init; // the same, for `[cloud-init]`
pub mod check_devices; // the same, for the devices that only bhyve(8) has
pub mod check_firmware; // the same, for loaders and firmware
pub mod check_hardware; // the same, for the machine as bhyve(8) runs it
pub mod cloud_init; // settings for cloud-init in the guest
mod device_key; // names of the devices that have PCI addresses
pub mod diagnostic; // problems of a file, with their positions
pub mod expression; // `{{ ... }}`
pub mod fleet; // the fleet file, which declares many guests
pub mod guest; // configuration of a guest
pub mod hardware; // configuration of the parts that bhyve(8) uses
pub mod host; // the host file
pub mod host_keys; // the keys of the host file
pub mod key; // types of the key table
pub mod keys; // the table of all keys
pub mod layer; // one TOML text as a tree with positions
pub mod load; // reading a guest file
pub mod order; // circles in a graph of names
pub mod paths; // default paths
pub mod pattern; // patterns of guest names
pub mod render; // printing a resolved guest file, with the origin of each key
pub mod resolve; // templates, includes, --set
pub mod rules; // what several classes of keys share
pub mod schema; // JSON Schema for editors
pub mod switch; // the switches of the host file
pub mod table_reader; // typed values of a tree
pub mod uids; // users that nobody else is
pub mod validate; // unknown keys, types, ranges, refusals

pub use crate::choices::*;
pub use addresses::{MacAddr, PciAddress};
pub use cloud_init::{CloudInit, SshKey};
pub use device_key::DeviceKey;
pub use diagnostic::{Diagnostic, Diagnostics};
pub use fleet::{Fleet, FleetGuest, FleetRequest, SecretConfig, SecretSource, load_fleet};
pub use guest::*;
pub use hardware::*;
pub use host::{DatastoreConfig, HostConfig};
#[cfg(test)]
pub use load::guest_of;
pub use load::{GuestRequest, LoadedGuest, load_guest};
pub use paths::{GUEST_FILE, GUESTS_DIR, HostPaths, TEMPLATES_DIR, fleet_directory};
pub use pattern::{NamePattern, PatternError};
pub use switch::{SwitchConfig, SwitchKind};
pub use uids::UidRange;
