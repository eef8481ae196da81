//! Console device: virtio 1.2 section 5.3, with one port.
//!
//! Queue 0 receives (from the user), queue 1 transmits. VIRTIO_CONSOLE_F_EMERG_WRITE: a write to `emerg_wr` prints one
//! byte without any queue.
//!
//! **Not modelled**: several ports with their control queues, the window's size (a byte stream has none). Neither is
//! offered.
//!
//! **Hostile guest**: output goes through a buffer of `CHUNK` bytes; while the back end takes nothing, one chain is
//! held with its progress and tried again every `RETRY_NS`. Emergency bytes that the back end does not take are lost.
//!
//! **Saved state**: the head of the held chain and how many of its bytes have been sent.

use serde::{Deserialize, Serialize};

use super::queue::Chain;
use super::{Kind, Queues, VirtioDevice, queue};
use crate::devices::serial::CharBackend;
use crate::hypervisor::state::{Section, StateError};

const NAME: &str = "virtio-console";
const VERSION: u32 = 1;
const RX: usize = 0;
const TX: usize = 1;
const CHUNK: usize = 4096;
/// Number of chunks moved in one entry.
const CHUNKS_PER_ENTRY: u32 = 64;
const RETRY_NS: u64 = 2_000_000;
/// Fields: cols, rows, max_nr_ports, emerg_wr.
const CONFIG_BYTES: usize = 12;
const EMERG_WR: usize = 8;

/// `emerg_wr` works.
pub const VIRTIO_CONSOLE_F_EMERG_WRITE: u64 = 1 << 2;

struct Output {
    chain: Chain,
    done: u64,
}

/// The console device.
pub struct Console {
    backend: Box<dyn CharBackend>,
    output: Option<Output>,
    /// Head and progress of a held chain from a loaded state.
    restored: Option<(u16, u64)>,
    retry_at_ns: Option<u64>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    held: Option<(u16, u64)>,
}

impl Console {
    /// Creates a console on `backend`.
    pub fn new(backend: Box<dyn CharBackend>) -> Console {
        Console { backend, output: None, restored: None, retry_at_ns: None }
    }

    fn next_output(&mut self, queues: &mut Queues) -> Option<Output> {
        if let Some(output) = self.output.take() {
            return Some(output);
        }
        if let Some((head, done)) = self.restored.take()
            && let Some(chain) = queues.chain_at(TX, head)
        {
            return Some(Output { chain, done });
        }
        queues.pop(TX).map(|chain| Output { chain, done: 0 })
    }

    fn transmit(&mut self, now_ns: u64, queues: &mut Queues) {
        let mut chunks_left = CHUNKS_PER_ENTRY;
        self.retry_at_ns = None;
        while let Some(mut output) = self.next_output(queues) {
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
            queues.complete(TX, output.chain.head, 0);
        }
    }

    fn receive(&mut self, queues: &mut Queues) {
        while let Some(chain) = queues.pop(RX) {
            let mut chunk = [0u8; CHUNK];
            let room = chain.writable_bytes().min(CHUNK as u64) as usize;
            if room == 0 {
                queues.complete(RX, chain.head, 0);
                continue;
            }
            let read = self.backend.read(&mut chunk[..room]).min(room);
            if read == 0 {
                queues.rewind(RX, 1);
                return;
            }
            let written = queue::copy_to(queues.mem, &chain.writable, 0, &chunk[..read]);
            queues.complete(RX, chain.head, written as u32);
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
        &[64, 64]
    }
    fn features(&self) -> u64 {
        VIRTIO_CONSOLE_F_EMERG_WRITE
    }

    fn config(&self) -> Vec<u8> {
        let mut config = vec![0u8; CONFIG_BYTES];
        config[4..EMERG_WR].copy_from_slice(&1u32.to_le_bytes());
        config
    }

    fn write_config(&mut self, offset: usize, data: &[u8]) {
        if offset == EMERG_WR {
            let _ = self.backend.write(&data[..1]);
        }
    }

    fn activate(&mut self, _: u64) {}

    fn notify(&mut self, queue: usize, queues: &mut Queues) {
        match queue {
            // The time is not known here. The poll that follows at once retries a held chain.
            TX if self.output.is_none() => self.transmit(0, queues),
            TX => {}
            _ => self.receive(queues),
        }
    }

    fn poll(&mut self, now_ns: u64, queues: &mut Queues) {
        self.transmit(now_ns, queues);
        self.receive(queues);
    }

    fn deadline_ns(&self) -> Option<u64> {
        self.retry_at_ns
    }

    fn reset(&mut self) {
        self.reset_queue(TX);
    }

    fn reset_queue(&mut self, queue: usize) {
        if queue == TX {
            self.output = None;
            self.restored = None;
            self.retry_at_ns = None;
        }
    }

    fn save(&self) -> Section {
        let held = self.output.as_ref().map(|output| (output.chain.head, output.done)).or(self.restored);
        Section::encode(NAME, VERSION, &State { held })
    }

    fn load(&mut self, section: &Section) -> Result<(), StateError> {
        let state: State = section.decode(NAME, VERSION)?;
        self.output = None;
        self.restored = state.held;
        self.retry_at_ns = None;
        Ok(())
    }
}
