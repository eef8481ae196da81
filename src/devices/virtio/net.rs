//! Network device: virtio 1.2 section 5.1.
//!
//! Queue 0 receives, queue 1 transmits. Each frame follows a 12-byte header (5.1.6) of which only `num_buffers` is
//! used: with VIRTIO_NET_F_MRG_RXBUF a frame may take several chains.
//!
//! **Not modelled**: checksum and segmentation offloads, the control queue, several queue pairs, an MTU other than the
//! driver's default. None is offered; the header's flags are ignored on transmit.
//!
//! **Hostile guest**: a frame to send is read up to `FRAME_MAX` bytes; a longer or empty one is dropped and counted.
//! While the guest gives no buffers, one frame is held and no more are taken from the back end, which bounds its own
//! queue. A frame that does not fit in the whole ring is dropped.
//!
//! **Saved state**: the held frame.

use serde::{Deserialize, Serialize};

use super::{Kind, Queues, VirtioDevice, queue};
use crate::devices::net::Nic;
use crate::hypervisor::state::{Section, StateError};

const NAME: &str = "virtio-net";
const VERSION: u32 = 1;
const RX: usize = 0;
const TX: usize = 1;
const QUEUE_SIZE: u16 = 256;
const HEADER_BYTES: usize = 12;
const NUM_BUFFERS: u64 = 10;
/// The longest frame, either way: an IPv4 packet of 64 KiB with its Ethernet and VLAN headers.
pub const FRAME_MAX: usize = 65535 + 18;

/// Feature bits, 5.1.3: `mtu` is valid.
pub const VIRTIO_NET_F_MTU: u64 = 1 << 3;
/// `mac` is valid.
pub const VIRTIO_NET_F_MAC: u64 = 1 << 5;
/// A frame may take several chains.
pub const VIRTIO_NET_F_MRG_RXBUF: u64 = 1 << 15;
/// `status` is valid.
pub const VIRTIO_NET_F_STATUS: u64 = 1 << 16;
/// `status`: the link is up.
pub const VIRTIO_NET_S_LINK_UP: u16 = 1;

/// The network device.
pub struct Net {
    nic: Box<dyn Nic>,
    mac: [u8; 6],
    mtu: u16,
    features: u64,
    /// A frame that waits for buffers.
    held: Option<Vec<u8>>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    held: Option<Vec<u8>>,
}

impl Net {
    /// Creates a device with the address `mac` on `nic`, which advises the driver of `mtu`.
    pub fn new(nic: Box<dyn Nic>, mac: [u8; 6], mtu: u16) -> Net {
        Net { nic, mac, mtu, features: 0, held: None }
    }

    fn transmit(&mut self, queues: &mut Queues) {
        let mut frame = Vec::new();
        while let Some(chain) = queues.pop(TX) {
            let bytes = chain.readable_bytes().saturating_sub(HEADER_BYTES as u64);
            if bytes == 0 || bytes > FRAME_MAX as u64 {
                queues.report(&format_args!("a frame of {bytes} bytes was not sent"));
            } else {
                frame.resize(bytes as usize, 0);
                let read = queue::copy_from(queues.mem, &chain.readable, HEADER_BYTES as u64, &mut frame);
                self.nic.transmit(&frame[..read]);
            }
            queues.complete(TX, chain.head, 0);
        }
    }

    fn receive(&mut self, queues: &mut Queues) {
        if !queues.is_live(RX) {
            return;
        }
        for _ in 0..super::CHAINS_PER_ENTRY {
            let Some(frame) = self.held.take().or_else(|| self.nic.receive()) else { return };
            if frame.is_empty() || frame.len() > FRAME_MAX {
                continue;
            }
            if !self.deliver(&frame, queues) {
                self.held = Some(frame);
                return;
            }
        }
        queues.come_again();
    }

    /// Writes `frame` to the guest's buffers. Returns `false` if it must wait for more of them.
    fn deliver(&mut self, frame: &[u8], queues: &mut Queues) -> bool {
        let mergeable = self.features & VIRTIO_NET_F_MRG_RXBUF != 0;
        let need = (HEADER_BYTES + frame.len()) as u64;
        let exhausted = queues.is_full(RX);
        let mut room = 0;
        let mut chains = Vec::new();
        while room < need && (mergeable || chains.is_empty()) {
            let Some(chain) = queues.pop(RX) else {
                queues.rewind(RX, chains.len() as u16);
                // If the guest has given all its buffers and they are too few, waiting is useless.
                let hopeless = exhausted && !queues.is_spent();
                if hopeless {
                    queues.report(&format_args!("all its buffers together are too small for a frame of {} bytes", frame.len()));
                }
                return hopeless;
            };
            room += chain.writable_bytes();
            chains.push(chain);
        }
        if room < need {
            queues.rewind(RX, chains.len() as u16);
            queues.report(&format_args!("a buffer is too small for a frame of {} bytes, which is lost", frame.len()));
            return true;
        }
        let mut header = [0u8; HEADER_BYTES];
        header[NUM_BUFFERS as usize..].copy_from_slice(&(chains.len() as u16).to_le_bytes());
        let mut rest = [&header[..], frame].concat();
        for chain in &chains {
            let written = queue::copy_to(queues.mem, &chain.writable, 0, &rest);
            rest.drain(..written);
            queues.complete(RX, chain.head, written as u32);
        }
        true
    }
}

impl VirtioDevice for Net {
    fn name(&self) -> &'static str {
        NAME
    }
    fn kind(&self) -> Kind {
        Kind { device_type: 1, class: (0x02, 0x00, 0x00) }
    }
    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE, QUEUE_SIZE]
    }
    fn features(&self) -> u64 {
        VIRTIO_NET_F_MTU | VIRTIO_NET_F_MAC | VIRTIO_NET_F_MRG_RXBUF | VIRTIO_NET_F_STATUS
    }

    fn config(&self) -> Vec<u8> {
        let mut config = self.mac.to_vec();
        let status = if self.nic.link_up() { VIRTIO_NET_S_LINK_UP } else { 0 };
        config.extend_from_slice(&status.to_le_bytes());
        // The field max_virtqueue_pairs is between. There is one pair without VIRTIO_NET_F_MQ.
        config.extend_from_slice(&1u16.to_le_bytes());
        config.extend_from_slice(&self.mtu.to_le_bytes());
        config
    }

    fn write_config(&mut self, _: usize, _: &[u8]) {}

    fn activate(&mut self, features: u64) {
        self.features = features;
    }

    fn notify(&mut self, queue: usize, queues: &mut Queues) {
        if queue == TX {
            self.transmit(queues);
        }
        // A back end in the same thread may have answered the frame at once.
        self.receive(queues);
    }

    fn poll(&mut self, _: u64, queues: &mut Queues) {
        self.transmit(queues);
        self.receive(queues);
    }

    fn reset(&mut self) {
        self.features = 0;
        self.held = None;
    }

    fn reset_queue(&mut self, queue: usize) {
        if queue == RX {
            self.held = None;
        }
    }

    fn save(&self) -> Section {
        Section::encode(NAME, VERSION, &State { held: self.held.clone() })
    }

    fn load(&mut self, section: &Section) -> Result<(), StateError> {
        let state: State = section.decode(NAME, VERSION)?;
        if state.held.as_ref().is_some_and(|frame| frame.is_empty() || frame.len() > FRAME_MAX) {
            return Err(StateError::Damaged { kind: NAME, why: "a held frame has no possible length".into() });
        }
        self.held = state.held;
        Ok(())
    }
}
