//! Sizes and durations, parsed and printed.
