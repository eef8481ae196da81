//! the isa-debug-exit port.
