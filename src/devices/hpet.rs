//! High Precision Event Timer.
