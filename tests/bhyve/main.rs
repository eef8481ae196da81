//! Guests under bhyve(8), from the command line down to the calls of FreeBSD's tools, on a made-up FreeBSD.
//!
//! The tools are this very test binary, run again through small scripts: see [`fake`]. They keep what they are told in
//! a directory, note every call, and fail where a test wants them to.

mod bad_input;
mod default_engine;
mod devices;
mod exits;
mod fake;
mod first;
mod install;
mod jails;
mod killed;
mod life;
mod service;
mod steps;
mod suspend;
mod undoing;
mod volumes;
mod world;
