//! The block cache.

/// The blocks decoded so far.
pub struct BlockCache {}
