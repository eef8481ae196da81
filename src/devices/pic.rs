//! 8259A interrupt controllers: the PC's cascaded pair. Intel 8259A datasheet (order number 231468); ELCR as in the
//! Intel 82371SB (PIIX3) datasheet, section 2.5.4.
//!
//! | region | offset | what |
//! |---|---|---|
//! | 0 | 0, 1 | master: ICW1, OCW2, OCW3 / ICW2-4, OCW1 |
//! | 1 | 0, 1 | slave: the same; its output is the master's input 2 |
//! | 2 | 0, 1 | ELCR of master and slave: one bit per input, 1 is level-triggered |
//!
//! **Not modelled**: MCS-80 mode and its call addresses, buffered mode (no bus drivers here).
//!
//! **Hostile guest**: all state is bits of fixed registers.
//!
//! **Saved state**: the registers of both chips and the levels of their inputs.

use serde::{Deserialize, Serialize};

use crate::hypervisor::bus::{Access, Device};
use crate::hypervisor::state::{Section, StateError};

const KIND: &str = "i8259";
const VERSION: u32 = 1;
const CASCADE: u8 = 2;
const ICW1_INIT: u8 = 0x10;
const ICW1_NEED_ICW4: u8 = 0x01;
const ICW1_LEVEL: u8 = 0x08;
const ICW4_AUTO_EOI: u8 = 0x02;
const ICW4_FULLY_NESTED: u8 = 0x10;
const OCW3: u8 = 0x08;
const OCW3_POLL: u8 = 0x04;
/// Inputs that are edge-triggered whatever ELCR says: timer, keyboard, cascade; clock, coprocessor.
const ELCR_WRITABLE: [u8; 2] = [0xf8, 0xde];

#[derive(Clone, Copy, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Chip {
    irr: u8,
    imr: u8,
    isr: u8,
    /// Levels of the inputs.
    pins: u8,
    elcr: u8,
    /// Vector of input 0, ICW2.
    base: u8,
    /// Number of the next ICW: 2, 3 or 4; 0 when the chip is initialised.
    next_icw: u8,
    need_icw4: bool,
    level_mode: bool,
    auto_eoi: bool,
    rotate_on_auto_eoi: bool,
    fully_nested: bool,
    special_mask: bool,
    read_isr: bool,
    poll: bool,
    /// Input of the lowest priority; 7 after initialisation.
    lowest: u8,
}

impl Chip {
    fn power_on() -> Chip {
        Chip { lowest: 7, ..Chip::default() }
    }

    fn is_level(&self, input: u8) -> bool {
        self.level_mode || self.elcr >> input & 1 != 0
    }

    fn set_pin(&mut self, input: u8, level: bool, edge: bool) {
        let bit = 1 << input;
        let rising = level && self.pins & bit == 0;
        self.pins = if level { self.pins | bit } else { self.pins & !bit };
        if self.is_level(input) {
            self.irr = if level { self.irr | bit } else { self.irr & !bit };
        } else if rising && edge {
            self.irr |= bit;
        }
    }

    /// Returns the distance from the top: 0 for the input of the highest priority.
    fn rank(&self, input: u8) -> u8 {
        input.wrapping_sub(self.lowest).wrapping_sub(1) & 7
    }

    fn top_of(&self, bits: u8) -> Option<u8> {
        (0..8).filter(|input| bits >> input & 1 != 0).min_by_key(|&input| self.rank(input))
    }

    /// Returns the input for which the chip requests service.
    fn requested(&self) -> Option<u8> {
        let top = self.top_of(self.irr & !self.imr)?;
        let mut in_service = self.isr;
        if self.special_mask {
            in_service &= !self.imr;
        }
        if self.fully_nested {
            // The cascade may interrupt itself, since the slave has priorities of its own.
            in_service &= !(1 << CASCADE);
        }
        match self.top_of(in_service) {
            Some(serving) if self.rank(serving) <= self.rank(top) => None,
            _ => Some(top),
        }
    }

    /// Moves the request into service, on INTA. Returns `None` when the request is gone: a spurious interrupt.
    fn acknowledge(&mut self) -> Option<u8> {
        let input = self.requested()?;
        if !self.is_level(input) {
            self.irr &= !(1 << input);
        }
        if self.auto_eoi {
            if self.rotate_on_auto_eoi {
                self.lowest = input;
            }
        } else {
            self.isr |= 1 << input;
        }
        Some(input)
    }

    fn initialise(&mut self, icw1: u8) {
        let kept = Chip { pins: self.pins, elcr: self.elcr, ..Chip::power_on() };
        *self = Chip { next_icw: 2, need_icw4: icw1 & ICW1_NEED_ICW4 != 0, level_mode: icw1 & ICW1_LEVEL != 0, ..kept };
        // Edge detection starts again. A level is still there.
        self.irr = if self.level_mode { self.pins } else { self.pins & self.elcr };
    }

    fn write_ocw2(&mut self, value: u8) {
        let input = value & 7;
        let top = self.top_of(self.isr);
        match value >> 5 {
            0b000 => self.rotate_on_auto_eoi = false,
            0b100 => self.rotate_on_auto_eoi = true,
            0b001 | 0b101 => {
                if let Some(top) = top {
                    self.isr &= !(1 << top);
                    if value >> 5 == 0b101 {
                        self.lowest = top;
                    }
                }
            }
            0b011 => self.isr &= !(1 << input),
            0b111 => {
                self.isr &= !(1 << input);
                self.lowest = input;
            }
            0b110 => self.lowest = input,
            _ => {}
        }
    }

    fn write(&mut self, offset: u64, value: u8) {
        if offset == 0 {
            if value & ICW1_INIT != 0 {
                self.initialise(value);
            } else if value & OCW3 != 0 {
                if value & OCW3_POLL != 0 {
                    self.poll = true;
                }
                if value & 0b10 != 0 {
                    self.read_isr = value & 1 != 0;
                }
                if value & 0x40 != 0 {
                    self.special_mask = value & 0x20 != 0;
                }
            } else {
                self.write_ocw2(value);
            }
            return;
        }
        match self.next_icw {
            2 => {
                self.base = value & 0xf8;
                self.next_icw = 3;
            }
            // ICW3 describes the wiring of the pair, which is fixed.
            3 => self.next_icw = if self.need_icw4 { 4 } else { 0 },
            4 => {
                self.auto_eoi = value & ICW4_AUTO_EOI != 0;
                self.fully_nested = value & ICW4_FULLY_NESTED != 0;
                self.next_icw = 0;
            }
            _ => self.imr = value,
        }
    }

    fn read(&mut self, offset: u64) -> u8 {
        if self.poll {
            self.poll = false;
            return self.acknowledge().map_or(0, |input| 0x80 | input);
        }
        match offset {
            1 => self.imr,
            _ if self.read_isr => self.isr,
            _ => self.irr,
        }
    }

    fn is_possible(&self, elcr_writable: u8) -> bool {
        self.lowest < 8 && matches!(self.next_icw, 0 | 2..=4) && self.base & 7 == 0 && self.elcr & !elcr_writable == 0
    }
}

/// The cascaded pair of chips, master and slave.
pub struct Pic {
    chips: [Chip; 2],
}

impl Default for Pic {
    fn default() -> Pic {
        Pic::new()
    }
}

impl Pic {
    /// Region of the master's two ports.
    pub const MASTER: u16 = 0;
    /// Region of the slave's two ports.
    pub const SLAVE: u16 = 1;
    /// Region of the two ELCR ports.
    pub const ELCR: u16 = 2;

    /// Creates two chips that wait for initialisation.
    pub fn new() -> Pic {
        Pic { chips: [Chip::power_on(); 2] }
    }

    /// Sets the level of input 0 to 15. With `edge` false no edge is seen. Input 2 is the cascade and ignored.
    pub fn set_irq(&mut self, irq: u8, level: bool, edge: bool) {
        if irq < 16 && irq != CASCADE {
            self.chips[usize::from(irq >> 3)].set_pin(irq & 7, level, edge);
            self.cascade();
        }
    }

    fn cascade(&mut self) {
        let level = self.chips[1].requested().is_some();
        let master = &mut self.chips[0];
        // The slave drops its output at each INTA and raises it again for the next request.
        master.pins = if level { master.pins | 1 << CASCADE } else { master.pins & !(1 << CASCADE) };
        master.irr = if level { master.irr | 1 << CASCADE } else { master.irr & !(1 << CASCADE) };
    }

    /// Returns the level of the INTR output.
    pub fn output(&self) -> bool {
        self.chips[0].requested().is_some()
    }

    /// Answers INTA with the vector. For a request that is gone it is the vector of input 7.
    pub fn acknowledge(&mut self) -> u8 {
        let vector = match self.chips[0].acknowledge() {
            Some(CASCADE) => {
                let input = self.chips[1].acknowledge().unwrap_or(7);
                self.chips[1].base | input
            }
            Some(input) => self.chips[0].base | input,
            None => self.chips[0].base | 7,
        };
        self.cascade();
        vector
    }
}

impl Device for Pic {
    fn name(&self) -> &'static str {
        KIND
    }

    fn read(&mut self, access: Access) -> u64 {
        let value = match (access.region, access.offset) {
            (Pic::MASTER | Pic::SLAVE, 0 | 1) => self.chips[usize::from(access.region)].read(access.offset),
            (Pic::ELCR, 0 | 1) => self.chips[access.offset as usize].elcr,
            _ => return u64::MAX,
        };
        self.cascade();
        u64::MAX << 8 | u64::from(value)
    }

    fn write(&mut self, access: Access, value: u64) {
        let value = value as u8;
        match (access.region, access.offset) {
            (Pic::MASTER | Pic::SLAVE, 0 | 1) => self.chips[usize::from(access.region)].write(access.offset, value),
            (Pic::ELCR, 0 | 1) => {
                let at = access.offset as usize;
                let chip = &mut self.chips[at];
                chip.elcr = value & ELCR_WRITABLE[at];
                chip.irr = chip.irr & !chip.elcr | chip.pins & chip.elcr;
            }
            _ => {}
        }
        self.cascade();
    }

    fn reset(&mut self) {
        *self = Pic::new();
    }

    fn save(&self) -> Section {
        Section::encode(KIND, VERSION, &self.chips)
    }

    fn load(&mut self, section: &Section) -> Result<(), StateError> {
        let chips: [Chip; 2] = section.decode(KIND, VERSION)?;
        if !chips.iter().zip(ELCR_WRITABLE).all(|(chip, writable)| chip.is_possible(writable)) {
            return Err(StateError::Damaged { kind: KIND, why: "a register has an impossible value".into() });
        }
        self.chips = chips;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::conformance;

    fn out(pic: &mut Pic, region: u16, offset: u64, value: u8) {
        pic.write(Access { region, offset, width: 1 }, u64::from(value));
    }

    fn inp(pic: &mut Pic, region: u16, offset: u64) -> u8 {
        pic.read(Access { region, offset, width: 1 }) as u8
    }

    /// Returns the pair as an operating system sets it up: vectors 0x20 and 0x28, nothing masked.
    fn pic(icw4: u8) -> Pic {
        let mut pic = Pic::new();
        for (chip, base, icw3) in [(0, 0x20, 4), (1, 0x28, 2)] {
            out(&mut pic, chip, 0, 0x11);
            out(&mut pic, chip, 1, base);
            out(&mut pic, chip, 1, icw3);
            out(&mut pic, chip, 1, icw4);
            out(&mut pic, chip, 1, 0);
        }
        pic
    }

    fn pulse(pic: &mut Pic, irq: u8) {
        pic.set_irq(irq, true, true);
        pic.set_irq(irq, false, true);
    }

    #[test]
    fn a_higher_priority_interrupts_a_lower_one_and_not_the_other_way() {
        let mut pic = pic(1);
        pulse(&mut pic, 4);
        assert!(pic.output());
        assert_eq!(pic.acknowledge(), 0x24);
        pulse(&mut pic, 5);
        assert!(!pic.output());
        pulse(&mut pic, 1);
        assert_eq!(pic.acknowledge(), 0x21);
        out(&mut pic, 0, 0, 0x20);
        assert!(!pic.output(), "4 is in service still");
        out(&mut pic, 0, 0, 0x64);
        assert_eq!(pic.acknowledge(), 0x25);
    }

    #[test]
    fn the_slave_comes_through_input_2() {
        let mut pic = pic(1);
        pulse(&mut pic, 12);
        assert_eq!(pic.acknowledge(), 0x2c);
        pulse(&mut pic, 9);
        assert!(!pic.output(), "the master holds its input 2 in service");
        out(&mut pic, 1, 0, 0x20);
        out(&mut pic, 0, 0, 0x20);
        assert_eq!(pic.acknowledge(), 0x29);
    }

    #[test]
    fn in_special_fully_nested_mode_the_slave_interrupts_itself() {
        let mut pic = pic(0x11);
        pulse(&mut pic, 12);
        assert_eq!(pic.acknowledge(), 0x2c);
        pulse(&mut pic, 9);
        assert_eq!(pic.acknowledge(), 0x29);
    }

    #[test]
    fn a_level_that_drops_before_the_acknowledge_is_spurious() {
        let mut pic = pic(1);
        out(&mut pic, 2, 0, 0x20);
        out(&mut pic, 2, 1, 0x08);
        pic.set_irq(5, true, true);
        pic.set_irq(5, false, true);
        assert_eq!(pic.acknowledge(), 0x27);
        out(&mut pic, 0, 0, 0x0b);
        assert_eq!(inp(&mut pic, 0, 0), 0, "nothing is in service");
    }

    #[test]
    fn a_level_asks_again_after_eoi_until_it_drops() {
        let mut pic = pic(1);
        out(&mut pic, 2, 1, 0x08);
        assert_eq!(inp(&mut pic, 2, 1), 0x08);
        pic.set_irq(11, true, true);
        assert_eq!(pic.acknowledge(), 0x2b);
        out(&mut pic, 1, 0, 0x20);
        out(&mut pic, 0, 0, 0x20);
        assert_eq!(pic.acknowledge(), 0x2b);
        pic.set_irq(11, false, true);
        out(&mut pic, 1, 0, 0x20);
        out(&mut pic, 0, 0, 0x20);
        assert!(!pic.output());
    }

    #[test]
    fn automatic_eoi_leaves_nothing_in_service() {
        let mut pic = pic(3);
        pulse(&mut pic, 3);
        assert_eq!(pic.acknowledge(), 0x23);
        pulse(&mut pic, 7);
        assert_eq!(pic.acknowledge(), 0x27);
    }

    #[test]
    fn rotation_makes_the_served_input_the_last() {
        let mut pic = pic(1);
        pulse(&mut pic, 0);
        assert_eq!(pic.acknowledge(), 0x20);
        out(&mut pic, 0, 0, 0xa0);
        pulse(&mut pic, 0);
        pulse(&mut pic, 1);
        assert_eq!(pic.acknowledge(), 0x21);
    }

    #[test]
    fn a_mask_holds_a_request_back_and_special_mask_lets_lower_ones_through() {
        let mut pic = pic(1);
        out(&mut pic, 0, 1, 0x10);
        pulse(&mut pic, 4);
        assert!(!pic.output());
        out(&mut pic, 0, 1, 0);
        assert_eq!(pic.acknowledge(), 0x24);
        out(&mut pic, 0, 1, 0x10);
        pulse(&mut pic, 6);
        assert!(!pic.output());
        out(&mut pic, 0, 0, 0x68);
        assert_eq!(pic.acknowledge(), 0x26);
    }

    #[test]
    fn a_poll_acknowledges_without_inta() {
        let mut pic = pic(1);
        out(&mut pic, 0, 0, 0x0c);
        assert_eq!(inp(&mut pic, 0, 0), 0);
        pulse(&mut pic, 6);
        out(&mut pic, 0, 0, 0x0c);
        assert_eq!(inp(&mut pic, 0, 0), 0x86);
        assert!(!pic.output());
    }

    #[test]
    fn a_restored_level_is_no_edge() {
        let mut pic = pic(1);
        pic.set_irq(4, true, false);
        assert!(!pic.output());
    }

    #[test]
    fn the_pair_keeps_the_contract_of_devices() {
        conformance::check(Pic::new, &[(0, 2), (1, 2), (2, 2)]);
        assert_eq!(pic(1).save().kind, "i8259");
    }
}
