//! What stands behind a network device: Ethernet frames out, Ethernet frames in.

pub mod user; // user-mode network

/// A network back end. No method blocks; frames that arrive wake the device through the waker that the back end was
/// built with.
pub trait Nic: Send {
    /// Sends one Ethernet frame (no FCS). A frame that cannot be taken now is dropped, as on a wire.
    fn transmit(&mut self, frame: &[u8]);
    /// The next frame for the guest, if there is one.
    fn receive(&mut self) -> Option<Vec<u8>>;
}
