//! The QEMU guest agent: a program of the guest that answers over a port of its virtio console.
//!
//! The agent is the guest's, so nothing that it says is trusted: see [`client`].

pub mod client; // the protocol, with its bounds
pub mod commands; // the commands that are used, and their answers
pub mod service; // the thread of a boot that talks to the agent
