//! 8259A interrupt controllers.
