//! Network device: virtio 1.2 section 5.1.
//!
//! Queue 0 receives, queue 1 transmits. Each frame follows a 12-byte header (5.1.6): with VIRTIO_NET_F_MRG_RXBUF a frame
//! may take several chains. Checksum and segmentation offloads are offered where the back end has headers too; a header then
//! passes through, as far as its flags were negotiated. Elsewhere its flags are ignored, and zero.
//!
//! **Not modelled**: UDP segmentation and fragmentation, the control queue, several queue pairs, an MTU other than the
//! driver's default. None is offered.
//!
//! **Hostile guest**: a frame to send is read up to `FRAME_MAX` bytes; a longer or empty one is dropped and counted, and so
//! is one that asks for an offload that was not negotiated.
//! While the guest gives no buffers, one frame is held and no more are taken from the back end, which bounds its own
//! queue. A frame that does not fit in the whole ring is dropped.
//!
//! **Saved state**: the held frame.

use serde::{Deserialize, Serialize};

use super::{Kind, Queues, VirtioDevice, queue};
use crate::devices::net::{HEADER_BYTES, Nic, Offloads};
use crate::hypervisor::state::{Section, StateError};

const NAME: &str = "virtio-net";
const VERSION: u32 = 1;
const RX: usize = 0;
const TX: usize = 1;
const QUEUE_SIZE: u16 = 256;
/// Fields of the header, 5.1.6.
const FLAGS: usize = 0;
const GSO_TYPE: usize = 1;
const NUM_BUFFERS: usize = 10;
/// The longest frame, either way: an IPv4 packet of 64 KiB with its Ethernet and VLAN headers.
pub const FRAME_MAX: usize = 65535 + 18;

/// Feature bits, 5.1.3: the device takes frames without checksum.
pub const VIRTIO_NET_F_CSUM: u64 = 1 << 0;
/// The driver takes them.
pub const VIRTIO_NET_F_GUEST_CSUM: u64 = 1 << 1;
/// The driver takes several segments of TCP over IPv4 in one frame.
pub const VIRTIO_NET_F_GUEST_TSO4: u64 = 1 << 7;
/// The driver takes them over IPv6.
pub const VIRTIO_NET_F_GUEST_TSO6: u64 = 1 << 8;
/// The driver takes them with congestion marks.
pub const VIRTIO_NET_F_GUEST_ECN: u64 = 1 << 9;
/// The device takes several segments of TCP over IPv4 in one frame.
pub const VIRTIO_NET_F_HOST_TSO4: u64 = 1 << 11;
/// The device takes them over IPv6.
pub const VIRTIO_NET_F_HOST_TSO6: u64 = 1 << 12;
/// The device takes them with congestion marks.
pub const VIRTIO_NET_F_HOST_ECN: u64 = 1 << 13;
/// All of them.
const OFFLOADS: u64 = VIRTIO_NET_F_CSUM
    | VIRTIO_NET_F_GUEST_CSUM
    | VIRTIO_NET_F_GUEST_TSO4
    | VIRTIO_NET_F_GUEST_TSO6
    | VIRTIO_NET_F_GUEST_ECN
    | VIRTIO_NET_F_HOST_TSO4
    | VIRTIO_NET_F_HOST_TSO6
    | VIRTIO_NET_F_HOST_ECN;
/// `flags`: the checksum is still to be computed.
pub const VIRTIO_NET_HDR_F_NEEDS_CSUM: u8 = 1;
/// `gso_type`: segments of TCP over IPv4.
pub const VIRTIO_NET_HDR_GSO_TCPV4: u8 = 1;
/// `gso_type`: segments of TCP over IPv6.
pub const VIRTIO_NET_HDR_GSO_TCPV6: u8 = 4;
/// `gso_type`: with congestion marks.
pub const VIRTIO_NET_HDR_GSO_ECN: u8 = 0x80;
/// Feature bits: `mtu` is valid.
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
    /// A frame that waits for buffers; with its header, if the back end has them.
    held: Option<Vec<u8>>,
    /// Whether the driver was told that the link is up.
    link_up: bool,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    held: Option<Vec<u8>>,
}

impl Net {
    /// Creates a device with the address `mac` on `nic`, which advises the driver of `mtu`.
    pub fn new(nic: Box<dyn Nic>, mac: [u8; 6], mtu: u16) -> Net {
        let link_up = nic.link_up();
        Net { nic, mac, mtu, features: 0, held: None, link_up }
    }

    fn transmit(&mut self, queues: &mut Queues) {
        let mut packet = Vec::new();
        // A back end with headers takes the driver's own.
        let skipped = if self.nic.has_headers() { 0 } else { HEADER_BYTES };
        while let Some(chain) = queues.pop(TX) {
            let bytes = chain.readable_bytes().saturating_sub(HEADER_BYTES as u64);
            if bytes == 0 || bytes > FRAME_MAX as u64 {
                queues.report(&format_args!("a frame of {bytes} bytes was not sent"));
            } else {
                packet.resize(HEADER_BYTES - skipped + bytes as usize, 0);
                let read = queue::copy_from(queues.mem, &chain.readable, skipped as u64, &mut packet);
                let whole = read == packet.len();
                match whole && (skipped > 0 || self.clean(&mut packet)) {
                    true => self.nic.transmit(&packet),
                    false if !whole => {}
                    false => queues.report(&"a frame that asks for an offload that was not negotiated was not sent"),
                }
            }
            queues.complete(TX, chain.head, 0);
        }
    }

    /// Clears what the driver may not set in the header of a packet to send. Returns `false` for one that the back end
    /// cannot take as it is.
    fn clean(&self, packet: &mut [u8]) -> bool {
        let has = |feature: u64| self.features & feature != 0;
        let needs_checksum = has(VIRTIO_NET_F_CSUM) && packet[FLAGS] & VIRTIO_NET_HDR_F_NEEDS_CSUM != 0;
        packet[FLAGS] = u8::from(needs_checksum);
        packet[NUM_BUFFERS..HEADER_BYTES].fill(0);
        let ecn = packet[GSO_TYPE] & VIRTIO_NET_HDR_GSO_ECN != 0;
        match packet[GSO_TYPE] & !VIRTIO_NET_HDR_GSO_ECN {
            0 => !ecn,
            VIRTIO_NET_HDR_GSO_TCPV4 => has(VIRTIO_NET_F_HOST_TSO4) && (!ecn || has(VIRTIO_NET_F_HOST_ECN)),
            VIRTIO_NET_HDR_GSO_TCPV6 => has(VIRTIO_NET_F_HOST_TSO6) && (!ecn || has(VIRTIO_NET_F_HOST_ECN)),
            _ => false,
        }
    }

    /// Returns whether the driver takes a packet of the back end as it is. One from before a reset may need what the driver
    /// of now does not take.
    fn takes(&self, packet: &[u8]) -> bool {
        let has = |feature: u64| self.features & feature != 0;
        !self.nic.has_headers()
            || (packet[FLAGS] == 0 || has(VIRTIO_NET_F_GUEST_CSUM))
                && (packet[GSO_TYPE] == 0 || has(VIRTIO_NET_F_GUEST_TSO4 | VIRTIO_NET_F_GUEST_TSO6))
    }

    fn receive(&mut self, queues: &mut Queues) {
        if !queues.is_live(RX) {
            return;
        }
        let longest = self.longest();
        for _ in 0..super::CHAINS_PER_ENTRY {
            let Some(packet) = self.held.take().or_else(|| self.nic.receive()) else { return };
            if packet.len() <= longest - FRAME_MAX || packet.len() > longest || !self.takes(&packet) {
                continue;
            }
            if !self.deliver(&packet, queues) {
                self.held = Some(packet);
                return;
            }
        }
        queues.come_again();
    }

    /// Returns the length of the longest packet of the back end.
    fn longest(&self) -> usize {
        FRAME_MAX + if self.nic.has_headers() { HEADER_BYTES } else { 0 }
    }

    /// Writes `packet` to the guest's buffers. Returns `false` if it must wait for more of them.
    fn deliver(&mut self, packet: &[u8], queues: &mut Queues) -> bool {
        let mergeable = self.features & VIRTIO_NET_F_MRG_RXBUF != 0;
        let (own, frame) = packet.split_at(if self.nic.has_headers() { HEADER_BYTES } else { 0 });
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
        header[..own.len()].copy_from_slice(own);
        header[NUM_BUFFERS..].copy_from_slice(&(chains.len() as u16).to_le_bytes());
        let whole = [&header[..], frame].concat();
        let mut rest = &whole[..];
        for chain in &chains {
            let written = queue::copy_to(queues.mem, &chain.writable, 0, rest);
            rest = &rest[written..];
            queues.complete(RX, chain.head, written as u32);
        }
        true
    }

    /// Tells the driver of a link that has changed.
    fn watch_link(&mut self, queues: &mut Queues) {
        if self.link_up != self.nic.link_up() {
            self.link_up = !self.link_up;
            queues.config_changed();
        }
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
        let offloads = if self.nic.has_headers() { OFFLOADS } else { 0 };
        VIRTIO_NET_F_MTU | VIRTIO_NET_F_MAC | VIRTIO_NET_F_MRG_RXBUF | VIRTIO_NET_F_STATUS | offloads
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
        let has = |feature: u64| features & feature != 0;
        self.nic.accept(Offloads {
            checksum: has(VIRTIO_NET_F_GUEST_CSUM),
            tso4: has(VIRTIO_NET_F_GUEST_TSO4),
            tso6: has(VIRTIO_NET_F_GUEST_TSO6),
            ecn: has(VIRTIO_NET_F_GUEST_ECN),
        });
    }

    fn notify(&mut self, queue: usize, queues: &mut Queues) {
        if queue == TX {
            self.transmit(queues);
        }
        // A back end in the same thread may have answered the frame at once.
        self.receive(queues);
    }

    fn poll(&mut self, _: u64, queues: &mut Queues) {
        self.watch_link(queues);
        self.transmit(queues);
        self.receive(queues);
    }

    fn reset(&mut self) {
        self.features = 0;
        self.nic.accept(Offloads::default());
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
        if state.held.as_ref().is_some_and(|packet| packet.len() <= self.longest() - FRAME_MAX || packet.len() > self.longest()) {
            return Err(StateError::Damaged { kind: NAME, why: "a held frame has no possible length".into() });
        }
        self.held = state.held;
        Ok(())
    }
}
