//! What stands behind a network device: Ethernet frames out, Ethernet frames in.

pub mod counted; // what an interface has carried
pub mod user; // user-mode network

/// A network back end. No method blocks; frames that arrive wake the device through the waker that the back end was
/// built with.
pub trait Nic: Send {
    /// Sends one Ethernet frame (no FCS). A frame that cannot be taken now is dropped, as on a wire.
    fn transmit(&mut self, frame: &[u8]);
    /// The next frame for the guest, if there is one.
    fn receive(&mut self) -> Option<Vec<u8>>;
    /// Whether there is a wire.
    fn link_up(&self) -> bool {
        true
    }
}

/// No wire: what is sent is lost, nothing comes, and the guest sees no link.
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
