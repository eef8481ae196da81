//! The verbs about a FreeBSD host, run through the whole program against a host of small recording programs: each says
//! what it was called with, keeps what state the test needs, and can be told to fail. Those about switches of Linux run
//! against real namespaces.

mod autostart;
mod fleet;
mod import;
#[cfg(target_os = "linux")]
mod linux;
#[cfg(target_os = "linux")]
mod linux_guests;
mod passthru;
mod setup;
mod snapshot;
mod switch;
mod volume;
mod world;
