//! Back ends of network devices: Ethernet frames out, Ethernet frames in.

pub mod counted; // counters of an interface
pub mod user; // user-mode network

/// A network back end. No method blocks. Frames that arrive wake the device through the waker that the back end was
/// built with.
pub trait Nic: Send {
    /// Sends one Ethernet frame (no FCS). A frame that cannot be taken now is dropped, as on a wire.
    fn transmit(&mut self, frame: &[u8]);
    /// Returns the next frame for the guest, if there is one.
    fn receive(&mut self) -> Option<Vec<u8>>;
    /// Returns whether the link is up.
    fn link_up(&self) -> bool {
        true
    }
}

/// A back end without a link: frames that are sent are lost, none arrive, and the guest sees no link.
pub struct NoWire;

impl Nic for NoWire {
    fn transmit(&mut self, _: &[u8]) {}
    fn receive(&mut self) -> Option<Vec<u8>> {
        None
    }
    fn link_up(&self) -> bool {
        false
    }
}
