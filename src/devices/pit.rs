//! 8254 interval timer.
