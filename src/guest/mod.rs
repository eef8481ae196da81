//! The life of a guest: what is kept of it, and what runs it.
pub mod error; // what goes wrong, in the words a user reads
pub mod events; // what happened to a guest
pub mod identity; // UUIDs and MAC addresses
pub mod lock; // who runs or changes a guest
pub mod logs; // logs that do not grow without bound
pub mod state; // what the program knows of a guest
pub mod timestamp; // moments in files
