//! Forwards that are added to a running guest, from the supervisor's side.
//!
//! The supervisor binds the socket, with the rights of whoever started the guest, as the engine did for the forwards of the
//! specification before it was confined. It passes the socket to the engine's connector over a stream of its own
//! ([`connector`]), and then tells the engine, which asks its connector for it. So neither of them gets a right to listen.

use std::io;
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;

use super::opened;
use super::spec::ForwardSpec;
use crate::devices::net::user::Forward;
use crate::devices::net::user::connector::{self, Bound};

/// The stream to the connector of an engine.
pub struct ForwardSockets(UnixStream);

impl ForwardSockets {
    /// Creates the stream, and its other end for [`FORWARDS_FD`](super::spec::FORWARDS_FD).
    pub fn pair() -> io::Result<(ForwardSockets, UnixStream)> {
        let (ours, theirs) = UnixStream::pair()?;
        // A connector that hangs must not hang its supervisor.
        ours.set_nonblocking(true)?;
        Ok((ForwardSockets(ours), theirs))
    }

    /// Listens for a forward on the host, and passes the socket on.
    pub fn add(&self, forward: &ForwardSpec) -> io::Result<()> {
        let Forward { protocol, host, .. } = opened::forward(forward);
        Bound::at(protocol, host)?.offer(&self.0, host)
    }

    /// Takes the socket of a forward back, as far as the connector has it.
    pub fn remove(&self, forward: &ForwardSpec) -> io::Result<()> {
        let Forward { protocol, host, .. } = opened::forward(forward);
        connector::withdraw(&self.0, protocol, host)
    }
}

/// Returns the address on which the host listens for a forward.
pub fn host(forward: &ForwardSpec) -> SocketAddr {
    SocketAddr::new(forward.host_address, forward.host_port)
}
