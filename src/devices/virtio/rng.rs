//! Entropy device: virtio 1.2 section 5.4.
//!
//! One queue: each chain is filled with random bytes of the host's kernel.
//!
//! **Not modelled**: a rate limit, since the host's generator does not run out.
//!
//! **Hostile guest**: one chain gets at most `CHUNK_MAX` bytes, however long it is, which the specification allows.
//!
//! **Saved state**: none beyond the queue's.

use super::{Kind, Queues, VirtioDevice, queue};
use crate::hypervisor::state::{Section, StateError};

const NAME: &str = "virtio-rng";
const VERSION: u32 = 1;
/// Maximum number of bytes that one chain gets.
const CHUNK_MAX: usize = 4096;

/// The entropy device.
#[derive(Default)]
pub struct Rng;

impl Rng {
    /// Creates a device on the host's generator.
    pub fn new() -> Rng {
        Rng
    }

    fn serve(queues: &mut Queues) {
        let mut bytes = [0u8; CHUNK_MAX];
        while let Some(chain) = queues.pop(0) {
            let want = chain.writable_bytes().min(CHUNK_MAX as u64) as usize;
            // A host without entropy gives the guest no bytes rather than bytes that are not random.
            let written = match getrandom::fill(&mut bytes[..want]) {
                Ok(()) => queue::copy_to(queues.mem, &chain.writable, 0, &bytes[..want]),
                Err(_) => 0,
            };
            queues.complete(0, chain.head, written as u32);
        }
    }
}

impl VirtioDevice for Rng {
    fn name(&self) -> &'static str {
        NAME
    }
    fn kind(&self) -> Kind {
        Kind { device_type: 4, class: (0xff, 0x00, 0x00) }
    }
    fn queue_sizes(&self) -> &[u16] {
        &[64]
    }
    fn features(&self) -> u64 {
        0
    }
    fn config(&self) -> Vec<u8> {
        Vec::new()
    }
    fn write_config(&mut self, _: usize, _: &[u8]) {}
    fn activate(&mut self, _: u64) {}
    fn notify(&mut self, _: usize, queues: &mut Queues) {
        Self::serve(queues);
    }
    fn poll(&mut self, _: u64, queues: &mut Queues) {
        Self::serve(queues);
    }
    fn reset(&mut self) {}
    fn reset_queue(&mut self, _: usize) {}
    fn save(&self) -> Section {
        Section::encode(NAME, VERSION, &())
    }
    fn load(&mut self, section: &Section) -> Result<(), StateError> {
        section.decode(NAME, VERSION)
    }
}
