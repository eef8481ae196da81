//! I/O APIC: Intel 82093AA datasheet (order number 290566), with the EOI register of version 0x20.
//!
//! | offset | what |
//! |---|---|
//! | 0x00 | IOREGSEL |
//! | 0x10 | IOWIN: the selected register: 0 ID, 1 version and number of pins, 2 arbitration ID, 0x10.. redirection |
//! | 0x40 | EOI: a write ends the level interrupts of the vector written |
//!
//! The chip has 24 pins and sends nothing itself: a pin that must be served is a bit in an outbox, and
//! [`IoApic::take_message`] builds its message. The interrupt fabric empties the outbox after each call.
//!
//! **Not modelled**: polarity (a line carries "asserted", not a voltage; the bit is kept); delivery status (a message
//! arrives at once); ExtINT and SMI redirection (sent nowhere).
//!
//! **Hostile guest**: all state is fixed registers; the outbox is one bit per pin.
//!
//! **Saved state**: the registers and the levels of the pins. The outbox is empty between calls.

use serde::{Deserialize, Serialize};

use super::lapic::{ApicMessage, DeliveryMode};
use crate::hypervisor::bus::{Access, Device};
use crate::hypervisor::state::{Section, StateError};

const KIND: &str = "ioapic";
const VERSION: u32 = 1;
/// Pins of the chip.
pub const PINS: usize = 24;
const CHIP_VERSION: u32 = 0x20;
const REMOTE_IRR: u64 = 1 << 14;
const LEVEL: u64 = 1 << 15;
const MASKED: u64 = 1 << 16;
const LOGICAL: u64 = 1 << 11;
/// Vector, delivery mode, destination mode, polarity, trigger mode, mask, destination.
const WRITABLE: u64 = 0xff00_0000_0001_afff;

#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Regs {
    select: u8,
    id: u8,
    redirection: [u64; PINS],
    pins: u32,
}

impl Regs {
    fn power_on() -> Regs {
        Regs { select: 0, id: 0, redirection: [MASKED; PINS], pins: 0 }
    }
}

/// The I/O APIC.
pub struct IoApic {
    regs: Regs,
    outbox: u32,
}

impl Default for IoApic {
    fn default() -> IoApic {
        IoApic::new()
    }
}

impl IoApic {
    /// Creates the chip with all pins masked and low.
    pub fn new() -> IoApic {
        IoApic { regs: Regs::power_on(), outbox: 0 }
    }

    /// Sets the level of a pin. With `edge` false nothing is sent for it.
    pub fn set_pin(&mut self, pin: usize, level: bool, edge: bool) {
        if pin >= PINS {
            return;
        }
        let bit = 1 << pin;
        // Computed before the level is stored: an edge pin sends only when its level changes.
        let rising = level && self.regs.pins & bit == 0;
        self.regs.pins = if level { self.regs.pins | bit } else { self.regs.pins & !bit };
        if !edge {
            return;
        }
        if self.regs.redirection[pin] & LEVEL != 0 {
            self.serve_level(pin);
        } else if rising && self.regs.redirection[pin] & MASKED == 0 {
            self.outbox |= bit;
        }
    }

    /// Sends a level interrupt once, and again after each EOI while the pin stays high.
    fn serve_level(&mut self, pin: usize) {
        let entry = self.regs.redirection[pin];
        if self.regs.pins >> pin & 1 != 0 && entry & (MASKED | REMOTE_IRR) == 0 && entry & LEVEL != 0 {
            self.outbox |= 1 << pin;
        }
    }

    /// Takes the next message to a local APIC.
    pub fn take_message(&mut self) -> Option<ApicMessage> {
        while self.outbox != 0 {
            let pin = self.outbox.trailing_zeros() as usize;
            self.outbox &= !(1 << pin);
            let entry = self.regs.redirection[pin];
            let level = entry & LEVEL != 0;
            // The entry is read now and not when the pin rose, so that the guest's last write of it
            // counts.
            let Some(mode) = DeliveryMode::from_bits((entry >> 8 & 7) as u8) else { continue };
            // Only these modes end with an EOI that names the vector. Any other would leave the bit
            // set, and the pin dead.
            if level && matches!(mode, DeliveryMode::Fixed | DeliveryMode::LowestPriority) {
                self.regs.redirection[pin] |= REMOTE_IRR;
            }
            let destination = (entry >> 56) as u32;
            let logical = entry & LOGICAL != 0;
            return Some(ApicMessage { destination, broadcast: destination == 0xff, logical, mode, vector: entry as u8, level });
        }
        None
    }

    /// Handles the end of a level interrupt of `vector` at a local APIC.
    pub fn end_of_interrupt(&mut self, vector: u8) {
        for pin in 0..PINS {
            let entry = self.regs.redirection[pin];
            if entry & (LEVEL | REMOTE_IRR) == LEVEL | REMOTE_IRR && entry as u8 == vector {
                self.regs.redirection[pin] &= !REMOTE_IRR;
                self.serve_level(pin);
            }
        }
    }

    fn read_register(&self) -> u32 {
        match self.regs.select {
            0 | 2 => u32::from(self.regs.id) << 24,
            1 => CHIP_VERSION | (PINS as u32 - 1) << 16,
            select @ 0x10..=0x3f => {
                let entry = self.regs.redirection[usize::from(select - 0x10) / 2];
                if select & 1 == 0 { entry as u32 } else { (entry >> 32) as u32 }
            }
            _ => 0,
        }
    }

    fn write_register(&mut self, value: u32) {
        match self.regs.select {
            0 => self.regs.id = (value >> 24) as u8 & 0x0f,
            select @ 0x10..=0x3f => {
                let pin = usize::from(select - 0x10) / 2;
                let (shift, half) = if select & 1 == 0 { (0, 0xffff_ffff) } else { (32, 0xffff_ffff << 32) };
                let mask = half & WRITABLE;
                let entry = &mut self.regs.redirection[pin];
                *entry = *entry & !mask | u64::from(value) << shift & mask;
                // An edge entry has no remote IRR. Systems clear a stuck one by switching to edge
                // and back (Linux, `__eoi_ioapic_pin`).
                if *entry & LEVEL == 0 {
                    *entry &= !REMOTE_IRR;
                }
                self.serve_level(pin);
            }
            _ => {}
        }
    }
}

impl Device for IoApic {
    fn name(&self) -> &'static str {
        KIND
    }

    fn read(&mut self, access: Access) -> u64 {
        match (access.region, access.offset) {
            (0, 0x00) => u64::from(self.regs.select),
            (0, 0x10) => u64::from(self.read_register()),
            (0, _) => 0,
            _ => u64::MAX,
        }
    }

    fn write(&mut self, access: Access, value: u64) {
        match (access.region, access.offset) {
            (0, 0x00) => self.regs.select = value as u8,
            (0, 0x10) => self.write_register(value as u32),
            (0, 0x40) => self.end_of_interrupt(value as u8),
            _ => {}
        }
    }

    fn reset(&mut self) {
        *self = IoApic::new();
    }

    fn save(&self) -> Section {
        Section::encode(KIND, VERSION, &self.regs)
    }

    fn load(&mut self, section: &Section) -> Result<(), StateError> {
        let regs: Regs = section.decode(KIND, VERSION)?;
        let entries_possible = regs.redirection.iter().all(|entry| entry & !(WRITABLE | REMOTE_IRR) == 0);
        if !entries_possible || regs.id > 0x0f || regs.pins >> PINS != 0 {
            return Err(StateError::Damaged { kind: KIND, why: "a register has an impossible value".into() });
        }
        self.regs = regs;
        // The local APICs have saved what was sent; a second message would be a spurious interrupt.
        self.outbox = 0;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::conformance;

    fn set(apic: &mut IoApic, register: u64, value: u32) {
        apic.write(Access { region: 0, offset: 0, width: 4 }, register);
        apic.write(Access { region: 0, offset: 0x10, width: 4 }, u64::from(value));
    }

    fn get(apic: &mut IoApic, register: u64) -> u32 {
        apic.write(Access { region: 0, offset: 0, width: 4 }, register);
        apic.read(Access { region: 0, offset: 0x10, width: 4 }) as u32
    }

    fn redirect(apic: &mut IoApic, pin: u64, low: u32) {
        set(apic, 0x11 + 2 * pin, 3 << 24);
        set(apic, 0x10 + 2 * pin, low);
    }

    #[test]
    fn the_version_tells_the_number_of_pins() {
        let mut apic = IoApic::new();
        assert_eq!(get(&mut apic, 1), 0x0017_0020);
        assert_eq!(get(&mut apic, 0x10), 1 << 16, "masked");
        set(&mut apic, 0, 0xffff_ffff);
        assert_eq!(get(&mut apic, 0), 0x0f00_0000);
    }

    #[test]
    fn an_edge_is_sent_once_and_lost_while_masked() {
        let mut apic = IoApic::new();
        apic.set_pin(4, true, true);
        redirect(&mut apic, 4, 0x34);
        assert_eq!(apic.take_message(), None);
        apic.set_pin(4, false, true);
        apic.set_pin(4, true, true);
        let message = apic.take_message().unwrap();
        assert_eq!((message.vector, message.destination, message.level), (0x34, 3, false));
        assert_eq!(apic.take_message(), None);
    }

    #[test]
    fn a_level_is_sent_again_after_eoi_while_it_stays() {
        let mut apic = IoApic::new();
        redirect(&mut apic, 9, 0x8041);
        apic.set_pin(9, true, true);
        assert!(apic.take_message().unwrap().level);
        assert_ne!(get(&mut apic, 0x22) & 1 << 14, 0, "remote IRR");
        apic.set_pin(9, true, true);
        assert_eq!(apic.take_message(), None);
        apic.end_of_interrupt(0x41);
        assert_eq!(apic.take_message().unwrap().vector, 0x41);
        apic.set_pin(9, false, true);
        apic.write(Access { region: 0, offset: 0x40, width: 4 }, 0x41);
        assert_eq!(apic.take_message(), None);
        assert_eq!(get(&mut apic, 0x22) & 1 << 14, 0);
    }

    #[test]
    fn a_level_that_drops_and_rises_again_before_the_eoi_is_sent_again_after_it() {
        let mut apic = IoApic::new();
        redirect(&mut apic, 9, 0x8041);
        apic.set_pin(9, true, true);
        for _ in 0..5 {
            assert_eq!(apic.take_message().expect("sent").vector, 0x41);
            // The device was served, and has more, before the processor is done.
            apic.set_pin(9, false, true);
            apic.set_pin(9, true, true);
            assert_eq!(apic.take_message(), None, "one at a time");
            apic.end_of_interrupt(0x41);
        }
        assert!(apic.take_message().is_some());
    }

    #[test]
    fn a_level_that_came_while_masked_is_sent_when_unmasked() {
        let mut apic = IoApic::new();
        redirect(&mut apic, 10, 0x1_8050);
        apic.set_pin(10, true, true);
        assert_eq!(apic.take_message(), None);
        redirect(&mut apic, 10, 0x8050);
        assert_eq!(apic.take_message().unwrap().vector, 0x50);
    }

    #[test]
    fn switching_a_pin_to_edge_forgets_remote_irr() {
        let mut apic = IoApic::new();
        redirect(&mut apic, 10, 0x8050);
        apic.set_pin(10, true, true);
        apic.take_message();
        redirect(&mut apic, 10, 0x0050);
        assert_eq!(get(&mut apic, 0x24) & 1 << 14, 0);
    }

    #[test]
    fn the_chip_keeps_the_contract_of_devices() {
        conformance::check(IoApic::new, &[(0, 0x100)]);
    }
}
