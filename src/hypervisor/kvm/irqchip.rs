//! The interrupt controllers in the kernel: the 8259A pair, the I/O APIC, the local APICs, and the 8254.
//!
//! Source: Linux `Documentation/virt/kvm/api.rst`, sections 4.24 (KVM_CREATE_IRQCHIP), 4.25 (KVM_IRQ_LINE), 4.52
//! (KVM_SET_GSI_ROUTING), 4.70 (KVM_SIGNAL_MSI), 4.71 (KVM_CREATE_PIT2).

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_PIT_SPEAKER_DUMMY,
    KvmIrqRouting, kvm_irq_routing_entry, kvm_irq_routing_irqchip, kvm_msi, kvm_pit_config,
};
use kvm_ioctls::VmFd;

use super::saved;
use crate::hypervisor::irq::{IrqSink, Irqchip, LineCounts};
use crate::hypervisor::state::{Section, StateError};
use crate::hypervisor::waking::Attention;

/// Inputs of the I/O APIC, and so interrupts.
const PINS: usize = 24;
const ISA_LINES: u32 = 16;
/// Inputs of one 8259A.
const PIC_LINES: u32 = 8;
/// Input of the 8259A's cascade, to which no device's line is wired.
const CASCADE: u32 = 2;

/// Creates the chips and wires their inputs. The timer is on pin 2 of the I/O APIC, as on PCs; KVM's own wiring has it on
/// pin 0.
pub fn create(vm: &VmFd) -> io::Result<()> {
    vm.create_irq_chip()?;
    let routing = KvmIrqRouting::from_entries(&routing()).expect("fewer entries than the kernel's limit");
    vm.set_gsi_routing(&routing)?;
    // With port 61h, which shows the output of channel 2.
    vm.create_pit2(kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() })?;
    Ok(())
}

fn routing() -> Vec<kvm_irq_routing_entry> {
    let entry = |(gsi, irqchip, pin)| {
        let mut entry = kvm_irq_routing_entry { gsi, type_: KVM_IRQ_ROUTING_IRQCHIP, ..Default::default() };
        entry.u.irqchip = kvm_irq_routing_irqchip { irqchip, pin };
        entry
    };
    wiring().map(entry).collect()
}

/// Returns each interrupt with a chip and its input that the interrupt's line leads to.
fn wiring() -> impl Iterator<Item = (u32, u32, u32)> {
    let pics = (0..ISA_LINES).filter(|&gsi| gsi != CASCADE).map(|gsi| match gsi {
        0..PIC_LINES => (gsi, KVM_IRQCHIP_PIC_MASTER, gsi),
        _ => (gsi, KVM_IRQCHIP_PIC_SLAVE, gsi - PIC_LINES),
    });
    let ioapic = (0..PINS as u32).filter(|&gsi| gsi != CASCADE).map(|gsi| match gsi {
        0 => (gsi, KVM_IRQCHIP_IOAPIC, CASCADE),
        _ => (gsi, KVM_IRQCHIP_IOAPIC, gsi),
    });
    pics.chain(ioapic)
}

/// The controllers of one machine, as its devices see them.
pub struct KvmIrqchip {
    vm: Arc<VmFd>,
    lines: Mutex<LineCounts<PINS>>,
    /// For each vCPU, whether its LINT1 was pulsed: only its own thread can reach its local APIC.
    nmis: Arc<[AtomicBool]>,
    attention: Arc<Attention>,
}

impl KvmIrqchip {
    /// Returns the chips of `vm`. `nmis` tells the vCPUs' threads of NMIs.
    pub fn new(vm: Arc<VmFd>, nmis: Arc<[AtomicBool]>, attention: Arc<Attention>) -> KvmIrqchip {
        KvmIrqchip { vm, lines: Mutex::default(), nmis, attention }
    }
}

/// Returns the message for KVM, if the address is a local APIC's: bits 31:20 are 0xfee (SDM vol. 3 section 11.11.1).
fn msi(address: u64, data: u32) -> Option<kvm_msi> {
    let message = kvm_msi { address_lo: address as u32, address_hi: (address >> 32) as u32, data, ..Default::default() };
    (address >> 20 == 0xfee).then_some(message)
}

impl IrqSink for KvmIrqchip {
    fn set_line(&self, gsi: u32, level: bool, _edge: bool) {
        // The lock is held over the call: the kernel gets the levels in the order in which they were counted.
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(level) = lines.count(gsi, level) {
            // It fails only for a number that is not an input.
            let _ = self.vm.set_irq_line(gsi, level);
        }
    }

    fn message(&self, address: u64, data: u32) {
        if let Some(message) = msi(address, data) {
            // It fails where no vCPU takes the message, which is the guest's affair.
            let _ = self.vm.signal_msi(message);
        }
    }
}

impl Irqchip for KvmIrqchip {
    fn nmi(&self) {
        for (vcpu, nmi) in self.nmis.iter().enumerate() {
            nmi.store(true, Ordering::Release);
            self.attention.raise(vcpu);
        }
    }

    /// The timers are in the kernel.
    fn advance(&self, _now_ns: u64) -> Option<u64> {
        None
    }

    /// A machine of this back end is not reset: a reboot is a new process, and so a new VM.
    fn reset(&self) {}

    fn save(&self) -> Result<Section, StateError> {
        saved::save_chips(&self.vm)
    }

    /// The devices' lines must have been restored before: the kernel takes each for a new edge, which this undoes.
    fn load(&self, section: &Section) -> Result<(), StateError> {
        saved::load_chips(&self.vm, section)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_timer_is_on_pin_2_and_every_other_line_on_its_own() {
        let to = |gsi| wiring().filter(|entry| entry.0 == gsi).map(|(_, chip, pin)| (chip, pin)).collect::<Vec<_>>();
        assert_eq!(to(0), [(KVM_IRQCHIP_PIC_MASTER, 0), (KVM_IRQCHIP_IOAPIC, 2)]);
        assert_eq!(to(4), [(KVM_IRQCHIP_PIC_MASTER, 4), (KVM_IRQCHIP_IOAPIC, 4)]);
        assert_eq!(to(12), [(KVM_IRQCHIP_PIC_SLAVE, 4), (KVM_IRQCHIP_IOAPIC, 12)]);
        assert_eq!(to(23), [(KVM_IRQCHIP_IOAPIC, 23)]);
        assert_eq!((to(CASCADE), to(24)), (vec![], vec![]));
    }

    #[test]
    fn only_messages_to_local_apics_are_sent() {
        assert_eq!(msi(0xfee0_1000, 0x31).map(|m| (m.address_lo, m.data)), Some((0xfee0_1000, 0x31)));
        for address in [0, 0xfed0_0000, 0xfef0_0000, 0x1_fee0_0000] {
            assert_eq!(msi(address, 0x31), None, "{address:#x}");
        }
    }
}
