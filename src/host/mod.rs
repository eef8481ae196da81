//! What the host offers.
