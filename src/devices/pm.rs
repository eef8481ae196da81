//! ACPI fixed hardware: ACPI 6.4, sections 4.8.2 (event grouping), 4.8.3 (PM1 and the PM timer).
//!
//! | region | bytes | what |
//! |---|---|---|
//! | 0 | 4 | PM1a_EVT: PM1_STS (16 bits, write ones to clear), PM1_EN (16 bits) |
//! | 1 | 2 | PM1a_CNT: SCI_EN (hard-wired to 1: the machine is always in ACPI mode), SLP_TYP, SLP_EN |
//! | 2 | 4 | PM_TMR: 32 bits at 3.579545 MHz |
//!
//! SLP_TYP 5 with SLP_EN is S5 and powers the machine off, as `_S5` in the DSDT says. The SCI is a level line, high
//! while an enabled status bit is set.
//!
//! **Not modelled**: S1 to S4 (the DSDT does not offer them; SLP_EN with another type does nothing), general-purpose
//! events, the sleep button, SMI_CMD (there is no SMM). The reset register is RST_CNT in the PCI root.
//!
//! **Hostile guest**: all state is fixed registers. **Saved state**: the registers.

use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::hypervisor::backend::MachineExit;
use crate::hypervisor::bus::{Access, Device};
use crate::hypervisor::clock::Clock;
use crate::hypervisor::irq::IrqLine;
use crate::hypervisor::state::{Section, StateError};
use crate::hypervisor::waking::{Attention, Waker};

const KIND: &str = "acpi-pm";
const VERSION: u32 = 1;
const TIMER_HZ: u128 = 3_579_545;
const NS_PER_S: u128 = 1_000_000_000;

const TMR: u16 = 1 << 0;
const GBL: u16 = 1 << 5;
const PWRBTN: u16 = 1 << 8;
const SLPBTN: u16 = 1 << 9;
const RTC: u16 = 1 << 10;
const WAK: u16 = 1 << 15;
const ENABLES: u16 = TMR | GBL | PWRBTN | SLPBTN | RTC;
const SCI_EN: u16 = 1 << 0;
const SLP_EN: u16 = 1 << 13;
/// Writable bits: BM_RLD and SLP_TYP.
const CONTROL_WRITABLE: u16 = 1 << 1 | 0b111 << 10;
const S5: u16 = 5;

#[derive(Clone, Copy, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Regs {
    status: u16,
    enable: u16,
    control: u16,
    /// How often bit 31 of the timer had toggled at the last check.
    toggles: u64,
}

/// The ACPI fixed hardware registers.
pub struct Pm {
    regs: Regs,
    clock: Arc<dyn Clock>,
    sci: IrqLine,
    attention: Arc<Attention>,
    button: PowerButton,
}

/// The machine's power button, usable from any thread.
#[derive(Clone)]
pub struct PowerButton {
    pressed: Arc<AtomicBool>,
    /// The button was pressed, and the guest has not enabled its event since.
    unheard: Arc<AtomicBool>,
    /// The guest has enabled the button's event in this boot.
    listened: Arc<AtomicBool>,
    waker: Waker,
}

impl PowerButton {
    /// Presses and releases the button. The guest's system control interrupt follows.
    pub fn press(&self) {
        self.pressed.store(true, Ordering::Release);
        self.waker.wake();
    }

    /// Returns whether the button was pressed and the guest could not notice, since it has never enabled the event
    /// (PM1_EN.PWRBTN_EN).
    pub fn is_unheard(&self) -> bool {
        let pressed = self.pressed.load(Ordering::Acquire) || self.unheard.load(Ordering::Acquire);
        pressed && !self.listened.load(Ordering::Acquire)
    }
}

impl Pm {
    /// Region of PM1a_EVT.
    pub const EVENT: u16 = 0;
    /// Region of PM1a_CNT.
    pub const CONTROL: u16 = 1;
    /// Region of PM_TMR.
    pub const TIMER: u16 = 2;
    /// The value of SLP_TYP that `_S5` must give.
    pub const SLP_TYP_S5: u8 = S5 as u8;

    /// Creates the registers. `sci` is their system control interrupt, a power-off stops the machine of `attention`,
    /// and the button has the device polled through `waker`.
    pub fn new(clock: Arc<dyn Clock>, sci: IrqLine, attention: Arc<Attention>, waker: Waker) -> Pm {
        let button = PowerButton { pressed: Arc::default(), unheard: Arc::default(), listened: Arc::default(), waker };
        Pm { regs: Regs::default(), clock, sci, attention, button }
    }

    /// Returns the button of this machine.
    pub fn button(&self) -> PowerButton {
        self.button.clone()
    }

    /// Presses the power button. A driver clears the status before it enables the event (ACPICA,
    /// AcpiInstallFixedEventHandler), so a press before that is lost. It is repeated then.
    pub fn power_button(&mut self) {
        self.regs.status |= PWRBTN;
        self.button.unheard.store(self.regs.enable & PWRBTN == 0, Ordering::Release);
        self.update_sci();
    }

    fn ticks_at(now_ns: u64) -> u64 {
        (u128::from(now_ns) * TIMER_HZ / NS_PER_S) as u64
    }

    fn catch_up(&mut self) {
        // The status bit follows bit 31 of the counter, in both directions (TMR_STS): guests extend
        // the counter by it.
        let toggles = Pm::ticks_at(self.clock.now_ns()) >> 31;
        if toggles > self.regs.toggles {
            self.regs.toggles = toggles;
            self.regs.status |= TMR;
        }
    }

    fn update_sci(&self) {
        self.sci.set(self.regs.status & self.regs.enable != 0);
    }

    fn word(&self, region: u16, offset: u64) -> Option<u16> {
        Some(match (region, offset) {
            (Pm::EVENT, 0) => self.regs.status,
            (Pm::EVENT, 2) => self.regs.enable,
            (Pm::CONTROL, 0) => self.regs.control | SCI_EN,
            _ => return None,
        })
    }

    fn write_word(&mut self, region: u16, offset: u64, value: u16, mask: u16) {
        match (region, offset) {
            (Pm::EVENT, 0) => self.regs.status &= !(value & mask),
            (Pm::EVENT, 2) => {
                self.regs.enable = (self.regs.enable & !mask | value & mask) & ENABLES;
                if self.regs.enable & PWRBTN != 0 {
                    self.button.listened.store(true, Ordering::Release);
                    if self.button.unheard.swap(false, Ordering::AcqRel) {
                        self.regs.status |= PWRBTN;
                    }
                }
            }
            (Pm::CONTROL, 0) => {
                // SLP_EN is not kept: it reads as zero, and each write of it is one command.
                self.regs.control = (self.regs.control & !mask | value & mask) & CONTROL_WRITABLE;
                if value & mask & SLP_EN != 0 && self.regs.control >> 10 & 7 == S5 {
                    self.attention.stop(MachineExit::PowerOff);
                }
            }
            _ => {}
        }
    }
}

impl Device for Pm {
    fn name(&self) -> &'static str {
        KIND
    }

    fn read(&mut self, access: Access) -> u64 {
        if access.region == Pm::TIMER && access.offset < 4 {
            let ticks = Pm::ticks_at(self.clock.now_ns()) & 0xffff_ffff;
            return ticks >> (8 * access.offset);
        }
        self.catch_up();
        self.update_sci();
        let mut value = u64::MAX;
        for i in 0..u64::from(access.width) {
            let at = access.offset.wrapping_add(i);
            if let Some(word) = self.word(access.region, at & !1) {
                let byte = u64::from(word.to_le_bytes()[(at & 1) as usize]);
                value = value & !(0xff << (8 * i)) | byte << (8 * i);
            }
        }
        value
    }

    fn write(&mut self, access: Access, value: u64) {
        self.catch_up();
        let mut i = 0;
        while i < u64::from(access.width.min(8)) {
            let at = access.offset.wrapping_add(i);
            let odd = at & 1;
            let bytes = (2 - odd).min(u64::from(access.width) - i);
            let word = ((value >> (8 * i)) as u16) << (8 * odd);
            let mask = (0xffffu16 >> (16 - 8 * bytes)) << (8 * odd);
            self.write_word(access.region, at & !1, word, mask);
            i += bytes;
        }
        self.update_sci();
    }

    fn reset(&mut self) {
        self.regs = Regs::default();
        self.button.pressed.store(false, Ordering::Release);
        self.button.unheard.store(false, Ordering::Release);
        self.button.listened.store(false, Ordering::Release);
        self.update_sci();
    }

    fn save(&self) -> Section {
        Section::encode(KIND, VERSION, &self.regs)
    }

    fn load(&mut self, section: &Section) -> Result<(), StateError> {
        let regs: Regs = section.decode(KIND, VERSION)?;
        if regs.enable & !ENABLES != 0 || regs.control & !CONTROL_WRITABLE != 0 || regs.status & !(ENABLES | WAK) != 0 {
            return Err(StateError::Damaged { kind: KIND, why: "a reserved bit is set".into() });
        }
        self.regs = regs;
        self.sci.restore(self.regs.status & self.regs.enable != 0);
        Ok(())
    }

    fn deadline_ns(&self) -> Option<u64> {
        // Nothing changes for the guest until it enables the event or clears the bit, so no timer is
        // needed.
        if self.regs.enable & TMR == 0 || self.regs.status & TMR != 0 {
            return None;
        }
        let next = (u128::from(self.regs.toggles) + 1) << 31;
        u64::try_from((next * NS_PER_S).div_ceil(TIMER_HZ)).ok()
    }

    fn poll(&mut self, _now_ns: u64) {
        if self.button.pressed.swap(false, Ordering::AcqRel) {
            self.power_button();
        }
        if self.regs.enable & TMR != 0 {
            self.catch_up();
            self.update_sci();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::conformance;
    use crate::hypervisor::clock::ManualClock;
    use crate::hypervisor::irq::IrqProbe;

    struct Rig {
        pm: Pm,
        clock: Arc<ManualClock>,
        irq: Arc<IrqProbe>,
        attention: Arc<Attention>,
    }

    fn rig() -> Rig {
        let (clock, irq, attention) = (ManualClock::new(0), IrqProbe::new(), Attention::new(1));
        let pm = Pm::new(clock.clone(), IrqLine::new(irq.clone(), 9), attention.clone(), Waker::new(attention.clone()));
        Rig { pm, clock, irq, attention }
    }

    impl Rig {
        fn read(&mut self, region: u16, offset: u64, width: u8) -> u64 {
            self.pm.read(Access { region, offset, width }) & (u64::MAX >> (64 - 8 * width))
        }
        fn write(&mut self, region: u16, offset: u64, width: u8, value: u64) {
            self.pm.write(Access { region, offset, width }, value);
        }
    }

    #[test]
    fn the_power_button_raises_the_sci_until_its_status_is_cleared() {
        let mut rig = rig();
        rig.write(Pm::EVENT, 2, 2, u64::from(PWRBTN));
        let button = rig.pm.button();
        button.press();
        assert!(rig.attention.take_board());
        rig.pm.poll(0);
        assert!(rig.irq.level(9));
        assert_eq!(rig.read(Pm::EVENT, 0, 2), u64::from(PWRBTN));
        rig.write(Pm::EVENT, 0, 2, u64::from(PWRBTN));
        assert!(!rig.irq.level(9));
    }

    #[test]
    fn a_press_while_the_last_one_is_being_acknowledged_raises_the_sci_again() {
        let mut rig = rig();
        rig.write(Pm::EVENT, 2, 2, u64::from(PWRBTN));
        let button = rig.pm.button();
        for turn in 1..=3 {
            button.press();
            rig.pm.poll(0);
            assert_eq!(rig.irq.edges(9), turn);
            // The next one comes before the status is cleared, and the board sees it afterwards.
            assert_eq!(rig.read(Pm::EVENT, 0, 2), u64::from(PWRBTN));
            button.press();
            rig.write(Pm::EVENT, 0, 2, u64::from(PWRBTN));
            assert!(!rig.irq.level(9), "the line drops though a press waits");
        }
        rig.pm.poll(0);
        assert_eq!((rig.irq.level(9), rig.irq.edges(9)), (true, 4));
    }

    #[test]
    fn a_press_before_the_guest_listens_is_repeated_when_it_does() {
        let mut rig = rig();
        let button = rig.pm.button();
        assert!(!button.is_unheard());
        button.press();
        rig.pm.poll(0);
        assert!(button.is_unheard() && !rig.irq.level(9));
        // This is how ACPICA installs its handler: it clears the stale status, then enables the event.
        rig.write(Pm::EVENT, 0, 2, u64::from(PWRBTN));
        rig.write(Pm::EVENT, 2, 2, u64::from(PWRBTN));
        assert!(rig.irq.level(9) && !button.is_unheard());
        rig.write(Pm::EVENT, 0, 2, u64::from(PWRBTN));
        rig.write(Pm::EVENT, 2, 2, u64::from(PWRBTN));
        assert!(!rig.irq.level(9), "one press is heard once");
        // A guest that disables the event while it shuts down has noticed the button nevertheless.
        rig.write(Pm::EVENT, 2, 2, 0);
        button.press();
        rig.pm.poll(0);
        assert!(!button.is_unheard());
    }

    #[test]
    fn s5_powers_off_and_other_sleep_types_do_not() {
        let mut rig = rig();
        assert_eq!(rig.read(Pm::CONTROL, 0, 2), 1, "ACPI mode is on");
        rig.write(Pm::CONTROL, 0, 2, 3 << 10 | u64::from(SLP_EN));
        assert_eq!(rig.attention.stopped(), None);
        rig.write(Pm::CONTROL, 0, 2, 5 << 10);
        assert_eq!(rig.attention.stopped(), None);
        rig.write(Pm::CONTROL, 0, 2, 5 << 10 | u64::from(SLP_EN));
        assert_eq!(rig.attention.stopped(), Some(MachineExit::PowerOff));
    }

    #[test]
    fn s5_also_works_byte_by_byte() {
        let mut rig = rig();
        rig.write(Pm::CONTROL, 1, 1, (5 << 10 | u64::from(SLP_EN)) >> 8);
        assert_eq!(rig.attention.stopped(), Some(MachineExit::PowerOff));
    }

    #[test]
    fn the_timer_counts_at_its_frequency_and_interrupts_when_its_top_bit_toggles() {
        let mut rig = rig();
        rig.clock.advance_ns(1_000_000_000);
        assert_eq!(rig.read(Pm::TIMER, 0, 4), 3_579_545);
        rig.write(Pm::EVENT, 2, 2, u64::from(TMR));
        let due = rig.pm.deadline_ns().unwrap();
        rig.clock.set_ns(due - 1_000);
        rig.pm.poll(due - 1_000);
        assert!(!rig.irq.level(9));
        rig.clock.set_ns(due);
        rig.pm.poll(due);
        assert!(rig.irq.level(9));
        assert_eq!(rig.read(Pm::TIMER, 0, 4), 1 << 31);
    }

    #[test]
    fn the_registers_keep_the_contract_of_devices() {
        conformance::check(|| rig().pm, &[(0, 4), (1, 2), (2, 4)]);
    }
}
