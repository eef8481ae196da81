//! One TOML text as a tree that remembers where each key and value stands.
/// One TOML text, parsed.
#[derive(Debug, Clone, PartialEq)]
pub struct Layer {}
