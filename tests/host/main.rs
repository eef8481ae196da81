//! The verbs about a FreeBSD host, run through the whole program against a host of small recording programs: each says
//! what it was called with, keeps what state the test needs, and can be told to fail.

mod autostart;
mod fleet;
mod import;
mod passthru;
mod setup;
mod snapshot;
mod switch;
mod volume;
mod world;
