//! The interrupt controllers in the kernel: the 8259A pair, the I/O APIC and the local APICs. The 8254 with port 61h, the
//! real-time clock, an HPET and a PM timer are there too.
//!
//! Sources: sys/amd64/vmm/io/vatpic.c, vioapic.c, vlapic.c, vmm_lapic.c (stable/14, 1400507). The kernel's interval timer is
//! on input 0 of the 8259A and on pin 2 of the I/O APIC (vatpit.c), as on PCs.

use std::sync::{Arc, Mutex, PoisonError};

use super::abi::IsaIrq;
use super::vm::Vm;
use crate::hypervisor::irq::{IrqSink, Irqchip, LineCounts};
use crate::hypervisor::state::{Section, StateError};

const KIND: &str = "vmm-irqchip";
/// Inputs of the I/O APIC (REDIR_ENTRIES in vioapic.c), and so interrupts.
const PINS: usize = 32;
const ISA_LINES: u32 = 16;
/// Input of the 8259A's cascade, to which no device's line is wired.
const CASCADE: u32 = 2;

/// The controllers of one machine, as its devices see them.
pub struct VmmIrqchip {
    vm: Arc<dyn Vm>,
    lines: Mutex<LineCounts<PINS>>,
}

impl VmmIrqchip {
    /// Returns the chips of `vm`.
    pub fn new(vm: Arc<dyn Vm>) -> VmmIrqchip {
        VmmIrqchip { vm, lines: Mutex::default() }
    }

    fn drive(&self, gsi: u32, level: bool) {
        // It fails only for a number that is not an input.
        let _ = match gsi {
            CASCADE => Ok(()),
            0 => self.vm.set_isa_line(IsaIrq { atpic_irq: 0, ioapic_irq: CASCADE as i32 }, level),
            1..ISA_LINES => self.vm.set_isa_line(IsaIrq { atpic_irq: gsi as i32, ioapic_irq: gsi as i32 }, level),
            _ => self.vm.set_ioapic_pin(gsi as i32, level),
        };
    }
}

impl IrqSink for VmmIrqchip {
    fn set_line(&self, gsi: u32, level: bool, _edge: bool) {
        // The lock is held over the call: the kernel gets the levels in the order in which they were counted.
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(level) = lines.count(gsi, level) {
            self.drive(gsi, level);
        }
    }

    fn message(&self, address: u64, data: u32) {
        // Bits 31:20 of a local APIC's address are 0xfee (SDM vol. 3 section 11.11.1).
        if address >> 20 == 0xfee {
            // It fails where no vCPU takes the message, which is the guest's affair.
            let _ = self.vm.message(address, data);
        }
    }
}

impl Irqchip for VmmIrqchip {
    fn nmi(&self) {
        if let Err(error) = self.vm.pulse_lint1() {
            eprintln!("vmctl vmm: the guest gets no NMI: {error}");
        }
    }

    /// The timers are in the kernel.
    fn advance(&self, _now_ns: u64) -> Option<u64> {
        None
    }

    /// A machine of this back end is not reset: a reboot is a new process, and so a new VM.
    fn reset(&self) {}

    fn save(&self) -> Result<Section, StateError> {
        Err(StateError::NotSaved { kind: KIND })
    }

    fn load(&self, _section: &Section) -> Result<(), StateError> {
        Err(StateError::NotSaved { kind: KIND })
    }
}
