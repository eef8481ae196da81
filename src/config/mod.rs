//! The TOML files: what was written, and what is meant.
pub mod diagnostic; // what is wrong with a file, and where
pub mod layer; // one TOML text as a tree with places
pub mod meant; // what the files mean
pub mod paths; // where things are when nobody says

pub use diagnostic::{Diagnostic, Diagnostics};
pub use meant::*;
pub use paths::{GUEST_FILE, GUESTS_DIR, HostPaths, TEMPLATES_DIR};
