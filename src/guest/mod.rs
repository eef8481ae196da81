//! The life of a guest.
