//! The life of guests, from the command line down to the engine's process, with an engine that does what the guest
//! file's kernel command line says.
//!
//! The engine is this very test binary, run again: see [`engine`].

mod agent;
mod change;
mod console;
mod embedded;
mod engine;
mod first_hour;
mod fleet;
mod forward;
mod install;
mod killed;
mod launch;
mod looking;
mod policy;
mod preflight;
mod progress;
mod shortest;
mod store;
mod stubborn;
mod systemd;
mod verbs;
mod world;
