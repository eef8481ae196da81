//! 8042 keyboard controller.
