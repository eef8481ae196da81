//! Console device: virtio 1.2 section 5.3: a console, and ports with names for programs of guest and host.
//!
//! Port 0 is the console, with queue 0 to receive (from the user) and queue 1 to transmit. VIRTIO_CONSOLE_F_EMERG_WRITE:
//! a write to `emerg_wr` prints one byte there without any queue. With named ports VIRTIO_CONSOLE_F_MULTIPORT is offered:
//! queues 2 and 3 carry control messages (5.3.6.2), and port N, from 1 on, has queues 2N + 2 and 2N + 3.
//!
//! **Not modelled**: the window's size (a byte stream has none), ports that come and go. Neither is offered.
//!
//! **Hostile guest**: output goes through a buffer of `CHUNK` bytes; while a back end takes nothing, one chain of its port is
//! held with its progress and tried again every `RETRY_NS`. Emergency bytes that the back end does not take are lost. A
//! control message to the driver is a bit of its port until the driver gives a buffer, so that no number of requests makes
//! a queue grow; messages about ports that do not exist are dropped. What the host sends to a port that no program of the
//! guest has open is dropped, as Linux does it, so that the next program does not find it.
//!
//! **Saved state**: for each port the head of the held chain and how many of its bytes have been sent, whether the guest
//! has it open, and the messages that wait.

use serde::{Deserialize, Serialize};

use super::queue::Chain;
use super::{Kind, Queues, VirtioDevice, queue};
use crate::devices::serial::CharBackend;
use crate::hypervisor::state::{Section, StateError};

const NAME: &str = "virtio-console";
const VERSION: u32 = 2;
const CONTROL_RX: usize = 2;
const CONTROL_TX: usize = 3;
const QUEUE_SIZE: u16 = 64;
const CHUNK: usize = 4096;
/// Number of chunks moved in one entry.
const CHUNKS_PER_ENTRY: u32 = 64;
const RETRY_NS: u64 = 2_000_000;
/// Fields: cols, rows, max_nr_ports, emerg_wr.
const CONFIG_BYTES: usize = 12;
const MAX_NR_PORTS: usize = 4;
const EMERG_WR: usize = 8;

/// There are several ports, and control messages about them.
pub const VIRTIO_CONSOLE_F_MULTIPORT: u64 = 1 << 1;
/// `emerg_wr` works.
pub const VIRTIO_CONSOLE_F_EMERG_WRITE: u64 = 1 << 2;

/// Bytes of a control message: id, event, value.
pub const CONTROL_BYTES: usize = 8;
/// Control events, 5.3.6.2: the driver takes messages.
pub const VIRTIO_CONSOLE_DEVICE_READY: u16 = 0;
/// There is a port.
pub const VIRTIO_CONSOLE_PORT_ADD: u16 = 1;
/// The driver has made the port.
pub const VIRTIO_CONSOLE_PORT_READY: u16 = 3;
/// The port is a console.
pub const VIRTIO_CONSOLE_CONSOLE_PORT: u16 = 4;
/// The other side has opened the port (1), or closed it (0).
pub const VIRTIO_CONSOLE_PORT_OPEN: u16 = 6;
/// The name of the port follows.
pub const VIRTIO_CONSOLE_PORT_NAME: u16 = 7;
/// The messages that a port sends to the driver, in this order. A bit of [`Port::pending`] each.
const TO_DRIVER: [u16; 4] =
    [VIRTIO_CONSOLE_PORT_ADD, VIRTIO_CONSOLE_CONSOLE_PORT, VIRTIO_CONSOLE_PORT_NAME, VIRTIO_CONSOLE_PORT_OPEN];

struct Output {
    chain: Chain,
    done: u64,
}

/// Use of a port.
enum Role {
    /// There is no such port. Port 0 has queues nevertheless.
    Absent,
    Console,
    Named(String),
}

struct Port {
    backend: Box<dyn CharBackend>,
    role: Role,
    output: Option<Output>,
    /// Head and progress of a held chain from a loaded state.
    restored: Option<(u16, u64)>,
    retry_at_ns: Option<u64>,
    /// Whether a program of the guest has the port open.
    open: bool,
    /// Messages that wait for a buffer of the driver.
    pending: u8,
}

/// The console device.
pub struct Console {
    ports: Vec<Port>,
    queue_sizes: Vec<u16>,
    features: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    ports: Vec<PortState>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PortState {
    held: Option<(u16, u64)>,
    open: bool,
    pending: u8,
}

/// The back end of a port that is not there.
struct Nowhere;

impl CharBackend for Nowhere {
    fn write(&mut self, bytes: &[u8]) -> usize {
        bytes.len()
    }
    fn read(&mut self, _: &mut [u8]) -> usize {
        0
    }
}

impl Port {
    fn new(backend: Box<dyn CharBackend>, role: Role) -> Port {
        Port { backend, role, output: None, restored: None, retry_at_ns: None, open: false, pending: 0 }
    }

    fn next_output(&mut self, tx: usize, queues: &mut Queues) -> Option<Output> {
        if let Some(output) = self.output.take() {
            return Some(output);
        }
        if let Some((head, done)) = self.restored.take()
            && let Some(chain) = queues.chain_at(tx, head)
        {
            return Some(Output { chain, done });
        }
        queues.pop(tx).map(|chain| Output { chain, done: 0 })
    }

    fn transmit(&mut self, tx: usize, now_ns: u64, queues: &mut Queues) {
        let mut chunks_left = CHUNKS_PER_ENTRY;
        self.retry_at_ns = None;
        while let Some(mut output) = self.next_output(tx, queues) {
            while output.done < output.chain.readable_bytes() {
                let mut chunk = [0u8; CHUNK];
                let read = queue::copy_from(queues.mem, &output.chain.readable, output.done, &mut chunk);
                let taken = self.backend.write(&chunk[..read]).min(read);
                output.done += taken as u64;
                chunks_left = chunks_left.saturating_sub(1);
                if taken < read || read == 0 {
                    self.output = Some(output);
                    self.retry_at_ns = Some(now_ns + RETRY_NS);
                    return;
                }
                if chunks_left == 0 {
                    self.output = Some(output);
                    queues.come_again();
                    return;
                }
            }
            queues.complete(tx, output.chain.head, 0);
        }
    }

    fn receive(&mut self, rx: usize, queues: &mut Queues) {
        if matches!(self.role, Role::Named(_)) && !self.open {
            return self.discard_input(queues);
        }
        while let Some(chain) = queues.pop(rx) {
            let mut chunk = [0u8; CHUNK];
            let room = chain.writable_bytes().min(CHUNK as u64) as usize;
            if room == 0 {
                queues.complete(rx, chain.head, 0);
                continue;
            }
            let read = self.backend.read(&mut chunk[..room]).min(room);
            if read == 0 {
                queues.rewind(rx, 1);
                return;
            }
            let written = queue::copy_to(queues.mem, &chain.writable, 0, &chunk[..read]);
            queues.complete(rx, chain.head, written as u32);
        }
    }

    fn discard_input(&mut self, queues: &mut Queues) {
        let mut chunk = [0u8; CHUNK];
        for _ in 0..CHUNKS_PER_ENTRY {
            if self.backend.read(&mut chunk) == 0 {
                return;
            }
        }
        queues.come_again();
    }

    /// Notes that the driver is to get the messages `events`, as far as they apply to this port.
    fn announce(&mut self, events: &[u16]) {
        for (at, event) in TO_DRIVER.iter().enumerate().filter(|(_, event)| events.contains(event)) {
            let applies = match (*event, &self.role) {
                (_, Role::Absent) => false,
                (VIRTIO_CONSOLE_CONSOLE_PORT, role) => matches!(role, Role::Console),
                (VIRTIO_CONSOLE_PORT_NAME, role) => matches!(role, Role::Named(_)),
                _ => true,
            };
            self.pending |= u8::from(applies) << at;
        }
    }

    /// Returns the next message for the driver about this port, whose number is `id`, and its bit.
    fn next_message(&self, id: u32) -> Option<(u8, Vec<u8>)> {
        let at = self.pending.trailing_zeros() as usize;
        let event = *TO_DRIVER.get(at)?;
        let mut message = control_message(id, event, 1).to_vec();
        if let (VIRTIO_CONSOLE_PORT_NAME, Role::Named(name)) = (event, &self.role) {
            message.extend_from_slice(name.as_bytes());
        }
        Some((1 << at, message))
    }

    fn reset(&mut self) {
        self.reset_output();
        (self.open, self.pending) = (false, 0);
    }

    fn reset_output(&mut self) {
        (self.output, self.restored, self.retry_at_ns) = (None, None, None);
    }

    fn state(&self) -> PortState {
        let held = self.output.as_ref().map(|output| (output.chain.head, output.done)).or(self.restored);
        PortState { held, open: self.open, pending: self.pending }
    }

    fn restore(&mut self, state: &PortState) {
        self.reset_output();
        (self.restored, self.open, self.pending) = (state.held, state.open, state.pending);
    }
}

/// Returns the bytes of a control message: `struct virtio_console_control`.
pub fn control_message(id: u32, event: u16, value: u16) -> [u8; CONTROL_BYTES] {
    let mut message = [0; CONTROL_BYTES];
    message[..4].copy_from_slice(&id.to_le_bytes());
    message[4..6].copy_from_slice(&event.to_le_bytes());
    message[6..].copy_from_slice(&value.to_le_bytes());
    message
}

/// Returns the port and the direction of a queue that is not one of the control queues.
fn port_of(queue: usize) -> (usize, bool) {
    let port = if queue < CONTROL_RX { 0 } else { queue / 2 - 1 };
    (port, queue % 2 == 1)
}

/// Returns the queue on which a port receives. The one on which it transmits follows.
fn rx_of(port: usize) -> usize {
    if port == 0 { 0 } else { 2 * port + 2 }
}

impl Console {
    /// Creates a console on `backend`.
    pub fn new(backend: Box<dyn CharBackend>) -> Console {
        Console::with_ports(Some(backend), Vec::new())
    }

    /// Creates a device with a console, or none, and ports with these names.
    pub fn with_ports(console: Option<Box<dyn CharBackend>>, named: Vec<(String, Box<dyn CharBackend>)>) -> Console {
        let first = match console {
            Some(backend) => Port::new(backend, Role::Console),
            None => Port::new(Box::new(Nowhere), Role::Absent),
        };
        let named = named.into_iter().map(|(name, backend)| Port::new(backend, Role::Named(name)));
        let ports: Vec<Port> = std::iter::once(first).chain(named).collect();
        let queues = if ports.len() > 1 { 2 * ports.len() + 2 } else { 2 };
        Console { ports, queue_sizes: vec![QUEUE_SIZE; queues], features: 0 }
    }

    fn is_multiport(&self) -> bool {
        self.features & VIRTIO_CONSOLE_F_MULTIPORT != 0
    }

    /// Returns the number of ports whose queues exist for the driver.
    fn port_count(&self) -> usize {
        if self.is_multiport() { self.ports.len() } else { 1 }
    }

    /// Takes the driver's control messages.
    fn hear_driver(&mut self, queues: &mut Queues) {
        while let Some(chain) = queues.pop(CONTROL_TX) {
            let mut message = [0u8; CONTROL_BYTES];
            let read = queue::copy_from(queues.mem, &chain.readable, 0, &mut message);
            if read == CONTROL_BYTES {
                let field = |at: usize| u16::from_le_bytes([message[at], message[at + 1]]);
                let id = u32::from_le_bytes([message[0], message[1], message[2], message[3]]);
                self.obey(id, field(4), field(6));
            }
            queues.complete(CONTROL_TX, chain.head, 0);
        }
    }

    fn obey(&mut self, id: u32, event: u16, value: u16) {
        let port = usize::try_from(id).ok().and_then(|id| self.ports.get_mut(id));
        match (event, value, port) {
            (VIRTIO_CONSOLE_DEVICE_READY, 1, _) => {
                self.ports.iter_mut().for_each(|port| port.announce(&[VIRTIO_CONSOLE_PORT_ADD]));
            }
            (VIRTIO_CONSOLE_PORT_READY, 1, Some(port)) => {
                // The host's end is open as long as there is an engine.
                port.announce(&[VIRTIO_CONSOLE_CONSOLE_PORT, VIRTIO_CONSOLE_PORT_NAME, VIRTIO_CONSOLE_PORT_OPEN]);
            }
            (VIRTIO_CONSOLE_PORT_OPEN, value, Some(port)) => port.open = value != 0,
            _ => {}
        }
    }

    /// Sends the messages that wait, as far as the driver has given buffers.
    fn tell_driver(&mut self, queues: &mut Queues) {
        for (id, port) in self.ports.iter_mut().enumerate() {
            while let Some((bit, message)) = port.next_message(id as u32) {
                let Some(chain) = queues.pop(CONTROL_RX) else { return };
                let written = queue::copy_to(queues.mem, &chain.writable, 0, &message);
                queues.complete(CONTROL_RX, chain.head, written as u32);
                port.pending &= !bit;
            }
        }
    }

    fn serve_control(&mut self, queues: &mut Queues) {
        if self.is_multiport() {
            self.hear_driver(queues);
            self.tell_driver(queues);
        }
    }
}

impl VirtioDevice for Console {
    fn name(&self) -> &'static str {
        NAME
    }
    fn kind(&self) -> Kind {
        Kind { device_type: 3, class: (0x07, 0x80, 0x00) }
    }
    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }
    fn features(&self) -> u64 {
        let multiport = if self.ports.len() > 1 { VIRTIO_CONSOLE_F_MULTIPORT } else { 0 };
        VIRTIO_CONSOLE_F_EMERG_WRITE | multiport
    }

    fn config(&self) -> Vec<u8> {
        let mut config = vec![0u8; CONFIG_BYTES];
        config[MAX_NR_PORTS..EMERG_WR].copy_from_slice(&(self.ports.len() as u32).to_le_bytes());
        config
    }

    fn write_config(&mut self, offset: usize, data: &[u8]) {
        if offset == EMERG_WR {
            let _ = self.ports[0].backend.write(&data[..1]);
        }
    }

    fn activate(&mut self, features: u64) {
        self.features = features;
    }

    fn notify(&mut self, queue: usize, queues: &mut Queues) {
        if queue == CONTROL_RX || queue == CONTROL_TX {
            self.serve_control(queues);
        }
        let (at, transmits) = port_of(queue);
        if matches!(queue, CONTROL_RX | CONTROL_TX) || at >= self.port_count() {
            return;
        }
        let port = &mut self.ports[at];
        match transmits {
            // The time is not known here. The poll that follows at once retries a held chain.
            true if port.output.is_none() => port.transmit(queue, 0, queues),
            true => {}
            false => port.receive(queue, queues),
        }
    }

    fn poll(&mut self, now_ns: u64, queues: &mut Queues) {
        self.serve_control(queues);
        let ports = self.port_count();
        for (at, port) in self.ports[..ports].iter_mut().enumerate() {
            let rx = rx_of(at);
            port.transmit(rx + 1, now_ns, queues);
            port.receive(rx, queues);
        }
    }

    fn deadline_ns(&self) -> Option<u64> {
        self.ports.iter().filter_map(|port| port.retry_at_ns).min()
    }

    fn reset(&mut self) {
        self.features = 0;
        self.ports.iter_mut().for_each(Port::reset);
    }

    fn reset_queue(&mut self, queue: usize) {
        let (at, transmits) = port_of(queue);
        if !matches!(queue, CONTROL_RX | CONTROL_TX) && transmits {
            self.ports[at].reset_output();
        }
    }

    fn save(&self) -> Section {
        Section::encode(NAME, VERSION, &State { ports: self.ports.iter().map(Port::state).collect() })
    }

    fn load(&mut self, section: &Section) -> Result<(), StateError> {
        let state: State = section.decode(NAME, VERSION)?;
        let damaged = |why: &str| Err(StateError::Damaged { kind: NAME, why: why.into() });
        if state.ports.len() != self.ports.len() {
            return damaged("its ports are not this device's");
        }
        if state.ports.iter().any(|port| port.pending >> TO_DRIVER.len() != 0) {
            return damaged("a message waits that there is not");
        }
        self.ports.iter_mut().zip(&state.ports).for_each(|(port, state)| port.restore(state));
        Ok(())
    }
}
