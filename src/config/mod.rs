//! The TOML files: what was written, and what is meant.
