//! The isa-debug-exit port, as QEMU's `hw/misc/debugexit.c` documents it: a write ends the machine, with the exit
//! status `(value << 1) | 1`. It is for people who develop kernels, and exists only when the guest file asks for it.
//!
//! | region | bytes | what |
//! |---|---|---|
//! | 0 | up to 4 | reads as 0; the low byte of what is written is the value |
//!
//! **Hostile guest**: it can end its own machine, which it can do in any case. **Saved state**: none.

use std::sync::Arc;

use crate::hypervisor::backend::MachineExit;
use crate::hypervisor::bus::{Access, Device};
use crate::hypervisor::state::{Section, StateError};
use crate::hypervisor::waking::Attention;

const KIND: &str = "isa-debug-exit";

/// The debug-exit port.
pub struct DebugExit {
    attention: Arc<Attention>,
}

impl DebugExit {
    /// Creates a port that stops the machine of `attention`.
    pub fn new(attention: Arc<Attention>) -> DebugExit {
        DebugExit { attention }
    }
}

impl Device for DebugExit {
    fn name(&self) -> &'static str {
        KIND
    }
    fn read(&mut self, _: Access) -> u64 {
        0
    }
    fn write(&mut self, access: Access, value: u64) {
        if access.region == 0 {
            self.attention.stop(MachineExit::Debug(value as u8));
        }
    }
    fn reset(&mut self) {}
    fn save(&self) -> Section {
        Section::encode(KIND, 1, &())
    }
    fn load(&mut self, section: &Section) -> Result<(), StateError> {
        section.decode(KIND, 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::conformance;

    #[test]
    fn a_write_stops_the_machine_with_its_value() {
        let attention = Attention::new(1);
        let mut port = DebugExit::new(attention.clone());
        assert_eq!(port.read(Access { region: 0, offset: 0, width: 1 }), 0);
        assert_eq!(attention.stopped(), None);
        port.write(Access { region: 0, offset: 0, width: 4 }, 0x10);
        assert_eq!(attention.stopped(), Some(MachineExit::Debug(0x10)));
        assert_eq!(attention.stopped().unwrap().code(), 0x21);
    }

    #[test]
    fn the_port_keeps_the_contract_of_devices() {
        conformance::check(|| DebugExit::new(Attention::new(1)), &[(0, 4)]);
    }
}
