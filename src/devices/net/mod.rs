//! Back ends of network devices: Ethernet frames out, Ethernet frames in.

pub mod counted; // counters of an interface
#[cfg(target_os = "linux")]
pub mod tap; // a tap of the host
pub mod user; // user-mode network

/// Length of the header that comes before a frame of a back end with offloads: `struct virtio_net_hdr` of virtio 1.2,
/// 5.1.6.
pub const HEADER_BYTES: usize = 12;

/// Work on frames that their receiver takes over from the sender.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Offloads {
    /// Frames may come without a checksum of TCP or UDP.
    pub checksum: bool,
    /// Several segments of TCP over IPv4 may come as one frame.
    pub tso4: bool,
    /// The same over IPv6.
    pub tso6: bool,
    /// The same with congestion marks (ECN).
    pub ecn: bool,
}

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
    /// Returns whether a header of [`HEADER_BYTES`] comes before each frame, in both directions. Only such a back end takes
    /// frames without checksum, and frames of several segments.
    fn has_headers(&self) -> bool {
        false
    }
    /// Tells a back end with headers what the guest takes over. Nothing before the first call.
    fn accept(&mut self, _: Offloads) {}
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
