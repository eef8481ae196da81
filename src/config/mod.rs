//! The TOML files: what was written, and what is meant.
pub mod layer;
pub mod meant;

pub use meant::*;
